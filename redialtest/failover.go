package redialtest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

const (
	sentinelFile       = "sentinel.conf"
	deploymentsWithin  = 30 * time.Second // until a deployment is complete
	deploymentPoll     = 20 * time.Millisecond
	sentinelDownAfter  = "500"  // milliseconds without an answer until a server counts as down
	sentinelGivesUp    = "3000" // milliseconds a failover may take
	clusterNodeTimeout = "1000" // milliseconds without an answer until a node counts as failing
)

// Failover is a primary with its replicas, watched over by sentinels, all of them
// real processes of one test on loopback. Its sentinels take a server that does not
// answer for 500 ms for dead. Make one with [StartFailover].
type Failover struct {
	// Name is what the sentinels call the primary.
	Name string
	// Servers are the primary, as it was at the start, and its replicas.
	Servers []*Server
	// Sentinels watch over them.
	Sentinels []*Server

	tb testing.TB
}

// StartFailover starts a primary, its replicas, and sentinels of which a majority
// must agree, and returns when all know each other. args are appended to the command
// line of every server, not of the sentinels. It skips or fails the test like
// [StartServer].
func StartFailover(tb testing.TB, replicas, sentinels int, args ...string) *Failover {
	tb.Helper()
	f := &Failover{Name: "primary", tb: tb}
	primary := StartServer(tb, append([]string{"--repl-diskless-sync-delay", "0"}, args...)...)
	f.Servers = append(f.Servers, primary)
	host, port, _ := net.SplitHostPort(primary.Addr())
	for range replicas {
		f.Servers = append(f.Servers, StartServer(tb, append([]string{
			"--repl-diskless-sync-delay", "0", "--replicaof", host + " " + port}, args...)...))
	}
	conf := fmt.Sprintf("sentinel monitor %[1]s %[2]s %[3]s %[4]d\n"+
		"sentinel down-after-milliseconds %[1]s "+sentinelDownAfter+"\n"+
		"sentinel failover-timeout %[1]s "+sentinelGivesUp+"\n",
		f.Name, host, port, sentinels/2+1)
	for range sentinels {
		f.Sentinels = append(f.Sentinels, start(tb, func() (*Server, error) {
			s, err := newServer(tb, nil)
			if err != nil {
				return nil, err
			}
			s.sentinel = true
			if err := os.WriteFile(filepath.Join(s.dir, sentinelFile), []byte(conf), 0o600); err != nil {
				_ = s.Close()
				return nil, fmt.Errorf("redialtest: %w", err)
			}
			return s.launch()
		}))
	}
	await(tb, "the replicas to follow their primary", func() bool {
		for _, s := range f.Servers[1:] {
			if role, ok := s.Do("ROLE").([]any); !ok || len(role) < 4 || role[3] != "connected" {
				return false
			}
		}
		return true
	})
	await(tb, "the sentinels to know each other and all replicas", func() bool {
		for _, s := range f.Sentinels {
			known := s.fields("SENTINEL", "MASTER", f.Name)
			if known["num-slaves"] != strconv.Itoa(replicas) || known["num-other-sentinels"] != strconv.Itoa(sentinels-1) {
				return false
			}
		}
		return true
	})
	return f
}

// SentinelAddrs returns the addresses of the sentinels.
func (f *Failover) SentinelAddrs() []string { return addrs(f.Sentinels) }

// Primary returns the server that the sentinel with the given number names as the
// primary. It fails the test when it names a server that is not part of f.
func (f *Failover) Primary(sentinel int) *Server {
	f.tb.Helper()
	named, _ := f.Sentinels[sentinel].Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", f.Name).([]any)
	if len(named) == 2 {
		for _, s := range f.Servers {
			if s.Addr() == net.JoinHostPort(fmt.Sprint(named[0]), fmt.Sprint(named[1])) {
				return s
			}
		}
	}
	f.tb.Fatalf("redialtest: sentinel %d names %v as the primary", sentinel, named)
	return nil
}

// fields runs a command whose reply is a list of names and values, or a map.
func (s *Server) fields(args ...any) map[string]string {
	fields := make(map[string]string)
	switch reply := s.Do(args...).(type) {
	case []any:
		for i := 0; i+1 < len(reply); i += 2 {
			fields[fmt.Sprint(reply[i])] = fmt.Sprint(reply[i+1])
		}
	case map[any]any:
		for k, v := range reply {
			fields[fmt.Sprint(k)] = fmt.Sprint(v)
		}
	}
	return fields
}

func addrs(servers []*Server) (list []string) {
	for _, s := range servers {
		list = append(list, s.Addr())
	}
	return list
}

// await waits until done, or fails the test.
func await(tb testing.TB, what string, done func() bool) {
	tb.Helper()
	for giveUp := time.Now().Add(deploymentsWithin); !done(); {
		if time.Now().After(giveUp) {
			tb.Fatalf("redialtest: waited %v in vain for %s", deploymentsWithin, what)
		}
		time.Sleep(deploymentPoll) // nobody tells
	}
}
