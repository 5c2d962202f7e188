package redial

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redial-go/redial/internal/sys"
)

// pinger PINGs the server on a connection of its own, which takes no part in the
// pools: they may be exhausted without the server being dead, and heartbeats
// must not show up in the caller's hooks.
type pinger struct {
	client *redis.Client
	link   *link
	cur    atomic.Pointer[probeConn] // the connection in use, nil before the first
	dialed atomic.Pointer[probeConn] // made by ping for the client, not yet handed over
	heard  atomic.Bool               // a byte came back since the probe began
	hasty  atomic.Bool               // a connection must be made quickly or not at all
	spoilt atomic.Bool               // the client's pool holds a connection that drop has closed
	flush  atomic.Bool               // ping has the pool find it; nothing is to be dialed
	quick  bool                      // dialing is one round trip, so it can be quick
}

// probeConn notes that bytes arrive.
type probeConn struct {
	net.Conn
	heard *atomic.Bool
}

func (c *probeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(true)
	}
	return n, err
}

// pinging returns what makes the prober of the link to a server. opt holds the caller's
// options, quick says that dialing is one round trip.
func pinging(opt *redis.Options, quick bool) func(*link) prober {
	return func(l *link) prober {
		p := newPinger(l, opt, quick)
		l.inquirer = newInquiry(l, p.ask)
		return p
	}
}

// ask has f ask the server something, on the connection of the heartbeat.
func (p *pinger) ask(ctx context.Context, f func(*redis.Client) error) error {
	if p.link.ctx.Err() != nil {
		return p.link.ctx.Err()
	}
	return f(p.client)
}

func newPinger(l *link, opt *redis.Options, quick bool) *pinger {
	p := &pinger{link: l, quick: quick}
	o := *opt
	o.Dialer = p.dial
	o.PoolSize, o.MinIdleConns, o.MaxActiveConns, o.PipelinePoolSize = 1, 0, 0, -1
	o.MaxRetries, o.DialerRetries = -1, 1
	o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = l.cfg.timeout, l.cfg.timeout, l.cfg.timeout
	o.DialTimeout = l.cfg.timeout
	o.ContextTimeoutEnabled = true
	o.ConnMaxLifetime, o.ConnMaxIdleTime = 0, -1
	o.ReadBufferSize, o.WriteBufferSize = 1024, 1024
	o.OnConnect, o.Limiter, o.AutoPipelineOptions = nil, nil, nil
	o.ClientSideCache, o.ClientSideCacheConfig = nil, nil
	o.PushNotificationProcessor = nil
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	o.DisableIdentity = true
	p.client = redis.NewClient(&o)
	return p
}

// connect dials. What it returns is closed by drop.
func (p *pinger) connect(ctx context.Context, network, addr string) (*probeConn, error) {
	if rtt := p.link.rtt.Load(); p.quick && rtt > 0 && p.hasty.Load() {
		// While packets are dropped, waiting for the kernel to send its second
		// SYN, a second later, would be time lost once they are not.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(quickDial, proofRoundTrips*time.Duration(rtt)))
		defer cancel()
	}
	nc, err := p.link.dialNetwork(ctx, network, addr, p.link.dialer)
	if err != nil {
		return nil, err
	}
	c := &probeConn{nc, &p.heard}
	p.cur.Store(c)
	if p.link.ctx.Err() != nil {
		_ = c.Close()
	}
	return c, nil
}

// dial is the Dialer of the client. It hands over what ping has dialed.
func (p *pinger) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if p.flush.Load() {
		return &standin{err: net.ErrClosed}, nil
	}
	c := p.dialed.Swap(nil)
	if c == nil {
		var err error
		if c, err = p.connect(ctx, network, addr); err != nil {
			return &standin{err: err}, nil
		}
	}
	return c, nil
}

func (p *pinger) hurry(on bool) { p.hasty.Store(on) }

// close ends a probe that is under way and frees the connection. A TLS farewell
// could block, so the transport is closed first.
func (p *pinger) close() {
	p.drop()
	_ = p.client.Close()
}

// drop closes the connection, so that the next probe dials afresh.
func (p *pinger) drop() {
	p.dialed.Store(nil)
	if c := p.cur.Swap(nil); c != nil {
		p.spoilt.Store(true)
		_ = sys.Innermost(c.Conn).Close()
	}
}

// ping sends one PING and says what came of it. A fresh probe dials, and so
// tests whether the server accepts connections; otherwise the last one serves.
func (p *pinger) ping(fresh bool) (verdict, error) {
	l := p.link
	ctx, cancel := context.WithTimeout(l.ctx, l.cfg.timeout)
	defer cancel()
	if fresh {
		p.drop()
	}
	had := p.cur.Load() != nil
	if p.spoilt.Swap(false) && !had {
		p.flush.Store(true)
		_ = p.client.Ping(ctx).Err()
		p.flush.Store(false)
	}
	p.heard.Store(false)
	began := time.Now()
	err := p.exchange(ctx)
	if err == nil && had {
		l.measure(time.Since(began))
	}
	if err != nil && !isReply(err) {
		p.drop()
	}
	v := judge(err, p.heard.Load())
	if v != alive && l.ctx.Err() != nil {
		v = unsure
	}
	return v, err
}

// exchange makes sure of a connection and has the client send a PING on it. In a
// long outage most dials fail, and need not trouble the client.
func (p *pinger) exchange(ctx context.Context) error {
	if p.cur.Load() == nil {
		opt := p.client.Options()
		c, err := p.connect(ctx, opt.Network, opt.Addr)
		if err != nil {
			return &connError{phase: phaseDial, err: err}
		}
		p.dialed.Store(c)
	}
	return p.client.Ping(ctx).Err()
}

// judge reads a verdict off the error of a PING; heard says whether any byte
// came back.
func judge(err error, heard bool) verdict {
	switch {
	case err == nil:
		return alive
	case isNotReady(err):
		return notReady
	case isReply(err), heard:
		return alive // whatever it said, it speaks
	case errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, context.Canceled),
		errors.Is(err, redis.ErrClosed):
		return unsure
	case sys.IsTimeout(err):
		return missed
	}
	return dead
}

// guard looks after a link: it reaches the server and, while the link is Connected, finds
// out whether it lives.
type guard struct {
	*link
	beatAt    time.Time // guarded by mu; when the next heartbeat is due
	beatIsDue bool      // guarded by mu; it is, and there was no traffic
	lookAt    time.Time // when the keeper, which alone uses it, looks next
}

// dueLocked reports whether the server is to be asked: it is under suspicion, or a
// heartbeat is due. The caller holds mu.
func (g *guard) dueLocked() bool { return g.suspected || g.beatIsDue }

// check asks it, and reports whether it failed to answer.
func (g *guard) check() (failed bool) {
	g.mu.Lock()
	suspected := g.suspected
	g.mu.Unlock()
	why, cause := g.verify(suspected)
	if why != CauseNone {
		g.transition(StateReconnecting, why, "", cause, 0)
		g.owner.lookElsewhere()
		return cause != nil
	}
	g.acquit()
	if suspected {
		g.pause(verifySpacing)
	}
	return false
}

// acquit is the verdict that the server lives, of which its answer is a sign.
func (g *guard) acquit() {
	g.heard.Store(true)
	g.answeredAt.Store(g.read())
	g.mu.Lock()
	if g.suspected {
		g.suspected = false
		g.tellLocked()
	}
	g.beatIsDue = false
	g.beatAt = time.Now().Add(early(g.beat()))
	g.mu.Unlock()
}

func (g *guard) hurry(on bool) { g.prober.hurry(on) }

// attempt tries to reach the server.
func (g *guard) attempt(fresh bool) (verdict, error) {
	g.heard.Store(false)
	return g.prober.ping(fresh)
}

// reached is called when it was. It returns words for that, where it may be one of several.
func (g *guard) reached() string {
	g.acquit()
	g.cold.Store(true)
	if addr := g.owner.where(); addr != "" {
		return "server " + addr + " answers"
	}
	return ""
}

// unreached is called when it was not; lost says that this cannot be chance.
func (g *guard) unreached(lost bool, err error) {
	// After a Reconnect by hand, commands may still be in flight on old connections.
	if lost && !g.heard.Load() {
		g.eachConn(func(c *conn) { c.retire(notReply(err)) })
	}
	g.noteCause(err)
	g.owner.lookElsewhere()
}

// look is what the keeper does with the link every now and then. It returns when
// it wants to be called again.
func (g *guard) look(now time.Time) time.Time {
	g.cutSilentSubscribers()
	again := g.inspect(now)
	next := g.lookForTraffic(now)
	if again.Before(next) {
		return again
	}
	return next
}

// lookForTraffic has the server asked for a sign of life when it has given none since the
// last look.
func (g *guard) lookForTraffic(now time.Time) time.Time {
	g.mu.Lock()
	if g.state != StateConnected || now.Before(g.beatAt) {
		defer g.mu.Unlock()
		if g.state != StateConnected {
			return now.Add(g.beat()) // there is a goroutine for that
		}
		return g.beatAt
	}
	g.beatAt = now.Add(early(g.beat()))
	next := g.beatAt
	g.beatIsDue = !g.heard.Swap(false)
	due := g.beatIsDue
	g.mu.Unlock()
	if due {
		g.tend()
	} else {
		g.n.skipped.Add(1)
	}
	return next
}

// verify finds out whether the server lives. A cause means that it does not: a
// dial was refused, two new connections in a row broke, or as many probes as
// allowed went unanswered, while no connection of the pools received a byte.
func (g *guard) verify(fresh bool) (why Cause, cause error) {
	began := g.advance()
	broke := false
	for misses := 0; ; {
		g.heard.Store(false)
		g.n.beats.Add(1)
		v, err := g.prober.ping(fresh)
		g.advance() // it may have taken a while
		if v != alive && g.heard.Load() {
			return CauseNone, nil // a byte on any connection overrules the probe
		}
		if g.now() != StateConnected {
			return CauseNone, nil // it was asked for another server meanwhile
		}
		switch v {
		case alive:
			if misses > 0 {
				g.cutSilent(began)
			}
			return CauseNone, nil
		case unsure:
			return CauseNone, nil
		case notReady:
			return CauseNotReady, err
		case dead:
			var ce *connError
			if fresh && (broke || errors.As(err, &ce) && ce.phase == phaseDial) {
				return CauseConnectionLost, err
			}
			broke = fresh // what broke the others may have met this one too
		case missed:
			g.n.missed.Add(1)
			if misses++; misses >= g.cfg.misses {
				return CauseHeartbeatMissed, fmt.Errorf("%d heartbeats in a row without an answer: %w", misses, err)
			}
		}
		fresh = true // only a new connection can tell the server from the connection
	}
}

// measure smooths the round trip, as TCP does.
func (l *link) measure(rtt time.Duration) {
	old := l.rtt.Load()
	if old == 0 {
		l.rtt.Store(int64(rtt))
		return
	}
	l.rtt.Store(old + (int64(rtt)-old)/8)
}

// cutSilent is called when the server answers on a new connection after the old
// one of the heartbeat went silent: whatever swallows its bytes, a flushed NAT
// table perhaps, may swallow those of the pools. Redis runs one command after the
// other, so a request that was sent before the heartbeat began and is still
// unanswered, once replies have had time to arrive, never will be; unless it is
// one that waits.
func (l *link) cutSilent(began int64) {
	l.pause(l.cfg.timeout / 2)
	l.suspectAt.Store(began)
	l.advance()
	l.eachConn(func(c *conn) {
		if owes := c.owes.Load(); owes != 0 && owes < began && c.role.Load() == roleRegular && !c.waits.Load() {
			l.n.cut.Add(1)
			c.retire(errSilent)
		}
	})
}

var errSilent = errors.New("no reply, although the server answers on a new connection")

// cutSilentSubscribers closes the subscriptions that have owed an answer for
// longer than heartbeats may: go-redis PINGs them and does not wait for the
// PONG. They subscribe anew on their own.
func (l *link) cutSilentSubscribers() {
	limit := int64(time.Duration(l.cfg.misses) * l.cfg.timeout)
	now := l.read()
	l.eachConn(func(c *conn) {
		if owes := c.owes.Load(); owes != 0 && now-owes > limit && c.role.Load() == roleSubscriber {
			l.n.cut.Add(1)
			c.retire(errors.New("subscriber's PING went unanswered"))
		}
	})
}

// sweep proves the connections that have been idle for about sweepAge.
func (l *link) sweep() {
	l.eachConn(func(c *conn) {
		age := float64(max(sweepAge, l.cfg.idleCheck)) * (1 - sweepJitter*rand.Float64())
		if l.ctx.Err() == nil && c.sweepable(int64(age)) {
			c.sweep(int64(age))
		}
	})
}
