package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
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

// asked is every way to ask something of a client, and the errors that come of it.
func asked(ctx context.Context, rdb redis.UniversalClient) map[string]error {
	pipe := func(cmds []redis.Cmder, err error) error {
		for _, cmd := range cmds {
			if cmd.Err() != err {
				return errors.Join(errors.New("the commands of the batch have other errors"), err, cmd.Err())
			}
		}
		return err
	}
	two := func(p redis.Pipeliner) error { p.Get(ctx, "{k}a"); p.Incr(ctx, "{k}b"); return nil }
	errs := map[string]error{
		"get":         rdb.Get(ctx, "k").Err(),
		"incr":        rdb.Incr(ctx, "k").Err(),
		"ping":        rdb.Ping(ctx).Err(),
		"do":          rdb.Do(ctx, "get", "k").Err(),
		"fail fast":   rdb.Get(redial.FailFast(ctx), "k").Err(),
		"publish":     rdb.Publish(ctx, "c", "m").Err(),
		"pipeline":    pipe(rdb.Pipelined(ctx, two)),
		"transaction": pipe(rdb.TxPipelined(ctx, two)),
		"watch":       rdb.Watch(ctx, func(*redis.Tx) error { return nil }, "k"),
	}
	never := func(context.Context, *redis.Client) error { return errors.New("there is a node") }
	switch rdb := rdb.(type) {
	case interface {
		ForEachMaster(context.Context, func(context.Context, *redis.Client) error) error
		ForEachShard(context.Context, func(context.Context, *redis.Client) error) error
		MasterForKey(context.Context, string) (*redis.Client, error)
	}:
		errs["for each master"] = rdb.ForEachMaster(ctx, never)
		errs["for each shard"] = rdb.ForEachShard(ctx, never)
		errs["dbsize"] = rdb.(redis.Cmdable).DBSize(ctx).Err()
		errs["master for key"] = second(rdb.MasterForKey(ctx, "k"))
	case interface {
		ForEachShard(context.Context, func(context.Context, *redis.Client) error) error
	}:
		errs["for each shard"] = rdb.ForEachShard(ctx, never)
		return errs // where go-redis panics when asked to subscribe
	}
	sub := rdb.Subscribe(ctx, "c")
	_, errs["subscribe"] = sub.Receive(ctx)
	_ = sub.Close()
	return errs
}

// A mistake that waiting cannot cure is told at once, in go-redis's words.
func TestMistakes_AreToldAtOnce(t *testing.T) {
	t.Parallel()
	alone := redialtest.StartServer(t)
	locked := redialtest.StartServer(t, "--requirepass", "secret")
	supervise := func(rdb redis.UniversalClient) redis.UniversalClient { return superviseIt(t, rdb) }
	at := func(opt redis.Options) func() (redis.UniversalClient, redis.UniversalClient) {
		return func() (redis.UniversalClient, redis.UniversalClient) {
			opt.DialerRetries, opt.MaxRetries = 1, -1
			own := opt
			return redis.NewClient(&opt), redial.NewClient(&own)
		}
	}
	nobody := redis.FailoverOptions{MasterName: "m", DialerRetries: 1, MaxRetries: -1}
	for name, of := range map[string]func() (bare, ours redis.UniversalClient){
		"cluster without nodes": func() (redis.UniversalClient, redis.UniversalClient) {
			return redis.NewClusterClient(&redis.ClusterOptions{}), redial.NewClusterClient(&redis.ClusterOptions{})
		},
		"cluster without nodes, supervised": func() (redis.UniversalClient, redis.UniversalClient) {
			return redis.NewClusterClient(&redis.ClusterOptions{}), supervise(redis.NewClusterClient(&redis.ClusterOptions{}))
		},
		"cluster support disabled": func() (redis.UniversalClient, redis.UniversalClient) {
			return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{alone.Addr()}}),
				redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{alone.Addr()}})
		},
		"cluster support disabled, supervised": func() (redis.UniversalClient, redis.UniversalClient) {
			return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{alone.Addr()}}),
				supervise(redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{alone.Addr()}}))
		},
		"cluster without the password": func() (redis.UniversalClient, redis.UniversalClient) {
			return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{locked.Addr()}}),
				redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{locked.Addr()}})
		},
		"ring without shards": func() (redis.UniversalClient, redis.UniversalClient) {
			return redis.NewRing(&redis.RingOptions{}), redial.NewRing(&redis.RingOptions{})
		},
		"ring without shards, supervised": func() (redis.UniversalClient, redis.UniversalClient) {
			return redis.NewRing(&redis.RingOptions{}), supervise(redis.NewRing(&redis.RingOptions{}))
		},
		"an address without a port":       at(redis.Options{Addr: "127.0.0.1"}),
		"an address that is an URL":       at(redis.Options{Addr: "redis://127.0.0.1:6379/0"}),
		"an address with a wrong port":    at(redis.Options{Addr: "127.0.0.1:99999"}),
		"an address with an unknown port": at(redis.Options{Addr: "127.0.0.1:redi"}),
		"an address without a port, TLS":  at(redis.Options{Addr: "localhost", TLSConfig: &tls.Config{}}),
		"an address without a port, supervised": func() (redis.UniversalClient, redis.UniversalClient) {
			opt := redis.Options{Addr: "127.0.0.1", DialerRetries: 1, MaxRetries: -1}
			own := opt
			return redis.NewClient(&opt), supervise(redis.NewClient(&own))
		},
		"addresses of a cluster without a port": func() (redis.UniversalClient, redis.UniversalClient) {
			return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1"}, MaxRedirects: -1}),
				redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1"}})
		},
		"addresses of a cluster without a port, supervised": func() (redis.UniversalClient, redis.UniversalClient) {
			return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1"}, MaxRedirects: -1}),
				supervise(redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1"}}))
		},
		"no sentinels": func() (redis.UniversalClient, redis.UniversalClient) {
			return redis.NewFailoverClient(&nobody), redial.NewFailoverClient(&nobody)
		},
		"no sentinels, cluster": func() (redis.UniversalClient, redis.UniversalClient) {
			opt := nobody
			opt.RouteRandomly = true
			return redis.NewFailoverClusterClient(&opt), redial.NewFailoverClusterClient(&opt)
		},
		"addresses of sentinels without a port": func() (redis.UniversalClient, redis.UniversalClient) {
			opt := nobody
			opt.SentinelAddrs = []string{"127.0.0.1"}
			return redis.NewFailoverClient(&opt), redial.NewFailoverClient(&opt)
		},
		"addresses of sentinels without a port, cluster": func() (redis.UniversalClient, redis.UniversalClient) {
			opt := nobody
			opt.SentinelAddrs, opt.RouteRandomly = []string{"127.0.0.1"}, true
			return redis.NewFailoverClusterClient(&opt), redial.NewFailoverClusterClient(&opt)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bare, ours := of()
			defer bare.Close()
			defer ours.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			want := asked(ctx, bare)
			began := time.Now()
			got := asked(ctx, ours)
			took := time.Since(began)
			require.Len(t, got, len(want))
			for what, err := range want {
				if err == nil {
					assert.NoError(t, got[what], what)
					continue
				}
				assert.EqualError(t, got[what], err.Error(), what)
				if _, ok := err.(redis.Error); ok {
					assert.Equal(t, err, got[what], what)
				}
				assert.NotErrorIs(t, got[what], redial.ErrUnavailable, what)
			}
			assert.Less(t, took, time.Second)
			if s, ok := ours.(redial.UniversalClient); ok {
				assert.NotEqual(t, redial.StateConnected, s.State())
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				if err := s.WaitReady(ctx); name == "ring without shards" { // which may get some
					assert.ErrorIs(t, err, context.DeadlineExceeded)
				} else {
					assert.ErrorContains(t, err, want["get"].Error())
					assert.NoError(t, ctx.Err(), "at once")
				}
			}
		})
	}
}

// What a URL says is for redis.ParseURL.
func TestMistakes_URLIsParsed(t *testing.T) {
	t.Parallel()
	opt, err := redis.ParseURL("redis://:secret@" + redialtest.StartServer(t, "--requirepass", "secret").Addr() + "/1")
	require.NoError(t, err)
	c := redial.NewClient(opt)
	defer c.Close()
	assert.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
}

// Commands that come before anybody knows are told as soon as it is known.
func TestMistakes_AreToldToThoseWhoWait(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "cluster" {
			time.Sleep(200 * time.Millisecond)
			return redialtest.Reply("-ERR This instance has cluster support disabled\r\n")
		}
		return redialtest.Handle
	})
	assert.Less(t, platform.AtBest(time.Second, func() {
		c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{f.Addr()}})
		defer c.Close()
		assert.EqualError(t, c.Get(t.Context(), "k").Err(), "ERR This instance has cluster support disabled")
	}), time.Second)
}

// A ring that gets shards, and a server that becomes the node of a cluster, are served
// as if they had been there before.
func TestMistakes_CanBeMended(t *testing.T) {
	t.Parallel()
	server := redialtest.StartServer(t)
	ring := redial.NewRing(&redis.RingOptions{})
	defer ring.Close()
	require.EqualError(t, ring.Set(t.Context(), "k", "v", 0).Err(), "redis: all ring shards are down")
	sub := ring.Subscribe(t.Context(), "c")
	_, err := sub.Receive(t.Context())
	assert.EqualError(t, err, "redis: all ring shards are down")
	require.NoError(t, sub.Close())
	ring.SetAddrs(map[string]string{"one": server.Addr()})
	require.NoError(t, ring.WaitReady(t.Context()))
	assert.NoError(t, ring.Set(t.Context(), "k", "v", 0).Err())
	ring.SetAddrs(nil)
	require.Eventually(t, func() bool {
		err := ring.Set(redial.FailFast(t.Context()), "k", "v", 0).Err()
		return err != nil && err.Error() == "redis: all ring shards are down"
	}, 3*time.Second, 10*time.Millisecond)

	var mended atomic.Bool
	f := redialtest.NewFakeServer(t)
	host, port, _ := net.SplitHostPort(f.Addr())
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		switch {
		case args[0] == "cluster" && mended.Load():
			return redialtest.Reply(fmt.Sprintf("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$%d\r\n%s\r\n:%s\r\n", len(host), host, port))
		case args[0] == "cluster":
			return redialtest.Reply("-ERR This instance has cluster support disabled\r\n")
		}
		return redialtest.Handle
	})
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{f.Addr()}})
	defer c.Close()
	require.EqualError(t, c.Set(t.Context(), "k", "v", 0).Err(), "ERR This instance has cluster support disabled")
	mended.Store(true)
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	testkit.WaitReady(t, c)

	// Once there was a topology, it is an outage.
	mended.Store(false)
	c.Reconnect("test")
	assert.ErrorIs(t, c.Set(redial.WaitFor(t.Context(), 300*time.Millisecond), "k", "v", 0).Err(), redial.ErrUnavailable)
}

// The options of go-redis that have a default have it here.
func TestDefaults_EmptyAddressIsLocalhost(t *testing.T) {
	t.Parallel()
	server := redialtest.StartServer(t)
	var dialed atomic.Value
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialed.Store(addr)
		return (&net.Dialer{}).DialContext(ctx, network, server.Addr())
	}
	type dialer = func(context.Context, string, string) (net.Conn, error)
	slots := func(context.Context) ([]redis.ClusterSlot, error) {
		return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: ""}}}}, nil
	}
	for name, of := range map[string]struct {
		client func(dialer) redis.UniversalClient
		want   string
	}{
		"Client":   {func(d dialer) redis.UniversalClient { return redial.NewClient(&redis.Options{Dialer: d}) }, "localhost:6379"},
		"database": {func(d dialer) redis.UniversalClient { return redial.NewClient(&redis.Options{Dialer: d, DB: 1}) }, "localhost:6379"},
		"UniversalClient": {func(d dialer) redis.UniversalClient {
			return redial.NewUniversalClient(&redis.UniversalOptions{Dialer: d})
		}, "127.0.0.1:6379"},
		"ClusterClient": {func(d dialer) redis.UniversalClient {
			return redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{""}, Dialer: d, ClusterSlots: slots})
		}, "localhost:6379"},
		"Ring": {func(d dialer) redis.UniversalClient {
			return redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": ""}, Dialer: d})
		}, "localhost:6379"},
		"supervised Client": {func(d dialer) redis.UniversalClient {
			rdb := redis.NewClient(&redis.Options{Dialer: d})
			s, err := redial.Supervise(rdb)
			require.NoError(t, err)
			t.Cleanup(func() { _ = s.Close() })
			return rdb
		}, "localhost:6379"},
	} {
		t.Run(name, func(t *testing.T) {
			assert.NotPanics(t, func() { _ = of.client(nil).Close() })
			c := of.client(dial)
			defer c.Close()
			assert.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
			assert.Equal(t, of.want, dialed.Load())
			if s, ok := c.(redial.UniversalClient); ok && len(s.Stats().Nodes) > 0 {
				assert.Equal(t, of.want, s.Stats().Nodes[0].Addr)
			}
		})
	}
	c, err := redial.Connect(t.Context(), &redis.Options{Dialer: dial, Username: "default"})
	require.NoError(t, err)
	assert.Equal(t, "localhost:6379", c.Options().Addr)
	require.NoError(t, c.Close())

	// A sentinel without an address is the one on this machine.
	var mu sync.Mutex
	var sentinels []string
	f := redial.NewFailoverClient(&redis.FailoverOptions{
		MasterName: "m", SentinelAddrs: []string{""}, Dialer: func(_ context.Context, _, addr string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			sentinels = append(sentinels, addr)
			return nil, errors.New("no sentinel here")
		},
	})
	defer f.Close()
	assert.ErrorContains(t, f.Get(redial.WaitFor(t.Context(), 100*time.Millisecond), "k").Err(), "no sentinel here")
	mu.Lock()
	defer mu.Unlock()
	assert.Equal(t, "localhost:6379", sentinels[0])
}

// What go-redis panics about is nothing to try.
func TestDefaults_WhatGoRedisPanicsAbout(t *testing.T) {
	t.Parallel()
	for name, build := range map[string]func(){
		"client":              func() { redial.NewClient(nil) },
		"cluster":             func() { redial.NewClusterClient(nil) },
		"ring":                func() { redial.NewRing(nil) },
		"failover":            func() { redial.NewFailoverClient(nil) },
		"failover cluster":    func() { redial.NewFailoverClusterClient(nil) },
		"universal":           func() { redial.NewUniversalClient(nil) },
		"failover, latency":   func() { redial.NewFailoverClient(&redis.FailoverOptions{MasterName: "m", RouteByLatency: true}) },
		"failover, at random": func() { redial.NewFailoverClient(&redis.FailoverOptions{MasterName: "m", RouteRandomly: true}) },
	} {
		assert.Panics(t, build, name)
	}
}

// A ring says that its shards are down a moment later than bare, or earlier: both words are go-redis's.
func TestMistakes_RingOfUnreadableAddresses(t *testing.T) {
	t.Parallel()
	for name, rdb := range map[string]redis.UniversalClient{
		"ours":       redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1"}}),
		"supervised": superviseIt(t, redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1"}})),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		errs := asked(ctx, rdb)
		if s, ok := rdb.(redial.UniversalClient); ok {
			assert.ErrorContains(t, s.WaitReady(ctx), "missing port in address")
		}
		require.NoError(t, ctx.Err(), "%s: at once", name)
		delete(errs, "for each shard")
		for what, err := range errs {
			assert.Error(t, err, "%s: %s", name, what)
			assert.NotErrorIs(t, err, redial.ErrUnavailable, "%s: %s", name, what)
		}
		require.NoError(t, rdb.Close())
	}
}

func superviseIt(t *testing.T, rdb redis.UniversalClient) redis.UniversalClient {
	s, err := redial.Supervise(rdb)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return rdb
}

// Where others serve, what is for an address that cannot be read waits as for any node that is
// down, and does not spin.
func TestMistakes_OneAddressOfSeveral(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	grace := 500 * time.Millisecond
	for name, rdb := range map[string]redial.UniversalClient{
		"ring": redial.NewRing(&redis.RingOptions{
			Addrs:       map[string]string{"a": "127.0.0.1", "b": s.Addr()},
			HeartbeatFn: func(context.Context, *redis.Client) bool { return true },
		}, redial.WithGrace(grace)),
		"cluster": redial.NewClusterClient(&redis.ClusterOptions{ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			return []redis.ClusterSlot{
				{Start: 0, End: 8191, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1"}}},
				{Start: 8192, End: 16383, Nodes: []redis.ClusterNode{{Addr: s.Addr()}}},
			}, nil
		}}, redial.WithGrace(grace)),
	} {
		t.Run(name, func(t *testing.T) {
			defer rdb.Close()
			require.NoError(t, rdb.WaitReady(t.Context()))
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			failed := 0
			for i := range 8 {
				key := strconv.Itoa(i)
				fast := rdb.Get(redial.FailFast(ctx), key).Err()
				if fast == redis.Nil {
					continue
				}
				failed++
				assert.ErrorContains(t, fast, "missing port in address")
				assert.ErrorContains(t, rdb.Get(ctx, key).Err(), "missing port in address")
			}
			require.NoError(t, ctx.Err())
			assert.NotZero(t, failed)
			assert.Less(t, rdb.Stats().Retries, uint64(failed*100))
		})
	}
}
