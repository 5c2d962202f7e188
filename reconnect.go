package redial

import (
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// attend has a goroutine look after the link, unless one does already or there is
// nothing to do: to reach the server, to verify a suspicion, to send a heartbeat
// that is due. While the link is Connected and well it needs none.
func (l *link) attend() {
	l.mu.Lock()
	if l.attended || l.todoLocked() == nothing {
		l.mu.Unlock()
		return
	}
	l.attended = true
	if l.state == StateConnecting && l.cause == nil && l.waiting == 0 {
		l.outage.end() // nobody has tried before, however long ago the client was built
		l.outage = newOutage(l.cfg.grace)
	}
	l.mu.Unlock()
	l.spawn(l.work)
}

// todo is what a link needs.
type todo uint8

const (
	nothing todo = iota
	toReach
	toVerify
	toBeat
)

func (l *link) todoLocked() todo {
	switch {
	case l.state == StateClosed:
		return nothing
	case l.state != StateConnected:
		return toReach
	case l.verdict != nil:
		return toVerify
	case l.beatIsDue:
		return toBeat
	}
	return nothing
}

// work does what the link needs until it needs nothing.
func (l *link) work() {
	patient := false // the first attempt of all is made at once
	for {
		l.mu.Lock()
		what := l.todoLocked()
		if what == nothing {
			l.attended = false
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		if what == toReach {
			l.reach(patient)
			continue
		}
		why, cause := l.verify(what == toVerify)
		if patient = cause != nil; why != CauseNone { // it has just failed to answer
			l.transition(StateReconnecting, why, "", cause, 0)
			l.lookElsewhere()
			continue
		}
		l.acquit()
		if what == toVerify {
			l.pause(verifySpacing)
		}
	}
}

// reach tries until the server answers and the link is Connected, or is closed. It
// never gives up.
//
// There is one attempt at a time. While commands wait, attempts are eager; when
// nobody does they follow the backoff policy.
func (l *link) reach(patient bool) {
	l.prober.hurry(true)
	defer l.prober.hurry(false)
	began := time.Now()
	policy := l.cfg.newBackOff()
	policy.Reset()
	failures := 0
	for attempt := 1; l.ctx.Err() == nil; attempt++ {
		if (patient || attempt > 1) && !l.sleep(nextDelay(policy), began) {
			return
		}
		l.heard.Store(false)
		v, err := l.prober.ping(attempt == 1)
		if l.ctx.Err() != nil {
			return
		}
		switch v {
		case alive:
			l.advance()
			l.acquit()
			l.cold.Store(true)
			l.transition(StateConnected, CauseAnswered, l.answers(), nil, attempt)
			nudge(l.knock)
			return
		case dead, missed:
			// After a Reconnect by hand, commands may still be in flight on old
			// connections.
			if failures++; failures >= l.cfg.misses && !l.heard.Load() {
				l.eachConn(func(c *conn) { c.retire(notReply(err)) })
			}
		}
		l.noteCause(err)
		if !l.passive { // its own attempts are no demand
			l.lookElsewhere()
		}
	}
}

// answers says which server answers, where it may be one of several.
func (l *link) answers() string {
	if l.where == nil {
		return ""
	}
	return "server " + l.where() + " answers"
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
// returns false when the link is closed.
func (l *link) sleep(d time.Duration, began time.Time) bool {
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

// pause waits for d and returns false when the link is closed meanwhile.
func (l *link) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.ctx.Done():
		return false
	}
}
