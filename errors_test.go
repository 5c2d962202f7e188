package redial

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/testkit/memnet"
	"github.com/redial-go/redial/internal/wire"
)

func TestIsConnectionError(t *testing.T) {
	op := func(what string, err error) error { return &net.OpError{Op: what, Net: "tcp", Err: err} }
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{io.EOF, true},
		{io.ErrUnexpectedEOF, true},
		{io.ErrClosedPipe, true},
		{net.ErrClosed, true},
		{os.ErrDeadlineExceeded, true},
		{op("read", os.NewSyscallError("read", syscall.ECONNRESET)), true},
		{op("dial", errors.New("no such host")), true},
		{op("dial", context.DeadlineExceeded), true},
		{os.NewSyscallError("wsarecv", syscall.ECONNABORTED), sys.IsConnectionError(syscall.ECONNABORTED)},
		{os.NewSyscallError("wsarecv", syscall.Errno(10054)), runtime.GOOS == "windows"},
		{&net.DNSError{Err: "no such host", Name: "redis"}, true},
		{&tls.CertificateVerificationError{Err: errors.New("unknown authority")}, false},
		{fmt.Errorf("wrapped: %w", &wire.Error{Phase: wire.PhaseRead, Err: io.EOF}), true},
		{&Error{kind: ErrUnavailable, Err: errRefused}, true},
		{&Error{kind: ErrUnavailable, Err: errors.New("other")}, false},
		{context.Canceled, false},
		{context.DeadlineExceeded, false},
		{redis.Nil, false},
		{redisError("READONLY You can't write against a read only replica."), false},
		{redis.ErrPoolTimeout, false},
		{redis.ErrClosed, false},
		{syscall.ENOENT, false},
		{errors.New("an existing connection was forcibly closed by the remote host"), false},
	} {
		assert.Equal(t, tc.want, IsConnectionError(tc.err), "%v", tc.err)
	}
}

func TestOutcomeOf(t *testing.T) {
	another := error(&Error{kind: ErrUnavailable, Err: &wire.Error{Phase: wire.PhaseDial, Err: errRefused}})
	anotherUnknown := error(&Error{kind: ErrOutcomeUnknown, Err: &wire.Error{Phase: wire.PhaseRead, Err: io.EOF}})
	for _, tc := range []struct {
		name string
		err  error
		want outcome
		safe bool
	}{
		{"nothing", nil, answered, false},
		{"nil reply", redis.Nil, answered, false},
		{"aborted", redisError("EXECABORT Transaction discarded because of previous errors."), answered, true},
		{"reply", redisError("WRONGTYPE Operation against a key"), answered, false},
		{"loading", redisError("LOADING Redis is loading the dataset in memory"), refused, true},
		{"read only", redisError("READONLY You can't write against a read only replica."), refused, true},
		{"wrong password", redisError("WRONGPASS invalid username-password pair"), denied, true},
		{"no password", redisError("NOAUTH Authentication required."), denied, true},
		{"try again", redisError("TRYAGAIN Multiple keys request during rehashing of slot"), refused, true},
		{"cluster down", redisError("CLUSTERDOWN The cluster is down"), refused, true},
		{"master down", redisError("MASTERDOWN Link with MASTER is down"), refused, true},
		{"full", redisError("ERR max number of clients reached"), refused, true},
		{"dial", &wire.Error{Phase: wire.PhaseDial, Err: errRefused}, notSent, true},
		{"write", fmt.Errorf("x: %w", &wire.Error{Phase: wire.PhaseWrite, Err: io.EOF}), notSent, true},
		{"partial", &wire.Error{Phase: wire.PhasePartial, Err: io.EOF}, partly, false},
		{"read", &wire.Error{Phase: wire.PhaseRead, Err: io.EOF}, unknown, false},
		{"sticky", errors.New("redis: Conn is in a bad state: EOF"), notSentForGood, true},
		{"pool", redis.ErrPoolTimeout, notSentForGood, true},
		{"closed", redis.ErrClosed, notSentForGood, true},
		{"handshake", fmt.Errorf("x: %w", &Error{kind: ErrOutcomeUnknown, Err: io.EOF, handshake: true}), notSent, false},
		{"foreign", errors.New("from somebody's hook"), foreign, false},
		{"foreign, like a refusal", errors.New("READONLY is what somebody's hook says"), foreign, false},
		{"foreign, like no password", errors.New("somebody's vault: unauthenticated"), foreign, false},
		{"foreign, like aborted", errors.New("EXECABORT is what somebody's hook says"), foreign, false},
		{"broken, for a reply like aborted", &wire.Error{Phase: wire.PhaseRead, Err: redisError("EXECABORT x")}, unknown, false},
		{"broken, for what is like sticky", &wire.Error{Phase: wire.PhaseRead, Err: errors.New("redis: Conn is in a bad state")}, unknown, false},
		{"sealed, for what is like sticky", &wire.SealedError{Inner: &wire.Error{Phase: wire.PhaseRead, Err: errors.New("redis: Conn is in a bad state")}}, unknown, false},
		{"reply, like sticky", redisError("redis: Conn is in a bad state"), answered, false},
		{"broken, for another client", &wire.Error{Phase: wire.PhaseRead, Err: another}, unknown, false},
		{"broken in the middle, for another client", &wire.Error{Phase: wire.PhasePartial, Err: fmt.Errorf("x: %w", another)}, partly, false},
		{"not written, for another client", &wire.Error{Phase: wire.PhaseWrite, Err: anotherUnknown}, notSent, true},
		{"of a node, for another client", &failure{outcome: unknown, err: another}, unknown, false},
		{"ours, for another client", &Error{kind: ErrOutcomeUnknown, Err: &wire.Error{Phase: wire.PhaseRead, Err: another}}, unknown, false},
		{"ours, not sent, for another client", &Error{kind: ErrUnavailable, Err: &wire.Error{Phase: wire.PhaseDial, Err: anotherUnknown}}, notSent, true},
		{"joined with another client's", errors.Join(another, &wire.Error{Phase: wire.PhaseRead, Err: io.EOF}), unknown, false},
		{"of a node, joined with another client's", errors.Join(another, &failure{outcome: unknown, err: io.EOF}), unknown, false},
		{"not sent, joined with another client's", fmt.Errorf("%w, %w", &wire.Error{Phase: wire.PhaseDial, Err: io.EOF}, anotherUnknown), unknown, false},
		{"broken, for a rejection of another client", &wire.Error{Phase: wire.PhaseRead, Err: redis.TxFailedErr}, unknown, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			assert.Equal(t, tc.want, outcomeOf(tc.err))
			assert.Equal(t, tc.safe, SafeToRetry(tc.err))
		})
	}
	assert.False(t, SafeToRetry(&Error{kind: ErrOutcomeUnknown, Err: io.EOF}))
	assert.True(t, SafeToRetry(&Error{kind: ErrOutcomeUnknown, Err: io.EOF, reads: true}))
	assert.True(t, SafeToRetry(&Error{kind: ErrUnavailable, Err: io.EOF}))
	assert.True(t, SafeToRetry(&Error{kind: ErrClosed, Err: ErrClosed}))
	both := errors.Join(&Error{kind: ErrUnavailable, Err: io.EOF}, &Error{kind: ErrOutcomeUnknown, Err: io.EOF})
	assert.False(t, SafeToRetry(fmt.Errorf("of two commands: %w", both)))
}

func TestError(t *testing.T) {
	err := error(&Error{
		Cmd: "incr", Addr: "127.0.0.1:6379", Attempts: 2, State: StateReconnecting,
		Since: time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC), Err: os.ErrDeadlineExceeded, kind: ErrOutcomeUnknown,
		Cause: CauseUnsafe, Reason: CauseUnsafe.text(0),
	})
	assert.EqualError(t, err, "redial: incr on 127.0.0.1:6379: outcome unknown, may have run: "+
		"i/o timeout (reconnecting since 03:04:05.006, attempts: 2, no more: a second run is not allowed)")
	assert.ErrorIs(t, err, ErrOutcomeUnknown)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.NotErrorIs(t, err, ErrUnavailable)
	var timeout interface{ Timeout() bool }
	assert.ErrorAs(t, err, &timeout)
	assert.True(t, timeout.Timeout())
	assert.ErrorIs(t, ErrClosed, redis.ErrClosed)
}

// A dialer of the caller may use a client of its own. What that says of its commands is a
// cause like any other, and nothing that is said of ours.
func TestError_CauseOfAnotherClient(t *testing.T) {
	for _, ours := range []error{ErrUnavailable, ErrOutcomeUnknown, ErrClosed} {
		for _, theirs := range []error{ErrUnavailable, ErrOutcomeUnknown, ErrClosed} {
			cause := &net.OpError{Op: "dial", Err: &Error{kind: theirs, Err: errRefused}}
			err := error(&Error{kind: ours, Err: &wire.Error{Phase: wire.PhaseRead, Err: cause}})
			for _, kind := range []error{ErrUnavailable, ErrOutcomeUnknown, ErrClosed} {
				assert.Equal(t, kind == ours, errors.Is(err, kind), "%v for %v is %v", ours, theirs, kind)
			}
			assert.Equal(t, ours != ErrOutcomeUnknown, SafeToRetry(err))
			assert.ErrorIs(t, err, syscall.ECONNREFUSED)
			assert.ErrorIs(t, err, cause)
			var op *net.OpError
			assert.ErrorAs(t, err, &op)
			assert.Same(t, cause, op)
		}
	}
}

// Labels must be invisible to code that looks for the cause.
func TestConnError_ShowsItsCause(t *testing.T) {
	err := error(&wire.Error{Phase: wire.PhaseRead, Err: errRefused})
	var op *net.OpError
	var ne net.Error
	assert.ErrorAs(t, err, &op)
	assert.ErrorAs(t, err, &ne)
	assert.ErrorIs(t, err, syscall.ECONNREFUSED)
	assert.Equal(t, errRefused.Error(), err.Error())
	assert.False(t, ne.Timeout())
	assert.True(t, (&wire.Error{Phase: wire.PhaseRead, Err: os.ErrDeadlineExceeded}).Timeout())
}

// Every cause has a name of its own that is fit for a label, and is documented.
func TestCause_EachIsNamedAndDocumented(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "stats.go", nil, parser.ParseComments)
	require.NoError(t, err)
	documented := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if ok && strings.HasPrefix(spec.Names[0].Name, "Cause") {
			documented++
			assert.True(t, strings.HasPrefix(spec.Doc.Text(), spec.Names[0].Name), spec.Names[0].Name)
		}
		return true
	})
	assert.EqualValues(t, causes, documented)
	seen := make(map[string]bool)
	for c := range causes {
		assert.Regexp(t, regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`), c.String())
		assert.False(t, seen[c.String()], c.String())
		seen[c.String()] = true
	}
	assert.Equal(t, "Cause(255)", Cause(255).String())
	assert.Equal(t, "none", Cause(0).String())
	b, err := json.Marshal(Stats{Cause: CauseNotReady})
	require.NoError(t, err)
	assert.Contains(t, string(b), `"cause":"not_ready"`)
}

// The events of a client say why, each in one word.
func TestCause_Events(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		var got []Cause
		n.Freeze()                      // else it may be answered at once
		left := make(chan struct{}, 16) // the state Connected, perhaps for no time at all
		c := NewClient(opt, WithOnStateChange(func(e Event) {
			got = append(got, e.Cause)
			assert.NotEmpty(t, e.Reason)
			if e.To == StateReconnecting {
				left <- struct{}{}
			}
		}))
		assert.Equal(t, CauseCreated, c.Stats().Cause)
		n.Thaw()
		ready(t, c)
		again := func() {
			t.Helper()
			select {
			case <-left:
			case <-time.After(time.Minute):
				require.Fail(t, "still connected")
			}
			n.Start()
			n.Thaw()
			ready(t, c)
		}
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		assert.Equal(t, CauseConnectionLost, c.Stats().Cause)
		again()
		n.Freeze()
		again()
		c.Reconnect("")
		again()
		linkOf(c).moved("sentinel says so")
		again()
		f.Times("ping", 1, func(p *server.Peer) { p.WriteError("LOADING Redis is loading the dataset in memory") })
		again()
		require.NoError(t, c.Close())
		assert.Equal(t, []Cause{
			CauseAnswered, CauseConnectionLost, CauseAnswered, CauseHeartbeatMissed, CauseAnswered, CauseReconnectCalled,
			CauseAnswered, CauseMoved, CauseAnswered, CauseNotReady, CauseAnswered, CauseClosed,
		}, got)
	})
}

// So do those of a client of several nodes, of the client as a whole and of each.
func TestCause_EventsOfNodes(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var client, nodes []Cause
		c := NewRing(&redis.RingOptions{
			Addrs: map[string]string{"a": "127.0.0.1:1"}, Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
		}, WithOnStateChange(func(e Event) {
			if e.Node == "" {
				client = append(client, e.Cause)
			} else {
				nodes = append(nodes, e.Cause)
			}
		}))
		require.NoError(t, c.WaitReady(t.Context()))
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		assert.Equal(t, CauseNoNode, c.Stats().Cause)
		n.Start()
		require.NoError(t, c.WaitReady(t.Context()))
		assert.Equal(t, CauseAnswered, c.Stats().Nodes[0].Cause)
		c.SetAddrs(map[string]string{"b": "127.0.0.1:2"})
		time.Sleep(5 * time.Second)
		require.NoError(t, c.Close())
		assert.Equal(t, []Cause{CauseAnswered, CauseNoNode, CauseAnswered, CauseClosed}, client)
		assert.Subset(t, nodes, []Cause{CauseAnswered, CauseConnectionLost, CauseNodeRemoved, CauseClosed})
	})
}

// lastError keeps the last error of each command, as a hook of the caller sees it.
type lastError struct {
	recorder
	last sync.Map
}

func (k *lastError) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err != nil {
			k.last.Store(cmd.Name(), err)
		}
		return err
	}
}

// The causes that TestError_Reason does not meet.
func TestCause_Errors(t *testing.T) {
	cause := func(t *testing.T, err error) Cause {
		t.Helper()
		var e *Error
		require.ErrorAs(t, err, &e)
		assert.NotEmpty(t, e.Reason)
		return e.Cause
	}
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt, WithGrace(10*time.Millisecond))
		defer c.Close()
		ready(t, c)
		f.Times("get", 3, hangUp)
		for c.keeper.budget.take() {
		}
		assert.Equal(t, CauseBudgetSpent, cause(t, c.Get(t.Context(), "k").Err()))
	})
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		f.Times("get", 3, hangUp)
		for c.keeper.budget.take() {
		}
		short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		assert.Equal(t, CauseDeadlineNear, cause(t, c.Get(short, "k").Err()))
	})
	// A command that breaks every connection is sent as often as go-redis sends it.
	for name, send := range map[string]func(c *Client) error{
		"single": func(c *Client) error { return c.Get(context.Background(), "k").Err() },
		"pipeline": func(c *Client) error {
			_, err := c.Pipelined(context.Background(), func(p redis.Pipeliner) error { p.Get(context.Background(), "k"); return nil })
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
				f := inject(n)
				c := NewClient(opt)
				defer c.Close()
				ready(t, c)
				f.Times("get", 100, hangUp)
				err := send(c)
				assert.Equal(t, CauseRunsSpent, cause(t, err))
				assert.ErrorIs(t, err, ErrOutcomeUnknown)
				var e *Error
				require.ErrorAs(t, err, &e)
				assert.Equal(t, maxRuns, e.Attempts)
				assert.EqualValues(t, maxRuns-1, c.Stats().RetriesRepeated)
			})
		})
	}
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		cmds := []redis.Cmder{redis.NewStatusCmd(t.Context(), "set", "k", "v")}
		err := c.hook.shared(t.Context(), cmds, func(context.Context, []redis.Cmder) error {
			return &wire.Error{Phase: wire.PhaseRead, Err: errTest}
		})
		assert.Equal(t, CauseSharedConnection, cause(t, err))
	})
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		seen := &lastError{}
		opt.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
			if err := cn.Get(ctx, "k").Err(); err != redis.Nil {
				seen.last.Store("get", err)
				return err
			}
			return nil
		}
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		f.Times("get", 1, hangUp)
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		err, ok := seen.last.Load("get")
		require.True(t, ok)
		assert.Equal(t, CauseHandshake, cause(t, err.(error)))
	})
	t.Run("pool", func(t *testing.T) { // outside of a bubble, see there
		n := memnet.New()
		defer n.Close()
		c := NewClient(&redis.Options{
			Addr: "127.0.0.1:1", Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 1, PoolTimeout: 10 * time.Millisecond,
		})
		defer c.Close()
		held := c.Conn()
		defer held.Close()
		require.NoError(t, held.Ping(t.Context()).Err())
		assert.Equal(t, CausePoolExhausted, cause(t, c.Get(t.Context(), "k").Err()))
	})
}

// Code that was written for package net asserts the type of an error directly.
func TestError_IsANetError(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		opt.ReadTimeout = 300 * time.Millisecond
		c := NewClient(opt, WithRetry(RetryNever))
		defer c.Close()
		ready(t, c)
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		n.Freeze()
		err := c.Get(t.Context(), "k").Err()
		require.ErrorIs(t, err, ErrOutcomeUnknown)
		ne, ok := err.(net.Error)
		require.True(t, ok, "%T", err)
		assert.True(t, ne.Timeout())
		//lint:ignore SA1019 a caller may still use it
		assert.True(t, ne.Temporary())
		n.Thaw()
	})
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) { // nothing has failed yet
		n.Freeze()
		c := NewClient(opt, WithGrace(300*time.Millisecond))
		defer c.Close()
		err := c.Get(t.Context(), "k").Err()
		require.ErrorIs(t, err, ErrUnavailable)
		ne, ok := err.(net.Error)
		require.True(t, ok, "%T", err)
		assert.True(t, ne.Timeout(), "%v", err)
		ctx, cancel := context.WithCancel(WaitFor(t.Context(), time.Minute))
		time.AfterFunc(time.Millisecond, cancel)
		err = c.Get(ctx, "k").Err()
		require.ErrorIs(t, err, context.Canceled)
		assert.False(t, err.(net.Error).Timeout(), "%v", err)
	})
	assert.True(t, (&Error{kind: ErrUnavailable, Err: errUntold}).Timeout())
	for _, err := range []error{
		&wire.Error{Phase: wire.PhaseRead, Err: os.ErrDeadlineExceeded},
		&Error{kind: ErrUnavailable, Err: &cutShort{ctx: context.DeadlineExceeded, cause: errRefused}},
		&Error{kind: ErrUnavailable, Err: &unsealed{"x", &wire.Error{Err: os.ErrDeadlineExceeded}}},
		&Error{kind: ErrUnavailable, Err: &wire.RetiredError{Cause: os.ErrDeadlineExceeded}},
	} {
		ne, ok := err.(net.Error)
		require.True(t, ok, "%T", err)
		assert.True(t, ne.Timeout(), "%v", err)
		//lint:ignore SA1019 a caller may still use it
		assert.True(t, ne.Temporary(), "%v", err)
	}
	for _, cause := range []error{errRefused, &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, errors.New("other"), context.Canceled} {
		for _, err := range []error{&wire.Error{Err: cause}, &Error{kind: ErrUnavailable, Err: cause}} {
			ne := err.(net.Error)
			assert.False(t, ne.Timeout(), "%v", err)
			bare, ok := cause.(net.Error)
			//lint:ignore SA1019 a caller may still use it
			assert.Equal(t, ok && bare.Temporary(), ne.Temporary(), "%v", err)
		}
	}
}

// The function is asked about replies of the server alone.
func TestWithRefusals_IsAskedAboutReplies(t *testing.T) {
	_, err := newConfig([]Option{WithRefusals(nil)})
	assert.EqualError(t, err, "redial: WithRefusals function is nil")

	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		var asked []string
		c := NewClient(opt, WithRefusals(func(err error) bool {
			assert.True(t, isReply(err))
			asked = append(asked, err.Error())
			return false
		}), WithGrace(0))
		defer c.Close()
		ready(t, c)
		ctx := t.Context()
		assert.Equal(t, redis.Nil, c.Get(ctx, "none").Err())
		f.Times("get", 1, hangUp)
		assert.Error(t, c.Get(ctx, "k").Err())
		f.Times("set", 1, reply("ERR of a script script: f_1, on @user_script:1."))
		assert.Error(t, c.Set(ctx, "k", "v", 0).Err())
		assert.Empty(t, asked)
		f.Times("set", 1, reply("ERR something"))
		assert.EqualError(t, c.Set(ctx, "k", "v", 0).Err(), "ERR something")
		assert.Equal(t, []string{"ERR something"}, asked)
	})
}

// Some parts of a command that go-redis splits ran, others were refused.
func TestParts_Refused(t *testing.T) {
	oom, moved, busy := redisError("OOM command not allowed"), redisError("MOVED 1 x:1"), redisError("BUSY x")
	cfg, err := newConfig(nil)
	require.NoError(t, err)
	n := newNodes(cfg, "x")
	verdict := func(reads bool, err error, of ...error) error {
		p := new(parts)
		for _, e := range of {
			p.note(e)
		}
		return p.together(&terms{cfg: n.cfg, redirects: n.redirects(), reads: reads}, err)
	}
	assert.True(t, SafeToRetry(verdict(false, oom, oom, oom)), "none ran")
	assert.Equal(t, oom, verdict(true, oom, nil, oom), "it only reads")
	mixed := verdict(false, oom, nil, oom)
	assert.False(t, SafeToRetry(mixed), "one ran")
	assert.EqualError(t, mixed, oom.Error())
	assert.True(t, isReply(mixed))
	assert.ErrorIs(t, mixed, oom)
	assert.Equal(t, moved, verdict(false, moved, moved))
	assert.Equal(t, unknown, outcomeOf(verdict(false, moved, nil, moved)))
	assert.Equal(t, unknown, outcomeOf(verdict(false, busy, nil, busy)))
	assert.Equal(t, unknown, outcomeOf(verdict(false, nil, nil, busy)), "go-redis tells of it nowhere")
}

// Every row can be found: none is hidden by one before it, and none is found by what
// only looks alike.
func TestRefusals_EveryRowIsFound(t *testing.T) {
	for i := range refusals {
		r := &refusals[i]
		for _, text := range []string{r.begins + r.has + " x", "ERR " + r.begins + r.has + " x"} {
			row, script := refusalOf(redisError(text))
			assert.Same(t, r, row, text)
			assert.False(t, script)
		}
		raised, script := refusalOf(redisError(r.begins + r.has + " script: f_1, on @user_script:1."))
		assert.Same(t, r, raised)
		assert.True(t, script)
		assert.False(t, SafeToRetry(redisError(r.begins+r.has+" script: f_1, on @user_script:1.")), r.begins)
		if r.begins != "" && strings.HasSuffix(r.begins, " ") {
			row, _ := refusalOf(redisError(strings.TrimSpace(r.begins) + "X y"))
			assert.NotSame(t, r, row)
		}
		assert.NotEmpty(t, r.means)
		if r.retires {
			assert.True(t, r.topology, "rotate asks for it")
		}
	}
	row, script := refusalOf(redisError("ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't write against a read only replica."))
	assert.True(t, row.retires && script)
	row, _ = refusalOf(errors.New("READONLY is what somebody's hook says"))
	assert.Nil(t, row)
}

// The document's table of replies has the rows of the code, and no others.
func TestDocs_TableOfReplies_MatchesCode(t *testing.T) {
	text, err := os.ReadFile("docs/commands.md")
	require.NoError(t, err)
	var want, got []string
	for _, r := range refusals {
		want = append(want, r.inDocument())
	}
	_, section, found := strings.Cut(string(text), "## Replies that mean \"not executed\"\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n#")
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "| `") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	assert.Equal(t, want, got)
}

// inDocument is the row of the document's table for a row of the code's.
func (r refusal) inDocument() string {
	reply := "`" + strings.TrimSpace(r.begins) + "`"
	switch {
	case r.begins == "":
		reply = "`… " + r.has + " …`"
	case r.has != "":
		reply = "`" + r.begins + "… " + r.has + "`"
	}
	then := map[waits]string{
		waitsNot: "returned", waitsGrace: "sent again", waitsAmongNodes: "sent again, in a cluster", waitsRenewed: "sent again once, with new credentials",
	}[r.waits]
	for _, more := range []struct {
		is   bool
		text string
	}{
		{r.retires, "connections retired"},
		{r.topology, "topology asked for"},
		{r.notReady, "an outage"},
	} {
		if more.is {
			then += "; " + more.text
		}
	}
	safe, script := "yes", ""
	if r.ran {
		safe = "no"
	}
	if r.waits != waitsNot {
		script = "returned"
		if len(r.script) > 0 {
			script = "the same"
			if words := strings.Join(r.script, "`, `"); words != "" {
				script += " if it has `" + words + "`"
			}
		}
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s |", reply, then, script, safe, r.means)
}

// The table of the document says what the code does.
func TestDocs_WhatIsSentAgain(t *testing.T) {
	text, err := os.ReadFile("docs/commands.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "## What is sent again\n")
	require.True(t, found)
	ctx := context.Background()
	with := func(policy RetryPolicy) *config {
		cfg, err := newConfig([]Option{WithRetry(policy)})
		require.NoError(t, err)
		return cfg
	}
	seen := make(map[command.Class]bool)
	for _, row := range regexp.MustCompile(`(?m)^\| (?:that|on) .*$`).FindAllString(section, -1) {
		cells := strings.Split(strings.Trim(row, "| "), " | ")
		require.Len(t, cells, 6, row)
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			var args []any
			for _, w := range strings.Fields(m[1]) {
				args = append(args, w)
			}
			cmd := redis.NewCmd(ctx, args...)
			c := command.ClassOf(cmd)
			seen[c] = true
			for i, may := range []bool{
				with(RetryReadOnly).mayRepeat(ctx, cmd),
				with(RetryIdempotent).mayRepeat(ctx, cmd),
				with(RetryNever).mayRepeat(ctx, cmd) || with(RetryReadOnly).mayRepeat(NoRetry(ctx), cmd),
				with(RetryReadOnly).mayRepeat(Idempotent(ctx), cmd),
			} {
				assert.Equal(t, map[bool]string{true: "yes", false: "no"}[may], cells[2+i], "%s: column %d", m[1], 2+i)
			}
		}
	}
	assert.Len(t, seen, 6, "every class has an example")
}

// What a part has run is not run again because another node was removed.
func TestParts_NodeIsRemoved(t *testing.T) {
	p := &parts{}
	p.note(nil)
	p.note(redis.ErrClosed)
	assert.Equal(t, unknown, outcomeOf(p.together(&terms{}, redis.ErrClosed)))
}

// saysNotRun reports whether the words of a server mean that it did not run a command.
func saysNotRun(words string) bool {
	if strings.Contains(words, "@user_script:") || strings.Contains(words, "@user_function:") || strings.HasPrefix(words, "ERR Error running script") {
		return false // of a script, which may have done something before
	}
	words = strings.TrimPrefix(words, "ERR ")
	if strings.HasPrefix(words, "NOPERM ACLs rules changed") {
		return false // others of the transaction ran
	}
	for _, w := range []string{"unauthenticated", "command not allowed. If the"} {
		if strings.Contains(words, w) {
			return true
		}
	}
	for _, w := range []string{"LOADING ", "READONLY ", "MASTERDOWN ", "CLUSTERDOWN ", "TRYAGAIN ", "NOREPLICAS ",
		"max number of clients", "NOAUTH ", "WRONGPASS ", "EXECABORT ", "MOVED ", "ASK ", "BUSY ", "UNBLOCKED ", "REDIRECT ",
		"NOPERM ", "DENIED ", "MISCONF ", "OOM ", "NOSCRIPT ", "CROSSSLOT ", "NOCLUSTER ", "ERRCLUSTER ", "NOSUB ", "NOPROTO ",
		"NOTBUSY ", "UNKILLABLE ", "NOMASTERLINK ", "NOTREADY ", "INPROG ", "NOGOODSLAVE ", "unknown command", "unknown subcommand",
		"wrong number of arguments", "Protocol error", "Command not allowed inside a transaction", "Can't execute '",
		"Replica can't interact with the keyspace", "This instance has cluster support disabled", "Can not run script on cluster"} {
		if strings.HasPrefix(words, w) {
			return true
		}
	}
	return false
}

// Errors of any shape are classified without a panic, wrapping changes nothing for the
// better, and what may have run is never safe to retry.
func FuzzOutcome(f *testing.F) {
	f.Add("LOADING x", []byte{0})
	f.Add("READONLY x", []byte{1})
	f.Add("vault: unauthenticated", []byte{1})
	f.Add("EXECABORT x", []byte{1, 20})
	f.Add("redis: Conn is in a bad state", []byte{0, 20})
	for i := range byte(30) {
		f.Add("text", []byte{i})
		f.Add("text", []byte{i, 20, 21, 22})
		f.Add("text", []byte{12, 23, i, 25})
	}
	f.Fuzz(func(t *testing.T, text string, shape []byte) {
		err, mayHaveRun := fuzzError(text, shape[:min(len(shape), 32)])
		o := outcomeOf(err)
		safe, lost := SafeToRetry(err), IsConnectionError(err)
		if err == nil {
			if o != answered || safe || lost {
				t.Fatal("of nil")
			}
			return
		}
		if o > foreign {
			t.Fatalf("%#v is %d", err, o)
		}
		if safe && mayHaveRun {
			t.Fatalf("%T %v is safe to retry", err, err)
		}
		switch o {
		case unknown, partly, repeatable, garbled, foreign:
			if e := asError(err); safe && (e == nil || !e.reads) {
				t.Fatalf("%T %v is %d and safe to retry", err, err, o)
			}
		case refused, denied:
			if !isReply(err) {
				t.Fatalf("%T %v is %d and no reply", err, err, o)
			}
		}
		wrapped := fmt.Errorf("of a caller: %w", err)
		if SafeToRetry(wrapped) && !safe {
			t.Fatalf("%T %v is safe to retry when wrapped", err, err)
		}
		if err != redis.Nil && IsConnectionError(wrapped) != lost {
			t.Fatalf("%T %v is a lost connection, or not, when wrapped", err, err)
		}
		_ = sys.IsTimeout(err)
		_ = judge(err, false)
		if isReply(notReply(err)) && err != redis.Nil {
			t.Fatalf("%T %v is still a reply", err, err)
		}
	})
}

// fuzzError builds an error out of a text and a list of what to make of it, and says
// whether what it is about may have run.
func fuzzError(text string, shape []byte) (err error, mayHaveRun bool) {
	for _, b := range shape {
		switch kind := b % 30; kind {
		case 0:
			err, mayHaveRun = redisError(text), !saysNotRun(text)
		case 1:
			err, mayHaveRun = errors.New(text), !strings.HasPrefix(text, "redis: Conn is in a bad state")
		case 2:
			err, mayHaveRun = io.EOF, true
		case 3:
			err, mayHaveRun = redis.Nil, true
		case 4:
			err, mayHaveRun = redis.ErrPoolTimeout, false
		case 5:
			err, mayHaveRun = redis.ErrClosed, false
		case 6:
			err, mayHaveRun = context.Canceled, true
		case 7:
			err, mayHaveRun = os.ErrDeadlineExceeded, true
		case 8:
			err, mayHaveRun = net.ErrClosed, true
		case 9:
			err, mayHaveRun = syscall.Errno(len(text)), true
		case 10:
			err, mayHaveRun = &net.DNSError{Err: text}, true
		case 11:
			err, mayHaveRun = nil, false
		case 12, 13, 14, 15:
			cause := err
			if cause == nil || asError(cause) != nil { // sockets know nothing of commands
				cause = io.EOF
			}
			p := wire.Phase(kind - 12)
			err, mayHaveRun = &wire.Error{Phase: p, Err: cause}, p > wire.PhaseWrite
		}
		if err == nil {
			continue
		}
		switch b % 30 {
		case 20:
			err = fmt.Errorf("of a hook: %w", err)
		case 21:
			err = &net.OpError{Op: "read", Net: "tcp", Err: err}
		case 22:
			err = os.NewSyscallError("read", err)
		case 23:
			err, mayHaveRun = &Error{kind: ErrUnavailable, Err: err}, false
		case 24:
			err, mayHaveRun = &Error{kind: ErrOutcomeUnknown, Err: err}, true
		case 25: // an application that collects errors
			err, mayHaveRun = errors.Join(err, &Error{kind: ErrOutcomeUnknown, Err: io.EOF}), true
		case 26:
			err = &wire.RetiredError{Cause: err}
		case 27:
			err = &cutShort{context.DeadlineExceeded, err}
		case 28:
			err, mayHaveRun = &Error{kind: ErrOutcomeUnknown, Err: err, reads: true}, false
		case 29:
			err, mayHaveRun = &Error{kind: ErrClosed, Err: err}, false
		}
	}
	return err, mayHaveRun
}
