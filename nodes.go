package redial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// nodes are the nodes of one client, and what keeps its picture of them right.
type nodes struct {
	*keeper
	load   func(ctx context.Context) error // asks for the topology afresh
	ring   bool                            // its nodes know nothing of each other
	pinged bool                            // go-redis PINGs them one after the other, through their hooks
	tells  bool                            // whenever the topology is told, learn is called
	reader bool                            // go-redis may read from any node of a shard
	splits func(redis.Cmder) bool          // whether go-redis sends parts of a command to several nodes

	used   atomic.Bool // a caller has made use of the nodes
	empty  atomic.Bool // whoever was to name the nodes has named none
	inners innerParts  // behind hooks that were added to the client as a whole

	attaching sync.Mutex // held while a client that exists already gets its hook

	mu       sync.Mutex
	byClient map[*redis.Client]hook // guarded by mu; ours, on the client of a node
	asked    bool                   // guarded by mu; refresh was called since the last load began
	loading  bool                   // guarded by mu; there is a goroutine for that
	loadedAt time.Time              // guarded by mu
	answers  int                    // guarded by mu; how often a node has told the topology
	seen     string                 // guarded by mu; the topology it told last
	acted    string                 // guarded by mu; the one that those who wait know of
	news     chan struct{}          // guarded by mu; closed when the topology has changed
	changed  bool                   // guarded by mu; it had, at the last load
	strays   []stray                // guarded by mu; subscriptions that have to go to another node
}

// newNodes makes a client's front: the link that stands for all of its nodes.
func newNodes(cfg *config, addr string) *nodes {
	n := &nodes{
		keeper:   newKeeper(cfg, addr),
		byClient: make(map[*redis.Client]hook),
		news:     make(chan struct{}),
		splits:   func(redis.Cmder) bool { return false },
	}
	l := newState(n.base, addr)
	l.passive = true
	l.prober = scout{n}
	l.stale = n.refresh
	l.told = func(to State) {
		if up, cause := n.anyUp(); to == StateConnected && !up { // the last one went meanwhile
			l.transition(StateReconnecting, CauseNoNode, "", cause, 0)
		}
	}
	n.front, n.whole, n.dismiss = l, n, n.forget
	return n
}

// onNewNode has f called for the nodes to come, behind whose hooks comes the inner part
// of ours. A caller who adds hooks before his first command wants them on every node,
// so f is called as well for nodes that only redial has made use of.
func (n *nodes) onNewNode(register func(func(*redis.Client)), f func(*redis.Client)) {
	var called sync.Map
	hooked := func(rdb *redis.Client) {
		if _, again := called.LoadOrStore(rdb, true); again {
			return
		}
		f(rdb)
		n.mu.Lock()
		h, ours := n.byClient[rdb]
		n.mu.Unlock()
		if ours && h.inners != nil {
			h.addInner(rdb)
		}
	}
	register(hooked)
	if n.used.Load() {
		return
	}
	n.mu.Lock()
	nodes := slices.Collect(maps.Keys(n.byClient))
	n.mu.Unlock()
	for _, rdb := range nodes {
		hooked(rdb)
	}
}

// use notes that a caller has made use of the nodes.
func (n *nodes) use() {
	if !n.used.Load() {
		n.used.Store(true)
	}
}

// newLink builds the link to a node.
func (n *nodes) newLink(opt *redis.Options, quick bool) *link {
	l := newLink(n.base, opt, quick)
	l.node = l.addr
	l.sealed = true
	l.stale = n.refresh
	l.told = n.told
	l.strayed = n.strayed
	return l
}

// enlist has the link of a node watch over its client.
func (n *nodes) enlist(rdb *redis.Client, h hook) {
	l := h.link
	l.warm = warmer(rdb, l.cfg.timeout, &l.inflight)
	l.removed = closedCheck(rdb)
	n.mu.Lock()
	n.byClient[rdb] = h
	n.mu.Unlock()
	n.add(l)
}

// forget forgets the client of a node.
func (n *nodes) forget(l *link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.byClient, func(_ *redis.Client, h hook) bool { return h.link == l })
}

// linkOf returns the link to the node that a client is for, nil when there is none.
func (n *nodes) linkOf(rdb *redis.Client) *link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byClient[rdb].link
}

// told is called after every transition of a node.
func (n *nodes) told(to State) {
	up, cause := n.anyUp()
	switch {
	case up && to == StateConnected:
		nudge(n.front.again)
	case !up:
		n.front.transition(StateReconnecting, CauseNoNode, "", cause, 0)
		n.front.attend()
	}
}

// anyUp reports whether a node is Connected, or else what is wrong with one.
func (n *nodes) anyUp() (bool, error) {
	cause := error(nil)
	for _, l := range n.all() {
		if State(l.now.Load()) == StateConnected {
			return true, nil
		}
		if state, _ := l.current(); state == StateReconnecting {
			cause = l.lastCause()
		}
	}
	return false, cause
}

// scout finds out whether the nodes of a client can serve.
type scout struct{ *nodes }

func (s scout) ping(bool) (verdict, error) {
	err := s.reload()
	s.front.despair(s.pointless(err))
	if err != nil {
		return dead, err
	}
	// It may be others than the nodes that tell the topology.
	if up, cause := s.anyUp(); !up {
		return dead, cmp.Or(cause, errors.New("no node answers yet"))
	}
	return alive, nil
}

// pointless reports whether err, why the topology is not known, is a mistake that waiting
// cannot cure. Of a cluster that there has been once it is none.
func (n *nodes) pointless(err error) bool {
	all := n.all()
	switch {
	case n.empty.Load():
		return true
	case err == nil:
		return false
	case n.ring:
		return len(all) == 0
	case n.toldSoFar() > 0:
		return false
	case isUnrouted(err) || err == errNoSentinels:
		return true
	}
	return len(all) > 0 && !slices.ContainsFunc(all, func(l *link) bool { return !l.rejects.Load() })
}

// isNoCluster reports whether a node says that it will not tell a topology, neither now
// nor later.
func isNoCluster(err error) bool {
	if !isReply(err) {
		return false
	}
	return redis.IsAuthError(err) || redis.IsPermissionError(err) || redis.HasErrorPrefix(err, "DENIED ") ||
		slices.ContainsFunc([]string{"This instance has cluster support disabled", "Cluster is disabled", "unknown command", "unknown subcommand"},
			func(words string) bool { return redis.HasErrorPrefix(err, words) })
}

func (scout) hurry(bool) {}
func (scout) drop()      {}
func (scout) close()     {}

// reload asks for the topology and sends those who wait for a node on their way when
// it has changed.
func (n *nodes) reload() error {
	ctx, cancel := context.WithTimeout(n.life, n.cfg.timeout)
	defer cancel()
	err := n.load(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loadedAt = time.Now()
	// go-redis may load it at the same time, and what it stores last be the older one.
	if changed := n.seen != n.acted; changed || n.changed {
		n.acted, n.changed = n.seen, changed
		n.proceedLocked()
	}
	return err
}

// refresh has the topology asked for, soon and by one goroutine. While no node
// answers that is under way anyhow.
func (n *nodes) refresh() {
	if State(n.front.now.Load()) != StateConnected {
		return // that is under way
	}
	n.mu.Lock()
	begin := !n.loading
	n.asked, n.loading = true, true
	n.mu.Unlock()
	if begin {
		n.spawn(n.keepLoading)
	}
}

func (n *nodes) keepLoading() {
	for {
		n.mu.Lock()
		if !n.asked || n.life.Err() != nil {
			n.loading = false
			n.mu.Unlock()
			return
		}
		n.asked = false
		wait := reloadSpacing - time.Since(n.loadedAt)
		n.mu.Unlock()
		if wait > 0 && !n.front.pause(early(wait)) {
			continue
		}
		if err := n.reload(); err != nil {
			n.front.noteCause(err)
			continue
		}
		n.leadStrays()
	}
}

// learn notes a topology that a node has told.
func (n *nodes) learn(slots []redis.ClusterSlot) {
	ranges := make([]string, len(slots))
	for i, s := range slots {
		ranges[i] = fmt.Sprint(s.Start, "-", s.End)
		for _, node := range s.Nodes {
			ranges[i] += " " + node.Addr
		}
	}
	slices.Sort(ranges)
	n.mu.Lock()
	n.answers++
	n.seen = strings.Join(ranges, "\n")
	n.mu.Unlock()
}

// toldSoFar counts the topologies that nodes have told.
func (n *nodes) toldSoFar() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.answers
}

// stray is a subscription that has to go to another node.
type stray struct {
	conn  *conn
	seen  string    // the topology that was known when it was told to
	since time.Time // when that was
}

// strayed has a subscription go to the node that has its slot now.
func (n *nodes) strayed(c *conn) {
	n.mu.Lock()
	n.strays = append(n.strays, stray{c, n.seen, time.Now()})
	n.mu.Unlock()
	n.refresh()
}

// leadStrays ends the connections of stray subscriptions when there is news of the
// topology, or has been none for a while: they subscribe anew, and go by the topology
// that go-redis knows then.
func (n *nodes) leadStrays() {
	var led []*conn
	n.mu.Lock()
	n.strays = slices.DeleteFunc(n.strays, func(s stray) bool {
		if s.seen == n.seen && time.Since(s.since) < strayPatience {
			return false
		}
		led = append(led, s.conn)
		return true
	})
	n.asked = n.asked || len(n.strays) > 0
	n.mu.Unlock()
	for _, c := range led {
		c.retire(errors.New("the slot of a subscription was moved"))
	}
}

// rerouted returns a channel that is closed when commands that wait for a node may
// find another.
func (n *nodes) rerouted() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.news
}

// proceed has commands that wait for a node look for it again.
func (n *nodes) proceed() {
	n.mu.Lock()
	n.proceedLocked()
	n.mu.Unlock()
}

func (n *nodes) proceedLocked() {
	close(n.news)
	n.news = make(chan struct{})
}

// stats returns a snapshot of the client: of the whole, and of each node.
func (n *nodes) stats() Stats {
	s := n.front.stats()
	for _, l := range n.all() {
		s.add(l.stats(), l.addr)
	}
	slices.SortFunc(s.Nodes, func(a, b NodeStats) int { return strings.Compare(a.Addr, b.Addr) })
	return s
}

// reconnect retires the connections to all nodes and has them dialed afresh.
func (n *nodes) reconnect(reason string) {
	n.front.transition(StateReconnecting, CauseReconnectCalled, reason, nil, 0)
	for _, l := range n.all() {
		l.reconnect(reason)
	}
	n.front.attend()
}
