package main

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// The server hands three jobs to the worker, and the reply is lost. BLPOP would
// have lost the jobs with it.
func TestWork_ReplyLost_JobsAreDone(t *testing.T) {
	m := miniredis.RunT(t)
	proxy := redialtest.NewProxy(t, m.Addr())
	rdb := redial.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer rdb.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	for n := range 3 {
		if err := rdb.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: []any{"run", "r", "number", n}}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	proxy.Match("\r\n>\r\n") // the read of new jobs
	proxy.CutAfterRequest(1)

	w := &worker{rdb: rdb, logger: slog.New(slog.DiscardHandler), name: "w", cursor: "0"}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		w.work(ctx)
	}()
	deadline := time.After(10 * time.Second)
	for done := int64(0); done < 3; {
		select {
		case <-deadline:
			t.Fatalf("%d of 3 jobs done", done)
		case <-time.After(5 * time.Millisecond):
		}
		var err error
		if done, err = rdb.SCard(ctx, doneKey("r")).Result(); err != nil {
			t.Fatal(err)
		}
	}
	left, err := rdb.XLen(ctx, stream).Result()
	if unknown := rdb.Stats().Unknown; err != nil || left != 0 || unknown != 1 {
		t.Errorf("left %d, %v, %d outcomes unknown; want an empty stream and one", left, err, unknown)
	}
	cancel()
	proxy.Refuse() // ends the blocked read
	<-stopped
	if w.handled != 3 {
		t.Errorf("%d deliveries, want 3", w.handled)
	}
}

// The reply to the transaction of a job is lost, and another worker is handed the job: it
// is done once.
func TestHandle_ReplyLostAndHandedOverAgain_IsDoneOnce(t *testing.T) {
	m := miniredis.RunT(t)
	proxy := redialtest.NewProxy(t, m.Addr())
	rdb := redial.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer rdb.Close()
	w := &worker{rdb: rdb, logger: slog.New(slog.DiscardHandler), name: "w", cursor: "0"}
	job := redis.XMessage{ID: "1-1", Values: map[string]any{"run": "r", "number": "7"}}
	proxy.Match("exec")
	proxy.CutAfterRequest(1)
	for range 3 {
		if err := w.handle(t.Context(), job); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := rdb.Get(t.Context(), timesKey("r")).Int(); err != nil || n != 1 {
		t.Errorf("done %d times, %v", n, err)
	}
	if left := proxy.CutAfterRequest(0); left != 0 {
		t.Error("no reply was cut")
	}
}

func TestWork_DataGone_JoinsAgain(t *testing.T) {
	m := miniredis.RunT(t)
	rdb := redial.NewClient(&redis.Options{Addr: m.Addr()})
	defer rdb.Close()
	w := &worker{rdb: rdb, logger: slog.New(slog.DiscardHandler), name: "w", cursor: "0"}
	if _, err := w.next(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.FlushAll()
	_, err := w.next(t.Context())
	if !redis.HasErrorPrefix(err, "NOGROUP") {
		t.Fatalf("got %v, want NOGROUP", err)
	}
	w.explain(err)
	if err := rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: []any{"run", "r", "number", 1}}).Err(); err != nil {
		t.Fatal(err)
	}
	for range 3 { // what is pending, what dead workers left, what is new
		jobs, err := w.next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(jobs) == 1 {
			return
		}
	}
	t.Error("the new job did not come")
}
