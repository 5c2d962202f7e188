package compat

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// connOpt is an asynq.RedisConnOpt. asynq closes the clients that it makes.
type connOpt func() redis.UniversalClient

func (o connOpt) MakeRedisClient() any { return o() }

// redialOpt is that of docs/INTEGRATIONS.md.
type redialOpt struct{ *redis.Options }

func (o redialOpt) MakeRedisClient() any { return redial.NewClient(o.Options) }

// silent is an asynq.Logger.
type silent struct{}

func (silent) Debug(...any) {}
func (silent) Info(...any)  {}
func (silent) Warn(...any)  {}
func (silent) Error(...any) {}
func (silent) Fatal(...any) {}

// errorsOf is an asynq.Logger that keeps its errors.
type errorsOf struct {
	silent
	lines *[]string
}

func (l errorsOf) Error(args ...any) { *l.lines = append(*l.lines, fmt.Sprint(args...)) }

// tasks is a queue of asynq with its worker, and what went through them.
type tasks struct {
	client *asynq.Client
	queue  string
	number atomic.Int64

	mu        sync.Mutex
	enqueued  map[string]bool // acknowledged
	processed map[string]int  // how often
	changed   chan struct{}   // has room for one; told when processed changed
}

func newTasks(t *testing.T, queue string, producer, consumer connOpt) *tasks {
	t.Helper()
	q := &tasks{
		client: asynq.NewClient(producer), queue: queue,
		enqueued: make(map[string]bool), processed: make(map[string]int), changed: make(chan struct{}, 1),
	}
	t.Cleanup(func() { assert.NoError(t, q.client.Close()) })
	worker := asynq.NewServer(consumer, asynq.Config{
		Concurrency: workers, Queues: map[string]int{queue: 1}, TaskCheckInterval: pace, Logger: silent{},
	})
	require.NoError(t, worker.Start(asynq.HandlerFunc(q.process)))
	t.Cleanup(worker.Shutdown)
	return q
}

// process takes longer than it takes to enqueue, so that tasks wait when the server
// dies.
func (q *tasks) process(_ context.Context, task *asynq.Task) error {
	time.Sleep(5 * pace)
	q.mu.Lock()
	q.processed[string(task.Payload())]++
	q.mu.Unlock()
	select {
	case q.changed <- struct{}{}:
	default:
	}
	return nil
}

// enqueue enqueues a new task. Its client may repeat itself: the queue takes a task
// ID once, so a conflict of a new one says that the task is in the queue already.
func (q *tasks) enqueue(ctx context.Context) error {
	id := fmt.Sprint(q.number.Add(1))
	_, err := q.client.EnqueueContext(ctx, asynq.NewTask("work", []byte(id)), asynq.TaskID(id), asynq.Queue(q.queue))
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.enqueued[id] = true
	return nil
}

// missing returns the tasks that were acknowledged and are not processed.
func (q *tasks) missing() (ids []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id := range q.enqueued {
		if q.processed[id] == 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// TestAsynq: every task that was acknowledged is processed, with a client and a
// worker that live through the restart.
func TestAsynq(t *testing.T) {
	server := startServer(t)
	goRedis, patient := &rider{name: "go-redis", sits: true}, &rider{name: "redial"}
	opt := &redis.Options{Addr: server.Addr()}
	plain := connOpt(func() redis.UniversalClient { return redis.NewClient(opt) })
	queues := map[*rider]*tasks{
		goRedis: newTasks(t, "go-redis", plain, plain),
		patient: newTasks(t, "redial",
			func() redis.UniversalClient { return redial.NewClient(opt, redial.WithRetry(repeating)) },
			func() redis.UniversalClient { return redial.NewClient(opt) }), // must not take two tasks for one
	}
	ride(t, server, func(ctx context.Context, r *rider) error { return queues[r].enqueue(ctx) }, goRedis, patient)

	unharmed(t, patient)
	q := queues[patient]
	timeout := time.After(5 * time.Second)
	for late := false; len(q.missing()) > 0 && !late; {
		select {
		case <-q.changed:
		case <-timeout:
			late = true
		}
	}
	// What the server had handed out when it died, and nobody got, asynq hands out
	// again when its lease ends, which takes it a minute and a half.
	inspector := asynq.NewInspector(plain)
	defer func() { assert.NoError(t, inspector.Close()) }()
	leased := 0
	for _, id := range q.missing() {
		info, err := inspector.GetTaskInfo(q.queue, id)
		if assert.NoError(t, err, "task %s was acknowledged and is lost", id) && assert.Equal(t, asynq.TaskStateActive, info.State, "task %s", id) {
			leased++
		}
	}
	assert.LessOrEqual(t, leased, workers)
	t.Logf("%d tasks acknowledged with redial, %d of them still leased to nobody", len(q.enqueued), leased)
}

// seeing is a hook that notes the last error of a call.
type seeing struct{ last *atomic.Pointer[error] }

func (h seeing) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h seeing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err != nil {
			h.last.Store(&err)
		}
		return err
	}
}

func (h seeing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// TestAsynq_FlattensErrors: of an error of redial asynq hands on nothing but the text. A
// hook outside sees what it was.
func TestAsynq_FlattensErrors(t *testing.T) {
	server := startServer(t)
	var last atomic.Pointer[error]
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()}, redial.WithGrace(0), redial.WithOuterHook(seeing{&last}))
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
	require.NoError(t, rdb.WaitReady(t.Context())) // no command waits
	client := asynq.NewClientFromRedisClient(rdb)
	_, err := client.Enqueue(asynq.NewTask("work", nil), asynq.Queue("queue"), asynq.TaskID("1"))
	require.NoError(t, err)
	server.Kill()
	_, err = client.Enqueue(asynq.NewTask("work", nil), asynq.Queue("queue"), asynq.TaskID("2"))
	require.ErrorContains(t, err, "nothing ran")
	assert.NotErrorIs(t, err, redial.ErrUnavailable, "then the documents need not say so any more")
	assert.False(t, redial.SafeToRetry(err))
	require.NotNil(t, last.Load())
	assert.ErrorIs(t, *last.Load(), redial.ErrUnavailable)
	assert.True(t, redial.SafeToRetry(*last.Load()))
}

// TestAsynq_LongOutage: asynq's server asks for the next task without a pause while that fails,
// and does not spin.
func TestAsynq_LongOutage(t *testing.T) {
	server := startServer(t)
	const grace = 50 * time.Millisecond
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()}, redial.WithGrace(grace))
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
	require.NoError(t, rdb.WaitReady(t.Context()))
	worker := asynq.NewServerFromRedisClient(rdb, asynq.Config{Concurrency: 1, TaskCheckInterval: pace, Logger: silent{}})
	require.NoError(t, worker.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error { return nil })))
	t.Cleanup(worker.Shutdown)
	server.Kill()
	require.NoError(t, rdb.WaitForState(t.Context(), redial.StateReconnecting))
	time.Sleep(grace + 3*time.Second)
	t.Logf("refused in three seconds: %d", rdb.Stats().Refused)
	assert.Less(t, rdb.Stats().Refused, uint64(10000))
}

// TestAsynq_ConnOpt: what an asynq.RedisConnOpt makes has the options it was made with, and
// asynq closes it. What a scheduler was given it leaves open, and logs that as an error,
// whatever the client.
func TestAsynq_ConnOpt(t *testing.T) {
	server := redialtest.StartServer(t, "--requirepass", "secret")
	opt := &redis.Options{Addr: server.Addr(), Password: "secret", DB: 3, PoolSize: 2}
	var made []*redial.Client
	connect := connOpt(func() redis.UniversalClient {
		made = append(made, redialOpt{opt}.MakeRedisClient().(*redial.Client))
		return made[len(made)-1]
	})
	client := asynq.NewClient(connect)
	_, err := client.Enqueue(asynq.NewTask("work", nil), asynq.TaskID("1"))
	require.NoError(t, err)
	require.NoError(t, client.Close())

	var logged []string
	scheduler := asynq.NewScheduler(connect, &asynq.SchedulerOpts{Logger: errorsOf{lines: &logged}})
	require.NoError(t, scheduler.Start())
	scheduler.Shutdown()
	assert.Empty(t, logged)
	require.Len(t, made, 2, "one each")
	for _, rdb := range made {
		assert.Equal(t, redial.StateClosed, rdb.State())
		assert.Equal(t, 2, rdb.Options().PoolSize)
	}

	goRedis, patient := redis.NewClient(opt), redial.NewClient(opt)
	for _, rdb := range []redis.UniversalClient{goRedis, patient} {
		n, err := rdb.LLen(t.Context(), "asynq:{default}:pending").Result()
		require.NoError(t, err)
		assert.EqualValues(t, 1, n, "in database 3")
		logged = nil
		scheduler = asynq.NewSchedulerFromRedisClient(rdb, &asynq.SchedulerOpts{Logger: errorsOf{lines: &logged}})
		require.NoError(t, scheduler.Start())
		scheduler.Shutdown()
		require.Len(t, logged, 1)
		assert.Contains(t, logged[0], "redis connection is shared")
		require.NoError(t, rdb.Ping(t.Context()).Err(), "it is open")
		require.NoError(t, rdb.Close())
	}
}
