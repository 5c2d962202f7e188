package redialtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Action is what a [FakeServer] does with one command. The zero value is [Handle].
type Action string

const (
	// Handle executes the command and replies, as a server does.
	Handle Action = ""
	// Drop loses the command: not executed, no reply, the connection goes on.
	Drop Action = "drop"
	// CloseBeforeExecute ends the connection without executing the command.
	CloseBeforeExecute Action = "close before execute"
	// ExecuteThenClose executes the command and ends the connection without the
	// reply. Replies to earlier commands are delivered.
	ExecuteThenClose Action = "execute then close"
	// ExecuteThenDrop executes the command and loses the reply; the connection
	// goes on.
	ExecuteThenDrop Action = "execute then drop"
	// Hang makes the connection silent from this command on: bytes are swallowed,
	// nothing is executed, nothing is sent, until the client closes it.
	Hang Action = "hang"

	actionReply Action = "reply "
)

// Reply sends raw, which should be RESP and end in "\r\n" unless that is the fault
// wanted, instead of executing the command: Reply("-LOADING busy\r\n").
func Reply(raw string) Action { return actionReply + Action(raw) }

// FakeServer is a scripted Redis server in memory. It speaks RESP2 and RESP3,
// counts the commands it executed, and asks a hook what to do with each. It knows
// HELLO, AUTH, CLIENT, SELECT, PING, ECHO, QUIT, GET, SET (without options), DEL,
// INCR, LPUSH, RPUSH, LLEN, BLPOP, MULTI, EXEC, DISCARD, WATCH, UNWATCH, SUBSCRIBE,
// UNSUBSCRIBE and PUBLISH, in one database, each as simple as a client allows; the
// rest is an unknown command.
//
// A FakeServer is safe for concurrent use.
type FakeServer struct {
	addr string         // read-only
	pipe bool           // no listener; read-only
	wg   sync.WaitGroup // goroutines; Add only under mu, with down false

	mu       sync.Mutex // guards the fields below; never held over I/O or the hook
	listener net.Listener
	down     bool // refuses dials
	closed   bool // for good
	hook     func(*FakeConn, []string) Action
	conns    map[*FakeConn]struct{}
	dials    int
	executed map[string]int
	strings  map[string]string
	lists    map[string][]string
	pushed   chan struct{} // closed and replaced when a list grows
}

// NewFakeServer starts a fake server on a free port of 127.0.0.1. tb.Cleanup closes
// it and joins its goroutines.
func NewFakeServer(tb testing.TB) *FakeServer {
	tb.Helper()
	f, err := StartFakeServer()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.Close() })
	return f
}

// StartFakeServer is [NewFakeServer] for a program: the caller must Close it.
func StartFakeServer() (*FakeServer, error) {
	ln, err := listenTCP("127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("redialtest: fake server: %w", err)
	}
	f := newFakeServer(ln.Addr().String())
	f.mu.Lock()
	f.serveLocked(ln)
	f.mu.Unlock()
	return f, nil
}

// NewFakeServerPipe starts a fake server without a listener, reached by
// [FakeServer.Dial] only. It opens no sockets and so works in a testing/synctest
// bubble: make it before the client, inside the bubble with the bubble's t, and give
// the client the Addr of the server, too: without one go-redis would look up the name
// of localhost, outside of the bubble.
//
// go-redis shares the timers by which callers wait for a connection of an exhausted
// pool between all clients of the process, and no timer may leave its bubble. The
// server has them dropped before and after a test in a bubble. That does not help
// bubbles that run at the same time: do not make such tests parallel, or give their
// clients a PoolSize that is never exhausted.
func NewFakeServerPipe(tb testing.TB) *FakeServer {
	f := newFakeServer("127.0.0.1:6379")
	f.pipe = true
	first := inBubble() && !cleaned.swap(tb)
	if first {
		dropShared()
	}
	tb.Cleanup(func() {
		_ = f.Close()
		if first { // and so the last to be closed
			cleaned.swap(nil)
			dropShared()
		}
	})
	return f
}

// cleaned is the test that has dropped what is shared last: it needs to once.
var cleaned latest

type latest struct {
	mu sync.Mutex
	tb testing.TB
}

// swap reports whether tb is the latest already, and makes it so.
func (l *latest) swap(tb testing.TB) (was bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was = tb != nil && l.tb == tb
	l.tb = tb
	return was
}

// inBubble reports whether the goroutine is in a testing/synctest bubble, whose clock
// begins with the year 2000.
func inBubble() bool { return time.Now().Year() < 2020 }

// dropShared empties every sync.Pool of the process. They survive one collection.
func dropShared() {
	runtime.GC()
	runtime.GC()
}

func newFakeServer(addr string) *FakeServer {
	return &FakeServer{
		addr:     addr,
		conns:    make(map[*FakeConn]struct{}),
		executed: make(map[string]int),
		strings:  make(map[string]string),
		lists:    make(map[string][]string),
		pushed:   make(chan struct{}),
	}
}

// Addr returns the address the server listens on; without a listener, one that
// needs no name resolution and means nothing.
func (f *FakeServer) Addr() string { return f.addr }

// Dial connects through net.Pipe, whatever network and addr are: use it as the
// Dialer of redis.Options. After Kill it fails as a refused dial does.
func (f *FakeServer) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	client, server := net.Pipe()
	if !f.serveConn(server) {
		_ = client.Close()
		return nil, &net.OpError{Op: "dial", Net: network, Err: errRefused}
	}
	return client, nil
}

// OnCommand makes the server ask hook what to do with each command, handshakes
// included; nil handles all again. args holds the command and its arguments as
// sent. A connection's commands are asked about in order, those of several
// connections at once. The hook may block, and Close waits until it returns.
func (f *FakeServer) OnCommand(hook func(c *FakeConn, args []string) Action) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// Executed returns how often the command, named in lower case and without a
// subcommand, has been executed. Commands within MULTI count when EXEC runs them,
// BLPOP when it returns.
func (f *FakeServer) Executed(cmd string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.executed[cmd]
}

// Dials returns how many connections the server has accepted.
func (f *FakeServer) Dials() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dials
}

// Conns returns how many connections are open.
func (f *FakeServer) Conns() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.conns)
}

// CloseConns closes every connection and returns how many there were. New ones are
// accepted.
func (f *FakeServer) CloseConns() int {
	f.mu.Lock()
	conns := make([]*FakeConn, 0, len(f.conns))
	for c := range f.conns {
		conns = append(conns, c)
	}
	f.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	return len(conns)
}

// Kill closes every connection and refuses dials until Start. Counts and data stay.
func (f *FakeServer) Kill() {
	f.mu.Lock()
	f.down = true
	ln := f.listener
	f.listener = nil
	f.mu.Unlock()
	if ln != nil {
		_ = ln.Close()
	}
	f.CloseConns()
}

// Start accepts dials again after Kill, on the same address. It returns an error
// if another process has taken the port.
func (f *FakeServer) Start() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || !f.down {
		return nil
	}
	if !f.pipe {
		ln, err := listenTCP(f.addr)
		if err != nil {
			return fmt.Errorf("redialtest: fake server: %w", err)
		}
		f.serveLocked(ln)
	}
	f.down = false
	return nil
}

// Close closes every connection, refuses dials for good, and returns when every
// goroutine of the server has. It is idempotent and always returns nil.
func (f *FakeServer) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.Kill()
	f.wg.Wait()
	return nil
}

func (f *FakeServer) serveLocked(ln net.Listener) {
	f.listener = ln
	f.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(serverPoll) // a failed accept (out of descriptors) passes
				continue
			}
			f.serveConn(conn)
		}
	})
}

// serveConn returns false, and closes conn, if the server is down.
func (f *FakeServer) serveConn(conn net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		_ = conn.Close()
		return false
	}
	f.dials++
	c := &FakeConn{
		server: f, conn: conn, id: f.dials, proto: 2,
		commands: make(chan []string, 1024),
		hungUp:   make(chan struct{}),
		wake:     make(chan struct{}, 1),
		done:     make(chan struct{}),
		channels: make(map[string]bool),
	}
	f.conns[c] = struct{}{}
	f.wg.Go(c.read)
	f.wg.Go(c.run)
	f.wg.Go(c.write)
	return true
}

// FakeConn is one connection of a [FakeServer], as its hook sees it.
type FakeConn struct {
	server   *FakeServer
	conn     net.Conn
	id       int
	commands chan []string // read but not yet run; closed by read when the client hangs up
	hungUp   chan struct{} // closed with commands
	wake     chan struct{} // out or finish has changed
	done     chan struct{} // closed when the connection has ended

	// used by run only
	inMulti, aborted bool
	queue            [][]string

	// guarded by server.mu
	proto    int
	channels map[string]bool
	out      []byte // replies not yet written
	mute     bool   // after Hang
	finish   bool   // close when out is written
	ended    bool
}

// ID returns the number of the connection, counted from 1 in order of the dials.
func (c *FakeConn) ID() int { return c.id }

// Close ends the connection at once; replies not yet written are lost.
func (c *FakeConn) Close() {
	f := c.server
	f.mu.Lock()
	ended := c.ended
	c.ended = true
	delete(f.conns, c)
	f.mu.Unlock()
	if !ended {
		close(c.done)
		_ = c.conn.Close()
	}
}

// Send writes raw to the client outside any reply: a push, half a reply, garbage.
// It does not block.
func (c *FakeConn) Send(raw string) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.sendLocked(raw)
}

func (c *FakeConn) sendLocked(raw string) {
	if !c.mute {
		c.out = append(c.out, raw...)
		c.wakeWriter()
	}
}

func (c *FakeConn) wakeWriter() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// write is a goroutine of its own because a pipe has no buffer: a client that
// writes a long pipeline before it reads must not be blocked by a reply.
func (c *FakeConn) write() {
	for {
		select {
		case <-c.wake:
		case <-c.done:
			return
		}
		c.server.mu.Lock()
		out, finish := c.out, c.finish
		c.out = nil
		c.server.mu.Unlock()
		if _, err := c.conn.Write(out); err != nil || finish {
			c.Close()
			return
		}
	}
}

// read is one because the end of the connection must end a blocked BLPOP. What
// arrived before a FIN is still executed, as by a real server.
func (c *FakeConn) read() {
	r := bufio.NewReader(c.conn)
	for {
		args, err := readCommand(r)
		if errors.Is(err, io.EOF) {
			close(c.hungUp)
			close(c.commands)
			return
		}
		if err != nil {
			c.Close()
			return
		}
		if len(args) == 0 {
			continue
		}
		select {
		case c.commands <- args:
		case <-c.done:
			return
		}
	}
}

func readCommand(r *bufio.Reader) ([]string, error) {
	line, err := readLine(r)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(line, "*") {
		return strings.Fields(line), nil // inline, as typed by a person
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < 0 || n > 1<<20 {
		return nil, fmt.Errorf("bad array header %q", line)
	}
	var args []string // grows with what arrives, not with what is announced
	for range n {
		if line, err = readLine(r); err != nil {
			return nil, err
		}
		digits, ok := strings.CutPrefix(line, "$")
		size, err := strconv.Atoi(digits)
		if !ok || err != nil || size < 0 || size > 512<<20 {
			return nil, fmt.Errorf("bad bulk header %q", line)
		}
		var arg strings.Builder
		if _, err := io.CopyN(&arg, r, int64(size)); err != nil {
			return nil, err
		}
		if _, err := r.Discard(len("\r\n")); err != nil {
			return nil, err
		}
		args = append(args, arg.String())
	}
	return args, nil
}

func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}

func (c *FakeConn) run() {
	f := c.server
	for {
		args, ok := c.next()
		if !ok {
			c.closeWhenWritten()
			return
		}
		f.mu.Lock()
		hook := f.hook
		f.mu.Unlock()
		action := Handle
		if hook != nil {
			action = hook(c, args)
		}
		if raw, isReply := strings.CutPrefix(string(action), string(actionReply)); isReply {
			c.Send(raw)
			continue
		}
		finish := false
		switch action {
		case Handle:
			c.execute(args, true)
			finish = strings.EqualFold(args[0], "quit")
		case Drop:
		case ExecuteThenDrop:
			c.execute(args, false)
		case CloseBeforeExecute:
			finish = true
		case ExecuteThenClose:
			c.execute(args, false)
			finish = true
		case Hang:
			f.mu.Lock()
			c.mute = true
			f.mu.Unlock()
			for ok {
				_, ok = c.next()
			}
			c.Close()
			return
		default:
			panic(fmt.Sprintf("redialtest: unknown Action %q", action))
		}
		if finish {
			c.closeWhenWritten()
			return
		}
	}
}

// next waits for a command and returns false when there will be no more.
func (c *FakeConn) next() ([]string, bool) {
	select {
	case args, ok := <-c.commands:
		return args, ok
	case <-c.done:
		return nil, false
	}
}

func (c *FakeConn) closeWhenWritten() {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.finish = true
	c.wakeWriter()
}

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
