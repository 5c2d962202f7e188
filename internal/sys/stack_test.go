package sys

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/redial-go/redial/internal/testkit/platform"
)

// A stack that has grown does not move when the room that was made is used.
func TestGrowStack(t *testing.T) {
	assert.True(t, movesStack(func() {}), "a new goroutine has no room")
	assert.False(t, movesStack(GrowStack))
}

// movesStack reports whether the stack of a new goroutine, which calls prepare, has to move for
// what needs nearly as much room as GrowStack makes.
func movesStack(prepare func()) (moved bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		prepare()
		before := platform.EndOfStack()
		deep(stackRoom/1024 - 1)
		moved = platform.EndOfStack() != before
	}()
	<-done
	return moved
}

// deep uses nearly 1 KB of the stack n times.
//
//go:noinline
func deep(n int) {
	var frame [900]byte
	take(frame[:])
	if n > 0 {
		deep(n - 1)
	}
	take(frame[:])
}
