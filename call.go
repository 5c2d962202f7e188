package redial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"
)

// hook is the outer part of redial's hook: it passes commands through the gate, reads
// what became of them and retries what may be retried.
type hook struct {
	link         *link
	writeTimeout time.Duration // of the client, as its Options have it
	nodes        *nodes        // nil: the client has one server
	inners       *innerParts   // nil: hooks of the caller are all behind our back
}

// DialHook leaves dials alone; the Dialer sees those that bypass hooks too.
func (h hook) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook guards single commands.
func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	w := h.wayTo(next)
	return func(ctx context.Context, cmd redis.Cmder) error {
		if ctx.Err() != nil {
			return h.late(ctx, cmd, next, w)
		}
		l := h.link
		var found finding
		var err error
		switch {
		case l.enter():
			found, err = h.admitted(ctx, cmd, next, w)
		case l.csc && isBarredByCache(cmd):
			found, err = h.try(ctx, cmd, next, w)
		default:
			return h.finish(cmd, h.process(ctx, cmd, next, w, 0, nil, finding{}))
		}
		if err == nil || err == redis.Nil {
			return err
		}
		return h.finish(cmd, h.process(ctx, cmd, next, w, 1, err, found))
	}
}

// finish puts an error on a command where go-redis does not always.
func (h hook) finish(cmd redis.Cmder, err error) error {
	if h.nodes != nil {
		cmd.SetErr(err)
	}
	return err
}

// way is what lies between the outer part of our hook and go-redis.
type way struct {
	from    origin
	through bool // hooks of the caller, with an inner part behind them
}

func (h hook) wayTo(next any) way {
	from := h.originOf(next)
	return way{from, from == foreignHook && h.inners.count() > 0}
}

func (h hook) originOf(next any) origin {
	from := originOf(next)
	if h.nodes != nil && from != foreignHook {
		return routedCall
	}
	return from
}

// try makes an attempt at a command.
func (h hook) try(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, w way) (finding, error) {
	if w.through {
		a := &attempt{Context: ctx}
		err := next(a, cmd)
		return a.finding(), err
	}
	f := h.one(ctx, cmd, next, w.from)
	return f, f.err
}

// admitted makes the first attempt at a command that has passed the gate.
func (h hook) admitted(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, w way) (finding, error) {
	defer h.link.leave()
	return h.try(ctx, cmd, next, w)
}

// isOurs reports whether err holds what our parts tell each other, or our connections.
func isOurs(err error) bool {
	var ce *connError
	return nodeErrorOf(err) != nil || errors.As(err, &ce)
}

// late takes care of a command whose context had ended before the call. Hooks see it, as
// they do in go-redis, which then does not send it.
func (h hook) late(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, w way) error {
	found, err := h.try(ctx, cmd, next, w)
	if err == nil || !isOurs(err) {
		return err
	}
	return h.finish(cmd, h.process(ctx, cmd, next, w, 1, err, found))
}

// process carries a command on after its first attempt failed with err, or before
// there was one.
func (h hook) process(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, w way, attempts int, err error, found finding) error {
	c := call{link: h.link, nodes: h.nodes, ctx: ctx, name: cmd.Name(), attempts: attempts, nested: isHandshake(cmd), reads: isReadOnly(cmd)}
	for {
		if err != nil {
			c.mayHaveRun = c.mayHaveRun || found.mayHaveRun
			o := c.refine(found.of(cmd, err), cmd, err)
			if o == garbled {
				o = c.garbled()
			}
			if o == unknown && c.link.cfg.mayRepeat(ctx, cmd) {
				o = repeatable
			}
			if final := c.settle(o, found.cause(err), err); final != nil {
				if _, shown := reveal(err); c.name == "shutdown" && o == unknown && errors.Is(shown, io.EOF) {
					return io.EOF // the server's way to say yes, as go-redis knows it
				}
				return final
			}
		}
		if final := c.admit(); final != nil {
			return final
		}
		err = c.attempt(func() (err error) {
			found, err = h.try(ctx, cmd, next, w)
			return err
		})
		if err == nil {
			return nil
		}
	}
}

// call is one logical command or batch across its attempts.
type call struct {
	link     *link
	nodes    *nodes // nil: the client has one server
	ctx      context.Context
	name     string
	nested   bool // part of setting up a connection
	reads    bool // running it changes nothing
	attempts int
	admitted bool      // the next attempt was counted by enter
	renewed  bool      // it was tried again with new credentials
	began    time.Time // when it first failed or had to wait; zero: not yet
	last     error     // of the attempt before
	after    outcome   // of the attempt before
	paid     bool      // the next attempt was paid from the budget
	why      Cause     // why there is no other attempt

	node *link         // where the last attempt failed, if the client has several; nil: unknown
	turn chan struct{} // closed when another node may have taken over

	apart    bool      // its outcome is judged on a goroutine of go-redis's
	panicked *panicked // what a function of the caller did there

	undelivered []redis.Cmder // of a batch that was partly written: cannot have run

	// mayHaveRun is set when an attempt was followed by another although its
	// outcome is unknown. No later failure can then claim that nothing ran.
	mayHaveRun bool
}

// attempt counts an attempt and makes it.
func (c *call) attempt(try func() error) error {
	if c.attempts++; c.attempts > 1 {
		c.countRetry()
	}
	paid := c.paid
	c.paid = false
	err := c.send(try)
	if paid && err == nil {
		c.link.budget.giveBack()
	}
	return err
}

// countRetry counts an attempt by what is known of the one before.
func (c *call) countRetry() {
	switch n := &c.link.n; c.after {
	case repeatable:
		n.retriesRepeated.Add(1)
	case refused, denied:
		n.retriesRefused.Add(1)
	default:
		n.retriesUnsent.Add(1)
	}
}

// send makes an attempt and gives back what admit has taken.
func (c *call) send(try func() error) error {
	if c.admitted {
		c.admitted = false
		defer c.link.leave()
	}
	return try()
}

// free reports whether the gate does not concern the call, because it is part of
// making a connection that another command waits for.
func (c *call) free() bool {
	if c.nested {
		return true
	}
	nested, _ := c.ctx.Value(ctxNested).(bool)
	return nested
}

// admit waits at the gate and returns nil when an attempt may be made.
func (c *call) admit() error {
	l := c.link
	if c.free() {
		return nil
	}
	if state, _ := l.current(); state == StateClosed && c.attempts == 0 {
		return nil // go-redis says so itself, unless it has work to flush
	}
	if c.node != nil && c.attempts > 1 { // what it routed by may have been old at first
		if final := c.wait(c.node); final != nil {
			return final
		}
	}
	for !l.enter() {
		if l.hopeless() {
			return nil // go-redis says why
		}
		if final := c.wait(l); final != nil {
			return final
		}
	}
	c.admitted = true
	if c.nodes != nil && c.attempts > 0 {
		c.turn = c.nodes.nextTurn()
	}
	return nil
}

// wait waits at the gate of a link, or returns the final error.
func (c *call) wait(l *link) error {
	if c.began.IsZero() {
		c.began = time.Now()
	}
	why, err := l.wait(c.ctx, c.began, c.turn)
	c.why = why
	switch {
	case err == nil:
		return nil
	case err == ErrClosed:
		return c.fail(ErrClosed, err)
	}
	return c.fail(ErrUnavailable, err)
}

// settle looks at the outcome of an attempt, which failed with err; said is what hooks
// of the caller have made of that. It returns nil when another attempt may be made,
// after a pause where one is due, and else the final error.
func (c *call) settle(o outcome, err, said error) error {
	same := o == notSent && sameFailure(err, c.last)
	c.last, c.after = err, o
	ours := err == said
	if c.node, err = reveal(err); !ours {
		err = said
	}
	l := c.link
	if c.node != nil {
		l = c.node
	}
	if o == notSentForGood && errors.Is(err, redis.ErrPoolTimeout) && l.troubled() {
		o = notSent // the pool is held up by the server, not by its callers
	}
	if c.link.hopeless() {
		if words := c.ownWords(o, err); words != nil {
			return words
		}
		c.link.despair(false) // something has changed: wait and see
	}
	switch o {
	case answered, foreign:
		l.heed(err) // a refusal that must not be retried is news all the same
		return err
	case unknown, partly:
		c.because(CauseUnsafe)
		return c.fail(ErrOutcomeUnknown, c.withCtx(err))
	case notSentForGood:
		if errors.Is(err, redis.ErrClosed) {
			if c.nodes == nil || c.link.closing() {
				return err
			}
			c.nodes.refresh() // the node is not part of the client any more
			break
		}
		c.why = CausePoolExhausted
		if isHeld(err) {
			c.why = CauseHeldConnectionBroken
		}
		return c.fail(ErrUnavailable, c.withCtx(err))
	case denied:
		if c.renewed || !l.renews || c.free() {
			return err
		}
		c.renewed = true
		l.rotate(err) // new connections ask the provider for new credentials
		return nil
	case refused:
		l.heed(err)
	case repeatable:
		c.mayHaveRun = true
	}
	if c.began.IsZero() {
		c.began = time.Now()
	}
	switch {
	case same: // a full-duplex command cannot be sent again
		c.why = CauseSharedConnection
	case c.free():
		c.why = CauseHandshake
	case ended(c.ctx) != nil:
		c.why = CauseContextEnded
	default:
		if c.nodes != nil && c.node == nil && o != refused { // else heed has asked, if there is reason to
			c.nodes.refresh()
		}
		c.why = c.pause(o)
	}
	switch {
	case c.why == CauseNone:
		return nil
	case o == refused && !c.mayHaveRun:
		return err // the server's own words
	}
	return c.fail(ErrUnavailable, c.withCtx(err))
}

// ownWords returns what go-redis says of a mistake that waiting cannot cure, or nil when
// err says something else.
func (c *call) ownWords(o outcome, err error) error {
	var ce *connError
	switch {
	case o == answered, o == foreign, o == denied:
		return err
	case o != notSent || c.mayHaveRun:
		return nil
	case c.nodes != nil && isUnrouted(err):
		return err
	case c.nodes != nil || !errors.As(err, &ce):
		return nil
	case c.free():
		return ce // for the command that it is part of
	}
	return ce.err
}

// garbled says what a reply that go-redis could not read means. A write may have
// run. A read is worth another try, after which the error is the caller's: it may
// be the command that expects another type of reply.
func (c *call) garbled() outcome {
	if c.reads && c.attempts > 1 {
		return foreign
	}
	return unknown
}

// because sets the cause, unless the end of the context is one.
func (c *call) because(why Cause) {
	if c.why = why; ended(c.ctx) != nil {
		c.why = CauseContextEnded
	}
}

// sameFailure reports whether two attempts failed not alike but with the very same
// failure, so that the second was none.
func sameFailure(a, b error) bool {
	var fa, fb *connError
	return errors.As(a, &fa) && errors.As(b, &fb) && fa == fb
}

// pause keeps attempts apart while the link is up; when it is not, the gate
// does. It returns a cause when the patience of the call does not reach that far.
func (c *call) pause(o outcome) (why Cause) {
	l := c.link
	if l.gate.Load() != gateOpen || c.node != nil && c.node.gate.Load() != gateOpen {
		return CauseNone
	}
	cheap := o == notSent || o == notSentForGood
	if c.attempts > 1 || o == refused { // else: one stale connection says nothing about the next
		if why := c.sleep(min(retryPause<<min(c.attempts, 16), retryPauseCap)); why != CauseNone {
			return why
		}
	}
	for delayed := false; !cheap; delayed = true {
		if l.budget.take() {
			c.paid = true
			return CauseNone
		}
		if !delayed {
			l.n.retriesDelayed.Add(1)
		}
		if why := c.sleep(retryPauseCap); why != CauseNone {
			if why == CauseGraceOver {
				return CauseBudgetSpent
			}
			return why
		}
	}
	return CauseNone
}

// sleep waits for about d, if the call may wait that long.
func (c *call) sleep(d time.Duration) (why Cause) {
	p := patienceOf(c.ctx)
	d = time.Duration(float64(d) * (0.5 + 0.5*rand.Float64()))
	switch deadline, ok := c.ctx.Deadline(); {
	case p.failFast:
		return CauseFailFast
	case time.Since(c.began)+d > p.limit(c.link.cfg):
		return p.exhausted()
	case ok && time.Until(deadline) < d:
		return CauseDeadlineNear
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.link.barred:
	case <-c.ctx.Done():
		return CauseContextEnded
	}
	return CauseNone
}

// withCtx adds the context's error to err once the context is over.
func (c *call) withCtx(err error) error {
	if cerr := ended(c.ctx); cerr != nil && !errors.Is(err, cerr) {
		return &cutShort{ctx: cerr, cause: err}
	}
	return err
}

// fail counts the call as failed and builds the error the caller sees.
func (c *call) fail(kind, err error) error {
	e := c.failure(kind, err)
	switch {
	case c.free(): // counted with the command it is part of
	case e.kind == ErrUnavailable:
		c.link.n.refused.Add(1)
	case e.kind == ErrOutcomeUnknown:
		c.link.n.unknown.Add(1)
	}
	return e
}

func (c *call) failure(kind, err error) *Error {
	if c.mayHaveRun {
		kind = ErrOutcomeUnknown
	}
	if e := own(err); e != nil && e.handshake {
		err = fmt.Errorf("%s: %w", e.Cmd, e.Err) // its outcome is not this one's
	}
	l := c.link
	if c.node != nil {
		l = c.node
	}
	state, since := l.current()
	return &Error{
		Cmd: c.name, Addr: l.addr, Attempts: c.attempts, State: state, Since: since,
		Cause: c.why, Reason: c.why.text(c.link.cfg), Err: err, kind: kind, handshake: c.free(), reads: c.reads,
	}
}

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
