package redialtest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// skips are the tests of this process that were skipped, by the reason.
var skips struct {
	mu sync.Mutex
	by map[string]int // guarded by mu
}

// Skip skips a test, as the Skip of testing.TB does, and has [Skipped] count it.
func Skip(tb testing.TB, args ...any) {
	tb.Helper()
	reason := strings.TrimSpace(fmt.Sprintln(args...))
	skips.mu.Lock()
	if skips.by == nil {
		skips.by = make(map[string]int)
	}
	skips.by[reason]++
	skips.mu.Unlock()
	tb.Skipf("%s", reason)
}

// Skipped says in one line how many tests of this process were skipped for want of what
// [StartServer] and its like need, or by [Skip], and why; the most frequent reason comes
// first. It is empty when there were none. A TestMain that prints it last makes a run that
// has tested little look so. It is safe for concurrent use.
func Skipped() string {
	skips.mu.Lock()
	defer skips.mu.Unlock()
	total := 0
	var reasons []string
	for reason, n := range skips.by {
		total += n
		reasons = append(reasons, reason)
	}
	if total == 0 {
		return ""
	}
	slices.SortFunc(reasons, func(a, b string) int {
		if d := skips.by[b] - skips.by[a]; d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for i, reason := range reasons {
		reasons[i] = fmt.Sprintf("%d × %s", skips.by[reason], reason)
	}
	return fmt.Sprintf("redialtest: %d tests skipped: %s", total, strings.Join(reasons, "; "))
}
