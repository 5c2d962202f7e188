package e2e

import (
	"context"
	"fmt"
	"strings"
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

// disagreeing starts two nodes that send each other's clients to and fro for d, with
// MOVED or ASK.
func disagreeing(t *testing.T, how string, d time.Duration) ([]*redialtest.FakeServer, []string, func()) {
	var until atomic.Pointer[time.Time]
	var nodes []*redialtest.FakeServer
	nodes, addrs := fakeCluster(t, 2, func(i int) fakeHook {
		return func(c *redialtest.FakeConn, args []string) redialtest.Action {
			if strings.EqualFold(args[0], "asking") {
				return redialtest.Reply("+OK\r\n") // also when they have just come to terms
			}
			at := until.Load()
			if at == nil || time.Now().After(*at) {
				return redialtest.Handle
			}
			switch strings.ToLower(args[0]) {
			case "get", "set", "incr", "eval", "del":
				return redialtest.Reply(fmt.Sprintf("-%s 1 %s\r\n", how, nodes[1-i].Addr()))
			case "exec":
				return redialtest.Reply("-EXECABORT Transaction discarded because of previous errors.\r\n")
			case "multi":
				return redialtest.Reply("+OK\r\n")
			}
			return redialtest.Handle
		}
	})
	return nodes, addrs, func() {
		at := time.Now().Add(d)
		until.Store(&at)
	}
}

// A WATCH that is refused until the grace is over is told in the words of the server, of which
// go-redis says nothing. That the nodes disagree is another matter.
func TestRefusals_WatchOfACluster_InWords(t *testing.T) {
	t.Parallel()
	for reply, want := range map[string]string{
		"READONLY You can't write against a read only replica.": "READONLY You can't write against a read only replica.",
		"MOVED 1 ": "the nodes send WATCH to and fro",
	} {
		var nodes []*redialtest.FakeServer
		var refusing atomic.Bool
		nodes, addrs := fakeCluster(t, 2, func(i int) fakeHook {
			return func(c *redialtest.FakeConn, args []string) redialtest.Action {
				switch {
				case !refusing.Load() || !strings.EqualFold(args[0], "watch"):
					return redialtest.Handle
				case strings.HasPrefix(reply, "MOVED"):
					return redialtest.Reply("-" + reply + nodes[1-i].Addr() + "\r\n")
				}
				return redialtest.Reply("-" + reply + "\r\n")
			}
		})
		c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs}, redial.WithGrace(500*time.Millisecond))
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		refusing.Store(true)
		err := c.Watch(t.Context(), func(*redis.Tx) error { t.Error("it was refused"); return nil }, "k")
		assert.ErrorContains(t, err, want)
		assert.True(t, redial.SafeToRetry(err), "%v", err)
		assert.Equal(t, reply == want, redis.IsReadOnlyError(err), "%v", err)
	}
}

// Nodes that disagree about who serves a slot come to terms; until then a command
// waits, and then runs once.
func TestRefusals_NodesDisagree_WaitsForTheTopology(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"MOVED", "ASK"} {
		for _, tc := range []struct {
			name string
			do   func(context.Context, *redial.ClusterClient) error
		}{
			{"get", func(ctx context.Context, c *redial.ClusterClient) error { return c.Get(ctx, "{k}").Err() }},
			{"set", func(ctx context.Context, c *redial.ClusterClient) error { return c.Set(ctx, "{k}", 1, 0).Err() }},
			{"incr", func(ctx context.Context, c *redial.ClusterClient) error { return c.Incr(ctx, "{k}").Err() }},
			{"pipeline", func(ctx context.Context, c *redial.ClusterClient) error {
				_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "{k}"); p.Incr(ctx, "{k}n"); return nil })
				return err
			}},
			{"transaction", func(ctx context.Context, c *redial.ClusterClient) error {
				_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "{k}"); p.Incr(ctx, "{k}n"); return nil })
				return err
			}},
		} {
			t.Run(how+" "+tc.name, func(t *testing.T) {
				t.Parallel()
				nodes, addrs, begin := disagreeing(t, how, time.Second)
				c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})
				defer c.Close()
				testkit.WaitReady(t, c)
				require.NoError(t, c.Set(t.Context(), "{k}", 0, 0).Err())
				begin()
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
				defer cancel()
				began := time.Now()
				if err := tc.do(ctx, c); err != redis.Nil { // the node that serves it may not have it
					assert.NoError(t, err)
				}
				assert.GreaterOrEqual(t, time.Since(began), 900*time.Millisecond)
				assert.Less(t, time.Since(began), 2500*time.Millisecond)
				for _, key := range []string{"{k}", "{k}n"} {
					if n, err := c.Get(ctx, key).Int(); err == nil {
						assert.LessOrEqual(t, n, 1, key)
					}
				}
				assert.LessOrEqual(t, nodes[0].Executed("incr")+nodes[1].Executed("incr"), 2)
			})
		}
	}
}

// They do not come to terms: the reply is the caller's when the grace is over, on
// every command of a pipeline, and those that fail fast have it at once.
func TestRefusals_NodesDisagreeForGood_GivesTheReply(t *testing.T) {
	t.Parallel()
	nodes, addrs, begin := disagreeing(t, "MOVED", time.Hour)
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs}, redial.WithGrace(500*time.Millisecond))
	defer c.Close()
	testkit.WaitReady(t, c)
	require.NoError(t, c.Set(t.Context(), "{k}", 0, 0).Err())
	begin()
	isMoved := func(err error) {
		_, moved := redis.IsMovedError(err)
		assert.True(t, moved, "%v", err)
		assert.True(t, redial.SafeToRetry(err))
	}
	began := time.Now()
	isMoved(c.Incr(t.Context(), "{k}").Err())
	assert.InDelta(t, 500*time.Millisecond, time.Since(began), float64(200*time.Millisecond))
	cmds, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Incr(t.Context(), "{k}")
		p.LLen(t.Context(), "{k}l")
		p.Set(t.Context(), "{k}", 1, 0)
		return nil
	})
	isMoved(err)
	isMoved(cmds[0].Err())
	assert.NoError(t, cmds[1].Err())
	isMoved(cmds[2].Err())
	_, err = c.TxPipelined(t.Context(), func(p redis.Pipeliner) error { p.Incr(t.Context(), "{k}"); return nil })
	isMoved(err)
	began = time.Now()
	isMoved(c.Incr(redial.FailFast(t.Context()), "{k}").Err())
	assert.Less(t, time.Since(began), 200*time.Millisecond)
	assert.Zero(t, nodes[0].Executed("incr")+nodes[1].Executed("incr"))
}

// A client of one server has nowhere to go when that server names another: the reply
// is the caller's, at once, as with go-redis.
func TestRefusals_RedirectionsOfASingleServer_AreReturned(t *testing.T) {
	t.Parallel()
	for _, reply := range []string{"MOVED 1 127.0.0.1:1", "ASK 1 127.0.0.1:1"} {
		f := redialtest.NewFakeServer(t)
		f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			if args[0] == "incr" {
				return redialtest.Reply("-" + reply + "\r\n")
			}
			return redialtest.Handle
		})
		c := redial.NewClient(&redis.Options{Addr: f.Addr()})
		testkit.WaitReady(t, c)
		began := time.Now()
		err := c.Incr(t.Context(), "n").Err()
		assert.EqualError(t, err, reply)
		assert.True(t, redial.SafeToRetry(err))
		assert.Less(t, time.Since(began), 200*time.Millisecond)
		c.Close()

		ring := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": f.Addr()}})
		testkit.WaitReady(t, ring)
		began = time.Now()
		assert.EqualError(t, ring.Incr(t.Context(), "n").Err(), reply)
		assert.Less(t, time.Since(began), 200*time.Millisecond)
		ring.Close()
	}
}

// A primary that becomes a replica lets go of those who wait for data. They wait on
// the primary that there is then, on a real server.
func TestRefusals_RoleChange_BlockedCommandsGoOn(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		do   func(context.Context, redis.Cmdable) error
	}{
		{"blpop", func(ctx context.Context, c redis.Cmdable) error { return c.BLPop(ctx, 0, "q").Err() }},
		{"blmove", func(ctx context.Context, c redis.Cmdable) error {
			return c.BLMove(ctx, "q", "r", "LEFT", "RIGHT", 0).Err()
		}},
		{"bzpopmin", func(ctx context.Context, c redis.Cmdable) error { return c.BZPopMin(ctx, 0, "z").Err() }},
		{"xreadgroup", func(ctx context.Context, c redis.Cmdable) error {
			return c.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{"s", ">"}}).Err()
		}},
		{"xread", func(ctx context.Context, c redis.Cmdable) error {
			return c.XRead(ctx, &redis.XReadArgs{Streams: []string{"s", "5"}}).Err()
		}},
		{"pipeline", func(ctx context.Context, c redis.Cmdable) error {
			var ack *redis.IntCmd
			_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
				ack = p.XAck(ctx, "s", "g", "1-1")
				p.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{"s", ">"}})
				return nil
			})
			if err == nil && ack.Val() != 1 {
				return fmt.Errorf("acknowledged %d", ack.Val())
			}
			return err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := redialtest.StartServer(t)
			s.Do("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
			s.Do("XADD", "s", "1-1", "f", "v")
			s.Do("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">")
			c := redial.NewClient(&redis.Options{Addr: s.Addr()})
			defer c.Close()
			testkit.WaitReady(t, c)
			generation := c.Stats().Generation
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- tc.do(ctx, c) }()
			time.Sleep(300 * time.Millisecond)
			s.Do("REPLICAOF", "127.0.0.1", "1")
			time.Sleep(300 * time.Millisecond)
			s.Do("REPLICAOF", "NO", "ONE")
			s.Do("RPUSH", "q", "x")
			s.Do("ZADD", "z", "1", "x")
			s.Do("XADD", "s", "9-1", "f", "v")
			assert.NoError(t, <-done)
			assert.Greater(t, c.Stats().Generation, generation, "the connections led to a server that lost its role")
		})
	}
}

// CLIENT UNBLOCK is somebody's decision, not an accident.
func TestRefusals_ClientUnblock_IsTheCallers(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	c := redial.NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	testkit.WaitReady(t, c)
	generation := c.Stats().Generation
	cn := c.Conn()
	defer cn.Close()
	id, err := cn.ClientID(t.Context()).Result()
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- cn.BLPop(t.Context(), 0, "q").Err() }()
	time.Sleep(100 * time.Millisecond)
	require.NoError(t, c.ClientUnblockWithError(t.Context(), id).Err())
	err = <-done
	assert.EqualError(t, err, "UNBLOCKED client unblocked via CLIENT UNBLOCK")
	assert.True(t, redial.SafeToRetry(err))
	assert.NoError(t, cn.Ping(t.Context()).Err())
	assert.Equal(t, generation, c.Stats().Generation)
}

// A script that takes long makes a server refuse everything else. That passes.
func TestRefusals_BusyServer_IsWaitedFor(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t, "--busy-reply-threshold", "20")
	c := redial.NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	testkit.WaitReady(t, c)
	ctx := t.Context()
	kill := func() error { return c.ScriptKill(ctx).Err() }
	run := func() <-chan error {
		done := make(chan error, 1)
		go func() {
			done <- redis.NewClient(&redis.Options{Addr: s.Addr(), ReadTimeout: -1}).Eval(ctx, "while true do end", nil).Err()
		}()
		time.Sleep(200 * time.Millisecond)
		return done
	}
	for name, do := range map[string]func() error{
		"single": func() error { return c.Incr(ctx, "n").Err() },
		"script": func() error { return c.Eval(ctx, "return redis.call('incr', 'n')", nil).Err() },
		"pipeline": func() error {
			_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); p.Get(ctx, "n"); return nil })
			return err
		},
		"transaction": func() error {
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); p.Get(ctx, "n"); return nil })
			return err
		},
	} {
		before, _ := c.Get(ctx, "n").Int()
		running := run()
		time.AfterFunc(500*time.Millisecond, func() { assert.NoError(t, kill()) })
		began := time.Now()
		assert.NoError(t, do(), name)
		assert.Greater(t, time.Since(began), 300*time.Millisecond, name)
		assert.Error(t, <-running)
		after, _ := c.Get(ctx, "n").Int()
		assert.Equal(t, before+1, after, name)
	}
	err := kill()
	assert.EqualError(t, err, "NOTBUSY No scripts in execution right now.")
	assert.True(t, redial.SafeToRetry(err))

	// A script cannot be ended as a function: that is no server that one waits for.
	running := run()
	began := time.Now()
	err = c.FunctionKill(ctx).Err()
	assert.ErrorContains(t, err, "BUSY")
	assert.True(t, redial.SafeToRetry(err))
	assert.Less(t, time.Since(began), 500*time.Millisecond)
	assert.NoError(t, kill())
	assert.Error(t, <-running)
	assert.Zero(t, c.Stats().Outages, "a busy server is up")
}

// What waiting does not cure comes at once; that it did not run is known, unless it
// came out of a script. The texts are those of a real server.
func TestRefusals_OfARealServer(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	c := redial.NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	testkit.WaitReady(t, c)
	ctx := t.Context()
	check := func(err error, code string, safe bool) {
		t.Helper()
		assert.ErrorContains(t, err, code)
		assert.Equal(t, safe, redial.SafeToRetry(err), "%v", err)
	}
	began := time.Now()
	check(c.Do(ctx, "nosuch").Err(), "ERR unknown command", true)
	check(c.Do(ctx, "get").Err(), "ERR wrong number of arguments", true)
	check(c.EvalSha(ctx, strings.Repeat("0", 40), nil).Err(), "NOSCRIPT", true)
	check(c.Do(ctx, "hello", "9").Err(), "NOPROTO", true)
	check(c.Do(ctx, "cluster", "info").Err(), "cluster support disabled", true)

	const twice = "redis.call('incr', 'n'); return redis.call('set', 'k', ARGV[1])"
	require.NoError(t, c.Set(ctx, "n", 0, 0).Err())
	s.Do("CONFIG", "SET", "maxmemory", "1")
	check(c.Set(ctx, "k", "v", 0).Err(), "OOM", true)
	check(c.Eval(ctx, "redis.call('get', 'n'); return redis.call('set', 'k', 'v')", nil).Err(), "OOM", false)
	s.Do("CONFIG", "SET", "maxmemory", "0")

	s.Do("ACL", "SETUSER", "default", "-set")
	check(c.Set(ctx, "k", "v", 0).Err(), "NOPERM", true)
	check(c.Eval(ctx, twice, nil, "v").Err(), "script", false) // each server says it in other words
	s.Do("ACL", "SETUSER", "default", "+set")
	assert.Less(t, time.Since(began), 2*time.Second, "nobody waits for any of it")

	s.Do("CONFIG", "SET", "min-replicas-to-write", "1")
	fast := redial.FailFast(ctx)
	check(c.Set(fast, "k", "v", 0).Err(), "NOREPLICAS", true)
	check(c.Eval(fast, "redis.call('get', 'n'); return redis.call('set', 'k', 'v')", nil).Err(), "NOREPLICAS", false)
	s.Do("CONFIG", "SET", "min-replicas-to-write", "0")
	s.Do("REPLICAOF", "127.0.0.1", "1")
	check(c.Set(fast, "k", "v", 0).Err(), "READONLY", true)
	check(c.Eval(fast, "redis.call('get', 'n'); return redis.call('set', 'k', 'v')", nil).Err(), "READONLY", false)
	check(c.Eval(fast, "#!lua\nreturn redis.call('set', 'k', 'v')", nil).Err(), "READONLY", true)
	s.Do("REPLICAOF", "NO", "ONE")
	assert.Equal(t, "1", c.Get(ctx, "n").Val(), "of the script that was not allowed to SET")
}

// behindProxy starts nodes behind a proxy that answers PING itself, and the rest so for d.
func behindProxy(t *testing.T, n int, words string) ([]*redialtest.FakeServer, []string, func(time.Duration)) {
	var until atomic.Pointer[time.Time]
	nodes, addrs := fakeCluster(t, n, func(i int) fakeHook {
		return func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			at := until.Load()
			switch strings.ToLower(args[0]) {
			case "ping", "hello", "client", "asking":
			default:
				if at != nil && time.Now().Before(*at) {
					return redialtest.Reply("-" + words + "\r\n")
				}
			}
			return redialtest.Handle
		}
	})
	return nodes, addrs, func(d time.Duration) {
		at := time.Now().Add(d)
		until.Store(&at)
	}
}

const noUpstream = "no upstream host"

func isNoUpstream(reply error) bool { return reply.Error() == noUpstream }

// universal are the kinds of clients for the nodes at addrs.
func universal(addrs []string, opts ...redial.Option) map[string]redial.UniversalClient {
	shards := make(map[string]string)
	for _, a := range addrs {
		shards[a] = a
	}
	return map[string]redial.UniversalClient{
		"client":  redial.NewClient(&redis.Options{Addr: addrs[0]}, opts...),
		"cluster": redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs}, opts...),
		"ring":    redial.NewRing(&redis.RingOptions{Addrs: shards}, opts...),
	}
}

var shapes = []struct {
	name string
	do   func(context.Context, redis.UniversalClient) error
}{
	{"single", func(ctx context.Context, c redis.UniversalClient) error { return c.Incr(ctx, "{a}").Err() }},
	{"pipeline", func(ctx context.Context, c redis.UniversalClient) error {
		_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "{a}"); p.Incr(ctx, "{b}"); return nil })
		return err
	}},
	{"transaction", func(ctx context.Context, c redis.UniversalClient) error {
		_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "{a}"); p.Incr(ctx, "{a}n"); return nil })
		return err
	}},
}

// A proxy that has lost its server: its reply is returned, or hidden when the client
// was taught what it means.
func TestWithRefusals_RepliesOfAProxy(t *testing.T) {
	t.Parallel()
	nodes, addrs, begin := behindProxy(t, 2, noUpstream)
	plain, taught := universal(addrs), universal(addrs, redial.WithRefusals(isNoUpstream))
	for kind := range plain {
		defer plain[kind].Close()
		defer taught[kind].Close()
		testkit.WaitReady(t, plain[kind])
		testkit.WaitReady(t, taught[kind])
		for _, shape := range shapes {
			before := nodes[0].Executed("incr") + nodes[1].Executed("incr")
			begin(700 * time.Millisecond)
			began := time.Now()
			err := shape.do(t.Context(), plain[kind])
			assert.EqualError(t, err, noUpstream, "%s, %s", kind, shape.name)
			assert.False(t, redial.SafeToRetry(err))
			assert.Less(t, time.Since(began), 500*time.Millisecond)
			assert.NoError(t, shape.do(t.Context(), taught[kind]), "%s, %s", kind, shape.name)
			assert.Greater(t, time.Since(began), 600*time.Millisecond, "%s, %s", kind, shape.name)
			ran := nodes[0].Executed("incr") + nodes[1].Executed("incr") - before
			assert.LessOrEqual(t, ran, 2, "%s, %s", kind, shape.name)
			assert.Positive(t, ran, "%s, %s", kind, shape.name)
		}
		assert.Zero(t, taught[kind].Stats().Outages, "the proxy answers")
	}
}

// In the end the reply of the proxy is the caller's, on each command of its own.
func TestWithRefusals_AfterTheGrace_GivesTheReply(t *testing.T) {
	t.Parallel()
	_, addrs, begin := behindProxy(t, 2, noUpstream)
	for kind, c := range universal(addrs, redial.WithRefusals(isNoUpstream), redial.WithGrace(300*time.Millisecond)) {
		defer c.Close()
		testkit.WaitReady(t, c)
		begin(time.Hour)
		for _, shape := range shapes {
			took := platform.AtBest(500*time.Millisecond, func() {
				assert.EqualError(t, shape.do(t.Context(), c), noUpstream, "%s, %s", kind, shape.name)
			})
			assert.InDelta(t, 300*time.Millisecond, took, float64(200*time.Millisecond), "%s, %s", kind, shape.name)
		}
		begin(0)
	}
}

// What a function of the caller panics with reaches the caller, wherever it was called,
// and leaves nothing behind.
func TestWithRefusals_Panic_ReachesTheCaller(t *testing.T) {
	t.Parallel()
	nodes, addrs, begin := behindProxy(t, 2, noUpstream)
	for kind, c := range universal(addrs, redial.WithRefusals(func(error) bool { panic("made by a test") })) {
		defer c.Close()
		testkit.WaitReady(t, c)
		for _, shape := range shapes {
			before := nodes[0].Executed("incr") + nodes[1].Executed("incr")
			begin(time.Hour)
			assert.PanicsWithValue(t, "made by a test", func() { _ = shape.do(t.Context(), c) }, "%s, %s", kind, shape.name)
			begin(0)
			assert.Equal(t, before, nodes[0].Executed("incr")+nodes[1].Executed("incr"), "%s, %s", kind, shape.name)
			// Behind a MULTI that is refused go-redis reads no more, and only a connection on which
			// the rest has arrived does it not use again.
			time.Sleep(20 * time.Millisecond)
			assert.NoError(t, shape.do(t.Context(), c), "%s, %s", kind, shape.name)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.NoError(t, c.(interface{ Drain(context.Context) error }).Drain(ctx), "%s: no command is under way", kind)
	}
}
