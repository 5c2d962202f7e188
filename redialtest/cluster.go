package redialtest

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	failoverGivesUp    = 6 * time.Second // when a planned failover that was asked of a node has failed
	clusterNodeTimeout = "1000"          // milliseconds without an answer until a node counts as failing
	clusterSlots       = 16384
	nodesFile          = "nodes.conf" // in the directory of a node: what it knows of the others
)

// Cluster is a Redis Cluster of real processes on loopback, whose nodes take one
// that does not answer for a second for dead. Make one with [StartCluster] or,
// outside tests, [LaunchCluster].
//
// A primary and its replicas stay together, and serve the same slots, whichever of
// them is the primary at the moment; moving slots between primaries is not foreseen
// here. Killing, starting, freezing and thawing a node works as for any [Server]; a
// node keeps its identity and what it knows of the others over a restart. Mind that
// a primary that restarts before its replica has been promoted comes back empty,
// unless it persists, and makes its replicas forget, too.
//
// Its methods fail the test, or panic when it came from LaunchCluster, if nodes do
// not come to do what they promise.
type Cluster struct {
	// Nodes are first the primaries, as they were at the start, and then, for each
	// primary in turn, one replica, and so on. The list is read-only.
	Nodes []*Server

	owner
	primaries int      // how many there are; read-only
	ids       []string // of Nodes, by the same index; read-only
	proxies   []*Proxy // in front of Nodes, by the same index; nil without AddProxies
}

// StartCluster starts a cluster and returns when every node serves: all slots are
// covered, every node says so, and all replicas follow. For a replica to be promoted
// a majority of the primaries must live, so three primaries are the least with which
// one may die. args are appended to the command line of every node. It skips or
// fails the test like [StartServer].
func StartCluster(tb testing.TB, primaries, replicasPerPrimary int, args ...string) *Cluster {
	tb.Helper()
	return start(tb, func() (*Cluster, error) { return launchCluster(tb, primaries, replicasPerPrimary, args) })
}

// LaunchCluster is [StartCluster] for a program, as [LaunchServer] is StartServer:
// the caller must Close it.
func LaunchCluster(primaries, replicasPerPrimary int, args ...string) (*Cluster, error) {
	return launchCluster(nil, primaries, replicasPerPrimary, args)
}

func launchCluster(tb testing.TB, primaries, replicasPerPrimary int, args []string) (_ *Cluster, err error) {
	c := &Cluster{owner: owner{tb}, primaries: primaries}
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	args = slices.Concat([]string{
		"--cluster-enabled", "yes",
		"--cluster-node-timeout", clusterNodeTimeout,
		"--cluster-replica-validity-factor", "0", // however old its data, a replica takes over
		"--cluster-allow-replica-migration", "no", // they stay with their primary
		"--repl-diskless-sync-delay", "0",
		"--repl-ping-replica-period", "1", // nodes list a replica once its offset has moved
	}, args, []string{"--cluster-config-file", nodesFile})
	for range primaries * (1 + replicasPerPrimary) {
		s, err := newServer(tb, args)
		if err != nil {
			return nil, err
		}
		s.kind = kindNode
		c.Nodes, c.ids = append(c.Nodes, s), append(c.ids, nodeID())
	}
	return c, c.start()
}

// clusterInfo is what CLUSTER INFO says, by name.
func (s *Server) clusterInfo() (map[string]string, error) {
	reply, err := s.do("CLUSTER", "INFO")
	fields := make(map[string]string)
	for line := range strings.Lines(fmt.Sprint(reply)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields[name] = value
	}
	return fields, err
}

// slots returns the first and the last slot that Nodes[node] or its primary serves.
func (c *Cluster) slots(node int) (first, last int) {
	part := node % c.primaries
	return part * clusterSlots / c.primaries, (part+1)*clusterSlots/c.primaries - 1
}

// Addrs returns the addresses of all nodes that clients should dial: those of the
// proxies, if there are any.
func (c *Cluster) Addrs() []string {
	if c.proxies == nil {
		return addrs(c.Nodes)
	}
	var list []string
	for _, p := range c.proxies {
		list = append(list, p.Addr())
	}
	return list
}

// NodeFor returns the primary that serves the key, according to a node that runs.
// It goes on naming a primary that died until a replica is promoted: see
// [Cluster.Promoted].
func (c *Cluster) NodeFor(key string) *Server {
	c.helper()
	var errs []error
	for _, s := range c.Nodes {
		if !s.running() {
			continue
		}
		slot, err := s.do("CLUSTER", "KEYSLOT", key)
		if err == nil {
			n, _ := slot.(int64)
			return c.ask(int(n))
		}
		errs = append(errs, err)
	}
	c.fatal(errors.Join(append(errs, errors.New("redialtest: no node of the cluster answers"))...))
	return nil
}

// PrimaryOf returns the primary that serves the slots of a node, which is the node
// itself if it is a primary. Otherwise it does as [Cluster.NodeFor].
func (c *Cluster) PrimaryOf(s *Server) *Server {
	c.helper()
	first, _ := c.slots(c.index(s))
	return c.ask(first)
}

// ReplicasOf returns all nodes that serve the same slots as s, running or not,
// except [Cluster.PrimaryOf] it.
func (c *Cluster) ReplicasOf(s *Server) (replicas []*Server) {
	c.helper()
	part, primary := c.index(s)%c.primaries, c.PrimaryOf(s)
	for i, other := range c.Nodes {
		if i%c.primaries == part && other != primary {
			replicas = append(replicas, other)
		}
	}
	return replicas
}

// Promoted waits until a node other than old serves its slots and every other
// running node knows, and returns the new primary. It does not matter whether the
// promotion is still to come or long done.
func (c *Cluster) Promoted(old *Server) *Server {
	c.helper()
	node := c.index(old)
	var next *Server
	err := await("a replica to be promoted", func() (_ bool, err error) {
		next, err = c.agree(node, old)
		return next != nil && next != old, err
	})
	if err != nil {
		c.fatal(err)
	}
	return next
}

// Failover makes a replica the primary as an operator would, without loss, and
// returns when it is, every running node knows, and the old primary follows it.
func (c *Cluster) Failover(replica *Server) {
	c.helper()
	node := c.index(replica)
	var asked time.Time
	err := await("the replica to become the primary", func() (bool, error) {
		if time.Since(asked) > failoverGivesUp {
			// Nodes do not vote twice for the same shard within a short time.
			asked = time.Now()
			replica.Do("CLUSTER", "FAILOVER")
		}
		next, err := c.agree(node, nil)
		return next == replica, err
	})
	if err == nil {
		err = c.settle()
	}
	if err != nil {
		c.fatal(err)
	}
}

// Settle waits until all is well among the nodes that run: they serve, name the same
// primaries, and the others follow and are listed as replicas.
func (c *Cluster) Settle() {
	c.helper()
	if err := c.settle(); err != nil {
		c.fatal(err)
	}
}

func (c *Cluster) settle() error {
	next := 0 // to be looked at; the one that was not ready is the first the next time
	return await("the cluster to settle", func() (bool, error) {
		agreed := make([]*Server, c.primaries)
		for range c.Nodes {
			if ok, err := c.settled(next, agreed); !ok || err != nil {
				return false, err
			}
			next = (next + 1) % len(c.Nodes)
		}
		return true, nil
	})
}

// settled tells whether Nodes[node], if it runs, serves, names the primaries that others do,
// by the part that they serve, lists all others that run, and follows if it is none.
func (c *Cluster) settled(node int, agreed []*Server) (bool, error) {
	s := c.Nodes[node]
	if !s.running() {
		return true, nil
	}
	parts, err := c.view(s)
	if parts == nil || err != nil {
		return false, err
	}
	for i, other := range c.Nodes {
		part := i % c.primaries
		if !other.running() {
			continue
		}
		if !slices.Contains(parts[part], other) || agreed[part] != nil && agreed[part] != parts[part][0] {
			return false, nil
		}
		agreed[part] = parts[part][0]
	}
	if agreed[node%c.primaries] == s {
		return true, nil
	}
	return s.follows()
}

// AddProxies puts a proxy in front of every node, which all nodes announce to
// clients from then on, and returns the proxies in the order of Nodes. Clients made
// from [Cluster.Addrs] later go through them only. So does replication, but not what
// keeps the nodes together: a node that hangs for clients is not replaced. Call it before
// several goroutines use the cluster.
func (c *Cluster) AddProxies() []*Proxy {
	c.helper()
	if c.proxies == nil {
		if err := c.addProxies(); err != nil {
			c.fatal(err)
		}
	}
	return slices.Clone(c.proxies)
}

func (c *Cluster) addProxies() error {
	fail := func(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
	if c.tb != nil {
		fail = c.tb.Errorf
	}
	var ports []string
	for _, s := range c.Nodes {
		p, err := startProxy("127.0.0.1:0", s.Addr(), fail)
		if err != nil {
			return err
		}
		c.proxies = append(c.proxies, p) // closed by Close
		_, port, _ := net.SplitHostPort(p.Addr())
		ports = append(ports, port)
		if err := s.announceAs(port); err != nil {
			return err
		}
	}
	err := await("the nodes to announce their proxies", func() (bool, error) {
		for _, s := range c.Nodes {
			known, err := s.do("CLUSTER", "NODES")
			if err != nil {
				return false, err
			}
			for _, port := range ports {
				if !strings.Contains(fmt.Sprint(known), " 127.0.0.1:"+port+"@") {
					return false, nil
				}
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	return c.settle() // replicas dial anew
}

// announceAs makes a node tell others a port that is not its own, also after a
// restart.
func (s *Server) announceAs(port string) error {
	_, err := s.do("CONFIG", "SET", "cluster-announce-port", port)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announce, _ = strconv.Atoi(port)
	return err
}

// ProxyOf returns the proxy in front of a node, or nil without [Cluster.AddProxies].
func (c *Cluster) ProxyOf(s *Server) *Proxy {
	c.helper()
	if i := c.index(s); c.proxies != nil {
		return c.proxies[i]
	}
	return nil
}

// Close kills every process, removes their directories, and closes the proxies. It
// is idempotent. What was started for a test is closed by its Cleanup.
func (c *Cluster) Close() error {
	for _, p := range c.proxies {
		_ = p.Close()
	}
	return closeAll(c.Nodes)
}

// index returns the place of s among the nodes.
func (c *Cluster) index(s *Server) int {
	c.helper()
	i := slices.Index(c.Nodes, s)
	if i < 0 {
		c.fatal(errors.New("redialtest: the server is not a node of the cluster"))
	}
	return i
}

// ask returns the primary that serves a slot according to the first node that
// answers.
func (c *Cluster) ask(slot int) *Server {
	c.helper()
	var errs []error
	for _, s := range c.Nodes {
		if !s.running() {
			continue
		}
		named, err := c.serving(s, slot)
		if len(named) > 0 {
			return named[0]
		}
		errs = append(errs, err)
	}
	c.fatal(errors.Join(append(errs, fmt.Errorf("redialtest: no running node of the cluster knows who serves slot %d", slot))...))
	return nil
}

// agree returns the primary that serves the slots of Nodes[node], if all running
// nodes but except name the same one and serve themselves, or else nil.
func (c *Cluster) agree(node int, except *Server) (*Server, error) {
	var agreed *Server
	for _, s := range c.Nodes {
		if s == except || !s.running() {
			continue
		}
		parts, err := c.view(s)
		if parts == nil || err != nil {
			return nil, err
		}
		named := parts[node%c.primaries]
		if len(named) == 0 || agreed != nil && named[0] != agreed {
			return nil, nil
		}
		agreed = named[0]
	}
	return agreed, nil
}

// view returns who serves each part of the slots according to s, the primary first, or
// nothing where it knows of none or of several; nil if s does not serve itself.
func (c *Cluster) view(s *Server) (parts [][]*Server, _ error) {
	info, err := s.clusterInfo()
	if err != nil || info["cluster_state"] != "ok" {
		return nil, err
	}
	ranges, err := s.do("CLUSTER", "SLOTS")
	if err != nil {
		return nil, err
	}
	for part := range c.primaries {
		first, last := c.slots(part)
		named, others := c.servers(ranges, first), c.servers(ranges, last)
		if len(named) > 0 && (len(others) == 0 || others[0] != named[0]) {
			named = nil
		}
		parts = append(parts, named)
	}
	return parts, nil
}

// serving returns the nodes that serve a slot according to s, the primary first, or
// nothing if s knows none.
func (c *Cluster) serving(s *Server, slot int) ([]*Server, error) {
	ranges, err := s.do("CLUSTER", "SLOTS")
	return c.servers(ranges, slot), err
}

// servers is what a reply to CLUSTER SLOTS says about a slot.
func (c *Cluster) servers(ranges any, slot int) (nodes []*Server) {
	list, _ := ranges.([]any)
	for _, r := range list {
		// The first slot, the last, then the nodes, each as host, port, ID.
		r, _ := r.([]any)
		if len(r) < 3 {
			continue
		}
		first, _ := r[0].(int64)
		last, _ := r[1].(int64)
		if int64(slot) < first || int64(slot) > last {
			continue
		}
		for _, n := range r[2:] {
			if n, _ := n.([]any); len(n) > 2 {
				if i := slices.Index(c.ids, fmt.Sprint(n[2])); i >= 0 {
					nodes = append(nodes, c.Nodes[i])
				}
			}
		}
	}
	return nodes
}
