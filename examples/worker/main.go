// Worker takes jobs from a Redis stream and survives restarts, of the server and
// of its own, without losing a job.
//
//	go run ./examples/worker
//
// uses an embedded server unless REDIS_ADDR names one, adds twenty jobs a second
// and works on them until interrupted. Kill and restart your Redis meanwhile;
// for jobs to survive that, it needs persistence (--appendonly yes).
//
// A list will not do for this: when the connection dies while BLPOP hands over
// an element, the element is gone. An entry of a stream stays pending under the
// name of the worker it was handed to until that worker acknowledges it. So
// every job is handed over at least once. What it does to the data is done exactly
// once: it is a transaction with the id of the job, and so is adding it.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
)

const (
	stream = "redial-worker:jobs"
	group  = "workers"

	batch      = 16
	block      = 2 * time.Second  // of one read; a shutdown can take that long
	claimAfter = 30 * time.Second // a job pending for that long belongs to a dead worker
	every      = 50 * time.Millisecond
)

func main() {
	host, err := os.Hostname()
	if err != nil {
		host = "worker"
	}
	name := flag.String("name", host, "name of this worker: the same after a restart, no two alike at a time")
	flag.Parse()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if err := run(ctx, logger, os.Getenv("REDIS_ADDR"), *name); err != nil {
		logger.Error("worker failed", "error", err)
		os.Exit(1)
	}
}

// run adds jobs and works on them until ctx ends, then closes the client when the
// last command has its reply.
func run(ctx context.Context, logger *slog.Logger, addr, name string) error {
	if addr == "" {
		server := miniredis.NewMiniRedis()
		if err := server.Start(); err != nil {
			return err
		}
		defer server.Close()
		addr = server.Addr()
	}
	rdb := redial.NewClient(&redis.Options{Addr: addr}, redial.WithLogger(logger))

	w := &worker{rdb: rdb, logger: logger, name: name, cursor: "0"}
	p := &producer{rdb: rdb, logger: logger, run: rand.Text()}
	var running sync.WaitGroup
	running.Go(func() { p.produce(ctx) })
	running.Go(func() { w.work(ctx) })
	running.Wait()

	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	done, times, left := rdb.SCard(end, doneKey(p.run)), rdb.Get(end, timesKey(p.run)), rdb.XLen(end, stream)
	twice, err := times.Int64()
	if errors.Is(err, redis.Nil) {
		err = nil // none was
	}
	if err := errors.Join(done.Err(), err, left.Err(), rdb.Drain(end)); err != nil {
		return fmt.Errorf("%d jobs added, no count of those done: %w", p.added, err)
	}
	logger.Info("stopped", "added", p.added, "done", done.Val(), "twice", twice-done.Val(), "deliveries", w.handled, "left_for_next_run", left.Val())
	return nil
}

// worker is one consumer of the group. Its fields belong to one goroutine.
type worker struct {
	rdb     *redial.Client
	logger  *slog.Logger
	name    string
	cursor  string    // where to read on: an ID among our own pending entries, or ">"
	claimed time.Time // when we last looked for jobs of dead workers
	joined  bool
	handled int
}

// work handles jobs until ctx ends. No error ends it, as none lasts forever.
func (w *worker) work(ctx context.Context) {
	for ctx.Err() == nil {
		jobs, err := w.next(ctx)
		if err != nil {
			w.explain(err)
			retrySoon(ctx, w.rdb)
			continue
		}
		for _, job := range jobs {
			if ctx.Err() != nil {
				return // the rest stays pending under our name
			}
			// A job that was begun is finished.
			if err := w.handle(context.WithoutCancel(ctx), job); err != nil {
				w.explain(err)
				w.cursor = "0" // it is still pending: do it again
				retrySoon(ctx, w.rdb)
				break
			}
		}
	}
}

// next returns the jobs to do now: first those that are pending under our name,
// after a start or an unknown outcome, then those of dead workers, then new ones.
func (w *worker) next(ctx context.Context) ([]redis.XMessage, error) {
	if !w.joined {
		err := w.rdb.XGroupCreateMkStream(redial.Idempotent(ctx), stream, group, "0").Err()
		if err != nil && !redis.HasErrorPrefix(err, "BUSYGROUP") { // BUSYGROUP: it exists
			return nil, err
		}
		w.joined = true
	}
	if w.cursor == ">" && time.Since(w.claimed) >= claimAfter {
		jobs, _, err := w.rdb.XAutoClaim(ctx, &redis.XAutoClaimArgs{
			Stream: stream, Group: group, Consumer: w.name, MinIdle: claimAfter, Start: "0", Count: batch,
		}).Result()
		if err == nil && len(jobs) < batch {
			w.claimed = time.Now() // no more of them
		}
		return jobs, err
	}

	args := &redis.XReadGroupArgs{
		Group: group, Consumer: w.name, Streams: []string{stream, w.cursor}, Count: batch, Block: -1,
	}
	if w.cursor == ">" {
		args.Block = block
	}
	streams, err := w.rdb.XReadGroup(ctx, args).Result()
	if err != nil && !errors.Is(err, redis.Nil) { // Nil: nothing came in time
		return nil, err
	}
	var jobs []redis.XMessage
	for _, s := range streams {
		jobs = append(jobs, s.Messages...)
	}
	switch {
	case w.cursor == ">":
	case len(jobs) == 0:
		w.cursor = ">" // nothing is pending any more
	default:
		w.cursor = jobs[len(jobs)-1].ID
	}
	return jobs, nil
}

// explain notes what an error means for the worker.
func (w *worker) explain(err error) {
	switch {
	case errors.Is(err, redial.ErrOutcomeUnknown):
		// The lost reply may have held jobs. They are pending under our name.
		w.cursor = "0"
	case redis.HasErrorPrefix(err, "NOGROUP"):
		// The server restarted without its data. Begin again.
		w.joined, w.cursor = false, "0"
	case errors.Is(err, redial.ErrUnavailable):
		// Nothing ran, so nothing changed.
	}
	w.logger.Warn("will try again", "error", err)
}

// handle does a job and acknowledges it, with the id of the job: whoever gets it again,
// after an unknown outcome or from a dead worker, does nothing and gets the same reply. A
// job that can fail for good needs more: a limit of deliveries, which XPENDING counts, and
// a place to go.
func (w *worker) handle(ctx context.Context, job redis.XMessage) error {
	ctx = redial.Once(ctx, stream+":do:"+job.ID)
	w.handled++
	run, _ := job.Values["run"].(string)
	number, _ := job.Values["number"].(string)
	_, err := w.rdb.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		if run != "" { // else it was deleted while it was pending
			tx.SAdd(ctx, doneKey(run), number)
			tx.Incr(ctx, timesKey(run))
			tx.Expire(ctx, timesKey(run), time.Hour)
			tx.Expire(ctx, doneKey(run), time.Hour)
		}
		tx.XAck(ctx, stream, group, job.ID)
		tx.XDel(ctx, stream, job.ID)
		return nil
	})
	return err
}

// doneKey names the set of jobs of one run that are done.
func doneKey(run string) string { return "redial-worker:done:" + run }

// timesKey names the count of how often jobs of one run were done.
func timesKey(run string) string { return "redial-worker:times:" + run }

// retrySoon returns when there is a point in trying again: the server is there,
// and a moment has passed.
func retrySoon(ctx context.Context, rdb *redial.Client) {
	_ = rdb.WaitReady(ctx) // fails when ctx ends; the caller looks at that
	pause(ctx, every)
}

// pause waits for d and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
