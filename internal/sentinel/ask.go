package sentinel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/sys"
)

// How one question is put: to whom, one after the other and several at a time, and whose answer
// counts.

// round is one question, put to one sentinel and, when that fails or is slow to answer, to
// others as well, a few at a time. Those that say nothing are dialed anew now and then, so
// that there is always a young attempt under way when packets come through again.
type round struct {
	*Directory
	ctx      context.Context
	replicas bool // these are wanted, too

	queue   []*peer // to be asked
	silent  []*try  // the last ones of those that have neither answered nor failed
	failed  []*try  // the last ones of those that have
	under   []*try  // under way, the oldest first
	results chan *try
	hurry   bool // one is not enough
	ticks   int
	held    *answer // that is in doubt
	errs    []error
}

// try is one attempt to ask.
type try struct {
	peer    *peer
	hopeful bool
	began   time.Time
	client  *client
	fresh   bool // the client was made for this
	lost    bool // guarded by mu of the directory; nobody waits for it any more
	answer  answer
	err     error
}

// ask puts a question.
func (d *Directory) ask(replicas bool) (answer, error) {
	ctx, cancel := context.WithTimeout(d.life, d.limits.DialTimeout+d.limits.Timeout)
	defer cancel()
	r := &round{Directory: d, ctx: ctx, replicas: replicas, queue: d.candidates(), results: make(chan *try)}
	defer r.end()
	return r.run()
}

func (r *round) run() (answer, error) {
	tick := time.NewTicker(r.limits.Patience)
	defer tick.Stop()
	var doubt <-chan time.Time // for as long as an answer is held
	for {
		r.begin()
		switch {
		case r.held != nil && !r.isHopeful():
			return *r.held, nil
		case len(r.under)+len(r.silent) == 0:
			return answer{}, r.failure()
		}
		select {
		case <-tick.C:
			r.hurry = true
			r.makeRoom()
		case t := <-r.results:
			r.under = slices.DeleteFunc(r.under, func(u *try) bool { return u == t })
			r.hurry = true
			if t.err != nil {
				r.fail(t)
				break
			}
			r.silent = slices.DeleteFunc(r.silent, func(u *try) bool { return u.peer == t.peer })
			r.loseOthers(t.peer)
			switch {
			case r.believed(t.answer):
				return t.answer, nil
			case r.held == nil:
				r.held = &t.answer
				doubt = time.After(r.limits.Doubt)
			}
		case <-doubt:
			return *r.held, nil
		case <-r.ctx.Done():
			if r.held != nil {
				return *r.held, nil
			}
			r.errs = append(r.errs, r.ctx.Err())
			return answer{}, r.failure()
		}
	}
}

// fail notes that an attempt has failed. One that has only said nothing says nothing of
// those to the same sentinel that are younger.
func (r *round) fail(t *try) {
	mute := sys.IsTimeout(t.err)
	r.silent = slices.DeleteFunc(r.silent, func(u *try) bool { return u == t || u.peer == t.peer && !mute })
	ofPeer := func(u *try) bool { return u.peer == t.peer }
	if !slices.ContainsFunc(r.silent, ofPeer) {
		r.failed = append(slices.DeleteFunc(r.failed, ofPeer), t)
	}
	if !slices.ContainsFunc(r.errs, func(err error) bool { return err.Error() == t.err.Error() }) {
		r.errs = append(r.errs, t.err)
	}
}

func (r *round) failure() error {
	return fmt.Errorf("no sentinel answers: %w", errors.Join(r.errs...))
}

// isHopeful reports whether an answer is to be expected of one that has not answered.
func (r *round) isHopeful() bool {
	return slices.ContainsFunc(r.under, func(t *try) bool { return t.hopeful }) || slices.ContainsFunc(r.queue, r.hopeful)
}

// begin asks as many as may be asked at a time.
func (r *round) begin() {
	for len(r.queue) > 0 && (len(r.under) == 0 || r.hurry && len(r.under) < r.limits.AtOnce) {
		p := r.queue[0]
		r.queue = r.queue[1:]
		r.start(p)
	}
}

// makeRoom ends an attempt, if there are others to ask and too many are under way. Those
// that the caller has named, and are silent or have failed, are to be asked again, and take
// turns with those that were not asked yet.
func (r *round) makeRoom() {
	r.ticks++
	if len(r.queue) == 0 || r.ticks%2 == 0 {
		again := r.again()
		r.silent = r.requeue(r.silent, again)
		r.failed = r.requeue(r.failed, again)
	}
	if len(r.queue) > 0 && len(r.under) >= r.limits.AtOnce {
		r.lose(r.under[steady])
		r.under = slices.Delete(r.under, steady, steady+1)
	}
}

// loseOthers ends the attempts to ask one who has answered another: they say nothing more.
func (r *round) loseOthers(p *peer) {
	r.under = slices.DeleteFunc(r.under, func(u *try) bool {
		if u.peer == p {
			r.lose(u)
		}
		return u.peer == p
	})
}

// requeue has one of those tried asked again whose attempt is that old, as far as ticks tell,
// if there is any, and returns the rest.
func (r *round) requeue(tried []*try, age time.Duration) []*try {
	age -= r.limits.Patience / 2 // or it would be the tick after
	i := slices.IndexFunc(tried, func(t *try) bool { return t.peer.chosen && time.Since(t.began) >= age })
	if i < 0 {
		return tried
	}
	r.queue = slices.Insert(r.queue, 0, tried[i].peer)
	return slices.Delete(tried, i, i+1)
}

// again is how long one may be silent before it is dialed anew: a part of the time for which
// all have been, and no less than the last answer took.
func (r *round) again() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(min(max(time.Since(r.answered)/time.Duration(r.limits.Share), r.limits.Patience), r.limits.Again), r.took)
}

// end gives up what is under way.
func (r *round) end() {
	for _, t := range r.under {
		r.lose(t)
	}
}

// start asks a sentinel: on the connection on which it has answered before or, if it is
// silent there, on a new one.
func (r *round) start(p *peer) {
	t := &try{peer: p, hopeful: r.hopeful(p), began: time.Now()}
	r.mu.Lock()
	if !slices.ContainsFunc(r.under, func(u *try) bool { return u.peer == p }) {
		t.client = p.client
	}
	r.mu.Unlock()
	limit := r.limits.Timeout
	if t.client == nil {
		t.fresh, limit = true, limit+r.limits.DialTimeout
		t.client = r.connect(p.addr)
	}
	if t.client == nil || !r.spawn(func() { r.finish(t, limit) }) {
		return // it is closed
	}
	r.under = append(r.under, t)
	r.silent = append(r.silent, t)
}

// finish waits for the answer, and notes what became of the attempt.
func (r *round) finish(t *try, limit time.Duration) {
	ctx, cancel := context.WithTimeout(r.life, limit)
	defer cancel()
	t.err = r.contain(func() (err error) {
		t.answer, err = r.query(ctx, t.client, r.replicas)
		return err
	})
	t.answer.from = t.peer
	if r.note(t) {
		return
	}
	select {
	case r.results <- t:
	case <-r.ctx.Done():
	}
}

// note has a sentinel asked sooner or later next time, and keeps a connection that is well.
// It reports whether nobody waits for the attempt any more.
func (d *Directory) note(t *try) (lost bool) {
	p, keep := t.peer, t.err == nil || isWord(t.err)
	d.mu.Lock()
	_, isOpen := d.open[t.client]
	if !t.lost {
		if d.turn++; t.err == nil {
			p.good, d.answered, d.took = d.turn, time.Now(), time.Since(t.began)
		} else {
			p.good, p.failed = 0, d.turn
		}
	}
	switch {
	case t.lost, d.closed, !slices.Contains(d.peers, p):
		keep = false
	case keep && p.client == nil && !isOpen: // another attempt has failed on it
		keep = false
	case keep && p.client == nil:
		p.client = t.client
	case keep:
		keep = p.client == t.client
	case p.client == t.client:
		p.client = nil
	}
	lost = t.lost
	d.mu.Unlock()
	if !keep {
		t.client.close()
	}
	return lost
}

// lose says that nobody waits for an attempt any more. It ends one for which a connection
// is made, unless that has answered meanwhile and is kept.
func (d *Directory) lose(t *try) {
	d.mu.Lock()
	t.lost = t.fresh && t.peer.client != t.client
	lost := t.lost
	d.mu.Unlock()
	if lost {
		t.client.close()
	}
}

// spawn runs f on a goroutine that Close waits for. It reports false, and does not, when
// the directory is closed.
func (d *Directory) spawn(f func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.workers.Go(f)
	return true
}

// source returns a sentinel that answers.
func (d *Directory) source(ctx context.Context) (*peer, *client, error) {
	a, err := d.inquire(ctx, false, true)
	if err != nil {
		return nil, nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || a.from.client == nil {
		return nil, nil, redis.ErrClosed
	}
	return a.from, a.from.client, nil
}
