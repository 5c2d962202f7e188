package command

import "github.com/redis/go-redis/v9"

// What single commands are about, by their names.

// IsHandshake reports whether go-redis itself may have sent cmd to set up a
// connection. Such commands pass the gate and are never retried: the command
// they were sent for is.
func IsHandshake(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "hello", "auth", "client", "select", "readonly":
		return true
	}
	return false
}

// Turns reports whether cmd has its connection take what comes behind it for something else
// than another connection would: in another database, as another user, or elsewhere.
func Turns(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "auth", "hello", "readonly", "readwrite", "reset", "select":
		return true
	}
	return false
}

// IsAboutTransactions reports whether cmd begins or ends a transaction, or what guards one.
func IsAboutTransactions(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "discard", "exec", "multi", "unwatch", "watch":
		return true
	}
	return false
}

// IsAboutTopology reports whether go-redis may have sent cmd to find its way among
// the nodes. Such commands ask one node after another, and do not wait.
func IsAboutTopology(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "command":
		return len(cmd.Args()) == 1
	case "cluster":
		return word(cmd.Args(), 1) == "slots"
	}
	return false
}

// IsScript reports whether cmd runs code that may do several things.
func IsScript(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "fcall_ro":
		return true
	}
	return false
}

// IsAboutScripts reports whether cmd is about the script that is running. SCRIPT KILL is
// told that the server is BUSY when what runs is a function, and the other way round.
func IsAboutScripts(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "script", "function":
		what := word(cmd.Args(), 1)
		return what == "kill" || what == "stats"
	}
	return false
}

// IsTroubled reports whether a command has an error other than redis.Nil.
func IsTroubled(cmd redis.Cmder) bool {
	err := cmd.Err()
	return err != nil && err != redis.Nil
}
