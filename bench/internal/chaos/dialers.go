package chaos

import (
	"fmt"
	"slices"
	"strings"

	"github.com/redial-go/redial/bench/internal/client"
)

// Dialer is how clients get their connections.
type Dialer int

// The dialers. OwnDialer wraps net.Dialer and counts; the others leave dialing, and the
// handshake of TLS, to the library.
const (
	OwnDialer Dialer = iota
	DefaultDialer
	TLSDialer
	// FailoverDialer is the library's own, of a client that asks a sentinel where the
	// server is.
	FailoverDialer
)

// dialerNames are for the command line and for people.
var dialerNames = []struct{ name, title string }{
	OwnDialer:      {"own", "own dialer"},
	DefaultDialer:  {"default", "default dialer"},
	TLSDialer:      {"tls", "TLS"},
	FailoverDialer: {"sentinel", "failover client"},
}

// Dialers returns all of them.
func Dialers() []Dialer { return []Dialer{DefaultDialer, OwnDialer, TLSDialer, FailoverDialer} }

// FindDialers returns those of a comma-separated list of names.
func FindDialers(list string) (found []Dialer, err error) {
	for _, name := range strings.Split(list, ",") {
		i := slices.IndexFunc(Dialers(), func(d Dialer) bool { return d.Name() == name })
		if i < 0 {
			return nil, fmt.Errorf("chaos: unknown dialer %q", name)
		}
		found = append(found, Dialers()[i])
	}
	return found, nil
}

// Name is for the command line.
func (d Dialer) Name() string { return dialerNames[d].name }

// String is for people.
func (d Dialer) String() string { return dialerNames[d].title }

// FullName names the scenario and, if it was made by [Scenario.With], the dialer.
func (s *Scenario) FullName() string {
	if !s.compared {
		return s.Name
	}
	return s.Name + "/" + s.Dialer.Name()
}

// fits reports whether a client can play the scenario.
func (s *Scenario) fits(k client.Kind) bool { return s.Dialer != FailoverDialer || k.Failover }

// With returns the scenario as it is played to compare dialers: calls have the
// patience that lets them outlast what is left of an outage. It must be one for
// [Scenario.AnyDialer].
func (s *Scenario) With(d Dialer) *Scenario {
	if !s.AnyDialer {
		panic("chaos: " + s.Name + " is for one dialer")
	}
	v := *s
	v.Dialer, v.TLS, v.compared = d, d == TLSDialer, true
	v.Plan.Deadline = max(v.Plan.Deadline, patient)
	return &v
}
