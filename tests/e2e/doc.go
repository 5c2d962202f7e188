// Package e2e tests redial as its users see it, from one end to the other: clients of every
// kind, against real servers, clusters and sentinels, scripted ones, and proxies and networks
// that fail.
//
// It holds tests alone. They may use redial and go-redis as a user would, redialtest and
// what is in internal/testkit; what needs the inside of redial stays beside it.
package e2e
