package redial

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/testkit/pools"
	"github.com/redial-go/redial/internal/wire"
	"github.com/redial-go/redial/redialtest"
)

// linkOf returns the link of a client of one server.
func linkOf(c *Client) *link { return c.keeper.whole.(*link) }

// deadEnd returns a link that leads nowhere and that nobody tends.
func deadEnd(b *base) *link {
	return newLink(newGate(b, "127.0.0.1:1", ""), endpoint{}, new(alone), func(*link) prober { return nowhere{} })
}

type nowhere struct{}

func (nowhere) again() bool                        { return false }
func (nowhere) asking() bool                       { return false }
func (nowhere) begin()                             {}
func (nowhere) attempt()                           {}
func (nowhere) pace(d time.Duration) time.Duration { return d }
func (nowhere) news() <-chan struct{}              { return nil }
func (nowhere) take() []result                     { return nil }
func (nowhere) unreachable() time.Duration         { return 0 }
func (nowhere) ask(context.Context, func(*redis.Client) error) error {
	return errTest
}
func (nowhere) pass() (net.Conn, *wire.Greeting, time.Time) { return nil, nil, time.Time{} }
func (nowhere) spares() bool                                { return false }
func (nowhere) drop()                                       {}
func (nowhere) close()                                      {}

// A server that comes and goes must not keep one call for ever.
func TestGate_FlappingServer_BoundsTheCall(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				linkOf(c).transition(StateReconnecting, CauseConnectionLost, "flap", errTest, 0)
				select {
				case <-time.After(100 * time.Millisecond):
				case <-stop:
					return
				}
			}
		})
		began := time.Now()
		for time.Since(began) < time.Minute {
			one := time.Now()
			_ = c.Set(t.Context(), "k", "v", 0).Err()
			assert.LessOrEqual(t, time.Since(one), 2*DefaultGrace)
			time.Sleep(time.Second)
		}
		close(stop)
		wg.Wait()
	})
}

func TestLink_Transitions(t *testing.T) {
	for _, tc := range []struct {
		path []State
		want []bool
	}{
		{[]State{StateConnecting, StateReconnecting}, []bool{false, false}},
		{[]State{StateConnected, StateConnected}, []bool{true, false}},
		{[]State{StateConnected, StateReconnecting, StateConnected}, []bool{true, true, true}},
		{[]State{StateClosed, StateConnected, StateReconnecting, StateClosed}, []bool{true, false, false, false}},
	} {
		var got []bool
		b := newBase(&config{grace: time.Second}, "")
		l := deadEnd(b)
		for _, to := range tc.path {
			got = append(got, l.transition(to, CauseAnswered, "test", nil, 0))
		}
		assert.Equal(t, tc.want, got, "%v", tc.path)
		l.transition(StateClosed, CauseClosed, "test", nil, 0)
		b.end()
	}
}

// With MinIdleConns go-redis dials while it builds a client, so the server may have
// answered before the client is known: what warms its pool must bear that.
func TestWarm_ServerAnswersWhileTheClientIsBuilt(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	slowly := func(opt *redis.Options) *redis.Client {
		defer time.Sleep(10 * time.Millisecond) // the server answers meanwhile
		return redis.NewClient(opt)
	}
	for name, build := range map[string]func() UniversalClient{
		"client": func() UniversalClient {
			return NewClient(&redis.Options{Addr: f.Addr(), Protocol: 2, MinIdleConns: 4, PoolSize: 8})
		},
		"shard": func() UniversalClient {
			return NewRing(&redis.RingOptions{Addrs: map[string]string{"a": f.Addr()}, Protocol: 2, MinIdleConns: 4, PoolSize: 8, NewClient: slowly})
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				c := build()
				require.NoError(t, c.WaitReady(t.Context()))
				require.NoError(t, c.Close())
			}
		})
	}
}

// Twenty connections are dropped by something in between; the server is well.
// Nothing is lost, nothing runs twice, and nobody waits long.
func TestIdleCheck_DroppedConnections_CostNoCommand(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		opt.PoolSize = 50
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 20)
		n.Drop()
		time.Sleep(3 * time.Second)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				began := time.Now()
				assert.NoError(t, c.Incr(t.Context(), "n").Err())
				assert.LessOrEqual(t, time.Since(began), 250*time.Millisecond)
			})
		}
		wg.Wait()
		assert.Equal(t, "50", c.Get(t.Context(), "n").Val())
		assert.Zero(t, c.Stats().Outages)
		assert.NotZero(t, c.Stats().IdleDropped)
	})
}

// The same while requests are under way, where nobody can be asked whether the server
// has got them: they keep their own time, though it answers on a new connection.
func TestDroppedConnections_InFlight_KeepTheirTime(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 20)
		waiting := make(chan error, 1)
		go func() { waiting <- c.BLPop(t.Context(), 0, "queue").Err() }()
		time.Sleep(100 * time.Millisecond)
		n.Drop()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				began := time.Now()
				if i%2 == 0 {
					assert.ErrorIs(t, c.Incr(t.Context(), "n").Err(), ErrOutcomeUnknown)
				} else {
					assert.ErrorIs(t, c.Get(t.Context(), "nothing").Err(), redis.Nil)
				}
				assert.GreaterOrEqual(t, time.Since(began), defaultReadTimeout)
				assert.LessOrEqual(t, time.Since(began), defaultReadTimeout+time.Second)
			})
		}
		wg.Wait()
		assert.Zero(t, c.Stats().Outages)
		assert.Zero(t, c.Stats().SilentCut)
		assert.Empty(t, waiting)
	})
}

func TestIdleCheck_Off(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt, WithIdleCheck(0))
		defer c.Close()
		ready(t, c)
		fill(t, c, 3)
		time.Sleep(time.Minute)
		require.NoError(t, c.Incr(t.Context(), "n").Err())
		assert.Zero(t, c.Stats().IdleChecks)
	})
}

// A connection in use is not idle: no PING is sent on it.
func TestIdleCheck_BusyConnection_CostsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		for range 100 {
			require.NoError(t, c.Incr(t.Context(), "n").Err())
			time.Sleep(100 * time.Millisecond)
		}
		assert.Zero(t, c.Stats().IdleChecks)
		time.Sleep(5 * time.Second)
		require.NoError(t, c.Incr(t.Context(), "n").Err())
		assert.LessOrEqual(t, c.Stats().IdleChecks, uint64(1), "the heartbeat has asked on it")
	})
}

// What is dead is gone before a caller meets it, and what is alive stays warm.
func TestSweep_FindsDeadConnections(t *testing.T) {
	pools.NeedLook(t) // or a Conn may get a dead one
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		fill(t, c, 5)
		time.Sleep(5 * time.Second)
		require.Equal(t, 5, c.Stats().Connections)
		n.Drop()
		time.Sleep(20 * time.Second)
		stats := c.Stats()
		assert.EqualValues(t, 5, stats.IdleDropped)
		assert.Zero(t, stats.Outages)
		dropped, checks := stats.IdleDropped, stats.IdleChecks
		fill(t, c, 5)
		time.Sleep(time.Minute)
		stats = c.Stats()
		assert.Equal(t, dropped, stats.IdleDropped)
		assert.GreaterOrEqual(t, stats.IdleChecks-checks, uint64(5*3), "each about every 15s")
	})
}

// The pool takes a connection while the sweep waits for its PONG: the caller waits
// for the sweep's deadline, which nobody takes away.
func TestSweep_MeetsThePool(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	c := NewClient(&redis.Options{Addr: f.Addr(), PoolSize: 1, Protocol: 2})
	defer c.Close()
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	var cn *wire.Conn
	linkOf(c).Each(func(x *wire.Conn) { cn = x })
	asked := make(chan struct{}, 1)
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "ping" {
			nudge(asked)
			return redialtest.Drop
		}
		return redialtest.Handle
	})
	linkOf(c).clock.Advance()
	swept := make(chan struct{})
	go func() { cn.Sweep(0); close(swept) }()
	<-asked
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	began := time.Now()
	_ = c.Get(ctx, "k").Err()
	<-swept
	assert.Less(t, time.Since(began), 4*time.Second)
}

// A connection that a caller holds is not touched: inside MULTI, a PING would
// become part of the transaction.
func TestSweep_LeavesHeldConnectionsAlone(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		open := c.Conn()
		defer open.Close()
		require.NoError(t, open.Do(t.Context(), "MULTI").Err())
		busy := c.Conn()
		defer busy.Close()
		require.NoError(t, busy.Incr(t.Context(), "n").Err())
		require.NoError(t, busy.Incr(t.Context(), "n").Err())
		time.Sleep(time.Minute)
		assert.Zero(t, c.Stats().IdleChecks)
		require.NoError(t, open.Do(t.Context(), "INCR", "n").Err())
		got, err := open.Do(t.Context(), "EXEC").Slice()
		require.NoError(t, err)
		assert.Equal(t, []any{int64(3)}, got)
	})
}

// The pool's own breaker counts failed dials and then answers with a stale error;
// it must never get there.
func TestStandin_KeepsThePoolsBreakerOpenForBusiness(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		opt.PoolSize = 1
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		for range 5 {
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			_ = c.Client.WithTimeout(time.Second).Get(t.Context(), "k").Err() // no hook holds it back
			n.Start()
			began := time.Now()
			require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
			assert.Less(t, time.Since(began), 100*time.Millisecond)
		}
	})
}

// Whoever has waited for the server goes on with the connection on which it was found: what
// warms the pool up takes it from nobody.
func TestWarm_WhoWaitedHasTheConnection(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		const slow = 300 * time.Millisecond
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := n.Dial(ctx, network, addr)
			if err == nil {
				time.Sleep(slow)
			}
			return nc, err
		}
		wants := 0
		for range 40 {
			c := NewClient(opt)
			ready(t, c)
			fill(t, c, 4)
			n.Vanish()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			done := make(chan error, 1)
			go func() { done <- c.Set(t.Context(), "k", "v", 0).Err() }()
			synctest.Wait()
			wants += int(linkOf(c).lost.Load())
			n.Start()
			began := time.Now()
			require.NoError(t, <-done)
			assert.Less(t, time.Since(began), slow+100*time.Millisecond)
			require.NoError(t, c.Close())
		}
		assert.Greater(t, wants, 40, "there is little to warm up")
		time.Sleep(slow) // the dialer pays no heed to the end of a client
	})
}

// An attempt may be answered in the very moment in which another is due. What answered is
// there for whoever waits, and not asked once more first.
func TestPinger_AnsweredAttempt_IsLeftToWhoWaits(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		cfg, err := newConfig(nil)
		require.NoError(t, err)
		b := newBase(cfg, "")
		l := newLink(newGate(b, opt.Addr, ""), endpoint{dialer: n.Dial}, new(alone), pingerOf(opt, true))
		l.prober.begin()
		synctest.Wait()
		require.True(t, l.prober.spares())
		n.Freeze()
		l.prober.attempt()
		assert.False(t, l.prober.asking())
		require.Len(t, l.prober.take(), 1)
		l.prober.attempt()
		assert.True(t, l.prober.asking(), "it is asked when that is known")
		assert.Equal(t, 1, n.Dials())
		l.prober.close()
		b.end()
	})
}

// go-redis counts the connections that it is still dialing as idle ones: more than it has
// in all. A pool in which that is so is not full.
func TestWarmer_WhileThePoolDials(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	const least = 3
	var dials atomic.Int32
	released := make(chan struct{})
	rdb := redis.NewClient(&redis.Options{Addr: f.Addr(), Protocol: 2, MinIdleConns: least, Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dials.Add(1) <= least { // those of the pool, for its own sake
			<-released
		}
		return f.Dial(ctx, network, addr)
	}})
	defer func() { _ = rdb.Close() }()
	defer close(released)
	require.Eventually(t, func() bool { return dials.Load() == least }, time.Second, time.Millisecond)
	s := rdb.PoolStats()
	require.Greater(t, s.IdleConns, s.TotalConns)
	warm := warmer(rdb, new(atomic.Int64), time.Second, mannered{})
	assert.True(t, warm(t.Context(), 1))
	assert.EqualValues(t, 2*least, dials.Load())
}

// mannered is a server like most.
type mannered struct{}

func (mannered) Declined() bool  { return false }
func (mannered) Question() []any { return []any{"ping"} }

// A pool whose connections break while it is warmed up is not warm.
func TestWarmer_BrokenConnection(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	var broken atomic.Bool
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "ping" && broken.CompareAndSwap(false, true) {
			return redialtest.Drop
		}
		return redialtest.Handle
	})
	rdb := redis.NewClient(&redis.Options{Addr: f.Addr(), Protocol: 2, MaxRetries: -1})
	defer func() { _ = rdb.Close() }()
	warm := warmer(rdb, new(atomic.Int64), 100*time.Millisecond, mannered{})
	assert.False(t, warm(t.Context(), 1))
	assert.True(t, warm(t.Context(), 1))
}

// onlooker looks at a link in the moment when its state changes.
type onlooker func(to State)

func (f onlooker) followLocked(to State, _ error) func() { f(to); return func() {} }

// When a link is to lead elsewhere, the connection on which the former server answers is
// gone before anybody could take it for one to the new server.
func TestLink_LeadsElsewhere_NothingIsHeldOfTheFormer(t *testing.T) {
	for name, leave := range map[string]func(*link){
		"moved":     func(l *link) { l.moved("to another") },
		"reconnect": func(l *link) { l.reconnect("wanted") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
				c := NewClient(opt)
				defer c.Close()
				ready(t, c)
				l, looked := linkOf(c), false
				l.mu.Lock()
				l.followers = append(l.followers, onlooker(func(to State) {
					if to == StateReconnecting {
						nc, _, _ := l.prober.pass()
						assert.Nil(t, nc)
						looked = true
					}
				}))
				l.mu.Unlock()
				leave(l)
				assert.True(t, looked)
			})
		})
	}
}

// An answer that came when nobody waited for it any more says nothing of the topology of now.
func TestNodes_LateAnswerIsNoneToTheNextQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, err := newConfig(nil)
		require.NoError(t, err)
		n := newNodes(cfg, "nodes")
		var loads, under, most atomic.Int32
		n.load = func(context.Context) error {
			most.Store(max(most.Load(), under.Add(1)))
			defer under.Add(-1)
			if loads.Add(1) == 1 {
				time.Sleep(time.Minute)
				return errRefused
			}
			return nil
		}
		assert.EqualError(t, n.reload(), "nobody tells the topology in time")
		assert.EqualError(t, n.reload(), "nobody tells the topology in time")
		assert.EqualValues(t, 1, loads.Load(), "who asks while another is asked waits for the same answer")
		time.Sleep(time.Hour)
		assert.NoError(t, n.reload())
		assert.EqualValues(t, 2, loads.Load())
		assert.EqualValues(t, 1, most.Load())
		n.end()
		synctest.Wait()
	})
}

// A question that hangs for good keeps nobody from asking another, and if all do, they are few.
func TestNodes_QuestionHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, err := newConfig(nil)
		require.NoError(t, err)
		n := newNodes(cfg, "nodes")
		var hang, loads atomic.Int32
		hang.Store(1)
		hold := make(chan struct{})
		n.load = func(context.Context) error {
			if loads.Add(1); hang.Add(-1) >= 0 {
				<-hold
			}
			return nil
		}
		assert.Error(t, n.reload())
		assert.Error(t, n.reload())
		assert.NoError(t, n.reload())
		hang.Store(math.MaxInt32)
		for range 100 {
			assert.Error(t, n.reload())
		}
		assert.EqualValues(t, 2+mostAttempts-1, loads.Load())
		close(hold)
		synctest.Wait()
		assert.Zero(t, n.asking.Load())
		n.end()
		synctest.Wait()
	})
}

// However long a round trip is, whoever could go by what was told before waits no longer for
// an answer than who could not.
func TestNodes_QuestionHangsAtADistance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, err := newConfig(nil)
		require.NoError(t, err)
		n := newNodes(cfg, "nodes")
		far := n.newMember(&redis.Options{Addr: "127.0.0.1:1"}, true, false)
		far.link.Measure(900 * time.Millisecond)
		n.add(far.guard)
		n.learn(nil, "")
		hold := make(chan struct{})
		n.load = func(context.Context) error { <-hold; return nil }
		began := time.Now()
		assert.Equal(t, errUntold, n.reload())
		assert.LessOrEqual(t, time.Since(began), cfg.timeout+foreignPatience)
		close(hold)
		synctest.Wait()
		n.end()
		synctest.Wait()
	})
}

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
