package redial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redial-go/redial/internal/sys"
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
	words   error         // guarded by mu; why it will never be Connected, see gate.despair; nil: it may
	changed chan struct{} // guarded by mu; closed when there is news for await
	outage  *outage       // guarded by mu; nil while Connected
	basis   *tally        // guarded by mu; when a suspicion arose that has not been settled; nil: there is none
	down    time.Duration // guarded by mu; length of past outages
	outages uint64        // guarded by mu
	past    []Outage      // guarded by mu; the last ones, of the client as a whole
	balked  time.Time     // guarded by mu; when the server last refused a command for long while it was up
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
		outage:  newOutage(b.cfg.grace, CauseCreated, CauseCreated.text(b.cfg.maxWaiting), b.tally()),
	}
}

// outage is one stretch of time outside Connected.
type outage struct {
	began    time.Time
	why      Cause         // it began
	reason   string        // why, in words
	basis    tally         // when it was first suspected
	refusing uint8         // guarded by the mu of its cell; what was told of commands that are refused, see balk
	ended    chan struct{} // closed when the state is Connected or Closed
	hopeless chan struct{} // closed when the grace has passed
	timer    *time.Timer   // closes hopeless; nil without grace
}

func newOutage(grace time.Duration, why Cause, reason string, basis tally) *outage {
	o := &outage{
		began: time.Now(), why: why, reason: reason, basis: basis,
		ended: make(chan struct{}), hopeless: make(chan struct{}),
	}
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
		e.Outage = c.overLocked(e.From, now)
		c.outage = nil
	case StateReconnecting:
		c.outages++
		basis := c.tally()
		if c.basis != nil {
			basis = *c.basis
		}
		c.outage = newOutage(c.cfg.grace, why, reason, basis)
	case StateClosed:
		if e.all = c.tally(); c.outage != nil {
			e.Outage = c.overLocked(e.From, now)
		}
	}
	c.basis = nil
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

// overLocked ends the outage, as of which the state was from, and remembers it. The caller
// holds mu.
func (c *cell) overLocked(from State, now time.Time) *Outage {
	said := c.sayLocked(now)
	said.Over = true
	c.down += said.Duration
	c.outage.end()
	if c.node == "" && from == StateReconnecting {
		if len(c.past) >= outagesKept {
			c.past = c.past[1:]
		}
		c.past = append(c.past, *said)
	}
	return said
}

// sayLocked says what there is to say of the outage. The caller holds mu.
func (c *cell) sayLocked(now time.Time) *Outage {
	o, n := c.outage, c.tally()
	return &Outage{
		Began: o.began, Duration: now.Sub(o.began), Cause: o.why, Reason: o.reason,
		Waited: n.waited - o.basis.waited, Refused: n.refused - o.basis.refused, Unknown: n.unknown - o.basis.unknown,
	}
}

// suspect notes that an outage which may begin now began when n was true. It is for a
// client of several nodes: they were suspected before it. A link notes it by itself.
func (c *cell) suspect(n tally) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.basis = &n
}

// suspectedAt returns what was true when the outage was first suspected, if it began after
// then.
func (c *cell) suspectedAt(then time.Time) (n tally, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != StateReconnecting || c.outage.began.Before(then) {
		return tally{}, false
	}
	return c.outage.basis, true
}

// lastOutages returns the last ones, the one that is not over included.
func (c *cell) lastOutages() []Outage {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := slices.Clone(c.past)
	if c.state == StateReconnecting {
		all = append(all, *c.sayLocked(time.Now()))
	}
	return all
}

// balk tells that commands begin to be refused, once in an outage for each reason, or when
// a server that is up has refused none for a while.
func (c *cell) balk(why Cause, err error) {
	c.mu.Lock()
	told := c.balkLocked(why, err)
	c.mu.Unlock()
	if told {
		c.events.signal()
	}
}

// balkLocked is balk, and reports whether signal must follow. The caller holds mu.
func (c *cell) balkLocked(why Cause, err error) bool {
	if c.state == StateClosed {
		return false
	}
	now := time.Now()
	e := Event{
		From: c.state, To: c.state, At: now, In: now.Sub(c.since), Addr: c.base.addr, Node: c.node,
		Cause: why, Reason: why.text(c.cfg.maxWaiting), Err: notReply(err), refusing: true,
	}
	if o := c.outage; o != nil {
		bit := uint8(1)
		if why == CauseWaitersFull {
			bit = 2
		}
		if o.refusing&bit != 0 {
			return false
		}
		o.refusing |= bit
		e.Outage = c.sayLocked(now)
	} else {
		told := !c.balked.IsZero() && now.Sub(c.balked) < refusalQuiet
		if c.balked = now; told {
			return false
		}
	}
	c.events.put(e)
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
	if o := c.outage; c.untriedLocked() {
		c.down += time.Since(o.began)
		o.end()
		c.outage = newOutage(c.cfg.grace, o.why, o.reason, o.basis)
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
	if c.await(ctx, func() bool { return !c.untriedLocked() }) != nil {
		return c.lastCause()
	}
	return nil
}

// untried reports whether that attempt has not ended yet, so that nothing is known of the
// server. The channel is closed when that may have changed.
func (c *cell) untried() (bool, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.untriedLocked(), c.changed
}

func (c *cell) untriedLocked() bool { return c.state == StateConnecting && c.cause == nil }

// cutShort is the error of a wait that the context ended: it is both errors.
type cutShort struct{ ctx, cause error }

func (e *cutShort) Error() string   { return e.ctx.Error() + " while waiting after: " + e.cause.Error() }
func (e *cutShort) Unwrap() []error { return []error{e.ctx, e.cause} }
func (e *cutShort) Timeout() bool   { return sys.IsTimeout(e.ctx) }

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
	return notYet("no connection yet")
}

// notYet says what has not come about so far: to who waited for it, a timeout.
type notYet string

func (e notYet) Error() string { return string(e) }
func (e notYet) Timeout() bool { return true }

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

// check returns nil while the state is Connected, or has not been anything else for longer
// than patience, and else what is wrong.
func (c *cell) check(patience time.Duration) error {
	if c.now() == StateConnected {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.state == StateConnected, c.state != StateClosed && patience > 0 && time.Since(c.since) <= patience:
		return nil
	case c.state == StateClosed:
		return ErrClosed
	}
	return &Error{
		Cmd: "check", Addr: c.addr, State: c.state, Since: c.since, Cause: c.why, Reason: c.reason,
		Err: c.causeLocked(), kind: ErrUnavailable, looked: true,
	}
}

// describeLocked adds what the cell holds to a snapshot. The caller holds mu.
func (c *cell) describeLocked(s *Stats) {
	s.State, s.Since, s.Cause, s.Reason = c.state, c.since, c.why, c.reason
	s.Outages, s.Down = c.outages, c.down
	if c.outage != nil && c.state != StateClosed {
		s.Down += time.Since(c.outage.began)
	}
	if c.cause != nil {
		s.LastError = fmt.Sprint(c.cause) // an error of the caller may panic
	}
}
