package redial

import (
	"context"
	"time"
)

// Supervisor watches over the link of a client and reports on it. Clients of
// this package embed one. Its methods are safe for concurrent use, and none of
// them does I/O on the caller's goroutine.
type Supervisor struct {
	keeper *keeper
	close  func() error
}

// supervisorOf returns the supervisor of a client of ours, which closes it.
func supervisorOf(k *keeper, client func() error) *Supervisor {
	return &Supervisor{k, func() error {
		_ = k.close(client) // it fails when the client was closed before
		return nil
	}}
}

// supervisorOver returns the supervisor of a client that was there before.
func supervisorOver(k *keeper) *Supervisor {
	return &Supervisor{k, func() error {
		k.shut(closedByCaller)
		k.join()
		return nil
	}}
}

// State returns the current state. It is one atomic load.
func (s *Supervisor) State() State { return s.keeper.gate.now() }

// WaitReady blocks until the state is StateConnected. It returns [ErrClosed]
// when the client is closed, or, when ctx ends first, an error that is both the
// context's error and the last transport error. Use it as a readiness probe with
// a short context.
func (s *Supervisor) WaitReady(ctx context.Context) error {
	return s.keeper.gate.waitState(ctx, StateConnected)
}

// WaitForState blocks until the state is want, with the errors of WaitReady. A
// state that was entered and left again between two looks can be missed; use
// [WithOnStateChange] to see every transition.
func (s *Supervisor) WaitForState(ctx context.Context, want State) error {
	return s.keeper.gate.waitState(ctx, want)
}

// Reconnect retires every connection and has the server dialed afresh, for
// instance after its name was pointed elsewhere. It does not wait for that: when
// it returns the state is StateReconnecting, with reason, and no command that is
// issued from then on uses an old connection; commands wait at the gate. Idle
// connections and subscriptions are closed, commands in flight may finish on
// theirs. Unless the state is StateConnected it does nothing.
func (s *Supervisor) Reconnect(reason string) {
	if reason == "" {
		reason = CauseReconnectCalled.text(s.keeper.cfg.maxWaiting)
	}
	s.keeper.whole.reconnect(reason)
}

// Check returns nil while the state is StateConnected, [ErrClosed] when it is StateClosed,
// and else an [Error] that is ErrUnavailable and says since when, why, and what the last
// transport error was. It never waits and does no I/O, and does not look at ctx, so it can
// be given to any library for health checks as it is: rdb.Check. It is as fresh as the
// heartbeat. [Supervisor.WaitReady] is for the start of a program; a library that hands it
// a context without an end waits for as long as the outage lasts.
//
// A client of several nodes is well while one of them answers; [Stats] has the others.
func (s *Supervisor) Check(ctx context.Context) error { return s.keeper.gate.check(0) }

// CheckAfter returns a function that is [Supervisor.Check] once the state has been other
// than StateConnected for longer than d, and returns nil before: outages that commands ride
// out do not turn a readiness probe red. A closed client is reported at once. d <= 0 is
// the same as Check.
func (s *Supervisor) CheckAfter(d time.Duration) func(ctx context.Context) error {
	return func(context.Context) error { return s.keeper.gate.check(d) }
}

// Stats returns a snapshot.
func (s *Supervisor) Stats() Stats { return s.keeper.whole.stats() }

// Outages returns the last outages of the client as a whole, the last 32, the oldest first, and
// after them the one that is not over, if there is one. The time before
// the first connection is none.
func (s *Supervisor) Outages() []Outage { return s.keeper.gate.lastOutages() }

// Close ends supervision: the state becomes StateClosed, waiting commands return
// [ErrClosed], and the goroutines are stopped and joined. A client that a constructor of
// this package has made is closed with it; one that was there before, see [Supervise], is
// not. It waits 50ms at most for a callback of [WithOnStateChange] to return, and as long
// as a heartbeat may take for a connection that is being warmed up. It is idempotent and
// never fails.
func (s *Supervisor) Close() error {
	return s.close()
}
