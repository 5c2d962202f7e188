package conform

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialtest"
)

// scripted is a server in memory with types, transactions and, depending on the key,
// errors of every kind that a server gives for good. It may be a node of a cluster, or a
// sentinel.
type scripted struct {
	*redialtest.FakeServer

	note   func(format string, args ...any) // is told of every command and its reply
	slots  string                           // the reply to CLUSTER SLOTS; "": no cluster
	master string                           // the address that a sentinel names; "": no sentinel

	mu       sync.Mutex // guards the fields below
	data     map[string]any
	version  map[string]int // of a key, for WATCH
	sessions map[int]*session
	script   func(id int, args []string) redialtest.Action // asked first, if not nil
}

type session struct {
	three   bool // RESP3
	multi   bool
	dirty   bool
	queue   [][]string
	watched map[string]int
}

func newScripted(t testing.TB) *scripted {
	s := &scripted{
		FakeServer: redialtest.NewFakeServerPipe(t),
		note:       func(string, ...any) {},
		data:       make(map[string]any),
		version:    make(map[string]int),
		sessions:   make(map[int]*session),
	}
	s.OnCommand(s.handle)
	return s
}

// says makes the server ask script what to do with each command that is not part of a
// set-up, before it does what it would do anyway.
func (s *scripted) says(script func(id int, args []string) redialtest.Action) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = script
}

const twoNodes = "*2\r\n" +
	"*3\r\n:0\r\n:8191\r\n*3\r\n$8\r\n10.0.0.1\r\n:7001\r\n$1\r\na\r\n" +
	"*3\r\n:8192\r\n:16383\r\n*3\r\n$8\r\n10.0.0.2\r\n:7002\r\n$1\r\nb\r\n"

func (s *scripted) handle(c *redialtest.FakeConn, args []string) redialtest.Action {
	s.mu.Lock()
	defer s.mu.Unlock()
	args = slices.Clone(args)
	args[0] = strings.ToLower(args[0])
	in := s.sessions[c.ID()]
	if in == nil {
		in = &session{}
		s.sessions[c.ID()] = in
	}
	switch args[0] {
	case "hello":
		in.three = len(args) > 1 && args[1] == "3"
		return redialtest.Handle
	case "auth", "client", "select", "ping", "quit", "subscribe", "unsubscribe", "publish":
		return redialtest.Handle
	case "readonly":
		return redialtest.Reply("+OK\r\n")
	case "command":
		return redialtest.Reply(testkit.CommandTable())
	case "cluster":
		if s.slots == "" {
			return redialtest.Reply("-ERR This instance has cluster support disabled\r\n")
		}
		return redialtest.Reply(s.slots)
	case "sentinel":
		return redialtest.Reply(s.sentinel(args))
	}
	if s.script != nil {
		if action := s.script(c.ID(), args); action != redialtest.Handle {
			s.note("%s => scripted", strings.Join(args, " "))
			return action
		}
	}
	raw := s.dispatch(in, args)
	s.note("%s => %q", strings.Join(args, " "), raw)
	return redialtest.Reply(raw)
}

func (s *scripted) sentinel(args []string) string {
	host, port, _ := strings.Cut(s.master, ":")
	switch strings.ToLower(args[1]) {
	case "get-master-addr-by-name":
		return strs([]string{host, port})
	}
	return "*0\r\n"
}

// complaints are errors that a server gives a command for its key, and whether it does so
// before it queues the command in a transaction.
var complaints = []struct {
	mark, reply string
	early       bool
}{
	{"misconf", "-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", true},
	{"noperm", "-NOPERM No permissions to access a key", true},
	{"oom", "-OOM command not allowed when used memory > 'maxmemory'.", true},
	{"custom", "-ERR custom error of a module", false},
	{"own", "-MYCODE what a script has returned", false},
}

func (s *scripted) dispatch(in *session, args []string) string {
	name := args[0]
	refuse := func(reply string) string {
		in.dirty = in.dirty || in.multi
		return reply + "\r\n"
	}
	n, known := testkit.Arity[name]
	switch {
	case !known:
		return refuse(fmt.Sprintf("-ERR unknown command '%s', with args beginning with: ", name))
	case n >= 0 && len(args) != n, len(args) < -n:
		return refuse(fmt.Sprintf("-ERR wrong number of arguments for '%s' command", name))
	}
	if len(args) > 1 {
		for _, c := range complaints {
			if c.early && strings.Contains(args[1], c.mark) {
				return refuse(c.reply)
			}
		}
	}
	switch name {
	case "multi":
		if in.multi {
			return refuse("-ERR MULTI calls can not be nested")
		}
		in.multi, in.dirty, in.queue = true, false, nil
		return "+OK\r\n"
	case "discard", "exec":
		if !in.multi {
			return "-ERR " + strings.ToUpper(name) + " without MULTI\r\n"
		}
		in.multi = false
		watched := in.watched
		in.watched = nil
		if name == "discard" {
			return "+OK\r\n"
		}
		if in.dirty {
			return "-EXECABORT Transaction discarded because of previous errors.\r\n"
		}
		for key, version := range watched {
			if s.version[key] != version {
				return null(in, "*-1\r\n")
			}
		}
		reply := "*" + strconv.Itoa(len(in.queue)) + "\r\n"
		for _, queued := range in.queue {
			reply += s.execute(in, queued)
		}
		return reply
	case "watch":
		if in.multi {
			return refuse("-ERR WATCH inside MULTI is not allowed")
		}
		if in.watched == nil {
			in.watched = make(map[string]int)
		}
		for _, key := range args[1:] {
			in.watched[key] = s.version[key]
		}
		return "+OK\r\n"
	}
	if in.multi {
		in.queue = append(in.queue, args)
		return "+QUEUED\r\n"
	}
	return s.execute(in, args)
}

const wrongType = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"

func (s *scripted) execute(in *session, args []string) string {
	name := args[0]
	if len(args) > 1 {
		for _, c := range complaints {
			if !c.early && strings.Contains(args[1], c.mark) {
				return c.reply + "\r\n"
			}
		}
	}
	switch name {
	case "unwatch":
		in.watched = nil
		return "+OK\r\n"
	case "save":
		return "+OK\r\n"
	case "echo":
		return str(args[1])
	case "scan":
		keys := make([]string, 0, len(s.data))
		for key := range s.data {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		return "*2\r\n" + str("0") + strs(keys)
	case "set":
		s.change(args[1], args[2])
		return "+OK\r\n"
	case "del", "exists":
		n := 0
		for _, key := range args[1:] {
			if _, ok := s.data[key]; ok {
				n++
				if name == "del" {
					s.change(key, nil)
				}
			}
		}
		return num(n)
	case "mget":
		reply := "*" + strconv.Itoa(len(args)-1) + "\r\n"
		for _, key := range args[1:] {
			if v, ok := s.data[key].(string); ok {
				reply += str(v)
			} else {
				reply += null(in, "$-1\r\n")
			}
		}
		return reply
	case "get", "incr", "append", "strlen":
		return s.executeString(in, name, args)
	case "lpush", "llen", "lrange":
		list, ok := s.data[args[1]].([]string)
		switch {
		case !ok && s.data[args[1]] != nil:
			return wrongType
		case name == "llen":
			return num(len(list))
		case name == "lrange":
			return strs(list)
		}
		for _, v := range args[2:] {
			list = append([]string{v}, list...)
		}
		s.change(args[1], list)
		return num(len(list))
	case "hset", "hget", "hgetall":
		return s.executeHash(in, name, args)
	}
	return "+OK\r\n"
}

func (s *scripted) executeString(in *session, name string, args []string) string {
	v, ok := s.data[args[1]].(string)
	switch {
	case !ok && s.data[args[1]] != nil:
		return wrongType
	case name == "get" && !ok:
		return null(in, "$-1\r\n")
	case name == "get":
		return str(v)
	case name == "strlen":
		return num(len(v))
	case name == "append":
		s.change(args[1], v+args[2])
		return num(len(v + args[2]))
	}
	n, err := strconv.Atoi("0" + v)
	if err != nil {
		return "-ERR value is not an integer or out of range\r\n"
	}
	s.change(args[1], strconv.Itoa(n+1))
	return num(n + 1)
}

func (s *scripted) executeHash(in *session, name string, args []string) string {
	hash, ok := s.data[args[1]].(map[string]string)
	switch {
	case !ok && s.data[args[1]] != nil:
		return wrongType
	case name == "hget":
		if v, ok := hash[args[2]]; ok {
			return str(v)
		}
		return null(in, "$-1\r\n")
	case name == "hgetall":
		fields := make([]string, 0, len(hash))
		for f := range hash {
			fields = append(fields, f)
		}
		slices.Sort(fields)
		reply := fmt.Sprintf("*%d\r\n", 2*len(hash))
		if in.three {
			reply = fmt.Sprintf("%%%d\r\n", len(hash))
		}
		for _, f := range fields {
			reply += str(f) + str(hash[f])
		}
		return reply
	case len(args)%2 != 0:
		return "-ERR wrong number of arguments for 'hset' command\r\n"
	case hash == nil:
		hash = make(map[string]string)
	}
	n := 0
	for i := 2; i < len(args); i += 2 {
		if _, ok := hash[args[i]]; !ok {
			n++
		}
		hash[args[i]] = args[i+1]
	}
	s.change(args[1], hash)
	return num(n)
}

func (s *scripted) change(key string, value any) {
	s.version[key]++
	s.data[key] = value
	if value == nil {
		delete(s.data, key)
	}
}

func str(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }
func num(n int) string    { return fmt.Sprintf(":%d\r\n", n) }

func strs(list []string) string {
	reply := fmt.Sprintf("*%d\r\n", len(list))
	for _, s := range list {
		reply += str(s)
	}
	return reply
}

func null(in *session, resp2 string) string {
	if in.three {
		return "_\r\n"
	}
	return resp2
}
