package compat

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// traced is a client and the spans of its commands.
type traced struct {
	redis.UniversalClient
	spans  *tracetest.InMemoryExporter
	tracer trace.Tracer
}

// tracing returns an option by which redisotel traces a client, the exporter that gets
// the spans, and a tracer for the spans of the test.
func tracing(t *testing.T) (redial.Option, *tracetest.InMemoryExporter, trace.Tracer) {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	return redial.WithInstrument(func(rdb redis.UniversalClient) error {
		return redisotel.InstrumentTracing(rdb, redisotel.WithTracerProvider(provider), redisotel.WithDialFilter(true))
	}), spans, provider.Tracer("test")
}

// spansOf returns what redisotel made of a call: the spans beneath the one of the test.
func (c traced) spansOf(call func(ctx context.Context) error) (tracetest.SpanStubs, error) {
	ctx, parent := c.tracer.Start(context.Background(), "call")
	err := call(ctx)
	parent.End()
	all := c.spans.GetSpans()
	c.spans.Reset()
	return slices.DeleteFunc(all, func(s tracetest.SpanStub) bool {
		return s.Parent.SpanID() != parent.SpanContext().SpanID()
	}), err
}

// one asserts that a call has one span, which says what became of it and where in this
// file it was made.
func (c traced) one(t *testing.T, name string, call func(ctx context.Context) error) (tracetest.SpanStub, error) {
	t.Helper()
	spans, err := c.spansOf(call)
	require.Len(t, spans, 1, "%v", err)
	s := spans[0]
	assert.Equal(t, name, s.Name)
	if err == nil || errors.Is(err, redis.Nil) {
		assert.Equal(t, codes.Unset, s.Status.Code, s.Status.Description)
		assert.Empty(t, s.Events)
	} else {
		assert.Equal(t, codes.Error, s.Status.Code)
		assert.Equal(t, err.Error(), s.Status.Description)
	}
	_, file, _, _ := runtime.Caller(0)
	at := attribute.NewSet(s.Attributes...)
	where, _ := at.Value("code.filepath")
	assert.Equal(t, filepath.Base(file), filepath.Base(where.AsString()))
	return s, err
}

// TestRedisotel: one span for each call of the caller, whatever became of the server
// meanwhile.
func TestRedisotel(t *testing.T) {
	server := startServer(t)
	others := []*redialtest.Server{startServer(t), startServer(t)}
	cluster := redialtest.StartCluster(t, 3, 0)
	all := map[string]struct {
		servers []*redialtest.Server
		client  func(redial.Option) redial.UniversalClient
		settle  func()
	}{
		"Client": {[]*redialtest.Server{server}, func(o redial.Option) redial.UniversalClient {
			return redial.NewClient(&redis.Options{Addr: server.Addr()}, o)
		}, func() {}},
		"clone": {[]*redialtest.Server{server}, func(o redial.Option) redial.UniversalClient {
			return redial.NewClient(&redis.Options{Addr: server.Addr()}, o).WithTimeout(3 * time.Second)
		}, func() {}},
		"ClusterClient": {cluster.Nodes, func(o redial.Option) redial.UniversalClient {
			return redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()}, o)
		}, cluster.Settle},
		"Ring": {others, func(o redial.Option) redial.UniversalClient {
			return redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": others[0].Addr(), "b": others[1].Addr()}}, o)
		}, func() {}},
	}
	for _, name := range []string{"Client", "clone", "ClusterClient", "Ring"} {
		t.Run(name, func(t *testing.T) {
			with, spans, tracer := tracing(t)
			rdb := all[name].client(with)
			t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			require.NoError(t, rdb.WaitReady(ctx))
			c := traced{rdb, spans, tracer}

			_, err := c.one(t, "set", func(ctx context.Context) error { return c.Set(ctx, "k", "v", 0).Err() })
			require.NoError(t, err)
			_, err = c.one(t, "get", func(ctx context.Context) error { return c.Get(ctx, "none").Err() })
			require.ErrorIs(t, err, redis.Nil)

			// The servers are killed and restarted: one call rides that out.
			for _, s := range all[name].servers {
				s.Kill()
			}
			require.NoError(t, rdb.WaitForState(ctx, redial.StateReconnecting))
			s, err := c.one(t, "incr", func(ctx context.Context) error { return c.Incr(redial.FailFast(ctx), "k").Err() })
			require.ErrorIs(t, err, redial.ErrUnavailable)
			assert.Less(t, s.EndTime.Sub(s.StartTime), time.Second)
			restarted := make(chan time.Time)
			go func() {
				time.Sleep(outage)
				for _, s := range all[name].servers {
					s.Start()
				}
				all[name].settle()
				restarted <- time.Now()
			}()
			began := time.Now()
			s, err = c.one(t, "incr", func(ctx context.Context) error {
				return c.Incr(redial.WaitFor(ctx, patience), "n").Err()
			})
			took := time.Since(began)
			require.NoError(t, err)
			assert.GreaterOrEqual(t, s.EndTime.Sub(s.StartTime), outage, "the span has the time that the caller waited")
			assert.InDelta(t, took, s.EndTime.Sub(s.StartTime), float64(100*time.Millisecond))
			<-restarted

			_, err = c.one(t, "redis.pipeline incr get", func(ctx context.Context) error {
				_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); p.Get(ctx, "n"); return nil })
				return err
			})
			require.NoError(t, err)
			_, err = c.one(t, "redis.pipeline multi incr exec", func(ctx context.Context) error {
				_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
				return err
			})
			require.NoError(t, err)
			_, err = c.one(t, "lpush", func(ctx context.Context) error { return c.LPush(ctx, "n", "wrong type").Err() })
			require.Error(t, err)
		})
	}
}

// TestRedisotel_Metrics: redisotel's metrics of the pool are those of the client.
func TestRedisotel_Metrics(t *testing.T) {
	server := startServer(t)
	reader := sdkmetric.NewManualReader()
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()}, redial.WithInstrument(func(rdb redis.UniversalClient) error {
		return redisotel.InstrumentMetrics(rdb, redisotel.WithMeterProvider(provider))
	}))
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	require.NoError(t, rdb.WithTimeout(time.Second).Set(t.Context(), "k", "v", 0).Err())

	var all metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(t.Context(), &all))
	connections, calls := int64(0), uint64(0)
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					if m.Name == "db.client.connections.usage" {
						connections += p.Value
					}
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					if kind, _ := p.Attributes.Value("type"); m.Name == "db.client.connections.use_time" && kind.AsString() == "command" {
						calls += p.Count
					}
				}
			}
		}
	}
	assert.Positive(t, connections)
	assert.GreaterOrEqual(t, calls, uint64(2))
}

// TestRedisotel_BesideGoRedis: through an outage each call has one span, which says how it
// ended, as with go-redis, and names and attributes are the same.
func TestRedisotel_BesideGoRedis(t *testing.T) {
	server := startServer(t)
	goRedis := bare(t, server)
	with, spans, tracer := tracing(t)
	patient := resilient(t, server, redial.WithRetry(repeating), with)
	clients := map[*rider]traced{patient: {patient.rdb, spans, tracer}}
	bareSpans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(bareSpans))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	require.NoError(t, redisotel.InstrumentTracing(goRedis.rdb, redisotel.WithTracerProvider(provider), redisotel.WithDialFilter(true)))
	clients[goRedis] = traced{goRedis.rdb, bareSpans, provider.Tracer("test")}

	ride(t, server, func(ctx context.Context, r *rider) error { return clients[r].Incr(ctx, "n").Err() }, goRedis, patient)
	unharmed(t, patient)
	var seen []tracetest.SpanStub
	for _, r := range []*rider{goRedis, patient} {
		calls, failed := 0, 0
		var last tracetest.SpanStub
		for _, s := range clients[r].spans.GetSpans() {
			if s.Name != "incr" { // of a handshake, which go-redis shows
				continue
			}
			calls++
			if s.Status.Code == codes.Error {
				failed++
			}
			last = s
		}
		assert.Equal(t, r.made, calls, "%s: one span a call", r.name)
		assert.GreaterOrEqual(t, failed, r.failed, "%s: spans of calls that failed", r.name)
		assert.LessOrEqual(t, failed, r.failed+r.cut, "%s: spans of calls that failed", r.name)
		seen = append(seen, last)
	}
	assert.Equal(t, seen[0].SpanKind, seen[1].SpanKind)
	assert.Equal(t, seen[0].Attributes, seen[1].Attributes)
}
