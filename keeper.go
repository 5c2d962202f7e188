package redial

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redial-go/redial/internal/wire"
)

// The goroutine that looks at links from time to time, and the end of everything. This
// may use links and what is below them; it knows neither commands nor topologies.

// keeper looks after the links of one client.
type keeper struct {
	*base
	gate  *gate // of the client as a whole
	whole whole // read-only after start

	over     func() bool   // whether go-redis has closed the client, when it has closed that of a link; read-only after start
	reapedAt time.Time     // when all clients were last looked at; used by the keeper's goroutine alone
	kept     chan struct{} // closed when that has returned
	sweeping atomic.Bool

	mu    sync.Mutex
	links map[*guard]struct{} // guarded by mu; those with connections
}

// whole is a client as a whole.
type whole interface {
	// reconnect retires every connection and has what they lead to dialed afresh.
	reconnect(reason string)
	// stats returns a snapshot.
	stats() Stats
}

func newKeeper(cfg *config, addr string) *keeper {
	b := newBase(cfg, addr)
	return &keeper{
		base:  b,
		gate:  newGate(b, addr, ""),
		over:  func() bool { return true },
		kept:  make(chan struct{}),
		links: make(map[*guard]struct{}),
	}
}

// start begins supervision, and after a pause to reach the server.
func (k *keeper) start(pause time.Duration) {
	go k.keep()
	if pause == 0 {
		k.gate.tend()
		return
	}
	k.spawn(func() {
		if k.gate.pause(pause) {
			k.gate.tend()
		}
	})
}

// add has the keeper look after a link.
func (k *keeper) add(g *guard) {
	k.mu.Lock()
	k.links[g] = struct{}{}
	k.mu.Unlock()
	if k.isOver() {
		g.shut(CauseClosed, closedByCaller)
	}
}

// all returns the links that have connections, each with what looks after it.
func (k *keeper) all() []*guard {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Keys(k.links))
}

// keep looks at every link now and then. It never blocks on one: what takes time
// is done by goroutines that come and go.
func (k *keeper) keep() {
	defer close(k.kept)
	pause := min(k.tick(), lookout)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-k.knock:
			k.answer()
			continue
		case <-k.life.Done():
			return
		}
		k.clock.Advance()
		now := time.Now()
		if now.Sub(k.reapedAt) >= min(k.beat(), lookout) {
			k.reap()
		}
		next := now.Add(pause)
		if reap := k.reapedAt.Add(min(k.beat(), lookout)); reap.Before(next) {
			next = reap
		}
		all := k.all()
		least := time.Duration(0)
		if len(all) > 1 { // look at several at a time, before they are due rather than after
			least = pause / 16
		}
		for _, g := range all {
			if !now.Add(least).Before(g.lookAt) {
				g.lookAt = g.look(now, least)
			}
			if g.lookAt.Before(next) {
				next = g.lookAt
			}
			g.Inquirer.Wonder()
		}
		k.sweep()
		k.events.remind(now)
		timer.Reset(max(time.Until(next), least))
	}
}

// answer finds out why somebody knocks: go-redis has closed a connection, and perhaps
// the client of it, or a server is back, and its pool wants warming up.
func (k *keeper) answer() {
	all := k.all()
	if slices.ContainsFunc(all, func(l *guard) bool { return l.shaken.Swap(false) && l.owner.gone() }) {
		k.reap()
	}
	if slices.ContainsFunc(all, func(l *guard) bool { return l.cold.Load() }) {
		k.sweep()
	}
}

// reap ends what belongs to clients that go-redis has closed: links to nodes that are
// not part of the client any more, and all of it when its owner has closed the client
// itself, which tells nobody.
func (k *keeper) reap() {
	k.reapedAt = time.Now()
	all := k.all()
	gone := slices.DeleteFunc(slices.Clone(all), func(l *guard) bool { return !l.owner.gone() })
	if len(gone) == 0 && len(all) > 0 {
		return
	}
	if k.over() {
		k.shut("the client was closed")
		k.closeConns()
		return
	}
	for _, l := range gone {
		k.discard(l)
	}
}

// discard ends the link to a node that is not part of the client any more.
func (k *keeper) discard(l *guard) {
	l.owner.dismissed()
	l.shut(CauseNodeRemoved, "")
	l.RetireAll(ErrClosed)
	k.mu.Lock()
	delete(k.links, l)
	k.mu.Unlock()
}

// sweep has idle connections proved and pools warmed up, one after the other, by a
// goroutine that delays neither heartbeats nor callers. There is one at a time.
func (k *keeper) sweep() {
	if !k.sweeping.CompareAndSwap(false, true) {
		return
	}
	k.spawn(func() {
		defer k.sweeping.Store(false)
		for _, l := range k.all() {
			if l.now() == StateConnected && l.cold.CompareAndSwap(true, false) {
				k.warm(l)
			}
			if l.cfg.idleCheck > 0 {
				l.sweep()
			}
		}
	})
}

// warm has the pool of a link warmed up. Code of the caller, which is called for each
// connection, may hang: then it is waited for no longer, so that the others have their turn.
func (k *keeper) warm(l *guard) {
	done := make(chan struct{})
	if !k.spawn(func() {
		defer close(done)
		_ = k.abroad(func() error {
			l.leaveSpare()
			if !l.owner.warm(l.ctx, int(l.lost.Load())) {
				l.cold.Store(true)
			}
			return nil
		})
	}) {
		return
	}
	timer := time.NewTimer(warmWithin)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-k.life.Done():
	}
}

// shut ends supervision without waiting, see cell.shut.
func (k *keeper) shut(reason string) {
	if !k.finish() {
		return
	}
	k.gate.shut(CauseClosed, reason) // first, so that it does not take the end of its nodes for an outage
	for _, l := range k.all() {
		l.shut(CauseClosed, reason)
	}
	k.end()
	for _, f := range k.release {
		f()
	}
}

const closedByCaller = "closed by the caller"

// join waits until the goroutines of a client that was shut have returned. One that was
// never started has no keeper.
func (k *keeper) join() {
	<-k.kept
	k.workers.join()
	k.events.join()
}

// close ends supervision, closes the client with f, and waits until nothing is left.
func (k *keeper) close(f func() error) error {
	k.shut(closedByCaller)
	// go-redis may have commands to flush, but may also wait for one that sets up a
	// connection, with a lock held.
	closed := make(chan struct{})
	timer := time.AfterFunc(foreignPatience, func() {
		defer close(closed)
		k.closeConns()
	})
	err := f()
	if !timer.Stop() {
		<-closed
	}
	k.closeConns()
	k.join()
	return err
}

const notBuilt = "the client could not be built"

// abandon releases what was never started.
func (k *keeper) abandon() {
	close(k.kept)
	k.shut(notBuilt)
	k.closeConns()
	k.join()
}

// build returns what f builds, a client whose links k is to look after, after a pause. When
// f fails nothing is left of it.
func build[C any](k *keeper, pause time.Duration, f func() (C, error)) (c C, err error) {
	err = errExited // unless f returns, or panics
	defer func() {
		if r := recover(); r != nil { // go-redis panics on options it cannot serve
			err = fmt.Errorf("redial: %v", r)
		}
		if err != nil {
			k.abandon()
			c = *new(C)
		}
	}()
	if c, err = f(); err == nil {
		k.start(pause)
	}
	return c, err
}

// drain shuts the gate of the client for good and waits until every command that it has
// admitted has returned, or ctx ends. Then it has the servers end what still waits for
// them, so that nothing is lost that they hand out in that moment.
func (k *keeper) drain(ctx context.Context) error {
	k.refuse()
	err := k.gate.drain(ctx)
	if err == nil {
		return nil
	}
	short, cancel := context.WithTimeout(k.life, k.patience())
	defer cancel()
	if k.part() {
		_ = k.gate.drain(short)
	}
	return err
}

// part has servers end what connections wait for, and reports whether any has.
func (k *keeper) part() bool {
	var any atomic.Bool
	var asked sync.WaitGroup
	for _, l := range k.all() {
		asked.Add(1)
		if !k.spawn(func() {
			defer asked.Done()
			if l.Part(ErrClosed) {
				any.Store(true)
			}
		}) {
			asked.Done()
		}
	}
	asked.Wait()
	return any.Load()
}

// patience is how long the slowest server may take to end what waits for it, and callers to
// have the replies.
func (k *keeper) patience() time.Duration {
	d := time.Duration(wire.UnblockFloor)
	for _, l := range k.all() {
		d = max(d, l.UnblockTimeout())
	}
	return d + wire.UnblockFloor
}

// closeConns closes what go-redis has not closed.
func (k *keeper) closeConns() {
	for _, l := range k.all() {
		l.RetireAll(ErrClosed)
	}
}
