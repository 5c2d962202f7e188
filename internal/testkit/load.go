// Load, and servers to put it on.

package testkit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// Backend is a server that the behaviour tests run on.
type Backend struct {
	Addr  string
	Kill  func()
	Start func()
	Real  *redialtest.Server // nil: miniredis
}

// OnEach runs f on miniredis and on a real redis-server, behind a proxy.
func OnEach(t *testing.T, f func(t *testing.T, b Backend, p *redialtest.Proxy)) {
	t.Run("miniredis", func(t *testing.T) {
		t.Parallel()
		m := miniredis.RunT(t)
		b := Backend{Addr: m.Addr(), Kill: m.Close, Start: func() { require.NoError(t, m.Restart()) }}
		f(t, b, redialtest.NewProxy(t, b.Addr))
	})
	OnReal(t, f)
}

// OnReal runs f on a real redis-server only.
func OnReal(t *testing.T, f func(t *testing.T, b Backend, p *redialtest.Proxy)) {
	t.Run("redis-server", func(t *testing.T) {
		s := redialtest.StartServer(t)
		b := Backend{Addr: s.Addr(), Kill: s.Kill, Start: s.Start, Real: s}
		f(t, b, redialtest.NewProxy(t, b.Addr))
	})
}

// Load keeps goroutines busy with GET, SET and INCR until Stop, and accounts for
// every INCR.
type Load struct {
	Done, Unavailable, Unknown atomic.Int64          // commands: done, not run, perhaps run
	Acknowledged, IncrUnknown  atomic.Int64          // of these, INCRs: done, perhaps run
	LastSuccess                atomic.Int64          // in nanoseconds since 1970
	Other                      atomic.Pointer[error] // one without an outcome, nil when there was none
	Replies                    Replies

	c    redial.UniversalClient
	wg   sync.WaitGroup
	quit chan struct{}
}

// Counter is the key that a [Load] increments.
const Counter = "counter"

// StartLoad has goroutines run commands on c, until [Load.Stop] or the end of the test.
func StartLoad(t *testing.T, c redial.UniversalClient, goroutines int) *Load {
	l := &Load{c: c, quit: make(chan struct{})}
	for i := range goroutines {
		l.wg.Go(func() {
			for k := i; ; k++ {
				select {
				case <-l.quit:
					return
				default:
				}
				l.step(k)
			}
		})
	}
	t.Cleanup(l.Stop)
	return l
}

func (l *Load) step(k int) {
	began := time.Now()
	n, err := Step(context.Background(), l.c, k)
	incr := k%3 == 0
	switch {
	case err == nil, err == redis.Nil:
		l.Done.Add(1)
		l.LastSuccess.Store(time.Now().UnixNano())
		if incr {
			l.Acknowledged.Add(1)
			l.Replies.Add(began, n)
		}
	case errors.Is(err, redial.ErrOutcomeUnknown):
		l.Unknown.Add(1)
		if incr {
			l.IncrUnknown.Add(1)
		}
	case errors.Is(err, redial.ErrUnavailable):
		l.Unavailable.Add(1)
	default:
		l.Other.CompareAndSwap(nil, &err)
	}
}

// Step is one GET, SET or INCR, of which it returns the reply.
func Step(ctx context.Context, c redial.UniversalClient, k int) (int64, error) {
	switch k % 3 {
	case 0:
		return c.Incr(ctx, Counter).Result()
	case 1:
		return 0, c.Set(ctx, "key", k, 0).Err()
	}
	return 0, c.Get(ctx, "key").Err()
}

// Stop ends the load and waits for its goroutines. It may be called more than once, by one
// goroutine at a time.
func (l *Load) Stop() {
	select {
	case <-l.quit:
	default:
		close(l.quit)
	}
	l.wg.Wait()
}

// Replies are those to INCRs of one Counter.
type Replies struct {
	mu  sync.Mutex
	all []reply // guarded by mu
}

type reply struct {
	began time.Time // when the INCR was issued
	n     int64
}

// Add notes the reply n to an INCR that was issued at began.
func (r *Replies) Add(began time.Time, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, reply{began, n})
}

// Check asserts that the INCRs which were issued after since have run once each on the
// server whose Counter is at n now.
func (r *Replies) Check(t *testing.T, since time.Time, n int64) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := make(map[int64]bool)
	for _, one := range r.all {
		if one.began.Before(since) {
			continue
		}
		assert.LessOrEqual(t, one.n, n, "an acknowledged INCR is missing")
		assert.False(t, seen[one.n], "two INCRs have the reply %d", one.n)
		seen[one.n] = true
	}
}

// Check stops the load and compares the Counter with what was acknowledged: no
// INCR was lost, and none ran twice.
func (l *Load) Check(t *testing.T, addr string) {
	t.Helper()
	ran := l.CheckSince(t, addr, time.Time{})
	assert.GreaterOrEqual(t, ran, l.Acknowledged.Load(), "an acknowledged INCR is missing")
}

// CheckSince is Check after a replica was promoted, at the time since: replication is
// asynchronous, so that what the primary before it has acknowledged may be lost. But none
// ran twice, and what was issued afterwards and acknowledged is there.
func (l *Load) CheckSince(t *testing.T, addr string, since time.Time) (ran int64) {
	t.Helper()
	l.Stop()
	if err := l.Other.Load(); err != nil {
		t.Errorf("an error without an outcome: %v", *err)
	}
	assert.Positive(t, l.Done.Load())
	bare := redis.NewClient(&redis.Options{Addr: addr})
	defer bare.Close()
	ran, err := bare.Get(t.Context(), Counter).Int64()
	require.NoError(t, err)
	assert.LessOrEqual(t, ran, l.Acknowledged.Load()+l.IncrUnknown.Load(), "an INCR ran twice")
	l.Replies.Check(t, since, ran)
	t.Logf("%d commands, %d unavailable, %d unknown; INCR: %d acknowledged, %d ran",
		l.Done.Load(), l.Unavailable.Load(), l.Unknown.Load(), l.Acknowledged.Load(), ran)
	return ran
}

// Flows waits until commands succeed again.
func (l *Load) Flows(t *testing.T, within time.Duration) {
	t.Helper()
	began := time.Now()
	require.Eventually(t, func() bool { return l.LastSuccess.Load() > began.UnixNano() }, within, time.Millisecond)
}

// AwaitState fails the test unless c has the state within that time.
func AwaitState(t *testing.T, c *redial.Client, want redial.State, within time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	require.NoError(t, c.WaitForState(ctx, want))
}
