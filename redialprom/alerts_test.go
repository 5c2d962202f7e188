package redialprom_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialprom"
	"github.com/redial-go/redial/redialtest"
)

// Clients go through outages in fake time, their series are recorded as Prometheus would
// scrape them, and promtool says which alerts are firing when. In each scenario these are
// all that are.

const scrape = 15 * time.Second

// scenario is what happens to a client, and what is firing after which time.
type scenario struct {
	name string
	// play builds a client and returns what is asked for its series, and, with the time
	// at which they happen, the steps.
	play   func(t *testing.T, o *redialprom.Observer) (redialprom.Source, []step)
	length time.Duration
	every  time.Duration // between scrapes; 0: scrape
	firing []firing
}

type step struct {
	at time.Duration
	do func()
}

type firing struct {
	at     time.Duration
	alerts []string
}

// options are those of a client of a server in memory.
func options(server *redialtest.FakeServer) *redis.Options {
	return &redis.Options{Addr: server.Addr(), Dialer: server.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500}
}

// asked is a source whose numbers are made up.
type asked func() redial.Stats

func (f asked) Stats() redial.Stats { return f() }

// made returns a source whose numbers are set by the time since it was made.
func made(set func(s *redial.Stats, since time.Duration)) func(*testing.T, *redialprom.Observer) (redialprom.Source, []step) {
	return func(*testing.T, *redialprom.Observer) (redialprom.Source, []step) {
		began := time.Now()
		return asked(func() redial.Stats {
			s := redial.Stats{State: redial.StateConnected, MaxWaiting: 100}
			set(&s, time.Since(began))
			return s
		}), nil
	}
}

// away: a server is away for so long, under load, after it has executed a write whose reply
// was lost.
func away(long time.Duration) func(*testing.T, *redialprom.Observer) (redialprom.Source, []step) {
	return func(t *testing.T, o *redialprom.Observer) (redialprom.Source, []step) {
		server, rdb := counting(t, o)
		return rdb, []step{
			{2 * time.Minute, func() {
				server.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
					if strings.EqualFold(args[0], "incr") {
						return redialtest.ExecuteThenClose
					}
					return redialtest.Handle
				})
				assert.ErrorIs(t, rdb.Incr(context.Background(), "n").Err(), redial.ErrOutcomeUnknown)
				server.Kill()
			}},
			{2*time.Minute + long, func() { server.OnCommand(nil); assert.NoError(t, server.Start()) }},
		}
	}
}

// counting is a client that sends its server a write a second until the test ends.
func counting(t *testing.T, o *redialprom.Observer) (*redialtest.FakeServer, *redial.Client) {
	server := redialtest.NewFakeServerPipe(t)
	rdb := redial.NewClient(options(server), redial.WithObserver(o))
	t.Cleanup(func() { _ = rdb.Close() })
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for tick := time.NewTicker(time.Second); ; {
			select {
			case <-tick.C:
				_ = rdb.Incr(context.Background(), "n").Err()
			case <-stop:
				tick.Stop()
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-ended })
	return server, rdb
}

// refuses: a server that is up answers every write so, from the second minute to the seventh.
func refuses(reply string) func(*testing.T, *redialprom.Observer) (redialprom.Source, []step) {
	return func(t *testing.T, o *redialprom.Observer) (redialprom.Source, []step) {
		server, rdb := counting(t, o)
		return rdb, []step{
			{2 * time.Minute, func() {
				server.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
					if strings.EqualFold(args[0], "incr") {
						return redialtest.Reply("-" + reply + "\r\n")
					}
					return redialtest.Handle
				})
			}},
			{7 * time.Minute, func() { server.OnCommand(nil) }},
		}
	}
}

// blips: a server goes away for three seconds, once a minute, so many times.
func blips(n int) func(*testing.T, *redialprom.Observer) (redialprom.Source, []step) {
	return func(t *testing.T, o *redialprom.Observer) (redialprom.Source, []step) {
		server := redialtest.NewFakeServerPipe(t)
		rdb := redial.NewClient(options(server), redial.WithObserver(o))
		t.Cleanup(func() { _ = rdb.Close() })
		var steps []step
		for i := range n {
			at := time.Duration(i+2) * time.Minute
			steps = append(steps, step{at, server.Kill}, step{at + 3*time.Second, func() { assert.NoError(t, server.Start()) }})
		}
		return rdb, steps
	}
}

// shards is a ring of a server that is well and of two.
func shards(t *testing.T, two *redialtest.FakeServer, o *redialprom.Observer) *redial.Ring {
	servers := map[string]*redialtest.FakeServer{"127.0.0.1:1": redialtest.NewFakeServerPipe(t), "127.0.0.1:2": two}
	rdb := redial.NewRing(&redis.RingOptions{
		Addrs: map[string]string{"one": "127.0.0.1:1", "two": "127.0.0.1:2"}, Protocol: 2, DisableIdentity: true, PoolSize: 500,
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if servers[addr] == nil {
				return nil, errors.New("nobody is there")
			}
			return servers[addr].Dial(ctx, network, addr)
		},
	}, redial.WithObserver(o))
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

var scenarios = []scenario{
	{
		name:   "an outage of five minutes under load",
		play:   away(5 * time.Minute),
		length: 22 * time.Minute,
		firing: []firing{
			{time.Minute, nil},
			{3*time.Minute + 30*time.Second, []string{"RedialDown", "RedialOutcomeUnknown", "RedialRefusing"}},
			{6 * time.Minute, []string{"RedialDown", "RedialInstanceCutOff", "RedialOutcomeUnknown", "RedialRefusing"}},
			{11 * time.Minute, []string{"RedialOutcomeUnknown"}},
			{20 * time.Minute, nil},
		},
	},
	{
		name:   "an outage of five minutes, scraped as rarely as Prometheus does unless it is told otherwise",
		play:   away(5 * time.Minute),
		length: 22 * time.Minute,
		every:  time.Minute,
		firing: []firing{
			{time.Minute, nil},
			{6*time.Minute + 30*time.Second, []string{"RedialDown", "RedialInstanceCutOff", "RedialOutcomeUnknown", "RedialRefusing"}},
			{20 * time.Minute, nil},
		},
	},
	{
		name:   "an outage that is over a second after the grace",
		play:   away(6 * time.Second),
		length: 14 * time.Minute,
		firing: []firing{
			{3 * time.Minute, []string{"RedialOutcomeUnknown"}},
			{3*time.Minute + 30*time.Second, []string{"RedialOutcomeUnknown"}},
			{4*time.Minute + 30*time.Second, []string{"RedialOutcomeUnknown"}},
			{13 * time.Minute, nil},
		},
	},
	{
		name:   "a server that has become a replica, and stays one",
		play:   refuses("READONLY You can't write against a read only replica."),
		length: 10 * time.Minute,
		firing: []firing{{time.Minute, nil}, {3*time.Minute + 45*time.Second, []string{"RedialRefusing"}}, {9 * time.Minute, nil}},
	},
	{
		name:   "a password that is not the right one any more, scraped rarely",
		play:   refuses("WRONGPASS invalid username-password pair or user is disabled."),
		length: 13 * time.Minute,
		every:  time.Minute,
		firing: []firing{{time.Minute, nil}, {5 * time.Minute, []string{"RedialRefusing"}}, {12 * time.Minute, nil}},
	},
	{
		name:   "three blips within the grace",
		play:   blips(3),
		length: 25 * time.Minute,
		every:  time.Minute,
		firing: []firing{{6*time.Minute + 15*time.Second, nil}, {15*time.Minute + 15*time.Second, nil}},
	},
	{
		name:   "blips within the grace",
		play:   blips(5),
		length: 25 * time.Minute,
		firing: []firing{
			{3 * time.Minute, nil},
			{8 * time.Minute, []string{"RedialFlapping"}},
			{24 * time.Minute, nil},
		},
	},
	{
		name: "a server that is never there",
		play: func(t *testing.T, o *redialprom.Observer) (redialprom.Source, []step) {
			server := redialtest.NewFakeServerPipe(t)
			server.Kill()
			rdb := redial.NewClient(options(server), redial.WithObserver(o))
			t.Cleanup(func() { _ = rdb.Close() })
			return rdb, nil
		},
		length: 4 * time.Minute,
		firing: []firing{{time.Minute, nil}, {3 * time.Minute, []string{"RedialNeverConnected"}}},
	},
	{
		name: "as many wait as may",
		play: func(t *testing.T, o *redialprom.Observer) (redialprom.Source, []step) {
			server := redialtest.NewFakeServerPipe(t)
			rdb := redial.NewClient(options(server), redial.WithObserver(o), redial.WithMaxWaiting(10), redial.WithGrace(time.Hour))
			t.Cleanup(func() { _ = rdb.Close() })
			return rdb, []step{
				{time.Minute, func() {
					server.Kill()
					assert.NoError(t, rdb.WaitForState(context.Background(), redial.StateReconnecting))
					for range 9 {
						go func() { _ = rdb.Set(context.Background(), "k", "v", 0).Err() }()
					}
				}},
				{75 * time.Second, func() { assert.NoError(t, server.Start()) }},
			}
		},
		length: 3 * time.Minute,
		firing: []firing{{time.Minute, nil}, {2 * time.Minute, nil}},
	},
	{
		name: "as many wait as may, for long",
		play: func(t *testing.T, o *redialprom.Observer) (redialprom.Source, []step) {
			server := redialtest.NewFakeServerPipe(t)
			rdb := redial.NewClient(options(server), redial.WithObserver(o), redial.WithMaxWaiting(10), redial.WithGrace(time.Hour))
			t.Cleanup(func() { _ = rdb.Close() })
			return rdb, []step{{time.Minute, func() {
				server.Kill()
				assert.NoError(t, rdb.WaitForState(context.Background(), redial.StateReconnecting))
				for range 9 {
					go func() { _ = rdb.Set(context.Background(), "k", "v", 0).Err() }()
				}
			}}}
		},
		length: 3 * time.Minute,
		firing: []firing{{time.Minute, nil}, {2*time.Minute + 30*time.Second, []string{"RedialDown", "RedialWaitersNearLimit"}}},
	},
	{
		name: "a shard is down",
		play: func(t *testing.T, o *redialprom.Observer) (redialprom.Source, []step) {
			two := redialtest.NewFakeServerPipe(t)
			rdb := shards(t, two, o)
			return rdb, []step{
				{time.Minute, func() {
					for i := range 20 { // on both
						assert.NoError(t, rdb.Set(context.Background(), fmt.Sprint("key", i), "v", 0).Err())
					}
				}},
				{2 * time.Minute, two.Kill},
			}
		},
		length: 5 * time.Minute,
		firing: []firing{{2 * time.Minute, nil}, {4 * time.Minute, []string{"RedialNodeDown"}}},
	},
	{
		name: "a shard is down when the program is started",
		play: func(t *testing.T, o *redialprom.Observer) (redialprom.Source, []step) {
			two := redialtest.NewFakeServerPipe(t)
			two.Kill()
			return shards(t, two, o), []step{{3 * time.Minute, func() { assert.NoError(t, two.Start()) }}}
		},
		length: 5 * time.Minute,
		firing: []firing{{45 * time.Second, nil}, {2 * time.Minute, []string{"RedialNodeDown"}}, {4 * time.Minute, nil}},
	},
	{
		name: "retries are delayed",
		play: made(func(s *redial.Stats, since time.Duration) {
			s.RetriesRefused = 1000 * uint64(since/time.Second)
			if since > time.Minute {
				s.RetriesDelayed = uint64((since - time.Minute) / time.Second)
			}
		}),
		length: 10 * time.Minute,
		firing: []firing{{3 * time.Minute, nil}, {8 * time.Minute, []string{"RedialRetryBudgetSpent"}}},
	},
	{
		name: "the server is slow",
		play: made(func(s *redial.Stats, since time.Duration) {
			s.Heartbeats = uint64(since / time.Second)
			if s.RTT = time.Millisecond; since > time.Minute {
				s.RTT = 150 * time.Millisecond
			}
		}),
		length: 8 * time.Minute,
		firing: []firing{{4 * time.Minute, nil}, {7 * time.Minute, []string{"RedialSlowHeartbeat"}}},
	},
	{
		name: "the server was slow, and now traffic never pauses",
		play: made(func(s *redial.Stats, since time.Duration) {
			s.Heartbeats, s.RTT = uint64(min(since, 2*time.Minute)/time.Second), 150*time.Millisecond
			s.HeartbeatsSkipped = uint64(max(since-2*time.Minute, 0) / time.Second)
		}),
		length: 20 * time.Minute,
		firing: []firing{{6 * time.Minute, []string{"RedialSlowHeartbeat"}}, {15 * time.Minute, nil}},
	},
	{
		name: "idle connections die",
		play: made(func(s *redial.Stats, since time.Duration) {
			s.IdleChecks, s.IdleDropped = uint64(since/time.Second), uint64(since/time.Minute)
		}),
		length: 40 * time.Minute,
		firing: []firing{{10 * time.Minute, nil}, {35 * time.Minute, []string{"RedialIdleConnectionsDropped"}}},
	},
}

// record plays a scenario and returns the values of each series, one for each scrape.
func record(t *testing.T, s scenario, every time.Duration) map[string][]string {
	all := make(map[string][]string)
	o := redialprom.NewObserver()
	source, steps := s.play(t, o)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(redialprom.NewCollector("cache", source, redialprom.WithObserver(o), redialprom.WithNodes()))
	began := time.Now()
	for at := time.Duration(0); at <= s.length; at += every {
		for len(steps) > 0 && steps[0].at <= at {
			time.Sleep(time.Until(began.Add(steps[0].at)))
			steps[0].do()
			steps = steps[1:]
		}
		time.Sleep(time.Until(began.Add(at)))
		synctest.Wait()
		families, err := reg.Gather()
		require.NoError(t, err)
		scraped := int(at / every)
		for _, f := range families {
			for _, m := range f.Metric {
				for name, value := range valuesOf(f, m) {
					for len(all[name]) < scraped {
						all[name] = append(all[name], "_")
					}
					all[name] = append(all[name], value)
				}
			}
		}
	}
	return all
}

// valuesOf returns the series of a metric that alerts may ask for.
func valuesOf(f *dto.MetricFamily, m *dto.Metric) map[string]string {
	labels := []string{`instance="10.1.2.3:8080"`, `job="shop"`}
	for _, l := range m.Label {
		labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
	}
	name := func(suffix string) string { return f.GetName() + suffix + "{" + strings.Join(labels, ",") + "}" }
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	switch {
	case m.Histogram != nil:
		return map[string]string{
			name("_count"): number(float64(m.Histogram.GetSampleCount())), name("_sum"): number(m.Histogram.GetSampleSum()),
		}
	case m.Counter != nil:
		return map[string]string{name(""): number(m.Counter.GetValue())}
	}
	return map[string]string{name(""): number(m.Gauge.GetValue())}
}

// promtool runs it.
func promtool(t *testing.T, args ...string) { promtoolIn(t, "", args...) }

// promtoolIn is promtool with something to read. It fails the test where promtool finds
// fault, in words as well.
func promtoolIn(t *testing.T, in string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool(t, "promtool"), args...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestAlerts_AreValid(t *testing.T) { promtool(t, "check", "rules", "--lint-fatal", "alerts.yaml") }

// What is exposed is as the tool of Prometheus wants it, whatever there is to expose.
func TestCollector_PromtoolFindsNoFault(t *testing.T) {
	promtoolIn(t, exposed(t, full(t)), "check", "metrics")
}

// Every alert fires in a scenario, in those where it should and in no other.
func TestAlerts_FireWhenTheyShould(t *testing.T) {
	fired := make(map[string]bool)
	for _, s := range scenarios {
		for _, f := range s.firing {
			for _, a := range f.alerts {
				fired[a] = true
			}
		}
	}
	for _, r := range rules(t) {
		assert.True(t, fired[r.Alert], "%s fires in no scenario", r.Alert)
	}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			every := cmp.Or(s.every, scrape)
			var series map[string][]string
			synctest.Test(t, func(t *testing.T) { series = record(t, s, every) })
			tryRules(t, series, every, scrape, s.firing)
		})
	}
}

// Of two instances, the one of which was started anew in the outage, neither reaches its server.
func TestAlerts_StartedInAnOutage(t *testing.T) {
	series := make(map[string][]string)
	for _, one := range [][]string{{"a", "reconnecting"}, {"b", "connecting"}} {
		for _, state := range []string{"connecting", "connected", "reconnecting", "closed"} {
			values := slices.Repeat([]string{"0"}, 8)
			if state == one[1] {
				values = slices.Repeat([]string{"1"}, 8)
			}
			series[fmt.Sprintf("redial_status{job=%q,client=%q,instance=%q,state=%q}", "shop", "cache", one[0], state)] = values
		}
	}
	tryRules(t, series, scrape, scrape, []firing{{time.Minute, []string{"RedialDown"}}})
}

// tryRules has promtool say which alerts are firing when, by the rules as they are shipped,
// series with a value for each interval, and a look at the rules every so often: more often
// than there are values, since a Prometheus does not look when it has just scraped.
func tryRules(t *testing.T, series map[string][]string, interval, look time.Duration, tests []firing) {
	t.Helper()
	require.NotEmpty(t, series)
	file, err := filepath.Abs("alerts.yaml")
	require.NoError(t, err)
	var b strings.Builder
	fmt.Fprintf(&b, "rule_files: [%q]\nevaluation_interval: %s\ntests:\n  - interval: %s\n    input_series:\n", file, look, interval)
	for _, name := range slices.Sorted(maps.Keys(series)) {
		fmt.Fprintf(&b, "      - series: '%s'\n        values: '%s'\n", name, strings.Join(series[name], " "))
	}
	fmt.Fprintf(&b, "    promql_expr_test:\n")
	for _, f := range tests {
		fmt.Fprintf(&b, "      - expr: count by (alertname) (ALERTS{alertstate=\"firing\"})\n        eval_time: %s\n        exp_samples:\n", f.at)
		for _, a := range f.alerts {
			fmt.Fprintf(&b, "          - labels: '{alertname=%q}'\n            value: 1\n", a)
		}
	}
	test := filepath.Join(t.TempDir(), "test.yaml")
	require.NoError(t, os.WriteFile(test, []byte(b.String()), 0o600))
	promtool(t, "test", "rules", test)
}

// What the dashboard shows of series that a scrape a minute has left.
func TestDashboard_Shows(t *testing.T) {
	text, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ RefID, Expr string }
		}
		Annotations struct{ List []struct{ Name, Expr string } }
	}
	require.NoError(t, json.Unmarshal(text, &dashboard))
	queries := make(map[string]string)
	for _, a := range dashboard.Annotations.List {
		queries[a.Name] = a.Expr
	}
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			queries[p.Title+" "+q.RefID] = q.Expr
		}
	}
	status := func(metric, instance, state string) string {
		return fmt.Sprintf("%s{job=%q,client=%q,instance=%q,node=%q,state=%q}", metric, "shop", "cache", instance, "n:1", state)
	}
	for _, tc := range []struct {
		name, query string
		series      map[string]string
		shows       string // the one sample, "": none
	}{
		{"an outage is marked", "Outages", map[string]string{`redial_outages_total{job="shop",client="cache"}`: "0 0 1 1 1"}, `{job="shop",client="cache"} 1`},
		{"no outage has no length", "Outages, 24 h B", map[string]string{
			`redial_outage_duration_seconds_sum{job="shop",client="cache",cause="moved"}`:   "0x4",
			`redial_outage_duration_seconds_count{job="shop",client="cache",cause="moved"}`: "0x4",
		}, ""},
		{"an instance that was started in an outage is down", "Share of instances down A", map[string]string{
			status("redial_status", "a", "connecting"): "1x4", status("redial_status", "a", "reconnecting"): "0x4",
			status("redial_status", "b", "connecting"): "0x4", status("redial_status", "b", "reconnecting"): "1x4",
		}, `{client="cache"} 1`},
		{"a client that was closed hides nothing", "State by node A", map[string]string{
			status("redial_node_status", "a", "connecting"): "0x4", status("redial_node_status", "a", "reconnecting"): "0x4", status("redial_node_status", "a", "connected"): "0x4",
			status("redial_node_status", "b", "connecting"): "0x4", status("redial_node_status", "b", "reconnecting"): "1x4", status("redial_node_status", "b", "connected"): "0x4",
		}, `{client="cache",node="n:1"} 3`},
		{"a node that an instance has never reached is not hidden by those that have", "State by node A", map[string]string{
			status("redial_node_status", "a", "connecting"): "1x4", status("redial_node_status", "a", "reconnecting"): "0x4", status("redial_node_status", "a", "connected"): "0x4",
			status("redial_node_status", "b", "connecting"): "0x4", status("redial_node_status", "b", "reconnecting"): "0x4", status("redial_node_status", "b", "connected"): "1x4",
		}, `{client="cache",node="n:1"} 2`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b strings.Builder
			fmt.Fprintf(&b, "tests:\n  - interval: 1m\n    input_series:\n")
			for name, values := range tc.series {
				fmt.Fprintf(&b, "      - {series: '%s', values: '%s'}\n", name, values)
			}
			require.Contains(t, queries, tc.query)
			query := strings.NewReplacer("$job", ".+", "$client", ".+").Replace(queries[tc.query])
			fmt.Fprintf(&b, "    promql_expr_test:\n      - expr: %q\n        eval_time: 2m30s\n        exp_samples:\n", query)
			if labels, value, ok := strings.Cut(tc.shows, "} "); ok {
				fmt.Fprintf(&b, "          - {labels: '%s}', value: %s}\n", labels, value)
			}
			test := filepath.Join(t.TempDir(), "test.yaml")
			require.NoError(t, os.WriteFile(test, []byte(b.String()), 0o600))
			promtool(t, "test", "rules", test)
		})
	}
}
