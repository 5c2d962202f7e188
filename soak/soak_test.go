package soak

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

var (
	duration = flag.Duration("for", 20*time.Second, "how long to break things")
	seed     = flag.Uint64("seed", 0, "of the sequence of faults; 0: a new one")
)

func TestMain(m *testing.M) {
	logging.Disable() // what go-redis has to say of each failure would bury the rest
	os.Exit(redialtest.LeaksMain(m))
}

const (
	workers = 12
	pace    = 2 * time.Millisecond   // at which a worker issues commands
	epoch   = 250 * time.Millisecond // after which workers go on to new keys, to keep histories short
	back    = time.Second            // within which the client must be Connected after a fault
	notice  = 3 * time.Second        // within which it must notice connections that went silent
	record  = 400                    // bytes, the most that is kept here of a command, for its history
	// A server that lists a connection whose bytes are lost on the way proves nothing. So
	// commands on it keep their ReadTimeout, and when all workers wait without a deadline of
	// their own, that is when the first of them goes on.
	silence = 2 * time.Second
)

// TestSoak breaks the connection in random ways, one after the other and sometimes
// two at a time, under a load whose every result is checked against the server:
//
//   - histories of GET, SET, compare-and-set and INCR are linearizable, an unknown
//     outcome being one that may show at any time or never;
//   - what was acknowledged is there once, what is unknown at most once, what is
//     said not to have run is not there;
//   - after every fault the client is Connected again within a second;
//   - memory, goroutines and sockets are bounded;
//   - Close at a random moment, in the middle of it all, leaves nothing behind.
func TestSoak(t *testing.T) {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("for %v, with -seed=%d", *duration, s)
	// Without fsync the server still writes its log before it replies, so that a
	// kill -9 loses nothing. A slow disk must not pass for a slow client.
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		t.Setenv("TMPDIR", "/dev/shm")
	}
	server := redialtest.StartServer(t, "--appendonly", "yes", "--appendfsync", "no")
	bed := &testbed{server, redialtest.NewProxy(t, server.Addr()), rand.New(rand.NewPCG(s, 0))}

	c := redial.NewClient(&redis.Options{Addr: bed.proxy.Addr(), PoolSize: workers, ReadTimeout: silence})
	require.NoError(t, c.WaitReady(t.Context()))
	l := startLoad(c)
	quiet := measure(t)
	counts := make(map[string]int)
	var slowest, slowestOfSilent time.Duration
	worst := quiet
	var noticed time.Time // when connections that went silent must have been found
	for end := time.Now().Add(*duration); time.Now().Before(end); {
		broke := time.Now()
		faults := breakIt(bed)
		healed := time.Now()
		var names []string
		for _, f := range faults {
			names = append(names, f.name)
			counts[f.name]++
			if f.silent {
				noticed = broke.Add(notice)
			}
		}
		until := max(time.Until(noticed), 0)
		within := back + until
		took, ok := l.flows(within)
		if until == 0 {
			slowest = max(slowest, took)
		} else {
			slowestOfSilent = max(slowestOfSilent, took)
		}
		if !ok {
			t.Errorf("no success within %v after %v, which lasted %v: %v\n%s", within, names, healed.Sub(broke), c.Stats(),
				strings.Join(clientStacks(), "\n\n"))
		}
		ctx, cancel := context.WithTimeout(t.Context(), back)
		assert.NoError(t, c.WaitReady(ctx))
		cancel()
		if t.Failed() {
			break
		}
		worst = worst.max(measure(t))
		time.Sleep(time.Duration(bed.rnd.IntN(200)) * time.Millisecond)
	}
	t.Logf("faults: %v; slowest way back %v, and %v where connections that are silent were still to be found", counts, slowest, slowestOfSilent)
	t.Logf("client: %v", c.Stats())
	t.Logf("at most %d goroutines in the client, %d MiB of heap", worst.goroutines, worst.heap>>20)
	assert.LessOrEqual(t, worst.goroutines, 3*workers, "goroutines pile up")
	kept := uint64(l.h.len()) * record
	assert.Less(t, worst.heap, quiet.heap+24<<20+kept, "memory piles up")

	// Close in the middle of the next fault.
	f := faults()[bed.rnd.IntN(len(faults()))]
	f.inject(bed)
	time.Sleep(time.Duration(bed.rnd.IntN(3000)) * time.Millisecond)
	began := time.Now()
	require.NoError(t, c.Close())
	assert.Less(t, time.Since(began), 500*time.Millisecond, "Close during %s", f.name)
	l.stop()
	f.end(bed)
	l.check(t, server)
}

// breakIt injects one fault or two, waits, and heals them.
func breakIt(bed *testbed) (now []fault) {
	all := faults()
	longest := time.Duration(0)
	for range 1 + bed.rnd.IntN(4)/3 {
		f := all[bed.rnd.IntN(len(all))]
		if len(now) > 0 && f.heal != nil && now[0].heal != nil {
			continue // a server cannot be killed and frozen
		}
		now = append(now, f)
		f.inject(bed)
		longest = max(longest, f.longer)
	}
	if longest > 0 {
		time.Sleep(time.Duration(bed.rnd.Int64N(int64(longest))))
	}
	for _, f := range now {
		f.end(bed)
	}
	return now
}

// usage is what the process uses: goroutines in the client, and heap.
type usage struct {
	goroutines int
	heap       uint64
}

func (u usage) max(v usage) usage {
	return usage{max(u.goroutines, v.goroutines), max(u.heap, v.heap)}
}

func measure(t *testing.T) usage {
	t.Helper()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{len(clientStacks()), m.HeapAlloc}
}

// clientStacks returns the stacks of the goroutines that are in the client.
func clientStacks() (stacks []string) {
	buf := make([]byte, 8<<20)
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "github.com/redis/go-redis/") || strings.Contains(stack, "github.com/redial-go/redial.") ||
			strings.Contains(stack, "github.com/redial-go/redial/internal/") {
			stacks = append(stacks, stack)
		}
	}
	return stacks
}

// load issues commands of many kinds and remembers what came of each.
type load struct {
	c    *redial.Client
	h    *history
	quit chan struct{}
	wg   sync.WaitGroup

	seq  atomic.Int64
	last atomic.Int64 // when a command succeeded last, in Unix nanoseconds
	n    tally

	mu      sync.Mutex
	pushes  map[string]push // by unique element
	strange error           // an error without an outcome
}

type tally struct{ done, unknown, not atomic.Int64 }

// push is what its caller was told of a push.
type push struct {
	fate fate
	err  error
	at   time.Time
}

// fate is what is known of a write.
type fate int

const (
	done fate = iota
	unknown
	notRun
)

func startLoad(c *redial.Client) *load {
	l := &load{c: c, h: newHistory(), quit: make(chan struct{}), pushes: make(map[string]push)}
	for w := range workers {
		l.wg.Go(func() {
			ticker := time.NewTicker(pace)
			defer ticker.Stop()
			for k := w; ; k++ {
				select {
				case <-l.quit:
					return
				case <-ticker.C:
				}
				l.step(w, k)
			}
		})
	}
	return l
}

func (l *load) stop() {
	close(l.quit)
	l.wg.Wait()
}

// flows waits until a command has succeeded, and returns how long that took.
func (l *load) flows(within time.Duration) (took time.Duration, ok bool) {
	since := time.Now()
	for l.last.Load() < since.UnixNano() {
		if time.Since(since) > within {
			return within, false
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(since), true
}

// judge says what is known of a write that returned err.
func (l *load) judge(err error) fate {
	switch {
	case err == nil:
		l.n.done.Add(1)
		l.last.Store(time.Now().UnixNano())
		return done
	case errors.Is(err, redial.ErrOutcomeUnknown):
		l.n.unknown.Add(1)
		return unknown
	case redial.SafeToRetry(err), errors.Is(err, redis.ErrClosed),
		err == context.Canceled, err == context.DeadlineExceeded: // as they are: the context had ended before the call
		l.n.not.Add(1)
		return notRun
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.strange = err
	return unknown
}

var compareAndSet = redis.NewScript(`
	if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
	redis.call('SET', KEYS[1], ARGV[2])
	return 1`)

// step issues one command or batch.
func (l *load) step(w, k int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch rand.IntN(6) {
	case 0: // a deadline
		ctx, cancel = context.WithTimeout(ctx, time.Duration(1+rand.IntN(2000))*time.Millisecond)
		defer cancel()
	case 1: // a caller who loses interest
		timer := time.AfterFunc(time.Duration(rand.IntN(200))*time.Millisecond, cancel)
		defer timer.Stop()
	case 2:
		ctx = redial.FailFast(ctx)
	}
	age := time.Now().UnixNano() / int64(epoch)
	key := fmt.Sprintf("r:%d:%d", age, rand.IntN(3))
	value := strconv.FormatInt(l.seq.Add(1), 10)
	call := l.h.now()
	if k%8 > 3 && rand.IntN(2) == 0 { // a write, no script
		ctx = redial.Once(ctx, "w:"+value)
	}
	switch k % 8 {
	case 0, 1:
		got, err := l.c.Get(ctx, key).Result()
		if err == nil || err == redis.Nil {
			l.h.record(w, call, input{kind: get, key: key}, output{value: got})
		}
	case 2:
		l.note(w, call, input{kind: set, key: key, value: value}, output{}, l.c.Set(ctx, key, value, 0).Err())
	case 3:
		old, err := l.c.Get(ctx, key).Result()
		if err != nil && err != redis.Nil {
			return
		}
		n, err := compareAndSet.Eval(ctx, l.c, []string{key}, old, value).Int()
		l.note(w, call, input{kind: cas, key: key, old: old, value: value}, output{swapped: n == 1}, err)
	case 4:
		key = fmt.Sprintf("n:%d", age)
		n, err := l.c.Incr(ctx, key).Result()
		l.note(w, call, input{kind: incr, key: key}, output{value: strconv.FormatInt(n, 10)}, err)
	case 5:
		l.pushed(value, l.c.RPush(ctx, "list", value).Err())
	case 6, 7:
		exec := l.c.Pipelined
		if k%8 == 7 {
			exec = l.c.TxPipelined
		}
		cmds, _ := exec(ctx, func(p redis.Pipeliner) error {
			for i := range 1 + rand.IntN(4) {
				p.RPush(ctx, "list", value+":"+strconv.Itoa(i))
			}
			return nil
		})
		for i, cmd := range cmds {
			l.pushed(value+":"+strconv.Itoa(i), cmd.Err())
		}
	}
}

// note records a write to a register.
func (l *load) note(w int, call int64, in input, out output, err error) {
	switch l.judge(err) {
	case done:
		l.h.record(w, call, in, out)
	case unknown:
		l.h.record(w, call, in, output{unknown: true})
	}
}

// pushed remembers the fate of an element of the list.
func (l *load) pushed(element string, err error) {
	p := push{l.judge(err), err, time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pushes[element] = p
}

// check compares what callers were told with what is on the server.
func (l *load) check(t *testing.T, server *redialtest.Server) {
	t.Helper()
	t.Logf("%d done, %d unknown, %d did not run, %d operations in the history",
		l.n.done.Load(), l.n.unknown.Load(), l.n.not.Load(), len(l.h.ops))
	if l.strange != nil {
		t.Errorf("an error without an outcome: %T %v", l.strange, l.strange)
	}
	there := make(map[string]int)
	for _, element := range server.Do("LRANGE", "list", 0, -1).([]any) {
		there[element.(string)]++
	}
	for element, p := range l.pushes {
		n := there[element]
		told := p.at.Format(time.TimeOnly + ".000")
		switch {
		case n > 1:
			t.Errorf("%s was pushed %d times; told at %s: %v", element, n, told, p.err)
		case p.fate == done && n == 0:
			t.Errorf("%s was acknowledged at %s and is not there", element, told)
		case p.fate == notRun && n > 0:
			t.Errorf("%s is said not to have run, and is there; told at %s: %v", element, told, p.err)
		}
	}
	l.h.check(t)
}
