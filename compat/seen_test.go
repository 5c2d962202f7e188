package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialhttp"
	"github.com/redial-go/redial/redialotel"
	"github.com/redial-go/redial/redialprom"
	"github.com/redial-go/redial/redialtest"
)

const (
	noise      = 1.05 // two equal clients differ by as much on a busy machine
	longOutage = 20 * time.Second
	crowd      = 8                      // callers, of each kind
	scrapes    = 100 * time.Millisecond // between two
	clockwork  = 300 * time.Millisecond // by how much what is seen of one moment may differ: a scrape, and a busy machine
)

// busyLoop keeps a server busy for five seconds.
const busyLoop = `
local function now() local t = redis.call('TIME') return t[1] + t[2] / 1000000 end
local ends = now() + 5
while now() < ends do end
return 1`

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) lines(t *testing.T) (all []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range bytes.Lines(l.b.Bytes()) {
		one := make(map[string]any)
		require.NoError(t, json.Unmarshal(line, &one))
		all = append(all, one)
	}
	return all
}

func timeOf(t *testing.T, line map[string]any) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, line["time"].(string))
	require.NoError(t, err)
	return at
}

func get(t *testing.T, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	b, err := io.ReadAll(w.Body)
	require.NoError(t, err)
	return string(b)
}

// series is a scrape.
type series map[string]float64

func scrape(t *testing.T, h http.Handler) series {
	t.Helper()
	found := make(series)
	for _, m := range regexp.MustCompile(`(?m)^(redial_\w+\{.*\}) (\S+)$`).FindAllStringSubmatch(get(t, h), -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		require.NoError(t, err)
		found[strings.NewReplacer(`client="cache",`, "", `,client="cache"`, "").Replace(m[1])] = v
	}
	require.NotEmpty(t, found)
	return found
}

// what is seen of an outage, by each who looks.
type sight struct {
	began, ended                     time.Time
	waits, refused, unknown, retries int
}

func (s sight) plus(counts sight) sight {
	s.waits, s.refused, s.unknown, s.retries = counts.waits, counts.refused, counts.unknown, counts.retries
	return s
}

// countedIn returns the numbers of a scrape, and waitsIn how many waits the histogram has.
func countedIn(all series) (s sight) {
	s.waits = int(all[`redial_command_waits_total{client="cache"}`])
	s.refused = int(all[`redial_command_failures_total{outcome="not_run"}`])
	s.unknown = int(all[`redial_command_failures_total{outcome="unknown"}`])
	for _, after := range []string{"unsent", "refused", "repeated"} {
		s.retries += int(all[`redial_command_retries_total{after="`+after+`"}`])
	}
	return s
}

func waitsIn(all series) (n int) {
	for _, result := range []string{"admitted", "refused", "canceled"} {
		n += int(all[`redial_command_wait_time_seconds_count{result="`+result+`"}`])
	}
	return n
}

// sightOf returns what spans say. Who waited, was refused or is unknown met the outage.
func sightOf(stubs tracetest.SpanStubs) (s sight) {
	for _, one := range stubs {
		attrs := make(map[string]any)
		for _, kv := range one.Attributes {
			attrs[string(kv.Key)] = kv.Value.AsInterface()
		}
		met := false
		if _, ok := attrs["redial.waited"]; ok {
			s.waits++
			met = true
		}
		switch attrs["redial.outcome"] {
		case "not_run":
			s.refused++
			met = true
		case "unknown":
			s.unknown++
			met = true
		}
		if n, ok := attrs["redial.attempts"].(int64); ok && n > 1 {
			s.retries += int(n) - 1
		}
		if met {
			if s.began.IsZero() || one.EndTime.Before(s.began) {
				s.began = one.EndTime // who is unknown ends when the outage begins
			}
			if one.EndTime.After(s.ended) {
				s.ended = one.EndTime
			}
		}
	}
	return s
}

// shownOn returns the numbers of a page.
func shownOn(t *testing.T, page string) (s sight) {
	t.Helper()
	for name, to := range map[string]*int{"had to wait": &s.waits, "refused": &s.refused, "outcome unknown": &s.unknown, "sent again": &s.retries} {
		m := regexp.MustCompile(`<dt>` + name + `</dt><dd>(\d+)</dd>`).FindStringSubmatch(page)
		require.NotNil(t, m, name)
		n, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		*to = n
	}
	return s
}

// allIn returns the sums of the line that is written when a client is closed.
func allIn(line map[string]any) sight {
	all := line["all"].(map[string]any)
	n := func(name string) int { return int(all[name].(float64)) }
	return sight{waits: n("waited"), refused: n("refused"), unknown: n("unknown"), retries: n("retries")}
}

// TestSeen_OneOutage_FourViews: of an outage of 20 s under load the scraped series, the
// spans, the log and the page say the same.
func TestSeen_OneOutage_FourViews(t *testing.T) {
	server := startServer(t)
	log := &lockedBuffer{}
	spans := tracetest.NewInMemoryExporter()
	tracing := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	reader := sdkmetric.NewManualReader()
	metering := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	t.Cleanup(func() { _, _ = tracing.Shutdown(context.Background()), metering.Shutdown(context.Background()) })
	seen := redialprom.NewObserver()
	tracer := redialotel.NewTracer("cache", redialotel.WithTracerProvider(tracing))
	metrics, err := redialotel.NewMetrics("cache", redialotel.WithMeterProvider(metering))
	require.NoError(t, err)
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr(), PoolSize: 4 * crowd},
		redial.WithLogger(slog.New(slog.NewJSONHandler(log, nil))),
		redial.WithOuterHook(tracer), redial.WithObserver(tracer), redial.WithObserver(seen), redial.WithObserver(metrics))
	t.Cleanup(func() { _ = rdb.Close() })
	require.NoError(t, metrics.Watch(rdb))
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(redialprom.NewCollector("cache", rdb, redialprom.WithObserver(seen)))
	exposition := promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
	page := redialhttp.Page(rdb)
	ctx, cancel := context.WithTimeout(t.Context(), patience+longOutage)
	defer cancel()
	require.NoError(t, rdb.WaitReady(ctx))

	// The load: each caller adds, and reads; each add is either acknowledged, refused or
	// unknown.
	var refused, unknown, made atomic.Int64
	var callers sync.WaitGroup
	stop := make(chan struct{})
	tick := func(d time.Duration) bool {
		select {
		case <-stop:
			return false
		case <-time.After(d):
			return true
		}
	}
	for range crowd {
		for _, call := range []func() error{
			func() error { return rdb.Incr(ctx, "n").Err() },
			func() error { return rdb.Get(ctx, "n").Err() },
		} {
			callers.Go(func() {
				for tick(20 * time.Millisecond) {
					made.Add(1)
					switch err := call(); {
					case err == nil, errors.Is(err, redis.Nil):
					case errors.Is(err, redial.ErrOutcomeUnknown):
						unknown.Add(1)
					case errors.Is(err, redial.ErrUnavailable):
						refused.Add(1)
					default:
						t.Error(err)
					}
				}
			})
		}
	}
	// What is on the wire when the server dies: replies that never come.
	pushed := make(chan error, crowd+1)
	for range crowd {
		go func() { pushed <- rdb.BLPop(ctx, 0, "nothing").Err() }()
	}

	var scraped []struct {
		at time.Time
		series
	}
	var looking sync.WaitGroup
	look := make(chan struct{})
	looking.Go(func() {
		for {
			at := time.Now()
			s := scrape(t, exposition)
			scraped = append(scraped, struct {
				at time.Time
				series
			}{at, s})
			select {
			case <-look:
				return
			case <-time.After(scrapes):
			}
		}
	})
	time.Sleep(time.Second)
	// The server is busy when it dies: whatever is sent meanwhile loses its reply, too. Reads
	// that have the patience are sent again.
	go func() { pushed <- rdb.EvalRO(redial.NoRetry(ctx), busyLoop, nil).Err() }()
	time.Sleep(200 * time.Millisecond)
	reads := make(chan error, crowd)
	for range crowd {
		go func() { reads <- rdb.Get(redial.WaitFor(ctx, patience), "n").Err() }()
	}
	time.Sleep(200 * time.Millisecond)
	server.Kill()
	killed := time.Now()
	for range crowd + 1 {
		err := <-pushed
		require.ErrorIs(t, err, redial.ErrOutcomeUnknown)
		unknown.Add(1)
	}
	time.Sleep(time.Until(killed.Add(longOutage / 2)))
	during := get(t, page)
	assert.Contains(t, during, "<strong>down</strong> reconnecting")
	time.Sleep(time.Until(killed.Add(longOutage)))
	server.Start()
	require.NoError(t, rdb.WaitReady(ctx))
	for range crowd {
		require.NoError(t, <-reads)
	}
	time.Sleep(time.Second)
	close(stop)
	callers.Wait()
	close(look)
	looking.Wait()
	final := scrape(t, exposition)
	shown := get(t, page)
	require.NoError(t, rdb.Close())

	all := make(map[string]sight)

	// The series.
	var s sight
	for _, one := range scraped {
		down := one.series[`redial_status{state="reconnecting"}`] == 1
		if down && s.began.IsZero() {
			s.began = one.at
		}
		if !down && !s.began.IsZero() && s.ended.IsZero() {
			s.ended = one.at
		}
	}
	s = s.plus(countedIn(final))
	all["series"] = s
	assert.EqualValues(t, 1, final[`redial_outages_total{client="cache"}`])
	assert.EqualValues(t, 1, final[`redial_outage_duration_seconds_count{cause="connection_lost"}`])
	assert.InDelta(t, longOutage.Seconds(), final[`redial_outage_duration_seconds_sum{cause="connection_lost"}`], 1)
	assert.Equal(t, s.waits, waitsIn(final))
	assert.Greater(t, s.waits, crowd)
	assert.Greater(t, s.refused, crowd)
	assert.GreaterOrEqual(t, s.unknown, crowd+1)
	assert.GreaterOrEqual(t, s.retries, crowd)
	assert.EqualValues(t, refused.Load(), s.refused, "as the callers count")
	assert.EqualValues(t, unknown.Load(), s.unknown, "as the callers count")

	// The same by OpenTelemetry.
	var exported metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(context.Background(), &exported))
	sums := make(map[string]int)
	for _, scope := range exported.ScopeMetrics {
		for _, m := range scope.Metrics {
			if d, ok := m.Data.(metricdata.Sum[int64]); ok {
				for _, p := range d.DataPoints {
					sums[m.Name] += int(p.Value)
				}
			}
		}
	}
	assert.Equal(t, s.waits, sums["redial.command.waits"])
	assert.Equal(t, s.refused+s.unknown, sums["redial.command.failures"])
	assert.Equal(t, s.retries, sums["redial.command.retries"])

	// The spans. Who waited, was refused or is unknown met the outage.
	stubs := spans.GetSpans()
	assert.EqualValues(t, made.Load()+crowd+1+crowd, len(stubs), "one span a call")
	s = sightOf(stubs)
	all["spans"] = s

	// The log.
	s = sight{}
	lines := log.lines(t)
	var messages []string
	for _, line := range lines {
		messages = append(messages, fmt.Sprint(line["level"], " ", line["msg"]))
		switch line["msg"] {
		case "redis reconnecting":
			s.began = timeOf(t, line)
		case "redis refusing commands":
			assert.WithinDuration(t, killed.Add(redial.DefaultGrace), timeOf(t, line), time.Second)
			assert.Equal(t, "grace_over", line["cause"])
		case "redis connected":
			if line["from"] == "reconnecting" {
				s.ended = timeOf(t, line)
				s.waits, s.refused, s.unknown = int(line["waited"].(float64)), int(line["refused"].(float64)), int(line["unknown"].(float64))
				assert.Equal(t, "connection_lost", line["outage_cause"])
				assert.InDelta(t, longOutage.Seconds(), line["outage"].(float64)/float64(time.Second), 1)
			}
		case "redis closed": // what was sent again after the outage is known now
			assert.Equal(t, s.plus(allIn(line)).waits, s.waits)
			s.retries = allIn(line).retries
		}
	}
	assert.Equal(t, []string{"INFO redis connected", "WARN redis reconnecting", "WARN redis refusing commands", "INFO redis connected", "INFO redis closed"}, messages)
	all["log"] = s

	// The page.
	s = sight{}
	s = s.plus(shownOn(t, shown))
	row := regexp.MustCompile(`<tr><td><time datetime="([^"]+)">[^<]*</time></td><td class="n">([^<]*)</td><td><code>([^<]*)</code></td><td class="n">(\d+)</td><td class="n">(\d+)</td><td class="n">(\d+)</td>`).FindAllStringSubmatch(shown, -1)
	require.Len(t, row, 1, html.UnescapeString(shown))
	s.began, err = time.Parse(time.RFC3339, row[0][1])
	require.NoError(t, err)
	lasted, err := time.ParseDuration(strings.ReplaceAll(row[0][2], " ", ""))
	require.NoError(t, err)
	s.ended = s.began.Add(lasted)
	assert.Equal(t, "connection_lost", row[0][3])
	assert.Equal(t, []string{fmt.Sprint(s.waits), fmt.Sprint(s.refused), fmt.Sprint(s.unknown)}, row[0][4:7])
	all["page"] = s

	want := all["log"]
	for _, name := range []string{"series", "spans", "log", "page"} {
		got := all[name]
		t.Logf("%-7s began %s, ended %s, waits %d, refused %d, unknown %d, retries %d", name,
			got.began.Format("15:04:05.000"), got.ended.Format("15:04:05.000"), got.waits, got.refused, got.unknown, got.retries)
		within := clockwork
		if name == "page" { // it shows seconds
			within += time.Second
		}
		assert.WithinDuration(t, want.began, got.began, within, name)
		assert.WithinDuration(t, want.ended, got.ended, within, name)
		assert.Equal(t, want.waits, got.waits, name)
		assert.Equal(t, want.refused, got.refused, name)
		assert.Equal(t, want.unknown, got.unknown, name)
		assert.Equal(t, want.retries, got.retries, name)
	}
}

// TestSeen_EveryKindOfClient: clients of several servers are seen the same way, and their
// nodes where that was asked for.
func TestSeen_EveryKindOfClient(t *testing.T) {
	const away = 7 * time.Second // longer than the grace
	shards := []*redialtest.Server{startServer(t), startServer(t)}
	cluster := redialtest.StartCluster(t, 3, 0)
	failover := redialtest.StartFailover(t, 1, 3)
	for _, kind := range []struct {
		name    string
		servers []*redialtest.Server
		build   func(...redial.Option) redial.UniversalClient
		settle  func()
		nodes   int
	}{
		{"Cluster", cluster.Nodes, func(o ...redial.Option) redial.UniversalClient {
			return redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()}, o...)
		}, cluster.Settle, 3},
		{"Ring", shards, func(o ...redial.Option) redial.UniversalClient {
			return redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": shards[0].Addr(), "b": shards[1].Addr()}}, o...)
		}, func() {}, 2},
		{"Failover", failover.Servers, func(o ...redial.Option) redial.UniversalClient {
			return redial.NewFailoverClient(&redis.FailoverOptions{MasterName: failover.Name, SentinelAddrs: failover.SentinelAddrs()}, o...)
		}, func() {}, 0},
	} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			log := &lockedBuffer{}
			spans := tracetest.NewInMemoryExporter()
			tracing := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
			t.Cleanup(func() { _ = tracing.Shutdown(context.Background()) })
			seen := redialprom.NewObserver()
			tracer := redialotel.NewTracer("cache", redialotel.WithTracerProvider(tracing))
			rdb := kind.build(redial.WithLogger(slog.New(slog.NewJSONHandler(log, nil))),
				redial.WithOuterHook(tracer), redial.WithObserver(tracer), redial.WithObserver(seen))
			t.Cleanup(func() { _ = rdb.Close() })
			source := rdb.(redialhttp.Source)
			exposing := func(opts ...redialprom.Option) http.Handler {
				reg := prometheus.NewPedanticRegistry()
				reg.MustRegister(redialprom.NewCollector("cache", source, append(opts, redialprom.WithObserver(seen))...))
				return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			require.NoError(t, rdb.WaitReady(ctx))
			var callers sync.WaitGroup
			stop := make(chan struct{})
			var refused, unknown, made atomic.Int64
			for i := range crowd {
				callers.Go(func() {
					for !isOver(stop) {
						made.Add(1)
						switch err := rdb.Incr(ctx, fmt.Sprint("n", i)).Err(); {
						case errors.Is(err, redial.ErrOutcomeUnknown):
							unknown.Add(1)
						case errors.Is(err, redial.ErrUnavailable):
							refused.Add(1)
						}
						time.Sleep(10 * time.Millisecond)
					}
				})
			}
			time.Sleep(500 * time.Millisecond)
			for _, s := range kind.servers {
				s.Kill()
			}
			require.NoError(t, rdb.WaitForState(ctx, redial.StateReconnecting))
			time.Sleep(away)
			for _, s := range kind.servers {
				s.Start()
			}
			kind.settle()
			require.NoError(t, rdb.WaitReady(ctx))
			time.Sleep(500 * time.Millisecond)
			close(stop)
			callers.Wait()
			plain, full := scrape(t, exposing()), scrape(t, exposing(redialprom.WithNodes()))
			page := get(t, redialhttp.Page(source))
			require.NoError(t, rdb.Close())

			of := countedIn(plain)
			t.Logf("waits %d, refused %d, unknown %d, retries %d; series: %d, and %d more for %d nodes",
				of.waits, of.refused, of.unknown, of.retries, len(plain), len(full)-len(plain), kind.nodes)
			assert.NotZero(t, of.waits)
			assert.Less(t, of.waits, 100*crowd, "nobody waits again and again")
			assert.NotZero(t, of.refused)
			assert.Equal(t, of.waits, waitsIn(plain))
			assert.EqualValues(t, refused.Load(), of.refused)
			assert.EqualValues(t, unknown.Load(), of.unknown)
			assert.Equal(t, of, shownOn(t, page), "the page")
			stubs := spans.GetSpans()
			assert.EqualValues(t, made.Load(), len(stubs), "one span a call")
			traced := sightOf(stubs)
			assert.Equal(t, of, sight{}.plus(sight{waits: of.waits, refused: traced.refused, unknown: traced.unknown, retries: traced.retries}), "the spans")
			assert.LessOrEqual(t, traced.waits, of.waits, "a call may wait for a node, and for all of them")
			assert.NotZero(t, traced.waits)
			for _, line := range log.lines(t) {
				if line["msg"] == "redis closed" && line["node"] == nil {
					assert.Equal(t, of, allIn(line), "the log")
				}
			}
			assert.LessOrEqual(t, len(full)-len(plain), 8*kind.nodes)
			assert.Equal(t, kind.nodes > 0, len(full) > len(plain))
		})
	}
}

func isOver(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// TestSeen_Healthy_CostsNothing: a client that is watched in every way costs a command no
// allocation beyond those of go-redis, whatever the command and its context, and no time
// beyond that of one that is not watched. What traces cost is printed. The time beside
// go-redis takes a machine with nothing else to do: see cmd/overhead -watched of bench.
func TestSeen_Healthy_CostsNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector costs more than what is measured")
	}
	server := startServer(t)
	opt := func() *redis.Options { return &redis.Options{Addr: server.Addr()} }
	reader := sdkmetric.NewManualReader()
	metering := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	tracing := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()))
	t.Cleanup(func() { _, _ = tracing.Shutdown(context.Background()), metering.Shutdown(context.Background()) })
	seen := redialprom.NewObserver()
	metrics, err := redialotel.NewMetrics("cache", redialotel.WithMeterProvider(metering))
	require.NoError(t, err)
	watched := func(more ...redial.Option) []redial.Option {
		return append(more, redial.WithLogger(slog.New(slog.DiscardHandler)), redial.WithObserver(seen), redial.WithObserver(metrics))
	}
	traced := func(o ...redialotel.Option) []redial.Option {
		tracer := redialotel.NewTracer("cache", o...)
		return watched(redial.WithOuterHook(tracer), redial.WithObserver(tracer))
	}
	all := redial.NewClient(opt(), watched()...)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(redialprom.NewCollector("cache", all, redialprom.WithObserver(seen)))
	exposition := promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
	require.NoError(t, metrics.Watch(all))
	clients := []struct {
		name string
		rdb  redis.UniversalClient
	}{
		{"go-redis", redis.NewClient(opt())},
		{"redial", redial.NewClient(opt())},
		{"with logger, redialprom and redialotel", all},
		{"with attributes only, no span", redial.NewClient(opt(), traced(redialotel.WithAttributesOnly())...)},
		{"with traces that are not sampled", redial.NewClient(opt(), traced(redialotel.WithTracerProvider(noop.NewTracerProvider()))...)},
		{"with traces", redial.NewClient(opt(), traced(redialotel.WithTracerProvider(tracing))...)},
	}
	ctx := context.Background()
	deadline, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	tasks := []struct {
		name string
		do   func(redis.UniversalClient) error
	}{
		{"GET", func(rdb redis.UniversalClient) error { return rdb.Get(ctx, "k").Err() }},
		{"SET", func(rdb redis.UniversalClient) error { return rdb.Set(ctx, "k", "v", 0).Err() }},
		{"GET with a deadline", func(rdb redis.UniversalClient) error { return rdb.Get(deadline, "k").Err() }},
	}
	allocs := make([]map[string]float64, len(clients))
	took := make([][]time.Duration, len(clients))
	for i, c := range clients {
		t.Cleanup(func() { assert.NoError(t, c.rdb.Close()) })
		require.NoError(t, c.rdb.Set(ctx, "k", "v", 0).Err())
		allocs[i] = make(map[string]float64)
		for _, task := range tasks {
			allocs[i][task.name] = testing.AllocsPerRun(1000, func() {
				if err := task.do(c.rdb); err != nil {
					t.Error(err)
				}
			})
		}
	}
	const rounds, calls = 40, 200
	measure := func() {
		clear(took)
		for r := range rounds { // side by side, so that what else the machine does meets all
			require.Contains(t, get(t, exposition), `redial_status{client="cache",state="connected"} 1`)
			require.NoError(t, reader.Collect(ctx, &metricdata.ResourceMetrics{}))
			for k := range clients {
				i := (k + r) % len(clients) // who comes first finds the caches cold
				began := time.Now()
				for range calls {
					if err := clients[i].rdb.Get(ctx, "k").Err(); err != nil {
						t.Fatal(err)
					}
				}
				took[i] = append(took[i], time.Since(began)/calls)
			}
		}
	}
	ratio := func(one, other int) float64 {
		ratios := make([]float64, rounds)
		for r := range rounds {
			ratios[r] = float64(took[one][r]) / float64(took[other][r])
		}
		slices.Sort(ratios)
		return ratios[rounds/2]
	}
	for range 5 { // what costs time does so in every series; what the machine does besides does not
		if measure(); ratio(2, 1) <= noise {
			break
		}
	}
	for i, c := range clients {
		t.Logf("%-40s allocations: %v, time of a GET to that of go-redis %.3f, to that of redial alone %.3f", c.name, allocs[i], ratio(i, 0), ratio(i, 1))
	}
	for _, task := range tasks {
		for i := 1; i < 4; i++ { // neither a watched client nor a tracer without a span
			assert.LessOrEqual(t, allocs[i][task.name], allocs[0][task.name], "%s, %s", task.name, clients[i].name)
			assert.Equal(t, allocs[1][task.name], allocs[i][task.name], "%s, %s", task.name, clients[i].name)
		}
	}
	assert.LessOrEqual(t, ratio(2, 1), noise, "nor does it cost time to be watched")
}
