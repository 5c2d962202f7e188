package wire

import (
	"errors"
	"net"
	"reflect"

	"github.com/redial-go/redial/internal/sys"
)

// The errors of connections. They say how far a command had come, and nothing of what
// that means. They use nothing else of the package.

// Place is a server that something happened at.
type Place interface{ Address() string }

// FullServer is how the reply of a server begins that is full and closes the connection.
const FullServer = "max number of clients"

// Phase says how far a command had come when its connection failed.
type Phase uint8

// The phases, in the order in which a command goes through them.
const (
	PhaseDial    Phase = iota // no connection, so nothing was sent
	PhaseWrite                // not one byte was delivered
	PhasePartial              // some bytes were delivered, not all
	PhaseRead                 // everything was written, the reply is missing
)

// Error is a transport error with the phase it happened in. It has no Unwrap
// method: go-redis strips one layer off handshake errors, and the phase must
// survive that. Is and As still reach the cause, but no reply in it: it was given to
// somebody else, and what has it go-redis takes for a reply to this command.
type Error struct {
	Phase Phase
	Err   error
	Sent  int // bytes of the request that were written, when Phase is PhasePartial
}

func (e *Error) Error() string { return e.Err.Error() }

// Is reports whether the cause is target, which is no reply.
func (e *Error) Is(target error) bool {
	return !ofReply(reflect.TypeOf(target)) && errors.Is(e.Err, target)
}

// As finds what target points at, which is no reply, in the cause.
func (e *Error) As(target any) bool {
	return !ofReply(reflect.TypeOf(target).Elem()) && errors.As(e.Err, target)
}

// Timeout reports whether a timeout was the cause, as net.Error does.
func (e *Error) Timeout() bool { return sys.IsTimeout(e.Err) }

// Temporary is what the cause says of itself.
func (e *Error) Temporary() bool { return sys.IsTemporary(e.Err) }

// ofReply reports whether a type is one of replies.
func ofReply(t reflect.Type) bool { return t.Implements(reflect.TypeFor[interface{ RedisError() }]()) }

// ErrorOf returns the Error inside err, or nil.
func ErrorOf(err error) *Error {
	var e *Error
	errors.As(err, &e)
	return e
}

// SealedError is what a connection returns where go-redis would retry by itself: it
// cannot tell what this is, and takes it for final. It says on which node it happened.
type SealedError struct {
	Inner *Error
	At    Place
}

func (e *SealedError) Error() string { return e.Inner.Error() }

// As finds an Error, and nothing else.
func (e *SealedError) As(target any) bool {
	inner, ok := target.(**Error)
	if ok {
		*inner = e.Inner
	}
	return ok
}

// RetiredError is the cause on connections that were given up before they
// failed by themselves.
type RetiredError struct{ Cause error }

func (e *RetiredError) Error() string { return "connection retired: " + e.Cause.Error() }
func (e *RetiredError) Unwrap() error { return e.Cause }

// Is has a retired connection look like one that is closed.
func (e *RetiredError) Is(target error) bool { return target == net.ErrClosed }

// endedError is what a subscription gets of its connection that was retired. It is no timeout,
// whatever the cause, for go-redis would read on from there.
type endedError struct{ *RetiredError }

func (endedError) Timeout() bool   { return false }
func (e endedError) Unwrap() error { return e.RetiredError }
