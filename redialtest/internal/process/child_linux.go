// The server dies with whoever started it.

package process

import "syscall"

// childAttr lets the kernel kill the server when this process dies without
// cleaning up: a panic, a test timeout, SIGKILL. The server is in a process group of
// its own, which a Ctrl-C at the terminal does not reach.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
