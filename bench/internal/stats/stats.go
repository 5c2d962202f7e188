// Package stats turns measured values into the few numbers that a table shows.
package stats

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Never stands for an event that did not happen.
const Never = time.Duration(math.MaxInt64)

// Ms converts to milliseconds; Never becomes infinity.
func Ms(d time.Duration) float64 {
	if d == Never {
		return math.Inf(1)
	}
	return float64(d) / float64(time.Millisecond)
}

// Quantile returns the q-quantile of values by linear interpolation.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	pos := q * float64(len(sorted)-1)
	low := int(pos)
	if low+1 == len(sorted) || math.IsInf(sorted[low+1], 1) {
		return sorted[int(math.Round(pos))]
	}
	return sorted[low] + (pos-float64(low))*(sorted[low+1]-sorted[low])
}

// Number prints v with three significant digits or as an integer.
func Number(v float64, unit string) string {
	var text string
	switch {
	case math.IsInf(v, 1):
		return "never"
	case math.IsNaN(v):
		return "n/a"
	case v == math.Trunc(v) && math.Abs(v) < 1e6:
		text = fmt.Sprintf("%d", int64(v))
	case math.Abs(v) >= 100:
		text = fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		text = fmt.Sprintf("%.1f", v)
	case math.Abs(v) >= 0.1:
		text = fmt.Sprintf("%.3g", v)
	default:
		text = fmt.Sprintf("%.3f", v)
	}
	if unit != "" {
		text += " " + unit
	}
	return text
}
