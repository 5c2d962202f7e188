package redial

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/wire"
)

// One server, as a client sees it: what is known of it, its state, its gate and the
// connections to it. This uses gates and what is below them. Who tends the link, and who
// owns it, it knows as interfaces.

// link is the relation to one endpoint.
type link struct {
	endpoint
	*gate
	*wire.Fleet
	owner  owner
	prober prober

	shaken atomic.Bool                 // go-redis has closed a connection since the keeper looked
	cold   atomic.Bool                 // the pool wants warming up
	lost   atomic.Int32                // connections that the last outage has cost, and nobody waits to make
	heirs  atomic.Bool                 // commands have waited, and are to have the connection on which the server was found
	lent   atomic.Pointer[credentials] // of a connection that was handed over to the pool

	suspected bool      // guarded by mu; a connection failed, and what that says of the server is to be found out
	pressing  bool      // guarded by mu; by a connection of its own, for nobody else makes one who would find out
	rotated   time.Time // guarded by mu; last retirement by rotate
	unready   bool      // guarded by mu; it answers that it cannot serve yet, but those who subscribe
}

// credentials are what the caller has said when he was asked.
type credentials struct {
	username, password string
	at                 time.Time
}

// endpoint is what is known of a server before it is dialed. It is only read.
type endpoint struct {
	dialer   dialFunc
	foreign  bool          // it is the caller's
	dialTime time.Duration // how long it may take for go-redis; not positive: as long as it likes
	csc      bool          // client-side caching must see through opaque connections
	deadline bool          // the pools' dials carry a deadline, subscriptions' do not
	renews   bool          // credentials come from a provider, so they may change
	sealed   bool          // go-redis would retry by itself and must not, see wire.SealedError
	lends    bool          // the pool is given what the prober has made: no hook of the caller's has to see it dialed
	asks     int           // how often a command asks an exhausted pool for a connection; as often as go-redis
	replica  bool          // one was asked for, so that to write to it is a mistake of the caller's
}

// owner is whom a link belongs to. Its methods do not block, but for warm.
type owner interface {
	// changed is called after every transition.
	changed(to State)
	// lookElsewhere is called when the server that was dialed last is not, or not any
	// more, the one that is wanted.
	lookElsewhere()
	// lookAround is called when a reply says that the topology may be another by now.
	lookAround()
	// where returns the server that was dialed last, "" when the link's address says it.
	where() string
	// strayed is called when a subscription has to go to another node.
	strayed(c *wire.Conn)
	// gone reports whether go-redis has closed the client that the link is for, dismissed
	// that the link was given up for that reason.
	gone() bool
	dismissed()
	// warm has the pool replace some of the connections that it has lost. It reports false
	// when that is not done: there is no pool yet, or a connection broke.
	warm(ctx context.Context, lost int) bool
}

// prober finds out whether what a link leads to can be reached. Its methods do not block,
// but for ask.
type prober interface {
	// again asks on the connection on which the server answered last, and reports whether
	// it does; asking reports whether a question is under way there. begin makes an attempt
	// on a new one, attempt asks again or else begins.
	again() bool
	asking() bool
	begin()
	attempt()
	// pace says how long after the last attempt another may begin, of which the schedule
	// says d.
	pace(d time.Duration) time.Duration
	// news returns a channel that is closed when there is any, and take what has come of
	// questions and attempts since it was called last.
	news() <-chan struct{}
	take() []result
	// unreachable returns for how long dials have led to no connection.
	unreachable() time.Duration
	// ask calls f with a client on whose connection the server has answered.
	ask(ctx context.Context, f func(*redis.Client) error) error
	// pass hands over the connection on which the server answered last, and the time when
	// it did; nil when there is none to spare, as spares reports.
	pass() (net.Conn, *wire.Greeting, time.Time)
	spares() bool
	// drop ends what is under way; what is asked next is asked afresh.
	drop()
	// close does so for good.
	close()
}

// newLink builds a link. Nothing is dialed, and nobody tends it yet.
func newLink(g *gate, e endpoint, o owner, probe func(*link) prober) *link {
	l := &link{endpoint: e, gate: g, owner: o}
	l.Fleet = wire.NewFleet(l.ctx, l.clock, &l.calls, &l.n.Counters, wire.Settings{
		Timeout: l.cfg.timeout, IdleAge: l.cfg.idleCheck,
		Beat: l.beat(), Tick: l.tick(), Probed: liveness(l.cfg.detection()).Idle,
		Cached: e.csc, Sealed: e.sealed,
	}, l)
	l.followers = append(l.followers, l)
	l.prober = probe(l)
	return l
}

// followLocked goes by the state: what is Reconnecting has lost its connections, unless
// the server may be as it was. A cause means that it must not be talked to any more.
func (l *link) followLocked(to State, cause error) func() {
	l.suspected, l.pressing, l.unready = false, false, false
	why := l.why
	var retired []*wire.Conn
	switch {
	case to == StateConnected:
		l.Lanes.Reset()
		l.lost.Store(max(l.lost.Load()-int32(l.waiting), 0))
		l.heirs.Store(l.waiting > 0)
	case to == StateReconnecting && spares(why):
		l.Doubt()
		l.TakeHeard()
		l.lost.Store(0)
	case to == StateReconnecting:
		retired = l.NextGeneration()
		l.lost.Store(int32(len(retired)))
	}
	reason := l.reason
	return func() {
		if cause == nil || why != CauseMoved {
			l.RetireIdle(retired, cmp.Or(cause, errors.New(reason)))
		} else {
			for _, c := range retired {
				c.Retire(cause)
			}
		}
		if to == StateClosed {
			l.prober.close()
		}
		l.owner.changed(to)
	}
}

// Suspect notes that the server may have become useless, because of err. It does not shut
// the gate: it asks for a verdict and makes every connection that was not heard
// since prove itself before its next use.
func (l *link) Suspect(err error) { l.suspect(err, true) }

// Broken does so when a connection has failed with err. One that was not answered in time
// tells of the server as well: another may fare no better.
func (l *link) Broken(err error) { l.suspect(err, sys.IsTimeout(err)) }

func (l *link) suspect(err error, pressing bool) {
	l.mu.Lock()
	if l.state != StateConnected {
		l.mu.Unlock()
		return
	}
	l.cause = notReply(err)
	if !l.suspected {
		n := l.tally()
		l.suspected, l.basis = true, &n
	}
	l.pressing = l.pressing || pressing
	l.Doubt()
	l.mu.Unlock()
	l.tend()
	l.Stir()
}

// bar notes that the server will serve nobody, in its own words, or, without any, that it
// may. There is no point in waiting for the link meanwhile.
func (l *link) bar(words error) { l.despair(words != nil, words) }

// troubled reports whether there was a suspicion within the time that it takes to
// find a server dead.
func (l *link) troubled() bool {
	at := l.DoubtedAt()
	return at > 0 && l.clock.Last()-at < int64(2*l.cfg.detection())
}

// reconnect retires every connection of a Connected link and has the server dialed
// afresh. In any other state it is being dialed already.
func (l *link) reconnect(reason string) {
	if l.now() != StateConnected {
		return
	}
	l.prober.drop()
	if l.transition(StateReconnecting, CauseReconnectCalled, reason, nil, 0) {
		l.tend()
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
	l.mu.Unlock()
	l.owner.lookElsewhere()
	l.prober.drop()
	l.mu.Lock()
	old := l.NextGeneration()
	l.mu.Unlock()
	l.RetireIdle(old, why)
}

// moved has everything on the old server given up, and the one dialed that now is
// what the link leads to. The connection of the prober comes first: the old server lives,
// and would answer on it for the new one.
func (l *link) moved(reason string) {
	why := errors.New(reason)
	l.prober.drop()
	for !l.transition(StateReconnecting, CauseMoved, reason, why, 0) {
		l.mu.Lock()
		state, spared := l.state, spares(l.why)
		l.mu.Unlock()
		if state == StateReconnecting && spared {
			l.abandon(why)
		}
		if state != StateConnected { // else it has just come to be that
			return
		}
	}
	l.tend()
}

// abandon gives everything up that leads to a server, because of why, in an outage that
// had spared it.
func (l *link) abandon(why error) {
	l.lost.Store(int32(l.RetireAll(why)))
}

// react does what a refusal asks for beyond waiting.
func (l *link) react(reply error) {
	row, _ := refusalOf(reply)
	switch {
	case row == nil, l.replica && row.saysReplica():
		return
	case row.retires:
		l.rotate(reply) // which looks elsewhere, at most once in rotateSpacing
	case row.topology && row.waits != waitsAmongNodes: // of those go-redis has asked itself
		l.owner.lookAround()
	}
	if row.notReady { // to a PING it says so, too
		l.GreetInstead(0)
		l.Suspect(reply)
	}
}

// peer is what commands are sent to, as they see it: the server of a link, or the nodes
// of a client as a whole.
type peer struct {
	*gate
	*endpoint
	counterpart
}

// counterpart is what commands want of a peer beside its gate.
type counterpart interface {
	// react does what a refusal asks for beyond waiting.
	react(reply error)
	// rotate has connections made anew, see link.rotate.
	rotate(why error)
	// troubled reports whether there was a suspicion within the time that it takes to
	// find a server dead.
	troubled() bool
	// Watched reports whether keys may be watched on some connection, where that can be
	// known.
	Watched() bool
	// RTT returns the round trip, 0 if it is unknown.
	RTT() time.Duration
}

// peer returns the link as commands see it.
func (l *link) peer() peer { return peer{l.gate, &l.endpoint, l} }

// Address, Cause, Strayed, Unsubscribed, Subscribed and Shake are what connections want of their owner, as Suspect and
// Broken are.
func (l *link) Address() string      { return l.addr }
func (l *link) Cause() error         { return l.lastCause() }
func (l *link) Strayed(c *wire.Conn) { l.owner.strayed(c) }
func (l *link) Unsubscribed()        { l.subs.lost() }
func (l *link) Subscribed()          { l.subs.back() }

// Shake has the keeper look whether go-redis, which has closed a connection, has closed
// the client as well. A pool that closes is closed before its connections are.
func (l *link) Shake() {
	if !l.shaken.Swap(true) {
		nudge(l.knock)
	}
}

// sweep proves the connections that have been idle for about sweepAge.
func (l *link) sweep() {
	l.Each(func(c *wire.Conn) {
		age := float64(max(sweepAge, l.cfg.idleCheck)) * (1 - sweepJitter*rand.Float64())
		if l.ctx.Err() == nil && c.Sweepable(int64(age)) {
			c.Sweep(int64(age))
		}
	})
}

// stats returns a snapshot of the link, with the counters of the client.
func (l *link) stats() Stats {
	s := l.gate.stats()
	s.Connections = l.Len()
	s.RTT = l.RTT()
	return s
}
