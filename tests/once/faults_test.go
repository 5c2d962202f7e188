package once

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/redialtest"
)

// orders are counters that are incremented once each, or three by a pipeline, or thrice by a
// transaction, by callers who come back until they have a reply.
type orders struct {
	prefix string
	made   atomic.Int64
	again  atomic.Int64 // calls after the first of an order
	wg     sync.WaitGroup
	quit   chan struct{}

	mu   sync.Mutex
	done map[string]order // those whose reply was there
}

// order is one that was placed.
type order struct {
	at   time.Time // when the reply was there
	runs func(ctx context.Context, c redis.UniversalClient, key string) (int64, error)
}

// startOrders has goroutines place orders with the client that dial returns, and with another
// one after an error.
func startOrders(t *testing.T, prefix string, goroutines int, dial func() redis.UniversalClient) *orders {
	o := &orders{prefix: prefix, quit: make(chan struct{}), done: make(map[string]order)}
	for range goroutines {
		o.wg.Go(func() {
			c := dial()
			defer func() { _ = c.Close() }()
			for !quitting(o.quit) {
				n := o.made.Add(1)
				shape := []string{"INCR", "pipeline", "transaction"}[n%3]
				key := fmt.Sprint(prefix, n)
				ctx := redial.Once(context.Background(), key)
				work := onceWorks[shape]
				if shape == "pipeline" {
					work = onceThree
				}
				for began := time.Now(); ; o.again.Add(1) {
					run, err := work.do(ctx, c, key)
					if err == nil {
						assert.Equal(t, "1", run, key)
						o.mu.Lock()
						o.done[key] = order{time.Now(), work.runs}
						o.mu.Unlock()
						break
					}
					if shape == "pipeline" && redis.IsTryAgainError(err) { // while a slot moves, when one behind it has run
						assert.NotEqual(t, errors.Is(err, redial.ErrOutcomeUnknown), redial.SafeToRetry(err), "which it may have itself, before")
						continue
					}
					if !errors.Is(err, redial.ErrOutcomeUnknown) && !errors.Is(err, redial.ErrUnavailable) || time.Since(began) > time.Minute {
						t.Errorf("%s: %v", key, err)
						return
					}
					_ = c.Close() // the process of the caller has died
					c = dial()
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	t.Cleanup(o.stop)
	return o
}

// onceThree is a pipeline for three counters, in a cluster on several nodes.
var onceThree = onceWork{
	func(ctx context.Context, c redis.UniversalClient, key string) (string, error) {
		cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := range 3 {
				p.Incr(ctx, fmt.Sprint(key, ":", i))
			}
			return nil
		})
		for _, cmd := range cmds {
			if err == nil && cmd.(*redis.IntCmd).Val() != 1 {
				return cmd.String(), nil
			}
		}
		return "1", err
	},
	func(ctx context.Context, c redis.UniversalClient, key string) (int64, error) {
		for i := range 3 {
			if n, err := c.Get(ctx, fmt.Sprint(key, ":", i)).Int64(); err != nil || n != 1 {
				return n, err
			}
		}
		return 1, nil
	},
}

func quitting(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func (o *orders) stop() {
	if !quitting(o.quit) {
		close(o.quit)
	}
	o.wg.Wait()
}

// count returns how many were acknowledged so far.
func (o *orders) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.done)
}

// check compares the books with what there is. Orders that were acknowledged between the two times may
// be lost, by asynchronous replication.
func (o *orders) check(t *testing.T, c redis.UniversalClient, from, to time.Time) {
	t.Helper()
	const enough = 30
	assert.Eventually(t, func() bool { return o.count() > enough }, time.Minute, 10*time.Millisecond, "a disk may be busy")
	o.stop()
	lost := 0
	for key, of := range o.done {
		n, err := of.runs(redial.WaitFor(context.Background(), time.Minute), c, key)
		switch {
		case errors.Is(err, redis.Nil) && of.at.After(from) && of.at.Before(to):
			lost++
		case err != nil || n != 1:
			t.Errorf("%s ran %d times: %v, acknowledged at %v", key, n, err, of.at)
		}
	}
	t.Logf("%d orders, %d calls again, %d lost by replication", len(o.done), o.again.Load(), lost)
	require.Greater(t, len(o.done), enough)
}

// lossy is a network on which some replies to INCR are lost, when the server has given them.
type lossy struct {
	requests, lost atomic.Int64

	mu   sync.Mutex
	from string          // where replies are held that are to be lost, at most lossyHolds; guarded by mu
	held []chan struct{} // for each that is, closed when it is lost; guarded by mu
}

const (
	lossyEvery = 20 // requests, of which one has its reply lost
	lossyHolds = 3  // fewer than there are goroutines
)

func newLossy(t *testing.T) *lossy {
	l := &lossy{}
	t.Cleanup(l.release)
	return l
}

func (l *lossy) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	cn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &lossyConn{Conn: cn, of: l, addr: addr, closed: make(chan struct{})}, nil
}

// hold has some replies of s, which it has given by now, lost no sooner than with release.
func (l *lossy) hold(t *testing.T, s *redialtest.Server) {
	t.Helper()
	l.mu.Lock()
	l.from = s.Addr()
	l.mu.Unlock()
	require.Eventually(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.held) > 0
	}, 10*time.Second, time.Millisecond)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from = ""
}

func (l *lossy) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ch := range l.held {
		close(ch)
	}
	l.held = nil
}

// held returns a channel that is closed when a reply from addr is to be lost, nil: now.
func (l *lossy) until(addr string) chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if addr != l.from || len(l.held) == lossyHolds {
		return nil
	}
	ch := make(chan struct{})
	l.held = append(l.held, ch)
	return ch
}

func (l *lossy) check(t *testing.T) {
	t.Logf("%d of %d replies lost", l.lost.Load(), l.requests.Load())
	assert.GreaterOrEqual(t, l.lost.Load(), int64(lossyHolds))
}

type lossyConn struct {
	net.Conn
	of     *lossy
	addr   string
	lose   atomic.Bool
	once   sync.Once
	closed chan struct{}
}

func (c *lossyConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("\r\nincr\r\n")) && c.of.requests.Add(1)%lossyEvery == 0 {
		c.lose.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *lossyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil || !c.lose.Load() {
		return n, err
	}
	if ch := c.of.until(c.addr); ch != nil {
		select {
		case <-ch:
		case <-c.closed:
		}
	}
	c.of.lost.Add(1)
	_ = c.Close()
	return 0, syscall.ECONNRESET
}

func (c *lossyConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// fence returns when a replica has all that s has done so far.
func fence(t *testing.T, s *redialtest.Server) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	cn := c.Conn()
	defer cn.Close()
	require.NoError(t, cn.Publish(t.Context(), "fence", "x").Err())
	n, err := cn.Wait(t.Context(), 1, 10*time.Second).Result()
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
}

// The server is killed with kill -9 and restarted, replies are cut, and callers that fail come back as another process.
func TestOnce_ServerIsKilled(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t, "--appendonly", "yes", "--appendfsync", "always")
	p := redialtest.NewProxy(t, s.Addr())
	o := startOrders(t, "order:", 10, func() redis.UniversalClient {
		return redial.NewClient(&redis.Options{Addr: p.Addr()}, redial.WithGrace(200*time.Millisecond))
	})
	p.Match("incr")
	for range 3 {
		time.Sleep(300 * time.Millisecond)
		p.CutAfterRequest(10)
		time.Sleep(100 * time.Millisecond)
		s.Kill()
		time.Sleep(400 * time.Millisecond)
		s.Start()
	}
	time.Sleep(300 * time.Millisecond)
	p.Restore()
	bare := redis.NewClient(&redis.Options{Addr: s.Addr()})
	defer bare.Close()
	o.check(t, bare, time.Time{}, time.Time{})
	assert.NotZero(t, o.again.Load(), "nobody had to come back")
}

// A planned failover loses nothing, and runs nothing twice, also when the reply is lost of what
// ran before it. A primary that is killed loses what it had not replicated yet, and the records with it.
func TestOnce_ClusterFailover(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 3, 1)
	c := testkit.NewCluster(t, cluster)
	l := newLossy(t)
	o := startOrders(t, "order:", 10, func() redis.UniversalClient {
		return redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs(), Dialer: l.dial}, redial.WithGrace(20*time.Second))
	})
	time.Sleep(300 * time.Millisecond)
	old := cluster.NodeFor("order:1")
	l.hold(t, old)
	cluster.Failover(cluster.ReplicasOf(old)[0])
	l.release()
	time.Sleep(500 * time.Millisecond)
	other := slices.IndexFunc(cluster.Nodes[:3], func(s *redialtest.Server) bool { return s != old })
	old = cluster.PrimaryOf(cluster.Nodes[other])
	l.hold(t, old)
	fenced := time.Now()
	fence(t, old)
	old.Kill()
	require.NotEqual(t, old, cluster.Promoted(old))
	promoted := time.Now()
	l.release()
	time.Sleep(500 * time.Millisecond)
	o.check(t, c, fenced, promoted)
	l.check(t)
}

func TestOnce_SentinelFailover(t *testing.T) {
	t.Parallel()
	d := redialtest.StartFailover(t, 1, 3)
	opt := &redis.FailoverOptions{MasterName: d.Name, SentinelAddrs: d.SentinelAddrs()}
	l := newLossy(t)
	o := startOrders(t, "order:", 10, func() redis.UniversalClient {
		opt := *opt
		opt.Dialer = l.dial
		return redial.NewFailoverClient(&opt, redial.WithGrace(20*time.Second))
	})
	time.Sleep(500 * time.Millisecond)
	old := d.Servers[0]
	l.hold(t, old)
	fenced := time.Now()
	fence(t, old)
	old.Kill()
	require.Eventually(t, func() bool { s := d.Primary(0); return s != nil && s != old }, 20*time.Second, 20*time.Millisecond)
	promoted := time.Now()
	l.release()
	time.Sleep(500 * time.Millisecond)
	c := redial.NewFailoverClient(opt)
	defer c.Close()
	o.check(t, c, fenced, promoted)
	l.check(t)
}

// A slot moves to another node under commands for it, records and all.
func TestOnce_SlotMoves(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 2, 0)
	c := testkit.NewCluster(t, cluster)
	const tag = "{tag}"
	slot := c.ClusterKeySlot(t.Context(), tag).Val()
	from := cluster.NodeFor(tag)
	to := cluster.Nodes[0]
	if to == from {
		to = cluster.Nodes[1]
	}
	l := newLossy(t)
	o := startOrders(t, tag+"order:", 5, func() redis.UniversalClient {
		return redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs(), Dialer: l.dial}, redial.WithGrace(20*time.Second))
	})
	time.Sleep(200 * time.Millisecond)
	l.hold(t, from)
	ids := make(map[*redialtest.Server]any)
	for _, s := range []*redialtest.Server{from, to} {
		ids[s] = s.Do("CLUSTER", "MYID")
	}
	require.Equal(t, "OK", to.Do("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[from]))
	require.Equal(t, "OK", from.Do("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to]))
	host, port, err := net.SplitHostPort(to.Addr())
	require.NoError(t, err)
	for {
		keys, _ := from.Do("CLUSTER", "GETKEYSINSLOT", slot, 10).([]any)
		if len(keys) == 0 {
			break
		}
		args := append([]any{"MIGRATE", host, port, "", 0, 5000, "KEYS"}, keys...)
		if reply := from.Do(args...); reply != "OK" && reply != "NOKEY" {
			t.Fatal(reply)
		}
	}
	require.Equal(t, "OK", to.Do("CLUSTER", "SETSLOT", slot, "NODE", ids[to]))
	require.Equal(t, "OK", from.Do("CLUSTER", "SETSLOT", slot, "NODE", ids[to]))
	l.release()
	time.Sleep(300 * time.Millisecond)
	o.check(t, c, time.Time{}, time.Time{})
	l.check(t)
}

// Every shape on clients of several nodes, with replies that are cut.
func TestOnce_SeveralNodes(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 2, 0)
	proxies := cluster.AddProxies()
	a, b := redialtest.StartServer(t), redialtest.StartServer(t)
	pa, pb := redialtest.NewProxy(t, a.Addr()), redialtest.NewProxy(t, b.Addr())
	ringOpt := &redis.RingOptions{Addrs: map[string]string{"a": pa.Addr(), "b": pb.Addr()}}
	theirRing := redis.NewRing(ringOpt)
	sup, err := redial.Supervise(theirRing)
	require.NoError(t, err)
	theirCluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	supCluster, err := redial.Supervise(theirCluster)
	require.NoError(t, err)
	t.Cleanup(func() { _ = theirRing.Close(); _ = sup.Close(); _ = theirCluster.Close(); _ = supCluster.Close() })
	ring := redial.NewRing(ringOpt)
	t.Cleanup(func() { _ = ring.Close() })
	for name, x := range map[string]struct {
		c       redis.UniversalClient
		proxies []*redialtest.Proxy
	}{
		"cluster": {testkit.NewCluster(t, cluster), proxies}, "supervised cluster": {theirCluster, proxies},
		"ring": {ring, []*redialtest.Proxy{pa, pb}}, "supervised ring": {theirRing, []*redialtest.Proxy{pa, pb}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := redial.WaitFor(t.Context(), 20*time.Second)
			for i := range 4 {
				for _, p := range x.proxies {
					p.Match("incr")
					p.CutAfterRequest(i)
				}
				key := fmt.Sprint(name, i)
				n, err := x.c.Incr(redial.Once(ctx, key), key).Result()
				require.NoError(t, err)
				require.EqualValues(t, 1, n)
				pipeline := func() []int64 {
					ctx := redial.Once(ctx, "pipeline "+key)
					cmds, err := x.c.Pipelined(ctx, func(p redis.Pipeliner) error {
						for k := range 20 {
							p.Incr(ctx, fmt.Sprint(key, ":", k%10))
						}
						return nil
					})
					require.NoError(t, err)
					var all []int64
					for _, cmd := range cmds {
						all = append(all, cmd.(*redis.IntCmd).Val())
					}
					return all
				}
				want := slices.Repeat([]int64{1}, 10)
				want = append(want, slices.Repeat([]int64{2}, 10)...)
				require.Equal(t, want, pipeline())
				for _, p := range x.proxies {
					p.CutAfterRequest(0)
				}
				require.Equal(t, want, pipeline())
				for _, p := range x.proxies {
					p.CutAfterRequest(i)
				}
				reply, err := incrThrice(redial.Once(ctx, "tx "+key), x.c.TxPipelined, "tx"+key)
				require.NoError(t, err)
				require.Equal(t, "1", reply)
				for _, p := range x.proxies {
					p.CutAfterRequest(0)
				}
				reply, err = incrThrice(redial.Once(ctx, "tx "+key), x.c.TxPipelined, "tx"+key)
				require.NoError(t, err)
				require.Equal(t, "1", reply)
				// A transaction of a ring may be one for each of several shards.
				unit := func(keys ...string) error {
					ctx := redial.Once(ctx, "unit "+key)
					_, err := x.c.TxPipelined(ctx, func(p redis.Pipeliner) error {
						for _, k := range keys {
							p.Incr(ctx, k)
						}
						return nil
					})
					return err
				}
				if strings.Contains(name, "ring") {
					keys := []string{"u1" + key, "u2" + key, "u3" + key, "u4" + key, "u5" + key}
					for _, p := range x.proxies {
						p.CutAfterRequest(i)
					}
					require.NoError(t, unit(keys...))
					for _, p := range x.proxies {
						p.CutAfterRequest(0)
					}
					require.NoError(t, unit(keys...))
					for _, k := range keys {
						require.Equal(t, "1", x.c.Get(ctx, k).Val(), k)
					}
				}
				// Commands with several keys.
				require.NoError(t, x.c.MSet(ctx, "{x}a", 1, "{x}b", 2).Err())
				for range 2 {
					n, err = x.c.Del(redial.Once(ctx, "del"+key), "{x}a", "{x}b", "{x}c").Result()
					require.NoError(t, err)
					require.EqualValues(t, 2, n)
				}
			}
			if strings.Contains(name, "cluster") {
				err := x.c.Del(redial.Once(ctx, "slots"), "a", "b", "c").Err()
				require.ErrorIs(t, err, redial.ErrOnceUnsupported)
				require.ErrorContains(t, err, "del: its keys are in several slots")
			}
		})
	}
}

// Clients of every kind that lead to a server have the same records there, whether it is part of a
// cluster or not.
func TestOnce_KindsOfClientsShareRecords(t *testing.T) {
	t.Parallel()
	d := redialtest.StartFailover(t, 1, 1)
	led := &redis.FailoverOptions{MasterName: d.Name, SentinelAddrs: d.SentinelAddrs()}
	one := d.Servers[0].Addr()
	cluster := redialtest.StartCluster(t, 2, 0)
	node := cluster.NodeFor("{t}").Addr()
	supervised := func(c *redis.ClusterClient) redis.UniversalClient {
		sup, err := redial.Supervise(c)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close(); _ = sup.Close() })
		return c
	}
	allOn := func(addr string) *redis.ClusterOptions {
		return &redis.ClusterOptions{ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: addr}}}}, nil
		}}
	}
	for where, clients := range map[string][]redis.UniversalClient{
		"a primary": {
			redial.NewFailoverClient(led), redial.NewFailoverClusterClient(led), redial.NewClient(&redis.Options{Addr: one}),
			redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": one}}), redial.NewClusterClient(allOn(one)),
			supervised(redis.NewClusterClient(allOn(one))),
		},
		"a node": {
			redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()}), redial.NewClient(&redis.Options{Addr: node}),
			redial.NewClusterClient(allOn(node)), supervised(redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})),
		},
	} {
		for _, c := range clients {
			t.Cleanup(func() { _ = c.Close() })
		}
		for i := range clients {
			for name, work := range onceWorks {
				if name == "XADD" || name == "SPOP" {
					continue // what they return is another thing
				}
				id := fmt.Sprint(name, i)
				key := "{t}" + id
				for k := range clients {
					reply, err := work.do(redial.Once(t.Context(), id), clients[(i+k)%len(clients)], key)
					require.NoError(t, err, "%s by the client %d of %s, after %d others", name, (i+k)%len(clients), where, k)
					assert.Equal(t, "1", reply, "%s by the client %d of %s, after %d others", name, (i+k)%len(clients), where, k)
				}
			}
		}
	}
}

// A client of one server finds out that this is part of a cluster, and its records are those of a client of the cluster.
func TestOnce_OneServerOfACluster(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 2, 0)
	all := testkit.NewCluster(t, cluster)
	one := testkit.Connect(t, &redis.Options{Addr: cluster.NodeFor("n").Addr()})
	ctx := redial.Once(t.Context(), "id")
	require.EqualValues(t, 1, one.Incr(ctx, "n").Val())
	require.EqualValues(t, 1, all.Incr(ctx, "n").Val())
	require.EqualValues(t, 1, one.Incr(ctx, "n").Val())
	_, err := testkit.Connect(t, &redis.Options{Addr: cluster.NodeFor("n").Addr()}).TxPipelined(redial.Once(t.Context(), "tx"), func(p redis.Pipeliner) error {
		p.Incr(t.Context(), "n")
		return nil
	})
	require.NoError(t, err)
	assert.EqualValues(t, 1, cluster.NodeFor("n").Do("EXISTS", "redial:once:{n}:id"))
	for _, key := range []string{"a{}b", "}", "", "x}y{"} { // there is no tag to be had from the key
		require.EqualValues(t, 1, all.Incr(redial.Once(t.Context(), "odd"), key).Val(), key)
		require.EqualValues(t, 1, all.Incr(redial.Once(t.Context(), "odd"), key).Val(), key)
	}
	ap, err := all.AsyncAutoPipeline()
	require.NoError(t, err)
	assert.ErrorIs(t, ap.Incr(ctx, "n").Err(), redial.ErrOnceUnsupported)
}

var (
	scripts = flag.Int("scripts", platform.Times(1_000, 250), "random scripts to run")
	seed    = flag.Uint64("seed", 0, "run this one script only")
)

// Random scripts of commands with ids, over connections that break anywhere: what is acknowledged ran once, all else
// at most once, and who comes back gets the reply of the run.
func TestOnce_RandomScripts(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	bare := redis.NewClient(&redis.Options{Addr: s.Addr()})
	defer bare.Close()
	n := *scripts
	if testing.Short() || platform.RaceDetector {
		n /= 5
	}
	first := rand.Uint64()>>1 + 1
	if *seed != 0 {
		n, first = 1, *seed
	}
	t.Logf("%d scripts with the seeds from %d on", n, first)
	var next atomic.Uint64
	var done, unknown, not atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for !t.Failed() {
				i := next.Add(1) - 1
				if i >= uint64(n) {
					return
				}
				onceScript(t, s.Addr(), bare, first+i, &done, &unknown, &not)
			}
		})
	}
	wg.Wait()
	t.Logf("%d done, %d unknown, %d did not run", done.Load(), unknown.Load(), not.Load())
	if *seed == 0 {
		require.NotZero(t, done.Load())
		require.NotZero(t, unknown.Load()+not.Load())
	}
}

func onceScript(t *testing.T, addr string, bare *redis.Client, seed uint64, done, unknown, not *atomic.Int64) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	network := &testkit.BreakingNetwork{DialNext: (&net.Dialer{}).DialContext, Rand: rand.New(rand.NewPCG(seed, 1))}
	c := redial.NewClient(&redis.Options{Addr: addr, Dialer: network.Dial, Protocol: 2 + rnd.IntN(2), DisableIdentity: rnd.IntN(2) == 0},
		redial.WithGrace(time.Duration(rnd.IntN(100))*time.Millisecond))
	defer c.Close()
	ctx := context.Background()
	if rnd.IntN(2) == 0 {
		ctx = redial.FailFast(ctx)
	}
	for i := range 1 + rnd.IntN(4) {
		if rnd.IntN(8) == 0 {
			bare.ScriptFlush(context.Background())
		}
		network.BreakAt(rnd.IntN(4))
		key := fmt.Sprint("script:", seed, ":", i)
		run := func(ctx context.Context, c redis.UniversalClient) (string, error) {
			n, err := c.Incr(ctx, key).Result()
			return strconv.FormatInt(n, 10), err
		}
		least := 1
		if kind := rnd.IntN(4); kind > 1 {
			least = 3
			run = func(ctx context.Context, c redis.UniversalClient) (string, error) {
				exec := c.Pipelined
				if kind == 3 {
					exec = c.TxPipelined
				}
				return incrThrice(ctx, exec, key)
			}
			if kind == 2 {
				least = 0 // a part of it may have run
			}
		}
		once := redial.Once(ctx, key)
		reply, err := run(once, c)
		n, _ := bare.Get(context.Background(), key).Int()
		whole := max(least, 1)
		if least == 0 {
			whole = 3
		}
		switch {
		case err == nil:
			done.Add(1)
			if reply != "1" || n != whole {
				t.Errorf("seed %d: %s was acknowledged with %s and is %d", seed, key, reply, n)
			}
		case errors.Is(err, redial.ErrOutcomeUnknown):
			unknown.Add(1)
			if n > whole {
				t.Errorf("seed %d: %s is %d: %v", seed, key, n, err)
			}
		case redial.SafeToRetry(err):
			not.Add(1)
			if n != 0 && least != 0 {
				t.Errorf("seed %d: %s is said not to have run, and is %d: %v", seed, key, n, err)
			}
		default:
			t.Errorf("seed %d: %s failed without an outcome: %T %v", seed, key, err, err)
		}
		// The caller comes back.
		other := redial.NewClient(&redis.Options{Addr: addr})
		reply, err = run(redial.Once(context.Background(), key), other)
		n, _ = bare.Get(context.Background(), key).Int()
		if err != nil || reply != "1" || n != whole {
			t.Errorf("seed %d: %s is %d when the caller has come back: %s, %v", seed, key, n, reply, err)
		}
		_ = other.Close()
	}
}

// What an id costs, beside the plain command in the same run.
func TestOnce_Cost(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	bare := redis.NewClient(&redis.Options{Addr: s.Addr()})
	defer bare.Close()
	var ratio float64
	for try := range 5 {
		const n = 1000
		var plain, once [n]time.Duration
		for i := range n {
			began := time.Now()
			require.NoError(t, c.Incr(t.Context(), "n").Err())
			middle := time.Now()
			require.NoError(t, c.Incr(redial.Once(t.Context(), fmt.Sprintf("order-%d-%d", try, i)), "n").Err())
			plain[i], once[i] = middle.Sub(began), time.Since(middle)
		}
		slices.Sort(plain[:])
		slices.Sort(once[:])
		ratio = float64(once[n/2]) / float64(plain[n/2])
		t.Logf("INCR: median %v, with an id %v: %.2f times", plain[n/2], once[n/2], ratio)
		if ratio <= 2 {
			break
		}
	}
	bytes, err := bare.MemoryUsage(t.Context(), "redial:once:order-0-1").Result()
	require.NoError(t, err)
	t.Logf("memory of a record: %d bytes", bytes)
	if !platform.RaceDetector {
		assert.LessOrEqual(t, ratio, 2.0)
	}
	assert.Less(t, bytes, int64(300))
}

// What an id costs in a transaction grows with its commands as it does in a pipeline.
func TestOnce_CostOfLongTransactions(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr(), ReadTimeout: time.Minute})
	var pipeline, transaction time.Duration
	for try := range 5 {
		for _, way := range []struct {
			exec func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error)
			took *time.Duration
		}{{c.Pipelined, &pipeline}, {c.TxPipelined, &transaction}} {
			ctx := redial.Once(t.Context(), fmt.Sprintf("%d-%p", try, way.took))
			began := time.Now()
			_, err := way.exec(ctx, func(p redis.Pipeliner) error {
				for range 3000 {
					p.Incr(ctx, "n")
				}
				return nil
			})
			require.NoError(t, err)
			*way.took = time.Since(began)
		}
		t.Logf("3000 commands with an id: as a pipeline %v, as a transaction %v", pipeline, transaction)
		if transaction < 5*pipeline {
			return
		}
	}
	t.Error("a transaction takes too long")
}
