package command

import (
	"context"
	"errors"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/redialtest"
)

// collector notes the names of commands and sends none.
type collector struct{ names map[string]bool }

func (c *collector) DialHook(redis.DialHook) redis.DialHook {
	return func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("test") }
}

func (c *collector) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(_ context.Context, cmd redis.Cmder) error {
		c.names[cmd.Name()] = true
		return nil
	}
}

func (c *collector) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(context.Context, []redis.Cmder) error { return nil }
}

// Methods that send nothing when called with made-up arguments, and why.
var sendNothing = map[string]string{
	"Pipeline": "sends when executed", "Pipelined": "sends when executed",
	"TxPipeline": "sends when executed", "TxPipelined": "sends when executed",
	"BitFieldRO": "wants pairs", "JSONSetMode": "wants a mode",
	"GeoRadiusStore": "wants a destination", "GeoRadiusByMemberStore": "wants a destination",
	"FTCreate": "wants a schema", "FTHybrid": "wants two queries",
	"JSONDebugMemory": "not implemented by go-redis", "Quit": "not implemented by go-redis",
	"VAdd": "wants a vector", "VAddWithArgs": "wants a vector", "VSim": "wants a vector",
	"VSimWithArgs": "wants a vector", "VSimWithScores": "wants a vector",
	"VSimWithArgsWithAttribs": "wants a vector", "VSimWithArgsWithScores": "wants a vector",
	"VSimWithArgsWithScoresWithAttribs": "wants a vector",
}

// Every command that a method of redis.Cmdable can send is in the table.
func TestCommands_CoverAllOfCmdable(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	var cmdable redis.Cmdable = rdb
	methods := reflect.TypeOf(&cmdable).Elem()
	require.Greater(t, methods.NumMethod(), 400)
	for i := range methods.NumMethod() {
		name := methods.Method(i).Name
		c := &collector{names: make(map[string]bool)}
		rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
		rdb.AddHook(c)
		invoke(reflect.ValueOf(rdb).MethodByName(name))
		require.NoError(t, rdb.Close())
		if len(c.names) == 0 {
			assert.Contains(t, sendNothing, name, "this method was not seen to send anything")
			continue
		}
		assert.NotContains(t, sendNothing, name)
		for cmd := range c.names {
			_, plain := classes[cmd]
			_, byArgs := classesByArgs[cmd]
			assert.True(t, plain != byArgs, "%s, sent by %s, must be in one of the tables", cmd, name)
		}
	}
}

// invoke calls f with made-up arguments.
func invoke(f reflect.Value) {
	defer func() { _ = recover() }() // go-redis panics on some of them
	var in []reflect.Value
	for i := range f.Type().NumIn() {
		arg := f.Type().In(i)
		if f.Type().IsVariadic() && i == f.Type().NumIn()-1 {
			arg = arg.Elem()
		}
		in = append(in, madeUp(arg))
	}
	f.Call(in)
}

func madeUp(t reflect.Type) reflect.Value {
	switch {
	case t == reflect.TypeFor[context.Context]():
		return reflect.ValueOf(context.Background())
	case t == reflect.TypeFor[time.Duration]():
		return reflect.ValueOf(time.Second)
	case t.Kind() == reflect.Pointer:
		return reflect.New(t.Elem())
	case t.Kind() == reflect.String:
		return reflect.ValueOf("x").Convert(t)
	case t.Kind() == reflect.Interface && t.NumMethod() == 0:
		return reflect.ValueOf("x")
	case t.Kind() == reflect.Slice:
		s := reflect.MakeSlice(t, 1, 1)
		s.Index(0).Set(madeUp(t.Elem()))
		return s
	}
	return reflect.Zero(t)
}

// What we take for a read, the server must too.
func TestCommands_AgreeWithTheServer(t *testing.T) {
	s := redialtest.StartServer(t)
	known := make(map[string][]string) // flags by name
	list, ok := s.Do("COMMAND").([]any)
	require.True(t, ok)
	for _, entry := range list {
		var flags []string
		for _, f := range entry.([]any)[2].([]any) {
			flags = append(flags, f.(string))
		}
		known[entry.([]any)[0].(string)] = flags
	}
	require.Greater(t, len(known), 200)
	checked := 0
	for name, c := range classes {
		flags, ok := known[name]
		if !ok {
			continue // of a module or a newer server
		}
		checked++
		switch c {
		case Reads:
			assert.Contains(t, flags, "readonly", name)
		case Inert:
			assert.NotContains(t, flags, "write", name)
		case Repeats, Takes:
			assert.Contains(t, flags, "write", name)
			assert.Equal(t, c == Takes, slices.Contains(flags, "blocking") || name == "xreadgroup", name)
		case Changes:
			assert.NotContains(t, flags, "readonly", name)
		}
	}
	for name := range known {
		_, plain := classes[name]
		_, byArgs := classesByArgs[name]
		if !plain && !byArgs && !slices.Contains(known[name], "admin") {
			t.Logf("%s is not in the table and counts as changing something", name)
		}
	}
	require.Greater(t, checked, 150)
}

// Commands in class Repeats are run twice on a real server: the data and the
// reply must be the same.
func TestCommands_RepeatsReallyRepeat(t *testing.T) {
	s := redialtest.StartServer(t, "--enable-debug-command", "yes")
	prepare := [][]any{
		{"FLUSHALL"}, {"MSET", "a", "1", "b", "2"}, {"SADD", "s1", "x", "y"}, {"SADD", "s2", "y", "z"},
		{"ZADD", "z1", "1", "x", "2", "y"}, {"ZADD", "z2", "3", "y"}, {"RPUSH", "l", "3", "1", "2"},
		{"HSET", "h", "f", "v"}, {"GEOADD", "g", "13.4", "52.5", "berlin"}, {"PFADD", "p1", "x"}, {"XADD", "x", "5-1", "f", "v"},
		{"XGROUP", "CREATE", "x", "grp", "0"},
	}
	for _, line := range []string{
		"SET a v", "SET a v XX", "SET a v KEEPTTL", "SET n v EX 100", "MSET a 5 c 6", "SETEX a 100 v", "PSETEX a 100000 v", "SETRANGE a 2 xyz",
		"GETEX a", "GETEX a EX 100", "GETEX a PERSIST", "EXPIRE a 100", "EXPIRE a 100 XX", "PEXPIRE a 100000",
		"LSET l 0 9", "HMSET h f w g x", "PFMERGE p2 p1", "COPY a d REPLACE", "BITOP AND d a b",
		"SDIFFSTORE d s1 s2", "SINTERSTORE d s1 s2", "SUNIONSTORE d s1 s2", "ZDIFFSTORE d 2 z1 z2", "ZINTERSTORE d 2 z1 z2",
		"ZUNIONSTORE d 2 z1 z2", "ZRANGESTORE d z1 0 -1", "SORT l STORE d", "GEOSEARCHSTORE d g FROMLONLAT 13 52 BYRADIUS 500 km ASC",
		"SCRIPT LOAD return", "XGROUP SETID x grp 0",
	} {
		t.Run(line, func(t *testing.T) {
			var args []any
			for _, w := range strings.Fields(line) {
				args = append(args, w)
			}
			require.Equal(t, Repeats, ClassOf(redis.NewCmd(context.Background(), args...)))
			for _, p := range prepare {
				s.Do(p...)
			}
			first, data := s.Do(args...), s.Do("DEBUG", "DIGEST")
			assert.Equal(t, first, s.Do(args...))
			assert.Equal(t, data, s.Do("DEBUG", "DIGEST"))
		})
	}
}

func TestCommands_Classes(t *testing.T) {
	for line, want := range map[string]Class{
		"get k": Reads, "GET k": Reads, "ping": Inert, "incr n": Changes, "module.do": Changes,
		"set k v": Repeats, "set k v nx": Changes, "set k v NX EX 5": Changes, "set k v xx get": Changes, "set k v ifeq w": Changes,
		"set nx get":  Repeats, // the options come after the value
		"expire k -1": Changes, "expire k 0": Changes, "expireat k 99999999999": Changes, "getex k exat 1": Changes, "hexpire k 0 fields 1 f": Changes,
		"expire k 5": Repeats, "expire k 5 NX": Changes, "expire k 5 gt": Changes,
		"sadd s m": Changes, "zadd z 1 m": Changes, "zadd z incr 1 m": Changes, "xadd s * f v": Changes, "xadd s 1-1 f v": Changes,
		"xadd s idmp p i * f v": Repeats, "xadd s nomkstream acked IDMPAUTO p maxlen ~ 5 limit 7 * f v": Repeats,
		"xadd s maxlen ~ 5 limit 7 idmp p i * f v": Repeats, "xadd s * idmp p": Changes, "xadd s 1-1 idmpauto v": Changes, "xadd idmp * f v": Changes,
		"xadd s maxlen 5 * idmpauto x": Changes, "xadd s minid = 1-1 * idmp x": Changes,
		"sort l": Reads, "sort l by w limit 0 1": Reads, "sort l store d": Repeats, "sort l store l": Changes, "sort l STORE l": Changes, "sort l by store": Reads, "sort l by store store l": Changes, "sort l store d store l": Changes,
		"zunionstore d 2 a b": Repeats, "zunionstore a 2 a b": Changes, "bitop xor a a b": Changes, "bitop xor d a b": Repeats,
		"copy a b": Changes, "copy a b replace": Repeats, "restore k 0 x": Changes, "restore k 0 x REPLACE": Repeats,
		"bitfield k get u8 0": Reads, "bitfield k set u8 0 1": Changes, "bitfield k incrby u8 0 1": Changes,
		"eval x 0": Changes, "eval_ro x 0": Reads, "evalsha_ro x 0": Reads, "fcall_ro f 0": Reads, "getex k ex 5": Repeats, "getdel k": Changes,
		"blpop q 0": Takes, "blmove a b left right 0": Takes, "xreadgroup group g c streams s >": Takes,
		"xread streams s 0": Reads, "xread block 0 streams s $": Takes, "xread streams s +": Takes,
		"object freq k": Reads, "OBJECT HELP": Inert, "object": Admin, "config get x": Inert, "config set x y": Admin,
		"script load x": Repeats, "script flush": Admin, "memory usage k": Reads, "client list": Admin, "publish c m": Changes,
		"hsetex k fnx fields 1 f v": Changes, "hsetex k fields 1 f v": Repeats, "json.set k $ 1 nx": Changes, "json.set k $ 1": Repeats,
	} {
		var args []any
		for _, w := range strings.Fields(line) {
			args = append(args, w)
		}
		assert.Equal(t, want, ClassOf(redis.NewCmd(context.Background(), args...)), line)
	}
	assert.Equal(t, Changes, ClassOf(redis.NewCmd(context.Background(), "set", "k", "v", []byte("NX"))))
	assert.Equal(t, Repeats, ClassOf(redis.NewCmd(context.Background(), "set", "k", 5)))

	// What is no text is written as one.
	five, in := "5", "in"
	for _, args := range [][]any{
		{"zunionstore", 5, 2, 5, "b"}, {"zunionstore", "5", 2, 5, "b"}, {"zunionstore", "5", 2, &five, "b"}, {"zunionstore", "a", 2, spelled("a"), "b"},
		{"bitfield", "k", spelled("incrby"), "u8", 0, 1}, {"set", "k", "v", spelled("nx")}, {"sort", "l", spelled("store"), "d"},
	} {
		assert.Equal(t, Changes, ClassOf(redis.NewCmd(context.Background(), args...)), args)
	}
	assert.Equal(t, Takes, ClassOf(redis.NewCmd(context.Background(), "xread", "streams", "s", spelled("$"))))
	assert.Equal(t, Repeats, ClassOf(redis.NewCmd(context.Background(), "zunionstore", 5, 2, "a", &in)))
	assert.Equal(t, Repeats, ClassOf(redis.NewCmd(context.Background(), "set", "k", spelled("nx"))))
}

// spelled is an argument of which only code of the caller's tells how it is written.
type spelled string

func (s spelled) MarshalBinary() ([]byte, error) { return []byte(s), nil }
