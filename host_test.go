package redial

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/redialtest"

	"github.com/redial-go/redial/internal/command"
)

// What redial believes of go-redis's insides, on go-redis alone: no client here is under
// supervision. Each belief is one sentence, which a test fails with when it is not, or
// not any more, true, together with what goes by it.

// believe fails with the sentence unless it held.
func believe(t *testing.T, held bool, sentence string, found ...any) {
	t.Helper()
	if held {
		return
	}
	t.Errorf("This is not true of go-redis %s: %s", redis.Version(), sentence)
	for _, f := range found {
		t.Logf("found: %v", f)
	}
}

// bare returns a client of go-redis's own for a fake server, that tries once.
func bare(t *testing.T, f *redialtest.FakeServer, adjust ...func(*redis.Options)) *redis.Client {
	opt := &redis.Options{
		Addr: f.Addr(), Dialer: f.Dial, Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1, PipelinePoolSize: -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	for _, f := range adjust {
		f(opt)
	}
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// bareCluster is the same for a cluster of one node.
func bareCluster(t *testing.T, f *redialtest.FakeServer, adjust ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	opt := &redis.ClusterOptions{
		Dialer: f.Dial, Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1,
		ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			return []redis.ClusterSlot{{Start: 0, End: lastSlot, Nodes: []redis.ClusterNode{{Addr: f.Addr()}}}}, nil
		},
	}
	for _, f := range adjust {
		f(opt)
	}
	rdb := redis.NewClusterClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// bareRing is the same for a ring.
func bareRing(t *testing.T, f *redialtest.FakeServer, adjust ...func(*redis.RingOptions)) *redis.Ring {
	opt := &redis.RingOptions{
		Addrs: map[string]string{"one": f.Addr()}, Dialer: f.Dial, Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1,
	}
	for _, f := range adjust {
		f(opt)
	}
	rdb := redis.NewRing(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// nextNames is a hook that notes the names of the functions that it is called for.
type nextNames struct {
	mu   sync.Mutex
	seen map[string]bool // guarded by mu
}

func (h *nextNames) note(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.seen == nil {
		h.seen = make(map[string]bool)
	}
	h.seen[strings.TrimPrefix(name, goRedis)] = true
}

// take returns the names since the last call, in their order.
func (h *nextNames) take() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := slices.Sorted(maps.Keys(h.seen))
	h.seen = nil
	return strings.Join(names, " ")
}

func (h *nextNames) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h *nextNames) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if !command.IsHandshake(cmd) && !command.IsAboutTopology(cmd) {
			h.note(nameOf(next))
		}
		return next(ctx, cmd)
	}
}
func (h *nextNames) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		h.note(nameOf(next))
		return next(ctx, cmds)
	}
}

// Which functions stand behind a hook, on every way that a command can take. Those that
// give it a connection for itself are the ones in functions, and no others are.
func TestHost_FunctionsBehindAHook(t *testing.T) {
	ctx := t.Context()
	f := redialtest.NewFakeServer(t)
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		switch args[0] {
		case "dbsize":
			return redialtest.Reply(":0\r\n")
		case "command":
			return redialtest.Reply("*0\r\n")
		}
		return redialtest.Handle
	})
	get := func(p redis.Pipeliner) error { p.Get(ctx, "a"); p.Get(ctx, "a"); return nil }
	var h, onNode nextNames
	seen := make(map[string]string)
	way := func(name string, from *nextNames, run func()) {
		from.take()
		run()
		seen[name] = from.take()
	}

	rdb := bare(t, f)
	rdb.AddHook(&h)
	way("client, command", &h, func() { rdb.Get(ctx, "a") })
	way("client, pipeline", &h, func() { _, _ = rdb.Pipelined(ctx, get) })
	way("client, transaction", &h, func() { _, _ = rdb.TxPipelined(ctx, get) })
	way("client, WATCH", &h, func() { _ = rdb.Watch(ctx, func(*redis.Tx) error { return nil }, "a") })
	way("client, WATCH with a transaction", &h, func() {
		_ = rdb.Watch(ctx, func(tx *redis.Tx) error { _, _ = tx.TxPipelined(ctx, get); _, _ = tx.Pipelined(ctx, get); return nil })
	})
	cn := rdb.Conn()
	defer cn.Close()
	way("connection, all", &h, func() { cn.Get(ctx, "a"); _, _ = cn.Pipelined(ctx, get); _, _ = cn.TxPipelined(ctx, get) })
	two := func(ap *redis.AutoPipeliner) func() {
		return func() {
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() { _ = ap.Get(ctx, "a").Err() })
			}
			wg.Wait()
		}
	}
	auto := func(get func(*redis.AutoPipelineOptions) (*redis.AutoPipeliner, error), opt redis.AutoPipelineOptions) *redis.AutoPipeliner {
		ap, err := get(&opt)
		require.NoError(t, err)
		return ap
	}
	blocking := auto(rdb.AutoPipelineWithOptions, redis.AutoPipelineOptions{MaxFlushDelay: 20 * time.Millisecond})
	way("auto-pipeline, one command", &h, func() { _ = blocking.Get(ctx, "a").Err() })
	way("auto-pipeline, two", &h, two(blocking))
	way("auto-pipeline, one outside", &h, func() { _ = blocking.Do(ctx, "get", "a").Err() })
	async := auto(rdb.AsyncAutoPipelineWithOptions, redis.AutoPipelineOptions{MaxFlushDelay: 20 * time.Millisecond})
	way("async auto-pipeline, one command", &h, func() { _ = async.Get(ctx, "a").Err() })
	way("async auto-pipeline, two", &h, two(async))
	way("async auto-pipeline, one outside", &h, func() { _ = async.Do(ctx, "get", "a").Err() })

	duplex := bare(t, f, func(o *redis.Options) { o.Protocol, o.PipelinePoolSize = 3, 0 })
	duplex.AddHook(&h)
	fd := auto(duplex.AutoPipelineWithOptions, redis.AutoPipelineOptions{FullDuplex: true})
	way("full duplex, one command", &h, func() { _ = fd.Get(ctx, "a").Err() })
	way("full duplex, two", &h, two(fd))
	way("full duplex, pipeline", &h, func() { _, _ = fd.Pipelined(ctx, get) })

	cluster := bareCluster(t, f)
	cluster.AddHook(&h)
	cluster.OnNewNode(func(node *redis.Client) { node.AddHook(&onNode) })
	for of, hook := range map[string]*nextNames{"cluster": &h, "node of a cluster": &onNode} {
		way(of+", command", hook, func() { cluster.Get(ctx, "a") })
		way(of+", all nodes", hook, func() { cluster.DBSize(ctx) })
		way(of+", pipeline", hook, func() { _, _ = cluster.Pipelined(ctx, get) })
		way(of+", transaction", hook, func() { _, _ = cluster.TxPipelined(ctx, get) })
	}
	ring := bareRing(t, f, func(o *redis.RingOptions) { o.HeartbeatFn = func(context.Context, *redis.Client) bool { return true } })
	ring.AddHook(&h)
	_ = ring.ForEachShard(ctx, func(_ context.Context, shard *redis.Client) error { shard.AddHook(&onNode); return nil })
	for of, hook := range map[string]*nextNames{"ring": &h, "shard of a ring": &onNode} {
		way(of+", command", hook, func() { ring.Get(ctx, "a") })
		way(of+", pipeline", hook, func() { _, _ = ring.Pipelined(ctx, get) })
		way(of+", transaction", hook, func() { _, _ = ring.TxPipelined(ctx, get) })
	}
	const (
		process  = "(*baseClient).process-fm"
		pipeline = "(*baseClient).processPipeline-fm"
		tx       = "(*baseClient).processTxPipeline-fm"
	)
	want := map[string]string{
		"client, command":                  process,
		"client, pipeline":                 pipeline,
		"client, transaction":              tx,
		"client, WATCH":                    process,
		"client, WATCH with a transaction": pipeline + " " + tx,
		"connection, all":                  process + " " + pipeline + " " + tx,
		"auto-pipeline, one command":       "(*apShard).flushBatchSlice.func1.1",
		"auto-pipeline, two":               "(*AutoPipeliner).dispatchCmds.func1",
		"auto-pipeline, one outside":       process,
		"async auto-pipeline, one command": "(*apShard).flushBatchSlice.func1.1",
		"async auto-pipeline, two":         "(*AutoPipeliner).dispatchCmds.func1",
		"async auto-pipeline, one outside": "(*AutoPipeliner).runOutsidePipeline.func1.1",
		"full duplex, one command":         "(*fdEngine).hostHook.func2",
		"full duplex, two":                 "(*fdEngine).hostHook.func2",
		"full duplex, pipeline":            "(*AutoPipeliner).fdPipelineExec-fm",
		"node of a cluster, command":       process,
		"node of a cluster, all nodes":     process,
		"node of a cluster, pipeline":      "(*ClusterClient).processPipelineNode.func1",
		"node of a cluster, transaction":   "(*ClusterClient).processTxPipelineNode.func1",
		"shard of a ring, command":         process,
		"shard of a ring, pipeline":        pipeline,
		"shard of a ring, transaction":     tx,
		"cluster, command":                 "(*ClusterClient).process-fm",
		"cluster, all nodes":               "(*ClusterClient).DBSize.func1",
		"cluster, pipeline":                "(*ClusterClient).processPipeline-fm",
		"cluster, transaction":             "(*ClusterClient).processTxPipeline-fm",
		"ring, command":                    "(*Ring).process-fm",
		"ring, pipeline":                   "NewRing.func1",
		"ring, transaction":                "NewRing.func2",
	}
	shared := []string{"full duplex", "cluster,", "ring,"} // many calls on a connection, or none
	used := make(map[string]bool)
	for way, names := range seen {
		believe(t, names == want[way], "what stands behind a hook on this way: "+way+", is "+want[way]+
			"; what is claimed of a failed command goes by that, so if this fails, commands that were not sent may be said to be of unknown outcome", names)
		for name := range strings.FieldsSeq(names) {
			used[name] = true
			alone := !slices.ContainsFunc(shared, func(prefix string) bool { return strings.HasPrefix(way, prefix) })
			if _, known := functions[name]; known != alone {
				t.Errorf("%s: %s: is it in functions? %v. Does it have a connection for the call alone? %v", way, name, known, alone)
			}
		}
	}
	for name := range functions {
		believe(t, used[name], "commands come by "+name+"; if this fails, functions in host.go holds a name of nothing")
	}
	require.Len(t, seen, len(want))
}

// Names that are not known get the weakest claim.
func TestHost_UnknownFunctionsAreShared(t *testing.T) {
	believe(t, originOf((*redis.Client).Process) == sharedCall, "its functions are in the package "+goRedis+
		"; if this fails, every command is taken for one of a hook of the caller, and less is said of its failures")
	require.Equal(t, foreignHook, originOf(TestHost_UnknownFunctionsAreShared))
}
