package bubble

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit/memnet"
)

func TestEvents_OneLogLinePerTransition(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		var log bytes.Buffer
		opt.Username, opt.Password = "", ""
		c := redial.NewClient(opt, redial.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		memnet.Ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
		for range 100 {
			_ = c.Set(redial.FailFast(t.Context()), "secret-key", "secret-value", 0).Err()
		}
		time.Sleep(10 * time.Second)
		n.Start()
		memnet.Ready(t, c)
		require.NoError(t, c.Close())
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		require.Len(t, lines, 4)
		for i, want := range []string{
			"level=INFO msg=\"redis connected\"", "level=WARN msg=\"redis reconnecting\"",
			"level=INFO msg=\"redis connected\"", "level=INFO msg=\"redis closed\"",
		} {
			assert.Contains(t, lines[i], want)
		}
		assert.Contains(t, lines[1], "connection refused")
		assert.NotContains(t, log.String(), "secret")
	})
}

func TestEvents_PanickingCallback_IsContainedAndLogged(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		var log bytes.Buffer
		calls := 0
		c := redial.NewClient(opt, redial.WithLogger(slog.New(slog.NewTextHandler(&log, nil))),
			redial.WithOnStateChange(func(redial.Event) { calls++; panic("oops") }))
		memnet.Ready(t, c)
		require.NoError(t, c.Ping(t.Context()).Err())
		require.NoError(t, c.Close())
		assert.Equal(t, 2, calls)
		assert.Equal(t, 2, strings.Count(log.String(), "panic=oops"))
	})
}

func TestEvents_CallbackMayCloseTheClient(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		handed := make(chan *redial.Client, 1)
		var last redial.State
		c := redial.NewClient(opt, redial.WithOnStateChange(func(e redial.Event) {
			if last = e.To; e.To == redial.StateConnected {
				_ = (<-handed).Close()
			}
		}))
		handed <- c
		require.NoError(t, c.WaitForState(t.Context(), redial.StateClosed))
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Equal(t, redial.StateClosed, last)
	})
}

func TestEvents_Durations(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		var got []redial.Event
		c := ready(t, opt, redial.WithOnStateChange(func(e redial.Event) { got = append(got, e) }))
		time.Sleep(10 * time.Second)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
		began := time.Now()
		time.Sleep(3 * time.Second)
		n.Start()
		memnet.Ready(t, c)
		require.Len(t, got, 3)
		assert.InDelta(t, 10*time.Second, got[1].In, float64(time.Second))
		assert.Equal(t, time.Since(began), got[2].In)
		assert.Equal(t, got[2].In, c.Stats().Down)
		assert.NotZero(t, got[2].Attempts)
		assert.Equal(t, "127.0.0.1:1", got[2].Addr)
	})
}

func TestConnect_FailsCleanly(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		n.Redis.RequireAuth("right")
		opt.Password = "wrong-secret"
		_, err := redial.Connect(t.Context(), opt)
		assert.ErrorContains(t, err, "WRONGPASS")
		assert.NotContains(t, err.Error(), "secret")

		opt.Password = "right"
		c, err := redial.Connect(t.Context(), opt)
		require.NoError(t, err)
		require.NoError(t, c.Close())

		n.Kill()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err = redial.Connect(ctx, opt)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.True(t, redial.IsConnectionError(err))
	})
}
