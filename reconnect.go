package redial

import (
	"time"

	"github.com/redial-go/redial/internal/wire"
)

// The goroutine that comes when a link, or a client as a whole, needs one, and goes when
// there is nothing left to do. It uses gates and links and what is below them.

// loop brings a gate to Connected and looks after it.
type loop struct {
	*gate
	of       charge
	again    chan struct{} // capacity 1: there is reason to try at once
	hurry    bool          // commands want the next attempt to be soon; used by the goroutine
	attended bool          // guarded by mu; the goroutine is there
}

// charge is what a loop looks after.
type charge interface {
	// dueLocked reports whether there is something to do while Connected. It is called
	// with mu held. check does it, and reports whether what is looked after failed to
	// answer.
	dueLocked() bool
	check() (failed bool)
	// attempt tries to reach it while it is not Connected; first says that this is the
	// first attempt. It may leave that to others, see overlapping.
	attempt(first bool) (verdict, error)
	// reached is called when an attempt has succeeded, and returns words for that, "" when
	// there are none. unreached is called when one has failed with err.
	reached() (reason string)
	unreached(v verdict, err error)
}

// overlapping is a charge whose attempts run by themselves, several at a time.
type overlapping interface {
	// news returns channels that are closed, or hold something, when answer has more to say.
	news() (probes, others <-chan struct{})
	// answer says what the attempts have come to since it was called last.
	answer() (verdict, error)
	// pace says how long after the last attempt another may begin, of which the schedule
	// says d.
	pace(d time.Duration) time.Duration
}

// newLoop has a loop tend a gate.
func newLoop(g *gate, of charge) *loop {
	l := &loop{gate: g, of: of, again: make(chan struct{}, 1)}
	g.tend = l.attend
	return l
}

// guarded has a loop tend a link.
func guarded(l *link) *guard {
	g := &guard{link: l}
	newLoop(l.gate, g)
	return g
}

// attend has a goroutine look after the gate, unless one does already or there is
// nothing to do: to reach the server, to verify a suspicion, to send a heartbeat
// that is due. While it is Connected and well it needs none.
func (l *loop) attend() {
	l.mu.Lock()
	if l.attended || !l.neededLocked() {
		l.mu.Unlock()
		return
	}
	l.attended = true
	if l.waiting == 0 {
		l.beginLocked()
	}
	l.mu.Unlock()
	l.spawn(l.work)
}

func (l *loop) neededLocked() bool {
	return l.state != StateClosed && (l.state != StateConnected || l.of.dueLocked())
}

// work does what there is to do until that is nothing.
func (l *loop) work() {
	patient := false // the first attempt of all is made at once
	for {
		l.mu.Lock()
		if !l.neededLocked() {
			l.attended = false
			l.mu.Unlock()
			return
		}
		up := l.state == StateConnected
		l.mu.Unlock()
		if up {
			patient = l.of.check() // then it has just failed to answer
		} else {
			l.reach(patient)
		}
	}
}

// reach tries until there is an answer and the gate is Connected, or is shut. It
// never gives up.
//
// Attempts begin on schedule, whatever has become of those before. While commands wait,
// they are eager; when nobody does they follow the backoff policy.
func (l *loop) reach(patient bool) {
	began := time.Now()
	next := l.schedule()
	l.hurry = false
	for attempt := 1; l.ctx.Err() == nil; attempt++ {
		if (patient || attempt > 1) && l.sleep(next(), began, attempt-1) {
			return
		}
		v, err := l.of.attempt(attempt == 1)
		if l.ctx.Err() != nil || l.heed(v, err, attempt) {
			return
		}
	}
}

// heed acts on what has become of an attempt, and reports whether the gate is Connected.
func (l *loop) heed(v verdict, err error, attempt int) bool {
	switch v {
	case awaited:
		return false
	case alive:
		l.clock.Advance()
		l.transition(StateConnected, CauseAnswered, l.of.reached(), nil, attempt)
		nudge(l.knock)
		return true
	}
	l.of.unreached(v, err)
	return false
}

// sleep waits for d, or less when commands are waiting or come to wait, and more while an
// attempt is better waited for. It returns true when there is nothing left to try: an
// attempt has succeeded, or the gate is shut. attempts is how many there were.
func (l *loop) sleep(d time.Duration, began time.Time, attempts int) bool {
	start := time.Now()
	short := min(d, wire.Eager(time.Since(began)))
	l.hurry = l.demand()
	over, _ := l.of.(overlapping)
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		var probes, others <-chan struct{}
		left := d
		if l.hurry {
			left = short
		}
		if over != nil {
			probes, others = over.news()
			v, err := over.answer()
			if l.ctx.Err() != nil || l.heed(v, err, attempts) {
				return true
			}
			left = over.pace(left)
		}
		left -= time.Since(start)
		if left <= 0 {
			return l.ctx.Err() != nil
		}
		timer.Reset(left)
		select {
		case <-timer.C:
		case <-probes:
		case <-others:
		case <-l.ctx.Done():
			return true
		case <-l.again:
			return false
		case <-l.wake:
			l.hurry = l.demand() || l.hurry
		}
	}
}
