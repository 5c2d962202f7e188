package redial

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Who is told of what commands go through, by interfaces of one method each, and how
// transitions reach them, the callback and the log: in order, on a goroutine of its own.
// Nothing here is touched by a command that succeeds at its first attempt.

// The lines that are logged, but for those of transitions, which are "redis " and the
// name of the state.
const (
	logTransition    = "redis "
	logRefusing      = "redis refusing commands"
	logPanicCallback = "redial: panic in a state-change callback"
	logPanicObserver = "redial: panic in an observer"
	logPanicProbe    = "redial: panic while the server was asked"
)

// StateObserver is told of every transition, as the callback of [WithOnStateChange] is: in
// order, one at a time, on a goroutine of its own. It must not be slow, see there.
type StateObserver interface{ ObserveState(e Event) }

// WaitObserver is told of every wait for the link when it is over. A call may wait more
// than once. The method is called on the goroutine of the command, possibly on many at
// once, with the context of the command. It must not block, and send nothing with the client:
// what waits or fails then has it called again.
type WaitObserver interface {
	ObserveWait(ctx context.Context, w Wait)
}

// RetryObserver is told of every attempt beyond the first before it is made, as
// [WaitObserver] is.
type RetryObserver interface {
	ObserveRetry(ctx context.Context, r Retry)
}

// FailureObserver is told of every call, and every part of one for several nodes, that
// fails with an [Error]: of each that [Stats] counts as Refused or Unknown, but for those that
// fail with a reply, and of those that the end of the client cuts short. It is called as
// [WaitObserver] is. e must not be changed.
type FailureObserver interface {
	ObserveFailure(ctx context.Context, e *Error)
}

// Wait is one time that a command has waited for the link.
type Wait struct {
	// Cmd is the name of the command, "pipeline", "transaction" or "watch", or
	// "subscribe" for a connection that is to carry subscriptions.
	Cmd string
	// Node is the address of the node that was waited for, "" when it was the client as a
	// whole.
	Node string
	// For is how long this wait took, Total how long the call has waited in all.
	For, Total time.Duration
	// Cause says why the command did not go on: CauseContextEnded, CauseGraceOver,
	// CauseWaitOver or CauseClosed. It is CauseNone when the command went on.
	Cause Cause
	// Err is nil when the command went on, and else why not.
	Err error
}

// Retry is an attempt beyond the first of a call.
type Retry struct {
	// Cmd is the name of the command, "pipeline", "transaction" or "watch".
	Cmd string
	// Node is the address of the node at which the attempt before failed, "" when it is
	// not known or the client has one server.
	Node string
	// Attempt is its number, 2 for the first retry.
	Attempt int
	// After says what is known of the attempt before, Err is how it failed. Err is never
	// nil.
	After RetryAfter
	Err   error
}

// RetryAfter is what was known of an attempt that was followed by another. Its String is
// fit for a metric label. The zero value is AfterUnsent.
type RetryAfter uint8

const (
	// AfterUnsent means that nothing ran, see Stats.RetriesUnsent.
	AfterUnsent RetryAfter = iota
	// AfterRefused means that the server said that it did not run the command.
	AfterRefused
	// AfterRepeated means that it may have run, and may now run twice.
	AfterRepeated
)

var retryAfterNames = []string{"unsent", "refused", "repeated"}

// String returns the name: unsent, refused or repeated.
func (r RetryAfter) String() string { return named(retryAfterNames, int(r), "RetryAfter") }

// MarshalText encodes it as its name.
func (r RetryAfter) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// WithObserver has o told of what is worth knowing about a client that is not well: it
// implements at least one of [StateObserver], [WaitObserver], [RetryObserver] and
// [FailureObserver]. A command that succeeds at its first attempt, without a wait, meets
// no observer, so a healthy client costs the same with and without.
//
// The option may be given several times, and the observers are called in that order. A
// panic in one of them is contained, and logged. o must not be nil.
func WithObserver(o any) Option {
	return func(c *config) error {
		switch o.(type) {
		case nil:
			return errors.New("redial: WithObserver observer is nil")
		case StateObserver, WaitObserver, RetryObserver, FailureObserver:
		default:
			return fmt.Errorf("redial: WithObserver observer, a %T, implements none of the interfaces of an observer", o)
		}
		c.observers = append(c.observers, o)
		return nil
	}
}

// observers are those of a client. They are only read, but for what is logged of them.
type observers struct {
	addr   string       // of the client
	logger *slog.Logger // nil: silent
	all    []any        // see WithObserver
	states bool         // one of them is a StateObserver

	mu     sync.Mutex
	panics map[string]allowance // guarded by mu; of each line about them
}

func newObservers(cfg *config, addr string) *observers {
	told := &observers{addr: addr, all: cfg.observers, panics: make(map[string]allowance)}
	if l := cfg.logger; l != nil {
		told.logger = slog.New(steady{l.Handler()})
	}
	for _, o := range told.all {
		_, states := o.(StateObserver)
		told.states = told.states || states
	}
	return told
}

// tell has those told that are of a kind.
func tell[O any](told *observers, f func(O)) { tellEach(told, told.all, f) }

// tellEach tells those of all that are of a kind. One that ends its goroutine keeps nothing
// from the others.
func tellEach[O any](told *observers, all []any, f func(O)) {
	if len(all) == 0 {
		return
	}
	defer tellEach(told, all[1:], f)
	if o, ok := all[0].(O); ok {
		told.contained(logPanicObserver, func() { f(o) })
	}
}

// steady is the handler of a logger of the caller. A panic in it ends here, as an error
// of it does: there is nobody else to be told.
type steady struct{ slog.Handler }

func (s steady) Enabled(ctx context.Context, level slog.Level) (yes bool) {
	defer func() { _ = recover() }()
	return s.Handler.Enabled(ctx, level)
}

func (s steady) Handle(ctx context.Context, r slog.Record) error {
	defer func() { _ = recover() }()
	return s.Handler.Handle(ctx, r)
}

// contained calls f, which is code of the caller; a panic ends here.
func (told *observers) contained(message string, f func()) {
	defer func() {
		if r := recover(); r != nil {
			told.logPanic(message, r, nil)
		}
	}()
	f()
}

// logPanic logs a panic in code of others, unless there were too many lines like it of late:
// each command that fails in an outage may bring one. Without a stack it is that of whoever calls.
func (told *observers) logPanic(message string, v any, stack []byte) {
	if told.logger == nil {
		return
	}
	told.mu.Lock()
	lines := told.panics[message]
	write, left := lines.take(time.Now()), lines.left
	lines.left = left + 1
	if write {
		lines.left = 0
	}
	told.panics[message] = lines
	told.mu.Unlock()
	if !write {
		return
	}
	if stack == nil {
		stack = debug.Stack()
	}
	attrs := []any{"addr", told.addr, "panic", fmt.Sprint(v), "stack", string(stack)}
	if left > 0 {
		attrs = append(attrs, "left_out", left)
	}
	told.logger.Error(message, attrs...)
}

// events delivers transitions to the logger, the observers and the callback, in order and
// one at a time, on a goroutine of its own, so that a slow one delays nobody. The
// goroutine exists while there is something to deliver.
type events struct {
	told   *observers
	notify func(Event)
	lost   atomic.Uint64

	lines map[string]*allowance // of each node, "" being the client as a whole; used by the goroutine alone
	born  time.Time
	owes  atomic.Int64 // when lines that were left out are to be told of, in ns since born; 0: there are none

	mu    sync.Mutex
	queue []Event       // guarded by mu
	done  chan struct{} // guarded by mu; closed when the goroutine has returned; nil: there is none
}

func newEvents(cfg *config, told *observers) *events {
	return &events{told: told, notify: cfg.onChange, lines: make(map[string]*allowance), born: time.Now()}
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
// full the oldest event about a node is dropped, or else the oldest of all. So however many
// nodes there are, the client as a whole is told of, and last that it is closed.
func (e *events) put(ev Event) {
	if e.told.logger == nil && (ev.refusing || ev.reminder || e.notify == nil && !e.told.states) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) >= eventQueue {
		i := slices.IndexFunc(e.queue, func(ev Event) bool { return ev.Node != "" })
		e.queue = slices.Delete(e.queue, max(i, 0), max(i, 0)+1)
		e.lost.Add(1)
	}
	e.queue = append(e.queue, ev)
}

// remind has told what was left out, when it is time for that.
func (e *events) remind(now time.Time) {
	if owes := e.owes.Load(); owes != 0 && int64(now.Sub(e.born)) >= owes && e.owes.CompareAndSwap(owes, 0) {
		e.put(Event{At: now, reminder: true})
		e.signal()
	}
}

// signal has what is queued delivered.
func (e *events) signal() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.signalLocked()
}

func (e *events) signalLocked() {
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
	defer e.left(done)
	for ev, ok := e.take(); ok; ev, ok = e.take() {
		e.deliver(ev)
	}
}

// left is called when the goroutine is over. If code of the caller has ended it, as a test that
// fails in a callback does, another one delivers what is left.
func (e *events) left(done chan struct{}) {
	defer close(done)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done == done {
		e.done = nil
		e.signalLocked()
	}
}

// deliver logs the event and calls the observers and the callback; panics end here. Whoever
// ends the goroutine keeps nothing from those that come after him.
func (e *events) deliver(ev Event) {
	if !ev.refusing && !ev.reminder {
		if e.notify != nil {
			defer e.told.contained(logPanicCallback, func() { e.notify(ev) })
		}
		defer tell(e.told, func(o StateObserver) { o.ObserveState(ev) })
	}
	if e.told.logger != nil {
		e.ration(ev)
	}
}

// ration logs an event unless there were too many lines about its node of late. What is
// left out is told of with the next line, or by a reminder: the last state is always told.
func (e *events) ration(ev Event) {
	if ev.reminder {
		defer e.noteOwed() // the handler may end the goroutine
		for _, a := range e.lines {
			if a.left > 0 && a.take(ev.At) {
				left := a.left - 1
				a.left = 0
				e.log(a.last, left, true)
			}
		}
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
		if at := int64(a.next().Sub(e.born)); a.left > 0 && (owes == 0 || at < owes) {
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
	attrs := []slog.Attr{slog.String("addr", ev.Addr)}
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
		attrs = append(attrs, slog.String("error", fmt.Sprint(ev.Err))) // one of the caller may panic
	}
	e.told.logger.LogAttrs(context.Background(), level, message, attrs...)
}

// join waits until what is queued has been delivered. A callback that does not
// return, perhaps because it is the one that closes the client, is waited for
// callbackPatience; it is delivered the rest once it returns.
func (e *events) join() {
	timer := time.NewTimer(callbackPatience)
	defer timer.Stop()
	for {
		e.mu.Lock()
		done := e.done
		e.mu.Unlock()
		if done == nil {
			return
		}
		select {
		case <-done:
		case <-timer.C:
			return
		}
	}
}
