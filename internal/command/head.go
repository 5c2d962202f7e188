package command

import "bytes"

// What is known of a request by its first bytes, before it is sent.

// Head copies the name of the first command in p, a request as go-redis writes
// it, to buf in lower case: *<n>\r\n$<length>\r\n<name>\r\n. It returns nothing
// for names that do not fit.
func Head(p []byte, buf *[16]byte) []byte {
	i := bytes.IndexByte(p, '$')
	if i < 0 {
		return nil
	}
	n := 0
	for i++; i < len(p) && p[i] >= '0' && p[i] <= '9' && n <= len(buf); i++ {
		n = 10*n + int(p[i]-'0')
	}
	i += len("\r\n")
	if n > len(buf) || i+n > len(p) {
		return nil
	}
	name := buf[:copy(buf[:], p[i:i+n])]
	for j, b := range name {
		if 'A' <= b && b <= 'Z' {
			name[j] = b + 'a' - 'A'
		}
	}
	return name
}

// MayWait reports whether the server may let a command of that name, as Head
// returns it, wait for others.
func MayWait(name []byte) bool {
	if len(name) == 0 || name[0] != 'b' && name[0] != 'x' && name[0] != 'w' { // all others, in short
		return false
	}
	switch string(name) {
	case "xread", "wait", "waitaof":
		return true
	}
	return classes[string(name)] == Takes
}

// Blocks reports whether the server may let p, a request, wait for others: its first
// command may wait and, if it is XREAD or its like, says among its first words that it does.
func Blocks(p []byte) bool {
	var buf [16]byte
	name := Head(p, &buf)
	switch string(name) {
	case "xread", "xreadgroup":
		return bytes.Contains(bytes.ToLower(p[:min(len(p), blockWithin)]), []byte("\r\nblock\r\n"))
	}
	return MayWait(name)
}

// blockWithin is where BLOCK is found, which comes before what is read.
const blockWithin = 512
