package command

import (
	"bytes"
	"context"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// recorder is a server that answers every request, and keeps those that are no handshake.
type recorder struct {
	mu       sync.Mutex
	requests [][]byte // guarded by mu
}

func (r *recorder) dial(context.Context, string, string) (net.Conn, error) {
	c := &recorderConn{recorder: r}
	c.wrote.L = &c.mu
	return c, nil
}

// take returns the requests since it was called last.
func (r *recorder) take() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := r.requests
	r.requests = nil
	return taken
}

// recorderConn is a connection to one.
type recorderConn struct {
	net.Conn // nil: everything that is called is implemented
	recorder *recorder

	mu      sync.Mutex
	wrote   sync.Cond
	replies bytes.Buffer // guarded by mu
	closed  bool         // guarded by mu
}

func (c *recorderConn) Write(p []byte) (int, error) {
	var buf [16]byte
	reply := "+OK\r\n"
	if string(Head(p, &buf)) == "hello" {
		reply = "*2\r\n$5\r\nproto\r\n:2\r\n"
	} else {
		c.recorder.mu.Lock()
		c.recorder.requests = append(c.recorder.requests, bytes.Clone(p))
		c.recorder.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replies.WriteString(reply)
	c.wrote.Signal()
	return len(p), nil
}

func (c *recorderConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.replies.Len() == 0 {
		if c.closed {
			return 0, io.EOF
		}
		c.wrote.Wait()
	}
	return c.replies.Read(p)
}

func (c *recorderConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.wrote.Broadcast()
	return nil
}

func (c *recorderConn) SetDeadline(time.Time) error      { return nil }
func (c *recorderConn) SetReadDeadline(time.Time) error  { return nil }
func (c *recorderConn) SetWriteDeadline(time.Time) error { return nil }
func (c *recorderConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *recorderConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// The size of a command is that of what go-redis writes, and so is how many of a
// batch were delivered when a number of bytes were.
func FuzzWireSize(f *testing.F) {
	f.Add("echo", "text", []byte("bytes"), int64(-1), uint64(7), 0.1, true, int64(0), 30)
	f.Add("", "", []byte(nil), int64(math.MinInt64), uint64(math.MaxUint64), math.Inf(-1), false, int64(math.MaxInt64), 0)
	f.Add("set", strings.Repeat("x", 10_000), []byte{0, '\r', '\n'}, int64(9), uint64(10), -1e300, true, int64(-1), 100)
	f.Add("x", "\xff\u00e4", []byte("$3\r\n"), int64(99), uint64(100), 5e-324, true, int64(1<<40), math.MaxInt)
	rec := &recorder{}
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", Dialer: rec.dial, Protocol: 2,
		DisableIdentity: true, PoolSize: 1, MaxRetries: -1, PipelinePoolSize: -1, WriteBufferSize: 1 << 20})
	f.Cleanup(func() { _ = rdb.Close() })
	f.Fuzz(func(t *testing.T, name, s string, b []byte, i int64, u uint64, fl float64, yes bool, nanos int64, sent int) {
		if len(name)+4*len(s)+len(b) > 100_000 {
			return // must fit into one write
		}
		ctx := context.Background()
		at := time.Unix(0, nanos).UTC()
		args := []any{"x" + name, s, b, i, int32(i), int8(i), u, uint16(u), fl, float32(fl), yes, time.Duration(i), at, nil}
		ends := []int{0} // of each prefix of the batch
		var batch []redis.Cmder
		for n := 1; n <= len(args); n++ {
			cmd := redis.NewCmd(ctx, args[:n]...)
			_ = rdb.Process(ctx, cmd)
			requests := rec.take()
			if len(requests) != 1 {
				t.Fatalf("%d writes for %q", len(requests), args[:n])
			}
			size, ok := Size(cmd.Args())
			if !ok || size != len(requests[0]) {
				t.Fatalf("%d, %v for %q", size, ok, requests[0])
			}
			batch = append(batch, cmd)
			ends = append(ends, ends[len(ends)-1]+size)
		}
		want := 0
		for want < len(batch) && ends[want+1] <= sent {
			want++
		}
		if got := Delivered(batch, sent); got != want {
			t.Fatalf("%d bytes deliver %d, not %d; the commands end at %d", sent, want, got, ends)
		}
	})
}
