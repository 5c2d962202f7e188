package redialtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// pipeClient returns a client of a fake server without a listener.
func pipeClient(t *testing.T, f *FakeServer, change ...func(*redis.Options)) *redis.Client {
	t.Helper()
	return bare(t, f.Addr(), append(change, func(o *redis.Options) { o.Dialer = f.Dial })...)
}

func resp2(o *redis.Options) { o.Protocol = 2 }
func resp3(o *redis.Options) { o.Protocol = 3 }

func TestFakeServer_Commands(t *testing.T) {
	for name, protocol := range map[string]func(*redis.Options){"RESP2": resp2, "RESP3": resp3} {
		t.Run(name, func(t *testing.T) {
			Leaks(t)
			f := NewFakeServer(t)
			rdb := bare(t, f.Addr(), protocol)
			for _, tc := range []struct {
				cmd  string
				want any // an error as its text
			}{
				{"PING", "PONG"},
				{"PING hello", "hello"},
				{"ECHO hello", "hello"},
				{"SELECT 1", "OK"},
				{"AUTH secret", "OK"},
				{"CLIENT SETNAME x", "OK"},
				{"GET k", redis.Nil.Error()},
				{"SET k v", "OK"},
				{"GET k", "v"},
				{"SET k v NX", "ERR syntax error: FakeServer knows no options of SET"},
				{"INCR k", "ERR value is not an integer or out of range"},
				{"INCR n", int64(1)},
				{"INCR n", int64(2)},
				{"DEL k n none", int64(2)},
				{"LPUSH l b a", int64(2)},
				{"RPUSH l c", int64(3)},
				{"LLEN l", int64(3)},
				{"BLPOP none l 0", []any{"l", "a"}}, // LPUSH pushes one after the other, so the last is first
				{"BLPOP none 0.001", redis.Nil.Error()},
				{"EXEC", "ERR EXEC without MULTI"},
				{"GET", "ERR wrong number of arguments for 'get' command"},
				{"NOSUCH x", "ERR unknown command 'nosuch'"},
				{"HELLO 9", "NOPROTO unsupported protocol version"},
				{"PUBLISH ch x", int64(0)},
			} {
				var args []any
				for word := range strings.FieldsSeq(tc.cmd) {
					args = append(args, word)
				}
				got, err := rdb.Do(t.Context(), args...).Result()
				if err != nil {
					got = err.Error()
				}
				if list, ok := tc.want.([]any); ok {
					if gotList, _ := got.([]any); !slices.Equal(gotList, list) {
						t.Errorf("%s = %v, want %v", tc.cmd, got, list)
					}
				} else if got != tc.want {
					t.Errorf("%s = %v, want %v", tc.cmd, got, tc.want)
				}
			}
			if n := f.Executed("incr"); n != 3 {
				t.Errorf("INCR executed %d times, want 3: one that fails counts too", n)
			}
		})
	}
}

func TestFakeServer_Transaction_RunsAtExec(t *testing.T) {
	Leaks(t)
	f := NewFakeServer(t)
	var duringQueue int
	f.OnCommand(func(_ *FakeConn, args []string) Action {
		if strings.EqualFold(args[0], "exec") {
			duringQueue = f.Executed("incr")
		}
		return Handle
	})
	rdb := bare(t, f.Addr())
	cmds, err := rdb.TxPipelined(t.Context(), func(pipe redis.Pipeliner) error {
		pipe.Incr(t.Context(), "n")
		pipe.Incr(t.Context(), "n")
		return nil
	})
	if err != nil || len(cmds) != 2 || cmds[1].(*redis.IntCmd).Val() != 2 {
		t.Fatalf("%v, %v", cmds, err)
	}
	if duringQueue != 0 || f.Executed("incr") != 2 || f.Executed("exec") != 1 {
		t.Errorf("executed %d before EXEC and %d in all, EXEC %d", duringQueue, f.Executed("incr"), f.Executed("exec"))
	}
	_, err = rdb.TxPipelined(t.Context(), func(pipe redis.Pipeliner) error {
		pipe.Incr(t.Context(), "n")
		pipe.Do(t.Context(), "NOSUCH")
		return nil
	})
	if err == nil || f.Executed("incr") != 2 {
		t.Errorf("a bad transaction: %v, %d executed", err, f.Executed("incr"))
	}
}

func TestFakeServer_PubSub(t *testing.T) {
	for name, protocol := range map[string]func(*redis.Options){"RESP2": resp2, "RESP3": resp3} {
		t.Run(name, func(t *testing.T) {
			Leaks(t)
			f := NewFakeServer(t)
			rdb := bare(t, f.Addr(), protocol)
			sub := rdb.Subscribe(t.Context(), "a", "b")
			defer sub.Close()
			for range 2 {
				if _, err := sub.ReceiveTimeout(t.Context(), soon); err != nil {
					t.Fatal(err)
				}
			}
			if n, err := rdb.Publish(t.Context(), "b", "hello").Result(); n != 1 || err != nil {
				t.Fatalf("PUBLISH = %d, %v", n, err)
			}
			msg, err := sub.ReceiveMessage(t.Context())
			if err != nil || msg.Channel != "b" || msg.Payload != "hello" {
				t.Fatalf("message %v, %v", msg, err)
			}
			if err := sub.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := sub.ReceiveTimeout(t.Context(), soon); err != nil {
				t.Fatalf("the PONG of a subscriber: %v", err)
			}
			if err := sub.Unsubscribe(t.Context(), "b"); err != nil {
				t.Fatal(err)
			}
			if _, err := sub.ReceiveTimeout(t.Context(), soon); err != nil {
				t.Fatal(err)
			}
			if n, _ := rdb.Publish(t.Context(), "b", "hello").Result(); n != 0 {
				t.Errorf("%d subscribers after UNSUBSCRIBE", n)
			}
		})
	}
}

func TestFakeServer_Actions(t *testing.T) {
	for _, tc := range []struct {
		action   Action
		executed int
		reply    string // "" means none
		ends     bool
		after    string // reply to a PING on the same connection
	}{
		{Handle, 1, ":1\r\n", false, "+PONG\r\n"},
		{Drop, 0, "", false, "+PONG\r\n"},
		{ExecuteThenDrop, 1, "", false, "+PONG\r\n"},
		{CloseBeforeExecute, 0, "", true, ""},
		{ExecuteThenClose, 1, "", true, ""},
		{Hang, 0, "", false, ""},
		{Reply("-LOADING busy\r\n"), 0, "-LOADING busy\r\n", false, "+PONG\r\n"},
		{Reply(""), 0, "", false, "+PONG\r\n"},
	} {
		t.Run(string(tc.action), func(t *testing.T) {
			Leaks(t)
			f := NewFakeServer(t)
			f.OnCommand(func(_ *FakeConn, args []string) Action {
				if strings.EqualFold(args[0], "incr") {
					return tc.action
				}
				return Handle
			})
			c := dialRaw(t, f.Addr())
			// In one write: what came before the fault must get its reply.
			c.send("ECHO x\r\nINCR n")
			c.want("$1\r\nx\r\n" + tc.reply)
			switch {
			case tc.ends:
				c.wantFIN()
			case tc.after != "":
				c.do("PING", tc.after)
			default:
				c.send("PING")
				c.wantSilence()
			}
			if n := f.Executed("incr"); n != tc.executed {
				t.Errorf("executed %d times, want %d", n, tc.executed)
			}
		})
	}
}

// TestFakeServer_ClientGivesUp_CommandIsStillExecuted: a client that closes the
// connection does not take back what it sent.
func TestFakeServer_ClientGivesUp_CommandIsStillExecuted(t *testing.T) {
	Leaks(t)
	f := NewFakeServer(t)
	asked, release := make(chan struct{}), make(chan struct{})
	f.OnCommand(func(*FakeConn, []string) Action {
		close(asked)
		<-release
		f.OnCommand(nil)
		return Handle
	})
	c := dialRaw(t, f.Addr())
	c.send("INCR n\r\nINCR n")
	<-asked
	_ = c.conn.CloseWrite()
	close(release)
	c.want(":1\r\n:2\r\n")
	c.wantFIN()
}

func TestFakeServer_ClientGivesUpBLPOP_IsNotExecuted(t *testing.T) {
	Leaks(t)
	f := NewFakeServer(t)
	asked := make(chan struct{})
	f.OnCommand(func(*FakeConn, []string) Action {
		close(asked)
		return Handle
	})
	c := dialRaw(t, f.Addr())
	c.send("BLPOP q 0")
	<-asked
	_ = c.conn.Close()
	eventually(t, "the connection is gone", func() bool { return f.Conns() == 0 })
	f.OnCommand(nil)
	d := dialRaw(t, f.Addr())
	d.do("LPUSH q x", ":1\r\n")
	d.do("LLEN q", ":1\r\n")
	if n := f.Executed("blpop"); n != 0 {
		t.Errorf("executed %d times, want 0", n)
	}
}

func TestFakeServer_HungSubscriber_GetsNoMessages(t *testing.T) {
	Leaks(t)
	f := NewFakeServer(t)
	f.OnCommand(func(_ *FakeConn, args []string) Action {
		if args[0] == "FREEZE" {
			return Hang
		}
		return Handle
	})
	c := dialRaw(t, f.Addr())
	c.do("SUBSCRIBE ch", "*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n")
	c.send("FREEZE")
	c.wantSilence()
	dialRaw(t, f.Addr()).do("PUBLISH ch x", ":1\r\n")
	c.wantSilence()
}

func TestFakeServer_HookRefusesHello_ClientFallsBack(t *testing.T) {
	Leaks(t)
	f := NewFakeServer(t)
	f.OnCommand(func(_ *FakeConn, args []string) Action {
		if strings.EqualFold(args[0], "hello") {
			return Reply("-ERR unknown command 'HELLO'\r\n")
		}
		return Handle
	})
	if err := bare(t, f.Addr()).Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if f.Executed("hello") != 0 || f.Executed("set") != 1 {
		t.Errorf("HELLO executed %d times, SET %d", f.Executed("hello"), f.Executed("set"))
	}
}

func TestFakeServer_KillAndStart(t *testing.T) {
	for name, newFake := range map[string]func(*testing.T) (*FakeServer, *redis.Client){
		"TCP": func(t *testing.T) (*FakeServer, *redis.Client) {
			f := NewFakeServer(t)
			return f, bare(t, f.Addr())
		},
		"pipe": func(t *testing.T) (*FakeServer, *redis.Client) {
			f := NewFakeServerPipe(t)
			return f, pipeClient(t, f)
		},
	} {
		t.Run(name, func(t *testing.T) {
			Leaks(t)
			f, rdb := newFake(t)
			if err := rdb.Incr(t.Context(), "n").Err(); err != nil {
				t.Fatal(err)
			}
			f.Kill()
			if n := f.Conns(); n != 0 {
				t.Errorf("%d connections survived", n)
			}
			_ = rdb.Ping(t.Context()).Err() // throws the dead pooled connection away
			err := rdb.Ping(t.Context()).Err()
			if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.Errno(10061)) {
				t.Errorf("PING while down: %v, want a refused dial", err)
			}
			for range 2 {
				if err := f.Start(); err != nil {
					t.Fatal(err)
				}
			}
			if n, err := rdb.Incr(t.Context(), "n").Result(); n != 2 || err != nil {
				t.Errorf("INCR after Start = %d, %v: data must survive", n, err)
			}
			dials := f.Dials()
			if n := f.CloseConns(); n == 0 {
				t.Error("CloseConns found nothing to close")
			}
			_ = rdb.Ping(t.Context()).Err()
			if err := rdb.Ping(t.Context()).Err(); err != nil || f.Dials() <= dials {
				t.Errorf("PING after CloseConns: %v with %d dials, before %d", err, f.Dials(), dials)
			}
		})
	}
}

func TestFakeServer_ConnIdentityAndSend(t *testing.T) {
	Leaks(t)
	f := NewFakeServer(t)
	f.OnCommand(func(c *FakeConn, args []string) Action {
		switch args[0] {
		case "WHO":
			return Reply(fmt.Sprintf(":%d\r\n", c.ID()))
		case "BYE":
			c.Close()
		case "SPLIT":
			c.Send("+first")
			return Reply(" half\r\n")
		}
		return Handle
	})
	a, b := dialRaw(t, f.Addr()), (*rawClient)(nil)
	a.do("WHO", ":1\r\n")
	b = dialRaw(t, f.Addr())
	b.do("WHO", ":2\r\n")
	b.do("SPLIT", "+first half\r\n")
	b.send("BYE")
	if err := b.readErr(soon); errors.Is(err, context.DeadlineExceeded) {
		t.Error("Close by the hook did not end the connection")
	}
	a.do("QUIT", "+OK\r\n")
	a.wantFIN()
}

func TestFakeServer_Dial_ContextEnded(t *testing.T) {
	Leaks(t)
	f := NewFakeServerPipe(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Dial(ctx, "tcp", f.Addr()); !errors.Is(err, context.Canceled) {
		t.Fatalf("Dial with a cancelled context: %v", err)
	}
}

func TestFakeServer_BadInput_EndsTheConnectionOnly(t *testing.T) {
	Leaks(t)
	f := NewFakeServer(t)
	for _, bad := range []string{"*x", "*-2", "*99999999", "*1\r\n+x", "*1\r\n$-5", "*1\r\n4"} {
		c := dialRaw(t, f.Addr())
		c.send(bad)
		if err := c.readErr(soon); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q: the connection stays", bad)
		}
	}
	c := dialRaw(t, f.Addr())
	c.send("") // an empty line is nothing
	c.do("PING", "+PONG\r\n")
}

// TestFakeServerPipe_LongPipeline: a pipe has no buffer, so a server that wrote
// while its client writes would block both.
func TestFakeServerPipe_LongPipeline(t *testing.T) {
	Leaks(t)
	f := NewFakeServerPipe(t)
	rdb := pipeClient(t, f)
	const n = 5000
	if _, err := rdb.Pipelined(t.Context(), func(pipe redis.Pipeliner) error {
		for range n {
			pipe.Incr(t.Context(), "n")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := f.Executed("incr"); got != n {
		t.Fatalf("executed %d, want %d", got, n)
	}
}

func TestFakeServerPipe_InBubble_FakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFakeServerPipe(t)
		rdb := pipeClient(t, f, func(o *redis.Options) { o.ReadTimeout = 3 * time.Second })
		if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}

		// A frozen server: exactly the read time-out, in no real time.
		f.OnCommand(func(*FakeConn, []string) Action { return Hang })
		start := time.Now()
		if err := rdb.Get(t.Context(), "k").Err(); err == nil {
			t.Error("GET from a frozen server succeeded")
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("GET took %v, want 3s", took)
		}
		f.OnCommand(nil)

		// BLPOP waits for an hour, then for a push.
		start = time.Now()
		if err := rdb.BLPop(t.Context(), time.Hour, "q").Err(); !errors.Is(err, redis.Nil) {
			t.Errorf("BLPOP without data: %v", err)
		}
		if took := time.Since(start); took != time.Hour {
			t.Errorf("BLPOP took %v, want 1h", took)
		}
		var popped []string
		var wg sync.WaitGroup
		wg.Go(func() { popped, _ = rdb.BLPop(t.Context(), 0, "q").Result() })
		synctest.Wait()
		if err := rdb.LPush(t.Context(), "q", "x").Err(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if !slices.Equal(popped, []string{"q", "x"}) {
			t.Errorf("BLPOP = %v", popped)
		}

		// A BLPOP cut off by the end of its connection is not executed.
		before := f.Executed("blpop")
		wg.Go(func() {
			if err := rdb.BLPop(t.Context(), 0, "q").Err(); !errors.Is(err, io.EOF) {
				t.Errorf("BLPOP cut off: %v", err)
			}
		})
		synctest.Wait()
		f.CloseConns()
		wg.Wait()
		if n := f.Executed("blpop"); n != before {
			t.Errorf("%d BLPOP executed after its client was gone", n-before)
		}
		_ = rdb.Close()
		time.Sleep(2 * time.Second) // fake: go-redis' own goroutines wind up
	})
}
