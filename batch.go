package redial

import (
	"context"
	"errors"
	"slices"

	"github.com/redis/go-redis/v9"
)

// ProcessPipelineHook guards pipelines and transactions.
func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	w := h.wayTo(next)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		l := h.link
		switch {
		case len(cmds) == 0:
			return next(ctx, cmds)
		case ctx.Err() != nil:
			return h.lateBatch(ctx, cmds, next, w)
		case w.from == sharedCall:
			return h.shared(ctx, cmds, next)
		case h.nodes != nil && (h.nodes.ring || !isTransaction(cmds)):
			return h.spread(ctx, cmds, next, w)
		}
		var found finding
		var err error
		switch {
		case l.enter():
			found, err = h.admittedBatch(ctx, cmds, next, w)
		case l.csc && slices.ContainsFunc(cmds, isBarredByCache):
			found, err = h.tryBatch(ctx, cmds, next, w)
		default:
			return h.pipeline(ctx, cmds, next, w, 0, nil, finding{})
		}
		if err == nil {
			return nil
		}
		return h.pipeline(ctx, cmds, next, w, 1, err, found)
	}
}

// tryBatch makes an attempt at a batch.
func (h hook) tryBatch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) (finding, error) {
	if w.through {
		a := &attempt{Context: ctx}
		err := next(a, cmds)
		return a.finding(), err
	}
	f := h.many(ctx, cmds, next, w.from)
	return f, f.err
}

// admittedBatch makes the first attempt at a batch that has passed the gate.
func (h hook) admittedBatch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) (finding, error) {
	defer h.link.leave()
	return h.tryBatch(ctx, cmds, next, w)
}

// lateBatch takes care of a batch whose context had ended before the call, see late.
func (h hook) lateBatch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) error {
	found, err := h.tryBatch(ctx, cmds, next, w)
	if err == nil || !isOurs(err) || w.from == sharedCall || h.nodes != nil {
		return err
	}
	return h.pipeline(ctx, cmds, next, w, 1, err, found)
}

// pipeline does for a batch what process does for one command. Commands that
// were answered keep their answers; only a tail that may be sent again is.
func (h hook) pipeline(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way, attempts int, err error, found finding) error {
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
			c.mayHaveRun = c.mayHaveRun || found.mayHaveRun
			var o outcome
			why, said := found.cause(err), err
			switch {
			case found.isWord(err):
				o, rest = foreign, found.unanswered(rest)
				c.labelFound(rest, &found)
			case c.name == "transaction":
				found.unanswered(cmds)
				o, why = c.transaction(cmds, why, &found)
			default:
				o, rest, why = c.tail(rest, why, &found)
			}
			if why != found.cause(err) {
				said = why
			}
			if final := c.settle(o, why, said); final != nil {
				if o == foreign || o == answered {
					return err // as go-redis or a hook of the caller has it
				}
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
		setErrors(rest, nil)
		err = c.attempt(func() (err error) {
			found, err = h.tryBatch(ctx, rest, next, w)
			return err
		})
		switch {
		case err == nil && c.attempts == 1:
			return nil // whatever a hook of the caller has set on single commands
		case err == nil:
			return firstError(cmds, nil)
		}
		if found.from == sharedCall { // cannot be sent again from here
			return c.shared(rest, err)
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
	err := c.attempt(func() error { return next(ctx, cmds) })
	return c.shared(cmds, err)
}

// shared returns the final error of such a pipeline.
func (c *call) shared(cmds []redis.Cmder, err error) error {
	var ce *connError
	if err == nil || !errors.As(err, &ce) {
		return err
	}
	c.why = CauseSharedConnection
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
func (c *call) transaction(cmds []redis.Cmder, err error, found *finding) (outcome, error) {
	o, from := c.outcomeOf(err), found.from
	if found.waited {
		return notSent, err
	}
	if o == foreign && from.alone() && isGarbled(err) {
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
			ran = ran || c.outcomeFor(cmd, cmd.Err(), from) != refused
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
			if e := cmd.Err(); e != nil && c.outcomeFor(cmd, e, from) == refused {
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
func (c *call) tail(cmds []redis.Cmder, err error, found *finding) (o outcome, rest []redis.Cmder, why error) {
	if found.blind {
		rest = withoutReply(cmds)
		if e := own(err); len(rest) > 0 && e != nil && !e.handshake {
			return foreign, rest, err // of a command that a hook of the caller ran
		}
	} else {
		rest = found.unanswered(cmds)
	}
	if len(rest) > 0 {
		return c.unansweredTail(rest, err, found), rest, err
	}
	if o, rest = c.refusedTail(cmds, found.from); o == refused || o == denied {
		err = rest[0].Err()
	}
	return o, rest, err
}

// withoutReply returns the commands that may have no answer, where it is not known how
// far reading came: go-redis sets the error that ended a pipeline on all of them.
func withoutReply(cmds []redis.Cmder) []redis.Cmder {
	rest := make([]redis.Cmder, 0, len(cmds))
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && !isReply(err) {
			rest = append(rest, cmd)
		}
	}
	return rest
}

// unansweredTail says what is known of the commands that were not answered, the first
// of which failed with err.
func (c *call) unansweredTail(rest []redis.Cmder, err error, found *finding) outcome {
	o := c.outcomeOf(err)
	c.undelivered = nil // those of an earlier attempt say nothing of this one
	switch {
	case found.waited:
		return notSent
	case o == foreign && found.from.alone() && isGarbled(err):
		o = c.garbled()
	case o == partly:
		if n := len(rest) - len(found.undelivered); n >= 0 && slices.Equal(rest[n:], found.undelivered) {
			c.undelivered = rest[n:]
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

// labelFound puts the final errors on the commands of a batch that were not answered,
// when a hook of the caller has had the last word on the batch as a whole.
func (c *call) labelFound(rest []redis.Cmder, found *finding) {
	if len(rest) == 0 || found.err == nil {
		return
	}
	kind := ErrOutcomeUnknown
	switch o := c.unansweredTail(rest, found.err, found); o {
	case notSent, notSentForGood:
		kind = ErrUnavailable
	case foreign, answered, refused, denied:
		return
	}
	c.because(CauseUnsafe)
	c.label(rest, c.failure(kind, c.withCtx(found.err)))
}

// refusedTail finds in a pipeline whose commands were all answered the first one
// that was refused and can be sent again together with all that follow it: those
// were refused too, or do nothing but read. What they read before the refused one
// runs is not what the caller asked for.
func (c *call) refusedTail(cmds []redis.Cmder, from origin) (outcome, []redis.Cmder) {
	first, found := len(cmds), answered
	for i := len(cmds) - 1; i >= 0; i-- {
		o := c.outcomeFor(cmds[i], cmds[i].Err(), from)
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

// spread carries a batch whose commands go-redis sends to several nodes. What a node
// has answered is not sent again.
func (h hook) spread(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) error {
	c := call{link: h.link, nodes: h.nodes, ctx: ctx, name: "pipeline", reads: true}
	what := func(rest []redis.Cmder) []redis.Cmder { return rest }
	rest := innerOf(cmds)
	if len(rest) < len(cmds) {
		c.name = "transaction"
		what = func(rest []redis.Cmder) []redis.Cmder {
			return slices.Concat(cmds[:1], rest, cmds[len(cmds)-1:])
		}
	}
	for _, cmd := range rest {
		c.reads = c.reads && isReadOnly(cmd)
	}
	again := unsettled{call: &c}
	for {
		if final := c.admit(); final != nil {
			again.fail(rest, final)
			return firstError(cmds, final)
		}
		if c.attempts > 0 {
			setErrors(rest, nil)
		}
		var found finding
		err := c.attempt(func() (err error) {
			found, err = h.tryBatch(ctx, what(rest), next, w)
			return err
		})
		found.unanswered(rest)
		o, why := again.sort(rest)
		word := err == nil || found.isWord(err)
		if rest = again.cmds; len(rest) == 0 || word {
			if len(rest) > 0 { // a hook of the caller has had the last word
				c.because(CauseUnsafe)
				again.fail(rest, c.failure(ErrUnavailable, why))
			}
			switch {
			case err == nil && c.attempts > 1:
				return firstError(cmds, nil)
			case word, nodeErrorOf(found.cause(err)) == nil && c.attempts == 1:
				return err // as go-redis or a hook has it
			}
			return firstError(cmds, err)
		}
		if final := c.settle(o, why, why); final != nil {
			again.fail(rest, final)
			return firstError(cmds, final)
		}
		c.mayHaveRun = false // it is remembered for each command
	}
}

// unsettled are the commands of a batch that are to be sent again.
type unsettled struct {
	call *call
	cmds []redis.Cmder
	ran  map[redis.Cmder]bool // may have run in an earlier attempt
}

// sort finds them among cmds after an attempt, and returns what is known of them in
// general. The others get their final errors.
func (u *unsettled) sort(cmds []redis.Cmder) (o outcome, why error) {
	c := u.call
	u.cmds = nil
	finals := make(map[*nodeError]error)
	for _, cmd := range cmds {
		e := cmd.Err()
		if e == nil || isReply(e) && !c.astray(e) {
			continue
		}
		n := nodeErrorOf(e)
		if n != nil && n.panicked != nil {
			panic(n.panicked.value)
		}
		if n == nil {
			switch {
			case isReply(e):
				n = &nodeError{outcome: refused, err: e, was: e}
				cmd.SetErr(n)
			case isUnrouted(e), errors.Is(e, redis.ErrClosed) && !c.link.closing():
				n = &nodeError{outcome: notSent, err: e}
			case (e == context.Canceled || e == context.DeadlineExceeded) && ended(c.ctx) != nil:
				// It ended a pause of go-redis's between two rounds, and is on all
				// commands, those that were answered before included.
				n = &nodeError{outcome: unknown, err: &connError{phase: phaseRead, err: e}}
			default:
				continue // foreign
			}
		}
		known := n.outcome
		if known == garbled {
			if known = c.garbled(); known == foreign {
				cmd.SetErr(n.err)
				continue
			}
			if c.link.cfg.mayRepeat(c.ctx, cmd) {
				known = repeatable
			}
		}
		switch {
		case known == unknown, known == notSentForGood, n.final:
			if finals[n] == nil {
				kind := ErrUnavailable
				if known == unknown {
					kind = ErrOutcomeUnknown
				}
				at, shown := reveal(n)
				c.node = at
				if c.because(CauseUnsafe); known == notSentForGood {
					c.why = CausePoolExhausted
				}
				finals[n] = c.fail(kind, c.withCtx(shown))
			}
			cmd.SetErr(finals[n])
			continue
		case known == repeatable:
			if u.ran == nil {
				u.ran = make(map[redis.Cmder]bool)
			}
			u.ran[cmd] = true
		}
		u.cmds = append(u.cmds, cmd)
		if why == nil || known == repeatable {
			o, why = known, n
		}
	}
	return o, why
}

// fail puts the final error on commands that are not sent again after all.
func (u *unsettled) fail(cmds []redis.Cmder, final error) {
	for _, cmd := range cmds {
		n := nodeErrorOf(cmd.Err())
		if n != nil && (n.outcome == refused || n.outcome == denied) && !u.ran[cmd] {
			cmd.SetErr(n.was)
			continue
		}
		e := own(final)
		switch {
		case e == nil && u.ran[cmd]:
			e = u.call.failure(ErrOutcomeUnknown, final)
		case e == nil:
			cmd.SetErr(final)
			continue
		}
		one := *e
		if one.kind = ErrUnavailable; e.kind == ErrClosed {
			one.kind = ErrClosed
		}
		if u.ran[cmd] {
			one.kind = ErrOutcomeUnknown
		}
		if n != nil && n.link != nil {
			one.Addr = n.link.addr
		}
		cmd.SetErr(&one)
	}
}
