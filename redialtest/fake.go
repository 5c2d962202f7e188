package redialtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
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
	first := false
	if inBubble() {
		_, before := cleaned.LoadOrStore(tb, true)
		first = !before
	}
	if first {
		dropShared()
	}
	tb.Cleanup(func() {
		_ = f.Close()
		if first { // and so the last to be closed
			cleaned.Delete(tb)
			dropShared()
		}
	})
	return f
}

// cleaned holds the tests under way that have dropped what is shared: each needs to once.
var cleaned sync.Map // of testing.TB

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
