package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialotel"
	"github.com/redial-go/redial/redialprom"
)

// clientName is what the client is called in metrics and traces: what it is for, never an
// address.
const clientName = "hits"

// telemetry is what whoever is on call looks at: metrics, which Prometheus scrapes, and the
// same metrics and traces, which are pushed to a collector of OpenTelemetry.
type telemetry struct {
	registry *prometheus.Registry
	seen     *redialprom.Observer
	metrics  *redialotel.Metrics
	tracer   *redialotel.Tracer
	ends     []func(context.Context) error
}

// newTelemetry asks the environment where to push to, as every program with OpenTelemetry
// does: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and the rest. Without an endpoint
// nothing is recorded for it, and nothing pushed.
func newTelemetry(ctx context.Context) (_ *telemetry, err error) {
	t := &telemetry{registry: prometheus.NewRegistry(), seen: redialprom.NewObserver()}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.shutdown(ctx))
		}
	}()
	var opts []redialotel.Option
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" {
		spans, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, err
		}
		tracing := sdktrace.NewTracerProvider(sdktrace.WithBatcher(spans))
		t.ends = append(t.ends, tracing.Shutdown)
		points, err := otlpmetrichttp.New(ctx)
		if err != nil {
			return nil, err
		}
		metering := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewPeriodicReader(points)))
		t.ends = append(t.ends, metering.Shutdown)
		opts = append(opts, redialotel.WithTracerProvider(tracing), redialotel.WithMeterProvider(metering))
	}
	t.tracer = redialotel.NewTracer(clientName, opts...)
	t.metrics, err = redialotel.NewMetrics(clientName, opts...)
	return t, err
}

// options has a client tell what it goes through. They cost a command that is well nothing
// but its span, if there is one.
func (t *telemetry) options(logger *slog.Logger) []redial.Option {
	return []redial.Option{
		redial.WithLogger(logger),
		redial.WithOuterHook(t.tracer), // a span for each call, with its waits and retries
		redial.WithObserver(t.tracer),
		redial.WithObserver(t.metrics),
		redial.WithObserver(t.seen),
	}
}

// watch has the statistics of a client read at every scrape and every push. It does not
// keep the client from being closed.
func (t *telemetry) watch(rdb *redial.Client) error {
	return errors.Join(
		t.registry.Register(redialprom.NewCollector(clientName, rdb, redialprom.WithObserver(t.seen))),
		t.metrics.Watch(rdb),
	)
}

// exposition is what Prometheus scrapes.
func (t *telemetry) exposition() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{})
}

// shutdown pushes what has not been pushed.
func (t *telemetry) shutdown(ctx context.Context) error {
	var errs []error
	for _, end := range t.ends {
		errs = append(errs, end(ctx))
	}
	return errors.Join(errs...)
}
