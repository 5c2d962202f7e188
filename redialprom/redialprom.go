// Package redialprom has the metrics of a redial client for Prometheus, as a collector
// over its statistics, which costs commands nothing:
//
//	seen := redialprom.NewObserver()
//	rdb := redial.NewClient(opt, redial.WithObserver(seen))
//	prometheus.MustRegister(redialprom.NewCollector("cache", rdb, redialprom.WithObserver(seen)))
//
// The observer adds two histograms, how long outages were and how long commands waited;
// without it, and without the first and last line but for the collector, there is all else.
//
// Every series has the label client, the name that the collector was given. Every value of
// the other labels, state, outcome, after, cause and result, is there from the first scrape
// on, so that rate works from the first failure. What comes with each node of a client that
// has several is asked for by [WithNodes]. The names are those that package redialotel has
// by the standard translation.
//
// alerts.yaml beside this package has rules for alerts, which lead to docs/RUNBOOK.md, and
// dashboard.json a dashboard for Grafana.
package redialprom

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redial-go/redial"
)

// Source is what is asked at every scrape: a client of package redial, or a
// [redial.Supervisor]. A closed one shows its last values.
type Source interface {
	// Stats returns a snapshot without waiting.
	Stats() redial.Stats
}

// Collector is the metrics of one client. It is safe for concurrent use.
type Collector struct {
	source   Source
	nodes    bool
	observer *Observer
	d        *descs
	wrong    error // why it cannot be registered; nil: it can
}

// Option changes what a [Collector] has.
type Option func(*config)

type config struct {
	nodes    bool
	labels   prometheus.Labels // of the caller
	observer *Observer
}

// WithNodes adds the series of each node of a client that has several, with the label
// node, which is its address: 8 series a node.
func WithNodes() Option { return func(c *config) { c.nodes = true } }

// WithLabels adds constant labels to every series. Their names must be others than those
// that the package uses, or registration fails.
func WithLabels(labels prometheus.Labels) Option {
	return func(c *config) { maps.Copy(c.labels, labels) }
}

// WithObserver adds the histograms of what o was told. It must be the observer of the same
// client and of no other. nil adds nothing.
func WithObserver(o *Observer) Option { return func(c *config) { c.observer = o } }

// NewCollector returns the metrics of a client under a name, which is the value of the
// label client and should be what the client is for, such as "cache" or "sessions": never
// an address, which may hold credentials and change. Two collectors of one name, and the
// same labels, cannot be registered together; the registry says so.
//
// It does no I/O and does not keep the client from being closed. Without a client, when s
// is nil or a nil pointer, a scrape fails with an error that says so.
func NewCollector(name string, s Source, opts ...Option) *Collector {
	c := &config{labels: prometheus.Labels{}}
	for _, o := range opts {
		if o != nil {
			o(c)
		}
	}
	collector := &Collector{source: s, nodes: c.nodes, observer: c.observer}
	for _, taken := range own {
		if _, ok := c.labels[taken]; ok {
			collector.wrong = fmt.Errorf("redialprom: WithLabels has the label %s, which the package has itself", taken)
		}
	}
	c.labels["client"] = name
	collector.d = newDescs(c.labels)
	if _, err := prometheus.NewConstMetric(collector.d.outages, prometheus.CounterValue, 0); err != nil && collector.wrong == nil {
		collector.wrong = fmt.Errorf("redialprom: %w", err)
	}
	return collector
}

// own are the labels that the package has.
var own = []string{"client", "state", "outcome", "after", "cause", "result", "node", "le"}

// The values of labels. Each has its series from the first scrape on.
var (
	states       = []redial.State{redial.StateConnecting, redial.StateConnected, redial.StateReconnecting, redial.StateClosed}
	outageCauses = []redial.Cause{
		redial.CauseConnectionLost, redial.CauseHeartbeatMissed, redial.CauseNotReady,
		redial.CauseMoved, redial.CauseReconnectCalled, redial.CauseNoNode,
	}
	results = []string{admitted, refused, canceled}
)

const (
	admitted = "admitted"
	refused  = "refused"
	canceled = "canceled"
)

// descs are the descriptions of all metrics.
type descs struct {
	status, outages, downtime, outageDuration                                 *prometheus.Desc
	grace, waiting, waitingLimit, waits, waitTime                             *prometheus.Desc
	failures, retries, retriesDelayed                                         *prometheus.Desc
	heartbeats, heartbeatsMissed, heartbeatsSkipped, rtt                      *prometheus.Desc
	dials, dialErrors, connections, checks, dropped, cut, generations, events *prometheus.Desc
	nodeStatus, nodeOutages, nodeWaiting, nodeRTT, nodeConnections            *prometheus.Desc

	all []*prometheus.Desc
}

func newDescs(labels prometheus.Labels) *descs {
	d := &descs{}
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		one := prometheus.NewDesc(name, help, variable, labels)
		d.all = append(d.all, one)
		return one
	}
	d.status = desc("redial_status", "Whether the client is in the state: 1 for the one that it is in, else 0.", "state")
	d.outages = desc("redial_outages_total", "Times that the client left the state connected.")
	d.downtime = desc("redial_downtime_seconds_total", "Time outside of the state connected, the current outage included.")
	d.outageDuration = desc("redial_outage_duration_seconds", "How long outages were, by what began them.", "cause")
	d.grace = desc("redial_grace_seconds", "How long an outage is hidden from commands.")
	d.waiting = desc("redial_command_waiting", "Commands that wait for the server now.")
	d.waitingLimit = desc("redial_command_waiting_limit", "Commands that may wait at a time.")
	d.waits = desc("redial_command_waits_total", "Times that a command had to wait for the server.")
	d.waitTime = desc("redial_command_wait_time_seconds", "How long commands waited, by what ended that.", "result")
	d.failures = desc("redial_command_failures_total", "Commands that failed for the connection, or that a server which is up refused: not_run, nothing ran; unknown, they may have run.", "outcome")
	d.retries = desc("redial_command_retries_total", "Attempts beyond the first, by what was known of the one before: unsent, refused by the server, or repeated although it may have run.", "after")
	d.retriesDelayed = desc("redial_command_retries_delayed_total", "Attempts beyond the first that had to wait for the retry budget.")
	d.heartbeats = desc("redial_heartbeats_total", "PINGs sent while connected.")
	d.heartbeatsMissed = desc("redial_heartbeats_missed_total", "PINGs that were not answered in time.")
	d.heartbeatsSkipped = desc("redial_heartbeats_skipped_total", "Ticks that needed no PING because there was traffic.")
	d.rtt = desc("redial_heartbeat_rtt_seconds", "Smoothed round trip of PINGs, of which steady traffic needs none; of several nodes the longest.")
	d.dials = desc("redial_dials_total", "Connections asked of the network.")
	d.dialErrors = desc("redial_dial_errors_total", "Connections that could not be made.")
	d.connections = desc("redial_connections", "Connections of the pools that are open now.")
	d.checks = desc("redial_connection_checks_total", "PINGs sent on idle connections.")
	d.dropped = desc("redial_connection_dropped_total", "Idle connections that failed their PING.")
	d.cut = desc("redial_connection_cut_total", "Connections that were proved dead although nothing had broken them.")
	d.generations = desc("redial_generations_total", "Times that all connections were retired, and the first that were made.")
	d.events = desc("redial_events_dropped_total", "Events that a slow callback never saw.")
	d.nodeStatus = desc("redial_node_status", "Whether the node is in the state: 1 for the one that it is in, else 0. None of a node that nobody has asked for.", "node", "state")
	d.nodeOutages = desc("redial_node_outages_total", "Times that the node left the state connected.", "node")
	d.nodeWaiting = desc("redial_node_waiting", "Commands that wait for the node now.", "node")
	d.nodeRTT = desc("redial_node_rtt_seconds", "Smoothed round trip of PINGs to the node, of which steady traffic needs none.", "node")
	d.nodeConnections = desc("redial_node_connections", "Connections of the node's pools that are open now.", "node")
	return d
}

// fault returns what is wrong with the collector itself, nil if nothing is.
func (c *Collector) fault() error {
	if c == nil || c.d == nil {
		return errNotMade
	}
	return c.wrong
}

// Describe is part of [prometheus.Collector].
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	if err := c.fault(); err != nil {
		ch <- prometheus.NewInvalidDesc(err)
		return
	}
	for _, d := range c.d.all {
		ch <- d
	}
}

// Collect is part of [prometheus.Collector]. It takes one snapshot of the client.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	if err := c.fault(); err != nil { // it is collected without being registered
		ch <- prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(err), err)
		return
	}
	d := c.d
	s, err := c.stats()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(d.status, err)
		return
	}
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	counter := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, v, labels...)
	}
	for _, state := range states {
		gauge(d.status, is(s.State == state), state.String())
	}
	counter(d.outages, float64(s.Outages))
	counter(d.downtime, s.Down.Seconds())
	gauge(d.grace, s.Grace.Seconds())
	gauge(d.waiting, float64(s.Waiting))
	gauge(d.waitingLimit, float64(s.MaxWaiting))
	counter(d.waits, float64(s.Waited))
	counter(d.failures, float64(s.Refused), "not_run")
	counter(d.failures, float64(s.Unknown), "unknown")
	counter(d.retries, float64(s.RetriesUnsent), redial.AfterUnsent.String())
	counter(d.retries, float64(s.RetriesRefused), redial.AfterRefused.String())
	counter(d.retries, float64(s.RetriesRepeated), redial.AfterRepeated.String())
	counter(d.retriesDelayed, float64(s.RetriesDelayed))
	counter(d.heartbeats, float64(s.Heartbeats))
	counter(d.heartbeatsMissed, float64(s.HeartbeatsMissed))
	counter(d.heartbeatsSkipped, float64(s.HeartbeatsSkipped))
	if s.RTT > 0 {
		gauge(d.rtt, s.RTT.Seconds())
	}
	counter(d.dials, float64(s.Dials))
	counter(d.dialErrors, float64(s.DialErrors))
	gauge(d.connections, float64(s.Connections))
	counter(d.checks, float64(s.IdleChecks))
	counter(d.dropped, float64(s.IdleDropped))
	counter(d.cut, float64(s.SilentCut))
	counter(d.generations, float64(s.Generation))
	counter(d.events, float64(s.EventsDropped))
	if c.observer != nil {
		outages, waits := c.observer.histograms()
		outages.collect(ch, d.outageDuration)
		waits.collect(ch, d.waitTime)
	}
	if !c.nodes {
		return
	}
	for _, n := range s.Nodes {
		node := text(n.Addr)
		for _, state := range states {
			if n.State == redial.StateConnecting && n.LastError == "" {
				break // nobody has asked for it
			}
			gauge(d.nodeStatus, is(n.State == state), node, state.String())
		}
		counter(d.nodeOutages, float64(n.Outages), node)
		gauge(d.nodeWaiting, float64(n.Waiting), node)
		if n.RTT > 0 {
			gauge(d.nodeRTT, n.RTT.Seconds(), node)
		}
		gauge(d.nodeConnections, float64(n.Connections), node)
	}
}

// text returns s, quoted where it is no text, which a label must be, or looks so. Two are never
// the same.
func text(s string) string {
	if utf8.ValidString(s) && !strings.Contains(s, `\x`) {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

var (
	errNoClient = errors.New("redialprom: there is no client to ask")
	errNotMade  = errors.New("redialprom: the collector was not made by NewCollector")
)

// stats asks the client, if there is one.
func (c *Collector) stats() (s redial.Stats, err error) {
	if c.source == nil {
		return s, errNoClient
	}
	defer func() {
		if r := recover(); r != nil { // a nil pointer
			err = fmt.Errorf("%w: %v", errNoClient, r)
		}
	}()
	return c.source.Stats(), nil
}

func is(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
