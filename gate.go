package redial

import (
	"context"
	"fmt"
	"time"
)

const (
	gateShut = iota
	gateOpen
)

// outage is one stretch of time outside Connected.
type outage struct {
	began    time.Time
	ended    chan struct{} // closed when the link is Connected or Closed
	hopeless chan struct{} // closed when the grace has passed
	timer    *time.Timer   // closes hopeless; nil without grace
}

func newOutage(grace time.Duration) *outage {
	o := &outage{began: time.Now(), ended: make(chan struct{}), hopeless: make(chan struct{})}
	if grace <= 0 {
		close(o.hopeless)
		return o
	}
	o.timer = time.AfterFunc(grace, func() { close(o.hopeless) })
	return o
}

func (o *outage) end() {
	if o.timer != nil {
		o.timer.Stop()
	}
	close(o.ended)
}

// enter admits a command while the link is Connected. The caller must leave.
func (l *link) enter() bool {
	l.inflight.Add(1)
	if l.gate.Load() == gateOpen {
		return true
	}
	l.leave()
	return false
}

// leave is called when a command admitted by enter has returned.
func (l *link) leave() {
	if l.inflight.Add(-1) == 0 && l.gate.Load() != gateOpen {
		l.drained()
	}
}

// wait blocks a command until the link is Connected, or says why it does not wait
// any longer, with ErrClosed, the end of ctx, or else the last transport error.
// began is when the command first waited. A command that waits for a node goes on
// as well when turn is closed, or the node is not part of the client any more.
func (l *link) wait(ctx context.Context, began time.Time, turn <-chan struct{}) (why Cause, err error) {
	p := patienceOf(ctx)
	if l.closing() {
		return CauseClosed, ErrClosed
	}
	l.attend()
	l.mu.Lock()
	o := l.outage
	if o == nil || l.state == StateClosed || isClosed(l.futile) {
		l.mu.Unlock()
		return CauseNone, nil
	}
	left := p.limit(l.cfg) - time.Since(began)
	switch {
	case p.failFast:
		why = CauseFailFast
	case left <= 0, p.own == 0 && isClosed(o.hopeless):
		why = p.exhausted()
	case l.waiting >= l.cfg.maxWaiting:
		why = CauseWaitersFull
	}
	if why != CauseNone {
		err := l.causeLocked()
		l.mu.Unlock()
		l.want()
		return why, err
	}
	futile := l.futile
	l.waiting++
	first := l.waiting == 1
	l.mu.Unlock()
	l.n.waited.Add(1)
	if first {
		nudge(l.wake)
	}

	hopeless := o.hopeless
	if p.own > 0 {
		own := make(chan struct{})
		timer := time.AfterFunc(left, func() { close(own) })
		defer timer.Stop()
		hopeless = own
	}
	select {
	case <-o.ended:
	case <-turn:
	case <-futile:
	case <-l.refusing:
	case <-hopeless:
		why = p.exhausted()
	case <-ctx.Done():
		why, err = CauseContextEnded, ctx.Err()
	}

	l.mu.Lock()
	l.waiting--
	cause := l.causeLocked()
	l.mu.Unlock()
	switch {
	case l.closing():
		return CauseClosed, ErrClosed
	case err != nil:
		return why, &cutShort{ctx: err, cause: cause}
	case why != CauseNone:
		return why, cause
	}
	return CauseNone, nil
}

// despair says whether it is a mistake that keeps the link from being Connected, which
// waiting cannot cure: there are no nodes, or those there are belong to no cluster. Then
// commands pass the gate and hear of it from go-redis, in its own words.
func (l *link) despair(of bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case of == isClosed(l.futile):
	case of:
		close(l.futile)
	default:
		l.futile = make(chan struct{})
	}
}

// hopeless reports whether waiting for the link is of no use.
func (l *link) hopeless() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return isClosed(l.futile)
}

// cutShort is the error of a wait that the context ended: it is both errors.
type cutShort struct{ ctx, cause error }

func (e *cutShort) Error() string   { return e.ctx.Error() + " while waiting after: " + e.cause.Error() }
func (e *cutShort) Unwrap() []error { return []error{e.ctx, e.cause} }

// want has the link hurry, for a command that does not wait.
func (l *link) want() {
	if !l.refusedOne.Load() {
		l.refusedOne.Store(true)
		nudge(l.wake)
	}
}

// awaited reports whether commands are waiting.
func (l *link) awaited() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting > 0
}

// demand says whether commands are waiting, or were refused since the last call.
func (l *link) demand() bool {
	l.mu.Lock()
	waiting := l.waiting
	l.mu.Unlock()
	return l.refusedOne.Swap(false) || waiting > 0
}

// drain shuts the gate for good and waits until every admitted command has
// returned or ctx ends. Waiters are refused.
func (l *link) drain(ctx context.Context) error {
	l.mu.Lock()
	if l.state == StateClosed {
		l.mu.Unlock()
		return nil
	}
	if !l.shutting {
		l.shutting = true
		l.gate.Store(gateShut)
		close(l.barred)
	}
	l.mu.Unlock()
	l.drained()
	select {
	case <-l.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("redial: %d commands were cut short: %w", l.inflight.Load(), ctx.Err())
	}
}

// drained tells drain that the last command is out.
func (l *link) drained() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shutting && l.inflight.Load() == 0 && !isClosed(l.idle) {
		close(l.idle)
	}
}
