package sys

// GrowStack makes the stack of the calling goroutine large enough for the way of a command down
// to the socket, if it is not. A new goroutine has a small one, which grows wherever it happens
// to end, by being copied, frame by frame: twice on that way, the second time with some thirty
// frames. Here it grows once, with few. Where there is room this takes a comparison.
//
//go:noinline
func GrowStack() {
	if taken {
		var room [stackRoom]byte
		take(room[:])
	}
}

// stackRoom is how much room that is, in bytes.
const stackRoom = 3 << 10

// taken says that the room is used, which it never is: what counts is that it might be.
var taken bool

//go:noinline
func take(room []byte) { clear(room) }
