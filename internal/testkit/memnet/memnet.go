// Package memnet is a network in memory with one Redis server on it, for tests in bubbles of
// testing/synctest. It imports nothing of redial, so that tests inside of any package may
// use it.
package memnet

import (
	"context"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// Net is an in-memory network with one Redis server on it, for tests in
// synctest bubbles. Like TCP, it buffers what is written.
type Net struct {
	Redis *miniredis.Miniredis

	mu      sync.Mutex
	changed *sync.Cond
	refuse  bool // dials are refused
	frozen  bool // nothing passes, nothing is lost
	silent  bool // new connections are accepted and never answered
	dials   []time.Time
	count   int // of connections ever made
	relays  map[*relay]struct{}
}

type relay struct {
	number    int      // the first connection made is 1
	near, far net.Conn // the far end of the client's pipe, and the server's
	dropped   bool     // guarded by Net.mu; bytes vanish
	closed    bool     // guarded by Net.mu
	queue     [][]byte // guarded by Net.mu; from the client, not yet passed on
}

// New returns a network, which must be closed.
func New() *Net {
	n := &Net{Redis: miniredis.NewMiniRedis(), relays: make(map[*relay]struct{})}
	n.changed = sync.NewCond(&n.mu)
	return n
}

// ErrRefused is the error of a dial that is refused.
var ErrRefused = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

// Dial is a redis.Options.Dialer.
func (n *Net) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n.mu.Lock()
	n.dials = append(n.dials, time.Now())
	refuse := n.refuse
	n.mu.Unlock()
	if refuse {
		return nil, ErrRefused
	}
	far, err := n.Redis.Dial()
	if err != nil {
		return nil, err
	}
	client, near := net.Pipe()
	r := &relay{near: near, far: far}
	n.mu.Lock()
	if n.refuse { // killed meanwhile, and cut has not seen it
		n.mu.Unlock()
		_, _ = near.Close(), far.Close()
		return nil, ErrRefused
	}
	n.count++
	r.number = n.count
	r.dropped = n.silent
	n.relays[r] = struct{}{}
	n.mu.Unlock()
	go n.receive(r)
	go n.forward(r)
	go n.answer(r)
	return client, nil
}

// receive takes whatever the client writes off its hands at once.
func (n *Net) receive(r *relay) {
	buf := make([]byte, 4096)
	for {
		k, err := r.near.Read(buf)
		n.mu.Lock()
		if k > 0 && !r.dropped {
			r.queue = append(r.queue, append([]byte(nil), buf[:k]...))
		}
		n.changed.Broadcast()
		n.mu.Unlock()
		if err != nil {
			n.cut(r)
			return
		}
	}
}

func (n *Net) forward(r *relay) {
	for {
		n.mu.Lock()
		for !r.closed && (len(r.queue) == 0 || n.frozen) {
			n.changed.Wait()
		}
		if r.closed {
			n.mu.Unlock()
			return
		}
		p := r.queue[0]
		r.queue = r.queue[1:]
		n.mu.Unlock()
		if _, err := r.far.Write(p); err != nil {
			n.cut(r)
			return
		}
	}
}

func (n *Net) answer(r *relay) {
	buf := make([]byte, 4096)
	for {
		k, err := r.far.Read(buf)
		if err != nil {
			n.cut(r)
			return
		}
		n.mu.Lock()
		for !r.closed && n.frozen {
			n.changed.Wait()
		}
		dropped, closed := r.dropped, r.closed
		n.mu.Unlock()
		if closed {
			return
		}
		if dropped {
			continue
		}
		if _, err := r.near.Write(buf[:k]); err != nil {
			n.cut(r)
			return
		}
	}
}

func (n *Net) cut(r *relay) {
	n.mu.Lock()
	if !r.dropped { // the peer of a dropped connection never learns of its end
		_ = r.near.Close()
	}
	_ = r.far.Close()
	r.closed = true
	delete(n.relays, r)
	n.changed.Broadcast()
	n.mu.Unlock()
}

func (n *Net) each(f func(*relay)) {
	n.mu.Lock()
	var all []*relay
	for r := range n.relays {
		all = append(all, r)
	}
	n.mu.Unlock()
	for _, r := range all {
		f(r)
	}
}

// Kill refuses dials and closes every connection.
func (n *Net) Kill() { n.set(func() { n.refuse = true }); n.Cut() }

// Refuse refuses dials and leaves connections alone, Vanish has them go silent besides, as
// when a host is gone.
func (n *Net) Refuse() { n.set(func() { n.refuse = true }) }
func (n *Net) Vanish() { n.Refuse(); n.Drop() }

// Cut closes every connection. None answers any more once another is closed.
func (n *Net) Cut() {
	n.set(func() {
		for r := range n.relays {
			r.closed = true
		}
	})
	n.each(n.cut)
}

// Start ends Kill.
func (n *Net) Start() { n.set(func() { n.refuse = false }) }

// Freeze keeps everything on its way and loses nothing, until Thaw.
func (n *Net) Freeze() { n.set(func() { n.frozen = true }) }
func (n *Net) Thaw()   { n.set(func() { n.frozen = false }) }

// Drop makes every present connection go silent; new ones work.
func (n *Net) Drop() {
	n.set(func() {
		for r := range n.relays {
			r.dropped = true
		}
	})
}

// DropBut does so to every one but that of a number: the one made first is 1, and 0 the one
// made last. silent makes new ones go silent as well.
func (n *Net) DropBut(number int, silent bool) {
	n.set(func() {
		if number == 0 {
			number = n.count
		}
		for r := range n.relays {
			r.dropped = r.number != number
		}
		n.silent = n.silent || silent
	})
}

// Silence makes every connection, present and new, go silent.
func (n *Net) Silence(on bool) {
	n.set(func() {
		n.silent = on
		for r := range n.relays {
			r.dropped = r.dropped || on
		}
	})
}

func (n *Net) set(f func()) {
	n.mu.Lock()
	f()
	n.changed.Broadcast()
	n.mu.Unlock()
}

// Dials counts the dials so far.
func (n *Net) Dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.dials)
}

// Gaps returns the times between the dials from the first on.
func (n *Net) Gaps(first int) []time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	var gaps []time.Duration
	for i := first + 1; i < len(n.dials); i++ {
		gaps = append(gaps, n.dials[i].Sub(n.dials[i-1]))
	}
	return gaps
}

// Open counts the connections that there are to the server.
func (n *Net) Open() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.relays)
}

// Close ends whatever the test left.
func (n *Net) Close() {
	n.set(func() { n.refuse, n.frozen = true, false })
	n.each(func(r *relay) {
		n.set(func() { r.dropped = false })
		n.cut(r)
	})
	n.Redis.Close()
}

// Bubble runs f in a synctest bubble with a network and the options of a client
// on it. The pool is large because waiting for a connection is better tested
// outside: see DropTimers.
func Bubble(t *testing.T, f func(t *testing.T, n *Net, opt *redis.Options)) {
	t.Helper()
	DropTimers()
	defer DropTimers()
	synctest.Test(t, func(t *testing.T) {
		n := New()
		t.Cleanup(n.Close)
		f(t, n, &redis.Options{Addr: "127.0.0.1:1", Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500})
	})
}

// DropTimers empties every sync.Pool of the process, which survive one collection: in one of
// them go-redis keeps the timers by which callers wait for a connection, for all its clients.
// No timer may leave its bubble, and one that comes into a bubble never ends there.
func DropTimers() {
	runtime.GC()
	runtime.GC()
}

// Ready waits for the link of c.
func Ready(t *testing.T, c interface{ WaitReady(context.Context) error }) {
	t.Helper()
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}
