package redial

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/sys"
)

// conn is the connection that go-redis's pools hold. It labels errors with the
// phase they happened in, refuses to carry a byte once its generation is
// retired, and proves itself with a PING when it has been idle.
//
// Reads and writes may run at the same time, as full-duplex pipelining does.
type conn struct {
	net.Conn            // TCP, TLS over it, unix or the caller's own
	raw        net.Conn // innermost: closing it never blocks
	link       *link
	gen        uint64
	rc         syscall.RawConn // what the pool may peek at; nil under TLS
	peerClosed func() bool     // asks the kernel under TLS; nil: unknown

	// heard is the clock when the last byte was received, and owes when the first was
	// written that has not been answered since, 0: nothing is owed. The one may be too
	// early, by what the keeper's clock lags; the other is exact.
	heard, owes atomic.Int64
	// users counts the Reads and Writes under way. A PING of our own claims the
	// connection by making it negative, and holds claim meanwhile.
	users atomic.Int32
	claim sync.Mutex
	// sent counts the bytes of the request under way. Only its writer uses it.
	sent int
	// uses counts the requests since the pool last handed the connection out,
	// see sweepable.
	uses atomic.Int32
	role atomic.Int32
	// duplex is set once a request is written while another caller reads.
	duplex atomic.Bool
	// waits is set while the request under way is one that the server may keep
	// waiting, like BLPOP.
	waits atomic.Bool

	// serving is the call that the connection serves, if that can be canceled.
	serving atomic.Pointer[callContext]

	cause  atomic.Pointer[retiredError] // set once, when the connection is given up
	broken atomic.Pointer[connError]    // the first failure to read

	greeted atomic.Bool // a first byte was read
	leaving atomic.Bool // a subscription ends, as was asked for, or because its slot was moved
	// Deadlines as go-redis set them; each is used by one side only, and by whoever
	// holds the claim. early says that the one set for reading is sooner.
	readDeadline, writeDeadline time.Time
	early                       bool
}

// roles of a connection, known by what go-redis writes on it.
const (
	roleRegular    = iota
	roleHeld       // in a state in which a PING would not be answered by PONG
	roleSubscriber // Pub/Sub: the server writes when it likes
)

const claimed = math.MinInt32 / 2

func newConn(nc net.Conn, l *link, gen uint64) *conn {
	c := &conn{Conn: nc, raw: sys.Innermost(nc), link: l, gen: gen}
	c.heard.Store(l.clock.Load())
	if sc, ok := nc.(syscall.Conn); ok {
		c.rc, _ = sc.SyscallConn()
	} else if sc, ok := c.raw.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			c.peerClosed = func() bool { return sys.PeerClosed(rc) }
		}
	}
	return c
}

// Write sends p, a request of go-redis or a part of one.
func (c *conn) Write(p []byte) (int, error) {
	c.enter()
	defer c.leave()
	if c.users.Load() > 1 && !c.duplex.Load() {
		c.duplex.Store(true)
	}
	fresh := c.owes.Load() == 0
	if err := c.retirement(); err != nil {
		return 0, c.unwritten(0, fresh, err)
	}
	if fresh {
		now := c.link.read()
		if c.stale(now) {
			if err := c.prove(); err != nil {
				return 0, err
			}
			now = c.link.read()
		}
		c.observe(p)
		c.sent = 0
		c.owes.Store(now)
	}
	n, err := c.write(p)
	if err != nil {
		return n, c.unwritten(n, fresh, c.blame(err))
	}
	c.sent += n
	return n, nil
}

// unwritten labels a failure to write: it says how far a request had come when n
// bytes of its next part were written; fresh says that this is its first. On a duplex
// connection that says nothing of the requests that wait for their replies.
func (c *conn) unwritten(n int, fresh bool, err error) error {
	switch {
	case c.duplex.Load():
		return c.link.seal(&connError{phase: phasePartial, err: err, sent: math.MaxInt})
	case !fresh:
		return c.link.seal(&connError{phase: phasePartial, err: err, sent: c.sent + n})
	case n > 0:
		return c.link.seal(&connError{phase: phasePartial, err: err, sent: n})
	}
	return c.link.seal(&connError{phase: phaseWrite, err: err})
}

// Read receives a reply, or a part of one.
func (c *conn) Read(p []byte) (int, error) {
	c.enter()
	n, err := c.read(p)
	c.leave()
	if n > 0 {
		if c.role.Load() == roleSubscriber && isStray(p[:n]) && c.leaving.CompareAndSwap(false, true) {
			c.link.owner.strayed(c)
		}
		// An answer comes after its request, however far the keeper's clock lags.
		c.heard.Store(max(c.link.clock.Load(), c.owes.Swap(0)))
		c.link.hear()
		if !c.greeted.Load() {
			c.greeted.Store(true)
			if words := turnsAway(p[:n]); words != nil {
				_ = c.raw.Close()
				c.link.lanes.failed(words)
				c.link.suspect(words)
				return 0, c.broke(words)
			}
			c.link.lanes.served()
		}
	}
	if err != nil {
		if sys.IsTimeout(err) && (c.owes.Load() == 0 || c.role.Load() == roleSubscriber) {
			failure := &connError{phase: phaseRead, err: err} // no news, not bad news
			if c.role.Load() == roleSubscriber {
				return n, failure
			}
			return n, c.link.seal(failure)
		}
		return n, c.broke(err)
	}
	return n, nil
}

// isStray reports whether a node tells a subscription of shard channels that it has
// to go elsewhere, with a push that nobody has asked for or in answer to SSUBSCRIBE.
// go-redis would take the one for the end of the subscription, the other for an error.
func isStray(p []byte) bool {
	return len(p) > 0 && bytes.HasPrefix(p[1:], strayPush) && (p[0] == '>' || p[0] == '*') || bytes.HasPrefix(p, strayReply)
}

var (
	strayPush  = []byte("3\r\n$12\r\nsunsubscribe\r\n")
	strayReply = []byte("-MOVED ")
)

// broke labels a failure to read. With RESP3, go-redis reads once more after the
// first failure and reports the second, so the first is remembered.
func (c *conn) broke(err error) error {
	failure := c.broken.Load()
	if failure == nil {
		failure = &connError{phase: phaseRead, err: c.blame(err)}
		if !sys.IsTimeout(err) {
			c.broken.CompareAndSwap(nil, failure)
		}
	}
	if c.role.Load() == roleSubscriber {
		return failure
	}
	return c.link.seal(failure)
}

// turnsAway returns what a server says, if p is that, which serves nobody on this
// connection: it closes it after that, and go-redis would take it for a server too old
// for HELLO.
func turnsAway(p []byte) error {
	switch {
	case bytes.HasPrefix(p, maxClients):
		return errMaxClients
	case bytes.HasPrefix(p, protected):
		line, _, _ := bytes.Cut(p[1:], []byte("\r\n"))
		return errors.New(string(line))
	}
	return nil
}

var (
	maxClients    = []byte("-ERR " + fullServer)
	protected     = []byte("-DENIED ")
	errMaxClients = errors.New("ERR max number of clients reached")
)

// Close closes the connection. It never fails.
func (c *conn) Close() error {
	c.link.forget(c)
	c.link.shake()
	if c.cause.Load() != nil || c.link.ctx.Err() != nil {
		_ = c.raw.Close() // no TLS farewell: it could block
		return nil
	}
	_ = c.Conn.Close()
	return nil
}

// shake has the keeper look whether go-redis, which has closed a connection, has closed
// the client as well. A pool that closes is closed before its connections are.
func (l *link) shake() {
	if !l.shaken.Swap(true) {
		nudge(l.knock)
	}
}

// SetDeadline is what the pool calls, and go-redis nowhere else, right before it
// hands the connection to a new caller.
func (c *conn) SetDeadline(t time.Time) error {
	c.enter()
	defer c.leave()
	c.uses.Store(0)
	c.duplex.Store(false)
	if c.role.Load() == roleHeld {
		c.role.Store(roleRegular)
	}
	c.readDeadline, c.writeDeadline, c.early = t, t, false
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline remembers the deadline, for a PING of our own replaces it. It
// fails, before anything is written, on a connection that is closed.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.enter()
	defer c.leave()
	c.writeDeadline = t
	if !c.serve(t) {
		return c.unwritten(0, c.owes.Load() == 0, net.ErrClosed)
	}
	if err := c.Conn.SetWriteDeadline(t); err != nil {
		return c.unwritten(0, c.owes.Load() == 0, c.blame(err))
	}
	return nil
}

// SetReadDeadline does the same for reading; it fails on a connection that was
// closed after the request was written.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.enter()
	defer c.leave()
	c.readDeadline, c.early = t, false
	if c.serving.Load() != nil && !t.IsZero() {
		if soon := time.Now().Add(unwatched); soon.Before(t) {
			t, c.early = soon, true
		}
	}
	if err := c.Conn.SetReadDeadline(t); err != nil {
		return c.link.seal(&connError{phase: phaseRead, err: c.blame(err)})
	}
	return nil
}

// NetConn returns the wrapped connection.
func (c *conn) NetConn() net.Conn { return c.Conn }

// enter and leave bracket every use of the wrapped connection.
func (c *conn) enter() {
	if c.users.Add(1) < 0 {
		c.claim.Lock() // until the PING under way is answered
		defer c.claim.Unlock()
	}
}

func (c *conn) leave() { c.users.Add(-1) }

// retire gives the connection up: what blocks in it returns at once.
func (c *conn) retire(cause error) {
	if c.cause.CompareAndSwap(nil, &retiredError{cause}) {
		_ = c.raw.Close()
		c.link.forget(c)
	}
}

// retirement returns why the connection must not be used, or nil.
func (c *conn) retirement() error {
	if cause := c.cause.Load(); cause != nil {
		return cause
	}
	if c.gen == c.link.gen.Load() {
		return nil
	}
	return &retiredError{c.link.lastCause()}
}

// blame tells the link that the connection failed with err, unless that is no
// news: it was given up before, or closed by go-redis. It returns the true cause.
func (c *conn) blame(err error) error {
	if cause := c.retirement(); cause != nil {
		return cause
	}
	if !errors.Is(err, net.ErrClosed) && err != errMaxClients {
		c.link.suspect(err)
	}
	return err
}

// observe notes from the head of a request what kind of connection this is.
func (c *conn) observe(p []byte) {
	var buf [16]byte
	name := command.Head(p, &buf)
	if waits := command.MayWait(name); waits != c.waits.Load() {
		c.waits.Store(waits)
	}
	switch string(name) {
	case "hello", "auth", "select", "readonly":
		return // handshake
	case "client":
		if bytes.Contains(bytes.ToLower(p), []byte("\r\nreply\r\n")) {
			c.role.Store(roleHeld)
		}
		return
	case "subscribe", "psubscribe", "ssubscribe":
		c.role.Store(roleSubscriber)
	case "sunsubscribe":
		c.leaving.Store(true)
	case "multi":
		if len(p) == len("*1\r\n$5\r\nmulti\r\n") {
			c.role.Store(roleHeld)
		}
	case "watch":
		c.link.watches.Store(true)
	case "monitor":
		c.role.Store(roleHeld)
	}
	c.uses.Add(1)
}

// stale reports whether the connection must prove itself before it carries a
// request: it has been idle, or others broke since it was last heard. now is what the
// clock says, read for the purpose: a process may have been stopped since the keeper did.
func (c *conn) stale(now int64) bool {
	l, heard := c.link, c.heard.Load()
	return l.idleAge > 0 && c.role.Load() == roleRegular && !c.duplex.Load() &&
		(now-heard >= l.idleAge || heard <= l.suspectAt.Load())
}

// prove sends a PING and wants its answer, before the request of the caller, who
// is inside Write. The error says that nothing of the request was sent.
func (c *conn) prove() error {
	c.claim.Lock()
	defer c.claim.Unlock()
	if !c.users.CompareAndSwap(1, 1+claimed) {
		return nil // a reader is parked here and will hear for itself
	}
	defer c.users.Add(-claimed)
	if x := c.serving.Load(); x != nil {
		defer c.watch(x)()
	}
	deadline := time.Now().Add(c.link.proofTimeout())
	if wd := c.writeDeadline; !wd.IsZero() && wd.Before(deadline) {
		deadline = wd
	}
	if err := c.ping(deadline); err != nil {
		return c.link.seal(&connError{phase: phaseWrite, err: err})
	}
	return nil
}

// sweepable reports whether the background sweep may use the connection: it has
// been silent for age, and looks as if it lay idle in the pool. A connection
// that carried several requests since the pool handed it out is held by a
// caller, as Conn, Tx and full-duplex pipelining do.
func (c *conn) sweepable(age int64) bool {
	return c.owes.Load() == 0 && c.link.read()-c.heard.Load() >= age && c.uses.Load() <= 1 &&
		c.role.Load() == roleRegular && c.retirement() == nil
}

// sweep proves the connection in the background, unless it is in use. A failure
// retires it.
func (c *conn) sweep(age int64) {
	if !c.claim.TryLock() {
		return
	}
	defer c.claim.Unlock()
	if !c.users.CompareAndSwap(0, claimed) {
		return
	}
	defer c.users.Add(-claimed)
	if c.sweepable(age) {
		_ = c.ping(time.Now().Add(c.link.proofTimeout()))
	}
}

var (
	pingRequest = []byte("*1\r\n$4\r\nping\r\n")
	pongReply   = []byte("+PONG\r\n")
)

// ping exchanges one PING on a connection that the caller has claimed. Bytes
// that wait unread are pushes for go-redis and must stay where they are: then
// nothing is sent. A connection that does not answer exactly is retired.
func (c *conn) ping(deadline time.Time) error {
	if c.unread() {
		return nil
	}
	c.link.n.idleChecks.Add(1)
	began := time.Now()
	err := c.exchange(deadline)
	if err != nil {
		c.link.n.idleDropped.Add(1)
		err = fmt.Errorf("idle connection: %w", err)
		if c.retirement() == nil {
			c.retire(err)
			c.link.suspect(err)
		}
		return err
	}
	c.link.measure(time.Since(began))
	c.heard.Store(c.link.clock.Load())
	c.link.hear()
	return nil
}

func (c *conn) exchange(deadline time.Time) error {
	if err := c.Conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.Conn.Write(pingRequest); err != nil {
		return err
	}
	var reply [7]byte
	if _, err := io.ReadFull(c.Conn, reply[:]); err != nil {
		return err
	}
	if !bytes.Equal(reply[:], pongReply) {
		return errors.New("the answer to PING is not PONG")
	}
	if err := c.Conn.SetReadDeadline(c.readDeadline); err != nil {
		return err
	}
	return c.Conn.SetWriteDeadline(c.writeDeadline)
}

// unread reports whether bytes wait in the socket, where that can be seen.
func (c *conn) unread() bool {
	return c.rc != nil && sys.Readable(c.rc)
}

// pooled is a conn whose pool runs a health check before every use: the check
// drops retired connections and those that the peer has closed. Windows has no
// such check; there, and wherever else, Write refuses.
type pooled struct{ *conn }

// SyscallConn returns what the check reads from.
func (p pooled) SyscallConn() (syscall.RawConn, error) { return (*poolCheck)(p.conn), nil }

// poolCheck answers the pool's health check.
type poolCheck conn

func (k *poolCheck) Control(func(fd uintptr)) error           { return errors.ErrUnsupported }
func (k *poolCheck) Write(func(fd uintptr) (done bool)) error { return errors.ErrUnsupported }

// Read fails when the connection must not be used. It lets the pool peek at a
// plain socket; under TLS the raw bytes would mean nothing to it.
func (k *poolCheck) Read(peek func(fd uintptr) (done bool)) error {
	c := (*conn)(k)
	c.enter()
	defer c.leave()
	if err := c.retirement(); err != nil {
		return err
	}
	if !c.greeted.Load() {
		return nil // what a server says first is for the handshake to read
	}
	if c.rc != nil {
		return c.rc.Read(peek)
	}
	if c.peerClosed != nil && c.peerClosed() {
		return io.EOF
	}
	return nil
}
