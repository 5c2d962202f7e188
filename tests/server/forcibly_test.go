package server

import (
	"errors"
	"runtime"
	"syscall"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/internal/testkit/pools"
	"github.com/redial-go/redial/redialtest"
)

// "An existing connection was forcibly closed by the remote host", which this package began
// with: connections that lie idle in the pool are reset, and the next command gets one.
// Pools of go-redis notice that of a plain connection, but not on Windows, and under TLS
// nowhere.
func TestForciblyClosed(t *testing.T) {
	const idle, commands = 10, 50
	opt := &redis.Options{MaxRetries: -1, PoolSize: idle}
	var p *redialtest.Proxy
	if runtime.GOOS == "windows" {
		p = redialtest.NewProxy(t, miniredis.RunT(t).Addr())
	} else {
		s := redialtest.StartTLSServer(t)
		p = redialtest.NewProxy(t, s.Addr())
		opt.TLSConfig = s.TLSConfig()
	}
	opt.Addr = p.Addr()

	// after returns what commands return once all connections of a full pool were reset.
	after := func(rdb redis.UniversalClient, pool interface{ Conn() *redis.Conn }, key string) (failed []error) {
		pools.Fill(t, pool, idle)
		require.EqualValues(t, idle, rdb.PoolStats().IdleConns)
		require.GreaterOrEqual(t, p.Reset(), idle)
		for range commands {
			if err := rdb.Incr(t.Context(), key).Err(); err != nil {
				failed = append(failed, err)
			}
		}
		return failed
	}

	c := testkit.Connect(t, opt)
	assert.Empty(t, after(c, c, "redial"))
	n, err := c.Get(t.Context(), "redial").Int()
	require.NoError(t, err)
	assert.Equal(t, commands, n, "each ran once")
	assert.Equal(t, redial.StateConnected, c.State())

	bare := redis.NewClient(opt)
	defer func() { _ = bare.Close() }()
	failed := after(bare, bare, "bare")
	require.NotEmpty(t, failed, "go-redis alone has come to notice; then say so in the documents")
	var errno syscall.Errno
	require.True(t, errors.As(failed[0], &errno), "%v", failed[0])
	t.Logf("bare go-redis: %d of %d commands failed: %v", len(failed), commands, failed[0])
	if runtime.GOOS == "windows" {
		assert.EqualValues(t, 10054, errno)
	} else {
		assert.Contains(t, []syscall.Errno{syscall.ECONNRESET, syscall.EPIPE}, errno)
	}
}
