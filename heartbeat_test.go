package redial

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
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
		n.DropBut(0, true) // only the connection made last, the subscriber's, stays
		for range 50 {
			n.Redis.Publish("news", "x")
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
		for n.Redis.Publish("news", "hello") == 0 || !received(messages) {
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

// The rows of the table in verdict.go, the one for a server that has moved aside, which
// TestFailover has.

func TestVerdict_AnyReplyToPing_IsAnAnswer(t *testing.T) {
	for _, reply := range []string{"MISCONF cannot save", "NOPERM no right to PING", "ERR unknown command 'ping'", "BUSY Redis is busy running a script"} {
		assert.Equal(t, alive, judge(redisError(reply), true), reply)
	}
}

func TestVerdict_WordsInPlaceOfAnAnswer(t *testing.T) {
	assert.Equal(t, notReady, judgeWords(saidInstead("ERR max number of clients reached")))
	assert.Equal(t, barring, judgeWords(saidInstead("DENIED Redis is running in protected mode")))
}

// New connections fail while established ones answer: the link stays up, commands share
// what there is, and nobody who waits is disturbed.
func TestVerdict_NewConnectionsFail_OldOnesServe(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		opt.PoolSize = 6
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 6)
		var wg sync.WaitGroup
		for i := range 2 {
			queue := "queue" + strconv.Itoa(i)
			wg.Go(func() {
				got, err := c.BLPop(t.Context(), 0, queue).Result()
				assert.NoError(t, err)
				assert.Equal(t, []string{queue, "job"}, got)
			})
		}
		time.Sleep(time.Second)
		n.Refuse()
		sub := c.Subscribe(t.Context(), "news") // wants a connection of its own
		defer sub.Close()
		for range 4 {
			wg.Go(func() {
				for range 500 {
					assert.NoError(t, c.Incr(t.Context(), "n").Err())
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
		time.Sleep(4 * time.Second)
		assert.Equal(t, StateConnected, c.State())
		assert.NotZero(t, c.Stats().DialErrors)
		require.NoError(t, c.RPush(t.Context(), "queue0", "job").Err())
		require.NoError(t, c.RPush(t.Context(), "queue1", "job").Err())
		wg.Wait()
		assert.Zero(t, c.Stats().Outages)
		assert.EqualValues(t, 1, c.Stats().Generation)
	})
}

// A server turns new connections away, and those of the old ones that were asked are dead:
// another that serves is found.
func TestVerdict_TurnedAway_AnOldConnectionServes(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var full atomic.Bool
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if !full.Load() {
				return n.Dial(ctx, network, addr)
			}
			near, far := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			go func() {
				_, _ = io.WriteString(far, "-ERR max number of clients reached\r\n")
				_ = far.Close()
			}()
			return near, nil
		}
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		var held []*redis.Conn
		for range mostAsked + 1 {
			cn := c.Client.Conn()
			require.NoError(t, cn.Ping(t.Context()).Err())
			held = append(held, cn)
			time.Sleep(10 * time.Millisecond) // the first is asked last
		}
		for _, cn := range held {
			require.NoError(t, cn.Close())
		}
		n.DropBut(1, false)
		full.Store(true)
		sub := c.Subscribe(t.Context(), "news") // wants a connection of its own
		defer sub.Close()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		assert.Equal(t, CauseNotReady, c.Stats().Cause)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, c.WaitReady(ctx))
		assert.NoError(t, c.Incr(t.Context(), "n").Err())
		assert.EqualValues(t, 1, c.Stats().Generation)
	})
}

// A server that is frozen for longer than heartbeats may be missed: the gate is shut, and
// whatever is in flight gets its answer, once.
func TestVerdict_Unresponsive_NothingIsGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 12)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := c.BLPop(t.Context(), 0, "queue").Result()
			assert.NoError(t, err)
		})
		time.Sleep(time.Second)
		n.Freeze()
		for range 10 {
			wg.Go(func() { assert.NoError(t, c.Incr(t.Context(), "n").Err()) })
		}
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		assert.Equal(t, CauseHeartbeatMissed, c.Stats().Cause)
		began := time.Now()
		for range 10 { // these wait at the gate
			wg.Go(func() { assert.NoError(t, c.Incr(t.Context(), "n").Err()) })
		}
		time.Sleep(1500 * time.Millisecond)
		n.Thaw()
		require.NoError(t, c.WaitReady(t.Context()))
		assert.Equal(t, 1500*time.Millisecond, time.Since(began), "the first byte is enough")
		require.NoError(t, c.RPush(t.Context(), "queue", "job").Err())
		wg.Wait()
		assert.Equal(t, "20", c.Get(t.Context(), "n").Val())
		assert.EqualValues(t, 1, c.Stats().Generation)
		assert.Zero(t, c.Stats().Unknown)
	})
}

// After the thaw connections prove themselves before they are used.
func TestVerdict_Unresponsive_ConnectionsProveThemselves(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 5)
		n.Silence(true) // and what is silent now remains so
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		n.Silence(false)
		for range 5 {
			began := time.Now()
			require.NoError(t, c.Incr(t.Context(), "n").Err())
			assert.Less(t, time.Since(began), 500*time.Millisecond)
		}
		assert.Zero(t, c.Stats().Unknown)
	})
}

// New connections are refused and nothing answers: the server is gone, at once.
func TestVerdict_Gone(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 3)
		waiting := make(chan error, 1)
		go func() { waiting <- c.BLPop(t.Context(), 0, "queue").Err() }()
		time.Sleep(time.Second)
		began := time.Now()
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		assert.Zero(t, time.Since(began))
		assert.Equal(t, CauseConnectionLost, c.Stats().Cause)
		assert.EqualValues(t, 2, c.Stats().Generation)
		assert.ErrorIs(t, <-waiting, ErrOutcomeUnknown, "its connection was broken")
		assert.Zero(t, time.Since(began))
	})
}

// The host is gone without a word: what owes a reply keeps its own time until dials have
// failed for the detection time, and is then given up where the kernel cannot be asked.
func TestVerdict_CutOff(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 3)
		waiting := make(chan time.Time, 1)
		go func() {
			assert.ErrorIs(t, c.BLPop(t.Context(), 0, "queue").Err(), ErrOutcomeUnknown)
			waiting <- time.Now()
		}()
		time.Sleep(time.Second)
		began := time.Now()
		n.Vanish()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		down := time.Now()
		assert.LessOrEqual(t, down.Sub(began), linkOf(c).cfg.detection())
		released := (<-waiting).Sub(began)
		assert.Greater(t, released, linkOf(c).cfg.detection())
		assert.LessOrEqual(t, released, 2*linkOf(c).cfg.detection()+longest())
	})
}

func TestInquiry(t *testing.T) {
	refused := result{verdict: dead, err: &wire.Error{Phase: wire.PhaseDial, Err: errRefused}, fresh: true}
	ended := result{verdict: dead, err: io.EOF, fresh: true}
	old := result{verdict: dead, err: io.EOF}
	for _, tc := range []struct {
		name    string
		results []result
		missed  int
		answers bool // established connections may
		want    Cause
	}{
		{"nothing known", nil, 1, false, CauseNone},
		{"silence", nil, 2, false, CauseHeartbeatMissed},
		{"the old connection is broken", []result{old, old}, 0, false, CauseNone},
		{"refused", []result{old, refused}, 0, false, CauseConnectionLost},
		{"refused, others may answer", []result{refused}, 0, true, CauseNone},
		{"one new connection broke", []result{ended}, 0, false, CauseNone},
		{"two did", []result{ended, ended}, 0, false, CauseConnectionLost},
		{"a new connection is slow", []result{{verdict: missed, err: errors.New("slow"), fresh: true}}, 0, false, CauseNone},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := inquest{misses: 2, missed: tc.missed}
			for _, r := range tc.results {
				why, _ := q.hears(r)
				require.Equal(t, CauseNone, why)
			}
			q.asked, q.answers = q.fails() != nil, tc.answers
			assert.Equal(t, tc.want, q.concludes())
		})
	}
	why, err := (&inquest{}).hears(result{verdict: notReady, err: errTest})
	assert.Equal(t, CauseNotReady, why)
	assert.Equal(t, errTest, err)
}

// An attempt that hangs does not hold up the next ones, and there are never more than a
// few at a time.
func TestAttempts_Overlap(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var lost atomic.Bool
		var under, most, dials atomic.Int32
		opt.Dialer = lossy(n, &lost, &under, &most, &dials)
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		require.NoError(t, c.Ping(t.Context()).Err())
		lost.Store(true)
		n.Drop()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		ctx := t.Context()
		var wg sync.WaitGroup
		wg.Go(func() { assert.NoError(t, c.Incr(WaitFor(ctx, time.Minute), "n").Err()) })
		time.Sleep(5 * time.Second)
		lost.Store(false)
		began := time.Now()
		wg.Wait()
		assert.LessOrEqual(t, time.Since(began), 150*time.Millisecond)
		synctest.Wait()
		assert.LessOrEqual(t, most.Load(), int32(mostAttempts+1), "one ends while the next begins")
		assert.LessOrEqual(t, dials.Load(), int32(300))
	})
}

// lossy returns a dialer whose dials hang for as long as their contexts while packets are
// lost, and counts them.
func lossy(n *memNet, lost *atomic.Bool, under, most, dials *atomic.Int32) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		if now := under.Add(1); now > most.Load() {
			most.Store(now)
		}
		defer under.Add(-1)
		if lost.Load() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return n.Dial(ctx, network, addr)
	}
}

// What began while packets were lost is lost, and may hang for long: the dial of a pool, or
// what sets its connection up. It must not keep the commands that wait for it when others
// come through again.
func TestAttempts_Heal_ReleasesDialsOfThePool(t *testing.T) {
	const callers, patience = 20, 2 * time.Second
	for name, silence := range map[string]bool{"dials hang": false, "what is set up hangs": true} {
		t.Run(name, func(t *testing.T) {
			var firsts []time.Duration
			for outage := 3 * time.Second; outage <= 7*time.Second; outage += 430 * time.Millisecond {
				bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
					var lost atomic.Bool
					var under, most, dials atomic.Int32
					opt.Dialer = lossy(n, &lost, &under, &most, &dials)
					c := NewClient(opt)
					defer c.Close()
					ready(t, c)
					fill(t, c, callers)
					var mu sync.Mutex
					var healed, first time.Time // guarded by mu
					var wg sync.WaitGroup
					stop := make(chan struct{})
					for i := range callers {
						wg.Go(func() {
							time.Sleep(time.Duration(i) * patience / callers) // so that some begin at any time of the outage
							for !isClosed(stop) {
								ctx, cancel := context.WithTimeout(t.Context(), patience)
								began := time.Now()
								err := c.Get(ctx, "k").Err()
								cancel()
								mu.Lock()
								switch {
								case healed.IsZero():
								case err == redis.Nil && first.IsZero():
									first = time.Now()
								case err != redis.Nil && began.Add(patience).Sub(healed) > 100*time.Millisecond:
									t.Errorf("a call of %v before the heal: %v", healed.Sub(began), err)
								}
								mu.Unlock()
								time.Sleep(33 * time.Millisecond)
							}
						})
					}
					time.Sleep(2 * patience)
					lost.Store(!silence)
					n.Drop()
					if silence {
						n.Silence(true)
					}
					before := dials.Load()
					time.Sleep(outage)
					n.Silence(false)
					lost.Store(false)
					mu.Lock()
					healed = time.Now()
					mu.Unlock()
					time.Sleep(patience)
					close(stop)
					wg.Wait()
					require.False(t, first.IsZero(), "no call succeeded")
					firsts = append(firsts, first.Sub(healed))
					assert.LessOrEqual(t, first.Sub(healed), 150*time.Millisecond)
					assert.LessOrEqual(t, dials.Load()-before, int32(500))
				})
			}
			slices.Sort(firsts)
			t.Log(firsts)
			assert.LessOrEqual(t, firsts[len(firsts)/2], 50*time.Millisecond)
		})
	}
}

// Close ends the dials of the pool, also those that wait for their turn.
func TestAttempts_Close_EndsDialsOfThePool(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var lost atomic.Bool
		var under, most, dials atomic.Int32
		opt.Dialer = lossy(n, &lost, &under, &most, &dials)
		c := NewClient(opt)
		ready(t, c)
		lost.Store(true)
		n.Drop()
		ctx, cancel := context.WithTimeout(t.Context(), wire.LaneTime-time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		for range 3 * wire.FirstLanes {
			wg.Go(func() { assert.Error(t, c.Get(ctx, "k").Err()) })
		}
		wg.Wait()
		require.GreaterOrEqual(t, under.Load(), int32(wire.FirstLanes))
		require.Less(t, under.Load(), int32(3*wire.FirstLanes), "the others wait")
		require.NoError(t, c.Close())
		synctest.Wait()
		assert.Zero(t, under.Load(), "what is left behind the bubble finds")
	})
}

// A server that is far away is dialed once, though nothing is known yet of how far.
func TestAttempts_FarServer(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var dials atomic.Int32
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			time.Sleep(80 * time.Millisecond)
			return n.Dial(ctx, network, addr)
		}
		cfg, err := newConfig(nil)
		require.NoError(t, err)
		c, err := buildClient(opt, newKeeper(cfg, opt.Addr), true, new(alone))
		require.NoError(t, err)
		defer c.Close()
		began := time.Now()
		require.NoError(t, c.Incr(t.Context(), "n").Err())
		assert.Equal(t, 80*time.Millisecond, time.Since(began))
		assert.EqualValues(t, 1, dials.Load())
	})
}

// A command in flight at a Reconnect may finish, but not if the server turns out
// to be gone.
func TestReconnect_ByHand_ServerIsGone_ReleasesCommands(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		var wg sync.WaitGroup
		wg.Go(func() {
			began := time.Now()
			assert.ErrorIs(t, c.BLPop(t.Context(), 0, "queue").Err(), ErrOutcomeUnknown)
			assert.LessOrEqual(t, time.Since(began), time.Second+linkOf(c).cfg.detection()+longest())
		})
		time.Sleep(time.Second)
		n.Vanish()
		c.Reconnect("test")
		wg.Wait()
	})
}
