package redial

import (
	"errors"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/wire"
)

// What the replies mean that a server gives instead of running a command. It reads errors, and
// knows nothing of attempts and calls.

// refusal is what is known of a reply that a server gives instead of running a command.
// Whoever wants to know what a reply means reads its row and nothing else.
type refusal struct {
	begins string // the reply begins so, with or without ERR before it, as some proxies put it
	has    string // and this is in it

	means string // in words, as docs/commands.md has it

	// ran is set when the reply does not mean that nothing ran: it only looks like one
	// that does.
	ran bool
	// waits says whether, and where, sending the command again later is worth while.
	waits waits
	// script lists words with which the reply, to a command that runs a script, proves
	// that the script did not begin. Scripts may return errors that look like any other.
	script []string
	// parked is set when only commands that were waiting for data surely did nothing.
	parked bool

	retires  bool // the server lost its role: connections lead to the wrong one
	topology bool // another server may be the right one by now: ask
	notReady bool // the server is up but cannot serve, which is an outage
}

// saysReplica reports whether the reply is what a replica says to writes.
func (r *refusal) saysReplica() bool { return r != nil && r.retires && !r.parked }

// waits says what is done about a refusal.
type waits uint8

const (
	waitsNot        waits = iota // nothing: the reply is the caller's, at once
	waitsGrace                   // the command is sent again, within the grace
	waitsAmongNodes              // the same, in a cluster, when following it led nowhere
	waitsRenewed                 // once, with new credentials, if there is a provider of them
)

// refusals are the replies of Redis 6.2 to 8, Valkey, their sentinels and modules that
// mean "not executed", and some that look alike. The first row that fits counts.
var refusals = []refusal{
	// Replies of a server that cannot serve now.
	{begins: "LOADING ", means: "The server has just started and reads its data.",
		waits: waitsGrace, script: []string{"is loading", "is restoring"}, topology: true, notReady: true},
	{begins: "MASTERDOWN ", means: "A replica that lost its primary and must not serve old data.",
		waits: waitsGrace, script: []string{"Link with MASTER"}, topology: true, notReady: true},
	{begins: "BUSY ", has: "is busy running", means: "A script, function or command of a module takes long.",
		waits: waitsGrace, script: []string{""}},
	{begins: "BUSY ", means: "The same, in the words of a module.",
		waits: waitsGrace},
	{begins: wire.FullServer, means: "The server is full, and closes the connection.",
		waits: waitsGrace, script: []string{""}},
	{begins: "NOREPLICAS ", means: "Too few replicas follow the primary for it to accept writes.",
		waits: waitsGrace, topology: true},

	// Replies of a server that is not, or not any more, the right one.
	{begins: "READONLY ", means: "The server is a replica, perhaps since a failover.",
		waits: waitsGrace, script: []string{"Can not run script with write flag"}, retires: true, topology: true},
	{begins: "REDIRECT ", means: "The same, by Valkey, to a client that has asked for it.",
		waits: waitsGrace, script: []string{""}, retires: true, topology: true},
	{begins: "UNBLOCKED ", has: "instance state changed", means: "The primary has become a replica while the command waited for data. Sent again only if it reads, or waits for data to take.",
		waits: waitsGrace, parked: true, retires: true, topology: true},
	{begins: "UNBLOCKED ", means: "Somebody has sent `CLIENT UNBLOCK`, or what the command waited for is gone."},
	{begins: "CLUSTERDOWN ", means: "The cluster misses a shard, or nobody has the slot.",
		waits: waitsGrace, script: []string{"The cluster is down", "Hash slot not served"}, topology: true},
	{begins: "TRYAGAIN ", means: "The keys of a slot that is on its way are on two nodes.",
		waits: waitsGrace, script: []string{"Multiple keys request during rehashing"}, topology: true},
	{begins: "MOVED ", means: "Another node has the slot. go-redis goes there; if the nodes disagree, that leads nowhere.",
		waits: waitsAmongNodes, script: []string{""}, topology: true},
	{begins: "ASK ", means: "Another node is about to have the slot. The same.",
		waits: waitsAmongNodes, script: []string{""}, topology: true},

	// Replies to those who may not.
	{begins: "NOAUTH ", means: "The connection has not said who it is.",
		waits: waitsRenewed, script: []string{"Authentication required"}},
	{begins: "WRONGPASS ", means: "Name or password is wrong.",
		waits: waitsRenewed, script: []string{"invalid username-password pair"}},
	{has: "unauthenticated", means: "The same, of some services.",
		waits: waitsRenewed},
	{begins: "NOPERM ACLs rules changed", means: "The right was taken away between MULTI and EXEC: the command did not run, others of its transaction did.",
		ran: true},
	{begins: "NOPERM ", means: "The user may not run the command, or not on these keys or channels."},
	{begins: "DENIED ", means: "Protected mode: the server serves nobody from outside, and closes the connection."},
	{has: "command not allowed. If the", means: "DEBUG or MODULE, which the configuration forbids."},

	// Replies that somebody has to do something about.
	{begins: "MISCONF ", means: "The server cannot write its data to disk and accepts no writes."},
	{begins: "OOM ", means: "The memory is full, and nothing may be evicted."},
	{begins: "NOSCRIPT ", means: "The server does not have the script. `Script.Run` sends it."},
	{begins: "CROSSSLOT ", means: "The keys are in several slots."},
	{begins: "NOCLUSTER ", means: "A server with RedisRaft that belongs to no cluster."},
	{begins: "ERRCLUSTER ", means: "A module that does not know the nodes of the cluster yet."},
	{begins: "This instance has cluster support disabled", means: "CLUSTER, sent to a server that is in none."},
	{begins: "Can not run script on cluster", means: "A script that is marked as not fit for a cluster."},
	{begins: "EXECABORT ", means: "The transaction was given up because a command in it was refused. If that one is waited for, the transaction is."},

	// Replies to commands that do not make sense, or not now.
	{begins: "unknown command", means: "The server does not know the command."},
	{begins: "unknown subcommand", means: "Nor this part of it."},
	{begins: "wrong number of arguments", means: "The command has too many arguments, or too few."},
	{begins: "Protocol error", means: "What was sent is no command. The server closes the connection."},
	{begins: "Command not allowed inside a transaction", means: "Commands that cannot be queued."},
	{begins: "Can't execute '", means: "A command on a RESP2 connection that subscribes."},
	{begins: "NOSUB ", means: "UNSUBSCRIBE on a connection that does not (Valkey)."},
	{begins: "Replica can't interact with the keyspace", means: "A command on the connection of a replica."},
	{begins: "NOPROTO ", means: "HELLO with a protocol that the server does not speak."},
	{begins: "NOTBUSY ", means: "SCRIPT KILL or FUNCTION KILL while nothing runs."},
	{begins: "UNKILLABLE ", means: "The same, to something that has written already."},
	{begins: "NOMASTERLINK ", means: "SYNC to a replica without its primary."},
	{begins: "NOTREADY ", means: "A node that cannot hand over slots now."},
	{begins: "INPROG ", means: "SENTINEL FAILOVER during a failover."},
	{begins: "NOGOODSLAVE ", means: "SENTINEL FAILOVER without a replica that could take over."},

	// Answers that look like refusals.
	{begins: "BUSYGROUP ", means: "XGROUP CREATE: the group exists. No sign of a busy server.", ran: true},
	{begins: "BUSYKEY ", means: "RESTORE: the key exists. Neither is this.", ran: true},
}

// refusalOf returns the row of the reply in err, nil when there is none, and whether it
// came out of a script, which may have done something before.
func refusalOf(err error) (row *refusal, script bool) {
	reply := replyOf(err)
	if reply == nil {
		return nil, false
	}
	text := reply.Error()
	script = isOutOfScript(text)
	if script {
		if _, inner, found := strings.Cut(text, ": -"); found { // as servers before 7.0 put it
			text = inner
		}
	}
	text = strings.TrimPrefix(text, "ERR ")
	i := slices.IndexFunc(refusals, func(r refusal) bool {
		return strings.HasPrefix(text, r.begins) && strings.Contains(text, r.has)
	})
	if i < 0 {
		return nil, script
	}
	return &refusals[i], script
}

// replyOf returns the reply of a server that is in err, nil when there is none but Nil.
func replyOf(err error) redis.Error {
	var reply redis.Error
	if err == nil || err == redis.Nil || !isReply(err) || !errors.As(err, &reply) {
		return nil
	}
	return reply
}

// isOutOfScript reports whether the text of a reply shows that a script raised it. A
// script that catches an error and returns it, on servers from 7.0 on, does not show.
func isOutOfScript(text string) bool {
	if strings.Contains(text, "@user_script:") || strings.Contains(text, "@user_function:") ||
		strings.HasPrefix(text, "ERR Error running script") {
		return true
	}
	_, where, found := strings.Cut(text, " script: ")
	return found && strings.Contains(where, ", on ")
}

// isUndone reports whether err is a reply which says by itself that the command did not
// run.
func isUndone(err error) bool {
	row, script := refusalOf(err)
	return row != nil && !row.ran && !script
}

// isNotReady reports whether err is the server's word that it is up but cannot
// serve yet.
func isNotReady(err error) bool {
	row, _ := refusalOf(err)
	return row != nil && row.notReady
}

// wouldRepeat reports whether go-redis sends a command again by itself when it gets
// this reply.
func wouldRepeat(err error) bool {
	row, _ := refusalOf(err)
	return row != nil && row.waits == waitsGrace || isReply(err) && redis.IsReadOnlyError(err)
}

// concludes reports whether the reply in err, if it means that a command did not run,
// surely means that of cmd, and is worth waiting for.
func concludes(cmd redis.Cmder, err error) bool {
	row, script := refusalOf(err)
	switch {
	case row == nil || cmd == nil: // of a batch as a whole
		return true
	case command.IsScript(cmd):
		return !script && slices.ContainsFunc(row.script, func(words string) bool { return strings.Contains(err.Error(), words) })
	case row.parked && command.ClassOf(cmd) != command.Takes && !command.ReadOnly(cmd):
		return false // WAIT, say, on another connection is another question
	case row.waits == waitsGrace && command.IsAboutScripts(cmd):
		return false // it was refused because of what it asks for
	}
	return true
}

// ranElsewhere is the reply to a part of a command, or of a transaction, of which other parts ran.
type ranElsewhere struct{ reply error }

func (e ranElsewhere) Error() string { return e.reply.Error() }
func (e ranElsewhere) RedisError()   {}
func (e ranElsewhere) Unwrap() error { return e.reply }

// notReply turns a reply of the server into an error that is none. What a reply to one
// command has caused must not look like the reply to another: go-redis would keep
// a dead connection, or take a failed handshake for an old server. It knows one reply
// by its text, wherever that stands.
func notReply(err error) error {
	if err != nil && isReply(err) {
		return errors.New(strings.ReplaceAll(err.Error(), "-READONLY", "READONLY"))
	}
	return err
}
