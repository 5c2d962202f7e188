package sys

import (
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// option returns an option of a socket.
func option(t *testing.T, nc *net.TCPConn, name int) (value int) {
	t.Helper()
	rc, err := nc.SyscallConn()
	require.NoError(t, err)
	var failed error
	require.NoError(t, rc.Control(func(fd uintptr) {
		value, failed = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, name)
	}))
	require.NoError(t, failed)
	return value
}

func TestTune_TellsTheKernel(t *testing.T) {
	a, _ := pair(t)
	Tune(a, Liveness{Idle: 3 * time.Second, Probes: 4, Unacked: 5 * time.Second})
	assert.Equal(t, 3, option(t, a, syscall.TCP_KEEPIDLE))
	assert.Equal(t, 3, option(t, a, syscall.TCP_KEEPINTVL))
	assert.Equal(t, 4, option(t, a, syscall.TCP_KEEPCNT))
	assert.Equal(t, 5000, option(t, a, tcpUserTimeout))
}

// Bytes that wait are seen and stay; a peer that has closed is seen behind them.
func TestReadable_PeerClosed(t *testing.T) {
	a, b := pair(t)
	rc, err := a.SyscallConn()
	require.NoError(t, err)
	assert.False(t, Readable(rc))
	assert.False(t, PeerClosed(rc))
	_, err = b.Write([]byte("x"))
	require.NoError(t, err)
	assert.Eventually(t, func() bool { return Readable(rc) }, time.Second, time.Millisecond)
	assert.False(t, PeerClosed(rc))
	require.NoError(t, b.Close())
	assert.Eventually(t, func() bool { return PeerClosed(rc) }, time.Second, time.Millisecond)
	assert.True(t, Readable(rc), "nothing was consumed")
	_, err = io.ReadFull(a, make([]byte, 1))
	require.NoError(t, err)
	assert.False(t, Readable(rc), "the end is no byte")
}
