package redial

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// group is what the links of one client share, and the goroutine that looks at
// them from time to time.
type group struct {
	cfg    *config
	ctx    context.Context // ends when the group is closed
	cancel context.CancelFunc
	began  time.Time
	front  *link  // stands for the client as a whole
	nodes  *nodes // nil: the client has one server

	clock  atomic.Int64 // nanoseconds since began, advanced by the keeper; never 0
	events *events
	n      counters
	budget budget
	calls  calls

	release  []func()      // called when the group is shut; read-only after start
	kept     chan struct{} // closed when the keeper has returned
	sweeping atomic.Bool

	mu      sync.Mutex
	links   map[*link]struct{} // guarded by mu; those with connections
	closed  bool               // guarded by mu
	workers sync.WaitGroup     // goroutines that come and go; Add only under mu, while not closed
}

func newGroup(cfg *config) *group {
	ctx, cancel := context.WithCancel(context.Background())
	g := &group{
		cfg: cfg, ctx: ctx, cancel: cancel, began: time.Now(),
		events: newEvents(cfg),
		kept:   make(chan struct{}),
		links:  make(map[*link]struct{}),
	}
	g.clock.Store(1)
	return g
}

// start begins supervision.
func (g *group) start() {
	go g.keep()
	g.front.attend()
}

// advance sets the clock to now and returns it. It never stands still, so that
// what came before a call can be told from what came after.
func (g *group) advance() int64 {
	for {
		old := g.clock.Load()
		now := max(int64(time.Since(g.began)), old+1)
		if g.clock.CompareAndSwap(old, now) {
			return now
		}
	}
}

// add has the keeper look after a link.
func (g *group) add(l *link) {
	g.mu.Lock()
	g.links[l] = struct{}{}
	closed := g.closed
	g.mu.Unlock()
	if closed {
		l.shut(CauseClosed, closedByCaller)
	}
}

// discard ends a link whose client was closed by somebody else: by go-redis, because
// the node is not part of the client any more, or by the owner of a client that was
// built before it was supervised.
func (g *group) discard(l *link) {
	if l == g.front {
		g.shut("the client was closed")
		return
	}
	l.shut(CauseNodeRemoved, "")
	l.closeConns()
	g.mu.Lock()
	delete(g.links, l)
	g.mu.Unlock()
}

// all returns the links that have connections.
func (g *group) all() []*link {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]*link, 0, len(g.links))
	for l := range g.links {
		all = append(all, l)
	}
	return all
}

// spawn runs f on a goroutine that join waits for. It reports false, and does not,
// when the group is closed.
func (g *group) spawn(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.workers.Add(1)
	go func() {
		defer g.workers.Done()
		f()
	}()
	return true
}

// beat is the time between two looks at a Connected link. Looking twice in an
// interval, and counting the answer to a PING as traffic, an idle client sends
// one PING an interval, and no silence goes unnoticed for longer than that.
func (g *group) beat() time.Duration {
	return g.cfg.interval / 2
}

// tick is how often the keeper wakes: for heartbeats, and often enough to tell
// ages for the idle check.
func (g *group) tick() time.Duration {
	if check := g.cfg.idleCheck; check > 0 {
		return min(g.beat(), max(check/2, time.Millisecond))
	}
	return g.beat()
}

// early takes a random part off d, so that clients that started together do not
// beat together.
func early(d time.Duration) time.Duration {
	return d - time.Duration(heartbeatJitter*rand.Float64()*float64(d))
}

// keep looks at every link now and then. It never blocks on one: what takes time
// is done by goroutines that come and go.
func (g *group) keep() {
	defer close(g.kept)
	timer := time.NewTimer(g.tick())
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-g.ctx.Done():
			return
		}
		g.advance()
		now := time.Now()
		next := now.Add(g.tick())
		all := g.all()
		for _, l := range all {
			if !now.Before(l.lookAt) {
				l.lookAt = l.look(now)
			}
			if l.lookAt.Before(next) {
				next = l.lookAt
			}
		}
		g.sweep()
		least := time.Duration(0)
		if len(all) > 1 { // look at several at a time
			least = g.tick() / 16
		}
		timer.Reset(max(time.Until(next), least))
	}
}

// sweep has idle connections proved and pools warmed up, one after the other, by a
// goroutine that delays neither heartbeats nor callers. There is one at a time.
func (g *group) sweep() {
	if !g.sweeping.CompareAndSwap(false, true) {
		return
	}
	g.spawn(func() {
		defer g.sweeping.Store(false)
		for _, l := range g.all() {
			if l.warm != nil && l.cold.CompareAndSwap(true, false) {
				l.warm(l.ctx, int(l.lost.Load()))
			}
			if l.idleAge > 0 {
				l.sweep()
			}
		}
	})
}

// shut ends supervision without waiting, see link.shut.
func (g *group) shut(reason string) {
	g.mu.Lock()
	first := !g.closed
	g.closed = true
	g.mu.Unlock()
	if !first {
		return
	}
	if g.front != nil {
		g.front.shut(CauseClosed, reason) // first, so that it does not take the end of its nodes for an outage
	}
	for _, l := range g.all() {
		l.shut(CauseClosed, reason)
	}
	g.cancel()
	for _, f := range g.release {
		f()
	}
}

// join waits until the goroutines of a group that was shut have returned. A group
// that was never started has no keeper.
func (g *group) join() {
	<-g.kept
	g.workers.Wait()
	g.events.join()
}

// end ends supervision, closes the client with f, and waits until nothing is left.
func (g *group) end(f func() error) error {
	g.shut(closedByCaller)
	err := f()
	g.closeConns()
	g.join()
	return err
}

// abandon releases a group that was never started.
func (g *group) abandon() {
	close(g.kept)
	g.shut("the client could not be built")
	g.join()
}

// closeConns closes what go-redis has not closed.
func (g *group) closeConns() {
	for _, l := range g.all() {
		l.closeConns()
	}
}
