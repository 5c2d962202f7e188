package e2e

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// newTestRing returns a ring of three servers behind proxies.
func newTestRing(t *testing.T, opts ...redial.Option) (*redial.Ring, []*redialtest.Proxy) {
	t.Helper()
	opt := &redis.RingOptions{Addrs: map[string]string{}}
	var proxies []*redialtest.Proxy
	for i := range 3 {
		p := redialtest.NewProxy(t, redialtest.StartServer(t).Addr())
		proxies = append(proxies, p)
		opt.Addrs[fmt.Sprint("shard", i)] = p.Addr()
	}
	c := redial.NewRing(opt, opts...)
	t.Cleanup(func() { _ = c.Close() })
	return c, proxies
}

// keyOn returns a key that belongs to a shard.
func keyOn(t *testing.T, c *redial.Ring, p *redialtest.Proxy) string {
	t.Helper()
	for i := 0; ; i++ {
		key := fmt.Sprint("key:", i)
		shard, err := c.GetShardClientForKey(key)
		require.NoError(t, err)
		if shard.Options().Addr == p.Addr() {
			return key
		}
	}
}

// A shard that swallows everything is noticed, loses its keys to the others, and gets
// them back.
func TestRing_ShardIsBlackHoled(t *testing.T) {
	t.Parallel()
	c, proxies := newTestRing(t)
	ctx := t.Context()
	key := keyOn(t, c, proxies[0])
	other := keyOn(t, c, proxies[1])
	require.NoError(t, c.Set(ctx, key, 1, 0).Err())
	require.NoError(t, c.Set(ctx, other, 1, 0).Err())
	proxies[0].Hang()
	began := time.Now()
	for time.Since(began) < 3500*time.Millisecond { // what is sent to the shard before keeps its own time
		sent := time.Now()
		require.NoError(t, c.Get(ctx, other).Err())
		assert.Less(t, time.Since(sent), 500*time.Millisecond, "a command for another shard is held up")
		if c.Len() < 3 {
			break
		}
	}
	require.NoError(t, c.Set(ctx, key, 2, 0).Err())
	took := time.Since(began)
	t.Logf("the shard was taken out after %v", took)
	assert.Less(t, took, 3500*time.Millisecond)
	assert.Equal(t, redial.StateConnected, c.State())
	proxies[0].Restore()
	require.Eventually(t, func() bool { return c.Len() == 3 }, 3*time.Second, time.Millisecond)
	assert.Equal(t, "1", c.Get(ctx, key).Val(), "as it was on that shard")
}

// While every shard is down nothing panics, and what was asked for is done later.
func TestRing_AllShardsAreDown(t *testing.T) {
	t.Parallel()
	c, proxies := newTestRing(t)
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "key", 1, 0).Err())
	for _, p := range proxies {
		p.Refuse()
	}
	require.Eventually(t, func() bool { return c.Len() == 0 && c.State() == redial.StateReconnecting }, 10*time.Second, time.Millisecond)
	sub := c.Subscribe(ctx, "news")
	defer sub.Close()
	psub := c.PSubscribe(ctx, "news*")
	defer psub.Close()
	done := make(chan error, 2)
	go func() { done <- c.Set(ctx, "key", 2, 0).Err() }()
	go func() { done <- c.Publish(ctx, "nobody", "hello").Err() }()
	for _, p := range proxies {
		p.Restore()
	}
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	await(t, func() error { return c.Publish(ctx, "news", "hello").Err() }, received(sub), 5*time.Second)
	require.NoError(t, c.Close())
	assert.NotPanics(t, func() { _ = c.Subscribe(ctx, "news").Close() }, "on a closed ring")
}

// A shard to which the first connection takes long is not down: what its keys are asked
// for runs there and nowhere else, as with go-redis.
func TestRing_ShardIsSlowToConnectTo(t *testing.T) {
	t.Parallel()
	for _, supervised := range []bool{false, true} {
		t.Run(fmt.Sprint("supervised ", supervised), func(t *testing.T) {
			t.Parallel()
			quick, slow := redialtest.NewFakeServer(t), redialtest.NewFakeServer(t)
			opt := &redis.RingOptions{
				Addrs: map[string]string{"quick": quick.Addr(), "slow": slow.Addr()}, HeartbeatFrequency: 20 * time.Millisecond,
				Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
					if addr == slow.Addr() {
						select {
						case <-time.After(800 * time.Millisecond): // forty looks
						case <-ctx.Done():
							return nil, ctx.Err()
						}
					}
					return new(net.Dialer).DialContext(ctx, network, addr)
				},
			}
			var ring *redis.Ring
			if supervised {
				ring = redis.NewRing(opt)
				s, err := redial.Supervise(ring)
				require.NoError(t, err)
				t.Cleanup(func() { _ = s.Close() })
				t.Cleanup(func() { _ = ring.Close() })
			} else {
				c := redial.NewRing(opt)
				t.Cleanup(func() { _ = c.Close() })
				ring = c.Ring
			}
			const keys = 8
			calls := make(chan error, keys)
			for i := range keys {
				go func() { calls <- ring.Incr(t.Context(), fmt.Sprint("key", i)).Err() }()
			}
			for range keys {
				require.NoError(t, <-calls)
			}
			byShard := map[string]int{}
			for i := range keys {
				shard, err := ring.GetShardClientForKey(fmt.Sprint("key", i))
				require.NoError(t, err)
				byShard[shard.Options().Addr]++
			}
			require.Equal(t, 2, ring.Len())
			require.NotZero(t, byShard[slow.Addr()], "no key is on the slow shard")
			assert.Equal(t, byShard[slow.Addr()], slow.Executed("incr"), "on the slow shard")
			assert.Equal(t, byShard[quick.Addr()], quick.Executed("incr"), "on the quick shard")
		})
	}
}

// The PINGs by which a supervised ring finds out which shards are up are nobody's calls.
func TestRing_ItsHeartbeatsAreNotCounted(t *testing.T) {
	t.Parallel()
	p := redialtest.NewProxy(t, redialtest.StartServer(t).Addr())
	opt := &redis.RingOptions{
		Addrs:              map[string]string{"down": p.Addr(), "up": redialtest.StartServer(t).Addr()},
		HeartbeatFrequency: 20 * time.Millisecond,
	}
	ring := redis.NewRing(opt)
	defer ring.Close()
	told := make(told, 100)
	s, err := redial.Supervise(ring, redial.WithObserver(told))
	require.NoError(t, err)
	defer s.Close()
	require.NoError(t, s.WaitReady(t.Context()))
	var shard *redis.Client
	for _, c := range ring.GetShardClients() {
		if c.Options().Addr == p.Addr() {
			shard = c
		}
	}
	require.NoError(t, shard.Ping(t.Context()).Err())
	p.Match("ping")
	p.CutAfterRequest(1_000_000)
	require.Eventually(t, func() bool { return ring.Len() == 1 }, 10*time.Second, time.Millisecond, "three replies to PING are lost")
	p.Refuse()
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(s.Stats().Nodes, func(n redial.NodeStats) bool { return n.State == redial.StateReconnecting })
	}, 10*time.Second, time.Millisecond)
	assert.Empty(t, told)
	stats := s.Stats()
	assert.Zero(t, stats.Unknown)
	assert.Zero(t, stats.Refused)
	assert.Zero(t, stats.Retries)

	err = shard.Ping(t.Context()).Err()
	assert.ErrorIs(t, err, redial.ErrUnavailable)
	assert.Equal(t, err, error(<-told), "a call of the caller is one")
	assert.EqualValues(t, 1, s.Stats().Refused)
}

// told is an observer that passes on what fails.
type told chan *redial.Error

func (t told) ObserveFailure(_ context.Context, e *redial.Error) {
	select {
	case t <- e:
	default:
	}
}

// A ring whose shards will not tell a topology is none the worse for having been asked.
func TestRing_AskedForATopology_WaitsAsBefore(t *testing.T) {
	t.Parallel()
	p := redialtest.NewProxy(t, redialtest.StartServer(t).Addr())
	ring := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": p.Addr()}, HeartbeatFrequency: 20 * time.Millisecond})
	defer ring.Close()
	require.NoError(t, ring.WaitReady(t.Context()))
	require.ErrorContains(t, ring.Do(t.Context(), "cluster", "slots").Err(), "cluster support disabled")
	p.Refuse()
	require.Eventually(t, func() bool { return ring.Len() == 0 }, 10*time.Second, time.Millisecond)
	assert.ErrorIs(t, ring.Get(redial.WaitFor(t.Context(), 500*time.Millisecond), "k").Err(), redial.ErrUnavailable)
}

// What cannot be read behind SELECT is not asked for again in another database.
func TestRing_UnreadableBehindSelect(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	ring := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.Addr()}})
	defer ring.Close()
	require.NoError(t, ring.Set(t.Context(), "k", "v", 0).Err())
	get := redis.NewSliceCmd(t.Context(), "get", "k")
	for _, behind := range []bool{false, true} {
		s.Do("CONFIG", "RESETSTAT")
		_, err := ring.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			if behind {
				p.Do(t.Context(), "select", 0)
			}
			return p.Process(t.Context(), get)
		})
		require.Error(t, err)
		assert.Error(t, get.Err())
		times := "calls=2,"
		if behind {
			times = "calls=1,"
		}
		assert.Contains(t, s.Do("INFO", "commandstats"), "cmdstat_get:"+times)
	}
}

// What may have run before it waits in vain is counted, and told to observers, as what its
// caller is told: its outcome is unknown.
func TestRing_MayHaveRunBeforeTheOutage_IsCountedAsUnknown(t *testing.T) {
	type batch = func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error)
	for name, exec := range map[string]func(*redial.Ring) batch{
		"pipeline":    func(c *redial.Ring) batch { return c.Pipelined },
		"transaction": func(c *redial.Ring) batch { return c.TxPipelined },
	} {
		t.Run(name, func(t *testing.T) {
			server := redialtest.NewFakeServer(t)
			failed := make(told, 10)
			c := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": server.Addr()}, Protocol: 2, DisableIdentity: true},
				redial.WithGrace(300*time.Millisecond), redial.WithObserver(failed))
			t.Cleanup(func() { _ = c.Close() })
			require.NoError(t, c.WaitReady(t.Context()))
			sent := make(chan struct{}, 10)
			server.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
				if args[0] != "get" && args[0] != "exec" {
					return redialtest.Handle
				}
				sent <- struct{}{}
				return redialtest.Hang
			})
			go func() { <-sent; server.Kill() }()
			_, err := exec(c)(redial.Idempotent(t.Context()), func(p redis.Pipeliner) error { return p.Get(t.Context(), "k").Err() })
			require.ErrorIs(t, err, redial.ErrOutcomeUnknown)
			assert.EqualValues(t, 1, c.Stats().Unknown)
			assert.Zero(t, c.Stats().Refused)
			require.Len(t, failed, 1)
			assert.ErrorIs(t, <-failed, redial.ErrOutcomeUnknown)
		})
	}
}
