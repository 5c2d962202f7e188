package redial

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
)

func TestEvents_OneLogLinePerTransition(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var log bytes.Buffer
		opt.Username, opt.Password = "", ""
		c := NewClient(opt, WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		for range 100 {
			_ = c.Set(FailFast(t.Context()), "secret-key", "secret-value", 0).Err()
		}
		time.Sleep(10 * time.Second)
		n.Start()
		ready(t, c)
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

func TestEvents_SlowCallback_DelaysNobody(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		block := make(chan struct{})
		var got []Event
		c := NewClient(opt, WithOnStateChange(func(e Event) {
			<-block
			got = append(got, e)
		}))
		for range 50 {
			require.NoError(t, c.WaitReady(t.Context()))
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			n.Start()
		}
		require.NoError(t, c.WaitReady(t.Context()))
		began := time.Now()
		require.NoError(t, c.Close())
		assert.Equal(t, callbackPatience, time.Since(began))
		close(block)
		synctest.Wait()
		require.Len(t, got, 1+eventQueue)
		assert.Equal(t, StateClosed, got[len(got)-1].To, "the last one is never dropped")
		assert.EqualValues(t, 102-1-eventQueue, c.Stats().EventsDropped)
		for i := 2; i < len(got); i++ {
			assert.Equal(t, got[i-1].To, got[i].From, "in order")
		}
	})
}

func TestEvents_PanickingCallback_IsContainedAndLogged(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var log bytes.Buffer
		calls := 0
		c := NewClient(opt, WithLogger(slog.New(slog.NewTextHandler(&log, nil))),
			WithOnStateChange(func(Event) { calls++; panic("oops") }))
		ready(t, c)
		require.NoError(t, c.Ping(t.Context()).Err())
		require.NoError(t, c.Close())
		assert.Equal(t, 2, calls)
		assert.Equal(t, 2, strings.Count(log.String(), "panic=oops"))
	})
}

func TestEvents_CallbackMayCloseTheClient(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		handed := make(chan *Client, 1)
		var last State
		c := NewClient(opt, WithOnStateChange(func(e Event) {
			if last = e.To; e.To == StateConnected {
				_ = (<-handed).Close()
			}
		}))
		handed <- c
		require.NoError(t, c.WaitForState(t.Context(), StateClosed))
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Equal(t, StateClosed, last)
	})
}

func TestEvents_Durations(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var got []Event
		c := NewClient(opt, WithOnStateChange(func(e Event) { got = append(got, e) }))
		defer c.Close()
		ready(t, c)
		time.Sleep(10 * time.Second)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		began := time.Now()
		time.Sleep(3 * time.Second)
		n.Start()
		ready(t, c)
		require.Len(t, got, 3)
		assert.InDelta(t, 10*time.Second, got[1].In, float64(time.Second))
		assert.Equal(t, time.Since(began), got[2].In)
		assert.Equal(t, got[2].In, c.Stats().Down)
		assert.NotZero(t, got[2].Attempts)
		assert.Equal(t, "127.0.0.1:1", got[2].Addr)
	})
}

func TestConnect_FailsCleanly(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		n.srv.RequireAuth("right")
		opt.Password = "wrong-secret"
		_, err := Connect(t.Context(), opt)
		assert.ErrorContains(t, err, "WRONGPASS")
		assert.NotContains(t, err.Error(), "secret")

		opt.Password = "right"
		c, err := Connect(t.Context(), opt)
		require.NoError(t, err)
		require.NoError(t, c.Close())

		n.Kill()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err = Connect(ctx, opt)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.True(t, IsConnectionError(err))
	})
}
