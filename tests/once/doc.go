// Package once tests what redial.Once promises: a piece of work with an id runs once, through
// faults, in every topology, for commands of every type, and its caller learns the reply.
//
// It holds tests alone. They may use redial and go-redis as a user would, redialtest, whose
// real servers they run on, and what is in internal/testkit.
package once
