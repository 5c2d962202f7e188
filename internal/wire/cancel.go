package wire

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redial-go/redial/internal/sys"
)

// How the cancellation of a context reaches the connection on which a command
// waits. go-redis hands the deadline of a context to the socket, and nothing
// else; a BLPOP whose context is canceled waits on. A connection never gets to
// see the context, either. So a command with a context that can be canceled goes
// out with one that has a deadline for writing unlike any other: the connection
// that is given this deadline serves the command.

// Call is the context of one attempt, as go-redis sees it.
type Call struct {
	context.Context // the caller's
	calls           *Calls
	writeTimeout    time.Duration // of the client that makes the attempt

	conn  atomic.Pointer[Conn] // serves the attempt; nil before the first byte
	freed atomic.Bool          // the server was told to end it, and did
	token int64                // guarded by Calls.mu; key in Calls.waiting, 0: none
	over  bool                 // guarded by Calls.mu
}

// severed takes the place of the call that a connection was serving when that
// call was canceled.
var severed = new(Call)

type callKey struct{}

// Value makes the commands of a handshake part of the call that they are made for.
func (x *Call) Value(key any) any {
	if key == (callKey{}) {
		return x
	}
	return x.Context.Value(key)
}

// Deadline returns the caller's deadline for the wait for a reply, and one that
// identifies the call, no later than the caller's, for writing a request.
func (x *Call) Deadline() (time.Time, bool) {
	deadline, ok := x.Context.Deadline()
	if c := x.conn.Load(); c != nil && c.serving.Load() == x && c.owes.Load() != 0 {
		return deadline, ok // the request is written
	}
	token := time.Now().Add(x.writeTimeout)
	if ok && deadline.Before(token) {
		token = deadline
	}
	return x.calls.register(x, token, deadline, ok)
}

// Release ends the attempt. Its connection may serve others.
func (x *Call) Release() {
	x.calls.forget(x)
	if c := x.conn.Load(); c != nil {
		c.serving.CompareAndSwap(x, nil)
	}
}

// Freed reports whether the server was told to end the call, and did.
func (x *Call) Freed() bool { return x.freed.Load() }

// Lost returns what the connection that served the call would fail with, had it not got
// the reply because of why. There must have been one.
func (x *Call) Lost(why error) error {
	return x.conn.Load().fleet.Seal(&Error{Phase: PhaseRead, Err: why})
}

// Calls holds the attempts that may be about to write.
type Calls struct {
	mu      sync.Mutex
	waiting map[int64]*Call // guarded by mu; by token, in Unix nanoseconds
}

// callZone marks deadlines that are tokens. It is UTC by another name.
var callZone = time.FixedZone("redial", 0)

// Begin returns the context for an attempt, or nil when there is nothing to add to
// ctx: it cannot be canceled, it belongs to an attempt already, or go-redis was
// told to set no deadlines.
func (s *Calls) Begin(ctx context.Context, writeTimeout time.Duration) *Call {
	if ctx.Done() == nil || writeTimeout < 0 {
		return nil
	}
	if outer, ok := ctx.Value(callKey{}).(*Call); ok && outer.calls.current(outer) {
		return nil
	}
	if writeTimeout == 0 {
		writeTimeout = noWriteTimeout
	}
	return &Call{Context: ctx, calls: s, writeTimeout: writeTimeout - tokenMargin}
}

// register makes t the token of x, or the nearest time before it that is not
// taken. Once the attempt is over it returns the caller's own deadline.
func (s *Calls) register(x *Call, t, deadline time.Time, ok bool) (time.Time, bool) {
	token := t.UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.over {
		return deadline, ok
	}
	if s.waiting == nil {
		s.waiting = make(map[int64]*Call)
	}
	delete(s.waiting, x.token)
	for s.waiting[token] != nil {
		token--
	}
	s.waiting[token] = x
	x.token = token
	return time.Unix(0, token).In(callZone), true
}

// take returns the call that t is the token of, or nil.
func (s *Calls) take(t time.Time) *Call {
	if t.Location() != callZone {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.waiting[t.UnixNano()]
	if x != nil {
		delete(s.waiting, x.token)
		x.token = 0
	}
	return x
}

// Len returns how many there are.
func (s *Calls) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting)
}

func (s *Calls) forget(x *Call) {
	s.mu.Lock()
	delete(s.waiting, x.token)
	x.token, x.over = 0, true
	s.mu.Unlock()
}

func (s *Calls) current(x *Call) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !x.over
}

// serve notes which call, if any, writes with deadline t. It reports false when
// the connection was severed meanwhile.
func (c *Conn) serve(t time.Time) bool {
	x := c.fleet.calls.take(t)
	if x == nil && c.serving.Load() == nil {
		return true
	}
	if c.serving.Swap(x) == severed {
		c.serving.Store(severed)
		return false
	}
	if x != nil {
		x.conn.Store(c)
	}
	return true
}

// sever gives the connection up because x was canceled, if it still serves x.
func (c *Conn) sever(x *Call) {
	if c.serving.CompareAndSwap(x, severed) {
		c.Retire(x.Err())
	}
}

// read waits for bytes. For a call that can be canceled it watches the context,
// but only after a moment, before which most replies have come.
func (c *Conn) read(p []byte) (int, error) {
	x := c.serving.Load()
	if x == nil || c.late {
		return c.Conn.Read(p)
	}
	if c.early {
		n, err := c.Conn.Read(p)
		if n > 0 || err == nil || !sys.IsTimeout(err) {
			return n, err
		}
		c.early = false
		if err := c.Conn.SetReadDeadline(c.readDeadline); err != nil {
			return 0, err
		}
	}
	if c.releasable() && x != severed {
		return c.await(x, p)
	}
	defer c.watch(x)()
	return c.Conn.Read(p)
}

// releasable reports whether the server can be told to end what the connection waits for:
// it is one command, and it is known who the connection is.
func (c *Conn) releasable() bool {
	return c.waits.Load() && c.alone.Load() && c.owes.Load() != 0 && c.self.Load() != nil
}

// await waits for the reply to a command that the server lets wait. When x ends it has the
// server end the wait, and takes the reply that comes then: an element that was handed out
// in the same moment is in it, and the connection can be used again. Where that cannot be
// had in time it severs the connection.
func (c *Conn) await(x *Call, p []byte) (int, error) {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(x.Context, func() {
		defer close(interrupted)
		_ = c.Conn.SetReadDeadline(longAgo)
	})
	n, err := c.Conn.Read(p)
	if !stop() {
		<-interrupted
	}
	over := x.isOver()
	if n > 0 && over {
		c.finish()
	}
	if n > 0 || !sys.IsTimeout(err) || !over {
		return n, err
	}
	patience, settled, freed := c.unblock()
	look := lastLook
	if settled {
		look = patience
	}
	_ = c.Conn.SetReadDeadline(time.Now().Add(look))
	if n, _ = c.Conn.Read(p); n > 0 {
		x.freed.Store(freed)
		if !settled { // what it would wait for next might be ended instead
			c.serving.CompareAndSwap(x, severed)
		}
		c.finish()
		return n, nil
	}
	if x.Err() != nil {
		c.sever(x)
	}
	return 0, err
}

var longAgo = time.Unix(1, 0)

// isOver reports whether the call has ended. A deadline counts from the moment it passes.
func (x *Call) isOver() bool {
	deadline, ok := x.Context.Deadline()
	return x.Context.Err() != nil || ok && !time.Now().Before(deadline)
}

// write sends bytes. It watches the context of the call when there are so many that
// the peer may have to make room first.
func (c *Conn) write(p []byte) (int, error) {
	if x := c.serving.Load(); x != nil && len(p) >= watchedWrite {
		defer c.watch(x)()
	}
	return c.Conn.Write(p)
}

// watch severs the connection when x is canceled, until the returned function is
// called.
func (c *Conn) watch(x *Call) (stop func() bool) {
	if x == severed {
		return func() bool { return false }
	}
	return context.AfterFunc(x.Context, func() { c.sever(x) })
}
