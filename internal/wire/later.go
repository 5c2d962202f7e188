package wire

import (
	"errors"
	"sync/atomic"

	"github.com/redial-go/redial/internal/sys"
)

// go-redis writes a request and then, nearly always, reads the reply at once. So a small
// request on a plain socket is written when the reply is read, which saves a system call
// that would find nothing there: see sys.Exchange. Nothing is lost between the two: what
// fails to be written then fails as it would have before.

// later is a request that waits for its reply to be read.
type later struct {
	exchange *sys.Exchange // nil: nothing waits here
	there    atomic.Bool   // whoever makes it false has the request
	request  []byte        // a copy; its room is kept
	failure  error         // of writing it, which ends the connection. Used by its reader
}

// errUnwritten takes the place of that where a deadline that has passed would be another
// matter.
var errUnwritten = errors.New("the request could not be written")

// take reports whether there is a request, which is the caller's then.
func (l *later) take() bool { return l.there.Load() && l.there.CompareAndSwap(true, false) }

// postpone keeps a request for when its reply is read, if it is one for which that can be
// done. What has a role of its own, or may wait for long, is not, and neither is what
// another goroutine may be about to read the reply to: it would read, and have nothing to
// write. A client-side cache looks at the socket first.
func (c *Conn) postpone(p []byte) bool {
	l := &c.later
	if l.exchange == nil || len(p) > maxPostponed || !c.greeted.Load() || c.role.Load() != roleRegular ||
		c.duplex.Load() || c.waits.Load() || c.fleet.settings.Cached {
		return false
	}
	l.request = append(l.request[:0], p...)
	l.there.Store(true)
	return c.users.Load() == 1 || !l.take() // a reader who came before has not seen it
}

// receive reads until the deadline of the socket, after what was postponed is written.
func (c *Conn) receive(p []byte) (int, error) {
	if c.later.failure != nil { // go-redis may read once more
		return 0, errUnwritten
	}
	if !c.later.take() {
		return c.Conn.Read(p)
	}
	rest := c.later.request
	if c.early { // it is looked at again soon
		n, left, err := c.later.exchange.Do(rest, p)
		if len(left) == 0 {
			return n, err
		}
		if err != nil {
			return 0, c.unflushed(len(rest)-len(left), err)
		}
		rest = left
	}
	if n, err := c.writeOn(rest); err != nil {
		return 0, c.unflushed(len(c.later.request)-len(rest)+n, err)
	}
	return c.Conn.Read(p)
}

// unflushed takes up that only n bytes of the request were written.
func (c *Conn) unflushed(n int, err error) error {
	c.later.failure = c.unwritten(n, true, c.blame(err))
	return errUnwritten
}
