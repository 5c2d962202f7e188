// Package bench compares redial with bare go-redis on a real redis-server.
package bench

import (
	"context"
	"testing"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
	"github.com/redis/go-redis/v9"
)

// The two clients, as every benchmark runs them in turn.
var clients = []struct {
	name string
	open func(*redis.Options) redis.UniversalClient
}{
	{"bare", func(opt *redis.Options) redis.UniversalClient { return redis.NewClient(opt) }},
	{"redial", func(opt *redis.Options) redis.UniversalClient { return redial.NewClient(opt) }},
}

// each runs f as a sub-benchmark with every client, connected and warm.
func each(b *testing.B, f func(b *testing.B, rdb redis.UniversalClient)) {
	server := redialtest.StartServer(b)
	for _, c := range clients {
		b.Run(c.name, func(b *testing.B) {
			rdb := c.open(&redis.Options{Addr: server.Addr()})
			defer func() {
				if err := rdb.Close(); err != nil {
					b.Error(err)
				}
			}()
			if err := rdb.Set(b.Context(), "key", "value", 0).Err(); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			f(b, rdb)
		})
	}
}

func BenchmarkGet(b *testing.B) {
	each(b, func(b *testing.B, rdb redis.UniversalClient) {
		ctx := context.Background()
		for b.Loop() {
			if err := rdb.Get(ctx, "key").Err(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkSet(b *testing.B) {
	each(b, func(b *testing.B, rdb redis.UniversalClient) {
		ctx := context.Background()
		for b.Loop() {
			if err := rdb.Set(ctx, "key", "value", 0).Err(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkIncr(b *testing.B) {
	each(b, func(b *testing.B, rdb redis.UniversalClient) {
		ctx := context.Background()
		for b.Loop() {
			if err := rdb.Incr(ctx, "counter").Err(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkPipeline10(b *testing.B) {
	each(b, func(b *testing.B, rdb redis.UniversalClient) {
		ctx := context.Background()
		for b.Loop() {
			_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
				for range 10 {
					p.Get(ctx, "key")
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkGetParallel(b *testing.B) {
	each(b, func(b *testing.B, rdb redis.UniversalClient) {
		b.RunParallel(func(pb *testing.PB) {
			ctx := context.Background()
			for pb.Next() {
				if err := rdb.Get(ctx, "key").Err(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
