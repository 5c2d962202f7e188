package client

import (
	"context"
	"errors"
	"time"

	"github.com/redial-go/redial"
	"github.com/redis/go-redis/v9"
)

// GoRedisClient is go-redis, bare or under supervision.
type GoRedisClient struct {
	Redis redis.UniversalClient
	// Supervisor is nil when bare.
	Supervisor *redial.Supervisor

	healthCheck time.Duration // of subscriptions; 0: the default
}

var _ Client = GoRedisClient{}

func redisOptions(s Settings) *redis.Options {
	opt := &redis.Options{
		Addr:         s.Addr,
		TLSConfig:    s.TLS,
		PoolSize:     s.PoolSize,
		ReadTimeout:  s.Timeout,
		WriteTimeout: s.Timeout,
	}
	if s.Dials != nil {
		opt.Dialer = s.Dials.dialer(s.TLS)
	}
	return opt
}

func openGoRedis(s Settings) (Client, error) {
	return GoRedisClient{Redis: bare(s, redisOptions(s))}, nil
}

// What guides to resilience recommend, in the words of the report.
const tunedText = "`ContextTimeoutEnabled`, `DialTimeout` 1 s, `ReadTimeout` and `WriteTimeout` 500 ms, `MaxRetries` 5 " +
	"with backoff from 20 to 300 ms, `PoolTimeout` 1 s, `MinIdleConns` 5, `ConnMaxIdleTime` 1 min, " +
	"subscriptions checked every second"

func openTuned(s Settings) (Client, error) {
	opt := redisOptions(s)
	opt.ContextTimeoutEnabled = true
	opt.DialTimeout = time.Second
	opt.ReadTimeout = 500 * time.Millisecond
	opt.WriteTimeout = 500 * time.Millisecond
	opt.MaxRetries = 5
	opt.MinRetryBackoff = 20 * time.Millisecond
	opt.MaxRetryBackoff = 300 * time.Millisecond
	opt.PoolTimeout = time.Second
	opt.MinIdleConns = 5
	opt.ConnMaxIdleTime = time.Minute
	return GoRedisClient{Redis: bare(s, opt), healthCheck: time.Second}, nil
}

// bare makes a client without supervision.
func bare(s Settings, opt *redis.Options) *redis.Client {
	if s.Sentinel != "" {
		return redis.NewFailoverClient(failoverOptions(s, opt))
	}
	return redis.NewClient(opt)
}

// failoverOptions are those of a client that finds the server by a sentinel, and otherwise
// the same.
func failoverOptions(s Settings, opt *redis.Options) *redis.FailoverOptions {
	return &redis.FailoverOptions{
		MasterName:            SentinelMaster,
		SentinelAddrs:         []string{s.Sentinel},
		TLSConfig:             opt.TLSConfig,
		PoolSize:              opt.PoolSize,
		Dialer:                opt.Dialer,
		DialTimeout:           opt.DialTimeout,
		ReadTimeout:           opt.ReadTimeout,
		WriteTimeout:          opt.WriteTimeout,
		ContextTimeoutEnabled: opt.ContextTimeoutEnabled,
		MaxRetries:            opt.MaxRetries,
		MinRetryBackoff:       opt.MinRetryBackoff,
		MaxRetryBackoff:       opt.MaxRetryBackoff,
		PoolTimeout:           opt.PoolTimeout,
		MinIdleConns:          opt.MinIdleConns,
		ConnMaxIdleTime:       opt.ConnMaxIdleTime,
	}
}

func openRedial(s Settings) (Client, error) {
	if s.Sentinel != "" {
		c := redial.NewFailoverClient(failoverOptions(s, redisOptions(s)), s.Options...)
		return GoRedisClient{Redis: c, Supervisor: c.Supervisor}, nil
	}
	c := redial.NewClient(redisOptions(s), s.Options...)
	return GoRedisClient{Redis: c, Supervisor: c.Supervisor}, nil
}

// SupervisorOf returns nil for clients without one.
func SupervisorOf(c Client) *redial.Supervisor {
	rc, ok := c.(GoRedisClient)
	if !ok {
		return nil
	}
	return rc.Supervisor
}

// Get implements Client.
func (c GoRedisClient) Get(ctx context.Context, key string) error {
	return unlessNil(c.Redis.Get(ctx, key).Err())
}

// Set implements Client.
func (c GoRedisClient) Set(ctx context.Context, key, value string) error {
	return c.Redis.Set(ctx, key, value, 0).Err()
}

// Incr implements Client.
func (c GoRedisClient) Incr(ctx context.Context, key string) (int64, error) {
	return c.Redis.Incr(ctx, key).Result()
}

// GetIncr implements Client.
func (c GoRedisClient) GetIncr(ctx context.Context, read, count string) error {
	cmds, err := c.Redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Get(ctx, read)
		p.Incr(ctx, count)
		return nil
	})
	// Pipelined returns the first error only, and that may be redis.Nil.
	for _, cmd := range cmds {
		if unlessNil(cmd.Err()) != nil {
			return cmd.Err()
		}
	}
	return unlessNil(err)
}

// Busy implements Client.
func (c GoRedisClient) Busy(ctx context.Context, d time.Duration) error {
	return c.Redis.EvalRO(ctx, busyScript, nil, d.Microseconds()).Err()
}

// Block implements Client.
func (c GoRedisClient) Block(ctx context.Context, d time.Duration) error {
	return unlessNil(c.Redis.BLPop(ctx, d, "nothing").Err())
}

// Subscribe implements Client.
func (c GoRedisClient) Subscribe(ctx context.Context, topic string, got func(string)) error {
	sub := c.Redis.Subscribe(ctx, topic)
	var options []redis.ChannelOption
	if c.healthCheck > 0 {
		options = append(options, redis.WithChannelHealthCheckInterval(c.healthCheck))
	}
	messages := sub.Channel(options...)
	for {
		select {
		case m := <-messages:
			got(m.Payload)
		case <-ctx.Done():
			return sub.Close()
		}
	}
}

// Close implements Client.
func (c GoRedisClient) Close() error { return c.Redis.Close() }

func unlessNil(err error) error {
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return err
}
