package main

// The service as it is run, beside a real server that goes and comes back, and what
// everybody who looks at it sees. It needs redis-server.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	metricpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"

	"github.com/redial-go/redial/redialtest"
)

// patience is how long anything may take that takes no time but on a busy machine.
const patience = 20 * time.Second

// pushed is what a collector of OpenTelemetry was sent.
type pushed struct {
	mu       sync.Mutex
	services map[string]bool
	spans    []map[string]string // guarded by mu; attributes, and "name"
	sums     map[string]int64    // guarded by mu; the last values of metrics, over their attributes
}

// collect begins to listen, for a service that is begun afterwards.
func collect(t *testing.T) *pushed {
	t.Helper()
	p := &pushed{services: make(map[string]bool), sums: make(map[string]int64)}
	mux := http.NewServeMux()
	receive := func(path string, into proto.Message, note func()) {
		mux.HandleFunc("POST "+path, func(_ http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			p.mu.Lock()
			defer p.mu.Unlock()
			if err == nil {
				err = proto.Unmarshal(body, into)
			}
			if err != nil {
				t.Errorf("%s: %v", path, err)
				return
			}
			note()
		})
	}
	var traces tracepb.ExportTraceServiceRequest
	receive("/v1/traces", &traces, func() {
		for _, resource := range traces.ResourceSpans {
			p.services[attributes(resource.Resource.Attributes)["service.name"]] = true
			for _, scope := range resource.ScopeSpans {
				for _, span := range scope.Spans {
					one := attributes(span.Attributes)
					one["name"] = span.Name
					p.spans = append(p.spans, one)
				}
			}
		}
	})
	var metrics metricpb.ExportMetricsServiceRequest
	receive("/v1/metrics", &metrics, func() {
		for _, resource := range metrics.ResourceMetrics {
			p.services[attributes(resource.Resource.Attributes)["service.name"]] = true
			for _, scope := range resource.ScopeMetrics {
				for _, metric := range scope.Metrics {
					if metric.GetSum() == nil {
						continue
					}
					p.sums[metric.Name] = 0
					for _, point := range metric.GetSum().DataPoints {
						p.sums[metric.Name] += point.GetAsInt()
					}
				}
			}
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_SERVICE_NAME", "hits-of-the-test")
	return p
}

func attributes(list []*commonpb.KeyValue) map[string]string {
	all := make(map[string]string)
	for _, kv := range list {
		switch v := kv.Value.Value.(type) {
		case *commonpb.AnyValue_StringValue:
			all[kv.Key] = v.StringValue
		default:
			all[kv.Key] = strings.TrimSpace(kv.Value.String())
		}
	}
	return all
}

// visit asks the service, and returns the status and the body.
func visit(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

func TestService_ThroughAnOutage(t *testing.T) {
	redis := redialtest.StartServer(t)
	collector := collect(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("REDIS_ADDR", redis.Addr())
	t.Setenv("LISTEN_ADDR", addr)
	var log bytes.Buffer // read when the service has ended
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, slog.New(slog.NewTextHandler(&log, nil))) }()

	sees := func(path string, status int, text string) {
		t.Helper()
		var code int
		var body string
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if code, body = visit(t, "http://"+addr+path); code == status && strings.Contains(body, text) {
				return
			}
		}
		t.Fatalf("%s: %d %s\nwant %d %s", path, code, body, status, text)
	}
	hits := make(chan string)
	hit := func() {
		code, body := visit(t, "http://"+addr+"/hits?key=home")
		hits <- fmt.Sprint(code, " ", body)
	}

	sees("/healthz", 200, "ok")
	sees("/readyz", 200, `"status":"up"`)
	sees("/debug/redis", 200, "<strong>up</strong> connected")
	sees("/metrics", 200, `redial_status{client="hits",state="connected"} 1`)
	go hit()
	if got := <-hits; got != "200 1\n" {
		t.Fatalf("before the outage: %s", got)
	}

	redis.Kill()
	go hit() // it waits
	sees("/metrics", 200, `redial_command_waiting{client="hits"} 1`)
	sees("/metrics", 200, `redial_status{client="hits",state="reconnecting"} 1`)
	sees("/debug/redis", 200, "<strong>down</strong> reconnecting")
	sees("/debug/redis", 200, "so far")
	sees("/readyz", 200, `"cause":"connection_lost"`) // not for an outage that requests ride out
	sees("/healthz", 200, "ok")
	redis.Start()
	if got := <-hits; got != "200 1\n" { // the server has lost what it knew
		t.Errorf("in the outage: %s", got)
	}

	sees("/readyz", 200, `"status":"up"`)
	sees("/debug/redis", 200, "<code>connection_lost</code>")
	for _, line := range []string{
		`redial_outages_total{client="hits"} 1`,
		`redial_command_waits_total{client="hits"} 1`,
		`redial_command_wait_time_seconds_count{client="hits",result="admitted"} 1`,
		`redial_outage_duration_seconds_count{cause="connection_lost",client="hits"} 1`,
		`redial_command_failures_total{client="hits",outcome="not_run"} 0`,
		`redial_command_failures_total{client="hits",outcome="unknown"} 0`,
	} {
		sees("/metrics", 200, line)
	}

	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`msg="redis connected"`, `msg="redis reconnecting"`, "outage_cause=connection_lost", `msg="redis closed"`} {
		if !strings.Contains(log.String(), line) {
			t.Errorf("the log has no %s:\n%s", line, log.String())
		}
	}

	// What was pushed, at the latest when the service ended.
	collector.mu.Lock()
	defer collector.mu.Unlock()
	if len(collector.services) != 1 || !collector.services["hits-of-the-test"] {
		t.Errorf("pushed by %v", collector.services)
	}
	waited := 0
	for _, span := range collector.spans {
		if span["name"] != "INCR" || span["redial.outcome"] != "" {
			t.Errorf("a span of nothing that was called, or that failed: %v", span)
		}
		if span["redial.waited"] != "" {
			waited++
		}
	}
	if len(collector.spans) != 2 || waited != 1 {
		t.Errorf("%d spans, %d of which waited, want one for each of two calls, and one of them: %v", len(collector.spans), waited, collector.spans)
	}
	for name, want := range map[string]int64{"redial.outages": 1, "redial.command.waits": 1, "redial.command.failures": 0, "redial.status": 1} {
		if got, ok := collector.sums[name]; !ok || got != want {
			t.Errorf("%s is %d, pushed: %t, want %d", name, got, ok, want)
		}
	}
}

// A service that cannot listen says so and leaves nothing behind.
func TestRun_AddressTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	t.Setenv("LISTEN_ADDR", taken.Addr().String())
	redialtest.Leaks(t)
	if err := run(t.Context(), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "listen") {
		t.Errorf("the error is %v", err)
	}
}
