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
	freed atomic.Bool          // the server was told to end it, and did, or may have
	token atomic.Int64         // in Unix nanoseconds; names the place in calls; 0: it has none
	over  atomic.Bool
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

// Freed reports whether the server was told to end the call, and did, or may have.
func (x *Call) Freed() bool { return x.freed.Load() }

// Lost returns what the connection that served the call would fail with, had it not got
// the reply because of why. There must have been one.
func (x *Call) Lost(why error) error {
	return x.conn.Load().fleet.Seal(&Error{Phase: PhaseRead, Err: why})
}

// Calls holds the attempts that may be about to write, each in a place of its own, which
// its token names. There is no lock on the way of a command.
//
// The zero Calls is ready for use. It is safe for concurrent use.
type Calls struct {
	next  atomic.Uint32 // where the next attempt looks for a place first
	used  atomic.Uint32 // pages there are
	pages [callPages]atomic.Pointer[callPage]
	grows sync.Mutex // held while a page is added
}

type callPage [callPlaces]callPlace

// callPlace is where one call can be.
type callPlace struct {
	call atomic.Pointer[Call] // nil: it is free
	last int64                // used by whom the place belongs to; the latest token that named it
}

// callZone marks deadlines that are tokens. It is UTC by another name.
var callZone = time.FixedZone("redial", 0)

// Begin returns the context for an attempt, or nil when there is nothing to add to
// ctx: it cannot be canceled, it belongs to an attempt already, or go-redis was
// told to set no deadlines. Where there is room, a Call that nobody has used, it is that.
func (s *Calls) Begin(ctx context.Context, writeTimeout time.Duration, room *Call) *Call {
	if ctx.Done() == nil || writeTimeout < 0 {
		return nil
	}
	if outer, ok := ctx.Value(callKey{}).(*Call); ok && !outer.over.Load() {
		return nil
	}
	if writeTimeout == 0 {
		writeTimeout = noWriteTimeout
	}
	if room == nil {
		room = new(Call)
	}
	room.Context, room.calls, room.writeTimeout = ctx, s, writeTimeout-tokenMargin
	return room
}

// register makes t the token of x, or a time shortly before it that names its place. Once
// the attempt is over, or where there are too many, it returns the caller's own deadline.
func (s *Calls) register(x *Call, t, deadline time.Time, ok bool) (time.Time, bool) {
	if x.over.Load() {
		return deadline, ok
	}
	token, there := s.place(x, t.UnixNano()&^tokenMask-tokenMask-1)
	if !there {
		return deadline, ok
	}
	if old := x.token.Swap(token); old&tokenMask != token&tokenMask {
		s.leave(x, old)
	}
	if x.over.Load() {
		s.forget(x)
		return deadline, ok
	}
	return time.Unix(0, token).In(callZone), true
}

// place puts x in a place that is free and returns the token for a time, whose lowest bits
// are 0. It is not the one that the place had before: who still knows that must not be led
// to x. It reports false when there is no place.
func (s *Calls) place(x *Call, at int64) (token int64, ok bool) {
	for {
		pages := s.used.Load()
		first := s.next.Add(1)
		for i := range min(pages, 1) * placeTries {
			n := int64((first + i) % (pages * callPlaces))
			place := s.at(n)
			if place.call.CompareAndSwap(nil, x) {
				if token := at | n; token != place.last {
					place.last = token
					return token, true
				}
				place.call.CompareAndSwap(x, nil)
			}
		}
		if pages == callPages {
			return 0, false
		}
		s.grow(pages)
	}
}

// grow adds a page, unless there are more than that.
func (s *Calls) grow(pages uint32) {
	s.grows.Lock()
	defer s.grows.Unlock()
	if s.used.Load() == pages {
		s.pages[pages].Store(new(callPage))
		s.used.Store(pages + 1)
	}
}

// at returns a place, of a page that there is.
func (s *Calls) at(n int64) *callPlace {
	return &s.pages[n/callPlaces].Load()[n%callPlaces]
}

// leave frees the place that a token of x names, 0: none.
func (s *Calls) leave(x *Call, token int64) {
	if token != 0 {
		s.at(token&tokenMask).call.CompareAndSwap(x, nil)
	}
}

// take returns the call that t is the token of, or nil.
func (s *Calls) take(t time.Time) *Call {
	if t.Location() != callZone {
		return nil
	}
	token := t.UnixNano()
	if n := token & tokenMask; n < int64(s.used.Load())*callPlaces {
		if x := s.at(n).call.Load(); x != nil && x.token.CompareAndSwap(token, 0) {
			s.leave(x, token)
			return x
		}
	}
	return nil
}

// Len returns how many there are.
func (s *Calls) Len() int {
	taken := 0
	for n := range int64(s.used.Load()) * callPlaces {
		if s.at(n).call.Load() != nil {
			taken++
		}
	}
	return taken
}

// forget ends x.
func (s *Calls) forget(x *Call) {
	x.over.Store(true)
	s.leave(x, x.token.Swap(0))
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

// watched waits for bytes and watches the context of x meanwhile.
func (c *Conn) watched(x *Call, p []byte) (int, error) {
	if c.releasable() && x != severed {
		if !c.reading.have.Equal(c.reading.want) {
			if err := c.setRead(c.reading.want); err != nil {
				return 0, err
			}
		}
		return c.await(x, p)
	}
	defer c.watch(x, c.owes.Load()+int64(Unwatched))()
	n, err := c.Conn.Read(p)
	if n == 0 {
		return c.readOn(nil, p, err)
	}
	return n, err
}

// releasable reports whether the server can be told to end what the connection waits for:
// it is one command, and it is known who the connection is, or would be if it were asked.
func (c *Conn) releasable() bool {
	return c.waits.Load() && c.alone.Load() && c.owes.Load() != 0 &&
		(c.self.Load() != nil || c.id.Load() != 0 && c.fleet.direct.Load())
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
		c.reading.have = longAgo
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
	_ = c.setRead(time.Now().Add(look))
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
		defer c.watch(x, 0)()
	}
	return c.writeOn(p)
}

// watch severs the connection when x is canceled, but not before the clock says from, until
// the returned function is called.
func (c *Conn) watch(x *Call, from int64) (stop func() bool) {
	if x == severed {
		return func() bool { return false }
	}
	return context.AfterFunc(x.Context, func() {
		if left := from - c.fleet.clock.Read(); left > 0 {
			time.AfterFunc(time.Duration(left), func() { c.sever(x) }) // nothing, if the call is over by then
			return
		}
		c.sever(x)
	})
}
