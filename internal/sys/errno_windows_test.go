package sys

import (
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
)

// The numbers that the Windows network stack returns, not the inventions of
// package syscall.
func TestIsConnectionError_Winsock(t *testing.T) {
	for _, errno := range []syscall.Errno{64, 109, 121, 1225, 1231, 1232, 1236, 10051, 10052, 10053, 10054, 10058, 10060, 10061, 10065} {
		assert.True(t, IsConnectionError(os.NewSyscallError("wsarecv", errno)), "%d", errno)
		assert.True(t, IsConnectionError(&net.OpError{Op: "read", Err: os.NewSyscallError("wsarecv", errno)}), "%d", errno)
	}
	assert.False(t, IsConnectionError(syscall.Errno(2))) // ERROR_FILE_NOT_FOUND
}
