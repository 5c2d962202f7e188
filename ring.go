package redial

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redial-go/redial/internal/command"
)

// Clients of a ring, whose shards know nothing of each other. They are made of nodes, and of
// client.go they use what clients of every kind have.

// Ring is a *redis.Ring under supervision. Everything that takes a *redis.Ring can be
// given Ring.Ring, everything that takes a redis.UniversalClient or redis.Cmdable the
// Ring itself; both are protected.
//
// Each shard has a link of its own. While one is down, commands for its keys wait
// until it is back or the ring has given its keys to other shards, whichever is first.
// The state of the client is StateConnected when at least one shard answers; which
// ones do is in Stats().Nodes.
//
// It is safe for concurrent use. Close must be called to release it; see [Client].
type Ring struct {
	*redis.Ring
	*Supervisor

	hook  *hook
	nodes *nodes
}

var _ redis.UniversalClient = (*Ring)(nil)

// NewRing is redis.NewRing under supervision, an exact drop-in: it does no I/O and
// never waits.
//
// Unless opt has a HeartbeatFn, the ring goes by redial's heartbeats, which watch all
// shards at the same time, and by default HeartbeatFrequency, at which it looks at
// them, is 100ms: a shard leaves the ring three looks after its link went down, and is
// back at the first look after it came up. Until the first attempt to reach it has ended
// it counts as up.
//
// opt is copied. MaxRetries and the DialerRetry options have no effect, see
// [NewClient]. ContextTimeoutEnabled is always on.
//
// It panics, as redis.NewRing does, when opt is nil or an option is invalid.
func NewRing(opt *redis.RingOptions, opts ...Option) *Ring {
	return must(newRing(opt, opts))
}

func newRing(opt *redis.RingOptions, opts []Option) (*Ring, error) {
	cfg, err := newConfig(opts)
	switch {
	case err != nil:
		return nil, err
	case opt == nil:
		return nil, errors.New("redial: ring options are nil")
	}
	n := newNodes(cfg, ringAddr(opt))
	n.asks = poolAsks(opt.MaxRetries)
	return build(n.keeper, 0, func() (*Ring, error) {
		own := *opt
		own.Addrs = maps.Clone(opt.Addrs)
		own.ContextTimeoutEnabled = true // a deadline that the socket ignores is none
		own.MaxRetries = -1
		newClient := opt.NewClient
		own.NewClient = func(o *redis.Options) *redis.Client {
			rdb := n.adopt(o, newClient)
			n.linkOf(rdb).tend()
			return rdb
		}
		if own.HeartbeatFn == nil {
			own.HeartbeatFn = n.heartbeat
			if own.HeartbeatFrequency == 0 {
				own.HeartbeatFrequency = ringHeartbeat
			}
		}
		own.HeartbeatFn = n.announced(own.HeartbeatFn)
		tryOptions(&own)
		outer, err := cfg.deputy(n.base, deputyOfRing(opt))
		if err != nil {
			return nil, err
		}
		n.ring = true
		n.gate.despair(len(opt.Addrs) == 0, nil)
		n.load = n.anyAnswers
		rdb := redis.NewRing(&own)
		outer.on(rdb)
		rdb.AddHook(n.hook())
		n.over = ringClosed(rdb)
		return &Ring{Ring: rdb, Supervisor: supervisorOf(n.keeper, rdb.Close), hook: n.hook(), nodes: n}, nil
	})
}

// ringAddr returns the addresses of all shards.
func ringAddr(opt *redis.RingOptions) string {
	return shownAddrs(slices.Sorted(maps.Values(opt.Addrs)), "ring")
}

// heartbeat tells a ring whether a shard is up. One of which nothing is known yet is not
// down: go-redis waits for an answer before it says so.
func (n *nodes) heartbeat(_ context.Context, shard *redis.Client) bool {
	l := n.linkOf(shard)
	if l == nil {
		return false
	}
	untried, _ := l.untried()
	return untried || l.now() == StateConnected
}

// announced returns f, which tells a ring whether a shard is up, and has commands that
// wait for a shard go on once the ring has acted on a change: it wants to hear three
// times that a shard is down, and once that it is up, before it moves keys.
func (n *nodes) announced(f func(context.Context, *redis.Client) bool) func(context.Context, *redis.Client) bool {
	type word struct {
		up    bool
		times int
	}
	said := make(map[*redis.Client]*word) // used by one goroutine of the ring
	return func(ctx context.Context, shard *redis.Client) bool {
		up := f(ctx, shard)
		w := said[shard]
		if w == nil || w.up != up {
			maps.DeleteFunc(said, func(c *redis.Client, _ *word) bool { return n.linkOf(c) == nil })
			w = &word{up: up}
			said[shard] = w
		}
		if w.times++; w.times == ringVotes+1 || up && w.times == 2 {
			n.proceed()
		}
		return up
	}
}

// anyAnswers is how a ring asks for its topology, of which there is none: it has
// commands wait until a shard answers.
func (n *nodes) anyAnswers(context.Context) error {
	up, cause := n.anyUp()
	if up {
		return nil
	}
	return cmp.Or(cause, errors.New("no shard answers"))
}

// AddHook adds a hook, as go-redis does; see [Client.AddHook].
func (c *Ring) AddHook(h redis.Hook) {
	c.Ring.AddHook(h)
	c.hook.addInner(c.Ring)
}

// OnNewNode has fn called with the client of each shard that is added from now on, as
// go-redis does. Hooks that fn adds see each attempt that is made at the shard.
func (c *Ring) OnNewNode(fn func(rdb *redis.Client)) {
	c.nodes.onNewNode(c.Ring.OnNewNode, fn)
}

// Close stops supervision, then closes the client; see [ClusterClient.Close].
func (c *Ring) Close() error {
	return c.keeper.close(c.Ring.Close)
}

// Drain closes the client gracefully, see [Client.Drain].
func (c *Ring) Drain(ctx context.Context) error {
	err := c.keeper.drain(ctx)
	return errors.Join(err, c.Close())
}

// Watch runs fn in a transaction guarded by WATCH, as go-redis does. When WATCH fails
// because the shard is down, it is tried again, within the grace and ctx, when that is
// back or has left the ring; see [Client.Watch].
func (c *Ring) Watch(ctx context.Context, fn func(*redis.Tx) error, keys ...string) error {
	return c.hook.watch(ctx, c.Ring.Watch, fn, keys)
}

// Publish posts a message to a channel, on the shard that the channel belongs to.
func (c *Ring) Publish(ctx context.Context, channel string, message any) *redis.IntCmd {
	cmd := redis.NewIntCmd(ctx, "publish", channel, message)
	cmd.SetFirstKeyPos(1)   // or go-redis takes any shard
	_ = c.Process(ctx, cmd) // go-redis's Publish goes by the same key, but past the hooks
	return cmd
}

// ForEachShard calls fn on each shard that is up, as go-redis does. It waits, as a
// command does, for the client to be Connected, and what fn sends waits for its
// shard.
func (c *Ring) ForEachShard(ctx context.Context, fn func(context.Context, *redis.Client) error) error {
	if err := c.hook.ready(ctx, "foreachshard"); err != nil {
		return err
	}
	return c.Ring.ForEachShard(ctx, fn)
}

// Subscribe subscribes to channels on the shard that the first one belongs to. While
// all shards are down it waits for a short time for one; a subscription that cannot be
// made yet is made later. It panics when there is no channel, as go-redis does.
func (c *Ring) Subscribe(ctx context.Context, channels ...string) *redis.PubSub {
	return c.shard(ctx, channels).Subscribe(ctx, channels...)
}

// PSubscribe subscribes to patterns on the shard that the first one belongs to; see
// Subscribe.
func (c *Ring) PSubscribe(ctx context.Context, patterns ...string) *redis.PubSub {
	return c.shard(ctx, patterns).PSubscribe(ctx, patterns...)
}

// SSubscribe subscribes to shard channels on the shard that the first one belongs to;
// see Subscribe.
func (c *Ring) SSubscribe(ctx context.Context, channels ...string) *redis.PubSub {
	return c.shard(ctx, channels).SSubscribe(ctx, channels...)
}

// shard returns the client for a subscription. go-redis panics when it knows of no
// shard that is up; then it is the one that the channel belongs to when all are up.
func (c *Ring) shard(ctx context.Context, channels []string) *redis.Client {
	if len(channels) == 0 {
		panic("redial: at least one channel is required")
	}
	rdb, err := c.GetShardClientForKey(channels[0])
	if err == nil {
		return rdb
	}
	c.hook.patient(ctx)
	if rdb, err = c.GetShardClientForKey(channels[0]); err == nil {
		return rdb
	}
	if errors.Is(err, redis.ErrClosed) {
		return neverOpen()
	}
	return c.nodes.shardFor(c.Options(), channels[0], err)
}

// shardFor returns the client of the shard that a key belongs to while all are up, or
// one whose connections cannot be made because of err when the ring has no shards.
func (n *nodes) shardFor(opt *redis.RingOptions, key string, err error) *redis.Client {
	addr := ""
	if names := slices.Sorted(maps.Keys(opt.Addrs)); len(names) > 0 {
		addr = addrOf(opt.Addrs[opt.NewConsistentHash(names).Get(command.HashTag(key))])
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	last := (*redis.Client)(nil)
	for rdb, m := range n.byClient {
		if m.link.addr == addr {
			return rdb
		}
		last = rdb
	}
	if last != nil {
		return last // the addresses of the ring were set anew
	}
	return redis.NewClient(&redis.Options{
		Addr: ":0", MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		Dialer: func(context.Context, string, string) (net.Conn, error) { return nil, err },
	})
}

// neverOpen is the client of a ring that was closed.
var neverOpen = sync.OnceValue(func() *redis.Client {
	rdb := redis.NewClient(&redis.Options{Addr: ":0"})
	_ = rdb.Close()
	return rdb
})
