package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialtest"
)

// Passwords that are tokens, and expire. The server does what managed ones do then: it
// refuses the old token, and ends every connection that was set up with it.

// vault makes tokens for the account of a server, and hands them out.
type vault struct {
	server *redialtest.Server

	mu      sync.Mutex
	serial  int
	asked   int
	answers func(ctx context.Context) (token string, err error) // nil: the newest token
	heard   map[auth.CredentialsListener]bool
}

const account = "app"

var errVault = errors.New("vault: no token today")

func newVault(t *testing.T) *vault {
	t.Helper()
	return newVaultOf(redialtest.StartServer(t))
}

func newVaultOf(server *redialtest.Server) *vault {
	v := &vault{server: server, heard: make(map[auth.CredentialsListener]bool)}
	v.server.Do("ACL", "SETUSER", account, "on", "~*", "&*", "+@all")
	v.expire()
	return v
}

// expire makes a new token, which the server accepts before anybody is given it. Then the
// old one is worth nothing any more, nor are connections.
func (v *vault) expire() {
	v.mu.Lock()
	token := fmt.Sprintf("token %d", v.serial+1)
	v.mu.Unlock()
	v.server.Do("ACL", "SETUSER", account, ">"+token)
	v.mu.Lock()
	v.serial++
	listeners := slices.Collect(maps.Keys(v.heard))
	v.mu.Unlock()
	v.server.Do("ACL", "SETUSER", account, "resetpass", ">"+token)
	v.server.Do("CLIENT", "KILL", "USER", account)
	for _, l := range listeners {
		l.OnNext(auth.NewBasicCredentials(account, token))
	}
}

func (v *vault) newestLocked() string { return fmt.Sprintf("token %d", v.serial) }

// newest returns the token that the server accepts.
func (v *vault) newest() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.newestLocked()
}

// says makes the vault answer something else from now on; nil: the newest token.
func (v *vault) says(answers func(ctx context.Context) (string, error)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.answers, v.asked = answers, 0
}

// times returns how often the vault was asked since it says what it does.
func (v *vault) times() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.asked
}

func (v *vault) listeners() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.heard)
}

// credentials is a CredentialsProviderContext.
func (v *vault) credentials(ctx context.Context) (string, string, error) {
	v.mu.Lock()
	v.asked++
	token, answers := v.newestLocked(), v.answers
	v.mu.Unlock()
	if answers == nil {
		return account, token, nil
	}
	token, err := answers(ctx)
	return account, token, err
}

// Subscribe makes the vault a StreamingCredentialsProvider.
func (v *vault) Subscribe(l auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	user, token, err := v.credentials(context.Background())
	if err != nil {
		return nil, nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.heard[l] = true
	return auth.NewBasicCredentials(user, token), func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.heard, l)
		return nil
	}, nil
}

// onVault runs f with the options of either shape of provider.
func onVault(t *testing.T, f func(t *testing.T, v *vault, opt *redis.Options)) {
	t.Parallel()
	for name, set := range map[string]func(*vault, *redis.Options){
		"asked":     func(v *vault, o *redis.Options) { o.CredentialsProviderContext = v.credentials },
		"streaming": func(v *vault, o *redis.Options) { o.StreamingCredentialsProvider = v },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVault(t)
			opt := &redis.Options{Addr: v.server.Addr()}
			set(v, opt)
			f(t, v, opt)
		})
	}
}

func TestCredentials_ExpireWhileConnected(t *testing.T) {
	onVault(t, func(t *testing.T, v *vault, opt *redis.Options) {
		c := testkit.Connect(t, opt)
		l := testkit.StartLoad(t, c, 4)
		for range 5 {
			v.expire()
			require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
			time.Sleep(300 * time.Millisecond) // no call outlives two tokens: the provider is asked for it once more
		}
		l.Stop()
		if err := l.Other.Load(); err != nil {
			t.Errorf("a call failed with %v", *err)
		}
		assert.Zero(t, l.Unavailable.Load())
		n, err := c.Get(t.Context(), testkit.Counter).Int64()
		require.NoError(t, err)
		assert.GreaterOrEqual(t, n, l.Acknowledged.Load())
		assert.LessOrEqual(t, n, l.Acknowledged.Load()+l.IncrUnknown.Load())
		assert.Zero(t, c.Stats().Outages, "the server has answered all the time")
		t.Logf("%d done, %d unknown, asked %d times", l.Done.Load(), l.Unknown.Load(), v.times())
	})
}

func TestCredentials_ExpireWhileReconnecting(t *testing.T) {
	onVault(t, func(t *testing.T, v *vault, opt *redis.Options) {
		p := redialtest.NewProxy(t, opt.Addr)
		opt.Addr = p.Addr()
		c := testkit.Connect(t, opt)
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		p.Refuse()
		testkit.AwaitState(t, c, redial.StateReconnecting, 3*time.Second)
		v.expire()
		v.says(nil)
		p.Restore()
		require.NoError(t, c.Set(t.Context(), "k", "w", 0).Err())
		assert.LessOrEqual(t, v.times(), 4, "it is not asked while there is no server")
		assert.EqualValues(t, 1, c.Stats().Outages)
	})
}

func TestCredentials_ExpireWhileSubscribed(t *testing.T) {
	onVault(t, func(t *testing.T, v *vault, opt *redis.Options) {
		c := testkit.Connect(t, opt)
		sub := c.Subscribe(t.Context(), "news")
		defer sub.Close()
		messages := sub.Channel()
		for i := range 3 {
			if i > 0 {
				v.expire()
			}
			hears(t, c, messages, fmt.Sprint("after token ", v.newest()))
		}
	})
}

// hears publishes a message until the subscription delivers it.
func hears(t *testing.T, c redial.UniversalClient, messages <-chan *redis.Message, text string) {
	t.Helper()
	again, late := time.NewTicker(50*time.Millisecond), time.After(10*time.Second)
	defer again.Stop()
	began := time.Now()
	for {
		select {
		case m := <-messages:
			if m.Payload == text {
				t.Logf("heard after %v", time.Since(began))
				return
			}
		case <-again.C:
			require.NoError(t, c.Publish(redial.Idempotent(t.Context()), "news", text).Err())
		case <-late:
			t.Fatal("the subscription is deaf")
		}
	}
}

// A provider that takes its time holds up what needs a new connection, for as long as it
// takes, and is not asked by everybody.
func TestCredentials_ProviderIsSlow(t *testing.T) {
	onVault(t, func(t *testing.T, v *vault, opt *redis.Options) {
		const slow = 1200 * time.Millisecond
		c := testkit.Connect(t, opt)
		v.says(func(ctx context.Context) (string, error) {
			select {
			case <-time.After(slow):
				return v.newest(), nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		})
		v.expire()
		began := time.Now()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { assert.NoError(t, c.Set(t.Context(), "k", "v", 0).Err()) })
		}
		wg.Wait()
		t.Logf("after %v, asked %d times", time.Since(began), v.times())
		assert.Less(t, time.Since(began), 3*slow)
	})
}

// A provider that fails for a while is an outage: commands wait for it, or fail with what
// it says.
func TestCredentials_ProviderFails(t *testing.T) {
	onVault(t, func(t *testing.T, v *vault, opt *redis.Options) {
		c := testkit.Connect(t, opt)
		v.says(func(context.Context) (string, error) { return "", errVault })
		v.expire()
		err := c.Incr(redial.FailFast(t.Context()), "n").Err()
		assert.ErrorIs(t, err, redial.ErrUnavailable)
		assert.ErrorIs(t, err, errVault)
		testkit.AwaitState(t, c, redial.StateReconnecting, 1500*time.Millisecond) // with the next heartbeat, after a second
		time.AfterFunc(time.Second, func() { v.says(nil) })
		began := time.Now()
		require.NoError(t, c.Incr(t.Context(), "n").Err())
		t.Logf("waited %v", time.Since(began))
		n, err := c.Get(t.Context(), "n").Int()
		require.NoError(t, err)
		assert.Equal(t, 1, n)
	})
}

// The same at a node of a cluster.
func TestCredentials_ProviderFails_Cluster(t *testing.T) {
	t.Parallel()
	_, addrs := fakeCluster(t, 1, nil)
	var fails atomic.Bool
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, CredentialsProviderContext: func(context.Context) (string, string, error) {
		if fails.Load() {
			return "", "", errVault
		}
		return "", "", nil
	}})
	defer c.Close()
	require.NoError(t, c.Incr(t.Context(), "n").Err())
	fails.Store(true)
	require.NoError(t, c.ForEachMaster(t.Context(), func(_ context.Context, node *redis.Client) error {
		held := node.Conn() // what the pool has, so that the next command needs a new one
		t.Cleanup(func() { _ = held.Close() })
		return held.Ping(t.Context()).Err()
	}))
	err := c.Incr(redial.FailFast(t.Context()), "n").Err()
	assert.ErrorIs(t, err, redial.ErrUnavailable)
	assert.ErrorIs(t, err, errVault)
	time.AfterFunc(300*time.Millisecond, func() { fails.Store(false) })
	require.NoError(t, c.Incr(t.Context(), "n").Err())
}

// eventually calls f until its error is as wanted, for a while.
func eventually(t *testing.T, f func() error, want func(error) bool) error {
	t.Helper()
	for late := time.Now().Add(10 * time.Second); time.Now().Before(late); time.Sleep(5 * time.Millisecond) {
		if err := f(); want(err) {
			return err
		}
	}
	t.Fatal("it does not come to that")
	return nil
}

// A provider that hangs holds up a command no longer than its context, of which the
// provider is told.
func TestCredentials_ProviderHangs(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	c := testkit.Connect(t, &redis.Options{Addr: v.server.Addr(), CredentialsProviderContext: v.credentials})
	v.says(func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() })
	v.expire()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := c.Set(ctx, "k", "v", 0).Err()
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.True(t, redial.SafeToRetry(err), "%v", err)
	assert.Less(t, time.Since(began), time.Second)
	v.says(nil)
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
}

// A provider that hands out the old token once more is asked again at once, and the
// command is sent again. While it goes on to, callers get the server's own word, and
// nothing has to be made anew afterwards.
func TestCredentials_ProviderIsStale(t *testing.T) {
	onVault(t, func(t *testing.T, v *vault, opt *redis.Options) {
		c := testkit.Connect(t, opt)
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		old := v.newest()
		once := make(chan struct{}, 1)
		once <- struct{}{}
		v.says(func(context.Context) (string, error) {
			select {
			case <-once:
				return old, nil
			default:
				return v.newest(), nil
			}
		})
		v.expire()
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err(), "stale once")
		assert.Empty(t, once, "it was asked")

		v.says(func(context.Context) (string, error) { return old, nil })
		v.expire()
		err := eventually(t, func() error { return c.Incr(t.Context(), "n").Err() }, func(err error) bool { return err != nil })
		assert.True(t, redis.IsAuthError(err), "%v", err)
		assert.True(t, redial.SafeToRetry(err))
		assert.Equal(t, redial.StateConnected, c.State(), "the server answers")
		v.says(nil)
		require.NoError(t, c.Incr(t.Context(), "n").Err())
	})
}

// What takes long for a connection of a cluster's keeps no client from knowing the topology:
// not the credentials, and not the caller's own words with the server.
func TestCredentials_ProviderIsSlow_Cluster(t *testing.T) {
	t.Parallel()
	for name, slow := range map[string]func(*redis.ClusterOptions, func()){
		"provider": func(o *redis.ClusterOptions, wait func()) {
			o.CredentialsProviderContext = func(context.Context) (string, string, error) { wait(); return "", "", nil }
		},
		"on connect": func(o *redis.ClusterOptions, wait func()) {
			o.OnConnect = func(context.Context, *redis.Conn) error { wait(); return nil }
		},
		"dialer": func(o *redis.ClusterOptions, wait func()) {
			o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				wait()
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
		},
	} {
		for side, build := range map[string]func(*redis.ClusterOptions) redis.UniversalClient{
			"bare": func(o *redis.ClusterOptions) redis.UniversalClient { return redis.NewClusterClient(o) },
			"ours": func(o *redis.ClusterOptions) redis.UniversalClient { return redial.NewClusterClient(o) },
			"supervised": func(o *redis.ClusterOptions) redis.UniversalClient {
				rdb := redis.NewClusterClient(o)
				_, err := redial.Supervise(rdb)
				require.NoError(t, err)
				return rdb
			},
		} {
			t.Run(name+"/"+side, func(t *testing.T) {
				t.Parallel()
				cluster := redialtest.StartCluster(t, 1, 0)
				opt := &redis.ClusterOptions{Addrs: cluster.Addrs()}
				slow(opt, func() { time.Sleep(1500 * time.Millisecond) })
				c := build(opt)
				defer c.Close()
				require.NoError(t, c.Incr(t.Context(), "n").Err())
				cluster.Nodes[0].Kill()
				cluster.Nodes[0].Start()
				cluster.Settle()
				require.NoError(t, eventually(t, func() error { return c.Incr(t.Context(), "n").Err() }, func(err error) bool { return err == nil }))
			})
		}
	}
}

// The same whatever is sent, to one server and at a node of a cluster.
func TestCredentials_ProviderIsStale_EveryCall(t *testing.T) {
	t.Parallel()
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		v := newVault(t)
		c := redial.NewClient(&redis.Options{Addr: v.server.Addr(), CredentialsProviderContext: v.credentials})
		defer c.Close()
		everyCallWithStale(t, v, c)
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		cluster := redialtest.StartCluster(t, 1, 0)
		v := newVaultOf(cluster.Nodes[0])
		c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs(), CredentialsProviderContext: v.credentials})
		defer c.Close()
		everyCallWithStale(t, v, c)
	})
}

func everyCallWithStale(t *testing.T, v *vault, c redis.UniversalClient) {
	ctx := t.Context()
	incr := func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil }
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	for name, send := range map[string]func() error{
		"command":     func() error { return c.Incr(ctx, "n").Err() },
		"pipeline":    func() error { _, err := c.Pipelined(ctx, incr); return err },
		"transaction": func() error { _, err := c.TxPipelined(ctx, incr); return err },
		"watch":       func() error { return c.Watch(ctx, func(*redis.Tx) error { return nil }, "n") },
	} {
		old := v.newest()
		var asked atomic.Int32
		v.says(func(context.Context) (string, error) {
			if asked.Add(1) == 1 {
				return old, nil
			}
			return v.newest(), nil
		})
		v.expire()
		assert.NoError(t, send(), "%s: stale once", name)

		v.says(func(context.Context) (string, error) { asked.Add(1); return old, nil })
		v.expire()
		asked.Store(0)
		began := time.Now()
		err := send()
		assert.True(t, redis.IsAuthError(err), "%s: %v", name, err)
		assert.ErrorContains(t, err, "WRONGPASS", name)
		assert.NotContains(t, err.Error(), "redis:", "%s: it is the server's own word", name)
		assert.True(t, redial.SafeToRetry(err), name)
		assert.Less(t, time.Since(began), time.Second, name)
		assert.LessOrEqual(t, asked.Load(), int32(20), name) // go-redis tries a pipeline of a cluster four times by itself
		v.says(nil)
		require.NoError(t, send(), name)
	}
}

// Nobody listens to a provider any more for a connection that is gone.
func TestCredentials_StreamingIsNotListenedToForEver(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	c := testkit.Connect(t, &redis.Options{Addr: v.server.Addr(), StreamingCredentialsProvider: v})
	for range 5 {
		v.server.Kill()
		require.Error(t, c.Set(redial.FailFast(t.Context()), "k", "v", 0).Err())
		v.server.Start()
		v.server.Do("ACL", "SETUSER", account, "on", "~*", "&*", "+@all", ">"+v.newest())
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	}
	assert.LessOrEqual(t, v.listeners(), int(c.PoolStats().TotalConns)+1)
	require.NoError(t, c.Close())
	assert.Eventually(t, func() bool { return v.listeners() == 0 }, 5*time.Second, 10*time.Millisecond, "%d listeners are left", v.listeners())
}
