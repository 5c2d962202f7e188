package redial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// The state of a link, or of a client as a whole, and who waits for it to change. Nothing
// else writes it. This uses what the parts of a client share, and nothing above that.

// cell holds a state.
type cell struct {
	*base
	addr   string          // of what the state is about
	node   string          // the same, of one node of several; "": it is the client as a whole
	ctx    context.Context // ends when the state is Closed
	cancel context.CancelFunc

	tend      func()     // has somebody do what there is to do, and never blocks; set by a loop, before anybody else knows the cell
	followers []follower // as tend

	seen atomic.Int32 // the state, see now

	mu      sync.Mutex    // what is built on the cell uses it, too
	state   State         // guarded by mu
	since   time.Time     // guarded by mu
	why     Cause         // guarded by mu
	reason  string        // guarded by mu; why, in words
	cause   error         // guarded by mu; last transport error, nil: none yet
	words   error         // guarded by mu; of a server that will serve nobody, see link.bar; nil: there are none
	changed chan struct{} // guarded by mu; closed when there is news for await
	outage  *outage       // guarded by mu; nil while Connected
	down    time.Duration // guarded by mu; length of past outages
	outages uint64        // guarded by mu
}

// follower is what changes together with a state.
type follower interface {
	// followLocked is called for every transition, with mu held. What it returns, if not
	// nil, is called once mu is free.
	followLocked(to State, cause error) func()
}

func newCell(b *base, addr, node string) *cell {
	ctx, cancel := context.WithCancel(b.life)
	return &cell{
		base:    b,
		addr:    addr,
		node:    node,
		ctx:     ctx,
		cancel:  cancel,
		tend:    func() {},
		state:   StateConnecting,
		since:   time.Now(),
		why:     CauseCreated,
		reason:  CauseCreated.text(b.cfg.maxWaiting),
		changed: make(chan struct{}),
		outage:  newOutage(b.cfg.grace),
	}
}

// outage is one stretch of time outside Connected.
type outage struct {
	began    time.Time
	ended    chan struct{} // closed when the state is Connected or Closed
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

// transition is the only writer of the state. It reports false when there is
// nothing to change: StateClosed is terminal, no state follows itself, and only
// what was Connected can be Reconnecting. What becomes of connections on the way down
// is up to the link. reason may be "" where why says it all.
func (c *cell) transition(to State, why Cause, reason string, cause error, attempts int) bool {
	cause = notReply(cause)
	reason = cmp.Or(reason, why.text(c.cfg.maxWaiting))
	c.mu.Lock()
	if c.state == StateClosed || c.state == to || to == StateReconnecting && c.state != StateConnected {
		c.mu.Unlock()
		return false
	}
	now := time.Now()
	e := Event{
		From: c.state, To: to, At: now, In: now.Sub(c.since),
		Addr: c.base.addr, Node: c.node, Cause: why, Reason: reason, Err: cause, Attempts: attempts,
	}
	c.state, c.since, c.why, c.reason = to, now, why, reason
	c.seen.Store(int32(to))
	if cause != nil {
		c.cause = cause
	}
	switch to {
	case StateConnected:
		c.down += now.Sub(c.outage.began)
		c.outage.end()
		c.outage = nil
	case StateReconnecting:
		c.outages++
		c.outage = newOutage(c.cfg.grace)
	case StateClosed:
		if c.outage != nil {
			c.down += now.Sub(c.outage.began)
			c.outage.end()
		}
	}
	var then []func()
	for _, f := range c.followers {
		then = append(then, f.followLocked(to, cause))
	}
	c.tellLocked()
	c.events.put(e)
	c.mu.Unlock()

	c.events.signal()
	if to == StateClosed {
		c.cancel()
	}
	for _, f := range then {
		if f != nil {
			f()
		}
	}
	return true
}

// tellLocked has everybody who waits look again. The caller holds mu.
func (c *cell) tellLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// beginLocked has the first outage begin when somebody tries to end it, however long ago
// the client was built. The caller holds mu.
func (c *cell) beginLocked() {
	if c.state == StateConnecting && c.cause == nil {
		c.outage.end()
		c.outage = newOutage(c.cfg.grace)
	}
}

// await waits until there is what the caller waits for, or ctx ends. It asks, with mu
// held, whenever there is news.
func (c *cell) await(ctx context.Context, there func() bool) error {
	for {
		c.mu.Lock()
		yes, changed := there(), c.changed
		c.mu.Unlock()
		if yes {
			return nil
		}
		c.tend()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waitState waits until the state is want or Closed, or ctx ends.
func (c *cell) waitState(ctx context.Context, want State) error {
	var state State
	var words error
	err := c.await(ctx, func() bool {
		state, words = c.state, c.words
		return state == want || state == StateClosed || words != nil && want == StateConnected
	})
	switch {
	case err == nil && state != want && state != StateClosed:
		return fmt.Errorf("redial: %s is %s, not %s: %w", c.addr, state, want, words)
	case err != nil:
		err = &cutShort{ctx: err, cause: c.lastCause()}
		return fmt.Errorf("redial: %s is %s, not %s: %w", c.addr, state, want, err)
	case state != want:
		return ErrClosed
	}
	return nil
}

// firstContact waits while the first attempt of all to reach the server is under way.
func (c *cell) firstContact(ctx context.Context) error {
	if c.await(ctx, func() bool { return c.state != StateConnecting || c.cause != nil }) != nil {
		return c.lastCause()
	}
	return nil
}

// cutShort is the error of a wait that the context ended: it is both errors.
type cutShort struct{ ctx, cause error }

func (e *cutShort) Error() string   { return e.ctx.Error() + " while waiting after: " + e.cause.Error() }
func (e *cutShort) Unwrap() []error { return []error{e.ctx, e.cause} }

// now returns the state. It is one atomic load.
func (c *cell) now() State { return State(c.seen.Load()) }

func (c *cell) current() (State, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.since
}

// lastCause returns the last transport error, never nil.
func (c *cell) lastCause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.causeLocked()
}

func (c *cell) causeLocked() error {
	switch {
	case c.cause != nil:
		return c.cause
	case c.state == StateReconnecting:
		return errors.New(c.reason)
	}
	return errors.New("no connection yet")
}

// noteCause remembers the error of an attempt to reach the server, which is news to
// those who wait for the state to change.
func (c *cell) noteCause(err error) {
	c.mu.Lock()
	c.cause = notReply(err)
	c.tellLocked()
	c.mu.Unlock()
}

// pause waits for d and returns false when the cell is shut meanwhile.
func (c *cell) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// shut ends supervision without waiting: the state is Closed, waiters return and
// goroutines are told to stop. Connections and commands in flight are left to go-redis.
// It is idempotent.
func (c *cell) shut(why Cause, reason string) { c.transition(StateClosed, why, reason, nil, 0) }

// describeLocked adds what the cell holds to a snapshot. The caller holds mu.
func (c *cell) describeLocked(s *Stats) {
	s.State, s.Since, s.Cause, s.Reason = c.state, c.since, c.why, c.reason
	s.Outages, s.Down = c.outages, c.down
	if c.outage != nil && c.state != StateClosed {
		s.Down += time.Since(c.outage.began)
	}
	if c.cause != nil {
		s.LastError = c.cause.Error()
	}
}
