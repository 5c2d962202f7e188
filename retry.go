package redial

import (
	"context"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
)

// What decides by itself whether a command is sent again, and how long it may wait: what its
// context says, the policy, the budget of a client, and the ids of work that runs once. It
// knows commands and options, and nothing of failures.

type ctxKey int

const (
	ctxWaitFor ctxKey = iota
	ctxIdempotent
	ctxNoRetry
	ctxNested    // set for commands that go-redis runs inside another command's dial
	ctxBegan     // when a command with a patience of its own has first failed, or had to wait
	ctxWatch     // for what a Watch sends by itself: where nodes note what they have answered
	ctxHeartbeat // set for what a ring sends by itself
)

// FailFast returns a context with which commands do not wait for the link: while
// it is down they fail at once with [ErrUnavailable].
func FailFast(ctx context.Context) context.Context {
	return WaitFor(ctx, 0)
}

// WaitFor returns a context with which a command may wait up to d for the link,
// whatever the grace of the outage. d <= 0 is the same as [FailFast]. Of several that a
// context has, of either kind, the innermost counts.
func WaitFor(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, ctxWaitFor, d)
}

// Idempotent returns a context that declares commands safe to run twice: they
// are sent again even when the first attempt may have run. Blocking pops are
// not, because their first run may have taken an element that is lost.
func Idempotent(ctx context.Context) context.Context {
	return context.WithValue(ctx, ctxIdempotent, true)
}

// NoRetry returns a context that forbids to run commands twice, whatever the
// policy: when it is unknown whether one ran, reads included, it is not sent
// again. Commands that provably did not run still are. It overrides [Idempotent].
func NoRetry(ctx context.Context) context.Context {
	return context.WithValue(ctx, ctxNoRetry, true)
}

// Once returns a context with which a write runs once, whatever is lost on the way, and
// returns the reply of that run: the command goes out in a script that keeps a record of
// id on the server, with the reply, for the time of [WithOnceTTL]. So it is sent again
// whenever it is unknown whether it ran, whatever the [RetryPolicy], until the grace, the
// context or half of that time, from when it was first sent, is over, or until a ring looks
// for its keys on another shard, and then ends as [ErrOutcomeUnknown], as without an id.
// The caller may send it again with the same id, from another process as well, as long as
// the record lives: if it ran, nothing runs and the reply is that of its run.
//
// id names one piece of work and is anything from 1 to 512 bytes long. It takes the place
// of one that ctx has already. An id that comes with another command or other arguments
// than before is [ErrOnceMismatch]. What cannot be protected is [ErrOnceUnsupported]:
// commands that block, are scripts or concern no keys, keys of several slots of a cluster,
// commands of an auto-pipeline of a cluster, those of a batch that were made with another
// id than it has, servers and accounts without EVAL. In both cases nothing runs; but a
// full-duplex auto-pipeline has written its commands before they can be refused, see there.
//
// With Exec of a pipeline each command has a record of its own, by id and position, and a
// transaction is one unit. Of a pipeline without an id, and of an auto-pipeline, a command
// that was made with such a context has its own. [NoRetry] still forbids to send again.
// What go-redis sends to set up a connection is not concerned, nor is what hooks send
// besides, unless they give it an id. Arguments are encoded once in a call.
//
// An error reply means that nothing ran, and is not recorded, but in transactions. See
// docs/once.md for what this protects against and what it costs.
func Once(ctx context.Context, id string) context.Context {
	onceUsed.Store(true)
	return context.WithValue(ctx, onceKey{}, id)
}

// onceUsed is set when there was an id, ever: before that no context needs a look.
var onceUsed atomic.Bool

// idOf returns the id that a context has.
func idOf(ctx context.Context) (id string, ok bool) {
	id, ok = ctx.Value(onceKey{}).(string)
	return id, ok
}

// onces are the commands of a call that have ids.
type onces struct {
	ids  map[redis.Cmder]onceID
	all  bool          // there are no commands without ids in the call
	life time.Duration // how long the record of one is sure to be there
	// When the first of them went to go-redis with its id, so that it may have run from then
	// on. nil: none has; what was sent, a hook of the caller has had sent without.
	sent atomic.Pointer[time.Time]

	mu    sync.Mutex
	lines map[redis.Cmder]onceLine // guarded by mu
	// Where the commands went that may have run there, guarded by mu.
	at map[redis.Cmder]any
}

// onceLine is a command as it is written, every time, whatever its arguments make of
// themselves later.
type onceLine struct {
	args []string
	err  error // go-redis cannot write one of them
}

// line returns what is written of a command.
func (o *onces) line(cmd redis.Cmder) ([]string, error) {
	o.mu.Lock()
	l, ok := o.lines[cmd]
	o.mu.Unlock()
	if ok {
		return l.args, l.err
	}
	for _, arg := range cmd.Args() { // which may be code of the caller
		text, err := command.Text(arg)
		if err != nil {
			l = onceLine{err: err}
			break
		}
		l.args = append(l.args, text)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if first, ok := o.lines[cmd]; ok { // a hook has called next twice
		return first.args, first.err
	}
	if o.lines == nil {
		o.lines = make(map[redis.Cmder]onceLine, len(o.ids))
	}
	o.lines[cmd] = l
	return l.args, l.err
}

// goes notes that one of the commands goes out with its id.
func (o *onces) goes() {
	if o.sent.Load() == nil {
		now := time.Now()
		o.sent.CompareAndSwap(nil, &now)
	}
}

// place notes that a command goes to a server, and reports whether it may: not when it may
// have run on another one, which has its record. first says that it went nowhere before.
func (o *onces) place(cmd redis.Cmder, at any) (first, may bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if was := o.at[cmd]; was != nil {
		return false, was == at
	}
	if o.at == nil {
		o.at = make(map[redis.Cmder]any, len(o.ids))
	}
	o.at[cmd] = at
	return true, true
}

// unplace notes that a command has not run where it was sent, and may go elsewhere.
func (o *onces) unplace(cmd redis.Cmder) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.at, cmd)
}

// onceID is the id of one command.
type onceID struct {
	text     string
	position int // in its batch; -1: it has the id for itself
}

// has reports whether a command has an id.
func (o *onces) has(cmd redis.Cmder) bool {
	if o == nil || !reflect.ValueOf(cmd).Comparable() {
		return false
	}
	_, ok := o.ids[cmd]
	return ok
}

// until returns when the record of what was sent first may be gone soon, the zero time if
// nothing was.
func (o *onces) until() (t time.Time) {
	if sent := o.sent.Load(); sent != nil {
		t = sent.Add(o.life)
	}
	return t
}

// fresh reports whether it is sure to be there. The server's clock goes on while the machine
// sleeps, which only the clock on the wall knows of.
func (o *onces) fresh() bool {
	t, now := o.until(), time.Now()
	return t.IsZero() || now.Before(t) && now.Round(0).Before(t.Round(0))
}

// onceContext is the context of a call with ids. Without any it is that of something sent
// besides.
type onceContext struct {
	context.Context
	onces *onces
}

// onceKey is the key of what a context has of ids: the one that Once gave it, or what has
// become of that in a call.
type onceKey struct{}

func (c *onceContext) Value(key any) any {
	if key == (onceKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// onceContextOf returns what ctx is part of, or nil.
func onceContextOf(ctx context.Context) *onceContext {
	if !onceUsed.Load() {
		return nil
	}
	c, _ := ctx.Value(onceKey{}).(*onceContext)
	return c
}

// oncesOf returns the ids of the call that ctx belongs to, nil when it has none.
func oncesOf(ctx context.Context) *onces {
	if c := onceContextOf(ctx); c != nil {
		return c.onces
	}
	return nil
}

// patience is how long a command may wait, from its context.
type patience struct {
	failFast bool
	own      time.Duration // above 0: replaces the grace of the outage
}

func patienceOf(ctx context.Context) patience {
	d, ok := ctx.Value(ctxWaitFor).(time.Duration)
	return patience{failFast: ok && d <= 0, own: max(d, 0)}
}

// limit is how long a command may wait or try in all.
func (p patience) limit(cfg *config) time.Duration {
	if p.own > 0 {
		return p.own
	}
	return cfg.grace
}

// exhausted is the cause when the limit is reached.
func (p patience) exhausted() Cause {
	if p.own > 0 {
		return CauseWaitOver
	}
	return CauseGraceOver
}

// budget bounds how often something is done, by a token bucket that is full at first. That of
// a client bounds the attempts by which commands are sent again that have reached the server
// before, so that retries cannot multiply the load of a server in trouble. A retry that is
// answered, with nil or an error perhaps, gives its token back: then the trouble is over.
type budget struct {
	burst, rate float64 // tokens at most, and those that are added a second

	mu    sync.Mutex
	spent float64   // guarded by mu
	at    time.Time // guarded by mu; when spent was right
}

// take takes a token, if there is one.
func (b *budget) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.spent = max(b.spent-b.rate*now.Sub(b.at).Seconds(), 0)
	b.at = now
	if b.spent+1 > b.burst {
		return false
	}
	b.spent++
	return true
}

func (b *budget) giveBack() {
	b.mu.Lock()
	b.spent = max(b.spent-1, 0)
	b.mu.Unlock()
}

// mayRepeat reports whether cmd may be sent again after an unknown outcome.
func (c *config) mayRepeat(ctx context.Context, cmd redis.Cmder) bool {
	if cmd.NoRetry() {
		return false // its reply went to a writer of the caller
	}
	if no, _ := ctx.Value(ctxNoRetry).(bool); no {
		return false
	}
	if o := oncesOf(ctx); o != nil && o.has(cmd) {
		return o.sent.Load() != nil && o.fresh()
	}
	if command.ClassOf(cmd) == command.Takes {
		return false // its element is gone
	}
	if ok, _ := ctx.Value(ctxIdempotent).(bool); ok {
		return true
	}
	return c.policy(cmd)
}
