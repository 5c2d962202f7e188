package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"time"
)

// dialCounter records every dial that a client asks of the network.
type dialCounter struct {
	delay time.Duration // added to every dial, as by a distant server

	mu    sync.Mutex
	dials []dial
}

type dial struct{ begin, end time.Time }

// dialer returns the function to give to a client.
func (d *dialCounter) dialer(conf *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	dial := (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	if conf != nil {
		dial = (&tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: conf}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		i := d.start()
		defer d.finish(i)
		if d.delay > 0 {
			select {
			case <-time.After(d.delay):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		return dial(ctx, network, addr)
	}
}

func (d *dialCounter) start() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dials = append(d.dials, dial{begin: time.Now()})
	return len(d.dials) - 1
}

func (d *dialCounter) finish(i int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dials[i].end = time.Now()
}

// between counts the dials that began in [from, to).
func (d *dialCounter) between(from, to time.Time) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, x := range d.dials {
		if !x.begin.Before(from) && x.begin.Before(to) {
			n++
		}
	}
	return n
}

// last returns when the last dial that began in [from, to) ended.
func (d *dialCounter) last(from, to time.Time) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	end := from
	for _, x := range d.dials {
		if !x.begin.Before(from) && x.begin.Before(to) && x.end.After(end) {
			end = x.end
		}
	}
	return end
}

// atATime returns how many dials ran at the same time at most, of those that
// began in [from, to).
func (d *dialCounter) atATime(from, to time.Time) int {
	d.mu.Lock()
	type edge struct {
		at   time.Time
		step int
	}
	var edges []edge
	for _, x := range d.dials {
		if x.begin.Before(from) || !x.begin.Before(to) {
			continue
		}
		edges = append(edges, edge{x.begin, +1})
		if !x.end.IsZero() {
			edges = append(edges, edge{x.end, -1})
		}
	}
	d.mu.Unlock()
	slices.SortFunc(edges, func(a, b edge) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.step, b.step))
	})
	now, most := 0, 0
	for _, e := range edges {
		now += e.step
		most = max(most, now)
	}
	return most
}
