package wire

import "time"

// The numbers of connections. Those that a caller may set come with Settings.

const (
	// While callers wait, the delay is EagerDelay in an outage younger than EagerYoung, and
	// then its age divided by EagerDivisor: recovery adds about 1 % to an outage. See
	// docs/backoff.md.
	EagerDelay   = 22 * time.Millisecond
	EagerYoung   = 4 * time.Second
	EagerDivisor = 100
	EagerJitter  = 0.2

	// FirstLanes is how many dials may run at once when the link comes up. Each
	// success adds a lane, so the number doubles with every round.
	FirstLanes = 4
	// LaneTime is how long a dial may keep others waiting.
	LaneTime = 50 * time.Millisecond

	// How long an idle connection may take to answer: a multiple of the measured
	// round trip, within bounds. A false alarm costs one dial.
	ProofRoundTrips = 8
	proofFloor      = 50 * time.Millisecond
	// leastTimeout bounds that from below, however little time a heartbeat has.
	leastTimeout = time.Millisecond
	// A new round trip counts for one part in rttSmoothing of the smoothed one.
	rttSmoothing = 8
	// MaxAnswer bounds the answer to a PING, with all that comes along.
	MaxAnswer = 1 << 10
	// maxHello does so of the answer to HELLO, which lists modules.
	maxHello = 16 << 10
	// maxGreeting is the length within which the reply to HELLO says which client this is.
	maxGreeting = 1024

	// What a connection waits for is ended within so many round trips or, at least,
	// UnblockFloor. When it is not known whether it was, its reply may take lastLook.
	unblockRoundTrips = 4
	UnblockFloor      = 50 * time.Millisecond
	lastLook          = time.Millisecond

	// tokenMargin is how much earlier the deadline for writing, which identifies a
	// call, is than the one that go-redis would set by itself. Where that would be
	// none, noWriteTimeout stands for it.
	tokenMargin    = time.Millisecond
	noWriteTimeout = 24 * time.Hour
	// The lowest bits of a token name the place of its call. There are up to callPages
	// pages of callPlaces, and one more when placeTries places in a row are taken.
	tokenMask  = callPages*callPlaces - 1
	callPages  = 256
	callPlaces = 256
	placeTries = 8
	// Unwatched is how long a command waits for its reply before it heeds the end of its
	// context, for most replies come sooner, and another connection costs more; and
	// watchedWrite is the size from which on a command heeds it while it is written.
	// A connection that is used more often than seldom says has a deadline of that time,
	// and the context is watched from then on. On others the deadline of each command would
	// pass, and wake a processor that has nothing else to do, so they watch from the start.
	Unwatched    = 10 * time.Millisecond
	seldom       = time.Millisecond
	watchedWrite = 16 << 10

	// mostShunned is how many connections may end without an answer to their introduction
	// until no more are introduced, if none was ever answered.
	mostShunned = 2

	// KeepAliveFloor is the least time that the kernel lets pass before it probes a
	// connection on which nothing happens.
	KeepAliveFloor = time.Second

	// glance is how often connections are looked at while commands are under way,
	// closerGlance while one has waited for a moment. A connection is unacknowledged when
	// what was written on it was sent again manyTimes without an answer, for at least
	// resentFor, or as many probes of the kernel were not answered; once of these after
	// another was answered, which was later by at least answeredSince than anything was
	// heard of this one, or written on it; and among a number of segments, noLosses
	// at least, no more than one in lossRatio was lost: else TCP deserves more time. Of
	// late, which is some lossTime, there must be as few as for as long as is remembered,
	// some lossMemory. No more than glanceAt connections that are well are looked at for
	// losses.
	glance        = 250 * time.Millisecond
	closerGlance  = 50 * time.Millisecond
	glanceAt      = 64
	manyTimes     = 2
	resentFor     = 550 * time.Millisecond
	answeredSince = 300 * time.Millisecond
	lossTime      = time.Second
	lossMemory    = 15 * time.Second
	noLosses      = 6
	lossRatio     = 200
)
