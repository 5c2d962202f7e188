package redialtest

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What a [FakeServer] does with commands.

// fakeArity holds the least number of words of each known command.
var fakeArity = map[string]int{
	"hello": 1, "auth": 2, "client": 2, "select": 2, "ping": 1, "echo": 2, "quit": 1,
	"get": 2, "set": 3, "del": 2, "incr": 2, "lpush": 3, "rpush": 3, "llen": 2, "blpop": 3,
	"multi": 1, "exec": 1, "discard": 1, "watch": 2, "unwatch": 1,
	"subscribe": 2, "unsubscribe": 1, "publish": 3,
}

// execute runs or queues one command and sends the reply if it is wanted, both
// under one lock: a message must not overtake the reply to its SUBSCRIBE.
func (c *FakeConn) execute(args []string, wanted bool) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if reply := c.dispatchLocked(strings.ToLower(args[0]), args); wanted {
		c.sendLocked(reply)
	}
}

// dispatchLocked deals with what makes a command wait: MULTI and blocking.
func (c *FakeConn) dispatchLocked(name string, args []string) string {
	f := c.server
	least, known := fakeArity[name]
	switch {
	case !known:
		c.aborted = true
		return fmt.Sprintf("-ERR unknown command '%s'\r\n", name)
	case len(args) < least:
		c.aborted = true
		return fmt.Sprintf("-ERR wrong number of arguments for '%s' command\r\n", name)
	case name == "multi" && c.inMulti:
		return "-ERR MULTI calls can not be nested\r\n"
	case name == "multi":
		c.inMulti, c.aborted, c.queue = true, false, nil
		f.executed[name]++
		return "+OK\r\n"
	case (name == "exec" || name == "discard") && !c.inMulti:
		return "-ERR " + strings.ToUpper(name) + " without MULTI\r\n"
	case name == "discard":
		c.inMulti = false
		f.executed[name]++
		return "+OK\r\n"
	case name == "exec":
		c.inMulti = false
		f.executed[name]++
		if c.aborted {
			return "-EXECABORT Transaction discarded because of previous errors.\r\n"
		}
		replies := "*" + strconv.Itoa(len(c.queue)) + "\r\n"
		for _, args := range c.queue {
			replies += c.executeLocked(strings.ToLower(args[0]), args)
		}
		return replies
	case c.inMulti && name != "quit":
		c.queue = append(c.queue, args)
		return "+QUEUED\r\n"
	case name == "blpop":
		return c.blockingPopLocked(args)
	}
	return c.executeLocked(name, args)
}

// blockingPopLocked waits for data, the time-out in seconds, or the end of the
// connection. It releases server.mu while it waits.
func (c *FakeConn) blockingPopLocked(args []string) string {
	seconds, err := strconv.ParseFloat(args[len(args)-1], 64)
	if err != nil || seconds < 0 {
		return "-ERR timeout is not a float or out of range\r\n"
	}
	var timeout <-chan time.Time
	if seconds > 0 {
		timer := time.NewTimer(time.Duration(seconds * float64(time.Second)))
		defer timer.Stop()
		timeout = timer.C
	}
	f := c.server
	for expired := false; !c.ended; {
		if expired || f.hasDataLocked(args) {
			return c.executeLocked("blpop", args)
		}
		pushed := f.pushed
		f.mu.Unlock()
		select {
		case <-pushed:
		case <-timeout:
			expired = true
		case <-c.hungUp:
			c.Close()
		case <-c.done:
		}
		f.mu.Lock()
	}
	return ""
}

func (f *FakeServer) hasDataLocked(args []string) bool {
	for _, key := range args[1 : len(args)-1] {
		if len(f.lists[key]) > 0 {
			return true
		}
	}
	return false
}

// executeLocked runs a command that does not block. Caller holds server.mu.
func (c *FakeConn) executeLocked(name string, args []string) string {
	f := c.server
	f.executed[name]++
	switch name {
	case "hello":
		return c.helloLocked(args)
	case "ping":
		switch {
		case len(args) > 1 && (c.proto == 3 || len(c.channels) == 0):
			return bulk(args[1])
		case c.proto == 2 && len(c.channels) > 0:
			return "*2\r\n" + bulk("pong") + bulk(strings.Join(args[1:], " "))
		}
		return "+PONG\r\n"
	case "client":
		switch strings.ToLower(args[1]) {
		case "id":
			return integer(c.id)
		case "maint_notifications":
			return "-ERR unknown subcommand 'MAINT_NOTIFICATIONS'\r\n"
		}
	case "echo":
		return bulk(args[1])
	case "subscribe", "unsubscribe":
		return c.subscribeLocked(name, args[1:])
	case "publish":
		receivers := 0
		for other := range f.conns {
			if other.channels[args[1]] {
				receivers++
				other.sendLocked(other.push(3) + bulk("message") + bulk(args[1]) + bulk(args[2]))
			}
		}
		return integer(receivers)
	case "get", "set", "del", "incr", "lpush", "rpush", "llen", "blpop":
		return c.dataLocked(name, args)
	}
	return "+OK\r\n"
}

// dataLocked runs a command that is about keys. Caller holds server.mu.
func (c *FakeConn) dataLocked(name string, args []string) string {
	f := c.server
	switch name {
	case "get":
		if value, ok := f.strings[args[1]]; ok {
			return bulk(value)
		}
		return c.null("$-1\r\n")
	case "set":
		if len(args) > 3 {
			return "-ERR syntax error: FakeServer knows no options of SET\r\n"
		}
		f.strings[args[1]] = args[2]
	case "del":
		n := 0
		for _, key := range args[1:] {
			_, isString := f.strings[key]
			if isString || len(f.lists[key]) > 0 {
				n++
			}
			delete(f.strings, key)
			delete(f.lists, key)
		}
		return integer(n)
	case "incr":
		n, err := strconv.Atoi(f.strings[args[1]])
		if err != nil && f.strings[args[1]] != "" {
			return "-ERR value is not an integer or out of range\r\n"
		}
		f.strings[args[1]] = strconv.Itoa(n + 1)
		return integer(n + 1)
	case "lpush", "rpush":
		list := f.lists[args[1]]
		for _, value := range args[2:] {
			if name == "lpush" {
				list = append([]string{value}, list...)
			} else {
				list = append(list, value)
			}
		}
		f.lists[args[1]] = list
		close(f.pushed)
		f.pushed = make(chan struct{})
		return integer(len(list))
	case "llen":
		return integer(len(f.lists[args[1]]))
	case "blpop":
		for _, key := range args[1 : len(args)-1] {
			if list := f.lists[key]; len(list) > 0 {
				f.lists[key] = list[1:]
				return "*2\r\n" + bulk(key) + bulk(list[0])
			}
		}
		return c.null("*-1\r\n")
	}
	return "+OK\r\n"
}

func (c *FakeConn) helloLocked(args []string) string {
	if len(args) > 1 {
		switch args[1] {
		case "2", "3":
			c.proto, _ = strconv.Atoi(args[1])
		default:
			return "-NOPROTO unsupported protocol version\r\n"
		}
	}
	head := "*14\r\n"
	if c.proto == 3 {
		head = "%7\r\n"
	}
	return head + bulk("server") + bulk("redis") + bulk("version") + bulk("7.0.15") +
		bulk("proto") + integer(c.proto) + bulk("id") + integer(c.id) +
		bulk("mode") + bulk("standalone") + bulk("role") + bulk("master") + bulk("modules") + "*0\r\n"
}

func (c *FakeConn) subscribeLocked(name string, channels []string) string {
	if name == "unsubscribe" && len(channels) == 0 {
		for channel := range c.channels {
			channels = append(channels, channel)
		}
		if len(channels) == 0 {
			return c.push(3) + bulk(name) + c.null("$-1\r\n") + integer(0)
		}
	}
	reply := ""
	for _, channel := range channels {
		if name == "subscribe" {
			c.channels[channel] = true
		} else {
			delete(c.channels, channel)
		}
		reply += c.push(3) + bulk(name) + bulk(channel) + integer(len(c.channels))
	}
	return reply
}

// push returns the header of a push of n elements.
func (c *FakeConn) push(n int) string {
	if c.proto == 3 {
		return ">" + strconv.Itoa(n) + "\r\n"
	}
	return "*" + strconv.Itoa(n) + "\r\n"
}

// null returns the null of RESP3, or of RESP2 as given.
func (c *FakeConn) null(resp2 string) string {
	if c.proto == 3 {
		return "_\r\n"
	}
	return resp2
}

func bulk(s string) string { return "$" + strconv.Itoa(len(s)) + "\r\n" + s + "\r\n" }

func integer(n int) string { return ":" + strconv.Itoa(n) + "\r\n" }
