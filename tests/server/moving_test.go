package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// notifier is a server that tells of its maintenance whoever wants to know.
type notifier struct {
	*redialtest.FakeServer
	full  atomic.Bool // there are no new connections to it
	mu    sync.Mutex
	conns []*redialtest.FakeConn // guarded by mu; which want to
	said  string                 // guarded by mu; what they were told
}

func newNotifier(t *testing.T) *notifier {
	s := &notifier{FakeServer: redialtest.NewFakeServer(t)}
	s.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
		if len(args) > 1 && strings.EqualFold(args[1], "maint_notifications") {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.conns = append(s.conns, c)
			return redialtest.Reply("+OK\r\n" + s.said)
		}
		return redialtest.Handle
	})
	return s
}

// moves tells the connections, and those that come later, that they have to go to addr within
// the seconds, or with none to where their own leads in the end.
func (s *notifier) moves(addr string, seconds int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to := "_\r\n"
	if addr != "" {
		to = fmt.Sprintf("$%d\r\n%s\r\n", len(addr), addr)
	}
	s.said = fmt.Sprintf(">4\r\n+MOVING\r\n:1\r\n:%d\r\n%s", seconds, to)
	for _, c := range s.conns {
		c.Send(s.said)
	}
}

// onSides runs a test with a client of either kind, which was told where the server is: that is
// to say where or, with none, that its own address will lead there. It leads through p.
func onSides(t *testing.T, endpoint maintnotifications.EndpointType,
	test func(t *testing.T, c redis.UniversalClient, p *redialtest.Proxy, from, to *notifier)) {
	for _, side := range []string{"go-redis", "redial", "supervised"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			from, to := newNotifier(t), newNotifier(t)
			p := redialtest.NewProxy(t, from.Addr())
			dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
				if from.full.Load() {
					return nil, syscall.ECONNREFUSED
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			opt := &redis.Options{Addr: p.Addr(), Dialer: dial, Protocol: 3, MaintNotificationsConfig: &maintnotifications.Config{
				Mode: maintnotifications.ModeEnabled, EndpointType: endpoint,
				HandoffTimeout: time.Second, // after which it tries again
			}}
			if side == "redial" {
				c := redial.NewClient(opt)
				defer shut(c.Client)
				defer c.Close()
				test(t, c, p, from, to)
				return
			}
			c := redis.NewClient(opt)
			if side == "supervised" {
				s, err := redial.Supervise(c)
				require.NoError(t, err)
				defer s.Close()
			}
			defer shut(c)
			test(t, c, p, from, to)
		})
	}
}

// shut closes c until nothing is left of it: where connections are just being moved go-redis gives
// up after 10 s, and has more to end.
func shut(c *redis.Client) {
	for errors.Is(c.Close(), context.DeadlineExceeded) {
	}
}

// asks has redial make the connection on which it asks the server about one that waits.
func asks(t *testing.T, c redis.UniversalClient, from *notifier) {
	require.Eventually(t, func() bool {
		require.ErrorIs(t, c.BLPop(t.Context(), 100*time.Millisecond, "none").Err(), redis.Nil)
		_, asks := c.(*redial.Client)
		return !asks || from.Conns() == 2
	}, 10*time.Second, time.Millisecond)
}

// arrives has the client set until the server does that.
func arrives(t *testing.T, c redis.UniversalClient, to *notifier) {
	require.Eventually(t, func() bool {
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		return to.Executed("set") > 0
	}, 5*time.Second, 10*time.Millisecond)
}

// What the server sends elsewhere goes there, and not on the connection that redial has made to
// ask the server about one that waits.
func TestMoving_GoesWhereItIsSent(t *testing.T) {
	onSides(t, maintnotifications.EndpointTypeInternalIP, func(t *testing.T, c redis.UniversalClient, _ *redialtest.Proxy, from, to *notifier) {
		asks(t, c, from)
		from.moves(to.Addr(), 5)
		arrives(t, c, to)
	})
}

// Neither does it where the server says when, and not where to.
func TestMoving_GoesWhereItsAddressLeads(t *testing.T) {
	onSides(t, maintnotifications.EndpointTypeNone, func(t *testing.T, c redis.UniversalClient, p *redialtest.Proxy, from, to *notifier) {
		asks(t, c, from)
		p.Retarget(to.Addr())
		from.moves("", 2)
		arrives(t, c, to)
	})
}

// Where that cannot be reached yet go-redis tries again, and has what it gives up closed.
func TestMoving_CannotBeReachedYet(t *testing.T) {
	onSides(t, maintnotifications.EndpointTypeInternalIP, func(t *testing.T, c redis.UniversalClient, _ *redialtest.Proxy, from, to *notifier) {
		require.NoError(t, c.Echo(t.Context(), "k").Err())
		to.Kill()
		from.moves(to.Addr(), 5)
		require.NoError(t, c.Echo(t.Context(), "k").Err()) // hears of it
		require.NoError(t, c.Echo(t.Context(), "k").Err()) // has to have another
		require.NoError(t, to.Start())
		require.Eventually(t, func() bool { return to.Conns() > 0 }, 10*time.Second, 10*time.Millisecond)
	})
}

// So it does where its own address cannot be reached for a while.
func TestMoving_ItsAddressCannotBeReachedYet(t *testing.T) {
	onSides(t, maintnotifications.EndpointTypeNone, func(t *testing.T, c redis.UniversalClient, _ *redialtest.Proxy, from, _ *notifier) {
		const conns = 8
		var wg sync.WaitGroup
		each := func() {
			for range conns {
				wg.Go(func() { _ = c.BLPop(t.Context(), time.Second, "none").Err() })
			}
			wg.Wait()
		}
		each()
		require.GreaterOrEqual(t, from.Conns(), conns)
		from.full.Store(true)
		from.moves("", 2)
		each() // hears of it, and has to have others
		time.Sleep(1500 * time.Millisecond)
		from.full.Store(false)
		require.Eventually(t, func() bool {
			_ = c.Echo(t.Context(), "k").Err()
			return from.Conns() <= int(c.PoolStats().TotalConns)+1
		}, 20*time.Second, 50*time.Millisecond)
	})
}
