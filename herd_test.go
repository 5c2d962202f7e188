package redial

import (
	"context"
	"flag"
	"fmt"
	"html"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"text/template"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/testkit/memnet"
	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/internal/wire"
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

// TestHerd_GoalsAreMet simulates fewer clients than TestHerd_Document does, fewer still where
// somebody waits, and only a handful under the race detector, which makes it ten times as slow.
// The fewer there are, the more the allowed peak may be exceeded by chance.
func TestHerd_GoalsAreMet(t *testing.T) {
	clients := platform.Times(1000, 300)
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
	memnet.DropTimers()
	defer memnet.DropTimers()
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

const (
	herdDocument = "docs/backoff.md"
	herdPlot     = "docs/backoff.svg"
	herdTemplate = "testdata/backoff.md.tmpl"
	herdCommand  = "go test -run TestHerd_Document -herd -timeout 2h ."
)

// TestHerd_Document makes sure that docs/backoff.md is about the settings of
// options.go. With -herd it simulates full herds and writes the document anew, unless
// they miss the goals.
func TestHerd_Document(t *testing.T) {
	if !*fullHerd {
		b, err := os.ReadFile(herdDocument)
		require.NoError(t, err)
		require.Contains(t, string(b), herdSettings(), "the defaults have changed since; run %s", herdCommand)
		return
	}
	const clients = 10_000
	var herds []herd
	for _, outage := range []time.Duration{5 * time.Second, time.Minute, 10 * time.Minute} {
		herds = append(herds,
			herd{name: "nobody waits", clients: clients, outage: outage},
			herd{name: "commands wait", clients: clients, outage: outage, demand: true})
	}
	herds = append(herds,
		herd{name: "nobody waits, no answer", clients: clients, outage: time.Minute, silent: true},
		herd{name: "commands wait, no answer", clients: clients, outage: time.Minute, silent: true, demand: true})
	for _, p := range otherPolicies {
		herds = append(herds, herd{name: p.name, clients: clients, outage: time.Minute, policy: p.policy})
	}
	results := runHerds(t, herds, func(t *testing.T, r herdResult) {
		if r.policy == nil && r.outage == time.Minute {
			assert.Less(t, r.backAfter(0.99), herdBack)
			assert.Less(t, r.peakShare(), herdPeak)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	text, err := herdText(results)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll("docs", 0o777))
	require.NoError(t, os.WriteFile(herdDocument, []byte(text), 0o666))
	require.NoError(t, os.WriteFile(herdPlot, []byte(herdSVG(results)), 0o666))
}

// otherPolicies are those of others, as the only schedule of a client.
var otherPolicies = []struct {
	name   string
	policy func() backoff.BackOff
}{
	{"100 ms, as go-redis repeats a dial", constant(100 * time.Millisecond)},
	{"1 ms doubled up to 30 s, as Lettuce", func() backoff.BackOff {
		return &doubling{first: time.Millisecond, most: 30 * time.Second}
	}},
	{"50 ms doubled up to 5 s, and 0 to 0.2 s, as ioredis", func() backoff.BackOff {
		return &doubling{first: 50 * time.Millisecond, most: 5 * time.Second, extra: 200 * time.Millisecond}
	}},
	{"0.5 s × 1.5 up to 60 s, half random, cenkalti/backoff's defaults", func() backoff.BackOff {
		return backoff.NewExponentialBackOff(backoff.WithMaxElapsedTime(0))
	}},
}

// doubling doubles a delay up to the most and adds something random below extra.
type doubling struct{ first, most, extra, next time.Duration }

func (d *doubling) Reset() { d.next = d.first }

func (d *doubling) NextBackOff() time.Duration {
	delay := d.next
	d.next = min(2*d.next, d.most)
	if d.extra > 0 {
		delay += rand.N(d.extra)
	}
	return delay
}

// herdSettings is the table of what the simulation depends on.
func herdSettings() string {
	var b strings.Builder
	b.WriteString("| setting | value |\n| --- | --- |\n")
	for _, row := range [][2]any{
		{"first delay", backoffInitial},
		{"factor from one delay to the next", backoffMultiplier},
		{"longest delay, before it is randomized", backoffCap},
		{"randomized by", percent(backoffJitter)},
		{"delay while commands wait, at first", wire.EagerDelay},
		{"the same from " + wire.EagerYoung.String() + " on, as a part of the outage's age", fmt.Sprintf("1/%d", wire.EagerDivisor)},
		{"randomized by", percent(wire.EagerJitter)},
		{"attempts at the same time, at most", mostAttempts},
	} {
		fmt.Fprintf(&b, "| %v | %v |\n", row[0], row[1])
	}
	return b.String()
}

// herdText is the document. Its prose is in herdTemplate, its numbers are from here.
func herdText(results []herdResult) (string, error) {
	idle, demand := herdOf(results, "nobody waits", time.Minute), herdOf(results, "commands wait", time.Minute)
	short := herdOf(results, "commands wait", 5*time.Second)
	long := herdOf(results, "nobody waits", 10*time.Minute)
	silent := herdOf(results, "nobody waits, no answer", time.Minute)
	steps := int(math.Ceil(math.Log(float64(backoffCap)/float64(backoffInitial)) / math.Log(backoffMultiplier)))
	ramp := time.Duration(float64(backoffInitial) * (math.Pow(backoffMultiplier, float64(steps)) - 1) / (backoffMultiplier - 1))
	onAverage := func(delay time.Duration) string { return percent(float64(herdWindow) / float64(delay)) }
	const former = 120 // the wire.EagerDivisor that the simulation did away with

	page, err := template.ParseFiles(herdTemplate)
	if err != nil {
		return "", err
	}
	page.Option("missingkey=error")
	var b strings.Builder
	err = page.Execute(&b, map[string]any{
		"command": herdCommand, "settings": herdSettings(),
		"results": herdTable(results, false), "others": herdTable(results, true),
		"clients": idle.clients, "outage": time.Minute,
		"within": herdBack, "peak": percent(herdPeak), "window": herdWindow,
		"lanes": wire.FirstLanes, "attempts": mostAttempts, "lasting": lastingAttempts,
		"cap": backoffCap, "jitter": percent(backoffJitter), "longest": longest(),
		"onAverage": onAverage(backoffCap), "steps": steps, "ramp": round(ramp),
		"idle99": round(idle.backAfter(0.99)), "idlePeak": percent(idle.peakShare()), "idleDials": fmt.Sprintf("%.0f", idle.attempts),
		"longOutage": long.outage, "long99": round(long.backAfter(0.99)),
		"eager": wire.EagerDelay, "young": wire.EagerYoung, "divisor": wire.EagerDivisor, "demandOnAverage": onAverage(time.Minute / wire.EagerDivisor),
		"demand50": round(demand.backAfter(0.5)), "demandAll": round(demand.backAfter(1)), "demandPeak": percent(demand.peakShare()),
		"formerDivisor": former, "formerOnAverage": onAverage(time.Minute / former),
		"short": short.outage, "shortPeak": percent(short.peakShare()), "shortAll": round(short.backAfter(1)),
		"shorterThan": time.Duration(float64(herdWindow) * wire.EagerDivisor / herdPeak),
		"silent99":    round(silent.backAfter(0.99)),
	})
	return b.String(), err
}

// longest is the longest that a client sleeps while nobody waits.
func longest() time.Duration { return time.Duration(float64(backoffCap) * (1 + backoffJitter)) }

func percent(share float64) string { return fmt.Sprintf("%.4g %%", math.Round(1000*share)/10) }

// round leaves what matters of a time.
func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Millisecond)
}

func herdOf(results []herdResult, name string, outage time.Duration) herdResult {
	for _, r := range results {
		if r.name == name && r.outage == outage {
			return r
		}
	}
	panic("no such herd: " + name)
}

// herdTable is the table of the herds with the default policy, or with others.
func herdTable(results []herdResult, others bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| outage | schedule | dials in vain, each | 50 %% back | 99 %% back | all back | most clients in %v | most connects in %v | in 1s |\n", herdWindow, herdWindow)
	b.WriteString("| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, r := range results {
		if others != (r.policy != nil) {
			continue
		}
		fmt.Fprintf(&b, "| %v | %s | %.0f | %v | %v | %v | %s | %d | %d |\n", r.outage, r.name, r.attempts,
			round(r.backAfter(0.5)), round(r.backAfter(0.99)), round(r.backAfter(1)), percent(r.peakShare()),
			peakOf(r.connects, herdWindow), peakOf(r.connects, time.Second))
	}
	return b.String()
}

// herdSVG draws, for the outages of a minute that end in connections refused, the
// share of clients that are back, and the share that come back in each herdWindow.
func herdSVG(results []herdResult) string {
	const (
		width, height = 860, 750
		left, wide    = 60.0, 770.0
		high          = 230.0
		span          = 4 * time.Second
		top1, top2    = 40.0, 350.0
	)
	colors := []string{"#0b62c4", "#d1491b", "#8a8a8a", "#7a3fb0", "#1f8a4c", "#b8860b"}
	x := func(at time.Duration) float64 { return left + wide*float64(at)/float64(span) }
	y := func(top, share float64) float64 { return top + high*(1-share) }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	text := func(x, y float64, anchor, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(s))
	}
	line := func(x1, y1, x2, y2 float64, style string) {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`+"\n", x1, y1, x2, y2, style)
	}
	const grid = `stroke="#dddddd"`
	for i, top := range []float64{top1, top2} {
		text(left, top-12, "start", []string{
			"share of the clients that are back",
			fmt.Sprintf("share of the clients that come back in each %v", herdWindow),
		}[i])
		for _, share := range []float64{0, 0.25, 0.5, 0.75, 1} {
			line(left, y(top, share), left+wide, y(top, share), grid)
			text(left-6, y(top, share)+4, "end", percent(share))
		}
		for at := time.Duration(0); at <= span; at += time.Second / 2 {
			line(x(at), top, x(at), top+high, grid)
			text(x(at), top+high+18, "middle", at.String())
		}
	}
	const dashed = `stroke="black" stroke-dasharray="5 4"`
	line(x(herdBack), top1, x(herdBack), top1+high, dashed)
	text(x(herdBack)+5, top1+high-8, "start", "goal: 99 % by here")
	line(left, y(top2, herdPeak), left+wide, y(top2, herdPeak), dashed)
	text(left+wide-5, y(top2, herdPeak)-6, "end", "goal: below this")

	drawn := 0
	for _, r := range results {
		if r.outage != time.Minute || r.silent {
			continue
		}
		style := fmt.Sprintf(`fill="none" stroke="%s" stroke-width="2"`, colors[drawn%len(colors)])
		var curve, bars strings.Builder
		fmt.Fprintf(&curve, "%.1f,%.1f", x(0), y(top1, 0))
		fmt.Fprintf(&bars, "%.1f,%.1f", x(0), y(top2, 0))
		done := 0
		const fine = herdWindow / 10
		for at := time.Duration(0); at < span; at += herdWindow {
			before := done
			for step := at + fine; step <= at+herdWindow; step += fine {
				for done < len(r.back) && r.back[done] < step {
					done++
				}
				fmt.Fprintf(&curve, " %.1f,%.1f", x(step), y(top1, float64(done)/float64(r.clients)))
			}
			share := float64(done-before) / float64(r.clients)
			fmt.Fprintf(&bars, " %.1f,%.1f %.1f,%.1f", x(at), y(top2, share), x(at+herdWindow), y(top2, share))
		}
		for _, points := range []string{curve.String(), bars.String()} {
			fmt.Fprintf(&b, `<polyline %s points="%s"/>`+"\n", style, points)
		}
		name := r.name
		if r.policy == nil {
			name = "redial, " + name
		}
		lx, ly := left, top2+high+46+22*float64(drawn)
		line(lx, ly-4, lx+24, ly-4, style)
		text(lx+30, ly, "start", name)
		drawn++
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// A policy that stops, or that returns nonsense, must neither end the attempts
// nor make them spin.
func TestReconnect_NeverGivesUp_NeverSpins(t *testing.T) {
	for name, policy := range map[string]backoff.BackOff{
		"stop":     &backoff.StopBackOff{},
		"zero":     &backoff.ZeroBackOff{},
		"negative": backoff.NewConstantBackOff(-time.Hour),
		"limited":  backoff.WithMaxRetries(backoff.NewConstantBackOff(50*time.Millisecond), 2),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
				n.Kill()
				c := NewClient(opt, WithBackoff(func() backoff.BackOff { return policy }))
				defer c.Close()
				time.Sleep(10 * time.Second)
				assert.GreaterOrEqual(t, n.Dials(), 6)
				assert.LessOrEqual(t, n.Dials(), int(10*time.Second/minDelay)+1)
				n.Start()
				require.NoError(t, c.WaitReady(t.Context()))
			})
		})
	}
}

// Every delay is randomized, the first and the capped ones too, and none is
// longer than a client may sleep through.
func TestReconnect_DefaultSchedule_IsJitteredAndBounded(t *testing.T) {
	first, capped := map[time.Duration]bool{}, map[time.Duration]bool{}
	for range 200 {
		p := defaultBackOff()
		p.Reset()
		first[nextDelay(p)] = true
		for range 100 {
			d := nextDelay(p)
			require.Positive(t, d)
			require.Less(t, d, 2*time.Second)
		}
		capped[nextDelay(p)] = true
	}
	assert.Greater(t, len(first), 150)
	assert.Greater(t, len(capped), 150)
	for range 1000 {
		d := wire.Eager(time.Duration(rand.Int64N(int64(wire.EagerYoung))))
		require.InDelta(t, wire.EagerDelay, d, float64(wire.EagerDelay)*wire.EagerJitter+1)
	}
	for _, age := range []time.Duration{wire.EagerYoung, time.Minute} {
		assert.InDelta(t, age/wire.EagerDivisor, wire.Eager(age), float64(age/wire.EagerDivisor)*wire.EagerJitter+1)
	}
}

// A policy may return anything, and an outage have any age: attempts go on, and not
// without a pause.
func FuzzBackoff(f *testing.F) {
	f.Add(int64(-1), int64(-1), int64(0))
	f.Add(int64(0), int64(math.MaxInt64), int64(time.Hour))
	f.Add(int64(math.MinInt64), int64(1), int64(math.MaxInt64))
	f.Add(int64(time.Second), int64(time.Minute), int64(-1))
	f.Fuzz(func(t *testing.T, first, second, age int64) {
		policy := &listed{delays: []time.Duration{time.Duration(first), time.Duration(second)}}
		for range 5 {
			d := nextDelay(policy)
			if d < minDelay {
				t.Fatalf("%v after %d and %d", d, first, second)
			}
		}
		d := wire.Eager(time.Duration(age))
		least := float64(wire.EagerDelay) * (1 - wire.EagerJitter)
		most := float64(max(time.Duration(age)/wire.EagerDivisor, wire.EagerDelay)) * (1 + wire.EagerJitter)
		if float64(d) < least-1 || float64(d) > most+1 {
			t.Fatalf("%v in an outage of %v", d, time.Duration(age))
		}
	})
}

// listed is a policy that returns the delays of a list, and then stops.
type listed struct {
	delays []time.Duration
	next   int
}

func (p *listed) Reset() { p.next = 0 }

func (p *listed) NextBackOff() time.Duration {
	if p.next >= len(p.delays) {
		return backoff.Stop
	}
	p.next++
	return p.delays[p.next-1]
}
