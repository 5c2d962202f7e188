package redial

// What the hook of a node does for a client of several. It makes one attempt at the link
// of the node, as call.go has it made for a client of one server, and never waits: the
// outer hook does, and has go-redis find a node again. What reaches a node without the
// mark of the outer hook, as from ForEachMaster or MasterForKey, is carried on here.
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
//	that the node is closed            redis.ErrClosed         asks another      looks for the topology
//	the end of the context             it                      returns it        returns it
//	no answer about the topology       failure{notSent}        asks another      waits
//	no connection set up               failure{setup: true}    gives up          waits: nothing was sent
//	a word of a hook of the caller     it                      returns it        returns it
//
// In a pipeline, and in a transaction of a ring, each command that has no answer, or is
// refused and at the end, has the failure. A transaction of a cluster has none: go-redis
// goes by what it knows from below this hook. A failure with final set must not be sent
// again; one with panicked set panics anew where the caller can recover it.

import (
	"context"
	"errors"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
)

// nodeHook is the outermost hook of the client of one node.
type nodeHook struct {
	hook         // for what comes to the node directly
	of   *nodes  // the client's
	at   *member // this one
}

// adopt builds the client of a node, with newClient, and the link to it. go-redis
// calls it, holding a lock of its own.
func (n *nodes) adopt(opt *redis.Options, newClient func(*redis.Options) *redis.Client) *redis.Client {
	m := n.newMember(opt, isQuick(opt.Dialer, opt.TLSConfig))
	rdb := newClient(ownOptions(opt, m.link.dial))
	m.hook = hook{link: m.link.peer(), router: oneServer{&n.calls, rdb.Options().WriteTimeout}, inners: new(innerParts)}
	rdb.AddHook(nodeHook{m.hook, n, m})
	n.enlist(rdb, m)
	return rdb
}

// ProcessHook guards single commands.
func (h nodeHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	direct := h.hook.ProcessHook(next)
	w := h.wayTo(next)
	return func(ctx context.Context, cmd redis.Cmder) error {
		r := routedOf(ctx)
		if w.from == foreignHook { // what a hook of the caller sends by itself is no part of this
			ctx = unrouted(ctx)
		}
		switch {
		case ctx.Err() != nil: // go-redis does not send it, and everybody sees why
			_, err := h.try(ctx, cmd, next, w)
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
func (h nodeHook) process(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, w way) error {
	l := h.at.link
	setup := command.IsHandshake(cmd)
	var found finding
	var err error
	switch {
	case h.enter(ctx):
		found, err = h.admitted(ctx, cmd, next, w)
	case setup:
		found, err = h.try(ctx, cmd, next, w)
	default:
		return h.down(command.ReadOnly(cmd))
	}
	if err == nil || err == redis.Nil {
		return err
	}
	o := foreign
	if !found.isWord(err) {
		t := terms{} // what else there is to know the outer hook knows
		o = t.outcome(cmd, found.cause(err), &found)
	}
	switch {
	case !found.mayHaveRun || o == foreign:
	case isReply(err): // as it is, but not again: what the hook asked for besides has run
		return &failure{at: l, outcome: answered, err: err}
	default:
		o = unknown
	}
	switch {
	case o == answered && command.IsScript(cmd) && wouldRepeat(err):
		// It may have done something; go-redis would take it for undone.
		return &failure{at: l, outcome: o, err: err}
	case o == answered, o == refused, o == foreign:
		l.react(err)
		return err
	case o == denied && !l.renews, errors.Is(err, redis.ErrClosed):
		return err
	}
	return &failure{
		at: l, outcome: o, err: err, setup: setup,
		another: h.of.reader && command.ReadOnly(cmd) && (o == notSent || l.cfg.mayRepeat(ctx, cmd)),
	}
}

// enter admits a command while the node is Connected, or once it is, when the first
// attempt of all to reach it is under way. The caller must leave.
func (h nodeHook) enter(ctx context.Context) bool {
	l := h.at.link
	if l.enter() {
		return true
	}
	switch l.now() {
	case StateConnected: // since then
		return l.enter()
	case StateConnecting:
		ctx, cancel := context.WithTimeout(ctx, subscriberWait)
		defer cancel()
		return l.firstContact(ctx) == nil && l.enter()
	}
	return false
}

// down is the error of a command that finds the gate shut.
func (h nodeHook) down(reads bool) error {
	l := h.at.link
	if l.now() == StateClosed {
		return redis.ErrClosed // go-redis knows what to do
	}
	l.tend()
	return &failure{
		at: l, outcome: notSent, err: &connError{phase: phaseDial, err: l.lastCause()},
		another: h.of.reader && reads,
	}
}

// pinged passes on what may be a heartbeat of the ring, which must not wait for this
// shard. The ring may move keys after it, so commands that wait for one look again.
func (h nodeHook) pinged(ctx context.Context, cmd redis.Cmder, direct redis.ProcessHook) error {
	err := direct(FailFast(ctx), cmd)
	if err != nil {
		h.of.proceed()
	}
	return err
}

// ask puts a question about the topology to the node. It takes a node that does not
// answer in half the time of a heartbeat for one that cannot; go-redis asks others.
// A node that was never tried is given that time to be reached. Whatever goes wrong
// does so before the command for which go-redis asks is sent.
func (h nodeHook) ask(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, w way) error {
	l := h.at.link
	ctx, cancel := context.WithTimeout(ctx, l.cfg.timeout/2)
	defer cancel()
	err := l.firstContact(ctx)
	if err == nil && !l.enter() {
		l.tend()
		if h.of.front.awaited() {
			l.want()
		}
		err = l.lastCause()
	} else if err == nil {
		_, err = h.admitted(ctx, cmd, next, w)
		if cmd.Name() == "cluster" {
			h.at.rejects.Store(isNoCluster(err) && !(l.renews && redis.IsAuthError(err)))
		}
		if slots, ok := cmd.(*redis.ClusterSlotsCmd); ok && err == nil {
			h.of.learn(slots.Val())
		}
	}
	if err == nil || isReply(err) || errors.Is(err, redis.ErrClosed) || isUnsupported(err) {
		return err
	}
	return &failure{at: l, outcome: notSent, err: err}
}

// ProcessPipelineHook guards what a pipeline or transaction holds for one node.
func (h nodeHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	direct := h.hook.ProcessPipelineHook(next)
	w := h.wayTo(next)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		plainCommands(cmds)
		r := routedOf(ctx)
		if w.from == foreignHook { // see ProcessHook
			ctx = unrouted(ctx)
		}
		switch {
		case len(cmds) == 0 || r == nil:
			return direct(ctx, cmds)
		case ctx.Err() != nil:
			_, err := h.tryBatch(ctx, cmds, next, w)
			return err
		case r.batch && !h.of.ring && !command.IsSetup(cmds):
			return h.clusterBatch(ctx, cmds, next, w)
		}
		return h.batch(ctx, cmds, next, w)
	}
}

// batch makes one attempt at commands of a pipeline, or at a transaction, and labels
// those that were not run, or may not have been, with a failure.
func (h nodeHook) batch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) error {
	l := h.at.link
	if command.IsSetup(cmds) { // of a connection that another command waits for
		_, err := h.tryBatch(ctx, cmds, next, w)
		if err == nil || outcomeOf(err) == foreign || isReply(err) {
			return err
		}
		return &failure{at: l, outcome: notSent, setup: true, err: err}
	}
	if !h.enter(ctx) {
		err := h.down(false)
		command.SetErrors(command.Inner(cmds), err)
		return err
	}
	found, err := h.admittedBatch(ctx, cmds, next, w)
	if err == nil && found.err == nil {
		return nil
	}
	t := h.terms(ctx)
	if command.IsTransaction(cmds) {
		if found.isWord(err) {
			return err
		}
		o, err := t.transaction(l, cmds, found.cause(err), &found)
		if p := h.panicOf(t, cmds); p != nil {
			return p
		}
		if o == answered || o == foreign {
			return err
		}
		n := &failure{at: l, outcome: o, err: err, was: err}
		command.SetErrors(command.Inner(cmds), n)
		return n
	}
	return h.label(t, cmds, err, &found)
}

// terms are those of an attempt at a batch, which is judged on a goroutine of go-redis's.
func (h nodeHook) terms(ctx context.Context) *terms {
	return &terms{cfg: h.link.cfg, ctx: ctx, attempts: 1, apart: true}
}

// clusterBatch is batch where go-redis goes by the errors of the commands and, of a
// transaction, by what it knows from below this hook.
func (h nodeHook) clusterBatch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) error {
	l := h.at.link
	switch {
	case h.enter(ctx):
		defer l.leave()
	case !h.of.reader:
		err := h.down(false)
		command.SetErrors(cmds, err) // one that was moved here has the error that said so
		return err
	} // else go-redis finds that there is no connection, and goes to another node
	found, err := h.tryBatch(ctx, cmds, next, w)
	if command.HoldsMulti(cmds) {
		for _, cmd := range cmds {
			if e := cmd.Err(); e != nil {
				l.react(e)
			}
		}
		return err
	}
	if !slices.ContainsFunc(cmds, command.IsTroubled) {
		return err // nil, or the word of a hook of the caller
	}
	return h.label(h.terms(ctx), cmds, err, &found)
}

// label puts a failure on those of cmds that are to be sent again or may not have
// run, after an attempt that ended with err.
func (h nodeHook) label(t *terms, cmds []redis.Cmder, err error, f *finding) error {
	l, rest := h.at.link, f.lost(cmds)
	word := err != nil && f.isWord(err)
	if len(rest) == 0 {
		o, tail := t.refusedTail(cmds, f)
		if p := h.panicOf(t, cmds); p != nil {
			return p
		}
		if o == answered || word {
			return err
		}
		why := tail[0].Err()
		l.react(why)
		for _, cmd := range tail {
			cmd.SetErr(&failure{at: l, outcome: o, err: why, was: cmd.Err()})
		}
		return tail[0].Err()
	}
	cause := rest[0].Err()
	if errors.Is(cause, redis.ErrClosed) {
		return err
	}
	var undelivered []redis.Cmder
	o := t.outcome(nil, cause, f)
	if o != garbled { // else the outer hook knows what to do
		o, undelivered = t.tail(o, rest, f)
	}
	if p := h.panicOf(t, cmds); p != nil {
		return p
	}
	if o == foreign {
		return err
	}
	if f.waited {
		cause = &connError{phase: phaseDial, err: cause}
	}
	if f.mayHaveRun && o != garbled {
		o = unknown
	}
	n := &failure{at: l, outcome: o, err: cause, final: word}
	if o == partly {
		n.outcome = unknown
		command.SetErrors(undelivered, &failure{at: l, outcome: notSent, final: true, err: cause})
		rest = rest[:len(rest)-len(undelivered)]
	}
	command.SetErrors(rest, n)
	if word || err == nil {
		return err
	}
	return n
}

// panicOf returns the error of commands during whose judgement something panicked, nil
// when nothing has.
func (h nodeHook) panicOf(t *terms, cmds []redis.Cmder) error {
	if t.panicked == nil {
		return nil
	}
	n := &failure{at: h.at.link, outcome: foreign, err: errors.New("a function of the caller panicked"), panicked: t.panicked}
	command.SetErrors(command.Inner(cmds), n)
	return n
}
