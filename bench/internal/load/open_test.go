package load

import (
	"testing"
	"time"
)

func TestSurge_LengthsAreSpreadEvenly(t *testing.T) {
	s := Surge{OneIn: 12, Min: 50 * time.Millisecond, Max: 500 * time.Millisecond}
	const n = 1000
	var sum time.Duration
	var parts [9]int // of 50 ms each
	for i := range n {
		d := s.length(i)
		if d < s.Min || d >= s.Max {
			t.Fatalf("script %d takes %v", i, d)
		}
		sum += d
		parts[(d-s.Min)/(50*time.Millisecond)]++
	}
	if mean := sum / n; mean < 270*time.Millisecond || mean > 280*time.Millisecond {
		t.Errorf("scripts take %v on average, want 275 ms", mean)
	}
	for i, k := range parts {
		if k < n/9-5 || k > n/9+5 {
			t.Errorf("part %d has %d of %d scripts", i, k, n)
		}
	}
}
