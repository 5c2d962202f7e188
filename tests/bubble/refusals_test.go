package bubble

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit/memnet"
)

const (
	roleChanged = "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"
	unblocked   = "UNBLOCKED client unblocked via CLIENT UNBLOCK"
)

// What is said of a reply by itself: whether the command surely did not run.
func TestSafeToRetry_Replies(t *testing.T) {
	const of7, of6 = " script: f_1, on @user_script:1.", "ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -"
	for _, tc := range []struct {
		reply string
		safe  bool
	}{
		{roleChanged, true},
		{unblocked, true},
		{"UNBLOCKED the stream key no longer exists", true},
		{"MOVED 1 127.0.0.1:1", true},
		{"ASK 1 127.0.0.1:1", true},
		{"CROSSSLOT Keys in request don't hash to the same slot", true},
		{"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", true},
		{"BUSY Valkey is busy running a module command.", true},
		{"BUSY of a module", true},
		{"BUSYGROUP Consumer Group name already exists", false},
		{"BUSYKEY Target key name already exists.", false},
		{"BUSYX", false},
		{"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", true},
		{"OOM command not allowed when used memory > 'maxmemory'.", true},
		{"ERR OOM command not allowed when used memory > 'maxmemory'.", true},
		{"OOM command not allowed when used memory > 'maxmemory'." + of7, false},
		{of6 + "OOM command not allowed when used memory > 'maxmemory'.", false},
		{"READONLY You can't write against a read only replica." + of7, false},
		{of6 + "READONLY You can't write against a read only replica.", false},
		{"READONLY You can't write against a read only replica. script: f, on @user_function:3.", false},
		{"@user_script: 1: -NOREPLICAS Not enough good replicas to write.", false},
		{"NOPERM User default has no permissions to run the 'set' command", true},
		{"NOPERM ACLs rules changed between the moment the transaction was accumulated and the EXEC call. This command is no longer allowed for the following reason: no permission", false},
		{"DENIED Redis is running in protected mode because protected mode is enabled", true},
		{"NOSCRIPT No matching script. Please use EVAL.", true},
		{"UNKILLABLE Sorry the script already executed write commands against the dataset.", true},
		{"NOTBUSY No scripts in execution right now.", true},
		{"NOMASTERLINK Can't SYNC while not connected with my master", true},
		{"INPROG Failover already in progress", true},
		{"NOGOODSLAVE No suitable replica to promote", true},
		{"NOPROTO unsupported protocol version", true},
		{"REDIRECT 127.0.0.1:1", true},
		{"ERR unknown command 'x', with args beginning with: ", true},
		{"ERR wrong number of arguments for 'get' command", true},
		{"ERR value is not an integer or out of range", false},
		{"ERR no such key", false},
		{"NOGROUP No such key 's' or consumer group 'g'", false},
		{"IOERR error or timeout writing to target instance", false},
		{"WRONGTYPE Operation against a key holding the wrong kind of value", false},
		{"no upstream host", false},
	} {
		assert.Equal(t, tc.safe, redial.SafeToRetry(redisError(tc.reply)), tc.reply)
	}
}

// Refusals that waiting may cure are waited for, others come at once; of either the
// command runs once at most.
func TestRefusals_SingleServer(t *testing.T) {
	blpop := func(ctx context.Context, c redis.Cmdable) error { return c.BLPop(ctx, time.Second, "q").Err() }
	set := func(ctx context.Context, c redis.Cmdable) error { return c.Set(ctx, "k", "v", 0).Err() }
	wait := func(ctx context.Context, c redis.Cmdable) error {
		return c.(*redial.Client).Do(ctx, "wait", 0, 1).Err()
	}
	for _, tc := range []struct {
		name, cmd, reply string
		do               func(context.Context, redis.Cmdable) error
		waits            bool
		generations      uint64
	}{
		{"role changed", "blpop", roleChanged, blpop, true, 1},
		{"unblocked", "blpop", unblocked, blpop, false, 0},
		{"role changed, of a command that waits for the writes of its connection", "wait", roleChanged, wait, false, 1},
		{"redirected", "set", "REDIRECT 127.0.0.1:1", set, true, 1},
		{"busy", "set", "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", set, true, 0},
		{"busy, by a proxy", "set", "ERR BUSY Redis is busy", set, true, 0},
		{"not busy", "set", "BUSYKEY Target key name already exists.", set, false, 0},
		{"broken disk", "set", "MISCONF Errors writing to the AOF file: No space left on device", set, false, 0},
		{"no memory", "set", "OOM command not allowed when used memory > 'maxmemory'.", set, false, 0},
		{"no permission", "set", "NOPERM User default has no permissions to run the 'set' command", set, false, 0},
		{"moved", "set", "MOVED 1 127.0.0.1:1", set, false, 0},
		{"protected", "set", "DENIED Redis is running in protected mode", set, false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				c, f := faulty(t, n, opt)
				ctx := t.Context()
				_, err := n.Redis.Push("q", "x", "y")
				require.NoError(t, err)
				before := c.Stats().Generation
				f.Times(tc.cmd, 1, memnet.Reply(tc.reply))
				began := time.Now()
				err = tc.do(ctx, c)
				assert.Less(t, time.Since(began), 500*time.Millisecond)
				assert.Equal(t, before+tc.generations, c.Stats().Generation)
				if !tc.waits {
					assert.EqualError(t, err, tc.reply)
					assert.Equal(t, 1, f.Count(tc.cmd))
					return
				}
				assert.NoError(t, err)
				assert.Equal(t, 2, f.Count(tc.cmd))

				f.Times(tc.cmd, 1<<30, memnet.Reply(tc.reply))
				began = time.Now()
				assert.EqualError(t, tc.do(ctx, c), tc.reply, "in the end the server's own words")
				assert.InDelta(t, redial.DefaultGrace, time.Since(began), float64(time.Second))
			})
		})
	}
}

// What was refused, and waits for the server until the grace is over, fails as a single command
// does: whatever it is, and wherever it runs, it is counted as what its caller is told.
func TestRefusals_GraceIsOver(t *testing.T) {
	get := func(ctx context.Context, p redis.Pipeliner) { p.Get(ctx, "k") }
	both := func(ctx context.Context, p redis.Pipeliner) { get(ctx, p); p.Incr(ctx, "n") }
	type client interface {
		redis.UniversalClient
		WaitReady(context.Context) error
		Stats() redial.Stats
	}
	for kind, open := range map[string]func(*redis.Options) client{
		"client": func(opt *redis.Options) client { return redial.NewClient(opt) },
		"ring": func(opt *redis.Options) client {
			return redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"one": opt.Addr}, Dialer: opt.Dialer})
		},
		"cluster": func(opt *redis.Options) client {
			return redial.NewClusterClient(&redis.ClusterOptions{Dialer: opt.Dialer, ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
				return []redis.ClusterSlot{{End: 16383, Nodes: []redis.ClusterNode{{Addr: opt.Addr}}}}, nil
			}})
		},
	} {
		for _, tc := range []struct {
			name string
			tx   bool
			fill func(context.Context, redis.Pipeliner)
		}{{"pipeline of one", false, get}, {"pipeline", false, both}, {"transaction", true, both}} {
			if tc.tx && kind == "cluster" {
				tc.fill = func(ctx context.Context, p redis.Pipeliner) { get(ctx, p); p.Incr(ctx, "{k}n") }
			}
			t.Run(kind+", "+tc.name, func(t *testing.T) {
				memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
					f, ctx := memnet.Inject(n), t.Context()
					c := open(opt)
					defer c.Close()
					memnet.Ready(t, c)
					for _, cmd := range []string{"ping", "hello", "get", "incr"} {
						f.Times(cmd, 1<<30, memnet.Reply("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."))
					}
					f.Times("exec", 1<<30, memnet.Reply("EXECABORT Transaction discarded because of previous errors."))
					exec := c.Pipelined
					if tc.tx {
						exec = c.TxPipelined
					}
					cmds, err := exec(ctx, func(p redis.Pipeliner) error { tc.fill(ctx, p); return nil })
					assert.ErrorIs(t, err, redial.ErrUnavailable)
					assert.ErrorContains(t, err, "MASTERDOWN")
					for _, cmd := range cmds {
						assert.Equal(t, err, cmd.Err())
					}
					assert.EqualValues(t, 1, c.Stats().Refused)
				})
			})
		}
	}
}

// In a pipeline what is refused is sent again with all that follow it, if those may run
// twice or were refused as well.
func TestWithRefusals_Pipeline(t *testing.T) {
	for _, tc := range []struct {
		name  string
		then  func(context.Context, redis.Pipeliner)
		again bool
	}{
		{"before a read", func(ctx context.Context, p redis.Pipeliner) { p.Get(ctx, "k") }, true},
		{"before a write", func(ctx context.Context, p redis.Pipeliner) { p.Incr(ctx, "n") }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				c, f := faulty(t, n, opt, redial.WithRefusals(func(err error) bool { return err.Error() == "try later" }))
				ctx := t.Context()
				f.Times("set", 1, memnet.Reply("try later"))
				_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
					p.LPush(ctx, "l", "v")
					p.Set(ctx, "k", "v", 0)
					tc.then(ctx, p)
					return nil
				})
				if tc.again {
					assert.NoError(t, err)
					assert.Equal(t, 2, f.Count("set"))
				} else {
					assert.EqualError(t, err, "try later")
					assert.Equal(t, 1, f.Count("set"))
				}
				assert.Equal(t, 1, f.Count("lpush"))
				assert.LessOrEqual(t, f.Count("incr"), 1)
			})
		})
	}
}

func TestPolicies(t *testing.T) {
	ctx := context.Background()
	cmd := func(args ...any) redis.Cmder { return redis.NewCmd(ctx, args...) }
	assert.True(t, redial.RetryReadOnly(cmd("get", "k")))
	assert.True(t, redial.RetryReadOnly(cmd("ping")))
	assert.False(t, redial.RetryReadOnly(cmd("set", "k", "v")))
	assert.True(t, redial.RetryIdempotent(cmd("get", "k")))
	assert.True(t, redial.RetryIdempotent(cmd("set", "k", "v")))
	assert.False(t, redial.RetryIdempotent(cmd("incr", "k")))
	assert.False(t, redial.RetryNever(cmd("get", "k")))
}

// What is turned away for want of a password counts, once, whatever it is.
func TestStats_Denied_Counts(t *testing.T) {
	for name, build := range map[string]func(opt *redis.Options) redial.UniversalClient{
		"Client":        func(opt *redis.Options) redial.UniversalClient { return redial.NewClient(opt) },
		"ClusterClient": func(opt *redis.Options) redial.UniversalClient { return redial.NewClusterClient(clusterOptions(opt)) },
		"Ring":          func(opt *redis.Options) redial.UniversalClient { return redial.NewRing(ringOptions(opt)) },
	} {
		t.Run(name, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				c := build(opt)
				defer c.Close()
				memnet.Ready(t, c)
				require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
				n.Redis.SetError("NOAUTH Authentication required.")
				twoSets := func(p redis.Pipeliner) error {
					p.Set(t.Context(), "k", "v", 0)
					p.Set(t.Context(), "k", "w", 0)
					return nil
				}
				calls := []func() error{
					func() error { return c.Set(t.Context(), "k", "v", 0).Err() },
					func() error { _, err := c.Pipelined(t.Context(), twoSets); return err },
					func() error { _, err := c.TxPipelined(t.Context(), twoSets); return err },
					func() error { return c.Watch(t.Context(), func(*redis.Tx) error { return nil }, "k") },
				}
				for i, call := range calls {
					require.ErrorContains(t, call(), "NOAUTH")
					assert.EqualValues(t, i+1, c.Stats().Refused)
				}
			})
		})
	}
}

// Nor is a call forgotten that has no password to begin with, whoever turns it away: the server that
// is to run it, or those that are to tell which one that is.
func TestStats_DeniedFromTheStart_Counts(t *testing.T) {
	for name, build := range map[string]func(opt *redis.Options) redial.UniversalClient{
		"Client":        func(opt *redis.Options) redial.UniversalClient { return redial.NewClient(opt) },
		"ClusterClient": func(opt *redis.Options) redial.UniversalClient { return redial.NewClusterClient(clusterOptions(opt)) },
		"Ring":          func(opt *redis.Options) redial.UniversalClient { return redial.NewRing(ringOptions(opt)) },
		"told by nodes": func(opt *redis.Options) redial.UniversalClient {
			o := clusterOptions(opt)
			o.ClusterSlots = nil
			return redial.NewClusterClient(o)
		},
	} {
		t.Run(name, func(t *testing.T) {
			memnet.Bubble(t, func(t *testing.T, n *memnet.Net, opt *redis.Options) {
				n.Redis.SetError("NOAUTH Authentication required.")
				c := build(opt)
				defer c.Close()
				ctx := t.Context()
				time.Sleep(time.Second)
				send := func(p redis.Pipeliner) error { p.Set(ctx, "k", "v", 0); p.Set(ctx, "k", "w", 0); return nil }
				for i, call := range []func() error{
					func() error { return c.Set(ctx, "k", "v", 0).Err() },
					func() error { _, err := c.Pipelined(ctx, send); return err },
					func() error { _, err := c.TxPipelined(ctx, send); return err },
					func() error { return c.Watch(ctx, func(*redis.Tx) error { return nil }, "k") },
					func() error { return c.DBSize(ctx).Err() },
				} {
					require.ErrorContains(t, call(), "NOAUTH", i)
					assert.EqualValues(t, i+1, c.Stats().Refused, i)
				}
			})
		})
	}
}
