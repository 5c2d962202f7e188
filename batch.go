package redial

// What is special about many commands: a pipeline or transaction, for one server or for
// several, and a command of which go-redis sends parts to several. Which were answered,
// what is known of the rest, which tail of them may be sent again, and which error each
// gets. The loop is that of call.go.

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/wire"
)

// ProcessPipelineHook guards pipelines and transactions.
func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	w := h.wayTo(next)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if !onceUsed.Load() || len(cmds) == 0 {
			return h.guard(ctx, cmds, next, w)
		}
		ctx, rest, err := h.link.cfg.onceBatch(ctx, cmds, h.router.redirects(), w.from == sharedCall)
		switch {
		case len(rest) == 0:
			return err
		case err == nil:
			return h.guard(ctx, rest, next, w)
		}
		_ = h.guard(ctx, rest, next, w) // the commands have their errors
		return command.FirstError(cmds, err)
	}
}

// guard does so for commands that may be sent.
func (h hook) guard(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) error {
	late := ctx.Err() != nil // see ProcessHook
	switch {
	case len(cmds) == 0:
		return next(ctx, cmds)
	case !late && w.from == sharedCall:
		return h.shared(ctx, cmds, next)
	case !late && h.router.spreads(cmds):
		return h.spread(ctx, cmds, next, w)
	}
	admitted := !late && h.link.enter()
	if !admitted && !late && !(h.link.csc && slices.ContainsFunc(cmds, isBarredByCache)) {
		return h.pipeline(ctx, cmds, next, w, finding{}, nil, 0)
	}
	found, err := h.tryBatch(ctx, cmds, next, w, admitted)
	if err == nil && !(w.through && slices.ContainsFunc(cmds, holdsOurs)) ||
		late && (!isOurs(err) || w.from == sharedCall || h.router.several()) {
		return err
	}
	return h.pipeline(ctx, cmds, next, w, found, err, 1)
}

// pipeline carries on a batch for one server, or a transaction.
func (h hook) pipeline(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way, f finding, err error, attempts int) error {
	c := h.newCall(ctx, nameOfBatch(cmds), attempts, all(cmds, command.ReadOnly))
	c.nested = command.IsSetup(cmds)
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
	outcome     outcome       // of the last attempt
	said        error         // and its error
	cmds, rest  []redis.Cmder // all, and those that are left
	undelivered []redis.Cmder // of one that was partly written: cannot have run
}

func (b *batch) try(c *call) (err error) {
	command.SetErrors(b.rest, nil)
	b.found, err = b.tryBatch(c.ctx, b.rest, b.next, b.way, false)
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
		c.labelOurs(b.cmds)
		return ruling{done: true, said: command.FirstError(b.cmds, nil)}
	case f.from == sharedCall && c.attempts > 1, f.from == sharedCall && !f.word && !f.mayHaveRun && isOurs(f.why):
		return ruling{done: true, said: c.shared(b.rest, f.why, err, holdsOurs)} // it cannot be sent again from here
	}
	c.mayHaveRun = c.mayHaveRun || f.mayHaveRun
	r := ruling{why: f.why, said: err}
	switch {
	case f.word, f.mayHaveRun:
		f.unanswered(b.rest)
		return c.word(b.cmds, err, f)
	case c.name == "transaction":
		f.unanswered(b.cmds)
		r.outcome, r.why = c.transaction(c.link, b.cmds, f)
	default:
		lost := f.lost(b.rest)
		if len(lost) == 0 && isOurs(f.why) { // a hook handed on other commands in their place
			return c.word(b.cmds, err, f)
		}
		r.outcome, b.rest, b.undelivered, r.why = c.tail(b.rest, lost, f.why, f)
	}
	if !isSame(r.why, f.why) {
		r.said = r.why
	}
	b.part(c, &r)
	b.outcome = r.outcome
	return r
}

// part takes the commands that must not be sent again out of a rest in which others may
// be, since they have ids: in an auto-pipeline they are of other callers.
func (b *batch) part(c *call, r *ruling) {
	if r.outcome != unknown && r.outcome != partly || c.name == "transaction" || oncesOf(c.ctx) == nil {
		return
	}
	may := func(cmd redis.Cmder) bool { return c.mayRepeat([]redis.Cmder{cmd}) }
	if !slices.ContainsFunc(b.rest, may) {
		return
	}
	c.because(CauseUnsafe)
	_, shown := reveal(r.why)
	final := c.fail(ErrOutcomeUnknown, c.withCtx(shown))
	var again []redis.Cmder
	for _, cmd := range b.rest {
		if may(cmd) {
			again = append(again, cmd)
		} else {
			cmd.SetErr(final)
		}
	}
	b.rest, b.undelivered, r.outcome = again, nil, c.revise(r.outcome, again...)
}

func (b *batch) end(c *call, final error) error {
	if c.attempts > 0 && (b.outcome == foreign || b.outcome == answered) {
		return b.said // as go-redis or a hook of the caller has it
	}
	c.label(b.rest, final)
	if b.outcome == partly {
		c.because(CauseSharedConnection)
		c.label(b.undelivered, c.newError(ErrUnavailable, c.withCtx(b.said)))
	}
	return command.FirstError(b.cmds, final)
}

func (b *batch) publishes() bool { return slices.ContainsFunc(b.rest, command.Publishes) }

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
func (c *call) word(cmds []redis.Cmder, err error, f *finding) ruling {
	c.labelOurs(cmds)
	c.link.react(err)
	if f.tells(err) {
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
	err := c.attempt(func(*call) error { return next(ctx, cmds) })
	return c.shared(cmds, err, err, isUnanswered)
}

// shared returns the final error of such a pipeline, which failed with err, and as hooks of
// the caller have it with said. It puts it on the commands of which lost says that they have
// none of their own.
func (c *call) shared(cmds []redis.Cmder, err, said error, lost func(redis.Cmder) bool) error {
	if wire.ErrorOf(err) == nil {
		return said
	}
	c.why = CauseSharedConnection
	kind := ErrOutcomeUnknown
	if !isAfterDial(err) {
		kind = ErrUnavailable
	}
	final := c.fail(kind, c.withCtx(said))
	for _, cmd := range cmds {
		if lost(cmd) {
			cmd.SetErr(final)
		}
	}
	return final
}

// transaction reads the outcome of a MULTI ... EXEC block, which is one unit. When
// it was aborted because a command in it was refused, the error is that refusal;
// but EXEC has then ended any WATCH, and without it the block must not run again.
func (t *terms) transaction(at counterpart, cmds []redis.Cmder, f *finding) (o outcome, why error) {
	inner, of := command.Inner(cmds), &finding{from: f.from}
	o, why = t.outcome(nil, f.why, f), f.why
	if f.from == routedCall && o == refused {
		// go-redis returns what aborted the block, and sets the abort on the rest.
		ran := false
		for _, cmd := range inner {
			if redis.IsExecAbortError(cmd.Err()) {
				return o, why
			}
			ran = ran || t.outcome(cmd, cmd.Err(), of) != refused
		}
		if !ran { // nothing but refusals: EXEC ran none of them
			return o, why
		}
	}
	switch {
	case redis.IsExecAbortError(why):
		for _, cmd := range inner {
			if e := cmd.Err(); e != nil && t.outcome(cmd, e, of) == refused {
				at.react(e)
				if !at.watched() {
					return refused, e
				}
			}
		}
	case o == refused || o == denied:
		if at.watched() || cmds[0].Err() == nil && command.FirstError(inner, nil) != nil {
			at.react(why)
			return answered, why // EXEC ran, and this is what a command in it said
		}
	case o == partly:
		return notSent, why // EXEC comes last, so it was not delivered
	}
	return t.revise(o, inner...), why
}

// tail finds the commands of a pipeline, at its end, that were not run, or may not have
// been, what is known of them, and the error to go by. lost are those without an answer,
// and err is the error of the pipeline. If the outcome is partly, undelivered are those
// that cannot have been delivered.
func (t *terms) tail(cmds, lost []redis.Cmder, err error, f *finding) (o outcome, rest, undelivered []redis.Cmder, why error) {
	if rest = lost; len(rest) == 0 {
		if o, rest = t.refusedTail(cmds, f.from); o != answered {
			err = rest[0].Err()
		}
		return o, rest, nil, err
	}
	if t.atNode {
		err = rest[0].Err()
	}
	heard := *f
	heard.word = false // it is about the pipeline as a whole
	o = t.outcome(nil, err, &heard)
	if t.atNode && o == garbled {
		return o, rest, nil, err // the outer hook knows what to do
	}
	if o == partly {
		if n := len(rest) - len(f.undelivered); n >= 0 && slices.EqualFunc(rest[n:], f.undelivered, isOne) {
			undelivered = rest[n:]
		}
		if len(undelivered) == len(rest) {
			o, undelivered = notSent, nil
		}
	}
	o = t.revise(o, rest[:len(rest)-len(undelivered)]...)
	if t.atNode && f.mayHaveRun && o != foreign {
		o = unknown
	}
	return o, rest, undelivered, err
}

// refusedTail finds in a pipeline whose commands were all answered the first one
// that was refused and can be sent again together with all that follow it: those
// were refused too, or do nothing but read. What they read before the refused one
// runs is not what the caller asked for. Of one that is in it several times only the last
// time is known.
func (t *terms) refusedTail(cmds []redis.Cmder, from origin) (found outcome, rest []redis.Cmder) {
	rest = cmds
	var behind map[redis.Cmder]bool // from the first refused one on
	noted := len(cmds)
	for i := len(cmds) - 1; i >= 0; i-- {
		o := t.outcome(cmds[i], cmds[i].Err(), &finding{from: from})
		if (o == refused || o == denied) && (found == answered || found == o) {
			for ; noted > i; noted-- {
				cmd := cmds[noted-1]
				if !reflect.ValueOf(cmd).Comparable() {
					continue
				}
				if behind[cmd] {
					return found, rest
				}
				if behind == nil {
					behind = make(map[redis.Cmder]bool)
				}
				behind[cmd] = true
			}
			found, rest = o, cmds[i:]
		} else if !t.mayRepeat(cmds[i:i+1]) || oncesOf(t.ctx).has(cmds[i]) { // one with an id has run
			break
		}
	}
	return found, rest
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
	cmds, rest []redis.Cmder // all, and those that are left, without MULTI and EXEC
	ran        []bool        // which of the rest may have run in an earlier attempt; nil: none
}

func (s *spread) try(c *call) (err error) {
	if c.attempts > 1 {
		command.SetErrors(s.rest, nil)
	}
	cmds := s.rest
	if c.name == "transaction" {
		cmds = slices.Concat(s.cmds[:1], cmds, s.cmds[len(s.cmds)-1:])
	}
	s.found, err = s.tryBatch(c.ctx, cmds, s.next, s.way, false)
	return err
}

func (s *spread) judge(c *call, err error) ruling {
	s.found.unanswered(s.rest)
	o, why := s.sort(c)
	word := err == nil || s.found.word || s.found.mayHaveRun
	if len(s.rest) > 0 && !word {
		return ruling{outcome: o, why: why, said: why}
	}
	if len(s.rest) > 0 { // a hook of the caller has had the last word
		c.because(CauseHook)
		_, shown := reveal(why)
		s.end(c, c.newError(ErrUnavailable, shown))
	}
	if err != nil && failureOf(err) == nil && s.found.tells(err) {
		c.mayHaveRun = c.mayHaveRun || s.found.mayHaveRun
		return ruling{done: true, said: command.FirstError(s.cmds, c.ownError(err))}
	}
	if word && (err != nil || c.attempts == 1) || c.attempts == 1 && failureOf(s.found.why) == nil {
		return ruling{done: true, said: err} // as go-redis or a hook has it
	}
	return ruling{done: true, said: command.FirstError(s.cmds, err)}
}

// sort finds out what is left after an attempt, and returns what is known of that in
// general. The others get their final errors.
func (s *spread) sort(c *call) (o outcome, why error) {
	cmds, ran := s.rest, s.ran
	s.rest, s.ran = nil, nil
	type end struct {
		of  *failure
		ran bool // may have, in an earlier attempt
	}
	finals := make(map[end]error)
	for i, cmd := range cmds {
		before := ran != nil && ran[i]
		e := cmd.Err()
		if e == nil || isReply(e) && !c.astray(e) {
			continue
		}
		n := c.failed(cmd, e)
		if n == nil {
			continue // foreign
		}
		known := n.outcome
		if known == garbled {
			if known = c.revise(known, cmd); known == foreign {
				cmd.SetErr(n.err)
				continue
			}
		}
		switch {
		case known == unknown, known == partly, known == notSentForGood, n.final:
			final := end{n, before}
			if finals[final] == nil {
				finals[final] = c.finalOf(n, known, before)
			}
			cmd.SetErr(finals[final])
			continue
		}
		s.rest = append(s.rest, cmd)
		s.ran = append(s.ran, before || known == repeatable)
		if why == nil || known == repeatable {
			o, why = known, n
		}
	}
	return o, why
}

// failed returns what a command of such a batch has failed with, e being what go-redis has set
// on it, or nil when that is foreign.
func (c *call) failed(cmd redis.Cmder, e error) *failure {
	switch n := failureOf(e); {
	case n != nil && n.panicked != nil:
		panic(n.panicked.value)
	case n != nil:
		return n
	case isReply(e):
		n = &failure{outcome: refused, err: e, was: e}
		cmd.SetErr(n)
		return n
	case isUnrouted(e) && !isOurs(e), outcomeOf(e) == notSentForGood && errors.Is(e, redis.ErrClosed) && !c.link.closing():
		return &failure{outcome: notSent, err: e}
	case (e == context.Canceled || e == context.DeadlineExceeded) && (ended(c.ctx) != nil || c.stale()):
		// It ended a pause of go-redis's between two rounds, and is on all commands, those
		// that were answered before included.
		return &failure{outcome: unknown, err: &wire.Error{Phase: wire.PhaseRead, Err: e}}
	case isOurs(e): // through a hook that went on with a context of its own, say
		if n = (&failure{outcome: unknown, err: e, final: true}); !isAfterWrite(e) {
			n.outcome = notSent
		}
		return n
	}
	return nil
}

// finalOf returns the error of commands that are not sent again because of n, of which that
// is known; ran says that they may have run before.
func (c *call) finalOf(n *failure, known outcome, ran bool) error {
	kind, sent := ErrUnavailable, known == unknown || known == partly
	if sent || ran {
		kind = ErrOutcomeUnknown
	}
	at, shown := reveal(n)
	c.node, _ = at.(*link)
	switch c.because(CauseUnsafe); {
	case known == notSentForGood:
		c.why = CausePoolExhausted
	case !sent:
		c.because(CauseSharedConnection)
	}
	return c.fail(kind, c.withCtx(shown))
}

// end puts the final error on what is not sent again after all.
func (s *spread) end(c *call, final error) error {
	for i, cmd := range s.rest {
		ran := s.ran != nil && s.ran[i]
		n := failureOf(cmd.Err())
		if n != nil && (n.outcome == refused || n.outcome == denied) && !ran {
			cmd.SetErr(n.was)
			continue
		}
		e := asError(final)
		switch {
		case e == nil && ran:
			e = c.newError(ErrOutcomeUnknown, final)
		case e == nil:
			cmd.SetErr(final)
			continue
		}
		one := *e
		if one.kind = ErrUnavailable; e.kind == ErrClosed {
			one.kind = ErrClosed
		}
		if ran {
			one.kind = ErrOutcomeUnknown
		}
		if n != nil && n.at != nil {
			one.Addr = n.at.Address()
		}
		cmd.SetErr(&one)
	}
	return command.FirstError(s.cmds, final)
}

func (s *spread) publishes() bool { return slices.ContainsFunc(s.rest, command.Publishes) }

// parts is what became of the parts of a command that go-redis splits among nodes.
// It reports success when some of them failed.
type parts struct {
	mu     sync.Mutex
	ran    bool  // guarded by mu; one of them was answered, or may have run
	failed error // guarded by mu; of the last that was not answered; nil: there is none
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
		p.failed = err
	case err == nil || err == redis.Nil:
		p.ran = true
	default:
		p.replies = append(p.replies, err)
	}
}

// together returns the error of the whole command, for which go-redis returned err.
func (p *parts) together(t *terms, err error) error {
	p.mu.Lock()
	ran, failed, replies := p.ran, p.failed, p.replies
	p.mu.Unlock()
	for _, e := range replies {
		ran = ran || !isUndone(e) && !t.taught(e)
	}
	n := failureOf(failed)
	if failed != nil && n == nil {
		n = &failure{outcome: notSent, err: failed}
	}
	switch {
	case n != nil && ran:
		return &failure{at: n.at, outcome: unknown, err: n.err}
	case n != nil:
		return n
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
