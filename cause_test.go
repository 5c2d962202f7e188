package redial

import (
	"context"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/wire"
)

// Every cause has a name of its own that is fit for a label, and is documented.
func TestCause_EachIsNamedAndDocumented(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "cause.go", nil, parser.ParseComments)
	require.NoError(t, err)
	documented := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if ok && strings.HasPrefix(spec.Names[0].Name, "Cause") {
			documented++
			assert.True(t, strings.HasPrefix(spec.Doc.Text(), spec.Names[0].Name), spec.Names[0].Name)
		}
		return true
	})
	assert.EqualValues(t, causes, documented)
	seen := make(map[string]bool)
	for c := range causes {
		assert.Regexp(t, regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`), c.String())
		assert.False(t, seen[c.String()], c.String())
		seen[c.String()] = true
	}
	assert.Equal(t, "Cause(255)", Cause(255).String())
	assert.Equal(t, "none", Cause(0).String())
	b, err := json.Marshal(Stats{Cause: CauseNotReady})
	require.NoError(t, err)
	assert.Contains(t, string(b), `"cause":"not_ready"`)
}

// The events of a client say why, each in one word.
func TestCause_Events(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		var got []Cause
		left := make(chan struct{}, 16) // the state Connected, perhaps for no time at all
		c := NewClient(opt, WithOnStateChange(func(e Event) {
			got = append(got, e.Cause)
			assert.NotEmpty(t, e.Reason)
			if e.To == StateReconnecting {
				left <- struct{}{}
			}
		}))
		assert.Equal(t, CauseCreated, c.Stats().Cause)
		ready(t, c)
		again := func() {
			t.Helper()
			select {
			case <-left:
			case <-time.After(time.Minute):
				require.Fail(t, "still connected")
			}
			n.Start()
			n.Thaw()
			ready(t, c)
		}
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		assert.Equal(t, CauseConnectionLost, c.Stats().Cause)
		again()
		n.Freeze()
		again()
		c.Reconnect("")
		again()
		linkOf(c).moved("sentinel says so")
		again()
		f.times("ping", 1, func(p *server.Peer) { p.WriteError("LOADING Redis is loading the dataset in memory") })
		again()
		require.NoError(t, c.Close())
		assert.Equal(t, []Cause{
			CauseAnswered, CauseConnectionLost, CauseAnswered, CauseHeartbeatMissed, CauseAnswered, CauseReconnectCalled,
			CauseAnswered, CauseMoved, CauseAnswered, CauseNotReady, CauseAnswered, CauseClosed,
		}, got)
	})
}

// So do those of a client of several nodes, of the client as a whole and of each.
func TestCause_EventsOfNodes(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var client, nodes []Cause
		c := NewRing(&redis.RingOptions{
			Addrs: map[string]string{"a": "127.0.0.1:1"}, Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
		}, WithOnStateChange(func(e Event) {
			if e.Node == "" {
				client = append(client, e.Cause)
			} else {
				nodes = append(nodes, e.Cause)
			}
		}))
		require.NoError(t, c.WaitReady(t.Context()))
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		assert.Equal(t, CauseNoNode, c.Stats().Cause)
		n.Start()
		require.NoError(t, c.WaitReady(t.Context()))
		assert.Equal(t, CauseAnswered, c.Stats().Nodes[0].Cause)
		c.SetAddrs(map[string]string{"b": "127.0.0.1:2"})
		time.Sleep(5 * time.Second)
		require.NoError(t, c.Close())
		assert.Equal(t, []Cause{CauseAnswered, CauseNoNode, CauseAnswered, CauseClosed}, client)
		assert.Subset(t, nodes, []Cause{CauseAnswered, CauseConnectionLost, CauseNodeRemoved, CauseClosed})
	})
}

// lastError keeps the last error of each command, as a hook of the caller sees it.
type lastError struct {
	recorder
	last sync.Map
}

func (k *lastError) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err != nil {
			k.last.Store(cmd.Name(), err)
		}
		return err
	}
}

// The causes that TestError_Reason does not meet.
func TestCause_Errors(t *testing.T) {
	cause := func(t *testing.T, err error) Cause {
		t.Helper()
		var e *Error
		require.ErrorAs(t, err, &e)
		assert.NotEmpty(t, e.Reason)
		return e.Cause
	}
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt, WithGrace(10*time.Millisecond))
		defer c.Close()
		ready(t, c)
		f.times("get", 3, hangUp)
		for c.keeper.budget.take() {
		}
		assert.Equal(t, CauseBudgetSpent, cause(t, c.Get(t.Context(), "k").Err()))
	})
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		f.times("get", 3, hangUp)
		for c.keeper.budget.take() {
		}
		short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		assert.Equal(t, CauseDeadlineNear, cause(t, c.Get(short, "k").Err()))
	})
	// A command that breaks every connection is sent as often as go-redis sends it.
	for name, send := range map[string]func(c *Client) error{
		"single": func(c *Client) error { return c.Get(context.Background(), "k").Err() },
		"pipeline": func(c *Client) error {
			_, err := c.Pipelined(context.Background(), func(p redis.Pipeliner) error { p.Get(context.Background(), "k"); return nil })
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
				f := inject(n)
				c := NewClient(opt)
				defer c.Close()
				ready(t, c)
				f.times("get", 100, hangUp)
				err := send(c)
				assert.Equal(t, CauseRunsSpent, cause(t, err))
				assert.ErrorIs(t, err, ErrOutcomeUnknown)
				var e *Error
				require.ErrorAs(t, err, &e)
				assert.Equal(t, maxRuns, e.Attempts)
				assert.EqualValues(t, maxRuns-1, c.Stats().RetriesRepeated)
			})
		})
	}
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		cmds := []redis.Cmder{redis.NewStatusCmd(t.Context(), "set", "k", "v")}
		err := c.hook.shared(t.Context(), cmds, func(context.Context, []redis.Cmder) error {
			return &wire.Error{Phase: wire.PhaseRead, Err: errTest}
		})
		assert.Equal(t, CauseSharedConnection, cause(t, err))
	})
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		seen := &lastError{}
		opt.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
			if err := cn.Get(ctx, "k").Err(); err != redis.Nil {
				seen.last.Store("get", err)
				return err
			}
			return nil
		}
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		f.times("get", 1, hangUp)
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		err, ok := seen.last.Load("get")
		require.True(t, ok)
		assert.Equal(t, CauseHandshake, cause(t, err.(error)))
	})
	t.Run("pool", func(t *testing.T) { // outside of a bubble, see there
		n := newMemNet()
		defer n.close()
		c := NewClient(&redis.Options{
			Addr: "127.0.0.1:1", Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 1, PoolTimeout: 10 * time.Millisecond,
		})
		defer c.Close()
		held := c.Conn()
		defer held.Close()
		require.NoError(t, held.Ping(t.Context()).Err())
		assert.Equal(t, CausePoolExhausted, cause(t, c.Get(t.Context(), "k").Err()))
	})
}
