package wire

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A connection that was severed for one call fails the next before the first byte.
func TestSever_RacesWithTheNextCall(t *testing.T) {
	f, _ := still(0)
	x := &Call{Context: t.Context(), calls: f.calls, writeTimeout: time.Second}
	c := newConn(&scriptConn{write: func([]byte) (int, error) {
		t.Error("a byte got through")
		return 0, nil
	}}, f, 1)
	token, ok := x.Deadline()
	require.True(t, ok)
	require.NoError(t, c.SetWriteDeadline(token))
	assert.Equal(t, c, x.conn.Load())
	c.serving.Store(severed) // as sever does, just before it retires the connection
	assert.Equal(t, PhaseWrite, phaseOf(t, c.SetWriteDeadline(time.Now())), "nothing was sent")
	c.sever(x)
	assert.Nil(t, c.cause.Load(), "it does not serve that call any more")
}

// Every token leads to its call, once, whoever comes and goes meanwhile.
func TestCalls_TokensLeadToTheirCalls(t *testing.T) {
	s := new(Calls)
	deadline := time.Now().Add(time.Hour)
	ctx, cancel := context.WithDeadline(t.Context(), deadline)
	defer cancel()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				x := s.Begin(ctx, time.Second, nil)
				first, _ := x.Deadline()
				token, ok := x.Deadline()
				assert.True(t, ok)
				assert.WithinDuration(t, time.Now().Add(time.Second-tokenMargin), token, 100*time.Millisecond)
				assert.Nil(t, s.take(first), "another took its place")
				assert.Nil(t, s.take(token.UTC()), "it is marked")
				assert.Same(t, x, s.take(token))
				assert.Nil(t, s.take(token), "once")
				again, _ := x.Deadline()
				x.Release()
				assert.Nil(t, s.take(again), "it is over")
				at, ok := x.Deadline()
				assert.True(t, ok)
				assert.Equal(t, deadline, at, "its own")
			}
		})
	}
	wg.Wait()
	assert.Zero(t, s.Len())
}

// Where there are too many calls, those that are left over keep their own deadlines.
func TestCalls_NoPlaceLeft(t *testing.T) {
	s := new(Calls)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	all := make([]*Call, 0, callPages*callPlaces)
	for {
		x := s.Begin(ctx, time.Second, nil)
		all = append(all, x)
		if _, ok := x.Deadline(); !ok {
			break
		}
		require.LessOrEqual(t, len(all), callPages*callPlaces)
	}
	assert.Greater(t, len(all), callPages*callPlaces*9/10)
	assert.Equal(t, len(all)-1, s.Len())
	for _, x := range all {
		x.Release()
	}
	assert.Zero(t, s.Len())
}
