package network

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
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
	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/redialtest"
)

const inNamespace = "REDIAL_TEST_IN_NETWORK_NAMESPACE"

// TestNetwork_PacketsDropped drops packets, as a dead host or a firewall does: no
// proxy can, for the kernel at its end would go on acknowledging. It runs itself
// again in a network namespace of its own, and beside no other test: it measures times to
// which they would add.
func TestNetwork_PacketsDropped(t *testing.T) {
	if os.Getenv(inNamespace) == "1" {
		require.NoError(t, sh("ip link set lo up"))
		t.Run("some of many, under load", testHalfOpenUnderLoad)
		return
	}
	inNamespaceOfItsOwn(t)
}

// TestNetwork_PacketsDropped_OthersBeside does so where there are seconds to spare, in
// another namespace.
func TestNetwork_PacketsDropped_OthersBeside(t *testing.T) {
	if os.Getenv(inNamespace) == "1" {
		require.NoError(t, sh("ip link set lo up"))
		name := nameServer(t)
		sideBySide(t, map[string]func(*testing.T){
			"everything":           testBlackHole,
			"one subscriber":       testHalfOpenSubscriber,
			"one blocked command":  testHalfOpenBLPop,
			"one of two addresses": func(t *testing.T) { testDeadIPv6Address(t, name) },
		})
		return
	}
	t.Parallel()
	inNamespaceOfItsOwn(t)
}

// TestNetwork_PacketsLost loses packets now and then, in another namespace. It measures no
// times, so it is in nobody's way.
func TestNetwork_PacketsLost(t *testing.T) {
	if os.Getenv(inNamespace) == "1" {
		require.NoError(t, sh("ip link set lo up"))
		sideBySide(t, map[string]func(*testing.T){
			"now and then":             testPacketLoss,
			"from the first on":        testPacketLossOnNewConnections,
			"all of them for a moment": testAllPacketsLostForAMoment,
		})
		return
	}
	t.Parallel()
	inNamespaceOfItsOwn(t)
}

func sideBySide(t *testing.T, tests map[string]func(*testing.T)) {
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
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
	testkit.Again(t, inNamespace+"=1", unshare...)
}

// sh runs a command in the namespace of this process.
func sh(line string) error {
	words := strings.Fields(line)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}

// drop has the packets of ports dropped, in both directions and all at once, until the
// returned function is called.
func drop(t *testing.T, ports ...string) (heal func()) {
	t.Helper()
	change := func(how string) {
		rules := "*filter\n"
		for _, port := range ports {
			for _, end := range []string{"--dport ", "--sport "} {
				rules += how + " INPUT -p tcp " + end + port + " -j DROP\n"
			}
		}
		cmd := exec.Command("iptables-restore", "-w", "--noflush")
		cmd.Stdin = strings.NewReader(rules + "COMMIT\n")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	change("-A")
	return func() { change("-D") }
}

// lose has one in ten of the packets of a port dropped, in both directions, until the
// returned function is called.
func lose(t *testing.T, port string) (heal func()) {
	t.Helper()
	rules := []string{"INPUT -p tcp --dport " + port, "INPUT -p tcp --sport " + port}
	for i, rule := range rules {
		rules[i] = rule + " -m statistic --mode random --probability 0.1 -j DROP"
		require.NoError(t, sh("iptables -w -A "+rules[i]))
	}
	return func() {
		for _, rule := range rules {
			require.NoError(t, sh("iptables -w -D "+rule))
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

// Some of the connections of a busy client are half-open, first while it reads and then
// while it writes. They are given up within a second; reads do not fail, writes that met
// them say that it is unknown what became of them, and nobody waits for longer.
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
			o.PoolSize, o.PoolFIFO = callers, true // so that none is idle for long
			c := testkit.Connect(t, o)
			var slowest, failed, wrote, unknown atomic.Int64
			var writing atomic.Bool
			quit := make(chan struct{})
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for !isDone(quit) {
						began := time.Now()
						write, err := writing.Load(), error(nil)
						if write {
							err = c.Incr(context.Background(), testkit.Counter).Err()
						} else {
							err = c.Get(context.Background(), "k").Err()
						}
						switch {
						case write && err == nil:
							wrote.Add(1)
						case write && errors.Is(err, redial.ErrOutcomeUnknown):
							unknown.Add(1)
						case err != nil && err != redis.Nil:
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
			defer func() { close(quit); wg.Wait() }()
			time.Sleep(1500 * time.Millisecond)
			cut, written := 0, 0
			within := func(what string) (longest time.Duration) {
				slowest.Store(0)
				inUse := s.Do("CLIENT", "LIST").(string)
				local.mu.Lock()
				some := slices.DeleteFunc(slices.Clone(local.list), func(port string) bool {
					return !regexp.MustCompile(` addr=[^ ]*:` + port + ` .* cmd=(get|incr) `).MatchString(inUse)
				})
				local.mu.Unlock()
				require.GreaterOrEqual(t, len(some), broken)
				some = some[len(some)-broken:]
				began := time.Now()
				t.Cleanup(drop(t, some...))
				cut += broken
				if writing.Load() {
					written += broken
				}
				assert.Eventually(t, func() bool { return c.Stats().SilentCut == uint64(cut) }, 2*time.Second, time.Millisecond)
				noticed := time.Since(began)
				time.Sleep(1500 * time.Millisecond) // whoever was on them has come back
				t.Logf("%s: %d connections were given up within %v, the slowest call took %v, %d outcomes are unknown",
					what, c.Stats().SilentCut, noticed, time.Duration(slowest.Load()), unknown.Load())
				return max(noticed, time.Duration(slowest.Load()))
			}
			for _, what := range []string{"reads", "writes"} {
				writing.Store(what == "writes")
				time.Sleep(100 * time.Millisecond)
				const limit = 1100 * time.Millisecond
				longest := within(what)
				for range 2 { // on a busy machine anything may be late, but not always
					if longest >= limit {
						longest = within(what)
					}
				}
				assert.Less(t, longest, limit)
			}
			assert.Zero(t, failed.Load())
			assert.EqualValues(t, written, unknown.Load(), "writes on connections that were half-open")
			assert.Zero(t, c.Stats().Outages)
			writing.Store(false)
			acknowledged := wrote.Load() // others are under way
			ran, err := c.Get(context.Background(), testkit.Counter).Int64()
			require.NoError(t, err)
			assert.GreaterOrEqual(t, ran, acknowledged)
			assert.LessOrEqual(t, ran, wrote.Load()+unknown.Load()+callers, "those under way may have run, the others once")
		})
	}
}

// nameServer answers for one name, which has an IPv6 and an IPv4 address, this machine's.
// It takes the place of those of the machine until the test ends.
func nameServer(t *testing.T) (name string) {
	before := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = before })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() { // until the resolver closes the connection
			defer far.Close()
			for {
				length := make([]byte, 2)
				if _, err := io.ReadFull(far, length); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(length))
				if _, err := io.ReadFull(far, query); err != nil {
					return
				}
				reply := answerTo(query)
				if _, err := far.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
					return
				}
			}
		}()
		return near, nil
	}}
	return "redis.test."
}

// answerTo is the reply to a question for an address, see RFC 1035.
func answerTo(query []byte) []byte {
	const header, typeA, typeAAAA, response = 12, 1, 28, 0x8180
	end := header
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	end++
	kind := binary.BigEndian.Uint16(query[end:])
	address := net.IPv6loopback
	if kind == typeA {
		address = net.IPv4(127, 0, 0, 1).To4()
	}
	reply := append([]byte(nil), query[:2]...)
	for _, field := range []uint16{response, 1, 1, 0, 0} {
		reply = binary.BigEndian.AppendUint16(reply, field)
	}
	reply = append(reply, query[header:end+4]...)
	if kind != typeA && kind != typeAAAA {
		reply[7] = 0 // there is no such record
		return reply
	}
	reply = append(reply, 0xc0, header) // the name that was asked for
	for _, field := range []uint16{kind, 1, 0, 60, uint16(len(address))} {
		reply = binary.BigEndian.AppendUint16(reply, field)
	}
	return append(reply, address...)
}

// A name has two addresses, and packets to the first one are dropped. Clients are there as
// fast as those of go-redis, also after a restart of the server.
func testDeadIPv6Address(t *testing.T, name string) {
	s := redialtest.StartServer(t)
	port := portOf(t, s.Addr())
	rule := "INPUT -d ::1 -p tcp --dport " + port + " -j DROP"
	require.NoError(t, sh("ip6tables -w -A "+rule))
	defer func() { require.NoError(t, sh("ip6tables -w -D "+rule)) }()
	opt := &redis.Options{Addr: net.JoinHostPort(name, port)}
	first := func(c redis.UniversalClient) time.Duration {
		began := time.Now()
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		return time.Since(began)
	}
	bare := redis.NewClient(opt)
	defer bare.Close()
	right := first(bare)
	require.Greater(t, right, 200*time.Millisecond, "the IPv6 address was not tried")
	c := redial.NewClient(opt)
	defer c.Close()
	took := first(c)
	t.Logf("the first command took %v, with go-redis %v", took, right)
	assert.Less(t, took, right+200*time.Millisecond)
	for range 3 {
		s.Kill()
		testkit.AwaitState(t, c, redial.StateReconnecting, 3500*time.Millisecond) // the IPv6 address says nothing
		time.Sleep(time.Second)
		s.Start()
		took, right = first(c), first(bare)
		t.Logf("after a restart: %v, with go-redis after it %v", took, right)
		assert.Less(t, took, 500*time.Millisecond)
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

// A packet of a new connection that is lost five times in a row has taken TCP 31 s, and one of a
// connection with round trips that were slow is as late. No deadline of go-redis's is to end that.
const patience = 2 * time.Minute

// One packet in ten is lost. TCP carries on, and so do connections: none is given up that
// go-redis keeps.
func testPacketLoss(t *testing.T) {
	const callers = 20
	s := redialtest.StartServer(t)
	patient := &redis.Options{Addr: s.Addr(), PoolSize: callers, ReadTimeout: patience, WriteTimeout: patience}
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
	defer lose(t, portOf(t, s.Addr()))()
	var failed, done atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(time.Duration(platform.Times(15, 8)) * time.Second)
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

// The same, on connections that are as new as the loss.
func testPacketLossOnNewConnections(t *testing.T) {
	const rounds, callers = 2, 100
	s := redialtest.StartServer(t)
	opt := &redis.Options{Addr: s.Addr(), PoolSize: callers, ReadTimeout: patience, WriteTimeout: patience, DialTimeout: patience}
	for range rounds {
		c := testkit.Connect(t, opt)
		for range 20 {
			require.NoError(t, c.Incr(t.Context(), "n").Err())
		}
		heal := lose(t, portOf(t, s.Addr()))
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for range 2 {
					if err := c.Incr(t.Context(), "n").Err(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		heal()
		assert.Zero(t, c.Stats().SilentCut)
		require.NoError(t, c.Close())
	}
}

// All packets are lost for a moment. TCP carries on, and so do connections, whether commands
// or a subscription wait on them.
func testAllPacketsLostForAMoment(t *testing.T) {
	const callers = 20
	s := redialtest.StartServer(t)
	for _, moment := range []time.Duration{time.Second, 1700 * time.Millisecond} {
		c := testkit.Connect(t, &redis.Options{Addr: s.Addr(), PoolSize: callers, ReadTimeout: 20 * time.Second, WriteTimeout: 20 * time.Second})
		sub := c.Subscribe(t.Context(), "news")
		_, err := sub.Receive(t.Context())
		require.NoError(t, err)
		var wg sync.WaitGroup
		end := time.Now().Add(1500*time.Millisecond + moment)
		for i := range callers {
			wg.Go(func() {
				for time.Now().Before(end) {
					if err := c.Incr(t.Context(), "n").Err(); err != nil {
						t.Error(err)
					}
					time.Sleep(time.Duration(400+20*i) * time.Millisecond) // some have been idle for longer
				}
			})
		}
		time.Sleep(1500 * time.Millisecond) // enough goes well for the way to count as sound
		heal := drop(t, portOf(t, s.Addr()))
		time.Sleep(moment)
		heal()
		wg.Wait()
		require.NoError(t, c.Publish(t.Context(), "news", "all is well").Err())
		_, err = sub.ReceiveMessage(t.Context())
		require.NoError(t, err)
		assert.Zero(t, c.Stats().SilentCut)
		require.NoError(t, sub.Close())
		require.NoError(t, c.Close())
	}
}
