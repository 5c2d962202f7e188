package redial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// hook is the outermost go-redis hook of a client: it passes commands through
// the gate, reads their outcome and retries what may be retried.
type hook struct{ link *link }

// DialHook leaves dials alone; the Dialer sees those that bypass hooks too.
func (h hook) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook guards single commands.
func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	from := originOf(next)
	next = labelWait(next, from)
	return func(ctx context.Context, cmd redis.Cmder) error {
		l := h.link
		if !l.enter() {
			return h.process(ctx, cmd, next, from, 0, nil)
		}
		err := run(l, ctx, cmd, next)
		if err == nil || err == redis.Nil {
			return err
		}
		return h.process(ctx, cmd, next, from, 1, err)
	}
}

// origin says what stands between our hook and the connection.
type origin uint8

const (
	foreignHook origin = iota // a hook of the caller, which may do anything
	pooledCall                // go-redis, with a connection for this call alone
	sharedCall                // go-redis's full-duplex engine: many calls on one
)

// originOf tells by the name of the function: ours is the outermost hook, so next
// is go-redis's own unless the caller has added one.
func originOf(next any) origin {
	f := runtime.FuncForPC(reflect.ValueOf(next).Pointer())
	switch {
	case f == nil || !strings.HasPrefix(f.Name(), "github.com/redis/go-redis/v9."):
		return foreignHook
	case strings.Contains(f.Name(), "fdEngine"), strings.Contains(strings.ToLower(f.Name()), "fdpipelin"):
		return sharedCall
	}
	return pooledCall
}

// labelWait labels what go-redis itself returns when a context ends: its sockets
// are ours and label their own failures, so a bare context error means that the
// call was still waiting for a connection. Behind a hook of the caller that proof
// does not hold, and next is left as it is.
func labelWait[T any, F ~func(context.Context, T) error](next F, from origin) F {
	if from != pooledCall {
		return next
	}
	return func(ctx context.Context, what T) error {
		err := next(ctx, what)
		if err == context.DeadlineExceeded || err == context.Canceled {
			return &connError{phaseDial, err}
		}
		return err
	}
}

// run hands a command that was admitted to go-redis.
func run[T any](l *link, ctx context.Context, what T, next func(context.Context, T) error) error {
	defer l.leave()
	return next(ctx, what)
}

// ProcessPipelineHook guards pipelines and transactions.
func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	from := originOf(next)
	next = labelWait(next, from)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		l := h.link
		switch {
		case len(cmds) == 0:
			return next(ctx, cmds)
		case from == sharedCall:
			return h.shared(ctx, cmds, next)
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

// outcomeFor is outcomeOf for one command that was sent by itself or within a
// pipeline. It knows what the error alone does not tell.
func outcomeFor(cmd redis.Cmder, err error, from origin) outcome {
	o := outcomeOf(err)
	switch {
	case (o == refused || o == denied) && isScript(cmd) && !isNotReady(err):
		return answered // the script may have done something before it said so
	case from == foreignHook:
		if e := own(err); e != nil && !e.handshake {
			return foreign // of a command that a hook of the caller ran
		}
	case from == sharedCall && o == notSent:
		var ce *connError
		if errors.As(err, &ce) && ce.phase != phaseDial {
			return unknown // it may have been written before the one that failed
		}
	case from == pooledCall && o == partly:
		return notSent // half a command cannot run, and it was alone
	}
	return o
}

// own returns the Error inside err, or nil.
func own(err error) *Error {
	var e *Error
	errors.As(err, &e)
	return e
}

// process carries a command on after its first attempt failed with err, or
// before there was one.
func (h hook) process(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, from origin, attempts int, err error) error {
	c := call{link: h.link, ctx: ctx, name: cmd.Name(), attempts: attempts, nested: isHandshake(cmd), reads: isReadOnly(cmd)}
	for {
		if err != nil {
			o := outcomeFor(cmd, err, from)
			if o == unknown && c.link.cfg.mayRepeat(ctx, cmd) {
				o, c.mayHaveRun = notSent, true
			}
			if final := c.settle(o, err); final != nil {
				if c.name == "shutdown" && o == unknown && errors.Is(err, io.EOF) {
					return io.EOF // the server's way to say yes, as go-redis knows it
				}
				return final
			}
		}
		if final := c.admit(); final != nil {
			return final
		}
		err = attempt(&c, cmd, next)
		if err == nil {
			return nil
		}
	}
}

// pipeline does for a batch what process does for one command. Commands that
// were answered keep their answers; only a tail that may be sent again is.
func (h hook) pipeline(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, from origin, attempts int, err error) error {
	c := call{link: h.link, ctx: ctx, name: "pipeline", attempts: attempts, nested: true, reads: true}
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
				o, err = c.transaction(cmds, err)
			} else if o, rest = c.tail(rest, err, from); o == refused || o == denied {
				err = rest[0].Err()
			}
			if final := c.settle(o, err); final != nil {
				c.label(rest, final)
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
	c := call{link: h.link, ctx: ctx, name: "pipeline"}
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

// call is one logical command or batch across its attempts.
type call struct {
	link     *link
	ctx      context.Context
	name     string
	nested   bool // part of setting up a connection
	reads    bool // running it changes nothing
	attempts int
	admitted bool      // the next attempt was counted by enter
	renewed  bool      // it was tried again with new credentials
	began    time.Time // when it first failed or had to wait; zero: not yet
	last     error     // of the attempt before

	// mayHaveRun is set when an attempt was followed by another although its
	// outcome is unknown. No later failure can then claim that nothing ran.
	mayHaveRun bool
}

// attempt hands what is to be sent to go-redis.
func attempt[T any](c *call, what T, next func(context.Context, T) error) error {
	if c.attempts++; c.attempts > 1 {
		c.link.n.retries.Add(1)
	}
	if c.admitted {
		c.admitted = false
		return run(c.link, c.ctx, what, next)
	}
	return next(c.ctx, what)
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
	for !l.enter() {
		if c.began.IsZero() {
			c.began = time.Now()
		}
		err := l.wait(c.ctx, c.began)
		switch {
		case err == nil:
			continue
		case err == ErrClosed:
			return c.fail(ErrClosed, err)
		}
		return c.fail(ErrUnavailable, err)
	}
	c.admitted = true
	return nil
}

// settle looks at the outcome of an attempt. It returns nil when another attempt
// may be made, after a pause where one is due, and else the final error.
func (c *call) settle(o outcome, err error) error {
	l := c.link
	same := o == notSent && c.last != nil && errors.Is(err, c.last) // a full-duplex command cannot be sent again
	c.last = err
	if o == notSentForGood && errors.Is(err, redis.ErrPoolTimeout) && l.troubled() {
		o = notSent // the pool is held up by the server, not by its callers
	}
	switch o {
	case answered, foreign:
		l.heed(err) // a refusal that must not be retried is news all the same
		return err
	case unknown, partly:
		return c.fail(ErrOutcomeUnknown, c.withCtx(err))
	case notSentForGood:
		if errors.Is(err, redis.ErrClosed) {
			return err
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
	}
	if c.began.IsZero() {
		c.began = time.Now()
	}
	if same || c.free() || ended(c.ctx) != nil || !c.pause(o) {
		if o == refused {
			return err // the server's own words
		}
		return c.fail(ErrUnavailable, c.withCtx(err))
	}
	return nil
}

// pause keeps attempts apart while the link is up; when it is not, the gate
// does. It reports false when the patience of the call does not reach that far.
func (c *call) pause(o outcome) bool {
	l := c.link
	p := patienceOf(c.ctx)
	limit := l.cfg.grace
	if p.own > 0 {
		limit = p.own
	}
	if l.gate.Load() != gateOpen {
		return true
	}
	if c.attempts <= 1 && o == notSent {
		return true // one stale connection says nothing about the next
	}
	d := min(retryPause<<min(c.attempts, 16), retryPauseCap)
	d = time.Duration(float64(d) * (0.5 + 0.5*rand.Float64()))
	if p.failFast || time.Since(c.began)+d > limit {
		return false
	}
	if deadline, ok := c.ctx.Deadline(); ok && time.Until(deadline) < d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.ctx.Done():
		return false
	case <-l.refusing:
		return true
	}
}

// withCtx adds the context's error to err once the context is over.
func (c *call) withCtx(err error) error {
	if cerr := ended(c.ctx); cerr != nil && !errors.Is(err, cerr) {
		return &cutShort{ctx: cerr, cause: err}
	}
	return err
}

// fail builds the error the caller sees.
func (c *call) fail(kind, err error) error {
	l := c.link
	if c.mayHaveRun {
		kind = ErrOutcomeUnknown
	}
	if e := own(err); e != nil && e.handshake {
		err = fmt.Errorf("%s: %w", e.Cmd, e.Err) // its outcome is not this one's
	}
	switch {
	case c.free(): // counted with the command it is part of
	case kind == ErrUnavailable:
		l.n.refused.Add(1)
	case kind == ErrOutcomeUnknown:
		l.n.unknown.Add(1)
	}
	state, since := l.current()
	return &Error{
		Cmd: c.name, Addr: l.addr, Attempts: c.attempts, State: state, Since: since,
		Err: err, kind: kind, handshake: c.free(), reads: c.reads,
	}
}

// transaction reads the outcome of a MULTI ... EXEC block, which is one unit. When
// it was aborted because a command in it was refused, the error is that refusal;
// but EXEC has then ended any WATCH, and without it the block must not run again.
func (c *call) transaction(cmds []redis.Cmder, err error) (outcome, error) {
	o := outcomeOf(err)
	inner := cmds[1 : len(cmds)-1]
	switch {
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
		o, c.mayHaveRun = notSent, true
	}
	return o, err
}

// tail finds the commands of a pipeline that were not run, or may not have been,
// and what is known of them.
func (c *call) tail(cmds []redis.Cmder, err error, from origin) (outcome, []redis.Cmder) {
	rest := unread(cmds, err)
	if len(rest) == 0 { // every command was answered
		first := len(cmds) - 1
		o := outcomeFor(cmds[first], cmds[first].Err(), from)
		if o != refused && o != denied {
			return answered, cmds
		}
		for first > 0 && outcomeFor(cmds[first-1], cmds[first-1].Err(), from) == o {
			first--
		}
		return o, cmds[first:]
	}
	o := outcomeOf(err)
	if e := own(err); from == foreignHook && e != nil && !e.handshake {
		return foreign, rest
	}
	if (o == unknown || o == partly) && c.repeatable(rest) {
		o, c.mayHaveRun = notSent, true
	}
	return o, rest
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
