package redialhttp

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"time"

	"github.com/redial-go/redial"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"time":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
	"clock": func(t time.Time) string { return t.UTC().Format("15:04:05") },
	"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"long":  long,
}).Parse(pageText))

// Page returns a handler that shows people how the client is, on one page that needs
// nothing else: the state and since when, the last outages as a timeline, nodes, what
// waits, what was refused, is unknown or was sent again, and the round trip. It answers GET
// and HEAD with status 200, reloads itself, see [Reload], works without JavaScript, and is
// light or dark as the reader's system is. Nothing is to be cached.
func Page(s Source, opts ...Option) http.Handler {
	c := configOf(opts)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !allowed(w, r) {
			return
		}
		stats, outages, err := ask(s)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		var body bytes.Buffer
		if err := page.Execute(&body, viewOf(c, stats, outages, time.Now())); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		w.Header().Set("Referrer-Policy", "no-referrer")
		answer(w, r, http.StatusOK, "text/html; charset=utf-8", body.Bytes())
	})
}

// view is what the page shows.
type view struct {
	redial.Stats
	Title    string
	Reload   int // seconds; 0: never
	Now      time.Time
	Status   Status
	For      time.Duration // in the state
	Outages  []redial.Outage
	More     uint64 // outages that are not remembered
	Timeline timeline
	Figures  []figure
}

// figure is a number with a name.
type figure struct {
	Name, Value, More string
	Bad               bool // it is a reason to look closer
}

// timeline is a stretch of time with the outages in it.
type timeline struct {
	Span time.Duration
	From time.Time
	Bars []bar
}

// bar is an outage, in percent of the timeline.
type bar struct {
	Left, Width float64
	Text        string
	Now         bool
}

// spans are how long a timeline may be.
var spans = []time.Duration{15 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour}

// leastWidth is how wide a bar is at least, in percent, so that it can be seen.
const leastWidth = 0.5

func viewOf(c *config, s redial.Stats, outages []redial.Outage, now time.Time) view {
	v := view{
		Stats: s, Title: c.title, Reload: int(max(c.reload, 0) / time.Second), Now: now,
		Status: StatusOf(s), For: now.Sub(s.Since), Timeline: timelineOf(outages, now),
	}
	v.Outages = slices.Clone(outages)
	slices.Reverse(v.Outages)
	if n := uint64(len(outages)); s.Outages > n {
		v.More = s.Outages - n
	}
	v.Figures = []figure{
		{"waiting now", fmt.Sprint(s.Waiting), fmt.Sprintf("of %d that may, for %s", s.MaxWaiting, long(s.Grace)), s.Waiting > 0},
		{"had to wait", fmt.Sprint(s.Waited), "commands", false},
		{"refused", fmt.Sprint(s.Refused), "commands; nothing ran", s.Refused > 0},
		{"outcome unknown", fmt.Sprint(s.Unknown), "commands; may have run", s.Unknown > 0},
		{"sent again", fmt.Sprint(s.Retries), fmt.Sprintf("%d unsent, %d refused, %d repeated, %d delayed", s.RetriesUnsent, s.RetriesRefused, s.RetriesRepeated, s.RetriesDelayed), false},
		{"round trip", rtt(s.RTT), fmt.Sprintf("%d heartbeats, %d missed", s.Heartbeats, s.HeartbeatsMissed), s.HeartbeatsMissed > 0},
		{"outages", fmt.Sprint(s.Outages), long(s.Down) + " outside Connected in all", false},
		{"connections", fmt.Sprint(s.Connections), fmt.Sprintf("%d dials, %d failed", s.Dials, s.DialErrors), false},
		{"dropped", fmt.Sprint(s.IdleDropped + s.SilentCut), fmt.Sprintf("%d idle, %d silent; %d checked", s.IdleDropped, s.SilentCut, s.IdleChecks), false},
	}
	return v
}

func rtt(d time.Duration) string {
	if d == 0 {
		return "not known"
	}
	return long(d)
}

// timelineOf returns the shortest timeline that holds all outages, or the longest there
// is.
func timelineOf(outages []redial.Outage, now time.Time) timeline {
	t := timeline{Span: spans[0]}
	for _, span := range spans {
		if t.Span = span; len(outages) == 0 || now.Sub(outages[0].Began) < span {
			break
		}
	}
	t.From = now.Add(-t.Span)
	for _, o := range outages {
		left := float64(o.Began.Sub(t.From)) / float64(t.Span)
		right := float64(o.Began.Add(o.Duration).Sub(t.From)) / float64(t.Span)
		if right < 0 {
			continue
		}
		left = max(left, 0) * 100
		width := min(max(right*100-left, leastWidth), 100)
		t.Bars = append(t.Bars, bar{
			Left: min(left, 100-width), Width: width, Now: !o.Over,
			Text: fmt.Sprintf("%s, %s: %s", o.Began.UTC().Format("2006-01-02 15:04:05"), long(o.Duration), o.Reason),
		})
	}
	return t
}

// long writes a duration as people do, with two units at most.
func long(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Microsecond:
		return "0 s"
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d/time.Microsecond)
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", d.Seconds()*1000)
	case d < time.Minute:
		return fmt.Sprintf("%.3g s", d.Truncate(10*time.Millisecond).Seconds())
	case d < time.Hour:
		return two(d, time.Minute, "min", time.Second, "s")
	case d < day:
		return two(d, time.Hour, "h", time.Minute, "min")
	}
	return two(d, day, "d", time.Hour, "h")
}

func two(d, big time.Duration, name string, small time.Duration, less string) string {
	if rest := d % big / small; rest > 0 {
		return fmt.Sprintf("%d %s %d %s", d/big, name, rest, less)
	}
	return fmt.Sprintf("%d %s", d/big, name)
}
