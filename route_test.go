package redial

import (
	"fmt"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A subscription that is made while a ring knows no shard goes to the one that has the
// channel.
func TestShardFor(t *testing.T) {
	c := NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1", "b": "127.0.0.1:2", "c": "127.0.0.1:3"}})
	defer c.Close()
	for i := range 100 {
		key := fmt.Sprintf("k%d{tag%d}", i, i)
		want, err := c.GetShardClientForKey(key)
		require.NoError(t, err)
		assert.Same(t, want, c.nodes.shardFor(c.Options(), key, nil))
	}
}

// What a part has run is not run again because another node was removed.
func TestParts_NodeIsRemoved(t *testing.T) {
	p := &parts{}
	p.note(nil)
	p.note(redis.ErrClosed)
	assert.Equal(t, unknown, outcomeOf(p.verdict(&terms{}, redis.ErrClosed)))
}
