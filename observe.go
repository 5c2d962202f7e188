package redial

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// Who is told of what commands go through, by interfaces of one method each. Nothing here
// is touched by a command that succeeds at its first attempt.

// The lines that are logged, but for those of transitions, which are "redis " and the
// name of the state.
const (
	logTransition    = "redis "
	logRefusing      = "redis refusing commands"
	logPanicCallback = "redial: panic in a state-change callback"
	logPanicObserver = "redial: panic in an observer"
	logPanicProbe    = "redial: panic while the server was asked"
)

// StateObserver is told of every transition, as the callback of [WithOnStateChange] is: in
// order, one at a time, on a goroutine of its own. It must not be slow, see there.
type StateObserver interface{ ObserveState(e Event) }

// WaitObserver is told of every wait for the link when it is over. A call may wait more
// than once. The method is called on the goroutine of the command, possibly on many at
// once, with the context of the command, and must not block.
type WaitObserver interface {
	ObserveWait(ctx context.Context, w Wait)
}

// RetryObserver is told of every attempt beyond the first before it is made, as
// [WaitObserver] is.
type RetryObserver interface {
	ObserveRetry(ctx context.Context, r Retry)
}

// FailureObserver is told of every call, and every part of one for several nodes, that
// fails with an [Error]: of each that [Stats] counts as Refused or Unknown, and of those
// that the end of the client cuts short. It is called as [WaitObserver] is. e must not be
// changed.
type FailureObserver interface {
	ObserveFailure(ctx context.Context, e *Error)
}

// Wait is one time that a command has waited for the link.
type Wait struct {
	// Cmd is the name of the command, "pipeline", "transaction" or "watch", or
	// "subscribe" for a connection that is to carry subscriptions.
	Cmd string
	// Node is the address of the node that was waited for, "" when it was the client as a
	// whole.
	Node string
	// For is how long this wait took, Total how long the call has waited in all.
	For, Total time.Duration
	// Cause says why the command did not go on: CauseContextEnded, CauseGraceOver,
	// CauseWaitOver or CauseClosed. It is CauseNone when the command went on.
	Cause Cause
	// Err is nil when the command went on, and else why not.
	Err error
}

// Retry is an attempt beyond the first of a call.
type Retry struct {
	// Cmd is the name of the command, "pipeline", "transaction" or "watch".
	Cmd string
	// Node is the address of the node at which the attempt before failed, "" when it is
	// not known or the client has one server.
	Node string
	// Attempt is its number, 2 for the first retry.
	Attempt int
	// After says what is known of the attempt before, Err is how it failed. Err is never
	// nil.
	After RetryAfter
	Err   error
}

// RetryAfter is what was known of an attempt that was followed by another. Its String is
// fit for a metric label. The zero value is AfterUnsent.
type RetryAfter uint8

const (
	// AfterUnsent means that nothing ran, see Stats.RetriesUnsent.
	AfterUnsent RetryAfter = iota
	// AfterRefused means that the server said that it did not run the command.
	AfterRefused
	// AfterRepeated means that it may have run, and may now run twice.
	AfterRepeated
)

// String returns the name: unsent, refused or repeated.
func (r RetryAfter) String() string {
	switch r {
	case AfterUnsent:
		return "unsent"
	case AfterRefused:
		return "refused"
	case AfterRepeated:
		return "repeated"
	}
	return fmt.Sprintf("RetryAfter(%d)", uint8(r))
}

// MarshalText encodes it as its name.
func (r RetryAfter) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// WithObserver has o told of what is worth knowing about a client that is not well: it
// implements at least one of [StateObserver], [WaitObserver], [RetryObserver] and
// [FailureObserver]. A command that succeeds at its first attempt, without a wait, meets
// no observer, so a healthy client costs the same with and without.
//
// The option may be given several times, and the observers are called in that order. A
// panic in one of them is contained, and logged. o must not be nil.
func WithObserver(o any) Option {
	return func(c *config) error {
		if o == nil {
			return errors.New("redial: WithObserver observer is nil")
		}
		switch o.(type) {
		case StateObserver, WaitObserver, RetryObserver, FailureObserver:
		default:
			return fmt.Errorf("redial: WithObserver observer, a %T, implements none of the interfaces of an observer", o)
		}
		c.observers = append(c.observers, o)
		return nil
	}
}

// observers are those of a client. They are only read.
type observers struct {
	logger   *slog.Logger // nil: silent
	states   []StateObserver
	waits    []WaitObserver
	retries  []RetryObserver
	failures []FailureObserver
}

func newObservers(cfg *config) *observers {
	all := &observers{}
	if l := cfg.logger; l != nil {
		all.logger = slog.New(steady{l.Handler()})
	}
	for _, o := range cfg.observers {
		if o, ok := o.(StateObserver); ok {
			all.states = append(all.states, o)
		}
		if o, ok := o.(WaitObserver); ok {
			all.waits = append(all.waits, o)
		}
		if o, ok := o.(RetryObserver); ok {
			all.retries = append(all.retries, o)
		}
		if o, ok := o.(FailureObserver); ok {
			all.failures = append(all.failures, o)
		}
	}
	return all
}

func (all *observers) state(e Event) {
	for _, o := range all.states {
		all.contained(func() { o.ObserveState(e) })
	}
}

func (all *observers) wait(ctx context.Context, w Wait) {
	for _, o := range all.waits {
		all.contained(func() { o.ObserveWait(ctx, w) })
	}
}

func (all *observers) retry(ctx context.Context, r Retry) {
	for _, o := range all.retries {
		all.contained(func() { o.ObserveRetry(ctx, r) })
	}
}

func (all *observers) failure(ctx context.Context, e *Error) {
	for _, o := range all.failures {
		all.contained(func() { o.ObserveFailure(ctx, e) })
	}
}

// steady is the handler of a logger of the caller. A panic in it ends here, as an error
// of it does: there is nobody else to be told.
type steady struct{ slog.Handler }

func (s steady) Enabled(ctx context.Context, level slog.Level) (yes bool) {
	defer func() { _ = recover() }()
	return s.Handler.Enabled(ctx, level)
}

func (s steady) Handle(ctx context.Context, r slog.Record) error {
	defer func() { _ = recover() }()
	return s.Handler.Handle(ctx, r)
}

// contained calls f, which is code of the caller; a panic ends here.
func (all *observers) contained(f func()) {
	defer func() {
		if r := recover(); r != nil && all.logger != nil {
			all.logger.Error(logPanicObserver, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		}
	}()
	f()
}
