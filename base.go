package redial

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/redial-go/redial/internal/wire"
)

// What everything of one client shares and nothing below needs: configuration, clock,
// events, counters, the goroutines that come and go, and whether the client is closing.
// It knows neither links nor nodes.

// base is what the parts of one client share.
//
// The order of locks, an arrow meaning that the one on its left may be held when the
// one on its right is taken:
//
//	nodes.attaching -> nodes.mu, keeper.mu
//	nodes.mu -> topology.mu
//	Conn.claim -> cell.mu -> events.mu, Fleet.mu, Lanes.mu
//	base.ends -> crew.mu
//
// Every other mutex is taken last. None is held while there is I/O, a sleep or code of
// the caller; go-redis holds locks of its own when it has nodes adopted.
type base struct {
	cfg  *config
	addr string          // of the client as a whole
	life context.Context // ends when supervision does

	clock  *wire.Clock // advanced by the keeper
	events *events
	n      counters
	budget budget
	calls  wire.Calls
	subs   subscriptions

	observers *observers

	refusing chan struct{} // closed when the client as a whole admits no command any more
	knock    chan struct{} // capacity 1: there is something for the keeper to look at

	mishap atomic.Bool // a panic in code of others was told

	release []func()           // called when supervision ends; read-only once it has begun
	end     context.CancelFunc // ends life
	refused sync.Once          // closes refusing
	ends    sync.Mutex
	ended   bool // guarded by ends; nothing is spawned any more
	workers crew // goroutines that come and go
}

func newBase(cfg *config, addr string) *base {
	life, end := context.WithCancel(context.Background())
	told := newObservers(cfg, addr)
	return &base{
		cfg: cfg, addr: addr, life: life, end: end,
		clock:     wire.NewClock(),
		budget:    budget{burst: retryBurst, rate: retryRate},
		events:    newEvents(cfg, told),
		observers: told,
		refusing:  make(chan struct{}),
		knock:     make(chan struct{}, 1),
	}
}

// counters are the cumulative parts of Stats. They outlive the nodes that they were
// counted for. None of them is touched by a command that succeeds at its first attempt.
type counters struct {
	wire.Counters
	beats, missed, skipped   atomic.Uint64
	waited, refused, unknown atomic.Uint64

	retriesUnsent, retriesRefused, retriesRepeated, retriesDelayed atomic.Uint64
}

// counted returns a snapshot of what is counted.
func (b *base) counted() Stats {
	n := &b.n
	s := Stats{
		Generation: n.Generations.Load(),
		Heartbeats: n.beats.Load(), HeartbeatsMissed: n.missed.Load(), HeartbeatsSkipped: n.skipped.Load(),
		Dials: n.Dials.Load(), DialErrors: n.DialErrors.Load(),
		MaxWaiting: b.cfg.maxWaiting, Grace: b.cfg.grace,
		Waited: n.waited.Load(), Refused: n.refused.Load(), Unknown: n.unknown.Load(),
		RetriesUnsent: n.retriesUnsent.Load(), RetriesRefused: n.retriesRefused.Load(),
		RetriesRepeated: n.retriesRepeated.Load(), RetriesDelayed: n.retriesDelayed.Load(),
		IdleChecks: n.IdleChecks.Load(), IdleDropped: n.IdleDropped.Load(), SilentCut: n.Cut.Load(),
		EventsDropped: b.events.lost.Load(),
	}
	s.Retries = s.RetriesUnsent + s.RetriesRefused + s.RetriesRepeated
	return s
}

// tally returns how many commands were in trouble so far.
func (b *base) tally() tally {
	n := &b.n
	return tally{n.waited.Load(), n.refused.Load(), n.unknown.Load(),
		n.retriesUnsent.Load() + n.retriesRefused.Load() + n.retriesRepeated.Load()}
}

// spawn runs f on a goroutine that join waits for. It reports false, and does not,
// when supervision has ended.
func (b *base) spawn(f func()) bool {
	b.ends.Lock()
	defer b.ends.Unlock()
	if b.ended {
		return false
	}
	b.workers.moves(1, 0)
	go func() {
		defer b.workers.moves(-1, 0)
		f()
	}()
	return true
}

// abroad runs f, which is code of the caller or leads to some, on a goroutine that spawn
// has begun. If it does not return when supervision has ended, perhaps because it is what
// ends it, it is left behind. A panic in f ends here, and is returned.
func (b *base) abroad(f func() error) (err error) {
	b.workers.moves(-1, 1)
	defer b.workers.moves(1, -1)
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{v}
			b.panicked(v, debug.Stack())
		}
	}()
	return f()
}

// panicked tells of a panic in code of others, the caller's or go-redis's, on a goroutine of
// ours, once; and on another one, for the logger is the caller's and may close the client.
func (b *base) panicked(v any, stack []byte) {
	if b.mishap.CompareAndSwap(false, true) {
		b.spawn(func() {
			_ = b.abroad(func() error {
				b.observers.logPanic(logPanicProbe, v, stack)
				return nil
			})
		})
	}
}

// errExited is why there is no answer from code of the caller that has ended its goroutine.
var errExited = errors.New("a function of the caller has ended its goroutine")

// panicError is what a panic in code of others comes to.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprint("panic: ", e.value) }

// subscriptions counts those that have lost their connection and are not back yet.
type subscriptions struct {
	mu      sync.Mutex
	missing int           // guarded by mu
	whole   chan struct{} // guarded by mu; closed when none is missing any more; nil: nobody waits
}

func (s *subscriptions) lost() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missing++
}

func (s *subscriptions) back() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.missing > 0 {
		s.foundLocked(1)
	}
}

func (s *subscriptions) foundLocked(n int) {
	if s.missing -= n; s.missing == 0 && s.whole != nil {
		close(s.whole)
		s.whole = nil
	}
}

// await waits until none is missing, for d at most. What is missing then was given up
// perhaps, and nobody waits for it again.
func (s *subscriptions) await(ctx context.Context, d time.Duration) {
	s.mu.Lock()
	missing := s.missing
	if missing == 0 {
		s.mu.Unlock()
		return
	}
	if s.whole == nil {
		s.whole = make(chan struct{})
	}
	whole := s.whole
	s.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-whole:
	case <-ctx.Done():
	case <-timer.C:
		s.mu.Lock()
		if s.whole == whole {
			s.foundLocked(s.missing)
		}
		s.mu.Unlock()
	}
}

// crew counts goroutines.
type crew struct {
	mu   sync.Mutex
	home int           // guarded by mu; those that run code of ours
	away int           // guarded by mu; those that run code of others
	left chan struct{} // guarded by mu; closed when there are fewer of them; nil: nobody waits
}

// moves changes how many there are.
func (w *crew) moves(home, away int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.home += home
	w.away += away
	if w.left != nil {
		close(w.left)
		w.left = nil
	}
}

// join waits until all have returned. For code of others it waits foreignPatience.
func (w *crew) join() {
	timer := time.NewTimer(foreignPatience)
	defer timer.Stop()
	late := false
	for {
		w.mu.Lock()
		if w.home == 0 && (w.away == 0 || late) {
			w.mu.Unlock()
			return
		}
		if w.left == nil {
			w.left = make(chan struct{})
		}
		left := w.left
		w.mu.Unlock()
		select {
		case <-left:
		case <-timer.C:
			late = true
		}
	}
}

// refuse says that the client as a whole admits no command any more.
func (b *base) refuse() { b.refused.Do(func() { close(b.refusing) }) }

// closing reports whether that was said.
func (b *base) closing() bool { return isClosed(b.refusing) }

// finish has nothing spawned any more, and reports whether it is the first to say so.
func (b *base) finish() bool {
	b.refuse()
	b.ends.Lock()
	defer b.ends.Unlock()
	first := !b.ended
	b.ended = true
	return first
}

// isOver reports whether supervision has ended.
func (b *base) isOver() bool {
	b.ends.Lock()
	defer b.ends.Unlock()
	return b.ended
}

// beat is the time between two looks at a Connected link. Looking twice in an
// interval, and counting the answer to a PING as traffic, an idle client sends
// one PING an interval, and no silence goes unnoticed for longer than that.
func (b *base) beat() time.Duration {
	return b.cfg.interval / 2
}

// tick is how often the keeper wakes: for heartbeats, and often enough to tell
// ages for the idle check.
func (b *base) tick() time.Duration {
	if check := b.cfg.idleCheck; check > 0 {
		return min(b.beat(), max(check/2, time.Millisecond))
	}
	return b.beat()
}

// schedule returns a function that says how long to wait before each attempt. The policy is
// the caller's and may hang, so it is asked where that holds up nobody; the delay is the
// longest one until it has answered.
func (b *base) schedule() func() time.Duration {
	var policy backoff.BackOff // used by whoever asks it, one at a time
	var said chan time.Duration
	ask := func(answer chan<- time.Duration) {
		d := backoffCap
		defer func() { answer <- d }()
		_ = b.abroad(func() error {
			if policy == nil {
				policy = b.cfg.newBackOff()
				policy.Reset()
			}
			d = nextDelay(policy)
			return nil
		})
	}
	return func() time.Duration {
		var late <-chan time.Time
		if said == nil {
			answer := make(chan time.Duration, 1)
			if !b.spawn(func() { ask(answer) }) {
				return backoffCap
			}
			said = answer
			timer := time.NewTimer(foreignPatience)
			defer timer.Stop()
			late = timer.C
		} else if len(said) == 0 {
			return backoffCap
		}
		select {
		case d := <-said:
			said = nil
			return d
		case <-late:
			return backoffCap
		}
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

// early takes a random part off d, so that clients that started together do not
// beat together.
func early(d time.Duration) time.Duration {
	return d - time.Duration(heartbeatJitter*rand.Float64()*float64(d))
}

// nudge makes whoever reads ch look around. It never blocks.
func nudge(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
