package command

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// What must be known of a command to run it inside a script: where its keys are, what may
// be in its reply that a script would spoil, and why it cannot be if it cannot. The tables
// are data, and compared with a server by a test.

// Reply says what a script has to do to return the reply of a command as it is.
type Reply uint8

const (
	// Plain: nothing.
	Plain Reply = iota
	// Nils: it may hold nil inside of arrays, which a script sees of RESP2 only.
	Nils
	// Scores: the same, and the rest are doubles in RESP3.
	Scores
	// Places: the same, and the rest are pairs of doubles in RESP3.
	Places
	// Counts: the same, and integers inside of it may be no doubles.
	Counts
	// Streams: the same, and it is a map in RESP3.
	Streams
	// Counter: it may be an integer that is no double, which the first key holds then.
	Counter
	// HashCounter: the same, and it is a field of the first key that holds it.
	HashCounter
)

// Keys returns the positions of the keys among the arguments of cmd and what is to be
// known of its reply. If the command cannot run inside a script, or it is not known how,
// why says so in a few words.
func Keys(cmd redis.Cmder) (at []int, r Reply, why string) {
	args, name := cmd.Args(), cmd.Name()
	if cmd.NoRetry() {
		return nil, Plain, "its reply is written past the command"
	}
	find, ok := keyed[name]
	if !ok {
		if strings.Contains(name, ".") {
			return nil, Plain, whyModule
		}
		return nil, Plain, cmp.Or(unkeyed[name], whyUnknown)
	}
	if at = find(args); len(at) == 0 || at[len(at)-1] >= len(args) {
		return nil, Plain, whyNoKeys
	}
	switch name {
	case "xread", "xreadgroup":
		if has(args[:at[0]], options(args), "block") {
			return nil, Plain, whyBlocks
		}
	case "bitfield", "bitfield_ro":
		if wide(args) {
			return nil, Plain, "it works on integers of more than 53 bits"
		}
	}
	return at, replies[name], ""
}

// Why commands are not known here.
const (
	whyUnknown = "where its keys are is not known"
	whyNoKeys  = "it names no key"
	whyBlocks  = "it waits for data"
	whyModule  = "it is a command of a module"
)

// finder returns the positions of the keys among the arguments of a command, in ascending
// order. They may be beyond the last argument.
type finder func(args []any) []int

// keyed holds the commands whose keys are known.
var keyed = finders([]struct {
	find  finder
	names string
}{
	{first, `
		append bitcount bitfield bitfield_ro bitpos decr decrby delex digest dump expire
		expireat expiretime geoadd geodist geohash geopos georadius_ro
		georadiusbymember_ro geosearch get getbit getdel getex getrange getset hdel
		hexists hexpire hexpireat hexpiretime hget hgetall hgetdel hgetex hincrby
		hincrbyfloat hkeys hlen hmget hmset hpersist hpexpire hpexpireat hpexpiretime
		hpttl hrandfield hscan hset hsetex hsetnx hstrlen httl hvals incr incrby
		incrbyfloat lindex linsert llen lpop lpos lpush lpushx lrange lrem lset ltrim
		move persist pexpire pexpireat pexpiretime pfadd psetex pttl restore rpop rpush
		rpushx sadd scard set setbit setex setnx setrange sismember smembers smismember
		sort_ro spop srandmember srem sscan strlen substr ttl type xack xackdel xadd
		xautoclaim xclaim xdel xdelex xlen xpending xrange xrevrange xtrim zadd zcard
		zcount zincrby zlexcount zmscore zpopmax zpopmin zrandmember zrange zrangebylex
		zrangebyscore zrank zrem zremrangebylex zremrangebyrank zremrangebyscore
		zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan zscore`},
	{second, `object xgroup`},
	{usage, `memory`},
	{pair, `copy geosearchstore lcs lmove rename renamenx rpoplpush smove zrangestore`},
	{each(1, 1), `
		del exists pfcount pfmerge sdiff sdiffstore sinter sinterstore sunion
		sunionstore touch unlink mget`},
	{each(2, 1), `bitop`},
	{each(1, 2), `mset msetnx`},
	{counted(1, 1), `lmpop sintercard zdiff zinter zintercard zmpop zunion`},
	{counted(1, 2), `msetex`},
	{storing, `zdiffstore zinterstore zunionstore`},
	{and(2), `sort`},
	{and(5), `georadius georadiusbymember`},
	{streams, `xread xreadgroup`},
})

// replies holds the commands whose replies a script would spoil.
var replies = byName(map[Reply]string{
	Nils: `
		bitfield bitfield_ro geohash hgetdel hgetex hmget mget sort sort_ro xautoclaim
		xclaim`,
	Counts:      `xpending`,
	Scores:      `zmscore`,
	Places:      `geopos`,
	Streams:     `xread xreadgroup`,
	Counter:     `decr decrby incr incrby`,
	HashCounter: `hincrby`,
})

// unkeyed holds the commands that are known not to be fit, and why.
var unkeyed = byName(map[string]string{
	whyBlocks: `
		blmove blmovem blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin wait
		waitaof`,
	"it is a script or function itself": `eval eval_ro evalsha evalsha_ro fcall fcall_ro`,
	"it is about Pub/Sub": `
		psubscribe publish pubsub punsubscribe spublish ssubscribe subscribe
		sunsubscribe unsubscribe`,
	"it is about transactions": `discard exec multi unwatch watch`,
	"it is about the connection": `
		asking auth client echo hello ping quit readonly readwrite reset select`,
	"it is about the server": `
		acl bgrewriteaof bgsave cluster command config debug failover flushall flushdb
		function hotkeys info keys lastsave latency lolwut migrate module monitor psync
		randomkey replicaof role save scan script shutdown slaveof slowlog swapdb sync
		time dbsize`,
	"it is tied to what the connection has prepared": `himport`,
	"its reply cannot be recorded as it is":          `increx xinfo`,
	"it is too new to be known": `
		arcount ardel ardelrange arget argetrange argrep arinfo arinsert arlastitems
		arlen armget armset arnext arop arring arscan arseek arset lmovem sdiffcard
		sunioncard xcfgset xnack`,
	"it is about vectors, of which scripts are not known to return the same": `
		vadd vcard vdim vemb vgetattr vinfo vismember vlinks vrandmember vrange vrem
		vsetattr vsim`,
})

func finders(rows []struct {
	find  finder
	names string
}) map[string]finder {
	t := make(map[string]finder)
	for _, row := range rows {
		for name := range strings.FieldsSeq(row.names) {
			t[name] = row.find
		}
	}
	return t
}

func byName[T comparable](m map[T]string) map[string]T {
	t := make(map[string]T)
	for what, names := range m {
		for name := range strings.FieldsSeq(names) {
			t[name] = what
		}
	}
	return t
}

func first([]any) []int  { return []int{1} }
func second([]any) []int { return []int{2} }
func pair([]any) []int   { return []int{1, 2} }

// usage is for MEMORY USAGE key, the one subcommand of MEMORY that has any.
func usage(args []any) []int {
	if word(args, 1) == "usage" {
		return []int{2}
	}
	return nil
}

// each returns the finder of a command that has a key in every step-th position from the
// given one on.
func each(from, step int) finder {
	return func(args []any) (at []int) {
		for i := from; i < len(args); i += step {
			at = append(at, i)
		}
		return at
	}
}

// counted returns the finder of a command that says in the given position how many keys
// follow, which are step apart.
func counted(count, step int) finder {
	return func(args []any) (at []int) {
		for i := range number(args, count) {
			at = append(at, count+1+i*step)
		}
		return at
	}
}

// storing is for ZUNIONSTORE destination numkeys key ..., and its like.
func storing(args []any) []int {
	return append([]int{1}, counted(2, 1)(args)...)
}

// and returns the finder of a command with a key in front and others that it stores to,
// behind options that begin at the given position.
func and(options int) finder {
	return func(args []any) []int { return append([]int{1}, destinations(args, options)...) }
}

// destinations returns where the keys are that SORT, or GEORADIUS and its like, stores to: the
// last of them counts. A pattern may be any word.
func destinations(args []any, options int) (at []int) {
	for i := options; i < len(args)-1; i++ {
		switch word(args, i) {
		case "by", "get":
			i++
		case "store", "storedist":
			i++
			at = append(at, i)
		}
	}
	return at
}

// streams is for XREAD ... STREAMS key ... id ...; names of groups and consumers may be
// anything.
func streams(args []any) (at []int) {
	for i := options(args); i < len(args); i++ {
		if word(args, i) != "streams" {
			continue
		}
		for n := (len(args) - i - 1) / 2; len(at) < n; {
			at = append(at, i+1+len(at))
		}
		return at
	}
	return nil
}

// options returns where the options of XREAD and XREADGROUP GROUP group consumer begin.
func options(args []any) int {
	if word(args, 1) == "group" {
		return 4
	}
	return 1
}

// wide reports whether BITFIELD has a type whose values are not all exact as doubles.
func wide(args []any) bool {
	for i := 2; i < len(args); i++ {
		w, err := Text(args[i])
		if err != nil {
			return true // it cannot be sent anyway
		}
		if w = strings.ToLower(w); len(w) < 2 || w[0] != 'i' && w[0] != 'u' {
			continue
		}
		if bits, err := strconv.Atoi(w[1:]); err == nil && bits > exactBits {
			return true
		}
	}
	return false
}

// exactBits is how many bits of an integer are exact in a double.
const exactBits = 53

// number returns an argument that is a small number above zero, 0 for any other.
func number(args []any, i int) int {
	if i >= len(args) {
		return 0
	}
	text, err := Text(args[i])
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > len(args) {
		return 0
	}
	return n
}
