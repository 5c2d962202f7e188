package redial

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"

	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/wire"
)

// How the connections of a link are dialed: with which dialer, whether there is any point,
// and with whose credentials. This uses links and what is below them.

// tuned bounds the time that dial may take, unless timeout is negative. Sockets get the
// keep-alive and, on Linux, the TCP_USER_TIMEOUT that end a half-open connection when all
// else has failed, see liveness.
func tuned(dial dialFunc, timeout, detection time.Duration) dialFunc {
	timeout = cmp.Or(timeout, defaultDialTimeout)
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		nc, err := dial(ctx, network, addr)
		if err == nil {
			sys.Tune(sys.Innermost(nc), liveness(detection))
		}
		return nc, err
	}
}

// plainDialer returns the caller's dialer or, without one, that of package net, which does
// what go-redis's does, but heeds ctx during the TLS handshake too. No words of it are shown
// that hold the password of a URL.
func plainDialer(own dialFunc, conf *tls.Config) dialFunc {
	dial := own
	switch {
	case own != nil && !isHostDialer(own):
		return own
	case own != nil:
	case conf != nil:
		dial = (&tls.Dialer{NetDialer: &net.Dialer{}, Config: conf}).DialContext
	default:
		dial = (&net.Dialer{}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if words := unreadable(network, addr); words != nil {
			return nil, words
		}
		return dial(ctx, network, addr)
	}
}

// malformed returns what package net says of the address in opt if it cannot read it, nil of
// any other. An own dialer of the caller's may know such addresses.
func malformed(opt *redis.Options) error {
	addr := addrOf(opt.Addr)
	if opt.Dialer != nil && !isHostDialer(opt.Dialer) || opt.Network == "" && strings.HasPrefix(addr, "/") {
		return nil
	}
	return unreadable(cmp.Or(opt.Network, "tcp"), addr)
}

// unreadable returns what package net says of an address that it cannot read, now or ever,
// nil of any other. Who puts a URL there is not shown its password.
func unreadable(network, addr string) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	switch {
	case err != nil:
	case strings.Contains(host, "@"): // no host has such a name
		err = &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	default:
		_, err = net.LookupPort(network, port)
	}
	switch bad := err.(type) {
	case *net.AddrError:
		return &net.OpError{Op: "dial", Net: network, Err: &net.AddrError{Err: bad.Err, Addr: shownAddr(bad.Addr)}}
	case *net.DNSError: // no host, or no port, has that name
		if shown := *bad; bad.IsNotFound {
			shown.Name = shownAddr(bad.Name)
			return &net.OpError{Op: "dial", Net: network, Err: &shown}
		}
	}
	return nil
}

// shownAddr returns an address as it may be shown: without the name and password of a URL,
// or of what is left of one. A socket of unix may have any name.
func shownAddr(addr string) string {
	scheme, rest, isURL := strings.Cut(addr, "://")
	if !isURL {
		scheme, rest = "", addr
	}
	at := strings.LastIndexByte(rest, '@')
	switch {
	case at <= 0, !isURL && strings.HasPrefix(addr, "/"):
		return addr
	case isURL:
		scheme += "://"
	}
	return scheme + "xxxxx" + rest[at:]
}

// shownAddrs returns the addresses of several servers as they may be shown, or what there is
// to be said of none.
func shownAddrs(addrs []string, none string) string {
	shown := make([]string, len(addrs))
	for i, addr := range addrs {
		shown[i] = shownAddr(addrOf(addr))
	}
	return cmp.Or(strings.Join(shown, ","), none)
}

// isQuick reports whether dialing is one round trip, as far as is known.
func isQuick(own dialFunc, conf *tls.Config) bool { return own == nil && conf == nil }

// endpointOf returns what opt, the caller's options, says of a server; they are only
// read. sealed says that go-redis would retry by itself, lends that its dialer is ours.
func endpointOf(opt *redis.Options, cfg *config, sealed, lends bool) endpoint {
	return endpoint{
		dialer:   tuned(plainDialer(opt.Dialer, opt.TLSConfig), opt.DialTimeout, cfg.detection()),
		foreign:  opt.Dialer != nil,
		dialTime: cmp.Or(opt.DialTimeout, defaultDialTimeout),
		csc:      opt.ClientSideCache != nil || opt.ClientSideCacheConfig != nil,
		deadline: opt.DialTimeout >= 0,
		renews: opt.CredentialsProvider != nil || opt.CredentialsProviderContext != nil ||
			opt.StreamingCredentialsProvider != nil,
		sealed: sealed, lends: lends && !movesUnnamed(opt),
		asks: poolAsks(opt.MaxRetries),
	}
}

// poolAsks is how often go-redis asks an exhausted pool, with that MaxRetries.
func poolAsks(retries int) int {
	if retries == 0 { // its default
		return maxRuns
	}
	return min(max(retries, 0)+1, maxRuns)
}

// dial makes the connections of go-redis's pools and subscriptions. It fails
// only where nobody counts failures; see wire.Standin.
func (l *link) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return l.dialBy(ctx, network, addr, l.dialer)
}

// poolOptions returns a copy of opt for the pools of the link.
//
// A provider of credentials that fails counts as what it is, a connection that could not be
// made: nothing was sent on it, and the caller's commands wait for the next one as they do
// when a dial fails. And it is not asked again for those of a connection that was set up when
// it was handed over: the pool sets it up once more.
func (l *link) poolOptions(opt *redis.Options) *redis.Options {
	own := ownOptions(opt, l.dial)
	lent := func() *credentials {
		if c := l.lent.Swap(nil); c != nil && time.Since(c.at) < l.cfg.interval+l.cfg.timeout {
			return c
		}
		return nil
	}
	if f := own.CredentialsProviderContext; f != nil {
		own.CredentialsProviderContext = func(ctx context.Context) (string, string, error) {
			if c := lent(); c != nil {
				return c.username, c.password, nil
			}
			username, password, err := f(ctx)
			return username, password, l.unprovided(ctx, err)
		}
	}
	if f := own.CredentialsProvider; f != nil {
		own.CredentialsProvider = func() (string, string) {
			if c := lent(); c != nil {
				return c.username, c.password
			}
			return f()
		}
	}
	if p := own.StreamingCredentialsProvider; p != nil {
		own.StreamingCredentialsProvider = &accountableProvider{p, l}
	}
	return own
}

// unprovided is what the error of a provider comes to.
func (l *link) unprovided(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if l.ctx.Err() == nil && ctx.Err() != context.Canceled {
		l.Suspect(err)
		l.awaitVerdict(ctx)
	}
	return &wire.Error{Phase: wire.PhaseDial, Err: err}
}

// accountableProvider is the provider of the caller, for the pool of a link.
type accountableProvider struct {
	auth.StreamingCredentialsProvider
	link *link
}

func (p *accountableProvider) Subscribe(l auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	credentials, unsubscribe, err := p.StreamingCredentialsProvider.Subscribe(l)
	return credentials, unsubscribe, p.link.unprovided(p.link.ctx, err)
}

// spare takes the connection on which the server was found to answer, so that none is set
// up beside those of the pools.
func (l *link) spare() *wire.Conn {
	gen := l.Generation()
	nc, greets, at := l.prober.pass()
	if nc == nil {
		return nil
	}
	return l.Adopt(nc, gen, greets, at)
}

// leaveSpare leaves that connection for a moment to commands that have waited for the server:
// whoever comes second has to make one, which may take long.
func (l *link) leaveSpare() {
	if !l.heirs.Swap(false) || !l.lends {
		return
	}
	timer := time.NewTimer(heirsWithin)
	defer timer.Stop()
	for {
		changed := l.prober.news()
		if !l.prober.spares() {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			return
		case <-l.ctx.Done():
			return
		}
	}
}

// dialBy does so with base, through which the connections go that are made for a client
// of the caller's.
func (l *link) dialBy(ctx context.Context, network, addr string, base dialFunc) (net.Conn, error) {
	moves := insideMove()
	c, err := l.connect(ctx, l.lends && !moves, func(ctx context.Context) (net.Conn, error) {
		return l.dialNetwork(ctx, network, addr, base)
	})
	if err == nil {
		return c.Pooled(), nil
	}
	if l.subscription(ctx) || moves {
		// It tries again on its own, and does so without the buffers that a
		// stand-in would cost.
		if l.ctx.Err() != nil {
			return nil, redis.ErrClosed
		}
		return nil, &wire.Error{Phase: wire.PhaseDial, Err: err}
	}
	return wire.NewStandin(err, l.Seal), nil
}

// connect has a connection made by dial, unless one that is to spare may do.
func (l *link) connect(ctx context.Context, spared bool, dial func(context.Context) (net.Conn, error)) (*wire.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(redis.ErrClosed) })() // the wait for a lane, too
	c, overtaken := (*wire.Conn)(nil), true
	for overtaken {
		if err := l.mayDial(ctx); err != nil {
			return nil, err
		}
		if spared {
			c = l.spare()
		}
		if c != nil {
			break
		}
		var err error
		if c, overtaken, err = l.dialInLane(ctx, dial); err != nil && !overtaken {
			return nil, err
		}
	}
	l.mu.Lock()
	fresh := l.state != StateClosed && l.Add(c)
	l.mu.Unlock()
	if !fresh {
		c.Discard()
		return nil, &wire.RetiredError{Cause: l.lastCause()}
	}
	return c, nil
}

// dialInLane waits for a lane and dials. It reports whether it failed because others have
// overtaken it, and had better be done again.
func (l *link) dialInLane(ctx context.Context, dial func(context.Context) (net.Conn, error)) (c *wire.Conn, overtaken bool, err error) {
	leaveLane, err := l.Lanes.Enter(ctx)
	if err != nil {
		return nil, false, err
	}
	defer func() { leaveLane(c != nil) }()
	gen := l.Generation()
	dialing, leave := l.Lanes.Dialing(ctx)
	defer leave()
	nc, err := l.dialApart(dialing, dial)
	switch {
	case err == nil:
		return l.New(nc, gen), false, nil
	case ctx.Err() == nil && context.Cause(dialing) == wire.ErrOvertaken:
		return nil, true, err
	case l.ctx.Err() == nil && ctx.Err() != context.Canceled:
		l.Lanes.Failed(err)
		l.Suspect(err)
		l.awaitVerdict(ctx)
	}
	return nil, false, err
}

// awaitVerdict waits for a moment until it is known what a dial that failed says of the
// server: whoever dialed has no connection, and the gate is the place to wait for one.
func (l *link) awaitVerdict(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, subscriberWait)
	defer cancel()
	_ = l.await(ctx, func() bool { return !l.suspected || l.state != StateConnected })
}

// dialApart dials for go-redis. A dialer of the caller's may pay no heed to ctx, so it runs
// on a goroutine of its own: whoever wants the connection goes on without it when the time
// for that is over, and what comes later is closed. What the dialer panics with is theirs.
func (l *link) dialApart(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	if !l.foreign {
		return dial(ctx)
	}
	if l.dialTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.dialTime)
		defer cancel()
	}
	type dialed struct {
		nc       net.Conn
		err      error
		panicked any
	}
	done, gone := make(chan dialed), make(chan struct{})
	defer close(gone)
	run := func() error {
		d := dialed{err: errors.New("the dialer has ended its goroutine")}
		defer func() {
			d.panicked = recover()
			select {
			case done <- d:
				return
			case <-gone:
			}
			switch {
			case d.panicked != nil:
				panic(d.panicked)
			case d.nc != nil:
				_ = sys.Transport(d.nc).Close()
			}
		}()
		d.nc, d.err = dial(ctx)
		return nil
	}
	if !l.spawn(func() { _ = l.abroad(run) }) {
		return nil, redis.ErrClosed
	}
	arrived := func(d dialed) (net.Conn, error) {
		if d.panicked != nil {
			panic(d.panicked)
		}
		return d.nc, d.err
	}
	over := redis.ErrClosed
	select {
	case d := <-done:
		return arrived(d)
	case <-l.ctx.Done():
	case <-ctx.Done():
		over = ctx.Err()
	}
	timer := time.NewTimer(dialFarewell)
	defer timer.Stop()
	select {
	case d := <-done:
		return arrived(d)
	case <-timer.C:
		return nil, over
	}
}

// dialNetwork dials and counts. ctx ends when the link is closed.
func (l *link) dialNetwork(ctx context.Context, network, addr string, base dialFunc) (net.Conn, error) {
	l.n.Dials.Add(1)
	began := time.Now()
	nc, err := base(ctx, network, addr)
	if err != nil {
		l.n.DialErrors.Add(1)
	} else if l.RTT() == 0 {
		l.Measure(time.Since(began)) // a first guess, rather too long than too short
	}
	return nc, err
}

// mayDial lets a dial go ahead, or says why there is no point. While the link is
// Connecting it waits for a moment. So do the dials of subscriptions while it is
// Reconnecting, unless the server answers that it is not ready: it serves them all the same,
// and their caller has no gate to wait at.
func (l *link) mayDial(ctx context.Context) error {
	patient := l.subscription(ctx)
	state, _ := l.current()
	if l.hopeless() {
		return l.said() // if not the server, the dialer says why
	}
	if state != StateConnected {
		l.tend()
		if patient { // its caller waits, though not at the gate
			l.want()
		}
	}
	caller := ctx
	if patient || state == StateConnecting {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, subscriberWait)
		defer cancel()
	}
	err := error(nil)
	if l.await(ctx, func() bool {
		switch {
		case l.state == StateClosed:
			err = redis.ErrClosed
		case l.state == StateReconnecting && !patient:
			err = l.causeLocked()
		case l.state != StateConnected:
			return patient && l.unready
		}
		return true
	}) != nil {
		if end := caller.Err(); patient && end != nil {
			return end
		}
		return l.lastCause()
	}
	return err
}

// said returns the words of a server that will serve nobody.
func (l *link) said() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return notReply(l.words)
}

// subscription reports whether a dial with ctx is for a subscription: those carry
// the caller's context, those of the pools have the DialTimeout for a deadline.
func (l *link) subscription(ctx context.Context) bool {
	_, ok := ctx.Deadline()
	return !ok && l.deadline
}
