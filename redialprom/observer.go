package redialprom

import (
	"context"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redial-go/redial"
)

// Buckets of the histograms, in seconds.
var (
	outageBuckets = []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}
	waitBuckets   = []float64{.005, .01, .05, .1, .25, .5, 1, 2.5, 5, 10}
)

// Observer hears of outages and waits for the two histograms of a [Collector]. One belongs
// to one client: it is given to redial.WithObserver when that is built and to
// [WithObserver]. It is safe for concurrent use, and a command that does not wait never
// meets it. The zero value has heard of nothing yet.
type Observer struct {
	once           sync.Once // fills the rest, see histograms
	outages, waits *histograms
}

// NewObserver returns an observer that has heard of nothing yet.
func NewObserver() *Observer { return new(Observer) }

// histograms returns both, with every value of their labels.
func (o *Observer) histograms() (outages, waits *histograms) {
	o.once.Do(func() {
		o.outages, o.waits = newHistograms(outageBuckets), newHistograms(waitBuckets)
		for _, cause := range outageCauses {
			o.outages.of(cause.String())
		}
		for _, result := range results {
			o.waits.of(result)
		}
	})
	return o.outages, o.waits
}

// ObserveState notes how long an outage of the client as a whole was.
func (o *Observer) ObserveState(e redial.Event) {
	if e.Node == "" && e.From == redial.StateReconnecting && e.Outage != nil {
		outages, _ := o.histograms()
		outages.add(e.Outage.Cause.String(), e.Outage.Duration.Seconds())
	}
}

// ObserveWait notes how long a command waited, and what ended that.
func (o *Observer) ObserveWait(_ context.Context, w redial.Wait) {
	result := refused
	switch w.Cause {
	case redial.CauseNone:
		result = admitted
	case redial.CauseContextEnded:
		result = canceled
	}
	_, waits := o.histograms()
	waits.add(result, w.For.Seconds())
}

// histograms are one for each value of a label.
type histograms struct {
	bounds []float64

	mu   sync.Mutex
	each map[string]*histogram // guarded by mu
}

// histogram is guarded by the mutex of those that it belongs to.
type histogram struct {
	counts []uint64 // of each bucket, without those below it
	count  uint64
	sum    float64
}

func newHistograms(bounds []float64) *histograms {
	return &histograms{bounds: bounds, each: make(map[string]*histogram)}
}

// of has a histogram for a value.
func (h *histograms) of(value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ofLocked(value)
}

func (h *histograms) ofLocked(value string) *histogram {
	if h.each[value] == nil {
		h.each[value] = &histogram{counts: make([]uint64, len(h.bounds))}
	}
	return h.each[value]
}

func (h *histograms) add(value string, seconds float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.ofLocked(value)
	one.count++
	one.sum += seconds
	if i, _ := slices.BinarySearch(h.bounds, seconds); i < len(h.bounds) {
		one.counts[i]++
	}
}

func (h *histograms) collect(ch chan<- prometheus.Metric, desc *prometheus.Desc) {
	h.mu.Lock()
	var all []prometheus.Metric
	for value, one := range h.each {
		buckets, below := make(map[float64]uint64, len(h.bounds)), uint64(0)
		for i, bound := range h.bounds {
			below += one.counts[i]
			buckets[bound] = below
		}
		all = append(all, prometheus.MustNewConstHistogram(desc, one.count, one.sum, buckets, value))
	}
	h.mu.Unlock()
	for _, m := range all {
		ch <- m
	}
}
