package once

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

// onceWork is a piece of work, on a key of its own, that shows whether it ran once: do
// returns the reply, which must be "1", and runs how often it has run.
type onceWork struct {
	do   func(ctx context.Context, c redis.UniversalClient, key string) (string, error)
	runs func(ctx context.Context, c redis.UniversalClient, key string) (int64, error)
}

var onceWorks = map[string]onceWork{
	"INCR": {
		func(ctx context.Context, c redis.UniversalClient, key string) (string, error) {
			n, err := c.Incr(ctx, key).Result()
			return fmt.Sprint(n), err
		},
		func(ctx context.Context, c redis.UniversalClient, key string) (int64, error) {
			return c.Get(ctx, key).Int64()
		},
	},
	"LPUSH": {
		func(ctx context.Context, c redis.UniversalClient, key string) (string, error) {
			n, err := c.LPush(ctx, key, "x").Result()
			return fmt.Sprint(n), err
		},
		func(ctx context.Context, c redis.UniversalClient, key string) (int64, error) {
			return c.LLen(ctx, key).Result()
		},
	},
	"XADD": {
		func(ctx context.Context, c redis.UniversalClient, key string) (string, error) {
			id, err := c.XAdd(ctx, &redis.XAddArgs{Stream: key, Values: []string{"f", "v"}}).Result()
			if err != nil {
				return "", err
			}
			all, err := c.XRange(redial.WaitFor(context.Background(), time.Minute), key, id, id).Result()
			return fmt.Sprint(len(all)), err
		},
		func(ctx context.Context, c redis.UniversalClient, key string) (int64, error) {
			return c.XLen(ctx, key).Result()
		},
	},
	"SPOP": {
		func(ctx context.Context, c redis.UniversalClient, key string) (string, error) {
			return c.SPop(ctx, key).Result()
		},
		func(ctx context.Context, c redis.UniversalClient, key string) (int64, error) {
			n, err := c.SCard(ctx, key).Result()
			return 2 - n, err
		},
	},
	"pipeline": {
		func(ctx context.Context, c redis.UniversalClient, key string) (string, error) {
			return incrThrice(ctx, c.Pipelined, key)
		},
		third,
	},
	"transaction": {
		func(ctx context.Context, c redis.UniversalClient, key string) (string, error) {
			return incrThrice(ctx, c.TxPipelined, key)
		},
		third,
	},
}

// incrThrice increments a counter three times, which is one run if the replies are 1, 2 and 3.
func incrThrice(ctx context.Context, exec func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error), key string) (string, error) {
	cmds, err := exec(ctx, func(p redis.Pipeliner) error {
		for range 3 {
			p.Incr(ctx, key)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	for i, cmd := range cmds {
		if n := cmd.(*redis.IntCmd).Val(); n != int64(i)+1 {
			return fmt.Sprint(i, ":", n), nil
		}
	}
	return "1", nil
}

func third(ctx context.Context, c redis.UniversalClient, key string) (int64, error) {
	n, err := c.Get(ctx, key).Int64()
	if n%3 != 0 {
		return -n, err
	}
	return n / 3, err
}

// Replies are cut, and every command with an id runs once and returns the reply of its run.
func TestOnce_RepliesAreCut(t *testing.T) {
	const goroutines, cuts = 20, 200
	for name, work := range onceWorks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := redialtest.StartServer(t)
			p := redialtest.NewProxy(t, s.Addr())
			p.Match(strings.ToLower(name))
			if name == "pipeline" || name == "transaction" {
				p.Match("incr")
			}
			c := testkit.Connect(t, &redis.Options{Addr: p.Addr(), PoolSize: goroutines}, redial.WithGrace(30*time.Second))
			for g := range goroutines {
				for i := range 2 * cuts / goroutines {
					if name == "SPOP" {
						s.Do("SADD", fmt.Sprintf("%s:%d:%d", name, g, i), "1", "2")
					}
				}
			}
			p.CutAfterRequest(cuts)
			var wg sync.WaitGroup
			var done atomic.Int64
			var mu sync.Mutex
			popped := make(map[string]string)
			for g := range goroutines {
				wg.Go(func() {
					for i := range 2 * cuts / goroutines {
						key := fmt.Sprintf("%s:%d:%d", name, g, i)
						reply, err := work.do(redial.Once(t.Context(), key), c, key)
						if assert.NoError(t, err) && (name == "SPOP" || assert.Equal(t, "1", reply, key)) {
							done.Add(1)
						}
						mu.Lock()
						popped[key] = reply
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			assert.Zero(t, p.CutAfterRequest(0), "cuts that were not made")
			assert.EqualValues(t, 2*cuts, done.Load())
			bare := redis.NewClient(&redis.Options{Addr: s.Addr()})
			defer bare.Close()
			for g := range goroutines {
				for i := range 2 * cuts / goroutines {
					key := fmt.Sprintf("%s:%d:%d", name, g, i)
					n, err := work.runs(t.Context(), bare, key)
					require.NoError(t, err)
					require.EqualValues(t, 1, n, "runs of %s", key)
					if name == "SPOP" { // what is left is not what was returned
						require.Zero(t, s.Do("SISMEMBER", key, popped[key]), key)
					}
				}
			}
			st := c.Stats()
			t.Logf("%d commands, %d sent again, %d unknown", done.Load(), st.Retries, st.Unknown)
			assert.Zero(t, st.Unknown)
			assert.GreaterOrEqual(t, st.Retries, uint64(cuts))
		})
	}
}

// The caller comes back with the id, from another client: nothing runs, and the reply is that of the first run.
func TestOnce_CallerComesBack(t *testing.T) {
	s := redialtest.StartServer(t)
	opt := &redis.Options{Addr: s.Addr()}
	c := testkit.Connect(t, opt)
	ctx := redial.Once(t.Context(), "order-4711")
	require.EqualValues(t, 1, c.Incr(ctx, "orders").Val())
	require.EqualValues(t, 2, c.Incr(t.Context(), "orders").Val())
	other := testkit.Connect(t, opt)
	require.EqualValues(t, 1, other.Incr(ctx, "orders").Val())
	require.Equal(t, "2", c.Get(t.Context(), "orders").Val())
	assert.Equal(t, []string{"redial:once:order-4711"}, c.Keys(t.Context(), "redial:once:*").Val())
	ttl := c.PTTL(t.Context(), "redial:once:order-4711").Val()
	assert.Greater(t, ttl, redial.DefaultOnceTTL-time.Minute)
	assert.LessOrEqual(t, ttl, redial.DefaultOnceTTL)
}

func TestOnce_Mismatch(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	ctx := redial.Once(t.Context(), "id")
	require.NoError(t, c.IncrBy(ctx, "n", 5).Err())
	for name, err := range map[string]error{
		"another command":  c.DecrBy(ctx, "n", 5).Err(),
		"another key":      c.IncrBy(ctx, "m", 5).Err(),
		"another argument": c.IncrBy(ctx, "n", 6).Err(),
	} {
		assert.ErrorIs(t, err, redial.ErrOnceMismatch, name)
		assert.True(t, redial.SafeToRetry(err), name)
	}
	require.NoError(t, c.IncrBy(ctx, "n", 5).Err())
	assert.Equal(t, "5", c.Get(t.Context(), "n").Val())

	// What counts of an argument is what is sent.
	five := int64(5)
	for _, arg := range []any{5, "5", []byte("5"), uint8(5), 5.0, float32(5), &five, time.Duration(5)} {
		require.NoError(t, c.Do(ctx, "incrby", []byte("n"), arg).Err(), "%T", arg)
	}
	require.NoError(t, c.Do(ctx, "IncrBY", "n", 5).Err(), "servers do not tell names by their case")

	// Of a pipeline it is the position as well, of a transaction all of it.
	unit := redial.Once(t.Context(), "unit")
	incr := func(keys ...string) error {
		_, err := c.TxPipelined(unit, func(p redis.Pipeliner) error {
			for _, key := range keys {
				p.Incr(unit, key)
			}
			return nil
		})
		return err
	}
	require.NoError(t, incr("a", "b"))
	for _, keys := range [][]string{{"a", "b", "c"}, {"a"}, {"b", "a"}, {"c", "a", "b"}} {
		assert.ErrorIs(t, incr(keys...), redial.ErrOnceMismatch, keys)
	}
	require.NoError(t, incr("a", "b"))
	assert.Equal(t, []any{"1", "1", nil}, c.MGet(t.Context(), "a", "b", "c").Val())

	// Something else is stored under the name.
	require.NoError(t, c.RPush(t.Context(), "redial:once:taken", "x").Err())
	assert.ErrorIs(t, c.Incr(redial.Once(t.Context(), "taken"), "n").Err(), redial.ErrOnceMismatch)
}

// An error reply means that nothing ran and is not recorded, but in a transaction.
func TestOnce_ErrorReplies(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	ctx := redial.Once(t.Context(), "id")
	require.NoError(t, c.Set(t.Context(), "n", "text", 0).Err())
	require.EqualError(t, c.Incr(ctx, "n").Err(), "ERR value is not an integer or out of range")
	require.NoError(t, c.Set(t.Context(), "n", "5", 0).Err())
	require.EqualValues(t, 6, c.Incr(ctx, "n").Val())

	unit := redial.Once(t.Context(), "unit")
	tx := func() ([]redis.Cmder, error) {
		return c.TxPipelined(unit, func(p redis.Pipeliner) error {
			p.Incr(unit, "m")
			p.LPush(unit, "m", "x")
			return nil
		})
	}
	for range 2 {
		cmds, err := tx()
		require.ErrorContains(t, err, "WRONGTYPE")
		require.EqualValues(t, 1, cmds[0].(*redis.IntCmd).Val())
		require.NoError(t, c.Del(t.Context(), "other").Err())
	}
	require.NoError(t, c.Del(t.Context(), "m").Err())
	_, err := tx()
	require.ErrorContains(t, err, "WRONGTYPE", "the unit is what it was")
	require.Zero(t, c.Exists(t.Context(), "m").Val())

	// What the server would not even queue is refused in its turn.
	queued := redial.Once(t.Context(), "queued")
	cmds, err := c.TxPipelined(queued, func(p redis.Pipeliner) error {
		p.Incr(queued, "m")
		p.HSet(queued, "h")
		p.Incr(queued, "m")
		return nil
	})
	require.EqualError(t, err, "ERR wrong number of arguments for 'hset' command")
	require.EqualValues(t, 1, cmds[0].(*redis.IntCmd).Val())
	require.EqualValues(t, 2, cmds[2].(*redis.IntCmd).Val())
}

func TestOnce_Expires(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()}, redial.WithOnceTTL(time.Second))
	ctx := redial.Once(t.Context(), "id")
	require.EqualValues(t, 1, c.Incr(ctx, "n").Val())
	require.EqualValues(t, 1, c.Incr(ctx, "n").Val())
	require.Eventually(t, func() bool { return c.Exists(t.Context(), "redial:once:id").Val() == 0 }, 5*time.Second, 10*time.Millisecond)
	require.EqualValues(t, 2, c.Incr(ctx, "n").Val())
}

// A call does not go on for longer than its record is sure to live.
func TestOnce_CallOutlivesRecord_IsUnknown(t *testing.T) {
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	c := testkit.Connect(t, &redis.Options{Addr: p.Addr()}, redial.WithOnceTTL(time.Second), redial.WithGrace(time.Minute))
	require.EqualValues(t, 1, c.Incr(redial.Once(t.Context(), "the server gets the script"), "m").Val())
	p.Match("incr")
	p.CutAfterRequest(1_000_000)
	began := time.Now()
	err := c.Incr(redial.Once(t.Context(), "id"), "n").Err()
	require.ErrorIs(t, err, redial.ErrOutcomeUnknown)
	assert.Less(t, time.Since(began), 10*time.Second)
	assert.GreaterOrEqual(t, time.Since(began), 500*time.Millisecond)
	p.Match("")
	p.CutAfterRequest(0)
	bare := redis.NewClient(&redis.Options{Addr: s.Addr()})
	defer bare.Close()
	assert.Equal(t, "1", bare.Get(t.Context(), "n").Val())
}

// NoRetry and the end of patience are heeded.
func TestOnce_NoRetry(t *testing.T) {
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	c := testkit.Connect(t, &redis.Options{Addr: p.Addr()})
	p.Match("incr")
	p.CutAfterRequest(1)
	ctx := redial.Once(t.Context(), "id")
	require.ErrorIs(t, c.Incr(redial.NoRetry(ctx), "n").Err(), redial.ErrOutcomeUnknown)
	require.EqualValues(t, 1, c.Incr(ctx, "n").Val())
	assert.Equal(t, "1", c.Get(t.Context(), "n").Val())
}

func TestOnce_Refused(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	before := s.Do("INFO", "commandstats")
	ctx := redial.Once(t.Context(), "id")
	many := make([]any, 8000)
	for i := range many {
		many[i] = i
	}
	for name, cmd := range map[string]redis.Cmder{
		"blpop: it waits":                  c.BLPop(ctx, time.Second, "q"),
		"xread: it waits":                  c.XRead(ctx, &redis.XReadArgs{Streams: []string{"s", "$"}}),
		"eval: it is a script":             c.Eval(ctx, "return 1", nil),
		"publish: it is about Pub/Sub":     c.Publish(ctx, "c", "m"),
		"ping: it is about the connection": c.Ping(ctx),
		"dbsize: it is about the server":   c.DBSize(ctx),
		"json.set: it is a command of a":   c.JSONSet(ctx, "k", "$", "1"),
		"nosuch: where its keys are":       c.Do(ctx, "nosuch", "x"),
		"rpush: it has 8002 arguments":     c.RPush(ctx, "l", many...),
		"set: its reply is not decoded":    c.DoRaw(ctx, "set", "k", "v"),
		"incr: the id is empty":            c.Incr(redial.Once(ctx, ""), "n"),
		"incr: the id has 513 bytes":       c.Incr(redial.Once(ctx, strings.Repeat("x", 513)), "n"),
	} {
		err := cmd.Err()
		assert.ErrorIs(t, err, redial.ErrOnceUnsupported, name)
		assert.ErrorContains(t, err, name)
		assert.True(t, redial.SafeToRetry(err), name)
	}
	cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Incr(ctx, "n")
		p.BLPop(ctx, time.Second, "q")
		return nil
	})
	assert.ErrorIs(t, err, redial.ErrOnceUnsupported)
	for _, cmd := range cmds {
		assert.ErrorIs(t, cmd.Err(), redial.ErrOnceUnsupported)
		assert.ErrorContains(t, cmd.Err(), "blpop")
	}
	called := false
	err = c.Watch(ctx, func(*redis.Tx) error { called = true; return nil }, "n")
	assert.ErrorIs(t, err, redial.ErrOnceUnsupported)
	assert.ErrorContains(t, err, "watch")
	assert.False(t, called)
	for _, word := range []string{"cmdstat_eval", "cmdstat_incr", "cmdstat_rpush", "cmdstat_set", "cmdstat_publish"} {
		assert.NotContains(t, s.Do("INFO", "commandstats"), word, "%v", before)
	}
}

// The server loses its scripts, between commands and in the middle of a pipeline.
func TestOnce_ScriptIsFlushed(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	for i, exec := range []func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){c.Pipelined, c.TxPipelined} {
		for round := range 2 {
			s.Do("SCRIPT", "FLUSH")
			id := fmt.Sprint("id ", i, round)
			reply, err := incrThrice(redial.Once(t.Context(), id), exec, fmt.Sprint("n", i, round))
			require.NoError(t, err)
			require.Equal(t, "1", reply)
			s.Do("SCRIPT", "FLUSH")
			reply, err = incrThrice(redial.Once(t.Context(), id), exec, fmt.Sprint("n", i, round))
			require.NoError(t, err)
			require.Equal(t, "1", reply)
		}
	}
	s.Do("SCRIPT", "FLUSH")
	require.EqualValues(t, 1, c.Incr(redial.Once(t.Context(), "single"), "n").Val())
	s.Do("SCRIPT", "FLUSH")
	cmds, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Set(t.Context(), "plain", 1, 0)
		p.Incr(redial.Once(t.Context(), "own"), "n")
		p.Incr(t.Context(), "plain")
		p.Incr(redial.Once(t.Context(), "single"), "n")
		return nil
	})
	require.NoError(t, err)
	assert.EqualValues(t, 2, cmds[1].(*redis.IntCmd).Val())
	assert.EqualValues(t, 2, cmds[2].(*redis.IntCmd).Val())
	assert.EqualValues(t, 1, cmds[3].(*redis.IntCmd).Val())
}

// The server loses the script whenever a pipeline has brought it. Each command runs once all the
// same, and has the reply of its run.
func TestOnce_ScriptIsLostAgainAndAgain(t *testing.T) {
	const many = 30
	f := redialtest.NewFakeServer(t)
	var mu sync.Mutex
	runs := make(map[string]int)
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		switch strings.ToLower(args[0]) {
		case "evalsha":
			return redialtest.Reply("-NOSCRIPT No matching script.\r\n")
		case "eval":
			mu.Lock()
			defer mu.Unlock()
			runs[args[3]]++
			return redialtest.Reply(":" + strings.TrimPrefix(args[3], "key ") + "\r\n")
		}
		return redialtest.Handle
	})
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr()})
	ap, err := c.AsyncAutoPipelineWithOptions(&redis.AutoPipelineOptions{})
	require.NoError(t, err)
	for name, exec := range map[string]func(ctx context.Context, id string) ([]redis.Cmder, error){
		"pipeline": func(ctx context.Context, id string) ([]redis.Cmder, error) {
			return c.Pipelined(redial.Once(ctx, id), incrEach(ctx, "key ", many))
		},
		"ids of their own": func(ctx context.Context, id string) ([]redis.Cmder, error) {
			return c.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i := range many {
					p.Incr(redial.Once(ctx, fmt.Sprint(id, i)), fmt.Sprint("key ", i))
				}
				return nil
			})
		},
		"auto-pipeline": func(ctx context.Context, id string) (cmds []redis.Cmder, err error) {
			for i := range many {
				cmds = append(cmds, ap.Incr(redial.Once(ctx, fmt.Sprint(id, i)), fmt.Sprint("key ", i)))
			}
			for _, cmd := range cmds {
				err = errors.Join(err, cmd.Err())
			}
			return cmds, err
		},
	} {
		clear(runs)
		cmds, err := exec(t.Context(), name)
		require.NoError(t, err, name)
		for i, cmd := range cmds {
			assert.EqualValues(t, i, cmd.(*redis.IntCmd).Val(), "%s: %d", name, i)
			assert.Equal(t, 1, runs[fmt.Sprint("key ", i)], "%s: %d", name, i)
		}
		require.Len(t, runs, many, name)
	}
}

// incrEach increments as many counters.
func incrEach(ctx context.Context, prefix string, many int) func(redis.Pipeliner) error {
	return func(p redis.Pipeliner) error {
		for i := range many {
			p.Incr(ctx, fmt.Sprint(prefix, i))
		}
		return nil
	}
}

// Servers lose their scripts all the time, also amid long pipelines.
func TestOnce_ScriptIsFlushedAmidPipelines(t *testing.T) {
	t.Parallel()
	const many = 400
	s, other, cluster := redialtest.StartServer(t), redialtest.StartServer(t), redialtest.StartCluster(t, 2, 0)
	ring := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.Addr(), "b": other.Addr()}})
	t.Cleanup(func() { _ = ring.Close() })
	testkit.WaitReady(t, ring)
	servers := append([]*redialtest.Server{s, other}, cluster.Nodes...)
	var flushing sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() { stop(); flushing.Wait() })
	for _, s := range servers {
		flushing.Go(func() {
			c := redis.NewClient(&redis.Options{Addr: s.Addr()})
			defer c.Close()
			for ctx.Err() == nil {
				c.ScriptFlush(context.Background())
			}
		})
	}
	client := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	ap, err := client.AsyncAutoPipeline()
	require.NoError(t, err)
	for kind, c := range map[string]redis.UniversalClient{"client": client, "cluster": testkit.NewCluster(t, cluster), "ring": ring} {
		for name, exec := range map[string]func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){
			"pipeline": c.Pipelined, "transaction": c.TxPipelined, "auto-pipeline": nil,
		} {
			for round := range 2 {
				prefix := fmt.Sprint(kind, name, round, ":")
				if name == "transaction" {
					prefix = "{" + prefix + "}" // of one slot
				}
				var cmds []redis.Cmder
				switch {
				case exec != nil:
					cmds, err = exec(redial.Once(t.Context(), prefix), incrEach(t.Context(), prefix, many))
				case kind != "client":
					continue // a ring has none, and that of a cluster takes no ids
				default:
					for i := range many {
						id := fmt.Sprint(prefix, i)
						cmds = append(cmds, ap.Incr(redial.Once(t.Context(), id), id))
					}
				}
				require.NoError(t, err, prefix)
				require.Len(t, cmds, many)
				for i, cmd := range cmds {
					require.NoError(t, cmd.Err(), "%s: %d", prefix, i)
					require.EqualValues(t, 1, cmd.(*redis.IntCmd).Val(), "%s: %d", prefix, i)
				}
				is, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
					for i := range many {
						p.Get(t.Context(), fmt.Sprint(prefix, i))
					}
					return nil
				})
				require.NoError(t, err, prefix)
				for i, cmd := range is {
					require.Equal(t, "1", cmd.(*redis.StringCmd).Val(), "%s: %d", prefix, i)
				}
			}
		}
	}
	var said []any
	for _, s := range servers {
		said = append(said, s.Do("INFO", "errorstats"))
	}
	require.Contains(t, fmt.Sprint(said...), "errorstat_NOSCRIPT", "no pipeline was hit")
}

// An account that may not do what an id takes is told so, and nothing runs.
func TestOnce_Account(t *testing.T) {
	s := redialtest.StartServer(t)
	for name, rules := range map[string]string{
		"no scripts":  "+@all -@scripting ~*",
		"no records":  "+@all ~n",
		"no set":      "+@all -set ~*",
		"no such":     "+@all -incr ~*",
		"all that is": "+@all ~n ~redial:once:*",
	} {
		args := []any{"ACL", "SETUSER", "u" + strings.ReplaceAll(name, " ", ""), "reset", "on", ">p"}
		for w := range strings.FieldsSeq(rules) {
			args = append(args, w)
		}
		require.Equal(t, "OK", s.Do(args...))
		c := testkit.Connect(t, &redis.Options{Addr: s.Addr(), Username: "u" + strings.ReplaceAll(name, " ", ""), Password: "p"})
		s.Do("DEL", "n")
		ctx := redial.Once(t.Context(), name)
		err := c.Incr(ctx, "n").Err()
		tx := "tx " + name
		_, txErr := c.TxPipelined(redial.Once(t.Context(), tx), func(p redis.Pipeliner) error { p.Incr(t.Context(), "n"); return nil })
		if name == "all that is" {
			assert.NoError(t, err)
			assert.NoError(t, txErr)
			continue
		}
		assert.ErrorIs(t, err, redial.ErrOnceUnsupported, name)
		assert.ErrorContains(t, err, "the account must be allowed EVAL", name)
		assert.True(t, redial.SafeToRetry(err), name)
		assert.ErrorIs(t, txErr, redial.ErrOnceUnsupported, name)
		assert.EqualValues(t, 0, s.Do("EXISTS", "n"), name)
		if name == "no such" { // a transaction that was refused in its turn stays so; with another id it runs
			s.Do("ACL", "SETUSER", "unosuch", "+incr")
			for id, runs := range map[string]bool{tx: false, "another": true} {
				_, err := c.TxPipelined(redial.Once(t.Context(), id), func(p redis.Pipeliner) error { p.Incr(t.Context(), "n"); return nil })
				assert.Equal(t, runs, err == nil, "%s: %v", id, err)
			}
			assert.Equal(t, "1", s.Do("GET", "n"))
		}
	}
}

// For EVAL an account must be allowed to read and write every key, also what the command by itself only does one of.
func TestOnce_AccountThatOnlyReads(t *testing.T) {
	s := redialtest.StartServer(t)
	s.Do("SET", "from", "v")
	s.Do("ACL", "SETUSER", "u", "on", "nopass", "+@all", "%R~from", "%W~to", "~redial:once:*")
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr(), Username: "u", Password: "p"})
	for _, line := range []string{"GET from", "SET to v", "COPY from to"} {
		err := c.Do(redial.Once(t.Context(), line), split(line)...).Err()
		assert.ErrorIs(t, err, redial.ErrOnceUnsupported, line)
		assert.ErrorContains(t, err, "to read and to write all of its keys", line)
		assert.True(t, redial.SafeToRetry(err), line)
		assert.Equal(t, int64(0), s.Do("EXISTS", "to"), line)
		require.NoError(t, c.Do(t.Context(), split(line)...).Err(), line)
		s.Do("DEL", "to")
	}
}

// What cannot be written is refused before anything runs, in the server's words.
func TestOnce_MemoryIsFull(t *testing.T) {
	s := redialtest.StartServer(t, "--maxmemory-policy", "noeviction")
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	require.NoError(t, c.SAdd(t.Context(), "s", "x").Err())
	s.Do("CONFIG", "SET", "maxmemory", "1")
	err := c.SPop(redial.Once(t.Context(), "id"), "s").Err()
	require.EqualError(t, err, "OOM command not allowed when used memory > 'maxmemory'.")
	s.Do("CONFIG", "SET", "maxmemory", "0")
	require.Equal(t, "x", c.SPop(redial.Once(t.Context(), "id"), "s").Val())
}

// Hooks see the caller's command, on every attempt.
func TestOnce_HooksSeeTheCommand(t *testing.T) {
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	c := testkit.Connect(t, &redis.Options{Addr: p.Addr()})
	var mu sync.Mutex
	var seen []string
	c.AddHook(onceSpy{func(cmd redis.Cmder) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprintf("%T %v", cmd, cmd.Args()))
	}})
	p.Match("incr")
	p.CutAfterRequest(1)
	ctx := redial.Once(t.Context(), "id")
	require.EqualValues(t, 1, c.Incr(ctx, "n").Val())
	p.CutAfterRequest(1)
	require.NoError(t, func() error {
		_, err := c.Pipelined(redial.Once(t.Context(), "batch"), func(p redis.Pipeliner) error { p.Incr(t.Context(), "m"); return nil })
		return err
	}())
	mu.Lock()
	defer mu.Unlock()
	assert.Equal(t, []string{"*redis.IntCmd [incr n]", "*redis.IntCmd [incr n]", "*redis.IntCmd [incr m]", "*redis.IntCmd [incr m]"},
		slices.DeleteFunc(seen, func(s string) bool { return !strings.Contains(s, "incr") }))
}

type onceSpy struct{ see func(redis.Cmder) }

func (onceSpy) DialHook(next redis.DialHook) redis.DialHook { return next }
func (o onceSpy) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { o.see(cmd); return next(ctx, cmd) }
}
func (o onceSpy) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			o.see(cmd)
		}
		return next(ctx, cmds)
	}
}

// A hook that hides the context, or sends another command, is found out before anything runs; what it sends besides is
// none of the caller's.
func TestOnce_HooksThatMeddle(t *testing.T) {
	s := redialtest.StartServer(t)
	opt := &redis.Options{Addr: s.Addr()}
	ctx := redial.Once(t.Context(), "id")

	c := testkit.Connect(t, opt)
	c.AddHook(hookFunc(func(_ context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		return next(context.Background(), cmd)
	}))
	assert.ErrorIs(t, c.Incr(ctx, "n").Err(), redial.ErrOnceUnsupported)

	c = testkit.Connect(t, opt)
	c.AddHook(hookFunc(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		if cmd.Name() != "incr" {
			return next(ctx, cmd)
		}
		return next(ctx, redis.NewIntCmd(ctx, "incr", "other"))
	}))
	assert.ErrorIs(t, c.Incr(ctx, "n").Err(), redial.ErrOnceUnsupported)

	c = testkit.Connect(t, opt)
	c.AddHook(hookFunc(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		if cmd.Name() == "incr" {
			if err := c.Set(ctx, "side", "x", 0).Err(); err != nil {
				return err
			}
		}
		return next(ctx, cmd)
	}))
	require.EqualValues(t, 1, c.Incr(ctx, "n").Val())
	assert.Equal(t, []any{"1", "x", nil}, c.MGet(t.Context(), "n", "side", "other").Val())
}

type hookFunc func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error

func (hookFunc) DialHook(next redis.DialHook) redis.DialHook { return next }
func (f hookFunc) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return f(ctx, cmd, next) }
}
func (hookFunc) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// Every way to send has ids: Conn, Tx, clones, auto-pipelines of both faces, supervised clients.
func TestOnce_Ways(t *testing.T) {
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	p.Match("incr")
	opt := &redis.Options{Addr: p.Addr()}
	ours := testkit.Connect(t, opt, redial.WithGrace(20*time.Second))
	theirs := redis.NewClient(opt)
	sup, err := redial.Supervise(theirs, redial.WithGrace(20*time.Second))
	require.NoError(t, err)
	t.Cleanup(func() { _ = theirs.Close(); _ = sup.Close() })
	for kind, c := range map[string]*redis.Client{"ours": ours.Client, "supervised": theirs} {
		blocking, err := c.AutoPipelineWithOptions(&redis.AutoPipelineOptions{})
		require.NoError(t, err)
		deferred, err := c.AsyncAutoPipelineWithOptions(&redis.AutoPipelineOptions{})
		require.NoError(t, err)
		for name, incr := range map[string]func(ctx context.Context, key string) (int64, error){
			"client": func(ctx context.Context, key string) (int64, error) { return c.Incr(ctx, key).Result() },
			"clone": func(ctx context.Context, key string) (int64, error) {
				return ours.WithTimeout(time.Second).Incr(ctx, key).Result()
			},
			"blocking": func(ctx context.Context, key string) (int64, error) { return blocking.Incr(ctx, key).Result() },
			"deferred": func(ctx context.Context, key string) (int64, error) { return deferred.Incr(ctx, key).Result() },
			"several": func(ctx context.Context, key string) (int64, error) {
				var others []*redis.IntCmd
				for i := range 20 {
					others = append(others, deferred.IncrBy(redial.Once(ctx, fmt.Sprint(key, "of", i)), "decoy "+key, 1))
				}
				n, err := deferred.Incr(ctx, key).Result()
				for _, cmd := range others {
					err = errors.Join(err, cmd.Err())
				}
				return n, err
			},
		} {
			t.Run(kind+" "+name, func(t *testing.T) {
				for i := range 3 {
					key := fmt.Sprint(kind, name, i)
					if p.CutAfterRequest(i); i == 0 && kind == "supervised" {
						p.CutAfterRequest(0)
					}
					n, err := incr(redial.Once(t.Context(), key), key)
					require.NoError(t, err)
					require.EqualValues(t, 1, n)
					p.CutAfterRequest(0)
					n, err = incr(redial.Once(t.Context(), key), key)
					require.NoError(t, err)
					require.EqualValues(t, 1, n)
					require.Equal(t, "1", s.Do("GET", key))
				}
			})
		}
	}
	// A connection that is held breaks with the reply. The caller comes back.
	for name, run := range map[string]func(ctx context.Context, key string) error{
		"Conn": func(ctx context.Context, key string) error {
			cn := ours.Conn()
			defer cn.Close()
			return cn.Incr(ctx, key).Err()
		},
		"Tx": func(ctx context.Context, key string) error {
			return ours.Watch(t.Context(), func(tx *redis.Tx) error {
				_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, key); return nil })
				return err
			}, "watched")
		},
	} {
		ctx := redial.Once(t.Context(), name)
		p.CutAfterRequest(1)
		require.ErrorIs(t, run(ctx, name), redial.ErrOutcomeUnknown, name)
		require.NoError(t, run(ctx, name), name)
		require.Equal(t, "1", s.Do("GET", name), name)
	}
}

// A full-duplex auto-pipeline has written before anybody is asked, and it is said.
func TestOnce_FullDuplex(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	ap, err := c.AsyncAutoPipelineWithOptions(&redis.AutoPipelineOptions{FullDuplex: true})
	require.NoError(t, err)
	err = ap.Incr(redial.Once(t.Context(), "id"), "n").Err()
	require.ErrorIs(t, err, redial.ErrOnceUnsupported)
	require.ErrorIs(t, err, redial.ErrOutcomeUnknown)
	require.False(t, redial.SafeToRetry(err))
	_, err = ap.Pipelined(redial.Once(t.Context(), "batch"), func(p redis.Pipeliner) error { p.Incr(t.Context(), "m"); return nil })
	require.NoError(t, err)
}
