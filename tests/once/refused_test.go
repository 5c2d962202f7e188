package once

import (
	"context"
	"fmt"
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

// retries tells of attempts after the first.
type retries chan redial.Retry

func (r retries) ObserveRetry(_ context.Context, retry redial.Retry) {
	select {
	case r <- retry:
	default:
	}
}

// refusing are ways to have a server refuse writes, and to end that.
var refusing = map[string][2][]any{
	"READONLY":   {{"REPLICAOF", "127.0.0.1", "1"}, {"REPLICAOF", "NO", "ONE"}},
	"NOREPLICAS": {{"CONFIG", "SET", "min-replicas-to-write", "1"}, {"CONFIG", "SET", "min-replicas-to-write", "0"}},
}

// A transaction that the server refuses is waited for as one without an id is. When the grace
// ends first, all of its commands were refused.
func TestOnce_RefusedTransaction_IsWaitedFor(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 1, 0)
	clustered := cluster.NodeFor("n")
	for name, dial := range map[string]func(s *redialtest.Server, opt redial.Option) redis.UniversalClient{
		"client": func(s *redialtest.Server, opt redial.Option) redis.UniversalClient {
			return testkit.Connect(t, &redis.Options{Addr: s.Addr()}, opt)
		},
		"ring": func(s *redialtest.Server, opt redial.Option) redis.UniversalClient {
			return redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.Addr()}}, opt)
		},
		"cluster": func(_ *redialtest.Server, opt redial.Option) redis.UniversalClient {
			return testkit.NewCluster(t, cluster, opt)
		},
	} {
		for word, how := range refusing {
			if name == "cluster" && word == "READONLY" { // it says MOVED
				continue
			}
			t.Run(name+"/"+word, func(t *testing.T) {
				s := clustered
				if name != "cluster" {
					s = redialtest.StartServer(t)
				}
				again := make(retries, 1)
				c := dial(s, redial.WithObserver(again))
				defer func() { _ = c.Close() }()
				require.NoError(t, c.Incr(t.Context(), "warm").Err())
				s.Do(how[0]...)
				done := make(chan error, 1)
				go func() {
					run, err := incrThrice(redial.Once(redial.WaitFor(t.Context(), 20*time.Second), word), c.TxPipelined, word)
					assert.Equal(t, "1", run)
					done <- err
				}()
				select {
				case retry := <-again:
					assert.Equal(t, redial.AfterRefused, retry.After)
					s.Do(how[1]...)
					require.NoError(t, <-done)
				case err := <-done:
					require.NoError(t, err)
				}
				assert.Equal(t, "3", s.Do("GET", word))

				s.Do(how[0]...)
				late := func(ctx context.Context) []redis.Cmder {
					cmds, err := c.TxPipelined(redial.Once(ctx, word+" late"), func(p redis.Pipeliner) error {
						p.Get(ctx, word)
						p.Incr(ctx, word)
						p.Incr(ctx, word)
						return nil
					})
					assert.ErrorIs(t, err, cmds[0].Err())
					return cmds
				}
				for _, cmd := range late(redial.WaitFor(t.Context(), 100*time.Millisecond)) {
					assert.ErrorContains(t, cmd.Err(), word+" ")
					assert.NotErrorIs(t, cmd.Err(), redial.ErrOnceMismatch)
					assert.True(t, redial.SafeToRetry(cmd.Err()))
				}
				assert.Equal(t, "3", s.Do("GET", word))
				s.Do(how[1]...)
				for _, cmd := range late(redial.WaitFor(t.Context(), 20*time.Second)) {
					assert.NoError(t, cmd.Err())
				}
				assert.Equal(t, "5", s.Do("GET", word))
			})
		}
	}
}

// What a server refuses for good is told at once, of each command of a transaction. An error
// of a command, though, is no reason for the others not to run. What is watched is not tried again.
func TestOnce_RefusedTransaction_SaysWhy(t *testing.T) {
	s := redialtest.StartServer(t, "--maxmemory-policy", "noeviction")
	s.Do("ACL", "SETUSER", "u", "on", "nopass", "+@all", "~n")
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	poor := testkit.Connect(t, &redis.Options{Addr: s.Addr(), Username: "u", Password: "p"})
	thrice := func(c *redial.Client, id string) []redis.Cmder {
		ctx := redial.Once(t.Context(), id)
		cmds, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
			for range 3 {
				p.Incr(ctx, "n")
			}
			return nil
		})
		assert.Error(t, err)
		return cmds
	}
	s.Do("CONFIG", "SET", "maxmemory", "1")
	full := thrice(c, "full")
	s.Do("CONFIG", "SET", "maxmemory", "0")
	for _, cmd := range full {
		assert.EqualError(t, cmd.Err(), "OOM command not allowed when used memory > 'maxmemory'.")
		assert.True(t, redial.SafeToRetry(cmd.Err()))
	}
	for _, cmd := range thrice(poor, "poor") {
		assert.ErrorIs(t, cmd.Err(), redial.ErrOnceUnsupported)
		assert.NotErrorIs(t, cmd.Err(), redial.ErrOnceMismatch)
	}
	assert.EqualValues(t, 0, s.Do("EXISTS", "n"))

	s.Do(refusing["NOREPLICAS"][0]...)
	var watched []redis.Cmder
	require.NoError(t, c.Watch(t.Context(), func(*redis.Tx) error { watched = thrice(c, "watched"); return nil }, "n"))
	s.Do(refusing["NOREPLICAS"][1]...)
	for _, cmd := range watched {
		assert.ErrorContains(t, cmd.Err(), "NOREPLICAS ")
		assert.True(t, redial.SafeToRetry(cmd.Err()))
	}
	assert.EqualValues(t, 0, s.Do("EXISTS", "n"))

	s.Do("LPUSH", "l", "x")
	ctx := redial.Once(t.Context(), "wrong")
	for range 2 {
		cmds, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.Incr(ctx, "l")
			p.Incr(ctx, "n")
			return nil
		})
		assert.ErrorContains(t, err, "WRONGTYPE ")
		assert.EqualValues(t, 1, cmds[1].(*redis.IntCmd).Val())
		assert.NoError(t, cmds[1].Err())
	}
	assert.Equal(t, "1", s.Do("GET", "n"))
}

// failures are the errors that observers were told of.
type failures struct {
	mu  sync.Mutex
	all []*redial.Error
}

func (f *failures) ObserveFailure(_ context.Context, e *redial.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, e)
}

// Of a command whose reply could not be recorded nobody knows what became of it, and that is
// counted and told as of any other.
func TestOnce_UnrecordedReply_IsCounted(t *testing.T) {
	t.Parallel()
	s, cluster := redialtest.StartServer(t), redialtest.StartCluster(t, 1, 0)
	ring := func(opts ...redial.Option) redial.UniversalClient {
		c := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.Addr()}}, opts...)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	pair := func(p redis.Pipeliner) error {
		p.Incr(t.Context(), "{n}n")
		p.Incr(t.Context(), "{n}m")
		return nil
	}
	for name, dial := range map[string]func(opts ...redial.Option) redial.UniversalClient{
		"client": func(opts ...redial.Option) redial.UniversalClient {
			return testkit.Connect(t, &redis.Options{Addr: s.Addr()}, opts...)
		},
		"ring":    ring,
		"cluster": func(opts ...redial.Option) redial.UniversalClient { return testkit.NewCluster(t, cluster, opts...) },
	} {
		for shape, do := range map[string]func(ctx context.Context, c redis.UniversalClient) (record string, failed, err error){
			"single": func(ctx context.Context, c redis.UniversalClient) (record string, failed, err error) {
				err = c.Incr(ctx, "{n}n").Err()
				return "", err, err
			},
			"pipeline": func(ctx context.Context, c redis.UniversalClient) (record string, failed, err error) {
				cmds, err := c.Pipelined(ctx, pair)
				assert.NoError(t, cmds[0].Err())
				return ":1", cmds[1].Err(), err
			},
			"transaction": func(ctx context.Context, c redis.UniversalClient) (record string, failed, err error) {
				cmds, err := c.TxPipelined(ctx, pair)
				assert.NoError(t, cmds[0].Err())
				return ":1", cmds[1].Err(), err
			},
		} {
			id := name + shape
			told := new(failures)
			c := dial(redial.WithObserver(told))
			record, _, _ := do(redial.Once(t.Context(), id), c)
			if record = "redial:once:" + id + record; name == "cluster" {
				record = "redial:once:{n}:" + strings.TrimPrefix(record, "redial:once:")
			}
			require.EqualValues(t, 1, c.Exists(t.Context(), record).Val(), record)
			require.NoError(t, c.SetRange(t.Context(), record, 16, "?").Err()) // no reply is in it
			_, failed, err := do(redial.Once(t.Context(), id), c)
			var e *redial.Error
			if assert.ErrorAs(t, failed, &e, id) {
				assert.Equal(t, redial.CauseUnsafe, e.Cause, id)
				assert.Equal(t, []*redial.Error{e}, told.all, id)
			}
			assert.Equal(t, err, failed, id)
			assert.ErrorIs(t, failed, redial.ErrOutcomeUnknown, id)
			assert.False(t, redial.SafeToRetry(failed), id)
			assert.EqualValues(t, 1, c.Stats().Unknown, id)
		}
	}
}

// Where MULTI is refused, what is behind it runs, and nothing else is said of it. The replies are
// there once the transaction can be had.
func TestOnce_RefusedMulti_IsUnknown(t *testing.T) {
	t.Parallel()
	s, cluster := redialtest.StartServer(t), redialtest.StartCluster(t, 1, 0)
	user := func(rules ...any) {
		for _, s := range []*redialtest.Server{s, cluster.Nodes[0]} {
			require.Equal(t, "OK", s.Do(append([]any{"ACL", "SETUSER", "u", "on", ">p", "~*", "+@all"}, rules...)...))
		}
	}
	user()
	ring := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.Addr()}, Username: "u", Password: "p"})
	clustered := redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs(), Username: "u", Password: "p"})
	t.Cleanup(func() { _, _ = ring.Close(), clustered.Close() })
	for name, c := range map[string]redis.UniversalClient{
		"client": testkit.Connect(t, &redis.Options{Addr: s.Addr(), Username: "u", Password: "p"}), "ring": ring, "cluster": clustered,
	} {
		user("-multi")
		key := "{" + name + "}"
		ctx := redial.Once(t.Context(), name)
		_, err := incrThrice(ctx, c.TxPipelined, key)
		assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, name)
		assert.NotErrorIs(t, err, redial.ErrOnceUnsupported, name)
		assert.ErrorContains(t, err, "'multi'", name)
		assert.False(t, redial.SafeToRetry(err), name)
		assert.Equal(t, "3", c.Get(t.Context(), key).Val(), name)
		user()
		reply, err := incrThrice(ctx, c.TxPipelined, key)
		require.NoError(t, err, name)
		assert.Equal(t, "1", reply, name)
		assert.Equal(t, "3", c.Get(t.Context(), key).Val(), name)
	}
}

// MULTI may stand anywhere in a pipeline. What is behind it has no reply of its own to record.
func TestOnce_WithinMulti_IsRefused(t *testing.T) {
	s := redialtest.StartServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	ctx := redial.Once(t.Context(), "id")
	for ahead := range 3 {
		for _, behind := range []int{0, 1} {
			cmds, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
				for range ahead {
					p.Incr(t.Context(), "ahead")
				}
				p.Do(t.Context(), "multi")
				p.Do(ctx, "incr", "n")
				p.Do(t.Context(), "exec")
				for range behind {
					p.Incr(t.Context(), "behind")
				}
				return nil
			})
			assert.ErrorIs(t, err, redial.ErrOnceUnsupported)
			for _, cmd := range cmds {
				assert.ErrorIs(t, cmd.Err(), redial.ErrOnceUnsupported, "%d ahead, %d behind: %s", ahead, behind, cmd)
				assert.ErrorContains(t, cmd.Err(), "incr: it is in a transaction without an id")
			}
		}
	}
	assert.Equal(t, []any{}, s.Do("KEYS", "*"))
}

// What is refused in its turn, while the others of its transaction run, is no reason to send
// that again: nothing says that none of it ran.
func TestOnce_RefusedInItsTurn_IsNotSafe(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	s.Do("ACL", "SETUSER", "u", "on", "nopass", "+@all", "~*", "-incr")
	cluster := redialtest.StartCluster(t, 1, 0)
	cluster.Nodes[0].Do("ACL", "SETUSER", "u", "on", "nopass", "+@all", "~*", "-incr")
	ring := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.Addr()}, Username: "u", Password: "p"})
	nodes := redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs(), Username: "u", Password: "p"})
	t.Cleanup(func() { _ = ring.Close(); _ = nodes.Close() })
	for kind, c := range map[string]redis.UniversalClient{
		"client":  testkit.Connect(t, &redis.Options{Addr: s.Addr(), Username: "u", Password: "p"}),
		"ring":    ring,
		"cluster": nodes,
	} {
		for name, bad := range map[string][]any{
			"no right":  {"incr", "{x}n"},
			"too short": {"append", "{x}n"},
			"no such":   {"object", "nosuch", "{x}n"},
			"not its":   {"set", "{x}n", "v"},
		} {
			for first := range 2 {
				id := fmt.Sprint(kind, name, first)
				require.NoError(t, c.Set(t.Context(), "{x}n", "", 0).Err())
				if name == "not its" { // the record of another id
					at := "redial:once:" + map[bool]string{true: "{x}:"}[kind == "cluster"] + id + ":" + fmt.Sprint(first)
					require.NoError(t, c.Set(t.Context(), at, "another's", 0).Err())
				}
				for range 2 {
					ctx := redial.Once(t.Context(), id)
					cmds, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
						for i := range 2 {
							if i == first {
								p.Do(ctx, bad...)
							} else {
								p.LPush(ctx, "{x}"+id, "x")
							}
						}
						return nil
					})
					require.Error(t, err, id)
					ran := c.LLen(t.Context(), "{x}"+id).Val()
					if name == "not its" && first == 0 {
						require.Zero(t, ran, id)
					} else {
						require.EqualValues(t, 1, ran, id)
					}
					assert.Equal(t, ran == 0, redial.SafeToRetry(err), "%s: %v", id, err)
					assert.Equal(t, ran == 0, redial.SafeToRetry(cmds[first].Err()), "%s: %v", id, cmds[first].Err())
					assert.NotErrorIs(t, err, redial.ErrOnceUnsupported, id)
					if ran == 1 {
						assert.NotContains(t, err.Error(), "nothing ran", id)
					}
				}
			}
		}
	}
}
