// Package bubble tests, in bubbles of testing/synctest and on a network in memory, what takes
// long or has to be exact in time: which attempts are made when, what is sent again, who is
// told, what Close waits for.
//
// It holds tests alone. They may use redial and go-redis as a user would, redialtest, and
// what is in internal/testkit, above all memnet; of what is inside of redial internal/command,
// for what commands are and weigh.
package bubble
