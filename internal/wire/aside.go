package wire

import (
	"bytes"
	"errors"
	"math"
	"net"
	"time"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/sys"
)

// What a connection says and hears besides what is go-redis's: which client the server
// takes it for, by HELLO's answer and by a question ahead of a request that may wait; and
// how it parts from a call that has ended.

// aside is what is done with bytes that are read before go-redis has them.
type aside struct {
	greeting bool          // they answer HELLO, and say which client this is
	upkeep   bool          // they answer whether there are notifications of maintenance
	answer   bool          // they begin with the answer to a question of our own
	parting  error         // why nothing is worth less than the end of the connection
	text     []byte        // of a greeting, so far
	frame    command.Frame // of an answer, or of a push before it
}

// whoAmI asks the server how it sees the connection.
var whoAmI = []byte("*2\r\n$6\r\nclient\r\n$4\r\ninfo\r\n")

// introduce asks that ahead of p, the first request since the connection was handed out,
// if the server may let it wait, or it begins a subscription, unless it is known that
// nothing is in between. The answer, which comes first, is not for go-redis to see. It
// takes no round trip.
func (c *Conn) introduce(p []byte, now int64) error {
	waits := c.waits.Load()
	if waits {
		c.alone.Store(command.IsOne(p))
	} else if c.role.Load() != roleSubscriber {
		return nil
	}
	if c.id.Load() == 0 || c.self.Load() != nil || c.uses.Load() > 1 || c.role.Load() == roleHeld ||
		c.users.Load() > 1 || c.aside.Load() != nil ||
		c.fleet.shunned.Load() >= mostShunned || !c.fleet.Inquirer.Willing(now) {
		return nil
	}
	if waits && !command.Blocks(p) {
		return nil
	}
	if c.fleet.direct.Load() { // the server sees what can be seen here
		if self, ok := c.seenHere(); ok {
			c.self.Store(&self)
			c.fleet.Inquirer.Met(c)
			return nil
		}
	}
	c.aside.Store(&aside{answer: true})
	_, err := c.Conn.Write(whoAmI)
	return err
}

// listen reads what is for go-redis: what was kept, and then what comes. For a call that can
// be canceled it watches the context, on a connection that is used often only after a moment,
// before which most replies have come.
//
// This is where nearly every goroutine waits that has sent a command, on a stack for which
// sys.GrowStack has made some room: so the way down to the socket is short, and what is rare has
// functions of its own.
func (c *Conn) listen(p []byte) (n int, err error) {
	x := c.serving.Load()
	switch {
	case c.kept.some.Load():
		n = c.kept.take(p)
	case x != nil && !c.early && !c.late:
		n, err = c.watched(x, p)
	default:
		if n, err = c.Conn.Read(p); n == 0 {
			n, err = c.readOn(x, p, err)
		}
	}
	if a := c.aside.Load(); a != nil {
		return c.overhear(a, p, n, err)
	}
	return n, err
}

// Greeting is the first request on a connection, if that was HELLO, and the answer. One
// goroutine at a time may use it. A
// connection that was set up by a probe comes to a pool, which greets the server once more
// in the same words: it has the same answer, and the server is not troubled.
type Greeting struct {
	requests       int
	request, reply []byte
}

// Said takes up what was written.
func (g *Greeting) Said(p []byte) {
	var buf [16]byte
	if g.requests++; g.requests == 1 && string(command.Head(p, &buf)) == "hello" {
		g.request = append(g.request, p...)
	}
}

// Heard takes up what was read.
func (g *Greeting) Heard(p []byte) {
	if g.requests == 1 {
		g.reply = append(g.reply, p...)
	}
}

// answers reports whether there is an answer to a request.
func (g *Greeting) answers(p []byte) bool {
	return len(g.reply) > 0 && bytes.Equal(g.request, p)
}

// overhear does what is to be done with the first n bytes of p, which were read, and
// returns how many of them are for go-redis. When it is none it reads on.
func (c *Conn) overhear(a *aside, p []byte, n int, err error) (int, error) {
	switch {
	case n == 0:
		if a.answer && c.ends(err) && c.aside.CompareAndSwap(a, nil) {
			c.fleet.shunned.Add(1)
		}
		return n, err
	case a.greeting:
		a.text = append(a.text, p[:n]...)
		if c.uses.Load() == 0 { // else it is a caller who says HELLO, on a connection of his own
			c.refused.Store(a.text[0] != '%')
			if a.text[0] == '%' {
				c.fleet.resp2.Store(false)
			}
		}
		id := command.HelloID(a.text)
		if id == 0 && len(a.text) < maxGreeting {
			return n, err
		}
		if c.id.Swap(id) != id {
			c.self.Store(nil)
		}
		c.aside.CompareAndSwap(a, nil)
		return n, err
	case a.upkeep:
		if p[0] == '-' {
			c.fleet.declined.Store(true)
		}
		c.aside.CompareAndSwap(a, nil)
		return n, err
	case a.parting != nil:
		if command.IsNil(p[:n]) {
			c.Retire(a.parting)
			return 0, net.ErrClosed
		}
		return n, err
	}
	kept, ok := c.answered(a, p[:n])
	switch {
	case !ok:
		c.Retire(errNoReply)
		return 0, net.ErrClosed
	case kept > 0, err != nil:
		return kept, err
	}
	return c.listen(p)
}

// answered takes the answer to an introduction out of p, and leaves pushes before it. It
// returns how many bytes are left, or false when this is no reply at all.
func (c *Conn) answered(a *aside, p []byte) (kept int, ok bool) {
	for kept < len(p) {
		n, whole, ok := a.frame.Feed(p[kept:])
		push := a.frame.Kind == '>'
		switch {
		case !ok:
			return 0, false
		case push:
			kept += n
		default:
			p = append(p[:kept], p[kept+n:]...)
		}
		switch {
		case whole && push:
			a.frame = command.Frame{}
		case whole:
			c.aside.CompareAndSwap(a, nil)
			c.introduced(a.frame.Text)
			return len(p), true
		}
	}
	return kept, true
}

// ends reports whether a read that failed with err says that the peer has ended the connection,
// and not we.
func (c *Conn) ends(err error) bool {
	return err != nil && !sys.IsTimeout(err) && !c.closed.Load() && c.cause.Load() == nil
}

// introduced takes the answer to an introduction.
func (c *Conn) introduced(text []byte) {
	c.fleet.shunned.Store(math.MinInt32)
	self, ok := command.ParsePeer(string(text))
	if !ok || self.ID != c.id.Load() {
		c.fleet.Inquirer.Mute()
		return
	}
	c.self.Store(&self)
	here, ok := c.seenHere()
	c.fleet.direct.Store(ok && here.Is(self))
	c.heard.Store(c.fleet.clock.Last())
	c.fleet.hear()
	c.fleet.Inquirer.Met(c)
}

// ComesFrom reports whether what a server says of a client is about this connection, with
// nothing in between: it names the address that the connection has here. No other can have
// that.
func (c *Conn) ComesFrom(peer command.Peer) bool {
	local := tcpAddr(c.Conn.LocalAddr)
	return local != nil && local.String() == peer.Addr
}

// seenHere returns the connection as its server sees it when nothing is in between.
func (c *Conn) seenHere() (self command.Peer, ok bool) {
	local, remote := tcpAddr(c.Conn.LocalAddr), tcpAddr(c.Conn.RemoteAddr)
	if local == nil || remote == nil {
		return self, false
	}
	return command.Peer{ID: c.id.Load(), Addr: local.String(), Laddr: remote.String()}, true
}

// tcpAddr returns the address that of says, nil: it says none. To send commands go-redis asks
// for none, so a connection of the caller's may panic that has never been asked.
func tcpAddr(of func() net.Addr) (addr *net.TCPAddr) {
	defer func() { _ = recover() }()
	addr, _ = of().(*net.TCPAddr)
	return addr
}

// unblock has the server end what the connection waits for, and says how long that may
// take, whether anything is known of it and whether it is that which ends it, see Inquirer.
func (c *Conn) unblock() (patience time.Duration, settled, freed bool) {
	patience = c.fleet.UnblockTimeout()
	s, f := c.fleet.Inquirer.Unblock(patience, c)
	return patience, s[0], f[0]
}

// finish gives the rest of a reply that has begun, although its call has ended, the time
// that a heartbeat has.
func (c *Conn) finish() {
	c.late, c.early, c.reading.want = true, false, time.Now().Add(c.fleet.settings.Timeout)
	_ = c.setRead(c.reading.want)
}

var errNoReply = errors.New("what the server says is no reply")
