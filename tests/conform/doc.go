// Package conform runs the same code on bare go-redis and on redial, each against a server
// of its own, and compares what callers, hooks and servers see. Whatever is not one of the
// documented differences must be equal, to the letter.
//
// It holds tests alone. They may use redial and go-redis as a user would, and what is in
// internal/testkit; servers are scripted, so none has to be installed.
package conform
