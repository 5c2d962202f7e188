// Package server tests redial as users of one server see it, from one end to the other: rows of
// what can befall a server, and networks that lose packets. What clients of several servers
// see is in e2e.
//
// It holds tests alone. They may use redial and go-redis as a user would, redialtest and
// what is in internal/testkit; what needs the inside of redial stays beside it.
package server
