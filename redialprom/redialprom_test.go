package redialprom_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialprom"
	"github.com/redial-go/redial/redialtest"
)

var update = flag.Bool("update", false, "write the golden exposition anew")

const golden = "testdata/metrics.txt"

var _ = []redialprom.Source{(*redial.Client)(nil), (*redial.ClusterClient)(nil), (*redial.Ring)(nil), (*redial.Supervisor)(nil)}

var _ = []interface {
	redial.StateObserver
	redial.WaitObserver
}{(*redialprom.Observer)(nil)}

// shown is a client in any condition.
type shown redial.Stats

func (s shown) Stats() redial.Stats { return redial.Stats(s) }

// numbered returns statistics in which every number is another.
func numbered() shown {
	var s redial.Stats
	n := uint64(100)
	v := reflect.ValueOf(&s).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Uint64:
			n++
			f.SetUint(n)
		case reflect.Int:
			n++
			f.SetInt(int64(n))
		case reflect.Int64:
			n++
			f.SetInt(int64(time.Duration(n) * time.Millisecond))
		}
	}
	s.State = redial.StateConnected
	s.Nodes = []redial.NodeStats{
		{Addr: "10.0.0.1:6379", State: redial.StateConnected, RTT: time.Millisecond, Connections: 3, Outages: 4, Waiting: 5},
		{Addr: "10.0.0.2:6379", State: redial.StateReconnecting, Outages: 6},
	}
	return shown(s)
}

// exposed returns the text of a registry.
func exposed(t *testing.T, reg *prometheus.Registry) string {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	names := make([]string, 0, len(families))
	for _, f := range families {
		names = append(names, f.GetName())
	}
	text, err := testutil.CollectAndFormat(gathered{reg}, expfmt.TypeTextPlain, names...)
	require.NoError(t, err)
	return string(text)
}

// gathered is a registry as a collector.
type gathered struct{ *prometheus.Registry }

// full returns a registry with all that there is.
func full(t *testing.T, opts ...redialprom.Option) *prometheus.Registry {
	t.Helper()
	seen := redialprom.NewObserver()
	for i, cause := range []redial.Cause{redial.CauseConnectionLost, redial.CauseConnectionLost, redial.CauseHeartbeatMissed} {
		d := time.Duration(i+1) * 4 * time.Second
		seen.ObserveState(redial.Event{
			From: redial.StateReconnecting, To: redial.StateConnected, In: d, Cause: redial.CauseAnswered,
			Outage: &redial.Outage{Duration: d, Cause: cause},
		})
	}
	for i, cause := range []redial.Cause{redial.CauseNone, redial.CauseNone, redial.CauseGraceOver, redial.CauseContextEnded, redial.CauseClosed} {
		seen.ObserveWait(context.Background(), redial.Wait{For: time.Duration(i+1) * 250 * time.Millisecond, Cause: cause})
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(redialprom.NewCollector("cache", numbered(), append(opts, redialprom.WithObserver(seen), redialprom.WithNodes())...))
	return reg
}

func TestCollector_Golden(t *testing.T) {
	got := exposed(t, full(t))
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), got)
}

// Every number of the statistics is in a series, and none is in two.
func TestCollector_HasEveryNumber(t *testing.T) {
	text := exposed(t, full(t))
	s := redial.Stats(numbered())
	v := reflect.ValueOf(s)
	for i := range v.NumField() {
		field := v.Type().Field(i).Name
		var want string
		switch v.Field(i).Kind() {
		case reflect.Uint64:
			want = fmt.Sprint(v.Field(i).Uint())
		case reflect.Int:
			want = fmt.Sprint(v.Field(i).Int())
		case reflect.Int64:
			want = fmt.Sprint(time.Duration(v.Field(i).Int()).Seconds())
		default:
			continue
		}
		times := len(regexp.MustCompile(`(?m)^redial_[a-z_]+\{[^}]*client="cache"[^}]*\} `+regexp.QuoteMeta(want)+`$`).FindAllString(text, -1))
		switch field {
		case "Retries": // the sum of the others
			assert.Zero(t, times, field)
		default:
			assert.Equal(t, 1, times, "%s: %s", field, want)
		}
	}
}

func TestCollector_Lint(t *testing.T) {
	problems, err := testutil.GatherAndLint(full(t))
	require.NoError(t, err)
	assert.Empty(t, problems)
}

// What a client costs in series, and that every value of a label is there at once.
func TestCollector_Series_AreBounded(t *testing.T) {
	count := func(s redialprom.Source, opts ...redialprom.Option) (n int, text string) {
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(redialprom.NewCollector("cache", s, opts...))
		text = exposed(t, reg)
		return strings.Count(text, "\n") - strings.Count(text, "#"), text
	}
	fresh := shown{}
	plain, _ := count(fresh)
	observed, text := count(fresh, redialprom.WithObserver(redialprom.NewObserver()))
	nodes, _ := count(numbered(), redialprom.WithNodes())
	without, _ := count(numbered())
	t.Logf("series: %d a client, %d with the histograms, %d more a node", plain, observed, (nodes-without)/2)
	assert.LessOrEqual(t, plain, 32)
	assert.LessOrEqual(t, observed, 170)
	assert.LessOrEqual(t, nodes-without, 2*8)
	for _, want := range []string{
		`state="connecting"`, `state="connected"`, `state="reconnecting"`, `state="closed"`,
		`outcome="not_run"`, `outcome="unknown"`, `after="unsent"`, `after="refused"`, `after="repeated"`,
		`cause="connection_lost"`, `cause="heartbeat_missed"`, `cause="not_ready"`, `cause="moved"`, `cause="reconnect_called"`, `cause="no_node"`,
		`result="admitted"`, `result="refused"`, `result="canceled"`,
	} {
		assert.Contains(t, text, want)
	}
}

// undescribed is a collector that does not say what it has.
type undescribed struct{ prometheus.Collector }

func (undescribed) Describe(chan<- *prometheus.Desc) {}

// Bad input is a clear error, and never a panic.
func TestCollector_BadInput(t *testing.T) {
	for _, s := range []redialprom.Source{nil, (*redial.Client)(nil), (*redial.Supervisor)(nil)} {
		reg := prometheus.NewPedanticRegistry()
		require.NoError(t, reg.Register(redialprom.NewCollector("cache", s, nil)))
		_, err := reg.Gather()
		assert.ErrorContains(t, err, "there is no client to ask")
	}
	reg := prometheus.NewPedanticRegistry()
	require.NoError(t, reg.Register(redialprom.NewCollector("cache", numbered())))
	assert.ErrorAs(t, reg.Register(redialprom.NewCollector("cache", numbered())), &prometheus.AlreadyRegisteredError{})
	assert.NoError(t, reg.Register(redialprom.NewCollector("sessions", numbered())), "another name")
	assert.Error(t, reg.Register(redialprom.NewCollector("other", numbered(), redialprom.WithLabels(prometheus.Labels{"state": "x"}))))
	require.NoError(t, reg.Register(redialprom.NewCollector("jobs", numbered())), "what failed leaves nothing behind")
	_, err := reg.Gather()
	assert.NoError(t, err)

	// Labels that the package has itself, also those that it has always.
	for _, taken := range []string{"client", "state", "node", "outcome", "after", "cause", "result", "le"} {
		reg := prometheus.NewPedanticRegistry()
		err := reg.Register(redialprom.NewCollector("cache", numbered(), redialprom.WithLabels(prometheus.Labels{taken: "x"})))
		assert.ErrorContains(t, err, "has the label "+taken)
	}
	// A collector that was not made by NewCollector, or wrongly: registered, and as what another
	// collector passes on without saying so before.
	for want, c := range map[string]*redialprom.Collector{
		"not made by NewCollector": {}, "was not made by NewCollector": nil,
		"has the label state": redialprom.NewCollector("cache", numbered(), redialprom.WithLabels(prometheus.Labels{"state": "x"})),
		"UTF-8":               redialprom.NewCollector("caf\xe9", numbered()),
	} {
		reg := prometheus.NewPedanticRegistry()
		assert.ErrorContains(t, reg.Register(c), want)
		reg = prometheus.NewRegistry()
		require.NoError(t, reg.Register(undescribed{c}))
		_, err := reg.Gather()
		assert.ErrorContains(t, err, want)
	}
	// An observer that was not made by NewObserver, and none.
	for _, o := range []*redialprom.Observer{nil, {}} {
		reg := prometheus.NewPedanticRegistry()
		require.NoError(t, reg.Register(redialprom.NewCollector("cache", numbered(), redialprom.WithObserver(o))))
		assert.NotPanics(t, func() {
			if o != nil {
				o.ObserveWait(t.Context(), redial.Wait{For: time.Second})
				o.ObserveState(redial.Event{From: redial.StateReconnecting, Outage: &redial.Outage{Cause: redial.CauseMoved}})
			}
		})
		text := exposed(t, reg)
		assert.Equal(t, o != nil, strings.Contains(text, `redial_command_wait_time_seconds_count{client="cache",result="admitted"} 1`))
		assert.Equal(t, o != nil, strings.Contains(text, `redial_outage_duration_seconds_count{cause="not_ready",client="cache"} 0`))
	}

	// What a server calls its nodes is not ours to choose.
	odd := numbered()
	odd.Nodes[0].Addr, odd.Nodes[1].Addr = "node\xff:6379", "node\xfe:6379"
	reg = prometheus.NewPedanticRegistry()
	require.NoError(t, reg.Register(redialprom.NewCollector("cache", odd, redialprom.WithNodes())))
	text := exposed(t, reg)
	assert.Contains(t, text, `redial_node_outages_total{client="cache",node="node\\xff:6379"} 4`)
	assert.Contains(t, text, `redial_node_outages_total{client="cache",node="node\\xfe:6379"}`)

	odd.Nodes[0].Addr = `C:\run\redis.sock`
	reg = prometheus.NewPedanticRegistry()
	require.NoError(t, reg.Register(redialprom.NewCollector("cache", odd, redialprom.WithNodes())))
	got := ""
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if f.GetName() == "redial_node_outages_total" && l.GetName() == "node" && l.GetValue() != "node\\xfe:6379" {
					got = l.GetValue()
				}
			}
		}
	}
	assert.Equal(t, odd.Nodes[0].Addr, got, "an address that is text is shown as it is")

	for _, addrs := range [][2]string{{"a\xff:1", `a\xff:1`}, {`a\xff:1`, `a\\xff:1`}, {`a\:1`, `a\\xff:1`}, {`a\:1`, `a\\:1`}, {`a"`, `a\"`}} {
		odd.Nodes[0].Addr, odd.Nodes[1].Addr = addrs[0], addrs[1]
		reg = prometheus.NewPedanticRegistry()
		require.NoError(t, reg.Register(redialprom.NewCollector("cache", odd, redialprom.WithNodes())))
		_, err := reg.Gather()
		assert.NoError(t, err, "two nodes are never one: %q", addrs)
	}

	labels := prometheus.Labels{"team": "shop"}
	reg = prometheus.NewPedanticRegistry()
	require.NoError(t, reg.Register(redialprom.NewCollector("cache", numbered(), redialprom.WithLabels(labels))))
	assert.Contains(t, exposed(t, reg), `redial_outages_total{client="cache",team="shop"}`)
	assert.Len(t, labels, 1, "what was given is left alone")
}

// A client that is closed is scraped as before, with its last values.
func TestCollector_ClosedClient(t *testing.T) {
	rdb := redial.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(redialprom.NewCollector("cache", rdb))
	assert.Contains(t, exposed(t, reg), `redial_status{client="cache",state="connecting"} 1`)
	require.NoError(t, rdb.Close())
	text := exposed(t, reg)
	assert.Contains(t, text, `redial_status{client="cache",state="closed"} 1`)
	assert.Contains(t, text, `redial_status{client="cache",state="connecting"} 0`)
	assert.Contains(t, text, `redial_grace_seconds{client="cache"} 5`)
}

// Shards of a ring at one address are one node: they have one series, and a scrape that has
// them is a scrape like any other.
func TestCollector_ShardsAtOneAddress(t *testing.T) {
	server := redialtest.NewFakeServer(t)
	rdb := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"one": server.Addr(), "two": server.Addr()}})
	defer rdb.Close()
	require.NoError(t, rdb.WaitReady(t.Context()))
	for i := range 20 { // on both
		require.NoError(t, rdb.Set(t.Context(), fmt.Sprint("k", i), "v", 0).Err())
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(redialprom.NewCollector("cache", rdb, redialprom.WithNodes()))
	assert.Contains(t, exposed(t, reg), `redial_node_status{client="cache",node="`+server.Addr()+`",state="connected"} 1`)
}

// Nobody has asked for a node that was not tried: it is in no state that alerts could go by.
func TestCollector_NodeNobodyAskedFor(t *testing.T) {
	text := func(lastError string) string {
		s := numbered()
		s.Nodes[1] = redial.NodeStats{Addr: "10.0.0.2:6379", State: redial.StateConnecting, LastError: lastError}
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(redialprom.NewCollector("cache", s, redialprom.WithNodes()))
		return exposed(t, reg)
	}
	const status = `redial_node_status{client="cache",node="10.0.0.2:6379",state="connecting"} `
	assert.NotContains(t, text(""), status)
	assert.Contains(t, text("dial tcp 10.0.0.2:6379: connect: connection refused"), status+"1")
}

// rule is an alert of alerts.yaml.
type rule struct {
	Alert       string
	Expr        string
	For         string
	Labels      map[string]string
	Annotations map[string]string
}

func rules(t *testing.T) []rule {
	t.Helper()
	text, err := os.ReadFile("alerts.yaml")
	require.NoError(t, err)
	var file struct {
		Groups []struct {
			Name  string
			Rules []rule
		}
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	require.NoError(t, dec.Decode(&file))
	require.Len(t, file.Groups, 1)
	return file.Groups[0].Rules
}

// anchors returns those of the headings of the runbook.
func anchors(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../docs/RUNBOOK.md")
	require.NoError(t, err)
	all := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
		all[regexp.MustCompile(`[^\w-]`).ReplaceAllString(strings.ReplaceAll(strings.ToLower(m[1]), " ", "-"), "")] = true
	}
	return all
}

// Every alert leads to its section, and says who is to look at it.
func TestAlerts_LeadToTheRunbook(t *testing.T) {
	sections := anchors(t)
	all := rules(t)
	assert.Len(t, all, 11)
	for _, r := range all {
		address, section, _ := strings.Cut(r.Annotations["runbook_url"], "#")
		assert.Equal(t, "https://github.com/redial-go/redial/blob/main/docs/RUNBOOK.md", address, r.Alert)
		assert.Equal(t, strings.ToLower(r.Alert), section)
		assert.True(t, sections[section], "the runbook has no section %s", section)
		assert.Contains(t, []string{"page", "ticket", "info"}, r.Labels["severity"], r.Alert)
		assert.NotEmpty(t, r.Annotations["summary"], r.Alert)
		assert.NotEmpty(t, r.Annotations["description"], r.Alert)
	}
}

// Whatever the alerts, the dashboard and the runbook name is there, with the labels that
// they want.
func TestNames_Exist(t *testing.T) {
	text, err := os.ReadFile(golden)
	require.NoError(t, err)
	labels := make(map[string]map[string]bool) // and their values, of each series
	for _, m := range regexp.MustCompile(`(?m)^(redial_\w+)\{(.*)\} `).FindAllStringSubmatch(string(text), -1) {
		if labels[m[1]] == nil {
			labels[m[1]] = make(map[string]bool)
		}
		for _, l := range strings.Split(m[2], ",") {
			name, _, _ := strings.Cut(l, "=")
			labels[m[1]][name], labels[m[1]][l] = true, true
		}
	}
	families := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\w+) `).FindAllStringSubmatch(string(text), -1) {
		families[m[1]] = true
	}
	for _, file := range []string{"alerts.yaml", "dashboard.json", "../docs/RUNBOOK.md"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		used := regexp.MustCompile(`\b(redial_[a-z0-9_]+)(?:\{((?:[^{}]|\\")*)\})?`).FindAllStringSubmatch(string(text), -1)
		require.NotEmpty(t, used, file)
		for _, m := range used {
			if labels[m[1]] == nil && !(families[m[1]] && m[2] == "") {
				t.Errorf("%s names %s, which there is not", file, m[1])
				continue
			}
			for _, l := range regexp.MustCompile(`(\w+)(=~?)\\?"([^"\\]*)\\?"`).FindAllStringSubmatch(m[2], -1) {
				switch {
				case l[1] == "job" || l[1] == "instance":
				case !labels[m[1]][l[1]]:
					t.Errorf("%s: %s has no label %s", file, m[1], l[1])
				case l[2] == "=" && !labels[m[1]][l[1]+`="`+l[3]+`"`]:
					t.Errorf("%s: no series of %s has %s=%q", file, m[1], l[1], l[3])
				}
			}
		}
	}
}

// The dashboard can be loaded, and its panels do not lie on each other.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var d struct {
		Title  string
		Panels []struct {
			ID          int
			Type, Title string
			Description string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr, LegendFormat string }
		}
		Templating  struct{ List []struct{ Name string } }
		Annotations struct{ List []struct{ Expr string } }
	}
	require.NoError(t, json.Unmarshal(text, &d))
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
	}
	assert.Equal(t, []string{"datasource", "job", "client"}, variables)
	require.Len(t, d.Annotations.List, 1)
	assert.Equal(t, `changes(redial_outages_total{job=~"$job", client=~"$client"}[2m]) > 0`, d.Annotations.List[0].Expr)
	taken, ids := make(map[[2]int]string), make(map[int]bool)
	used := make(map[string]bool)
	for _, p := range d.Panels {
		assert.False(t, ids[p.ID])
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				assert.Less(t, at[0], 24)
				assert.Empty(t, taken[at], "%s lies on %s", p.Title, taken[at])
				taken[at] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		assert.NotEmpty(t, p.Description, p.Title)
		require.NotEmpty(t, p.Targets, p.Title)
		for _, q := range p.Targets {
			for _, m := range regexp.MustCompile(`redial_\w+`).FindAllString(q.Expr, -1) {
				used[regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(m, "")] = true
			}
			assert.NotEmpty(t, q.LegendFormat)
			assert.Equal(t, strings.Count(q.Expr, "("), strings.Count(q.Expr, ")"), q.Expr)
			for _, selector := range regexp.MustCompile(`redial_\w+\{([^}]*)\}`).FindAllStringSubmatch(q.Expr, -1) {
				assert.Contains(t, selector[1], `job=~"$job", client=~"$client"`)
			}
		}
	}
	t.Log("shown: ", slices.Sorted(maps.Keys(used)))
}

// A client may be closed while it is scraped.
func TestCollector_ClosedWhileScraped(t *testing.T) {
	seen := redialprom.NewObserver()
	rdb := redial.NewClient(&redis.Options{Addr: "127.0.0.1:1"}, redial.WithObserver(seen))
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(redialprom.NewCollector("cache", rdb, redialprom.WithObserver(seen), redialprom.WithNodes()))
	var scrapes sync.WaitGroup
	closed := make(chan struct{})
	for range 4 {
		scrapes.Go(func() {
			for last := false; !last; {
				select {
				case <-closed:
					last = true
				default:
				}
				_, err := reg.Gather()
				assert.NoError(t, err)
			}
		})
	}
	assert.ErrorIs(t, rdb.Ping(redial.FailFast(t.Context())).Err(), redial.ErrUnavailable)
	assert.NoError(t, rdb.Close())
	close(closed)
	scrapes.Wait()
	assert.Contains(t, exposed(t, reg), `redial_status{client="cache",state="closed"} 1`)
}
