package redial

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/wire"
)

// The errors that callers get, and what may be asked of them. They use what is known of a
// failure, and nothing of links and calls.

var (
	// ErrUnavailable marks commands of which nothing ran: they were refused
	// without I/O, or not one byte of them reached the server, or the server
	// could not have executed what did. Sending the command again is safe.
	ErrUnavailable = errors.New("redial: unavailable")

	// ErrOutcomeUnknown marks commands that were written and whose reply was
	// lost: they may have run once, or not at all.
	ErrOutcomeUnknown = errors.New("redial: outcome unknown")

	// ErrOnceMismatch is returned for a command whose id, see [Once], was that of another
	// command, or of the same with other arguments, before. Nothing ran.
	ErrOnceMismatch = errors.New("redial: once: the id is that of something else")

	// ErrOnceUnsupported is returned for a command that cannot have an id, see [Once]. The
	// error names the command and the reason. Nothing ran; but what a full-duplex
	// auto-pipeline has written before it could be refused may have, and is
	// [ErrOutcomeUnknown] as well.
	ErrOnceUnsupported = errors.New("redial: once: not possible")

	// ErrClosed is returned for commands on a closed client that redial itself
	// refuses. errors.Is(err, redis.ErrClosed) holds for it too.
	ErrClosed = fmt.Errorf("redial: %w", redis.ErrClosed)
)

// Error is what a command fails with when the reason is the connection and not
// the server's answer. errors.Is tells its kind, [ErrUnavailable],
// [ErrOutcomeUnknown] or [ErrClosed], and reaches every cause in Err. The kind of another
// client's Error in there, which a Dialer may use, is none of this one.
//
// Replies of the server, redis.Nil among them, are never wrapped. An Error holds
// no command argument.
type Error struct {
	// Cmd is the name of the command, or "pipeline" or "transaction".
	Cmd string
	// Addr is the address the client was built for, or that of the node which the
	// command was meant for, when the client has several.
	Addr string
	// Attempts counts how often the command was handed to go-redis; 0 means that
	// it never left the gate.
	Attempts int
	// State is the state of the link when the command failed, and Since is when
	// the link entered it.
	State State
	Since time.Time
	// Cause says why the command was not tried, or not tried again: the grace was
	// over, a second run not allowed, its context at an end, and so on. Reason says the
	// same in a few words, for people, and is never empty.
	Cause  Cause
	Reason string
	// Err is the cause: the last transport error, joined with the context's
	// error when that ended the wait. It is never nil.
	Err error

	kind      error
	handshake bool // the command was sent to set up a connection
	reads     bool // running the command changes nothing
	looked    bool // there was no command, somebody has asked how the link is
}

func (e *Error) Error() string {
	if e.looked {
		return fmt.Sprintf("redial: %s is %s since %s: %s: %v", e.Addr, e.State, e.Since.Format("15:04:05.000"), e.Reason, e.Err)
	}
	what := "failed"
	switch e.kind {
	case ErrUnavailable:
		what = "unavailable, nothing ran"
	case ErrOutcomeUnknown:
		what = "outcome unknown, may have run"
	case ErrClosed:
		what = "not run"
	}
	return fmt.Sprintf("redial: %s on %s: %s: %v (%s since %s, attempts: %d, no more: %s)",
		e.Cmd, e.Addr, what, e.Err, e.State, e.Since.Format("15:04:05.000"), e.Attempts, e.Reason)
}

// Unwrap returns the kind of the error and its cause.
func (e *Error) Unwrap() []error {
	for kind := range ofKind {
		if kind != e.kind && errors.Is(e.Err, kind) {
			return []error{e.kind, elsewhere{e.Err}}
		}
	}
	return []error{e.kind, e.Err}
}

// elsewhere is a cause that holds the error of another command, of another client perhaps,
// which the dialer uses: it does not show the kind of that, which would pass for ours.
type elsewhere struct{ err error }

func (e elsewhere) Error() string      { return e.err.Error() }
func (e elsewhere) As(target any) bool { return errors.As(e.err, target) }
func (e elsewhere) Is(target error) bool {
	_, kind := ofKind[target]
	return !kind && errors.Is(e.err, target)
}

// ofKind is what errors know of their commands.
var ofKind = map[error]outcome{ErrUnavailable: notSent, ErrOutcomeUnknown: unknown, ErrClosed: notSentForGood}

func (e *Error) known() outcome { return ofKind[e.kind] }
func (e *Error) forSetup() bool { return e.handshake }

// Timeout reports whether a timeout was the cause, as net.Error does.
func (e *Error) Timeout() bool { return sys.IsTimeout(e.Err) }

// Temporary is what the cause says of itself. It makes an Error a net.Error, whose
// type old code asserts; whether to try again is for [SafeToRetry] to say.
func (e *Error) Temporary() bool { return sys.IsTemporary(e.Err) }

var _ = []net.Error{(*Error)(nil), (*wire.Error)(nil)}

// onceError is the error of a command with an id that is no reply to it. To go-redis it
// is an answer: there is nothing to be sent again.
type onceError struct {
	kind error
	cmd  string
	why  string
	ran  bool  // something may have run
	err  error // the reply that says so; nil: there is none
}

func (e *onceError) Error() string {
	kind := e.kind.Error()
	if e.kind == ErrOutcomeUnknown { // which an Error around it says
		kind = "redial: once"
	}
	text := kind + ": " + e.cmd + ": " + e.why
	if e.err != nil {
		text += ": " + e.err.Error()
	}
	return text
}

func (e *onceError) RedisError()      {}
func (e *onceError) saysUndone() bool { return !e.ran }

func (e *onceError) Unwrap() (all []error) {
	all = append(all, e.kind)
	if e.ran && e.kind != ErrOutcomeUnknown {
		all = append(all, ErrOutcomeUnknown)
	}
	if e.err != nil {
		all = append(all, e.err)
	}
	return all
}

// isUnsure reports whether err says of a command with an id that something may have run, and
// is no final error.
func isUnsure(err error) bool {
	if err == nil || asError(err) != nil {
		return false
	}
	var o *onceError // not before: it is an allocation
	return errors.As(err, &o) && o.ran
}

// SafeToRetry reports whether the command that failed with err can be sent again
// without running twice: it certainly did not run, or it only reads. It is false
// for nil, for replies that say that the command ran, and for every error it
// does not know.
//
// Replies that mean "not executed" are known, see docs/commands.md, but not those that
// [WithRefusals] adds. Of a reply that a script has raised it is false, for the script
// may have done something before; a script that catches such a reply and returns it
// cannot be told from a server that refuses the script. For a pipeline, and for a
// transaction that a ring sends to several shards, ask for each command: others of it may
// have run.
func SafeToRetry(err error) bool {
	if e := asError(err); e != nil {
		return (e.reads || e.kind != ErrOutcomeUnknown) && !mayHaveRun(err)
	}
	if o := (*onceError)(nil); errors.As(err, &o) {
		return !o.ran
	}
	if !isAfterWrite(err) && rejected(err) {
		return true
	}
	if errors.As(err, new(ranElsewhere)) {
		return false
	}
	switch outcomeOf(err) {
	case notSent, notSentForGood, refused, denied:
		return true
	case answered:
		return isUndone(err)
	}
	return false
}

// mayHaveRun reports whether err holds the error of a command that may have run and
// changed something. Several may have been joined into one error.
func mayHaveRun(err error) bool {
	for mark := range marks(err) {
		e, ok := mark.(*Error)
		if ok && !e.reads && e.kind == ErrOutcomeUnknown || !ok && isAfterWrite(mark) {
			return true
		}
	}
	return false
}

// IsConnectionError reports whether err says that a connection could not be made
// or was lost: refused, reset, closed, aborted, timed out on the socket or
// unreachable, on every platform, wrapped or not. "An existing connection was
// forcibly closed by the remote host" is one. Replies of the server are not, nor
// is the end of the caller's own context, nor a pool without a free connection.
func IsConnectionError(err error) bool {
	var dns *net.DNSError
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &op) || errors.As(err, &dns) ||
		wire.ErrorOf(err) != nil || sys.IsConnectionError(err)
}

// asError returns the Error that err is, nil when it is none, or says besides what one of
// our connections does.
func asError(err error) (e *Error) {
	for mark := range marks(err) {
		one, ok := mark.(*Error)
		if !ok {
			return nil
		}
		e = cmp.Or(e, one)
	}
	return e
}
