// Package compat holds tests that hand a redial client to libraries made for
// go-redis, unchanged, and take the server away while they do their main job. It is
// a module of its own, for users of redial need not download those libraries.
package compat
