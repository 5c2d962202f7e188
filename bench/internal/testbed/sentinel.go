// A sentinel that names any address as that of the primary.

package testbed

import (
	"errors"
	"fmt"
	"net"

	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/redialtest"
)

// Sentinel is a real one, which calls the primary [client.SentinelMaster]. It knows of no replica, so it has nothing to fail over to.
type Sentinel struct {
	Addr string

	failover *redialtest.Failover
}

// LaunchSentinel starts one that watches over what answers at an address, a proxy, say.
func LaunchSentinel(watched string) (*Sentinel, error) {
	host, port, err := net.SplitHostPort(watched)
	if err != nil {
		return nil, err
	}
	f, err := redialtest.LaunchFailover(0, 1)
	if err != nil {
		return nil, err
	}
	s := &Sentinel{f.Sentinels[0].Addr(), f}
	for _, command := range [][]any{
		{"SENTINEL", "REMOVE", f.Name},
		{"SENTINEL", "MONITOR", client.SentinelMaster, host, port, "1"},
	} {
		if reply := f.Sentinels[0].Do(command...); reply != "OK" {
			return nil, errors.Join(fmt.Errorf("testbed: %v: %v", command, reply), s.Close())
		}
	}
	return s, nil
}

// Close ends it.
func (s *Sentinel) Close() error { return s.failover.Close() }
