package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/redial-go/redial"

	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/load"
	"github.com/redial-go/redial/bench/internal/stats"
	"github.com/redial-go/redial/bench/internal/testbed"
)

// The experiments in which the server stops answering without going away.
func freezeRows() []experiment {
	const frozenFor = 5 * time.Second
	return []experiment{
		{
			lines: []line{{"8", "frozen for 5 s, 50 callers", []column{
				{name: "callers released", unit: "ms", cmp: atMost, limit: 3500},
				{name: "Reconnecting", unit: "ms", cmp: atMost, limit: 3500},
				{name: "first success after thaw", unit: "ms", cmp: atMost, limit: 50},
				{name: "errors after", how: total, cmp: atMost},
				{name: "INCRs executed twice", how: total, cmp: atMost},
				{name: "said not run, but ran", how: total, cmp: atMost},
			}}},
			clients: everyone,
			run: func(b *bench, kinds []client.Kind) samples {
				return each(kinds, b.runs(5, 2), func(k client.Kind, s *sample) error { return frozen(k, s, frozenFor) })
			},
		},
		{
			lines: []line{{"8b", "frozen for 5 s, idle client; 20 calls at the thaw", []column{
				{name: "Reconnecting", unit: "ms", cmp: atMost, limit: 3500},
				{name: "first success after thaw", unit: "ms", cmp: atMost, limit: 50},
				{name: "errors", how: total, cmp: atMost},
			}}},
			run: func(b *bench, kinds []client.Kind) samples {
				return each(kinds, b.runs(5, 2), func(k client.Kind, s *sample) error { return frozenIdle(k, s, frozenFor) })
			},
		},
		{
			lines: []line{{"9", "five pauses of 1.5 s, 50 callers", []column{
				{name: "errors", how: total, cmp: atMost},
				{name: "INCRs executed twice", how: total, cmp: atMost},
				{name: "acknowledged, not run", how: total, cmp: atMost},
				{name: "transitions", how: total, cmp: atMost},
			}}},
			run: func(b *bench, kinds []client.Kind) samples {
				return each(kinds, b.runs(2, 1), func(k client.Kind, s *sample) error { return b.paused(k, s, 0) })
			},
		},
		{
			lines: []line{{"9b", "the same with ReadTimeout and WriteTimeout 500 ms", []column{
				{name: "GET errors", how: total, cmp: atMost},
				{name: "SET and INCR errors", how: total},
				{name: "of these outcome unknown", how: total},
				{name: "INCRs executed twice", how: total, cmp: atMost},
				{name: "said not run, but ran", how: total, cmp: atMost},
				{name: "transitions", how: total},
			}}},
			run: func(b *bench, kinds []client.Kind) samples {
				return each(kinds, b.runs(2, 1), func(k client.Kind, s *sample) error {
					return b.paused(k, s, 500*time.Millisecond)
				})
			},
		},
	}
}

// frozen freezes the server under load. Every second caller fails fast, so that
// its return shows when a blocked command was let go.
func frozen(k client.Kind, s *sample, d time.Duration) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	var events eventLog
	c, err := k.Open(client.Settings{Addr: server.Addr(), Options: []redial.Option{events.option()}})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	fast := func(worker int) bool { return worker%2 == 1 }
	l := load.Closed(c, load.Workers, load.Every, func(w int) context.Context {
		if fast(w) {
			return failFast(w)
		}
		return context.Background()
	})
	time.Sleep(500 * time.Millisecond)
	server.Freeze()
	froze := time.Now()
	s.expect(testbed.Pong(server.Addr()) != nil, "frozen server answers")
	until(froze.Add(d))
	server.Thaw()
	thawed := time.Now()
	time.Sleep(2 * afterwards)
	calls := l.Stop()

	released := time.Duration(0)
	stuck := 0
	for _, r := range calls {
		if fast(r.Worker) && r.Begin.Before(froze.Add(time.Second)) && r.End.After(froze.Add(100*time.Millisecond)) {
			released = max(released, r.End.Sub(froze))
			stuck++
		}
	}
	s.expect(stuck > 0, "nobody was blocked")
	s.set("callers released", stats.Ms(released))
	s.set("first success after thaw", stats.Ms(load.FirstSuccess(calls, froze.Add(100*time.Millisecond), thawed)))
	patient := slices.DeleteFunc(slices.Clone(calls), func(r load.Call) bool { return fast(r.Worker) })
	after, example := load.Failures(patient, thawed, thawed.Add(time.Hour))
	s.set("errors after", float64(after))
	account, err := testbed.Audit(server.Addr(), calls)
	if err != nil {
		return err
	}
	s.set("INCRs executed twice", float64(account.Twice))
	s.set("said not run, but ran", float64(account.Lied))
	if client.SupervisorOf(c) != nil {
		down := stats.Never
		if at, ok := events.first(redial.StateReconnecting, froze); ok {
			down = at.Sub(froze)
		}
		s.set("Reconnecting", stats.Ms(down))
		s.note("%s", events.since(froze))
	}
	during, sort := load.Failures(calls, froze.Add(-time.Second), thawed)
	s.note("%d blocked, %d failed (%v), after the thaw: %v; %+v", stuck, during, sort, example, account)
	return nil
}

// frozenIdle freezes the server while nobody calls.
func frozenIdle(k client.Kind, s *sample, d time.Duration) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	var events eventLog
	c, err := k.Open(client.Settings{Addr: server.Addr(), Options: []redial.Option{events.option()}})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	if err := warm(c, 20); err != nil {
		return err
	}
	time.Sleep(1500 * time.Millisecond) // let it become idle
	server.Freeze()
	froze := time.Now()
	s.expect(testbed.Pong(server.Addr()) != nil, "frozen server answers")
	until(froze.Add(d))
	server.Thaw()
	thawed := time.Now()
	calls := load.AtOnce(c, 20)
	s.set("first success after thaw", stats.Ms(load.FirstSuccess(calls, froze, thawed)))
	failed, example := load.Failures(calls, froze, thawed.Add(time.Hour))
	s.set("errors", float64(failed))
	if client.SupervisorOf(c) != nil {
		down := stats.Never
		if at, ok := events.first(redial.StateReconnecting, froze); ok {
			down = at.Sub(froze)
		}
		s.set("Reconnecting", stats.Ms(down))
		s.note("%s", events.since(froze))
	}
	s.note("%v", example)
	return nil
}

// paused freezes the server five times for 1.5 s, as a fork or a slow script does.
func (b *bench) paused(k client.Kind, s *sample, timeout time.Duration) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	var events eventLog
	c, err := k.Open(client.Settings{Addr: server.Addr(), Timeout: timeout, Options: []redial.Option{events.option()}})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	l := load.Closed(c, load.Workers, load.Every, nil)
	time.Sleep(500 * time.Millisecond)
	began := time.Now()
	for range 5 {
		server.Freeze()
		froze := time.Now()
		s.expect(testbed.Pong(server.Addr()) != nil, "frozen server answers")
		until(froze.Add(1500 * time.Millisecond))
		server.Thaw()
		time.Sleep(700 * time.Millisecond)
	}
	s.note("%s", events.since(began))
	moved := len(events.after(began))
	calls := l.Stop()

	reads, writes, unknown := 0, 0, 0
	for _, r := range calls {
		switch {
		case r.Err == nil:
		case r.Op == load.Get:
			reads++
			s.note("GET: %v", r.Err)
		default:
			writes++
			if errors.Is(r.Err, redial.ErrOutcomeUnknown) {
				unknown++
			}
		}
	}
	s.set("errors", float64(reads+writes))
	s.set("GET errors", float64(reads))
	s.set("SET and INCR errors", float64(writes))
	s.set("of these outcome unknown", float64(unknown))
	if client.SupervisorOf(c) != nil {
		s.set("transitions", float64(moved))
	}
	account, err := testbed.Audit(server.Addr(), calls)
	if err != nil {
		return err
	}
	s.set("INCRs executed twice", float64(account.Twice))
	s.set("acknowledged, not run", float64(account.Lost))
	s.set("said not run, but ran", float64(account.Lied))
	s.note("%d calls, %+v", len(calls), account)
	return nil
}
