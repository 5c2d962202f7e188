// Package wire has the connections to one server: what becomes of the bytes of a command,
// how far it had come when its connection failed, which connections may be used and which
// are given up, and how one that nobody has heard from proves itself. What that says of the
// server, and what is to be done about it, is for its owner to know.
package wire
