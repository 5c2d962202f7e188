package redial

// The errors of connections. They say how far a command had come, and nothing of what
// that means. They may use nothing.

import (
	"errors"
	"net"
	"reflect"

	"github.com/redial-go/redial/internal/sys"
)

// place is a server that something happened at.
type place interface{ address() string }

// fullServer is how the reply of a server begins that is full and closes the connection.
const fullServer = "max number of clients"

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
// survive that. Is and As still reach the cause, but no reply in it: it was given to
// somebody else, and what has it go-redis takes for a reply to this command.
type connError struct {
	phase phase
	err   error
	sent  int // bytes of the request that were written, when phase is phasePartial
}

func (e *connError) Error() string { return e.err.Error() }
func (e *connError) Is(target error) bool {
	return !ofReply(reflect.TypeOf(target)) && errors.Is(e.err, target)
}
func (e *connError) As(target any) bool {
	return !ofReply(reflect.TypeOf(target).Elem()) && errors.As(e.err, target)
}
func (e *connError) Timeout() bool   { return sys.IsTimeout(e.err) }
func (e *connError) Temporary() bool { return sys.IsTemporary(e.err) }

// ofReply reports whether a type is one of replies.
func ofReply(t reflect.Type) bool { return t.Implements(reflect.TypeFor[interface{ RedisError() }]()) }

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

// retiredError is the cause on connections that were given up before they
// failed by themselves.
type retiredError struct{ cause error }

func (e *retiredError) Error() string        { return "connection retired: " + e.cause.Error() }
func (e *retiredError) Unwrap() error        { return e.cause }
func (e *retiredError) Is(target error) bool { return target == net.ErrClosed }
