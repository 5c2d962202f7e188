// Package overhead compares what two clients cost while everything works.
package overhead

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Task is a piece of work that both clients do in turn.
type Task func(rdb redis.Cmdable, n int) error

func Gets(rdb redis.Cmdable, n int) error {
	ctx := context.Background()
	for range n {
		if err := rdb.Get(ctx, "key").Err(); err != nil {
			return err
		}
	}
	return nil
}

func Pipelines(rdb redis.Cmdable, n int) error {
	ctx := context.Background()
	for range n {
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for range 10 {
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

func ParallelGets(rdb redis.Cmdable, n int) error {
	const workers = 16
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for range workers {
		wg.Go(func() { errs <- Gets(rdb, n/workers) })
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

// Allocations returns how many allocations one unit of the task makes, in the
// whole process, to a tenth: what heartbeats allocate is far below that.
func Allocations(t Task, rdb redis.Cmdable) (float64, error) {
	const n = 10_000
	if err := t(rdb, 100); err != nil {
		return 0, err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := t(rdb, n)
	runtime.ReadMemStats(&after)
	return math.Round(10*float64(after.Mallocs-before.Mallocs)/n) / 10, err
}

// Paired runs the task on both clients in rounds A B, B A, A B ... and returns
// time of b over time of a for every round.
func Paired(t Task, a, b redis.Cmdable, rounds, n int) ([]float64, error) {
	timed := func(rdb redis.Cmdable) (time.Duration, error) {
		began := time.Now()
		err := t(rdb, n)
		return time.Since(began), err
	}
	for _, rdb := range []redis.Cmdable{a, b} {
		if err := t(rdb, n); err != nil {
			return nil, fmt.Errorf("warm-up: %w", err)
		}
	}
	var ratios []float64
	for i := range rounds {
		first, second := a, b
		if i%2 == 1 {
			first, second = b, a
		}
		d1, err := timed(first)
		if err != nil {
			return nil, err
		}
		d2, err := timed(second)
		if err != nil {
			return nil, err
		}
		if i%2 == 1 {
			d1, d2 = d2, d1
		}
		ratios = append(ratios, float64(d2)/float64(d1))
	}
	return ratios, nil
}
