// Package chaos breaks things between Redis clients and their servers and records
// what becomes of the calls.
package chaos

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/redial-go/redial/bench/internal/client"
)

// Options say how much to do.
type Options struct {
	Quick bool // shorter faults
	Runs  int
	Seed  uint64 // of what varies the lengths of faults
	Lanes int    // scenarios at a time
	Apart bool   // one client at a time instead of all side by side
	// Progress gets a line for each scenario that begins, and with Verbose one for
	// each run that ends.
	Progress io.Writer
	Verbose  bool
}

// repeats is how often a run is made again that a busy machine has spoiled.
func (o Options) repeats() int {
	if o.Quick {
		return 1
	}
	return 2
}

// Outcome is what a scenario gave.
type Outcome struct {
	Scenario *Scenario
	// Runs holds those that finished, by name of the client.
	Runs map[string][]*Run
	// Repeated is how many runs were made again, because the machine was too busy
	// for them or the test bed failed.
	Repeated int
	// Failures are runs that could not be made or mean nothing.
	Failures []string
}

// stagger is the time between the starts of two clients that play side by side: it
// keeps the moments apart at which all their callers come back at once.
const stagger = 150 * time.Millisecond

// Suite plays the scenarios. Every client has a server, a proxy and a process of
// its own. Within a run of a scenario all play side by side; which one starts first
// changes from run to run.
func Suite(ctx context.Context, scenarios []*Scenario, kinds []client.Kind, opt Options) []*Outcome {
	outcomes := make([]*Outcome, len(scenarios))
	for i, s := range scenarios {
		outcomes[i] = &Outcome{Scenario: s, Runs: make(map[string][]*Run)}
	}
	var mu sync.Mutex // guards outcomes and Progress
	for n := range opt.Runs {
		order := slices.Concat(kinds[n%len(kinds):], kinds[:n%len(kinds)])
		lanes := make(chan struct{}, max(opt.Lanes, 1))
		var wg sync.WaitGroup
		for _, i := range longestFirst(scenarios, opt.Quick) {
			s := scenarios[i]
			if !s.PubSub { // that one is no load to speak of
				lanes <- struct{}{}
			}
			mu.Lock()
			fmt.Fprintf(opt.Progress, "run %d of %d: %s, %s\n", n+1, opt.Runs, s.Title, s.Dialer)
			mu.Unlock()
			wg.Go(func() {
				if !s.PubSub {
					defer func() { <-lanes }()
				}
				var side sync.WaitGroup
				for place, k := range order {
					if !s.fits(k) {
						continue
					}
					one := func() {
						if !opt.Apart {
							time.Sleep(time.Duration(place) * stagger)
						}
						how := play{Quick: opt.Quick, Seed: opt.Seed, Run: n}
						run, err := s.try(ctx, k, how)
						repeated := 0
						for ; repeated < opt.repeats() && (err != nil || run.Spoiled()) && ctx.Err() == nil; repeated++ {
							mu.Lock()
							fmt.Fprintf(opt.Progress, "once more: %s, %s: %v\n", s.Title, k.Title, cmp.Or(err, errLate))
							mu.Unlock()
							run, err = s.try(ctx, k, how)
						}
						mu.Lock()
						defer mu.Unlock()
						outcomes[i].Repeated += repeated
						line := outcomes[i].add(k, n, run, err)
						if opt.Verbose || err != nil {
							fmt.Fprintln(opt.Progress, line)
						}
					}
					if opt.Apart {
						one()
					} else {
						side.Go(one)
					}
				}
				side.Wait()
			})
		}
		wg.Wait()
	}
	return outcomes
}

var errLate = errors.New("the load was late")

// try plays a scenario once.
func (s *Scenario) try(ctx context.Context, k client.Kind, how play) (run *Run, err error) {
	if s.Namespace {
		return s.performApart(ctx, k, how)
	}
	return s.tryHere(ctx, k, how)
}

// tryHere is try in this process and its network namespace. What redialtest panics
// with, since it serves no test here, is an error like any other.
func (s *Scenario) tryHere(ctx context.Context, k client.Kind, how play) (run *Run, err error) {
	defer func() {
		if broken := recover(); broken != nil {
			err = fmt.Errorf("chaos: %v", broken)
		}
	}()
	return s.perform(ctx, k, how)
}

// longestFirst orders scenarios so that none is left to run alone at the end.
func longestFirst(scenarios []*Scenario, quick bool) []int {
	order := make([]int, len(scenarios))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(scenarios[b].after(quick), scenarios[a].after(quick))
	})
	return order
}

// add keeps a run and describes it.
func (o *Outcome) add(k client.Kind, n int, run *Run, err error) string {
	where := fmt.Sprintf("%s, %s, run %d", o.Scenario.FullName(), k.Title, n+1)
	if err != nil {
		failure := fmt.Sprintf("%s: %v", where, err)
		o.Failures = append(o.Failures, failure)
		return failure
	}
	run.Number = n
	o.Runs[k.Name] = append(o.Runs[k.Name], run)
	for _, d := range run.Doubts {
		o.Failures = append(o.Failures, fmt.Sprintf("%s: %s", where, d))
	}
	return fmt.Sprintf("%s: %s", where, run)
}

// String lists the values of a run in one line.
func (r *Run) String() string {
	text := ""
	for _, m := range Metrics() {
		if v, ok := r.Values[m.Key]; ok {
			text += fmt.Sprintf("%s %s; ", m.Key, m.Format(v, r.Censored[m.Key]))
		}
	}
	return fmt.Sprintf("%s%d doubts %v; %v", text, len(r.Doubts), r.Doubts, r.Errors)
}
