package redial

import "fmt"

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
