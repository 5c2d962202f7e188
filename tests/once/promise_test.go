package once

// What Once promises at its edges: which of several ids counts, how long redial goes on
// with one, what it refuses, where its commands go. Real servers; nothing of the insides.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialtest"
)

// The id that was put into a context last counts, as with all that contexts hold.
func TestOnce_TheInnermostIDCounts(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	outer := redial.Once(t.Context(), "outer")
	require.EqualValues(t, 1, c.Incr(redial.Once(outer, "inner"), "n").Val())
	assert.Equal(t, []string{"redial:once:inner"}, c.Keys(t.Context(), "redial:once:*").Val())
	require.EqualValues(t, 1, c.Incr(redial.Once(t.Context(), "inner"), "n").Val())
	require.EqualValues(t, 2, c.Incr(outer, "n").Val())
}

// What a hook sends besides with an id of its own is protected by that one.
func TestOnce_HookHasAnIDOfItsOwn(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	c.AddHook(hookFunc(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		if cmd.Name() != "incr" {
			return next(ctx, cmd)
		}
		if err := c.RPush(redial.Once(ctx, "side"), "log", "x").Err(); err != nil {
			return err
		}
		if _, err := c.Pipelined(context.Background(), func(p redis.Pipeliner) error { p.Append(ctx, "plain", "x"); return nil }); err != nil {
			return err
		}
		return next(ctx, cmd)
	}))
	for range 2 {
		require.EqualValues(t, 1, c.Incr(redial.Once(t.Context(), "id"), "n").Val())
	}
	assert.EqualValues(t, 1, c.LLen(t.Context(), "log").Val())
	assert.Equal(t, "xx", c.Get(t.Context(), "plain").Val(), "the id of the call is not that of others")
}

// A hook that hands the command on with another id has it refused before anything runs.
func TestOnce_HookChangesTheID(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	c.AddHook(hookFunc(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		return next(redial.Once(ctx, "other"), cmd)
	}))
	err := c.Incr(redial.Once(t.Context(), "id"), "n").Err()
	assert.ErrorIs(t, err, redial.ErrOnceUnsupported)
	assert.True(t, redial.SafeToRetry(err))
	assert.Nil(t, s.Do("GET", "n"))
}

// A command in a batch that has an id of its own and another one by the batch would be
// protected by one that its caller does not know of.
func TestOnce_TwoIDsOfOneCommandAreRefused(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	batch, own := redial.Once(t.Context(), "batch"), redial.Once(t.Context(), "own")
	for name, exec := range map[string]func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){
		"pipeline": c.Pipelined, "transaction": c.TxPipelined,
	} {
		cmds, err := exec(batch, func(p redis.Pipeliner) error {
			p.Incr(batch, "n")
			p.Incr(own, "n")
			return nil
		})
		assert.ErrorIs(t, err, redial.ErrOnceUnsupported, name)
		assert.ErrorContains(t, err, "incr: it was made with another id than that of the batch", name)
		for _, cmd := range cmds {
			assert.ErrorIs(t, cmd.Err(), redial.ErrOnceUnsupported, name)
			assert.True(t, redial.SafeToRetry(cmd.Err()), name)
		}
	}
	assert.Zero(t, c.Exists(t.Context(), "n").Val())
	_, err := c.Pipelined(batch, func(p redis.Pipeliner) error {
		p.Incr(batch, "n")
		p.Incr(t.Context(), "n")
		return nil
	})
	require.NoError(t, err)
	assert.Equal(t, "2", c.Get(t.Context(), "n").Val())
}

// What a connection is told is refused by name, and so is what go-redis sends to set one up,
// unless that is what go-redis does: for a subscription with the context of the caller.
func TestOnce_WhatIsAboutTheConnection_IsRefused(t *testing.T) {
	s := redialtest.StartServer(t)
	s.Do("ACL", "SETUSER", "u", "reset", "on", ">p", "+@all", "~*", "&*")
	opt := &redis.Options{Addr: s.Addr(), ClientName: "me", DB: 1, Username: "u", Password: "p"}
	c := testkit.Connect(t, opt)
	ctx := redial.Once(t.Context(), "id")
	cn := c.Conn()
	defer cn.Close()
	require.NoError(t, cn.Ping(t.Context()).Err())
	for name, cmd := range map[string]redis.Cmder{
		"select":   cn.Select(ctx, 0),
		"auth":     cn.AuthACL(ctx, "u", "p"),
		"hello":    cn.Hello(ctx, 3, "", "", ""),
		"client":   cn.ClientSetName(ctx, "other"),
		"readonly": c.ReadOnly(ctx),
		"quit":     c.Do(ctx, "quit"),
		"reset":    cn.Do(ctx, "reset"),
		"echo":     c.Echo(ctx, "x"),
	} {
		assert.ErrorIs(t, cmd.Err(), redial.ErrOnceUnsupported, name)
		assert.ErrorContains(t, cmd.Err(), name+": it is about the connection", name)
	}
	assert.ErrorIs(t, c.ClientID(ctx).Err(), redial.ErrOnceUnsupported)
	cmds, err := cn.Pipelined(ctx, func(p redis.Pipeliner) error { p.Select(ctx, 0); p.ClientSetName(ctx, "other"); return nil })
	assert.ErrorIs(t, err, redial.ErrOnceUnsupported)
	assert.Len(t, cmds, 2)
	_, err = cn.Pipelined(t.Context(), func(p redis.Pipeliner) error { p.Select(ctx, 0); return nil })
	assert.ErrorIs(t, err, redial.ErrOnceUnsupported)
	assert.Equal(t, "me", cn.ClientGetName(t.Context()).Val())
	require.NoError(t, cn.Set(t.Context(), "here", 1, 0).Err())
	assert.Zero(t, s.Do("DBSIZE"), "the connection is what it was, with database 1")

	for _, hooked := range []bool{false, true} {
		c := testkit.Connect(t, opt)
		if hooked {
			c.AddHook(testkit.Passing{})
		}
		sub := c.Subscribe(ctx, "news")
		_, err = sub.Receive(t.Context())
		require.NoError(t, err)
		require.NoError(t, c.Publish(t.Context(), "news", "x").Err())
		msg, err := sub.ReceiveMessage(t.Context())
		require.NoError(t, err)
		assert.Equal(t, "x", msg.Payload)
		require.NoError(t, sub.Close())
		// A connection that is made for a command with an id.
		require.NoError(t, c.Conn().Incr(redial.Once(t.Context(), fmt.Sprint(hooked)), "m").Err())
	}
}

// OnConnect is called for each connection, whoever it is made for, and what it sends has
// no id but one of its own.
func TestOnce_OnConnectHasNoID(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr(), OnConnect: func(ctx context.Context, cn *redis.Conn) error {
		if err := cn.Incr(ctx, "connections").Err(); err != nil {
			return err
		}
		return cn.Incr(redial.Once(ctx, "own"), "own").Err()
	}})
	before, err := c.Get(t.Context(), "connections").Int()
	require.NoError(t, err)
	ctx := redial.Once(t.Context(), "id")
	for range 2 {
		sub := c.Subscribe(ctx, "news")
		_, err := sub.Receive(t.Context())
		require.NoError(t, err)
		require.NoError(t, sub.Close())
	}
	after, err := c.Get(t.Context(), "connections").Int()
	require.NoError(t, err)
	assert.GreaterOrEqual(t, after, before+2)
	assert.Equal(t, "1", c.Get(t.Context(), "own").Val())
}

// moody gives other bytes every time.
type moody struct{ n atomic.Int64 }

func (m *moody) MarshalBinary() ([]byte, error) { return fmt.Append(nil, m.n.Add(1)), nil }

// Arguments are what they were when they were first sent, however often they are.
func TestOnce_ArgumentsAreEncodedOnce(t *testing.T) {
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	c := testkit.Connect(t, &redis.Options{Addr: p.Addr()})
	c.AddHook(testkit.Passing{})
	p.Match("rpush")
	for name, exec := range map[string]func(ctx context.Context, key string) error{
		"single": func(ctx context.Context, key string) error { return c.RPush(ctx, key, new(moody), "x").Err() },
		"pipeline": func(ctx context.Context, key string) error {
			_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.RPush(ctx, key, new(moody), "x"); return nil })
			return err
		},
		"transaction": func(ctx context.Context, key string) error {
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
				p.RPush(ctx, key, new(moody))
				p.RPush(ctx, key, "x")
				return nil
			})
			return err
		},
	} {
		s.Do("SCRIPT", "FLUSH")
		p.CutAfterRequest(2)
		require.NoError(t, exec(redial.Once(t.Context(), name), name), name)
		require.Zero(t, p.CutAfterRequest(0), name)
		assert.Equal(t, []any{"1", "x"}, s.Do("LRANGE", name, 0, -1), name)
	}
}

// holdUp is a hook that lets the attempts after the first one wait inside the client.
type holdUp struct {
	calls *atomic.Int64
	until func()
}

func (holdUp) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h holdUp) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "incr" && h.calls.Add(1) > 1 {
			h.until()
		}
		return next(ctx, cmd)
	}
}

func (h holdUp) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return cmd.Name() == "incr" }) && h.calls.Add(1) > 1 {
			h.until()
		}
		return next(ctx, cmds)
	}
}

// askAgain is a hook that asks for what has failed again, when it has waited.
type askAgain struct{ until func() }

func (askAgain) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h askAgain) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err != nil && cmd.Name() == "incr" {
			h.until()
			cmd.SetErr(nil)
			err = next(ctx, cmd)
		}
		return err
	}
}

func (h askAgain) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if err != nil && slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return cmd.Name() == "incr" }) {
			h.until()
			for _, cmd := range cmds {
				cmd.SetErr(nil)
			}
			err = next(ctx, cmds)
		}
		return err
	}
}

// An attempt that is held up inside the client, by its pool, a dial or a hook, for longer
// than the record lives is not sent any more, and neither is what a hook asks for again then.
func TestOnce_HeldUpUntilTheRecordIsGone_IsUnknown(t *testing.T) {
	t.Parallel()
	one := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, one.Addr())
	cluster := redialtest.StartCluster(t, 2, 0)
	proxies := cluster.AddProxies()
	ttl := redial.WithOnceTTL(time.Second)
	for kind, x := range map[string]struct {
		open    func() redial.UniversalClient
		servers []*redialtest.Server
		proxies []*redialtest.Proxy
	}{
		"client": {func() redial.UniversalClient { return redial.NewClient(&redis.Options{Addr: p.Addr()}, ttl) },
			[]*redialtest.Server{one}, []*redialtest.Proxy{p}},
		"ring": {func() redial.UniversalClient {
			return redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": p.Addr()}}, ttl)
		}, []*redialtest.Server{one}, []*redialtest.Proxy{p}},
		"cluster": {func() redial.UniversalClient {
			return redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()}, ttl)
		}, cluster.Nodes, proxies},
	} {
		records := func(name string) (n int) {
			for _, s := range x.servers {
				n += len(s.Do("KEYS", "redial:once:*"+name+"*").([]any))
			}
			return n
		}
		for name, incr := range map[string]func(ctx context.Context, c redis.UniversalClient, key string) error{
			"single": func(ctx context.Context, c redis.UniversalClient, key string) error { return c.Incr(ctx, key).Err() },
			"transaction": func(ctx context.Context, c redis.UniversalClient, key string) error {
				_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, key); return nil })
				return err
			},
			"pipeline": func(ctx context.Context, c redis.UniversalClient, key string) error {
				_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, key); p.Append(ctx, key+"log", "x"); return nil })
				return err
			},
		} {
			for how, hook := range map[string]func(until func()) redis.Hook{
				"held up":     func(until func()) redis.Hook { return holdUp{new(atomic.Int64), until} },
				"asked again": func(until func()) redis.Hook { return askAgain{until} },
			} {
				t.Run(kind+" "+name+" "+how, func(t *testing.T) {
					key := kind + name + how
					c := x.open()
					defer c.Close()
					require.NoError(t, c.WaitReady(t.Context()))
					require.NoError(t, c.Incr(redial.Once(t.Context(), "the server gets the script "+key), key).Err())
					require.NoError(t, c.Del(t.Context(), key).Err())
					c.AddHook(hook(func() {
						require.Eventually(t, func() bool { return records("id of "+key) == 0 }, 10*time.Second, 10*time.Millisecond)
					}))
					for _, p := range x.proxies {
						p.Match("incr")
						p.CutAfterRequest(1)
					}
					err := incr(redial.Once(t.Context(), "id of "+key), c, key)
					require.ErrorIs(t, err, redial.ErrOutcomeUnknown)
					require.False(t, redial.SafeToRetry(err))
					for _, p := range x.proxies {
						p.CutAfterRequest(0)
					}
					assert.Equal(t, "1", c.Get(t.Context(), key).Val())
				})
			}
		}
	}
}

// The same for a pipeline whose context ends before its second attempt is sent: what the
// first one did is not forgotten.
func TestPipeline_ContextEndsBetweenAttempts_IsUnknown(t *testing.T) {
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	c := testkit.Connect(t, &redis.Options{Addr: p.Addr()})
	ctx, cancel := context.WithCancel(redial.Idempotent(t.Context()))
	defer cancel()
	c.AddHook(holdUp{new(atomic.Int64), cancel})
	p.Match("incr")
	p.CutAfterRequest(1)
	cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); p.Get(ctx, "n"); return nil })
	require.ErrorIs(t, err, redial.ErrOutcomeUnknown)
	require.ErrorIs(t, err, context.Canceled)
	for _, cmd := range cmds {
		assert.ErrorIs(t, cmd.Err(), redial.ErrOutcomeUnknown)
	}
	assert.Equal(t, "1", s.Do("GET", "n"))
}

// An outage that outlives the record is not waited for: nothing could be sent after it.
func TestOnce_OutageOutlivesTheRecord_IsUnknownAtOnce(t *testing.T) {
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	c := testkit.Connect(t, &redis.Options{Addr: p.Addr()}, redial.WithOnceTTL(2*time.Second), redial.WithGrace(time.Minute))
	require.NoError(t, c.Incr(redial.Once(t.Context(), "the server gets the script"), "m").Err())
	var once sync.Once
	c.AddHook(hookFunc(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		err := next(ctx, cmd)
		if err != nil && cmd.Name() == "incr" {
			once.Do(p.Refuse)
		}
		return err
	}))
	p.Match("incr")
	p.CutAfterRequest(1)
	began := time.Now()
	err := c.Incr(redial.Once(t.Context(), "id"), "n").Err()
	require.ErrorIs(t, err, redial.ErrOutcomeUnknown)
	var e *redial.Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, redial.CauseUnsafe, e.Cause)
	assert.Less(t, time.Since(began), 20*time.Second)
	assert.GreaterOrEqual(t, time.Since(began), 900*time.Millisecond)
	assert.Equal(t, "1", s.Do("GET", "n"))
}

// The life of a record counts from when the command was first sent, not from when a caller
// began to wait for the server.
func TestOnce_LifeCountsFromTheFirstSending(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	c := testkit.Connect(t, &redis.Options{Addr: p.Addr()}, redial.WithOnceTTL(2*time.Second), redial.WithGrace(time.Minute))
	var once sync.Once
	c.AddHook(hookFunc(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		if cmd.Name() == "incr" {
			once.Do(func() { p.CutAfterRequest(1) })
		}
		return next(ctx, cmd)
	}))
	p.Refuse()
	testkit.AwaitState(t, c, redial.StateReconnecting, 5*time.Second)
	p.Match("incr")
	done := make(chan error, 1)
	go func() { done <- c.Incr(redial.Once(t.Context(), "id"), "n").Err() }()
	time.Sleep(1500 * time.Millisecond) // longer than redial makes use of a record
	p.Restore()
	require.NoError(t, <-done)
	assert.Zero(t, p.CutAfterRequest(0))
	assert.EqualValues(t, 1, c.Stats().RetriesRepeated)
	assert.Equal(t, "1", s.Do("GET", "n"))
}

// In a cluster whose reads go to replicas, what has an id goes to the master.
func TestOnce_ReadsOfReplicas(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 2, 1)
	for name, opt := range map[string]*redis.ClusterOptions{
		"ReadOnly": {ReadOnly: true}, "RouteRandomly": {RouteRandomly: true}, "RouteByLatency": {RouteByLatency: true},
	} {
		t.Run(name, func(t *testing.T) {
			opt.Addrs = cluster.Addrs()
			ours := redial.NewClusterClient(opt)
			defer ours.Close()
			theirs := redis.NewClusterClient(opt)
			sup, err := redial.Supervise(theirs)
			require.NoError(t, err)
			defer sup.Close()
			defer theirs.Close()
			theirs.AddHook(testkit.Passing{})
			for kind, c := range map[string]redis.UniversalClient{"ours": ours, "supervised, with a hook": theirs} {
				ctx := redial.WaitFor(t.Context(), 5*time.Second)
				for i := range 20 {
					key := fmt.Sprint(name, kind, i)
					require.NoError(t, c.RPush(redial.Once(ctx, "push"+key), key, "v").Err())
					for range 2 {
						v, err := c.LRange(redial.Once(ctx, "range"+key), key, 0, -1).Result()
						require.NoError(t, err, kind)
						require.Equal(t, []string{"v"}, v)
						encoding, err := c.Do(redial.Once(ctx, "object"+key), "object", "encoding", key).Text()
						require.NoError(t, err, kind)
						require.Contains(t, encoding, "list")
						n, err := c.Exists(redial.Once(ctx, "exists"+key), key).Result()
						require.NoError(t, err, kind)
						require.EqualValues(t, 1, n)
						batch := redial.Once(ctx, "batch"+key)
						cmds, err := c.Pipelined(batch, func(p redis.Pipeliner) error {
							p.LLen(batch, key)
							p.LRange(batch, key, 0, -1)
							return nil
						})
						require.NoError(t, err, kind)
						require.EqualValues(t, 1, cmds[0].(*redis.IntCmd).Val())
					}
				}
			}
		})
	}
}

// Integers that no double holds are exact, or it is said that they are not known.
func TestOnce_BigIntegers(t *testing.T) {
	s := redialtest.StartServer(t)
	const big = 9007199254740993 // 2^53 + 1
	for _, protocol := range []int{2, 3} {
		c := testkit.Connect(t, &redis.Options{Addr: s.Addr(), Protocol: protocol})
		s.Do("FLUSHALL")
		plain := t.Context()
		once := func(id string) context.Context { return redial.Once(plain, id) }
		require.NoError(t, c.Set(plain, "n", big-1, 0).Err())
		require.NoError(t, c.HSet(plain, "h", "f", -big+1).Err())
		for range 2 {
			assert.EqualValues(t, big, c.Incr(once("incr"), "n").Val())
			assert.EqualValues(t, int64(big), c.Do(once("do"), "incrby", "n", 0).Val())
			assert.EqualValues(t, -big, c.HIncrBy(once("hincrby"), "h", "f", -1).Val())
			tx := once("tx")
			cmds, err := c.TxPipelined(tx, func(p redis.Pipeliner) error {
				p.IncrBy(tx, "n", 2)
				p.HIncrBy(tx, "h", "f", -2)
				p.Do(tx, "decr", "n")
				return nil
			})
			require.NoError(t, err)
			assert.EqualValues(t, big+2, cmds[0].(*redis.IntCmd).Val())
			assert.EqualValues(t, -big-2, cmds[1].(*redis.IntCmd).Val())
			assert.EqualValues(t, int64(big+1), cmds[2].(*redis.Cmd).Val())
		}

		// The number of deliveries is whatever it was set to, inside of an array.
		require.NoError(t, c.XAdd(plain, &redis.XAddArgs{Stream: "s", ID: "1-1", Values: []string{"f", "v"}}).Err())
		require.NoError(t, c.XGroupCreate(plain, "s", "g", "0").Err())
		require.NoError(t, c.XReadGroup(plain, &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{"s", ">"}}).Err())
		require.NoError(t, c.Do(plain, "xclaim", "s", "g", "c", 0, "1-1", "retrycount", big).Err())
		pending := &redis.XPendingExtArgs{Stream: "s", Group: "g", Start: "-", End: "+", Count: 1}
		require.EqualValues(t, big, c.XPendingExt(plain, pending).Val()[0].RetryCount)
		for range 2 {
			assert.ErrorIs(t, c.XPendingExt(once("pending"), pending).Err(), redial.ErrOutcomeUnknown)
		}
		require.NoError(t, c.Do(plain, "xclaim", "s", "g", "c", 0, "1-1", "retrycount", 7).Err())
		assert.EqualValues(t, 7, c.XPendingExt(once("pending again"), pending).Val()[0].RetryCount)

		require.NoError(t, c.PExpireAt(plain, "n", time.UnixMilli(big)).Err())
		assert.ErrorIs(t, c.Do(once("pexpiretime"), "pexpiretime", "n").Err(), redial.ErrOutcomeUnknown)

		wide := "i64"
		for _, of := range []any{"i64", "u54", []byte("I64"), &wide} {
			assert.ErrorIs(t, c.BitField(once("wide"), "b", "incrby", of, 0, 1).Err(), redial.ErrOnceUnsupported, of)
		}
		assert.Equal(t, []int64{1<<53 - 1}, c.BitField(once("widest"), "b", "set", "u53", 0, 1<<53-1, "get", "u53", 0).Val()[1:])
	}
}

// Keys and ids may be anything.
func TestOnce_OddKeysAndIDs(t *testing.T) {
	t.Parallel()
	one := redialtest.StartServer(t)
	cluster := redialtest.StartCluster(t, 2, 0)
	ring := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": one.Addr()}})
	t.Cleanup(func() { _ = ring.Close() })
	for name, x := range map[string]struct {
		c       redis.UniversalClient
		servers []*redialtest.Server
	}{
		"single":  {testkit.Connect(t, &redis.Options{Addr: one.Addr()}), []*redialtest.Server{one}},
		"cluster": {testkit.NewCluster(t, cluster), cluster.Nodes},
		"ring":    {ring, []*redialtest.Server{one}},
	} {
		for _, id := range []string{"*", "a[b]?", "\x00\xff\r\n", " ", "{", "}", "{}", "{x}", "a{b}c", ":0", strings.Repeat("x", 512), strings.Repeat("{", 512)} {
			for _, s := range x.servers {
				s.Do("FLUSHALL")
			}
			for i, key := range []string{"", " ", "\x00\xff\r\n", "{", "}", "{}", "{}x", "{x", "x}", "{{x}}", "{a}{b}", strings.Repeat("k", 1000), "redial:once:x"} {
				id := id // in a cluster the same id may come with keys of several slots; here it must not come with others
				if len(id) < 512 {
					id += fmt.Sprint(i)
				} else {
					id = fmt.Sprintf("%03d", i) + id[3:]
				}
				ctx := redial.Once(t.Context(), id)
				for range 2 {
					n, err := x.c.SetRange(ctx, key, 3, "x").Result()
					require.NoError(t, err, "%s %q %q", name, id, key)
					require.EqualValues(t, 4, n)
					require.NoError(t, x.c.Append(t.Context(), key, "y").Err())
				}
				require.Equal(t, "\x00\x00\x00xyy", x.c.Get(t.Context(), key).Val(), "%s %q %q: it ran again", name, id, key)
				require.NoError(t, x.c.Del(t.Context(), key).Err())
				if key == "" && name == "cluster" {
					continue // go-redis takes any slot for it, another one for each command
				}
				for range 2 {
					reply, err := incrThrice(redial.Once(t.Context(), id[:len(id)-1]+"\x01"), x.c.TxPipelined, key)
					require.NoError(t, err, "%s %q %q", name, id, key)
					require.Equal(t, "1", reply)
				}
				require.Equal(t, "3", x.c.Get(t.Context(), key).Val())
				require.NoError(t, x.c.Del(t.Context(), key).Err())
				for _, s := range x.servers {
					s.Do("FLUSHALL")
				}
			}
		}
	}
}

// words are an error of the caller's own type, of which two cannot be compared.
type words []string

func (w words) Error() string { return w[0] }

// wordy is a hook that returns them in place of INCR.
type wordy struct{ testkit.Passing }

func (wordy) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() != "incr" {
			return next(ctx, cmd)
		}
		return words{"no"}
	}
}

func (wordy) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(_ context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			cmd.SetErr(words{"no"})
		}
		return words{"no"}
	}
}

// A hook may return errors that cannot be compared, with an id and without.
func TestOnce_ErrorsThatCannotBeCompared(t *testing.T) {
	s := redialtest.StartServer(t)
	for _, behind := range []bool{false, true} {
		c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
		if behind {
			c.Client.AddHook(wordy{})
		} else {
			c.AddHook(wordy{})
		}
		for _, ctx := range []context.Context{t.Context(), redial.Once(t.Context(), "id")} {
			assert.Equal(t, words{"no"}, c.Incr(ctx, "n").Err())
			for _, exec := range []func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){c.Pipelined, c.TxPipelined} {
				cmds, err := exec(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
				assert.Equal(t, words{"no"}, err)
				assert.Equal(t, words{"no"}, cmds[0].Err())
			}
		}
	}
	assert.Nil(t, s.Do("GET", "n"))
}

// The table of docs/once.md: what somebody else does to the server, or to a record, between two
// attempts of a call.
func TestOnce_WhatOthersDoToRecords(t *testing.T) {
	t.Parallel()
	const record = "redial:once:id"
	for name, tc := range map[string]struct {
		do      []any
		want    int64 // 0: outcome unknown
		counter string
	}{
		"nothing":           {[]any{"PING"}, 1, "1"},
		"DEL":               {[]any{"DEL", record}, 2, "2"},
		"RENAME":            {[]any{"RENAME", record, "x"}, 2, "2"},
		"EXPIRE":            {[]any{"PEXPIRE", record, 0}, 2, "2"},
		"PERSIST":           {[]any{"PERSIST", record}, 1, "1"},
		"FLUSHDB":           {[]any{"FLUSHDB"}, 1, "1"},
		"SWAPDB":            {[]any{"SWAPDB", 0, 1}, 1, "1"},
		"SCRIPT FLUSH":      {[]any{"SCRIPT", "FLUSH"}, 1, "1"},
		"no EVAL":           {[]any{"ACL", "SETUSER", "default", "-eval", "-evalsha"}, 0, "1"},
		"no record's name":  {[]any{"ACL", "SETUSER", "default", "resetkeys", "~n"}, 0, "1"},
		"another record":    {[]any{"SET", record, "junk"}, 0, "1"},
		"another key there": {[]any{"EVAL", "redis.call('DEL', KEYS[1]) return redis.call('LPUSH', KEYS[1], 'a')", 1, record}, 0, "1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := redialtest.StartServer(t)
			p := redialtest.NewProxy(t, s.Addr())
			c := testkit.Connect(t, &redis.Options{Addr: p.Addr()}, redial.WithGrace(10*time.Second))
			require.NoError(t, c.Incr(redial.Once(t.Context(), "first"), "m").Err())
			p.Match("incr")
			p.CutAfterRequest(1_000_000)
			done := make(chan struct{})
			var n int64
			var err error
			go func() {
				defer close(done)
				n, err = c.Incr(redial.Once(t.Context(), "id"), "n").Result()
			}()
			require.Eventually(t, func() bool { return s.Do("EXISTS", record) == int64(1) }, 5*time.Second, time.Millisecond)
			s.Do(tc.do...)
			p.CutAfterRequest(0)
			<-done
			assert.Equal(t, tc.want, n)
			assert.Equal(t, tc.want == 0, errors.Is(err, redial.ErrOutcomeUnknown), "%v", err)
			assert.Equal(t, tc.want != 0, err == nil, "%v", err)
			s.Do("ACL", "SETUSER", "default", "+@all", "~*")
			assert.Equal(t, tc.counter, s.Do("GET", "n"))
		})
	}
}
