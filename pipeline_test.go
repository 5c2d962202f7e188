package redial

import (
	"context"
	"errors"
	"math"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/redialtest"
)

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
				var mu sync.Mutex
				var conns []*breakAfter // guarded by mu
				c := NewClient(&redis.Options{Addr: "127.0.0.1:1", Protocol: 2, DisableIdentity: true, PoolSize: 50,
					Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
						nc, err := server.Dial(ctx, network, addr)
						cn := &breakAfter{Conn: nc, left: math.MaxInt}
						mu.Lock()
						conns = append(conns, cn)
						mu.Unlock()
						return cn, err
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
					if n, _ := command.Size(cmd.Args()); i < tc.broken {
						size += n
					} else if i == tc.broken {
						size += n / 2
					}
				}
				synctest.Wait()
				mu.Lock()
				for _, cn := range conns { // whichever carries it
					cn.left = size
				}
				mu.Unlock()
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
