package e2e

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/internal/testkit/pools"
	"github.com/redial-go/redial/redialtest"
)

// switchover is a primary and a replica behind one address, as managed services
// have them. After demote the address leads to the new primary, while the old one
// lives on as a replica and keeps the connections that it has.
type switchover struct {
	old, next *redialtest.Server
	proxy     *redialtest.Proxy
}

func newSwitchover(t *testing.T) *switchover {
	s := &switchover{old: redialtest.StartServer(t), next: redialtest.StartServer(t)}
	s.proxy = redialtest.NewProxy(t, s.old.Addr())
	return s
}

func (s *switchover) demote() {
	host, port, _ := strings.Cut(s.next.Addr(), ":")
	s.old.Do("REPLICAOF", host, port)
}

func (s *switchover) reachNewPrimary() { s.proxy.Retarget(s.next.Addr()) }

// writers are the shapes in which a write meets a server that has become a replica.
var writers = map[string]func(context.Context, redis.UniversalClient) error{
	"single": func(ctx context.Context, rdb redis.UniversalClient) error { return rdb.Set(ctx, "k", "v", 0).Err() },
	"pipeline, read first": func(ctx context.Context, rdb redis.UniversalClient) error {
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Exists(ctx, "k"); p.Set(ctx, "k", "v", 0); return nil })
		return err
	},
	"pipeline, write first": func(ctx context.Context, rdb redis.UniversalClient) error {
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "k", "v", 0); p.Exists(ctx, "k"); return nil })
		return err
	},
	"transaction": func(ctx context.Context, rdb redis.UniversalClient) error {
		_, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "k", "v", 0); return nil })
		return err
	},
}

// warmUp gives both pools of a client idle connections to the old primary.
func warmUp(t *testing.T, rdb redis.UniversalClient) {
	t.Helper()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { _ = rdb.BLPop(context.Background(), time.Second, "nothing").Err() })
		wg.Go(func() { assert.NoError(t, writers["transaction"](context.Background(), rdb)) })
	}
	wg.Wait()
}

// What bare go-redis does after a switchover, so that the next test is known to
// test something.
func TestSwitchover_BareGoRedisFails(t *testing.T) {
	t.Parallel()
	for name, least := range map[string]int{"single": 1, "pipeline, read first": 20, "pipeline, write first": 0, "transaction": 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSwitchover(t)
			rdb := redis.NewClient(&redis.Options{Addr: s.proxy.Addr()})
			defer rdb.Close()
			warmUp(t, rdb)
			s.demote()
			s.reachNewPrimary()
			failed := 0
			for range 20 {
				if writers[name](t.Context(), rdb) != nil {
					failed++
				}
			}
			t.Logf("%d of 20 failed", failed)
			assert.GreaterOrEqual(t, failed, least)
		})
	}
}

// The old primary has become a replica and for a while nothing else can be reached:
// callers wait, and succeed as soon as the address leads to the new one.
func TestSwitchover_IsRiddenOut(t *testing.T) {
	t.Parallel()
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSwitchover(t)
			c := testkit.Connect(t, &redis.Options{Addr: s.proxy.Addr()})
			warmUp(t, c)
			var done, failed, last atomic.Int64
			var example atomic.Pointer[error]
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						if err := write(context.Background(), c); err != nil {
							failed.Add(1)
							example.Store(&err)
						} else {
							done.Add(1)
							last.Store(time.Now().UnixNano())
						}
					}
				})
			}
			time.Sleep(100 * time.Millisecond)
			s.demote()
			time.Sleep(1500 * time.Millisecond)
			s.reachNewPrimary()
			reachable := time.Now()
			require.Eventually(t, func() bool { return last.Load() > reachable.UnixNano() }, time.Second, time.Millisecond)
			t.Logf("first success %v after the new primary could be reached", time.Duration(last.Load()-reachable.UnixNano()))
			time.Sleep(200 * time.Millisecond)
			close(stop)
			wg.Wait()
			if err := example.Load(); err != nil {
				t.Errorf("%d of %d failed: %v", failed.Load(), failed.Load()+done.Load(), *err)
			}
			assert.Equal(t, "v", s.next.Do("GET", "k"))
			assert.Zero(t, c.Stats().Outages, "a replica is not down")
		})
	}
}

// The same with the words that some proxies put in front of the reply.
func TestSwitchover_WordsOfAProxy(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr()})
	var readonly atomic.Bool
	readonly.Store(true)
	f.OnCommand(func(cn *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "set" && readonly.Load() {
			return redialtest.Reply("-ERR READONLY You can't write against a read only replica.\r\n")
		}
		return redialtest.Handle
	})
	time.AfterFunc(300*time.Millisecond, func() { readonly.Store(false) })
	before := c.Stats().Generation
	assert.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	assert.Greater(t, c.Stats().Generation, before)
}

// Calls with a deadline return by it, whatever the server does, and say what is
// known of them.
func TestDeadline_ServerFrozen(t *testing.T) {
	t.Parallel()
	const deadline, late = 2 * time.Second, 20 * time.Millisecond
	testkit.OnReal(t, func(t *testing.T, b testkit.Backend, _ *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: b.Addr})
		pools.Fill(t, c, 10)
		var calls, failed, beyond atomic.Int64
		var worst atomic.Int64
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				for k := i; ; k++ {
					select {
					case <-stop:
						return
					case <-time.After(10 * time.Millisecond):
					}
					ctx, cancel := context.WithTimeout(context.Background(), deadline)
					began := time.Now()
					_, err := testkit.Step(ctx, c, k)
					took := time.Since(began)
					cancel()
					calls.Add(1)
					for old := worst.Load(); int64(took) > old && !worst.CompareAndSwap(old, int64(took)); old = worst.Load() {
					}
					if took > deadline+late {
						beyond.Add(1)
					}
					if err == nil || err == redis.Nil {
						continue
					}
					failed.Add(1)
					var e *redial.Error
					if !errors.As(err, &e) {
						t.Errorf("an error without an outcome: %v", err)
					}
				}
			})
		}
		time.Sleep(200 * time.Millisecond)
		b.Real.Freeze()
		time.Sleep(5 * time.Second)
		b.Real.Thaw()
		time.Sleep(500 * time.Millisecond)
		close(stop)
		wg.Wait()
		t.Logf("%d calls, %d failed, slowest %v, %d beyond %v", calls.Load(), failed.Load(), time.Duration(worst.Load()), beyond.Load(), deadline+late)
		assert.Less(t, time.Duration(worst.Load()), deadline+10*late, "the machine may be busy, but not that busy")
		testkit.AwaitState(t, c, redial.StateConnected, time.Second)
	})
}
