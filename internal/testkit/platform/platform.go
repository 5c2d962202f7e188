// Package platform says what tests have to know of how they run: whether the race detector
// watches. It imports nothing, so that tests inside of any package may use it.
package platform
