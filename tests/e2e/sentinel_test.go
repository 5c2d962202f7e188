package e2e

import (
	"context"
	"errors"
	"slices"
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

func newFailover(t *testing.T, f *redialtest.Failover, opts ...redial.Option) *redial.Client {
	t.Helper()
	c := redial.NewFailoverClient(&redis.FailoverOptions{MasterName: f.Name, SentinelAddrs: f.SentinelAddrs()}, opts...)
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, c.WaitReady(ctx))
	return c
}

func TestFailover_MasterIsKilled(t *testing.T) {
	t.Parallel()
	f := redialtest.StartFailover(t, 2, 3)
	c := newFailover(t, f)
	l := testkit.StartLoad(t, c, 20)
	l.Flows(t, time.Second)
	old := f.Servers[0]
	old.Kill()
	elected := elect(t, f, old)
	l.Flows(t, time.Second)
	t.Logf("first success %v after the new primary was elected", time.Duration(l.LastSuccess.Load()-elected.UnixNano()))
	time.Sleep(300 * time.Millisecond)
	require.Eventually(t, func() bool { return f.Primary(0) != old }, 10*time.Second, 10*time.Millisecond, "any of them may have elected it")
	l.CheckSince(t, f.Primary(0).Addr(), elected)
	t.Log(c.Stats())
}

// elect waits until some sentinel names another primary than old.
func elect(t *testing.T, f *redialtest.Failover, old *redialtest.Server) time.Time {
	t.Helper()
	for giveUp := time.Now().Add(20 * time.Second); time.Now().Before(giveUp); {
		for i := range f.Sentinels {
			if f.Primary(i) != old {
				return time.Now()
			}
		}
	}
	assert.Fail(t, "no other primary was elected")
	return time.Time{}
}

// The sentinel that the client listens to falls silent together with the master.
func TestFailover_SentinelAndMasterFallSilent(t *testing.T) {
	t.Parallel()
	f := redialtest.StartFailover(t, 2, 3)
	c := newFailover(t, f)
	l := testkit.StartLoad(t, c, 10)
	l.Flows(t, time.Second)
	inUse := -1
	require.Eventually(t, func() bool {
		for i, s := range f.Sentinels {
			if strings.Contains(s.Do("CLIENT", "LIST", "TYPE", "pubsub").(string), "sub=1 ") {
				inUse = i
			}
		}
		return inUse >= 0
	}, 5*time.Second, 10*time.Millisecond)
	old := f.Servers[0]
	silent := f.Sentinels[inUse]
	began := time.Now()
	old.Freeze()
	silent.Freeze()
	f.Sentinels = slices.Delete(slices.Clone(f.Sentinels), inUse, inUse+1)
	elected := elect(t, f, old)
	l.Flows(t, 2*time.Second)
	first := time.Unix(0, l.LastSuccess.Load())
	t.Logf("elected after %v, first success %v later", elected.Sub(began), first.Sub(elected))
	time.Sleep(300 * time.Millisecond)
	l.CheckSince(t, f.Primary(0).Addr(), elected)
	silent.Thaw()
	old.Thaw()
}

// The primary is moved on purpose and lives on: commands, blocked ones and
// subscriptions must not stay with it.
func TestFailover_MasterIsMoved(t *testing.T) {
	t.Parallel()
	f := redialtest.StartFailover(t, 1, 3)
	c := newFailover(t, f)
	ctx := t.Context()
	require.NoError(t, c.Ping(ctx).Err())
	sub := c.Subscribe(ctx, "news")
	defer sub.Close()
	_, err := sub.Receive(ctx)
	require.NoError(t, err)
	messages := sub.Channel()
	blocked := make(chan error, 1)
	go func() { blocked <- c.BLPop(ctx, 0, "queue").Err() }()
	l := testkit.StartLoad(t, c, 10)
	l.Flows(t, time.Second)
	old := f.Servers[0]
	for i := range f.Sentinels { // all must know the replica well enough
		require.Eventually(t, func() bool {
			return old == f.Primary(i)
		}, 5*time.Second, 10*time.Millisecond)
	}
	require.Equal(t, "OK", f.Sentinels[0].Do("SENTINEL", "FAILOVER", f.Name))
	elected := elect(t, f, old)
	next := f.Servers[1]
	require.Eventually(t, func() bool {
		n := next.Do("PUBSUB", "NUMSUB", "news")
		return numSub(n) == 1
	}, 5*time.Second, time.Millisecond)
	t.Logf("subscribed to the new primary %v after it was named", time.Since(elected))
	next.Do("PUBLISH", "news", "hello")
	assert.Equal(t, "hello", (<-messages).Payload)
	assert.ErrorIs(t, <-blocked, redial.ErrOutcomeUnknown)
	l.Flows(t, time.Second)
	before := time.Now()
	l.Stop()
	require.NoError(t, c.Set(ctx, "where", "new", 0).Err())
	assert.Equal(t, "new", next.Do("GET", "where"))
	assert.Less(t, time.Since(before), time.Second)
	assert.Nil(t, l.Other.Load())
	t.Log(c.Stats().Reason)
}

// numSub reads the reply of PUBSUB NUMSUB for one channel.
func numSub(reply any) (n int64) {
	switch r := reply.(type) {
	case []any:
		n, _ = r[1].(int64)
	case map[any]any:
		for _, v := range r {
			n, _ = v.(int64)
		}
	}
	return n
}

// A write that was under way when the master fell silent is not sent to the next one.
func TestFailover_NothingRunsOnBothMasters(t *testing.T) {
	t.Parallel()
	f := redialtest.StartFailover(t, 1, 3)
	c := newFailover(t, f, redial.WithGrace(30*time.Second))
	ctx := t.Context()
	pools.Fill(t, c, 10)
	old := f.Servers[0]
	old.Freeze()
	var pushed, unknown atomic.Int64
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			switch err := c.LPush(ctx, "list", "x").Err(); {
			case err == nil:
				pushed.Add(1)
			case errors.Is(err, redial.ErrOutcomeUnknown):
				unknown.Add(1)
			default:
				t.Errorf("%v", err)
			}
		})
	}
	elect(t, f, old)
	wg.Wait()
	got, err := c.LLen(ctx, "list").Result()
	require.NoError(t, err)
	t.Logf("%d pushed, %d unknown, %d on the new master", pushed.Load(), unknown.Load(), got)
	assert.Equal(t, pushed.Load(), got)
	assert.NotZero(t, unknown.Load())
	old.Thaw()
}

func TestFailover_Close_LeavesNothing(t *testing.T) {
	f := redialtest.StartFailover(t, 1, 3)
	redialtest.Leaks(t)
	for range 5 {
		c := newFailover(t, f)
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		began := time.Now()
		require.NoError(t, c.Close())
		assert.Less(t, time.Since(began), 100*time.Millisecond)
	}
	for _, s := range f.Sentinels {
		assert.NotContains(t, s.Do("CLIENT", "LIST", "TYPE", "pubsub"), "sub=1 ", "a subscription is left")
	}
}

func TestFailover_ReplicaOnly(t *testing.T) {
	t.Parallel()
	f := redialtest.StartFailover(t, 2, 3)
	c := redial.NewFailoverClient(&redis.FailoverOptions{MasterName: f.Name, SentinelAddrs: f.SentinelAddrs(), ReplicaOnly: true})
	defer c.Close()
	f.Servers[0].Do("SET", "k", "v")
	for range 2 {
		require.Eventually(t, func() bool { return c.Get(t.Context(), "k").Val() == "v" }, 5*time.Second, 10*time.Millisecond)
		role, err := c.Do(t.Context(), "ROLE").Slice()
		require.NoError(t, err)
		assert.Equal(t, "slave", role[0])
		for _, s := range f.Servers[1:] { // the one in use
			if strings.Contains(c.Stats().Reason, s.Addr()) {
				s.Kill()
			}
		}
		time.Sleep(time.Second) // until the sentinels know
	}
}

// A client of a replica cannot write, however long it waits, and its reads do not suffer from
// who tries to.
func TestFailover_ReplicaOnly_Writes(t *testing.T) {
	t.Parallel()
	f := redialtest.StartFailover(t, 1, 3)
	f.Servers[0].Do("SET", "k", "v")
	opt := func() *redis.FailoverOptions {
		return &redis.FailoverOptions{MasterName: f.Name, SentinelAddrs: f.SentinelAddrs(), ReplicaOnly: true, MaxRetries: -1}
	}
	bare := redis.NewFailoverClient(opt())
	defer bare.Close()
	c := redial.NewFailoverClient(opt())
	defer c.Close()
	ctx := t.Context()
	for _, rdb := range []redis.UniversalClient{bare, c} {
		require.Eventually(t, func() bool {
			role, err := rdb.Do(ctx, "ROLE").Slice()
			return err == nil && role[0] == "slave" && rdb.Get(ctx, "k").Val() == "v"
		}, 10*time.Second, 10*time.Millisecond)
	}
	ways := map[string]func(rdb redis.UniversalClient) ([]redis.Cmder, error){
		"command":     func(rdb redis.UniversalClient) ([]redis.Cmder, error) { return nil, rdb.Set(ctx, "k", "w", 0).Err() },
		"transaction": func(rdb redis.UniversalClient) ([]redis.Cmder, error) { return mixed(ctx, rdb.TxPipelined) },
		"pipeline":    func(rdb redis.UniversalClient) ([]redis.Cmder, error) { return mixed(ctx, rdb.Pipelined) },
	}
	conn := c.Conn() // stays open only if nothing is given up
	defer conn.Close()
	id := conn.ClientID(ctx).Val()
	require.NotZero(t, id)
	for name, way := range ways {
		wantEach, want := way(bare)
		require.Error(t, want, name)
		before := time.Now()
		each, err := way(c)
		assert.Less(t, time.Since(before), 2*time.Second, name)
		assert.Equal(t, want, err, name)
		require.Len(t, each, len(wantEach))
		for i, cmd := range each {
			assert.Equal(t, wantEach[i].Err(), cmd.Err(), "%s: %v", name, cmd)
		}
		assert.True(t, redial.SafeToRetry(err), name)
	}
	assert.Equal(t, id, conn.ClientID(ctx).Val(), "connections were given up")
	assert.Equal(t, redial.StateConnected, c.State())
}

// mixed has a batch of reads and a write run.
func mixed(ctx context.Context, exec func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error)) ([]redis.Cmder, error) {
	return exec(ctx, func(p redis.Pipeliner) error {
		p.Get(ctx, "k")
		p.Set(ctx, "k", "w", 0)
		p.Get(ctx, "k")
		return nil
	})
}

func TestFailover_UnknownMaster(t *testing.T) {
	t.Parallel()
	f := redialtest.StartFailover(t, 0, 1)
	c := redial.NewFailoverClient(&redis.FailoverOptions{MasterName: "nobody", SentinelAddrs: f.SentinelAddrs()})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := c.Get(ctx, "k").Err()
	assert.ErrorIs(t, err, redial.ErrUnavailable)
	assert.ErrorContains(t, err, `sentinel knows no master named "nobody"`)
}
