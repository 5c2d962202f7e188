package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/redialtest"
)

// passHook hands everything on.
type passHook = testkit.Passing

type fakeHook = func(c *redialtest.FakeConn, args []string) redialtest.Action

// fakeCluster starts scripted nodes, the i-th of which has the i-th share of the slots.
func fakeCluster(t *testing.T, n int, hook func(node int) fakeHook) ([]*redialtest.FakeServer, []string) {
	var nodes []*redialtest.FakeServer
	var addrs []string
	for range n {
		f := redialtest.NewFakeServer(t)
		nodes = append(nodes, f)
		addrs = append(addrs, f.Addr())
	}
	slots := fmt.Sprintf("*%d\r\n", n)
	for i, a := range addrs {
		host, port, _ := net.SplitHostPort(a)
		slots += fmt.Sprintf("*3\r\n:%d\r\n:%d\r\n*2\r\n$%d\r\n%s\r\n:%s\r\n", i*16384/n, (i+1)*16384/n-1, len(host), host, port)
	}
	for i, f := range nodes {
		var h fakeHook
		if hook != nil {
			h = hook(i)
		}
		f.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
			switch strings.ToLower(args[0]) {
			case "cluster":
				return redialtest.Reply(slots)
			case "command":
				return redialtest.Reply("*1\r\n*6\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n")
			case "readonly":
				return redialtest.Reply("+OK\r\n")
			}
			if h != nil {
				return h(c, args)
			}
			return redialtest.Handle
		})
	}
	return nodes, addrs
}

// A pipeline of which one reply never comes runs once, whatever MaxRetries is.
func TestSupervise_PipelineHalfAnswered(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	n := atomic.Int32{}
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "lpush" && n.Add(1) == 1 {
			return redialtest.ExecuteThenDrop
		}
		return redialtest.Handle
	})
	rdb := redis.NewClient(&redis.Options{Addr: f.Addr(), ReadTimeout: 200 * time.Millisecond})
	defer rdb.Close()
	s, err := redial.Supervise(rdb)
	require.NoError(t, err)
	defer s.Close()
	testkit.WaitReady(t, s)
	_, err = rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Incr(t.Context(), "a")
		p.LPush(t.Context(), "l", "x")
		return nil
	})
	t.Log(err)
	assert.Equal(t, 1, f.Executed("incr"))
	assert.Equal(t, 1, f.Executed("lpush"))
}

// A pipeline whose first command is refused does not run the others again.
func TestSupervise_PipelineFirstRefused(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "set" {
			return redialtest.Reply("-NOREPLICAS Not enough good replicas to write.\r\n")
		}
		return redialtest.Handle
	})
	rdb := redis.NewClient(&redis.Options{Addr: f.Addr()})
	defer rdb.Close()
	s, err := redial.Supervise(rdb, redial.WithGrace(300*time.Millisecond))
	require.NoError(t, err)
	defer s.Close()
	testkit.WaitReady(t, s)
	_, err = rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Set(t.Context(), "a", 1, 0)
		p.Incr(t.Context(), "b")
		return nil
	})
	t.Log(err)
	assert.Equal(t, 1, f.Executed("incr"))
}

func testTryAgain(t *testing.T, hooked bool) {
	nodes, addrs := fakeCluster(t, 1, func(int) fakeHook {
		return func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			if args[0] == "mset" {
				return redialtest.Reply("-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
			}
			return redialtest.Handle
		}
	})
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs}, redial.WithGrace(300*time.Millisecond))
	defer c.Close()
	if hooked {
		c.OnNewNode(func(n *redis.Client) { n.AddHook(passHook{}) })
	}
	testkit.WaitReady(t, c)
	_, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.MSet(t.Context(), "{a}1", 1, "{a}2", 2)
		p.Incr(t.Context(), "{a}b")
		return nil
	})
	t.Log(err)
	assert.Equal(t, 1, nodes[0].Executed("incr"))
}

// The same holds in a cluster, with hooks of the caller on the nodes or without.
func TestNodes_PipelineFirstRefused(t *testing.T) {
	t.Parallel()
	t.Run("no hook", func(t *testing.T) { testTryAgain(t, false) })
	t.Run("hook", func(t *testing.T) { testTryAgain(t, true) })
}

// A command whose reply stops in the middle runs once.
func TestNodes_ReplyStopsInTheMiddle(t *testing.T) {
	t.Parallel()
	n := atomic.Int32{}
	nodes, addrs := fakeCluster(t, 1, func(int) fakeHook {
		return func(c *redialtest.FakeConn, args []string) redialtest.Action {
			if args[0] == "eval" {
				n.Add(1)
				return redialtest.Reply("$100000\r\n" + strings.Repeat("x", 50000))
			}
			return redialtest.Handle
		}
	})
	_ = nodes
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, ReadTimeout: 200 * time.Millisecond}, redial.WithGrace(300*time.Millisecond))
	defer c.Close()
	testkit.WaitReady(t, c)
	_, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Eval(t.Context(), "x", []string{"a"})
		return nil
	})
	t.Log(err)
	assert.Equal(t, int32(1), n.Load())
	n.Store(0)
	err = c.Eval(t.Context(), "x", []string{"a"}).Err()
	t.Log(err)
	assert.Equal(t, int32(1), n.Load(), "single")
	// supervised single
	f := redialtest.NewFakeServer(t)
	n.Store(0)
	f.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "eval" {
			n.Add(1)
			return redialtest.Reply("$100000\r\n" + strings.Repeat("x", 50000))
		}
		return redialtest.Handle
	})
	rdb := redis.NewClient(&redis.Options{Addr: f.Addr(), ReadTimeout: 200 * time.Millisecond})
	defer rdb.Close()
	s, err := redial.Supervise(rdb)
	require.NoError(t, err)
	defer s.Close()
	testkit.WaitReady(t, s)
	err = rdb.Eval(t.Context(), "x", []string{"a"}).Err()
	t.Log(err)
	assert.Equal(t, int32(1), n.Load(), "supervised single")
}

// A pipeline that is sent on to a node that is down waits for that.
func TestNodes_PipelineIsMovedToADeadNode(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	dead := ln.Addr().String()
	ln.Close()
	_, addrs := fakeCluster(t, 1, func(int) fakeHook {
		return func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			if args[0] == "incr" {
				return redialtest.Reply("-MOVED 1 " + dead + "\r\n")
			}
			return redialtest.Handle
		}
	})
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs}, redial.WithGrace(time.Second))
	defer c.Close()
	testkit.WaitReady(t, c)
	err = c.Incr(t.Context(), "a").Err()
	t.Log("single:", err)
	began := time.Now()
	_, err = c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Incr(t.Context(), "a")
		p.Incr(t.Context(), "b")
		return nil
	})
	t.Log("pipeline:", time.Since(began), err)
	assert.ErrorIs(t, err, redial.ErrUnavailable)
}

// A transaction that is refused for good says so on every command.
func TestRing_TransactionIsRefused(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	on := atomic.Bool{}
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if on.Load() && (args[0] == "multi") {
			return redialtest.Reply("-NOREPLICAS Not enough good replicas to write.\r\n")
		}
		if on.Load() && (args[0] == "incr" || args[0] == "exec") {
			return redialtest.Reply("-NOREPLICAS Not enough good replicas to write.\r\n")
		}
		return redialtest.Handle
	})
	c := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": f.Addr()}}, redial.WithGrace(300*time.Millisecond))
	defer c.Close()
	testkit.WaitReady(t, c)
	require.NoError(t, c.Incr(t.Context(), "x").Err())
	on.Store(true)
	cmds, err := c.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Incr(t.Context(), "a")
		p.Incr(t.Context(), "a")
		return nil
	})
	t.Log(err)
	require.Error(t, err)
	for _, cmd := range cmds {
		assert.Error(t, cmd.Err())
	}
}

// A topology that names only dead nodes is not asked for without a pause.
func TestNodes_NoneAnswers(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	dead := ln.Addr().String()
	ln.Close()
	n, events := atomic.Int32{}, atomic.Int32{}
	c := redial.NewClusterClient(&redis.ClusterOptions{ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
		n.Add(1)
		return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: dead}}}}, nil
	}}, redial.WithOnStateChange(func(e redial.Event) { events.Add(1) }))
	time.Sleep(500 * time.Millisecond)
	t.Log("asked", n.Load(), "events", events.Load(), "outages", c.Stats().Outages, "dropped", c.Stats().EventsDropped)
	c.Close()
	assert.Less(t, n.Load(), int32(50))
}

// A command that does not wait does not wait for retries of go-redis either.
func TestNodes_FailFast(t *testing.T) {
	t.Parallel()
	_, addrs := fakeCluster(t, 2, func(i int) fakeHook {
		return func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			switch args[0] {
			case "hello", "client", "auth":
				return redialtest.Handle
			}
			if i == 0 {
				return redialtest.Reply("-LOADING Redis is loading the dataset in memory\r\n")
			}
			return redialtest.Handle
		}
	})
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs}, redial.WithGrace(time.Second))
	defer c.Close()
	testkit.WaitReady(t, c)
	key := ""
	for i := 0; ; i++ {
		key = fmt.Sprint("k", i)
		m, _ := c.MasterForKey(t.Context(), key)
		if m.Options().Addr == addrs[0] {
			break
		}
	}
	_ = c.Get(t.Context(), key).Err()
	for _, n := range c.Stats().Nodes {
		t.Log(n)
	}
	began := time.Now()
	err := c.Get(redial.FailFast(t.Context()), key).Err()
	took := time.Since(began)
	t.Log(took, err)
	assert.Less(t, took, 50*time.Millisecond)
}

// Closing is not reported as an outage.
func TestNodes_CloseIsNoOutage(t *testing.T) {
	t.Parallel()
	_, addrs := fakeCluster(t, 2, nil)
	var mu sync.Mutex
	var events []redial.Event
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs}, redial.WithOnStateChange(func(e redial.Event) {
		mu.Lock()
		events = append(events, e)
		mu.Unlock()
	}))
	testkit.WaitReady(t, c)
	time.Sleep(100 * time.Millisecond)
	mu.Lock()
	events = nil
	mu.Unlock()
	c.Close()
	mu.Lock()
	defer mu.Unlock()
	for _, e := range events {
		t.Log(e.Node, e.From, e.To, e.Reason)
		assert.Equal(t, redial.StateClosed, e.To)
	}
	t.Log("outages", c.Stats().Outages)
}

// A client that may read from other nodes does not where a second run is forbidden.
func TestNodes_ReaderWithNoRetry(t *testing.T) {
	t.Parallel()
	n := atomic.Int32{}
	_, addrs := fakeCluster(t, 1, func(i int) fakeHook {
		return func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			if args[0] == "get" {
				n.Add(1)
				return redialtest.ExecuteThenClose
			}
			return redialtest.Handle
		}
	})
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, ReadOnly: true})
	defer c.Close()
	testkit.WaitReady(t, c)
	err := c.Get(redial.NoRetry(t.Context()), "k").Err()
	t.Log(err)
	assert.Equal(t, int32(1), n.Load())
}

// Commands that wait for a ring succeed once it is back, with a hook of the caller or without.
func TestRing_OutageWithAHook(t *testing.T) {
	t.Parallel()
	for _, hooked := range []bool{false, true} {
		f := redialtest.NewFakeServer(t)
		c := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": f.Addr()}})
		if hooked {
			c.AddHook(passHook{})
		}
		testkit.WaitReady(t, c)
		require.NoError(t, c.Incr(t.Context(), "x").Err())
		f.Kill()
		require.Eventually(t, func() bool { return c.Len() == 0 }, 10*time.Second, time.Millisecond)
		done := make(chan error, 20)
		for range 20 {
			go func() { done <- c.Incr(context.Background(), "x").Err() }()
		}
		time.Sleep(50 * time.Millisecond)
		require.NoError(t, f.Start())
		bad := 0
		var last error
		for range 20 {
			if err := <-done; err != nil {
				bad++
				last = err
			}
		}
		t.Log("hooked", hooked, "failed", bad, last)
		assert.Zero(t, bad)
		c.Close()
	}
}

// go-redis does not take a lost connection for a refusal because of the text of its cause.
func TestNodes_TextOfACause(t *testing.T) {
	t.Parallel()
	n := atomic.Int32{}
	var sc atomic.Bool
	reach := make(chan struct{}, 10)
	hold := make(chan struct{})
	_, addrs := fakeCluster(t, 1, func(i int) fakeHook {
		return func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			switch args[0] {
			case "eval":
				sc.Store(true)
				return redialtest.Reply("-ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't write against a read only replica.\r\n")
			case "incr":
				if n.Add(1) == 1 {
					reach <- struct{}{}
					<-hold
					return redialtest.ExecuteThenClose
				}
			}
			return redialtest.Handle
		}
	})
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})
	defer c.Close()
	testkit.WaitReady(t, c)
	done := make(chan error, 1)
	go func() { done <- c.Incr(context.Background(), "a").Err() }()
	<-reach
	t.Log("eval:", c.Eval(t.Context(), "x", []string{"a"}).Err())
	close(hold)
	err := <-done
	t.Log("incr:", err)
	assert.Equal(t, int32(1), n.Load())
}

type countLimiter struct{ allow, bad atomic.Int32 }

func (l *countLimiter) Allow() error { l.allow.Add(1); return nil }

func (l *countLimiter) ReportResult(err error) {
	if err != nil {
		l.bad.Add(1)
	}
}

// What watches over a client does not go through its Limiter.
func TestSupervise_LimiterSeesNoChecks(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	l := &countLimiter{}
	rdb := redis.NewClient(&redis.Options{Addr: f.Addr(), Limiter: l})
	defer rdb.Close()
	s, err := redial.Supervise(rdb)
	require.NoError(t, err)
	defer s.Close()
	testkit.WaitReady(t, s)
	time.Sleep(2 * time.Second)
	t.Log(l.allow.Load(), l.bad.Load())
	assert.Zero(t, l.bad.Load())
}

// The go-redis client inside one of ours is under supervision already.
func TestSupervise_OurOwnClient(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	c := redial.NewClient(&redis.Options{Addr: f.Addr()})
	defer c.Close()
	s, err := redial.Supervise(c.Client)
	if err == nil {
		s.Close()
	}
	assert.Error(t, err)
}

type ctxHook struct{ passHook }

// A hook of the caller that lets go of the pipeline when ctx ends.

func (ctxHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
}

// A transaction that a cluster refuses for now is sent again.
func TestNodes_TransactionIsRefused(t *testing.T) {
	t.Parallel()
	for _, k := range []int{1, 2} {
		began := time.Now()
		_, addrs := fakeCluster(t, 1, func(int) fakeHook {
			return func(_ *redialtest.FakeConn, args []string) redialtest.Action {
				down := time.Since(began) < 700*time.Millisecond
				switch {
				case !down:
				case args[0] == "multi":
					return redialtest.Reply("+OK\r\n")
				case args[0] == "incr":
					return redialtest.Reply("-CLUSTERDOWN The cluster is down\r\n")
				case args[0] == "exec":
					return redialtest.Reply("-EXECABORT Transaction discarded because of previous errors.\r\n")
				}
				return redialtest.Handle
			}
		})
		c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})
		testkit.WaitReady(t, c)
		start := time.Now()
		_, err := c.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
			for range k {
				p.Incr(t.Context(), "a")
			}
			return nil
		})
		t.Log(k, time.Since(start), err)
		assert.NoError(t, err, "%d commands", k)
		c.Close()
	}
}

// A hook that returns the end of its context does not make an unknown outcome a known one.
func TestRing_HookLetsGo(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		if args[0] == "incr" {
			return redialtest.ExecuteThenDrop
		}
		return redialtest.Handle
	})
	c := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": f.Addr()}})
	defer c.Close()
	testkit.WaitReady(t, c)
	for _, s := range c.GetShardClients() {
		s.AddHook(ctxHook{})
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Incr(ctx, "a")
		p.Incr(ctx, "a")
		return nil
	})
	t.Log(err, f.Executed("incr"))
	assert.False(t, errors.Is(err, redial.ErrUnavailable), "nothing ran, it says")
}

// A part of a split command that was refused is a failure of the whole.
func TestNodes_PartIsRefused(t *testing.T) {
	t.Parallel()
	for _, reply := range []string{"-CLUSTERDOWN The cluster is down\r\n", "-MOVED 1 127.0.0.1:1\r\n"} {
		var nodes []*redialtest.FakeServer
		var addrs []string
		for range 2 {
			f := redialtest.NewFakeServer(t)
			nodes = append(nodes, f)
			addrs = append(addrs, f.Addr())
		}
		slots := "*2\r\n"
		for i, a := range addrs {
			host, port, _ := net.SplitHostPort(a)
			slots += fmt.Sprintf("*3\r\n:%d\r\n:%d\r\n*2\r\n$%d\r\n%s\r\n:%s\r\n", i*8192, (i+1)*8192-1, len(host), host, port)
		}
		for i, f := range nodes {
			f.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
				switch strings.ToLower(args[0]) {
				case "cluster":
					return redialtest.Reply(slots)
				case "command":
					return redialtest.Reply("*1\r\n*10\r\n$3\r\ndel\r\n:-2\r\n*1\r\n+write\r\n:1\r\n:-1\r\n:1\r\n*0\r\n*2\r\n$26\r\nrequest_policy:multi_shard\r\n$23\r\nresponse_policy:agg_sum\r\n*0\r\n*0\r\n")
				case "del":
					if i == 1 {
						return redialtest.Reply(reply)
					}
				}
				return redialtest.Handle
			})
		}
		c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs}, redial.WithGrace(300*time.Millisecond))
		c.SetCommandInfoResolver(c.NewDynamicResolver())
		testkit.WaitReady(t, c)
		var keys []string
		for i := range 20 {
			keys = append(keys, fmt.Sprint("k", i))
		}
		n, err := c.Del(t.Context(), keys...).Result()
		t.Log(n, err, nodes[0].Executed("del"))
		assert.Error(t, err)
		c.Close()
	}
}

// The grace of a node begins when somebody wants it, not when the client was built.
func TestNodes_GraceBeginsWithTheFirstAttempt(t *testing.T) {
	t.Parallel()
	a, b := redialtest.NewFakeServer(t), redialtest.NewFakeServer(t)
	_, ap, _ := net.SplitHostPort(a.Addr())
	_, bp, _ := net.SplitHostPort(b.Addr())
	moved := atomic.Bool{}
	hook := func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		switch strings.ToLower(args[0]) {
		case "cluster":
			x, y := ap, bp
			if moved.Load() {
				x, y = bp, ap
			}
			return redialtest.Reply(fmt.Sprintf("*1\r\n*4\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%s\r\n*2\r\n$9\r\n127.0.0.1\r\n:%s\r\n", x, y))
		case "command":
			return redialtest.Reply("*0\r\n")
		case "incr":
			if moved.Load() {
				return redialtest.Handle
			}
		}
		return redialtest.Handle
	}
	a.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
		if moved.Load() && args[0] == "incr" {
			return redialtest.Reply("-MOVED 1 " + b.Addr() + "\r\n")
		}
		return hook(c, args)
	})
	b.OnCommand(hook)
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{a.Addr()}}, redial.WithGrace(time.Second))
	defer c.Close()
	testkit.WaitReady(t, c)
	require.NoError(t, c.Incr(t.Context(), "k").Err())
	time.Sleep(1200 * time.Millisecond)
	for _, n := range c.Stats().Nodes {
		t.Log(n)
	}
	b.Kill()
	moved.Store(true)
	time.AfterFunc(300*time.Millisecond, func() { _ = b.Start() })
	began := time.Now()
	err := c.Incr(t.Context(), "k").Err()
	t.Log(time.Since(began), err)
	assert.NoError(t, err)
}

// A client that is told its topology by others starts without an outage.
func TestNodes_StartIsNoOutage(t *testing.T) {
	t.Parallel()
	f := redialtest.NewFakeServer(t)
	n := atomic.Int32{}
	c := redial.NewClusterClient(&redis.ClusterOptions{ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
		n.Add(1)
		return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: f.Addr()}}}}, nil
	}})
	defer c.Close()
	testkit.WaitReady(t, c)
	time.Sleep(100 * time.Millisecond)
	t.Log("outages at the start", c.Stats().Outages, "asked", n.Load())
	assert.Zero(t, c.Stats().Outages)
}

// An idle client of several nodes that are all down dials each no more often than a client of one.
func TestNodes_IdleClientsBackOff(t *testing.T) {
	t.Parallel()
	var dead []string
	for range 3 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		dead = append(dead, ln.Addr().String())
		ln.Close()
	}
	one := redial.NewClient(&redis.Options{Addr: dead[0]})
	defer one.Close()
	cl := redial.NewClusterClient(&redis.ClusterOptions{Addrs: dead})
	defer cl.Close()
	ring := redial.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": dead[0], "b": dead[1], "c": dead[2]}})
	defer ring.Close()
	time.Sleep(4 * time.Second)
	alone := one.Stats().Dials
	t.Log("client", alone, "cluster/3", cl.Stats().Dials/3, "ring/3", ring.Stats().Dials/3)
	assert.Less(t, cl.Stats().Dials/3, 3*alone)
	assert.Less(t, ring.Stats().Dials/3, 3*alone)
}

// A full-duplex pipeline of which the last reply never comes runs once.
func TestNodes_FullDuplex(t *testing.T) {
	t.Parallel()
	n := atomic.Int32{}
	gate := make(chan struct{})
	_, addrs := fakeCluster(t, 1, func(i int) fakeHook {
		return func(_ *redialtest.FakeConn, args []string) redialtest.Action {
			if args[0] == "incr" {
				switch n.Add(1) {
				case 1:
					<-gate
				case 3:
					return redialtest.ExecuteThenDrop // and nothing follows: a stall
				}
			}
			return redialtest.Handle
		}
	})
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, ReadTimeout: 300 * time.Millisecond})
	defer c.Close()
	testkit.WaitReady(t, c)
	ap, err := c.AutoPipelineWithOptions(&redis.AutoPipelineOptions{FullDuplex: true, MaxConcurrentBatches: 1})
	require.NoError(t, err)
	defer ap.Close()
	errs := make(chan error, 3)
	for i := range 3 {
		go func() { errs <- ap.Incr(context.Background(), fmt.Sprint("k", i)).Err() }()
		time.Sleep(20 * time.Millisecond)
	}
	close(gate)
	for range 3 {
		t.Log(<-errs)
	}
	assert.Equal(t, int32(3), n.Load())
}

// many sharded subscriptions are told to go

// Many subscriptions that are told to go elsewhere ask for the topology together.
func TestNodes_StraySubscriptions(t *testing.T) {
	t.Parallel()
	slots := atomic.Int32{}
	f := redialtest.NewFakeServer(t)
	host, port, _ := net.SplitHostPort(f.Addr())
	f.OnCommand(func(_ *redialtest.FakeConn, args []string) redialtest.Action {
		switch args[0] {
		case "cluster":
			slots.Add(1)
			return redialtest.Reply(fmt.Sprintf("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$%d\r\n%s\r\n:%s\r\n", len(host), host, port))
		case "ssubscribe":
			return redialtest.Reply("-MOVED 1 127.0.0.1:1\r\n")
		}
		return redialtest.Handle
	})
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: []string{f.Addr()}})
	defer c.Close()
	testkit.WaitReady(t, c)
	for i := range 50 {
		s := c.SSubscribe(t.Context(), fmt.Sprint("c", i))
		defer s.Close()
		s.Channel()
	}
	slots.Store(0)
	d := f.Dials()
	time.Sleep(2 * time.Second)
	t.Log("CLUSTER SLOTS in 2s:", slots.Load(), "dials", f.Dials()-d)
	assert.LessOrEqual(t, slots.Load(), int32(60))
	assert.LessOrEqual(t, f.Dials()-d, 400)
}

// A program may have hooks added to the nodes of the embedded client, as libraries do
// that know nothing of redial, and none escapes that.
func TestNodes_EmbeddedOnNewNode_MissesNone(t *testing.T) {
	f := redialtest.NewFakeServer(t)
	for range 20 {
		c := redial.NewClusterClient(&redis.ClusterOptions{ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: f.Addr()}}}}, nil
		}})
		var seen atomic.Int64
		c.ClusterClient.OnNewNode(func(*redis.Client) { seen.Add(1) })
		require.NoError(t, c.Ping(t.Context()).Err())
		assert.EqualValues(t, 1, seen.Load())
		require.NoError(t, c.Close())
	}
}

// leftovers is a hook of a node that looks for what an attempt before has left on a command.
type leftovers struct {
	passHook
	seen   *sync.Map // texts
	failed func()    // an attempt has
}

func (l leftovers) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() != "incr" {
			return next(ctx, cmd)
		}
		if err := cmd.Err(); err != nil {
			l.seen.Store(fmt.Sprintf("before: %T %v", err, err), true)
		}
		err := next(ctx, cmd)
		switch {
		case err != nil:
			l.failed()
		case cmd.Err() != nil:
			l.seen.Store(fmt.Sprintf("after: %T %v", cmd.Err(), cmd.Err()), true)
		}
		return err
	}
}

// A command that is tried again, after a node could not be reached, comes to hooks of that
// node as it came to them first.
func TestNodes_NextAttempt_BeginsClean(t *testing.T) {
	t.Parallel()
	for _, ring := range []bool{false, true} {
		t.Run(fmt.Sprint("ring ", ring), func(t *testing.T) {
			t.Parallel()
			_, addrs := fakeCluster(t, 2, nil)
			var seen sync.Map
			var refusing, failed atomic.Bool
			refusing.Store(true)
			hook := leftovers{seen: &seen, failed: func() { failed.Store(true); refusing.Store(false) }}
			dialer := func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == addrs[1] && refusing.Load() {
					return nil, errors.New("nobody is there")
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			newClient := func(o *redis.Options) *redis.Client {
				rdb := redis.NewClient(o)
				rdb.AddHook(hook)
				return rdb
			}
			var c redial.UniversalClient
			if ring {
				r := redial.NewRing(&redis.RingOptions{
					Addrs: map[string]string{"a": addrs[0], "b": addrs[1]}, Dialer: dialer, NewClient: newClient,
					HeartbeatFn: func(context.Context, *redis.Client) bool { return true },
				})
				r.OnNewNode(func(rdb *redis.Client) { rdb.AddHook(hook) })
				c = r
			} else {
				r := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs[:1], Dialer: dialer, NewClient: newClient})
				r.OnNewNode(func(rdb *redis.Client) { rdb.AddHook(hook) })
				c = r
			}
			t.Cleanup(func() { _ = c.Close() })
			for i := range 8 {
				require.NoError(t, c.Incr(t.Context(), fmt.Sprint("key", i)).Err())
			}
			require.True(t, failed.Load(), "no attempt has failed")
			seen.Range(func(text, _ any) bool {
				t.Error(text)
				return true
			})
		})
	}
}

// What a command has waited for the first connection to a node is part of what it may wait.
func TestNodes_WaitFor_HoldsForTheFirstConnection(t *testing.T) {
	t.Parallel()
	_, addrs := fakeCluster(t, 2, nil)
	c := redial.NewClusterClient(&redis.ClusterOptions{
		Addrs: addrs[:1],
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == addrs[1] {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}, redial.WithGrace(10*time.Second))
	t.Cleanup(func() { _ = c.Close() })
	testkit.WaitReady(t, c) // else that is waited for as well
	const limit = time.Second
	waited := 0
	for i := 0; waited == 0; i++ {
		began := time.Now()
		err := c.Incr(redial.WaitFor(t.Context(), limit), fmt.Sprint("key", i)).Err()
		took := time.Since(began)
		if err == nil {
			continue // on the other node
		}
		waited++
		require.ErrorIs(t, err, redial.ErrUnavailable)
		assert.GreaterOrEqual(t, took, limit)
		assert.Less(t, took, limit*3/2)
	}
}

// A Watch of several nodes asks a pool that stays exhausted as often as a command does.
func TestNodes_PoolExhausted_Watch(t *testing.T) {
	t.Parallel()
	const patience = 100 * time.Millisecond
	_, addrs := fakeCluster(t, 1, nil)
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, PoolSize: 1, PoolTimeout: patience})
	defer c.Close()
	testkit.WaitReady(t, c)
	var held *redis.Conn
	require.NoError(t, c.ForEachMaster(t.Context(), func(ctx context.Context, node *redis.Client) error {
		held = node.Conn()
		return held.Ping(ctx).Err()
	}))
	watch := func() error { return c.Watch(t.Context(), func(*redis.Tx) error { return nil }, "k") }
	began := time.Now()
	assert.ErrorIs(t, watch(), redis.ErrPoolTimeout)
	assert.InDelta(t, 4*patience, time.Since(began), float64(4*patience))
	time.AfterFunc(patience*3/2, func() { _ = held.Close() })
	assert.NoError(t, watch())
}
