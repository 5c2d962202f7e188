package redial

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/wire"
)

// The nodes of one client: their links, what topologies say of them, and what stands for the
// client as a whole, which is Connected while one of them is. It uses links, keepers and what
// is below them; what commands want of a node is in route.go.

// nodes are the nodes of one client, and what keeps its picture of them right.
type nodes struct {
	*keeper
	*topology
	loop   *loop                  // has the client as a whole reached
	ring   bool                   // its nodes know nothing of each other
	pinged bool                   // go-redis PINGs them one after the other, through their hooks
	tells  bool                   // whenever the topology is told, learn is called
	reader bool                   // go-redis may read from any node of a shard
	afar   bool                   // go-redis may read from replicas
	asks   int                    // see endpoint; 0: go-redis does so itself
	splits func(redis.Cmder) bool // whether go-redis sends parts of a command to several nodes
	// mistrust says that a node is not, or not any more, what it was named as.
	mistrust func(addr string)
	mistake  error // why nobody will ever name the nodes; nil: somebody may

	used   atomic.Bool // a caller has made use of the nodes
	empty  atomic.Bool // whoever was to name the nodes has named none
	inners innerParts  // behind hooks that were added to the client as a whole
	hooked atomic.Bool // there may be hooks at nodes

	attaching sync.Mutex // held while a client that exists already gets its hook

	mu       sync.Mutex
	byClient map[*redis.Client]*member // guarded by mu
}

// newNodes makes what stands for a client of several nodes: a state and a gate, without
// connections, and a loop that asks for the topology.
func newNodes(cfg *config, addr string) *nodes {
	n := &nodes{
		keeper:   newKeeper(cfg, addr),
		byClient: make(map[*redis.Client]*member),
		splits:   func(redis.Cmder) bool { return false },
		mistrust: func(string) {},
	}
	n.topology = newTopology(n.keeper)
	n.n.Generations.Add(1)
	n.whole = n
	n.loop = newLoop(n.gate, scout{n})
	n.gate.followers = append(n.gate.followers, n)
	return n
}

// followLocked goes by the state of the client as a whole.
func (n *nodes) followLocked(to State, _ error) func() {
	if to == StateReconnecting {
		n.n.Generations.Add(1)
	}
	return func() {
		if up, cause := n.anyUp(); to == StateConnected && !up { // the last one went meanwhile
			n.allDown(cause)
		}
	}
}

// peer returns the nodes as commands see them, before they know which.
func (n *nodes) peer() peer { return peer{n.gate, &anywhere, n} }

var anywhere endpoint // there is nothing to be said of all nodes

// react does what a refusal asks for beyond what the node it came from has done.
func (n *nodes) react(reply error) {
	if row, _ := refusalOf(reply); row != nil && row.topology {
		n.refresh()
	}
}

// What else commands want of a server, they have of the link to it.
func (n *nodes) rotate(error)   {}
func (n *nodes) troubled() bool { return false }
func (n *nodes) Watched() bool  { return false }

// RTT returns the longest round trip to any.
func (n *nodes) RTT() (longest time.Duration) {
	for _, l := range n.all() {
		longest = max(longest, l.RTT())
	}
	return longest
}

// onNewNode has f called for the nodes to come, behind whose hooks comes the inner part
// of ours. A caller who adds hooks before his first command wants them on every node,
// so f is called as well for nodes that only redial has made use of.
func (n *nodes) onNewNode(register func(func(*redis.Client)), f func(*redis.Client)) {
	n.hooked.Store(true)
	var called sync.Map
	hooked := func(rdb *redis.Client) {
		if _, again := called.LoadOrStore(rdb, true); again {
			return
		}
		n.lent(func() { f(rdb) })
		if m := n.memberOf(rdb); m != nil {
			m.hook.addInner(rdb)
		}
	}
	register(func(rdb *redis.Client) {
		returned := false
		defer func() {
			if !returned { // then go-redis drops the client
				n.drop(rdb)
			}
		}()
		hooked(rdb)
		returned = true
	})
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

// drop ends what belongs to the client of a node that go-redis does not keep.
func (n *nodes) drop(rdb *redis.Client) {
	m := n.memberOf(rdb)
	_ = rdb.Close()
	if m != nil {
		n.discard(m.guard)
	}
}

// lent runs f, code of the caller that go-redis calls with a lock held which Close needs. If
// f hangs it is left behind when supervision ends. A panic in f goes on here, and so does the
// end of its goroutine.
func (n *nodes) lent(f func()) {
	done := make(chan struct{})
	failure := errExited
	if !n.spawn(func() {
		defer close(done)
		failure = n.abroad(func() error { f(); return nil })
	}) {
		return
	}
	select {
	case <-done:
		if p, ok := failure.(*panicError); ok {
			panic(p.value)
		}
		if failure == errExited {
			runtime.Goexit()
		}
	case <-n.life.Done():
	}
}

// use notes that a caller has made use of the nodes.
func (n *nodes) use() {
	if !n.used.Load() {
		n.used.Store(true)
	}
}

// member is a node of the client, and the owner of the link to it.
type member struct {
	pool
	of         *nodes
	name       string // of the node, as topologies have it
	link       *link
	guard      *guard      // of the link
	hook       *hook       // ours, on its client
	unreadable error       // what package net says of its address, so that it is never reached; nil: it can be read
	rejects    atomic.Bool // it will not tell a topology, see isNoCluster
	built      atomic.Bool // go-redis has finished the client: it has sent something

	place place // guarded by mu of the nodes; among the others
}

func (m *member) isBuilt() {
	if !m.built.Load() {
		m.built.Store(true)
	}
}

// warm waits for that: before, go-redis writes to the client.
func (m *member) warm(ctx context.Context, lost int) bool {
	return m.built.Load() && m.pool.warm(ctx, lost)
}

// newMember builds the link to a node. The client of the node is yet to come, see enlist.
func (n *nodes) newMember(opt *redis.Options, quick, lends bool) *member {
	m := &member{of: n, name: opt.NodeAddress}
	addr := shownAddr(addrOf(opt.Addr))
	e := endpointOf(opt, n.cfg, true, lends)
	e.asks = n.asks
	m.link = newLink(newGate(n.base, addr, addr), e, m, pingerOf(opt, quick))
	m.guard = guarded(m.link)
	if m.unreadable = malformed(opt); m.unreadable != nil {
		m.guard.bar(m.unreadable)
	}
	return m
}

// enlist has a member watch over its client.
func (n *nodes) enlist(rdb *redis.Client, m *member) {
	m.is(rdb, &m.link.inflight, n.cfg.timeout, m.link)
	n.mu.Lock()
	n.byClient[rdb] = m
	m.place.best = n.last().footingOf(m.name, m.link.addr)
	n.mu.Unlock()
	n.add(m.guard)
	if n.ring && m.unreadable == nil && n.gate.hopeless() {
		n.gate.despair(false, nil)
	}
}

// memberOf returns the node that a client is for, nil when there is none.
func (n *nodes) memberOf(rdb *redis.Client) *member {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byClient[rdb]
}

// linkOf returns the link to that node, nil when there is none.
func (n *nodes) linkOf(rdb *redis.Client) *link {
	if m := n.memberOf(rdb); m != nil {
		return m.link
	}
	return nil
}

// learns notes what a topology says of the node.
func (m *member) learns(t layout) {
	heard, now := m.link.LastHeard(), m.link.clock.Read()
	m.of.mu.Lock()
	m.place.learns(t, t.footingOf(m.name, m.link.addr), heard, now)
	m.of.mu.Unlock()
	m.yield()
}

// yield gives up what leads to the node if it is silent, and was when another was said to
// have taken its place: it may not know of that yet, and nobody waits for what it has to
// say. A node that answers finishes what it works on.
func (m *member) yield() {
	m.of.mu.Lock()
	p := m.place
	m.of.mu.Unlock()
	l := m.link
	heard := l.LastHeard()
	if p.fell == 0 || l.Heard() || heard > p.fell || heard+int64(l.beat()) >= p.told {
		return
	}
	l.mu.Lock()
	down := l.state == StateReconnecting && l.why != CauseNotReady
	l.mu.Unlock()
	if !down {
		return
	}
	m.of.mu.Lock()
	first := m.place == p
	if first {
		m.place = place{}
	}
	m.of.mu.Unlock()
	if first {
		l.abandon(errors.New("another node has taken the place of " + l.addr))
	}
}

// changed has the client as a whole go by its nodes.
func (m *member) changed(to State) {
	n := m.of
	if to == StateReconnecting {
		m.yield()
	}
	up, cause := n.anyUp()
	switch {
	case up && to == StateConnected:
		nudge(n.loop.again)
	case !up:
		n.allDown(cause)
		n.gate.tend()
	}
}

// allDown has the client as a whole go by it that no node is Connected. What became of
// commands since the first of them was suspected, if they went together, belongs to the
// outage of the whole.
func (n *nodes) allDown(cause error) {
	first := n.tally()
	for _, l := range n.all() {
		if at, ok := l.suspectedAt(time.Now().Add(-n.cfg.detection())); ok && at.unknown <= first.unknown {
			first = at
		}
	}
	n.gate.suspect(first)
	n.gate.transition(StateReconnecting, CauseNoNode, "", cause, 0)
}

func (m *member) lookElsewhere() {
	m.of.mistrust(m.link.addr)
	m.of.refresh()
}

func (m *member) lookAround()          { m.of.refresh() }
func (m *member) where() string        { return "" }
func (m *member) strayed(c *wire.Conn) { m.of.strayed(c) }

// dismissed has the client of the node forgotten.
func (m *member) dismissed() {
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	maps.DeleteFunc(m.of.byClient, func(_ *redis.Client, other *member) bool { return other == m })
}

// anyUp reports whether a node is Connected, or else what is wrong with one.
func (n *nodes) anyUp() (bool, error) {
	cause := error(nil)
	for _, l := range n.all() {
		if l.now() == StateConnected {
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

func (s scout) attempt(bool) (verdict, error) {
	s.urge()
	err := s.reload()
	up, cause := s.anyUp()
	// It may be others than the nodes that tell the topology, and who is asked may hang. Then
	// go-redis goes by what was told last.
	if up && s.toldSoFar() > 0 && (s.named || err == errUntold) {
		err = nil
	}
	s.gate.despair(s.pointless(err))
	switch {
	case !up && (err == nil || err == errUntold):
		return dead, cmp.Or(cause, err, error(notYet("no node answers yet")))
	case err != nil:
		return dead, err
	}
	return alive, nil
}

// urge has the nodes tried soon where commands want the client as a whole: they come to none
// of them. One that is not being tried is left alone, for perhaps nobody uses it.
func (s scout) urge() {
	if !s.loop.hurry && !s.gate.awaited() {
		return
	}
	for _, l := range s.all() {
		l.want()
	}
}

func (scout) dueLocked() bool                  { return false } // the nodes say when none is up any more
func (scout) check() bool                      { return false }
func (scout) reached() string                  { return "" }
func (s scout) unreached(_ verdict, err error) { s.gate.noteCause(err) }

// pointless reports whether err, why the topology is not known, is a mistake that waiting
// cannot cure, and which if nobody will name other nodes. Of a cluster that there has been once
// it is none.
func (n *nodes) pointless(err error) (yes bool, words error) {
	all, words := n.allReject()
	switch {
	case n.empty.Load():
		return true, nil
	case err == nil:
		return false, nil
	case n.ring:
		return all, words
	case n.toldSoFar() > 0:
		return false, nil
	case isUnrouted(err), err == n.mistake:
		return true, err
	case len(n.all()) > 0 && all:
		if words == nil && isNoCluster(err) { // else it is not what the nodes said
			words = err
		}
		return true, words
	}
	return false, nil
}

// allReject reports whether there is no node that could ever serve, or would tell a topology,
// and what is wrong with the address of one.
func (n *nodes) allReject() (yes bool, words error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.byClient {
		if m.unreadable == nil && !m.rejects.Load() {
			return false, nil
		}
		words = cmp.Or(m.unreadable, words)
	}
	return true, words
}

// isNoCluster reports whether a node says that it will not tell a topology, neither now
// nor later.
func isNoCluster(err error) bool {
	if !isReply(err) {
		return isUnsupported(err)
	}
	return redis.IsAuthError(err) || redis.IsPermissionError(err) || redis.HasErrorPrefix(err, "DENIED ") ||
		slices.ContainsFunc([]string{"This instance has cluster support disabled", "Cluster is disabled", "unknown command", "unknown subcommand"},
			func(words string) bool { return redis.HasErrorPrefix(err, words) })
}

// learn notes a topology that was told, by the node at origin if that is not "".
func (n *nodes) learn(slots []redis.ClusterSlot, origin string) {
	t := n.note(slots, origin)
	if len(slots) > 0 && n.gate.hopeless() {
		n.gate.despair(false, nil)
	}
	n.mu.Lock()
	members := slices.Collect(maps.Values(n.byClient))
	n.mu.Unlock()
	for _, m := range members {
		m.learns(t)
	}
}

// stats returns a snapshot of the client: of the whole, and of each node.
func (n *nodes) stats() Stats {
	s := n.gate.stats()
	for _, l := range n.all() {
		s.add(l.stats(), l.addr)
	}
	s.Nodes = oneEach(s.Nodes)
	return s
}

// reconnect retires the connections to all nodes and has them dialed afresh.
func (n *nodes) reconnect(reason string) {
	n.gate.transition(StateReconnecting, CauseReconnectCalled, reason, nil, 0)
	for _, l := range n.all() {
		l.reconnect(reason)
	}
	n.gate.tend()
}
