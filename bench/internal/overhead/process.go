package overhead

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/testbed"
)

// Every client is measured in a process of its own, as programs have them: with other
// clients in it, their garbage and the depth of their stacks would be the client's, too.
// It lives for one turn: of two equal processes one is faster, by some percent, for as long
// as it lives.

// ChildFlag, as the only argument, makes the program run Child.
const ChildFlag = "-child"

// side says whose client works, and how it is set up.
type side struct {
	Redial          bool // else go-redis
	Timely          bool // go-redis heeds deadlines, as redial does always
	Hooked          bool // with a hook of the caller
	IDs             bool // another command has had an id
	Watched, Traced bool
}

// open makes a client and returns what closes it.
func (s side) open(addr string) (c redis.Cmdable, shut func() error, err error) {
	if s.Watched {
		return watched(addr, s.Traced)
	}
	var rdb redis.UniversalClient
	if s.Redial {
		c, err := client.Redial.Open(client.Settings{Addr: addr})
		if err != nil {
			return nil, nil, err
		}
		rdb = c.(client.GoRedisClient).Redis
	} else {
		rdb = redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: s.Timely})
	}
	if s.Hooked {
		rdb.AddHook(idleHook{})
	}
	if s.IDs {
		redial.Once(context.Background(), "another command's")
	}
	return rdb, rdb.Close, nil
}

// job is what a child does: n units of a task, after as many to warm up.
type job struct {
	Side       side
	Addr       string
	Task       string
	Goroutines int // 0: the child's first
	N          int
	Allocs     bool // count allocations instead
}

// did is what came of a job.
type did struct {
	Spent  Spent
	Allocs float64 // of a unit
	Error  string
}

// Child does the jobs that it reads, until there are no more.
func Child(in io.Reader, out io.Writer) error {
	jobs, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var j job
		if err := jobs.Decode(&j); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		d, err := j.do()
		if err != nil {
			d.Error = err.Error()
		}
		if err := answers.Encode(d); err != nil {
			return err
		}
	}
}

// do opens a client and does the job with it.
func (j job) do() (d did, err error) {
	task, ok := tasks[j.Task]
	if !ok {
		return d, fmt.Errorf("overhead: no task %q", j.Task)
	}
	if j.Goroutines > 0 {
		task = Parallel(j.Goroutines, task)
	}
	rdb, shut, err := j.Side.open(j.Addr)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, shut()) }()
	if err := rdb.Set(context.Background(), "key", "value", 0).Err(); err != nil {
		return d, err
	}
	work := task.With(rdb)
	if j.Allocs {
		d.Allocs, err = Allocations(work, j.N)
		return d, err
	}
	took, err := Rounds(1, j.N, work)
	if err != nil {
		return d, err
	}
	d.Spent = took[0][0]
	return d, nil
}

// byChild has a child of its own do the job.
func (j job) byChild() (d did, err error) {
	c, err := testbed.StartSelf(context.Background(), ChildFlag)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := json.NewEncoder(c.In).Encode(j); err != nil {
		return d, err
	}
	if err := c.Out.Decode(&d); err != nil {
		return d, fmt.Errorf("overhead: child: %w", err)
	}
	if d.Error != "" {
		return d, fmt.Errorf("overhead: child: %s", d.Error)
	}
	return d, nil
}

// inTurns has the jobs done, round after round, in every order, and returns what each took
// in every round.
func inTurns(rounds int, jobs []job) ([][]Spent, error) {
	took := make([][]Spent, len(jobs))
	for r := range rounds {
		order := make([]int, len(jobs))
		for k := range order {
			order[k] = (k + r) % len(jobs)
		}
		if r/len(jobs)%2 == 1 {
			slices.Reverse(order)
		}
		for _, i := range order {
			d, err := jobs[i].byChild()
			if err != nil {
				return nil, err
			}
			took[i] = append(took[i], d.Spent)
		}
	}
	return took, nil
}
