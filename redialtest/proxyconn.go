package redialtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// What becomes of the bytes on one connection through a [Proxy].

// direction of bytes through the proxy.
type direction int

const (
	up   direction = iota // client to server
	down                  // server to client
)

// proxyConn is one client connection and its counterpart to the target.
type proxyConn struct {
	p      *Proxy
	client *net.TCPConn
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc

	// guarded by p.mu
	server *net.TCPConn // nil until dialed
	ended  bool
	silent bool // dropped by DropIdle
	held   bool // accepted while AcceptAndHang
	fate   fate // of the next reply
	tail   []byte
}

// fate is what a request's fault does to its reply.
type fate int

const (
	fateNone fate = iota
	fateForward
	fateSwallow // silent connection
	fateCutInstead
	fateCutMid
	fateGarble
)

// closeFIN makes sure that a FIN comes first: Close alone sends only an RST when
// unread bytes are left.
func closeFIN(conn *net.TCPConn) {
	_ = conn.CloseWrite()
	_ = conn.Close()
}

// end closes both sides and adds one to count, which points into p.stats. It
// returns false if the connection had ended before.
func (c *proxyConn) end(reset bool, count *int) bool {
	p := c.p
	p.mu.Lock()
	if c.ended {
		p.mu.Unlock()
		return false
	}
	c.ended = true
	delete(p.conns, c)
	if count != nil {
		*count++
	}
	server := c.server
	p.mu.Unlock()

	c.cancel()
	if reset {
		_ = c.client.SetLinger(0)
		_ = c.client.Close()
	} else {
		closeFIN(c.client)
	}
	if server != nil {
		closeFIN(server)
	}
	return true
}

func (c *proxyConn) run() {
	defer c.p.wg.Done()
	if !c.gate() {
		return
	}
	p := c.p
	p.mu.Lock()
	target, silent := p.target, c.silent
	p.mu.Unlock()
	if silent { // none of its bytes would reach the server, so its packets do not either
		c.swallow()
		return
	}
	dialer := net.Dialer{Timeout: proxyDialTimeout}
	conn, err := dialer.DialContext(c.ctx, "tcp", target)

	p.mu.Lock()
	if err != nil {
		if !c.ended {
			p.stats.DialErrors++
		}
		silent = c.silent
		p.mu.Unlock()
		if silent {
			c.swallow()
		} else {
			c.end(true, nil)
		}
		return
	}
	server := conn.(*net.TCPConn)
	if c.ended {
		p.mu.Unlock()
		_ = server.Close()
		return
	}
	c.server = server
	p.wg.Add(1) // c is in p.conns, so Close has not begun to wait
	p.mu.Unlock()
	go c.pumpDown(server)
	c.pumpUp(server)
}

// swallow takes what the client sends, until it ends the connection.
func (c *proxyConn) swallow() {
	_, _ = io.Copy(io.Discard, c.client)
	c.end(false, nil)
}

// pumpUp carries requests until the client or a fault ends the connection.
func (c *proxyConn) pumpUp(server *net.TCPConn) {
	buf := make([]byte, proxyChunk)
	broken := false // the server is gone: pumpDown delivers its last bytes, then ends
	for {
		n, err := c.client.Read(buf)
		if !c.gate() {
			return
		}
		if n > 0 && !broken {
			if c.judgeRequest(buf[:n]) {
				c.end(false, &c.p.stats.Cuts)
				return
			}
			broken = !c.forward(server, up, buf[:n], time.Time{})
		}
		if err != nil {
			c.end(false, nil)
			return
		}
	}
}

// pumpDown carries replies until the server or a fault ends the connection.
func (c *proxyConn) pumpDown(server *net.TCPConn) {
	defer c.p.wg.Done()
	buf := make([]byte, proxyChunk)
	for {
		n, err := server.Read(buf)
		arrived := time.Now()
		if !c.gate() {
			return
		}
		if n > 0 {
			switch c.judgeReply() {
			case fateForward:
				c.forward(c.client, down, buf[:n], arrived)
			case fateGarble:
				c.forward(c.client, down, []byte(proxyGarbage), arrived)
			case fateCutMid:
				c.forward(c.client, down, buf[:n/2], arrived)
				c.end(false, &c.p.stats.Cuts)
				return
			case fateCutInstead:
				// End the request side first and wait for the server to do the
				// same: it then has executed all of a pipeline, not only the part
				// whose replies have come.
				_ = server.CloseWrite()
				_ = server.SetReadDeadline(time.Now().Add(proxyDrainTimeout))
				_, _ = io.Copy(io.Discard, server)
				c.end(false, &c.p.stats.Cuts)
				return
			case fateSwallow:
			}
		}
		if err != nil {
			if !c.isSilent() {
				// The client sees the server die as the proxy saw it.
				c.end(!errors.Is(err, io.EOF), nil)
			}
			return // a silent connection ends with its client, in pumpUp
		}
	}
}

func (c *proxyConn) isSilent() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return c.silent
}

// judgeRequest reports whether the connection is to be cut instead of forwarding
// chunk, and settles the fate of its reply.
func (c *proxyConn) judgeRequest(chunk []byte) (cut bool) {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.silent || !c.matchesLocked(chunk) || c.fate != fateNone {
		return false
	}
	switch {
	case p.cutBefore > 0:
		p.cutBefore--
		return true
	case p.cutAfter > 0:
		p.cutAfter--
		c.fate = fateCutInstead
	case len(p.match) == 0: // any chunk from the server counts: see judgeReply
	case p.cutMid > 0:
		p.cutMid--
		c.fate = fateCutMid
	case p.garbage > 0:
		p.garbage--
		c.fate = fateGarble
	}
	return false
}

// matchesLocked reports whether chunk, with the end of the one before it, contains
// the string to match.
func (c *proxyConn) matchesLocked(chunk []byte) bool {
	want := c.p.match
	if len(want) == 0 {
		return true
	}
	text := append(c.tail, lowerASCII(chunk)...)
	found := bytes.Contains(text, want)
	keep := len(want) - 1
	if found {
		keep = 0 // its end must not match a second time with the next chunk
	}
	c.tail = bytes.Clone(text[len(text)-min(keep, len(text)):])
	return found
}

// lowerASCII returns a copy in lower case. Unlike bytes.ToLower it changes no byte that
// may be a part of something else.
func lowerASCII(p []byte) []byte {
	low := bytes.Clone(p)
	for i, b := range low {
		if 'A' <= b && b <= 'Z' {
			low[i] = b + 'a' - 'A'
		}
	}
	return low
}

// judgeReply says what to do with a chunk from the server.
func (c *proxyConn) judgeReply() fate {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.silent {
		return fateSwallow
	}
	f := c.fate
	c.fate = fateNone
	if f == fateNone {
		f = fateForward
		switch {
		case len(p.match) > 0:
		case p.cutMid > 0:
			p.cutMid--
			f = fateCutMid
		case p.garbage > 0:
			p.garbage--
			f = fateGarble
		}
	}
	if f == fateGarble {
		p.stats.GarbledCount++
	}
	return f
}

// gate waits while the connection hangs and returns false if it has ended.
func (c *proxyConn) gate() bool {
	p := c.p
	for {
		p.mu.Lock()
		ended, hangs, changed := c.ended, p.hung || c.held, p.changed
		p.mu.Unlock()
		if ended || !hangs {
			return !ended
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			return false
		}
	}
}

// forward sends data with the delay and bandwidth in force and returns false if
// dst is gone. Bytes of a silent connection are swallowed.
func (c *proxyConn) forward(dst *net.TCPConn, dir direction, data []byte, arrived time.Time) bool {
	for len(data) > 0 {
		size := c.admit(dir, len(data), arrived)
		if size == 0 {
			return true
		}
		n, err := dst.Write(data[:size])
		c.p.mu.Lock()
		if dir == up {
			c.p.stats.BytesUp += int64(n)
		} else {
			c.p.stats.BytesDown += int64(n)
		}
		c.p.mu.Unlock()
		if err != nil {
			return false
		}
		data = data[size:]
	}
	return true
}

// admit waits until bytes may pass in direction dir and returns how many of n, or
// 0 if the connection has ended or gone silent.
func (c *proxyConn) admit(dir direction, n int, arrived time.Time) int {
	p := c.p
	rate, size := 0, n // the booking on the link, renewed when the bandwidth changes
	var due time.Time
	for {
		p.mu.Lock()
		if c.ended || c.silent {
			p.mu.Unlock()
			return 0
		}
		now := time.Now()
		hangs, changed := p.hung || c.held, p.changed
		var wait time.Duration
		if !hangs && dir == down {
			wait = p.delay - now.Sub(arrived)
		}
		if !hangs && wait <= 0 {
			if rate != p.bandwidth {
				rate, size, due = p.bandwidth, n, now
				if rate > 0 {
					size = min(n, max(rate/proxySlice, 1))
					if p.linkFree[dir].After(now) {
						due = p.linkFree[dir]
					}
					due = due.Add(time.Duration(size) * time.Second / time.Duration(rate))
					p.linkFree[dir] = due
				}
			}
			wait = due.Sub(now)
		}
		p.mu.Unlock()
		if !hangs && wait <= 0 {
			return size
		}
		var timer <-chan time.Time
		if !hangs {
			timer = time.After(wait)
		}
		select {
		case <-timer:
		case <-changed:
		case <-c.ctx.Done():
			return 0
		}
	}
}
