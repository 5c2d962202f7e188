// Package network tests redial on networks that drop and lose packets, which no proxy can: the
// kernel at its end would go on acknowledging. Each test runs itself again in a network
// namespace of its own, on Linux.
//
// It holds tests alone. They may use redial and go-redis as a user would, redialtest and
// what is in internal/testkit; what needs the inside of redial stays beside it.
package network
