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
	reply  error      // guarded by mu; an error that one of them was answered
	failed *nodeError // guarded by mu; the last that was not answered; nil: there is none
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
		p.ran = p.ran || !isRefusal(err)
		if err != nil && err != redis.Nil {
			p.reply = err
		}
	}
}

// verdict returns the error of the whole command, for which go-redis returned err.
func (p *parts) verdict(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.failed != nil && p.ran:
		return &nodeError{link: p.failed.link, outcome: unknown, err: p.failed.err}
	case p.failed != nil:
		return p.failed
	case p.ran && err != nil && isRefusal(err):
		return &nodeError{link: nil, outcome: unknown, err: plain(err)}
	case err == nil && p.reply != nil:
		return &nodeError{link: nil, outcome: unknown, err: plain(p.reply)}
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
	from := originOf(next)
	next = labelWait(watchContext(h.hook, next, from), from)
	return func(ctx context.Context, cmd redis.Cmder) error {
		r := routedOf(ctx)
		switch {
		case isAboutTopology(cmd):
			return h.ask(ctx, cmd, next)
		case h.of.pinged && cmd.Name() == "ping":
			return h.pinged(ctx, cmd, direct)
		case r == nil:
			return direct(ctx, cmd)
		case r.parts == nil || isHandshake(cmd): // which may set up a connection for a part
			return h.process(ctx, cmd, next, from)
		}
		err := h.process(ctx, cmd, next, from)
		r.parts.note(err)
		return err
	}
}

// process makes one attempt at a command.
func (h nodeHook) process(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, from origin) error {
	l := h.link
	setup := isHandshake(cmd)
	var err error
	switch {
	case h.enter(ctx):
		err = run(l, ctx, cmd, next)
	case setup:
		err = next(ctx, cmd)
	default:
		return h.down(isReadOnly(cmd))
	}
	if err == nil || err == redis.Nil {
		return err
	}
	o := outcomeFor(cmd, err, from)
	switch {
	case o == answered && isScript(cmd) && isRefusal(err):
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
	if State(l.now.Load()) != StateConnecting {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, subscriberWait)
	defer cancel()
	return l.firstContact(ctx) == nil && l.enter()
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
func (h nodeHook) ask(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
	l := h.link
	ctx, cancel := context.WithTimeout(ctx, l.cfg.timeout/2)
	defer cancel()
	err := l.firstContact(ctx)
	if err == nil && !l.enter() {
		l.attend()
		if l.front.awaited() {
			l.want()
		}
		err = l.lastCause()
	} else if err == nil {
		err = run(l, ctx, cmd, next)
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
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if len(cmds) == 0 || routedOf(ctx) == nil {
			return h.hook.ProcessPipelineHook(next)(ctx, cmds)
		}
		from := originOf(next)
		send := labelWait(watchContext(h.hook, next, from), from)
		if routedOf(ctx).batch && !h.of.ring && !isSetup(cmds) {
			return h.clusterBatch(ctx, cmds, send, from)
		}
		return h.batch(ctx, cmds, send, from)
	}
}

// batch makes one attempt at commands of a pipeline, or at a transaction, and labels
// those that were not run, or may not have been, with a nodeError.
func (h nodeHook) batch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, from origin) error {
	l := h.link
	c := call{link: l, ctx: ctx, name: "pipeline", attempts: 1}
	switch {
	case isSetup(cmds): // of a connection that another command waits for
		err := next(ctx, cmds)
		if err == nil || outcomeOf(err) == foreign || isReply(err) {
			return err
		}
		return &nodeError{link: l, outcome: notSent, setup: true, err: err}
	case !h.enter(ctx):
		err := h.down(false)
		setErrors(inner(cmds), err)
		return err
	case isTransaction(cmds):
		err := run(l, ctx, cmds, next)
		if err == nil {
			return nil
		}
		o, err := c.transaction(cmds, err, from)
		if o == answered || o == foreign {
			return err
		}
		n := &nodeError{link: l, outcome: o, err: err, was: err}
		setErrors(inner(cmds), n)
		return n
	}
	mark(cmds)
	err := run(l, ctx, cmds, next)
	if err == nil {
		unmark(cmds, from)
		return nil
	}
	return h.label(&c, cmds, unread(cmds, err), from)
}

// clusterBatch is batch where go-redis reads the replies by code for clusters, which
// sets the error that ended a pipeline only on commands that were not answered, and
// takes the error of a transaction from below this hook.
func (h nodeHook) clusterBatch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, from origin) error {
	l := h.link
	switch {
	case h.enter(ctx):
		defer l.leave()
	case !h.of.reader:
		err := h.down(false)
		setErrors(cmds, err) // one that was moved here has the error that said so
		return err
	} // else go-redis finds that there is no connection, and goes to another node
	if cmds[0].Name() == "multi" || len(cmds) > 1 && cmds[1].Name() == "multi" { // after ASKING
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			if e := cmd.Err(); e != nil && isRefusal(e) {
				l.heed(e)
			}
		}
		return err
	}
	setErrors(cmds, nil)
	if err := atMostOnce(next)(ctx, cmds); err == nil && !slices.ContainsFunc(cmds, isTroubled) {
		return nil
	}
	c := call{link: l, ctx: ctx, name: "pipeline", attempts: 1}
	return h.label(&c, cmds, unanswered(cmds), from)
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
// run. rest are those without an answer.
func (h nodeHook) label(c *call, cmds, rest []redis.Cmder, from origin) error {
	l := h.link
	if len(rest) == 0 {
		o, tail := c.refusedTail(cmds, from)
		if o == answered {
			return firstError(cmds, nil)
		}
		var why error
		for _, cmd := range tail {
			if err := cmd.Err(); err != nil && isReply(err) && outcomeFor(cmd, err, from) == o {
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
	err := rest[0].Err()
	if from == pooledCall && (err == context.Canceled || err == context.DeadlineExceeded) {
		err = &connError{phase: phaseDial, err: err} // see labelWait
	}
	o := outcomeOf(err)
	switch {
	case errors.Is(err, redis.ErrClosed):
		return err
	case o == foreign && from == pooledCall && isGarbled(err):
		o = garbled
	default:
		o = c.unansweredTail(rest, err, from)
	}
	if o == foreign {
		return err
	}
	n := &nodeError{link: l, outcome: o, err: err}
	if o == partly {
		n.outcome = unknown
		setErrors(c.undelivered, &nodeError{link: l, outcome: notSent, final: true, err: err})
		rest = rest[:len(rest)-len(c.undelivered)]
	}
	setErrors(rest, n)
	return n
}

// unanswered returns the commands of a cluster's pipeline that were not answered.
func unanswered(cmds []redis.Cmder) []redis.Cmder {
	first := slices.IndexFunc(cmds, func(cmd redis.Cmder) bool { return cmd.Err() != nil && !isReply(cmd.Err()) })
	if first < 0 {
		return nil
	}
	return cmds[first:]
}

// inner returns the commands of a transaction without MULTI and EXEC, and a pipeline
// as it is.
func inner(cmds []redis.Cmder) []redis.Cmder {
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
