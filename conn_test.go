package redial

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/internal/wire"
	"github.com/redial-go/redial/redialtest"
)

// Twenty connections are dropped by something in between; the server is well.
// Nothing is lost, nothing runs twice, and nobody waits long.
func TestIdleCheck_DroppedConnections_CostNoCommand(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		opt.PoolSize = 50
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 20)
		n.Drop()
		time.Sleep(3 * time.Second)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				began := time.Now()
				assert.NoError(t, c.Incr(t.Context(), "n").Err())
				assert.LessOrEqual(t, time.Since(began), 250*time.Millisecond)
			})
		}
		wg.Wait()
		assert.Equal(t, "50", c.Get(t.Context(), "n").Val())
		assert.Zero(t, c.Stats().Outages)
		assert.NotZero(t, c.Stats().IdleDropped)
	})
}

// fill makes the pool hold k connections.
func fill(t *testing.T, c *Client, k int) {
	t.Helper()
	var held []*redis.Conn
	for range k {
		cn := c.Client.Conn()
		require.NoError(t, cn.Ping(t.Context()).Err())
		held = append(held, cn)
	}
	for _, cn := range held {
		require.NoError(t, cn.Close())
	}
}

// The same while requests are under way, where nobody can be asked whether the server
// has got them: they keep their own time, though it answers on a new connection.
func TestDroppedConnections_InFlight_KeepTheirTime(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 20)
		waiting := make(chan error, 1)
		go func() { waiting <- c.BLPop(t.Context(), 0, "queue").Err() }()
		time.Sleep(100 * time.Millisecond)
		n.Drop()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				began := time.Now()
				if i%2 == 0 {
					assert.ErrorIs(t, c.Incr(t.Context(), "n").Err(), ErrOutcomeUnknown)
				} else {
					assert.ErrorIs(t, c.Get(t.Context(), "nothing").Err(), redis.Nil)
				}
				assert.GreaterOrEqual(t, time.Since(began), defaultReadTimeout)
				assert.LessOrEqual(t, time.Since(began), defaultReadTimeout+time.Second)
			})
		}
		wg.Wait()
		assert.Zero(t, c.Stats().Outages)
		assert.Zero(t, c.Stats().SilentCut)
		assert.Empty(t, waiting)
	})
}

func TestIdleCheck_Off(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt, WithIdleCheck(0))
		defer c.Close()
		ready(t, c)
		fill(t, c, 3)
		time.Sleep(time.Minute)
		require.NoError(t, c.Incr(t.Context(), "n").Err())
		assert.Zero(t, c.Stats().IdleChecks)
	})
}

// A connection in use is not idle: no PING is sent on it.
func TestIdleCheck_BusyConnection_CostsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		for range 100 {
			require.NoError(t, c.Incr(t.Context(), "n").Err())
			time.Sleep(100 * time.Millisecond)
		}
		assert.Zero(t, c.Stats().IdleChecks)
		time.Sleep(5 * time.Second)
		require.NoError(t, c.Incr(t.Context(), "n").Err())
		assert.LessOrEqual(t, c.Stats().IdleChecks, uint64(1), "the heartbeat has asked on it")
	})
}

// What is dead is gone before a caller meets it, and what is alive stays warm.
func TestSweep_FindsDeadConnections(t *testing.T) {
	platform.NeedPoolsThatLook(t) // or a Conn may get a dead one
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 5)
		time.Sleep(5 * time.Second)
		require.Equal(t, 5, c.Stats().Connections)
		n.Drop()
		time.Sleep(20 * time.Second)
		stats := c.Stats()
		assert.EqualValues(t, 5, stats.IdleDropped)
		assert.Zero(t, stats.Outages)
		dropped := stats.IdleDropped
		fill(t, c, 5)
		time.Sleep(time.Minute)
		stats = c.Stats()
		assert.Equal(t, dropped, stats.IdleDropped)
		assert.GreaterOrEqual(t, stats.IdleChecks, uint64(5+5*3), "each about every 15s")
	})
}

// The pool takes a connection while the sweep waits for its PONG: the caller waits
// for the sweep's deadline, which nobody takes away.
func TestSweep_MeetsThePool(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	c := NewClient(&redis.Options{Addr: f.Addr(), PoolSize: 1, Protocol: 2})
	defer c.Close()
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	var cn *wire.Conn
	linkOf(c).Each(func(x *wire.Conn) { cn = x })
	asked := make(chan struct{}, 1)
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "ping" {
			nudge(asked)
			return redialtest.Drop
		}
		return redialtest.Handle
	})
	linkOf(c).clock.Advance()
	swept := make(chan struct{})
	go func() { cn.Sweep(0); close(swept) }()
	<-asked
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	began := time.Now()
	_ = c.Get(ctx, "k").Err()
	<-swept
	assert.Less(t, time.Since(began), 4*time.Second)
}

// A connection that a caller holds is not touched: inside MULTI, a PING would
// become part of the transaction.
func TestSweep_LeavesHeldConnectionsAlone(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		open := c.Conn()
		defer open.Close()
		require.NoError(t, open.Do(t.Context(), "MULTI").Err())
		busy := c.Conn()
		defer busy.Close()
		require.NoError(t, busy.Incr(t.Context(), "n").Err())
		require.NoError(t, busy.Incr(t.Context(), "n").Err())
		time.Sleep(time.Minute)
		assert.Zero(t, c.Stats().IdleChecks)
		require.NoError(t, open.Do(t.Context(), "INCR", "n").Err())
		got, err := open.Do(t.Context(), "EXEC").Slice()
		require.NoError(t, err)
		assert.Equal(t, []any{int64(3)}, got)
	})
}

// The pool's own breaker counts failed dials and then answers with a stale error;
// it must never get there.
func TestStandin_KeepsThePoolsBreakerOpenForBusiness(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		opt.PoolSize = 1
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		for range 5 {
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			_ = c.Client.WithTimeout(time.Second).Get(t.Context(), "k").Err() // no hook holds it back
			n.Start()
			began := time.Now()
			require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
			assert.Less(t, time.Since(began), 100*time.Millisecond)
		}
	})
}
