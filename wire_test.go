package redial

import (
	"context"
	"encoding"
	"errors"
	"math"
	"net"
	"testing"
	"testing/synctest"
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
		size, ok := wireSize(cmd.Args())
		assert.True(t, ok, "%T", arg)
		assert.Equal(t, cn.n-before, size, "%T %v", arg, arg)
	}
	for _, arg := range []any{marshaler{}, &marshaler{}, new(string), net.IPv4zero} {
		_, ok := wireSize([]any{"echo", arg})
		assert.False(t, ok, "%T", arg)
	}
}

func TestDelivered(t *testing.T) {
	ctx := context.Background()
	cmds := []redis.Cmder{redis.NewCmd(ctx, "incr", "a"), redis.NewCmd(ctx, "incr", "bb"), redis.NewCmd(ctx, "incr", "ccc")}
	one, _ := wireSize(cmds[0].Args())
	two, _ := wireSize(cmds[1].Args())
	assert.Equal(t, 0, delivered(cmds, 0))
	assert.Equal(t, 0, delivered(cmds, one-1))
	assert.Equal(t, 1, delivered(cmds, one))
	assert.Equal(t, 1, delivered(cmds, one+two-1))
	assert.Equal(t, 2, delivered(cmds, one+two))
	assert.Equal(t, 3, delivered(cmds, math.MaxInt))
	cmds[1] = redis.NewCmd(ctx, "incr", marshaler{})
	assert.Equal(t, 0, delivered(cmds, one-1))
	assert.Equal(t, 1, delivered(cmds, one))
	assert.Equal(t, 3, delivered(cmds, one+1), "nothing is known of what follows")
}

// A pipeline broke while it was written: what had not been delivered whole cannot
// have run, and only the rest is unknown.
func TestPipeline_PartlyWritten(t *testing.T) {
	for _, tc := range []struct {
		name    string
		big     int // size of the values, to have go-redis write in several parts
		broken  int // the command that breaks in the middle
		unknown int // commands that may have run
	}{
		{"in the first", 1, 0, 0},
		{"in the middle", 1, 3, 3},
		{"in a later part", 100_000, 3, 3},
		{"in the last", 1, 4, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := redialtest.NewFakeServerPipe(t)
				var broken *breakAfter
				c := NewClient(&redis.Options{Addr: "127.0.0.1:1", Protocol: 2, DisableIdentity: true, PoolSize: 50,
					Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
						nc, err := server.Dial(ctx, network, addr)
						broken = &breakAfter{Conn: nc, left: math.MaxInt}
						return broken, err
					}}, WithGrace(0))
				defer c.Close()
				ready(t, c)
				ctx := t.Context()
				pipe := c.Pipeline()
				require.NoError(t, pipe.Ping(ctx).Err())
				_, err := pipe.Exec(ctx)
				require.NoError(t, err)
				size := 0
				for i := range 5 {
					cmd := pipe.LPush(ctx, "list", string(make([]byte, tc.big)))
					if n, _ := wireSize(cmd.Args()); i < tc.broken {
						size += n
					} else if i == tc.broken {
						size += n / 2
					}
				}
				broken.left = size
				cmds, err := pipe.Exec(ctx)
				if tc.unknown == 0 { // nothing ran, so it was sent again
					require.NoError(t, err)
					return
				}
				assert.ErrorIs(t, err, ErrOutcomeUnknown)
				for i, cmd := range cmds {
					if i < tc.unknown {
						assert.ErrorIs(t, cmd.Err(), ErrOutcomeUnknown, "%d", i)
					} else {
						assert.ErrorIs(t, cmd.Err(), ErrUnavailable, "%d", i)
						assert.True(t, SafeToRetry(cmd.Err()), "%d", i)
					}
				}
				synctest.Wait()
				assert.LessOrEqual(t, server.Executed("lpush"), tc.unknown)
				assert.EqualValues(t, 1, c.Stats().Unknown)
				assert.Zero(t, c.Stats().Refused)
			})
		})
	}
}

// breakAfter breaks when so many more bytes have been written.
type breakAfter struct {
	net.Conn
	left int
}

func (c *breakAfter) Write(p []byte) (int, error) {
	if len(p) <= c.left {
		c.left -= len(p)
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(p[:c.left])
	_ = c.Conn.Close()
	if err == nil {
		err = errors.New("broken")
	}
	return n, err
}
