//go:build !windows

package sys

import "syscall"

// Where pools of go-redis look at the peer themselves, or nobody can.

// Peer looks at the other end of a socket.
type Peer struct{}

// PeerOf returns what looks at the peer of a socket, or nil where pools do, or nobody can.
func PeerOf(syscall.RawConn) *Peer { return nil }

// Gone is not reached.
func (*Peer) Gone() bool { return false }
