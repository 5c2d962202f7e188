package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	redigoTimeout  = 5 * time.Second // as go-redis has it; redigo itself has none
	redigoPool     = 20
	redigoAttempts = 3
	redigoHealth   = time.Minute // of subscriptions, as in the library's example
	retryPause     = 50 * time.Millisecond
)

// redigoClient is a pool as redigo's documentation sets one up, and the retries
// that programs usually put around it.
type redigoClient struct {
	pool *redis.Pool
	dial func(ctx context.Context, options ...redis.DialOption) (redis.Conn, error)
}

func openRedigo(s Settings) (Client, error) {
	timeout, size := s.Timeout, s.PoolSize
	if timeout == 0 {
		timeout = redigoTimeout
	}
	if size == 0 {
		size = redigoPool
	}
	common := []redis.DialOption{
		redis.DialConnectTimeout(redigoTimeout),
		redis.DialReadTimeout(timeout),
		redis.DialWriteTimeout(timeout),
	}
	switch {
	case s.Dials != nil:
		common = append(common, redis.DialContextFunc(s.Dials.dialer(s.TLS)))
	case s.TLS != nil:
		common = append(common, redis.DialUseTLS(true), redis.DialTLSConfig(s.TLS))
	}
	dial := func(ctx context.Context, options ...redis.DialOption) (redis.Conn, error) {
		return redis.DialContext(ctx, "tcp", s.Addr, append(common[:len(common):len(common)], options...)...)
	}
	return redigoClient{dial: dial, pool: &redis.Pool{
		MaxIdle: size, MaxActive: size, Wait: true,
		DialContext: func(ctx context.Context) (redis.Conn, error) { return dial(ctx) },
		TestOnBorrow: func(c redis.Conn, used time.Time) error {
			if time.Since(used) < time.Minute {
				return nil
			}
			_, err := c.Do("PING")
			return err
		},
	}}, nil
}

// on borrows a connection and runs f on it, up to redigoAttempts times. A reply of
// the server is final, whatever it says.
func (c redigoClient) on(ctx context.Context, f func(redis.Conn) error) error {
	for attempt := 1; ; attempt++ {
		err := c.once(ctx, f)
		var reply redis.Error
		if err == nil || errors.As(err, &reply) || attempt == redigoAttempts {
			return err
		}
		if ended := pauseAfter(ctx, err); ended != nil {
			return ended
		}
	}
}

func (c redigoClient) once(ctx context.Context, f func(redis.Conn) error) error {
	conn, err := c.pool.GetContext(ctx)
	if err != nil {
		return err
	}
	return errors.Join(f(conn), conn.Close())
}

// pauseAfter waits before the next attempt. If ctx ends first it returns cause
// together with the error of ctx.
func pauseAfter(ctx context.Context, cause error) error {
	timer := time.NewTimer(retryPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return errors.Join(cause, ctx.Err())
	}
}

func (c redigoClient) do(ctx context.Context, command string, args ...any) (reply any, err error) {
	err = c.on(ctx, func(conn redis.Conn) error {
		reply, err = redis.DoContext(conn, ctx, command, args...)
		return err
	})
	return reply, err
}

func (c redigoClient) Get(ctx context.Context, key string) error {
	_, err := c.do(ctx, "GET", key)
	return err
}

func (c redigoClient) Set(ctx context.Context, key, value string) error {
	_, err := c.do(ctx, "SET", key, value)
	return err
}

func (c redigoClient) Incr(ctx context.Context, key string) (int64, error) {
	return redis.Int64(c.do(ctx, "INCR", key))
}

func (c redigoClient) GetIncr(ctx context.Context, read, count string) error {
	return c.on(ctx, func(conn redis.Conn) error {
		if err := conn.Send("GET", read); err != nil {
			return err
		}
		if err := conn.Send("INCR", count); err != nil {
			return err
		}
		if err := conn.Flush(); err != nil {
			return err
		}
		for range 2 {
			if _, err := redis.ReceiveContext(conn, ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c redigoClient) Busy(ctx context.Context, d time.Duration) error {
	_, err := c.do(ctx, "EVAL_RO", busyScript, 0, d.Microseconds())
	return err
}

func (c redigoClient) Block(ctx context.Context, d time.Duration) error {
	return c.on(ctx, func(conn redis.Conn) error {
		_, err := redis.DoContext(conn, ctx, "BLPOP", "nothing", d.Seconds())
		return err
	})
}

func (c redigoClient) Subscribe(ctx context.Context, topic string, got func(string)) error {
	for {
		err := c.receive(ctx, topic, got)
		if ctx.Err() != nil {
			return nil
		}
		if err := pauseAfter(ctx, err); err != nil {
			return nil
		}
	}
}

// receive follows the example of redigo's documentation: a connection of its own
// that is sent a PING now and then and read with a longer timeout.
func (c redigoClient) receive(ctx context.Context, topic string, got func(string)) error {
	conn, err := c.dial(ctx, redis.DialReadTimeout(redigoHealth+10*time.Second))
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	done, cancel := context.WithCancel(ctx)
	defer cancel()
	sub := redis.PubSubConn{Conn: conn}
	wg.Go(func() {
		ticker := time.NewTicker(redigoHealth)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if err := sub.Ping(""); err != nil {
					_ = sub.Close() // the receiver sees that it is broken
					return
				}
			case <-done.Done():
				_ = sub.Close() // ends Receive
				return
			}
		}
	})
	if err := sub.Subscribe(topic); err != nil {
		return err
	}
	for {
		switch m := sub.Receive().(type) {
		case error:
			return m
		case redis.Message:
			got(string(m.Data))
		}
	}
}

func (c redigoClient) Close() error { return c.pool.Close() }
