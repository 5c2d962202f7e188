package conform

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

var both = []kind{aClient, aFailover}

func TestConform_H1_HooksSeeNoMarks(t *testing.T)         { testActs(t, "look") }
func TestConform_H2_HooksMayServe(t *testing.T)           { testActs(t, "serve") }
func TestConform_H3_HooksMayDecideAfterNext(t *testing.T) { testActs(t, "after") }
func TestConform_H9_HooksMayRefuse(t *testing.T)          { testActs(t, "refuse") }
func TestConform_Hooks_MayReshape(t *testing.T)           { testActs(t, "reshape") }
func TestConform_Hooks_Panics(t *testing.T)               { testActs(t, "panic") }

// A circuit breaker on the nodes of a cluster: an acknowledged write has run.
func TestConform_H9_CircuitBreakerOnNodes(t *testing.T) {
	script := func(w *world) {
		for _, tx := range []bool{false, true} {
			w.batch(w.rdb, fmt.Sprint("twelve writes, transaction ", tx), tx, func(p redis.Pipeliner) {
				for i := range 12 {
					key := fmt.Sprint("key", i)
					if tx {
						key = "{a}" + key
					}
					p.Set(w.ctx, key, i, 0)
				}
			})
		}
	}
	breaker := alike("", func([]redis.Cmder, func() error) error { return errHook })
	for _, viaNew := range []bool{false, true} {
		t.Run(fmt.Sprint("by NewClient ", viaNew), func(t *testing.T) {
			paired(t, []kind{aCluster}, knobs{viaNew: viaNew, nodeHook: func(w *world, addr string) redis.Hook {
				return spy{w: w, stream: "hooks of " + addr, name: "breaker", single: breaker.single, batch: breaker.batch}
			}}, script, "twelve writes, transaction false: errHook", "key11 11] err=errHook")
		})
	}
}

// Hooks of nodes see the WATCH of a client without a connection yet once.
func TestConform_Watch_IsSeenOnce(t *testing.T) {
	paired(t, []kind{aCluster, aRing}, knobs{nodeHook: func(w *world, addr string) redis.Hook {
		return spy{w: w, stream: "hooks of " + addr, name: "looks"}
	}}, func(w *world) {
		for _, keys := range [][]string{{"{a}k", "{a}n"}, {"a", "x{a}y"}, {}} {
			w.got("watch", w.rdb.Watch(w.ctx, func(*redis.Tx) error { return nil }, keys...))
		}
	})
}

// connections notes on which connections of the only server commands arrive, numbered in
// the order in which they are first used.
func (w *world) connections(named ...string) (on func(cmd string) string) {
	var mu sync.Mutex
	seen := make(map[string][]int)
	numbers := make(map[int]int)
	w.servers[clusterNodeA].says(func(id int, args []string) redialtest.Action {
		mu.Lock()
		defer mu.Unlock()
		if numbers[id] == 0 {
			numbers[id] = len(numbers) + 1
		}
		seen[args[0]] = append(seen[args[0]], numbers[id])
		return redialtest.Handle
	})
	return func(cmd string) string {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprint(seen[cmd])
	}
}

func TestConform_H4_FullDuplex(t *testing.T) {
	fill := func(w *world) []redis.Cmder {
		return []redis.Cmder{
			redis.NewStatusCmd(w.ctx, "set", "{a}k", "v"), redis.NewStringCmd(w.ctx, "get", "{a}k"),
			redis.NewStringCmd(w.ctx, "get", "{a}missing"), redis.NewIntCmd(w.ctx, "lpush", "{a}k", 1), redis.NewIntCmd(w.ctx, "append", "{a}log", "x"),
		}
	}
	for name, a := range map[string]*act{
		"no hook": nil, "a hook that calls next": {}, "a hook with an error after next": &acts["after"][0], "a hook that refuses": &acts["refuse"][0],
	} {
		t.Run(name, func(t *testing.T) {
			paired(t, []kind{aClient, aFailover, aCluster}, knobs{}, func(w *world) {
				if a != nil {
					w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook", single: a.single, batch: a.batch, terse: true})
				}
				var on func(string) string
				if w.kind.isSingle() {
					on = w.connections()
				}
				ap, err := w.rdb.AutoPipelineWithOptions(&redis.AutoPipelineOptions{FullDuplex: true})
				require.NoError(w.t, err)
				defer ap.Close()
				w.did(ap.Set(w.ctx, "{a}s", "v", 0))
				w.did(ap.Get(w.ctx, "{a}s"))
				cmds := fill(w)
				w.got("FDPipelined", ap.FDPipelined(w.ctx, cmds), cmds...)
				w.batch(ap, "Pipelined", false, w.mixed)
				w.batch(ap, "TxPipelined", true, w.mixed)
				w.got("empty FDPipelined", ap.FDPipelined(w.ctx, nil))
				blocking := []redis.Cmder{redis.NewStringSliceCmd(w.ctx, "blpop", "{a}q", 1)}
				w.got("FDPipelined with a blocking command", ap.FDPipelined(w.ctx, blocking), blocking...)
				if on != nil {
					w.say("connections: set %s get %s lpush %s", on("set"), on("get"), on("lpush"))
				}
			})
		})
	}
}

func TestConform_H5_AutoPipelineTakesShutdownOut(t *testing.T) {
	for _, async := range []bool{false, true} {
		t.Run(fmt.Sprint("async ", async), func(t *testing.T) {
			paired(t, both, knobs{}, func(w *world) {
				w.servers[clusterNodeA].says(func(_ int, args []string) redialtest.Action {
					if args[0] == "shutdown" {
						return redialtest.CloseBeforeExecute
					}
					return redialtest.Handle
				})
				w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook", terse: true})
				open := w.rdb.AutoPipeline
				if async {
					open = w.rdb.AsyncAutoPipeline
				}
				ap, err := open()
				require.NoError(w.t, err)
				defer ap.Close()
				w.did(ap.Set(w.ctx, "{a}k", "v", 0))
				w.did(ap.ShutdownNoSave(w.ctx))
				w.did(ap.Get(w.ctx, "{a}k"))
			})
		})
	}
}

// Whether a call ever reached a connection is known, with hooks as without.
func TestConform_H7_HooksCostNoExactness(t *testing.T) {
	for _, k := range allKinds {
		for _, hooked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, hooked %v", k, hooked), func(t *testing.T) {
				w := newWorld(t, wrapped, k)
				defer w.close()
				if hooked && k.hasNodes() && k != aFailoverCluster {
					w.open(knobs{poolSize: 1, nodeHook: func(w *world, addr string) redis.Hook { return spy{w: w} }})
				} else {
					w.open(knobs{poolSize: 1})
				}
				w.ready()
				arrived := make(chan struct{}, 1)
				for _, s := range w.servers {
					s.says(func(_ int, args []string) redialtest.Action {
						if args[0] == "blpop" {
							arrived <- struct{}{}
							return redialtest.Drop
						}
						return redialtest.Handle
					})
				}
				if hooked {
					w.rdb.AddHook(spy{w: w})
				}
				ctx, cancel := context.WithCancel(w.ctx)
				var wg sync.WaitGroup
				wg.Go(func() { _ = w.rdb.BLPop(ctx, time.Minute, "{a}q").Err() })
				defer wg.Wait()
				defer cancel()
				<-arrived
				short, end := context.WithTimeout(w.ctx, 50*time.Millisecond)
				defer end()
				err := w.rdb.Incr(short, "{a}n").Err()
				assert.ErrorIs(t, err, redial.ErrUnavailable, "no connection was free")
				assert.ErrorIs(t, err, context.DeadlineExceeded)
				assert.True(t, redial.SafeToRetry(err))
			})
		}
	}
}

// embedded returns what a constructor that must return go-redis's type returns.
func (w *world) embedded() redis.UniversalClient {
	switch c := w.rdb.(type) {
	case *redial.Client:
		return c.Client
	case *redial.ClusterClient:
		return c.ClusterClient
	case *redial.Ring:
		return c.Ring
	}
	return w.rdb
}

func TestConform_H8_ClosingTheEmbeddedClientEndsAll(t *testing.T) {
	for _, k := range allKinds {
		for _, s := range []side{bare, wrapped, managed} {
			for _, first := range []string{"client", "supervisor"} {
				if s == bare && first == "supervisor" || s == managed && first == "supervisor" {
					continue // Supervise says that the client has to be closed first
				}
				t.Run(fmt.Sprintf("%s/%s/%s first", k, s, first), func(t *testing.T) {
					w := newWorld(t, s, k)
					defer w.close()
					w.open(knobs{})
					w.ready()
					require.NoError(t, w.rdb.Set(w.ctx, "{a}k", "v", 0).Err())
					if first == "supervisor" {
						assert.NoError(t, w.supervisor.Close())
					} else {
						assert.NoError(t, w.embedded().Close())
					}
					assert.Eventually(t, func() bool {
						open := 0
						for _, server := range w.servers {
							open += server.Conns()
						}
						return open == 0 && (w.supervisor == nil || w.supervisor.State() == redial.StateClosed)
					}, 500*time.Millisecond, time.Millisecond, "everything is closed")
					assert.ErrorIs(t, w.rdb.Get(w.ctx, "{a}k").Err(), redis.ErrClosed)
					if w.supervisor != nil {
						assert.NoError(t, w.supervisor.Close(), "in either order")
					}
					assert.NotPanics(t, func() { _ = w.embedded().Close() })
				})
			}
		}
	}
}

// outcome returns what making and using a client leads to.
func outcome(t *testing.T, use func(ctx context.Context) error) (says string) {
	defer func() {
		if recover() != nil {
			says = "panics" // in words of its own
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	began := time.Now()
	err := use(ctx)
	if time.Since(began) > 1500*time.Millisecond {
		return describe(err) + " after a long time"
	}
	return describe(err)
}

// dialed is a Dialer that reaches nothing and tells where it was to go.
type dialed struct{ addrs chan string }

func (d dialed) dial(_ context.Context, network, addr string) (net.Conn, error) {
	select {
	case d.addrs <- network + " " + addr:
	default:
	}
	return nil, errOther
}

func TestConform_O1_EmptyOptions(t *testing.T) {
	t.Parallel()
	get := func(ctx context.Context, rdb redis.UniversalClient) error {
		defer rdb.Close()
		return rdb.Get(ctx, "k").Err()
	}
	to := func(ctx context.Context, open func(dial func(context.Context, string, string) (net.Conn, error)) redis.UniversalClient) error {
		d := dialed{make(chan string, 1)}
		rdb := open(d.dial)
		defer rdb.Close()
		_ = rdb.Get(redial.FailFast(ctx), "k").Err()
		select {
		case addr := <-d.addrs:
			return errors.New("dials " + addr)
		case <-ctx.Done():
			return errors.New("does not dial")
		}
	}
	type dialer = func(context.Context, string, string) (net.Conn, error)
	for _, tc := range []struct {
		name      string
		bare, our func(ctx context.Context) error
	}{
		{
			"Client, nil",
			func(ctx context.Context) error { return get(ctx, redis.NewClient(nil)) },
			func(ctx context.Context) error { return get(ctx, redial.NewClient(nil)) },
		},
		{
			"Client, nothing",
			func(context.Context) error {
				c := redis.NewClient(&redis.Options{})
				defer c.Close()
				return errors.New(c.Options().Network + c.Options().Addr)
			},
			func(context.Context) error {
				c := redial.NewClient(&redis.Options{})
				defer c.Close()
				return errors.New(c.Options().Network + c.Options().Addr)
			},
		},
		{
			"Client, a user name",
			func(context.Context) error {
				c := redis.NewClient(&redis.Options{Username: "u"})
				defer c.Close()
				return errors.New(c.Options().Network + c.Options().Addr)
			},
			func(context.Context) error {
				c := redial.NewClient(&redis.Options{Username: "u"})
				defer c.Close()
				return errors.New(c.Options().Network + c.Options().Addr)
			},
		},
		{
			"Client, only a Dialer",
			func(ctx context.Context) error {
				return to(ctx, func(d dialer) redis.UniversalClient { return redis.NewClient(&redis.Options{Dialer: d}) })
			},
			func(ctx context.Context) error {
				return to(ctx, func(d dialer) redis.UniversalClient { return redial.NewClient(&redis.Options{Dialer: d}) })
			},
		},
		{
			"Client, a path",
			func(ctx context.Context) error {
				return to(ctx, func(d dialer) redis.UniversalClient {
					return redis.NewClient(&redis.Options{Addr: "/tmp/redis.sock", Dialer: d})
				})
			},
			func(ctx context.Context) error {
				return to(ctx, func(d dialer) redis.UniversalClient {
					return redial.NewClient(&redis.Options{Addr: "/tmp/redis.sock", Dialer: d})
				})
			},
		},
		{
			"UniversalClient, nothing",
			func(ctx context.Context) error {
				return to(ctx, func(d dialer) redis.UniversalClient {
					return redis.NewUniversalClient(&redis.UniversalOptions{Dialer: d})
				})
			},
			func(ctx context.Context) error {
				return to(ctx, func(d dialer) redis.UniversalClient {
					return redial.NewUniversalClient(&redis.UniversalOptions{Dialer: d})
				})
			},
		},
		{
			"ClusterClient, nil",
			func(ctx context.Context) error { return get(ctx, redis.NewClusterClient(nil)) },
			func(ctx context.Context) error { return get(ctx, redial.NewClusterClient(nil)) },
		},
		{
			"ClusterClient, nothing",
			func(ctx context.Context) error { return get(ctx, redis.NewClusterClient(&redis.ClusterOptions{})) },
			func(ctx context.Context) error { return get(ctx, redial.NewClusterClient(&redis.ClusterOptions{})) },
		},
		{
			"ClusterClient, an empty address",
			func(ctx context.Context) error {
				return to(ctx, func(d dialer) redis.UniversalClient {
					return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{""}, Dialer: d})
				})
			},
			func(ctx context.Context) error {
				return to(ctx, func(d dialer) redis.UniversalClient {
					return redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{""}, Dialer: d})
				})
			},
		},
		{
			"ClusterClient, no slots",
			func(ctx context.Context) error {
				return get(ctx, redis.NewClusterClient(&redis.ClusterOptions{ClusterSlots: noSlots}))
			},
			func(ctx context.Context) error {
				return get(ctx, redial.NewClusterClient(&redis.ClusterOptions{ClusterSlots: noSlots}))
			},
		},
		{
			"Ring, nil",
			func(ctx context.Context) error { return get(ctx, redis.NewRing(nil)) },
			func(ctx context.Context) error { return get(ctx, redial.NewRing(nil)) },
		},
		{
			"Ring, an empty address",
			func(ctx context.Context) error {
				return to(ctx, func(d dialer) redis.UniversalClient {
					return redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": ""}, Dialer: d})
				})
			},
			func(ctx context.Context) error {
				return to(ctx, func(d dialer) redis.UniversalClient {
					return redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": ""}, Dialer: d})
				})
			},
		},
		{
			"FailoverClient, nil",
			func(ctx context.Context) error { return get(ctx, redis.NewFailoverClient(nil)) },
			func(ctx context.Context) error { return get(ctx, redial.NewFailoverClient(nil)) },
		},
	} {
		t.Run(tc.name, func(t *testing.T) { assert.Equal(t, outcome(t, tc.bare), outcome(t, tc.our)) })
	}
}

func noSlots(context.Context) ([]redis.ClusterSlot, error) { return nil, nil }

// Without sentinels go-redis says so in the error of the first command; the text of the
// dial's error comes from go-redis's retries of it.
func TestConform_O1_NoSentinels(t *testing.T) {
	t.Parallel()
	for name, opt := range map[string]redis.FailoverOptions{"nothing": {}, "a name": {MasterName: "m"}} {
		t.Run(name, func(t *testing.T) {
			get := func(rdb func() redis.UniversalClient) string {
				return outcome(t, func(ctx context.Context) error {
					c := rdb()
					defer c.Close()
					err := c.Get(ctx, "k").Err()
					require.Error(t, err)
					assert.ErrorContains(t, err, "redis: no sentinels configured")
					return nil
				})
			}
			opt := opt
			assert.Equal(t, "nil", get(func() redis.UniversalClient { return redis.NewFailoverClient(&opt) }))
			assert.Equal(t, "nil", get(func() redis.UniversalClient { return redial.NewFailoverClient(&opt) }))
			assert.Equal(t, "nil", get(func() redis.UniversalClient { return redis.NewFailoverClusterClient(&opt) }))
			assert.Equal(t, "nil", get(func() redis.UniversalClient { return redial.NewFailoverClusterClient(&opt) }))
		})
	}
}

// What waiting cannot mend is said at once, in go-redis's words.
func TestConform_O2_NoClusterSupport(t *testing.T) {
	paired(t, []kind{aCluster}, knobs{before: func(w *world) {
		for _, s := range w.servers {
			s.slots = ""
		}
	}}, func(w *world) {
		w.did(w.rdb.Get(w.ctx, "{a}k"))
		w.batch(w.rdb, "pipeline", false, w.clean)
		w.batch(w.rdb, "transaction", true, w.clean)
		w.got("watch", w.rdb.Watch(w.ctx, func(*redis.Tx) error { return nil }, "{a}k"))
	}, "ERR This instance has cluster support disabled")
}

func TestConform_O2_RingWithoutShards(t *testing.T) {
	use := func(rdb redis.UniversalClient) transcript {
		w := &world{t: t, kind: aRing, rdb: rdb, ctx: t.Context(), streams: make(transcript)}
		defer rdb.Close()
		began := time.Now()
		w.did(rdb.Get(w.ctx, "{a}k"))
		w.batch(rdb, "pipeline", false, w.clean)
		w.batch(rdb, "transaction", true, w.clean)
		w.got("watch", rdb.Watch(w.ctx, func(*redis.Tx) error { return nil }, "{a}k"))
		if time.Since(began) > time.Second {
			w.say("it took very long")
		}
		return w.transcript()
	}
	want := use(redis.NewRing(&redis.RingOptions{}))
	require.Contains(t, want.String(), "redis: all ring shards are down")
	assert.Empty(t, differ(want, use(redial.NewRing(&redis.RingOptions{}, redial.WithGrace(time.Second)))))
}

// An error of a connection is a net.Error as go-redis's are.
func TestConform_E1_ErrorsAreNetErrors(t *testing.T) {
	t.Parallel()
	paired(t, allKinds, knobs{}, func(w *world) {
		for _, s := range w.servers {
			s.says(func(_ int, args []string) redialtest.Action {
				if args[0] == "incr" {
					return redialtest.Drop
				}
				return redialtest.Handle
			})
		}
		w.ready()
		w.did(w.rdb.Set(w.ctx, "{a}k", "v", 0)) // there is a connection, so what follows is sent in time
		ctx, cancel := context.WithTimeout(w.ctx, 100*time.Millisecond)
		defer cancel()
		err := w.rdb.Incr(ctx, "{a}n").Err()
		w.try("the error", func() {
			e, ok := err.(net.Error)
			w.say("net.Error: %v", ok)
			if ok {
				w.say("timeout: %v", e.Timeout())
				//lint:ignore SA1019 a caller may still use it
				w.say("temporary: %v", e.Temporary()) // go-redis and its users ask
			}
		})
	}, "timeout: true")
}

// The end of a context before the call is the context's own error, and nothing is sent.
func TestConform_E2_ContextHasEnded(t *testing.T) {
	for name, end := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"canceled": func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx, cancel
		},
		"canceled with a cause": func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(ctx)
			cancel(errOther)
			return ctx, func() {}
		},
		"past the deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithDeadline(ctx, time.Now().Add(-time.Second))
		},
	} {
		for _, warm := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, warm %v", name, warm), func(t *testing.T) {
				kinds := allKinds
				if !warm { // of sentinels that were not asked go-redis says that they cannot be reached
					kinds = slices.DeleteFunc(slices.Clone(kinds), func(k kind) bool { return k == aFailoverCluster })
				}
				paired(t, kinds, knobs{}, func(w *world) {
					if warm {
						w.ready()
						w.did(w.rdb.Set(w.ctx, "{a}k", "v", 0))
						w.batch(w.rdb, "pipeline", false, w.clean)
					}
					ctx, cancel := end(w.ctx)
					defer cancel()
					w.did(w.rdb.Get(ctx, "{a}k"))
					w.did(w.rdb.Incr(ctx, "{a}n"))
					w.did(w.rdb.BLPop(ctx, time.Second, "{a}q"))
					for _, run := range []func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){w.rdb.Pipelined, w.rdb.TxPipelined} {
						cmds, err := run(ctx, func(p redis.Pipeliner) error {
							p.Incr(ctx, "{a}n")
							p.Get(ctx, "{a}n")
							return nil
						})
						w.got("batch", err, cmds...)
					}
					w.got("watch", w.rdb.Watch(ctx, func(*redis.Tx) error { return nil }, "{a}k"))
					if warm {
						w.eachNode(ctx)
					}
				})
			})
		}
	}
}

// eachNode has a function called for all nodes.
func (w *world) eachNode(ctx context.Context) {
	var calls atomic.Int32
	count := func(context.Context, *redis.Client) error { calls.Add(1); return nil }
	if c, ok := w.rdb.(interface {
		ForEachMaster(context.Context, func(context.Context, *redis.Client) error) error
		MasterForKey(context.Context, string) (*redis.Client, error)
	}); ok {
		w.got("each master", c.ForEachMaster(ctx, count))
		_, err := c.MasterForKey(ctx, "{a}k")
		w.got("master", err)
	}
	if c, ok := w.rdb.(interface {
		ForEachShard(context.Context, func(context.Context, *redis.Client) error) error
	}); ok {
		w.got("each shard", c.ForEachShard(ctx, count))
	}
	w.say("%d calls", calls.Load())
}

// Whichever command of a batch fails, and however, all get what go-redis gives them. Of
// a transaction that was aborted it is the reply that explains it.
func TestConform_E3_AFailingCommandInEachPlace(t *testing.T) {
	explained := "wrong arity in place 1, transaction true: proto.RedisError(ERR wrong number"
	t.Run("cluster", func(t *testing.T) { paired(t, []kind{aCluster, aFailoverCluster}, knobs{}, failInEachPlace, explained) })
	aborted := "wrong arity in place 1, transaction true: *proto.ExecAbortError(EXECABORT"
	t.Run("others", func(t *testing.T) { paired(t, []kind{aClient, aFailover, aRing}, knobs{}, failInEachPlace, aborted) })
}

func failInEachPlace(w *world) {
	failures := map[string]func(p redis.Pipeliner){
		"nil":         func(p redis.Pipeliner) { p.Get(w.ctx, "{a}missing") },
		"wrong type":  func(p redis.Pipeliner) { p.LPush(w.ctx, "{a}k", 1) },
		"wrong arity": func(p redis.Pipeliner) { p.Do(w.ctx, "get", "{a}k", "more") },
		"unknown":     func(p redis.Pipeliner) { p.Do(w.ctx, "nonsense", "{a}k") },
		"own error":   func(p redis.Pipeliner) { p.Set(w.ctx, "{a}custom", 1, 0) },
		"own code":    func(p redis.Pipeliner) { p.Set(w.ctx, "{a}own", 1, 0) },
		"misconf":     func(p redis.Pipeliner) { p.Set(w.ctx, "{a}misconf", 1, 0) },
		"no right":    func(p redis.Pipeliner) { p.Set(w.ctx, "{a}noperm", 1, 0) },
		"no memory":   func(p redis.Pipeliner) { p.Set(w.ctx, "{a}oom", 1, 0) },
	}
	w.did(w.rdb.Set(w.ctx, "{a}k", "v", 0))
	for _, name := range []string{"nil", "wrong type", "wrong arity", "unknown", "own error", "own code", "misconf", "no right", "no memory"} {
		for place := range 3 {
			for _, tx := range []bool{false, true} {
				w.batch(w.rdb, fmt.Sprintf("%s in place %d, transaction %v", name, place, tx), tx, func(p redis.Pipeliner) {
					for i := range 3 {
						if i == place {
							failures[name](p)
						} else {
							p.Append(w.ctx, "{a}log", "x")
						}
					}
				})
			}
		}
	}
}

// What go-redis rejects before it does any I/O it rejects without a server, too.
func TestConform_E5_RejectedBeforeAnyIO(t *testing.T) {
	paired(t, []kind{aClient}, knobs{
		tune:   func(o *redis.Options) { o.ClientSideCacheConfig = &redis.ClientSideCacheConfig{} },
		before: func(w *world) { w.servers[clusterNodeA].Kill() },
	}, func(w *world) {
		cmds, err := w.rdb.TxPipelined(w.ctx, func(p redis.Pipeliner) error {
			p.ClientTrackingOn(w.ctx, nil)
			return nil
		})
		w.got("tracking in a transaction", err, cmds...)
		cmds, err = w.rdb.Pipelined(w.ctx, func(p redis.Pipeliner) error {
			p.Get(w.ctx, "k")
			p.Do(w.ctx, "reset")
			return nil
		})
		w.got("reset in a pipeline", err, cmds...)
		w.did(w.rdb.Do(w.ctx, "reset"))
		w.did(w.rdb.Do(w.ctx, "select", 1))
		w.did(w.rdb.Do(w.ctx, "hello", 2))
	}, "client-side caching")
}

func TestConform_E7_QueueFull(t *testing.T) {
	assert.True(t, redial.SafeToRetry(redis.ErrAutoPipelineQueueFull), "nothing ran")
	paired(t, both, knobs{}, func(w *world) {
		release, arrived := make(chan struct{}), make(chan struct{}, 1)
		w.servers[clusterNodeA].says(func(_ int, args []string) redialtest.Action {
			if args[0] == "append" {
				arrived <- struct{}{}
				<-release
			}
			return redialtest.Handle
		})
		ap, err := w.rdb.AsyncAutoPipelineWithOptions(&redis.AutoPipelineOptions{MaxQueuedCommands: 1})
		require.NoError(w.t, err)
		defer ap.Close()
		held := ap.Append(w.ctx, "{a}log", "x")
		<-arrived
		w.did(ap.Get(w.ctx, "{a}k"))
		close(release)
		w.did(held)
	}, "err=redis.ErrAutoPipelineQueueFull")
}

// What is refused on a connection that the caller holds is told in the server's words, also
// where redial gives up the connection for it.
func TestConform_R1_RefusedOnAHeldConnection(t *testing.T) {
	for _, reply := range []string{"READONLY You can't write against a read only replica.", "REDIRECT 10.0.0.1:7001"} {
		for _, k := range allKinds {
			for _, s := range []side{bare, wrapped, managed} {
				t.Run(fmt.Sprintf("%.8s/%s/%s", reply, k, s), func(t *testing.T) {
					inBubble(t, func(t *testing.T) { refusedOnHeld(t, s, k, reply) })
				})
			}
		}
	}
}

func refusedOnHeld(t *testing.T, s side, k kind, reply string) {
	w := newWorld(t, s, k)
	defer w.close()
	w.open(knobs{})
	w.ready()
	w.refuse(reply)
	for what, use := range map[string]func(c redis.Cmdable) ([]redis.Cmder, error){
		"command": func(c redis.Cmdable) ([]redis.Cmder, error) { return nil, c.Append(w.ctx, "{a}log", "x").Err() },
		"pipeline": func(c redis.Cmdable) ([]redis.Cmder, error) {
			return c.Pipelined(w.ctx, func(p redis.Pipeliner) error { return p.Append(w.ctx, "{a}log", "x").Err() })
		},
		"transaction": func(c redis.Cmdable) ([]redis.Cmder, error) {
			return c.TxPipelined(w.ctx, func(p redis.Pipeliner) error { return p.Append(w.ctx, "{a}log", "x").Err() })
		},
	} {
		told := func(c redis.Cmdable) {
			cmds, err := use(c)
			for _, err := range append([]error{err}, errorsOf(cmds)...) {
				_, isReply := err.(redis.Error)
				assert.True(t, isReply, "%s: %v", what, err)
			}
		}
		w.held(told)
	}
}

// There is no attempt for which there is no time: what it fails of would be told in place of that.
func TestConform_R1_RefusedUntilItsDeadline(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t, wrapped, aClient)
		defer w.close()
		w.open(knobs{})
		w.ready()
		w.refuse("READONLY You can't write against a read only replica.")
		for range 2000 {
			ctx, cancel := context.WithTimeout(context.Background(), 7500*time.Microsecond) // amid a pause that is no sooner over than after 5 ms
			err := w.rdb.Append(ctx, "{a}log", "x").Err()
			cancel()
			_, isReply := err.(redis.Error)
			require.True(t, isReply, "%v", err)
		}
	})
}

// held has fn use a connection of each kind that the caller holds.
func (w *world) held(fn func(c redis.Cmdable)) {
	assert.NoError(w.t, w.rdb.Watch(w.ctx, func(tx *redis.Tx) error { fn(tx); return nil }, "{a}k"))
	if w.kind.isSingle() {
		conn := w.client().Conn()
		fn(conn)
		assert.NoError(w.t, conn.Close())
	}
}

// What was answered beside it keeps its answer.
func TestConform_R1_RefusedOnAHeldConnection_AmongOthers(t *testing.T) {
	for _, reply := range []string{"READONLY You can't write against a read only replica.", "REDIRECT 10.0.0.1:7001"} {
		for _, block := range []bool{false, true} {
			paired(t, allKinds, knobs{waits: true, opts: []redial.Option{redial.WithGrace(time.Second)}}, func(w *world) {
				w.ready()
				for _, s := range w.servers {
					s.note = func(string, ...any) {} // how often it is sent is another question
				}
				w.did(w.rdb.Set(w.ctx, "{a}k", "v", 0))
				w.refuse(reply)
				w.held(func(c redis.Cmdable) {
					w.batch(c, "among others", block, func(p redis.Pipeliner) {
						p.Get(w.ctx, "{a}k")
						p.Append(w.ctx, "{a}log", "x")
						p.Get(w.ctx, "{a}k")
						p.Get(w.ctx, "{a}none")
					})
				})
			}, reply)
		}
	}
}

// A WATCH that is refused for longer than the grace ends as in go-redis, in the words of the server.
func TestConform_R1_WatchRefusedForLong(t *testing.T) {
	for _, reply := range []string{"READONLY You can't write against a read only replica.", "REDIRECT 10.0.0.1:7001"} {
		paired(t, []kind{aClient, aFailover}, knobs{waits: true, opts: []redial.Option{redial.WithGrace(time.Second)}}, func(w *world) {
			w.ready()
			for _, s := range w.servers {
				s.note = func(string, ...any) {} // how often it is sent is another question
				s.says(func(_ int, args []string) redialtest.Action {
					if args[0] != "watch" {
						return redialtest.Handle
					}
					return redialtest.Reply("-" + reply + "\r\n")
				})
			}
			w.got("watch", w.rdb.Watch(w.ctx, func(*redis.Tx) error { return nil }, "{a}k"))
		}, reply)
	}
}

func errorsOf(cmds []redis.Cmder) (errs []error) {
	for _, cmd := range cmds {
		errs = append(errs, cmd.Err())
	}
	return errs
}

// A transaction that is refused for longer than the grace ends as in go-redis, command by command.
func TestConform_E3_RefusedForLong(t *testing.T) {
	paired(t, allKinds, knobs{waits: true, opts: []redial.Option{redial.WithGrace(time.Second)}}, func(w *world) {
		w.ready()
		for _, s := range w.servers {
			s.note = func(string, ...any) {} // how often it is sent is another question
		}
		w.refuse("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.")
		w.batch(w.rdb, "transaction", true, w.clean)
	}, "EXECABORT", "BUSY Redis")
}

// refuse has all servers refuse APPEND.
func (w *world) refuse(reply string) {
	for _, s := range w.servers {
		s.says(func(id int, args []string) redialtest.Action {
			if args[0] != "append" {
				return redialtest.Handle
			}
			s.sessions[id].dirty = s.sessions[id].multi
			return redialtest.Reply("-" + reply + "\r\n")
		})
	}
}
