package command

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/redialtest"
)

// Every command that a method of redis.Cmdable can send has its keys in the table, or is
// refused by name or as one of a module.
func TestKeys_CoverAllOfCmdable(t *testing.T) {
	methods := reflect.TypeFor[redis.Cmdable]()
	seen := make(map[string]bool)
	for i := range methods.NumMethod() {
		c := &collector{names: make(map[string]bool)}
		rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
		rdb.AddHook(c)
		invoke(reflect.ValueOf(rdb).MethodByName(methods.Method(i).Name))
		require.NoError(t, rdb.Close())
		for name := range c.names {
			seen[name] = true
		}
	}
	require.Greater(t, len(seen), 300)
	for name := range seen {
		_, allowed := keyed[name]
		_, refused := unkeyed[name]
		if strings.Contains(name, ".") {
			assert.False(t, allowed || refused, name)
			continue
		}
		assert.True(t, allowed != refused, "%s must be in one of the tables of keys.go", name)
	}
}

// The positions of keys are those that the server finds.
func TestKeys_AgreeWithTheServer(t *testing.T) {
	s := redialtest.StartServer(t)
	known := make(map[string]bool)
	for _, entry := range s.Do("COMMAND").([]any) {
		known[entry.([]any)[0].(string)] = true
	}
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr()})
	defer rdb.Close()
	getKeys := func(args []any) ([]string, error) {
		return rdb.Do(context.Background(), append([]any{"command", "getkeys"}, args...)...).StringSlice()
	}
	examples := map[string]string{
		"memory": "usage k", "object": "encoding k", "xgroup": "create k g 0", "bitop": "and d a b", "sort": "k by w* limit 0 1 get # store d",
		"lmpop": "2 a b left", "zmpop": "2 a b min", "sintercard": "2 a b limit 1", "zdiff": "2 a b", "zinter": "2 a b withscores", "zunion": "2 a b weights 1 2",
		"zintercard": "2 a b limit 2", "zdiffstore": "d 2 a b", "zinterstore": "d 2 a b weights 1 2", "zunionstore": "d 2 a b",
		"georadius": "k 1 2 3 km store d", "georadiusbymember": "k m 3 km asc storedist d",
		"xread": "count 1 streams a b 0 0", "xreadgroup": "group streams streams count 1 streams a b > >", "mset": "a 1 b 2", "msetnx": "a 1 b 2",
		"lcs": "a b len", "lmove": "a b left right", "copy": "a b replace", "zrangestore": "a b 0 1", "geosearchstore": "a b frommember m byradius 1 km",
	}
	checked := 0
	for name := range keyed {
		if !known[name] {
			continue // of a newer server
		}
		tail, ok := examples[name]
		if !ok {
			tail = "a b c d e f g h"
		}
		args := split(name + " " + tail)
		server, err := getKeys(args)
		for err != nil && !ok && len(args) > 2 { // it may not have as many arguments
			args = args[:len(args)-1]
			server, err = getKeys(args)
		}
		if !assert.NoError(t, err, name) {
			continue
		}
		at, _, why := Keys(redis.NewCmd(context.Background(), args...))
		if !assert.Empty(t, why, name) {
			continue
		}
		var ours []string
		for _, i := range at {
			ours = append(ours, args[i].(string))
		}
		slices.Sort(server) // the server has some of them in another order
		slices.Sort(ours)
		assert.Equal(t, server, ours, "%v", args)
		checked++
	}
	require.Greater(t, checked, 150)

	// What looks like an option may be the argument of another, or a name.
	for _, line := range []string{
		"sort k by store desc", "sort k get store get #", "sort k by get store d", "sort k limit 0 1 STORE store", "sort k by store store d",
		"georadiusbymember k store 10 km", "georadiusbymember k storedist 10 km store d", "georadius k 1 2 3 km count 1 storedist store",
	} {
		args := split(line)
		server, err := getKeys(args)
		require.NoError(t, err, line)
		at, _, _ := Keys(redis.NewCmd(context.Background(), args...))
		var ours []string
		for _, i := range at {
			ours = append(ours, args[i].(string))
		}
		assert.Equal(t, server, ours, line)
	}
}

func split(line string) (args []any) {
	for w := range strings.FieldsSeq(line) {
		args = append(args, w)
	}
	return args
}

func TestKeys_Refused(t *testing.T) {
	for line, want := range map[string]string{
		"ping": "connection", "blpop q 0": "waits", "xread block 0 streams s $": "waits", "xreadgroup group block c block 0 streams s >": "waits",
		"eval x 0": "script", "publish c m": "Pub/Sub", "dbsize": "server", "multi": "transactions", "no.such x": "module", "nosuch x": "not known",
		"zunion 0": "no key", "zunion x a": "no key", "zunion 5 a": "no key", "del": "no key", "memory doctor": "no key", "object help": "no key",
		"bitfield k set i54 0 1": "53 bits", "bitfield k get u63 0": "53 bits", "lmpop -1 a left": "no key", "xinfo stream x": "recorded",
	} {
		_, _, why := Keys(redis.NewCmd(context.Background(), split(line)...))
		assert.Contains(t, why, want, line)
	}
	_, _, why := Keys(redis.NewCmd(context.Background(), "bitfield", "k", "set", "i53", 0, 1))
	assert.Empty(t, why)
	_, _, why = Keys(redis.NewCmd(context.Background(), "xreadgroup", "group", "block", "c", "streams", "block", ">"))
	assert.Empty(t, why)
}

// A slot is where the server puts the key.
func TestSlot(t *testing.T) {
	for key, want := range map[string]int{"": 0, "123456789": 12739, "foo": 12182, "{foo}bar": 12182, "a{foo}{bar}": 12182} {
		assert.Equal(t, want, Slot(key), key)
	}
	assert.Equal(t, "foo{}{bar}", HashTag("foo{}{bar}"))
	assert.Equal(t, "{bar", HashTag("foo{{bar}}zap"))
	assert.Equal(t, "a}b", HashTag("a}b"))
}
