package redial

// The outer part of redial's hook, and the one loop by which whatever a caller wants done
// is carried on: a command, a batch, a transaction, for one server or for many, or a Watch.
// It waits at the gate, has attempts made, and decides by policy, budget and patience
// whether there is another. What a failure means it is told by outcome.go and spread.go; of
// nodes it knows no more than its router.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/wire"
)

// DialHook leaves dials alone; the Dialer sees those that bypass hooks too.
func (h *hook) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook guards single commands: it makes the first attempt at each, if the gate is open,
// and carries it on.
func (h *hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	w := h.wayTo(next)
	return func(ctx context.Context, cmd redis.Cmder) error {
		if onceUsed.Load() {
			var err error
			if ctx, err = h.link.cfg.once(ctx, cmd, h.router.redirects()); err != nil {
				cmd.SetErr(err)
				return err
			}
		}
		// Hooks see a command whose context had ended before the call, as they do in
		// go-redis, which then does not send it.
		late := ctx.Err() != nil
		admitted := !late && h.link.enter()
		if !admitted && !late && !(h.link.csc && isBarredByCache(cmd)) {
			return h.process(ctx, cmd, next, w, nil, nil, 0)
		}
		sys.GrowStack()
		f, err := h.try(ctx, cmd, next, w, admitted)
		if err == nil || err == redis.Nil || late && !isOurs(err) {
			return err
		}
		return h.process(ctx, cmd, next, w, f, err, 1)
	}
}

// process carries a command on after its first attempt failed with err, or before
// there was one.
func (h *hook) process(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, w way, f *finding, err error, attempts int) error {
	c := h.newCall(ctx, cmd.Name(), attempts, command.ReadOnly(cmd))
	c.nested = command.IsHandshake(cmd)
	err = c.carry(&single{h, cmd, next, w, f}, err)
	if h.router.several() { // go-redis does not always
		cmd.SetErr(err)
	}
	return err
}

// single is the work of one command.
type single struct {
	*hook
	cmd   redis.Cmder
	next  redis.ProcessHook
	way   way
	found *finding // of the last attempt; nil: there was none, or all went well
}

func (s *single) try(c *call) (err error) {
	s.way.sent = nil
	if s.found != nil {
		s.way.sent = s.found.sent
	}
	s.found, err = s.hook.try(c.ctx, s.cmd, s.next, s.way, false)
	return err
}

func (s *single) judge(c *call, err error) ruling {
	f := s.found
	if f == nil {
		return ruling{done: true, said: err}
	}
	reads := command.ReadOnly(s.cmd) && !f.mayHaveRun
	c.mayHaveRun = c.mayHaveRun || f.mayHaveRun
	o := c.outcome(s.cmd, f.why, f)
	if o != partly && !f.mayHaveRun { // else there were others on the connection, or before
		o = c.revise(o, s.cmd)
	}
	return ruling{outcome: o, why: f.why, said: err, reads: reads}
}

func (s *single) end(c *call, final error) error {
	if c.name == "shutdown" && c.after == unknown && errors.Is(final, io.EOF) {
		return io.EOF // the server's way to say yes, as go-redis knows it
	}
	// A hook has the last word, but not of what ran before its own context ended.
	if c.mayHaveRun && (c.after != foreign || c.repeats && isEnd(final)) && changes(s.cmd) && c.disclaims(final) {
		return c.despite(final)
	}
	return final
}

func (s *single) publishes() bool { return command.Publishes(s.cmd) }

// call is what a caller wants done, across its attempts.
type call struct {
	terms
	link     peer // the client as a whole
	router   router
	name     string
	inside   bool      // its parts wait at the gate and are counted by themselves
	admitted bool      // the next attempt was counted by enter
	parked   bool      // it has waited at a gate since the last attempt
	renewed  bool      // it was tried again with new credentials
	apiece   bool      // mayHaveRun is remembered for each of its commands
	began    time.Time // when it first failed or had to wait; zero: not yet
	again    time.Time // when the last attempt after the first began; zero: not yet
	waited   *Wait     // the last time that it had to; nil: never
	last     error     // of the attempt before
	after    outcome   // of the attempt before
	paid     bool      // the next attempt was paid from the budget
	runs     int       // attempts after which it was not known what they did
	why      Cause     // why there is no other attempt

	node     *link           // where the last attempt failed, if the client has several; nil: unknown
	rerouted <-chan struct{} // closed when another node may have taken over

	// mayHaveRun is set when an attempt was followed by another although its
	// outcome is unknown. No later failure can then claim that nothing ran.
	mayHaveRun bool
	repeats    bool // something of it may have run, ever, and is sent again

	counted error // the kind of the last failure that was; nil: none

	garble  *garble // of the last reply, if it could not be read
	refusal error   // the last reply that was one, as hooks of the caller have it
}

// garble is what was said of a reply that could not be read, which those who only read are
// told if there cannot be another, see isUnread.
type garble struct {
	why, said error // by go-redis, and by hooks of the caller
	reads     bool  // all that is left does
}

func (h *hook) newCall(ctx context.Context, name string, attempts int, reads bool) *call {
	t := terms{cfg: h.link.cfg, ctx: ctx, redirects: h.router.redirects(), reads: reads, attempts: attempts}
	return &call{terms: t, link: h.link, router: h.router, name: name}
}

// work is what a call is about.
type work interface {
	// try makes an attempt at what is left to do.
	try(c *call) error
	// judge says what became of an attempt that ended with err.
	judge(c *call, err error) ruling
	// end returns the error of a call that ends with final, and gives what has no answer
	// of its own its error.
	end(c *call, final error) error
	// publishes reports whether what is left to do sends messages to subscriptions.
	publishes() bool
}

// ruling is what became of an attempt.
type ruling struct {
	outcome outcome
	why     error // the error to go by
	said    error // what hooks of the caller have made of that
	reads   bool  // what is left only reads
	done    bool  // there is nothing left to do; the call returns said
}

// carry is the loop: it has attempts made until the work is done or must not be tried
// again. err is the error of the first one, if it was made already.
func (c *call) carry(w work, err error) error {
	for tried := c.attempts > 0; ; tried = true {
		var final error
		if tried {
			r := w.judge(c, err)
			if r.done {
				return r.said
			}
			final = c.settle(r)
		}
		if final == nil {
			final = c.admit()
		}
		if final == nil && tried {
			final = c.outlived()
		}
		if final == nil && c.parked && w.publishes() {
			c.parked = false
			c.link.subs.await(c.ctx, subscribersFirst)
		}
		if final != nil {
			return w.end(c, final)
		}
		err = c.attempt(w.try)
	}
}

// attempt makes an attempt, counts it and gives back what admit has taken.
func (c *call) attempt(try func(*call) error) error {
	paid := c.paid
	c.paid = false
	c.mayHaveRun = c.mayHaveRun && !c.apiece
	if c.admitted {
		c.admitted = false
		defer c.link.leave()
	}
	if !c.inside {
		if c.attempts++; c.attempts > 1 {
			c.again = time.Now()
			c.countRetry()
		}
	}
	ctx := c.ctx
	within, cancel := c.within()
	defer cancel()
	if c.router.several() && !c.began.IsZero() && patienceOf(ctx).own > 0 { // the node may wait, too
		within = context.WithValue(within, ctxBegan, c.began)
	}
	c.ctx = within
	err := try(c)
	c.ctx = ctx
	if paid && outcomeOf(err) == answered {
		c.link.budget.giveBack()
	}
	return err
}

// within returns the context for what a call does that has ids and may have run: whatever
// holds it up, nothing of it is sent when the records may be gone.
func (c *call) within() (context.Context, context.CancelFunc) {
	if o := oncesOf(c.ctx); c.repeats && o != nil && !o.until().IsZero() {
		return context.WithDeadline(c.ctx, o.until())
	}
	return c.ctx, func() {}
}

// stale reports whether nothing of the call is sent any more, since the records of what may
// have run may be gone.
func (c *call) stale() bool {
	o := oncesOf(c.ctx)
	return c.repeats && o != nil && !o.fresh()
}

// outlived returns the final error of a call with ids whose records may be gone, so that
// what may have run must not be sent again.
func (c *call) outlived() error {
	if !c.stale() {
		return nil
	}
	if c.admitted {
		c.admitted = false
		c.link.leave()
	}
	c.why = CauseUnsafe
	return c.fail(ErrUnavailable, c.withCtx(c.last))
}

// countRetry counts an attempt by what is known of the one before, and has observers told.
func (c *call) countRetry() {
	if c.ctx.Value(ctxHeartbeat) != nil {
		return
	}
	n, r := &c.link.n.retriesUnsent, Retry{Cmd: c.name, Attempt: c.attempts, After: AfterUnsent}
	switch c.after {
	case repeatable:
		n, r.After = &c.link.n.retriesRepeated, AfterRepeated
	case refused, denied:
		n, r.After = &c.link.n.retriesRefused, AfterRefused
	}
	n.Add(1)
	if c.node != nil {
		r.Node = c.node.node
	}
	_, r.Err = reveal(c.last)
	tell(c.link.observers, func(o RetryObserver) { o.ObserveRetry(c.ctx, r) })
}

// admit waits at the gate and returns nil when an attempt may be made.
func (c *call) admit() error {
	l := c.link
	if c.bypassesGate() || c.inside && !c.router.several() {
		return nil
	}
	if state, _ := l.current(); state == StateClosed && c.attempts == 0 {
		return nil // go-redis says so itself, unless it has work to flush
	}
	if c.node != nil && c.attempts > 1 { // what it routed by may have been old at first
		if final := c.wait(c.node.gate, c.rerouted); final != nil {
			return final
		}
	}
	for !l.enter() {
		if l.hopeless() {
			return nil // go-redis says why
		}
		if final := c.wait(l.gate, nil); final != nil {
			return final
		}
	}
	c.admitted = true
	if c.attempts > 0 {
		c.rerouted = c.router.rerouted()
	}
	return nil
}

// wait waits at a gate until it opens or turn is closed, or returns the final error.
func (c *call) wait(g *gate, turn <-chan struct{}) error {
	if c.began.IsZero() {
		c.began = time.Now()
	}
	if c.waited == nil {
		c.waited = &Wait{Cmd: c.name}
	}
	ctx, cancel := c.within()
	defer cancel()
	why, err := g.wait(ctx, c.began, turn, c.waited)
	c.why = why
	switch {
	case why == CauseContextEnded && ended(c.ctx) == nil:
		c.why = CauseUnsafe
		return c.fail(ErrUnavailable, c.last)
	case err == nil:
		c.parked = true
		return nil
	case err == ErrClosed:
		return c.fail(ErrClosed, err)
	}
	return c.fail(ErrUnavailable, err)
}

// settle acts on what became of an attempt. It returns nil when another may be made,
// after a pause where one is due, and else the final error.
func (c *call) settle(r ruling) error {
	o := r.outcome
	same := o == notSent && sameFailure(r.why, c.last) // a full-duplex command cannot be sent again
	c.last, c.after = r.why, o
	at, err := reveal(r.why)
	why := err
	if c.node, _ = at.(*link); !isSame(r.why, r.said) {
		err = r.said
	}
	switch {
	case isGarbled(why):
		c.garble = &garble{why, err, r.reads}
	case !isHeld(why): // else that is what broke the connection
		c.garble = nil
	}
	if o == refused || o == denied {
		c.refusal = err
	}
	if c.link.hopeless() {
		switch words := c.ownWords(o, err); {
		case words != nil && o == denied:
			return c.turnedDown(words)
		case words != nil:
			return words
		}
		c.link.relent() // something has changed: wait and see
	}
	final, settled := c.obey(o, err)
	if settled {
		return final
	}
	if c.began.IsZero() {
		c.began = time.Now()
		if n := failureOf(c.last); n != nil && !n.since.IsZero() {
			c.began = n.since
		}
	}
	if c.why = CauseSharedConnection; !same {
		c.why = c.whyNot(o)
	}
	if c.why == CauseGraceOver || c.why == CauseBudgetSpent {
		c.peer().balk(c.why, c.fitToLog(err))
	}
	switch {
	case c.why == CauseNone:
		return nil
	case c.lastWords(o) && !c.mayHaveRun:
		return c.turnedDown(c.refusal)
	}
	return c.fail(ErrUnavailable, c.withCtx(err))
}

// lastWords reports whether a refusal is the last that was heard of the server: the attempt was
// refused, or met a connection that had been given up because of a refusal.
func (c *call) lastWords(o outcome) bool {
	if o != notSent || c.refusal == nil {
		return o == refused
	}
	if row, _ := refusalOf(c.last); row != nil {
		return true
	}
	var retired *wire.RetiredError
	e := wire.ErrorOf(c.last)
	return e != nil && errors.As(e.Err, &retired) && retired.Cause.Error() == notReply(c.refusal).Error()
}

// peer returns where the last attempt failed, or the client as a whole.
func (c *call) peer() peer {
	if c.node != nil {
		return c.node.peer()
	}
	return c.link
}

// obey does what an outcome asks for beyond waiting, err being what hooks of the caller have
// made of it. It reports whether that settles the attempt, and the final error then, nil
// where another is to be made at once.
func (c *call) obey(o outcome, err error) (final error, settled bool) {
	l := c.peer()
	switch o {
	case answered, foreign:
		l.react(err) // a refusal that must not be retried is news all the same
		if o == answered && isUnsure(err) {
			return c.despite(err), true
		}
		return err, true
	case unknown, partly:
		c.because(CauseUnsafe)
		return c.fail(ErrOutcomeUnknown, c.withCtx(err)), true
	case notSentForGood:
		switch {
		case errors.Is(err, redis.ErrPoolTimeout) && l.troubled():
			// the pool is held up by the server, not by its callers
		case errors.Is(err, redis.ErrPoolTimeout) && c.awaitsPool(l):
			return nil, true
		case !errors.Is(err, redis.ErrClosed):
			c.why = CausePoolExhausted
			if _, why := reveal(c.last); isHeld(why) { // whatever a hook has made of it
				c.why = CauseHeldConnectionBroken
				if c.refusal != nil && !c.mayHaveRun && !c.isOfWatch() { // for which it was given up, perhaps
					return c.turnedDown(c.refusal), true
				}
			}
			return c.fail(ErrUnavailable, c.withCtx(err)), true
		case !c.router.several() || c.link.closing():
			return c.closed(err, c.mayHaveRun), true
		default:
			c.router.refresh() // the node is not part of the client any more
		}
	case denied:
		if c.renewed || !l.renews || c.bypassesGate() {
			return c.turnedDown(err), true
		}
		c.renewed = true
		l.rotate(err) // new connections ask the provider for new credentials
		return nil, true
	case refused:
		if row, _ := refusalOf(err); l.replica && row.saysReplica() {
			return err, true // which was asked for
		}
		l.react(err)
	case repeatable:
		c.mayHaveRun, c.repeats = true, true
		if !isOfDial(err) { // else it is parts for other nodes that have run
			c.runs++
		}
	}
	return nil, false
}

// awaitsPool reports whether a connection of an exhausted pool is waited for once more, after
// a pause. It is as often as in go-redis, within the grace; for a transaction of several nodes
// go-redis has done so itself.
func (c *call) awaitsPool(l peer) bool {
	if c.inside && !c.router.several() || c.bypassesGate() || c.attempts >= l.asks || c.router.several() && c.name == "transaction" {
		return false
	}
	if c.began.IsZero() {
		c.began = time.Now()
	}
	return c.sleep(min(retryPause<<c.attempts, retryPauseCap), leastTry) == CauseNone
}

// whyNot returns why there is no other attempt after one with that outcome, and pauses where
// there is one.
func (c *call) whyNot(o outcome) (why Cause) {
	switch {
	case o == repeatable && c.runs >= maxRuns && oncesOf(c.ctx) == nil:
		return CauseRunsSpent
	case c.bypassesGate():
		return CauseHandshake
	case ended(c.ctx) != nil:
		return CauseContextEnded
	}
	if c.node == nil && o != refused { // else react has asked, if there is reason to
		c.router.refresh()
	}
	return c.pause(o)
}

// fitToLog returns err unless it is a reply of which only the caller knows what it says.
func (c *call) fitToLog(err error) error {
	if row, _ := refusalOf(err); row == nil && isReply(err) {
		return nil
	}
	return ofSetUp(err)
}

// ownWords returns what go-redis says of a mistake that waiting cannot cure, or nil when
// err says something else.
func (c *call) ownWords(o outcome, err error) error {
	ce := wire.ErrorOf(err)
	switch {
	case o == answered, o == foreign, o == denied:
		return err
	case o != notSent || c.mayHaveRun:
		return nil
	case c.router.several() && isUnrouted(err):
		return err
	case ce == nil, c.router.several() && (c.node == nil || !c.node.hopeless()): // a node may yet come
		return nil
	case c.bypassesGate():
		return ce // for the command that it is part of
	}
	return ce.Err
}

// because sets the cause, unless the end of the context is one.
func (c *call) because(why Cause) {
	if c.why = why; ended(c.ctx) != nil {
		c.why = CauseContextEnded
	}
}

// pause keeps attempts apart while the link is up; when it is not, the gate
// does. It returns a cause when the patience of the call does not reach that far.
func (c *call) pause(o outcome) (why Cause) {
	l := c.link
	if !l.open.Load() || c.node != nil && !c.node.open.Load() && !c.node.hopeless() {
		return CauseNone
	}
	cheap := o == notSent || o == notSentForGood
	need := leastTry
	if o == refused {
		need += c.trip()
	}
	if c.attempts > 1 || o == refused { // else: one stale connection says nothing about the next
		if why := c.sleep(min(retryPause<<min(c.attempts, 16), retryPauseCap), need); why != CauseNone {
			return why
		}
	}
	for delayed := false; !cheap && !isClosed(l.barred); delayed = true {
		if l.budget.take() {
			c.paid = true
			return CauseNone
		}
		if !delayed {
			l.n.retriesDelayed.Add(1)
		}
		if why := c.sleep(retryPauseCap, need); why != CauseNone {
			if why == CauseGraceOver {
				return CauseBudgetSpent
			}
			return why
		}
	}
	return CauseNone
}

// trip returns what an attempt at what was refused may take: of one that is not refused for want
// of time it would be unknown what it did. It is as long as the last one, and before that at most
// half of the time that there is.
func (c *call) trip() time.Duration {
	d := refusedTrips * c.peer().RTT()
	if deadline, ok := c.ctx.Deadline(); ok && c.again.IsZero() {
		return min(d, time.Until(deadline)/2)
	}
	return min(d, time.Since(c.again))
}

// sleep waits for about d, if the call may wait that long and its deadline leaves what the next
// attempt needs.
func (c *call) sleep(d, need time.Duration) (why Cause) {
	p := patienceOf(c.ctx)
	d = time.Duration(float64(d) * (0.5 + 0.5*rand.Float64()))
	switch deadline, ok := c.ctx.Deadline(); {
	case p.failFast:
		return CauseFailFast
	case time.Since(c.began)+d > p.limit(c.cfg):
		return p.exhausted()
	case ok && time.Until(deadline) < d+need:
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

// isUnread reports whether a call ends for nothing but a reply that could not be read: an
// outage, the end of the context or of the client would be news after that.
func (c *call) isUnread() bool {
	return c.garble != nil && (c.why == CauseUnsafe || c.why == CauseRunsSpent || c.why == CauseHeldConnectionBroken)
}

// fail counts the call as failed and builds the error the caller sees.
func (c *call) fail(kind, err error) error {
	if c.isUnread() && c.garble.reads {
		return c.garble.said // which it would be without redial
	}
	e := c.newError(kind, err)
	c.count(e)
	return e
}

// count counts a failure and has observers told. What goes to one server fails once, for
// whatever reasons.
func (c *call) count(e *Error) {
	if c.counts(e.kind) {
		tell(c.link.observers, func(o FailureObserver) { o.ObserveFailure(c.ctx, e) })
	}
}

// turnedDown counts the call as refused and returns the server's own words for that.
func (c *call) turnedDown(reply error) error {
	if !c.mayHaveRun { // else doubt says what became of it
		c.counts(ErrUnavailable)
	}
	return reply
}

// counts counts a failure of a kind, and reports whether it was to be.
func (c *call) counts(kind error) bool {
	if c.bypassesGate() || c.isOfWatch() || c.ctx.Value(ctxHeartbeat) != nil { // counted with what it is part of, if with anything
		return false
	}
	if c.counted == kind && !c.apiece {
		return false
	}
	c.counted = kind
	switch kind {
	case ErrUnavailable:
		c.link.n.refused.Add(1)
	case ErrOutcomeUnknown:
		c.link.n.unknown.Add(1)
	}
	return true
}

// isOfWatch reports whether a Watch has sent the command by itself, to begin with or in the end:
// what UNWATCH is about ends with the connection, so whoever sends one misses nothing.
func (c *call) isOfWatch() bool {
	return !c.inside && (c.name == "unwatch" || c.name == "watch" && c.ctx.Value(ctxWatch) != nil)
}

// despite returns the final error of what may have run, in an attempt before or under an id,
// and was answered err in the last one, which is no answer to that, see disclaims and isUnsure.
func (c *call) despite(err error) *Error {
	c.because(CauseUnsafe)
	e := c.newError(ErrOutcomeUnknown, c.withCtx(err))
	c.count(e)
	return e
}

// closed returns the final error of what go-redis did not send because the client is closed,
// as err says: that is the whole truth of what has not run before.
func (c *call) closed(err error, ran bool) error {
	if !ran {
		return err
	}
	c.because(CauseClosed)
	return c.fail(ErrOutcomeUnknown, err)
}

func (c *call) newError(kind, err error) *Error {
	if c.mayHaveRun {
		kind = ErrOutcomeUnknown
	}
	err = ofSetUp(err)
	l := c.peer()
	state, since := l.current()
	return &Error{
		Cmd: c.name, Addr: l.addr, Attempts: c.attempts, State: state, Since: since,
		Cause: c.why, Reason: c.why.text(c.cfg.maxWaiting), Err: err, kind: kind, handshake: c.bypassesGate(), reads: c.reads,
	}
}

// ofSetUp returns err, or what a command failed with that was to set up a connection: its
// outcome is not that of the one which the connection was for.
func ofSetUp(err error) error {
	if e := asError(err); e != nil && e.handshake {
		return fmt.Errorf("%s: %w", e.Cmd, e.Err)
	}
	return err
}

// ready waits at the gate, unless ctx has ended: then go-redis knows what it can do.
func (h *hook) ready(ctx context.Context, name string) error {
	if ctx.Err() == nil {
		c := h.newCall(ctx, name, 0, true)
		if err := c.admit(); err != nil {
			return err
		}
		if c.admitted {
			h.link.leave()
		}
	}
	h.router.use()
	return nil
}

// patient waits for the link, for as long as the dial of a subscription does.
func (h *hook) patient(ctx context.Context) {
	h.router.use()
	if !h.link.open.Load() {
		_, _ = h.link.wait(WaitFor(ctx, subscriberWait), time.Now(), nil, &Wait{Cmd: "subscribe"})
	}
}
