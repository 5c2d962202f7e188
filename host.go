package redial

import (
	"reflect"
	"runtime"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// What redial believes of go-redis's insides and cannot ask it. host_test.go has a
// test for each belief, which fails with a sentence when another version breaks it;
// where a belief fails in a program, what is claimed of a command is less, not wrong.

// origin says what stands between a part of our hook and the connection.
type origin uint8

const (
	foreignHook origin = iota // a hook of the caller, which may do anything
	pooledCall                // go-redis, with a connection for this call alone
	clusterCall               // the same, of a node: replies are read by the code for clusters
	sharedCall                // go-redis, in a way that may put many calls on one connection
	routedCall                // go-redis's way to find a node, whose own hook has labelled what failed
)

// alone reports whether the call has a connection for itself.
func (o origin) alone() bool { return o == pooledCall || o == clusterCall }

const goRedis = "github.com/redis/go-redis/v9."

// functions are those of go-redis that take a connection for the call alone. Any other
// that is not a hook may be one of the full-duplex engine's, where a failure of one
// command says nothing of when it was written.
var functions = map[string]origin{
	"(*baseClient).process-fm":                     pooledCall,
	"(*baseClient).processPipeline-fm":             pooledCall,
	"(*baseClient).processTxPipeline-fm":           pooledCall,
	"(*AutoPipeliner).dispatchCmds.func1":          pooledCall,
	"(*AutoPipeliner).runOutsidePipeline.func1.1":  pooledCall,
	"(*apShard).flushBatchSlice.func1.1":           pooledCall,
	"(*ClusterClient).processPipelineNode.func1":   clusterCall,
	"(*ClusterClient).processTxPipelineNode.func1": clusterCall,
}

// originOf tells by the name of the function that a hook was given as next.
func originOf(next any) origin {
	pc := reflect.ValueOf(next).Pointer()
	if from, ok := origins.Load(pc); ok {
		return from.(origin)
	}
	name, from := "", foreignHook
	if f := runtime.FuncForPC(pc); f != nil {
		name = f.Name()
	}
	if name, ok := strings.CutPrefix(name, goRedis); ok {
		from = sharedCall
		if known, ok := functions[name]; ok {
			from = known
		}
	}
	origins.Store(pc, from)
	return from
}

var origins sync.Map // by the address of a function; functions are few

// nameOf returns the name of a function, "" when it has none.
func nameOf(f any) string {
	if f := runtime.FuncForPC(reflect.ValueOf(f).Pointer()); f != nil {
		return f.Name()
	}
	return ""
}

// isBarredByCache reports whether go-redis rejects cmd, before it looks for a connection,
// on a client with client-side caching, because it would change what a connection is
// told to track. There is no point in waiting for the link before that is said.
func isBarredByCache(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "client", "select", "auth", "hello", "reset", "subscribe", "psubscribe", "ssubscribe":
		return true
	}
	return false
}

// isRejected reports whether err is go-redis's word that it does not send such a command.
func isRejected(err error) bool {
	return strings.HasSuffix(err.Error(), "is not allowed when client-side caching is enabled")
}
