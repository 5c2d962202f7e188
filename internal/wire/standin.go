package wire

import (
	"net"
	"syscall"
	"time"
)

// What go-redis gets in place of a connection that could not be made.

// Standin takes the place of a connection that could not be made. Were the
// dialer to fail instead, the pool would retry on its own schedule and then
// answer with stale errors; so it succeeds, and every operation fails as not
// sent.
type Standin struct {
	err  error
	seal func(*Error) error // nil: nobody has to be kept from trying again
}

// NewStandin returns one that fails with err, where seal may hide that, if there is one.
func NewStandin(err error, seal func(*Error) error) *Standin { return &Standin{err, seal} }

// fail returns a failure that is no other's.
func (s *Standin) fail() error {
	failure := &Error{Phase: PhaseDial, Err: s.err}
	if s.seal == nil {
		return failure
	}
	return s.seal(failure)
}

func (s *Standin) Read([]byte) (int, error)         { return 0, s.fail() }
func (s *Standin) Write([]byte) (int, error)        { return 0, s.fail() }
func (s *Standin) Close() error                     { return nil }
func (s *Standin) LocalAddr() net.Addr              { return noAddr{} }
func (s *Standin) RemoteAddr() net.Addr             { return noAddr{} }
func (s *Standin) SetDeadline(time.Time) error      { return nil }
func (s *Standin) SetReadDeadline(time.Time) error  { return nil }
func (s *Standin) SetWriteDeadline(time.Time) error { return nil }

// SyscallConn makes the pool's health check drop a stand-in that lay idle.
func (s *Standin) SyscallConn() (syscall.RawConn, error) { return nil, s.fail() }

type noAddr struct{}

func (noAddr) Network() string { return "none" }
func (noAddr) String() string  { return "not connected" }
