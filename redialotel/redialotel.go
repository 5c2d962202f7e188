// Package redialotel has the metrics and traces of a redial client for OpenTelemetry.
//
// Metrics are read from the client's statistics when they are exported, which costs
// commands nothing. [Metrics] is an observer as well, for two histograms:
//
//	metrics, err := redialotel.NewMetrics("cache")
//	rdb := redial.NewClient(opt, redial.WithObserver(metrics))
//	err = metrics.Watch(rdb)
//
// Two clients of one program have two names: under one they would be added up, so Watch
// refuses the second.
//
// Traces have one span for each call of the program, with its waits and retries inside.
// Where redisotel makes them already, by redial.WithInstrument, [WithAttributesOnly] adds
// to its spans what only redial knows:
//
//	tracer := redialotel.NewTracer("cache")
//	rdb := redial.NewClient(opt, redial.WithOuterHook(tracer), redial.WithObserver(tracer))
//
// The package records nothing under the names of others: no db.client.* unless it is asked
// for with [WithOperationDuration], no redis.client.*, and it sets no global recorder of
// go-redis, so nothing is doubled beside redisotel or redisotel-native. Of a command its
// name is recorded, and never a key, an argument or the text of an error.
package redialotel

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/redial-go/redial"
)

const scope = "github.com/redial-go/redial/redialotel"

// Source is what is asked at every export: a client of package redial, or a
// [redial.Supervisor]. A closed one shows its last values.
type Source interface {
	// Stats returns a snapshot without waiting.
	Stats() redial.Stats
}

// Option changes what [NewMetrics] and [NewTracer] record. One that does not concern what
// it is given to is ignored.
type Option func(*config)

type config struct {
	meters   metric.MeterProvider
	tracers  trace.TracerProvider
	system   string
	server   string
	nodes    bool
	only     bool
	duration bool
}

// WithMeterProvider sets where metrics go, overriding the global provider. nil leaves it.
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(c *config) {
		if p != nil {
			c.meters = p
		}
	}
}

// WithTracerProvider sets where spans go, overriding the global provider. nil leaves it.
func WithTracerProvider(p trace.TracerProvider) Option {
	return func(c *config) {
		if p != nil {
			c.tracers = p
		}
	}
}

// WithSystem sets the attribute db.system.name, overriding "redis": "valkey", for
// instance.
func WithSystem(name string) Option { return func(c *config) { c.system = name } }

// WithServer adds the attributes server.address, and server.port if it is not 6379, to
// every series and span of a client of one server. addr is host:port, or a host alone. The
// series of nodes have their own instead, see [WithNodes].
func WithServer(addr string) Option { return func(c *config) { c.server = addr } }

// WithNodes adds the metrics of each node of a client that has several, with its
// server.address and server.port: 8 series a node.
func WithNodes() Option { return func(c *config) { c.nodes = true } }

// WithAttributesOnly has a [Tracer] begin no span. It adds its attributes, redial.attempts,
// redial.waited and redial.outcome, to the span that is current, which is that of redisotel
// when redial.WithInstrument comes before redial.WithOuterHook.
func WithAttributesOnly() Option { return func(c *config) { c.only = true } }

// WithOperationDuration has a [Tracer] record db.client.operation.duration, too: for each
// call of the program, with waits and retries inside. It is not for use together with the
// command metrics of redisotel-native, which record attempts under the same name.
func WithOperationDuration() Option { return func(c *config) { c.duration = true } }

func configOf(opts []Option) *config {
	c := &config{meters: otel.GetMeterProvider(), tracers: otel.GetTracerProvider(), system: "redis"}
	for _, o := range opts {
		if o != nil {
			o(c)
		}
	}
	return c
}

// named returns what every series of a client has, those of its nodes included.
func (c *config) named(name string) []attribute.KeyValue {
	return []attribute.KeyValue{semconv.DBSystemNameKey.String(text(c.system)), semconv.DBClientConnectionPoolName(text(name))}
}

// common returns what every series and span of a client has, but for those of its nodes.
func (c *config) common(name string) []attribute.KeyValue {
	all := c.named(name)
	if c.server != "" {
		all = append(all, serverOf(c.server)...)
	}
	return all
}

const defaultPort = 6379

// serverOf returns the attributes of an address. Two addresses never have the same, but for one
// without a port, which is that with the default one.
func serverOf(addr string) []attribute.KeyValue {
	host, port, err := net.SplitHostPort(addr)
	n, unnumbered := strconv.Atoi(port)
	if err != nil || unnumbered != nil || addr != net.JoinHostPort(host, strconv.Itoa(n)) { // a socket, or a port with a name
		return []attribute.KeyValue{semconv.ServerAddress(text(addr))}
	}
	all := []attribute.KeyValue{semconv.ServerAddress(text(host))}
	if n != defaultPort {
		all = append(all, semconv.ServerPort(n))
	}
	return all
}

// text returns s, quoted where it is no text, which exporters refuse, or looks so. Two are never
// the same.
func text(s string) string {
	if utf8.ValidString(s) && !strings.Contains(s, `\x`) {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

var errNoClient = errors.New("redialotel: there is no client to ask")

// ask asks a client, if there is one.
func ask(s Source) (stats redial.Stats, err error) {
	if s == nil {
		return stats, errNoClient
	}
	defer func() {
		if r := recover(); r != nil { // a nil pointer
			err = fmt.Errorf("%w: %v", errNoClient, r)
		}
	}()
	return s.Stats(), nil
}
