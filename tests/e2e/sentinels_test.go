package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialtest"
)

// estate is servers and sentinels in memory, by address. Every other address is dead.
type estate struct {
	t       testing.TB
	silent  bool // what is dead says nothing, instead of refusing
	servers map[string]*redialtest.FakeServer
	real    bool // addresses that are in no server's name are dialed

	mu    sync.Mutex
	dials map[string]int
	now   int // dials of dead sentinels under way
	most  int
	down  map[string]bool
}

func newEstate(t testing.TB) *estate {
	return &estate{t: t, servers: map[string]*redialtest.FakeServer{}, dials: map[string]int{}, down: map[string]bool{}}
}

func (d *estate) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d.mu.Lock()
	d.dials[addr]++
	srv := d.servers[addr]
	dead := srv == nil || d.down[addr]
	if dead && d.real {
		d.mu.Unlock()
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	sentinel := strings.HasSuffix(addr, ":26379")
	if dead && sentinel {
		d.now++
		d.most = max(d.most, d.now)
	}
	d.mu.Unlock()
	if !dead {
		return srv.Dial(ctx, network, addr)
	}
	if sentinel {
		defer func() {
			d.mu.Lock()
			d.now--
			d.mu.Unlock()
		}()
	}
	if d.silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
}

// deadDials returns how many dials there were of addresses that nobody has, and how many
// of sentinels at a time at most, and begins anew.
func (d *estate) deadDials() (n, most int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for addr, dials := range d.dials {
		if d.servers[addr] == nil || d.down[addr] {
			n += dials
		}
	}
	most, d.most = d.most, d.now
	d.dials = map[string]int{}
	return n, most
}

func (d *estate) setDown(addr string, down bool) {
	d.mu.Lock()
	d.down[addr] = down
	srv := d.servers[addr]
	d.mu.Unlock()
	if down {
		srv.CloseConns()
	}
}

func (d *estate) server(addr string) *redialtest.FakeServer {
	srv := redialtest.NewFakeServerPipe(d.t)
	d.servers[addr] = srv
	return srv
}

// watcher is a sentinel.
type watcher struct {
	*redialtest.FakeServer
	mu       sync.Mutex
	master   string
	replicas []string
	named    func() [][3]string // ip, port and flags of other sentinels
	subs     []*redialtest.FakeConn
	heard    chan struct{} // receives when somebody has subscribed
}

func (d *estate) sentinel(addr, master string, replicas ...string) *watcher {
	w := &watcher{FakeServer: d.server(addr), master: master, replicas: replicas, heard: make(chan struct{}, 1000)}
	w.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
		w.mu.Lock()
		defer w.mu.Unlock()
		switch strings.ToLower(args[0]) {
		case "subscribe":
			w.subs = append(w.subs, c)
			w.heard <- struct{}{}
		case "sentinel":
			switch strings.ToLower(args[1]) {
			case "get-master-addr-by-name":
				if w.master == "" {
					return redialtest.Reply("*-1\r\n")
				}
				host, port, _ := net.SplitHostPort(w.master)
				return redialtest.Reply(words(host, port))
			case "sentinels":
				var list []string
				if w.named != nil {
					for _, s := range w.named() {
						list = append(list, words("ip", s[0], "port", s[1], "flags", s[2]))
					}
				}
				return redialtest.Reply(fmt.Sprintf("*%d\r\n%s", len(list), strings.Join(list, "")))
			case "replicas":
				var list []string
				for _, r := range w.replicas {
					host, port, _ := net.SplitHostPort(r)
					list = append(list, words("ip", host, "port", port, "flags", "slave"))
				}
				return redialtest.Reply(fmt.Sprintf("*%d\r\n%s", len(list), strings.Join(list, "")))
			}
		}
		return redialtest.Handle
	})
	return w
}

func words(w ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(w))
	for _, s := range w {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(s), s)
	}
	return b.String()
}

// names has the sentinel name another master and its replicas, and say so if told is set.
func (w *watcher) names(master string, told bool, replicas ...string) {
	w.mu.Lock()
	old := w.master
	w.master, w.replicas = master, replicas
	subs := w.subs
	w.mu.Unlock()
	if !told {
		return
	}
	oldHost, oldPort, _ := net.SplitHostPort(old)
	host, port, _ := net.SplitHostPort(master)
	payload := fmt.Sprint("primary ", oldHost, " ", oldPort, " ", host, " ", port)
	for _, c := range subs {
		c.Send(fmt.Sprintf(">3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n$%d\r\n%s\r\n", len(payload), payload))
	}
}

// hangUp ends the connections of those who listen.
func (w *watcher) hangUp() {
	w.mu.Lock()
	subs := w.subs
	w.subs = nil
	w.mu.Unlock()
	for _, c := range subs {
		c.Close()
	}
}

func (d *estate) options(sentinels ...string) *redis.FailoverOptions {
	return &redis.FailoverOptions{
		MasterName: "primary", SentinelAddrs: sentinels, Dialer: d.dial, DisableIdentity: true, PoolSize: 50, PipelinePoolSize: 50,
	}
}

// A sentinel that names more and more dead ones is lost again and again: the client is
// never deaf for long.
func TestSentinels_MoreDeadOnesAtEachRound_NeverDeaf(t *testing.T) {
	for name, silent := range map[string]bool{"refused": false, "silent": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newEstate(t)
				d.silent = silent
				d.server("10.0.0.1:6379")
				d.server("10.0.0.2:6379")
				s := d.sentinel("10.0.1.1:26379", "10.0.0.1:6379")
				rounds := 0
				s.named = func() (list [][3]string) {
					rounds++
					for i := range 20 * rounds {
						list = append(list, [3]string{fmt.Sprint("10.9.", i/200, ".", i%200), "26379", "sentinel"})
					}
					return list
				}
				c := redial.NewFailoverClient(d.options("10.0.1.1:26379"))
				defer c.Close()
				require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
				<-s.heard
				worst := time.Duration(0)
				for range 8 {
					time.Sleep(2500 * time.Millisecond)
					s.hangUp()
					began := time.Now()
					<-s.heard
					worst = max(worst, time.Since(began))
				}
				t.Logf("deaf for %v at most", worst)
				assert.Less(t, worst, 100*time.Millisecond)
				synctest.Wait()
				s.names("10.0.0.2:6379", true)
				began := time.Now()
				for d.servers["10.0.0.2:6379"].Executed("set") == 0 && time.Since(began) < time.Minute {
					_ = c.Set(t.Context(), "k", "v", 0).Err()
					time.Sleep(time.Millisecond)
				}
				assert.Less(t, time.Since(began), 100*time.Millisecond)
			})
		})
	}
}

// Five hundred dead sentinels cost nothing while one is alive, and little when none is.
func TestSentinels_FiveHundredDeadOnes_AreCheap(t *testing.T) {
	for name, silent := range map[string]bool{"refused": false, "silent": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newEstate(t)
				d.silent = silent
				d.server("10.0.0.1:6379")
				s := d.sentinel("10.0.1.1:26379", "10.0.0.1:6379")
				s.named = func() (list [][3]string) {
					for i := range 500 {
						list = append(list, [3]string{fmt.Sprint("10.9.", i/200, ".", i%200), "26379", "sentinel"})
					}
					return list
				}
				c := redial.NewFailoverClient(d.options("10.0.1.1:26379"))
				defer c.Close()
				require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
				<-s.heard
				synctest.Wait()
				d.deadDials()
				for range 4 {
					time.Sleep(5 * time.Second)
					s.hangUp()
				}
				n, most := d.deadDials()
				t.Logf("while one is alive: %d dials in 20s, %d at a time", n, most)
				assert.LessOrEqual(t, n, 10)

				d.setDown("10.0.1.1:26379", true)
				d.setDown("10.0.0.1:6379", true)
				d.deadDials()
				time.Sleep(20 * time.Second)
				n, most = d.deadDials()
				t.Logf("while none is: %d dials in 20s, %d at a time", n, most)
				assert.LessOrEqual(t, most, 8)
				assert.LessOrEqual(t, n, 2000)

				for len(s.heard) > 0 {
					<-s.heard
				}
				d.setDown("10.0.0.1:6379", false)
				d.setDown("10.0.1.1:26379", false)
				began := time.Now()
				<-s.heard
				t.Logf("listens again after %v", time.Since(began))
				assert.LessOrEqual(t, time.Since(began), time.Second)
				assert.NoError(t, c.Set(redial.WaitFor(t.Context(), 10*time.Second), "k", "w", 0).Err())
			})
		})
	}
}

// One who has not heard of a failover yet names a server that has become a replica.
// Commands wait until the sentinels know better, whatever kind they are.
func TestSentinels_NotHeardYet_ReadOnlyNeverReachesTheCaller(t *testing.T) {
	t.Parallel()
	for name, run := range map[string]func(context.Context, redis.UniversalClient) error{
		"set":      func(ctx context.Context, c redis.UniversalClient) error { return c.Set(ctx, "k", "v", 0).Err() },
		"flushdb":  func(ctx context.Context, c redis.UniversalClient) error { return c.FlushDB(ctx).Err() },
		"flushall": func(ctx context.Context, c redis.UniversalClient) error { return c.FlushAll(ctx).Err() },
		"do":       func(ctx context.Context, c redis.UniversalClient) error { return c.Do(ctx, "set", "k", "v").Err() },
		"del":      func(ctx context.Context, c redis.UniversalClient) error { return c.Del(ctx, "k", "l", "m").Err() },
		"mset":     func(ctx context.Context, c redis.UniversalClient) error { return c.MSet(ctx, "k", "v", "l", "w").Err() },
		"scripts":  func(ctx context.Context, c redis.UniversalClient) error { return c.ScriptFlush(ctx).Err() },
		"pipeline": func(ctx context.Context, c redis.UniversalClient) error {
			_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
				p.Set(ctx, "k", "v", 0)
				p.Set(ctx, "l", "v", 0)
				return nil
			})
			return err
		},
		"transaction": func(ctx context.Context, c redis.UniversalClient) error {
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, "k", "v", 0).Err() })
			return err
		},
	} {
		for _, when := range []string{"new", "moved"} {
			for _, kind := range []string{"client", "cluster", "randomly"} {
				for _, protocol := range []int{2, 3} {
					if protocol == 2 && name != "set" && name != "flushdb" {
						continue
					}
					t.Run(fmt.Sprint(name, "/", when, "/", kind, "/", protocol), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							const old, next = "10.0.0.1:6379", "10.0.0.2:6379"
							d := newEstate(t)
							var demoted atomic.Bool
							role(d.server(old), demoted.Load)
							role(d.server(next), func() bool { return !demoted.Load() })
							sentinels := []*watcher{d.sentinel("10.0.1.1:26379", old, next), d.sentinel("10.0.1.2:26379", old, next)}
							demoted.Store(when == "new")
							opt := d.options("10.0.1.1:26379", "10.0.1.2:26379")
							opt.Protocol = protocol
							var c redis.UniversalClient
							switch kind {
							case "client":
								c = redial.NewFailoverClient(opt)
							case "randomly":
								opt.RouteRandomly = true
								fallthrough
							default:
								c = redial.NewFailoverClusterClient(opt)
							}
							defer c.Close()
							if when == "moved" {
								require.NoError(t, run(t.Context(), c))
								demoted.Store(true)
							}
							time.AfterFunc(1900*time.Millisecond, func() {
								for _, s := range sentinels {
									s.names(next, false, old)
								}
							})
							assert.NoError(t, run(t.Context(), c))
							time.Sleep(3 * time.Second)
						})
					})
				}
			}
		}
	}
}

// role has a server refuse to write while it is a replica.
func role(srv *redialtest.FakeServer, replica func() bool) {
	srv.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		switch strings.ToLower(args[0]) {
		case "multi":
			if replica() {
				return redialtest.Reply("+OK\r\n")
			}
		case "exec":
			if replica() {
				return redialtest.Reply("-EXECABORT Transaction discarded because of previous errors.\r\n")
			}
		case "set", "flushdb", "flushall", "del", "mset":
			if replica() {
				return redialtest.Reply("-READONLY You can't write against a read only replica.\r\n")
			}
			if !strings.EqualFold(args[0], "set") {
				return redialtest.Reply(map[bool]string{true: ":0\r\n", false: "+OK\r\n"}[strings.EqualFold(args[0], "del")])
			}
		case "script":
			return redialtest.Reply("+OK\r\n")
		case "command":
			return redialtest.Reply(testkit.CommandTable())
		}
		return redialtest.Handle
	})
}

// The same with real servers, of which go-redis learns what commands they know.
func TestSentinels_NotHeardYet_RealServers(t *testing.T) {
	t.Parallel()
	for name, run := range map[string]func(context.Context, redis.UniversalClient) error{
		"set":     func(ctx context.Context, c redis.UniversalClient) error { return c.Set(ctx, "k", "v", 0).Err() },
		"flushdb": func(ctx context.Context, c redis.UniversalClient) error { return c.FlushDB(ctx).Err() },
		"mset":    func(ctx context.Context, c redis.UniversalClient) error { return c.MSet(ctx, "k", "v", "l", "w").Err() },
		"pipeline": func(ctx context.Context, c redis.UniversalClient) error {
			_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.Set(ctx, "k", "v", 0); p.Del(ctx, "l"); return nil })
			if err == redis.Nil {
				err = nil
			}
			return err
		},
		"transaction": func(ctx context.Context, c redis.UniversalClient) error {
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, "k", "v", 0).Err() })
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, randomly := range []bool{false, true} {
				for _, protocol := range []int{2, 3} {
					next, old := redialtest.StartServer(t), redialtest.StartServer(t)
					host, port, _ := net.SplitHostPort(next.Addr())
					require.Equal(t, "OK", old.Do("REPLICAOF", host, port))
					d := newEstate(t)
					d.real = true
					one, two := d.sentinel("10.0.1.1:26379", old.Addr(), next.Addr()), d.sentinel("10.0.1.2:26379", old.Addr(), next.Addr())
					opt := d.options("10.0.1.1:26379", "10.0.1.2:26379")
					opt.RouteRandomly, opt.Protocol = randomly, protocol
					c := redial.NewFailoverClusterClient(opt)
					time.AfterFunc(time.Second, func() { one.names(next.Addr(), false, old.Addr()) })
					time.AfterFunc(2*time.Second, func() { two.names(next.Addr(), false, old.Addr()) })
					err := run(t.Context(), c)
					if errors.Is(err, redial.ErrOutcomeUnknown) { // it was under way when the sentinel spoke
						err = run(t.Context(), c)
					}
					assert.NoError(t, err)
					assert.NoError(t, c.Close())
				}
			}
		})
	}
}

// When the master is another, only what leads to the one that lost its role is given up:
// connections to the other replicas, and what waits on them, are as good as before.
func TestSentinels_MasterMoved_ReplicasAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const old, next, replica = "10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.3:6379"
		d := newEstate(t)
		for _, addr := range []string{old, next, replica} {
			role(d.server(addr), func() bool { return false })
		}
		s := d.sentinel("10.0.1.1:26379", old, next, replica)
		opt := d.options("10.0.1.1:26379")
		opt.RouteRandomly = true
		var mu sync.Mutex
		moved := map[string]redial.Cause{}
		c := redial.NewFailoverClusterClient(opt, redial.WithOnStateChange(func(e redial.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Node != "" && e.To == redial.StateReconnecting {
				moved[e.Node] = e.Cause
			}
		}))
		defer c.Close()
		waiting := make(chan error, 3)
		var begin sync.WaitGroup
		assert.NoError(t, c.ForEachShard(t.Context(), func(ctx context.Context, node *redis.Client) error {
			begin.Add(1)
			go func() {
				begin.Done()
				waiting <- node.BLPop(context.Background(), 0, "queue").Err()
			}()
			return nil
		}))
		begin.Wait()
		<-s.heard
		synctest.Wait()
		s.names(next, true, old, replica)
		synctest.Wait()
		assert.Len(t, waiting, 1, "of three, that on the former master")
		time.Sleep(3 * time.Second)
		assert.Len(t, waiting, 1)
		mu.Lock()
		assert.Equal(t, map[string]redial.Cause{old: redial.CauseMoved}, moved)
		mu.Unlock()
	})
}

// The master falls silent, and in its place there is another. Whether that is told or
// found, nothing waits for the old one any more.
func TestSentinels_SilentMasterIsReplaced_NothingWaitsForIt(t *testing.T) {
	for name, told := range map[string]bool{"told meanwhile": true, "found": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newEstate(t)
				d.silent = true
				old := d.server("10.0.0.1:6379")
				d.server("10.0.0.2:6379")
				s := d.sentinel("10.0.1.1:26379", "10.0.0.1:6379")
				opt := d.options("10.0.1.1:26379")
				opt.ReadTimeout = time.Minute
				c := redial.NewFailoverClient(opt)
				defer c.Close()
				require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
				<-s.heard
				old.OnCommand(func(*redialtest.FakeConn, []string) redialtest.Action { return redialtest.Hang })
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() { assert.Contains(t, []error{nil, redis.Nil}, c.Get(t.Context(), "n").Err()) })
					wg.Go(func() {
						if err := c.Incr(t.Context(), "n").Err(); err != nil { // else its connection was not set up yet
							assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
						}
					})
				}
				require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
				assert.Equal(t, redial.CauseHeartbeatMissed, c.Stats().Cause)
				began := time.Now()
				s.names("10.0.0.2:6379", told)
				wg.Wait()
				t.Logf("all ended %v later", time.Since(began))
				assert.Less(t, time.Since(began), 2*time.Second)
				require.NoError(t, c.WaitReady(t.Context()))
			})
		})
	}
}
