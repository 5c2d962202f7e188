package redial

import (
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// The goroutine that comes when a link, or a client as a whole, needs one, and goes when
// there is nothing left to do. It uses gates and links and what is below them.

// loop brings a gate to Connected and looks after it.
type loop struct {
	*gate
	of       charge
	again    chan struct{} // capacity 1: there is reason to try at once
	attended bool          // guarded by mu; the goroutine is there
}

// charge is what a loop looks after.
type charge interface {
	// dueLocked reports whether there is something to do while Connected. It is called
	// with mu held. check does it, and reports whether what is looked after failed to
	// answer.
	dueLocked() bool
	check() (failed bool)
	// attempt tries to reach it while it is not Connected; fresh says that this is the
	// first attempt. hurry says that attempts must succeed quickly or not at all.
	attempt(fresh bool) (verdict, error)
	hurry(on bool)
	// reached is called when an attempt has succeeded, and returns words for that, "" when
	// there are none. unreached is called when it has failed with err, lost when so many
	// have that it cannot be chance.
	reached() (reason string)
	unreached(lost bool, err error)
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
// There is one attempt at a time. While commands wait, attempts are eager; when
// nobody does they follow the backoff policy.
func (l *loop) reach(patient bool) {
	l.of.hurry(true)
	defer l.of.hurry(false)
	began := time.Now()
	policy := l.cfg.newBackOff()
	policy.Reset()
	failures := 0
	for attempt := 1; l.ctx.Err() == nil; attempt++ {
		if (patient || attempt > 1) && !l.sleep(nextDelay(policy), began) {
			return
		}
		v, err := l.of.attempt(attempt == 1)
		if l.ctx.Err() != nil {
			return
		}
		if v == alive {
			l.advance()
			l.transition(StateConnected, CauseAnswered, l.of.reached(), nil, attempt)
			nudge(l.knock)
			return
		}
		failed := v == dead || v == missed
		if failed {
			failures++
		}
		l.of.unreached(failed && failures >= l.cfg.misses, err)
	}
}

// nextDelay asks the policy for a delay and mends what it must not be: a policy
// that stops starts over, and no delay is shorter than minDelay.
func nextDelay(policy backoff.BackOff) time.Duration {
	d := policy.NextBackOff()
	if d == backoff.Stop {
		policy.Reset()
		if d = policy.NextBackOff(); d == backoff.Stop {
			d = backoffCap
		}
	}
	return max(d, minDelay)
}

// eager is the delay between attempts while commands wait, in an outage of the
// given age.
func eager(age time.Duration) time.Duration {
	d := float64(max(age/eagerDivisor, eagerDelay))
	return time.Duration(d * (1 - eagerJitter + 2*eagerJitter*rand.Float64()))
}

// sleep waits for d, or less when commands are waiting or come to wait. It
// returns false when the gate is shut.
func (l *loop) sleep(d time.Duration, began time.Time) bool {
	start := time.Now()
	short := min(d, eager(time.Since(began)))
	hurry := l.demand()
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		left := d
		if hurry {
			left = short
		}
		left -= time.Since(start)
		if left <= 0 {
			return l.ctx.Err() == nil
		}
		timer.Reset(left)
		select {
		case <-timer.C:
			return l.ctx.Err() == nil
		case <-l.ctx.Done():
			return false
		case <-l.again:
			return true
		case <-l.wake:
			hurry = hurry || l.demand()
		}
	}
}
