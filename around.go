package redial

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// What go-redis does without its hooks is taken through the gate from outside.

// persist tries until try succeeds or what failed must not be tried again. Its error
// has gone through a hook.
func (h hook) persist(ctx context.Context, name string, try func(ctx context.Context) error) error {
	c := call{link: h.link, nodes: h.nodes, ctx: ctx, name: name, reads: true}
	inner := ctx
	if h.nodes != nil {
		inner = routedContext(ctx, false)
	}
	for {
		if h.nodes != nil {
			if final := c.admit(); final != nil {
				return final
			}
		}
		err := c.send(func() error { return try(inner) })
		if err == nil {
			return nil
		}
		cause := err
		switch e := own(err); {
		case e != nil: // of a hook that has counted its attempts
			if e.kind == ErrClosed || e.kind == ErrUnavailable && e.Cause != CauseHeldConnectionBroken {
				return err
			}
			cause = e.Err
			c.attempts += e.Attempts
		case nodeErrorOf(err) != nil || h.nodes != nil && isUnrouted(err):
			c.attempts++
		default:
			return err
		}
		if final := c.settle(notSent, cause, cause); final != nil {
			return final
		}
	}
}

// watch runs a Watch of go-redis's, see Client.Watch.
func (h hook) watch(ctx context.Context, watch func(context.Context, func(*redis.Tx) error, ...string) error,
	fn func(*redis.Tx) error, keys []string) error {
	if end := ctx.Err(); end != nil {
		err := watch(ctx, fn, keys...) // which runs nothing
		if own(err) != nil || nodeErrorOf(err) != nil {
			return end
		}
		return err
	}
	var result error
	err := h.persist(ctx, "watch", func(ctx context.Context) error {
		called := false
		result = watch(ctx, func(tx *redis.Tx) error {
			called = true
			return fn(tx)
		}, keys...)
		if called {
			return nil
		}
		return result
	})
	if err != nil {
		return err
	}
	return result
}

// ready waits at the gate.
func (h hook) ready(ctx context.Context, name string) error {
	c := call{link: h.link, nodes: h.nodes, ctx: ctx, name: name, reads: true}
	if err := c.admit(); err != nil {
		return err
	}
	if c.admitted {
		h.link.leave()
	}
	h.nodes.use()
	return nil
}

// patient waits for the link, for as long as the dial of a subscription does.
func (h hook) patient(ctx context.Context) {
	h.nodes.use()
	if h.link.gate.Load() != gateOpen {
		_, _ = h.link.wait(WaitFor(ctx, subscriberWait), time.Now(), nil)
	}
}
