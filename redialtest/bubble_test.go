package redialtest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// go-redis keeps the timers by which callers wait for a connection for the next caller,
// of whatever client; but a timer must not leave its bubble.
func TestNewFakeServerPipe_ManyBubblesWaitForThePool(t *testing.T) {
	wait := func(t *testing.T, opt redis.Options) {
		t.Helper()
		opt.PoolSize, opt.PoolTimeout, opt.PipelinePoolSize, opt.MaxRetries = 1, 100*time.Millisecond, -1, -1
		rdb := redis.NewClient(&opt)
		defer rdb.Close()
		cn := rdb.Conn()
		defer cn.Close()
		if err := cn.Ping(context.Background()).Err(); err != nil {
			t.Fatal(err)
		}
		if err := rdb.Ping(context.Background()).Err(); !errors.Is(err, redis.ErrPoolTimeout) {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		t.Run(fmt.Sprint("bubble ", i), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := NewFakeServerPipe(t)
				began := time.Now()
				wait(t, redis.Options{Addr: f.Addr(), Dialer: f.Dial, DisableIdentity: true, Protocol: 2})
				if took := time.Since(began); took != 100*time.Millisecond {
					t.Fatalf("a timer of another bubble: %v instead of 100ms", took)
				}
			})
		})
		t.Run(fmt.Sprint("outside ", i), func(t *testing.T) {
			f := NewFakeServer(t)
			wait(t, redis.Options{Addr: f.Addr(), DisableIdentity: true, Protocol: 2})
		})
	}
}

// Outside of a bubble nothing must be dropped, and a server is cheap: tests make
// thousands.
func TestNewFakeServerPipe_OutsideOfBubbles_CollectsNoGarbage(t *testing.T) {
	forced := func(f func(t *testing.T)) uint32 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f(t)
		runtime.ReadMemStats(&after)
		return after.NumForcedGC - before.NumForcedGC
	}
	server := func(t *testing.T) { NewFakeServerPipe(t) }
	if n := forced(func(t *testing.T) { t.Run("outside", server) }); n != 0 {
		t.Errorf("%d collections outside of a bubble", n)
	}
	if n := forced(func(t *testing.T) { synctest.Test(t, server) }); n == 0 {
		t.Error("no collection in a bubble")
	}
}
