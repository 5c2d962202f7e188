package redial_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/internal/testkit/pools"
	"github.com/redial-go/redial/redialtest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestClient_Restart(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, _ *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: b.Addr})
		l := testkit.StartLoad(t, c, 10)
		for range 2 {
			l.Flows(t, time.Second)
			b.Kill()
			testkit.AwaitState(t, c, redial.StateReconnecting, 4*time.Second)
			time.Sleep(500 * time.Millisecond) // an outage of some length
			b.Start()
			l.Flows(t, 2*time.Second)
		}
		l.Stop()
		assert.Zero(t, l.Unavailable.Load(), "the outages were shorter than the grace")
		assert.Nil(t, l.Other.Load())
		assert.EqualValues(t, 2, c.Stats().Outages)
	})
}

func TestClient_Refused(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, p *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: p.Addr()})
		l := testkit.StartLoad(t, c, 20)
		for range 3 {
			l.Flows(t, time.Second)
			p.Refuse()
			testkit.AwaitState(t, c, redial.StateReconnecting, 4*time.Second)
			time.Sleep(300 * time.Millisecond)
			p.Restore()
			l.Flows(t, time.Second)
		}
		l.Check(t, b.Addr)
		assert.Zero(t, l.Unavailable.Load())
	})
}

// Connections break again and again while the server is well: that is no outage.
func TestClient_ConnectionsReset(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, p *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: p.Addr()})
		l := testkit.StartLoad(t, c, 20)
		for i := range 20 {
			l.Flows(t, time.Second)
			if i%2 == 0 {
				p.Reset()
			} else {
				p.Cut()
			}
		}
		l.Flows(t, time.Second)
		l.Check(t, b.Addr)
		assert.Zero(t, l.Unavailable.Load())
		assert.Zero(t, c.Stats().Outages)
	})
}

func TestClient_ClientKill(t *testing.T) {
	t.Parallel()
	testkit.OnReal(t, func(t *testing.T, b testkit.Backend, _ *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: b.Addr})
		l := testkit.StartLoad(t, c, 20)
		for range 20 {
			l.Flows(t, time.Second)
			b.Real.Do("CLIENT", "KILL", "TYPE", "normal")
		}
		l.Flows(t, time.Second)
		l.Check(t, b.Addr)
		assert.Zero(t, l.Unavailable.Load())
	})
}

// The reply is cut off after the server ran the command: nothing runs twice, and
// the error says what is known.
func TestClient_ReplyCutOff(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, p *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: p.Addr()})
		p.Match("incr")
		for range 40 {
			p.CutAfterRequest(1)
			err := c.Incr(t.Context(), testkit.Counter).Err()
			require.ErrorIs(t, err, redial.ErrOutcomeUnknown)
			require.False(t, redial.SafeToRetry(err))
		}
		p.CutAfterRequest(0)
		got, err := c.Get(t.Context(), testkit.Counter).Int()
		require.NoError(t, err)
		assert.Equal(t, 40, got)
		assert.Zero(t, c.Stats().Outages)
	})
}

// Two hundred cuts during commands of every kind: what was acknowledged ran, and
// nothing ran that was neither acknowledged nor said to be unknown.
func TestClient_TwoHundredCuts(t *testing.T) {
	t.Parallel()
	testkit.OnReal(t, func(t *testing.T, b testkit.Backend, p *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: p.Addr()})
		ctx := t.Context()
		script := redis.NewScript("return redis.call('INCR', KEYS[1])")
		kinds := map[string]func(note func(error)){
			"incr":  func(note func(error)) { note(c.Incr(ctx, "incr").Err()) },
			"lpush": func(note func(error)) { note(c.LPush(ctx, "lpush", "x").Err()) },
			"xadd": func(note func(error)) {
				note(c.XAdd(ctx, &redis.XAddArgs{Stream: "xadd", Values: []string{"k", "v"}}).Err())
			},
			"eval": func(note func(error)) { note(script.Eval(ctx, c, []string{"eval"}).Err()) },
			"pipeline": func(note func(error)) {
				cmds, _ := c.Pipelined(ctx, func(p redis.Pipeliner) error {
					for range 5 {
						p.Incr(ctx, "pipeline")
					}
					return nil
				})
				for _, cmd := range cmds {
					note(cmd.Err())
				}
			},
			"exec": func(note func(error)) {
				cmds, _ := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
					p.Incr(ctx, "exec")
					p.Incr(ctx, "exec")
					return nil
				})
				for _, cmd := range cmds {
					note(cmd.Err())
				}
			},
		}
		type account struct{ acknowledged, unknown, not atomic.Int64 }
		accounts := make(map[string]*account)
		stop := make(chan struct{})
		var flow atomic.Int64
		var wg sync.WaitGroup
		for kind, run := range kinds {
			a := new(account)
			accounts[kind] = a
			for range 4 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						run(func(err error) {
							switch {
							case err == nil:
								a.acknowledged.Add(1)
								flow.Add(1)
							case errors.Is(err, redial.ErrOutcomeUnknown):
								a.unknown.Add(1)
							case redial.SafeToRetry(err):
								a.not.Add(1)
							default:
								t.Errorf("%s failed without an outcome: %v", kind, err)
							}
						})
					}
				})
			}
		}
		for i := range 200 {
			before := flow.Load()
			require.Eventually(t, func() bool { return flow.Load() > before+20 }, 5*time.Second, time.Millisecond)
			if i%2 == 0 {
				p.Reset()
			} else {
				p.Cut()
			}
		}
		close(stop)
		wg.Wait()
		for kind, a := range accounts {
			var ran int64
			switch kind {
			case "lpush":
				ran = b.Real.Do("LLEN", kind).(int64)
			case "xadd":
				ran = b.Real.Do("XLEN", kind).(int64)
			default:
				var err error
				ran, err = strconv.ParseInt(b.Real.Do("GET", kind).(string), 10, 64)
				require.NoError(t, err)
			}
			t.Logf("%-8s %5d acknowledged <= %5d ran <= %5d with %d unknown; %d did not run", kind,
				a.acknowledged.Load(), ran, a.acknowledged.Load()+a.unknown.Load(), a.unknown.Load(), a.not.Load())
			assert.LessOrEqual(t, a.acknowledged.Load(), ran, kind)
			assert.LessOrEqual(t, ran, a.acknowledged.Load()+a.unknown.Load(), kind)
		}
	})
}

// A server that merely pauses, for a fork or a slow script, causes no error.
func TestClient_ServerPauses(t *testing.T) {
	t.Parallel()
	testkit.OnReal(t, func(t *testing.T, b testkit.Backend, _ *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: b.Addr})
		l := testkit.StartLoad(t, c, 20)
		l.Flows(t, time.Second)
		b.Real.Freeze()
		time.Sleep(1500 * time.Millisecond)
		b.Real.Thaw()
		l.Flows(t, time.Second)
		l.Check(t, b.Addr)
		assert.Zero(t, l.Unavailable.Load())
		assert.Zero(t, l.Unknown.Load())
		assert.Zero(t, c.Stats().Outages)
	})
}

// The same with timeouts shorter than the pause: reads are sent again until they
// succeed, writes end unknown, and the pool that is held up fails nobody.
func TestClient_ServerPauses_TightTimeouts(t *testing.T) {
	t.Parallel()
	testkit.OnReal(t, func(t *testing.T, b testkit.Backend, _ *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: b.Addr, PoolSize: 5, ReadTimeout: 300 * time.Millisecond, PoolTimeout: 500 * time.Millisecond})
		l := testkit.StartLoad(t, c, 20)
		l.Flows(t, time.Second)
		b.Real.Freeze()
		time.Sleep(1500 * time.Millisecond)
		b.Real.Thaw()
		l.Flows(t, 2*time.Second)
		l.Check(t, b.Addr)
		assert.Zero(t, l.Unavailable.Load())
		assert.Zero(t, c.Stats().Outages)
	})
}

func TestClient_ServerFrozen(t *testing.T) {
	t.Parallel()
	testkit.OnReal(t, func(t *testing.T, b testkit.Backend, _ *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: b.Addr})
		l := testkit.StartLoad(t, c, 20)
		l.Flows(t, time.Second)
		began := time.Now()
		b.Real.Freeze()
		testkit.AwaitState(t, c, redial.StateReconnecting, 5*time.Second)
		t.Logf("noticed after %v", time.Since(began))
		time.Sleep(time.Second)
		b.Real.Thaw()
		l.Flows(t, 2*time.Second)
		l.Check(t, b.Addr)
		assert.Zero(t, l.Unavailable.Load())
	})
}

// Everything goes silent, nothing is closed, and somebody acknowledges what is sent: the
// gate is shut, and what is in flight keeps its own time.
func TestClient_BlackHole(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, p *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: p.Addr(), ReadTimeout: 3 * time.Second})
		require.NoError(t, c.Ping(t.Context()).Err()) // a connection for BLPOP
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		blocked := make(chan error, 1)
		go func() { blocked <- c.BLPop(ctx, 0, "queue").Err() }()
		time.Sleep(100 * time.Millisecond)
		l := testkit.StartLoad(t, c, 10)
		l.Flows(t, time.Second)
		began := time.Now()
		p.Hang()
		testkit.AwaitState(t, c, redial.StateReconnecting, 5*time.Second)
		t.Logf("noticed after %v", time.Since(began))
		p.Restore()
		l.Flows(t, 6*time.Second)
		l.Check(t, b.Addr)
		assert.Empty(t, blocked, "the server may yet answer")
		cancel()
		assert.ErrorIs(t, <-blocked, redial.ErrOutcomeUnknown)
	})
}

func TestClient_IdleConnectionsDropped(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, p *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: p.Addr(), PoolSize: 50})
		pools.Fill(t, c, 20)
		require.GreaterOrEqual(t, p.DropIdle(), 20)
		time.Sleep(3 * time.Second)
		var slowest atomic.Int64
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				began := time.Now()
				assert.NoError(t, c.Incr(t.Context(), testkit.Counter).Err())
				if took := int64(time.Since(began)); took > slowest.Load() {
					slowest.Store(took)
				}
			})
		}
		wg.Wait()
		t.Logf("slowest of 50 calls: %v", time.Duration(slowest.Load()))
		assert.Equal(t, "50", c.Get(t.Context(), testkit.Counter).Val())
	})
}

func TestClient_ServerNotThereAtStart(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, p *redialtest.Proxy) {
		for name, fault := range map[string]func(){
			"refused":            p.Refuse,
			"accepts and hangs":  p.AcceptAndHang,
			"accepts and closes": p.AcceptAndClose,
		} {
			t.Run(name, func(t *testing.T) {
				p.Restore()
				fault()
				c := redial.NewClient(&redis.Options{Addr: p.Addr()}, redial.WithHeartbeat(300*time.Millisecond, 300*time.Millisecond))
				defer c.Close()
				ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
				defer cancel()
				err := c.Set(ctx, "k", "v", 0).Err()
				assert.ErrorIs(t, err, context.DeadlineExceeded)
				assert.ErrorIs(t, err, redial.ErrUnavailable)
				assert.Equal(t, redial.StateConnecting, c.State())
				time.AfterFunc(500*time.Millisecond, p.Restore)
				assert.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
			})
		}
	})
}

// While the server loads its dataset after a restart, commands wait.
func TestClient_Loading(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t, "--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
	var pairs []any
	for i := range 2000 {
		pairs = append(pairs, "key:"+strconv.Itoa(i), "value")
	}
	s.Do(append([]any{"MSET"}, pairs...)...)
	s.Do("SAVE")
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	require.NoError(t, c.Ping(t.Context()).Err())
	s.Kill()
	s.LaunchOnly()
	began := time.Now()
	sawLoading := false
	bare := redis.NewClient(&redis.Options{Addr: s.Addr(), MaxRetries: -1})
	defer bare.Close()
	for !sawLoading && time.Since(began) < 3*time.Second {
		sawLoading = redis.IsLoadingError(bare.Get(t.Context(), "key:1").Err())
	}
	require.True(t, sawLoading, "the server did not load")
	got, err := c.Get(t.Context(), "key:1999").Result()
	require.NoError(t, err)
	assert.Equal(t, "value", got)
	t.Logf("answered after %v, %v", time.Since(began), c.Stats())
}

func TestClient_MaxClients(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	s.Do("CONFIG", "SET", "maxclients", "10")
	var crowd []net.Conn
	free := func() {
		for _, nc := range crowd {
			_ = nc.Close()
		}
	}
	defer free()
	for turnedAway := 0; turnedAway < 5; { // one slot may free up late
		nc, err := net.Dial("tcp", s.Addr())
		require.NoError(t, err)
		crowd = append(crowd, nc)
		_, _ = fmt.Fprint(nc, "PING\r\n")
		line, _ := bufio.NewReader(nc).ReadString('\n')
		if turnedAway++; line == "+PONG\r\n" {
			turnedAway = 0
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var err error
	for range 3 { // the first may get the place that the heartbeat gave up
		cn := c.Conn()
		defer cn.Close()
		if err = cn.Ping(ctx).Err(); err != nil {
			break
		}
	}
	assert.ErrorIs(t, err, redial.ErrUnavailable)
	assert.ErrorContains(t, err, "max number of clients")
	time.AfterFunc(300*time.Millisecond, free)
	assert.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	assert.Zero(t, c.Stats().Outages, "a server that is full is not down")
}

// A wrong password is an answer: it comes at once and unchanged.
func TestClient_WrongPassword(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	s.Do("CONFIG", "SET", "requirepass", "right")
	for _, opt := range []*redis.Options{
		{Addr: s.Addr(), Password: "wrong-secret"},
		{Addr: s.Addr()},
	} {
		c := redial.NewClient(opt)
		began := time.Now()
		err := c.Set(t.Context(), "k", "v", 0).Err()
		require.Error(t, err)
		assert.True(t, redis.IsAuthError(err), "%v", err)
		assert.NotContains(t, err.Error(), "secret")
		assert.Less(t, time.Since(began), time.Second)
		assert.NoError(t, c.Close())
	}
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr(), Password: "right"})
	assert.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
}

func TestClient_TLS(t *testing.T) {
	t.Parallel()
	s := redialtest.StartTLSServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr(), TLSConfig: s.TLSConfig(), PoolSize: 50})
	const commands = 50
	rounds := 3
	if runtime.GOOS != "linux" {
		rounds = 0 // nobody sees through TLS that the peer has closed
		assert.NoError(t, c.Set(t.Context(), testkit.Counter, 0, 0).Err())
	}
	for range rounds {
		pools.Fill(t, c, 20)
		s.Do("CLIENT", "KILL", "TYPE", "normal") // closes the idle connections
		time.Sleep(50 * time.Millisecond)        // for the news to arrive
		var wg sync.WaitGroup
		for range commands {
			wg.Go(func() { assert.NoError(t, c.Incr(t.Context(), testkit.Counter).Err()) })
		}
		wg.Wait()
	}
	assert.Equal(t, strconv.Itoa(commands*rounds), c.Get(t.Context(), testkit.Counter).Val())
	s.Kill()
	testkit.AwaitState(t, c, redial.StateReconnecting, 4*time.Second)
	time.AfterFunc(200*time.Millisecond, s.Start)
	assert.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
}

// What works with go-redis works under supervision, before and after an outage.
func TestClient_KeepsFeaturesOfGoRedis(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket := filepath.Join(dir, "redis.sock")
	args := []string{"--user", "app", "on", ">secret", "~*", "&*", "+@all"}
	sockets := runtime.GOOS != "windows" // where servers have none
	if sockets {
		args = append(args, "--unixsocket", socket)
	}
	s := redialtest.StartServer(t, args...)
	connects := new(atomic.Int64)
	dials := new(atomic.Int64)
	options := map[string]*redis.Options{
		"RESP2":       {Addr: s.Addr(), Protocol: 2},
		"RESP3":       {Addr: s.Addr(), Protocol: 3},
		"unix socket": {Addr: socket},
		"unix, named": {Network: "unix", Addr: socket},
		"ACL user":    {Addr: s.Addr(), Username: "app", Password: "secret"},
		"provider":    {Addr: s.Addr(), CredentialsProvider: func() (string, string) { return "app", "secret" }},
		"provider, context": {Addr: s.Addr(), CredentialsProviderContext: func(context.Context) (string, string, error) {
			return "app", "secret", nil
		}},
		"own dialer": {Addr: s.Addr(), Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return new(net.Dialer).DialContext(ctx, network, addr)
		}},
		"OnConnect": {Addr: s.Addr(), OnConnect: func(ctx context.Context, cn *redis.Conn) error {
			connects.Add(1)
			return cn.Ping(ctx).Err()
		}},
		"MinIdleConns":        {Addr: s.Addr(), MinIdleConns: 5},
		"database":            {Addr: s.Addr(), DB: 3, ClientName: "redial-test"},
		"client-side caching": {Addr: s.Addr(), ClientSideCacheConfig: &redis.ClientSideCacheConfig{}},
		"no pipeline pool":    {Addr: s.Addr(), PipelinePoolSize: -1},
		"no maintenance notifications": {Addr: s.Addr(),
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}},
		"context timeouts": {Addr: s.Addr(), ContextTimeoutEnabled: true},
		"no dial timeout":  {Addr: s.Addr(), DialTimeout: -1},
		"no timeouts":      {Addr: s.Addr(), ReadTimeout: -1, WriteTimeout: -1},
		"no deadlines":     {Addr: s.Addr(), ReadTimeout: -2, WriteTimeout: -2},
		"lifetimes":        {Addr: s.Addr(), ConnMaxIdleTime: time.Millisecond, ConnMaxLifetime: 10 * time.Millisecond},
	}
	if !sockets {
		maps.DeleteFunc(options, func(name string, _ *redis.Options) bool { return strings.HasPrefix(name, "unix") })
	}
	clients := make(map[string]*redial.Client)
	for name, opt := range options {
		c := testkit.Connect(t, opt)
		clients[name] = c
		t.Run(name, func(t *testing.T) {
			everyFeature(t, c)
			c.Reconnect("test")
			everyFeature(t, c)
		})
	}
	s.Kill()
	for _, c := range clients {
		testkit.AwaitState(t, c, redial.StateReconnecting, 4*time.Second)
	}
	s.Start()
	for name, c := range clients {
		t.Run(name+", after an outage", func(t *testing.T) { everyFeature(t, c) })
	}
	assert.Positive(t, connects.Load())
	assert.Positive(t, dials.Load())
}

// everyFeature makes use of a client in all the ways there are.
func everyFeature(t *testing.T, c *redial.Client) {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	for range 3 {
		require.Equal(t, "v", c.Get(ctx, "k").Val())
	}
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.Incr(ctx, "n"); return nil })
	require.NoError(t, err)
	_, err = c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
	require.NoError(t, err)
	require.NoError(t, c.Watch(ctx, func(tx *redis.Tx) error {
		_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
		return err
	}, "n"))
	cn := c.Conn()
	require.NoError(t, cn.ClientSetName(ctx, "held").Err())
	require.NoError(t, cn.Close())
	sub := c.Subscribe(ctx, "news")
	_, err = sub.Receive(ctx)
	require.NoError(t, err)
	require.NoError(t, c.Publish(ctx, "news", "hello").Err())
	m, err := sub.ReceiveMessage(ctx)
	require.NoError(t, err)
	require.Equal(t, "hello", m.Payload)
	_, err = sub.ReceiveTimeout(ctx, 10*time.Millisecond)
	var ne net.Error
	require.True(t, errors.As(err, &ne) && ne.Timeout(), "%v", err)
	require.NoError(t, sub.Close())
}

// Interfaces of go-redis that applications are written against.
var (
	_ redis.Cmdable         = (*redial.Client)(nil)
	_ redis.UniversalClient = (*redial.Client)(nil)
	_ redis.Scripter        = (*redial.Client)(nil)
)

func TestClient_MinIdleConns_AreWarm(t *testing.T) {
	pools.NeedLook(t) // or what was given up stays idle in the pool, and takes the place of others
	t.Parallel()
	testkit.OnReal(t, func(t *testing.T, b testkit.Backend, _ *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: b.Addr, MinIdleConns: 5})
		require.Eventually(t, func() bool { return c.Stats().Connections >= 5 }, time.Second, time.Millisecond)
		b.Kill()
		testkit.AwaitState(t, c, redial.StateReconnecting, 4*time.Second)
		b.Start()
		testkit.AwaitState(t, c, redial.StateConnected, 4*time.Second)
		require.Eventually(t, func() bool { return c.Stats().Connections >= 5 }, 2*time.Second, time.Millisecond,
			"nobody has asked for a connection, and yet the pool must be warm again")
	})
}

// An exhausted pool says nothing about the server, and nothing was sent.
func TestClient_PoolExhausted_IsNotDead(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, _ *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: b.Addr, PoolSize: 1, PoolTimeout: 100 * time.Millisecond, MaxRetries: -1},
			redial.WithHeartbeat(100*time.Millisecond, time.Second))
		held := c.Conn()
		defer held.Close()
		require.NoError(t, held.Ping(t.Context()).Err())
		for range 20 {
			err := c.Incr(t.Context(), testkit.Counter).Err()
			require.ErrorIs(t, err, redis.ErrPoolTimeout)
			require.ErrorIs(t, err, redial.ErrUnavailable)
			ctx, cancel := context.WithTimeout(t.Context(), 40*time.Millisecond) // it must not have ended before the call
			err = c.Incr(ctx, testkit.Counter).Err()
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorIs(t, err, redial.ErrUnavailable)
			require.True(t, redial.SafeToRetry(err))
		}
		assert.Equal(t, redial.StateConnected, c.State())
		assert.Zero(t, c.Stats().Outages)
	})
}

// Nothing was sent, so it is tried again, as often as go-redis does.
func TestClient_PoolExhausted_ForAMoment(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, _ *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: b.Addr, PoolSize: 1, PoolTimeout: 100 * time.Millisecond})
		for name, run := range map[string]func(ctx context.Context) error{
			"command": func(ctx context.Context) error { return c.Incr(ctx, testkit.Counter).Err() },
			"watch":   func(ctx context.Context) error { return c.Watch(ctx, func(*redis.Tx) error { return nil }, "k") },
		} {
			held := c.Conn()
			require.NoError(t, held.Ping(t.Context()).Err(), name)
			require.ErrorIs(t, run(redial.FailFast(t.Context())), redis.ErrPoolTimeout, name)
			time.AfterFunc(150*time.Millisecond, func() { _ = held.Close() })
			require.NoError(t, run(t.Context()), name)
		}
	})
}

// A pool that stays exhausted is asked as often as with go-redis, and no more where go-redis
// does so itself.
func TestClient_PoolExhausted_AsOftenAsBare(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, _ *redialtest.Proxy) {
		const patience = 100 * time.Millisecond
		for name, tc := range map[string]struct {
			retries   int
			supervise bool
			asks      time.Duration
		}{
			"by default": {0, false, 4}, "never again": {-1, false, 1}, "once more": {1, false, 2}, "supervised": {0, true, 4},
		} {
			opt := &redis.Options{Addr: b.Addr, PoolSize: 1, PoolTimeout: patience, MaxRetries: tc.retries}
			rdb := redis.NewClient(opt)
			defer rdb.Close()
			if tc.supervise {
				s, err := redial.Supervise(rdb)
				require.NoError(t, err)
				defer s.Close()
				testkit.WaitReady(t, s)
			} else {
				rdb = testkit.Connect(t, opt).Client
			}
			held := rdb.Conn()
			require.NoError(t, held.Ping(t.Context()).Err(), name)
			limit := 2*tc.asks*patience + patience
			took := platform.AtBest(limit, func() {
				require.ErrorIs(t, rdb.Incr(t.Context(), testkit.Counter).Err(), redis.ErrPoolTimeout, name)
			})
			assert.GreaterOrEqual(t, took, tc.asks*patience, name)
			assert.Less(t, took, limit, name)
			require.NoError(t, held.Close())
		}
	})
}

// Subscriptions made before an outage deliver after it, and do not dial during it.
func TestClient_PubSub_SurvivesAnOutage(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, p *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: p.Addr()})
		sub := c.Subscribe(t.Context(), "news")
		defer sub.Close()
		_, err := sub.Receive(t.Context())
		require.NoError(t, err)
		messages := sub.Channel()
		p.Refuse()
		testkit.AwaitState(t, c, redial.StateReconnecting, 4*time.Second)
		before := c.Stats().Dials
		time.Sleep(2 * time.Second)
		assert.Less(t, c.Stats().Dials-before, uint64(15), "without demand the schedule is slow")
		p.Restore()
		testkit.AwaitState(t, c, redial.StateConnected, 4*time.Second)
		back := time.Now()
		for n := int64(0); n == 0; {
			n, err = c.Publish(t.Context(), "news", "hello").Result()
			require.NoError(t, err)
			require.Less(t, time.Since(back), time.Second, "never resubscribed")
			time.Sleep(time.Millisecond) // who subscribes wants the processor as well
		}
		t.Logf("resubscribed %v after the link was up", time.Since(back))
		assert.Equal(t, "hello", (<-messages).Payload)
	})
}

// Ten thousand commands wait; when the server is back each runs exactly once.
func TestClient_TenThousandWaiters(t *testing.T) {
	t.Parallel()
	testkit.OnEach(t, func(t *testing.T, b testkit.Backend, p *redialtest.Proxy) {
		const waiters = redial.DefaultMaxWaiting
		c := testkit.Connect(t, &redis.Options{Addr: p.Addr(), PoolTimeout: time.Minute}, redial.WithGrace(time.Minute))
		p.Refuse()
		testkit.AwaitState(t, c, redial.StateReconnecting, 4*time.Second)
		var wg sync.WaitGroup
		for range waiters {
			wg.Go(func() { assert.NoError(t, c.Incr(t.Context(), testkit.Counter).Err()) })
		}
		require.Eventually(t, func() bool { return c.Stats().Waiting == waiters }, time.Minute, time.Millisecond)
		p.Restore()
		wg.Wait()
		assert.Equal(t, strconv.Itoa(waiters), c.Get(t.Context(), testkit.Counter).Val())
		assert.Zero(t, c.Stats().Refused)
	})
}

func TestClient_Shutdown_OfTheServer(t *testing.T) {
	t.Parallel()
	testkit.OnReal(t, func(t *testing.T, b testkit.Backend, _ *redialtest.Proxy) {
		c := testkit.Connect(t, &redis.Options{Addr: b.Addr})
		assert.NoError(t, c.ShutdownNoSave(t.Context()).Err(), "the server goes away, as it was told")
	})
}

// While everything works, a command allocates no more than without supervision, whatever
// its context and with a hook of the caller, too.
func TestClient_HealthyPath_AllocatesNothing(t *testing.T) {
	redial.Once(t.Context(), "another command of the program has an id")
	s := redialtest.StartServer(t)
	for _, hooked := range []bool{false, true} {
		bare := redis.NewClient(&redis.Options{Addr: s.Addr()})
		defer bare.Close()
		c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
		if hooked {
			bare.AddHook(testkit.Passing{})
			c.AddHook(testkit.Passing{})
		}
		testAllocations(t, c.Client, bare, hooked)
	}
}

func testAllocations(t *testing.T, c, bare *redis.Client, hooked bool) {
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	cancelable, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	for name, run := range map[string]func(ctx context.Context, rdb *redis.Client){
		"GET":  func(ctx context.Context, rdb *redis.Client) { _ = rdb.Get(ctx, "k").Err() },
		"INCR": func(ctx context.Context, rdb *redis.Client) { _ = rdb.Incr(ctx, "n").Err() },
		"pipeline of 10": func(ctx context.Context, rdb *redis.Client) {
			_, _ = rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
				for range 10 {
					p.Get(ctx, "k")
				}
				return nil
			})
		},
	} {
		for _, ctx := range []context.Context{context.Background(), cancelable} {
			with := testing.AllocsPerRun(500, func() { run(ctx, c) })
			without := testing.AllocsPerRun(500, func() { run(ctx, bare) })
			t.Logf("%s: %v allocations, %v without redial", name, with, without)
			if platform.RaceDetector {
				without++ // it has pools lose things at random
			}
			if !pools.Look && (ctx == cancelable || hooked) {
				without++ // elsewhere the look of bare's pool costs what these do here
			}
			assert.LessOrEqual(t, with, without, name)
		}
	}
}

// A goroutine that issues its first command has a small stack. It grows once, and not again on
// the way down to the socket, where all of it would have to be copied.
func TestClient_HealthyPath_GrowsStacksOnce(t *testing.T) {
	if platform.RaceDetector {
		t.Skip("its frames are larger")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection shrinks stacks
	redial.Once(t.Context(), "another command of the program has an id")
	s := redialtest.StartServer(t)
	var moved atomic.Bool
	opt := &redis.Options{Addr: s.Addr()}
	c, ring := testkit.Connect(t, opt), redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.Addr()}})
	defer ring.Close()
	cluster := testkit.NewCluster(t, redialtest.StartCluster(t, 3, 0))
	for name, rdb := range map[string]redis.UniversalClient{"client": c, "ring": ring, "cluster": cluster} {
		rdb.AddHook(stackHook{&moved})
		for kind, run := range map[string]func(ctx context.Context) error{
			"command": func(ctx context.Context) error { return rdb.Set(ctx, "k", "v", 0).Err() },
			"pipeline": func(ctx context.Context) error {
				_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, "k", "v", 0).Err() })
				return err
			},
			"transaction": func(ctx context.Context) error {
				_, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, "k", "v", 0).Err() })
				return err
			},
		} {
			inNewGoroutine := func() error {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				done := make(chan error)
				go func() { done <- run(ctx) }()
				return <-done
			}
			require.NoError(t, inNewGoroutine(), "%s, %s", name, kind)      // there is a connection
			for _, idle := range []time.Duration{0, 2 * time.Millisecond} { // then contexts are watched at once
				moved.Store(true)
				for tries := 0; tries < 5 && moved.Load(); tries++ { // where memory is short, to allocate takes more room
					time.Sleep(idle)
					moved.Store(false)
					require.NoError(t, inNewGoroutine(), "%s, %s, after %v", name, kind, idle)
				}
				assert.False(t, moved.Load(), "%s, %s, after %v", name, kind, idle)
			}
		}
	}
}

// stackHook notes that the stack of a goroutine had to move for what is behind the hook.
type stackHook struct{ moved *atomic.Bool }

func (stackHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h stackHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		before := platform.EndOfStack()
		err := next(ctx, cmd)
		if platform.EndOfStack() != before {
			h.moved.Store(true)
		}
		return err
	}
}

func (h stackHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		before := platform.EndOfStack()
		err := next(ctx, cmds)
		if platform.EndOfStack() != before {
			h.moved.Store(true)
		}
		return err
	}
}

func TestClient_Close_LeavesNothing(t *testing.T) {
	redialtest.Leaks(t)
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	for name, prepare := range map[string]func(c *redial.Client){
		"connected": func(c *redial.Client) { _ = c.Ping(t.Context()).Err() },
		"refused":   func(c *redial.Client) { p.Refuse(); testkit.AwaitState(t, c, redial.StateReconnecting, 4*time.Second) },
		"silent":    func(c *redial.Client) { p.Hang(); time.Sleep(200 * time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			p.Restore()
			c := testkit.Connect(t, &redis.Options{Addr: p.Addr()})
			prepare(c)
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() { _ = c.Incr(t.Context(), testkit.Counter).Err() })
				wg.Go(func() { _ = c.BLPop(t.Context(), 0, "queue").Err() })
			}
			time.Sleep(50 * time.Millisecond)
			began := time.Now()
			require.NoError(t, c.Close())
			wg.Wait()
			assert.Less(t, time.Since(began), 500*time.Millisecond)
		})
	}
}
