package once

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/internal/testkit/pools"
	"github.com/redial-go/redial/redialtest"
)

// A server that does not have the script runs a pipeline in its order all the same.
func TestOnce_PipelineKeepsItsOrder(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	for round := range 3 {
		s.Do("SCRIPT", "FLUSH")
		var get *redis.StringCmd
		_, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Set(redial.Once(t.Context(), fmt.Sprint("first ", round)), "k", "one", 0)
			p.Set(t.Context(), "k", "two", 0)
			get = p.Get(t.Context(), "k")
			p.Append(redial.Once(t.Context(), fmt.Sprint("last ", round)), "k", "!")
			return nil
		})
		require.NoError(t, err)
		assert.Equal(t, "two", get.Val())
		assert.Equal(t, "two!", c.Get(t.Context(), "k").Val())
	}
}

// A transaction with an id heeds what it watches, also where the server does not have the
// script.
func TestOnce_WatchIsHeeded(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	for round := range 3 {
		s.Do("SCRIPT", "FLUSH")
		err := c.Watch(t.Context(), func(tx *redis.Tx) error {
			s.Do("SET", "k", "other")
			_, err := tx.TxPipelined(redial.Once(t.Context(), fmt.Sprint(round)), func(p redis.Pipeliner) error {
				p.Set(t.Context(), "k", "mine", 0)
				return nil
			})
			return err
		}, "k")
		assert.ErrorIs(t, err, redis.TxFailedErr)
		assert.Equal(t, "other", s.Do("GET", "k"))
	}
	s.Do("SCRIPT", "FLUSH")
	s.Do("CONFIG", "RESETSTAT")
	require.NoError(t, c.Watch(t.Context(), func(tx *redis.Tx) error {
		_, err := tx.TxPipelined(redial.Once(t.Context(), "alone"), func(p redis.Pipeliner) error {
			p.Set(t.Context(), "k", "mine", 0)
			return nil
		})
		return err
	}, "k"))
	assert.Contains(t, s.Do("INFO", "commandstats"), "cmdstat_exec:calls=1,", "the first has ended what was watched")
}

// Two ids whose records have one name are two ids.
func TestOnce_RecordsOfOneName(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 3, 0)
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	defer c.Close()
	require.NoError(t, c.WaitReady(t.Context()))
	require.EqualValues(t, 1, c.Incr(redial.Once(t.Context(), "x"), "{t}c").Val())
	assert.ErrorIs(t, c.Incr(redial.Once(t.Context(), "{t}:x"), "{t}c").Err(), redial.ErrOnceMismatch)
	require.EqualValues(t, 1, c.Incr(redial.Once(t.Context(), "x"), "{t}c").Val())
	assert.Equal(t, "1", c.Get(t.Context(), "{t}c").Val())
}

// What has run is not said not to have, where the account may not read what it has become.
func TestOnce_CounterThatCannotBeRead(t *testing.T) {
	s := redialtest.StartServer(t)
	s.Do("ACL", "SETUSER", "u", "reset", "on", ">p", "+@all", "-hget", "~*")
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr(), Username: "u", Password: "p"})
	s.Do("HSET", "h", "f", "9007199254740992")
	for range 2 {
		err := c.HIncrBy(redial.Once(t.Context(), "id"), "h", "f", 1).Err()
		assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
		assert.False(t, redial.SafeToRetry(err))
	}
	assert.Equal(t, "9007199254740993", s.Do("HGET", "h", "f"))
}

// A hook that has commands of a batch sent without their ids has none of them run twice.
func TestOnce_HookLosesTheIDs(t *testing.T) {
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	c := testkit.Connect(t, &redis.Options{Addr: p.Addr()})
	c.AddHook(elsewhere{})
	require.NoError(t, c.Ping(t.Context()).Err())
	p.Match("incr")
	p.CutAfterRequest(1)
	pipe := c.Pipeline()
	pipe.Incr(context.Background(), "n")
	_, err := pipe.Exec(redial.Once(t.Context(), "id"))
	assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
	assert.Equal(t, "1", s.Do("GET", "n"))
}

// A hook that takes all commands out of a pipeline for a cluster has nothing sent, as without ids.
func TestOnce_HookTakesAllAway(t *testing.T) {
	c := testkit.NewCluster(t, redialtest.StartCluster(t, 2, 0))
	c.AddHook(empties{})
	for name, ctx := range map[string]context.Context{"without": t.Context(), "with": redial.Once(t.Context(), "id")} {
		_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(context.Background(), "n"); return nil })
		assert.NoError(t, err, name)
	}
	assert.Zero(t, c.Exists(t.Context(), "n").Val())
}

// empties has nothing sent of pipelines.
type empties struct{ elsewhere }

func (empties) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, _ []redis.Cmder) error { return next(ctx, nil) }
}

// elsewhere goes on with pipelines in a context of its own.
type elsewhere struct{}

func (elsewhere) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (elsewhere) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (elsewhere) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(_ context.Context, cmds []redis.Cmder) error { return next(context.Background(), cmds) }
}

// A ring looks for keys on another shard when theirs is down. What may have run on that does
// not run there as well; what has not run does.
func TestOnce_RingMovesKeys(t *testing.T) {
	t.Parallel()
	a, b := redialtest.StartServer(t), redialtest.StartServer(t)
	p := redialtest.NewProxy(t, a.Addr())
	opt := &redis.RingOptions{Addrs: map[string]string{"a": p.Addr(), "b": b.Addr()}, HeartbeatFrequency: 50 * time.Millisecond}
	ours := redial.NewRing(opt, redial.WithGrace(20*time.Second))
	defer ours.Close()
	theirs := redis.NewRing(opt)
	defer theirs.Close()
	sup, err := redial.Supervise(theirs, redial.WithGrace(20*time.Second))
	require.NoError(t, err)
	defer sup.Close()
	theirs.AddHook(testkit.Passing{})
	var onA, onB string
	for i := 0; onA == "" || onB == ""; i++ {
		key := fmt.Sprintf("{%d}", i)
		require.NoError(t, ours.Set(t.Context(), key, 0, 0).Err())
		if a.Do("DEL", key) == int64(1) {
			onA = key
		} else {
			onB = key
		}
	}
	stats := map[string]func() redial.Stats{"ours": ours.Stats, "supervised": sup.Stats}
	for kind, c := range map[string]redis.UniversalClient{"ours": ours, "supervised": theirs} {
		for name, incr := range map[string]func(ctx context.Context, key string) error{
			"single": func(ctx context.Context, key string) error { return c.Incr(ctx, key).Err() },
			"pipeline": func(ctx context.Context, key string) error {
				cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
					p.Incr(ctx, onB+kind+"beside")
					p.Incr(ctx, key)
					return nil
				})
				assert.NoError(t, cmds[0].Err())
				return errors.Join(err, cmds[1].Err())
			},
			"transaction": func(ctx context.Context, key string) error {
				_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, key); return nil })
				return err
			},
		} {
			key := onA + kind + name
			isBack := func() {
				require.Eventually(t, func() bool {
					return c.Set(t.Context(), onA, 0, 0).Err() == nil && a.Do("DEL", onA) == int64(1)
				}, 10*time.Second, 10*time.Millisecond)
			}
			isBack()
			require.NoError(t, c.Incr(redial.Once(t.Context(), "the server gets the script "+key), key).Err())
			require.Equal(t, "1", a.Do("GET", key))
			p.Match("incr")
			p.CutAfterRequest(1_000_000)
			done := make(chan error, 1)
			go func() { done <- incr(redial.Once(t.Context(), key), key) }()
			require.Eventually(t, func() bool { return a.Do("GET", key) == "2" }, 5*time.Second, 5*time.Millisecond)
			was := stats[kind]().Unknown
			p.Refuse()
			err := <-done
			assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, key)
			assert.Equal(t, was+1, stats[kind]().Unknown, key)
			assert.ErrorContains(t, err, "another shard", key)
			assert.False(t, redial.SafeToRetry(err), key)
			assert.Equal(t, "2", a.Do("GET", key), key)
			assert.Nil(t, b.Do("GET", key), key)

			require.NoError(t, incr(redial.Once(t.Context(), "new "+key), key+"new"), "nothing was sent where the key was")
			assert.Equal(t, "1", b.Do("GET", key+"new"))
			p.CutAfterRequest(0)
			p.Restore()
			isBack()
			require.NoError(t, incr(redial.Once(t.Context(), key), key), "the shard is back, with the record")
			assert.Equal(t, "2", a.Do("GET", key), key)
		}
	}
}

// What stands behind SELECT in a pipeline is not sent without it: it would run in another
// database, where there is no record.
func TestOnce_PipelineThatSelects(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	p.Match("incr")
	c := testkit.Connect(t, &redis.Options{Addr: p.Addr(), DB: 2})
	there := redis.NewClient(&redis.Options{Addr: s.Addr(), DB: 7})
	t.Cleanup(func() { _ = there.Close() })
	once, idempotent := func(id string) context.Context { return redial.Once(t.Context(), id) }, redial.Idempotent(t.Context())
	require.NoError(t, c.Incr(once("the server gets the script"), "n").Err())
	for key, x := range map[string]struct {
		fault func(n int) (left int)
		batch context.Context
		own   func(id string) context.Context
	}{
		"no reply, once":           {p.CutAfterRequest, t.Context(), once},
		"half a reply, once":       {p.CutMidReply, t.Context(), once},
		"half a reply, idempotent": {p.CutMidReply, idempotent, func(string) context.Context { return idempotent }},
	} {
		x.fault(1)
		cmds, err := c.Pipelined(x.batch, func(p redis.Pipeliner) error {
			p.Select(x.batch, 7)
			p.Incr(x.own(key+"1"), key)
			p.Incr(x.own(key+"2"), key)
			return nil
		})
		require.Zero(t, x.fault(0), key)
		assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, key)
		assert.ErrorIs(t, cmds[2].Err(), redial.ErrOutcomeUnknown, key)
		assert.Equal(t, "2", there.Get(t.Context(), key).Val(), key)
		assert.ErrorIs(t, c.Get(t.Context(), key).Err(), redis.Nil, key)
	}

	// What stands ahead of it is sent again.
	p.CutAfterRequest(1)
	cmds, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Incr(once("ahead"), "ahead")
		p.Select(t.Context(), 2)
		return nil
	})
	assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
	assert.NoError(t, cmds[0].Err())
	assert.ErrorIs(t, cmds[1].Err(), redial.ErrOutcomeUnknown)
	assert.Equal(t, "1", c.Get(t.Context(), "ahead").Val())

	// What was refused behind it, too.
	s.Do("REPLICAOF", "127.0.0.1", "1")
	done := make(chan error, 1)
	go func() {
		cmds, _ := c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Select(t.Context(), 7)
			p.Incr(t.Context(), "refused")
			return nil
		})
		done <- cmds[1].Err()
	}()
	select {
	case err := <-done:
		assert.ErrorContains(t, err, "READONLY")
		assert.True(t, redial.SafeToRetry(err))
	case <-time.After(5 * time.Second):
		t.Error("it waits")
	}
	s.Do("REPLICAOF", "NO", "ONE")
	assert.ErrorIs(t, c.Get(t.Context(), "refused").Err(), redis.Nil)
}

// A node of a cluster refuses the first script, and gets another one behind the same AUTH.
func TestOnce_PipelineThatChangesUser(t *testing.T) {
	t.Parallel()
	node := redialtest.StartCluster(t, 1, 0).Nodes[0]
	node.Do("ACL", "SETUSER", "other", "on", ">password", "~*", "&*", "+@all")
	node.Do("ACL", "SETUSER", "default", "-incr")
	c := testkit.Connect(t, &redis.Options{Addr: node.Addr(), PoolFIFO: true, PoolSize: 4, PipelinePoolSize: -1})
	pools.Fill(t, c, 4) // so that the next one to be sent has another connection
	cmds, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Do(t.Context(), "AUTH", "other", "password")
		p.Incr(redial.Once(t.Context(), "k"), "k")
		return nil
	})
	require.NoError(t, err)
	assert.EqualValues(t, 1, cmds[1].(*redis.IntCmd).Val())
}
