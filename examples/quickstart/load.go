package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/examples/internal/narrate"
)

// worker is one goroutine of the load. Nobody else writes its two keys, so it
// knows what they must hold.
type worker struct {
	rdb   *redial.Client
	total *totals
	key   string

	// What it was told. An INCR or SET of unknown outcome may have run once or
	// not at all, and a SET that was still under way in the network may even
	// overwrite a later one.
	acked, unknown int64          // INCRs
	written, tried int64          // last SET acknowledged, last SET sent
	limbo          map[int64]bool // SETs of unknown outcome
	stale          int64          // GETs that returned less than they had to
}

// run sends INCR, SET and GET in turn until ctx ends. A command under way is
// finished first: the end of ctx must not make an outcome unknown.
func (w *worker) run(ctx context.Context) {
	cmds := context.WithoutCancel(ctx)
	for n := int64(1); ctx.Err() == nil; n++ {
		ok := w.count(w.timed(func() error { return w.rdb.Incr(cmds, w.key+":n").Err() }))

		w.tried = n
		switch err := w.timed(func() error { return w.rdb.Set(cmds, w.key+":last", n, 0).Err() }); {
		case err == nil:
			w.written = n
		case !redial.SafeToRetry(err):
			w.limbo[n] = true
		}

		var last int64
		if w.timed(func() (err error) { last, err = w.readLast(cmds); return err }) == nil && w.gone(last) {
			w.stale++
		}

		rest := time.Millisecond
		if !ok {
			rest = 20 * time.Millisecond // refused: do not spin
		}
		narrate.Pause(ctx, rest)
	}
}

// count notes what an INCR came to and reports whether it succeeded.
func (w *worker) count(err error) bool {
	switch {
	case err == nil:
		w.acked++
	case !redial.SafeToRetry(err):
		w.unknown++
	}
	return err == nil
}

// timed runs one command and counts it.
func (w *worker) timed(cmd func() error) error {
	began := time.Now()
	err := cmd()
	w.total.add(began, time.Now(), err)
	return err
}

// readLast returns what the last SET wrote, 0 if there is no such key.
func (w *worker) readLast(ctx context.Context) (int64, error) {
	n, err := w.rdb.Get(ctx, w.key+":last").Int64()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	return n, err
}

// gone reports whether last shows that an acknowledged SET was lost.
func (w *worker) gone(last int64) bool { return last < w.written && !w.limbo[last] }

// check compares what the server holds with what the worker was told.
func (w *worker) check(ctx context.Context) (verdict, error) {
	var v verdict
	n, err := w.rdb.Get(ctx, w.key+":n").Int64()
	if err != nil && !errors.Is(err, redis.Nil) {
		return v, err
	}
	last, err := w.readLast(ctx)
	if err != nil {
		return v, err
	}
	v.acked, v.unknown, v.executed = w.acked, w.unknown, n
	v.lost = max(0, w.acked-n) + w.stale
	v.doubled = max(0, n-w.acked-w.unknown)
	if w.gone(last) {
		v.lost++
	}
	if last > w.tried {
		return v, fmt.Errorf("%s holds %d, which was never written", w.key, last)
	}
	return v, nil
}

// verdict is what became of the writes.
type verdict struct{ acked, unknown, executed, lost, doubled int64 }

func (v *verdict) add(o verdict) {
	v.acked += o.acked
	v.unknown += o.unknown
	v.executed += o.executed
	v.lost += o.lost
	v.doubled += o.doubled
}

// tally counts commands by how they ended.
type tally struct{ done, failed, unknown int64 }

// totals are the counts of all workers.
type totals struct {
	mu      sync.Mutex
	n       tally         // guarded by mu
	slowest time.Duration // guarded by mu
	back    time.Time     // guarded by mu; when the server was started again
	healed  time.Duration // guarded by mu; from back to the first success, 0: none yet
}

func (t *totals) add(began, ended time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.slowest = max(t.slowest, ended.Sub(began))
	switch {
	case err == nil:
		t.n.done++
		if !t.back.IsZero() && t.healed == 0 {
			t.healed = ended.Sub(t.back)
		}
	case errors.Is(err, redial.ErrOutcomeUnknown):
		t.n.unknown++
	default:
		t.n.failed++
	}
}

func (t *totals) serverBack(at time.Time) {
	t.mu.Lock()
	t.back = at
	t.mu.Unlock()
}

func (t *totals) read() (n tally, slowest, healed time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n, t.slowest, t.healed
}

// report prints the summary.
func (t *totals) report(out *narrate.Printer, v verdict) {
	n, slowest, healed := t.read()
	out.Printf("")
	out.Printf("commands      %8d done %8d failed %8d unknown", n.done, n.failed, n.unknown)
	out.Printf("INCR          %8d acked %7d unknown %7d executed", v.acked, v.unknown, v.executed)
	out.Printf("writes        %8d lost %8d doubled", v.lost, v.doubled)
	out.Printf("slowest call  %7.3fs", slowest.Seconds())
	if healed > 0 {
		out.Printf("first success %7.3fs after the server was back", healed.Seconds())
	}
}
