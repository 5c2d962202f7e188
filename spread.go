package redial

import (
	"context"
	"errors"
	"slices"

	"github.com/redis/go-redis/v9"
)

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
