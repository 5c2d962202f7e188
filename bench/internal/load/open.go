package load

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/bench/internal/client"
)

// Plan describes an open loop.
type Plan struct {
	// Workers is how many callers there are, each with a call every Every. Their
	// calls are spread evenly over that time.
	Workers int
	Every   time.Duration
	// Deadline is how long after its intended start a call's context ends.
	Deadline time.Duration
	// FailFast makes calls of redial fail at once in an outage; other clients have
	// no such wish.
	FailFast bool
	// Mix is what is issued in turn; empty: the usual mix.
	Mix []Op
	// Surge is what happens between Surge(true) and Surge(false).
	Surge Surge
}

// Surge makes some calls of an open loop scripts that keep the server busy.
type Surge struct {
	OneIn    int           // so many calls; 0: none
	Min, Max time.Duration // that a script takes
}

// length returns how long the i-th script is to take: all lengths between Min and Max
// come equally often, and in the same order with every client.
func (s Surge) length(i int) time.Duration {
	const golden = 0.6180339887498949
	_, part := math.Modf(float64(i) * golden)
	return s.Min + time.Duration(part*float64(s.Max-s.Min))
}

// OpenLoop issues calls at intended moments, whatever became of the earlier ones.
type OpenLoop struct {
	surge atomic.Bool
	quit  chan struct{}
	done  chan struct{} // closed when nothing is issued any more
	wg    sync.WaitGroup

	mu    sync.Mutex
	calls []Call        // guarded by mu; End is zero while under way
	late  time.Duration // guarded by mu
}

// Open starts an open loop. Begin of its calls is their intended start, so that a
// delay of the loop itself counts as one of the client.
func Open(c client.Client, p Plan) *OpenLoop {
	l := &OpenLoop{quit: make(chan struct{}), done: make(chan struct{})}
	if len(p.Mix) == 0 {
		p.Mix = []Op{Get, Set, Incr}
	}
	go l.issue(c, p, time.Now())
	return l
}

func (l *OpenLoop) issue(c client.Client, p Plan, start time.Time) {
	defer close(l.done)
	base := context.Background()
	if p.FailFast {
		base = redial.FailFast(base)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; ; i++ {
		due := start.Add(time.Duration(i) * p.Every / time.Duration(p.Workers))
		timer.Reset(time.Until(due))
		select {
		case <-timer.C:
		case <-l.quit:
			return
		}
		round, worker := i/p.Workers, i%p.Workers
		op := p.Mix[(worker+round)%len(p.Mix)]
		if p.Surge.OneIn > 0 && i%p.Surge.OneIn == 0 && l.surge.Load() {
			op = Busy
		}
		l.mu.Lock()
		l.calls = append(l.calls, Call{Op: op, Begin: due, Worker: worker})
		l.late = max(l.late, time.Since(due))
		l.mu.Unlock()
		l.wg.Go(func() {
			ctx, cancel := context.WithDeadline(base, due.Add(p.Deadline))
			defer cancel()
			var r Call
			if op == Busy {
				err := c.Busy(ctx, p.Surge.length(i/p.Surge.OneIn))
				r = Call{Op: op, Worker: worker, Err: err, End: time.Now()}
			} else {
				r = Issue(ctx, c, op, worker)
			}
			r.Begin = due
			l.mu.Lock()
			defer l.mu.Unlock()
			l.calls[i] = r
		})
	}
}

// Surge begins the plan's surge, or ends it.
func (l *OpenLoop) Surge(on bool) { l.surge.Store(on) }

// Back reports whether every worker has had a success that came after since.
func (l *OpenLoop) Back(workers int, since time.Time) bool {
	back := make(map[int]bool)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.calls {
		if c.Err == nil && c.End.After(since) {
			back[c.Worker] = true
		}
	}
	return len(back) == workers
}

// Stop ends the loop, waits for the calls under way, though not longer than
// patience, and returns all calls. End is zero for those that did not return. It
// also returns by how much the loop itself was late at worst.
func (l *OpenLoop) Stop(patience time.Duration) ([]Call, time.Duration) {
	close(l.quit)
	<-l.done
	all := make(chan struct{})
	go func() {
		l.wg.Wait()
		close(all)
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-all:
	case <-timer.C:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.calls), l.late
}
