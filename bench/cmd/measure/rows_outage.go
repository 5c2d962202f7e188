package main

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// The experiments in which the server is gone for a while.
func outageRows() []experiment {
	recovery := []column{
		{name: "first success", unit: "ms", cmp: atMost, limit: 25},
		{name: "errors after", how: total, cmp: atMost},
	}
	dials := []column{
		{name: "dials", cmp: atMost, limit: 150},
		{name: "at a time", how: worst, cmp: atMost, limit: 1},
	}
	return []experiment{
		{
			lines: []line{
				{"2", "killed for 3 s, 50 callers: from ready to first success", recovery},
				{"3", "dials in those 3 s, whole client", dials},
			},
			clients: everyone,
			run: func(b *bench, kinds []kind) samples {
				return each(kinds, b.runs(10, 3), func(k kind, s *sample) error { return killed(k, s, 0) })
			},
		},
		{
			lines: []line{{"3b", "the same when each dial takes 20 ms more", append(recovery[1:], dials...)}},
			run: func(b *bench, kinds []kind) samples {
				return each(kinds, b.runs(3, 1), func(k kind, s *sample) error { return killed(k, s, 20*time.Millisecond) })
			},
		},
		{
			lines: []line{{"3c", "the same with 1,000 callers and PoolSize 160: filling the pool again", []column{
				{name: "first success", unit: "ms"},
				{name: "errors after", how: total, cmp: atMost},
				{name: "dials in the first second"},
				{name: "the last one ended after", unit: "ms"},
				{name: "at a time then", how: worst},
			}}},
			run: func(b *bench, kinds []kind) samples { return each(kinds, b.runs(3, 1), refill) },
		},
		{
			lines:   []line{{"2b", "refused by a proxy for 3 s, 50 callers", append(recovery, dials...)}},
			clients: everyone,
			run: func(b *bench, kinds []kind) samples {
				return each(kinds, b.runs(10, 3), refusedByProxy)
			},
		},
		{
			lines: []line{{"2c", "killed for 3 s, no caller until it is ready", []column{
				{name: "connected again", unit: "ms", how: worst, cmp: atMost, limit: 2000},
				{name: "first call took", unit: "ms"},
				{name: "errors", how: total, cmp: atMost},
			}}},
			run: func(b *bench, kinds []kind) samples { return each(kinds, b.runs(5, 2), killedIdle) },
		},
		{
			lines: []line{{"4", "200 calls/s with 2 s to live arrive in those 3 s", []column{
				{name: "succeeded", unit: "%", cmp: atLeast, limit: 60},
				{name: "back after", unit: "s"},
			}}},
			clients: everyone,
			run:     func(b *bench, kinds []kind) samples { return each(kinds, b.runs(5, 2), arrivals) },
		},
		{
			lines: []line{{"5", "dials per second late in an outage, 200 fail-fast calls/s", []column{
				{name: "dials/s", cmp: atMost, limit: 5},
			}}},
			clients: everyone,
			run:     func(b *bench, kinds []kind) samples { return each(kinds, 1, b.longOutage) },
		},
		{
			lines: []line{{"6", "processor time in 10 s of outage, 200 callers, 1,000 calls/s", []column{
				{name: "beyond the load's own", unit: "ms", cmp: atMost, limit: 100},
				{name: "dials"},
				{name: "as many dials alone", unit: "ms"},
				{name: "calls"},
			}}},
			run: func(b *bench, kinds []kind) samples { return each(kinds, b.runs(3, 1), burn(false)) },
		},
		{
			lines: []line{{"6b", "the same with fail-fast calls", []column{
				{name: "beyond the load's own", unit: "ms", cmp: atMost, limit: 100},
				{name: "dials"},
				{name: "as many dials alone", unit: "ms"},
				{name: "calls"},
			}}},
			run: func(b *bench, kinds []kind) samples { return each(kinds, b.runs(3, 1), burn(true)) },
		},
		{
			lines: []line{{"7", "command after the grace, still down", []column{
				{name: "p99", unit: "ms", cmp: atMost, limit: 1},
				{name: "p50", unit: "ms"},
				{name: "other errors", how: total, cmp: atMost},
			}}},
			run: func(b *bench, kinds []kind) samples { return each(kinds, b.runs(3, 1), b.afterGrace) },
		},
		{
			lines:   []line{{"13", "server appears 2 s after NewClient, 50 callers", recovery}},
			clients: everyone,
			run:     func(b *bench, kinds []kind) samples { return each(kinds, b.runs(10, 3), lateServer) },
		},
	}
}

// afterwards is how long a load goes on once the server is ready.
const afterwards = 1500 * time.Millisecond

// killed kills the server for 3 s under load.
func killed(k kind, s *sample, dialDelay time.Duration) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	dials := &dialCounter{delay: dialDelay}
	var events eventLog
	c, err := k.open(settings{addr: server.Addr(), dials: dials, options: []redial.Option{events.option()}})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.close() == nil, "client did not close") }()
	l := startLoad(c, loadWorkers, loadEvery, nil)
	time.Sleep(500 * time.Millisecond)

	began := time.Now()
	server.Kill()
	down := time.Now()
	s.expect(pong(server.Addr()) != nil, "killed server answers")
	until(began.Add(3 * time.Second))
	server.LaunchOnly()
	ready, err := awaitPong(server.Addr())
	if err != nil {
		l.stop()
		return err
	}
	time.Sleep(afterwards)
	calls := l.stop()
	report(k, s, &events, dials, calls, began, down, ready)
	return nil
}

// refill kills the server for 3 s under many callers with a large pool.
func refill(k kind, s *sample) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	dials := &dialCounter{}
	c, err := k.open(settings{addr: server.Addr(), dials: dials, poolSize: 160})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.close() == nil, "client did not close") }()
	l := startLoad(c, 1000, 200*time.Millisecond, nil)
	time.Sleep(500 * time.Millisecond)
	began := time.Now()
	server.Kill()
	down := time.Now()
	s.expect(pong(server.Addr()) != nil, "killed server answers")
	until(began.Add(3 * time.Second))
	server.LaunchOnly()
	ready, err := awaitPong(server.Addr())
	if err != nil {
		l.stop()
		return err
	}
	time.Sleep(afterwards)
	calls := l.stop()
	s.set("first success", ms(firstSuccess(calls, down.Add(100*time.Millisecond), ready)))
	after, example := failures(calls, ready, ready.Add(time.Hour))
	s.set("errors after", float64(after))
	s.set("dials in the first second", float64(dials.between(ready, ready.Add(time.Second))))
	s.set("the last one ended after", ms(dials.last(ready, ready.Add(time.Second)).Sub(ready)))
	s.set("at a time then", float64(dials.atATime(ready, ready.Add(time.Second))))
	s.note("%d calls, error after: %v", len(calls), example)
	return nil
}

// report fills in what the experiments with load and an outage have in common.
func report(k kind, s *sample, events *eventLog, dials *dialCounter, calls []call, began, down, ready time.Time) {
	// What came back shortly after the end of the server was on its way before.
	first := firstSuccess(calls, down.Add(100*time.Millisecond), ready)
	s.set("first success", ms(first))
	after, example := failures(calls, ready, ready.Add(time.Hour))
	s.set("errors after", float64(after))
	detected := began
	if k.name == redialName {
		at, ok := events.first(redial.StateReconnecting, began)
		s.expect(ok, "the outage was not detected")
		detected = at
		s.note("detected after %.1f ms", ms(at.Sub(began)))
		if at, ok := events.first(redial.StateConnected, began); ok {
			s.note("connected %.1f ms after ready", ms(at.Sub(ready)))
		}
	}
	s.set("dials", float64(dials.between(began, ready)))
	s.set("at a time", float64(dials.atATime(detected, ready)))
	during, sort := failures(calls, began, ready)
	before, _ := failures(calls, began.Add(-time.Hour), began)
	s.note("outage %.0f ms, %d calls, %d in flight at the start failed, %d failed during (%v), error after: %v",
		ms(ready.Sub(began)), len(calls), before, during, sort, example)
}

// refusedByProxy takes the way to a running server away for 3 s.
func refusedByProxy(k kind, s *sample) error {
	_, proxy, stop, err := launch(s, true)
	if err != nil {
		return err
	}
	defer stop()
	dials := &dialCounter{}
	var events eventLog
	c, err := k.open(settings{addr: proxy.Addr(), dials: dials, options: []redial.Option{events.option()}})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.close() == nil, "client did not close") }()
	l := startLoad(c, loadWorkers, loadEvery, nil)
	time.Sleep(500 * time.Millisecond)

	began := time.Now()
	proxy.Refuse()
	down := time.Now()
	s.expect(pong(proxy.Addr()) != nil, "refusing proxy answers")
	s.expect(proxy.Stats().Cuts > 0, "no connection was cut")
	until(began.Add(3 * time.Second))
	go proxy.Restore()
	ready, err := awaitPong(proxy.Addr())
	if err != nil {
		l.stop()
		return err
	}
	time.Sleep(afterwards)
	report(k, s, &events, dials, l.stop(), began, down, ready)
	return nil
}

// killedIdle kills the server for 3 s while nobody calls.
func killedIdle(k kind, s *sample) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	c, err := k.open(settings{addr: server.Addr()})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.close() == nil, "client did not close") }()
	if err := warm(c, 5); err != nil {
		return err
	}
	began := time.Now()
	server.Kill()
	s.expect(pong(server.Addr()) != nil, "killed server answers")
	until(began.Add(3 * time.Second))
	server.LaunchOnly()
	ready, err := awaitPong(server.Addr())
	if err != nil {
		return err
	}
	if sup := supervisorOf(c); sup != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		took := never
		if sup.WaitReady(ctx) == nil {
			took = time.Since(ready)
		}
		s.set("connected again", ms(took))
	}
	r := issue(context.Background(), c, opIncr, 0)
	s.set("first call took", ms(r.end.Sub(r.begin)))
	s.set("errors", bit(r.err != nil))
	return nil
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// arrivals asks which part of the calls that arrive during an outage succeeds.
func arrivals(k kind, s *sample) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	c, err := k.open(settings{addr: server.Addr()})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.close() == nil, "client did not close") }()
	if err := warm(c, 5); err != nil {
		return err
	}
	l := startArrivals(c, 200, 2*time.Second, context.Background())
	time.Sleep(500 * time.Millisecond)
	began := time.Now()
	server.Kill()
	down := time.Now()
	s.expect(pong(server.Addr()) != nil, "killed server answers")
	until(began.Add(3 * time.Second))
	server.LaunchOnly()
	ready, err := awaitPong(server.Addr())
	if err != nil {
		l.stop()
		return err
	}
	time.Sleep(afterwards)
	calls := l.stop()
	end := began.Add(3 * time.Second)
	arrived := 0
	for _, r := range calls {
		if !r.begin.Before(down) && r.begin.Before(end) {
			arrived++
		}
	}
	failed, example := failures(calls, down, end)
	s.set("succeeded", 100*float64(arrived-failed)/float64(arrived))
	s.set("back after", ready.Sub(began).Seconds())
	after, _ := failures(calls, ready, ready.Add(time.Hour))
	s.note("%d of %d arrived calls failed (%v), %d after ready, first success %.1f ms after ready",
		failed, arrived, example, after, ms(firstSuccess(calls, down.Add(100*time.Millisecond), ready)))
	return nil
}

// failFast is a context whose commands do not wait; other clients ignore it.
func failFast(int) context.Context { return redial.FailFast(context.Background()) }

// longOutage counts dials late in an outage: in its second minute, or, when
// there is no time, in seconds 20 to 30.
func (b *bench) longOutage(k kind, s *sample) error {
	from, to := 60*time.Second, 120*time.Second
	if b.quick {
		from, to = 20*time.Second, 30*time.Second
	}
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	dials := &dialCounter{}
	c, err := k.open(settings{addr: server.Addr(), dials: dials})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.close() == nil, "client did not close") }()
	if err := warm(c, 5); err != nil {
		return err
	}
	began := time.Now()
	server.Kill()
	l := startArrivals(c, 200, 2*time.Second, failFast(0))
	until(began.Add(to))
	s.expect(pong(server.Addr()) != nil, "killed server answers")
	calls := l.stop()
	s.set("dials/s", float64(dials.between(began.Add(from), began.Add(to)))/(to-from).Seconds())
	failed, example := failures(calls, began, began.Add(to))
	s.note("seconds %.0f to %.0f, %d dials in all, %d of %d calls failed (%v)",
		from.Seconds(), to.Seconds(), dials.between(began, began.Add(to)), failed, len(calls), example)
	return nil
}

// burn measures the processor time of 10 s of outage under a paced load, beyond
// that of the load itself. For comparison it measures what as many dials of a
// refused port cost when a plain loop makes them.
func burn(fast bool) func(k kind, s *sample) error {
	return func(k kind, s *sample) error {
		server, _, stop, err := launch(s, false)
		if err != nil {
			return err
		}
		defer stop()
		counter := &dialCounter{}
		c, err := k.open(settings{addr: server.Addr(), dials: counter})
		if err != nil {
			return err
		}
		defer func() { s.expect(c.close() == nil, "client did not close") }()
		if err := warm(c, 20); err != nil {
			return err
		}
		server.Kill()
		s.expect(pong(server.Addr()) != nil, "killed server answers")
		var with func(int) context.Context
		if fast {
			with = failFast
		}
		began := time.Now()
		used, calls, err := burnWith(c, with)
		if err != nil {
			return err
		}
		dials := counter.between(began, began.Add(burnTime))
		alone, err := burnDials(server.Addr(), dials)
		if err != nil {
			return err
		}
		idle, stubCalls, err := burnWith(stubClient{}, with)
		if err != nil {
			return err
		}
		// The stub answers every call, so its load is scaled to the calls made.
		own := ms(idle) * float64(calls) / float64(stubCalls)
		s.set("beyond the load's own", ms(used)-own)
		s.set("dials", float64(dials))
		s.set("as many dials alone", ms(alone))
		s.set("calls", float64(calls))
		s.note("used %.0f ms for %d calls; stub %.0f ms for %d", ms(used), calls, ms(idle), stubCalls)
		return nil
	}
}

const burnTime = 10 * time.Second

func burnWith(c client, with func(int) context.Context) (used time.Duration, calls int, err error) {
	before, err := cpu()
	if err != nil {
		return 0, 0, err
	}
	l := startLoad(c, 200, 200*time.Millisecond, with)
	time.Sleep(burnTime)
	after, err := cpu()
	return after - before, len(l.stop()), err
}

func burnDials(addr string, dials int) (used time.Duration, err error) {
	before, err := cpu()
	if err != nil {
		return 0, err
	}
	for range dials {
		time.Sleep(burnTime / time.Duration(dials))
		_ = pong(addr) // is refused
	}
	after, err := cpu()
	return after - before, err
}

// afterGrace measures how fast commands fail once the outage is no longer hidden.
func (b *bench) afterGrace(k kind, s *sample) error {
	grace := redial.DefaultGrace
	var options []redial.Option
	if b.quick {
		grace = time.Second
		options = append(options, redial.WithGrace(grace))
	}
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	c, err := k.open(settings{addr: server.Addr(), options: options})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.close() == nil, "client did not close") }()
	if err := warm(c, 5); err != nil {
		return err
	}
	server.Kill()
	count := 1000
	if sup := supervisorOf(c); sup != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := sup.WaitForState(ctx, redial.StateReconnecting); err != nil {
			return err
		}
	} else {
		count = 5 // each takes seconds
	}
	time.Sleep(grace + 50*time.Millisecond)
	s.expect(pong(server.Addr()) != nil, "killed server answers")
	var took []float64
	others := 0
	for i := range count {
		r := issue(context.Background(), c, op(i)%opCount, 0)
		took = append(took, ms(r.end.Sub(r.begin)))
		if !errors.Is(r.err, redial.ErrUnavailable) {
			others++
		}
		time.Sleep(time.Millisecond)
	}
	s.set("p50", quantile(took, 0.5))
	s.set("p99", quantile(took, 0.99))
	if supervisorOf(c) != nil {
		s.set("other errors", float64(others))
	}
	s.note("%d calls, slowest %.3f ms", count, quantile(took, 1))
	return nil
}

// lateServer starts the server 2 s after the client.
func lateServer(k kind, s *sample) error {
	server, err := redialtest.LaunchServer()
	if err != nil {
		return err
	}
	defer func() { s.expect(server.Close() == nil, "server did not close") }()
	server.Kill() // it has found a port of its own
	s.expect(pong(server.Addr()) != nil, "killed server answers")

	began := time.Now()
	dials := &dialCounter{}
	var events eventLog
	set := settings{addr: server.Addr(), dials: dials, options: []redial.Option{events.option()}}
	c, refused, err := openPatiently(k, set, func() {
		if time.Since(began) >= 2*time.Second {
			server.LaunchOnly()
		}
	})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.close() == nil, "client did not close") }()
	l := startLoad(c, loadWorkers, loadEvery, nil)
	until(began.Add(2 * time.Second))
	server.LaunchOnly()
	ready, err := awaitPong(server.Addr())
	if err != nil {
		l.stop()
		return err
	}
	time.Sleep(afterwards)
	calls := l.stop()
	s.set("first success", ms(firstSuccess(calls, began, ready)))
	if refused > 0 { // its callers had no client to wait with
		s.set("first success", math.NaN())
		s.note("the constructor failed %d times", refused)
	}
	after, example := failures(calls, ready, ready.Add(time.Hour))
	s.set("errors after", float64(after))
	before, _ := failures(calls, began, ready)
	if at, ok := events.first(redial.StateConnected, began); ok {
		s.note("connected %.1f ms after ready", ms(at.Sub(ready)))
	}
	s.note("%d dials until ready, %d calls failed before it, %v", dials.between(began, ready), before, example)
	return nil
}

// openPatiently repeats a constructor that fails without a server, and calls
// between after every failure.
func openPatiently(k kind, set settings, between func()) (c client, failures int, err error) {
	for giveUp := time.Now().Add(10 * time.Second); ; failures++ {
		c, err = k.open(set)
		if err == nil || time.Now().After(giveUp) {
			return c, failures, err
		}
		between()
		time.Sleep(10 * time.Millisecond)
	}
}
