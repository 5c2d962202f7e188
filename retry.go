package redial

import (
	"context"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// RetryPolicy decides whether a command may be sent again although it may have
// run already. It is called only for commands whose outcome is unknown, possibly
// from many goroutines at once, and must not block or change cmd. For a pipeline
// or transaction every command concerned must be allowed.
type RetryPolicy func(cmd redis.Cmder) bool

// RetryReadOnly retries commands that only read, so running one twice changes
// nothing. It is the default.
func RetryReadOnly(cmd redis.Cmder) bool { return isReadOnly(cmd) }

// RetryNever retries no command whose outcome is unknown.
func RetryNever(redis.Cmder) bool { return false }

type ctxKey int

const (
	ctxFailFast ctxKey = iota
	ctxWaitFor
	ctxIdempotent
	ctxNested // set for commands that go-redis runs inside another command's dial
)

// FailFast returns a context with which commands do not wait for the link: while
// it is down they fail at once with [ErrUnavailable].
func FailFast(ctx context.Context) context.Context {
	return context.WithValue(ctx, ctxFailFast, true)
}

// WaitFor returns a context with which a command may wait up to d for the link,
// whatever the grace of the outage. d <= 0 is the same as [FailFast].
func WaitFor(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, ctxWaitFor, d)
}

// Idempotent returns a context that declares commands safe to run twice: they
// are sent again even when the first attempt may have run. Blocking pops are
// not, because their first run may have taken an element that is lost.
func Idempotent(ctx context.Context) context.Context {
	return context.WithValue(ctx, ctxIdempotent, true)
}

// patience is how long a command may wait, from its context.
type patience struct {
	failFast bool
	own      time.Duration // above 0: replaces the grace of the outage
}

func patienceOf(ctx context.Context) patience {
	if d, ok := ctx.Value(ctxWaitFor).(time.Duration); ok {
		return patience{failFast: d <= 0, own: max(d, 0)}
	}
	fast, _ := ctx.Value(ctxFailFast).(bool)
	return patience{failFast: fast}
}

// mayRepeat reports whether cmd may be sent again after an unknown outcome.
func (c *config) mayRepeat(ctx context.Context, cmd redis.Cmder) bool {
	if isBlockingTake(cmd) {
		return false
	}
	if ok, _ := ctx.Value(ctxIdempotent).(bool); ok {
		return true
	}
	return c.policy(cmd)
}

// isHandshake reports whether go-redis itself may have sent cmd to set up a
// connection. Such commands pass the gate and are never retried: the command
// they were sent for is.
func isHandshake(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "hello", "auth", "client", "select", "readonly":
		return true
	}
	return false
}

// isBlockingTake reports whether cmd may take an element away and hand it to a
// connection that is gone by then.
func isBlockingTake(cmd redis.Cmder) bool {
	switch cmd.Name() {
	case "blpop", "brpop", "blmpop", "bzpopmin", "bzpopmax", "bzmpop",
		"brpoplpush", "blmove", "xreadgroup":
		return true
	}
	return false
}

func isReadOnly(cmd redis.Cmder) bool {
	name := cmd.Name()
	if _, ok := readOnly[name]; ok {
		return true
	}
	if subs, ok := readOnlySub[name]; ok {
		args := cmd.Args()
		if len(args) < 2 {
			return false
		}
		sub, _ := args[1].(string)
		_, ok := subs[strings.ToLower(sub)]
		return ok
	}
	return false
}

// set builds a lookup table from words separated by blanks.
func set(words string) map[string]struct{} {
	m := make(map[string]struct{})
	for _, w := range strings.Fields(words) {
		m[w] = struct{}{}
	}
	return m
}

// readOnly holds the commands that change nothing on the server, whatever their
// arguments. Commands that are missing are treated as changing something.
var readOnly = set(`
	bitcount bitfield_ro bitpos dbsize dump echo eval_ro evalsha_ro exists
	expiretime fcall_ro geodist geohash geopos georadius_ro georadiusbymember_ro
	geosearch get getbit getrange hexists hexpiretime hget hgetall hkeys hlen
	hmget hpexpiretime hpttl hrandfield hscan hstrlen httl hvals keys lastsave lcs
	lindex llen lolwut lpos lrange mget pexpiretime pfcount ping pttl randomkey
	scan scard sdiff sinter sintercard sismember smembers smismember sort_ro
	srandmember sscan strlen substr sunion time ttl type xlen xpending xrange
	xrevrange zcard zcount zdiff zinter zintercard zlexcount zmscore zrandmember
	zrange zrangebylex zrangebyscore zrank zrevrange zrevrangebylex
	zrevrangebyscore zrevrank zscan zscore zunion
`)

// readOnlySub holds the subcommands that only read, by command.
var readOnlySub = map[string]map[string]struct{}{
	"object": set("encoding freq idletime refcount"),
	"memory": set("usage"),
	"xinfo":  set("stream groups consumers"),
	"script": set("exists"),
	"pubsub": set("channels numpat numsub shardchannels shardnumsub"),
}
