//go:build !windows && !plan9

package sys

import (
	"errors"
	"syscall"
)

// Error numbers of Unix systems.

// IsConnectionError reports whether err carries an error number that says that a
// connection cannot be made or is lost.
func IsConnectionError(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && connErrno(errno)
}

// connErrno reports whether errno is one of the errors that Unix systems report
// for a connection that cannot be made or is lost.
func connErrno(errno syscall.Errno) bool {
	switch errno {
	case syscall.ECONNRESET, syscall.ECONNABORTED, syscall.ECONNREFUSED,
		syscall.ETIMEDOUT, syscall.EPIPE, syscall.ENOTCONN, syscall.ENETDOWN,
		syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETRESET:
		return true
	}
	return false
}
