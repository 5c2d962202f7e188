package compat

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/alexedwards/scs/goredisstore"
	"github.com/bsm/redislock"
	gocronlock "github.com/go-co-op/gocron-redis-lock/v2"
	"github.com/go-redis/cache/v9"
	"github.com/go-redis/redis_rate/v10"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	fiber "github.com/gofiber/storage/redis/v3"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	sredis "github.com/ulule/limiter/v3/drivers/store/redis"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// integrate holds the lines of docs/INTEGRATIONS.md, one each, as they are there. It need
// only compile.
func integrate(rdb *redial.Client, cfg asynq.Config) []any {
	logger := watermill.NopLogger{}
	all := func(values ...any) []any { return values }
	var list []any
	add := func(values ...any) { list = append(list, all(values...)...) }

	add(asynq.NewClientFromRedisClient(rdb))
	add(asynq.NewServerFromRedisClient(rdb, cfg))
	add(asynq.NewSchedulerFromRedisClient(rdb, nil))
	add(asynq.NewInspectorFromRedisClient(rdb))
	add(asynq.PeriodicTaskManagerOpts{RedisUniversalClient: rdb})
	add(redsync.New(goredis.NewPool(rdb)))
	add(redislock.New(rdb))
	add(cache.New(&cache.Options{Redis: rdb}))
	add(redis_rate.NewLimiter(rdb))
	add(sredis.NewStore(rdb))
	add(redisstream.NewPublisher(redisstream.PublisherConfig{Client: rdb}, logger))
	add(redisstream.NewSubscriber(redisstream.SubscriberConfig{Client: rdb}, logger))
	add(fiber.NewFromConnection(rdb))
	add(goredisstore.New(rdb.Client))
	add(fx.Hook{OnStart: rdb.WaitReady, OnStop: rdb.Drain})
	add(gocronlock.NewRedisLockerAlways(rdb, gocronlock.WithTries(1)))
	add(redial.WithInstrument(func(rdb redis.UniversalClient) error { return redisotel.InstrumentTracing(rdb) }))
	add(redial.WithInstrument(func(rdb redis.UniversalClient) error { return redisotel.InstrumentMetrics(rdb) }))
	return list
}

// Every line of docs/INTEGRATIONS.md that says so is compiled here, and every library that
// is there has its line.
func TestIntegrations_LinesAreCompiled(t *testing.T) {
	_ = integrate
	text, err := os.ReadFile("../docs/INTEGRATIONS.md")
	require.NoError(t, err)
	source, err := os.ReadFile("integrations_test.go")
	require.NoError(t, err)
	required, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	compiled := 0
	for _, row := range regexp.MustCompile(`(?m)^\| \[.*$`).FindAllString(string(text), -1) {
		cells := strings.Split(strings.Trim(row, "| "), " | ")
		require.Len(t, cells, 5, row)
		library := regexp.MustCompile(`\]\(https://(?:pkg\.go\.dev|github\.com)/([^)]+)\)`).FindStringSubmatch(cells[0])
		version := regexp.MustCompile(`(?:^| )(v\d[\w.-]*)`).FindStringSubmatch(cells[0])
		require.Len(t, library, 2, row)
		here := version != nil && strings.Contains(string(required), library[1]+" "+version[1]+"\n")
		switch cells[3] {
		case "compiled", "through kill -9":
			assert.True(t, here, "%s is not in go.mod, or not in this version", cells[0])
			for _, line := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[2], -1) {
				assert.True(t, strings.Contains(string(source), "add("+line[1]+")\n"), "not compiled: %s", line[1])
				compiled++
			}
		case "read":
			assert.False(t, here, "%s is in go.mod", cells[0])
		default:
			t.Errorf("checked how? %s", row)
		}
	}
	assert.Equal(t, strings.Count(string(source), "\n\tadd("), compiled, "lines compiled, and lines in the document")
}

// TestSCS: sessions are written and read.
func TestSCS(t *testing.T) {
	server := startServer(t)
	goRedis, patient := bare(t, server), resilient(t, server, redial.WithRetry(redial.RetryIdempotent))
	stores := map[*rider]*goredisstore.RedisStore{
		goRedis: goredisstore.New(goRedis.rdb.(*redis.Client)),
		patient: goredisstore.New(patient.rdb.(*redial.Client).Client),
	}
	ride(t, server, func(ctx context.Context, r *rider) error {
		s := stores[r]
		if err := s.CommitCtx(ctx, "token", []byte("session"), time.Now().Add(time.Hour)); err != nil {
			return err
		}
		got, found, err := s.FindCtx(ctx, "token")
		if err == nil {
			assert.True(t, found)
			assert.Equal(t, "session", string(got))
		}
		return err
	}, goRedis, patient)
	unharmed(t, patient)
}

// TestFiberStorage: what is stored is there.
func TestFiberStorage(t *testing.T) {
	server := startServer(t)
	goRedis, patient := bare(t, server), resilient(t, server, redial.WithRetry(redial.RetryIdempotent))
	stores := map[*rider]*fiber.Storage{
		goRedis: fiber.NewFromConnection(goRedis.rdb),
		patient: fiber.NewFromConnection(patient.rdb),
	}
	ride(t, server, func(ctx context.Context, r *rider) error {
		s := stores[r]
		if err := s.SetWithContext(ctx, "key", []byte("value"), time.Hour); err != nil {
			return err
		}
		got, err := s.GetWithContext(ctx, "key")
		if err == nil {
			assert.Equal(t, "value", string(got))
		}
		return err
	}, goRedis, patient)
	unharmed(t, patient)
}

// TestFx: a program starts when the server is there, and closes the client when it ends.
func TestFx(t *testing.T) {
	server := startServer(t)
	proxy := redialtest.NewProxy(t, server.Addr())
	proxy.Refuse()
	rdb := redial.NewClient(&redis.Options{Addr: proxy.Addr()})
	time.AfterFunc(200*time.Millisecond, proxy.Restore)
	app := fxtest.New(t, fx.Invoke(func(lc fx.Lifecycle) {
		hook := fx.Hook{
			OnStart: rdb.WaitReady, // leave it out to start without Redis
			OnStop:  rdb.Drain,
		}
		lc.Append(hook)
	}))
	app.RequireStart()
	assert.Equal(t, redial.StateConnected, rdb.State())
	app.RequireStop()
	assert.Equal(t, redial.StateClosed, rdb.State())
}

// TestFx_Outage: what fx has built and started gets on, and what it ends closes its client.
func TestFx_Outage(t *testing.T) {
	server := startServer(t)
	opt := &redis.Options{Addr: server.Addr()}
	goRedis, patient := &rider{name: "go-redis", sits: true}, &rider{name: "redial"}
	type count func(context.Context) error // what the program does
	counts, apps := make(map[*rider]count), make(map[*rider]*fxtest.App)
	for r, provide := range map[*rider]any{
		goRedis: func(lc fx.Lifecycle) redis.UniversalClient {
			rdb := redis.NewClient(opt)
			lc.Append(fx.Hook{
				OnStart: func(ctx context.Context) error { return rdb.Ping(ctx).Err() },
				OnStop:  func(context.Context) error { return rdb.Close() },
			})
			return rdb
		},
		patient: func(lc fx.Lifecycle) redis.UniversalClient {
			rdb := redial.NewClient(opt, redial.WithRetry(redial.RetryIdempotent))
			lc.Append(fx.Hook{OnStart: rdb.WaitReady, OnStop: rdb.Drain})
			return rdb
		},
	} {
		var do count
		apps[r] = fxtest.New(t, fx.Provide(provide, func(rdb redis.UniversalClient) count {
			return func(ctx context.Context) error { return rdb.Set(ctx, r.name, "value", 0).Err() }
		}), fx.Populate(&do, &r.rdb))
		apps[r].RequireStart()
		counts[r] = do
	}
	ride(t, server, func(ctx context.Context, r *rider) error { return counts[r](ctx) }, goRedis, patient)
	unharmed(t, patient)
	for r, app := range apps {
		app.RequireStop()
		assert.ErrorIs(t, counts[r](t.Context()), redis.ErrClosed, r.name)
	}
}
