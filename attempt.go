package redial

// One attempt at what a caller wants done. Our hook has two parts. The outer one, first in
// the chain, admits commands, reads what became of them and tries again. The inner one is
// last, next to go-redis, and finds out what became of an attempt. Hooks of the caller run
// between the two: they see the commands as go-redis leaves them, and whatever they do to
// commands and errors is for the caller to see. What they are shown is in veil.go.
//
// An attempt knows a link by its gate and nothing of calls and nodes.

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/wire"
)

// hook is the outer part of redial's hook: it passes commands through the gate, reads
// what became of them and retries what may be retried.
type hook struct {
	link   peer
	router router
	inners *innerParts // nil: hooks of the caller are all behind our back
}

// router is the way from a client to its servers.
type router interface {
	// send and sendBatch have go-redis, which is next, make an attempt. Of a batch of which
	// all went well nothing is found, nil.
	send(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, from origin) error
	sendBatch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, from origin) *finding
	// mark returns the context for what passes the hooks of nodes without an attempt.
	mark(ctx context.Context) context.Context
	// use notes that a caller has made use of the way.
	use()
	// refresh has the way looked for again, and rerouted returns a channel that is closed
	// when there may be another. It may be nil.
	refresh()
	rerouted() <-chan struct{}

	several() bool                   // there is more than one server
	redirects() bool                 // and they send commands to each other
	spreads(cmds []redis.Cmder) bool // a batch may go to several of them
}

// way is what lies between the outer part of our hook and go-redis.
type way struct {
	from    origin
	through bool  // hooks of the caller, with an inner part behind them
	sent    lines // by the attempt before; nil: there was none
}

func (h *hook) wayTo(next any) way {
	from := h.originOf(next)
	return way{from: from, through: from == foreignHook && h.inners.count() > 0}
}

func (h *hook) originOf(next any) origin {
	from := originOf(next)
	if from != foreignHook && h.router.several() {
		return routedCall
	}
	return from
}

// try makes an attempt at a command, which leaves the gate after it if it was admitted. What is
// found is nil where all went well.
func (h *hook) try(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, w way, admitted bool) (*finding, error) {
	if admitted {
		defer h.link.leave()
	}
	if w.through {
		a := newAttempt(ctx)
		a.sent = w.sent
		err := next(a, cmd)
		if err == nil {
			return nil, nil // whatever a hook has left on the command, it is no failure
		}
		return a.hear(err, cmd)
	}
	err := h.one(ctx, cmd, next, w.from)
	if err == nil || err == redis.Nil {
		return nil, err
	}
	return newFinding(ctx, w.from, err), err
}

// tryBatch makes an attempt at a batch. first is what own returned, where it is the first one.
// What is found is nil where all went well, and otherwise only read where err is nil.
func (h *hook) tryBatch(ctx context.Context, cmds []redis.Cmder, first owned, next redis.ProcessPipelineHook, w way, admitted bool) (f *finding, err error) {
	if admitted {
		defer h.link.leave()
	}
	watched := h.link.Watched() // EXEC ends it
	switch {
	case w.through:
		a, given := first.attempt, first.given
		if a == nil {
			a, given = newBatchAttempt(ctx, cmds)
		}
		a.Context, a.sent = ctx, w.sent
		f, err = a.hear(next(a, given), cmds...)
	case w.from == foreignHook:
		given := first.given
		if given == nil {
			given = slices.Clone(cmds)
		}
		f = h.many(ctx, given, next, w.from)
		err = f.ended()
	default:
		f = h.many(ctx, cmds, next, w.from)
		err = f.ended()
	}
	if err != nil {
		f.watched = watched
	}
	return f, err
}

// owned is what hooks of the caller get of a batch at first, and the attempt that is for it.
type owned struct {
	given   []redis.Cmder
	attempt *attempt
}

// own returns cmds, or a copy where hooks of the caller get them, and may change the list, which
// the caller then has, as with go-redis.
func (w way) own(ctx context.Context, cmds []redis.Cmder) ([]redis.Cmder, owned) {
	switch {
	case w.through:
		a, list := newBatchAttempt(ctx, cmds)
		return list, owned{cmds, a}
	case w.from == foreignHook:
		return slices.Clone(cmds), owned{cmds, nil}
	}
	return cmds, owned{}
}

// found returns the finding where nothing but an error is known. Our connections label
// what fails on them, and the hooks of nodes what fails there; so the bare error of a
// context that has ended comes from go-redis, of a call that still waited. While the context
// lives it is the word of a Limiter, say.
func found(ctx context.Context, from origin, err error) finding {
	end := err == context.DeadlineExceeded || err == context.Canceled
	return finding{
		reached: from != foreignHook, blind: from == foreignHook, from: from, err: err, seen: err, why: err,
		unsent: end && ended(ctx) != nil && (from.alone() || from == routedCall),
	}
}

// newFinding does the same. What is found is no burden to the stacks on which all goes well.
//
//go:noinline
func newFinding(ctx context.Context, from origin, err error) *finding {
	f := found(ctx, from, err)
	return &f
}

// foundOf returns what is found of a batch that go-redis has ended with err.
func foundOf(ctx context.Context, from origin, err error) *finding {
	if err == nil {
		return nil
	}
	return newFinding(ctx, from, err)
}

// orWell returns f, or what it stands for where there is none: all went well.
func (f *finding) orWell(from origin) *finding {
	if f == nil {
		return newFinding(context.Background(), from, nil)
	}
	return f
}

// ended returns the error with which go-redis has ended what was found, if anything was.
func (f *finding) ended() error {
	if f == nil {
		return nil
	}
	return f.err
}

// unanswered returns the commands of a batch that have no answer, in the order of cmds.
// Those to which a hook has given another error, or none, are the hook's.
func (f *finding) unanswered(cmds []redis.Cmder) []redis.Cmder {
	if len(f.rest) == 0 {
		return nil
	}
	left := make([]int, len(f.rest)) // of them, those that were not found yet
	for i := range left {
		left[i] = i
	}
	rest := make([]redis.Cmder, 0, len(f.rest))
	for _, cmd := range slices.Backward(cmds) { // which they are the last of
		for k, i := range slices.Backward(left) {
			if isLike(cmd, f.rest[i]) && isSame(cmd.Err(), f.errs[i]) {
				rest = append(rest, cmd)
				left = slices.Delete(left, k, k+1)
				break
			}
		}
	}
	slices.Reverse(rest)
	return rest
}

// lost returns the commands of a batch that have no answer, or may have none where it
// is not known how far reading came: go-redis sets the error that ended a pipeline on all
// of them.
func (f *finding) lost(cmds []redis.Cmder) []redis.Cmder {
	if f.reached {
		return f.unanswered(cmds)
	}
	return slices.DeleteFunc(slices.Clone(cmds), func(cmd redis.Cmder) bool { return !isUnanswered(cmd) })
}

// innerParts counts the inner parts that were added to one client, each behind the
// hooks that were added with it. The last one does the work.
type innerParts struct{ added atomic.Int64 }

func (i *innerParts) count() int64 {
	if i == nil {
		return 0
	}
	return i.added.Load()
}

// inner is the inner part of a hook, added behind hooks of the caller.
type inner struct {
	hook   *hook
	number int64
}

// addInner adds an inner part behind the hooks that a client has.
func (h *hook) addInner(rdb interface{ AddHook(redis.Hook) }) {
	rdb.AddHook(inner{h, h.inners.added.Add(1)})
}

func (i inner) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook finds out what becomes of single commands.
func (i inner) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	if i.number < i.hook.inners.count() {
		return next // there are more hooks, and another part behind them
	}
	from := i.hook.originOf(next)
	ran := newFinding(context.Background(), from, nil)
	return func(ctx context.Context, cmd redis.Cmder) error {
		a := attemptOf(ctx)
		if a == nil {
			if err := strayed(ctx, cmd); err != nil {
				cmd.SetErr(err)
				return err
			}
		}
		a.repeat(cmd)
		err := i.hook.one(ctx, cmd, next, from)
		if err == nil {
			a.note(ran, nil)
			return nil
		}
		f := newFinding(ctx, from, err)
		if a != nil { // else nobody would put back what is hidden
			f.keep(cmd)
			f.undone = f.unsent || saysUndone(err)
			f.word = f.unsent && a.outlasts(ctx)
			veils := f.show(cmd)
			a.note(f, nil, veils...)
		}
		return f.seen
	}
}

// ProcessPipelineHook does so for pipelines and transactions.
func (i inner) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	if i.number < i.hook.inners.count() {
		return next
	}
	from := i.hook.originOf(next)
	ran := newFinding(context.Background(), from, nil)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		a := attemptOf(ctx)
		if a == nil {
			if err := strayed(ctx, cmds...); err != nil {
				command.SetErrors(cmds, err)
				return err
			}
		}
		a.repeat(cmds...)
		f := i.hook.many(ctx, cmds, next, from)
		if f == nil && !slices.ContainsFunc(cmds, command.IsTroubled) {
			a.note(ran, cmds)
			return nil
		}
		f = f.orWell(from)
		if a != nil {
			f.keep(cmds...)
			f.judge(cmds...)
			f.word = f.unsent && a.outlasts(ctx)
			a.note(f, cmds, f.show(cmds...)...)
		}
		return f.seen
	}
}

// one hands a command to next, which is go-redis unless hooks were added behind our back.
func (h *hook) one(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, from origin) error {
	if err := ctx.Err(); err != nil && from.alone() && cmd.Name() != "unwatch" { // which ends what WATCH began
		return err // as go-redis has it
	}
	return h.router.send(ctx, cmd, next, from)
}

// many does the same for a batch, and finds out what became of it.
func (h *hook) many(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, from origin) *finding {
	if err := ctx.Err(); err != nil && (from == pooledCall || from == blockCall) { // for a node go-redis does this
		f := foundOf(ctx, from, err)
		for _, cmd := range cmds {
			if cmd.Err() == nil {
				cmd.SetErr(err) // as go-redis has it
				f.add(cmd, err)
			}
		}
		return f
	}
	return h.router.sendBatch(ctx, cmds, next, from)
}

// oneServer is the way to the only server of a client, or to a node: there is nothing to
// find.
type oneServer struct {
	calls        *wire.Calls
	fleet        *wire.Fleet
	writeTimeout time.Duration // of the client, as its Options have it
	once         onceWay
	ofCluster    bool
}

func newOneServer(calls *wire.Calls, fleet *wire.Fleet, opt *redis.Options, cfg *config, of neighbors) *oneServer {
	resp3 := func() bool { return opt.Protocol != 2 && !fleet.SpeaksRESP2() }
	return &oneServer{calls, fleet, opt.WriteTimeout, newOnceWay(cfg, resp3, of), of == cluster}
}

// begin returns the context for an attempt, or nil when that of the caller will do.
func (s *oneServer) begin(ctx context.Context, from origin) *wire.Call {
	if from == sharedCall { // go-redis itself lets the caller go
		return nil
	}
	var room *wire.Call
	if a, ok := ctx.(*attempt); ok && !a.lent.Swap(true) {
		room = a.room
	}
	return s.calls.Begin(ctx, s.writeTimeout, room)
}

func (s *oneServer) send(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, from origin) error {
	x := s.begin(ctx, from)
	switch {
	case x != nil:
		return s.sendFor(x, cmd, next, from)
	case onceUsed.Load():
		return s.once.send(ctx, cmd, next, from)
	}
	return next(ctx, cmd)
}

// sendFor does so for a call that can be canceled.
func (s *oneServer) sendFor(x *wire.Call, cmd redis.Cmder, next redis.ProcessHook, from origin) (err error) {
	defer x.Release()
	if onceUsed.Load() {
		err = s.once.send(x, cmd, next, from)
	} else {
		err = next(x, cmd)
	}
	return told(x, cmd, err)
}

// told is the error of a command whose call has ended, so that the server was told to end
// it: that it has found nothing is no news then.
func told(x *wire.Call, cmd redis.Cmder, err error) error {
	if err != redis.Nil || !x.Freed() {
		return err
	}
	err = x.Lost(ended(x.Context))
	cmd.SetErr(err)
	return err
}

func (s *oneServer) sendBatch(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, from origin) *finding {
	x := s.begin(ctx, from)
	if x == nil {
		return s.sendAll(ctx, cmds, next, from)
	}
	defer x.Release()
	f := s.sendAll(x, cmds, next, from)
	if len(cmds) == 1 && x.Freed() && cmds[0].Err() == redis.Nil { // of several none is told to end
		err := told(x, cmds[0], redis.Nil)
		f = foundOf(ctx, from, err)
		f.noteRest(cmds, err)
	}
	return f
}

func (s *oneServer) sendAll(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook, from origin) *finding {
	switch some, err := s.once.among(ctx, cmds); {
	case err != nil:
		command.SetErrors(cmds, err)
		return foundOf(ctx, from, err)
	case some:
		return s.sendOnce(ctx, cmds, next, from)
	}
	return s.deliver(ctx, cmds, cmds, next, from)
}

// sendOnce does so for a batch of which some commands have ids.
func (s *oneServer) sendOnce(ctx context.Context, all []redis.Cmder, next redis.ProcessPipelineHook, from origin) *finding {
	f := new(finding)
	cmds, first, elsewhere := s.once.placeAll(ctx, all)
	if len(cmds) == 0 {
		return foundOf(ctx, from, elsewhere)
	}
	rest := cmds
	for n := range onceSends {
		if n > 0 {
			command.SetErrors(rest, nil)
		}
		tagged := s.once.cluster.Load()
		sent, err := s.once.standIns(ctx, rest, tagged, n > 1)
		if err != nil {
			command.SetErrors(rest, err)
			f.join(found(ctx, from, err))
			return f
		}
		g := s.deliver(ctx, rest, sent, next, from).orWell(from)
		if n == 0 || command.HoldsMulti(cmds) {
			f = g
		} else {
			f.join(*g)
		}
		if rest = s.once.lacking(ctx, rest, tagged); len(rest) == 0 {
			break
		}
	}
	for _, cmd := range first {
		one := *f
		one.err = cmd.Err()
		s.once.unplace(oncesOf(ctx), cmd, one)
	}
	s.once.readBatch(ctx, cmds, f)
	if elsewhere != nil && f.err == nil {
		return foundOf(ctx, from, command.FirstError(all, elsewhere))
	}
	return f
}

// deliver has next send the commands of a batch, or what stands for them.
func (s *oneServer) deliver(ctx context.Context, cmds, sent []redis.Cmder, next redis.ProcessPipelineHook, from origin) *finding {
	switch {
	case from == clusterCall && !command.HoldsMulti(cmds):
		// go-redis sets the error that ended a pipeline only on commands that were not
		// answered. One that was moved here has the error that said so.
		if ctx.Err() == nil { // else nothing is sent
			command.SetErrors(cmds, nil)
		}
		err := next(ctx, atMostOnce(sent))
		first := slices.IndexFunc(cmds, isUnanswered)
		if first < 0 && err != nil && !isReply(err) {
			first = 0 // not even reading could begin, which go-redis sets on commands later
			command.SetErrors(cmds, err)
		}
		f := foundOf(ctx, from, err)
		if first >= 0 {
			f = f.orWell(from)
			f.noteRest(cmds[first:], cmds[first].Err())
		}
		return f
	case from == blockCall && !command.IsTransaction(cmds): // any more, after a hook of the caller
		f := foundOf(ctx, from, next(ctx, sent))
		if f != nil {
			f.reached = false
		}
		return f
	case from != pooledCall || command.IsTransaction(cmds):
		if from == foreignHook && slices.ContainsFunc(cmds[1:], isWatch) {
			s.fleet.Watch()
		}
		err := next(ctx, sent)
		if from != clusterCall && (from == blockCall || !s.ofCluster) { // else it does not show here whether EXEC ran
			err = amidTransaction(cmds, err)
		}
		return foundOf(ctx, from, err)
	}
	r := read(sent)
	if r.watches {
		s.fleet.Watch()
	}
	err := next(ctx, r.cmds)
	f := foundOf(ctx, from, err)
	if f != nil {
		f.noteRest(r.unanswered(cmds), err)
	}
	r.free()
	return f
}

// amidTransaction returns the error of a transaction, err as go-redis has it. What refused
// commands of one that EXEC has run is no word on the others.
func amidTransaction(cmds []redis.Cmder, err error) error {
	if err == nil || len(cmds) == 0 || !command.IsTransaction(cmds) {
		return err
	}
	inner := command.Inner(cmds)
	if isUnqueued(cmds, err) || redis.IsExecAbortError(cmds[len(cmds)-1].Err()) ||
		!slices.ContainsFunc(inner, mayHaveRunAmid) {
		return err
	}
	for _, cmd := range inner {
		if was := cmd.Err(); isUndone(was) {
			cmd.SetErr(ranElsewhere{was})
			if isSame(replyOf(err), replyOf(was)) { // whatever hooks have made of either
				err = ranElsewhere{err}
			}
		}
	}
	return err
}

// mayHaveRunAmid reports whether a command of a transaction that EXEC has come to, or may have, may
// have done something. A script may have before it failed.
func mayHaveRunAmid(cmd redis.Cmder) bool {
	err := cmd.Err()
	return changes(cmd) && (err == nil || err == redis.Nil || isOurs(err) || isGarbled(err) || command.IsScript(cmd) && !isUndone(err))
}

// oneServer is a router that has no choice.
func (*oneServer) mark(ctx context.Context) context.Context { return ctx }
func (*oneServer) refresh()                                 {}
func (*oneServer) rerouted() <-chan struct{}                { return nil }
func (*oneServer) use()                                     {}
func (*oneServer) several() bool                            { return false }
func (*oneServer) redirects() bool                          { return false }
func (*oneServer) spreads([]redis.Cmder) bool               { return false }

// add notes a command without an answer.
func (f *finding) add(cmd redis.Cmder, err error) {
	f.rest = append(f.rest, cmd)
	f.errs = append(f.errs, err)
}

// noteRest notes the commands of a batch that were not answered because reading, or
// writing, ended with err.
func (f *finding) noteRest(rest []redis.Cmder, err error) {
	for _, cmd := range rest {
		f.add(cmd, cmd.Err())
	}
	if ce := wire.ErrorOf(err); len(rest) > 0 && ce != nil && ce.Phase == wire.PhasePartial {
		f.undelivered = slices.Clone(rest[command.Delivered(rest, ce.Sent):]) // of a list that a hook may change
	}
}

// isUnanswered reports whether a command has an error that is no reply.
func isUnanswered(cmd redis.Cmder) bool {
	err := cmd.Err()
	return err != nil && !isReply(err)
}

// reading follows how far go-redis comes with the replies to a pipeline. go-redis gets
// stand-ins for the commands; what it sets on one first is its answer or the failure to
// read one, and what comes later is the failure of the whole, which go-redis sets on
// answered commands as well. Here they keep their answers.
//
// A pipeline with such commands go-redis does not send again, as it would when the
// first is answered by certain refusals, although the others have run.
type reading struct {
	cmds    []redis.Cmder // what go-redis gets
	all     []readCmd
	watches bool // keys, behind the first
}

var readings = sync.Pool{New: func() any { return new(reading) }}

// read returns the reading of a pipeline, which must be freed.
func read(cmds []redis.Cmder) *reading {
	r := readings.Get().(*reading)
	r.all = slices.Grow(r.all[:0], len(cmds))[:len(cmds)]
	r.cmds = slices.Grow(r.cmds[:0], len(cmds))[:len(cmds)]
	r.watches = false
	for i, cmd := range cmds {
		name := cmd.Name()
		r.watches = r.watches || i > 0 && name == "watch"
		if name == "himport" { // which go-redis must recognize
			r.cmds[i] = cmd
			continue
		}
		r.all[i].Cmder, r.cmds[i] = cmd, &r.all[i]
	}
	return r
}

// unanswered returns the commands that were not answered, which are the last ones.
func (r *reading) unanswered(cmds []redis.Cmder) []redis.Cmder {
	for i, cmd := range cmds {
		stand, ok := r.cmds[i].(*readCmd)
		if ok && !stand.answered || !ok && isUnanswered(cmd) {
			return cmds[i:]
		}
	}
	return nil
}

func isWatch(cmd redis.Cmder) bool { return cmd.Name() == "watch" }

// free gives up the reading. Large ones are not kept.
func (r *reading) free() {
	if len(r.all) > maxReading {
		return
	}
	clear(r.cmds)
	clear(r.all)
	readings.Put(r)
}
