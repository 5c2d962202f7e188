// Package platform says what tests have to know of how they run: whether the race detector
// watches, and whether they are to do all that they can. It imports nothing of this module, so
// that tests inside of any package may use it.
package platform

import "os"

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
