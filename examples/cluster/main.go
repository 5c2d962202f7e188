// Cluster shows redial in a Redis Cluster of which one primary dies: what its slots
// go through, what all others notice, and a proof of what ran.
//
//	go run ./examples/cluster
//
// starts three primaries with a replica each, for which it needs redis-server in PATH.
// Goroutines count on keys of every shard, and one primary is killed with kill -9 under
// them. You see every transition of every node, when the replica takes over and when
// the first command succeeds there, and how the other shards fared meanwhile. At the
// end every counter is compared with what its goroutine was told: a write that ran
// twice cannot hide, and makes the exit status 1. Ctrl-C ends it all.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/examples/internal/load"
	"github.com/redial-go/redial/examples/internal/narrate"
	"github.com/redial-go/redial/redialtest"
)

const (
	shards     = 3
	goroutines = 12
	limit      = 30 * time.Second // for everything; eight seconds are usual
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second interrupt kills
	if err := run(ctx, os.Stdout, 1500*time.Millisecond); err != nil {
		log.Fatal("cluster: ", err)
	}
}

// run puts load on all shards and kills a primary. healthy is how long all is well
// before that, and again after. It returns an error when a write ran twice, or was lost
// where no server died.
func run(ctx context.Context, w io.Writer, healthy time.Duration) (err error) {
	fmt.Fprintf(w, "redial cluster: starting %d primaries with a replica each\n", shards)
	// By default Redis refuses commands for all slots while some have no primary.
	cluster, err := redialtest.LaunchCluster(shards, 1, "--cluster-require-full-coverage", "no")
	if err != nil {
		return narrate.Explain(err, "./examples/cluster")
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("no end of it in "+limit.String()))
	defer cancel()
	if ctx.Err() != nil {
		return narrate.Ended(ctx)
	}

	out := narrate.New(w)
	rdb := redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()}, redial.WithOnStateChange(out.Event))
	defer rdb.Close() // a second Close, after Drain, does no harm

	// The primary that has the first key is to die, and its replica to take over.
	var victim string
	var itsKeys, otherKeys []string
	for i := range goroutines {
		key := fmt.Sprint("counter:", i)
		node, err := rdb.MasterForKey(ctx, key)
		if err != nil {
			return err
		}
		addr := node.Options().Addr
		victim = cmp.Or(victim, addr)
		if addr == victim {
			itsKeys = append(itsKeys, key)
		} else {
			otherKeys = append(otherKeys, key)
		}
	}
	primary := cluster.Nodes[slices.Index(cluster.Addrs(), victim)]
	replica := cluster.ReplicasOf(primary)[0]
	out.Printf("%d goroutines count on %s, %d on the other shards", len(itsKeys), victim, len(otherKeys))
	hit, spared := load.Start(ctx, rdb, itsKeys), load.Start(ctx, rdb, otherKeys)
	defer hit.Stop()
	defer spared.Stop()
	if !narrate.Pause(ctx, healthy) {
		return narrate.Ended(ctx)
	}

	spared.Lap()
	out.At(time.Now(), "---- kill -9 of the primary %s", victim)
	primary.Kill()
	killed := time.Now()
	back := hit.Killed(killed)
	promoted, err := promotion(ctx, replica.Addr())
	if err != nil {
		return err
	}
	out.At(promoted, "---- its replica %s has taken over", replica.Addr())
	var first time.Time
	select {
	case first = <-back:
	case <-ctx.Done():
		return narrate.Ended(ctx)
	}
	out.At(first, "---- first success on its slots")
	lap := spared.Lap()
	out.At(time.Now(), "---- the other shards meanwhile: %d commands, %d failed, %d unknown, the slowest took %.3fs",
		lap.Done, lap.Failed, lap.Unknown, lap.Slowest.Seconds())
	if !narrate.Pause(ctx, healthy) {
		return narrate.Ended(ctx)
	}
	hit.Stop()
	spared.Stop()

	proof, err := hit.Check(ctx)
	rest, restErr := spared.Check(ctx)
	proof.Add(rest)
	nodes := rdb.Stats().Nodes
	if err := errors.Join(err, restErr, rdb.Drain(ctx)); err != nil {
		return err
	}
	out.Printf("")
	for _, n := range nodes {
		out.Printf("node          %s %-12s %d outages  %s", n.Addr, n.State, n.Outages, n.LastError)
	}
	proof.Print(out)
	out.Printf("first success %7.3fs after the kill, %.3fs after the promotion", first.Sub(killed).Seconds(), max(0, first.Sub(promoted)).Seconds())
	return proof.Err()
}

// promotion returns when a replica has become a primary.
func promotion(ctx context.Context, addr string) (time.Time, error) {
	replica := redis.NewClient(&redis.Options{Addr: addr})
	defer replica.Close()
	for {
		role, err := replica.Do(ctx, "ROLE").Slice()
		switch {
		case ctx.Err() != nil:
			return time.Time{}, narrate.Ended(ctx)
		case err != nil:
			return time.Time{}, err
		case len(role) > 0 && role[0] == "master":
			return time.Now(), nil
		}
		narrate.Pause(ctx, 5*time.Millisecond) // nobody tells
	}
}
