package redial

import (
	"context"
	"errors"
	"io"
	"net"
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
