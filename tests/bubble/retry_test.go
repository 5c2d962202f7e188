package bubble

import (
	"context"
	"errors"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/testkit/memnet"
	"github.com/redial-go/redial/internal/testkit/pools"
	"github.com/redial-go/redial/redialtest"
)

func TestRetry_ReplyLost(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct {
		name string
		ctx  context.Context
		with []redial.Option
		cmd  string
		do   func(context.Context, *redial.Client) error
		sent int
		want error
	}{
		{"read", ctx, nil, "get", func(ctx context.Context, c *redial.Client) error { return c.Get(ctx, "k").Err() }, 2, redis.Nil},
		{"write", ctx, nil, "incr", func(ctx context.Context, c *redial.Client) error { return c.Incr(ctx, "n").Err() }, 1, redial.ErrOutcomeUnknown},
		{"declared idempotent", redial.Idempotent(ctx), nil, "set", func(ctx context.Context, c *redial.Client) error { return c.Set(ctx, "k", 1, 0).Err() }, 2, nil},
		{"never", ctx, []redial.Option{redial.WithRetry(redial.RetryNever)}, "get", func(ctx context.Context, c *redial.Client) error { return c.Get(ctx, "k").Err() }, 1, redial.ErrOutcomeUnknown},
		{"own policy", ctx, []redial.Option{redial.WithRetry(func(cmd redis.Cmder) bool { return cmd.Name() == "incr" })}, "incr",
			func(ctx context.Context, c *redial.Client) error { return c.Incr(ctx, "n").Err() }, 2, nil},
		{"blocking pop, never", redial.Idempotent(ctx), nil, "blpop", func(ctx context.Context, c *redial.Client) error { return c.BLPop(ctx, time.Second, "q").Err() }, 1, redial.ErrOutcomeUnknown},
		{"unknown command", ctx, nil, "module.do", func(ctx context.Context, c *redial.Client) error { return c.Do(ctx, "module.do").Err() }, 1, redial.ErrOutcomeUnknown},
		{"pipeline of reads", ctx, nil, "get", func(ctx context.Context, c *redial.Client) error {
			_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.TTL(ctx, "k"); return nil })
			return err
		}, 2, redis.Nil},
		{"pipeline with a write", ctx, nil, "get", func(ctx context.Context, c *redial.Client) error {
			_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.Incr(ctx, "n"); return nil })
			return err
		}, 1, redial.ErrOutcomeUnknown},
		{"transaction", ctx, nil, "exec", func(ctx context.Context, c *redial.Client) error {
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
			return err
		}, 1, redial.ErrOutcomeUnknown},
		{"transaction of reads", ctx, nil, "exec", func(ctx context.Context, c *redial.Client) error {
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Exists(ctx, "n"); return nil })
			return err
		}, 2, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				c, f := faulty(t, n, opt, tc.with...)
				f.Times(tc.cmd, 1, memnet.HangUp)
				err := tc.do(tc.ctx, c)
				assert.ErrorIs(t, err, tc.want)
				assert.Equal(t, tc.sent, f.Count(tc.cmd))
				assert.Equal(t, redial.StateConnected, c.State(), "one broken connection is not an outage")
				var e *redial.Error
				if errors.As(err, &e) {
					assert.Equal(t, 1, e.Attempts)
					assert.False(t, errors.Is(err, redial.ErrUnavailable))
					assert.NotEmpty(t, e.Cmd)
				}
			})
		})
	}
}

// Half of a pipeline was answered: those commands keep their answers and are not
// sent again.
func TestPipeline_AnsweredCommandsAreNotSentAgain(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c, f := faulty(t, n, opt)
		ctx := t.Context()
		f.Times("get", 1, memnet.HangUp)
		var incr *redis.IntCmd
		var get *redis.StringCmd
		_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
			incr = p.Incr(ctx, "n")
			get = p.Get(ctx, "n")
			return nil
		})
		require.NoError(t, err)
		assert.EqualValues(t, 1, incr.Val())
		assert.Equal(t, "1", get.Val())
		assert.Equal(t, 1, f.Count("incr"))
		assert.Equal(t, 2, f.Count("get"))

		f.Times("lpush", 1, memnet.HangUp)
		var lpush *redis.IntCmd
		_, err = c.Pipelined(ctx, func(p redis.Pipeliner) error {
			incr = p.Incr(ctx, "n")
			lpush = p.LPush(ctx, "l", "x")
			return nil
		})
		assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
		assert.NoError(t, incr.Err())
		assert.EqualValues(t, 2, incr.Val())
		assert.ErrorIs(t, lpush.Err(), redial.ErrOutcomeUnknown)
		assert.Equal(t, 2, f.Count("incr"))
		assert.Equal(t, 1, f.Count("lpush"))
	})
}

// What is refused is not sent once more, to a server that is far away, when its deadline would
// pass on the way: then nobody would know what became of it.
func TestRetry_RefusedUntilItsDeadline(t *testing.T) {
	for name, build := range map[string]func(opt *redis.Options) redial.UniversalClient{
		"Client": func(opt *redis.Options) redial.UniversalClient { return redial.NewClient(opt) },
		"Ring":   func(opt *redis.Options) redial.UniversalClient { return redial.NewRing(ringOptions(opt)) },
	} {
		t.Run(name, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				const away = 8 * time.Millisecond
				memnet.Inject(n)
				n.Redis.Server().SetPreHook(func(p *server.Peer, cmd string, _ ...string) bool {
					time.Sleep(away)
					if cmd == "APPEND" {
						p.WriteError("READONLY You can't write against a read only replica.")
					}
					return cmd == "APPEND"
				})
				c := build(opt)
				defer c.Close()
				memnet.Ready(t, c)
				require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
				time.Sleep(10 * time.Second)
				require.InDelta(t, away, c.Stats().RTT, float64(time.Millisecond))
				for _, timeout := range []time.Duration{60 * time.Millisecond, 200 * time.Millisecond, 3 * time.Second} {
					for range 200 {
						ctx, cancel := context.WithTimeout(t.Context(), timeout)
						err := c.Append(ctx, "k", "v").Err()
						cancel()
						assert.ErrorContains(t, err, "READONLY")
						assert.NotErrorIs(t, err, redial.ErrOutcomeUnknown)
					}
				}
				assert.Zero(t, c.Stats().Unknown)
			})
		})
	}
}

// A command was refused in the middle of a pipeline: it is sent again with all that
// follow it, unless one of those has been executed and must not be again.
func TestPipeline_RefusedInTheMiddle(t *testing.T) {
	const readonly = "READONLY You can't write against a read only replica."
	for _, tc := range []struct {
		name     string
		commands string
		want     error
		sent     map[string]int
	}{
		{"behind a read", "get set", nil, map[string]int{"get": 1, "set": 2}},
		{"before a read", "set get", nil, map[string]int{"set": 2, "get": 2}},
		{"between reads", "get set get", nil, map[string]int{"get": 3, "set": 2}},
		{"before a write", "set incr", redisError(readonly), map[string]int{"set": 1, "incr": 1}},
		{"before a write and a read", "set incr get", redisError(readonly), map[string]int{"set": 1, "incr": 1, "get": 1}},
		{"behind a write", "incr set get", nil, map[string]int{"incr": 1, "set": 2, "get": 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				c, f := faulty(t, n, opt)
				ctx := t.Context()
				require.NoError(t, c.Append(ctx, "k", "old").Err())
				f.Times("set", 1, memnet.Reply(readonly))
				pipe := c.Pipeline()
				var last *redis.StringCmd
				for _, name := range strings.Fields(tc.commands) {
					switch name {
					case "get":
						last = pipe.Get(ctx, "k")
					case "set":
						pipe.Set(ctx, "k", "new", 0)
					case "incr":
						pipe.Incr(ctx, "n")
					}
				}
				_, err := pipe.Exec(ctx)
				if tc.want != nil {
					assert.EqualError(t, err, tc.want.Error())
				} else {
					require.NoError(t, err)
					if strings.HasSuffix(tc.commands, "set get") {
						assert.Equal(t, "new", last.Val(), "results are those of one run in order")
					}
				}
				for name, count := range tc.sent {
					assert.Equal(t, count, f.Count(name), name)
				}
				assert.EqualValues(t, 2, c.Stats().Generation, "connections are retired in any case")
			})
		})
	}
}

// What stands behind MULTI or WATCH in a pipeline is not sent without it, in part: it would run
// at once, or unguarded, and EXEC would say that there was no MULTI.
func TestPipeline_BlockIsSentAsAWhole(t *testing.T) {
	for script, tc := range map[string]struct {
		lost, refused  string // the command before which the replies end, and that which is refused
		again, unknown string // those that are sent again, and those of which nothing is known
	}{
		"get multi incr exec":               {lost: "incr", unknown: "incr exec"},
		"set multi incr exec":               {lost: "exec", unknown: "exec"},
		"multi incr exec get":               {lost: "incr", unknown: "incr exec get"},
		"get multi incr discard":            {lost: "discard", unknown: "discard"},
		"watch get multi incr exec":         {lost: "multi", unknown: "multi incr exec"},
		"get multi set":                     {refused: "set"},
		"incr multi set exec get":           {lost: "get", again: "get"},
		"get multi incr":                    {lost: "multi", again: "multi incr"},
		"watch get unwatch multi incr exec": {lost: "multi", again: "multi incr exec"},
		"watch get incr":                    {lost: "incr", again: "incr"},
	} {
		t.Run(script, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				c, f := faulty(t, n, opt)
				ctx := redial.Idempotent(t.Context())
				f.Times(tc.lost, 1, memnet.HangUp)
				f.Times(tc.refused, 1, memnet.Reply("READONLY You can't write against a read only replica."))
				pipe := c.Pipeline()
				for name := range strings.FieldsSeq(script) {
					switch name {
					case "get", "incr", "watch":
						pipe.Do(ctx, name, "n")
					case "set":
						pipe.Do(ctx, name, "n", 1)
					default:
						pipe.Do(ctx, name)
					}
				}
				cmds, _ := pipe.Exec(ctx)
				behind := false // what the server, which has hung up, may not have read the first time
				for _, cmd := range cmds {
					name, times := cmd.Name(), 1
					assert.Equal(t, slices.Contains(strings.Fields(tc.unknown), name), errors.Is(cmd.Err(), redial.ErrOutcomeUnknown), "%s", cmd)
					if slices.Contains(strings.Fields(tc.again), name) {
						times++
					}
					if count := f.Count(name); !behind || count != times-1 {
						assert.Equal(t, times, count, name)
					}
					behind = behind || name == tc.lost
				}
			})
		})
	}
}

func TestRetry_Refusals_WaitForTheServer(t *testing.T) {
	for _, msg := range []string{
		"TRYAGAIN Multiple keys request during rehashing of slot",
		"CLUSTERDOWN The cluster is down",
		"READONLY You can't write against a read only replica.",
		"ERR READONLY You can't write against a read only replica.",
		"ERR max number of clients reached",
		"NOREPLICAS Not enough good replicas to write.",
	} {
		t.Run(msg, func(t *testing.T) {
			if strings.Contains(msg, "READONLY") {
				pools.NeedLook(t) // or an attempt on a connection that was given up may have the last word
			}
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				c, f := faulty(t, n, opt)
				f.Times("incr", 5, memnet.Reply(msg))
				require.NoError(t, c.Incr(t.Context(), "n").Err())
				assert.Equal(t, 6, f.Count("incr"))

				f.Times("incr", 1<<30, memnet.Reply(msg))
				began := time.Now()
				err := c.Incr(t.Context(), "n").Err()
				assert.EqualError(t, err, msg, "in the end the server's own words")
				assert.InDelta(t, redial.DefaultGrace, time.Since(began), float64(time.Second))

				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				began = time.Now()
				assert.EqualError(t, c.Incr(ctx, "n").Err(), msg)
				assert.LessOrEqual(t, time.Since(began), time.Second)
			})
		})
	}
}

// A transaction that was aborted because a command in it was refused is sent
// again, but not while WATCH is in play: EXEC has ended it, and a second run would
// be unguarded.
func TestTransaction_AbortedByRefusal(t *testing.T) {
	nothing := func(*redis.Tx) error { return nil }
	for before, watch := range map[string]func(ctx context.Context, c *redial.Client, n *memnet.Net) error{
		"nothing": nil,
		"a Watch": func(ctx context.Context, c *redial.Client, n *memnet.Net) error { return c.Watch(ctx, nothing, "n") },
		"a Watch of 2": func(ctx context.Context, c *redial.Client, n *memnet.Net) error {
			return c.Watch(ctx, nothing, "n", "k")
		},
		"a Watch with EXEC": func(ctx context.Context, c *redial.Client, n *memnet.Net) error {
			return c.Watch(ctx, func(tx *redis.Tx) error {
				_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "k", 1, 0); return nil })
				return err
			}, "n")
		},
		"UNWATCH in its function": func(ctx context.Context, c *redial.Client, n *memnet.Net) error {
			return c.Watch(ctx, func(tx *redis.Tx) error { return tx.Unwatch(ctx).Err() }, "n")
		},
		"a Watch whose connection breaks": func(ctx context.Context, c *redial.Client, n *memnet.Net) error {
			err := c.Watch(ctx, func(tx *redis.Tx) error { n.Cut(); return tx.Get(ctx, "n").Err() }, "n")
			if !errors.Is(err, redial.ErrUnavailable) && !errors.Is(err, redial.ErrOutcomeUnknown) {
				return err
			}
			return c.WaitReady(ctx)
		},
		"UNWATCH on a Conn": func(ctx context.Context, c *redial.Client, n *memnet.Net) error {
			cn := c.Conn()
			defer cn.Close()
			if err := cn.Do(ctx, "watch", "n").Err(); err != nil {
				return err
			}
			return cn.Do(ctx, "unwatch").Err()
		},
	} {
		t.Run(before, func(t *testing.T) { testAborted(t, watch, false) })
	}
	t.Run("inside", func(t *testing.T) { testAborted(t, nil, true) })
	t.Run("WATCH behind another command", testAbortedBehind)
}

// testAbortedBehind is about keys that a pipeline on a connection of the caller's has watched.
func testAbortedBehind(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c, f := faulty(t, n, opt)
		ctx := t.Context()
		cn := c.Conn()
		defer cn.Close()
		_, err := cn.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.Set(ctx, "k", 1, 0)
			p.Do(ctx, "watch", "n")
			return nil
		})
		require.NoError(t, err)
		f.Times("exec", 1, memnet.Reply("EXECABORT Transaction discarded because of previous errors."))
		f.Times("incr", 1, memnet.Reply("TRYAGAIN Multiple keys request during rehashing of slot"))
		_, err = cn.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
		assert.True(t, redis.IsExecAbortError(err), "%v", err)
		assert.Equal(t, 1, f.Count("exec"))
	})
}

func testAborted(t *testing.T, before func(context.Context, *redial.Client, *memnet.Net) error, watch bool) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c, f := faulty(t, n, opt)
		ctx := t.Context()
		if before != nil {
			require.NoError(t, before(ctx, c, n))
		}
		already := f.Count("exec")
		f.Times("exec", 1, func(p *server.Peer) {
			p.WriteError("EXECABORT Transaction discarded because of previous errors.")
			memnet.HangUp(p) // this server would still be inside MULTI
		})
		f.Times("incr", 1, memnet.Reply("TRYAGAIN Multiple keys request during rehashing of slot"))
		if watch {
			err := c.Watch(ctx, func(tx *redis.Tx) error {
				_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
				return err
			}, "n")
			assert.True(t, redis.IsExecAbortError(err), "%v", err)
			assert.True(t, redial.SafeToRetry(err))
			assert.Equal(t, 1, f.Count("exec")-already)
			return
		}
		_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
		require.NoError(t, err)
		assert.Equal(t, 2, f.Count("exec")-already)
	})
}

// While the server loads its dataset, commands wait; nobody dials.
func TestRetry_Loading_ShutsTheGate(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c, f := faulty(t, n, opt)
		require.NoError(t, c.Ping(t.Context()).Err())
		loading := memnet.Reply("LOADING Redis is loading the dataset in memory")
		f.Times("ping", 1<<30, loading)
		f.Times("incr", 1<<30, loading)
		dials := 0
		time.AfterFunc(2*time.Second, func() {
			dials = n.Dials()
			f.Times("ping", 0, loading)
			f.Times("incr", 0, loading)
		})
		before := n.Dials()
		began := time.Now()
		require.NoError(t, c.Incr(t.Context(), "n").Err())
		assert.InDelta(t, 2*time.Second, time.Since(began), float64(100*time.Millisecond))
		assert.EqualValues(t, 1, c.Stats().Outages)
		assert.LessOrEqual(t, dials-before, 3)
	})
}

// Subscriptions do not wait: it serves them, and who publishes.
func TestRetry_Loading_Subscriptions(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c, f := faulty(t, n, opt)
		sub := c.Subscribe(t.Context(), "news")
		defer sub.Close()
		messages := sub.Channel(redis.WithChannelHealthCheckInterval(0)) // it would wait for a mutex
		hears := func(within time.Duration) {
			t.Helper()
			began := time.Now()
			for n.Redis.Publish("news", "hello") == 0 && time.Since(began) < within {
				time.Sleep(time.Millisecond)
			}
			select {
			case <-messages:
			case <-time.After(time.Second):
				t.Error("it is deaf")
			}
		}
		hears(time.Second)
		for _, cmd := range []string{"ping", "incr"} {
			f.Times(cmd, 1<<30, memnet.Reply("LOADING Redis is loading the dataset in memory"))
		}
		n.Kill()
		time.Sleep(2 * time.Second)
		n.Start()
		hears(2 * time.Second)
		assert.ErrorIs(t, c.Incr(redial.FailFast(t.Context()), "n").Err(), redial.ErrUnavailable)
		time.Sleep(20 * time.Second)
		hears(0)
		other := c.Subscribe(t.Context(), "other")
		defer other.Close()
		_, err := other.ReceiveTimeout(t.Context(), time.Second)
		assert.NoError(t, err)
		assert.Equal(t, redial.StateReconnecting, c.State())
	})
}

// So it is when many ask, each of whom hears the same, which is no sign that it serves.
func TestRetry_Loading_ManyAsk_ShutsTheGate(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		opt.PoolSize = 100
		c := ready(t, opt, redial.WithGrace(time.Second))
		var asked atomic.Int32
		n.Redis.Server().SetPreHook(func(p *server.Peer, cmd string, _ ...string) bool {
			switch strings.ToLower(cmd) {
			case "get":
				asked.Add(1)
			case "ping":
			default:
				return false
			}
			time.Sleep(time.Millisecond)
			p.WriteRaw("-LOADING Redis is loading the dataset in memory\r\n")
			return true
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				for time.Sleep(time.Duration(i) * 100 * time.Microsecond); ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
					_ = c.Get(ctx, "k").Err()
				}
			})
		}
		time.Sleep(time.Second)
		assert.Equal(t, redial.StateReconnecting, c.State())
		before := asked.Load()
		time.Sleep(3 * time.Second)
		assert.LessOrEqual(t, asked.Load()-before, int32(100), "what waited may ask once more")
		cancel()
		wg.Wait()
	})
}

// Server replies, Nil above all, come back as they are.
func TestReplies_AreNeverWrapped(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := ready(t, opt)
		ctx := t.Context()
		assert.True(t, c.Get(ctx, "nope").Err() == redis.Nil)
		_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "nope"); return nil })
		assert.True(t, err == redis.Nil)
		require.NoError(t, c.Set(ctx, "s", "x", 0).Err())
		err = c.LPush(ctx, "s", "x").Err()
		var re redis.Error
		assert.ErrorAs(t, err, &re)
		var own *redial.Error
		assert.False(t, errors.As(err, &own))
		err = c.Watch(ctx, func(tx *redis.Tx) error {
			require.NoError(t, c.Set(ctx, "s", "y", 0).Err())
			_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "s"); return nil })
			return err
		}, "s")
		assert.True(t, err == redis.TxFailedErr)
	})
}

// When credentials were rotated the provider is asked once more, and the command
// is sent once more. If that does not help, the server's answer comes at once.
func TestCredentials_AreRenewedOnce(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		n.Redis.RequireAuth("new")
		var password atomic.Value
		password.Store("old")
		var asked atomic.Int64
		opt.CredentialsProvider = func() (string, string) {
			asked.Add(1)
			return "", password.Load().(string)
		}
		c := ready(t, opt)
		began := time.Now()
		before := asked.Load()
		err := c.Incr(t.Context(), "n").Err()
		assert.True(t, redis.IsAuthError(err), "%v", err)
		assert.True(t, redial.SafeToRetry(err))
		assert.EqualValues(t, 2, asked.Load()-before, "one more try")
		assert.Zero(t, time.Since(began))

		password.Store("new")
		require.NoError(t, c.Incr(t.Context(), "n").Err())
		_, err = c.Pipelined(t.Context(), func(p redis.Pipeliner) error { p.Incr(t.Context(), "n"); return nil })
		require.NoError(t, err)
	})
}

// The deadline of a context is kept by the socket, whatever go-redis was told.
func TestDeadline_IsKept(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		opt.ContextTimeoutEnabled = false
		c := ready(t, opt)
		require.NoError(t, c.Ping(t.Context()).Err())
		n.Silence(true)
		for _, run := range []func(context.Context) error{
			func(ctx context.Context) error { return c.Incr(ctx, "n").Err() },
			func(ctx context.Context) error { return c.Get(ctx, "n").Err() },
			func(ctx context.Context) error { return c.BLPop(ctx, 0, "q").Err() },
			func(ctx context.Context) error {
				_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
				return err
			},
			func(ctx context.Context) error {
				_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
				return err
			},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			began := time.Now()
			err := run(ctx)
			cancel()
			assert.Equal(t, 100*time.Millisecond, time.Since(began))
			assert.ErrorIs(t, err, context.DeadlineExceeded)
			var e *redial.Error
			assert.ErrorAs(t, err, &e, "it must say whether the command ran")
		}
	})
}

// A connection that a caller holds stays broken, says so at once and truly.
func TestHeldConnection_Broken_FailsAtOnce(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c, f := faulty(t, n, opt)
		cn := c.Conn()
		defer cn.Close()
		require.NoError(t, cn.Ping(t.Context()).Err())
		f.Times("incr", 1, memnet.HangUp)
		assert.ErrorIs(t, cn.Incr(t.Context(), "n").Err(), redial.ErrOutcomeUnknown)
		began := time.Now()
		for range 3 {
			assert.ErrorIs(t, cn.Incr(t.Context(), "n").Err(), redial.ErrUnavailable)
		}
		assert.Zero(t, time.Since(began))
		assert.Equal(t, 1, f.Count("incr"))
	})
}

// WATCH on a connection that is dead is tried on another, for the function has not
// run yet. Afterwards it is not run again, whatever happens.
func TestWatch_IsTriedAgainBeforeItsFunctionRan(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c, f := faulty(t, n, opt)
		pools.Fill(t, c, 5)
		n.Drop()
		time.Sleep(3 * time.Second)
		runs := 0
		watch := func() error {
			runs = 0
			return c.Watch(t.Context(), func(tx *redis.Tx) error {
				runs++
				_, err := tx.TxPipelined(t.Context(), func(p redis.Pipeliner) error { p.Incr(t.Context(), "n"); return nil })
				return err
			}, "n")
		}
		require.NoError(t, watch())
		assert.Equal(t, 1, runs)

		f.Times("watch", 3, memnet.HangUp)
		require.NoError(t, watch())
		assert.Equal(t, 1, runs)
		assert.Equal(t, "2", c.Get(t.Context(), "n").Val())

		f.Times("multi", 1, memnet.HangUp)
		assert.ErrorIs(t, watch(), redial.ErrOutcomeUnknown)
		assert.Equal(t, 1, runs)

		f.Times("watch", 1<<30, memnet.HangUp)
		began := time.Now()
		err := watch()
		assert.Zero(t, runs)
		assert.True(t, redial.SafeToRetry(err), "%v", err)
		assert.LessOrEqual(t, time.Since(began), redial.DefaultGrace+100*time.Millisecond, "the grace, and what an attempt takes")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		assert.Error(t, c.Watch(ctx, func(*redis.Tx) error { return nil }, "n"))
		assert.LessOrEqual(t, time.Since(began), time.Second)
	})
}

func TestOnConnect_RunsInsideAnotherCommandsDial(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		f := memnet.Inject(n)
		calls := 0
		opt.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
			calls++
			return cn.Set(ctx, "greeting", "hello", 0).Err()
		}
		c := ready(t, opt)
		assert.Zero(t, calls, "the heartbeat's connection is not the caller's")
		f.Times("set", 2, memnet.HangUp)
		require.NoError(t, c.Incr(t.Context(), "n").Err(), "the failed greetings cost connections, not the command")
		assert.Equal(t, 3, calls)
		assert.Equal(t, 1, f.Count("incr"))
	})
}

func TestAutoPipeline_PassesTheGate(t *testing.T) {
	// Not in a bubble: go-redis's auto-pipelines share timers.
	server := redialtest.NewFakeServer(t)
	c := redial.NewClient(&redis.Options{Addr: server.Addr()})
	defer c.Close()
	require.NoError(t, c.WaitReady(t.Context()))
	ap, err := c.AutoPipeline()
	require.NoError(t, err)
	async, err := c.AsyncAutoPipeline()
	require.NoError(t, err)
	require.NoError(t, ap.Incr(t.Context(), "n").Err())
	server.Kill()
	require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
	time.AfterFunc(300*time.Millisecond, func() { assert.NoError(t, server.Start()) })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { assert.NoError(t, ap.Incr(t.Context(), "n").Err()) })
		wg.Go(func() { assert.NoError(t, async.Incr(t.Context(), "n").Err()) })
	}
	wg.Wait()
	assert.Equal(t, 41, server.Executed("incr"))
}

// A pipeline broke while it was written: what had not been delivered whole cannot
// have run, and only the rest is unknown.
func TestPipeline_PartlyWritten(t *testing.T) {
	for _, tc := range []struct {
		name    string
		big     int // size of the values, to have go-redis write in several parts
		broken  int // the command that breaks in the middle
		unknown int // commands that may have run
	}{
		{"in the first", 1, 0, 0},
		{"in the middle", 1, 3, 3},
		{"in a later part", 100_000, 3, 3},
		{"in the last", 1, 4, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := redialtest.NewFakeServerPipe(t)
				var mu sync.Mutex
				var conns []*breakAfter // guarded by mu
				c := redial.NewClient(&redis.Options{Addr: "127.0.0.1:1", Protocol: 2, DisableIdentity: true, PoolSize: 50,
					Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
						nc, err := server.Dial(ctx, network, addr)
						cn := &breakAfter{Conn: nc, left: math.MaxInt}
						mu.Lock()
						conns = append(conns, cn)
						mu.Unlock()
						return cn, err
					}}, redial.WithGrace(0))
				defer c.Close()
				memnet.Ready(t, c)
				ctx := t.Context()
				pipe := c.Pipeline()
				require.NoError(t, pipe.Ping(ctx).Err())
				_, err := pipe.Exec(ctx)
				require.NoError(t, err)
				size := 0
				for i := range 5 {
					cmd := pipe.LPush(ctx, "list", string(make([]byte, tc.big)))
					if n, _ := command.Size(cmd.Args()); i < tc.broken {
						size += n
					} else if i == tc.broken {
						size += n / 2
					}
				}
				synctest.Wait()
				mu.Lock()
				for _, cn := range conns { // whichever carries it
					cn.left = size
				}
				mu.Unlock()
				cmds, err := pipe.Exec(ctx)
				if tc.unknown == 0 { // nothing ran, so it was sent again
					require.NoError(t, err)
					return
				}
				assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
				for i, cmd := range cmds {
					if i < tc.unknown {
						assert.ErrorIs(t, cmd.Err(), redial.ErrOutcomeUnknown, "%d", i)
					} else {
						assert.ErrorIs(t, cmd.Err(), redial.ErrUnavailable, "%d", i)
						assert.True(t, redial.SafeToRetry(cmd.Err()), "%d", i)
					}
				}
				synctest.Wait()
				assert.LessOrEqual(t, server.Executed("lpush"), tc.unknown)
				assert.EqualValues(t, 1, c.Stats().Unknown)
				assert.Zero(t, c.Stats().Refused)
			})
		})
	}
}

// A batch that may have run finds no connection when it is sent again, and goes well in the end:
// nobody is told of a failure.
func TestRetry_Batch_NoConnectionOnTheWay_CountsNothing(t *testing.T) {
	for _, name := range []string{"pipeline", "transaction"} {
		t.Run(name, func(t *testing.T) {
			for range 100 { // a probe may be faster, whose connection it has then
				found := true
				memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
					var failures failureCount
					c, f := faulty(t, n, opt, redial.WithRetry(redial.RetryIdempotent), redial.WithObserver(&failures))
					f.Times("set", 1, func(*server.Peer) {
						n.Kill()
						time.AfterFunc(time.Second, n.Start)
					})
					pipe := c.Pipeline()
					if name == "transaction" {
						pipe = c.TxPipeline()
					}
					ctx := redial.Idempotent(t.Context())
					pipe.Set(ctx, "k", 1, 0)
					pipe.Set(ctx, "n", 1, 0)
					_, err := pipe.Exec(ctx)
					require.NoError(t, err)
					s := c.Stats()
					assert.NotZero(t, s.RetriesRepeated)
					assert.Zero(t, s.Unknown)
					assert.Zero(t, failures.Load())
					found = s.RetriesUnsent == 0
				})
				if !found {
					return
				}
			}
			t.Fatal("there was always a connection")
		})
	}
}

// failureCount counts what observers are told.
type failureCount struct{ atomic.Int64 }

func (n *failureCount) ObserveFailure(context.Context, *redial.Error) { n.Add(1) }

// breakAfter breaks when so many more bytes have been written.
type breakAfter struct {
	net.Conn
	left int
}

func (c *breakAfter) Write(p []byte) (int, error) {
	if len(p) <= c.left {
		c.left -= len(p)
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(p[:c.left])
	_ = c.Conn.Close()
	if err == nil {
		err = errors.New("broken")
	}
	return n, err
}

// What a connection of the caller's takes as a whole, and fails with all the same, may have run.
func TestRetry_WrittenAndFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := redialtest.NewFakeServerPipe(t)
		var fails atomic.Bool
		c := redial.NewClient(&redis.Options{Addr: "127.0.0.1:1", PoolSize: 50, Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := server.Dial(ctx, network, addr)
			return &takesAndFails{nc, &fails}, err
		}})
		defer c.Close()
		memnet.Ready(t, c)
		require.NoError(t, c.Ping(t.Context()).Err())
		fails.Store(true)
		assert.ErrorIs(t, c.Incr(t.Context(), "n").Err(), redial.ErrOutcomeUnknown)
		assert.Equal(t, 1, server.Executed("incr"))
	})
}

// takesAndFails fails once after it has written all of a request.
type takesAndFails struct {
	net.Conn
	fails *atomic.Bool
}

func (c *takesAndFails) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if strings.Contains(string(p), "incr") && c.fails.Swap(false) {
		synctest.Wait()
		err = errTest
	}
	return n, err
}
