package process

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// child is set for a process of these tests, which is this binary once more.
const child = "REDIALTEST_PROCESS"

func TestMain(m *testing.M) {
	if os.Getenv(child) != "" {
		dir, err := os.Getwd()
		fmt.Println(dir, err, os.Args[1:])
		if os.Args[len(os.Args)-1] == "wait" {
			select {}
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// each runs f with a program that runs here, and with one that a host runs.
func each(t *testing.T, f func(t *testing.T, binary string)) {
	t.Setenv(child, "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("here", func(t *testing.T) { f(t, self) })
	t.Run("host", func(t *testing.T) { f(t, serving(t, self)) })
}

// serving returns the address of a host.
func serving(t *testing.T, binary string) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- Serve(ln, binary) }()
	t.Cleanup(func() {
		_ = ln.Close()
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return Host + ln.Addr().String()
}

// printed waits until p has printed a line.
func printed(t *testing.T, p *Process, line string) {
	t.Helper()
	for giveUp := time.Now().Add(10 * time.Second); !strings.Contains(p.Log(), line); time.Sleep(time.Millisecond) {
		if time.Now().After(giveUp) {
			t.Fatalf("printed %q, want %q", p.Log(), line)
		}
	}
}

func TestStart_PrintsAndExits(t *testing.T) {
	each(t, func(t *testing.T, binary string) {
		dir, err := filepath.EvalSymlinks(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		p, err := Start(binary, dir, "a", "b c")
		if err != nil {
			t.Fatal(err)
		}
		<-p.Exited()
		if want := dir + " <nil> [a b c]"; p.Log() != want { // all of it, once it is gone
			t.Errorf("printed %q, want %q", p.Log(), want)
		}
		if p.Running() || p.PID() == 0 || p.PID() == os.Getpid() {
			t.Errorf("running %v, pid %d", p.Running(), p.PID())
		}
		p.Kill() // of a dead one does nothing
	})
}

func TestKill_ReturnsWhenItIsGone(t *testing.T) {
	each(t, func(t *testing.T, binary string) {
		p, err := Start(binary, t.TempDir(), "wait")
		if err != nil {
			t.Fatal(err)
		}
		printed(t, p, "[wait]")
		if !p.Running() {
			t.Error("it has gone by itself")
		}
		err = p.Stop()
		if unsupported := runtime.GOOS == "windows" || runtime.GOOS == "plan9"; unsupported && err == nil || !unsupported && err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err == nil {
			if err := p.Continue(); err != nil {
				t.Errorf("Continue: %v", err)
			}
			if err := p.Stop(); err != nil { // a stopped process dies as well
				t.Errorf("Stop: %v", err)
			}
		}
		p.Kill()
		if p.Running() {
			t.Error("still there")
		}
	})
}

func TestStart_NoSuchProgram_IsNotFound(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	for _, binary := range []string{"no-such-program", serving(t, "no-such-program")} {
		if _, err := Start(binary, t.TempDir()); !errors.Is(err, exec.ErrNotFound) {
			t.Errorf("%s: %v, want exec.ErrNotFound", binary, err)
		}
	}
	if _, err := Start(serving(t, missing), t.TempDir()); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("error = %v", err)
	}
}

// A test that dies takes the servers with it that a host runs for it.
func TestServe_GuestGone_ProcessIsKilled(t *testing.T) {
	t.Setenv(child, "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve(there, self)
	}()
	if _, err := fmt.Fprintf(here, `{"dir":%q,"args":["wait"]}`, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if _, err := here.Read(make([]byte, 1)); err != nil { // it was started
		t.Fatal(err)
	}
	_ = here.Close()
	<-done // serve returns when the process is gone
}

func TestNative_NamesOfWine(t *testing.T) {
	for arg, want := range map[string]string{`Z:\tmp\a b\c.conf`: "/tmp/a b/c.conf", `--port`: "--port", `a\b`: `a\b`, "": "", `C:\x`: `C:\x`} {
		if got := native(arg); got != want {
			t.Errorf("native(%q) = %q, want %q", arg, got, want)
		}
	}
}
