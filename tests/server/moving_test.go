package server

import (
	"fmt"
	"strings"
	"sync"
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
	mu    sync.Mutex
	conns []*redialtest.FakeConn // guarded by mu; which want to
}

func newNotifier(t *testing.T) *notifier {
	s := &notifier{FakeServer: redialtest.NewFakeServer(t)}
	s.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
		if len(args) > 1 && strings.EqualFold(args[1], "maint_notifications") {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.conns = append(s.conns, c)
			return redialtest.Reply("+OK\r\n")
		}
		return redialtest.Handle
	})
	return s
}

// moves tells the connections that they have to go to addr within the seconds.
func (s *notifier) moves(addr string, seconds int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Send(fmt.Sprintf(">4\r\n+MOVING\r\n:1\r\n:%d\r\n$%d\r\n%s\r\n", seconds, len(addr), addr))
	}
}

// onSides runs a test with a client of either kind, which was told where the server is.
func onSides(t *testing.T, test func(t *testing.T, c redis.UniversalClient, from, to *notifier)) {
	for _, side := range []string{"go-redis", "redial", "supervised"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			from, to := newNotifier(t), newNotifier(t)
			opt := &redis.Options{Addr: from.Addr(), Protocol: 3, MaintNotificationsConfig: &maintnotifications.Config{
				Mode: maintnotifications.ModeEnabled, EndpointType: maintnotifications.EndpointTypeInternalIP,
				HandoffTimeout: time.Second, // after which it tries again
			}}
			if side == "redial" {
				c := redial.NewClient(opt)
				defer c.Close()
				test(t, c, from, to)
				return
			}
			c := redis.NewClient(opt)
			if side == "supervised" {
				s, err := redial.Supervise(c)
				require.NoError(t, err)
				defer s.Close()
			}
			defer c.Close()
			test(t, c, from, to)
		})
	}
}

// What the server sends elsewhere goes there, and not on the connection that redial has made to
// ask the server about one that waits.
func TestMoving_GoesWhereItIsSent(t *testing.T) {
	onSides(t, func(t *testing.T, c redis.UniversalClient, from, to *notifier) {
		require.Eventually(t, func() bool {
			require.ErrorIs(t, c.BLPop(t.Context(), 100*time.Millisecond, "none").Err(), redis.Nil)
			_, asks := c.(*redial.Client) // on another
			return !asks || from.Conns() == 2
		}, 10*time.Second, time.Millisecond)
		from.moves(to.Addr(), 5)
		require.Eventually(t, func() bool {
			require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
			return to.Executed("set") > 0
		}, 5*time.Second, 10*time.Millisecond)
	})
}

// Where that cannot be reached yet go-redis tries again, and has what it gives up closed.
func TestMoving_CannotBeReachedYet(t *testing.T) {
	onSides(t, func(t *testing.T, c redis.UniversalClient, from, to *notifier) {
		require.NoError(t, c.Echo(t.Context(), "k").Err())
		to.Kill()
		from.moves(to.Addr(), 5)
		require.NoError(t, c.Echo(t.Context(), "k").Err()) // hears of it
		require.NoError(t, c.Echo(t.Context(), "k").Err()) // has to have another
		require.NoError(t, to.Start())
		require.Eventually(t, func() bool { return to.Conns() > 0 }, 10*time.Second, 10*time.Millisecond)
	})
}
