package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// What go-redis refuses to send did not run. The errors come from go-redis itself, so
// that a new version that has other words for one fails here.
func TestSafeToRetry_WhatGoRedisRejects(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cluster := redis.NewClusterClient(&redis.ClusterOptions{ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
		return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1:1"}}}}, nil
	}})
	defer cluster.Close()
	empty := redis.NewClusterClient(&redis.ClusterOptions{})
	defer empty.Close()
	ring := redis.NewRing(&redis.RingOptions{})
	defer ring.Close()
	nobody := redis.NewFailoverClusterClient(&redis.FailoverOptions{MasterName: "m", RouteRandomly: true})
	defer nobody.Close()
	single := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	defer single.Close()
	blocking, err := single.AutoPipeline()
	require.NoError(t, err)
	never := func(*redis.Tx) error { panic("the transaction must not begin") }
	get := redis.NewStringCmd(ctx, "get", "k")

	for name, err := range map[string]error{
		"cluster without nodes":  empty.Get(ctx, "k").Err(),
		"ring without shards":    ring.Get(ctx, "k").Err(),
		"no sentinels":           nobody.Get(ctx, "k").Err(),
		"transaction, two slots": second(cluster.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "a"); p.Get(ctx, "b"); return nil })),
		"watch, two slots":       cluster.Watch(ctx, never, "a", "b"),
		"watch, no key":          cluster.Watch(ctx, never),
		"ring's auto-pipeline":   second(ring.AutoPipeline()),
		"full duplex is off":     blocking.FDPipelined(ctx, []redis.Cmder{get}),
		"submit on a blocking":   blocking.Submit(ctx, get).Wait(),
		"do nothing":             blocking.Do(ctx).Err(),
		"no metrics":             single.HotKeysStart(ctx, &redis.HotKeysStartArgs{}).Err(),
	} {
		assert.Error(t, err, name)
		assert.True(t, redial.SafeToRetry(err), "%s: %v", name, err)
		assert.True(t, redial.SafeToRetry(fmt.Errorf("wrapped: %w", err)), "%s: %v", name, err)
	}
	for _, err := range []error{
		redis.ErrAutoPipelineQueueFull, redis.ErrAutoPipelineTimeout,
		redis.ErrFDPipelineUnavailable, redis.ErrFDPipelineDiverts, redis.ErrFDPipelineSpansEngines, redis.ErrFDPipelineTooLarge,
		redis.ErrPoolExhausted, redis.ErrPoolTimeout, redis.ErrCrossSlot, redis.TxFailedErr,
		errors.New(`redis: cannot pipeline command "dbsize" with request policy ReqAllNodes/ReqAllShards/ReqMultiShard; Note: x`),
	} {
		assert.True(t, redial.SafeToRetry(err), "%v", err)
	}
	for _, err := range []error{
		errors.New("cluster has no nodes"), errors.New("a hook says: redis: cannot pipeline command"),
		errors.New("redis: can't parse reply"), context.Canceled, redis.Nil,
	} {
		assert.False(t, redial.SafeToRetry(err), "%v", err)
	}
}

// The same for what client-side caching forbids.
func TestSafeToRetry_WhatClientSideCachingForbids(t *testing.T) {
	t.Parallel()
	server := redialtest.StartServer(t)
	c := redis.NewClient(&redis.Options{Addr: server.Addr(), ClientSideCacheConfig: &redis.ClientSideCacheConfig{}})
	defer c.Close()
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	for _, args := range [][]any{
		{"client", "tracking", "on"}, {"select", 1}, {"auth", "x"}, {"hello", 2}, {"reset"}, {"subscribe", "c"},
	} {
		err := c.Do(ctx, args...).Err()
		require.ErrorContains(t, err, "not allowed", "%v", args)
		assert.True(t, redial.SafeToRetry(err), "%v: %v", args, err)
	}
}

func second[T any](_ T, err error) error { return err }
