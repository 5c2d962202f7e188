package redial

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/wire"
)

// One server, as a client sees it: what is known of it, its state, its gate and the
// connections to it. This uses gates and what is below them. Who tends the link, and who
// owns it, it knows as interfaces.

// link is the relation to one endpoint.
type link struct {
	endpoint
	*gate
	fleet
	owner    owner
	prober   prober
	inquirer inquirer

	shaken atomic.Bool                 // go-redis has closed a connection since the keeper looked
	cold   atomic.Bool                 // the pool wants warming up
	lost   atomic.Int32                // connections that the last outage has cost
	lent   atomic.Pointer[credentials] // of a connection that was handed over to the pool

	suspected bool      // guarded by mu; a connection failed, and what that says of the server is to be found out
	rotated   time.Time // guarded by mu; last retirement by rotate
}

// credentials are what the caller has said when he was asked.
type credentials struct {
	username, password string
	at                 time.Time
}

// endpoint is what is known of a server before it is dialed. It is only read.
type endpoint struct {
	dialer   dialFunc
	csc      bool // client-side caching must see through opaque connections
	deadline bool // the pools' dials carry a deadline, subscriptions' do not
	renews   bool // credentials come from a provider, so they may change
	sealed   bool // go-redis would retry by itself and must not, see wire.SealedError
}

// fleet is the connections of a link. What is not guarded synchronizes itself.
type fleet struct {
	idleAge    int64 // of the clock, 0: connections need not prove themselves; read-only
	gen        atomic.Uint64
	heard      atomic.Bool   // a byte was received since the last look
	heardAt    atomic.Int64  // the clock when one had been, at the latest look
	asking     atomic.Int32  // idle connections that are being asked whether the server lives
	stirred    chan struct{} // capacity 1: there is news of the server from connections of the pools
	suspectAt  atomic.Int64  // connections not heard since must prove themselves
	answeredAt atomic.Int64  // the clock when the server last answered a PING of ours
	record     record        // used by inspect alone
	rtt        atomic.Int64  // smoothed round trip in nanoseconds, 0: unknown
	watches    atomic.Bool   // a WATCH was sent, ever
	lanes      wire.Lanes
	conns      map[*conn]struct{} // guarded by mu of the link
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
	strayed(c *conn)
	// gone reports whether go-redis has closed the client that the link is for, dismissed
	// that the link was given up for that reason.
	gone() bool
	dismissed()
	// warm has the pool replace some of the connections that it has lost.
	warm(ctx context.Context, lost int)
}

// prober finds out whether what a link leads to can be reached. Its methods do not block,
// but for ask.
type prober interface {
	// again asks on the connection on which the server answered last, and reports whether
	// it does; asking reports whether a question is under way there. begin makes an attempt
	// on a new one.
	again() bool
	asking() bool
	begin()
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
	// it did; nil when there is none to spare.
	pass() (net.Conn, *greeting, time.Time)
	// drop ends what is under way; what is asked next is asked afresh.
	drop()
	// close does so for good.
	close()
}

// inquirer finds out what the server knows of connections.
type inquirer interface {
	// willing reports whether a connection may ask how the server sees it, mute says that
	// it has not answered that, and met that it has.
	willing(now int64) bool
	mute()
	met(c *conn)
	// wonder has the server asked about connections that owe a reply for long.
	wonder()
	// unblock has the server end what connections wait for, within d. It reports for each
	// whether the server has said anything of it, and whether it was that which ended it.
	unblock(d time.Duration, conns ...*conn) (settled, freed []bool)
}

// incurious asks nothing.
type incurious struct{}

func (incurious) willing(int64) bool { return false }
func (incurious) mute()              {}
func (incurious) met(*conn)          {}
func (incurious) wonder()            {}
func (incurious) unblock(_ time.Duration, conns ...*conn) (settled, freed []bool) {
	return make([]bool, len(conns)), make([]bool, len(conns))
}

// newLink builds a link. Nothing is dialed, and nobody tends it yet.
func newLink(g *gate, e endpoint, o owner, probe func(*link) prober) *link {
	l := &link{
		endpoint: e,
		gate:     g,
		fleet:    fleet{conns: make(map[*conn]struct{}), stirred: make(chan struct{}, 1)},
		owner:    o,
		inquirer: incurious{},
	}
	if l.cfg.idleCheck > 0 {
		l.idleAge = int64(l.cfg.idleCheck)
	}
	l.gen.Store(1)
	l.n.generations.Add(1)
	l.lanes.Reset()
	l.followers = append(l.followers, l)
	l.prober = probe(l)
	return l
}

// followLocked goes by the state: what is Reconnecting has lost its connections, unless
// the server may be as it was. A cause means that it must not be talked to any more.
func (l *link) followLocked(to State, cause error) func() {
	l.suspected = false
	why := l.why
	var retired []*conn
	switch {
	case to == StateConnected:
		l.lanes.Reset()
	case to == StateReconnecting && spares(why):
		l.suspectAt.Store(l.advance())
		l.advance()
		l.heard.Store(false)
		l.lost.Store(0)
	case to == StateReconnecting:
		retired = l.nextGenerationLocked()
		l.lost.Store(int32(len(retired)))
	}
	reason := l.reason
	return func() {
		if cause == nil || why != CauseMoved {
			l.retireIdle(retired, cmp.Or(cause, errors.New(reason)))
		} else {
			for _, c := range retired {
				c.retire(cause)
			}
		}
		if to == StateClosed {
			l.prober.close()
		}
		l.owner.changed(to)
	}
}

// hear notes that a byte was received.
func (l *link) hear() {
	if !l.heard.Load() {
		l.heard.Store(true)
		l.stir()
	}
}

// stir has whoever finds out about the server look again.
func (l *link) stir() { nudge(l.stirred) }

// suspect notes that a connection failed with err. It does not shut the gate: it
// asks for a verdict and makes every connection that was not heard
// since prove itself before its next use.
func (l *link) suspect(err error) {
	l.mu.Lock()
	if l.state != StateConnected {
		l.mu.Unlock()
		return
	}
	l.cause = notReply(err)
	l.suspected = true
	l.suspectAt.Store(l.advance())
	l.advance()
	l.mu.Unlock()
	l.tend()
	l.stir()
}

// bar notes that the server will serve nobody, in its own words, or, without any, that it
// may. There is no point in waiting for the link meanwhile.
func (l *link) bar(words error) {
	l.mu.Lock()
	l.words = words
	l.tellLocked()
	l.mu.Unlock()
	l.despair(words != nil)
}

// troubled reports whether there was a suspicion within the time that it takes to
// find a server dead.
func (l *link) troubled() bool {
	at := l.suspectAt.Load()
	return at > 0 && l.clock.Load()-at < int64(2*l.cfg.detection())
}

// reconnect retires every connection of a Connected link and has the server dialed
// afresh. In any other state it is being dialed already.
func (l *link) reconnect(reason string) {
	if l.transition(StateReconnecting, CauseReconnectCalled, reason, nil, 0) {
		l.prober.drop()
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
	old := l.nextGenerationLocked()
	l.mu.Unlock()
	l.prober.drop()
	l.owner.lookElsewhere()
	l.retireIdle(old, why)
}

// moved has everything on the old server given up, and the one dialed that now is
// what the link leads to.
func (l *link) moved(reason string) {
	if l.transition(StateReconnecting, CauseMoved, reason, errors.New(reason), 0) {
		l.prober.drop()
		l.tend()
	}
}

// react does what a refusal asks for beyond waiting.
func (l *link) react(reply error) {
	row, _ := refusalOf(reply)
	switch {
	case row == nil:
		return
	case row.retires:
		l.rotate(reply) // which looks elsewhere, at most once in rotateSpacing
	case row.topology && row.waits != waitsAmongNodes: // of those go-redis has asked itself
		l.owner.lookAround()
	}
	if row.notReady {
		l.suspect(reply)
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
	// watched reports whether a WATCH was ever sent, where that can be known.
	watched() bool
}

// peer returns the link as commands see it.
func (l *link) peer() peer { return peer{l.gate, &l.endpoint, l} }

func (l *link) Address() string { return l.addr }

// watched reports whether a WATCH was ever sent.
func (l *link) watched() bool { return l.watches.Load() }

// stats returns a snapshot of the link, with the counters of the client.
func (l *link) stats() Stats {
	s := l.gate.stats()
	l.mu.Lock()
	s.Connections = len(l.conns)
	l.mu.Unlock()
	s.RTT = time.Duration(l.rtt.Load())
	return s
}

// What follows is about connections.

// seal hides a failure from go-redis where that would retry by itself.
func (l *link) seal(failure *wire.Error) error {
	if l.sealed {
		return &wire.SealedError{Inner: failure, At: l}
	}
	return failure
}

// retireIdle closes subscriptions and those connections that have been silent for a
// while, with no reply outstanding. The rest may finish what is in flight, of a
// pipeline perhaps that is half answered, for the server is not known to be dead;
// their generation keeps them from being used again.
func (l *link) retireIdle(conns []*conn, why error) {
	silent := l.advance() - int64(2*l.tick()) // the clock lags by a tick
	for _, c := range conns {
		if c.owes.Load() == 0 && c.heard.Load() < silent || c.role.Load() == roleSubscriber {
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

// closeConns closes what go-redis has not closed.
func (l *link) closeConns() {
	l.mu.Lock()
	left := l.nextGenerationLocked()
	l.mu.Unlock()
	for _, c := range left {
		c.retire(ErrClosed)
	}
}

// forget drops a closed connection from the register.
func (l *link) forget(c *conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
	l.stir()
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

// measure smooths the round trip, as TCP does.
func (l *link) measure(rtt time.Duration) {
	old := l.rtt.Load()
	if old == 0 {
		l.rtt.Store(int64(rtt))
		return
	}
	l.rtt.Store(old + (int64(rtt)-old)/8)
}

// proofTimeout is how long an idle connection may take to answer a PING.
func (l *link) proofTimeout() time.Duration {
	d := proofRoundTrips * time.Duration(l.rtt.Load())
	return min(max(d, proofFloor), max(l.cfg.timeout, time.Millisecond))
}

// unblockTimeout is how long the server may take to end what a connection waits for.
func (l *link) unblockTimeout() time.Duration {
	return max(unblockRoundTrips*time.Duration(l.rtt.Load()), unblockFloor)
}

// part has the server end what connections wait for, before they are closed. They end with
// what it has handed out, or as they do when they are closed. It reports whether any does.
func (l *link) part() bool {
	var waiting []*conn
	l.eachConn(func(c *conn) {
		if c.releasable() && c.aside.CompareAndSwap(nil, &aside{parting: ErrClosed}) {
			waiting = append(waiting, c)
		}
	})
	if len(waiting) == 0 {
		return false
	}
	settled, _ := l.inquirer.unblock(l.unblockTimeout(), waiting...)
	return slices.Contains(settled, true)
}
