package redial

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"
)

// How a client of several nodes runs a command. The outer hook marks the context and
// lets go-redis find the node. The hook of that node fails at once when the node
// cannot be reached, with an error that go-redis takes for final; the outer hook
// waits, and has go-redis find a node again. What reaches a node without the mark,
// as from ForEachMaster or MasterForKey, is treated as a client of one server does.

// nodeError is what the hook of a node returns for a command that came through the
// outer hook. But for readers it hides everything from go-redis, which would retry
// on its own.
type nodeError struct {
	link    *link
	outcome outcome
	err     error
	was     error // of a command in a batch: what it was answered, if it was
	final   bool  // the command must not be sent again, whatever the outcome
	another bool  // go-redis may try another node
	setup   bool  // the command was sent to set up a connection

	panicked *panicked // nil: nothing has
}

// Error has words before those of the cause, by which go-redis would know some of them.
func (e *nodeError) Error() string { return "redial: " + e.err.Error() }

// Is has go-redis look for another node, as it does when a connection ends.
func (e *nodeError) Is(target error) bool { return e.another && target == io.EOF }

// nodeErrorOf returns the nodeError inside err, or nil.
func nodeErrorOf(err error) *nodeError {
	var n *nodeError
	errors.As(err, &n)
	return n
}

// routed is the context of a command that came through the outer hook.
type routed struct {
	context.Context
	parts *parts // of a command that go-redis splits; nil: it does not
	batch bool   // of a pipeline or transaction
}

type routedKey struct{}

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

// parts is what became of the parts of a command that go-redis splits among nodes.
// It reports success when some of them failed.
type parts struct {
	mu     sync.Mutex
	ran    bool       // guarded by mu; one of them was answered, or may have run
	failed *nodeError // guarded by mu; the last that was not answered; nil: there is none
	// The errors that others were answered, which may mean that those did not run.
	replies []error // guarded by mu
}

func (p *parts) note(err error) {
	n := nodeErrorOf(err)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case n != nil:
		p.failed = n
		p.ran = p.ran || n.outcome == unknown || n.outcome == repeatable || n.outcome == garbled
	case errors.Is(err, redis.ErrClosed):
		p.failed = &nodeError{outcome: notSent, err: err}
	default:
		if err == nil || err == redis.Nil {
			p.ran = true
		} else {
			p.replies = append(p.replies, err)
		}
	}
}

// verdict returns the error of the whole command, for which go-redis returned err.
func (p *parts) verdict(c *call, err error) error {
	p.mu.Lock()
	ran, failed, replies := p.ran, p.failed, p.replies
	p.mu.Unlock()
	for _, e := range replies {
		ran = ran || !isUndone(e) && !c.taught(e)
	}
	switch {
	case failed != nil && ran:
		return &nodeError{link: failed.link, outcome: unknown, err: failed.err}
	case failed != nil:
		return failed
	case err == nil && len(replies) > 0:
		return &nodeError{link: nil, outcome: unknown, err: plain(replies[len(replies)-1])}
	case err != nil && ran && c.outcomeOf(err) == refused:
		return &nodeError{link: nil, outcome: unknown, err: plain(err)}
	case ran && !c.reads && isUndone(err):
		return ranElsewhere{replyOf(err)}
	}
	return err
}

// nodeHook is the outermost hook of the client of one node.
type nodeHook struct {
	hook        // for what comes to the node directly
	of   *nodes // the client's
}

// isAboutTopology reports whether go-redis may have sent cmd to find its way among
// the nodes. Such commands ask one node after another, and do not wait.
func isAboutTopology(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "command":
		return len(cmd.Args()) == 1
	case "cluster":
		return word(cmd.Args(), 1) == "slots"
	}
	return false
}

// ProcessHook guards single commands.
func (h nodeHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	direct := h.hook.ProcessHook(next)
	w := h.wayTo(next)
	return func(ctx context.Context, cmd redis.Cmder) error {
		r := routedOf(ctx)
		switch {
		case ctx.Err() != nil: // go-redis does not send it, and everybody sees why
			_, err := h.try(ctx, cmd, next, w)
			return err
		case isAboutTopology(cmd):
			return h.ask(ctx, cmd, next, w)
		case h.of.pinged && cmd.Name() == "ping":
			return h.pinged(ctx, cmd, direct)
		case r == nil:
			return direct(ctx, cmd)
		case r.parts == nil || isHandshake(cmd): // which may set up a connection for a part
			return h.process(ctx, cmd, next, w)
		}
		err := h.process(ctx, cmd, next, w)
		r.parts.note(err)
		return err
	}
}

// process makes one attempt at a command.
func (h nodeHook) process(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, w way) error {
	l := h.link
	setup := isHandshake(cmd)
	var found finding
	var err error
	switch {
	case h.enter(ctx):
		found, err = h.admitted(ctx, cmd, next, w)
	case setup:
		found, err = h.try(ctx, cmd, next, w)
	default:
		return h.down(isReadOnly(cmd))
	}
	if err == nil || err == redis.Nil {
		return err
	}
	o := found.of(cmd, err)
	if found.mayHaveRun && o != unknown && o != answered {
		o = unknown
	}
	switch {
	case o == answered && isScript(cmd) && wouldRepeat(err):
		// It may have done something; go-redis would take it for undone.
		return &nodeError{link: l, outcome: o, err: err}
	case o == answered, o == refused, o == foreign:
		l.heed(err)
		return err
	case o == denied && !l.renews, errors.Is(err, redis.ErrClosed):
		return err
	}
	return &nodeError{
		link: l, outcome: o, err: err, setup: setup,
		another: h.of.reader && isReadOnly(cmd) && (o == notSent || l.cfg.mayRepeat(ctx, cmd)),
	}
}

// enter admits a command while the node is Connected, or once it is, when the first
// attempt of all to reach it is under way. The caller must leave.
func (h nodeHook) enter(ctx context.Context) bool {
	l := h.link
	if l.enter() {
		return true
	}
	switch State(l.now.Load()) {
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
	l := h.link
	if State(l.now.Load()) == StateClosed {
		return redis.ErrClosed // go-redis knows what to do
	}
	l.attend()
	return &nodeError{
		link: l, outcome: notSent, err: &connError{phase: phaseDial, err: l.lastCause()},
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
	l := h.link
	ctx, cancel := context.WithTimeout(ctx, l.cfg.timeout/2)
	defer cancel()
	err := l.firstContact(ctx)
	if err == nil && !l.enter() {
		l.attend()
		if h.of.front.awaited() {
			l.want()
		}
		err = l.lastCause()
	} else if err == nil {
		_, err = h.admitted(ctx, cmd, next, w)
		if cmd.Name() == "cluster" {
			l.rejects.Store(isNoCluster(err) && !(l.renews && redis.IsAuthError(err)))
		}
		if slots, ok := cmd.(*redis.ClusterSlotsCmd); ok && err == nil {
			h.of.learn(slots.Val())
		}
	}
	if err == nil || isReply(err) || errors.Is(err, redis.ErrClosed) {
		return err
	}
	return &nodeError{link: l, outcome: notSent, err: err}
}

// firstContact waits while the first attempt of all to reach the server is under way.
func (l *link) firstContact(ctx context.Context) error {
	for {
		l.mu.Lock()
		waiting, changed := l.state == StateConnecting && l.cause == nil, l.changed
		l.mu.Unlock()
		if !waiting {
			return nil
		}
		l.attend()
		select {
		case <-changed:
		case <-ctx.Done():
			return l.lastCause()
		}
	}
}

// ProcessPipelineHook guards what a pipeline or transaction holds for one node.
func (h nodeHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	direct := h.hook.ProcessPipelineHook(next)
	w := h.wayTo(next)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		plainCommands(cmds)
		r := routedOf(ctx)
		switch {
		case len(cmds) == 0 || r == nil:
			return direct(ctx, cmds)
		case ctx.Err() != nil:
			_, err := h.tryBatch(ctx, cmds, next, w)
			return err
		case r.batch && !h.of.ring && !isSetup(cmds):
			return h.clusterBatch(ctx, cmds, next, w)
		}
		return h.batch(ctx, cmds, next, w)
	}
}

// batch makes one attempt at commands of a pipeline, or at a transaction, and labels
// those that were not run, or may not have been, with a nodeError.
func (h nodeHook) batch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) error {
	l := h.link
	c := call{link: l, ctx: ctx, name: "pipeline", attempts: 1, apart: true}
	if isSetup(cmds) { // of a connection that another command waits for
		_, err := h.tryBatch(ctx, cmds, next, w)
		if err == nil || outcomeOf(err) == foreign || isReply(err) {
			return err
		}
		return &nodeError{link: l, outcome: notSent, setup: true, err: err}
	}
	if !h.enter(ctx) {
		err := h.down(false)
		setErrors(innerOf(cmds), err)
		return err
	}
	found, err := h.admittedBatch(ctx, cmds, next, w)
	if err == nil && found.err == nil {
		return nil
	}
	if isTransaction(cmds) {
		if found.isWord(err) {
			return err
		}
		o, err := c.transaction(cmds, found.cause(err), &found)
		if p := h.panicOf(&c, cmds); p != nil {
			return p
		}
		if o == answered || o == foreign {
			return err
		}
		n := &nodeError{link: l, outcome: o, err: err, was: err}
		setErrors(innerOf(cmds), n)
		return n
	}
	return h.label(&c, cmds, err, &found)
}

// clusterBatch is batch where go-redis goes by the errors of the commands and, of a
// transaction, by what it knows from below this hook.
func (h nodeHook) clusterBatch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, w way) error {
	l := h.link
	switch {
	case h.enter(ctx):
		defer l.leave()
	case !h.of.reader:
		err := h.down(false)
		setErrors(cmds, err) // one that was moved here has the error that said so
		return err
	} // else go-redis finds that there is no connection, and goes to another node
	found, err := h.tryBatch(ctx, cmds, next, w)
	if holdsMulti(cmds) {
		for _, cmd := range cmds {
			if e := cmd.Err(); e != nil {
				l.heed(e)
			}
		}
		return err
	}
	if !slices.ContainsFunc(cmds, isTroubled) {
		return err // nil, or the word of a hook of the caller
	}
	c := call{link: l, ctx: ctx, name: "pipeline", attempts: 1, apart: true}
	return h.label(&c, cmds, err, &found)
}

// isTroubled reports whether a command has an error other than redis.Nil.
func isTroubled(cmd redis.Cmder) bool {
	err := cmd.Err()
	return err != nil && err != redis.Nil
}

// isSetup reports whether cmds set up a connection.
func isSetup(cmds []redis.Cmder) bool {
	return !slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return !isHandshake(cmd) })
}

// label puts a nodeError on those of cmds that are to be sent again or may not have
// run, after an attempt that ended with err.
func (h nodeHook) label(c *call, cmds []redis.Cmder, err error, found *finding) error {
	l := h.link
	var rest []redis.Cmder
	if found.blind {
		rest = withoutReply(cmds)
	} else {
		rest = found.unanswered(cmds)
	}
	word := err != nil && found.isWord(err)
	if len(rest) == 0 {
		o, tail := c.refusedTail(cmds, found.from)
		if p := h.panicOf(c, cmds); p != nil {
			return p
		}
		if o == answered || word {
			return err
		}
		var why error
		for _, cmd := range tail {
			if err := cmd.Err(); err != nil && isReply(err) && c.outcomeFor(cmd, err, found.from) == o {
				why = err
				break
			}
		}
		l.heed(why)
		for _, cmd := range tail {
			cmd.SetErr(&nodeError{link: l, outcome: o, err: why, was: cmd.Err()})
		}
		return tail[0].Err()
	}
	cause := rest[0].Err()
	if found.waited {
		cause = &connError{phase: phaseDial, err: cause}
	}
	o := outcomeOf(cause)
	switch {
	case errors.Is(cause, redis.ErrClosed):
		return err
	case o == foreign && found.from.alone() && isGarbled(cause):
		o = garbled
	default:
		o = c.unansweredTail(rest, cause, found)
	}
	if p := h.panicOf(c, cmds); p != nil {
		return p
	}
	if o == foreign {
		return err
	}
	if found.mayHaveRun && o != garbled {
		o = unknown
	}
	n := &nodeError{link: l, outcome: o, err: cause, final: word}
	if o == partly {
		n.outcome = unknown
		setErrors(c.undelivered, &nodeError{link: l, outcome: notSent, final: true, err: cause})
		rest = rest[:len(rest)-len(c.undelivered)]
	}
	setErrors(rest, n)
	if word || err == nil {
		return err
	}
	return n
}

// innerOf returns the commands of a transaction without MULTI and EXEC, and a pipeline
// as it is.
func innerOf(cmds []redis.Cmder) []redis.Cmder {
	if isTransaction(cmds) {
		return cmds[1 : len(cmds)-1]
	}
	return cmds
}

func setErrors(cmds []redis.Cmder, err error) {
	for _, cmd := range cmds {
		cmd.SetErr(err)
	}
}
