package redial

import (
	"context"
	"sync"
)

// lanes bounds how many dials run at once after the link came up. The limit
// starts low and grows by one with every success, so it doubles with every
// round: a pool warms up fast, yet a server that has just come back is not
// stormed.
type lanes struct {
	mu    sync.Mutex
	limit int             // guarded by mu
	busy  int             // guarded by mu
	queue []chan struct{} // guarded by mu; one is closed for each lane that frees
}

// reset starts over with few lanes.
func (l *lanes) reset() {
	l.mu.Lock()
	l.limit = firstLanes
	l.mu.Unlock()
}

// enter waits for a lane or the end of ctx.
func (l *lanes) enter(ctx context.Context) error {
	for {
		l.mu.Lock()
		if l.busy < l.limit {
			l.busy++
			l.mu.Unlock()
			return nil
		}
		turn := make(chan struct{})
		l.queue = append(l.queue, turn)
		l.mu.Unlock()
		select {
		case <-turn:
		case <-ctx.Done():
			l.leaveQueue(turn)
			return ctx.Err()
		}
	}
}

// leaveQueue takes back a place in the queue; a turn that came in the same
// moment goes to the next in line.
func (l *lanes) leaveQueue(turn chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, q := range l.queue {
		if q == turn {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			return
		}
	}
	l.wake(1)
}

// leave frees the lane; ok says whether the dial succeeded.
func (l *lanes) leave(ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy--
	free := 1
	if ok {
		l.limit++
		free++
	}
	l.wake(free)
}

// wake lets the first n of the queue try. The caller holds mu.
func (l *lanes) wake(n int) {
	for ; n > 0 && len(l.queue) > 0; n-- {
		close(l.queue[0])
		l.queue = l.queue[1:]
	}
}
