package sys

import (
	"syscall"
	"unsafe"
)

// Whether the peer has closed a connection, on Windows, where pools of go-redis do not look.

// Peer looks at the other end of a socket. It is not safe for concurrent use.
type Peer struct {
	rc   syscall.RawConn
	look func(fd uintptr) // made once: it would be an allocation a command
	poll pollFD
	gone bool
}

// pollFD is WSAPOLLFD.
type pollFD struct {
	fd      uintptr
	events  int16
	revents int16
}

const (
	pollErr = 1     // POLLERR: it was reset
	pollHup = 2     // POLLHUP: it was closed
	pollIn  = 0x100 // POLLRDNORM
)

var wsaPoll = syscall.NewLazyDLL("ws2_32.dll").NewProc("WSAPoll")

// PeerOf returns what looks at the peer of a socket, or nil where pools do, or nobody can.
func PeerOf(rc syscall.RawConn) *Peer {
	if rc == nil || wsaPoll.Find() != nil {
		return nil
	}
	p := &Peer{rc: rc}
	p.look = func(fd uintptr) {
		p.poll = pollFD{fd: fd, events: pollIn}
		n, _, _ := syscall.SyscallN(wsaPoll.Addr(), uintptr(unsafe.Pointer(&p.poll)), 1, 0)
		p.gone = int32(n) == 1 && p.poll.revents&(pollErr|pollHup) != 0
	}
	return p
}

// Gone reports whether the peer has closed the connection, even while bytes still wait to
// be read, or has reset it. It neither waits nor reads.
func (p *Peer) Gone() bool {
	p.gone = false
	return p.rc.Control(p.look) == nil && p.gone
}
