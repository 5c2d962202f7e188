package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"

	"github.com/redial-go/redial/bench/internal/client"
)

// until sleeps up to a point in time.
func until(t time.Time) { time.Sleep(time.Until(t)) }

// warm opens n connections by blocking on all of them at once.
func warm(c client.Client, n int) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = c.Block(context.Background(), time.Second) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// eventLog collects the transitions of a redial client.
type eventLog struct {
	mu     sync.Mutex
	events []redial.Event
}

func (e *eventLog) option() redial.Option {
	return redial.WithOnStateChange(func(ev redial.Event) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.events = append(e.events, ev)
	})
}

// first returns when state was first entered after since.
func (e *eventLog) first(state redial.State, since time.Time) (time.Time, bool) {
	for _, ev := range e.after(since) {
		if ev.To == state {
			return ev.At, true
		}
	}
	return time.Time{}, false
}

// after returns the transitions after a point in time.
func (e *eventLog) after(t time.Time) []redial.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	var later []redial.Event
	for _, ev := range e.events {
		if ev.At.After(t) {
			later = append(later, ev)
		}
	}
	return later
}

// since renders the transitions after a point in time.
func (e *eventLog) since(t time.Time) string {
	var parts []string
	for _, ev := range e.after(t) {
		parts = append(parts, fmt.Sprintf("%s at %d ms (%s)", ev.To, ev.At.Sub(t).Milliseconds(), ev.Reason))
	}
	if parts == nil {
		return "no transition"
	}
	return strings.Join(parts, ", ")
}

// clientGoroutines counts the goroutines in redial or go-redis, or started there.
func clientGoroutines() int {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	count := 0
	for _, stack := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(stack, "github.com/redis/go-redis/") || strings.Contains(stack, "github.com/redial-go/redial.") ||
			strings.Contains(stack, "github.com/redial-go/redial/internal/") {
			count++
		}
	}
	return count
}

// launch starts a server, and a proxy in front of it when wanted.
func launch(s *sample, withProxy bool) (*redialtest.Server, *redialtest.Proxy, func(), error) {
	server, err := redialtest.LaunchServer()
	if err != nil {
		return nil, nil, nil, err
	}
	stop := func() { s.expect(server.Close() == nil, "server did not close") }
	if !withProxy {
		return server, nil, stop, nil
	}
	proxy, err := redialtest.StartProxy("127.0.0.1:0", server.Addr())
	if err != nil {
		stop()
		return nil, nil, nil, err
	}
	return server, proxy, func() { _ = proxy.Close(); stop() }, nil
}
