package redialprom_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialprom"
	"github.com/redial-go/redial/redialtest"
)

// asking asks a Prometheus and decodes what it answers.
func asking(t *testing.T, address, path string, query url.Values, into any) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path+"?"+query.Encode(), nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var body struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		return err
	}
	if body.Status != "success" {
		return fmt.Errorf("%s: %s", body.Status, body.Error)
	}
	return json.Unmarshal(body.Data, into)
}

// A Prometheus with the rules and the time-outs that are shipped scrapes a program through
// an outage: whoever is on call is woken, and no longer than that. It knows every query of
// the dashboard.
func TestPrometheus_ScrapesAnOutage(t *testing.T) {
	binary, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("prometheus is not in PATH")
	}
	server := redialtest.NewFakeServer(t)
	seen := redialprom.NewObserver()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()}, redial.WithObserver(seen))
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(redialprom.NewCollector("cache", rdb, redialprom.WithObserver(seen), redialprom.WithNodes()))
	program := httptest.NewServer(promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	t.Cleanup(program.Close)

	rules, err := filepath.Abs("alerts.yaml")
	require.NoError(t, err)
	dir := t.TempDir()
	target, err := url.Parse(program.URL)
	require.NoError(t, err)
	config := filepath.Join(dir, "prometheus.yaml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - job_name: shop
    metrics_path: /
    static_configs: [{targets: [%q]}]
`, rules, target.Host), 0o600))
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := free.Addr().String()
	require.NoError(t, free.Close())
	cmd := exec.Command(binary, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=error")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })

	firing := func() []string {
		var data struct {
			Alerts []struct {
				State  string
				Labels map[string]string
			}
		}
		if err := asking(t, address, "/api/v1/alerts", nil, &data); err != nil {
			return []string{err.Error()}
		}
		var names []string
		for _, a := range data.Alerts {
			if a.State == "firing" {
				assert.Equal(t, "cache", a.Labels["client"])
				assert.Equal(t, "shop", a.Labels["job"])
				names = append(names, a.Labels["alertname"])
			}
		}
		slices.Sort(names)
		return names
	}
	scraped := func() bool {
		var data struct{ Result []any }
		err := asking(t, address, "/api/v1/query", url.Values{"query": {`redial_status{state="connected"} == 1`}}, &data)
		return err == nil && len(data.Result) == 1
	}
	require.Eventually(t, scraped, 20*time.Second, 200*time.Millisecond)
	require.Empty(t, firing())
	server.Kill()
	killed := time.Now()
	require.Eventually(t, func() bool { return slices.Equal(firing(), []string{"RedialDown"}) }, time.Minute, 200*time.Millisecond)
	t.Logf("RedialDown fires %v after the server was killed", time.Since(killed).Round(100*time.Millisecond))
	require.NoError(t, server.Start())
	back := time.Now()
	require.Eventually(t, func() bool { return len(firing()) == 0 }, 20*time.Second, 200*time.Millisecond)
	t.Logf("and is quiet %v after it was back", time.Since(back).Round(100*time.Millisecond))

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
	var queries []string
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			queries = append(queries, q.Expr)
		}
	}
	queries = append(queries, dashboard.Annotations.List[0].Expr)
	answered := 0
	for _, q := range queries {
		q = strings.NewReplacer("$job", ".+", "$client", ".+", "$__rate_interval", "1m").Replace(q)
		var data struct{ Result []any }
		assert.NoError(t, asking(t, address, "/api/v1/query", url.Values{"query": {q}}, &data), q)
		if len(data.Result) > 0 {
			answered++
		}
	}
	t.Logf("%d queries of the dashboard, of which %d show something", len(queries), answered)
	assert.Greater(t, answered, len(queries)*3/4)
}
