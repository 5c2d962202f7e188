package wire

import (
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
