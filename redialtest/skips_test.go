package redialtest

import (
	"io"
	"os/exec"
	"strings"
	"testing"
)

// skipper is a test that goes on when it is skipped.
type skipper struct {
	testing.TB
	skipped int
}

func (s *skipper) Skipf(string, ...any) { s.skipped++ }
func (s *skipper) Fatal(...any)         {}
func (s *skipper) Helper()              {}

func TestSkipped_CountsByReason(t *testing.T) {
	t.Setenv(requireRedis, "")
	skips.mu.Lock()
	before := skips.by
	skips.by = nil
	skips.mu.Unlock()
	defer func() {
		skips.mu.Lock()
		skips.by = before
		skips.mu.Unlock()
	}()
	if got := Skipped(); got != "" {
		t.Errorf("none: %q", got)
	}
	s := &skipper{TB: t}
	Skip(s, "needs", "root")
	for range 2 {
		start(s, func() (io.Closer, error) { return nil, exec.ErrNotFound })
	}
	if s.skipped != 3 {
		t.Errorf("%d skipped", s.skipped)
	}
	want := "redialtest: 3 tests skipped: 2 × needs a real server: " + exec.ErrNotFound.Error() + " (set REDIAL_REQUIRE_REDIS=1 to fail instead); 1 × needs root"
	if got := Skipped(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if strings.Contains(Skipped(), "\n") {
		t.Error("more than a line")
	}
}
