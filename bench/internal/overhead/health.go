package overhead

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/stats"
	"github.com/redial-go/redial/redialtest"
)

// Cost compares redial with go-redis at one task.
type Cost struct {
	Name string
	Bare time.Duration // the median for one unit
	// Ratio is the time of redial over that of go-redis, the median of the rounds, with
	// its quartiles.
	Ratio, Low, High float64
	CPU              float64 // the same of processor time, the median
	Extra            float64 // allocations a unit beyond those of go-redis
}

// Throughput is how many units redial gets done in the time of one of go-redis.
func (c Cost) Throughput() float64 { return 1 / c.Ratio }

// Health measures what redial costs while nothing breaks: one goroutine and many, with
// deadlines and without, with a hook of the caller and without, and to commands without an
// id where others have one.
func Health(rounds int) (costs []Cost, err error) {
	server, err := redialtest.LaunchServer()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	for _, kind := range []string{"", oneHook, idsElsewhere} {
		more, err := health(server.Addr(), rounds, kind)
		if err != nil {
			return nil, err
		}
		costs = append(costs, more...)
	}
	return costs, nil
}

// What is different from a plain program. A program that has used Once once is one that
// uses it, so that comes last.
const (
	oneHook      = ", one hook"
	idsElsewhere = ", where others have ids"
)

func health(addr string, rounds int, kind string) (costs []Cost, err error) {
	if kind == idsElsewhere {
		redial.Once(context.Background(), "another command's")
	}
	c, err := client.Redial.Open(client.Settings{Addr: addr})
	if err != nil {
		return nil, err
	}
	ours := c.(client.GoRedisClient).Redis
	defer func() { err = errors.Join(err, ours.Close()) }()
	if kind != oneHook {
		return beside(addr, rounds, kind, ours, nothing)
	}
	ours.AddHook(idleHook{})
	return beside(addr, rounds, kind, ours, nothing, idleHook{})
}

// nothing goes on besides.
func nothing() (stop func() error) { return func() error { return nil } }

// beside compares a client with go-redis, which has the hooks, at every task. What besides
// begins goes on while time is taken, and not while allocations are counted.
func beside(addr string, rounds int, suffix string, ours redis.Cmdable, besides func() (stop func() error), hooks ...redis.Hook) (costs []Cost, err error) {
	bare := redis.NewClient(&redis.Options{Addr: addr})
	timely := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true}) // as redial has it always
	for _, rdb := range []*redis.Client{bare, timely} {
		defer func() { err = errors.Join(err, rdb.Close()) }()
		for _, h := range hooks {
			rdb.AddHook(h)
		}
	}
	if err := bare.Set(context.Background(), "key", "value", 0).Err(); err != nil {
		return nil, err
	}
	type row struct {
		name string
		task Task
		bare redis.Cmdable
		n    int
	}
	rows := []row{
		{"GET", Gets, bare, 1000},
		{"GET with a deadline", GetsInTime, timely, 1000},
		{"pipeline of 10 GETs", Pipelines, bare, 500},
	}
	for _, goroutines := range []int{8, 64, 512} {
		n := max(8000, 20*goroutines)
		rows = append(rows,
			row{fmt.Sprintf("GET, %d goroutines", goroutines), Parallel(goroutines, Gets), bare, n},
			row{fmt.Sprintf("GET with a deadline, %d goroutines", goroutines), Parallel(goroutines, GetsInTime), timely, n})
	}
	for _, r := range rows {
		works := []Work{r.task.With(r.bare), r.task.With(ours)}
		stop := besides()
		took, err := Rounds(rounds, r.n, works...)
		if err = errors.Join(err, stop()); err != nil {
			return nil, err
		}
		ratios := Ratios(took[0], took[1], Time)
		cost := Cost{
			Name: r.name + suffix, Bare: unit(took[0], r.n),
			Ratio: stats.Quantile(ratios, 0.5), Low: stats.Quantile(ratios, 0.25), High: stats.Quantile(ratios, 0.75),
			CPU: stats.Quantile(Ratios(took[0], took[1], CPU), 0.5),
		}
		var allocs [2]float64
		for i, w := range works {
			if allocs[i], err = Allocations(w, 4*r.n); err != nil {
				return nil, err
			}
		}
		cost.Extra = allocs[1] - allocs[0]
		costs = append(costs, cost)
	}
	return costs, nil
}

// IDs measures what an id costs: INCR with one beside INCR without, both by redial, and
// the memory that the server needs for a record, in bytes.
func IDs(rounds int) (c Cost, bytes int64, err error) {
	server, err := redialtest.LaunchServer()
	if err != nil {
		return c, 0, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()})
	defer func() { err = errors.Join(err, rdb.Close()) }()
	ctx, next := context.Background(), 0
	incrs := func(ctx func() context.Context) Work {
		return func(n int) error {
			for range n {
				if err := rdb.Incr(ctx(), "n").Err(); err != nil {
					return err
				}
			}
			return nil
		}
	}
	id := func() string { return fmt.Sprintf("order-%08d", next) }
	plain := incrs(func() context.Context { return ctx })
	once := incrs(func() context.Context { next++; return redial.Once(ctx, id()) })
	const n = 1000
	took, err := Rounds(rounds, n, plain, once)
	if err != nil {
		return c, 0, err
	}
	ratios := Ratios(took[0], took[1], Time)
	c = Cost{
		Name: "INCR with an id", Bare: unit(took[0], n),
		Ratio: stats.Quantile(ratios, 0.5), Low: stats.Quantile(ratios, 0.25), High: stats.Quantile(ratios, 0.75),
	}
	bytes, err = rdb.MemoryUsage(ctx, "redial:once:"+id()).Result()
	return c, bytes, err
}

// idleHook is a hook that does nothing.
type idleHook struct{}

func (idleHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (idleHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return next(ctx, cmd) }
}

func (idleHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { return next(ctx, cmds) }
}
