package redial

// What is known of a command that failed. Connections and the hooks of nodes mark their
// errors, replies are read in refusals.go, and here is the one rule that puts this
// together with what an attempt and a call know. Nothing here waits, sends or counts.

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
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

// outcomeOf is what an error says by itself, of one command or of a batch.
func outcomeOf(err error) outcome {
	var mark marked
	switch {
	case err == nil || err == redis.Nil:
		return answered
	case isHeld(err): // it repeats the error that broke it; this time nothing was sent
		return notSentForGood
	case errors.As(err, &mark):
		return mark.known()
	case isReply(err): // go-redis would take other errors for replies by their text
		return outcomeOfReply(err)
	case isPoolTimeout(err), errors.Is(err, redis.ErrClosed):
		return notSentForGood
	}
	return foreign
}

// terms are what a call knows besides its errors. The zero value knows of no other
// servers and has been taught nothing.
type terms struct {
	cfg       *config // nil: see above
	redirects bool    // servers send commands to each other
	ctx       context.Context
	nested    bool // part of setting up a connection
	reads     bool // running it changes nothing
	attempts  int

	apart    bool      // its outcome is judged on a goroutine of go-redis's
	panicked *panicked // what a function of the caller did there
}

// outcome says what is known of a command, or of a batch as a whole when cmd is nil. f
// was found of the attempt, and err is the error to go by.
func (t *terms) outcome(cmd redis.Cmder, err error, f *finding) outcome {
	o, from, one := outcomeOf(err), f.from, cmd != nil
	n, e := failureOf(err), asError(err)
	switch {
	case f.waited:
		return notSent
	case one && n != nil && command.IsHandshake(cmd):
		return n.outcome // it is not that of another command
	case o == answered, o == refused, o == denied:
		switch {
		case o != answered && concludes(cmd, err):
			return o
		case t.astray(err) && concludes(cmd, err), t.taught(err):
			return refused
		}
		return answered // a script, say, may have done something before it said so
	case from == foreignHook && e != nil && !e.handshake:
		return foreign // of a command that a hook of the caller ran
	case one && from == routedCall && n == nil && isPoolTimeout(err):
		return foreign // of a hook at a node
	case (from == routedCall || one && from == foreignHook) && isUnrouted(err):
		return notSent
	case one && from.alone() && o == partly:
		return notSent // half a command cannot run, and it was alone
	case from.alone() && o == foreign && isGarbled(err):
		return garbled
	case from == sharedCall && o == notSent && isAfterDial(err):
		return unknown // it may have been written before the one that failed
	}
	return o
}

// revise says what an outcome comes to for commands that are to be sent again, if they
// may. A write whose reply could not be read may have run. A read is worth another try,
// after which the error is the caller's: it may be the command that expects another type
// of reply.
func (t *terms) revise(o outcome, cmds ...redis.Cmder) outcome {
	switch {
	case o == garbled && t.reads && t.attempts > 1:
		return foreign
	case o == garbled:
		o = unknown
	}
	if (o == unknown || o == partly) && t.mayRepeat(cmds) {
		return repeatable
	}
	return o
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
	if t.apart {
		defer func() {
			if v := recover(); v != nil {
				t.panicked = &panicked{v}
			}
		}()
	}
	return t.cfg.refusals(reply)
}

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

// sameFailure reports whether two attempts failed not alike but with the very same
// failure, so that the second was none.
func sameFailure(a, b error) bool {
	ca, cb := connErrorOf(a), connErrorOf(b)
	return ca != nil && ca == cb
}

// isAfterDial reports whether err is of a connection that had been made.
func isAfterDial(err error) bool {
	ce := connErrorOf(err)
	return ce != nil && ce.phase != phaseDial
}

// isAfterWrite reports whether err is of a connection on which something was written.
func isAfterWrite(err error) bool {
	ce := connErrorOf(err)
	return ce != nil && ce.phase != phaseDial && ce.phase != phaseWrite
}

// isPoolTimeout reports whether err says that a pool had no connection to give.
func isPoolTimeout(err error) bool {
	return errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted)
}

// isReply reports whether err is an answer of the server.
func isReply(err error) bool {
	if err == redis.Nil {
		return true
	}
	var re redis.Error
	return errors.As(err, &re)
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
