package redial

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/internal/wire"
	"github.com/redial-go/redial/redialtest"
)

var discard = slog.New(slog.DiscardHandler)

// faults makes the in-memory server misbehave on chosen commands.
type faults struct {
	mu  sync.Mutex
	ran map[string]int
	do  map[string]func(*server.Peer) bool // keyed by command in lower case; true: handled
}

func inject(n *memNet) *faults {
	f := &faults{ran: make(map[string]int), do: make(map[string]func(*server.Peer) bool)}
	if _, err := n.srv.Dial(); err != nil { // starts the server, so that it has hooks
		panic(err)
	}
	n.srv.Server().SetPreHook(func(p *server.Peer, cmd string, _ ...string) bool {
		name := strings.ToLower(cmd)
		f.mu.Lock()
		f.ran[name]++
		do := f.do[name]
		f.mu.Unlock()
		return do != nil && do(p)
	})
	return f
}

// times makes cmd misbehave k times.
func (f *faults) times(cmd string, k int, do func(*server.Peer)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.do[cmd] = func(p *server.Peer) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if k--; k < 0 {
			return false
		}
		do(p)
		return true
	}
}

func (f *faults) count(cmd string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ran[cmd]
}

// hangUp answers what came before, then closes the connection.
func hangUp(p *server.Peer) {
	p.Flush()
	p.Close()
}

func reply(msg string) func(*server.Peer) {
	return func(p *server.Peer) { p.WriteError(msg) }
}

func TestRetry_ReplyLost(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct {
		name string
		ctx  context.Context
		with []Option
		cmd  string
		do   func(context.Context, *Client) error
		sent int
		want error
	}{
		{"read", ctx, nil, "get", func(ctx context.Context, c *Client) error { return c.Get(ctx, "k").Err() }, 2, redis.Nil},
		{"write", ctx, nil, "incr", func(ctx context.Context, c *Client) error { return c.Incr(ctx, "n").Err() }, 1, ErrOutcomeUnknown},
		{"declared idempotent", Idempotent(ctx), nil, "set", func(ctx context.Context, c *Client) error { return c.Set(ctx, "k", 1, 0).Err() }, 2, nil},
		{"never", ctx, []Option{WithRetry(RetryNever)}, "get", func(ctx context.Context, c *Client) error { return c.Get(ctx, "k").Err() }, 1, ErrOutcomeUnknown},
		{"own policy", ctx, []Option{WithRetry(func(cmd redis.Cmder) bool { return cmd.Name() == "incr" })}, "incr",
			func(ctx context.Context, c *Client) error { return c.Incr(ctx, "n").Err() }, 2, nil},
		{"blocking pop, never", Idempotent(ctx), nil, "blpop", func(ctx context.Context, c *Client) error { return c.BLPop(ctx, time.Second, "q").Err() }, 1, ErrOutcomeUnknown},
		{"unknown command", ctx, nil, "module.do", func(ctx context.Context, c *Client) error { return c.Do(ctx, "module.do").Err() }, 1, ErrOutcomeUnknown},
		{"pipeline of reads", ctx, nil, "get", func(ctx context.Context, c *Client) error {
			_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.TTL(ctx, "k"); return nil })
			return err
		}, 2, redis.Nil},
		{"pipeline with a write", ctx, nil, "get", func(ctx context.Context, c *Client) error {
			_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.Incr(ctx, "n"); return nil })
			return err
		}, 1, ErrOutcomeUnknown},
		{"transaction", ctx, nil, "exec", func(ctx context.Context, c *Client) error {
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
			return err
		}, 1, ErrOutcomeUnknown},
		{"transaction of reads", ctx, nil, "exec", func(ctx context.Context, c *Client) error {
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Exists(ctx, "n"); return nil })
			return err
		}, 2, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
				f := inject(n)
				c := NewClient(opt, tc.with...)
				defer c.Close()
				ready(t, c)
				f.times(tc.cmd, 1, hangUp)
				err := tc.do(tc.ctx, c)
				assert.ErrorIs(t, err, tc.want)
				assert.Equal(t, tc.sent, f.count(tc.cmd))
				assert.Equal(t, StateConnected, c.State(), "one broken connection is not an outage")
				var e *Error
				if errors.As(err, &e) {
					assert.Equal(t, 1, e.Attempts)
					assert.False(t, errors.Is(err, ErrUnavailable))
					assert.NotEmpty(t, e.Cmd)
				}
			})
		})
	}
}

// Half of a pipeline was answered: those commands keep their answers and are not
// sent again.
func TestPipeline_AnsweredCommandsAreNotSentAgain(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		ctx := t.Context()
		f.times("get", 1, hangUp)
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
		assert.Equal(t, 1, f.count("incr"))
		assert.Equal(t, 2, f.count("get"))

		f.times("lpush", 1, hangUp)
		var lpush *redis.IntCmd
		_, err = c.Pipelined(ctx, func(p redis.Pipeliner) error {
			incr = p.Incr(ctx, "n")
			lpush = p.LPush(ctx, "l", "x")
			return nil
		})
		assert.ErrorIs(t, err, ErrOutcomeUnknown)
		assert.NoError(t, incr.Err())
		assert.EqualValues(t, 2, incr.Val())
		assert.ErrorIs(t, lpush.Err(), ErrOutcomeUnknown)
		assert.Equal(t, 2, f.count("incr"))
		assert.Equal(t, 1, f.count("lpush"))
	})
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
			bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
				f := inject(n)
				c := NewClient(opt)
				defer c.Close()
				ready(t, c)
				ctx := t.Context()
				require.NoError(t, c.Append(ctx, "k", "old").Err())
				f.times("set", 1, reply(readonly))
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
					assert.Equal(t, count, f.count(name), name)
				}
				assert.EqualValues(t, 2, c.Stats().Generation, "connections are retired in any case")
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
				platform.NeedPoolsThatLook(t) // or an attempt on a connection that was given up may have the last word
			}
			bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
				f := inject(n)
				c := NewClient(opt)
				defer c.Close()
				ready(t, c)
				f.times("incr", 5, reply(msg))
				require.NoError(t, c.Incr(t.Context(), "n").Err())
				assert.Equal(t, 6, f.count("incr"))

				f.times("incr", 1<<30, reply(msg))
				began := time.Now()
				err := c.Incr(t.Context(), "n").Err()
				assert.EqualError(t, err, msg, "in the end the server's own words")
				assert.InDelta(t, DefaultGrace, time.Since(began), float64(time.Second))

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
// again, but not once WATCH is in play: EXEC has ended it, and a second run would
// be unguarded.
func TestTransaction_AbortedByRefusal(t *testing.T) {
	for _, watch := range []bool{false, true} {
		bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
			f := inject(n)
			c := NewClient(opt)
			defer c.Close()
			ready(t, c)
			ctx := t.Context()
			f.times("exec", 1, func(p *server.Peer) {
				p.WriteError("EXECABORT Transaction discarded because of previous errors.")
				hangUp(p) // this server would still be inside MULTI
			})
			f.times("incr", 1, reply("TRYAGAIN Multiple keys request during rehashing of slot"))
			if watch {
				err := c.Watch(ctx, func(tx *redis.Tx) error {
					_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
					return err
				}, "n")
				assert.True(t, redis.IsExecAbortError(err), "%v", err)
				assert.True(t, SafeToRetry(err))
				assert.Equal(t, 1, f.count("exec"))
				return
			}
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
			require.NoError(t, err)
			assert.Equal(t, 2, f.count("exec"))
		})
	}
}

// While the server loads its dataset, commands wait; nobody dials.
func TestRetry_Loading_ShutsTheGate(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		require.NoError(t, c.Ping(t.Context()).Err())
		loading := reply("LOADING Redis is loading the dataset in memory")
		f.times("ping", 1<<30, loading)
		f.times("incr", 1<<30, loading)
		dials := 0
		time.AfterFunc(2*time.Second, func() {
			dials = n.Dials()
			f.times("ping", 0, loading)
			f.times("incr", 0, loading)
		})
		before := n.Dials()
		began := time.Now()
		require.NoError(t, c.Incr(t.Context(), "n").Err())
		assert.InDelta(t, 2*time.Second, time.Since(began), float64(100*time.Millisecond))
		assert.EqualValues(t, 1, c.Stats().Outages)
		assert.LessOrEqual(t, dials-before, 3)
	})
}

func TestReadOnly_RetiresConnectionsAtMostOnceASecond(t *testing.T) {
	for _, msg := range []string{
		"READONLY You can't write against a read only replica.",
		"ERR READONLY You can't write against a read only replica.", // as some proxies put it
	} {
		t.Run(msg, func(t *testing.T) { retires(t, msg) })
	}
}

func retires(t *testing.T, msg string) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 10)
		before := c.Stats().Generation
		f.times("set", 1<<30, reply(msg))
		_ = c.Set(t.Context(), "k", "v", 0).Err()
		grown := c.Stats().Generation - before
		assert.GreaterOrEqual(t, grown, uint64(2))
		assert.LessOrEqual(t, grown, uint64(DefaultGrace/rotateSpacing)+1)
		assert.LessOrEqual(t, c.Stats().Connections, 2)
	})
}

// Server replies, Nil above all, come back as they are.
func TestReplies_AreNeverWrapped(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		ctx := t.Context()
		assert.True(t, c.Get(ctx, "nope").Err() == redis.Nil)
		_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "nope"); return nil })
		assert.True(t, err == redis.Nil)
		require.NoError(t, c.Set(ctx, "s", "x", 0).Err())
		err = c.LPush(ctx, "s", "x").Err()
		var re redis.Error
		assert.ErrorAs(t, err, &re)
		var own *Error
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
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		n.srv.RequireAuth("new")
		var password atomic.Value
		password.Store("old")
		var asked atomic.Int64
		opt.CredentialsProvider = func() (string, string) {
			asked.Add(1)
			return "", password.Load().(string)
		}
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		began := time.Now()
		before := asked.Load()
		err := c.Incr(t.Context(), "n").Err()
		assert.True(t, redis.IsAuthError(err), "%v", err)
		assert.True(t, SafeToRetry(err))
		assert.EqualValues(t, 2, asked.Load()-before, "one more try")
		assert.Zero(t, time.Since(began))

		password.Store("new")
		require.NoError(t, c.Incr(t.Context(), "n").Err())
		_, err = c.Pipelined(t.Context(), func(p redis.Pipeliner) error { p.Incr(t.Context(), "n"); return nil })
		require.NoError(t, err)
	})
}

// Full-duplex pipelining shares a connection between many commands, so a failure to
// write says nothing of those that were written before. It cannot be retried, and
// nothing may be claimed.
func TestFullDuplex_OutcomesAreTrue(t *testing.T) {
	assert.Equal(t, sharedCall, originOfFullDuplex(t))
	srv := miniredis.RunT(t)
	var ran atomic.Int64
	srv.Server().SetPreHook(func(p *server.Peer, cmd string, _ ...string) bool {
		if cmd == "INCR" && ran.Add(1)%50 == 0 {
			p.Close() // once it has run
		}
		return false
	})
	c := NewClient(&redis.Options{Addr: srv.Addr()})
	defer c.Close()
	ap, err := c.AutoPipelineWithOptions(&redis.AutoPipelineOptions{FullDuplex: true})
	require.NoError(t, err)
	var acknowledged, unknown atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 50 {
				err := ap.Incr(t.Context(), "n").Err()
				switch {
				case err == nil:
					acknowledged.Add(1)
				case errors.Is(err, ErrUnavailable):
				default:
					unknown.Add(1)
				}
			}
		})
	}
	wg.Wait()
	got, err := srv.Get("n")
	require.NoError(t, err)
	n, err := strconv.ParseInt(got, 10, 64)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, n, acknowledged.Load())
	assert.LessOrEqual(t, n, acknowledged.Load()+unknown.Load())
	assert.NotZero(t, unknown.Load())
	t.Logf("%d ran, %d acknowledged, %d unknown", n, acknowledged.Load(), unknown.Load())
}

// originOfFullDuplex returns what a hook of the full-duplex engine sees behind it.
func originOfFullDuplex(t *testing.T) (from origin) {
	srv := miniredis.RunT(t)
	rdb := redis.NewClient(&redis.Options{Addr: srv.Addr()})
	defer rdb.Close()
	ap, err := rdb.AutoPipelineWithOptions(&redis.AutoPipelineOptions{FullDuplex: true})
	require.NoError(t, err)
	seen := make(chan origin, 10)
	rdb.AddHook(originHook{seen})
	for len(seen) > 0 {
		<-seen
	}
	require.NoError(t, ap.Set(t.Context(), "k", "v", 0).Err())
	for len(seen) > 0 {
		from = max(from, <-seen)
	}
	return from
}

type originHook struct{ seen chan origin }

func (h originHook) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h originHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	select {
	case h.seen <- originOf(next):
	default:
	}
	return next
}
func (h originHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The deadline of a context is kept by the socket, whatever go-redis was told.
func TestDeadline_IsKept(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		opt.ContextTimeoutEnabled = false
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
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
			var e *Error
			assert.ErrorAs(t, err, &e, "it must say whether the command ran")
		}
	})
}

// A connection that a caller holds stays broken, says so at once and truly.
func TestHeldConnection_Broken_FailsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		cn := c.Conn()
		defer cn.Close()
		require.NoError(t, cn.Ping(t.Context()).Err())
		f.times("incr", 1, hangUp)
		assert.ErrorIs(t, cn.Incr(t.Context(), "n").Err(), ErrOutcomeUnknown)
		began := time.Now()
		for range 3 {
			assert.ErrorIs(t, cn.Incr(t.Context(), "n").Err(), ErrUnavailable)
		}
		assert.Zero(t, time.Since(began))
		assert.Equal(t, 1, f.count("incr"))
	})
}

// WATCH on a connection that is dead is tried on another, for the function has not
// run yet. Afterwards it is not run again, whatever happens.
func TestWatch_IsTriedAgainBeforeItsFunctionRan(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 5)
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

		f.times("watch", 3, hangUp)
		require.NoError(t, watch())
		assert.Equal(t, 1, runs)
		assert.Equal(t, "2", c.Get(t.Context(), "n").Val())

		f.times("multi", 1, hangUp)
		assert.ErrorIs(t, watch(), ErrOutcomeUnknown)
		assert.Equal(t, 1, runs)

		f.times("watch", 1<<30, hangUp)
		began := time.Now()
		err := watch()
		assert.Zero(t, runs)
		assert.True(t, SafeToRetry(err), "%v", err)
		assert.LessOrEqual(t, time.Since(began), DefaultGrace+100*time.Millisecond, "the grace, and what an attempt takes")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		assert.Error(t, c.Watch(ctx, func(*redis.Tx) error { return nil }, "n"))
		assert.LessOrEqual(t, time.Since(began), time.Second)
	})
}

func TestOnConnect_RunsInsideAnotherCommandsDial(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		calls := 0
		opt.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
			calls++
			return cn.Set(ctx, "greeting", "hello", 0).Err()
		}
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		assert.Zero(t, calls, "the heartbeat's connection is not the caller's")
		f.times("set", 2, hangUp)
		require.NoError(t, c.Incr(t.Context(), "n").Err(), "the failed greetings cost connections, not the command")
		assert.Equal(t, 3, calls)
		assert.Equal(t, 1, f.count("incr"))
	})
}

// A hook of the caller sees every attempt, and its own errors come back as they are.
func TestHooks_RunInside(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt)
		defer c.Close()
		seen := &recorder{}
		c.AddHook(seen)
		ready(t, c)
		f.times("get", 1, hangUp)
		require.ErrorIs(t, c.Get(t.Context(), "k").Err(), redis.Nil)
		gets := 0
		for _, name := range seen.names() {
			if name == "get" {
				gets++
			}
		}
		assert.Equal(t, 2, gets)

		c.AddHook(vetoing{})
		assert.True(t, c.Get(t.Context(), "k").Err() == errTest)
	})
}

type vetoing struct{}

func (vetoing) DialHook(next redis.DialHook) redis.DialHook { return next }
func (vetoing) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(context.Context, redis.Cmder) error { return errTest }
}
func (vetoing) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(context.Context, []redis.Cmder) error { return errTest }
}

func TestAutoPipeline_PassesTheGate(t *testing.T) {
	// Not in a bubble: go-redis's auto-pipelines share timers.
	server := redialtest.NewFakeServer(t)
	c := NewClient(&redis.Options{Addr: server.Addr()})
	defer c.Close()
	require.NoError(t, c.WaitReady(t.Context()))
	ap, err := c.AutoPipeline()
	require.NoError(t, err)
	async, err := c.AsyncAutoPipeline()
	require.NoError(t, err)
	require.NoError(t, ap.Incr(t.Context(), "n").Err())
	server.Kill()
	require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
	time.AfterFunc(300*time.Millisecond, func() { assert.NoError(t, server.Start()) })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { assert.NoError(t, ap.Incr(t.Context(), "n").Err()) })
		wg.Go(func() { assert.NoError(t, async.Incr(t.Context(), "n").Err()) })
	}
	wg.Wait()
	assert.Equal(t, 41, server.Executed("incr"))
}

// A connection may have been retired for the very error that the command failed
// with before; that is another failure, and worth another attempt.
func TestSameFailure(t *testing.T) {
	reply := redisError("LOADING Redis is loading the dataset in memory")
	retired := &wire.Error{Phase: wire.PhaseWrite, Err: &wire.RetiredError{Cause: reply}}
	assert.False(t, sameFailure(retired, reply))
	assert.False(t, sameFailure(retired, &wire.Error{Phase: wire.PhaseWrite, Err: &wire.RetiredError{Cause: reply}}))
	assert.False(t, sameFailure(retired, nil))
	assert.True(t, sameFailure(retired, fmt.Errorf("wrapped: %w", retired)))
}

// The server went LOADING, and its connections with it. What fails for that reason
// must not pass for a reply, neither here nor in go-redis.
func TestCauses_AreNotReplies(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		require.NoError(t, c.Ping(t.Context()).Err())
		loading := redisError("LOADING Redis is loading the dataset in memory")
		n.Freeze() // so that it stays lost
		linkOf(c).transition(StateReconnecting, CauseNotReady, "", loading, 0)
		_, err := linkOf(c).dial(t.Context(), "tcp", "127.0.0.1:1")
		require.Error(t, err)
		assert.False(t, isReply(err), "%v", err)
		err = c.Incr(FailFast(t.Context()), "n").Err()
		assert.ErrorIs(t, err, ErrUnavailable)
		assert.ErrorContains(t, err, "LOADING")
		assert.False(t, isReply(err), "%v", err)
		assert.False(t, isReply(&wire.RetiredError{Cause: linkOf(c).lastCause()}))
	})
}

func TestMayRepeat(t *testing.T) {
	ctx := context.Background()
	cfg, err := newConfig(nil)
	require.NoError(t, err)
	assert.True(t, cfg.mayRepeat(ctx, redis.NewCmd(ctx, "get", "k")))
	assert.False(t, cfg.mayRepeat(ctx, redis.NewCmd(ctx, "set", "k", "v")))
	assert.True(t, cfg.mayRepeat(Idempotent(ctx), redis.NewCmd(ctx, "incr", "n")))
	assert.False(t, cfg.mayRepeat(Idempotent(ctx), redis.NewCmd(ctx, "blpop", "q", 0)), "what it took would be lost")
}

// Every reply is lost once, and the retry is answered: with nothing, or by an error. That
// takes nothing from the budget, however often it happens.
func TestBudget_AnswersCostNothing(t *testing.T) {
	for name, reply := range map[string]redialtest.Action{"nil": redialtest.Handle, "error": redialtest.Reply("-ERR odd\r\n")} {
		t.Run(name, func(t *testing.T) {
			f := redialtest.NewFakeServer(t)
			var gets atomic.Int64
			f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
				switch {
				case args[0] != "get":
					return redialtest.Handle
				case gets.Add(1)%2 == 1:
					return redialtest.ExecuteThenClose
				}
				return reply
			})
			c := NewClient(&redis.Options{Addr: f.Addr()})
			defer c.Close()
			require.NoError(t, c.WaitReady(t.Context()))
			for range 3 * retryBurst {
				err := c.Get(t.Context(), "nothing").Err()
				require.True(t, isReply(err) || err == redis.Nil, "%v", err)
			}
			assert.EqualValues(t, 3*retryBurst, c.Stats().RetriesRepeated)
			assert.Zero(t, c.Stats().RetriesDelayed)
		})
	}
}

// A server in trouble meets the first attempt of every command, and from then on no
// more retries than the budget allows; when the trouble is over, all go through.
func TestBudget_BoundsTheLoadOfRetries(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		opt.PoolSize = 1000
		c := NewClient(opt, WithGrace(time.Minute))
		defer c.Close()
		ready(t, c)
		const callers, trouble = 700, 5 * time.Second
		f.times("incr", 1<<30, reply("TRYAGAIN Multiple keys request during rehashing of slot"))
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() { assert.NoError(t, c.Incr(t.Context(), "n").Err()) })
		}
		time.Sleep(trouble)
		assert.LessOrEqual(t, f.count("incr"), callers+retryBurst+retryRate*int(trouble.Seconds()))
		assert.Greater(t, f.count("incr"), callers+retryBurst)
		f.times("incr", 0, hangUp)
		began := time.Now()
		wg.Wait()
		assert.Less(t, time.Since(began), 3*time.Second, "successes refill the budget")
		assert.Equal(t, strconv.Itoa(callers), c.Get(t.Context(), "n").Val())
		s := c.Stats()
		assert.Equal(t, s.RetriesRefused, s.Retries)
		assert.NotZero(t, s.RetriesDelayed)
	})
}

// The error says why there was no other attempt.
func TestError_Reason(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt, WithMaxWaiting(1), WithGrace(2*time.Second))
		defer c.Close()
		ready(t, c)
		ctx := t.Context()
		reason := func(err error) Cause {
			var e *Error
			require.ErrorAs(t, err, &e)
			assert.Equal(t, e.Cause.text(c.keeper.cfg.maxWaiting), e.Reason)
			assert.NotEmpty(t, e.Reason)
			assert.Contains(t, err.Error(), e.Reason)
			return e.Cause
		}
		f.times("incr", 1, hangUp)
		assert.Equal(t, CauseUnsafe, reason(c.Incr(ctx, "n").Err()))
		f.times("get", 1, hangUp)
		assert.Equal(t, CauseUnsafe, reason(c.Get(NoRetry(Idempotent(ctx)), "n").Err()))
		assert.EqualValues(t, 2, c.Stats().Unknown)
		f.times("get", 1, hangUp)
		require.ErrorIs(t, c.Get(ctx, "k").Err(), redis.Nil)
		assert.EqualValues(t, 1, c.Stats().RetriesRepeated)
		held := c.Conn()
		defer held.Close()
		f.times("incr", 1, hangUp)
		assert.Equal(t, CauseUnsafe, reason(held.Incr(ctx, "n").Err()))
		assert.Equal(t, CauseHeldConnectionBroken, reason(held.Incr(ctx, "n").Err()))

		n.Kill()
		require.NoError(t, c.WaitForState(ctx, StateReconnecting))
		assert.Equal(t, CauseFailFast, reason(c.Get(FailFast(ctx), "n").Err()))
		assert.Equal(t, CauseWaitOver, reason(c.Get(WaitFor(ctx, time.Millisecond), "n").Err()))
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		assert.Equal(t, CauseContextEnded, reason(c.Get(short, "n").Err()))
		var wg sync.WaitGroup
		wg.Go(func() { assert.Equal(t, CauseGraceOver, reason(c.Get(ctx, "n").Err())) })
		synctest.Wait()
		full := c.Get(ctx, "n").Err()
		assert.Equal(t, CauseWaitersFull, reason(full))
		assert.ErrorContains(t, full, "1 commands are waiting already")
		wg.Wait()
		wg.Go(func() { assert.Equal(t, CauseClosed, reason(c.Get(WaitFor(ctx, time.Hour), "n").Err())) })
		synctest.Wait()
		require.NoError(t, c.Close())
		wg.Wait()
	})
}
