package render

import (
	"fmt"
	"time"

	"github.com/go-analyze/charts"
	"github.com/redial-go/redial/bench/internal/chaos"
)

// bin is the resolution of a timeline.
const bin = 200 * time.Millisecond

// Line is one client in a timeline.
type Line struct {
	Title string
	Run   *chaos.Run
}

// Timeline draws how a run went: the calls that were answered in time and the
// worst latency, both by the moment at which the calls were made, as SVG.
func Timeline(title string, deadline time.Duration, lines ...Line) ([]byte, error) {
	const width, height = 880, 520
	span := shortest(lines)
	bins := int(span / bin)
	var names []string
	var served, worst [][]float64
	for _, l := range lines {
		s, w := series(l.Run, bins, deadline)
		names, served, worst = append(names, l.Title), append(served, s), append(worst, w)
	}
	labels := make([]string, bins)
	fault := faultBegin(lines[0].Run)
	for i := range labels {
		labels[i] = fmt.Sprintf("%.0f s", (time.Duration(i)*bin - fault).Seconds())
	}
	p := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: width, Height: height})
	p.FilledRect(0, 0, width, height, charts.ColorWhite, charts.ColorWhite, 0)
	theme := charts.GetTheme(charts.ThemeLight).WithSeriesColors([]charts.Color{
		charts.ColorFromHex("#1b7f5c"), charts.ColorFromHex("#d1495b")})
	upper := options(title, names, labels, served)
	upper.YAxis[0].Title = "answered in time, calls/s"
	lower := options("", names, labels, worst)
	lower.YAxis[0].Title = "worst latency, s"
	lower.XAxis.Title = "when the calls were made; the fault begins at 0"
	for i, opt := range []charts.LineChartOption{upper, lower} {
		opt.Theme = theme
		panel := p.Child(charts.PainterBoxOption(charts.NewBox(0, i*height/2, width, (i+1)*height/2)))
		if err := panel.LineChart(opt); err != nil {
			return nil, err
		}
	}
	return p.Bytes()
}

func options(title string, names, labels []string, values [][]float64) charts.LineChartOption {
	opt := charts.NewLineChartOptionWithData(values)
	opt.Title.Text = title
	opt.Title.FontStyle.FontSize = 14
	opt.Legend.SeriesNames = names
	opt.Legend.Show = charts.Ptr(title != "")
	opt.Legend.Symbol = charts.SymbolSquare
	opt.Symbol.Shape = charts.SymbolNone
	opt.LineStrokeWidth = 2
	opt.Padding = charts.NewBoxEqual(14)
	opt.XAxis.Labels = labels
	opt.XAxis.BoundaryGap = charts.Ptr(false)
	opt.XAxis.Unit = float64(time.Second / bin)
	opt.YAxis[0].Min = charts.Ptr(0.0)
	return opt
}

// series returns what a run gave in each bin.
func series(run *chaos.Run, bins int, deadline time.Duration) (served, worst []float64) {
	served, worst = make([]float64, bins), make([]float64, bins)
	for _, c := range run.Result.Calls {
		i := int(time.Duration(c.Begin) * time.Microsecond / bin)
		if i >= bins {
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

// faultBegin is how long after the load the fault began.
func faultBegin(run *chaos.Run) time.Duration {
	if len(run.Faults) == 0 {
		return 0
	}
	return max(run.Faults[0].From.Sub(run.Result.Began), 0)
}

// shortest is how long all runs lasted.
func shortest(lines []Line) time.Duration {
	span := lines[0].Run.Result.Stopped.Sub(lines[0].Run.Result.Began)
	for _, l := range lines[1:] {
		span = min(span, l.Run.Result.Stopped.Sub(l.Run.Result.Began))
	}
	return span
}
