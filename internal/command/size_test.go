package command

import (
	"context"
	"encoding"
	"math"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/redialtest"
)

// countingConn counts what is written.
type countingConn struct {
	net.Conn
	n int
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.n += len(p)
	return c.Conn.Write(p)
}

type marshaler struct{}

func (marshaler) MarshalBinary() ([]byte, error) { return []byte("x"), nil }

var _ encoding.BinaryMarshaler = marshaler{}

// The sizes must be those of go-redis, which is asked here.
func TestWireSize_IsWhatGoRedisWrites(t *testing.T) {
	server := redialtest.NewFakeServerPipe(t)
	var cn *countingConn
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", Protocol: 2, DisableIdentity: true, PoolSize: 1,
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := server.Dial(ctx, network, addr)
			cn = &countingConn{Conn: nc}
			return cn, err
		}})
	defer rdb.Close()
	ctx := context.Background()
	require.NoError(t, rdb.Ping(ctx).Err())
	for _, arg := range []any{
		"", "x", "0123456789", string(make([]byte, 100_000)), []byte(nil), []byte("bytes"), nil,
		0, -1, 42, int8(-128), int16(300), int32(-70000), int64(math.MinInt64), uint(7), uint8(255), uint16(1), uint32(1), uint64(math.MaxUint64), uintptr(9),
		float32(1.5), 0.1, -1e300, math.Inf(1), math.NaN(), true, false,
		time.Duration(-5), time.Hour, time.Now(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	} {
		cmd := redis.NewCmd(ctx, "echo", arg)
		before := cn.n
		_ = rdb.Process(ctx, cmd)
		size, ok := Size(cmd.Args())
		assert.True(t, ok, "%T", arg)
		assert.Equal(t, cn.n-before, size, "%T %v", arg, arg)
	}
	for _, arg := range []any{marshaler{}, &marshaler{}, new(string), net.IPv4zero} {
		_, ok := Size([]any{"echo", arg})
		assert.False(t, ok, "%T", arg)
	}
}

func TestDelivered(t *testing.T) {
	ctx := context.Background()
	cmds := []redis.Cmder{redis.NewCmd(ctx, "incr", "a"), redis.NewCmd(ctx, "incr", "bb"), redis.NewCmd(ctx, "incr", "ccc")}
	one, _ := Size(cmds[0].Args())
	two, _ := Size(cmds[1].Args())
	assert.Equal(t, 0, Delivered(cmds, 0))
	assert.Equal(t, 0, Delivered(cmds, one-1))
	assert.Equal(t, 1, Delivered(cmds, one))
	assert.Equal(t, 1, Delivered(cmds, one+two-1))
	assert.Equal(t, 2, Delivered(cmds, one+two))
	assert.Equal(t, 3, Delivered(cmds, math.MaxInt))
	cmds[1] = redis.NewCmd(ctx, "incr", marshaler{})
	assert.Equal(t, 0, Delivered(cmds, one-1))
	assert.Equal(t, 1, Delivered(cmds, one))
	assert.Equal(t, 3, Delivered(cmds, one+1), "nothing is known of what follows")
}
