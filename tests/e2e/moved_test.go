package e2e

import (
	"context"
	"fmt"
	"net"
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
	"github.com/redial-go/redial/redialtest"
)

// pair is a cluster of two scripted nodes, of which the first can fall silent, and whose
// slots can be said to be the other's. Both can be undone.
type pair struct {
	nodes [2]*redialtest.FakeServer
	moved atomic.Bool // the second one says that it has all slots

	mu   sync.Mutex
	thaw chan struct{} // guarded by mu; closed when the first node speaks; nil: it does
}

// onFirst is a key of the first node.
const onFirst = "b"

func newPair(t *testing.T, hook fakeHook) *pair {
	p := &pair{}
	for i := range p.nodes {
		p.nodes[i] = redialtest.NewFakeServer(t)
	}
	t.Cleanup(p.speak)
	for i, f := range p.nodes {
		f.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
			p.mu.Lock()
			thaw := p.thaw
			p.mu.Unlock()
			if i == 0 && thaw != nil {
				<-thaw
			}
			switch strings.ToLower(args[0]) {
			case "cluster":
				return redialtest.Reply(p.slots())
			case "readonly":
				return redialtest.Reply("+OK\r\n")
			}
			if i == 0 && hook != nil {
				return hook(c, args)
			}
			return redialtest.Handle
		})
	}
	return p
}

// slots is the reply to CLUSTER SLOTS.
func (p *pair) slots() string {
	text := "*2\r\n"
	for i, f := range p.nodes {
		if p.moved.Load() {
			f = p.nodes[1]
		}
		host, port, _ := net.SplitHostPort(f.Addr())
		text += fmt.Sprintf("*3\r\n:%d\r\n:%d\r\n*2\r\n$%d\r\n%s\r\n:%s\r\n", i*8192, i*8192+8191, len(host), host, port)
	}
	return text
}

// hush has the first node say nothing until speak is called.
func (p *pair) hush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.thaw = make(chan struct{})
}

func (p *pair) speak() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.thaw != nil {
		close(p.thaw)
		p.thaw = nil
	}
}

func (p *pair) client(t *testing.T, opts ...redial.Option) *redial.ClusterClient {
	c := redial.NewClusterClient(&redis.ClusterOptions{
		Addrs:       []string{p.nodes[0].Addr(), p.nodes[1].Addr()},
		ReadTimeout: 20 * time.Second,
	}, append([]redial.Option{redial.WithHeartbeat(100*time.Millisecond, 100*time.Millisecond)}, opts...)...)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	testkit.WaitReady(t, c)
	require.NoError(t, c.Set(t.Context(), onFirst, "first", 0).Err())
	first := p.first(t, c)
	var conns []*redis.Conn // for each of what is issued there
	for range 4 {
		conns = append(conns, first.Conn())
		require.NoError(t, conns[len(conns)-1].Ping(t.Context()).Err())
	}
	for _, conn := range conns {
		require.NoError(t, conn.Close())
	}
	return c
}

// first returns the client of the first node.
func (p *pair) first(t *testing.T, c *redial.ClusterClient) (first *redis.Client) {
	t.Helper()
	require.NoError(t, c.ForEachMaster(t.Context(), func(_ context.Context, rdb *redis.Client) error {
		if rdb.Options().Addr == p.nodes[0].Addr() {
			first = rdb
		}
		return nil
	}))
	require.NotNil(t, first)
	return first
}

// stateOf returns the state of a node.
func stateOf(c redial.UniversalClient, addr string) redial.State {
	for _, n := range c.Stats().Nodes {
		if n.Addr == addr {
			return n.State
		}
	}
	return redial.StateClosed
}

// issue runs f while it goes on, and returns where what it returns is received from.
func issue(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// within returns what is received in time.
func within(t *testing.T, done <-chan error, d time.Duration) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(d):
		require.Failf(t, "it goes on", "for longer than %v", d)
		return nil
	}
}

// What is in flight on a silent node ends once another has its slots: what only reads is
// sent to that one, of a write nobody knows.
func TestMoved_SilentNode_EndsWhatIsInFlight(t *testing.T) {
	t.Parallel()
	p := newPair(t, nil)
	c := p.client(t)
	ctx := t.Context()
	require.NoError(t, p.onSecond(ctx))
	p.hush()
	get := issue(func() error {
		v, err := c.Get(ctx, onFirst).Result()
		if err == nil && v != "second" {
			return fmt.Errorf("got %q", v)
		}
		return err
	})
	incr := issue(func() error { return c.Incr(ctx, "{"+onFirst+"}n").Err() })
	pop := issue(func() error { return c.BLPop(ctx, 0, "{"+onFirst+"}l").Err() })
	require.Eventually(t, func() bool { return stateOf(c, p.nodes[0].Addr()) == redial.StateReconnecting }, 3*time.Second, time.Millisecond)
	p.moved.Store(true)
	assert.NoError(t, within(t, get, 3*time.Second))
	assert.ErrorIs(t, within(t, incr, 3*time.Second), redial.ErrOutcomeUnknown)
	assert.ErrorIs(t, within(t, pop, 3*time.Second), redial.ErrOutcomeUnknown)
}

// onSecond has the second node hold the key of the first.
func (p *pair) onSecond(ctx context.Context) error {
	rdb := redis.NewClient(&redis.Options{Addr: p.nodes[1].Addr()})
	defer rdb.Close()
	return rdb.Set(ctx, onFirst, "second", 0).Err()
}

// Nor does the name make a difference by which the caller knows the node: here that is not
// what it is called in the topology.
func TestMoved_NodeOfAnotherName_EndsWhatIsInFlight(t *testing.T) {
	t.Parallel()
	p := newPair(t, nil)
	_, port, err := net.SplitHostPort(p.nodes[0].Addr())
	require.NoError(t, err)
	name := net.JoinHostPort("redis.test", port)
	c := redial.NewClusterClient(&redis.ClusterOptions{
		Addrs: []string{name}, ReadTimeout: 20 * time.Second,
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(addr)
			return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
		},
	}, redial.WithHeartbeat(100*time.Millisecond, 100*time.Millisecond))
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	testkit.WaitReady(t, c)
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, onFirst, "first", 0).Err())
	p.hush()
	incr := issue(func() error { return c.Incr(ctx, "{"+onFirst+"}n").Err() })
	require.Eventually(t, func() bool { return stateOf(c, name) == redial.StateReconnecting }, 3*time.Second, time.Millisecond)
	p.moved.Store(true)
	assert.ErrorIs(t, within(t, incr, 3*time.Second), redial.ErrOutcomeUnknown)
}

// Nor does it make one who tells the topology: a function of the caller's, or, to a client of
// go-redis's own, sentinels.
func TestMoved_ToldByAFunction_EndsWhatIsInFlight(t *testing.T) {
	t.Parallel()
	for _, supervised := range []bool{false, true} {
		t.Run(fmt.Sprint("supervised: ", supervised), func(t *testing.T) {
			t.Parallel()
			p := newPair(t, nil)
			opt := &redis.ClusterOptions{ReadTimeout: 20 * time.Second, ContextTimeoutEnabled: true, ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
				first := p.nodes[0].Addr()
				if p.moved.Load() {
					first = p.nodes[1].Addr()
				}
				return []redis.ClusterSlot{
					{Start: 0, End: 8191, Nodes: []redis.ClusterNode{{Addr: first}}},
					{Start: 8192, End: 16383, Nodes: []redis.ClusterNode{{Addr: p.nodes[1].Addr()}}},
				}, nil
			}}
			beat := redial.WithHeartbeat(100*time.Millisecond, 100*time.Millisecond)
			var c redis.UniversalClient
			var s *redial.Supervisor
			if supervised {
				bare := redis.NewClusterClient(opt)
				var err error
				s, err = redial.Supervise(bare, beat)
				require.NoError(t, err)
				c = bare
				t.Cleanup(func() { assert.NoError(t, s.Close()) })
			} else {
				own := redial.NewClusterClient(opt, beat)
				c, s = own, own.Supervisor
			}
			t.Cleanup(func() { assert.NoError(t, c.Close()) })
			testkit.WaitReady(t, s)
			ctx := t.Context()
			require.NoError(t, c.Set(ctx, onFirst, "first", 0).Err())
			p.hush()
			incr := issue(func() error { return c.Incr(ctx, "{"+onFirst+"}n").Err() })
			require.Eventually(t, func() bool {
				return slices.ContainsFunc(s.Stats().Nodes, func(n redial.NodeStats) bool { return n.State == redial.StateReconnecting })
			}, 3*time.Second, time.Millisecond)
			p.moved.Store(true)
			assert.ErrorIs(t, within(t, incr, 3*time.Second), redial.ErrOutcomeUnknown)
		})
	}
}

// It makes no difference whether the topology or the silence is known first.
func TestMoved_BeforeTheSilenceIsKnown_EndsWhatIsInFlight(t *testing.T) {
	t.Parallel()
	p := newPair(t, nil)
	c := p.client(t, redial.WithHeartbeat(time.Second, time.Second))
	ctx := t.Context()
	p.hush()
	incr := issue(func() error { return c.Incr(ctx, onFirst).Err() })
	time.Sleep(1200 * time.Millisecond) // more than the clock lags by
	p.moved.Store(true)
	c.ReloadState(ctx)
	require.Equal(t, redial.StateConnected, stateOf(c, p.nodes[0].Addr()))
	assert.ErrorIs(t, within(t, incr, 4*time.Second), redial.ErrOutcomeUnknown)
}

// A silent node that has its slots still may answer yet: nothing is given up, and nothing
// runs twice.
func TestMoved_SilentNodeThatHasItsSlots_Answers(t *testing.T) {
	t.Parallel()
	p := newPair(t, nil)
	c := p.client(t)
	ctx := t.Context()
	p.hush()
	incr := issue(func() error { return c.Incr(ctx, "{"+onFirst+"}n").Err() })
	require.Eventually(t, func() bool { return stateOf(c, p.nodes[0].Addr()) == redial.StateReconnecting }, 3*time.Second, time.Millisecond)
	time.Sleep(500 * time.Millisecond) // the topology is asked for some times
	p.speak()
	require.NoError(t, within(t, incr, 3*time.Second))
	assert.Equal(t, 1, p.nodes[0].Executed("incr"))
}

// A node that answers has lost its slots: what it works on it may finish.
func TestMoved_NodeThatAnswers_FinishesWhatItWorksOn(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}), make(chan struct{})
	p := newPair(t, func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "incr" {
			close(begun)
			<-finish
		}
		return redialtest.Handle
	})
	c := p.client(t)
	ctx := t.Context()
	incr := issue(func() error { return c.Incr(ctx, "{"+onFirst+"}n").Err() })
	<-begun
	p.moved.Store(true)
	for range 10 {
		c.ReloadState(ctx)
		time.Sleep(100 * time.Millisecond)
	}
	require.Empty(t, incr)
	close(finish)
	require.NoError(t, within(t, incr, time.Second))
	assert.Equal(t, 1, p.nodes[0].Executed("incr"))
}

// A node that lost its slots long ago, and has answered since, is a node like any other when
// it falls silent.
func TestMoved_LongBeforeTheSilence_IsForgotten(t *testing.T) {
	t.Parallel()
	p := newPair(t, nil)
	c := p.client(t)
	ctx := t.Context()
	node := p.first(t, c) // what is sent to it directly does not go by the topology
	p.moved.Store(true)
	c.ReloadState(ctx)
	time.Sleep(time.Second) // heartbeats are answered
	require.NoError(t, node.Ping(ctx).Err())
	p.hush()
	incr := issue(func() error { return node.Incr(ctx, "{"+onFirst+"}n").Err() })
	require.Eventually(t, func() bool { return stateOf(c, p.nodes[0].Addr()) == redial.StateReconnecting }, 3*time.Second, time.Millisecond)
	time.Sleep(500 * time.Millisecond)
	require.Empty(t, incr)
	p.speak()
	require.NoError(t, within(t, incr, 3*time.Second))
}

// The topology is asked for again while a node is silent, whatever time is left for what
// would set up a connection to it.
func TestMoved_LongAfterTheSilence_IsNoticed(t *testing.T) {
	t.Parallel()
	p := newPair(t, nil)
	c := p.client(t, redial.WithGrace(10*time.Second))
	p.hush()
	set := issue(func() error { return c.Set(t.Context(), onFirst, "again", 0).Err() })
	require.Eventually(t, func() bool { return stateOf(c, p.nodes[0].Addr()) == redial.StateReconnecting }, 3*time.Second, time.Millisecond)
	late := issue(func() error { return c.Set(t.Context(), onFirst, "late", 0).Err() })
	time.Sleep(1500 * time.Millisecond) // several attempts hang by now
	p.moved.Store(true)
	assert.NoError(t, within(t, late, 2*time.Second))
	_ = within(t, set, 2*time.Second)
}

// On servers that stand still, next to others that notice: what is in flight ends when these
// have made up for it, and long before its own time is over.
func TestMoved_Servers(t *testing.T) {
	t.Parallel()
	const patience = 30 * time.Second // of each command
	for name, start := range map[string]func(t *testing.T) (c redial.UniversalClient, victim *redialtest.Server, promoted func()){
		"primary of a cluster": func(t *testing.T) (redial.UniversalClient, *redialtest.Server, func()) {
			cluster := redialtest.StartCluster(t, 3, 1)
			c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs(), ReadTimeout: patience})
			victim := cluster.NodeFor("{x}")
			return c, victim, func() { cluster.Promoted(victim) }
		},
		"replica of a cluster": func(t *testing.T) (redial.UniversalClient, *redialtest.Server, func()) {
			cluster := redialtest.StartCluster(t, 3, 1)
			c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs(), ReadTimeout: patience, ReadOnly: true, RouteRandomly: true})
			return c, cluster.ReplicasOf(cluster.NodeFor("{x}"))[0], nil
		},
		"primary of a failover cluster client": func(t *testing.T) (redial.UniversalClient, *redialtest.Server, func()) {
			f := redialtest.StartFailover(t, 1, 3)
			c := redial.NewFailoverClusterClient(&redis.FailoverOptions{MasterName: f.Name, SentinelAddrs: f.SentinelAddrs(), ReadTimeout: patience})
			return c, f.Servers[0], func() {
				require.Eventually(t, func() bool { return f.Primary(0) != f.Servers[0] }, patience, 10*time.Millisecond)
			}
		},
		"replica of a failover cluster client": func(t *testing.T) (redial.UniversalClient, *redialtest.Server, func()) {
			f := redialtest.StartFailover(t, 1, 3)
			c := redial.NewFailoverClusterClient(&redis.FailoverOptions{
				MasterName: f.Name, SentinelAddrs: f.SentinelAddrs(), ReadTimeout: patience, RouteRandomly: true,
			})
			return c, f.Servers[1], nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, victim, promoted := start(t)
			t.Cleanup(func() { assert.NoError(t, c.Close()) })
			t.Cleanup(victim.Thaw)
			testkit.WaitReady(t, c)
			ctx := t.Context()
			require.NoError(t, c.Set(ctx, "{x}", 1, 0).Err())
			require.Eventually(t, func() bool { // every node that may be read from has a connection to spare
				var wg sync.WaitGroup
				var failed atomic.Int32
				for range 40 {
					wg.Go(func() {
						if c.Get(ctx, "{x}").Err() != nil {
							failed.Add(1) // the replica has not got it yet
						}
					})
				}
				wg.Wait()
				return failed.Load() == 0
			}, 5*time.Second, time.Millisecond)
			victim.Freeze()
			var reads []<-chan error
			for range 8 {
				reads = append(reads, issue(func() error { return c.Get(ctx, "{x}").Err() }))
			}
			incr, pop := make(<-chan error), make(<-chan error)
			if promoted != nil {
				incr = issue(func() error { return c.Incr(ctx, "{x}n").Err() })
				pop = issue(func() error { return c.BLPop(ctx, 0, "{x}l").Err() })
			}
			began := time.Now()
			if promoted != nil {
				promoted() // sentinels that do not agree vote again after seconds
				began = time.Now()
			}
			for _, read := range reads {
				assert.NoError(t, within(t, read, 8*time.Second))
			}
			if promoted != nil {
				if err := within(t, incr, 8*time.Second); err != nil { // else its connection was not set up yet
					assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
				} else {
					assert.Equal(t, "1", c.Get(ctx, "{x}n").Val())
				}
				require.NoError(t, c.RPush(ctx, "{x}l", "v").Err()) // for one that waits at the new primary, as for incr
				if err := within(t, pop, 8*time.Second); err != nil {
					assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
				} else {
					assert.Zero(t, c.LLen(ctx, "{x}l").Val(), "it was taken once")
				}
			}
			took := time.Since(began)
			t.Logf("all was over %v after the others had made up for the server that was frozen", took)
			assert.Less(t, took, 8*time.Second)
		})
	}
}
