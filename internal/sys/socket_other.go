//go:build !linux

package sys

import (
	"syscall"
	"time"
)

// Systems other than Linux, which do not tell what it does.

// PeerClosed cannot tell here: a TLS connection that the peer has closed is
// found by its idle check.
func PeerClosed(syscall.RawConn) bool { return false }

// setUserTimeout does nothing: the option is Linux's own.
func setUserTimeout(syscall.RawConn, time.Duration) {}
