package redial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
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

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/testkit/memnet"
	"github.com/redial-go/redial/internal/testkit/pools"
	"github.com/redial-go/redial/internal/wire"
	"github.com/redial-go/redial/redialtest"
)

// The network in memory, as tests in here call it.
type memNet = memnet.Net

var (
	bubble     = memnet.Bubble
	fill       = pools.Fill
	inject     = memnet.Inject
	hangUp     = memnet.HangUp
	reply      = memnet.Reply
	errRefused = memnet.ErrRefused
	errTest    = errors.New("test")
	discard    = slog.New(slog.DiscardHandler)
)

// ready waits for the link of c.
func ready(t *testing.T, c *Client) {
	t.Helper()
	memnet.Ready(t, c)
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
		f.Times("set", 1<<30, reply(msg))
		_ = c.Set(t.Context(), "k", "v", 0).Err()
		grown := c.Stats().Generation - before
		assert.GreaterOrEqual(t, grown, uint64(2))
		assert.LessOrEqual(t, grown, uint64(DefaultGrace/rotateSpacing)+1)
		assert.LessOrEqual(t, c.Stats().Connections, 2)
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

// What is refused to the end says so in the server's words, also when the last attempt met a
// connection that had been given up because of that.
func TestRefused_LastAttemptMeetsRetiredConnection(t *testing.T) {
	for _, words := range []string{"READONLY You can't write against a read only replica.", "REDIRECT 10.0.0.1:7001"} {
		t.Run(words, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
				f := inject(n)
				var c *Client
				var retire atomic.Bool
				opt.OnConnect = func(context.Context, *redis.Conn) error {
					if retire.Load() {
						l := linkOf(c)
						l.mu.Lock()
						l.rotated = time.Time{}
						l.mu.Unlock()
						l.rotate(redisError(words))
					}
					return nil
				}
				c = NewClient(opt, WithGrace(time.Second))
				defer c.Close()
				ready(t, c)
				f.Times("set", 1<<30, reply(words))
				require.NoError(t, c.Ping(t.Context()).Err())
				retire.Store(true)
				err := c.Set(t.Context(), "k", "v", 0).Err()
				assert.EqualError(t, err, words)
				assert.EqualValues(t, 1, c.Stats().Refused)
			})
		})
	}
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
	t.Parallel()
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
		f.Times("incr", 1<<30, reply("TRYAGAIN Multiple keys request during rehashing of slot"))
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() { assert.NoError(t, c.Incr(t.Context(), "n").Err()) })
		}
		time.Sleep(trouble)
		assert.LessOrEqual(t, f.Count("incr"), callers+retryBurst+retryRate*int(trouble.Seconds()))
		assert.Greater(t, f.Count("incr"), callers+retryBurst)
		f.Times("incr", 0, hangUp)
		began := time.Now()
		wg.Wait()
		assert.Less(t, time.Since(began), 3*time.Second, "successes refill the budget")
		assert.Equal(t, strconv.Itoa(callers), c.Get(t.Context(), "n").Val())
		s := c.Stats()
		assert.Equal(t, s.RetriesRefused, s.Retries)
		assert.NotZero(t, s.RetriesDelayed)
	})
}

// Who waits for the budget when the client is drained is told so at once.
func TestBudget_Spent_Drain(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt)
		ready(t, c)
		f.Times("get", 3, hangUp)
		for c.keeper.budget.take() {
		}
		var err error
		var wg sync.WaitGroup
		wg.Go(func() { err = c.Get(t.Context(), "k").Err() })
		time.Sleep(5 * time.Millisecond)
		require.NotZero(t, c.Stats().RetriesDelayed)
		began := time.Now()
		assert.NoError(t, c.Drain(t.Context()))
		wg.Wait()
		assert.Zero(t, time.Since(began))
		var e *Error
		require.ErrorAs(t, err, &e)
		assert.Equal(t, CauseClosed, e.Cause)
	})
}

func TestWithout(t *testing.T) {
	a, b, c := redis.NewCmd(t.Context(), "a"), redis.NewCmd(t.Context(), "b"), redis.NewCmd(t.Context(), "c")
	all := []redis.Cmder{a, b, c}
	assert.Equal(t, []redis.Cmder{a}, without(all, all[1:]))
	assert.Equal(t, []redis.Cmder{b}, without(all, []redis.Cmder{a, c}))
	assert.Equal(t, all, without(all, nil))
	assert.Empty(t, without(all, all))
	assert.Equal(t, []redis.Cmder{b}, without([]redis.Cmder{a, b, a}, []redis.Cmder{a, a}))
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
		f.Times("incr", 1, hangUp)
		assert.Equal(t, CauseUnsafe, reason(c.Incr(ctx, "n").Err()))
		f.Times("get", 1, hangUp)
		assert.Equal(t, CauseUnsafe, reason(c.Get(NoRetry(Idempotent(ctx)), "n").Err()))
		assert.EqualValues(t, 2, c.Stats().Unknown)
		f.Times("get", 1, hangUp)
		require.ErrorIs(t, c.Get(ctx, "k").Err(), redis.Nil)
		assert.EqualValues(t, 1, c.Stats().RetriesRepeated)
		held := c.Conn()
		defer held.Close()
		f.Times("incr", 1, hangUp)
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

// everyCall runs f for the ways in which a command can wait for the server.
func everyCall(c *Client, f func(name string, run func(context.Context) error)) {
	for name, run := range map[string]func(context.Context) error{
		"read":      func(ctx context.Context) error { return c.Get(ctx, "n").Err() },
		"write":     func(ctx context.Context) error { return c.Incr(ctx, "n").Err() },
		"blocking":  func(ctx context.Context) error { return c.BLPop(ctx, 0, "q").Err() },
		"bounded":   func(ctx context.Context) error { return c.BLPop(ctx, time.Hour, "q").Err() },
		"large":     func(ctx context.Context) error { return c.Set(ctx, "k", strings.Repeat("x", 1<<20), 0).Err() },
		"clone":     func(ctx context.Context) error { return c.WithTimeout(time.Second).Incr(ctx, "n").Err() },
		"held":      func(ctx context.Context) error { cn := c.Conn(); defer cn.Close(); return cn.Incr(ctx, "n").Err() },
		"watch":     func(ctx context.Context) error { return c.Watch(ctx, func(*redis.Tx) error { return nil }, "n") },
		"pipeline":  func(ctx context.Context) error { _, err := c.Pipelined(ctx, incr); return err },
		"multiexec": func(ctx context.Context) error { _, err := c.TxPipelined(ctx, incr); return err },
	} {
		f(name, run)
	}
}

func incr(p redis.Pipeliner) error {
	p.Incr(context.Background(), "n")
	return nil
}

// A canceled command returns at once and says what is known of it, also when
// go-redis was told not to heed contexts.
func TestCancel_IsKept(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
			opt.Protocol = protocol
			opt.ContextTimeoutEnabled = false
			c := NewClient(opt)
			defer c.Close()
			ready(t, c)
			fill(t, c, 3)
			require.NoError(t, c.WithTimeout(time.Second).Ping(t.Context()).Err())
			n.Silence(true)
			everyCall(c, func(name string, run func(context.Context) error) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a deadline must not stand in the way
				time.AfterFunc(100*time.Millisecond, cancel)
				began := time.Now()
				err := run(ctx)
				assert.InDelta(t, 100*time.Millisecond, time.Since(began), float64(wire.Unwatched), name)
				assert.ErrorIs(t, err, context.Canceled, name)
				var e *Error
				if assert.ErrorAs(t, err, &e, name) {
					assert.NotEqual(t, ErrClosed, e.kind, name)
				}
			})
			assert.Equal(t, StateConnected, c.State(), "what callers cancel is no news of the server")
			assert.Zero(t, c.keeper.calls.Len())
		})
	}
}

// A canceled BLPOP waits no more on the server, and with it is gone the server's promise to
// hand it the next element. Its connection may be there still.
func TestCancel_BLPop_TakesNothingLater(t *testing.T) {
	s := redialtest.StartServer(t)
	c := NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		began := time.Now()
		require.ErrorIs(t, c.BLPop(ctx, 0, "queue").Err(), context.Canceled)
		assert.Less(t, time.Since(began), time.Second)
	}
	require.Eventually(t, func() bool { return strings.Contains(s.Do("INFO", "clients").(string), "blocked_clients:0\r") },
		time.Second, time.Millisecond)
	require.NoError(t, c.RPush(t.Context(), "queue", "job").Err())
	assert.EqualValues(t, 1, c.LLen(t.Context(), "queue").Val())
}

// Whoever shares the pool with commands that are canceled must not notice.
func TestCancel_HurtsNobodyElse(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	c := NewClient(&redis.Options{Addr: p.Addr(), PoolSize: 10})
	defer c.Close()
	require.NoError(t, c.WaitReady(t.Context()))
	p.Delay(2 * wire.Unwatched) // or every reply comes before its command can be canceled
	var done, acknowledged, unknown, canceled atomic.Int64
	end := time.Now().Add(3 * time.Second)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for time.Now().Before(end) {
				if i%2 == 0 {
					if !assert.NoError(t, c.Incr(t.Context(), "steady").Err()) {
						return
					}
					done.Add(1)
					continue
				}
				ctx, cancel := context.WithCancel(t.Context())
				timer := time.AfterFunc(rand.N(6*wire.Unwatched), cancel)
				err := c.Incr(ctx, "fickle").Err()
				timer.Stop()
				cancel()
				switch {
				case err == nil:
					acknowledged.Add(1)
				case errors.Is(err, ErrOutcomeUnknown):
					unknown.Add(1)
				case err == context.Canceled: // before the call
					canceled.Add(1)
				default:
					assert.ErrorIs(t, err, context.Canceled)
					assert.ErrorIs(t, err, ErrUnavailable)
					canceled.Add(1)
				}
			}
		})
	}
	wg.Wait()
	p.Delay(0)
	ran := int64(mustInt(t, c.Get(t.Context(), "fickle")))
	t.Logf("%d done; of the canceled %d did not run, %d unknown; %d acknowledged, %d ran; %d dials",
		done.Load(), canceled.Load(), unknown.Load(), acknowledged.Load(), ran, c.Stats().Dials)
	assert.GreaterOrEqual(t, ran, acknowledged.Load())
	assert.LessOrEqual(t, ran, acknowledged.Load()+unknown.Load())
	assert.Greater(t, c.Stats().Dials, uint64(50), "too few connections were severed to prove anything")
	assert.Equal(t, done.Load(), int64(mustInt(t, c.Get(t.Context(), "steady"))))
	assert.Zero(t, c.Stats().Outages)
}

func mustInt(t *testing.T, cmd *redis.StringCmd) int {
	t.Helper()
	n, err := cmd.Int()
	require.NoError(t, err)
	return n
}

// What the caller's hooks see of the context is the caller's, but for a deadline.
func TestCancel_ContextOfHooks(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		type key struct{}
		parent, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "value"), 3*time.Second)
		defer cancel()
		var kept context.Context
		c.AddHook(hookFunc(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			assert.Equal(t, "value", ctx.Value(key{}))
			assert.Equal(t, parent.Done(), ctx.Done())
			deadline, ok := ctx.Deadline()
			assert.True(t, ok)
			assert.False(t, deadline.After(time.Now().Add(3*time.Second)))
			kept = ctx
			return next(ctx, cmd)
		}))
		require.NoError(t, c.Set(parent, "k", "v", 0).Err())
		want, _ := parent.Deadline()
		got, _ := kept.Deadline()
		assert.True(t, want.Equal(got), "when the command is over only the caller's deadline remains")
		require.NoError(t, c.Set(kept, "k", "v", 0).Err())
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
		f.Times("get", 1, hangUp)
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

// odd is an error that cannot be compared.
type odd struct{ words []string }

func (o odd) Error() string { return o.words[0] }

// Hooks are shown what a connection failed with, unless that could not be told again, or
// would say more of the command than is known.
func TestVeil_WhatIsShown(t *testing.T) {
	theirs := &Error{kind: ErrUnavailable, Err: errRefused}
	for name, tc := range map[string]struct {
		phase wire.Phase
		cause error
		shown bool
	}{
		"of the system":                     {wire.PhaseRead, errRefused, true},
		"a reply to somebody else":          {wire.PhaseDial, redisError("LOADING x"), false},
		"no one can tell it again":          {wire.PhaseRead, odd{[]string{"odd"}}, false},
		"of another client, which did not":  {wire.PhaseRead, theirs, false},
		"of another client, and nor did we": {wire.PhaseDial, theirs, true},
	} {
		err := error(&wire.Error{Phase: tc.phase, Err: tc.cause})
		want := err
		if tc.shown {
			want = tc.cause
		}
		assert.True(t, isSame(want, unveiled(err)), name)
		assert.True(t, isSame(want, unveiled(&failure{err: err})), "%s, at a node", name)
	}
}

// What hooks leave as they were shown it is put back, on the command or on one in its place;
// what they have put there themselves is theirs.
func TestVeil_IsLifted(t *testing.T) {
	was, of := error(&wire.Error{Phase: wire.PhaseRead, Err: errRefused}), error(&wire.Error{Phase: wire.PhaseWrite, Err: errRefused})
	mine, other, fine := redis.NewCmd(t.Context(), "get", "k"), redis.NewCmd(t.Context(), "get", "k"), redis.NewCmd(t.Context(), "ping")
	mine.SetErr(of)
	f := finding{reached: true, err: was}
	f.veils = f.show(mine, fine)
	assert.Equal(t, errRefused, f.seen)
	assert.Equal(t, errRefused, mine.Err())
	assert.NoError(t, fine.Err())
	assert.Len(t, f.veils, 2, "what was returned, and what is on the command")
	assert.Same(t, of, f.lift(mine, errRefused))
	assert.Same(t, of, f.lift(other, errRefused))
	assert.Same(t, was, f.lift(nil, errRefused))
	assert.Equal(t, errTest, f.lift(mine, errTest))

	lost := error(&wire.Error{Phase: wire.PhasePartial, Err: errRefused})
	late, early := redis.NewCmd(t.Context(), "get", "k"), redis.NewCmd(t.Context(), "get", "k")
	early.SetErr(lost)
	late.SetErr(of)
	part := finding{reached: true, err: lost}
	part.veils = part.show(early, late)
	assert.Same(t, lost, part.lift(other, errRefused), "it may be in the place of either")
	assert.Same(t, of, part.lift(late, errRefused))

	a := newAttempt(t.Context())
	a.note(&f, nil, f.veils...)
	other.SetErr(errTest)
	got, said := a.hear(errRefused, mine, other)
	assert.Same(t, was, said)
	assert.False(t, got.word, "it is not the hook's")
	assert.Same(t, of, mine.Err())
	assert.Equal(t, errTest, other.Err())
	got, said = a.hear(errTest)
	assert.Equal(t, errTest, said)
	assert.True(t, got.word)
}

// untold is a command that cannot be compared with others.
type untold struct {
	redis.Cmder
	_ []int
}

// What hooks make of arguments is sent again as it was. One that asks again in an attempt may
// ask for something else.
func TestVeil_WhatWasSent_IsSentAgain(t *testing.T) {
	cmd, big := redis.NewCmd(t.Context(), "get", "k"), untold{Cmder: redis.NewCmd(t.Context(), "get", "k")}
	key := func() any { return cmd.Args()[1] }
	change := func(to string) { cmd.Args()[1], big.Args()[1] = to, to }
	asked := func(a *attempt, err error) finding {
		a.repeat(cmd, big)
		f := finding{reached: true, err: err}
		f.keep(cmd, big)
		a.note(&f, nil)
		heard, _ := a.hear(err)
		return *heard
	}
	a := newAttempt(t.Context())
	change("first")
	a.sent = asked(a, errTest).sent
	assert.Equal(t, "first", key(), "nothing was sent before")

	b := newAttempt(t.Context())
	b.sent = a.sent
	change("again first")
	assert.NotNil(t, asked(b, errTest).sent)
	assert.Equal(t, "first", key())
	assert.Equal(t, "again first", big.Args()[1], "which of them it is cannot be told")
	change("second")
	assert.Nil(t, asked(b, errTest).sent, "which of the two it was is not known")
	assert.Equal(t, "second", key())

	assert.Nil(t, asked(newAttempt(t.Context()), nil).sent)
	assert.Nil(t, asked(newAttempt(t.Context()), redis.Nil).sent)
}

// A hook asks twice in an attempt, for the same: that is what is sent again.
func TestVeil_SentTwiceAlike_IsSentAgain(t *testing.T) {
	cmd := redis.NewCmd(t.Context(), "get", "app:k")
	a := newAttempt(t.Context())
	for range 2 {
		f := finding{reached: true, err: errTest}
		f.keep(cmd)
		a.note(&f, nil)
	}
	heard, _ := a.hear(errTest)
	cmd.Args()[1] = "app:app:k"
	a = newAttempt(t.Context())
	a.sent = heard.sent
	a.repeat(cmd)
	assert.Equal(t, "app:k", cmd.Args()[1])
}

// Arguments that callers share are only read, however often a command is sent.
func TestVeil_SharedArguments_AreOnlyRead(t *testing.T) {
	shared := []any{"set", "k", []byte("v"), map[string]int{"v": 1}, 1.5}
	before := slices.Clone(shared)
	read := make(chan bool)
	go func() { read <- shared[0] == before[0] && shared[3] != nil && shared[4] == before[4] }() // a race, if they are written
	cmd := redis.NewCmd(t.Context(), shared...)
	f := finding{reached: true, err: errTest}
	f.keep(cmd)
	a := newAttempt(t.Context())
	a.sent = f.sent
	a.repeat(cmd)
	assert.True(t, <-read)
	assert.Equal(t, before, shared)
}

// wireRecorder is a server that answers every request, and keeps them.
type wireRecorder struct {
	mu       sync.Mutex
	requests [][]byte
	reply    func(name string) string // nil, or what to answer to commands that are no handshake
}

func (r *wireRecorder) Dial(context.Context, string, string) (net.Conn, error) {
	return &recorderConn{recorder: r, replies: make(chan []byte, 64), closed: make(chan struct{})}, nil
}

// take returns the requests since it was called last.
func (r *wireRecorder) take() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := r.requests
	r.requests = nil
	return taken
}

type recorderConn struct {
	net.Conn // nil: everything that is called is implemented
	recorder *wireRecorder
	replies  chan []byte
	rest     []byte
	over     bool // the stream ends after rest
	once     sync.Once
	closed   chan struct{}
}

func (c *recorderConn) Write(p []byte) (int, error) {
	var buf [16]byte
	r := c.recorder
	reply := "+OK\r\n"
	switch name := string(command.Head(p, &buf)); {
	case name == "hello":
		reply = "*2\r\n$5\r\nproto\r\n:2\r\n"
	case name == "ping":
		reply = "+PONG\r\n"
	default:
		r.mu.Lock()
		r.requests = append(r.requests, bytes.Clone(p))
		if r.reply != nil {
			reply = r.reply(name)
		}
		r.mu.Unlock()
	}
	select {
	case c.replies <- []byte(reply):
	case <-c.closed:
	}
	return len(p), nil
}

// Read ends the stream after a reply that does not suffice.
func (c *recorderConn) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.over && len(c.replies) == 0 {
			return 0, io.EOF
		}
		select {
		case c.rest = <-c.replies:
			c.over = true
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *recorderConn) Close() error                     { c.once.Do(func() { close(c.closed) }); return nil }
func (c *recorderConn) SetDeadline(time.Time) error      { return nil }
func (c *recorderConn) SetReadDeadline(time.Time) error  { return nil }
func (c *recorderConn) SetWriteDeadline(time.Time) error { return nil }
func (c *recorderConn) LocalAddr() net.Addr              { return noAddr{} }
func (c *recorderConn) RemoteAddr() net.Addr             { return noAddr{} }

type noAddr struct{}

func (noAddr) Network() string { return "none" }
func (noAddr) String() string  { return "not connected" }

// Whatever a server replies to a command that it got, the command is only said to be
// safe to retry when the server said that it did not run it; and it is not sent
// again, unless for the same reason.
func FuzzReply(f *testing.F) {
	for _, reply := range []string{
		":1\r\n", "$-1\r\n", "+OK\r\n", "", "\r\n", "-\r\n", "-ERR\r\n", ":", ":x\r\n", "$5\r\nabc", "*-1\r\n", "*1\r\n*1\r\n:1\r\n",
		"-ERR value is not an integer or out of range\r\n", "-LOADING Redis is loading the dataset in memory\r\n",
		"-READONLY You can't write against a read only replica.\r\n", "-ERR READONLY by a proxy\r\n", "-TRYAGAIN later\r\n",
		"-MASTERDOWN Link with MASTER is down\r\n", "-CLUSTERDOWN The cluster is down\r\n", "-NOREPLICAS Not enough\r\n",
		"-ERR max number of clients reached\r\n", "-NOAUTH Authentication required.\r\n", "-WRONGPASS no\r\n",
		"-EXECABORT Transaction discarded\r\n", "-MOVED 1 127.0.0.1:2\r\n", "-MOVED\r\n", "-ASK 1 x\r\n", "-OOM command not allowed\r\n",
		"-redis: Conn is in a bad state: made up\r\n", "-redis: nil\r\n", "-redis: client is closed\r\n",
		"-ERR user_script: -READONLY You can't write against a read only replica\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n",
		"!11\r\nLOADING now\r\n", ">2\r\n+x\r\n+y\r\n:1\r\n", "_\r\n", "#t\r\n", ",1.5\r\n", "(99\r\n", "=5\r\ntxt:x\r\n", "%1\r\n+a\r\n:1\r\n",
		"|1\r\n+a\r\n:1\r\n:1\r\n", "*9999999\r\n", "$-9\r\n", ":1\r\n:2\r\n",
	} {
		f.Add([]byte(reply))
	}
	var reply string // guarded by rec.mu
	rec := &wireRecorder{reply: func(string) string { return reply }}
	c := NewClient(&redis.Options{Addr: "127.0.0.1:1", Dialer: rec.Dial, Protocol: 2, DisableIdentity: true}, WithGrace(0))
	f.Cleanup(func() { _ = c.Close() })
	if err := c.WaitReady(context.Background()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		rec.mu.Lock()
		reply, rec.requests = string(raw), nil
		rec.mu.Unlock()
		err := c.Incr(FailFast(context.Background()), "n").Err()
		runs := len(rec.take())
		if runs > 1 {
			t.Fatalf("sent %d times: %v", runs, err)
		}
		if runs == 0 {
			if !errors.Is(err, ErrUnavailable) || !SafeToRetry(err) {
				t.Fatalf("not sent: %v", err)
			}
			return
		}
		var e *Error
		switch {
		case err == nil, err == redis.Nil:
			if SafeToRetry(err) || IsConnectionError(err) {
				t.Fatalf("%v after %q", err, raw)
			}
		case isReply(err):
			if IsConnectionError(err) || errors.As(err, &e) {
				t.Fatalf("%T %v after %q", err, err, raw)
			}
			if SafeToRetry(err) && !saysNotRun(err.Error()) {
				t.Fatalf("%v is safe to retry", err)
			}
		default: // the connection is lost, or go-redis cannot make sense of the reply
			if SafeToRetry(err) || IsConnectionError(err) && !errors.Is(err, ErrOutcomeUnknown) {
				t.Fatalf("%T %v after %q", err, err, raw)
			}
		}
	})
}
