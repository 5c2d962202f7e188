package redial

// What hooks of the caller are shown of an attempt, and what they make of it. They run
// between the two parts of our hook, see attempt.go, and see the errors of go-redis and of
// the system: what our parts and connections tell by errors is hidden from them, comes home
// with the attempt, and is put back where they have left what they were shown. What they
// have made of arguments is sent again as it was.
// TestVeil in call_test.go, and tests/conform with the same hooks on go-redis alone, hold it to
// that.
//
// It knows errors and findings, and nothing of links, calls and nodes.

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/wire"
)

// hear notes what hooks of the caller have made of the error: they have returned err,
// which may be their own word and not what go-redis returned.
func (f *finding) hear(err error) {
	switch {
	case !f.reached && (f.blind || isOurs(err)): // it may be, of a hook with a context of its own, say
		f.why = err
	case !f.reached, f.err == nil, !errors.Is(err, f.seen):
		f.word, f.why = true, err
		f.mayHaveRun = f.mayHaveRun || f.reached && f.err == nil // err may be that of a time before
	}
}

// show hides from hooks of the caller what our parts and connections tell by errors: they
// see those of go-redis and of the system. What it hides is told with the finding.
func (f *finding) show(cmds ...redis.Cmder) (veils []veil) {
	if f.err == nil {
		return nil
	}
	if f.seen = unveiled(f.err); !isSame(f.seen, f.err) {
		veils = append(veils, veil{nil, f.err, f.seen})
	}
	for _, cmd := range cmds {
		was := cmd.Err()
		if was == nil || !isOurs(was) {
			continue
		}
		if seen := unveiled(was); !isSame(seen, was) {
			cmd.SetErr(seen)
			veils = append(veils, veil{cmd, was, seen})
		}
	}
	return veils
}

// unveiled returns err as it is without redial: what a connection failed with. What is, or
// holds, a reply to somebody else stays hidden, and so do the words of another client about
// commands of its own, and what could not be told again.
func unveiled(err error) error {
	_, shown := reveal(err)
	ce, ok := shown.(*wire.Error)
	if !ok || isReply(ce.Err) || !reflect.ValueOf(ce.Err).Comparable() || SafeToRetry(ce.Err) && !SafeToRetry(ce) {
		return shown
	}
	return ce.Err
}

// attempt is the context of an attempt that goes through hooks of the caller. It
// brings home what the inner part finds.
type attempt struct {
	context.Context
	mu    sync.Mutex    // a hook may call next on another goroutine
	found *finding      // guarded by mu; nil: go-redis was not asked
	veils []veil        // guarded by mu; what hooks were shown in place of something else
	last  []redis.Cmder // guarded by mu; of a batch: what go-redis was asked last
	sent  lines         // by the attempt before; nil: there was none
	room  *wire.Call
	lent  atomic.Bool // room is in use, or was: a hook may call next twice
}

// newAttempt returns an attempt for ctx, with room for a call where that can be canceled.
func newAttempt(ctx context.Context) *attempt {
	if ctx.Done() == nil {
		return &attempt{Context: ctx}
	}
	a := new(struct {
		attempt
		call wire.Call
	})
	a.Context, a.room = ctx, &a.call
	return &a.attempt
}

// newBatchAttempt does the same for a batch, and returns a copy of it: hooks may change the list
// that they are given, some take commands out of it where it is.
func newBatchAttempt(ctx context.Context, cmds []redis.Cmder) (a *attempt, list []redis.Cmder) {
	b := new(struct {
		attempt
		call        wire.Call
		list, asked [fewCommands]redis.Cmder
	})
	if b.Context = ctx; ctx.Done() != nil {
		b.room = &b.call
	}
	b.last = b.asked[:0]
	return &b.attempt, append(b.list[:0], cmds...)
}

type attemptKey struct{}

func (a *attempt) Value(key any) any {
	if key == (attemptKey{}) {
		return a
	}
	return a.Context.Value(key)
}

// attemptOf returns the attempt that ctx belongs to, or nil.
func attemptOf(ctx context.Context) *attempt {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	return a
}

// outlasts reports whether ctx has ended, which a hook has made of that of the attempt, and
// that has not: it is the hook's word then that the call ends.
func (a *attempt) outlasts(ctx context.Context) bool {
	return ended(ctx) != nil && ended(a.Context) == nil
}

// note is called by the inner part when go-redis has returned.
func (a *attempt) note(f *finding, cmds []redis.Cmder, veils ...veil) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if was := a.found; was != nil {
		again := *f
		again.mayHaveRun = f.mayHaveRun || was.mayHaveRun || !was.undone
		again.before = slices.Concat(f.before, was.before)
		for _, cmd := range a.last {
			if !holds(was.not, cmd) {
				again.before = append(again.before, cmd)
			}
		}
		again.again, again.sent = true, f.sent.alike(was.sent)
		f = &again
	}
	a.found, a.last = f, append(a.last[:0], cmds...)
	a.veils = append(a.veils, veils...)
}

// hear returns what was found of the attempt, which hooks have ended with err, and that
// error. Where hooks have left what they were shown, it is put back. What is found where
// there is no error is only read.
func (a *attempt) hear(err error, cmds ...redis.Cmder) (f *finding, said error) {
	a.mu.Lock()
	was, veils := a.found, a.veils
	a.mu.Unlock()
	if err == nil && was != nil && len(veils) == 0 {
		return was, nil
	}
	f = new(finding)
	if was != nil {
		*f = *was
	}
	f.veils = veils
	if err != nil {
		f.hear(err)
		_, err = reveal(f.lift(nil, err))
	}
	for _, cmd := range cmds {
		if e := cmd.Err(); e != nil {
			if was := f.lift(cmd, e); !isSame(was, e) {
				cmd.SetErr(was)
			}
		}
	}
	return f, err
}

// lift returns what an error that a hook has left on cmd, or returned, stands for. Hooks
// hand on commands in the place of others, so it may be that of another one: of several that
// of which least is known.
func (f *finding) lift(cmd redis.Cmder, err error) error {
	was := err
	for _, v := range slices.Backward(f.veils) {
		switch {
		case !isSame(v.seen, err):
		case isSame(v.cmd, cmd):
			return v.was
		case isSame(was, err), v.cmd != nil && outcomeOf(v.was) > outcomeOf(was):
			was = v.was
		}
	}
	return was
}

// keep notes what was sent of commands of which some may be sent again.
func (f *finding) keep(cmds ...redis.Cmder) {
	if (f.err == nil || f.err == redis.Nil) && !slices.ContainsFunc(cmds, command.IsTroubled) {
		return
	}
	f.sent = make(lines, len(cmds))
	for _, cmd := range cmds {
		if reflect.ValueOf(cmd).Comparable() {
			f.sent[cmd] = slices.Clone(cmd.Args())
		}
	}
}

// alike adds what was sent before, and leaves out what was not the same then: which of the times
// it was that counts is not known the next time.
func (l lines) alike(before lines) lines {
	if l == nil {
		return before
	}
	for cmd, args := range before {
		if now, both := l[cmd]; both && !slices.EqualFunc(now, args, reflect.DeepEqual) {
			delete(l, cmd)
		} else {
			l[cmd] = args
		}
	}
	if len(l) == 0 {
		return nil
	}
	return l
}

// repeat has commands go out as they did in the attempt before, unless a hook asks again: it
// may ask for something else.
func (a *attempt) repeat(cmds ...redis.Cmder) {
	if a == nil || a.sent == nil || a.asked() {
		return
	}
	for _, cmd := range cmds {
		if !reflect.ValueOf(cmd).Comparable() {
			continue
		}
		args := cmd.Args()
		for i, was := range a.sent[cmd] { // callers may share arguments, which are only read then
			if i < len(args) && !reflect.DeepEqual(args[i], was) {
				args[i] = was
			}
		}
	}
}

func (a *attempt) asked() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.found != nil
}
