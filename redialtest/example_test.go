package redialtest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/redialtest"
)

// A test that takes the server away and gives it back.
func Example() {
	_ = func(t *testing.T) {
		redialtest.Leaks(t) // first, so that it looks last
		server := redialtest.StartServer(t)
		proxy := redialtest.NewProxy(t, server.Addr())
		rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
		t.Cleanup(func() { _ = rdb.Close() })

		proxy.Refuse()
		if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err == nil {
			t.Error("SET succeeded without a server")
		}
		proxy.Restore()
		if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Error(err)
		}
	}
}

// How often does a client run a command whose reply is lost? The server counts.
func ExampleProxy_CutAfterRequest() {
	server, err := redialtest.StartFakeServer()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	proxy, err := redialtest.StartProxy("127.0.0.1:0", server.Addr())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer proxy.Close()
	rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr()}) // retries by default
	defer rdb.Close()

	proxy.Match("incr") // not the handshake
	proxy.CutAfterRequest(1)
	n, err := rdb.Incr(context.Background(), "orders").Result()
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println("the client says", n)
	fmt.Println("the server ran it", server.Executed("incr"), "times")
	// Output:
	// the client says 2
	// the server ran it 2 times
}

// behindProxy starts what most examples need: a server that counts, a proxy in front
// of it and a client that neither retries nor waits long.
func behindProxy() (*redialtest.FakeServer, *redialtest.Proxy, *redis.Client, func()) {
	server, err := redialtest.StartFakeServer()
	if err != nil {
		panic(err)
	}
	proxy, err := redialtest.StartProxy("127.0.0.1:0", server.Addr())
	if err != nil {
		panic(err)
	}
	rdb := redis.NewClient(&redis.Options{
		Addr: proxy.Addr(), MaxRetries: -1, DialerRetries: 1, ReadTimeout: 100 * time.Millisecond,
	})
	return server, proxy, rdb, func() {
		_ = rdb.Close()
		_ = proxy.Close()
		_ = server.Close()
	}
}

// The process behind the address has died, and comes back.
func ExampleProxy_Refuse() {
	_, proxy, rdb, stop := behindProxy()
	defer stop()
	ctx := context.Background()
	proxy.Refuse()
	fmt.Println("an error while refused:", rdb.Ping(ctx).Err() != nil)
	proxy.Restore()
	fmt.Println("and then:", rdb.Ping(ctx).Err())
	// Output:
	// an error while refused: true
	// and then: <nil>
}

// A firewall or a load balancer resets what passes through it.
func ExampleProxy_Reset() {
	_, proxy, rdb, stop := behindProxy()
	defer stop()
	ctx := context.Background()
	rdb.Ping(ctx) // leaves an idle connection in the pool
	fmt.Println("reset:", proxy.Reset())
	fmt.Println("live:", proxy.Stats().LiveConns)
	// Output:
	// reset: 1
	// live: 0
}

// The server is frozen, or the network swallows every packet: nothing is refused and
// nothing is answered.
func ExampleProxy_Hang() {
	_, proxy, rdb, stop := behindProxy()
	defer stop()
	ctx := context.Background()
	rdb.Ping(ctx)
	fmt.Println("hung:", proxy.Hang())
	var timeout net.Error
	fmt.Println("a timeout:", errors.As(rdb.Ping(ctx).Err(), &timeout) && timeout.Timeout())
	proxy.Restore()
	fmt.Println("and then:", rdb.Ping(ctx).Err())
	// Output:
	// hung: 1
	// a timeout: true
	// and then: <nil>
}

// A NAT forgets an idle connection: no error ever arrives on it.
func ExampleProxy_DropIdle() {
	_, proxy, rdb, stop := behindProxy()
	defer stop()
	ctx := context.Background()
	rdb.Ping(ctx)
	fmt.Println("dropped:", proxy.DropIdle())
	fmt.Println("an error on the old one:", rdb.Ping(ctx).Err() != nil)
	fmt.Println("on a new one:", rdb.Ping(ctx).Err())
	// Output:
	// dropped: 1
	// an error on the old one: true
	// on a new one: <nil>
}

// A request that is lost before the server has seen it.
func ExampleProxy_CutBeforeForward() {
	server, proxy, rdb, stop := behindProxy()
	defer stop()
	proxy.Match("incr")
	proxy.CutBeforeForward(1)
	err := rdb.Incr(context.Background(), "orders").Err()
	fmt.Println("an error:", err != nil)
	fmt.Println("the server ran it", server.Executed("incr"), "times")
	fmt.Println("still to come:", proxy.CutBeforeForward(0))
	// Output:
	// an error: true
	// the server ran it 0 times
	// still to come: 0
}

// A reply that breaks off in the middle.
func ExampleProxy_CutMidReply() {
	_, proxy, rdb, stop := behindProxy()
	defer stop()
	proxy.Match("echo")
	proxy.CutMidReply(1)
	fmt.Println(rdb.Echo(context.Background(), "0123456789").Err())
	fmt.Println("still to come:", proxy.CutMidReply(0))
	// Output:
	// unexpected EOF
	// still to come: 0
}

// Something that does not speak the protocol answers.
func ExampleProxy_Garbage() {
	_, proxy, rdb, stop := behindProxy()
	defer stop()
	proxy.Match("ping")
	proxy.Garbage(1)
	fmt.Println("an error:", rdb.Ping(context.Background()).Err() != nil)
	fmt.Println("replaced:", proxy.Stats().GarbledCount)
	// Output:
	// an error: true
	// replaced: 1
}

// A server that is far away.
func ExampleProxy_Delay() {
	_, proxy, rdb, stop := behindProxy()
	defer stop()
	ctx := context.Background()
	rdb.Ping(ctx)
	proxy.Delay(20 * time.Millisecond)
	start := time.Now()
	fmt.Println(rdb.Ping(ctx).Err(), time.Since(start) >= 20*time.Millisecond)
	// Output:
	// <nil> true
}

// A slow line: 2 kB take 40 ms at 50 kB a second.
func ExampleProxy_Bandwidth() {
	_, proxy, rdb, stop := behindProxy()
	defer stop()
	ctx := context.Background()
	rdb.Ping(ctx)
	proxy.Bandwidth(50_000)
	start := time.Now()
	fmt.Println(rdb.Set(ctx, "k", strings.Repeat("x", 2000), 0).Err(), time.Since(start) >= 40*time.Millisecond)
	// Output:
	// <nil> true
}

// A failover: new connections lead elsewhere, and the old ones are cut.
func ExampleProxy_Retarget() {
	server, proxy, rdb, stop := behindProxy()
	defer stop()
	other, err := redialtest.StartFakeServer()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer other.Close()
	ctx := context.Background()
	rdb.Incr(ctx, "n")
	before := proxy.Retarget(other.Addr())
	proxy.Cut()
	_ = rdb.Incr(ctx, "n").Err() // may meet the end of the old connection
	rdb.Incr(ctx, "n")
	fmt.Println("away from the first server:", before == server.Addr())
	fmt.Println(server.Executed("incr"), "there, some here:", other.Executed("incr") > 0)
	// Output:
	// away from the first server: true
	// 1 there, some here: true
}

// What did the client do to the server?
func ExampleProxy_Stats() {
	_, proxy, rdb, stop := behindProxy()
	defer stop()
	ctx := context.Background()
	rdb.Ping(ctx)
	rdb.Ping(ctx)
	stats := proxy.Stats()
	fmt.Println(stats.Dials, "dial,", stats.LiveConns, "live,", stats.PeakConns, "at most")
	fmt.Println("bytes both ways:", stats.BytesUp > 0 && stats.BytesDown > 0)
	// Output:
	// 1 dial, 1 live, 1 at most
	// bytes both ways: true
}

// The height of the dial storm that a client makes when the server comes back.
func ExampleProxyStats_PeakDials() {
	_ = func(proxy *redialtest.Proxy, load func(time.Duration)) {
		proxy.AcceptAndClose()
		load(3 * time.Second)
		stats := proxy.Stats()
		fmt.Println(stats.Dials, "dials, at most", stats.PeakDials(time.Second), "a second")
	}
}

// A frozen server still accepts bytes, and runs them when it thaws.
func ExampleServer_Freeze() {
	_ = func(t *testing.T, rdb *redis.Client) {
		server := redialtest.StartServer(t)
		server.Freeze()
		err := rdb.Incr(t.Context(), "n").Err() // times out, but was it executed?
		server.Thaw()
		t.Log(err, server.Do("GET", "n"))
	}
}

func ExampleStartTLSServer() {
	_ = func(t *testing.T) {
		server := redialtest.StartTLSServer(t)
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), TLSConfig: server.TLSConfig()})
		t.Cleanup(func() { _ = rdb.Close() })
		if err := rdb.Ping(t.Context()).Err(); err != nil {
			t.Error(err)
		}
	}
}

// In a bubble ten minutes of an outage take no time at all.
func ExampleNewFakeServerPipe() {
	_ = func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			server := redialtest.NewFakeServerPipe(t)
			rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), Dialer: server.Dial})
			defer rdb.Close()

			server.Kill()
			time.Sleep(10 * time.Minute)
			if err := server.Start(); err != nil {
				t.Error(err)
			}
			if err := rdb.Ping(t.Context()).Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A server that is loading for the first command, then answers.
func ExampleFakeServer_OnCommand() {
	server, _, rdb, stop := behindProxy()
	defer stop()
	var refused atomic.Bool
	server.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
		if strings.EqualFold(args[0], "get") && !refused.Swap(true) {
			return redialtest.Reply("-LOADING Redis is loading the dataset in memory\r\n")
		}
		return redialtest.Handle
	})
	ctx := context.Background()
	fmt.Println(rdb.Get(ctx, "k").Err())
	fmt.Println(rdb.Get(ctx, "k").Err())
	// Output:
	// LOADING Redis is loading the dataset in memory
	// redis: nil
}

// Commands of a transaction count when EXEC runs them.
func ExampleFakeServer_Executed() {
	server, _, rdb, stop := behindProxy()
	defer stop()
	ctx := context.Background()
	pipe := rdb.TxPipeline()
	pipe.Incr(ctx, "n")
	pipe.Incr(ctx, "n")
	fmt.Println("before EXEC:", server.Executed("incr"))
	_, err := pipe.Exec(ctx)
	fmt.Println("after it:", server.Executed("incr"), err)
	// Output:
	// before EXEC: 0
	// after it: 2 <nil>
}

// A real server on a free port. Without redis-server the test is skipped, or fails
// where REDIAL_REQUIRE_REDIS is set.
func ExampleStartServer() {
	_ = func(t *testing.T) {
		server := redialtest.StartServer(t, "--appendonly", "yes")
		server.Do("SET", "k", "v")
		server.Kill()
		server.Start() // on the same port
		t.Log(server.Addr(), server.Do("GET", "k"))
	}
}

// Whatever the test starts from here on must be gone when it has ended.
func ExampleLeaks() {
	_ = func(t *testing.T) {
		redialtest.Leaks(t) // first, so that it looks last
		rdb := redis.NewClient(&redis.Options{Addr: redialtest.NewFakeServer(t).Addr()})
		t.Cleanup(func() { _ = rdb.Close() })
		rdb.Ping(t.Context())
	}
}

func ExampleLeaksMain() {
	_ = func(m *testing.M) { // TestMain
		os.Exit(redialtest.LeaksMain(m))
	}
}

var _ io.Closer = (*redialtest.Proxy)(nil)
var _ io.Closer = (*redialtest.Server)(nil)
var _ io.Closer = (*redialtest.FakeServer)(nil)
