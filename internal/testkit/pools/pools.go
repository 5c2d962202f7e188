// Package pools is what tests have to know of go-redis's pools: whether they look at
// connections here, and how they come to hold some. It imports nothing of redial but
// redialtest, so that tests inside of any package may use it.
package pools

import (
	"runtime"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/redialtest"
)

// Look tells whether pools look at connections that they hand out. Where they do not, nobody
// knows when that is.
var Look = runtime.GOOS != "windows" && runtime.GOOS != "plan9"

// NeedLook skips what cannot be so without that.
func NeedLook(t *testing.T) {
	t.Helper()
	if !Look {
		redialtest.Skip(t, "pools of go-redis do not look at connections here")
	}
}

// Fill makes the pool hold k connections.
func Fill(t *testing.T, c interface{ Conn() *redis.Conn }, k int) {
	t.Helper()
	var held []*redis.Conn
	for range k {
		cn := c.Conn()
		require.NoError(t, cn.Ping(t.Context()).Err())
		held = append(held, cn)
	}
	for _, cn := range held {
		require.NoError(t, cn.Close())
	}
}
