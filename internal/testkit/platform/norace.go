//go:build !race

package platform

// RaceDetector is whether the tests run under the race detector.
const RaceDetector = false
