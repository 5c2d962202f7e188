package compat

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bsm/redislock"

	"github.com/redial-go/redial"
)

const (
	lockFor = 8 * time.Second // longer than the outage, so that holders do not lose it
	hold    = 3               // times pace, so that somebody holds the lock when the server dies
)

// TestRedislock: there is one holder at a time, who keeps the lock through the
// outage, can refresh and release it, and then it can be had again.
func TestRedislock(t *testing.T) {
	server := startServer(t)
	goRedis, patient := bare(t, server), resilient(t, server, redial.WithRetry(repeating))
	holders := map[*rider]*atomic.Int64{goRedis: {}, patient: {}}
	ride(t, server, func(ctx context.Context, r *rider) error {
		lock, err := redislock.Obtain(ctx, r.rdb, r.name, lockFor, &redislock.Options{
			RetryStrategy: redislock.LinearBackoff(pace),
		})
		if err != nil {
			return fmt.Errorf("obtain: %w", err)
		}
		if n := holders[r].Add(1); n != 1 {
			t.Errorf("%s: %d hold the lock", r.name, n)
		}
		for range hold {
			err = errors.Join(err, lock.Refresh(ctx, lockFor, nil))
			time.Sleep(pace)
		}
		holders[r].Add(-1)
		return errors.Join(err, lock.Release(ctx))
	}, goRedis, patient)

	unharmed(t, patient)
}
