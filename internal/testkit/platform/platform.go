// Package platform says what tests have to know of how they run: whether the race detector
// watches, whether they are to do all that they can, and where their stack is. It imports
// nothing of this module, so that tests inside of any package may use it.
package platform

import (
	"os"
	"unsafe"
)

// Full is whether what chance and numbers do is tried as often as with every change, and not
// only as often as somebody likes to wait for.
func Full() bool { return os.Getenv("REDIAL_FULL") == "1" }

// Times is how often something is tried: full or, where somebody waits, some. Under the race
// detector it is always full: that has numbers of its own, made from this one.
func Times(full, some int) int {
	if Full() || RaceDetector {
		return full
	}
	return some
}

// EndOfStack returns where the stack of the caller ends, as a number, which does not move along.
//
//go:noinline
func EndOfStack() uintptr {
	var here byte
	return uintptr(unsafe.Pointer(&here))
}
