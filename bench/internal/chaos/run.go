package chaos

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/testbed"
	"github.com/redial-go/redial/redialtest"
	"github.com/redis/go-redis/v9"
)

// Window is a time in which nothing could be answered: From is when the fault was
// begun and Sure when it had taken effect.
type Window struct{ From, Sure, To time.Time }

// Run is what one run of a scenario with one client measured.
type Run struct {
	Values map[Key]float64
	// Number is which run of the scenario it was, from 0.
	Number int
	// Censored holds times that were still running when the run ended.
	Censored map[Key]bool
	// Doubts say what did not happen as it should have: faults that took no
	// effect, a load that was late. The values mean nothing then.
	Doubts []string
	// Errors counts what the client's calls failed with, numbers left out.
	Errors map[string]int
	// Result, Faults and Healed are the raw material of a timeline.
	Result *Result
	Faults []Window
	Healed time.Time
}

// stage is what a scenario plays on: one client with a server of its own.
type stage struct {
	quick  bool
	chance *rand.Rand // the same for all clients in the same run of a scenario
	server *redialtest.Server
	target string // the address at which clients are served
	proxy  *redialtest.Proxy
	// primary is where the data is in the end.
	primary *redialtest.Server
	client  string // the address it dials
	// sentinel names that address to a client that asks; empty: none does.
	sentinel string
	// probe is an address that tells whether there is a way to the server; probeTLS is
	// nil for a plain one.
	probe    string
	probeTLS *tls.Config
	relay    *testbed.Relay     // between proxy and server, of scenarios that have one
	say      func(string) error // says a word to the child

	faults []Window
	healed time.Time // when the last fault was over
	doubts []string
}

// expect records a doubt unless ok: every fault must be seen to have happened.
func (st *stage) expect(ok bool, format string, args ...any) {
	if !ok {
		st.doubts = append(st.doubts, fmt.Sprintf(format, args...))
	}
}

// pick chooses between the lengths of a full and of a quick run.
func (st *stage) pick(full, quick time.Duration) time.Duration {
	if st.quick {
		return quick
	}
	return full
}

// lasting is pick for what nobody's own time-out shall end together with: it is up to
// a sixth shorter or longer.
func (st *stage) lasting(full, quick time.Duration) time.Duration {
	d := st.pick(full, quick)
	return d + time.Duration((2*st.chance.Float64()-1)*float64(d)/jitter)
}

// jitter is the part of a length by which it varies.
const jitter = 6

// pong asks once whether there is a way to the server.
func (st *stage) pong() error { return testbed.PongTLS(st.probe, st.probeTLS) }

// awaitPong waits until there is one.
func (st *stage) awaitPong() (time.Time, error) { return testbed.AwaitPongTLS(st.probe, st.probeTLS) }

// outage records a fault. One that cannot be told from its end, such as a reset,
// is sure only then.
func (st *stage) outage(from, sure, to time.Time) {
	st.faults = append(st.faults, Window{from, sure, to})
	st.healed = to
}

// runWithin bounds one run: a child that hangs is killed.
const runWithin = 2 * time.Minute

// comebackWithin is how long redial may take to be back in a quick run, on however
// slow a machine.
const comebackWithin = 15 * time.Second

// play is how a scenario is played.
type play struct {
	Quick bool
	Seed  uint64
	Run   int
}

// chance returns what varies the lengths of faults. It differs from run to run and
// from scenario to scenario, and is the same for all clients and dialers.
func (p play) chance(scenario string) *rand.Rand {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, scenario, p.Run) // cannot fail
	return rand.New(rand.NewPCG(p.Seed, h.Sum64()))
}

// perform plays a scenario once with one client.
func (s *Scenario) perform(ctx context.Context, kind client.Kind, p play) (run *Run, err error) {
	ctx, cancel := context.WithTimeout(ctx, runWithin)
	defer cancel()
	st := &stage{quick: p.Quick, chance: p.chance(s.Name)}
	j := job{Client: kind.Name, Plan: s.Plan, Cold: s.Cold, Own: s.Dialer == OwnDialer}
	if p.Quick && kind.Name == client.RedialName {
		j.Patience = comebackWithin // it is the one that is held to come back
	}
	var closers []func() error
	defer func() {
		for _, c := range slices.Backward(closers) {
			err = errors.Join(err, c())
		}
	}()
	var target string
	switch {
	case s.TLS:
		server, err := testbed.LaunchTLS()
		if err != nil {
			return nil, err
		}
		st.server, target, j.Roots = server.Server, server.TLSAddr, server.Roots
		st.probeTLS = server.Config
	default:
		server, err := redialtest.LaunchServer(s.ServerArgs...)
		if err != nil {
			return nil, err
		}
		st.server, target = server, server.Addr()
	}
	closers = append(closers, st.server.Close)
	st.primary, st.target = st.server, target
	if s.Direct {
		st.client = target
	} else {
		st.proxy, err = redialtest.StartProxy("127.0.0.1:0", target)
		if err != nil {
			return nil, err
		}
		closers = append(closers, st.proxy.Close)
		st.client = st.proxy.Addr()
	}
	st.probe = st.client
	if s.Prepare != nil {
		closer, err := s.Prepare(st)
		if err != nil {
			return nil, err
		}
		closers = append(closers, closer)
	}
	j.Addr = st.client
	if s.Dialer == FailoverDialer {
		f, err := testbed.LaunchSentinel(st.client)
		if err != nil {
			return nil, err
		}
		closers = append(closers, f.Close)
		st.sentinel, j.Sentinel = f.Addr, f.Addr
	}
	var pub *publisher
	if s.PubSub {
		j.Topic = topic
		pub = startPublisher(st.server.Addr())
		closers = append(closers, pub.close)
	}

	c, err := startChild(ctx, j)
	if err != nil {
		return nil, err
	}
	closers = append(closers, c.Close)
	st.say = func(word string) error { return c.say(word, time.Now()) }
	if !s.Idle {
		if err := c.say(sayLoad, time.Now()); err != nil {
			return nil, err
		}
		time.Sleep(st.pick(s.Before, min(s.Before, time.Second)))
	}
	if err := s.Fault(st); err != nil {
		return nil, err
	}
	if s.Idle {
		if err := c.say(sayLoad, time.Now()); err != nil {
			return nil, err
		}
	}
	time.Sleep(s.after(p.Quick))
	if err := c.say(sayStop, st.healed); err != nil {
		return nil, err
	}
	result, err := c.result()
	if err != nil {
		return nil, err
	}
	m := material{result: result, faults: st.faults, healed: st.healed}
	if s.PubSub {
		m.published = pub.stop()
	} else if m.executed, err = executions(st.primary.Addr(), result.Calls); err != nil {
		return nil, err
	}
	if s.Plan.Surge.OneIn > 0 {
		var busy time.Duration
		if m.scripts, busy, err = scripts(st.server); err != nil {
			return nil, err
		}
		st.expect(busy >= time.Duration(m.scripts)*s.Plan.Surge.Min, "%d scripts kept the server busy for %v only", m.scripts, busy)
	}
	run = &Run{Doubts: st.doubts, Errors: result.Errors, Result: result, Faults: st.faults, Healed: st.healed}
	run.Values, run.Censored = s.measure(m)
	run.Doubts = append(run.Doubts, s.doubt(m, p.Quick)...)
	return run, nil
}

// executions asks how often each counting call was executed, by its index.
func executions(addr string, calls []Record) (map[int]int, error) {
	var at []int
	var keys []string
	for i, c := range calls {
		if c.Key != "" {
			at, keys = append(at, i), append(keys, c.Key)
		}
	}
	counts, err := testbed.Counts(addr, keys)
	if err != nil {
		return nil, err
	}
	executed := make(map[int]int, len(at))
	for i, n := range counts {
		executed[at[i]] = n
	}
	return executed, nil
}

// scripts returns how many read-only scripts a server has executed, and for how long.
func scripts(server *redialtest.Server) (n int, busy time.Duration, err error) {
	text, ok := server.Do("INFO", "commandstats").(string)
	if !ok {
		return 0, 0, errors.New("chaos: INFO is no text")
	}
	_, rest, ok := strings.Cut(text, "cmdstat_eval_ro:calls=")
	if !ok {
		return 0, 0, nil // none
	}
	var us int64
	_, err = fmt.Sscanf(rest, "%d,usec=%d,", &n, &us)
	return n, time.Duration(us) * time.Microsecond, err
}

// child is the process of a client.
type child struct{ *testbed.Self }

// ChildFlag, as the only argument, makes the program run Child.
const ChildFlag = "-child"

// startChild returns when the client is ready.
func startChild(ctx context.Context, j job) (*child, error) {
	self, err := testbed.StartSelf(ctx, ChildFlag)
	if err != nil {
		return nil, err
	}
	c := &child{self}
	err = json.NewEncoder(c.In).Encode(j)
	if err == nil {
		var m message
		m, err = c.hear()
		if err == nil && !m.Ready {
			err = fmt.Errorf("chaos: child of %s is not ready", j.Client)
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *child) say(word string, at time.Time) error {
	_, err := fmt.Fprintln(c.In, word, at.UnixNano())
	return err
}

func (c *child) hear() (m message, err error) {
	if err := c.Out.Decode(&m); err != nil {
		return m, fmt.Errorf("chaos: child: %w", err) // Close says what it wrote to stderr
	}
	if m.Error != "" {
		return m, fmt.Errorf("chaos: child: %s", m.Error)
	}
	return m, nil
}

func (c *child) result() (*Result, error) {
	m, err := c.hear()
	if err == nil && m.Result == nil {
		err = errors.New("chaos: child without a result")
	}
	return m.Result, err
}

const (
	topic        = "news"
	publishEvery = 10 * time.Millisecond
)

// publisher publishes the time, straight to the server.
type publisher struct {
	rdb  *redis.Client
	quit chan struct{}
	wg   sync.WaitGroup
	sent []time.Time
	err  error
	once sync.Once
}

func startPublisher(addr string) *publisher {
	p := &publisher{rdb: redis.NewClient(&redis.Options{Addr: addr}), quit: make(chan struct{})}
	p.wg.Go(func() {
		ticker := time.NewTicker(publishEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				now := time.Now()
				if err := p.rdb.Publish(context.Background(), topic, now.UnixNano()).Err(); err != nil {
					p.err = cmp.Or(p.err, err)
					continue
				}
				p.sent = append(p.sent, now)
			case <-p.quit:
				return
			}
		}
	})
	return p
}

// stop ends publishing and returns when each message was sent.
func (p *publisher) stop() []time.Time {
	p.once.Do(func() { close(p.quit) })
	p.wg.Wait()
	return p.sent
}

func (p *publisher) close() error {
	p.stop()
	return errors.Join(p.err, p.rdb.Close())
}
