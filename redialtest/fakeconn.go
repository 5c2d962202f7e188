package redialtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

// One connection of a [FakeServer]: what is read is run, as its hook has it, and answered.

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
