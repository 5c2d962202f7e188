package overhead

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
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
// id where others have one.
func Health(rounds int) (costs []Cost, err error) {
	server, err := redialtest.LaunchServer()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	plain := func() (redis.Cmdable, func() error, error) {
		c, err := client.Redial.Open(client.Settings{Addr: server.Addr()})
		if err != nil {
			return nil, nil, err
		}
		return c.(client.GoRedisClient).Redis, c.Close, nil
	}
	hooked := func() (redis.Cmdable, func() error, error) {
		c, err := client.Redial.Open(client.Settings{Addr: server.Addr()})
		if err != nil {
			return nil, nil, err
		}
		c.(client.GoRedisClient).Redis.AddHook(idleHook{})
		return c.(client.GoRedisClient).Redis, c.Close, nil
	}
	costs, err = beside(server.Addr(), rounds, "", plain)
	if err != nil {
		return nil, err
	}
	more, err := beside(server.Addr(), rounds, ", one hook", hooked, idleHook{})
	if err != nil {
		return nil, err
	}
	costs = append(costs, more...)
	// A program that has used Once once is one that uses it, so this comes last.
	redial.Once(context.Background(), "another command's")
	more, err = beside(server.Addr(), rounds, ", where others have ids", plain)
	return append(costs, more...), err
}

// opener opens a client of redial and returns what closes it.
type opener func() (ours redis.Cmdable, shut func() error, err error)

// beside compares what open opens with go-redis, which has the hooks, at every task.
func beside(addr string, rounds int, suffix string, open opener, hooks ...redis.Hook) (costs []Cost, err error) {
	type row struct {
		name   string
		task   Task
		timely bool // go-redis heeds deadlines, as redial does always
		n      int
	}
	rows := []row{
		{"GET", Gets, false, 1000},
		{"GET with a deadline", GetsInTime, true, 1000},
		{"pipeline of 10 GETs", Pipelines, false, 500},
	}
	for _, goroutines := range []int{8, 64, 512} {
		n := max(5000, 20*goroutines)
		rows = append(rows,
			row{fmt.Sprintf("GET, %d goroutines", goroutines), Parallel(goroutines, Gets), false, n},
			row{fmt.Sprintf("GET with a deadline, %d goroutines", goroutines), Parallel(goroutines, GetsInTime), true, n})
	}
	for _, r := range rows {
		// Two of go-redis, and then redial.
		three := func() (works []Work, shut func() error, err error) {
			ours, end, err := open()
			if err != nil {
				return nil, nil, err
			}
			clients := []redis.Cmdable{}
			for range 2 {
				rdb := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: r.timely})
				for _, h := range hooks {
					rdb.AddHook(h)
				}
				clients = append(clients, rdb)
				end = joined(end, rdb.Close)
			}
			for _, rdb := range append(clients, ours) {
				works = append(works, r.task.With(rdb))
			}
			return works, end, clients[0].Set(context.Background(), "key", "value", 0).Err()
		}
		took, err := FreshRounds(rounds, r.n, three)
		if err != nil {
			return nil, err
		}
		bare, control, ours := took[0], took[1], took[2]
		cost := Cost{
			Name: r.name + suffix, Bare: unit(bare, r.n),
			Time: ratioOf(bare, ours), Control: ratioOf(bare, control),
			CPU: stats.Quantile(Ratios(bare, ours, CPU), 0.5),
		}
		if cost.Extra, err = extra(4*r.n, three); err != nil {
			return nil, err
		}
		costs = append(costs, cost)
	}
	return costs, nil
}

// joined returns a function that closes both.
func joined(a, b func() error) func() error {
	return func() error { return errors.Join(a(), b()) }
}

// extra returns how many allocations a unit makes with redial beyond those with go-redis.
func extra(n int, three func() ([]Work, func() error, error)) (more float64, err error) {
	works, shut, err := three()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, shut()) }()
	bare, err := Allocations(works[0], n)
	if err != nil {
		return 0, err
	}
	ours, err := Allocations(works[2], n)
	return ours - bare, err
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
