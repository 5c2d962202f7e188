package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
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

const inNamespace = "REDIAL_TEST_IN_NETWORK_NAMESPACE"

// TestNetwork_PacketsDropped drops packets, as a dead host or a firewall does: no
// proxy can, for the kernel at its end would go on acknowledging. It runs itself
// again in a network namespace of its own, and alone: it measures times to which
// others would add.
func TestNetwork_PacketsDropped(t *testing.T) {
	if os.Getenv(inNamespace) == "1" {
		require.NoError(t, sh("ip link set lo up"))
		t.Run("everything", testBlackHole)
		t.Run("one subscriber", testHalfOpenSubscriber)
		t.Run("one blocked command", testHalfOpenBLPop)
		t.Run("some of many, under load", testHalfOpenUnderLoad)
		return
	}
	inNamespaceOfItsOwn(t)
}

// TestNetwork_PacketsLost loses packets now and then, in another namespace. It measures no
// times, so it is in nobody's way.
func TestNetwork_PacketsLost(t *testing.T) {
	if os.Getenv(inNamespace) == "1" {
		require.NoError(t, sh("ip link set lo up"))
		t.Run("now and then", testPacketLoss)
		return
	}
	t.Parallel()
	inNamespaceOfItsOwn(t)
}

// inNamespaceOfItsOwn runs the test again, alone, where it has a network of its own.
func inNamespaceOfItsOwn(t *testing.T) {
	t.Helper()
	unshare := []string{"unshare", "-n"}
	if os.Getuid() != 0 {
		unshare = []string{"unshare", "-rn"}
	}
	probe := exec.Command(unshare[0], append(unshare[1:], "iptables", "-w", "-L")...)
	if out, err := probe.CombinedOutput(); err != nil {
		msg := fmt.Sprintf("needs a network namespace with iptables: %v: %s", err, out)
		if os.Getenv("REDIAL_REQUIRE_REDIS") == "1" {
			t.Fatal(msg)
		}
		redialtest.Skip(t, msg)
	}
	cmd := exec.CommandContext(t.Context(), unshare[0],
		append(unshare[1:], os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	require.NoError(t, err)
}

// sh runs a command in the namespace of this process.
func sh(line string) error {
	words := strings.Fields(line)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}

// drop has the packets of a port dropped, in both directions, until the returned
// function is called.
func drop(t *testing.T, port string) (heal func()) {
	t.Helper()
	rules := []string{"INPUT -p tcp --dport " + port, "INPUT -p tcp --sport " + port}
	for _, rule := range rules {
		require.NoError(t, sh("iptables -w -A "+rule+" -j DROP"))
	}
	return func() {
		for _, rule := range rules {
			require.NoError(t, sh("iptables -w -D "+rule+" -j DROP"))
		}
	}
}

func portOf(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	return port
}

func testBlackHole(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	require.NoError(t, c.Ping(t.Context()).Err())
	released := make(chan time.Duration, 1)
	began := time.Now()
	go func() {
		err := c.BLPop(context.Background(), 0, "queue").Err()
		assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
		released <- time.Since(began)
	}()
	l := testkit.StartLoad(t, c, 10)
	l.Flows(t, time.Second)
	time.Sleep(200 * time.Millisecond)
	began = time.Now()
	heal := drop(t, portOf(t, s.Addr()))
	testkit.AwaitState(t, c, redial.StateReconnecting, 3500*time.Millisecond)
	t.Logf("noticed after %v, blocked command released after %v", time.Since(began), <-released)
	time.Sleep(500 * time.Millisecond)
	heal()
	healed := time.Now()
	l.Flows(t, 3*time.Second)
	t.Logf("first success %v after the network healed", time.Since(healed))
	l.Check(t, s.Addr())
}

// ports are the local ports of a client's connections, in the order of its dials.
type ports struct {
	mu   sync.Mutex
	list []string
}

// clientPort returns the port of the connection whose last command the server says was that.
func clientPort(t *testing.T, s *redialtest.Server, command string) string {
	t.Helper()
	var port string
	require.Eventually(t, func() bool {
		for line := range strings.Lines(s.Do("CLIENT", "LIST").(string)) {
			if strings.Contains(line, " cmd="+command+" ") {
				_, rest, _ := strings.Cut(line, " addr=")
				addr, _, _ := strings.Cut(rest, " ")
				_, port, _ = net.SplitHostPort(addr)
			}
		}
		return port != ""
	}, 2*time.Second, 10*time.Millisecond)
	return port
}

// remember returns options whose dialer notes the local ports it was given.
func remember(s *redialtest.Server, p *ports) *redis.Options {
	return &redis.Options{Addr: s.Addr(), Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		if conf := s.TLSConfig(); err == nil && conf != nil {
			conf.ServerName = "localhost"
			nc = tls.Client(nc, conf)
		}
		if err == nil {
			_, port, _ := net.SplitHostPort(nc.LocalAddr().String())
			p.mu.Lock()
			p.list = append(p.list, port)
			p.mu.Unlock()
		}
		return nc, err
	}}
}

// The connection of a subscriber is half-open, everything else is well.
func testHalfOpenSubscriber(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	sub := c.Subscribe(t.Context(), "news")
	defer sub.Close()
	_, err := sub.Receive(t.Context())
	require.NoError(t, err)
	messages := sub.Channel()
	began := time.Now()
	defer drop(t, clientPort(t, s, "subscribe"))()
	for {
		s.Do("PUBLISH", "news", "hello")
		select {
		case <-messages:
		case <-time.After(20 * time.Millisecond):
			require.Less(t, time.Since(began), 10*time.Second, "never resubscribed")
			continue
		}
		break
	}
	t.Logf("a message arrived %v after the connection went silent", time.Since(began))
	assert.Greater(t, time.Since(began), time.Second, "it was another connection")
	assert.Less(t, time.Since(began), 4*time.Second)
	assert.Zero(t, c.Stats().Outages)
}

// A worker waits in BLPOP on a connection that is half-open.
func testHalfOpenBLPop(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	require.NoError(t, c.Ping(t.Context()).Err())
	blocked := make(chan error, 1)
	go func() { blocked <- c.BLPop(context.Background(), 0, "queue").Err() }()
	port := clientPort(t, s, "blpop")
	began := time.Now()
	defer drop(t, port)()
	select {
	case err := <-blocked:
		assert.True(t, errors.Is(err, redial.ErrOutcomeUnknown), "%v", err)
		t.Logf("released %v after the connection went silent: %v", time.Since(began), err)
		assert.Less(t, time.Since(began), 4*time.Second)
	case <-time.After(10 * time.Second):
		t.Fatal("still blocked")
	}
	assert.Zero(t, c.Stats().Outages)
}

// Some of the connections of a busy client are half-open. Reads do not fail, and nobody
// waits for long.
func testHalfOpenUnderLoad(t *testing.T) {
	const callers, broken = 20, 5
	for name, start := range map[string]func(testing.TB, ...string) *redialtest.Server{
		"plain": redialtest.StartServer,
		"TLS":   redialtest.StartTLSServer,
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			var local ports
			o := remember(s, &local)
			o.PoolSize = callers
			c := testkit.Connect(t, o)
			var slowest atomic.Int64
			var failed atomic.Int64
			quit := make(chan struct{})
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for !isDone(quit) {
						began := time.Now()
						if err := c.Get(context.Background(), "k").Err(); err != nil && err != redis.Nil {
							failed.Add(1)
							t.Log(err)
						}
						took := int64(time.Since(began))
						for old := slowest.Load(); took > old && !slowest.CompareAndSwap(old, took); old = slowest.Load() {
						}
						time.Sleep(time.Millisecond)
					}
				})
			}
			time.Sleep(1500 * time.Millisecond)
			slowest.Store(0)
			local.mu.Lock()
			some := slices.Clone(local.list[len(local.list)-broken:])
			local.mu.Unlock()
			for _, port := range some {
				defer drop(t, port)()
			}
			time.Sleep(4 * time.Second)
			close(quit)
			wg.Wait()
			t.Logf("the slowest of all calls took %v, %d connections were given up", time.Duration(slowest.Load()), c.Stats().SilentCut)
			assert.Zero(t, failed.Load())
			assert.Positive(t, c.Stats().SilentCut)
			assert.Less(t, time.Duration(slowest.Load()), 1100*time.Millisecond)
			assert.Zero(t, c.Stats().Outages)
		})
	}
}

func isDone(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// One packet in ten is lost. TCP carries on, and so do connections: none is given up that
// go-redis keeps.
func testPacketLoss(t *testing.T) {
	const callers = 20
	s := redialtest.StartServer(t)
	patient := &redis.Options{Addr: s.Addr(), PoolSize: callers, ReadTimeout: 20 * time.Second, WriteTimeout: 20 * time.Second}
	c := testkit.Connect(t, patient)
	sub := c.Subscribe(t.Context(), "news")
	defer sub.Close()
	_, err := sub.Receive(t.Context())
	require.NoError(t, err)
	messages := sub.Channel()
	go func() {
		for range messages {
		}
	}()
	port := portOf(t, s.Addr())
	rules := []string{"INPUT -p tcp --dport " + port, "INPUT -p tcp --sport " + port}
	for _, rule := range rules {
		require.NoError(t, sh("iptables -w -A "+rule+" -m statistic --mode random --probability 0.1 -j DROP"))
		defer func() {
			require.NoError(t, sh("iptables -w -D "+rule+" -m statistic --mode random --probability 0.1 -j DROP"))
		}()
	}
	var failed, done atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(15 * time.Second)
	for range callers {
		wg.Go(func() {
			for time.Now().Before(end) {
				if err := c.Incr(context.Background(), "n").Err(); err != nil {
					failed.Add(1)
					t.Log(err)
				} else {
					done.Add(1)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	wg.Wait()
	t.Logf("%d calls, %d failed, %v", done.Load(), failed.Load(), c.Stats())
	assert.Positive(t, done.Load())
	assert.Zero(t, failed.Load())
	assert.Zero(t, c.Stats().SilentCut)
}
