package redial

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// How to find out that go-redis has closed a client. It tells nobody, and has no question
// for it; but what a closed client does not do it refuses before anything else.

// noOptions are options of an auto-pipeline that cannot be had: the answer is that the
// client is closed, or that they are invalid.
var noOptions = &redis.AutoPipelineOptions{MaxBatchSize: -1}

// closedCheck returns a function that reports whether a client was closed, by its owner
// or, if it is that of a node, by go-redis, which does not need it any more. It leaves no
// trace in pools or metrics of a client that was not.
func closedCheck(rdb *redis.Client) func() bool {
	plain := rdb.WithTimeout(time.Second) // no hooks: nobody must see this
	plain.Options().Limiter = nil         // nor this
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return func() bool {
		// First it begins to close, which may take its auto-pipelines a while, then there
		// are no more connections.
		_, err := plain.AutoPipelineWithOptions(noOptions)
		return err == redis.ErrClosed && plain.Ping(ctx).Err() == redis.ErrClosed
	}
}

// clusterClosed returns a function that reports whether a cluster client was closed. Its
// nodes may still be open.
func clusterClosed(rdb *redis.ClusterClient) func() bool {
	return func() bool {
		_, err := rdb.AutoPipelineWithOptions(noOptions)
		return err == redis.ErrClosed
	}
}

// ringClosed returns a function that reports whether a ring was closed.
func ringClosed(rdb *redis.Ring) func() bool {
	return func() bool {
		_, err := rdb.GetShardClientForKey("")
		return err == redis.ErrClosed
	}
}
