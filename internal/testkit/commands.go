// The commands of servers that are scripted.

package testkit

import (
	"fmt"
	"maps"
)

// Arity is the number of words of a command, or the least if negative.
var Arity = map[string]int{
	"get": 2, "set": -3, "incr": 2, "append": 3, "del": -2, "exists": -2, "mget": -2, "strlen": 2,
	"lpush": -3, "llen": 2, "lrange": 4, "hset": -4, "hget": 3, "hgetall": 2, "scan": -2, "echo": 2,
	"multi": 1, "exec": 1, "discard": 1, "watch": -2, "unwatch": 1, "shutdown": -1, "save": 1,
}

// CommandTable is the reply to COMMAND, by which a cluster client finds keys.
func CommandTable() string {
	known := maps.Clone(Arity)
	known["nonsense"] = 2 // which it does not know, but go-redis would log that each time
	reply := fmt.Sprintf("*%d\r\n", len(known))
	for name, n := range known {
		key, last := 1, 1
		switch name {
		case "del", "exists", "mget", "watch":
			last = -1
		case "multi", "exec", "discard", "unwatch", "save", "shutdown", "echo", "scan":
			key, last = 0, 0
		}
		reply += fmt.Sprintf("*6\r\n$%d\r\n%s\r\n:%d\r\n*1\r\n$5\r\nwrite\r\n:%d\r\n:%d\r\n:1\r\n", len(name), name, n, key, last)
	}
	return reply
}
