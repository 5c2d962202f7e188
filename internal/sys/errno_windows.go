package sys

import (
	"errors"
	"syscall"
)

// Error numbers of Windows.

// IsConnectionError reports whether err carries an error number that says that a
// connection cannot be made or is lost.
func IsConnectionError(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && connErrno(errno)
}

// connErrno reports whether errno is one of the errors that Windows reports for
// a connection that cannot be made or is lost. The network stack returns Winsock
// numbers; syscall.ECONNRESET and its like are inventions that it never returns
// on Windows.
func connErrno(errno syscall.Errno) bool {
	switch errno {
	case 64, // ERROR_NETNAME_DELETED
		109,   // ERROR_BROKEN_PIPE
		121,   // ERROR_SEM_TIMEOUT
		1225,  // ERROR_CONNECTION_REFUSED
		1231,  // ERROR_NETWORK_UNREACHABLE
		1232,  // ERROR_HOST_UNREACHABLE
		1236,  // ERROR_CONNECTION_ABORTED
		10050, // WSAENETDOWN
		10051, // WSAENETUNREACH
		10052, // WSAENETRESET
		10053, // WSAECONNABORTED
		10054, // WSAECONNRESET: forcibly closed by the remote host
		10057, // WSAENOTCONN
		10058, // WSAESHUTDOWN
		10060, // WSAETIMEDOUT
		10061, // WSAECONNREFUSED
		10064, // WSAEHOSTDOWN
		10065: // WSAEHOSTUNREACH
		return true
	}
	return false
}
