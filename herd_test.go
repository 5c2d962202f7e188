package redial

import (
	"context"
	"flag"
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/testkit/platform"
)

var fullHerd = flag.Bool("herd", false, "simulate herds of 10,000 clients and write docs/backoff.md; takes half an hour on two cores")

// The goals for a herd after an outage of a minute.
const (
	herdBack   = 2 * time.Second // 99 % of the clients are back within that time
	herdPeak   = 0.2             // less than that share of them come back in any
	herdWindow = 100 * time.Millisecond
)

// herd is many clients that lose their one server at the same moment.
type herd struct {
	name    string
	clients int
	outage  time.Duration
	demand  bool                   // from some time on, every client has a command waiting
	from    time.Duration          // that time, counted from the loss
	silent  bool                   // dials go unanswered instead of being refused
	policy  func() backoff.BackOff // nil: the default
}

// herdResult is what the server sees of a herd, in the time since its return.
type herdResult struct {
	herd
	attempts float64         // dials per client while the server was away
	back     []time.Duration // when each client was Connected, ascending
	connects []time.Duration // when each connection was accepted, ascending
}

// TestHerd_GoalsAreMet simulates fewer clients than TestHerd_Document does, and only a
// handful under the race detector, which makes it ten times as slow. The fewer there
// are, the more the allowed peak may be exceeded by chance.
func TestHerd_GoalsAreMet(t *testing.T) {
	clients := 1000
	if platform.RaceDetector {
		clients = 100
	}
	chance := 3 * math.Sqrt(herdPeak*(1-herdPeak)/float64(clients))
	runHerds(t, []herd{
		{name: "idle", clients: clients, outage: time.Minute},
		{name: "demand", clients: clients, outage: time.Minute, demand: true, from: 40 * time.Second},
	}, func(t *testing.T, r herdResult) {
		assert.Less(t, r.backAfter(0.99), herdBack)
		assert.Less(t, r.peakShare(), herdPeak+chance)
		if r.demand {
			assert.Less(t, r.backAfter(1), r.outage/50, "recovery adds little to an outage")
		}
	})
}

// TestHerd_CanTell makes sure that the simulation sees a herd when there is one.
func TestHerd_CanTell(t *testing.T) {
	runHerds(t, []herd{
		{name: "lockstep", clients: 50, outage: 10 * time.Second, policy: constant(100 * time.Millisecond)},
		{name: "sleepy", clients: 50, outage: 10 * time.Second, policy: constant(7 * time.Second)},
	}, func(t *testing.T, r herdResult) {
		assert.EqualValues(t, 1, r.peakShare())
		if r.name == "sleepy" {
			assert.Greater(t, r.backAfter(0), herdBack)
		}
	})
}

func constant(d time.Duration) func() backoff.BackOff {
	return func() backoff.BackOff { return backoff.NewConstantBackOff(d) }
}

// runHerds simulates herds, several at a time, and has check look at each result.
func runHerds(t *testing.T, herds []herd, check func(*testing.T, herdResult)) []herdResult {
	t.Helper()
	results := make([]herdResult, len(herds))
	t.Run("herds", func(t *testing.T) { // returns when all have
		for i, h := range herds {
			t.Run(fmt.Sprintf("%s %v", h.name, h.outage), func(t *testing.T) {
				t.Parallel()
				r := h.run(t)
				t.Logf("%.0f dials per client in vain; 50%% were back after %v, 99%% after %v, all after %v; at most %.1f%% in %v",
					r.attempts, r.backAfter(0.5), r.backAfter(0.99), r.backAfter(1), 100*r.peakShare(), herdWindow)
				check(t, r)
				results[i] = r
			})
		}
	})
	return results
}

// run simulates the herd. Its clients are whole; only the network and the server are
// not real.
func (h herd) run(t *testing.T) herdResult {
	t.Helper()
	r := herdResult{herd: h}
	synctest.Test(t, func(t *testing.T) {
		s := &herdServer{up: true, conns: make(map[*herdConn]struct{})}
		var mu sync.Mutex
		var returned time.Time
		all := make(chan struct{})
		opts := []Option{WithOnStateChange(func(e Event) {
			if e.From != StateReconnecting || e.To != StateConnected {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if r.back = append(r.back, e.At.Sub(returned)); len(r.back) == h.clients {
				close(all)
			}
		})}
		if h.policy != nil {
			opts = append(opts, WithBackoff(h.policy))
		}

		ctx := context.Background()
		var calls sync.WaitGroup
		clients := make([]*Client, h.clients)
		for i := range clients {
			c := herdClient(t, s, opts)
			clients[i] = c
			calls.Go(func() {
				// Every client has a call in flight, so that all notice at once.
				assert.ErrorIs(t, c.BLPop(ctx, 0, "queue").Err(), ErrOutcomeUnknown)
				if h.demand {
					time.Sleep(h.from)
					assert.NoError(t, c.Ping(WaitFor(ctx, maxWait)).Err())
				}
			})
		}
		for _, c := range clients {
			require.NoError(t, c.WaitReady(ctx))
		}
		time.Sleep(time.Second)
		before := s.lose(h.silent)
		time.Sleep(h.outage)
		synctest.Wait()
		mu.Lock()
		assert.Empty(t, r.back, "clients that were back before the server")
		returned = time.Now()
		mu.Unlock()
		r.attempts = float64(s.regain()-before) / float64(h.clients)
		select {
		case <-all:
		case <-time.After(5 * time.Minute): // in a bubble nothing else would end it
			for _, c := range clients {
				if s := c.Stats(); s.Outages == 0 || s.State != StateConnected {
					t.Errorf("not lost and back again: %v", s)
				}
			}
		}
		calls.Wait()
		for _, c := range clients {
			_ = c.Close()
		}
		for _, at := range s.accepted {
			r.connects = append(r.connects, at.Sub(returned))
		}
	})
	slices.Sort(r.back)
	slices.Sort(r.connects)
	return r
}

// herdClient returns a client whose dials are known to be one round trip, as those of
// a plain TCP connection are.
func herdClient(t *testing.T, s *herdServer, opts []Option) *Client {
	t.Helper()
	cfg, err := newConfig(opts)
	require.NoError(t, err)
	c, err := buildClient(&redis.Options{
		Addr: "127.0.0.1:1", Dialer: s.Dial, Protocol: 2, DisableIdentity: true,
		PoolSize: 10, ReadBufferSize: 64, WriteBufferSize: 64,
	}, newKeeper(cfg, "127.0.0.1:1"), true, new(alone))
	require.NoError(t, err)
	return c
}

// backAfter returns after what time a share of the clients was back.
func (r herdResult) backAfter(share float64) time.Duration {
	return r.back[max(int(math.Ceil(share*float64(len(r.back))))-1, 0)]
}

// peakShare returns the largest share of the clients that came back in any herdWindow.
func (r herdResult) peakShare() float64 {
	return float64(peakOf(r.back, herdWindow)) / float64(r.clients)
}

// peakOf returns how many of the ascending times lie within one window at most.
func peakOf(times []time.Duration, window time.Duration) int {
	most, first := 0, 0
	for i, at := range times {
		for at-times[first] >= window {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// herdServer is the server of a herd, and the network. It answers PING and lets BLPOP
// wait. It needs no goroutines.
type herdServer struct {
	mu       sync.Mutex
	up       bool
	silent   bool
	dials    int
	accepted []time.Time // since regain
	conns    map[*herdConn]struct{}
}

// herdRoundTrip is how long a dial takes that succeeds.
const herdRoundTrip = time.Millisecond

// Dial is a redis.Options.Dialer.
func (s *herdServer) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	s.mu.Lock()
	s.dials++
	up, silent := s.up, s.silent
	s.mu.Unlock()
	switch {
	case !up && silent:
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
	case !up:
		return nil, errRefused
	}
	time.Sleep(herdRoundTrip)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.up { // it was lost on the way
		return nil, errRefused
	}
	s.accepted = append(s.accepted, time.Now())
	c := &herdConn{server: s, closed: make(chan struct{}), replies: make(chan string, 1)}
	s.conns[c] = struct{}{}
	return c, nil
}

// lose resets every connection and has dials fail. It returns how many there were so
// far.
func (s *herdServer) lose(silent bool) (dials int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up, s.silent = false, silent
	for c := range s.conns {
		close(c.closed)
	}
	clear(s.conns)
	return s.dials
}

// regain ends lose, and returns the same.
func (s *herdServer) regain() (dials int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up, s.accepted = true, nil
	return s.dials
}

// herdConn is a connection on which the reply is there as soon as the request is
// written.
type herdConn struct {
	net.Conn // nil: everything that is called is implemented
	server   *herdServer
	closed   chan struct{}
	replies  chan string
}

var errHerdReset = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}

func (c *herdConn) Write(p []byte) (int, error) {
	if isClosed(c.closed) {
		return 0, errHerdReset
	}
	var buf [16]byte
	switch string(command.Head(p, &buf)) {
	case "hello":
		c.replies <- "*2\r\n$5\r\nproto\r\n:2\r\n"
	case "ping":
		c.replies <- "+PONG\r\n"
	}
	return len(p), nil
}

func (c *herdConn) Read(p []byte) (int, error) {
	select {
	case reply := <-c.replies:
		return copy(p, reply), nil
	case <-c.closed:
		return 0, errHerdReset
	}
}

func (c *herdConn) Close() error {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if _, open := c.server.conns[c]; open {
		delete(c.server.conns, c)
		close(c.closed)
	}
	return nil
}

func (c *herdConn) SetDeadline(time.Time) error      { return nil }
func (c *herdConn) SetReadDeadline(time.Time) error  { return nil }
func (c *herdConn) SetWriteDeadline(time.Time) error { return nil }
func (c *herdConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *herdConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
