package wire

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// What a node says of shard channels is an answer as long as one is to come.
func TestShards(t *testing.T) {
	push := func(left string) string { return ">3\r\n$12\r\nsunsubscribe\r\n$1\r\na\r\n:" + left + "\r\n" }
	const one, all = "*2\r\n$12\r\nsunsubscribe\r\n$1\r\na\r\n", "*1\r\n$12\r\nsunsubscribe\r\n"
	for name, tc := range map[string]struct {
		asks  []string
		hears []string // of which the last has the subscription made anew
	}{
		"nothing was asked":              {nil, []string{push("0")}},
		"one":                            {[]string{one}, []string{push("1"), push("0")}},
		"two":                            {[]string{one, one}, []string{push("2"), push("1"), push("0")}},
		"all":                            {[]string{all}, []string{push("1"), push("0"), push("0")}},
		"one, and all":                   {[]string{one, all}, []string{push("1"), push("0"), push("0")}},
		"one, all, and all":              {[]string{one, all, all}, []string{push("1"), push("0"), push("0"), push("0")}},
		"one that is refused":            {[]string{one}, []string{"-CROSSSLOT x\r\n", push("1")}},
		"all that is refused":            {[]string{all}, []string{"-NOPERM x\r\n", push("1")}},
		"a message in between":           {[]string{one}, []string{"*3\r\n$8\r\nsmessage\r\n$1\r\na\r\n$1\r\nx\r\n", push("1"), push("0")}},
		"PONG in between, and RESP2":     {[]string{one}, []string{"+PONG\r\n", "*3\r\n$12\r\nsunsubscribe\r\n$1\r\na\r\n:1\r\n", push("0")}},
		"an answer to SSUBSCRIBE: MOVED": {nil, []string{"-MOVED 1 x:1\r\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			var s shards
			for _, p := range tc.asks {
				s.asks([]byte(p))
			}
			for i, p := range tc.hears {
				assert.Equal(t, i == len(tc.hears)-1, s.hears([]byte(p)), "%d: %q", i, p)
			}
		})
	}
}
