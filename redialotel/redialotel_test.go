package redialotel_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/otlptranslator"
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
	"github.com/redial-go/redial/redialotel"
	"github.com/redial-go/redial/redialtest"
)

var _ = []redialotel.Source{(*redial.Client)(nil), (*redial.ClusterClient)(nil), (*redial.Ring)(nil), (*redial.Supervisor)(nil)}

var (
	_ = []interface {
		redial.StateObserver
		redial.WaitObserver
	}{(*redialotel.Metrics)(nil)}
	_ = []interface {
		redial.WaitObserver
		redial.RetryObserver
		redis.Hook
	}{(*redialotel.Tracer)(nil)}
)

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
		{Addr: "10.0.0.2:6380", State: redial.StateReconnecting, Outages: 6},
	}
	return shown(s)
}

// series are the points of metrics, "name{attributes}" and the value, or that of how many
// are in a histogram.
type series map[string]float64

// reading returns a provider and a function that exports what it has.
func reading(t *testing.T) (*sdkmetric.MeterProvider, func() (metricdata.ResourceMetrics, series)) {
	reader := sdkmetric.NewManualReader()
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	return provider, func() (all metricdata.ResourceMetrics, found series) {
		t.Helper()
		require.NoError(t, reader.Collect(context.Background(), &all))
		found = make(series)
		for _, s := range all.ScopeMetrics {
			for _, m := range s.Metrics {
				name := func(set attribute.Set) string {
					var attrs []string
					for _, kv := range set.ToSlice() {
						if kv.Key != "db.system.name" && kv.Key != "db.client.connection.pool.name" {
							attrs = append(attrs, string(kv.Key)+"="+kv.Value.String())
						}
					}
					return m.Name + "{" + strings.Join(attrs, ",") + "}"
				}
				switch d := m.Data.(type) {
				case metricdata.Sum[int64]:
					for _, p := range d.DataPoints {
						found[name(p.Attributes)] = float64(p.Value)
					}
				case metricdata.Sum[float64]:
					for _, p := range d.DataPoints {
						found[name(p.Attributes)] = p.Value
					}
				case metricdata.Gauge[float64]:
					for _, p := range d.DataPoints {
						found[name(p.Attributes)] = p.Value
					}
				case metricdata.Histogram[float64]:
					for _, p := range d.DataPoints {
						found[name(p.Attributes)] = float64(p.Count)
					}
				default:
					t.Errorf("%s is a %T", m.Name, d)
				}
			}
		}
		return all, found
	}
}

// fill has the histograms hold something.
func fill(m *redialotel.Metrics) {
	m.ObserveState(redial.Event{
		From: redial.StateReconnecting, To: redial.StateConnected, Cause: redial.CauseAnswered,
		Outage: &redial.Outage{Duration: time.Second, Cause: redial.CauseConnectionLost},
	})
	m.ObserveState(redial.Event{From: redial.StateConnecting, To: redial.StateConnected, Outage: &redial.Outage{Cause: redial.CauseCreated}})
	for _, cause := range []redial.Cause{redial.CauseNone, redial.CauseNone, redial.CauseGraceOver, redial.CauseContextEnded} {
		m.ObserveWait(context.Background(), redial.Wait{For: time.Second, Cause: cause})
	}
}

// The names are those of package redialprom, by the standard translation. Of promlint it
// has connections without _count, and it calls a node by its address.
func TestMetrics_NamesTranslate(t *testing.T) {
	provider, collect := reading(t)
	m, err := redialotel.NewMetrics("cache", redialotel.WithMeterProvider(provider), redialotel.WithNodes())
	require.NoError(t, err)
	require.NoError(t, m.Watch(numbered()))
	fill(m)
	all, _ := collect()
	namer := otlptranslator.MetricNamer{WithMetricSuffixes: true}
	labels := otlptranslator.LabelNamer{}
	got := make(map[string][]string)
	for _, s := range all.ScopeMetrics {
		for _, m := range s.Metrics {
			kind, sets := otlptranslator.MetricType(otlptranslator.MetricTypeGauge), []attribute.Set(nil)
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				if kind = otlptranslator.MetricTypeNonMonotonicCounter; d.IsMonotonic {
					kind = otlptranslator.MetricTypeMonotonicCounter
				}
				for _, p := range d.DataPoints {
					sets = append(sets, p.Attributes)
				}
			case metricdata.Sum[float64]:
				kind = otlptranslator.MetricTypeMonotonicCounter
				assert.True(t, d.IsMonotonic, m.Name)
			case metricdata.Gauge[float64]:
				for _, p := range d.DataPoints {
					sets = append(sets, p.Attributes)
				}
			case metricdata.Histogram[float64]:
				kind = otlptranslator.MetricTypeHistogram
				for _, p := range d.DataPoints {
					sets = append(sets, p.Attributes)
				}
			}
			name, err := namer.Build(otlptranslator.Metric{Name: m.Name, Unit: m.Unit, Type: kind})
			require.NoError(t, err)
			if name == "redial_connection_count" {
				name = "redial_connections"
			}
			var own []string
			for _, set := range sets {
				for _, kv := range set.ToSlice() {
					label, err := labels.Build(string(kv.Key))
					require.NoError(t, err)
					label = strings.TrimPrefix(strings.TrimPrefix(label, "redial_"), "retry_")
					if !strings.HasPrefix(label, "db_") && label != "server_port" && !slices.Contains(own, label) {
						own = append(own, strings.Replace(label, "server_address", "node", 1))
					}
				}
			}
			slices.Sort(own)
			got[name] = slices.Compact(own)
		}
	}
	text, err := os.ReadFile("../redialprom/testdata/metrics.txt")
	require.NoError(t, err)
	want := make(map[string][]string)
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\w+) (\w+)$`).FindAllStringSubmatch(string(text), -1) {
		want[m[1]] = nil
		one := regexp.MustCompile(`(?m)^` + m[1] + `(?:_bucket)?\{(.*)\}`).FindStringSubmatch(string(text))
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(one[1], -1) {
			if l[1] != "client" && l[1] != "le" {
				want[m[1]] = append(want[m[1]], l[1])
			}
		}
		slices.Sort(want[m[1]])
	}
	assert.Equal(t, want, got)
}

// Every number of the statistics is in a series, and none is in two.
func TestMetrics_HaveEveryNumber(t *testing.T) {
	provider, collect := reading(t)
	m, err := redialotel.NewMetrics("cache", redialotel.WithMeterProvider(provider), redialotel.WithNodes(), redialotel.WithSystem("valkey"), redialotel.WithServer("10.1.1.1:7000"))
	require.NoError(t, err)
	require.NoError(t, m.Watch(numbered()))
	fill(m)
	all, found := collect()
	s := redial.Stats(numbered())
	v := reflect.ValueOf(s)
	for i := range v.NumField() {
		field := v.Type().Field(i).Name
		var want float64
		switch v.Field(i).Kind() {
		case reflect.Uint64:
			want = float64(v.Field(i).Uint())
		case reflect.Int:
			want = float64(v.Field(i).Int())
		case reflect.Int64:
			want = time.Duration(v.Field(i).Int()).Seconds()
		default:
			continue
		}
		times := 0
		for _, value := range found {
			if value == want {
				times++
			}
		}
		if field == "Retries" { // the sum of the others
			assert.Zero(t, times, field)
		} else {
			assert.Equal(t, 1, times, "%s: %v", field, want)
		}
	}
	const at = "server.address=10.1.1.1,server.port=7000"
	for name, want := range map[string]float64{
		"redial.status{redial.state=connected," + at + "}":                                       1,
		"redial.status{redial.state=closed," + at + "}":                                          0,
		"redial.outage.duration{redial.cause=connection_lost," + at + "}":                        1,
		"redial.command.wait_time{redial.result=admitted," + at + "}":                            2,
		"redial.command.wait_time{redial.result=refused," + at + "}":                             1,
		"redial.command.wait_time{redial.result=canceled," + at + "}":                            1,
		"redial.node.outages{server.address=10.0.0.2,server.port=6380}":                          6,
		"redial.node.status{redial.state=reconnecting,server.address=10.0.0.2,server.port=6380}": 1,
	} {
		assert.Contains(t, found, name)
		assert.InDelta(t, want, found[name], 0, name)
	}
	for _, scope := range all.ScopeMetrics {
		for _, one := range scope.Metrics {
			assert.True(t, strings.HasPrefix(one.Name, "redial."), one.Name)
			if d, ok := one.Data.(metricdata.Sum[int64]); ok {
				for _, p := range d.DataPoints {
					system, _ := p.Attributes.Value("db.system.name")
					pool, _ := p.Attributes.Value("db.client.connection.pool.name")
					assert.Equal(t, "valkey", system.AsString())
					assert.Equal(t, "cache", pool.AsString())
				}
			}
		}
	}
}

func TestMetrics_BadInput(t *testing.T) {
	provider, collect := reading(t)
	_, err := redialotel.NewMetrics("", redialotel.WithMeterProvider(provider))
	assert.ErrorContains(t, err, "NewMetrics name is empty")
	m, err := redialotel.NewMetrics("cache", redialotel.WithMeterProvider(provider), nil, redialotel.WithMeterProvider(nil))
	require.NoError(t, err)
	require.NoError(t, m.Stop(), "nothing was begun")
	for _, s := range []redialotel.Source{nil, (*redial.Client)(nil), (*redial.Supervisor)(nil)} {
		assert.ErrorContains(t, m.Watch(s), "there is no client to ask")
	}
	require.NoError(t, m.Watch(numbered()))
	assert.ErrorContains(t, m.Watch(numbered()), "another client already")
	_, found := collect()
	assert.NotEmpty(t, found)
	for _, none := range []*redialotel.Metrics{nil, {}} {
		assert.ErrorContains(t, none.Watch(numbered()), "not made by NewMetrics")
		assert.NoError(t, none.Stop())
	}
	require.NoError(t, m.Stop())
	_, found = collect()
	assert.Empty(t, found)
	require.NoError(t, m.Watch(shown{}))
	_, found = collect()
	assert.NotEmpty(t, found)
}

// What a server calls its nodes is not ours to choose: no exporter must refuse a name, and two
// nodes are never one.
func TestMetrics_NamesOfNodes(t *testing.T) {
	for _, addrs := range [][2]string{
		{"a\xff:1", `a\xff:1`}, {`a\xff:1`, `a\\xff:1`}, {"a\xff", "a\xfe"}, {"a:redis1", "a:redis2"}, {"a:07000", "a:7000"},
		{"a:06379", "a:6379"}, {"[a]:7000", "a:7000"}, {"[a]:6379", "a:6379"}, {"a:+7000", "a:7000"},
	} {
		provider, collect := reading(t)
		m, err := redialotel.NewMetrics("cache", redialotel.WithMeterProvider(provider), redialotel.WithNodes())
		require.NoError(t, err)
		odd := numbered()
		odd.Nodes[0].Addr, odd.Nodes[1].Addr = addrs[0], addrs[1]
		require.NoError(t, m.Watch(odd))
		_, found := collect()
		nodes := 0
		for name := range found {
			assert.True(t, utf8.ValidString(name), name)
			if strings.HasPrefix(name, "redial.node.outages{") {
				nodes++
			}
		}
		assert.Equal(t, 2, nodes, "%q", addrs)
	}
}

// Nobody has asked for a node that was not tried: it is in no state that alerts could go by.
func TestMetrics_NodeNobodyAskedFor(t *testing.T) {
	const status = "redial.node.status{redial.state=connecting,server.address=10.0.0.2}"
	for _, lastError := range []string{"", "dial tcp 10.0.0.2:6379: connect: connection refused"} {
		provider, collect := reading(t)
		m, err := redialotel.NewMetrics("cache", redialotel.WithMeterProvider(provider), redialotel.WithNodes())
		require.NoError(t, err)
		s := numbered()
		s.Nodes[1] = redial.NodeStats{Addr: "10.0.0.2:6379", State: redial.StateConnecting, LastError: lastError}
		require.NoError(t, m.Watch(s))
		_, found := collect()
		v, there := found[status]
		assert.Equal(t, lastError != "", there)
		assert.Equal(t, lastError != "", v == 1)
	}
}

// The server that was named for a client is not where its nodes are.
func TestMetrics_NodesHaveTheirOwnServer(t *testing.T) {
	provider, collect := reading(t)
	m, err := redialotel.NewMetrics("cache", redialotel.WithMeterProvider(provider), redialotel.WithNodes(), redialotel.WithServer("seed:7000"))
	require.NoError(t, err)
	two := numbered()
	two.Nodes[0].Addr, two.Nodes[1].Addr = "node:6379", "node:7000"
	require.NoError(t, m.Watch(two))
	_, found := collect()
	nodes := 0
	for name := range found {
		if strings.HasPrefix(name, "redial.node.outages{") {
			nodes++
		}
	}
	assert.Equal(t, 2, nodes)
}

// Two clients of one name would be added up, so the second is refused, until the first is
// closed or not watched any more.
func TestMetrics_TheSameNameTwice(t *testing.T) {
	provider, collect := reading(t)
	named := func(name string, p *sdkmetric.MeterProvider, opts ...redialotel.Option) *redialotel.Metrics {
		m, err := redialotel.NewMetrics(name, append(opts, redialotel.WithMeterProvider(p))...)
		require.NoError(t, err)
		return m
	}
	connected := func() float64 {
		_, found := collect()
		return found["redial.status{redial.state=connected}"]
	}
	first, second := named("cache", provider), named("cache", provider)
	source := redial.Stats{State: redial.StateConnected}
	require.NoError(t, first.Watch(asked(func() redial.Stats { return source })))
	assert.ErrorContains(t, second.Watch(numbered()), `another client is watched as "cache" already`)
	assert.Equal(t, 1.0, connected())
	other, _ := reading(t)
	for _, m := range []*redialotel.Metrics{named("sessions", provider), named("cache", provider, redialotel.WithServer("10.1.1.1")), named("cache", other)} {
		assert.NoError(t, m.Watch(numbered()), "it is not the same")
		assert.NoError(t, m.Stop())
	}
	require.NoError(t, first.Stop())
	require.NoError(t, second.Watch(numbered()), "the name is free")
	assert.Equal(t, 1.0, connected())
	require.NoError(t, second.Stop())

	require.NoError(t, first.Watch(asked(func() redial.Stats { return source })))
	source.State = redial.StateClosed
	require.NoError(t, second.Watch(numbered()), "the client is closed")
	assert.Equal(t, 1.0, connected())
	_, found := collect()
	assert.Equal(t, 0.0, found["redial.status{redial.state=closed}"])
	require.NoError(t, first.Stop(), "it is over already")
	assert.ErrorContains(t, first.Watch(numbered()), "already")
	assert.Equal(t, 1.0, connected())
}

// A client that takes the place of a closed one, under its name, goes on with its counts: a counter
// that fell would be a negative one where differences are exported.
func TestMetrics_OneClientAfterAnother(t *testing.T) {
	for _, temporality := range []metricdata.Temporality{metricdata.CumulativeTemporality, metricdata.DeltaTemporality} {
		reader := sdkmetric.NewManualReader(sdkmetric.WithTemporalitySelector(func(sdkmetric.InstrumentKind) metricdata.Temporality { return temporality }))
		provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
		t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
		counts := func() map[string]float64 {
			var all metricdata.ResourceMetrics
			require.NoError(t, reader.Collect(context.Background(), &all))
			counts := make(map[string]float64)
			for _, m := range all.ScopeMetrics[0].Metrics {
				switch d := m.Data.(type) {
				case metricdata.Sum[int64]:
					for _, p := range d.DataPoints {
						if d.IsMonotonic {
							counts[m.Name] += float64(p.Value)
						}
					}
				case metricdata.Sum[float64]:
					for _, p := range d.DataPoints {
						counts[m.Name] += p.Value
					}
				}
			}
			return counts
		}
		watch := func(s shown) *redialotel.Metrics {
			m, err := redialotel.NewMetrics("cache", redialotel.WithMeterProvider(provider))
			require.NoError(t, err)
			require.NoError(t, m.Watch(s))
			return m
		}
		closed := numbered()
		closed.State = redial.StateClosed
		watch(closed)
		first := counts()
		require.Len(t, first, 16)
		watch(closed)
		second := counts()
		last := watch(numbered())
		third := counts()
		for name, n := range first {
			if temporality == metricdata.CumulativeTemporality {
				assert.InDelta(t, 2*n, second[name], 1e-6, name)
				assert.InDelta(t, 3*n, third[name], 1e-6, name)
			} else {
				assert.InDelta(t, n, second[name], 1e-6, name)
				assert.InDelta(t, n, third[name], 1e-6, name)
			}
		}
		require.NoError(t, last.Stop())
		require.NoError(t, reader.Collect(context.Background(), new(metricdata.ResourceMetrics)))
		watch(numbered())
		assert.Equal(t, first, counts(), "they begin anew")
	}
}

// asked is a client whose condition changes.
type asked func() redial.Stats

func (f asked) Stats() redial.Stats { return f() }

// A client that is closed shows its last values.
func TestMetrics_ClosedClient(t *testing.T) {
	provider, collect := reading(t)
	m, err := redialotel.NewMetrics("cache", redialotel.WithMeterProvider(provider))
	require.NoError(t, err)
	rdb := redial.NewClient(&redis.Options{Addr: "127.0.0.1:1"}, redial.WithObserver(m))
	require.NoError(t, m.Watch(rdb))
	require.NoError(t, rdb.Close())
	_, found := collect()
	assert.Equal(t, 1.0, found["redial.status{redial.state=closed}"])
	assert.Equal(t, 0.0, found["redial.status{redial.state=connecting}"])
	assert.Equal(t, 5.0, found["redial.grace{}"])
}

// spanning returns a provider and its exporter.
func spanning(t *testing.T) (*sdktrace.TracerProvider, *tracetest.InMemoryExporter) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	return provider, spans
}

// said returns the attributes of a span but for those that all have.
func said(s tracetest.SpanStub) map[string]any {
	all := make(map[string]any)
	for _, kv := range s.Attributes {
		if kv.Key != "db.system.name" && kv.Key != "db.client.connection.pool.name" {
			all[string(kv.Key)] = kv.Value.AsInterface()
		}
	}
	return all
}

// A server in memory, and a client of it in a bubble.
func inMemory(t *testing.T, opts ...redial.Option) (*redialtest.FakeServer, *redial.Client) {
	server := redialtest.NewFakeServerPipe(t)
	rdb := redial.NewClient(&redis.Options{
		Addr: server.Addr(), Dialer: server.Dial, Protocol: 2, DisableIdentity: true, PoolSize: 500, PipelinePoolSize: 500,
	}, opts...)
	t.Cleanup(func() { _ = rdb.Close() })
	require.NoError(t, rdb.WaitReady(t.Context()))
	return server, rdb
}

// lose has the replies to a command lost, so many times.
func lose(server *redialtest.FakeServer, cmd string, times int) {
	var mu sync.Mutex
	server.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		mu.Lock()
		defer mu.Unlock()
		if strings.EqualFold(args[0], cmd) && times > 0 {
			times--
			return redialtest.ExecuteThenClose
		}
		return redialtest.Handle
	})
}

// One span for each call, which says what became of it.
func TestTracer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider, spans := spanning(t)
		tracer := redialotel.NewTracer("cache", redialotel.WithTracerProvider(provider), redialotel.WithServer("cache.example:6379"))
		server, rdb := inMemory(t, redial.WithOuterHook(tracer), redial.WithObserver(tracer), redial.WithGrace(2*time.Second))
		ctx := t.Context()
		one := func(call func() error) (tracetest.SpanStub, error) {
			t.Helper()
			spans.Reset()
			err := call()
			all := spans.GetSpans()
			require.Len(t, all, 1)
			assert.Equal(t, trace.SpanKindClient, all[0].SpanKind)
			assert.Empty(t, all[0].Events)
			assert.NotContains(t, fmt.Sprint(all[0]), "secret")
			return all[0], err
		}
		const at = "cache.example"
		s, err := one(func() error { return rdb.Set(ctx, "secret-key", "secret-value", 0).Err() })
		require.NoError(t, err)
		assert.Equal(t, "SET", s.Name)
		assert.Equal(t, map[string]any{"db.operation.name": "SET", "server.address": at}, said(s))
		assert.Equal(t, codes.Unset, s.Status.Code)

		s, err = one(func() error { return rdb.Get(ctx, "none").Err() })
		require.ErrorIs(t, err, redis.Nil)
		assert.Equal(t, map[string]any{"db.operation.name": "GET", "server.address": at}, said(s), "no value is no error")
		assert.Equal(t, codes.Unset, s.Status.Code)

		server.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			if strings.EqualFold(args[0], "lpush") {
				return redialtest.Reply("-WRONGTYPE Operation against a key holding the wrong kind of value\r\n")
			}
			return redialtest.Handle
		})
		s, err = one(func() error { return rdb.LPush(ctx, "secret-key", "v").Err() })
		require.ErrorContains(t, err, "WRONGTYPE")
		assert.Equal(t, map[string]any{"db.operation.name": "LPUSH", "server.address": at, "error.type": "WRONGTYPE", "db.response.status_code": "WRONGTYPE"}, said(s))
		assert.Equal(t, codes.Error, s.Status.Code)

		lose(server, "get", 2)
		s, err = one(func() error { return rdb.Get(ctx, "secret-key").Err() })
		require.NoError(t, err)
		assert.Equal(t, map[string]any{"db.operation.name": "GET", "server.address": at, "redial.attempts": int64(3)}, said(s), "retries that helped are no error")
		assert.Equal(t, codes.Unset, s.Status.Code)

		lose(server, "incr", 1)
		s, err = one(func() error { return rdb.Incr(ctx, "n").Err() })
		require.ErrorIs(t, err, redial.ErrOutcomeUnknown)
		assert.Equal(t, map[string]any{"db.operation.name": "INCR", "server.address": at, "redial.outcome": "unknown", "error.type": "redial.outcome_unknown"}, said(s))

		server.Kill()
		require.NoError(t, rdb.WaitForState(ctx, redial.StateReconnecting))
		s, err = one(func() error { return rdb.Incr(redial.FailFast(ctx), "n").Err() })
		require.ErrorIs(t, err, redial.ErrUnavailable)
		assert.Equal(t, map[string]any{"db.operation.name": "INCR", "server.address": at, "redial.outcome": "not_run", "redial.attempts": int64(0), "error.type": "redial.unavailable"}, said(s))
		time.AfterFunc(time.Second, func() { assert.NoError(t, server.Start()) })
		began := time.Now()
		s, err = one(func() error { return rdb.Incr(ctx, "n").Err() })
		took := time.Since(began)
		require.NoError(t, err)
		assert.Equal(t, took, s.EndTime.Sub(s.StartTime), "the wait is in the span")
		waited := said(s)["redial.waited"]
		assert.InDelta(t, took.Seconds(), waited, .05)
		assert.Equal(t, map[string]any{"db.operation.name": "INCR", "server.address": at, "redial.waited": waited}, said(s))

		s, err = one(func() error {
			_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "secret-key"); p.Get(ctx, "secret-key"); return nil })
			return err
		})
		require.NoError(t, err)
		assert.Equal(t, "PIPELINE GET", s.Name)
		assert.Equal(t, map[string]any{"db.operation.name": "PIPELINE GET", "server.address": at, "db.operation.batch.size": int64(2)}, said(s))
		s, err = one(func() error {
			_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "k"); p.Incr(ctx, "n"); return nil })
			return err
		})
		require.ErrorIs(t, err, redis.Nil)
		assert.Equal(t, "PIPELINE", s.Name)
		s, err = one(func() error {
			_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
			return err
		})
		require.NoError(t, err)
		assert.Equal(t, map[string]any{"db.operation.name": "INCR", "server.address": at}, said(s), "a batch of one is none")
		s, err = one(func() error {
			_, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); p.Incr(ctx, "n"); return nil })
			return err
		})
		require.NoError(t, err)
		assert.Equal(t, "MULTI", s.Name)
		assert.Equal(t, int64(2), said(s)["db.operation.batch.size"])

		ended, cancel := context.WithCancel(ctx)
		cancel()
		s, err = one(func() error { return rdb.Get(ended, "k").Err() })
		require.ErrorIs(t, err, context.Canceled)
		assert.Equal(t, "canceled", said(s)["error.type"])
		s, err = one(func() error { return rdb.Do(ctx, "what secret is this").Err() })
		require.Error(t, err)
		assert.Equal(t, "OTHER", s.Name)
		assert.Equal(t, "ERR", said(s)["error.type"])

		// What sets up connections, and heartbeats, have no spans.
		spans.Reset()
		time.Sleep(10 * time.Second)
		require.NoError(t, rdb.Conn().Select(ctx, 0).Err())
		assert.Empty(t, spans.GetSpans())

		require.NoError(t, rdb.Close())
		s, err = one(func() error { return rdb.Get(ctx, "k").Err() })
		require.ErrorIs(t, err, redis.ErrClosed)
		assert.Equal(t, codes.Error, s.Status.Code)
	})
}

// Beside redisotel there is one span a call, its own, which says what only redial knows.
func TestTracer_AttributesOnly_WithRedisotel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider, spans := spanning(t)
		meters, collect := reading(t)
		tracer := redialotel.NewTracer("cache", redialotel.WithTracerProvider(provider), redialotel.WithAttributesOnly())
		metrics, err := redialotel.NewMetrics("cache", redialotel.WithMeterProvider(meters))
		require.NoError(t, err)
		server, rdb := inMemory(t, redial.WithInstrument(func(rdb redis.UniversalClient) error {
			return errors.Join(
				redisotel.InstrumentTracing(rdb, redisotel.WithTracerProvider(provider), redisotel.WithDialFilter(true)),
				redisotel.InstrumentMetrics(rdb, redisotel.WithMeterProvider(meters)))
		}), redial.WithOuterHook(tracer), redial.WithObserver(tracer), redial.WithObserver(metrics))
		require.NoError(t, metrics.Watch(rdb))
		ctx, parent := provider.Tracer("test").Start(t.Context(), "request")
		defer parent.End()
		require.NoError(t, rdb.Set(ctx, "k", "v", 0).Err())
		spans.Reset()

		lose(server, "get", 1)
		require.NoError(t, rdb.Get(ctx, "k").Err())
		all := slices.DeleteFunc(spans.GetSpans(), func(s tracetest.SpanStub) bool { return s.Name == "hello" }) // of a new connection
		require.Len(t, all, 1)
		assert.Equal(t, "get", all[0].Name)
		assert.Equal(t, int64(2), said(all[0])["redial.attempts"])
		assert.NotContains(t, said(all[0]), "db.operation.name")

		spans.Reset()
		server.Kill()
		require.NoError(t, rdb.WaitForState(ctx, redial.StateReconnecting))
		require.ErrorIs(t, rdb.Get(redial.FailFast(ctx), "k").Err(), redial.ErrUnavailable)
		all = spans.GetSpans()
		require.Len(t, all, 1)
		assert.Equal(t, "not_run", said(all[0])["redial.outcome"])

		// No name is recorded by both.
		data, _ := collect()
		by := make(map[string]string)
		for _, s := range data.ScopeMetrics {
			for _, m := range s.Metrics {
				assert.Empty(t, by[m.Name], "%s is of %s and %s", m.Name, by[m.Name], s.Scope.Name)
				by[m.Name] = s.Scope.Name
			}
		}
		assert.Contains(t, by, "redial.status")
	})
}

// What comes of an id is named as such, not by the replies that it is read from.
func TestTracer_Once(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider, spans := spanning(t)
		tracer := redialotel.NewTracer("cache", redialotel.WithTracerProvider(provider))
		server, rdb := inMemory(t, redial.WithOuterHook(tracer), redial.WithObserver(tracer))
		said := func(id, reply string) map[string]any {
			server.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
				if strings.EqualFold(args[0], "evalsha") {
					return redialtest.Reply(reply)
				}
				return redialtest.Handle
			})
			spans.Reset()
			require.Error(t, rdb.Incr(redial.Once(t.Context(), id), "n").Err())
			all := make(map[string]any)
			for _, a := range spans.GetSpans()[0].Attributes {
				if key := string(a.Key); !strings.HasPrefix(key, "db.") || key == "db.response.status_code" {
					all[key] = a.Value.AsInterface()
				}
			}
			return all
		}
		assert.Equal(t, map[string]any{"error.type": "redial.once_mismatch"}, said("id", "-REDIALONCE other\r\n"))
		assert.Equal(t, map[string]any{"error.type": "redial.once_unsupported"}, said("", ""))
		assert.Equal(t, map[string]any{"error.type": "redial.once_unsupported"}, said("id", "-NOPERM this user has no permissions\r\n"))
		assert.Equal(t, map[string]any{"error.type": "redial.outcome_unknown", "redial.outcome": "unknown"}, said("id", "-REDIALONCE lost\r\n"))
	})
}

// What a hook of the program panics with may be about anything, and is not on the span.
func TestTracer_Panic(t *testing.T) {
	provider, spans := spanning(t)
	h := redialotel.NewTracer("cache", redialotel.WithTracerProvider(provider)).ProcessHook(func(context.Context, redis.Cmder) error { panic("secret") })
	assert.PanicsWithValue(t, "secret", func() { _ = h(t.Context(), redis.NewCmd(t.Context(), "get", "k")) })
	require.Len(t, spans.GetSpans(), 1)
	s := spans.GetSpans()[0]
	assert.Empty(t, s.Events)
	assert.NotContains(t, fmt.Sprint(s), "secret")
	assert.Equal(t, map[string]any{"db.operation.name": "GET", "error.type": "_OTHER"}, said(s))
	assert.Equal(t, codes.Error, s.Status.Code)
}

// Whoever has no span, and asked for none, is left alone.
func TestTracer_AttributesOnly_WithoutSpan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tracer := redialotel.NewTracer("cache", redialotel.WithAttributesOnly())
		type key struct{}
		var same bool
		ctx := context.WithValue(t.Context(), key{}, 1)
		h := tracer.ProcessHook(func(got context.Context, _ redis.Cmder) error { same = got == ctx; return nil })
		require.NoError(t, h(ctx, redis.NewCmd(ctx, "get", "k")))
		assert.True(t, same)
	})
}

// The duration is that of a call of the program, and operations are few.
func TestTracer_OperationDuration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider, spans := spanning(t)
		meters, collect := reading(t)
		tracer := redialotel.NewTracer("cache", redialotel.WithTracerProvider(provider), redialotel.WithMeterProvider(meters), redialotel.WithOperationDuration())
		server, rdb := inMemory(t, redial.WithOuterHook(tracer), redial.WithObserver(tracer))
		ctx := t.Context()
		lose(server, "get", 1)
		require.ErrorIs(t, rdb.Get(ctx, "k").Err(), redis.Nil)
		require.ErrorContains(t, rdb.Do(ctx, "no.such").Err(), "unknown command")
		data, found := collect()
		require.Equal(t, series{
			"db.client.operation.duration{db.operation.name=GET}":                                                1,
			"db.client.operation.duration{db.operation.name=NO.SUCH,db.response.status_code=ERR,error.type=ERR}": 1,
		}, found)
		h := data.ScopeMetrics[0].Metrics[0].Data.(metricdata.Histogram[float64]).DataPoints[0]
		assert.Equal(t, []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10}, h.Bounds)
		assert.Len(t, spans.GetSpans(), 2)
		for i := range 300 {
			_ = rdb.Do(ctx, fmt.Sprint("cmd", i)).Err()
		}
		_, found = collect()
		assert.LessOrEqual(t, len(found), 257)
	})
}

// A batch of any size is in one series: each size would be another one.
func TestTracer_OperationDuration_Batches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		meters, collect := reading(t)
		tracer := redialotel.NewTracer("cache", redialotel.WithMeterProvider(meters), redialotel.WithOperationDuration())
		_, rdb := inMemory(t, redial.WithOuterHook(tracer))
		for size := 2; size < 50; size++ {
			_, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
				for range size {
					p.Incr(t.Context(), "n")
				}
				return nil
			})
			require.NoError(t, err)
		}
		_, found := collect()
		assert.Equal(t, series{"db.client.operation.duration{db.operation.name=PIPELINE INCR}": 48}, found)
	})
}

// What a program calls its clients need not be text, but what is exported is.
func TestNames_NoText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider, spans := spanning(t)
		tracer := redialotel.NewTracer("cache\xff", redialotel.WithTracerProvider(provider), redialotel.WithSystem("red\xff"))
		_, rdb := inMemory(t, redial.WithOuterHook(tracer))
		require.NoError(t, rdb.Incr(t.Context(), "n").Err())
		require.Len(t, spans.GetSpans(), 1)
		values := []string{}
		for _, a := range spans.GetSpans()[0].Attributes {
			values = append(values, a.Value.String())
		}
		assert.Subset(t, values, []string{`cache\xff`, `red\xff`})
	})
}

// A script may call its errors anything, keys included: their kinds are few in metrics.
func TestTracer_OperationDuration_WordsOfScripts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		meters, collect := reading(t)
		tracer := redialotel.NewTracer("cache", redialotel.WithMeterProvider(meters), redialotel.WithOperationDuration())
		server, rdb := inMemory(t, redial.WithOuterHook(tracer), redial.WithObserver(tracer))
		calls := 0
		server.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			if !strings.EqualFold(args[0], "eval") {
				return ""
			}
			calls++
			return redialtest.Reply("-" + strings.Repeat("A", calls%30) + strings.Repeat("B", calls/30) + "Z no such user\r\n")
		})
		for range 600 {
			require.ErrorContains(t, rdb.Eval(t.Context(), "return x", nil).Err(), "no such user")
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, rdb.Get(ended, "k").Err(), context.Canceled)
		_, found := collect()
		assert.LessOrEqual(t, len(found), 258)
		assert.NotZero(t, found["db.client.operation.duration{db.operation.name=EVAL,error.type=_OTHER}"])
		assert.NotZero(t, found["db.client.operation.duration{db.operation.name=GET,error.type=canceled}"], "what no server says keeps its name")
	})
}
