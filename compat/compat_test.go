package compat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

func TestMain(m *testing.M) {
	logging.Disable() // what go-redis has to say of each failure would bury the rest
	os.Exit(redialtest.LeaksMain(m))
}

const (
	workers  = 4                       // for each client
	some     = 20                      // calls for each worker, before and after the outage
	pace     = 2 * time.Millisecond    // between two calls of a worker
	silence  = 50 * time.Millisecond   // before the kill: every worker has a command on the wire
	outage   = 2500 * time.Millisecond // longer than go-redis keeps trying, within redial's grace
	patience = 30 * time.Second        // for all of it
)

// startServer starts a server that keeps every acknowledged write over a kill -9:
// even without fsync it writes its log before it replies, and a slow disk must not
// pass for a slow client.
func startServer(t *testing.T) *redialtest.Server {
	t.Helper()
	return redialtest.StartServer(t, "--appendonly", "yes", "--appendfsync", "no")
}

// repeating allows redial to send any command a second time, for libraries whose
// locks and limits only get stricter by it.
func repeating(redis.Cmder) bool { return true }

// rider is a client whose calls go on while the server is killed and restarted.
type rider struct {
	name string
	rdb  redis.UniversalClient
	sits bool // it is measured and not waited for

	tally
}

// tally is what became of the calls of a rider.
type tally struct {
	made    int
	failed  int   // all but the unknown ones
	unknown int   // those that redial says may have run
	first   error // of the failed ones
	cut     int   // calls not over when redial was done
	slowest time.Duration
	again   int           // how many succeeded that began after the restart
	after   time.Duration // from the restart to the first of them
}

// bare returns a rider with a client of go-redis, to compare with.
func bare(t *testing.T, server *redialtest.Server) *rider {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	return &rider{name: "go-redis", rdb: rdb, sits: true}
}

// resilient returns a rider with a client of redial.
func resilient(t *testing.T, server *redialtest.Server, opts ...redial.Option) *rider {
	t.Helper()
	rdb := redial.NewClient(&redis.Options{Addr: server.Addr()}, opts...)
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
	return &rider{name: "redial", rdb: rdb}
}

// call is one call of a library.
type call struct {
	by           *rider
	begun, ended time.Time
	cut          bool // ended by the test, not by itself
	err          error
}

// ride has workers of every rider call work over and over. It kills the server with
// a call of each of them on the wire, starts it again, and returns when redial has
// got on and finished its calls. work must end with its context, which ends early
// only for those who are not waited for.
func ride(t *testing.T, server *redialtest.Server, work func(context.Context, *rider) error, riders ...*rider) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	measured, dismiss := context.WithCancel(ctx)
	defer dismiss()
	calls, stop := make(chan call), make(chan struct{})
	var wg sync.WaitGroup
	for _, r := range riders {
		ctx := ctx
		if r.sits {
			ctx = measured
		}
		for range workers {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					c := call{by: r, begun: time.Now()}
					c.err = work(ctx, r)
					c.ended, c.cut = time.Now(), ctx.Err() != nil
					calls <- c
					time.Sleep(pace)
				}
			})
		}
	}
	var back time.Time
	count := func(event <-chan time.Time, until func() bool) {
		for until == nil || !until() {
			select {
			case c, ok := <-calls:
				if !ok {
					return
				}
				c.by.add(c, back)
			case <-event:
				return
			case <-ctx.Done():
				return
			}
		}
	}
	every := func(enough func(*rider) bool) func() bool {
		return func() bool {
			return !slices.ContainsFunc(riders, func(r *rider) bool { return !enough(r) })
		}
	}

	count(nil, every(func(r *rider) bool { return r.made >= workers*some }))
	server.Freeze()
	count(time.After(silence), nil)
	server.Kill()
	count(time.After(outage), nil)
	server.Start()
	back = time.Now()
	count(nil, every(func(r *rider) bool { return r.sits || r.again >= workers*some }))

	close(stop)
	dismiss()
	go func() { wg.Wait(); close(calls) }()
	for c := range calls {
		c.by.add(c, back)
	}
	report(t, riders)
	require.NoError(t, ctx.Err(), "no progress")
}

func (s *tally) add(c call, back time.Time) {
	s.made++
	s.slowest = max(s.slowest, c.ended.Sub(c.begun))
	switch {
	case c.cut:
		s.cut++
	case errors.Is(c.err, redial.ErrOutcomeUnknown):
		s.unknown++
	case c.err != nil:
		s.failed++
		if s.first == nil {
			s.first = c.err
		}
	case !back.IsZero() && c.begun.After(back):
		if s.again++; s.again == 1 {
			s.after = c.ended.Sub(back)
		}
	}
}

// report logs a table of what became of the calls.
func report(t *testing.T, riders []*rider) {
	t.Helper()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nclient\tcalls\tfailed\tunknown\tcut off\tslowest\tback after\tfirst failure")
	for _, r := range riders {
		after := "-"
		if r.again > 0 {
			after = r.after.Round(time.Millisecond).String()
		}
		first := ""
		if r.first != nil {
			first = r.first.Error()
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%v\t%s\t%s\n",
			r.name, r.made, r.failed, r.unknown, r.cut, r.slowest.Round(time.Millisecond), after, first)
	}
	_ = w.Flush()
	t.Log(b.String())
}

// unharmed asserts that no call of a rider failed or was left open.
func unharmed(t *testing.T, r *rider) {
	t.Helper()
	assert.Zero(t, r.failed, "failed calls of %s; the first: %v", r.name, r.first)
	assert.Zero(t, r.unknown, "calls of %s with an unknown outcome", r.name)
}
