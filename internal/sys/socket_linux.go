package sys

import (
	"encoding/binary"
	"syscall"
	"time"
)

// What Linux alone can be asked about a socket, and told.

const (
	tcpUserTimeout = 0x12 // TCP_USER_TIMEOUT; package syscall has it on some ports only
	tcpEstablished = 1
)

// PeerClosed reports whether the connection is no longer established, as
// when the peer has closed it, even while bytes still wait to be read.
func PeerClosed(rc syscall.RawConn) bool {
	closed := false
	_ = rc.Control(func(fd uintptr) {
		info, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO)
		if err != nil {
			return // not TCP
		}
		var b [4]byte // the first bytes of struct tcp_info; the state comes first
		binary.NativeEndian.PutUint32(b[:], uint32(info))
		closed = b[0] != tcpEstablished
	})
	return closed
}

// setUserTimeout bounds how long written data may stay unacknowledged.
func setUserTimeout(rc syscall.RawConn, d time.Duration) {
	_ = rc.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(d.Milliseconds()))
	})
}
