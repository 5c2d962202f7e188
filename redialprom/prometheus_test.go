package redialprom_test

// A real Prometheus scrapes a real program through an outage of a real server, and what it
// has scraped is what promtool tries the rules with. These tests need redis-server,
// prometheus and promtool; where there is none they are skipped, or fail if that was asked
// for, see tool.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/redialtest"
)

const (
	// scraped is how often the Prometheus of the test scrapes, and looks at its rules.
	scraped = time.Second
	// shorter is by how much the rules of the test are quicker than those that are shipped:
	// each of their durations, and nothing else of them, is divided by it.
	shorter = 20

	soon = 30 * time.Second // for what happens within a few scrapes

	visitors = 8 // of the program, one request each at a time
)

// tool returns where a program of Prometheus is. Without it a test is skipped, or fails
// where nothing may be missing.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err != nil && os.Getenv("REDIAL_REQUIRE_REDIS") == "1":
		t.Fatalf("%v, and REDIAL_REQUIRE_REDIS=1 says that it must be there", err)
	case err != nil:
		t.Skip(name, "is not in PATH")
	}
	return path
}

// ruleDuration is one of alerts.yaml: how long a condition must hold, or how far back an
// expression looks.
var ruleDuration = regexp.MustCompile(`(?m)^(\s*for: )(\w+)($)|(\[)(\w+)(\])`)

// shortened returns the rules with their durations divided.
func shortened(t *testing.T, rules string) string {
	t.Helper()
	return ruleDuration.ReplaceAllStringFunc(rules, func(s string) string {
		m := slices.DeleteFunc(ruleDuration.FindStringSubmatch(s)[1:], func(part string) bool { return part == "" })
		long, err := time.ParseDuration(m[1])
		require.NoError(t, err)
		m[1] = fmt.Sprintf("%dms", (long / shorter).Milliseconds())
		return strings.Join(m, "")
	})
}

// What is shortened is every duration, and no threshold.
func TestShortened(t *testing.T) {
	text, err := os.ReadFile("alerts.yaml")
	require.NoError(t, err)
	for _, r := range rules(t) {
		assert.Equal(t, r.For != "", strings.Contains(shortened(t, "  for: "+r.For), "ms"), r.Alert)
	}
	short := shortened(t, string(text))
	assert.Contains(t, short, `or rate(redial_command_failures_total{outcome="not_run"}[9000ms])`)
	assert.Contains(t, short, "increase(redial_outages_total[45000ms]) >= 4\n")
	assert.Contains(t, short, "for: 1500ms\n")
	back := regexp.MustCompile(`(for: |\[)\w+`)
	assert.Equal(t, back.ReplaceAllString(string(text), ""), back.ReplaceAllString(short, ""), "all else is as it is")
	assert.Equal(t, len(back.FindAllString(string(text), -1)), strings.Count(short, "00ms"), "and nothing was left out")
}

// freeAddr returns an address on which nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer free.Close()
	return free.Addr().String()
}

// ask asks for a page, and returns the status and the text; 0 means that nobody answered.
func ask(address, path string) (int, string) {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return 0, err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(text)
}

// started runs a command until the test ends.
func started(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_, _ = cmd.Process.Kill(), cmd.Wait()
		}
	})
	return cmd
}

// observatory is a Prometheus.
type observatory struct{ address string }

// watching starts a Prometheus that scrapes a target.
func watching(t *testing.T, target, rules string) observatory {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yaml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
global: {scrape_interval: %s, scrape_timeout: %[1]s, evaluation_interval: %[1]s}
rule_files: [%q]
scrape_configs:
  - job_name: shop
    static_configs: [{targets: [%q]}]
`, scraped, rules, target), 0o600))
	promtool(t, "check", "config", config)
	p := observatory{freeAddr(t)}
	cmd := exec.Command(tool(t, "prometheus"), "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+p.address, "--log.level=error")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	started(t, cmd)
	return p
}

// get asks it, and decodes what it answers.
func (p observatory) get(path string, query url.Values, into any) error {
	code, text := ask(p.address, path+"?"+query.Encode())
	var body struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal([]byte(text), &body); err != nil {
		return fmt.Errorf("%d: %s", code, text)
	}
	if body.Status != "success" {
		return fmt.Errorf("%s: %s", body.Status, body.Error)
	}
	return json.Unmarshal(body.Data, into)
}

// vector is the answer to a query: the last value of each series, or all within a range.
type vector []struct {
	Metric map[string]string
	Value  sample
	Values []sample
}

// sample is a time, in seconds, and a value.
type sample [2]any

func (s sample) at() float64   { return s[0].(float64) }
func (s sample) value() string { return s[1].(string) }

func (p observatory) query(q string) (vector, error) {
	var data struct{ Result vector }
	err := p.get("/api/v1/query", url.Values{"query": {q}}, &data)
	return data.Result, err
}

// scrapes returns how often it has scraped the program.
func (p observatory) scrapes(t *testing.T) int {
	t.Helper()
	v, err := p.query("count_over_time(redial_outages_total[10m])")
	require.NoError(t, err)
	require.Len(t, v, 1)
	n, err := strconv.Atoi(v[0].Value.value())
	require.NoError(t, err)
	return n
}

// alert is one that is firing.
type alert struct {
	State               string
	Labels, Annotations map[string]string
}

// firing returns the names of those that are.
func (p observatory) firing() ([]string, []alert, error) {
	var data struct{ Alerts []alert }
	err := p.get("/api/v1/alerts", nil, &data)
	data.Alerts = slices.DeleteFunc(data.Alerts, func(a alert) bool { return a.State != "firing" })
	names := []string{}
	for _, a := range data.Alerts {
		names = append(names, a.Labels["alertname"])
	}
	slices.Sort(names)
	return names, data.Alerts, err
}

// fires waits until these alerts are firing, and no others, and returns them.
func (p observatory) fires(t *testing.T, want ...string) []alert {
	t.Helper()
	var names []string
	var alerts []alert
	var err error
	if !assert.Eventually(t, func() bool {
		names, alerts, err = p.firing()
		return err == nil && slices.Equal(names, slices.Concat([]string{}, want))
	}, 2*soon, scraped/5) {
		t.Fatalf("firing: %v, want: %v (%v)", names, want, err)
	}
	return alerts
}

// load is what the visitors of a program saw.
type load struct {
	address  string
	stop     chan struct{}
	visitors sync.WaitGroup
	made     atomic.Int64 // answers
	waiting  atomic.Int64 // visitors who wait for one
	answers  [600]atomic.Int64
}

func visiting(t *testing.T, address string) *load {
	l := &load{address: address, stop: make(chan struct{})}
	for range visitors {
		l.visitors.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				l.waiting.Add(1)
				code, text := ask(address, "/hits?key=home")
				l.waiting.Add(-1)
				if l.made.Add(1); code == 0 {
					t.Error(text)
				}
				l.answers[code].Add(1)
			}
		})
	}
	return l
}

// stuck waits until all visitors wait for what does not come.
func (l *load) stuck(t *testing.T) {
	t.Helper()
	last := int64(-1)
	require.Eventually(t, func() bool {
		before := last
		last = l.made.Load()
		return l.waiting.Load() == visitors && before == last
	}, soon, 100*time.Millisecond)
}

// end returns once no visitor waits.
func (l *load) end() { close(l.stop); l.visitors.Wait() }

// TestPrometheus_ScrapesAnOutage: the example of a service loses its server, which is
// killed with commands on the wire and started again. Whoever is on call is woken, by
// alerts that lead to the runbook, and no longer than that. Prometheus, the visitors and
// the program count the same; promtool, given what was scraped and the rules as they are
// shipped, says what Prometheus said; and Prometheus knows every query of the dashboard.
func TestPrometheus_ScrapesAnOutage(t *testing.T) {
	tool(t, "prometheus")
	server := redialtest.StartServer(t)
	dir := t.TempDir()
	binary := filepath.Join(dir, "hits")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".")
	build.Dir = filepath.Join("..", "examples", "http")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	address := freeAddr(t)
	program := exec.Command(binary)
	program.Env = append(os.Environ(), "REDIS_ADDR="+server.Addr(), "LISTEN_ADDR="+address)
	var log bytes.Buffer // read when it has ended
	program.Stderr = &log
	started(t, program)
	require.Eventually(t, func() bool {
		_, body := ask(address, "/readyz")
		return strings.Contains(string(body), `"status":"up"`)
	}, soon, 50*time.Millisecond)

	shipped, err := os.ReadFile("alerts.yaml")
	require.NoError(t, err)
	quick := filepath.Join(dir, "alerts.yaml")
	require.NoError(t, os.WriteFile(quick, []byte(shortened(t, string(shipped))), 0o600))
	prometheus := watching(t, address, quick)
	l := visiting(t, address)

	// Healthy.
	require.Eventually(t, func() bool {
		up, err := prometheus.query(`redial_status{state="connected"} == 1`)
		return err == nil && len(up) == 1
	}, soon, scraped/5)
	var noted []time.Time
	var said [][]string
	notes := func(firing ...string) []alert { // once it has been so for two scrapes, so that a scrape more or less does not matter
		t.Helper()
		alerts := prometheus.fires(t, firing...)
		for before := prometheus.scrapes(t); prometheus.scrapes(t) < before+2; time.Sleep(scraped / 10) {
		}
		still, _, err := prometheus.firing()
		require.NoError(t, err)
		require.ElementsMatch(t, firing, still)
		noted, said = append(noted, time.Now()), append(said, firing)
		return alerts
	}
	notes()

	// The server stops, commands are on the wire, and it is killed.
	server.Freeze()
	l.stuck(t)
	server.Kill()
	killed := time.Now()
	alerts := notes("RedialDown", "RedialInstanceCutOff", "RedialOutcomeUnknown", "RedialRefusing")
	t.Logf("all fire %v after the server was killed, by rules %d times as quick", time.Since(killed).Round(100*time.Millisecond), shorter)
	severity := make(map[string]string)
	for _, a := range alerts {
		assert.Equal(t, "hits", a.Labels["client"])
		assert.Equal(t, "shop", a.Labels["job"])
		assert.Contains(t, a.Annotations["runbook_url"], "RUNBOOK.md#"+strings.ToLower(a.Labels["alertname"]))
		assert.NotContains(t, a.Annotations["summary"]+a.Annotations["description"], "<no value>")
		severity[a.Labels["alertname"]] = a.Labels["severity"]
	}
	assert.Equal(t, map[string]string{"RedialDown": "page", "RedialRefusing": "page", "RedialInstanceCutOff": "ticket", "RedialOutcomeUnknown": "ticket"}, severity)

	// It is back.
	server.Start()
	back := time.Now()
	notes("RedialOutcomeUnknown") // which is to be looked at when there is time
	t.Logf("and nobody is woken any more %v after it was back", time.Since(back).Round(100*time.Millisecond))
	l.end()

	// All count the same.
	count := func(q string) (n int64) {
		t.Helper()
		v, err := prometheus.query(q)
		require.NoError(t, err)
		require.Len(t, v, 1, q)
		n, err = strconv.ParseInt(v[0].Value.value(), 10, 64)
		require.NoError(t, err)
		return n
	}
	refused, unknown := l.answers[http.StatusServiceUnavailable].Load(), l.answers[http.StatusBadGateway].Load()
	t.Logf("%d visits, %d of them refused, of %d it is not known whether they were counted", l.made.Load(), refused, unknown)
	assert.Positive(t, unknown)
	assert.LessOrEqual(t, unknown, int64(visitors), "of those that were stuck; some may have had no connection yet")
	assert.Equal(t, l.made.Load(), l.answers[http.StatusOK].Load()+refused+unknown, "answers of no other kind")
	code, exposition := ask(address, "/metrics")
	require.Equal(t, http.StatusOK, code)
	for outcome, want := range map[string]int64{"not_run": refused, "unknown": unknown} {
		assert.Contains(t, exposition, fmt.Sprintf("redial_command_failures_total{client=\"hits\",outcome=%q} %d\n", outcome, want))
		assert.Eventually(t, func() bool { return count(`redial_command_failures_total{outcome="`+outcome+`"}`) == want }, soon, scraped/5)
	}
	assert.EqualValues(t, 1, count("redial_outages_total"))

	promtoolIn(t, exposition, "check", "metrics")
	replay(t, prometheus, noted, said)
	knowsTheDashboard(t, prometheus)

	require.NoError(t, program.Process.Signal(os.Interrupt))
	require.NoError(t, program.Wait(), "%s", &log)
	assert.Contains(t, log.String(), fmt.Sprintf("all.refused=%d all.unknown=%d ", refused, unknown))
}

// replay has promtool try the rules that are shipped with what Prometheus has scraped. They
// are slower than those of the Prometheus, so what is scraped has to be slower, too, by as
// much. At the times that were noted promtool must say what Prometheus said.
func replay(t *testing.T, p observatory, noted []time.Time, said [][]string) {
	t.Helper()
	recorded, err := p.query(`{__name__=~"redial_.+"}[10m]`)
	require.NoError(t, err)
	require.NotEmpty(t, recorded)
	first, last := math.Inf(1), 0.0
	for _, one := range recorded {
		first, last = min(first, one.Values[0].at()), max(last, one.Values[len(one.Values)-1].at())
	}
	slot := func(at float64) int { return int(math.Round((at - first) / scraped.Seconds())) }
	series := make(map[string][]string)
	for _, one := range recorded {
		values := slices.Repeat([]string{"_"}, slot(last)+1)
		for _, v := range one.Values {
			values[slot(v.at())] = v.value()
		}
		name, labels := one.Metric["__name__"], []string(nil)
		delete(one.Metric, "__name__")
		for k, v := range one.Metric {
			labels = append(labels, fmt.Sprintf("%s=%q", k, v))
		}
		slices.Sort(labels)
		series[name+"{"+strings.Join(labels, ",")+"}"] = values
	}
	var tests []firing
	for i, at := range noted {
		seconds := float64(at.UnixNano())/float64(time.Second) - first
		tests = append(tests, firing{time.Duration(seconds/scraped.Seconds()) * scraped * shorter, said[i]}) // the last scrape before
	}
	t.Logf("%d series, %d scrapes of each", len(series), slot(last)+1)
	tryRules(t, series, scraped*shorter, scraped*shorter, tests)
}

// knowsTheDashboard: Prometheus answers every query of it, and nearly all show something.
func knowsTheDashboard(t *testing.T, p observatory) {
	t.Helper()
	text, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Annotations struct{ List []struct{ Expr string } }
	}
	require.NoError(t, json.Unmarshal(text, &dashboard))
	queries := []string{dashboard.Annotations.List[0].Expr}
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			queries = append(queries, q.Expr)
		}
	}
	var silent []string
	for _, q := range queries {
		found, err := p.query(strings.NewReplacer("$job", ".+", "$client", ".+", "$__rate_interval", "1m").Replace(q))
		if assert.NoError(t, err, q); len(found) == 0 {
			silent = append(silent, q)
		}
	}
	t.Logf("%d queries of the dashboard; those that show nothing: %q", len(queries), silent)
	for _, q := range silent { // the program has one server
		assert.Contains(t, q, "redial_node_", "it shows nothing")
	}
}
