// Package overhead compares what clients cost while everything works.
package overhead

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// Work does n units of something with one client.
type Work func(n int) error

// Task is a piece of work for go-redis and whatever has its methods.
type Task func(rdb redis.Cmdable, n int) error

// With binds a task to a client.
func (t Task) With(rdb redis.Cmdable) Work {
	return func(n int) error { return t(rdb, n) }
}

// The numbers of commands in a pipeline and of goroutines in parallel tasks.
const (
	pipelined = 10
	parallel  = 16
)

// Gets issues GET n times.
func Gets(rdb redis.Cmdable, n int) error {
	ctx := context.Background()
	for range n {
		if err := rdb.Get(ctx, "key").Err(); err != nil {
			return err
		}
	}
	return nil
}

// GetsInTime issues GET n times, each with a deadline of its own.
func GetsInTime(rdb redis.Cmdable, n int) error {
	for range n {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := rdb.Get(ctx, "key").Err()
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// Sets issues SET n times.
func Sets(rdb redis.Cmdable, n int) error {
	ctx := context.Background()
	for range n {
		if err := rdb.Set(ctx, "key", "value", 0).Err(); err != nil {
			return err
		}
	}
	return nil
}

// Pipelines issues n pipelines of 10 GETs.
func Pipelines(rdb redis.Cmdable, n int) error {
	ctx := context.Background()
	for range n {
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for range pipelined {
				p.Get(ctx, "key")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tasks are those that a child knows.
var tasks = map[string]Task{
	"get": Gets, "get in time": GetsInTime, "pipeline": Pipelines,
	"get apart": Apart(Gets), "get in time apart": Apart(GetsInTime), "pipeline apart": Apart(Pipelines),
}

// Apart does every unit of a task in a new goroutine, one after the other, as a server does
// that has one for each request: its stack is small, and has to grow.
func Apart(t Task) Task {
	return func(rdb redis.Cmdable, n int) error {
		done := make(chan error)
		for range n {
			go func() { done <- t(rdb, 1) }()
			if err := <-done; err != nil {
				return err
			}
		}
		return nil
	}
}

// ParallelGets issues n GETs from 16 goroutines.
func ParallelGets(rdb redis.Cmdable, n int) error { return Parallel(parallel, Gets)(rdb, n) }

// Parallel spreads the n units of a task over goroutines.
func Parallel(goroutines int, t Task) Task {
	return func(rdb redis.Cmdable, n int) error { return inParallel(goroutines, n, t.With(rdb)) }
}

// AutoPipelinedGets is ParallelGets through the client's autopipeline.
func AutoPipelinedGets(rdb redis.Cmdable, n int) error {
	owner, ok := rdb.(interface {
		AutoPipeline() (*redis.AutoPipeliner, error)
	})
	if !ok {
		return fmt.Errorf("overhead: %T has no autopipeline", rdb)
	}
	ap, err := owner.AutoPipeline() // the same one every time
	if err != nil {
		return err
	}
	return ParallelGets(ap, n)
}

// inParallel spreads n units over goroutines.
func inParallel(goroutines, n int, w Work) error {
	var wg sync.WaitGroup
	errs := make(chan error, goroutines)
	for i := range goroutines {
		wg.Go(func() { errs <- w((n + i) / goroutines) })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Allocations returns how many allocations one unit makes, in the whole process,
// to a tenth: what heartbeats allocate is far below that.
func Allocations(w Work, n int) (float64, error) {
	if err := w(n / 10); err != nil {
		return 0, err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := w(n)
	runtime.ReadMemStats(&after)
	return math.Round(10*float64(after.Mallocs-before.Mallocs)/float64(n)) / 10, err
}

// Spent is what a piece of work takes: time, and what of it the processors were busy with
// this process. The one depends on what else the machine does, the other hardly.
type Spent struct{ Time, CPU time.Duration }

// Time and CPU are for Ratios.
func Time(s Spent) time.Duration { return s.Time }
func CPU(s Spent) time.Duration  { return s.CPU }

// Rounds lets all work n units each, in rounds A B C, C B A, A B C, ..., and
// returns what each took in every round, by the order of the works.
func Rounds(rounds, n int, works ...Work) ([][]Spent, error) {
	for _, w := range works {
		if err := w(n); err != nil {
			return nil, fmt.Errorf("warm-up: %w", err)
		}
	}
	took := make([][]Spent, len(works))
	for r := range rounds {
		for k := range works {
			i := k
			if r%2 == 1 {
				i = len(works) - 1 - k
			}
			began, busy := time.Now(), processorTime()
			if err := works[i](n); err != nil {
				return nil, err
			}
			took[i] = append(took[i], Spent{time.Since(began), processorTime() - busy})
		}
	}
	return took, nil
}

// processorTime is what this process has had of the processors.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // it has no other errors than for arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Ratios returns b over a for every round, of time or of processor time.
func Ratios(a, b []Spent, of func(Spent) time.Duration) []float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = float64(of(b[i])) / float64(of(a[i]))
	}
	return ratios
}
