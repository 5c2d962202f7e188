package redialtest

import (
	"errors"
	"fmt"
	"time"
)

const (
	deploymentsWithin = 30 * time.Second // until several servers have agreed on something
	deploymentPoll    = 20 * time.Millisecond
)

// await returns when done says so, or with the last error of done when that takes
// too long.
func await(what string, done func() (bool, error)) error {
	giveUp := time.Now().Add(deploymentsWithin)
	for {
		ok, err := done()
		if ok && err == nil {
			return nil
		}
		if time.Now().After(giveUp) {
			if err == nil {
				err = errors.New("not yet")
			}
			return fmt.Errorf("redialtest: waited %v in vain for %s: %w", deploymentsWithin, what, err)
		}
		time.Sleep(deploymentPoll) // nobody tells
	}
}

func addrs(servers []*Server) (list []string) {
	for _, s := range servers {
		list = append(list, s.Addr())
	}
	return list
}

func closeAll(servers []*Server) error {
	var all []error
	for _, s := range servers {
		all = append(all, s.Close())
	}
	return errors.Join(all...)
}

// fields runs a command whose reply is a list of names and values, or a map.
func (s *Server) fields(args ...any) (map[string]string, error) {
	reply, err := s.do(args...)
	fields := make(map[string]string)
	switch reply := reply.(type) {
	case []any:
		for i := 0; i+1 < len(reply); i += 2 {
			fields[fmt.Sprint(reply[i])] = fmt.Sprint(reply[i+1])
		}
	case map[any]any:
		for k, v := range reply {
			fields[fmt.Sprint(k)] = fmt.Sprint(v)
		}
	}
	return fields, err
}

// follows tells whether the server is a replica with a live link to its primary.
func (s *Server) follows() (bool, error) {
	reply, err := s.do("ROLE")
	role, _ := reply.([]any)
	return len(role) > 3 && role[0] == "slave" && role[3] == "connected", err
}
