// Package redial is a drop-in resilient wrapper for go-redis v9.
//
// Change redis.NewClient(opt) to redial.NewClient(opt) and keep the rest of the
// program as it is:
//
//	rdb := redial.NewClient(&redis.Options{Addr: "127.0.0.1:6379"})
//	defer rdb.Close()
//
// A [Client] embeds the *redis.Client it protects. It keeps watch over the
// server with a background PING heartbeat, replaces dead connections by
// exponential backoff, lets commands ride out a short outage, and says of every
// failed command whether it can have run: [ErrUnavailable] means that nothing
// ran, [ErrOutcomeUnknown] that the command was written and its reply was lost.
//
// # How it works
//
// The client is never recreated. Connections are handed to go-redis's own pool
// by a dialer that stamps them with a generation; retiring a generation makes
// every older connection fail before its first byte, so the pool, hooks,
// subscriptions and every pointer handed out before an outage work after it.
//
// The link to the server is in one of four states:
//
//	Connecting -> Connected <-> Reconnecting -> Closed
//
// While it is Connected a command costs two extra atomic operations and no
// allocation. While it is not, commands wait at a gate until the link is back,
// their context ends or the grace of the outage has passed; then they fail at
// once. See [WithGrace], [WithMaxWaiting], [FailFast] and [WaitFor].
//
// # Concurrency
//
// Everything exported is safe for concurrent use. Events are delivered one at a
// time and in order. A client owns at most three goroutines whatever the size
// of its pool; [Client.Close] stops and joins them.
package redial
