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
// the same server, until Alone is called. How it fares counts, too, when the way is judged:
// those of the fleet may be few, and all of them stuck.
func (f *Fleet) Beside(nc net.Conn) {
	f.Alone()
	if sc, ok := sys.Innermost(nc).(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			f.witness.Store(&witness{rc, trailOf(rc)})
		}
	}
}

// Alone says that there is none.
func (f *Fleet) Alone() { f.witness.Store(nil) }

// witness is a connection that is looked at, and no more.
type witness struct {
	kernel syscall.RawConn
	trail  trail // used by Inspect alone
}

// trail is what was last seen of a connection.
type trail struct{ losses, exchanges uint32 }

// trailOf returns the trail of a connection that was just set up. What got lost before tells
// nothing of the way: a server may be slow to answer then.
func trailOf(kernel syscall.RawConn) trail {
	d, _ := sys.DeliveryOf(kernel) // of what cannot be asked there will be nothing to add
	return trail{losses: d.Losses}
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
	for _, n := range []*score{&r.late, &r.long} {
		n.losses += d.Losses - t.losses
		n.exchanges += d.Exchanges - t.exchanges
	}
	*t = trail{d.Losses, d.Exchanges}
}

// sound reports whether hardly anything gets lost on the way.
func (r *record) sound() bool {
	return r.long.exchanges >= noLosses && r.long.sound() && r.late.sound()
}

// vigil follows a connection on which something is sent again and again in vain. Used by
// Inspect alone.
type vigil struct {
	since  int64 // of the clock, when it fell silent; 0: it has not
	asked  bool  // that others be asked
	beside bool  // they were answered well after that
	tries  int   // that were in vain when they first were found to be
	more   int64 // of the clock, when there was first seen to be another since; 0: there was none
}

// sees takes up what the kernel says now: tries were in vain, for as long as it is silent
// although something was sent, while others were last answered some time ago. It reports whether the connection is to
// blame: one more try was in vain, for longer than an answer takes, since others were
// answered. A moment in which nobody is answered is not enough.
func (v *vigil) sees(now int64, tries int, silent, answered, takes time.Duration) bool {
	if since := now - int64(silent); v.since == 0 || since > v.since+int64(closerGlance) || tries < v.tries {
		*v = vigil{since: since}
	}
	switch {
	case !v.beside:
		v.beside = now-int64(answered) >= v.since+int64(answeredSince)
		v.tries = tries
	case tries > v.tries && v.more == 0:
		v.more = now
	case v.more != 0:
		return tries >= manyTimes && silent >= resentFor && now-v.more >= int64(max(takes, closerGlance/2))
	}
	return false
}

// Inspect gives up the connections that are unacknowledged while others to the same server
// are not. It returns when it wants to be called again, at the latest, and whether it would
// help to know that the server answers. busy says that commands are under way. One goroutine
// alone may call it.
//
// Loss alone is no proof: what gets lost is sent again, and TCP carries on where one packet
// in ten does. So nothing is concluded early on a way on which that happens.
func (f *Fleet) Inspect(now time.Time, busy bool) (next time.Time, ask bool) {
	if now.Sub(f.record.at) < closerGlance/2 { // a heartbeat may be that fast
		return f.record.next, false
	}
	next = now.Add(f.settings.Beat)
	if busy {
		next = now.Add(min(f.settings.Beat, glance))
	}
	defer func() { f.record.next = next }()
	f.record.begin(now)
	clock := f.clock.Read()
	var stuck []*Conn
	var tried []sys.Delivery
	answered := time.Duration(clock - f.answeredAt.Load())
	well := 0
	f.Each(func(c *Conn) {
		owes := c.owes.Load()
		waits := owes != 0 && clock-owes > int64(resentFor/2)
		quiet := clock-c.heard.Load() > int64(manyTimes*KeepAliveFloor)
		if waits {
			next = now.Add(min(f.settings.Beat, closerGlance))
		} else if !quiet {
			if well++; well > glanceAt {
				return
			}
		}
		d, ok := c.delivery()
		if !ok {
			return
		}
		answered = min(answered, d.Silent)
		switch {
		case waits && d.Unacked && d.Resent > 0:
			d.Silent = min(d.Silent, time.Duration(clock-owes))
			stuck, tried = append(stuck, c), append(tried, d)
		case d.Probes > 0:
			d.Silent = max(d.Silent-f.settings.Probed, 0) // since the first probe
			stuck, tried = append(stuck, c), append(tried, d)
		default:
			c.vigil = vigil{}
			if !d.Unacked {
				f.record.add(&c.trail, d)
			}
		}
	})
	if w := f.witness.Load(); w != nil {
		if d, ok := sys.DeliveryOf(w.kernel); ok {
			answered = min(answered, d.Silent)
			if !d.Unacked && d.Probes == 0 {
				f.record.add(&w.trail, d)
			}
		}
	}
	for i, c := range stuck {
		next = now.Add(min(f.settings.Beat, closerGlance))
		d := tried[i]
		if c.vigil.sees(clock, d.Resent+d.Probes, d.Silent, answered, 2*f.RTT()) && f.record.sound() {
			c.Cut(errUnacknowledged)
			f.owner.Broken(errUnacknowledged)
		}
		if v := &c.vigil; !v.asked && !v.beside && d.Silent >= answeredSince {
			v.asked, ask = true, true
		}
	}
	return next, ask
}

var errUnacknowledged = errors.New("the connection acknowledges nothing, others to the same server do")
