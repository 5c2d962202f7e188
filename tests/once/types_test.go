package once

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/redialtest"
)

// A command with an id returns what it returns without, in the type that the caller holds.

// Keys beside x are in its slot, so that commands with several may run in a cluster.
const (
	y, z, d, h = "{x}y", "{x}z", "{x}d", "{x}h"
	m, n       = "{x}m", "{x}n"
	no, none   = "{x}no", "{x}none"
)

// inSlot returns what a word of a line stands for.
var inSlot = map[string]string{"y": y, "z": z, "d": d, "h": h, "m": m, "n": n, "no": no, "none": none, "no*": no + "*"}

// worlds are what key x, and some others, may be.
var worlds = map[string][]string{
	"nothing": {},
	"text":    {"SET x hello", "SET y world", "SET z 5"},
	"empty":   {"SETRANGE z 0 a", "SET x ''"},
	"number":  {"SET x 41", "SET y 3.5"},
	"big":     {"SET x 9007199254740993", "SET y -9223372036854775000", "HSET h x 9007199254740995 y 1"},
	"list":    {"RPUSH x x b x 3", "RPUSH y 1"},
	"set":     {"SADD x x", "SADD y x y z"},
	"zset":    {"ZADD x 1.5 x", "ZADD y 1 x 2 y inf z -0.1 w"},
	"hash":    {"HSET x x 3 e ''", "HSET y x 1.25"},
	"stream":  {"XADD x 1-1 f v", "XADD x 2-1 f v g ''", "XGROUP CREATE x x 0", "XREADGROUP GROUP x x COUNT 1 STREAMS x >", "XGROUP CREATE y g $ MKSTREAM"},
	"geo":     {"GEOADD x 13.361389 38.115556 x 15.087269 37.502669 y"},
	"hll":     {"PFADD x a b c", "PFADD y c d"},
}

// typed are calls with more than made-up arguments.
var typed = map[string]func(context.Context, redis.UniversalClient) redis.Cmder{
	"Incr big":    func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.Incr(ctx, "x") },
	"DecrBy big":  func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.DecrBy(ctx, y, 700) },
	"HIncrBy big": func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.HIncrBy(ctx, h, "x", 2) },
	"HMGet": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.HMGet(ctx, "x", no, "x", "e", none)
	},
	"MGet": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.MGet(ctx, no, "x", y, none)
	},
	"SetArgs get": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.SetArgs(ctx, "x", "v", redis.SetArgs{Get: true})
	},
	"SetArgs nx": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.SetArgs(ctx, "x", "v", redis.SetArgs{Mode: "NX"})
	},
	"SetNX": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.SetNX(ctx, "x", "v", time.Hour)
	},
	"Set binary": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.SetArgs(ctx, "x", "\x00\r\n\xff", redis.SetArgs{Get: true})
	},
	"ZRange": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZRangeWithScores(ctx, y, 0, -1)
	},
	"ZRevRange": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZRevRangeWithScores(ctx, y, 0, -1)
	},
	"ZRangeArgs": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZRangeArgsWithScores(ctx, redis.ZRangeArgs{Key: y, Start: 0, Stop: -1, Rev: true})
	},
	"ZRangeByScore": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZRangeByScoreWithScores(ctx, y, &redis.ZRangeBy{Min: "-inf", Max: "+inf"})
	},
	"ZAdd incr": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZAddArgsIncr(ctx, y, redis.ZAddArgs{Members: []redis.Z{{Score: 0.1, Member: y}}})
	},
	"ZAdd incr nx": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZAddArgsIncr(ctx, y, redis.ZAddArgs{NX: true, Members: []redis.Z{{Score: 0.1, Member: y}}})
	},
	"ZAdd several": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZAdd(ctx, y, redis.Z{Score: 1e300, Member: "n"}, redis.Z{Score: 2, Member: "m"})
	},
	"ZIncrBy":    func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.ZIncrBy(ctx, y, 0.1, "x") },
	"ZScore inf": func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.ZScore(ctx, y, z) },
	"ZMScore": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZMScore(ctx, y, "x", no, z, "w")
	},
	"ZPopMin": func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.ZPopMin(ctx, y, 3) },
	"ZPopMax": func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.ZPopMax(ctx, y) },
	"ZMPop": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZMPop(ctx, "min", 2, no, y)
	},
	"LMPop": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.LMPop(ctx, "left", 2, no, "x")
	},
	"ZRandMember": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZRandMemberWithScores(ctx, "x", -2)
	},
	"ZDiff": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZDiffWithScores(ctx, y, "x")
	},
	"ZInter": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZInterWithScores(ctx, &redis.ZStore{Keys: []string{"x", y}})
	},
	"ZUnion": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZUnionWithScores(ctx, redis.ZStore{Keys: []string{"x", y}, Weights: []float64{2, 3}})
	},
	"ZUnionStore": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.ZUnionStore(ctx, d, &redis.ZStore{Keys: []string{"x", y}})
	},
	"HRandField": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.HRandFieldWithValues(ctx, y, -2)
	},
	"HIncrByFloat": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.HIncrByFloat(ctx, y, "x", 0.1)
	},
	"IncrByFloat": func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.IncrByFloat(ctx, y, 0.1) },
	"LPopCount":   func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.LPopCount(ctx, "x", 3) },
	"LPosCount": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.LPosCount(ctx, "x", "x", 0, redis.LPosArgs{})
	},
	"SPopN":       func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.SPopN(ctx, y, 5) },
	"SMembersMap": func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.SMembersMap(ctx, y) },
	"SMIsMember": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.SMIsMember(ctx, y, "x", no)
	},
	"Sort get": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.SortInterfaces(ctx, "x", &redis.Sort{Get: []string{no + "*", "#"}, Alpha: true})
	},
	"Sort store": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.SortStore(ctx, "x", d, &redis.Sort{Alpha: true})
	},
	"BitField": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.BitField(ctx, "x", "INCRBY", "i5", "100", "1", "OVERFLOW", "FAIL", "INCRBY", "u2", "102", "9", "GET", "u4", "0")
	},
	"BitOp": func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.BitOpXor(ctx, d, "x", y) },
	"XAdd": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.XAdd(ctx, &redis.XAddArgs{Stream: "x", ID: "77-1", Values: []string{"a", ""}})
	},
	"XAdd nomkstream": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.XAdd(ctx, &redis.XAddArgs{Stream: no, NoMkStream: true, ID: "77-1", Values: []string{"a", "b"}})
	},
	"XRange": func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.XRange(ctx, "x", "-", "+") },
	"XRead": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.XRead(ctx, &redis.XReadArgs{Streams: []string{"x", y, "0", "0"}, Block: -1})
	},
	"XReadGroup": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "x", Consumer: "x", Streams: []string{"x", ">"}, Block: -1})
	},
	"XReadGroup old": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "x", Consumer: "x", Streams: []string{"x", "0"}, Block: -1})
	},
	"XAck": func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.XAck(ctx, "x", "x", "1-1") },
	"XClaim": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.XClaim(ctx, &redis.XClaimArgs{Stream: "x", Group: "x", Consumer: "c", Messages: []string{"1-1", "2-1"}})
	},
	"XClaimJustID": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.XClaimJustID(ctx, &redis.XClaimArgs{Stream: "x", Group: "x", Consumer: "c", Messages: []string{"1-1"}})
	},
	"XAutoClaim": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.XAutoClaim(ctx, &redis.XAutoClaimArgs{Stream: "x", Group: "x", Consumer: "c", Start: "0"})
	},
	"XAutoClaimJustID": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.XAutoClaimJustID(ctx, &redis.XAutoClaimArgs{Stream: "x", Group: "x", Consumer: "c", Start: "0"})
	},
	"XPending":      func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.XPending(ctx, "x", "x") },
	"XPending none": func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.XPending(ctx, y, "g") },
	"XGroupCreateConsumer": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.XGroupCreateConsumer(ctx, "x", "x", "new")
	},
	"GeoPos": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.GeoPos(ctx, "x", "x", no, y)
	},
	"GeoHash": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.GeoHash(ctx, "x", "x", no, y)
	},
	"GeoDist": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.GeoDist(ctx, "x", "x", y, "km")
	},
	"GeoSearch": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.GeoSearchLocation(ctx, "x", &redis.GeoSearchLocationQuery{
			GeoSearchQuery: redis.GeoSearchQuery{Longitude: 15, Latitude: 37, Radius: 200, RadiusUnit: "km", Sort: "ASC"},
			WithCoord:      true, WithDist: true, WithHash: true,
		})
	},
	"GeoRadius": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.GeoRadius(ctx, "x", 15, 37, &redis.GeoRadiusQuery{Radius: 200, Unit: "km", WithCoord: true, WithDist: true, Sort: "ASC"})
	},
	"LCS idx": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.LCS(ctx, &redis.LCSQuery{Key1: "x", Key2: y, Idx: true, WithMatchLen: true})
	},
	"Copy":   func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.Copy(ctx, "x", d, 0, true) },
	"Expire": func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.ExpireXX(ctx, "x", time.Hour) },
	"MSet": func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
		return c.MSet(ctx, "x", 1, y, 2.5, z, true)
	},
}

// lines are commands sent with Do, of which the generic reply is compared.
var lines = []string{
	"INCR x", "INCRBY x 5", "DECR y", "DECRBY y 100", "HINCRBY h x 2", "GET x", "GETDEL x", "GETEX x", "SET x 5", "SET x 5 GET", "SET x 5 NX", "STRLEN x",
	"HGETALL x", "HMGET x no x e", "MGET x no y", "ZRANGE y 0 -1 WITHSCORES", "ZADD y INCR 0.1 y", "ZADD y NX INCR 0.1 y", "ZINCRBY y 0.1 x",
	"ZSCORE y z", "ZSCORE y no", "ZMSCORE y x no z w", "ZPOPMIN y 3", "ZPOPMIN y", "ZPOPMIN no", "ZMPOP 2 no y MIN COUNT 2", "LMPOP 2 no x LEFT", "ZRANDMEMBER x -2 WITHSCORES",
	"ZUNION 2 x y WITHSCORES", "HRANDFIELD y -2 WITHVALUES", "HRANDFIELD x 0", "LPOP x 2", "LPOP no 2", "LPOP no", "RPOP x", "LPOS x no", "LPOS x x COUNT 0", "SPOP x", "SPOP x 5",
	"SMEMBERS x", "SMEMBERS no", "SMISMEMBER x x no", "SORT x ALPHA GET no* GET #", "SORT x ALPHA STORE d", "SORT x STORE d", "COPY x d REPLACE", "BITFIELD x INCRBY i5 100 1 OVERFLOW FAIL INCRBY u2 102 9",
	"XADD x 77-1 a b", "XADD no NOMKSTREAM 77-1 a b", "XRANGE x - +", "XREAD STREAMS x y 0 0", "XREAD STREAMS no 0", "XREADGROUP GROUP x x STREAMS x >", "XREADGROUP GROUP x x STREAMS x 0",
	"XCLAIM x x c 0 1-1 2-1", "XAUTOCLAIM x x c 0 0", "XPENDING x x", "XPENDING y g", "XPENDING x x - + 5", "XACK x x 1-1", "XTRIM x MAXLEN 1", "XDEL x 1-1", "XLEN x",
	"GEOPOS x x no y", "GEOHASH x x no", "GEODIST x x y", "GEODIST x x no", "GEOSEARCH x FROMLONLAT 15 37 BYRADIUS 200 km ASC WITHCOORD WITHDIST WITHHASH",
	"LCS x y IDX WITHMATCHLEN", "LCS x y LEN", "LCS x y", "OBJECT ENCODING x", "OBJECT REFCOUNT no", "TYPE x", "EXISTS x y no", "DEL x y", "DUMP x", "DUMP no", "PFCOUNT x y", "PFADD x new",
	"LINSERT x BEFORE b new", "LRANGE x 0 -1", "LRANGE no 0 -1", "SINTERCARD 2 x y", "SDIFF y x", "HSCAN y 0", "ZSCAN x 0", "SSCAN x 0", "EXPIRE x 100", "PERSIST x", "RENAME x n", "RENAMENX x y",
	"SETRANGE x 5 a", "APPEND x ''", "GETRANGE x 0 -1", "INCRBYFLOAT y 0.1", "INCRBYFLOAT x 0.1", "HINCRBYFLOAT y x 0.1", "SUBSTR x 0 0", "TTL x", "COPY x n", "SMOVE y x z", "LMOVE x y LEFT RIGHT", "RPOPLPUSH x y",
	"ZRANGESTORE n y 0 -1", "GEORADIUS x 15 37 200 km WITHCOORD ASC", "BITCOUNT x", "BITPOS x 1", "SETBIT x 7 1", "HSETNX x new v", "MEMORY USAGE no", "XGROUP CREATE x new 0", "XGROUP SETID x x 0", "XGROUP DESTROY x x",
	"XRANGE no - +", "HKEYS y", "HVALS y", "MSETNX m 1 n 2",
}

// Every command that Once allows returns the same values and errors with an id, at its run
// and later, as without, from every kind of server.
func TestOnce_Types(t *testing.T) {
	t.Parallel()
	for i, kind := range []string{"client", "failover", "cluster"} {
		for k, protocol := range []int{2, 3, withoutHello} {
			t.Run(kind+" "+[]string{"RESP2", "RESP3", "without HELLO"}[k], func(t *testing.T) {
				t.Parallel()
				w := places[kind](t, protocol)
				for n, world := range slices.Sorted(maps.Keys(worlds)) {
					if !platform.Full() && (n+i+k)%3 != 0 {
						continue // every kind and every protocol sees this one, but not together
					}
					for name, run := range typed {
						w.compare(t, world, name, run)
					}
					for _, line := range lines {
						w.compare(t, world, line, func(ctx context.Context, c redis.UniversalClient) redis.Cmder { return c.Do(ctx, split(line)...) })
					}
					methods := reflect.TypeFor[redis.Cmdable]()
					for i := range methods.NumMethod() {
						name := methods.Method(i).Name
						if slices.Contains(notWalked, name) {
							continue
						}
						w.compare(t, world, name, func(ctx context.Context, c redis.UniversalClient) redis.Cmder {
							return call(ctx, reflect.ValueOf(c).MethodByName(name))
						})
					}
				}
				t.Logf("%d commands, %d kinds of call compared", w.n, len(w.compared))
				require.Greater(t, len(w.compared), 250)
				for _, call := range []string{"Sort store", "SORT x ALPHA STORE d", "Copy", "COPY x n"} {
					require.Contains(t, w.compared, call)
				}
			})
		}
	}
}

// walk is a walk over all commands, in one place.
type walk struct {
	server            *redis.Client         // has x
	bare, ours, other redis.UniversalClient // other has the other protocol
	n                 int
	now               string // the world that is there, untouched; "": none
	compared          map[string]bool
}

// withoutHello stands for a protocol: the default one, with servers that know no HELLO, so
// that their connections speak RESP2 all the same.
const withoutHello = 0

// argsFor returns the arguments of servers that are to be spoken to by a protocol.
func argsFor(protocol int) []string {
	if protocol == withoutHello {
		return []string{"--rename-command", "HELLO", "NOHELLO"}
	}
	return nil
}

// Connections that were there before a client was supervised speak what the others do.
func TestOnce_SupervisedWithoutHello(t *testing.T) {
	s := redialtest.StartServer(t, argsFor(withoutHello)...)
	s.Do("XADD", "x", "1-1", "f", "v")
	c := redis.NewClient(&redis.Options{Addr: s.Addr()})
	want, err := c.Do(t.Context(), "xread", "streams", "x", 0).Result()
	require.NoError(t, err)
	supervisor, err := redial.Supervise(c)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close(); _ = supervisor.Close() })
	testkit.WaitReady(t, supervisor)
	got, err := c.Do(redial.Once(t.Context(), "id"), "xread", "streams", "x", 0).Result()
	require.NoError(t, err)
	assert.Equal(t, want, got)
	assert.EqualValues(t, 1, c.PoolStats().TotalConns, "it was the same connection")
}

// A HELLO that is refused because of its password says nothing of what is spoken.
func TestOnce_WrongPassword(t *testing.T) {
	s := redialtest.StartServer(t)
	s.Do("HSET", "h", "f", "v")
	s.Do("ACL", "SETUSER", "u", "on", ">one", "~*", "+@all")
	c := redial.NewClient(&redis.Options{Addr: s.Addr(), Username: "u", Password: "one"})
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	want, err := c.Do(t.Context(), "hgetall", "h").Result()
	require.NoError(t, err)
	s.Do("ACL", "SETUSER", "u", ">two", "<one") // who is connected stays
	held := c.Conn()
	require.NoError(t, held.Ping(t.Context()).Err())
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		require.Error(t, c.Ping(ctx).Err())
		cancel()
	}
	require.NoError(t, held.Close())
	got, err := c.Do(redial.Once(t.Context(), "id"), "hgetall", "h").Result()
	require.NoError(t, err)
	assert.Equal(t, want, got)
}

// places are where commands run, and how they get there.
var places = map[string]func(t *testing.T, protocol int) *walk{
	"client": func(t *testing.T, protocol int) *walk {
		s := redialtest.StartServer(t, argsFor(protocol)...)
		opt := &redis.Options{Addr: s.Addr(), Protocol: protocol}
		return newWalk(t, s, redis.NewClient(opt), redial.NewClient(opt), redial.NewClient(&redis.Options{Addr: s.Addr(), Protocol: 5 - protocol}))
	},
	"failover": func(t *testing.T, protocol int) *walk {
		d := redialtest.StartFailover(t, 1, 1, argsFor(protocol)...)
		opt := func(protocol int) *redis.FailoverOptions {
			return &redis.FailoverOptions{MasterName: d.Name, SentinelAddrs: d.SentinelAddrs(), Protocol: protocol}
		}
		return newWalk(t, d.Servers[0], redis.NewFailoverClient(opt(protocol)), redial.NewFailoverClient(opt(protocol)), redial.NewFailoverClient(opt(5-protocol)))
	},
	"cluster": func(t *testing.T, protocol int) *walk {
		cluster := redialtest.StartCluster(t, 2, 0, argsFor(protocol)...)
		opt := func(protocol int) *redis.ClusterOptions {
			return &redis.ClusterOptions{Addrs: cluster.Addrs(), Protocol: protocol}
		}
		return newWalk(t, cluster.NodeFor("x"), redis.NewClusterClient(opt(protocol)), redial.NewClusterClient(opt(protocol)), redial.NewClusterClient(opt(5-protocol)))
	},
}

func newWalk(t *testing.T, s *redialtest.Server, bare redis.UniversalClient, ours, other redial.UniversalClient) *walk {
	w := &walk{server: redis.NewClient(&redis.Options{Addr: s.Addr()}), bare: bare, ours: ours, other: other, compared: make(map[string]bool)}
	t.Cleanup(func() {
		for _, c := range []redis.UniversalClient{w.server, w.bare, w.ours, w.other} {
			_ = c.Close()
		}
	})
	testkit.WaitReady(t, ours)
	testkit.WaitReady(t, other)
	return w
}

// compare runs a command with an id and without. One that cannot have an id is not run at all:
// some would put an end to a cluster.
func (w *walk) compare(t *testing.T, world, call string, run func(context.Context, redis.UniversalClient) redis.Cmder) {
	w.n++
	ctx := redial.Once(t.Context(), fmt.Sprint("id ", w.n))
	if w.now != world { // what ran last has left another
		reset(t, w.server, world)
	}
	w.now = ""
	first := run(ctx, w.ours)
	switch {
	case first == nil:
		return
	case errors.Is(first.Err(), redial.ErrOnceUnsupported):
		w.now = world
		return
	}
	w.compared[call] = true
	replies := map[string]redis.Cmder{"first": first, "again": run(ctx, w.ours)}
	if _, any := first.(*redis.Cmd); !any { // which returns what the protocol has
		replies["by the other protocol"] = run(ctx, w.other)
	}
	reset(t, w.server, world)
	plain := run(t.Context(), w.bare)
	for when, got := range replies {
		if !equalResults(plain, got) {
			t.Errorf("%s of %s, %s: %s with an id, %s without", call, world, when, show(got), show(plain))
		}
	}
}

// Where keys are in several slots of a cluster nothing runs, whichever argument it is that is
// far away, and be it on the same node.
func TestOnce_KeysOfSeveralSlots_AreRefused(t *testing.T) {
	t.Parallel()
	cluster := redialtest.StartCluster(t, 2, 0)
	c := testkit.NewCluster(t, cluster)
	require.NoError(t, c.RPush(t.Context(), "x", 3, 1, 2).Err())
	ctx := redial.Once(t.Context(), "id")
	nodes := make(map[*redialtest.Server]bool)
	for _, far := range []string{"a", "b", "c", "d", "e", "f"} {
		nodes[cluster.NodeFor(far)] = true
		for name, cmd := range map[string]redis.Cmder{
			"sort":   c.SortStore(ctx, "x", far, &redis.Sort{}),
			"copy":   c.Copy(ctx, "x", far, 0, true),
			"lmove":  c.LMove(ctx, "x", far, "left", "right"),
			"mset":   c.MSet(ctx, "x", 1, far, 2),
			"rename": c.Rename(ctx, "x", far),
			"lmpop":  c.LMPop(ctx, "left", 2, far, "x"),
			"unlink": c.Unlink(ctx, "x", far),
			"xread":  c.XRead(ctx, &redis.XReadArgs{Streams: []string{"x", far, "0", "0"}, Block: -1}),
		} {
			assert.ErrorIs(t, cmd.Err(), redial.ErrOnceUnsupported, name)
			assert.ErrorContains(t, cmd.Err(), name+": its keys are in several slots")
			assert.True(t, redial.SafeToRetry(cmd.Err()), name)
		}
		for _, exec := range []func(context.Context, func(redis.Pipeliner) error) ([]redis.Cmder, error){c.Pipelined, c.TxPipelined} {
			cmds, err := exec(ctx, func(p redis.Pipeliner) error {
				p.RPush(ctx, "x", 4)
				p.Copy(ctx, "x", far, 0, true)
				return nil
			})
			assert.ErrorIs(t, err, redial.ErrOnceUnsupported)
			for _, cmd := range cmds {
				assert.ErrorIs(t, cmd.Err(), redial.ErrOnceUnsupported)
			}
		}
	}
	require.Len(t, nodes, 2)
	assert.Equal(t, []string{"3", "1", "2"}, c.LRange(t.Context(), "x", 0, -1).Val())
	var keys []any
	for _, s := range cluster.Nodes {
		keys = append(keys, s.Do("KEYS", "*").([]any)...)
	}
	assert.Equal(t, []any{"x"}, keys)
}

// notWalked are methods whose replies depend on the time, or on what a server does by the
// way, or that end it.
var notWalked = []string{
	"Shutdown", "ShutdownSave", "ShutdownNoSave", "Save", "BgSave", "BgRewriteAOF", "SlaveOf", "ReplicaOf", "Sync", "Monitor", "Wait", "WaitAOF", "DebugObject",
	"Pipeline", "Pipelined", "TxPipeline", "TxPipelined", "ObjectIdleTime", "ClientPause", "Migrate", "ConfigSet", "FlushAll", "FlushAllAsync", "FlushDB", "FlushDBAsync", "SwapDB", "Failover",
	"BLPop", "BRPop", "BRPopLPush", "BLMove", "BLMPop", "BZMPop", "BZPopMax", "BZPopMin", "BLMoveM", "XReadStreams", "XRead", "XReadGroup", "Quit", "Copy", "Move",
	"ClientID", "ClientInfo", "ClientList",
}

func reset(t *testing.T, bare *redis.Client, world string) {
	_, err := bare.Pipelined(context.Background(), func(p redis.Pipeliner) error {
		p.FlushDB(context.Background())
		for _, line := range worlds[world] {
			p.Do(context.Background(), split(line)...)
		}
		return nil
	})
	require.NoError(t, err)
}

func split(line string) (args []any) {
	for w := range strings.FieldsSeq(line) {
		w = strings.Trim(w, "'")
		args = append(args, cmp.Or(inSlot[w], w))
	}
	return args
}

// call calls a method with made-up arguments.
func call(ctx context.Context, f reflect.Value) (cmd redis.Cmder) {
	defer func() { _ = recover() }() // go-redis panics on some of them
	var in []reflect.Value
	for i := range f.Type().NumIn() {
		arg := f.Type().In(i)
		if f.Type().IsVariadic() && i == f.Type().NumIn()-1 {
			arg = arg.Elem()
		}
		in = append(in, madeUp(ctx, arg))
	}
	out := f.Call(in)
	cmd, _ = out[0].Interface().(redis.Cmder)
	return cmd
}

func madeUp(ctx context.Context, t reflect.Type) reflect.Value {
	switch {
	case t == reflect.TypeFor[context.Context]():
		return reflect.ValueOf(ctx)
	case t == reflect.TypeFor[time.Duration]():
		return reflect.ValueOf(time.Hour)
	case t.Kind() == reflect.Pointer:
		v := reflect.New(t.Elem())
		v.Elem().Set(madeUp(ctx, t.Elem()))
		return v
	case t.Kind() == reflect.String:
		return reflect.ValueOf("x").Convert(t)
	case t.Kind() == reflect.Interface && t.NumMethod() == 0:
		return reflect.ValueOf("x")
	case t.Kind() == reflect.Slice:
		s := reflect.MakeSlice(t, 1, 1)
		s.Index(0).Set(madeUp(ctx, t.Elem()))
		return s
	case t == reflect.TypeFor[redis.Z]():
		return reflect.ValueOf(redis.Z{Score: 2.5, Member: "x"})
	case t.Kind() == reflect.Int, t.Kind() == reflect.Int64:
		return reflect.ValueOf(1).Convert(t)
	}
	return reflect.Zero(t)
}

// equalResults reports whether two commands have the same result. The order of sets and maps is not part
// of it, nor is the time that an id of a stream holds.
func equalResults(a, b redis.Cmder) bool {
	if saidBy(a.Err()) != saidBy(b.Err()) {
		return false
	}
	va, vb := value(a), value(b)
	if reflect.DeepEqual(va, vb) {
		return true
	}
	if ia, ok := va.(string); ok && a.Name() == "xadd" && strings.Contains(ia, "-") {
		return strings.Contains(vb.(string), "-")
	}
	switch a.Name() {
	case "dump": // of a stream, it holds when it was last read
		da, db := va.(string), vb.(string)
		kinds := []string{"\x13\x01\x10", "\x15\x01\x10"} // up to Redis 7.0, and after
		return len(da) == len(db) && len(da) > 3 && da[:3] == db[:3] && slices.Contains(kinds, da[:3])
	case "ttl", "pttl", "zrandmember", "hrandfield", "xpending", "memory":
		return fmt.Sprintf("%T", va) == fmt.Sprintf("%T", vb)
	case "smembers", "sinter", "sunion", "sdiff", "spop", "srandmember", "hkeys", "hvals", "hgetall":
		sa, sb := sorted(va), sorted(vb)
		return sa != "" && sa == sb
	}
	return false
}

// saidBy is what an error says, but for the arguments that the server does not know a command with.
func saidBy(err error) string {
	text, _, _ := strings.Cut(fmt.Sprint(err), ", with args beginning")
	return text
}

func sorted(v any) string {
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.Slice {
		return ""
	}
	var all []string
	for i := range r.Len() {
		all = append(all, fmt.Sprintf("%T %[1]v", r.Index(i).Interface()))
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// value returns the value that a command holds.
func value(cmd redis.Cmder) any {
	v := reflect.ValueOf(cmd).MethodByName("Val")
	if !v.IsValid() {
		return nil
	}
	out := v.Call(nil)
	if len(out) == 1 {
		return out[0].Interface()
	}
	var all []any
	for _, o := range out {
		all = append(all, o.Interface())
	}
	return all
}

func show(cmd redis.Cmder) string { return fmt.Sprintf("%#v, %v", value(cmd), cmd.Err()) }
