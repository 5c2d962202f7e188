package conform

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// What hooks of callers may do that is rare, and must cost no exactness all the same.

// probe makes a redial client of a kind; on counts the runs of a command on all servers,
// and act says what a server does with its nth.
func probe(t *testing.T, k kind, n knobs, name string, act func(nth int) redialtest.Action) (*world, *atomic.Int64) {
	w := newWorld(t, wrapped, k)
	t.Cleanup(w.close)
	if n.poolSize == 0 {
		n.poolSize = 4
	}
	w.open(n)
	w.ready()
	var ran atomic.Int64
	for _, s := range w.servers {
		s.says(func(_ int, args []string) redialtest.Action {
			if args[0] == name {
				return act(int(ran.Add(1)))
			}
			return redialtest.Handle
		})
	}
	return w, &ran
}

// detach is a hook that goes on with a context of its own, as timeouts do.
var detach = act{
	single: func(_ context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return next(ctx, cmd)
	},
	batch: func(_ context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return next(ctx, cmds)
	},
}

func hookOf(w *world, a act) redis.Hook {
	return spy{w: w, stream: "hooks", name: "probe", terse: true, single: a.single, batch: a.batch}
}

// A hook on a cluster's node goes on with a context of its own: an INCR whose reply is lost
// runs once, and is ErrOutcomeUnknown.
func TestConform_Exact_NodeHookDetachesContext_RunsOnce(t *testing.T) {
	for _, k := range []kind{aCluster, aRing, aFailoverCluster} {
		for _, batch := range []bool{false, true} {
			t.Run(fmt.Sprint(k, " batch ", batch), func(t *testing.T) {
				w, ran := probe(t, k, knobs{nodeHook: func(w *world, _ string) redis.Hook { return hookOf(w, detach) }}, "incr",
					func(int) redialtest.Action { return redialtest.ExecuteThenClose })
				err := incr(w, batch)
				assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
				assert.EqualValues(t, 1, ran.Load(), "runs")
			})
		}
	}
}

func incr(w *world, batch bool) error {
	return w.process(batch, redis.NewIntCmd(w.ctx, "incr", "{a}n"))
}

func (w *world) process(batch bool, cmd redis.Cmder) error {
	if !batch {
		return w.rdb.Process(w.ctx, cmd)
	}
	_, err := w.rdb.Pipelined(w.ctx, func(p redis.Pipeliner) error {
		return p.Process(w.ctx, cmd)
	})
	return err
}

// The same on the client itself: the outcome is exact, and what did not run is sent again.
func TestConform_Exact_ClientHookDetachesContext_IsAsExact(t *testing.T) {
	for _, k := range allKinds {
		for _, batch := range []bool{false, true} {
			t.Run(fmt.Sprint(k, " batch ", batch), func(t *testing.T) {
				w, ran := probe(t, k, knobs{}, "incr", func(int) redialtest.Action { return redialtest.ExecuteThenClose })
				w.rdb.AddHook(hookOf(w, detach))
				err := incr(w, batch)
				assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%T", err)
				assert.EqualValues(t, 1, ran.Load(), "runs")
			})
		}
	}
}

// That there was nothing to read is no error to many callers, so it does not stand for a
// batch in which the outcome of another command is unknown.
func TestConform_Exact_UnknownBehindNil(t *testing.T) {
	for _, k := range allKinds {
		t.Run(string(k), func(t *testing.T) {
			w, ran := probe(t, k, knobs{}, "incr", func(int) redialtest.Action { return redialtest.ExecuteThenClose })
			cmds, err := w.rdb.Pipelined(w.ctx, func(p redis.Pipeliner) error {
				p.Get(w.ctx, "{a}missing")
				p.Incr(w.ctx, "{a}n")
				return nil
			})
			assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
			assert.Equal(t, redis.Nil, cmds[0].Err())
			assert.Equal(t, err, cmds[1].Err())
			assert.EqualValues(t, 1, ran.Load())
		})
	}
}

// A read whose reply could not be read, and whose other try meets an outage, its context's
// end or the end of the client, ends as any read that meets these.
func TestConform_Exact_UnreadableThenUnavailable(t *testing.T) {
	t.Parallel()
	for _, k := range []kind{aClient, aCluster, aRing} {
		for _, end := range []string{"deadline", "close", "fail fast"} {
			for _, batch := range []bool{false, true} {
				t.Run(fmt.Sprint(k, " ", end, " batch ", batch), func(t *testing.T) {
					t.Parallel()
					var failed atomic.Int64
					w, _ := probe(t, k, knobs{opts: []redial.Option{redial.WithObserver(countFailures{&failed})}}, "get",
						func(int) redialtest.Action { return redialtest.Reply("?what\r\n") })
					ctx, cancel := context.WithCancel(w.ctx)
					defer cancel()
					switch end {
					case "deadline":
						ctx, cancel = context.WithTimeout(ctx, 200*time.Millisecond)
						defer cancel()
					case "fail fast":
						ctx = redial.FailFast(ctx)
					}
					w.rdb.AddHook(hookOf(w, alike("", func(_ []redis.Cmder, next func() error) error {
						err := next()
						for _, s := range w.servers {
							s.Kill()
						}
						if end == "close" {
							go func() { _ = w.rdb.Close() }()
							assert.NoError(t, w.supervisor.WaitForState(w.ctx, redial.StateClosed))
						} else {
							assert.NoError(t, w.supervisor.WaitForState(w.ctx, redial.StateReconnecting))
						}
						return err
					})))
					cmd := redis.NewStringCmd(ctx, "get", "{a}k")
					var err error
					if batch {
						_, err = w.rdb.Pipelined(ctx, func(p redis.Pipeliner) error { return p.Process(ctx, cmd) })
					} else {
						err = w.rdb.Process(ctx, cmd)
					}
					assert.ErrorAs(t, err, new(*redial.Error))
					assert.Equal(t, err, cmd.Err())
					assert.True(t, redial.SafeToRetry(err), "it reads")
					assert.EqualValues(t, 1, failed.Load(), "observers were told")
					switch end {
					case "deadline":
						assert.ErrorIs(t, err, context.DeadlineExceeded)
					case "close":
						assert.ErrorIs(t, err, redis.ErrClosed)
					}
				})
			}
		}
	}
}

type countFailures struct{ n *atomic.Int64 }

func (c countFailures) ObserveFailure(context.Context, *redial.Error) { c.n.Add(1) }

// A read of OnConnect whose reply could not be read is no reply to the command that the
// connection is for, which was not sent.
func TestConform_Exact_UnreadableInSetUp(t *testing.T) {
	for _, k := range []kind{aClient, aCluster} {
		t.Run(string(k), func(t *testing.T) {
			var bad atomic.Bool
			onConnect := func(ctx context.Context, cn *redis.Conn) error {
				if !bad.Load() {
					return nil
				}
				return cn.Process(ctx, redis.NewSliceCmd(ctx, "echo", "what"))
			}
			w, ran := probe(t, k, knobs{
				tune: func(o *redis.Options) { o.OnConnect = onConnect }, tuneNodes: func(o *redis.ClusterOptions) { o.OnConnect = onConnect },
				opts: []redial.Option{redial.WithGrace(100 * time.Millisecond)},
			}, "incr", func(int) redialtest.Action { return redialtest.Handle })
			bad.Store(true)
			for _, s := range w.servers {
				s.CloseConns()
			}
			err := incr(w, false)
			assert.ErrorIs(t, err, redial.ErrUnavailable, "%T", err)
			assert.Zero(t, ran.Load())
		})
	}
}

// Of two nodes one is down, and the reply of the other is lost: the batch may have run
// something, whichever command comes first.
func TestConform_Exact_UnknownBehindUnavailable(t *testing.T) {
	for _, k := range []kind{aCluster, aRing} {
		t.Run(string(k), func(t *testing.T) {
			w, ran := probe(t, k, knobs{}, "incr", func(int) redialtest.Action { return redialtest.ExecuteThenClose })
			at := make(map[string]string) // the key that a server has
			for i := 0; len(at) < 2; i++ {
				require.Less(t, i, 100)
				key := fmt.Sprint("{", i, "}")
				require.NoError(t, w.rdb.Set(w.ctx, key, 1, 0).Err())
				for addr := range w.servers {
					if slices.ContainsFunc(w.transcript()["server "+addr], func(line string) bool { return strings.HasPrefix(line, "set "+key+" ") }) {
						at[addr] = key
					}
				}
			}
			w.servers[clusterNodeA].Kill()
			ctx := redial.FailFast(w.ctx)
			cmds, err := w.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
				p.Incr(ctx, at[clusterNodeA])
				p.Incr(ctx, at[clusterNodeB])
				return nil
			})
			assert.ErrorIs(t, cmds[0].Err(), redial.ErrUnavailable)
			assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
			assert.Equal(t, err, cmds[1].Err())
			assert.EqualValues(t, 1, ran.Load())
		})
	}
}

// What may have run before it was refused is unknown, and not "not executed": whether the
// refusal is one to wait for or not, alone, among others that are answered, and as part of a
// transaction.
func TestConform_Exact_UnknownBehindRefusal(t *testing.T) {
	t.Parallel()
	for _, reply := range []string{
		"BUSY Redis is busy running a script.", "LOADING x", "READONLY x", "CLUSTERDOWN x", "TRYAGAIN x", "NOREPLICAS x",
		"MISCONF x", "OOM x", "NOPERM x", "NOAUTH x", "ERR no upstream host", // which WithRefusals knows
	} {
		for _, k := range allKinds {
			for _, how := range []string{"alone", "pipeline", "transaction", "auto", "asynchronous"} {
				if k == aRing && how[0] == 'a' && how != "alone" {
					continue // it has no auto-pipeline
				}
				t.Run(fmt.Sprint(reply, "/", k, "/", how), func(t *testing.T) {
					t.Parallel()
					unknownBehindRefusal(t, reply, k, how)
				})
			}
		}
	}
}

func unknownBehindRefusal(t *testing.T, reply string, k kind, how string) {
	var lost atomic.Bool
	w, _ := probe(t, k, knobs{opts: []redial.Option{
		redial.WithGrace(100 * time.Millisecond), redial.WithRetry(redial.RetryIdempotent),
		redial.WithRefusals(func(err error) bool { return err.Error() == "ERR no upstream host" }),
	}}, "", nil)
	for _, s := range w.servers {
		s.says(func(_ int, args []string) redialtest.Action {
			tx, bad := how == "transaction", len(args) > 1 && args[1] == "{a}bad"
			switch {
			case (tx && args[0] == "exec" || !tx && bad) && !lost.Swap(true):
				return redialtest.ExecuteThenClose
			case !lost.Load():
			case bad:
				return redialtest.Reply("-" + reply + "\r\n")
			case tx && args[0] == "exec":
				return redialtest.Reply("-EXECABORT Transaction discarded because of previous errors.\r\n")
			case tx && args[0] == "multi":
				return redialtest.Reply("+OK\r\n")
			case tx:
				return redialtest.Reply("+QUEUED\r\n")
			}
			return redialtest.Handle
		})
	}
	bad := redis.NewStatusCmd(w.ctx, "set", "{a}bad", "v")
	cmds := []redis.Cmder{redis.NewStatusCmd(w.ctx, "set", "{a}k", "v"), redis.NewStatusCmd(w.ctx, "set", "{a}n", "v"), bad}
	err := processAs(t, w, how, cmds...)
	assert.ErrorContains(t, bad.Err(), reply)
	for _, err := range []error{err, bad.Err()} {
		assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
		assert.False(t, redial.SafeToRetry(err))
	}
}

// A write that was answered behind one that was refused is not sent again, even where it may
// run twice: what came of another time would be all that is known of it.
func TestConform_Exact_AnsweredBehindRefusal_RunsOnce(t *testing.T) {
	for _, k := range allKinds {
		t.Run(string(k), func(t *testing.T) {
			w, ran := probe(t, k, knobs{opts: []redial.Option{redial.WithRetry(redial.RetryIdempotent)}}, "set", func(nth int) redialtest.Action {
				if nth == 2 {
					return redialtest.Handle
				}
				return redialtest.Reply("-BUSY Redis is busy running a script.\r\n")
			})
			ctx := redial.WaitFor(w.ctx, 100*time.Millisecond)
			cmds, err := w.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
				p.Set(ctx, "{a}k", "v", 0)
				p.Set(ctx, "{a}n", "v", 0)
				return nil
			})
			assert.EqualValues(t, 2, ran.Load())
			assert.True(t, redial.SafeToRetry(err), "%T: %v", err, err)
			assert.True(t, redial.SafeToRetry(cmds[0].Err()), "%v", cmds[0].Err())
			assert.NoError(t, cmds[1].Err())
		})
	}
}

// The client is closed while a write, whose reply was lost, is about to be sent again: it may
// have run, whoever says that it is closed.
func TestConform_Exact_UnknownBehindClose(t *testing.T) {
	for _, k := range allKinds {
		for _, at := range []string{"gate", "pool"} {
			for _, how := range []string{"alone", "pipeline", "transaction"} {
				t.Run(fmt.Sprint(k, "/", at, "/", how), func(t *testing.T) {
					t.Parallel()
					w, ran := probe(t, k, knobs{opts: []redial.Option{redial.WithRetry(redial.RetryIdempotent)}}, "set",
						func(int) redialtest.Action { return redialtest.ExecuteThenClose })
					var times atomic.Int64
					w.rdb.AddHook(hookOf(w, alike("", func(_ []redis.Cmder, next func() error) error {
						nth := times.Add(1)
						if at == "pool" && nth == 2 {
							assert.NoError(t, w.rdb.Close())
						}
						err := next()
						if at == "gate" && nth == 1 {
							assert.NoError(t, w.rdb.Close())
						}
						return err
					})))
					cmd := redis.NewStatusCmd(w.ctx, "set", "{a}k", "v")
					err := processAs(t, w, how, cmd)
					assert.EqualValues(t, 1, ran.Load())
					for _, err := range []error{err, cmd.Err()} {
						assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%T: %v", err, err)
						assert.ErrorIs(t, err, redis.ErrClosed)
						assert.False(t, redial.SafeToRetry(err))
					}
				})
			}
		}
	}
}

// What may have run before a context of a hook's own ends is unknown, and not that of the
// context: nothing was sent only in the last attempt.
func TestConform_Exact_UnknownBehindHooksContext(t *testing.T) {
	t.Parallel()
	for _, k := range allKinds {
		for _, onNode := range []bool{false, true} {
			if onNode && k != aCluster && k != aRing {
				continue
			}
			for _, how := range []string{"alone", "pipeline", "transaction"} {
				t.Run(fmt.Sprint(k, "/on nodes ", onNode, "/", how), func(t *testing.T) {
					t.Parallel()
					var lost atomic.Bool
					end := func(ctx context.Context) (context.Context, context.CancelFunc) {
						ctx, cancel := context.WithCancel(ctx)
						if lost.Load() {
							cancel()
						}
						return ctx, cancel
					}
					hook := spy{single: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
						ctx, cancel := end(ctx)
						defer cancel()
						return next(ctx, cmd)
					}, batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
						ctx, cancel := end(ctx)
						defer cancel()
						return next(ctx, cmds)
					}}
					n := knobs{opts: []redial.Option{redial.WithRetry(redial.RetryIdempotent)}}
					if onNode {
						n.nodeHook = func(w *world, addr string) redis.Hook { hook.w = w; return hook }
					}
					name := "set"
					if how == "transaction" {
						name = "exec"
					}
					w, ran := probe(t, k, n, name, func(int) redialtest.Action {
						lost.Store(true)
						return redialtest.ExecuteThenClose
					})
					if !onNode {
						hook.w = w
						w.rdb.AddHook(hook)
					}
					cmd := redis.NewStatusCmd(w.ctx, "set", "{a}k", "v")
					err := processAs(t, w, how, cmd)
					for _, err := range []error{err, cmd.Err()} {
						assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
						assert.ErrorIs(t, err, context.Canceled)
						assert.False(t, redial.SafeToRetry(err))
					}
					assert.EqualValues(t, 1, ran.Load())
				})
			}
		}
	}
}

// processAs sends a command in one of the ways there are, and returns the error of that.
func processAs(t *testing.T, w *world, how string, cmds ...redis.Cmder) (err error) {
	t.Helper()
	last := cmds[len(cmds)-1]
	fill := func(p redis.Pipeliner) error { return p.BatchProcess(w.ctx, cmds...) }
	switch how {
	case "alone":
		return w.rdb.Process(w.ctx, last)
	case "pipeline":
		_, err = w.rdb.Pipelined(w.ctx, fill)
		return err
	case "transaction":
		_, err = w.rdb.TxPipelined(w.ctx, fill)
		return err
	}
	open := w.rdb.AutoPipeline
	if how == "asynchronous" {
		open = w.rdb.AsyncAutoPipeline
	}
	ap, err := open()
	require.NoError(t, err)
	defer ap.Close()
	_ = ap.Process(w.ctx, last)
	return last.Err()
}

// One command of a pipeline has an id, so that it is sent again, and is answered with an
// error then. The outcome of the other, which was not, is unknown all the same.
func TestConform_Exact_UnknownBehindOnce(t *testing.T) {
	w, ran := probe(t, aClient, knobs{}, "eval", func(nth int) redialtest.Action {
		if nth == 1 {
			return redialtest.CloseBeforeExecute
		}
		return redialtest.Reply("-WRONGTYPE no number\r\n")
	})
	once, plain := redis.NewIntCmd(redial.Once(w.ctx, "id"), "incr", "{a}n"), redis.NewIntCmd(w.ctx, "incr", "{a}m")
	_, err := w.rdb.Pipelined(w.ctx, func(p redis.Pipeliner) error { return p.BatchProcess(w.ctx, once, plain) })
	assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
	assert.Equal(t, err, plain.Err())
	assert.EqualError(t, once.Err(), "WRONGTYPE no number")
	assert.EqualValues(t, 2, ran.Load())
}

// A function of the caller that ends its goroutine, as FailNow of a test does, ends that of
// whoever has go-redis call it; nobody goes on as if it had done its work, and Close does not
// wait for it.
func TestConform_Exact_GoroutineEndsInFunctionOfCaller(t *testing.T) {
	exit := func(*redis.Options) *redis.Client { runtime.Goexit(); return nil }
	for _, s := range []side{bare, wrapped} {
		w := newWorld(t, s, aRing)
		defer w.close()
		ended, survived := make(chan struct{}), false
		go func() {
			defer close(ended)
			opt := &redis.RingOptions{Addrs: map[string]string{"a": clusterNodeA}, Dialer: w.dial, NewClient: exit}
			if s == bare {
				_ = redis.NewRing(opt).Close()
			} else {
				_ = redial.NewRing(opt).Close()
			}
			survived = true
		}()
		select {
		case <-ended:
			assert.False(t, survived, s)
		case <-w.ctx.Done():
			t.Fatalf("%s: hangs", s)
		}
	}
	w := newWorld(t, wrapped, aCluster)
	defer w.close()
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{clusterNodeA}, Dialer: w.dial, NewClient: exit}, redial.WithGrace(100*time.Millisecond))
	failed := make(chan error, 1)
	go func() {
		err := errOther // if its goroutine ends
		defer func() { failed <- err }()
		err = c.Incr(w.ctx, "n").Err()
	}()
	select {
	case err := <-failed:
		assert.Error(t, err)
		assert.NotErrorIs(t, err, redis.ErrClosed)
	case <-w.ctx.Done():
		t.Fatal("hangs")
	}
	assert.NoError(t, c.Close())
}

// Neither is there anything left of a node whose function has panicked or ended its goroutine:
// go-redis drops its client, and has another made each time that it looks for the node.
func TestConform_Exact_GoroutineEndsInOnNewNode(t *testing.T) {
	for name, end := range map[string]func(){"exits": runtime.Goexit, "panics": func() { panic("no") }} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, wrapped, aCluster)
			defer w.close()
			w.open(knobs{poolSize: 4, opts: []redial.Option{redial.WithGrace(300 * time.Millisecond)}})
			var calls atomic.Int64
			w.rdb.(*redial.ClusterClient).OnNewNode(func(*redis.Client) { calls.Add(1); end() })
			err := w.rdb.Incr(w.ctx, "n").Err()
			assert.ErrorIs(t, err, redial.ErrUnavailable)
			assert.Less(t, calls.Load(), int64(50), "nodes were made")
			for _, s := range w.servers {
				assert.Less(t, s.Dials(), 10)
			}
		})
	}
}

// A ring of which the second shard cannot be built leaves nothing of the first.
func TestConform_Exact_GoroutineEndsInNewRing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, wrapped, aRing)
	defer w.close()
	down := make(chan struct{}, 100)
	built := 0
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		redial.NewRing(&redis.RingOptions{
			Addrs:  map[string]string{"a": clusterNodeA, "b": clusterNodeB},
			Dialer: func(context.Context, string, string) (net.Conn, error) { down <- struct{}{}; return nil, errOther },
			NewClient: func(o *redis.Options) *redis.Client {
				if built++; built == 2 {
					runtime.Goexit()
				}
				rdb := redis.NewClient(o)
				t.Cleanup(func() { _ = rdb.Close() }) // go-redis has forgotten it
				return rdb
			},
		})
	}()
	select {
	case <-ended:
	case <-w.ctx.Done():
		t.Fatal("hangs")
	}
	for {
		select {
		case <-down: // under way meanwhile
			continue
		default:
		}
		break
	}
	select {
	case <-down:
		t.Error("the first shard is still dialed")
	case <-time.After(time.Second): // more than what an attempt waits for the next
	}
}

type refusing struct{ err error }

func (r refusing) Allow() error       { return r.err }
func (r refusing) ReportResult(error) {}

// wordsOf is an argument and a writer of the caller's that fails.
type wordsOf struct {
	err   error
	asked int
}

func (w *wordsOf) MarshalBinary() ([]byte, error) { w.asked++; return nil, w.err }
func (w *wordsOf) Write([]byte) (int, error)      { w.asked++; return 0, w.err }

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// The error of a command that a node's hook sends itself, with the context it was given,
// is one for callers.
func TestConform_Exact_NodeHookSendsByItself_SeesNoMark(t *testing.T) {
	for _, k := range []kind{aCluster} { // hooks of shards stand outside of redial's, see docs/limits.md
		t.Run(string(k), func(t *testing.T) {
			var node sync.Map
			var seen atomic.Value
			w := newWorld(t, wrapped, k)
			defer w.close()
			audit := func(addr string) redis.Hook {
				return spy{w: w, terse: true, single: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
					if cmd.Name() == "incr" {
						if rdb, ok := node.Load(addr); ok {
							if err := rdb.(*redis.Client).Append(ctx, "{a}audit", "x").Err(); err != nil {
								seen.Store(err)
							}
						}
					}
					return next(ctx, cmd)
				}}
			}
			w.open(knobs{poolSize: 4, nodeHook: func(_ *world, addr string) redis.Hook { return audit(addr) }})
			w.ready()
			each := func(ctx context.Context, rdb *redis.Client) error { node.Store(rdb.Options().Addr, rdb); return nil }
			switch c := w.rdb.(type) {
			case *redial.ClusterClient:
				require.NoError(t, c.ForEachShard(w.ctx, each))
			case *redial.Ring:
				require.NoError(t, c.ForEachShard(w.ctx, each))
			}
			for _, s := range w.servers {
				s.says(func(_ int, args []string) redialtest.Action {
					if args[0] == "append" {
						return redialtest.ExecuteThenClose
					}
					return redialtest.Handle
				})
			}
			require.NoError(t, w.rdb.Incr(w.ctx, "{a}n").Err())
			err, _ := seen.Load().(error)
			require.Error(t, err)
			assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%T: %v", err, err)
		})
	}
}

// wrappedCmd is what a hook may put in the place of a command.
type wrappedCmd struct{ redis.Cmder }

// A hook that hands on other commands than it was given costs no exactness, and an outage
// is ridden out with it.
func TestConform_Exact_HookReplacesCommands(t *testing.T) {
	replace := act{
		single: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			return next(ctx, wrappedCmd{cmd})
		},
		batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
			others := make([]redis.Cmder, len(cmds))
			for i, cmd := range cmds {
				others[i] = wrappedCmd{cmd}
			}
			return next(ctx, others)
		},
	}
	for _, k := range allKinds {
		for _, where := range []string{"client", "node"} {
			for _, batch := range []bool{false, true} {
				if where == "node" && k.isSingle() {
					continue
				}
				t.Run(fmt.Sprint(k, " on ", where, " batch ", batch), func(t *testing.T) {
					n := knobs{}
					if where == "node" {
						n.nodeHook = func(w *world, _ string) redis.Hook { return hookOf(w, replace) }
					}
					// not executed the first time, and executed without a reply the second
					w, ran := probe(t, k, n, "incr", func(int) redialtest.Action { return redialtest.ExecuteThenClose })
					if where == "client" {
						w.rdb.AddHook(hookOf(w, replace))
					}
					err := incr(w, batch)
					assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%T %v", err, err)
					assert.EqualValues(t, 1, ran.Load())
				})
			}
		}
	}
}

// The cause of an Error agrees with its kind.
func TestConform_Exact_CauseOfUndelivered(t *testing.T) {
	for _, k := range allKinds {
		t.Run(string(k), func(t *testing.T) {
			w, _ := probe(t, k, knobs{}, "incr", func(int) redialtest.Action { return redialtest.CloseBeforeExecute })
			w.rdb.AddHook(spy{w: w, terse: true, batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
				for _, s := range w.servers {
					s.Kill()
				}
				time.Sleep(20 * time.Millisecond)
				_ = next(ctx, cmds)
				return errHook
			}})
			cmds, err := w.rdb.Pipelined(w.ctx, func(p redis.Pipeliner) error { p.Incr(w.ctx, "{a}n"); p.Incr(w.ctx, "{a}m"); return nil })
			assert.Equal(t, errHook, err)
			for _, cmd := range cmds {
				var e *redial.Error
				if errors.As(cmd.Err(), &e) && errors.Is(e, redial.ErrUnavailable) {
					assert.NotEqual(t, redial.CauseUnsafe, e.Cause, "nothing ran, so a second run is not unsafe: %v", e)
				} else {
					t.Logf("%s", describe(cmd.Err()))
				}
			}
		})
	}
}

// A hook that sends another command after next, which is refused for a moment: the first
// one has run and must not run again. Here the caller even gets nil.
func TestConform_Exact_HookSendsAnotherAfterwards_RunsOnce(t *testing.T) {
	for _, k := range allKinds {
		for _, where := range []string{"client", "node"} {
			if where == "node" && (k.isSingle() || k == aRing) {
				continue // hooks of shards stand outside of redial's, see docs/limits.md
			}
			t.Run(fmt.Sprint(k, " on ", where), func(t *testing.T) {
				journal := act{single: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
					if cmd.Name() != "incr" {
						return next(ctx, cmd)
					}
					if err := next(ctx, cmd); err != nil {
						return err
					}
					return next(ctx, redis.NewIntCmd(ctx, "append", "{a}journal", "x"))
				}}
				n := knobs{}
				if where == "node" {
					n.nodeHook = func(w *world, _ string) redis.Hook { return hookOf(w, journal) }
				}
				w, _ := probe(t, k, n, "", nil)
				var ran, refusals atomic.Int64
				for _, s := range w.servers {
					s.says(func(_ int, args []string) redialtest.Action {
						switch args[0] {
						case "incr":
							ran.Add(1)
						case "append":
							if refusals.Add(1) <= 2 {
								return redialtest.Reply("-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n")
							}
						}
						return redialtest.Handle
					})
				}
				if where == "client" {
					w.rdb.AddHook(hookOf(w, journal))
				}
				err := w.rdb.Incr(w.ctx, "{a}n").Err()
				assert.EqualValues(t, 1, ran.Load(), "runs of one INCR that returned %v", err)
			})
		}
	}
}

// A hook calls next twice; the first time has run, the second cannot be sent: it is not
// safe to retry, and not sent again. (2 s: until the grace is over.)
func TestConform_Exact_HookCallsNextTwice_FirstRan(t *testing.T) {
	for _, batch := range []bool{false, true} {
		t.Run(fmt.Sprint("batch ", batch), func(t *testing.T) {
			w, ran := probe(t, aClient, knobs{poolSize: 1}, "incr", func(int) redialtest.Action { return redialtest.Handle })
			again := alike("", func(_ []redis.Cmder, next func() error) error {
				if err := next(); err != nil {
					return err
				}
				w.servers[clusterNodeA].CloseConns() // what comes now is not delivered
				time.Sleep(20 * time.Millisecond)
				return next()
			})
			w.rdb.AddHook(hookOf(w, again))
			err := incr(w, batch)
			assert.LessOrEqual(t, ran.Load(), int64(2), "the hook asked for two runs")
			assert.False(t, redial.SafeToRetry(err), "it has run: %v", err)
		})
	}
}

// A hook calls next until it goes well, and yet returns the error of the first time, whose
// reply was lost: the caller gets an error that is one for callers.
func TestConform_Exact_HookReturnsTheFirstOfTwo(t *testing.T) {
	for _, k := range allKinds {
		for _, where := range []string{"client", "node"} {
			for _, batch := range []bool{false, true} {
				if where == "node" && (k.isSingle() || k == aRing) {
					continue // hooks of shards stand outside of redial's, see docs/limits.md
				}
				t.Run(fmt.Sprint(k, " on ", where, " batch ", batch), func(t *testing.T) {
					again := alike("", func(_ []redis.Cmder, next func() error) error {
						first := next()
						if first != nil {
							_ = next()
						}
						return first
					})
					n := knobs{}
					if where == "node" {
						n.nodeHook = func(w *world, _ string) redis.Hook { return hookOf(w, again) }
					}
					w, ran := probe(t, k, n, "incr", func(nth int) redialtest.Action {
						if nth == 1 {
							return redialtest.ExecuteThenClose
						}
						return redialtest.Handle
					})
					if where == "client" {
						w.rdb.AddHook(hookOf(w, again))
					}
					err := incr(w, batch)
					assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%T: %v", err, err)
					assert.EqualValues(t, 2, ran.Load(), "the hook asked for two runs")
				})
			}
		}
	}
}

// The same when the first time nothing could be sent: it has run all the same.
func TestConform_Exact_HookReturnsTheFirstOfTwo_Unsent(t *testing.T) {
	for _, batch := range []bool{false, true} {
		t.Run(fmt.Sprint("batch ", batch), func(t *testing.T) {
			var down atomic.Bool
			w, ran := probe(t, aClient, knobs{tune: func(o *redis.Options) {
				dial := o.Dialer
				o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
					if down.Load() {
						return nil, errOther
					}
					return dial(ctx, network, addr)
				}
			}}, "incr", func(int) redialtest.Action { return redialtest.Handle })
			w.rdb.AddHook(hookOf(w, alike("", func(_ []redis.Cmder, next func() error) error {
				down.Store(true)
				w.servers[clusterNodeA].CloseConns()
				var first error
				for first == nil && w.ctx.Err() == nil {
					first = next()
				}
				down.Store(false)
				for next() != nil && w.ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				return first
			})))
			err := incr(w, batch)
			require.Error(t, err)
			assert.Positive(t, ran.Load())
			assert.False(t, redial.SafeToRetry(err), "it has run: %T: %v", err, err)
		})
	}
}

// A hook sends a pipeline on one at a time: what has no answer is ErrOutcomeUnknown.
func TestConform_Exact_HookSendsOneAtATime_IsAsExact(t *testing.T) {
	for _, k := range allKinds {
		t.Run(string(k), func(t *testing.T) {
			w, _ := probe(t, k, knobs{}, "incr", func(nth int) redialtest.Action {
				if nth == 1 {
					return redialtest.ExecuteThenClose
				}
				return redialtest.Handle
			})
			w.rdb.AddHook(hookOf(w, act{batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) (first error) {
				for i := range cmds {
					if err := next(ctx, cmds[i:i+1]); first == nil {
						first = err
					}
				}
				return first
			}}))
			cmds, err := w.rdb.Pipelined(w.ctx, func(p redis.Pipeliner) error {
				p.Incr(w.ctx, "{a}n")
				p.Incr(w.ctx, "{a}m")
				return nil
			})
			assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%T", err)
			assert.ErrorIs(t, cmds[0].Err(), redial.ErrOutcomeUnknown, "%T", cmds[0].Err())
		})
	}
}

// R2, R3: what refuses the WATCH of a Watch for a while is waited for, as for any other
// command, and nil means that the function has run.
func TestConform_Exact_WatchIsRefused(t *testing.T) {
	for name, reply := range map[string]string{
		"CLUSTERDOWN": "-CLUSTERDOWN The cluster is down\r\n", "MOVED": "-MOVED 1 %s\r\n",
		"TRYAGAIN": "-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
		"BUSY":     "-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n",
		"proxy":    "-ERR no upstream host\r\n", // which WithRefusals knows
	} {
		for _, k := range allKinds {
			if name == "MOVED" && k != aCluster {
				continue
			}
			t.Run(name+"/"+string(k), func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					w, _ := probe(t, k, knobs{opts: []redial.Option{redial.WithRefusals(func(err error) bool { return err.Error() == "ERR no upstream host" })}}, "", nil)
					require.NoError(t, w.rdb.Set(w.ctx, "{a}k", 1, 0).Err())
					until := time.Now().Add(300 * time.Millisecond)
					for addr, s := range w.servers {
						other := map[string]string{clusterNodeA: clusterNodeB, clusterNodeB: clusterNodeA}[addr]
						s.says(func(_ int, args []string) redialtest.Action {
							switch {
							case args[0] != "watch" || time.Now().After(until):
								return redialtest.Handle
							case name == "MOVED":
								return redialtest.Reply(fmt.Sprintf(reply, other))
							}
							return redialtest.Reply(reply)
						})
					}
					ran := 0
					assert.NoError(t, w.rdb.Watch(w.ctx, func(*redis.Tx) error { ran++; return nil }, "{a}k"))
					assert.Equal(t, 1, ran, "runs of the function")
				})
			})
		}
	}
}

// Errors of the caller's own functions are not taken for garbled replies because of how
// their texts begin: nothing was sent, and bare returns them as they are.
func TestConform_Exact_WordsOfTheCaller(t *testing.T) {
	for _, errWords := range []error{errors.New("redis: quota exceeded"), context.DeadlineExceeded, context.Canceled} {
		for _, where := range []string{"OnConnect", "Limiter", "MarshalBinary", "Write"} {
			t.Run(fmt.Sprint(where, "/", errWords), func(t *testing.T) {
				kinds := allKinds
				if where == "OnConnect" || where == "Limiter" {
					kinds = []kind{aClient}
				}
				paired(t, kinds, knobs{quick: true, tune: func(o *redis.Options) {
					switch where {
					case "OnConnect":
						o.OnConnect = func(context.Context, *redis.Conn) error { return errWords }
					case "Limiter":
						o.Limiter = refusing{errWords}
					}
				}}, func(w *world) {
					for _, batch := range []bool{false, true} {
						words := &wordsOf{err: errWords}
						var cmd redis.Cmder = redis.NewIntCmd(w.ctx, "incr", "{a}n")
						switch where {
						case "MarshalBinary":
							cmd = redis.NewStatusCmd(w.ctx, "set", "{a}k", words)
						case "Write":
							cmd = redis.NewRawWriteToCmd(w.ctx, words, "get", "{a}missing")
						}
						err := w.process(batch, cmd)
						w.say("unknown: %v, == %v, asked %d times", errors.Is(err, redial.ErrOutcomeUnknown), err == errWords, words.asked)
					}
				})
			})
		}
	}
}

// The same of an OnConnect whose words are those that go-redis has for a garbled reply.
func TestConform_Exact_WordsOfTheCaller_LikeGarbled(t *testing.T) {
	errWords := errors.New("redis: can't parse the token")
	for name, err := range map[string]error{"plain": errWords, "wrapped": fmt.Errorf("token: %w", errWords)} {
		for _, k := range []kind{aClient, aCluster} {
			t.Run(fmt.Sprint(name, "/", k), func(t *testing.T) {
				var bad atomic.Bool
				onConnect := func(context.Context, *redis.Conn) error {
					if bad.Load() {
						return err
					}
					return nil
				}
				w, ran := probe(t, k, knobs{
					tune: func(o *redis.Options) { o.OnConnect = onConnect }, tuneNodes: func(o *redis.ClusterOptions) { o.OnConnect = onConnect },
				}, "incr", func(int) redialtest.Action { return redialtest.Handle })
				bad.Store(true)
				for _, s := range w.servers {
					s.CloseConns()
				}
				for _, batch := range []bool{false, true} {
					err := incr(w, batch)
					assert.ErrorIs(t, err, errWords)
					assert.EqualError(t, err, errWords.Error())
					assert.NotErrorIs(t, err, redial.ErrOutcomeUnknown)
				}
				assert.Zero(t, ran.Load())
			})
		}
	}
}

// A hook of a node sets the error of another client on one command of a pipeline: it is the
// caller's as it is, and the others have what became of them.
func TestConform_Exact_NodeHookSetsErrorOfAnotherClient(t *testing.T) {
	another, _ := probe(t, aClient, knobs{}, "incr", func(int) redialtest.Action { return redialtest.ExecuteThenClose })
	others := incr(another, false)
	require.ErrorIs(t, others, redial.ErrOutcomeUnknown)
	for _, k := range []kind{aCluster, aRing, aFailoverCluster} {
		for _, end := range []redialtest.Action{redialtest.Handle, redialtest.ExecuteThenClose} {
			t.Run(fmt.Sprint(k, " ", end), func(t *testing.T) {
				set := act{batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
					err := next(ctx, cmds)
					if len(cmds) == 3 {
						cmds[1].SetErr(others)
					}
					return err
				}}
				w, _ := probe(t, k, knobs{nodeHook: func(w *world, _ string) redis.Hook { return hookOf(w, set) }}, "append",
					func(int) redialtest.Action { return end })
				cmds, err := w.rdb.Pipelined(w.ctx, func(p redis.Pipeliner) error {
					p.Set(w.ctx, "{a}k", "v", 0)
					p.Incr(w.ctx, "{a}n")
					p.Append(w.ctx, "{a}log", "x")
					return nil
				})
				require.Error(t, err)
				assert.NoError(t, cmds[0].Err())
				assert.True(t, cmds[1].Err() == others, "%v", cmds[1].Err())
				if end == redialtest.Handle {
					assert.NoError(t, cmds[2].Err())
					assert.True(t, err == others, "%v", err)
				} else {
					assert.ErrorIs(t, cmds[2].Err(), redial.ErrOutcomeUnknown)
					assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
				}
			})
		}
	}
}

// E5: SUBSCRIBE by Do is rejected before any I/O, in words of its own.
func TestConform_Exact_CachingRejectsSubscribe(t *testing.T) {
	for _, name := range []string{"subscribe", "psubscribe", "ssubscribe"} {
		paired(t, both[:1], knobs{tune: func(o *redis.Options) { o.ClientSideCacheConfig = &redis.ClientSideCacheConfig{} }}, func(w *world) {
			err := w.rdb.Do(w.ctx, name, "c").Err()
			w.say("%s", describe(err))
			if w.side != bare && !redial.SafeToRetry(err) {
				w.say("not safe to retry")
			}
		}, "is not allowed on pooled connections")
	}
}

// E2: a context that had ended is ctx.Err() itself, while the link is down, too.
func TestConform_Exact_EndedContextWhileDown(t *testing.T) {
	for _, k := range []kind{aCluster, aFailoverCluster, aRing} {
		for _, s := range []side{bare, wrapped} {
			t.Run(fmt.Sprint(k, "/", s), func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					w := newWorld(t, s, k)
					defer w.close()
					w.open(knobs{poolSize: 4})
					w.ready()
					require.NoError(t, w.rdb.Set(w.ctx, "{a}k", 1, 0).Err())
					for _, srv := range w.servers {
						srv.Kill()
					}
					if w.supervisor != nil {
						require.NoError(t, w.supervisor.WaitForState(w.ctx, redial.StateReconnecting))
					}
					ping := func(ctx context.Context, n *redis.Client) error { return n.Ping(ctx).Err() }
					switch c := w.rdb.(type) {
					case interface {
						ForEachMaster(context.Context, func(context.Context, *redis.Client) error) error
					}:
						assert.Equal(t, context.Canceled, c.ForEachMaster(canceled(), ping), "ForEachMaster")
					case interface {
						ForEachShard(context.Context, func(context.Context, *redis.Client) error) error
					}:
						err := c.ForEachShard(canceled(), ping)
						if s == bare && err == nil {
							redialtest.Skip(t, "bare finds no shard that is up")
						}
						assert.Equal(t, context.Canceled, err, "ForEachShard")
					}
				})
			})
		}
	}
}

// E5, O2: what go-redis rejects before any I/O comes at once while the servers are down.
func TestConform_Exact_MistakenWatchWhileDown(t *testing.T) {
	for _, k := range []kind{aCluster, aRing} {
		for _, s := range []side{bare, wrapped} {
			t.Run(fmt.Sprint(k, "/", s), func(t *testing.T) {
				w := newWorld(t, s, k)
				defer w.close()
				for _, srv := range w.servers {
					srv.Kill()
				}
				w.open(knobs{poolSize: 4})
				began := time.Now()
				err := w.rdb.Watch(w.ctx, func(*redis.Tx) error { return nil })
				assert.EqualError(t, err, "redis: Watch requires at least one key")
				assert.Less(t, time.Since(began), time.Second)
			})
		}
	}
}

// E7: go-redis's rings have other words for the same mistake.
func TestConform_Exact_SafeToRetry_RingWatch(t *testing.T) {
	w, _ := probe(t, aRing, knobs{}, "", nil)
	err := w.rdb.Watch(w.ctx, func(*redis.Tx) error { return nil }, "{a}k", "{b}k", "{c}k", "{d}k", "{e}k")
	require.Error(t, err)
	assert.True(t, redial.SafeToRetry(err), "nothing ran: %v", err)
}

// The first command of what a deferred auto-pipeline sends to a node of a cluster is sent on to
// another node: it comes to an end there, as it does in go-redis, also where a hook of that
// node asks for its error before it has any.
func TestConform_Exact_DeferredIsSentOn(t *testing.T) {
	for _, reply := range []string{"MOVED 15495 " + clusterNodeA, "ASK 15495 " + clusterNodeA} {
		for _, s := range []side{bare, wrapped, managed} {
			t.Run(fmt.Sprint(reply, "/", s), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { deferredIsSentOn(t, s, reply) })
			})
		}
	}
}

func deferredIsSentOn(t *testing.T, s side, reply string) {
	defer time.Sleep(time.Second) // go-redis is about to look for the topology for longer than it lives
	w := newWorld(t, s, aCluster)
	defer w.close()
	peek := alike("", func(cmds []redis.Cmder, next func() error) error {
		_ = last(cmds).Err()
		return next()
	})
	w.open(knobs{poolSize: 4, quick: true, nodeHook: func(w *world, _ string) redis.Hook { return hookOf(w, peek) }})
	w.ready()
	w.servers[clusterNodeB].says(func(_ int, args []string) redialtest.Action {
		if args[0] == "incr" && args[1] == "{a}1" {
			return redialtest.Reply("-" + reply + "\r\n")
		}
		return redialtest.Handle
	})
	open := w.rdb.(interface {
		AsyncAutoPipelineWithOptions(*redis.AutoPipelineOptions) (*redis.AutoPipeliner, error)
	}).AsyncAutoPipelineWithOptions
	ap, err := open(&redis.AutoPipelineOptions{MaxFlushDelay: time.Second})
	require.NoError(t, err)
	cmds := []*redis.IntCmd{ap.Incr(w.ctx, "{a}1"), ap.Incr(w.ctx, "{a}2")}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, cmd := range cmds {
			assert.EqualValues(t, 1, cmd.Val(), cmd)
		}
	}()
	select {
	case <-done:
	case <-w.ctx.Done():
		panic("it waits for ever") // and so would whatever cleans up
	}
}

// A hook asks twice, and what it asked for may have run the first time: that it did not the
// second time, whoever says so, is not the whole truth. Of a batch it is no matter how the
// first of its commands ended.
func TestConform_Exact_HookCallsNextTwice_UnknownBehindRefusal(t *testing.T) {
	for _, k := range allKinds {
		for _, first := range []string{"lost", "ran", "refused"} {
			for _, then := range []string{"-OOM x", "-BUSY Redis is busy running a script.", "closed"} {
				for _, how := range []string{"alone", "pipeline", "transaction"} {
					t.Run(fmt.Sprint(k, "/", first, "/", then, "/", how), func(t *testing.T) {
						t.Parallel()
						unknownBehindTwice(t, k, first, then, how)
					})
				}
			}
		}
	}
}

func unknownBehindTwice(t *testing.T, k kind, first, then, how string) {
	if first == "refused" && how != "pipeline" {
		redialtest.Skip(t, "then nothing has run")
	}
	var again atomic.Bool
	w, _ := probe(t, k, knobs{}, "", nil)
	for _, s := range w.servers {
		s.says(func(_ int, args []string) redialtest.Action {
			switch ends := args[0] == "exec" || how != "transaction" && args[1] == "{a}bad"; {
			case again.Load() && args[0] == "exec":
				return redialtest.Reply("-EXECABORT x\r\n")
			case again.Load() && len(args) > 1:
				return redialtest.Reply(then + "\r\n")
			case !again.Load() && first == "lost" && ends:
				return redialtest.ExecuteThenClose
			case !again.Load() && first == "refused" && args[1] == "{a}first":
				return redialtest.Reply("-BUSY Redis is busy running a script.\r\n")
			}
			return redialtest.Handle
		})
	}
	w.rdb.AddHook(hookOf(w, alike("", func(_ []redis.Cmder, next func() error) error {
		_ = next()
		if again.Swap(true); then == "closed" {
			_ = w.rdb.Close()
		}
		return next()
	})))
	bad := redis.NewStatusCmd(w.ctx, "set", "{a}bad", "v")
	err := processAs(t, w, how, redis.NewStatusCmd(w.ctx, "set", "{a}first", "v"), bad)
	for _, err := range []error{err, bad.Err()} {
		assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%T: %v", err, err)
		assert.False(t, redial.SafeToRetry(err))
	}
}

// A hook that asks once, for what went well, and then returns an error of its own has that
// reach the caller, whatever it says.
func TestConform_Exact_HookReturnsAnErrorOfItsOwn(t *testing.T) {
	for _, k := range allKinds {
		for _, word := range []error{context.Canceled, context.DeadlineExceeded, redis.ErrClosed} {
			for _, how := range []string{"alone", "pipeline"} {
				t.Run(fmt.Sprint(k, "/", word, "/", how), func(t *testing.T) {
					w, ran := probe(t, k, knobs{}, "set", func(int) redialtest.Action { return redialtest.Handle })
					w.rdb.AddHook(hookOf(w, alike("", func(_ []redis.Cmder, next func() error) error {
						assert.NoError(t, next())
						return word
					})))
					err := processAs(t, w, how, redis.NewStatusCmd(w.ctx, "set", "{a}k", "v"))
					assert.True(t, err == word, "%T: %v", err, err)
					assert.EqualValues(t, 1, ran.Load())
					assert.Zero(t, w.supervisor.Stats().Unknown)
				})
			}
		}
	}
}

// A hook sends a pipeline in parts. The first goes well, and there is no connection for the
// second: that did not run, whether the hook returns its error or not.
func TestConform_Exact_SecondPartIsUnsent(t *testing.T) {
	for _, k := range []kind{aClient, aCluster} {
		for _, why := range []string{"the pool is exhausted", "dials fail"} {
			for _, says := range []bool{true, false} {
				t.Run(fmt.Sprint(k, "/", why, "/says ", says), func(t *testing.T) {
					t.Parallel()
					secondPartIsUnsent(t, k, why, says)
				})
			}
		}
	}
}

func secondPartIsUnsent(t *testing.T, k kind, why string, says bool) {
	const patience = 50 * time.Millisecond
	w, ran := probe(t, k, knobs{
		poolSize: 1, opts: []redial.Option{redial.WithGrace(patience)},
		tune:      func(o *redis.Options) { o.PoolTimeout, o.PipelinePoolSize = patience, -1 },
		tuneNodes: func(o *redis.ClusterOptions) { o.PoolTimeout, o.PipelinePoolSize = patience, -1 },
	}, "set", func(int) redialtest.Action { return redialtest.Handle })
	w.rdb.AddHook(spy{w: w, stream: "hooks", name: "probe", terse: true, batch: func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
		if len(cmds) == 1 { // it is sent again
			return next(ctx, cmds)
		}
		if err := next(ctx, cmds[:1]); err != nil {
			return err
		}
		if why == "dials fail" {
			for _, s := range w.servers {
				s.Kill()
			}
		} else {
			defer w.holdAll()()
		}
		if err := next(ctx, cmds[1:]); says {
			return err
		}
		return nil
	}})
	first, second := redis.NewStatusCmd(w.ctx, "set", "{a}k", "v"), redis.NewStatusCmd(w.ctx, "set", "{a}n", "v")
	_ = processAs(t, w, "pipeline", first, second)
	assert.NoError(t, first.Err())
	assert.EqualValues(t, 1, ran.Load())
	assert.NotErrorIs(t, second.Err(), redial.ErrOutcomeUnknown)
	assert.True(t, redial.SafeToRetry(second.Err()), "%T: %v", second.Err(), second.Err())
}

// holdAll takes a connection of each pool, until the returned function is called.
func (w *world) holdAll() (release func()) {
	var mu sync.Mutex
	var held []*redis.Conn
	hold := func(ctx context.Context, c *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		held = append(held, c.Conn())
		return held[len(held)-1].Ping(ctx).Err()
	}
	if cluster, ok := w.rdb.(*redial.ClusterClient); ok {
		assert.NoError(w.t, cluster.ForEachMaster(w.ctx, hold))
	} else {
		assert.NoError(w.t, hold(w.ctx, w.client()))
	}
	return func() {
		for _, cn := range held {
			_ = cn.Close()
		}
	}
}

// MULTI is forbidden, or renamed, so that the server runs what comes behind it at once: that
// it was refused says nothing of that.
func TestConform_Exact_UnknownBehindMulti(t *testing.T) {
	for _, k := range allKinds {
		for _, reply := range []string{"ERR unknown command 'multi', with args beginning with: ", "NOPERM User x has no permissions to run the 'multi' command"} {
			for _, held := range []bool{false, true} {
				t.Run(fmt.Sprint(k, "/", reply, "/held ", held), func(t *testing.T) {
					w, ran := probe(t, k, knobs{}, "multi", func(int) redialtest.Action { return redialtest.Reply("-" + reply + "\r\n") })
					ctx := redial.Idempotent(w.ctx) // it would be refused again
					var cmd *redis.IntCmd
					fill := func(p redis.Pipeliner) error { cmd = p.Incr(ctx, "{a}n"); return nil }
					err := error(nil)
					if held {
						require.NoError(t, w.rdb.Watch(ctx, func(tx *redis.Tx) error { _, err = tx.TxPipelined(ctx, fill); return nil }, "{a}w"))
					} else {
						_, err = w.rdb.TxPipelined(ctx, fill)
					}
					for _, err := range []error{err, cmd.Err()} {
						assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%T: %v", err, err)
						assert.ErrorContains(t, err, reply)
					}
					assert.EqualValues(t, 1, ran.Load())
				})
			}
		}
	}
}

// The replies in a transaction are not those that its commands expect, or none at all: a write
// in it has run, or may have, and is ErrOutcomeUnknown on every client.
func TestConform_Exact_UnreadableInTransaction(t *testing.T) {
	for _, k := range allKinds {
		for _, reply := range []string{"", "?what", "*1\r\n?what", "*what"} {
			t.Run(fmt.Sprintf("%s/%q", k, reply), func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					w, _ := probe(t, k, knobs{}, "exec", func(int) redialtest.Action {
						if reply == "" {
							return redialtest.Handle
						}
						return redialtest.Reply(reply + "\r\n")
					})
					cmd := redis.NewMapStringStringCmd(w.ctx, "incr", "{a}n")
					err := processAs(t, w, "transaction", cmd)
					for _, err := range []error{err, cmd.Err()} {
						assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%T: %v", err, err)
					}
				})
			})
		}
	}
}

// A caller may put EXEC into a transaction, which go-redis then cannot read.
func TestConform_Exact_ExecWithinTransaction(t *testing.T) {
	for _, k := range allKinds {
		t.Run(string(k), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w, _ := probe(t, k, knobs{}, "", nil)
				_, err := w.rdb.TxPipelined(w.ctx, func(p redis.Pipeliner) error {
					p.Incr(w.ctx, "{a}n")
					p.Do(w.ctx, "exec")
					p.Incr(w.ctx, "{a}n")
					return nil
				})
				assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%T: %v", err, err)
			})
		})
	}
}

// A connection that the caller holds is given up by go-redis because of a reply, with which it
// then explains why nothing is sent on it: that is no reply to what was not sent.
func TestConform_Exact_HeldConnectionBrokenByReply(t *testing.T) {
	for _, k := range allKinds {
		for _, reply := range []string{"READONLY x", "LOADING x"} {
			t.Run(fmt.Sprint(k, "/", reply), func(t *testing.T) {
				w, _ := probe(t, k, knobs{}, "incr", func(int) redialtest.Action { return redialtest.Reply("-" + reply + "\r\n") })
				cmds := []redis.Cmder{redis.NewIntCmd(w.ctx, "incr", "{a}n"), redis.NewStringCmd(w.ctx, "get", "{a}missing")}
				ctx := redial.WaitFor(w.ctx, 100*time.Millisecond)
				var err error
				require.NoError(t, w.rdb.Watch(ctx, func(tx *redis.Tx) error {
					_, err = tx.Pipelined(ctx, func(p redis.Pipeliner) error { return p.BatchProcess(ctx, cmds...) })
					return nil
				}, "{a}w"))
				for _, err := range []error{err, cmds[0].Err()} {
					assert.Error(t, err)
					assert.True(t, redial.SafeToRetry(err), "%T: %v", err, err)
				}
			})
		}
	}
}

// The script of one command with an id is not known, and is to be sent once more, where the
// reply to another was lost: what is known of the one is not said of the other.
func TestConform_Exact_UnknownBesideScript(t *testing.T) {
	for _, k := range []kind{aClient, aCluster, aRing, aFailover, aFailoverCluster} {
		for _, held := range []bool{false, true} {
			t.Run(fmt.Sprint(k, "/held ", held), func(t *testing.T) {
				w, _ := probe(t, k, knobs{}, "", nil)
				var lost atomic.Int64
				for _, s := range w.servers {
					s.says(func(_ int, args []string) redialtest.Action {
						switch {
						case args[0] != "evalsha":
							return redialtest.Handle
						case args[3] == "{a}1":
							return redialtest.Reply("-NOSCRIPT x\r\n")
						case lost.Add(1) > 1:
							return redialtest.Hang
						}
						return redialtest.ExecuteThenClose
					})
				}
				ctx, cancel := context.WithTimeout(redial.Once(w.ctx, "id"), 200*time.Millisecond)
				defer cancel()
				var cmds []redis.Cmder
				send := func(c redis.Cmdable) (err error) {
					cmds, err = c.Pipelined(ctx, func(p redis.Pipeliner) error {
						p.Incr(ctx, "{a}1")
						p.Incr(ctx, "{a}2")
						return nil
					})
					return err
				}
				var err error
				switch {
				case !held:
					err = send(w.rdb)
				case k.isSingle():
					conn := w.client().Conn()
					defer func() { _ = conn.Close() }()
					err = send(conn)
				default:
					redialtest.Skip(t, "it has no Conn")
				}
				for _, err := range []error{err, cmds[1].Err()} {
					assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%T: %v", err, err)
				}
			})
		}
	}
}

// A hook of a node has the last word, in which there is no trace of what it was told, of a write
// that may run twice and whose reply could not be read: it is not sent again, and has run.
func TestConform_Exact_NodeHookHasTheLastWord_UnknownBehindUnreadable(t *testing.T) {
	for _, k := range []kind{aCluster, aFailoverCluster} {
		t.Run(string(k), func(t *testing.T) {
			hook := alike("", func(_ []redis.Cmder, next func() error) error {
				if err := next(); err != nil {
					return errors.New("it says " + err.Error())
				}
				return nil
			})
			w, ran := probe(t, k, knobs{nodeHook: func(w *world, _ string) redis.Hook { return hookOf(w, hook) }}, "incr",
				func(int) redialtest.Action { return redialtest.Handle })
			ctx := redial.Idempotent(w.ctx)
			cmd := redis.NewMapStringStringCmd(ctx, "incr", "{a}n")
			_, _ = w.rdb.Pipelined(ctx, func(p redis.Pipeliner) error { return p.Process(ctx, cmd) })
			assert.ErrorIs(t, cmd.Err(), redial.ErrOutcomeUnknown, "%T: %v", cmd.Err(), cmd.Err())
			assert.EqualValues(t, 1, ran.Load())
		})
	}
}

// The same where one command is refused the second time, and no reply to the other ever comes.
func TestConform_Exact_UnknownAfterUnknown_CountsOnce(t *testing.T) {
	for _, k := range []kind{aClient, aFailover} {
		t.Run(string(k), func(t *testing.T) {
			told := countFailures{new(atomic.Int64)}
			w, _ := probe(t, k, knobs{opts: []redial.Option{redial.WithRetry(redial.RetryIdempotent), redial.WithObserver(told)}}, "set", func(nth int) redialtest.Action {
				if nth == 2 {
					return redialtest.Reply("-OOM x\r\n")
				}
				return redialtest.ExecuteThenClose
			})
			a, b := redis.NewStatusCmd(w.ctx, "set", "{a}k", "v"), redis.NewStatusCmd(w.ctx, "set", "{a}n", "v")
			assert.ErrorIs(t, processAs(t, w, "pipeline", a, b), redial.ErrOutcomeUnknown)
			assert.ErrorContains(t, a.Err(), "OOM x")
			for _, cmd := range []redis.Cmder{a, b} {
				assert.ErrorIs(t, cmd.Err(), redial.ErrOutcomeUnknown)
			}
			assert.EqualValues(t, 1, w.supervisor.Stats().Unknown)
			assert.EqualValues(t, 1, told.n.Load())
		})
	}
}

// What one call was told is counted once, also where its commands have several reasons.
func TestConform_Exact_UnknownBehindRefusals_CountsOnce(t *testing.T) {
	for _, k := range allKinds {
		t.Run(string(k), func(t *testing.T) {
			told := countFailures{new(atomic.Int64)}
			w, ran := probe(t, k, knobs{opts: []redial.Option{redial.WithRetry(redial.RetryIdempotent), redial.WithObserver(told)}}, "set", func(nth int) redialtest.Action {
				switch nth {
				case 1:
					return redialtest.ExecuteThenClose
				case 2:
					return redialtest.Reply("-OOM x\r\n")
				}
				return redialtest.Reply("-MISCONF x\r\n")
			})
			a, b := redis.NewStatusCmd(w.ctx, "set", "{a}k", "v"), redis.NewStatusCmd(w.ctx, "set", "{a}n", "v")
			err := processAs(t, w, "pipeline", a, b)
			assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
			assert.ErrorContains(t, a.Err(), "OOM x")
			assert.ErrorContains(t, b.Err(), "MISCONF x")
			assert.ErrorIs(t, b.Err(), redial.ErrOutcomeUnknown)
			assert.EqualValues(t, 3, ran.Load())
			assert.EqualValues(t, 1, w.supervisor.Stats().Unknown)
			assert.EqualValues(t, 1, told.n.Load())
		})
	}
}

// What hooks of the caller do to the list of commands that they are given, or hand on, changes
// neither what is sent again nor what is claimed.
func TestConform_Exact_HookChangesTheList(t *testing.T) {
	isGet := func(cmd redis.Cmder) bool { return cmd.Name() == "get" }
	for name, hook := range map[string]func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error{
		"takes out where it is": func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
			return next(ctx, slices.DeleteFunc(cmds, isGet))
		},
		"moves up": func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
			rest := cmds[:0]
			for _, cmd := range cmds {
				if !isGet(cmd) {
					rest = append(rest, cmd)
				}
			}
			return next(ctx, rest)
		},
	} {
		for _, k := range allKinds {
			for _, behind := range []bool{false, k.isSingle()} {
				t.Run(fmt.Sprint(name, " ", k, " behind ", behind), func(t *testing.T) {
					w, ran := probe(t, k, knobs{}, "incr", func(nth int) redialtest.Action {
						if nth == 1 {
							return redialtest.CloseBeforeExecute
						}
						return redialtest.Handle
					})
					of := onBatches(func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
						if !isGet(cmds[0]) {
							return next(ctx, cmds)
						}
						return hook(ctx, cmds, next)
					})
					if behind {
						w.client().AddHook(of)
					} else {
						w.rdb.AddHook(of)
					}
					get, a, b := redis.NewStringCmd(w.ctx, "get", "{a}k"), redis.NewIntCmd(w.ctx, "incr", "{a}1"), redis.NewIntCmd(w.ctx, "incr", "{a}2")
					cmds, err := w.rdb.Pipelined(redial.Idempotent(w.ctx), func(p redis.Pipeliner) error {
						return errors.Join(p.Process(w.ctx, get), p.Process(w.ctx, a), p.Process(w.ctx, b))
					})
					assert.NoError(t, err)
					want := []redis.Cmder{a, b, b} // the list is the hook's to change, as with go-redis
					if name == "takes out where it is" {
						want[2] = nil
					}
					assert.Equal(t, want, cmds)
					assert.EqualValues(t, 1, a.Val())
					assert.EqualValues(t, 1, b.Val())
					assert.EqualValues(t, 3, ran.Load(), "the first was sent twice")
				})
			}
		}
	}
}

// A hook hands on one command at a time, in the same list, and the first one again, which is
// refused then: that has run.
func TestConform_Exact_HookReusesAList(t *testing.T) {
	w, _ := probe(t, aClient, knobs{}, "incr", func(nth int) redialtest.Action {
		if nth > 2 {
			return redialtest.Reply("-NOREPLICAS Not enough good replicas to write.\r\n")
		}
		return redialtest.Handle
	})
	w.rdb.AddHook(onBatches(func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
		if len(cmds) < 2 || cmds[0].Name() != "incr" {
			return next(ctx, cmds)
		}
		one := make([]redis.Cmder, 1)
		for _, cmd := range cmds {
			one[0] = cmd
			_ = next(ctx, one)
		}
		return next(ctx, []redis.Cmder{cmds[0]})
	}))
	cmds, _ := w.rdb.Pipelined(redial.FailFast(w.ctx), func(p redis.Pipeliner) error {
		p.Incr(w.ctx, "a")
		p.Incr(w.ctx, "b")
		return nil
	})
	assert.ErrorIs(t, cmds[0].Err(), redial.ErrOutcomeUnknown)
	assert.False(t, redial.SafeToRetry(cmds[0].Err()))
	assert.NoError(t, cmds[1].Err())
}

// onBatches is a hook on pipelines that looks at no command before or after.
type onBatches func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error

func (onBatches) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (onBatches) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (f onBatches) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { return f(ctx, cmds, next) }
}

// A hook has the last word on a command that begins or ends a transaction in a pipeline: what is
// left is not sent without it, which would leave the connection where nobody expects it.
func TestConform_Exact_HookTearsATransaction(t *testing.T) {
	for _, name := range []string{"multi", "incr", "exec"} {
		t.Run(name, func(t *testing.T) {
			w, ran := probe(t, aClient, knobs{}, "get", func(int) redialtest.Action { return redialtest.CloseBeforeExecute })
			first := true
			w.rdb.AddHook(onBatches(func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
				err := next(ctx, cmds)
				for _, cmd := range cmds {
					if first && cmd.Name() == name {
						cmd.SetErr(errors.New("of the hook"))
						first = false
					}
				}
				return err
			}))
			ctx := redial.Idempotent(w.ctx)
			cmds, err := w.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
				p.Do(ctx, "get", "k")
				p.Do(ctx, "multi")
				p.Do(ctx, "incr", "n")
				p.Do(ctx, "exec")
				return nil
			})
			assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
			for _, cmd := range cmds {
				if cmd.Name() == name {
					assert.EqualError(t, cmd.Err(), "of the hook")
				} else {
					assert.ErrorIs(t, cmd.Err(), redial.ErrOutcomeUnknown, cmd.Name())
				}
			}
			assert.EqualValues(t, 1, ran.Load())
		})
	}
}
