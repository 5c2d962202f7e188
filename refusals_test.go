package redial

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
)

const (
	roleChanged = "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"
	unblocked   = "UNBLOCKED client unblocked via CLIENT UNBLOCK"
)

// What is said of a reply by itself: whether the command surely did not run.
func TestSafeToRetry_Replies(t *testing.T) {
	const of7, of6 = " script: f_1, on @user_script:1.", "ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -"
	for _, tc := range []struct {
		reply string
		safe  bool
	}{
		{roleChanged, true},
		{unblocked, true},
		{"UNBLOCKED the stream key no longer exists", true},
		{"MOVED 1 127.0.0.1:1", true},
		{"ASK 1 127.0.0.1:1", true},
		{"CROSSSLOT Keys in request don't hash to the same slot", true},
		{"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", true},
		{"BUSY Valkey is busy running a module command.", true},
		{"BUSY of a module", true},
		{"BUSYGROUP Consumer Group name already exists", false},
		{"BUSYKEY Target key name already exists.", false},
		{"BUSYX", false},
		{"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", true},
		{"OOM command not allowed when used memory > 'maxmemory'.", true},
		{"ERR OOM command not allowed when used memory > 'maxmemory'.", true},
		{"OOM command not allowed when used memory > 'maxmemory'." + of7, false},
		{of6 + "OOM command not allowed when used memory > 'maxmemory'.", false},
		{"READONLY You can't write against a read only replica." + of7, false},
		{of6 + "READONLY You can't write against a read only replica.", false},
		{"READONLY You can't write against a read only replica. script: f, on @user_function:3.", false},
		{"@user_script: 1: -NOREPLICAS Not enough good replicas to write.", false},
		{"NOPERM User default has no permissions to run the 'set' command", true},
		{"NOPERM ACLs rules changed between the moment the transaction was accumulated and the EXEC call. This command is no longer allowed for the following reason: no permission", false},
		{"DENIED Redis is running in protected mode because protected mode is enabled", true},
		{"NOSCRIPT No matching script. Please use EVAL.", true},
		{"UNKILLABLE Sorry the script already executed write commands against the dataset.", true},
		{"NOTBUSY No scripts in execution right now.", true},
		{"NOMASTERLINK Can't SYNC while not connected with my master", true},
		{"INPROG Failover already in progress", true},
		{"NOGOODSLAVE No suitable replica to promote", true},
		{"NOPROTO unsupported protocol version", true},
		{"REDIRECT 127.0.0.1:1", true},
		{"ERR unknown command 'x', with args beginning with: ", true},
		{"ERR wrong number of arguments for 'get' command", true},
		{"ERR value is not an integer or out of range", false},
		{"ERR no such key", false},
		{"NOGROUP No such key 's' or consumer group 'g'", false},
		{"IOERR error or timeout writing to target instance", false},
		{"WRONGTYPE Operation against a key holding the wrong kind of value", false},
		{"no upstream host", false},
	} {
		assert.Equal(t, tc.safe, SafeToRetry(redisError(tc.reply)), tc.reply)
	}
}

// Refusals that waiting may cure are waited for, others come at once; of either the
// command runs once at most.
func TestRefusals_SingleServer(t *testing.T) {
	blpop := func(ctx context.Context, c redis.Cmdable) error { return c.BLPop(ctx, time.Second, "q").Err() }
	set := func(ctx context.Context, c redis.Cmdable) error { return c.Set(ctx, "k", "v", 0).Err() }
	wait := func(ctx context.Context, c redis.Cmdable) error { return c.(*Client).Do(ctx, "wait", 0, 1).Err() }
	for _, tc := range []struct {
		name, cmd, reply string
		do               func(context.Context, redis.Cmdable) error
		waits            bool
		generations      uint64
	}{
		{"role changed", "blpop", roleChanged, blpop, true, 1},
		{"unblocked", "blpop", unblocked, blpop, false, 0},
		{"role changed, of a command that waits for the writes of its connection", "wait", roleChanged, wait, false, 1},
		{"redirected", "set", "REDIRECT 127.0.0.1:1", set, true, 1},
		{"busy", "set", "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", set, true, 0},
		{"busy, by a proxy", "set", "ERR BUSY Redis is busy", set, true, 0},
		{"not busy", "set", "BUSYKEY Target key name already exists.", set, false, 0},
		{"broken disk", "set", "MISCONF Errors writing to the AOF file: No space left on device", set, false, 0},
		{"no memory", "set", "OOM command not allowed when used memory > 'maxmemory'.", set, false, 0},
		{"no permission", "set", "NOPERM User default has no permissions to run the 'set' command", set, false, 0},
		{"moved", "set", "MOVED 1 127.0.0.1:1", set, false, 0},
		{"protected", "set", "DENIED Redis is running in protected mode", set, false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
				f := inject(n)
				c := NewClient(opt)
				defer c.Close()
				ready(t, c)
				ctx := t.Context()
				_, err := n.Redis.Push("q", "x", "y")
				require.NoError(t, err)
				before := c.Stats().Generation
				f.Times(tc.cmd, 1, reply(tc.reply))
				began := time.Now()
				err = tc.do(ctx, c)
				assert.Less(t, time.Since(began), 500*time.Millisecond)
				assert.Equal(t, before+tc.generations, c.Stats().Generation)
				if !tc.waits {
					assert.EqualError(t, err, tc.reply)
					assert.Equal(t, 1, f.Count(tc.cmd))
					return
				}
				assert.NoError(t, err)
				assert.Equal(t, 2, f.Count(tc.cmd))

				f.Times(tc.cmd, 1<<30, reply(tc.reply))
				began = time.Now()
				assert.EqualError(t, tc.do(ctx, c), tc.reply, "in the end the server's own words")
				assert.InDelta(t, DefaultGrace, time.Since(began), float64(time.Second))
			})
		})
	}
}

// The function is asked about replies of the server alone.
func TestWithRefusals_IsAskedAboutReplies(t *testing.T) {
	_, err := newConfig([]Option{WithRefusals(nil)})
	assert.EqualError(t, err, "redial: WithRefusals function is nil")

	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		var asked []string
		c := NewClient(opt, WithRefusals(func(err error) bool {
			assert.True(t, isReply(err))
			asked = append(asked, err.Error())
			return false
		}), WithGrace(0))
		defer c.Close()
		ready(t, c)
		ctx := t.Context()
		assert.Equal(t, redis.Nil, c.Get(ctx, "none").Err())
		f.Times("get", 1, hangUp)
		assert.Error(t, c.Get(ctx, "k").Err())
		f.Times("set", 1, reply("ERR of a script script: f_1, on @user_script:1."))
		assert.Error(t, c.Set(ctx, "k", "v", 0).Err())
		assert.Empty(t, asked)
		f.Times("set", 1, reply("ERR something"))
		assert.EqualError(t, c.Set(ctx, "k", "v", 0).Err(), "ERR something")
		assert.Equal(t, []string{"ERR something"}, asked)
	})
}

// In a pipeline what is refused is sent again with all that follow it, if those may run
// twice or were refused as well.
func TestWithRefusals_Pipeline(t *testing.T) {
	for _, tc := range []struct {
		name  string
		then  func(context.Context, redis.Pipeliner)
		again bool
	}{
		{"before a read", func(ctx context.Context, p redis.Pipeliner) { p.Get(ctx, "k") }, true},
		{"before a write", func(ctx context.Context, p redis.Pipeliner) { p.Incr(ctx, "n") }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
				f := inject(n)
				c := NewClient(opt, WithRefusals(func(err error) bool { return err.Error() == "try later" }))
				defer c.Close()
				ready(t, c)
				ctx := t.Context()
				f.Times("set", 1, reply("try later"))
				_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
					p.LPush(ctx, "l", "v")
					p.Set(ctx, "k", "v", 0)
					tc.then(ctx, p)
					return nil
				})
				if tc.again {
					assert.NoError(t, err)
					assert.Equal(t, 2, f.Count("set"))
				} else {
					assert.EqualError(t, err, "try later")
					assert.Equal(t, 1, f.Count("set"))
				}
				assert.Equal(t, 1, f.Count("lpush"))
				assert.LessOrEqual(t, f.Count("incr"), 1)
			})
		})
	}
}

// Some parts of a command that go-redis splits ran, others were refused.
func TestParts_Refused(t *testing.T) {
	oom, moved, busy := redisError("OOM command not allowed"), redisError("MOVED 1 x:1"), redisError("BUSY x")
	cfg, err := newConfig(nil)
	require.NoError(t, err)
	n := newNodes(cfg, "x")
	verdict := func(reads bool, err error, of ...error) error {
		p := new(parts)
		for _, e := range of {
			p.note(e)
		}
		return p.verdict(&terms{cfg: n.cfg, redirects: n.redirects(), reads: reads}, err)
	}
	assert.True(t, SafeToRetry(verdict(false, oom, oom, oom)), "none ran")
	assert.Equal(t, oom, verdict(true, oom, nil, oom), "it only reads")
	mixed := verdict(false, oom, nil, oom)
	assert.False(t, SafeToRetry(mixed), "one ran")
	assert.EqualError(t, mixed, oom.Error())
	assert.True(t, isReply(mixed))
	assert.ErrorIs(t, mixed, oom)
	assert.Equal(t, moved, verdict(false, moved, moved))
	assert.Equal(t, unknown, outcomeOf(verdict(false, moved, nil, moved)))
	assert.Equal(t, unknown, outcomeOf(verdict(false, busy, nil, busy)))
	assert.Equal(t, unknown, outcomeOf(verdict(false, nil, nil, busy)), "go-redis tells of it nowhere")
}

// Every row can be found: none is hidden by one before it, and none is found by what
// only looks alike.
func TestRefusals_EveryRowIsFound(t *testing.T) {
	for i := range refusals {
		r := &refusals[i]
		for _, text := range []string{r.begins + r.has + " x", "ERR " + r.begins + r.has + " x"} {
			row, script := refusalOf(redisError(text))
			assert.Same(t, r, row, text)
			assert.False(t, script)
		}
		raised, script := refusalOf(redisError(r.begins + r.has + " script: f_1, on @user_script:1."))
		assert.Same(t, r, raised)
		assert.True(t, script)
		assert.False(t, SafeToRetry(redisError(r.begins+r.has+" script: f_1, on @user_script:1.")), r.begins)
		if r.begins != "" && strings.HasSuffix(r.begins, " ") {
			row, _ := refusalOf(redisError(strings.TrimSpace(r.begins) + "X y"))
			assert.NotSame(t, r, row)
		}
		assert.NotEmpty(t, r.means)
		if r.retires {
			assert.True(t, r.topology, "rotate asks for it")
		}
	}
	row, script := refusalOf(redisError("ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't write against a read only replica."))
	assert.True(t, row.retires && script)
	row, _ = refusalOf(errors.New("READONLY is what somebody's hook says"))
	assert.Nil(t, row)
}

// The document's table of replies has the rows of the code, and no others.
func TestDocs_TableOfReplies_MatchesCode(t *testing.T) {
	text, err := os.ReadFile("docs/commands.md")
	require.NoError(t, err)
	var want, got []string
	for _, r := range refusals {
		want = append(want, r.inDocument())
	}
	_, section, found := strings.Cut(string(text), "## Replies that mean \"not executed\"\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n#")
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "| `") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	assert.Equal(t, want, got)
}

// inDocument is the row of the document's table for a row of the code's.
func (r refusal) inDocument() string {
	reply := "`" + strings.TrimSpace(r.begins) + "`"
	switch {
	case r.begins == "":
		reply = "`… " + r.has + " …`"
	case r.has != "":
		reply = "`" + r.begins + "… " + r.has + "`"
	}
	then := map[waits]string{
		waitsNot: "returned", waitsGrace: "sent again", waitsAmongNodes: "sent again, in a cluster", waitsRenewed: "sent again once, with new credentials",
	}[r.waits]
	for _, more := range []struct {
		is   bool
		text string
	}{
		{r.retires, "connections retired"},
		{r.topology, "topology asked for"},
		{r.notReady, "an outage"},
	} {
		if more.is {
			then += "; " + more.text
		}
	}
	safe, script := "yes", ""
	if r.ran {
		safe = "no"
	}
	if r.waits != waitsNot {
		script = "returned"
		if len(r.script) > 0 {
			script = "the same"
			if words := strings.Join(r.script, "`, `"); words != "" {
				script += " if it has `" + words + "`"
			}
		}
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s |", reply, then, script, safe, r.means)
}

func TestPolicies(t *testing.T) {
	ctx := context.Background()
	cmd := func(args ...any) redis.Cmder { return redis.NewCmd(ctx, args...) }
	assert.True(t, RetryReadOnly(cmd("get", "k")))
	assert.True(t, RetryReadOnly(cmd("ping")))
	assert.False(t, RetryReadOnly(cmd("set", "k", "v")))
	assert.True(t, RetryIdempotent(cmd("get", "k")))
	assert.True(t, RetryIdempotent(cmd("set", "k", "v")))
	assert.False(t, RetryIdempotent(cmd("incr", "k")))
	assert.False(t, RetryNever(cmd("get", "k")))
}

// The table of the document says what the code does.
func TestDocs_WhatIsSentAgain(t *testing.T) {
	text, err := os.ReadFile("docs/commands.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "## What is sent again\n")
	require.True(t, found)
	ctx := context.Background()
	with := func(policy RetryPolicy) *config {
		cfg, err := newConfig([]Option{WithRetry(policy)})
		require.NoError(t, err)
		return cfg
	}
	seen := make(map[command.Class]bool)
	for _, row := range regexp.MustCompile(`(?m)^\| (?:that|on) .*$`).FindAllString(section, -1) {
		cells := strings.Split(strings.Trim(row, "| "), " | ")
		require.Len(t, cells, 6, row)
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			var args []any
			for _, w := range strings.Fields(m[1]) {
				args = append(args, w)
			}
			cmd := redis.NewCmd(ctx, args...)
			c := command.ClassOf(cmd)
			seen[c] = true
			for i, may := range []bool{
				with(RetryReadOnly).mayRepeat(ctx, cmd),
				with(RetryIdempotent).mayRepeat(ctx, cmd),
				with(RetryNever).mayRepeat(ctx, cmd) || with(RetryReadOnly).mayRepeat(NoRetry(ctx), cmd),
				with(RetryReadOnly).mayRepeat(Idempotent(ctx), cmd),
			} {
				assert.Equal(t, map[bool]string{true: "yes", false: "no"}[may], cells[2+i], "%s: column %d", m[1], 2+i)
			}
		}
	}
	assert.Len(t, seen, 6, "every class has an example")
}

// What a part has run is not run again because another node was removed.
func TestParts_NodeIsRemoved(t *testing.T) {
	p := &parts{}
	p.note(nil)
	p.note(redis.ErrClosed)
	assert.Equal(t, unknown, outcomeOf(p.verdict(&terms{}, redis.ErrClosed)))
}
