package redial

// What is special about many commands: a pipeline or transaction, for one server or for
// several, and a command of which go-redis sends parts to several. Which were answered,
// what is known of the rest, which tail of them may be sent again, and which error each
// gets. The loop is that of call.go.

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
)

// ProcessPipelineHook guards pipelines and transactions.
func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	w := h.wayTo(next)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		var found finding
		var err error
		late := ctx.Err() != nil // see ProcessHook
		switch l := h.link; {
		case len(cmds) == 0:
			return next(ctx, cmds)
		case !late && w.from == sharedCall:
			return h.shared(ctx, cmds, next)
		case !late && h.router.spreads(cmds):
			return h.spread(ctx, cmds, next, w)
		case !late && l.enter():
			found, err = h.admittedBatch(ctx, cmds, next, w)
		case late, l.csc && slices.ContainsFunc(cmds, isBarredByCache):
			found, err = h.tryBatch(ctx, cmds, next, w)
		default:
			return h.pipeline(ctx, cmds, next, w, finding{}, nil, 0)
		}
		if err == nil && !(w.through && slices.ContainsFunc(cmds, holdsOurs)) || late && (!isOurs(err) || w.from == sharedCall || h.router.several()) {
			return err
		}
		return h.pipeline(ctx, cmds, next, w, found, err, 1)
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

// pipeline carries on a batch for one server, or a transaction.
func (h hook) pipeline(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way, f finding, err error, attempts int) error {
	c := h.newCall(ctx, nameOfBatch(cmds), attempts, all(cmds, command.ReadOnly))
	c.nested = all(cmds, command.IsHandshake)
	return c.carry(&batch{hook: h, cmds: cmds, rest: cmds, next: next, way: w, found: f}, err)
}

func nameOfBatch(cmds []redis.Cmder) string {
	if command.IsTransaction(cmds) {
		return "transaction"
	}
	return "pipeline"
}

// batch is the work of a pipeline for one server, or of a transaction. Commands that
// were answered keep their answers; only a tail that may be sent again is.
type batch struct {
	hook
	next        redis.ProcessPipelineHook
	way         way
	found       finding
	said        error         // of the last attempt
	cmds, rest  []redis.Cmder // all, and those that are left
	undelivered []redis.Cmder // of one that was partly written: cannot have run
}

func (b *batch) try(c *call) (err error) {
	command.SetErrors(b.rest, nil)
	b.found, err = b.tryBatch(c.ctx, b.rest, b.next, b.way)
	return err
}

func (b *batch) judge(c *call, err error) ruling {
	f := &b.found
	b.said = err
	switch {
	case err == nil && c.attempts == 1:
		c.labelOurs(b.cmds)
		return ruling{done: true} // whatever a hook of the caller has set on single commands
	case err == nil:
		return ruling{done: true, said: command.FirstError(b.cmds, nil)}
	case f.from == sharedCall && c.attempts > 1: // cannot be sent again from here
		return ruling{done: true, said: c.shared(b.rest, err)}
	}
	c.mayHaveRun = c.mayHaveRun || f.mayHaveRun
	cause := f.cause(err)
	r := ruling{outcome: foreign, why: cause, said: err}
	switch {
	case f.isWord(err), f.mayHaveRun:
		f.unanswered(b.rest)
		return c.word(b.cmds, err)
	case c.name == "transaction":
		f.unanswered(b.cmds)
		r.outcome, r.why = c.transaction(c.link, b.cmds, cause, f)
	default:
		lost := f.lost(b.rest)
		if len(lost) > 0 {
			b.rest = lost
			r.outcome, b.undelivered = c.tail(c.outcome(nil, cause, f), lost, f)
		} else if isOurs(cause) { // a hook handed on other commands in their place
			return c.word(b.cmds, err)
		} else if r.outcome, b.rest = c.refusedTail(b.rest, f); r.outcome != answered {
			r.why = b.rest[0].Err()
		}
	}
	if r.why != cause {
		r.said = r.why
	}
	return r
}

func (b *batch) end(c *call, o outcome, final error) error {
	if o == foreign || o == answered {
		return b.said // as go-redis or a hook of the caller has it
	}
	c.label(b.rest, final)
	if o == partly {
		c.because(CauseSharedConnection)
		c.label(b.undelivered, c.newError(ErrUnavailable, c.withCtx(b.said)))
	}
	return command.FirstError(b.cmds, final)
}

// label puts the final error on the commands that have no answer of their own.
func (c *call) label(cmds []redis.Cmder, final error) {
	if asError(final) == nil && isReply(final) {
		return
	}
	for _, cmd := range cmds {
		if err := cmd.Err(); err == nil || !isReply(err) {
			cmd.SetErr(final)
		}
	}
}

// word ends a call of whose batch a hook of the caller has had the last word, or made
// something else. It returns err, unless that is what our connections say.
func (c *call) word(cmds []redis.Cmder, err error) ruling {
	c.labelOurs(cmds)
	c.link.react(err)
	if isOurs(err) {
		err = c.ownError(err)
	}
	return ruling{done: true, said: err}
}

// labelOurs puts final errors on commands that have what our connections say.
func (c *call) labelOurs(cmds []redis.Cmder) {
	for _, cmd := range cmds {
		if holdsOurs(cmd) {
			cmd.SetErr(c.ownError(cmd.Err()))
		}
	}
}

// ownError returns the final error for one that our connections or nodes have told.
func (c *call) ownError(err error) error {
	kind := ErrOutcomeUnknown
	switch outcomeOf(err) {
	case notSent, notSentForGood:
		kind = ErrUnavailable
	}
	c.because(CauseHook)
	_, shown := reveal(err)
	return c.newError(kind, c.withCtx(shown))
}

// holdsOurs reports whether a command has an error that our connections or nodes have
// told, and that is no final one.
func holdsOurs(cmd redis.Cmder) bool {
	err := cmd.Err()
	return err != nil && asError(err) == nil && isOurs(err)
}

// shared passes on a pipeline of the full-duplex engine, whose commands share a
// connection with others and cannot be sent again from here. The engine leaves
// its answered commands alone; of the others nothing is known.
func (h hook) shared(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
	c := h.newCall(ctx, "pipeline", 0, false)
	if final := c.admit(); final != nil {
		c.label(cmds, final)
		return final
	}
	return c.shared(cmds, c.attempt(func(*call) error { return next(ctx, cmds) }))
}

// shared returns the final error of such a pipeline.
func (c *call) shared(cmds []redis.Cmder, err error) error {
	if connErrorOf(err) == nil {
		return err
	}
	c.why = CauseSharedConnection
	kind := ErrOutcomeUnknown
	if !isAfterDial(err) {
		kind = ErrUnavailable
	}
	final := c.fail(kind, c.withCtx(err))
	for _, cmd := range cmds {
		if isUnanswered(cmd) {
			cmd.SetErr(final)
		}
	}
	return final
}

// transaction reads the outcome of a MULTI ... EXEC block, which is one unit. When
// it was aborted because a command in it was refused, the error is that refusal;
// but EXEC has then ended any WATCH, and without it the block must not run again.
func (t *terms) transaction(at counterpart, cmds []redis.Cmder, err error, f *finding) (outcome, error) {
	o, inner := t.outcome(nil, err, f), command.Inner(cmds)
	if f.from == routedCall && o == refused {
		// go-redis returns what aborted the block, and sets the abort on the rest.
		ran := false
		for _, cmd := range inner {
			if redis.IsExecAbortError(cmd.Err()) {
				return refused, err
			}
			ran = ran || t.outcome(cmd, cmd.Err(), f) != refused
		}
		if !ran { // nothing but refusals: EXEC ran none of them
			return refused, err
		}
	}
	switch {
	case redis.IsExecAbortError(err):
		for _, cmd := range inner {
			if e := cmd.Err(); e != nil && t.outcome(cmd, e, f) == refused {
				at.react(e)
				if !at.watched() {
					return refused, e
				}
			}
		}
	case o == refused || o == denied:
		if at.watched() || cmds[0].Err() == nil && command.FirstError(inner, nil) != nil {
			at.react(err)
			return answered, err // EXEC ran, and this is what a command in it said
		}
	case o == partly:
		o = notSent // EXEC comes last, so it was not delivered
	default:
		o = t.revise(o, inner...)
	}
	return o, err
}

// tail says what is known of commands of a batch that were not answered, the first of
// which failed with an error of outcome o, and which of them cannot have been delivered
// if that is partly.
func (t *terms) tail(o outcome, rest []redis.Cmder, f *finding) (_ outcome, undelivered []redis.Cmder) {
	if o == partly {
		if n := len(rest) - len(f.undelivered); n >= 0 && slices.Equal(rest[n:], f.undelivered) {
			undelivered = rest[n:]
		}
		if len(undelivered) == len(rest) {
			return notSent, nil
		}
	}
	return t.revise(o, rest[:len(rest)-len(undelivered)]...), undelivered
}

// refusedTail finds in a pipeline whose commands were all answered the first one
// that was refused and can be sent again together with all that follow it: those
// were refused too, or do nothing but read. What they read before the refused one
// runs is not what the caller asked for.
func (t *terms) refusedTail(cmds []redis.Cmder, f *finding) (outcome, []redis.Cmder) {
	first, found := len(cmds), answered
	for i := len(cmds) - 1; i >= 0; i-- {
		o := t.outcome(cmds[i], cmds[i].Err(), f)
		if (o == refused || o == denied) && (found == answered || found == o) {
			first, found = i, o
		} else if !t.mayRepeat(cmds[i : i+1]) {
			break
		}
	}
	if found == answered {
		return answered, cmds
	}
	return found, cmds[first:]
}

// spread carries on a batch whose commands go-redis sends to several nodes.
func (h hook) spread(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) error {
	rest := command.Inner(cmds)
	c := h.newCall(ctx, nameOfBatch(cmds), 0, all(rest, command.ReadOnly))
	c.apiece = true
	return c.carry(&spread{hook: h, cmds: cmds, rest: rest, next: next, way: w}, nil)
}

// spread is the work of such a batch. What a node has answered is not sent again.
type spread struct {
	hook
	next       redis.ProcessPipelineHook
	way        way
	found      finding
	cmds, rest []redis.Cmder        // all, and those that are left, without MULTI and EXEC
	ran        map[redis.Cmder]bool // may have run in an earlier attempt
}

func (s *spread) try(c *call) (err error) {
	if c.attempts > 1 {
		command.SetErrors(s.rest, nil)
	}
	cmds := s.rest
	if c.name == "transaction" {
		cmds = slices.Concat(s.cmds[:1], cmds, s.cmds[len(s.cmds)-1:])
	}
	s.found, err = s.tryBatch(c.ctx, cmds, s.next, s.way)
	return err
}

func (s *spread) judge(c *call, err error) ruling {
	s.found.unanswered(s.rest)
	o, why := s.sort(c)
	word := err == nil || s.found.isWord(err) || s.found.mayHaveRun
	if len(s.rest) > 0 && !word {
		return ruling{outcome: o, why: why, said: why}
	}
	if len(s.rest) > 0 { // a hook of the caller has had the last word
		c.because(CauseHook)
		_, shown := reveal(why)
		s.end(c, foreign, c.newError(ErrUnavailable, shown))
	}
	if err != nil && asError(err) == nil && failureOf(err) == nil && isOurs(err) {
		return ruling{done: true, said: command.FirstError(s.cmds, c.ownError(err))}
	}
	if word && (err != nil || c.attempts == 1) || c.attempts == 1 && failureOf(s.found.cause(err)) == nil {
		return ruling{done: true, said: err} // as go-redis or a hook has it
	}
	return ruling{done: true, said: command.FirstError(s.cmds, err)}
}

// sort finds out what is left after an attempt, and returns what is known of that in
// general. The others get their final errors.
func (s *spread) sort(c *call) (o outcome, why error) {
	cmds := s.rest
	s.rest = nil
	finals := make(map[*failure]error)
	for _, cmd := range cmds {
		e := cmd.Err()
		if e == nil || isReply(e) && !c.astray(e) {
			continue
		}
		n := failureOf(e)
		if n != nil && n.panicked != nil {
			panic(n.panicked.value)
		}
		if n == nil {
			switch {
			case isReply(e):
				n = &failure{outcome: refused, err: e, was: e}
				cmd.SetErr(n)
			case isUnrouted(e), errors.Is(e, redis.ErrClosed) && !c.link.closing():
				n = &failure{outcome: notSent, err: e}
			case (e == context.Canceled || e == context.DeadlineExceeded) && ended(c.ctx) != nil:
				// It ended a pause of go-redis's between two rounds, and is on all
				// commands, those that were answered before included.
				n = &failure{outcome: unknown, err: &connError{phase: phaseRead, err: e}}
			case isOurs(e): // through a hook that went on with a context of its own, say
				if n = (&failure{outcome: unknown, err: e, final: true}); !isAfterWrite(e) {
					n.outcome = notSent
				}
			default:
				continue // foreign
			}
		}
		known := n.outcome
		if known == garbled {
			if known = c.revise(garbled, cmd); known == foreign {
				cmd.SetErr(n.err)
				continue
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
				c.node, _ = at.(*link)
				switch c.because(CauseUnsafe); {
				case known == notSentForGood:
					c.why = CausePoolExhausted
				case kind == ErrUnavailable:
					c.because(CauseSharedConnection)
				}
				finals[n] = c.fail(kind, c.withCtx(shown))
			}
			cmd.SetErr(finals[n])
			continue
		case known == repeatable:
			if s.ran == nil {
				s.ran = make(map[redis.Cmder]bool)
			}
			s.ran[cmd] = true
		}
		s.rest = append(s.rest, cmd)
		if why == nil || known == repeatable {
			o, why = known, n
		}
	}
	return o, why
}

// end puts the final error on what is not sent again after all.
func (s *spread) end(c *call, _ outcome, final error) error {
	for _, cmd := range s.rest {
		n := failureOf(cmd.Err())
		if n != nil && (n.outcome == refused || n.outcome == denied) && !s.ran[cmd] {
			cmd.SetErr(n.was)
			continue
		}
		e := asError(final)
		switch {
		case e == nil && s.ran[cmd]:
			e = c.newError(ErrOutcomeUnknown, final)
		case e == nil:
			cmd.SetErr(final)
			continue
		}
		one := *e
		if one.kind = ErrUnavailable; e.kind == ErrClosed {
			one.kind = ErrClosed
		}
		if s.ran[cmd] {
			one.kind = ErrOutcomeUnknown
		}
		if n != nil && n.at != nil {
			one.Addr = n.at.address()
		}
		cmd.SetErr(&one)
	}
	return command.FirstError(s.cmds, final)
}

// parts is what became of the parts of a command that go-redis splits among nodes.
// It reports success when some of them failed.
type parts struct {
	mu     sync.Mutex
	ran    bool     // guarded by mu; one of them was answered, or may have run
	failed *failure // guarded by mu; the last that was not answered; nil: there is none
	// The errors that others were answered, which may mean that those did not run.
	replies []error // guarded by mu
}

func (p *parts) note(err error) {
	n := failureOf(err)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case n != nil:
		p.failed = n
		p.ran = p.ran || n.outcome == unknown || n.outcome == repeatable || n.outcome == garbled
	case errors.Is(err, redis.ErrClosed):
		p.failed = &failure{outcome: notSent, err: err}
	default:
		if err == nil || err == redis.Nil {
			p.ran = true
		} else {
			p.replies = append(p.replies, err)
		}
	}
}

// verdict returns the error of the whole command, for which go-redis returned err.
func (p *parts) verdict(t *terms, err error) error {
	p.mu.Lock()
	ran, failed, replies := p.ran, p.failed, p.replies
	p.mu.Unlock()
	for _, e := range replies {
		ran = ran || !isUndone(e) && !t.taught(e)
	}
	switch {
	case failed != nil && ran:
		return &failure{at: failed.at, outcome: unknown, err: failed.err}
	case failed != nil:
		return failed
	case err == nil && len(replies) > 0:
		return &failure{outcome: unknown, err: notReply(replies[len(replies)-1])}
	case err != nil && ran && t.outcome(nil, err, &finding{from: routedCall}) == refused:
		return &failure{outcome: unknown, err: notReply(err)}
	case ran && !t.reads && isUndone(err):
		return ranElsewhere{replyOf(err)}
	}
	return err
}

// all reports whether f holds for every one of cmds.
func all(cmds []redis.Cmder, f func(redis.Cmder) bool) bool {
	return !slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return !f(cmd) })
}
