package redial

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/wire"
)

// How the server is asked whether it is there: by a PING on the connection on which it
// answered last, and by attempts, several at a time, each of which makes a new one. What
// is concluded from the answers is in verdict.go; when there is another attempt, the
// guard and its loop decide.

// pinger makes attempts to reach the server of a link. While it has a connection that is
// none of the pools': those may be exhausted without the server being dead, and heartbeats
// must not show up in the caller's hooks. The next dial of a pool takes it over, see pass.
type pinger struct {
	link  *link
	opt   *redis.Options // of the client that sets up a connection and PINGs; see newClient
	quick bool           // dialing is one round trip
	// How long a dial, and then what sets up the connection, may take. They are the
	// caller's: the heartbeat's own timeout bounds only the wait for an answer.
	dials, sets time.Duration

	mu      sync.Mutex
	shut    bool          // guarded by mu
	held    *probe        // guarded by mu; the server answered on it; nil: there is none
	running []*probe      // guarded by mu; attempts under way, the oldest first
	results []result      // guarded by mu; of what has ended, not yet taken
	changed chan struct{} // guarded by mu; closed when there is news
	typical time.Duration // guarded by mu; how long it takes until a connection is set up; 0: unknown
	pongs   bool          // guarded by mu; the server has answered a PING
	deaf    int           // guarded by mu; how many PINGs in a row it has not, while it answered HELLO
	cutOff  time.Time     // guarded by mu; when the first of the dials began that have led to no connection; zero: the last one has
}

// stage is how far a probe has come.
type stage uint8

const (
	dialing   stage = iota
	fetching        // the caller is being asked for credentials
	settingUp       // there is a connection
	pinging         // it is set up
	resting         // the server has answered on it
	over
)

// probe is an attempt, and then the connection that was made by it.
type probe struct {
	of     *pinger
	ctx    context.Context
	cancel context.CancelFunc
	began  time.Time
	heard  atomic.Bool            // a byte came back since the last PING
	words  atomic.Pointer[string] // an error is all that the server has said
	reads  atomic.Int32
	passed atomic.Bool   // the connection belongs to somebody else now
	greets wire.Greeting // used by whoever sets it up, and then by pass

	// These are guarded by mu of the pinger.
	stage  stage
	timer  *time.Timer
	asked  time.Time  // when the PING was sent
	conn   *probeConn // nil: there is none yet
	client *redis.Client
	told   *credentials // that the caller gave for it; nil: none

	pings, deaf bool // it asks by PING; or by HELLO instead, see pinger.isDeafLocked
}

// pingerOf returns what makes the prober of the link to a server. opt holds the caller's
// options, quick says that dialing is one round trip.
func pingerOf(opt *redis.Options, quick bool) func(*link) prober {
	return func(l *link) prober {
		p := newPinger(l, opt, quick)
		l.Inquirer = newInquiry(l, p.ask)
		return p
	}
}

func newPinger(l *link, opt *redis.Options, quick bool) *pinger {
	o := *opt
	o.PoolSize, o.MinIdleConns, o.MaxActiveConns, o.PipelinePoolSize = 1, 0, 0, -1
	o.MaxRetries, o.DialerRetries = -1, 1
	o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = -2, -2, mostSetUp // there may be no deadlines: timers close the connection
	o.DialTimeout = mostSetUp
	o.ContextTimeoutEnabled = false
	o.ConnMaxLifetime, o.ConnMaxIdleTime = 0, -1
	o.ReadBufferSize, o.WriteBufferSize = 1024, 1024
	o.Limiter, o.AutoPipelineOptions = nil, nil
	o.ClientSideCache, o.ClientSideCacheConfig = nil, nil
	o.PushNotificationProcessor = nil
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	o.DisableIdentity = true
	o.Addr = addrOf(o.Addr)
	if o.Network == "" { // as go-redis has it
		o.Network = "tcp"
		if strings.HasPrefix(o.Addr, "/") {
			o.Network = "unix"
		}
	}
	p := &pinger{link: l, opt: &o, quick: quick, changed: make(chan struct{})}
	p.dials = allowed(opt.DialTimeout, defaultDialTimeout, mostSetUp)
	p.sets = max(p.dials, allowed(opt.ReadTimeout, defaultReadTimeout, mostSetUp))
	return p
}

// again PINGs on the connection on which the server answered last. It reports whether
// there is one, on which no question is under way.
func (p *pinger) again() bool { return p.askAgain(true) }

// attempt does so, or else begins another. Where one has been answered, and nobody has taken
// that yet, it does nothing: commands may want the connection in the next moment.
func (p *pinger) attempt() {
	if !p.askAgain(false) {
		p.begin()
	}
}

// askAgain does what again does, always or only if nothing is known that nobody has taken.
func (p *pinger) askAgain(always bool) bool {
	p.mu.Lock()
	a := p.held
	there := a != nil && a.stage == resting && !p.shut
	ask := there && (always || !slices.ContainsFunc(p.results, func(r result) bool { return r.fresh && r.verdict == alive }))
	if ask {
		p.pingsLocked(a)
	}
	p.mu.Unlock()
	if ask && !p.spawn(a, func() error { return a.client.Do(a.ctx, p.link.Question()...).Err() }) {
		p.finish(a, redis.ErrClosed)
	}
	return there
}

// asking reports whether a question is under way on the connection on which the server
// answered last.
func (p *pinger) asking() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held != nil && p.held.stage == pinging
}

// begin makes an attempt. When there are too many, the one is given up for it that is the
// oldest of those that do not last.
func (p *pinger) begin() {
	ctx, cancel := context.WithCancel(p.link.ctx)
	a := &probe{of: p, ctx: ctx, cancel: cancel, began: time.Now()}
	var rolled *probe
	p.mu.Lock()
	if p.shut {
		p.mu.Unlock()
		cancel()
		return
	}
	if len(p.running) >= mostAttempts {
		rolled = p.running[lastingAttempts]
		p.running = slices.Delete(p.running, lastingAttempts, lastingAttempts+1)
		rolled.stage = over
	}
	p.running = append(p.running, a)
	if p.cutOff.IsZero() {
		p.cutOff = a.began
	}
	a.timer = time.AfterFunc(p.dials, func() { p.finish(a, a.late()) })
	p.mu.Unlock()
	rolled.end()
	if !p.spawn(a, a.run) {
		p.finish(a, redis.ErrClosed)
	}
}

// spawn has f, what a probe does, run where it may take as long as it likes.
func (p *pinger) spawn(a *probe, f func() error) bool {
	return p.link.spawn(func() { p.finish(a, p.link.abroad(f)) })
}

// run dials, sets the connection up and PINGs.
func (a *probe) run() error {
	p := a.of
	nc, err := p.link.dialNetwork(a.ctx, p.opt.Network, p.opt.Addr, p.link.dialer)
	if err != nil {
		return &wire.Error{Phase: wire.PhaseDial, Err: err}
	}
	via := &probeConn{Conn: nc, probe: a}
	client := a.newClient(via)
	p.mu.Lock()
	late := a.stage == over
	question := p.link.Question()
	if !late {
		if a.deaf = p.isDeafLocked(); a.deaf {
			question = []any{"hello", client.Options().Protocol}
		}
		a.pings = question[0] == "ping"
		p.cutOff = time.Time{}
		a.stage, a.conn, a.client = settingUp, via, client
		a.timer.Reset(p.sets)
		p.tellLocked()
	}
	p.mu.Unlock()
	if late {
		via.hangUp()
		_ = client.Close()
		return redis.ErrClosed
	}
	return client.Do(a.ctx, question...).Err()
}

// isDeafLocked reports whether the server seems to answer HELLO, which sets up connections,
// and no PING: it never has, and twice or, while that takes longer than a heartbeat may, once
// it has not. The caller holds mu.
func (p *pinger) isDeafLocked() bool {
	deaf := p.deaf
	for _, a := range p.running {
		if a.stage == pinging && !a.heard.Load() && time.Since(a.asked) >= p.link.cfg.timeout {
			deaf += fewestDeaf
		}
	}
	return !p.pongs && deaf >= fewestDeaf
}

// newClient returns a client that makes use of one connection.
func (a *probe) newClient(nc net.Conn) *redis.Client {
	o := *a.of.opt
	var used atomic.Bool
	o.Dialer = func(context.Context, string, string) (net.Conn, error) {
		if used.Swap(true) {
			return wire.NewStandin(net.ErrClosed, nil), nil
		}
		return nc, nil
	}
	o.OnConnect = func(context.Context, *redis.Conn) error { // it is set up, and the PING follows
		a.of.mu.Lock()
		a.of.pingsLocked(a)
		a.of.mu.Unlock()
		return nil
	}
	if f := o.CredentialsProviderContext; f != nil {
		o.CredentialsProviderContext = func(ctx context.Context) (string, string, error) {
			defer a.fetches()()
			username, password, err := f(ctx)
			if err == nil {
				a.tells(username, password)
			}
			return username, password, err
		}
	}
	if f := o.CredentialsProvider; f != nil {
		o.CredentialsProvider = func() (string, string) {
			defer a.fetches()()
			username, password := f()
			a.tells(username, password)
			return username, password
		}
	}
	if f := o.StreamingCredentialsProvider; f != nil {
		o.StreamingCredentialsProvider = fetched{f, a}
	}
	return redis.NewClient(&o)
}

// fetched is the provider of the caller, for a probe.
type fetched struct {
	auth.StreamingCredentialsProvider
	probe *probe
}

func (f fetched) Subscribe(l auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	defer f.probe.fetches()()
	return f.StreamingCredentialsProvider.Subscribe(l)
}

func (a *probe) tells(username, password string) {
	a.of.mu.Lock()
	a.told = &credentials{username, password, time.Now()}
	a.of.mu.Unlock()
}

// fetches notes that the caller is asked for credentials, until the returned function is
// called. As go-redis does, it leaves him all the time that he takes.
func (a *probe) fetches() (done func()) {
	turn := func(from, to stage, within time.Duration) {
		a.of.mu.Lock()
		defer a.of.mu.Unlock()
		if a.stage == from {
			a.stage = to
			a.timer.Reset(within)
			a.of.tellLocked()
		}
	}
	turn(settingUp, fetching, mostSetUp)
	return func() { turn(fetching, settingUp, a.of.sets) }
}

// pingsLocked notes that a probe sends a PING. The caller holds mu.
func (p *pinger) pingsLocked(a *probe) {
	if a.stage == over {
		return
	}
	a.stage, a.asked = pinging, time.Now()
	a.heard.Store(false)
	a.timer.Reset(p.sets)
	p.tellLocked()
}

// late is the error of a probe that has taken too long.
func (a *probe) late() error {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	if a.stage == dialing {
		return &wire.Error{Phase: wire.PhaseDial, Err: &slowError{"no connection", a.of.dials}}
	}
	return &slowError{"no answer on a new connection", a.of.sets}
}

// slowError says that something has not come about in time.
type slowError struct {
	what  string
	after time.Duration
}

func (e *slowError) Error() string { return fmt.Sprintf("%s within %v", e.what, e.after) }
func (e *slowError) Timeout() bool { return true }
func (e *slowError) Unwrap() error { return os.ErrDeadlineExceeded }

// finish notes what became of a probe. What answered is kept, and then the others are not
// needed any more.
func (p *pinger) finish(a *probe, err error) {
	heard := a.heard.Load()
	var done []*probe
	p.mu.Lock()
	if a.stage == over || a.stage == resting { // it is old news
		p.mu.Unlock()
		return
	}
	r := a.came(err, heard)
	if i := slices.Index(p.running, a); i >= 0 {
		r.fresh = true
		p.running = slices.Delete(p.running, i, i+1)
	}
	a.timer.Stop()
	answered := r.verdict == alive || r.verdict == notReady
	keep := a.stage == pinging && (err == nil || isReply(err)) && !p.shut
	took := time.Since(a.asked)
	switch {
	case !r.fresh || a.stage != pinging:
	case keep && a.deaf:
		p.deaf = 0
		p.link.GreetInstead(a.client.Options().Protocol)
	case keep:
		p.pongs = p.pongs || a.pings
	case !heard && a.pings:
		p.deaf++
	}
	if keep && r.fresh {
		p.setUpLocked(a.asked.Sub(a.began))
		p.link.Greeted(&a.greets)
	}
	via := a.conn
	if p.held != nil && (p.held == a) != keep { // it is replaced, or was broken
		p.held.stage = over
		done = append(done, p.held)
		p.held = nil
	}
	switch {
	case keep:
		a.stage = resting
		p.held = a
	case a.stage != over:
		a.stage = over
		done = append(done, a)
	}
	if answered {
		for _, b := range p.running {
			b.stage = over
		}
		done = append(done, p.running...)
		p.running = nil
	}
	p.results = append(p.results, r)
	p.tellLocked()
	p.mu.Unlock()
	if err == nil && took < p.link.cfg.timeout {
		p.link.Measure(took)
	}
	if keep && r.fresh {
		p.link.Beside(via.Conn) // which may be the caller's
	}
	for _, b := range done {
		b.end()
	}
	if answered && r.fresh {
		p.overtakes(a)
	}
}

// came returns what an error says that a probe has come to; heard is whether a byte came back.
func (a *probe) came(err error, heard bool) result {
	if said := a.words.Load(); said != nil && err != nil && !isReply(err) {
		words := saidInstead(*said)
		return result{verdict: judgeWords(words), err: words}
	}
	return result{verdict: judge(err, heard), err: err}
}

// overtakes has what began before an attempt that was answered given up, if it takes as
// long again as that has taken: packets got lost, and now they come through.
func (p *pinger) overtakes(a *probe) {
	took := time.Since(a.began)
	p.link.spawn(func() {
		if p.link.pause(took) {
			p.link.Overtaken(a.began)
		}
	})
}

// setUpLocked notes how long it took until a connection was set up. The caller holds mu.
func (p *pinger) setUpLocked(took time.Duration) {
	took = max(took, 1)
	if p.typical == 0 || took < p.typical {
		p.typical = took
		return
	}
	p.typical += (took - p.typical) / setUpSmoothing
}

// end frees what a probe holds that is over. A TLS farewell could block, so the transport
// is closed first.
func (a *probe) end() {
	if a == nil {
		return
	}
	a.cancel()
	a.of.mu.Lock()
	via, client := a.conn, a.client
	a.timer.Stop()
	a.of.mu.Unlock()
	if via != nil {
		via.hangUp()
		_ = client.Close()
	}
}

// tellLocked has everybody who waits for news look. The caller holds mu.
func (p *pinger) tellLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pinger) news() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

func (p *pinger) take() []result {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.results
	p.results = nil
	return all
}

// pace says how long after the last attempt another may begin, of which the schedule says
// d. Where none hangs the schedule is right. While one does, another is of use only if it
// may be done sooner: if it would be given the time that it takes to set a connection up,
// and not while the caller is being asked for credentials.
func (p *pinger) pace(d time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	connected := false
	for _, a := range p.running {
		if a.stage == fetching {
			return max(d, p.sets)
		}
		connected = connected || a.stage != dialing
	}
	switch {
	case len(p.running) == 0:
		return d
	case p.typical > 0:
		return max(d, p.typical)
	case p.quick && !connected:
		if time.Since(p.running[0].began) < dialPatience {
			return max(d, dialPatience)
		}
		return d
	}
	return max(d, firstPatience)
}

// unreachable returns for how long dials have led to no connection.
func (p *pinger) unreachable() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cutOff.IsZero() {
		return 0
	}
	return time.Since(p.cutOff)
}

// ask calls f with a client that has a connection on which the server has answered, and
// makes one attempt at one if there is none. Nobody else uses it meanwhile. When ctx ends
// it is closed. It is for goroutines that spawn has begun.
func (p *pinger) ask(ctx context.Context, f func(*redis.Client) error) error {
	for tried := false; ; {
		p.mu.Lock()
		a, changed := p.held, p.changed
		idle := a != nil && a.stage == resting
		begin := a == nil && len(p.running) == 0
		switch {
		case p.shut:
			p.mu.Unlock()
			return redis.ErrClosed
		case idle:
			p.pingsLocked(a)
		}
		p.mu.Unlock()
		if idle {
			stop := context.AfterFunc(ctx, func() { p.finish(a, ctx.Err()) })
			err := p.link.abroad(func() error { return f(a.client) }) // go-redis may panic on what a server says
			stop()
			p.finish(a, err)
			return err
		}
		switch {
		case begin && tried: // when to try again is for others to say
			return p.link.lastCause()
		case begin:
			tried = true
			p.begin()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-p.link.ctx.Done():
			return redis.ErrClosed
		}
	}
}

// pass hands over the connection on which the server answered last, and the time when it
// did, with what was said on it first; nil when there is none that is at rest. It is set
// up, and may be so again.
func (p *pinger) pass() (net.Conn, *wire.Greeting, time.Time) {
	p.mu.Lock()
	a := p.held
	if a == nil || a.stage != resting {
		p.mu.Unlock()
		return nil, nil, time.Time{}
	}
	p.held = nil
	a.stage = over
	p.tellLocked()
	nc, client, at := a.conn.Conn, a.client, a.asked
	p.link.lent.Store(a.told)
	p.link.Alone()
	a.conn = nil
	a.passed.Store(true)
	p.mu.Unlock()
	a.cancel()
	_ = client.Close()
	return nc, &a.greets, at
}

func (p *pinger) spares() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held != nil && p.held.stage == resting
}

// drop ends what is under way and gives up the connection that is held.
func (p *pinger) drop() {
	p.mu.Lock()
	all := p.running
	if p.held != nil {
		all = append(all, p.held)
	}
	for _, a := range all {
		a.stage = over
	}
	p.running, p.held, p.results = nil, nil, nil
	p.pongs, p.deaf = false, 0
	p.link.GreetInstead(0)
	p.tellLocked()
	p.mu.Unlock()
	for _, a := range all {
		a.end()
	}
}

// close does so for good.
func (p *pinger) close() {
	p.mu.Lock()
	p.shut = true
	p.mu.Unlock()
	p.drop()
}

// probeConn notes what arrives for a probe.
type probeConn struct {
	net.Conn
	probe  *probe
	closed atomic.Bool
}

func (c *probeConn) Close() error {
	if c.probe.passed.Load() || c.closed.Swap(true) {
		return nil
	}
	return c.Conn.Close()
}

// hangUp closes the connection without a farewell, and once, as that of a pool is.
func (c *probeConn) hangUp() {
	if !c.closed.Swap(true) {
		_ = sys.Transport(c.Conn).Close()
	}
}

func (c *probeConn) Write(b []byte) (int, error) {
	c.probe.greets.Said(b)
	return c.Conn.Write(b)
}

func (c *probeConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.probe.greets.Heard(b[:n])
		c.probe.hears(b[:n])
	}
	return n, err
}

// hears notes whether an error is all that the server says.
func (a *probe) hears(b []byte) {
	a.heard.Store(true)
	if a.reads.Add(1) > 1 {
		a.words.Store(nil)
		return
	}
	if line, rest, ok := bytes.Cut(b, []byte("\r\n")); ok && len(rest) == 0 && line[0] == '-' {
		words := string(line[1:])
		a.words.Store(&words)
	}
}
