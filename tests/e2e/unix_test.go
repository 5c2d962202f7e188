package e2e

import (
	"context"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialtest"
)

// A server behind a socket of unix is watched over as any other.
func TestUnixSocket(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("servers there have no such sockets")
	}
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	s := redialtest.StartServer(t, "--unixsocket", path)
	opt := &redis.Options{Addr: path, ReadTimeout: 8 * time.Second}
	c := testkit.Connect(t, opt)
	ctx := t.Context()

	t.Run("killed and started", func(t *testing.T) {
		sub := c.Subscribe(ctx, "news")
		defer sub.Close()
		news := sub.Channel()
		require.Eventually(t, func() bool { return s.Do("publish", "news", "first") == int64(1) }, time.Second, time.Millisecond)
		awaitMessage(t, news, "first")
		load := testkit.StartLoad(t, c, 4)
		load.Flows(t, time.Second)
		s.Kill()
		testkit.AwaitState(t, c, redial.StateReconnecting, time.Second)
		s.Start()
		load.Flows(t, time.Second)
		load.Stop()
		require.Eventually(t, func() bool { return s.Do("publish", "news", "back") == int64(1) }, time.Second, time.Millisecond)
		awaitMessage(t, news, "back")
	})
	t.Run("frozen for 4 s", func(t *testing.T) {
		before := c.Stats()
		s.Freeze()
		var wg sync.WaitGroup
		errs := make(chan error, 8)
		for range cap(errs) {
			wg.Go(func() { errs <- c.Incr(ctx, "frozen").Err() })
		}
		time.Sleep(4 * time.Second) // longer than it takes to find a server dead
		s.Thaw()
		wg.Wait()
		for range cap(errs) {
			assert.NoError(t, <-errs)
		}
		assert.Equal(t, "8", c.Get(ctx, "frozen").Val())
		assert.Equal(t, before.Unknown, c.Stats().Unknown)
	})
	t.Run("blocked commands are canceled without loss", func(t *testing.T) {
		for range 50 {
			ctx, cancel := context.WithCancel(ctx)
			popped := make(chan error, 1)
			go func() { popped <- c.BLPop(ctx, 0, "list").Err() }()
			require.Eventually(t, func() bool { return strings.Contains(s.Do("info", "clients").(string), "blocked_clients:1") }, time.Second, time.Millisecond)
			go cancel()
			s.Do("rpush", "list", "x")
			if err := <-popped; err != nil { // it had come too late for the caller, and is still there
				assert.ErrorIs(t, err, context.Canceled)
				require.Equal(t, int64(1), s.Do("llen", "list"))
				s.Do("del", "list")
			}
			require.Equal(t, int64(0), s.Do("llen", "list"))
		}
	})
}

func awaitMessage(t *testing.T, news <-chan *redis.Message, want string) {
	t.Helper()
	select {
	case m := <-news:
		require.Equal(t, want, m.Payload)
	case <-time.After(10 * time.Second):
		require.Fail(t, "no message")
	}
}
