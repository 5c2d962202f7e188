package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/redialtest"
)

var (
	scripts = flag.Int("scripts", 2_000, "random fault scripts to run")
	seed    = flag.Uint64("seed", 0, "run this one script only")
)

// TestOutcomes_AreTruthful runs random scripts of commands over connections that
// break after a random number of bytes in either direction: before, within and
// after requests and replies, between the commands of a pipeline, in the
// handshake and at EXEC. No command may run twice, and what the error says of it
// must be true.
func TestOutcomes_AreTruthful(t *testing.T) {
	if *seed != 0 {
		truthful(t, *seed)
		return
	}
	n := *scripts
	if testing.Short() || platform.RaceDetector {
		n /= 4
	}
	first := rand.Uint64()>>1 + 1
	t.Logf("scripts with the seeds from %d on", first)
	workers := runtime.GOMAXPROCS(0)
	tallies := make([]tally, workers)
	t.Run("workers", func(t *testing.T) {
		for w := range workers {
			t.Run(strconv.Itoa(w), func(t *testing.T) {
				t.Parallel()
				var mine []uint64
				for i := w; i < n; i += workers {
					mine = append(mine, first+uint64(i))
				}
				for some := range slices.Chunk(mine, 50) { // a bubble costs a collection of garbage
					tallies[w].add(truthful(t, some...))
					if t.Failed() {
						return
					}
				}
			})
		}
	})
	var sum tally
	for _, of := range tallies {
		sum.add(of)
	}
	t.Logf("%d commands: %d done, %d did not run, %d unknown of which %d ran", sum.done+sum.not+sum.unknown,
		sum.done, sum.not, sum.unknown, sum.unknownRan)
	require.NotZero(t, sum.unknownRan)
	require.Less(t, sum.unknownRan, sum.unknown, "some unknown commands must not have run, or they were known")
	require.NotZero(t, sum.not)
}

// A pipeline was cut within its first command, then sent again, run, and its reply lost.
// What could not have been delivered at first was taken for what could not be at last.
func TestOutcomes_CutBeforeAndAfterItRan(t *testing.T) {
	truthful(t, 6226376640995978152)
}

type tally struct{ done, not, unknown, unknownRan int }

func (s *tally) add(o tally) {
	s.done += o.done
	s.not += o.not
	s.unknown += o.unknown
	s.unknownRan += o.unknownRan
}

// truthful runs one script and counts what became of its commands.
func truthful(t *testing.T, seeds ...uint64) (sum tally) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		for _, seed := range seeds {
			sum.add(script(t, seed))
			if t.Failed() {
				t.Fatalf("run this script alone with -seed=%d", seed)
			}
		}
	})
	return sum
}

// script runs one script in the bubble of t, and leaves nothing behind.
func script(t *testing.T, seed uint64) (sum tally) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 0))
	server := redialtest.NewFakeServerPipe(t)
	network := &testkit.BreakingNetwork{DialNext: server.Dial, Rand: rand.New(rand.NewPCG(seed, 1))}
	opt := &redis.Options{
		Addr: "127.0.0.1:1", Dialer: network.Dial, ReadTimeout: time.Second, PoolSize: 100,
		Protocol: 2 + rnd.IntN(2), DisableIdentity: rnd.IntN(2) == 0,
	}
	c := redial.NewClient(opt, redial.WithGrace(time.Second))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if rnd.IntN(2) == 0 {
		ctx = redial.FailFast(ctx) // or else most failures end in success
	}

	// Each command has a counter of its own, so that every run of it shows.
	var results []result
	key := func() string { return fmt.Sprintf("key:%d", len(results)) }
	for range 1 + rnd.IntN(4) {
		network.BreakAt(rnd.IntN(4))
		switch rnd.IntN(6) {
		case 0, 1:
			k := key()
			results = append(results, result{key: k, err: c.Incr(ctx, k).Err()})
		case 2:
			k := key()
			results = append(results, result{key: k, list: true, err: c.LPush(ctx, k, "x").Err()})
		case 3, 4:
			exec := c.Pipelined
			if rnd.IntN(2) == 0 {
				exec = c.TxPipelined
			}
			first := len(results)
			cmds, _ := exec(ctx, func(p redis.Pipeliner) error {
				for range 1 + rnd.IntN(4) {
					results = append(results, result{key: key()})
					p.Incr(ctx, results[len(results)-1].key)
				}
				return nil
			})
			for i, cmd := range cmds {
				results[first+i].err = cmd.Err()
			}
		case 5:
			if err := c.Get(ctx, "nothing").Err(); err == nil {
				t.Error("GET of nothing has a value")
			}
		}
		if rnd.IntN(4) == 0 {
			time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond) // idle for a while
		}
	}
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	synctest.Wait()

	bare := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", Dialer: server.Dial, Protocol: 2, DisableIdentity: true})
	defer bare.Close()
	for _, r := range results {
		runs := r.runs(t, bare)
		switch {
		case r.err == nil:
			sum.done++
			if runs != 1 {
				t.Errorf("seed %d: %s was acknowledged and ran %d times", seed, r.key, runs)
			}
		case errors.Is(r.err, redial.ErrOutcomeUnknown):
			sum.unknown++
			sum.unknownRan += runs
			if runs > 1 {
				t.Errorf("seed %d: %s ran %d times: %v", seed, r.key, runs, r.err)
			}
		case redial.SafeToRetry(r.err):
			sum.not++
			if runs != 0 {
				t.Errorf("seed %d: %s is said not to have run, and ran %d times: %v", seed, r.key, runs, r.err)
			}
		default:
			t.Errorf("seed %d: %s failed without an outcome: %T %v", seed, r.key, r.err, r.err)
		}
	}
	return sum
}

// result is what a command on a key of its own returned.
type result struct {
	key  string
	list bool
	err  error
}

// runs returns how often the command ran, by running it once more.
func (r result) runs(t *testing.T, rdb *redis.Client) int {
	t.Helper()
	cmd := rdb.Incr(context.Background(), r.key)
	if r.list {
		cmd = rdb.LPush(context.Background(), r.key, "y")
	}
	if cmd.Err() != nil {
		t.Errorf("%s: %v", r.key, cmd.Err())
	}
	return int(cmd.Val()) - 1
}
