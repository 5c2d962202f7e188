package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialtest"
)

// What breaks a connection may hold anything: the dialer of the caller, or what stands
// between it and the network, may use a client of its own. What that client says of its
// commands says nothing of ours.

// fallenConn fails to read with an error of its own once its peer is gone.
type fallenConn struct {
	net.Conn
	cause error
}

func (c fallenConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	var passing net.Error
	if err != nil && !(errors.As(err, &passing) && passing.Timeout()) && !errors.Is(err, net.ErrClosed) {
		err = c.cause
	}
	return n, err
}

// falling is a dialer whose connections are such ones.
func falling(cause error) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return fallenConn{nc, cause}, nil
	}
}

// ofAnother returns errors that clients other than ours may give, by what they say.
func ofAnother(t *testing.T) map[string]error {
	t.Helper()
	none := redialtest.NewProxy(t, "127.0.0.1:1")
	none.Refuse()
	other := redial.NewClient(&redis.Options{Addr: none.Addr()})
	unavailable := other.Incr(redial.FailFast(t.Context()), "n").Err()
	require.ErrorIs(t, unavailable, redial.ErrUnavailable)
	require.NoError(t, other.Close())
	closed := other.Incr(t.Context(), "n").Err()
	require.ErrorIs(t, closed, redis.ErrClosed)
	wrapped := func(err error) error { return &net.OpError{Op: "read", Net: "tunnel", Err: err} }
	return map[string]error{
		"unavailable": wrapped(unavailable),
		"joined":      errors.Join(errors.New("tunnel"), unavailable),
		"closed":      wrapped(closed),
		"closed here": wrapped(redial.ErrClosed),
		"no conn":     wrapped(redis.ErrPoolTimeout),
		"tx failed":   wrapped(redis.TxFailedErr),
		"nil":         wrapped(redis.Nil),
		"refused":     wrapped(redis.NewCmdResult(nil, aReply("LOADING Redis is loading the dataset in memory")).Err()),
		"no nodes":    errors.New("redis: cluster has no nodes"),
		"held":        errors.New("redis: Conn is in a bad state: EOF"),
		"rejected":    errors.New("redis: client: subscribe is not supported when client-side caching is enabled"),
		"garbled":     errors.New("redis: can't parse reply"),
	}
}

type aReply string

func (r aReply) Error() string { return string(r) }
func (aReply) RedisError()     {}

// hearing is a hook that asks redial about the errors that it sees, and passes them on as
// it likes.
type hearing struct {
	passHook
	t    *testing.T
	pass func(error) error
}

func (h hearing) heard(err error, cmds ...redis.Cmder) error {
	if err == nil || !slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return cmd.Name() == "incr" }) {
		return err // of what sets up a connection
	}
	assert.False(h.t, redial.SafeToRetry(err), "a hook hears %v", err)
	return h.pass(err)
}

func (h hearing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return h.heard(next(ctx, cmd), cmd) }
}

func (h hearing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { return h.heard(next(ctx, cmds), cmds...) }
}

// A reply is lost, and what the connection says of it are words of another client: the
// outcome is unknown, and the command runs once.
func TestOutcome_LostReply_CauseOfAnotherClient(t *testing.T) {
	t.Parallel()
	falls := func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if name := strings.ToLower(args[0]); name == "exec" || name == "incr" && args[1] != "{n}tx" {
			return redialtest.ExecuteThenClose
		}
		return redialtest.Handle
	}
	causes := ofAnother(t)
	asIs := func(err error) error { return err }
	hooks := map[string]func(another error) func(error) error{
		"without hooks": nil,
		"through a hook": func(error) func(error) error {
			return asIs
		},
		"through a hook that joins it with words of another client": func(another error) func(error) error {
			return func(err error) error { return fmt.Errorf("%w, and then %w", another, err) }
		},
	}
	type client struct {
		redial.UniversalClient
		f       *redialtest.FakeServer
		retries *retryLog
		behind  func(redis.Hook) // adds a hook behind our back; nil: there is no way
		atNodes func(redis.Hook)
	}
	kinds := map[string]func(t *testing.T, cause error) client{
		"client": func(t *testing.T, cause error) client {
			f := redialtest.NewFakeServer(t)
			f.OnCommand(falls)
			retries := new(retryLog)
			c := redial.NewClient(&redis.Options{Addr: f.Addr(), Dialer: falling(cause)}, redial.WithObserver(retries))
			return client{c, f, retries, c.Client.AddHook, nil}
		},
		"cluster": func(t *testing.T, cause error) client {
			nodes, addrs := fakeCluster(t, 1, func(int) fakeHook { return falls })
			retries := new(retryLog)
			c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, Dialer: falling(cause)}, redial.WithObserver(retries))
			return client{c, nodes[0], retries, c.ClusterClient.AddHook, func(h redis.Hook) {
				c.OnNewNode(func(node *redis.Client) { node.AddHook(h) })
			}}
		},
	}
	works := map[string]func(ctx context.Context, c redial.UniversalClient) ([]redis.Cmder, error){
		"command": func(ctx context.Context, c redial.UniversalClient) ([]redis.Cmder, error) {
			cmd := c.Incr(ctx, "{n}")
			return []redis.Cmder{cmd}, cmd.Err()
		},
		"pipeline": func(ctx context.Context, c redial.UniversalClient) ([]redis.Cmder, error) {
			cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "{n}"); return nil })
			return cmds, err
		},
		"transaction": func(ctx context.Context, c redial.UniversalClient) ([]redis.Cmder, error) {
			cmds, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "{n}tx"); return nil })
			return cmds, err
		},
	}
	for kind, build := range kinds {
		for said, cause := range causes {
			for how, pass := range hooks {
				for _, where := range []string{"", "behind", "at nodes"} {
					if pass == nil && where != "" || where == "at nodes" && kind == "client" {
						continue
					}
					t.Run(fmt.Sprint(kind, "/", said, "/", how, " ", where), func(t *testing.T) {
						t.Parallel()
						c := build(t, cause)
						defer c.Close()
						testkit.WaitReady(t, c.UniversalClient.(interface{ WaitReady(context.Context) error }))
						if pass != nil {
							add := c.AddHook
							switch where {
							case "behind":
								add = c.behind
							case "at nodes":
								add = c.atNodes
							}
							add(hearing{t: t, pass: pass(causes["unavailable"])})
						}
						ran := 0
						for what, do := range works {
							ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
							cmds, err := do(ctx, c)
							cancel()
							ran++
							assert.Equal(t, ran, c.f.Executed("incr"), what)
							assert.False(t, redial.SafeToRetry(err), "%s: %v", what, err)
							for _, err := range append([]error{err}, errorsOf(cmds)...) {
								assert.False(t, redial.SafeToRetry(err), "%s: %v", what, err)
								if where == "behind" && how != "through a hook" {
									continue // the last word is that of a hook that nobody knows
								}
								assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, what)
								assert.NotErrorIs(t, err, redial.ErrUnavailable, what)
								assert.NotErrorIs(t, err, redial.ErrClosed, what)
							}
						}
						s := c.Stats()
						assert.Zero(t, s.Refused, "commands that did not run")
						assert.Zero(t, s.RetriesUnsent+s.RetriesRefused, "tries of what did not run: %v; %+v", c.retries, s)
					})
				}
			}
		}
	}
}

// retryLog remembers the retries that it is told of.
type retryLog struct {
	mu   sync.Mutex
	told []redial.Retry
}

func (l *retryLog) ObserveRetry(_ context.Context, r redial.Retry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, r)
}

func (l *retryLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%+v", l.told)
}

func errorsOf(cmds []redis.Cmder) []error {
	return slices.Collect(func(yield func(error) bool) {
		for _, cmd := range cmds {
			if !yield(cmd.Err()) {
				return
			}
		}
	})
}

// saying is a hook that says something of its own of commands on "n", after they have run
// or instead.
type saying struct {
	passHook
	word          error
	instead, sets bool // sets: on commands as well
}

func (h saying) said(cmds []redis.Cmder, next func() error) error {
	if !slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return cmd.Name() == "incr" }) {
		return next()
	}
	if !h.instead {
		_ = next()
	}
	if h.sets {
		for _, cmd := range cmds {
			cmd.SetErr(h.word)
		}
	}
	return h.word
}

func (h saying) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return h.said([]redis.Cmder{cmd}, func() error { return next(ctx, cmd) })
	}
}

func (h saying) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		return h.said(cmds, func() error { return next(ctx, cmds) })
	}
}

// A hook on a node fails commands with an Error, of a command that it has sent itself. It
// is the hook's word, and what becomes of it is what becomes of any other: what go-redis
// makes of it.
func TestOutcome_HookOfANode_SaysAnError(t *testing.T) {
	t.Parallel()
	for name, word := range ofAnother(t) {
		var e *redial.Error
		if !errors.As(word, &e) {
			continue
		}
		for said, word := range map[string]error{"itself": e, "wrapped": word} {
			for _, hook := range []saying{{}, {sets: true}, {instead: true}, {instead: true, sets: true}} {
				for _, behind := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, %s/%+v/behind %v", name, said, []bool{hook.instead, hook.sets}, behind), func(t *testing.T) {
						t.Parallel()
						hook := hook
						hook.word = word
						run := func(newClient func(opt *redis.ClusterOptions) redis.UniversalClient, onNewNode func(redis.UniversalClient, func(*redis.Client))) (seen []string) {
							nodes, addrs := fakeCluster(t, 1, nil)
							c := newClient(&redis.ClusterOptions{Addrs: addrs})
							defer c.Close()
							onNewNode(c, func(node *redis.Client) { node.AddHook(hook) })
							see := func(what string, err error, cmds ...redis.Cmder) {
								seen = append(seen, fmt.Sprint(what, ": ", sameAs(err, word), ", ran ", nodes[0].Executed("incr")))
								for _, cmd := range cmds {
									seen = append(seen, fmt.Sprint(what, ", command: ", sameAs(cmd.Err(), word)))
								}
							}
							ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
							defer cancel()
							incr := func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil }
							cmd := c.Incr(ctx, "n")
							see("command", cmd.Err(), cmd)
							cmds, err := c.Pipelined(ctx, incr)
							see("pipeline", err, cmds...)
							cmds, err = c.TxPipelined(ctx, incr)
							see("transaction", err, cmds...)
							return seen
						}
						bare := run(func(opt *redis.ClusterOptions) redis.UniversalClient { return redis.NewClusterClient(opt) },
							func(c redis.UniversalClient, f func(*redis.Client)) { c.(*redis.ClusterClient).OnNewNode(f) })
						ours := run(func(opt *redis.ClusterOptions) redis.UniversalClient { return redial.NewClusterClient(opt) },
							func(c redis.UniversalClient, f func(*redis.Client)) {
								if behind {
									c.(*redial.ClusterClient).ClusterClient.OnNewNode(f)
								} else {
									c.(*redial.ClusterClient).OnNewNode(f)
								}
							})
						assert.Equal(t, bare, ours)
					})
				}
			}
		}
	}
}

// sameAs says whether err is word itself, or what it is.
func sameAs(err, word error) string {
	if err == word {
		return "the word"
	}
	return fmt.Sprint(err)
}
