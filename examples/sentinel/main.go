// Sentinel shows redial following a primary that dies, and proves what it did.
//
//	go run ./examples/sentinel
//
// starts a primary, two replicas and three sentinels of its own, for which it needs
// redis-server in PATH. Eight goroutines count on the primary, which is killed with
// kill -9 under them. You see what the sentinels say, what the client makes of it, and
// when the first command succeeds on the new primary; nobody but redial does anything
// about it. At the end every counter is compared with what its goroutine was told: a
// write that ran twice cannot hide, and makes the exit status 1. Ctrl-C ends it all.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/examples/internal/load"
	"github.com/redial-go/redial/examples/internal/narrate"
	"github.com/redial-go/redial/redialtest"
)

const (
	goroutines = 8
	limit      = 30 * time.Second // for everything; seven seconds are usual
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second interrupt kills
	if err := run(ctx, os.Stdout, 1500*time.Millisecond); err != nil {
		log.Fatal("sentinel: ", err)
	}
}

// run puts load on the primary and kills it. healthy is how long all is well before
// that, and again after. It returns an error when a write ran twice.
func run(ctx context.Context, w io.Writer, healthy time.Duration) (err error) {
	fmt.Fprintln(w, "redial sentinel: starting a primary, two replicas and three sentinels")
	deployment, err := redialtest.LaunchFailover(2, 3)
	if err != nil {
		return narrate.Explain(err, "./examples/sentinel")
	}
	defer func() { err = errors.Join(err, deployment.Close()) }()
	primary := deployment.Servers[0]
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("no end of it in "+limit.String()))
	defer cancel()
	if ctx.Err() != nil {
		return narrate.Ended(ctx)
	}

	out := narrate.New(w)
	rdb := redial.NewFailoverClient(&redis.FailoverOptions{
		MasterName:    deployment.Name,
		SentinelAddrs: deployment.SentinelAddrs(),
	}, redial.WithOnStateChange(out.Event))
	defer rdb.Close() // a second Close, after Drain, does no harm

	news := make(chan step)
	var listening sync.WaitGroup
	defer listening.Wait()
	defer cancel()
	for _, addr := range deployment.SentinelAddrs() {
		listening.Go(func() { listen(ctx, out, addr, news) })
	}

	var keys []string
	for i := range goroutines {
		keys = append(keys, fmt.Sprint("counter:", i))
	}
	out.Printf("%d goroutines count on %s; sentinels are %s", goroutines, primary.Addr(), strings.Join(deployment.SentinelAddrs(), " "))
	counting := load.Start(ctx, rdb, keys)
	defer counting.Stop()
	if !narrate.Pause(ctx, healthy) {
		return narrate.Ended(ctx)
	}

	out.At(time.Now(), "---- kill -9 of the primary, %s", primary.Addr())
	primary.Kill()
	killed := time.Now()
	promoted, first, err := follow(ctx, out, news, counting.Killed(killed), healthy)
	counting.Stop()
	if err != nil {
		return err
	}

	proof, err := counting.Check(ctx)
	if err := errors.Join(err, rdb.Drain(ctx)); err != nil {
		return err
	}
	out.Printf("")
	proof.Print(out)
	out.Printf("first success %7.3fs after the kill, %.3fs after the promotion", first.Sub(killed).Seconds(), max(0, first.Sub(promoted)).Seconds())
	return proof.Err()
}

// follow prints the failover as it goes on, until all has been well again for a while.
func follow(ctx context.Context, out *narrate.Printer, news <-chan step, back <-chan time.Time, healthy time.Duration) (promoted, first time.Time, _ error) {
	told := make(map[string]bool)
	var end <-chan time.Time
	for {
		select {
		case s := <-news:
			if told[s.name] { // by another sentinel
				continue
			}
			told[s.name] = true
			out.At(s.at, "---- %s: %s %s", steps[s.name], s.name, s.words)
			if promoted.IsZero() && s.name != "+odown" {
				promoted = s.at
			}
		case first = <-back:
			out.At(first, "---- first success")
		case <-end:
			return promoted, first, nil
		case <-ctx.Done():
			return promoted, first, narrate.Ended(ctx)
		}
		if end == nil && !promoted.IsZero() && !first.IsZero() {
			end = time.After(healthy)
		}
	}
}
