package bubble

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit/memnet"
)

// greeter is an OnConnect that may hang, and heeds no context.
type greeter struct {
	all     atomic.Bool  // on every connection
	next    atomic.Int32 // on so many
	hanging atomic.Int32
	hold    chan struct{}
	calls   sync.WaitGroup
}

func newGreeter(t *testing.T) *greeter {
	g := &greeter{hold: make(chan struct{})}
	t.Cleanup(func() { close(g.hold); g.calls.Wait() })
	return g
}

func (g *greeter) greet(context.Context, *redis.Conn) error {
	if g.all.Load() || g.next.Add(-1) >= 0 {
		g.hanging.Add(1)
		<-g.hold
	}
	return nil
}

// tellSlots has the server name itself as the one node of a cluster.
func tellSlots(n *memnet.Net) { tellSlotsBy(n, func() int { return 1 }) }

// tellSlotsBy has it name the one at a port.
func tellSlotsBy(n *memnet.Net, port func() int) {
	be := memnet.Inject(n)
	n.Redis.Server().SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
		if !strings.EqualFold(cmd, "cluster") {
			return be.Hook(p, cmd, args...)
		}
		at := port()
		p.WriteLen(1)
		p.WriteLen(3)
		p.WriteInt(0)
		p.WriteInt(16383)
		p.WriteLen(2)
		p.WriteBulk("127.0.0.1")
		p.WriteInt(at)
		return true
	})
}

// onGreeted runs f with a client of every kind that calls the OnConnect of a greeter.
func onGreeted(t *testing.T, f func(t *testing.T, n *memnet.Net, g *greeter, build func() made)) {
	for name, build := range map[string]func(n *memnet.Net, opt *redis.Options) made{
		"Client": func(n *memnet.Net, opt *redis.Options) made {
			c := redial.NewClient(opt)
			return made{c, c.Supervisor, c.Close}
		},
		"ClusterClient": func(n *memnet.Net, opt *redis.Options) made {
			tellSlots(n)
			own := clusterOptions(opt)
			own.OnConnect, own.ClusterSlots = opt.OnConnect, nil
			c := redial.NewClusterClient(own)
			return made{c, c.Supervisor, c.Close}
		},
		"ClusterClient, named": func(n *memnet.Net, opt *redis.Options) made {
			own := clusterOptions(opt)
			own.OnConnect = opt.OnConnect
			c := redial.NewClusterClient(own)
			return made{c, c.Supervisor, c.Close}
		},
		"Ring": func(n *memnet.Net, opt *redis.Options) made {
			own := ringOptions(opt)
			own.OnConnect = opt.OnConnect
			c := redial.NewRing(own)
			return made{c, c.Supervisor, c.Close}
		},
	} {
		t.Run(name, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				g := newGreeter(t)
				opt.OnConnect = g.greet
				f(t, n, g, func() made { return build(n, opt) })
			})
		})
	}
}

// serves asserts that a command is served in time, and not by a connection that hangs.
func serves(t *testing.T, c made, within time.Duration) {
	t.Helper()
	began, done := time.Now(), make(chan error, 1)
	go func() { done <- c.Set(redial.WaitFor(context.Background(), time.Minute), "k", 1, 0).Err() }()
	select {
	case err := <-done:
		assert.NoError(t, err)
		assert.LessOrEqual(t, time.Since(began), within)
	case <-time.After(10 * time.Second):
		assert.Fail(t, "a command hangs")
	}
}

// closes asserts that Close returns in time, whatever hangs.
func closes(t *testing.T, c made) {
	t.Helper()
	began := time.Now()
	assert.NoError(t, c.close())
	assert.LessOrEqual(t, time.Since(began), 100*time.Millisecond)
	synctest.Wait()
}

// hangs has a command hang in the greeting of a new connection.
func hangs(t *testing.T, c made, g *greeter) {
	t.Helper()
	go c.BLPop(context.Background(), 0, "nothing") // which takes the one that there is
	synctest.Wait()
	before := g.hanging.Load()
	g.calls.Go(func() { c.Get(context.Background(), "k") })
	synctest.Wait()
	require.Equal(t, before+1, g.hanging.Load())
}

// OnConnect that hangs on one connection costs the command that made it, and no more: the
// end of the server is noticed, its return as well, and Close returns.
func TestOnConnect_HangsOnOne(t *testing.T) {
	for _, silent := range []bool{false, true} {
		onGreeted(t, func(t *testing.T, n *memnet.Net, g *greeter, build func() made) {
			c := build()
			memnet.Ready(t, c)
			serves(t, c, 0)
			g.next.Store(1)
			hangs(t, c, g)
			serves(t, c, 0)
			began := time.Now()
			if silent {
				n.Refuse()
				n.Drop()
			} else {
				n.Kill()
			}
			require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
			assert.LessOrEqual(t, time.Since(began), 3*time.Second)
			time.Sleep(time.Second)
			began = time.Now()
			err := c.Get(t.Context(), "k").Err()
			assert.ErrorIs(t, err, redial.ErrUnavailable)
			assert.LessOrEqual(t, time.Since(began), redial.DefaultGrace)
			g.calls.Go(func() { c.Get(redial.WaitFor(context.Background(), time.Minute), "k") })
			synctest.Wait()
			n.Start()
			serves(t, c, 300*time.Millisecond)
			closes(t, c)
		})
	}
}

// One that hangs on all of them from now on holds up neither what is connected nor the state,
// and once it does not any more commands are served.
func TestOnConnect_HangsOnAll(t *testing.T) {
	for _, mends := range []bool{false, true} {
		onGreeted(t, func(t *testing.T, n *memnet.Net, g *greeter, build func() made) {
			c := build()
			memnet.Ready(t, c)
			serves(t, c, 0)
			g.all.Store(true)
			serves(t, c, 0)
			hangs(t, c, g)
			assert.Equal(t, redial.StateConnected, c.State())
			time.Sleep(time.Minute)
			assert.Equal(t, redial.StateConnected, c.State())
			n.Kill()
			began := time.Now()
			require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
			assert.Zero(t, time.Since(began))
			for range 3 {
				g.calls.Go(func() { c.Get(redial.WaitFor(context.Background(), time.Minute), "k") })
			}
			time.Sleep(time.Second)
			n.Start()
			began = time.Now()
			require.NoError(t, c.WaitReady(t.Context()))
			assert.LessOrEqual(t, time.Since(began), 150*time.Millisecond)
			if mends {
				g.all.Store(false)
				serves(t, c, 300*time.Millisecond)
			}
			time.Sleep(time.Minute)
			assert.Equal(t, redial.StateConnected, c.State())
			closes(t, c)
		})
	}
}

// One that hangs on the first connections after an outage keeps nobody from making others,
// and those that idle are proved as ever.
func TestOnConnect_HangsAfterAnOutage(t *testing.T) {
	onGreeted(t, func(t *testing.T, n *memnet.Net, g *greeter, build func() made) {
		c := build()
		memnet.Ready(t, c)
		for range 3 { // connections, of which the pool is to have some back
			g.calls.Go(func() { c.BLPop(context.Background(), time.Second, "nothing") })
		}
		time.Sleep(2 * time.Second)
		n.Refuse()
		c.Reconnect("test")
		time.Sleep(time.Second)
		g.next.Store(2)
		n.Start()
		began := time.Now()
		require.NoError(t, c.WaitReady(t.Context()))
		assert.LessOrEqual(t, time.Since(began), 2*time.Second)
		time.Sleep(time.Second)
		assert.Positive(t, g.hanging.Load(), "nothing warms up the pool")
		for g.next.Load() > 0 {
			g.calls.Go(func() { c.Get(context.Background(), "k") })
			synctest.Wait()
		}
		serves(t, c, 0)
		before := c.Stats().IdleChecks
		time.Sleep(time.Minute)
		assert.Greater(t, c.Stats().IdleChecks, before)
		closes(t, c)
	})
}

// One that hangs on the first connection of all keeps nobody from making others.
func TestOnConnect_HangsAtTheStart(t *testing.T) {
	onGreeted(t, func(t *testing.T, n *memnet.Net, g *greeter, build func() made) {
		g.next.Store(1)
		c := build()
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		assert.NoError(t, c.WaitReady(ctx))
		assert.LessOrEqual(t, time.Since(began), 3*time.Second)
		g.calls.Go(func() { c.Get(context.Background(), "k") })
		synctest.Wait()
		assert.EqualValues(t, 1, g.hanging.Load())
		serves(t, c, 0)
		closes(t, c)
	})
}

// What the caller's own code takes to set a connection up is his affair, however little time he
// leaves a dial: go-redis bounds none of it, and no client is to be given up for it.
func TestSetUp_TakesItsTime(t *testing.T) {
	type options struct {
		provider  func(context.Context) (string, string, error)
		stream    auth.StreamingCredentialsProvider
		onConnect func(context.Context, *redis.Conn) error
		patience  time.Duration
	}
	for _, slow := range []struct{ takes, dialTimeout time.Duration }{
		{800 * time.Millisecond, 300 * time.Millisecond}, {6 * time.Second, 0}, {20 * time.Second, 0},
	} {
		for what, by := range map[string]func(*options){
			"provider": func(o *options) {
				o.provider = func(context.Context) (string, string, error) { time.Sleep(slow.takes); return "", "", nil }
			},
			"stream": func(o *options) { o.stream = slowStream(slow.takes) },
			"on connect": func(o *options) {
				o.onConnect = func(context.Context, *redis.Conn) error { time.Sleep(slow.takes); return nil }
			},
		} {
			for kind, build := range map[string]func(*memnet.Net, *redis.Options, options) (redis.UniversalClient, func() error){
				"bare": func(_ *memnet.Net, opt *redis.Options, _ options) (redis.UniversalClient, func() error) {
					c := redis.NewClient(opt)
					return c, c.Close
				},
				"Client": func(_ *memnet.Net, opt *redis.Options, o options) (redis.UniversalClient, func() error) {
					c := redial.NewClient(opt, redial.WithGrace(o.patience))
					return c, c.Close
				},
				"supervised": func(n *memnet.Net, opt *redis.Options, o options) (redis.UniversalClient, func() error) {
					opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) { return n.Dial(ctx, network, addr) }
					c := redis.NewClient(opt)
					_, err := redial.Supervise(c, redial.WithGrace(o.patience))
					require.NoError(t, err)
					return c, c.Close
				},
				"ClusterClient": func(n *memnet.Net, opt *redis.Options, o options) (redis.UniversalClient, func() error) {
					c := redial.NewClusterClient(toldBy(n, opt), redial.WithGrace(o.patience))
					return c, c.Close
				},
				"supervised ClusterClient": func(n *memnet.Net, opt *redis.Options, o options) (redis.UniversalClient, func() error) {
					c := redis.NewClusterClient(toldBy(n, opt))
					_, err := redial.Supervise(c, redial.WithGrace(o.patience))
					require.NoError(t, err)
					return c, c.Close
				},
			} {
				t.Run(fmt.Sprintf("%s/%s/%v", kind, what, slow.takes), func(t *testing.T) {
					memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
						o := options{patience: 4*slow.takes + time.Second}
						by(&o)
						opt.CredentialsProviderContext, opt.StreamingCredentialsProvider = o.provider, o.stream
						opt.OnConnect, opt.DialTimeout = o.onConnect, slow.dialTimeout
						c, shut := build(n, opt, o)
						began := time.Now()
						assert.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
						assert.Less(t, time.Since(began), 3*slow.takes+time.Second)
						assert.NoError(t, shut())
						time.Sleep(2 * slow.takes) // what is under way ends
					})
				})
			}
		}
	}
}

// toldBy returns the options of a cluster whose one node tells of itself.
func toldBy(n *memnet.Net, opt *redis.Options) *redis.ClusterOptions {
	tellSlots(n)
	own := clusterOptions(opt)
	own.CredentialsProviderContext, own.StreamingCredentialsProvider = opt.CredentialsProviderContext, opt.StreamingCredentialsProvider
	own.OnConnect, own.DialTimeout, own.ClusterSlots = opt.OnConnect, opt.DialTimeout, nil
	return own
}

// slowStream is a provider of no credentials that takes its time.
type slowStream time.Duration

func (s slowStream) Subscribe(auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	time.Sleep(time.Duration(s))
	return auth.NewBasicCredentials("", ""), func() error { return nil }, nil
}

// emptied returns clusterOptions by which no node is named while empty is set.
func emptied(opt *redis.Options, empty *atomic.Bool) *redis.ClusterOptions {
	own := clusterOptions(opt)
	name := own.ClusterSlots
	own.ClusterSlots = func(ctx context.Context) ([]redis.ClusterSlot, error) {
		if empty.Load() {
			return nil, nil
		}
		return name(ctx)
	}
	return own
}

// Whoever names the nodes of a cluster may name none without an error, as a registry does that
// is not filled yet. Then commands go to the addresses that the client was given, or fail at
// once and in go-redis's words, and are served again once there is a node.
func TestClusterSlots_Empty(t *testing.T) {
	none := "redis: cluster has no nodes"
	for _, row := range []struct {
		addrs, atFirst bool
		want           []string // bare go-redis and redial, while there is none and then
	}{
		{true, true, []string{"<nil>", "<nil>"}},
		{true, false, []string{"<nil>", "<nil>"}},
		{false, true, []string{none, "<nil>"}},
		{false, false, []string{"<nil>", "<nil>"}},
	} {
		for _, supervised := range []bool{false, true} {
			t.Run(fmt.Sprintf("addresses %v, at first %v, redial %v", row.addrs, row.atFirst, supervised), func(t *testing.T) {
				memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
					memnet.Inject(n)
					var empty atomic.Bool
					own := emptied(opt, &empty)
					own.MaxRetries = -1
					if !row.addrs {
						own.Addrs = nil
					}
					empty.Store(row.atFirst)
					var c interface {
						redis.UniversalClient
						ReloadState(context.Context)
					} = redis.NewClusterClient(own)
					if supervised {
						require.NoError(t, c.Close())
						c = redial.NewClusterClient(own)
					}
					defer c.Close()
					if !row.atFirst {
						require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
						empty.Store(true)
					}
					for _, want := range row.want {
						_ = c.Set(t.Context(), "k", 1, 0).Err()
						c.ReloadState(t.Context())
						for range 3 {
							time.Sleep(time.Second)
							began := time.Now()
							assert.Equal(t, want, fmt.Sprint(c.Set(t.Context(), "k", 1, 0).Err()))
							assert.Zero(t, time.Since(began))
						}
						empty.Store(false)
					}
				})
			})
		}
	}
}

// In an outage such a list is no reason to fail: commands wait for the nodes that are known.
func TestClusterSlots_EmptyInAnOutage(t *testing.T) {
	for _, since := range []string{"its begin", "later"} {
		memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
			memnet.Inject(n)
			var empty atomic.Bool
			c := redial.NewClusterClient(emptied(opt, &empty))
			defer c.Close()
			memnet.Ready(t, c)
			require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
			empty.Store(since == "its begin")
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
			empty.Store(true)
			time.Sleep(2 * time.Second)
			time.AfterFunc(time.Second, n.Start)
			began := time.Now()
			assert.NoError(t, c.Set(t.Context(), "k", 1, 0).Err(), since)
			assert.Less(t, time.Since(began), time.Second+80*time.Millisecond, since)
		})
	}
}

// brittle is a connection that is of no use any more once a deadline for reading has passed.
type brittle struct {
	net.Conn
	dead atomic.Bool
}

func (c *brittle) Read(p []byte) (int, error) {
	if c.dead.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.dead.Store(true)
	}
	return n, err
}

// Connections of the caller's may end with a deadline, as those over WebSockets do: none that
// go-redis would not have set is set on them while an answer is awaited.
func TestForeign_Conn_BrittleDeadlines(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		dial := opt.Dialer
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := dial(ctx, network, addr)
			return &brittle{Conn: nc}, err
		}
		c := ready(t, opt)
		n.Redis.Server().SetPreHook(func(_ *server.Peer, cmd string, _ ...string) bool {
			if strings.EqualFold(cmd, "incr") {
				time.Sleep(40 * time.Millisecond)
			}
			return false
		})
		before := n.Dials()
		for i := range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			got, err := c.Incr(ctx, "n").Result()
			cancel()
			require.NoError(t, err)
			assert.EqualValues(t, i+1, got)
		}
		assert.LessOrEqual(t, n.Dials()-before, 1)
	})
}

// counted is a connection of a dialer that counts those that are open.
type counted struct {
	net.Conn
	open *atomic.Int32
}

func (c counted) Close() error {
	c.open.Add(-1)
	return c.Conn.Close()
}

// countedOver tells what it is on, as wrappers do of which the kernel may be asked.
type countedOver struct{ counted }

func (c countedOver) NetConn() net.Conn { return c.Conn }

// What the caller's dialer returns is closed as such, and once: it may hold more than a socket.
func TestForeign_Conn_ClosedOnce(t *testing.T) {
	for name, wrap := range map[string]func(counted) net.Conn{
		"plain": func(c counted) net.Conn { return &c },
		"over":  func(c counted) net.Conn { return &countedOver{c} },
	} {
		t.Run(name, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				var open atomic.Int32
				dial := opt.Dialer
				opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
					nc, err := dial(ctx, network, addr)
					if err != nil {
						return nil, err
					}
					open.Add(1)
					return wrap(counted{nc, &open}), nil
				}
				c := ready(t, opt)
				for _, fault := range []func(){n.Kill, n.Vanish} {
					held := make([]*redis.Conn, 5)
					for i := range held {
						held[i] = c.Client.Conn()
						require.NoError(t, held[i].Ping(t.Context()).Err())
					}
					for _, cn := range held {
						require.NoError(t, cn.Close())
					}
					fault()
					time.Sleep(10 * time.Second)
					n.Start()
					require.NoError(t, c.Ping(redial.WaitFor(t.Context(), time.Minute)).Err())
					time.Sleep(time.Minute)
					require.NoError(t, c.Ping(t.Context()).Err())
				}
				assert.LessOrEqual(t, open.Load(), int32(c.PoolStats().TotalConns)+1)
				require.NoError(t, c.Close())
				synctest.Wait()
				assert.Zero(t, open.Load())
			})
		})
	}
}

// reshaper is a hook that hands on other commands than those of a transaction.
type reshaper func(cmds []redis.Cmder) []redis.Cmder

func (reshaper) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (reshaper) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (r reshaper) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[0].Name() == "multi" {
			cmds = r(cmds)
		}
		return next(ctx, cmds)
	}
}

// What go-redis is to send as a transaction it takes for one, whatever a hook has made of it. It
// fails, and is not said not to have run.
func TestForeign_Hook_ReshapesATransaction(t *testing.T) {
	ping := func() redis.Cmder { return redis.NewStatusCmd(context.Background(), "ping") }
	for name, hook := range map[string]reshaper{
		"takes EXEC away":   func(cmds []redis.Cmder) []redis.Cmder { return cmds[:len(cmds)-1] },
		"adds one behind":   func(cmds []redis.Cmder) []redis.Cmder { return append(slices.Clone(cmds), ping()) },
		"adds one in front": func(cmds []redis.Cmder) []redis.Cmder { return append([]redis.Cmder{ping()}, cmds...) },
	} {
		for where, build := range map[string]func(opt *redis.Options) redis.UniversalClient{
			"inside": func(opt *redis.Options) redis.UniversalClient {
				c := redial.NewClient(opt)
				c.AddHook(hook)
				return c
			},
			"outside": func(opt *redis.Options) redis.UniversalClient {
				return redial.NewClient(opt, redial.WithOuterHook(hook))
			},
		} {
			for _, cut := range []bool{false, true} {
				t.Run(fmt.Sprint(name, ", ", where, ", cut ", cut), func(t *testing.T) {
					memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
						be := memnet.Inject(n)
						c := build(opt)
						defer c.Close()
						require.NoError(t, c.Ping(t.Context()).Err())
						if cut {
							be.Times("incr", 1, memnet.HangUp)
						}
						var cmds []redis.Cmder
						var err error
						require.NotPanics(t, func() {
							cmds, err = c.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
								p.Incr(t.Context(), "n")
								p.Incr(t.Context(), "n")
								return nil
							})
						})
						require.Error(t, err)
						assert.False(t, redial.SafeToRetry(err))
						for _, cmd := range cmds {
							assert.Error(t, cmd.Err())
							assert.False(t, redial.SafeToRetry(cmd.Err()))
							if cut {
								assert.ErrorIs(t, cmd.Err(), redial.ErrOutcomeUnknown)
							}
						}
						assert.NoError(t, c.Ping(t.Context()).Err())
					})
				})
			}
		}
	}
}
