package main

import (
	"context"
	"errors"
	"time"

	"github.com/redial-go/redial"

	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/load"
	"github.com/redial-go/redial/bench/internal/stats"
	"github.com/redial-go/redial/bench/internal/testbed"
)

// The experiments in which connections die while the server lives.
func connRows() []experiment {
	return []experiment{
		{
			lines: []line{{"10", "20 idle connections dropped silently, 3 s later 50 calls at once", []column{
				{name: "errors", how: total, cmp: atMost},
				{name: "INCRs not executed exactly once", how: total, cmp: atMost},
				{name: "slowest", unit: "ms", how: worst, cmp: atMost, limit: 250},
			}}},
			clients: everyone,
			run:     func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(5, 2), dropped(3*time.Second)) },
		},
		{
			lines: []line{{"10b", "the same, 100 ms later", []column{
				{name: "errors", how: total},
				{name: "INCRs executed twice", how: total, cmp: atMost},
				{name: "slowest", unit: "ms", how: worst},
			}}},
			run: func(b *bench, kinds []client.Kind) samples {
				return each(kinds, b.runs(3, 1), dropped(100*time.Millisecond))
			},
		},
		{
			lines: []line{{"11", "20 idle TLS connections closed by the server, 50 calls at once", []column{
				{name: "errors", how: total, cmp: atMost},
				{name: "INCRs not executed exactly once", how: total, cmp: atMost},
				{name: "slowest", unit: "ms", how: worst},
			}}},
			clients: everyone,
			run:     func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(5, 2), closedTLS(load.AtOnce)) },
		},
		{
			lines: []line{{"11b", "the same, 50 calls one after the other", []column{
				{name: "errors", how: total, cmp: atMost},
				{name: "INCRs not executed exactly once", how: total, cmp: atMost},
				{name: "slowest", unit: "ms", how: worst},
			}}},
			run: func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(5, 2), closedTLS(inTurn)) },
		},
		{
			lines: []line{{"12", "40 INCRs executed, their replies cut off", []column{
				{name: "executed twice", how: total, cmp: atMost},
				{name: "reported as outcome unknown", cmp: atLeast, limit: 40},
				{name: "reported as success", how: total},
				{name: "slowest", unit: "ms", how: worst},
			}}},
			clients: everyone,
			run:     func(b *bench, kinds []client.Kind) samples { return each(kinds, b.runs(3, 1), replyCut) },
		},
	}
}

// inTurn issues n commands one after the other.
func inTurn(c client.Client, n int) []load.Call {
	var calls []load.Call
	for i := range n {
		calls = append(calls, load.Issue(context.Background(), c, load.Mixed(i), 0))
	}
	return calls
}

// summarize sets what the experiments of this file have in common.
func summarize(s *sample, addr string, calls []load.Call) error {
	failed, example := load.Failures(calls, time.Time{}, time.Now())
	s.set("errors", float64(failed))
	slowest := time.Duration(0)
	incrs, right := 0, 0
	for _, r := range calls {
		slowest = max(slowest, r.End.Sub(r.Begin))
		if r.Op == load.Incr {
			incrs++
			if r.Err == nil {
				right++
			}
		}
	}
	account, err := testbed.Audit(addr, calls)
	if err != nil {
		return err
	}
	s.set("slowest", stats.Ms(slowest))
	s.set("INCRs executed twice", float64(account.Twice))
	s.set("INCRs not executed exactly once", float64(incrs-right+account.Twice+account.Lost))
	s.note("%d calls, %v, %+v", len(calls), example, account)
	return nil
}

// dropped lets a proxy forget all connections, as a NAT does, and calls later.
func dropped(later time.Duration) func(k client.Kind, s *sample) error {
	return func(k client.Kind, s *sample) error {
		server, proxy, stop, err := launch(s, true)
		if err != nil {
			return err
		}
		defer stop()
		var events eventLog
		c, err := k.Open(client.Settings{Addr: proxy.Addr(), PoolSize: 20, Options: []redial.Option{events.option()}})
		if err != nil {
			return err
		}
		defer func() { s.expect(c.Close() == nil, "client did not close") }()
		if err := warm(c, 20); err != nil {
			return err
		}
		gone := proxy.DropIdle()
		s.expect(gone >= 20 || k.Name == client.RueidisName, "%d connections dropped, not 20", gone)
		at := time.Now()
		time.Sleep(later)
		calls := load.AtOnce(c, 50)
		if sup := client.SupervisorOf(c); sup != nil {
			st := sup.Stats()
			s.note("%s; %d idle checks, %d dropped, %d retries", events.since(at), st.IdleChecks, st.IdleDropped, st.Retries)
		}
		s.note("%d connections dropped", gone)
		return summarize(s, server.Addr(), calls)
	}
}

// closedTLS has the server close all connections under TLS.
func closedTLS(call func(client.Client, int) []load.Call) func(k client.Kind, s *sample) error {
	return func(k client.Kind, s *sample) error {
		server, err := testbed.LaunchTLS()
		if err != nil {
			return err
		}
		defer func() { s.expect(server.Close() == nil, "server did not close") }()
		c, err := k.Open(client.Settings{Addr: server.TLSAddr, TLS: server.Config, PoolSize: 20})
		if err != nil {
			return err
		}
		defer func() { s.expect(c.Close() == nil, "client did not close") }()
		if err := warm(c, 20); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
		killed, _ := server.Do("client", "kill", "type", "normal", "skipme", "yes").(int64)
		s.expect(killed >= 20 || k.Name == client.RueidisName, "%d connections closed, not 20", killed)
		time.Sleep(100 * time.Millisecond)
		s.note("%d connections closed", killed)
		return summarize(s, server.Addr(), call(c, 50))
	}
}

// replyCut cuts the connection after the server has executed an INCR.
func replyCut(k client.Kind, s *sample) error {
	server, proxy, stop, err := launch(s, true)
	if err != nil {
		return err
	}
	defer stop()
	c, err := k.Open(client.Settings{Addr: proxy.Addr()})
	if err != nil {
		return err
	}
	defer func() { s.expect(c.Close() == nil, "client did not close") }()
	if err := warm(c, 5); err != nil {
		return err
	}
	proxy.Match("incr")
	before := proxy.Stats().Cuts
	var calls []load.Call
	for range 40 {
		proxy.CutAfterRequest(1)
		calls = append(calls, load.Issue(context.Background(), c, load.Incr, 0))
	}
	proxy.Restore()
	cuts := proxy.Stats().Cuts - before
	s.expect(cuts == 40, "%d connections cut, not 40", cuts)
	unknown, fine := 0, 0
	for _, r := range calls {
		switch {
		case r.Err == nil:
			fine++
		case errors.Is(r.Err, redial.ErrOutcomeUnknown):
			unknown++
		}
	}
	if client.SupervisorOf(c) != nil {
		s.set("reported as outcome unknown", float64(unknown))
	}
	s.set("reported as success", float64(fine))
	if err := summarize(s, server.Addr(), calls); err != nil {
		return err
	}
	s.set("executed twice", s.values["INCRs executed twice"])
	return nil
}
