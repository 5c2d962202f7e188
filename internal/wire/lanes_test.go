package wire

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLanes_GrowWithSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lanes
		l.Reset()
		const dial = LaneTime / 2
		var mu sync.Mutex
		busy, peak := 0, 0
		var peaks []int
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() {
				leave, err := l.Enter(t.Context())
				if !assert.NoError(t, err) {
					return
				}
				mu.Lock()
				busy++
				peak = max(peak, busy)
				mu.Unlock()
				time.Sleep(dial)
				mu.Lock()
				busy--
				mu.Unlock()
				leave(true)
			})
		}
		for range 4 {
			time.Sleep(dial)
			synctest.Wait()
			mu.Lock()
			peaks = append(peaks, peak)
			mu.Unlock()
		}
		wg.Wait()
		assert.Equal(t, []int{8, 16, 32, 32}, peaks, "the round under way when it is looked at")
	})
}

// Where a dial takes long all of them are under way soon, and nobody waits for another's.
func TestLanes_SlowDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lanes
		l.Reset()
		began := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				leave, err := l.Enter(t.Context())
				if !assert.NoError(t, err) {
					return
				}
				time.Sleep(10 * time.Second)
				leave(true)
			})
		}
		wg.Wait()
		assert.LessOrEqual(t, time.Since(began), 10*time.Second+5*LaneTime)
	})
}

func TestLanes_GivingUp_PassesTheTurnOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lanes
		l.Reset()
		var leave func(bool)
		for range FirstLanes {
			var err error
			leave, err = l.Enter(t.Context())
			require.NoError(t, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		enter := func(ctx context.Context) error {
			_, err := l.Enter(ctx)
			return err
		}
		wg.Go(func() { assert.ErrorIs(t, enter(ctx), context.Canceled) })
		synctest.Wait()
		wg.Go(func() { assert.NoError(t, enter(t.Context())) })
		synctest.Wait()
		cancel()
		synctest.Wait()
		leave(false)
		wg.Wait()
	})
}
