package sys

import "errors"

// What errors say of themselves. The errno files know the numbers that they carry, by
// system.

// IsTimeout reports whether err, or one inside it, says that it is a timeout.
func IsTimeout(err error) bool {
	if t, ok := err.(interface{ Timeout() bool }); ok { // as most do; a late reply waits for nothing more
		return t.Timeout()
	}
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// IsTemporary reports whether err, or one inside it, says that it is temporary.
func IsTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}
