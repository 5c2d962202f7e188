package redial

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Hooks outside of the gate. In go-redis the hook that was added first is the
// outermost, so those of the caller are added before redial's own. Nothing of redial's
// may stand between them and the method that was called: instruments find the caller by
// walking up the stack until they leave go-redis.

// hookable is a client of any kind, or a connection.
type hookable interface{ AddHook(redis.Hook) }

// surround adds the outer hooks of a client of one server, and returns what has them on
// its clones as well, nil when there are none.
func (c *config) surround(rdb *redis.Client) (*chain, error) {
	if len(c.outer) == 0 {
		return nil, nil
	}
	k := &chain{}
	rdb.AddHook(k)
	for _, o := range c.outer {
		if err := o.addTo(rdb); err != nil {
			return nil, err
		}
	}
	k.conn = rdb.Conn() // it has the hooks that there are now, and never connects
	return k, nil
}

// deputy prepares the outer hooks of a client of several nodes. An instrument that got
// that client itself would look at its nodes, attempt by attempt, so it gets one that
// stands for the whole.
func (c *config) deputy(b *base, opt *redis.Options) (*chain, error) {
	if len(c.outer) == 0 {
		return nil, nil
	}
	opt.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, errNoConnections }
	opt.MaxRetries, opt.DialerRetries, opt.PipelinePoolSize = -1, 1, -1
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	rdb := redis.NewClient(opt)
	b.release = append(b.release, func() { _ = rdb.Close() })
	return c.surround(rdb)
}

// errNoConnections is the error of what is sent with the client that an instrument gets
// for a client of several nodes.
var errNoConnections = errors.New("redial: the client that WithInstrument is given for several nodes has no connections")

// addTo adds hooks to a client. A panic is an error, so that what was begun is released.
func (o outer) addTo(rdb *redis.Client) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case error:
			err = fmt.Errorf("redial: %s panics: %w", o.option, r)
		default:
			err = fmt.Errorf("redial: %s panics: %v", o.option, r)
		}
	}()
	if err := o.add(rdb); err != nil {
		return fmt.Errorf("redial: %s: %w", o.option, err)
	}
	return nil
}

// deputyOf returns the options of the client that stands for the nodes of a cluster.
func deputyOf(opt *redis.ClusterOptions, name string) *redis.Options {
	if len(opt.Addrs) > 0 {
		name = opt.Addrs[0]
	}
	return &redis.Options{Addr: name, ClientName: opt.ClientName, Username: opt.Username, Protocol: opt.Protocol}
}

// deputyOfRing returns the options of the client that stands for the shards of a ring.
func deputyOfRing(opt *redis.RingOptions) *redis.Options {
	name := "ring"
	if shards := slices.Sorted(maps.Keys(opt.Addrs)); len(shards) > 0 {
		name = opt.Addrs[shards[0]]
	}
	return &redis.Options{Addr: name, ClientName: opt.ClientName, Username: opt.Username, Protocol: opt.Protocol, DB: opt.DB}
}

// chain is the outer hooks of a client, of which those that an instrument added are
// known to go-redis alone. It is the first of them, where it takes what go-redis makes
// of them all, and core, on a connection of its own, is the last, where it puts in what
// they are to be called round.
//
// As a hook of the client itself it does nothing.
type chain struct {
	conn *redis.Conn // never connects; nobody else has it
	busy atomic.Bool // round is under way

	mu    sync.Mutex // held by round
	inner ends       // guarded by mu; what the hooks are called round
	whole ends       // guarded by mu; the hooks and that
	calls int        // guarded by mu; how many pipelines of whole were taken
}

// ends are the functions that go-redis calls its hooks round: one for single commands
// and, one after the other, those for pipelines and transactions.
type ends struct {
	process  redis.ProcessHook
	pipeline redis.ProcessPipelineHook
}

// on adds the hooks to a client: of a client of several nodes, or to a clone.
func (k *chain) on(rdb hookable) {
	if k != nil {
		rdb.AddHook(around{k})
	}
}

// taken ends AddHook before it has changed anything.
type taken struct{}

// round has go-redis call the hooks round inner and returns the result. go-redis does
// that when a hook is added, so one is, but that is called off when the result is known:
// the hooks remain as they were. The lock that is held meanwhile is that of AddHook, in
// which go-redis calls the same methods of the same hooks.
//
//go:noinline
func (k *chain) round(inner ends) (whole ends) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.inner, k.whole, k.calls = inner, ends{}, 0
	k.busy.Store(true)
	defer func() {
		k.busy.Store(false)
		if r := recover(); r != nil && r != (taken{}) {
			panic(r) // of a hook
		}
		whole = k.whole
		k.inner, k.whole = ends{}, ends{}
	}()
	k.conn.AddHook(core{k})
	return
}

var nameOfRound = nameOf((*chain).round)

// ours reports whether a method of chain was called for round: go-redis may call it at
// any time for the client that has the same hooks.
func (k *chain) ours() bool { return k.busy.Load() && inside(nameOfRound) }

func (k *chain) DialHook(next redis.DialHook) redis.DialHook { return next }

func (k *chain) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	if k.ours() {
		k.whole.process = next
	}
	return next
}

func (k *chain) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	if k.ours() {
		k.whole.pipeline = next
		if k.calls++; k.calls == 2 { // pipelines, then transactions; there is no more to come
			panic(taken{})
		}
	}
	return next
}

// core is the innermost of the outer hooks, and knows nothing of what go-redis has there.
type core struct{ of *chain }

func (c core) DialHook(next redis.DialHook) redis.DialHook     { return next }
func (c core) ProcessHook(redis.ProcessHook) redis.ProcessHook { return c.of.inner.process }
func (c core) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return c.of.inner.pipeline
}

// around is the hook that stands for all outer hooks on clients of several nodes and on
// clones. It is not there when a command is sent: what it returns is the outermost of
// them.
type around struct{ of *chain }

// DialHook leaves dials alone: go-redis calls no hook of a client of several nodes for
// them, and for a clone those of the client that it is a clone of.
func (a around) DialHook(next redis.DialHook) redis.DialHook { return next }

func (a around) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	if whole := a.of.round(ends{process: next, pipeline: noPipeline}).process; whole != nil {
		return whole
	}
	return next
}

func (a around) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	if whole := a.of.round(ends{process: noProcess, pipeline: next}).pipeline; whole != nil {
		return whole
	}
	return next
}

func noProcess(context.Context, redis.Cmder) error    { return nil }
func noPipeline(context.Context, []redis.Cmder) error { return nil }
