package e2e

import (
	"fmt"
	"net"
	"strings"
	"sync"
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

// moving is a cluster of two scripted nodes, of which one has all slots.
type moving struct {
	nodes   [2]*redialtest.FakeServer
	owner   atomic.Int32
	mute    atomic.Int32           // how many questions for the topology will have an error for an answer
	refusal atomic.Pointer[string] // what the owner says to SSUBSCRIBE; nil: nothing special
	subs    chan subscribed

	sending sync.Mutex // held by who says something that has to come as a whole

	mu       sync.Mutex
	channels map[*redialtest.FakeConn]map[string]bool // guarded by mu
}

// subscribed is that a connection has subscribed to shard channels of a node.
type subscribed struct {
	node     int
	conn     *redialtest.FakeConn
	channels string
}

func startMoving(t *testing.T) *moving {
	m := &moving{subs: make(chan subscribed, 100), channels: make(map[*redialtest.FakeConn]map[string]bool)}
	for i := range m.nodes {
		m.nodes[i] = redialtest.NewFakeServer(t)
	}
	for i := range m.nodes {
		m.nodes[i].OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action { return m.answer(i, c, args) })
	}
	return m
}

func (m *moving) answer(node int, c *redialtest.FakeConn, args []string) redialtest.Action {
	owner := int(m.owner.Load())
	switch name := strings.ToLower(args[0]); name {
	case "cluster":
		if m.mute.Add(-1) >= 0 {
			return redialtest.Reply("-ERR not now\r\n")
		}
		host, port, _ := net.SplitHostPort(m.nodes[owner].Addr())
		return redialtest.Reply(fmt.Sprintf("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$%d\r\n%s\r\n:%s\r\n", len(host), host, port))
	case "ping": // between two messages, and not within one
		m.sending.Lock()
		defer m.sending.Unlock()
		c.Send("+PONG\r\n")
		return redialtest.Drop
	case "ssubscribe", "sunsubscribe":
		if node != owner {
			return redialtest.Reply("-MOVED 1 " + m.nodes[owner].Addr() + "\r\n")
		}
		if refusal := m.refusal.Load(); refusal != nil && name == "ssubscribe" {
			m.subs <- subscribed{node, c, *refusal}
			return redialtest.Reply(*refusal + "\r\n")
		}
		c.Send(m.confirm(c, name, args[1:])) // before the test goes on
		if name == "ssubscribe" {
			m.subs <- subscribed{node, c, strings.Join(args[1:], " ")}
		}
		return redialtest.Drop
	}
	return redialtest.Handle
}

// confirm does what a connection asks for and returns what it is told.
func (m *moving) confirm(c *redialtest.FakeConn, name string, channels []string) (reply string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	has := m.channels[c]
	if has == nil {
		has = make(map[string]bool)
		m.channels[c] = has
	}
	if len(channels) == 0 {
		for one := range has {
			channels = append(channels, one)
		}
	}
	for _, one := range channels {
		if name == "ssubscribe" {
			has[one] = true
		} else {
			delete(has, one)
		}
		reply += shardPush(name, one, len(has))
	}
	if len(channels) == 0 {
		reply = ">3\r\n$12\r\nsunsubscribe\r\n_\r\n:0\r\n"
	}
	return reply
}

func shardPush(kind, channel string, n int) string {
	return fmt.Sprintf(">3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n:%d\r\n", len(kind), kind, len(channel), channel, n)
}

func shardMessage(channel, text string) string {
	return fmt.Sprintf(">3\r\n$8\r\nsmessage\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(channel), channel, len(text), text)
}

// send sends something in parts, in the midst of which nothing else is said.
func (m *moving) send(c *redialtest.FakeConn, parts []string) {
	m.sending.Lock()
	defer m.sending.Unlock()
	for i, part := range parts {
		if i > 0 {
			time.Sleep(2 * time.Millisecond) // or they may be read at once
		}
		c.Send(part)
	}
}

// next returns the next subscription, which there must be.
func (m *moving) next(t *testing.T) subscribed {
	t.Helper()
	select {
	case s := <-m.subs:
		return s
	case <-time.After(waits):
		t.Fatal("nobody subscribes")
		return subscribed{}
	}
}

// waits is for how long a test waits for what must come.
const waits = 30 * time.Second

// confirmed returns once a subscription was told so often that it has begun or ended.
func confirmed(t *testing.T, from <-chan any, times int) {
	t.Helper()
	for range times {
		select {
		case msg := <-from:
			require.IsType(t, (*redis.Subscription)(nil), msg)
		case <-time.After(waits):
			t.Fatal("nothing is confirmed")
		}
	}
}

// none is that there is none for a while.
func (m *moving) none(t *testing.T) {
	t.Helper()
	select {
	case s := <-m.subs:
		t.Fatalf("%q is subscribed to once more", s.channels)
	case <-time.After(1500 * time.Millisecond):
	}
}

func (m *moving) client(t *testing.T) *redial.ClusterClient {
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{m.nodes[0].Addr(), m.nodes[1].Addr()}})
	t.Cleanup(func() { _ = c.Close() })
	testkit.WaitReady(t, c)
	return c
}

// A subscription of shard channels follows its slot, whatever the node's word for it comes
// with.
func TestStray_Follows(t *testing.T) {
	t.Parallel()
	gone := shardPush("sunsubscribe", "a", 0)
	for name, tc := range map[string]struct {
		before func(m *moving, s *redis.PubSub) (confirmed int)
		sends  []string
	}{
		"alone":           {sends: []string{gone}},
		"after a message": {sends: []string{shardMessage("a", "hello") + gone}},
		"in two parts":    {sends: []string{shardMessage("a", "hello") + gone[:9], gone[9:]}},
		"byte by byte":    {sends: strings.Split(gone, "")},
		"nobody tells the topology at first": {
			before: func(m *moving, _ *redis.PubSub) int { m.mute.Store(2); return 0 },
			sends:  []string{gone},
		},
		"after another was unsubscribed from": {
			before: func(_ *moving, s *redis.PubSub) int { _ = s.SUnsubscribe(t.Context(), "b"); return 1 },
			sends:  []string{gone},
		},
		"after all were unsubscribed from": {
			before: func(m *moving, s *redis.PubSub) int {
				_ = s.SUnsubscribe(t.Context())
				_ = s.SSubscribe(t.Context(), "a")
				m.next(t)
				return 3
			},
			sends: []string{gone},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := startMoving(t)
			c := m.client(t)
			s := c.SSubscribe(t.Context(), "a", "b")
			defer s.Close()
			ch := s.ChannelWithSubscriptions()
			on := m.next(t)
			require.Equal(t, 0, on.node)
			confirmed(t, ch, 2)
			if tc.before != nil {
				confirmed(t, ch, tc.before(m, s))
			}
			m.owner.Store(1)
			m.send(on.conn, tc.sends)
			assert.Equal(t, 1, m.next(t).node)
		})
	}
}

// What a node refuses is tried again: the slot may be served soon, and nobody else would.
func TestStray_Refused_TriesAgain(t *testing.T) {
	t.Parallel()
	for _, refusal := range []string{
		"-CLUSTERDOWN The cluster is down", "-CLUSTERDOWN Hash slot not served", "-TRYAGAIN Multiple keys request during rehashing of slot",
	} {
		t.Run(refusal, func(t *testing.T) {
			t.Parallel()
			m := startMoving(t)
			m.refusal.Store(&refusal)
			c := m.client(t)
			s := c.SSubscribe(t.Context(), "a")
			defer s.Close()
			s.Channel()
			require.Equal(t, refusal, m.next(t).channels)
			m.refusal.Store(nil)
			require.Equal(t, "a", m.next(t).channels)
		})
	}
}

// What looks like a node's word and is not costs no subscription its connection.
func TestStray_StaysWhereItIs(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		before func(m *moving, s *redis.PubSub) // anything is read
		after  func(m *moving, on subscribed)
	}{
		"unsubscribes at once": {before: func(_ *moving, s *redis.PubSub) {
			_ = s.Ping(t.Context())
			_ = s.SUnsubscribe(t.Context(), "b")
		}},
		"unsubscribes from all at once": {before: func(m *moving, s *redis.PubSub) {
			_ = s.SUnsubscribe(t.Context(), "b")
			_ = s.SUnsubscribe(t.Context())
			_ = s.SUnsubscribe(t.Context())
			_ = s.SSubscribe(t.Context(), "a")
			m.next(t)
		}},
		"a message": {after: func(m *moving, on subscribed) {
			text := strings.Repeat("x", 4000) + strings.Repeat(shardPush("sunsubscribe", "a", 0)+"-MOVED 1 x:1\r\n", 10)
			m.send(on.conn, strings.SplitAfter(shardMessage("a", text), "\r\n"))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := startMoving(t)
			c := m.client(t)
			s := c.SSubscribe(t.Context(), "a", "b")
			defer s.Close()
			on := m.next(t)
			if tc.before != nil {
				tc.before(m, s)
			}
			ch := s.Channel()
			if tc.after != nil {
				tc.after(m, on)
			}
			m.none(t)
			on.conn.Send(shardMessage("a", "hello"))
			for payload := ""; payload != "hello"; {
				select {
				case msg, open := <-ch:
					require.True(t, open, "the subscription has ended")
					payload = msg.Payload
				case <-time.After(waits):
					t.Fatal("nothing is received any more")
				}
			}
		})
	}
}
