package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/redialtest"
)

// supervised is a client that was built without redial.
type supervised struct {
	redis.UniversalClient
	*redial.Supervisor
}

func (s supervised) Close() error {
	err := s.UniversalClient.Close()
	return errors.Join(err, s.Supervisor.Close())
}

func (s supervised) Drain(context.Context) error { return s.Close() }

// deployment is what a client of some kind talks to.
type deployment struct {
	servers []*redialtest.Server
	client  func(opts ...redial.Option) redial.UniversalClient
	back    func() // waits until servers that were started again serve
}

// topologies are all kinds of clients.
func topologies() map[string]func(t *testing.T) deployment {
	single := func(t *testing.T) []*redialtest.Server { return []*redialtest.Server{redialtest.StartServer(t)} }
	three := func(t *testing.T) ([]*redialtest.Server, *redis.RingOptions) {
		var servers []*redialtest.Server
		opt := &redis.RingOptions{Addrs: map[string]string{}}
		for i := range 3 {
			s := redialtest.StartServer(t)
			servers = append(servers, s)
			opt.Addrs[fmt.Sprint("shard", i)] = s.Addr()
		}
		return servers, opt
	}
	supervise := func(t *testing.T, rdb redis.UniversalClient, opts []redial.Option) redial.UniversalClient {
		s, err := redial.Supervise(rdb, opts...)
		require.NoError(t, err)
		return supervised{rdb, s}
	}
	none := func() {}
	return map[string]func(t *testing.T) deployment{
		"Client": func(t *testing.T) deployment {
			s := single(t)
			return deployment{s, func(opts ...redial.Option) redial.UniversalClient {
				return redial.NewClient(&redis.Options{Addr: s[0].Addr()}, opts...)
			}, none}
		},
		"FailoverClient": func(t *testing.T) deployment {
			f := redialtest.StartFailover(t, 1, 3)
			return deployment{f.Servers, func(opts ...redial.Option) redial.UniversalClient {
				return redial.NewFailoverClient(&redis.FailoverOptions{MasterName: f.Name, SentinelAddrs: f.SentinelAddrs()}, opts...)
			}, none}
		},
		"FailoverClusterClient": func(t *testing.T) deployment {
			f := redialtest.StartFailover(t, 1, 3)
			return deployment{f.Servers, func(opts ...redial.Option) redial.UniversalClient {
				return redial.NewFailoverClusterClient(&redis.FailoverOptions{
					MasterName: f.Name, SentinelAddrs: f.SentinelAddrs(),
				}, opts...)
			}, none}
		},
		"ClusterClient": func(t *testing.T) deployment {
			c := redialtest.StartCluster(t, 3, 0)
			return deployment{c.Nodes, func(opts ...redial.Option) redial.UniversalClient {
				return redial.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs()}, opts...)
			}, c.Settle}
		},
		"UniversalClient": func(t *testing.T) deployment {
			c := redialtest.StartCluster(t, 3, 0)
			return deployment{c.Nodes, func(opts ...redial.Option) redial.UniversalClient {
				return redial.NewUniversalClient(&redis.UniversalOptions{Addrs: c.Addrs()}, opts...)
			}, c.Settle}
		},
		"Ring": func(t *testing.T) deployment {
			s, opt := three(t)
			return deployment{s, func(opts ...redial.Option) redial.UniversalClient { return redial.NewRing(opt, opts...) }, none}
		},
		"supervised Client": func(t *testing.T) deployment {
			s := single(t)
			return deployment{s, func(opts ...redial.Option) redial.UniversalClient {
				return supervise(t, redis.NewClient(&redis.Options{Addr: s[0].Addr(), ContextTimeoutEnabled: true}), opts)
			}, none}
		},
		"supervised ClusterClient": func(t *testing.T) deployment {
			c := redialtest.StartCluster(t, 3, 0)
			return deployment{c.Nodes, func(opts ...redial.Option) redial.UniversalClient {
				return supervise(t, redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs(), ContextTimeoutEnabled: true}), opts)
			}, c.Settle}
		},
		"supervised Ring": func(t *testing.T) deployment {
			s, opt := three(t)
			opt.ContextTimeoutEnabled = true
			return deployment{s, func(opts ...redial.Option) redial.UniversalClient {
				return supervise(t, redis.NewRing(opt), opts)
			}, none}
		},
	}
}

// behaviors is what every kind of client must do.
var behaviors = []struct {
	name string
	test func(t *testing.T, d deployment)
}{
	{"replies pass through", testReplies},
	{"connections are killed under load", testConnectionsKilled},
	{"everything is gone for longer than the grace", testGone},
	{"subscriptions survive", testSubscriptionSurvives},
	{"closing is prompt", testClose},
	{"closing the go-redis client closes all", testCloseBare},
}

// Every behavior, on every topology.
func TestTopologies(t *testing.T) {
	t.Parallel()
	for name, start := range topologies() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := start(t)
			for _, b := range behaviors {
				t.Run(b.name, func(t *testing.T) { b.test(t, d) })
			}
		})
	}
}

// open returns a client that is Connected and closed with the test.
func (d deployment) open(t *testing.T, opts ...redial.Option) redial.UniversalClient {
	t.Helper()
	c := d.client(opts...)
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, c.WaitReady(ctx))
	for i := range 12 { // so that every node was reached
		require.NoError(t, c.Set(ctx, fmt.Sprint("open:", i), i, 0).Err())
	}
	return c
}

func testReplies(t *testing.T, d deployment) {
	c := d.open(t)
	ctx := t.Context()
	assert.True(t, c.Get(ctx, "no such key").Err() == redis.Nil)
	require.NoError(t, c.Del(ctx, "list").Err())
	require.NoError(t, c.LPush(ctx, "list", 1).Err())
	assert.ErrorContains(t, c.Incr(ctx, "list").Err(), "WRONGTYPE")
	cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Get(ctx, "no such key")
		p.Set(ctx, "one", 1, 0)
		p.Incr(ctx, "list")
		p.Get(ctx, "one")
		return nil
	})
	if _, ring := bareOf(c).(*redis.Ring); ring && err != redis.Nil { // go-redis returns the error of any shard
		assert.Equal(t, cmds[2].Err(), err)
	} else {
		assert.Equal(t, redis.Nil, err)
	}
	assert.Equal(t, "1", cmds[3].(*redis.StringCmd).Val())
	assert.ErrorContains(t, cmds[2].Err(), "WRONGTYPE")
	_, err = c.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, "{tx}a", 1, 0)
		p.Set(ctx, "{tx}b", 1, 0)
		return nil
	})
	require.NoError(t, err)
	require.NoError(t, c.Watch(ctx, func(tx *redis.Tx) error { return tx.Get(ctx, "{tx}a").Err() }, "{tx}a"))
}

// Whatever breaks, no write runs twice, and those that did not run are sent again.
func testConnectionsKilled(t *testing.T, d deployment) {
	c := d.open(t)
	const keys = 9
	var acknowledged, unknown atomic.Int64
	quit := make(chan struct{})
	var wg sync.WaitGroup
	count := func(err error, n int64) {
		switch {
		case err == nil:
			acknowledged.Add(n)
		case errors.Is(err, redial.ErrOutcomeUnknown):
			unknown.Add(n)
		default:
			t.Errorf("an error without an outcome: %v", err)
		}
	}
	for i := range keys {
		key := fmt.Sprint("killed:", i)
		require.NoError(t, c.Del(t.Context(), key).Err())
		wg.Go(func() {
			for ctx := context.Background(); ; {
				select {
				case <-quit:
					return
				default:
				}
				switch i % 3 {
				case 0:
					count(c.Incr(ctx, key).Err(), 1)
				case 1:
					cmds, _ := c.Pipelined(ctx, func(p redis.Pipeliner) error {
						p.Incr(ctx, key)
						p.Incr(ctx, key)
						return nil
					})
					for _, cmd := range cmds {
						count(cmd.Err(), 1)
					}
				case 2:
					_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
						p.Incr(ctx, key)
						p.Incr(ctx, key)
						return nil
					})
					count(err, 2)
				}
			}
		})
	}
	for range 20 {
		for _, s := range d.servers {
			s.Do("CLIENT", "KILL", "TYPE", "normal")
		}
		time.Sleep(20 * time.Millisecond)
	}
	close(quit)
	wg.Wait()
	ran := int64(0)
	for i := range keys {
		n, err := c.Get(t.Context(), fmt.Sprint("killed:", i)).Int64()
		require.NoError(t, err)
		ran += n
	}
	t.Logf("%d acknowledged, %d unknown, %d ran", acknowledged.Load(), unknown.Load(), ran)
	assert.GreaterOrEqual(t, ran, acknowledged.Load(), "an acknowledged INCR is missing")
	assert.LessOrEqual(t, ran, acknowledged.Load()+unknown.Load(), "an INCR ran twice")
}

func testGone(t *testing.T, d deployment) {
	var events atomic.Int64
	c := d.open(t, redial.WithGrace(time.Second), redial.WithOnStateChange(func(redial.Event) { events.Add(1) }))
	ctx := t.Context()
	for _, s := range d.servers {
		s.Kill()
	}
	began := time.Now()
	err := c.Set(ctx, "gone", 1, 0).Err()
	took := time.Since(began)
	assert.ErrorIs(t, err, redial.ErrUnavailable)
	assert.Less(t, took, 2500*time.Millisecond, "it waits for the grace, and not much longer")
	require.NoError(t, waitState(c, redial.StateReconnecting, 3*time.Second))

	time.Sleep(1100 * time.Millisecond) // of the grace; not every node was missed at once
	assert.Less(t, platform.AtBest(50*time.Millisecond, func() {
		assert.ErrorIs(t, c.Set(ctx, "gone", 1, 0).Err(), redial.ErrUnavailable)
	}), 50*time.Millisecond, "after the grace it fails at once")
	assert.ErrorIs(t, c.Set(redial.FailFast(ctx), "gone", 1, 0).Err(), redial.ErrUnavailable)
	_, err = c.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Incr(ctx, "gone:1")
		p.Incr(ctx, "gone:2")
		return nil
	})
	assert.ErrorIs(t, err, redial.ErrUnavailable)

	assert.Less(t, platform.AtBest(200*time.Millisecond, func() {
		short, cancel := context.WithTimeout(redial.WaitFor(ctx, time.Minute), 100*time.Millisecond)
		defer cancel()
		err := c.Set(short, "gone", 1, 0).Err()
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorIs(t, err, redial.ErrUnavailable)
	}), 200*time.Millisecond)

	patient := make(chan error, 1)
	go func() { patient <- c.Set(redial.WaitFor(ctx, time.Minute), "gone", 2, 0).Err() }()
	for _, s := range d.servers {
		s.Start()
	}
	d.back()
	back := time.Now()
	require.NoError(t, <-patient)
	t.Logf("the command that waited was done %v after the servers were back", time.Since(back))
	require.NoError(t, waitState(c, redial.StateConnected, 5*time.Second))
	require.Eventually(t, func() bool { return c.Set(ctx, "gone", 3, 0).Err() == nil }, 5*time.Second, time.Millisecond)
	assert.Positive(t, c.Stats().Outages)
	assert.Positive(t, events.Load())
}

func waitState(c redial.UniversalClient, want redial.State, within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return c.WaitForState(ctx, want)
}

func testSubscriptionSurvives(t *testing.T, d deployment) {
	c := d.open(t)
	sub := c.Subscribe(t.Context(), "news")
	defer sub.Close()
	ch := received(sub)
	publish := func() error { return c.Publish(t.Context(), "news", "hello").Err() }
	await(t, publish, ch, 5*time.Second)
	for _, s := range d.servers {
		s.Kill()
	}
	for _, s := range d.servers {
		s.Start()
	}
	d.back()
	back := time.Now()
	forget(ch)
	t.Logf("first message %v after the servers were back", await(t, publish, ch, 10*time.Second).Sub(back))
}

// What a client leaves behind shows at the end of the test binary.
func testClose(t *testing.T, d deployment) {
	for _, gone := range []bool{false, true} {
		t.Run(fmt.Sprint("servers gone: ", gone), func(t *testing.T) {
			t.Cleanup(func() {
				if gone {
					for _, s := range d.servers {
						s.Start()
					}
					d.back()
				}
			})
			c := d.open(t)
			if gone {
				for _, s := range d.servers {
					s.Kill()
				}
			}
			began := time.Now()
			require.NoError(t, c.Close())
			assert.Less(t, time.Since(began), 500*time.Millisecond)
			assert.Equal(t, redial.StateClosed, c.State())
			assert.ErrorIs(t, c.Get(t.Context(), "key").Err(), redis.ErrClosed)
		})
	}
}

// bareOf returns the go-redis client that a program gets which wants one.
func bareOf(c redial.UniversalClient) redis.UniversalClient {
	switch c := c.(type) {
	case *redial.Client:
		return c.Client
	case *redial.ClusterClient:
		return c.ClusterClient
	case *redial.Ring:
		return c.Ring
	case supervised:
		return c.UniversalClient
	}
	panic("what is this?")
}

// The same for the go-redis client inside: it takes supervision with it.
func testCloseBare(t *testing.T, d deployment) {
	c := d.open(t)
	require.NoError(t, c.Set(t.Context(), "key", 1, 0).Err())
	sub := c.Subscribe(t.Context(), "news")
	defer sub.Close()
	_, err := sub.Receive(t.Context())
	require.NoError(t, err)
	began := time.Now()
	require.NoError(t, bareOf(c).Close())
	require.NoError(t, waitState(c, redial.StateClosed, 5*time.Second))
	t.Logf("supervision was over %v after Close was called", time.Since(began))
	assert.Less(t, time.Since(began), 500*time.Millisecond)
	assert.ErrorIs(t, c.Get(t.Context(), "key").Err(), redis.ErrClosed)
	assert.NotContains(t, []redial.State{redial.StateConnected, redial.StateReconnecting}, c.State())
}

// No goroutine and no connection is left, of sentinels neither.
func TestClose_OfTheEmbeddedClient_LeavesNothing(t *testing.T) {
	testkit.Alone(t, testEmbeddedLeavesNothing)
}

func testEmbeddedLeavesNothing(t *testing.T) {
	f := redialtest.StartFailover(t, 1, 3)
	for name, build := range map[string]func(...redial.Option) redial.UniversalClient{
		"FailoverClient": func(opts ...redial.Option) redial.UniversalClient {
			return redial.NewFailoverClient(&redis.FailoverOptions{MasterName: f.Name, SentinelAddrs: f.SentinelAddrs()}, opts...)
		},
		"FailoverClusterClient": func(opts ...redial.Option) redial.UniversalClient {
			return redial.NewFailoverClusterClient(&redis.FailoverOptions{
				MasterName: f.Name, SentinelAddrs: f.SentinelAddrs(), RouteRandomly: true,
			}, opts...)
		},
		"Client": func(opts ...redial.Option) redial.UniversalClient {
			return redial.NewClient(&redis.Options{Addr: f.Servers[0].Addr()}, opts...)
		},
		"client of an address that is not there": func(opts ...redial.Option) redial.UniversalClient {
			return redial.NewClient(&redis.Options{Addr: "127.0.0.1:1"}, opts...)
		},
	} {
		for _, used := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", used: ", used), func(t *testing.T) {
				redialtest.Leaks(t)
				for range 3 {
					c := build()
					if used {
						_ = c.Get(redial.WaitFor(t.Context(), 300*time.Millisecond), "key").Err()
					}
					require.NoError(t, bareOf(c).Close())
				}
			})
		}
	}
}
