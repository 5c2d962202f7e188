// Package redial is a drop-in resilient wrapper for go-redis v9.
//
// Change redis.NewClient(opt) to redial.NewClient(opt) and keep the rest of the
// program as it is:
//
//	rdb := redial.NewClient(&redis.Options{Addr: "127.0.0.1:6379"})
//	defer rdb.Close()
//
// A [Client] embeds the *redis.Client it protects, a [ClusterClient] or a [Ring] its
// counterpart; [Supervise] protects a client that exists already. They keep watch
// over the server with a background PING heartbeat, replace dead connections by
// exponential backoff, let commands ride out a short outage, and say of every
// failed command whether it can have run: [ErrUnavailable] means that nothing
// ran, [ErrOutcomeUnknown] that the command was written and its reply was lost.
//
// # How it works
//
// The client is never recreated. Connections are handed to go-redis's own pool
// by a dialer that stamps them with a generation; retiring a generation makes
// every older connection fail before its first byte, so the pool, hooks,
// subscriptions and every pointer handed out before an outage work after it.
//
// The link to a server is in one of four states:
//
//	Connecting -> Connected <-> Reconnecting -> Closed
//
// While it is Connected a command costs some atomic operations, one look at the clock
// and, if its context can be canceled, one allocation. While it is not, commands wait at
// a gate until the link is back, their context ends or the grace of the outage has
// passed; then they fail at once. See [WithGrace], [WithMaxWaiting], [FailFast] and [WaitFor].
//
// A client of several nodes has a link to each. It is Connected while one of them is;
// commands for a node that is down wait for it, or for the one that takes its place.
//
// # Concurrency
//
// Everything exported is safe for concurrent use. Events are delivered one at a
// time and in order. One goroutine keeps watch over an idle client, and one more
// listens to its sentinels if it has any, whatever the number of its connections and
// nodes; others come when there is something to do, and go. [Client.Close] stops and
// joins them all.
package redial

// The client of one server, found by its address or by sentinels, and Supervisor, the handle
// that clients of every kind have. This knows nothing of several nodes.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/sentinel"
	"github.com/redial-go/redial/internal/wire"
)

// Client is a *redis.Client under supervision. Everything that takes a
// *redis.Client can be given Client.Client, everything that takes a
// redis.UniversalClient or redis.Cmdable the Client itself; both are protected.
//
// It is safe for concurrent use. Close must be called to release it. Closing the
// embedded client does so, too, but returns while supervision is still ending.
type Client struct {
	*redis.Client
	*Supervisor

	hook  *hook
	hooks *hookList // the caller's hooks
	outer *chain    // the caller's hooks outside of hook; nil: there are none
}

var _ redis.UniversalClient = (*Client)(nil)

// NewClient is redis.NewClient under supervision, an exact drop-in: it does no
// I/O and never waits. The server is dialed in the background at once, and
// commands issued before it answers wait at the gate.
//
// opt is copied. MinRetryBackoff, MaxRetryBackoff and the DialerRetry options have no
// effect: redial retries by itself, see [WithRetry]. MaxRetries says only how often an
// exhausted pool is asked again.
// ContextTimeoutEnabled is always on.
//
// NewClient panics, as redis.NewClient does, when opt is nil or an option is
// invalid. [Connect] returns these as errors.
func NewClient(opt *redis.Options, opts ...Option) *Client {
	return must(newClient(opt, opts))
}

// NewFailoverClient is redis.NewFailoverClient under supervision: a client for the
// master of a deployment that sentinels watch over, or with ReplicaOnly for one of
// its replicas. It does no I/O and never waits.
//
// The sentinels are asked where to connect, and the others as well when the first
// one is slow to answer. When they say that the master has moved, everything on the
// old one is given up: commands under way end as [ErrOutcomeUnknown] unless they
// only read, and commands and subscriptions follow to the new one. With ReplicaOnly
// all connections lead to one replica at a time, and what it says to writes, READONLY, is
// returned at once.
//
// It panics, as redis.NewFailoverClient does, when opt is nil or invalid, or asks for
// routing.
func NewFailoverClient(opt *redis.FailoverOptions, opts ...Option) *Client {
	return must(newFailoverClient(opt, opts))
}

func newFailoverClient(opt *redis.FailoverOptions, opts []Option) (*Client, error) {
	d, cfg, err := newDirectory(opt, opts)
	switch {
	case err != nil:
		return nil, err
	case opt.RouteByLatency:
		return nil, errors.New("redial: to route commands by latency, use NewFailoverClusterClient")
	case opt.RouteRandomly:
		return nil, errors.New("redial: to route commands randomly, use NewFailoverClusterClient")
	}
	k := newKeeper(cfg, addrOf(opt.MasterName))
	k.release = append(k.release, d.Close)
	d.TellPanics(k.panicked)
	k.gate.despair(d.Words() != nil, d.Words())
	o := ledOptions(opt)
	o.Dialer = d.Dial
	c, err := buildClient(o, k, isQuick(opt.Dialer, opt.TLSConfig), &led{by: d, replica: opt.ReplicaOnly})
	if err != nil {
		return nil, err
	}
	d.Listen(func(_, to string) {
		for _, l := range k.all() {
			l.moved(saysSentinel(to))
		}
	})
	return c, nil
}

// newDirectory checks the options of a client that sentinels lead and returns what asks
// them.
func newDirectory(opt *redis.FailoverOptions, opts []Option) (*sentinel.Directory, *config, error) {
	cfg, err := newConfig(opts)
	switch {
	case err != nil:
		return nil, nil, err
	case opt == nil:
		return nil, nil, errors.New("redial: failover options are nil")
	}
	d := sentinel.New(opt, plainDialer(opt.Dialer, opt.TLSConfig), cfg.sentinelLimits(opt.DialTimeout))
	d.Bar(illegible(opt))
	return d, cfg, nil
}

// illegible returns what go-redis says of sentinels of which no address can be read, nil of any
// other.
func illegible(opt *redis.FailoverOptions) error {
	errs := make([]error, len(opt.SentinelAddrs))
	for i, addr := range opt.SentinelAddrs {
		if errs[i] = malformed(&redis.Options{Addr: addr, Dialer: opt.Dialer}); errs[i] == nil {
			return nil
		}
	}
	return fmt.Errorf("redis: all sentinels specified in configuration are unreachable: %w", errors.Join(errs...))
}

func saysSentinel(master string) string { return "sentinel says that the master is " + master }

// must is for constructors that panic like those of go-redis.
func must[T any](client T, err error) T {
	if err != nil {
		panic(err)
	}
	return client
}

// Connect is [NewClient] followed by [Supervisor.WaitReady] and one PING. It
// returns an error, and leaves nothing behind, when an option is invalid, when
// the server does not answer before ctx ends, or when it refuses the PING, as it
// does for a wrong password.
func Connect(ctx context.Context, opt *redis.Options, opts ...Option) (*Client, error) {
	c, err := newClient(opt, opts)
	if err != nil {
		return nil, err
	}
	err = c.WaitReady(ctx)
	if err == nil {
		err = c.Ping(ctx).Err()
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func newClient(opt *redis.Options, opts []Option) (*Client, error) {
	cfg, err := newConfig(opts)
	switch {
	case err != nil:
		return nil, err
	case opt == nil:
		return nil, errors.New("redial: options are nil")
	}
	return buildClient(opt, newKeeper(cfg, shownAddr(addrOf(opt.Addr))), isQuick(opt.Dialer, opt.TLSConfig), new(alone))
}

// alone owns the link of a client of one server, about which nothing but its own pool has
// to be known.
type alone struct{ pool }

func (*alone) changed(State)      {}
func (*alone) lookElsewhere()     {}
func (*alone) lookAround()        {}
func (*alone) where() string      { return "" }
func (*alone) strayed(*wire.Conn) {}
func (*alone) dismissed()         {}
func (*alone) reads() bool        { return false }

// led owns the link of a client whose server sentinels name.
type led struct {
	alone
	by      *sentinel.Directory
	replica bool // to one of the replicas
}

func (o *led) lookElsewhere() { o.by.Forget() }
func (o *led) where() string  { return o.by.Last() }
func (o *led) reads() bool    { return o.replica }

// lonely is an alone or led.
type lonely interface {
	owner
	// reads reports whether a replica was asked for, which takes no writes.
	reads() bool
	is(rdb *redis.Client, inflight *atomic.Int64, timeout time.Duration, f manners)
}

// buildClient builds a client for one server.
func buildClient(opt *redis.Options, k *keeper, quick bool, o lonely) (*Client, error) {
	return build(k, 0, func() (*Client, error) {
		e := endpointOf(opt, k.cfg, false, true)
		e.replica = o.reads()
		g := guarded(newLink(k.gate, e, o, pingerOf(opt, quick)))
		k.whole = g.link
		if words := malformed(opt); words != nil {
			g.bar(words)
		}
		k.add(g)
		rdb := redis.NewClient(g.poolOptions(opt))
		outer, err := k.cfg.surround(rdb)
		if err != nil {
			k.shut(notBuilt)
			_ = rdb.Close()
			return nil, err
		}
		h := &hook{link: g.peer(), router: newOneServer(&k.calls, g.Fleet, rdb.Options(), k.cfg, lone), inners: new(innerParts)}
		rdb.AddHook(h)
		o.is(rdb, &g.inflight, k.cfg.timeout, g)
		return &Client{Client: rdb, Supervisor: supervisorOf(k, rdb.Close), hook: h, hooks: &hookList{}, outer: outer}, nil
	})
}

// Close stops supervision, then closes the client: commands waiting for the link
// return [ErrClosed], those in flight fail as they do in go-redis, and when it
// returns every goroutine is joined and every connection closed. To let commands
// in flight finish, use Drain. A second Close returns redis.ErrClosed, as
// go-redis does.
func (c *Client) Close() error {
	return c.keeper.close(c.Client.Close)
}

// Drain closes the client gracefully: new commands are refused with
// [ErrClosed], as are those that wait for the link, and when the last one in
// flight has returned, or ctx has ended, it does what Close does. It returns an
// error that holds the context's when commands were cut short. Of a client of several
// nodes it counts what goes through the client itself, not what is sent with the
// clients of its nodes.
//
// It would be called Shutdown if that were not the name of go-redis's method for
// the SHUTDOWN command, which redis.Cmdable requires of every client.
func (c *Client) Drain(ctx context.Context) error {
	err := c.keeper.drain(ctx)
	return errors.Join(err, c.Close())
}

// WithTimeout returns a clone with other read and write timeouts, as go-redis
// does. It shares connections, supervision and, unlike go-redis's, the hooks:
// those added to c so far are added to the clone. Closing one closes both.
func (c *Client) WithTimeout(timeout time.Duration) *Client {
	clone := *c
	clone.Client = c.Client.WithTimeout(timeout)
	c.outer.on(clone.Client)
	router := *c.hook.router.(*oneServer)
	router.writeTimeout = clone.Options().WriteTimeout
	clone.hook = &hook{link: c.hook.link, router: &router, inners: new(innerParts)}
	clone.Client.AddHook(clone.hook)
	clone.hooks = &hookList{}
	for _, h := range c.hooks.all() {
		clone.AddHook(h)
	}
	return &clone
}

// Watch runs fn in a transaction guarded by WATCH, as go-redis does. When WATCH
// fails because the connection is lost, it is tried again on another, within the
// grace and ctx: fn has not run yet. Once fn has been called it is never called
// again, for what it did is not known here; when it fails with an error that is
// [SafeToRetry] the caller may run Watch again.
func (c *Client) Watch(ctx context.Context, fn func(*redis.Tx) error, keys ...string) error {
	return c.hook.watch(ctx, c.Client.Watch, fn, keys)
}

// AddHook adds a hook, as go-redis does. It runs inside redial's own, so it sees
// every attempt of a command, and remains in clones made by WithTimeout. What it does
// to commands and errors has the effect that it has in go-redis: the error of a command
// is returned as the hook returns it, unless that is, or wraps, what next returned; then
// redial tries again where it may, and else returns an [Error] that wraps it.
//
// For one that is to see a command once, waits and retries included, see
// [WithOuterHook].
//
// A hook that is added to the embedded client behind redial's back, and not here, works
// as well, but hides from redial what go-redis returned: some commands then end as
// [ErrOutcomeUnknown] of which more could be said. What a connection fails with it sees as
// an error of redial's, with the same text and cause; so does one that calls next with a
// context that does not come from the one it was given. It must not call next twice for a
// write: what it returns is taken for what became of the one time.
func (c *Client) AddHook(h redis.Hook) {
	c.hooks.add(h)
	c.Client.AddHook(h)
	c.hook.addInner(c.Client)
}

// hookList remembers hooks in the order they were added.
type hookList struct {
	mu   sync.Mutex
	list []redis.Hook // guarded by mu
}

func (h *hookList) add(hook redis.Hook) {
	h.mu.Lock()
	h.list = append(h.list, hook)
	h.mu.Unlock()
}

func (h *hookList) all() []redis.Hook {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.list)
}

// Supervisor watches over the link of a client and reports on it. Clients of
// this package embed one. Its methods are safe for concurrent use, and none of
// them does I/O on the caller's goroutine.
type Supervisor struct {
	keeper *keeper
	close  func() error
}

// supervisorOf returns the supervisor of a client of ours, which closes it.
func supervisorOf(k *keeper, client func() error) *Supervisor {
	return &Supervisor{k, func() error {
		_ = k.close(client) // it fails when the client was closed before
		return nil
	}}
}

// supervisorOver returns the supervisor of a client that was there before.
func supervisorOver(k *keeper) *Supervisor {
	return &Supervisor{k, func() error {
		k.shut(closedByCaller)
		k.join()
		return nil
	}}
}

// State returns the current state. It is one atomic load.
func (s *Supervisor) State() State { return s.keeper.gate.now() }

// WaitReady blocks until the state is StateConnected. It returns [ErrClosed]
// when the client is closed, at once a mistake that waiting cannot cure, like addresses
// that are none, or, when ctx ends first, an error that is both the
// context's error and the last transport error. Use it as a readiness probe with
// a short context.
func (s *Supervisor) WaitReady(ctx context.Context) error {
	return s.keeper.gate.waitState(ctx, StateConnected)
}

// WaitForState blocks until the state is want, with the errors of WaitReady. A
// state that was entered and left again between two looks can be missed; use
// [WithOnStateChange] to see every transition.
func (s *Supervisor) WaitForState(ctx context.Context, want State) error {
	return s.keeper.gate.waitState(ctx, want)
}

// Reconnect retires every connection and has the server dialed afresh, for
// instance after its name was pointed elsewhere. It does not wait for that: when
// it returns the state is StateReconnecting, with reason, and no command that is
// issued from then on uses an old connection; commands wait at the gate. Idle
// connections and subscriptions are closed, commands in flight may finish on
// theirs. Unless the state is StateConnected it does nothing.
func (s *Supervisor) Reconnect(reason string) {
	if reason == "" {
		reason = CauseReconnectCalled.text(s.keeper.cfg.maxWaiting)
	}
	s.keeper.whole.reconnect(reason)
}

// Check returns nil while the state is StateConnected, [ErrClosed] when it is StateClosed,
// and else an [Error] that is ErrUnavailable and says since when, why, and what the last
// transport error was. It never waits and does no I/O, and does not look at ctx, so it can
// be given to any library for health checks as it is: rdb.Check. It is as fresh as the
// heartbeat. [Supervisor.WaitReady] is for the start of a program; a library that hands it
// a context without an end waits for as long as the outage lasts.
//
// A client of several nodes is well while one of them answers; [Stats] has the others.
func (s *Supervisor) Check(ctx context.Context) error { return s.keeper.gate.check(0) }

// CheckAfter returns a function that is [Supervisor.Check] once the state has been other
// than StateConnected for longer than d, and returns nil before: outages that commands ride
// out do not turn a readiness probe red. A closed client is reported at once. d <= 0 is
// the same as Check.
func (s *Supervisor) CheckAfter(d time.Duration) func(ctx context.Context) error {
	return func(context.Context) error { return s.keeper.gate.check(d) }
}

// Stats returns a snapshot.
func (s *Supervisor) Stats() Stats { return s.keeper.whole.stats() }

// Outages returns the last outages of the client as a whole, the last 32, the oldest first, and
// after them the one that is not over, if there is one. The time before
// the first connection is none.
func (s *Supervisor) Outages() []Outage { return s.keeper.gate.lastOutages() }

// Close ends supervision: the state becomes StateClosed, waiting commands return
// [ErrClosed], and the goroutines are stopped and joined. A client that a constructor of
// this package has made is closed with it; one that was there before, see [Supervise], is
// not. It waits 50ms at most for a callback of [WithOnStateChange] to return, and as long
// as a heartbeat may take for a connection that is being warmed up. It is idempotent and
// never fails.
func (s *Supervisor) Close() error {
	return s.close()
}
