package wire

import (
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/redial-go/redial/internal/sys"
)

// What the kernel knows of connections, and what follows: that one is unacknowledged.

// evidence is what the kernel says of what was written on a connection.
type evidence uint8

const (
	noEvidence     evidence = iota // it cannot be asked
	acknowledged                   // the peer has it all, whether or not anybody reads it
	unacknowledged                 // it was sent again, or the peer was probed, in vain
)

// evidence asks the kernel.
func (c *Conn) evidence() evidence {
	d, ok := c.delivery()
	switch {
	case !ok:
		return noEvidence
	case d.Unacked && d.Resent > 0, d.Probes > 0:
		return unacknowledged
	}
	return acknowledged
}

func (c *Conn) delivery() (sys.Delivery, bool) {
	if c.kernel == nil {
		return sys.Delivery{}, false
	}
	return sys.DeliveryOf(c.kernel)
}

// Beside says on which connection, that is none of the fleet's, the owner is answered by
// the same server; nil: on none. How it fares counts, too, when the way is judged: those of
// the fleet may be few, and all of them stuck.
func (f *Fleet) Beside(nc net.Conn) {
	var w *witness
	if nc != nil {
		if sc, ok := sys.Innermost(nc).(syscall.Conn); ok {
			if rc, err := sc.SyscallConn(); err == nil {
				w = &witness{kernel: rc}
			}
		}
	}
	f.witness.Store(w)
}

// witness is a connection that is looked at, and no more.
type witness struct {
	kernel syscall.RawConn
	trail  trail // used by Inspect alone
}

// trail is what was last seen of a connection.
type trail struct {
	seen              bool
	losses, exchanges uint32
}

// record is what is remembered of the way to a server, of late and for longer. It is used
// by Inspect alone.
type record struct {
	at, next   time.Time // of the last look, and when it wanted another
	late, long score
}

// score is how many segments came in on connections that were well, and how many had to be
// sent again. It is halved now and then.
type score struct {
	halved            time.Time
	losses, exchanges uint32
}

func (t *score) forget(now time.Time, every time.Duration) {
	if now.Sub(t.halved) >= every {
		t.losses, t.exchanges = t.losses/2, t.exchanges/2
		t.halved = now
	}
}

func (t *score) sound() bool { return uint64(t.losses)*lossRatio <= uint64(t.exchanges) }

// begin begins a look.
func (r *record) begin(now time.Time) {
	r.at = now
	r.late.forget(now, lossTime)
	r.long.forget(now, lossMemory)
}

// add takes up what has happened to a connection since it was last looked at.
func (r *record) add(t *trail, d sys.Delivery) {
	lost, came := d.Losses-t.losses, d.Exchanges-t.exchanges
	if !t.seen {
		lost = 0 // when it was set up: a server may be slow to answer that
	}
	for _, n := range []*score{&r.late, &r.long} {
		n.losses += lost
		n.exchanges += came
	}
	*t = trail{true, d.Losses, d.Exchanges}
}

// sound reports whether hardly anything gets lost on the way.
func (r *record) sound() bool {
	return r.long.exchanges >= noLosses && r.long.sound() && r.late.sound()
}

// Inspect gives up the connections that are unacknowledged while others to the same server
// are not. It returns when it wants to be called again, at the latest. busy says
// that commands are under way. One goroutine alone may call it.
//
// Loss alone is no proof: what gets lost is sent again, and TCP carries on where one packet
// in ten does. So nothing is concluded early on a way on which that happens.
func (f *Fleet) Inspect(now time.Time, busy bool) (next time.Time) {
	if now.Sub(f.record.at) < closerGlance/2 { // a heartbeat may be that fast
		return f.record.next
	}
	next = now.Add(f.settings.Beat)
	if busy {
		next = now.Add(min(f.settings.Beat, glance))
	}
	defer func() { f.record.next = next }()
	f.record.begin(now)
	clock := f.clock.Read()
	var stuck []*Conn
	var silent []time.Duration
	answered := time.Duration(clock - f.answeredAt.Load())
	well := 0
	f.Each(func(c *Conn) {
		owes := c.owes.Load()
		trying := owes == 0 || clock-owes < int64(resentFor)
		if owes != 0 && clock-owes > int64(resentFor/2) {
			next = now.Add(min(f.settings.Beat, closerGlance))
		}
		quiet := clock-c.heard.Load() > int64(manyTimes*KeepAliveFloor)
		if trying && !quiet {
			if well++; well > glanceAt {
				return
			}
		}
		d, ok := c.delivery()
		switch {
		case !ok:
			return
		case !trying && d.Unacked && d.Resent >= manyTimes && d.Silent >= resentFor, d.Probes >= manyTimes:
			stuck, silent = append(stuck, c), append(silent, d.Silent)
			return
		case !d.Unacked && d.Probes == 0:
			f.record.add(&c.trail, d)
		}
		answered = min(answered, d.Silent)
	})
	if w := f.witness.Load(); w != nil {
		if d, ok := sys.DeliveryOf(w.kernel); ok && !d.Unacked && d.Probes == 0 {
			f.record.add(&w.trail, d)
		}
	}
	if len(stuck) == 0 || !f.record.sound() {
		return next
	}
	for i, c := range stuck {
		if answered+answeredSince <= silent[i] {
			c.Cut(errUnacknowledged)
			f.owner.Suspect(errUnacknowledged)
		}
	}
	return next
}

var errUnacknowledged = errors.New("the connection acknowledges nothing, others to the same server do")
