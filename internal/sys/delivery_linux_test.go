//go:build linux && !386 && !s390x

package sys

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What was acknowledged is told from what was not. The peer's kernel acknowledges, whether
// or not anybody reads.
func TestDelivery_Acknowledged(t *testing.T) {
	a, _ := pair(t)
	rc, err := a.SyscallConn()
	require.NoError(t, err)
	_, err = a.Write([]byte("x"))
	require.NoError(t, err)
	assert.Eventually(t, func() bool {
		d, ok := DeliveryOf(rc)
		return ok && !d.Unacked && d.Resent == 0 && d.Losses == 0 && d.Probes == 0 && d.Exchanges > 0 && d.Silent < time.Second
	}, time.Second, time.Millisecond)
}

func TestDelivery_CannotBeTold(t *testing.T) {
	l, err := net.Listen("unix", t.TempDir()+"/s")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	nc, err := net.Dial("unix", l.Addr().String())
	require.NoError(t, err)
	rc, err := nc.(*net.UnixConn).SyscallConn()
	require.NoError(t, err)
	_, ok := DeliveryOf(rc)
	assert.False(t, ok, "a socket that is not TCP")
	require.NoError(t, nc.Close())
	_, ok = DeliveryOf(rc)
	assert.False(t, ok, "a closed one")
}
