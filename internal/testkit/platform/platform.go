// Package platform says what tests have to know of how they run: whether the race detector
// watches, whether they are to do all that they can, how long something takes, and where their
// stack is. It imports nothing of this module, so that tests inside of any package may use it.
package platform

import (
	"os"
	"time"
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

// AtBest returns how long f takes. Where that is limit or more it is tried again, three times in
// all: on a busy machine anything may be late, but not always.
func AtBest(limit time.Duration, f func()) (took time.Duration) {
	for range 3 {
		began := time.Now()
		f()
		if took = time.Since(began); took < limit {
			break
		}
	}
	return took
}

// EndOfStack returns where the stack of the caller ends, as a number, which does not move along.
//
//go:noinline
func EndOfStack() uintptr {
	var here byte
	return uintptr(unsafe.Pointer(&here))
}
