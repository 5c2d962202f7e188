package wire

import "time"

// The numbers of connections. Those that a caller may set come with Settings.
const (
	// While callers wait, the delay is the outage's age divided by EagerDivisor,
	// at least EagerDelay: recovery adds about 1 % to an outage. See docs/backoff.md.
	EagerDelay   = 25 * time.Millisecond
	EagerDivisor = 100
	EagerJitter  = 0.2

	// FirstLanes is how many dials may run at once when the link comes up. Each
	// success adds a lane, so the number doubles with every round.
	FirstLanes = 4
)
