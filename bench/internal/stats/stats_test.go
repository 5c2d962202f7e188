package stats

import (
	"math"
	"testing"
)

func TestQuantile(t *testing.T) {
	inf := math.Inf(1)
	for _, x := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 2, 3}, 0.5, 2.5},
		{[]float64{1, 2}, 0.25, 1.25},
		{[]float64{7}, 0.99, 7},
		{[]float64{1, inf, inf}, 0.5, inf}, // two of three runs: never
		{[]float64{1, 2, inf}, 0.5, 2},
	} {
		if got := Quantile(x.values, x.q); got != x.want {
			t.Errorf("Quantile(%v, %v) = %v, want %v", x.values, x.q, got, x.want)
		}
	}
	if got := Quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("Quantile of nothing = %v", got)
	}
}

func TestNumber(t *testing.T) {
	for _, x := range []struct {
		v    float64
		unit string
		want string
	}{
		{12, "", "12"},
		{1234.5, "ms", "1234 ms"},
		{12.34, "ms", "12.3 ms"},
		{0.1234, "s", "0.123 s"},
		{0.0123, "", "0.012"},
		{math.Inf(1), "ms", "never"},
		{math.NaN(), "", "n/a"},
	} {
		if got := Number(x.v, x.unit); got != x.want {
			t.Errorf("Number(%v, %q) = %q, want %q", x.v, x.unit, got, x.want)
		}
	}
}
