package redial

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/internal/testkit/pools"
	"github.com/redial-go/redial/internal/wire"
	"github.com/redial-go/redial/redialtest"
)

// switchboard is what some proxies and load balancers are: it leads each connection to one of
// several servers and, when a server ends one, goes on to take what the client sends.
type switchboard struct {
	ln net.Listener
	wg sync.WaitGroup

	mu   sync.Mutex
	to   func(n int) string // which server the n-th connection leads to; guarded by mu
	made int                // guarded by mu
	open []net.Conn         // guarded by mu
}

func newSwitchboard(t *testing.T, to func(n int) string) *switchboard {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f := &switchboard{ln: ln, to: to}
	f.wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			n := f.made
			f.made++
			addr := f.to(n)
			f.mu.Unlock()
			server, err := net.Dial("tcp", addr)
			if err != nil {
				_ = client.Close()
				continue
			}
			f.mu.Lock()
			f.open = append(f.open, client, server)
			f.mu.Unlock()
			f.wg.Go(func() { _, _ = io.Copy(client, server) }) // the end of the server ends nothing else
			f.wg.Go(func() {
				_, err := io.Copy(server, client)
				if err != nil {
					_, _ = io.Copy(io.Discard, client)
				}
				_, _ = client.Close(), server.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		f.mu.Lock()
		for _, nc := range f.open {
			_ = nc.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

func (f *switchboard) Addr() string { return f.ln.Addr().String() }

// lead says where connections lead from now on.
func (f *switchboard) lead(to func(n int) string) {
	f.mu.Lock()
	f.to = to
	f.mu.Unlock()
}

// always leads to one server.
func always(s *redialtest.Server) func(int) string { return func(int) string { return s.Addr() } }

// waitingCommands are those that wait until something is there, for ever.
var waitingCommands = map[string]func(ctx context.Context, c *Client) error{
	"blpop":    func(ctx context.Context, c *Client) error { return c.BLPop(ctx, 0, "list").Err() },
	"bzpopmin": func(ctx context.Context, c *Client) error { return c.BZPopMin(ctx, 0, "set").Err() },
	"xread": func(ctx context.Context, c *Client) error {
		return c.XRead(ctx, &redis.XReadArgs{Streams: []string{"stream", "$"}, Block: 0}).Err()
	},
}

// blocked waits until k clients wait for the server in a command of that name.
func blocked(t *testing.T, s *redialtest.Server, name string, k int) {
	t.Helper()
	require.Eventually(t, func() bool {
		return strings.Count(s.Do("CLIENT", "LIST").(string), "cmd="+name) >= k
	}, 5*time.Second, time.Millisecond, name)
}

// A command that waits on a connection that the server does not know any more has an end.
func TestInquiry_Disowned_WaitingCommandEnds(t *testing.T) {
	t.Parallel()
	for name, run := range waitingCommands {
		for _, traffic := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := redialtest.StartServer(t)
				c := NewClient(&redis.Options{Addr: newSwitchboard(t, always(s)).Addr()})
				defer c.Close()
				require.NoError(t, c.WaitReady(t.Context()))
				done := make(chan error, 1)
				go func() { done <- run(context.Background(), c) }()
				blocked(t, s, name, 1)
				time.Sleep(200 * time.Millisecond)
				s.Do("CLIENT", "KILL", "TYPE", "normal")
				began := time.Now()
				limit := time.NewTimer(15 * time.Second)
				defer limit.Stop()
				tick := time.NewTicker(10 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
						if traffic {
							_ = c.Set(t.Context(), "k", "v", 0).Err()
						}
						continue
					case <-limit.C:
						t.Error("it still waits")
					case err := <-done:
						assert.ErrorIs(t, err, ErrOutcomeUnknown)
						assert.ErrorIs(t, err, errDisowned)
						t.Logf("ended after %v: %v", time.Since(began), err)
					}
					return
				}
			})
		}
	}
}

// asked is an inquiry that is answered by the test, about one connection, which owes a
// reply and may know how the server sees it.
func asked(t *testing.T, self *command.Peer) (*inquiry, *wire.Conn) {
	t.Helper()
	l := deadEnd(newBase(&config{timeout: time.Second}, ""))
	l.transition(StateConnected, CauseAnswered, "", nil, 0)
	l.Inquirer = anyInquirer{}
	nc := &scriptedConn{piece: 1 << 10}
	c := l.New(nc, l.Generation())
	say := func(request, reply string) {
		_, err := c.Write([]byte(request))
		require.NoError(t, err)
		nc.in = []byte(reply)
		_, err = c.Read(make([]byte, nc.piece))
		require.NoError(t, err)
	}
	say("*2\r\n$5\r\nhello\r\n$1\r\n3\r\n", "%1\r\n$2\r\nid\r\n:7\r\n")
	if self != nil {
		seen := fmt.Sprintf("id=%d addr=%s laddr=%s\n", self.ID, self.Addr, self.Laddr)
		say("*3\r\n$5\r\nblpop\r\n$1\r\nk\r\n$1\r\n0\r\n", fmt.Sprintf("$%d\r\n%s\r\n*-1\r\n", len(seen), seen))
		require.True(t, c.Self().Is(*self))
	}
	require.EqualValues(t, 7, c.ID())
	owe(t, c)
	return newInquiry(l, nil), c
}

// owe has a connection owe the reply to another request.
func owe(t *testing.T, c *wire.Conn) {
	t.Helper()
	time.Sleep(time.Millisecond) // the clock goes on
	_, err := c.Write([]byte("*2\r\n$4\r\nincr\r\n$1\r\nn\r\n"))
	require.NoError(t, err)
}

// anyInquirer has connections find out how the server sees them, and asks nothing itself.
type anyInquirer struct{ wire.Inquirer }

func (anyInquirer) Willing(int64) bool { return true }
func (anyInquirer) Met(*wire.Conn)     {}

var (
	seven    = command.Peer{ID: 7, Addr: "10.0.0.9:5007", Laddr: "10.0.0.1:6379"}
	stranger = command.Peer{ID: 7, Addr: "10.0.0.8:5007", Laddr: "10.0.0.1:6379"}
	asking   = command.Peer{ID: 3, Addr: "10.0.0.9:5003", Laddr: "10.0.0.1:6379"}
)

func answers(run string, started time.Duration) *instance {
	return &instance{run: run, laddr: asking.Laddr, host: "10.0.0.9", self: asking, started: int64(started)}
}

func peers(all ...command.Peer) map[int64]command.Peer {
	m := map[int64]command.Peer{asking.ID: asking}
	for _, p := range all {
		m[p.ID] = p
	}
	return m
}

// Nothing but the word of the server that has vouched before gives a connection up.
func TestInquiry_Judge_NothingButProof(t *testing.T) {
	elsewhere := *answers("A", 0)
	elsewhere.laddr = "10.0.0.2:6379"
	reconnected := *answers("", 0)
	reconnected.self = command.Peer{ID: 9, Addr: "10.0.0.9:5009", Laddr: asking.Laddr}
	otherHost := *answers("B", 50*time.Second)
	otherHost.host = "10.0.0.4"
	type answer struct {
		by     *instance
		listed map[int64]command.Peer
	}
	for name, row := range map[string]struct {
		answers []answer
		want    bool
	}{
		"vouched, then twice unknown":            {[]answer{{answers("A", 0), peers(seven)}, {answers("A", 0), peers()}, {answers("A", 0), peers()}}, true},
		"vouched, then once unknown":             {[]answer{{answers("A", 0), peers(seven)}, {answers("A", 0), peers()}}, false},
		"known again in between":                 {[]answer{{answers("A", 0), peers(seven)}, {answers("A", 0), peers()}, {answers("A", 0), peers(seven)}, {answers("A", 0), peers()}}, false},
		"never vouched":                          {[]answer{{answers("A", 0), peers()}, {answers("A", 0), peers()}, {answers("A", 0), peers()}}, false},
		"vouched for somebody with the same id":  {[]answer{{answers("B", 0), peers(stranger)}, {answers("B", 0), peers()}, {answers("B", 0), peers()}}, false},
		"another server":                         {[]answer{{answers("A", 0), peers(seven)}, {answers("B", 0), peers()}, {answers("B", 0), peers()}}, false},
		"another server between":                 {[]answer{{answers("A", 0), peers(seven)}, {answers("A", 0), peers()}, {answers("B", 0), peers()}, {answers("A", 0), peers()}}, false},
		"another server, the id is somebody's":   {[]answer{{answers("A", 0), peers(seven)}, {answers("B", 0), peers(stranger)}, {answers("B", 0), peers(stranger)}}, false},
		"the same run by another address":        {[]answer{{answers("A", 0), peers(seven)}, {&elsewhere, peers()}, {&elsewhere, peers()}}, false},
		"no INFO, the same connection":           {[]answer{{answers("", 0), peers(seven)}, {answers("", 0), peers()}, {answers("", 0), peers()}}, true},
		"no INFO, another connection":            {[]answer{{answers("", 0), peers(seven)}, {&reconnected, peers()}, {&reconnected, peers()}}, false},
		"INFO denied since":                      {[]answer{{answers("A", 0), peers(seven)}, {answers("", 0), peers()}, {answers("", 0), peers()}}, false},
		"started after the other last answered":  {[]answer{{answers("A", 0), peers(seven)}, {answers("B", 50*time.Second), peers()}, {answers("B", 50*time.Second), peers()}}, true},
		"started before the other last answered": {[]answer{{answers("A", 0), peers(seven)}, {answers("B", 5*time.Second), peers()}, {answers("B", 5*time.Second), peers()}}, false},
		"seen from another host":                 {[]answer{{answers("A", 0), peers(seven)}, {&otherHost, peers()}, {&otherHost, peers()}}, false},
	} {
		q, c := asked(t, &seven)
		var lost []*wire.Conn
		for i, a := range row.answers {
			lost = q.judge([]*wire.Conn{c}, a.by, a.listed, int64(time.Duration(10+60*i)*time.Second))
		}
		assert.Equal(t, row.want, len(lost) == 1, name)
	}
}

// A reply that comes meanwhile ends all suspicion, and so does the next request.
func TestInquiry_Judge_HeardMeanwhile(t *testing.T) {
	for _, more := range []bool{false, true} {
		q, c := asked(t, &seven)
		q.judge([]*wire.Conn{c}, answers("A", 0), peers(seven), 1)
		q.judge([]*wire.Conn{c}, answers("A", 0), peers(), 2)
		c.NetConn().(*scriptedConn).in = []byte(":1\r\n")
		_, err := c.Read(make([]byte, 8))
		require.NoError(t, err)
		if more {
			owe(t, c)
		}
		assert.Empty(t, q.judge([]*wire.Conn{c}, answers("A", 0), peers(), int64(time.Minute)))
	}
}

// A connection that nobody vouches for is not asked about for ever.
func TestInquiry_Judge_Barren(t *testing.T) {
	q, c := asked(t, nil)
	for range barrenAnswers {
		q.judge([]*wire.Conn{c}, answers("A", 0), peers(), 1)
	}
	assert.Greater(t, q.known[c].mute, int64(askMute))
}

// Behind an address there are two servers, and whoever waits on one is never given up
// because the other does not know it, or knows another by its id.
func TestInquiry_LoadBalancer_LivingCommandsStay(t *testing.T) {
	t.Parallel()
	a, b := redialtest.StartServer(t), redialtest.StartServer(t)
	turn := func(n int) string { return []string{a.Addr(), b.Addr()}[n%2] }
	c := NewClient(&redis.Options{Addr: newSwitchboard(t, turn).Addr()})
	defer c.Close()
	require.NoError(t, c.WaitReady(t.Context()))
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() { assert.NoError(t, c.BLPop(context.Background(), 0, "list").Err()) })
	}
	waits := func(s *redialtest.Server) int { return strings.Count(s.Do("CLIENT", "LIST").(string), "cmd=blpop") }
	require.Eventually(t, func() bool { return waits(a)+waits(b) == 6 }, 5*time.Second, time.Millisecond)
	require.NotZero(t, waits(a), "connections take turns, those of redial's own as well")
	require.NotZero(t, waits(b))
	for range 4 { // the question is asked on both
		time.Sleep(2 * time.Second)
		linkOf(c).prober.drop()
	}
	assert.Zero(t, c.Stats().SilentCut)
	for _, s := range []*redialtest.Server{a, b} {
		for range waits(s) {
			s.Do("LPUSH", "list", "1")
		}
	}
	wg.Wait()
}

// Behind an address a server is started anew, and the proxy says nothing of it.
func TestInquiry_Restart_BehindAProxy(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	c := NewClient(&redis.Options{Addr: newSwitchboard(t, always(s)).Addr()})
	defer c.Close()
	require.NoError(t, c.WaitReady(t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.BLPop(context.Background(), 0, "list").Err() }()
	blocked(t, s, "blpop", 1)
	time.Sleep(2 * time.Second) // uptimes count in seconds
	s.Kill()
	s.Start()
	select {
	case err := <-done:
		assert.ErrorIs(t, err, ErrOutcomeUnknown)
	case <-time.After(15 * time.Second):
		t.Error("it still waits")
	}
}

// Whoever may not ask, or is not answered, has what go-redis has.
func TestInquiry_NotAllowed_NothingIsConcluded(t *testing.T) {
	t.Parallel()
	for _, denied := range []string{"-client|list", "-client|info"} {
		t.Run(denied, func(t *testing.T) {
			t.Parallel()
			s := redialtest.StartServer(t)
			s.Do("ACL", "SETUSER", "default", denied, "-info")
			c := NewClient(&redis.Options{Addr: s.Addr()})
			defer c.Close()
			require.NoError(t, c.WaitReady(t.Context()))
			done := make(chan error, 1)
			go func() { done <- c.BLPop(context.Background(), 0, "list").Err() }()
			time.Sleep(8 * time.Second)
			s.Do("LPUSH", "list", "x")
			assert.NoError(t, <-done)
			assert.Zero(t, c.Stats().SilentCut)
		})
	}
}

// The id is that of the handshake, in either version of the protocol, and there is none
// where the server tells none. What a connection asks its server nobody sees.
func TestInquiry_Introduction(t *testing.T) {
	t.Parallel()
	pools.NeedLook(t) // or only the first command on a connection can be introduced
	for _, protocol := range []int{2, 3} {
		s := redialtest.StartServer(t)
		c := NewClient(&redis.Options{Addr: s.Addr(), Protocol: protocol, PoolSize: 1})
		id, err := c.ClientID(t.Context()).Result()
		require.NoError(t, err)
		require.NotZero(t, id)
		var cn *wire.Conn
		linkOf(c).Each(func(one *wire.Conn) { cn = one })
		assert.Equal(t, id, cn.ID())
		assert.Nil(t, cn.Self(), "nothing is asked without need")
		require.Equal(t, redis.Nil, c.XRead(t.Context(), &redis.XReadArgs{Streams: []string{"s", "0"}, Block: -1}).Err())
		assert.Nil(t, cn.Self())
		require.Equal(t, redis.Nil, c.BLPop(t.Context(), time.Millisecond, "list").Err())
		require.NotNil(t, cn.Self())
		assert.Equal(t, cn.LocalAddr().String(), cn.Self().Addr)
		asked := strings.Count(s.Do("INFO", "commandstats").(string), "cmdstat_client|info:calls=")
		require.NoError(t, c.Do(t.Context(), "HELLO", protocol).Err())
		assert.Equal(t, id, cn.ID())
		require.NoError(t, c.RPush(t.Context(), "list", "a").Err())
		assert.Equal(t, []string{"list", "a"}, c.BLPop(t.Context(), 0, "list").Val())
		assert.Equal(t, asked, strings.Count(s.Do("INFO", "commandstats").(string), "cmdstat_client|info:calls="))
		require.NoError(t, c.Close())
	}
	f := redialtest.NewFakeServer(t) // which answers OK to what it does not know
	for _, reply := range []redialtest.Action{"", redialtest.Reply("-ERR unknown\r\n"), redialtest.Reply("$-1\r\n"), redialtest.Reply("*2\r\n:1\r\n$1\r\nx\r\n")} {
		f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			if len(args) == 2 && args[0] == "client" && args[1] == "info" {
				return reply
			}
			return ""
		})
		c := NewClient(&redis.Options{Addr: f.Addr()})
		require.NoError(t, c.RPush(t.Context(), "list", "a", "b").Err())
		for _, want := range []string{"a", "b"} {
			assert.Equal(t, []string{"list", want}, c.BLPop(t.Context(), 0, "list").Val())
		}
		assert.False(t, linkOf(c).Inquirer.Willing(linkOf(c).clock.Read()), "it does not ask again soon")
		require.NoError(t, c.Close())
	}
}

// lossOf has workers wait for elements with contexts that end at random while others are
// pushed, and returns how many were lost: neither handed out nor left; how many contexts ended,
// and how many of these before anything was sent.
func lossOf(t *testing.T, s *redialtest.Server, rdb redis.UniversalClient, total int, canceled bool) (lost, ends, unsent int) {
	t.Helper()
	s.Do("FLUSHALL")
	got := make(map[string]int)
	var mu sync.Mutex
	var ended, early atomic.Int64
	var pushed atomic.Bool
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for !pushed.Load() {
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(8*time.Millisecond)+wire.Unwatched)
				if canceled {
					ctx, cancel = context.WithCancel(t.Context())
					time.AfterFunc(rand.N(8*time.Millisecond)+wire.Unwatched, cancel)
				}
				kv, err := rdb.BLPop(ctx, 0, "list").Result()
				cancel()
				if err != nil {
					assert.Error(t, ctx.Err())
					ended.Add(1)
					if SafeToRetry(err) {
						early.Add(1)
					}
					continue
				}
				mu.Lock()
				got[kv[1]]++
				mu.Unlock()
			}
		})
	}
	for i := range total {
		s.Do("LPUSH", "list", strconv.Itoa(i))
		time.Sleep(rand.N(4 * time.Millisecond))
	}
	pushed.Store(true)
	wg.Wait()
	time.Sleep(50 * time.Millisecond)
	for _, left := range s.Do("LRANGE", "list", 0, -1).([]any) {
		got[left.(string)]++
	}
	for i := range total {
		switch got[strconv.Itoa(i)] {
		case 0:
			lost++
		case 1:
		default:
			t.Errorf("%d was handed out twice", i)
		}
	}
	return lost, int(ended.Load()), int(early.Load())
}

// When the context of a BLPOP ends, the element that the server hands out in that moment
// is delivered or stays in the list.
func TestUnblock_LosesNothing(t *testing.T) {
	t.Parallel()
	for _, protocol := range []int{2, 3} {
		for _, canceled := range []bool{false, true} {
			s := redialtest.StartServer(t)
			opt := &redis.Options{Addr: s.Addr(), Protocol: protocol}
			c := NewClient(opt)
			require.NoError(t, c.WaitReady(t.Context()))
			pools.Fill(t, c, 8)
			lost, ends, unsent := lossOf(t, s, c, 400, canceled)
			closed := max(0, int(c.Stats().Dials)-9) // one for each worker, and that of the heartbeat
			t.Logf("protocol %d, canceled %v: %d lost, %d contexts ended, %d unsent, %d connections closed", protocol, canceled, lost, ends, unsent, closed)
			assert.LessOrEqual(t, lost, closed, "only where the server did not answer in time, on a busy machine")
			assert.Greater(t, ends, 100)
			if !platform.RaceDetector { // under which the server may have no processor to answer in time
				// A context that ends while its connection is set up has ended that, too.
				assert.Less(t, closed-unsent, ends/10, "connections are used again")
			}
			assert.Zero(t, c.Stats().Outages)
			require.NoError(t, c.Close())
		}
	}
	s := redialtest.StartServer(t)
	bare := redis.NewClient(&redis.Options{Addr: s.Addr(), ContextTimeoutEnabled: true})
	defer bare.Close()
	lost, ends, _ := lossOf(t, s, bare, 400, false)
	t.Logf("bare: %d lost, %d contexts ended", lost, ends)
}

// A command that waited in vain ends with the error of its context, in time, and its
// connection goes back to the pool.
func TestUnblock_EndsInTime(t *testing.T) {
	pools.NeedLook(t) // or only the first command on a connection can be told to end
	for _, start := range []func(testing.TB, ...string) *redialtest.Server{redialtest.StartServer, redialtest.StartTLSServer} {
		s := start(t)
		unblockedInTime(t, &redis.Options{Addr: s.Addr(), PoolSize: 1, TLSConfig: s.TLSConfig()})
	}
}

func unblockedInTime(t *testing.T, opt *redis.Options) {
	c := NewClient(opt)
	defer c.Close()
	require.NoError(t, c.Ping(t.Context()).Err())
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	_ = c.BLPop(soon, 0, "list").Err() // there is a connection for such questions from now on
	cancel()
	for name, run := range map[string]func(context.Context) error{
		"blpop":    func(ctx context.Context) error { return c.BLPop(ctx, 0, "list").Err() },
		"bounded":  func(ctx context.Context) error { return c.BLPop(ctx, time.Hour, "list").Err() },
		"blmove":   func(ctx context.Context) error { return c.BLMove(ctx, "list", "other", "left", "right", 0).Err() },
		"bzpopmin": func(ctx context.Context) error { return c.BZPopMin(ctx, 0, "set").Err() },
		"xread": func(ctx context.Context) error {
			return c.XRead(ctx, &redis.XReadArgs{Streams: []string{"stream", "$"}, Block: 0}).Err()
		},
	} {
		for _, end := range []error{context.Canceled, context.DeadlineExceeded} {
			again := false
			for tries := 0; !again && tries < 5; tries++ { // on a busy machine the server may be too late to say so
				dials := c.Stats().Dials
				assert.Less(t, platform.AtBest(150*time.Millisecond, func() {
					ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
					if end == context.Canceled {
						ctx, cancel = context.WithCancel(t.Context())
						time.AfterFunc(50*time.Millisecond, cancel)
					}
					defer cancel()
					err := run(ctx)
					assert.ErrorIs(t, err, end, name)
					assert.NotErrorIs(t, err, redis.Nil, name)
					var e *Error
					require.ErrorAs(t, err, &e, name)
					assert.Equal(t, CauseContextEnded, e.Cause, name)
				}), 150*time.Millisecond, name)
				require.NoError(t, c.Ping(t.Context()).Err())
				again = dials == c.Stats().Dials
			}
			assert.True(t, again, "%s: the connection is used again", name)
		}
	}
}

// A connection that the caller holds can be used on, too, although it had not been asked who
// it is: with nothing in between its server knows it by its address.
func TestUnblock_HeldConnection_IsUsedAgain(t *testing.T) {
	s := redialtest.StartServer(t)
	block := func(cn redis.StatefulCmdable) {
		id := cn.ClientID(t.Context()).Val()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		began := time.Now()
		assert.ErrorIs(t, cn.BLPop(ctx, 0, "list").Err(), context.Canceled)
		assert.Less(t, time.Since(began), 150*time.Millisecond)
		again, err := cn.ClientID(t.Context()).Result()
		assert.NoError(t, err)
		assert.Equal(t, id, again)
	}
	c, other := NewClient(&redis.Options{Addr: s.Addr()}), NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	defer other.Close()
	for _, c := range []*Client{c, other} { // a connection has been told that nothing is in between
		held := c.Conn()
		defer held.Close()
		s.Do("RPUSH", "told", "x")
		require.NoError(t, held.BLPop(t.Context(), 0, "told").Err())
	}
	require.NoError(t, c.Watch(t.Context(), func(tx *redis.Tx) error {
		block(tx)
		return nil
	}, "key"))
	cn := other.Conn()
	defer cn.Close()
	block(cn)
	board := newSwitchboard(t, always(s)) // through which it is not known
	proxied := NewClient(&redis.Options{Addr: board.Addr()})
	defer proxied.Close()
	held := proxied.Conn()
	defer held.Close()
	require.NoError(t, held.Ping(t.Context()).Err())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	assert.ErrorIs(t, held.BLPop(ctx, 0, "list").Err(), context.DeadlineExceeded)
	assert.Less(t, time.Since(began), 150*time.Millisecond)
	assert.Error(t, held.Ping(t.Context()).Err(), "it is closed")
}

// That a pipeline of one has found nothing, because the server was told to end it, is no
// answer either.
func TestUnblock_PipelineOfOne_HasNoAnswer(t *testing.T) {
	s := redialtest.StartServer(t)
	c := NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	ring := NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.Addr()}})
	defer ring.Close()
	for _, rdb := range []redis.UniversalClient{c, ring} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		pipe := rdb.Pipeline()
		pop := pipe.BLPop(ctx, 0, "list")
		_, err := pipe.Exec(ctx)
		cancel()
		for _, err := range []error{err, pop.Err()} {
			assert.ErrorIs(t, err, context.DeadlineExceeded)
			assert.NotErrorIs(t, err, redis.Nil)
		}
		var e *Error
		require.ErrorAs(t, err, &e)
		assert.Equal(t, CauseContextEnded, e.Cause)
	}
}

// WAIT says how many replicas have what was written, also when it is told to end.
func TestUnblock_Wait_SaysHowMany(t *testing.T) {
	s := redialtest.StartServer(t)
	c := NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	n, err := c.Wait(ctx, 3, time.Hour).Result()
	assert.NoError(t, err)
	assert.Zero(t, n)
}

// What somebody else unblocks with an error is the caller's to hear of.
func TestUnblock_ByAnother_IsTheirs(t *testing.T) {
	s := redialtest.StartServer(t)
	c := NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { done <- c.BLPop(ctx, 0, "list").Err() }()
	blocked(t, s, "blpop", 1)
	for line := range strings.Lines(s.Do("CLIENT", "LIST").(string)) {
		if strings.Contains(line, "cmd=blpop") {
			id := strings.TrimPrefix(strings.Fields(line)[0], "id=")
			require.EqualValues(t, 1, s.Do("CLIENT", "UNBLOCK", id, "ERROR"))
		}
	}
	assert.ErrorContains(t, <-done, "UNBLOCKED")
	go func() { done <- c.BLPop(ctx, 0, "list").Err() }()
	blocked(t, s, "blpop", 1)
	for line := range strings.Lines(s.Do("CLIENT", "LIST").(string)) {
		if strings.Contains(line, "cmd=blpop") {
			require.EqualValues(t, 1, s.Do("CLIENT", "UNBLOCK", strings.TrimPrefix(strings.Fields(line)[0], "id=")))
		}
	}
	assert.Equal(t, redis.Nil, <-done)
}

// Whoever may not unblock has connections closed, as ever.
func TestUnblock_NotAllowed_Closes(t *testing.T) {
	for _, denied := range []string{"-client|unblock", "-client|list", "-client|info"} {
		t.Run(denied, func(t *testing.T) {
			s := redialtest.StartServer(t)
			s.Do("ACL", "SETUSER", "default", denied)
			c := NewClient(&redis.Options{Addr: s.Addr()})
			defer c.Close()
			for range 3 {
				assert.Less(t, platform.AtBest(150*time.Millisecond, func() {
					ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
					defer cancel()
					assert.ErrorIs(t, c.BLPop(ctx, 0, "list").Err(), context.DeadlineExceeded)
				}), 150*time.Millisecond)
				require.NoError(t, c.Ping(t.Context()).Err())
			}
			require.NoError(t, c.LPush(t.Context(), "list", "x").Err())
			assert.Equal(t, []string{"list", "x"}, c.BLPop(t.Context(), time.Second, "list").Val())
			assert.Zero(t, c.Stats().Outages)
		})
	}
}

// A server that does not say in time whether it has ended a wait may have: that it has found
// nothing is no news then either.
func TestUnblock_TooLate_MayHaveEndedIt(t *testing.T) {
	q, c := asked(t, &command.Peer{ID: 7, Addr: "here:1", Laddr: "there:2"})
	hold := make(chan struct{})
	defer close(hold)
	q.via = func(context.Context, func(*redis.Client) error) error {
		<-hold
		return nil
	}
	settled, freed := q.Unblock(time.Millisecond, c, c)
	assert.Equal(t, []bool{false, false}, settled)
	assert.Equal(t, []bool{true, true}, freed)
}

// An id of another server is not that of a connection here, although somebody waits there
// under the same one.
func TestUnblock_AnotherServer_NobodyElseIsUnblocked(t *testing.T) {
	here, there := redialtest.StartServer(t), redialtest.StartServer(t)
	for range 20 { // the ids there are behind
		here.Do("PING")
	}
	board := newSwitchboard(t, always(here))
	c := NewClient(&redis.Options{Addr: board.Addr()})
	defer c.Close()
	require.NoError(t, c.Ping(t.Context()).Err())
	board.lead(always(there))
	require.NoError(t, linkOf(c).prober.(*pinger).ask(t.Context(), func(rdb *redis.Client) error { // its connection leads there
		return rdb.Ping(t.Context()).Err()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.BLPop(ctx, 0, "list").Err() }()
	blocked(t, here, "blpop", 1)
	var id int64
	for line := range strings.Lines(here.Do("CLIENT", "LIST").(string)) {
		if strings.Contains(line, "cmd=blpop") {
			id, _ = strconv.ParseInt(strings.TrimPrefix(strings.Fields(line)[0], "id="), 10, 64)
		}
	}
	victim := waiterOf(t, there, id) // somebody with the same id waits there
	defer victim.Close()
	spared := make(chan error, 1)
	go func() { spared <- victim.BLPop(context.Background(), 0, "list").Err() }()
	blocked(t, there, "blpop", 1)
	cancel()
	assert.ErrorIs(t, <-done, context.Canceled)
	time.Sleep(100 * time.Millisecond)
	select {
	case err := <-spared:
		t.Errorf("somebody else was unblocked: %v", err)
	default:
	}
	there.Do("LPUSH", "list", "x")
	assert.NoError(t, <-spared)
}

// waiterOf returns a client whose only connection has that id.
func waiterOf(t *testing.T, s *redialtest.Server, id int64) *redis.Client {
	t.Helper()
	for {
		rdb := redis.NewClient(&redis.Options{Addr: s.Addr(), PoolSize: 1})
		n := rdb.ClientID(t.Context()).Val()
		if n == id {
			return rdb
		}
		require.NoError(t, rdb.Close())
		require.Less(t, n, id, "the ids are higher already")
	}
}

// When Drain has no time left, what waits is told to end: an element that is handed out in
// that moment is delivered.
func TestUnblock_Drain(t *testing.T) {
	s := redialtest.StartServer(t)
	lost, rounds := 0, 0
	for i := range 40 {
		s.Do("DEL", "list")
		c := NewClient(&redis.Options{Addr: s.Addr()})
		var delivered atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				switch err := c.BLPop(context.Background(), 0, "list").Err(); {
				case err == nil:
					delivered.Add(1)
				default:
					assert.ErrorIs(t, err, ErrOutcomeUnknown)
				}
			})
		}
		blocked(t, s, "blpop", 4)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		pushing := time.AfterFunc(18*time.Millisecond+rand.N(4*time.Millisecond), func() { s.Do("LPUSH", "list", "a", "b") })
		began := time.Now()
		err := c.Drain(ctx)
		took := time.Since(began)
		assert.Less(t, took, 250*time.Millisecond)
		cancel()
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		wg.Wait()
		if pushing.Stop() || took >= 20*time.Millisecond+wire.UnblockFloor { // the server did not say in time whom it had told to end
			continue
		}
		rounds++
		time.Sleep(10 * time.Millisecond)
		left := s.Do("LLEN", "list").(int64)
		if delivered.Load()+left < 2 {
			lost++
			t.Logf("round %d: %d delivered, %d left", i, delivered.Load(), left)
		}
	}
	assert.Zero(t, lost)
	assert.Positive(t, rounds)
}

// A server that says nothing does not keep Drain longer than it may take to end a wait.
func TestUnblock_Drain_OneIsFrozen(t *testing.T) {
	one, two := redialtest.StartServer(t), redialtest.StartServer(t)
	fastest := time.Hour
	for range 3 {
		c := NewRing(&redis.RingOptions{Addrs: map[string]string{"a": one.Addr(), "b": two.Addr()}})
		var wg sync.WaitGroup
		for i := range 16 { // some on each
			wg.Go(func() {
				assert.ErrorIs(t, c.BLPop(context.Background(), 0, fmt.Sprint("list", i)).Err(), ErrOutcomeUnknown)
			})
		}
		require.Eventually(t, func() bool {
			waiting := 0
			for _, s := range []*redialtest.Server{one, two} {
				waiting += strings.Count(s.Do("CLIENT", "LIST").(string), "cmd=blpop")
			}
			return waiting == 16
		}, 5*time.Second, time.Millisecond)
		two.Freeze()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		began := time.Now()
		assert.ErrorIs(t, c.Drain(ctx), context.DeadlineExceeded)
		fastest = min(fastest, time.Since(began))
		cancel()
		wg.Wait()
		two.Thaw()
	}
	assert.Less(t, fastest, 150*time.Millisecond)
}
