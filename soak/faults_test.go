package soak

import (
	"math/rand/v2"
	"time"

	"github.com/redial-go/redial/redialtest"
)

// testbed is a server that keeps every acknowledged write over a kill -9, behind a
// proxy.
type testbed struct {
	server *redialtest.Server
	proxy  *redialtest.Proxy
	rnd    *rand.Rand
}

// fault is one way to break the connection, for a while or for a moment.
type fault struct {
	name   string
	longer time.Duration // how long it may last at most; 0: it ends by itself
	silent bool          // connections stay dead and nothing tells, so they have to be found first
	inject func(*testbed)
	heal   func(*testbed) // nil: the proxy's Restore
}

// end heals the fault.
func (f fault) end(b *testbed) {
	if f.heal == nil {
		b.proxy.Restore()
		return
	}
	f.heal(b)
}

func faults() []fault {
	return []fault{
		{"reset", 0, false, func(b *testbed) { b.proxy.Reset() }, nil},
		{"cut", 0, false, func(b *testbed) { b.proxy.Cut() }, nil},
		{"drop", 0, true, func(b *testbed) { b.proxy.DropIdle() }, nil},
		{"refuse", 3 * time.Second, false, func(b *testbed) { b.proxy.Refuse() }, nil},
		{"hang", 5 * time.Second, false, func(b *testbed) { b.proxy.Hang() }, nil},
		{"accept and close", 2 * time.Second, false, func(b *testbed) { b.proxy.AcceptAndClose(); b.proxy.Cut() }, nil},
		{"accept and hang", 2 * time.Second, false, func(b *testbed) { b.proxy.AcceptAndHang(); b.proxy.Cut() }, nil},
		{"lose requests", 200 * time.Millisecond, false, func(b *testbed) { b.proxy.CutBeforeForward(1 + b.rnd.IntN(5)) }, nil},
		{"lose replies", 200 * time.Millisecond, false, func(b *testbed) { b.proxy.CutAfterRequest(1 + b.rnd.IntN(5)) }, nil},
		{"cut replies in the middle", 200 * time.Millisecond, false, func(b *testbed) { b.proxy.CutMidReply(1 + b.rnd.IntN(5)) }, nil},
		{"garbage", 200 * time.Millisecond, false, func(b *testbed) { b.proxy.Garbage(1 + b.rnd.IntN(3)) }, nil},
		{"delay", time.Second, false, func(b *testbed) { b.proxy.Delay(time.Duration(b.rnd.IntN(100)) * time.Millisecond) }, nil},
		{"bandwidth", time.Second, false, func(b *testbed) { b.proxy.Bandwidth(20_000) }, nil},
		{"freeze", 5 * time.Second, false, func(b *testbed) { b.server.Freeze() }, func(b *testbed) { b.server.Thaw() }},
		{"kill", 3 * time.Second, false, func(b *testbed) { b.server.Kill() }, func(b *testbed) { b.server.Start() }},
	}
}
