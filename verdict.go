package redial

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/sys"
	"github.com/redial-go/redial/internal/wire"
)

// What is concluded about the server, from what, and what follows. Nothing else does, and
// nothing is concluded from impatience alone.
//
//	known                     from                                   what follows
//	the server answers        any byte on any connection             Connected
//	it is not ready           a reply that says so, or one in place  Reconnecting; nothing is given up
//	                          of what it was asked and a close
//	new connections fail      dials fail or are turned away, an      Connected; commands share what there is
//	                          established connection answers
//	it is unresponsive        no connection gets a byte for the      Reconnecting; nothing is given up, and
//	                          detection time                         connections prove themselves before
//	                                                                 their next use
//	it is gone                dials fail, or new connections break,  Reconnecting; the generation is retired,
//	                          and nothing established answers        what is idle is closed
//	... and cut off           the same for the detection time        what owes a reply is given up where
//	                                                                 nobody can be asked about it
//	it is another             sentinels, READONLY; the topology, if  everything on the old one is given up
//	                          not a byte came since before that
//
// What is in flight ends otherwise only by what is known of its own connection.

// verdict is what one probe says about the server.
type verdict uint8

const (
	alive    verdict = iota // it answered
	dead                    // it cannot be reached: refused, reset, closed, no route
	missed                  // it said nothing in time
	notReady                // it answered that it cannot serve yet
	barring                 // it answered that it never will
	unsure                  // the probe itself was cut short
	awaited                 // there is no answer yet
)

// result is what became of a probe.
type result struct {
	verdict verdict
	err     error
	fresh   bool // of a new connection
}

// judge reads a verdict off the error of a probe; heard says whether any byte
// came back.
func judge(err error, heard bool) verdict {
	switch {
	case err == nil:
		return alive
	case isNotReady(err):
		return notReady
	case isReply(err), heard:
		return alive // whatever it said, it speaks
	case errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, context.Canceled),
		errors.Is(err, redis.ErrClosed):
		return unsure
	case isOfDial(err):
		return dead
	case sys.IsTimeout(err):
		return missed
	}
	return dead
}

// judgeWords does so of what a server has said in place of what it was asked, before it
// closed the connection: it is full, say.
func judgeWords(err error) verdict {
	if redis.HasErrorPrefix(err, "DENIED ") {
		return barring
	}
	return notReady
}

// isOfDial reports whether err is of a dial that failed.
func isOfDial(err error) bool {
	ce := wire.ErrorOf(err)
	return ce != nil && ce.Phase == wire.PhaseDial
}

// spares reports whether an outage costs no connection: the server is there, or may be,
// and what is in flight may yet be answered.
func spares(why Cause) bool { return why == CauseHeartbeatMissed || why == CauseNotReady }

// inquest is what is found out about a server that is Connected and has fallen silent or
// been found wanting.
type inquest struct {
	misses   int       // after how many times the heartbeat's timeout of silence it counts as unresponsive
	missed   int       // how many there were
	began    time.Time // when it did
	beginAt  time.Time // when another attempt is to be made
	asksIdle bool      // the heartbeat is on an idle connection
	leaves   bool      // it is left to others to make a new one first
	refused  error     // a dial failed
	broke    error     // a new connection broke
	breaks   int       // how many did
	asked    bool      // established connections were asked
	until    time.Time // for how long they may be waited for
	answers  bool      // and they are
	why      Cause     // what the last probe says, if that says it all
	cause    error     // the same
}

// miss is when the next heartbeat counts as missed.
func (q *inquest) miss(timeout time.Duration) time.Time {
	return q.began.Add(time.Duration(q.missed+1) * timeout)
}

// next is when there is something to do, whatever is heard until then.
func (q *inquest) next(timeout time.Duration) time.Time {
	next := q.beginAt
	if miss := q.miss(timeout); miss.Before(next) {
		next = miss
	}
	if q.answers && q.until.Before(next) {
		next = q.until
	}
	return next
}

// hears notes what became of a probe, and returns the error and the cause when that says
// it all.
func (q *inquest) hears(r result) (why Cause, cause error) {
	switch r.verdict {
	case notReady, barring:
		return CauseNotReady, r.err
	case dead:
		switch {
		case !r.fresh: // it tells nothing of the server
		case isOfDial(r.err):
			q.refused = r.err
		default:
			q.broke = r.err
			q.breaks++
		}
	}
	return CauseNone, nil
}

// fails returns the error with which new connections fail, if they do: what broke the
// others may have met the first one, too.
func (q *inquest) fails() error {
	switch {
	case q.refused != nil:
		return q.refused
	case q.breaks > 1:
		return q.broke
	}
	return nil
}

// concludes returns the cause when the server is to be given up.
func (q *inquest) concludes() Cause {
	switch {
	case q.fails() != nil && q.asked && !q.answers:
		return CauseConnectionLost
	case q.missed >= q.misses:
		return CauseHeartbeatMissed
	}
	return CauseNone
}

// saidInstead is what a server has said in place of what it was asked, before it closed
// the connection.
type saidInstead string

func (s saidInstead) Error() string { return string(s) }

// RedisError marks it as a reply.
func (saidInstead) RedisError() {}
