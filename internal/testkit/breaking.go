// A network that breaks by chance.

package testkit

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
)

// BreakingNetwork dials connections that break.
type BreakingNetwork struct {
	DialNext func(ctx context.Context, network, addr string) (net.Conn, error)
	Rand     *rand.Rand // what breaks, and where

	mu    sync.Mutex // Rand, too
	next  int        // breaks still to come
	conns []*breakingConn
}

// BreakAt has the next n connections, or those in the pool, break.
func (b *BreakingNetwork) BreakAt(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = n
	for _, c := range b.conns {
		if b.next > 0 && b.Rand.IntN(2) == 0 {
			b.next--
			c.arm(b.Rand)
		}
	}
}

// Dial is a dialer of go-redis.
func (b *BreakingNetwork) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next > 0 && b.Rand.IntN(4) == 0 {
		b.next--
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	nc, err := b.DialNext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &breakingConn{Conn: nc, toWrite: -1, toRead: -1}
	if b.next > 0 {
		b.next--
		c.arm(b.Rand)
	}
	b.conns = append(b.conns, c)
	return c, nil
}

// breakingConn breaks after so many more bytes; -1: never.
type breakingConn struct {
	net.Conn
	mu              sync.Mutex
	toWrite, toRead int
	loses           bool // what cannot be written any more is lost on the way, not refused
}

func (c *breakingConn) arm(rnd *rand.Rand) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch rnd.IntN(4) {
	case 0, 1:
		c.toRead = rnd.IntN(60)
	case 2:
		c.loses = true
		fallthrough
	default:
		c.toWrite = rnd.IntN(200)
	}
}

// allow takes up to n bytes off a budget and reports whether it is used up.
func (c *breakingConn) allow(budget *int, n int) (int, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *budget < 0 {
		return n, false
	}
	if n <= *budget {
		*budget -= n
		return n, false
	}
	n, *budget = *budget, 0
	return n, true
}

var errBroken = errors.New("broken by the test")

func (c *breakingConn) Write(p []byte) (int, error) {
	n, broken := c.allow(&c.toWrite, len(p))
	if n > 0 {
		if k, err := c.Conn.Write(p[:n]); err != nil {
			return k, err
		}
	}
	if broken {
		_ = c.Conn.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.loses {
			return len(p), nil
		}
		return n, errBroken
	}
	return n, nil
}

func (c *breakingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		return n, err
	}
	n, broken := c.allow(&c.toRead, n)
	if broken {
		_ = c.Conn.Close()
		if n == 0 {
			return 0, errBroken
		}
	}
	return n, nil
}
