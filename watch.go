package redial

// Watch: what is special about it is that nothing has happened until its function is
// called, so that it is tried again till then and never after. The loop is that of
// call.go; what runs inside the function waits at the gate by itself.

import (
	"context"
	"errors"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
)

// watch runs a Watch of go-redis's, see Client.Watch.
func (h hook) watch(ctx context.Context, watch func(context.Context, func(*redis.Tx) error, ...string) error,
	fn func(*redis.Tx) error, keys []string) error {
	if end := ctx.Err(); end != nil {
		err := watch(ctx, fn, keys...) // which runs nothing
		if asError(err) != nil || failureOf(err) != nil {
			return end
		}
		return err
	}
	if h.router.several() && !h.link.open.Load() && !together(keys) {
		// A mistake is told at once, which a context that has ended shows. Hooks of nodes
		// might see this call if it is none.
		end, cancel := context.WithCancel(ctx)
		cancel()
		if err := watch(end, fn, keys...); err != nil && rejected(err) {
			return err
		}
	}
	if _, ok := idOf(ctx); ok && onceContextOf(ctx) == nil {
		return refuse(watchCmd, "it is about transactions")
	}
	c := h.newCall(ctx, "watch", 0, true)
	c.inside = true
	return c.carry(&watching{run: watch, fn: fn, keys: keys}, nil)
}

// together reports whether keys cannot but belong to one node: they have the same hash tag.
func together(keys []string) bool {
	if len(keys) == 0 || keys[0] == "" {
		return false
	}
	tag := command.HashTag(keys[0])
	return !slices.ContainsFunc(keys, func(key string) bool { return command.HashTag(key) != tag })
}

// watching is the work of a Watch, which is tried again until its function was called.
type watching struct {
	run    func(context.Context, func(*redis.Tx) error, ...string) error
	fn     func(*redis.Tx) error
	keys   []string
	called bool
}

// try runs it past the hooks of the client as a whole.
func (w *watching) try(c *call) error {
	err := w.run(c.router.mark(c.ctx), func(tx *redis.Tx) error {
		w.called = true
		return w.fn(tx)
	}, w.keys...)
	if err == nil && !w.called { // go-redis gives up following redirections, and says nothing
		return errToAndFro
	}
	return err
}

func (w *watching) judge(c *call, err error) ruling {
	e, why := asError(err), err
	switch {
	case err == nil, w.called:
		return ruling{done: true, said: err}
	case e != nil && (e.kind == ErrClosed || e.kind == ErrUnavailable && e.Cause != CauseHeldConnectionBroken):
		return ruling{done: true, said: err} // of a hook that has waited
	case e != nil:
		why = e.Err
		c.attempts += e.Attempts
	case failureOf(err) != nil, c.router.several() && isUnrouted(err):
		c.attempts++
	case c.router.several():
		o := c.outcome(watchCmd, err, &finding{from: routedCall})
		c.attempts++
		return ruling{outcome: o, why: err, said: err, done: o != refused}
	default:
		return ruling{done: true, said: err}
	}
	return ruling{outcome: c.outcome(nil, why, &finding{unsent: true}), why: why, said: why}
}

var (
	watchCmd    = redis.NewStatusCmd(context.Background(), "watch")
	errToAndFro = &failure{outcome: notSent, err: errors.New("the nodes send WATCH to and fro")}
)

func (w *watching) end(_ *call, final error) error { return final }

func (w *watching) publishes() bool { return false }
