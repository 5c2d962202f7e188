package redial

import (
	"net"
	"syscall"
	"time"
)

// standin takes the place of a connection that could not be made. Were the
// dialer to fail instead, the pool would retry on its own schedule and then
// answer with stale errors; so it succeeds, and every operation fails as not
// sent.
type standin struct {
	err  error
	link *link // nil: nobody's
}

func (s *standin) fail() error {
	failure := &connError{phase: phaseDial, err: s.err}
	if s.link == nil {
		return failure
	}
	return s.link.seal(failure)
}

func (s *standin) Read([]byte) (int, error)         { return 0, s.fail() }
func (s *standin) Write([]byte) (int, error)        { return 0, s.fail() }
func (s *standin) Close() error                     { return nil }
func (s *standin) LocalAddr() net.Addr              { return noAddr{} }
func (s *standin) RemoteAddr() net.Addr             { return noAddr{} }
func (s *standin) SetDeadline(time.Time) error      { return nil }
func (s *standin) SetReadDeadline(time.Time) error  { return nil }
func (s *standin) SetWriteDeadline(time.Time) error { return nil }

// SyscallConn makes the pool's health check drop a stand-in that lay idle.
func (s *standin) SyscallConn() (syscall.RawConn, error) { return nil, s.fail() }

type noAddr struct{}

func (noAddr) Network() string { return "none" }
func (noAddr) String() string  { return "not connected" }
