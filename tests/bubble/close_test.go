package bubble

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit/memnet"
)

// Whoever keeps only the go-redis client, as a constructor of a team does that returns
// one, closes everything with it. The bubble fails when a goroutine is left.
func TestClose_OfTheEmbeddedClient_EndsSupervision(t *testing.T) {
	cluster := func(n *memnet.Net) *redis.ClusterOptions {
		return &redis.ClusterOptions{
			Addrs: []string{"127.0.0.1:1"}, Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
			ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
				return []redis.ClusterSlot{
					{Start: 0, End: 8191, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1:1"}}},
					{Start: 8192, End: 16383, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1:2"}}},
				}, nil
			},
		}
	}
	ring := func(n *memnet.Net) *redis.RingOptions {
		return &redis.RingOptions{
			Addrs: map[string]string{"a": "127.0.0.1:1", "b": "127.0.0.1:2"}, Dialer: n.Dial, Protocol: 2, DisableIdentity: true,
			PoolSize: 500, PipelinePoolSize: 500,
		}
	}
	supervised := func(t *testing.T, rdb redis.UniversalClient, opts []redial.Option) (redis.UniversalClient, *redial.Supervisor) {
		s, err := redial.Supervise(rdb, opts...)
		require.NoError(t, err)
		return rdb, s
	}
	for name, build := range map[string]func(t *testing.T, n *memnet.Net, opt *redis.Options, opts ...redial.Option) (redis.UniversalClient, *redial.Supervisor){
		"Client": func(_ *testing.T, _ *memnet.Net, opt *redis.Options, opts ...redial.Option) (redis.UniversalClient, *redial.Supervisor) {
			c := redial.NewClient(opt, opts...)
			return c.Client, c.Supervisor
		},
		"clone": func(_ *testing.T, _ *memnet.Net, opt *redis.Options, opts ...redial.Option) (redis.UniversalClient, *redial.Supervisor) {
			c := redial.NewClient(opt, opts...)
			return c.WithTimeout(time.Second).WithTimeout(time.Minute).Client, c.Supervisor
		},
		"clone of the embedded client": func(_ *testing.T, _ *memnet.Net, opt *redis.Options, opts ...redial.Option) (redis.UniversalClient, *redial.Supervisor) {
			c := redial.NewClient(opt, opts...)
			return c.Client.WithTimeout(time.Minute), c.Supervisor
		},
		"ClusterClient": func(_ *testing.T, n *memnet.Net, _ *redis.Options, opts ...redial.Option) (redis.UniversalClient, *redial.Supervisor) {
			c := redial.NewClusterClient(cluster(n), opts...)
			return c.ClusterClient, c.Supervisor
		},
		"Ring": func(_ *testing.T, n *memnet.Net, _ *redis.Options, opts ...redial.Option) (redis.UniversalClient, *redial.Supervisor) {
			c := redial.NewRing(ring(n), opts...)
			return c.Ring, c.Supervisor
		},
		"UniversalClient": func(_ *testing.T, n *memnet.Net, _ *redis.Options, opts ...redial.Option) (redis.UniversalClient, *redial.Supervisor) {
			c := redial.NewUniversalClient(&redis.UniversalOptions{
				Addrs: []string{"127.0.0.1:1"}, Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
			}, opts...).(*redial.Client)
			return c.Client, c.Supervisor
		},
		"supervised Client": func(t *testing.T, _ *memnet.Net, opt *redis.Options, opts ...redial.Option) (redis.UniversalClient, *redial.Supervisor) {
			own := *opt // with a dialer that is not known for one of this package by its name
			own.Dialer = reflect.MakeFunc(reflect.TypeOf(opt.Dialer), reflect.ValueOf(opt.Dialer).Call).Interface().(func(context.Context, string, string) (net.Conn, error))
			return supervised(t, redis.NewClient(&own), opts)
		},
		"supervised ClusterClient": func(t *testing.T, n *memnet.Net, _ *redis.Options, opts ...redial.Option) (redis.UniversalClient, *redial.Supervisor) {
			return supervised(t, redis.NewClusterClient(cluster(n)), opts)
		},
		"supervised Ring": func(t *testing.T, n *memnet.Net, _ *redis.Options, opts ...redial.Option) (redis.UniversalClient, *redial.Supervisor) {
			return supervised(t, redis.NewRing(ring(n)), opts)
		},
	} {
		for when, prepare := range map[string]func(t *testing.T, n *memnet.Net, rdb redis.UniversalClient, s *redial.Supervisor){
			"used": func(t *testing.T, n *memnet.Net, rdb redis.UniversalClient, s *redial.Supervisor) {
				for _, key := range []string{"a", "b", "c", "d"} {
					require.NoError(t, rdb.Set(t.Context(), key, 1, 0).Err())
				}
			},
			"never used": func(t *testing.T, n *memnet.Net, rdb redis.UniversalClient, s *redial.Supervisor) {
				require.NoError(t, s.WaitReady(t.Context()))
			},
			"at once": func(t *testing.T, n *memnet.Net, rdb redis.UniversalClient, s *redial.Supervisor) {},
			"server gone": func(t *testing.T, n *memnet.Net, rdb redis.UniversalClient, s *redial.Supervisor) {
				require.NoError(t, rdb.Set(t.Context(), "a", 1, 0).Err())
				n.Kill()
				soon, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				defer cancel()
				require.NoError(t, s.WaitForState(soon, redial.StateReconnecting))
			},
			"server silent": func(t *testing.T, n *memnet.Net, rdb redis.UniversalClient, s *redial.Supervisor) {
				require.NoError(t, rdb.Set(t.Context(), "a", 1, 0).Err())
				n.Silence(true)
				time.Sleep(1200 * time.Millisecond)
			},
			"waiters": func(t *testing.T, n *memnet.Net, rdb redis.UniversalClient, s *redial.Supervisor) {
				n.Kill()
				go func() { _ = rdb.Get(context.Background(), "a").Err() }()
				time.Sleep(100 * time.Millisecond)
			},
		} {
			t.Run(name+"/"+when, func(t *testing.T) {
				memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
					rdb, s := build(t, n, opt, redial.WithHeartbeat(time.Minute, time.Second), redial.WithIdleCheck(0))
					prepare(t, n, rdb, s)
					synctest.Wait()
					began := time.Now()
					require.NoError(t, rdb.Close())
					soon, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					if err := s.WaitForState(soon, redial.StateClosed); err != nil {
						_ = s.Close()
						t.Fatal(err)
					}
					if when == "used" {
						assert.Zero(t, time.Since(began), "the end of a connection tells")
					}
					assert.LessOrEqual(t, time.Since(began), 600*time.Millisecond, "half a second, and a fifth of that")
					time.Sleep(2 * time.Second) // go-redis itself takes a second when its dials have failed
					synctest.Wait()
					assert.Zero(t, n.Open())
					assert.Equal(t, redial.CauseClosed, s.Stats().Cause)
					assert.ErrorIs(t, rdb.Get(t.Context(), "a").Err(), redis.ErrClosed)
					require.NoError(t, s.Close(), "in either order")
					require.NoError(t, s.Close(), "and again")
				})
			})
		}
		t.Run(name+"/supervision first", func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				rdb, s := build(t, n, opt)
				require.NoError(t, rdb.Set(t.Context(), "a", 1, 0).Err())
				require.NoError(t, s.Close())
				if err := rdb.Close(); err != nil {
					assert.ErrorIs(t, err, redis.ErrClosed, "a client of ours is closed with its supervisor")
				}
				synctest.Wait()
				assert.Zero(t, n.Open())
				_ = rdb.Close() // as go-redis does it, an error or not
				require.NoError(t, s.Close())
			})
		})
		t.Run(name+"/all at the same time", func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				rdb, s := build(t, n, opt)
				require.NoError(t, rdb.Set(t.Context(), "a", 1, 0).Err())
				var wg sync.WaitGroup
				for range 5 {
					wg.Go(func() { _ = rdb.Close() })
					wg.Go(func() { _ = s.Close() })
				}
				wg.Wait()
				assert.Equal(t, redial.StateClosed, s.State())
			})
		})
	}
}

// The second Close of a client says what go-redis says, whichever was the first.
func TestClose_Twice(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := redial.NewClient(opt)
		memnet.Ready(t, c)
		require.NoError(t, c.Client.Close())
		assert.Equal(t, redis.ErrClosed, c.Client.Close())
		assert.Equal(t, redis.ErrClosed, c.Close())
		assert.Equal(t, redis.ErrClosed, c.Close())
		assert.Equal(t, redial.StateClosed, c.State())
		assert.ErrorIs(t, c.Get(t.Context(), "k").Err(), redis.ErrClosed)
	})
}

// Closing from where redial or go-redis calls the owner is no deadlock.
func TestClose_FromCallbacks(t *testing.T) {
	for name, f := range map[string]func(t *testing.T, n *memnet.Net, opt *redis.Options){
		"state change": func(t *testing.T, n *memnet.Net, opt *redis.Options) {
			var c *redial.Client
			made, closed := make(chan struct{}), make(chan struct{})
			c = redial.NewClient(opt, redial.WithOnStateChange(func(e redial.Event) {
				if <-made; e.To == redial.StateConnected {
					assert.NoError(t, c.Client.Close())
					close(closed)
				}
			}))
			close(made)
			<-closed
			assert.NoError(t, c.WaitForState(t.Context(), redial.StateClosed))
		},
		"dialer": func(t *testing.T, n *memnet.Net, opt *redis.Options) {
			var c *redial.Client
			made := make(chan struct{})
			opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				<-made
				_ = c.Client.Close()
				return n.Dial(ctx, network, addr)
			}
			c = redial.NewClient(opt)
			close(made)
			assert.ErrorIs(t, c.Get(t.Context(), "k").Err(), redis.ErrClosed)
			assert.NoError(t, c.WaitForState(t.Context(), redial.StateClosed))
		},
		"log, of a panic at a sentinel": func(t *testing.T, _ *memnet.Net, _ *redis.Options) {
			var c *redial.Client
			made, closed := make(chan struct{}), make(chan struct{})
			c = redial.NewFailoverClient(&redis.FailoverOptions{
				MasterName: "m", SentinelAddrs: []string{"127.0.0.1:1"},
				Dialer: func(context.Context, string, string) (net.Conn, error) { return nil, wordless{} }, // go-redis asks for the words
			}, redial.WithLogger(slog.New(careful{slog.DiscardHandler, func() {
				<-made
				assert.NoError(t, c.Close())
				close(closed)
			}})))
			close(made)
			<-closed
			assert.Equal(t, redial.StateClosed, c.State())
		},
		"hook": func(t *testing.T, n *memnet.Net, opt *redis.Options) {
			c := redial.NewClient(opt)
			memnet.Ready(t, c)
			c.AddHook(closer{c.Client})
			assert.ErrorIs(t, c.Get(t.Context(), "k").Err(), redis.ErrClosed)
			assert.NoError(t, c.WaitForState(t.Context(), redial.StateClosed))
		},
	} {
		t.Run(name, func(t *testing.T) { memnet.Bubble(t, f) })
	}
}

// wordless is an error that panics when it is asked for its words, as a nil pointer does.
type wordless struct{ error }

// careful is a handler of a logger that does something when an error is logged.
type careful struct {
	slog.Handler
	do func()
}

func (careful) Enabled(context.Context, slog.Level) bool { return true }

func (c careful) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelError {
		c.do()
	}
	return nil
}

// closer is a hook that closes its client.
type closer struct{ rdb *redis.Client }

func (closer) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c closer) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		_ = c.rdb.Close()
		return next(ctx, cmd)
	}
}

func (c closer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// Close must return at once whatever the client is doing; the bubble fails when
// it leaves a goroutine behind.
func TestClose_InEveryState(t *testing.T) {
	for name, prepare := range map[string]func(*testing.T, *memnet.Net, *redial.Client){
		"connecting, refused": func(_ *testing.T, n *memnet.Net, _ *redial.Client) { n.Kill() },
		"connecting, silent":  func(_ *testing.T, n *memnet.Net, _ *redial.Client) { n.Silence(true) },
		"connected":           func(t *testing.T, _ *memnet.Net, c *redial.Client) { memnet.Ready(t, c) },
		"while probing": func(t *testing.T, n *memnet.Net, c *redial.Client) {
			memnet.Ready(t, c)
			n.Silence(true)
			time.Sleep(1500 * time.Millisecond)
		},
		"reconnecting, asleep": func(t *testing.T, n *memnet.Net, c *redial.Client) {
			memnet.Ready(t, c)
			n.Kill()
			time.Sleep(20 * time.Second)
		},
		"reconnecting, silent": func(t *testing.T, n *memnet.Net, c *redial.Client) {
			memnet.Ready(t, c)
			n.Silence(true)
			time.Sleep(20 * time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				c := redial.NewClient(opt)
				prepare(t, n, c)
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() { _ = c.Incr(t.Context(), "n").Err() })
					wg.Go(func() { _ = c.BLPop(t.Context(), 0, "queue").Err() })
				}
				synctest.Wait()
				began := time.Now()
				assert.NoError(t, c.Close())
				wg.Wait()
				assert.Zero(t, time.Since(began))
				assert.ErrorIs(t, c.Close(), redis.ErrClosed)
				assert.Equal(t, redial.StateClosed, c.State())
				assert.ErrorIs(t, c.Ping(t.Context()).Err(), redis.ErrClosed)
				c.Reconnect("too late")
				assert.Zero(t, c.Stats().Connections)
			})
		})
	}
}

func TestClose_Concurrently(t *testing.T) {
	memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
		c := redial.NewClient(opt)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := c.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
					t.Error(err)
				}
			})
			wg.Go(func() { _ = c.Get(t.Context(), "k").Err() })
			wg.Go(func() { _ = c.Drain(t.Context()) })
		}
		wg.Wait()
	})
}
