package overhead

import (
	"context"
	"errors"
	"time"

	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/stats"
	"github.com/redial-go/redial/redialtest"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// Row compares one task. Times are for one unit.
type Row struct {
	Name                  string
	Bare, Redial, Rueidis time.Duration // medians
	// Ratio is redial over go-redis, the median of the rounds, with its quartiles.
	Ratio, Low, High                        float64
	BareAllocs, RedialAllocs, RueidisAllocs float64
}

// Table runs every task on go-redis, redial and rueidis.
func Table(rounds int) (rows []Row, err error) {
	server, err := redialtest.LaunchServer()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	bare := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer func() { err = errors.Join(err, bare.Close()) }()
	// redial heeds deadlines always, go-redis on request.
	timely := redis.NewClient(&redis.Options{Addr: server.Addr(), ContextTimeoutEnabled: true})
	defer func() { err = errors.Join(err, timely.Close()) }()
	c, err := client.Redial.Open(client.Settings{Addr: server.Addr()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ours := c.(client.GoRedisClient).Redis
	other, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{server.Addr()}, ForceSingleClient: true, DisableCache: true,
	})
	if err != nil {
		return nil, err
	}
	defer other.Close()
	if err := bare.Set(context.Background(), "key", "value", 0).Err(); err != nil {
		return nil, err
	}
	for _, t := range []struct {
		name    string
		task    Task
		bare    *redis.Client
		rueidis Work
		n       int
	}{
		{"GET", Gets, bare, RueidisGets(other), 500},
		{"GET with a deadline", GetsInTime, timely, RueidisGetsInTime(other), 500},
		{"SET", Sets, bare, RueidisSets(other), 500},
		{"pipeline of 10 GETs", Pipelines, bare, RueidisPipelines(other), 200},
		{"GET, 16 goroutines", ParallelGets, bare, RueidisParallelGets(other), 1600},
		{"GET, 16 goroutines, autopipeline", AutoPipelinedGets, bare, RueidisParallelGets(other), 3200},
	} {
		works := []Work{t.task.With(t.bare), t.task.With(ours), t.rueidis}
		took, err := Rounds(rounds, t.n, works...)
		if err != nil {
			return nil, err
		}
		ratios := Ratios(took[0], took[1], Time)
		row := Row{
			Name: t.name,
			Bare: unit(took[0], t.n), Redial: unit(took[1], t.n), Rueidis: unit(took[2], t.n),
			Ratio: stats.Quantile(ratios, 0.5), Low: stats.Quantile(ratios, 0.25), High: stats.Quantile(ratios, 0.75),
		}
		for i, into := range []*float64{&row.BareAllocs, &row.RedialAllocs, &row.RueidisAllocs} {
			if *into, err = Allocations(works[i], 4*t.n); err != nil {
				return nil, err
			}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// unit is the median time of one of n units.
func unit(took []Spent, n int) time.Duration {
	values := make([]float64, len(took))
	for i, d := range took {
		values[i] = float64(d.Time) / float64(n)
	}
	return time.Duration(stats.Quantile(values, 0.5))
}
