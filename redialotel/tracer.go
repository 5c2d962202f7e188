package redialotel

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/redial-go/redial"
)

// The attributes of spans that only redial knows, besides redial.outcome.
const (
	keyAttempts = attribute.Key("redial.attempts")
	keyWaited   = attribute.Key("redial.waited")
)

// Tracer traces the commands of a client: one CLIENT span for each call of the program, as
// long as the call took. Its name is that of the command ("GET"), of the commands of a
// pipeline if they are alike ("PIPELINE GET", else "PIPELINE"), or "MULTI". It has the
// attributes of the stable conventions for databases, without db.query.text, and
//
//   - redial.attempts: how often the command was handed to go-redis, if not once; 0 means
//     that it never left the gate.
//   - redial.waited: how long it waited for the server, in seconds, if it did.
//   - redial.outcome: not_run or unknown, if it failed for the connection.
//
// error.type is the first word of a reply of the server, or one of redial.unavailable,
// redial.outcome_unknown, redial.closed, redial.once_mismatch, redial.once_unsupported,
// canceled and timeout. redis.Nil is no error. There are no events on a span. Pub/Sub,
// heartbeats and what sets up connections (HELLO, AUTH, CLIENT, SELECT, READONLY) have no
// spans. A Watch has one for each command that it sends, and for each WATCH that failed and
// was followed by another, which redial.Stats does not count; on a client of several nodes it
// has none, see redial.WithOuterHook.
//
// It is given to redial.WithOuterHook and to redial.WithObserver, and may be shared by
// several clients. It is safe for concurrent use.
type Tracer struct {
	tracer   trace.Tracer // nil: attributes only
	common   trace.SpanStartEventOption
	set      []attribute.KeyValue
	duration metric.Float64Histogram // nil: not asked for

	mu     sync.Mutex
	names  map[string]bool // guarded by mu; operations in the histogram, mostNames at most
	errors map[string]bool // guarded by mu; kinds of errors in it, as many
}

// durationBuckets are those that the conventions name for db.client.operation.duration.
var durationBuckets = []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10}

// mostNames bounds the operations in the histogram, and the kinds of errors, which may be the
// words of a script; whatever else there is is "OTHER", or "_OTHER".
const mostNames = 256

// NewTracer returns a tracer of a client under a name, see [NewMetrics].
func NewTracer(name string, opts ...Option) *Tracer {
	c := configOf(opts)
	t := &Tracer{set: c.common(name), names: make(map[string]bool), errors: make(map[string]bool)}
	t.common = trace.WithAttributes(t.set...)
	if !c.only {
		t.tracer = c.tracers.Tracer(scope)
	}
	if c.duration {
		h, err := c.meters.Meter(scope).Float64Histogram("db.client.operation.duration", metric.WithUnit("s"),
			metric.WithDescription("Duration of database client operations."), metric.WithExplicitBucketBoundaries(durationBuckets...))
		if err == nil { // the name and the buckets are right, so it is
			t.duration = h
		}
	}
	return t
}

// call is what is known of a call of the program while it is under way. It is the context
// of the call.
type call struct {
	context.Context

	mu       sync.Mutex
	attempts int           // guarded by mu; 0: nothing was heard of any beyond the first
	waited   time.Duration // guarded by mu
}

type callKey struct{}

func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// ObserveWait notes how long a call has waited.
func (t *Tracer) ObserveWait(ctx context.Context, w redial.Wait) {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		c.mu.Lock()
		c.waited += w.For
		c.mu.Unlock()
	}
}

// ObserveRetry notes how often a call was tried.
func (t *Tracer) ObserveRetry(ctx context.Context, r redial.Retry) {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		c.mu.Lock()
		c.attempts = max(c.attempts, r.Attempt)
		c.mu.Unlock()
	}
}

// DialHook leaves dials alone.
func (t *Tracer) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook traces single commands.
func (t *Tracer) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if isSetup(cmd) || t.idle(ctx) {
			return next(ctx, cmd)
		}
		return t.trace(ctx, operation(cmd), 1, func(ctx context.Context) error { return next(ctx, cmd) })
	}
}

// ProcessPipelineHook traces pipelines and transactions.
func (t *Tracer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		name, size := batch(cmds)
		if name == "" || t.idle(ctx) {
			return next(ctx, cmds)
		}
		return t.trace(ctx, name, size, func(ctx context.Context) error { return next(ctx, cmds) })
	}
}

// idle reports whether nobody wants to know of a call.
func (t *Tracer) idle(ctx context.Context) bool {
	return t.tracer == nil && t.duration == nil && !trace.SpanFromContext(ctx).IsRecording()
}

func (t *Tracer) trace(ctx context.Context, name string, size int, next func(context.Context) error) error {
	span, err := trace.SpanFromContext(ctx), errNotReturned
	if t.tracer != nil {
		ctx, span = t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), t.common)
		defer func() { end(span, name, size, err) }()
	}
	began := time.Now()
	if !span.IsRecording() {
		err = next(ctx)
		t.record(ctx, name, began, err)
		return err
	}
	c := &call{Context: ctx}
	err = next(c)
	t.record(ctx, name, began, err)
	span.SetAttributes(c.attributes(err)...)
	return err
}

// errNotReturned is that of a call in which a hook panics.
var errNotReturned = errors.New("the call has not returned")

// end ends the span of a call. It is not End that is deferred, which would note what a hook has
// panicked with.
func end(span trace.Span, name string, size int, err error) {
	if span.IsRecording() {
		span.SetAttributes(operationAttributes(name, size)...)
		if failed(err) {
			kind, code := errorType(err)
			span.SetAttributes(semconv.ErrorTypeKey.String(kind))
			if code != "" {
				span.SetAttributes(semconv.DBResponseStatusCode(code))
			}
			span.SetStatus(codes.Error, kind)
		}
	}
	span.End()
}

// record records how long a call took, if that was asked for.
func (t *Tracer) record(ctx context.Context, name string, began time.Time, err error) {
	if t.duration == nil {
		return
	}
	// How many commands a batch has is for spans: the conventions do not have it here, and each
	// number would be a series.
	attrs := append(t.set[:len(t.set):len(t.set)], semconv.DBOperationName(t.bounded(t.names, name, other)))
	if failed(err) {
		kind, code := errorType(err)
		if code != "" { // a word of the server's, or of a script; the others are few
			if kind = t.bounded(t.errors, kind, otherError); kind == otherError {
				code = ""
			}
		}
		attrs = append(attrs, semconv.ErrorTypeKey.String(kind))
		if code != "" {
			attrs = append(attrs, semconv.DBResponseStatusCode(code))
		}
	}
	t.duration.Record(ctx, time.Since(began).Seconds(), metric.WithAttributeSet(attribute.NewSet(attrs...)))
}

// bounded returns the name, or another when there are too many in all.
func (t *Tracer) bounded(all map[string]bool, name, another string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !all[name] {
		if len(all) >= mostNames {
			return another
		}
		all[name] = true
	}
	return name
}

func operationAttributes(name string, size int) []attribute.KeyValue {
	all := []attribute.KeyValue{semconv.DBOperationName(name)}
	if size > 1 {
		all = append(all, semconv.DBOperationBatchSize(size))
	}
	return all
}

// attributes returns what redial knows of a call that ended with err.
func (c *call) attributes(err error) []attribute.KeyValue {
	c.mu.Lock()
	attempts, waited := max(c.attempts, 1), c.waited
	c.mu.Unlock()
	var all []attribute.KeyValue
	var e *redial.Error
	if errors.As(err, &e) {
		attempts = e.Attempts
		switch {
		case errors.Is(err, redial.ErrOutcomeUnknown):
			all = append(all, keyOutcome.String(unknown))
		case errors.Is(err, redial.ErrUnavailable), errors.Is(err, redial.ErrClosed):
			all = append(all, keyOutcome.String(notRun))
		}
	}
	if attempts != 1 {
		all = append(all, keyAttempts.Int(attempts))
	}
	if waited > 0 {
		all = append(all, keyWaited.Float64(waited.Seconds()))
	}
	return all
}

func failed(err error) bool { return err != nil && !errors.Is(err, redis.Nil) }

// errorType returns the value of error.type, and the code of a reply.
func errorType(err error) (kind, code string) {
	var reply redis.Error
	switch {
	case errors.Is(err, redial.ErrOutcomeUnknown):
		return "redial.outcome_unknown", ""
	case errors.Is(err, redial.ErrUnavailable):
		return "redial.unavailable", ""
	case errors.Is(err, redial.ErrClosed):
		return "redial.closed", ""
	case errors.Is(err, redial.ErrOnceMismatch):
		return "redial.once_mismatch", ""
	case errors.Is(err, redial.ErrOnceUnsupported):
		return "redial.once_unsupported", ""
	case errors.Is(err, context.Canceled):
		return "canceled", ""
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout", ""
	case errors.As(err, &reply):
		code = prefix(reply.Error())
		return code, code
	}
	return otherError, ""
}

// prefix returns the first word of a reply, by which servers name errors, or ERR.
func prefix(reply string) string {
	word, _, _ := strings.Cut(reply, " ")
	for _, r := range word {
		if (r < 'A' || r > 'Z') && r != '_' {
			return "ERR"
		}
	}
	if word == "" || len(word) > longestName {
		return "ERR"
	}
	return word
}

const (
	other       = "OTHER"
	otherError  = "_OTHER"
	longestName = 40 // of a command or an error
)

// operation returns the name of a command in capitals, OTHER when it is not one that a
// command can have: it may be anything that a program has made of what it was sent.
func operation(cmd redis.Cmder) string {
	name := cmd.Name()
	if name == "" || len(name) > longestName {
		return other
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r) {
			return other
		}
	}
	return strings.ToUpper(name)
}

// batch returns the name of a batch and how many commands there are in it; no name means
// that it sets up a connection.
func batch(cmds []redis.Cmder) (name string, size int) {
	if len(cmds) == 0 {
		return "", 0
	}
	if cmds[0].Name() == "multi" {
		return "MULTI", max(len(cmds)-2, 0)
	}
	setup := true
	for _, cmd := range cmds {
		setup = setup && isSetup(cmd)
		switch one := operation(cmd); {
		case size == 0:
			name = one
		case name != one:
			name = ""
		}
		size++
	}
	switch {
	case setup:
		return "", size
	case size == 1:
		return name, size
	case name == "":
		return "PIPELINE", size
	}
	return "PIPELINE " + name, size
}

// isSetup reports whether a command is of the kind by which connections are set up.
func isSetup(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "hello", "auth", "client", "select", "readonly":
		return true
	}
	return false
}
