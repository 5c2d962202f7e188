//go:build linux && !386 && !s390x

package sys

import (
	"encoding/binary"
	"syscall"
	"time"
	"unsafe"
)

// Offsets in struct tcp_info, which only ever grows at its end.
const (
	tcpiRetransmits  = 2   // u8
	tcpiProbes       = 3   // u8
	tcpiUnacked      = 24  // u32, segments
	tcpiLastAckRecv  = 56  // u32, milliseconds
	tcpiTotalRetrans = 100 // u32, segments
	tcpiSegsIn       = 140 // u32, segments; since Linux 4.2
	tcpiSize         = 144
)

// DeliveryOf asks the kernel about a connection. It reports false where the kernel cannot
// tell: the connection is not TCP, or the kernel is too old.
func DeliveryOf(rc syscall.RawConn) (d Delivery, ok bool) {
	var info [tcpiSize]byte
	err := rc.Control(func(fd uintptr) {
		size := uint32(len(info))
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		ok = errno == 0 && size == tcpiSize
	})
	if err != nil || !ok {
		return d, false
	}
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(info[at:]) }
	return Delivery{
		Unacked:   word(tcpiUnacked) > 0,
		Resent:    int(info[tcpiRetransmits]),
		Probes:    int(info[tcpiProbes]),
		Silent:    time.Duration(word(tcpiLastAckRecv)) * time.Millisecond,
		Losses:    word(tcpiTotalRetrans),
		Exchanges: word(tcpiSegsIn),
	}, true
}
