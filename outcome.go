package redial

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

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
func (e *connError) Timeout() bool        { return isTimeout(e.err) }
func (e *connError) Temporary() bool      { return isTemporary(e.err) }

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
