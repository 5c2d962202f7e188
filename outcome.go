package redial

// What is known of a command that failed, or of many that were sent together. Connections
// and the hooks of nodes mark their errors, replies are read in refusals.go, and here is the
// one rule that puts this together with what an attempt and a call know. Nothing here waits,
// sends or counts.

import (
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/wire"
)

// outcome is what is known about a failed command, from the best to the worst.
type outcome uint8

const (
	answered       outcome = iota // the server replied
	refused                       // the server said that it did not run, for now
	denied                        // it did not run, for want of valid credentials
	notSent                       // nothing can have run
	notSentForGood                // the same, and trying again cannot help
	repeatable                    // it may have run, and may run again
	partly                        // some bytes were delivered, not all
	unknown                       // it may have run
	garbled                       // it was answered, but nobody can tell what
	foreign                       // an error this package does not know
)

// ofPhase is what is known of a command whose connection failed.
var ofPhase = [...]outcome{wire.PhaseDial: notSent, wire.PhaseWrite: notSent, wire.PhasePartial: partly, wire.PhaseRead: unknown}

// marked are errors that know what became of the command that they are of.
type marked interface {
	error
	known() outcome
	forSetup() bool // that one was sent to set up a connection
}

// marks yields the errors in err that say what became of a command: of ours, and of our
// connections. It does not look into them: what broke a connection may hold errors of
// another client, say, which tell of a command of that client's. There is more than one
// when somebody has joined errors.
func marks(err error) iter.Seq[error] {
	return func(yield func(error) bool) { eachMark(err, yield) }
}

func eachMark(err error, yield func(error) bool) (more bool) {
	switch e := err.(type) {
	case nil:
		return true
	case marked, *wire.Error, *wire.SealedError:
		return yield(err)
	case interface{ Unwrap() error }:
		return eachMark(e.Unwrap(), yield)
	case interface{ Unwrap() []error }:
		return !slices.ContainsFunc(e.Unwrap(), func(err error) bool { return !eachMark(err, yield) })
	}
	var mark marked
	switch ce := wire.ErrorOf(err); { // something hides what it holds
	case errors.As(err, &mark) && (ce == nil || ce == wire.ErrorOf(mark)):
		return yield(mark)
	case ce != nil:
		return yield(ce)
	}
	return true
}

// isOfCommand reports whether err is what a command has failed with, and not a part of it.
func isOfCommand(err error) (yes bool) {
	for mark := range marks(err) {
		m, ok := mark.(marked)
		if !ok || m.forSetup() {
			return false
		}
		yes = true
	}
	return yes
}

// unran reports whether nothing ran of what go-redis was asked.
func (f *finding) unran() bool {
	switch outcomeOf(f.err) {
	case refused, denied, notSent, notSentForGood:
		return true
	}
	return f.unsent
}

// outcomeOf is what an error says by itself, of one command or of a batch.
func outcomeOf(err error) outcome {
	switch {
	case err == nil || err == redis.Nil:
		return answered
	case isHeld(err): // it repeats the error that broke it; this time nothing was sent
		return notSentForGood
	}
	said, worst := false, answered
	for mark := range marks(err) { // the weakest claim counts
		o := notSent
		if m, ok := mark.(marked); !ok {
			o = ofPhase[wire.ErrorOf(mark).Phase]
		} else if !m.forSetup() { // else it was another command that may have run
			o = m.known()
		}
		said, worst = true, max(worst, o)
	}
	switch {
	case said:
		return worst
	case isReply(err): // go-redis would take other errors for replies by their text
		switch row, script := refusalOf(err); {
		case row == nil || script:
		case row.waits == waitsGrace:
			return refused
		case row.waits == waitsRenewed:
			return denied
		}
		return answered
	case isPoolTimeout(err), errors.Is(err, redis.ErrClosed):
		return notSentForGood
	}
	return foreign
}

// finding is what the inner part of our hook knows of an attempt, see attempt.go.
type finding struct {
	reached bool   // go-redis was asked
	blind   bool   // hooks that were added behind our back hide what it was asked
	watched bool   // of a transaction that failed: keys may have been watched for it
	unsent  bool   // the call ended while it waited for a connection, or for a node
	from    origin // what go-redis did with it
	err     error  // as go-redis returned it; nil: all went well
	seen    error  // the same as hooks of the caller see it

	// What hooks of the caller have made of that: word says that the error which they
	// returned is their own. why is the error to go by.
	word bool
	why  error

	// mayHaveRun says that a hook asked go-redis more than once, and that one of the times
	// before the last may have run something.
	mayHaveRun bool

	// Of a batch: the commands without an answer, the errors that go-redis left on them, and
	// those of the commands, at the end, that cannot have been delivered.
	rest        []redis.Cmder
	errs        []error
	undelivered []redis.Cmder

	again  bool          // a hook asked go-redis before
	undone bool          // its error, or those of all of its commands, say that nothing ran
	not    []redis.Cmder // of a batch: those that say so
	before []redis.Cmder // those that may have run when a hook asked go-redis before

	veils []veil // what hooks of the caller were shown in place of something else
	sent  lines  // what hooks have made of the commands; nil: they are not sent again
}

// veil is an error as hooks of the caller see it, and what it stands for.
type veil struct {
	cmd       redis.Cmder // that has it; nil: it was returned
	was, seen error
}

// lines are the arguments of commands as they were sent. Hooks of the caller that change them
// where they are, to put a prefix before keys, say, do so in each attempt.
type lines map[redis.Cmder][]any

// judge notes which commands of a batch did not run, of those that go-redis was asked.
func (f *finding) judge(asked ...redis.Cmder) {
	cmds := command.Inner(asked)
	for _, cmd := range cmds {
		err := cmd.Err()
		if err == nil && f.from == clusterCall && command.HoldsMulti(asked) { // go-redis notes later what ended it
			err = command.FirstError(cmds, f.err)
		}
		if f.unsent || saysUndone(err) {
			f.not = append(f.not, cmd)
		}
	}
	f.undone = len(f.not) == len(cmds)
}

// doubtful returns those of cmds that may have run in a time before, by what is known of that.
func (f *finding) doubtful(cmds []redis.Cmder) []redis.Cmder {
	return slices.DeleteFunc(slices.Clone(cmds), func(cmd redis.Cmder) bool { return !f.ranBefore(cmd) })
}

func (f *finding) ranBefore(cmd redis.Cmder) bool { return holds(f.before, cmd) }

// holds reports whether a command is among others.
func holds(cmds []redis.Cmder, cmd redis.Cmder) bool {
	return slices.ContainsFunc(cmds, func(other redis.Cmder) bool { return isSame(cmd, other) })
}

// tells reports whether err is, or wraps, what our parts or connections have told, and is
// no final error of a command.
func (f *finding) tells(err error) bool {
	if isOfCommand(err) && failureOf(err) == nil {
		return false
	}
	return isOurs(err) || slices.ContainsFunc(f.veils, func(v veil) bool { return errors.Is(err, v.seen) })
}

// terms are what a call knows besides. The zero value knows of no other servers and has
// been taught nothing.
type terms struct {
	cfg       *config
	ctx       context.Context
	redirects bool // there are several servers, which send commands to each other
	nested    bool // part of setting up a connection
	reads     bool // running it changes nothing
	attempts  int

	atNode   bool      // judged by the hook of a node, on a goroutine of go-redis's perhaps
	panicked *panicked // what a function of the caller did there
}

// outcome says what is known of a command, or of a batch as a whole when cmd is nil. f
// was found of the attempt, and err is the error to go by.
func (t *terms) outcome(cmd redis.Cmder, err error, f *finding) outcome {
	o, from, one := outcomeOf(err), f.from, cmd != nil
	n := failureOf(err)
	switch {
	case f.word && f.mayHaveRun && (f.tells(err) || one && f.again && changes(cmd) && t.disclaims(err)):
		o = unknown // a hook returns what became of a time before
	case f.word:
		o = foreign
	case f.unsent:
		o = notSent
	case one && n != nil && command.IsHandshake(cmd):
		o = n.outcome // it is not that of another command
	case o == answered, o == refused, o == denied:
		switch {
		case o != answered && concludes(cmd, err):
		case t.astray(err) && concludes(cmd, err), t.taught(err):
			o = refused
		default:
			o = answered // a script, say, may have done something before it said so
		}
	case (from == foreignHook || from == routedCall) && n == nil && isOfCommand(err):
		o = foreign // of a command that a hook of the caller ran
	case one && from == routedCall && n == nil && o == notSentForGood && isPoolTimeout(err):
		o = foreign // of a hook at a node
	case (from == routedCall || one && from == foreignHook) && o == foreign && isUnrouted(err):
		o = notSent
	case one && from.alone() && o == partly:
		o = notSent // half a command cannot run, and it was alone
	case from.alone() && o == foreign && isGarbled(err):
		o = garbled
	case from == sharedCall && o == notSent && isAfterDial(err):
		o = unknown // it may have been written before the one that failed
	}
	switch {
	case !one || !f.mayHaveRun || o == foreign:
		return o
	case isReply(err) && !(changes(cmd) && t.disclaims(err)): // as it is, but not again: what a hook asked for besides has run
		return answered
	}
	return unknown
}

// revise says what an outcome comes to for commands that are to be sent again, if they
// may. A write whose reply could not be read may have run. A read is worth another try, if
// it may have one, after which the error is the caller's: it may be the command that expects
// another type of reply.
func (t *terms) revise(o outcome, cmds ...redis.Cmder) outcome {
	switch {
	case o == garbled && !slices.ContainsFunc(cmds, changes) && (t.attempts > 1 || !t.mayRepeat(cmds)):
		return foreign
	case o == garbled:
		o = unknown
	}
	if (o == unknown || o == partly) && t.mayRepeat(cmds) {
		return repeatable
	}
	return o
}

// forOuter reports whether the hook of a node leaves what comes of a reply that could not be
// read to the outer hook, which knows how often it was tried.
func (t *terms) forOuter(o outcome, cmds []redis.Cmder) bool {
	return t.atNode && o == garbled && t.mayRepeat(cmds)
}

// changes reports whether a command may change something.
func changes(cmd redis.Cmder) bool { return !command.ReadOnly(cmd) }

// transaction reads the outcome of a MULTI ... EXEC block, which is one unit. When
// it was aborted because a command in it was refused, the error is that refusal;
// but EXEC has then ended any WATCH, and without it the block must not run again. Nor
// must one that a command in it has ended: what stood behind that has run by itself.
func (t *terms) transaction(at interface{ react(error) }, cmds []redis.Cmder, f *finding) (o outcome, why error) {
	inner, of := command.Inner(cmds), &finding{from: f.from}
	o, why = t.outcome(nil, f.why, f), f.why
	once := f.watched || slices.ContainsFunc(inner, leavesMulti)
	if (o == refused || o == denied) && !once {
		// A cluster returns what aborted the block, and sets the abort on the rest.
		ran := false
		for _, cmd := range inner {
			if redis.IsExecAbortError(cmd.Err()) {
				return o, why
			}
			ran = ran || t.outcome(cmd, cmd.Err(), of) != o
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
				if !once {
					return refused, e
				}
			}
		}
	case o == refused || o == denied:
		if once || cmds[0].Err() == nil && command.FirstError(inner, nil) != nil {
			at.react(why)
			return answered, why // EXEC ran, and this is what a command in it said
		}
	case o == foreign && f.from == routedCall && !f.word && isGarbled(why):
		o = garbled // it has no label, see route.go
	case o == partly && slices.ContainsFunc(inner, leavesMulti):
		return unknown, why // what came behind that was not queued
	case o == partly:
		return notSent, why // EXEC comes last, so it was not delivered
	case t.forOuter(o, inner):
		return o, why
	}
	return t.revise(o, inner...), why
}

// leavesMulti reports whether cmd, of a transaction, ends it before its own EXEC does.
func leavesMulti(cmd redis.Cmder) bool {
	return cmd.Name() == "discard" || cmd.Name() == "reset" || cmd.Name() == "exec"
}

// isUnqueued reports whether err, of a transaction, is what MULTI was refused with: what came
// behind that was not queued but run, perhaps. In a cluster go-redis does not note it on MULTI.
func isUnqueued(cmds []redis.Cmder, err error) bool {
	if outcomeOf(err) != answered || !isUndone(err) || redis.IsExecAbortError(err) {
		return false
	}
	text := strings.ToLower(err.Error())
	return isSame(cmds[0].Err(), err) || strings.Contains(text, "'multi'") || strings.Contains(text, "`multi`")
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
		if turned(cmds, rest) {
			o = answered
		}
		return o, rest, nil, err
	}
	if t.atNode {
		err = weakest(rest)
	}
	heard := *f
	heard.word = false // it is about the pipeline as a whole
	o = t.outcome(nil, err, &heard)
	if t.forOuter(o, rest) && !turned(cmds, rest) {
		return o, rest, nil, err
	}
	if o == partly {
		if n := len(rest) - len(f.undelivered); n >= 0 && slices.EqualFunc(rest[n:], f.undelivered, isSame) {
			undelivered = rest[n:]
		}
		if len(undelivered) == len(rest) {
			o, undelivered = notSent, nil
		}
	}
	o = t.revise(o, rest[:len(rest)-len(undelivered)]...)
	if t.atNode && f.mayHaveRun && o != foreign || o == repeatable && turned(cmds, rest) {
		o = unknown
	}
	return o, rest, undelivered, err
}

// turned reports whether what is left of a pipeline must not be sent alone, since its connection
// was led elsewhere ahead of it, or queues it, or watches keys for a transaction in it.
func turned(cmds, rest []redis.Cmder) bool {
	queues, watches := false, false
	for _, cmd := range cmds {
		name := cmd.Name()
		switch {
		case !command.Turns(cmd) && !command.IsAboutTransactions(cmd):
		case holds(rest, cmd):
			if watches && name == "multi" {
				return true
			}
		case name == "multi":
			queues = true
		case name == "watch":
			watches = true
		case name == "unwatch":
			watches = false
		case name == "exec", name == "discard":
			watches = watches && !queues // without MULTI they are refused, and end nothing
			queues = false
		default:
			return true
		}
	}
	return queues
}

// tears reports whether a hook of the caller has had the last word on some of cmds, so that
// what is left of them must not be sent without these: they lead the connection elsewhere, or
// may be part of a transaction.
func (f *finding) tears(cmds, lost []redis.Cmder) bool {
	if len(lost) == 0 || len(lost) == len(cmds) {
		return false
	}
	unread := f.unran() || outcomeOf(f.err) == partly // then nothing of them was answered
	return slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return command.Turns(cmd) || command.IsAboutTransactions(cmd) }) &&
		(unread || !slices.EqualFunc(cmds[len(cmds)-len(lost):], lost, isSame))
}

// weakest returns that of the errors of cmds which claims least, and of such the first.
func weakest(cmds []redis.Cmder) error {
	return slices.MaxFunc(cmds, func(a, b redis.Cmder) int { return cmp.Compare(outcomeOf(a.Err()), outcomeOf(b.Err())) }).Err()
}

// refusedTail finds in a pipeline whose commands were all answered the first one
// that was refused and can be sent again together with all that follow it: those
// were refused too, or do nothing but read. What they read before the refused one
// ran is not what the caller asked for. Of one that is in it several times only the last
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
		} else if changes(cmds[i]) { // it has run, whether it may again or not
			break
		}
	}
	return found, rest
}

// mayRepeat reports whether every one of cmds may be sent again although it may have run.
func (t *terms) mayRepeat(cmds []redis.Cmder) bool {
	return !slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return !t.cfg.mayRepeat(t.ctx, cmd) })
}

// astray reports whether err sends a command to another node and following it, as
// go-redis did, led nowhere.
func (t *terms) astray(err error) bool {
	if !t.redirects {
		return false
	}
	row, _ := refusalOf(err)
	return row != nil && row.waits == waitsAmongNodes
}

// taught reports whether err is a reply of which the caller has said, by WithRefusals,
// that it means "not executed, try later".
func (t *terms) taught(err error) (yes bool) {
	if t.cfg == nil || t.cfg.refusals == nil || t.bypassesGate() { // which may be on a goroutine of ours
		return false
	}
	reply := replyOf(err)
	if reply == nil || isOutOfScript(reply.Error()) {
		return false
	}
	if t.atNode {
		defer func() {
			if v := recover(); v != nil {
				t.panicked = &panicked{v}
			}
		}()
	}
	return t.cfg.refusals(reply)
}

// disclaims reports whether err says that a command did not run, this time. Of one that may
// have run before, and changes something, that is not the whole truth. The error of another
// client, which a hook returns, is about something else.
func (t *terms) disclaims(err error) bool {
	if isOfCommand(err) && failureOf(err) == nil {
		return false
	}
	return saysUndone(err) || outcomeOf(err) == answered && t.taught(err)
}

// saysUndone reports whether err says by itself that a command did not run.
func saysUndone(err error) bool {
	if err == nil || err == redis.Nil {
		return false // without an allocation
	}
	switch outcomeOf(err) {
	case refused, denied, notSent, notSentForGood:
		return true
	case answered:
		var o interface{ saysUndone() bool } // of a command with an id
		return isUndone(err) || errors.As(err, &o) && o.saysUndone()
	}
	return isEnd(err)
}

// isEnd reports whether err is that of a context and nothing else, which go-redis returns where
// it sends nothing.
func isEnd(err error) bool { return err == context.Canceled || err == context.DeadlineExceeded }

// panicked is what a function of the caller panicked with on a goroutine of go-redis's,
// where nobody could recover it. It panics again on the caller's own.
type panicked struct{ value any }

// bypassesGate reports whether the gate does not concern the call, because it is part of
// making a connection that another command waits for.
func (t *terms) bypassesGate() bool {
	if t.nested {
		return true
	}
	nested, _ := t.ctx.Value(ctxNested).(bool)
	return nested
}

// failure is what the hook of a node returns for a command that came through the outer
// hook, see route.go. But for readers it hides everything from go-redis, which would
// retry on its own.
type failure struct {
	at      wire.Place // nil: nowhere in particular
	outcome outcome
	err     error
	was     error // of a command in a batch: what it was answered, if it was
	final   bool  // the command must not be sent again, whatever the outcome
	another bool  // go-redis may try another node
	setup   bool  // the command was sent to set up a connection

	since time.Time // when the command began to wait for the node; zero: it did not

	panicked *panicked // nil: nothing has
}

// Error has words before those of the cause, by which go-redis would know some of them.
func (e *failure) Error() string { return "redial: " + e.err.Error() }

// Is has go-redis look for another node, as it does when a connection ends.
func (e *failure) Is(target error) bool { return e.another && target == io.EOF }

func (e *failure) known() outcome { return e.outcome }
func (e *failure) forSetup() bool { return e.setup }

// failureOf returns the failure inside err, or nil.
func failureOf(err error) *failure {
	var n *failure
	errors.As(err, &n)
	return n
}

// isOurs reports whether err holds what our parts tell each other, or our connections.
func isOurs(err error) bool { return failureOf(err) != nil || wire.ErrorOf(err) != nil }

// reveal returns the place that err came from, nil when it does not say, and err as
// users are to see it.
func reveal(err error) (wire.Place, error) {
	if n := failureOf(err); n != nil {
		_, shown := reveal(n.err)
		return n.at, shown
	}
	var s *wire.SealedError
	switch {
	case !errors.As(err, &s):
		return nil, err
	case err == error(s):
		return s.At, s.Inner
	}
	return s.At, &unsealed{err.Error(), s.Inner}
}

// unsealed makes the cause of a sealed error visible again, and keeps the words of
// what go-redis has wrapped it in.
type unsealed struct {
	text  string
	inner *wire.Error
}

func (e *unsealed) Error() string { return e.text }
func (e *unsealed) Unwrap() error { return e.inner }

// isSame reports whether two errors, or two commands, are known to be the same one. Those of
// the caller's own may be of types that cannot be compared.
func isSame[T any](a, b T) bool {
	x, y := any(a), any(b)
	return x == nil && y == nil || x != nil && y != nil && reflect.ValueOf(x).Comparable() && reflect.ValueOf(y).Comparable() && x == y
}

// isLike reports whether two commands are the same one as far as can be told: those of a
// type of the caller's that cannot be compared are told apart by their places.
func isLike(a, b redis.Cmder) bool {
	return isSame(a, b) || reflect.TypeOf(a) == reflect.TypeOf(b) && !reflect.ValueOf(a).Comparable()
}

// sameFailure reports whether two attempts failed not alike but with the very same
// failure, so that the second was none.
func sameFailure(a, b error) bool {
	ca, cb := wire.ErrorOf(a), wire.ErrorOf(b)
	return ca != nil && ca == cb
}

// isAfterDial reports whether err is of a connection that had been made.
func isAfterDial(err error) bool {
	ce := wire.ErrorOf(err)
	return ce != nil && ce.Phase != wire.PhaseDial
}

// isAfterWrite reports whether err is of a connection on which something was written.
func isAfterWrite(err error) bool {
	ce := wire.ErrorOf(err)
	return ce != nil && ce.Phase != wire.PhaseDial && ce.Phase != wire.PhaseWrite
}

// isPoolTimeout reports whether err says that a pool had no connection to give.
func isPoolTimeout(err error) bool {
	return errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted)
}

// ended returns the error of a context that is over, or nil. A deadline counts
// from the moment it passes: the socket may learn of it before the context does.
func ended(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return nil
}
