//go:build !race

package redial

// RaceDetector is whether the tests run under the race detector.
const RaceDetector = false
