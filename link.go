package redial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// link is the relation to one endpoint: the state cell, the generation of its
// connections and the gate with its waiters. Nothing else writes the state.
type link struct {
	*base // what the links of a client share

	// Read-only after newLink.
	addr     string
	node     string // the same, of one of several; "": it stands for the client as a whole
	dialer   dialFunc
	idleAge  int64 // of the clock, 0: connections need not prove themselves
	csc      bool  // client-side caching must see through opaque connections
	deadline bool  // the pools' dials carry a deadline, subscriptions' do not
	renews   bool  // credentials come from a provider, so they may change
	ctx      context.Context
	cancel   context.CancelFunc
	prober   prober
	warm     func(context.Context, int) // has the pool replace lost connections; nil: there is no pool yet
	where    func() string              // the server that was dialed last; nil: addr says it
	stale    func()                     // called when the server may have to be looked for elsewhere; nil: it cannot be
	strayed  func(*conn)                // called when a subscription has to go to another node; nil: there is none
	told     func(State)                // called after every transition; nil: nobody wants to know
	removed  func() bool                // whether go-redis has closed the client that the link is for
	sealed   bool                       // go-redis would retry by itself and must not, see sealedError
	passive  bool                       // has no connections: it stands for a client of several nodes

	// These synchronize themselves. The first three are all that a command
	// touches while the link is Connected.
	gate       atomic.Int32 // gateOpen or not
	inflight   atomic.Int64 // commands inside go-redis
	gen        atomic.Uint64
	heard      atomic.Bool  // a byte was received since the last look
	suspectAt  atomic.Int64 // connections not heard since must prove themselves
	rtt        atomic.Int64 // smoothed round trip in nanoseconds, 0: unknown
	refusedOne atomic.Bool  // a command was refused since the last look
	watches    atomic.Bool  // a WATCH was sent, ever
	shaken     atomic.Bool  // go-redis has closed a connection since the keeper looked
	rejects    atomic.Bool  // the node will not tell a topology, see isNoCluster
	cold       atomic.Bool  // the pool wants warming up
	lost       atomic.Int32 // connections that the last outage has cost
	lanes      lanes
	wake       chan struct{} // capacity 1: commands wait, or were refused
	again      chan struct{} // capacity 1: there is reason to try at once

	mu        sync.Mutex
	state     State              // guarded by mu; to be read without it: see now
	now       atomic.Int32       // the state
	since     time.Time          // guarded by mu
	why       Cause              // guarded by mu
	reason    string             // guarded by mu; why, in words
	cause     error              // guarded by mu; last transport error, nil: none yet
	changed   chan struct{}      // guarded by mu; closed at the next transition
	futile    chan struct{}      // guarded by mu; closed while waiting is of no use, see despair
	outage    *outage            // guarded by mu; nil while Connected
	down      time.Duration      // guarded by mu; length of past outages
	outages   uint64             // guarded by mu
	waiting   int                // guarded by mu
	conns     map[*conn]struct{} // guarded by mu
	verdict   chan struct{}      // guarded by mu; non-nil while the server is under suspicion
	rotated   time.Time          // guarded by mu; last retirement by rotate
	shutting  bool               // guarded by mu; no new command is admitted any more
	attended  bool               // guarded by mu; a goroutine looks after the link, see attend
	beatAt    time.Time          // guarded by mu; when the next heartbeat is due
	beatIsDue bool               // guarded by mu; it is, and there was no traffic

	lookAt time.Time // when the keeper, which alone uses it, looks next

	barred chan struct{} // closed when shutting
	idle   chan struct{} // closed when shutting and the last command is out
}

// newLink builds the link to the server that opt names; start must follow. opt
// holds the caller's options; it is only read. quick says that dialing is one round
// trip.
func newLink(b *base, opt *redis.Options, quick bool) *link {
	l := newState(b, addrOf(opt.Addr))
	l.dialer = baseDialer(opt, b.cfg.detection())
	l.csc = opt.ClientSideCache != nil || opt.ClientSideCacheConfig != nil
	l.deadline = opt.DialTimeout >= 0
	l.renews = opt.CredentialsProvider != nil || opt.CredentialsProviderContext != nil ||
		opt.StreamingCredentialsProvider != nil
	if b.cfg.idleCheck > 0 {
		// The clock lags by at most one tick: counting one tick less means that
		// no connection older than the option gets away unproved.
		l.idleAge = max(int64(b.cfg.idleCheck-b.tick()), 1)
	}
	l.prober = newPinger(l, opt, quick)
	return l
}

// newState builds what every link has, with or without connections of its own.
func newState(b *base, addr string) *link {
	ctx, cancel := context.WithCancel(b.life)
	l := &link{
		base:    b,
		addr:    addr,
		ctx:     ctx,
		cancel:  cancel,
		wake:    make(chan struct{}, 1),
		again:   make(chan struct{}, 1),
		state:   StateConnecting,
		since:   time.Now(),
		why:     CauseCreated,
		reason:  CauseCreated.text(b.cfg),
		changed: make(chan struct{}),
		futile:  make(chan struct{}),
		outage:  newOutage(b.cfg.grace),
		conns:   make(map[*conn]struct{}),
		barred:  make(chan struct{}),
		idle:    make(chan struct{}),
	}
	l.gen.Store(1)
	l.n.generations.Add(1)
	l.lanes.reset()
	return l
}

// lastCause returns the last transport error, never nil.
func (l *link) lastCause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.causeLocked()
}

func (l *link) causeLocked() error {
	switch {
	case l.cause != nil:
		return l.cause
	case l.state == StateReconnecting:
		return errors.New(l.reason)
	}
	return errors.New("no connection yet")
}

// noteCause remembers the error of an attempt to reach the server, which is news to
// those who wait for the state to change.
func (l *link) noteCause(err error) {
	l.mu.Lock()
	l.cause = notReply(err)
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
}

// seal hides a failure from go-redis where that would retry by itself.
func (l *link) seal(failure *connError) error {
	if l.sealed {
		return &sealedError{failure, l}
	}
	return failure
}

func (l *link) address() string { return l.addr }

// transition is the only writer of the state. It reports false when there is
// nothing to change: StateClosed is terminal, no state follows itself, and only
// what was Connected can be Reconnecting. On the way down, a cause means that the
// server is dead, so that whatever is in flight is aborted; without one, idle
// connections are retired and the rest may finish. reason may be "" where why says it
// all.
func (l *link) transition(to State, why Cause, reason string, cause error, attempts int) bool {
	cause = notReply(cause)
	reason = cmp.Or(reason, why.text(l.cfg))
	l.mu.Lock()
	if l.state == StateClosed || l.state == to || to == StateReconnecting && l.state != StateConnected {
		l.mu.Unlock()
		return false
	}
	now := time.Now()
	e := Event{
		From: l.state, To: to, At: now, In: now.Sub(l.since),
		Addr: l.base.addr, Node: l.node, Cause: why, Reason: reason, Err: cause, Attempts: attempts,
	}
	l.state, l.since, l.why, l.reason = to, now, why, reason
	l.now.Store(int32(to))
	if cause != nil {
		l.cause = cause
	}
	var retired []*conn
	switch to {
	case StateConnected:
		l.down += now.Sub(l.outage.began)
		l.outage.end()
		l.outage = nil
		l.lanes.reset()
		if !l.shutting {
			l.gate.Store(gateOpen)
		}
	case StateReconnecting:
		l.outages++
		l.gate.Store(gateShut)
		l.outage = newOutage(l.cfg.grace)
		retired = l.nextGenerationLocked()
		l.lost.Store(int32(len(retired)))
	case StateClosed:
		l.gate.Store(gateShut)
		if l.outage != nil {
			l.down += now.Sub(l.outage.began)
			l.outage.end()
		}
	}
	l.acquitLocked()
	close(l.changed)
	l.changed = make(chan struct{})
	l.events.put(e)
	l.mu.Unlock()

	l.events.signal()
	if cause == nil {
		l.retireIdle(retired, errors.New(reason))
	} else {
		for _, c := range retired {
			c.retire(cause)
		}
	}
	if l.told != nil {
		l.told(to)
	}
	return true
}

// retireIdle closes subscriptions and those connections that have been silent for a
// while, with no reply outstanding. The rest may finish what is in flight, of a
// pipeline perhaps that is half answered, for the server is not known to be dead;
// their generation keeps them from being used again.
func (l *link) retireIdle(conns []*conn, why error) {
	silent := l.advance() - int64(2*l.tick()) // the clock lags by a tick
	for _, c := range conns {
		if last := c.last.Load(); last > 0 && last < silent || c.role.Load() == roleSubscriber {
			c.retire(why)
		}
	}
}

// nextGenerationLocked starts a new generation and returns the connections of
// the old one. The caller holds mu, and retires them after releasing it.
func (l *link) nextGenerationLocked() []*conn {
	l.gen.Add(1)
	l.n.generations.Add(1)
	old := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		old = append(old, c)
	}
	return old
}

// acquitLocked ends a suspicion. The caller holds mu.
func (l *link) acquitLocked() {
	if l.verdict != nil {
		close(l.verdict)
		l.verdict = nil
	}
}

// suspect notes that a connection failed with err. It does not shut the gate: it
// asks for a verdict and makes every connection that was not heard
// since prove itself before its next use. New dials wait for the verdict.
func (l *link) suspect(err error) {
	l.mu.Lock()
	if l.state != StateConnected {
		l.mu.Unlock()
		return
	}
	l.cause = notReply(err)
	if l.verdict == nil {
		l.verdict = make(chan struct{})
	}
	l.suspectAt.Store(l.advance())
	l.advance()
	l.mu.Unlock()
	l.attend()
}

// troubled reports whether there was a suspicion within the time that it takes to
// find a server dead.
func (l *link) troubled() bool {
	at := l.suspectAt.Load()
	return at > 0 && l.clock.Load()-at < int64(2*l.cfg.detection())
}

// acquit is the verdict that the server lives, of which its answer is a sign.
func (l *link) acquit() {
	l.heard.Store(true)
	l.mu.Lock()
	l.acquitLocked()
	l.beatIsDue = false
	l.beatAt = time.Now().Add(early(l.beat()))
	l.mu.Unlock()
}

// reconnect retires every connection of a Connected link and has the server dialed
// afresh. In any other state it is being dialed already.
func (l *link) reconnect(reason string) {
	if l.transition(StateReconnecting, CauseReconnectCalled, reason, nil, 0) {
		l.prober.drop()
		l.attend()
	}
}

// rotate retires every connection after a READONLY reply, so that new ones
// follow the name to where it points now, or after one that wants other
// credentials; at most once in rotateSpacing. What is in flight is left to finish.
func (l *link) rotate(why error) {
	why = notReply(why)
	l.mu.Lock()
	if l.state != StateConnected || time.Since(l.rotated) < rotateSpacing {
		l.mu.Unlock()
		return
	}
	l.rotated = time.Now()
	l.cause = why
	old := l.nextGenerationLocked()
	l.mu.Unlock()
	l.lookElsewhere()
	l.retireIdle(old, why)
}

// lookElsewhere is called when the server that was dialed last is not, or not any
// more, the one that is wanted.
func (l *link) lookElsewhere() {
	if l.stale != nil {
		l.stale()
	}
}

// moved has everything on the old server given up, and the one dialed that now is
// what the link leads to.
func (l *link) moved(reason string) {
	if l.transition(StateReconnecting, CauseMoved, reason, errors.New(reason), 0) {
		l.prober.drop()
		l.attend()
	}
}

// shut ends supervision of the link without waiting: the state is Closed, waiters
// return and goroutines are told to stop. Connections and commands in flight are
// left to go-redis. It is idempotent.
func (l *link) shut(why Cause, reason string) {
	if l.transition(StateClosed, why, reason, nil, 0) {
		l.cancel()
		l.prober.close()
	}
}

// closeConns closes what go-redis has not closed.
func (l *link) closeConns() {
	l.mu.Lock()
	left := l.nextGenerationLocked()
	l.mu.Unlock()
	for _, c := range left {
		c.retire(ErrClosed)
	}
}

// isGone reports whether go-redis has closed the client that the link is for.
func (l *link) isGone() bool { return l.removed != nil && l.removed() }

func (l *link) current() (State, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, l.since
}

// waitState blocks until the link is in state want, is Closed or ctx ends.
func (l *link) waitState(ctx context.Context, want State) error {
	l.attend()
	for {
		l.mu.Lock()
		state, changed := l.state, l.changed
		l.mu.Unlock()
		switch {
		case state == want:
			return nil
		case state == StateClosed:
			return ErrClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err := &cutShort{ctx: ctx.Err(), cause: l.lastCause()}
			return fmt.Errorf("redial: %s is %s, not %s: %w", l.addr, state, want, err)
		}
	}
}

// stats returns a snapshot of the link, with the counters of the client.
func (l *link) stats() Stats {
	s := l.counted()
	l.mu.Lock()
	defer l.mu.Unlock()
	s.State, s.Since, s.Cause, s.Reason = l.state, l.since, l.why, l.reason
	s.Outages, s.Down, s.Waiting, s.Connections = l.outages, l.down, l.waiting, len(l.conns)
	s.RTT = time.Duration(l.rtt.Load())
	if l.outage != nil && l.state != StateClosed {
		s.Down += time.Since(l.outage.began)
	}
	if l.cause != nil {
		s.LastError = l.cause.Error()
	}
	return s
}

// forget drops a closed connection from the register.
func (l *link) forget(c *conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

// eachConn calls f for every registered connection, without the lock.
func (l *link) eachConn(f func(*conn)) {
	l.mu.Lock()
	all := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		all = append(all, c)
	}
	l.mu.Unlock()
	for _, c := range all {
		f(c)
	}
}

// proofTimeout is how long an idle connection may take to answer a PING.
func (l *link) proofTimeout() time.Duration {
	d := proofRoundTrips * time.Duration(l.rtt.Load())
	return min(max(d, proofFloor), max(l.cfg.timeout, time.Millisecond))
}
