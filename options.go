package redial

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/sentinel"
	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/wire"
)

// What can be set, by which option and within which bounds, and the numbers that cannot.
// Packages below are handed theirs from here.

// Defaults of the options. A zero-option client uses exactly these.
const (
	// DefaultHeartbeatInterval is the longest time between two proofs of life.
	DefaultHeartbeatInterval = time.Second
	// DefaultHeartbeatTimeout is how long one heartbeat may take before it
	// counts as missed.
	DefaultHeartbeatTimeout = time.Second
	// DefaultHeartbeatMisses is how many heartbeats in a row must be missed
	// before a silent server counts as dead.
	DefaultHeartbeatMisses = 2
	// DefaultGrace is how long an outage is hidden from commands.
	DefaultGrace = 5 * time.Second
	// DefaultMaxWaiting is how many commands may wait for the link at a time.
	DefaultMaxWaiting = 10_000
	// DefaultIdleCheck is the age at which an unused connection must prove
	// itself before it carries a command.
	DefaultIdleCheck = 2 * time.Second
	// DefaultOnceTTL is how long the record of an id lives: as long as whoever has lost
	// a reply may take to ask again, a process that is restarted or a queue that
	// delivers once more.
	DefaultOnceTTL = 10 * time.Minute
)

// The numbers that are not options.
const (
	// Reconnect schedule without demand. The randomized cap stays below two
	// seconds, so that clients without traffic are back within that time.
	backoffInitial    = 50 * time.Millisecond
	backoffMultiplier = 1.6
	backoffCap        = 1250 * time.Millisecond
	backoffJitter     = 0.5
	// minDelay bounds any delay from below, whatever a backoff policy returns.
	minDelay = 5 * time.Millisecond

	// A heartbeat is sent this much of the interval early, at random.
	heartbeatJitter = 0.1
	// verifySpacing keeps verifications apart when connections keep breaking
	// while the server itself answers.
	verifySpacing = 25 * time.Millisecond

	// lookout is how often, at least, the keeper looks whether go-redis has closed the
	// client, for one that had no connection whose end would tell.
	lookout = 500 * time.Millisecond

	// Attempts to reach the server run at the same time, this many at most. The first of
	// them keep the whole of their time, the others are replaced by new ones.
	mostAttempts    = 4
	lastingAttempts = 2
	// firstPatience is how long the first attempts of all may be silent once there is a
	// connection, or a dialer of the caller's at work, before another is begun: it is not
	// known how long a connection takes here.
	firstPatience = 2 * time.Second
	// fewestDeaf is how many PINGs in a row a server has to leave unanswered, and never have
	// answered one, that is asked by HELLO from then on.
	fewestDeaf = 2
	// dialPatience is how long the first dial of all may take before there are others: as
	// long as RFC 8305 has the attempts at one address wait for those at another, at least.
	dialPatience = 100 * time.Millisecond
	// setUpSmoothing is the part of a longer time to set up a connection that is believed
	// at once.
	setUpSmoothing = 4
	// moreLeave is how many times longer who was late to tell a topology may take the next
	// time. When one was told before, that is so after latesSpared questions.
	moreLeave   = 8
	latesSpared = 3

	// mostSetUp bounds the set-up of a connection that the caller has not bounded.
	mostSetUp = time.Minute
	// mostAsked is how many idle connections are asked whether the server lives.
	mostAsked = 4
	// sweepAge is the age at which an idle connection is proved in the
	// background; NAT and firewall entries live at least twice as long.
	sweepAge    = 15 * time.Second
	sweepJitter = 0.25

	// What the server knows of a connection that owes a reply for askAfter is asked every
	// askSpacing, or after askAgain once it did not know one, about askMost connections at
	// a time; new ones are asked about askPause after others. It must not know one twice,
	// certainAfter apart: a reply may be on its way. Who is told that this is not to be
	// asked does not ask for askMute.
	askAfter     = 3 * time.Second
	askSpacing   = 3 * time.Second
	askAgain     = time.Second
	askPause     = 50 * time.Millisecond
	askMost      = 256
	certainAfter = 500 * time.Millisecond
	askMute      = time.Minute
	// barrenAnswers is how often a server may not know a connection that it never knew
	// before it is not asked about that one for askMute, manyServers how many servers
	// behind one address are remembered.
	barrenAnswers = 3
	manyServers   = 16

	// dialFarewell is how long a dialer of the caller's has to say why it has failed when
	// its time is over.
	dialFarewell = 50 * time.Millisecond

	// subscriberWait is how long the dial of a subscription waits for the link.
	// Closing that subscription has to wait for it, too.
	subscriberWait = 250 * time.Millisecond

	// subscriberDoubt is how long a subscriber that seems silent may take to read, before it is
	// cut.
	subscriberDoubt = 100 * time.Millisecond

	// subscribersFirst is how long what publishes waits for the subscriptions of the same
	// client, once it may go out after an outage that it has waited for.
	subscribersFirst = 100 * time.Millisecond

	// After an outage up to warmConns connections are made without a command that wants
	// them, within warmWithin. Commands that have waited are left the one on which the server
	// was found, for heirsWithin.
	warmConns   = 16
	warmWithin  = 5 * time.Second
	heirsWithin = 50 * time.Millisecond
	// rotateSpacing is the least time between two retirements that replies of the
	// server ask for.
	rotateSpacing = time.Second

	// Pauses between two attempts of one command while the link is up, and what is to be left of
	// its deadline for the second: so many round trips besides where the first was refused, for
	// it may take another connection.
	retryPause    = 5 * time.Millisecond
	retryPauseCap = 100 * time.Millisecond
	leastTry      = time.Millisecond
	refusedTrips  = 6
	// maxRuns is how often a command is sent that may have run each time, or asks an exhausted
	// pool for a connection: as often as in go-redis by default.
	maxRuns = 4
	// Once the grace is over so many commands are refused at once and, from then on, per second.
	// Those beyond are refused after a pause.
	refusalBurst = 5000
	refusalRate  = 1000
	refusalPause = 10 * time.Millisecond
	// Attempts at commands that reached the server before, which a client may make
	// at once and, from then on, per second; see budget.
	retryBurst = 500
	retryRate  = 100

	// An id is at most maxOnceID bytes long. A command with one has at most maxOnceArgs
	// arguments: a script can hand on some 8000 values. It is not sent again once the life
	// of its record, divided by onceShare, is over. onceSends is how often a batch is sent
	// because a server does not have the script, or keys are in slots: from the third time on
	// each command brings the script.
	maxOnceID   = 512
	maxOnceArgs = 7000
	onceShare   = 2
	onceSends   = 4
	// stackDepth is how many frames, of hooks of the caller for the most part, may lie
	// between the set-up of a connection and a command of it.
	stackDepth = 256
	// A record begins with onceSum bytes of a SHA-256 of what was asked for. onceExtra is
	// how many arguments there are besides those of the command and its keys.
	onceSum   = 16
	onceExtra = 9

	// maxReading is the length of a pipeline up to which what follows its reading is
	// kept for the next one.
	maxReading = 1024

	// fewCommands is the length of a pipeline up to which an attempt has room for what
	// hooks of the caller get of it.
	fewCommands = 16

	// sentinelPatience is how long a sentinel may take to answer before others are asked
	// as well, sentinelsAtOnce at a time. One that is silent is dialed anew after the
	// age of the silence divided by wire.EagerDivisor, at most sentinelAgain, but not
	// before the last answer would have come. Of those
	// that other sentinels have named, and that have not answered when they were asked
	// last, there are sentinelStrangers in a question.
	sentinelPatience  = 50 * time.Millisecond
	sentinelAgain     = 250 * time.Millisecond
	sentinelsAtOnce   = 4
	sentinelStrangers = 8
	sentinelBuffer    = 4096
	// sentinelDoubt is how long the others have to contradict one that names a server
	// which has just been given up.
	sentinelDoubt = 250 * time.Millisecond
	// sentinelPause is the longest pause before one is listened to when none can be, or
	// not for long, sentinelFirstPause the shortest. sentinelSurvey is how often the one
	// that is listened to is asked which others there are.
	sentinelPause      = 250 * time.Millisecond
	sentinelFirstPause = 15 * time.Millisecond
	sentinelSurvey     = 30 * time.Second
	// formerMaster is for how long a sentinel that names the master before the last
	// failover is not believed if another knows better; they tell each other every
	// two seconds.
	formerMaster = 30 * time.Second

	// ringHeartbeat is how often a ring asks whether its shards are up, ringVotes how
	// often it wants to hear that one is down.
	ringHeartbeat = 100 * time.Millisecond
	ringVotes     = 3
	// lastSlot is the last of a cluster's hash slots.
	lastSlot = 16383
	// introduction is how long the first look at a cluster's nodes leaves the program the
	// time to add hooks to them.
	introduction = 100 * time.Millisecond
	// strayPatience is how long a subscription that has to go to another node waits for
	// news of which.
	strayPatience = 500 * time.Millisecond
	// reloadSpacing is the least time between two questions for the topology of a
	// cluster.
	reloadSpacing = 50 * time.Millisecond

	// eventQueue bounds the events not yet delivered to a slow callback.
	eventQueue = 64
	// Of one server or node logBurst lines are written at once, and from then on one
	// every logRefill. refusalQuiet is for how long a server that is up must have refused
	// nothing before it is worth another line when it does.
	logBurst     = 20
	logRefill    = 6 * time.Second
	refusalQuiet = time.Minute
	// outagesKept is how many outages are remembered.
	outagesKept = 32
	// callbackPatience is how long Close waits for a callback to return.
	callbackPatience = 50 * time.Millisecond

	// A third of the detection time is what the kernel lets pass before it probes a
	// connection on which nothing happens, and between two probes, but no less than
	// wire.KeepAliveFloor: systems count in seconds. Twice keepAliveProbes is how many a
	// peer may leave unanswered. On Linux bytes may go unacknowledged, and probes
	// unanswered, for unackedFor times the detection time: on a way on which one packet in
	// ten is lost TCP has to double its patience six times for one segment in some ten
	// thousand, and then 12 s are over.
	keepAliveProbes = 3
	unackedFor      = 10

	// foreignPatience is how long Close waits for other code of the caller, such as a
	// Dialer that does not heed its context, how long a backoff policy may take to name a
	// delay, and whoever tells a topology while a node is up that is known.
	foreignPatience = 30 * time.Millisecond

	// defaultDialTimeout and defaultReadTimeout are go-redis's.
	defaultDialTimeout = 5 * time.Second
	defaultReadTimeout = 5 * time.Second

	maxHeartbeat = time.Hour
	maxMisses    = 100
	maxWait      = 24 * time.Hour

	minOnceTTL = time.Second
	maxOnceTTL = 30 * 24 * time.Hour
)

// RetryPolicy decides whether a command may be sent again although it may have
// run already. It is called only for commands whose outcome is unknown, possibly
// from many goroutines at once, and must not block or change cmd. For a pipeline
// or transaction every command concerned must be allowed.
type RetryPolicy func(cmd redis.Cmder) bool

// RetryReadOnly retries commands that only read, so running one twice changes
// nothing. It is the default.
func RetryReadOnly(cmd redis.Cmder) bool { return command.ReadOnly(cmd) }

// RetryIdempotent retries, besides, writes that leave the same data and give the
// same reply when they run twice: SET without NX or GET, MSET, EXPIRE without a
// condition, LSET, commands that store a result under a key they do not read, and
// a few more. Whatever another client wrote between the two runs is overwritten.
func RetryIdempotent(cmd redis.Cmder) bool {
	c := command.ClassOf(cmd)
	return c == command.Reads || c == command.Inert || c == command.Repeats
}

// RetryNever retries no command whose outcome is unknown.
func RetryNever(redis.Cmder) bool { return false }

// outer is a WithOuterHook or a WithInstrument.
type outer struct {
	option string // its name
	add    func(redis.UniversalClient) error
}

// dialFunc is the type of redis.Options.Dialer.
type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// config is the sum of the options. It is read-only once a client is built.
type config struct {
	interval   time.Duration
	timeout    time.Duration
	misses     int
	newBackOff func() backoff.BackOff
	grace      time.Duration
	maxWaiting int
	policy     RetryPolicy
	refusals   func(error) bool // nil: none
	idleCheck  time.Duration
	onceTTL    time.Duration
	logger     *slog.Logger // nil: silent
	onChange   func(Event)  // nil: none
	outer      []outer      // the outermost first
	observers  []any        // see WithObserver
}

// detection is the time within which a dead peer is noticed.
func (c *config) detection() time.Duration {
	return c.interval + time.Duration(c.misses)*c.timeout
}

// liveness has the kernel give up a peer that acknowledges nothing, when all else has
// failed: never before the detection time has passed.
func liveness(detection time.Duration) sys.Liveness {
	idle := max(detection/keepAliveProbes, wire.KeepAliveFloor)
	return sys.Liveness{Idle: idle, Probes: 2 * keepAliveProbes, Unacked: unackedFor * detection}
}

// sentinelLimits returns the numbers by which sentinels are asked and listened to. Setting
// up a connection to one may take as long as dialing a server may.
func (c *config) sentinelLimits(dialTimeout time.Duration) sentinel.Limits {
	return sentinel.Limits{
		Timeout: c.timeout, DialTimeout: allowed(dialTimeout, defaultDialTimeout, maxWait), Interval: max(c.interval, c.timeout),
		Patience: sentinelPatience, Again: sentinelAgain, Share: wire.EagerDivisor, Doubt: sentinelDoubt,
		Pause: sentinelPause, FirstPause: sentinelFirstPause, Jitter: heartbeatJitter,
		Survey: sentinelSurvey, Former: formerMaster,
		AtOnce: sentinelsAtOnce, Strangers: sentinelStrangers, Buffer: sentinelBuffer,
		Liveness: liveness(c.timeout),
	}
}

// allowed returns the time that an option of go-redis's gives, of which 0 is its default and
// less means endless.
func allowed(d, otherwise, endless time.Duration) time.Duration {
	switch {
	case d == 0:
		return otherwise
	case d < 0:
		return endless
	}
	return d
}

// Option changes one setting of a client. Options are built by the With
// functions of this package; an invalid one is reported by name when the client
// is built: drop-in constructors panic, as go-redis does, [Connect] returns an
// error. When an option is given twice the last one counts; [WithOuterHook],
// [WithInstrument] and [WithObserver] add up.
type Option func(*config) error

// newConfig applies opts to the defaults and reports every invalid option.
func newConfig(opts []Option) (*config, error) {
	cfg := &config{
		interval:   DefaultHeartbeatInterval,
		timeout:    DefaultHeartbeatTimeout,
		misses:     DefaultHeartbeatMisses,
		newBackOff: defaultBackOff,
		grace:      DefaultGrace,
		maxWaiting: DefaultMaxWaiting,
		policy:     RetryReadOnly,
		idleCheck:  DefaultIdleCheck,
		onceTTL:    DefaultOnceTTL,
	}
	var errs []error
	for i, opt := range opts {
		if opt == nil {
			errs = append(errs, fmt.Errorf("redial: option %d of %d is nil", i+1, len(opts)))
			continue
		}
		if err := opt(cfg); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return cfg, nil
}

// given returns an error unless an option was given what it needs.
func given(there bool, what string) error {
	if !there {
		return errors.New("redial: " + what + " is nil")
	}
	return nil
}

// between reports a duration outside [least, most] in the words of its option.
func between(name string, d, least, most time.Duration) error {
	if d < least || d > most {
		return fmt.Errorf("redial: %s is %v, must be between %v and %v", name, d, least, most)
	}
	return nil
}

// WithHeartbeat sets how often the server must give a sign of life and how long
// one heartbeat may take, overriding the defaults of 1s and 1s.
//
// Every reply on any connection is a sign of life, so a busy client sends no
// PING. A silent server counts as dead after interval + misses × timeout: 3s by
// default. The same budget sets TCP keep-alive and, on Linux, TCP_USER_TIMEOUT
// of every connection, in whole seconds where the system wants that.
//
// Both must be between 1ms and 1h; zero is not allowed, because a client without
// a heartbeat cannot keep its promises.
func WithHeartbeat(interval, timeout time.Duration) Option {
	return func(c *config) error {
		c.interval, c.timeout = interval, timeout
		return errors.Join(
			between("WithHeartbeat interval", interval, time.Millisecond, maxHeartbeat),
			between("WithHeartbeat timeout", timeout, time.Millisecond, maxHeartbeat),
		)
	}
}

// WithHeartbeatMisses sets how many heartbeats in a row a silent server may
// miss, overriding the default of 2. A refused or reset connection does not
// wait for a second miss. n must be between 1 and 100.
func WithHeartbeatMisses(n int) Option {
	return func(c *config) error {
		c.misses = n
		if n < 1 || n > maxMisses {
			return fmt.Errorf("redial: WithHeartbeatMisses is %d, must be between 1 and %d", n, maxMisses)
		}
		return nil
	}
}

// WithBackoff sets the schedule of reconnect attempts while nobody waits,
// overriding the default: exponential from 50ms by a factor of 1.6 to 1.25s,
// each delay randomized by half, without an end.
//
// newBackOff is called once per outage, so policies need not be safe for
// concurrent use. A delay below 5ms counts as 5ms. A policy that returns
// [backoff.Stop] is reset: reconnecting never gives up. While commands are
// waiting or being refused, attempts follow the shorter of this schedule and
// the eager one (22ms, and from 4s on 1/100 of the outage's age).
//
// newBackOff must not be nil and must not return nil. A policy that hangs holds up nobody:
// until it answers a delay is 1.25s.
func WithBackoff(newBackOff func() backoff.BackOff) Option {
	return func(c *config) error {
		if newBackOff == nil {
			return errors.New("redial: WithBackoff function is nil")
		}
		if newBackOff() == nil {
			return errors.New("redial: WithBackoff function returns nil")
		}
		c.newBackOff = newBackOff
		return nil
	}
}

func defaultBackOff() backoff.BackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(backoffInitial),
		backoff.WithMultiplier(backoffMultiplier),
		backoff.WithMaxInterval(backoffCap),
		backoff.WithRandomizationFactor(backoffJitter),
		backoff.WithMaxElapsedTime(0),
	)
}

// WithGrace sets how long an outage is hidden: commands issued within d of its
// start wait until the link is back, overriding the default of 5s. Later ones
// fail at once with [ErrUnavailable]. It also bounds the retries of a command
// that a server which is up keeps refusing. A context that ends earlier wins.
//
// Zero means that no command waits. d must not be negative nor above 24h.
func WithGrace(d time.Duration) Option {
	return func(c *config) error {
		c.grace = d
		return between("WithGrace", d, 0, maxWait)
	}
}

// WithMaxWaiting sets how many commands may wait for the link at a time,
// overriding the default of 10,000; further ones fail at once with
// [ErrUnavailable]. A pipeline counts as one. Zero means that none may wait; n
// must not be negative.
func WithMaxWaiting(n int) Option {
	return func(c *config) error {
		c.maxWaiting = n
		if n < 0 {
			return fmt.Errorf("redial: WithMaxWaiting is %d, must not be negative", n)
		}
		return nil
	}
}

// WithRetry sets which commands are sent again after a failure that leaves open
// whether they ran, overriding the default [RetryReadOnly]. Commands that
// provably did not run are retried whatever the policy. p must not be nil.
func WithRetry(p RetryPolicy) Option {
	return func(c *config) error {
		c.policy = p
		return given(p != nil, "WithRetry policy")
	}
}

// WithRefusals teaches the client replies of proxies and other servers that mean "not
// executed, try later", such as "no upstream host": a command that gets one is sent
// again within the grace, as after CLUSTERDOWN, and in the end the reply is returned as
// it is. docs/commands.md lists those that are known without it.
//
// f is called with replies of the server, as go-redis returns them, and with nothing
// else; not with those that show that a script raised them. It may be called more than
// once for one reply, from many goroutines at once, and must not block. It must be true
// only when the command surely did not run: it runs twice otherwise. A panic in f
// reaches the caller of the command. [SafeToRetry] knows nothing of f. f must not be nil.
func WithRefusals(f func(reply error) bool) Option {
	return func(c *config) error {
		c.refusals = f
		return given(f != nil, "WithRefusals function")
	}
}

// WithIdleCheck sets the age at which an unused connection must answer a PING
// before it carries a command, overriding the default of 2s: a connection that a
// NAT or firewall has silently dropped then costs a short PING instead of a lost
// command. Ages are measured at the resolution of the heartbeat interval.
//
// The same setting turns on the background sweep that proves connections unused
// for about 15s. Zero turns both off; d must not be negative nor above 24h.
func WithIdleCheck(d time.Duration) Option {
	return func(c *config) error {
		c.idleCheck = d
		return between("WithIdleCheck", d, 0, maxWait)
	}
}

// WithOnceTTL sets how long the record of an id lives on the server, see [Once],
// overriding the default of 10m: for so long a caller may come back with the id and get
// the reply of the first run. It counts from that run, and a later call does not prolong
// it. redial itself does not send a command again once half of it is over since it was
// first sent, so it should be longer than twice the grace. A record takes memory of the
// server for as long.
//
// d must be between 1s and 720h.
func WithOnceTTL(d time.Duration) Option {
	return func(c *config) error {
		c.onceTTL = d
		return between("WithOnceTTL", d, minOnceTTL, maxOnceTTL)
	}
}

// WithLogger makes the client write one line per state transition to l: at
// level Info when the link comes up or is closed, at Warn when it goes down. A line at
// Warn says when commands begin to be refused, because the grace of an outage is over, as
// many as may are waiting, or a server that is up keeps refusing; one at Error tells of
// a panic in code of the caller. What is logged when an outage is over has its cause and
// duration, and how many commands waited, were refused and have an unknown outcome.
//
// Of a server or node whose state flaps 20 lines are written at once, and from then on
// one every 6s. The next one says how many were left out, and the last state is always
// told, at most 6s later.
//
// Without it the client is silent. l must not be nil; [slog.DiscardHandler]
// gives a logger that discards. A panic in it ends there, and what else is to be told of
// the event is told. No command argument or credential is logged.
func WithLogger(l *slog.Logger) Option {
	return func(c *config) error {
		c.logger = l
		return given(l != nil, "WithLogger logger")
	}
}

// WithOnStateChange calls f for every state transition, one call at a time, in
// order and never under a lock. A slow f cannot delay reconnecting: at most 64
// events wait for it, then the oldest are dropped and counted in
// [Stats].EventsDropped, but never the one for StateClosed. A panic in f is
// contained and logged. f must not be nil.
func WithOnStateChange(f func(Event)) Option {
	return func(c *config) error {
		c.onChange = f
		return given(f != nil, "WithOnStateChange callback")
	}
}

// WithOuterHook adds a hook outside of the gate. It sees one call for each that the
// caller makes, with its waits, refusals and retries inside: how long it really took,
// and the error that the caller gets. It sees commands that never reach a server, too.
// A hook that is added with AddHook sees attempts instead.
//
// The option may be given several times, also together with [WithInstrument]: the first
// one is the outermost. On a [Client] the hook sees dials and what sets up connections
// as well, as it does in go-redis; on a client of several nodes it sees, as in go-redis,
// neither, and nothing of what goes past the hooks of such a client, as Watch does. The
// WATCH of [Client.Watch] it sees as often as that is tried. With [Supervise], hooks that
// the client has already are outside of it. h must not be nil.
func WithOuterHook(h redis.Hook) Option {
	return func(c *config) error {
		c.outer = append(c.outer, outer{"WithOuterHook", func(rdb redis.UniversalClient) error {
			rdb.AddHook(h)
			return nil
		}})
		return given(h != nil, "WithOuterHook hook")
	}
}

// WithInstrument has f add hooks outside of the gate, see [WithOuterHook]. It is for
// instruments that add their hooks themselves, as redisotel does:
//
//	redial.WithInstrument(func(rdb redis.UniversalClient) error {
//		return redisotel.InstrumentTracing(rdb)
//	})
//
// There is then one span for each call, which ends with the error that the caller gets
// and names the line that the caller is at.
//
// f is called once for each client that is built, before the constructor returns. It is
// always given a *redis.Client, and the hooks count that it adds before it returns:
//
//   - For a client of one server it is given that client, the one that Client.Client
//     holds, not yet under supervision. Clones made by WithTimeout have the hooks, too;
//     f is not called for them.
//   - For a client of several nodes it is given one that stands for them all, with the
//     address of the first, the name of the master, or that of a ring's first shard.
//     Hooks on it are called for every command, pipeline and transaction of the client.
//     Were it given the client itself, redisotel would add its hooks to the nodes, where
//     an outage does not show. It has no connections: what is sent with it fails, and its
//     PoolStats are empty. For the metrics of pools give the instrument the embedded
//     client, as with go-redis.
//   - With [Supervise] it is the same, and the client of one server is the one that is to
//     be supervised. When f fails it keeps the hooks it has by then.
//
// An error of f is returned by the constructor, or panicked with where that is how it
// reports errors, and so is a panic of f. f must not be nil.
func WithInstrument(f func(rdb redis.UniversalClient) error) Option {
	return func(c *config) error {
		c.outer = append(c.outer, outer{"WithInstrument", f})
		return given(f != nil, "WithInstrument function")
	}
}
