package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redial-go/redial"
	"github.com/redis/go-redis/v9"
)

// client is what the experiments need of a Redis client. A missing key is no
// error.
type client interface {
	get(ctx context.Context, key string) error
	set(ctx context.Context, key, value string) error
	incr(ctx context.Context, key string) (int64, error)
	// block waits d for an element that never comes, on a connection of its own.
	block(ctx context.Context, d time.Duration) error
	close() error
}

// settings are the options an experiment wants; the rest is left at the defaults
// of each library.
type settings struct {
	addr     string
	dials    *dialCounter // nil: not counted
	tls      *tls.Config
	poolSize int           // 0: the library's default
	timeout  time.Duration // of reads and writes; 0: the library's default
	options  []redial.Option
}

// kind is one client library.
type kind struct {
	name, title string
	open        func(settings) (client, error)
}

// Names of the clients, as the command line has them.
const (
	redialName  = "redial"
	goredisName = "goredis"
	rueidisName = "rueidis"
	redigoName  = "redigo"
)

func allKinds() []kind {
	return []kind{
		{goredisName, "bare go-redis", openGoRedis},
		{redialName, "redial", openRedial},
		{rueidisName, "rueidis", openRueidis},
		{redigoName, "redigo", openRedigo},
	}
}

// everyone is the list of clients for rows that need nothing but commands.
var everyone = []string{goredisName, redialName, rueidisName, redigoName}

func kindNames() string {
	var names []string
	for _, k := range allKinds() {
		names = append(names, k.name)
	}
	return strings.Join(names, ",")
}

func pickKinds(list string) ([]kind, error) {
	if list == "all" {
		return allKinds(), nil
	}
	var picked []kind
	names := strings.Split(list, ",")
	for _, k := range allKinds() {
		if i := slices.Index(names, k.name); i >= 0 {
			picked = append(picked, k)
			names = slices.Delete(names, i, i+1)
		}
	}
	if len(names) > 0 {
		return nil, fmt.Errorf("measure: unknown client %q, have %s", names[0], kindNames())
	}
	return picked, nil
}

// redisClient is go-redis, bare or under supervision.
type redisClient struct {
	redis.UniversalClient
	supervisor *redial.Supervisor // nil when bare
}

func redisOptions(s settings) *redis.Options {
	opt := &redis.Options{
		Addr:         s.addr,
		TLSConfig:    s.tls,
		PoolSize:     s.poolSize,
		ReadTimeout:  s.timeout,
		WriteTimeout: s.timeout,
	}
	if s.dials != nil {
		opt.Dialer = s.dials.dialer(s.tls)
	}
	return opt
}

func openGoRedis(s settings) (client, error) {
	return redisClient{UniversalClient: redis.NewClient(redisOptions(s))}, nil
}

func openRedial(s settings) (client, error) {
	c := redial.NewClient(redisOptions(s), s.options...)
	return redisClient{c, c.Supervisor}, nil
}

// supervisorOf returns nil for clients without one.
func supervisorOf(c client) *redial.Supervisor {
	rc, ok := c.(redisClient)
	if !ok {
		return nil
	}
	return rc.supervisor
}

func (c redisClient) get(ctx context.Context, key string) error {
	return unlessNil(c.Get(ctx, key).Err())
}

func (c redisClient) set(ctx context.Context, key, value string) error {
	return c.Set(ctx, key, value, 0).Err()
}

func (c redisClient) incr(ctx context.Context, key string) (int64, error) {
	return c.Incr(ctx, key).Result()
}

func (c redisClient) block(ctx context.Context, d time.Duration) error {
	return unlessNil(c.BLPop(ctx, d, "nothing").Err())
}

func (c redisClient) close() error { return c.Close() }

func unlessNil(err error) error {
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return err
}

// stubClient answers at once without I/O: what remains is the cost of the load.
type stubClient struct{}

func (stubClient) get(context.Context, string) error           { return nil }
func (stubClient) set(context.Context, string, string) error   { return nil }
func (stubClient) incr(context.Context, string) (int64, error) { return 1, nil }
func (stubClient) block(context.Context, time.Duration) error  { return nil }
func (stubClient) close() error                                { return nil }
