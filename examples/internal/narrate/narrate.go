// Package narrate prints what happens to a client while it happens, for the programs
// in examples.
package narrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/redial-go/redial"
)

// Printer writes whole lines from several goroutines.
type Printer struct {
	mu    sync.Mutex
	w     io.Writer // guarded by mu
	began time.Time
}

// New returns a Printer whose clock begins to run now.
func New(w io.Writer) *Printer { return &Printer{w: w, began: time.Now()} }

// Printf prints a line.
func (p *Printer) Printf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(p.w, strings.TrimRight(fmt.Sprintf(format, args...), " "))
}

// At prints a line about something that happened at t.
func (p *Printer) At(t time.Time, format string, args ...any) {
	p.Printf("%8.3fs  %s", t.Sub(p.began).Seconds(), fmt.Sprintf(format, args...))
}

// Event prints a state transition, and of which node, if it is about one.
func (p *Printer) Event(e redial.Event) {
	why := e.Reason
	if e.Err != nil && e.Err.Error() != e.Reason {
		why += ": " + e.Err.Error()
	}
	if e.Attempts > 1 {
		why += fmt.Sprintf(" at attempt %d", e.Attempts)
	}
	if e.Node != "" {
		why = e.Node + " " + why
	}
	p.At(e.At, "%-12s -> %-12s  after %7.3fs  %s", e.From, e.To, e.In.Seconds(), why)
}

// Pause waits for d and reports whether ctx is still alive.
func Pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// Ended says why ctx is over.
func Ended(ctx context.Context) error {
	return fmt.Errorf("ended before there was a proof: %w", context.Cause(ctx))
}

// Explain returns err, or what to do about it when servers could not be started for
// want of redis-server. The program is the one to run then.
func Explain(err error, program string) error {
	if !errors.Is(err, exec.ErrNotFound) {
		return err
	}
	return fmt.Errorf("this starts real servers, and there is no redis-server in PATH: "+
		"apt install redis-server, or brew install redis, or, with nothing to install, "+
		`docker run --rm -v "$PWD":/src -w /src golang:1.26 sh -c "apt-get update && apt-get install -y redis-server && go run %s"`, program)
}
