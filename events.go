package redial

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// events delivers transitions to the logger and the callback, in order and one
// at a time, on a goroutine of its own, so that a slow one delays nobody. The
// goroutine exists while there is something to deliver.
type events struct {
	logger *slog.Logger
	notify func(Event)
	lost   atomic.Uint64

	mu    sync.Mutex
	queue []Event       // guarded by mu
	done  chan struct{} // guarded by mu; closed when the goroutine has returned; nil: there is none
}

func newEvents(cfg *config) *events {
	return &events{logger: cfg.logger, notify: cfg.onChange}
}

// put queues an event; signal must follow once no lock is held. When the queue is
// full the oldest event is dropped. The one for StateClosed is the last ever
// queued, so it is never the oldest of a full queue.
func (e *events) put(ev Event) {
	if e.logger == nil && e.notify == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) >= eventQueue {
		e.queue = e.queue[1:]
		e.lost.Add(1)
	}
	e.queue = append(e.queue, ev)
}

// signal has what is queued delivered.
func (e *events) signal() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done == nil && len(e.queue) > 0 {
		e.done = make(chan struct{})
		go e.run(e.done)
	}
}

// take returns the next event. When there is none the goroutine is over.
func (e *events) take() (Event, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) == 0 {
		e.done = nil
		return Event{}, false
	}
	ev := e.queue[0]
	e.queue = e.queue[1:]
	return ev, true
}

func (e *events) run(done chan struct{}) {
	defer close(done)
	for ev, ok := e.take(); ok; ev, ok = e.take() {
		e.deliver(ev)
	}
}

// deliver logs the event and calls the callback; panics end here.
func (e *events) deliver(ev Event) {
	defer func() {
		if r := recover(); r != nil && e.logger != nil {
			e.logger.Error("redial: panic in a state-change callback",
				"panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		}
	}()
	if e.logger != nil {
		e.log(ev)
	}
	if e.notify != nil {
		e.notify(ev)
	}
}

func (e *events) log(ev Event) {
	level := slog.LevelInfo
	if ev.To == StateReconnecting {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("addr", ev.Addr),
	}
	if ev.Node != "" {
		attrs = append(attrs, slog.String("node", ev.Node))
	}
	attrs = append(attrs,
		slog.String("from", ev.From.String()),
		slog.String("to", ev.To.String()),
		slog.String("reason", ev.Reason),
		slog.String("cause", ev.Cause.String()),
		slog.Duration("after", ev.In.Round(time.Microsecond)),
	)
	if ev.Attempts > 0 {
		attrs = append(attrs, slog.Int("attempts", ev.Attempts))
	}
	if ev.Err != nil {
		attrs = append(attrs, slog.String("error", ev.Err.Error()))
	}
	e.logger.LogAttrs(context.Background(), level, "redis "+ev.To.String(), attrs...)
}

// mishap tells of a panic in code of others, of the caller's or go-redis's, on a goroutine
// of ours.
func (e *events) mishap(v any, stack []byte) {
	if e.logger != nil {
		e.logger.Error("redial: panic while the server was asked", "panic", fmt.Sprint(v), "stack", string(stack))
	}
}

// join waits until what is queued has been delivered. A callback that does not
// return, perhaps because it is the one that closes the client, is waited for
// callbackPatience; it is delivered the rest once it returns.
func (e *events) join() {
	e.mu.Lock()
	done := e.done
	e.mu.Unlock()
	if done == nil {
		return
	}
	timer := time.NewTimer(callbackPatience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}
