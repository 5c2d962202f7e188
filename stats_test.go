package redial

import (
	"context"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// growsFrom asserts that no counter of s is below that of before.
func (s Stats) growsFrom(t *testing.T, before Stats) {
	t.Helper()
	v, old := reflect.ValueOf(s), reflect.ValueOf(before)
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.Type.Kind() == reflect.Uint64 {
			assert.GreaterOrEqual(t, v.Field(i).Uint(), old.Field(i).Uint(), f.Name)
		}
	}
	assert.GreaterOrEqual(t, s.Down, before.Down)
}

// Counters outlive the node that they were counted for.
func TestStats_NodeLeaves_CountersOnlyGrow(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var one atomic.Bool
		nodes := []redis.ClusterSlot{
			{Start: 0, End: 8191, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1:1"}}},
			{Start: 8192, End: lastSlot, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1:2"}}},
		}
		c := NewClusterClient(&redis.ClusterOptions{
			Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
			ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
				if one.Load() {
					return []redis.ClusterSlot{{Start: 0, End: lastSlot, Nodes: nodes[0].Nodes}}, nil
				}
				return nodes, nil
			},
		})
		defer c.Close()
		ctx := t.Context()
		require.NoError(t, c.WaitReady(ctx))
		for _, key := range []string{"a", "b", "c", "d"} {
			require.NoError(t, c.Set(ctx, key, 1, 0).Err())
		}
		n.Kill()
		time.Sleep(4 * time.Second) // each node notices at its next heartbeat
		n.Start()
		require.NoError(t, c.Set(ctx, "a", 1, 0).Err())
		require.NoError(t, c.Set(ctx, "b", 1, 0).Err())
		time.Sleep(30 * time.Second)
		before := c.Stats()
		require.Len(t, before.Nodes, 2)
		require.NotZero(t, before.Nodes[1].Outages)
		one.Store(true)
		c.ReloadState(ctx)
		last := before
		for range 3 * 60 {
			time.Sleep(time.Second)
			s := c.Stats()
			s.growsFrom(t, last)
			last = s
		}
		assert.Len(t, last.Nodes, 1, "the node is gone")
		assert.EqualValues(t, last.Nodes[0].Outages, before.Nodes[0].Outages)
	})
}
