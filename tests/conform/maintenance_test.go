package conform

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/redial-go/redial/internal/testkit/pools"
	"github.com/redial-go/redial/redialtest"
)

// maintenance is how the servers of a world answer CLIENT MAINT_NOTIFICATIONS, and what
// each of their connections is asked.
type maintenance struct {
	answer func(nth int) redialtest.Action // to a server's nth; nil: yes
	hello  redialtest.Action               // the answer to HELLO; "": as it is
	held   func(args []string)             // is called with each command that is no set-up

	mu    sync.Mutex
	asked map[string]int      // how often, by address
	seen  map[string][]string // what a connection was asked
	order []string            // the connections with commands of the caller
	warm  chan struct{}       // closed when redial has set up a connection by itself; nil afterwards
}

const (
	yes redialtest.Action = "yes"
	no  redialtest.Action = "no"
)

func (m *maintenance) watch(w *world) {
	m.asked, m.seen, m.order, m.warm = make(map[string]int), make(map[string][]string), nil, make(chan struct{})
	for addr, s := range w.servers {
		s.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
			action := m.command(addr, fmt.Sprint(addr, " ", c.ID()), args)
			if action == redialtest.Handle {
				action = s.handle(c, args)
			}
			return action
		})
	}
}

func (m *maintenance) command(addr, conn string, args []string) redialtest.Action {
	name := strings.ToLower(args[0])
	said := strings.ToLower(strings.Join(args[:min(len(args), 5)], " "))
	if strings.HasPrefix(said, "client setinfo") {
		said = "client setinfo"
	}
	if !isHousekeeping(name) && m.held != nil {
		m.held(args)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch name {
	case "ping":
		if slices.Contains(m.seen[conn], "client setinfo") && m.warm != nil {
			close(m.warm)
			m.warm = nil
		}
		return redialtest.Handle
	case "cluster", "command": // at times of their own
		return redialtest.Handle
	}
	if !isHousekeeping(name) && !slices.Contains(m.order, conn) {
		m.order = append(m.order, conn)
	}
	m.seen[conn] = append(m.seen[conn], said)
	switch {
	case name == "hello" && m.hello != "":
		return m.hello
	case strings.HasPrefix(said, "client maint_notifications"):
		m.asked[addr]++
		answer := yes
		if m.answer != nil {
			answer = m.answer(m.asked[addr])
		}
		switch answer {
		case yes:
			return redialtest.Reply("+OK\r\n")
		case no:
			return redialtest.Reply("-ERR unknown subcommand 'MAINT_NOTIFICATIONS'\r\n")
		}
		return answer
	}
	return redialtest.Handle
}

// tell notes what connections that a caller's command has used were asked. redial's own,
// for its heartbeat, is none of them.
func (m *maintenance) tell(w *world) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, conn := range m.order {
		addr, _, _ := strings.Cut(conn, " ")
		if addr == sentinelAddr {
			continue // which it asks and listens to in its own way
		}
		w.note("connections of "+addr, "%s", strings.Join(m.seen[conn], ", "))
	}
}

// stats are those of the pool of the client, or of the node of {a}: which of the nodes
// tells the topology is chance.
func (w *world) stats() (*redis.PoolStats, error) {
	c, ok := w.rdb.(interface {
		MasterForKey(context.Context, string) (*redis.Client, error)
	})
	if !ok {
		return w.rdb.PoolStats(), nil
	}
	node, err := c.MasterForKey(w.ctx, "{a}")
	if err != nil {
		return nil, err
	}
	return node.PoolStats(), nil
}

// pool notes how many connections there are.
func (w *world) pool(when string) {
	s, err := w.stats()
	if err != nil {
		w.say("%s: %s", when, describe(err))
		return
	}
	w.say("%s: %d connections, %d idle", when, s.TotalConns, s.IdleConns)
}

var maintenanceModes = []maintnotifications.Mode{maintnotifications.ModeDisabled, maintnotifications.ModeAuto, maintnotifications.ModeEnabled, "default"}

func withMaintenance(mode maintnotifications.Mode, protocol int, m *maintenance) knobs {
	var conf *maintnotifications.Config
	if mode != "default" {
		conf = &maintnotifications.Config{Mode: mode}
	}
	return knobs{
		protocol:  protocol,
		before:    m.watch,
		tune:      func(o *redis.Options) { o.MaintNotificationsConfig = conf },
		tuneNodes: func(o *redis.ClusterOptions) { o.MaintNotificationsConfig = conf },
	}
}

// A server is asked for maintenance notifications on the same connections, and what it
// answers has the same consequences for all of them.
func TestConform_E6_Maintenance(t *testing.T) {
	for name, m := range map[string]*maintenance{
		"all agree":      {},
		"none agrees":    {answer: func(int) redialtest.Action { return no }},
		"the first does": {answer: func(nth int) redialtest.Action { return map[bool]redialtest.Action{true: yes, false: no}[nth == 1] }},
		"the last does":  {answer: func(nth int) redialtest.Action { return map[bool]redialtest.Action{true: no, false: yes}[nth == 1] }},
		"no right":       {answer: func(int) redialtest.Action { return redialtest.Reply("-NOPERM this user has no permissions\r\n") }},
		"no HELLO":       {hello: redialtest.Reply("-ERR unknown command 'HELLO'\r\n")},
	} {
		for _, mode := range maintenanceModes {
			for _, protocol := range []int{2, 3} {
				t.Run(fmt.Sprintf("%s, mode %s, RESP%d", name, mode, protocol), func(t *testing.T) {
					kinds := []kind{aClient, aCluster}
					if mode == maintnotifications.ModeEnabled && strings.HasPrefix(name, "the ") {
						kinds = kinds[:1] // the first to be asked may be the one that tells the topology
					}
					if mode == "default" {
						kinds = append(kinds, aFailover)
					}
					paired(t, kinds, withMaintenance(mode, protocol, m), func(w *world) {
						_, _ = w.stats() // go-redis knows the topology, too
						for range 2 {
							w.did(w.rdb.Get(w.ctx, "{a}k"))
						}
						w.pool("after calls")
						w.got("watch", w.rdb.Watch(w.ctx, func(*redis.Tx) error {
							w.did(w.rdb.Get(w.ctx, "{a}k"))
							w.pool("within a watch")
							return nil
						}, "{a}k"))
						w.pool("after a watch")
						w.did(w.rdb.Get(w.ctx, "{b}k"))
						w.batch(w.rdb, "pipeline", false, func(p redis.Pipeliner) { p.Get(w.ctx, "{a}k") })
						w.batch(w.rdb, "transaction", true, func(p redis.Pipeliner) { p.Get(w.ctx, "{a}k") })
						w.pool("at last")
						m.tell(w)
					})
				})
			}
		}
	}
}

// When one connection is refused them, others that have them stay until they are returned.
func TestConform_E6_DowngradeSparesConnectionsInUse(t *testing.T) {
	m := &maintenance{answer: func(nth int) redialtest.Action {
		if nth == 1 {
			return yes
		}
		return no
	}}
	paired(t, []kind{aClient, aCluster}, withMaintenance(maintnotifications.ModeAuto, 3, m), func(w *world) {
		w.ready()
		arrived, release := make(chan struct{}), make(chan struct{})
		m.held = func(args []string) {
			if args[1] == "{a}held" {
				close(arrived)
				<-release
			}
		}
		done := make(chan redis.Cmder)
		go func() { done <- w.rdb.Get(context.Background(), "{a}held") }()
		<-arrived
		w.did(w.rdb.Get(w.ctx, "{a}k"))
		w.pool("while one waits")
		close(release)
		w.did(<-done)
		w.pool("when it has returned")
		w.did(w.rdb.Get(w.ctx, "{a}k"))
		w.pool("at last")
		m.tell(w)
	}, "while one waits: 2 connections, 1 idle", "when it has returned: 1 connections, 1 idle")
}

// Once they were refused, connections that take the place of others are not asked, whoever
// makes them.
func TestConform_E6_DowngradeOutlivesConnections(t *testing.T) {
	pools.NeedLook(t) // or given up connections stay in the pool, and no other is made in advance
	m := &maintenance{answer: func(int) redialtest.Action { return no }}
	paired(t, []kind{aClient, aCluster}, withMaintenance(maintnotifications.ModeAuto, 3, m), func(w *world) {
		w.ready()
		w.did(w.rdb.Get(w.ctx, "{a}k"))
		warm := m.warm
		if w.supervisor == nil {
			for _, s := range w.servers {
				s.CloseConns()
			}
			_ = w.rdb.Get(w.ctx, "{a}k").Err() // it does not know yet
		} else {
			w.supervisor.Reconnect("the test says so")
			select {
			case <-warm:
			case <-w.ctx.Done():
				w.say("no connection was made in advance")
			}
		}
		w.did(w.rdb.Get(w.ctx, "{a}k"))
		m.mu.Lock()
		defer m.mu.Unlock()
		addr, _, _ := strings.Cut(m.order[0], " ")
		w.say("asked %d times", m.asked[addr])
	})
}
