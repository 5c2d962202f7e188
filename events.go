package redial

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// events delivers transitions to the logger, the observers and the callback, in order and
// one at a time, on a goroutine of its own, so that a slow one delays nobody. The
// goroutine exists while there is something to deliver.
type events struct {
	logger *slog.Logger
	told   *observers
	notify func(Event)
	lost   atomic.Uint64

	lines map[string]*allowance // of each node, "" being the client as a whole; used by the goroutine alone
	owes  atomic.Int64          // when lines that were left out are to be told of, in ns; 0: there are none

	mu    sync.Mutex
	queue []Event       // guarded by mu
	done  chan struct{} // guarded by mu; closed when the goroutine has returned; nil: there is none
}

func newEvents(cfg *config, told *observers) *events {
	return &events{logger: told.logger, told: told, notify: cfg.onChange, lines: make(map[string]*allowance)}
}

// allowance bounds the lines about one server or node, and remembers what was left out.
type allowance struct {
	spent float64   // of logBurst
	at    time.Time // when spent was right
	left  int       // lines that were left out since the last one
	last  Event     // the last of them
}

// take reports whether another line may be written.
func (a *allowance) take(now time.Time) bool {
	a.spent = max(a.spent-float64(now.Sub(a.at))/float64(logRefill), 0)
	a.at = now
	if a.spent+1 > logBurst {
		return false
	}
	a.spent++
	return true
}

// whole reports whether nothing of it has been used, so that nothing is lost without it.
func (a *allowance) whole(now time.Time) bool {
	return a.left == 0 && a.spent*float64(logRefill) <= float64(now.Sub(a.at))
}

// next returns when it will be.
func (a *allowance) next() time.Time {
	return a.at.Add(time.Duration((a.spent + 1 - logBurst) * float64(logRefill)))
}

// put queues an event; signal must follow once no lock is held. When the queue is
// full the oldest event is dropped. The one for StateClosed is the last ever
// queued, so it is never the oldest of a full queue.
func (e *events) put(ev Event) {
	if e.logger == nil && (ev.refusing || ev.reminder || e.notify == nil && len(e.told.states) == 0) {
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

// remind has told what was left out, when it is time for that.
func (e *events) remind(now time.Time) {
	if owes := e.owes.Load(); owes != 0 && now.UnixNano() >= owes && e.owes.CompareAndSwap(owes, 0) {
		e.put(Event{At: now, reminder: true})
		e.signal()
	}
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

// deliver logs the event and calls the observers and the callback; panics end here.
func (e *events) deliver(ev Event) {
	defer func() {
		if r := recover(); r != nil && e.logger != nil {
			e.logger.Error(logPanicCallback, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		}
	}()
	if e.logger != nil {
		e.ration(ev)
	}
	if ev.refusing || ev.reminder {
		return
	}
	e.told.state(ev)
	if e.notify != nil {
		e.notify(ev)
	}
}

// ration logs an event unless there were too many lines about its node of late. What is
// left out is told of with the next line, or by a reminder: the last state is always told.
func (e *events) ration(ev Event) {
	if ev.reminder {
		for _, a := range e.lines {
			if a.left > 0 && a.take(ev.At) {
				a.left--
				e.log(a.last, a.left, true)
				a.left = 0
			}
		}
		e.noteOwed()
		return
	}
	a := e.lines[ev.Node]
	if a == nil {
		maps.DeleteFunc(e.lines, func(_ string, a *allowance) bool { return a.whole(ev.At) })
		a = &allowance{at: ev.At}
		e.lines[ev.Node] = a
	}
	switch {
	case ev.To == StateClosed && ev.Cause != CauseNodeRemoved: // a node that has left may come again
		delete(e.lines, ev.Node)
	case !a.take(ev.At):
		a.left++
		a.last = ev
		e.noteOwed()
		return
	}
	left := a.left
	a.left = 0
	e.log(ev, left, false)
}

// noteOwed notes when what was left out is to be told.
func (e *events) noteOwed() {
	owes := int64(0)
	for _, a := range e.lines {
		if at := a.next().UnixNano(); a.left > 0 && (owes == 0 || at < owes) {
			owes = at
		}
	}
	e.owes.Store(owes)
}

// log writes the line of an event. left is how many were left out before it, late says
// that it was one of those.
func (e *events) log(ev Event, left int, late bool) {
	level, message := slog.LevelInfo, logTransition+ev.To.String()
	if ev.To == StateReconnecting || ev.refusing {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("addr", ev.Addr),
	}
	if ev.Node != "" {
		attrs = append(attrs, slog.String("node", ev.Node))
	}
	if ev.refusing {
		message = logRefusing
		attrs = append(attrs, slog.String("state", ev.To.String()))
	} else {
		attrs = append(attrs, slog.String("from", ev.From.String()), slog.String("to", ev.To.String()))
	}
	attrs = append(attrs, slog.String("reason", ev.Reason), slog.String("cause", ev.Cause.String()))
	if !ev.refusing {
		attrs = append(attrs, slog.Duration("after", ev.In.Round(time.Microsecond)))
	}
	if ev.Attempts > 0 {
		attrs = append(attrs, slog.Int("attempts", ev.Attempts))
	}
	if o := ev.Outage; o != nil {
		if o.Cause != CauseCreated {
			attrs = append(attrs, slog.String("outage_cause", o.Cause.String()), slog.Duration("outage", o.Duration.Round(time.Microsecond)))
		}
		if o.Cause != CauseCreated || o.Waited+o.Refused+o.Unknown > 0 {
			attrs = append(attrs, slog.Uint64("waited", o.Waited), slog.Uint64("refused", o.Refused), slog.Uint64("unknown", o.Unknown))
		}
	}
	if ev.To == StateClosed && ev.Node == "" {
		attrs = append(attrs, slog.Group("all", slog.Uint64("waited", ev.all.waited), slog.Uint64("refused", ev.all.refused),
			slog.Uint64("unknown", ev.all.unknown), slog.Uint64("retries", ev.all.retries)))
	}
	if left > 0 {
		attrs = append(attrs, slog.Int("left_out", left))
	}
	if late {
		attrs = append(attrs, slog.Time("at", ev.At))
	}
	if ev.Err != nil {
		attrs = append(attrs, slog.String("error", ev.Err.Error()))
	}
	e.logger.LogAttrs(context.Background(), level, message, attrs...)
}

// mishap tells of a panic in code of others, of the caller's or go-redis's, on a goroutine
// of ours.
func (e *events) mishap(v any, stack []byte) {
	if e.logger != nil {
		e.logger.Error(logPanicProbe, "panic", fmt.Sprint(v), "stack", string(stack))
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
