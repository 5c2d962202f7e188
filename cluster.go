package redial

import (
	"context"
	"errors"
	"slices"

	"github.com/redis/go-redis/v9"
)

// Clients of a cluster, and of a master with replicas that sentinels lead, which to go-redis
// is a cluster of one shard. They are made of nodes, and of client.go they use what clients of
// every kind have.

// ClusterClient is a *redis.ClusterClient under supervision. Everything that takes a
// *redis.ClusterClient can be given ClusterClient.ClusterClient, everything that takes
// a redis.UniversalClient or redis.Cmdable the ClusterClient itself; both are
// protected.
//
// Each node has a link of its own. While one is down, commands for its slots wait and
// are sent to whoever takes its place; commands for other nodes do not notice, unless
// these refuse to serve an incomplete cluster, as they do for a moment without
// cluster-require-full-coverage set to no: then all commands wait. The
// state of the client is StateConnected when at least one node answers; which ones do
// is in Stats().Nodes.
//
// It is safe for concurrent use. Close must be called to release it; see [Client].
type ClusterClient struct {
	*redis.ClusterClient
	*Supervisor

	hook  *hook
	nodes *nodes
}

var _ redis.UniversalClient = (*ClusterClient)(nil)

// NewClusterClient is redis.NewClusterClient under supervision, an exact drop-in: it
// does no I/O and never waits. The topology is asked for in the background at once,
// and commands issued before a node has told it wait at the gate.
//
// opt is copied. MaxRetries and the DialerRetry options have no effect, see
// [NewClient]; MaxRedirects has. ContextTimeoutEnabled is always on.
//
// It panics, as redis.NewClusterClient does, when opt is nil or an option is invalid.
// When opt names neither an address nor a ClusterSlots function, commands fail as they
// do in go-redis.
func NewClusterClient(opt *redis.ClusterOptions, opts ...Option) *ClusterClient {
	return must(newClusterClient(opt, opts))
}

// NewFailoverClusterClient is redis.NewFailoverClusterClient under supervision: a
// client for the master and the replicas of a deployment that sentinels watch over,
// which reads from any of them when opt says so by RouteByLatency or RouteRandomly.
// The sentinels are asked, and listened to, as for [NewFailoverClient]. It does no I/O
// and never waits.
//
// It panics when opt is nil or invalid.
func NewFailoverClusterClient(opt *redis.FailoverOptions, opts ...Option) *ClusterClient {
	return must(newFailoverClusterClient(opt, opts))
}

func newClusterClient(opt *redis.ClusterOptions, opts []Option) (*ClusterClient, error) {
	cfg, err := newConfig(opts)
	switch {
	case err != nil:
		return nil, err
	case opt == nil:
		return nil, errors.New("redial: cluster options are nil")
	}
	n := newNodes(cfg, shownAddrs(opt.Addrs, "cluster"))
	n.asks = poolAsks(opt.MaxRedirects)
	n.gate.despair(hasNoNodes(opt), nil)
	return buildCluster(opt, n)
}

// hasNoNodes reports whether a client with opt will never know a node.
func hasNoNodes(opt *redis.ClusterOptions) bool {
	return len(opt.Addrs) == 0 && opt.ClusterSlots == nil
}

func newFailoverClusterClient(opt *redis.FailoverOptions, opts []Option) (*ClusterClient, error) {
	d, cfg, err := newDirectory(opt, opts)
	if err != nil {
		return nil, err
	}
	n := newNodes(cfg, opt.MasterName)
	n.asks = poolAsks(opt.MaxRetries)
	n.release = append(n.release, d.Close)
	d.TellPanics(n.panicked)
	n.mistake = d.Words()
	n.gate.despair(n.mistake != nil, n.mistake)
	o := shardOptions(opt)
	o.ClusterSlots = func(ctx context.Context) ([]redis.ClusterSlot, error) { return d.Slots(ctx, lastSlot) }
	c, err := buildCluster(o, n)
	if err != nil {
		return nil, err
	}
	n.mistrust = func(addr string) {
		if addr == nodeAddrOf(d.Last(), "") {
			d.Forget()
		}
	}
	d.Listen(func(from, to string) {
		for _, l := range n.all() {
			if l.addr == nodeAddrOf(from, "") { // nothing has changed for those that lead to a replica
				l.moved(saysSentinel(to))
			}
		}
		n.refresh()
	})
	return c, nil
}

// buildCluster builds a client for the nodes of a cluster.
func buildCluster(opt *redis.ClusterOptions, n *nodes) (*ClusterClient, error) {
	return build(n.keeper, introduction, func() (*ClusterClient, error) {
		own := *opt
		own.Addrs = slices.Clone(opt.Addrs)
		own.ContextTimeoutEnabled = true // a deadline that the socket ignores is none
		own.MaxRetries = -1
		newClient := opt.NewClient
		own.NewClient = func(o *redis.Options) *redis.Client { return n.adopt(o, newClient) }
		if slots := opt.ClusterSlots; slots != nil {
			own.ClusterSlots = func(ctx context.Context) ([]redis.ClusterSlot, error) {
				list, err := slots(ctx)
				if err == nil {
					n.empty.Store(len(list) == 0)
					n.learn(list, "")
				}
				return list, err
			}
		}
		tryOptions(&own)
		outer, err := n.cfg.deputy(n.base, deputyOf(opt, n.base.addr))
		if err != nil {
			return nil, err
		}
		n.tells, n.named = true, opt.ClusterSlots != nil
		n.reader = own.ReadOnly || own.RouteByLatency || own.RouteRandomly
		rdb := redis.NewClusterClient(&own)
		outer.on(rdb)
		n.goBy(rdb, rdb.ForEachMaster)
		return &ClusterClient{ClusterClient: rdb, Supervisor: supervisorOf(n.keeper, rdb.Close), hook: n.hook(), nodes: n}, nil
	})
}

// goBy has n go by the topology of rdb, which each asks for. It calls its argument for
// the nodes that are to have a heartbeat from now on, used or not.
func (n *nodes) goBy(rdb *redis.ClusterClient, each func(context.Context, func(context.Context, *redis.Client) error) error) {
	opt := rdb.Options()
	n.afar = opt.ReadOnly
	n.slow = opt.Dialer != nil || opt.OnConnect != nil || opt.CredentialsProvider != nil ||
		opt.CredentialsProviderContext != nil || opt.StreamingCredentialsProvider != nil
	n.splits = func(cmd redis.Cmder) bool {
		switch cmd.Name() {
		case "dbsize", "script": // methods of their own, which ask all nodes
			return true
		}
		policy := rdb.GetResolver().GetCommandPolicy(context.Background(), cmd)
		return policy != nil && !policy.CanBeUsedInPipeline()
	}
	n.load = func(ctx context.Context) error {
		before := n.toldSoFar()
		err := each(ctx, func(_ context.Context, node *redis.Client) error {
			if l := n.linkOf(node); l != nil {
				l.tend()
			}
			return nil
		})
		if err == nil && n.toldSoFar() == before && n.tells { // go-redis went by what it knew
			err = notYet("no node tells the topology")
		}
		if err != nil {
			_, err = reveal(err)
		}
		return err
	}
	rdb.AddHook(n.hook())
	n.over = clusterClosed(rdb)
}

// AddHook adds a hook, as go-redis does; see [Client.AddHook].
func (c *ClusterClient) AddHook(h redis.Hook) {
	c.ClusterClient.AddHook(h)
	c.hook.addInner(c.ClusterClient)
}

// OnNewNode has fn called with the client of each node that is added from now on, as
// go-redis does. Hooks that fn adds see each attempt that is made at the node.
func (c *ClusterClient) OnNewNode(fn func(rdb *redis.Client)) {
	c.nodes.onNewNode(c.ClusterClient.OnNewNode, fn)
}

// Close stops supervision, then closes the client: waiting commands return
// [ErrClosed], those in flight fail as they do in go-redis, and when it returns every
// connection is closed and every goroutine of this package joined. To let commands in
// flight finish, use Drain. It is idempotent.
func (c *ClusterClient) Close() error {
	return c.keeper.close(c.ClusterClient.Close)
}

// Drain closes the client gracefully, see [Client.Drain].
func (c *ClusterClient) Drain(ctx context.Context) error {
	err := c.keeper.drain(ctx)
	return errors.Join(err, c.Close())
}

// Watch runs fn in a transaction guarded by WATCH, as go-redis does. When WATCH fails
// because the node is down, it is tried again on the one that takes its place, within
// the grace and ctx; see [Client.Watch].
func (c *ClusterClient) Watch(ctx context.Context, fn func(*redis.Tx) error, keys ...string) error {
	return c.hook.watch(ctx, c.ClusterClient.Watch, fn, keys)
}

// ForEachMaster calls fn on each master of the cluster, as go-redis does. It waits, as
// a command does, for the client to be Connected, and what fn sends waits for its
// node.
func (c *ClusterClient) ForEachMaster(ctx context.Context, fn func(context.Context, *redis.Client) error) error {
	if err := c.hook.ready(ctx, "foreachmaster"); err != nil {
		return err
	}
	return c.ClusterClient.ForEachMaster(ctx, fn)
}

// ForEachSlave calls fn on each replica of the cluster; see ForEachMaster.
func (c *ClusterClient) ForEachSlave(ctx context.Context, fn func(context.Context, *redis.Client) error) error {
	if err := c.hook.ready(ctx, "foreachslave"); err != nil {
		return err
	}
	return c.ClusterClient.ForEachSlave(ctx, fn)
}

// ForEachShard calls fn on each node of the cluster; see ForEachMaster.
func (c *ClusterClient) ForEachShard(ctx context.Context, fn func(context.Context, *redis.Client) error) error {
	if err := c.hook.ready(ctx, "foreachshard"); err != nil {
		return err
	}
	return c.ClusterClient.ForEachShard(ctx, fn)
}

// MasterForKey returns the client of the master that has a key. It waits, as a
// command does, for the client to be Connected, and what that client sends waits for
// its node, though not for another that takes its place.
func (c *ClusterClient) MasterForKey(ctx context.Context, key string) (*redis.Client, error) {
	if err := c.hook.ready(ctx, "masterforkey"); err != nil {
		return nil, err
	}
	return c.ClusterClient.MasterForKey(ctx, key)
}

// SlaveForKey returns the client of a replica of a key; see MasterForKey.
func (c *ClusterClient) SlaveForKey(ctx context.Context, key string) (*redis.Client, error) {
	if err := c.hook.ready(ctx, "slaveforkey"); err != nil {
		return nil, err
	}
	return c.ClusterClient.SlaveForKey(ctx, key)
}

// Subscribe subscribes to channels, as go-redis does. It waits for a short time for
// the client to be Connected; a subscription that cannot be made yet is made later.
func (c *ClusterClient) Subscribe(ctx context.Context, channels ...string) *redis.PubSub {
	c.hook.patient(ctx)
	return c.ClusterClient.Subscribe(ctx, channels...)
}

// PSubscribe subscribes to patterns; see Subscribe.
func (c *ClusterClient) PSubscribe(ctx context.Context, patterns ...string) *redis.PubSub {
	c.hook.patient(ctx)
	return c.ClusterClient.PSubscribe(ctx, patterns...)
}

// SSubscribe subscribes to shard channels, on the node that has their slot, and moves
// with it; see Subscribe.
func (c *ClusterClient) SSubscribe(ctx context.Context, channels ...string) *redis.PubSub {
	c.hook.patient(ctx)
	return c.ClusterClient.SSubscribe(ctx, channels...)
}
