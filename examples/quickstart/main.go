// Quickstart shows redial riding out an outage, and proves what it did.
//
//	go run ./examples/quickstart
//
// needs no Redis. Eight goroutines run GET, SET and INCR against an embedded
// server, which is stopped for two seconds under load. At the end every counter
// is compared with what its goroutine was told, so that a write that was lost or
// ran twice cannot hide. The last line says what was proved. The exit status is 1 if
// there was such a write.
//
//	REDIS_ADDR=127.0.0.1:6379 go run ./examples/quickstart
//
// does the same against your own server until interrupted. It causes no outage:
// stop, freeze or restart the server yourself and watch. Its keys have a prefix
// of their own and are deleted at the end.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/examples/internal/narrate"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second interrupt kills
	s := schedule{healthy: 1200 * time.Millisecond, outage: 2 * time.Second}
	if err := run(ctx, os.Stdout, os.Getenv("REDIS_ADDR"), s); err != nil {
		log.Fatal("quickstart: ", err)
	}
}

// schedule says how long the embedded server is up, before and after the outage,
// and how long it is down.
type schedule struct{ healthy, outage time.Duration }

const goroutines = 8

// run puts load on the server at addr until ctx ends, or, when addr is empty, on
// an embedded one for as long as s says. It returns an error when a write was
// lost or ran twice.
func run(ctx context.Context, w io.Writer, addr string, s schedule) error {
	var server *miniredis.Miniredis // nil: the server is not ours to break
	if addr == "" {
		server = miniredis.NewMiniRedis()
		if err := server.Start(); err != nil {
			return err
		}
		defer server.Close()
		addr = server.Addr()
	}
	out := narrate.New(w)
	out.Printf("redial quickstart: %d goroutines on %s", goroutines, addr)

	rdb := redial.NewClient(&redis.Options{Addr: addr}, redial.WithOnStateChange(out.Event))
	defer rdb.Close() // a second Close, after Drain, does no harm

	prefix := "redial-quickstart:" + rand.Text() + ":"
	var total totals
	workers := make([]*worker, goroutines)
	load, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	var running sync.WaitGroup
	for i := range workers {
		workers[i] = &worker{rdb: rdb, total: &total, key: fmt.Sprintf("%s%d", prefix, i), limbo: make(map[int64]bool)}
		running.Go(func() { workers[i].run(load) })
	}
	happened := "whatever became of the server"
	if server != nil {
		away, err := breakAndMend(load, out, server, &total, s)
		if err != nil {
			return err
		}
		happened = fmt.Sprintf("the server was away for %.1fs under load", away.Seconds())
	} else {
		out.At(time.Now(), "no server is harmed: cause an outage yourself, then press Ctrl-C")
		tell(load, out, &total)
	}
	stopLoad()
	running.Wait()

	// The load has stopped. What did the server execute?
	check, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := rdb.WaitReady(check); err != nil {
		return fmt.Errorf("the counters cannot be read, and keys %s* remain: %w", prefix, err)
	}
	var sum verdict
	var errs []error
	for _, wk := range workers {
		v, err := wk.check(check)
		sum.add(v)
		errs = append(errs, err, rdb.Del(check, wk.key+":n", wk.key+":last").Err())
	}
	errs = append(errs, rdb.Drain(check))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the counters could not be checked: %w", err)
	}
	total.report(out, sum)
	if sum.lost > 0 || sum.doubled > 0 {
		return fmt.Errorf("%d writes lost, %d doubled; a server that restarts without persistence loses writes by itself",
			sum.lost, sum.doubled)
	}
	out.Printf("")
	out.Printf("Proved: %s, no acknowledged write was lost, and no write ran twice.", happened)
	return nil
}

// breakAndMend takes the server away for a while and returns for how long it was.
func breakAndMend(ctx context.Context, out *narrate.Printer, server *miniredis.Miniredis, total *totals, s schedule) (time.Duration, error) {
	narrate.Pause(ctx, s.healthy)
	gone := time.Now()
	out.At(gone, "---- server stopped") // first, for the client finds out at once
	server.Close()
	narrate.Pause(ctx, s.outage)
	back := time.Now()
	total.serverBack(back)
	out.At(back, "---- server back")
	if err := server.Restart(); err != nil {
		return 0, err
	}
	narrate.Pause(ctx, s.healthy)
	return back.Sub(gone), nil
}

// tell prints a line every two seconds until ctx ends.
func tell(ctx context.Context, out *narrate.Printer, total *totals) {
	var before tally
	for narrate.Pause(ctx, 2*time.Second) {
		now, _, _ := total.read()
		out.At(time.Now(), "%d done, %d failed, %d unknown",
			now.done-before.done, now.failed-before.failed, now.unknown-before.unknown)
		before = now
	}
}
