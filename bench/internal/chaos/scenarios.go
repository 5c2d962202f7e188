package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/redial-go/redial/bench/internal/load"
	"github.com/redial-go/redial/bench/internal/testbed"
	"github.com/redial-go/redial/redialtest"
	"github.com/redis/go-redis/v9"
)

// Scenario is one way in which things break.
type Scenario struct {
	Name, Title string
	// What says in a sentence or two what is done.
	What string
	// Why explains what the numbers can and cannot be; may be empty.
	Why string
	// Behind explains in which values redial is behind clients that pay nothing for that.
	Behind []Reason

	Plan       load.Plan
	ServerArgs []string
	Direct     bool // no proxy between client and server
	TLS        bool
	Idle       bool // the load begins after the fault
	Cold       bool // the client is made before there is a server
	Outage     bool // nothing can succeed between fault and heal
	PubSub     bool // a subscriber instead of callers
	Namespace  bool // is played in a network namespace of its own
	// AnyDialer says that it can be played with any dialer, see [Scenario.With].
	AnyDialer bool
	// Dialer is how clients get connections.
	Dialer   Dialer
	compared bool // was made by With

	// Before, After and QuickAfter are how long the load runs on either side.
	Before, After, QuickAfter time.Duration

	// Prepare makes what the fault needs before the client is made.
	Prepare func(*stage) (closer func() error, err error)
	// Fault does it all and returns when it is over.
	Fault func(*stage) error
}

// after is how long the load goes on when the fault is over.
func (s *Scenario) after(quick bool) time.Duration {
	if quick {
		return s.QuickAfter
	}
	return s.After
}

// The usual load: light enough for the clients to run side by side.
const (
	workers = 25
	every   = time.Second / 6
	before  = time.Second
)

func plan(deadline time.Duration) load.Plan {
	return load.Plan{Workers: workers, Every: every, Deadline: deadline}
}

// far is the time that a reply takes where calls must be under way when a
// connection breaks.
const far = 5 * time.Millisecond

// The usual deadlines of calls.
const (
	patient = 2 * time.Second
	strict  = 300 * time.Millisecond
)

// Scenarios returns all of them, in the order of the report.
func Scenarios() []*Scenario {
	return []*Scenario{
		{
			Name: "restart", Title: "Restart",
			What: "The server is killed and started again 1 s later.",
			Why: "A call that arrives when the server dies cannot be answered before it is back: " +
				"a client that lets it wait stalls for the length of the outage, one that does not fails it.",
			Plan: plan(patient), Direct: true, Outage: true,
			// The append-only file keeps what was executed, so that it can be counted.
			ServerArgs: []string{"--appendonly", "yes"},
			Before:     before, After: 2 * time.Second, QuickAfter: 1500 * time.Millisecond,
			Fault: func(st *stage) error {
				began := time.Now()
				st.server.Kill()
				down := time.Now()
				st.expect(st.pong() != nil, "killed server answers")
				time.Sleep(time.Until(began.Add(st.lasting(time.Second, time.Second))))
				st.server.LaunchOnly()
				ready, err := st.awaitPong()
				st.outage(began, down, ready)
				return err
			},
		},
		{
			Name: "refuse", Title: "Refused port",
			What: "For 1.5 s every connection is cut and the port refuses new ones.",
			Why: "As with the restart, whoever waits stalls for the length of the outage, whoever does not fails. " +
				"What a client can do better or worse is how much longer it takes, which is the needless part.",
			Plan: plan(patient), Outage: true, AnyDialer: true,
			Before: before, After: 2500 * time.Millisecond, QuickAfter: 1500 * time.Millisecond,
			Fault: func(st *stage) error { return refuse(st, st.lasting(1500*time.Millisecond, time.Second)) },
		},
		{
			Name: "failfast", Title: "Refused port, callers that do not wait",
			What: "As before, but the callers would rather have an error than wait. redial offers that per call " +
				"(`redial.FailFast`); the other clients do what they always do.",
			Why: "Calls that fail at once do not succeed later: redial's share of successes is low by the callers' own wish.",
			Behind: []Reason{
				{[]Key{InTime, OfPossible, Errors}, "Calls fail at once, as they wish; the others let them wait, for up to a second and more."},
				{[]Key{First, ErrorsAfter, AllBack}, "An attempt every 22 ms finds the server; the others let every call try. A worker whose call has failed has another " +
					"only after a sixth of a second, while those that were let wait are answered at once."},
			},
			Plan: load.Plan{Workers: workers, Every: every, Deadline: patient, FailFast: true}, Outage: true,
			Before: before, After: 2500 * time.Millisecond, QuickAfter: 1500 * time.Millisecond,
			Fault: func(st *stage) error { return refuse(st, st.lasting(1500*time.Millisecond, time.Second)) },
		},
		{
			Name: "reset", Title: "Connections reset",
			What: "All live connections are ended by RST, five times, 300 ms apart; the server is 5 ms away and keeps running.",
			Why: "A write that was under way at the reset may have been executed. redial says so and does not send it again, " +
				"so it cannot be without errors here.",
			Behind: []Reason{
				{[]Key{Stall, Overrun}, "A call is sent again after a pause of 5 ms, on a connection that has to be dialed and greeted first, " +
					"each a round trip of 5 ms; rueidis has one connection for all, and pauses for microseconds at first."},
			},
			Plan: plan(patient), AnyDialer: true,
			Before: before, After: 1500 * time.Millisecond, QuickAfter: time.Second,
			Prepare: distant,
			Fault: func(st *stage) error {
				for i := range 5 {
					if i > 0 {
						time.Sleep(300 * time.Millisecond)
					}
					began := time.Now()
					st.expect(st.proxy.Reset() > 0, "nothing was reset")
					now := time.Now()
					st.outage(began, now, now)
				}
				return nil
			},
		},
		{
			Name: "freeze", Title: "Frozen server",
			What: "The server's process is stopped for 6 s: its kernel goes on accepting connections and bytes, nobody answers. " +
				"When it goes on it executes what has piled up.",
			Why:  "What was sent before the client knew is executed at the thaw, whatever the caller was told meanwhile.",
			Plan: plan(strict), Outage: true, AnyDialer: true,
			Before: before, After: 2500 * time.Millisecond, QuickAfter: 2 * time.Second,
			Fault: func(st *stage) error {
				return freeze(st, st.lasting(6*time.Second, 4*time.Second))
			},
		},
		{
			Name: "blackhole", Title: "Black hole",
			What: "For 6 s the network swallows every byte in both directions. Connections from before are lost for good, " +
				"without a FIN or RST; dials get no answer until it heals.",
			Behind: []Reason{
				{[]Key{Dials, PeakDials}, "A call that ends before its reply has come gives its connection up, and another is dialed in its place: " +
					"as with go-redis when it heeds deadlines. Without that, calls hang where they are."},
			},
			Plan: plan(strict), Outage: true, AnyDialer: true,
			Before: before, After: 6 * time.Second, QuickAfter: 3 * time.Second,
			Fault: func(st *stage) error {
				began := time.Now()
				st.proxy.AcceptAndHang()
				st.expect(st.proxy.DropIdle() > 0, "no connection was lost")
				lost := time.Now()
				st.expect(st.pong() != nil, "the black hole answers")
				time.Sleep(time.Until(began.Add(st.lasting(6*time.Second, 4*time.Second))))
				st.proxy.DropIdle() // those of that time do not come alive
				st.outage(began, lost, time.Now())
				st.proxy.Restore()
				return healthy(st)
			},
		},
		{
			Name: "partition", Title: "Partition",
			What: "For 6 s the packets of both directions are dropped, those that open connections too, as when a cable is out. " +
				"Client and server have a network namespace of their own, with no proxy between them. What the kernels still hold of " +
				"old connections they send again in their own time.",
			Plan: plan(patient), Direct: true, Outage: true, Namespace: true, AnyDialer: true,
			Before: before, After: 4 * time.Second, QuickAfter: 2 * time.Second,
			Fault: partition,
		},
		{
			Name: "full", Title: "Full server",
			What: "The server ends all connections of the client and has room for no other for 10 s: it answers each with " +
				"“max number of clients reached” and closes it.",
			Why: "Calls have deadlines of 8 s here, longer than redial's grace of 5 s. What it can do for them is to dial no more than " +
				"it must, and to let nobody wait for longer than the grace.",
			Behind: []Reason{
				{[]Key{InTime, OfPossible, Errors, ErrorsAfter}, "No call waits for longer than the grace, 5 s; with `WithGrace(8 * time.Second)` those would that could be answered."},
				{[]Key{First, AllBack}, "After 10 s there is an attempt every 100 ms: a full server is not helped by more. Calls that were refused are not there any more when it is found."},
				{[]Key{Stall}, "Calls wait, for as long as the grace allows. Whoever has shorter stalls has refused every call at once."},
			},
			Plan: plan(8 * time.Second), Direct: true, Outage: true,
			Before: before, After: 1500 * time.Millisecond, QuickAfter: 1500 * time.Millisecond,
			Fault: full,
		},
		{
			Name: "overload", Title: "Overload",
			What: "For 5 s one call in twelve is a read-only script that keeps the server busy for 50 to 500 ms: twice as much as it can do. " +
				"Every call has a deadline of 500 ms. Then the load drops to what it was.",
			Why: "The server is never away. Calls that were given up are executed all the same if they had been sent, and each that is sent again " +
				"makes the queue longer.",
			Behind: []Reason{
				{[]Key{Errors, First, ErrorsAfter, AllBack}, "go-redis pays no heed to the deadlines of calls unless it is told to: they return late and without an error, those first that had ended."},
				{[]Key{Dials, PeakDials, CPU}, "A call that ends before its reply has come gives its connection up, and another is dialed in its place: as with go-redis when it heeds deadlines."},
			},
			Plan: load.Plan{Workers: workers, Every: time.Second / 4, Deadline: 500 * time.Millisecond,
				Surge: load.Surge{OneIn: 12, Min: 50 * time.Millisecond, Max: 500 * time.Millisecond}},
			Direct: true,
			Before: before, After: 4 * time.Second, QuickAfter: 3 * time.Second,
			Fault: overload,
		},
		{
			Name: "slowsetup", Title: "Slow set-up",
			What: "The port refuses connections for 1 s. Then new ones are accepted at once, but their first bytes take 1.5 s, " +
				"as behind a node that is busy with handshakes. “Heal” is when a connection would serve that was dialed as soon as it could be.",
			Why:  "Who gives a connection less time than it takes to set up never gets one.",
			Plan: plan(4 * time.Second), Outage: true, AnyDialer: true,
			Before: before, After: 2 * time.Second, QuickAfter: 2 * time.Second,
			Prepare: func(st *stage) (closer func() error, err error) {
				if st.relay, err = testbed.StartRelay(st.target); err != nil {
					return nil, err
				}
				st.proxy.Retarget(st.relay.Addr())
				return st.relay.Close, nil
			},
			Fault: slowSetUp,
		},
		{
			Name: "idledrop", Title: "Idle connections dropped",
			What: "A firewall forgets all connections of an idle client: they are silent for good, new ones work. 3 s later the load begins.",
			Plan: plan(patient), Idle: true, AnyDialer: true,
			After: 8 * time.Second, QuickAfter: 2 * time.Second,
			Fault: func(st *stage) error {
				st.expect(st.proxy.DropIdle() > 0, "no connection was lost")
				time.Sleep(st.lasting(3*time.Second, 3*time.Second))
				if err := healthy(st); err != nil {
					return err
				}
				now := time.Now() // what callers may blame on it begins with them
				st.outage(now, now, now)
				return nil
			},
		},
		{
			Name: "cut", Title: "Reply cut off",
			What: "Forty times the next INCR is delivered and executed, and its connection is cut before the reply.",
			Why: "Whether to send such a write again is a choice between running it twice and not knowing. " +
				"redial does not repeat it and says that the outcome is unknown, so it has one error a cut at least.",
			Plan:   plan(patient),
			Before: before, After: time.Second, QuickAfter: time.Second,
			Prepare: distant,
			Fault: func(st *stage) error {
				st.proxy.Match("incr")
				base := st.proxy.Stats().Cuts
				for i := range 40 {
					began := time.Now()
					done := func() bool { return st.proxy.Stats().Cuts > base+i }
					err := eventually("a reply to be cut", func() bool {
						// A caller may give up between request and reply, and with it the cut.
						st.proxy.CutAfterRequest(1)
						return within(500*time.Millisecond, done)
					})
					st.proxy.CutAfterRequest(0)
					if err != nil {
						return err
					}
					now := time.Now()
					st.outage(began, now, now)
					time.Sleep(20 * time.Millisecond) // let new connections be made
				}
				return nil
			},
		},
		{
			Name: "readonly", Title: "READONLY failover",
			What: "The primary becomes a replica of the other server and keeps its connections; 500 ms later its address " +
				"leads new connections to the new primary. A third of the calls are pipelines of GET and INCR.",
			Plan:   load.Plan{Workers: workers, Every: every, Deadline: patient, Mix: []load.Op{load.Get, load.Incr, load.GetIncr}},
			Before: before, After: 3 * time.Second, QuickAfter: 1500 * time.Millisecond,
			Prepare: standby,
			Fault:   failover,
		},
		{
			Name: "long", Title: "Long outage, 200 goroutines",
			What: "As the refused port, but for 10 s, with 200 goroutines that issue 400 calls a second.",
			Why: "The outage is longer than any deadline. redial lets calls wait for 5 s after its begin, its grace; later ones " +
				"fail at once. Clients that fail calls at once from the start have shorter stalls, and dial all the more.",
			Behind: []Reason{
				{[]Key{InTime, OfPossible, Errors, First, AllBack, ErrorsAfter}, "After 10 s there is an attempt every 100 ms, so that a thousand clients do not storm the server. " +
					"Until one succeeds calls fail at once, for the grace is over."},
				{[]Key{Stall}, "Calls wait, for as long as grace and deadline allow. Whoever has shorter stalls has refused every call at once."},
			},
			Plan:   load.Plan{Workers: 200, Every: 500 * time.Millisecond, Deadline: patient},
			Outage: true,
			Before: before, After: 3 * time.Second, QuickAfter: 2 * time.Second,
			Fault: func(st *stage) error { return refuse(st, st.lasting(10*time.Second, 6*time.Second)) },
		},
		{
			Name: "cold", Title: "Cold start",
			What: "The client is made and called 1.5 s before there is a server. rueidis's constructor fails without one; " +
				"it is repeated every 100 ms here, while calls wait for it.",
			Behind: []Reason{
				{[]Key{Dials, PeakDials}, "An attempt every 22 ms, where rueidis's constructor is called every 100 ms by the load."},
			},
			Plan: plan(patient), Outage: true, Cold: true,
			Before: 0, After: 2500 * time.Millisecond, QuickAfter: 1500 * time.Millisecond,
			Prepare: func(st *stage) (func() error, error) {
				st.proxy.Refuse()
				return func() error { return nil }, nil
			},
			Fault: func(st *stage) error {
				return refuse(st, st.lasting(1500*time.Millisecond, time.Second))
			},
		},
		{
			Name: "slow", Title: "Slow server",
			What: "The server pauses three times for 1.5 s, 700 ms apart, as for a fork or a slow script.",
			Why:  "Nothing is lost here: a client that waits has no error. Stalls cannot be shorter than the pause.",
			Plan: plan(patient), Outage: true,
			Before: before, After: 1500 * time.Millisecond, QuickAfter: time.Second,
			Fault: func(st *stage) error {
				pauses := 3
				if st.quick {
					pauses = 1
				}
				for i := range pauses {
					if i > 0 {
						time.Sleep(700 * time.Millisecond)
					}
					if err := freeze(st, st.lasting(1500*time.Millisecond, 1500*time.Millisecond)); err != nil {
						return err
					}
				}
				return nil
			},
		},
		{
			Name: "tls", Title: "Half-open TLS",
			What: "Under load, all TLS connections become half-open: the peer is gone without a FIN or RST. New connections work.",
			Why: "A read that was under way can be repeated when the connection is known to be dead; a write cannot. " +
				"Its caller learns that the outcome is unknown.",
			Behind: []Reason{
				{[]Key{InTime, Errors, ErrorsAfter, Stall, Overrun, First, AllBack}, "Something on the way acknowledges what is sent, so nothing proves the connections dead, and a call " +
					"that began on one ends with its deadline. The tuned go-redis has given up by then, after its ReadTimeout of half a second, and sends again whatever it was: a slow server runs that twice, see below."},
			},
			Plan: plan(patient), TLS: true,
			Before: before, After: 8 * time.Second, QuickAfter: 5 * time.Second,
			Fault: func(st *stage) error {
				began := time.Now()
				st.expect(st.proxy.DropIdle() > 0, "no connection was lost")
				now := time.Now()
				st.outage(began, now, now)
				return nil
			},
		},
		{
			Name: "pubsub", Title: "Silent subscription",
			What: "The peer of a subscriber is gone without a FIN or RST; a new connection would get messages, published every 10 ms. " +
				"“In time” is the share of messages received, the stall the longest silence.",
			Plan: load.Plan{Workers: 1, Every: time.Second, Deadline: patient}, PubSub: true,
			Before: before, After: 15 * time.Second, QuickAfter: 12 * time.Second,
			Fault: func(st *stage) error {
				began := time.Now()
				st.expect(st.proxy.DropIdle() > 0, "no connection was lost")
				time.Sleep(settle / 2) // what was on its way has come
				now := time.Now()
				st.outage(began, now, now)
				return nil
			},
		},
	}
}

// distant puts the server far away.
func distant(st *stage) (func() error, error) {
	st.proxy.Delay(far)
	return func() error { return nil }, nil
}

// refuse takes the way to the server away for a time.
func refuse(st *stage, d time.Duration) error {
	began := time.Now()
	st.proxy.Refuse()
	down := time.Now()
	st.expect(st.pong() != nil, "refusing proxy answers")
	time.Sleep(time.Until(began.Add(d)))
	st.proxy.Restore()
	st.outage(began, down, time.Now())
	return healthy(st)
}

// freeze stops the server's process for a time.
func freeze(st *stage, d time.Duration) error {
	began := time.Now()
	st.server.Freeze()
	frozen := time.Now()
	st.expect(st.pong() != nil, "frozen server answers")
	time.Sleep(time.Until(began.Add(d)))
	st.outage(began, frozen, time.Now())
	st.server.Thaw()
	return healthy(st)
}

// slowSetUp takes the way to the server away for a time, and then lets connections
// serve late.
func slowSetUp(st *stage) error {
	began := time.Now()
	st.proxy.Refuse()
	down := time.Now()
	st.expect(st.pong() != nil, "refusing proxy answers")
	hold := st.lasting(1500*time.Millisecond, 1500*time.Millisecond)
	st.relay.Hold(hold)
	time.Sleep(time.Until(began.Add(st.lasting(time.Second, time.Second))))
	serves := time.Now().Add(hold)
	st.proxy.Restore()
	st.expect(st.pong() != nil, "a connection is set up at once")
	time.Sleep(time.Until(serves))
	st.outage(began, down, serves)
	return nil
}

// full lets the server have no room for clients for a time.
func full(st *stage) (err error) {
	admin := redis.NewClient(&redis.Options{Addr: st.server.Addr(), PoolSize: 1})
	conn := admin.Conn() // the one client that there is room for
	defer func() { err = errors.Join(err, conn.Close(), admin.Close()) }()
	ctx := context.Background()
	room, err := conn.ConfigGet(ctx, "maxclients").Result()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := conn.ConfigSet(ctx, "maxclients", "1").Err(); err != nil {
		return err
	}
	ended, err := conn.Do(ctx, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Int()
	if err != nil {
		return err
	}
	st.expect(ended > 0, "no connection was ended")
	down := time.Now()
	st.expect(st.pong() != nil, "full server answers")
	time.Sleep(time.Until(began.Add(st.lasting(10*time.Second, 4*time.Second))))
	st.outage(began, down, time.Now())
	if err := conn.ConfigSet(ctx, "maxclients", room["maxclients"]).Err(); err != nil {
		return err
	}
	return healthy(st)
}

// overload lets the client ask more of the server than it can do for a time.
func overload(st *stage) error {
	// The scripts of several servers at a time shall not take the processors from clients.
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, st.server.PID(), nicest); err != nil {
		return err
	}
	began := time.Now()
	if err := st.say(saySurge); err != nil {
		return err
	}
	time.Sleep(time.Until(began.Add(st.lasting(5*time.Second, 3*time.Second))))
	st.outage(began, began, time.Now())
	return st.say(sayCalm)
}

// nicest is the priority of a process that lets all others go first.
const nicest = 19

// healthy makes sure that a fault is over.
func healthy(st *stage) error {
	_, err := st.awaitPong()
	return err
}

// standby starts a replica of the server.
func standby(st *stage) (func() error, error) {
	host, port, err := net.SplitHostPort(st.server.Addr())
	if err != nil {
		return nil, err
	}
	st.primary, err = redialtest.LaunchServer("--replicaof", host+" "+port, "--repl-diskless-sync-delay", "0")
	if err != nil {
		return nil, err
	}
	err = eventually("the replica to follow", func() bool {
		role, ok := st.primary.Do("ROLE").([]any)
		return ok && len(role) > 3 && role[3] == "connected"
	})
	if err != nil {
		return nil, errors.Join(err, st.primary.Close())
	}
	return st.primary.Close, nil
}

// failover hands over to the replica without losing a write.
func failover(st *stage) error {
	host, port, err := net.SplitHostPort(st.primary.Addr())
	if err != nil {
		return err
	}
	began := time.Now()
	st.server.Do("FAILOVER", "TO", host, port)
	err = eventually("the old primary to refuse writes", func() bool {
		role, ok := st.server.Do("ROLE").([]any)
		return ok && len(role) > 0 && role[0] == "slave"
	})
	if err != nil {
		return err
	}
	time.Sleep(time.Until(began.Add(st.lasting(500*time.Millisecond, 500*time.Millisecond))))
	st.proxy.Retarget(st.primary.Addr())
	now := time.Now()
	st.outage(began, now, now)
	return nil
}

// eventually waits for what nobody announces.
func eventually(what string, done func() bool) error {
	if !within(20*time.Second, done) {
		return fmt.Errorf("chaos: waited in vain for %s", what)
	}
	return nil
}

// within asks until it is done, or the time is up.
func within(d time.Duration, done func() bool) bool {
	for giveUp := time.Now().Add(d); !done(); {
		if time.Now().After(giveUp) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}
