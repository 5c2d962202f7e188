package wire

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// How many dials run at once, and how often while commands wait. It uses nothing else of the
// package but its numbers.

// Lanes bounds how many dials run at once after the link came up. The limit
// starts low and grows by one with every success, so it doubles with every
// round: a pool warms up fast, yet a server that has just come back is not
// stormed. A dial that takes long, as over a long way, keeps nobody waiting for
// that: it counts as a success meanwhile.
//
// It also keeps dials calm that fail while the link is up, because connections from
// before still serve: then there is one every now and then, as in an outage, and whoever
// wants another meanwhile has its error.
type Lanes struct {
	mu    sync.Mutex
	limit int             // guarded by mu
	busy  int             // guarded by mu
	queue []chan struct{} // guarded by mu; one is closed for each lane that frees

	under map[*dial]struct{} // guarded by mu; the dials under way

	failures int       // guarded by mu; in a row
	failure  error     // guarded by mu; the last of them
	since    time.Time // guarded by mu; of the first
	next     time.Time // guarded by mu; when another dial may be tried
}

// Reset starts over with few lanes.
func (l *Lanes) Reset() {
	l.mu.Lock()
	l.limit = FirstLanes
	l.failures = 0
	l.mu.Unlock()
}

// Failed notes that a new connection could not be made, or was turned away by the server.
func (l *Lanes) Failed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.failures == 0 {
		l.since = now
	}
	l.failures++
	l.failure = err
	l.next = now.Add(Eager(now.Sub(l.since)))
}

// Served notes that the server talks on a new connection.
func (l *Lanes) Served() {
	l.mu.Lock()
	l.failures = 0
	l.mu.Unlock()
}

// Enter waits for a lane or the end of ctx. When the dial has ended, leave must be called
// and told whether it succeeded.
func (l *Lanes) Enter(ctx context.Context) (leave func(ok bool), err error) {
	for {
		l.mu.Lock()
		if now := time.Now(); l.failures >= FirstLanes {
			if now.Before(l.next) {
				defer l.mu.Unlock()
				return nil, l.failure
			}
			l.next = now.Add(Eager(now.Sub(l.since)))
		}
		if l.busy < l.limit {
			l.busy++
			l.mu.Unlock()
			var once sync.Once
			free := func(ok bool) { once.Do(func() { l.free(ok) }) }
			slow := time.AfterFunc(LaneTime, func() { free(true) })
			return func(ok bool) { slow.Stop(); free(ok) }, nil
		}
		turn := make(chan struct{})
		l.queue = append(l.queue, turn)
		l.mu.Unlock()
		select {
		case <-turn:
		case <-ctx.Done():
			l.leaveQueue(turn)
			return nil, context.Cause(ctx)
		}
	}
}

// dial is one that is under way.
type dial struct {
	began time.Time
	end   context.CancelCauseFunc
}

// ErrOvertaken is why a dial is ended that had better be done again.
var ErrOvertaken = errors.New("dials that began later were answered")

// Dialing returns the context for a dial, which ends with ErrOvertaken for its cause when
// the dial is overtaken. When it has returned, leave must be called.
func (l *Lanes) Dialing(ctx context.Context) (dialing context.Context, leave func()) {
	dialing, end := context.WithCancelCause(ctx)
	d := &dial{time.Now(), end}
	l.mu.Lock()
	if l.under == nil {
		l.under = make(map[*dial]struct{})
	}
	l.under[d] = struct{}{}
	l.mu.Unlock()
	return dialing, func() {
		l.mu.Lock()
		delete(l.under, d)
		l.mu.Unlock()
		end(nil)
	}
}

// Overtaken ends the dials that began before.
func (l *Lanes) Overtaken(before time.Time) {
	var old []*dial
	l.mu.Lock()
	for d := range l.under {
		if d.began.Before(before) {
			old = append(old, d)
		}
	}
	l.mu.Unlock()
	for _, d := range old {
		d.end(ErrOvertaken)
	}
}

// leaveQueue takes back a place in the queue; a turn that came in the same
// moment goes to the next in line.
func (l *Lanes) leaveQueue(turn chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.queue, turn); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
		return
	}
	l.wake(1)
}

// free frees a lane; ok says whether there is to be another.
func (l *Lanes) free(ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy--
	free := 1
	if ok {
		l.limit++
		free++
	}
	l.wake(free)
}

// wake lets the first n of the queue try. The caller holds mu.
func (l *Lanes) wake(n int) {
	for ; n > 0 && len(l.queue) > 0; n-- {
		close(l.queue[0])
		l.queue = l.queue[1:]
	}
}

// Eager is the delay between attempts while commands wait, in an outage of the
// given age.
func Eager(age time.Duration) time.Duration {
	d := EagerDelay
	if age >= EagerYoung {
		d = age / EagerDivisor
	}
	return time.Duration(float64(d) * (1 - EagerJitter + 2*EagerJitter*rand.Float64()))
}
