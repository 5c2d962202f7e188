package conform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit/platform"
)

// The conformance suite runs the same code on bare go-redis and on redial, each against
// a scripted server of its own, and compares transcripts: what the caller got, what
// every hook saw, and what every server was sent. Whatever is not one of the documented
// differences must be equal, to the letter.

// side is who runs the script.
type side string

const (
	bare    side = "go-redis"
	wrapped side = "redial"
	managed side = "supervised"
)

// kind is the constructor that made the client.
type kind string

const (
	aClient          kind = "Client"
	aCluster         kind = "ClusterClient"
	aRing            kind = "Ring"
	aFailover        kind = "FailoverClient"
	aFailoverCluster kind = "FailoverClusterClient"
)

var allKinds = []kind{aClient, aCluster, aRing, aFailover, aFailoverCluster}

// isSingle reports whether the client is a *redis.Client.
func (k kind) isSingle() bool { return k == aClient || k == aFailover }

// hasNodes reports whether the client has clients of nodes.
func (k kind) hasNodes() bool { return !k.isSingle() }

// knobs is what differs between the clients of two cases. The zero value will do.
type knobs struct {
	hidden    bool // see act
	protocol  int
	poolSize  int
	quick     bool                        // as few commands as possible to set up a connection
	tune      func(*redis.Options)        // of a Client
	tuneNodes func(*redis.ClusterOptions) // of a ClusterClient
	nodeHook  func(w *world, addr string) redis.Hook
	viaNew    bool // nodeHook is added by NewClient of the options, not by OnNewNode
	opts      []redial.Option
	before    func(w *world) // changes the servers before there is a client
	waits     bool           // for long, which is better done in a bubble
}

// world is one client of one side with its servers and the transcript of what happens.
type world struct {
	t       testing.TB
	side    side
	kind    kind
	ctx     context.Context
	rdb     redis.UniversalClient
	servers map[string]*scripted     // by address
	slow    map[string]time.Duration // how long a dial takes, by address

	supervisor *redial.Supervisor // nil for the bare side

	mu      sync.Mutex
	streams transcript

	cleanups []func()
}

// brief is a test whose cleanups run when a world of it ends: there are thousands.
type brief struct {
	testing.TB
	w *world
}

func (b brief) Cleanup(f func()) { b.w.cleanups = append(b.w.cleanups, f) }

// note adds a line to a stream of the transcript. Lines of a stream are in order, streams
// are not: nodes work at the same time.
func (w *world) note(stream, format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.streams[stream] = append(w.streams[stream], line)
}

// say notes what the caller sees.
func (w *world) say(format string, args ...any) { w.note("caller", format, args...) }

// got notes the results of a call.
func (w *world) got(what string, err error, cmds ...redis.Cmder) {
	w.say("%s: %s", what, describe(err))
	for _, cmd := range cmds {
		w.say("    %s", describeCmd(cmd))
	}
}

// did notes the result of a command.
func (w *world) did(cmd redis.Cmder) { w.say("%s", describeCmd(cmd)) }

// transcript is what happened, by streams.
type transcript map[string][]string

func (w *world) transcript() transcript {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.streams)
}

func (tr transcript) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(tr)) {
		fmt.Fprintf(&b, "%s\n  %s\n", name, strings.Join(tr[name], "\n  "))
	}
	return b.String()
}

// differ returns, for each stream, where two transcripts part; "" if nowhere.
func differ(want, got transcript) string {
	const shown = 4 // lines of each
	names := maps.Clone(want)
	maps.Copy(names, got)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(names)) {
		a, z := want[name], got[name]
		i := 0
		for i < len(a) && i < len(z) && a[i] == z[i] {
			i++
		}
		if i == len(a) && i == len(z) {
			continue
		}
		fmt.Fprintf(&b, "\n%s, line %d of %d and %d", name, i+1, len(a), len(z))
		if i > 0 {
			fmt.Fprintf(&b, "\n    both      %s", a[i-1])
		}
		for _, line := range a[i:min(len(a), i+shown)] {
			fmt.Fprintf(&b, "\n  - go-redis  %s", line)
		}
		for _, line := range z[i:min(len(z), i+shown)] {
			fmt.Fprintf(&b, "\n  + redial    %s", line)
		}
	}
	return b.String()
}

// wellKnown are the errors that programs compare with ==.
var wellKnown = []struct {
	name string
	err  error
}{
	{"redis.Nil", redis.Nil},
	{"redis.TxFailedErr", redis.TxFailedErr},
	{"redis.ErrClosed", redis.ErrClosed},
	{"redis.ErrPoolTimeout", redis.ErrPoolTimeout},
	{"redis.ErrPoolExhausted", redis.ErrPoolExhausted},
	{"redis.ErrCrossSlot", redis.ErrCrossSlot},
	{"redis.ErrAutoPipelineQueueFull", redis.ErrAutoPipelineQueueFull},
	{"redis.ErrFDPipelineDiverts", redis.ErrFDPipelineDiverts},
	{"redis.ErrFDPipelineUnavailable", redis.ErrFDPipelineUnavailable},
	{"context.Canceled", context.Canceled},
	{"context.DeadlineExceeded", context.DeadlineExceeded},
	{"io.EOF", io.EOF},
	{"errHook", errHook},
	{"errOther", errOther},
}

var (
	errHook  = errors.New("a hook says no")
	errOther = errors.New("another hook says no")
)

// classes are the questions that go-redis answers about an error.
var classes = []struct {
	name string
	is   func(error) bool
}{
	{"auth", redis.IsAuthError},
	{"permission", redis.IsPermissionError},
	{"execabort", redis.IsExecAbortError},
	{"oom", redis.IsOOMError},
	{"loading", redis.IsLoadingError},
	{"readonly", redis.IsReadOnlyError},
	{"redis.Error", func(err error) bool { var e redis.Error; return errors.As(err, &e) }},
	{"net.Error", func(err error) bool { var e net.Error; return errors.As(err, &e) }},
}

// describe returns all that a program can find out about an error.
func describe(err error) string {
	if err == nil {
		return "nil"
	}
	for _, k := range wellKnown {
		if err == k.err {
			return k.name
		}
	}
	s := fmt.Sprintf("%T(%s)", err, err)
	for _, k := range wellKnown {
		if errors.Is(err, k.err) {
			s += " is " + k.name
		}
	}
	for _, c := range classes {
		if c.is(err) {
			s += " as " + c.name
		}
	}
	return s
}

// describeCmd returns all that a hook or caller can see of a command.
func describeCmd(cmd redis.Cmder) string {
	return fmt.Sprintf("%T %s %v err=%s string=%q", cmd, cmd.Name(), cmd.Args(), describe(cmd.Err()), cmd.String())
}

// isHousekeeping reports whether a command is one that go-redis or redial sends at times
// of its own: what asks for the topology and what keeps a ring's shards under watch.
func isHousekeeping(name string) bool {
	switch name {
	case "cluster", "command", "ping", "readonly", "hello", "client", "auth", "select", "sentinel", "role", "info":
		return true
	}
	return false
}

// spy is a hook that notes what it sees, and does what it is told to do. Where do is nil
// it calls next.
type spy struct {
	w            *world
	stream, name string
	terse        bool // of single commands only the names: with full duplex they are under way while the hook looks
	single       func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error
	batch        func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error
}

func (s spy) DialHook(next redis.DialHook) redis.DialHook { return next }

func (s spy) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) (err error) {
		if isHousekeeping(cmd.Name()) {
			return next(ctx, cmd)
		}
		if s.terse {
			s.w.note(s.stream, "%s process %s", s.name, cmd.Name())
			if s.single == nil {
				return next(ctx, cmd)
			}
			return s.single(ctx, cmd, next)
		}
		s.w.note(s.stream, "%s > process %s", s.name, describeCmd(cmd))
		verdict := "panics"
		defer func() { s.w.note(s.stream, "%s < process %s: %s", s.name, describeCmd(cmd), verdict) }()
		if s.single == nil {
			err = next(ctx, cmd)
		} else {
			err = s.single(ctx, cmd, next)
		}
		verdict = describe(err)
		return err
	}
}

func (s spy) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) (err error) {
		if len(cmds) > 0 && isHousekeeping(cmds[0].Name()) {
			return next(ctx, cmds) // part of the set-up of a connection, see TestConform_Hooks_SetUp
		}
		all := func(mark, what string) {
			s.w.note(s.stream, "%s %s pipeline of %d%s", s.name, mark, len(cmds), what)
			for _, cmd := range cmds {
				s.w.note(s.stream, "%s %s     %s", s.name, mark, describeCmd(cmd))
			}
		}
		all(">", "")
		verdict := "panics"
		defer func() { all("<", ": "+verdict) }()
		if s.batch == nil {
			err = next(ctx, cmds)
		} else {
			err = s.batch(ctx, cmds, next)
		}
		verdict = describe(err)
		return err
	}
}

const clusterNodeA, clusterNodeB = "10.0.0.1:7001", "10.0.0.2:7002"

// dial connects to the scripted server of an address.
func (w *world) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	s := w.servers[addr]
	if s == nil {
		return nil, fmt.Errorf("dial %s: no such server", addr)
	}
	if d := w.slow[addr]; d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s.Dial(ctx, network, addr)
}

// newWorld starts the servers of a kind of client.
func newWorld(t testing.TB, s side, k kind) *world {
	w := &world{side: s, kind: k, servers: make(map[string]*scripted), streams: make(transcript)}
	w.t = brief{t, w}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	w.t.Cleanup(cancel)
	w.ctx = ctx
	switch k {
	case aCluster:
		w.serve(clusterNodeA).slots = twoNodes
		w.serve(clusterNodeB).slots = twoNodes
	case aRing:
		w.serve(clusterNodeA)
		w.serve(clusterNodeB)
	case aFailover, aFailoverCluster:
		w.serve(clusterNodeA)
		w.serve(sentinelAddr).master = clusterNodeA
	default:
		w.serve(clusterNodeA)
	}
	return w
}

const sentinelAddr = "10.0.0.9:26379"

// serve starts the scripted server of an address.
func (w *world) serve(addr string) *scripted {
	s := newScripted(w.t)
	s.note = func(format string, args ...any) { w.note("server "+addr, format, args...) }
	w.servers[addr] = s
	return s
}

// open makes the client.
func (w *world) open(n knobs) {
	if n.protocol == 0 {
		n.protocol = 3
	}
	conf := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	opts := append([]redial.Option{redial.WithGrace(2 * time.Second)}, n.opts...)
	nodeHook := func(rdb *redis.Client) *redis.Client {
		if n.nodeHook != nil {
			rdb.AddHook(n.nodeHook(w, rdb.Options().Addr))
		}
		return rdb
	}
	newClient := func(o *redis.Options) *redis.Client { return nodeHook(redis.NewClient(o)) }
	if !n.viaNew {
		newClient = nil
	}
	onNewNode := func(rdb interface{ OnNewNode(func(*redis.Client)) }) {
		if n.nodeHook != nil && !n.viaNew {
			rdb.OnNewNode(func(node *redis.Client) { nodeHook(node) })
		}
	}
	take := func(rdb redis.UniversalClient) {
		w.rdb = rdb
		if w.side == managed {
			s, err := redial.Supervise(rdb, opts...)
			require.NoError(w.t, err)
			w.supervisor = s
		}
	}
	switch w.kind {
	case aClient:
		o := &redis.Options{
			Addr: clusterNodeA, Dialer: w.dial, Protocol: n.protocol, DisableIdentity: n.quick, PoolSize: n.poolSize,
			MaxRetries: -1, ContextTimeoutEnabled: true,
		}
		if n.quick {
			o.MaintNotificationsConfig = conf
		}
		if n.tune != nil {
			n.tune(o)
		}
		if w.side == wrapped {
			c := redial.NewClient(o, opts...)
			w.rdb, w.supervisor = c, c.Supervisor
		} else {
			take(redis.NewClient(o))
		}
	case aFailover, aFailoverCluster:
		o := &redis.FailoverOptions{
			MasterName: "primary", SentinelAddrs: []string{sentinelAddr}, Dialer: w.dial, Protocol: n.protocol,
			DisableIdentity: n.quick, PoolSize: n.poolSize, MaxRetries: -1, ContextTimeoutEnabled: true,
		}
		switch {
		case w.kind == aFailover && w.side == wrapped:
			c := redial.NewFailoverClient(o, opts...)
			w.rdb, w.supervisor = c, c.Supervisor
		case w.kind == aFailover:
			take(redis.NewFailoverClient(o))
		case w.side == wrapped:
			c := redial.NewFailoverClusterClient(o, opts...)
			w.rdb, w.supervisor = c, c.Supervisor
			onNewNode(c)
		default:
			// NewFailoverClusterClient of go-redis leaves its subscription to the sentinel
			// behind when the client is closed. For the rest it is this.
			c := redis.NewClusterClient(&redis.ClusterOptions{
				ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
					return []redis.ClusterSlot{{End: 16383, Nodes: []redis.ClusterNode{{Addr: clusterNodeA}}}}, nil
				},
				Dialer: w.dial, Protocol: n.protocol, DisableIdentity: n.quick, PoolSize: n.poolSize,
				MaxRetries: -1, ContextTimeoutEnabled: true,
			})
			onNewNode(c)
			take(c)
		}
	case aCluster:
		o := &redis.ClusterOptions{
			Addrs: []string{clusterNodeA, clusterNodeB}, Dialer: w.dial, Protocol: n.protocol, DisableIdentity: n.quick,
			PoolSize: n.poolSize, MaxRetries: -1, ContextTimeoutEnabled: true, NewClient: newClient,
		}
		if n.quick {
			o.MaintNotificationsConfig = conf
		}
		if n.tuneNodes != nil {
			n.tuneNodes(o)
		}
		if w.side == wrapped {
			c := redial.NewClusterClient(o, opts...)
			w.rdb, w.supervisor = c, c.Supervisor
			onNewNode(c)
		} else {
			c := redis.NewClusterClient(o)
			onNewNode(c)
			take(c)
		}
	case aRing:
		if n.nodeHook != nil { // shards are made with the ring
			newClient = func(o *redis.Options) *redis.Client { return nodeHook(redis.NewClient(o)) }
		}
		o := &redis.RingOptions{
			Addrs: map[string]string{"a": clusterNodeA, "b": clusterNodeB}, Dialer: w.dial, Protocol: n.protocol,
			DisableIdentity: n.quick, PoolSize: n.poolSize, MaxRetries: -1, ContextTimeoutEnabled: true, NewClient: newClient,
		}
		if w.side == wrapped {
			c := redial.NewRing(o, opts...)
			w.rdb, w.supervisor = c, c.Supervisor
		} else {
			take(redis.NewRing(o))
		}
	}
}

// close ends the client, and supervision where that is separate.
func (w *world) close() {
	if w.rdb != nil {
		_ = w.rdb.Close()
	}
	if w.supervisor != nil {
		_ = w.supervisor.Close()
	}
	for _, f := range w.cleanups { // the servers among them
		f()
	}
}

// client is the *redis.Client inside.
func (w *world) client() *redis.Client {
	switch c := w.rdb.(type) {
	case *redial.Client:
		return c.Client
	case *redis.Client:
		return c
	}
	w.t.Fatalf("%T is no Client", w.rdb)
	return nil
}

// ready waits until the link is up; a bare client has none.
func (w *world) ready() {
	if w.supervisor != nil {
		require.NoError(w.t, w.supervisor.WaitReady(w.ctx))
	}
}

// runSide returns the transcript of a script on one side.
func runSide(t testing.TB, s side, k kind, n knobs, script func(w *world)) transcript {
	w := newWorld(t, s, k)
	defer w.close()
	if n.poolSize == 0 {
		n.poolSize = 4
	}
	if n.before != nil {
		n.before(w)
	}
	w.open(n)
	began := time.Now()
	script(w)
	if time.Since(began) > 1500*time.Millisecond { // far beyond what any script takes, and below the grace
		w.say("it took very long")
	}
	return w.transcript()
}

// inBubble runs f in a bubble, where it costs no time to wait.
func inBubble(t *testing.T, f func(t *testing.T)) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(5 * time.Second) }) // until go-redis has seen that what it looks for is closed
		f(t)
	})
}

// paired runs a script on both sides, and on a client put under supervision, for each of
// the kinds, and compares. What is wanted must be in the bare transcript, so that a script
// that does not do what it is meant to do is noticed.
func paired(t *testing.T, kinds []kind, n knobs, script func(w *world), want ...string) {
	for _, k := range kinds {
		t.Run(string(k), func(t *testing.T) {
			run := func(t *testing.T, s side) (seen transcript) {
				if !n.waits {
					return runSide(t, s, k, n, script)
				}
				inBubble(t, func(t *testing.T) { seen = runSide(t, s, k, n, script) })
				return seen
			}
			expected := run(t, bare)
			for _, w := range want {
				require.Contains(t, expected.String(), w, "bare go-redis itself")
			}
			for _, s := range []side{wrapped, managed} {
				if s == managed && n.hidden {
					continue
				}
				if s == wrapped && !n.hidden && platform.RaceDetector {
					continue // the other side has all of this one's goroutines
				}
				t.Run(string(s), func(t *testing.T) {
					if d := differ(expected, run(t, s)); d != "" {
						t.Error("go-redis and redial differ:" + d)
					}
				})
			}
		})
	}
}
