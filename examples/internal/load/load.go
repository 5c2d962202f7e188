// Package load puts load on a client and keeps the books, for the programs in
// examples: what ran in the end is compared with what was told.
package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/examples/internal/narrate"
)

// Load has one goroutine for each of its keys send INCR after INCR.
type Load struct {
	rdb      redis.UniversalClient
	stop     context.CancelFunc
	running  sync.WaitGroup
	counters []*counter // read-only; what they hold is guarded by mu

	mu      sync.Mutex     // of no use any more once the load was stopped
	lap     Lap            // guarded by mu
	slowest time.Duration  // guarded by mu
	killed  time.Time      // guarded by mu; zero: the server was not
	back    chan time.Time // guarded by mu; nil: nobody waits for a success
}

// Lap is what became of the commands of a while.
type Lap struct {
	Done, Failed, Unknown int64 // failed: did not run; unknown: may have run
	Slowest               time.Duration
}

// Start begins with keys that nobody else writes and that do not exist. The end of ctx
// cuts commands short, Stop does not.
func Start(ctx context.Context, rdb redis.UniversalClient, keys []string) *Load {
	l := &Load{rdb: rdb}
	until, stop := context.WithCancel(ctx)
	l.stop = stop
	for _, key := range keys {
		c := &counter{key: key}
		l.counters = append(l.counters, c)
		l.running.Go(func() {
			for until.Err() == nil {
				began := time.Now()
				n, err := rdb.Incr(ctx, key).Result()
				l.note(c, began, n, err)
				rest := 2 * time.Millisecond
				if err != nil {
					rest = 20 * time.Millisecond // do not spin
				}
				narrate.Pause(until, rest)
			}
		})
	}
	return l
}

// Stop ends the load when the commands under way have returned.
func (l *Load) Stop() {
	l.stop()
	l.running.Wait()
}

// note takes down what an INCR came to.
func (l *Load) note(c *counter, began time.Time, n int64, err error) {
	ended := time.Now()
	if back := l.count(c, began, ended, n, err); back != nil {
		back <- ended
	}
}

// count returns where a success is waited for that this one is.
func (l *Load) count(c *counter, began, ended time.Time, n int64, err error) chan<- time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lap.Slowest = max(l.lap.Slowest, ended.Sub(began))
	l.slowest = max(l.slowest, ended.Sub(began))
	switch {
	case err == nil:
		l.lap.Done++
		c.acked++
		c.least++
		c.holds(n, !l.killed.IsZero())
		if began.After(l.killed) {
			back := l.back
			l.back = nil
			return back
		}
	case redial.SafeToRetry(err):
		l.lap.Failed++
		c.failed++
	default:
		l.lap.Unknown++
		c.unknown++
		c.open++
	}
	return nil
}

// Lap returns what happened since the last call.
func (l *Load) Lap() Lap {
	l.mu.Lock()
	defer l.mu.Unlock()
	lap := l.lap
	l.lap = Lap{}
	return lap
}

// Killed notes that the server of all keys is dead since the given time. Acknowledged
// writes that are missing from now on were lost by it. When a command that was sent
// later succeeds, the channel tells when.
func (l *Load) Killed(at time.Time) <-chan time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	back := make(chan time.Time, 1)
	l.killed, l.back = at, back
	return back
}

// Check compares all counters with what was told. The load must have been stopped.
func (l *Load) Check(ctx context.Context) (Proof, error) {
	p := Proof{Slowest: l.slowest}
	for _, c := range l.counters {
		n, err := l.rdb.Get(ctx, c.key).Int64()
		if err != nil && !errors.Is(err, redis.Nil) {
			return p, fmt.Errorf("the counters could not be checked: %w", err)
		}
		c.holds(n, !l.killed.IsZero())
		p.Add(Proof{
			Acked: c.acked, Failed: c.failed, Unknown: c.unknown, Ran: n,
			Doubled: c.doubled, Lost: c.lost, LostByServer: c.lostByServer,
		})
	}
	return p, nil
}

// counter is what one goroutine was told of its key. Every value that the server
// returns must be at least least, and at most open more.
type counter struct {
	key                    string
	acked, failed, unknown int64

	least int64 // the last value returned, and what was acknowledged since
	open  int64 // INCRs of unknown outcome that are not part of least

	doubled, lost, lostByServer int64
}

// holds compares the value that the server returned with what it has to be.
func (c *counter) holds(n int64, killed bool) {
	switch missing, extra := c.least-n, n-c.least; {
	case missing > 0 && killed:
		c.lostByServer += missing
	case missing > 0:
		c.lost += missing
	case extra > c.open:
		c.doubled += extra - c.open
		c.open = 0
	default:
		c.open -= extra
	}
	c.least = n
}

// Proof is what became of all writes.
type Proof struct {
	Acked, Failed, Unknown int64 // as told
	Ran                    int64 // as found on the servers

	Doubled      int64 // ran twice
	Lost         int64 // acknowledged, and gone although no server died
	LostByServer int64 // acknowledged by a server that died before a replica had them
	Slowest      time.Duration
}

// Add adds the writes of another load.
func (p *Proof) Add(o Proof) {
	p.Acked += o.Acked
	p.Failed += o.Failed
	p.Unknown += o.Unknown
	p.Ran += o.Ran
	p.Doubled += o.Doubled
	p.Lost += o.Lost
	p.LostByServer += o.LostByServer
	p.Slowest = max(p.Slowest, o.Slowest)
}

// Print prints the proof.
func (p Proof) Print(out *narrate.Printer) {
	out.Printf("INCR          %8d acknowledged %5d unknown %5d failed %8d ran", p.Acked, p.Unknown, p.Failed, p.Ran)
	out.Printf("writes        %8d doubled      %5d lost    %5d lost by the failover", p.Doubled, p.Lost, p.LostByServer)
	out.Printf("slowest call  %7.3fs", p.Slowest.Seconds())
	if p.LostByServer > 0 {
		out.Printf("Redis replicates asynchronously: the server acknowledged %d of the last writes and died before a replica had them.", p.LostByServer)
	}
}

// Err returns an error when the client is to blame for something.
func (p Proof) Err() error {
	if p.Doubled > 0 || p.Lost > 0 {
		return fmt.Errorf("%d writes doubled, %d lost although no server died", p.Doubled, p.Lost)
	}
	return nil
}
