package once

import (
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
)

// A server in memory, whose scripts have no cmsgpack, does for tests of callers.
func TestOnce_ServerInMemory(t *testing.T) {
	m := miniredis.RunT(t)
	for _, protocol := range []int{2, 3} {
		c := testkit.Connect(t, &redis.Options{Addr: m.Addr(), Protocol: protocol})
		m.FlushAll()
		ctx := redial.Once(t.Context(), "id")
		for range 2 {
			n, err := c.Incr(ctx, "n").Result()
			require.NoError(t, err)
			require.EqualValues(t, 1, n)
			id, err := c.XAdd(redial.Once(t.Context(), "xadd"), &redis.XAddArgs{Stream: "s", Values: []any{"f", ":s5"}}).Result()
			require.NoError(t, err)
			require.Len(t, c.XRange(t.Context(), "s", id, id).Val(), 1)
			all, err := c.XRange(redial.Once(t.Context(), "xrange"), "s", "-", "+").Result()
			require.NoError(t, err)
			require.Equal(t, []redis.XMessage{{ID: id, Values: map[string]any{"f": ":s5"}}}, all)
			reply, err := incrThrice(redial.Once(t.Context(), "tx"), c.TxPipelined, "m")
			require.NoError(t, err)
			require.Equal(t, "1", reply)
			_, err = c.SetArgs(redial.Once(t.Context(), "set"), "k", "v", redis.SetArgs{Mode: "NX", Get: false}).Result()
			require.NoError(t, err)
		}
		require.ErrorIs(t, c.Incr(ctx, "other").Err(), redial.ErrOnceMismatch)
	}
}
