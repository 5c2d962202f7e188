package wire

import (
	"context"
	"fmt"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/command"
)

// No bytes make observe panic, and of a request as go-redis writes it, it knows the
// name.
func FuzzObserve(f *testing.F) {
	f.Add([]byte("*1\r\n$5\r\nmulti\r\n"), "SUBSCRIBE", "news")
	f.Add([]byte("*3\r\n$6\r\nclient\r\n$5\r\nreply\r\n$3\r\noff\r\n"), "client", "reply")
	f.Add([]byte("$99999999999999999999\r\n"), "blpop", "$3\r\nget\r\n")
	f.Add([]byte("*2\r\n$4"), "", "")
	f.Add([]byte("$16\r\n0123456789abcdef"), "0123456789abcdef", "x")
	f.Add([]byte("$-1\r\n"), "0123456789abcdefg", "x")
	f.Add([]byte("*1\r\n$0\r\n\r\n"), "hello", "3")
	fleet, _ := still(0)
	f.Fuzz(func(t *testing.T, raw []byte, name, arg string) {
		var buf [16]byte
		if got := command.Head(raw, &buf); len(got) > len(buf) {
			t.Fatalf("%q of %q", got, raw)
		}
		newConn(&scriptConn{}, fleet, 1).observe(raw)

		request := fmt.Appendf(nil, "*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(name), name, len(arg), arg)
		want := lowerASCII(name)
		if len(name) > len(buf) {
			want = ""
		}
		if got := command.Head(request, &buf); string(got) != want {
			t.Fatalf("%q of %q", got, request)
		}
		c := newConn(&scriptConn{}, fleet, 1)
		c.observe(request)
		role := int32(roleRegular)
		switch {
		case want == "subscribe", want == "psubscribe", want == "ssubscribe":
			role = roleSubscriber
		case want == "monitor", want == "client" && lowerASCII(arg) == "reply":
			role = roleHeld
		case want == "client":
			return // an argument may look like another
		}
		if got := c.role.Load(); got != role {
			t.Fatalf("role %d of %q", got, request)
		}
		if waits := command.ClassOf(redis.NewCmd(context.Background(), want)) == command.Takes || want == "xread" || want == "wait" || want == "waitaof"; c.waits.Load() != waits {
			t.Fatalf("%q waits: %v", request, !waits)
		}
	})
}

func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// What is read of shard channels means the same wherever it is cut.
func FuzzShards(f *testing.F) {
	const gone = ">3\r\n$12\r\nsunsubscribe\r\n$1\r\na\r\n:0\r\n"
	f.Add([]byte(">3\r\n$8\r\nsmessage\r\n$1\r\na\r\n$5\r\nhello\r\n"+gone), 40, false)
	f.Add([]byte(gone+gone), 34, true)
	f.Add([]byte("*3\r\n$12\r\nsunsubscribe\r\n$-1\r\n:1\r\n-MOVED 1 x:1\r\n"), 9, true)
	f.Add([]byte("+PONG\r\n$-1\r\n-CLUSTERDOWN\r\n\r\n"), 13, false)
	f.Fuzz(func(t *testing.T, raw []byte, cut int, asked bool) {
		var whole, parts shards
		if asked {
			whole.asks([]byte("*1\r\n$12\r\nsunsubscribe\r\n"))
			parts.asks([]byte("*1\r\n$12\r\nsunsubscribe\r\n"))
		}
		n := min(max(cut, 0), len(raw))
		first := parts.hears(raw[:n])
		second := parts.hears(raw[n:])
		if want := whole.hears(raw); want != (first || second) || first && second {
			t.Fatalf("%q, cut at %d: %v, then %v; at once: %v", raw, n, first, second, want)
		}
	})
}
