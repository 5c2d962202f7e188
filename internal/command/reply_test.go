package command

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Every kind of reply ends where it ends, and not before.
func TestFrame(t *testing.T) {
	for _, reply := range []string{
		"+PONG\r\n", "-MISCONF no snapshot\r\n", "-\r\n", ":1\r\n", "_\r\n", "#t\r\n", ",1.5\r\n", "(12345\r\n",
		"$4\r\nPONG\r\n", "$0\r\n\r\n", "$-1\r\n", "=8\r\ntxt:PONG\r\n", "!5\r\nERR x\r\n",
		"*0\r\n", "*-1\r\n", "*2\r\n$4\r\npong\r\n$0\r\n\r\n", "*1\r\n*1\r\n*1\r\n:1\r\n",
		"~1\r\n+a\r\n", "%1\r\n+k\r\n*1\r\n+v\r\n", "|1\r\n+ttl\r\n:3\r\n+PONG\r\n",
	} {
		for i := range len(reply) {
			n, _, err := Frame([]byte(reply[:i]))
			assert.NoError(t, err, "%q", reply[:i])
			assert.Zero(t, n, "%q", reply[:i])
		}
		n, push, err := Frame([]byte(reply + "+next"))
		assert.NoError(t, err, "%q", reply)
		assert.False(t, push)
		assert.Equal(t, len(reply), n, "%q", reply)
	}
	n, push, err := Frame([]byte(">2\r\n+invalidate\r\n*1\r\n+k\r\n+PONG\r\n"))
	assert.NoError(t, err)
	assert.True(t, push)
	assert.Equal(t, len(">2\r\n+invalidate\r\n*1\r\n+k\r\n"), n)
}

func TestFrame_IsNone(t *testing.T) {
	for _, b := range []string{
		"HTTP/1.1 400\r\n", "\x15\x03\x01", "$x\r\n", "$-2\r\n", "*1\r\nx\r\n", "$1\r\nabc\r\n",
		"$99999999999999999999999", "*99999999999999999999\r\n", strings.Repeat("*1\r\n", 64) + ":1\r\n",
	} {
		n, _, err := Frame([]byte(b))
		assert.ErrorIs(t, err, ErrNoReply, "%q", b)
		assert.Zero(t, n)
	}
	for _, b := range []string{"$9223372036854775807\r\n", "*9223372036854775807\r\n:1\r\n"} {
		n, _, err := Frame([]byte(b))
		assert.NoError(t, err, "it may yet come")
		assert.Zero(t, n)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte("*2\r\n$4\r\npong\r\n$0\r\n\r\n"))
	f.Add([]byte("|1\r\n+ttl\r\n:3\r\n>1\r\n_\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, _, err := Frame(b)
		assert.True(t, n >= 0 && n <= len(b) && (err == nil || n == 0))
		if n > 0 { // and it needs no byte more
			m, _, err := Frame(b[:n])
			assert.NoError(t, err)
			assert.Equal(t, n, m)
			m, _, _ = Frame(b[:n-1])
			assert.Zero(t, m)
		}
	})
}
