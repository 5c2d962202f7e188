package redialtest_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
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

// A NAT forgets an idle connection: no error ever arrives on it.
func ExampleProxy_DropIdle() {
	_ = func(rdb *redis.Client, proxy *redialtest.Proxy) {
		ctx := context.Background()
		rdb.Ping(ctx) // leaves an idle connection in the pool
		fmt.Println("dropped:", proxy.DropIdle())
		start := time.Now()
		err := rdb.Ping(ctx).Err()
		fmt.Println(err, "after", time.Since(start))
	}
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

// A server that is loading for the first two commands, then answers.
func ExampleFakeServer_OnCommand() {
	_ = func(server *redialtest.FakeServer) {
		refused := 0
		server.OnCommand(func(c *redialtest.FakeConn, args []string) redialtest.Action {
			if strings.EqualFold(args[0], "get") && refused < 2 {
				refused++
				return redialtest.Reply("-LOADING Redis is loading the dataset in memory\r\n")
			}
			return redialtest.Handle
		})
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
