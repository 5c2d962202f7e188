package compat

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/ulule/limiter/v3"
	store "github.com/ulule/limiter/v3/drivers/store/redis"

	"github.com/redial-go/redial"
)

// TestLimiter is [TestRedisRate] for a limiter that loads its scripts itself, and
// again when the restart made the server forget them.
func TestLimiter(t *testing.T) {
	server := startServer(t)
	rate := limiter.Rate{Period: time.Hour, Limit: workers * some * 3 / 2}
	type limited struct {
		*limiter.Limiter
		allowed atomic.Int64
	}
	goRedis, patient := bare(t, server), resilient(t, server, redial.WithRetry(repeating))
	limits := make(map[*rider]*limited)
	for _, r := range []*rider{goRedis, patient} {
		s, err := store.NewStore(r.rdb)
		require.NoError(t, err)
		limits[r] = &limited{Limiter: limiter.New(s, rate)}
	}
	ride(t, server, func(ctx context.Context, r *rider) error {
		l := limits[r]
		state, err := l.Get(ctx, r.name)
		if err == nil && !state.Reached {
			l.allowed.Add(1)
		}
		return err
	}, goRedis, patient)

	unharmed(t, patient)
	assert.LessOrEqual(t, limits[patient].allowed.Load(), rate.Limit, "it allows too many")
	assert.GreaterOrEqual(t, limits[patient].allowed.Load(), rate.Limit-workers, "it allows too few")
}
