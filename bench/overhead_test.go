// Package bench compares redial with bare go-redis, and with rueidis for context,
// on a real redis-server.
package bench

import (
	"testing"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/bench/internal/overhead"
	"github.com/redial-go/redial/redialtest"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// compare runs a task as a sub-benchmark with every client, connected and warm.
func compare(b *testing.B, task overhead.Task, other func(rueidis.Client) overhead.Work) {
	server := redialtest.StartServer(b)
	bare := redis.NewClient(&redis.Options{Addr: server.Addr()})
	ours := redial.NewClient(&redis.Options{Addr: server.Addr()})
	third, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{server.Addr()}, ForceSingleClient: true, DisableCache: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		third.Close()
		for _, c := range []interface{ Close() error }{bare, ours} {
			if err := c.Close(); err != nil {
				b.Error(err)
			}
		}
	})
	if err := bare.Set(b.Context(), "key", "value", 0).Err(); err != nil {
		b.Fatal(err)
	}
	for _, x := range []struct {
		name string
		work overhead.Work
	}{
		{"bare", task.With(bare)},
		{"redial", task.With(ours)},
		{"rueidis", other(third)},
	} {
		b.Run(x.name, func(b *testing.B) {
			if err := x.work(100); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.ResetTimer()
			if err := x.work(b.N); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkGet(b *testing.B)        { compare(b, overhead.Gets, overhead.RueidisGets) }
func BenchmarkGetInTime(b *testing.B)  { compare(b, overhead.GetsInTime, overhead.RueidisGetsInTime) }
func BenchmarkSet(b *testing.B)        { compare(b, overhead.Sets, overhead.RueidisSets) }
func BenchmarkPipeline10(b *testing.B) { compare(b, overhead.Pipelines, overhead.RueidisPipelines) }
func BenchmarkGetParallel(b *testing.B) {
	compare(b, overhead.ParallelGets, overhead.RueidisParallelGets)
}
func BenchmarkGetAutoPipeline(b *testing.B) {
	compare(b, overhead.AutoPipelinedGets, overhead.RueidisParallelGets)
}
