package command

import (
	"slices"

	"github.com/redis/go-redis/v9"
)

// What the commands of a batch are together, and the errors on them.

// IsTransaction reports whether cmds are one MULTI ... EXEC block.
func IsTransaction(cmds []redis.Cmder) bool {
	last := len(cmds) - 1
	if last < 0 || cmds[0].Name() != "multi" || cmds[last].Name() != "exec" {
		return false
	}
	ends := slices.ContainsFunc(cmds[1:last], func(cmd redis.Cmder) bool { return cmd.Name() == "exec" })
	return !ends || isMade(cmds)
}

// isMade reports whether cmds are a transaction as go-redis makes one, though it has an EXEC in
// it: go-redis looks at the type of MULTI then.
func isMade(cmds []redis.Cmder) bool {
	_, multi := cmds[0].(*redis.StatusCmd)
	_, exec := cmds[len(cmds)-1].(*redis.SliceCmd)
	return multi && exec && !slices.ContainsFunc(cmds[1:], func(cmd redis.Cmder) bool { return cmd.Name() == "multi" })
}

// HoldsMulti reports whether cmds are a transaction as a node gets it, perhaps behind
// ASKING.
func HoldsMulti(cmds []redis.Cmder) bool {
	return cmds[0].Name() == "multi" || len(cmds) > 1 && cmds[1].Name() == "multi"
}

// Inner returns the commands of a transaction without MULTI and EXEC, and a pipeline
// as it is.
func Inner(cmds []redis.Cmder) []redis.Cmder {
	if IsTransaction(cmds) {
		return cmds[1 : len(cmds)-1]
	}
	return cmds
}

// IsSetup reports whether cmds set up a connection.
func IsSetup(cmds []redis.Cmder) bool {
	return !slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return !IsHandshake(cmd) })
}

// FirstError returns the first error among cmds, as go-redis does for a batch,
// or else final.
func FirstError(cmds []redis.Cmder, final error) error {
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil {
			return err
		}
	}
	return final
}

// SetErrors sets err on each of cmds.
func SetErrors(cmds []redis.Cmder, err error) {
	for _, cmd := range cmds {
		cmd.SetErr(err)
	}
}
