package redialtest

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redial-go/redial/redialtest/internal/process"
)

const (
	serverVariable    = "REDIAL_SERVER"
	requireRedis      = "REDIAL_REQUIRE_REDIS"
	serverReadyWithin = 10 * time.Second       // from exec to the first PONG
	serverPoll        = 5 * time.Millisecond   // between two attempts to reach a starting server
	serverPingWithin  = 500 * time.Millisecond // for one such attempt
	serverDoWithin    = 5 * time.Second        // for one Do
	serverPorts       = 5                      // ports tried before a start fails
)

// serverBinaries are the servers that are looked for, the first of which is the one to
// have.
var serverBinaries = []string{"redis-server", "valkey-server"}

// Server is a real redis-server or valkey-server process on a loopback port of its own, without
// persistence unless its arguments ask for it: what it holds is lost by Kill. Make
// one with [StartServer], [StartTLSServer] or, outside tests, [LaunchServer].
//
// A Server is safe for concurrent use. Its methods fail the test, or panic when it
// came from LaunchServer, if the process does not do what they promise.
type Server struct {
	owner
	binary   string   // for process.Start; read-only
	args     []string // as given by the caller; read-only
	dir      string   // removed by Close; read-only
	port     int      // read-only once started
	busPort  int      // of a node of a cluster; read-only once started
	password string   // from --requirepass in args; read-only
	kind     kind     // read-only
	cert     *certificate

	mu       sync.Mutex       // guards the fields below; held while the process is replaced
	proc     *process.Process // the latest one; never nil once started
	announce int              // the port that a node tells others instead of its own; 0: its own
	closed   bool
}

// kind is what the server runs as.
type kind int

const (
	kindServer kind = iota
	kindSentinel
	kindNode // of a cluster
)

// owner is who is told that a fault could not be caused.
type owner struct {
	tb testing.TB // nil outside tests; read-only
}

func (o owner) helper() {
	if o.tb != nil {
		o.tb.Helper()
	}
}

// fatal fails the test, or panics where there is none.
func (o owner) fatal(err error) {
	if o.tb == nil {
		panic(err)
	}
	o.tb.Helper()
	o.tb.Fatal(err)
}

// errNoTLS is reported when the server was built without TLS.
var errNoTLS = errors.New("the server was built without TLS")

// errPort is reported for arguments that would have the server listen elsewhere than at Addr.
var errPort = errors.New("redialtest: the port is chosen for the server: Addr has it")

// StartServer starts a redis-server for one test and returns once it answers PING.
// It listens on a free port of 127.0.0.1, works in a directory of its own and does
// not persist. args are appended to the command line and win, for example
// "--requirepass", "secret" or "--maxclients", "10"; the port is not theirs to choose, see
// [Server.Addr]. tb.Cleanup kills it, frozen or not.
//
// The server is redis-server or else valkey-server, whichever is in PATH, or the one
// that REDIAL_SERVER in the environment names. Without one the test is skipped, or
// fails if the environment has REDIAL_REQUIRE_REDIS=1.
func StartServer(tb testing.TB, args ...string) *Server {
	tb.Helper()
	return startServer(tb, false, args)
}

// StartTLSServer is [StartServer] with TLS only, using a new self-signed
// certificate for 127.0.0.1 and localhost; see [Server.TLSConfig]. Clients need no
// certificate unless args ask for one. A server built without TLS counts as missing.
func StartTLSServer(tb testing.TB, args ...string) *Server {
	tb.Helper()
	return startServer(tb, true, args)
}

func startServer(tb testing.TB, useTLS bool, args []string) *Server {
	tb.Helper()
	return start(tb, func() (*Server, error) { return launchServer(tb, useTLS, args) })
}

// start makes what launch does for a test, or skips or fails it.
func start[T io.Closer](tb testing.TB, launch func() (T, error)) T {
	tb.Helper()
	s, err := launch()
	if err == nil {
		tb.Cleanup(func() { _ = s.Close() })
		return s
	}
	missing := errors.Is(err, exec.ErrNotFound) || errors.Is(err, errNoTLS)
	if missing && os.Getenv(requireRedis) != "1" {
		Skip(tb, fmt.Sprintf("needs a real server: %v (set %s=1 to fail instead)", err, requireRedis))
	}
	tb.Fatal(err)
	return s
}

// LaunchServer is [StartServer] for a program: the caller must Close the server.
// The error matches exec.ErrNotFound if there is no server.
func LaunchServer(args ...string) (*Server, error) {
	return launchServer(nil, false, args)
}

func launchServer(tb testing.TB, useTLS bool, args []string) (*Server, error) {
	s, err := newServer(tb, args)
	if err != nil {
		return nil, err
	}
	if useTLS {
		if s.cert, err = newCertificate(s.dir); err != nil {
			_ = s.Close()
			return nil, fmt.Errorf("redialtest: certificate: %w", err)
		}
	}
	return s.launch()
}

// newServer makes a server that does not run yet. It has a directory.
func newServer(tb testing.TB, args []string) (*Server, error) {
	if slices.Contains(args, "--port") {
		return nil, errPort
	}
	binary, err := findServer()
	if err != nil {
		return nil, fmt.Errorf("redialtest: %w", err)
	}
	dir, err := os.MkdirTemp("", "redialtest-")
	if err != nil {
		return nil, fmt.Errorf("redialtest: %w", err)
	}
	s := &Server{owner: owner{tb}, binary: binary, args: args, dir: dir}
	for i, arg := range args {
		if arg == "--requirepass" && i+1 < len(args) {
			s.password = args[i+1]
		}
	}
	return s, nil
}

// findServer returns what process.Start takes for the server that is to be run.
func findServer() (string, error) {
	if named := os.Getenv(serverVariable); strings.HasPrefix(named, process.Host) {
		return named, nil
	} else if named != "" {
		return exec.LookPath(named)
	}
	var missing error
	for _, name := range serverBinaries {
		binary, err := exec.LookPath(name)
		if err == nil {
			return binary, nil
		}
		missing = cmp.Or(missing, err)
	}
	return "", missing
}

// launch runs the server for the first time, on a free port.
func (s *Server) launch() (_ *Server, err error) {
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	// Between choosing a port and the server's bind another process may take it.
	for range serverPorts {
		if s.port, err = freePort(); err != nil {
			return nil, fmt.Errorf("redialtest: %w", err)
		}
		if err = s.exec(); err != nil {
			return nil, err
		}
		if err = s.waitReady(s.proc); err == nil {
			return s, nil
		}
		s.proc.Kill()
		log := s.proc.Log()
		if s.cert != nil && strings.Contains(log, "Bad directive") && strings.Contains(log, "tls-") {
			return nil, fmt.Errorf("redialtest: %w", errNoTLS)
		}
		if !strings.Contains(log, "in use") { // "Address already in use", bind failed
			return nil, err
		}
	}
	return nil, err
}

// freePort returns a loopback port that nobody listens on at the moment.
func freePort() (int, error) {
	ln, err := listenTCP("127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// Addr returns the server's "host:port". It stays the same over Kill and Start.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// TLSConfig returns a new client configuration that trusts this server, or nil if
// the server is a plain one.
func (s *Server) TLSConfig() *tls.Config {
	if s.cert == nil {
		return nil
	}
	return s.cert.client.Clone()
}

// PID returns the process ID of the latest run of the server.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc.PID()
}

// Kill sends SIGKILL and returns when the process is gone: its sockets are closed
// by the kernel and new dials are refused. A frozen server dies too. Killing a
// dead server does nothing.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc.Kill()
}

// Start starts the server again, empty unless it persists, on the same port and
// returns once it answers PING. A server that still runs is left as it is; one that is
// frozen needs [Server.Thaw], and Start waits for its answer in vain.
func (s *Server) Start() {
	s.helper()
	s.restart(true)
}

// LaunchOnly is [Server.Start] without the wait: it returns right after exec, when
// the server still refuses dials.
func (s *Server) LaunchOnly() {
	s.helper()
	s.restart(false)
}

func (s *Server) restart(wait bool) {
	s.helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	giveUp := time.Now().Add(serverReadyWithin)
	for {
		var err error
		if !s.proc.Running() {
			err = s.exec()
		}
		if err == nil && wait {
			err = s.waitReady(s.proc)
		}
		if err == nil {
			return
		}
		// The port may be taken for a moment; anything else is fatal.
		if s.proc.Running() || !strings.Contains(s.proc.Log(), "in use") || time.Now().After(giveUp) {
			s.fatal(err)
			return
		}
	}
}

// Freeze stops the process by SIGSTOP: the kernel goes on accepting connections
// and bytes, nobody answers. It returns when the process has stopped. On systems
// without SIGSTOP it skips the test.
func (s *Server) Freeze() {
	s.helper()
	s.signal("Freeze", (*process.Process).Stop)
}

// Thaw continues a frozen process by SIGCONT: it executes what arrived meanwhile.
func (s *Server) Thaw() {
	s.helper()
	s.signal("Thaw", (*process.Process).Continue)
}

func (s *Server) signal(name string, send func(*process.Process) error) {
	s.helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.proc.Running() {
		s.fatal(fmt.Errorf("redialtest: %s: the server is not running", name))
		return
	}
	err := send(s.proc)
	if errors.Is(err, errors.ErrUnsupported) && s.tb != nil {
		Skip(s.tb, runtime.GOOS, "has no SIGSTOP")
	}
	if err != nil {
		s.fatal(fmt.Errorf("redialtest: %s: %w", name, err))
	}
}

// Do runs one command on a connection of its own, past any proxy and without
// retries, and returns the reply: nil for a null, otherwise what go-redis makes of
// it (int64, string, []any, map[any]any, ...). Any other error, or no answer in 5 s,
// is fatal.
func (s *Server) Do(args ...any) any {
	s.helper()
	reply, err := s.do(args...)
	if err != nil {
		s.fatal(err)
	}
	return reply
}

func (s *Server) do(args ...any) (any, error) {
	rdb := redis.NewClient(&redis.Options{
		Addr:                     s.Addr(),
		Password:                 s.password,
		TLSConfig:                s.TLSConfig(),
		MaxRetries:               -1,
		PoolSize:                 1,
		DialerRetries:            1,
		ContextTimeoutEnabled:    true,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	defer func() { _ = rdb.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), serverDoWithin)
	defer cancel()
	reply, err := rdb.Do(ctx, args...).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		name := ""
		if len(args) > 0 {
			name = fmt.Sprint(args[0])
		}
		return nil, fmt.Errorf("redialtest: Do(%s): %w", name, err)
	}
	return reply, nil
}

// Close kills the process and removes its directory. It is idempotent. Servers of
// a test are closed by its Cleanup.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.proc != nil {
		s.proc.Kill()
	}
	return os.RemoveAll(s.dir)
}

// running tells whether the process exists, be it frozen.
func (s *Server) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc.Running()
}

// exec starts a process and makes it the latest. Caller holds mu or owns s alone.
func (s *Server) exec() error {
	args := []string{
		"--bind", "127.0.0.1",
		"--protected-mode", "no",
		"--dir", s.dir,
	}
	port := strconv.Itoa(s.port)
	switch {
	case s.kind == kindSentinel:
		args = append([]string{filepath.Join(s.dir, sentinelFile), "--sentinel"}, append(args, "--port", port)...)
	case s.cert == nil:
		args = append(args, "--save", "", "--appendonly", "no", "--port", port)
	default:
		args = append(args, "--save", "", "--appendonly", "no", "--port", "0", "--tls-port", port,
			"--tls-cert-file", s.cert.certFile, "--tls-key-file", s.cert.keyFile,
			"--tls-ca-cert-file", s.cert.certFile, "--tls-auth-clients", "no")
	}
	if s.kind == kindNode {
		args = append(args, "--cluster-port", strconv.Itoa(s.busPort), "--cluster-announce-port", strconv.Itoa(s.announce))
	}
	proc, err := process.Start(s.binary, s.dir, append(args, s.args...)...)
	if err != nil {
		return fmt.Errorf("redialtest: %w", err)
	}
	s.proc = proc
	return nil
}

// waitReady returns when p answers PING, and with an error that quotes its log if
// it exits first or does not answer in time.
func (s *Server) waitReady(p *process.Process) error {
	timeout := time.NewTimer(serverReadyWithin)
	defer timeout.Stop()
	for {
		err := s.ping(p.PID())
		if err == nil && p.Running() {
			return nil
		}
		select {
		case <-p.Exited():
			return fmt.Errorf("redialtest: %s exited at start: %s", s.binary, p.Log())
		case <-timeout.C:
			return fmt.Errorf("redialtest: %s on %s does not answer PING within %v: %w: %s",
				s.binary, s.Addr(), serverReadyWithin, err, p.Log())
		case <-time.After(serverPoll):
		}
	}
}

// ping succeeds if the server at Addr is the process pid and answers PING.
func (s *Server) ping(pid int) error {
	var conn net.Conn
	var err error
	dialer := &net.Dialer{Timeout: serverPingWithin}
	if s.cert == nil {
		conn, err = dialer.Dial("tcp", s.Addr())
	} else {
		conn, err = tls.DialWithDialer(dialer, "tcp", s.Addr(), s.TLSConfig())
	}
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(serverPingWithin))
	if s.password != "" {
		_, err = fmt.Fprintf(conn, "*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n", len(s.password), s.password)
		if err != nil {
			return err
		}
	}
	// INFO tells whose answer it is: another process may have taken the port.
	if _, err = io.WriteString(conn, "INFO server\r\nPING\r\n"); err != nil {
		return err
	}
	replies := bufio.NewScanner(conn)
	for replies.Scan() {
		line := strings.TrimSpace(replies.Text())
		if id, ok := strings.CutPrefix(line, "process_id:"); ok && id != strconv.Itoa(pid) {
			return fmt.Errorf("another server listens on %s", s.Addr())
		}
		if line == "+PONG" || strings.HasPrefix(line, "-NOAUTH") {
			return nil
		}
		if strings.HasPrefix(line, "-LOADING") {
			return errors.New(line)
		}
	}
	if err := replies.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}
