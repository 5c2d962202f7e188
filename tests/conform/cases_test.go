package conform

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

func TestConform_Replies(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		t.Run(fmt.Sprint("RESP", protocol), func(t *testing.T) {
			paired(t, allKinds, knobs{protocol: protocol}, func(w *world) {
				ctx := w.ctx
				w.everyCall()
				w.did(w.rdb.HSet(ctx, "{a}h", "f", 1, "g", 2))
				w.did(w.rdb.HGetAll(ctx, "{a}h"))
				w.did(w.rdb.HGet(ctx, "{a}h", "missing"))
				w.did(w.rdb.LPush(ctx, "{a}l", 1, 2))
				w.did(w.rdb.LRange(ctx, "{a}l", 0, -1))
				w.did(w.rdb.MGet(ctx, "{a}k", "{a}missing"))
				w.did(w.rdb.Exists(ctx, "{a}k", "{a}missing"))
				w.did(w.rdb.Do(ctx, "get", "{a}k"))
				w.did(w.rdb.Do(ctx, "get", "{a}missing"))
				w.did(w.rdb.Do(ctx, "hgetall", "{a}h"))
				w.did(w.rdb.Do(ctx, "get", "{a}k", "more"))
				w.did(w.rdb.Do(ctx, "nonsense", "{a}k"))
				for _, mark := range []string{"misconf", "noperm", "oom", "custom", "own"} {
					w.did(w.rdb.Set(ctx, "{a}"+mark, 1, 0))
				}
				if w.kind.isSingle() {
					w.did(w.rdb.Scan(ctx, 0, "", 0))
					w.did(w.rdb.Echo(ctx, "hello"))
					w.did(w.rdb.Ping(ctx))
				}
			})
		})
	}
}

// A reply that does not fit the type of the command is the caller's error, and nobody
// else's.
func TestConform_Replies_OfAnotherType(t *testing.T) {
	paired(t, allKinds, knobs{}, func(w *world) {
		w.did(w.rdb.Set(w.ctx, "{a}k", "v", 0))
		cmd := redis.NewIntCmd(w.ctx, "get", "{a}k")
		w.got("int of a string", w.rdb.Process(w.ctx, cmd), cmd)
		status := redis.NewStatusCmd(w.ctx, "incr", "{a}n")
		w.got("status of an int", w.rdb.Process(w.ctx, status), status)
		w.did(w.rdb.Get(w.ctx, "{a}k"))
		w.did(w.rdb.Append(w.ctx, "{a}k", "alue"))
		w.did(w.rdb.GetToBuffer(w.ctx, "{a}k", make([]byte, 1))) // which must not be sent again
		w.did(w.rdb.Get(w.ctx, "{a}k"))
		w.got("watch", w.rdb.Watch(w.ctx, func(tx *redis.Tx) error { // nor can this, on no other connection
			cmd := redis.NewSliceCmd(w.ctx, "get", "{a}k")
			w.got("slice of a string", tx.Process(w.ctx, cmd), cmd)
			return nil
		}, "{a}n"))
	})
}

// What only reads ends with what go-redis says of a reply that it cannot read, and what
// changes something is unknown then, wherever they are sent and whatever hooks make of the
// words. Commands that were answered before keep their replies.
func TestConform_Replies_ThatCannotBeRead(t *testing.T) {
	wrap := func(err error) error {
		if err == nil || err == redis.Nil {
			return err
		}
		return fmt.Errorf("hook: %w", err)
	}
	acts := []act{
		{name: "none"},
		alike("wraps", func(_ []redis.Cmder, next func() error) error { return wrap(next()) }),
		alike("wraps and sets", func(cmds []redis.Cmder, next func() error) error {
			err := wrap(next())
			for _, cmd := range cmds {
				cmd.SetErr(wrap(cmd.Err()))
			}
			return err
		}),
	}
	for _, k := range []kind{aClient, aCluster, aRing} {
		for _, a := range acts {
			for _, where := range []string{"client", "node"} {
				if where == "node" && (k != aCluster || a.single == nil) { // hooks of shards stand outside of redial's, see docs/limits.md
					continue
				}
				t.Run(fmt.Sprint(k, " hook ", a.name, " on ", where), func(t *testing.T) {
					want := misread(t, bare, k, a, where == "node")
					require.NotEmpty(t, want)
					for name, got := range misread(t, wrapped, k, a, where == "node") {
						got.compare(t, name, want[name])
					}
				})
			}
		}
	}
}

// misreading is what came of commands of which some do not fit their replies.
type misreading struct {
	err     error
	cmds    []redis.Cmder
	sent    int  // how many of the commands that read
	claimed bool // what changes something may have go-redis's words, since nobody could know better
}

// misread sends such commands on all ways that a client has.
func misread(t *testing.T, s side, k kind, a act, atNode bool) map[string]misreading {
	w := newWorld(t, s, k)
	hook := hookOf(w, a)
	n := knobs{poolSize: 4}
	if atNode {
		n.nodeHook = func(*world, string) redis.Hook { return hook }
	}
	w.open(n)
	if !atNode {
		w.rdb.AddHook(hook)
	}
	ways := map[string]func(use func(caller)){
		"client": func(use func(caller)) { use(w.rdb) },
		"Tx": func(use func(caller)) {
			require.NoError(w.t, w.rdb.Watch(w.ctx, func(tx *redis.Tx) error { use(tx); return nil }, "{a}other"))
		},
	}
	if k.isSingle() {
		ways["Conn"] = func(use func(caller)) {
			conn := w.client().Conn()
			defer conn.Close()
			use(conn)
		}
	}
	results := make(map[string]misreading)
	for way, use := range ways {
		for _, what := range []string{ // r reads and w writes, in capital letters what does not fit
			"R", "rR", "Rr", "rRr", "RR", "Rw", "wR", "wRw", "wrRr", "Rrw", "Wr", "rWR",
		} {
			for _, how := range []string{"single", "pipeline", "transaction"} {
				if how == "single" && len(what) > 1 {
					continue
				}
				name := fmt.Sprint(how, " ", what, " on ", way)
				key := "{a}" + strings.ReplaceAll(name, " ", "-")
				require.NoError(w.t, w.rdb.Set(w.ctx, key, 1, 0).Err())
				r := misreading{claimed: a.name == "wraps and sets" || k == aCluster && way == "client" && how == "transaction"}
				for _, c := range what {
					r.cmds = append(r.cmds, map[rune]redis.Cmder{
						'r': redis.NewCmd(w.ctx, "get", key), 'R': redis.NewSliceCmd(w.ctx, "get", key),
						'w': redis.NewCmd(w.ctx, "set", key, "v"), 'W': redis.NewMapStringStringCmd(w.ctx, "set", key, "v"),
					}[c])
				}
				fill := func(p redis.Pipeliner) error { return p.BatchProcess(w.ctx, r.cmds...) }
				use(func(c caller) {
					switch how {
					case "single":
						r.err = c.Process(w.ctx, r.cmds[0])
					case "pipeline":
						_, r.err = c.Pipelined(w.ctx, fill)
					case "transaction":
						_, r.err = c.TxPipelined(w.ctx, fill)
					}
				})
				results[name] = r
			}
		}
	}
	w.close()
	for _, line := range slices.Concat(w.transcript()["server "+clusterNodeA], w.transcript()["server "+clusterNodeB]) {
		if key, ok := strings.CutPrefix(line, "get {a}"); ok {
			key, _, _ = strings.Cut(key, " ")
			name := strings.ReplaceAll(key, "-", " ")
			r := results[name]
			r.sent++
			results[name] = r
		}
	}
	return results
}

// compare holds what came of them with redial against what does without.
func (r misreading) compare(t *testing.T, name string, bare misreading) {
	unknown, reads := false, 0
	for i, cmd := range r.cmds {
		err, was := cmd.Err(), bare.cmds[i].Err()
		is := errors.Is(err, redial.ErrOutcomeUnknown)
		unknown = unknown || is
		if cmd.Name() == "get" {
			reads++
		}
		switch {
		case err == nil: // it was answered
		case is && cmd.Name() == "set":
		case !is && (cmd.Name() == "get" || r.claimed):
			assert.ErrorContains(t, was, err.Error(), "%s, %d", name, i) // hooks may have put it in words of theirs
			assert.Regexp(t, "^(hook: )?redis: can't parse ", err.Error(), "%s, %d", name, i)
		default:
			t.Errorf("%s, %d: %v, and go-redis has %v", name, i, err, was)
		}
	}
	if unknown {
		assert.ErrorIs(t, r.err, redial.ErrOutcomeUnknown, name)
	} else {
		assert.Equal(t, describe(bare.err), describe(r.err), name)
	}
	assert.LessOrEqual(t, r.sent, 2*reads, name)
}

func TestConform_Batches_Empty(t *testing.T) {
	paired(t, allKinds, knobs{}, func(w *world) {
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook"})
		w.batch(w.rdb, "empty pipeline", false, func(redis.Pipeliner) {})
		w.batch(w.rdb, "empty transaction", true, func(redis.Pipeliner) {})
		for _, p := range []redis.Pipeliner{w.rdb.Pipeline(), w.rdb.TxPipeline()} {
			p.Append(w.ctx, "{a}log", "x")
			p.Discard()
			w.say("%d commands", p.Len())
			cmds, err := p.Exec(w.ctx)
			w.got("discarded", err, cmds...)
			p.Append(w.ctx, "{a}log", "y")
			cmds, err = p.Exec(w.ctx)
			w.got("used again", err, cmds...)
			cmds, err = p.Exec(w.ctx)
			w.got("and again", err, cmds...)
		}
		cmds, err := w.rdb.Pipelined(w.ctx, func(p redis.Pipeliner) error {
			p.Append(w.ctx, "{a}log", "z")
			return errOther
		})
		w.got("the function fails", err, cmds...)
	})
}

// The commands that a hook is given are the caller's own.
func TestConform_Hooks_SeeTheCallersCommands(t *testing.T) {
	paired(t, allKinds, knobs{}, func(w *world) {
		var mu sync.Mutex
		seen := make(map[redis.Cmder]bool)
		look := alike("", func(cmds []redis.Cmder, next func() error) error {
			mu.Lock()
			for _, cmd := range cmds {
				if !isHousekeeping(cmd.Name()) {
					seen[cmd] = true
				}
			}
			mu.Unlock()
			return next()
		})
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook", single: look.single, batch: look.batch})
		mine := []redis.Cmder{w.rdb.Set(w.ctx, "{a}k", "v", 0)}
		for _, tx := range []bool{false, true} {
			p := w.rdb.Pipeline()
			if tx {
				p = w.rdb.TxPipeline()
			}
			mine = append(mine, p.Get(w.ctx, "{a}k"), p.Get(w.ctx, "{a}missing"), p.Append(w.ctx, "{a}log", "x"))
			_, _ = p.Exec(w.ctx)
		}
		for _, cmd := range mine {
			w.say("%s %v", cmd.Name(), seen[cmd])
		}
	}, "append true")
}

func TestConform_Hooks_AddedLater(t *testing.T) {
	paired(t, allKinds, knobs{}, func(w *world) {
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "first"})
		w.calls(w.rdb)
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "second"})
		w.calls(w.rdb)
		w.ready()
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "third"})
		w.everyCall()
	})
}

// holes is a hook that leaves all to next by returning no function, which go-redis allows.
type holes struct{}

func (holes) DialHook(redis.DialHook) redis.DialHook                                  { return nil }
func (holes) ProcessHook(redis.ProcessHook) redis.ProcessHook                         { return nil }
func (holes) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook { return nil }

func TestConform_Hooks_WithHoles(t *testing.T) {
	paired(t, allKinds, knobs{nodeHook: func(*world, string) redis.Hook { return holes{} }}, func(w *world) {
		w.rdb.AddHook(holes{})
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook"})
		w.rdb.AddHook(holes{})
		w.everyCall()
	})
}

func TestConform_Hooks_Nil(t *testing.T) {
	paired(t, allKinds, knobs{}, func(w *world) {
		func() {
			defer func() { w.say("panics: %v", recover() != nil) }()
			w.rdb.AddHook(nil)
		}()
		w.did(w.rdb.Set(w.ctx, "{a}k", "v", 0))
	}, "panics: true")
}

type ctxKey struct{}

// The context that a caller gives, or a hook puts in its place, reaches the hooks inside
// and the Dialer.
func TestConform_Hooks_Contexts(t *testing.T) {
	change := act{
		single: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			return next(context.WithValue(ctx, ctxKey{}, fmt.Sprint(ctx.Value(ctxKey{}), " and the hook's")), cmd)
		},
		batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
			return next(context.WithValue(ctx, ctxKey{}, fmt.Sprint(ctx.Value(ctxKey{}), " and the hook's")), cmds)
		},
	}
	look := func(w *world, stream string) redis.Hook {
		return spy{
			w: w, stream: stream, name: "inner",
			single: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
				w.note(stream, "context of %s", ctx.Value(ctxKey{}))
				return next(ctx, cmd)
			},
			batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
				w.note(stream, "context of %s", ctx.Value(ctxKey{}))
				return next(ctx, cmds)
			},
		}
	}
	paired(t, allKinds, knobs{nodeHook: func(w *world, addr string) redis.Hook { return look(w, "hooks of "+addr) }}, func(w *world) {
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "outer", single: change.single, batch: change.batch})
		w.rdb.AddHook(look(w, "hooks"))
		w.ctx = context.WithValue(w.ctx, ctxKey{}, "the caller's")
		w.calls(w.rdb)
		w.got("watch", w.rdb.Watch(w.ctx, func(tx *redis.Tx) error {
			w.batch(tx, "watched", true, w.clean)
			return nil
		}, "{a}k"))
	}, "the caller's and the hook's")
}

// What a connection fails with, hooks see as its own error, as they do in go-redis, whatever
// they are added to. What becomes of that for the caller is documented.
func TestConform_Hooks_SeeConnectionsFail(t *testing.T) {
	for name, fault := range map[string]redialtest.Action{"the end": redialtest.ExecuteThenClose, "silence": redialtest.Drop} {
		for _, onNodes := range []bool{false, true} {
			kinds := allKinds
			switch {
			case onNodes:
				kinds = []kind{aCluster} // without retries of go-redis's
			case name == "silence":
				kinds = []kind{aClient, aCluster} // with a short ReadTimeout
			}
			for _, k := range kinds {
				t.Run(fmt.Sprint(name, ", on nodes ", onNodes, "/", k), func(t *testing.T) {
					want, got := hooksOfFailing(t, bare, k, fault, onNodes), hooksOfFailing(t, wrapped, k, fault, onNodes)
					require.Contains(t, want.String(), map[string]string{"the end": ": io.EOF", "silence": ": *net.OpError(read"}[name], "bare go-redis itself")
					assert.Empty(t, differ(want, got))
				})
			}
		}
	}
}

// hooksOfFailing returns what hooks see while connections fail.
func hooksOfFailing(t *testing.T, s side, k kind, fault redialtest.Action, onNodes bool) transcript {
	n := knobs{
		tune:      func(o *redis.Options) { o.ReadTimeout = 100 * time.Millisecond },
		tuneNodes: func(o *redis.ClusterOptions) { o.ReadTimeout, o.MaxRedirects = 100*time.Millisecond, -1 },
	}
	if onNodes {
		n.nodeHook = func(w *world, addr string) redis.Hook { return spy{w: w, stream: "hooks of " + addr, name: "hook"} }
	}
	seen := runSide(t, s, k, n, func(w *world) {
		w.ready()
		require.NoError(t, w.rdb.Set(w.ctx, "{a}k", "v", 0).Err())
		for _, server := range w.servers {
			server.says(func(_ int, args []string) redialtest.Action {
				if slices.Contains(args, "{a}fails") {
					return fault
				}
				return redialtest.Handle
			})
		}
		if !onNodes {
			w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook"})
		}
		w.ctx = redial.NoRetry(w.ctx)
		fill := func(p redis.Pipeliner) { // nothing that is answered: that it keeps its reply is documented
			p.Incr(w.ctx, "{a}fails")
			p.Decr(w.ctx, "{a}fails")
		}
		w.did(w.rdb.Incr(w.ctx, "{a}fails"))
		w.batch(w.rdb, "pipeline", false, fill)
		w.batch(w.rdb, "transaction", true, fill)
		w.got("watch", w.rdb.Watch(w.ctx, func(tx *redis.Tx) error {
			w.did(tx.Get(w.ctx, "{a}k"))
			w.batch(tx, "watched transaction", true, fill)
			return errOther
		}, "{a}k"))
	})
	maps.DeleteFunc(seen, func(stream string, _ []string) bool { return !strings.HasPrefix(stream, "hooks") })
	for stream, lines := range seen { // UNWATCH on a connection that is broken already: the words are the same
		seen[stream] = slices.DeleteFunc(lines, func(line string) bool {
			return strings.Contains(line, "hook < process") && strings.Contains(line, "bad state")
		})
	}
	return seen
}

// A hook gives a context of its own, which ends before anything is sent: so does the call.
func TestConform_Hooks_ContextEnds(t *testing.T) {
	ends := func(ctx context.Context, next func(context.Context) error) error {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return next(ctx)
	}
	a := act{
		single: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			return ends(ctx, func(ctx context.Context) error { return next(ctx, cmd) })
		},
		batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
			return ends(ctx, func(ctx context.Context) error { return next(ctx, cmds) })
		},
	}
	t.Run("on the client", func(t *testing.T) {
		paired(t, allKinds, knobs{}, func(w *world) {
			w.ready()
			w.did(w.rdb.Get(w.ctx, "{a}k"))
			w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook", single: a.single, batch: a.batch})
			w.everyCall()
		}, "context.Canceled")
	})
	t.Run("on nodes", func(t *testing.T) {
		paired(t, []kind{aCluster, aRing}, knobs{hidden: true, nodeHook: func(w *world, addr string) redis.Hook {
			return spy{w: w, stream: "hooks of " + addr, name: "hook", single: a.single, batch: a.batch}
		}}, (*world).everyCall, "context.Canceled")
	})
}

// What sets up a connection passes by the hooks, too, once per connection. How many
// connections there are is compared elsewhere: here the kinds of what was seen are.
func TestConform_Hooks_SetUp(t *testing.T) {
	paired(t, both, knobs{tune: func(o *redis.Options) { o.DB, o.ClientName = 2, "conform" }}, func(w *world) {
		var mu sync.Mutex
		seen := make(map[string]int)
		look := alike("", func(cmds []redis.Cmder, next func() error) error {
			before := ""
			for _, cmd := range cmds {
				before += describeCmd(cmd) + "\n"
			}
			err := next()
			mu.Lock()
			seen[before+describe(err)]++
			mu.Unlock()
			return err
		})
		w.rdb.AddHook(raw(look))
		w.ready()
		w.did(w.rdb.Set(w.ctx, "{a}k", "v", 0))
		_ = w.client().Conn().Ping(w.ctx).Err() // one more connection at least
		mu.Lock()
		defer mu.Unlock()
		var all []string
		for what := range seen {
			all = append(all, what)
		}
		slices.Sort(all)
		w.say("%q", all)
	})
}

// raw is an act as a hook that notes nothing.
type raw act

func (raw) DialHook(next redis.DialHook) redis.DialHook { return next }
func (r raw) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return r.single(ctx, cmd, next) }
}

func (r raw) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { return r.batch(ctx, cmds, next) }
}

// A panic of a hook or of the caller's function holds no connection back.
func TestConform_Hooks_PanicsLoseNoConnection(t *testing.T) {
	paired(t, allKinds, knobs{poolSize: 1}, func(w *world) {
		angry := true
		scream := alike("", func(_ []redis.Cmder, next func() error) error {
			err := next()
			if angry {
				panic("a hook")
			}
			return err
		})
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook", single: scream.single, batch: scream.batch})
		for range 3 {
			w.try("set", func() { w.did(w.rdb.Set(w.ctx, "{a}k", "v", 0)) })
			w.batch(w.rdb, "pipeline", false, w.clean)
			w.batch(w.rdb, "transaction", true, w.clean)
		}
		angry = false
		for range 3 {
			w.try("watch", func() { w.got("watch", w.rdb.Watch(w.ctx, func(*redis.Tx) error { panic("the caller") }, "{a}k")) })
		}
		w.calls(w.rdb)
	})
}

func TestConform_Watch(t *testing.T) {
	paired(t, allKinds, knobs{}, func(w *world) {
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook"})
		fn := func(*redis.Tx) error { return nil }
		w.got("no keys", w.rdb.Watch(w.ctx, fn))
		w.got("no right", w.rdb.Watch(w.ctx, fn, "{a}noperm"))
		w.got("the function fails", w.rdb.Watch(w.ctx, func(*redis.Tx) error { return errOther }, "{a}k"))
		w.got("the function returns nil", w.rdb.Watch(w.ctx, func(tx *redis.Tx) error { return tx.Get(w.ctx, "{a}missing").Err() }, "{a}k"))
		w.got("somebody else writes", w.rdb.Watch(w.ctx, func(tx *redis.Tx) error {
			w.did(w.rdb.Append(w.ctx, "{a}k", "x"))
			cmds, err := tx.TxPipelined(w.ctx, func(p redis.Pipeliner) error { p.Get(w.ctx, "{a}k"); return nil })
			w.got("transaction", err, cmds...)
			return err
		}, "{a}k"))
		w.got("a failing command", w.rdb.Watch(w.ctx, func(tx *redis.Tx) error {
			_, err := tx.TxPipelined(w.ctx, func(p redis.Pipeliner) error { p.LPush(w.ctx, "{a}k", 1); return nil })
			return err
		}, "{a}k"))
		w.got("a wrapped error", w.rdb.Watch(w.ctx, func(tx *redis.Tx) error {
			return fmt.Errorf("mine: %w", tx.Get(w.ctx, "{a}missing").Err())
		}, "{a}k"))
		w.got("unwatch", w.rdb.Watch(w.ctx, func(tx *redis.Tx) error {
			w.did(tx.Unwatch(w.ctx))
			w.did(tx.Watch(w.ctx, "{a}other"))
			return nil
		}, "{a}k"))
		if w.kind == aCluster {
			w.got("two slots", w.rdb.Watch(w.ctx, fn, "a", "b"))
		}
	}, "somebody else writes: redis.TxFailedErr")
}

func TestConform_Closed(t *testing.T) {
	paired(t, allKinds, knobs{}, func(w *world) {
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook"})
		w.ready()
		w.did(w.rdb.Set(w.ctx, "{a}k", "v", 0))
		w.say("close: %v", w.rdb.Close())
		if w.kind.isSingle() {
			err := w.rdb.Get(w.ctx, "{a}k").Err()
			w.say("get: %v %v", err, errors.Is(err, redis.ErrClosed))
			_, err = w.rdb.Pipelined(w.ctx, func(p redis.Pipeliner) error { p.Get(w.ctx, "{a}k"); return nil })
			w.say("pipeline: %v %v", err, errors.Is(err, redis.ErrClosed))
		}
		w.say("close: %v", w.rdb.Close() != nil)
	})
}

// Hooks on the nodes see what they see in go-redis, however late they are added.
func TestConform_Nodes_HooksAddedByHand(t *testing.T) {
	paired(t, []kind{aCluster, aRing}, knobs{}, func(w *world) {
		w.ready()
		w.did(w.rdb.Set(w.ctx, "{a}k", "v", 0))
		add := func(_ context.Context, node *redis.Client) error {
			node.AddHook(spy{w: w, stream: "hooks of " + node.Options().Addr, name: "hook"})
			return nil
		}
		switch c := w.rdb.(type) {
		case interface {
			ForEachMaster(context.Context, func(context.Context, *redis.Client) error) error
		}:
			w.got("each master", c.ForEachMaster(w.ctx, add))
		case interface {
			ForEachShard(context.Context, func(context.Context, *redis.Client) error) error
		}:
			w.got("each shard", c.ForEachShard(w.ctx, add))
		}
		w.everyCall()
		w.spread()
	})
}

// A function that OnNewNode is given sees every node, also when the client has been left
// alone for a while before.
func TestConform_Nodes_OnNewNodeLater(t *testing.T) {
	paired(t, []kind{aCluster, aFailoverCluster}, knobs{}, func(w *world) {
		time.Sleep(50 * time.Millisecond) // whatever goes on in the background
		var mu sync.Mutex
		seen := make(map[string]int)
		w.rdb.(interface{ OnNewNode(func(*redis.Client)) }).OnNewNode(func(node *redis.Client) {
			mu.Lock()
			defer mu.Unlock()
			seen[node.Options().Addr]++
		})
		w.spread()
		mu.Lock()
		defer mu.Unlock()
		w.say("%v", seen)
	})
}

// spread makes calls whose keys are all over the nodes.
func (w *world) spread() {
	for i := range 6 {
		w.did(w.rdb.Set(w.ctx, fmt.Sprint("key", i), i, 0))
	}
	w.batch(w.rdb, "pipeline for several nodes", false, func(p redis.Pipeliner) {
		for i := range 12 {
			p.Append(w.ctx, fmt.Sprint("key", i), "x")
		}
	})
	w.batch(w.rdb, "some fail", false, func(p redis.Pipeliner) {
		for i := range 6 {
			p.Get(w.ctx, fmt.Sprint("key", i))
		}
		p.LPush(w.ctx, "key0", 1) // the only error, so that it is the first for a ring as well
	})
	if w.kind == aCluster {
		w.batch(w.rdb, "a transaction for several slots", true, func(p redis.Pipeliner) {
			p.Set(w.ctx, "key0", 1, 0)
			p.Set(w.ctx, "key1", 1, 0)
		})
		w.batch(w.rdb, "not for pipelines", false, func(p redis.Pipeliner) {
			p.Set(w.ctx, "key0", 1, 0)
			p.Keys(w.ctx, "*")
		})
	}
}

func TestConform_Nodes_Spread(t *testing.T) {
	for _, viaNew := range []bool{true, false} {
		t.Run(fmt.Sprint("by NewClient ", viaNew), func(t *testing.T) {
			paired(t, []kind{aCluster, aRing}, knobs{viaNew: viaNew, nodeHook: func(w *world, addr string) redis.Hook {
				return spy{w: w, stream: "hooks of " + addr, name: "hook"}
			}}, func(w *world) {
				w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook"})
				w.spread()
			})
		})
	}
}

// visitNodes sets keys of several nodes, and then changes more in one pipeline.
func visitNodes(w *world) {
	for i := range 4 {
		w.did(w.rdb.Set(w.ctx, fmt.Sprint("key", i), i, 0))
	}
	w.batch(w.rdb, "pipeline", false, func(p redis.Pipeliner) {
		for i := range 12 {
			p.Append(w.ctx, fmt.Sprint("key", i), "x")
		}
	})
}

// One node's hook fails its part of a pipeline: the others' parts have run.
func TestConform_Nodes_OneRefuses(t *testing.T) {
	for _, a := range slices.Concat(acts["refuse"][:4], acts["after"][:2], acts["serve"][:3]) {
		t.Run(a.name, func(t *testing.T) {
			paired(t, []kind{aCluster, aRing}, knobs{viaNew: true, nodeHook: func(w *world, addr string) redis.Hook {
				if addr == clusterNodeA {
					return spy{w: w, stream: "hooks of " + addr, name: "hook", single: a.single, batch: a.batch}
				}
				return spy{w: w, stream: "hooks of " + addr, name: "hook"}
			}}, visitNodes)
		})
	}
}

// A node takes longer to connect to than others, and its first commands wait for that:
// hooks see one attempt at each, however it is that they were added.
func TestConform_Nodes_OneIsSlow(t *testing.T) {
	for _, viaNew := range []bool{true, false} {
		t.Run(fmt.Sprint("by NewClient ", viaNew), func(t *testing.T) {
			paired(t, []kind{aCluster, aRing}, knobs{waits: true, viaNew: viaNew, before: func(w *world) {
				w.slow = map[string]time.Duration{clusterNodeB: 400 * time.Millisecond}
			}, nodeHook: func(w *world, addr string) redis.Hook {
				return spy{w: w, stream: "hooks of " + addr, name: "hook"}
			}}, visitNodes)
		})
	}
}

// The same when the first that they are asked for is a pipeline.
func TestConform_Nodes_OneIsSlow_Pipeline(t *testing.T) {
	paired(t, []kind{aCluster, aRing}, knobs{waits: true, viaNew: true, before: func(w *world) {
		w.slow = map[string]time.Duration{clusterNodeB: 400 * time.Millisecond}
	}, nodeHook: func(w *world, addr string) redis.Hook {
		return spy{w: w, stream: "hooks of " + addr, name: "hook"}
	}}, func(w *world) {
		w.batch(w.rdb, "pipeline", false, func(p redis.Pipeliner) {
			for i := range 12 {
				p.Append(w.ctx, fmt.Sprint("key", i), "x")
			}
		})
	})
}

// Which of several errors a batch fails with is what the hook of its shard says.
func TestConform_Nodes_HookNamesTheError(t *testing.T) {
	a := alike("", func(cmds []redis.Cmder, next func() error) error {
		err := next()
		cmds[0].SetErr(errOther)
		return err
	})
	paired(t, []kind{aCluster, aRing}, knobs{nodeHook: func(w *world, addr string) redis.Hook {
		return spy{w: w, stream: "hooks of " + addr, name: "hook", single: a.single, batch: a.batch}
	}}, func(w *world) {
		w.batch(w.rdb, "pipeline", false, func(p redis.Pipeliner) {
			p.Get(w.ctx, "{b}missing")
			p.Get(w.ctx, "{b}noperm")
			p.Get(w.ctx, "{b}missing")
		})
	})
}

// Commands that a cluster client splits over the nodes.
func TestConform_Nodes_SplitCommands(t *testing.T) {
	paired(t, []kind{aCluster}, knobs{}, func(w *world) {
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook"})
		keys := []string{"key0", "key1", "key2", "key3"}
		for _, key := range keys {
			w.did(w.rdb.Set(w.ctx, key, "v", 0))
		}
		w.say("%v", w.rdb.MGet(w.ctx, keys...).Val())
		w.say("%d", w.rdb.Exists(w.ctx, keys...).Val())
		w.say("%d", w.rdb.Del(w.ctx, keys...).Val())
		// The nodes were asked at the same time, and each slot by itself.
		w.mu.Lock()
		defer w.mu.Unlock()
		for name, lines := range w.streams {
			if name != "caller" {
				slices.Sort(lines)
			}
		}
	})
}

// Redirections are followed as before, and the nodes' hooks see each step.
func TestConform_Nodes_Redirections(t *testing.T) {
	for _, word := range []string{"MOVED", "ASK"} {
		t.Run(word, func(t *testing.T) {
			paired(t, []kind{aCluster}, knobs{viaNew: true, nodeHook: func(w *world, addr string) redis.Hook {
				return spy{w: w, stream: "hooks of " + addr, name: "hook"}
			}, before: func(w *world) {
				var told atomic.Int64
				w.servers[clusterNodeB].says(func(_ int, args []string) redialtest.Action {
					if args[0] == "append" && args[1] == "{a}moved" && told.Add(1)%2 == 1 {
						return redialtest.Reply("-" + word + " 15495 " + clusterNodeA + "\r\n")
					}
					return redialtest.Handle
				})
			}}, func(w *world) {
				w.did(w.rdb.Append(w.ctx, "{a}moved", "x"))
				w.batch(w.rdb, "pipeline of one", false, func(p redis.Pipeliner) { p.Append(w.ctx, "{a}moved", "y") })
				w.batch(w.rdb, "pipeline", false, func(p redis.Pipeliner) {
					p.Append(w.ctx, "{a}log", "z")
					p.Append(w.ctx, "{a}moved", "z")
				})
			})
		})
	}
}

// A clone of a client answers as the client does. That it keeps the hooks is a documented
// difference, so here it gets hooks of its own.
func TestConform_Clones(t *testing.T) {
	paired(t, both, knobs{}, func(w *world) {
		clone, addHook := w.clone(time.Minute)
		w.calls(clone)
		addHook(spy{w: w, stream: "hooks", name: "of the clone"})
		w.calls(clone)
		w.calls(w.rdb)
		for _, group := range []string{"serve", "refuse", "after"} {
			a := acts[group][0]
			clone, addHook := w.clone(time.Minute)
			addHook(spy{w: w, stream: "hooks that " + group, name: group, single: a.single, batch: a.batch})
			w.calls(clone)
		}
	})
}

// clone returns a clone of a single client, and how hooks are added to it.
func (w *world) clone(d time.Duration) (redis.Cmdable, func(redis.Hook)) {
	if c, ok := w.rdb.(*redial.Client); ok {
		clone := c.WithTimeout(d)
		return clone, clone.AddHook
	}
	clone := w.client().WithTimeout(d)
	return clone, clone.AddHook
}

func TestConform_PubSub(t *testing.T) {
	// Not a cluster: its PUBLISH goes to any node, and the scripted ones do not know of
	// each other.
	paired(t, []kind{aClient, aRing, aFailover, aFailoverCluster}, knobs{}, func(w *world) {
		if w.kind != aRing { // where hooks see PUBLISH, see documented
			w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook"})
		}
		w.ready()
		sub := w.rdb.Subscribe(w.ctx, "{a}news")
		msg, err := sub.Receive(w.ctx)
		w.say("%v %v", msg, describe(err))
		w.say("%s", sub)
		w.did(w.rdb.Publish(w.ctx, "{a}news", "hello"))
		msg, err = sub.Receive(w.ctx)
		w.say("%v %v", msg, describe(err))
		_, err = sub.ReceiveTimeout(w.ctx, 20*time.Millisecond)
		var timeout net.Error
		w.say("timeout: %v", errors.As(err, &timeout) && timeout.Timeout())
		w.got("unsubscribe", sub.Unsubscribe(w.ctx, "{a}news"))
		msg, err = sub.Receive(w.ctx)
		w.say("%v %v", msg, describe(err))
		w.got("close", sub.Close())
		w.got("close", sub.Close())
		_, err = sub.Receive(w.ctx)
		w.got("receive", err)
	}, "hello")
}

// Once per connection of the pool each of these is called, and what it returns counts. The
// dials themselves are not compared: redial has a connection of its own, for its heartbeat,
// which asks for credentials but does not call OnConnect.
func TestConform_SetUp_OncePerConnection(t *testing.T) {
	var onConnects, providers, dials atomic.Int64
	paired(t, []kind{aClient}, knobs{tune: func(o *redis.Options) {
		onConnects.Store(0)
		providers.Store(0)
		dials.Store(0)
		dial := o.Dialer
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return dial(ctx, network, addr)
		}
		o.CredentialsProviderContext = func(context.Context) (string, string, error) {
			providers.Add(1)
			return "user", "secret", nil
		}
		o.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
			onConnects.Add(1)
			return cn.Set(ctx, "{a}connected", "v", 0).Err()
		}
	}}, func(w *world) {
		w.ready()
		w.did(w.rdb.Set(w.ctx, "{a}k", "v", 0))
		held := make([]*redis.Conn, 3)
		for i := range held {
			held[i] = w.client().Conn()
			w.did(held[i].Get(w.ctx, "{a}k"))
		}
		for _, c := range held {
			w.got("close", c.Close())
		}
		time.Sleep(20 * time.Millisecond) // the set-up of a connection in the background
		w.say("calls of OnConnect: %d", onConnects.Load())
		w.say("one call of the provider a connection: %v", providers.Load() == dials.Load())
		w.mu.Lock()
		defer w.mu.Unlock()
		w.streams["server "+clusterNodeA] = nil // OnConnect's commands come with each connection
	}, "calls of OnConnect: 3")
}

// The errors of what sets up a connection reach the caller, under errors.Is.
func TestConform_SetUp_Fails(t *testing.T) {
	for name, tune := range map[string]func(o *redis.Options){
		"OnConnect": func(o *redis.Options) { o.OnConnect = func(context.Context, *redis.Conn) error { return errOther } },
		"credentials": func(o *redis.Options) {
			o.CredentialsProviderContext = func(context.Context) (string, string, error) { return "", "", errOther }
		},
		"Dialer": func(o *redis.Options) {
			o.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, errOther }
		},
	} {
		t.Run(name, func(t *testing.T) {
			paired(t, []kind{aClient}, knobs{waits: true, tune: func(o *redis.Options) { o.DialerRetries = 1; tune(o) }}, func(w *world) {
				// Without the end of its context redial hides it for the grace, as an outage.
				ctx, cancel := context.WithTimeout(w.ctx, 200*time.Millisecond)
				defer cancel()
				w.say("%v", errors.Is(w.rdb.Get(ctx, "{a}k").Err(), errOther))
				ctx, cancel = context.WithTimeout(w.ctx, 200*time.Millisecond)
				defer cancel()
				_, err := w.rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "{a}k"); return nil })
				w.say("%v", errors.Is(err, errOther))
			}, "true")
		})
	}
}

// A wrong password is the server's own reply, at once.
func TestConform_SetUp_WrongPassword(t *testing.T) {
	paired(t, []kind{aClient}, knobs{tune: func(o *redis.Options) { o.Password = "wrong" }, before: func(w *world) {
		w.servers[clusterNodeA].OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			if args[0] == "hello" || args[0] == "auth" {
				return redialtest.Reply("-WRONGPASS invalid username-password pair or user is disabled.\r\n")
			}
			return redialtest.Reply("-NOAUTH Authentication required.\r\n")
		})
	}}, func(w *world) {
		w.did(w.rdb.Get(w.ctx, "{a}k"))
		w.did(w.rdb.Incr(w.ctx, "{a}n"))
		for _, run := range []func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){w.rdb.Pipelined, w.rdb.TxPipelined} {
			_, err := run(w.ctx, func(p redis.Pipeliner) error { p.Get(w.ctx, "{a}k"); return nil })
			w.got("batch", err) // of the commands: documented
		}
	}, "WRONGPASS")
}

// dialSpy notes the dials it sees.
type dialSpy struct {
	raw
	see func(network, addr string) error
}

func (d dialSpy) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if err := d.see(network, addr); err != nil {
			return nil, err
		}
		return next(ctx, network, addr)
	}
}

// Dials pass by hooks: with which address, and the error of a hook is the caller's. Their
// number is not compared, see above.
func TestConform_Hooks_Dial(t *testing.T) {
	t.Parallel()
	paired(t, []kind{aClient, aCluster}, knobs{}, func(w *world) {
		var mu sync.Mutex
		seen := make(map[string]bool)
		var refuse error
		pass := alike("", func(_ []redis.Cmder, next func() error) error { return next() })
		w.rdb.AddHook(dialSpy{raw(pass), func(network, addr string) error {
			mu.Lock()
			defer mu.Unlock()
			seen[network+" "+addr] = true
			return refuse
		}})
		held := w.rdb
		w.did(held.Set(w.ctx, "{a}k", "v", 0))
		if w.kind.isSingle() {
			conns := []*redis.Conn{w.client().Conn(), w.client().Conn()}
			for _, c := range conns {
				w.did(c.Get(w.ctx, "{a}k"))
			}
			mu.Lock()
			refuse = errOther
			mu.Unlock()
			third, fourth := w.client().Conn(), w.client().Conn()
			_ = third.Get(redial.FailFast(w.ctx), "{a}k").Err()
			w.say("%v", errors.Is(fourth.Get(redial.FailFast(w.ctx), "{a}k").Err(), errOther))
			for _, c := range append(conns, third, fourth) {
				_ = c.Close()
			}
		}
		mu.Lock()
		defer mu.Unlock()
		w.say("%v", seen)
	})
}

// limits is a Limiter that notes what it is asked and told.
type limits struct {
	mu     sync.Mutex
	closed bool
	log    []string
}

func (l *limits) Allow() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.log = append(l.log, "denied")
		return errOther
	}
	l.log = append(l.log, "allowed")
	return nil
}

func (l *limits) ReportResult(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log = append(l.log, "result "+describe(err))
}

// A Limiter of the options is asked once per command and told the result; its refusal is
// the caller's at once.
func TestConform_Limiter(t *testing.T) {
	var l *limits
	paired(t, []kind{aClient}, knobs{tune: func(o *redis.Options) {
		l = &limits{}
		o.Limiter = l
	}}, func(w *world) {
		w.ready()
		w.everyCall()
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		w.calls(w.rdb)
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, line := range l.log {
			w.note("limiter", "%s", line)
		}
	}, "err=errOther")
}

// gate lets a test hold a batch up.
type gate struct {
	arrived, release chan struct{}
	once             sync.Once
}

func newGate() *gate { return &gate{arrived: make(chan struct{}), release: make(chan struct{})} }

// hold stops the first who comes.
func (g *gate) hold() {
	g.once.Do(func() {
		close(g.arrived)
		<-g.release
	})
}

// Auto-pipelines, both faces: a command by itself and a batch, with hooks that do all
// that hooks do.
func TestConform_AutoPipeline(t *testing.T) {
	t.Parallel()
	all := slices.Concat(acts["look"], acts["serve"], acts["refuse"][:4], acts["after"])
	for _, a := range all {
		t.Run(a.name, func(t *testing.T) {
			paired(t, []kind{aClient, aFailover, aCluster}, knobs{}, func(w *world) {
				w.ready()
				g := newGate()
				for _, s := range w.servers {
					s.says(func(_ int, args []string) redialtest.Action {
						if args[0] == "get" && args[1] == "{a}gate" {
							g.hold()
						}
						return redialtest.Handle
					})
				}
				ap, err := w.rdb.AutoPipeline()
				require.NoError(w.t, err)
				defer ap.Close()
				for _, h := range sandwiched(w, "hooks", a) {
					if h.(spy).name == "actor" {
						h = onlyAfter{h, g}
					}
					w.rdb.AddHook(h)
				}
				async, err := w.rdb.AsyncAutoPipeline()
				require.NoError(w.t, err)
				defer async.Close()

				first := async.Get(w.ctx, "{a}gate") // by itself, and held up
				<-g.arrived
				cmds := []redis.Cmder{
					async.Set(w.ctx, "{a}k", "v", 0), async.Get(w.ctx, "{a}k"), async.Get(w.ctx, "{a}missing"),
					async.LPush(w.ctx, "{a}k", 1), async.Append(w.ctx, "{a}log", "x"),
				}
				close(g.release)
				w.did(first)
				for _, cmd := range cmds {
					w.did(cmd)
				}
				w.did(ap.Set(w.ctx, "{a}k", "v", 0))
				w.did(ap.Get(w.ctx, "{a}missing"))
				w.did(ap.Do(w.ctx, "get", "{a}k"))
				w.did(async.Do(w.ctx, "get", "{a}k"))
				future := async.Submit(w.ctx, redis.NewIntCmd(w.ctx, "incr", "{a}k"))
				w.got("future", future.Wait(), future.Cmd())
				w.batch(ap, "pipeline", false, w.mixed)
				w.batch(ap, "transaction", true, w.mixed)
				w.batch(async, "async pipeline", false, w.mixed)
			})
		})
	}
}

// onlyAfter lets the command at the gate pass by a hook.
type onlyAfter struct {
	redis.Hook
	g *gate
}

func (o onlyAfter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	inner := o.Hook.ProcessHook(next)
	return func(ctx context.Context, cmd redis.Cmder) error {
		if slices.Contains(cmd.Args(), any("{a}gate")) {
			return next(ctx, cmd)
		}
		return inner(ctx, cmd)
	}
}

func (o onlyAfter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	inner := o.Hook.ProcessPipelineHook(next)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if slices.Contains(cmds[0].Args(), any("{a}gate")) {
			return next(ctx, cmds)
		}
		return inner(ctx, cmds)
	}
}

// Hooks of the nodes of a cluster see the batches of an auto-pipeline, too.
func TestConform_AutoPipeline_HooksOfNodes(t *testing.T) {
	for _, a := range slices.Concat(acts["look"], acts["serve"], acts["refuse"][:4], acts["after"][:2], acts["after"][3:]) {
		for _, viaNew := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, by NewClient %v", a.name, viaNew), func(t *testing.T) {
				paired(t, []kind{aCluster}, knobs{viaNew: viaNew, nodeHook: func(w *world, addr string) redis.Hook {
					return chain(sandwiched(w, "hooks of "+addr, a))
				}}, func(w *world) {
					for _, open := range []func() (*redis.AutoPipeliner, error){w.rdb.AutoPipeline, w.rdb.AsyncAutoPipeline} {
						ap, err := open()
						require.NoError(w.t, err)
						w.try("set", func() { w.did(ap.Set(w.ctx, "{a}k", "v", 0)) })
						w.try("get", func() { w.did(ap.Get(w.ctx, "{a}k")) })
						w.try("get of nothing", func() { w.did(ap.Get(w.ctx, "{a}missing")) })
						w.try("wrong type", func() { w.did(ap.LPush(w.ctx, "{a}k", 1)) })
						w.got("close", ap.Close())
					}
				}, "actor")
			})
		}
	}
}

func TestConform_AutoPipeline_Ring(t *testing.T) {
	paired(t, []kind{aRing}, knobs{}, func(w *world) {
		_, err := w.rdb.AutoPipeline()
		w.got("blocking", err)
		_, err = w.rdb.AsyncAutoPipeline()
		w.got("async", err)
	}, "not supported by Ring")
}

// The options of a client read as those of go-redis's, but for the documented ones.
func TestConform_OptionsReadBack(t *testing.T) {
	differ := []string{ // MaxRetries and its like have no effect, the functions are redial's
		"MaxRetries", "MinRetryBackoff", "MaxRetryBackoff", "DialerRetries", "DialerRetryTimeout", "DialerRetryBackoff",
		"ContextTimeoutEnabled", "Dialer", "OnConnect", "NewClient", "ClusterSlots", "HeartbeatFn", "HeartbeatFrequency",
	}
	same := func(t *testing.T, want, got any, named bool) {
		a, b := reflect.ValueOf(want).Elem(), reflect.ValueOf(got).Elem()
		for i := range a.NumField() {
			f := a.Type().Field(i)
			if f.Name == "MaintNotificationsConfig" && named {
				continue // documented
			}
			if f.IsExported() && !slices.Contains(differ, f.Name) && f.Type.Kind() != reflect.Func && f.Type.Kind() != reflect.Interface {
				assert.Equal(t, a.Field(i).Interface(), b.Field(i).Interface(), f.Name)
			}
		}
	}
	for name, opt := range map[string]redis.Options{
		"an address":      {Addr: "127.0.0.1:1"},
		"a name":          {Addr: "localhost:1"},
		"timeouts":        {Addr: "127.0.0.1:1", ReadTimeout: -1, WriteTimeout: -2, DialTimeout: time.Second, PoolTimeout: time.Second},
		"a short read":    {Addr: "127.0.0.1:1", ReadTimeout: time.Second},
		"a pool":          {Addr: "127.0.0.1:1", PoolSize: 3, MinIdleConns: 1, MaxIdleConns: 2, MaxActiveConns: 4, ConnMaxIdleTime: -1, ConnMaxLifetime: time.Hour, PoolFIFO: true},
		"RESP2":           {Addr: "127.0.0.1:1", Protocol: 2, DB: 3, ClientName: "n", DisableIdentity: true, IdentitySuffix: "s"},
		"a pipeline pool": {Addr: "127.0.0.1:1", PipelinePoolSize: 2, ReadBufferSize: 1 << 10, WriteBufferSize: 1 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			dial := func(context.Context, string, string) (net.Conn, error) { return nil, errOther }
			theirs, ours := opt, opt
			theirs.Dialer, ours.Dialer = dial, dial
			b := redis.NewClient(&theirs)
			defer b.Close()
			c := redial.NewClient(&ours)
			defer c.Close()
			same(t, b.Options(), c.Options(), name == "a name")
			assert.Equal(t, b.String(), c.String())
			clone := c.WithTimeout(time.Minute)
			same(t, b.WithTimeout(time.Minute).Options(), clone.Options(), name == "a name")
		})
	}
	t.Run("cluster", func(t *testing.T) {
		dial := func(context.Context, string, string) (net.Conn, error) { return nil, errOther }
		opt := func() *redis.ClusterOptions {
			return &redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}, Dialer: dial, PoolSize: 3, ReadTimeout: -1, MaxRedirects: 5}
		}
		b := redis.NewClusterClient(opt())
		defer b.Close()
		c := redial.NewClusterClient(opt())
		defer c.Close()
		same(t, b.Options(), c.Options(), false)
	})
	t.Run("ring", func(t *testing.T) {
		dial := func(context.Context, string, string) (net.Conn, error) { return nil, errOther }
		opt := func() *redis.RingOptions {
			return &redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}, Dialer: dial, PoolSize: 3, ReadTimeout: -1}
		}
		b := redis.NewRing(opt())
		defer b.Close()
		c := redial.NewRing(opt())
		defer c.Close()
		same(t, b.Options(), c.Options(), false)
	})
	led := func() *redis.FailoverOptions {
		return &redis.FailoverOptions{
			MasterName: "primary", SentinelAddrs: []string{"127.0.0.1:1"}, PoolSize: 3, ReadTimeout: -1, Username: "u", Password: "p", DB: 2,
			ClientName: "n", IdentitySuffix: "s", PoolFIFO: true, ConnMaxIdleTime: time.Hour, FailingTimeoutSeconds: 3, ReplicaOnly: true,
			Dialer: func(context.Context, string, string) (net.Conn, error) { return nil, errOther },
		}
	}
	t.Run("failover", func(t *testing.T) {
		b := redis.NewFailoverClient(led())
		defer b.Close()
		c := redial.NewFailoverClient(led())
		defer c.Close()
		same(t, b.Options(), c.Options(), false)
		assert.Equal(t, b.String(), c.String())
	})
	t.Run("failover cluster", func(t *testing.T) {
		b := redis.NewFailoverClusterClient(led())
		defer b.Close()
		c := redial.NewFailoverClusterClient(led())
		defer c.Close()
		same(t, b.Options(), c.Options(), false)
	})
	for name, change := range map[string]func(*redis.UniversalOptions){
		"one address":              func(o *redis.UniversalOptions) {},
		"several":                  func(o *redis.UniversalOptions) { o.Addrs = append(o.Addrs, "127.0.0.1:2") },
		"a cluster by one":         func(o *redis.UniversalOptions) { o.IsClusterMode = true },
		"sentinels":                func(o *redis.UniversalOptions) { o.MasterName = "primary" },
		"sentinels, by latency":    func(o *redis.UniversalOptions) { o.MasterName, o.RouteByLatency = "primary", true },
		"sentinels, read only":     func(o *redis.UniversalOptions) { o.MasterName, o.ReadOnly = "primary", true },
		"sentinels, cluster":       func(o *redis.UniversalOptions) { o.MasterName, o.IsClusterMode = "primary", true },
		"one address, by latency":  func(o *redis.UniversalOptions) { o.RouteByLatency = true },
		"several, randomly":        func(o *redis.UniversalOptions) { o.Addrs, o.RouteRandomly = append(o.Addrs, "127.0.0.1:2"), true },
		"the same address, thrice": func(o *redis.UniversalOptions) { o.Addrs = append(o.Addrs, o.Addrs[0], o.Addrs[0]) },
	} {
		t.Run("universal, "+name, func(t *testing.T) {
			opt := func() *redis.UniversalOptions {
				o := &redis.UniversalOptions{
					Addrs: []string{"127.0.0.1:1"}, ClientName: "n", DB: 1, Username: "u", Password: "p", Protocol: 2, PoolSize: 3, MinRetryBackoff: -1,
					ReadTimeout: -2, PoolFIFO: true, ConnMaxLifetime: time.Hour, IdentitySuffix: "s", DisableIdentity: true, MaxRedirects: 4,
					Dialer: func(context.Context, string, string) (net.Conn, error) { return nil, errOther },
				}
				change(o)
				return o
			}
			b := redis.NewUniversalClient(opt())
			defer b.Close()
			c := redial.NewUniversalClient(opt())
			defer c.Close()
			switch c := c.(type) {
			case *redial.Client:
				require.IsType(t, b, c.Client)
				same(t, b.(*redis.Client).Options(), c.Options(), false)
				assert.Equal(t, b.(*redis.Client).String(), c.String())
			case *redial.ClusterClient:
				require.IsType(t, b, c.ClusterClient)
				same(t, b.(*redis.ClusterClient).Options(), c.Options(), false)
			default:
				t.Errorf("a %T", c)
			}
		})
	}
}

// The caller's options are the caller's.
func TestConform_OptionsAreNotWrittenTo(t *testing.T) {
	opt := &redis.Options{Addr: "127.0.0.1:1", Dialer: func(context.Context, string, string) (net.Conn, error) { return nil, errOther }}
	dial := reflect.ValueOf(opt.Dialer).Pointer()
	c := redial.NewClient(opt)
	defer c.Close()
	assert.Equal(t, dial, reflect.ValueOf(opt.Dialer).Pointer())
	assert.Zero(t, opt.MaxRetries)
	assert.Zero(t, opt.PoolSize)
}
