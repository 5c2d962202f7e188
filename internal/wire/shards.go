package wire

import (
	"bytes"
	"strconv"
	"sync/atomic"

	"github.com/redial-go/redial/internal/command"
)

// What a node of a cluster says of the shard channels of a subscription: whether they are
// served there, or have to be looked for again. go-redis would take the one for their end,
// the other for an error, and listen on where nothing comes any more.

// shards follows what is said on one connection.
type shards struct {
	asked atomic.Int64 // answers to SUNSUBSCRIBE that are still to come
	all   atomic.Bool  // there are those to one without channels, which end when none is left
	// Used by the reader alone.
	frame command.Frame
	head  [len(">3\r\n$12\r\nsunsubscribe\r\n")]byte
	known int  // how much of it has come
	over  bool // that was told, or what was said is no sequence of replies
}

// asks takes up a request before it is written.
func (s *shards) asks(p []byte) {
	var buf [16]byte
	if len(p) == 0 || p[0] != '*' || string(command.Head(p, &buf)) != "sunsubscribe" {
		return
	}
	line, _, _ := bytes.Cut(p[1:], []byte("\r\n"))
	if n, _ := strconv.ParseInt(string(line), 10, 64); n > 1 {
		s.asked.Add(n - 1)
	} else {
		s.all.Store(true)
	}
}

// hears takes up what was read, and reports, once, that the subscription has to be made anew.
func (s *shards) hears(p []byte) (stray bool) {
	for len(p) > 0 && !s.over {
		n, whole, ok := s.frame.Feed(p)
		s.known += copy(s.head[s.known:], p[:n])
		if whole {
			stray = s.strays(s.head[:s.known], s.frame.EndsIn(noneLeft))
			s.frame, s.known = command.Frame{}, 0
		}
		s.over = stray || !ok
		p = p[n:]
	}
	return stray
}

// strays reports whether that is so by what a reply begins with; last says that it ends
// with there being no channel left.
func (s *shards) strays(head []byte, last bool) bool {
	for _, words := range unserved {
		if bytes.HasPrefix(head, words) {
			return true
		}
	}
	switch {
	case len(head) == 0 || !bytes.HasPrefix(head[1:], unsubscribedPush):
		return false
	case s.all.Load():
		s.all.Store(!last)
		return false
	case s.asked.Load() > 0:
		s.asked.Add(-1)
		return false
	}
	return true
}

// noneLeft is how many channels there are left, when there is none.
const noneLeft = ":0"

var (
	unsubscribedPush = []byte("3\r\n$12\r\nsunsubscribe\r\n")
	// unserved are answers to SSUBSCRIBE that may be others soon, or elsewhere.
	unserved = [][]byte{[]byte("-MOVED "), []byte("-ASK "), []byte("-CLUSTERDOWN "), []byte("-TRYAGAIN ")}
)
