package redial

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// events delivers transitions to the logger and the callback, in order and one
// at a time, on a goroutine of its own, so that a slow one delays nobody.
type events struct {
	logger *slog.Logger
	notify func(Event)
	n      *counters
	more   chan struct{} // capacity 1
	quit   chan struct{} // closed by close
	done   chan struct{} // closed when the goroutine has returned

	mu    sync.Mutex
	queue []Event // guarded by mu
}

// newEvents returns a dispatcher; it runs no goroutine when nobody listens.
func newEvents(cfg *config, n *counters) *events {
	e := &events{
		logger: cfg.logger, notify: cfg.onChange, n: n,
		more: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
	if e.silent() {
		close(e.done)
	} else {
		go e.run()
	}
	return e
}

func (e *events) silent() bool { return e.logger == nil && e.notify == nil }

// put queues an event; signal must follow once no lock is held. When the queue is
// full the oldest event is dropped. The one for StateClosed is the last ever
// queued, so it is never the oldest of a full queue.
func (e *events) put(ev Event) {
	if e.silent() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) >= eventQueue {
		e.queue = e.queue[1:]
		e.n.lost.Add(1)
	}
	e.queue = append(e.queue, ev)
}

func (e *events) signal() { nudge(e.more) }

func (e *events) take() (Event, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) == 0 {
		return Event{}, false
	}
	ev := e.queue[0]
	e.queue = e.queue[1:]
	return ev, true
}

func (e *events) run() {
	defer close(e.done)
	for {
		for ev, ok := e.take(); ok; ev, ok = e.take() {
			e.deliver(ev)
		}
		select {
		case <-e.more:
		case <-e.quit:
			for ev, ok := e.take(); ok; ev, ok = e.take() {
				e.deliver(ev)
			}
			return
		}
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
		slog.String("from", ev.From.String()),
		slog.String("to", ev.To.String()),
		slog.String("reason", ev.Reason),
		slog.Duration("after", ev.In.Round(time.Microsecond)),
	}
	if ev.Attempts > 0 {
		attrs = append(attrs, slog.Int("attempts", ev.Attempts))
	}
	if ev.Err != nil {
		attrs = append(attrs, slog.String("error", ev.Err.Error()))
	}
	e.logger.LogAttrs(context.Background(), level, "redis "+ev.To.String(), attrs...)
}

// close delivers what is queued and joins the goroutine. A callback that does not
// return, perhaps because it is the one that closes the client, is waited for
// callbackPatience; it is delivered the rest once it returns.
func (e *events) close() {
	close(e.quit)
	timer := time.NewTimer(callbackPatience)
	defer timer.Stop()
	select {
	case <-e.done:
	case <-timer.C:
	}
}
