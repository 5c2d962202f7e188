package main

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"

	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/load"
	"github.com/redial-go/redial/bench/internal/stats"
	"github.com/redial-go/redial/bench/internal/testbed"
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
			run: func(b *bench, kinds []client.Kind) samples {
				return each(kinds, b.runs(10, 3), func(k client.Kind, s *sample) error { return killed(k, s, 0) })
			},
		},
		{
			lines: []line{{"3b", "the same when each dial takes 20 ms more", append(recovery[1:], dials...)}},
			run: func(b *bench, kinds []client.Kind) samples {
				return each(kinds, b.runs(3, 1), func(k client.Kind, s *sample) error { return killed(k, s, 20*time.Millisecond) })
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
			run: func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(3, 1), refill) },
		},
		{
			lines:   []line{{"2b", "refused by a proxy for 3 s, 50 callers", append(recovery, dials...)}},
			clients: everyone,
			run: func(b *bench, kinds []client.Kind) samples {
				return each(kinds, b.runs(10, 3), refusedByProxy)
			},
		},
		{
			lines: []line{{"2c", "killed for 3 s, no caller until it is ready", []column{
				{name: "connected again", unit: "ms", how: worst, cmp: atMost, limit: 2000},
				{name: "first call took", unit: "ms"},
				{name: "errors", how: total, cmp: atMost},
			}}},
			run: func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(5, 2), killedIdle) },
		},
		{
			lines: []line{{"4", "200 calls/s with 2 s to live arrive in those 3 s", []column{
				{name: "succeeded", unit: "%", cmp: atLeast, limit: 60},
				{name: "back after", unit: "s"},
			}}},
			clients: everyone,
			run:     func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(5, 2), arrivals) },
		},
		{
			lines: []line{{"5", "dials per second late in an outage, 200 fail-fast calls/s", []column{
				{name: "dials/s", cmp: atMost, limit: 5},
			}}},
			clients: everyone,
			run:     func(b *bench, kinds []client.Kind) samples { return each(kinds, 1, b.longOutage) },
		},
		{
			lines: []line{{"6", "processor time in 10 s of outage, 200 callers, 1,000 calls/s", []column{
				{name: "beyond the load's own", unit: "ms", cmp: atMost, limit: 100},
				{name: "dials"},
				{name: "as many dials alone", unit: "ms"},
				{name: "calls"},
			}}},
			run: func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(3, 1), burn(false)) },
		},
		{
			lines: []line{{"6b", "the same with fail-fast calls", []column{
				{name: "beyond the load's own", unit: "ms", cmp: atMost, limit: 100},
				{name: "dials"},
				{name: "as many dials alone", unit: "ms"},
				{name: "calls"},
			}}},
			run: func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(3, 1), burn(true)) },
		},
		{
			lines: []line{{"7", "command after the grace, still down", []column{
				{name: "p99", unit: "ms", cmp: atMost, limit: 1},
				{name: "p50", unit: "ms"},
				{name: "other errors", how: total, cmp: atMost},
			}}},
			run: func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(3, 1), b.afterGrace) },
		},
		{
			lines:   []line{{"13", "server appears 2 s after NewClient, 50 callers", recovery}},
			clients: everyone,
			run:     func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(10, 3), lateServer) },
		},
	}
}

// afterwards is how long a load goes on once the server is ready.
const afterwards = 1500 * time.Millisecond

// killed kills the server for 3 s under load.
func killed(k client.Kind, s *sample, dialDelay time.Duration) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	dials := &client.Dials{Delay: dialDelay}
	var events eventLog
	c, err := k.Open(client.Settings{Addr: server.Addr(), Dials: dials, Options: []redial.Option{events.option()}})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	l := load.Closed(c, load.Workers, load.Every, nil)
	time.Sleep(500 * time.Millisecond)

	began := time.Now()
	server.Kill()
	down := time.Now()
	s.expect(testbed.Pong(server.Addr()) != nil, "killed server answers")
	until(began.Add(3 * time.Second))
	server.LaunchOnly()
	ready, err := testbed.AwaitPong(server.Addr())
	if err != nil {
		l.Stop()
		return err
	}
	time.Sleep(afterwards)
	calls := l.Stop()
	report(k, s, &events, dials, calls, began, down, ready)
	return nil
}

// refill kills the server for 3 s under many callers with a large pool.
func refill(k client.Kind, s *sample) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	dials := &client.Dials{}
	c, err := k.Open(client.Settings{Addr: server.Addr(), Dials: dials, PoolSize: 160})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	l := load.Closed(c, 1000, 200*time.Millisecond, nil)
	time.Sleep(500 * time.Millisecond)
	began := time.Now()
	server.Kill()
	down := time.Now()
	s.expect(testbed.Pong(server.Addr()) != nil, "killed server answers")
	until(began.Add(3 * time.Second))
	server.LaunchOnly()
	ready, err := testbed.AwaitPong(server.Addr())
	if err != nil {
		l.Stop()
		return err
	}
	time.Sleep(afterwards)
	calls := l.Stop()
	s.set("first success", stats.Ms(load.FirstSuccess(calls, down.Add(100*time.Millisecond), ready)))
	after, example := load.Failures(calls, ready, ready.Add(time.Hour))
	s.set("errors after", float64(after))
	s.set("dials in the first second", float64(dials.Between(ready, ready.Add(time.Second))))
	s.set("the last one ended after", stats.Ms(dials.Last(ready, ready.Add(time.Second)).Sub(ready)))
	s.set("at a time then", float64(dials.AtATime(ready, ready.Add(time.Second))))
	s.note("%d calls, error after: %v", len(calls), example)
	return nil
}

// report fills in what the experiments with load and an outage have in common.
func report(k client.Kind, s *sample, events *eventLog, dials *client.Dials, calls []load.Call, began, down, ready time.Time) {
	// What came back shortly after the end of the server was on its way before.
	first := load.FirstSuccess(calls, down.Add(100*time.Millisecond), ready)
	s.set("first success", stats.Ms(first))
	after, example := load.Failures(calls, ready, ready.Add(time.Hour))
	s.set("errors after", float64(after))
	detected := began
	if k.Name == client.RedialName {
		at, ok := events.first(redial.StateReconnecting, began)
		s.expect(ok, "the outage was not detected")
		detected = at
		s.note("detected after %.1f ms", stats.Ms(at.Sub(began)))
		if at, ok := events.first(redial.StateConnected, began); ok {
			s.note("connected %.1f ms after ready", stats.Ms(at.Sub(ready)))
		}
	}
	s.set("dials", float64(dials.Between(began, ready)))
	s.set("at a time", float64(dials.AtATime(detected, ready)))
	during, sort := load.Failures(calls, began, ready)
	before, _ := load.Failures(calls, began.Add(-time.Hour), began)
	s.note("outage %.0f ms, %d calls, %d in flight at the start failed, %d failed during (%v), error after: %v",
		stats.Ms(ready.Sub(began)), len(calls), before, during, sort, example)
}

// refusedByProxy takes the way to a running server away for 3 s.
func refusedByProxy(k client.Kind, s *sample) error {
	_, proxy, stop, err := launch(s, true)
	if err != nil {
		return err
	}
	defer stop()
	dials := &client.Dials{}
	var events eventLog
	c, err := k.Open(client.Settings{Addr: proxy.Addr(), Dials: dials, Options: []redial.Option{events.option()}})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	l := load.Closed(c, load.Workers, load.Every, nil)
	time.Sleep(500 * time.Millisecond)

	began := time.Now()
	proxy.Refuse()
	down := time.Now()
	s.expect(testbed.Pong(proxy.Addr()) != nil, "refusing proxy answers")
	s.expect(proxy.Stats().Cuts > 0, "no connection was cut")
	until(began.Add(3 * time.Second))
	go proxy.Restore()
	ready, err := testbed.AwaitPong(proxy.Addr())
	if err != nil {
		l.Stop()
		return err
	}
	time.Sleep(afterwards)
	report(k, s, &events, dials, l.Stop(), began, down, ready)
	return nil
}

// killedIdle kills the server for 3 s while nobody calls.
func killedIdle(k client.Kind, s *sample) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	c, err := k.Open(client.Settings{Addr: server.Addr()})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	if err := warm(c, 5); err != nil {
		return err
	}
	began := time.Now()
	server.Kill()
	s.expect(testbed.Pong(server.Addr()) != nil, "killed server answers")
	until(began.Add(3 * time.Second))
	server.LaunchOnly()
	ready, err := testbed.AwaitPong(server.Addr())
	if err != nil {
		return err
	}
	if sup := client.SupervisorOf(c); sup != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		took := stats.Never
		if sup.WaitReady(ctx) == nil {
			took = time.Since(ready)
		}
		s.set("connected again", stats.Ms(took))
	}
	r := load.Issue(context.Background(), c, load.Incr, 0)
	s.set("first call took", stats.Ms(r.End.Sub(r.Begin)))
	s.set("errors", bit(r.Err != nil))
	return nil
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// arrivals asks which part of the calls that arrive during an outage succeeds.
func arrivals(k client.Kind, s *sample) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	c, err := k.Open(client.Settings{Addr: server.Addr()})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	if err := warm(c, 5); err != nil {
		return err
	}
	l := load.Arrivals(c, 200, 2*time.Second, context.Background())
	time.Sleep(500 * time.Millisecond)
	began := time.Now()
	server.Kill()
	down := time.Now()
	s.expect(testbed.Pong(server.Addr()) != nil, "killed server answers")
	until(began.Add(3 * time.Second))
	server.LaunchOnly()
	ready, err := testbed.AwaitPong(server.Addr())
	if err != nil {
		l.Stop()
		return err
	}
	time.Sleep(afterwards)
	calls := l.Stop()
	end := began.Add(3 * time.Second)
	arrived := 0
	for _, r := range calls {
		if !r.Begin.Before(down) && r.Begin.Before(end) {
			arrived++
		}
	}
	failed, example := load.Failures(calls, down, end)
	s.set("succeeded", 100*float64(arrived-failed)/float64(arrived))
	s.set("back after", ready.Sub(began).Seconds())
	after, _ := load.Failures(calls, ready, ready.Add(time.Hour))
	s.note("%d of %d arrived calls failed (%v), %d after ready, first success %.1f ms after ready",
		failed, arrived, example, after, stats.Ms(load.FirstSuccess(calls, down.Add(100*time.Millisecond), ready)))
	return nil
}

// failFast is a context whose commands do not wait; other clients ignore it.
func failFast(int) context.Context { return redial.FailFast(context.Background()) }

// longOutage counts dials late in an outage: in its second minute, or, when
// there is no time, in seconds 20 to 30.
func (b *bench) longOutage(k client.Kind, s *sample) error {
	from, to := 60*time.Second, 120*time.Second
	if b.quick {
		from, to = 20*time.Second, 30*time.Second
	}
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	dials := &client.Dials{}
	c, err := k.Open(client.Settings{Addr: server.Addr(), Dials: dials})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	if err := warm(c, 5); err != nil {
		return err
	}
	began := time.Now()
	server.Kill()
	l := load.Arrivals(c, 200, 2*time.Second, failFast(0))
	until(began.Add(to))
	s.expect(testbed.Pong(server.Addr()) != nil, "killed server answers")
	calls := l.Stop()
	s.set("dials/s", float64(dials.Between(began.Add(from), began.Add(to)))/(to-from).Seconds())
	failed, example := load.Failures(calls, began, began.Add(to))
	s.note("seconds %.0f to %.0f, %d dials in all, %d of %d calls failed (%v)",
		from.Seconds(), to.Seconds(), dials.Between(began, began.Add(to)), failed, len(calls), example)
	return nil
}

// burn measures the processor time of 10 s of outage under a paced load, beyond
// that of the load itself. For comparison it measures what as many dials of a
// refused port cost when a plain loop makes them.
func burn(fast bool) func(k client.Kind, s *sample) error {
	return func(k client.Kind, s *sample) error {
		server, _, stop, err := launch(s, false)
		if err != nil {
			return err
		}
		defer stop()
		counter := &client.Dials{}
		c, err := k.Open(client.Settings{Addr: server.Addr(), Dials: counter})
		if err != nil {
			return err
		}
		defer func() { s.expect(c.Close() == nil, "client did not close") }()
		if err := warm(c, 20); err != nil {
			return err
		}
		server.Kill()
		s.expect(testbed.Pong(server.Addr()) != nil, "killed server answers")
		var with func(int) context.Context
		if fast {
			with = failFast
		}
		began := time.Now()
		used, calls, err := burnWith(c, with)
		if err != nil {
			return err
		}
		dials := counter.Between(began, began.Add(burnTime))
		alone, err := burnDials(server.Addr(), dials)
		if err != nil {
			return err
		}
		idle, stubCalls, err := burnWith(client.Stub{}, with)
		if err != nil {
			return err
		}
		// The stub answers every call, so its load is scaled to the calls made.
		own := stats.Ms(idle) * float64(calls) / float64(stubCalls)
		s.set("beyond the load's own", stats.Ms(used)-own)
		s.set("dials", float64(dials))
		s.set("as many dials alone", stats.Ms(alone))
		s.set("calls", float64(calls))
		s.note("used %.0f ms for %d calls; stub %.0f ms for %d", stats.Ms(used), calls, stats.Ms(idle), stubCalls)
		return nil
	}
}

const burnTime = 10 * time.Second

func burnWith(c client.Client, with func(int) context.Context) (used time.Duration, calls int, err error) {
	before, err := testbed.CPU()
	if err != nil {
		return 0, 0, err
	}
	l := load.Closed(c, 200, 200*time.Millisecond, with)
	time.Sleep(burnTime)
	after, err := testbed.CPU()
	return after - before, len(l.Stop()), err
}

func burnDials(addr string, dials int) (used time.Duration, err error) {
	before, err := testbed.CPU()
	if err != nil {
		return 0, err
	}
	for range dials {
		time.Sleep(burnTime / time.Duration(dials))
		_ = testbed.Pong(addr) // is refused
	}
	after, err := testbed.CPU()
	return after - before, err
}

// afterGrace measures how fast commands fail once the outage is no longer hidden.
func (b *bench) afterGrace(k client.Kind, s *sample) error {
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
	c, err := k.Open(client.Settings{Addr: server.Addr(), Options: options})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	if err := warm(c, 5); err != nil {
		return err
	}
	server.Kill()
	count := 1000
	if sup := client.SupervisorOf(c); sup != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := sup.WaitForState(ctx, redial.StateReconnecting); err != nil {
			return err
		}
	} else {
		count = 5 // each takes seconds
	}
	time.Sleep(grace + 50*time.Millisecond)
	s.expect(testbed.Pong(server.Addr()) != nil, "killed server answers")
	var took []float64
	others := 0
	for i := range count {
		r := load.Issue(context.Background(), c, load.Mixed(i), 0)
		took = append(took, stats.Ms(r.End.Sub(r.Begin)))
		if !errors.Is(r.Err, redial.ErrUnavailable) {
			others++
		}
		time.Sleep(time.Millisecond)
	}
	s.set("p50", stats.Quantile(took, 0.5))
	s.set("p99", stats.Quantile(took, 0.99))
	if client.SupervisorOf(c) != nil {
		s.set("other errors", float64(others))
	}
	s.note("%d calls, slowest %.3f ms", count, stats.Quantile(took, 1))
	return nil
}

// lateServer starts the server 2 s after the client.
func lateServer(k client.Kind, s *sample) error {
	server, err := redialtest.LaunchServer()
	if err != nil {
		return err
	}
	defer func() { s.expect(server.Close() == nil, "server did not close") }()
	server.Kill() // it has found a port of its own
	s.expect(testbed.Pong(server.Addr()) != nil, "killed server answers")

	began := time.Now()
	dials := &client.Dials{}
	var events eventLog
	set := client.Settings{Addr: server.Addr(), Dials: dials, Options: []redial.Option{events.option()}}
	c, refused, err := openPatiently(k, set, func() {
		if time.Since(began) >= 2*time.Second {
			server.LaunchOnly()
		}
	})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	l := load.Closed(c, load.Workers, load.Every, nil)
	until(began.Add(2 * time.Second))
	server.LaunchOnly()
	ready, err := testbed.AwaitPong(server.Addr())
	if err != nil {
		l.Stop()
		return err
	}
	time.Sleep(afterwards)
	calls := l.Stop()
	s.set("first success", stats.Ms(load.FirstSuccess(calls, began, ready)))
	if refused > 0 { // its callers had no client to wait with
		s.set("first success", math.NaN())
		s.note("the constructor failed %d times", refused)
	}
	after, example := load.Failures(calls, ready, ready.Add(time.Hour))
	s.set("errors after", float64(after))
	before, _ := load.Failures(calls, began, ready)
	if at, ok := events.first(redial.StateConnected, began); ok {
		s.note("connected %.1f ms after ready", stats.Ms(at.Sub(ready)))
	}
	s.note("%d dials until ready, %d calls failed before it, %v", dials.Between(began, ready), before, example)
	return nil
}

// openPatiently repeats a constructor that fails without a server, and calls
// between after every failure.
func openPatiently(k client.Kind, set client.Settings, between func()) (c client.Client, failures int, err error) {
	for giveUp := time.Now().Add(10 * time.Second); ; failures++ {
		c, err = k.Open(set)
		if err == nil || time.Now().After(giveUp) {
			return c, failures, err
		}
		between()
		time.Sleep(10 * time.Millisecond)
	}
}
