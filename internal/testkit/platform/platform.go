// Package platform says what tests have to know of where they run: the race detector, the
// system. It imports nothing of redial, so that tests inside of any package may use it.
package platform

import (
	"runtime"
	"testing"

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
