package redialtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	proxyChunk         = 64 << 10         // largest number of bytes read, judged and forwarded at once
	proxyDialTimeout   = 10 * time.Second // for one dial of the target
	proxyDrainTimeout  = time.Second      // how long CutAfterRequest lets the server finish a pipeline
	proxyListenTimeout = 5 * time.Second  // how long Restore tries to get its port back
	proxySlice         = 20               // with Bandwidth, pieces are sent this many times a second

	// Ports are picked below the ephemeral ranges of Linux, macOS and Windows: no
	// outgoing connection of any process can take one while its listener is closed.
	firstPort, lastPort = 20000, 32000
	portsEach           = 400 // of a process
)

// proxyGarbage starts with a byte that is no RESP type: what a captive portal or
// a proxy that speaks another protocol answers.
const proxyGarbage = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"

// Proxy is a TCP proxy in front of one target that can fail in the ways networks,
// load balancers and servers do. Make one with [NewProxy] or, outside tests, with
// [StartProxy].
//
// Faults combine and last until [Proxy.Restore], except the counted ones
// (CutAfterRequest, CutBeforeForward, CutMidReply, Garbage), which end by
// themselves. A connection is live from when the proxy has accepted it until one
// side ends it; one that went silent by [Proxy.DropIdle] is not live any more.
// When the target cannot be dialed, the accepted connection is reset; the client
// may see that as a failed dial or as a failed read.
//
// The proxy judges chunks, that is, what one read from a socket returned, and
// does not parse RESP. With a client that has one request outstanding on a
// connection, such as go-redis, one chunk from the server is one reply unless it
// is longer than 64 KiB or the server wrote it in parts. Through TLS the chunks
// are ciphertext and include the handshake: use Match and the counted faults on
// plain connections only.
//
// A fault is in force when the method that switches it on returns, and what methods
// return says what it met: how many connections Hang, Reset, Cut and DropIdle hit,
// and how much of a counted fault was still to come when its method is called
// again, so that p.CutMidReply(0) == 0 confirms that it happened. [Proxy.Stats]
// counts the rest.
//
// A Proxy is safe for concurrent use. Its methods after Close do nothing.
type Proxy struct {
	addr   string                           // read-only after StartProxy
	fail   func(format string, args ...any) // read-only after NewProxy
	ctx    context.Context                  // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines of connections; Add only under mu, with closed false

	// listenMu serialises opening and closing the listener and guards the fields
	// up to mu. It is the outer lock; connections never take it.
	listenMu  sync.Mutex
	listener  *net.TCPListener // nil while refusing
	acceptEnd chan struct{}    // closed when the accept loop of listener has returned

	mu        sync.Mutex // guards all fields below; never held over I/O
	closed    bool
	changed   chan struct{} // closed and replaced whenever a fault is switched
	target    string
	admission admission
	hung      bool
	match     []byte // lower case; empty means any
	cutBefore int
	cutAfter  int
	cutMid    int
	garbage   int
	delay     time.Duration
	bandwidth int          // bytes a second; 0 means unlimited
	linkFree  [2]time.Time // by direction: when the bytes admitted so far have passed
	conns     map[*proxyConn]struct{}
	stats     ProxyStats
}

// admission is what happens to a connection when it is accepted.
type admission int

const (
	admitForward admission = iota
	admitClose
	admitHold
)

// ProxyStats is a snapshot of what a [Proxy] has seen since it was made.
type ProxyStats struct {
	Dials        int         // connections accepted; refused ones cannot be seen
	DialTimes    []time.Time // when each was accepted, in order
	DialErrors   int         // failed dials of the target
	LiveConns    int         // connections live now
	PeakConns    int         // the most that were live at once
	SilentConns  int         // connections dropped by DropIdle that the client has not closed yet
	BytesUp      int64       // bytes delivered to the server
	BytesDown    int64       // bytes delivered to the client, garbage included
	Cuts         int         // connections ended by FIN because of a fault
	Resets       int         // connections ended by Reset
	GarbledCount int         // replies replaced by Garbage
}

// PeakDials returns the largest number of dials accepted within any period of the
// given length: the height of a dial storm.
func (s ProxyStats) PeakDials(window time.Duration) int {
	peak, first := 0, 0
	for i, t := range s.DialTimes {
		for t.Sub(s.DialTimes[first]) >= window && first < i {
			first++
		}
		peak = max(peak, i-first+1)
	}
	return peak
}

// NewProxy starts a proxy to target ("host:port") on a free port of 127.0.0.1. It
// is closed by tb.Cleanup. A failure to listen ends the test.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	return NewProxyAddr(tb, "127.0.0.1:0", target)
}

// NewProxyAddr is [NewProxy] listening on listenAddr; port 0 means a free one.
func NewProxyAddr(tb testing.TB, listenAddr, target string) *Proxy {
	tb.Helper()
	p, err := startProxy(listenAddr, target, tb.Errorf)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = p.Close() })
	return p
}

// StartProxy starts a proxy from listenAddr to target for a program; tests use
// [NewProxy]. Port 0 in listenAddr means a free one. The target is dialed anew for
// each connection, so it need not be up yet. The caller must Close the proxy.
func StartProxy(listenAddr, target string) (*Proxy, error) {
	return startProxy(listenAddr, target, func(format string, args ...any) {
		panic(fmt.Sprintf(format, args...))
	})
}

func startProxy(listenAddr, target string, fail func(string, ...any)) (*Proxy, error) {
	ln, err := listenTCP(listenAddr)
	if err != nil {
		return nil, fmt.Errorf("redialtest: proxy: %w", err)
	}
	p := &Proxy{
		addr:    ln.Addr().String(),
		fail:    fail,
		target:  target,
		changed: make(chan struct{}),
		conns:   make(map[*proxyConn]struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.serve(ln)
	return p, nil
}

// listenTCP listens on addr. Port 0 becomes a free port outside the ephemeral
// range where possible.
func listenTCP(addr string) (*net.TCPListener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err == nil && port == "0" {
		for range 50 {
			ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(nextPort())))
			if err == nil {
				return ln.(*net.TCPListener), nil
			}
		}
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// nextPort goes through the ports of this process: one whose listener is closed for a while
// is given to nobody else soon, and other processes go through others, as a rule.
func nextPort() int {
	return firstPort + (os.Getpid()*portsEach+int(portsGiven.Add(1))%portsEach)%(lastPort-firstPort)
}

var portsGiven atomic.Uint32

// Addr returns the "host:port" that the proxy listens on. It never changes.
func (p *Proxy) Addr() string { return p.addr }

// Refuse makes the proxy look like a dead process: new dials are refused by the
// kernel and live connections are cut. It returns when both hold.
func (p *Proxy) Refuse() {
	p.listenMu.Lock()
	defer p.listenMu.Unlock()
	p.stopListening()
	p.endLive(false, &p.stats.Cuts)
}

// Restore heals everything: the proxy listens again on the same address and
// forwards normally. Pending counted faults are cancelled, held bytes are
// delivered. Connections that DropIdle silenced stay silent. The settings of
// Match and Retarget are no faults and stay.
//
// It returns when dials are accepted again. Should another process have taken the
// port meanwhile, it tries for 5 s and then fails the test.
func (p *Proxy) Restore() {
	p.update(func() {
		p.admission = admitForward
		p.hung = false
		p.cutBefore, p.cutAfter, p.cutMid, p.garbage = 0, 0, 0, 0
		p.delay, p.bandwidth = 0, 0
		p.linkFree = [2]time.Time{}
		for c := range p.conns {
			c.held = false
			c.fate = fateNone
		}
	})
	p.listenAgain()
}

// Reset sends a TCP RST to the client of every live connection and returns how
// many there were.
func (p *Proxy) Reset() int { return p.endLive(true, &p.stats.Resets) }

// Cut ends every live connection by FIN on both sides and returns how many there
// were. A client that had sent bytes the proxy did not read yet also gets an RST
// after the FIN, as from a process that exits.
func (p *Proxy) Cut() int { return p.endLive(false, &p.stats.Cuts) }

// Hang turns the proxy into a black hole, or a frozen server: connections stay
// open, new ones are accepted, and no byte, FIN or RST passes either way until
// Restore, which delivers what was held. It returns the number of live
// connections. A client that hangs up meanwhile counts as live until Restore.
func (p *Proxy) Hang() int {
	live := 0
	p.update(func() {
		p.hung = true
		p.admission = admitForward
		live = p.liveLocked()
	})
	p.listenAgain()
	return live
}

// DropIdle makes every connection that exists now silent for good, as when a NAT
// or a firewall forgets it: bytes are swallowed both ways, and the client gets
// neither FIN nor RST, not even from Refuse, Cut and Reset. Only Close, or the
// client itself, ends such a connection. New connections work. It returns how
// many connections it dropped.
func (p *Proxy) DropIdle() int {
	dropped := 0
	p.update(func() {
		for c := range p.conns {
			if !c.silent {
				c.silent = true
				dropped++
			}
		}
	})
	return dropped
}

// CutAfterRequest loses the replies to the next n requests that Match: each is
// forwarded, the server executes it, and when its reply arrives the proxy
// swallows it and ends the connection by FIN on both sides. A pipeline in one
// chunk is executed as a whole first. n replaces an earlier one, of which it returns
// how many were still to come; 0 cancels.
func (p *Proxy) CutAfterRequest(n int) (left int) { return p.count(&p.cutAfter, n) }

// CutBeforeForward loses the next n requests that Match: each is swallowed, so
// the server never sees it, and its connection is ended by FIN on both sides. n
// replaces an earlier one, of which it returns how many were still to come; 0 cancels.
func (p *Proxy) CutBeforeForward(n int) (left int) { return p.count(&p.cutBefore, n) }

// CutMidReply truncates the next n replies: the first half of the bytes is
// forwarded, then the connection is ended by FIN on both sides. With Match set,
// only replies to matching requests count; otherwise every chunk from the server
// does, Pub/Sub messages included. n replaces an earlier one, of which it returns how
// many were still to come; 0 cancels.
func (p *Proxy) CutMidReply(n int) (left int) { return p.count(&p.cutMid, n) }

// Garbage replaces the next n replies by bytes that are not RESP and leaves the
// connection open. Match applies as for CutMidReply. n replaces an earlier one, of
// which it returns how many were still to come; 0 cancels.
func (p *Proxy) Garbage(n int) (left int) { return p.count(&p.garbage, n) }

// count sets a counted fault and returns what was left of it.
func (p *Proxy) count(fault *int, n int) (left int) {
	p.update(func() { left, *fault = *fault, max(n, 0) })
	return left
}

// Match restricts the counted faults to requests that contain substr, ignoring the
// case of ASCII letters; "" matches any. Without it they may hit the handshake (HELLO, CLIENT) of
// a new connection. Restore keeps it.
func (p *Proxy) Match(substr string) {
	p.update(func() { p.match = lowerASCII([]byte(substr)) })
}

// Delay holds each chunk from the server back for d before the client gets it.
// Chunks on one connection wait one after the other. 0 or less means none.
func (p *Proxy) Delay(d time.Duration) { p.update(func() { p.delay = max(d, 0) }) }

// Bandwidth limits the sum of all connections to bytesPerSecond in each
// direction. 0 or less means unlimited.
func (p *Proxy) Bandwidth(bytesPerSecond int) {
	p.update(func() {
		p.bandwidth = max(bytesPerSecond, 0)
		p.linkFree = [2]time.Time{}
	})
}

// AcceptAndClose makes the proxy accept new connections and close them at once,
// like a load balancer without a backend, until Restore. Live ones are untouched.
func (p *Proxy) AcceptAndClose() {
	p.update(func() { p.admission = admitClose })
	p.listenAgain()
}

// AcceptAndHang makes the proxy accept new connections and forward nothing on
// them, like a server whose accept queue is stuck. Live ones are untouched. At
// Restore the waiting connections come alive and what they sent is delivered.
func (p *Proxy) AcceptAndHang() {
	p.update(func() { p.admission = admitHold })
	p.listenAgain()
}

// Retarget sends connections that are accepted from now on to addr, like a DNS
// change or a failover. Live ones stay where they are: see Cut. It returns where they
// were sent before.
func (p *Proxy) Retarget(addr string) (before string) {
	p.update(func() { before, p.target = p.target, addr })
	return before
}

// Stats returns a snapshot; the caller owns it.
func (p *Proxy) Stats() ProxyStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.DialTimes = slices.Clone(s.DialTimes)
	s.LiveConns = p.liveLocked()
	s.SilentConns = len(p.conns) - s.LiveConns
	return s
}

// Close stops listening, ends every connection, silent ones too, and returns when
// every goroutine of the proxy has. It is idempotent and always returns nil.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel() // ends a Restore that waits for its port, and dials of the target

	p.listenMu.Lock()
	defer p.listenMu.Unlock()
	p.stopListening()
	p.mu.Lock()
	conns := make([]*proxyConn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	for _, c := range conns {
		c.end(false, nil)
	}
	p.wg.Wait()
	return nil
}

// update switches a fault and wakes everything that waits for a switch.
func (p *Proxy) update(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) liveLocked() int {
	live := 0
	for c := range p.conns {
		if !c.silent {
			live++
		}
	}
	return live
}

// endLive ends every live connection and adds their number to count.
func (p *Proxy) endLive(reset bool, count *int) int {
	p.mu.Lock()
	var live []*proxyConn
	for c := range p.conns {
		if !c.silent {
			live = append(live, c)
		}
	}
	p.mu.Unlock()
	ended := 0
	for _, c := range live {
		if c.end(reset, count) {
			ended++
		}
	}
	return ended
}

// serve starts the accept loop. Caller holds listenMu or owns p alone.
func (p *Proxy) serve(ln *net.TCPListener) {
	end := make(chan struct{})
	p.listener, p.acceptEnd = ln, end
	go func() {
		defer close(end)
		for {
			conn, err := ln.AcceptTCP()
			if err == nil {
				p.accept(conn)
				continue
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// A failed accept (out of descriptors, aborted by the peer) passes.
			select {
			case <-p.ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
}

// stopListening closes the listener and waits until every connection it accepted
// is registered. Caller holds listenMu.
func (p *Proxy) stopListening() {
	if p.listener == nil {
		return
	}
	_ = p.listener.Close()
	<-p.acceptEnd
	p.listener = nil
}

// listenAgain opens the listener if it is closed.
func (p *Proxy) listenAgain() {
	p.listenMu.Lock()
	defer p.listenMu.Unlock()
	if p.listener != nil {
		return
	}
	giveUp := time.Now().Add(proxyListenTimeout)
	for {
		if p.ctx.Err() != nil {
			return
		}
		ln, err := listenTCP(p.addr)
		if err == nil {
			p.serve(ln)
			return
		}
		if time.Now().After(giveUp) {
			p.fail("redialtest: proxy cannot listen on %s again: %v", p.addr, err)
			return
		}
		select {
		case <-p.ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (p *Proxy) accept(client *net.TCPConn) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		_ = client.Close()
		return
	}
	p.stats.Dials++
	p.stats.DialTimes = append(p.stats.DialTimes, time.Now())
	if p.admission == admitClose {
		p.stats.Cuts++
		p.mu.Unlock()
		closeFIN(client)
		return
	}
	c := &proxyConn{p: p, client: client, held: p.admission == admitHold}
	c.ctx, c.cancel = context.WithCancel(p.ctx)
	p.conns[c] = struct{}{}
	p.stats.PeakConns = max(p.stats.PeakConns, p.liveLocked())
	p.wg.Add(1)
	p.mu.Unlock()
	go c.run()
}
