package redialtest

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	// leakGrace is how long goroutines may take to wind up after the test. go-redis
	// itself needs 1 s after Close when its dials have failed.
	leakGrace = 2 * time.Second
	leakPoll  = 10 * time.Millisecond
)

// Leaks fails the test if goroutines or, on Linux, TCP sockets of this process
// that did not exist at the call are left when the test has cleaned up. It waits
// up to 2 s for them to go and prints the stacks of those that stay.
//
// Call it first in a test: cleanups run in reverse order, so only what is
// registered later is closed before Leaks looks. It counts the whole process and
// so must not be used together with parallel tests, nor inside a testing/synctest
// bubble, which finds leaked goroutines by itself.
func Leaks(tb testing.TB) {
	tb.Helper()
	leaks(tb, leakGrace)
}

func leaks(tb testing.TB, grace time.Duration) {
	tb.Helper()
	before := takeInventory()
	tb.Cleanup(func() {
		tb.Helper()
		if left := before.awaitNothingNew(grace); left != "" {
			tb.Errorf("redialtest: leaked, still there %v after the test:\n%s", grace, left)
		}
	})
}

// LeaksMain runs the tests of a package and then checks like [Leaks] that they
// left nothing behind. It returns the exit code:
//
//	func TestMain(m *testing.M) { os.Exit(redialtest.LeaksMain(m)) }
//
// A leak turns a passing run into a failing one and is printed to standard error.
func LeaksMain(m *testing.M) int {
	return leaksMain(m.Run, leakGrace)
}

func leaksMain(run func() int, grace time.Duration) int {
	before := takeInventory()
	code := run()
	if code != 0 {
		return code // a failed test may well have left something behind
	}
	if left := before.awaitNothingNew(grace); left != "" {
		fmt.Fprintf(os.Stderr, "redialtest: leaked, still there %v after all tests:\n%s\n", grace, left)
		return 1
	}
	return 0
}

// inventory is what exists at one time.
type inventory struct {
	goroutines map[string]string // by "goroutine 12"; the stack
	sockets    map[string]string // of every kind, by inode; the descriptor
}

func takeInventory() inventory {
	return inventory{goroutines: goroutines(), sockets: sockets()}
}

// awaitNothingNew returns "" as soon as nothing exists that is not in inv, and a
// description of the new things when grace is over.
func (inv inventory) awaitNothingNew(grace time.Duration) string {
	giveUp := time.Now().Add(grace)
	for {
		now := takeInventory()
		left := added(inv.goroutines, now.goroutines)
		late := time.Now().After(giveUp)
		if len(left) == 0 || late { // the tables of the kernel are long: they are read when they matter
			maps.Copy(left, tcpOnly(added(inv.sockets, now.sockets)))
			if len(left) == 0 || late {
				return strings.Join(slices.Sorted(maps.Values(left)), "\n\n")
			}
		}
		time.Sleep(leakPoll) // the end of a goroutine cannot be waited for
	}
}

// added returns what is in now and was not before.
func added(before, now map[string]string) map[string]string {
	found := maps.Clone(now)
	maps.DeleteFunc(found, func(id, _ string) bool { _, old := before[id]; return old })
	return found
}

// notLeaks are parts of stacks of goroutines that the runtime and package testing
// start on their own.
var notLeaks = []string{
	"testing.tRunner(",        // other tests, waiting for or running a subtest
	"testing.(*M).startAlarm", // -timeout
	"testing.runFuzzing(",
	"os/signal.signal_recv(",
	"os/signal.loop(",
	"runtime.ensureSigM(",
	"runtime.ReadTrace(",
	"runtime/pprof.profileWriter(",
}

// goroutines returns the stacks of all goroutines but the calling one.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	found := make(map[string]string)
	// The first block is the caller itself.
	for i, block := range bytes.Split(bytes.TrimSpace(buf), []byte("\n\n")) {
		stack := string(block)
		ignored := i == 0 || slices.ContainsFunc(notLeaks, func(part string) bool {
			return strings.Contains(stack, part)
		})
		if id, _, ok := strings.Cut(stack, " ["); ok && !ignored {
			found[id] = stack
		}
	}
	return found
}

// sockets returns the sockets this process holds, by inode. It finds nothing on systems
// without /proc/self/fd.
func sockets() map[string]string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	found := make(map[string]string)
	for _, entry := range entries {
		link, err := os.Readlink(filepath.Join("/proc/self/fd", entry.Name()))
		if err != nil {
			continue // closed since
		}
		if inode, ok := strings.CutPrefix(link, "socket:["); ok {
			found[strings.TrimSuffix(inode, "]")] = entry.Name()
		}
	}
	return found
}

// tcpOnly describes those of the sockets that are TCP ones, also unconnected and
// reset ones.
func tcpOnly(sockets map[string]string) map[string]string {
	if len(sockets) == 0 {
		return nil
	}
	found := make(map[string]string)
	for inode, descriptor := range sockets {
		found[inode] = fmt.Sprintf("TCP socket %s, descriptor %s, without a connection", inode, descriptor)
	}
	// The tables list TCP sockets only while they have a state, so what is in no
	// other table counts as TCP. Inode column: tcp, udp, raw 9; unix 6; others last.
	for _, table := range []struct {
		name   string
		column int
	}{{"udp", 9}, {"udp6", 9}, {"raw", 9}, {"raw6", 9}, {"icmp", 9}, {"icmp6", 9}, {"unix", 6}, {"netlink", 9}, {"packet", 8}} {
		for _, row := range procNet(table.name) {
			if len(row) > table.column {
				delete(found, row[table.column])
			}
		}
	}
	for _, name := range []string{"tcp", "tcp6"} {
		for _, row := range procNet(name) {
			if len(row) > 9 && found[row[9]] != "" {
				found[row[9]] = fmt.Sprintf("TCP socket %s, local %s, remote %s, state %s (hexadecimal)", row[9], row[1], row[2], row[3])
			}
		}
	}
	return found
}

// procNet returns the fields of each line of a table of the kernel.
func procNet(name string) [][]string {
	text, err := os.ReadFile("/proc/self/net/" + name)
	if err != nil {
		return nil
	}
	var rows [][]string
	for line := range strings.Lines(string(text)) {
		rows = append(rows, strings.Fields(line))
	}
	return rows
}
