// Package load issues commands the way programs do, and records what became of
// every one.
package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/stats"
)

// Op is a kind of command. GET may be run twice, SET and INCR may not.
type Op int

// The kinds of commands. GetIncr is a pipeline of two.
const (
	Get Op = iota
	Set
	Incr
	opCount // of the usual mix
	GetIncr
	Busy // a script that reads and keeps the server busy
)

// Call is one finished command.
type Call struct {
	Op         Op
	Key        string // of what it counts up, if it does
	Begin, End time.Time
	Err        error
	Worker     int
}

// Issue runs one command. Every INCR gets a key of its own, so that the server
// can be asked afterwards how often that very call was executed.
func Issue(ctx context.Context, c client.Client, o Op, worker int) Call {
	r := Call{Op: o, Worker: worker, Begin: time.Now()}
	switch o {
	case Get:
		r.Err = c.Get(ctx, "key")
	case Set:
		r.Err = c.Set(ctx, "key", "value")
	case Incr:
		r.Key = nextKey()
		_, r.Err = c.Incr(ctx, r.Key)
	case GetIncr:
		r.Key = nextKey()
		r.Err = c.GetIncr(ctx, "key", r.Key)
	}
	r.End = time.Now()
	return r
}

// Mixed returns the i-th command of the usual mix: GET, SET, INCR in turn.
func Mixed(i int) Op { return Op(i) % opCount }

func nextKey() string { return fmt.Sprintf("incr:%d", incrSeq.Add(1)) }

var incrSeq atomic.Int64

// Load issues commands in the background until it is stopped.
type Load struct {
	quit chan struct{}
	wg   sync.WaitGroup

	mu    sync.Mutex
	calls []Call // guarded by mu
}

// The closed loop of most experiments.
const (
	Workers = 50
	Every   = 10 * time.Millisecond
)

// Closed runs a closed loop: each worker issues a command when its last one
// has returned, at most one per period. with, if not nil, makes a worker's
// context.
func Closed(c client.Client, workers int, every time.Duration, with func(worker int) context.Context) *Load {
	l := &Load{quit: make(chan struct{})}
	for w := range workers {
		ctx := context.Background()
		if with != nil {
			ctx = with(w)
		}
		l.wg.Go(func() { l.work(ctx, c, w, every) })
	}
	return l
}

func (l *Load) work(ctx context.Context, c client.Client, worker int, every time.Duration) {
	var mine []Call
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
		mine = append(mine, Issue(ctx, c, Mixed(i), worker))
		// Ticks that passed meanwhile are skipped, and the workers stay spread
		// over the period although an outage lets go of all at once.
		due = due.Add(every)
		if late := time.Since(due); late > 0 {
			due = due.Add((late/every + 1) * every)
		}
		timer.Reset(time.Until(due))
	}
}

// Arrivals runs an open loop: rate commands a second arrive whatever became
// of the earlier ones, each with a deadline.
func Arrivals(c client.Client, rate int, deadline time.Duration, base context.Context) *Load {
	l := &Load{quit: make(chan struct{})}
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
				r := Issue(ctx, c, Mixed(i), i)
				l.mu.Lock()
				l.calls = append(l.calls, r)
				l.mu.Unlock()
			})
		}
	})
	return l
}

// Stop ends the load, waits for the calls under way and returns all.
func (l *Load) Stop() []Call {
	close(l.quit)
	l.wg.Wait()
	return l.calls
}

// AtOnce issues n commands at the same moment.
func AtOnce(c client.Client, n int) []Call {
	calls := make([]Call, n)
	var wg sync.WaitGroup
	gun := make(chan struct{})
	for i := range calls {
		wg.Go(func() {
			<-gun
			calls[i] = Issue(context.Background(), c, Mixed(i), i)
		})
	}
	close(gun)
	wg.Wait()
	return calls
}

// FirstSuccess returns how long after ready the first call came back with
// success, of those that came back after since. It is at least 0.
func FirstSuccess(calls []Call, since, ready time.Time) time.Duration {
	best := stats.Never
	for _, c := range calls {
		if c.Err == nil && c.End.After(since) {
			best = min(best, max(c.End.Sub(ready), 0))
		}
	}
	return best
}

// Failures counts the calls that began in [from, to) and failed, and returns one
// of their errors.
func Failures(calls []Call, from, to time.Time) (n int, example error) {
	for _, c := range calls {
		if c.Err != nil && !c.Begin.Before(from) && c.Begin.Before(to) {
			n++
			example = c.Err
		}
	}
	return n, example
}
