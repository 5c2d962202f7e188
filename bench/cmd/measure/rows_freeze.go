package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/redial-go/redial"
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
			run: func(b *bench, kinds []kind) samples {
				return each(kinds, b.runs(5, 2), func(k kind, s *sample) error { return frozen(k, s, frozenFor) })
			},
		},
		{
			lines: []line{{"8b", "frozen for 5 s, idle client; 20 calls at the thaw", []column{
				{name: "Reconnecting", unit: "ms", cmp: atMost, limit: 3500},
				{name: "first success after thaw", unit: "ms", cmp: atMost, limit: 50},
				{name: "errors", how: total, cmp: atMost},
			}}},
			run: func(b *bench, kinds []kind) samples {
				return each(kinds, b.runs(5, 2), func(k kind, s *sample) error { return frozenIdle(k, s, frozenFor) })
			},
		},
		{
			lines: []line{{"9", "five pauses of 1.5 s, 50 callers", []column{
				{name: "errors", how: total, cmp: atMost},
				{name: "INCRs executed twice", how: total, cmp: atMost},
				{name: "acknowledged, not run", how: total, cmp: atMost},
				{name: "transitions", how: total, cmp: atMost},
			}}},
			run: func(b *bench, kinds []kind) samples {
				return each(kinds, b.runs(2, 1), func(k kind, s *sample) error { return b.paused(k, s, 0) })
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
			run: func(b *bench, kinds []kind) samples {
				return each(kinds, b.runs(2, 1), func(k kind, s *sample) error {
					return b.paused(k, s, 500*time.Millisecond)
				})
			},
		},
	}
}

// frozen freezes the server under load. Every second caller fails fast, so that
// its return shows when a blocked command was let go.
func frozen(k kind, s *sample, d time.Duration) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	var events eventLog
	c, err := k.open(settings{addr: server.Addr(), options: []redial.Option{events.option()}})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.close() == nil, "client did not close") }()
	fast := func(worker int) bool { return worker%2 == 1 }
	l := startLoad(c, loadWorkers, loadEvery, func(w int) context.Context {
		if fast(w) {
			return failFast(w)
		}
		return context.Background()
	})
	time.Sleep(500 * time.Millisecond)
	server.Freeze()
	froze := time.Now()
	s.expect(pong(server.Addr()) != nil, "frozen server answers")
	until(froze.Add(d))
	server.Thaw()
	thawed := time.Now()
	time.Sleep(2 * afterwards)
	calls := l.stop()

	released := time.Duration(0)
	stuck := 0
	for _, r := range calls {
		if fast(r.worker) && r.begin.Before(froze.Add(time.Second)) && r.end.After(froze.Add(100*time.Millisecond)) {
			released = max(released, r.end.Sub(froze))
			stuck++
		}
	}
	s.expect(stuck > 0, "nobody was blocked")
	s.set("callers released", ms(released))
	s.set("first success after thaw", ms(firstSuccess(calls, froze.Add(100*time.Millisecond), thawed)))
	patient := slices.DeleteFunc(slices.Clone(calls), func(r call) bool { return fast(r.worker) })
	after, example := failures(patient, thawed, thawed.Add(time.Hour))
	s.set("errors after", float64(after))
	account, err := audit(server.Addr(), calls)
	if err != nil {
		return err
	}
	s.set("INCRs executed twice", float64(account.twice))
	s.set("said not run, but ran", float64(account.lied))
	if supervisorOf(c) != nil {
		down := never
		if at, ok := events.first(redial.StateReconnecting, froze); ok {
			down = at.Sub(froze)
		}
		s.set("Reconnecting", ms(down))
		s.note("%s", events.since(froze))
	}
	during, sort := failures(calls, froze.Add(-time.Second), thawed)
	s.note("%d blocked, %d failed (%v), after the thaw: %v; %+v", stuck, during, sort, example, account)
	return nil
}

// frozenIdle freezes the server while nobody calls.
func frozenIdle(k kind, s *sample, d time.Duration) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	var events eventLog
	c, err := k.open(settings{addr: server.Addr(), options: []redial.Option{events.option()}})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.close() == nil, "client did not close") }()
	if err := warm(c, 20); err != nil {
		return err
	}
	time.Sleep(1500 * time.Millisecond) // let it become idle
	server.Freeze()
	froze := time.Now()
	s.expect(pong(server.Addr()) != nil, "frozen server answers")
	until(froze.Add(d))
	server.Thaw()
	thawed := time.Now()
	calls := atOnce(c, 20)
	s.set("first success after thaw", ms(firstSuccess(calls, froze, thawed)))
	failed, example := failures(calls, froze, thawed.Add(time.Hour))
	s.set("errors", float64(failed))
	if supervisorOf(c) != nil {
		down := never
		if at, ok := events.first(redial.StateReconnecting, froze); ok {
			down = at.Sub(froze)
		}
		s.set("Reconnecting", ms(down))
		s.note("%s", events.since(froze))
	}
	s.note("%v", example)
	return nil
}

// paused freezes the server five times for 1.5 s, as a fork or a slow script does.
func (b *bench) paused(k kind, s *sample, timeout time.Duration) error {
	server, _, stop, err := launch(s, false)
	if err != nil {
		return err
	}
	defer stop()
	var events eventLog
	c, err := k.open(settings{addr: server.Addr(), timeout: timeout, options: []redial.Option{events.option()}})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.close() == nil, "client did not close") }()
	l := startLoad(c, loadWorkers, loadEvery, nil)
	time.Sleep(500 * time.Millisecond)
	began := time.Now()
	for range 5 {
		server.Freeze()
		froze := time.Now()
		s.expect(pong(server.Addr()) != nil, "frozen server answers")
		until(froze.Add(1500 * time.Millisecond))
		server.Thaw()
		time.Sleep(700 * time.Millisecond)
	}
	s.note("%s", events.since(began))
	moved := len(events.after(began))
	calls := l.stop()

	reads, writes, unknown := 0, 0, 0
	for _, r := range calls {
		switch {
		case r.err == nil:
		case r.op == opGet:
			reads++
			s.note("GET: %v", r.err)
		default:
			writes++
			if errors.Is(r.err, redial.ErrOutcomeUnknown) {
				unknown++
			}
		}
	}
	s.set("errors", float64(reads+writes))
	s.set("GET errors", float64(reads))
	s.set("SET and INCR errors", float64(writes))
	s.set("of these outcome unknown", float64(unknown))
	if supervisorOf(c) != nil {
		s.set("transitions", float64(moved))
	}
	account, err := audit(server.Addr(), calls)
	if err != nil {
		return err
	}
	s.set("INCRs executed twice", float64(account.twice))
	s.set("acknowledged, not run", float64(account.lost))
	s.set("said not run, but ran", float64(account.lied))
	s.note("%d calls, %+v", len(calls), account)
	return nil
}
