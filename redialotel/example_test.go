package redialotel_test

import (
	"log"

	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialotel"
)

func ExampleNewTracer() {
	tracer := redialotel.NewTracer("cache")
	rdb := redial.NewClient(&redis.Options{Addr: "127.0.0.1:6379"},
		redial.WithOuterHook(tracer), redial.WithObserver(tracer),
	)

	log.Print(rdb)
}

// Together with redisotel: its spans, and what only redial knows.
func ExampleWithAttributesOnly() {
	tracer := redialotel.NewTracer("cache", redialotel.WithAttributesOnly())
	rdb := redial.NewClient(&redis.Options{Addr: "127.0.0.1:6379"},
		redial.WithInstrument(func(rdb redis.UniversalClient) error {
			return redisotel.InstrumentTracing(rdb)
		}),
		redial.WithOuterHook(tracer), redial.WithObserver(tracer),
	)

	log.Print(rdb)
}

func ExampleNewMetrics() {
	metrics, err := redialotel.NewMetrics("cache")
	if err != nil {
		log.Fatal(err)
	}
	rdb := redial.NewClient(&redis.Options{Addr: "127.0.0.1:6379"}, redial.WithObserver(metrics))
	if err := metrics.Watch(rdb); err != nil {
		log.Fatal(err)
	}
}
