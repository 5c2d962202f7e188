package redialtest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

const (
	sentinelFile      = "sentinel.conf"
	sentinelDownAfter = "500"  // milliseconds without an answer until a server counts as down
	sentinelGivesUp   = "3000" // milliseconds a failover may take
)

// Failover is a primary with its replicas, watched over by sentinels, all of them
// real processes on loopback. Its sentinels take a server that does not answer for
// 500 ms for dead. Make one with [StartFailover] or, outside tests,
// [LaunchFailover].
type Failover struct {
	// Name is what the sentinels call the primary.
	Name string
	// Servers are the primary, as it was at the start, and its replicas.
	Servers []*Server
	// Sentinels watch over them.
	Sentinels []*Server

	owner
	all []*Server // what Close closes, whatever became of the lists above
}

// StartFailover starts a primary, its replicas, and sentinels of which a majority
// must agree, and returns when all know each other. args are appended to the command
// line of every server, not of the sentinels. It skips or fails the test like
// [StartServer].
func StartFailover(tb testing.TB, replicas, sentinels int, args ...string) *Failover {
	tb.Helper()
	return start(tb, func() (*Failover, error) { return launchFailover(tb, replicas, sentinels, args) })
}

// LaunchFailover is [StartFailover] for a program, as [LaunchServer] is StartServer:
// the caller must Close it.
func LaunchFailover(replicas, sentinels int, args ...string) (*Failover, error) {
	return launchFailover(nil, replicas, sentinels, args)
}

func launchFailover(tb testing.TB, replicas, sentinels int, args []string) (_ *Failover, err error) {
	f := &Failover{Name: "primary", owner: owner{tb}}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	args = append([]string{"--repl-diskless-sync-delay", "0"}, args...)
	primary, err := launchServer(tb, false, args)
	if err != nil {
		return nil, err
	}
	f.Servers, f.all = append(f.Servers, primary), append(f.all, primary)
	host, port, _ := net.SplitHostPort(primary.Addr())
	args = append([]string{"--replicaof", host + " " + port}, args...)
	for range replicas {
		s, err := launchServer(tb, false, args)
		if err != nil {
			return nil, err
		}
		f.Servers, f.all = append(f.Servers, s), append(f.all, s)
	}
	conf := fmt.Sprintf("sentinel monitor %[1]s %[2]s %[3]s %[4]d\n"+
		"sentinel down-after-milliseconds %[1]s "+sentinelDownAfter+"\n"+
		"sentinel failover-timeout %[1]s "+sentinelGivesUp+"\n",
		f.Name, host, port, sentinels/2+1)
	for range sentinels {
		s, err := launchSentinel(tb, conf)
		if err != nil {
			return nil, err
		}
		f.Sentinels, f.all = append(f.Sentinels, s), append(f.all, s)
	}
	return f, f.awaitComplete()
}

func launchSentinel(tb testing.TB, conf string) (*Server, error) {
	s, err := newServer(tb, nil)
	if err != nil {
		return nil, err
	}
	s.kind = kindSentinel
	if err := os.WriteFile(filepath.Join(s.dir, sentinelFile), []byte(conf), 0o600); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("redialtest: %w", err)
	}
	return s.launch()
}

// awaitComplete waits until the replicas follow and the sentinels know everybody.
func (f *Failover) awaitComplete() error {
	err := await("the replicas to follow their primary", func() (bool, error) {
		for _, s := range f.Servers[1:] {
			if ok, err := s.follows(); !ok || err != nil {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	replicas, others := strconv.Itoa(len(f.Servers)-1), strconv.Itoa(len(f.Sentinels)-1)
	return await("the sentinels to know each other and all replicas", func() (bool, error) {
		for _, s := range f.Sentinels {
			known, err := s.fields("SENTINEL", "MASTER", f.Name)
			if known["num-slaves"] != replicas || known["num-other-sentinels"] != others {
				return false, err
			}
		}
		return true, nil
	})
}

// SentinelAddrs returns the addresses of the sentinels.
func (f *Failover) SentinelAddrs() []string { return addrs(f.Sentinels) }

// Primary returns the server that the sentinel with the given number names as the
// primary. It fails the test when it names a server that is not part of f.
func (f *Failover) Primary(sentinel int) *Server {
	f.helper()
	named, _ := f.Sentinels[sentinel].Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", f.Name).([]any)
	if len(named) == 2 {
		for _, s := range f.Servers {
			if s.Addr() == net.JoinHostPort(fmt.Sprint(named[0]), fmt.Sprint(named[1])) {
				return s
			}
		}
	}
	f.fatal(fmt.Errorf("redialtest: sentinel %d names %v as the primary", sentinel, named))
	return nil
}

// Close kills every process and removes their directories. It is idempotent. What
// was started for a test is closed by its Cleanup.
func (f *Failover) Close() error { return closeAll(f.all) }
