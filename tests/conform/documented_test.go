package conform

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialtest"
)

// documented are the differences that a program may see, each with its reason. The suite
// builds the bare client so that they do not show, and TestConform_Documented shows
// each one. Row is what the documents say of it.
var documented = []struct {
	name, reason, row string
	show              func(t *testing.T)
}{
	{
		"connection errors are wrapped in *redial.Error",
		"the error says whether the command can have run; errors.Is still finds what go-redis would have returned",
		"Connection errors are wrapped in `*redial.Error`. Use `errors.Is`.",
		showWrappedErrors,
	},
	{
		"go-redis's own retries have no effect",
		"go-redis sends a write again although it may have run; hooks see a call per attempt of redial's instead",
		"No effect. redial retries by itself",
		showOwnRetries,
	},
	{
		"ContextTimeoutEnabled is always on",
		"a deadline that the socket ignores is none; a full-duplex AutoPipeliner therefore runs its Pipeline() on a pooled connection, as go-redis's does with this option",
		"Always on: the end of a context ends the wait for a reply, too",
		showContextTimeout,
	},
	{
		"WithTimeout keeps the hooks",
		"a clone without redial's hook would not be protected",
		"Returns a `*redial.Client` and, unlike go-redis's, keeps the hooks.",
		showCloneHooks,
	},
	{
		"answered commands of a broken pipeline keep their replies",
		"go-redis's batch may put the error of the connection on commands that have run",
		"Commands with a reply keep it.",
		showAnsweredKept,
	},
	{
		"hooks do not see what is refused while it waits",
		"an attempt is what hooks see, and there was none",
		"none of a command that is refused while it waits",
		showHooksOfWaiting,
	},
	{
		"a hook behind redial's back sees an error of redial's where a connection fails",
		"the error of the connection says how far the command had come; only a hook that was added through redial has a part of redial's behind it that notes this",
		"sees what a connection fails with as an error of redial's with the same text",
		showHooksBehind,
	},
	{
		"a reply that go-redis cannot read: a read is sent once more",
		"it may be the connection that is out of step, and a second run of a read does no harm",
		"A write returns `ErrOutcomeUnknown`, a read is sent once more.",
		showGarbled,
	},
	{
		"hooks of a ring see PUBLISH",
		"it waits and is sent again as other commands are, which happens in a hook",
		"a ring's hooks see PUBLISH",
		showRingPublish,
	},
	{
		"of a server with a name, maintenance notifications are asked for with endpoint type none",
		"go-redis resolves the name when it makes the client, for up to 2 s, and redial's constructors do no I/O",
		"endpoint type",
		showEndpointType,
	},
	{
		"what the server refuses for the time being is sent again",
		"LOADING, READONLY, TRYAGAIN, CLUSTERDOWN, MASTERDOWN and their like pass by themselves",
		"Replies that mean",
		showRefusalsHidden,
	},
}

func TestConform_Documented(t *testing.T) {
	pages := testkit.Document(t, "docs/migrating.md") + testkit.Document(t, "docs/commands.md")
	for _, d := range documented {
		t.Run(d.name, func(t *testing.T) {
			assert.NotEmpty(t, d.reason)
			assert.True(t, strings.Contains(pages, d.row), "the documents must say so, too: %q", d.row)
			d.show(t)
		})
	}
}

// each opens a client of either side on a server that a script has changed.
func each(t *testing.T, n knobs, use func(w *world) string) (of map[side]string) {
	of = make(map[side]string)
	for _, s := range []side{bare, wrapped} {
		w := newWorld(t, s, aClient)
		if n.before != nil {
			n.before(w)
		}
		w.open(n)
		of[s] = use(w)
		w.close()
	}
	return of
}

// answer makes the server do something else with the first so many of a command.
func answer(name string, times int64, action redialtest.Action) func(*world) {
	return func(w *world) {
		var n atomic.Int64
		w.servers[clusterNodeA].says(func(_ int, args []string) redialtest.Action {
			if args[0] == name && n.Add(1) <= times {
				return action
			}
			return redialtest.Handle
		})
	}
}

func showWrappedErrors(t *testing.T) {
	got := each(t, knobs{before: answer("incr", 1, redialtest.CloseBeforeExecute)}, func(w *world) string {
		err := w.rdb.Incr(w.ctx, "n").Err()
		var e *redial.Error
		return map[bool]string{true: "wrapped", false: "plain"}[errors.As(err, &e)]
	})
	assert.Equal(t, map[side]string{bare: "plain", wrapped: "wrapped"}, got)
}

func showOwnRetries(t *testing.T) {
	retries := func(o *redis.Options) { o.MaxRetries = 3 }
	got := each(t, knobs{tune: retries, before: answer("incr", 1, redialtest.ExecuteThenClose)}, func(w *world) string {
		err := w.rdb.Incr(w.ctx, "n").Err()
		if errors.Is(err, redial.ErrOutcomeUnknown) {
			return "outcome unknown"
		}
		return describe(err) // the second run's
	})
	assert.Equal(t, map[side]string{bare: "nil", wrapped: "outcome unknown"}, got)
}

func showContextTimeout(t *testing.T) {
	off := func(o *redis.Options) { o.ContextTimeoutEnabled, o.ReadTimeout = false, 200*time.Millisecond }
	got := each(t, knobs{tune: off, before: answer("incr", 1, redialtest.Drop)}, func(w *world) string {
		ctx, cancel := context.WithTimeout(w.ctx, 50*time.Millisecond)
		defer cancel()
		began := time.Now()
		require.Error(t, w.rdb.Incr(ctx, "n").Err())
		if time.Since(began) < 150*time.Millisecond {
			return "its context"
		}
		return "ReadTimeout"
	})
	assert.Equal(t, map[side]string{bare: "ReadTimeout", wrapped: "its context"}, got)
}

func showCloneHooks(t *testing.T) {
	got := each(t, knobs{}, func(w *world) string {
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook"})
		clone, _ := w.clone(time.Minute)
		require.NoError(t, clone.Set(w.ctx, "k", "v", 0).Err())
		if len(w.transcript()["hooks"]) == 0 {
			return "none"
		}
		return "kept"
	})
	assert.Equal(t, map[side]string{bare: "none", wrapped: "kept"}, got)
}

// The reply of the first command was read, then the connection broke, and go-redis sent
// everything again.
func showAnsweredKept(t *testing.T) {
	retries := func(o *redis.Options) { o.MaxRetries = 3 }
	got := each(t, knobs{tune: retries, before: answer("get", 1, redialtest.CloseBeforeExecute)}, func(w *world) string {
		cmds, _ := w.rdb.Pipelined(w.ctx, func(p redis.Pipeliner) error {
			p.Incr(w.ctx, "n")
			p.Get(w.ctx, "n")
			return nil
		})
		return cmds[0].String() + ", " + cmds[1].String()
	})
	assert.Equal(t, map[side]string{bare: "incr n: 2, get n: 2", wrapped: "incr n: 1, get n: 1"}, got)
}

func showRefusalsHidden(t *testing.T) {
	tryAgain := redialtest.Reply("-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
	got := each(t, knobs{before: answer("incr", 2, tryAgain)}, func(w *world) string {
		return strings.Fields(w.rdb.Incr(w.ctx, "n").String())[2]
	})
	assert.Equal(t, map[side]string{bare: "TRYAGAIN", wrapped: "1"}, got)
}

func showHooksOfWaiting(t *testing.T) {
	down := func(w *world) { w.servers[clusterNodeA].Kill() }
	got := each(t, knobs{before: down}, func(w *world) string {
		w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook"})
		require.Error(t, w.rdb.Get(redial.FailFast(w.ctx), "k").Err())
		if len(w.transcript()["hooks"]) == 0 {
			return "nothing"
		}
		return "a call"
	})
	assert.Equal(t, map[side]string{bare: "a call", wrapped: "nothing"}, got)
}

func showHooksBehind(t *testing.T) {
	saw := func(s side, add func(w *world, h redis.Hook)) (seen error) {
		w := newWorld(t, s, aClient)
		defer w.close()
		answer("incr", 1, redialtest.ExecuteThenClose)(w)
		w.open(knobs{})
		add(w, spy{w: w, terse: true, single: func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			seen = next(ctx, cmd)
			return seen
		}})
		require.Error(t, w.rdb.Incr(w.ctx, "n").Err())
		return seen
	}
	through := func(w *world, h redis.Hook) { w.rdb.AddHook(h) }
	behind := func(w *world, h redis.Hook) { w.client().AddHook(h) }
	assert.Equal(t, io.EOF, saw(bare, through))
	assert.Equal(t, io.EOF, saw(wrapped, through))
	for _, seen := range []error{saw(wrapped, behind), saw(managed, through)} {
		assert.NotEqual(t, io.EOF, seen)
		assert.EqualError(t, seen, "EOF")
	}
}

func showGarbled(t *testing.T) {
	got := each(t, knobs{before: answer("get", 1, redialtest.Reply("&garbage\r\n"))}, func(w *world) string {
		return describe(w.rdb.Get(w.ctx, "k").Err())
	})
	assert.NotEqual(t, "redis.Nil", got[bare])
	assert.Equal(t, "redis.Nil", got[wrapped], "the second run's")
}

func showEndpointType(t *testing.T) {
	name := func(o *redis.Options) { o.Addr = "localhost:6379" }
	got := each(t, knobs{tune: name}, func(w *world) string {
		return string(w.client().Options().MaintNotificationsConfig.EndpointType)
	})
	assert.NotEqual(t, "none", got[bare])
	assert.Equal(t, "none", got[wrapped])
}

func showRingPublish(t *testing.T) {
	for _, s := range []side{bare, wrapped} {
		got := runSide(t, s, aRing, knobs{}, func(w *world) {
			w.rdb.AddHook(spy{w: w, stream: "hooks", name: "hook"})
			w.did(w.rdb.Publish(w.ctx, "{a}news", "hello"))
		}).String()
		assert.Equal(t, s == wrapped, strings.Contains(got, "hook > process"), "%s", got)
	}
}
