package redial

// What the hook of a node does for a client of several. It makes one attempt at the link
// of the node, as call.go has it made for a client of one server. But for the first attempt
// of all to reach the node, see meet, it does not wait: the outer hook does, and has go-redis
// find a node again. What reaches a node without the mark of the outer hook, as from
// ForEachMaster or MasterForKey, is carried on here.
//
// The two talk through go-redis, which must neither understand a failure nor act on it:
//
//	the hook of a node finds           and returns             go-redis          the outer hook
//	-------------------------          -----------             --------          --------------
//	success, an answer                 it                      returns it        returns it
//	MOVED, ASK                         it                      follows it        waits, if that led nowhere
//	another refusal                    it                      may try again     waits, unless it is an answer
//	a refusal that a script raised     failure{answered}       gives up          returns it
//	the gate shut, nothing sent        failure{notSent}        gives up          waits for the node, or another
//	... of a read that replicas serve  failure{another: true}  asks a replica    the same, if none answers
//	a reply lost or unreadable         failure{unknown, ...}   gives up          ErrOutcomeUnknown, or again
//	... of reads beside a write        failure{garbled, final} gives up          returns why it is unreadable
//	that the node is closed            redis.ErrClosed         asks another      looks for the topology
//	the end of the context             it                      returns it        returns it
//	no answer about the topology       failure{notSent}        asks another      waits
//	... and there cannot be any        it, or why              asks another      returns it
//	no connection set up               failure{setup: true}    gives up          waits: nothing was sent
//	a word of a hook of the caller     it                      returns it        returns it
//
// In a pipeline, and in a transaction of a ring, each command that has no answer, or is
// refused and at the end, has the failure. A transaction of a cluster has none: go-redis
// goes by what it knows from below this hook. A failure with final set must not be sent
// again; one with panicked set panics anew where the caller can recover it.

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/wire"
)

// routed is the context of a command that came through the outer hook.
type routed struct {
	context.Context
	parts *parts // of a command that go-redis splits; nil: it does not
	batch bool   // of a pipeline or transaction

	// ran is set when the hook of a node has asked for a transaction of a cluster more than
	// once, and that may have run one of the times before. nil: there are no such hooks.
	ran *atomic.Bool
}

func (r *routed) Value(key any) any {
	if key == (routedKey{}) {
		return r
	}
	return r.Context.Value(key)
}

// Most commands without a context of their own are spared an allocation.
var (
	routedBackground      = &routed{Context: context.Background()}
	routedBackgroundBatch = &routed{Context: context.Background(), batch: true}
)

func routedContext(ctx context.Context, batch bool) context.Context {
	switch {
	case ctx != context.Background():
		return &routed{Context: ctx, batch: batch}
	case batch:
		return routedBackgroundBatch
	}
	return routedBackground
}

// routedOf returns the mark of the outer hook, nil when there is none.
func routedOf(ctx context.Context) *routed {
	r, _ := ctx.Value(routedKey{}).(*routed)
	return r
}

// hook returns the outer hook of a client of several nodes, which are its router.
func (n *nodes) hook() *hook { return &hook{link: n.peer(), router: n, inners: &n.inners} }

// send marks the context of a command and has go-redis send it to its node.
func (n *nodes) send(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, from origin) error {
	n.use()
	if err := cmd.Err(); err != nil && failureOf(err) != nil { // of the attempt before, which is for us alone
		cmd.SetErr(nil)
	}
	if o := oncesOf(ctx); o.has(cmd) && n.redirects() && (n.leads(cmd, from) || n.splits(cmd)) {
		return next(routedContext(ctx, false), toMaster(cmd))
	}
	if !n.splits(cmd) {
		if command.Known(cmd) {
			// go-redis wants to know this of commands that it splits, and would ask a
			// node for the description of all commands before it sends the first.
			cmd.SetStepCount(1)
		}
		return next(routedContext(ctx, false), cmd)
	}
	p := &parts{}
	cmd.SetErr(nil)
	err := next(&routed{Context: ctx, parts: p}, cmd)
	if err == nil { // go-redis tells of some failures on the command only
		err = cmd.Err()
	}
	err = p.together(&terms{cfg: n.cfg, ctx: ctx, redirects: n.redirects(), reads: command.ReadOnly(cmd)}, err)
	cmd.SetErr(err)
	return err
}

// sendBatch does the same for a batch, for which its nodes have noted what they found
// on the commands.
func (n *nodes) sendBatch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, from origin) *finding {
	n.use()
	sent := cmds
	if o := oncesOf(ctx); o != nil && n.redirects() && !command.IsTransaction(cmds) { // which goes to a master anyway
		sent = slices.Clone(cmds)
		for i, cmd := range cmds {
			if o.has(cmd) && n.leads(cmd, from) {
				sent[i] = toMaster(cmd)
			}
		}
	}
	r := routedContext(ctx, true)
	var ran *atomic.Bool
	if n.hooked.Load() && n.redirects() && command.IsTransaction(cmds) {
		ran = new(atomic.Bool)
		r = &routed{Context: ctx, batch: true, ran: ran}
	}
	err := next(r, sent)
	if n.redirects() {
		err = amidTransaction(cmds, err)
	}
	f := foundOf(ctx, from, err)
	if f != nil && ran != nil && ran.Load() {
		f.again, f.mayHaveRun, f.before = true, true, slices.Clone(cmds)
	}
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && failureOf(err) != nil {
			f = f.orWell(from)
			f.add(cmd, err)
		}
	}
	return f
}

// leads reports whether a command with an id has a stand-in on its way through a cluster.
// Hooks that were added behind our back see it, so there it has one only where it must.
func (n *nodes) leads(cmd redis.Cmder, from origin) bool {
	return from != foreignHook || n.afar && command.ReadOnly(cmd)
}

// toMaster returns what stands for a command with an id on its way to the one node that
// has its keys, which are in one slot, and can keep its record: not to parts of it to
// several, and not to a replica.
func toMaster(cmd redis.Cmder) redis.Cmder {
	if at, _, why := command.Keys(cmd); why == "" && at[0] <= math.MaxInt8 {
		cmd.SetFirstKeyPos(int8(at[0]))
	}
	cmd.SetStepCount(1)
	return unsplit{cmd}
}

func (n *nodes) mark(ctx context.Context) context.Context { return routedContext(ctx, false) }
func (n *nodes) several() bool                            { return true }

// neighbors says what the nodes are to each other, as far as that is known.
func (n *nodes) neighbors() neighbors {
	switch {
	case n.ring:
		return shards
	case n.named:
		return lone
	}
	return cluster
}

func (n *nodes) redirects() bool                 { return !n.ring }
func (n *nodes) spreads(cmds []redis.Cmder) bool { return n.ring || !command.IsTransaction(cmds) }

// nodeHook is the outermost hook of the client of one node.
type nodeHook struct {
	*hook         // for what comes to the node directly
	of    *nodes  // the client's
	at    *member // this one
}

// adopt builds the client of a node, with newClient if that is not nil, and the link to it.
// go-redis calls it, holding a lock of its own.
func (n *nodes) adopt(opt *redis.Options, newClient func(*redis.Options) *redis.Client) *redis.Client {
	m := n.newMember(opt, isQuick(opt.Dialer, opt.TLSConfig), true)
	rdb := n.build(m.link.poolOptions(opt), newClient)
	m.hook = &hook{link: m.link.peer(), router: newOneServer(&n.calls, m.link.Fleet, rdb.Options(), n.cfg, n.neighbors()), inners: new(innerParts)}
	rdb.AddHook(&nodeHook{m.hook, n, m})
	n.enlist(rdb, m)
	return rdb
}

// build has newClient build a client. If supervision ends before it has, there is another in
// its place, which is never used.
func (n *nodes) build(opt *redis.Options, newClient func(*redis.Options) *redis.Client) *redis.Client {
	if newClient == nil {
		return redis.NewClient(opt)
	}
	spare := *opt // which the function may be at work on when it is late
	var built *redis.Client
	var taken atomic.Bool // who is late closes what was built
	n.lent(func() {
		rdb := newClient(opt)
		if built = rdb; taken.Swap(true) && rdb != nil {
			_ = rdb.Close()
		}
	})
	if taken.Swap(true) {
		return built
	}
	return redis.NewClient(&spare)
}

// ProcessHook guards single commands.
func (h *nodeHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	direct := h.hook.ProcessHook(next)
	w := h.wayTo(next)
	return func(ctx context.Context, cmd redis.Cmder) error {
		cmd = plainCommand(cmd)
		r := routedOf(ctx)
		if w.from == foreignHook { // what a hook of the caller sends by itself is no part of this
			ctx = unrouted(ctx)
		}
		switch {
		case ctx.Err() != nil: // go-redis does not send it, and everybody sees why
			_, err := h.try(ctx, cmd, next, w, false)
			return err
		case command.IsAboutTopology(cmd):
			return h.ask(ctx, cmd, next, w)
		case h.of.pinged && cmd.Name() == "ping":
			return h.pinged(ctx, cmd, direct)
		case r == nil:
			return direct(ctx, cmd)
		case r.parts == nil || command.IsHandshake(cmd): // which may set up a connection for a part
			return h.process(ctx, cmd, next, w)
		}
		err := h.process(ctx, cmd, next, w)
		r.parts.note(err)
		return err
	}
}

// process makes one attempt at a command.
func (h *nodeHook) process(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, w way) error {
	l := h.at.link
	setup := command.IsHandshake(cmd)
	if !setup {
		h.at.isBuilt()
	}
	spare := h.of.reader && command.ReadOnly(cmd)
	admitted, since := h.enter(ctx, spare)
	if !admitted && !setup {
		return h.down(spare, since)
	}
	f, err := h.try(ctx, cmd, next, w, admitted)
	if err == nil || err == redis.Nil {
		return err
	}
	t := terms{atNode: true} // what else there is to know the outer hook knows
	o := t.outcome(cmd, f.why, f)
	switch {
	case o == answered && (f.mayHaveRun || command.IsScript(cmd) && wouldRepeat(err)):
		// It, or what a hook asked for besides, may have done something; go-redis would
		// take it for undone.
		return &failure{at: l, outcome: o, err: err}
	case o == answered, o == refused, o == foreign:
		l.react(err)
		if last, ok := ctx.Value(ctxWatch).(*error); ok {
			*last = err
		}
		return err
	case o == denied && (setup || !l.renews), o == notSentForGood && errors.Is(err, redis.ErrClosed):
		return err // of what sets up a connection it becomes that of the command
	}
	return &failure{
		at: l, outcome: o, err: err, setup: setup,
		another: spare && (o == notSent || l.cfg.mayRepeat(ctx, cmd)),
	}
}

// enter admits a command while the node is Connected, or once it is, when the first
// attempt of all to reach it is under way: go-redis would wait for that as well. spare says
// that another node may do instead. since is when the command began to wait, zero when it
// did not. The caller must leave.
func (h *nodeHook) enter(ctx context.Context, spare bool) (admitted bool, since time.Time) {
	l := h.at.link
	if l.enter() {
		return true, since
	}
	switch l.now() {
	case StateConnected: // since then
		return l.enter(), since
	case StateConnecting:
		since = time.Now()
		h.meet(ctx, since, spare)
		return l.enter(), since
	}
	return false, since
}

// meet waits until the first attempt of all to reach the node has ended, for as long as a
// command may that has waited since then: what must not wait, or need not for this node,
// waits for a moment.
func (h *nodeHook) meet(ctx context.Context, since time.Time, spare bool) {
	l, p := h.at.link, patienceOf(ctx)
	if began, ok := ctx.Value(ctxBegan).(time.Time); ok {
		since = began
	}
	moment := subscriberWait
	if p.own > 0 {
		moment = min(moment, p.own-time.Since(since))
	}
	if h.met(ctx, moment) || p.failFast || spare {
		return
	}
	l.want()
	rest := l.graceLeft()
	if p.own > 0 {
		rest = p.own - time.Since(since)
	}
	h.met(ctx, rest)
}

// met waits for d, and reports whether there is nothing to wait for any more: the attempt
// has ended, the command must, or another node may have taken over.
func (h *nodeHook) met(ctx context.Context, d time.Duration) bool {
	l := h.at.link
	seen, news := h.of.told()
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		untried, changed := l.untried()
		if !untried {
			return true
		}
		l.tend()
		select {
		case <-changed:
		case <-news:
			was := seen
			if seen, news = h.of.told(); seen != was {
				return true
			}
		case <-l.refusing:
			return true
		case <-ctx.Done():
			return true
		case <-timer.C:
			return false
		}
	}
}

// down is the error of a command that finds the gate shut, and has waited there since then.
func (h *nodeHook) down(spare bool, since time.Time) error {
	l := h.at.link
	if l.now() == StateClosed {
		return redis.ErrClosed // go-redis knows what to do
	}
	l.tend()
	n := h.unsent(&wire.Error{Phase: wire.PhaseDial, Err: l.lastCause()})
	n.another, n.since = spare, since
	return n
}

// unsent is the failure of a command that was not sent, because of err. What it needs of the
// stack is not to be part of its callers' frames: see failed.
//
//go:noinline
func (h *nodeHook) unsent(err error) *failure {
	return &failure{at: h.at.link, outcome: new(terms).outcome(nil, err, &finding{unsent: true}), err: err}
}

// pinged passes on what may be a heartbeat of the ring, which must not wait for this
// shard, but for the first attempt of all to reach it, as it does in go-redis: until then
// the shard is not down. The ring may move keys after it, so commands that wait for one
// look again.
func (h *nodeHook) pinged(ctx context.Context, cmd redis.Cmder, direct redis.ProcessHook) error {
	h.at.isBuilt()
	if !patienceOf(ctx).failFast {
		_ = h.at.link.firstContact(ctx) // if ctx has ended, direct says so
	}
	ctx = FailFast(ctx)
	if insideHeartbeat() {
		ctx = context.WithValue(ctx, ctxHeartbeat, true)
	}
	err := direct(ctx, cmd)
	if err != nil {
		h.of.proceed()
	}
	return err
}

// ask puts a question about the topology to the node. It takes a node that does not
// answer in half the time of a heartbeat for one that cannot, at first; go-redis asks others.
// A node that was never tried is given that time to be reached. Whatever goes wrong does so
// before the command for which go-redis asks is sent.
func (h *nodeHook) ask(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, w way) error {
	l := h.at.link
	h.at.isBuilt()
	if h.at.unreadable != nil {
		return h.at.unreadable
	}
	soon, cancel := context.WithTimeout(ctx, l.cfg.timeout/2)
	defer cancel()
	err := l.firstContact(soon)
	if err == nil && !l.enter() {
		l.tend()
		err = l.lastCause()
	} else if err == nil {
		began := time.Now()
		ctx, cancel := h.of.within(ctx, h.of.leave.after(l.cfg.timeout/2), l.Owed)
		defer cancel()
		_, err = h.try(ctx, cmd, next, w, true)
		if err == nil {
			h.of.leave.told(time.Since(began))
		}
		if cmd.Name() == "cluster" && !h.of.ring {
			h.at.rejects.Store(isNoCluster(err) && !(l.renews && redis.IsAuthError(err)))
		}
		if slots, ok := cmd.(*redis.ClusterSlotsCmd); ok && err == nil {
			h.of.learn(slots.Val(), l.addr)
		}
	}
	if err == nil || isReply(err) || errors.Is(err, redis.ErrClosed) || isUnsupported(err) {
		return err
	}
	return h.unsent(err)
}

// ProcessPipelineHook guards what a pipeline or transaction holds for one node.
func (h *nodeHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	w := h.wayTo(next)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		sys.GrowStack()
		plainCommands(cmds)
		r := routedOf(ctx)
		if w.from == foreignHook { // see ProcessHook
			ctx = unrouted(ctx)
		}
		switch {
		case len(cmds) == 0 || r == nil:
			err := h.takeBatch(ctx, cmds, next, w)
			if w.from == foreignHook && !h.of.ring { // see deliver
				err = amidTransaction(cmds, err)
			}
			return err
		case ctx.Err() != nil:
			_, err := h.tryBatch(ctx, cmds, owned{}, next, w, false)
			return err
		}
		return h.batch(ctx, cmds, next, w, r)
	}
}

// batch makes one attempt at commands of a pipeline, or at a transaction, and labels
// those that were not run, or may not have been, with a failure. In a cluster go-redis
// goes by the errors of the commands and, of a transaction, by what it knows from below
// this hook.
func (h *nodeHook) batch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way, r *routed) error {
	l, setup := h.at.link, command.IsSetup(cmds) // of a connection that another command waits for
	cluster := r.batch && !h.of.ring
	if !setup {
		h.at.isBuilt()
	}
	admitted, since := false, time.Time{}
	if !setup {
		admitted, since = h.enter(ctx, cluster && h.of.reader)
	}
	if !admitted && !setup && !(cluster && h.of.reader) { // which goes to another node when there is no connection
		err := h.down(false, since)
		if !cluster { // else one that was moved here has the error that said so
			cmds = command.Inner(cmds)
		}
		command.SetErrors(cmds, err)
		return err
	}
	f, err := h.tryBatch(ctx, cmds, owned{}, next, w, admitted)
	switch {
	case setup:
		if err == nil || outcomeOf(err) == foreign || isReply(err) {
			return err
		}
		n := h.unsent(err)
		n.setup = true
		return n
	case cluster && command.HoldsMulti(cmds):
		if f != nil && f.again && f.mayHaveRun && r.ran != nil {
			r.ran.Store(true)
		}
		for _, cmd := range cmds {
			l.react(cmd.Err())
		}
		return err
	case cluster && !slices.ContainsFunc(cmds, command.IsTroubled), !cluster && err == nil && f.ended() == nil:
		return err // nil, or the word of a hook of the caller
	}
	return h.failed(ctx, cmds, err, f.orWell(w.from), cluster)
}

// failed labels commands after an attempt, of which f is the finding, that ended with err. It
// is not part of batch, whose frame lies below all that an attempt needs of the stack.
//
//go:noinline
func (h *nodeHook) failed(ctx context.Context, cmds []redis.Cmder, err error, f *finding, cluster bool) error {
	l := h.at.link
	t := &terms{cfg: l.cfg, ctx: ctx, attempts: 1, atNode: true}
	if f.mayHaveRun {
		h.doubt(t, f.doubtful(command.Inner(cmds)))
	}
	if cluster || !command.IsTransaction(cmds) {
		return h.label(t, cmds, err, f)
	}
	if f.word {
		return err
	}
	o, why := t.transaction(l, cmds, f)
	switch p := h.panicOf(t, cmds); {
	case p != nil:
		return p
	case o == answered && isUnqueued(cmds, why):
		h.doubt(t, command.Inner(cmds))
		return why
	case o == answered, o == foreign:
		return why
	}
	n := &failure{at: l, outcome: o, err: why, was: why}
	if isReply(why) {
		for _, cmd := range command.Inner(cmds) {
			cmd.SetErr(&failure{at: l, outcome: o, err: why, was: cmp.Or(cmd.Err(), why)})
		}
		return n
	}
	h.fail(command.Inner(cmds), n, f)
	return n
}

// label puts a failure on those of cmds that are to be sent again or may not have
// run, after an attempt that ended with err.
func (h *nodeHook) label(t *terms, cmds []redis.Cmder, err error, f *finding) error {
	l := h.at.link
	o, rest, undelivered, why := t.tail(cmds, f.lost(cmds), err, f)
	if p := h.panicOf(t, cmds); p != nil {
		return p
	}
	switch {
	case o == answered, o == foreign, o == notSentForGood && errors.Is(why, redis.ErrClosed), f.unsent && f.word:
		return err
	case isReply(why): // all were answered
		if f.word {
			return err
		}
		l.react(why)
		for _, cmd := range rest {
			cmd.SetErr(&failure{at: l, outcome: o, err: why, was: cmd.Err()})
		}
		return rest[0].Err()
	case f.unsent:
		why = &wire.Error{Phase: wire.PhaseDial, Err: why}
	}
	n := &failure{at: l, outcome: o, err: why, final: f.word}
	h.fail(rest, n, f)
	if o == partly {
		not := h.unsent(why)
		not.final = true
		command.SetErrors(undelivered, not)
	}
	if f.word || err == nil {
		return err
	}
	return n
}

// doubt puts a failure on those of cmds, for which a hook of the caller has asked go-redis
// before, whose errors say that they did not run.
func (h *nodeHook) doubt(t *terms, cmds []redis.Cmder) {
	for _, cmd := range cmds {
		if err := cmd.Err(); changes(cmd) && t.disclaims(err) {
			f := &finding{from: pooledCall, unsent: isEnd(err), mayHaveRun: true}
			cmd.SetErr(&failure{at: h.at.link, outcome: t.outcome(cmd, err, f), err: err, final: true})
		}
	}
}

// fail puts a failure on commands. Where a reply could not be read, and it is unknown for that
// what became of those that change something, the others are to have what go-redis says of it.
func (h *nodeHook) fail(cmds []redis.Cmder, n *failure, f *finding) {
	command.SetErrors(cmds, n)
	if n.outcome == unknown && !f.mayHaveRun && isGarbled(n.err) {
		unread := &failure{at: n.at, outcome: new(terms).outcome(nil, n.err, &finding{from: f.from}), err: n.err, final: true}
		command.SetErrors(slices.DeleteFunc(slices.Clone(cmds), changes), unread)
	}
}

// panicOf returns the error of commands during whose judgement something panicked, nil
// when nothing has.
func (h *nodeHook) panicOf(t *terms, cmds []redis.Cmder) error {
	if t.panicked == nil {
		return nil
	}
	n := &failure{at: h.at.link, err: errors.New("a function of the caller panicked"), panicked: t.panicked}
	command.SetErrors(command.Inner(cmds), n)
	return n
}
