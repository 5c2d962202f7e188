package redialtest

// How the nodes of a cluster start: from files that say who they are, so that nobody has to
// be introduced to anybody, and in an order that leaves no doubt about who has what.

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// nodeID returns a new identity of a node.
func nodeID() string {
	id := make([]byte, 20)
	_, _ = rand.Read(id) // never fails
	return hex.EncodeToString(id)
}

// start starts nodes that know each other. A primary that starts waits 2 s before it serves,
// a replica does not, and goes on when it becomes one. So all start as replicas, of founders
// that are in their files alone and have no address, so that nobody misses them, and from
// which the primaries take over.
func (c *Cluster) start() (err error) {
	var founders []string
	for range c.primaries {
		founders = append(founders, nodeID())
	}
	// As in Server.launch another process may take a port.
	for range serverPorts {
		if err = c.exec(founders); err == nil || !strings.Contains(err.Error(), "in use") {
			break
		}
		for _, s := range c.Nodes {
			if s.proc != nil {
				s.proc.Kill()
			}
		}
	}
	if err == nil {
		err = c.takeOver()
	}
	if err == nil {
		err = c.forget(founders)
	}
	if err == nil {
		err = c.settle()
	}
	return err
}

// takeOver has the first nodes become primaries, one after the other: a node that takes over
// counts on from the highest epoch that it has heard of, and primaries that share one may both
// own a slot that is moved before they have sorted that out.
func (c *Cluster) takeOver() error {
	heard := 0
	for _, s := range c.Nodes[:c.primaries] {
		err := await("a node to serve, and to hear of the primaries", func() (bool, error) {
			info, err := s.clusterInfo()
			epoch, _ := strconv.Atoi(info["cluster_current_epoch"])
			return info["cluster_state"] == "ok" && epoch >= heard, err
		})
		if err != nil {
			return err
		}
		if _, err := s.do("CLUSTER", "FAILOVER", "TAKEOVER"); err != nil {
			return err
		}
		info, err := s.clusterInfo()
		if err != nil {
			return err
		}
		heard, _ = strconv.Atoi(info["cluster_my_epoch"])
	}
	return nil
}

// exec has all nodes run, on free ports.
func (c *Cluster) exec(founders []string) (err error) {
	for _, s := range c.Nodes {
		if s.port, err = freePort(); err == nil {
			s.busPort, err = freePort()
		}
		if err != nil {
			return fmt.Errorf("redialtest: %w", err)
		}
	}
	for i, s := range c.Nodes {
		if err := os.WriteFile(filepath.Join(s.dir, nodesFile), []byte(c.conf(i, founders)), 0o600); err != nil {
			return fmt.Errorf("redialtest: %w", err)
		}
	}
	for _, s := range c.Nodes {
		if err := s.exec(); err != nil {
			return err
		}
	}
	for _, s := range c.Nodes {
		if err := s.waitReady(s.proc); err != nil {
			return err
		}
	}
	return nil
}

// conf is what Nodes[self] knows of the cluster when it starts.
func (c *Cluster) conf(self int, founders []string) string {
	var b strings.Builder
	for i, id := range founders {
		first, last := c.slots(i)
		fmt.Fprintf(&b, "%s :0@0 master,noaddr - 0 0 %d disconnected %d-%d\n", id, i+1, first, last)
	}
	for i, s := range c.Nodes {
		myself := ""
		if i == self {
			myself = "myself,"
		}
		part := i % c.primaries
		fmt.Fprintf(&b, "%s 127.0.0.1:%d@%d %sslave %s 0 0 0 connected\n", c.ids[i], s.port, s.busPort, myself, founders[part])
	}
	fmt.Fprintf(&b, "vars currentEpoch %d lastVoteEpoch 0\n", c.primaries)
	return b.String()
}

// forget has all nodes forget the founders, each as soon as it does not need them.
func (c *Cluster) forget(founders []string) error {
	for i, s := range c.Nodes {
		err := await("a node to know the primaries", func() (bool, error) {
			parts, err := c.view(s)
			for part, named := range parts {
				if len(named) == 0 || named[0] != c.Nodes[part] {
					return false, nil
				}
			}
			if parts == nil || err != nil || i < c.primaries {
				return parts != nil, err
			}
			return s.follows()
		})
		if err != nil {
			return err
		}
		for _, id := range founders {
			if _, err := s.do("CLUSTER", "FORGET", id); err != nil {
				return err
			}
		}
	}
	// Nodes list a replica once its offset has moved, for which this is enough.
	for _, s := range c.Nodes[:c.primaries] {
		if _, err := s.do("FLUSHALL"); err != nil {
			return err
		}
	}
	return nil
}
