package redial

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"
)

// ProcessPipelineHook guards pipelines and transactions.
func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	from := h.originOf(next)
	if h.nodes != nil {
		next = h.nodes.routeBatch(next)
	}
	next = labelWait(watchContext(h, next, from), from)
	if h.link.sealed && h.nodes == nil && from != sharedCall {
		next = atMostOnce(next)
	}
	return func(ctx context.Context, cmds []redis.Cmder) error {
		l := h.link
		switch {
		case len(cmds) == 0:
			return next(ctx, cmds)
		case from == sharedCall:
			return h.shared(ctx, cmds, next)
		case h.nodes != nil && (h.nodes.ring || !isTransaction(cmds)):
			return h.spread(ctx, cmds, next)
		case !l.enter():
			return h.pipeline(ctx, cmds, next, from, 0, nil)
		}
		mark(cmds)
		err := run(l, ctx, cmds, next)
		if err == nil {
			unmark(cmds, from)
			return nil
		}
		return h.pipeline(ctx, cmds, next, from, 1, err)
	}
}

// atMostOnce keeps go-redis from sending a pipeline again. It would do so when the
// first command is answered by certain refusals, although the others have run.
func atMostOnce(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if len(cmds) > 1 && cmds[0].Name() != "multi" {
			for i, cmd := range cmds {
				if cmd.Name() != "himport" { // which go-redis must recognize
					cmds[i] = noRetry{cmd}
					defer func() { cmds[i] = cmd }()
					break
				}
			}
		}
		return next(ctx, cmds)
	}
}

// noRetry is a command that go-redis must not send again.
type noRetry struct{ redis.Cmder }

func (noRetry) NoRetry() bool { return true }

// pipeline does for a batch what process does for one command. Commands that
// were answered keep their answers; only a tail that may be sent again is.
func (h hook) pipeline(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, from origin, attempts int, err error) error {
	c := call{link: h.link, nodes: h.nodes, ctx: ctx, name: "pipeline", attempts: attempts, nested: true, reads: true}
	if isTransaction(cmds) {
		c.name = "transaction"
	}
	for _, cmd := range cmds {
		c.nested = c.nested && isHandshake(cmd)
		c.reads = c.reads && isReadOnly(cmd)
	}
	rest := cmds
	for {
		if err != nil {
			var o outcome
			if c.name == "transaction" {
				o, err = c.transaction(cmds, err, from)
			} else if o, rest = c.tail(rest, err, from); o == refused || o == denied {
				err = rest[0].Err()
			}
			if final := c.settle(o, err); final != nil {
				c.label(rest, final)
				if o == partly {
					c.label(c.undelivered, c.failure(ErrUnavailable, c.withCtx(err)))
				}
				return firstError(cmds, final)
			}
		}
		if final := c.admit(); final != nil {
			c.label(rest, final)
			return firstError(cmds, final)
		}
		for _, cmd := range rest {
			cmd.SetErr(nil)
		}
		mark(rest)
		if err = attempt(&c, rest, next); err == nil {
			unmark(rest, from)
			return firstError(cmds, nil)
		}
	}
}

// shared passes on a pipeline of the full-duplex engine, whose commands share a
// connection with others and cannot be sent again from here. The engine leaves
// its answered commands alone; of the others nothing is known.
func (h hook) shared(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
	c := call{link: h.link, ctx: ctx, name: "pipeline", why: CauseSharedConnection}
	if final := c.admit(); final != nil {
		c.label(cmds, final)
		return final
	}
	err := attempt(&c, cmds, next)
	var ce *connError
	if err == nil || !errors.As(err, &ce) {
		return err
	}
	kind := ErrOutcomeUnknown
	if ce.phase == phaseDial {
		kind = ErrUnavailable
	}
	final := c.fail(kind, c.withCtx(err))
	for _, cmd := range cmds {
		if e := cmd.Err(); e != nil && !isReply(e) {
			cmd.SetErr(final)
		}
	}
	return final
}

// errUnread marks the commands of a pipeline before an attempt. go-redis stamps
// the error that ended a pipeline on every command without an error of its own,
// those that were answered included; the mark shows how far reading came.
var errUnread = errors.New("redial: no reply was read")

func mark(cmds []redis.Cmder) {
	if isTransaction(cmds) {
		return // one unit, and go-redis sets no error on MULTI and EXEC
	}
	for _, cmd := range cmds {
		cmd.SetErr(errUnread)
	}
}

// unmark clears the marks that a hook of the caller left on commands which it
// served itself.
func unmark(cmds []redis.Cmder, from origin) {
	if from != foreignHook {
		return
	}
	for _, cmd := range cmds {
		if cmd.Err() == errUnread {
			cmd.SetErr(nil)
		}
	}
}

// unread undoes the stamping after a pipeline ended with err: answered commands
// get back their nil error, unread ones get err. It returns the commands that
// were not answered, none when err is one of the answers.
func unread(cmds []redis.Cmder, err error) []redis.Cmder {
	first := len(cmds) - 1 // the one whose reading failed
	for i, cmd := range cmds {
		if cmd.Err() == errUnread {
			first = max(i-1, 0)
			break
		}
	}
	if first == len(cmds)-1 && cmds[first].Err() != errUnread && isReply(err) {
		return nil
	}
	for i, cmd := range cmds {
		switch e := cmd.Err(); {
		case e == errUnread:
			cmd.SetErr(err)
		case i < first && !isReply(e):
			cmd.SetErr(nil)
		}
	}
	return cmds[first:]
}

// isTransaction reports whether cmds are one MULTI ... EXEC block.
func isTransaction(cmds []redis.Cmder) bool {
	last := len(cmds) - 1
	if cmds[0].Name() != "multi" || cmds[last].Name() != "exec" {
		return false
	}
	for _, cmd := range cmds[1:last] {
		if cmd.Name() == "exec" {
			return false
		}
	}
	return true
}

// transaction reads the outcome of a MULTI ... EXEC block, which is one unit. When
// it was aborted because a command in it was refused, the error is that refusal;
// but EXEC has then ended any WATCH, and without it the block must not run again.
func (c *call) transaction(cmds []redis.Cmder, err error, from origin) (outcome, error) {
	o := outcomeOf(err)
	if o == foreign && from == pooledCall && isGarbled(err) {
		o = c.garbled()
	}
	inner := cmds[1 : len(cmds)-1]
	if from == routedCall && o == refused {
		// go-redis returns what aborted the block, and sets the abort on the rest.
		ran := false
		for _, cmd := range inner {
			if redis.IsExecAbortError(cmd.Err()) {
				return refused, err
			}
			ran = ran || isScript(cmd) || !isRefusal(cmd.Err())
		}
		if !ran { // nothing but refusals: EXEC ran none of them
			return refused, err
		}
	}
	switch {
	case from == routedCall && isUnrouted(err):
		o = notSent
	case redis.IsExecAbortError(err):
		for _, cmd := range inner {
			if e := cmd.Err(); e != nil && isRefusal(e) {
				c.link.heed(e)
				if !c.link.watches.Load() {
					return refused, e
				}
			}
		}
	case o == refused || o == denied:
		if c.link.watches.Load() || cmds[0].Err() == nil && firstError(inner, nil) != nil {
			c.link.heed(err)
			return answered, err // EXEC ran, and this is what a command in it said
		}
	case o == partly:
		o = notSent // EXEC comes last, so it was not delivered
	case o == unknown && c.repeatable(inner):
		o = repeatable
	}
	return o, err
}

// tail finds the commands of a pipeline that were not run, or may not have been,
// and what is known of them. When that is partly, undelivered holds those that
// cannot have run.
func (c *call) tail(cmds []redis.Cmder, err error, from origin) (outcome, []redis.Cmder) {
	rest := unread(cmds, err)
	if len(rest) == 0 {
		return c.refusedTail(cmds, from)
	}
	return c.unansweredTail(rest, err, from), rest
}

// unansweredTail says what is known of the commands that were not answered, the first
// of which failed with err.
func (c *call) unansweredTail(rest []redis.Cmder, err error, from origin) outcome {
	o := outcomeOf(err)
	if e := own(err); from == foreignHook && e != nil && !e.handshake {
		return foreign
	}
	if o == foreign && from == pooledCall && isGarbled(err) {
		o = c.garbled()
	}
	if o == partly {
		var ce *connError
		c.undelivered = nil
		if from == pooledCall && errors.As(err, &ce) {
			c.undelivered = rest[delivered(rest, ce.sent):]
		}
		if len(c.undelivered) == len(rest) {
			return notSent
		}
	}
	if (o == unknown || o == partly) && c.repeatable(rest[:len(rest)-len(c.undelivered)]) {
		o = repeatable
	}
	return o
}

// refusedTail finds in a pipeline whose commands were all answered the first one
// that was refused and can be sent again together with all that follow it: those
// were refused too, or do nothing but read. What they read before the refused one
// runs is not what the caller asked for.
func (c *call) refusedTail(cmds []redis.Cmder, from origin) (outcome, []redis.Cmder) {
	first, found := len(cmds), answered
	for i := len(cmds) - 1; i >= 0; i-- {
		o := outcomeFor(cmds[i], cmds[i].Err(), from)
		if (o == refused || o == denied) && (found == answered || found == o) {
			first, found = i, o
		} else if !c.link.cfg.mayRepeat(c.ctx, cmds[i]) {
			break
		}
	}
	if found == answered {
		return answered, cmds
	}
	return found, cmds[first:]
}

// repeatable reports whether every one of cmds may be sent again.
func (c *call) repeatable(cmds []redis.Cmder) bool {
	for _, cmd := range cmds {
		if !c.link.cfg.mayRepeat(c.ctx, cmd) {
			return false
		}
	}
	return true
}

// label puts the final error on the commands that have no answer of their own.
func (c *call) label(cmds []redis.Cmder, final error) {
	if own(final) == nil && isReply(final) {
		return
	}
	for _, cmd := range cmds {
		if err := cmd.Err(); err == nil || !isReply(err) {
			cmd.SetErr(final)
		}
	}
}

// firstError returns the first error among cmds, as go-redis does for a batch,
// or else final.
func firstError(cmds []redis.Cmder, final error) error {
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil {
			return err
		}
	}
	return final
}
