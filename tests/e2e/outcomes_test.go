package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialtest"
)

// A refusal that a script makes up comes after whatever the script did before.
func TestOutcome_RefusalOfAScript_IsAnAnswer(t *testing.T) {
	s := miniredis.RunT(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	ctx := t.Context()
	const script = "redis.call('incr', KEYS[1]); return redis.error_reply('TRYAGAIN later')"
	assert.EqualError(t, c.Eval(ctx, script, []string{"n"}).Err(), "TRYAGAIN later")
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Eval(ctx, script, []string{"n"}); return nil })
	assert.EqualError(t, err, "TRYAGAIN later")
	assert.Equal(t, "2", c.Get(ctx, "n").Val())
}

// A refusal inside the reply of EXEC comes from a transaction that ran.
func TestOutcome_RefusalWithinExec_IsAnAnswer(t *testing.T) {
	s := miniredis.RunT(t)
	c := testkit.Connect(t, &redis.Options{Addr: s.Addr()})
	ctx := t.Context()
	_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Eval(ctx, "return redis.error_reply('READONLY made up')", nil)
		p.Incr(ctx, "n")
		return nil
	})
	assert.EqualError(t, err, "READONLY made up")
	assert.Equal(t, "1", c.Get(ctx, "n").Val())
}

// What refuses a command when EXEC has come to it says nothing of the others, which ran.
func TestOutcome_RefusedWithinExec_IsNotSafe(t *testing.T) {
	s := redialtest.StartServer(t)
	cluster := redialtest.StartCluster(t, 1, 0)
	ring := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.Addr()}})
	theirs := redis.NewClient(&redis.Options{Addr: s.Addr()})
	theirs.AddHook(testkit.Passing{})
	sup, err := redial.Supervise(theirs)
	require.NoError(t, err)
	theirCluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	supCluster, err := redial.Supervise(theirCluster)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = ring.Close()
		_ = theirs.Close()
		_ = sup.Close()
		_ = theirCluster.Close()
		_ = supCluster.Close()
	})
	ctx := t.Context()
	theirCluster.OnNewNode(func(n *redis.Client) { n.AddHook(testkit.Passing{}) })
	node, err := theirCluster.MasterForKey(ctx, "{x}l")
	require.NoError(t, err)
	for kind, c := range map[string]redis.UniversalClient{
		"node":       node,
		"client":     testkit.Connect(t, &redis.Options{Addr: s.Addr()}),
		"supervised": theirs,
		"ring":       ring,
		"cluster":    testkit.NewCluster(t, cluster),
	} {
		for name, bad := range map[string][]any{
			"HSET": {"hset", "{x}h", "f", "v", "g"}, // enough to be queued
			"EVAL": {"eval", "return redis.error_reply('READONLY it is said')", 1, "{x}h"},
		} {
			for first := range 2 {
				require.NoError(t, c.Del(ctx, "{x}l").Err())
				cmds, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
					for i := range 2 {
						if i == first {
							p.Do(ctx, bad...)
						} else {
							p.LPush(ctx, "{x}l", "x")
						}
					}
					return nil
				})
				require.EqualValues(t, 1, c.LLen(ctx, "{x}l").Val(), "%s %s", kind, name)
				assert.Equal(t, cmds[first].Err(), err, "%s %s", kind, name)
				assert.False(t, redial.SafeToRetry(err), "%s %s: %v", kind, name, err)
			}
		}
		_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.HSet(ctx, "{x}h", "f", "v", "g")
			p.LLen(ctx, "{x}l")
			return nil
		})
		assert.True(t, redial.SafeToRetry(err), "%s, nothing but a read ran: %v", kind, err)

		require.NoError(t, c.Del(ctx, "{x}l").Err())
		_, err = c.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.HSet(ctx, "{x}h", "f", "v", "g")
			p.Eval(ctx, "redis.call('lpush', KEYS[1], 'x'); return redis.call('incr', KEYS[1])", []string{"{x}l"})
			return nil
		})
		require.EqualValues(t, 1, c.LLen(ctx, "{x}l").Val(), kind)
		assert.False(t, redial.SafeToRetry(err), "%s, a script that fails: %v", kind, err)
	}
}

// Nor where a hook of the caller, which is behind ours, has words of its own for it. They stay.
func TestOutcome_RefusedWithinExec_OfAHook_IsNotSafe(t *testing.T) {
	s := redialtest.StartServer(t)
	cluster := redialtest.StartCluster(t, 1, 0)
	for _, h := range []wordy{{commands: true}, {returned: true}, {commands: true, returned: true}} {
		client := redis.NewClient(&redis.Options{Addr: s.Addr()})
		ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.Addr()}})
		shards := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": s.Addr()}})
		whole := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
		for kind, c := range map[string]redis.UniversalClient{"client": client, "ring": ring, "shards": shards, "cluster": whole} {
			sup, err := redial.Supervise(c)
			require.NoError(t, err)
			if kind == "shards" {
				shards.OnNewNode(func(n *redis.Client) { n.AddHook(h) })
				require.NoError(t, shards.ForEachShard(t.Context(), func(_ context.Context, n *redis.Client) error {
					n.AddHook(h)
					return nil
				}))
			} else {
				c.AddHook(h)
			}
			t.Cleanup(func() { _ = c.Close(); _ = sup.Close() })
			cmds, err := c.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
				p.HSet(t.Context(), "{x}h", "f", "v", "g")
				p.LPush(t.Context(), "{x}l", "x")
				return nil
			})
			assert.Equal(t, h.commands, errors.As(cmds[0].Err(), new(worded)), "%s %+v: %v", kind, h, cmds[0].Err())
			assert.Equal(t, h.returned, errors.As(err, new(worded)), "%s %+v: %v", kind, h, err)
			assert.False(t, redial.SafeToRetry(cmds[0].Err()), "%s %+v", kind, h)
			assert.False(t, redial.SafeToRetry(err), "%s %+v", kind, h)
		}
	}
}

// wordy is a hook that has words for what commands, and calls, failed with.
type wordy struct{ commands, returned bool }

type worded struct{ error }

func (w worded) Error() string { return "that is to say: " + w.error.Error() }
func (w worded) Unwrap() error { return w.error }

func (wordy) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (wordy) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (h wordy) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			if h.commands && cmd.Err() != nil {
				cmd.SetErr(worded{cmd.Err()})
			}
		}
		if h.returned && err != nil {
			return worded{err}
		}
		return err
	}
}

// Nor where the reply of EXEC ends, or cannot be read, behind it: whether the others ran is unknown.
func TestOutcome_RefusedWithinExec_ThenLost_IsNotSafe(t *testing.T) {
	for what, rest := range map[string]string{"lost": "", "unreadable": "?\r\n"} {
		f := redialtest.NewFakeServer(t)
		f.OnCommand(func(cn *redialtest.FakeConn, args []string) redialtest.Action {
			switch args[0] {
			case "multi":
				return redialtest.Reply("+OK\r\n")
			case "hset", "lpush":
				return redialtest.Reply("+QUEUED\r\n")
			case "exec":
				time.AfterFunc(50*time.Millisecond, cn.Close)
				return redialtest.Reply("*2\r\n-ERR wrong number of arguments for 'hset' command\r\n" + rest)
			}
			return redialtest.Handle
		})
		theirs := redis.NewClient(&redis.Options{Addr: f.Addr()})
		theirs.AddHook(testkit.Passing{})
		sup, err := redial.Supervise(theirs)
		require.NoError(t, err)
		t.Cleanup(func() { _ = theirs.Close(); _ = sup.Close() })
		for kind, c := range map[string]redis.UniversalClient{
			"client":     testkit.Connect(t, &redis.Options{Addr: f.Addr()}),
			"supervised": theirs,
		} {
			cmds, err := c.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
				p.HSet(t.Context(), "h", "f", "v", "g")
				p.LPush(t.Context(), "l", "x")
				return nil
			})
			assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, "%s, %s", kind, what)
			assert.EqualError(t, cmds[0].Err(), "ERR wrong number of arguments for 'hset' command")
			assert.False(t, redial.SafeToRetry(cmds[0].Err()), "%s, %s", kind, what)
		}
	}
}

// A reply that goes to a writer of the caller cannot be taken back, so such a
// command is not sent twice, not even when it only reads.
func TestOutcome_RawWriteTo_IsNotRetried(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr()})
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "k", "0123456789", 0).Err())
	f.OnCommand(func(cn *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "get" {
			cn.Send("$10\r\nabcde")
			return redialtest.CloseBeforeExecute
		}
		return redialtest.Handle
	})
	var buf bytes.Buffer
	assert.ErrorIs(t, c.DoRawWriteTo(redial.Idempotent(ctx), &buf, "get", "k").Err(), redial.ErrOutcomeUnknown)
	assert.Equal(t, "$10\r\nabcde", buf.String())
}

// The server stalls in the middle: what it has not answered is unknown, and a read
// is sent again.
func TestOutcome_ServerStallsInTheMiddle(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr(), ReadTimeout: 200 * time.Millisecond})
	ctx := t.Context()
	f.OnCommand(func(cn *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "incr" {
			return redialtest.ExecuteThenDrop
		}
		return redialtest.Handle
	})
	cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, "k", "v", 0)
		p.Incr(ctx, "n")
		return nil
	})
	assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
	assert.NoError(t, cmds[0].Err())
	assert.ErrorIs(t, cmds[1].Err(), redial.ErrOutcomeUnknown)

	var stalled atomic.Bool
	f.OnCommand(func(cn *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "get" && stalled.CompareAndSwap(false, true) {
			cn.Send("$10\r\nabcde")
			return redialtest.Drop
		}
		return redialtest.Handle
	})
	assert.Equal(t, "v", c.Get(ctx, "k").Val())
	assert.True(t, stalled.Load())
}

// What is known of a handshake is not what is known of the command it was for.
func TestOutcome_HandshakeFails_NothingRan(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr(), Protocol: 3}, redial.WithGrace(200*time.Millisecond))
	f.OnCommand(func(cn *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "client" {
			return redialtest.CloseBeforeExecute
		}
		return redialtest.Handle
	})
	err := c.Incr(t.Context(), "n").Err()
	assert.ErrorIs(t, err, redial.ErrUnavailable)
	assert.NotErrorIs(t, err, redial.ErrOutcomeUnknown)
	assert.NotContains(t, err.Error(), "may have run")
	assert.Zero(t, f.Executed("incr"))
}

// The error of a context is the context's, whatever its cause pretends to be.
func TestOutcome_ContextCause_IsNotAReply(t *testing.T) {
	p := redialtest.NewProxy(t, "127.0.0.1:1")
	p.Refuse()
	c := redial.NewClient(&redis.Options{Addr: p.Addr()})
	defer c.Close()
	canceled := func() context.Context {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(20*time.Millisecond, func() { cancel(redis.Nil) })
		return ctx
	}
	err := c.Get(canceled(), "k").Err()
	assert.ErrorIs(t, err, context.Canceled)
	assert.NotErrorIs(t, err, redis.Nil)
	ctx := canceled()
	cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
	assert.ErrorIs(t, err, context.Canceled)
	assert.ErrorIs(t, cmds[0].Err(), context.Canceled)
}

// serving is a hook that answers all but the first command of a pipeline itself.
type serving struct{}

func (serving) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (serving) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (serving) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[0].Name() != "get" {
			return next(ctx, cmds)
		}
		for _, cmd := range cmds[1:] {
			cmd.(*redis.StringCmd).SetVal("cached")
		}
		return next(ctx, cmds[:1])
	}
}

func TestOutcome_HookServesAPartOfThePipeline(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr()})
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "a", "1", 0).Err())
	c.AddHook(serving{})
	cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "a"); p.Get(ctx, "b"); return nil })
	require.NoError(t, err)
	require.NoError(t, cmds[1].Err())
	assert.Equal(t, "cached", cmds[1].(*redis.StringCmd).Val())
}

// The commands of a full-duplex pipeline share their connection with others, whatever
// hooks there are. One that was not answered is not sent again from here, and what it
// fails with says so.
func TestOutcome_FullDuplexPipeline(t *testing.T) {
	for name, hook := range map[string]func(*redial.Client){
		"without hooks":       nil,
		"through a hook":      func(c *redial.Client) { c.AddHook(passHook{}) },
		"behind redial's own": func(c *redial.Client) { c.Client.AddHook(passHook{}) },
	} {
		t.Run(name, func(t *testing.T) {
			f := redialtest.NewFakeServer(t)
			c := testkit.Connect(t, &redis.Options{Addr: f.Addr()})
			if hook != nil {
				hook(c)
			}
			ctx := t.Context()
			ap, err := c.AutoPipelineWithOptions(&redis.AutoPipelineOptions{FullDuplex: true})
			require.NoError(t, err)
			require.NoError(t, ap.FDPipelined(ctx, nil))
			f.OnCommand(func(cn *redialtest.FakeConn, args []string) redialtest.Action {
				if args[0] == "incr" {
					return redialtest.ExecuteThenClose
				}
				return redialtest.Handle
			})
			answered, lost, after := redis.NewStatusCmd(ctx, "set", "a", "1"), redis.NewIntCmd(ctx, "incr", "b"), redis.NewStringCmd(ctx, "get", "a")
			err = ap.FDPipelined(ctx, []redis.Cmder{answered, lost, after})
			for _, err := range []error{err, lost.Err(), after.Err()} {
				var e *redial.Error
				require.ErrorAs(t, err, &e)
				assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
				if name != "behind redial's own" { // else nobody knows what a connection is shared with
					assert.Equal(t, redial.CauseSharedConnection, e.Cause)
				}
				assert.Equal(t, "pipeline", e.Cmd)
				assert.Equal(t, 1, e.Attempts)
				assert.False(t, redial.SafeToRetry(err))
			}
			if answered.Err() != nil { // its reply may have been lost with the connection
				assert.ErrorIs(t, answered.Err(), redial.ErrOutcomeUnknown)
			}
			assert.Equal(t, 1, f.Executed("incr"))
			assert.EqualValues(t, 1, c.Stats().Unknown)
		})
	}
}

// failingConn cannot write what contains a word.
type failingConn struct {
	net.Conn
	word []byte
}

func (c *failingConn) Write(p []byte) (int, error) {
	if bytes.Contains(p, c.word) {
		return 0, &net.OpError{Op: "write", Err: errors.New("no buffer space")}
	}
	return c.Conn.Write(p)
}

// On a shared connection the failure to write one command ends others that were
// written before, and have run.
func TestOutcome_FullDuplex_WriteOfAnotherFails(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	ran := make(chan struct{})
	f.OnCommand(func(cn *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "incr" && args[1] == "owed" {
			close(ran)
			return redialtest.ExecuteThenDrop
		}
		return redialtest.Handle
	})
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr(), Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &failingConn{nc, []byte("unwritable")}, nil
	}})
	ap, err := c.AutoPipelineWithOptions(&redis.AutoPipelineOptions{FullDuplex: true})
	require.NoError(t, err)
	ctx := t.Context()
	owed := make(chan error, 1)
	go func() { owed <- ap.Incr(ctx, "owed").Err() }()
	<-ran
	assert.Error(t, ap.Incr(ctx, "unwritable").Err())
	err = <-owed
	assert.NotErrorIs(t, err, redial.ErrUnavailable, "it ran")
	assert.False(t, redial.SafeToRetry(err))
	assert.Equal(t, 1, f.Executed("incr"))
}

// The reply is no Redis reply: a write may have run, a read is tried again.
func TestOutcome_GarbledReply(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr()})
	ctx := t.Context()
	var left atomic.Int64
	f.OnCommand(func(cn *redialtest.FakeConn, args []string) redialtest.Action {
		if (args[0] == "incr" || args[0] == "get" || args[0] == "exec") && left.Add(-1) >= 0 {
			return redialtest.Reply("HTTP/1.1 400 Bad Request\r\n\r\n")
		}
		return redialtest.Handle
	})
	incr := func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil }
	for name, write := range map[string]func() error{
		"single":      func() error { return c.Incr(ctx, "n").Err() },
		"pipeline":    func() error { _, err := c.Pipelined(ctx, incr); return err },
		"transaction": func() error { _, err := c.TxPipelined(ctx, incr); return err },
	} {
		left.Store(1)
		err := write()
		assert.ErrorIs(t, err, redial.ErrOutcomeUnknown, name)
		assert.False(t, redial.SafeToRetry(err), name)
		assert.NoError(t, write(), name)
	}
	left.Store(1)
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	assert.Equal(t, "v", c.Get(ctx, "k").Val())
	left.Store(1 << 30)
	err := c.Get(ctx, "k").Err()
	assert.ErrorContains(t, err, "redis: can't parse")
	var own *redial.Error
	assert.False(t, errors.As(err, &own), "%v", err)

	// It is the command that does not fit the reply, behind a write that was answered.
	left.Store(0)
	for name, read := range map[string]func(redis.Pipeliner) error{
		"of another type":  func(p redis.Pipeliner) error { return p.Process(ctx, redis.NewSliceCmd(ctx, "get", "k")) },
		"buffer too small": func(p redis.Pipeliner) error { return p.GetToBuffer(ctx, "k", nil).Err() },
	} {
		runs := f.Executed("get")
		cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.Incr(ctx, name)
			_ = read(p)
			return nil
		})
		assert.ErrorContains(t, err, "redis: ", name)
		assert.Equal(t, err, cmds[1].Err(), name)
		assert.False(t, errors.As(err, &own), "%s: %v", name, err)
		assert.EqualValues(t, 1, cmds[0].(*redis.IntCmd).Val(), name)
		assert.LessOrEqual(t, f.Executed("get")-runs, 2, name)
	}

	err = c.Set(ctx, "k", struct{}{}, 0).Err()
	assert.ErrorContains(t, err, "can't marshal")
	assert.False(t, errors.As(err, &own), "%v", err)
}

// tagged is a command of the caller's own type, of which two cannot be compared.
type tagged struct {
	redis.Cmder
	tags []string
}

// labeled looks as if they could.
type labeled struct {
	redis.Cmder
	label any
}

// Which commands were answered is known although they cannot be told from each other, and
// nothing panics, least of all on a goroutine of go-redis's.
func TestOutcome_CommandsThatCannotBeCompared(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 2, 0)
	proxies := cluster.AddProxies()
	server := redialtest.StartServer(t)
	proxy := redialtest.NewProxy(t, server.Addr())
	client, hooked := testkit.Connect(t, &redis.Options{Addr: proxy.Addr()}), testkit.Connect(t, &redis.Options{Addr: proxy.Addr()})
	hooked.AddHook(testkit.Passing{})
	ring := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": proxy.Addr()}})
	t.Cleanup(func() { _ = ring.Close() })
	hookedCluster := testkit.NewCluster(t, cluster)
	hookedCluster.AddHook(testkit.Passing{})
	for name, c := range map[string]redis.UniversalClient{
		"client": client, "client with a hook": hooked, "ring": ring,
		"cluster": testkit.NewCluster(t, cluster), "cluster with a hook": hookedCluster,
	} {
		for kind, of := range map[string]func(redis.Cmder) redis.Cmder{
			"tagged":  func(cmd redis.Cmder) redis.Cmder { return tagged{cmd, []string{"a tag"}} },
			"labeled": func(cmd redis.Cmder) redis.Cmder { return labeled{cmd, []string{"a label"}} },
		} {
			t.Run(name+" "+kind, func(t *testing.T) {
				ctx := t.Context()
				cut := func(n int) {
					for _, p := range append(proxies, proxy) {
						p.Match("incr")
						p.CutAfterRequest(n)
					}
				}
				defer cut(0)
				incr := func(key string) redis.Cmder { return of(redis.NewIntCmd(ctx, "incr", key)) }
				get := func(key string) redis.Cmder { return of(redis.NewStringCmd(ctx, "get", key)) }
				cut(1)
				assert.ErrorIs(t, c.Process(ctx, incr("n")), redial.ErrOutcomeUnknown)
				for _, exec := range []func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){c.Pipelined, c.TxPipelined} {
					require.NoError(t, c.Del(ctx, "n").Err())
					cut(1)
					cmds, err := exec(ctx, func(p redis.Pipeliner) error {
						return errors.Join(p.Process(ctx, incr("n")), p.Process(ctx, incr("n")), p.Process(ctx, get("n")))
					})
					assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
					for _, cmd := range cmds {
						assert.ErrorIs(t, cmd.Err(), redial.ErrOutcomeUnknown)
					}
					cut(0)
					assert.Equal(t, "2", c.Get(ctx, "n").Val())
				}
				for _, p := range append(proxies, proxy) {
					p.Match("get")
					p.CutAfterRequest(1)
				}
				cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
					return errors.Join(p.Process(ctx, get("n")), p.Process(ctx, get("n")))
				})
				assert.NoError(t, err, "reads are sent again")
				for _, cmd := range cmds {
					assert.NoError(t, cmd.Err())
				}
				err = c.Process(redial.Once(ctx, "an id"), incr("n"))
				assert.ErrorIs(t, err, redial.ErrOnceUnsupported)
				_, err = c.Pipelined(redial.Once(ctx, "an id"), func(p redis.Pipeliner) error { return p.Process(ctx, incr("n")) })
				assert.ErrorIs(t, err, redial.ErrOnceUnsupported)
				assert.Equal(t, "2", c.Get(ctx, "n").Val())
			})
		}
	}
}

// What was answered before a connection broke keeps its answer, told from the rest by its place.
func TestOutcome_CommandsThatCannotBeCompared_SomeAnswered(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr()})
	c.AddHook(testkit.Passing{})
	ctx := t.Context()
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "incr" && args[1] == "b" {
			return redialtest.ExecuteThenClose
		}
		return redialtest.Handle
	})
	cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, key := range []string{"a", "b", "c"} {
			_ = p.Process(ctx, tagged{redis.NewIntCmd(ctx, "incr", key), nil})
		}
		return nil
	})
	assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
	assert.NoError(t, cmds[0].Err())
	assert.ErrorIs(t, cmds[1].Err(), redial.ErrOutcomeUnknown)
	assert.ErrorIs(t, cmds[2].Err(), redial.ErrOutcomeUnknown)
}

// oneConnection is clients that have one connection to each server, behind a proxy: to that
// of the key {n}.
var oneConnection = map[string]func(t *testing.T) (c redial.UniversalClient, p *redialtest.Proxy, at *redialtest.Server){
	"cluster": func(t *testing.T) (redial.UniversalClient, *redialtest.Proxy, *redialtest.Server) {
		cluster := redialtest.StartCluster(t, 2, 0)
		cluster.AddProxies()
		node := cluster.NodeFor("{n}")
		return redial.NewClusterClient(&redis.ClusterOptions{
			Addrs: cluster.Addrs(), PoolSize: 1, PipelinePoolSize: -1, PoolTimeout: time.Second,
		}), cluster.ProxyOf(node), node
	},
	"ring": func(t *testing.T) (redial.UniversalClient, *redialtest.Proxy, *redialtest.Server) {
		s := redialtest.StartServer(t)
		proxy := redialtest.NewProxy(t, s.Addr())
		return redial.NewRing(&redis.RingOptions{
			Addrs: map[string]string{"a": proxy.Addr()}, PoolSize: 1, PipelinePoolSize: -1, PoolTimeout: time.Second,
		}), proxy, s
	},
}

// What may have run once is not said not to have because of how a later attempt ends.
func TestOutcome_SeveralNodes_RepeatFindsNoConnection_IsUnknown(t *testing.T) {
	t.Parallel()
	for name, start := range oneConnection {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for kind, ctxOf := range map[string]func(context.Context) context.Context{
				"idempotent": redial.Idempotent,
				"once":       func(ctx context.Context) context.Context { return redial.Once(ctx, "id") },
			} {
				for how, exec := range map[string]func(redis.UniversalClient, context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){
					"pipeline": redis.UniversalClient.Pipelined, "transaction": redis.UniversalClient.TxPipelined,
				} {
					t.Run(kind+" "+how, func(t *testing.T) {
						t.Parallel()
						c, p, at := start(t)
						t.Cleanup(func() { _ = c.Close() })
						testkit.WaitReady(t, c)
						for tries := 1; ; tries++ {
							at.Do("FLUSHALL")
							require.Equal(t, "OK", at.Do("CLIENT", "PAUSE", 600))
							p.Match("incr")
							p.CutAfterRequest(1)
							errs := make(chan error, 1)
							go func() {
								_, err := exec(c, ctxOf(t.Context()), func(p redis.Pipeliner) error { p.Incr(t.Context(), "{n}"); return nil })
								errs <- err
							}()
							require.Eventually(t, func() bool {
								stats := c.PoolStats()
								return stats.TotalConns-stats.IdleConns == 1 || len(errs) > 0
							}, 5*time.Second, time.Millisecond)
							taken := make(chan error, 1)
							go func() { // waits for the one connection, and keeps it
								taken <- c.BLPop(t.Context(), 10*time.Second, "{n}list").Err()
							}()
							err := <-errs
							ran := at.Do("GET", "{n}")
							at.Do("RPUSH", "{n}list", "x")
							assert.NoError(t, <-taken)
							if err == nil && tries < 5 { // on a busy machine that one came too late
								continue
							}
							assert.Equal(t, "1", ran)
							assert.ErrorIs(t, err, redis.ErrPoolTimeout)
							assert.ErrorIs(t, err, redial.ErrOutcomeUnknown)
							assert.False(t, redial.SafeToRetry(err))
							break
						}
					})
				}
			}
		})
	}
}

// A command that is in a pipeline twice has the error of the later time. The earlier one has run.
func TestOutcome_CommandTwiceInAPipeline_RefusedTheSecondTime(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	c := testkit.Connect(t, &redis.Options{Addr: f.Addr()})
	ctx := t.Context()
	var calls atomic.Int64
	f.OnCommand(func(cn *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "incr" {
			if n := calls.Add(1); n == 2 || n == 3 {
				cn.Send("-BUSY Redis is busy running a script.\r\n")
				return redialtest.Drop
			}
		}
		return redialtest.Handle
	})
	twice := redis.NewIntCmd(ctx, "incr", "n")
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		return errors.Join(p.Process(ctx, twice), p.Process(ctx, redis.NewIntCmd(ctx, "incr", "n")), p.Process(ctx, twice))
	})
	require.NoError(t, err)
	assert.EqualValues(t, 3, twice.Val())
	assert.Equal(t, "3", c.Get(ctx, "n").Val())
}

// prefixing puts a prefix before the keys of commands, where they are.
type prefixing struct{}

func (prefixing) DialHook(next redis.DialHook) redis.DialHook { return next }
func (p prefixing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { p.prefix(cmd); return next(ctx, cmd) }
}
func (p prefixing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { p.prefix(cmds...); return next(ctx, cmds) }
}

func (prefixing) prefix(cmds ...redis.Cmder) {
	for _, cmd := range cmds {
		if cmd.Name() == "set" || cmd.Name() == "get" {
			cmd.Args()[1] = fmt.Sprint("app:", cmd.Args()[1])
		}
	}
}

// A hook that changes the arguments of commands sees each attempt, and what is sent again is
// what was sent.
func TestHook_ChangesArguments_TheSameIsSentAgain(t *testing.T) {
	t.Parallel()
	s, cluster := redialtest.StartServer(t), redialtest.StartCluster(t, 2, 0)
	p := redialtest.NewProxy(t, s.Addr())
	proxies := cluster.AddProxies()
	ring := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": p.Addr(), "b": redialtest.StartServer(t).Addr()}})
	t.Cleanup(func() { _ = ring.Close() })
	clustered := testkit.NewCluster(t, cluster)
	for name, x := range map[string]struct {
		c       redial.UniversalClient
		proxies []*redialtest.Proxy
	}{
		"client": {testkit.Connect(t, &redis.Options{Addr: p.Addr()}), []*redialtest.Proxy{p}}, "ring": {ring, []*redialtest.Proxy{p}}, "cluster": {clustered, proxies},
	} {
		c, ctx := x.c, redial.Idempotent(t.Context())
		c.AddHook(prefixing{})
		for i := range 12 {
			key := fmt.Sprint("{", i, "}", name)
			lose := func(times int) {
				for _, p := range x.proxies {
					p.Match("app:" + key)
					p.CutAfterRequest(times)
				}
			}
			lose(2)
			require.NoError(t, c.Set(ctx, key, "v", 0).Err())
			lose(2)
			require.Equal(t, "v", c.Get(ctx, key).Val(), key)
			for _, exec := range []func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){c.Pipelined, c.TxPipelined} {
				lose(1)
				cmds, err := exec(ctx, func(p redis.Pipeliner) error {
					p.Set(ctx, key, "other", 0)
					p.Get(ctx, key)
					return nil
				})
				require.NoError(t, err)
				assert.Equal(t, "other", cmds[1].(*redis.StringCmd).Val(), key)
			}
			lose(0)
			assert.Equal(t, "other", c.Get(ctx, key).Val(), key)
		}
	}
	for _, s := range append([]*redialtest.Server{s}, cluster.Nodes...) {
		for _, key := range s.Do("KEYS", "*").([]any) {
			assert.NotContains(t, key, "app:app:")
		}
	}
}

// What a node's hook has asked for before may have run, whatever becomes of the last time.
func TestOutcome_HookOfANodeAsksAgain(t *testing.T) {
	for name, h := range map[string]func(cmds []redis.Cmder, end func()){
		"the context ends":       func(_ []redis.Cmder, end func()) { end() },
		"it has another command": func(cmds []redis.Cmder, _ func()) { cmds[1].Args()[0] = "nonsense" },
	} {
		t.Run(name, func(t *testing.T) {
			c := testkit.NewCluster(t, redialtest.StartCluster(t, 1, 0))
			ctx, end := context.WithCancel(redial.Once(t.Context(), "id"))
			defer end()
			c.OnNewNode(func(n *redis.Client) { n.AddHook(twiceHook{func(cmds []redis.Cmder) { h(cmds, end) }}) })
			cmds, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "{x}n"); return nil })
			require.Equal(t, "1", c.Get(t.Context(), "{x}n").Val())
			require.ErrorIs(t, err, redial.ErrOutcomeUnknown)
			assert.ErrorIs(t, cmds[0].Err(), redial.ErrOutcomeUnknown)
		})
	}
}

// twiceHook asks for each transaction twice.
type twiceHook struct{ between func(cmds []redis.Cmder) }

func (twiceHook) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (twiceHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (h twiceHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if len(cmds) == 3 && cmds[0].Name() == "multi" {
			_ = next(ctx, cmds)
			h.between(cmds)
		}
		return next(ctx, cmds)
	}
}

// A node's hook that asks again is in the way of nothing that did not run.
func TestOutcome_HookOfANodeTriesAgain_IsWaitedFor(t *testing.T) {
	cluster := redialtest.StartCluster(t, 1, 0)
	c := testkit.NewCluster(t, cluster)
	c.OnNewNode(func(n *redis.Client) { n.AddHook(twiceHook{func([]redis.Cmder) {}}) })
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	cluster.Nodes[0].Kill()
	time.AfterFunc(700*time.Millisecond, cluster.Nodes[0].Start)
	_, err := c.TxPipelined(t.Context(), func(p redis.Pipeliner) error { p.Incr(t.Context(), "n"); return nil })
	require.NoError(t, err)
	assert.Equal(t, "2", c.Get(t.Context(), "n").Val())
}
