package memnet_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/testkit/memnet"
)

// Whoever waits for a connection in a bubble does so by a timer that go-redis would hand to
// the next, who may be outside.
func TestBubble_KeepsItsTimers(t *testing.T) {
	wait := func(t *testing.T, opt *redis.Options) {
		opt.PoolSize, opt.PipelinePoolSize, opt.PoolTimeout = 1, -1, time.Millisecond
		rdb := redis.NewClient(opt)
		defer rdb.Close()
		held := rdb.Conn()
		defer held.Close()
		require.NoError(t, held.Ping(t.Context()).Err())
		require.ErrorIs(t, rdb.Ping(t.Context()).Err(), redis.ErrPoolTimeout)
	}
	for range 3 {
		memnet.Bubble(t, func(t *testing.T, _ *memnet.Net, opt *redis.Options) { wait(t, opt) })
		n := memnet.New()
		wait(t, &redis.Options{Dialer: n.Dial, Protocol: 2, DisableIdentity: true})
		n.Close()
	}
}
