package bubble

import (
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit/memnet"
)

func TestReconnect_WithoutDemand_FollowsBackoff(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		policy := func() backoff.BackOff {
			return backoff.NewExponentialBackOff(backoff.WithInitialInterval(100*time.Millisecond),
				backoff.WithMultiplier(2), backoff.WithMaxInterval(time.Second),
				backoff.WithRandomizationFactor(0), backoff.WithMaxElapsedTime(0))
		}
		c := ready(t, opt, redial.WithBackoff(policy))
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
		first := n.Dials() - 1 // the dial of the verification
		time.Sleep(5 * time.Second)
		got := n.Gaps(first)
		want := []time.Duration{100, 200, 400, 800, 1000, 1000, 1000}
		require.GreaterOrEqual(t, len(got), len(want)-1)
		for i, d := range got {
			assert.Equal(t, want[min(i, len(want)-1)]*time.Millisecond, d)
		}
	})
}

// Somebody who waits makes attempts eager, even when a long sleep has begun.
func TestReconnect_Demand_CutsSleepShort(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := ready(t, opt, redial.WithBackoff(func() backoff.BackOff { return backoff.NewConstantBackOff(time.Hour) }))
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
		time.Sleep(time.Second)
		n.Start()
		began := time.Now()
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		assert.Less(t, time.Since(began), 40*time.Millisecond)
	})
}

// The whole outage, with waiters, costs one dial at a time and few of them; when
// the server is back, so are the commands, all of them.
func TestReconnect_Outage_FewDialsNoErrors(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := ready(t, opt)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
		before := n.Dials()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { assert.NoError(t, c.Incr(t.Context(), "n").Err()) })
		}
		time.Sleep(3 * time.Second)
		during := n.Dials() - before
		n.Start()
		began := time.Now()
		wg.Wait()
		assert.Less(t, time.Since(began), 60*time.Millisecond)
		assert.LessOrEqual(t, during, 150)
		assert.GreaterOrEqual(t, during, 60)
		assert.Equal(t, "100", c.Get(t.Context(), "n").Val())
	})
}

// With load but without waiters, long after the grace, attempts are few.
func TestReconnect_SecondMinute_AtMostFiveDialsASecond(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := ready(t, opt)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
		load := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				require.ErrorIs(t, c.Ping(redial.FailFast(t.Context())).Err(), redial.ErrUnavailable)
			}
		}
		load(time.Minute)
		before := n.Dials()
		load(time.Minute)
		assert.LessOrEqual(t, n.Dials()-before, 5*60)
		assert.GreaterOrEqual(t, n.Dials()-before, 30)
	})
}

func TestReconnect_ByHand_RetiresEveryConnection(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		var events []redial.Event
		c := ready(t, opt, redial.WithOnStateChange(func(e redial.Event) { events = append(events, e) }))
		held := c.Conn()
		defer held.Close()
		require.NoError(t, held.Ping(t.Context()).Err())
		require.NoError(t, c.Ping(t.Context()).Err())
		before := n.Dials()
		c.Reconnect("the name points elsewhere")
		require.NoError(t, c.Ping(t.Context()).Err())
		synctest.Wait()
		require.NoError(t, c.WaitReady(t.Context()))
		require.NoError(t, c.Ping(t.Context()).Err())
		require.NoError(t, c.Ping(t.Context()).Err())
		assert.LessOrEqual(t, n.Dials()-before, 3, "one for the probe, one for the pool, one ahead of it")
		require.ErrorIs(t, held.Ping(t.Context()).Err(), redial.ErrUnavailable, "a held connection cannot be replaced")
		synctest.Wait()
		require.Len(t, events, 3)
		assert.Equal(t, "the name points elsewhere", events[1].Reason)
		assert.Equal(t, redial.StateReconnecting, events[1].To)
		assert.Equal(t, redial.StateConnected, events[2].To)
	})
}

// What is in flight when the connections are retired by hand may finish.
func TestReconnect_ByHand_LetsCommandsFinish(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := ready(t, opt)
		var wg sync.WaitGroup
		wg.Go(func() {
			got, err := c.BLPop(t.Context(), time.Minute, "queue").Result()
			assert.NoError(t, err)
			assert.Equal(t, []string{"queue", "job"}, got)
		})
		time.Sleep(time.Second)
		c.Reconnect("test")
		time.Sleep(time.Second)
		require.NoError(t, c.RPush(t.Context(), "queue", "job").Err())
		wg.Wait()
	})
}

// When Reconnect has returned, nothing uses an old connection any more: what is
// opened from then on stays open.
func TestReconnect_ByHand_HasHappenedWhenItReturns(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := ready(t, opt)
		for range 100 {
			before := c.Stats().Generation
			c.Reconnect("test")
			assert.Equal(t, before+1, c.Stats().Generation)
			sub := c.Subscribe(t.Context(), "news")
			_, err := sub.Receive(t.Context())
			require.NoError(t, err)
			_, err = sub.ReceiveTimeout(t.Context(), 10*time.Millisecond)
			var ne net.Error
			require.ErrorAs(t, err, &ne)
			require.True(t, ne.Timeout(), "%v", err)
			require.NoError(t, sub.Close())
			require.NoError(t, c.WaitReady(t.Context()))
		}
	})
}

// Ten outages in a row, under load: the client comes back from each.
func TestReconnect_TenTimes(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := ready(t, opt)
		sum := 0
		for i := range 10 {
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
			time.Sleep(time.Duration(i) * 300 * time.Millisecond)
			n.Start()
			for range 10 {
				require.NoError(t, c.Incr(t.Context(), "n").Err())
				sum++
			}
		}
		got, err := c.Get(t.Context(), "n").Int()
		require.NoError(t, err)
		assert.Equal(t, sum, got)
		assert.EqualValues(t, 10, c.Stats().Outages)
		assert.EqualValues(t, 11, c.Stats().Generation)
	})
}
