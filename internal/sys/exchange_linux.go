package sys

import (
	"io"
	"net"
	"os"
	"syscall"
)

// Exchange writes a request and waits for what comes, with one system call less than Write
// and Read need: Read would look for the reply as soon as the request was written, and find
// none. It is not safe for concurrent use.
//
// What came before Do was called does not end the wait, for the runtime tells of that once.
// So a wait has to be bounded, and to go on with a Read.
type Exchange struct {
	nc      net.Conn // a socket that the runtime polls
	rc      syscall.RawConn
	step    func(fd uintptr) (done bool) // made once: it would be an allocation a command
	out, in []byte
	got     int
	op      string // what failed with err
	err     error
}

// ExchangeOn returns an Exchange on a connection, whose socket rc is.
func ExchangeOn(nc net.Conn, rc syscall.RawConn) *Exchange {
	x := &Exchange{nc: nc, rc: rc}
	x.step = x.next
	return x
}

// Do writes out, and reads into in once there is something. rest is what it has not
// written, without reading then. Errors are those of Write and Read; without one, rest is
// what the socket has no room for, or all, since the deadline for reading has passed.
func (x *Exchange) Do(out, in []byte) (n int, rest []byte, err error) {
	x.out, x.in, x.got, x.err = out, in, 0, nil
	err = x.rc.Read(x.step)
	rest, x.out, x.in = x.out, nil, nil
	switch {
	case err == nil && x.err != nil && x.err != io.EOF:
		err = &net.OpError{
			Op: x.op, Net: x.nc.LocalAddr().Network(), Source: x.nc.LocalAddr(), Addr: x.nc.RemoteAddr(),
			Err: os.NewSyscallError(x.op, x.err),
		}
	case err == nil:
		err = x.err
	case len(rest) > 0 && IsTimeout(err):
		err = nil
	default:
		if failure, ok := err.(*net.OpError); ok {
			failure.Op = "read"
			if len(rest) > 0 {
				failure.Op = "write"
			}
		}
	}
	return x.got, rest, err
}

// next is called until it returns true, the first time at once and then whenever something
// has come.
func (x *Exchange) next(fd uintptr) (done bool) {
	if len(x.out) > 0 {
		x.op = "write"
		n, err := again(syscall.Write, fd, x.out)
		x.out = x.out[n:]
		if err != nil && err != syscall.EAGAIN {
			x.err = err
		}
		return len(x.out) > 0
	}
	x.op = "read"
	x.got, x.err = again(syscall.Read, fd, x.in)
	switch {
	case x.err == syscall.EAGAIN:
		x.err = nil
		return false
	case x.err == nil && x.got == 0 && len(x.in) > 0:
		x.err = io.EOF
	}
	return true
}

// again makes a system call until no signal interrupts it.
func again(call func(fd int, p []byte) (int, error), fd uintptr, p []byte) (int, error) {
	for {
		n, err := call(int(fd), p)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}
