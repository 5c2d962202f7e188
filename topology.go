package redial

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/wire"
)

// What nodes say of each other: how they are asked, what they told last, where each of them
// stands in that, and who waits for news. It uses the keeper and what is below it, and knows
// no links; what is done about them is in nodes.go.

// topology is the picture of several nodes that one client has.
type topology struct {
	client *keeper
	load   func(ctx context.Context) error // asks for it afresh
	named  bool                            // by the caller, or by sentinels, not by a cluster: nodes need not be one
	slow   bool                            // code of the caller sets connections up, and takes what time it likes
	asking atomic.Int32                    // questions that are under way
	leave  leave                           // of whoever is asked

	mu       sync.Mutex
	asked    bool          // guarded by mu; refresh was called since the last load began
	loading  bool          // guarded by mu; there is a goroutine for that
	late     *question     // guarded by mu; has outlived its time; nil: none has
	loadedAt time.Time     // guarded by mu
	answers  int           // guarded by mu; how often it was told
	layout   layout        // guarded by mu; what was told last
	seen     string        // guarded by mu; the same, to compare
	acted    string        // guarded by mu; the one that those who wait know of
	news     chan struct{} // guarded by mu; closed when it has changed
	changed  bool          // guarded by mu; it had, at the last load
	strays   []stray       // guarded by mu; subscriptions that have to go to another node
}

func newTopology(client *keeper) *topology {
	return &topology{client: client, news: make(chan struct{})}
}

// layout is a topology as it was told.
type layout struct {
	slots  []redis.ClusterSlot
	origin string // the address of the node that told it, "" when none did
}

// footing is what a layout says of a node.
type footing struct {
	is   rank
	slot int // that it has
}

// rank is how high a node stands.
type rank uint8

const (
	unlisted rank = iota
	follows       // it has slots of another node
	leads         // it has slots of its own
)

// footingOf returns how a node stands that layouts call name and that is at addr.
func (t layout) footingOf(name, addr string) (s footing) {
	for _, r := range t.slots {
		for i, node := range r.Nodes {
			as := follows
			if i == 0 {
				as = leads
			}
			if as > s.is && (node.Addr == name || nodeAddrOf(node.Addr, t.origin) == addr) {
				s = footing{as, r.Start}
			}
		}
	}
	return s
}

// covers reports whether there is a node for a slot.
func (t layout) covers(slot int) bool {
	return slices.ContainsFunc(t.slots, func(r redis.ClusterSlot) bool {
		return r.Start <= slot && slot <= r.End && len(r.Nodes) > 0
	})
}

// place is what layouts have said of a node.
type place struct {
	best footing // since the node was heard
	fell int64   // the clock when one was told first in which it stands lower; 0: none was
	told int64   // the same, last
}

// learns notes how the node stands in a layout that was told at a time of the clock, and that
// it was heard last at another.
func (p *place) learns(t layout, now footing, heard, at int64) {
	switch {
	case now.is >= p.best.is, p.fell != 0 && heard > p.fell: // it lives with what it has become
		*p = place{best: now}
	case !t.covers(p.best.slot): // nobody is known to have taken its place
	case p.fell == 0:
		p.fell, p.told = at, at
	default:
		p.told = at
	}
}

// question is the topology being asked for.
type question struct {
	began time.Time
	done  chan struct{} // closed when there is an answer
	err   error         // written before that
}

// ask asks for the topology, which leads to code of the caller and may hang.
func (t *topology) ask() *question {
	q := &question{began: time.Now(), done: make(chan struct{}), err: errExited}
	t.asking.Add(1)
	begun := t.client.spawn(func() {
		defer close(q.done)
		defer t.asking.Add(-1)
		defer t.settle()
		within := 2 * t.leave.after(t.client.cfg.timeout/2)
		if !t.named && t.toldSoFar() == 0 { // each node has its own time, and the last may be the one that knows
			within = mostSetUp
		}
		ctx, cancel := context.WithTimeout(t.client.life, within)
		defer cancel()
		q.err = t.client.abroad(func() error { return t.load(ctx) }) // go-redis may panic on what a server says
		switch took := time.Since(q.began); {
		case q.err != nil:
			t.leave.late(t.client.cfg.timeout, took, t.toldSoFar() == 0)
		case t.named:
			t.leave.told(took)
		}
	})
	if !begun {
		t.asking.Add(-1)
		q.err = redis.ErrClosed
		close(q.done)
	}
	return q
}

var errUntold = error(notYet("nobody tells the topology in time"))

// leave is how long somebody may take to tell a topology: when nobody did in time they are given
// more the next time, for who is late is not dead for that. It is not so at once when others are
// known to tell, who may be back.
type leave struct {
	given atomic.Int64 // nanoseconds
	lates atomic.Int32 // questions in a row that nobody has answered in time
}

func (l *leave) after(least time.Duration) time.Duration {
	return max(least, time.Duration(l.given.Load()))
}

// told notes that somebody has told it, and how long that took.
func (l *leave) told(d time.Duration) {
	l.lates.Store(0)
	l.given.Store(int64(2 * d))
}

// late notes that nobody has, in d, who was given no less than least; never says that nobody ever
// has.
func (l *leave) late(least, d time.Duration, never bool) {
	given := l.after(least)
	if d < given/2 {
		return
	}
	if l.lates.Add(1) > latesSpared || never {
		l.given.Store(int64(moreLeave * min(given, mostSetUp/moreLeave)))
	}
}

// await waits for an answer, and puts one that is late off to who asks next. There is less
// time while commands wait that can go by what was told before, but enough for a node that
// has something to say.
func (t *topology) await(q *question) error {
	wait := t.client.cfg.timeout + foreignPatience
	if t.client.gate.now() != StateConnected && t.toldSoFar() > 0 {
		wait = min(wait, t.client.patience()) // which grows with the round trips
		if t.named {
			wait = foreignPatience
		}
		wait -= time.Since(q.began)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-q.done:
		return q.err
	case <-t.client.life.Done():
		return redis.ErrClosed
	case <-timer.C:
		t.mu.Lock()
		t.late = q
		t.mu.Unlock()
		t.settle()
		return errUntold
	}
}

// reload asks for the topology, and again when a question was late twice: code of the caller
// may hang on the connection that was made for it, and not on another.
func (t *topology) reload() error {
	t.mu.Lock()
	q := t.late
	t.late = nil
	t.mu.Unlock()
	lost := q != nil && time.Since(q.began) >= 2*(t.client.cfg.timeout+foreignPatience) && t.asking.Load() < mostAttempts
	if q == nil || lost || isClosed(q.done) { // what was answered before is no answer now
		q = t.ask()
	}
	return t.await(q)
}

// within returns the context for a question to a node, which has d. While nothing is known that
// does not count what code of the caller takes to set up the connection for it: only for how
// long the node, of which owed tells, has owed an answer.
func (t *topology) within(ctx context.Context, d time.Duration, owed func() time.Duration) (context.Context, context.CancelFunc) {
	if !t.slow || t.toldSoFar() > 0 {
		return context.WithTimeout(ctx, d)
	}
	ctx, cancel := context.WithTimeout(ctx, mostSetUp)
	var timer *time.Timer
	armed := make(chan struct{})
	timer = time.AfterFunc(d, func() {
		<-armed
		if left := d - owed(); left > 0 && ctx.Err() == nil {
			timer.Reset(left)
			return
		}
		cancel()
	})
	close(armed)
	return ctx, func() {
		timer.Stop()
		cancel()
	}
}

// settle sends those who wait for a node on their way when the topology has changed.
func (t *topology) settle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.loadedAt = time.Now()
	// go-redis may load it at the same time, and what it stores last be the older one.
	if changed := t.seen != t.acted; changed || t.changed {
		t.acted, t.changed = t.seen, changed
		t.proceedLocked()
	}
}

// refresh has the topology asked for, soon and by one goroutine. While no node
// answers that is under way anyhow.
func (t *topology) refresh() {
	if t.client.gate.now() == StateConnected {
		t.keepAsking()
	}
}

// keepAsking has it asked for in any state.
func (t *topology) keepAsking() {
	t.mu.Lock()
	begin := !t.loading
	t.asked, t.loading = true, true
	t.mu.Unlock()
	if begin {
		t.client.spawn(t.keepLoading)
	}
}

func (t *topology) keepLoading() {
	for {
		t.mu.Lock()
		if !t.asked || t.client.life.Err() != nil {
			t.loading = false
			t.mu.Unlock()
			return
		}
		t.asked = false
		wait := reloadSpacing - time.Since(t.loadedAt)
		t.mu.Unlock()
		if wait > 0 && !t.client.gate.pause(early(wait)) {
			continue
		}
		if err := t.reload(); err != nil {
			t.client.gate.noteCause(err)
		}
		t.leadStrays()
	}
}

// note notes what was told, by the node at origin if that is not "".
func (t *topology) note(slots []redis.ClusterSlot, origin string) layout {
	ranges := make([]string, len(slots))
	for i, s := range slots {
		ranges[i] = fmt.Sprint(s.Start, "-", s.End)
		for _, node := range s.Nodes {
			ranges[i] += " " + node.Addr
		}
	}
	slices.Sort(ranges)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.answers++
	t.seen, t.layout = strings.Join(ranges, "\n"), layout{slots, origin}
	return t.layout
}

// last returns what was told last.
func (t *topology) last() layout {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.layout
}

// toldSoFar counts the topologies that nodes have told.
func (t *topology) toldSoFar() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.answers
}

// stray is a subscription that has to go to another node.
type stray struct {
	conn  *wire.Conn
	seen  string    // the topology that was known when it was told to
	since time.Time // when that was
}

// strayed has a subscription go to the node that has its slot now.
func (t *topology) strayed(c *wire.Conn) {
	t.mu.Lock()
	t.strays = append(t.strays, stray{c, t.seen, time.Now()})
	t.mu.Unlock()
	t.keepAsking()
}

// leadStrays ends the connections of stray subscriptions when there is news of the
// topology, or has been none for a while: they subscribe anew, and go by the topology
// that go-redis knows then.
func (t *topology) leadStrays() {
	var led []*wire.Conn
	t.mu.Lock()
	t.strays = slices.DeleteFunc(t.strays, func(s stray) bool {
		if s.seen == t.seen && time.Since(s.since) < strayPatience {
			return false
		}
		led = append(led, s.conn)
		return true
	})
	t.asked = t.asked || len(t.strays) > 0
	t.mu.Unlock()
	for _, c := range led {
		c.Retire(errors.New("the slot of a subscription was moved"))
	}
}

// rerouted returns a channel that is closed when commands that wait for a node may
// find another.
func (t *topology) rerouted() <-chan struct{} {
	_, news := t.told()
	return news
}

// told returns the topology that nodes have told last, and the channel of rerouted.
func (t *topology) told() (seen string, news <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen, t.news
}

// proceed has commands that wait for a node look for it again.
func (t *topology) proceed() {
	t.mu.Lock()
	t.proceedLocked()
	t.mu.Unlock()
}

func (t *topology) proceedLocked() {
	close(t.news)
	t.news = make(chan struct{})
}
