package redial

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/wire"
	"github.com/redial-go/redial/redialtest"
)

// everyCall runs f for the ways in which a command can wait for the server.
func everyCall(c *Client, f func(name string, run func(context.Context) error)) {
	for name, run := range map[string]func(context.Context) error{
		"read":      func(ctx context.Context) error { return c.Get(ctx, "n").Err() },
		"write":     func(ctx context.Context) error { return c.Incr(ctx, "n").Err() },
		"blocking":  func(ctx context.Context) error { return c.BLPop(ctx, 0, "q").Err() },
		"bounded":   func(ctx context.Context) error { return c.BLPop(ctx, time.Hour, "q").Err() },
		"large":     func(ctx context.Context) error { return c.Set(ctx, "k", strings.Repeat("x", 1<<20), 0).Err() },
		"clone":     func(ctx context.Context) error { return c.WithTimeout(time.Second).Incr(ctx, "n").Err() },
		"held":      func(ctx context.Context) error { cn := c.Conn(); defer cn.Close(); return cn.Incr(ctx, "n").Err() },
		"watch":     func(ctx context.Context) error { return c.Watch(ctx, func(*redis.Tx) error { return nil }, "n") },
		"pipeline":  func(ctx context.Context) error { _, err := c.Pipelined(ctx, incr); return err },
		"multiexec": func(ctx context.Context) error { _, err := c.TxPipelined(ctx, incr); return err },
	} {
		f(name, run)
	}
}

func incr(p redis.Pipeliner) error {
	p.Incr(context.Background(), "n")
	return nil
}

// A canceled command returns at once and says what is known of it, also when
// go-redis was told not to heed contexts.
func TestCancel_IsKept(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
			opt.Protocol = protocol
			opt.ContextTimeoutEnabled = false
			c := NewClient(opt)
			defer c.Close()
			ready(t, c)
			fill(t, c, 3)
			require.NoError(t, c.WithTimeout(time.Second).Ping(t.Context()).Err())
			n.Silence(true)
			everyCall(c, func(name string, run func(context.Context) error) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a deadline must not stand in the way
				time.AfterFunc(100*time.Millisecond, cancel)
				began := time.Now()
				err := run(ctx)
				assert.InDelta(t, 100*time.Millisecond, time.Since(began), float64(wire.Unwatched), name)
				assert.ErrorIs(t, err, context.Canceled, name)
				var e *Error
				if assert.ErrorAs(t, err, &e, name) {
					assert.NotEqual(t, ErrClosed, e.kind, name)
				}
			})
			assert.Equal(t, StateConnected, c.State(), "what callers cancel is no news of the server")
			assert.Zero(t, c.keeper.calls.Len())
		})
	}
}

// A canceled BLPOP waits no more on the server, and with it is gone the server's promise to
// hand it the next element. Its connection may be there still.
func TestCancel_BLPop_TakesNothingLater(t *testing.T) {
	s := redialtest.StartServer(t)
	c := NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		began := time.Now()
		require.ErrorIs(t, c.BLPop(ctx, 0, "queue").Err(), context.Canceled)
		assert.Less(t, time.Since(began), time.Second)
	}
	require.Eventually(t, func() bool { return strings.Contains(s.Do("INFO", "clients").(string), "blocked_clients:0\r") },
		time.Second, time.Millisecond)
	require.NoError(t, c.RPush(t.Context(), "queue", "job").Err())
	assert.EqualValues(t, 1, c.LLen(t.Context(), "queue").Val())
}

// Whoever shares the pool with commands that are canceled must not notice.
func TestCancel_HurtsNobodyElse(t *testing.T) {
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	c := NewClient(&redis.Options{Addr: p.Addr(), PoolSize: 10})
	defer c.Close()
	require.NoError(t, c.WaitReady(t.Context()))
	p.Delay(2 * wire.Unwatched) // or every reply comes before its command can be canceled
	var done, acknowledged, unknown, canceled atomic.Int64
	end := time.Now().Add(3 * time.Second)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for time.Now().Before(end) {
				if i%2 == 0 {
					if !assert.NoError(t, c.Incr(t.Context(), "steady").Err()) {
						return
					}
					done.Add(1)
					continue
				}
				ctx, cancel := context.WithCancel(t.Context())
				timer := time.AfterFunc(rand.N(6*wire.Unwatched), cancel)
				err := c.Incr(ctx, "fickle").Err()
				timer.Stop()
				cancel()
				switch {
				case err == nil:
					acknowledged.Add(1)
				case errors.Is(err, ErrOutcomeUnknown):
					unknown.Add(1)
				case err == context.Canceled: // before the call
					canceled.Add(1)
				default:
					assert.ErrorIs(t, err, context.Canceled)
					assert.ErrorIs(t, err, ErrUnavailable)
					canceled.Add(1)
				}
			}
		})
	}
	wg.Wait()
	p.Delay(0)
	ran := int64(mustInt(t, c.Get(t.Context(), "fickle")))
	t.Logf("%d done; of the canceled %d did not run, %d unknown; %d acknowledged, %d ran; %d dials",
		done.Load(), canceled.Load(), unknown.Load(), acknowledged.Load(), ran, c.Stats().Dials)
	assert.GreaterOrEqual(t, ran, acknowledged.Load())
	assert.LessOrEqual(t, ran, acknowledged.Load()+unknown.Load())
	assert.Greater(t, c.Stats().Dials, uint64(50), "too few connections were severed to prove anything")
	assert.Equal(t, done.Load(), int64(mustInt(t, c.Get(t.Context(), "steady"))))
	assert.Zero(t, c.Stats().Outages)
}

func mustInt(t *testing.T, cmd *redis.StringCmd) int {
	t.Helper()
	n, err := cmd.Int()
	require.NoError(t, err)
	return n
}

// What the caller's hooks see of the context is the caller's, but for a deadline.
func TestCancel_ContextOfHooks(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		type key struct{}
		parent, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "value"), 3*time.Second)
		defer cancel()
		var kept context.Context
		c.AddHook(hookFunc(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			assert.Equal(t, "value", ctx.Value(key{}))
			assert.Equal(t, parent.Done(), ctx.Done())
			deadline, ok := ctx.Deadline()
			assert.True(t, ok)
			assert.False(t, deadline.After(time.Now().Add(3*time.Second)))
			kept = ctx
			return next(ctx, cmd)
		}))
		require.NoError(t, c.Set(parent, "k", "v", 0).Err())
		want, _ := parent.Deadline()
		got, _ := kept.Deadline()
		assert.True(t, want.Equal(got), "when the command is over only the caller's deadline remains")
		require.NoError(t, c.Set(kept, "k", "v", 0).Err())
	})
}

// hookFunc is a hook for single commands.
type hookFunc func(context.Context, redis.Cmder, redis.ProcessHook) error

func (hookFunc) DialHook(next redis.DialHook) redis.DialHook { return next }
func (f hookFunc) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return f(ctx, cmd, next) }
}
func (hookFunc) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A pipeline broke while it was written: what had not been delivered whole cannot
// have run, and only the rest is unknown.
func TestPipeline_PartlyWritten(t *testing.T) {
	for _, tc := range []struct {
		name    string
		big     int // size of the values, to have go-redis write in several parts
		broken  int // the command that breaks in the middle
		unknown int // commands that may have run
	}{
		{"in the first", 1, 0, 0},
		{"in the middle", 1, 3, 3},
		{"in a later part", 100_000, 3, 3},
		{"in the last", 1, 4, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := redialtest.NewFakeServerPipe(t)
				var mu sync.Mutex
				var conns []*breakAfter // guarded by mu
				c := NewClient(&redis.Options{Addr: "127.0.0.1:1", Protocol: 2, DisableIdentity: true, PoolSize: 50,
					Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
						nc, err := server.Dial(ctx, network, addr)
						cn := &breakAfter{Conn: nc, left: math.MaxInt}
						mu.Lock()
						conns = append(conns, cn)
						mu.Unlock()
						return cn, err
					}}, WithGrace(0))
				defer c.Close()
				ready(t, c)
				ctx := t.Context()
				pipe := c.Pipeline()
				require.NoError(t, pipe.Ping(ctx).Err())
				_, err := pipe.Exec(ctx)
				require.NoError(t, err)
				size := 0
				for i := range 5 {
					cmd := pipe.LPush(ctx, "list", string(make([]byte, tc.big)))
					if n, _ := command.Size(cmd.Args()); i < tc.broken {
						size += n
					} else if i == tc.broken {
						size += n / 2
					}
				}
				synctest.Wait()
				mu.Lock()
				for _, cn := range conns { // whichever carries it
					cn.left = size
				}
				mu.Unlock()
				cmds, err := pipe.Exec(ctx)
				if tc.unknown == 0 { // nothing ran, so it was sent again
					require.NoError(t, err)
					return
				}
				assert.ErrorIs(t, err, ErrOutcomeUnknown)
				for i, cmd := range cmds {
					if i < tc.unknown {
						assert.ErrorIs(t, cmd.Err(), ErrOutcomeUnknown, "%d", i)
					} else {
						assert.ErrorIs(t, cmd.Err(), ErrUnavailable, "%d", i)
						assert.True(t, SafeToRetry(cmd.Err()), "%d", i)
					}
				}
				synctest.Wait()
				assert.LessOrEqual(t, server.Executed("lpush"), tc.unknown)
				assert.EqualValues(t, 1, c.Stats().Unknown)
				assert.Zero(t, c.Stats().Refused)
			})
		})
	}
}

// breakAfter breaks when so many more bytes have been written.
type breakAfter struct {
	net.Conn
	left int
}

func (c *breakAfter) Write(p []byte) (int, error) {
	if len(p) <= c.left {
		c.left -= len(p)
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(p[:c.left])
	_ = c.Conn.Close()
	if err == nil {
		err = errors.New("broken")
	}
	return n, err
}

// A subscription that is made while a ring knows no shard goes to the one that has the
// channel.
func TestShardFor(t *testing.T) {
	c := NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1", "b": "127.0.0.1:2", "c": "127.0.0.1:3"}})
	defer c.Close()
	for i := range 100 {
		key := fmt.Sprintf("k%d{tag%d}", i, i)
		want, err := c.GetShardClientForKey(key)
		require.NoError(t, err)
		assert.Same(t, want, c.nodes.shardFor(c.Options(), key, nil))
	}
}

// What a part has run is not run again because another node was removed.
func TestParts_NodeIsRemoved(t *testing.T) {
	p := &parts{}
	p.note(nil)
	p.note(redis.ErrClosed)
	assert.Equal(t, unknown, outcomeOf(p.verdict(&terms{}, redis.ErrClosed)))
}
