package overhead

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialotel"
	"github.com/redial-go/redial/redialprom"
	"github.com/redial-go/redial/redialtest"
)

// scraping is how often what is watched is read: 30 times as often as a Prometheus does by
// default.
const scraping = 500 * time.Millisecond

// Watched measures what redial costs while nothing breaks and it is watched: by a logger
// and the metrics of redialprom and redialotel, which are read twice a second meanwhile, and
// then with a recorded span for each call as well.
func Watched(rounds int, only string) (costs []Cost, err error) {
	server, err := redialtest.LaunchServer()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	for _, traced := range []bool{false, true} {
		suffix := ", watched"
		if traced {
			suffix = ", watched and traced"
		}
		more, err := beside(server.Addr(), rounds, only, suffix, side{}, side{Redial: true, Watched: true, Traced: traced})
		if err != nil {
			return nil, err
		}
		costs = append(costs, more...)
	}
	return costs, nil
}

// watched opens a client that is watched.
func watched(addr string, traced bool) (ours redis.Cmdable, shut func() error, err error) {
	reader := sdkmetric.NewManualReader()
	metering := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	tracing := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample())) // exported to nobody
	end := func() error {
		return errors.Join(metering.Shutdown(context.Background()), tracing.Shutdown(context.Background()))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, end())
		}
	}()
	seen := redialprom.NewObserver()
	metrics, err := redialotel.NewMetrics("bench", redialotel.WithMeterProvider(metering))
	if err != nil {
		return nil, nil, err
	}
	opts := []redial.Option{
		redial.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil))), redial.WithObserver(seen), redial.WithObserver(metrics),
	}
	if traced {
		tracer := redialotel.NewTracer("bench", redialotel.WithTracerProvider(tracing))
		opts = append(opts, redial.WithOuterHook(tracer), redial.WithObserver(tracer))
	}
	c := redial.NewClient(&redis.Options{Addr: addr}, opts...)
	end = joined(c.Close, end)
	if err := metrics.Watch(c); err != nil {
		return nil, nil, err
	}
	registry := prometheus.NewRegistry()
	if err := registry.Register(redialprom.NewCollector("bench", c, redialprom.WithObserver(seen))); err != nil {
		return nil, nil, err
	}
	stop := keepReading(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), reader)
	return c, joined(stop, end), nil
}

// keepReading reads all metrics now and then until the function that it returns is called,
// which returns what went wrong.
func keepReading(exposition http.Handler, reader sdkmetric.Reader) (stop func() error) {
	var errs []error
	var reading sync.WaitGroup
	done := make(chan struct{})
	reading.Go(func() {
		tick := time.NewTicker(scraping)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			w := httptest.NewRecorder()
			exposition.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			if w.Code != http.StatusOK {
				errs = append(errs, errors.New(w.Body.String()))
			}
			var points metricdata.ResourceMetrics
			errs = append(errs, reader.Collect(context.Background(), &points))
		}
	})
	return func() error { close(done); reading.Wait(); return errors.Join(errs...) }
}
