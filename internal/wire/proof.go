package wire

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/sys"
)

// How a connection that has been idle proves itself, before its next command or in the
// background: by one complete reply, of any kind, to a PING. Whatever else comes with it
// is kept for go-redis.

// stale reports whether the connection must prove itself before it carries a
// request: it has been idle, or others broke since it was last heard. now is what the
// clock says, read for the purpose: a process may have been stopped since the keeper did.
func (c *Conn) stale(now int64) bool {
	age, heard := int64(c.fleet.settings.IdleAge), c.heard.Load()
	return age > 0 && c.role.Load() == roleRegular && !c.duplex.Load() &&
		(now-heard >= age || heard <= c.fleet.suspectAt.Load())
}

// prove sends a PING and wants its answer, before the request of the caller, who
// is inside Write. The error says that nothing of the request was sent.
func (c *Conn) prove() error {
	c.claim.Lock()
	defer c.claim.Unlock()
	if !c.users.CompareAndSwap(1, 1+claimed) {
		return nil // a reader is parked here and will hear for itself
	}
	defer c.users.Add(-claimed)
	if x := c.serving.Load(); x != nil {
		defer c.watch(x, 0)()
	}
	deadline := time.Now().Add(c.fleet.ProofTimeout())
	if wd := c.writing.want; !wd.IsZero() && wd.Before(deadline) {
		deadline = wd
	}
	if err := c.ping(deadline, c.fleet.owner.Broken); err != nil {
		return c.fleet.Seal(&Error{Phase: PhaseWrite, Err: err})
	}
	return nil
}

// Sweepable reports whether the background sweep may use the connection: it has
// been silent for age, and looks as if it lay idle in the pool, as one that has failed does
// until go-redis closes it. A connection that carried several requests since the pool handed
// it out is held by a caller, as Conn, Tx and full-duplex pipelining do.
func (c *Conn) Sweepable(age int64) bool {
	return c.owes.Load() == 0 && c.fleet.clock.Read()-c.heard.Load() >= age && c.uses.Load() <= 1 &&
		c.role.Load() == roleRegular && c.broken.Load() == nil && !c.closed.Load() && c.Retirement() == nil
}

// Sweep proves the connection in the background, unless it is in use. A failure
// retires it.
func (c *Conn) Sweep(age int64) {
	c.whileIdle(age, func(deadline time.Time) { _ = c.ping(deadline, c.fleet.owner.Suspect) })
}

// beat asks on a connection that lies idle in the pool whether the server lives.
func (c *Conn) beat() {
	c.whileIdle(0, func(deadline time.Time) {
		if !c.unread() {
			_ = c.ask(deadline, c.fleet.owner.Suspect)
		}
	})
}

// whileIdle calls f with the connection claimed, if it is sweepable, and the time by which
// an answer should come.
func (c *Conn) whileIdle(age int64, f func(deadline time.Time)) {
	if !c.claim.TryLock() {
		return
	}
	defer c.claim.Unlock()
	if !c.users.CompareAndSwap(0, claimed) {
		return
	}
	defer c.users.Add(-claimed)
	if c.Sweepable(age) {
		f(time.Now().Add(c.fleet.ProofTimeout()))
	}
}

var pingRequest = []byte("*1\r\n$4\r\nping\r\n")

// question is Question as it is written.
func (f *Fleet) question() []byte {
	if v := f.greeting.Load(); v != 0 {
		return fmt.Appendf(nil, "*2\r\n$5\r\nhello\r\n$1\r\n%d\r\n", v)
	}
	return pingRequest
}

// ping checks a connection that the caller has claimed, and counts that. Bytes that wait
// unread are pushes for go-redis and must stay where they are: then nothing is sent.
func (c *Conn) ping(deadline time.Time, tell func(error)) error {
	if c.unread() {
		return nil
	}
	c.fleet.n.IdleChecks.Add(1)
	return c.ask(deadline, tell)
}

// ask exchanges one PING. A connection that does not answer is retired, and the owner told by
// tell: Broken, if whoever wants to use it will make another, or else Suspect.
func (c *Conn) ask(deadline time.Time, tell func(error)) error {
	began := time.Now()
	if err := c.exchange(deadline); err != nil {
		c.fleet.n.IdleDropped.Add(1)
		err = fmt.Errorf("idle connection: %w", err)
		if c.Retirement() == nil {
			c.Retire(err)
			tell(err)
		}
		return err
	}
	c.fleet.Measure(time.Since(began))
	c.heard.Store(c.fleet.clock.Last())
	c.fleet.hear()
	return nil
}

// exchange sends a PING and waits for the answer. Where no deadline can be set, a timer
// closes the connection in its place.
func (c *Conn) exchange(deadline time.Time) error {
	if c.setBoth(deadline) != nil {
		timer := time.AfterFunc(time.Until(deadline), c.hangUp)
		defer func() {
			if !timer.Stop() {
				c.Retire(errNoAnswer)
			}
		}()
	} else {
		defer func() { // as go-redis has set them; what fails here fails for the command as well
			_ = c.setRead(c.reading.want)
			_ = c.setWrite(c.writing.want)
		}()
	}
	if _, err := c.Conn.Write(c.fleet.question()); err != nil {
		return err
	}
	return c.answer()
}

var errNoAnswer = errors.New("no answer to a PING in time")

// answer reads until there is a complete reply, and keeps what else there was, which can
// only be pushes: any other would be the reply to something else.
func (c *Conn) answer() error {
	size := MaxAnswer
	if c.fleet.greeting.Load() != 0 {
		size = maxHello
	}
	room := make([]byte, size)
	var pushes []byte
	var f command.Frame
	answered := false
	for got := 0; got < len(room); {
		n, err := c.Conn.Read(room[got:])
		if n == 0 && err != nil {
			return err
		}
		p := room[got : got+n]
		got += n
		for len(p) > 0 {
			k, whole, ok := f.Feed(p)
			push := f.Kind == '>'
			switch {
			case !ok, answered && !push:
				return errNoReply
			case push:
				pushes = append(pushes, p[:k]...)
			}
			if whole {
				answered = answered || !push
				f = command.Frame{}
			}
			p = p[k:]
		}
		if answered { // a push that is not complete yet goes on where the next read begins
			if len(pushes) > 0 && c.fleet.settings.Cached {
				return errNewsForCache
			}
			c.keep(pushes)
			return nil
		}
	}
	return errors.New("the answer to a PING is too long")
}

// kept is what was read before go-redis has asked for it.
type kept struct {
	some  atomic.Bool
	bytes []byte // used by whoever reads, or holds the claim
}

// A client-side cache looks for pushes in the socket of an idle connection, where they are
// not any more: it has to do without the connection.
var errNewsForCache = errors.New("news for a client-side cache came with the answer to a PING")

// keep has the next Read return b first.
func (c *Conn) keep(b []byte) {
	if len(b) > 0 {
		c.kept.bytes = append([]byte(nil), b...)
		c.kept.some.Store(true)
	}
}

// take copies what was kept to p.
func (k *kept) take(p []byte) int {
	n := copy(p, k.bytes)
	if k.bytes = k.bytes[n:]; len(k.bytes) == 0 {
		k.bytes = nil
		k.some.Store(false)
	}
	return n
}

// unread reports whether bytes wait for go-redis, where that can be seen.
func (c *Conn) unread() bool {
	return c.kept.some.Load() || c.rc != nil && sys.Readable(c.rc)
}
