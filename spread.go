package redial

// What go-redis sends to several servers: a batch whose commands have different nodes, and a
// command that it splits into parts. What is known of each command, or of all parts together.
// Here is, too, what a batch for one server has in common with that, see batch.go.

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/wire"
)

// bundle is what there is to know of a batch, wherever its commands go.
type bundle struct {
	*hook
	next       redis.ProcessPipelineHook
	way        way
	found      finding       // of the last attempt
	cmds, rest []redis.Cmder // all, and those that are left
	first      owned         // for the first attempt
}

// finds notes what was found of an attempt; nil: all went well.
func (b *bundle) finds(f *finding) {
	if f == nil {
		b.found = found(context.Background(), b.way.from, nil)
	} else {
		b.found = *f
	}
}

// once returns first, once.
func (b *bundle) once() owned {
	first := b.first
	b.first = owned{}
	return first
}

func (b *bundle) publishes() bool { return slices.ContainsFunc(b.rest, command.Publishes) }

// newBatch returns the call of a batch, of which rest is to be done.
func (h *hook) newBatch(ctx context.Context, cmds, rest []redis.Cmder, attempts int) *call {
	name := "pipeline"
	if command.IsTransaction(cmds) {
		name = "transaction"
	}
	return h.newCall(ctx, name, attempts, !slices.ContainsFunc(rest, changes))
}

// errorOf returns the error of a batch: of the first command that may have run, or has none
// from the server, as go-redis has what ended a pipeline, or else the first, or final.
func errorOf(cmds []redis.Cmder, final error) error {
	var ours error
	for _, cmd := range cmds {
		err := cmd.Err()
		switch {
		case asError(err) == nil:
		case !SafeToRetry(err):
			return err
		case ours == nil:
			ours = err
		}
	}
	if ours != nil {
		return ours
	}
	return command.FirstError(cmds, final)
}

// worst returns the error of a batch for which hooks of the caller have said: another, if that is
// about a command which did not run, or was answered, and there is one of which that is unknown.
func (c *call) worst(cmds []redis.Cmder, said error) error {
	if isReply(said) || c.disclaims(said) {
		return cmp.Or(unknownOf(cmds), said)
	}
	return said
}

// unknownOf returns the error of the first of cmds that may have run, as far as is known, or nil.
func unknownOf(cmds []redis.Cmder) error {
	if err := errorOf(cmds, nil); asError(err) != nil && !SafeToRetry(err) {
		return err
	}
	return nil
}

// spread carries on a batch whose commands go-redis sends to several nodes.
func (h *hook) spread(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) error {
	cmds, first := w.own(ctx, cmds)
	rest := command.Inner(cmds)
	c := h.newBatch(ctx, cmds, rest, 0)
	c.apiece = true
	return c.carry(&spread{bundle: bundle{hook: h, next: next, way: w, cmds: cmds, rest: rest, first: first}}, nil)
}

// spread is the work of such a batch. What a node has answered is not sent again, and the
// rest is without MULTI and EXEC.
type spread struct {
	bundle
	ran []bool // which of the rest may have run in an earlier attempt; nil: none
}

func (s *spread) try(c *call) error {
	if c.attempts > 1 {
		command.SetErrors(s.rest, nil)
	}
	cmds := s.rest
	if c.name == "transaction" {
		cmds = slices.Concat(s.cmds[:1], cmds, s.cmds[len(s.cmds)-1:])
	}
	s.way.sent = s.found.sent
	f, err := s.tryBatch(c.ctx, cmds, s.once(), s.next, s.way, false)
	s.finds(f)
	return err
}

func (s *spread) judge(c *call, err error) ruling {
	o, why := s.sort(c) // which goes by what is known of each command
	c.mayHaveRun = slices.Contains(s.ran, true) || s.found.mayHaveRun
	word := err == nil || s.found.word || s.found.mayHaveRun
	if len(s.rest) > 0 && !word {
		return ruling{outcome: o, why: why, said: why}
	}
	if len(s.rest) > 0 { // a hook of the caller has had the last word
		c.because(CauseHook)
		_, shown := reveal(why)
		s.end(c, c.newError(ErrUnavailable, shown))
	}
	if err != nil && errors.Is(err, errorOf(s.cmds, nil)) {
		if outcomeOf(err) == denied && c.link.hopeless() { // nobody tells which nodes they are for
			err = c.turnedDown(err)
		}
		return ruling{done: true, said: err} // the same, as a hook has it
	}
	if err != nil && failureOf(err) == nil && s.found.tells(err) {
		return ruling{done: true, said: errorOf(s.cmds, c.ownError(err, c.mayHaveRun))}
	}
	if word && (err != nil || c.attempts == 1) || c.attempts == 1 && failureOf(s.found.why) == nil && asError(errorOf(s.cmds, nil)) == nil {
		return ruling{done: true, said: c.worst(s.cmds, err)} // as go-redis or a hook has it
	}
	return ruling{done: true, said: errorOf(s.cmds, err)}
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
	var doubtful []redis.Cmder // which were answered this time, and may have run before, or under an id
	var closed error           // of those that may have run before, and cannot be sent again
	for i, cmd := range cmds {
		before := s.found.ranBefore(cmd) || ran != nil && ran[i]
		e := cmd.Err()
		if e == nil || isReply(e) && !c.astray(e) {
			if before || isUnsure(e) {
				doubtful = append(doubtful, cmd)
			}
			continue
		}
		n := c.failed(cmd, e)
		switch {
		case n == nil && before && isClosedClient(e):
			if closed == nil {
				closed = c.closed(e, before)
			}
			cmd.SetErr(closed)
			continue
		case n == nil && before && isEnd(e): // a hook's own context has ended, before it was sent again
			doubtful = append(doubtful, cmd)
			continue
		case n == nil:
			continue // foreign
		}
		known := n.outcome
		if known == garbled {
			if known = c.revise(known, cmd); known == foreign || n.final && command.ReadOnly(cmd) {
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
	c.doubt(doubtful, func(redis.Cmder) bool { return true })
	return o, why
}

// doubt gives those of cmds of which errors do not say what became of them the error that says
// so, and reports whether there are any: those with ids that say it themselves, and those whose
// errors say that they did not run, where ran says that they may have before. It counts as one
// failure, however many reasons there are.
func (c *call) doubt(cmds []redis.Cmder, ran func(redis.Cmder) bool) bool {
	var first *Error
	for _, cmd := range cmds {
		err := cmd.Err()
		if !isUnsure(err) && !(ran(cmd) && changes(cmd) && c.disclaims(err)) {
			continue
		}
		if first == nil {
			first = c.despite(err)
		}
		one := *first
		one.Err = c.withCtx(err)
		cmd.SetErr(&one)
	}
	return first != nil
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
	case isUnrouted(e) && !isOurs(e), isClosedClient(e) && !c.link.closing():
		return &failure{outcome: notSent, err: e}
	case isEnd(e) && (ended(c.ctx) != nil || c.stale()):
		// It ended a pause of go-redis's between two rounds, and is on all commands, those
		// that were answered before included.
		return &failure{outcome: unknown, err: &wire.Error{Phase: wire.PhaseRead, Err: e}}
	case isOfCommand(e): // a hook's, perhaps, of a command that it ran
		return nil
	case isOurs(e): // through a hook that went on with a context of its own, say
		if n = (&failure{outcome: unknown, err: e, final: true}); !isAfterWrite(e) {
			n.outcome = notSent
		}
		return n
	}
	return nil
}

// isClosedClient reports whether err is what go-redis says when it sends nothing since the
// client is closed.
func isClosedClient(err error) bool {
	return outcomeOf(err) == notSentForGood && errors.Is(err, redis.ErrClosed)
}

// finalOf returns the error of commands that are not sent again because of n, of which that
// is known; ran says that they may have run before.
func (c *call) finalOf(n *failure, known outcome, ran bool) error {
	kind, sent := ErrUnavailable, known == unknown || known == partly || known == repeatable
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

// end puts the final error on what is not sent again after all. A refusal is the last word,
// unless its server was waited for.
func (s *spread) end(c *call, final error) error {
	safe := SafeToRetry(final)
	for i, cmd := range s.rest {
		ran := s.ran != nil && s.ran[i]
		n := failureOf(cmd.Err())
		if n != nil && !ran && (n.outcome == denied || n.outcome == refused && !(safe && isDown(n.at))) {
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
		switch {
		case ran:
			one.kind = ErrOutcomeUnknown
		case e.Cause != CauseClosed:
			one.kind = ErrUnavailable
		default:
			one.kind = ErrClosed
		}
		if n != nil && n.at != nil {
			one.Addr = n.at.Address()
		}
		cmd.SetErr(&one)
	}
	return errorOf(s.cmds, final)
}

// isDown reports whether at is a server that commands wait for, whatever it has answered.
func isDown(at wire.Place) bool {
	l, ok := at.(*link)
	return ok && l.now() != StateConnected
}

// ownError returns the final error for one that our connections or nodes have told. ran says
// that what it is about may have run before.
func (c *call) ownError(err error, ran bool) error {
	c.because(CauseHook)
	_, shown := reveal(err)
	e := c.newError(ErrOutcomeUnknown, c.withCtx(shown))
	if o := outcomeOf(err); !ran && (o == notSent || o == notSentForGood) {
		e.kind = ErrUnavailable
	}
	return e
}

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
