package wire

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/sys"
)

// One connection, as go-redis uses it: what is read and written, and what becomes of a failure.
// Deadlines, cancellation, proofs and what is said besides have files of their own.

// Conn is the connection that go-redis's pools hold. It labels errors with the
// phase they happened in, refuses to carry a byte once its generation is
// retired, and proves itself with a PING when it has been idle.
//
// Reads and writes may run at the same time, as full-duplex pipelining does.
type Conn struct {
	net.Conn          // TCP, TLS over it, unix or the caller's own
	raw      net.Conn // the same without TLS: to close it takes no farewell
	fleet    *Fleet
	gen      uint64
	rc       syscall.RawConn // what the pool may peek at; nil under TLS
	kernel   syscall.RawConn // what the kernel may be asked about; nil: it cannot
	peer     *sys.Peer       // what Write has to look at; nil: the pool does, or nobody can

	// heard is the clock when the last byte was received, and owes when the first was
	// written that has not been answered since, 0: nothing is owed. The one may be too
	// early, by what the keeper's clock lags; the other is exact.
	heard, owes atomic.Int64
	silent      int64 // what owes was when it seemed silent last; used by CutSilentSubscribers alone
	// users counts the Reads and Writes under way. A PING of our own claims the
	// connection by making it negative, and holds claim meanwhile.
	users atomic.Int32
	claim sync.Mutex
	// sent counts the bytes of the request under way. Only its writer uses it.
	sent int
	// uses counts the requests since the pool last handed the connection out,
	// see Sweepable.
	uses atomic.Int32
	role atomic.Int32
	// duplex is set once a request is written while another caller reads.
	duplex atomic.Bool
	// waits is set while the request under way is one that the server may keep
	// waiting, like BLPOP.
	waits atomic.Bool
	// guards is set while keys may be watched, by WATCH, for a transaction.
	guards atomic.Bool

	// serving is the call that the connection serves, if that can be canceled.
	serving atomic.Pointer[Call]

	id    atomic.Int64                 // the server's, 0: unknown
	self  atomic.Pointer[command.Peer] // as the server sees the connection; nil: unknown
	aside atomic.Pointer[aside]        // what is done with the bytes that are read; nil, almost always: nothing
	alone atomic.Bool                  // the request that waits is one command

	shards atomic.Pointer[shards] // of a subscription at a node; nil: there are none

	cause  atomic.Pointer[RetiredError] // set once, when the connection is given up
	broken atomic.Pointer[Error]        // the first failure to read
	closed atomic.Bool

	greets  *Greeting    // what was said on it before a pool had it; nil: nothing. Used by its writer
	kept    kept         // bytes that came with the answer to a PING of our own
	trail   trail        // used by Inspect alone
	vigil   vigil        // the same
	greeted atomic.Bool  // a first byte was read
	refused atomic.Bool  // HELLO was; whether there is to be more on the connection will be seen
	listens atomic.Int32 // of a subscription: what its owner was told
	// Deadlines; each is used by one side only, and by whoever holds the claim. early says
	// that the one for reading is sooner than it was set, for the call to be watched then;
	// asked is when a reply was waited for last, by the clock.
	reading, writing deadline
	early            bool
	asked            int64
	plain            bool // it is a socket, which keeps deadlines for us
	lasting          bool // a deadline that has passed does not end the connection, as far as is known
	late             bool // the call has ended, and the reply is being read
}

// roles of a connection, known by what go-redis writes on it.
const (
	roleRegular    = iota
	roleHeld       // in a state in which a PING would not be answered by PONG
	roleSubscriber // Pub/Sub: the server writes when it likes
)

// What the owner of a subscription was told.
const (
	toldNothing = iota
	toldSubscribed
	toldUnsubscribed
)

// subscribed and unsubscribed tell the owner of a subscription what has become of it, each
// once.
func (c *Conn) subscribed() {
	if c.listens.CompareAndSwap(toldNothing, toldSubscribed) {
		c.fleet.owner.Subscribed()
	}
}

func (c *Conn) unsubscribed() {
	if c.listens.CompareAndSwap(toldSubscribed, toldUnsubscribed) {
		c.fleet.owner.Unsubscribed()
	}
}

const claimed = math.MinInt32 / 2

func newConn(nc net.Conn, f *Fleet, gen uint64) *Conn {
	c := &Conn{Conn: nc, raw: sys.Transport(nc), fleet: f, gen: gen, plain: isPlain(nc)}
	c.lasting = isPlain(c.raw)
	c.heard.Store(f.clock.Last())
	if sc, ok := nc.(syscall.Conn); ok {
		c.rc, _ = sc.SyscallConn()
	}
	if sc, ok := sys.Innermost(nc).(syscall.Conn); ok {
		c.kernel, _ = sc.SyscallConn()
		c.peer = sys.PeerOf(c.kernel)
		if c.kernel != nil {
			c.trail = trailOf(c.kernel)
		}
	}
	return c
}

// Write sends p, a request of go-redis or a part of one.
func (c *Conn) Write(p []byte) (int, error) {
	c.enter()
	defer c.leave()
	if c.users.Load() > 1 && !c.duplex.Load() {
		c.duplex.Store(true)
	}
	fresh := c.owes.Load() == 0
	if err := c.Retirement(); err != nil {
		return 0, c.unwritten(0, fresh, err)
	}
	if fresh {
		if c.peer != nil && c.peer.Gone() {
			return 0, c.unwritten(0, true, c.blame(io.EOF))
		}
		now := c.fleet.clock.Read()
		if c.stale(now) {
			if err := c.prove(); err != nil {
				return 0, err
			}
			now = c.fleet.clock.Read()
		}
		c.observe(p)
		if g := c.greets; g != nil {
			c.greets = nil // it is for the first request alone
			if g.answers(p) {
				c.sent = len(p)
				c.owes.Store(now)
				c.keep(g.reply)
				return len(p), nil
			}
		}
		if err := c.introduce(p, now); err != nil {
			return 0, c.unwritten(0, true, c.blame(err))
		}
		c.sent = 0
		c.owes.Store(now)
	}
	if s := c.shards.Load(); s != nil {
		s.asks(p)
	}
	n, err := c.write(p)
	switch {
	case err != nil && n == len(p): // as connections of the caller's own may say
		return n, c.fleet.Seal(&Error{Phase: PhaseRead, Err: c.blame(err)})
	case err != nil:
		return n, c.unwritten(n, fresh, c.blame(err))
	}
	c.sent += n
	return n, nil
}

// unwritten labels a failure to write: it says how far a request had come when n
// bytes of its next part were written; fresh says that this is its first. On a duplex
// connection that says nothing of the requests that wait for their replies.
func (c *Conn) unwritten(n int, fresh bool, err error) error {
	switch {
	case c.duplex.Load():
		return c.fleet.Seal(&Error{Phase: PhasePartial, Err: err, Sent: math.MaxInt})
	case !fresh:
		return c.fleet.Seal(&Error{Phase: PhasePartial, Err: err, Sent: c.sent + n})
	case n > 0:
		return c.fleet.Seal(&Error{Phase: PhasePartial, Err: err, Sent: n})
	}
	return c.fleet.Seal(&Error{Phase: PhaseWrite, Err: err})
}

// Read receives a reply, or a part of one.
func (c *Conn) Read(p []byte) (int, error) {
	c.enter()
	n, err := c.listen(p)
	c.leave()
	if n > 0 {
		if c.role.Load() == roleSubscriber {
			if s := c.shards.Load(); s != nil && s.hears(p[:n]) {
				c.fleet.owner.Strayed(c)
			}
			c.subscribed()
		}
		if !c.greeted.Load() {
			c.greeted.Store(true)
			if words := turnsAway(p[:n]); words != nil { // it answers nobody's question
				c.hangUp()
				c.owes.Store(0)
				c.fleet.Lanes.Failed(words)
				c.fleet.owner.Suspect(words)
				return 0, c.broke(words)
			}
			c.fleet.Lanes.Served()
			c.fleet.metAt.Store(c.fleet.clock.Last())
		}
		c.fleet.hear() // while it counts as owing, see MayAnswer
		// An answer comes after its request, however far the keeper's clock lags.
		c.heard.Store(max(c.fleet.clock.Last(), c.owes.Swap(0)))
	}
	if err != nil {
		if sys.IsTimeout(err) && (c.owes.Load() == 0 || c.role.Load() == roleSubscriber) {
			failure := &Error{Phase: PhaseRead, Err: err} // no news, not bad news
			if c.role.Load() == roleSubscriber {
				return n, failure
			}
			return n, c.fleet.Seal(failure)
		}
		return n, c.broke(err)
	}
	return n, nil
}

// broke labels a failure to read. With RESP3, go-redis reads once more after the
// first failure and reports the second, so the first is remembered.
func (c *Conn) broke(err error) error {
	failure := c.broken.Load()
	if failure == nil {
		failure = &Error{Phase: PhaseRead, Err: c.blame(err)}
		if !sys.IsTimeout(err) {
			c.broken.CompareAndSwap(nil, failure)
		}
	}
	if c.role.Load() == roleSubscriber {
		if !errors.Is(failure.Err, net.ErrClosed) { // else its user has closed it
			c.unsubscribed()
		}
		if retired, ok := failure.Err.(*RetiredError); ok {
			return &Error{Phase: failure.Phase, Err: endedError{retired}}
		}
		return failure
	}
	return c.fleet.Seal(failure)
}

// turnsAway returns what a server says, if p is that, which serves nobody on this
// connection: it closes it after that, and go-redis would take it for a server too old
// for HELLO.
func turnsAway(p []byte) error {
	switch {
	case bytes.HasPrefix(p, maxClients):
		return ErrMaxClients
	case bytes.HasPrefix(p, protected):
		line, _, _ := bytes.Cut(p[1:], []byte("\r\n"))
		return errors.New(string(line))
	}
	return nil
}

// ErrMaxClients is the failure of a connection to a server that is full.
var ErrMaxClients = errors.New("ERR max number of clients reached")

var (
	maxClients = []byte("-ERR " + FullServer)
	protected  = []byte("-DENIED ")
)

// Close closes the connection. It never fails.
func (c *Conn) Close() error {
	c.fleet.forget(c)
	c.fleet.owner.Shake()
	if c.cause.Load() != nil || c.fleet.life.Err() != nil {
		c.hangUp()
	} else if !c.closed.Swap(true) {
		_ = c.Conn.Close()
	}
	return nil
}

// hangUp closes the connection without a farewell, and ends one that is on its way. One of the
// caller's is closed once: what it holds may be counted.
func (c *Conn) hangUp() {
	if !c.closed.Swap(true) || c.lasting {
		_ = c.raw.Close()
	}
}

// ID returns by which id the server knows the connection, 0 when that is unknown.
func (c *Conn) ID() int64 { return c.id.Load() }

// Self returns the connection as the server sees it, nil when that is unknown.
func (c *Conn) Self() *command.Peer { return c.self.Load() }

// IsKnownAs notes how its server sees the connection, if that is not known yet.
func (c *Conn) IsKnownAs(self command.Peer) { c.self.CompareAndSwap(nil, &self) }

// WaitsSince returns since when, by the clock, the connection waits to hear from the
// server, 0 when it does not. It is another once it has heard.
func (c *Conn) WaitsSince() int64 {
	if owes := c.owes.Load(); owes != 0 {
		return owes
	}
	if c.role.Load() == roleSubscriber {
		return c.heard.Load()
	}
	return 0
}

// NetConn returns the wrapped connection.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// enter and leave bracket every use of the wrapped connection.
func (c *Conn) enter() {
	if c.users.Add(1) < 0 {
		c.claim.Lock() // until the PING under way is answered
		defer c.claim.Unlock()
	}
}

func (c *Conn) leave() { c.users.Add(-1) }

// busy reports whether a caller is at work on the connection, or a PING of our own. A
// reader who is parked there, for whatever may come, is not.
func (c *Conn) busy() bool {
	return c.users.Load() != 0 && c.role.Load() == roleRegular && !c.duplex.Load()
}

// Retire gives the connection up: what blocks in it returns at once.
func (c *Conn) Retire(cause error) {
	if c.cause.CompareAndSwap(nil, &RetiredError{Cause: cause}) {
		c.hangUp()
		c.fleet.forget(c)
		c.unsubscribed()
	}
}

// Cut gives the connection up because of what is known of it alone, and counts that.
func (c *Conn) Cut(cause error) {
	c.fleet.n.Cut.Add(1)
	c.Retire(cause)
}

// Discard closes a connection that nobody was given.
func (c *Conn) Discard() { c.hangUp() }

// Retirement returns why the connection must not be used, or nil.
func (c *Conn) Retirement() error {
	if cause := c.cause.Load(); cause != nil {
		return cause
	}
	if c.gen == c.fleet.gen.Load() {
		return nil
	}
	return &RetiredError{Cause: c.fleet.owner.Cause()}
}

// reason returns why the connection fails with err: it was given up before, or err. It
// says nothing of the server. There are connections that support no deadlines, and
// go-redis sets some whose failure it does not look at.
func (c *Conn) reason(err error) error {
	if cause := c.Retirement(); cause != nil {
		return cause
	}
	return err
}

// blame tells the link that the connection failed with err, unless that is no
// news: it was given up before, or closed by go-redis. It returns the true cause.
func (c *Conn) blame(err error) error {
	if cause := c.Retirement(); cause != nil {
		return cause
	}
	switch {
	case errors.Is(err, net.ErrClosed), err == ErrMaxClients:
	case c.greeted.Load():
		c.fleet.owner.Broken(err)
	default: // it was new, so one more might break as well
		c.fleet.owner.Suspect(err)
	}
	return err
}

// observe notes from the head of a request what kind of connection this is.
func (c *Conn) observe(p []byte) {
	if a := c.aside.Load(); a != nil && a.greeting {
		c.aside.Store(nil) // HELLO was refused, or has no id
	}
	var buf [16]byte
	name := command.Head(p, &buf)
	if c.refused.Load() && string(name) != "hello" && string(name) != "auth" { // it is none of the password
		c.refused.Store(false)
		c.fleet.resp2.Store(true)
	}
	if waits := command.MayWait(name); waits != c.waits.Load() {
		c.waits.Store(waits)
	}
	switch string(name) {
	case "hello":
		c.aside.Store(&aside{greeting: true})
		return
	case "auth", "select", "readonly":
		return // handshake
	case "client":
		if bytes.Contains(p, []byte("\r\nmaint_notifications\r\n")) {
			c.aside.Store(&aside{upkeep: true})
		}
		if bytes.Contains(bytes.ToLower(p), []byte("\r\nreply\r\n")) {
			c.role.Store(roleHeld)
		}
		return
	case "subscribe", "psubscribe", "ssubscribe":
		if c.role.Swap(roleSubscriber) != roleSubscriber && c.fleet.settings.Sealed {
			c.shards.Store(new(shards))
		}
	case "multi":
		if len(p) == len("*1\r\n$5\r\nmulti\r\n") {
			c.role.Store(roleHeld)
		} else {
			c.guard(false) // which EXEC, behind it, ends
		}
	case "watch", "unwatch":
		c.guard(name[0] == 'w')
	case "monitor":
		c.role.Store(roleHeld)
	}
	c.uses.Add(1)
}

// guard notes that keys are watched on the connection from now on, or none.
func (c *Conn) guard(keys bool) {
	switch was := c.guards.Swap(keys); {
	case keys && !was:
		c.fleet.watched.Add(1)
	case !keys && was:
		c.fleet.watched.Add(-1)
	}
}

// pooled is a Conn whose pool runs a health check before every use: the check
// drops retired connections and those that the peer has closed. Windows has no
// such check; there, and wherever else, Write refuses retired ones, and looks whether the
// peer is gone.
type pooled struct{ *Conn }

// Pooled returns the connection as a pool is to see it. A client-side cache that looks
// into a connection is shown it as it is, where the check would not let it.
func (c *Conn) Pooled() net.Conn {
	if c.fleet.settings.Cached && c.rc == nil {
		return c
	}
	return pooled{c}
}

// SyscallConn returns what the check reads from.
func (p pooled) SyscallConn() (syscall.RawConn, error) { return (*poolCheck)(p.Conn), nil }

var _ syscall.RawConn = (*poolCheck)(nil)

// poolCheck answers the pool's health check.
type poolCheck Conn

func (k *poolCheck) Control(func(fd uintptr)) error           { return errors.ErrUnsupported }
func (k *poolCheck) Write(func(fd uintptr) (done bool)) error { return errors.ErrUnsupported }

// Read fails when the connection must not be used. It lets the pool peek at a
// plain socket; under TLS the raw bytes would mean nothing to it.
func (k *poolCheck) Read(peek func(fd uintptr) (done bool)) error {
	c := (*Conn)(k)
	c.enter()
	defer c.leave()
	if err := c.Retirement(); err != nil {
		return err
	}
	if !c.greeted.Load() {
		return nil // what a server says first is for the handshake to read
	}
	if c.rc != nil {
		err := c.rc.Read(peek)
		if c.reading.missed(err) {
			if err = c.setRead(c.reading.want); err == nil {
				err = c.rc.Read(peek)
			}
		}
		return err
	}
	if c.kernel != nil && sys.PeerClosed(c.kernel) {
		return io.EOF
	}
	return nil
}
