package redial

import (
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// run is the link's loop: reach the server, guard it, and begin again.
func (l *link) run() {
	defer close(l.done)
	patient := false // the first attempt of all is made at once
	for l.reach(patient) {
		reason, cause := l.watch()
		if reason != "" {
			l.transition(StateReconnecting, reason, cause, 0)
		}
		patient = cause != nil // it has just failed to answer
	}
}

// reach tries until the server answers and the link is Connected. It never gives
// up; it returns false when the link is closed.
//
// There is one attempt at a time. While commands wait, attempts are eager; when
// nobody does they follow the backoff policy.
func (l *link) reach(patient bool) bool {
	l.prober.hurry.Store(true)
	defer l.prober.hurry.Store(false)
	began := time.Now()
	policy := l.cfg.newBackOff()
	policy.Reset()
	failures := 0
	for attempt := 1; l.ctx.Err() == nil; attempt++ {
		if (patient || attempt > 1) && !l.sleep(nextDelay(policy), began) {
			return false
		}
		l.heard.Store(false)
		v, err := l.prober.ping(attempt == 1)
		if l.ctx.Err() != nil {
			return false
		}
		switch v {
		case alive:
			l.heard.Store(true)
			l.advance()
			up := l.transition(StateConnected, "server answers", nil, attempt)
			nudge(l.warmups)
			return up
		case dead, missed:
			// After a Reconnect by hand, commands may still be in flight on old
			// connections.
			if failures++; failures >= l.cfg.misses && !l.heard.Load() {
				l.eachConn(func(c *conn) { c.retire(plain(err)) })
			}
		}
		l.noteCause(err)
	}
	return false
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
