// Package redialtest breaks the connection between a program and Redis on
// purpose, so that a test can show what the program does about it.
//
// It holds these tools, each usable without the others and with any Redis client:
//
//   - [Proxy] is a TCP proxy in front of one address. It refuses, resets, cuts,
//     hangs, drops idle connections as a NAT does, loses a request before or a
//     reply after execution, slows down and garbles, switchable while it runs.
//   - [Server] is a real redis-server process of one test, plain or TLS, that can
//     be killed, started again on the same port, frozen and thawed.
//   - [Cluster] and [Failover] are several of them that replace a dead primary by
//     themselves: a Redis Cluster, and a primary with replicas and sentinels.
//   - [FakeServer] is a scripted server in memory. It counts what it executed and
//     works inside a testing/synctest bubble, where hours pass in milliseconds.
//   - [Leaks] fails a test that leaves goroutines or TCP sockets behind.
//
// Most tests need a Server with a Proxy in front of it:
//
//	redialtest.Leaks(t)
//	server := redialtest.StartServer(t)
//	proxy := redialtest.NewProxy(t, server.Addr())
//	rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
//	proxy.Refuse()
//	// ... what does the program do now?
//	proxy.Restore()
//
// # Concurrency and lifetime
//
// Every method of every type is safe for concurrent use, but for
// [Cluster.AddProxies], which comes before any other use. A fault that is
// switched on covers every byte that a peer sends after the method returned;
// bytes already in flight may be treated either way, as in a real network.
//
// What is made with a testing.TB is closed by its Cleanup, which also joins every
// goroutine. What is made without one must be closed by its Close method. A
// method that cannot do its work fails the test it was made for (Server methods
// stop it, as testing.TB.Fatal does); without a testing.TB it panics, because a
// fault that silently did not happen makes every result worthless.
//
// # Environment
//
// [StartServer], [StartTLSServer], [StartCluster] and [StartFailover] start redis-server,
// or else valkey-server, from PATH, or the program that REDIAL_SERVER names. They skip the
// test when there is none. With REDIAL_REQUIRE_REDIS=1 they fail it instead, so that a
// continuous build cannot turn green by testing nothing. [Skipped] says how many were.
package redialtest
