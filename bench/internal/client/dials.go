package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"time"
)

// Dials records every dial that a client asks of the network.
type Dials struct {
	Delay time.Duration // added to every dial, as by a distant server

	mu    sync.Mutex
	dials []dial
}

type dial struct{ begin, end time.Time }

// dialer returns the function to give to a client.
func (d *Dials) dialer(conf *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	dial := (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	if conf != nil {
		dial = (&tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: conf}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		i := d.start()
		defer d.finish(i)
		if d.Delay > 0 {
			select {
			case <-time.After(d.Delay):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		return dial(ctx, network, addr)
	}
}

func (d *Dials) start() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dials = append(d.dials, dial{begin: time.Now()})
	return len(d.dials) - 1
}

func (d *Dials) finish(i int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dials[i].end = time.Now()
}

// Between counts the dials that began in [from, to).
func (d *Dials) Between(from, to time.Time) int {
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

// Times returns when each dial began, in order.
func (d *Dials) Times() []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	times := make([]time.Time, len(d.dials))
	for i, x := range d.dials {
		times[i] = x.begin
	}
	return times
}

// Last returns when the last dial that began in [from, to) ended.
func (d *Dials) Last(from, to time.Time) time.Time {
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

// AtATime returns how many dials ran at the same time at most, of those that
// began in [from, to).
func (d *Dials) AtATime(from, to time.Time) int {
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
