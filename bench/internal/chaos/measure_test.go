package chaos

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/redial-go/redial/bench/internal/load"
)

// example is an outage from 1 s to 2 s of a load that began at 0, with two workers.
func example(calls ...Record) (*Scenario, material) {
	began := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(s float64) time.Time { return began.Add(time.Duration(s * float64(time.Second))) }
	s := &Scenario{Outage: true, Plan: load.Plan{Workers: 2, Deadline: 2 * time.Second}}
	return s, material{
		result:   &Result{Began: began, Stopped: at(4), Calls: calls},
		faults:   []Window{{at(1), at(1), at(2)}},
		healed:   at(2),
		executed: make(map[int]int),
	}
}

// us converts seconds to what records hold.
func us(s float64) int64 { return int64(s * 1e6) }

func TestMeasure(t *testing.T) {
	s, m := example(
		Record{Worker: 0, Begin: us(0.1), End: us(0.2)},
		Record{Worker: 0, Begin: us(1.1), End: us(2.3)},                        // waited, succeeded
		Record{Worker: 1, Begin: us(1.2), End: us(1.5), Status: Failed},        // executed all the same
		Record{Worker: 1, Begin: us(2.1), End: us(2.2), Status: Unknown},       // after the heal
		Record{Worker: 1, Begin: us(2.4), End: us(2.5)},                        // executed twice
		Record{Worker: 0, Begin: us(2.5), End: us(3.9), Status: Unfinished},    // never returned
		Record{Worker: 1, Begin: us(2.6), End: us(2.7), Status: Unavailable},   // as it says
		Record{Worker: 1, Begin: us(2.7), End: us(2.8), Status: OK, Key: "no"}, // acknowledged, not executed
	)
	m.executed = map[int]int{2: 1, 3: 1, 4: 2, 6: 0, 7: 0}
	got, censored := s.measure(m)
	for k, want := range map[Key]float64{
		Calls: 8, InTime: 50, Errors: 4, ErrorsAfter: 3,
		Stall: 1400, Overrun: 1400, First: 300, AllBack: 500,
		Twice: 1, Lied: 1, OutcomeOpen: 1, Lost: 1,
	} {
		if math.Abs(got[k]-want) > 0.01 {
			t.Errorf("%s = %v, want %v", k, got[k], want)
		}
	}
	if !censored[Stall] {
		t.Error("the worst stall had not ended, yet counts as complete")
	}
}

func TestMeasure_NeverBack(t *testing.T) {
	s, m := example(Record{Worker: 0, Begin: us(2.1), End: us(2.2)})
	got, _ := s.measure(m)
	if got[First] != 200 || !math.IsInf(got[AllBack], 1) {
		t.Errorf("first success %v, all back %v; want 200 and never", got[First], got[AllBack])
	}
	broken := strings.Join(s.Broken(&Run{Values: got, Result: m.result}), "; ")
	if !strings.Contains(broken, string(AllBack)) || strings.Contains(broken, string(First)) {
		t.Errorf("broken: %s", broken)
	}
}

func TestDoubt_SuccessInsideOutage(t *testing.T) {
	before := Record{Begin: us(0.1), End: us(0.2)}
	for _, x := range []struct {
		what  string
		call  Record
		doubt bool
	}{
		{"a success in the middle", Record{Begin: us(1.3), End: us(1.5)}, true},
		{"a success just after the fault", Record{Begin: us(0.99), End: us(1.05)}, false},
		{"one that waited for the end", Record{Begin: us(1.3), End: us(2.1)}, false},
		{"a failure in the middle", Record{Begin: us(1.3), End: us(1.5), Status: Failed}, false},
	} {
		s, m := example(before, x.call)
		if doubts := s.doubt(m, false); (len(doubts) > 0) != x.doubt {
			t.Errorf("%s: doubts %q", x.what, doubts)
		}
	}
}

func TestPeak(t *testing.T) {
	began := time.Now()
	var dials []time.Time
	for _, ms := range []int{0, 10, 20, 990, 1500, 1600, 1700, 1800} {
		dials = append(dials, began.Add(time.Duration(ms)*time.Millisecond))
	}
	if got := peak(dials, time.Second); got != 5 {
		t.Errorf("peak = %d, want 5", got)
	}
}

func TestBetter(t *testing.T) {
	known := func(v float64) Cell { return Cell{Value: v, Known: true} }
	for _, x := range []struct {
		key  Key
		a, b float64
		want bool
	}{
		{Stall, 100, 200, true},
		{Stall, 190, 200, false}, // noise
		{Stall, 200, 100, false},
		{Stall, 5000, math.Inf(1), true},
		{First, math.Inf(1), math.Inf(1), false},
		{InTime, 99, 90, true},
		{InTime, 90, 99, false},
		{Twice, 0, 1, true},
		{Twice, 0, 0, false},
		{OutcomeOpen, 0, 9, false}, // is not compared
	} {
		if got := MetricOf(x.key).Better(known(x.a), known(x.b)); got != x.want {
			t.Errorf("%s: %v better than %v is %v", x.key, x.a, x.b, got)
		}
	}
}

func TestBetter_InEveryRun(t *testing.T) {
	o := &Outcome{Runs: make(map[string][]*Run)}
	play := func(name string, stalls ...float64) {
		for n, ms := range stalls {
			o.Runs[name] = append(o.Runs[name], &Run{Number: n, Values: map[Key]float64{Stall: ms}})
		}
	}
	never := math.Inf(1)
	play("usual", 100, 200, 300)
	play("quick", 50, 100, 150)   // each time
	play("erratic", 50, 100, 310) // but for the last
	play("lost", never, never, never)
	o.Runs["late"] = []*Run{{Number: 2, Values: map[Key]float64{Stall: 150}}} // was in that one alone
	stall := MetricOf(Stall)
	for _, x := range []struct {
		better, worse string
		want          bool
	}{
		{"quick", "usual", true},
		{"usual", "quick", false},
		{"erratic", "usual", false},
		{"usual", "lost", true},
		{"lost", "lost", false},
		{"late", "usual", true},
	} {
		if got := stall.Better(o.Cell(x.better, stall), o.Cell(x.worse, stall)); got != x.want {
			t.Errorf("%s better than %s: %v", x.better, x.worse, got)
		}
	}
}

func TestMeasure_OfThoseThatCould(t *testing.T) {
	s, m := example(
		Record{Worker: 0, Begin: us(0.9), End: us(2.1)},                     // began before the fault, answered
		Record{Worker: 1, Begin: us(1.1), End: us(2.3)},                     // outlasted it
		Record{Worker: 1, Begin: us(1.5), End: us(2.5), Status: Failed},     // could have
		Record{Worker: 0, Begin: us(2.1), End: us(2.2), Status: Unfinished}, // could have
	)
	m.faults[0].Sure = m.faults[0].From
	if got, _ := s.measure(m); got[OfPossible] != 50 {
		t.Errorf("deadlines of 2 s: %v %% of those that could, want 50", got[OfPossible])
	}
	s.Plan.Deadline = 900 * time.Millisecond // that of the second ends at the heal, that of the third 400 ms after it
	if got, _ := s.measure(m); math.Abs(got[OfPossible]-0) > 0.01 {
		t.Errorf("deadlines of 0.9 s: %v %%, want 0: what came late does not count", got[OfPossible])
	}
}

func TestCouldSucceed(t *testing.T) {
	s, m := example()
	for _, x := range []struct {
		what     string
		begin    float64
		deadline time.Duration
		want     bool
	}{
		{"began before the fault", 0.99, 500 * time.Millisecond, true},
		{"began and ended in it", 1.2, 500 * time.Millisecond, false},
		{"ends just after the heal", 1.54, 500 * time.Millisecond, false},
		{"ends slack after the heal", 1.55, 500 * time.Millisecond, true},
		{"began after the heal", 2, 10 * time.Millisecond, true},
	} {
		s.Plan.Deadline = x.deadline
		if got := s.couldSucceed(m.result.at(us(x.begin)), m.faults); got != x.want {
			t.Errorf("a call that %s: %v", x.what, got)
		}
	}
	s.Outage, s.Plan.Deadline = false, 500*time.Millisecond
	if !s.couldSucceed(m.result.at(us(1.2)), m.faults) {
		t.Error("a call could not succeed although there is no outage")
	}
}

func TestMeasure_Overload(t *testing.T) {
	s, m := example(
		Record{Worker: 0, Op: load.Busy, Begin: us(1.1), End: us(1.6)},
		Record{Worker: 1, Op: load.Busy, Begin: us(1.2), End: us(1.7), Status: Failed},
		Record{Worker: 1, Begin: us(1.9), End: us(2.4), Status: Failed}, // began before the load dropped
		Record{Worker: 0, Begin: us(2.1), End: us(2.6), Status: Failed},
		Record{Worker: 1, Begin: us(2.7), End: us(2.8)},
	)
	s.Outage, m.scripts = false, 3
	got, censored := s.measure(m)
	if got[Executions] != 1.5 || got[LastFailure] != 600 || censored[LastFailure] {
		t.Errorf("runs a script %v, last failure %v, censored %v; want 1.5, 600 and not", got[Executions], got[LastFailure], censored[LastFailure])
	}
	if _, known := got[OfPossible]; known {
		t.Error("without an outage there are calls that could not succeed")
	}
	m.result.Calls = m.result.Calls[:4]
	if got, censored := s.measure(m); got[LastFailure] != 600 || !censored[LastFailure] {
		t.Errorf("nothing succeeds any more, yet the last failure counts as the last: %v", got[LastFailure])
	}
}

func TestMeasure_DialsOfTheLibraryAreUnknown(t *testing.T) {
	s, m := example()
	for d, want := range map[Dialer]bool{OwnDialer: true, DefaultDialer: false, TLSDialer: false} {
		s.Dialer = d
		got, _ := s.measure(m)
		if _, known := got[Dials]; known != want {
			t.Errorf("%s: dials known %v, want %v", d, known, want)
		}
	}
}
