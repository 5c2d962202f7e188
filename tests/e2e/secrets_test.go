package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialhttp"
	"github.com/redial-go/redial/redialtest"
)

// Passwords, keys and arguments of these tests have a mark, and whatever redial says by
// itself is looked through for it. Replies of the server are the server's words.
const (
	mark         = "xyzzy"
	markPassword = mark + "-password"
	markKey      = mark + "-key"
	markArgument = mark + "-argument"
)

// said collects what redial says.
type said struct {
	mu    sync.Mutex
	texts []string
	log   bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *said) options() []redial.Option {
	return []redial.Option{
		redial.WithLogger(slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{Level: slog.LevelDebug}))),
		redial.WithOnStateChange(func(e redial.Event) { s.hear(fmt.Sprintf("%+v %v", e, e.Err)) }),
	}
}

func (s *said) hear(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts = append(s.texts, text)
}

// failed takes down the errors of what had to fail.
func (s *said) failed(t *testing.T, what string, err error, cmds ...redis.Cmder) {
	t.Helper()
	if !assert.Error(t, err, what) {
		return
	}
	for _, err := range append([]error{err}, errorsOf(cmds)...) {
		s.hear(fmt.Sprintf("%s: %v %+v %#v", what, err, err, err))
	}
}

// check looks for the mark.
func (s *said) check(t *testing.T, stats ...redial.Stats) {
	t.Helper()
	for _, stat := range stats {
		text, err := json.Marshal(stat)
		require.NoError(t, err)
		s.hear(fmt.Sprintf("%s %+v", text, stat))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	require.NotEmpty(t, s.log.String())
	for _, text := range append(s.texts, s.log.String()) {
		assert.NotContains(t, strings.ToLower(text), mark)
	}
}

func TestSecrets_Client(t *testing.T) {
	t.Parallel()
	server := redialtest.StartServer(t, "--requirepass", markPassword)
	p := redialtest.NewProxy(t, server.Addr())
	var s said
	c := testkit.Connect(t, &redis.Options{Addr: p.Addr(), Password: markPassword, PoolSize: 1, PoolTimeout: 50 * time.Millisecond}, s.options()...)
	ctx := t.Context()
	two := func(p redis.Pipeliner) error {
		p.Append(ctx, markKey, markArgument)
		p.Get(ctx, markKey)
		return nil
	}
	require.NoError(t, c.Set(ctx, markKey, markArgument, 0).Err())
	p.Match("append")
	p.CutAfterRequest(1)
	s.failed(t, "reply lost", c.Append(ctx, markKey, markArgument).Err())
	p.CutAfterRequest(1)
	cmds, err := c.Pipelined(ctx, two)
	s.failed(t, "reply lost, pipeline", err, cmds...)
	p.CutAfterRequest(1)
	cmds, err = c.TxPipelined(ctx, two)
	s.failed(t, "reply lost, transaction", err, cmds...)
	p.Match("echo")
	p.Garbage(2)
	s.failed(t, "garbage", c.Echo(redial.NoRetry(ctx), markArgument).Err())
	p.Garbage(0)
	_ = c.Do(ctx, "nonesuch", markKey, markArgument).Err() // the server quotes it
	_ = c.LPush(ctx, markKey, markArgument).Err()          // the wrong type
	held := c.Conn()
	require.NoError(t, held.Ping(ctx).Err())
	s.failed(t, "pool exhausted", c.Set(ctx, markKey, markArgument, 0).Err())
	require.NoError(t, held.Close())
	p.Refuse()
	testkit.AwaitState(t, c, redial.StateReconnecting, 5*time.Second)
	s.failed(t, "failing fast", c.Set(redial.FailFast(ctx), markKey, markArgument, 0).Err())
	cmds, err = c.Pipelined(redial.FailFast(ctx), two)
	s.failed(t, "failing fast, pipeline", err, cmds...)
	soon, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	s.failed(t, "deadline", c.Eval(soon, "return ARGV[1]", []string{markKey}, markArgument).Err())
	s.failed(t, "watch", c.Watch(redial.FailFast(ctx), func(*redis.Tx) error { return nil }, markKey))
	sub := c.Subscribe(ctx, mark+"-channel")
	_, err = sub.ReceiveTimeout(ctx, 50*time.Millisecond)
	s.failed(t, "subscription", err)
	require.NoError(t, sub.Close())
	p.Restore()
	require.NoError(t, c.Ping(ctx).Err())
	stats := c.Stats()
	require.NoError(t, c.Close())
	s.failed(t, "closed", c.Set(ctx, markKey, markArgument, 0).Err())
	s.check(t, stats, c.Stats())
}

// Who puts a URL where the address belongs is not shown its password.
func TestSecrets_AddressIsAURL(t *testing.T) {
	t.Parallel()
	url := "redis://user:" + markPassword + "@127.0.0.1:6379/0"
	var s said
	with := append(s.options(), redial.WithGrace(200*time.Millisecond))
	var stats []redial.Stats
	for name, c := range map[string]redial.UniversalClient{
		"no scheme": redial.NewClient(&redis.Options{Addr: strings.TrimPrefix(url, "redis://")}, with...),
		"no port":   redial.NewClient(&redis.Options{Addr: "user:" + markPassword + "@127.0.0.1"}, with...),
		"client":    redial.NewClient(&redis.Options{Addr: url}, with...),
		"cluster":   redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{url}}, with...),
		"sentinel":  redial.NewFailoverClient(&redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{url}}, with...),
		"ring":      redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"shard": url}, HeartbeatFrequency: time.Minute}, with...),
		"no user":   redial.NewClient(&redis.Options{Addr: markPassword + "@localhost:6379"}, with...),
	} {
		err := c.Get(t.Context(), "k").Err()
		s.failed(t, name, err)
		words := map[string]string{
			"no port": "xxxxx@127.0.0.1: unknown port", "no user": "lookup xxxxx@localhost: no such host",
		}
		assert.ErrorContains(t, err, cmp.Or(words[name], "xxxxx@127.0.0.1:6379/0: too many colons in address"), name)
		stats = append(stats, c.Stats())
		require.NoError(t, c.Close())
	}
	for name, c := range map[string]redis.UniversalClient{
		"supervised client":  redis.NewClient(&redis.Options{Addr: url}),
		"supervised cluster": redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{url}}),
		"supervised ring":    redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"shard": url}}),
	} {
		over, err := redial.Supervise(c, with...)
		require.NoError(t, err)
		s.failed(t, name, c.Get(t.Context(), "k").Err())
		s.failed(t, name+", Check", over.Check(t.Context()))
		stats = append(stats, over.Stats())
		require.NoError(t, c.Close())
		require.NoError(t, over.Close())
	}
	s.check(t, stats...)
}

func TestSecrets_WrongPassword(t *testing.T) {
	t.Parallel()
	server := redialtest.StartServer(t, "--requirepass", "another")
	var s said
	opt := &redis.Options{Addr: server.Addr(), Username: mark + "-user", Password: markPassword}
	_, err := redial.Connect(t.Context(), opt, s.options()...)
	s.failed(t, "Connect", err)
	c := redial.NewClient(opt, s.options()...)
	defer c.Close()
	s.failed(t, "wrong password", c.Set(t.Context(), markKey, markArgument, 0).Err())
	s.check(t, c.Stats())
}

func TestSecrets_Cluster(t *testing.T) {
	t.Parallel()
	nodes, addrs := fakeCluster(t, 2, nil)
	var s said
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs}, s.options()...)
	defer c.Close()
	testkit.WaitReady(t, c)
	require.NoError(t, c.Set(t.Context(), markKey, markArgument, 0).Err())
	for _, node := range nodes {
		node.Kill()
	}
	err := eventually(t, func() error { return c.Set(redial.FailFast(t.Context()), markKey, markArgument, 0).Err() }, func(err error) bool { return err != nil })
	s.failed(t, "no node", err)
	cmds, err := c.Pipelined(redial.FailFast(t.Context()), func(p redis.Pipeliner) error {
		p.Set(t.Context(), markKey, markArgument, 0)
		p.Set(t.Context(), mark+"-other", markArgument, 0)
		return nil
	})
	s.failed(t, "pipeline", err, cmds...)
	require.NoError(t, c.WaitForState(t.Context(), redial.StateReconnecting))
	s.check(t, c.Stats())
}

// observed takes down what observers are told.
type observed struct{ *said }

func (o observed) ObserveState(e redial.Event) { o.hear(fmt.Sprintf("%+v", e)) }
func (o observed) ObserveWait(_ context.Context, w redial.Wait) {
	o.hear(fmt.Sprintf("%+v %v", w, w.Err))
}
func (o observed) ObserveRetry(_ context.Context, r redial.Retry) {
	o.hear(fmt.Sprintf("%+v %v", r, r.Err))
}
func (o observed) ObserveFailure(_ context.Context, e *redial.Error) { o.hear(fmt.Sprintf("%+v", e)) }

// streamed is a StreamingCredentialsProvider.
type streamed struct{ auth.Credentials }

func (s streamed) Subscribe(auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	return s.Credentials, func() error { return nil }, nil
}

// Whichever way credentials are given, nothing that is written, shown or returned has them,
// nor a key or an argument: through an outage, and while the server takes them no more.
func TestSecrets_EveryWay(t *testing.T) {
	t.Parallel()
	const user = mark + "-user"
	credentials := auth.NewBasicCredentials(user, markPassword)
	type client interface {
		redialhttp.Source
		Check(context.Context) error
		WaitReady(context.Context) error
		Close() error
	}
	one := func(set func(*redis.Options)) func(*redialtest.Failover, ...redial.Option) (redis.UniversalClient, client) {
		return func(f *redialtest.Failover, opts ...redial.Option) (redis.UniversalClient, client) {
			opt := &redis.Options{Addr: f.Servers[0].Addr()}
			set(opt)
			c := redial.NewClient(opt, opts...)
			return c, c
		}
	}
	password := func(o *redis.Options) { o.Username, o.Password = user, markPassword }
	failover := func(f *redialtest.Failover) *redis.FailoverOptions {
		return &redis.FailoverOptions{
			MasterName: f.Name, SentinelAddrs: f.SentinelAddrs(), Username: user, Password: markPassword,
			SentinelUsername: user, SentinelPassword: mark + "-sentinel",
		}
	}
	supervise := func(c redis.UniversalClient, opts ...redial.Option) (redis.UniversalClient, client) {
		s, err := redial.Supervise(c, opts...)
		require.NoError(t, err)
		return c, s
	}
	for name, build := range map[string]func(*redialtest.Failover, ...redial.Option) (redis.UniversalClient, client){
		"password": one(password),
		"provider": one(func(o *redis.Options) { o.CredentialsProvider = func() (string, string) { return user, markPassword } }),
		"context": one(func(o *redis.Options) {
			o.CredentialsProviderContext = func(context.Context) (string, string, error) { return user, markPassword, nil }
		}),
		"streaming": one(func(o *redis.Options) { o.StreamingCredentialsProvider = streamed{credentials} }),
		"url": func(f *redialtest.Failover, opts ...redial.Option) (redis.UniversalClient, client) {
			opt, err := redis.ParseURL("redis://" + user + ":" + markPassword + "@" + f.Servers[0].Addr() + "/0")
			require.NoError(t, err)
			c := redial.NewClient(opt, opts...)
			return c, c
		},
		"failover": func(f *redialtest.Failover, opts ...redial.Option) (redis.UniversalClient, client) {
			c := redial.NewFailoverClient(failover(f), opts...)
			return c, c
		},
		"failover cluster": func(f *redialtest.Failover, opts ...redial.Option) (redis.UniversalClient, client) {
			c := redial.NewFailoverClusterClient(failover(f), opts...)
			return c, c
		},
		"cluster": func(f *redialtest.Failover, opts ...redial.Option) (redis.UniversalClient, client) {
			slots := []redis.ClusterSlot{{End: 16383, Nodes: []redis.ClusterNode{{Addr: f.Servers[0].Addr()}}}}
			c := redial.NewClusterClient(&redis.ClusterOptions{
				Username: user, Password: markPassword, ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) { return slots, nil },
			}, opts...)
			return c, c
		},
		"ring": func(f *redialtest.Failover, opts ...redial.Option) (redis.UniversalClient, client) {
			c := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"shard": f.Servers[0].Addr()}, Username: user, Password: markPassword}, opts...)
			return c, c
		},
		"supervised": func(f *redialtest.Failover, opts ...redial.Option) (redis.UniversalClient, client) {
			opt := &redis.Options{Addr: f.Servers[0].Addr()}
			password(opt)
			return supervise(redis.NewClient(opt), opts...)
		},
		"supervised failover": func(f *redialtest.Failover, opts ...redial.Option) (redis.UniversalClient, client) {
			return supervise(redis.NewFailoverClient(failover(f)), opts...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := redialtest.StartFailover(t, 0, 1, "--user", user, "on", ">"+markPassword, "~*", "&*", "+@all")
			ctx := t.Context()
			for addr, args := range map[string][]any{
				f.SentinelAddrs()[0]: {"acl", "setuser", user, "on", ">" + mark + "-sentinel", "+@all"},
				f.Servers[0].Addr():  {"ping"},
			} {
				admin := redis.NewClient(&redis.Options{Addr: addr})
				require.NoError(t, admin.Do(ctx, args...).Err())
				require.NoError(t, admin.Close())
			}
			var s said
			use, c := build(f, append(s.options(), redial.WithObserver(observed{&s}), redial.WithGrace(300*time.Millisecond))...)
			defer use.Close()
			defer c.Close()
			look := func() {
				t.Helper()
				s.hear(fmt.Sprintf("%v %+v %#v %v %+v %#v %v", use, use, use, c, c, c, c.Check(ctx)))
				for _, h := range []http.Handler{redialhttp.Page(c), redialhttp.Handler(c)} {
					w := httptest.NewRecorder()
					h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
					s.hear(w.Body.String())
				}
				text, err := json.Marshal(c.Outages())
				require.NoError(t, err)
				s.hear(string(text))
			}
			fails := func(what string) {
				t.Helper()
				s.failed(t, what, eventually(t, func() error { return use.Append(ctx, markKey, markArgument).Err() }, func(err error) bool { return err != nil }))
				cmds, err := use.Pipelined(redial.FailFast(ctx), func(p redis.Pipeliner) error {
					p.Append(ctx, markKey, markArgument)
					return nil
				})
				s.failed(t, what+", pipeline", err, cmds...)
				look()
			}
			require.NoError(t, c.WaitReady(ctx))
			require.NoError(t, use.Set(ctx, markKey, markArgument, 0).Err())
			look()
			f.Servers[0].Kill()
			fails("outage")
			f.Servers[0].Start()
			eventually(t, func() error { return use.Ping(ctx).Err() }, func(err error) bool { return err == nil })
			look()
			admin := redis.NewClient(&redis.Options{Addr: f.Servers[0].Addr()})
			defer admin.Close()
			require.NoError(t, admin.Do(ctx, "acl", "setuser", user, "resetpass").Err())
			require.NoError(t, admin.Do(ctx, "client", "kill", "user", user).Err())
			fails("another password")
			require.NoError(t, c.Close())
			s.failed(t, "closed", use.Append(ctx, markKey, markArgument).Err())
			s.check(t, c.Stats())
		})
	}
}
