package overhead

import (
	"context"
	"time"

	"github.com/redis/rueidis"
)

// RueidisGets is Gets with rueidis.
func RueidisGets(c rueidis.Client) Work {
	return func(n int) error {
		ctx := context.Background()
		for range n {
			if err := c.Do(ctx, c.B().Get().Key("key").Build()).Error(); err != nil {
				return err
			}
		}
		return nil
	}
}

// RueidisGetsInTime is GetsInTime with rueidis.
func RueidisGetsInTime(c rueidis.Client) Work {
	return func(n int) error {
		for range n {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			err := c.Do(ctx, c.B().Get().Key("key").Build()).Error()
			cancel()
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// RueidisSets is Sets with rueidis.
func RueidisSets(c rueidis.Client) Work {
	return func(n int) error {
		ctx := context.Background()
		for range n {
			if err := c.Do(ctx, c.B().Set().Key("key").Value("value").Build()).Error(); err != nil {
				return err
			}
		}
		return nil
	}
}

// RueidisPipelines is Pipelines with rueidis.
func RueidisPipelines(c rueidis.Client) Work {
	return func(n int) error {
		ctx := context.Background()
		for range n {
			cmds := make([]rueidis.Completed, pipelined)
			for i := range cmds {
				cmds[i] = c.B().Get().Key("key").Build()
			}
			for _, reply := range c.DoMulti(ctx, cmds...) {
				if err := reply.Error(); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// RueidisParallelGets is ParallelGets with rueidis, which pipelines them by itself.
func RueidisParallelGets(c rueidis.Client) Work {
	return func(n int) error { return inParallel(parallel, n, RueidisGets(c)) }
}
