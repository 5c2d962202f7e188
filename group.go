package redial

import (
	"context"
	"math/rand/v2"
	"slices"
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
	client   func() error  // closes the client, nil if that is not ours; read-only after start
	over     func() bool   // whether go-redis has closed a client of several nodes; read-only after start
	closings chan struct{} // capacity 1: go-redis has closed connections, perhaps with the client
	reapedAt time.Time     // when the keeper, which alone uses it, last looked at all clients
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
		events:   newEvents(cfg),
		kept:     make(chan struct{}),
		closings: make(chan struct{}, 1),
		links:    make(map[*link]struct{}),
	}
	g.clock.Store(1)
	return g
}

// start begins supervision. go-redis makes the nodes of a cluster when a command is the
// first to need one, and a program that wants hooks on them says so before, through
// OnNewNode of the embedded client perhaps; so they are not made for a moment, unless
// somebody waits for them.
func (g *group) start() {
	go g.keep()
	if g.nodes != nil && !g.nodes.ring {
		g.spawn(func() {
			if g.front.pause(introduction) {
				g.front.attend()
			}
		})
		return
	}
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

// reap ends what belongs to clients that go-redis has closed: links to nodes that are
// not part of the client any more, and all of the group when its owner has closed the
// client itself, which tells nobody.
func (g *group) reap() {
	g.reapedAt = time.Now()
	all := g.all()
	gone := slices.DeleteFunc(slices.Clone(all), func(l *link) bool { return l.removed == nil || !l.removed() })
	if len(gone) == 0 && len(all) > 0 {
		return
	}
	if g.over == nil || g.over() {
		g.shut("the client was closed")
		g.closeConns()
		return
	}
	for _, l := range gone {
		g.discard(l)
	}
}

// wasShaken reports whether a client was closed of which connections were.
func (g *group) wasShaken() bool {
	for _, l := range g.all() {
		if l.shaken.Swap(false) && l.removed != nil && l.removed() {
			return true
		}
	}
	return false
}

// discard ends the link to a node that is not part of the client any more.
func (g *group) discard(l *link) {
	g.nodes.dismiss(l)
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
	pause := min(g.tick(), lookout)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-g.closings:
			if g.wasShaken() {
				g.reap()
			}
			continue
		case <-g.ctx.Done():
			return
		}
		g.advance()
		now := time.Now()
		if now.Sub(g.reapedAt) >= min(g.beat(), lookout) {
			g.reap()
		}
		next := now.Add(pause)
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
			least = pause / 16
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
