//go:build race

package redial

const raceDetector = true
