package redialtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	soon   = 5 * time.Second       // for what must happen
	silent = 60 * time.Millisecond // for what must not
)

// rawClient speaks inline commands over a socket, so that a test sees exactly the
// bytes and the ending that the proxy produced.
type rawClient struct {
	t    *testing.T
	conn *net.TCPConn
	r    *bufio.Reader
}

func dialRaw(t *testing.T, addr string) *rawClient {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, soon)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &rawClient{t: t, conn: conn.(*net.TCPConn), r: bufio.NewReader(conn)}
}

func (c *rawClient) send(line string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, line+"\r\n"); err != nil {
		c.t.Fatalf("write %q: %v", line, err)
	}
}

func (c *rawClient) want(reply string) {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(soon))
	got := make([]byte, len(reply))
	n, err := io.ReadFull(c.r, got)
	if string(got[:n]) != reply {
		c.t.Fatalf("read %q (%v), want %q", got[:n], err, reply)
	}
}

func (c *rawClient) do(line, reply string) {
	c.t.Helper()
	c.send(line)
	c.want(reply)
}

func (c *rawClient) readErr(d time.Duration) error {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(d))
	b, err := c.r.ReadByte()
	if err == nil {
		c.t.Fatalf("read %q, want nothing", b)
	}
	return err
}

func (c *rawClient) wantFIN() {
	c.t.Helper()
	if err := c.readErr(soon); !errors.Is(err, io.EOF) {
		c.t.Fatalf("the connection ended with %v, want a FIN", err)
	}
}

func (c *rawClient) wantRST() {
	c.t.Helper()
	err := c.readErr(soon)
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("the connection ended with %v, want an RST", err)
	}
}

func (c *rawClient) wantSilence() {
	c.t.Helper()
	if err := c.readErr(silent); !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("the connection ended with %v, want silence", err)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for giveUp := time.Now().Add(soon); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(giveUp) {
			t.Fatalf("not within %v: %s", soon, what)
		}
	}
}

func fakeBehindProxy(t *testing.T) (*FakeServer, *Proxy) {
	t.Helper()
	Leaks(t)
	f := NewFakeServer(t)
	return f, NewProxy(t, f.Addr())
}

func TestProxy_Healthy_ForwardsAndCounts(t *testing.T) {
	f, p := fakeBehindProxy(t)
	a, b := dialRaw(t, p.Addr()), dialRaw(t, p.Addr())
	a.do("PING", "+PONG\r\n")
	b.do("ECHO hello", "$5\r\nhello\r\n")
	s := p.Stats()
	if s.Dials != 2 || len(s.DialTimes) != 2 || s.LiveConns != 2 || s.PeakConns != 2 || f.Dials() != 2 {
		t.Errorf("after two dials: %+v", s)
	}
	eventually(t, "6+12 bytes up, 7+11 down", func() bool {
		s := p.Stats()
		return s.BytesUp == 18 && s.BytesDown == 18
	})
	_ = a.conn.Close()
	eventually(t, "the closed connection is not live", func() bool { return p.Stats().LiveConns == 1 && f.Conns() == 1 })
	if s := p.Stats(); s.PeakConns != 2 || s.Cuts != 0 || s.Resets != 0 {
		t.Errorf("without faults: %+v", s)
	}
}

func TestProxy_LargeTransfer_IsIntact(t *testing.T) {
	_, p := fakeBehindProxy(t)
	rdb := bare(t, p.Addr())
	value := strings.Repeat("0123456789abcdef", 1<<17) // 2 MiB: many chunks
	if err := rdb.Set(t.Context(), "k", value, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if got, err := rdb.Get(t.Context(), "k").Result(); got != value {
		t.Fatalf("GET returned %d bytes (%v), want %d intact", len(got), err, len(value))
	}
}

func TestProxy_RefuseAndRestore_SameAddress(t *testing.T) {
	_, p := fakeBehindProxy(t)
	addr := p.Addr()
	for range 20 {
		c := dialRaw(t, addr)
		c.do("PING", "+PONG\r\n")
		p.Refuse()
		c.wantFIN()
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			t.Fatal("dial was accepted while refusing")
		}
		p.Refuse() // twice is once
		p.Restore()
		p.Restore()
	}
	dialRaw(t, addr).do("PING", "+PONG\r\n")
	if s := p.Stats(); s.Cuts != 20 || p.Addr() != addr {
		t.Fatalf("cuts = %d, want 20; address %s, want %s", s.Cuts, p.Addr(), addr)
	}
}

func TestProxy_Reset_ClientSeesRST(t *testing.T) {
	f, p := fakeBehindProxy(t)
	a, b := dialRaw(t, p.Addr()), dialRaw(t, p.Addr())
	a.do("PING", "+PONG\r\n")
	b.do("PING", "+PONG\r\n")
	if n := p.Reset(); n != 2 {
		t.Errorf("Reset() = %d, want 2", n)
	}
	a.wantRST()
	b.wantRST()
	if n := p.Reset(); n != 0 || p.Stats().Resets != 2 {
		t.Errorf("second Reset() = %d, counted %d", n, p.Stats().Resets)
	}
	eventually(t, "the server side is closed too", func() bool { return f.Conns() == 0 })
	dialRaw(t, p.Addr()).do("PING", "+PONG\r\n")
}

func TestProxy_Cut_ClientSeesFIN(t *testing.T) {
	f, p := fakeBehindProxy(t)
	c := dialRaw(t, p.Addr())
	c.do("PING", "+PONG\r\n")
	if n := p.Cut(); n != 1 {
		t.Errorf("Cut() = %d, want 1", n)
	}
	c.wantFIN()
	eventually(t, "the server side is closed too", func() bool { return f.Conns() == 0 })
}

func TestProxy_Hang_HoldsEverythingUntilRestore(t *testing.T) {
	f, p := fakeBehindProxy(t)
	old := dialRaw(t, p.Addr())
	old.do("INCR n", ":1\r\n")
	if n := p.Hang(); n != 1 {
		t.Errorf("Hang() = %d, want 1", n)
	}
	fresh := dialRaw(t, p.Addr()) // accepted
	old.send("INCR n")
	fresh.send("INCR m")
	old.wantSilence()
	fresh.wantSilence()
	if n := f.Executed("incr"); n != 1 {
		t.Fatalf("%d INCR reached the server during the hang", n-1)
	}
	p.Restore()
	old.want(":2\r\n")
	fresh.want(":1\r\n")
}

func TestProxy_HangWithServerGone_FINIsHeldToo(t *testing.T) {
	f, p := fakeBehindProxy(t)
	c := dialRaw(t, p.Addr())
	c.do("PING", "+PONG\r\n")
	p.Hang()
	f.CloseConns()
	c.wantSilence()
	p.Restore()
	c.wantFIN()
}

func TestProxy_DropIdle_SilentForGood(t *testing.T) {
	f, p := fakeBehindProxy(t)
	c := dialRaw(t, p.Addr())
	c.do("INCR n", ":1\r\n")
	if n := p.DropIdle(); n != 1 {
		t.Errorf("DropIdle() = %d, want 1", n)
	}
	c.send("INCR n")
	c.wantSilence()
	dialRaw(t, p.Addr()).do("INCR n", ":2\r\n") // only this one arrived

	// Neither faults, nor healing, nor the server's end can be seen through a NAT
	// that has forgotten the connection.
	f.CloseConns()
	p.Reset()
	p.Cut()
	p.Refuse()
	p.Restore()
	c.send("INCR n")
	c.wantSilence()
	if s := p.Stats(); s.SilentConns != 1 || s.LiveConns != 0 {
		t.Errorf("%d silent, %d live, want 1, 0", s.SilentConns, s.LiveConns)
	}
	if n := p.DropIdle(); n != 0 {
		t.Errorf("second DropIdle() = %d, want 0", n)
	}
	_ = c.conn.Close()
	eventually(t, "the client's end is noticed", func() bool { return p.Stats().SilentConns == 0 })
	if n := f.Executed("incr"); n != 2 {
		t.Errorf("%d INCR executed, want 2", n)
	}
}

func TestProxy_CutAfterRequest_ExecutedOnceReplyLost(t *testing.T) {
	f, p := fakeBehindProxy(t)
	p.Match("incr")
	p.CutAfterRequest(2)
	rdb := bare(t, p.Addr()) // its handshake does not match
	for i := range 3 {
		err := rdb.Incr(t.Context(), "n").Err()
		if lost := i < 2; (err != nil) != lost {
			t.Fatalf("INCR %d: %v", i+1, err)
		}
		if n := f.Executed("incr"); n != i+1 {
			t.Fatalf("INCR %d: executed %d times in all", i+1, n)
		}
	}
	if n := p.Stats().Cuts; n != 2 {
		t.Errorf("cuts = %d, want 2", n)
	}
}

func TestProxy_CutAfterRequest_LongPipelineIsExecutedToTheEnd(t *testing.T) {
	Leaks(t)
	s := StartServer(t)
	p := NewProxy(t, s.Addr())
	c := dialRaw(t, p.Addr())
	c.do("PING", "+PONG\r\n")
	// The server takes a pipeline in portions of 16 KiB and answers each before the
	// next. BITCOUNT makes a portion last long enough for a cut to come in between.
	s.Do("SETRANGE", "big", 1<<20, "x")
	p.Match("pipelined-key")
	p.CutAfterRequest(1)
	const n = 1300 // 50 KiB
	c.send(strings.Repeat("BITCOUNT big\r\nINCR pipelined-key\r\n", n-1) + "INCR pipelined-key")
	c.wantFIN()
	if got := s.Do("GET", "pipelined-key"); got != fmt.Sprint(n) {
		t.Fatalf("%v commands executed, want all %d", got, n)
	}
}

// TestProxy_CutAfterRequest_ClientSeesTheCutAfterTheLastCommand: the first reply of
// a slow pipeline comes long before its last command has run.
func TestProxy_CutAfterRequest_ClientSeesTheCutAfterTheLastCommand(t *testing.T) {
	f, p := fakeBehindProxy(t)
	f.OnCommand(func(*FakeConn, []string) Action {
		if f.Executed("incr") > 0 {
			time.Sleep(20 * time.Millisecond)
		}
		return Handle
	})
	p.CutAfterRequest(1)
	c := dialRaw(t, p.Addr())
	c.send("INCR n\r\nINCR n\r\nINCR n")
	c.wantFIN()
	if n := f.Executed("incr"); n != 3 {
		t.Errorf("%d commands had run when the client was cut, want 3", n)
	}
}

func TestProxy_CutAfterRequest_BlockingCommandIsAwaited(t *testing.T) {
	f, p := fakeBehindProxy(t)
	p.CutAfterRequest(1)
	c := dialRaw(t, p.Addr())
	c.send("BLPOP q 0")
	c.wantSilence()
	dialRaw(t, f.Addr()).do("LPUSH q x", ":1\r\n")
	c.wantFIN()
	if f.Executed("blpop") != 1 {
		t.Error("BLPOP was cut off before it had an element")
	}
}

func TestProxy_CutBeforeForward_NeverExecuted(t *testing.T) {
	f, p := fakeBehindProxy(t)
	p.Match("INCR")
	p.CutBeforeForward(1)
	c := dialRaw(t, p.Addr())
	c.do("PING", "+PONG\r\n")
	c.send("incr n")
	c.wantFIN()
	dialRaw(t, p.Addr()).do("INCR n", ":1\r\n")
	if n := f.Executed("incr"); n != 1 {
		t.Fatalf("executed %d times, want 1", n)
	}
}

func TestProxy_CountedFaults_CancelledByZeroAndRestore(t *testing.T) {
	_, p := fakeBehindProxy(t)
	p.CutBeforeForward(1)
	p.CutBeforeForward(0)
	c := dialRaw(t, p.Addr())
	c.do("PING", "+PONG\r\n")
	p.CutBeforeForward(1)
	p.CutAfterRequest(1)
	p.CutMidReply(1)
	p.Garbage(1)
	p.Restore()
	c.do("PING", "+PONG\r\n")
}

func TestProxy_CutMidReply_HalfThenFIN(t *testing.T) {
	_, p := fakeBehindProxy(t)
	p.Match("echo")
	p.CutMidReply(1)
	c := dialRaw(t, p.Addr())
	c.do("PING", "+PONG\r\n")
	c.send("ECHO 0123456789") // reply: $10\r\n0123456789\r\n, 17 bytes
	c.want("$10\r\n012")
	c.wantFIN()
}

func TestProxy_CutMidReply_WithoutMatchHitsMessages(t *testing.T) {
	f, p := fakeBehindProxy(t)
	c := dialRaw(t, p.Addr())
	c.do("SUBSCRIBE ch", "*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n")
	p.CutMidReply(1)
	dialRaw(t, f.Addr()).do("PUBLISH ch 12345", ":1\r\n")
	message := "*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$5\r\n12345\r\n"
	c.want(message[:len(message)/2])
	c.wantFIN()
}

func TestProxy_CountedFaults_TellWhatIsLeft(t *testing.T) {
	f, p := fakeBehindProxy(t)
	p.Match("echo")
	for name, fault := range map[string]func(int) int{
		"CutAfterRequest": p.CutAfterRequest, "CutBeforeForward": p.CutBeforeForward,
		"CutMidReply": p.CutMidReply, "Garbage": p.Garbage,
	} {
		if left := fault(-1); left != 0 {
			t.Errorf("%s: %d are left before any", name, left)
		}
		if left := fault(3); left != 0 {
			t.Errorf("%s: %d are left of none", name, left)
		}
		c := dialRaw(t, p.Addr())
		c.send("ECHO 0123456789")
		// Whatever the fault does, it has happened when the first byte or the end comes.
		_, _ = c.r.ReadByte()
		if left := fault(5); left != 2 {
			t.Errorf("%s: %d are left of 3 after one", name, left)
		}
		if left := fault(0); left != 5 {
			t.Errorf("%s: %d are left of 5", name, left)
		}
	}
	if n := p.Retarget("127.0.0.1:1"); n != f.Addr() {
		t.Errorf("Retarget returned %s, want %s", n, f.Addr())
	}
	if n := p.Retarget(f.Addr()); n != "127.0.0.1:1" {
		t.Errorf("Retarget returned %s", n)
	}
}

func TestProxy_Match_FindsWhatTwoChunksShare(t *testing.T) {
	f, p := fakeBehindProxy(t)
	p.Match("needle")
	p.CutAfterRequest(1)
	c := dialRaw(t, p.Addr())
	c.do("PING", "+PONG\r\n")
	up := p.Stats().BytesUp
	if _, err := io.WriteString(c.conn, "ECHO NEE"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first half is a chunk of its own", func() bool { return p.Stats().BytesUp >= up+8 }) // PING may have been counted since
	c.send("dle")
	c.wantFIN()
	if f.Executed("echo") != 1 {
		t.Error("ECHO was not executed")
	}
}

func TestProxy_Garbage_NotRESPConnectionStays(t *testing.T) {
	_, p := fakeBehindProxy(t)
	c := dialRaw(t, p.Addr())
	p.Garbage(1)
	c.do("PING", proxyGarbage)
	c.do("PING", "+PONG\r\n")
	if n := p.Stats().GarbledCount; n != 1 {
		t.Errorf("garbled = %d, want 1", n)
	}
	p.Match("echo")
	p.Garbage(1)
	rdb := bare(t, p.Addr())
	if err := rdb.Echo(t.Context(), "x").Err(); err == nil || !strings.Contains(err.Error(), "can't parse") {
		t.Errorf("go-redis made of garbage: %v", err)
	}
}

func TestProxy_Delay_AddedToReplies(t *testing.T) {
	_, p := fakeBehindProxy(t)
	c := dialRaw(t, p.Addr())
	c.do("PING", "+PONG\r\n")
	const d = 80 * time.Millisecond
	p.Delay(d)
	start := time.Now()
	c.do("PING", "+PONG\r\n")
	if took := time.Since(start); took < d {
		t.Errorf("round trip took %v, want at least %v", took, d)
	}
	p.Delay(time.Hour)
	c.send("PING")
	c.wantSilence()
	p.Restore() // wakes what waits
	c.want("+PONG\r\n")
}

func TestProxy_Bandwidth_SharedByAllConnections(t *testing.T) {
	_, p := fakeBehindProxy(t)
	a, b := dialRaw(t, p.Addr()), dialRaw(t, p.Addr())
	a.do("PING", "+PONG\r\n")
	b.do("PING", "+PONG\r\n")
	p.Bandwidth(20_000)
	word := strings.Repeat("x", 1000)
	reply := fmt.Sprintf("$%d\r\n%s\r\n", len(word), word)
	start := time.Now()
	var both sync.WaitGroup
	for _, c := range []*rawClient{a, b} {
		both.Go(func() { c.do("ECHO "+word, reply) })
	}
	both.Wait()
	// 2 x 1 kB down after at least 1 kB up, at 20 kB/s.
	if took := time.Since(start); took < 140*time.Millisecond {
		t.Errorf("took %v, want at least 140ms", took)
	}
	p.Bandwidth(1)
	a.send("ECHO " + word)
	a.wantSilence()
	p.Bandwidth(0) // wakes what waits
	a.want(reply)
}

func TestProxy_AcceptAndClose_NewOnesEndLiveOnesStay(t *testing.T) {
	_, p := fakeBehindProxy(t)
	live := dialRaw(t, p.Addr())
	live.do("PING", "+PONG\r\n")
	p.AcceptAndClose()
	dialRaw(t, p.Addr()).wantFIN()
	live.do("PING", "+PONG\r\n")
	p.Refuse()
	p.AcceptAndClose() // opens the listener
	dialRaw(t, p.Addr()).wantFIN()
	p.Restore()
	dialRaw(t, p.Addr()).do("PING", "+PONG\r\n")
}

func TestProxy_AcceptAndHang_NewOnesWaitLiveOnesStay(t *testing.T) {
	f, p := fakeBehindProxy(t)
	live := dialRaw(t, p.Addr())
	live.do("PING", "+PONG\r\n")
	p.AcceptAndHang()
	fresh := dialRaw(t, p.Addr())
	fresh.send("PING")
	fresh.wantSilence()
	live.do("PING", "+PONG\r\n")
	if n := f.Dials(); n != 1 {
		t.Errorf("the server saw %d dials, want 1", n)
	}
	p.Restore()
	fresh.want("+PONG\r\n")
}

func TestProxy_AcceptAndHang_WhatIsLostMeanwhileNeverReachesTheServer(t *testing.T) {
	f, p := fakeBehindProxy(t)
	p.AcceptAndHang()
	lost := dialRaw(t, p.Addr())
	lost.send("PING")
	eventually(t, "the connection is accepted", func() bool { return p.Stats().LiveConns == 1 })
	if n := p.DropIdle(); n != 1 {
		t.Fatalf("DropIdle() = %d, want 1", n)
	}
	p.Restore()
	lost.wantSilence()
	dialRaw(t, p.Addr()).do("PING", "+PONG\r\n")
	if n := f.Dials(); n != 1 {
		t.Errorf("the server saw %d dials, want 1", n)
	}
}

func TestProxy_Retarget_NewOnesGoThere(t *testing.T) {
	f, p := fakeBehindProxy(t)
	other := NewFakeServer(t)
	old := dialRaw(t, p.Addr())
	old.do("INCR n", ":1\r\n")
	p.Retarget(other.Addr())
	p.Restore() // is not undone by healing
	dialRaw(t, p.Addr()).do("INCR n", ":1\r\n")
	old.do("INCR n", ":2\r\n")
	if f.Executed("incr") != 2 || other.Executed("incr") != 1 {
		t.Errorf("executed %d and %d, want 2 and 1", f.Executed("incr"), other.Executed("incr"))
	}
}

func TestProxy_TargetDown_ClientIsReset(t *testing.T) {
	f, p := fakeBehindProxy(t)
	f.Kill()
	// The reset may even overtake the dial's own return.
	if conn, err := net.Dial("tcp", p.Addr()); err == nil {
		c := &rawClient{t: t, conn: conn.(*net.TCPConn), r: bufio.NewReader(conn)}
		c.wantRST()
		conn.Close()
	}
	eventually(t, "the reset connection is not live", func() bool { return p.Stats().LiveConns == 0 })
	if s := p.Stats(); s.DialErrors != 1 || s.Resets != 0 || s.LiveConns != 0 {
		t.Errorf("stats = %+v", s)
	}
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	dialRaw(t, p.Addr()).do("PING", "+PONG\r\n")
}

func TestProxy_ServerEnds_ClientSeesTheSameEnd(t *testing.T) {
	Leaks(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	p := NewProxy(t, ln.Addr().String())
	for _, reset := range []bool{false, true} {
		c := dialRaw(t, p.Addr())
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.send("") // the connection must stand, or the proxy's dial fails instead
		if _, err := io.ReadFull(server, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		if reset {
			_ = server.(*net.TCPConn).SetLinger(0)
		}
		_ = server.Close()
		if reset {
			c.wantRST()
		} else {
			c.wantFIN()
		}
	}
}

func TestProxy_Close_InAnyState(t *testing.T) {
	for name, fault := range map[string]func(*Proxy){
		"healthy":         func(*Proxy) {},
		"refusing":        func(p *Proxy) { p.Refuse() },
		"hanging":         func(p *Proxy) { p.Hang() },
		"silent":          func(p *Proxy) { p.DropIdle() },
		"accept and hang": func(p *Proxy) { p.AcceptAndHang() },
		"delaying":        func(p *Proxy) { p.Delay(time.Hour) },
		"slow":            func(p *Proxy) { p.Bandwidth(1) },
	} {
		t.Run(name, func(t *testing.T) {
			f, p := fakeBehindProxy(t)
			c := dialRaw(t, p.Addr())
			c.do("PING", "+PONG\r\n")
			fault(p)
			_, _ = io.WriteString(c.conn, "PING\r\n")
			if conn, err := net.Dial("tcp", p.Addr()); err == nil {
				defer conn.Close()
			}
			start := time.Now()
			for range 2 {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("Close took %v", took)
			}
			// Afterwards every method does nothing.
			p.Restore()
			p.Hang()
			p.Refuse()
			if p.Reset()+p.Cut()+p.DropIdle() != 0 {
				t.Error("a closed proxy has connections")
			}
			if conn, err := net.Dial("tcp", p.Addr()); err == nil {
				conn.Close()
				t.Error("a closed proxy accepts dials")
			}
			eventually(t, "the server side is closed", func() bool { return f.Conns() == 0 })
		})
	}
}

func TestProxy_RestoreWithPortTaken_WaitsForIt(t *testing.T) {
	_, p := fakeBehindProxy(t)
	p.Refuse()
	squatter, err := net.Listen("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	restored := make(chan struct{})
	go func() {
		defer close(restored)
		p.Restore()
	}()
	select {
	case <-restored:
		t.Fatal("restored on a port that is taken")
	case <-time.After(silent):
	}
	_ = squatter.Close()
	<-restored
	dialRaw(t, p.Addr()).do("PING", "+PONG\r\n")
}

func TestProxy_CloseWhileRestoreWaits_ReturnsAtOnce(t *testing.T) {
	_, p := fakeBehindProxy(t)
	p.Refuse()
	squatter, err := net.Listen("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()
	restored := make(chan struct{})
	go func() {
		defer close(restored)
		p.Restore()
	}()
	start := time.Now()
	_ = p.Close()
	<-restored
	if took := time.Since(start); took > time.Second {
		t.Errorf("took %v", took)
	}
}

func TestStartProxy_Errors(t *testing.T) {
	if p, err := StartProxy("127.0.0.1:not-a-port", "127.0.0.1:1"); err == nil {
		_ = p.Close()
		t.Fatal("listened on a bad address")
	}
}

func TestNewProxyAddr_ListensThere(t *testing.T) {
	Leaks(t)
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	if p := NewProxyAddr(t, addr, "127.0.0.1:1"); p.Addr() != addr {
		t.Fatalf("listens on %s, want %s", p.Addr(), addr)
	}
}

func TestProxyStats_PeakDials(t *testing.T) {
	start := time.Now()
	at := func(ms ...int) (s ProxyStats) {
		for _, m := range ms {
			s.DialTimes = append(s.DialTimes, start.Add(time.Duration(m)*time.Millisecond))
		}
		return s
	}
	for _, tc := range []struct {
		stats  ProxyStats
		window time.Duration
		want   int
	}{
		{at(), time.Second, 0},
		{at(0), time.Second, 1},
		{at(0, 999), time.Second, 2},
		{at(0, 1000), time.Second, 1}, // half-open: a second holds only one of them
		{at(0, 500, 1000, 1400, 1499, 3000), time.Second, 4},
		{at(0, 0, 0), time.Nanosecond, 3},
		{at(0, 1, 2), 0, 1},
	} {
		if got := tc.stats.PeakDials(tc.window); got != tc.want {
			t.Errorf("PeakDials(%v) of %v = %d, want %d", tc.window, tc.stats.DialTimes, got, tc.want)
		}
	}
}

// TestProxy_Stress switches every fault at random under load: nothing may race,
// hang or leak, no INCR may run more often than it was sent, and after a Restore
// all is well.
func TestProxy_Stress(t *testing.T) {
	f, p := fakeBehindProxy(t)
	ctx, stop := context.WithCancel(t.Context())
	var sent [4]int
	var load sync.WaitGroup
	for i := range sent {
		rdb := bare(t, p.Addr(), func(o *redis.Options) {
			o.PoolSize = 2
			o.ReadTimeout = 20 * time.Millisecond
			o.DialTimeout = 20 * time.Millisecond
		})
		load.Go(func() {
			for ctx.Err() == nil {
				sent[i]++
				_ = rdb.Incr(ctx, "n").Err()
			}
		})
	}
	faults := []func(){
		p.Refuse, p.Restore, p.AcceptAndClose, p.AcceptAndHang, p.Restore,
		func() { p.Reset() }, func() { p.Cut() }, func() { p.Hang() }, func() { p.DropIdle() },
		func() { p.CutAfterRequest(1) }, func() { p.CutBeforeForward(1) }, func() { p.CutMidReply(1) },
		func() { p.Garbage(1) }, func() { p.Match("incr") }, func() { p.Match("") },
		func() { p.Delay(time.Millisecond) }, func() { p.Bandwidth(10_000) }, func() { p.Retarget(f.Addr()) },
		func() { p.Stats() },
	}
	var switches sync.WaitGroup
	for range 2 {
		switches.Go(func() {
			for range 150 {
				faults[rand.IntN(len(faults))]()
				time.Sleep(time.Millisecond) // lets the load meet the fault
			}
		})
	}
	switches.Wait()
	stop()
	load.Wait()
	total := 0
	for _, n := range sent {
		total += n
	}
	p.Restore()
	p.Match("")
	dialRaw(t, p.Addr()).do("PING", "+PONG\r\n")
	if n := f.Executed("incr"); n > total {
		t.Errorf("%d INCR executed, but only %d sent", n, total)
	}
}
