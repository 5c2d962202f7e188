package redial

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// Where commands wait for a link, or for a client as a whole, and Drain for commands. A
// gate goes by its cell and uses nothing above that.

// gate is open while its cell is Connected.
type gate struct {
	*cell

	// These synchronize themselves. The first two are all that a command touches while
	// the gate is open.
	open       atomic.Bool
	inflight   atomic.Int64  // commands inside go-redis
	refusedOne atomic.Bool   // a command was refused since the last look
	wake       chan struct{} // capacity 1: commands wait, or were refused
	refusals   budget        // of commands that are refused at once, the grace being over

	waiting  int           // guarded by mu
	futile   chan struct{} // guarded by mu; closed while waiting is of no use, see despair
	shutting bool          // guarded by mu; no new command is admitted any more

	barred chan struct{} // closed when shutting
	idle   chan struct{} // closed when shutting and the last command is out
}

func newGate(b *base, addr, node string) *gate {
	g := &gate{
		cell:     newCell(b, addr, node),
		wake:     make(chan struct{}, 1),
		refusals: budget{burst: refusalBurst, rate: refusalRate},
		futile:   make(chan struct{}),
		barred:   make(chan struct{}),
		idle:     make(chan struct{}),
	}
	g.followers = append(g.followers, g)
	return g
}

func (g *gate) followLocked(to State, _ error) func() {
	g.open.Store(to == StateConnected && !g.shutting)
	return nil
}

// enter admits a command while the gate is open. The caller must leave.
func (g *gate) enter() bool {
	g.inflight.Add(1)
	if g.open.Load() {
		return true
	}
	g.leave()
	return false
}

// leave is called when a command admitted by enter has returned.
func (g *gate) leave() {
	if g.inflight.Add(-1) == 0 && !g.open.Load() {
		g.drained()
	}
}

// wait blocks a command until the gate opens, or says why it does not wait
// any longer, with ErrClosed, the end of ctx, or else the last transport error.
// began is when the command first waited. A command that waits for a node goes on
// as well when turn is closed, or the node is not part of the client any more. w is filled
// in, and observers are told, if it waited at all.
func (g *gate) wait(ctx context.Context, began time.Time, turn <-chan struct{}, w *Wait) (why Cause, err error) {
	p := patienceOf(ctx)
	if g.closing() {
		return CauseClosed, ErrClosed
	}
	g.tend()
	g.mu.Lock()
	o := g.outage
	if o == nil || g.state == StateClosed || isClosed(g.futile) {
		g.mu.Unlock()
		return CauseNone, nil
	}
	left := p.limit(g.cfg) - time.Since(began)
	switch {
	case p.failFast:
		why = CauseFailFast
	case left <= 0, p.own == 0 && isClosed(o.hopeless):
		why = p.exhausted()
	case g.waiting >= g.cfg.maxWaiting:
		why = CauseWaitersFull
	}
	if why != CauseNone {
		err, told := g.turnAwayLocked(o, why)
		g.mu.Unlock()
		if told {
			g.events.signal()
		}
		g.want()
		if why == CauseGraceOver && g.cfg.grace > 0 && !g.refusals.take() {
			switch lingers(ctx, o); {
			case isClosed(o.ended):
				return CauseNone, nil
			case ctx.Err() != nil:
				return CauseContextEnded, &cutShort{ctx: ctx.Err(), cause: err}
			}
		}
		return why, err
	}
	start := time.Now()
	futile := g.futile
	g.waiting++
	first := g.waiting == 1
	g.mu.Unlock()
	g.n.waited.Add(1)
	if first {
		nudge(g.wake)
	}
	why, err = g.hold(ctx, o, p, left, turn, futile)
	g.mu.Lock()
	g.waiting--
	cause, told := g.turnAwayLocked(o, why)
	g.mu.Unlock()
	if told {
		g.events.signal()
	}
	switch {
	case g.closing():
		why, err = CauseClosed, ErrClosed
	case err != nil:
		err = &cutShort{ctx: err, cause: cause}
	case why != CauseNone:
		err = cause
	}
	w.Node, w.For, w.Cause, w.Err = g.node, time.Since(start), why, err
	w.Total += w.For
	tell(g.observers, func(o WaitObserver) { o.ObserveWait(ctx, *w) })
	return why, err
}

// hold blocks a command of patience p, of which there is left so much, in an outage.
func (g *gate) hold(ctx context.Context, o *outage, p patience, left time.Duration, turn, futile <-chan struct{}) (why Cause, err error) {
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
	case <-g.refusing:
	case <-hopeless:
		return p.exhausted(), nil
	case <-ctx.Done():
		return CauseContextEnded, ctx.Err()
	}
	return CauseNone, nil
}

// lingers holds a command for a moment before it is refused, unless the outage ends. It is for
// what asks again without a pause: go-redis takes its time to dial in vain, and a refusal takes
// none, so it would keep a processor busy.
func lingers(ctx context.Context, o *outage) {
	timer := time.NewTimer(refusalPause)
	defer timer.Stop()
	select {
	case <-o.ended:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// turnAwayLocked returns the last transport error, for a command that does not go on because
// of why, and whether that is told, so that signal must follow. The caller holds mu.
func (g *gate) turnAwayLocked(o *outage, why Cause) (cause error, told bool) {
	cause = g.causeLocked()
	return cause, (why == CauseGraceOver || why == CauseWaitersFull) && g.outage == o && g.balkLocked(why, cause)
}

// graceLeft is how much of the grace of the outage is left, for commands that have no
// patience of their own; 0 when there is no outage.
func (g *gate) graceLeft() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.outage == nil {
		return 0
	}
	return g.cfg.grace - time.Since(g.outage.began)
}

// despair says whether it is a mistake that keeps the gate from opening, which
// waiting cannot cure: there are no nodes, or those there are belong to no cluster. Then
// commands pass the gate and hear of it from go-redis, in its own words. Who waits for the state
// is told the words, if there are any: else somebody may yet name others.
func (g *gate) despair(of bool, words error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.words = words
	g.tellLocked()
	g.despairLocked(of)
}

// relent takes that back, but for the words, until it is said again.
func (g *gate) relent() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.despairLocked(false)
}

func (g *gate) despairLocked(of bool) {
	switch {
	case of == isClosed(g.futile):
	case of:
		close(g.futile)
	default:
		g.futile = make(chan struct{})
	}
}

// hopeless reports whether waiting is of no use.
func (g *gate) hopeless() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return isClosed(g.futile)
}

// want has whoever tends the cell hurry, for a command that does not wait.
func (g *gate) want() {
	if !g.refusedOne.Load() {
		g.refusedOne.Store(true)
		nudge(g.wake)
	}
}

// awaited reports whether commands are waiting.
func (g *gate) awaited() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting > 0
}

// demand says whether commands are waiting, or were refused since the last call.
func (g *gate) demand() bool {
	waiting := g.awaited()
	return g.refusedOne.Swap(false) || waiting
}

// drain shuts the gate for good and waits until every admitted command has
// returned or ctx ends.
func (g *gate) drain(ctx context.Context) error {
	g.mu.Lock()
	if g.state == StateClosed {
		g.mu.Unlock()
		return nil
	}
	if !g.shutting {
		g.shutting = true
		g.open.Store(false)
		close(g.barred)
	}
	g.mu.Unlock()
	g.drained()
	select {
	case <-g.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("redial: %d commands were cut short: %w", g.inflight.Load(), ctx.Err())
	}
}

// drained tells drain that the last command is out.
func (g *gate) drained() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shutting && g.inflight.Load() == 0 && !isClosed(g.idle) {
		close(g.idle)
	}
}

// stats returns a snapshot of the gate, with the counters of the client.
func (g *gate) stats() Stats {
	s := g.counted()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.describeLocked(&s)
	s.Waiting = g.waiting
	return s
}
