package compat

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/go-redis/redis_rate/v10"
	"github.com/stretchr/testify/assert"

	"github.com/redial-go/redial"
)

// TestRedisRate: everybody is answered, the restart gives nobody a fresh limit, and
// it costs at most what was on the wire.
func TestRedisRate(t *testing.T) {
	server := startServer(t)
	limit := redis_rate.PerHour(workers * some * 3 / 2) // used up after the restart, not before
	allowed := make(map[*rider]*atomic.Int64)
	goRedis := bare(t, server)
	strict := resilient(t, server)
	strict.name = "redial, nothing twice"
	patient := resilient(t, server, redial.WithRetry(repeating))
	for _, r := range []*rider{goRedis, strict, patient} {
		allowed[r] = new(atomic.Int64)
	}
	ride(t, server, func(ctx context.Context, r *rider) error {
		res, err := redis_rate.NewLimiter(r.rdb).Allow(ctx, r.name, limit)
		if err == nil {
			allowed[r].Add(int64(res.Allowed))
		}
		return err
	}, goRedis, strict, patient)

	unharmed(t, patient)
	assert.Zero(t, strict.failed, "the first: %v", strict.first)
	assert.LessOrEqual(t, strict.unknown, workers, "only what was on the wire is unknown")
	for _, r := range []*rider{strict, patient} {
		assert.LessOrEqual(t, allowed[r].Load(), int64(limit.Burst), "%s allows too many", r.name)
		assert.GreaterOrEqual(t, allowed[r].Load(), int64(limit.Burst-workers), "%s allows too few", r.name)
	}
}
