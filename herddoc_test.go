package redial

import (
	"fmt"
	"html"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/wire"
)

const (
	herdDocument = "docs/backoff.md"
	herdPlot     = "docs/backoff.svg"
	herdTemplate = "testdata/backoff.md.tmpl"
	herdCommand  = "go test -run TestHerd_Document -herd -timeout 2h ."
)

// TestHerd_Document makes sure that docs/backoff.md is about the settings of
// options.go. With -herd it simulates full herds and writes the document anew, unless
// they miss the goals.
func TestHerd_Document(t *testing.T) {
	if !*fullHerd {
		b, err := os.ReadFile(herdDocument)
		require.NoError(t, err)
		require.Contains(t, string(b), herdSettings(), "the defaults have changed since; run %s", herdCommand)
		return
	}
	const clients = 10_000
	var herds []herd
	for _, outage := range []time.Duration{5 * time.Second, time.Minute, 10 * time.Minute} {
		herds = append(herds,
			herd{name: "nobody waits", clients: clients, outage: outage},
			herd{name: "commands wait", clients: clients, outage: outage, demand: true})
	}
	herds = append(herds,
		herd{name: "nobody waits, no answer", clients: clients, outage: time.Minute, silent: true},
		herd{name: "commands wait, no answer", clients: clients, outage: time.Minute, silent: true, demand: true})
	for _, p := range otherPolicies {
		herds = append(herds, herd{name: p.name, clients: clients, outage: time.Minute, policy: p.policy})
	}
	results := runHerds(t, herds, func(t *testing.T, r herdResult) {
		if r.policy == nil && r.outage == time.Minute {
			assert.Less(t, r.backAfter(0.99), herdBack)
			assert.Less(t, r.peakShare(), herdPeak)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	text, err := herdText(results)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll("docs", 0o777))
	require.NoError(t, os.WriteFile(herdDocument, []byte(text), 0o666))
	require.NoError(t, os.WriteFile(herdPlot, []byte(herdSVG(results)), 0o666))
}

// otherPolicies are those of others, as the only schedule of a client.
var otherPolicies = []struct {
	name   string
	policy func() backoff.BackOff
}{
	{"100 ms, as go-redis repeats a dial", constant(100 * time.Millisecond)},
	{"1 ms doubled up to 30 s, as Lettuce", func() backoff.BackOff {
		return &doubling{first: time.Millisecond, most: 30 * time.Second}
	}},
	{"50 ms doubled up to 5 s, and 0 to 0.2 s, as ioredis", func() backoff.BackOff {
		return &doubling{first: 50 * time.Millisecond, most: 5 * time.Second, extra: 200 * time.Millisecond}
	}},
	{"0.5 s × 1.5 up to 60 s, half random, cenkalti/backoff's defaults", func() backoff.BackOff {
		return backoff.NewExponentialBackOff(backoff.WithMaxElapsedTime(0))
	}},
}

// doubling doubles a delay up to the most and adds something random below extra.
type doubling struct{ first, most, extra, next time.Duration }

func (d *doubling) Reset() { d.next = d.first }

func (d *doubling) NextBackOff() time.Duration {
	delay := d.next
	d.next = min(2*d.next, d.most)
	if d.extra > 0 {
		delay += rand.N(d.extra)
	}
	return delay
}

// herdSettings is the table of what the simulation depends on.
func herdSettings() string {
	var b strings.Builder
	b.WriteString("| setting | value |\n| --- | --- |\n")
	for _, row := range [][2]any{
		{"first delay", backoffInitial},
		{"factor from one delay to the next", backoffMultiplier},
		{"longest delay, before it is randomized", backoffCap},
		{"randomized by", percent(backoffJitter)},
		{"delay while commands wait, at least", wire.EagerDelay},
		{"delay while commands wait, as a part of the outage's age", fmt.Sprintf("1/%d", wire.EagerDivisor)},
		{"randomized by", percent(wire.EagerJitter)},
		{"attempts at the same time, at most", mostAttempts},
	} {
		fmt.Fprintf(&b, "| %v | %v |\n", row[0], row[1])
	}
	return b.String()
}

// herdText is the document. Its prose is in herdTemplate, its numbers are from here.
func herdText(results []herdResult) (string, error) {
	idle, demand := herdOf(results, "nobody waits", time.Minute), herdOf(results, "commands wait", time.Minute)
	short := herdOf(results, "commands wait", 5*time.Second)
	long := herdOf(results, "nobody waits", 10*time.Minute)
	silent := herdOf(results, "nobody waits, no answer", time.Minute)
	steps := int(math.Ceil(math.Log(float64(backoffCap)/float64(backoffInitial)) / math.Log(backoffMultiplier)))
	ramp := time.Duration(float64(backoffInitial) * (math.Pow(backoffMultiplier, float64(steps)) - 1) / (backoffMultiplier - 1))
	onAverage := func(delay time.Duration) string { return percent(float64(herdWindow) / float64(delay)) }
	const former = 120 // the wire.EagerDivisor that the simulation did away with

	page, err := template.ParseFiles(herdTemplate)
	if err != nil {
		return "", err
	}
	page.Option("missingkey=error")
	var b strings.Builder
	err = page.Execute(&b, map[string]any{
		"command": herdCommand, "settings": herdSettings(),
		"results": herdTable(results, false), "others": herdTable(results, true),
		"clients": idle.clients, "outage": time.Minute,
		"within": herdBack, "peak": percent(herdPeak), "window": herdWindow,
		"lanes": wire.FirstLanes, "attempts": mostAttempts, "lasting": lastingAttempts,
		"cap": backoffCap, "jitter": percent(backoffJitter), "longest": longest(),
		"onAverage": onAverage(backoffCap), "steps": steps, "ramp": round(ramp),
		"idle99": round(idle.backAfter(0.99)), "idlePeak": percent(idle.peakShare()), "idleDials": fmt.Sprintf("%.0f", idle.attempts),
		"longOutage": long.outage, "long99": round(long.backAfter(0.99)),
		"eager": wire.EagerDelay, "divisor": wire.EagerDivisor, "demandOnAverage": onAverage(time.Minute / wire.EagerDivisor),
		"demand50": round(demand.backAfter(0.5)), "demandAll": round(demand.backAfter(1)), "demandPeak": percent(demand.peakShare()),
		"formerDivisor": former, "formerOnAverage": onAverage(time.Minute / former),
		"short": short.outage, "shortPeak": percent(short.peakShare()), "shortAll": round(short.backAfter(1)),
		"shorterThan": time.Duration(float64(herdWindow) * wire.EagerDivisor / herdPeak),
		"silent99":    round(silent.backAfter(0.99)),
	})
	return b.String(), err
}

// longest is the longest that a client sleeps while nobody waits.
func longest() time.Duration { return time.Duration(float64(backoffCap) * (1 + backoffJitter)) }

func percent(share float64) string { return fmt.Sprintf("%.4g %%", math.Round(1000*share)/10) }

// round leaves what matters of a time.
func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Millisecond)
}

func herdOf(results []herdResult, name string, outage time.Duration) herdResult {
	for _, r := range results {
		if r.name == name && r.outage == outage {
			return r
		}
	}
	panic("no such herd: " + name)
}

// herdTable is the table of the herds with the default policy, or with others.
func herdTable(results []herdResult, others bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| outage | schedule | dials in vain, each | 50 %% back | 99 %% back | all back | most clients in %v | most connects in %v | in 1s |\n", herdWindow, herdWindow)
	b.WriteString("| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, r := range results {
		if others != (r.policy != nil) {
			continue
		}
		fmt.Fprintf(&b, "| %v | %s | %.0f | %v | %v | %v | %s | %d | %d |\n", r.outage, r.name, r.attempts,
			round(r.backAfter(0.5)), round(r.backAfter(0.99)), round(r.backAfter(1)), percent(r.peakShare()),
			peakOf(r.connects, herdWindow), peakOf(r.connects, time.Second))
	}
	return b.String()
}

// herdSVG draws, for the outages of a minute that end in connections refused, the
// share of clients that are back, and the share that come back in each herdWindow.
func herdSVG(results []herdResult) string {
	const (
		width, height = 860, 750
		left, wide    = 60.0, 770.0
		high          = 230.0
		span          = 4 * time.Second
		top1, top2    = 40.0, 350.0
	)
	colors := []string{"#0b62c4", "#d1491b", "#8a8a8a", "#7a3fb0", "#1f8a4c", "#b8860b"}
	x := func(at time.Duration) float64 { return left + wide*float64(at)/float64(span) }
	y := func(top, share float64) float64 { return top + high*(1-share) }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	text := func(x, y float64, anchor, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(s))
	}
	line := func(x1, y1, x2, y2 float64, style string) {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`+"\n", x1, y1, x2, y2, style)
	}
	const grid = `stroke="#dddddd"`
	for i, top := range []float64{top1, top2} {
		text(left, top-12, "start", []string{
			"share of the clients that are back",
			fmt.Sprintf("share of the clients that come back in each %v", herdWindow),
		}[i])
		for _, share := range []float64{0, 0.25, 0.5, 0.75, 1} {
			line(left, y(top, share), left+wide, y(top, share), grid)
			text(left-6, y(top, share)+4, "end", percent(share))
		}
		for at := time.Duration(0); at <= span; at += time.Second / 2 {
			line(x(at), top, x(at), top+high, grid)
			text(x(at), top+high+18, "middle", at.String())
		}
	}
	const dashed = `stroke="black" stroke-dasharray="5 4"`
	line(x(herdBack), top1, x(herdBack), top1+high, dashed)
	text(x(herdBack)+5, top1+high-8, "start", "goal: 99 % by here")
	line(left, y(top2, herdPeak), left+wide, y(top2, herdPeak), dashed)
	text(left+wide-5, y(top2, herdPeak)-6, "end", "goal: below this")

	drawn := 0
	for _, r := range results {
		if r.outage != time.Minute || r.silent {
			continue
		}
		style := fmt.Sprintf(`fill="none" stroke="%s" stroke-width="2"`, colors[drawn%len(colors)])
		var curve, bars strings.Builder
		fmt.Fprintf(&curve, "%.1f,%.1f", x(0), y(top1, 0))
		fmt.Fprintf(&bars, "%.1f,%.1f", x(0), y(top2, 0))
		done := 0
		const fine = herdWindow / 10
		for at := time.Duration(0); at < span; at += herdWindow {
			before := done
			for step := at + fine; step <= at+herdWindow; step += fine {
				for done < len(r.back) && r.back[done] < step {
					done++
				}
				fmt.Fprintf(&curve, " %.1f,%.1f", x(step), y(top1, float64(done)/float64(r.clients)))
			}
			share := float64(done-before) / float64(r.clients)
			fmt.Fprintf(&bars, " %.1f,%.1f %.1f,%.1f", x(at), y(top2, share), x(at+herdWindow), y(top2, share))
		}
		for _, points := range []string{curve.String(), bars.String()} {
			fmt.Fprintf(&b, `<polyline %s points="%s"/>`+"\n", style, points)
		}
		name := r.name
		if r.policy == nil {
			name = "redial, " + name
		}
		lx, ly := left, top2+high+46+22*float64(drawn)
		line(lx, ly-4, lx+24, ly-4, style)
		text(lx+30, ly, "start", name)
		drawn++
	}
	b.WriteString("</svg>\n")
	return b.String()
}
