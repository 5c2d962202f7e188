//go:build windows || plan9 || js || wasip1

package sys

import "syscall"

// Systems on which nobody can look into a socket without consuming.

// Readable cannot tell here, and so is false.
func Readable(syscall.RawConn) bool { return false }
