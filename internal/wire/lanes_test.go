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
		var mu sync.Mutex
		busy, peak := 0, 0
		var peaks []int
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() {
				if !assert.NoError(t, l.Enter(t.Context())) {
					return
				}
				mu.Lock()
				busy++
				peak = max(peak, busy)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				busy--
				mu.Unlock()
				l.Leave(true)
			})
		}
		for range 4 {
			time.Sleep(time.Second)
			synctest.Wait()
			mu.Lock()
			peaks = append(peaks, peak)
			mu.Unlock()
		}
		wg.Wait()
		assert.Equal(t, []int{8, 16, 32, 32}, peaks, "the round under way when it is looked at")
	})
}

func TestLanes_GivingUp_PassesTheTurnOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lanes
		l.Reset()
		for range FirstLanes {
			require.NoError(t, l.Enter(t.Context()))
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { assert.ErrorIs(t, l.Enter(ctx), context.Canceled) })
		synctest.Wait()
		wg.Go(func() { assert.NoError(t, l.Enter(t.Context())) })
		synctest.Wait()
		cancel()
		synctest.Wait()
		l.Leave(false)
		wg.Wait()
	})
}
