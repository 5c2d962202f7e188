package redialprom_test

import (
	"log"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialprom"
)

func Example() {
	seen := redialprom.NewObserver()
	rdb := redial.NewClient(&redis.Options{Addr: "127.0.0.1:6379"}, redial.WithObserver(seen))
	prometheus.MustRegister(redialprom.NewCollector("cache", rdb, redialprom.WithObserver(seen)))
	http.Handle("GET /metrics", promhttp.Handler())

	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
