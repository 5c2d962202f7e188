package main

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/overhead"
	"github.com/redial-go/redial/bench/internal/stats"
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
		run: healthy,
	}}
}

func healthy(b *bench, _ []client.Kind) samples {
	bare, ours := newSample(), newSample()
	if err := compare(b, bare, ours); err != nil {
		ours.expect(false, "run failed: %v", err)
	}
	return samples{client.GoRedisName: {bare}, client.RedialName: {ours}}
}

func compare(b *bench, bare, ours *sample) error {
	server, _, stop, err := launch(bare, false)
	if err != nil {
		return err
	}
	defer stop()
	open := func(f func(client.Settings) (client.Client, error)) (redis.UniversalClient, error) {
		c, err := f(client.Settings{Addr: server.Addr()})
		if err != nil {
			return nil, err
		}
		rdb := c.(client.GoRedisClient).Redis
		return rdb, rdb.Set(context.Background(), "key", "value", 0).Err()
	}
	theirs, err := open(client.GoRedis.Open)
	if err != nil {
		return err
	}
	defer func() { _ = theirs.Close() }()
	mine, err := open(client.Redial.Open)
	if err != nil {
		return err
	}
	defer func() { _ = mine.Close() }()

	for name, t := range map[string]overhead.Task{"GET": overhead.Gets, "pipeline of 10": overhead.Pipelines} {
		a, err := overhead.Allocations(t.With(theirs), 10_000)
		if err != nil {
			return err
		}
		c, err := overhead.Allocations(t.With(mine), 10_000)
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
		task overhead.Task
		n    int
	}{
		"GET time ratio":          {overhead.Gets, 2000},
		"pipeline time ratio":     {overhead.Pipelines, 500},
		"parallel GET time ratio": {overhead.ParallelGets, 4000},
	} {
		took, err := overhead.Rounds(rounds, w.n, w.task.With(theirs), w.task.With(mine))
		if err != nil {
			return err
		}
		ratios := overhead.Ratios(took[0], took[1], overhead.Time)
		ours.set(name, stats.Quantile(ratios, 0.5))
		if name == "GET time ratio" {
			ours.set("lower quartile", stats.Quantile(ratios, 0.25))
			ours.set("upper quartile", stats.Quantile(ratios, 0.75))
		}
		ours.note("%s: %d pairs, quartiles %.3f %.3f %.3f", name, len(ratios),
			stats.Quantile(ratios, 0.25), stats.Quantile(ratios, 0.5), stats.Quantile(ratios, 0.75))
	}
	return nil
}
