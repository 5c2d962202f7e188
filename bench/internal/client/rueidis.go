package client

import (
	"context"
	"crypto/tls"
	"net"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// rueidisClient multiplexes all commands over a few connections. It retries
// reads until their context ends and never retries writes.
type rueidisClient struct{ rueidis.Client }

func openRueidis(s Settings) (Client, error) {
	opt := rueidis.ClientOption{
		InitAddress:       []string{s.Addr},
		TLSConfig:         s.TLS,
		ForceSingleClient: true,
		DisableCache:      true,
		ConnWriteTimeout:  s.Timeout,
	}
	if s.Sentinel != "" {
		opt.InitAddress, opt.ForceSingleClient = []string{s.Sentinel}, false
		opt.Sentinel.MasterSet = SentinelMaster
	}
	if s.Dials != nil {
		opt.DialCtxFn = func(ctx context.Context, addr string, _ *net.Dialer, conf *tls.Config) (net.Conn, error) {
			return s.Dials.dialer(conf)(ctx, "tcp", addr)
		}
	}
	c, err := rueidis.NewClient(opt)
	if err != nil {
		return nil, err
	}
	return rueidisClient{c}, nil
}

func unlessRueidisNil(err error) error {
	if rueidis.IsRedisNil(err) {
		return nil
	}
	return err
}

func (c rueidisClient) Get(ctx context.Context, key string) error {
	return unlessRueidisNil(c.Do(ctx, c.B().Get().Key(key).Build()).Error())
}

func (c rueidisClient) Set(ctx context.Context, key, value string) error {
	return c.Do(ctx, c.B().Set().Key(key).Value(value).Build()).Error()
}

func (c rueidisClient) Incr(ctx context.Context, key string) (int64, error) {
	return c.Do(ctx, c.B().Incr().Key(key).Build()).AsInt64()
}

func (c rueidisClient) GetIncr(ctx context.Context, read, count string) error {
	for _, reply := range c.DoMulti(ctx, c.B().Get().Key(read).Build(), c.B().Incr().Key(count).Build()) {
		if err := unlessRueidisNil(reply.Error()); err != nil {
			return err
		}
	}
	return nil
}

func (c rueidisClient) Busy(ctx context.Context, d time.Duration) error {
	us := strconv.FormatInt(d.Microseconds(), 10)
	return c.Do(ctx, c.B().EvalRo().Script(busyScript).Numkeys(0).Arg(us).Build()).Error()
}

func (c rueidisClient) Block(ctx context.Context, d time.Duration) error {
	return unlessRueidisNil(c.Do(ctx, c.B().Blpop().Key("nothing").Timeout(d.Seconds()).Build()).Error())
}

func (c rueidisClient) Subscribe(ctx context.Context, topic string, got func(string)) error {
	for {
		err := c.Receive(ctx, c.B().Subscribe().Channel(topic).Build(), func(m rueidis.PubSubMessage) {
			got(m.Message)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err := pauseAfter(ctx, err); err != nil {
			return nil
		}
	}
}

func (c rueidisClient) Close() error { c.Client.Close(); return nil }
