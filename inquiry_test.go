package redial

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/testkit/platform"
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
	platform.NeedPoolsThatLook(t) // or only the first command on a connection can be introduced
	for _, protocol := range []int{2, 3} {
		s := redialtest.StartServer(t)
		c := NewClient(&redis.Options{Addr: s.Addr(), Protocol: protocol, PoolSize: 1})
		id := c.ClientID(t.Context()).Val()
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
