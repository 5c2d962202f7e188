package redial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// observed remembers what an observer is told.
type observed struct {
	mu       sync.Mutex
	states   []Event
	waits    []Wait
	retries  []Retry
	failures []*Error
	marks    []any // of the contexts of commands
}

type markKey struct{}

func (o *observed) note(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

func (o *observed) mark(ctx context.Context) { o.marks = append(o.marks, ctx.Value(markKey{})) }

func (o *observed) ObserveState(e Event) { o.note(func() { o.states = append(o.states, e) }) }
func (o *observed) ObserveWait(ctx context.Context, w Wait) {
	o.note(func() { o.waits = append(o.waits, w); o.mark(ctx) })
}
func (o *observed) ObserveRetry(ctx context.Context, r Retry) {
	o.note(func() { o.retries = append(o.retries, r); o.mark(ctx) })
}
func (o *observed) ObserveFailure(ctx context.Context, e *Error) {
	o.note(func() { o.failures = append(o.failures, e); o.mark(ctx) })
}

// bufferedLog is a logger and what it has written, without the time.
func bufferedLog() (*slog.Logger, *bytes.Buffer) {
	var log bytes.Buffer
	return slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && len(groups) == 0 {
			return slog.Attr{}
		}
		return a
	}})), &log
}

// warmed has the pool of c hold as many connections.
func warmed(t *testing.T, n *memNet, c *Client, conns int) {
	t.Helper()
	n.Freeze()
	var calls sync.WaitGroup
	for range conns {
		calls.Go(func() { assert.NoError(t, c.Set(t.Context(), "k", "v", 0).Err()) })
	}
	synctest.Wait()
	n.Thaw()
	calls.Wait()
}

// What observers are told adds up to what is counted, and a command that is well meets none.
func TestObserver_ToldWhatIsCounted(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		seen, second := &observed{}, &observed{}
		c := NewClient(opt, WithObserver(seen), WithObserver(second), WithGrace(2*time.Second))
		ready(t, c)
		ctx := context.WithValue(t.Context(), markKey{}, "mark")
		for range 10 {
			require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
		}
		assert.Empty(t, seen.waits)
		assert.Empty(t, seen.retries)
		assert.Empty(t, seen.failures)

		warmed(t, n, c, 2)
		n.Freeze()
		var calls sync.WaitGroup
		var got, incr, waited, short, late error
		calls.Go(func() { got = c.Get(ctx, "k").Err() })
		calls.Go(func() { incr = c.Incr(ctx, "n").Err() })
		synctest.Wait()
		n.Kill()
		n.Thaw()
		require.NoError(t, c.WaitForState(ctx, StateReconnecting))
		calls.Go(func() { waited = c.Set(ctx, "k", "w", 0).Err() })
		calls.Go(func() {
			end, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			defer cancel()
			short = c.Get(end, "k").Err()
		})
		time.Sleep(time.Second)
		n.Start()
		calls.Wait()
		require.NoError(t, got)
		require.ErrorIs(t, incr, ErrOutcomeUnknown)
		require.NoError(t, waited)
		require.ErrorIs(t, short, context.DeadlineExceeded)

		n.Kill()
		require.NoError(t, c.WaitForState(ctx, StateReconnecting))
		calls.Go(func() { late = c.Set(ctx, "k", "x", 0).Err() })
		calls.Wait()
		require.ErrorIs(t, late, ErrUnavailable)
		require.ErrorIs(t, c.Ping(ctx).Err(), ErrUnavailable, "it does not even wait")
		n.Start()
		require.NoError(t, c.WaitReady(ctx))
		require.NoError(t, c.Close())
		s := c.Stats()

		causes := make(map[Cause]int)
		for _, w := range seen.waits {
			causes[w.Cause]++
			assert.Equal(t, w.Cause == CauseNone, w.Err == nil)
			assert.GreaterOrEqual(t, w.Total, w.For)
			assert.Empty(t, w.Node)
		}
		assert.Equal(t, map[Cause]int{CauseNone: 2, CauseContextEnded: 1, CauseGraceOver: 1}, causes)
		assert.EqualValues(t, s.Waited, len(seen.waits))
		require.NotEmpty(t, seen.retries)
		assert.Equal(t, "get", seen.retries[0].Cmd)
		assert.Equal(t, 2, seen.retries[0].Attempt)
		assert.Equal(t, AfterRepeated, seen.retries[0].After)
		assert.True(t, IsConnectionError(seen.retries[0].Err), "%v", seen.retries[0].Err)
		assert.EqualValues(t, s.Retries, len(seen.retries))
		unknown := 0
		for _, e := range seen.failures {
			if errors.Is(e, ErrOutcomeUnknown) {
				unknown++
			}
		}
		assert.EqualValues(t, 1, unknown)
		assert.EqualValues(t, s.Unknown, unknown)
		assert.EqualValues(t, s.Refused, len(seen.failures)-unknown)
		for _, m := range seen.marks {
			assert.Equal(t, "mark", m, "the context is that of the caller")
		}
		var to []State
		for _, e := range seen.states {
			to = append(to, e.To)
		}
		assert.Equal(t, []State{StateConnected, StateReconnecting, StateConnected, StateReconnecting, StateConnected, StateClosed}, to)
		assert.Equal(t, seen.states, second.states)
		assert.Equal(t, seen.waits, second.waits)
		assert.Equal(t, seen.retries, second.retries)
		assert.Equal(t, seen.failures, second.failures)
	})
}

type panicking struct{}

func (panicking) ObserveState(Event)                           { panic("oops") }
func (panicking) ObserveFailure(ctx context.Context, e *Error) { panic("oops") }

// A panic in an observer harms neither the command nor the observers after it.
func TestObserver_Panic_IsContainedAndLogged(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		logger, log := bufferedLog()
		seen := &observed{}
		c := NewClient(opt, WithObserver(panicking{}), WithObserver(seen), WithLogger(logger))
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		require.ErrorIs(t, c.Ping(FailFast(t.Context())).Err(), ErrUnavailable)
		require.NoError(t, c.Close())
		assert.Len(t, seen.failures, 1)
		assert.Len(t, seen.states, 3)
		assert.Equal(t, 4, strings.Count(log.String(), logPanicObserver), log)
	})
}

// The events of a cluster's nodes name them, and so do the waits for one.
func TestObserver_Nodes(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		seen := &observed{}
		c := NewClusterClient(&redis.ClusterOptions{
			Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
			ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
				return []redis.ClusterSlot{{Start: 0, End: lastSlot, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1:1"}}}}, nil
			},
		}, WithObserver(seen))
		ctx := t.Context()
		require.NoError(t, c.WaitReady(ctx))
		require.NoError(t, c.Set(ctx, "k", 1, 0).Err())
		n.Kill()
		require.NoError(t, c.WaitForState(ctx, StateReconnecting))
		time.AfterFunc(time.Second, n.Start)
		require.NoError(t, c.Set(ctx, "k", 1, 0).Err())
		require.NoError(t, c.Close())
		assert.EqualValues(t, c.Stats().Waited, len(seen.waits))
		assert.NotEmpty(t, seen.waits)
		nodes, wholes := 0, 0
		for _, e := range seen.states {
			if e.From != StateReconnecting {
				continue
			}
			require.NotNil(t, e.Outage)
			if e.Node == "" {
				wholes++
				assert.Equal(t, CauseNoNode, e.Outage.Cause)
			} else {
				nodes++
				assert.Equal(t, CauseConnectionLost, e.Outage.Cause)
			}
		}
		assert.Equal(t, 1, nodes)
		assert.Equal(t, 1, wholes)
	})
}

func TestRetryAfter_Names(t *testing.T) {
	for r, want := range map[RetryAfter]string{AfterUnsent: "unsent", AfterRefused: "refused", AfterRepeated: "repeated", 9: "RetryAfter(9)"} {
		text, err := r.MarshalText()
		require.NoError(t, err)
		assert.Equal(t, want, string(text))
	}
}

// The time before the first attempt to reach a server counts, and the attempt does not
// take it away again.
func TestStats_Down_GrowsThroughTheFirstAttempt(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		n.Kill()
		c := NewClusterClient(&redis.ClusterOptions{
			Dialer: n.Dial, Addrs: []string{"127.0.0.1:1"}, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
		})
		defer c.Close()
		last := c.Stats()
		for range 20 {
			time.Sleep(introduction / 10)
			s := c.Stats()
			s.growsFrom(t, last)
			assert.Equal(t, last.Down+introduction/10, s.Down)
			last = s
		}
	})
}

// What is logged and remembered of an outage, from the suspicion on that led to it.
func TestOutage_IsSummedUp(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		logger, log := bufferedLog()
		seen := &observed{}
		c := NewClient(opt, WithLogger(logger), WithObserver(seen), WithGrace(time.Second))
		ready(t, c)
		ctx := t.Context()
		assert.Empty(t, c.Outages())
		warmed(t, n, c, 3)
		n.Freeze()
		var calls sync.WaitGroup
		for range 3 {
			calls.Go(func() { assert.ErrorIs(t, c.Incr(ctx, "n").Err(), ErrOutcomeUnknown) })
		}
		synctest.Wait()
		n.Kill()
		n.Thaw()
		calls.Wait()
		require.NoError(t, c.WaitForState(ctx, StateReconnecting))
		began := c.Stats().Since
		for range 2 {
			calls.Go(func() { assert.ErrorIs(t, c.Incr(ctx, "n").Err(), ErrUnavailable) })
		}
		calls.Wait()
		for range 4 {
			require.ErrorIs(t, c.Incr(ctx, "n").Err(), ErrUnavailable)
		}
		time.Sleep(2 * time.Second)
		now := c.Outages()
		require.Len(t, now, 1)
		assert.Equal(t, Outage{
			Began: began, Duration: time.Since(began), Cause: CauseConnectionLost, Reason: "connection lost",
			Waited: 2, Refused: 6, Unknown: 3,
		}, now[0])
		n.Start()
		ready(t, c)
		after := c.Outages()
		require.Len(t, after, 1)
		want := now[0]
		want.Over, want.Duration = true, c.Stats().Since.Sub(began)
		assert.Equal(t, want, after[0])
		assert.Equal(t, want, *seen.states[len(seen.states)-1].Outage)
		require.NoError(t, c.Close())
		assert.Equal(t, after, c.Outages(), "a closed client remembers")

		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		require.Len(t, lines, 5, log)
		assert.Contains(t, lines[0], "level=INFO msg=\"redis connected\"")
		assert.NotContains(t, lines[0], "outage")
		assert.NotContains(t, lines[0], "waited")
		assert.Contains(t, lines[1], "level=WARN msg=\"redis reconnecting\"")
		assert.Contains(t, lines[2], "level=WARN msg=\"redis refusing commands\"")
		assert.Contains(t, lines[2], "state=reconnecting reason=\"the grace is over\" cause=grace_over outage_cause=connection_lost outage=1s waited=2")
		assert.Contains(t, lines[3], "level=INFO msg=\"redis connected\"")
		assert.Contains(t, lines[3], fmt.Sprintf("outage_cause=connection_lost outage=%v waited=2 refused=6 unknown=3", want.Duration.Round(time.Microsecond)))
		assert.Contains(t, lines[4], "all.waited=2 all.refused=6 all.unknown=3 all.retries=0")
	})
}

// An unknown outcome of long before is none of the outage's.
func TestOutage_BeginsWithItsOwnSuspicion(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		ctx := t.Context()
		n.Freeze()
		var calls sync.WaitGroup
		calls.Go(func() { assert.ErrorIs(t, c.Incr(ctx, "n").Err(), ErrOutcomeUnknown) })
		synctest.Wait()
		n.Cut() // one connection broke, and the server is well
		n.Thaw()
		calls.Wait()
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 1, c.Stats().Unknown)
		require.Zero(t, c.Stats().Outages)
		n.Kill()
		require.NoError(t, c.WaitForState(ctx, StateReconnecting))
		n.Start()
		ready(t, c)
		require.Len(t, c.Outages(), 1)
		assert.Zero(t, c.Outages()[0].Unknown)
	})
}

func TestOutages_TheLastOnesAreKept(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		for range outagesKept + 3 {
			ready(t, c)
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			n.Start()
		}
		ready(t, c)
		all := c.Outages()
		require.Len(t, all, outagesKept)
		assert.EqualValues(t, outagesKept+3, c.Stats().Outages)
		for i, o := range all[1:] {
			assert.True(t, o.Began.After(all[i].Began))
		}
		assert.Equal(t, c.Stats().Since, all[len(all)-1].Began.Add(all[len(all)-1].Duration))
	})
}

// As many commands as may are waiting: that is told once in an outage, however many are
// refused.
func TestRefusing_WaitersFull_OneLine(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		logger, log := bufferedLog()
		c := NewClient(opt, WithLogger(logger), WithMaxWaiting(1))
		ready(t, c)
		for range 2 {
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			var calls sync.WaitGroup
			calls.Go(func() { assert.NoError(t, c.Set(t.Context(), "k", "v", 0).Err()) })
			synctest.Wait()
			for range 50 {
				require.ErrorIs(t, c.Get(t.Context(), "k").Err(), ErrUnavailable)
			}
			n.Start()
			calls.Wait()
		}
		require.NoError(t, c.Close())
		assert.Equal(t, 2, strings.Count(log.String(), logRefusing), log)
		assert.Equal(t, 2, strings.Count(log.String(), "cause=waiters_full"), log)
	})
}

// A server that is up and keeps refusing is told of when that begins.
func TestRefusing_ServerThatIsUp_OneLineAtTheBeginning(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		logger, log := bufferedLog()
		c := NewClient(opt, WithLogger(logger), WithGrace(time.Second))
		ready(t, c)
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		count := func() int {
			return strings.Count(log.String(), "state=connected reason=\"the grace is over\" cause=grace_over error=\"BUSY")
		}
		for episode := range 2 {
			n.Redis.SetError("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.")
			for range 5 {
				require.ErrorContains(t, c.Get(t.Context(), "k").Err(), "BUSY")
			}
			synctest.Wait()
			assert.Equal(t, episode+1, count(), log)
			n.Redis.SetError("")
			time.Sleep(2 * refusalQuiet)
		}
		require.NoError(t, c.Close())
		assert.NotContains(t, log.String(), "secret")
	})
}

// What a server that is up refuses for long, or for good, did not run either: it counts, once a call.
func TestStats_ServerThatIsUpRefuses_Counts(t *testing.T) {
	for _, reply := range []string{"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "NOAUTH Authentication required."} {
		bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
			seen := &observed{}
			c := NewClient(opt, WithObserver(seen), WithGrace(time.Second))
			defer c.Close()
			ready(t, c)
			n.Redis.SetError(reply)
			require.EqualError(t, c.Get(t.Context(), "k").Err(), reply)
			assert.EqualValues(t, 1, c.Stats().Refused)
			_, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error { p.Get(t.Context(), "k"); p.Get(t.Context(), "n"); return nil })
			require.EqualError(t, err, reply)
			assert.EqualValues(t, 2, c.Stats().Refused)
			require.EqualError(t, c.Watch(t.Context(), func(tx *redis.Tx) error { return nil }, "k"), reply)
			assert.EqualValues(t, 3, c.Stats().Refused)
			require.EqualError(t, c.Do(FailFast(t.Context()), "incr", "n").Err(), reply)
			assert.EqualValues(t, 4, c.Stats().Refused)
			assert.Zero(t, c.Stats().Unknown)
			assert.Empty(t, seen.failures, "they are replies")
			n.Redis.SetError("")
			require.NoError(t, c.Watch(t.Context(), func(tx *redis.Tx) error {
				n.Redis.SetError(reply)
				require.EqualError(t, tx.Get(t.Context(), "k").Err(), reply)
				return nil
			}, "k"))
			assert.EqualValues(t, 5, c.Stats().Refused)
		})
	}
}

// What sets up a connection fails for the commands that want it: what may have become of itself is
// no news to whoever reads the log.
func TestRefusing_SetUpFails_ItsOutcomeIsNotLogged(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		opt.Protocol = 3
		logger, log := bufferedLog()
		c := NewClient(opt, WithLogger(logger), WithGrace(time.Second))
		ready(t, c)
		n.Redis.Server().SetPreHook(func(p *server.Peer, cmd string, _ ...string) bool {
			if strings.EqualFold(cmd, "hello") {
				p.WriteRaw("HTTP/1.1 400 Bad Request\r\n")
				return true
			}
			return false
		})
		n.Cut()
		require.ErrorIs(t, c.Get(t.Context(), "k").Err(), ErrUnavailable)
		require.NoError(t, c.Close())
		assert.Equal(t, 1, strings.Count(log.String(), logRefusing), log)
		assert.Contains(t, log.String(), "error=\"hello: redis: can't parse")
	})
}

// What a proxy says, and only the caller can read, is in no log.
func TestRefusing_TaughtReplies_AreNotLogged(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		logger, log := bufferedLog()
		c := NewClient(opt, WithLogger(logger), WithGrace(time.Second), WithRefusals(func(error) bool { return true }))
		ready(t, c)
		n.Redis.SetError("PROXY cannot serve secret-key")
		require.ErrorContains(t, c.Get(t.Context(), "k").Err(), "secret-key")
		n.Redis.SetError("")
		require.NoError(t, c.Close())
		assert.Equal(t, 1, strings.Count(log.String(), logRefusing), log)
		assert.NotContains(t, log.String(), "secret")
	})
}

// States that flap make few lines, each of which says how many were left out, and the last
// state is told all the same.
func TestLog_Flapping_IsBoundedAndCounted(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		logger, log := bufferedLog()
		seen := &observed{}
		c := NewClient(opt, WithLogger(logger), WithObserver(seen))
		ready(t, c)
		began := time.Now()
		for flap := range 200 {
			c.Reconnect("flap")
			ready(t, c)
			time.Sleep(time.Until(began.Add(time.Duration(flap) * 600 * time.Millisecond)))
		}
		took := time.Since(began)
		require.Less(t, took, 121*time.Second)
		time.Sleep(logRefill + time.Second)
		synctest.Wait()
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		left := leftOut(t, log.String())
		assert.EqualValues(t, len(seen.states), len(lines)+left, "what is not told is counted")
		assert.LessOrEqual(t, len(lines), logBurst+int((took+2*logRefill)/logRefill))
		assert.Contains(t, lines[len(lines)-1], "redis connected")
		assert.Contains(t, lines[len(lines)-1], " at=")

		// A minute later there is room again.
		time.Sleep(time.Duration(logBurst) * logRefill)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		synctest.Wait()
		lines = strings.Split(strings.TrimSpace(log.String()), "\n")
		assert.Contains(t, lines[len(lines)-1], "redis reconnecting")
		assert.NotContains(t, lines[len(lines)-1], "left_out")
		require.NoError(t, c.Close())
	})
}

// So do nodes that come and go: one that has left has not got a new allowance when it is
// back. Those that never come back are forgotten.
func TestLog_NodesComeAndGo_IsBoundedAndCounted(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, _ *redis.Options) {
		logger, log := bufferedLog()
		seen := &observed{}
		c := NewRing(&redis.RingOptions{
			Addrs: map[string]string{"stays": "127.0.0.1:1"}, Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
		}, WithLogger(logger), WithObserver(seen))
		defer c.Close()
		ctx := t.Context()
		require.NoError(t, c.WaitReady(ctx))
		comes := func(addr string) {
			c.SetAddrs(map[string]string{"stays": "127.0.0.1:1", "goes": addr})
			for i := range 20 { // on both
				require.NoError(t, c.Set(ctx, fmt.Sprint("k", i), "v", 0).Err())
			}
			time.Sleep(300 * time.Millisecond)
			c.SetAddrs(map[string]string{"stays": "127.0.0.1:1"})
			time.Sleep(300 * time.Millisecond)
		}
		began := time.Now()
		for range 100 {
			comes("127.0.0.1:2")
		}
		took := time.Since(began)
		time.Sleep(2 * logRefill)
		synctest.Wait()
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		left := leftOut(t, log.String())
		assert.EqualValues(t, len(seen.states), len(lines)+left, "what is not told is counted")
		assert.Greater(t, len(seen.states), 200)
		assert.LessOrEqual(t, len(lines), 2*logBurst+int((took+2*logRefill)/logRefill))
		assert.Contains(t, lines[len(lines)-1], "redis closed")
		assert.Contains(t, lines[len(lines)-1], "cause=node_removed")

		time.Sleep(logBurst * logRefill)
		for i := range 50 {
			comes(fmt.Sprint("127.0.1.1:", i+1))
			time.Sleep(2 * logRefill)
		}
		synctest.Wait()
		assert.Less(t, len(c.keeper.events.lines), 10)
	})
}

// What commands had gone through before a node came is not said of it.
func TestLog_NodeComesLate_SaysNothingOfBefore(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, _ *redis.Options) {
		logger, log := bufferedLog()
		seen := &observed{}
		c := NewRing(&redis.RingOptions{
			Addrs: map[string]string{"one": "127.0.0.1:1"}, Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
		}, WithLogger(logger), WithObserver(seen), WithGrace(0))
		defer c.Close()
		ctx := t.Context()
		require.NoError(t, c.WaitReady(ctx))
		n.Kill()
		require.NoError(t, c.WaitForState(ctx, StateReconnecting))
		require.ErrorIs(t, c.Set(ctx, "k", "v", 0).Err(), ErrUnavailable)
		n.Start()
		require.NoError(t, c.WaitReady(ctx))
		require.NotZero(t, c.Stats().Refused)

		c.SetAddrs(map[string]string{"one": "127.0.0.1:1", "two": "127.0.0.1:2"})
		for i := range 20 { // on both
			require.NoError(t, c.Set(ctx, fmt.Sprint("k", i), "v", 0).Err())
		}
		synctest.Wait()
		last := seen.states[len(seen.states)-1]
		require.Equal(t, "127.0.0.1:2", last.Node)
		assert.Zero(t, last.Outage.Refused)
		assert.Regexp(t, `node=127.0.0.1:2 from=connecting to=connected reason="server answers" cause=answered after=0s attempts=1\n$`, log.String())
	})
}

// leftOut returns how many lines a log says were left out of it.
func leftOut(t *testing.T, log string) (left int) {
	t.Helper()
	for _, m := range regexp.MustCompile(`left_out=(\d+)`).FindAllStringSubmatch(log, -1) {
		k, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		left += k
	}
	return left
}

// The last line is written however many there were.
func TestLog_Flapping_Close_IsTold(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		logger, log := bufferedLog()
		c := NewClient(opt, WithLogger(logger))
		for range logBurst {
			ready(t, c)
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			n.Start()
			ready(t, c)
		}
		require.NoError(t, c.Close())
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		assert.Contains(t, lines[len(lines)-1], "redis closed")
		assert.Contains(t, lines[len(lines)-1], "left_out=")
	})
}

func TestCheck(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		n.Kill()
		c := NewClient(opt)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, c.Check(ended), ErrUnavailable)
		assert.ErrorContains(t, c.Check(ended), "127.0.0.1:1 is connecting since")
		n.Start()
		ready(t, c)
		assert.NoError(t, c.Check(ended), "it does not look at the context")
		later := c.CheckAfter(3 * time.Second)

		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		began := time.Now()
		err := c.Check(t.Context())
		assert.Zero(t, time.Since(began), "it does not wait")
		var e *Error
		require.ErrorAs(t, err, &e)
		require.ErrorIs(t, err, ErrUnavailable)
		assert.Equal(t, StateReconnecting, e.State)
		assert.Equal(t, c.Stats().Since, e.Since)
		assert.Equal(t, CauseConnectionLost, e.Cause)
		assert.True(t, IsConnectionError(err))
		assert.Equal(t, fmt.Sprintf("redial: 127.0.0.1:1 is reconnecting since %s: connection lost: %v", e.Since.Format("15:04:05.000"), errRefused), err.Error())
		assert.NoError(t, later(ended))
		assert.Equal(t, err, c.CheckAfter(0)(ended))
		time.Sleep(3 * time.Second)
		assert.NoError(t, later(ended), "not for longer than that")
		time.Sleep(time.Nanosecond)
		assert.ErrorIs(t, later(ended), ErrUnavailable)
		n.Start()
		ready(t, c)
		assert.NoError(t, later(ended))
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		assert.NoError(t, later(ended), "another outage")
		require.NoError(t, c.Close())
		assert.Equal(t, ErrClosed, c.Check(ended))
		assert.Equal(t, ErrClosed, later(ended))
	})
}

func TestStats_Limits(t *testing.T) {
	c := NewClient(&redis.Options{Addr: "127.0.0.1:1"}, WithMaxWaiting(7), WithGrace(8*time.Second))
	defer c.Close()
	assert.Equal(t, 7, c.Stats().MaxWaiting)
	assert.Equal(t, 8*time.Second, c.Stats().Grace)
}

// A command whose way has changed waits for the client as a whole like any other: it does
// not look again and again until that is Connected.
func TestWait_TopologyChanged_AllNodesDown_WaitsOnce(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		seen := &impatient{most: 100, give: cancel}
		c := NewClusterClient(&redis.ClusterOptions{
			Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
			ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
				return []redis.ClusterSlot{{Start: 0, End: lastSlot, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1:1"}}}}, nil
			},
		}, WithObserver(seen))
		defer c.Close()
		require.NoError(t, c.WaitReady(ctx))
		require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
		n.Freeze()
		var got error
		var call sync.WaitGroup
		call.Go(func() { got = c.Get(WaitFor(ctx, time.Hour), "k").Err() })
		synctest.Wait()
		n.Kill()
		n.Thaw()
		require.NoError(t, c.WaitForState(ctx, StateReconnecting))
		synctest.Wait()
		c.nodes.proceed()
		time.Sleep(time.Second)
		n.Start()
		call.Wait()
		require.NoError(t, got)
		assert.Less(t, seen.waits, 10)
	})
}

// impatient ends what waits too often.
type impatient struct {
	waits, most int
	give        func()
}

func (i *impatient) ObserveWait(context.Context, Wait) {
	if i.waits++; i.waits == i.most {
		i.give()
	}
}

func TestEvents_SlowCallback_DelaysNobody(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		block := make(chan struct{})
		var got []Event
		c := NewClient(opt, WithOnStateChange(func(e Event) {
			<-block
			got = append(got, e)
		}))
		for range 50 {
			require.NoError(t, c.WaitReady(t.Context()))
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			n.Start()
		}
		require.NoError(t, c.WaitReady(t.Context()))
		began := time.Now()
		require.NoError(t, c.Close())
		assert.Equal(t, callbackPatience, time.Since(began))
		close(block)
		synctest.Wait()
		require.Len(t, got, 1+eventQueue)
		assert.Equal(t, StateClosed, got[len(got)-1].To, "the last one is never dropped")
		assert.EqualValues(t, 102-1-eventQueue, c.Stats().EventsDropped)
		for i := 2; i < len(got); i++ {
			assert.Equal(t, got[i-1].To, got[i].From, "in order")
		}
	})
}

// The node is as that link to it is of which there is more to say.
func TestNodeStats_With(t *testing.T) {
	for i, one := range telling {
		for j, other := range telling {
			assert.Equal(t, telling[max(i, j)], NodeStats{State: one}.with(NodeStats{State: other}).State)
		}
	}
	assert.Len(t, telling, int(StateClosed)+1)
}

// growsFrom asserts that no counter of s is below that of before.
func (s Stats) growsFrom(t *testing.T, before Stats) {
	t.Helper()
	v, old := reflect.ValueOf(s), reflect.ValueOf(before)
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.Type.Kind() == reflect.Uint64 {
			assert.GreaterOrEqual(t, v.Field(i).Uint(), old.Field(i).Uint(), f.Name)
		}
	}
	assert.GreaterOrEqual(t, s.Down, before.Down)
}

// Counters outlive the node that they were counted for.
func TestStats_NodeLeaves_CountersOnlyGrow(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var one atomic.Bool
		nodes := []redis.ClusterSlot{
			{Start: 0, End: 8191, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1:1"}}},
			{Start: 8192, End: lastSlot, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1:2"}}},
		}
		c := NewClusterClient(&redis.ClusterOptions{
			Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
			ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
				if one.Load() {
					return []redis.ClusterSlot{{Start: 0, End: lastSlot, Nodes: nodes[0].Nodes}}, nil
				}
				return nodes, nil
			},
		})
		defer c.Close()
		ctx := t.Context()
		require.NoError(t, c.WaitReady(ctx))
		for _, key := range []string{"a", "b", "c", "d"} {
			require.NoError(t, c.Set(ctx, key, 1, 0).Err())
		}
		n.Kill()
		time.Sleep(4 * time.Second) // each node notices at its next heartbeat
		n.Start()
		require.NoError(t, c.Set(ctx, "a", 1, 0).Err())
		require.NoError(t, c.Set(ctx, "b", 1, 0).Err())
		time.Sleep(30 * time.Second)
		before := c.Stats()
		require.Len(t, before.Nodes, 2)
		require.NotZero(t, before.Nodes[1].Outages)
		one.Store(true)
		c.ReloadState(ctx)
		last := before
		for range 3 * 60 {
			time.Sleep(time.Second)
			s := c.Stats()
			s.growsFrom(t, last)
			last = s
		}
		assert.Len(t, last.Nodes, 1, "the node is gone")
		assert.EqualValues(t, last.Nodes[0].Outages, before.Nodes[0].Outages)
	})
}

// Shards at one address are one node, of which there is one series.
func TestStats_ShardsAtOneAddress_AreOneNode(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, _ *redis.Options) {
		c := NewRing(&redis.RingOptions{
			Addrs:  map[string]string{"one": "127.0.0.1:1", "two": "127.0.0.1:1", "three": "127.0.0.1:3"},
			Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
		})
		defer c.Close()
		require.NoError(t, c.WaitReady(t.Context()))
		for i := range 30 { // on all
			require.NoError(t, c.Set(t.Context(), fmt.Sprint("k", i), "v", 0).Err())
		}
		nodes := c.Stats().Nodes
		require.Len(t, nodes, 2, "%+v", nodes)
		assert.Equal(t, "127.0.0.1:1", nodes[0].Addr)
		assert.Equal(t, "127.0.0.1:3", nodes[1].Addr)
		assert.Equal(t, StateConnected, nodes[0].State)
		assert.Equal(t, 2*nodes[1].Connections, nodes[0].Connections)
		assert.Equal(t, c.Stats().Connections, nodes[0].Connections+nodes[1].Connections)
		n.Kill()
		time.Sleep(4 * time.Second) // each notices at its next heartbeat
		nodes = c.Stats().Nodes
		require.Len(t, nodes, 2)
		assert.Equal(t, StateReconnecting, nodes[0].State)
		assert.EqualValues(t, 2, nodes[0].Outages)
		assert.NotEmpty(t, nodes[0].LastError)
	})
}

// brittle is a handler of a logger that panics.
type brittle struct {
	slog.Handler
	enabled bool
}

func (b brittle) Enabled(context.Context, slog.Level) bool {
	if !b.enabled {
		panic("enabled")
	}
	return true
}

func (brittle) Handle(context.Context, slog.Record) error { panic("handle") }

// A logger that panics ends no program, and keeps nobody from being told: not the callback,
// not the observers, and not the command whose observer panics.
func TestEvents_PanickingLogger_IsContained(t *testing.T) {
	for _, enabled := range []bool{false, true} {
		bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
			calls, seen := 0, &observed{}
			c := NewClient(opt, WithLogger(slog.New(brittle{slog.DiscardHandler, enabled})), WithObserver(panicking{}), WithObserver(seen),
				WithOnStateChange(func(Event) { calls++; panic("oops") }))
			ready(t, c)
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			require.ErrorIs(t, c.Ping(FailFast(t.Context())).Err(), ErrUnavailable)
			require.NoError(t, c.Close())
			assert.Equal(t, 3, calls)
			assert.Len(t, seen.states, 3)
			assert.Len(t, seen.failures, 1)
		})
	}
}

// wordless is an error that panics when it is asked for its words, as a nil pointer does.
type wordless struct{ error }

// An error that panics keeps neither the line of an outage from the log nor whoever looks from
// the statistics.
func TestEvents_ErrorThatPanics_IsTold(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		logger, log := bufferedLog()
		dial := opt.Dialer
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				err = wordless{}
			}
			return conn, err
		}
		c := NewClient(opt, WithLogger(logger))
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		synctest.Wait()
		assert.Contains(t, log.String(), logTransition+StateReconnecting.String())
		assert.NotContains(t, log.String(), logPanicCallback)
		assert.Contains(t, c.Stats().LastError, "PANIC")
		require.NoError(t, c.Close())
	})
}

// A callback that ends its goroutine, as a test that fails in one does, ends nothing else: the
// next events are delivered, in order, and Close waits for the last of them.
func TestEvents_CallbackEndsItsGoroutine_NextAreDelivered(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		logger, log := bufferedLog()
		var got []State
		c := NewClient(opt, WithLogger(logger), WithOnStateChange(func(e Event) {
			got = append(got, e.To)
			runtime.Goexit()
		}))
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		n.Start()
		ready(t, c)
		require.NoError(t, c.Close())
		assert.Equal(t, []State{StateConnected, StateReconnecting, StateConnected, StateClosed}, got)
		assert.Equal(t, 4, strings.Count(log.String(), logTransition), log)
	})
}

// leaver ends the goroutine by which it is told.
type leaver struct{ slog.Handler }

func (leaver) Handle(context.Context, slog.Record) error { runtime.Goexit(); return nil }
func (leaver) ObserveState(Event)                        { runtime.Goexit() }
func (leaver) ObserveFailure(context.Context, *Error)    { runtime.Goexit() }
func (leaver) ObserveRetry(context.Context, Retry)       { runtime.Goexit() }

// What is told first and ends its goroutine keeps nothing from who is told after it.
func TestEvents_GoroutineEnded_TheOthersAreTold(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var got []State
		seen := &observed{}
		c := NewClient(opt, WithLogger(slog.New(leaver{slog.DiscardHandler})), WithObserver(leaver{}), WithObserver(seen),
			WithObserver(leaver{}), WithOnStateChange(func(e Event) { got = append(got, e.To) }))
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		var call sync.WaitGroup
		call.Go(func() {
			_ = c.Ping(FailFast(t.Context()))
			t.Error("the goroutine goes on")
		})
		call.Wait()
		require.NoError(t, c.Close())
		assert.Equal(t, []State{StateConnected, StateReconnecting, StateClosed}, got)
		assert.Len(t, seen.states, 3)
		assert.Len(t, seen.failures, 1)
	})
}

// However often a callback ends its goroutine, what is queued has been delivered when it was
// waited for. In a bubble, where patience ends only when nothing else can go on.
func TestEvents_GoroutineEnded_IsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const events = 20
		for range 3000 {
			var told atomic.Int32
			cfg := &config{onChange: func(Event) { told.Add(1); runtime.Goexit() }}
			e := newEvents(cfg, newObservers(cfg, ""))
			for range events {
				e.put(Event{To: StateClosed})
			}
			e.signal()
			for told.Load() < events/2 {
				runtime.Gosched()
			}
			e.join()
			require.EqualValues(t, events, told.Load())
		}
	})
}

// What was left out is told once, and of each node, by a handler that ends its goroutine, too.
func TestLog_Reminder_GoroutineEnded_IsToldOnce(t *testing.T) {
	var lines []string
	cfg := &config{logger: slog.New(jotting{slog.DiscardHandler, func(r slog.Record) {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "node" || a.Key == "at" {
				lines = append(lines, a.Key+" "+a.Value.String())
			}
			return true
		})
		runtime.Goexit()
	}})}
	e := newEvents(cfg, newObservers(cfg, ""))
	now := time.Now()
	for _, node := range []string{"a", "b"} {
		for range logBurst + 5 {
			e.put(Event{To: StateReconnecting, At: now, Node: node})
			e.signal()
			e.join()
		}
	}
	lines = nil
	for range 3 {
		e.remind(now.Add(logRefill))
		e.join()
	}
	at := "at " + now.Round(0).String()
	assert.ElementsMatch(t, []string{"node a", at, "node b", at}, lines)
}

// jotting is a handler that hands on what is logged.
type jotting struct {
	slog.Handler
	note func(slog.Record)
}

func (jotting) Enabled(context.Context, slog.Level) bool { return true }
func (j jotting) Handle(_ context.Context, r slog.Record) error {
	j.note(r)
	return nil
}

// An observer that panics for each command of an outage does not fill the log.
func TestObserver_Panics_LinesAreBoundedAndCounted(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		logger, log := bufferedLog()
		c := NewClient(opt, WithObserver(panicking{}), WithLogger(logger))
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		refused := func(times int) {
			for range times {
				require.ErrorIs(t, c.Ping(FailFast(t.Context())).Err(), ErrUnavailable)
			}
		}
		refused(1000)
		synctest.Wait()
		assert.Equal(t, logBurst, strings.Count(log.String(), logPanicObserver))
		time.Sleep(logRefill)
		refused(1)
		assert.Equal(t, logBurst+1, strings.Count(log.String(), logPanicObserver))
		assert.Regexp(t, `panic=oops .*left_out=98\d\n`, log.String())
		require.NoError(t, c.Close())
	})
}

// Each kind of panic has lines of its own: those of one keep those of another from nobody, and
// neither do those before.
func TestPanics_EachKindIsBoundedByItself(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		logger, log := bufferedLog()
		dial, panics := opt.Dialer, atomic.Bool{}
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if panics.Load() {
				panic("dial")
			}
			return dial(ctx, network, addr)
		}
		c := NewClient(opt, WithObserver(panicking{}), WithLogger(logger), WithOnStateChange(func(Event) { panic("callback") }))
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		for range 1000 {
			require.ErrorIs(t, c.Ping(FailFast(t.Context())).Err(), ErrUnavailable)
		}
		n.Start()
		ready(t, c)
		synctest.Wait()
		assert.Equal(t, 3, strings.Count(log.String(), logPanicCallback))
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		panics.Store(true)
		time.Sleep(time.Hour)
		panics.Store(false)
		n.Start()
		ready(t, c)
		require.NoError(t, c.Close())
		assert.Equal(t, 6, strings.Count(log.String(), logPanicCallback))
		assert.Equal(t, 1, strings.Count(log.String(), logPanicProbe), "once in its life")
		assert.Equal(t, strings.Count(log.String(), "\n"), strings.Count(log.String(), " addr="+opt.Addr+" "), "every line says whose it is")
	})
}

// However many nodes a client has, a slow callback is told what becomes of the client as a
// whole, and of its end last.
func TestEvents_ManyNodes_TheWholeIsTold(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, _ *redis.Options) {
		addrs := make(map[string]string)
		for i := range 2 * eventQueue {
			addrs[fmt.Sprint("shard", i)] = fmt.Sprint("127.0.0.1:", 1+i)
		}
		block := make(chan struct{})
		var got []State
		c := NewRing(&redis.RingOptions{Addrs: addrs, Dialer: n.Dial, Protocol: 2, DisableIdentity: true}, WithOnStateChange(func(e Event) {
			<-block
			if e.Node == "" {
				got = append(got, e.To)
			}
		}))
		require.NoError(t, c.WaitReady(t.Context()))
		for i := range 20 * eventQueue { // on all
			require.NoError(t, c.Set(t.Context(), fmt.Sprint("k", i), "v", 0).Err())
		}
		c.Reconnect("")
		require.NoError(t, c.WaitReady(t.Context()))
		require.NoError(t, c.Close())
		close(block)
		synctest.Wait()
		assert.Equal(t, []State{StateConnected, StateReconnecting, StateConnected, StateClosed}, got)
		assert.NotZero(t, c.Stats().EventsDropped)
	})
}

// A Watch is one call: what it sends by itself, WATCH until that has come through and UNWATCH
// in the end, does not count beside it.
func TestStats_Watch_CountsOnce(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		seen := &observed{}
		c := NewClient(opt, WithObserver(seen))
		defer c.Close()
		ready(t, c)
		ctx, called := t.Context(), 0
		watch := func(ctx context.Context) error {
			return c.Watch(ctx, func(*redis.Tx) error { called++; return nil }, "k")
		}
		f.Times("watch", 1, hangUp)
		require.NoError(t, watch(ctx))
		f.Times("unwatch", 1, hangUp)
		require.NoError(t, watch(ctx))
		assert.Equal(t, 2, called)
		assert.Zero(t, c.Stats().Unknown)
		assert.Zero(t, c.Stats().Refused)
		assert.Empty(t, seen.failures)
		ready(t, c)

		n.Kill()
		require.NoError(t, c.WaitForState(ctx, StateReconnecting))
		require.ErrorIs(t, watch(FailFast(ctx)), ErrUnavailable)
		assert.EqualValues(t, 1, c.Stats().Refused)
		assert.Len(t, seen.failures, 1)
		assert.Equal(t, 2, called)
	})
}

// So it is of a client that go-redis has made: nobody misses an UNWATCH, which its connection took along.
func TestStats_Watch_Supervised_CountsOnce(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		seen := &observed{}
		dial := reflect.ValueOf(opt.Dialer) // by its name it would be redial's
		opt.Dialer = reflect.MakeFunc(dial.Type(), dial.Call).Interface().(func(context.Context, string, string) (net.Conn, error))
		c := redis.NewClient(opt)
		s, err := Supervise(c, WithObserver(seen))
		require.NoError(t, err)
		defer s.Close()
		defer c.Close()
		require.NoError(t, s.WaitReady(t.Context()))
		f.Times("unwatch", 1, hangUp)
		require.NoError(t, c.Watch(t.Context(), func(*redis.Tx) error { return nil }, "k"))
		assert.Zero(t, s.Stats().Unknown)
		refused := c.Watch(t.Context(), func(tx *redis.Tx) error {
			f.Times("get", 1, hangUp)
			return tx.Get(NoRetry(t.Context()), "k").Err()
		}, "k")
		require.ErrorIs(t, refused, ErrOutcomeUnknown)
		assert.EqualValues(t, 1, s.Stats().Unknown)
		assert.Zero(t, s.Stats().Refused)
		assert.Len(t, seen.failures, 1)
	})
}

// A batch that may have run, and whose next attempt fails for another reason, is one failure,
// and is told in one sentence.
func TestStats_BatchThatMayHaveRun_CountsOnce(t *testing.T) {
	for name, batched := range map[string]func(*redis.Conn, context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){
		"pipeline": (*redis.Conn).Pipelined, "transaction": (*redis.Conn).TxPipelined,
	} {
		bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
			f := inject(n)
			seen := &observed{}
			c := NewClient(opt, WithObserver(seen))
			defer c.Close()
			ready(t, c)
			held := c.Conn()
			defer held.Close()
			require.NoError(t, held.Ping(t.Context()).Err())
			f.Times("incr", 1, hangUp)
			f.Times("exec", 1, hangUp)
			cmds, err := batched(held, Idempotent(t.Context()), func(p redis.Pipeliner) error {
				p.Incr(t.Context(), "n")
				p.Incr(t.Context(), "n")
				return nil
			})
			require.ErrorIs(t, err, ErrOutcomeUnknown)
			assert.Equal(t, 1, strings.Count(err.Error(), "redial:"), "%s: %v", name, err)
			for _, cmd := range cmds {
				assert.ErrorIs(t, cmd.Err(), ErrOutcomeUnknown)
				assert.Equal(t, 1, strings.Count(cmd.Err().Error(), "redial:"), "%s: %v", name, cmd.Err())
			}
			assert.EqualValues(t, 1, c.Stats().Unknown, name)
			assert.Zero(t, c.Stats().Refused, name)
			assert.Len(t, seen.failures, 1, name)
		})
	}
}

// Whoever sets the clock back does not keep what was left out from being told.
func TestLog_ClockGoesBack_WhatWasLeftOutIsTold(t *testing.T) {
	logger, log := bufferedLog()
	cfg := &config{logger: logger}
	e := newEvents(cfg, newObservers(cfg, ""))
	now := time.Now() // in a bubble there is no monotonic clock
	for range logBurst + 5 {
		e.ration(Event{To: StateReconnecting, At: now})
	}
	assert.NotContains(t, log.String(), "left_out")
	later := now.Add(logRefill)
	*(*uint64)(unsafe.Pointer(&later)) -= 3600 << 30 // the wall clock
	require.Equal(t, logRefill-time.Hour, later.Round(0).Sub(now.Round(0)))
	require.Equal(t, logRefill, later.Sub(now))
	e.remind(later)
	e.join()
	assert.Contains(t, log.String(), "left_out=4")
}
