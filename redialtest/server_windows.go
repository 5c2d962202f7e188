package redialtest

import (
	"os"
	"syscall"
)

// errRefused is what a refused dial returns. syscall.ECONNREFUSED is an invented
// number on Windows; the network stack returns WSAECONNREFUSED.
var errRefused = os.NewSyscallError("connectex", syscall.Errno(10061))
