package sentinel

import (
	"context"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/sys"
)

// What is heard without a question: that the master is another.

// Listen hears from the sentinels, from one at a time, until Close, and has moved called
// when it hears that the master is another than before: not when that is the answer to
// somebody who asks where to dial, and knows then. moved must not block. Listen must be
// called once.
func (d *Directory) Listen(moved func(from, to string)) {
	if d.Words() != nil {
		return
	}
	d.mu.Lock()
	d.moved = moved
	d.mu.Unlock()
	d.spawn(d.hearAll)
}

// hearAll hears from whichever sentinel answers; the one that did last is asked first.
// There is a pause only where one keeps ending what has hardly begun, or none answers.
func (d *Directory) hearAll() {
	pause := time.Duration(0)
	for d.life.Err() == nil {
		began := time.Now()
		if p, c, err := d.source(d.life); err == nil {
			_ = d.contain(func() error { d.hear(p, c); return nil }) // which ends it, as all else does
		}
		if time.Since(began) >= d.limits.Pause {
			pause = 0
			continue
		}
		if pause == 0 {
			pause = d.limits.FirstPause
			continue
		}
		d.rest(pause)
		pause = min(2*pause, d.limits.Pause)
	}
}

// rest waits for that long, for somewhat less if chance will have it, or until Close.
func (d *Directory) rest(pause time.Duration) {
	timer := time.NewTimer(pause - time.Duration(d.limits.Jitter*rand.Float64()*float64(pause)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-d.life.Done():
	}
}

// hear subscribes to one sentinel and returns when it cannot be heard any more, or does
// not know the master. One that does not let it subscribe is asked for a while instead.
func (d *Directory) hear(p *peer, c *client) {
	const topic = "+switch-master"
	ctx := d.life
	sub := c.Subscribe(ctx, topic)
	defer context.AfterFunc(ctx, func() { _ = sub.Close() })()
	defer func() { _ = sub.Close() }()
	silent := false
	surveyed := time.Now()
	for {
		msg, err := sub.ReceiveTimeout(ctx, d.limits.Interval)
		if redis.HasErrorPrefix(err, "NOPERM ") {
			for time.Since(surveyed) < d.limits.Survey && d.check(ctx, c) {
				d.rest(d.limits.Interval)
			}
			return
		}
		if err != nil {
			if !sys.IsTimeout(err) || silent || sub.Ping(ctx) != nil {
				return
			}
			silent = true // the PING is to be answered
			_, _ = d.inquire(ctx, false, true)
			continue
		}
		silent = false
		switch msg := msg.(type) {
		case *redis.Subscription: // what was missed until now is asked for
			if !d.check(ctx, c) {
				return
			}
			d.discover(ctx, p, c)
		case *redis.Message: // <name> <old ip> <old port> <new ip> <new port>
			if words := strings.Fields(msg.Payload); len(words) == 5 && words[0] == d.opt.MasterName {
				d.learn(net.JoinHostPort(words[3], words[4]))
			}
		}
		if now := time.Now(); now.Sub(surveyed) >= d.limits.Survey {
			surveyed = now
			d.discover(ctx, p, c)
		}
	}
}

// check asks the sentinel that is heard where the master is, in case that was missed. It
// reports whether it can tell.
func (d *Directory) check(ctx context.Context, c *client) bool {
	ctx, cancel := context.WithTimeout(ctx, d.limits.Timeout)
	defer cancel()
	a, err := d.query(ctx, c, false)
	if err == nil && d.believed(a) {
		d.learn(a.master)
	}
	return err == nil
}

// learn notes where the master is, and tells whoever listens.
func (d *Directory) learn(addr string) {
	d.mu.Lock()
	tell := d.learnLocked(addr)
	d.mu.Unlock()
	tell()
}
