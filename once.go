package redial

// What runs once, who has an id, and where it may go: which commands of a call may have one,
// which have which when they are about to be sent, and, in a ring, on which shard the record
// of one is. The loop of call.go knows of that only that such a command may always be sent
// again, see mayRepeat. What goes out in place of such a command is in oncescript.go.

import (
	"cmp"
	"context"
	"reflect"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
)

// onceHas returns the error of a command that cannot have an id, or of an id that cannot
// be one. slots says that there are several, of which the keys must be in one.
func onceHas(cmd redis.Cmder, id string, slots bool) error {
	switch {
	case id == "":
		return refuse(cmd, "the id is empty")
	case len(id) > maxOnceID:
		return refuse(cmd, "the id has "+strconv.Itoa(len(id))+" bytes, and may have "+strconv.Itoa(maxOnceID))
	}
	if _, raw := cmd.(*redis.RawCmd); raw {
		return refuse(cmd, "its reply is not decoded")
	}
	if !reflect.ValueOf(cmd).Comparable() {
		return refuse(cmd, "it cannot be told from others")
	}
	at, _, why := command.Keys(cmd)
	args := cmd.Args()
	switch {
	case why != "":
		return refuse(cmd, why)
	case len(args) > maxOnceArgs:
		return refuse(cmd, "it has "+strconv.Itoa(len(args))+" arguments, and may have "+strconv.Itoa(maxOnceArgs))
	case !slots:
		return nil
	}
	first := -1
	for _, i := range at {
		key, err := command.Text(args[i])
		if err != nil {
			return refuse(cmd, whyUnsendable)
		}
		if slot := command.Slot(key); first >= 0 && slot != first {
			return refuse(cmd, "its keys are in several slots")
		} else {
			first = slot
		}
	}
	return nil
}

// once returns the context for a call of one command. It is ctx itself for one without an
// id.
func (c *config) once(ctx context.Context, cmd redis.Cmder, slots bool) (context.Context, error) {
	v := ctx.Value(onceKey{})
	if x, ok := v.(*onceContext); ok {
		if x.onces == nil || x.onces.has(cmd) {
			return ctx, nil
		}
		return &onceContext{Context: ctx}, nil // sent besides, by a hook or to set up a connection
	}
	id, ok := v.(string)
	own := false
	if !ok {
		id, own = ownID(cmd)
	}
	if !ok && !own || command.IsHandshake(cmd) && insideSetUp() {
		return ctx, nil
	}
	if err := onceHas(cmd, id, slots); err != nil {
		return ctx, err
	}
	if own && slots {
		return ctx, refuse(cmd, whyQueued)
	}
	return c.withOnces(ctx, &onces{all: true, ids: map[redis.Cmder]onceID{cmd: {id, -1}}}), nil
}

func (c *config) withOnces(ctx context.Context, o *onces) context.Context {
	o.life = c.onceTTL / onceShare
	return &onceContext{ctx, o}
}

// ownID returns the id in the context that a command was made with.
func ownID(cmd redis.Cmder) (id string, ok bool) {
	if ctx := contextOf(cmd); ctx != nil {
		return idOf(ctx)
	}
	return "", false
}

// onceBatch does the same for a batch. No error is for all of it. Commands with ids of
// their own that cannot have them get their errors, and rest are the others: in an
// auto-pipeline they are of other callers. shared says that the batch is for a full-duplex
// auto-pipeline.
func (c *config) onceBatch(ctx context.Context, cmds []redis.Cmder, slots, shared bool) (_ context.Context, rest []redis.Cmder, err error) {
	if x := onceContextOf(ctx); x != nil {
		if x.onces == nil || slices.ContainsFunc(cmds, x.onces.has) {
			return ctx, cmds, nil
		}
		return &onceContext{Context: ctx}, cmds, nil
	}
	id, ok := idOf(ctx)
	switch {
	case !ok:
		return c.ownIDs(ctx, cmds, slots, shared)
	case command.IsSetup(cmds) && insideSetUp():
		return ctx, cmds, nil
	}
	inner := command.Inner(cmds)
	o := &onces{all: true, ids: make(map[redis.Cmder]onceID, len(inner))}
	for i, cmd := range inner {
		own, has := ownID(cmd)
		switch err = onceHas(cmd, id, slots); {
		case err != nil:
		case has && own != id:
			err = refuse(cmd, "it was made with another id than that of the batch")
		case shared:
			err = refuse(cmd, whyShared)
		case o.has(cmd):
			err = refuse(cmd, "it is in the batch twice")
		}
		if err != nil {
			command.SetErrors(cmds, err)
			return ctx, nil, err
		}
		o.ids[cmd] = onceID{id, i}
	}
	return c.withOnces(ctx, o), cmds, nil
}

// whyShared is why a full-duplex auto-pipeline takes no commands with ids.
const whyShared = "a full-duplex auto-pipeline cannot protect it"

// whyQueued is why a command cannot have an id of its own in a batch for a cluster. A
// stand-in that is sent on to another node hides from go-redis that the goroutine there is
// one of the auto-pipeline's, and must not wait for the command: it would, for ever.
const whyQueued = "in a cluster the id must be that of the whole call, not of a command in a batch"

// ownIDs is onceBatch for commands that may have ids of their own.
func (c *config) ownIDs(ctx context.Context, cmds []redis.Cmder, slots, shared bool) (_ context.Context, rest []redis.Cmder, err error) {
	if !slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { _, ok := ownID(cmd); return ok }) {
		return ctx, cmds, nil
	}
	o := &onces{ids: make(map[redis.Cmder]onceID)}
	queues := slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return cmd.Name() == "multi" })
	for _, cmd := range cmds {
		id, ok := ownID(cmd)
		if !ok {
			rest = append(rest, cmd)
			continue
		}
		no := onceHas(cmd, id, slots)
		switch {
		case no != nil:
		case queues:
			no = refuse(cmd, "it is in a transaction without an id")
		case slots:
			no = refuse(cmd, whyQueued)
		case shared:
			no = refuse(cmd, whyShared)
		case o.has(cmd):
			no = refuse(cmd, "it is in the batch twice")
		default:
			o.ids[cmd] = onceID{id, -1}
			rest = append(rest, cmd)
			continue
		}
		if queues {
			command.SetErrors(cmds, no)
			return ctx, nil, no
		}
		cmd.SetErr(no)
		err = cmp.Or(err, no)
	}
	return c.withOnces(ctx, o), rest, err
}

// send has next send a command, which may have an id.
func (w *onceWay) send(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, from origin) (err error) {
	o, err := w.oncesFor(ctx, cmd)
	if o == nil && err == nil {
		return next(ctx, cmd)
	}
	if err == nil && from == sharedCall { // it was written before this was called
		_ = next(ctx, cmd)
		err = &onceError{kind: ErrOnceUnsupported, cmd: cmd.Name(), why: whyShared + ", and has written it already", ran: true}
	}
	whole := false
	if err == nil {
		var first bool
		if first, err = w.place(o, cmd); first {
			defer func() { w.unplace(o, cmd, finding{err: err, unsent: from.alone() && ctx.Err() == err && err != nil}) }()
		}
	}
	var sum string
	if err == nil {
		sum, err = w.sum(o, cmd, nil)
	}
	for err == nil {
		tagged := w.cluster.Load()
		stand, no := w.standIn(o, cmd, nil, sum, tagged, whole)
		if no != nil {
			err = no
			break
		}
		err = next(ctx, stand)
		switch w.lack(err, tagged) {
		case lacksScript:
			if whole {
				return err
			}
			whole, err = true, nil
		case lacksSlot:
			w.cluster.Store(true)
			err = nil
		default:
			was := err
			if err = w.read(cmd, err); !isSame(err, was) {
				cmd.SetErr(err)
			}
			return err
		}
		cmd.SetErr(nil)
	}
	cmd.SetErr(err)
	return err
}

// place has a command go to the server, and returns why it must not. A hook of the caller may
// ask for it again when the record is gone. A ring looks for keys on another shard when theirs
// is down, where there is no record of what has run.
func (w *onceWay) place(o *onces, cmd redis.Cmder) (first bool, err error) {
	why, may := whyGone, o.fresh()
	if may && w.strays {
		why = whyElsewhere
		first, may = o.place(cmd, w)
	}
	if !may {
		err = &onceError{kind: ErrOutcomeUnknown, cmd: cmd.Name(), why: why, ran: true}
	}
	return first, err
}

// unplace notes what became of a command that was sent for the first time, as part of what
// f was found of: where it has not run, it may go elsewhere.
func (w *onceWay) unplace(o *onces, cmd redis.Cmder, f finding) {
	if f.unran() {
		o.unplace(cmd)
	}
}

// Why a command is not sent that may have run.
const (
	whyElsewhere = "it may have run on another shard, which has its record"
	whyGone      = "it may have run, and its record may be gone"
)

// placeAll does for the commands of a batch what place does for one, and returns those that
// may be sent, and of them those that go out for the first time. A transaction goes as a whole.
func (w *onceWay) placeAll(ctx context.Context, cmds []redis.Cmder) (rest, first []redis.Cmder, err error) {
	o := oncesOf(ctx)
	if !w.strays && o.fresh() {
		return cmds, nil, nil
	}
	for _, cmd := range cmds {
		if o.has(cmd) {
			fresh, no := w.place(o, cmd)
			if fresh {
				first = append(first, cmd)
			}
			if no != nil {
				cmd.SetErr(no)
				err = cmp.Or(err, no)
				continue
			}
		}
		rest = append(rest, cmd)
	}
	if err != nil && command.HoldsMulti(cmds) {
		command.SetErrors(cmds, err)
		rest = nil
	}
	return rest, first, err
}

// oncesFor returns the ids of the call if a command that is about to be sent has one, nil
// if it has none, or why it must not be sent.
func (w *onceWay) oncesFor(ctx context.Context, cmd redis.Cmder) (*onces, error) {
	v := ctx.Value(onceKey{})
	if v == nil {
		return nil, nil
	}
	x, ok := v.(*onceContext)
	switch {
	case ok && x.onces == nil:
	case ok && x.onces.has(cmd):
		return x.onces, nil
	case isPassing(cmd):
	case !ok:
		return nil, refuse(cmd, whyAnother)
	case len(x.onces.ids) > 0 && x.onces.all:
		return nil, refuse(cmd, "it is not the one that was called, but takes its place")
	}
	return nil, nil
}

// strayed returns why commands must not be sent that a hook of the caller hands on with a
// context that does not come from the one that it was given.
func strayed(ctx context.Context, cmds ...redis.Cmder) error {
	if !onceUsed.Load() || onceContextOf(ctx) != nil {
		return nil
	}
	for _, cmd := range cmds {
		if _, ok := ownID(cmd); ok && !isPassing(cmd) {
			return refuse(cmd, whyAnother)
		}
	}
	return nil
}

// whyAnother is why a command is not sent whose id is not to be seen any more.
const whyAnother = "a hook has put another context in the place of its own"

// among reports whether some of the commands that are about to be sent have ids, or why
// they must not be sent.
func (w *onceWay) among(ctx context.Context, cmds []redis.Cmder) (some bool, err error) {
	if !onceUsed.Load() {
		return false, nil
	}
	for _, cmd := range cmds {
		o, err := w.oncesFor(ctx, cmd)
		if err != nil {
			return false, err
		}
		some = some || o != nil
	}
	return some, nil
}
