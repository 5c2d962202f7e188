package e2e

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/internal/testkit/pools"
)

// A connection on which a node was found to answer goes to the pool of that node: none is
// set up beside it, neither at first nor after an outage.
func TestNodes_OneSetUp(t *testing.T) {
	t.Parallel()
	for name, client := range map[string]func(addr string) redial.UniversalClient{
		"cluster": func(addr string) redial.UniversalClient {
			return redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{addr}})
		},
		"ring": func(addr string) redial.UniversalClient {
			return redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"shard": addr}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes, addrs := fakeCluster(t, 1, nil)
			f := nodes[0]
			c := client(addrs[0])
			t.Cleanup(func() { assert.NoError(t, c.Close()) })
			testkit.WaitReady(t, c)
			for range 3 {
				require.NoError(t, c.Set(t.Context(), "key", 1, 0).Err())
			}
			assert.Equal(t, 1, f.Dials(), "dials at first")
			assert.Equal(t, 1, f.Executed("hello"), "and greetings")
			pools.NeedLook(t) // or who finds the dead connection is late for the new one
			for outage := 1; ; outage++ {
				f.Kill()
				require.NoError(t, waitState(c, redial.StateReconnecting, 3*time.Second))
				dials, greetings := f.Dials(), f.Executed("hello")
				require.NoError(t, f.Start())
				for range 3 {
					require.NoError(t, c.Set(t.Context(), "key", 2, 0).Err())
				}
				dials, greetings = f.Dials()-dials, f.Executed("hello")-greetings
				if dials > 1 && outage < 8 { // an attempt that is slow, on a busy machine, has another beside it
					continue
				}
				assert.Equal(t, 1, dials, "dials after the outage")
				assert.Equal(t, 1, greetings, "and greetings")
				break
			}
		})
	}
}
