package command

import (
	"bytes"
	"strconv"
	"strings"
)

// What is known of replies by their bytes, for those few that are read before go-redis
// does, or instead of it.

// Frame follows one reply, of either version of the protocol, through the bytes that are
// read, wherever they are cut. Its zero value is before the first byte.
type Frame struct {
	Kind byte   // the first byte, 0: none has come
	Text []byte // of a reply that is one text, as far as it is kept

	open  int // values that are still to come, minus one before the first byte
	body  int // bytes of a text that are still to come, with the line end
	top   bool
	line  [maxLine]byte
	chars int
}

const (
	maxLine = 32      // longer ones have no number that matters
	maxText = 4 << 10 // of a text that is kept
	maxBody = 1 << 30 // no text is longer
)

// Feed reads on in p. It returns how many bytes of p belong to the reply and whether it
// is complete, or false for ok when that is none.
func (f *Frame) Feed(p []byte) (n int, done, ok bool) {
	if f.Kind == 0 && len(p) > 0 {
		f.Kind, f.open, f.top = p[0], 1, true
	}
	for n < len(p) && f.open > 0 {
		if f.body > 0 {
			k := min(f.body, len(p)-n)
			if f.top && len(f.Text) < maxText {
				f.Text = append(f.Text, p[n:n+k]...)
			}
			n += k
			if f.body -= k; f.body == 0 {
				f.open--
			}
			continue
		}
		b := p[n]
		n++
		if b != '\n' {
			if f.chars < len(f.line) {
				f.line[f.chars] = b
				f.chars++
			}
			continue
		}
		if !f.header() {
			return n, false, false
		}
		f.chars = 0
	}
	return n, f.Kind != 0 && f.open == 0, true
}

// EndsIn reports whether the last line of a complete reply that is no text is that.
func (f *Frame) EndsIn(line string) bool {
	return bytes.HasPrefix(f.line[:], []byte(line+"\r"))
}

// header takes a line that says what follows, or is all of a value.
func (f *Frame) header() bool {
	line := bytes.TrimSuffix(f.line[:f.chars], []byte{'\r'})
	if len(line) == 0 {
		return false
	}
	first := f.top && len(f.Text) == 0
	f.top = false
	switch line[0] {
	case '+', '-', ':', '_', '#', ',', '(':
		f.open--
		return true
	}
	size, err := strconv.Atoi(string(line[1:]))
	if err != nil || size > maxBody {
		return false
	}
	switch {
	case size < 0:
		f.open--
		return true
	case line[0] == '$', line[0] == '=', line[0] == '!':
		f.body, f.top = size+len("\r\n"), first
	case line[0] == '*', line[0] == '~', line[0] == '>':
		f.open += size - 1
	case line[0] == '%':
		f.open += 2*size - 1
	case line[0] == '|': // what it is about follows
		f.open += 2 * size
	default:
		return false
	}
	return true
}

// IsNil reports whether p begins with a reply that says that there is nothing.
func IsNil(p []byte) bool {
	return bytes.HasPrefix(p, []byte("*-1\r\n")) || bytes.HasPrefix(p, []byte("$-1\r\n")) || bytes.HasPrefix(p, []byte("_\r\n"))
}

// HelloID returns the id of the client in what has come of the reply to HELLO, a map or
// an array, 0 while it is not there.
func HelloID(reply []byte) int64 {
	const key = "\r\n$2\r\nid\r\n:"
	if len(reply) == 0 || reply[0] != '%' && reply[0] != '*' {
		return 0
	}
	_, rest, ok := bytes.Cut(reply, []byte(key))
	digits, _, whole := bytes.Cut(rest, []byte("\r\n"))
	if !ok || !whole {
		return 0
	}
	id, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil || id < 0 {
		return 0
	}
	return id
}

// Peer is a client as its server sees it.
type Peer struct {
	ID          int64
	Addr, Laddr string // from where to where, "" where the server does not say
	Blocked     bool   // it waits in a command
}

// Is reports whether two descriptions are of the same connection.
func (p Peer) Is(other Peer) bool {
	return p.ID == other.ID && p.Addr == other.Addr && p.Laddr == other.Laddr
}

// ParsePeer reads a line of CLIENT LIST or CLIENT INFO. It reports false for one that does
// not say who is meant.
func ParsePeer(line string) (p Peer, ok bool) {
	line = strings.TrimPrefix(line, "txt:")
	for word := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "id":
			p.ID, _ = strconv.ParseInt(value, 10, 64)
		case "addr":
			p.Addr = value
		case "laddr":
			p.Laddr = value
		case "flags":
			p.Blocked = strings.Contains(value, "b")
		}
	}
	return p, p.ID > 0 && p.Addr != "" && p.Laddr != ""
}

// ParsePeers reads CLIENT LIST. Lines that do not say who is meant are left out.
func ParsePeers(list string) map[int64]Peer {
	peers := make(map[int64]Peer)
	for line := range strings.Lines(strings.TrimPrefix(list, "txt:")) {
		if p, ok := ParsePeer(line); ok {
			peers[p.ID] = p
		}
	}
	return peers
}

// InfoField returns a field of INFO, "" when it is not there.
func InfoField(info, name string) string {
	for line := range strings.Lines(info) {
		if key, value, ok := strings.Cut(line, ":"); ok && key == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// IsOne reports whether p is one whole command, and nothing else.
func IsOne(p []byte) bool {
	var f Frame
	n, done, ok := f.Feed(p)
	return ok && done && n == len(p) && f.Kind == '*'
}
