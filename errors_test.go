package redial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"

	"github.com/redial-go/redial/internal/sys"
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
