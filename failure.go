package redial

// Marks: the errors by which connections and the hooks of nodes tell what became of a
// command, and how they are shown to users. It may use nothing but the reading of
// replies.

import (
	"errors"
	"io"
	"net"

	"github.com/redial-go/redial/internal/sys"
)

// marked are errors that know what became of the command which they are of.
type marked interface {
	error
	known() outcome
}

// place is a server that something happened at.
type place interface{ address() string }

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

func (e *connError) known() outcome {
	switch e.phase {
	case phaseDial, phaseWrite:
		return notSent
	case phasePartial:
		return partly
	}
	return unknown
}

// connErrorOf returns the connError inside err, or nil.
func connErrorOf(err error) *connError {
	var ce *connError
	errors.As(err, &ce)
	return ce
}

// sealedError is what a connection returns where go-redis would retry by itself: it
// cannot tell what this is, and takes it for final. It says on which node it happened.
type sealedError struct {
	inner *connError
	at    place
}

func (e *sealedError) Error() string  { return e.inner.Error() }
func (e *sealedError) known() outcome { return e.inner.known() }

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

// failure is what the hook of a node returns for a command that came through the outer
// hook, see route.go. But for readers it hides everything from go-redis, which would
// retry on its own.
type failure struct {
	at      place // nil: nowhere in particular
	outcome outcome
	err     error
	was     error // of a command in a batch: what it was answered, if it was
	final   bool  // the command must not be sent again, whatever the outcome
	another bool  // go-redis may try another node
	setup   bool  // the command was sent to set up a connection

	panicked *panicked // nil: nothing has
}

// Error has words before those of the cause, by which go-redis would know some of them.
func (e *failure) Error() string { return "redial: " + e.err.Error() }

// Is has go-redis look for another node, as it does when a connection ends.
func (e *failure) Is(target error) bool { return e.another && target == io.EOF }

func (e *failure) known() outcome {
	if e.setup {
		return notSent // it was another command that may have run
	}
	return e.outcome
}

// failureOf returns the failure inside err, or nil.
func failureOf(err error) *failure {
	var n *failure
	errors.As(err, &n)
	return n
}

// isOurs reports whether err holds what our parts tell each other, or our connections.
func isOurs(err error) bool { return failureOf(err) != nil || connErrorOf(err) != nil }

// reveal returns the place that err came from, nil when it does not say, and err as
// users are to see it.
func reveal(err error) (place, error) {
	if n := failureOf(err); n != nil {
		_, shown := reveal(n.err)
		return n.at, shown
	}
	var s *sealedError
	switch {
	case !errors.As(err, &s):
		return nil, err
	case err == error(s):
		return s.at, s.inner
	}
	return s.at, &unsealed{err.Error(), s.inner}
}

// retiredError is the cause on connections that were given up before they
// failed by themselves.
type retiredError struct{ cause error }

func (e *retiredError) Error() string        { return "connection retired: " + e.cause.Error() }
func (e *retiredError) Unwrap() error        { return e.cause }
func (e *retiredError) Is(target error) bool { return target == net.ErrClosed }
