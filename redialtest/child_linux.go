package redialtest

import "syscall"

// childAttr lets the kernel kill the server when this process dies without
// cleaning up: a panic, a test timeout, SIGKILL.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
