// Package server tests redial as users of one server see it, from one end to the other: rows of
// what can befall a server, whatever the client. What several servers do together is in e2e,
// networks that lose packets are in network.
//
// It holds tests alone. They may use redial and go-redis as a user would, redialtest and
// what is in internal/testkit; what needs the inside of redial stays beside it.
package server
