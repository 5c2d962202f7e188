package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// op is a kind of command. GET may be run twice, SET and INCR may not.
type op int

const (
	opGet op = iota
	opSet
	opIncr
	opCount
)

// call is one finished command.
type call struct {
	op         op
	key        string
	begin, end time.Time
	err        error
	worker     int
}

// issue runs one command. Every INCR gets a key of its own, so that the server
// can be asked afterwards how often that very call was executed.
func issue(ctx context.Context, c client, o op, worker int) call {
	r := call{op: o, worker: worker, begin: time.Now()}
	switch o {
	case opGet:
		r.err = c.get(ctx, "key")
	case opSet:
		r.err = c.set(ctx, "key", "value")
	case opIncr:
		r.key = fmt.Sprintf("incr:%d", incrSeq.Add(1))
		_, r.err = c.incr(ctx, r.key)
	}
	r.end = time.Now()
	return r
}

var incrSeq atomic.Int64

// load issues commands in the background until it is stopped.
type load struct {
	quit chan struct{}
	wg   sync.WaitGroup

	mu    sync.Mutex
	calls []call // guarded by mu
}

// The load of most experiments.
const (
	loadWorkers = 50
	loadEvery   = 10 * time.Millisecond
)

// startLoad runs a closed loop: each worker issues a command when its last one
// has returned, at most one per period. with, if not nil, makes a worker's
// context.
func startLoad(c client, workers int, every time.Duration, with func(worker int) context.Context) *load {
	l := &load{quit: make(chan struct{})}
	for w := range workers {
		ctx := context.Background()
		if with != nil {
			ctx = with(w)
		}
		l.wg.Go(func() { l.work(ctx, c, w, every) })
	}
	return l
}

func (l *load) work(ctx context.Context, c client, worker int, every time.Duration) {
	var mine []call
	defer func() {
		l.mu.Lock()
		l.calls = append(l.calls, mine...)
		l.mu.Unlock()
	}()
	due := time.Now().Add(rand.N(every))
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	for i := worker; ; i++ {
		select {
		case <-timer.C:
		case <-l.quit:
			return
		}
		mine = append(mine, issue(ctx, c, op(i)%opCount, worker))
		// Ticks that passed meanwhile are skipped, and the workers stay spread
		// over the period although an outage lets go of all at once.
		due = due.Add(every)
		if late := time.Since(due); late > 0 {
			due = due.Add((late/every + 1) * every)
		}
		timer.Reset(time.Until(due))
	}
}

// startArrivals runs an open loop: rate commands a second arrive whatever became
// of the earlier ones, each with a deadline.
func startArrivals(c client, rate int, deadline time.Duration, base context.Context) *load {
	l := &load{quit: make(chan struct{})}
	l.wg.Go(func() {
		ticker := time.NewTicker(time.Second / time.Duration(rate))
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-ticker.C:
			case <-l.quit:
				return
			}
			l.wg.Go(func() {
				ctx, cancel := context.WithTimeout(base, deadline)
				defer cancel()
				r := issue(ctx, c, op(i)%opCount, i)
				l.mu.Lock()
				l.calls = append(l.calls, r)
				l.mu.Unlock()
			})
		}
	})
	return l
}

// stop ends the load, waits for the calls under way and returns all.
func (l *load) stop() []call {
	close(l.quit)
	l.wg.Wait()
	return l.calls
}

// atOnce issues n commands at the same moment.
func atOnce(c client, n int) []call {
	calls := make([]call, n)
	var wg sync.WaitGroup
	gun := make(chan struct{})
	for i := range calls {
		wg.Go(func() {
			<-gun
			calls[i] = issue(context.Background(), c, op(i)%opCount, i)
		})
	}
	close(gun)
	wg.Wait()
	return calls
}

// firstSuccess returns how long after ready the first call came back with
// success, of those that came back after since. It is at least 0.
func firstSuccess(calls []call, since, ready time.Time) time.Duration {
	best := never
	for _, c := range calls {
		if c.err == nil && c.end.After(since) {
			best = min(best, max(c.end.Sub(ready), 0))
		}
	}
	return best
}

// never stands for an event that did not happen.
const never = time.Duration(1<<63 - 1)

// failures counts the calls that began in [from, to) and failed, and returns one
// of their errors.
func failures(calls []call, from, to time.Time) (n int, example error) {
	for _, c := range calls {
		if c.err != nil && !c.begin.Before(from) && c.begin.Before(to) {
			n++
			example = c.err
		}
	}
	return n, example
}
