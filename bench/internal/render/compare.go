package render

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/redial-go/redial/bench/internal/chaos"
	"github.com/redial-go/redial/bench/internal/client"
)

// duel is one scenario with redial and one peer.
type duel struct {
	outcome *chaos.Outcome
	peer    client.Kind
	// theirs and ours are the metrics in which one is better than the other.
	theirs, ours []chaos.Metric
}

// duels compares redial with every peer in every scenario.
func duels(outcomes []*chaos.Outcome, peers []client.Kind) (all []duel) {
	for _, o := range outcomes {
		for _, p := range peers {
			d := duel{outcome: o, peer: p}
			for _, m := range chaos.Metrics() {
				us, them := o.Cell(client.RedialName, m), o.Cell(p.Name, m)
				switch {
				case m.Better(them, us):
					d.theirs = append(d.theirs, m)
				case m.Better(us, them):
					d.ours = append(d.ours, m)
				}
			}
			all = append(all, d)
		}
	}
	return all
}

// list prints metrics with the value of one client before that of another.
func (d duel) list(metrics []chaos.Metric, first, second string) string {
	var parts []string
	for _, m := range metrics {
		a, b := d.outcome.Cell(first, m), d.outcome.Cell(second, m)
		parts = append(parts, fmt.Sprintf("%s %s (%s)", m.Key, cellText(m, a), cellText(m, b)))
	}
	if parts == nil {
		return "–"
	}
	return strings.Join(parts, ", ")
}

func cellText(m chaos.Metric, c chaos.Cell) string {
	if !c.Known {
		return "–"
	}
	return m.Format(c.Value, c.Censored)
}

// price are the values in which a client that is ahead in another may have paid for that:
// it answered fewer calls in time, or was wrong about writes.
var price = []chaos.Key{chaos.InTime, chaos.Twice, chaos.Lied, chaos.Lost}

// pays reports whether the peer is worse than redial in one of those.
func (d duel) pays() bool {
	return slices.ContainsFunc(d.ours, func(m chaos.Metric) bool { return slices.Contains(price, m.Key) })
}

// arrear is a value in which clients are better than redial that pay nothing for it.
type arrear struct {
	outcome *chaos.Outcome
	metric  chaos.Metric
	ahead   []client.Kind
}

func (a arrear) why() string { return a.outcome.Scenario.Because(a.metric.Key) }

// String has the value of redial, and those of the clients that are ahead.
func (a arrear) String() string {
	ahead := make([]string, len(a.ahead))
	for i, k := range a.ahead {
		ahead[i] = k.Title + " " + cellText(a.metric, a.outcome.Cell(k.Name, a.metric))
	}
	return fmt.Sprintf("%s %s (%s)", a.metric.Key, cellText(a.metric, a.outcome.Cell(client.RedialName, a.metric)), strings.Join(ahead, " · "))
}

// arrears returns them, in the order of the report.
func (r *Report) arrears() (all []arrear) {
	for _, o := range r.Outcomes {
		fair := slices.DeleteFunc(duels([]*chaos.Outcome{o}, r.Kinds[1:]), duel.pays)
		for _, m := range chaos.Metrics() {
			a := arrear{outcome: o, metric: m}
			for _, d := range fair {
				if slices.ContainsFunc(d.theirs, func(better chaos.Metric) bool { return better.Key == m.Key }) {
					a.ahead = append(a.ahead, d.peer)
				}
			}
			if a.ahead != nil {
				all = append(all, a)
			}
		}
	}
	return all
}

// standing counts values by where redial stands in them.
type standing struct{ alone, level, behind int }

// count compares redial with all peers at once.
func (r *Report) count() (s standing) {
	for _, o := range r.Outcomes {
		for _, m := range chaos.Metrics() {
			ours := o.Cell(client.RedialName, m)
			if !m.Compared || !ours.Known {
				continue
			}
			ahead, behind := 0, false
			for _, p := range r.Kinds[1:] {
				theirs := o.Cell(p.Name, m)
				behind = behind || m.Better(theirs, ours)
				if m.Better(ours, theirs) {
					ahead++
				}
			}
			switch {
			case behind:
				s.behind++
			case ahead == len(r.Kinds)-1:
				s.alone++
			default:
				s.level++
			}
		}
	}
	return s
}

// goal is something that redial is meant to reach.
type goal struct {
	what, bare, redial, reached string
	ok                          bool
}

// tenfold are the scenarios in which redial is to be ten times better than bare
// go-redis on the worst stall.
var tenfold = []string{"freeze", "blackhole", "idledrop", "failfast"}

// goals says what was reached of what was aimed at.
func goals(outcomes []*chaos.Outcome) (list []goal) {
	stall := chaos.MetricOf(chaos.Stall)
	for _, name := range tenfold {
		for _, o := range outcomes {
			if o.Scenario.Name != name {
				continue
			}
			bare, ours := o.Cell(client.GoRedisName, stall), o.Cell(client.RedialName, stall)
			if !bare.Known || !ours.Known {
				continue
			}
			ratio := bare.Value / ours.Value
			list = append(list, goal{
				what: fmt.Sprintf("%s: worst stall at least 10 × shorter", o.Scenario.Title),
				bare: cellText(stall, bare), redial: cellText(stall, ours),
				reached: fmt.Sprintf("%.0f ×", math.Floor(ratio)), ok: ratio >= 10,
			})
		}
	}
	for _, m := range []chaos.Metric{chaos.MetricOf(chaos.Twice), chaos.MetricOf(chaos.Lied)} {
		var bare, ours float64
		for _, o := range outcomes {
			bare += o.Cell(client.GoRedisName, m).Value
			ours += o.Cell(client.RedialName, m).Value
		}
		list = append(list, goal{
			what: fmt.Sprintf("All scenarios: writes that %s", verb(m.Key)), bare: fmt.Sprint(bare), redial: fmt.Sprint(ours),
			reached: "none", ok: ours == 0,
		})
		if ours != 0 {
			list[len(list)-1].reached = fmt.Sprint(ours)
		}
	}
	return list
}

func verb(k chaos.Key) string {
	if k == chaos.Twice {
		return "ran twice"
	}
	return string(k)
}
