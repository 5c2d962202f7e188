package redial

import (
	"errors"
	"fmt"
	"time"

	"github.com/redial-go/redial/internal/wire"
)

// How one link is looked after: what is asked, and when, while it is Connected, what is tried
// while it is not, and what is done about the answers. It acts by the table in verdict.go, and
// uses links and what is below them; how the server is asked it leaves to a prober.

// guard looks after a link: it reaches the server and, while the link is Connected, finds
// out whether it lives.
type guard struct {
	*link
	beatAt    time.Time // guarded by mu; when the next heartbeat is due
	beatIsDue bool      // guarded by mu; it is, and there was no traffic
	retiredIn *outage   // guarded by mu; the last outage in which the server was found gone
	turned    bool      // new connections are turned away, which says nothing of others; used by the loop
	aroundAt  time.Time // when an attempt last had the topology asked for; used by the loop
	at        string    // where the server is that answered last; used by the loop; "": the link's address says it
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
		g.turned = wordsOf(cause) != ""
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
	g.Answered()
	g.mu.Lock()
	if g.suspected {
		g.suspected, g.pressing, g.basis = false, false, nil
		g.tellLocked()
	}
	g.beatIsDue = false
	g.beatAt = time.Now().Add(early(g.beat()))
	g.mu.Unlock()
}

// attempt tries to reach the server. When it has not answered yet others may follow. One
// that turns new connections away may serve on those that are there.
func (g *guard) attempt(first bool) (verdict, error) {
	if first {
		g.prober.take() // what came of the questions before
	} else if now := time.Now(); now.Sub(g.aroundAt) >= g.beat() {
		g.aroundAt = now
		g.owner.lookAround() // while attempts hang there may be another by now
	}
	if g.turned {
		g.AskIdle(mostAsked, g.spawn)
	}
	g.prober.attempt()
	return awaited, nil
}

func (g *guard) news() (probes, others <-chan struct{}) { return g.prober.news(), g.Stirred() }

func (g *guard) pace(d time.Duration) time.Duration { return g.prober.pace(d) }

// answer returns what the attempts have come to since it was called last.
func (g *guard) answer() (v verdict, err error) {
	g.mu.Lock()
	silent := g.why == CauseHeartbeatMissed && g.state == StateReconnecting
	g.mu.Unlock()
	if (silent || g.turned) && g.Heard() { // on a connection that was not given up
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
	g.turned = false
	if state, since := g.current(); state != StateConnecting || time.Since(since) >= subscriberWait {
		g.cold.Store(true) // until then dials of the pool wait, and fill it
	}
	if g.hopeless() {
		g.bar(nil)
	}
	addr := g.owner.where()
	if addr == "" {
		return ""
	}
	if g.at != "" && addr != g.at {
		g.abandon(errors.New("server " + addr + " has taken the place of " + g.at))
	}
	g.at = addr
	return "server " + addr + " answers"
}

// unreached is called when it was not, of which v is what is known.
func (g *guard) unreached(v verdict, err error) {
	g.mu.Lock()
	g.unready = isNotReady(err)
	g.mu.Unlock()
	switch v {
	case barring:
		g.bar(err)
	case dead:
		g.turned = false
		g.mu.Lock()
		old := []*wire.Conn(nil)
		if g.state == StateReconnecting && spares(g.why) && g.retiredIn != g.outage {
			old = g.NextGeneration()
			g.lost.Store(int32(len(old)))
			g.retiredIn = g.outage
		}
		g.mu.Unlock()
		g.RetireIdle(old, notReply(err))
		if g.prober.unreachable() >= g.cfg.detection() {
			g.RetireLost(notReply(err))
		}
	}
	g.noteCause(err)
	g.owner.lookElsewhere()
}

// look is what the keeper does with the link every now and then, and, where that spares it
// a look, up to so much before it is due. It returns when it wants to be called again.
func (g *guard) look(now time.Time, before time.Duration) time.Time {
	doubts := g.CutSilentSubscribers(time.Duration(g.cfg.misses) * g.cfg.timeout)
	again, ask := g.Inspect(now, g.inflight.Load() > 0)
	if soon := now.Add(subscriberDoubt); doubts && soon.Before(again) {
		again = soon
	}
	if ask && g.now() == StateConnected && !g.Asking() && !g.prober.asking() && !g.prober.again() {
		g.AskIdle(1, g.spawn)
	}
	next := g.lookForTraffic(now, before)
	if again.Before(next) {
		return again
	}
	return next
}

// lookForTraffic has the server asked for a sign of life when it has given none since the
// last look.
func (g *guard) lookForTraffic(now time.Time, before time.Duration) time.Time {
	lookedAt := g.lookedAt
	g.lookedAt = g.clock.Last()
	g.mu.Lock()
	if g.state != StateConnected || now.Add(before).Before(g.beatAt) {
		defer g.mu.Unlock()
		if g.state != StateConnected {
			return now.Add(g.beat()) // there is a goroutine for that
		}
		return g.beatAt
	}
	g.beatAt = now.Add(early(g.beat()))
	next := g.beatAt
	g.beatIsDue = !g.TakeHeard()
	due := g.beatIsDue
	g.mu.Unlock()
	if due {
		g.tend()
	} else {
		g.HeardBy(lookedAt)
		g.n.skipped.Add(1)
	}
	return next
}

// verify finds out whether the server lives. A cause means that it must be given up, see
// verdict.go. First is asked who is there; a new connection is tried when nobody answers.
func (g *guard) verify(suspected bool) (why Cause, cause error) {
	g.clock.Advance()
	defer g.clock.Advance() // it may have taken a while
	q := g.open(suspected)
	policy := g.schedule()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		probes := g.prober.news()
		if over, why, cause := g.weigh(q); over {
			return why, cause
		}
		if now := time.Now(); !now.Before(q.beginAt) {
			g.prober.begin()
			q.beginAt = now.Add(g.prober.pace(policy()))
		}
		timer.Reset(time.Until(q.next(g.cfg.timeout)))
		select {
		case <-probes:
		case <-g.Stirred():
		case <-timer.C:
		case <-g.ctx.Done():
			return CauseNone, nil
		}
	}
}

// open asks who is there, and says when a new connection is to be tried.
func (g *guard) open(suspected bool) *inquest {
	g.TakeHeard()
	g.prober.take()
	g.n.beats.Add(1)
	now := time.Now()
	q := &inquest{misses: g.cfg.misses, began: now, beginAt: now}
	switch {
	case g.prober.again() && suspected: // it may be what is broken
		q.beginAt = now.Add(g.ProofTimeout())
	case g.prober.asking():
		q.beginAt = now.Add(g.cfg.timeout)
	case !suspected && g.AskIdle(1, g.spawn) > 0:
		q.asksIdle = true
		q.beginAt = now.Add(g.cfg.timeout)
	case suspected && !g.isPressing(): // who lost a connection makes another, which is as good
		q.leaves, q.asksIdle = true, g.AskIdle(1, g.spawn) > 0
		q.beginAt = now.Add(g.ProofTimeout())
	}
	return q
}

// isPressing reports whether nobody else makes a connection who would find out.
func (g *guard) isPressing() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pressing
}

// weigh takes up what there is to know by now, and reports whether that is enough. A cause
// means that the server must be given up.
func (g *guard) weigh(q *inquest) (over bool, why Cause, cause error) {
	for _, r := range g.prober.take() {
		if r.verdict == alive {
			return true, CauseNone, nil
		}
		if q.why, q.cause = q.hears(r); q.why != CauseNone {
			break
		}
		if r.verdict == dead && (!r.fresh || q.fails() == nil) { // only a new connection can tell
			q.beginAt = time.Now()
		}
	}
	now := time.Now()
	if q.leaves && (!now.Before(q.beginAt) || g.isPressing()) {
		if !q.asksIdle {
			q.began = now // nobody was asked, so nobody was silent
		}
		q.leaves, q.asksIdle, q.beginAt = false, false, now
	}
	if q.asksIdle && !q.leaves && !g.Asking() {
		q.asksIdle, q.beginAt = false, now
	}
	if q.why != CauseNone && wordsOf(q.cause) == "" {
		return true, q.why, q.cause
	}
	if (q.fails() != nil || q.why != CauseNone) && !q.asked {
		q.asked, q.until = true, now.Add(g.cfg.timeout)
		g.AskIdle(mostAsked, g.spawn)
		q.beginAt = now.Add(maxWait)
	}
	q.answers = q.asked && now.Before(q.until) && g.MayAnswer()
	for q.missed < q.misses && !now.Before(q.miss(g.cfg.timeout)) {
		q.missed++
		g.n.missed.Add(1)
	}
	switch {
	case g.Heard() && (q.why == CauseNone || g.Len() > 0), q.leaves && g.MetSinceDoubt():
		return true, CauseNone, nil // a byte on any connection overrules
	case g.now() != StateConnected:
		return true, CauseNone, nil // it was asked for another server meanwhile
	case q.why != CauseNone:
		return !q.answers, q.why, q.cause
	}
	switch why = q.concludes(); why {
	case CauseConnectionLost:
		cause = q.fails()
	case CauseHeartbeatMissed:
		cause = &slowError{fmt.Sprintf("%d heartbeats in a row without an answer: no byte", q.missed), now.Sub(q.began)}
	}
	return why != CauseNone, why, cause
}
