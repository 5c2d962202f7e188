package redial

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// guard looks after a link: it reaches the server and, while the link is Connected, finds
// out whether it lives.
type guard struct {
	*link
	beatAt    time.Time // guarded by mu; when the next heartbeat is due
	beatIsDue bool      // guarded by mu; it is, and there was no traffic
	retiredIn *outage   // guarded by mu; the last outage in which the server was found gone
	lookAt    time.Time // when the keeper, which alone uses it, looks next
	lookedAt  int64     // the clock when it looked last
}

// dueLocked reports whether the server is to be asked: it is under suspicion, or a
// heartbeat is due. The caller holds mu.
func (g *guard) dueLocked() bool { return g.suspected || g.beatIsDue }

// check asks it, and reports whether it failed to answer.
func (g *guard) check() (failed bool) {
	g.mu.Lock()
	suspected := g.suspected
	g.mu.Unlock()
	why, cause := g.verify(suspected)
	if why != CauseNone {
		g.transition(StateReconnecting, why, wordsOf(cause), cause, 0)
		g.owner.lookElsewhere()
		return true
	}
	g.acquit()
	if suspected {
		g.pause(verifySpacing)
	}
	return false
}

// wordsOf returns what the server has said in place of what it was asked, "" when that is
// not what err is.
func wordsOf(err error) string {
	var said saidInstead
	if errors.As(err, &said) {
		return said.Error()
	}
	return ""
}

// acquit is the verdict that the server lives, of which its answer is a sign.
func (g *guard) acquit() {
	g.hear()
	g.heardAt.Store(g.read())
	g.answeredAt.Store(g.read())
	g.mu.Lock()
	if g.suspected {
		g.suspected = false
		g.tellLocked()
	}
	g.beatIsDue = false
	g.beatAt = time.Now().Add(early(g.beat()))
	g.mu.Unlock()
}

// attempt tries to reach the server. When it has not answered yet others may follow.
func (g *guard) attempt(first bool) (verdict, error) {
	if first {
		g.prober.take() // what came of the questions before
	}
	if !g.prober.again() {
		g.prober.begin()
	}
	return awaited, nil
}

func (g *guard) news() (probes, others <-chan struct{}) { return g.prober.news(), g.stirred }

func (g *guard) pace(d time.Duration) time.Duration { return g.prober.pace(d) }

// answer returns what the attempts have come to since it was called last.
func (g *guard) answer() (v verdict, err error) {
	g.mu.Lock()
	silent := g.why == CauseHeartbeatMissed && g.state == StateReconnecting
	g.mu.Unlock()
	if silent && g.heard.Load() { // on a connection that was not given up
		return alive, nil
	}
	v = awaited
	for _, r := range g.prober.take() {
		if r.verdict == alive {
			return alive, nil
		}
		if r.verdict != unsure {
			v, err = r.verdict, r.err
		}
	}
	if v == awaited && g.prober.unreachable() >= g.cfg.detection() {
		return dead, g.lastCause()
	}
	return v, err
}

// reached is called when it was. It returns words for that, where it may be one of several.
func (g *guard) reached() string {
	g.acquit()
	g.cold.Store(true)
	if g.hopeless() {
		g.bar(nil)
	}
	if addr := g.owner.where(); addr != "" {
		return "server " + addr + " answers"
	}
	return ""
}

// unreached is called when it was not, of which v is what is known.
func (g *guard) unreached(v verdict, err error) {
	switch v {
	case barring:
		g.bar(err)
	case dead:
		g.mu.Lock()
		old := []*conn(nil)
		if g.state == StateReconnecting && spares(g.why) && g.retiredIn != g.outage {
			old = g.nextGenerationLocked()
			g.lost.Store(int32(len(old)))
			g.retiredIn = g.outage
		}
		g.mu.Unlock()
		g.retireIdle(old, notReply(err))
		if g.prober.unreachable() >= g.cfg.detection() {
			g.giveUpLost(err)
		}
	}
	g.noteCause(err)
	g.owner.lookElsewhere()
}

// giveUpLost gives up those connections that are left from before an outage and owe a
// reply, unless the kernel knows that the peer got what was sent.
func (l *link) giveUpLost(why error) {
	gen := l.gen.Load()
	l.eachConn(func(c *conn) {
		if c.gen != gen && c.owes.Load() != 0 && c.evidence() != acknowledged {
			c.retire(notReply(why))
		}
	})
}

// look is what the keeper does with the link every now and then. It returns when
// it wants to be called again.
func (g *guard) look(now time.Time) time.Time {
	g.cutSilentSubscribers()
	again := g.inspect(now)
	next := g.lookForTraffic(now)
	if again.Before(next) {
		return again
	}
	return next
}

// lookForTraffic has the server asked for a sign of life when it has given none since the
// last look.
func (g *guard) lookForTraffic(now time.Time) time.Time {
	lookedAt := g.lookedAt
	g.lookedAt = g.clock.Load()
	g.mu.Lock()
	if g.state != StateConnected || now.Before(g.beatAt) {
		defer g.mu.Unlock()
		if g.state != StateConnected {
			return now.Add(g.beat()) // there is a goroutine for that
		}
		return g.beatAt
	}
	g.beatAt = now.Add(early(g.beat()))
	next := g.beatAt
	g.beatIsDue = !g.heard.Swap(false)
	due := g.beatIsDue
	g.mu.Unlock()
	if due {
		g.tend()
	} else {
		g.heardAt.Store(lookedAt)
		g.n.skipped.Add(1)
	}
	return next
}

// verify finds out whether the server lives. A cause means that it must be given up, see
// verdict.go. First is asked who is there; a new connection is tried when nobody answers.
func (g *guard) verify(suspected bool) (why Cause, cause error) {
	g.advance()
	defer g.advance() // it may have taken a while
	g.heard.Store(false)
	g.prober.take()
	g.n.beats.Add(1)
	q := inquest{misses: g.cfg.misses}
	began := time.Now()
	beginAt := began // another attempt
	asksIdle := false
	switch {
	case g.prober.again() && suspected: // it may be what is broken
		beginAt = began.Add(g.proofTimeout())
	case g.prober.asking():
		beginAt = began.Add(g.cfg.timeout)
	case !suspected && g.askIdle(1) > 0:
		asksIdle = true
		beginAt = began.Add(g.cfg.timeout)
	}
	patience := time.Time{} // for established connections that were asked
	policy := g.cfg.schedule(g.base)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		probes := g.prober.news()
		for _, r := range g.prober.take() {
			if r.verdict == alive {
				return CauseNone, nil
			}
			if why, cause = q.hears(r); why != CauseNone {
				break
			}
			if r.verdict == dead && (!r.fresh || q.fails() == nil) { // only a new connection can tell
				beginAt = time.Now()
			}
		}
		now := time.Now()
		if asksIdle && g.asking.Load() == 0 {
			asksIdle, beginAt = false, now
		}
		if why != CauseNone && wordsOf(cause) == "" {
			return why, cause
		}
		if (q.fails() != nil || why != CauseNone) && !q.asked {
			q.asked = true
			patience = now.Add(g.cfg.timeout)
			g.askIdle(mostAsked)
			beginAt = now.Add(maxWait)
		}
		q.answers = q.asked && now.Before(patience) && g.mayAnswer()
		for q.missed < q.misses && now.Sub(began) >= time.Duration(q.missed+1)*g.cfg.timeout {
			q.missed++
			g.n.missed.Add(1)
		}
		if g.heard.Load() && (why == CauseNone || g.serves()) {
			return CauseNone, nil // a byte on any connection overrules
		}
		if g.now() != StateConnected {
			return CauseNone, nil // it was asked for another server meanwhile
		}
		switch {
		case why != CauseNone && !q.answers:
			return why, cause
		case why != CauseNone:
		case q.concludes() == CauseConnectionLost:
			return CauseConnectionLost, q.fails()
		case q.concludes() == CauseHeartbeatMissed:
			return CauseHeartbeatMissed, &slowError{fmt.Sprintf("%d heartbeats in a row without an answer: no byte", q.missed), now.Sub(began)}
		}
		if !now.Before(beginAt) {
			g.prober.begin()
			beginAt = now.Add(g.prober.pace(policy()))
		}
		next := beginAt
		if miss := began.Add(time.Duration(q.missed+1) * g.cfg.timeout); miss.Before(next) {
			next = miss
		}
		if q.answers && patience.Before(next) {
			next = patience
		}
		timer.Reset(time.Until(next))
		select {
		case <-probes:
		case <-g.stirred:
		case <-timer.C:
		case <-g.ctx.Done():
			return CauseNone, nil
		}
	}
}

// askIdle PINGs on up to most connections that lie idle, those first that were heard last.
// Their answers are heard as any byte is. It returns how many are being asked.
func (g *guard) askIdle(most int) (asked int) {
	var idle []*conn
	g.eachConn(func(c *conn) {
		if c.sweepable(0) {
			idle = append(idle, c)
		}
	})
	slices.SortFunc(idle, func(a, b *conn) int { return int(min(max(b.heard.Load()-a.heard.Load(), -1), 1)) })
	for _, c := range idle[:min(most, len(idle))] {
		g.asking.Add(1)
		if !g.spawn(func() {
			defer g.stir()
			defer g.asking.Add(-1)
			c.beat()
		}) {
			g.asking.Add(-1)
			break
		}
		asked++
	}
	return asked
}

// beat asks on a connection that lies idle in the pool whether the server lives.
func (c *conn) beat() {
	if !c.claim.TryLock() {
		return
	}
	defer c.claim.Unlock()
	if !c.users.CompareAndSwap(0, claimed) {
		return
	}
	defer c.users.Add(-claimed)
	if !c.sweepable(0) || c.unread() {
		return
	}
	began := time.Now()
	if err := c.exchange(began.Add(c.link.proofTimeout())); err != nil {
		c.link.n.idleDropped.Add(1)
		c.retire(err)
		c.link.suspect(err)
		return
	}
	c.link.measure(time.Since(began))
	c.heard.Store(c.link.clock.Load())
	c.link.hear()
}

// mayAnswer reports whether there is an established connection on which an answer may
// still come: one is being asked, or somebody waits for a reply.
func (l *link) mayAnswer() bool {
	if l.asking.Load() > 0 {
		return true
	}
	waits := false
	l.eachConn(func(c *conn) { waits = waits || c.owes.Load() != 0 && c.retirement() == nil })
	return waits
}

// serves reports whether a connection of the pools is left.
func (l *link) serves() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns) > 0
}

// cutSilentSubscribers closes the subscriptions whose PING is unanswered for longer than
// heartbeats may be, while the server answers elsewhere: go-redis sends it and does not
// wait for the PONG. They subscribe anew on their own. Where nobody is reading the answer
// may have come: that one is slow, not dead.
func (l *link) cutSilentSubscribers() {
	limit := int64(time.Duration(l.cfg.misses) * l.cfg.timeout)
	now := l.read()
	l.eachConn(func(c *conn) {
		owes := c.owes.Load()
		if owes == 0 || now-owes <= limit || c.role.Load() != roleSubscriber || c.users.Load() <= 0 || l.heardAt.Load() < owes {
			return
		}
		l.n.cut.Add(1)
		c.retire(errors.New("subscriber's PING went unanswered"))
	})
}

// sweep proves the connections that have been idle for about sweepAge.
func (l *link) sweep() {
	l.eachConn(func(c *conn) {
		age := float64(max(sweepAge, l.cfg.idleCheck)) * (1 - sweepJitter*rand.Float64())
		if l.ctx.Err() == nil && c.sweepable(int64(age)) {
			c.sweep(int64(age))
		}
	})
}
