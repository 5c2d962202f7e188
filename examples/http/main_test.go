package main

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
)

func newService(t *testing.T, after time.Duration) (*miniredis.Miniredis, http.Handler) {
	t.Helper()
	m := miniredis.RunT(t)
	logger := slog.New(slog.DiscardHandler)
	told, err := newTelemetry(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rdb := redial.NewClient(&redis.Options{Addr: m.Addr()}, append(told.options(logger), redial.WithGrace(0))...)
	t.Cleanup(func() { _ = rdb.Close() })
	if err := told.watch(rdb); err != nil {
		t.Fatal(err)
	}
	if err := rdb.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m, handler(rdb, told, logger, after)
}

func get(h http.Handler, url string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, url, nil))
	return w
}

func want(t *testing.T, w *httptest.ResponseRecorder, status int, body string) {
	t.Helper()
	if w.Code != status || !strings.Contains(w.Body.String(), body) {
		t.Errorf("%d %q, want %d %q", w.Code, w.Body, status, body)
	}
}

func TestHandler_Healthy(t *testing.T) {
	m, h := newService(t, 0)
	want(t, get(h, "/hits?key=home"), 200, "1\n")
	want(t, get(h, "/hits?key=home"), 200, "2\n")
	want(t, get(h, "/hits"), 400, "key is missing")
	want(t, get(h, "/healthz"), 200, "ok")
	want(t, get(h, "/readyz"), 200, `"status":"up"`)
	want(t, get(h, "/stats"), 200, `"state": "connected"`)
	want(t, get(h, "/debug/redis"), 200, "<strong>up</strong> connected")
	want(t, get(h, "/metrics"), 200, `redial_status{client="hits",state="connected"} 1`)

	if err := m.Set("hits:bad", "not a number"); err != nil {
		t.Fatal(err)
	}
	want(t, get(h, "/hits?key=bad"), 500, "internal error")
}

func TestHandler_ServerGone_503NothingCounted(t *testing.T) {
	m, h := newService(t, 0)
	m.Close()
	w := get(h, "/hits?key=home")
	want(t, w, 503, "nothing was counted")
	if got := w.Header().Get("Retry-After"); got != "1" {
		t.Errorf("Retry-After is %q, want 1", got)
	}
	want(t, get(h, "/readyz"), 503, "reconnecting")
	want(t, get(h, "/healthz"), 200, "ok")
	want(t, get(h, "/debug/redis"), 200, "<strong>down</strong> reconnecting")
	want(t, get(h, "/metrics"), 200, `redial_command_failures_total{client="hits",outcome="not_run"} 1`)
}

// An outage that requests ride out takes the service out of nothing.
func TestHandler_ServerGoneForAMoment_StaysReady(t *testing.T) {
	m, h := newService(t, readyAfter)
	m.Close()
	want(t, get(h, "/hits?key=home"), 503, "nothing was counted")
	want(t, get(h, "/readyz"), 200, `"status":"down","state":"reconnecting"`)
}

// The probes of k8s.yaml are answered, and they are patient enough. What has a pod restarted
// does not ask Redis. One that does not reach it is not ready in the end, before it has
// replaced others.
func TestManifest_Probes(t *testing.T) {
	text, err := os.ReadFile("k8s.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, h := newService(t, readyAfter)
	told, err := newTelemetry(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lost := redial.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer lost.Close()
	astray := handler(lost, told, slog.New(slog.DiscardHandler), time.Nanosecond)
	m := regexp.MustCompile(`minReadySeconds: (\d+)`).FindSubmatch(text)
	if m == nil {
		t.Fatal("no minReadySeconds")
	}
	if seconds, err := strconv.Atoi(string(m[1])); err != nil || time.Duration(seconds)*time.Second < readyAfter+10*time.Second {
		t.Errorf("minReadySeconds is %s, and readiness takes %v", m[1], readyAfter)
	}
	for probe, code := range map[string]int{"startupProbe": 200, "readinessProbe": 503, "livenessProbe": 200} {
		m := regexp.MustCompile(`(?s)` + probe + `:.*?path: (/\w+)`).FindSubmatch(text)
		if m == nil {
			t.Fatalf("no %s", probe)
		}
		if w := get(h, string(m[1])); w.Code != http.StatusOK {
			t.Errorf("%s: %s is answered with %d", probe, m[1], w.Code)
		}
		if w := get(astray, string(m[1])); w.Code != code {
			t.Errorf("%s: %s is answered with %d where there is no Redis, want %d", probe, m[1], w.Code, code)
		}
	}
}

func TestHandler_ReplyLost_502(t *testing.T) {
	m, h := newService(t, 0)
	m.Server().SetPreHook(func(p *server.Peer, cmd string, _ ...string) bool {
		if cmd == "INCR" {
			p.Close()
			return true
		}
		return false
	})
	want(t, get(h, "/hits?key=home"), 502, "not known whether")
	want(t, get(h, "/metrics"), 200, `redial_command_failures_total{client="hits",outcome="unknown"} 1`)
}
