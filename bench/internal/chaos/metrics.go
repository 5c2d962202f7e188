package chaos

import (
	"fmt"
	"math"
	"slices"

	"github.com/redial-go/redial/bench/internal/stats"
)

// Metric says how the values of a key are summed up, printed and compared.
type Metric struct {
	Key  Key
	What string // for the legend
	Unit string
	// Sum adds the runs up instead of taking their median: what must not happen at
	// all must not vanish in one.
	Sum bool
	// Compared says whether less (or, with More, more) is better. The others are shown only.
	Compared, More bool
	// Absolute and Relative are the differences below which two values are equal.
	Absolute, Relative float64
}

// Metrics returns all of them, in the order of the columns.
func Metrics() []Metric {
	ms := func(k Key, what string) Metric {
		return Metric{Key: k, What: what, Unit: "ms", Compared: true, Absolute: 15, Relative: 0.2}
	}
	never := func(k Key, what string) Metric {
		return Metric{Key: k, What: what, Sum: true, Compared: true}
	}
	return []Metric{
		{Key: InTime, What: "calls answered without error before their deadline", Unit: "%", Compared: true, More: true, Absolute: 0.5},
		{Key: OfPossible, What: "the same, of the calls that began before the outage or whose deadline came at least 50 ms after its end", Unit: "%", Compared: true, More: true, Absolute: 0.5},
		{Key: Errors, What: "calls that failed or never returned", Compared: true, Absolute: 3, Relative: 0.1},
		ms(Stall, "longest time from the intended start of a call to its return; ≥ if it had not returned when the run ended"),
		ms(Overrun, "the longest part of a call in which the fault was not in its way"),
		ms(First, "from the heal to the first success"),
		ms(AllBack, "from the heal until each worker has had a success; a worker without a waiting call has one within a period"),
		{Key: ErrorsAfter, What: "calls that failed although they began after the heal", Compared: true, Absolute: 1},
		ms(LastFailure, "from the heal until the last of those calls returned"),
		{Key: Executions, What: "scripts that the server executed, for each that was called", Compared: true, Absolute: 0.05, Relative: 0.05},
		{Key: Dials, What: "dials from the fault to the end of the run", Compared: true, Absolute: 20, Relative: 0.2},
		{Key: PeakDials, What: "most dials within any second", Compared: true, Absolute: 20, Relative: 0.2},
		never(Twice, "writes that the server executed more than once, all runs"),
		never(Lied, "writes reported as failed that the server executed, unless the client said that the outcome is unknown, all runs"),
		{Key: OutcomeOpen, What: "writes whose outcome the client said to be unknown, all runs", Sum: true},
		never(Lost, "writes acknowledged that the server did not execute, all runs"),
		{Key: CPU, What: "processor time of the client's process, load included", Unit: "ms", Compared: true, Absolute: 50, Relative: 0.2},
		never(Goroutines, "goroutines left 5 s after Close, all runs"),
		never(Sockets, "sockets left 5 s after Close, all runs"),
	}
}

// Cell is what one client reached in one scenario.
type Cell struct {
	Value    float64
	Censored bool
	Known    bool
	Runs     map[int]float64 // what it is the median of, by the number of the run; nil: it is none
}

// Cell sums up the runs of a client.
func (o *Outcome) Cell(name string, m Metric) Cell {
	var values []float64
	var c Cell
	runs := make(map[int]float64)
	for _, r := range o.Runs[name] {
		if v, ok := r.Values[m.Key]; ok {
			values = append(values, v)
			runs[r.Number] = v
			c.Censored = c.Censored || r.Censored[m.Key]
		}
	}
	if len(values) == 0 {
		return c
	}
	c.Known = true
	if !m.Sum {
		c.Value, c.Runs = stats.Quantile(values, 0.5), runs
		return c
	}
	for _, v := range values {
		c.Value += v
	}
	return c
}

// Better reports whether a is better than b by more than noise: by more than the metric
// tells apart, and in every run that both were in. Faults are equally long for both there.
func (m Metric) Better(a, b Cell) bool {
	if !m.Compared || !a.Known || !b.Known {
		return false
	}
	for n, v := range a.Runs {
		if w, both := b.Runs[n]; both && m.gain(v, w) <= 0 {
			return false
		}
	}
	if math.IsInf(b.Value, 1) {
		return !math.IsInf(a.Value, 1)
	}
	return m.gain(a.Value, b.Value) > max(m.Absolute, m.Relative*math.Abs(b.Value))
}

// gain is by how much a is better than b. It is not positive where both are infinite.
func (m Metric) gain(a, b float64) float64 {
	switch {
	case a == b:
		return 0
	case m.More:
		return a - b
	}
	return b - a
}

// Format prints a value.
func (m Metric) Format(v float64, censored bool) string {
	text, sign := "", ""
	if censored {
		sign = "≥ "
	}
	switch {
	case m.Unit == "ms" && !math.IsInf(v, 1) && v >= 1000:
		text = stats.Number(math.Round(v/10)/100, "s")
	case m.Unit == "ms":
		text = stats.Number(roundTo(v), "ms")
	case m.Key == Executions:
		text = fmt.Sprintf("%.2f", v)
	case m.Unit == "%":
		text = stats.Number(math.Floor(v*10)/10, "%")
	default:
		text = stats.Number(math.Round(v), "")
	}
	return sign + text
}

// roundTo drops digits that mean nothing.
func roundTo(v float64) float64 {
	if v >= 10 {
		return math.Round(v)
	}
	return math.Round(v*10) / 10
}

// MetricOf returns the metric of a key.
func MetricOf(k Key) Metric {
	all := Metrics()
	return all[slices.IndexFunc(all, func(m Metric) bool { return m.Key == k })]
}
