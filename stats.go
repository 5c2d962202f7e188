package redial

// What there is to be told: states and why they were entered, events, outages, statistics.
// Who is told of it is in observe.go. Nothing else of redial is used here.

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// State is the state of the link to the server. The zero value is
// StateConnecting.
type State int32

const (
	// StateConnecting means that the server has not answered yet since the
	// client was built.
	StateConnecting State = iota
	// StateConnected means that the server answers.
	StateConnected
	// StateReconnecting means that the server stopped answering, or is not ready
	// to serve, and that redial is trying to reach it.
	StateReconnecting
	// StateClosed means that the client was closed. It is terminal.
	StateClosed
)

var stateNames = []string{"connecting", "connected", "reconnecting", "closed"}

// String returns the lower-case name of the state.
func (s State) String() string { return named(stateNames, int(s), "State") }

// named returns one of names, or the number as one of a kind that has no name for it.
func named(names []string, i int, kind string) string {
	if i < 0 || i >= len(names) {
		return fmt.Sprintf("%s(%d)", kind, i)
	}
	return names[i]
}

// MarshalText encodes the state as its name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Event is one state transition. It is delivered to the callback of
// [WithOnStateChange] and, as one line, to the logger of [WithLogger].
type Event struct {
	// From and To are never equal.
	From, To State
	// At is when the transition happened, In how long the link had been in From.
	At time.Time
	In time.Duration
	// Addr is the address the client was built for, or its addresses. Node is the
	// address of the node that the event is about, "" when it is about the client as a
	// whole, as it always is for a client of one server.
	Addr string
	Node string
	// Cause says why. Reason says the same in a few words, for people, and is never
	// empty.
	Cause  Cause
	Reason string
	// Err is the transport error behind the transition; nil when there is none.
	Err error
	// Attempts counts the connection attempts that were made since the link was
	// last Connected; it is 0 on the way down.
	Attempts int
	// Outage is what there is to say of the stretch of time outside Connected that is
	// over with this event. It is nil when From is StateConnected.
	Outage *Outage

	refusing bool  // it is no transition: commands begin to be refused
	reminder bool  // it was told before, or left out
	all      tally // since the client was built; of the last event
}

// Outage is one stretch of time outside Connected.
type Outage struct {
	// Began is when the link left Connected, or when the client was built and first tried
	// to reach a server. Duration is how long the outage was, or has been so far.
	Began    time.Time     `json:"began"`
	Duration time.Duration `json:"duration"`
	// Over reports whether it is.
	Over bool `json:"over"`
	// Cause says why it began, and Reason the same in a few words; of the first of all it
	// is CauseCreated.
	Cause  Cause  `json:"cause"`
	Reason string `json:"reason"`
	// Waited counts the commands of the client that had to wait for the link during the
	// outage, Refused and Unknown those that failed, see Stats, from the suspicion on that
	// led to it. Those that end later are not among them.
	Waited  uint64 `json:"waited"`
	Refused uint64 `json:"refused"`
	Unknown uint64 `json:"unknown"`
}

// tally is how many commands were in trouble.
type tally struct{ waited, refused, unknown, retries uint64 }

// Stats is a snapshot of a client's condition. Counters are cumulative since the
// client was built. It can be encoded as JSON; durations are in nanoseconds, as
// encoding/json has them.
type Stats struct {
	// State is the current state, Since when it was entered, and Cause why, for which
	// Reason has words.
	State  State     `json:"state"`
	Since  time.Time `json:"since"`
	Cause  Cause     `json:"cause"`
	Reason string    `json:"reason"`
	// LastError is the last transport error that caused suspicion; "" if none.
	LastError string `json:"last_error,omitempty"`

	// Outages counts the times the link left Connected, Down is the time spent
	// outside Connected, the current outage included.
	Outages uint64        `json:"outages"`
	Down    time.Duration `json:"down"`
	// Generation grows by one whenever all connections are retired.
	Generation uint64 `json:"generation"`
	// Connections is how many connections of the pools are open now.
	Connections int `json:"connections"`

	// Heartbeats counts the PINGs sent while Connected, HeartbeatsMissed those
	// that were not answered in time, HeartbeatsSkipped the ticks that needed
	// none because there was traffic. RTT is the smoothed round trip of PINGs, 0 until
	// one was measured. Traffic that never pauses makes heartbeats needless, so RTT stays
	// what it was before, however slow the server has become: time commands for that.
	Heartbeats        uint64        `json:"heartbeats"`
	HeartbeatsMissed  uint64        `json:"heartbeats_missed"`
	HeartbeatsSkipped uint64        `json:"heartbeats_skipped"`
	RTT               time.Duration `json:"rtt"`

	// Dials counts the connections asked of the network, for pools, probes and
	// subscriptions alike, DialErrors those that could not be made.
	Dials      uint64 `json:"dials"`
	DialErrors uint64 `json:"dial_errors"`

	// Waiting is how many commands wait for the link now, MaxWaiting how many may, see
	// WithMaxWaiting, and Grace for how long in an outage, see WithGrace. Waited counts
	// the times that a command had to, Refused the calls that failed with ErrUnavailable, or
	// with the reply of a server that turns away what would be sent again (READONLY, BUSY), or
	// whoever has sent it (NOAUTH, WRONGPASS); Unknown those that failed with
	// ErrOutcomeUnknown. A pipeline or transaction is one call, however many commands it has;
	// one for several nodes counts once for each of its parts that failed.
	Waiting    int           `json:"waiting"`
	MaxWaiting int           `json:"max_waiting"`
	Grace      time.Duration `json:"grace"`
	Waited     uint64        `json:"waited"`
	Refused    uint64        `json:"refused"`
	Unknown    uint64        `json:"unknown"`

	// Retries counts the attempts beyond a command's first, by what was known of
	// the one before: RetriesUnsent, nothing ran; RetriesRefused, the server said
	// that it did not run the command; RetriesRepeated, it may have run and may run
	// twice. RetriesDelayed counts those that had to wait for the retry budget.
	Retries         uint64 `json:"retries"`
	RetriesUnsent   uint64 `json:"retries_unsent"`
	RetriesRefused  uint64 `json:"retries_refused"`
	RetriesRepeated uint64 `json:"retries_repeated"`
	RetriesDelayed  uint64 `json:"retries_delayed"`

	// IdleChecks counts the PINGs sent on idle connections, before a command or
	// by the background sweep, IdleDropped the connections that failed one,
	// SilentCut the connections cut because it was proved that they were dead although
	// nothing had broken them: subscriptions whose PING went unanswered while the server
	// answered elsewhere, connections that acknowledged nothing while others did, and
	// those that the server did not know any more.
	IdleChecks  uint64 `json:"idle_checks"`
	IdleDropped uint64 `json:"idle_dropped"`
	SilentCut   uint64 `json:"silent_cut"`

	// EventsDropped counts the events a slow callback never saw.
	EventsDropped uint64 `json:"events_dropped"`

	// Nodes are the nodes of a client that has several, one for each address and in the
	// order of these; what is counted above is the sum over them and those that have left.
	// It is empty for a client of one server.
	Nodes []NodeStats `json:"nodes,omitempty"`
}

// NodeStats is a snapshot of one node of a client that has several.
type NodeStats struct {
	// Addr is the address of the node.
	Addr string `json:"addr"`
	// State, Since, Cause and Reason are what they are for a client as a whole. A node that no
	// command was meant for yet is StateConnecting without a LastError: nobody has tried to
	// reach it.
	State  State     `json:"state"`
	Since  time.Time `json:"since"`
	Cause  Cause     `json:"cause"`
	Reason string    `json:"reason"`
	// LastError is the last transport error that caused suspicion; "" if none.
	LastError string `json:"last_error,omitempty"`
	// RTT is the smoothed round trip of PINGs, 0 until one was measured; see [Stats].
	RTT time.Duration `json:"rtt"`
	// Connections is how many connections of the node's pools are open now.
	Connections int `json:"connections"`
	// Outages counts the times the node left Connected, since it is part of the client: one
	// that comes back begins at 0, as a counter does that was reset.
	Outages uint64 `json:"outages"`
	// Waiting is how many commands wait for the node now.
	Waiting int `json:"waiting"`
}

// oneEach returns nodes in the order of their addresses, and one for each. A ring may have
// several shards at one address, and a node that is about to leave may be there beside the
// one that has its place.
func oneEach(nodes []NodeStats) []NodeStats {
	slices.SortFunc(nodes, func(a, b NodeStats) int { return strings.Compare(a.Addr, b.Addr) })
	each := nodes[:0]
	for _, n := range nodes {
		if last := len(each) - 1; last >= 0 && each[last].Addr == n.Addr {
			each[last] = each[last].with(n)
		} else {
			each = append(each, n)
		}
	}
	return each
}

// telling are the states, the one of which there is most to say last.
var telling = []State{StateClosed, StateConnecting, StateConnected, StateReconnecting}

// with returns what two links to one node come to: the state of the one of which there is
// more to say, and the sums.
func (s NodeStats) with(o NodeStats) NodeStats {
	if slices.Index(telling, o.State) > slices.Index(telling, s.State) {
		s, o = o, s
	}
	s.LastError = cmp.Or(s.LastError, o.LastError)
	s.RTT = max(s.RTT, o.RTT)
	s.Connections += o.Connections
	s.Outages += o.Outages
	s.Waiting += o.Waiting
	return s
}

// String returns the snapshot as JSON.
func (s Stats) String() string {
	b, err := json.Marshal(s)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// add adds what a node is and has now.
func (s *Stats) add(n Stats, addr string) {
	s.Nodes = append(s.Nodes, NodeStats{
		Addr: addr, State: n.State, Since: n.Since, Cause: n.Cause, Reason: n.Reason, LastError: n.LastError,
		RTT: n.RTT, Connections: n.Connections, Outages: n.Outages, Waiting: n.Waiting,
	})
	s.LastError = cmp.Or(s.LastError, n.LastError)
	s.RTT = max(s.RTT, n.RTT)
	s.Connections += n.Connections
	s.Waiting += n.Waiting
}

// Cause is the reason of a state or an error in one word, for programs and metrics: it
// is one of a few, and its String is fit for a label. The text for people is in
// Reason.
type Cause uint8

const (
	// CauseNone is the zero value: there is no cause. What redial itself returns and
	// reports always has one.
	CauseNone Cause = iota

	// CauseCreated is that of a link that has not been Connected yet.
	CauseCreated
	// CauseAnswered means that the server answers.
	CauseAnswered
	// CauseConnectionLost means that the server refuses connections, cannot be reached,
	// or ends those that are made.
	CauseConnectionLost
	// CauseHeartbeatMissed means that the server has gone silent.
	CauseHeartbeatMissed
	// CauseNotReady means that the server answers that it cannot serve yet.
	CauseNotReady
	// CauseMoved means that another server is the one to talk to, as the sentinels say.
	CauseMoved
	// CauseReconnectCalled means that the caller asked for new connections, by Reconnect.
	CauseReconnectCalled
	// CauseNoNode means that no node of a client of several is Connected.
	CauseNoNode
	// CauseNodeRemoved means that a node is not part of the client any more.
	CauseNodeRemoved
	// CauseClosed means that the client is closed. Errors have it, too.
	CauseClosed

	// The others are those of errors: why a command was not, or not again, sent.

	// CauseUnsafe: it may have run, and a second run is not allowed.
	CauseUnsafe
	// CauseFailFast: the link is down and the command does not wait, see FailFast.
	CauseFailFast
	// CauseGraceOver: the outage, or the trouble that the command is in, has lasted for
	// longer than the grace, see WithGrace.
	CauseGraceOver
	// CauseWaitOver: the time that it was given by WaitFor is over.
	CauseWaitOver
	// CauseWaitersFull: as many commands as may wait are waiting, see WithMaxWaiting.
	CauseWaitersFull
	// CauseContextEnded: its context was canceled or its deadline has passed.
	CauseContextEnded
	// CauseDeadlineNear: its deadline leaves no time for another attempt.
	CauseDeadlineNear
	// CauseBudgetSpent: too many commands that had reached the server had to be sent
	// again.
	CauseBudgetSpent
	// CausePoolExhausted: no connection of the pool was free in time.
	CausePoolExhausted
	// CauseHeldConnectionBroken: it was sent on a connection that the caller holds, as
	// Conn and Tx do, and that was broken before.
	CauseHeldConnectionBroken
	// CauseSharedConnection: it shared a connection with other commands, as in a
	// full-duplex auto-pipeline, and cannot be sent again by itself.
	CauseSharedConnection
	// CauseHandshake: it was part of setting up a connection.
	CauseHandshake

	// CauseHook: a hook of the caller has had the last word, or has sent something else
	// besides.
	CauseHook
	// CauseRunsSpent: as often as it was sent its connection broke before the reply. It may
	// be the command that breaks them.
	CauseRunsSpent

	causes // how many there are
)

// causeTexts are the names of causes, and what they are to people where that is always
// the same.
var causeTexts = [causes]struct{ name, text string }{
	CauseNone:                 {"none", ""},
	CauseCreated:              {"created", "created"},
	CauseAnswered:             {"answered", "server answers"},
	CauseConnectionLost:       {"connection_lost", "connection lost"},
	CauseHeartbeatMissed:      {"heartbeat_missed", "heartbeat missed"},
	CauseNotReady:             {"not_ready", "server is not ready"},
	CauseMoved:                {"moved", ""},
	CauseReconnectCalled:      {"reconnect_called", "Reconnect was called"},
	CauseNoNode:               {"no_node", "no node answers"},
	CauseNodeRemoved:          {"node_removed", "the node was removed"},
	CauseClosed:               {"closed", "the client is closed"},
	CauseUnsafe:               {"unsafe", "a second run is not allowed"},
	CauseFailFast:             {"fail_fast", "it fails fast"},
	CauseGraceOver:            {"grace_over", "the grace is over"},
	CauseWaitOver:             {"wait_over", "its time to wait is over"},
	CauseWaitersFull:          {"waiters_full", ""},
	CauseContextEnded:         {"context_ended", "its context ended"},
	CauseDeadlineNear:         {"deadline_near", "its deadline leaves no time for another attempt"},
	CauseBudgetSpent:          {"budget_spent", "the retry budget is spent"},
	CausePoolExhausted:        {"pool_exhausted", "no connection of the pool was free in time"},
	CauseHeldConnectionBroken: {"held_connection_broken", "its connection is held by the caller and broken"},
	CauseSharedConnection:     {"shared_connection", "it shared a connection with other commands"},
	CauseHandshake:            {"handshake", "it was part of setting up a connection"},
	CauseHook:                 {"hook", "a hook of the caller has had the last word"},
	CauseRunsSpent:            {"runs_spent", "it was sent as often as a command may be that breaks its connection"},
}

// String returns the name of the cause: lower case, words joined by underscores.
func (c Cause) String() string {
	if c < causes {
		return causeTexts[c].name
	}
	return fmt.Sprintf("Cause(%d)", uint8(c))
}

// MarshalText encodes the cause as its name.
func (c Cause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// text returns what the cause is to people.
func (c Cause) text(maxWaiting int) string {
	if c == CauseWaitersFull {
		return fmt.Sprintf("%d commands are waiting already", maxWaiting)
	}
	return causeTexts[c].text
}
