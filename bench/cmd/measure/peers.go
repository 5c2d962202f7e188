package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/redis/rueidis"
)

// rueidisClient multiplexes all commands over a few connections. It retries
// reads until their context ends and never retries writes.
type rueidisClient struct{ rueidis.Client }

func openRueidis(s settings) (client, error) {
	opt := rueidis.ClientOption{
		InitAddress:       []string{s.addr},
		TLSConfig:         s.tls,
		ForceSingleClient: true,
		DisableCache:      true,
		ConnWriteTimeout:  s.timeout,
	}
	if s.dials != nil {
		opt.DialCtxFn = func(ctx context.Context, addr string, _ *net.Dialer, conf *tls.Config) (net.Conn, error) {
			return s.dials.dialer(conf)(ctx, "tcp", addr)
		}
	}
	c, err := rueidis.NewClient(opt)
	if err != nil {
		return nil, err
	}
	return rueidisClient{c}, nil
}

func (c rueidisClient) get(ctx context.Context, key string) error {
	err := c.Do(ctx, c.B().Get().Key(key).Build()).Error()
	if rueidis.IsRedisNil(err) {
		return nil
	}
	return err
}

func (c rueidisClient) set(ctx context.Context, key, value string) error {
	return c.Do(ctx, c.B().Set().Key(key).Value(value).Build()).Error()
}

func (c rueidisClient) incr(ctx context.Context, key string) (int64, error) {
	return c.Do(ctx, c.B().Incr().Key(key).Build()).AsInt64()
}

func (c rueidisClient) block(ctx context.Context, d time.Duration) error {
	err := c.Do(ctx, c.B().Blpop().Key("nothing").Timeout(d.Seconds()).Build()).Error()
	if rueidis.IsRedisNil(err) {
		return nil
	}
	return err
}

func (c rueidisClient) close() error { c.Close(); return nil }

// redigoClient is a pool as redigo's documentation sets one up, with the
// timeouts that go-redis has by default.
type redigoClient struct{ pool *redis.Pool }

func openRedigo(s settings) (client, error) {
	timeout, size := s.timeout, s.poolSize
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	if size == 0 {
		size = 20
	}
	options := []redis.DialOption{
		redis.DialConnectTimeout(5 * time.Second),
		redis.DialReadTimeout(timeout),
		redis.DialWriteTimeout(timeout),
	}
	dials := s.dials
	if dials == nil {
		dials = &dialCounter{}
	}
	options = append(options, redis.DialContextFunc(dials.dialer(s.tls)))
	return redigoClient{&redis.Pool{
		MaxIdle: size, MaxActive: size, Wait: true,
		DialContext: func(ctx context.Context) (redis.Conn, error) {
			return redis.DialContext(ctx, "tcp", s.addr, options...)
		},
		TestOnBorrow: func(c redis.Conn, used time.Time) error {
			if time.Since(used) < time.Minute {
				return nil
			}
			_, err := c.Do("PING")
			return err
		},
	}}, nil
}

func (c redigoClient) do(ctx context.Context, command string, args ...any) (any, error) {
	conn, err := c.pool.GetContext(ctx)
	if err != nil {
		return nil, err
	}
	reply, err := redis.DoContext(conn, ctx, command, args...)
	return reply, errors.Join(err, conn.Close())
}

func (c redigoClient) get(ctx context.Context, key string) error {
	_, err := c.do(ctx, "GET", key)
	return err
}

func (c redigoClient) set(ctx context.Context, key, value string) error {
	_, err := c.do(ctx, "SET", key, value)
	return err
}

func (c redigoClient) incr(ctx context.Context, key string) (int64, error) {
	return redis.Int64(c.do(ctx, "INCR", key))
}

func (c redigoClient) block(ctx context.Context, d time.Duration) error {
	_, err := c.do(ctx, "BLPOP", "nothing", d.Seconds())
	return err
}

func (c redigoClient) close() error { return c.pool.Close() }
