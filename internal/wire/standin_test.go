package wire

import (
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

var errRefused = error(&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)})

func TestStandin_EveryOperationIsNotSent(t *testing.T) {
	s := NewStandin(errRefused, nil)
	_, err := s.Write([]byte("x"))
	assert.Equal(t, PhaseDial, ErrorOf(err).Phase, "nothing was sent")
	_, err = s.Read(make([]byte, 1))
	assert.Equal(t, PhaseDial, ErrorOf(err).Phase, "nothing was sent")
	_, err = s.SyscallConn()
	assert.Error(t, err, "the pool drops it")
	assert.ErrorIs(t, err, syscall.ECONNREFUSED)
	assert.NoError(t, s.SetDeadline(time.Now()))
	assert.NoError(t, s.SetReadDeadline(time.Now()))
	assert.NoError(t, s.SetWriteDeadline(time.Now()))
	assert.NotEmpty(t, s.RemoteAddr().String()+s.LocalAddr().Network())
	assert.NoError(t, s.Close())
}
