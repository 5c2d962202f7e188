// Package command is what is known of a command and its bytes: what happens when it runs
// twice, what go-redis may have sent it for, how long it is on the wire. It knows nothing
// of connections, and uses go-redis alone.
package command

import (
	"encoding"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Which commands only read, which take. The tables are data, and compared with a server by
// a test.

// Class says what happens when a command runs a second time.
type Class uint8

const (
	// Changes: a second run changes the data or the reply. Commands that are not
	// in the table, those of modules and of newer servers, are treated so.
	Changes Class = iota
	// Reads: it only reads the dataset.
	Reads
	// Inert: it touches neither the dataset nor the configuration.
	Inert
	// Repeats: a write that leaves the same data and gives the same reply when it
	// runs twice. SADD is none: it leaves the same data, but answers 1, then 0.
	Repeats
	// Takes: it may wait, and hands out what is then gone, or skipped. The answer
	// of a first run that was lost cannot be had again.
	Takes
	// Admin: it concerns the connection, the configuration or other clients.
	Admin
)

// ClassOf looks cmd up in the table.
func ClassOf(cmd redis.Cmder) Class {
	name := cmd.Name()
	if byArgs, ok := classesByArgs[name]; ok {
		return byArgs(cmd.Args())
	}
	return classes[name]
}

// Known reports whether cmd is in the table.
func Known(cmd redis.Cmder) bool {
	name := cmd.Name()
	_, always := classes[name]
	_, byArgs := classesByArgs[name]
	return always || byArgs
}

// ReadOnly reports whether running cmd changes nothing.
func ReadOnly(cmd redis.Cmder) bool {
	c := ClassOf(cmd)
	return c == Reads || c == Inert
}

// Publishes reports whether cmd sends a message to subscriptions.
func Publishes(cmd redis.Cmder) bool { return cmd.Name() == "publish" || cmd.Name() == "spublish" }

// classes holds the commands whose class does not depend on their arguments.
var classes = byName(map[Class]string{
	Reads: `
		arcount arget argetrange argrep arinfo arlastitems arlen armget arnext
		arop arscan bf.card bf.exists bf.info bf.mexists bf.scandump bitcount
		bitfield_ro bitpos cf.count cf.exists cf.info cf.mexists cf.scandump
		cms.info cms.query dbsize digest dump eval_ro evalsha_ro exists expiretime
		fcall_ro ft._list ft.aggregate ft.aliaslist ft.dictdump ft.explain ft.hybrid ft.info
		ft.search ft.spellcheck ft.syndump ft.tagvals geodist geohash geopos
		georadius_ro georadiusbymember_ro geosearch get getbit getrange hexists
		hexpiretime hget hgetall hkeys hlen hmget hpexpiretime hpttl hrandfield
		hscan hstrlen httl hvals json.arrindex json.arrlen json.get json.mget
		json.objkeys json.objlen json.resp json.strlen json.type keys lcs lindex
		llen lpos lrange mget pexpiretime pfcount pttl randomkey scan scard sdiff
		sdiffcard sinter sintercard sismember smembers smismember sort_ro
		srandmember sscan strlen substr sunion sunioncard tdigest.byrank
		tdigest.byrevrank tdigest.cdf tdigest.info tdigest.max tdigest.min
		tdigest.quantile tdigest.rank tdigest.revrank tdigest.trimmed_mean
		topk.count topk.info topk.list topk.query touch ts.get ts.info ts.mget
		ts.mrange ts.mrevrange ts.nrange ts.nrevrange ts.queryindex
		ts.querylabels ts.range ts.revrange ttl type vcard vdim vemb vgetattr
		vinfo vismember vlinks vrandmember vrange vsim xlen xpending xrange
		xrevrange zcard zcount zdiff zinter zintercard zlexcount zmscore
		zrandmember zrange zrangebylex zrangebyscore zrank zrevrange
		zrevrangebylex zrevrangebyscore zrevrank zscan zscore zunion`,
	Inert: `
		command echo info lastsave lolwut ping role time`,
	Repeats: `
		hmset json.merge json.mset lset mset pfmerge psetex
		setex setrange`,
	Changes: `
		append ardel ardelrange arinsert armset arring arseek arset bf.add bf.insert
		bf.loadchunk bf.madd bf.reserve cf.add cf.addnx cf.del cf.insert cf.insertnx
		cf.loadchunk cf.reserve cms.incrby cms.initbydim cms.initbyprob cms.merge decr
		decrby del delex eval evalsha expireat fcall flushall flushdb ft.aliasadd
		ft.aliasdel ft.aliasupdate ft.alter ft.create ft.cursor ft.dictadd ft.dictdel
		ft.dropindex ft.synupdate geoadd georadius georadiusbymember getdel getset
		hdel hexpireat hgetdel himport hincrby hincrbyfloat hpersist hpexpireat hset
		hsetnx incr incrby incrbyfloat increx json.arrappend json.arrinsert
		json.arrpop json.arrtrim json.clear json.debug json.del json.forget
		json.numincrby json.strappend json.toggle linsert lmove lmovem lmpop lpop
		lpush lpushx lrem ltrim move msetnx persist pexpireat pfadd publish rename
		renamenx rpop rpoplpush rpush rpushx sadd setbit setnx smove spop spublish
		srem tdigest.add tdigest.create tdigest.merge tdigest.reset topk.add
		topk.incrby topk.reserve ts.add ts.alter ts.create ts.createrule ts.decrby
		ts.del ts.deleterule ts.incrby ts.madd ts.read unlink vadd vrem vsetattr xack
		xackdel xautoclaim xcfgset xclaim xdel xdelex xnack xtrim zadd zincrby zmpop
		zpopmax zpopmin zrem zremrangebylex zremrangebyrank zremrangebyscore`,
	Takes: `
		blmove blmovem blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin
		xreadgroup`,
	Admin: `
		asking auth bgrewriteaof bgsave client debug discard exec failover
		ft.config hello migrate module monitor multi psubscribe psync
		punsubscribe quit readonly readwrite replicaof reset save select shutdown
		slaveof ssubscribe subscribe sunsubscribe swapdb sync unsubscribe unwatch
		wait waitaof watch`,
})

// classesByArgs holds the commands whose class depends on their arguments.
var classesByArgs = map[string]func(args []any) Class{
	// SET key value [NX | XX | IFEQ ... | IFNE ...] [GET] [EX ... | KEEPTTL]
	"set": unless(3, "nx", "get", "ifeq", "ifne", "ifdeq", "ifdne"),
	// MSETEX numkeys key value ... [NX | XX] [EX ... | KEEPTTL]; a value may look
	// like an option, which errs on the safe side.
	"msetex": unless(2, "nx"),
	// HSETEX key [FNX | FXX] [EX ... | KEEPTTL] FIELDS n field value ...
	"hsetex": unless(2, "fnx"),
	// JSON.SET key path value [NX | XX]
	"json.set": unless(4, "nx"),
	// EXPIRE key n [NX | XX | GT | LT]; a time that has passed deletes the key. Whether an
	// absolute one will have, as of EXPIREAT, nobody knows.
	"expire": lasting, "pexpire": lasting, "hexpire": lasting, "hpexpire": lasting,
	// GETEX key [EX n | PX n | EXAT n | PXAT n | PERSIST]
	"getex": unless(2, "exat", "pxat"),
	// HGETEX key [EX n ... | PERSIST] FIELDS n field ...
	"hgetex": unless(2, "exat", "pxat"),
	// COPY source destination [DB n] [REPLACE], RESTORE key ttl data [REPLACE] ...
	"copy": when(3, Repeats, Changes, "replace"), "restore": when(4, Repeats, Changes, "replace"),

	// Writes of a result to a key: repeatable unless that key is also read.
	"bitop": stores(2), "geosearchstore": stores(1),
	"sdiffstore": stores(1), "sinterstore": stores(1), "sunionstore": stores(1),
	"zdiffstore": stores(1), "zinterstore": stores(1), "zunionstore": stores(1),
	"zrangestore": stores(1),
	// SORT key ... [STORE destination]
	"sort": func(args []any) Class {
		to := destinations(args, 2)
		switch {
		case has(args, 2): // what only the caller can read
			return Changes
		case len(to) == 0:
			return Reads
		case slices.ContainsFunc(to, func(i int) bool { return same(args[i], args[1]) }):
			return Changes
		}
		return Repeats
	},

	// BITFIELD key [GET ...] [SET ...] [INCRBY ...]
	"bitfield": when(2, Changes, Reads, "set", "incrby"),
	// XADD key [NOMKSTREAM] [KEEPREF | DELREF | ACKED] [IDMP producer id | IDMPAUTO producer] ...
	"xadd": byOptions,
	// XREAD [COUNT n] [BLOCK ms] STREAMS key ... id ...: from "$" or "+" on, what
	// a lost answer held is skipped by the next.
	"xread": when(1, Takes, Reads, "$", "+"),

	"acl":      subcommands(Inert, "cat dryrun genpass getuser help list users whoami"),
	"cluster":  subcommands(Inert, "countkeysinslot getkeysinslot help info keyslot links myid myshardid nodes replicas shards slaves slots"),
	"config":   subcommands(Inert, "get help"),
	"function": subcommands(Inert, "dump help list stats"),
	"latency":  subcommands(Inert, "doctor graph help histogram history latest"),
	"memory":   subcommands(Reads, "usage", Inert, "doctor help malloc-stats stats"),
	"object":   subcommands(Reads, "encoding freq idletime refcount", Inert, "help"),
	"pubsub":   subcommands(Inert, "channels help numpat numsub shardchannels shardnumsub"),
	"script":   subcommands(Inert, "exists help", Repeats, "load"),
	"slowlog":  subcommands(Inert, "get help len"),
	"xgroup":   subcommands(Inert, "help", Repeats, "setid", Changes, "create createconsumer delconsumer destroy"),
	"xinfo":    subcommands(Reads, "consumers groups stream", Inert, "help"),
}

// when returns a class function: then when one of the words is among the arguments from
// the given one on, and else the other class.
func when(from int, then, other Class, words ...string) func([]any) Class {
	return func(args []any) Class {
		if has(args, from, words...) {
			return then
		}
		return other
	}
}

// unless returns one: Repeats, or Changes when one of the words is there.
func unless(from int, words ...string) func([]any) Class {
	return when(from, Changes, Repeats, words...)
}

// lasting is the class function of EXPIRE and its like.
func lasting(args []any) Class {
	if has(args, 3, "nx", "gt", "lt") || !positive(args, 2) {
		return Changes
	}
	return Repeats
}

// byOptions is the class function of XADD: with an id by which the server knows that the
// entry is there, a second run adds nothing and gives the same reply. Fields and values may
// look like options, which come before the id of the entry.
func byOptions(args []any) Class {
	for i := 2; i < len(args); i++ {
		switch word(args, i) {
		case "nomkstream", "keepref", "delref", "acked":
		case "idmp", "idmpauto":
			return Repeats
		case "maxlen", "minid":
			if w := word(args, i+1); w == "~" || w == "=" {
				i++
			}
			i++
		case "limit":
			i++
		default:
			return Changes
		}
	}
	return Changes
}

// stores returns the class function of a command that overwrites the key in the
// given position: Repeats, or Changes when any later argument is equal to it.
func stores(at int) func([]any) Class {
	return func(args []any) Class {
		for i := at + 1; i < len(args); i++ {
			if same(args[i], args[at]) {
				return Changes
			}
		}
		return Repeats
	}
}

// subcommands returns a class function that goes by the subcommand; pairs are a
// class and its subcommands. All others are Admin.
func subcommands(pairs ...any) func([]any) Class {
	t := make(map[string]Class)
	for i := 0; i < len(pairs); i += 2 {
		for _, w := range strings.Fields(pairs[i+1].(string)) {
			t[w] = pairs[i].(Class)
		}
	}
	return func(args []any) Class {
		if c, ok := t[word(args, 1)]; ok {
			return c
		}
		return Admin
	}
}

// has reports whether one of the words is, or may be, among args, from the given one on.
func has(args []any, from int, words ...string) bool {
	for i := from; i < len(args); i++ {
		if isOpaque(args[i]) || slices.Contains(words, word(args, i)) {
			return true
		}
	}
	return false
}

// word returns an argument in lower case, "" for one that is no text.
func word(args []any, i int) string {
	if i >= len(args) {
		return ""
	}
	switch a := args[i].(type) {
	case string:
		return strings.ToLower(a)
	case []byte:
		return strings.ToLower(string(a))
	case *string:
		if a != nil {
			return strings.ToLower(*a)
		}
	}
	return ""
}

// positive reports whether an argument is a number above zero.
func positive(args []any, i int) bool {
	if i >= len(args) {
		return false
	}
	n, err := strconv.ParseInt(fmt.Sprint(args[i]), 10, 64)
	return err == nil && n > 0
}

// same reports whether two arguments are or may be the same key.
func same(a, b any) bool {
	if isOpaque(a) || isOpaque(b) {
		return true
	}
	sa, erra := Text(a)
	sb, errb := Text(b)
	return erra == nil && errb == nil && sa == sb
}

// isOpaque reports whether only code of the caller tells how an argument is written.
func isOpaque(arg any) bool {
	switch arg.(type) {
	case string, []byte, int, time.Time, *time.Time:
		return false
	}
	_, ok := arg.(encoding.BinaryMarshaler)
	return ok
}
