//go:build !windows && !plan9 && !js && !wasip1

package sys

import "syscall"

// Looking into a socket, where that can be done without consuming.

// Readable reports whether bytes wait in the socket.
func Readable(rc syscall.RawConn) bool {
	n, err := peek(rc)
	return err == nil && n > 0
}

// peek looks for one byte without blocking or consuming it. n is 0 without an
// error when the peer has closed the connection and -1 when nothing waits.
func peek(rc syscall.RawConn) (n int, err error) {
	cerr := rc.Control(func(fd uintptr) {
		var buf [1]byte
		n, _, err = syscall.Recvfrom(int(fd), buf[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	if cerr != nil {
		return -1, cerr
	}
	if err == syscall.EAGAIN || err == syscall.EWOULDBLOCK {
		return -1, nil
	}
	return n, err
}
