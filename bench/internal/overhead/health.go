package overhead

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/bench/internal/stats"
	"github.com/redial-go/redial/redialtest"
)

// Cost compares redial with go-redis at one task.
type Cost struct {
	Name string
	Bare time.Duration // the median for one unit
	// Time is that of redial over that of go-redis, Control that of another client of
	// go-redis, which is as good as this measurement can be.
	Time, Control Ratio
	CPU           float64 // redial's processor time over that of go-redis, the median
	Extra         float64 // allocations a unit beyond those of go-redis
}

// Ratio is the median of those of the rounds, with its quartiles.
type Ratio struct{ Median, Low, High float64 }

func (r Ratio) String() string { return fmt.Sprintf("%.3f [%.3f…%.3f]", r.Median, r.Low, r.High) }

// ratioOf returns that of b to a.
func ratioOf(a, b []Spent) Ratio {
	ratios := Ratios(a, b, Time)
	return Ratio{stats.Quantile(ratios, 0.5), stats.Quantile(ratios, 0.25), stats.Quantile(ratios, 0.75)}
}

// Throughput is how many units redial gets done in the time of one of go-redis.
func (c Cost) Throughput() float64 { return 1 / c.Time.Median }

// Health measures what redial costs while nothing breaks: one goroutine and many, with
// deadlines and without, with a hook of the caller and without, and to commands without an
// id where others have one. Of these it does those whose names have only in them.
func Health(rounds int, only string) (costs []Cost, err error) {
	server, err := redialtest.LaunchServer()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	bare, ours := side{}, side{Redial: true}
	costs, err = beside(server.Addr(), rounds, only, "", bare, ours)
	if err != nil {
		return nil, err
	}
	more, err := beside(server.Addr(), rounds, only, ", one hook", side{Hooked: true}, side{Redial: true, Hooked: true})
	if err != nil {
		return nil, err
	}
	costs = append(costs, more...)
	more, err = beside(server.Addr(), rounds, only, ", where others have ids", bare, side{Redial: true, IDs: true})
	return append(costs, more...), err
}

// row is a task that sides are compared at.
type row struct {
	name       string
	task       string
	goroutines int
	n          int
}

// beside compares a client of redial with one of go-redis, at every task whose name has
// only in it.
func beside(addr string, rounds int, only, suffix string, bare, ours side) (costs []Cost, err error) {
	rows := []row{
		{"GET", "get", 0, 1000},
		{"GET with a deadline", "get in time", 0, 1000},
		{"pipeline of 10 GETs", "pipeline", 0, 500},
		{"GET, a new goroutine each", "get apart", 8, 5000},
		{"GET with a deadline, a new goroutine each", "get in time apart", 8, 5000},
		{"pipeline of 10 GETs, a new goroutine each", "pipeline apart", 8, 2000},
	}
	for _, goroutines := range []int{8, 64, 512} {
		n := max(20_000, 20*goroutines) // a quarter of a second, so that it is no more of starting
		rows = append(rows,
			row{fmt.Sprintf("GET, %d goroutines", goroutines), "get", goroutines, n},
			row{fmt.Sprintf("GET with a deadline, %d goroutines", goroutines), "get in time", goroutines, n})
	}
	for _, r := range rows {
		r.name += suffix
		if !strings.Contains(r.name, only) {
			continue
		}
		cost, err := r.cost(addr, rounds, bare, ours)
		if err != nil {
			return nil, err
		}
		costs = append(costs, cost)
	}
	return costs, nil
}

// cost compares two sides, and the first with itself, in processes of their own.
func (r row) cost(addr string, rounds int, bare, ours side) (c Cost, err error) {
	bare.Timely = strings.HasPrefix(r.task, "get in time")
	jobs := make([]job, 3)
	for i, s := range []side{bare, bare, ours} {
		jobs[i] = job{Side: s, Addr: addr, Task: r.task, Goroutines: r.goroutines, N: r.n}
	}
	took, err := inTurns(rounds, jobs)
	if err != nil {
		return c, err
	}
	c = Cost{
		Name: r.name, Bare: unit(took[0], r.n),
		Time: ratioOf(took[0], took[2]), Control: ratioOf(took[0], took[1]),
		CPU: stats.Quantile(Ratios(took[0], took[2], CPU), 0.5),
	}
	var allocs [3]float64
	for i := range jobs {
		jobs[i].Allocs, jobs[i].N = true, 4*r.n
		d, err := jobs[i].byChild()
		if err != nil {
			return c, err
		}
		allocs[i] = d.Allocs
	}
	c.Extra = allocs[2] - allocs[0]
	return c, nil
}

// joined returns a function that closes both.
func joined(a, b func() error) func() error {
	return func() error { return errors.Join(a(), b()) }
}

// Stacks returns how large the stack of a goroutine is that has issued a GET and nothing
// else, with go-redis and with redial, in bytes. Where many goroutines issue one command
// each, this is most of what redial costs.
func Stacks() (bare, ours uint64, err error) {
	server, err := redialtest.LaunchServer()
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	theirs, mine := redis.NewClient(&redis.Options{Addr: server.Addr()}), redial.NewClient(&redis.Options{Addr: server.Addr()})
	defer func() { err = errors.Join(err, theirs.Close(), mine.Close()) }()
	if err := theirs.Set(context.Background(), "key", "value", 0).Err(); err != nil {
		return 0, 0, err
	}
	if bare, err = stackOf(Task(Gets).With(theirs)); err != nil {
		return 0, 0, err
	}
	ours, err = stackOf(Task(Gets).With(mine))
	return bare, ours, err
}

// stackOf returns how large the stack of a goroutine is that has done one unit.
func stackOf(w Work) (uint64, error) {
	if err := inParallel(parallel, 100*parallel, w); err != nil { // there are connections
		return 0, err
	}
	const goroutines = 1000
	var before, after runtime.MemStats
	var worked, left sync.WaitGroup
	worked.Add(goroutines)
	errs, leave := make(chan error, goroutines), make(chan struct{})
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range goroutines {
		left.Go(func() {
			errs <- w(1)
			worked.Done()
			<-leave
		})
	}
	worked.Wait()
	runtime.ReadMemStats(&after)
	close(leave)
	left.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return (after.StackInuse - before.StackInuse) / goroutines, nil
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
	c = Cost{Name: "INCR with an id", Bare: unit(took[0], n), Time: ratioOf(took[0], took[1])}
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
