//go:build windows || plan9 || js || wasip1

package redial

import "syscall"

// readable cannot tell here without consuming.
func readable(syscall.RawConn) bool { return false }
