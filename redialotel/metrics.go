package redialotel

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/redial-go/redial"
)

// The attributes of metrics, and their values.
const (
	keyState   = attribute.Key("redial.state")
	keyCause   = attribute.Key("redial.cause")
	keyResult  = attribute.Key("redial.result")
	keyOutcome = attribute.Key("redial.outcome")
	keyAfter   = attribute.Key("redial.retry.after")

	admitted = "admitted"
	refused  = "refused"
	canceled = "canceled"
	notRun   = "not_run"
	unknown  = "unknown"
)

var states = []redial.State{redial.StateConnecting, redial.StateConnected, redial.StateReconnecting, redial.StateClosed}

// Buckets of the histograms, in seconds.
var (
	outageBuckets = []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}
	waitBuckets   = []float64{.005, .01, .05, .1, .25, .5, 1, 2.5, 5, 10}
)

// Metrics are those of one client. They are safe for concurrent use.
type Metrics struct {
	common attribute.Set
	named  []attribute.KeyValue // of nodes, without their server
	nodes  bool
	meter  metric.Meter
	i      instruments

	outages, waits metric.Float64Histogram

	name     string
	key      any                 // of watched; nil: it cannot be told from others
	source   Source              // guarded by the mutex of watched, as watching
	watching metric.Registration // nil: nothing is watched
	before   redial.Stats        // guarded as source; what closed clients of the name have counted
}

// watched are the metrics that watch a client, by the provider and the attributes of all
// their series: two of the same would be added up.
var watched = struct {
	mu sync.Mutex
	by map[any]*Metrics // guarded by mu
}{by: make(map[any]*Metrics)}

// keyOf returns what makes the series of two metrics the same, nil where providers cannot
// be compared.
func keyOf(p metric.MeterProvider, common attribute.Set) any {
	if !reflect.ValueOf(p).Comparable() {
		return nil
	}
	return struct {
		provider metric.MeterProvider
		common   attribute.Distinct
	}{p, common.Equivalent()}
}

// instruments are what is read from statistics.
type instruments struct {
	status, waiting, waitingLimit, connections                          metric.Int64ObservableUpDownCounter
	outages, waits, failures, retries, retriesDelayed                   metric.Int64ObservableCounter
	heartbeats, heartbeatsMissed, heartbeatsSkipped                     metric.Int64ObservableCounter
	dials, dialErrors, checks, dropped, cut, generations, eventsDropped metric.Int64ObservableCounter
	downtime                                                            metric.Float64ObservableCounter
	grace, rtt                                                          metric.Float64ObservableGauge
	nodeStatus, nodeWaiting, nodeConnections                            metric.Int64ObservableUpDownCounter
	nodeOutages                                                         metric.Int64ObservableCounter
	nodeRTT                                                             metric.Float64ObservableGauge

	all []metric.Observable
}

// NewMetrics returns the metrics of a client under a name, which is the value of
// db.client.connection.pool.name and should be what the client is for, such as "cache". It
// must not be empty. The errors are those of the meter.
//
// They are to be given to redial.WithObserver when the client is built, for the two
// histograms, and afterwards the client to [Metrics.Watch], for all else.
func NewMetrics(name string, opts ...Option) (*Metrics, error) {
	if name == "" {
		return nil, errors.New("redialotel: NewMetrics name is empty")
	}
	c := configOf(opts)
	m := &Metrics{name: name, common: attribute.NewSet(c.common(name)...), named: c.named(name), nodes: c.nodes, meter: c.meters.Meter(scope)}
	m.key = keyOf(c.meters, m.common)
	return m, m.create()
}

func (m *Metrics) create() error {
	var errs []error
	i := &m.i
	note := func(err error) { errs = append(errs, err) }
	counter := func(to *metric.Int64ObservableCounter, name, unit, text string) {
		one, err := m.meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(text))
		*to = one
		note(err)
		i.all = append(i.all, one)
	}
	level := func(to *metric.Int64ObservableUpDownCounter, name, unit, text string) {
		one, err := m.meter.Int64ObservableUpDownCounter(name, metric.WithUnit(unit), metric.WithDescription(text))
		*to = one
		note(err)
		i.all = append(i.all, one)
	}
	gauge := func(to *metric.Float64ObservableGauge, name, unit, text string) {
		one, err := m.meter.Float64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(text))
		*to = one
		note(err)
		i.all = append(i.all, one)
	}
	histogram := func(to *metric.Float64Histogram, name, text string, bounds []float64) {
		one, err := m.meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(text), metric.WithExplicitBucketBoundaries(bounds...))
		*to = one
		note(err)
	}
	level(&i.status, "redial.status", "1", "Whether the client is in the state: 1 for the one that it is in, else 0.")
	counter(&i.outages, "redial.outages", "{outage}", "Times that the client left the state connected.")
	downtime, err := m.meter.Float64ObservableCounter("redial.downtime", metric.WithUnit("s"), metric.WithDescription("Time outside of the state connected, the current outage included."))
	note(err)
	i.downtime = downtime
	i.all = append(i.all, downtime)
	gauge(&i.grace, "redial.grace", "s", "How long an outage is hidden from commands.")
	level(&i.waiting, "redial.command.waiting", "{command}", "Commands that wait for the server now.")
	level(&i.waitingLimit, "redial.command.waiting.limit", "{command}", "Commands that may wait at a time.")
	counter(&i.waits, "redial.command.waits", "{command}", "Times that a command had to wait for the server.")
	counter(&i.failures, "redial.command.failures", "{command}", "Commands that failed for the connection, or that a server which is up refused: not_run, nothing ran; unknown, they may have run.")
	counter(&i.retries, "redial.command.retries", "{attempt}", "Attempts beyond the first, by what was known of the one before: unsent, refused by the server, or repeated although it may have run.")
	counter(&i.retriesDelayed, "redial.command.retries.delayed", "{attempt}", "Attempts beyond the first that had to wait for the retry budget.")
	counter(&i.heartbeats, "redial.heartbeats", "{heartbeat}", "PINGs sent while connected.")
	counter(&i.heartbeatsMissed, "redial.heartbeats.missed", "{heartbeat}", "PINGs that were not answered in time.")
	counter(&i.heartbeatsSkipped, "redial.heartbeats.skipped", "{heartbeat}", "Ticks that needed no PING because there was traffic.")
	gauge(&i.rtt, "redial.heartbeat.rtt", "s", "Smoothed round trip of PINGs, of which steady traffic needs none; of several nodes the longest.")
	counter(&i.dials, "redial.dials", "{dial}", "Connections asked of the network.")
	counter(&i.dialErrors, "redial.dial.errors", "{error}", "Connections that could not be made.")
	level(&i.connections, "redial.connection.count", "{connection}", "Connections of the pools that are open now.")
	counter(&i.checks, "redial.connection.checks", "{check}", "PINGs sent on idle connections.")
	counter(&i.dropped, "redial.connection.dropped", "{connection}", "Idle connections that failed their PING.")
	counter(&i.cut, "redial.connection.cut", "{connection}", "Connections that were proved dead although nothing had broken them.")
	counter(&i.generations, "redial.generations", "{generation}", "Times that all connections were retired, and the first that were made.")
	counter(&i.eventsDropped, "redial.events.dropped", "{event}", "Events that a slow callback never saw.")
	if m.nodes {
		level(&i.nodeStatus, "redial.node.status", "1", "Whether the node is in the state: 1 for the one that it is in, else 0. None of a node that nobody has asked for.")
		counter(&i.nodeOutages, "redial.node.outages", "{outage}", "Times that the node left the state connected.")
		level(&i.nodeWaiting, "redial.node.waiting", "{command}", "Commands that wait for the node now.")
		gauge(&i.nodeRTT, "redial.node.rtt", "s", "Smoothed round trip of PINGs to the node, of which steady traffic needs none.")
		level(&i.nodeConnections, "redial.node.connections", "{connection}", "Connections of the node's pools that are open now.")
	}
	histogram(&m.outages, "redial.outage.duration", "How long outages were, by what began them.", outageBuckets)
	histogram(&m.waits, "redial.command.wait_time", "How long commands waited, by what ended that.", waitBuckets)
	return errors.Join(errs...)
}

var (
	errWatching = errors.New("redialotel: these metrics are of another client already")
	errNotMade  = errors.New("redialotel: these metrics were not made by NewMetrics")
)

// Watch has the statistics of s read at every export, until [Metrics.Stop]. It is an error
// when there is no client, when these metrics watch one already, and when others of the same
// provider, name and server do: both would be added up. A closed client does not count: s goes
// on with its counts, since counters must not fall. After Stop they begin anew. Watch does no
// I/O, and does not keep the client from being closed.
func (m *Metrics) Watch(s Source) error {
	if m == nil || m.meter == nil {
		return errNotMade
	}
	if _, err := ask(s); err != nil {
		return err
	}
	watched.mu.Lock()
	defer watched.mu.Unlock()
	if m.watching != nil {
		return errWatching
	}
	var before redial.Stats
	if other := watched.by[m.key]; other != nil {
		stats, err := ask(other.source)
		if err == nil && stats.State != redial.StateClosed {
			return fmt.Errorf("redialotel: another client is watched as %q already", m.name)
		}
		before = after(other.before, stats)
		if err := other.stopLocked(); err != nil {
			return err
		}
	}
	watching, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		stats, err := ask(s)
		if err == nil {
			m.observe(o, after(before, stats))
		}
		return err
	}, m.i.all...)
	if err != nil {
		return fmt.Errorf("redialotel: %w", err)
	}
	m.source, m.watching, m.before = s, watching, before
	if m.key != nil {
		watched.by[m.key] = m
	}
	return nil
}

// Stop ends what Watch began, if it did. Afterwards another client may be watched, but counters
// fall if nothing was exported in between, which is a negative number where differences are. For a
// client that takes the place of another, close that one instead: Watch goes on with its counts.
func (m *Metrics) Stop() error {
	watched.mu.Lock()
	defer watched.mu.Unlock()
	if m == nil || m.watching == nil {
		return nil
	}
	return m.stopLocked()
}

// stopLocked is Stop where something is watched. The caller holds the mutex of watched.
func (m *Metrics) stopLocked() error {
	err := m.watching.Unregister()
	m.source, m.watching = nil, nil
	delete(watched.by, m.key)
	return err
}

// after returns s with its counts added to those of before.
func after(before, s redial.Stats) redial.Stats {
	counts := func(s *redial.Stats) []*uint64 {
		return []*uint64{
			&s.Outages, &s.Generation, &s.Waited, &s.Refused, &s.Unknown,
			&s.RetriesUnsent, &s.RetriesRefused, &s.RetriesRepeated, &s.RetriesDelayed,
			&s.Heartbeats, &s.HeartbeatsMissed, &s.HeartbeatsSkipped, &s.Dials, &s.DialErrors,
			&s.IdleChecks, &s.IdleDropped, &s.SilentCut, &s.EventsDropped,
		}
	}
	to := counts(&s)
	for i, n := range counts(&before) {
		*to[i] += *n
	}
	s.Down += before.Down
	return s
}

// with returns the attributes of all, and those given.
func (m *Metrics) with(kv ...attribute.KeyValue) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(append(m.common.ToSlice(), kv...)...))
}

func (m *Metrics) observe(o metric.Observer, s redial.Stats) {
	i, common := &m.i, metric.WithAttributeSet(m.common)
	for _, state := range states {
		o.ObserveInt64(i.status, is(s.State == state), m.with(keyState.String(state.String())))
	}
	count := func(of metric.Int64Observable, n uint64) { o.ObserveInt64(of, int64(n), common) }
	count(i.outages, s.Outages)
	o.ObserveFloat64(i.downtime, s.Down.Seconds(), common)
	o.ObserveFloat64(i.grace, s.Grace.Seconds(), common)
	o.ObserveInt64(i.waiting, int64(s.Waiting), common)
	o.ObserveInt64(i.waitingLimit, int64(s.MaxWaiting), common)
	count(i.waits, s.Waited)
	o.ObserveInt64(i.failures, int64(s.Refused), m.with(keyOutcome.String(notRun)))
	o.ObserveInt64(i.failures, int64(s.Unknown), m.with(keyOutcome.String(unknown)))
	o.ObserveInt64(i.retries, int64(s.RetriesUnsent), m.with(keyAfter.String(redial.AfterUnsent.String())))
	o.ObserveInt64(i.retries, int64(s.RetriesRefused), m.with(keyAfter.String(redial.AfterRefused.String())))
	o.ObserveInt64(i.retries, int64(s.RetriesRepeated), m.with(keyAfter.String(redial.AfterRepeated.String())))
	count(i.retriesDelayed, s.RetriesDelayed)
	count(i.heartbeats, s.Heartbeats)
	count(i.heartbeatsMissed, s.HeartbeatsMissed)
	count(i.heartbeatsSkipped, s.HeartbeatsSkipped)
	if s.RTT > 0 {
		o.ObserveFloat64(i.rtt, s.RTT.Seconds(), common)
	}
	count(i.dials, s.Dials)
	count(i.dialErrors, s.DialErrors)
	o.ObserveInt64(i.connections, int64(s.Connections), common)
	count(i.checks, s.IdleChecks)
	count(i.dropped, s.IdleDropped)
	count(i.cut, s.SilentCut)
	count(i.generations, s.Generation)
	count(i.eventsDropped, s.EventsDropped)
	if !m.nodes {
		return
	}
	for _, n := range s.Nodes {
		at := slices.Concat(m.named, serverOf(n.Addr))
		for _, state := range states {
			if n.State == redial.StateConnecting && n.LastError == "" {
				break // nobody has asked for it
			}
			o.ObserveInt64(i.nodeStatus, is(n.State == state), metric.WithAttributes(append(at[:len(at):len(at)], keyState.String(state.String()))...))
		}
		here := metric.WithAttributes(at...)
		o.ObserveInt64(i.nodeOutages, int64(n.Outages), here)
		o.ObserveInt64(i.nodeWaiting, int64(n.Waiting), here)
		if n.RTT > 0 {
			o.ObserveFloat64(i.nodeRTT, n.RTT.Seconds(), here)
		}
		o.ObserveInt64(i.nodeConnections, int64(n.Connections), here)
	}
}

func is(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// ObserveState records how long an outage of the client as a whole was.
func (m *Metrics) ObserveState(e redial.Event) {
	if e.Node == "" && e.From == redial.StateReconnecting && e.Outage != nil {
		m.outages.Record(context.Background(), e.Outage.Duration.Seconds(), m.with(keyCause.String(e.Outage.Cause.String())))
	}
}

// ObserveWait records how long a command waited, and what ended that.
func (m *Metrics) ObserveWait(ctx context.Context, w redial.Wait) {
	result := refused
	switch w.Cause {
	case redial.CauseNone:
		result = admitted
	case redial.CauseContextEnded:
		result = canceled
	}
	m.waits.Record(context.WithoutCancel(ctx), w.For.Seconds(), m.with(keyResult.String(result)))
}
