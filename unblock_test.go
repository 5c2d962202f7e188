package redial

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/internal/wire"
	"github.com/redial-go/redial/redialtest"
)

// lossOf has workers wait for elements with contexts that end at random while others are
// pushed, and returns how many were lost: neither handed out nor left.
func lossOf(t *testing.T, s *redialtest.Server, rdb redis.UniversalClient, total int, canceled bool) (lost, ends int) {
	t.Helper()
	s.Do("FLUSHALL")
	got := make(map[string]int)
	var mu sync.Mutex
	var ended atomic.Int64
	var pushed atomic.Bool
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for !pushed.Load() {
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(8*time.Millisecond)+wire.Unwatched)
				if canceled {
					ctx, cancel = context.WithCancel(t.Context())
					time.AfterFunc(rand.N(8*time.Millisecond)+wire.Unwatched, cancel)
				}
				kv, err := rdb.BLPop(ctx, 0, "list").Result()
				cancel()
				if err != nil {
					assert.Error(t, ctx.Err())
					ended.Add(1)
					continue
				}
				mu.Lock()
				got[kv[1]]++
				mu.Unlock()
			}
		})
	}
	for i := range total {
		s.Do("LPUSH", "list", strconv.Itoa(i))
		time.Sleep(rand.N(4 * time.Millisecond))
	}
	pushed.Store(true)
	wg.Wait()
	time.Sleep(50 * time.Millisecond)
	for _, left := range s.Do("LRANGE", "list", 0, -1).([]any) {
		got[left.(string)]++
	}
	for i := range total {
		switch got[strconv.Itoa(i)] {
		case 0:
			lost++
		case 1:
		default:
			t.Errorf("%d was handed out twice", i)
		}
	}
	return lost, int(ended.Load())
}

// When the context of a BLPOP ends, the element that the server hands out in that moment
// is delivered or stays in the list.
func TestUnblock_LosesNothing(t *testing.T) {
	t.Parallel()
	for _, protocol := range []int{2, 3} {
		for _, canceled := range []bool{false, true} {
			s := redialtest.StartServer(t)
			opt := &redis.Options{Addr: s.Addr(), Protocol: protocol}
			c := NewClient(opt)
			require.NoError(t, c.WaitReady(t.Context()))
			lost, ends := lossOf(t, s, c, 400, canceled)
			closed := max(0, int(c.Stats().Dials)-9) // one for each worker, and that of the heartbeat
			t.Logf("protocol %d, canceled %v: %d lost, %d contexts ended, %d connections closed", protocol, canceled, lost, ends, closed)
			assert.LessOrEqual(t, lost, closed, "only where the server did not answer in time, on a busy machine")
			assert.Greater(t, ends, 100)
			if !platform.RaceDetector { // under which the server may have no processor to answer in time
				assert.Less(t, closed, ends/10, "connections are used again")
			}
			assert.Zero(t, c.Stats().Outages)
			require.NoError(t, c.Close())
		}
	}
	s := redialtest.StartServer(t)
	bare := redis.NewClient(&redis.Options{Addr: s.Addr(), ContextTimeoutEnabled: true})
	defer bare.Close()
	lost, ends := lossOf(t, s, bare, 400, false)
	t.Logf("bare: %d lost, %d contexts ended", lost, ends)
}

// A command that waited in vain ends with the error of its context, in time, and its
// connection goes back to the pool.
func TestUnblock_EndsInTime(t *testing.T) {
	platform.NeedPoolsThatLook(t) // or only the first command on a connection can be told to end
	for _, start := range []func(testing.TB, ...string) *redialtest.Server{redialtest.StartServer, redialtest.StartTLSServer} {
		s := start(t)
		unblockedInTime(t, &redis.Options{Addr: s.Addr(), PoolSize: 1, TLSConfig: s.TLSConfig()})
	}
}

func unblockedInTime(t *testing.T, opt *redis.Options) {
	c := NewClient(opt)
	defer c.Close()
	require.NoError(t, c.Ping(t.Context()).Err())
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	_ = c.BLPop(soon, 0, "list").Err() // there is a connection for such questions from now on
	cancel()
	dials := c.Stats().Dials
	for name, run := range map[string]func(context.Context) error{
		"blpop":    func(ctx context.Context) error { return c.BLPop(ctx, 0, "list").Err() },
		"bounded":  func(ctx context.Context) error { return c.BLPop(ctx, time.Hour, "list").Err() },
		"blmove":   func(ctx context.Context) error { return c.BLMove(ctx, "list", "other", "left", "right", 0).Err() },
		"bzpopmin": func(ctx context.Context) error { return c.BZPopMin(ctx, 0, "set").Err() },
		"xread": func(ctx context.Context) error {
			return c.XRead(ctx, &redis.XReadArgs{Streams: []string{"stream", "$"}, Block: 0}).Err()
		},
	} {
		for _, end := range []error{context.Canceled, context.DeadlineExceeded} {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			if end == context.Canceled {
				ctx, cancel = context.WithCancel(t.Context())
				time.AfterFunc(50*time.Millisecond, cancel)
			}
			began := time.Now()
			err := run(ctx)
			assert.Less(t, time.Since(began), 150*time.Millisecond, name)
			cancel()
			assert.ErrorIs(t, err, end, name)
			assert.NotErrorIs(t, err, redis.Nil, name)
			var e *Error
			require.ErrorAs(t, err, &e, name)
			assert.Equal(t, CauseContextEnded, e.Cause, name)
			require.NoError(t, c.Ping(t.Context()).Err())
		}
	}
	assert.Equal(t, dials, c.Stats().Dials, "the connection is used again")
}

// WAIT says how many replicas have what was written, also when it is told to end.
func TestUnblock_Wait_SaysHowMany(t *testing.T) {
	s := redialtest.StartServer(t)
	c := NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	n, err := c.Wait(ctx, 3, time.Hour).Result()
	assert.NoError(t, err)
	assert.Zero(t, n)
}

// What somebody else unblocks with an error is the caller's to hear of.
func TestUnblock_ByAnother_IsTheirs(t *testing.T) {
	s := redialtest.StartServer(t)
	c := NewClient(&redis.Options{Addr: s.Addr()})
	defer c.Close()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { done <- c.BLPop(ctx, 0, "list").Err() }()
	blocked(t, s, "blpop", 1)
	for line := range strings.Lines(s.Do("CLIENT", "LIST").(string)) {
		if strings.Contains(line, "cmd=blpop") {
			id := strings.TrimPrefix(strings.Fields(line)[0], "id=")
			require.EqualValues(t, 1, s.Do("CLIENT", "UNBLOCK", id, "ERROR"))
		}
	}
	assert.ErrorContains(t, <-done, "UNBLOCKED")
	go func() { done <- c.BLPop(ctx, 0, "list").Err() }()
	blocked(t, s, "blpop", 1)
	for line := range strings.Lines(s.Do("CLIENT", "LIST").(string)) {
		if strings.Contains(line, "cmd=blpop") {
			require.EqualValues(t, 1, s.Do("CLIENT", "UNBLOCK", strings.TrimPrefix(strings.Fields(line)[0], "id=")))
		}
	}
	assert.Equal(t, redis.Nil, <-done)
}

// Whoever may not unblock has connections closed, as ever.
func TestUnblock_NotAllowed_Closes(t *testing.T) {
	for _, denied := range []string{"-client|unblock", "-client|list", "-client|info"} {
		t.Run(denied, func(t *testing.T) {
			s := redialtest.StartServer(t)
			s.Do("ACL", "SETUSER", "default", denied)
			c := NewClient(&redis.Options{Addr: s.Addr()})
			defer c.Close()
			for range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				began := time.Now()
				err := c.BLPop(ctx, 0, "list").Err()
				assert.Less(t, time.Since(began), 150*time.Millisecond)
				cancel()
				assert.ErrorIs(t, err, context.DeadlineExceeded)
				require.NoError(t, c.Ping(t.Context()).Err())
			}
			require.NoError(t, c.LPush(t.Context(), "list", "x").Err())
			assert.Equal(t, []string{"list", "x"}, c.BLPop(t.Context(), time.Second, "list").Val())
			assert.Zero(t, c.Stats().Outages)
		})
	}
}

// A server that does not say in time whether it has ended a wait may have: that it has found
// nothing is no news then either.
func TestUnblock_TooLate_MayHaveEndedIt(t *testing.T) {
	q, c := asked(t, &command.Peer{ID: 7, Addr: "here:1", Laddr: "there:2"})
	hold := make(chan struct{})
	defer close(hold)
	q.via = func(context.Context, func(*redis.Client) error) error {
		<-hold
		return nil
	}
	settled, freed := q.Unblock(time.Millisecond, c, c)
	assert.Equal(t, []bool{false, false}, settled)
	assert.Equal(t, []bool{true, true}, freed)
}

// An id of another server is not that of a connection here, although somebody waits there
// under the same one.
func TestUnblock_AnotherServer_NobodyElseIsUnblocked(t *testing.T) {
	here, there := redialtest.StartServer(t), redialtest.StartServer(t)
	for range 20 { // the ids there are behind
		here.Do("PING")
	}
	board := newSwitchboard(t, always(here))
	c := NewClient(&redis.Options{Addr: board.Addr()})
	defer c.Close()
	require.NoError(t, c.Ping(t.Context()).Err())
	board.lead(always(there))
	require.NoError(t, linkOf(c).prober.(*pinger).ask(t.Context(), func(rdb *redis.Client) error { // its connection leads there
		return rdb.Ping(t.Context()).Err()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.BLPop(ctx, 0, "list").Err() }()
	blocked(t, here, "blpop", 1)
	var id int64
	for line := range strings.Lines(here.Do("CLIENT", "LIST").(string)) {
		if strings.Contains(line, "cmd=blpop") {
			id, _ = strconv.ParseInt(strings.TrimPrefix(strings.Fields(line)[0], "id="), 10, 64)
		}
	}
	victim := waiterOf(t, there, id) // somebody with the same id waits there
	defer victim.Close()
	spared := make(chan error, 1)
	go func() { spared <- victim.BLPop(context.Background(), 0, "list").Err() }()
	blocked(t, there, "blpop", 1)
	cancel()
	assert.ErrorIs(t, <-done, context.Canceled)
	time.Sleep(100 * time.Millisecond)
	select {
	case err := <-spared:
		t.Errorf("somebody else was unblocked: %v", err)
	default:
	}
	there.Do("LPUSH", "list", "x")
	assert.NoError(t, <-spared)
}

// waiterOf returns a client whose only connection has that id.
func waiterOf(t *testing.T, s *redialtest.Server, id int64) *redis.Client {
	t.Helper()
	for {
		rdb := redis.NewClient(&redis.Options{Addr: s.Addr(), PoolSize: 1})
		n := rdb.ClientID(t.Context()).Val()
		if n == id {
			return rdb
		}
		require.NoError(t, rdb.Close())
		require.Less(t, n, id, "the ids are higher already")
	}
}

// When Drain has no time left, what waits is told to end: an element that is handed out in
// that moment is delivered.
func TestUnblock_Drain(t *testing.T) {
	s := redialtest.StartServer(t)
	lost := 0
	for i := range 40 {
		s.Do("DEL", "list")
		c := NewClient(&redis.Options{Addr: s.Addr()})
		var delivered atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				switch err := c.BLPop(context.Background(), 0, "list").Err(); {
				case err == nil:
					delivered.Add(1)
				default:
					assert.ErrorIs(t, err, ErrOutcomeUnknown)
				}
			})
		}
		blocked(t, s, "blpop", 4)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		pushing := time.AfterFunc(18*time.Millisecond+rand.N(4*time.Millisecond), func() { s.Do("LPUSH", "list", "a", "b") })
		began := time.Now()
		err := c.Drain(ctx)
		assert.Less(t, time.Since(began), 250*time.Millisecond)
		cancel()
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		wg.Wait()
		if pushing.Stop() {
			continue
		}
		time.Sleep(10 * time.Millisecond)
		left := s.Do("LLEN", "list").(int64)
		if delivered.Load()+left < 2 {
			lost++
			t.Logf("round %d: %d delivered, %d left", i, delivered.Load(), left)
		}
	}
	assert.Zero(t, lost)
}
