package redial

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/wire"
)

// gaps returns the times between the dials from the first on.
func (n *memNet) gaps(first int) []time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	var gaps []time.Duration
	for i := first + 1; i < len(n.dials); i++ {
		gaps = append(gaps, n.dials[i].Sub(n.dials[i-1]))
	}
	return gaps
}

func TestReconnect_WithoutDemand_FollowsBackoff(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		policy := func() backoff.BackOff {
			return backoff.NewExponentialBackOff(backoff.WithInitialInterval(100*time.Millisecond),
				backoff.WithMultiplier(2), backoff.WithMaxInterval(time.Second),
				backoff.WithRandomizationFactor(0), backoff.WithMaxElapsedTime(0))
		}
		c := NewClient(opt, WithBackoff(policy))
		defer c.Close()
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		first := n.Dials() - 1 // the dial of the verification
		time.Sleep(5 * time.Second)
		got := n.gaps(first)
		want := []time.Duration{100, 200, 400, 800, 1000, 1000, 1000}
		require.GreaterOrEqual(t, len(got), len(want)-1)
		for i, d := range got {
			assert.Equal(t, want[min(i, len(want)-1)]*time.Millisecond, d)
		}
	})
}

// A policy that stops, or that returns nonsense, must neither end the attempts
// nor make them spin.
func TestReconnect_NeverGivesUp_NeverSpins(t *testing.T) {
	for name, policy := range map[string]backoff.BackOff{
		"stop":     &backoff.StopBackOff{},
		"zero":     &backoff.ZeroBackOff{},
		"negative": backoff.NewConstantBackOff(-time.Hour),
		"limited":  backoff.WithMaxRetries(backoff.NewConstantBackOff(50*time.Millisecond), 2),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
				n.Kill()
				c := NewClient(opt, WithBackoff(func() backoff.BackOff { return policy }))
				defer c.Close()
				time.Sleep(10 * time.Second)
				assert.GreaterOrEqual(t, n.Dials(), 6)
				assert.LessOrEqual(t, n.Dials(), int(10*time.Second/minDelay)+1)
				n.Start()
				require.NoError(t, c.WaitReady(t.Context()))
			})
		})
	}
}

// Every delay is randomized, the first and the capped ones too, and none is
// longer than a client may sleep through.
func TestReconnect_DefaultSchedule_IsJitteredAndBounded(t *testing.T) {
	first, capped := map[time.Duration]bool{}, map[time.Duration]bool{}
	for range 200 {
		p := defaultBackOff()
		p.Reset()
		first[nextDelay(p)] = true
		for range 100 {
			d := nextDelay(p)
			require.Positive(t, d)
			require.Less(t, d, 2*time.Second)
		}
		capped[nextDelay(p)] = true
	}
	assert.Greater(t, len(first), 150)
	assert.Greater(t, len(capped), 150)
	for range 1000 {
		d := wire.Eager(time.Duration(rand.Int64N(int64(time.Second))))
		require.InDelta(t, wire.EagerDelay, d, float64(wire.EagerDelay)*wire.EagerJitter+1)
	}
	assert.InDelta(t, time.Minute/wire.EagerDivisor, wire.Eager(time.Minute), float64(time.Minute/wire.EagerDivisor)*wire.EagerJitter+1)
}

// Somebody who waits makes attempts eager, even when a long sleep has begun.
func TestReconnect_Demand_CutsSleepShort(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt, WithBackoff(func() backoff.BackOff { return backoff.NewConstantBackOff(time.Hour) }))
		defer c.Close()
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
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
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
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
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		load := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				require.ErrorIs(t, c.Ping(FailFast(t.Context())).Err(), ErrUnavailable)
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
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var events []Event
		c := NewClient(opt, WithOnStateChange(func(e Event) { events = append(events, e) }))
		defer c.Close()
		ready(t, c)
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
		require.ErrorIs(t, held.Ping(t.Context()).Err(), ErrUnavailable, "a held connection cannot be replaced")
		synctest.Wait()
		require.Len(t, events, 3)
		assert.Equal(t, "the name points elsewhere", events[1].Reason)
		assert.Equal(t, StateReconnecting, events[1].To)
		assert.Equal(t, StateConnected, events[2].To)
	})
}

// What is in flight when the connections are retired by hand may finish.
func TestReconnect_ByHand_LetsCommandsFinish(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
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
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
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

// Ten outages in a row, under load: the client comes back from each.
func TestReconnect_TenTimes(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		sum := 0
		for i := range 10 {
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
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
