package redial

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
)

type ctxKey int

const (
	ctxFailFast ctxKey = iota
	ctxWaitFor
	ctxIdempotent
	ctxNoRetry
	ctxNested // set for commands that go-redis runs inside another command's dial
)

// FailFast returns a context with which commands do not wait for the link: while
// it is down they fail at once with [ErrUnavailable].
func FailFast(ctx context.Context) context.Context {
	return context.WithValue(ctx, ctxFailFast, true)
}

// WaitFor returns a context with which a command may wait up to d for the link,
// whatever the grace of the outage. d <= 0 is the same as [FailFast].
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

// patience is how long a command may wait, from its context.
type patience struct {
	failFast bool
	own      time.Duration // above 0: replaces the grace of the outage
}

func patienceOf(ctx context.Context) patience {
	if d, ok := ctx.Value(ctxWaitFor).(time.Duration); ok {
		return patience{failFast: d <= 0, own: max(d, 0)}
	}
	fast, _ := ctx.Value(ctxFailFast).(bool)
	return patience{failFast: fast}
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

// budget bounds the attempts by which commands are sent again that have reached the
// server before, so that retries cannot multiply the load of a server in trouble.
// It is a token bucket, full at first. A retry that succeeds gives its token back:
// then the trouble is over.
type budget struct {
	mu    sync.Mutex
	spent float64   // guarded by mu
	at    time.Time // guarded by mu; when spent was right
}

// take takes a token, if there is one.
func (b *budget) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.spent = max(b.spent-retryRate*now.Sub(b.at).Seconds(), 0)
	b.at = now
	if b.spent+1 > retryBurst {
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
	if cmd.NoRetry() || command.ClassOf(cmd) == command.Takes {
		return false // its reply went to a writer of the caller, or its element is gone
	}
	if no, _ := ctx.Value(ctxNoRetry).(bool); no {
		return false
	}
	if ok, _ := ctx.Value(ctxIdempotent).(bool); ok {
		return true
	}
	return c.policy(cmd)
}
