// Http is a small service on redial, in a shape to copy: health and readiness,
// errors mapped to HTTP statuses, metrics, traces, a log, a page for people, and a
// shutdown that cuts no request short. It is a module of its own, for what it imports.
//
//	cd examples/http && go run .
//	curl -i 'localhost:8080/hits?key=home'
//
// uses an embedded server unless REDIS_ADDR names one. LISTEN_ADDR overrides
// the listen address, 127.0.0.1:8080. Stop your Redis while you curl: requests
// wait for it for up to two seconds, then they are answered with 503, and with
// 503 at once when it has been away for longer than the grace of five seconds.
// /healthz stays green, and /readyz turns red when the outage has lasted for 15 s;
// k8s.yaml says why each probe asks what it asks. /debug/redis shows it all to people,
// in a browser, and /metrics to Prometheus, for which redialprom has alerts and a
// dashboard. The same metrics and a span for each command are pushed where
// OTEL_EXPORTER_OTLP_ENDPOINT says, if it is set. SIGTERM or Ctrl-C ends the service.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialhttp"
)

const (
	requestBudget  = 2 * time.Second // of one request, waiting for Redis included
	shutdownBudget = 10 * time.Second
	// An outage takes the service out of rotation when it has lasted for longer than the
	// grace and a period of the probe: before that, requests ride it out.
	readyAfter = redial.DefaultGrace + 10*time.Second
)

func main() {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if err := run(ctx, logger); err != nil {
		logger.Error("service failed", "error", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, then shuts down gracefully.
func run(ctx context.Context, logger *slog.Logger) error {
	addr := os.Getenv("REDIS_ADDR")
	if addr == "" {
		server := miniredis.NewMiniRedis()
		if err := server.Start(); err != nil {
			return err
		}
		defer server.Close()
		addr = server.Addr()
	}

	told, err := newTelemetry(ctx)
	if err != nil {
		return err
	}
	// The service starts whether Redis is up or not, and is ready once it is.
	rdb := redial.NewClient(&redis.Options{
		Addr:                  addr,
		ContextTimeoutEnabled: true, // a request's deadline bounds the socket too
	}, told.options(logger)...)
	failed := func(err error) error { return errors.Join(err, rdb.Close(), told.shutdown(ctx)) }
	if err := told.watch(rdb); err != nil {
		return failed(err)
	}

	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("LISTEN_ADDR"), "127.0.0.1:8080"))
	if err != nil {
		return failed(err)
	}
	web := &http.Server{
		Handler:           handler(rdb, told, logger, readyAfter),
		ReadHeaderTimeout: 5 * time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	logger.Info("listening", "addr", listener.Addr().String(), "redis", addr)

	select {
	case err := <-served:
		return failed(err)
	case <-ctx.Done():
	}
	// In this order: no new requests, the last answers, the client, and what it has told.
	logger.Info("shutting down")
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownBudget)
	defer cancel()
	return errors.Join(web.Shutdown(end), rdb.Drain(end), told.shutdown(end))
}

// handler routes requests. An outage counts as one for readiness after a while. What it
// shows besides /hits has addresses in it: in a service for the public it belongs on a
// listener of its own.
func handler(rdb *redial.Client, told *telemetry, logger *slog.Logger, after time.Duration) http.Handler {
	s := &service{rdb: rdb, logger: logger}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.Handle("GET /readyz", redialhttp.Handler(rdb, redialhttp.Required(), redialhttp.After(after)))
	mux.Handle("GET /debug/redis", redialhttp.Page(rdb, redialhttp.Title("Redis of the hit counter")))
	mux.Handle("GET /metrics", told.exposition())
	mux.HandleFunc("GET /stats", s.stats)
	mux.HandleFunc("GET /hits", s.hits)
	return mux
}

type service struct {
	rdb    *redial.Client
	logger *slog.Logger
}

// healthz says that the process lives. It must not depend on Redis: restarting
// the service does not mend the server.
func (s *service) healthz(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok") }

// stats shows the client's condition.
func (s *service) stats(w http.ResponseWriter, _ *http.Request) {
	body, err := json.MarshalIndent(s.rdb.Stats(), "", "  ")
	if err != nil {
		s.fail(w, "stats", err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // fails only when the client is gone
}

// hits counts a hit of the page named by key.
func (s *service) hits(w http.ResponseWriter, r *http.Request) {
	key := r.URL.Query().Get("key")
	if key == "" {
		text(w, http.StatusBadRequest, "key is missing")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestBudget)
	defer cancel()
	n, err := s.rdb.Incr(ctx, "hits:"+key).Result()
	if err != nil {
		s.fail(w, "hits", err)
		return
	}
	text(w, http.StatusOK, fmt.Sprint(n))
}

// fail answers with the status that tells the caller what may be done now.
func (s *service) fail(w http.ResponseWriter, what string, err error) {
	switch {
	case errors.Is(err, redial.ErrOutcomeUnknown):
		// The command may have run. Only the caller knows whether repeating it
		// does harm.
		s.logger.Warn("outcome unknown", "request", what, "error", err)
		text(w, http.StatusBadGateway, "it is not known whether the hit was counted; repeating the request may count it twice")
	case redial.SafeToRetry(err):
		// Nothing ran: Redis is down, loading or refuses it, or this service is closing.
		s.logger.Warn("unavailable", "request", what, "error", err)
		w.Header().Set("Retry-After", "1")
		text(w, http.StatusServiceUnavailable, "nothing was counted; try again")
	default:
		// An answer of the server, such as WRONGTYPE: a bug, not an outage.
		s.logger.Error("request failed", "request", what, "error", err)
		text(w, http.StatusInternalServerError, "internal error")
	}
}

// text answers with one line.
func text(w http.ResponseWriter, status int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = fmt.Fprintln(w, line) // fails only when the client is gone
}
