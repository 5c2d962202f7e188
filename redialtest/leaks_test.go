package redialtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestMain(m *testing.M) {
	redis.SetLogger(quiet{}) // failed dials are what these tests make
	os.Exit(LeaksMain(m))
}

type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// recorder stands in for a test that is meant to fail.
type recorder struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

func (r *recorder) finish() string {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
	return strings.Join(r.errors, "\n")
}

// stay starts a goroutine that stays until stop is closed, and returns once it runs: one
// that has not run yet shows no function of its own in its stack.
func stay(stop chan struct{}) {
	runs := make(chan struct{})
	go stayUntil(runs, stop)
	<-runs
}

func stayUntil(runs, stop chan struct{}) {
	close(runs)
	<-stop
}

func TestLeaks_GoroutineLeft_IsReportedWithItsStack(t *testing.T) {
	r := &recorder{TB: t}
	leaks(r, 50*time.Millisecond)
	stop := make(chan struct{})
	stay(stop)
	defer close(stop)
	if got := r.finish(); !strings.Contains(got, "stayUntil") {
		t.Fatalf("the leaked goroutine is not in the report: %q", got)
	}
}

func TestLeaks_SocketLeft_IsReported(t *testing.T) {
	if runtime.GOOS != "linux" {
		Skip(t, "sockets are listed on Linux only")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, breakIt := range map[string]func(peer net.Conn){
		"connected": func(net.Conn) {},
		// A reset socket is in no table of the kernel, but its descriptor stays.
		"reset": func(peer net.Conn) {
			_ = peer.(*net.TCPConn).SetLinger(0)
			_ = peer.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &recorder{TB: t}
			leaks(r, 50*time.Millisecond)
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			peer, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			breakIt(peer)
			got := r.finish()
			if !strings.Contains(got, "TCP socket") {
				t.Fatalf("the leaked socket is not in the report: %q", got)
			}
			_ = conn.Close()
		})
	}
}

func TestLeaks_EverythingClosedInCleanup_IsSilent(t *testing.T) {
	r := &recorder{TB: t}
	leaks(r, time.Second)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		<-stop
	}()
	r.Cleanup(func() {
		_ = ln.Close()
		close(stop)
		<-stopped
	})
	if got := r.finish(); got != "" {
		t.Fatal(got)
	}
}

func TestLeaks_WaitsForStragglers(t *testing.T) {
	r := &recorder{TB: t}
	leaks(r, 10*time.Second)
	stop := make(chan struct{})
	stay(stop)
	time.AfterFunc(50*time.Millisecond, func() { close(stop) })
	if got := r.finish(); got != "" {
		t.Fatal(got)
	}
}

func TestLeaks_UnixAndUDPSockets_AreNotTCP(t *testing.T) {
	if runtime.GOOS != "linux" {
		Skip(t, "sockets are listed on Linux only")
	}
	r := &recorder{TB: t}
	leaks(r, 20*time.Millisecond)
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ln, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if got := r.finish(); got != "" {
		t.Fatal(got)
	}
}

func TestLeaksMain_LeakTurnsSuccessIntoFailure(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	stderr := os.Stderr
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	os.Stderr = null
	defer func() { os.Stderr = stderr }()
	leak := func(code int) func() int {
		return func() int { stay(stop); return code }
	}
	if got := leaksMain(leak(0), 20*time.Millisecond); got != 1 {
		t.Errorf("a leak in a passing run: exit code %d, want 1", got)
	}
	if got := leaksMain(leak(7), 20*time.Millisecond); got != 7 {
		t.Errorf("a leak in a failing run: exit code %d, want the run's own 7", got)
	}
	if got := leaksMain(func() int { return 0 }, 20*time.Millisecond); got != 0 {
		t.Errorf("no leak: exit code %d, want 0", got)
	}
}
