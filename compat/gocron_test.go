package compat

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	gocronlock "github.com/go-co-op/gocron-redis-lock/v2"
	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
)

// TestGocron: of the schedulers of two programs one at a time runs the job, and every run
// that was asked for gets the lock.
func TestGocron(t *testing.T) {
	server := startServer(t)
	goRedis, patient := bare(t, server), resilient(t, server, redial.WithRetry(repeating))
	type programs struct {
		of      [2]gocron.Scheduler
		next    atomic.Int64
		holders atomic.Int64
	}
	all := map[*rider]*programs{goRedis: {}, patient: {}}
	for r, p := range all {
		for i := range p.of {
			locker, err := gocronlock.NewRedisLockerAlways(r.rdb,
				gocronlock.WithExpiry(lockFor), gocronlock.WithTries(1000), gocronlock.WithRetryDelay(pace))
			require.NoError(t, err)
			p.of[i], err = gocron.NewScheduler(gocron.WithDistributedLocker(locker), gocron.WithStopTimeout(patience))
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, p.of[i].Shutdown()) })
			p.of[i].Start()
		}
	}
	ride(t, server, func(ctx context.Context, r *rider) error {
		p, over := all[r], make(chan error, 1)
		_, err := p.of[p.next.Add(1)%2].NewJob(
			gocron.OneTimeJob(gocron.OneTimeJobStartImmediately()),
			gocron.NewTask(func() {
				if n := p.holders.Add(1); n != 1 {
					t.Errorf("%s: %d run the job", r.name, n)
				}
				time.Sleep(hold * pace)
				p.holders.Add(-1)
				over <- nil
			}),
			gocron.WithName(r.name), // what is locked
			gocron.WithEventListeners(gocron.AfterLockError(func(_ uuid.UUID, _ string, err error) { over <- err })),
		)
		if err != nil {
			return err
		}
		select {
		case err := <-over:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}, goRedis, patient)

	unharmed(t, patient)
}
