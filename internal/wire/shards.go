package wire

import (
	"bytes"
	"slices"
	"strconv"
	"sync"

	"github.com/redial-go/redial/internal/command"
)

// What a node of a cluster says of the shard channels of a subscription: whether they are
// served there, or have to be looked for again. go-redis would take the one for their end,
// the other for an error, and listen on where nothing comes any more.

// shards follows what is said on one connection.
type shards struct {
	mu  sync.Mutex
	due []int // guarded by mu; how many answers are to come to each SUNSUBSCRIBE, 0: until none is left

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
	n, _ := strconv.Atoi(string(line))
	s.mu.Lock()
	s.due = append(s.due, max(n-1, 0))
	s.mu.Unlock()
}

// answered reports whether a reply is one to the first SUNSUBSCRIBE that is not answered
// yet; last says that it tells of no channel that is left, refused that it is the only one.
func (s *shards) answered(last, refused bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.due) == 0 {
		return false
	}
	switch due := s.due[0]; {
	case refused, due == 1, due == 0 && last:
		s.due = s.due[1:]
	case due > 1:
		s.due[0]--
	}
	return true
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
	switch {
	case slices.ContainsFunc(unserved, func(words []byte) bool { return bytes.HasPrefix(head, words) }):
		return true
	case len(head) > 0 && head[0] == '-': // perhaps to SUNSUBSCRIBE, to which nothing more comes then
		s.answered(false, true)
		return false
	case len(head) == 0 || !bytes.HasPrefix(head[1:], unsubscribedPush):
		return false
	}
	return !s.answered(last, false)
}

// noneLeft is how many channels there are left, when there is none.
const noneLeft = ":0"

var (
	unsubscribedPush = []byte("3\r\n$12\r\nsunsubscribe\r\n")
	// unserved are answers to SSUBSCRIBE that may be others soon, or elsewhere.
	unserved = [][]byte{[]byte("-MOVED "), []byte("-ASK "), []byte("-CLUSTERDOWN "), []byte("-TRYAGAIN ")}
)
