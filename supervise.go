package redial

// Clients of any kind: one that was built without supervision, and UniversalClient, which
// may be any of ours. This is the top floor, and may use everything.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Supervise puts an existing client under supervision, in place: a *redis.Client, of
// any origin, a *redis.ClusterClient or a *redis.Ring. Everything that holds the same
// pointer is protected, libraries and frameworks included, as if the client came from
// [NewClient], [NewClusterClient] or [NewRing], with these differences:
//
//   - Connections that were dialed before are used as they are until they end; what
//     fails on them go-redis retries by itself, and may run twice.
//   - The connection on which redial has found the server to answer is not handed to the
//     pool, whose hooks would not have seen it dialed. It is one more, and where it takes
//     long to set one up, the first command waits for two.
//   - Clones that WithTimeout has made, or makes later, have the connections but not
//     the hooks: their commands do not wait.
//   - The options of the client stay what they are. Where ContextTimeoutEnabled is not
//     set, the end of a context does not end the wait for a reply. PoolSize, timeouts
//     and MaxRedirects hold; MaxRetries concerns only what the server refuses.
//   - A WATCH, or what goes past the hooks of a cluster or ring, as Publish of a ring
//     does, fails as go-redis has it. Stats counts a WATCH that failed each time that
//     go-redis sends it, and the UNWATCH of a Watch that nobody hears of.
//   - A ring keeps its own heartbeat and the time that takes.
//   - ClusterSlots of a cluster, which is how sentinels lead one, is called twice each time
//     that redial wants to know the topology: go-redis does not say what it was told.
//   - Of a client that sentinels lead to one server it is not known where that is: what is
//     in flight on one that has fallen silent ends when go-redis hears of another master,
//     and with ReplicaOnly by its own ReadTimeout. Nor is ReplicaOnly known: READONLY is
//     waited for, as from a server that has lost its role.
//   - Hooks that were added before run outside redial's: they see one call, and not
//     each attempt. Heartbeats do not go through DialHooks, only through the Dialer.
//     At a node of a cluster or ring they see each attempt, and of one that failed
//     there an error of redial's own, with the text of the cause behind "redial: ".
//     It is not for errors.Is and errors.As; the caller gets an [Error].
//   - Hooks that are added later run inside redial's. What a connection fails with they
//     see as an error with the same text that is not for errors.Is and errors.As either,
//     since go-redis would send again what it recognizes.
//
// Call it once, before the client is busy. It does no I/O and never waits. When the
// client is closed, supervision ends by itself: at once if there was a connection, else
// within half a second. [Supervisor.Close] waits for that, and must not be called
// before: without supervision a supervised client does not dial.
//
// It returns an error when rdb is nil, of another type, or comes from this package,
// and when an option is invalid.
func Supervise(rdb redis.UniversalClient, opts ...Option) (*Supervisor, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	switch rdb := rdb.(type) {
	case nil:
	case *Client, *ClusterClient, *Ring:
		return nil, errSupervised
	case *redis.Client:
		if rdb != nil {
			if isOurFunc(rdb.Options().Dialer) {
				return nil, errSupervised
			}
			return superviseClient(rdb, cfg)
		}
	case *redis.ClusterClient:
		if rdb != nil {
			if isOurFunc(rdb.Options().NewClient) {
				return nil, errSupervised
			}
			return superviseCluster(rdb, cfg)
		}
	case *redis.Ring:
		if rdb != nil {
			if isOurFunc(rdb.Options().NewClient) {
				return nil, errSupervised
			}
			return superviseRing(rdb, cfg)
		}
	default:
		return nil, fmt.Errorf("redial: cannot supervise a %T", rdb)
	}
	return nil, errors.New("redial: the client to supervise is nil")
}

var errSupervised = errors.New("redial: the client is under supervision already")

// isOurFunc reports whether a function in the options of a client was put there by a
// constructor of this package.
func isOurFunc(f any) bool {
	name, ours := strings.CutPrefix(nameOf(f), "github.com/redial-go/redial")
	return ours && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "/internal/"))
}

// existing makes a hook work on a client that was built without it: its connections
// are dialed through the link.
type existing struct {
	redis.Hook
	link *link
	opt  *redis.Options
}

// DialHook makes the connections of the client ours.
func (e existing) DialHook(next redis.DialHook) redis.DialHook {
	base := tuned(next, e.opt.DialTimeout, e.link.cfg.detection())
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		return e.link.dialBy(ctx, network, addr, base)
	}
}

func superviseClient(rdb *redis.Client, cfg *config) (*Supervisor, error) {
	if _, err := cfg.surround(rdb); err != nil {
		return nil, err
	}
	opt := rdb.Options()
	k := newKeeper(cfg, shownAddr(addrOf(opt.Addr)))
	return build(k, 0, func() (*Supervisor, error) {
		o := new(alone)
		e := endpointOf(opt, cfg, true, false)
		e.asks = 1 // go-redis asks again
		g := guarded(newLink(k.gate, e, o, pingerOf(opt, false)))
		o.is(rdb, &g.inflight, cfg.timeout, g)
		k.whole = g.link
		if words := malformed(opt); words != nil {
			g.bar(words)
		}
		k.add(g)
		rdb.AddHook(existing{&hook{link: g.peer(), router: newOneServer(&k.calls, g.Fleet, opt, cfg, lone)}, g.link, opt})
		return supervisorOver(k), nil
	})
}

// attach puts the client of a node under supervision.
func (n *nodes) attach(rdb *redis.Client) *link {
	n.attaching.Lock()
	defer n.attaching.Unlock()
	if l := n.linkOf(rdb); l != nil {
		return l
	}
	opt := rdb.Options()
	m := n.newMember(opt, false, false)
	m.hook = &hook{link: m.link.peer(), router: newOneServer(&n.calls, m.link.Fleet, opt, n.cfg, n.neighbors())}
	rdb.AddHook(existing{&nodeHook{m.hook, n, m}, m.link, opt})
	n.enlist(rdb, m)
	return m.link
}

func superviseCluster(rdb *redis.ClusterClient, cfg *config) (*Supervisor, error) {
	opt := rdb.Options()
	n := newNodes(cfg, shownAddrs(opt.Addrs, "cluster"))
	return build(n.keeper, introduction, func() (*Supervisor, error) {
		outer, err := cfg.deputy(n.base, deputyOf(opt, n.base.addr))
		if err != nil {
			return nil, err
		}
		outer.on(rdb)
		n.gate.despair(hasNoNodes(opt), nil)
		n.tells, n.named = opt.ClusterSlots == nil, opt.ClusterSlots != nil
		n.reader = opt.ReadOnly
		rdb.OnNewNode(func(node *redis.Client) { n.attach(node) })
		n.goBy(rdb, func(ctx context.Context, f func(context.Context, *redis.Client) error) error {
			return rdb.ForEachShard(ctx, func(ctx context.Context, node *redis.Client) error {
				n.attach(node)
				return f(ctx, node)
			})
		})
		if slots := opt.ClusterSlots; slots != nil { // go-redis has asked it, and has not said what it was told
			load := n.load
			n.load = func(ctx context.Context) error {
				if err := load(ctx); err != nil {
					return err
				}
				if list, why := slots(ctx); why == nil { // else go-redis goes by what it knew, too
					n.learn(list, "")
				}
				return nil
			}
		}
		return supervisorOver(n.keeper), nil
	})
}

func superviseRing(rdb *redis.Ring, cfg *config) (*Supervisor, error) {
	n := newNodes(cfg, ringAddr(rdb.Options()))
	return build(n.keeper, 0, func() (*Supervisor, error) {
		outer, err := cfg.deputy(n.base, deputyOfRing(rdb.Options()))
		if err != nil {
			return nil, err
		}
		n.ring = true
		n.gate.despair(len(rdb.Options().Addrs) == 0, nil)
		n.pinged = true
		attachAll := func(ctx context.Context) error {
			return rdb.ForEachShard(ctx, func(_ context.Context, shard *redis.Client) error {
				n.attach(shard).tend()
				return nil
			})
		}
		n.load = func(ctx context.Context) error {
			if err := attachAll(ctx); err != nil { // those that were down at first
				return err
			}
			return n.anyAnswers(ctx)
		}
		rdb.OnNewNode(func(shard *redis.Client) { n.attach(shard).tend() })
		if err := attachAll(context.Background()); err != nil {
			return nil, err
		}
		outer.on(rdb)
		rdb.AddHook(n.hook())
		n.over = ringClosed(rdb)
		return supervisorOver(n.keeper), nil
	})
}

// UniversalClient is a client of any kind under supervision: a [Client], a
// [ClusterClient] or a [Ring]. Its methods are safe for concurrent use.
type UniversalClient interface {
	redis.UniversalClient

	// These are those of a Supervisor.
	State() State
	WaitReady(ctx context.Context) error
	WaitForState(ctx context.Context, want State) error
	Reconnect(reason string)
	Stats() Stats
	Outages() []Outage
	Check(ctx context.Context) error
	CheckAfter(d time.Duration) func(ctx context.Context) error
	// Drain closes the client gracefully, see Client.Drain.
	Drain(ctx context.Context) error
}

var _ = []UniversalClient{(*Client)(nil), (*ClusterClient)(nil), (*Ring)(nil)}

// NewUniversalClient is redis.NewUniversalClient under supervision, and chooses the
// kind of client by the same rules:
//
//   - with MasterName and one of RouteByLatency, RouteRandomly and IsClusterMode that
//     of [NewFailoverClusterClient],
//   - with MasterName alone that of [NewFailoverClient],
//   - with two addresses or more, or IsClusterMode, that of [NewClusterClient],
//   - otherwise that of [NewClient].
//
// It does no I/O and never waits. It panics when opt is nil or invalid.
func NewUniversalClient(opt *redis.UniversalOptions, opts ...Option) UniversalClient {
	if opt == nil {
		panic(errors.New("redial: universal options are nil"))
	}
	own := *opt // go-redis sets the default address in it
	switch {
	case own.MasterName != "" && (own.RouteByLatency || own.RouteRandomly || own.IsClusterMode):
		return NewFailoverClusterClient(own.Failover(), opts...)
	case own.MasterName != "":
		return NewFailoverClient(own.Failover(), opts...)
	case len(own.Addrs) > 1 || own.IsClusterMode:
		return NewClusterClient(own.Cluster(), opts...)
	}
	return NewClient(own.Simple(), opts...)
}
