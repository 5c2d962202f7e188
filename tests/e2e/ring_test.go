package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// newTestRing returns a ring of three servers behind proxies.
func newTestRing(t *testing.T, opts ...redial.Option) (*redial.Ring, []*redialtest.Proxy) {
	t.Helper()
	opt := &redis.RingOptions{Addrs: map[string]string{}}
	var proxies []*redialtest.Proxy
	for i := range 3 {
		p := redialtest.NewProxy(t, redialtest.StartServer(t).Addr())
		proxies = append(proxies, p)
		opt.Addrs[fmt.Sprint("shard", i)] = p.Addr()
	}
	c := redial.NewRing(opt, opts...)
	t.Cleanup(func() { _ = c.Close() })
	return c, proxies
}

// keyOn returns a key that belongs to a shard.
func keyOn(t *testing.T, c *redial.Ring, p *redialtest.Proxy) string {
	t.Helper()
	for i := 0; ; i++ {
		key := fmt.Sprint("key:", i)
		shard, err := c.GetShardClientForKey(key)
		require.NoError(t, err)
		if shard.Options().Addr == p.Addr() {
			return key
		}
	}
}

// A shard that swallows everything is noticed, loses its keys to the others, and gets
// them back.
func TestRing_ShardIsBlackHoled(t *testing.T) {
	t.Parallel()
	c, proxies := newTestRing(t)
	ctx := t.Context()
	key := keyOn(t, c, proxies[0])
	other := keyOn(t, c, proxies[1])
	require.NoError(t, c.Set(ctx, key, 1, 0).Err())
	require.NoError(t, c.Set(ctx, other, 1, 0).Err())
	proxies[0].Hang()
	began := time.Now()
	for time.Since(began) < 3*time.Second {
		sent := time.Now()
		require.NoError(t, c.Get(ctx, other).Err())
		assert.Less(t, time.Since(sent), 500*time.Millisecond, "a command for another shard is held up")
		if c.Len() < 3 {
			break
		}
	}
	require.NoError(t, c.Set(ctx, key, 2, 0).Err())
	took := time.Since(began)
	t.Logf("the shard was taken out after %v", took)
	assert.Less(t, took, 3500*time.Millisecond)
	assert.Equal(t, redial.StateConnected, c.State())
	proxies[0].Restore()
	require.Eventually(t, func() bool { return c.Len() == 3 }, 3*time.Second, time.Millisecond)
	assert.Equal(t, "1", c.Get(ctx, key).Val(), "as it was on that shard")
}

// While every shard is down nothing panics, and what was asked for is done later.
func TestRing_AllShardsAreDown(t *testing.T) {
	t.Parallel()
	c, proxies := newTestRing(t)
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "key", 1, 0).Err())
	for _, p := range proxies {
		p.Refuse()
	}
	require.Eventually(t, func() bool { return c.Len() == 0 && c.State() == redial.StateReconnecting }, 10*time.Second, time.Millisecond)
	sub := c.Subscribe(ctx, "news")
	defer sub.Close()
	psub := c.PSubscribe(ctx, "news*")
	defer psub.Close()
	done := make(chan error, 2)
	go func() { done <- c.Set(ctx, "key", 2, 0).Err() }()
	go func() { done <- c.Publish(ctx, "nobody", "hello").Err() }()
	for _, p := range proxies {
		p.Restore()
	}
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	await(t, func() error { return c.Publish(ctx, "news", "hello").Err() }, received(sub), 5*time.Second)
	require.NoError(t, c.Close())
	assert.NotPanics(t, func() { _ = c.Subscribe(ctx, "news").Close() }, "on a closed ring")
}
