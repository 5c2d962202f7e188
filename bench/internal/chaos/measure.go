package chaos

import (
	"fmt"
	"math"
	"time"

	"github.com/redial-go/redial/bench/internal/load"
	"github.com/redial-go/redial/bench/internal/stats"
)

// Key names a measured value.
type Key string

// The values of a run. Times are milliseconds.
const (
	InTime      Key = "in time"             // calls answered without error before their deadline, in percent
	OfPossible  Key = "of those that could" // the same, of the calls that some client could have answered
	Errors      Key = "errors"              // calls that failed or never returned
	Stall       Key = "worst stall"         // longest time from intended start to return
	Overrun     Key = "of it needless"      // the longest part of a stall in which the server could be reached
	First       Key = "first success"       // from heal to the first success
	AllBack     Key = "all back"            // from heal until every worker has had a success
	ErrorsAfter Key = "errors after"        // calls that began after heal and failed
	LastFailure Key = "last failure"        // from heal until the last of those returned
	Executions  Key = "runs a script"       // how often a script was executed, of those that were called
	Dials       Key = "dials"               // from the first fault on
	PeakDials   Key = "peak dials/s"        // most dials within any second
	Twice       Key = "run twice"           // writes executed more than once
	Lied        Key = "failed but ran"      // writes reported as failed, yet executed
	OutcomeOpen Key = "said unknown"        // writes whose outcome the client said to be unknown
	Lost        Key = "lost"                // writes acknowledged, yet not executed
	CPU         Key = "CPU"                 // processor time of the client's process
	Goroutines  Key = "goroutines left"
	Sockets     Key = "sockets left"
	Calls       Key = "calls"
)

// lateGrace is how much later than its deadline a call may return and still count
// as in time: timers and schedulers are not exact.
const lateGrace = 100 * time.Millisecond

// settle is how long after a fault took effect a success may still come in.
const settle = 100 * time.Millisecond

// slack is how much earlier than the harness a client may see that an outage is over.
const slack = 50 * time.Millisecond

// unsure is how much earlier than the harness says an outage may have ended on a
// busy machine. The middle of an outage is what lies before.
const unsure = 300 * time.Millisecond

// material is what a run is measured by.
type material struct {
	result    *Result
	faults    []Window
	healed    time.Time
	executed  map[int]int // by index of the call
	published []time.Time
	scripts   int // executed
}

// measure turns a run into values. Censored are those that had not ended.
func (s *Scenario) measure(m material) (values map[Key]float64, censored map[Key]bool) {
	values = map[Key]float64{
		CPU:        stats.Ms(m.result.CPU),
		Goroutines: float64(m.result.Goroutines),
		Sockets:    float64(m.result.Sockets),
	}
	censored = make(map[Key]bool)
	var dials []time.Time
	from := m.result.Began
	if !s.Cold && !s.Idle && len(m.faults) > 0 {
		from = m.faults[0].From
	}
	for _, at := range m.result.Dials {
		if !at.Before(from) {
			dials = append(dials, at)
		}
	}
	if s.Dialer == OwnDialer { // another does not count
		values[Dials] = float64(len(dials))
		values[PeakDials] = float64(peak(dials, time.Second))
	}
	if s.PubSub {
		s.measureMessages(m, values, censored)
	} else {
		s.measureCalls(m, values, censored)
	}
	return values, censored
}

func (s *Scenario) measureCalls(m material, values map[Key]float64, censored map[Key]bool) {
	count := make(map[Key]int)
	var stall, overrun, lastFailure, lastSuccess time.Duration
	possible, busy := 0, 0
	first := stats.Never
	back := make(map[int]time.Duration)
	early := time.Duration(0)
	if s.Outage {
		early = slack
	}
	for i, c := range m.result.Calls {
		begin, end := m.result.at(c.Begin), m.result.at(c.End)
		took := end.Sub(begin)
		could := s.couldSucceed(begin, m.faults)
		if could {
			possible++
		}
		if c.Op == load.Busy {
			busy++
		}
		if took > stall {
			stall, censored[Stall] = took, c.Status == Unfinished
		}
		if over := took - overlap(begin, end, m.faults); over > overrun {
			overrun, censored[Overrun] = over, c.Status == Unfinished
		}
		if c.Status == OK {
			if took <= s.Plan.Deadline+lateGrace {
				count[InTime]++
				if could {
					count[OfPossible]++
				}
			}
			if !end.Before(m.healed.Add(-early)) {
				after := max(end.Sub(m.healed), 0)
				lastSuccess = max(lastSuccess, after)
				first = min(first, after)
				if known, ok := back[c.Worker]; !ok || after < known {
					back[c.Worker] = after
				}
			}
		} else {
			count[Errors]++
			if !begin.Before(m.healed) {
				count[ErrorsAfter]++
				lastFailure = max(lastFailure, end.Sub(m.healed))
			}
		}
		ran, counts := m.executed[i]
		if !counts {
			continue
		}
		switch {
		case ran > 1:
			count[Twice]++
		case ran == 0 && c.Status == OK:
			count[Lost]++
		}
		switch {
		case c.Status == Unknown:
			count[OutcomeOpen]++
		case ran > 0 && (c.Status == Failed || c.Status == Unavailable):
			count[Lied]++
		}
	}
	calls := len(m.result.Calls)
	values[Calls] = float64(calls)
	values[InTime] = 100 * float64(count[InTime]) / float64(max(calls, 1))
	for _, k := range []Key{Errors, ErrorsAfter, Twice, Lost, OutcomeOpen, Lied} {
		values[k] = float64(count[k])
	}
	if s.Outage {
		values[OfPossible] = 100 * float64(count[OfPossible]) / float64(max(possible, 1))
	}
	if busy > 0 {
		values[Executions] = float64(m.scripts) / float64(busy)
		values[LastFailure], censored[LastFailure] = stats.Ms(lastFailure), lastFailure > lastSuccess
	}
	values[Stall], values[Overrun] = stats.Ms(stall), stats.Ms(overrun)
	values[First] = stats.Ms(first)
	all := stats.Never
	if len(back) == s.Plan.Workers {
		all = 0
		for _, d := range back {
			all = max(all, d)
		}
	}
	values[AllBack] = stats.Ms(all)
}

// couldSucceed reports whether a call could be answered in time by a client that is
// back [slack] after the heal: unless it began in an outage and had to end in it.
func (s *Scenario) couldSucceed(begin time.Time, faults []Window) bool {
	for _, w := range faults {
		if s.Outage && !begin.Before(w.From) && begin.Before(w.To) && begin.Add(s.Plan.Deadline).Before(w.To.Add(slack)) {
			return false
		}
	}
	return true
}

// measureMessages takes the messages of a subscription for calls: the stall is the
// longest silence.
func (s *Scenario) measureMessages(m material, values map[Key]float64, censored map[Key]bool) {
	began := m.result.Began
	last, silence := began, time.Duration(0)
	first := stats.Never
	for _, d := range m.result.Deliveries {
		at := time.Unix(0, d.Got)
		silence = max(silence, at.Sub(last))
		last = at
		// What was on its way when the peer was lost does not count.
		if sent := time.Unix(0, d.Sent); sent.After(m.healed) && first == stats.Never {
			first = at.Sub(m.healed)
		}
	}
	if open := m.result.Stopped.Sub(last); open > silence && open > settle {
		silence, censored[Stall] = open, true
	}
	sent := 0
	for _, at := range m.published {
		if at.After(began) && at.Before(m.result.Stopped) {
			sent++
		}
	}
	values[Calls] = float64(sent)
	values[InTime] = 100 * float64(len(m.result.Deliveries)) / float64(max(sent, 1))
	values[Stall] = stats.Ms(silence)
	values[First] = stats.Ms(first)
}

// at converts the microseconds of a record.
func (r *Result) at(us int64) time.Time { return r.Began.Add(time.Duration(us) * time.Microsecond) }

// overlap is how much of a time lies in windows.
func overlap(from, to time.Time, windows []Window) time.Duration {
	var sum time.Duration
	for _, w := range windows {
		begin, end := w.From, w.To
		if begin.Before(from) {
			begin = from
		}
		if end.After(to) {
			end = to
		}
		sum += max(end.Sub(begin), 0)
	}
	return sum
}

// peak returns the largest number of moments within any period of that length.
func peak(moments []time.Time, period time.Duration) int {
	most, first := 0, 0
	for i, at := range moments {
		for at.Sub(moments[first]) >= period {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// tolerableLateness is how late the load itself may be before a run means nothing.
const tolerableLateness = 250 * time.Millisecond

// Spoiled reports whether the machine was too busy for the run to mean anything.
func (r *Run) Spoiled() bool { return r.Result.Late >= tolerableLateness }

// doubt says what makes a run worthless, beyond the doubts of its faults. A quick
// run is not held to what a slow machine alone can spoil.
func (s *Scenario) doubt(m material, quick bool) (doubts []string) {
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			doubts = append(doubts, fmt.Sprintf(format, args...))
		}
	}
	late := m.result.Late >= tolerableLateness
	expect(quick || !late, "the load was late by %v", m.result.Late)
	expect(len(m.faults) > 0, "no fault was recorded")
	if s.PubSub {
		expect(len(m.result.Deliveries) > 0, "no message before the fault")
		return doubts
	}
	answered, failed, inside := 0, 0, 0
	for _, c := range m.result.Calls {
		begin, end := m.result.at(c.Begin), m.result.at(c.End)
		if end.Before(m.faults[0].From) {
			if c.Status == OK {
				answered++
			} else {
				failed++
			}
		}
		if !s.Outage || c.Status != OK {
			continue
		}
		// A success inside an outage proves that there was none.
		for _, w := range m.faults {
			if begin.Before(w.To) && end.After(w.Sure.Add(settle)) && end.Before(w.To.Add(-unsure)) {
				inside++
			}
		}
	}
	if !s.Idle && !s.Cold {
		expect(answered > 0, "no call was answered before the fault")
		expect(quick || failed == 0, "%d calls failed before the fault", failed)
	}
	expect(quick && late || inside == 0, "%d calls succeeded in the middle of an outage", inside)
	expect(len(m.result.Calls) > 0, "no calls")
	expect(s.Plan.Surge.OneIn == 0 || m.scripts > 0, "no script was executed")
	return doubts
}

// Broken says which promises a run breaks that no timing can excuse. They are held
// against redial; others break them as they please.
func (s *Scenario) Broken(r *Run) (broken []string) {
	for _, k := range []Key{Twice, Lied, Lost, Goroutines, Sockets} {
		if v := r.Values[k]; v > 0 {
			broken = append(broken, fmt.Sprintf("%s: %v", k, v))
		}
	}
	if r.Result.CloseError != "" {
		broken = append(broken, "Close: "+r.Result.CloseError)
	}
	if r.Spoiled() {
		return broken // there may have been no time to come back
	}
	keys := []Key{First}
	if !s.PubSub {
		keys = append(keys, AllBack)
	}
	for _, k := range keys {
		if math.IsInf(r.Values[k], 1) {
			broken = append(broken, fmt.Sprintf("%s: never", k))
		}
	}
	return broken
}
