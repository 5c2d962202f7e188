package sys

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A wrapper as crypto/tls.Conn is one.
type wrapper struct {
	net.Conn
	inner net.Conn
}

func (w *wrapper) NetConn() net.Conn { return w.inner }

func TestInnermost(t *testing.T) {
	nc, other := net.Pipe()
	defer nc.Close()
	defer other.Close()
	assert.Same(t, nc, Innermost(nc))
	assert.Same(t, nc, Innermost(&wrapper{inner: &wrapper{inner: nc}}))
	hollow := &wrapper{}
	assert.Same(t, hollow, Innermost(hollow), "what wraps nothing is the last")
	circle := &wrapper{}
	circle.inner = circle
	assert.Same(t, circle, Innermost(circle), "a wrapper of itself is no endless loop")
}

// pair returns the two ends of a TCP connection.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	nc, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	peer, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = peer.Close() })
	return nc.(*net.TCPConn), peer.(*net.TCPConn)
}

// A tuned socket works as before, and what is no socket is left alone.
func TestTune(t *testing.T) {
	a, b := pair(t)
	v := Liveness{Idle: time.Second, Probes: 2, Unacked: 2 * time.Second}
	Tune(a, v)
	_, err := a.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(b, make([]byte, 1))
	require.NoError(t, err)
	nc, other := net.Pipe()
	defer nc.Close()
	defer other.Close()
	Tune(nc, v)
}
