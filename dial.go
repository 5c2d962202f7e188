package redial

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// dialFunc is the type of redis.Options.Dialer.
type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// baseDialer returns the dialer beneath the link: the caller's own, or one that
// does what go-redis's does, but heeds ctx during the TLS handshake too. Sockets
// get the keep-alive and, on Linux, the TCP_USER_TIMEOUT that find a half-open
// connection within budget.
func baseDialer(opt *redis.Options, budget time.Duration) dialFunc {
	dial := opt.Dialer
	if dial == nil {
		nd := &net.Dialer{}
		if opt.TLSConfig != nil {
			dial = (&tls.Dialer{NetDialer: nd, Config: opt.TLSConfig}).DialContext
		} else {
			dial = nd.DialContext
		}
	}
	timeout := opt.DialTimeout
	if timeout == 0 {
		timeout = 5 * time.Second // go-redis's default
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		nc, err := dial(ctx, network, addr)
		if err == nil {
			tune(innermost(nc), budget)
		}
		return nc, err
	}
}

// tune sets the options of a TCP socket that make the kernel find a dead peer:
// by keep-alive when nothing is under way, by the user timeout when something is.
// On Linux the latter ends the former too, at the second unanswered probe.
func tune(nc net.Conn, budget time.Duration) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	idle := max(budget/3, time.Second)
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: idle, Interval: idle, Count: 2})
	if rc, err := tcp.SyscallConn(); err == nil {
		setUserTimeout(rc, max(budget*2/3, time.Second))
	}
}

var _ syscall.RawConn = (*poolCheck)(nil)

// lanes bounds how many dials run at once after the link came up. The limit
// starts low and grows by one with every success, so it doubles with every
// round: a pool warms up fast, yet a server that has just come back is not
// stormed.
type lanes struct {
	mu    sync.Mutex
	limit int             // guarded by mu
	busy  int             // guarded by mu
	queue []chan struct{} // guarded by mu; one is closed for each lane that frees
}

// reset starts over with few lanes.
func (l *lanes) reset() {
	l.mu.Lock()
	l.limit = firstLanes
	l.mu.Unlock()
}

// enter waits for a lane or the end of ctx.
func (l *lanes) enter(ctx context.Context) error {
	for {
		l.mu.Lock()
		if l.busy < l.limit {
			l.busy++
			l.mu.Unlock()
			return nil
		}
		turn := make(chan struct{})
		l.queue = append(l.queue, turn)
		l.mu.Unlock()
		select {
		case <-turn:
		case <-ctx.Done():
			l.leaveQueue(turn)
			return context.Cause(ctx)
		}
	}
}

// leaveQueue takes back a place in the queue; a turn that came in the same
// moment goes to the next in line.
func (l *lanes) leaveQueue(turn chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, q := range l.queue {
		if q == turn {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			return
		}
	}
	l.wake(1)
}

// leave frees the lane; ok says whether the dial succeeded.
func (l *lanes) leave(ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy--
	free := 1
	if ok {
		l.limit++
		free++
	}
	l.wake(free)
}

// wake lets the first n of the queue try. The caller holds mu.
func (l *lanes) wake(n int) {
	for ; n > 0 && len(l.queue) > 0; n-- {
		close(l.queue[0])
		l.queue = l.queue[1:]
	}
}
