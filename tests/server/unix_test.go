package server

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

const unixWithin = 30 * time.Second // for what must come

// A server behind a socket of unix is watched over as any other.
func TestUnixSocket(t *testing.T) {
	if runtime.GOOS == "windows" {
		redialtest.Skip(t, "servers there have no such sockets")
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
		require.Eventually(t, func() bool { return s.Do("publish", "news", "first") == int64(1) }, unixWithin, time.Millisecond)
		awaitMessage(t, news, "first")
		load := testkit.StartLoad(t, c, 4)
		load.Flows(t, unixWithin)
		s.Kill()
		testkit.AwaitState(t, c, redial.StateReconnecting, unixWithin)
		s.Start()
		load.Flows(t, unixWithin)
		load.Stop()
		require.Eventually(t, func() bool { return s.Do("publish", "news", "back") == int64(1) }, unixWithin, time.Millisecond)
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
		before, lost := c.Stats().Dials, 0
		for range 50 {
			ctx, cancel := context.WithCancel(ctx)
			popped := make(chan error, 1)
			go func() { popped <- c.BLPop(ctx, 0, "list").Err() }()
			require.Eventually(t, func() bool { return strings.Contains(s.Do("info", "clients").(string), "blocked_clients:1") }, unixWithin, time.Millisecond)
			go cancel()
			s.Do("rpush", "list", "x")
			left := int64(0)
			if err := <-popped; err != nil { // it had come too late for the caller, and is still there
				assert.ErrorIs(t, err, context.Canceled)
				if left = s.Do("llen", "list").(int64); left == 0 {
					lost++
				}
			}
			require.Equal(t, left, s.Do("del", "list"))
		}
		assert.LessOrEqual(t, lost, int(c.Stats().Dials-before), "only where the server did not answer in time, on a busy machine")
	})
}

func awaitMessage(t *testing.T, news <-chan *redis.Message, want string) {
	t.Helper()
	select {
	case m := <-news:
		require.Equal(t, want, m.Payload)
	case <-time.After(unixWithin):
		require.Fail(t, "no message")
	}
}
