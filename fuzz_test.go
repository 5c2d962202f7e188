package redial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/wire"
)

// Whatever reads bytes of a server, or settings of a user, is fuzzed here: run
// go test -fuzz '^FuzzReply$' -fuzztime 5m . and so on, one at a time.

// fuzzLink returns a link of which nothing is started.
func fuzzLink(f *testing.F, idleCheck time.Duration) *link {
	cfg, err := newConfig(nil)
	if err != nil {
		f.Fatal(err)
	}
	cfg.idleCheck = idleCheck
	return deadEnd(newBase(cfg, ""))
}

// scriptedConn delivers what it is given in pieces, then the end of the stream.
type scriptedConn struct {
	net.Conn // nil: everything that is called is implemented
	in       []byte
	piece    int // largest number of bytes read at once
	written  []byte
	closed   bool
}

func (c *scriptedConn) Read(p []byte) (int, error) {
	if c.closed {
		return 0, net.ErrClosed
	}
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.in[:min(len(c.in), c.piece)])
	c.in = c.in[n:]
	return n, nil
}

func (c *scriptedConn) Write(p []byte) (int, error) {
	if c.closed {
		return 0, net.ErrClosed
	}
	c.written = append(c.written, p...)
	return len(p), nil
}

func (c *scriptedConn) LocalAddr() net.Addr              { return noAddr{} }
func (c *scriptedConn) RemoteAddr() net.Addr             { return noAddr{} }
func (c *scriptedConn) Close() error                     { c.closed = true; return nil }
func (c *scriptedConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptedConn) SetWriteDeadline(time.Time) error { return nil }

// The answer to the PING of an idle connection may be any reply, as long as it is complete;
// what else is said reaches go-redis. Otherwise nothing of the caller's request is written.
func FuzzIdleCheck(f *testing.F) {
	f.Add([]byte("+PONG\r\n"), uint8(7))
	f.Add([]byte("+PONG\r\n>2\r\n$10\r\ninvalidate\r\n*0\r\n"), uint8(1))
	f.Add([]byte(">2\r\n$10\r\ninvalidate\r\n*0\r\n+PONG\r\n"), uint8(255))
	f.Add([]byte("+PONG"), uint8(3))
	f.Add([]byte("-LOADING Redis is loading the dataset in memory\r\n"), uint8(50))
	f.Add([]byte("$4\r\nPONG\r\n"), uint8(2))
	f.Add([]byte("*2\r\n$4\r\npong\r\n$0\r\n\r\n"), uint8(9))
	f.Add([]byte("$9223372036854775807\r\n"), uint8(9))
	f.Add([]byte(""), uint8(0))
	l := fuzzLink(f, 1)
	l.transition(StateConnected, CauseAnswered, "test", nil, 1)
	pingRequest := []byte("*1\r\n$4\r\nping\r\n")
	request := []byte("*2\r\n$4\r\nincr\r\n$1\r\nn\r\n")
	f.Fuzz(func(t *testing.T, reply []byte, piece uint8) {
		nc := &scriptedConn{in: bytes.Clone(reply), piece: int(piece) + 1}
		c := l.New(nc, l.Generation())
		for l.clock.Read() <= l.clock.Last() { // that of the system may stand still for a while
		}
		n, err := c.Write(request)
		at, size := firstReply(reply)
		if size == len(reply) && size > 0 && size <= wire.MaxAnswer && err != nil {
			t.Fatalf("%v after %q, which is one reply", err, reply)
		}
		if err == nil {
			if want := string(pingRequest) + string(request); n != len(request) || string(nc.written) != want {
				t.Fatalf("%d, %q was written", n, nc.written)
			}
			want := slices.Concat(reply[:at], reply[at+size:])
			if rest, _ := io.ReadAll(c); size == 0 || !bytes.Equal(rest, want) {
				t.Fatalf("%q are left of %q, want %q", rest, reply, want)
			}
			return
		}
		if err == nil || n != 0 || !bytes.Equal(nc.written, pingRequest) {
			t.Fatalf("%d, %v after %q; %q was written", n, err, reply, nc.written)
		}
		if outcomeOf(err) != notSent || !SafeToRetry(err) || !IsConnectionError(err) {
			t.Fatalf("%v is %d", err, outcomeOf(err))
		}
		if c.Retirement() == nil || !nc.closed {
			t.Fatal("the connection may be used again")
		}
	})
}

// firstReply returns where the first complete reply in b is, behind pushes perhaps. The
// size is 0 when there is none.
func firstReply(b []byte) (at, size int) {
	for {
		var f command.Frame
		n, whole, ok := f.Feed(b[at:])
		switch {
		case !ok || !whole:
			return at, 0
		case f.Kind != '>':
			return at, n
		}
		at += n
	}
}

// What a server says is handed on as it is, unless its first words are that it has
// too many clients.
func FuzzGreeting(f *testing.F) {
	f.Add([]byte("-ERR max number of clients reached\r\n"), uint8(100), 64)
	f.Add([]byte("-ERR max number of clients + 1\r\n"), uint8(100), 64)
	f.Add([]byte("-ERR max number of clients reached\r\n"), uint8(5), 64)
	f.Add([]byte("-ERR unknown command 'HELLO'\r\n+OK\r\n"), uint8(20), 7)
	f.Add([]byte("%1\r\n+proto\r\n:3\r\n"), uint8(1), 1)
	l := fuzzLink(f, DefaultIdleCheck)
	f.Fuzz(func(t *testing.T, greeting []byte, piece uint8, size int) {
		nc := &scriptedConn{in: bytes.Clone(greeting), piece: int(piece) + 1}
		c := l.New(nc, l.Generation())
		buf := make([]byte, 1+(size&0xfff))
		first := greeting[:min(len(greeting), nc.piece, len(buf))]
		var got []byte
		var err error
		for err == nil {
			var n int
			n, err = c.Read(buf)
			got = append(got, buf[:n]...)
		}
		if outcomeOf(err) != unknown || SafeToRetry(err) {
			t.Fatalf("%v is %d", err, outcomeOf(err))
		}
		if bytes.HasPrefix(first, []byte("-ERR "+wire.FullServer)) {
			if len(got) > 0 || !errors.Is(err, wire.ErrMaxClients) || !nc.closed {
				t.Fatalf("%q, %v after %q", got, err, greeting)
			}
			return
		}
		if !bytes.Equal(got, greeting) || !errors.Is(err, io.EOF) {
			t.Fatalf("%q, %v after %q", got, err, greeting)
		}
	})
}

// wireRecorder is a server that answers every request, and keeps them.
type wireRecorder struct {
	mu       sync.Mutex
	requests [][]byte
	reply    func(name string) string // nil, or what to answer to commands that are no handshake
}

func (r *wireRecorder) Dial(context.Context, string, string) (net.Conn, error) {
	return &recorderConn{recorder: r, replies: make(chan []byte, 64), closed: make(chan struct{})}, nil
}

// take returns the requests since it was called last.
func (r *wireRecorder) take() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := r.requests
	r.requests = nil
	return taken
}

type recorderConn struct {
	net.Conn // nil: everything that is called is implemented
	recorder *wireRecorder
	replies  chan []byte
	rest     []byte
	over     bool // the stream ends after rest
	once     sync.Once
	closed   chan struct{}
}

func (c *recorderConn) Write(p []byte) (int, error) {
	var buf [16]byte
	r := c.recorder
	reply := "+OK\r\n"
	switch name := string(command.Head(p, &buf)); {
	case name == "hello":
		reply = "*2\r\n$5\r\nproto\r\n:2\r\n"
	case name == "ping":
		reply = "+PONG\r\n"
	default:
		r.mu.Lock()
		r.requests = append(r.requests, bytes.Clone(p))
		if r.reply != nil {
			reply = r.reply(name)
		}
		r.mu.Unlock()
	}
	select {
	case c.replies <- []byte(reply):
	case <-c.closed:
	}
	return len(p), nil
}

// Read ends the stream after a reply that does not suffice.
func (c *recorderConn) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.over && len(c.replies) == 0 {
			return 0, io.EOF
		}
		select {
		case c.rest = <-c.replies:
			c.over = true
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *recorderConn) Close() error                     { c.once.Do(func() { close(c.closed) }); return nil }
func (c *recorderConn) SetDeadline(time.Time) error      { return nil }
func (c *recorderConn) SetReadDeadline(time.Time) error  { return nil }
func (c *recorderConn) SetWriteDeadline(time.Time) error { return nil }
func (c *recorderConn) LocalAddr() net.Addr              { return noAddr{} }
func (c *recorderConn) RemoteAddr() net.Addr             { return noAddr{} }

type noAddr struct{}

func (noAddr) Network() string { return "none" }
func (noAddr) String() string  { return "not connected" }

// Whatever a server replies to a command that it got, the command is only said to be
// safe to retry when the server said that it did not run it; and it is not sent
// again, unless for the same reason.
func FuzzReply(f *testing.F) {
	for _, reply := range []string{
		":1\r\n", "$-1\r\n", "+OK\r\n", "", "\r\n", "-\r\n", "-ERR\r\n", ":", ":x\r\n", "$5\r\nabc", "*-1\r\n", "*1\r\n*1\r\n:1\r\n",
		"-ERR value is not an integer or out of range\r\n", "-LOADING Redis is loading the dataset in memory\r\n",
		"-READONLY You can't write against a read only replica.\r\n", "-ERR READONLY by a proxy\r\n", "-TRYAGAIN later\r\n",
		"-MASTERDOWN Link with MASTER is down\r\n", "-CLUSTERDOWN The cluster is down\r\n", "-NOREPLICAS Not enough\r\n",
		"-ERR max number of clients reached\r\n", "-NOAUTH Authentication required.\r\n", "-WRONGPASS no\r\n",
		"-EXECABORT Transaction discarded\r\n", "-MOVED 1 127.0.0.1:2\r\n", "-MOVED\r\n", "-ASK 1 x\r\n", "-OOM command not allowed\r\n",
		"-redis: Conn is in a bad state: made up\r\n", "-redis: nil\r\n", "-redis: client is closed\r\n",
		"-ERR user_script: -READONLY You can't write against a read only replica\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n",
		"!11\r\nLOADING now\r\n", ">2\r\n+x\r\n+y\r\n:1\r\n", "_\r\n", "#t\r\n", ",1.5\r\n", "(99\r\n", "=5\r\ntxt:x\r\n", "%1\r\n+a\r\n:1\r\n",
		"|1\r\n+a\r\n:1\r\n:1\r\n", "*9999999\r\n", "$-9\r\n", ":1\r\n:2\r\n",
	} {
		f.Add([]byte(reply))
	}
	var reply string // guarded by rec.mu
	rec := &wireRecorder{reply: func(string) string { return reply }}
	c := NewClient(&redis.Options{Addr: "127.0.0.1:1", Dialer: rec.Dial, Protocol: 2, DisableIdentity: true}, WithGrace(0))
	f.Cleanup(func() { _ = c.Close() })
	if err := c.WaitReady(context.Background()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		rec.mu.Lock()
		reply, rec.requests = string(raw), nil
		rec.mu.Unlock()
		err := c.Incr(FailFast(context.Background()), "n").Err()
		runs := len(rec.take())
		if runs > 1 {
			t.Fatalf("sent %d times: %v", runs, err)
		}
		if runs == 0 {
			if !errors.Is(err, ErrUnavailable) || !SafeToRetry(err) {
				t.Fatalf("not sent: %v", err)
			}
			return
		}
		var e *Error
		switch {
		case err == nil, err == redis.Nil:
			if SafeToRetry(err) || IsConnectionError(err) {
				t.Fatalf("%v after %q", err, raw)
			}
		case isReply(err):
			if IsConnectionError(err) || errors.As(err, &e) {
				t.Fatalf("%T %v after %q", err, err, raw)
			}
			if SafeToRetry(err) && !saysNotRun(err.Error()) {
				t.Fatalf("%v is safe to retry", err)
			}
		default: // the connection is lost, or go-redis cannot make sense of the reply
			if SafeToRetry(err) || IsConnectionError(err) && !errors.Is(err, ErrOutcomeUnknown) {
				t.Fatalf("%T %v after %q", err, err, raw)
			}
		}
	})
}

// saysNotRun reports whether the words of a server mean that it did not run a command.
func saysNotRun(words string) bool {
	if strings.Contains(words, "@user_script:") || strings.Contains(words, "@user_function:") || strings.HasPrefix(words, "ERR Error running script") {
		return false // of a script, which may have done something before
	}
	words = strings.TrimPrefix(words, "ERR ")
	if strings.HasPrefix(words, "NOPERM ACLs rules changed") {
		return false // others of the transaction ran
	}
	for _, w := range []string{"unauthenticated", "command not allowed. If the"} {
		if strings.Contains(words, w) {
			return true
		}
	}
	for _, w := range []string{"LOADING ", "READONLY ", "MASTERDOWN ", "CLUSTERDOWN ", "TRYAGAIN ", "NOREPLICAS ",
		"max number of clients", "NOAUTH ", "WRONGPASS ", "EXECABORT ", "MOVED ", "ASK ", "BUSY ", "UNBLOCKED ", "REDIRECT ",
		"NOPERM ", "DENIED ", "MISCONF ", "OOM ", "NOSCRIPT ", "CROSSSLOT ", "NOCLUSTER ", "ERRCLUSTER ", "NOSUB ", "NOPROTO ",
		"NOTBUSY ", "UNKILLABLE ", "NOMASTERLINK ", "NOTREADY ", "INPROG ", "NOGOODSLAVE ", "unknown command", "unknown subcommand",
		"wrong number of arguments", "Protocol error", "Command not allowed inside a transaction", "Can't execute '",
		"Replica can't interact with the keyspace", "This instance has cluster support disabled", "Can not run script on cluster"} {
		if strings.HasPrefix(words, w) {
			return true
		}
	}
	return false
}

// Errors of any shape are classified without a panic, wrapping changes nothing for the
// better, and what may have run is never safe to retry.
func FuzzOutcome(f *testing.F) {
	f.Add("LOADING x", []byte{0})
	f.Add("READONLY x", []byte{1})
	f.Add("vault: unauthenticated", []byte{1})
	f.Add("EXECABORT x", []byte{1, 20})
	f.Add("redis: Conn is in a bad state", []byte{0, 20})
	for i := range byte(30) {
		f.Add("text", []byte{i})
		f.Add("text", []byte{i, 20, 21, 22})
		f.Add("text", []byte{12, 23, i, 25})
	}
	f.Fuzz(func(t *testing.T, text string, shape []byte) {
		err, mayHaveRun := fuzzError(text, shape[:min(len(shape), 32)])
		o := outcomeOf(err)
		safe, lost := SafeToRetry(err), IsConnectionError(err)
		if err == nil {
			if o != answered || safe || lost {
				t.Fatal("of nil")
			}
			return
		}
		if o > foreign {
			t.Fatalf("%#v is %d", err, o)
		}
		if safe && mayHaveRun {
			t.Fatalf("%T %v is safe to retry", err, err)
		}
		switch o {
		case unknown, partly, repeatable, garbled, foreign:
			if e := asError(err); safe && (e == nil || !e.reads) {
				t.Fatalf("%T %v is %d and safe to retry", err, err, o)
			}
		case refused, denied:
			if !isReply(err) {
				t.Fatalf("%T %v is %d and no reply", err, err, o)
			}
		}
		wrapped := fmt.Errorf("of a caller: %w", err)
		if SafeToRetry(wrapped) && !safe {
			t.Fatalf("%T %v is safe to retry when wrapped", err, err)
		}
		if err != redis.Nil && IsConnectionError(wrapped) != lost {
			t.Fatalf("%T %v is a lost connection, or not, when wrapped", err, err)
		}
		_ = sys.IsTimeout(err)
		_ = judge(err, false)
		if isReply(notReply(err)) && err != redis.Nil {
			t.Fatalf("%T %v is still a reply", err, err)
		}
	})
}

// fuzzError builds an error out of a text and a list of what to make of it, and says
// whether what it is about may have run.
func fuzzError(text string, shape []byte) (err error, mayHaveRun bool) {
	for _, b := range shape {
		switch kind := b % 30; kind {
		case 0:
			err, mayHaveRun = redisError(text), !saysNotRun(text)
		case 1:
			err, mayHaveRun = errors.New(text), !strings.HasPrefix(text, "redis: Conn is in a bad state")
		case 2:
			err, mayHaveRun = io.EOF, true
		case 3:
			err, mayHaveRun = redis.Nil, true
		case 4:
			err, mayHaveRun = redis.ErrPoolTimeout, false
		case 5:
			err, mayHaveRun = redis.ErrClosed, false
		case 6:
			err, mayHaveRun = context.Canceled, true
		case 7:
			err, mayHaveRun = os.ErrDeadlineExceeded, true
		case 8:
			err, mayHaveRun = net.ErrClosed, true
		case 9:
			err, mayHaveRun = syscall.Errno(len(text)), true
		case 10:
			err, mayHaveRun = &net.DNSError{Err: text}, true
		case 11:
			err, mayHaveRun = nil, false
		case 12, 13, 14, 15:
			cause := err
			if cause == nil || asError(cause) != nil { // sockets know nothing of commands
				cause = io.EOF
			}
			p := wire.Phase(kind - 12)
			err, mayHaveRun = &wire.Error{Phase: p, Err: cause}, p > wire.PhaseWrite
		}
		if err == nil {
			continue
		}
		switch b % 30 {
		case 20:
			err = fmt.Errorf("of a hook: %w", err)
		case 21:
			err = &net.OpError{Op: "read", Net: "tcp", Err: err}
		case 22:
			err = os.NewSyscallError("read", err)
		case 23:
			err, mayHaveRun = &Error{kind: ErrUnavailable, Err: err}, false
		case 24:
			err, mayHaveRun = &Error{kind: ErrOutcomeUnknown, Err: err}, true
		case 25: // an application that collects errors
			err, mayHaveRun = errors.Join(err, &Error{kind: ErrOutcomeUnknown, Err: io.EOF}), true
		case 26:
			err = &wire.RetiredError{Cause: err}
		case 27:
			err = &cutShort{context.DeadlineExceeded, err}
		case 28:
			err, mayHaveRun = &Error{kind: ErrOutcomeUnknown, Err: err, reads: true}, false
		case 29:
			err, mayHaveRun = &Error{kind: ErrClosed, Err: err}, false
		}
	}
	return err, mayHaveRun
}

// Any setting is either refused by the name of its option, or such that a client works
// with it.
func FuzzOptions(f *testing.F) {
	for _, d := range []int64{0, 1, -1, math.MinInt64, math.MaxInt64, int64(time.Second), int64(time.Hour), int64(time.Hour) + 1, int64(24 * time.Hour), int64(time.Millisecond)} {
		for _, n := range []int{0, 1, -1, 100, 101, math.MaxInt, math.MinInt} {
			f.Add(d, int64(time.Second), n)
			f.Add(int64(time.Second), d, n)
		}
	}
	f.Fuzz(func(t *testing.T, d1, d2 int64, n int) {
		a, b := time.Duration(d1), time.Duration(d2)
		var valid []Option
		for name, opt := range map[string]Option{
			"WithHeartbeat":       WithHeartbeat(a, b),
			"WithHeartbeatMisses": WithHeartbeatMisses(n),
			"WithGrace":           WithGrace(a),
			"WithMaxWaiting":      WithMaxWaiting(n),
			"WithIdleCheck":       WithIdleCheck(b),
			"WithBackoff":         WithBackoff(constant(a)),
		} {
			cfg, err := newConfig([]Option{opt})
			if (cfg == nil) != (err != nil) {
				t.Fatalf("%s: %v and %v", name, cfg, err)
			}
			if err != nil {
				for line := range strings.Lines(err.Error()) {
					if !strings.HasPrefix(line, "redial: "+name+" ") {
						t.Fatalf("%s: %v", name, err)
					}
				}
				continue
			}
			valid = append(valid, opt)
		}
		cfg, err := newConfig(valid)
		if err != nil {
			t.Fatal(err)
		}
		g := newBase(cfg, "")
		defer g.end()
		if g.tick() <= 0 || g.beat() <= 0 || early(g.beat()) <= 0 || g.tick() > g.beat() {
			t.Fatalf("looks every %v for heartbeats every %v", g.tick(), g.beat())
		}
		if d := cfg.detection(); d <= cfg.interval || d <= cfg.timeout || d > maxHeartbeat*(maxMisses+1) {
			t.Fatalf("detects after %v", d)
		}
		l := deadEnd(g)
		defer l.outage.end()
		l.Measure(time.Duration(max(d1, 0) / wire.ProofRoundTrips))
		if p := l.ProofTimeout(); p <= 0 || p > cfg.timeout {
			t.Fatalf("an idle connection may take %v of %v", p, cfg.timeout)
		}
		if d := nextDelay(cfg.newBackOff()); d < minDelay {
			t.Fatalf("sleeps for %v", d)
		}
	})
}

// A policy may return anything, and an outage have any age: attempts go on, and not
// without a pause.
func FuzzBackoff(f *testing.F) {
	f.Add(int64(-1), int64(-1), int64(0))
	f.Add(int64(0), int64(math.MaxInt64), int64(time.Hour))
	f.Add(int64(math.MinInt64), int64(1), int64(math.MaxInt64))
	f.Add(int64(time.Second), int64(time.Minute), int64(-1))
	f.Fuzz(func(t *testing.T, first, second, age int64) {
		policy := &listed{delays: []time.Duration{time.Duration(first), time.Duration(second)}}
		for range 5 {
			d := nextDelay(policy)
			if d < minDelay {
				t.Fatalf("%v after %d and %d", d, first, second)
			}
		}
		d := wire.Eager(time.Duration(age))
		least := float64(wire.EagerDelay) * (1 - wire.EagerJitter)
		most := float64(max(time.Duration(age)/wire.EagerDivisor, wire.EagerDelay)) * (1 + wire.EagerJitter)
		if float64(d) < least-1 || float64(d) > most+1 {
			t.Fatalf("%v in an outage of %v", d, time.Duration(age))
		}
	})
}

// listed is a policy that returns the delays of a list, and then stops.
type listed struct {
	delays []time.Duration
	next   int
}

func (p *listed) Reset() { p.next = 0 }

func (p *listed) NextBackOff() time.Duration {
	if p.next >= len(p.delays) {
		return backoff.Stop
	}
	p.next++
	return p.delays[p.next-1]
}
