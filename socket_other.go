//go:build !linux

package redial

import (
	"syscall"
	"time"
)

// tcpPeerClosed cannot tell here: a TLS connection that the peer has closed is
// found by its idle check.
func tcpPeerClosed(syscall.RawConn) bool { return false }

// setUserTimeout does nothing: the option is Linux's own.
func setUserTimeout(syscall.RawConn, time.Duration) {}
