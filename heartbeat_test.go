package redial

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/wire"
)

// A server that falls silent must be noticed within interval + misses × timeout,
// whenever the last sign of life came.
func TestHeartbeat_SilentServer_NoticedWithinBudget(t *testing.T) {
	for offset := time.Duration(0); offset < 2*time.Second; offset += 130 * time.Millisecond {
		bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
			c := NewClient(opt)
			defer c.Close()
			ready(t, c)
			time.Sleep(3*time.Second + offset)
			n.Silence(true)
			began := time.Now()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			assert.LessOrEqual(t, time.Since(began), 3*time.Second)
			assert.Greater(t, time.Since(began), 2*time.Second, "two timeouts must have passed")
		})
	}
}

// A server that merely pauses for less than the misses allow must not be taken
// for dead, and no command may fail.
func TestHeartbeat_ServerPauses_StaysConnected(t *testing.T) {
	for offset := time.Duration(0); offset < time.Second; offset += 170 * time.Millisecond {
		bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
			c := NewClient(opt)
			defer c.Close()
			ready(t, c)
			time.Sleep(offset)
			n.Freeze()
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() { assert.NoError(t, c.Incr(t.Context(), "n").Err()) })
			}
			time.Sleep(1500 * time.Millisecond)
			n.Thaw()
			wg.Wait()
			got, err := c.Get(t.Context(), "n").Int()
			require.NoError(t, err)
			assert.Equal(t, 10, got)
			assert.Equal(t, StateConnected, c.State())
			assert.Zero(t, c.Stats().Outages)
		})
	}
}

// An idle client sends one PING an interval; traffic makes it send none.
func TestHeartbeat_TrafficReplacesPing(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		time.Sleep(10 * time.Second)
		idle := c.Stats().Heartbeats
		assert.InDelta(t, 10, idle, 2)
		for range 100 {
			require.NoError(t, c.Ping(t.Context()).Err())
			time.Sleep(100 * time.Millisecond)
		}
		assert.LessOrEqual(t, c.Stats().Heartbeats-idle, uint64(1))
		assert.NotZero(t, c.Stats().HeartbeatsSkipped)
	})
}

// When the probe's connection alone is broken, and new ones are too, bytes on a
// pooled connection prove that the server lives.
func TestHeartbeat_TrafficOverrulesProbe(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		sub := c.Subscribe(t.Context(), "news") // dialed before the network breaks
		defer sub.Close()
		_, err := sub.Receive(t.Context())
		require.NoError(t, err)
		var got []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				m, err := sub.ReceiveMessage(t.Context())
				if err != nil {
					return
				}
				got = append(got, m.Payload)
			}
		}()
		n.set(func() { // only the connection made last, the subscriber's, stays
			n.silent = true
			for r := range n.relays {
				r.dropped = r.number != n.count
			}
		})
		for range 50 {
			n.srv.Publish("news", "x")
			time.Sleep(100 * time.Millisecond)
		}
		assert.Equal(t, StateConnected, c.State())
		sub.Close()
		<-done
		assert.Len(t, got, 50)
	})
}

func TestHeartbeat_DoesNotShowInHooks(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		seen := &recorder{}
		c.AddHook(seen)
		ready(t, c)
		time.Sleep(10 * time.Second)
		assert.Empty(t, seen.names())
		assert.NotZero(t, c.Stats().Heartbeats)
	})
}

// recorder is a hook that notes the names of commands.
type recorder struct {
	mu   sync.Mutex
	list []string
}

func (r *recorder) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.list...)
}

func (r *recorder) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *recorder) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		r.mu.Lock()
		r.list = append(r.list, cmd.Name())
		r.mu.Unlock()
		return next(ctx, cmd)
	}
}

func (r *recorder) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		r.mu.Lock()
		r.list = append(r.list, "pipeline")
		r.mu.Unlock()
		return next(ctx, cmds)
	}
}

func TestJudge(t *testing.T) {
	timeout := &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}
	for _, tc := range []struct {
		name  string
		err   error
		heard bool
		want  verdict
	}{
		{"PONG", nil, true, alive},
		{"loading", redisError("LOADING Redis is loading the dataset in memory"), true, notReady},
		{"master down", redisError("MASTERDOWN Link with MASTER is down"), true, notReady},
		{"wrong password", redisError("WRONGPASS invalid username-password pair"), true, alive},
		{"no permission", redisError("NOPERM this user has no permissions"), true, alive},
		{"full", io.EOF, true, alive},
		{"garbage", errors.New("redis: can't parse reply"), true, alive},
		{"silence", timeout, false, missed},
		{"context timeout", context.DeadlineExceeded, false, missed},
		{"refused", &wire.Error{Phase: wire.PhaseDial, Err: errRefused}, false, dead},
		{"closed at once", io.EOF, false, dead},
		{"pool exhausted", redis.ErrPoolTimeout, false, unsure},
		{"canceled", context.Canceled, false, unsure},
		{"client closed", redis.ErrClosed, false, unsure},
	} {
		t.Run(tc.name, func(t *testing.T) {
			assert.Equal(t, tc.want, judge(tc.err, tc.heard))
		})
	}
}

type redisError string

func (e redisError) Error() string { return string(e) }
func (redisError) RedisError()     {}

// A subscriber whose PINGs go unanswered is cut and subscribes anew, while the
// server and every other connection are well.
func TestWatchdog_SilentSubscriber_Resubscribes(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		sub := c.Subscribe(t.Context(), "news")
		defer sub.Close()
		messages := sub.Channel()
		synctest.Wait()
		n.Drop()
		began := time.Now()
		for n.srv.Publish("news", "hello") == 0 || !received(messages) {
			time.Sleep(10 * time.Millisecond)
			require.Less(t, time.Since(began), time.Minute, "never resubscribed")
		}
		// go-redis sends its PING after 3s without a message.
		assert.LessOrEqual(t, time.Since(began), 3*time.Second+2*time.Second+time.Second)
		assert.EqualValues(t, 1, c.Stats().SilentCut)
		assert.Zero(t, c.Stats().Outages)
	})
}

func received(ch <-chan *redis.Message) bool {
	synctest.Wait()
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
