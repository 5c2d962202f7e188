//go:build unix

package redialtest

import (
	"os"
	"syscall"
)

// errRefused is what a refused dial returns.
var errRefused = os.NewSyscallError("connect", syscall.ECONNREFUSED)
