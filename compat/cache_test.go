package compat

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/go-redis/cache/v9"
	"github.com/stretchr/testify/assert"

	"github.com/redial-go/redial"
)

// TestCache: what is cached is computed once. The library takes an error of the
// server for a miss, so with a client that fails the database behind it gets the
// load during the outage.
func TestCache(t *testing.T) {
	server := startServer(t)
	const keys = 5
	type cached struct {
		*cache.Cache
		computed atomic.Int64
	}
	goRedis, patient := bare(t, server), resilient(t, server, redial.WithRetry(redial.RetryIdempotent))
	caches := map[*rider]*cached{
		goRedis: {Cache: cache.New(&cache.Options{Redis: goRedis.rdb})},
		patient: {Cache: cache.New(&cache.Options{Redis: patient.rdb})},
	}
	ride(t, server, func(ctx context.Context, r *rider) error {
		c := caches[r]
		key := fmt.Sprint(r.name, rand.IntN(keys))
		var value string
		err := c.Once(&cache.Item{
			Ctx: ctx, Key: key, Value: &value,
			Do: func(*cache.Item) (any, error) {
				c.computed.Add(1)
				return "value of " + key, nil
			},
		})
		if err == nil && value != "value of "+key {
			err = fmt.Errorf("%s has value %q", key, value)
		}
		return err
	}, goRedis, patient)

	unharmed(t, patient)
	t.Logf("%d values computed %d times with go-redis, %d times with redial",
		keys, caches[goRedis].computed.Load(), caches[patient].computed.Load())
	assert.EqualValues(t, keys, caches[patient].computed.Load(), "the outage reaches what is behind the cache")
}
