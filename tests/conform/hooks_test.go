package conform

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/redis/go-redis/v9"
)

// act is something a hook may do instead of, or beside, calling next.
type act struct {
	name   string
	single func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error
	batch  func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error
	panics bool // not where go-redis runs hooks on goroutines of its own
	// hidden: behind redial's back, as hooks of a supervised client are, what the hook
	// makes up cannot be told from go-redis's own word, which redial wraps.
	hidden  bool
	retried bool // a cluster client sends again what ends like this on a node, which is a documented difference
}

// alike builds an act that treats single commands as batches of one.
func alike(name string, do func(cmds []redis.Cmder, next func() error) error) act {
	return act{
		name: name,
		single: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			return do([]redis.Cmder{cmd}, func() error { return next(ctx, cmd) })
		},
		batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
			return do(cmds, func() error { return next(ctx, cmds) })
		},
	}
}

func retried(a act) act { a.retried = true; return a }

// serve gives a command a value, as a cache does.
func serve(cmd redis.Cmder) {
	switch cmd := cmd.(type) {
	case *redis.StringCmd:
		cmd.SetVal("cached")
	case *redis.IntCmd:
		cmd.SetVal(42)
	case *redis.StatusCmd:
		cmd.SetVal("CACHED")
	}
}

func last(cmds []redis.Cmder) redis.Cmder { return cmds[len(cmds)-1] }

// acts are what hooks were seen to do, grouped as the tests below want them.
var acts = map[string][]act{
	"look": {
		{name: "calls next"},
		alike("looks at the commands and their texts", func(cmds []redis.Cmder, next func() error) error {
			for _, cmd := range cmds {
				_, _ = cmd.Err(), cmd.String()
			}
			return next()
		}),
	},
	"serve": {
		alike("serves from a cache", func(cmds []redis.Cmder, _ func() error) error {
			for _, cmd := range cmds {
				serve(cmd)
			}
			return nil
		}),
		alike("serves the first, with redis.Nil on the last", func(cmds []redis.Cmder, _ func() error) error {
			serve(cmds[0])
			last(cmds).SetErr(redis.Nil)
			return redis.Nil
		}),
		alike("does nothing and returns nil", func([]redis.Cmder, func() error) error { return nil }),
		{
			name: "serves all but the first",
			batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
				if cmds[0].Name() == "multi" {
					return next(ctx, cmds)
				}
				for _, cmd := range cmds[1:] {
					serve(cmd)
				}
				return next(ctx, cmds[:1])
			},
		},
	},
	"refuse": {
		alike("returns an error without next", func([]redis.Cmder, func() error) error { return errHook }),
		alike("marks all and returns the error", func(cmds []redis.Cmder, _ func() error) error {
			for _, cmd := range cmds {
				cmd.SetErr(errHook)
			}
			return errHook
		}),
		alike("marks the last and returns another error", func(cmds []redis.Cmder, _ func() error) error {
			last(cmds).SetErr(errOther)
			return errHook
		}),
		alike("marks all and returns nil", func(cmds []redis.Cmder, _ func() error) error {
			for _, cmd := range cmds {
				cmd.SetErr(errHook)
			}
			return nil
		}),
		retried(alike("makes up the end of a connection", func([]redis.Cmder, func() error) error { return io.EOF })),
		alike("makes up the end of a context", func([]redis.Cmder, func() error) error { return context.DeadlineExceeded }),
		hidden(retried(alike("makes up a timeout of the pool", func([]redis.Cmder, func() error) error { return redis.ErrPoolTimeout }))),
	},
	"after": {
		alike("returns an error of its own after next", func(_ []redis.Cmder, next func() error) error {
			_ = next()
			return errHook
		}),
		alike("wraps the error after next", func(_ []redis.Cmder, next func() error) error {
			if err := next(); err != nil {
				return fmt.Errorf("seen by a hook: %w", err)
			}
			return nil
		}),
		retried(alike("makes up the end of a connection after next", func(_ []redis.Cmder, next func() error) error {
			_ = next()
			return io.ErrUnexpectedEOF
		})),
		alike("marks the last after next and returns nil", func(cmds []redis.Cmder, next func() error) error {
			_ = next()
			last(cmds).SetErr(errOther)
			return nil
		}),
		alike("marks the first after next and returns it", func(cmds []redis.Cmder, next func() error) error {
			_ = next()
			cmds[0].SetErr(errOther)
			return errOther
		}),
		alike("marks the first after next and returns what next did", func(cmds []redis.Cmder, next func() error) error {
			err := next()
			cmds[0].SetErr(errOther)
			return err
		}),
		alike("marks all before next", func(cmds []redis.Cmder, next func() error) error {
			for _, cmd := range cmds {
				cmd.SetErr(errOther)
			}
			return next()
		}),
		alike("swallows the error", func(_ []redis.Cmder, next func() error) error {
			_ = next()
			return nil
		}),
		alike("clears all errors", func(cmds []redis.Cmder, next func() error) error {
			_ = next()
			for _, cmd := range cmds {
				cmd.SetErr(nil)
			}
			return nil
		}),
		alike("changes values", func(cmds []redis.Cmder, next func() error) error {
			err := next()
			for _, cmd := range cmds {
				serve(cmd)
			}
			return err
		}),
	},
	"reshape": {
		alike("calls next twice", func(_ []redis.Cmder, next func() error) error {
			_ = next()
			return next()
		}),
		{
			name: "hands on the last one first",
			batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
				if cmds[0].Name() == "multi" || len(cmds) == 1 {
					return next(ctx, cmds)
				}
				if err := next(ctx, cmds[len(cmds)-1:]); err != nil {
					return err
				}
				return next(ctx, cmds[:len(cmds)-1])
			},
		},
		{
			name: "hands on one at a time",
			batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) (first error) {
				if cmds[0].Name() == "multi" {
					return next(ctx, cmds)
				}
				for i := range cmds {
					if err := next(ctx, cmds[i:i+1]); first == nil {
						first = err
					}
				}
				return first
			},
		},
		{
			name: "adds a command",
			batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
				if cmds[0].Name() == "multi" {
					return next(ctx, cmds)
				}
				return next(ctx, append([]redis.Cmder{redis.NewIntCmd(ctx, "incr", "{a}added")}, cmds...))
			},
		},
		{
			name: "sends another command",
			single: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
				if cmd.Name() != "get" {
					return next(ctx, cmd)
				}
				other := redis.NewStringCmd(ctx, "get", "{a}other")
				err := next(ctx, other)
				serve(cmd)
				return err
			},
		},
	},
	"panic": {
		{
			name: "panics before next", panics: true,
			single: func(context.Context, redis.Cmder, redis.ProcessHook) error { panic("before") },
			batch:  func(context.Context, []redis.Cmder, redis.ProcessPipelineHook) error { panic("before") },
		},
		{
			name: "panics after next", panics: true,
			single: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
				_ = next(ctx, cmd)
				panic("after")
			},
			batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
				_ = next(ctx, cmds)
				panic("after")
			},
		},
	},
}

// try notes a panic of f, as a caller sees it who recovers.
func (w *world) try(what string, f func()) {
	if w.ctx.Err() != nil {
		w.say("%s: there was no time left", what)
		return
	}
	defer func() {
		if r := recover(); r != nil {
			w.say("%s panics: %v", what, r)
		}
	}()
	f()
}

// batch runs a pipeline or transaction and notes all about it.
func (w *world) batch(c redis.Cmdable, what string, tx bool, fill func(p redis.Pipeliner)) {
	w.try(what, func() {
		run := c.Pipelined
		if tx {
			run = c.TxPipelined
		}
		cmds, err := run(w.ctx, func(p redis.Pipeliner) error { fill(p); return nil })
		w.got(what, err, cmds...)
	})
}

// mixed fills a batch with commands that end in every way.
func (w *world) mixed(p redis.Pipeliner) {
	p.Set(w.ctx, "{a}k", "v", 0)
	p.Get(w.ctx, "{a}k")
	p.Get(w.ctx, "{a}missing")
	p.LPush(w.ctx, "{a}k", 1)
	p.Append(w.ctx, "{a}log", "x")
}

// clean fills a batch with commands that succeed.
func (w *world) clean(p redis.Pipeliner) {
	p.Set(w.ctx, "{a}k", "v", 0)
	p.Append(w.ctx, "{a}log", "y")
	p.Get(w.ctx, "{a}k")
}

// calls makes calls of every form on one of the ways to reach a client.
func (w *world) calls(c redis.Cmdable) {
	ctx := w.ctx
	w.try("set", func() { w.did(c.Set(ctx, "{a}k", "v", 0)) })
	w.try("get", func() { w.did(c.Get(ctx, "{a}k")) })
	w.try("get of nothing", func() { w.did(c.Get(ctx, "{a}missing")) })
	w.try("wrong type", func() { w.did(c.Incr(ctx, "{a}k")) })
	w.try("refused", func() { w.did(c.Set(ctx, "{a}noperm", "v", 0)) })
	w.batch(c, "clean pipeline", false, w.clean)
	w.batch(c, "mixed pipeline", false, w.mixed)
	w.batch(c, "clean transaction", true, w.clean)
	w.batch(c, "mixed transaction", true, w.mixed)
	w.batch(c, "aborted transaction", true, func(p redis.Pipeliner) {
		p.Append(ctx, "{a}log", "z")
		p.Do(ctx, "get", "{a}k", "too", "many")
		p.Append(ctx, "{a}log", "z")
	})
	w.batch(c, "pipeline of one", false, func(p redis.Pipeliner) { p.Append(ctx, "{a}log", "w") })
}

// everyCall is calls on every way to reach a client.
func (w *world) everyCall() {
	w.calls(w.rdb)
	w.try("watch", func() {
		err := w.rdb.Watch(w.ctx, func(tx *redis.Tx) error {
			w.did(tx.Get(w.ctx, "{a}k"))
			w.batch(tx, "watched transaction", true, w.clean)
			w.batch(tx, "watched pipeline", false, w.mixed)
			return nil
		}, "{a}k")
		w.got("watch", err)
	})
	if w.kind.isSingle() {
		conn := w.client().Conn()
		defer conn.Close()
		w.say("on a Conn")
		w.calls(conn)
	}
}

// sandwiched returns the hooks of an act with one that looks on either side.
func sandwiched(w *world, stream string, a act) []redis.Hook {
	return []redis.Hook{
		spy{w: w, stream: stream, name: "outer"},
		spy{w: w, stream: stream, name: "actor", single: a.single, batch: a.batch},
		spy{w: w, stream: stream, name: "inner"},
	}
}

// chain is several hooks as one.
type chain []redis.Hook

func (c chain) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c chain) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	for i := len(c) - 1; i >= 0; i-- {
		next = c[i].ProcessHook(next)
	}
	return next
}

func (c chain) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	for i := len(c) - 1; i >= 0; i-- {
		next = c[i].ProcessPipelineHook(next)
	}
	return next
}

// hidden marks an act.
func hidden(a act) act {
	a.hidden = true
	return a
}

// testActs has hooks of a client, and of the nodes of one, do what a group of acts says.
func testActs(t *testing.T, group string) {
	for _, a := range acts[group] {
		t.Run(a.name, func(t *testing.T) {
			t.Run("on the client", func(t *testing.T) {
				paired(t, allKinds, knobs{hidden: a.hidden}, func(w *world) {
					for _, h := range sandwiched(w, "hooks", a) {
						w.rdb.AddHook(h)
					}
					w.everyCall()
				}, "actor")
			})
			if a.panics {
				return
			}
			kinds := []kind{aCluster, aRing}
			if a.retried {
				kinds = []kind{aRing}
			}
			for _, viaNew := range []bool{false, true} {
				name := map[bool]string{false: "on nodes", true: "on nodes by NewClient"}[viaNew]
				t.Run(name, func(t *testing.T) {
					paired(t, kinds, knobs{
						viaNew:   viaNew,
						nodeHook: func(w *world, addr string) redis.Hook { return chain(sandwiched(w, "hooks of "+addr, a)) },
					}, func(w *world) { w.everyCall() }, "actor")
				})
			}
		})
	}
}
