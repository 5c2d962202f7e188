package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
)

// producer adds jobs. Its fields belong to one goroutine.
type producer struct {
	rdb    *redial.Client
	logger *slog.Logger
	run    string
	added  int
}

// produce adds a job at a time until ctx ends. A job that may have been added is
// added again with the same id, so that it is there once.
func (p *producer) produce(ctx context.Context) {
	for pause(ctx, every) {
		id := fmt.Sprintf("%s:add:%s:%d", stream, p.run, p.added)
		err := p.rdb.XAdd(redial.Once(ctx, id), &redis.XAddArgs{
			Stream: stream, Values: []any{"run", p.run, "number", p.added},
		}).Err()
		if err != nil {
			p.logger.Warn("job not added yet", "number", p.added, "error", err)
			retrySoon(ctx, p.rdb)
			continue
		}
		p.added++
	}
}
