package redialtest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// FuzzReadCommand: what clients send is read as they mean it, and nothing that anybody
// else sends can do harm.
func FuzzReadCommand(f *testing.F) {
	f.Add([]byte("*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n"), "get", "k")
	f.Add([]byte("PING\r\n"), "", "")
	f.Add([]byte("*1048576\r\n"), "*1", "$1\r\n")
	f.Add([]byte("*1\r\n$536870912\r\n"), "\x00", "\r\n")
	f.Add([]byte("*1\r\n4\r\nPING\r\n"), "a", "b")
	f.Add([]byte("*-1\r\n*x\r\n"), "a", "b")
	f.Add([]byte("*1\r\n$4\r\nPINGxx*1\r\n"), "a", "b")
	f.Fuzz(func(t *testing.T, raw []byte, name, arg string) {
		r := bufio.NewReader(bytes.NewReader(raw))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for {
			args, err := readCommand(r)
			size := 0
			for _, a := range args {
				size += len(a)
			}
			if size > len(raw) || len(args) > len(raw) {
				t.Fatalf("%d bytes in %d arguments out of %d", size, len(args), len(raw))
			}
			if err != nil {
				break
			}
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20+100*uint64(len(raw)) {
			t.Fatalf("%d bytes of memory for %d", got, len(raw))
		}

		request := fmt.Sprintf("*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(name), name, len(arg), arg)
		r = bufio.NewReader(strings.NewReader(request + "PING\r\n"))
		if args, err := readCommand(r); err != nil || !slices.Equal(args, []string{name, arg}) {
			t.Fatalf("%q, %v of %q", args, err, request)
		}
		if args, err := readCommand(r); err != nil || !slices.Equal(args, []string{"PING"}) {
			t.Fatalf("%q, %v after %q", args, err, request)
		}
	})
}

// FuzzFakeServer: no client makes the server panic, hang or serve others worse.
func FuzzFakeServer(f *testing.F) {
	for _, script := range []string{
		"PING\nECHO\nECHO a\n", "MULTI\nINCR n\nBLPOP l 0\nHELLO 3\nEXEC\n", "MULTI\nMULTI\nDISCARD\nEXEC\n",
		"BLPOP l 0\nPING\n", "BLPOP l 1e300\n", "BLPOP l nan\n", "BLPOP l inf\n", "BLPOP l -1\n", "BLPOP l 0.000001\nPING\n", "BLPOP l\n", "BLPOP\n",
		"SUBSCRIBE a b a\nUNSUBSCRIBE\nUNSUBSCRIBE\nPUBLISH a x\n", "HELLO\nHELLO 2\nHELLO x\nHELLO 3 AUTH a b\n", "CLIENT\nCLIENT id\nCLIENT x\n",
		"LPUSH l a\nBLPOP l 0\nLLEN l\nDEL l\n", "SET n 9223372036854775807\nINCR n\n", "QUIT\nPING\n", "MULTI\nQUIT\n", "*1\r\n$0\r\n\r\n", "\n\n", "*0\r\n",
		"GET\nSET a\nINCR\nPUBLISH a\n", "MULTI\nNOSUCH\nEXEC\n", "MULTI\nSUBSCRIBE a\nEXEC\nPING x y\n", "SET k v\nLPUSH k a\nINCR k\n",
	} {
		f.Add([]byte(script))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		s := newFakeServer("pipe")
		s.pipe = true
		dial := func() net.Conn {
			nc, err := s.Dial(context.Background(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
			return nc
		}
		bad := dial()
		replies := make(chan struct{})
		go func() {
			defer close(replies)
			_, _ = io.Copy(io.Discard, bad)
		}()
		_, _ = bad.Write(script) // fails when the server has had enough
		good := dial()
		if _, err := io.WriteString(good, "PING\r\n"); err != nil {
			t.Fatal(err)
		}
		pong := make([]byte, len("+PONG\r\n"))
		if _, err := io.ReadFull(good, pong); err != nil || string(pong) != "+PONG\r\n" {
			t.Fatalf("%q, %v to another client after %q", pong, err, script)
		}
		_ = bad.Close()
		<-replies
		_ = s.Close()
		if n := s.Conns(); n != 0 {
			t.Fatalf("%d connections are open", n)
		}
	})
}

// FuzzMatch: a request is found however it is cut into chunks, and nothing else is.
func FuzzMatch(f *testing.F) {
	f.Add("incr", []byte("*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n"), []byte{10, 1, 1})
	f.Add("aa", []byte("xaaaax"), []byte{2, 1, 1})
	f.Add("\xff", []byte("\xfe\xff"), []byte{1})
	f.Add("\u00e4x", []byte("\u00c4x \u00e4x"), []byte{1, 3})
	f.Add("\u212a", []byte("k"), []byte{})
	f.Add("", []byte("x"), []byte{})
	f.Fuzz(func(t *testing.T, substr string, request, cuts []byte) {
		p := &Proxy{changed: make(chan struct{})}
		p.Match(substr)
		c := &proxyConn{p: p}
		want := simpleLower(substr)
		seen := "" // since the last chunk that matched
		for rest, i := request, 0; len(rest) > 0; i++ {
			n := len(rest)
			if i < len(cuts) {
				n = min(n, int(cuts[i])+1)
			}
			chunk := rest[:n]
			rest = rest[n:]
			seen += simpleLower(string(chunk))
			found := strings.Contains(seen, want)
			if found {
				seen = ""
			}
			if got := c.matchesLocked(bytes.Clone(chunk)); got != found {
				t.Fatalf("%q in chunk %d of %q, cut at %d: %v", substr, i, request, cuts, got)
			}
		}
	})
}

// simpleLower is lower case, byte by byte.
func simpleLower(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZ", s[i]) >= 0 {
			b.WriteByte(s[i] + 32)
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
