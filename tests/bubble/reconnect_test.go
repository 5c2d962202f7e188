package bubble

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
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

// Whoever is to name the nodes, and has, may hang from then on. A node that is up again is
// enough: the client is Connected and commands go by what is known, as they do with go-redis.
func TestReconnect_WhoNamesTheNodesHangs(t *testing.T) {
	hangs := func(obeys bool) func(t *testing.T, n *memnet.Net, opt *redis.Options, stuck *atomic.Bool) *redial.ClusterClient {
		return func(t *testing.T, n *memnet.Net, opt *redis.Options, stuck *atomic.Bool) *redial.ClusterClient {
			hold := make(chan struct{})
			t.Cleanup(func() { close(hold) })
			own := clusterOptions(opt)
			name := own.ClusterSlots
			own.ClusterSlots = func(ctx context.Context) ([]redis.ClusterSlot, error) {
				if !stuck.Load() {
					return name(ctx)
				}
				if !obeys {
					ctx = context.Background()
				}
				select {
				case <-hold:
				case <-ctx.Done():
				}
				return nil, context.Cause(ctx)
			}
			return redial.NewClusterClient(own)
		}
	}
	for name, build := range map[string]func(t *testing.T, n *memnet.Net, opt *redis.Options, stuck *atomic.Bool) *redial.ClusterClient{
		"for ever":          hangs(false),
		"until its context": hangs(true),
		"a sentinel": func(t *testing.T, n *memnet.Net, opt *redis.Options, stuck *atomic.Bool) *redial.ClusterClient {
			be := beSentinel(memnet.Inject(n))
			hold := make(chan struct{})
			t.Cleanup(func() { close(hold) })
			n.Redis.Server().SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
				if strings.EqualFold(cmd, "sentinel") && stuck.Load() {
					<-hold
				}
				return be(p, cmd, args...)
			})
			return redial.NewFailoverClusterClient(failoverOptions(opt))
		},
	} {
		for _, after := range []time.Duration{0, 300 * time.Millisecond, 3 * time.Second} {
			t.Run(fmt.Sprint(name, ", after ", after), func(t *testing.T) {
				memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
					var stuck atomic.Bool
					c := build(t, n, opt, &stuck)
					defer c.Close()
					memnet.Ready(t, c)
					require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
					stuck.Store(true)
					n.Kill()
					require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
					get := make(chan error, 1)
					go func() { get <- c.Get(redial.WaitFor(t.Context(), time.Minute), "k").Err() }()
					time.Sleep(after)
					n.Start()
					began := time.Now()
					require.NoError(t, <-get)
					t.Log("served after", time.Since(began))
					assert.Less(t, time.Since(began), 80*time.Millisecond)
				})
			})
		}
	}
}

// So it is in a cluster of which one node answers nothing but PING.
func TestReconnect_NodeThatIsAskedHangs(t *testing.T) {
	for range 4 { // which of them is asked is up to chance
		memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
			other := memnet.New()
			t.Cleanup(other.Close)
			hold := make(chan struct{})
			t.Cleanup(func() { close(hold) })
			var stuck atomic.Bool
			for at, n := range []*memnet.Net{n, other} {
				be := memnet.Inject(n)
				n.Redis.Server().SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
					if !strings.EqualFold(cmd, "cluster") {
						return be.Hook(p, cmd, args...)
					}
					if at == 0 && stuck.Load() {
						<-hold
					}
					p.WriteLen(2)
					for i, ports := range []int{1, 2} {
						p.WriteLen(3)
						p.WriteInt(8192 * i)
						p.WriteInt(8192*i + 8191)
						p.WriteLen(2)
						p.WriteBulk("127.0.0.1")
						p.WriteInt(ports)
					}
					return true
				})
			}
			own := clusterOptions(opt)
			own.ClusterSlots = nil
			own.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == opt.Addr {
					return n.Dial(ctx, network, addr)
				}
				return other.Dial(ctx, network, addr)
			}
			c := redial.NewClusterClient(own)
			defer c.Close()
			memnet.Ready(t, c)
			for i := range 10 {
				require.NoError(t, c.Set(t.Context(), fmt.Sprint(i), 1, 0).Err())
			}
			stuck.Store(true)
			n.Kill()
			other.Kill()
			require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
			time.Sleep(300 * time.Millisecond)
			n.Start()
			other.Start()
			began := time.Now()
			for i := range 10 {
				require.NoError(t, c.Get(redial.WaitFor(t.Context(), time.Minute), fmt.Sprint(i)).Err())
			}
			t.Log("served after", time.Since(began))
			assert.Less(t, time.Since(began), 150*time.Millisecond)
		})
	}
}

// Whoever tells the topology may take longer for that than a PING may, at each question: at
// the start, where go-redis waits for him, and when a node has gone.
func TestReconnect_TopologyIsToldSlowly(t *testing.T) {
	for _, takes := range []time.Duration{700 * time.Millisecond, 2500 * time.Millisecond} {
		for _, by := range []string{"a node", "a function"} {
			for _, k := range []string{"bare", "ClusterClient", "supervised"} {
				t.Run(fmt.Sprint(k, ", ", by, " in ", takes), func(t *testing.T) {
					memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
						other := memnet.New()
						t.Cleanup(other.Close)
						var moved atomic.Bool
						port := func() int {
							time.Sleep(takes)
							if moved.Load() {
								return 2
							}
							return 1
						}
						for _, n := range []*memnet.Net{n, other} {
							tellSlotsBy(n, port)
						}
						own := clusterOptions(opt)
						own.Addrs = []string{"127.0.0.1:1", "127.0.0.1:2"}
						own.ReadTimeout = 10 * time.Second
						own.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
							if strings.HasSuffix(addr, ":1") {
								return n.Dial(ctx, network, addr)
							}
							return other.Dial(ctx, network, addr)
						}
						if own.ClusterSlots = nil; by == "a function" {
							own.ClusterSlots = func(ctx context.Context) ([]redis.ClusterSlot, error) {
								addr := fmt.Sprint("127.0.0.1:", port())
								return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: addr}}}}, ctx.Err()
							}
						}
						var c redis.UniversalClient = redis.NewClusterClient(own)
						switch k {
						case "ClusterClient":
							c = redial.NewClusterClient(own, redial.WithGrace(10*takes))
						case "supervised":
							_, err := redial.Supervise(c, redial.WithGrace(10*takes))
							require.NoError(t, err)
						}
						defer time.Sleep(2 * takes) // what is under way ends
						defer c.Close()
						require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
						if moved.Store(true); k == "bare" { // which does not ask for it then
							return
						}
						n.Kill()
						require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
					})
				})
			}
		}
	}
}

// One that answers everything but what the topology is holds up nobody for longer, however often
// it was late: others tell.
func TestReconnect_OneNeverTells(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		all := []*memnet.Net{n, memnet.New(), memnet.New()}
		ended := make(chan struct{})
		var at atomic.Int32
		at.Store(2)
		tellSlotsBy(n, func() int { <-ended; return 1 })
		for _, other := range all[1:] {
			t.Cleanup(other.Close)
			tellSlotsBy(other, func() int { return int(at.Load()) })
		}
		own := clusterOptions(opt)
		own.Addrs, own.ClusterSlots = []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}, nil
		own.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return all[addr[len(addr)-1]-'1'].Dial(ctx, network, addr)
		}
		c := redial.NewClusterClient(own, redial.WithGrace(time.Minute))
		defer c.Close()
		defer close(ended)
		const rounds = 40
		var took, most time.Duration
		for round := range rounds {
			began := time.Now()
			require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
			took += time.Since(began)
			most = max(most, time.Since(began))
			time.Sleep(3 * time.Second)
			old := at.Load()
			at.Store(5 - old)
			all[old-1].Kill()
			if round > 0 {
				all[5-old-1].Start()
			}
		}
		t.Logf("in the mean %v, at most %v", took/rounds, most)
		assert.Less(t, took/rounds, 1400*time.Millisecond)
	})
}

// A node that nobody uses, as a replica that is not read from, is not connected to, and is no
// reason to call the client Connected while it can serve nothing.
func TestReconnect_NodeThatNobodyUses(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		replica := memnet.New()
		t.Cleanup(replica.Close)
		own := clusterOptions(opt)
		own.ClusterSlots = func(context.Context) ([]redis.ClusterSlot, error) {
			return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: "10.0.0.1:1"}, {Addr: "10.0.0.1:2"}}}}, nil
		}
		own.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "10.0.0.1:2" {
				return replica.Dial(ctx, network, addr)
			}
			return n.Dial(ctx, network, addr)
		}
		c := redial.NewClusterClient(own)
		defer c.Close()
		memnet.Ready(t, c)
		require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
		assert.Zero(t, replica.Dials())
		n.Kill()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.NoError(t, c.WaitForState(ctx, redial.StateReconnecting))
		time.Sleep(time.Second)
		get := make(chan error, 1)
		go func() { get <- c.Get(redial.WaitFor(t.Context(), time.Minute), "k").Err() }()
		time.Sleep(10 * time.Second)
		assert.Equal(t, redial.StateReconnecting, c.State())
		n.Start()
		require.NoError(t, <-get)
		assert.Zero(t, replica.Dials())
	})
}

// Commands that want a client of several nodes make attempts at the nodes eager, whether they
// wait or are refused, and whoever names the nodes.
func TestReconnect_Demand_OfTheWhole(t *testing.T) {
	for name, build := range map[string]func(n *memnet.Net, opt *redis.Options, with redial.Option) redial.UniversalClient{
		"Client": func(_ *memnet.Net, opt *redis.Options, with redial.Option) redial.UniversalClient {
			return redial.NewClient(opt, with)
		},
		"ClusterClient": func(n *memnet.Net, opt *redis.Options, with redial.Option) redial.UniversalClient {
			tellSlots(n)
			own := clusterOptions(opt)
			own.ClusterSlots = nil
			return redial.NewClusterClient(own, with)
		},
		"ClusterClient, named": func(_ *memnet.Net, opt *redis.Options, with redial.Option) redial.UniversalClient {
			return redial.NewClusterClient(clusterOptions(opt), with)
		},
		"failover ClusterClient": func(n *memnet.Net, opt *redis.Options, with redial.Option) redial.UniversalClient {
			n.Redis.Server().SetPreHook(beSentinel(memnet.Inject(n)))
			return redial.NewFailoverClusterClient(failoverOptions(opt), with)
		},
		"Ring": func(_ *memnet.Net, opt *redis.Options, with redial.Option) redial.UniversalClient {
			return redial.NewRing(ringOptions(opt), with)
		},
	} {
		for _, grace := range []time.Duration{time.Minute, 0} {
			t.Run(fmt.Sprint(name, ", grace ", grace), func(t *testing.T) {
				memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
					memnet.Inject(n)
					c := build(n, opt, redial.WithGrace(grace))
					defer c.Close()
					memnet.Ready(t, c)
					require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
					longest, pause := time.Duration(0), time.Millisecond
					for i := range 10 {
						n.Kill()
						require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
						until := time.Now().Add(1900*time.Millisecond + time.Duration(i)*31*time.Millisecond)
						var began time.Time
						time.AfterFunc(time.Until(until), func() { began = time.Now(); n.Start() })
						for c.Set(t.Context(), "k", 1, 0).Err() != nil {
							time.Sleep(pause)
						}
						longest = max(longest, time.Since(began))
						time.Sleep(10 * time.Second)
					}
					t.Log("served after", longest)
					most := 60*time.Millisecond + pause
					if name == "Ring" { // which asks its shards for itself, ten times a second, and acts afterwards
						most += 200 * time.Millisecond
					}
					assert.Less(t, longest, most)
				})
			})
		}
	}
}

// However many nodes there are to look after, none is asked later than it should be, which
// is as much later as its silence would be noticed.
func TestReconnect_HeartbeatsOfManyNodes_NoneIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes, interval = 4, time.Second
		var mu sync.Mutex
		var late []time.Duration           // guarded by mu
		asked := make(map[string]int)      // guarded by mu
		last := make(map[string]time.Time) // guarded by mu
		nets := make(map[string]*memnet.Net)
		var slots []redis.ClusterSlot
		for i := range nodes {
			n, addr := memnet.New(), fmt.Sprintf("10.0.0.%d:6379", i+1) // go-redis takes loopback for the address of whoever told
			t.Cleanup(n.Close)
			memnet.Inject(n)
			n.Redis.Server().SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
				if mu.Lock(); strings.EqualFold(cmd, "ping") {
					if was, ok := last[addr]; ok && time.Since(was) > interval {
						late = append(late, time.Since(was)-interval)
					}
					asked[addr]++
					last[addr] = time.Now()
				}
				mu.Unlock()
				return false
			})
			nets[addr] = n
			slots = append(slots, redis.ClusterSlot{Start: i * 16384 / nodes, End: (i+1)*16384/nodes - 1, Nodes: []redis.ClusterNode{{Addr: addr}}})
		}
		c := redial.NewClusterClient(&redis.ClusterOptions{
			Addrs: slices.Sorted(maps.Keys(nets)), Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
			ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) { return slots, nil },
			Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return nets[addr].Dial(ctx, network, addr)
			},
		})
		defer c.Close()
		memnet.Ready(t, c)
		require.NoError(t, c.ForEachMaster(t.Context(), func(ctx context.Context, node *redis.Client) error { return node.Ping(ctx).Err() }))
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		require.Len(t, asked, nodes)
		for addr, n := range asked {
			assert.Greater(t, n, 50, addr)
		}
		assert.Empty(t, late)
	})
}

// A connection that breaks is replaced, where one is needed, by who needs it: nobody makes
// another beside that to see what has become of the server.
func TestReconnect_OneBroken_DialsAsBare(t *testing.T) {
	for _, idle := range []int{0, 3} {
		t.Run(fmt.Sprintf("%d others are idle", idle), func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				c, f := faulty(t, n, opt)
				require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
				held := make([]*redis.Conn, idle)
				for i := range held {
					held[i] = c.Client.Conn()
					require.NoError(t, held[i].Ping(t.Context()).Err())
				}
				require.NoError(t, c.Get(t.Context(), "k").Err())
				for _, cn := range held {
					require.NoError(t, cn.Close())
				}
				before := n.Dials()
				f.Times("get", 1, memnet.HangUp)
				require.NoError(t, c.Get(t.Context(), "k").Err())
				time.Sleep(10 * time.Second)
				assert.Equal(t, max(1-idle, 0), n.Dials()-before, "dials")
				assert.Zero(t, c.Stats().Outages)
			})
		})
	}
}

// So it is when nobody has been asked whether the server lives, and nobody makes another
// connection: that is no silence of the server's.
func TestReconnect_OneBroken_NobodyAsked_IsNoOutage(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c, f := faulty(t, n, opt, redial.WithHeartbeatMisses(1), redial.WithHeartbeat(time.Second, 20*time.Millisecond))
		for range 20 {
			f.Times("incr", 1, memnet.HangUp)
			assert.Error(t, c.Incr(t.Context(), "k").Err())
			time.Sleep(10 * time.Second)
		}
		assert.Zero(t, c.Stats().Outages)
	})
}

// hungUp is a connection that is closed before anything comes back on it.
type hungUp struct{ net.Conn }

func (hungUp) Read([]byte) (int, error) { return 0, io.EOF }

// Where the connections that are made in place of the broken one break as well, nobody waits
// for yet another: that tells of the server.
func TestReconnect_NewOnesBreak_IsNoticedAtOnce(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		var breaks atomic.Bool
		var dials atomic.Int32
		dial := opt.Dialer
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := dial(ctx, network, addr)
			if err == nil && breaks.Load() {
				dials.Add(1)
				return hungUp{nc}, nil
			}
			return nc, err
		}
		noticed := make(chan int32, 1)
		c, f := faulty(t, n, opt, redial.WithOnStateChange(func(e redial.Event) {
			if e.To == redial.StateReconnecting {
				noticed <- dials.Load()
			}
		}))
		require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
		breaks.Store(true)
		f.Times("get", 1, memnet.HangUp)
		began := time.Now()
		get := make(chan error, 1)
		go func() { get <- c.Get(t.Context(), "k").Err() }()
		assert.LessOrEqual(t, <-noticed, int32(4), "dials")
		assert.LessOrEqual(t, time.Since(began), 30*time.Millisecond)
		breaks.Store(false)
		require.NoError(t, <-get)
	})
}

// A server that answers HELLO, with which go-redis greets it, and all else but PING lives.
func TestReconnect_PingNotServed(t *testing.T) {
	for name, tc := range map[string]struct {
		do     func(*server.Peer)
		within time.Duration
	}{
		"closes":        {memnet.HangUp, 200 * time.Millisecond},
		"never answers": {func(*server.Peer) {}, 2500 * time.Millisecond},
	} {
		for _, version := range []int{2, 3} {
			t.Run(fmt.Sprintf("%s, RESP%d", name, version), func(t *testing.T) {
				memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
					opt.Protocol, opt.MinIdleConns, opt.ConnMaxIdleTime = version, 2, -1
					f := memnet.Inject(n)
					f.Times("ping", 1<<30, tc.do)
					c := redial.NewClient(opt)
					defer c.Close()
					began := time.Now()
					require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
					assert.LessOrEqual(t, time.Since(began), tc.within)
					assert.Equal(t, redial.StateConnected, c.State())
					time.Sleep(time.Second) // the pool is filled
					dials := n.Dials()
					for range 3 {
						time.Sleep(10 * time.Second)
						require.NoError(t, c.Get(t.Context(), "k").Err())
					}
					assert.Zero(t, c.Stats().Outages)
					assert.Equal(t, dials, n.Dials())
					n.Kill()
					time.Sleep(2 * time.Second)
					assert.Equal(t, redial.StateReconnecting, c.State())
					n.Start()
					require.NoError(t, c.Get(t.Context(), "k").Err())
					time.Sleep(time.Second)
					dials = n.Dials()
					time.Sleep(10 * time.Second)
					assert.EqualValues(t, 1, c.Stats().Outages)
					assert.Equal(t, dials, n.Dials())
				})
			})
		}
	}
}
