package command

import (
	"bytes"
	"errors"
	"strconv"
)

// ErrNoReply is what bytes are that cannot be the beginning of a reply.
var ErrNoReply = errors.New("bytes that are no reply")

// Frame looks at the first thing that a server has sent: the n bytes of a reply, of any
// kind, or of a push, which answers nothing. n is 0 while it is not complete. What a reply
// consists of is not looked at, and no length that it claims is believed before the bytes
// are there.
func Frame(b []byte) (n int, push bool, err error) {
	push = len(b) > 0 && b[0] == '>'
	n, err = skip(b, 0)
	if n < 0 {
		n = 0
	}
	return n, push, err
}

// deepest is how many aggregates may hold one another.
const deepest = 16

// skip returns where what begins b ends, -1 when b ends first.
func skip(b []byte, depth int) (int, error) {
	end := bytes.Index(b, crlf)
	switch {
	case len(b) == 0:
		return -1, nil
	case depth > deepest:
		return -1, ErrNoReply
	}
	kind := b[0]
	switch kind {
	case '+', '-', ':', '_', ',', '#', '(':
		if end < 0 {
			return -1, nil
		}
		return end + len(crlf), nil
	case '$', '=', '!', '*', '~', '>', '%', '|':
	default:
		return -1, ErrNoReply
	}
	if end < 0 {
		if len(b) > len("$18446744073709551616") {
			return -1, ErrNoReply
		}
		return -1, nil
	}
	n, err := strconv.Atoi(string(b[1:end]))
	if err != nil || n < -1 {
		return -1, ErrNoReply
	}
	at := end + len(crlf)
	if n < 0 {
		return at, nil // RESP2's nil
	}
	switch kind {
	case '$', '=', '!':
		if n > len(b)-at-len(crlf) {
			return -1, nil
		}
		at += n
		if !bytes.HasPrefix(b[at:], crlf) {
			return -1, ErrNoReply
		}
		return at + len(crlf), nil
	case '%':
		return skipAll(b, at, n, 2, depth)
	case '|': // what it describes follows
		if at, err = skipAll(b, at, n, 2, depth); at < 0 {
			return at, err
		}
		return skipAll(b, at, 1, 1, depth)
	}
	return skipAll(b, at, n, 1, depth)
}

// skipAll returns where n times each things end that begin at b[at].
func skipAll(b []byte, at, n, each, depth int) (int, error) {
	for range n {
		for range each {
			m, err := skip(b[at:], depth+1)
			if m < 0 {
				return -1, err
			}
			at += m
		}
	}
	return at, nil
}

var crlf = []byte("\r\n")
