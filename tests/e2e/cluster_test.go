package e2e

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/internal/testkit/pools"
	"github.com/redial-go/redial/redialtest"
)

// flow is a load on one key, and what became of it.
type flow struct {
	key  string
	node *redialtest.Server // that has the key at the start

	acknowledged, unknown, unavailable atomic.Int64
	lastSuccess                        atomic.Int64
	strange                            atomic.Pointer[error]
	replies                            testkit.Replies
	mu                                 sync.Mutex
	took                               []time.Duration // guarded by mu
}

// flows are loads on keys of every shard.
type flows struct {
	all  []*flow
	quit context.CancelFunc
	wg   sync.WaitGroup
}

// startFlows has several goroutines for each primary increment a key of their own.
func startFlows(t *testing.T, c redis.UniversalClient, cluster *redialtest.Cluster, perNode int, pause time.Duration) *flows {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &flows{quit: cancel}
	count := make(map[*redialtest.Server]int)
	for i := 0; len(f.all) < 3*perNode; i++ {
		key := fmt.Sprint("flow:", i)
		node := cluster.NodeFor(key)
		if count[node]++; count[node] <= perNode {
			f.all = append(f.all, &flow{key: key, node: node})
		}
	}
	for _, one := range f.all {
		f.wg.Go(func() {
			for ctx.Err() == nil {
				one.step(c)
				time.Sleep(pause)
			}
		})
	}
	t.Cleanup(f.stop)
	return f
}

func (f *flows) stop() {
	f.quit()
	f.wg.Wait()
}

func (f *flow) step(c redis.UniversalClient) {
	began := time.Now()
	n, err := c.Incr(context.Background(), f.key).Result()
	f.mu.Lock()
	f.took = append(f.took, time.Since(began))
	f.mu.Unlock()
	switch {
	case err == nil:
		f.acknowledged.Add(1)
		f.replies.Add(began, n)
		f.lastSuccess.Store(time.Now().UnixNano())
	case errors.Is(err, redial.ErrOutcomeUnknown):
		f.unknown.Add(1)
	case errors.Is(err, redial.ErrUnavailable):
		f.unavailable.Add(1)
	default:
		f.strange.CompareAndSwap(nil, &err)
	}
}

// on returns the flows of one node, or those of all others.
func (f *flows) on(node *redialtest.Server, is bool) (list []*flow) {
	for _, one := range f.all {
		if (one.node == node) == is {
			list = append(list, one)
		}
	}
	return list
}

// took returns the 99th percentile of the latencies since the last call.
func p99(list []*flow) time.Duration {
	var all []time.Duration
	for _, one := range list {
		one.mu.Lock()
		all = append(all, one.took...)
		one.took = nil
		one.mu.Unlock()
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}

func firstSuccess(t *testing.T, list []*flow, since time.Time) time.Duration {
	t.Helper()
	first := time.Duration(-1)
	require.Eventually(t, func() bool {
		for _, one := range list {
			if at := time.Unix(0, one.lastSuccess.Load()); at.After(since) {
				first = at.Sub(since)
				return true
			}
		}
		return false
	}, 20*time.Second, time.Millisecond)
	return first
}

// check stops the flows and compares what ran with what was said. When a replica has
// taken the place of the node gone, at the time promoted, what gone has acknowledged may
// be lost; see load.CheckSince.
func (f *flows) check(t *testing.T, cluster *redialtest.Cluster, gone *redialtest.Server, promoted time.Time) {
	t.Helper()
	f.stop()
	bare := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	defer bare.Close()
	var acknowledged, unknown, unavailable, ran int64
	for _, one := range f.all {
		if err := one.strange.Load(); err != nil {
			t.Errorf("an error without an outcome: %v", *err)
		}
		n, err := bare.Get(t.Context(), one.key).Int64()
		require.NoError(t, err)
		assert.LessOrEqual(t, n, one.acknowledged.Load()+one.unknown.Load(), "an INCR ran twice")
		if one.node == gone {
			one.replies.Check(t, promoted, n)
		} else {
			one.replies.Check(t, time.Time{}, n)
			assert.GreaterOrEqual(t, n, one.acknowledged.Load(), "an acknowledged INCR is missing")
		}
		acknowledged += one.acknowledged.Load()
		unknown += one.unknown.Load()
		unavailable += one.unavailable.Load()
		ran += n
	}
	t.Logf("%d acknowledged, %d unknown, %d unavailable; %d ran", acknowledged, unknown, unavailable, ran)
}

func TestCluster_MasterIsKilled(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 3, 1)
	c := testkit.NewCluster(t, cluster)
	f := startFlows(t, c, cluster, 5, 2*time.Millisecond)
	time.Sleep(time.Second)
	old := cluster.NodeFor(f.all[0].key)
	healthy, victims := f.on(old, false), f.on(old, true)
	before := p99(healthy)
	old.Kill()
	killed := time.Now()
	cluster.Promoted(old)
	promoted := time.Now()
	first := firstSuccess(t, victims, promoted)
	during := p99(healthy)
	t.Logf("promoted after %v, first success %v after that; p99 of the others %v, before %v",
		promoted.Sub(killed), first, during, before)
	assert.Less(t, first, 250*time.Millisecond)
	for _, one := range healthy {
		assert.Zero(t, one.unavailable.Load()+one.unknown.Load(), "a command for a healthy node failed")
	}
	time.Sleep(300 * time.Millisecond)
	f.check(t, cluster, old, promoted)
	t.Log(c.Stats())
}

// All that 50 goroutines ask for at the start is answered by one question.
func TestCluster_ColdStart(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 3, 1)
	asked := func() (n int64) {
		for _, s := range cluster.Nodes {
			n += calls(t, s, "cluster|slots")
		}
		return n
	}
	before := asked()
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	defer c.Close()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() { assert.NoError(t, c.Set(t.Context(), fmt.Sprint("key:", i), i, 0).Err()) })
	}
	wg.Wait()
	sent := asked() - before
	t.Logf("%d CLUSTER SLOTS", sent)
	assert.LessOrEqual(t, sent, int64(2))
}

// calls returns how often a server has run a command.
func calls(t *testing.T, s *redialtest.Server, name string) (n int64) {
	t.Helper()
	bare := redis.NewClient(&redis.Options{Addr: s.Addr()})
	defer bare.Close()
	stats, err := bare.InfoMap(t.Context(), "commandstats").Result()
	require.NoError(t, err)
	if line := stats["Commandstats"]["cmdstat_"+name]; line != "" {
		_, err = fmt.Sscanf(line, "calls=%d", &n)
		require.NoError(t, err)
	}
	return n
}

// A node that swallows everything holds up the commands for its own slots alone.
func TestCluster_NodeIsBlackHoled(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 3, 0)
	proxies := cluster.AddProxies()
	c := testkit.NewCluster(t, cluster)
	f := startFlows(t, c, cluster, 5, 2*time.Millisecond)
	time.Sleep(time.Second)
	old := cluster.NodeFor(f.all[0].key)
	healthy := f.on(old, false)
	before := p99(healthy)
	proxies[slices.Index(cluster.Nodes, old)].Hang()
	began := time.Now()
	require.Eventually(t, func() bool { return node(c, cluster.ProxyOf(old).Addr()).State == redial.StateReconnecting },
		5*time.Second, time.Millisecond)
	noticed := node(c, cluster.ProxyOf(old).Addr()).Since.Sub(began) // not when this test has looked
	assert.Equal(t, redial.StateConnected, c.State(), "two nodes serve")
	time.Sleep(time.Second)
	during := p99(healthy)
	cluster.ProxyOf(old).Restore()
	first := firstSuccess(t, f.on(old, true), time.Now())
	t.Logf("noticed after %v, first success %v after it was back; p99 of the others %v, before %v", noticed, first, during, before)
	assert.Less(t, noticed, 3*time.Second)
	assert.Less(t, first, 250*time.Millisecond)
	for _, one := range healthy {
		assert.Zero(t, one.unavailable.Load()+one.unknown.Load(), "a command for a healthy node failed")
	}
	f.check(t, cluster, nil, time.Time{})
}

func node(c redial.UniversalClient, addr string) redial.NodeStats {
	for _, n := range c.Stats().Nodes {
		if n.Addr == addr {
			return n
		}
	}
	return redial.NodeStats{}
}

// A planned failover costs nothing: no error, and no write runs on both.
func TestCluster_PlannedFailover(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 3, 1)
	c := testkit.NewCluster(t, cluster)
	f := startFlows(t, c, cluster, 5, 2*time.Millisecond)
	time.Sleep(300 * time.Millisecond)
	for range 2 {
		primary := cluster.NodeFor(f.all[0].key)
		cluster.Failover(cluster.ReplicasOf(primary)[0])
		// Within two node timeouts nobody votes for the same shard again, and the
		// primary would hold writes up until it gives the failover up.
		time.Sleep(2200 * time.Millisecond)
	}
	f.check(t, cluster, nil, time.Time{})
	for _, one := range f.all {
		assert.Zero(t, one.unavailable.Load()+one.unknown.Load())
	}
}

// Of a pipeline for several nodes, what the dead one was to run is run by its
// successor, and nothing twice.
func TestCluster_Pipeline(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 3, 1)
	c := testkit.NewCluster(t, cluster)
	const keys = 60
	pipeline := func() (failed, unknown int) {
		cmds, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			for i := range keys {
				p.Incr(t.Context(), fmt.Sprint("n:", i))
			}
			return nil
		})
		for _, cmd := range cmds {
			switch e := cmd.Err(); {
			case errors.Is(e, redial.ErrOutcomeUnknown):
				unknown++
			case e != nil:
				failed++
			}
		}
		assert.Equal(t, failed+unknown > 0, err != nil, "%v", err)
		return failed, unknown
	}
	failed, unknown := pipeline()
	require.Zero(t, failed+unknown)
	old := cluster.NodeFor("n:0")
	old.Kill()
	maybe := 0
	rounds := 1
	for began := time.Now(); time.Since(began) < 4*time.Second; rounds++ {
		failed, unknown = pipeline()
		assert.Zero(t, failed)
		maybe += unknown
	}
	cluster.Promoted(old)
	sum := 0
	for i := range keys {
		n, err := c.Get(t.Context(), fmt.Sprint("n:", i)).Int()
		require.NoError(t, err)
		sum += n
	}
	t.Logf("%d rounds, %d of %d commands unknown", rounds, maybe, rounds*keys)
	assert.LessOrEqual(t, sum, rounds*keys, "a command ran twice")
	assert.GreaterOrEqual(t, sum, rounds*keys-maybe, "a command was lost")
}

// Transactions, WATCH, scripts and what goes round the hooks wait for the successor as
// well.
func TestCluster_EverythingFollows(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 3, 1)
	c := testkit.NewCluster(t, cluster)
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "key", 0, 0).Err())
	old := cluster.NodeFor("key")
	var wg sync.WaitGroup
	var ran atomic.Int64
	old.Kill()
	for name, f := range map[string]func() error{
		"transaction": func() error {
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
				p.Incr(ctx, "key")
				p.Incr(ctx, "key")
				return nil
			})
			return err
		},
		"watch": func() error {
			return c.Watch(ctx, func(tx *redis.Tx) error {
				_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
					p.Get(ctx, "key")
					return nil
				})
				return err
			}, "key")
		},
		"script": func() error {
			return redis.NewScript(`return redis.call('incr', KEYS[1])`).Run(ctx, c, []string{"key"}).Err()
		},
		"script load": func() error { return c.ScriptLoad(ctx, "return 1").Err() },
		"all nodes":   func() error { return c.DBSize(ctx).Err() },
		"read":        func() error { return c.Get(ctx, "key").Err() },
		"scan": func() error {
			return c.ForEachMaster(ctx, func(ctx context.Context, m *redis.Client) error { return m.Scan(ctx, 0, "*", 10).Err() })
		},
	} {
		wg.Go(func() {
			for range 2 {
				err := f()
				if name == "watch" && errors.Is(err, redis.TxFailedErr) {
					err = nil
				}
				switch {
				case err == nil:
					ran.Add(1)
				case name == "scan": // of the dead node, which it was asked of
				case name == "script load" && errors.Is(err, redial.ErrOutcomeUnknown): // as some nodes have run it
				default:
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	assert.GreaterOrEqual(t, ran.Load(), int64(10))
	cluster.Promoted(old)
}

// received collects what a subscription brings.
func received(sub *redis.PubSub) <-chan *redis.Message {
	return sub.Channel(redis.WithChannelHealthCheckInterval(time.Second))
}

// await publishes until a message arrives, and returns when it did.
func await(t *testing.T, publish func() error, ch <-chan *redis.Message, within time.Duration) time.Time {
	t.Helper()
	giveUp := time.After(within)
	for {
		_ = publish() // it may come before its time
		select {
		case <-ch:
			return time.Now()
		case <-time.After(5 * time.Millisecond):
		case <-giveUp:
			t.Fatalf("no message within %v", within)
		}
	}
}

// forget drops the messages that have arrived.
func forget(ch <-chan *redis.Message) {
	for range len(ch) {
		<-ch
	}
}

// Subscriptions, of a shard or of all, are on the successor within a second.
func TestCluster_PubSub(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 3, 1)
	c := testkit.NewCluster(t, cluster)
	ctx := t.Context()
	old := cluster.NodeFor("news")
	plain := c.Subscribe(ctx, "news")
	defer plain.Close()
	shard := c.SSubscribe(ctx, "news")
	defer shard.Close()
	publish := func() error { return c.Publish(ctx, "news", "hello").Err() }
	spublish := func() error { return c.SPublish(ctx, "news", "hello").Err() }
	plainCh, shardCh := received(plain), received(shard)
	await(t, publish, plainCh, 2*time.Second)
	await(t, spublish, shardCh, 2*time.Second)
	old.Kill()
	cluster.Promoted(old)
	promoted := time.Now()
	forget(plainCh)
	forget(shardCh)
	a := await(t, publish, plainCh, 5*time.Second).Sub(promoted)
	b := await(t, spublish, shardCh, 5*time.Second).Sub(promoted)
	t.Logf("first message %v after the promotion, of a shard channel %v", a, b)
	assert.Less(t, a, time.Second)
	assert.Less(t, b, time.Second)
}

// A slot that is moved to another node takes its commands and its shard channels along.
func TestCluster_SlotIsMoved(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 3, 0)
	c := testkit.NewCluster(t, cluster)
	ctx := t.Context()
	const key = "{moved}news"
	from := cluster.NodeFor(key)
	to := cluster.Nodes[(slices.Index(cluster.Nodes, from)+1)%3]
	sub := c.SSubscribe(ctx, key)
	defer sub.Close()
	ch := received(sub)
	spublish := func() error { return c.SPublish(ctx, key, "hello").Err() }
	await(t, spublish, ch, 2*time.Second)
	var wg sync.WaitGroup
	quit := make(chan struct{})
	stop := sync.OnceFunc(func() { close(quit); wg.Wait() })
	defer stop()
	var acknowledged atomic.Int64
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
					p.Incr(ctx, "{moved}n")
					p.Incr(ctx, "{moved}n")
					p.Get(ctx, "elsewhere")
					return nil
				})
				if err == redis.Nil {
					err = cmds[0].Err()
				}
				if assert.NoError(t, err) {
					acknowledged.Add(2)
				}
			}
		})
	}
	slot := int(c.ClusterKeySlot(ctx, key).Val())
	id := func(s *redialtest.Server) any { return s.Do("CLUSTER", "MYID") }
	to.Do("CLUSTER", "SETSLOT", slot, "IMPORTING", id(from))
	from.Do("CLUSTER", "SETSLOT", slot, "MIGRATING", id(to))
	for {
		keys, _ := from.Do("CLUSTER", "GETKEYSINSLOT", slot, 100).([]any)
		if len(keys) == 0 {
			break
		}
		for _, k := range keys {
			from.Do("MIGRATE", "127.0.0.1", to.Addr()[len("127.0.0.1:"):], k, 0, 1000)
		}
	}
	for _, s := range append([]*redialtest.Server{to}, cluster.Nodes...) {
		s.Do("CLUSTER", "SETSLOT", slot, "NODE", id(to))
	}
	movedAt := time.Now()
	time.Sleep(50 * time.Millisecond)
	forget(ch)
	first := await(t, spublish, ch, 5*time.Second).Sub(movedAt)
	t.Logf("first message of a shard channel %v after its slot was moved", first)
	assert.Less(t, first, time.Second)
	stop()
	n, err := c.Get(ctx, "{moved}n").Int64()
	require.NoError(t, err)
	assert.Equal(t, acknowledged.Load(), n)
}

// Nothing is left of a client, whatever its nodes were doing.
func TestCluster_Close_LeavesNothing(t *testing.T) { testkit.Alone(t, testClusterLeavesNothing) }

func testClusterLeavesNothing(t *testing.T) {
	cluster := redialtest.StartCluster(t, 3, 0)
	proxies := cluster.AddProxies()
	for name, before := range map[string]func(){
		"healthy": func() {},
		"hangs":   func() { proxies[0].Hang() },
		"all refused": func() {
			for _, p := range proxies {
				p.Refuse()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() {
				for _, p := range proxies {
					p.Restore()
				}
			})
			redialtest.Leaks(t)
			c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
			if name != "all refused" {
				f := startFlows(t, c, cluster, 2, time.Millisecond)
				defer f.stop()
				time.Sleep(100 * time.Millisecond)
			}
			before()
			time.Sleep(100 * time.Millisecond)
			sub := c.Subscribe(t.Context(), "news")
			began := time.Now()
			require.NoError(t, c.Close())
			t.Logf("closed in %v", time.Since(began))
			assert.Less(t, time.Since(began), 500*time.Millisecond)
			assert.ErrorIs(t, c.Get(t.Context(), "key").Err(), redis.ErrClosed)
			assert.Equal(t, redial.StateClosed, c.State())
			_ = sub.Close()
			if name == "hangs" { // the proxies hold on to what the client has let go
				proxies[0].Restore()
			}
		})
	}
}

// artificial returns the options of a cluster of as many nodes as n says, all of them
// in memory and, in truth, one.
func artificial(server *redialtest.FakeServer, n *atomic.Int64) *redis.ClusterOptions {
	return &redis.ClusterOptions{
		ClusterSlots: func(context.Context) (list []redis.ClusterSlot, err error) {
			n := int(n.Load())
			for i := range n {
				list = append(list, redis.ClusterSlot{
					Start: i * 16384 / n, End: (i+1)*16384/n - 1,
					Nodes: []redis.ClusterNode{{Addr: fmt.Sprintf("node-%d:6379", i)}},
				})
			}
			return list, nil
		},
		Dialer: server.Dial,
	}
}

func connectedNodes(c redial.UniversalClient) (n int) {
	for _, one := range c.Stats().Nodes {
		if one.State == redial.StateConnected {
			n++
		}
	}
	return n
}

// A thousand nodes cost an idle client no more than three goroutines.
func TestCluster_GoroutinesOfAThousandNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var nodes atomic.Int64
		nodes.Store(1000)
		c := redial.NewClusterClient(artificial(redialtest.NewFakeServerPipe(t), &nodes))
		defer c.Close()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Equal(t, 1000, connectedNodes(c))
		idle := ownGoroutines()
		t.Logf("%d goroutines for 1000 nodes", idle)
		assert.LessOrEqual(t, idle, 3)
	})
}

// A node that is not part of the cluster any more costs nothing once go-redis has let
// go of it.
func TestCluster_NodesAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := redialtest.NewFakeServerPipe(t)
		var nodes atomic.Int64
		nodes.Store(6)
		c := redial.NewClusterClient(artificial(server, &nodes))
		defer c.Close()
		for i := range 20 {
			require.NoError(t, c.Set(t.Context(), fmt.Sprint("key:", i), i, 0).Err())
		}
		require.Equal(t, 6, connectedNodes(c))
		nodes.Store(3)
		c.ReloadState(t.Context())
		time.Sleep(2 * time.Minute) // go-redis takes one
		synctest.Wait()
		assert.Equal(t, 3, connectedNodes(c))
		assert.Len(t, c.Stats().Nodes, 3)
		assert.LessOrEqual(t, server.Conns(), 2*3, "a heartbeat and a pool each")
	})
}

// ownGoroutines counts the goroutines of the library itself.
func ownGoroutines() (n int) {
	buf := make([]byte, 64<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "created by github.com/redial-go/redial.") ||
			strings.Contains(stack, "created by github.com/redial-go/redial/internal/") && !strings.Contains(stack, "created by github.com/redial-go/redial/internal/testkit") {
			n++
		}
	}
	return n
}

// What supervision costs a command that succeeds, beside go-redis.
func TestCluster_HealthyPath_Allocations(t *testing.T) {
	redial.Once(t.Context(), "another command of the program has an id")
	cluster := redialtest.StartCluster(t, 3, 0)
	ours := testkit.NewCluster(t, cluster)
	bare := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	defer bare.Close()
	cancelable, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	for name, run := range map[string]func(ctx context.Context, c redis.UniversalClient){
		"GET": func(ctx context.Context, c redis.UniversalClient) { _ = c.Get(ctx, "key").Err() },
		"pipeline of 30": func(ctx context.Context, c redis.UniversalClient) {
			_, _ = c.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i := range 30 {
					p.Get(ctx, fmt.Sprint("key:", i))
				}
				return nil
			})
		},
	} {
		for ctx, kind := range map[context.Context]string{context.Background(): "background", cancelable: "cancelable"} {
			for i := range 30 {
				require.NoError(t, ours.Set(ctx, fmt.Sprint("key:", i), i, 0).Err())
			}
			require.NoError(t, ours.Set(ctx, "key", 0, 0).Err())
			for range 20 { // the pools fill up
				run(ctx, ours)
				run(ctx, bare)
			}
			with := testing.AllocsPerRun(500, func() { run(ctx, ours) })
			without := testing.AllocsPerRun(500, func() { run(ctx, bare) })
			t.Logf("%s, %s: %v allocations, %v without redial", name, kind, with, without)
			most := map[string]float64{"GET": 1, "pipeline of 30": 16}[name] // 4 for each node and for the whole
			if name == "GET" && kind == "background" {
				most = 0
			} else if kind == "cancelable" && name != "GET" {
				most += 4
			} else if name == "GET" && !pools.Look {
				most++ // elsewhere the look of bare's pool is one
			}
			assert.LessOrEqual(t, with, without+most, name)
		}
	}
}

// Of several addresses one is enough that knows the cluster, although the others answer all but
// that, and whoever sets the connections up.
func TestCluster_OthersDoNotTell(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 1, 0)
	for what, set := range map[string]func(*redis.ClusterOptions){
		"plain":      func(*redis.ClusterOptions) {},
		"on connect": func(o *redis.ClusterOptions) { o.OnConnect = func(context.Context, *redis.Conn) error { return nil } },
	} {
		for i := range 6 { // they are asked in any order
			t.Run(fmt.Sprint(what, i), func(t *testing.T) {
				t.Parallel()
				opt := &redis.ClusterOptions{Addrs: cluster.Addrs()}
				for range 2 {
					silent := redialtest.NewFakeServer(t)
					silent.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
						if args[0] == "cluster" {
							return redialtest.Hang
						}
						return redialtest.Handle
					})
					opt.Addrs = append(opt.Addrs, silent.Addr())
				}
				set(opt)
				c := redial.NewClusterClient(opt)
				defer c.Close()
				began := time.Now()
				assert.NoError(t, c.Set(t.Context(), "a", "b", 0).Err())
				assert.Less(t, time.Since(began), 3*time.Second)
			})
		}
	}
}
