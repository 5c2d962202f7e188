package conform

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/testkit/platform"
)

var (
	conformScripts = flag.Int("conform-scripts", enoughScripts(), "random scripts to run on go-redis and on redial")
	conformSeed    = flag.Uint64("conform-seed", 1, "of the first of these scripts; 0: a new one")
)

// enoughScripts is fewer under the race detector, which runs them ten times as slowly.
func enoughScripts() int {
	if platform.RaceDetector {
		return 100
	}
	return platform.Times(2000, 500)
}

// plan is a random script: what hooks a client has and what is asked of it.
type plan struct {
	seed     uint64
	kind     kind
	side     side // which of redial's
	protocol int
	hooks    []planHook
	steps    []move
}

// planHook is a hook that notes all and acts on some commands.
type planHook struct {
	onNodes bool
	viaNew  bool
	before  int    // the step before which it is added to the client
	act     act    // the zero value: it looks
	only    string // acts on this command, and on batches that have it, alone; "": on all
}

// move is one thing that a caller does.
type move struct {
	what     string    // "call", "pipeline", "transaction", "watch", "conn" or "auto"
	ctx      string    // "plain", "cancelable", "deadline", "canceled", "expired"
	commands []command // of a call one
	steps    []move    // of a watch or conn
	fails    bool      // the function of a batch or watch returns an error
}

type command []any

func (c command) String() string { return strings.TrimSpace(fmt.Sprintln([]any(c)...)) }

func (s move) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s context", s.what, s.ctx)
	if s.fails {
		b.WriteString(", the function fails")
	}
	b.WriteString(")")
	for _, c := range s.commands {
		fmt.Fprintf(&b, " [%s]", c)
	}
	for _, inner := range s.steps {
		fmt.Fprintf(&b, "\n        %s", inner)
	}
	return b.String()
}

func (p plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %s, RESP%d, %s", p.seed, p.kind, p.protocol, p.side)
	for i, h := range p.hooks {
		where := fmt.Sprint("on the client before step ", h.before)
		if h.onNodes {
			where = fmt.Sprint("on nodes, by NewClient ", h.viaNew)
		}
		does := "looks"
		if h.act.name != "" {
			does = h.act.name
		}
		if h.only != "" {
			does += ", at " + h.only + " only"
		}
		fmt.Fprintf(&b, "\n  hook %d %s: %s", i, where, does)
	}
	for i, s := range p.steps {
		fmt.Fprintf(&b, "\n  step %d: %s", i, s)
	}
	return b.String()
}

// gentle are the acts of random hooks: not those that end the process where go-redis runs
// hooks on its own goroutines.
func gentle() (list []act) {
	for _, group := range slices.Sorted(maps.Keys(acts)) {
		for _, a := range acts[group] {
			if !a.panics {
				list = append(list, a)
			}
		}
	}
	return list
}

// makePlan makes the script of a seed.
func makePlan(seed uint64) plan {
	rnd := rand.New(rand.NewPCG(seed, 0))
	p := plan{seed: seed, protocol: 2 + rnd.IntN(2), side: wrapped}
	p.kind = []kind{aClient, aClient, aCluster, aCluster, aRing}[rnd.IntN(5)]
	if rnd.IntN(4) == 0 {
		p.side = managed
	}
	for range 1 + rnd.IntN(8) {
		p.steps = append(p.steps, makeMove(rnd, p.kind, false))
	}
	all := gentle()
	viaNew := rnd.IntN(2) == 0
	for range rnd.IntN(4) {
		h := planHook{viaNew: viaNew, before: rnd.IntN(len(p.steps))}
		if rnd.IntN(2) == 0 {
			h.before = 0
		}
		if rnd.IntN(3) > 0 {
			h.act = all[rnd.IntN(len(all))]
		}
		if h.act.hidden && p.side == managed {
			h.act = act{}
		}
		h.onNodes = p.kind.hasNodes() && rnd.IntN(2) == 0 && (!h.act.retried || p.kind == aRing)
		if rnd.IntN(2) == 0 {
			h.only = []string{"get", "set", "append", "lpush", "incr"}[rnd.IntN(5)]
		}
		p.hooks = append(p.hooks, h)
	}
	return p
}

// makeMove makes one step, or one within a Watch or Conn.
func makeMove(rnd *rand.Rand, k kind, within bool) move {
	s := move{ctx: []string{"plain", "plain", "cancelable", "deadline", "deadline"}[rnd.IntN(5)]}
	ended := rnd.IntN(20) == 0 && !within // on the one connection of a Conn or Tx go-redis sends, or breaks it
	if ended {
		s.ctx = []string{"canceled", "expired"}[rnd.IntN(2)]
	}
	tag := []string{"{a}", "{b}", "{c}"}[rnd.IntN(3)]
	whats := []string{"call", "call", "call", "pipeline", "pipeline", "transaction", "transaction"}
	if !within {
		whats = append(whats, "watch")
		if k == aClient {
			whats = append(whats, "conn", "auto")
		}
		if k == aCluster {
			whats = append(whats, "auto")
		}
	} else {
		tag = "{a}" // the key that is watched decides about the node
	}
	s.what = whats[rnd.IntN(len(whats))]
	if s.what == "watch" && k == aCluster && ended {
		s.ctx = "plain" // go-redis may not know the nodes yet, and redial does
	}
	switch s.what {
	case "call", "auto":
		if s.what == "auto" && ended {
			s.ctx = "plain" // an auto-pipeline runs it or not, as it happens
		}
		s.commands = []command{makeCommand(rnd, k, tag)}
	case "pipeline":
		// Of several shards of a ring that fail any one may be the first, so its batches
		// stay with one. Those of a cluster do not have to.
		mixed := k == aCluster && !within && rnd.IntN(2) == 0
		for range rnd.IntN(6) {
			if mixed {
				tag = []string{"{a}", "{b}", "{c}"}[rnd.IntN(3)]
			}
			s.commands = append(s.commands, makeCommand(rnd, k, tag))
		}
		s.fails = rnd.IntN(20) == 0
	case "transaction":
		for range rnd.IntN(5) {
			s.commands = append(s.commands, makeCommand(rnd, k, tag))
		}
		if k == aCluster && !within && rnd.IntN(10) == 0 {
			s.commands = append(s.commands, command{"set", "{b}k", "v"}, command{"set", "{a}k", "v"}) // of two slots
		}
		s.fails = rnd.IntN(20) == 0
	case "watch", "conn":
		for range rnd.IntN(4) {
			s.steps = append(s.steps, makeMove(rnd, k, true))
		}
		s.fails = s.what == "watch" && rnd.IntN(5) == 0
	}
	return s
}

// makeCommand makes a command that has a key with the tag. What a server refuses for the
// time being is not among the replies: that it is sent again is documented.
func makeCommand(rnd *rand.Rand, k kind, tag string) command {
	key := func(name string) string { return tag + name }
	list := []command{
		{"get", key("k")}, {"get", key("k")}, {"get", key("n")}, {"get", key("missing")}, {"get", key("l")},
		{"set", key("k"), "v"}, {"set", key("k"), rnd.IntN(10)}, {"set", key("n"), 5},
		{"incr", key("n")}, {"incr", key("n")}, {"incr", key("k")}, {"append", key("log"), "x"}, {"append", key("log"), "y"},
		{"lpush", key("l"), "x"}, {"lpush", key("k"), "x"}, {"llen", key("l")}, {"lrange", key("l"), 0, -1},
		{"hset", key("h"), "f", rnd.IntN(10)}, {"hget", key("h"), "f"}, {"hget", key("h"), "missing"}, {"hgetall", key("h")}, {"hgetall", key("k")},
		{"del", key("k")}, {"del", key("k"), key("n")}, {"exists", key("k"), key("n")}, {"mget", key("k"), key("n"), key("missing")},
		{"get", key("k"), "too", "many"}, {"set", key("k")}, {"nonsense", key("k")}, {"strlen", key("log")},
		{"set", key("misconf"), "v"}, {"get", key("noperm")}, {"set", key("oom"), "v"}, {"set", key("custom"), "v"}, {"get", key("own")},
	}
	if k == aClient {
		list = append(list, command{"scan", 0}, command{"echo", "hello"}, command{"mget", "a", "b", "c"})
	}
	return list[rnd.IntN(len(list))]
}

// typed makes the command as go-redis's own methods do, or as Do does where there is none
// for these arguments.
func (c command) typed(ctx context.Context) redis.Cmder {
	switch c[0] {
	case "get", "hget", "echo":
		if len(c) <= 3 {
			return redis.NewStringCmd(ctx, c...)
		}
	case "set":
		return redis.NewStatusCmd(ctx, c...)
	case "incr", "append", "lpush", "llen", "hset", "del", "exists", "strlen":
		return redis.NewIntCmd(ctx, c...)
	case "lrange":
		return redis.NewStringSliceCmd(ctx, c...)
	case "hgetall":
		return redis.NewMapStringStringCmd(ctx, c...)
	case "mget":
		return redis.NewSliceCmd(ctx, c...)
	}
	return redis.NewCmd(ctx, c...)
}

// hook makes the hook of a plan.
func (h planHook) hook(w *world, stream string, number int) redis.Hook {
	s := spy{w: w, stream: stream, name: fmt.Sprint("hook ", number)}
	concerns := func(cmds ...redis.Cmder) bool {
		return h.only == "" || slices.ContainsFunc(cmds, func(c redis.Cmder) bool { return c.Name() == h.only })
	}
	if h.act.single != nil {
		s.single = func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			if !concerns(cmd) {
				return next(ctx, cmd)
			}
			return h.act.single(ctx, cmd, next)
		}
	}
	if h.act.batch != nil {
		s.batch = func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
			if len(cmds) == 0 || !concerns(cmds...) {
				return next(ctx, cmds)
			}
			return h.act.batch(ctx, cmds, next)
		}
	}
	return s
}

// caller is what a step is done with: a client, a Conn or a Tx.
type caller interface {
	redis.Cmdable
	Process(ctx context.Context, cmd redis.Cmder) error
}

// do does a step and notes what the caller sees.
func (w *world) do(c caller, s move) {
	ctx, cancel := w.ctx, context.CancelFunc(func() {})
	switch s.ctx {
	case "plain":
		ctx = context.Background()
	case "cancelable":
		ctx, cancel = context.WithCancel(context.Background())
	case "canceled":
		ctx, cancel = context.WithCancel(ctx)
		cancel()
	case "expired":
		ctx, cancel = context.WithDeadline(ctx, time.Now().Add(-time.Second))
	}
	defer cancel()
	switch s.what {
	case "call":
		cmd := s.commands[0].typed(ctx)
		w.got("call", c.Process(ctx, cmd), cmd)
	case "auto":
		ap, err := w.rdb.AutoPipeline()
		require.NoError(w.t, err)
		cmd := s.commands[0].typed(ctx)
		w.got("auto", ap.Process(ctx, cmd), cmd)
	case "pipeline", "transaction":
		run := c.Pipelined
		if s.what == "transaction" {
			run = c.TxPipelined
		}
		cmds, err := run(ctx, func(p redis.Pipeliner) error {
			for _, command := range s.commands {
				_ = p.Process(ctx, command.typed(ctx))
			}
			if s.fails {
				return errOther
			}
			return nil
		})
		w.got(s.what, err, cmds...)
	case "watch":
		err := w.rdb.Watch(ctx, func(tx *redis.Tx) error {
			for _, inner := range s.steps {
				w.do(tx, inner)
			}
			if s.fails {
				return errOther
			}
			return nil
		}, "{a}k", "{a}n")
		w.got("watch", err)
	case "conn":
		conn := w.client().Conn()
		for _, inner := range s.steps {
			w.do(conn, inner)
		}
		w.got("close", conn.Close())
	}
}

// run returns the transcript of a plan on one side.
func (p plan) run(t testing.TB, s side) transcript {
	n := knobs{protocol: p.protocol, quick: true}
	var ofNodes []int
	for i, h := range p.hooks {
		if h.onNodes {
			n.viaNew = h.viaNew
			ofNodes = append(ofNodes, i)
		}
	}
	if len(ofNodes) > 0 {
		n.nodeHook = func(w *world, addr string) (hooks redis.Hook) {
			var c chain
			for _, i := range ofNodes {
				c = append(c, p.hooks[i].hook(w, "hooks of "+addr, i))
			}
			return c
		}
	}
	return runSide(t, s, p.kind, n, func(w *world) {
		if c, ok := w.rdb.(interface {
			MasterForKey(context.Context, string) (*redis.Client, error)
		}); ok { // redial asks for the topology by itself, go-redis for the first command
			_, _ = c.MasterForKey(w.ctx, "{a}")
		}
		for i, s := range p.steps {
			for j, h := range p.hooks {
				if h.before == i && !h.onNodes {
					w.rdb.AddHook(h.hook(w, "hooks", j))
				}
			}
			w.try("step", func() { w.do(w.rdb, s) })
		}
	})
}

// diff runs a plan on both sides and returns where they part.
func (p plan) diff(t testing.TB) string { return differ(p.run(t, bare), p.run(t, p.side)) }

// without returns the plan with less in it, in every way in which it can have one thing
// less.
func (p plan) without() (list []plan) {
	for i := range p.steps {
		if len(p.steps) > 1 {
			q := p
			q.steps = slices.Delete(slices.Clone(p.steps), i, i+1)
			q.hooks = slices.Clone(p.hooks)
			for j := range q.hooks {
				if q.hooks[j].before > i || q.hooks[j].before == len(q.steps) {
					q.hooks[j].before--
				}
			}
			list = append(list, q)
		}
	}
	for i := range p.hooks {
		q := p
		q.hooks = slices.Delete(slices.Clone(p.hooks), i, i+1)
		list = append(list, q)
	}
	for i, s := range p.steps {
		replaced := func(s move) {
			q := p
			q.steps = slices.Clone(p.steps)
			q.steps[i] = s
			list = append(list, q)
		}
		for j := range s.commands {
			if len(s.commands) > 1 {
				less := s
				less.commands = slices.Delete(slices.Clone(s.commands), j, j+1)
				replaced(less)
			}
		}
		for j := range s.steps {
			less := s
			less.steps = slices.Delete(slices.Clone(s.steps), j, j+1)
			replaced(less)
		}
	}
	return list
}

// shrink makes a plan that differs as short as it finds.
func (p plan) shrink(t testing.TB) plan {
	for budget := 300; ; {
		smaller := false
		for _, q := range p.without() {
			if budget--; budget < 0 {
				return p
			}
			if q.diff(t) != "" {
				p, smaller = q, true
				break
			}
		}
		if !smaller {
			return p
		}
	}
}

// forEachPlan runs f on the plans of a run, on all processors, until it returns false. It
// returns how many there were.
func forEachPlan(first uint64, count int, f func(p plan) bool) int {
	var next, ran atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(count) {
					return
				}
				ran.Add(1)
				if !f(makePlan(first + uint64(i))) {
					next.Store(int64(count))
				}
			}
		})
	}
	wg.Wait()
	return int(ran.Load())
}

func firstSeed(t *testing.T) uint64 {
	seed := *conformSeed
	if seed == 0 {
		seed = rand.Uint64N(1 << 48)
	}
	t.Logf("%d scripts with the seeds from %d on: -conform-seed=%d -conform-scripts=%d", *conformScripts, seed, seed, *conformScripts)
	return seed
}

// Random scripts of commands, batches and hooks come out on redial as on go-redis.
func TestConform_RandomScripts(t *testing.T) {
	const explained, enough = 3, 100
	first := firstSeed(t)
	began := time.Now()
	var mu sync.Mutex
	var found []plan
	ran := forEachPlan(first, *conformScripts, func(p plan) bool {
		for range 2 { // a busy machine is no difference
			if p.diff(t) == "" {
				return true
			}
		}
		mu.Lock()
		defer mu.Unlock()
		found = append(found, p)
		return len(found) < enough
	})
	t.Logf("%d of %d scripts differ, after %v", len(found), ran, time.Since(began).Round(time.Millisecond))
	slices.SortFunc(found, func(a, b plan) int { return int(a.seed) - int(b.seed) })
	for i, p := range found {
		if i == explained {
			t.Fatalf("and %d others", len(found)-explained)
		}
		q := p.shrink(t)
		want, got := q.run(t, bare), q.run(t, q.side)
		t.Errorf("run this script alone with -conform-seed=%d -conform-scripts=1\nshortened to %s\nwhere they part:%s\n\ngo-redis:\n%s\nredial:\n%s",
			p.seed, q, differ(want, got), want, got)
	}
}

// What is compared does not depend on chance: go-redis does not differ from itself.
func TestConform_RandomScripts_AreSteady(t *testing.T) {
	forEachPlan(firstSeed(t), *conformScripts/10, func(p plan) bool {
		if d := differ(p.run(t, bare), p.run(t, bare)); d != "" {
			t.Errorf("go-redis differs from itself: %s%s", p, d)
		}
		return !t.Failed()
	})
}
