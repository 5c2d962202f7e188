package redialtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redial-go/redial/internal/testkit/platform"
)

// bareCluster is [bare] for a cluster.
func bareCluster(t *testing.T, addrs []string) *redis.ClusterClient {
	t.Helper()
	rdb := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs:                    addrs,
		MaxRedirects:             3,
		DialerRetries:            1,
		ContextTimeoutEnabled:    true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// onePerPrimary returns a key for each primary.
func onePerPrimary(t *testing.T, c *Cluster) map[*Server]string {
	t.Helper()
	keys := make(map[*Server]string)
	for i := 0; len(keys) < c.primaries; i++ {
		key := fmt.Sprint("key", i)
		keys[c.NodeFor(key)] = key
	}
	return keys
}

func TestCluster_Start_ServesEveryKeyAtOnce(t *testing.T) {
	Leaks(t)
	c := StartCluster(t, 3, 1)
	if len(c.Nodes) != 6 || len(c.Addrs()) != 6 {
		t.Fatalf("%d nodes with addresses %v, want 6", len(c.Nodes), c.Addrs())
	}
	for node, key := range onePerPrimary(t, c) {
		if got := node.Do("SET", key, "v"); got != "OK" {
			t.Errorf("SET of a key on its primary = %v", got)
		}
		if c.PrimaryOf(node) != node || !slices.Contains(c.Nodes[:3], node) {
			t.Errorf("%s serves keys and is no primary", node.Addr())
		}
		replicas := c.ReplicasOf(node)
		if len(replicas) != 1 || c.PrimaryOf(replicas[0]) != node {
			t.Fatalf("%s has replicas %v", node.Addr(), addrs(replicas))
		}
		if got := node.Do("WAIT", 1, 1000); got != int64(1) {
			t.Errorf("WAIT = %v, want the replica", got)
		}
	}
	rdb := bareCluster(t, c.Addrs()[5:])
	for i := range 100 {
		if err := rdb.Set(t.Context(), fmt.Sprint(i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCluster_KillPrimary_ReplicaTakesOverAndTheOldOneFollows(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, 3, 1)
	old := c.NodeFor("key")
	replica := c.ReplicasOf(old)[0]
	id := old.Do("CLUSTER", "MYID")
	old.Do("SET", "key", "v")
	if got := old.Do("WAIT", 1, 1000); got != int64(1) {
		t.Fatalf("WAIT = %v, want the replica", got)
	}

	old.Kill()
	killed := time.Now()
	next := c.Promoted(old)
	t.Logf("promoted after %v", time.Since(killed).Round(10*time.Millisecond))
	if next != replica || c.NodeFor("key") != replica || c.PrimaryOf(old) != replica {
		t.Fatalf("promoted %s, serving %s, want %s", next.Addr(), c.NodeFor("key").Addr(), replica.Addr())
	}
	if got := next.Do("GET", "key"); got != "v" {
		t.Fatalf("GET on the new primary = %v", got)
	}

	old.Start()
	c.Settle()
	if got := old.Do("CLUSTER", "MYID"); got != id {
		t.Fatalf("restarted as %v, was %v", got, id)
	}
	if got := old.Do("ROLE").([]any); got[0] != "slave" {
		t.Fatalf("the old primary is a %v", got[0])
	}
	if got := c.Promoted(old); got != replica { // long done
		t.Fatalf("%s is the primary, want %s", got.Addr(), replica.Addr())
	}

	c.Failover(old)
	if c.NodeFor("key") != old || c.PrimaryOf(replica) != old {
		t.Fatalf("%s serves after a planned failover, want %s", c.NodeFor("key").Addr(), old.Addr())
	}
	if got := old.Do("GET", "key"); got != "v" {
		t.Fatalf("GET after a planned failover = %v", got)
	}
}

func TestCluster_FreezePrimary_ReplicaTakesOver(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, 3, 1)
	old := c.NodeFor("key")
	old.Freeze()
	next := c.Promoted(old)
	if next == old {
		t.Fatal("the frozen node is still the primary")
	}
	old.Thaw()
	c.Settle()
	if c.PrimaryOf(old) != next {
		t.Fatalf("%s is the primary after the thaw, want %s", c.PrimaryOf(old).Addr(), next.Addr())
	}
}

func TestCluster_AddProxies_ClientsGoThroughThemOnly(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, 3, 1)
	if c.ProxyOf(c.Nodes[0]) != nil {
		t.Fatal("a proxy nobody asked for")
	}
	proxies := c.AddProxies()
	if len(proxies) != 6 || c.Addrs()[2] != proxies[2].Addr() {
		t.Fatalf("%d proxies, addresses %v", len(proxies), c.Addrs())
	}
	keys := onePerPrimary(t, c)
	rdb := bareCluster(t, c.Addrs()[5:])
	value := strings.Repeat("v", 100_000) // more than replicas say to their primary
	for node, key := range keys {
		before := c.ProxyOf(node).Stats().BytesUp
		if err := rdb.Set(t.Context(), key, value, 0).Err(); err != nil {
			t.Fatal(err)
		}
		// It is counted when it has been passed on, and may be answered before that.
		eventually(t, "a command for "+node.Addr()+" goes through its proxy", func() bool { return c.ProxyOf(node).Stats().BytesUp >= before+int64(len(value)) })
	}

	// A black hole for clients is none for the nodes among themselves.
	hole := c.NodeFor("key")
	c.ProxyOf(hole).Hang()
	for node, key := range keys {
		err := rdb.Get(within(t, 2500*time.Millisecond), key).Err() // longer than nodes wait for each other
		if gone := errors.Is(err, context.DeadlineExceeded); gone != (node == hole) {
			t.Errorf("GET from %s with %s in a hole: %v", node.Addr(), hole.Addr(), err)
		}
	}
	if c.NodeFor("key") != hole {
		t.Error("a node that only clients cannot reach was replaced")
	}
	c.ProxyOf(hole).Restore()
	if err := rdb.Get(within(t, 5*time.Second), keys[hole]).Err(); err != nil {
		t.Errorf("GET after the hole: %v", err)
	}

	// What nodes announce outlives a restart.
	c.Nodes[3].Kill()
	c.Nodes[3].Start()
	c.Settle()
	primary := c.PrimaryOf(c.Nodes[3])
	if err := bareCluster(t, []string{proxies[3].Addr()}).Get(t.Context(), keys[primary]).Err(); err != nil {
		t.Error(err)
	}
	for _, p := range c.ReplicasOf(primary) {
		if p.Do("ROLE").([]any)[2] == int64(primary.port) {
			t.Error("a replica follows past the proxy, so its primary does not announce it")
		}
	}
}

func TestStartCluster_NoBinary_SkipsUnlessRequired(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv(serverVariable, "")
	for require, want := range map[string]string{"": "skipped", "1": "failed"} {
		t.Setenv(requireRedis, require)
		for name, begin := range map[string]func(*skipRecorder){
			"StartCluster":  func(r *skipRecorder) { StartCluster(r, 3, 1) },
			"StartFailover": func(r *skipRecorder) { StartFailover(r, 1, 3) },
		} {
			r := &skipRecorder{TB: t}
			done := make(chan struct{})
			go func() {
				defer close(done)
				begin(r)
			}()
			<-done
			if (r.skipped != "") != (want == "skipped") || (r.failed != "") != (want == "failed") {
				t.Errorf("%s with %s=%q: skipped %q, failed %q, want %s", name, requireRedis, require, r.skipped, r.failed, want)
			}
		}
	}
	if _, err := LaunchCluster(3, 1); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("LaunchCluster: %v, want exec.ErrNotFound", err)
	}
	if _, err := LaunchFailover(1, 3); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("LaunchFailover: %v, want exec.ErrNotFound", err)
	}
}

func TestLaunchCluster_Close_KillsEveryNode(t *testing.T) {
	Leaks(t)
	c, err := LaunchCluster(3, 0)
	if errors.Is(err, exec.ErrNotFound) {
		Skip(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.AddProxies()
	for range 2 { // idempotent
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range c.Nodes {
		if s.running() {
			t.Errorf("%s still runs", s.Addr())
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("asking a closed cluster outside a test must panic")
		}
	}()
	c.NodeFor("key")
}

func TestLaunchCluster_BadArgument_ReportsTheServersOwnWords(t *testing.T) {
	Leaks(t)
	if _, err := findServer(); err != nil {
		Skip(t, err)
	}
	_, err := LaunchCluster(3, 1, "--no-such-directive", "1")
	if err == nil || !strings.Contains(err.Error(), "no-such-directive") {
		t.Fatalf("error = %v", err)
	}
}

// Primaries that share an epoch may both own a slot that is moved.
func TestCluster_Start_EveryPrimaryHasAnEpochOfItsOwn(t *testing.T) {
	if _, err := findServer(); err != nil {
		Skip(t, err)
	}
	const together = 2
	for range platform.Times(5, 1) {
		var all sync.WaitGroup
		for replicas := range together { // so that they are held up
			all.Go(func() {
				c, err := LaunchCluster(3, replicas)
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = c.Close() }()
				want := epochs(c.Nodes[0])
				if own := []string{want[c.ids[0]], want[c.ids[1]], want[c.ids[2]]}; own[0] == own[1] || own[0] == own[2] || own[1] == own[2] {
					t.Errorf("the primaries have epochs %v", own)
				}
				for _, s := range c.Nodes {
					if got := epochs(s); len(got) != len(c.Nodes) || !maps.Equal(got, want) {
						t.Errorf("%s knows epochs %v, another %v", s.Addr(), got, want)
					}
				}
			})
		}
		all.Wait()
	}
}

// epochs returns what a node says of the epoch of each node, by its ID.
func epochs(s *Server) map[string]string {
	found := make(map[string]string)
	for line := range strings.Lines(fmt.Sprint(s.Do("CLUSTER", "NODES"))) {
		// ID, address, flags, primary, ping, pong, epoch, ...
		fields := strings.Fields(line)
		found[fields[0]] = fields[6]
	}
	return found
}
