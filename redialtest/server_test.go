package redialtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// bare returns a go-redis client that retries nothing, so that each fault is seen
// exactly once.
func bare(t *testing.T, addr string, change ...func(*redis.Options)) *redis.Client {
	t.Helper()
	opt := &redis.Options{
		Addr:                     addr,
		MaxRetries:               -1,
		DialerRetries:            1,
		ContextTimeoutEnabled:    true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	for _, f := range change {
		f(opt)
	}
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestServer_KillAndStart_SamePortEmptyAgain(t *testing.T) {
	Leaks(t)
	s := StartServer(t)
	addr, pid := s.Addr(), s.PID()
	if got := s.Do("SET", "k", "v"); got != "OK" {
		t.Fatalf("SET = %v", got)
	}
	if got := s.Do("GET", "k"); got != "v" {
		t.Fatalf("GET = %v", got)
	}

	s.Kill()
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Fatal("a killed server accepts dials")
	}
	s.Kill() // of a dead one does nothing
	s.Start()
	if s.Addr() != addr || s.PID() == pid {
		t.Fatalf("restarted on %s (was %s) as process %d (was %d)", s.Addr(), addr, s.PID(), pid)
	}
	if got := s.Do("GET", "k"); got != nil {
		t.Fatalf("GET after a restart = %v, want nothing persisted", got)
	}
	pid = s.PID()
	s.Start() // of a running one does nothing
	if s.PID() != pid {
		t.Fatal("Start replaced a running server")
	}
}

func TestServer_LaunchOnly_ReadyAfterStart(t *testing.T) {
	Leaks(t)
	s := StartServer(t)
	s.Kill()
	s.LaunchOnly()
	pid := s.PID()
	s.Start() // waits for the one launched
	if s.PID() != pid {
		t.Fatal("Start launched a second process")
	}
	if got := s.Do("PING"); got != "PONG" {
		t.Fatalf("PING = %v", got)
	}
}

func TestServer_FreezeAndThaw_ExecutesWhatWasSent(t *testing.T) {
	Leaks(t)
	s := StartServer(t)
	rdb := bare(t, s.Addr())
	if err := rdb.Ping(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	s.Freeze()
	if err := rdb.Incr(within(t, 100*time.Millisecond), "n").Err(); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("INCR on a frozen server: %v, want a time-out", err)
	}
	s.Thaw()
	if got := s.Do("GET", "n"); got != "1" {
		t.Fatalf("n = %v after the thaw, want 1: what reached a frozen server is executed", got)
	}
}

func TestServer_FrozenAtCleanup_IsKilled(t *testing.T) {
	Leaks(t)
	var pid int
	t.Run("", func(t *testing.T) {
		s := StartServer(t)
		pid = s.PID()
		s.Freeze()
	})
	if runtime.GOOS != "linux" || pid == 0 {
		return
	}
	if p, err := os.FindProcess(pid); err == nil && p.Signal(syscall.Signal(0)) == nil {
		t.Fatalf("process %d outlived its test", pid)
	}
}

func TestServer_ArgsWin(t *testing.T) {
	Leaks(t)
	s := StartServer(t, "--requirepass", "secret", "--maxclients", "17")
	if got := s.Do("CONFIG", "GET", "maxclients"); got.(map[any]any)["maxclients"] != "17" {
		t.Fatalf("maxclients = %v", got)
	}
	if err := bare(t, s.Addr()).Ping(t.Context()).Err(); err == nil || !strings.Contains(err.Error(), "NOAUTH") {
		t.Fatalf("PING without password: %v", err)
	}
}

func TestTLSServer_TrustedByItsOwnConfigOnly(t *testing.T) {
	Leaks(t)
	s := StartTLSServer(t)
	if got := s.Do("SET", "k", "v"); got != "OK" {
		t.Fatalf("SET = %v", got)
	}
	rdb := bare(t, s.Addr(), func(o *redis.Options) { o.TLSConfig = s.TLSConfig() })
	if got, err := rdb.Get(t.Context(), "k").Result(); got != "v" {
		t.Fatalf("GET = %q, %v", got, err)
	}
	stranger := bare(t, s.Addr(), func(o *redis.Options) { o.TLSConfig = &tls.Config{} })
	var unknown *tls.CertificateVerificationError
	if err := stranger.Ping(t.Context()).Err(); !errors.As(err, &unknown) {
		t.Fatalf("PING without trust: %v", err)
	}
	if err := bare(t, s.Addr()).Ping(within(t, time.Second)).Err(); err == nil {
		t.Fatal("a TLS server answers in plain text")
	}
	s.Kill()
	s.Start()
	if got := s.Do("PING"); got != "PONG" {
		t.Fatalf("PING after a restart = %v", got)
	}
}

func TestPlainServer_HasNoTLSConfig(t *testing.T) {
	if s := StartServer(t); s.TLSConfig() != nil {
		t.Fatal("TLSConfig of a plain server is not nil")
	}
}

// skipRecorder notes whether a test was skipped or failed instead of stopping it.
type skipRecorder struct {
	testing.TB
	skipped, failed string
}

func (r *skipRecorder) Helper()                          {}
func (r *skipRecorder) Skipf(format string, args ...any) { r.skipped = format; runtime.Goexit() }
func (r *skipRecorder) Fatal(args ...any)                { r.failed = "fatal"; runtime.Goexit() }

func TestStartServer_NoBinary_SkipsUnlessRequired(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv(serverVariable, "")
	for require, want := range map[string]string{"": "skipped", "1": "failed"} {
		t.Setenv(requireRedis, require)
		r := &skipRecorder{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			StartServer(r)
		}()
		<-done
		if (r.skipped != "") != (want == "skipped") || (r.failed != "") != (want == "failed") {
			t.Errorf("%s=%q: skipped %q, failed %q, want %s", requireRedis, require, r.skipped, r.failed, want)
		}
	}
	if _, err := LaunchServer(); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("LaunchServer: %v, want exec.ErrNotFound", err)
	}
}

// A server is looked for under both names, and one that is named is the one to have.
func TestFindServer(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	t.Setenv(serverVariable, "")
	program := func(name string) string {
		if runtime.GOOS == "windows" {
			name += ".exe"
		}
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, nil, 0o700); err != nil {
			t.Fatal(err)
		}
		return name
	}
	check := func(want string) {
		t.Helper()
		if got, err := findServer(); err != nil || got != want {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
	if _, err := findServer(); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "redis-server") {
		t.Errorf("nothing there: %v", err)
	}
	check(program("valkey-server"))
	check(program("redis-server"))
	other := program("other-server")
	t.Setenv(serverVariable, "other-server")
	check(other)
	t.Setenv(serverVariable, other)
	check(other)
	t.Setenv(serverVariable, "tcp://127.0.0.1:1")
	check("tcp://127.0.0.1:1")
	t.Setenv(serverVariable, "no-such-server")
	if _, err := findServer(); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "no-such-server") {
		t.Errorf("a named one that is missing: %v", err)
	}
}

func TestLaunchServer_BadArgument_ReportsTheServersOwnWords(t *testing.T) {
	Leaks(t)
	if _, err := findServer(); err != nil {
		Skip(t, err)
	}
	_, err := LaunchServer("--no-such-directive", "1")
	if err == nil || !strings.Contains(err.Error(), "no-such-directive") {
		t.Fatalf("error = %v", err)
	}
}

// TestLaunchServer_PortInArguments_IsRefusedAtOnce: nobody would be asked at the port of Addr.
func TestLaunchServer_PortInArguments_IsRefusedAtOnce(t *testing.T) {
	began := time.Now()
	_, err := LaunchServer("--port", "1")
	if err == nil || !strings.Contains(err.Error(), "the port is chosen") || time.Since(began) > serverReadyWithin/2 {
		t.Errorf("error = %v after %v", err, time.Since(began))
	}
}

func TestLaunchServer_Close_KillsAndRemoves(t *testing.T) {
	Leaks(t)
	s, err := LaunchServer()
	if errors.Is(err, exec.ErrNotFound) {
		Skip(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // idempotent
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory is still there: %v", err)
	}
	s.Start() // after Close does nothing
	if s.proc.Running() {
		t.Error("Start brought a closed server back")
	}
	defer func() {
		if recover() == nil {
			t.Error("Do on a dead server outside a test must panic")
		}
	}()
	s.Do("PING")
}

// TestLaunchServer_ParentDies_ServerDiesToo runs this test in a second process,
// which starts a server and is killed before it can clean up.
func TestLaunchServer_ParentDies_ServerDiesToo(t *testing.T) {
	if runtime.GOOS != "linux" {
		Skip(t, "only Linux kills children with their parent")
	}
	const child = "REDIALTEST_CHILD"
	if os.Getenv(child) != "" {
		s, err := LaunchServer()
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("pid", s.PID())
		select {} // until killed
	}
	Leaks(t)
	StartServer(t) // skips where there is none
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), child+"=1", "TMPDIR="+t.TempDir()) // its directory stays behind
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	_, scanErr := fmt.Fscanf(out, "pid %d\n", &pid)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if scanErr != nil {
		t.Fatal(scanErr)
	}
	eventually(t, "the server is gone", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ") // a zombie waits for init
	})
}

// TestServer_PortTakenByAnotherServer_IsNoticed: a PONG from whoever sits on the
// port is not the server's own.
func TestServer_PortTakenByAnotherServer_IsNoticed(t *testing.T) {
	Leaks(t)
	s, other := StartServer(t), StartServer(t)
	if err := s.ping(s.PID()); err != nil {
		t.Fatal(err)
	}
	if err := s.ping(other.PID()); err == nil {
		t.Fatal("the answer of another process was taken for the server's own")
	}
}

// TestServer_PortBusyAtRestart_StartsWhenItIsFree takes the port of a killed
// server away and gives it back while Start is trying.
func TestServer_PortBusyAtRestart_StartsWhenItIsFree(t *testing.T) {
	Leaks(t)
	s := StartServer(t)
	s.Kill()
	ln, err := net.Listen("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	go func() {
		defer close(started)
		s.restart(true)
	}()
	if conn, err := ln.Accept(); err == nil { // Start has asked the wrong listener
		conn.Close()
	}
	ln.Close()
	<-started
	if got := s.Do("PING"); got != "PONG" {
		t.Fatalf("PING = %v", got)
	}
}
