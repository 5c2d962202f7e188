package redial

import (
	"bytes"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEvents_OneLogLinePerTransition(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var log bytes.Buffer
		opt.Username, opt.Password = "", ""
		c := NewClient(opt, WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		ready(t, c)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		for range 100 {
			_ = c.Set(FailFast(t.Context()), "secret-key", "secret-value", 0).Err()
		}
		time.Sleep(10 * time.Second)
		n.Start()
		ready(t, c)
		require.NoError(t, c.Close())
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		require.Len(t, lines, 4)
		for i, want := range []string{
			"level=INFO msg=\"redis connected\"", "level=WARN msg=\"redis reconnecting\"",
			"level=INFO msg=\"redis connected\"", "level=INFO msg=\"redis closed\"",
		} {
			assert.Contains(t, lines[i], want)
		}
		assert.Contains(t, lines[1], "connection refused")
		assert.NotContains(t, log.String(), "secret")
	})
}

func TestEvents_SlowCallback_DelaysNobody(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		block := make(chan struct{})
		var got []Event
		c := NewClient(opt, WithOnStateChange(func(e Event) {
			<-block
			got = append(got, e)
		}))
		for range 50 {
			require.NoError(t, c.WaitReady(t.Context()))
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			n.Start()
		}
		require.NoError(t, c.WaitReady(t.Context()))
		began := time.Now()
		require.NoError(t, c.Close())
		assert.Equal(t, callbackPatience, time.Since(began))
		close(block)
		synctest.Wait()
		require.Len(t, got, 1+eventQueue)
		assert.Equal(t, StateClosed, got[len(got)-1].To, "the last one is never dropped")
		assert.EqualValues(t, 102-1-eventQueue, c.Stats().EventsDropped)
		for i := 2; i < len(got); i++ {
			assert.Equal(t, got[i-1].To, got[i].From, "in order")
		}
	})
}

func TestEvents_PanickingCallback_IsContainedAndLogged(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var log bytes.Buffer
		calls := 0
		c := NewClient(opt, WithLogger(slog.New(slog.NewTextHandler(&log, nil))),
			WithOnStateChange(func(Event) { calls++; panic("oops") }))
		ready(t, c)
		require.NoError(t, c.Ping(t.Context()).Err())
		require.NoError(t, c.Close())
		assert.Equal(t, 2, calls)
		assert.Equal(t, 2, strings.Count(log.String(), "panic=oops"))
	})
}

// brittle is a handler of a logger that panics.
type brittle struct {
	slog.Handler
	enabled bool
}

func (b brittle) Enabled(context.Context, slog.Level) bool {
	if !b.enabled {
		panic("enabled")
	}
	return true
}
func (brittle) Handle(context.Context, slog.Record) error { panic("handle") }

// A logger that panics ends no program, and keeps nobody from being told: not the callback,
// not the observers, and not the command whose observer panics.
func TestEvents_PanickingLogger_IsContained(t *testing.T) {
	for _, enabled := range []bool{false, true} {
		bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
			calls, seen := 0, &observed{}
			c := NewClient(opt, WithLogger(slog.New(brittle{slog.DiscardHandler, enabled})), WithObserver(panicking{}), WithObserver(seen),
				WithOnStateChange(func(Event) { calls++; panic("oops") }))
			ready(t, c)
			n.Kill()
			require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
			require.ErrorIs(t, c.Ping(FailFast(t.Context())).Err(), ErrUnavailable)
			require.NoError(t, c.Close())
			assert.Equal(t, 3, calls)
			assert.Len(t, seen.states, 3)
			assert.Len(t, seen.failures, 1)
		})
	}
}

func TestEvents_CallbackMayCloseTheClient(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		handed := make(chan *Client, 1)
		var last State
		c := NewClient(opt, WithOnStateChange(func(e Event) {
			if last = e.To; e.To == StateConnected {
				_ = (<-handed).Close()
			}
		}))
		handed <- c
		require.NoError(t, c.WaitForState(t.Context(), StateClosed))
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Equal(t, StateClosed, last)
	})
}

func TestEvents_Durations(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var got []Event
		c := NewClient(opt, WithOnStateChange(func(e Event) { got = append(got, e) }))
		defer c.Close()
		ready(t, c)
		time.Sleep(10 * time.Second)
		n.Kill()
		require.NoError(t, c.WaitForState(t.Context(), StateReconnecting))
		began := time.Now()
		time.Sleep(3 * time.Second)
		n.Start()
		ready(t, c)
		require.Len(t, got, 3)
		assert.InDelta(t, 10*time.Second, got[1].In, float64(time.Second))
		assert.Equal(t, time.Since(began), got[2].In)
		assert.Equal(t, got[2].In, c.Stats().Down)
		assert.NotZero(t, got[2].Attempts)
		assert.Equal(t, "127.0.0.1:1", got[2].Addr)
	})
}

func TestConnect_FailsCleanly(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		n.srv.RequireAuth("right")
		opt.Password = "wrong-secret"
		_, err := Connect(t.Context(), opt)
		assert.ErrorContains(t, err, "WRONGPASS")
		assert.NotContains(t, err.Error(), "secret")

		opt.Password = "right"
		c, err := Connect(t.Context(), opt)
		require.NoError(t, err)
		require.NoError(t, c.Close())

		n.Kill()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err = Connect(ctx, opt)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.True(t, IsConnectionError(err))
	})
}

// growsFrom asserts that no counter of s is below that of before.
func (s Stats) growsFrom(t *testing.T, before Stats) {
	t.Helper()
	v, old := reflect.ValueOf(s), reflect.ValueOf(before)
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.Type.Kind() == reflect.Uint64 {
			assert.GreaterOrEqual(t, v.Field(i).Uint(), old.Field(i).Uint(), f.Name)
		}
	}
	assert.GreaterOrEqual(t, s.Down, before.Down)
}

// Counters outlive the node that they were counted for.
func TestStats_NodeLeaves_CountersOnlyGrow(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		var one atomic.Bool
		nodes := []redis.ClusterSlot{
			{Start: 0, End: 8191, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1:1"}}},
			{Start: 8192, End: lastSlot, Nodes: []redis.ClusterNode{{Addr: "127.0.0.1:2"}}},
		}
		c := NewClusterClient(&redis.ClusterOptions{
			Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
			ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
				if one.Load() {
					return []redis.ClusterSlot{{Start: 0, End: lastSlot, Nodes: nodes[0].Nodes}}, nil
				}
				return nodes, nil
			},
		})
		defer c.Close()
		ctx := t.Context()
		require.NoError(t, c.WaitReady(ctx))
		for _, key := range []string{"a", "b", "c", "d"} {
			require.NoError(t, c.Set(ctx, key, 1, 0).Err())
		}
		n.Kill()
		time.Sleep(4 * time.Second) // each node notices at its next heartbeat
		n.Start()
		require.NoError(t, c.Set(ctx, "a", 1, 0).Err())
		require.NoError(t, c.Set(ctx, "b", 1, 0).Err())
		time.Sleep(30 * time.Second)
		before := c.Stats()
		require.Len(t, before.Nodes, 2)
		require.NotZero(t, before.Nodes[1].Outages)
		one.Store(true)
		c.ReloadState(ctx)
		last := before
		for range 3 * 60 {
			time.Sleep(time.Second)
			s := c.Stats()
			s.growsFrom(t, last)
			last = s
		}
		assert.Len(t, last.Nodes, 1, "the node is gone")
		assert.EqualValues(t, last.Nodes[0].Outages, before.Nodes[0].Outages)
	})
}

// Shards at one address are one node, of which there is one series.
func TestStats_ShardsAtOneAddress_AreOneNode(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, _ *redis.Options) {
		c := NewRing(&redis.RingOptions{
			Addrs:  map[string]string{"one": "127.0.0.1:1", "two": "127.0.0.1:1", "three": "127.0.0.1:3"},
			Dialer: n.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
		})
		defer c.Close()
		require.NoError(t, c.WaitReady(t.Context()))
		for i := range 30 { // on all
			require.NoError(t, c.Set(t.Context(), fmt.Sprint("k", i), "v", 0).Err())
		}
		nodes := c.Stats().Nodes
		require.Len(t, nodes, 2, "%+v", nodes)
		assert.Equal(t, "127.0.0.1:1", nodes[0].Addr)
		assert.Equal(t, "127.0.0.1:3", nodes[1].Addr)
		assert.Equal(t, StateConnected, nodes[0].State)
		assert.Equal(t, 2*nodes[1].Connections, nodes[0].Connections)
		assert.Equal(t, c.Stats().Connections, nodes[0].Connections+nodes[1].Connections)
		n.Kill()
		time.Sleep(4 * time.Second) // each notices at its next heartbeat
		nodes = c.Stats().Nodes
		require.Len(t, nodes, 2)
		assert.Equal(t, StateReconnecting, nodes[0].State)
		assert.EqualValues(t, 2, nodes[0].Outages)
		assert.NotEmpty(t, nodes[0].LastError)
	})
}

// The node is as that link to it is of which there is more to say.
func TestNodeStats_With(t *testing.T) {
	for i, one := range telling {
		for j, other := range telling {
			assert.Equal(t, telling[max(i, j)], NodeStats{State: one}.with(NodeStats{State: other}).State)
		}
	}
	assert.Len(t, telling, int(StateClosed)+1)
}

// The runbook is checked against the code, so that whoever is woken finds a section for
// what has woken him. Alerts are checked in module redialprom.

// sectionsOf returns the text below each heading of the runbook.
func sectionsOf(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("docs/RUNBOOK.md")
	require.NoError(t, err)
	all := make(map[string]string)
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	at := heading.FindAllStringSubmatchIndex(string(text), -1)
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		name := string(text[m[2]:m[3]])
		assert.NotContains(t, all, name, "it is there twice")
		all[name] = string(text[m[1]:end])
	}
	return all
}

// messages returns the constants of observe.go whose names begin with log.
func messages(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "observe.go", nil, 0)
	require.NoError(t, err)
	all := make(map[string]string)
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, "log") {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		require.NoError(t, err)
		all[spec.Names[0].Name] = text
		return true
	})
	return all
}

func TestRunbook_EveryLineHasItsSection(t *testing.T) {
	sections, lines := sectionsOf(t), messages(t)
	require.Contains(t, lines, "logTransition")
	want := []string{}
	for name, line := range lines {
		if name != "logTransition" {
			want = append(want, line)
		}
	}
	for to := StateConnecting + 1; to <= StateClosed; to++ { // nothing becomes Connecting
		want = append(want, logTransition+to.String())
	}
	for _, line := range want {
		assert.Contains(t, sections, line)
		for _, part := range []string{"**Means**", "**First look**", "**redial does by itself**", "**You do**", "**Wake**"} {
			assert.Contains(t, sections[line], part, line)
		}
	}
}

// There is no line of the log but those.
func TestRunbook_NoOtherLines(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	below, err := filepath.Glob("internal/*/*.go")
	require.NoError(t, err)
	found := 0
	for _, name := range append(files, below...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			on, ok := method.X.(*ast.SelectorExpr)
			if !ok || on.Sel.Name != "logger" {
				return true
			}
			found++
			i := 0
			if method.Sel.Name == "LogAttrs" {
				i = 2
			}
			id, ok := call.Args[i].(*ast.Ident)
			assert.True(t, ok && (strings.HasPrefix(id.Name, "log") || id.Name == "message"), "%s writes a line whose words are no constant of observe.go", name)
			return true
		})
	}
	assert.Equal(t, 4, found, "lines of the log")
}

func TestRunbook_EveryCauseHasItsSection(t *testing.T) {
	sections := sectionsOf(t)
	for c := range causes {
		assert.Contains(t, sections, c.String())
		assert.Contains(t, sections[c.String()], "**Means**", c.String())
	}
}

// What it links to is there.
func TestRunbook_Links(t *testing.T) {
	text, err := os.ReadFile("docs/RUNBOOK.md")
	require.NoError(t, err)
	sections := make(map[string]bool)
	for name := range sectionsOf(t) {
		sections[regexp.MustCompile(`[^\w-]`).ReplaceAllString(strings.ReplaceAll(strings.ToLower(name), " ", "-"), "")] = true
	}
	links := regexp.MustCompile(`\]\(#([^)]+)\)`).FindAllStringSubmatch(string(text), -1)
	require.NotEmpty(t, links)
	for _, m := range links {
		assert.True(t, sections[m[1]], m[1])
	}
	for _, m := range regexp.MustCompile("`(redialprom/[\\w.]+)`").FindAllStringSubmatch(string(text), -1) {
		_, err := os.Stat(m[1])
		assert.NoError(t, err)
	}
}
