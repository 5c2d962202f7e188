package compat

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"

	"github.com/redial-go/redial"
)

// TestRedsync is [TestRedislock] for a library that gives each of its attempts to
// lock a twentieth of the expiry and then tries again.
func TestRedsync(t *testing.T) {
	server := startServer(t)
	goRedis, patient := bare(t, server), resilient(t, server, redial.WithRetry(repeating))
	holders := map[*rider]*atomic.Int64{goRedis: {}, patient: {}}
	ride(t, server, func(ctx context.Context, r *rider) error {
		mutex := redsync.New(goredis.NewPool(r.rdb)).NewMutex(r.name,
			redsync.WithExpiry(lockFor), redsync.WithTries(1000), redsync.WithRetryDelay(pace))
		if err := mutex.LockContext(ctx); err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		if n := holders[r].Add(1); n != 1 {
			t.Errorf("%s: %d hold the lock", r.name, n)
		}
		var errs []error
		for range hold {
			_, err := mutex.ExtendContext(ctx)
			errs = append(errs, err)
			time.Sleep(pace)
		}
		holders[r].Add(-1)
		_, err := mutex.UnlockContext(ctx)
		return errors.Join(append(errs, err)...)
	}, goRedis, patient)

	unharmed(t, patient)
}
