package server

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialtest"
)

// accepted returns how many connections a server has accepted so far, but for those that
// ask.
func accepted(t *testing.T, s *redialtest.Server) int {
	t.Helper()
	info, ok := s.Do("INFO", "stats").(string)
	require.True(t, ok)
	_, after, _ := strings.Cut(info, "total_connections_received:")
	line, _, _ := strings.Cut(after, "\r\n")
	n, err := strconv.Atoi(line)
	require.NoError(t, err)
	return n
}

// Any reply proves that a connection works: that PING may not be run, or was refused for
// another reason, is no reason to make another.
func TestProof_AnyReply(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(t *testing.T, s *redialtest.Server, o *redis.Options){
		"PING is allowed": func(*testing.T, *redialtest.Server, *redis.Options) {},
		"PING is not allowed": func(t *testing.T, s *redialtest.Server, o *redis.Options) {
			require.Equal(t, "OK", s.Do("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-ping"))
			o.Username, o.Password = "app", "secret"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := redialtest.StartServer(t)
			o := &redis.Options{Addr: s.Addr(), PoolSize: 4}
			set(t, s, o)
			c := redial.NewClient(o, redial.WithIdleCheck(20*time.Millisecond))
			defer func() { require.NoError(t, c.Close()) }()
			require.NoError(t, c.WaitReady(t.Context()))
			require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
			ask := accepted(t, s) // this alone costs connections
			each := accepted(t, s) - ask
			before := c.Stats()
			for range 10 {
				time.Sleep(60 * time.Millisecond)
				require.Equal(t, "v", c.Get(context.Background(), "k").Val())
			}
			after := c.Stats()
			assert.Greater(t, after.IdleChecks, before.IdleChecks, "connections did prove themselves")
			// One may be given up when the machine is so busy that the answer is late.
			assert.LessOrEqual(t, after.IdleDropped-before.IdleDropped, uint64(2))
			assert.LessOrEqual(t, after.Dials-before.Dials, uint64(2))
			assert.LessOrEqual(t, accepted(t, s), ask+2*each+2)
		})
	}
}

// unaddressed is a connection that has no addresses, which go-redis needs for no command.
type unaddressed struct{ net.Conn }

func (unaddressed) LocalAddr() net.Addr  { panic("there is no address") }
func (unaddressed) RemoteAddr() net.Addr { panic("there is no address") }

// What cannot say its addresses is a connection all the same.
func TestForeign_ConnWithoutAddresses(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr(), Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return unaddressed{nc}, nil
	}})
	require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.BLPop(ctx, time.Minute, "queue").Err(), context.DeadlineExceeded)
	sub := c.Subscribe(t.Context(), "news")
	defer sub.Close()
	_, err := sub.Receive(t.Context())
	require.NoError(t, err)
	require.NoError(t, c.Get(t.Context(), "k").Err())
}

// A server, or a proxy, that ends connections on which it is asked who they are does so twice.
func TestForeign_ServerShunsIntroductions(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	var asked atomic.Int32
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "client" && args[1] == "info" {
			asked.Add(1)
			return redialtest.CloseBeforeExecute
		}
		return redialtest.Handle
	})
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr()})
	require.NoError(t, c.LPush(t.Context(), "queue", 1, 2, 3).Err())
	failed := 0
	for range 5 {
		if c.BLPop(t.Context(), time.Minute, "queue").Err() != nil {
			failed++
		}
	}
	assert.Equal(t, 2, failed)
	sub := c.Subscribe(t.Context(), "news")
	defer sub.Close()
	_, err := sub.Receive(t.Context())
	require.NoError(t, err)

	// What takes its place after an outage may be another.
	before := asked.Load()
	f.Kill()
	require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
	require.NoError(t, f.Start())
	require.NoError(t, c.LPush(t.Context(), "queue", 1).Err())
	_ = c.BLPop(t.Context(), time.Minute, "queue") // ends as those did
	assert.Greater(t, asked.Load(), before)
}

// Subscriptions that are closed before they have an answer say nothing of the server.
func TestIntroductions_EndedByTheCaller(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	var asked atomic.Int32
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "client" && args[1] == "info" && asked.Add(1) < 4 {
			return redialtest.Hang
		}
		return redialtest.Handle
	})
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr()})
	for want := range int32(3) {
		sub := c.Subscribe(t.Context(), "news")
		require.Eventually(t, func() bool { return asked.Load() == want+1 }, time.Second, time.Millisecond)
		require.NoError(t, sub.Close())
	}
	require.NoError(t, c.LPush(t.Context(), "queue", 1).Err())
	require.NoError(t, c.BLPop(t.Context(), time.Minute, "queue").Err())
	assert.EqualValues(t, 4, asked.Load())
}

// A pool that keeps connections ready has as many at the server as with go-redis, also when
// there are commands from the first moment on.
func TestMinIdleConns_AtTheStart(t *testing.T) {
	t.Parallel()
	const least = 3
	count := func(t *testing.T, r rival) int {
		s := redialtest.StartServer(t)
		c := r.make(&redis.Options{Addr: s.Addr(), MinIdleConns: least})
		defer c.Close()
		require.NoError(t, c.Set(t.Context(), "k", 1, 0).Err())
		time.Sleep(1500 * time.Millisecond)                             // a look of the heartbeat included
		return strings.Count(s.Do("CLIENT", "LIST").(string), "\n") - 1 // but for who asks
	}
	bare, ours := count(t, rivals[0]), count(t, rivals[1])
	t.Logf("connections: go-redis %d, redial %d", bare, ours)
	assert.GreaterOrEqual(t, ours, least)
	assert.LessOrEqual(t, ours, bare+1) // a command that waits for the first may make one
}
