// Package platform says what tests have to know of where they run: the race detector, the
// system, whether pools look at connections and how they come to hold some. It imports
// nothing of redial, so that tests inside of any package may use it.
package platform

import (
	"runtime"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/redialtest"
)

// PoolsLook tells whether pools of go-redis look at connections that they hand out. Where
// they do not, nobody knows when that is.
var PoolsLook = runtime.GOOS != "windows" && runtime.GOOS != "plan9"

// NeedPoolsThatLook skips what cannot be so without that.
func NeedPoolsThatLook(t *testing.T) {
	t.Helper()
	if !PoolsLook {
		redialtest.Skip(t, "pools of go-redis do not look at connections here")
	}
}

// FillPool makes the pool hold k connections.
func FillPool(t *testing.T, c interface{ Conn() *redis.Conn }, k int) {
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
