package wire

import (
	"net"
	"time"

	"github.com/redial-go/redial/internal/sys"
)

// How the deadlines that go-redis sets reach the socket. It sets three for every command,
// each a little later than the one of the command before, and hardly any is ever missed.
// So a plain socket keeps one that is sooner, while that is far enough away. When it
// passes, what is under way goes on until the deadline that go-redis has set.

// deadline is when one side of a connection gives up.
type deadline struct {
	want time.Time // as go-redis has set it; zero: never
	have time.Time // as the socket has it
}

// keeps reports whether the socket may keep what it has in place of t, while the clock
// says now: it is sooner than t, and by no more than half the time that is left until then.
func (d *deadline) keeps(t, now time.Time) bool {
	if d.have.IsZero() {
		return t.IsZero()
	}
	if t.IsZero() {
		return true
	}
	left := d.have.Sub(now)
	return left > 0 && !d.have.After(t) && t.Sub(now) <= 2*left
}

// missed reports whether err says that the deadline of the socket has passed, and it was
// sooner than that of go-redis.
func (d *deadline) missed(err error) bool {
	return err != nil && !d.have.Equal(d.want) && sys.IsTimeout(err)
}

// isPlain reports whether a connection is a socket, which goes on after a deadline has passed.
// So does TLS over one. Of what a dialer of the caller's returns that is unknown.
func isPlain(nc net.Conn) bool {
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// SetDeadline is what the pool calls, and go-redis nowhere else, right before it
// hands the connection to a new caller.
func (c *Conn) SetDeadline(t time.Time) error {
	c.enter()
	defer c.leave()
	c.uses.Store(0)
	c.duplex.Store(false)
	if c.role.Load() == roleHeld {
		c.role.Store(roleRegular)
	}
	c.reading.want, c.writing.want, c.early = t, t, false
	if c.plain && t.IsZero() {
		return nil
	}
	return c.setBoth(t)
}

// SetWriteDeadline remembers the deadline, for a PING of our own replaces it. It
// fails, before anything is written, on a connection that is closed.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.enter()
	defer c.leave()
	c.writing.want = t
	if !c.serve(t) {
		return c.unwritten(0, c.owes.Load() == 0, net.ErrClosed)
	}
	if c.plain && c.writing.keeps(t, c.fleet.clock.at(c.fleet.clock.Last())) {
		return nil
	}
	if err := c.setWrite(t); err != nil {
		return c.unwritten(0, c.owes.Load() == 0, c.reason(err))
	}
	return nil
}

// SetReadDeadline does the same for reading; it fails on a connection that was
// closed after the request was written.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.enter()
	defer c.leave()
	c.reading.want, c.early, c.late = t, false, false
	watched := c.serving.Load() != nil
	sent := c.owes.Load() // just now
	if sent == 0 {
		sent = c.fleet.clock.Read()
	}
	now := c.fleet.clock.at(sent)
	often := time.Duration(sent-c.asked) < seldom
	c.asked = sent
	if watched && c.lasting && (often || c.waits.Load()) && !t.IsZero() {
		if soon := now.Add(Unwatched); soon.Before(t) {
			t, c.early = soon, true
		}
	}
	if c.plain && c.reading.keeps(t, now) {
		return nil
	}
	if err := c.setRead(t); err != nil {
		return c.fleet.Seal(&Error{Phase: PhaseRead, Err: c.reason(err)})
	}
	return nil
}

// setRead, setWrite and setBoth set deadlines of the socket.
func (c *Conn) setRead(t time.Time) error {
	c.reading.have = t
	return c.Conn.SetReadDeadline(t)
}

func (c *Conn) setWrite(t time.Time) error {
	c.writing.have = t
	return c.Conn.SetWriteDeadline(t)
}

func (c *Conn) setBoth(t time.Time) error {
	c.reading.have, c.writing.have = t, t
	return c.Conn.SetDeadline(t)
}

// readOn goes on reading, after a read has ended with err, until the deadline that go-redis
// has set. x is the call that is to be watched from now on, if it was not yet; nil: none.
func (c *Conn) readOn(x *Call, p []byte, err error) (int, error) {
	watch := x != nil && !c.late // because of whom the deadline was a sooner one
	if watch && !sys.IsTimeout(err) || !watch && !c.reading.missed(err) {
		return 0, err
	}
	c.early = c.early && !watch
	if err := c.setRead(c.reading.want); err != nil {
		return 0, err
	}
	if watch {
		return c.watched(x, p)
	}
	return c.Conn.Read(p)
}

// writeOn writes until the deadline that go-redis has set.
func (c *Conn) writeOn(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if !c.plain || !c.writing.missed(err) {
		return n, err
	}
	if err := c.setWrite(c.writing.want); err != nil {
		return n, err
	}
	rest, err := c.Conn.Write(p[n:])
	return n + rest, err
}
