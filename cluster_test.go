package redial_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

func newCluster(t *testing.T, cluster *redialtest.Cluster, opts ...redial.Option) *redial.ClusterClient {
	t.Helper()
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()}, opts...)
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, c.WaitReady(ctx))
	return c
}

// flow is a load on one key, and what became of it.
type flow struct {
	key  string
	node *redialtest.Server // that has the key at the start

	acknowledged, unknown, unavailable atomic.Int64
	lastSuccess                        atomic.Int64
	strange                            atomic.Pointer[error]
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
	err := c.Incr(context.Background(), f.key).Err()
	f.mu.Lock()
	f.took = append(f.took, time.Since(began))
	f.mu.Unlock()
	switch {
	case err == nil:
		f.acknowledged.Add(1)
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

// check stops the flows and compares what ran with what was said.
func (f *flows) check(t *testing.T, cluster *redialtest.Cluster) {
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
		assert.GreaterOrEqual(t, n, one.acknowledged.Load(), "an acknowledged INCR is missing")
		acknowledged += one.acknowledged.Load()
		unknown += one.unknown.Load()
		unavailable += one.unavailable.Load()
		ran += n
	}
	t.Logf("%d acknowledged, %d unknown, %d unavailable; %d ran", acknowledged, unknown, unavailable, ran)
}

func TestCluster_MasterIsKilled(t *testing.T) {
	cluster := redialtest.StartCluster(t, 3, 1)
	c := newCluster(t, cluster)
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
	f.check(t, cluster)
	t.Log(c.Stats())
}
