// Package render writes the report of the chaos suite.
package render

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/redial-go/redial/bench/internal/chaos"
	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/overhead"
	"github.com/redial-go/redial/bench/internal/stats"
)

// Report is everything the document says.
type Report struct {
	Outcomes []*chaos.Outcome
	Compared []*chaos.Outcome // with several dialers
	LeftOut  []string         // titles of scenarios that cannot be played here
	Kinds    []client.Kind    // redial first
	Overhead []overhead.Row
	Rounds   int // of the overhead
	Options  chaos.Options
	Date     time.Time
	Took     time.Duration
	Facts    []Fact
	// Pictures are by name of the scenario, as paths from the document.
	Pictures map[string]string
	// Problems are what makes the report, or redial, wrong.
	Problems []string
}

// Fact is a line about the machine and what ran on it.
type Fact struct{ Name, Value string }

// Markdown writes the report.
func (r *Report) Markdown(w io.Writer) error {
	d := &document{w: w}
	r.head(d)
	r.summary(d)
	r.goals(d)
	r.notFirst(d)
	r.scenarios(d)
	r.dialers(d)
	r.overhead(d)
	r.setup(d)
	return d.err
}

// document keeps the first error of its writes.
type document struct {
	w   io.Writer
	err error
}

// p prints a paragraph or a line of a table.
func (d *document) p(format string, args ...any) {
	if d.err == nil {
		_, d.err = fmt.Fprintf(d.w, format+"\n", args...)
	}
}

func (d *document) row(cells ...string) { d.p("| %s |", strings.Join(cells, " | ")) }

// table begins one: the first column is text, the others are numbers.
func (d *document) table(head ...string) {
	d.row(head...)
	d.p("|---%s|", strings.Repeat("|---:", len(head)-1))
}

func (r *Report) head(d *document) {
	d.p("# How Redis clients for Go behave when things break\n")
	d.p("Five clients, %d ways to break what is between them and their server. Written by a program, every number of it: "+
		"`cd bench && go run ./cmd/report` repeats it all in about %.0f minutes. [How it is measured](#how-it-is-measured).\n",
		len(r.Outcomes), max(r.Took.Minutes(), 1))
	if len(r.Problems) > 0 {
		d.p("> **Wrong in this run:**\n>")
		for _, problem := range r.Problems {
			d.p("> - %s", problem)
		}
		d.p("")
	}
	if len(r.LeftOut) > 0 {
		d.p("> Left out, since no network namespace could be had: %s.\n", strings.Join(r.LeftOut, ", "))
	}
	if r.Options.Quick {
		d.p("> This is a quick run: one run each, shorter faults. It shows that everything works; its times mean little.\n")
	}
}

// summaryCell is a scenario of one client in short.
func summaryCell(o *chaos.Outcome, name string) string {
	in, stall := chaos.MetricOf(chaos.InTime), chaos.MetricOf(chaos.Stall)
	if !o.Cell(name, in).Known {
		return "–"
	}
	text := cellText(in, o.Cell(name, in)) + " · " + cellText(stall, o.Cell(name, stall))
	for _, k := range []chaos.Key{chaos.Twice, chaos.Lied} {
		if c := o.Cell(name, chaos.MetricOf(k)); c.Known && c.Value > 0 {
			text += fmt.Sprintf(" · **%.0f %s**", c.Value, k)
		}
	}
	for _, k := range []chaos.Key{chaos.Goroutines, chaos.Sockets} {
		if c := o.Cell(name, chaos.MetricOf(k)); c.Known && c.Value > 0 {
			text += fmt.Sprintf(" · **%.0f %s**", c.Value, k)
		}
	}
	return text
}

func (r *Report) summary(d *document) {
	d.p("## Summary\n")
	d.p("Each cell: calls answered without error before their deadline · worst stall of a call. Bold: writes that the server ran more than once, " +
		"writes reported as failed that it ran, things left behind after Close.\n")
	head := []string{"scenario"}
	for _, k := range r.Kinds {
		head = append(head, k.Title)
	}
	d.table(head...)
	for _, o := range r.Outcomes {
		cells := []string{fmt.Sprintf("[%s](#%s)", o.Scenario.Title, anchor(o.Scenario.Title))}
		for _, k := range r.Kinds {
			cells = append(cells, summaryCell(o, k.Name))
		}
		d.row(cells...)
	}
	cells := []string{"**all scenarios**"}
	for _, k := range r.Kinds {
		cells = append(cells, r.totals(k.Name))
	}
	d.row(cells...)
	d.p("")
	r.picture(d, firstPicture)
}

// firstPicture is the scenario whose picture comes with the summary.
const firstPicture = "idledrop"

// totals sums up over all scenarios what must not happen.
func (r *Report) totals(name string) string {
	var parts []string
	for _, k := range []chaos.Key{chaos.Twice, chaos.Lied} {
		sum := 0.0
		for _, o := range r.Outcomes {
			sum += o.Cell(name, chaos.MetricOf(k)).Value
		}
		parts = append(parts, fmt.Sprintf("%.0f %s", sum, k))
	}
	return strings.Join(parts, " · ")
}

// anchor is what a heading is linked by.
func anchor(title string) string {
	keep := func(c rune) rune {
		switch {
		case c == ' ' || c == '-':
			return '-'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			return c
		}
		return -1
	}
	return strings.Map(keep, strings.ToLower(title))
}

func (r *Report) picture(d *document, scenario string) {
	path, ok := r.Pictures[scenario]
	if !ok {
		return
	}
	for _, o := range r.Outcomes {
		if o.Scenario.Name == scenario {
			d.p("![%s: calls answered and worst latency over time, redial and bare go-redis](%s)\n", o.Scenario.Title, path)
		}
	}
}

func (r *Report) goals(d *document) {
	d.p("## Beside bare go-redis\n")
	d.table("goal", "go-redis", "redial", "reached", "")
	for _, g := range goals(r.Outcomes) {
		mark := "✓"
		if !g.ok {
			mark = "✗"
		}
		d.row(g.what, g.bare, g.redial, g.reached, mark)
	}
	d.p("")
}

func (r *Report) notFirst(d *document) {
	d.p("## Where redial is not first\n")
	c := r.count()
	arrears := r.arrears()
	d.p("Of %d values (a metric in a scenario), redial is better than every other client in %d, level with the best in %d, "+
		"and behind at least one in %d. In %d of these whoever is ahead has paid for it in the same scenario: it answered "+
		"fewer calls in time than redial, ran writes twice, or reported writes as failed that it ran.\n",
		c.alone+c.level+c.behind, c.alone, c.level, c.behind, c.behind-len(arrears))
	r.reasons(d, arrears)
	d.p("Every value in which another client is better by more than noise, and in the last column what the same client " +
		"does worse in the same scenario. Redial's values are in parentheses.\n")
	d.p("| scenario | client | is better in | is worse in |")
	d.p("|---|---|---|---|")
	any := false
	for _, x := range duels(r.Outcomes, r.Kinds[1:]) {
		if len(x.theirs) == 0 {
			continue
		}
		any = true
		d.row(x.outcome.Scenario.Title, x.peer.Title,
			x.list(x.theirs, x.peer.Name, client.RedialName), x.list(x.ours, x.peer.Name, client.RedialName))
	}
	if !any {
		d.row("none", "", "", "")
	}
	d.p("\nTwo values count as equal if they differ by less than this: %s; or if neither client is ahead in every run.\n", noise())
}

// reasons says why redial is behind where nobody pays for being ahead.
func (r *Report) reasons(d *document, arrears []arrear) {
	if len(arrears) == 0 {
		return
	}
	d.p("The other %d, each with its reason. In parentheses is who is ahead.\n", len(arrears))
	d.row("scenario", "values", "why")
	d.p("|---|---|---|")
	for len(arrears) > 0 {
		scenario, why := arrears[0].outcome.Scenario, arrears[0].why()
		var values []string
		arrears = slices.DeleteFunc(arrears, func(a arrear) bool {
			same := a.outcome.Scenario == scenario && a.why() == why
			if same {
				values = append(values, a.String())
			}
			return same
		})
		d.row(scenario.Title, strings.Join(values, ", "), why)
	}
	d.p("")
}

// noise describes what counts as equal.
func noise() string {
	var parts []string
	for _, m := range chaos.Metrics() {
		if !m.Compared || m.Absolute == 0 {
			continue
		}
		text := fmt.Sprintf("%s %s", m.Key, stats.Number(m.Absolute, m.Unit))
		if m.Relative > 0 {
			text += fmt.Sprintf(" or %.0f %%", 100*m.Relative)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

func (r *Report) scenarios(d *document) {
	d.p("## The scenarios\n")
	d.p("In bold is what no other client is better in: by more than noise, and in every run. " +
		"Where the runs of a client differ much, that may be a value with a better one beside it.\n")
	for _, o := range r.Outcomes {
		s := o.Scenario
		d.p("### %s\n", s.Title)
		d.p("%s\n", s.What)
		if !s.PubSub {
			d.p("Load: %d workers, %.0f calls/s, a deadline of %s for each call.\n", s.Plan.Workers,
				float64(s.Plan.Workers)/s.Plan.Every.Seconds(), stats.Number(s.Plan.Deadline.Seconds(), "s"))
		}
		if s.Why != "" {
			d.p("*%s*\n", s.Why)
		}
		head := []string{""}
		for _, k := range r.Kinds {
			head = append(head, k.Title)
		}
		d.table(head...)
		for _, m := range chaos.Metrics() {
			r.metricRow(d, o, m)
		}
		d.p("")
		if s.Name != firstPicture {
			r.picture(d, s.Name)
		}
	}
}

// metricRow prints one metric of a scenario, best values in bold.
func (r *Report) metricRow(d *document, o *chaos.Outcome, m chaos.Metric) {
	cells := []string{string(m.Key)}
	known := false
	for _, k := range r.Kinds {
		c := o.Cell(k.Name, m)
		known = known || c.Known
		text := cellText(m, c)
		if c.Known && m.Compared && r.best(o, m, c) {
			text = "**" + text + "**"
		}
		cells = append(cells, text)
	}
	if known {
		d.row(cells...)
	}
}

// best reports whether no client is better, and at least one is worse.
func (r *Report) best(o *chaos.Outcome, m chaos.Metric, c chaos.Cell) bool {
	worse := false
	for _, k := range r.Kinds {
		other := o.Cell(k.Name, m)
		if m.Better(other, c) {
			return false
		}
		worse = worse || m.Better(c, other)
	}
	return worse
}

// ComparedLanes is how many scenarios are played at a time at least to compare dialers.
const ComparedLanes = 4

// dialers compares what connections are made with.
func (r *Report) dialers(d *document) {
	if len(r.Compared) == 0 {
		return
	}
	d.p("## With other dialers\n")
	d.p("The scenarios above use a dialer of the caller's, which counts. Here they are played once more with the library's own, with one of the caller's, "+
		"with TLS, and with a client that finds the server by a sentinel, all with deadlines of 2 s, %d scenarios at a time and in each one client after another. Each cell: from the heal to the first success · calls answered in time, of those that could be.\n", max(r.Options.Lanes, ComparedLanes))
	head := []string{"scenario", "dialer"}
	for _, k := range r.Kinds {
		head = append(head, k.Title)
	}
	d.table(head...)
	for _, o := range r.Compared {
		cells := []string{o.Scenario.Title, o.Scenario.Dialer.String()}
		for _, k := range r.Kinds {
			cells = append(cells, cellsText(o, k.Name, chaos.First, chaos.OfPossible))
		}
		d.row(cells...)
	}
	d.p("")
}

// cellsText prints some values of a client in a scenario, as far as they are known.
func cellsText(o *chaos.Outcome, name string, keys ...chaos.Key) string {
	var parts []string
	for _, k := range keys {
		m := chaos.MetricOf(k)
		if c := o.Cell(name, m); c.Known {
			parts = append(parts, cellText(m, c))
		}
	}
	if parts == nil {
		return "–"
	}
	return strings.Join(parts, " · ")
}

// Short prints how quickly the clients were back, as a table for a terminal.
func Short(w io.Writer, outcomes []*chaos.Outcome, kinds []client.Kind) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	d := &document{w: t}
	columns := func(first string, cell func(client.Kind) string) {
		cells := []string{first}
		for _, k := range kinds {
			cells = append(cells, cell(k))
		}
		d.p("%s", strings.Join(cells, "\t"))
	}
	columns("", func(k client.Kind) string { return k.Title })
	for _, o := range outcomes {
		for _, k := range []chaos.Key{chaos.First, chaos.OfPossible, chaos.LastFailure, chaos.Executions, chaos.Dials} {
			m, known, what := chaos.MetricOf(k), false, string(k)
			for _, kind := range kinds {
				known = known || o.Cell(kind.Name, m).Known
			}
			if !known {
				continue
			}
			if k == chaos.First {
				what = "heal -> " + what
			}
			columns(o.Scenario.FullName()+": "+what, func(kind client.Kind) string { return cellText(m, o.Cell(kind.Name, m)) })
		}
	}
	if d.err != nil {
		return d.err
	}
	return t.Flush()
}

func (r *Report) overhead(d *document) {
	if len(r.Overhead) == 0 {
		return
	}
	d.p("## What redial costs while nothing breaks\n")
	d.p("Time for one command, or one pipeline, on a healthy server: medians of %d short rounds in which the clients take turns. "+
		"The ratio is taken within each round; in brackets its quartiles.\n", r.Rounds)
	d.table("", "go-redis", "redial", "redial / go-redis", "allocations, go-redis", "redial", "rueidis", "allocations, rueidis")
	us := func(t time.Duration) string { return stats.Number(float64(t)/float64(time.Microsecond), "µs") }
	for _, row := range r.Overhead {
		d.row(row.Name, us(row.Bare), us(row.Redial),
			fmt.Sprintf("%.3f [%.2f…%.2f]", row.Ratio, row.Low, row.High),
			stats.Number(row.BareAllocs, ""), stats.Number(row.RedialAllocs, ""), us(row.Rueidis), stats.Number(row.RueidisAllocs, ""))
	}
	d.p("\nrueidis pipelines the commands of all goroutines by itself. go-redis and redial do so on request, which is the last row.\n")
}

func (r *Report) setup(d *document) {
	d.p("## How it is measured\n")
	d.p("| | |")
	d.p("|---|---|")
	d.row("date", r.Date.UTC().Format("2006-01-02 15:04 UTC"))
	for _, f := range r.Facts {
		d.row(f.Name, f.Value)
	}
	d.p("\n**Clients.**\n")
	for _, k := range r.Kinds {
		d.p("- **%s**: %s", k.Title, k.Setup)
	}
	side, lanes := "side by side", "one scenario at a time"
	if r.Options.Apart {
		side = "one after the other"
	}
	if r.Options.Lanes > 1 {
		lanes = fmt.Sprintf("up to %d scenarios at a time", r.Options.Lanes)
	}
	d.p("\n**Load.** An open loop: calls start when they are due, whatever became of the earlier ones, and latency is counted from that moment, " +
		"so a stalled client cannot slow its own load down. GET, SET and INCR in turn, unless the scenario says otherwise. " +
		"Every call has a context with a deadline. Each INCR has a key of its own: afterwards the server is asked how often that very call was executed.\n")
	d.p("**Runs.** %d of each scenario; values are medians, except those that say “all runs”, which are sums. In each run the clients play %s, "+
		"each in a process of its own, with its own redis-server and its own fault-injecting proxy from `redialtest`; %s. "+
		"A run in which the load itself was late, or the test bed failed, is made again: %d here. Processor time, goroutines and sockets are those of that process.\n", r.Options.Runs, side, lanes, r.repeated())
	d.p("**Lengths.** Those of faults are up to a sixth shorter or longer, by a generator with seed %d (`-seed`): the same for all clients in a run, "+
		"another one in the next. So nobody's own timeout ends just when the fault does.\n", r.Options.Seed)
	d.p("**Checks.** Each fault is seen to have happened: a frozen or refusing server is asked for a PONG and must not answer, resets and cuts are counted, "+
		"and a call that succeeds in the middle of an outage makes the run worthless. The load itself was late by at most %s.\n", r.lateness())
	d.p("**Values.**\n")
	for _, m := range chaos.Metrics() {
		d.p("- *%s*: %s", m.Key, m.What)
	}
}

// repeated is how many runs were made again.
func (r *Report) repeated() (n int) {
	for _, o := range r.Outcomes {
		n += o.Repeated
	}
	return n
}

// lateness is by how much the load was late at worst.
func (r *Report) lateness() string {
	var worst time.Duration
	for _, o := range r.Outcomes {
		for _, runs := range o.Runs {
			for _, run := range runs {
				worst = max(worst, run.Result.Late)
			}
		}
	}
	return stats.Number(float64(worst.Milliseconds()), "ms")
}
