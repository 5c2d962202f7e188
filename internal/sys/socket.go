// Package sys is what the operating system says of connections and can be asked about
// them. It knows nothing of Redis, and uses the standard library alone.
package sys

import (
	"crypto/tls"
	"net"
	"time"
)

// Sockets, as far as all systems have them alike; the other socket files hold what only
// some can do.

// Liveness says how the kernel finds out that the peer of a socket is dead: by keep-alive
// when nothing is under way, by the user timeout when something is. On Linux the latter
// ends the former too.
type Liveness struct {
	Idle    time.Duration // silence before the first probe, and between two
	Probes  int           // how many may go unanswered
	Unacked time.Duration // how long written data may stay unacknowledged, on Linux
}

// Tune has the kernel find a dead peer of nc, if nc is a TCP socket.
func Tune(nc net.Conn, v Liveness) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: v.Idle, Interval: v.Idle, Count: v.Probes})
	if rc, err := tcp.SyscallConn(); err == nil {
		setUserTimeout(rc, v.Unacked)
	}
}

// Transport follows crypto/tls to what it is on, which is closed without a farewell that
// could block. What else is on top is the caller's, and to be closed as such.
func Transport(nc net.Conn) net.Conn {
	for {
		t, ok := nc.(*tls.Conn)
		if !ok {
			return nc
		}
		nc = t.NetConn()
	}
}

// Innermost follows NetConn, as crypto/tls.Conn offers it, to what the kernel knows of.
func Innermost(nc net.Conn) net.Conn {
	for range 8 { // one that wraps itself has no end
		u, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		inner := u.NetConn()
		if inner == nil {
			break
		}
		nc = inner
	}
	return nc
}
