// Package redial is a drop-in resilient wrapper for go-redis v9.
//
// Change redis.NewClient(opt) to redial.NewClient(opt) and keep the rest of the
// program as it is:
//
//	rdb := redial.NewClient(&redis.Options{Addr: "127.0.0.1:6379"})
//	defer rdb.Close()
//
// A [Client] embeds the *redis.Client it protects, a [ClusterClient] or a [Ring] its
// counterpart; [Supervise] protects a client that exists already. They keep watch
// over the server with a background PING heartbeat, replace dead connections by
// exponential backoff, let commands ride out a short outage, and say of every
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
// The link to a server is in one of four states:
//
//	Connecting -> Connected <-> Reconnecting -> Closed
//
// While it is Connected a command costs two extra atomic operations and no
// allocation. While it is not, commands wait at a gate until the link is back,
// their context ends or the grace of the outage has passed; then they fail at
// once. See [WithGrace], [WithMaxWaiting], [FailFast] and [WaitFor].
//
// A client of several nodes has a link to each. It is Connected while one of them is;
// commands for a node that is down wait for it, or for the one that takes its place.
//
// # Concurrency
//
// Everything exported is safe for concurrent use. Events are delivered one at a
// time and in order. One goroutine keeps watch over an idle client, and one more
// listens to its sentinels if it has any, whatever the number of its connections and
// nodes; others come when there is something to do, and go. [Client.Close] stops and
// joins them all.
package redial
