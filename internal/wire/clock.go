package wire

import (
	"sync/atomic"
	"time"
)

// The time, as cheap as a look at a number. It uses nothing else of the package.

// Clock tells the time in nanoseconds since it was made, never 0. To look at it as it was
// advanced last costs nothing; somebody has to do that now and then.
//
// A Clock is safe for concurrent use.
type Clock struct {
	began time.Time
	last  atomic.Int64 // as Read tells, but not set by itself
}

// NewClock returns a clock that begins now.
func NewClock() *Clock {
	c := &Clock{began: time.Now()}
	c.last.Store(1)
	return c
}

// Read returns what the time is.
func (c *Clock) Read() int64 { return max(int64(time.Since(c.began)), 1) }

// Of returns what the clock had told at t.
func (c *Clock) Of(t time.Time) int64 { return max(int64(t.Sub(c.began)), 1) }

// at returns the time at which the clock had told that.
func (c *Clock) at(told int64) time.Time { return c.began.Add(time.Duration(told)) }

// Last returns what the time was when the clock was advanced last.
func (c *Clock) Last() int64 { return c.last.Load() }

// Advance sets the clock to now and returns it. It never stands still, so that
// what came before a call can be told from what came after.
func (c *Clock) Advance() int64 {
	for {
		old := c.last.Load()
		now := max(int64(time.Since(c.began)), old+1)
		if c.last.CompareAndSwap(old, now) {
			return now
		}
	}
}
