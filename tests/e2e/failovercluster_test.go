package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialtest"
)

// The client of a deployment with sentinels that reads from replicas, too, follows the
// master.
func TestFailoverCluster_MasterIsKilled(t *testing.T) {
	t.Parallel()
	f := redialtest.StartFailover(t, 2, 3)
	c := redial.NewFailoverClusterClient(&redis.FailoverOptions{
		MasterName: f.Name, SentinelAddrs: f.SentinelAddrs(), RouteRandomly: true,
	})
	defer c.Close()
	l := testkit.StartLoad(t, c, 10)
	l.Flows(t, 5*time.Second)
	old := f.Servers[0]
	old.Kill()
	elected := elect(t, f, old)
	first := time.Duration(0)
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		first = time.Since(elected)
		return c.Set(ctx, "after", 1, 0).Err() == nil
	}, 5*time.Second, time.Millisecond)
	t.Logf("first write %v after the new primary was elected", first)
	assert.Less(t, first, 250*time.Millisecond)
	time.Sleep(200 * time.Millisecond)
	l.CheckSince(t, f.Primary(0).Addr(), elected)
}

// A client that may read from replicas reads while one of them is gone.
func TestFailoverCluster_ReplicaIsKilled(t *testing.T) {
	t.Parallel()
	f := redialtest.StartFailover(t, 2, 3)
	c := redial.NewFailoverClusterClient(&redis.FailoverOptions{
		MasterName: f.Name, SentinelAddrs: f.SentinelAddrs(), RouteRandomly: true,
	})
	defer c.Close()
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "key", 1, 0).Err())
	require.Eventually(t, func() bool { return f.Servers[2].Do("GET", "key") != nil }, 5*time.Second, time.Millisecond)
	for range 50 {
		require.NoError(t, c.Get(ctx, "key").Err())
	}
	f.Servers[2].Kill()
	slowest := time.Duration(0)
	for i := range 300 {
		began := time.Now()
		var err error
		if i%2 == 0 {
			err = c.Get(ctx, "key").Err()
		} else {
			_, err = c.Pipelined(ctx, func(p redis.Pipeliner) error {
				p.Get(ctx, "key")
				p.Get(ctx, "key")
				return nil
			})
		}
		require.NoError(t, err)
		slowest = max(slowest, time.Since(began))
	}
	t.Logf("the slowest read took %v", slowest)
	assert.Less(t, slowest, time.Second)
}

// The kind of client is chosen by the rules of go-redis.
func TestNewUniversalClient_Kind(t *testing.T) {
	for _, opt := range []redis.UniversalOptions{
		{},
		{Addrs: []string{"127.0.0.1:1"}},
		{Addrs: []string{"127.0.0.1:1", "127.0.0.1:2"}},
		{Addrs: []string{"127.0.0.1:1"}, IsClusterMode: true},
		{Addrs: []string{"127.0.0.1:1"}, MasterName: "m"},
		{Addrs: []string{"127.0.0.1:1"}, MasterName: "m", RouteByLatency: true},
		{Addrs: []string{"127.0.0.1:1"}, MasterName: "m", RouteRandomly: true},
		{Addrs: []string{"127.0.0.1:1"}, MasterName: "m", IsClusterMode: true},
	} {
		ours := redial.NewUniversalClient(&opt)
		bare := redis.NewUniversalClient(&opt)
		want := fmt.Sprintf("%T", bare)
		var got any
		switch c := ours.(type) {
		case *redial.Client:
			got = c.Client
		case *redial.ClusterClient:
			got = c.ClusterClient
		}
		assert.Equal(t, want, fmt.Sprintf("%T", got), "%+v", opt)
		assert.NoError(t, ours.Close())
		assert.NoError(t, bare.Close())
	}
}

// When the master is moved on purpose, the state of the client's other replica does not
// change. That sentinels have servers hang up on clients when they give them another
// master is for the connections alone.
func TestFailoverCluster_MasterIsMoved_ReplicaIsLeftAlone(t *testing.T) {
	t.Parallel()
	f := redialtest.StartFailover(t, 2, 3)
	moved := make(chan redial.Event, 100)
	c := redial.NewFailoverClusterClient(&redis.FailoverOptions{
		MasterName: f.Name, SentinelAddrs: f.SentinelAddrs(), RouteRandomly: true,
	}, redial.WithOnStateChange(func(e redial.Event) {
		if e.Cause == redial.CauseMoved {
			moved <- e
		}
	}))
	defer c.Close()
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "key", 1, 0).Err())
	old := f.Servers[0]
	require.Eventually(t, func() bool { // all are in use
		_ = c.Get(ctx, "key").Err()
		return len(c.Stats().Nodes) == 3
	}, 5*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool { return f.Sentinels[0].Do("SENTINEL", "FAILOVER", f.Name) == "OK" }, 5*time.Second, 50*time.Millisecond)
	elect(t, f, old)
	require.Eventually(t, func() bool { return c.Set(ctx, "key", 2, 0).Err() == nil }, 5*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool { // every sentinel has said so
		return old != f.Primary(0) && old != f.Primary(1) && old != f.Primary(2)
	}, 10*time.Second, 50*time.Millisecond)
	require.NoError(t, c.Close())
	close(moved)
	_, port, _ := strings.Cut(old.Addr(), ":")
	for e := range moved {
		assert.True(t, strings.HasSuffix(e.Node, ":"+port), "%s was given up", e.Node)
	}
}
