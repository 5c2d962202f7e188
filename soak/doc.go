// Package soak holds tests that break the connection between redial and a real
// server at random for as long as they are told to, and check everything that
// must hold: run go test -for 10m. It is a module of its own, for it needs a
// checker of linearizability that users of the library need not download.
package soak
