package redial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/testkit/pools"
	"github.com/redial-go/redial/internal/wire"
	"github.com/redial-go/redial/redialtest"
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

// spy makes connections to a fake server, notes what is done with them, and fails as told.
type spy struct {
	server *redialtest.FakeServer

	mu        sync.Mutex
	log       []string           // guarded by mu
	deadlines []time.Time        // guarded by mu; those for writing
	dials     []context.Context  // guarded by mu
	write     func([]byte) error // guarded by mu; fails writes
	read      func() error       // guarded by mu; fails reads
	check     error              // guarded by mu; of the health check
}

func spied(server *redialtest.FakeServer) *spy { return &spy{server: server} }

func (s *spy) dialer(o *redis.Options) { o.Dialer = s.Dial }

func (s *spy) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	s.set(func() { s.dials = append(s.dials, ctx) })
	nc, err := s.server.Dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &spyConn{nc, s}, nil
}

func (s *spy) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *spy) note(what string) { s.set(func() { s.log = append(s.log, what) }) }

// take returns what was noted since the last call.
func (s *spy) take() (log []string) {
	s.set(func() { log, s.log = s.log, nil })
	return log
}

type spyConn struct {
	net.Conn
	spy *spy
}

func (c *spyConn) Write(p []byte) (int, error) {
	c.spy.note("write " + string(p))
	var fail func([]byte) error
	c.spy.set(func() { fail = c.spy.write })
	if fail != nil {
		if err := fail(p); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}

func (c *spyConn) Read(p []byte) (int, error) {
	c.spy.note("read")
	var fail func() error
	c.spy.set(func() { fail = c.spy.read })
	if fail != nil {
		if err := fail(); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(p)
}

func (c *spyConn) SetDeadline(t time.Time) error {
	c.spy.note("set deadline")
	return c.Conn.SetDeadline(t)
}

func (c *spyConn) SetReadDeadline(t time.Time) error {
	c.spy.note("set read deadline")
	return c.Conn.SetReadDeadline(t)
}

func (c *spyConn) SetWriteDeadline(t time.Time) error {
	c.spy.note("set write deadline")
	c.spy.set(func() { c.spy.deadlines = append(c.spy.deadlines, t) })
	return c.Conn.SetWriteDeadline(t)
}

func (c *spyConn) SyscallConn() (syscall.RawConn, error) { return rawSpy{c}, nil }

// rawSpy is what the health check reads from.
type rawSpy struct{ *spyConn }

func (r rawSpy) Control(func(uintptr)) error { return errors.ErrUnsupported }

func (r rawSpy) Read(func(uintptr) bool) (err error) {
	r.spy.note("check")
	r.spy.set(func() { err = r.spy.check })
	return err
}
func (r rawSpy) Write(func(uintptr) bool) error { return errors.ErrUnsupported }

// A pool shows by SetDeadline, and by a look at the socket, that it hands a connection out.
func TestHost_PoolHandsOut(t *testing.T) {
	pools.NeedLook(t)
	ctx := t.Context()
	s := spied(redialtest.NewFakeServer(t))
	rdb := bare(t, s.server, s.dialer)
	get := func(p redis.Pipeliner) error { p.Get(ctx, "a"); p.Get(ctx, "b"); return nil }
	cn := rdb.Conn()
	require.NoError(t, cn.Ping(ctx).Err())
	require.NoError(t, cn.Close())
	for name, run := range map[string]func(){
		"a command":     func() { rdb.Get(ctx, "a") },
		"a pipeline":    func() { _, _ = rdb.Pipelined(ctx, get) },
		"a transaction": func() { _, _ = rdb.TxPipelined(ctx, get) },
		"a held connection": func() {
			cn := rdb.Conn()
			defer cn.Close()
			for range 3 {
				cn.Get(ctx, "a")
			}
		},
	} {
		s.take()
		run()
		log := s.take()
		count := 0
		for _, what := range log {
			if what == "set deadline" {
				count++
			}
		}
		believe(t, count == 1 && log[0] == "set deadline", "the pool calls SetDeadline once when it hands a connection out, and go-redis nowhere else; "+
			"if this fails, redial does not know which connections lie idle, and the sweep may PING on one that a caller holds", name, log)
		believe(t, slices.Contains(log, "check"), "the pool looks at a connection with SyscallConn().Read before it hands it out; "+
			"if this fails, connections that were given up are found out only when a command is written", name, log)
	}
	dials := len(s.dials)
	s.set(func() { s.check = errTest })
	err := rdb.Get(ctx, "a").Err()
	believe(t, err == redis.Nil && len(s.dials) == dials+1, "the pool drops a connection whose check fails and makes another, which it does not check; "+
		"if this fails, commands get retired connections, and are tried again for it", err)
}

// Whom a dial is for shows in its context.
func TestHost_DialsOfPoolsHaveADeadline(t *testing.T) {
	ctx := t.Context()
	s := spied(redialtest.NewFakeServer(t))
	rdb := bare(t, s.server, s.dialer, func(o *redis.Options) { o.MinIdleConns, o.PipelinePoolSize = 2, 0 })
	cn := rdb.Conn()
	defer cn.Close()
	cn.Get(ctx, "a")
	rdb.Get(ctx, "a")
	_, _ = rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "a"); return nil })
	s.set(func() {
		for _, d := range s.dials {
			_, ok := d.Deadline()
			believe(t, ok, "the dials of pools have the DialTimeout for a deadline; if this fails, redial takes them for dials of subscriptions, which fail where it would have put a stand-in")
		}
		s.dials = nil
	})
	sub := rdb.Subscribe(ctx, "c")
	defer sub.Close()
	_, err := sub.Receive(ctx)
	require.NoError(t, err)
	s.set(func() {
		believe(t, slices.ContainsFunc(s.dials, func(d context.Context) bool { // beside those for idle connections
			_, ok := d.Deadline()
			return !ok
		}), "the dial of a subscription has the context of its caller and no other deadline; if this fails, its connection may be a stand-in, and it does not wait for the link")
	})
}

// layer is an error that wraps another, opaque is one that does not say so.
type layer struct{ error }

func (l layer) Unwrap() error { return l.error }

type opaque struct{ error }

// What a connection fails with while it is set up comes out with a layer less.
func TestHost_HandshakeErrors(t *testing.T) {
	ctx := t.Context()
	for _, protocol := range []int{2, 3} {
		for _, password := range []string{"", "secret"} {
			s := spied(redialtest.NewFakeServer(t))
			rdb := bare(t, s.server, s.dialer, func(o *redis.Options) { o.Protocol, o.Password, o.DB = protocol, password, 1 })
			s.set(func() { s.write = func([]byte) error { return opaque{errTest} } })
			err := rdb.Get(ctx, "a").Err()
			var found opaque
			believe(t, errors.As(err, &found), "an error of a connection without an Unwrap method comes through the handshake; if this fails, what is not sent because no connection can be made is said to be unknown", protocol, err)
		}
	}
	f := redialtest.NewFakeServer(t)
	rdb := bare(t, f, func(o *redis.Options) {
		o.OnConnect = func(context.Context, *redis.Conn) error { return layer{errTest} }
	})
	err := rdb.Get(ctx, "a").Err()
	var found layer
	believe(t, !errors.As(err, &found), "one layer is stripped off what a connection fails with while it is set up; if this fails, errors of connections could have an Unwrap method", err)
}

// tokenContext has another deadline whenever it is asked, in a zone of its own.
type tokenContext struct {
	context.Context
	zone  *time.Location
	after time.Duration
	mu    sync.Mutex
	given []time.Time // guarded by mu
}

func (x *tokenContext) Deadline() (time.Time, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	t := time.Now().Add(x.after - time.Duration(len(x.given))).In(x.zone)
	x.given = append(x.given, t)
	return t, true
}

// The deadline of a context reaches the connection as it is.
func TestHost_DeadlinesReachTheConnection(t *testing.T) {
	zone := time.FixedZone("test", 0)
	s := spied(redialtest.NewFakeServer(t))
	rdb := bare(t, s.server, s.dialer, func(o *redis.Options) { o.ContextTimeoutEnabled, o.WriteTimeout = true, time.Minute })
	require.NoError(t, rdb.Ping(t.Context()).Err())
	incr := func(ctx context.Context) func(redis.Pipeliner) error {
		return func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil }
	}
	for name, run := range map[string]func(context.Context){
		"a command":      func(ctx context.Context) { rdb.Incr(ctx, "n") },
		"one that waits": func(ctx context.Context) { rdb.LPush(ctx, "q", 1); rdb.BLPop(ctx, time.Second, "q") },
		"a pipeline":     func(ctx context.Context) { _, _ = rdb.Pipelined(ctx, incr(ctx)) },
		"a transaction":  func(ctx context.Context) { _, _ = rdb.TxPipelined(ctx, incr(ctx)) },
	} {
		x := &tokenContext{Context: t.Context(), zone: zone, after: time.Minute - time.Millisecond}
		s.set(func() { s.deadlines = nil })
		run(x)
		s.set(func() {
			require.NotEmpty(t, s.deadlines, name)
			for _, d := range s.deadlines {
				believe(t, d.Location() == zone && slices.ContainsFunc(x.given, d.Equal),
					"the deadline of a context, when it is sooner than the timeout for writing, is handed to SetWriteDeadline as it is, zone included; "+
						"if this fails, connections do not learn whom they serve, and commands wait on when their context is canceled", name, d)
			}
			last := s.deadlines[len(s.deadlines)-1]
			believe(t, slices.IndexFunc(x.given, last.Equal) < len(x.given)-1, "a context is asked for its deadline again before a reply is read; "+
				"if this fails, the wait for a reply ends at the deadline for writing", name)
		})
	}
	x := &tokenContext{Context: t.Context(), zone: zone, after: time.Hour}
	s.set(func() { s.deadlines = nil })
	rdb.Incr(x, "n")
	s.set(func() {
		believe(t, s.deadlines[0].Location() != zone, "of the deadline of a context and the timeout for writing the sooner one is set; "+
			"if this fails, the margin by which redial's tokens are sooner is of no use")
	})
}

// stamped notes what is set on a command.
type stamped struct {
	redis.Cmder
	once bool
	set  []error
}

func (c *stamped) SetErr(err error) { c.set = append(c.set, err); c.Cmder.SetErr(err) }
func (c *stamped) NoRetry() bool    { return c.once }

// batchOf returns a pipeline of INCR on three keys, and its commands.
func batchOf(ctx context.Context, pipe redis.Pipeliner, once bool) []*stamped {
	var all []*stamped
	for _, key := range []string{"a", "b", "c"} {
		cmd := &stamped{Cmder: redis.NewIntCmd(ctx, "incr", key), once: once}
		all = append(all, cmd)
		_ = pipe.Process(ctx, cmd)
	}
	return all
}

// How far a pipeline was answered shows in the order of what is set on its commands.
func TestHost_ErrorsOfAPipeline(t *testing.T) {
	ctx := t.Context()
	f := redialtest.NewFakeServer(t)
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "incr" && args[1] == "b" {
			return redialtest.ExecuteThenClose
		}
		return redialtest.Handle
	})
	rdb := bare(t, f)
	pipe := rdb.Pipeline()
	cmds := batchOf(ctx, pipe, false)
	_, err := pipe.Exec(ctx)
	require.Error(t, err)
	answered, lost, later := cmds[0], cmds[1], cmds[2]
	believe(t, len(answered.set) > 1 && answered.set[0] == nil, "what is set on a command of a pipeline first is its answer; "+
		"if this fails, redial does not know which commands of a pipeline were answered, and may send one again that has run", answered.set)
	believe(t, answered.Err() != nil, "the error that ends a pipeline is set on commands as well that were answered; if this fails, redial need not stand in for them", answered.set)
	for _, cmd := range []*stamped{lost, later} {
		believe(t, len(cmd.set) > 0 && cmd.set[0] != nil && !isReply(cmd.set[0]), "commands of a pipeline that were not answered get the error that ended it first; "+
			"if this fails, redial takes them for answered, and a caller for done", cmd.set)
	}

	cluster := bareCluster(t, f)
	pipe = cluster.Pipeline()
	cmds = batchOf(ctx, pipe, true)
	_, err = pipe.Exec(ctx)
	require.Error(t, err)
	believe(t, cmds[0].Err() == nil && cmds[1].Err() != nil && cmds[2].Err() != nil, "at a node of a cluster, the error that ends a pipeline is set on the commands only that were not answered; "+
		"if this fails, what was answered there is taken for unknown, and may be sent again", cmds[0].set)
}

// A pipeline whose first command is refused is sent again as a whole, unless one of its
// commands forbids it.
func TestHost_PipelinesAreSentAgainUnlessForbidden(t *testing.T) {
	ctx := t.Context()
	for name, pipeOf := range map[string]func(*testing.T, *redialtest.FakeServer) redis.Pipeliner{
		"client": func(t *testing.T, f *redialtest.FakeServer) redis.Pipeliner {
			return bare(t, f, func(o *redis.Options) { o.MaxRetries, o.MinRetryBackoff, o.MaxRetryBackoff = 1, -1, -1 }).Pipeline()
		},
		"cluster": func(t *testing.T, f *redialtest.FakeServer) redis.Pipeliner {
			return bareCluster(t, f, func(o *redis.ClusterOptions) { o.MaxRedirects, o.MinRetryBackoff, o.MaxRetryBackoff = 2, -1, -1 }).Pipeline()
		},
	} {
		for _, once := range []bool{false, true} {
			f := redialtest.NewFakeServer(t)
			var refused atomic.Bool
			f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
				if args[0] == "incr" && args[1] == "a" && !refused.Swap(true) {
					return redialtest.Reply("-LOADING Redis is loading the dataset in memory\r\n")
				}
				return redialtest.Handle
			})
			pipe := pipeOf(t, f)
			batchOf(ctx, pipe, once)
			_, err := pipe.Exec(ctx)
			ran := f.Executed("incr")
			if once {
				believe(t, err != nil && ran == 2, "a pipeline with a command that says NoRetry is not sent again; if this fails, commands behind one that was refused run twice", name, err, ran)
			} else {
				believe(t, err == nil && ran == 5, "a pipeline whose first command is refused is sent again as a whole; if this fails, redial need not forbid it", name, err, ran)
			}
		}
	}
	believe(t, redis.NewHImportSetCmd(ctx, "k", "set", "v").Name() == "himport", "the commands that it must recognize by their type in a pipeline are called HIMPORT; if this fails, redial hides them from it")
}

// What is recognized by its text still has that text.
func TestHost_Words(t *testing.T) {
	ctx := t.Context()
	f := redialtest.NewFakeServer(t)
	var answer atomic.Pointer[string]
	reply := func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if raw := answer.Load(); raw != nil && (args[0] == "get" || args[0] == "incr" || args[0] == "hgetall") {
			return redialtest.Reply(*raw)
		}
		return redialtest.Handle
	}
	f.OnCommand(reply)
	rdb := bare(t, f)
	cn := rdb.Conn()
	defer cn.Close()
	require.NoError(t, cn.Ping(ctx).Err())
	f.CloseConns()
	first := cn.Ping(ctx).Err()
	believe(t, first != nil && !isHeld(first), "the failure that breaks a held connection is returned as it is; if this fails, redial claims that what was in flight was not sent", first)
	again := cn.Ping(ctx).Err()
	believe(t, isHeld(again), "a held connection that is broken says so in words that isHeld knows; if this fails, its commands are said to be of unknown outcome, and waited for in vain", again)

	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "hello" {
			return redialtest.Reply("-ERR unknown command 'HELLO'\r\n")
		}
		return redialtest.Handle
	})
	err := bare(t, f, func(o *redis.Options) {
		o.Protocol, o.MaintNotificationsConfig = 3, &maintnotifications.Config{Mode: maintnotifications.ModeEnabled}
	}).Get(ctx, "a").Err()
	believe(t, isUnsupported(err), "that a server is too old for what the options demand is said in words that isUnsupported knows; if this fails, commands of a cluster client wait for the grace before that is said", err)
	f.OnCommand(reply)

	ring := redis.NewRing(&redis.RingOptions{})
	defer ring.Close()
	for _, err := range []error{
		bareCluster(t, f, func(o *redis.ClusterOptions) { o.ClusterSlots = nil }).Get(ctx, "a").Err(),
		ring.Get(ctx, "a").Err(),
	} {
		believe(t, isUnrouted(err) && rejectedInWords(err.Error()), "that there is no node for a command is said in words that isUnrouted knows; if this fails, such commands are not tried again once there is one", err)
	}

	for _, c := range []struct {
		raw string
		run func() error
	}{
		{"?what\r\n", func() error { return rdb.Get(ctx, "a").Err() }},
		{"+OK\r\n", func() error { return rdb.Incr(ctx, "a").Err() }},
		{"$3\r\nabc\r\n", func() error { return rdb.HGetAll(ctx, "a").Err() }},
		{"*x\r\n", func() error { return rdb.HGetAll(ctx, "a").Err() }},
	} {
		answer.Store(&c.raw)
		err := c.run()
		believe(t, err != nil && isGarbled(err) != errors.As(err, new(*strconv.NumError)), "that a reply makes no sense is said in words that begin with redis:, as isGarbled knows, or, where a number was to come, by package strconv; "+
			"if this fails, a command that was answered so is taken for one of which nothing is known but the error", c.raw, err)
		believe(t, !SafeToRetry(err), "no reply that makes no sense looks as if nothing had run; if this fails, SafeToRetry lies", c.raw, err)
	}
	answer.Store(nil)
	sets := f.Executed("set")
	err = rdb.Set(ctx, "k", struct{}{}, 0).Err()
	believe(t, err != nil && !isGarbled(err) && f.Executed("set") == sets, "that an argument cannot be written is said in words that begin with redis: can't marshal, and before anything is sent; "+
		"if this fails, a mistake of the caller is taken for a reply", err)
}

// What client-side caching forbids is said before there is a connection.
func TestHost_ForbiddenByClientSideCaching(t *testing.T) {
	ctx := t.Context()
	f := redialtest.NewFakeServer(t)
	f.Kill()
	rdb := bare(t, f, func(o *redis.Options) { o.Protocol, o.ClientSideCacheConfig = 3, &redis.ClientSideCacheConfig{} })
	for _, args := range [][]any{
		{"client", "tracking", "on"}, {"select", 1}, {"auth", "x"}, {"hello", 2}, {"reset"}, {"subscribe", "c"}, {"psubscribe", "c"}, {"ssubscribe", "c"},
	} {
		cmd := redis.NewCmd(ctx, args...)
		err := rdb.Process(ctx, cmd)
		believe(t, err != nil && rejectedInWords(err.Error()), "a command that client-side caching forbids is rejected, in words that rejectedInWords knows, before there is a connection; "+
			"if this fails, it waits for the link first", args, err)
		believe(t, isBarredByCache(cmd), "commands that client-side caching forbids are those of isBarredByCache; if this fails, one waits for the link in vain", args)
	}
	for _, args := range [][]any{{"get", "k"}, {"set", "k", "v"}, {"ping"}, {"eval", "return 1", 0}, {"monitor"}, {"watch", "k"}, {"multi"}} {
		err := rdb.Do(ctx, args...).Err()
		believe(t, err != nil && !strings.HasSuffix(err.Error(), " when client-side caching is enabled"), "client-side caching forbids no other commands; if this fails, isBarredByCache lacks one", args, err)
	}
}

// A ring goes by what it is told, in the way that redial counts on.
func TestHost_Ring(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	var up atomic.Bool
	up.Store(true)
	var ring atomic.Pointer[redis.Ring]
	var asking atomic.Int32
	type look struct {
		up  bool
		len int
	}
	looks := make(chan look, 1000)
	var atOnce atomic.Bool
	r := bareRing(t, f, func(o *redis.RingOptions) {
		o.HeartbeatFrequency = time.Millisecond
		o.HeartbeatFn = func(context.Context, *redis.Client) bool {
			if asking.Add(1) > 1 {
				atOnce.Store(true)
			}
			defer asking.Add(-1)
			is := up.Load()
			if r := ring.Load(); r != nil {
				select {
				case looks <- look{is, r.Len()}:
				default:
				}
			}
			return is
		}
	})
	ring.Store(r)
	count := func(is bool, until int) (n int) {
		for {
			select {
			case l := <-looks:
				if l.up == is && l.len == until {
					return n
				}
				if l.up == is {
					n++
				}
			case <-time.After(5 * time.Second):
				return -1
			}
		}
	}
	up.Store(false)
	downs := count(false, 0)
	believe(t, downs == ringVotes, "a ring wants to hear three times, ringVotes, that a shard is down before it moves keys; if this fails, commands that wait for the shard go on too early, and wait again, or too late", downs)
	up.Store(true)
	ups := count(true, 1)
	believe(t, ups == 1, "a ring moves keys back when it hears once that a shard is up; if this fails, commands go on too early, and fail at another shard", ups)
	believe(t, !atOnce.Load(), "a ring asks after one shard at a time; if this fails, the count of its votes is not safe")

	pinged := make(chan struct{}, 1)
	own := bareRing(t, f, func(o *redis.RingOptions) {
		o.HeartbeatFrequency = time.Millisecond
		o.NewClient = func(o *redis.Options) *redis.Client {
			shard := redis.NewClient(o)
			shard.AddHook(commandsHook{func(cmds ...redis.Cmder) {
				if cmds[0].Name() == "ping" {
					nudge(pinged)
				}
			}})
			return shard
		}
	})
	select {
	case <-pinged:
	case <-time.After(5 * time.Second):
		believe(t, false, "a ring without a HeartbeatFn PINGs its shards through their hooks; if this fails, its heartbeats do not wait for redial, and redial need not let them pass", own)
	}

	many := make(map[string]string)
	for i := range 5 {
		many[fmt.Sprint("shard", i)] = fmt.Sprint("10.0.0.", i, ":1")
	}
	big := bareRing(t, f, func(o *redis.RingOptions) {
		o.Addrs, o.HeartbeatFn = many, func(context.Context, *redis.Client) bool { return true }
	})
	opt := big.Options()
	names := slices.Sorted(maps.Keys(many))
	for i := range 200 {
		for _, form := range []string{"key%d", "{tag%d}a", "a{tag%d}b{c}", "{}%d", "{%d", "}%d{", "{{%d}}", "x{%d}{y}"} {
			key := fmt.Sprintf(form, i)
			shard, err := big.GetShardClientForKey(key)
			require.NoError(t, err)
			want := opt.Addrs[opt.NewConsistentHash(names).Get(command.HashTag(key))]
			believe(t, shard.Options().Addr == want, "a ring finds the shard of a key by its NewConsistentHash over the names of all shards, and what tagOf returns; "+
				"if this fails, a subscription that is made while all shards are down is made at another shard than those who publish use", key)
		}
	}
}

// What a closed client says, and one that is not.
func TestHost_Closed(t *testing.T) {
	ctx := t.Context()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	f := redialtest.NewFakeServer(t)
	const sentence = "if this fails, redial does not find out that the caller has closed the client, and goes on, or takes one for closed that is not"
	rdb := bare(t, f, func(o *redis.Options) { o.Limiter = allowAll{} })
	clone := rdb.WithTimeout(time.Second)
	clone.Options().Limiter = nil
	believe(t, rdb.Options().Limiter != nil, "a clone by WithTimeout has options of its own; if this fails, redial takes away the caller's Limiter")
	before := *rdb.PoolStats()
	_, err := clone.AutoPipelineWithOptions(noOptions)
	believe(t, err != nil && err != redis.ErrClosed, "an auto-pipeline with options that cannot be had is refused, but not with ErrClosed; "+sentence, err)
	err = clone.Ping(ended).Err()
	believe(t, err == context.Canceled && f.Dials() == 0 && *rdb.PoolStats() == before, "a PING whose context had ended leaves no trace and returns the context's error; "+sentence, err, f.Dials())
	require.False(t, closedCheck(rdb)())
	isGone := closedCheck(rdb)
	require.NoError(t, rdb.Close())
	_, err = clone.AutoPipelineWithOptions(noOptions)
	believe(t, err == redis.ErrClosed, "of a closed client, an auto-pipeline with options that cannot be had is refused with ErrClosed itself, also by its clones; "+sentence, err)
	err = clone.Ping(ended).Err()
	believe(t, err == redis.ErrClosed, "a closed client answers a PING with ErrClosed itself, even when its context had ended; "+sentence, err)
	require.True(t, isGone())
	err = rdb.Get(ctx, "a").Err()
	believe(t, err == redis.ErrClosed, "a closed client returns ErrClosed itself; if this fails, callers get an error of redial's instead", err)

	cluster := bareCluster(t, f)
	isGone = clusterClosed(cluster)
	believe(t, !isGone(), "a cluster client that is open says so; "+sentence)
	require.NoError(t, cluster.Close())
	believe(t, isGone(), "a cluster client that is closed says so; "+sentence)
	ring := bareRing(t, f)
	isGone = ringClosed(ring)
	believe(t, !isGone(), "a ring that is open says so; "+sentence)
	require.NoError(t, ring.Close())
	believe(t, isGone(), "a ring that is closed says so; "+sentence)
	believe(t, f.Dials() == 0, "to ask whether a client is closed does no I/O; if this fails, redial connects where nobody has asked for it")
}

type allowAll struct{}

func (allowAll) Allow() error       { return nil }
func (allowAll) ReportResult(error) {}

// What pools do that redial works with, or around.
func TestHost_Pool(t *testing.T) {
	ctx := t.Context()
	f := redialtest.NewFakeServer(t)
	var last atomic.Int64
	f.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "get" {
			last.Store(int64(c.ID()))
		}
		return redialtest.Handle
	})
	rdb := bare(t, f, func(o *redis.Options) { o.PoolSize = 3 })
	var held []*redis.Conn
	for range 3 {
		cn := rdb.Conn()
		require.ErrorIs(t, cn.Get(ctx, "a").Err(), redis.Nil)
		held = append(held, cn)
	}
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	impatient := bare(t, f, func(o *redis.Options) { o.PoolSize, o.PoolTimeout = 1, time.Millisecond })
	one := impatient.Conn()
	defer one.Close()
	require.NoError(t, one.Ping(ctx).Err())
	err := impatient.Get(short, "a").Err()
	believe(t, isPoolTimeout(err), "who waits for a connection for too long gets ErrPoolTimeout; if this fails, such commands are said to be of unknown outcome", err)
	for _, cn := range held {
		require.NoError(t, cn.Close())
	}
	rdb.Get(ctx, "a")
	believe(t, last.Load() == 3, "the connection that was given back last is handed out first; if this fails, a warm pool is no smaller than it has to be, and more connections are swept", last.Load())
	f.CloseConns()
	for f.Conns() > 0 {
		time.Sleep(time.Millisecond)
	}
	believe(t, rdb.PoolStats().IdleConns == 3, "connections that died in the pool count as idle until somebody asks for them; if this fails, redial makes connections after an outage that go-redis makes by itself", rdb.PoolStats().IdleConns)

	var dials atomic.Int64
	failing := bare(t, f, func(o *redis.Options) {
		o.PoolSize = 2
		o.Dialer = func(context.Context, string, string) (net.Conn, error) {
			return nil, fmt.Errorf("dial %d", dials.Add(1))
		}
	})
	for range 2 {
		require.Error(t, failing.Get(ctx, "a").Err())
	}
	for i := 0; dials.Load() < 3 && i < 1000; i++ { // the pool looks by itself whether it can dial again, once a second
		time.Sleep(time.Millisecond)
	}
	err = failing.Get(ctx, "a").Err()
	believe(t, err != nil && dials.Load() == 3, "after as many failed dials as the pool is large it answers with an old error and does not dial; "+
		"if this fails, stand-ins for connections that cannot be made are not needed", err, dials.Load())

	// Subscriptions and clones.
	clone := rdb.WithTimeout(time.Second)
	var h nextNames
	rdb.AddHook(&h)
	clone.Get(ctx, "a")
	believe(t, h.take() == "" && clone.PoolStats().Hits == rdb.PoolStats().Hits, "a clone by WithTimeout has the pool and not the hooks that are added later; if this fails, callers see commands of redial's own, or their clones have a pool of their own")
	late := rdb.WithTimeout(time.Second)
	late.Get(ctx, "a")
	believe(t, h.take() == "", "a clone by WithTimeout does not have the hooks; if this fails, a clone of a Client has each twice")
}

// With RESP3 a connection that fails is asked again, for what the server may have pushed.
func TestHost_ReadsAgainAfterAFailure(t *testing.T) {
	ctx := t.Context()
	s := spied(redialtest.NewFakeServer(t))
	rdb := bare(t, s.server, s.dialer, func(o *redis.Options) { o.Protocol = 3 })
	require.NoError(t, rdb.Ping(ctx).Err())
	reads := 0
	s.set(func() { s.read = func() error { reads++; return fmt.Errorf("failure %d", reads) } })
	err := rdb.Get(ctx, "a").Err()
	believe(t, err != nil && err.Error() == "failure 2", "with RESP3 it reads once more after a failure to read, and reports the second; if this fails, redial need not remember the first", err)
}

// A hook is called in the order, and at the times, that the outer hooks need.
func TestHost_Hooks(t *testing.T) {
	ctx := t.Context()
	f := redialtest.NewFakeServer(t)
	rdb := bare(t, f)
	var calls []string
	note := func(what string) func() { return func() { calls = append(calls, what) } }
	rdb.AddHook(spyHook{run: note("first")})
	rdb.AddHook(spyHook{run: note("second")})
	rdb.Get(ctx, "a")
	believe(t, slices.Equal(calls[len(calls)-2:], []string{"first", "second"}), "the hook that was added first is the outermost; if this fails, hooks of the caller run outside of the gate, and outer hooks inside", calls)

	var made []string
	rdb.AddHook(spyHook{made: func(what string, next any) { made = append(made, what+" "+strings.TrimPrefix(nameOf(next), goRedis)) }})
	batches := slices.DeleteFunc(slices.Clone(made), func(m string) bool { return strings.HasPrefix(m, "process ") })
	believe(t, slices.Equal(batches, []string{"batch (*baseClient).processPipeline-fm", "batch (*baseClient).processTxPipeline-fm"}),
		"when a hook is added, every hook is asked once for pipelines and then once for transactions; if this fails, outer hooks of pipelines are called for transactions", made)

	calls = nil
	func() {
		defer func() { _ = recover() }()
		rdb.AddHook(spyHook{run: note("third"), made: func(what string, _ any) {
			if what == "batch" {
				panic(errTest)
			}
		}})
	}()
	rdb.Get(ctx, "a")
	believe(t, slices.Equal(calls, []string{"first", "second"}), "a hook that panics while it is added leaves the hooks as they were; if this fails, outer hooks of clusters, rings and clones pile up", calls)

	// Dials.
	dialed := 0
	dial := spyHook{dial: func() { dialed++ }}
	single := bare(t, f)
	single.AddHook(dial)
	single.Get(ctx, "a")
	believe(t, dialed == 1, "hooks of a client are called for its dials; if this fails, a client that was built without supervision dials past its link", dialed)
	dialed = 0
	cluster := bareCluster(t, f)
	cluster.AddHook(dial)
	cluster.Get(ctx, "a")
	ring := bareRing(t, f)
	ring.AddHook(dial)
	ring.Get(ctx, "a")
	clone := rdb.WithTimeout(time.Second)
	clone.AddHook(dial)
	f.CloseConns()
	clone.Get(ctx, "a")
	believe(t, dialed == 0, "hooks of a cluster, a ring or a clone are not called for dials; if this fails, outer hooks of these do not see them", dialed)

	// Contexts that have ended.
	calls = nil
	ended, cancel := context.WithCancel(ctx)
	cancel()
	err := rdb.Get(ended, "a").Err()
	believe(t, err == context.Canceled && slices.Equal(calls, []string{"first", "second"}), "hooks see a command whose context had ended, and it fails with the context's error itself; if this fails, hooks see more, or less, than on go-redis alone", err, calls)
	gets := f.Executed("get")
	cmds, err := rdb.Pipelined(ended, func(p redis.Pipeliner) error { p.Get(ctx, "a"); p.Get(ctx, "b"); return nil })
	believe(t, err == context.Canceled && cmds[0].Err() == err && cmds[1].Err() == err && f.Executed("get") == gets,
		"a pipeline whose context had ended is not sent, and every command has the context's error; if this fails, redial sets it where go-redis does not", err)
}

// spyHook calls its functions.
type spyHook struct {
	run  func()
	made func(what string, next any)
	dial func()
}

func (h spyHook) DialHook(next redis.DialHook) redis.DialHook {
	if h.dial == nil {
		return next
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		h.dial()
		return next(ctx, network, addr)
	}
}

func (h spyHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	if h.made != nil {
		h.made("process", next)
	}
	return func(ctx context.Context, cmd redis.Cmder) error {
		if h.run != nil && !command.IsHandshake(cmd) {
			h.run()
		}
		return next(ctx, cmd)
	}
}

func (h spyHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	if h.made != nil {
		h.made("batch", next)
	}
	return next
}

// What sets a connection up goes through hooks, and is told from what callers send.
func TestHost_SetUp(t *testing.T) {
	ctx := t.Context()
	for _, protocol := range []int{2, 3} {
		f := redialtest.NewFakeServer(t)
		rdb := bare(t, f, func(o *redis.Options) {
			o.Protocol, o.Username, o.Password, o.DB, o.ClientName, o.DisableIdentity = protocol, "u", "p", 1, "c", false
		})
		var names []string
		var strangers []string
		see := func(cmds ...redis.Cmder) {
			for _, cmd := range cmds {
				names = append(names, cmd.Name())
				if !command.IsHandshake(cmd) && cmd.Name() != "get" {
					strangers = append(strangers, cmd.Name())
				}
			}
		}
		rdb.AddHook(commandsHook{see})
		_ = rdb.Get(ctx, "a").Err()
		believe(t, len(strangers) == 0, "all that it sends to set up a connection, and that hooks see, is what isHandshake knows; if this fails, such a command waits at the gate for the connection that it is to set up", strangers)
		believe(t, slices.Contains(names, "select") && slices.Contains(names, "hello"), "what sets a connection up goes through hooks; if this fails, hooks see less than redial thinks", names)
		names, strangers = nil, nil
		_, port, err := net.SplitHostPort(f.Addr())
		require.NoError(t, err)
		f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			if args[0] == "cluster" {
				return redialtest.Reply("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:" + port + "\r\n")
			}
			return redialtest.Handle
		})
		cluster := bareCluster(t, f, func(o *redis.ClusterOptions) {
			o.Protocol, o.ReadOnly, o.ClusterSlots, o.Addrs = protocol, true, nil, []string{f.Addr()}
		})
		cluster.OnNewNode(func(node *redis.Client) {
			node.AddHook(commandsHook{func(cmds ...redis.Cmder) {
				if !command.IsAboutTopology(cmds[0]) {
					see(cmds...)
				}
			}})
		})
		_ = cluster.Get(ctx, "a").Err()
		believe(t, len(strangers) == 0 && slices.Contains(names, "readonly"), "the same goes for the nodes of a cluster, where it says READONLY as well, and asks for no more than isAboutTopology knows; if this fails, such a command waits for the node", names)
	}
	f := redialtest.NewFakeServer(t)
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "hello" {
			return redialtest.Reply("-ERR max number of clients reached\r\n")
		}
		return redialtest.Handle
	})
	err := bare(t, f, func(o *redis.Options) { o.Protocol = 3 }).Get(ctx, "a").Err()
	believe(t, err == redis.Nil, "a server that is full, and says so to HELLO, is taken for one that is too old for it; if this fails, connections need not look at the first reply", err)

	s := spied(redialtest.NewFakeServer(t))
	rdb := bare(t, s.server, s.dialer)
	cn := rdb.Conn()
	defer cn.Close()
	require.NoError(t, cn.Ping(ctx).Err())
	s.take()
	require.NoError(t, cn.Do(ctx, "multi").Err())
	log := s.take()
	believe(t, slices.Contains(log, "write *1\r\n$5\r\nmulti\r\n"), "a command that is sent alone is written by one Write; if this fails, a connection in MULTI may be PINGed by the sweep", log)
	require.NoError(t, cn.Do(ctx, "discard").Err())
	s.take()
	_, _ = cn.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "a"); return nil })
	log = s.take()
	believe(t, slices.ContainsFunc(log, func(w string) bool { return strings.HasPrefix(w, "write *1\r\n$5\r\nmulti\r\n*2") }),
		"a transaction is written together with its MULTI; if this fails, its connection is taken for one that a caller holds", log)
}

// commandsHook shows commands.
type commandsHook struct{ see func(...redis.Cmder) }

func (h commandsHook) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h commandsHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { h.see(cmd); return next(ctx, cmd) }
}
func (h commandsHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { h.see(cmds...); return next(ctx, cmds) }
}

// How a cluster client finds nodes.
func TestHost_Cluster(t *testing.T) {
	ctx := t.Context()
	f := redialtest.NewFakeServer(t)
	var asked atomic.Int64
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "command" {
			asked.Add(1)
			return redialtest.Reply("*1\r\n*6\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n")
		}
		return redialtest.Handle
	})
	spared := redis.NewStringCmd(ctx, "get", "a")
	spared.SetStepCount(1)
	_ = bareCluster(t, f).Process(ctx, spared)
	believe(t, asked.Load() == 0, "a command whose step count is set is sent without a question for the description of all commands; if this fails, the first command asks for it, on a connection of its own", asked.Load())
	_ = bareCluster(t, f).Process(ctx, redis.NewStringCmd(ctx, "get", "a"))
	believe(t, asked.Load() > 0, "the description of all commands is asked for before a command is sent; if this fails, the step count need not be set", asked.Load())

	var loads atomic.Int64
	var fails atomic.Bool
	cluster := bareCluster(t, f, func(o *redis.ClusterOptions) {
		slots := o.ClusterSlots
		o.ClusterSlots = func(ctx context.Context) ([]redis.ClusterSlot, error) {
			loads.Add(1)
			if fails.Load() {
				return nil, errTest
			}
			return slots(ctx)
		}
	})
	addr := ""
	var mu sync.Mutex
	nothing := func(_ context.Context, node *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		addr = node.Options().Addr
		return nil
	}
	for i := range 3 {
		require.NoError(t, cluster.ForEachMaster(ctx, nothing))
		believe(t, loads.Load() == int64(i+1), "ForEachMaster asks for the topology every time; if this fails, redial does not hear of changes", loads.Load())
	}
	fails.Store(true)
	err := cluster.ForEachMaster(ctx, nothing)
	believe(t, err == nil, "ForEachMaster goes by the topology that it knows when it cannot be told another; if this fails, redial need not count what it was told", err)
	believe(t, "127.0.0.1"+addr == f.Addr(), "a loopback address that ClusterSlots names loses its host; if this fails, redial does not recognize a master that a sentinel names", addr)

	for _, c := range []struct{ origin, named, addr string }{
		{"redis.test:7000", "127.0.0.1:7001", "redis.test:7001"},
		{"redis.test:7000", "10.0.0.1:0", "10.0.0.1:7000"},
		{"redis.test:7000", "[::1]:0", "redis.test:7000"},
		{"redis.test:7000", "node.test:7001", "node.test:7001"},
		{"127.0.0.2:7000", "127.0.0.1:7001", "127.0.0.1:7001"},
		{"localhost:7000", "127.0.0.1:7001", "127.0.0.1:7001"},
		{"Host.docker.internal:7000", "127.0.0.1:7001", "127.0.0.1:7001"},
	} {
		host, port, err := net.SplitHostPort(c.named)
		require.NoError(t, err)
		node := redialtest.NewFakeServer(t)
		node.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			if args[0] == "cluster" {
				return redialtest.Reply(fmt.Sprintf("*1\r\n*3\r\n:0\r\n:%d\r\n*2\r\n$%d\r\n%s\r\n:%s\r\n", lastSlot, len(host), host, port))
			}
			return redialtest.Handle
		})
		cluster := redis.NewClusterClient(&redis.ClusterOptions{
			Addrs:  []string{c.origin},
			Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) { return node.Dial(ctx, network, "") },
		})
		require.NoError(t, cluster.ForEachMaster(ctx, nothing))
		believe(t, addr == c.addr, "a loopback address that a node names means the host of that node, unless that is a loopback address, and the port 0 its port; if this fails, redial does not see that another has taken the place of a node", addr)
		assert.Equal(t, c.addr, nodeAddrOf(c.named, c.origin))
		require.NoError(t, cluster.Close())
	}

	// A node's hook that returns an error.
	for _, c := range []struct {
		err   error
		nodes int
		what  string
	}{
		{endLike{errTest}, 2, "an error that is io.EOF has a cluster client try another node that may be read from; if this fails, reads wait for a node though others have the data"},
		{errTest, 1, "an error that it does not know is final; if this fails, go-redis sends commands again that redial has not allowed"},
	} {
		reader := bareCluster(t, f, func(o *redis.ClusterOptions) {
			o.ReadOnly, o.RouteRandomly, o.MinRetryBackoff, o.MaxRetryBackoff, o.MaxRedirects = true, true, -1, -1, 50
			o.ClusterSlots = func(context.Context) ([]redis.ClusterSlot, error) {
				return []redis.ClusterSlot{{Start: 0, End: lastSlot, Nodes: []redis.ClusterNode{{Addr: "10.0.0.1:1"}, {Addr: "10.0.0.2:1"}}}}, nil
			}
		})
		tried := make(map[*redis.Client]bool)
		reader.OnNewNode(func(node *redis.Client) {
			node.AddHook(hookFunc(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
				if cmd.Name() != "get" { // COMMAND, to know what reads
					return next(ctx, cmd)
				}
				mu.Lock()
				defer mu.Unlock()
				tried[node] = true
				return c.err
			}))
		})
		_ = reader.Get(ctx, "a")
		mu.Lock()
		believe(t, len(tried) == c.nodes, c.what, len(tried))
		mu.Unlock()
	}
}

// endLike is io.EOF to those who ask.
type endLike struct{ error }

func (endLike) Is(target error) bool { return target == io.EOF }

// What a failed connection says must not have the words of a certain reply.
func TestHost_OneReplyIsKnownByItsText(t *testing.T) {
	ctx := t.Context()
	for text, dials := range map[string]int{
		"some words": 1,
		"caused by -READONLY You can't write against a read only replica.": 2,
	} {
		s := spied(redialtest.NewFakeServer(t))
		rdb := bare(t, s.server, s.dialer, func(o *redis.Options) { o.MaxRetries, o.MinRetryBackoff, o.MaxRetryBackoff = 1, -1, -1 })
		s.set(func() { s.write = func([]byte) error { return errors.New(text) } })
		require.Error(t, rdb.Get(ctx, "a").Err())
		s.set(func() {
			believe(t, len(s.dials) == dials, "an error with -READONLY anywhere in it is worth another try to it, and one that it does not know is not; if this fails, causes need not be put in other words, or go-redis tries again by itself", text, len(s.dials))
		})
	}
}

// Names are not looked up where redial has said that it need not be.
func TestHost_NoLookup(t *testing.T) {
	was := net.DefaultResolver
	defer func() { net.DefaultResolver = was }()
	for _, c := range []struct {
		kind maintnotifications.EndpointType
		want bool
		what string
	}{
		{maintnotifications.EndpointTypeAuto, true, "it looks up the name of the server when it builds a client with maintenance notifications; if this fails, withoutLookup is not needed"},
		{maintnotifications.EndpointTypeNone, false, "with EndpointTypeNone it does not look up the name of the server when it builds a client; if this fails, constructors wait for a slow name server"},
	} {
		var asked atomic.Bool
		net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			asked.Store(true)
			return nil, errTest
		}}
		_ = redis.NewClient(&redis.Options{
			Addr: "redis.example:6379", MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeAuto, EndpointType: c.kind},
		}).Close()
		believe(t, asked.Load() == c.want, c.what)
	}
}

// What go-redis takes for a reason to send a command again.
func TestHost_RepliesThatItRepeats(t *testing.T) {
	ctx := t.Context()
	f := redialtest.NewFakeServer(t)
	var reply atomic.Pointer[string]
	var sent atomic.Int64
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] != "get" {
			return redialtest.Handle
		}
		sent.Add(1)
		return redialtest.Reply("-" + *reply.Load() + "\r\n")
	})
	rdb := bare(t, f, func(o *redis.Options) { o.MaxRetries, o.MinRetryBackoff, o.MaxRetryBackoff = 1, -1, -1 })
	repeated := 0
	for _, row := range refusals {
		text := row.begins + row.has
		if row.begins == wire.FullServer {
			text = "ERR " + text + " reached"
		}
		reply.Store(&text)
		sent.Store(0)
		err := rdb.Get(ctx, "a").Err()
		if sent.Load() > 1 {
			repeated++
			believe(t, wouldRepeat(err), "the replies after which it sends a command again are those of wouldRepeat; if this fails, a script that has done something runs twice on a cluster", text)
		}
	}
	believe(t, repeated > 0, "there are replies after which it sends a command again; if this fails, wouldRepeat is not needed")
}

// What it takes for granted where nothing is said.
func TestHost_Defaults(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{})
	defer rdb.Close()
	opt := rdb.Options()
	believe(t, opt.Addr == addrOf(""), "a client without an address is one for the address that addrOf returns; if this fails, errors and statistics name another server", opt.Addr)
	own := func(context.Context, string, string) (net.Conn, error) { return nil, errTest }
	believe(t, isHostDialer(opt.Dialer) && !isHostDialer(own), "the dialer that go-redis puts into options is known by its name; if this fails, a supervised client waits for an address that cannot be read", nameOf(opt.Dialer))
	believe(t, opt.DialTimeout == defaultDialTimeout, "a dial may take defaultDialTimeout by default; if this fails, redial ends dials sooner than it, or later", opt.DialTimeout)
}

// While go-redis sets up a connection, its commands run in the goroutine of initConn.
func TestHost_SetUpIsSeen(t *testing.T) {
	s := redialtest.StartServer(t)
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr(), ClientName: "me", DB: 1})
	defer rdb.Close()
	var mu sync.Mutex
	seen := make(map[string]bool)
	rdb.AddHook(setUpSpy(func(cmds ...redis.Cmder) {
		mu.Lock()
		defer mu.Unlock()
		for _, cmd := range cmds {
			seen[cmd.Name()] = insideSetUp()
		}
	}))
	sub := rdb.Subscribe(t.Context(), "news")
	defer sub.Close()
	_, err := sub.Receive(t.Context())
	require.NoError(t, err)
	require.NoError(t, rdb.Ping(t.Context()).Err())
	for name, want := range map[string]bool{"hello": true, "client": true, "select": true, "ping": false} {
		got, ok := seen[name]
		believe(t, ok && got == want, "A connection is set up by (*baseClient).initConn, which sends "+name+" in its own goroutine.", seen)
	}
}

// A ring finds out which shards are up by PINGs in a goroutine of its own.
func TestHost_HeartbeatOfARing(t *testing.T) {
	s := redialtest.StartServer(t)
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"one": s.Addr()}, HeartbeatFrequency: time.Millisecond})
	defer ring.Close()
	pings := make(chan bool)
	ring.GetShardClients()[0].AddHook(setUpSpy(func(cmds ...redis.Cmder) {
		if cmds[0].Name() == "ping" {
			select {
			case pings <- insideHeartbeat():
			case <-t.Context().Done():
			}
		}
	}))
	believe(t, <-pings, "A ring PINGs its shards in (*ringSharding).Heartbeat.")
	go ring.GetShardClients()[0].Ping(t.Context())
	require.Eventually(t, func() bool { return !<-pings }, 5*time.Second, time.Millisecond, "what others PING is none of that")
}

// A connection is moved by (*handoffWorkerManager).performHandoffInternal, which dials in its own
// goroutine.
func TestHost_MoveIsSeen(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	told := make(chan *redialtest.FakeConn, 1)
	f.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
		if len(args) > 1 && strings.EqualFold(args[1], "maint_notifications") {
			select {
			case told <- c:
			default:
			}
			return redialtest.Reply("+OK\r\n")
		}
		return redialtest.Handle
	})
	moves := make(chan bool, 10)
	rdb := redis.NewClient(&redis.Options{
		Addr: f.Addr(), Protocol: 3,
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			moves <- insideMove()
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeEnabled},
	})
	defer func() {
		for errors.Is(rdb.Close(), context.DeadlineExceeded) { // a connection is being moved, and there is more to end
		}
	}()
	require.NoError(t, rdb.Ping(t.Context()).Err())
	believe(t, !<-moves, "A connection that is not moved is dialed elsewhere.")
	(<-told).Send(fmt.Sprintf(">4\r\n+MOVING\r\n:1\r\n:5\r\n$%d\r\n%s\r\n", len(f.Addr()), f.Addr()))
	seen := false
	for began := time.Now(); !seen && time.Since(began) < 5*time.Second; { // another may be dialed meanwhile
		require.NoError(t, rdb.Ping(t.Context()).Err())
		select {
		case seen = <-moves:
		case <-time.After(time.Millisecond):
		}
	}
	believe(t, seen, "A connection is moved by (*handoffWorkerManager).performHandoffInternal, which dials in its own goroutine.")
}

// setUpSpy is a hook that is told what passes.
type setUpSpy func(cmds ...redis.Cmder)

func (setUpSpy) DialHook(next redis.DialHook) redis.DialHook { return next }
func (f setUpSpy) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { f(cmd); return next(ctx, cmd) }
}
func (f setUpSpy) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { f(cmds...); return next(ctx, cmds) }
}

type onceProbe struct{}

// A command of go-redis keeps the context that it was made with, which an auto-pipeline
// keeps nowhere else.
func TestHost_ContextOfACommand(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	ctx := context.WithValue(t.Context(), onceProbe{}, "mine")
	seen := make(map[string]bool)
	methods := reflect.TypeFor[redis.Pipeliner]()
	for i := range methods.NumMethod() {
		p := rdb.Pipeline()
		m := reflect.ValueOf(p).MethodByName(methods.Method(i).Name)
		if m.Type().NumIn() == 0 || m.Type().In(0) != reflect.TypeFor[context.Context]() || slices.Contains([]string{"Exec", "Process", "BatchProcess"}, methods.Method(i).Name) {
			continue
		}
		func() {
			defer func() { _ = recover() }() // go-redis panics on some made-up arguments
			in := []reflect.Value{reflect.ValueOf(ctx)}
			for k := 1; k < m.Type().NumIn() && !(m.Type().IsVariadic() && k == m.Type().NumIn()-1); k++ {
				in = append(in, reflect.Zero(m.Type().In(k)))
			}
			m.Call(in)
		}()
		for _, cmd := range p.Cmds() {
			seen[fmt.Sprintf("%T", cmd)] = true
			got := contextOf(cmd)
			believe(t, got != nil && got.Value(onceProbe{}) == "mine", "A command has the context that it was made with, in a field ctx.", fmt.Sprintf("%T by %s", cmd, methods.Method(i).Name))
		}
	}
	require.Greater(t, len(seen), 40)
	require.Nil(t, contextOf(readCommand{}), "which is none of go-redis's")
	require.Nil(t, contextOf((*redis.Cmd)(nil)))
	cmd := redis.NewStringCmd(ctx, "get", "k")
	require.Zero(t, testing.AllocsPerRun(1000, func() { _ = contextOf(cmd) }))
}

// A command of a deferred auto-pipeline is known by its gate, which a stand-in can have.
func TestHost_GateOfDeferred(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Dialer: func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }, MaxRetries: -1})
	defer func() { _ = rdb.Close() }()
	async, err := rdb.AsyncAutoPipeline()
	require.NoError(t, err)
	cmd := async.Incr(t.Context(), "k")
	own := gateOf(cmd)
	believe(t, own != nil, "A command of a deferred auto-pipeline has a gate, in a field ready.")
	require.Error(t, cmd.Err())
	require.NoError(t, own.Err(), "which is open now")
	require.Nil(t, gateOf(redis.NewStringCmd(t.Context(), "get", "k")))
	require.Nil(t, gateOf(readCommand{}))
	require.Nil(t, gateOf((*redis.Cmd)(nil)))
}

type readCommand struct{ redis.Cmder }

// go-redis writes the arguments of what it is given, and reads the reply into the command
// inside: alone, in a pipeline and in a transaction.
func TestHost_StandInsAreWritten(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	rdb := bare(t, f)
	rdb.AddHook(lpushing{})
	const sentence = "go-redis writes the Args of a stand-in, and reads into the command that is embedded in it."
	n, err := rdb.Incr(t.Context(), "n").Result()
	believe(t, err == nil && n == 1, sentence, err)
	for _, exec := range []func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){rdb.Pipelined, rdb.TxPipelined} {
		cmds, err := exec(t.Context(), func(p redis.Pipeliner) error { p.Incr(t.Context(), "n"); p.Incr(t.Context(), "n"); return nil })
		believe(t, err == nil && cmds[1].(*redis.IntCmd).Val() == cmds[0].(*redis.IntCmd).Val()+1, sentence, err)
	}
	believe(t, f.Executed("incr") == 0 && f.Executed("lpush") == 5, sentence)
}

// lpushing has LPUSH stand in for INCR.
type lpushing struct{}

func (lpushing) DialHook(next redis.DialHook) redis.DialHook { return next }
func (lpushing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return next(ctx, standIn(cmd)) }
}
func (lpushing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		sent := slices.Clone(cmds)
		for i, cmd := range cmds {
			sent[i] = standIn(cmd)
		}
		return next(ctx, sent)
	}
}

func standIn(cmd redis.Cmder) redis.Cmder {
	if cmd.Name() != "incr" {
		return cmd
	}
	return &onceCmd{cmd, []any{"lpush", "list", "x"}}
}

// What a program pays for every command once it has used Once anywhere.
func BenchmarkHost_ContextOf(b *testing.B) {
	cmd := redis.NewStringCmd(b.Context(), "get", "k")
	b.ReportAllocs()
	for b.Loop() {
		_ = contextOf(cmd)
	}
}

func BenchmarkOnce_NoID(b *testing.B) {
	Once(b.Context(), "another command of the program has an id")
	cmd, c := redis.NewStringCmd(b.Context(), "get", "k"), new(config)
	w := newOnceWay(c, func() bool { return true }, lone)
	for name, ctx := range map[string]context.Context{"background": context.Background(), "cancelable": b.Context()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = c.once(ctx, cmd, false)
				_, _ = w.oncesFor(ctx, cmd)
			}
		})
	}
}

// Looking whether a client was closed leaves no trace, and is right.
func TestClosedCheck(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		rdb := redis.NewClient(opt)
		closed := closedCheck(rdb)
		for range 100 {
			require.False(t, closed())
		}
		assert.Zero(t, n.Dials())
		assert.Equal(t, &redis.PoolStats{PipelineStats: rdb.PoolStats().PipelineStats, PubSubStats: rdb.PoolStats().PubSubStats}, rdb.PoolStats())
		ap, err := rdb.AutoPipelineWithOptions(&redis.AutoPipelineOptions{MaxBatchSize: 7})
		require.NoError(t, err)
		assert.Equal(t, 7, ap.Config().MaxBatchSize, "it has made none")
		assert.False(t, closed())
		require.NoError(t, rdb.WithTimeout(time.Second).Close())
		assert.True(t, closed())

		cluster := redis.NewClusterClient(&redis.ClusterOptions{})
		over := clusterClosed(cluster)
		assert.False(t, over())
		_, err = cluster.AutoPipeline()
		require.NoError(t, err)
		assert.False(t, over())
		require.NoError(t, cluster.Close())
		assert.True(t, over())

		ring := redis.NewRing(&redis.RingOptions{})
		assert.False(t, ringClosed(ring)())
		require.NoError(t, ring.Close())
		assert.True(t, ringClosed(ring)())
	})
}

// hookFunc is a hook for single commands.
type hookFunc func(context.Context, redis.Cmder, redis.ProcessHook) error

func (hookFunc) DialHook(next redis.DialHook) redis.DialHook { return next }

func (f hookFunc) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return f(ctx, cmd, next) }
}

func (hookFunc) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A subscription that is made while a ring knows no shard goes to the one that has the
// channel.
func TestShardFor(t *testing.T) {
	c := NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1", "b": "127.0.0.1:2", "c": "127.0.0.1:3"}})
	defer c.Close()
	for i := range 100 {
		key := fmt.Sprintf("k%d{tag%d}", i, i)
		want, err := c.GetShardClientForKey(key)
		require.NoError(t, err)
		assert.Same(t, want, c.nodes.shardFor(c.Options(), key, nil))
	}
}

// The hooks are called round whatever they are asked to, and remain as they were.
func TestOuter_RoundChangesNothing(t *testing.T) {
	seen, taken := &recorder{}, 0
	take := func() []string {
		all := seen.names()[taken:]
		taken += len(all)
		return all
	}
	cfg, err := newConfig([]Option{WithInstrument(func(rdb redis.UniversalClient) error {
		rdb.(*redis.Client).AddHook(seen)
		return nil
	})})
	require.NoError(t, err)
	whole := newKeeper(cfg, "")
	defer whole.abandon()
	k, err := cfg.deputy(whole.base, &redis.Options{Addr: "127.0.0.1:1"})
	require.NoError(t, err)
	for i := range 3 {
		want := fmt.Errorf("error %d", i)
		whole := k.round(ends{
			process:  func(context.Context, redis.Cmder) error { return want },
			pipeline: func(context.Context, []redis.Cmder) error { return want },
		})
		cmd := redis.NewCmd(t.Context(), "incr", "n")
		assert.True(t, whole.process(t.Context(), cmd) == want)
		assert.True(t, whole.pipeline(t.Context(), []redis.Cmder{cmd}) == want)
		assert.Equal(t, []string{"incr", "pipeline"}, take())
		assert.ErrorIs(t, k.conn.Process(t.Context(), cmd), errNoConnections)
		assert.Equal(t, []string{"incr"}, take())
	}
}
