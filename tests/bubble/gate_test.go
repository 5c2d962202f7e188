package bubble

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit/memnet"
)

// down returns a client whose server has just been found dead.
func down(t *testing.T, n *memnet.Net, opt *redis.Options, opts ...redial.Option) *redial.Client {
	t.Helper()
	c := redial.NewClient(opt, opts...)
	memnet.Ready(t, c)
	n.Kill()
	require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
	return c
}

func TestGate_Grace_CountsFromTheStartOfTheOutage(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := down(t, n, opt)
		defer c.Close()
		time.Sleep(2 * time.Second)
		began := time.Now()
		err := c.Set(t.Context(), "k", "v", 0).Err()
		assert.Equal(t, 3*time.Second, time.Since(began))
		assert.ErrorIs(t, err, redial.ErrUnavailable)
		assert.True(t, redial.SafeToRetry(err))
		assert.True(t, redial.IsConnectionError(err), "the cause is inside: %v", err)

		began = time.Now()
		assert.ErrorIs(t, c.Set(t.Context(), "k", "v", 0).Err(), redial.ErrUnavailable)
		_, err = c.Pipelined(t.Context(), func(p redis.Pipeliner) error { p.Incr(t.Context(), "n"); return nil })
		assert.ErrorIs(t, err, redial.ErrUnavailable)
		_, err = c.TxPipelined(t.Context(), func(p redis.Pipeliner) error { p.Incr(t.Context(), "n"); return nil })
		assert.ErrorIs(t, err, redial.ErrUnavailable)
		err = c.Watch(t.Context(), func(tx *redis.Tx) error { return nil }, "k")
		assert.ErrorIs(t, err, redial.ErrUnavailable)
		held := c.Conn()
		assert.ErrorIs(t, held.Ping(t.Context()).Err(), redial.ErrUnavailable)
		require.NoError(t, held.Close())
		assert.Zero(t, time.Since(began), "after the grace nobody waits")
	})
}

func TestGate_ModesOfACall(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := down(t, n, opt)
		defer c.Close()
		took := func(ctx context.Context) time.Duration {
			began := time.Now()
			assert.ErrorIs(t, c.Set(ctx, "k", "v", 0).Err(), redial.ErrUnavailable)
			return time.Since(began)
		}
		assert.Zero(t, took(redial.FailFast(t.Context())))
		assert.Zero(t, took(redial.WaitFor(t.Context(), 0)))
		assert.Zero(t, took(redial.WaitFor(t.Context(), -time.Second)))
		assert.Equal(t, 200*time.Millisecond, took(redial.WaitFor(t.Context(), 200*time.Millisecond)))
		assert.Equal(t, 20*time.Second, took(redial.WaitFor(t.Context(), 20*time.Second)), "longer than the grace")
	})
}

func TestGate_ContextEndsTheWait(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := down(t, n, opt)
		defer c.Close()

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		err := c.Set(ctx, "k", "v", 0).Err()
		assert.Equal(t, time.Second, time.Since(began))
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorIs(t, err, redial.ErrUnavailable)
		var op *net.OpError
		assert.ErrorAs(t, err, &op, "the last transport error is inside: %v", err)

		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		err = c.Set(ctx, "k", "v", 0).Err()
		assert.ErrorIs(t, err, context.Canceled)
		assert.ErrorIs(t, err, redial.ErrUnavailable)

		err = c.Set(ctx, "k", "v", 0).Err() // canceled before it began
		assert.ErrorIs(t, err, context.Canceled)
		assert.Zero(t, c.Stats().Waiting)
	})
}

func TestGate_ContextOfASubscriptionHasEnded(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := redial.NewClient(opt)
		defer c.Close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		sub := c.Subscribe(ctx, "news")
		defer sub.Close()
		_, err := sub.ReceiveTimeout(ctx, time.Second)
		assert.ErrorIs(t, err, context.Canceled)
	})
}

func TestGate_MaxWaiting(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := down(t, n, opt, redial.WithMaxWaiting(3))
		defer c.Close()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { assert.NoError(t, c.Incr(t.Context(), "n").Err()) })
		}
		synctest.Wait()
		assert.Equal(t, 3, c.Stats().Waiting)
		began := time.Now()
		err := c.Incr(t.Context(), "n").Err()
		assert.ErrorIs(t, err, redial.ErrUnavailable)
		assert.ErrorContains(t, err, "3 commands are waiting already")
		assert.Zero(t, time.Since(began))
		n.Start()
		wg.Wait()
		assert.Equal(t, "3", c.Get(t.Context(), "n").Val())
	})
}

func TestGate_ZeroGrace_NobodyWaits(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := down(t, n, opt, redial.WithGrace(0))
		defer c.Close()
		began := time.Now()
		assert.ErrorIs(t, c.Ping(t.Context()).Err(), redial.ErrUnavailable)
		assert.Zero(t, time.Since(began))
	})
}

// Once the grace is over, commands fail at once; what asks again without a pause is held up
// for a moment each time, and goes on when the server is back in it.
func TestGate_GraceIsOver_LoopsDoNotSpin(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := down(t, n, opt, redial.WithGrace(time.Second))
		defer c.Close()
		require.Error(t, c.Ping(t.Context()).Err())
		began := time.Now()
		for range 1000 {
			require.ErrorIs(t, c.Ping(t.Context()).Err(), redial.ErrUnavailable)
		}
		assert.Zero(t, time.Since(began))
		asked := 0
		for began = time.Now(); time.Since(began) < 10*time.Second && asked < 100000; asked++ {
			require.ErrorIs(t, c.Ping(t.Context()).Err(), redial.ErrUnavailable)
		}
		require.Less(t, asked, 16000)
		assert.Less(t, c.Stats().Waited, uint64(5), "it is no waiting")
		began = time.Now()
		for range 20000 {
			require.ErrorIs(t, c.Ping(redial.FailFast(t.Context())).Err(), redial.ErrUnavailable)
		}
		assert.Zero(t, time.Since(began))
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		for ctx.Err() == nil {
			require.ErrorIs(t, c.Ping(ctx).Err(), redial.ErrUnavailable)
		}
		assert.Equal(t, time.Millisecond, time.Since(began))
		n.Start()
		for c.Ping(t.Context()).Err() != nil {
			require.Less(t, time.Since(began), time.Second)
		}
	})
}

func TestLink_WaitForState(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		n.Kill()
		c := redial.NewClient(opt)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c.WaitReady(ctx)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.True(t, redial.IsConnectionError(err), "%v", err)
		var wg sync.WaitGroup
		wg.Go(func() { assert.ErrorIs(t, c.WaitReady(t.Context()), redial.ErrClosed) })
		wg.Go(func() { assert.NoError(t, c.WaitForState(t.Context(), redial.StateClosed)) })
		synctest.Wait()
		require.NoError(t, c.Close())
		wg.Wait()
		assert.ErrorIs(t, c.WaitReady(t.Context()), redis.ErrClosed)
	})
}

func TestDrain_FinishesWhatIsInFlight(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := redial.NewClient(opt)
		memnet.Ready(t, c)
		require.NoError(t, c.Ping(t.Context()).Err())
		n.Freeze()
		var wg sync.WaitGroup
		wg.Go(func() { assert.NoError(t, c.Incr(t.Context(), "n").Err()) })
		synctest.Wait()
		wg.Go(func() { assert.NoError(t, c.Drain(t.Context())) })
		synctest.Wait()
		assert.ErrorIs(t, c.Incr(t.Context(), "n").Err(), redial.ErrClosed, "new commands are refused")
		time.Sleep(500 * time.Millisecond)
		n.Thaw()
		wg.Wait()
		assert.Equal(t, redial.StateClosed, c.State())
		got, err := n.Redis.Get("n")
		require.NoError(t, err)
		assert.Equal(t, "1", got)
	})
}

func TestDrain_ContextCutsItShort(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := redial.NewClient(opt)
		memnet.Ready(t, c)
		var wg sync.WaitGroup
		wg.Go(func() { assert.Error(t, c.BLPop(t.Context(), time.Minute, "queue").Err()) })
		time.Sleep(100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		assert.ErrorIs(t, c.Drain(ctx), context.DeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(began))
		wg.Wait()
	})
}

func TestDrain_WhileDown_RefusesWaiters(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := down(t, n, opt)
		var wg sync.WaitGroup
		wg.Go(func() { assert.ErrorIs(t, c.Incr(t.Context(), "n").Err(), redial.ErrClosed) })
		synctest.Wait()
		began := time.Now()
		assert.NoError(t, c.Drain(t.Context()))
		wg.Wait()
		assert.Zero(t, time.Since(began))
	})
}
