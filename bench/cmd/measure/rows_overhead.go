package main

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// The experiments on a healthy server.
func overheadRows() []experiment {
	return []experiment{{
		lines: []line{{"1", "healthy server: cost beyond bare go-redis", []column{
			{name: "allocs/GET", cmp: shown},
			{name: "extra allocs/GET", cmp: atMost},
			{name: "extra allocs/pipeline of 10", cmp: atMost},
			{name: "GET time ratio", cmp: atMost, limit: 1.01},
			{name: "lower quartile"},
			{name: "upper quartile"},
			{name: "pipeline time ratio"},
			{name: "parallel GET time ratio"},
		}}},
		run: overhead,
	}}
}

// task is a piece of work that both clients do in turn.
type task func(rdb redis.Cmdable, n int) error

func gets(rdb redis.Cmdable, n int) error {
	ctx := context.Background()
	for range n {
		if err := rdb.Get(ctx, "key").Err(); err != nil {
			return err
		}
	}
	return nil
}

func pipelines(rdb redis.Cmdable, n int) error {
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

func parallelGets(rdb redis.Cmdable, n int) error {
	const workers = 16
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for range workers {
		wg.Go(func() { errs <- gets(rdb, n/workers) })
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

func overhead(b *bench, _ []kind) samples {
	bare, ours := newSample(), newSample()
	if err := compare(b, bare, ours); err != nil {
		ours.expect(false, "run failed: %v", err)
	}
	return samples{goredisName: {bare}, redialName: {ours}}
}

func compare(b *bench, bare, ours *sample) error {
	server, _, stop, err := launch(bare, false)
	if err != nil {
		return err
	}
	defer stop()
	open := func(f func(settings) (client, error)) (redis.UniversalClient, error) {
		c, err := f(settings{addr: server.Addr()})
		if err != nil {
			return nil, err
		}
		rdb := c.(redisClient).UniversalClient
		return rdb, rdb.Set(context.Background(), "key", "value", 0).Err()
	}
	theirs, err := open(openGoRedis)
	if err != nil {
		return err
	}
	defer func() { _ = theirs.Close() }()
	mine, err := open(openRedial)
	if err != nil {
		return err
	}
	defer func() { _ = mine.Close() }()

	for name, t := range map[string]task{"GET": gets, "pipeline of 10": pipelines} {
		a, err := allocations(t, theirs)
		if err != nil {
			return err
		}
		c, err := allocations(t, mine)
		if err != nil {
			return err
		}
		if name == "GET" {
			bare.set("allocs/GET", a)
			ours.set("allocs/GET", c)
		}
		ours.set("extra allocs/"+name, c-a)
		bare.note("%s allocs/%s: %.2f bare, %.2f redial", name, name, a, c)
	}
	rounds := b.runs(150, 40)
	for name, w := range map[string]struct {
		task task
		n    int
	}{
		"GET time ratio":          {gets, 2000},
		"pipeline time ratio":     {pipelines, 500},
		"parallel GET time ratio": {parallelGets, 4000},
	} {
		ratios, err := paired(w.task, theirs, mine, rounds, w.n)
		if err != nil {
			return err
		}
		ours.set(name, quantile(ratios, 0.5))
		if name == "GET time ratio" {
			ours.set("lower quartile", quantile(ratios, 0.25))
			ours.set("upper quartile", quantile(ratios, 0.75))
		}
		ours.note("%s: %d pairs, quartiles %.3f %.3f %.3f", name, len(ratios),
			quantile(ratios, 0.25), quantile(ratios, 0.5), quantile(ratios, 0.75))
	}
	return nil
}

// allocations returns how many allocations one unit of the task makes, in the
// whole process, to a tenth: what heartbeats allocate is far below that.
func allocations(t task, rdb redis.Cmdable) (float64, error) {
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

// paired runs the task on both clients in rounds A B, B A, A B ... and returns
// time of b over time of a for every round.
func paired(t task, a, b redis.Cmdable, rounds, n int) ([]float64, error) {
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
