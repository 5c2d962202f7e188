//go:build !linux || 386 || s390x

package sys

import "syscall"

// DeliveryOf cannot tell here.
func DeliveryOf(syscall.RawConn) (Delivery, bool) { return Delivery{}, false }
