package bubble

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/testkit/memnet"
	"github.com/redial-go/redial/redialtest"
)

// instrument is what redisotel is: it finds its own way to where its hooks go, and the
// line that a command came from.
type instrument struct {
	mu    sync.Mutex
	spans []span
}

type span struct {
	name, function, file string
	line                 int
	began                time.Time
	took                 time.Duration
	err                  error
}

func (i *instrument) install(rdb redis.UniversalClient) error {
	switch rdb := rdb.(type) {
	case *redis.Client:
		rdb.AddHook(tracer{i})
	case *redis.ClusterClient:
		rdb.OnNewNode(func(rdb *redis.Client) { rdb.AddHook(tracer{i}) })
	case *redis.Ring:
		rdb.OnNewNode(func(rdb *redis.Client) { rdb.AddHook(tracer{i}) })
	default:
		return fmt.Errorf("%T is not supported", rdb)
	}
	return nil
}

// take returns the spans that have ended, but those of setting up connections.
func (i *instrument) take() []span {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := slices.DeleteFunc(i.spans, func(s span) bool {
		return s.name == "redis.dial" || strings.Contains(s.name, "hello") || strings.Contains(s.name, "client")
	})
	i.spans = nil
	return all
}

// count counts the spans of a name, and leaves them.
func (i *instrument) count(name string) (n int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, s := range i.spans {
		if s.name == name {
			n++
		}
	}
	return n
}

func (i *instrument) end(s span, err error) error {
	s.took, s.err = time.Since(s.began), err
	i.mu.Lock()
	defer i.mu.Unlock()
	i.spans = append(i.spans, s)
	return err
}

type tracer struct{ *instrument }

func (t tracer) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		s := span{name: "redis.dial", began: time.Now()}
		nc, err := next(ctx, network, addr)
		return nc, t.end(s, err)
	}
}

func (t tracer) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		s := span{name: cmd.Name(), began: time.Now()}
		s.function, s.file, s.line = funcFileLine("github.com/redis/go-redis")
		return t.end(s, next(ctx, cmd))
	}
}

func (t tracer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		s := span{name: "pipeline", began: time.Now()}
		for _, cmd := range cmds {
			s.name += " " + cmd.Name()
		}
		s.function, s.file, s.line = funcFileLine("github.com/redis/go-redis")
		return t.end(s, next(ctx, cmds))
	}
}

// funcFileLine walks up the stack, from the caller of the hook's function, until it is
// out of a package.
func funcFileLine(pkg string) (fn, file string, line int) {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, ok := frames.Next()
		if !ok {
			break
		}
		fn, file, line = f.Function, f.File, f.Line
		if !strings.Contains(fn, pkg) {
			break
		}
	}
	return fn, file, line
}

// here returns the line that it is called at.
func here() int {
	_, _, line, _ := runtime.Caller(1)
	return line
}

// from asserts that a span belongs to a call in this file at a line.
func from(t *testing.T, s span, line int) {
	t.Helper()
	assert.Equal(t, "outer_test.go", filepath.Base(s.file), "%s", s.function)
	assert.Equal(t, line, s.line, "%s", s.function)
}

// made is a client, and what watches over it.
type made struct {
	redis.UniversalClient
	*redial.Supervisor
	close func() error
}

// kinds build a client of every kind on an in-memory network.
var kinds = map[string]func(t *testing.T, opt *redis.Options, with ...redial.Option) made{
	"Client": func(_ *testing.T, opt *redis.Options, with ...redial.Option) made {
		c := redial.NewClient(opt, with...)
		return made{c, c.Supervisor, c.Close}
	},
	"embedded Client": func(_ *testing.T, opt *redis.Options, with ...redial.Option) made {
		c := redial.NewClient(opt, with...)
		return made{c.Client, c.Supervisor, c.Close}
	},
	"clone": func(_ *testing.T, opt *redis.Options, with ...redial.Option) made {
		c := redial.NewClient(opt, with...)
		return made{c.WithTimeout(time.Minute), c.Supervisor, c.Close}
	},
	"clone of a clone": func(_ *testing.T, opt *redis.Options, with ...redial.Option) made {
		c := redial.NewClient(opt, with...)
		return made{c.WithTimeout(time.Minute).WithTimeout(time.Second).Client, c.Supervisor, c.Close}
	},
	"FailoverClient": func(_ *testing.T, opt *redis.Options, with ...redial.Option) made {
		c := redial.NewFailoverClient(failoverOptions(opt), with...)
		return made{c, c.Supervisor, c.Close}
	},
	"ClusterClient": func(_ *testing.T, opt *redis.Options, with ...redial.Option) made {
		c := redial.NewClusterClient(clusterOptions(opt), with...)
		return made{c, c.Supervisor, c.Close}
	},
	"embedded ClusterClient": func(_ *testing.T, opt *redis.Options, with ...redial.Option) made {
		c := redial.NewClusterClient(clusterOptions(opt), with...)
		return made{c.ClusterClient, c.Supervisor, c.Close}
	},
	"FailoverClusterClient": func(_ *testing.T, opt *redis.Options, with ...redial.Option) made {
		c := redial.NewFailoverClusterClient(failoverOptions(opt), with...)
		return made{c, c.Supervisor, c.Close}
	},
	"Ring": func(_ *testing.T, opt *redis.Options, with ...redial.Option) made {
		c := redial.NewRing(ringOptions(opt), with...)
		return made{c, c.Supervisor, c.Close}
	},
	"UniversalClient": func(_ *testing.T, opt *redis.Options, with ...redial.Option) made {
		c := redial.NewUniversalClient(&redis.UniversalOptions{
			Addrs: []string{opt.Addr}, Dialer: opt.Dialer, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
		}, with...)
		return made{c, c.(*redial.Client).Supervisor, c.Close}
	},
	"supervised Client": func(t *testing.T, opt *redis.Options, with ...redial.Option) made {
		own := *opt
		own.ContextTimeoutEnabled = true
		dial := reflect.ValueOf(opt.Dialer) // by its name it would be redial's
		own.Dialer = reflect.MakeFunc(dial.Type(), dial.Call).Interface().(func(context.Context, string, string) (net.Conn, error))
		return supervised(t, redis.NewClient(&own), with...)
	},
	"supervised ClusterClient": func(t *testing.T, opt *redis.Options, with ...redial.Option) made {
		own := clusterOptions(opt)
		own.ContextTimeoutEnabled = true
		return supervised(t, redis.NewClusterClient(own), with...)
	},
	"supervised Ring": func(t *testing.T, opt *redis.Options, with ...redial.Option) made {
		own := ringOptions(opt)
		own.ContextTimeoutEnabled = true
		return supervised(t, redis.NewRing(own), with...)
	},
}

func supervised(t *testing.T, rdb redis.UniversalClient, with ...redial.Option) made {
	t.Helper()
	s, err := redial.Supervise(rdb, with...)
	require.NoError(t, err)
	return made{rdb, s, func() error { return errors.Join(rdb.Close(), s.Close()) }}
}

func failoverOptions(opt *redis.Options) *redis.FailoverOptions {
	return &redis.FailoverOptions{
		MasterName: "m", SentinelAddrs: []string{"127.0.0.1:2"},
		Dialer: opt.Dialer, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
	}
}

func clusterOptions(opt *redis.Options) *redis.ClusterOptions {
	return &redis.ClusterOptions{
		Addrs: []string{opt.Addr}, Dialer: opt.Dialer, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
		ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: opt.Addr}}}}, nil
		},
	}
}

func ringOptions(opt *redis.Options) *redis.RingOptions {
	return &redis.RingOptions{
		Addrs:  map[string]string{"a": opt.Addr},
		Dialer: opt.Dialer, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
	}
}

// onKinds runs f with a client of every kind that has a number of options.
func onKinds(t *testing.T, with func() []redial.Option, f func(t *testing.T, n *memnet.Net, faults *memnet.Faults, c made)) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		t.Run(name, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				faults := memnet.Inject(n)
				n.Redis.Server().SetPreHook(beSentinel(faults))
				c := kinds[name](t, opt, with()...)
				defer c.close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				require.NoError(t, c.WaitReady(ctx))
				synctest.Wait()
				f(t, n, faults, c)
			})
		})
	}
}

// beSentinel has the server answer as a sentinel, too, that watches over it alone.
func beSentinel(f *memnet.Faults) server.Hook {
	return func(p *server.Peer, cmd string, args ...string) bool {
		if strings.EqualFold(cmd, "sentinel") {
			if strings.EqualFold(args[0], "get-master-addr-by-name") {
				p.WriteStrings([]string{"127.0.0.1", "1"})
			} else {
				p.WriteLen(0)
			}
			return true
		}
		return f.Hook(p, cmd, args...)
	}
}

// Instruments that stand outside of the gate see one call where the caller makes one,
// with what happens to it inside, and where it is made.
func TestOuter_OneCall(t *testing.T) {
	for name, with := range map[string]func(i *instrument) redial.Option{
		"WithInstrument": func(i *instrument) redial.Option { return redial.WithInstrument(i.install) },
		"WithOuterHook":  func(i *instrument) redial.Option { return redial.WithOuterHook(tracer{i}) },
	} {
		t.Run(name, func(t *testing.T) {
			var seen *instrument
			with := func() []redial.Option {
				seen = &instrument{}
				return []redial.Option{with(seen)}
			}
			onKinds(t, with, func(t *testing.T, n *memnet.Net, faults *memnet.Faults, c made) {
				ctx := t.Context()
				seen.take()

				// One that is served at once.
				line := here() + 1
				require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
				spans := seen.take()
				require.Len(t, spans, 1)
				assert.Equal(t, "set", spans[0].name)
				assert.NoError(t, spans[0].err)
				from(t, spans[0], line)

				// One that rides out an outage, with attempts in vain.
				n.Kill()
				awaitDown(t, c)
				time.AfterFunc(2*time.Second, n.Start)
				line = here() + 1
				require.Equal(t, "v", c.Get(ctx, "k").Val())
				spans = seen.take()
				require.Len(t, spans, 1)
				assert.Equal(t, "get", spans[0].name)
				assert.NoError(t, spans[0].err)
				assert.GreaterOrEqual(t, spans[0].took, 2*time.Second)
				from(t, spans[0], line)

				// One whose reply is lost and that is sent again.
				faults.Times("get", 1, memnet.HangUp)
				line = here() + 1
				require.Equal(t, "v", c.Get(ctx, "k").Val())
				assert.Equal(t, 3, faults.Count("get"))
				spans = seen.take()
				require.Len(t, spans, 1)
				assert.NoError(t, spans[0].err)
				from(t, spans[0], line)

				// A pipeline, and a transaction, whose replies are lost.
				faults.Times("get", 1, memnet.HangUp)
				line = here() + 1
				_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.TTL(ctx, "k"); return nil })
				require.NoError(t, err)
				faults.Times("exec", 1, memnet.HangUp)
				line2 := here() + 1
				_, err = c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); return nil })
				require.NoError(t, err)
				spans = seen.take()
				require.Len(t, spans, 2)
				assert.Equal(t, "pipeline get ttl", spans[0].name)
				assert.NoError(t, spans[0].err)
				from(t, spans[0], line)
				assert.Equal(t, "pipeline multi get exec", spans[1].name)
				assert.NoError(t, spans[1].err)
				from(t, spans[1], line2)

				// One whose outcome is unknown.
				faults.Times("incr", 1, memnet.HangUp)
				err = c.Incr(ctx, "n").Err()
				require.ErrorIs(t, err, redial.ErrOutcomeUnknown)
				spans = seen.take()
				require.Len(t, spans, 1)
				assert.True(t, spans[0].err == err, "%v", spans[0].err)

				// Those that are refused at the gate, one after having waited for the grace.
				n.Kill()
				awaitDown(t, c)
				waited := c.Incr(ctx, "n").Err()
				require.ErrorIs(t, waited, redial.ErrUnavailable)
				line = here() + 1
				refused := c.Incr(ctx, "n").Err()
				require.ErrorIs(t, refused, redial.ErrUnavailable)
				line2 = here() + 1
				_, err = c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
				require.ErrorIs(t, err, redial.ErrUnavailable)
				spans = seen.take()
				require.Len(t, spans, 3)
				assert.True(t, spans[0].err == waited, "%v", spans[0].err)
				assert.Greater(t, spans[0].took, redial.DefaultGrace/2)
				assert.True(t, spans[1].err == refused, "%v", spans[1].err)
				assert.Zero(t, spans[1].took)
				from(t, spans[1], line)
				assert.True(t, spans[2].err == err, "%v", spans[2].err)
				from(t, spans[2], line2)
				n.Start()
			})
		})
	}
}

// awaitDown waits until the client has noticed an outage.
func awaitDown(t *testing.T, c made) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, c.WaitForState(ctx, redial.StateReconnecting))
}

// numbered is a hook that notes when it is called and when that is over.
type numbered struct {
	id  int
	log *[]string
}

func (h numbered) note(s string) { *h.log = append(*h.log, fmt.Sprint(s, h.id)) }

func (h numbered) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h numbered) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if command.IsHandshake(cmd) {
			return next(ctx, cmd)
		}
		h.note("in ")
		defer h.note("out ")
		return next(ctx, cmd)
	}
}

func (h numbered) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if command.IsHandshake(cmds[0]) {
			return next(ctx, cmds)
		}
		h.note("in ")
		defer h.note("out ")
		return next(ctx, cmds)
	}
}

// The first option is the outermost hook, whichever option it is; what is added later is
// inside, at every attempt.
func TestOuter_Order(t *testing.T) {
	var log []string
	with := func() []redial.Option {
		return []redial.Option{
			redial.WithOuterHook(numbered{1, &log}),
			redial.WithInstrument(func(rdb redis.UniversalClient) error {
				rdb.AddHook(numbered{2, &log})
				rdb.AddHook(numbered{3, &log})
				return nil
			}),
			redial.WithOuterHook(numbered{4, &log}),
			redial.WithInstrument(func(rdb redis.UniversalClient) error { rdb.AddHook(numbered{5, &log}); return nil }),
		}
	}
	before, after := []string{"in 1", "in 2", "in 3", "in 4", "in 5"}, []string{"out 5", "out 4", "out 3", "out 2", "out 1"}
	onKinds(t, with, func(t *testing.T, _ *memnet.Net, faults *memnet.Faults, c made) {
		if strings.HasPrefix(t.Name(), "TestOuter_Order/supervised") {
			return // AddHook goes inside of redial's there, at a place of its own
		}
		for range 3 { // go-redis puts the hooks together anew each time
			c.AddHook(passing{})
		}
		c.AddHook(numbered{6, &log})
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		for cmd, send := range map[string]func(ctx context.Context) error{
			"get": func(ctx context.Context) error { return c.Get(ctx, "k").Err() },
			"ttl": func(ctx context.Context) error {
				_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.TTL(ctx, "k"); return nil })
				return err
			},
			"exec": func(ctx context.Context) error {
				_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); return nil })
				return err
			},
		} {
			faults.Times(cmd, 1, memnet.HangUp)
			log = nil
			require.NoError(t, send(t.Context()))
			attempts := (len(log) - len(before) - len(after)) / 2
			require.Positive(t, attempts, "%s: %v", cmd, log)
			if _, cluster := c.UniversalClient.(*redial.ClusterClient); !cluster || cmd == "get" { // go-redis makes several attempts at a part of a pipeline
				assert.Equal(t, 2, attempts, cmd)
			}
			assert.Equal(t, slices.Concat(before, slices.Repeat([]string{"in 6", "out 6"}, attempts), after), log, cmd)
		}
	})
}

// What an instrument is given: the client itself, or one that stands for several nodes.
func TestOuter_WhatAnInstrumentGets(t *testing.T) {
	var got []redis.UniversalClient
	var seen *instrument
	with := func() []redial.Option {
		got, seen = nil, &instrument{}
		return []redial.Option{redial.WithInstrument(func(rdb redis.UniversalClient) error {
			got = append(got, rdb)
			return seen.install(rdb)
		})}
	}
	onKinds(t, with, func(t *testing.T, _ *memnet.Net, _ *memnet.Faults, c made) {
		require.Len(t, got, 1, "it is called once, whatever clones there are")
		rdb, ok := got[0].(*redis.Client)
		require.True(t, ok, "%T", got[0])
		setups := seen.count("hello") + seen.count("redis.dial")
		switch client := c.UniversalClient.(type) {
		case *redial.Client:
			if !strings.Contains(t.Name(), "clone") {
				assert.Same(t, client.Client, rdb)
			}
			require.NoError(t, client.Ping(t.Context()).Err())
			assert.Positive(t, seen.count("redis.dial"), "as with go-redis")
			assert.Positive(t, seen.count("hello"), "as with go-redis")
		case *redis.Client:
			if !strings.Contains(t.Name(), "clone") {
				assert.Same(t, client, rdb)
			}
		default:
			require.NoError(t, client.Ping(t.Context()).Err())
			assert.Zero(t, setups, "go-redis calls the hooks of the nodes")
			want := "127.0.0.1:1"
			if strings.Contains(t.Name(), "Failover") {
				want = "m"
			}
			assert.Equal(t, want, rdb.Options().Addr)
			assert.EqualError(t, rdb.Ping(t.Context()).Err(), "redial: the client that WithInstrument is given for several nodes has no connections")
			assert.Zero(t, rdb.PoolStats().TotalConns)
			_, err := redial.Supervise(rdb)
			assert.EqualError(t, err, "redial: the client is under supervision already")
			require.NoError(t, c.close())
			assert.ErrorIs(t, rdb.Ping(t.Context()).Err(), redis.ErrClosed)
		}
	})
}

// An instrument that fails is an error of the constructor, and leaves nothing: the
// bubble would not end.
func TestOuter_InstrumentFails(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		t.Run(name, func(t *testing.T) {
			for want, with := range map[string]redial.Option{
				"redial: WithInstrument: test":        redial.WithInstrument(func(redis.UniversalClient) error { return errTest }),
				"redial: WithInstrument panics: test": redial.WithInstrument(func(redis.UniversalClient) error { panic(errTest) }),
				"redial: WithInstrument panics: 7":    redial.WithInstrument(func(redis.UniversalClient) error { panic(7) }),
				"redial: WithOuterHook panics: test":  redial.WithOuterHook(bursting{}),
			} {
				memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
					memnet.Inject(n)
					opt.MinIdleConns = 3
					err := errors.New("none")
					if strings.HasPrefix(name, "supervised") {
						err = superviseOf(name, opt, with)
					} else {
						func() {
							defer func() { err = recover().(error) }()
							_ = kinds[name](t, opt, redial.WithOuterHook(passing{}), with).close()
						}()
					}
					assert.EqualError(t, err, want)
					assert.Equal(t, !strings.HasSuffix(want, "7"), errors.Is(err, errTest))
				})
			}
		})
	}
	memnet.Bubble(t, func(t *testing.T, _ *memnet.Net, opt *redis.Options) {
		c, err := redial.Connect(t.Context(), opt, redial.WithInstrument(func(redis.UniversalClient) error { return errTest }))
		assert.Nil(t, c)
		assert.ErrorIs(t, err, errTest)
	})
}

// superviseOf puts a client of a kind under supervision, and returns the error.
func superviseOf(name string, opt *redis.Options, with ...redial.Option) error {
	var rdb redis.UniversalClient
	switch {
	case strings.HasSuffix(name, "ClusterClient"):
		rdb = redis.NewClusterClient(clusterOptions(opt))
	case strings.HasSuffix(name, "Ring"):
		rdb = redis.NewRing(ringOptions(opt))
	default:
		own := *opt
		own.Dialer, own.MinIdleConns = nil, 0
		rdb = redis.NewClient(&own)
	}
	defer rdb.Close()
	_, err := redial.Supervise(rdb, with...)
	return err
}

// bursting is a hook that cannot be added.
type bursting struct{ passing }

func (bursting) ProcessHook(redis.ProcessHook) redis.ProcessHook { panic(errTest) }

// What is known of the commands that fail is the same with outer hooks and without.
func TestOuter_OutcomesAreAsExact(t *testing.T) {
	fate := func(err error) string {
		for _, kind := range []error{redial.ErrUnavailable, redial.ErrOutcomeUnknown, redial.ErrClosed} {
			if errors.Is(err, kind) {
				err = kind
				break
			}
		}
		return fmt.Sprintf("%v, safe to retry: %v", err, redial.SafeToRetry(err))
	}
	run := func(t *testing.T, name, cmd string, do func(*server.Peer), with ...redial.Option) (fates []string) {
		memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
			faults := memnet.Inject(n)
			c := kinds[name](t, opt, with...)
			defer c.close()
			ctx := t.Context()
			require.NoError(t, c.WaitReady(ctx))
			synctest.Wait()
			for send := range 4 {
				faults.Times(cmd, 1, do)
				var cmds []redis.Cmder
				var err error
				switch send {
				case 0:
					err = c.Get(ctx, "k").Err()
				case 1:
					err = c.Incr(ctx, "n").Err()
				case 2:
					cmds, err = c.Pipelined(ctx, func(p redis.Pipeliner) error {
						p.Set(ctx, "l", 1, 0)
						p.Incr(ctx, "n")
						p.Get(ctx, "k")
						p.Set(ctx, "m", 1, 0)
						return nil
					})
				case 3:
					cmds, err = c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
				}
				fates = append(fates, fate(err))
				for _, cmd := range cmds {
					fates = append(fates, fate(cmd.Err()))
				}
				faults.Times(cmd, 0, nil)
				time.Sleep(time.Second)
				synctest.Wait()
			}
		})
		return fates
	}
	for _, name := range []string{"Client", "clone", "ClusterClient", "Ring"} {
		for fault, do := range map[string]func(*server.Peer){
			"lost": memnet.HangUp, "garbled": func(p *server.Peer) { p.WriteRaw("?what\r\n") }, "refused": memnet.Reply("ERR no"), "not master": memnet.Reply("READONLY no"),
		} {
			for _, cmd := range []string{"get", "incr", "exec"} {
				t.Run(fmt.Sprint(name, "/", fault, "/", cmd), func(t *testing.T) {
					seen := &instrument{}
					want := run(t, name, cmd, do)
					got := run(t, name, cmd, do, redial.WithOuterHook(passing{}), redial.WithOuterHook(tracer{seen}), redial.WithInstrument(seen.install))
					assert.Equal(t, want, got)
					assert.NotEmpty(t, seen.take())
				})
			}
		}
	}
}

// A hook of an instrument that panics when hooks are put together does so with the
// caller, and harms nothing else.
func TestOuter_HookPanicsLater(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		memnet.Inject(n)
		h := &fuse{}
		c := ready(t, opt, redial.WithInstrument(func(rdb redis.UniversalClient) error { rdb.AddHook(h); return nil }))
		h.burst = true
		assert.PanicsWithValue(t, errTest, func() { c.WithTimeout(time.Second) })
		h.burst = false
		require.NoError(t, c.WithTimeout(time.Second).Set(t.Context(), "k", "v", 0).Err())
	})
}

type fuse struct {
	passing
	burst bool
}

func (f *fuse) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	if f.burst {
		panic(errTest)
	}
	return next
}

// Clones, connections and transactions are made at the same time, and what is sent with
// each goes where it should, by way of the hooks.
func TestOuter_AtTheSameTime(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		memnet.Inject(n)
		seen := &instrument{}
		c := ready(t, opt, redial.WithInstrument(seen.install), redial.WithOuterHook(passing{}))
		ctx := t.Context()
		const each, rounds = 4, 25
		var wg sync.WaitGroup
		for i := range each {
			for _, f := range []func(key string) error{
				func(key string) error { return c.WithTimeout(time.Minute).Incr(ctx, key).Err() },
				func(key string) error {
					_, err := c.WithTimeout(time.Minute).WithTimeout(time.Hour).Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, key); return nil })
					return err
				},
				func(key string) error {
					cn := c.Conn()
					defer cn.Close()
					return cn.Incr(ctx, key).Err()
				},
				func(key string) error {
					return c.Watch(ctx, func(tx *redis.Tx) error { return tx.Incr(ctx, key).Err() })
				},
			} {
				wg.Go(func() {
					for range rounds {
						assert.NoError(t, f(fmt.Sprint("n", i)))
					}
				})
			}
		}
		wg.Wait()
		for i := range each {
			assert.Equal(t, fmt.Sprint(4*rounds), c.Get(ctx, fmt.Sprint("n", i)).Val())
		}
		assert.Equal(t, 3*each*rounds, seen.count("incr"))
		assert.Equal(t, each*rounds, seen.count("pipeline incr"))
	})
}

// go-redis puts the hooks together for each command of an auto-pipeline.
func TestOuter_AutoPipeline(t *testing.T) {
	// Not in a bubble: go-redis's auto-pipelines share timers.
	f := redialtest.NewFakeServer(t)
	slots := func(context.Context) ([]redis.ClusterSlot, error) {
		return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: f.Addr()}}}}, nil
	}
	seen := &instrument{}
	one := redial.NewClient(&redis.Options{Addr: f.Addr()}, redial.WithInstrument(seen.install))
	defer one.Close()
	several := redial.NewClusterClient(&redis.ClusterOptions{ClusterSlots: slots}, redial.WithInstrument(seen.install))
	defer several.Close()
	for name, c := range map[string]interface {
		AutoPipeline() (*redis.AutoPipeliner, error)
		AsyncAutoPipeline() (*redis.AutoPipeliner, error)
		WaitReady(context.Context) error
	}{"Client": one, "clone": one.WithTimeout(time.Second), "ClusterClient": several} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, c.WaitReady(t.Context()))
			ap, err := c.AutoPipeline()
			require.NoError(t, err)
			async, err := c.AsyncAutoPipeline()
			require.NoError(t, err)
			seen.take()
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() { assert.NoError(t, ap.Incr(t.Context(), name).Err()) })
				wg.Go(func() { assert.NoError(t, async.Incr(t.Context(), name).Err()) })
			}
			wg.Wait()
			n := 0
			for _, s := range seen.take() {
				assert.NoError(t, s.err)
				n += strings.Count(s.name, "incr")
			}
			assert.Equal(t, 100, n)
		})
	}
}
