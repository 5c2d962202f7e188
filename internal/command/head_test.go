package command

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestHead(t *testing.T) {
	for in, want := range map[string]string{
		"*1\r\n$4\r\nping\r\n":                    "ping",
		"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n":          "get",
		"*12\r\n$9\r\nSUBSCRIBE\r\n":              "subscribe",
		"*1\r\n$17\r\nseventeen-letters\r\n":      "",
		"*1\r\n$99999999999999999999\r\nping\r\n": "",
		"*1\r\n$4\r\npi":                          "",
		"PING\r\n":                                "",
		"":                                        "",
		"*1\r\n$":                                 "",
		"*1\r\n$0\r\n\r\n":                        "",
	} {
		var buf [16]byte
		assert.Equal(t, want, string(Head([]byte(in), &buf)), "%q", in)
	}
}

// MayWait looks at first letters before it looks anything up.
func TestMayWait_IsSoOfAllThatTake(t *testing.T) {
	taking := 0
	for name, c := range classes {
		if c == Takes {
			taking++
		}
		waits := c == Takes || name == "xread" || name == "wait" || name == "waitaof"
		assert.Equal(t, waits, MayWait([]byte(name)), name)
	}
	assert.Positive(t, taking)
	assert.False(t, MayWait(nil))
}
