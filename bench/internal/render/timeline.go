package render

import (
	"fmt"
	"math"
	"time"

	"github.com/go-analyze/charts"
	"github.com/redial-go/redial/bench/internal/chaos"
)

// bin is the resolution of a timeline.
const bin = 100 * time.Millisecond

// Line is one client in a timeline.
type Line struct {
	Title string
	Run   *chaos.Run
}

// Timeline draws how a run went: the calls that were answered in time and the
// worst latency, both by the moment at which the calls were made, as SVG.
func Timeline(s *chaos.Scenario, lines ...Line) ([]byte, error) {
	const width, height = 900, 560
	lead := time.Duration(0) // what is shown of the time before the fault
	if !s.Idle {
		lead = time.Second
	}
	seconds := int((shortest(lines) + lead - bin) / time.Second)
	bins := seconds*int(time.Second/bin) + 1
	var names []string
	var served, worst [][]float64
	for _, l := range lines {
		answered, latency := series(l.Run, bins, lead, s.Plan.Deadline)
		names, served, worst = append(names, l.Title), append(served, answered), append(worst, latency)
	}
	labels := make([]string, bins)
	for i := range labels {
		labels[i] = fmt.Sprintf("%.0f s", (time.Duration(i)*bin - lead).Seconds())
	}
	p := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: width, Height: height})
	p.FilledRect(0, 0, width, height, charts.ColorWhite, charts.ColorWhite, 0)
	theme := charts.GetTheme(charts.ThemeLight).WithSeriesColors([]charts.Color{
		charts.ColorFromHex("#1b7f5c"), charts.ColorFromHex("#d1495b")})
	upper := options(s.Title+": calls answered in time, per second", names, labels, served)
	lower := options("Worst latency in seconds, by when the call was made", nil, labels, worst)
	for i, opt := range []charts.LineChartOption{upper, lower} {
		opt.Theme = theme
		opt.XAxis.LabelCount = seconds + 1
		panel := p.Child(charts.PainterBoxOption(charts.NewBox(0, i*height/2, width, (i+1)*height/2)))
		if err := panel.LineChart(opt); err != nil {
			return nil, err
		}
	}
	return p.Bytes()
}

// options prepares a panel; one without names has no legend.
func options(title string, names, labels []string, values [][]float64) charts.LineChartOption {
	opt := charts.NewLineChartOptionWithData(values)
	opt.Title.Text = title
	opt.Title.FontStyle.FontSize = 13
	opt.Legend.SeriesNames = names
	opt.Legend.Show = charts.Ptr(names != nil)
	opt.Legend.Symbol = charts.SymbolSquare
	opt.Legend.Offset = charts.OffsetRight
	opt.Symbol.Shape = charts.SymbolNone
	opt.LineStrokeWidth = 2
	opt.Padding = charts.NewBoxEqual(16)
	opt.XAxis.Labels = labels
	opt.XAxis.BoundaryGap = charts.Ptr(false)
	opt.YAxis[0].Min = charts.Ptr(0.0)
	return opt
}

// series returns what a run gave in each bin.
func series(run *chaos.Run, bins int, lead, deadline time.Duration) (served, worst []float64) {
	served, worst = make([]float64, bins), make([]float64, bins)
	shift := lead - faultBegin(run)
	for _, c := range run.Result.Calls {
		at := time.Duration(c.Begin)*time.Microsecond + shift
		i := int(at / bin)
		if at < 0 || i >= bins {
			continue
		}
		took := time.Duration(c.End-c.Begin) * time.Microsecond
		if c.Status == chaos.OK && took <= deadline {
			served[i] += float64(time.Second) / float64(bin)
		}
		worst[i] = max(worst[i], took.Seconds())
	}
	return served, worst
}

// faultBegin is how long after the begin of the load the fault came.
func faultBegin(run *chaos.Run) time.Duration {
	if len(run.Faults) == 0 {
		return 0
	}
	return max(run.Faults[0].From.Sub(run.Result.Began), 0)
}

// shortest is for how long after the fault all runs have something to show.
func shortest(lines []Line) time.Duration {
	span := time.Duration(math.MaxInt64)
	for _, l := range lines {
		span = min(span, l.Run.Result.Stopped.Sub(l.Run.Result.Began)-faultBegin(l.Run))
	}
	return span
}
