package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/stats"
)

// sample is what one run measured, by the name of a column.
type sample struct {
	values map[string]float64
	notes  []string
	doubts []string // faults that did not take effect: the values mean nothing
}

func newSample() *sample { return &sample{values: make(map[string]float64)} }

func (s *sample) set(name string, v float64) { s.values[name] = v }

func (s *sample) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// expect records a doubt unless ok: every fault must be seen to have happened.
func (s *sample) expect(ok bool, format string, args ...any) {
	if !ok {
		s.doubts = append(s.doubts, fmt.Sprintf(format, args...))
	}
}

// samples holds the runs of one experiment by client.
type samples map[string][]*sample

// aggregate makes one number of the runs of a column.
type aggregate int

const (
	median aggregate = iota
	worst
	total
)

func (a aggregate) of(values []float64) float64 {
	switch a {
	case worst:
		return slices.Max(values)
	case total:
		sum := 0.0
		for _, v := range values {
			sum += v
		}
		return sum
	}
	return stats.Quantile(values, 0.5)
}

// comparison is how a value relates to its limit.
type comparison int

const (
	shown   comparison = iota // no limit
	atMost                    // <=
	atLeast                   // >=
)

// column is one number of a line.
type column struct {
	name  string
	unit  string
	how   aggregate
	cmp   comparison
	limit float64
}

func (c column) holds(v float64) bool {
	switch c.cmp {
	case atMost:
		return v <= c.limit
	case atLeast:
		return v >= c.limit
	}
	return true
}

func (c column) target() string {
	switch c.cmp {
	case atMost:
		if c.limit == 0 {
			return c.name + " 0"
		}
		return fmt.Sprintf("%s ≤ %s", c.name, stats.Number(c.limit, c.unit))
	case atLeast:
		return fmt.Sprintf("%s ≥ %s", c.name, stats.Number(c.limit, c.unit))
	}
	return ""
}

// line is one line of the table.
type line struct {
	id, what string
	columns  []column
}

// cell renders what one client reached; promised says whether targets apply.
func (l line) cell(runs []*sample, promised bool) string {
	if len(runs) == 0 {
		return "–"
	}
	var parts []string
	missed := false
	for _, c := range l.columns {
		var values []float64
		for _, s := range runs {
			if v, ok := s.values[c.name]; ok {
				values = append(values, v)
			}
		}
		if len(values) == 0 {
			continue
		}
		v := c.how.of(values)
		text := c.name + " " + stats.Number(v, c.unit)
		if c.how == median && len(values) > 1 {
			text += fmt.Sprintf(" [%s…%s]", stats.Number(slices.Min(values), ""), stats.Number(slices.Max(values), ""))
		}
		if promised && !c.holds(v) {
			missed = true
			text = "**" + text + "**"
		}
		parts = append(parts, text)
	}
	var doubts []string
	for _, s := range runs {
		doubts = append(doubts, s.doubts...)
	}
	if len(doubts) > 0 {
		parts = append(parts, fmt.Sprintf("FAULT NOT VERIFIED in %d checks: %s", len(doubts), doubts[0]))
	}
	text := strings.Join(parts, "; ")
	if missed {
		return "✗ " + text
	}
	return text
}

func (l line) target() string {
	var parts []string
	for _, c := range l.columns {
		if t := c.target(); t != "" {
			parts = append(parts, t)
		}
	}
	return strings.Join(parts, ", ")
}

// table prints lines as they are finished.
type table struct {
	out   io.Writer
	kinds []client.Kind
}

func (t table) header() {
	head, rule := "| row | what |", "|---|---|"
	for _, k := range t.kinds {
		head += " " + k.Title + " |"
		rule += "---|"
	}
	fmt.Fprintln(t.out, head+" must reach |")
	fmt.Fprintln(t.out, rule+"---|")
}

func (t table) print(l line, got samples) {
	text := fmt.Sprintf("| %s | %s |", l.id, l.what)
	for _, k := range t.kinds {
		text += " " + l.cell(got[k.Name], k.Name == client.RedialName) + " |"
	}
	fmt.Fprintln(t.out, text+" "+l.target()+" |")
}

// raw prints every run of an experiment.
func (t table) raw(e experiment, got samples) {
	for _, k := range t.kinds {
		for i, s := range got[k.Name] {
			var parts []string
			for _, l := range e.lines {
				for _, c := range l.columns {
					if v, ok := s.values[c.name]; ok {
						parts = append(parts, c.name+" "+stats.Number(v, c.unit))
					}
				}
			}
			parts = append(parts, s.notes...)
			fmt.Fprintf(t.out, "<!-- %s %s run %d: %s -->\n", e.lines[0].id, k.Name, i+1, strings.Join(parts, "; "))
		}
	}
}
