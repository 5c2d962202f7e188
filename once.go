package redial

// What runs once, who has an id: which commands of a call may have one, and which have
// which. The loop of call.go knows of that only that such a command may always be sent
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

// refuse is the error of a command that cannot have an id.
func refuse(cmd redis.Cmder, why string) error {
	return &onceError{kind: ErrOnceUnsupported, cmd: cmd.Name(), why: why}
}

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
	if !reflect.TypeOf(cmd).Comparable() {
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
	for _, cmd := range cmds {
		id, ok := ownID(cmd)
		if !ok {
			rest = append(rest, cmd)
			continue
		}
		no := onceHas(cmd, id, slots)
		switch {
		case no != nil:
		case command.IsTransaction(cmds):
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
		if command.IsTransaction(cmds) {
			command.SetErrors(cmds, no)
			return ctx, nil, no
		}
		cmd.SetErr(no)
		err = cmp.Or(err, no)
	}
	return c.withOnces(ctx, o), rest, err
}

// whyUnsendable is why a command is not sent that go-redis would not write.
const whyUnsendable = "an argument cannot be sent"
