package redial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/sys"
)

var (
	// ErrUnavailable marks commands of which nothing ran: they were refused
	// without I/O, or not one byte of them reached the server, or the server
	// could not have executed what did. Sending the command again is safe.
	ErrUnavailable = errors.New("redial: unavailable")

	// ErrOutcomeUnknown marks commands that were written and whose reply was
	// lost: they may have run once, or not at all.
	ErrOutcomeUnknown = errors.New("redial: outcome unknown")

	// ErrClosed is returned for commands on a closed client that redial itself
	// refuses. errors.Is(err, redis.ErrClosed) holds for it too.
	ErrClosed = fmt.Errorf("redial: %w", redis.ErrClosed)
)

// Error is what a command fails with when the reason is the connection and not
// the server's answer. errors.Is tells its kind, [ErrUnavailable],
// [ErrOutcomeUnknown] or [ErrClosed], and reaches every cause in Err.
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
}

func (e *Error) Error() string {
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
func (e *Error) Unwrap() []error { return []error{e.kind, e.Err} }

// Timeout reports whether a timeout was the cause, as net.Error does.
func (e *Error) Timeout() bool { return sys.IsTimeout(e.Err) }

// Temporary is what the cause says of itself. It makes an Error a net.Error, whose
// type old code asserts; whether to try again is for [SafeToRetry] to say.
func (e *Error) Temporary() bool { return sys.IsTemporary(e.Err) }

var _ = []net.Error{(*Error)(nil), (*connError)(nil)}

// SafeToRetry reports whether the command that failed with err can be sent again
// without running twice: it certainly did not run, or it only reads. It is false
// for nil, for replies that say that the command ran, and for every error it
// does not know.
//
// Replies that mean "not executed" are known, see the README, but not those that
// [WithRefusals] adds. Of a reply that a script has raised it is false, for the script
// may have done something before; a script that catches such a reply and returns it
// cannot be told from a server that refuses the script. For a pipeline, ask for each
// command: others of it may have run.
func SafeToRetry(err error) bool {
	var e *Error
	if errors.As(err, &e) {
		return (e.reads || e.kind != ErrOutcomeUnknown) && !mayHaveRun(err)
	}
	if rejected(err) {
		return true
	}
	switch outcomeOf(err) {
	case notSent, notSentForGood, refused, denied:
		return true
	case answered:
		var part ranElsewhere
		return isUndone(err) && !errors.As(err, &part)
	}
	return false
}

// mayHaveRun reports whether err holds an Error of a command that may have run and
// changed something. Several may have been joined into one error.
func mayHaveRun(err error) bool {
	switch e := err.(type) {
	case *Error:
		return !e.reads && e.kind == ErrOutcomeUnknown
	case interface{ Unwrap() error }:
		return mayHaveRun(e.Unwrap())
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), mayHaveRun)
	}
	return false
}

// IsConnectionError reports whether err says that a connection could not be made
// or was lost: refused, reset, closed, aborted, timed out on the socket or
// unreachable, on every platform, wrapped or not. "An existing connection was
// forcibly closed by the remote host" is one. Replies of the server are not, nor
// is the end of the caller's own context, nor a pool without a free connection.
func IsConnectionError(err error) bool {
	if err == nil {
		return false
	}
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, io.ErrClosedPipe), errors.Is(err, net.ErrClosed),
		errors.Is(err, os.ErrDeadlineExceeded):
		return true
	case errors.As(err, &op), errors.As(err, &dns):
		return true
	}
	var ce *connError
	return errors.As(err, &ce) || sys.IsConnectionError(err)
}

// phase says how far a command had come when its connection failed.
type phase uint8

const (
	phaseDial    phase = iota // no connection, so nothing was sent
	phaseWrite                // not one byte was delivered
	phasePartial              // some bytes were delivered, not all
	phaseRead                 // everything was written, the reply is missing
)

// connError is a transport error with the phase it happened in. It has no Unwrap
// method: go-redis strips one layer off handshake errors, and the phase must
// survive that. Is and As still reach the cause.
type connError struct {
	phase phase
	err   error
	sent  int // bytes of the request that were written, when phase is phasePartial
}

func (e *connError) Error() string        { return e.err.Error() }
func (e *connError) Is(target error) bool { return errors.Is(e.err, target) }
func (e *connError) As(target any) bool   { return errors.As(e.err, target) }
func (e *connError) Timeout() bool        { return sys.IsTimeout(e.err) }
func (e *connError) Temporary() bool      { return sys.IsTemporary(e.err) }

// sealedError is what a connection returns where go-redis would retry by itself: it
// cannot tell what this is, and takes it for final. It says on which node it happened.
type sealedError struct {
	inner *connError
	link  *link
}

func (e *sealedError) Error() string { return e.inner.Error() }

// As finds a connError, and nothing else.
func (e *sealedError) As(target any) bool {
	inner, ok := target.(**connError)
	if ok {
		*inner = e.inner
	}
	return ok
}

// unsealed makes the cause of a sealed error visible again, and keeps the words of
// what go-redis has wrapped it in.
type unsealed struct {
	text  string
	inner *connError
}

func (e *unsealed) Error() string { return e.text }
func (e *unsealed) Unwrap() error { return e.inner }

// reveal returns the link that err came from, nil when it does not say, and err as
// users are to see it.
func reveal(err error) (*link, error) {
	var n *nodeError
	if errors.As(err, &n) {
		_, shown := reveal(n.err)
		return n.link, shown
	}
	var s *sealedError
	switch {
	case !errors.As(err, &s):
		return nil, err
	case err == error(s):
		return s.link, s.inner
	}
	return s.link, &unsealed{err.Error(), s.inner}
}

// retiredError is the cause on connections that were given up before they
// failed by themselves.
type retiredError struct{ cause error }

func (e *retiredError) Error() string        { return "connection retired: " + e.cause.Error() }
func (e *retiredError) Unwrap() error        { return e.cause }
func (e *retiredError) Is(target error) bool { return target == net.ErrClosed }

// outcome is what is known about a failed command, from the best to the worst.
type outcome uint8

const (
	answered       outcome = iota // the server replied
	refused                       // the server said that it did not run, for now
	denied                        // it did not run, for want of valid credentials
	notSent                       // nothing can have run
	notSentForGood                // the same, and trying again cannot help
	repeatable                    // it may have run, and may run again
	partly                        // some bytes were delivered, not all
	unknown                       // it may have run
	garbled                       // it was answered, but nobody can tell what
	foreign                       // an error this package does not know
)

// outcomeOf reads the outcome off the error that go-redis or a hook returned for
// one command or batch.
func outcomeOf(err error) outcome {
	if err == nil || err == redis.Nil {
		return answered
	}
	// A sticky connection repeats the error that broke it; this time nothing
	// was sent.
	if isHeld(err) {
		return notSentForGood
	}
	var n *nodeError
	if errors.As(err, &n) {
		if n.setup {
			return notSent // it was another command that may have run
		}
		return n.outcome
	}
	var e *Error
	if errors.As(err, &e) {
		switch {
		case e.handshake:
			return notSent
		case e.kind == ErrOutcomeUnknown:
			return unknown
		case e.kind == ErrUnavailable:
			return notSent
		}
		return notSentForGood
	}
	var ce *connError
	if errors.As(err, &ce) {
		switch ce.phase {
		case phaseDial, phaseWrite:
			return notSent
		case phasePartial:
			return partly
		}
		return unknown
	}
	switch {
	case isReply(err): // go-redis would take other errors for replies by their text
		return outcomeOfReply(err)
	case isPoolTimeout(err), errors.Is(err, redis.ErrClosed):
		return notSentForGood
	}
	return foreign
}

// isPoolTimeout reports whether err says that a pool had no connection to give.
func isPoolTimeout(err error) bool {
	return errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted)
}

// isHeld reports whether err is go-redis's word that a connection which the caller
// holds, as Conn and Tx do, was broken before.
func isHeld(err error) bool {
	if _, ours := err.(*connError); ours || isReply(err) { // which have their text from elsewhere
		return false
	}
	return strings.HasPrefix(err.Error(), "redis: Conn is in a bad state")
}

// outcomeFor is outcomeOf for one command that was sent by itself or within a
// pipeline. It knows what the error alone does not tell.
func outcomeFor(cmd redis.Cmder, err error, from origin) outcome {
	o := outcomeOf(err)
	if isHandshake(cmd) {
		if n := nodeErrorOf(err); n != nil {
			return n.outcome
		}
	}
	switch {
	case (o == refused || o == denied) && !concludes(cmd, err):
		return answered // a script, say, may have done something before it said so
	case from == foreignHook && err != nil && isUnrouted(err):
		return notSent
	case from == foreignHook:
		if e := own(err); e != nil && !e.handshake {
			return foreign // of a command that a hook of the caller ran
		}
	case from == sharedCall && o == notSent:
		var ce *connError
		if errors.As(err, &ce) && ce.phase != phaseDial {
			return unknown // it may have been written before the one that failed
		}
	case from.alone() && o == partly:
		return notSent // half a command cannot run, and it was alone
	case from.alone() && o == foreign && isGarbled(err):
		return garbled
	case from == routedCall && isUnrouted(err):
		return notSent
	}
	return o
}

// isUnrouted reports whether err is go-redis's word that it found no node for a
// command.
func isUnrouted(err error) bool {
	switch err.Error() {
	case "redis: cluster has no nodes", "redis: all ring shards are down":
		return true
	}
	return false
}

// isGarbled reports whether err is go-redis's own and says that it could not make
// sense of a reply. Everything that it says of a command before that is known, but
// for arguments that it cannot write.
func isGarbled(err error) bool {
	text := err.Error()
	return strings.HasPrefix(text, "redis: ") && !strings.HasPrefix(text, "redis: can't marshal") && !isRejected(err)
}

// own returns the Error inside err, or nil.
func own(err error) *Error {
	var e *Error
	errors.As(err, &e)
	return e
}

// isReply reports whether err is an answer of the server.
func isReply(err error) bool {
	if err == redis.Nil {
		return true
	}
	var re redis.Error
	return errors.As(err, &re)
}

// ended returns the error of a context that is over, or nil. A deadline counts
// from the moment it passes: the socket may learn of it before the context does.
func ended(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return nil
}
