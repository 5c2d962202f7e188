package wire

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// All connections to one server: which there are, which may be used, what was heard on any of
// them, and what is done with all at once.

// Settings are what connections go by that is not the same for all.
type Settings struct {
	Timeout time.Duration // how long a heartbeat may take
	IdleAge time.Duration // since when a connection has to prove itself before its next use; 0: it need not
	Beat    time.Duration // between two looks at the fleet
	Tick    time.Duration // between two times that the clock is advanced
	Probed  time.Duration // since when the kernel probes a connection on which nothing happens
	Cached  bool          // a client-side cache looks into the connections
	Sealed  bool          // go-redis would retry by itself and must not, see SealedError
}

// Counters are what is counted of connections. They may be those of several fleets.
type Counters struct {
	Generations, Dials, DialErrors atomic.Uint64
	IdleChecks, IdleDropped, Cut   atomic.Uint64
}

// Owner is whom a fleet belongs to. Its methods do not block.
type Owner interface {
	Place
	// Suspect is called when the server may have become useless, and Broken when a
	// connection has failed with err that had served, and for which who used it is likely to
	// make another.
	Suspect(err error)
	Broken(err error)
	// Cause returns why connections of a generation that is over are not used any more.
	Cause() error
	// Strayed is called when a subscription has to go to another node.
	Strayed(c *Conn)
	// Unsubscribed is called when a connection of a subscription has failed, or was given
	// up, and Subscribed when one was answered that has subscribed.
	Unsubscribed()
	Subscribed()
	// Shake is called when go-redis has closed a connection.
	Shake()
}

// Inquirer finds out what the server knows of connections. Its methods do not block, but
// for Unblock.
type Inquirer interface {
	// Willing reports whether a connection may ask how the server sees it, Mute says that
	// it has not answered that, and Met that it has.
	Willing(now int64) bool
	Mute()
	Met(c *Conn)
	// Wonder has the server asked about connections that owe a reply for long.
	Wonder()
	// Unblock has the server end what connections wait for, within d. It reports for each
	// whether the server has said anything of it, and whether it is that which ends it, or may
	// be where nothing was said.
	Unblock(d time.Duration, conns ...*Conn) (settled, freed []bool)
}

// Fleet is the connections to one server, and what they have heard of it.
//
// A Fleet is safe for concurrent use, but for Inspect.
type Fleet struct {
	// Lanes bounds how many are dialed at a time.
	Lanes Lanes
	// Inquirer asks the server about connections. It must be set before there are any.
	Inquirer Inquirer

	settings Settings
	life     context.Context // of the owner
	clock    *Clock
	calls    *Calls
	n        *Counters
	owner    Owner

	gen        atomic.Uint64
	heard      atomic.Bool             // a byte was received since the last look
	heardAt    atomic.Int64            // the clock when one had been, at the latest look
	asking     atomic.Int32            // idle connections that are being asked whether the server lives
	stirred    chan struct{}           // capacity 1: there is news of the server
	suspectAt  atomic.Int64            // connections not heard since must prove themselves
	metAt      atomic.Int64            // the clock when it first said something on the newest connection
	answeredAt atomic.Int64            // the clock when the server last answered a PING of ours
	record     record                  // used by Inspect alone
	witness    atomic.Pointer[witness] // see Beside; nil: there is none
	rtt        atomic.Int64            // smoothed round trip in nanoseconds, 0: unknown
	direct     atomic.Bool             // servers see connections come from the addresses that they have here
	shunned    atomic.Int32            // introductions that connections ended with; negative: one was answered
	declined   atomic.Bool             // a server has no notifications of maintenance
	greeting   atomic.Int32            // the version of HELLO that asks for a sign of life; 0: PING does
	resp2      atomic.Bool             // the server answered HELLO so, or would not and goes on without, when asked last
	watched    atomic.Int32            // connections on which keys may be watched
	watching   atomic.Bool             // there may be others

	mu    sync.Mutex
	conns map[*Conn]struct{} // guarded by mu
}

// NewFleet returns a fleet without connections, for as long as life. The clock, the calls
// and the counters may be shared.
func NewFleet(life context.Context, clock *Clock, calls *Calls, n *Counters, s Settings, o Owner) *Fleet {
	f := &Fleet{
		settings: s, life: life, clock: clock, calls: calls, n: n, owner: o,
		stirred: make(chan struct{}, 1),
		conns:   make(map[*Conn]struct{}),
	}
	f.gen.Store(1)
	f.n.Generations.Add(1)
	f.Lanes.Reset()
	return f
}

// Seal hides a failure from go-redis where that would retry by itself.
func (f *Fleet) Seal(failure *Error) error {
	if f.settings.Sealed {
		return &SealedError{Inner: failure, At: f.owner}
	}
	return failure
}

// What is heard of the server.

// hear notes that a byte was received.
func (f *Fleet) hear() {
	if !f.heard.Load() {
		f.heard.Store(true)
		f.Stir()
	}
}

// Heard reports whether a byte was received since TakeHeard was called last.
func (f *Fleet) Heard() bool { return f.heard.Load() }

// TakeHeard does so, and begins anew.
func (f *Fleet) TakeHeard() bool { return f.heard.Swap(false) }

// HeardBy says that a byte had been received at some time of the clock.
func (f *Fleet) HeardBy(at int64) { f.heardAt.Store(at) }

// LastHeard returns a time of the clock that is not after the one when the last byte was
// received, and not before it by more than a beat.
func (f *Fleet) LastHeard() int64 {
	at := max(f.heardAt.Load(), f.answeredAt.Load())
	f.Each(func(c *Conn) {
		if c.greeted.Load() { // else it has heard nothing
			at = max(at, c.heard.Load())
		}
	})
	return at
}

// Answered says that the server has answered a PING.
func (f *Fleet) Answered() {
	f.hear()
	f.heardAt.Store(f.clock.Read())
	f.answeredAt.Store(f.clock.Read())
}

// Stir says that there is news of the server.
func (f *Fleet) Stir() {
	select {
	case f.stirred <- struct{}{}:
	default:
	}
}

// Stirred returns a channel from which it is received that there is some.
func (f *Fleet) Stirred() <-chan struct{} { return f.stirred }

// Doubt makes every connection that was not heard since prove itself before its next use.
func (f *Fleet) Doubt() {
	f.suspectAt.Store(f.clock.Advance())
	f.clock.Advance()
}

// DoubtedAt returns the time of the clock when that was called last, 0: never.
func (f *Fleet) DoubtedAt() int64 { return f.suspectAt.Load() }

// MetSinceDoubt reports whether the server has talked on a connection for the first time since
// then: in place of one that broke there is another.
func (f *Fleet) MetSinceDoubt() bool { return f.metAt.Load() > f.suspectAt.Load() }

// Watched reports whether keys may be watched on some connection.
func (f *Fleet) Watched() bool { return f.watched.Load() > 0 || f.watching.Load() }

// Watch notes that this will always be so: WATCH is sent behind other commands, where no
// connection looks for it.
func (f *Fleet) Watch() { f.watching.Store(true) }

// RTT returns the round trip, smoothed, or 0 when none was measured.
func (f *Fleet) RTT() time.Duration { return time.Duration(f.rtt.Load()) }

// Measure smooths the round trip, as TCP does.
func (f *Fleet) Measure(rtt time.Duration) {
	if old := f.rtt.Load(); old != 0 {
		rtt = time.Duration(old + (int64(rtt)-old)/rttSmoothing)
	}
	f.rtt.Store(int64(rtt))
}

// ProofTimeout is how long an idle connection may take to answer a PING.
func (f *Fleet) ProofTimeout() time.Duration {
	return min(max(ProofRoundTrips*f.RTT(), proofFloor), max(f.settings.Timeout, leastTimeout))
}

// UnblockTimeout is how long the server may take to end what a connection waits for.
func (f *Fleet) UnblockTimeout() time.Duration {
	return max(unblockRoundTrips*f.RTT(), UnblockFloor)
}

// The register, and generations.

// Generation returns the number of the generation that is the present one.
func (f *Fleet) Generation() uint64 { return f.gen.Load() }

// NextGeneration starts a new one and returns the connections of the old. They refuse
// their next command; the caller retires those that are not to finish what is in flight.
// Introductions that ended with the old ones may have ended for the same reason.
func (f *Fleet) NextGeneration() []*Conn {
	if n := f.shunned.Load(); n > 0 {
		f.shunned.CompareAndSwap(n, 0)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gen.Add(1)
	f.n.Generations.Add(1)
	return slices.Collect(maps.Keys(f.conns))
}

// Add registers a connection, unless its generation is over.
func (f *Fleet) Add(c *Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.gen != f.gen.Load() {
		return false
	}
	f.conns[c] = struct{}{}
	return true
}

// forget drops a closed connection from the register.
func (f *Fleet) forget(c *Conn) {
	c.guard(false)
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
	f.Stir()
}

// Len returns how many connections there are.
func (f *Fleet) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.conns)
}

// Each calls visit for every registered connection, without the lock.
func (f *Fleet) Each(visit func(*Conn)) {
	f.mu.Lock()
	all := slices.AppendSeq(make([]*Conn, 0, len(f.conns)), maps.Keys(f.conns))
	f.mu.Unlock()
	for _, c := range all {
		visit(c)
	}
}

// New makes a connection of nc, which was dialed in a generation.
func (f *Fleet) New(nc net.Conn, gen uint64) *Conn { return newConn(nc, f, gen) }

// Adopt makes a connection of nc, on which the server was greeted, and answered at some
// time: it may have been a while.
func (f *Fleet) Adopt(nc net.Conn, gen uint64, g *Greeting, at time.Time) *Conn {
	c := newConn(nc, f, gen)
	c.greeted.Store(true)
	c.greets = g
	c.heard.Store(f.clock.Of(at))
	return c
}

// What is done with all of them.

// RetireIdle closes subscriptions and those connections that have been silent for a
// while, with no reply outstanding. The rest may finish what is in flight, of a
// pipeline perhaps that is half answered, for the server is not known to be dead;
// their generation keeps them from being used again.
func (f *Fleet) RetireIdle(conns []*Conn, why error) {
	silent := f.clock.Advance() - int64(2*f.settings.Tick) // the clock lags by a tick
	for _, c := range conns {
		if c.owes.Load() == 0 && c.heard.Load() < silent || c.role.Load() == roleSubscriber {
			c.Retire(why)
		}
	}
}

// RetireAll begins a generation and gives up all that was before. It returns how many
// connections that were.
func (f *Fleet) RetireAll(why error) int {
	old := f.NextGeneration()
	for _, c := range old {
		c.Retire(why)
	}
	return len(old)
}

// RetireLost gives up those connections of generations before that owe a reply, unless
// the kernel knows that the peer got what was sent.
func (f *Fleet) RetireLost(why error) {
	gen := f.gen.Load()
	f.Each(func(c *Conn) {
		if c.gen != gen && c.owes.Load() != 0 && c.evidence() != acknowledged {
			c.Retire(why)
		}
	})
}

// Overtaken gives up what began before a time and still hangs, while what began at that
// time was answered: its packets are lost, and TCP may send them again only after seconds.
// These are dials, and connections whose first request, which sets them up, has no answer.
// Nothing of a caller's was sent on them.
func (f *Fleet) Overtaken(before time.Time) {
	f.Lanes.Overtaken(before)
	then := f.clock.Of(before)
	f.Each(func(c *Conn) {
		owes := c.owes.Load()
		if owes != 0 && owes < then && c.uses.Load() == 0 && !c.greeted.Load() {
			c.Retire(ErrOvertaken)
		}
	})
}

// Part has the server end what connections wait for, before they are closed because of
// why. They end with what it has handed out, or as they do when they are closed. It reports
// whether any does.
func (f *Fleet) Part(why error) bool {
	var waiting []*Conn
	f.Each(func(c *Conn) {
		if c.releasable() && c.aside.CompareAndSwap(nil, &aside{parting: why}) {
			waiting = append(waiting, c)
		}
	})
	if len(waiting) == 0 {
		return false
	}
	settled, _ := f.Inquirer.Unblock(f.UnblockTimeout(), waiting...)
	return slices.Contains(settled, true)
}

// AskIdle PINGs on up to most connections that lie idle, those first that were heard last,
// each on a goroutine of spawn's. Their answers are heard as any byte is. It returns how
// many are being asked.
func (f *Fleet) AskIdle(most int, spawn func(func()) bool) (asked int) {
	var idle []*Conn
	f.Each(func(c *Conn) {
		if c.Sweepable(0) {
			idle = append(idle, c)
		}
	})
	slices.SortFunc(idle, func(a, b *Conn) int { return cmp.Compare(b.heard.Load(), a.heard.Load()) })
	for _, c := range idle[:min(most, len(idle))] {
		f.asking.Add(1)
		if !spawn(func() {
			defer f.Stir()
			defer f.asking.Add(-1)
			c.beat()
		}) {
			f.asking.Add(-1)
			break
		}
		asked++
	}
	return asked
}

// Asking reports whether idle connections are being asked.
func (f *Fleet) Asking() bool { return f.asking.Load() > 0 }

// MayAnswer reports whether there is an established connection on which an answer may
// still come: one is being asked or proves itself, or somebody waits for a reply, or is
// about to.
func (f *Fleet) MayAnswer() bool {
	if f.Asking() {
		return true
	}
	waits := false
	f.Each(func(c *Conn) { waits = waits || (c.owes.Load() != 0 || c.busy()) && c.Retirement() == nil })
	return waits
}

// Owed returns for how long the reply has been owed that is owed longest, 0 if none is.
func (f *Fleet) Owed() (d time.Duration) {
	now := f.clock.Read()
	f.Each(func(c *Conn) {
		if owes := c.owes.Load(); owes != 0 {
			d = max(d, time.Duration(now-owes))
		}
	})
	return d
}

// CutSilentSubscribers closes the subscriptions whose PING is unanswered for longer than
// limit, while the server answers elsewhere: go-redis sends it and does not
// wait for the PONG. They subscribe anew on their own. Where nobody is reading the answer
// may have come: that one is slow, not dead. So is one who has only just begun, which the
// next look tells: it reports whether there should be one soon.
func (f *Fleet) CutSilentSubscribers(limit time.Duration) (again bool) {
	now := f.clock.Read()
	f.Each(func(c *Conn) {
		owes := c.owes.Load()
		switch {
		case owes == 0 || now-owes <= int64(limit) || c.role.Load() != roleSubscriber || c.users.Load() <= 0 || f.heardAt.Load() < owes:
			c.silent = 0
		case c.silent != owes:
			c.silent, again = owes, true
		default:
			c.Cut(errSilentSubscriber)
		}
	})
	return again
}

var errSilentSubscriber = errors.New("subscriber's PING went unanswered")

// Declined reports whether the server was asked for notifications of maintenance and has
// none.
func (f *Fleet) Declined() bool { return f.declined.Load() }

// Question is what asks the server for a sign of life: PING, or else what GreetInstead says.
func (f *Fleet) Question() []any {
	if v := f.greeting.Load(); v != 0 {
		return []any{"hello", int(v)}
	}
	return []any{"ping"}
}

// GreetInstead has the server asked by HELLO with the version of the protocol that
// connections are set up with, or by PING again where that is 0. It changes nothing there, and
// is for servers that answer it and no PING.
func (f *Fleet) GreetInstead(version int) { f.greeting.Store(int32(version)) }

// Greeted takes note of what the server answered HELLO on a connection to be.
func (f *Fleet) Greeted(g *Greeting) {
	if len(g.reply) > 0 {
		f.resp2.Store(g.reply[0] != '%')
	}
}

// SpeaksRESP2 reports whether connections speak RESP2, whatever they have asked for, as far as
// is known.
func (f *Fleet) SpeaksRESP2() bool { return f.resp2.Load() }
