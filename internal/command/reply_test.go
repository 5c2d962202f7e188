package command

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// However a reply is cut, its end is found.
func TestFrame_Feed_FindsTheEnd(t *testing.T) {
	for reply, text := range map[string]string{
		"+OK\r\n": "", "-ERR no\r\n": "", ":1\r\n": "", "_\r\n": "", "#t\r\n": "", ",1.5\r\n": "",
		"+" + strings.Repeat("x", 500) + "\r\n": "",
		"$-1\r\n":                               "", "*-1\r\n": "", "*0\r\n": "", "%0\r\n": "", "$0\r\n\r\n": "\r\n",
		"$5\r\nhe\r\no\r\n":   "he\r\no\r\n",
		"=9\r\ntxt:hello\r\n": "txt:hello\r\n",
		"*2\r\n$1\r\na\r\n*3\r\n:1\r\n_\r\n%1\r\n+k\r\n*0\r\n":         "",
		"%2\r\n+a\r\n:1\r\n$1\r\nb\r\n~2\r\n:1\r\n:2\r\n":              "",
		">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$3\r\n\r\nx\r\n":            "",
		"|1\r\n+ttl\r\n:3600\r\n*2\r\n:1\r\n:2\r\n":                    "",
		"*1\r\n*1\r\n*1\r\n$20\r\n" + strings.Repeat("y", 20) + "\r\n": "",
	} {
		for cut := range len(reply) + 1 {
			var f Frame
			rest := reply + ":7\r\n"
			n, done, ok := f.Feed([]byte(rest[:cut]))
			assert.True(t, ok, reply)
			assert.Equal(t, cut == len(reply), done, "%q after %d bytes", reply, cut)
			if !done {
				var m int
				m, done, ok = f.Feed([]byte(rest[cut:]))
				n += m
			}
			assert.True(t, ok && done, "%q cut at %d", reply, cut)
			assert.Equal(t, len(reply), n, "%q cut at %d", reply, cut)
			assert.Equal(t, reply[0], f.Kind)
			assert.Equal(t, text, string(f.Text))
		}
	}
	for _, none := range []string{"HTTP/1.1 200 OK\r\n", "\r\n", "$x\r\n", "*\r\n", "$9223372036854775807\r\n"} {
		_, _, ok := new(Frame).Feed([]byte(none))
		assert.False(t, ok, none)
	}
}

const hello3 = "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:123\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n"

func TestHelloID(t *testing.T) {
	at := strings.Index(hello3, ":123\r\n") + len(":123\r\n")
	for n := range len(hello3) + 1 {
		want := int64(0)
		if n >= at {
			want = 123
		}
		assert.Equal(t, want, HelloID([]byte(hello3[:n])), n)
	}
	assert.EqualValues(t, 123, HelloID([]byte("*14"+hello3[2:])))
	for _, none := range []string{"", "+OK\r\n$2\r\nid\r\n:5\r\n", "-ERR unknown command 'HELLO'\r\n", "%1\r\n$2\r\nid\r\n:x\r\n", "%1\r\n$2\r\nid\r\n:-5\r\n", "%1\r\n$2\r\nid\r\n$1\r\n5\r\n"} {
		assert.Zero(t, HelloID([]byte(none)), none)
	}
}

func TestParsePeers(t *testing.T) {
	const list = "id=3 addr=127.0.0.1:51414 laddr=127.0.0.1:6379 fd=8 name= age=0 flags=N cmd=client|list\n" +
		"id=7 addr=127.0.0.1:51416 laddr=127.0.0.1:6379 fd=9 name=id=5 flags=b cmd=blpop\n" +
		"id=8 addr=127.0.0.1:51417 fd=10 flags=N\n" + "nonsense\n\n"
	for _, text := range []string{list, "txt:" + list, strings.ReplaceAll(list, "\n", "\r\n")} {
		assert.Equal(t, map[int64]Peer{
			3: {3, "127.0.0.1:51414", "127.0.0.1:6379", false},
			7: {7, "127.0.0.1:51416", "127.0.0.1:6379", true},
		}, ParsePeers(text), "before 6.2 there is no laddr, and nothing is known")
	}
	assert.Equal(t, "abc", InfoField("# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n", "run_id"))
	assert.Empty(t, InfoField("run_idx:abc\r\n", "run_id"))
}

func TestBlocks(t *testing.T) {
	for _, want := range []string{"*3\r\n$5\r\nblpop\r\n$1\r\nk\r\n$1\r\n0\r\n", "*6\r\n$5\r\nXREAD\r\n$5\r\nBlock\r\n$1\r\n0\r\n$7\r\nstreams\r\n$1\r\ns\r\n$1\r\n0\r\n"} {
		assert.True(t, Blocks([]byte(want)), want)
		assert.True(t, IsOne([]byte(want)))
		assert.False(t, IsOne([]byte(want+want)))
		assert.False(t, IsOne([]byte(want[:len(want)-1])))
	}
	for _, no := range []string{"*2\r\n$3\r\nget\r\n$1\r\nk\r\n", "*4\r\n$5\r\nxread\r\n$7\r\nstreams\r\n$5\r\nblock\r\n$1\r\n0\r\n"[:30]} {
		assert.False(t, Blocks([]byte(no)), no)
	}
	assert.True(t, IsNil([]byte("*-1\r\n")) && IsNil([]byte("_\r\n")) && IsNil([]byte("$-1\r\n")))
	assert.False(t, IsNil([]byte("*2\r\n")) || IsNil(nil))
}
