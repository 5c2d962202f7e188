package memnet

import (
	"strings"
	"sync"

	"github.com/alicebob/miniredis/v2/server"
)

// Faults makes the in-memory server misbehave on chosen commands.
type Faults struct {
	mu  sync.Mutex
	ran map[string]int
	do  map[string]func(*server.Peer) bool // keyed by command in lower case; true: handled
}

// Inject has the server of n misbehave.
func Inject(n *Net) *Faults {
	f := &Faults{ran: make(map[string]int), do: make(map[string]func(*server.Peer) bool)}
	if _, err := n.Redis.Dial(); err != nil { // starts the server, so that it has hooks
		panic(err)
	}
	n.Redis.Server().SetPreHook(f.Hook)
	return f
}

// Hook is what the server asks before it serves a command.
func (f *Faults) Hook(p *server.Peer, cmd string, _ ...string) bool {
	name := strings.ToLower(cmd)
	f.mu.Lock()
	f.ran[name]++
	do := f.do[name]
	f.mu.Unlock()
	return do != nil && do(p)
}

// Times makes cmd misbehave k times.
func (f *Faults) Times(cmd string, k int, do func(*server.Peer)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.do[cmd] = func(p *server.Peer) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if k--; k < 0 {
			return false
		}
		do(p)
		return true
	}
}

// Count tells how often the server was sent cmd.
func (f *Faults) Count(cmd string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ran[cmd]
}

// HangUp answers what came before, then closes the connection.
func HangUp(p *server.Peer) {
	p.Flush()
	p.Close()
}

// Reply answers by an error reply.
func Reply(msg string) func(*server.Peer) {
	return func(p *server.Peer) { p.WriteError(msg) }
}
