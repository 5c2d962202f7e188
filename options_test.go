package redial

import (
	"context"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/redial-go/redial/internal/wire"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOptions_Invalid_AreReportedByName(t *testing.T) {
	good := &redis.Options{Addr: "127.0.0.1:1"}
	for _, tc := range []struct {
		opt  *redis.Options
		with Option
		want string
	}{
		{nil, WithGrace(0), "options are nil"},
		{good, nil, "option 1 of 1 is nil"},
		{good, WithHeartbeat(0, time.Second), "WithHeartbeat interval is 0s"},
		{good, WithHeartbeat(time.Second, 0), "WithHeartbeat timeout is 0s"},
		{good, WithHeartbeat(-time.Second, time.Second), "WithHeartbeat interval is -1s"},
		{good, WithHeartbeat(time.Second, 1<<62), "WithHeartbeat timeout is"},
		{good, WithHeartbeatMisses(0), "WithHeartbeatMisses is 0"},
		{good, WithHeartbeatMisses(1000), "WithHeartbeatMisses is 1000"},
		{good, WithBackoff(nil), "WithBackoff function is nil"},
		{good, WithBackoff(func() backoff.BackOff { return nil }), "WithBackoff function returns nil"},
		{good, WithGrace(-1), "WithGrace is -1ns"},
		{good, WithGrace(25 * time.Hour), "WithGrace is 25h0m0s"},
		{good, WithMaxWaiting(-1), "WithMaxWaiting is -1"},
		{good, WithRetry(nil), "WithRetry policy is nil"},
		{good, WithRefusals(nil), "WithRefusals function is nil"},
		{good, WithIdleCheck(-1), "WithIdleCheck is -1ns"},
		{good, WithIdleCheck(1000 * time.Hour), "WithIdleCheck is 1000h0m0s"},
		{good, WithOnceTTL(0), "WithOnceTTL is 0s"},
		{good, WithOnceTTL(time.Millisecond), "WithOnceTTL is 1ms"},
		{good, WithOnceTTL(1000 * time.Hour), "WithOnceTTL is 1000h0m0s"},
		{good, WithLogger(nil), "WithLogger logger is nil"},
		{good, WithOnStateChange(nil), "WithOnStateChange callback is nil"},
		{good, WithOuterHook(nil), "WithOuterHook hook is nil"},
		{good, WithInstrument(nil), "WithInstrument function is nil"},
		{good, WithObserver(nil), "WithObserver observer is nil"},
		{good, WithObserver(42), "WithObserver observer, a int, implements none"},
	} {
		t.Run(tc.want, func(t *testing.T) {
			c, err := Connect(t.Context(), tc.opt, tc.with)
			require.ErrorContains(t, err, tc.want)
			assert.Nil(t, c)
			assert.PanicsWithError(t, err.Error(), func() { NewClient(tc.opt, tc.with) })
		})
	}
	_, err := Connect(t.Context(), good, WithGrace(-1), WithMaxWaiting(-1))
	assert.ErrorContains(t, err, "WithGrace")
	assert.ErrorContains(t, err, "WithMaxWaiting")
}

// What go-redis panics about is an error too, and nothing half-started remains.
func TestOptions_GoRedisPanics_AreReported(t *testing.T) {
	_, err := Connect(t.Context(), &redis.Options{
		Addr: "127.0.0.1:1", PoolSize: -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	assert.ErrorContains(t, err, "redial: ")
}

// Every setting has an option that changes it.
func TestOptions_ReachEveryField(t *testing.T) {
	cfg, err := newConfig(nil)
	require.NoError(t, err)
	base := reflect.ValueOf(*cfg)
	changed, err := newConfig([]Option{
		WithHeartbeat(2*time.Second, 3*time.Second), WithHeartbeatMisses(4),
		WithBackoff(func() backoff.BackOff { return &backoff.ZeroBackOff{} }),
		WithGrace(6 * time.Second), WithMaxWaiting(7), WithRetry(RetryNever), WithIdleCheck(8 * time.Second), WithOnceTTL(time.Minute), WithRefusals(func(error) bool { return false }),
		WithLogger(discard), WithOnStateChange(func(Event) {}), WithOuterHook(passing{}),
		WithObserver(new(observed)),
	})
	require.NoError(t, err)
	v := reflect.ValueOf(*changed)
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if v.Field(i).Kind() == reflect.Func {
			assert.NotEqual(t, base.Field(i).Pointer(), v.Field(i).Pointer(), name)
			continue
		}
		if v.Field(i).Kind() == reflect.Slice {
			assert.NotZero(t, v.Field(i).Len(), name)
			continue
		}
		assert.False(t, base.Field(i).Equal(v.Field(i)), "no option changes %s", name)
	}
}

func TestOptions_ArePrivateToTheClient(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		opt.MaxRetries = 7
		before := *opt
		c := NewClient(opt)
		defer c.Close()
		ready(t, c)
		opt.Addr, opt.Password = "changed", "changed"
		require.NoError(t, c.Ping(t.Context()).Err())
		assert.Equal(t, before.Addr, c.Options().Addr)
		assert.Zero(t, c.Options().MaxRetries, "go-redis must not retry behind our back")
	})
}

func TestWithTimeout_KeepsProtectionAndHooks(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		c := NewClient(opt)
		defer c.Close()
		seen := &recorder{}
		c.AddHook(seen)
		clone := c.WithTimeout(time.Minute).WithTimeout(500 * time.Millisecond)
		ready(t, c)
		require.NoError(t, clone.Set(t.Context(), "k", "v", 0).Err())
		assert.Equal(t, []string{"set", "hello"}, seen.names())
		n.Kill()
		require.NoError(t, clone.WaitForState(t.Context(), StateReconnecting))
		time.AfterFunc(time.Second, n.Start)
		require.NoError(t, clone.Set(t.Context(), "k", "v", 0).Err(), "rides out the outage")
		assert.Equal(t, 500*time.Millisecond, clone.Options().ReadTimeout)
	})
}

func TestContextOptions(t *testing.T) {
	ctx := context.Background()
	assert.Equal(t, patience{}, patienceOf(ctx))
	assert.Equal(t, patience{failFast: true}, patienceOf(FailFast(ctx)))
	assert.Equal(t, patience{own: time.Second}, patienceOf(WaitFor(ctx, time.Second)))
	assert.Equal(t, patience{failFast: true}, patienceOf(WaitFor(ctx, -1)))
	assert.Equal(t, patience{own: time.Second}, patienceOf(WaitFor(FailFast(ctx), time.Second)))
	assert.Equal(t, patience{failFast: true}, patienceOf(FailFast(WaitFor(ctx, time.Second))), "the innermost counts")
}

// Every option of a failover client is either one of the client's, which gets it, or
// concerns the sentinels, routing and nodes.
func TestFailoverOptions_AllReachTheClient(t *testing.T) {
	elsewhere := []string{"MasterName", "SentinelAddrs", "SentinelUsername", "SentinelPassword", "RouteByLatency",
		"RouteByLatencyTolerance", "RouteRandomly", "ReplicaOnly", "UseDisconnectedReplicas", "FailingTimeoutSeconds", "Dialer"}
	opt := &redis.FailoverOptions{}
	v := reflect.ValueOf(opt).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Int, reflect.Int64:
			f.SetInt(7)
		case reflect.Bool:
			f.SetBool(true)
		}
	}
	opt.SentinelAddrs = []string{"127.0.0.1:1"}
	got := reflect.ValueOf(ledOptions(opt)).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if slices.Contains(elsewhere, name) {
			continue
		}
		f := got.FieldByName(name)
		if assert.True(t, f.IsValid(), name) && f.Comparable() {
			assert.True(t, f.Equal(v.Field(i)), name)
		}
	}
	assert.Equal(t, "FailoverClient", ledOptions(opt).Addr, "as go-redis has it")
}

// A client for the master and its replicas gets the options that go-redis would give it.
func TestFailoverOptions_OfClusterAreThoseOfGoRedis(t *testing.T) {
	for name, opt := range map[string]*redis.FailoverOptions{
		"none":         {},
		"replica only": {ReplicaOnly: true},
		"retries":      {MaxRetries: 7},
		"no retries":   {MaxRetries: -1},
		"by latency":   {RouteByLatency: true, RouteByLatencyTolerance: time.Second},
		"randomly":     {RouteRandomly: true, DialTimeout: time.Minute, PoolSize: 3, ClientName: "c", Username: "u", Password: "p"},
	} {
		t.Run(name, func(t *testing.T) {
			opt.MasterName, opt.SentinelAddrs = "m", []string{"127.0.0.1:1"}
			bare := redis.NewFailoverClusterClient(opt)
			defer bare.Close()
			like := redis.NewClusterClient(shardOptions(opt))
			defer like.Close()
			want, got := reflect.ValueOf(bare.Options()).Elem(), reflect.ValueOf(like.Options()).Elem()
			for i := range want.NumField() {
				field := want.Type().Field(i)
				if !field.IsExported() || field.Name == "ClusterSlots" || field.Type.Kind() == reflect.Func {
					continue
				}
				assert.Equal(t, want.Field(i).Interface(), got.Field(i).Interface(), field.Name)
			}
		})
	}
}

func TestFailoverOptions_Invalid_AreReportedByName(t *testing.T) {
	good := func() *redis.FailoverOptions {
		return &redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{"127.0.0.1:1"}}
	}
	for want, spoil := range map[string]func(*redis.FailoverOptions) *redis.FailoverOptions{
		"failover options are nil":                                   func(*redis.FailoverOptions) *redis.FailoverOptions { return nil },
		"to route commands by latency, use NewFailoverClusterClient": func(o *redis.FailoverOptions) *redis.FailoverOptions { o.RouteByLatency = true; return o },
		"to route commands randomly, use NewFailoverClusterClient":   func(o *redis.FailoverOptions) *redis.FailoverOptions { o.RouteRandomly = true; return o },
	} {
		assert.PanicsWithError(t, "redial: "+want, func() { NewFailoverClient(spoil(good())) })
	}
}

// passing is a hook that does nothing.
type passing struct{}

func (passing) DialHook(next redis.DialHook) redis.DialHook { return next }

func (passing) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (passing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// Without the options nothing is different.
func TestOuter_None(t *testing.T) {
	cfg, err := newConfig(nil)
	require.NoError(t, err)
	k, err := cfg.surround(nil)
	require.NoError(t, err)
	assert.Nil(t, k)
	k, err = cfg.deputy(nil, nil)
	require.NoError(t, err)
	assert.Nil(t, k)
	k.on(nil)
}

// Any setting is either refused by the name of its option, or such that a client works
// with it.
func FuzzOptions(f *testing.F) {
	for _, d := range []int64{0, 1, -1, math.MinInt64, math.MaxInt64, int64(time.Second), int64(time.Hour), int64(time.Hour) + 1, int64(24 * time.Hour), int64(time.Millisecond)} {
		for _, n := range []int{0, 1, -1, 100, 101, math.MaxInt, math.MinInt} {
			f.Add(d, int64(time.Second), n)
			f.Add(int64(time.Second), d, n)
		}
	}
	f.Fuzz(func(t *testing.T, d1, d2 int64, n int) {
		a, b := time.Duration(d1), time.Duration(d2)
		var valid []Option
		for name, opt := range map[string]Option{
			"WithHeartbeat":       WithHeartbeat(a, b),
			"WithHeartbeatMisses": WithHeartbeatMisses(n),
			"WithGrace":           WithGrace(a),
			"WithMaxWaiting":      WithMaxWaiting(n),
			"WithIdleCheck":       WithIdleCheck(b),
			"WithBackoff":         WithBackoff(constant(a)),
		} {
			cfg, err := newConfig([]Option{opt})
			if (cfg == nil) != (err != nil) {
				t.Fatalf("%s: %v and %v", name, cfg, err)
			}
			if err != nil {
				for line := range strings.Lines(err.Error()) {
					if !strings.HasPrefix(line, "redial: "+name+" ") {
						t.Fatalf("%s: %v", name, err)
					}
				}
				continue
			}
			valid = append(valid, opt)
		}
		cfg, err := newConfig(valid)
		if err != nil {
			t.Fatal(err)
		}
		g := newBase(cfg, "")
		defer g.end()
		if g.tick() <= 0 || g.beat() <= 0 || early(g.beat()) <= 0 || g.tick() > g.beat() {
			t.Fatalf("looks every %v for heartbeats every %v", g.tick(), g.beat())
		}
		if d := cfg.detection(); d <= cfg.interval || d <= cfg.timeout || d > maxHeartbeat*(maxMisses+1) {
			t.Fatalf("detects after %v", d)
		}
		l := deadEnd(g)
		defer l.outage.end()
		l.Measure(time.Duration(max(d1, 0) / wire.ProofRoundTrips))
		if p := l.ProofTimeout(); p <= 0 || p > cfg.timeout {
			t.Fatalf("an idle connection may take %v of %v", p, cfg.timeout)
		}
		if d := nextDelay(cfg.newBackOff()); d < minDelay {
			t.Fatalf("sleeps for %v", d)
		}
	})
}
