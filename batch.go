package redial

// What is special about many commands for one server: a pipeline, a transaction, or a Watch
// around some. Which are sent again, and which error each gets. The loop is that of call.go,
// what is known of those that failed is in outcome.go, and what go-redis sends to several
// servers in spread.go.

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/wire"
)

// ProcessPipelineHook guards pipelines and transactions.
func (h *hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	w := h.wayTo(next)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		sys.GrowStack()
		return h.takeBatch(ctx, cmds, next, w)
	}
}

// takeBatch guards a batch in which there may be commands that cannot have an id.
func (h *hook) takeBatch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) error {
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

// guard does so for commands that may be sent.
func (h *hook) guard(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) error {
	late := ctx.Err() != nil // see ProcessHook
	switch {
	case len(cmds) == 0:
		return next(ctx, cmds)
	case !late && w.from == sharedCall:
		return h.shared(ctx, cmds, next)
	case !late && h.router.spreads(cmds):
		return h.spread(ctx, cmds, next, w)
	}
	cmds, first := w.own(ctx, cmds)
	admitted := !late && h.link.enter()
	if !admitted && !late && !(h.link.csc && slices.ContainsFunc(cmds, isBarredByCache)) {
		return h.pipeline(ctx, cmds, first, next, w, nil, nil, 0)
	}
	found, err := h.tryBatch(ctx, cmds, first, next, w, admitted)
	if err == nil && !(w.through && slices.ContainsFunc(cmds, holdsOurs)) ||
		late && (!isOurs(err) || w.from == sharedCall || h.router.several()) {
		return err
	}
	return h.pipeline(ctx, cmds, owned{}, next, w, found, err, 1)
}

// pipeline carries on a batch for one server, or a transaction.
func (h *hook) pipeline(ctx context.Context, cmds []redis.Cmder, first owned, next redis.ProcessPipelineHook, w way, f *finding, err error, attempts int) error {
	c := h.newBatch(ctx, cmds, cmds, attempts)
	c.nested = command.IsSetup(cmds)
	b := &batch{bundle: bundle{hook: h, next: next, way: w, cmds: cmds, rest: cmds, first: first}}
	b.finds(f)
	return c.carry(b, err)
}

// batch is the work of a pipeline for one server, or of a transaction. Commands that
// were answered keep their answers; only a tail that may be sent again is.
type batch struct {
	bundle
	outcome     outcome       // of the last attempt
	said        error         // and its error
	undelivered []redis.Cmder // of one that was partly written: cannot have run
	refusals    []error       // of the rest, when it was last refused
	refusal     error         // and that of all
}

func (b *batch) try(c *call) error {
	command.SetErrors(b.rest, nil)
	b.way.sent = b.found.sent
	f, err := b.tryBatch(c.ctx, b.rest, b.once(), b.next, b.way, false)
	b.finds(f)
	return err
}

func (b *batch) judge(c *call, err error) ruling {
	left := b.rest
	c.mayHaveRun = c.mayHaveRun || b.found.mayHaveRun
	r := b.weigh(c, err)
	if !r.done && r.outcome != answered && r.outcome != foreign {
		left = without(left, b.rest) // which are sent again, or end tells them
	}
	doubted := c.doubt(left, func(cmd redis.Cmder) bool {
		return c.mayHaveRun && (c.repeats || !b.found.mayHaveRun || b.found.ranBefore(cmd))
	})
	if doubted && c.mayHaveRun && r.said == nil {
		r.said = errorOf(b.cmds, nil)
	}
	if c.mayHaveRun || doubted && !r.done {
		r.said = c.worst(b.cmds, r.said)
		b.said = r.said
	}
	return r
}

// without returns cmds without those of rest, which are some of them, in their order.
func without(cmds, rest []redis.Cmder) []redis.Cmder {
	others := make([]redis.Cmder, 0, len(cmds)-len(rest))
	for _, cmd := range cmds {
		if len(rest) > 0 && isLike(cmd, rest[0]) {
			rest = rest[1:]
		} else {
			others = append(others, cmd)
		}
	}
	return others
}

// weigh finds out what became of an attempt, and what is left to be done.
func (b *batch) weigh(c *call, err error) ruling {
	f := &b.found
	b.said = err
	switch {
	case err == nil:
		c.labelOurs(b.cmds, f)
		if c.attempts > 1 { // else whatever a hook of the caller has set on single commands
			err = errorOf(b.cmds, nil)
		}
		return ruling{done: true, said: err}
	case f.from == sharedCall && c.attempts > 1, f.from == sharedCall && !f.word && !f.mayHaveRun && isOurs(f.why):
		return ruling{done: true, said: c.shared(b.rest, f.why, err, holdsOurs)} // it cannot be sent again from here
	}
	r := ruling{why: f.why, said: err}
	switch {
	case f.word, f.mayHaveRun:
		f.unanswered(b.rest)
		return c.word(b.cmds, err, f)
	case c.name == "transaction":
		f.unanswered(b.cmds)
		r.outcome, r.why = c.transaction(c.link, b.cmds, f)
		c.mayHaveRun = c.mayHaveRun || isUnqueued(b.cmds, r.why)
	default:
		lost := f.lost(b.rest)
		if len(lost) == 0 && isOurs(f.why) { // a hook handed on other commands in their place
			return c.word(b.cmds, err, f)
		}
		torn := f.tears(b.rest, lost)
		r.outcome, b.rest, b.undelivered, r.why = c.tail(b.rest, lost, f.why, f)
		if torn && r.outcome != answered && r.outcome != foreign && r.outcome != unknown && r.outcome != partly {
			return b.torn(c, r) // else nothing is sent any more
		}
	}
	if !isSame(r.why, f.why) {
		r.said = r.why
	}
	r.reads = !slices.ContainsFunc(command.Inner(b.rest), changes)
	b.part(c, &r)
	if b.outcome = r.outcome; b.outcome == refused || b.outcome == denied {
		b.refusals, b.refusal = nil, err
		for _, cmd := range b.rest {
			b.refusals = append(b.refusals, cmd.Err())
		}
	}
	return r
}

// part takes the commands that must not be sent again out of a rest in which others may
// be, since they have ids: in an auto-pipeline they are of other callers.
func (b *batch) part(c *call, r *ruling) {
	if r.outcome != unknown && r.outcome != partly || c.name == "transaction" || oncesOf(c.ctx) == nil {
		return
	}
	ahead := b.cmds // of what turns the connection
	if i := slices.IndexFunc(b.cmds, command.Turns); i >= 0 {
		ahead = b.cmds[:i]
	}
	may := func(cmd redis.Cmder) bool { return c.mayRepeat([]redis.Cmder{cmd}) && holds(ahead, cmd) }
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

// torn ends a call of whose commands a hook of the caller has had the last word on some, so that
// the rest must not be sent without them.
func (b *batch) torn(c *call, r ruling) ruling {
	kind := ErrOutcomeUnknown
	if r.outcome == notSent || r.outcome == notSentForGood {
		kind = ErrUnavailable
	}
	c.because(CauseHook)
	_, shown := reveal(r.why)
	final := c.fail(kind, c.withCtx(shown))
	c.label(b.rest, final)
	return ruling{done: true, said: errorOf(b.cmds, final)}
}

func (b *batch) end(c *call, final error) error {
	if c.attempts > 0 && (b.outcome == foreign || b.outcome == answered) {
		return cmp.Or(unknownOf(b.cmds), b.said) // as go-redis or a hook of the caller has it
	}
	if !c.mayHaveRun && isSame(final, c.refusal) && len(b.rest) == len(b.refusals) {
		for i, cmd := range b.rest { // an attempt after that was not sent
			cmd.SetErr(b.refusals[i])
		}
		b.said = b.refusal
	} else {
		c.label(b.rest, final)
	}
	if b.outcome == partly {
		c.because(CauseSharedConnection)
		c.label(b.undelivered, c.newError(ErrUnavailable, c.withCtx(b.said)))
	}
	if c.name == "transaction" && asError(final) == nil && isReply(final) && isReply(b.said) {
		return cmp.Or(unknownOf(b.cmds), b.said) // of the commands that of go-redis may be another
	}
	if c.isUnread() {
		c.label(slices.DeleteFunc(slices.Clone(b.rest), changes), c.garble.why)
		if c.garble.reads {
			return cmp.Or(unknownOf(b.cmds), final)
		}
	}
	return errorOf(b.cmds, final)
}

// label puts the final error on the commands that have no answer of their own. A refusal is
// none of one that was to be sent again, or may have run before.
func (c *call) label(cmds []redis.Cmder, final error) {
	reply, safe := asError(final) == nil && isReply(final), SafeToRetry(final)
	told := reply && c.why != CauseHeldConnectionBroken // else none was asked the last time
	for _, cmd := range cmds {
		err := cmd.Err()
		if !told && (err == nil || !isReply(err) || !reply && (safe || c.mayHaveRun) && c.outcome(cmd, err, &finding{}) == refused) {
			cmd.SetErr(final)
		}
	}
	c.doubt(cmds, func(redis.Cmder) bool { return c.mayHaveRun })
}

// word ends a call of whose batch a hook of the caller has had the last word, or made
// something else. It returns err, unless that is what our connections say.
func (c *call) word(cmds []redis.Cmder, err error, f *finding) ruling {
	c.labelOurs(cmds, f)
	c.link.react(err)
	if f.tells(err) {
		err = c.ownError(err, c.mayHaveRun)
	}
	return ruling{done: true, said: err}
}

// labelOurs puts final errors on commands that have what our connections say. If all went well
// the last time that a hook asked, that is of a time before.
func (c *call) labelOurs(cmds []redis.Cmder, f *finding) {
	for _, cmd := range cmds {
		if holdsOurs(cmd) {
			cmd.SetErr(c.ownError(cmd.Err(), c.repeats || f.mayHaveRun && f.err == nil || f.ranBefore(cmd)))
		}
	}
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
func (h *hook) shared(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
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

// Of a Watch nothing has happened until its function is called, so that it is tried again
// till then and never after. What runs inside the function waits at the gate by itself.

// watch runs a Watch of go-redis's, see Client.Watch.
func (h *hook) watch(ctx context.Context, watch func(context.Context, func(*redis.Tx) error, ...string) error,
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
	var last error
	err := w.run(context.WithValue(c.router.mark(c.ctx), ctxWatch, &last), func(tx *redis.Tx) error {
		w.called = true
		return w.fn(tx)
	}, w.keys...)
	switch {
	case err != nil || w.called:
		return err
	case wouldRepeat(last): // go-redis gives up asking one node after the other, and says nothing
		return last
	}
	return errToAndFro
}

func (w *watching) judge(c *call, err error) ruling {
	e, why := asError(err), err
	var reply redis.Error
	switch {
	case err == nil, w.called:
		return ruling{done: true, said: err}
	case e != nil && (e.kind == ErrClosed || e.kind == ErrUnavailable && e.Cause != CauseHeldConnectionBroken):
		c.count(e)
		return ruling{done: true, said: err} // of a hook that has waited
	case e != nil:
		c.attempts += e.Attempts
		if errors.As(e.Err, &reply) { // which the connection is in a bad state for
			return ruling{outcome: outcomeOf(reply), why: reply, said: reply}
		}
		why = e.Err
	case failureOf(err) != nil, c.router.several() && isUnrouted(err):
		c.attempts++
	case c.router.several():
		o := c.outcome(watchCmd, err, &finding{from: routedCall})
		c.attempts++
		if o == denied {
			err = c.turnedDown(err)
		}
		return ruling{outcome: o, why: err, said: err, done: o != refused}
	default:
		if o := c.outcome(watchCmd, err, &finding{}); o == refused || o == denied { // WATCH itself has waited
			err = c.turnedDown(err)
		}
		return ruling{done: true, said: err}
	}
	if n := failureOf(why); n != nil && (n.outcome == notSentForGood || n.outcome == denied) {
		return ruling{outcome: n.outcome, why: why, said: why}
	}
	return ruling{outcome: c.outcome(nil, why, &finding{unsent: true}), why: why, said: why}
}

var (
	watchCmd    = redis.NewStatusCmd(context.Background(), "watch")
	errToAndFro = &failure{outcome: notSent, err: errors.New("the nodes send WATCH to and fro")}
)

func (w *watching) end(_ *call, final error) error { return final }

func (w *watching) publishes() bool { return false }
