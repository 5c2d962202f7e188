package render

import (
	"bytes"
	"strings"
	"testing"

	"github.com/redial-go/redial/bench/internal/chaos"
	"github.com/redial-go/redial/bench/internal/client"
)

// outcome has one run of redial and one of a peer.
func outcome(ours, theirs map[chaos.Key]float64) *chaos.Outcome {
	run := func(values map[chaos.Key]float64) []*chaos.Run {
		return []*chaos.Run{{Values: values, Result: &chaos.Result{}}}
	}
	return &chaos.Outcome{
		Scenario: chaos.Scenarios()[0],
		Runs:     map[string][]*chaos.Run{client.RedialName: run(ours), client.RedigoName: run(theirs)},
	}
}

func TestMarkdown_AdmitsWhereRedialIsNotFirst(t *testing.T) {
	r := Report{
		Kinds: []client.Kind{client.Redial, client.Redigo},
		Outcomes: []*chaos.Outcome{outcome(
			map[chaos.Key]float64{chaos.InTime: 100, chaos.Stall: 1500, chaos.Twice: 0},
			map[chaos.Key]float64{chaos.InTime: 70, chaos.Stall: 120, chaos.Twice: 3},
		)},
	}
	var doc bytes.Buffer
	if err := r.Markdown(&doc); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| Restart | redigo | worst stall 120 ms (1.5 s) | in time 70 % (100 %), run twice 3 (0) |",
		"redial is better than every other client in 2, level with the best in 0, and behind at least one in 1. " +
			"In 1 of these whoever is ahead has paid for it",
		"| [Restart](#restart) | 100 % · 1.5 s | 70 % · 120 ms · **3 run twice** |",
	} {
		if !strings.Contains(doc.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, doc.String())
		}
	}
}

func TestMarkdown_GivesReasons(t *testing.T) {
	o := outcome(
		map[chaos.Key]float64{chaos.InTime: 20, chaos.Errors: 80, chaos.First: 54, chaos.Lost: 0},
		map[chaos.Key]float64{chaos.InTime: 87, chaos.Errors: 13, chaos.First: 6, chaos.Lost: 0},
	)
	o.Scenario.Behind = []chaos.Reason{{Keys: []chaos.Key{chaos.InTime, chaos.Errors}, Why: "It gives up first."}}
	r := Report{Kinds: []client.Kind{client.Redial, client.Redigo}, Outcomes: []*chaos.Outcome{o}}
	var doc bytes.Buffer
	if err := r.Markdown(&doc); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"In 0 of these whoever is ahead has paid for it",
		"The other 3, each with its reason.",
		"| Restart | in time 20 % (redigo 87 %), errors 80 (redigo 13) | It gives up first. |",
		"| Restart | first success 54 ms (redigo 6 ms) | not known |",
	} {
		if !strings.Contains(doc.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, doc.String())
		}
	}
}

func TestAnchor(t *testing.T) {
	if got, want := anchor("Long outage, 200 goroutines"), "long-outage-200-goroutines"; got != want {
		t.Errorf("anchor = %q, want %q", got, want)
	}
}

func TestMarkdown_ComparesDialersApart(t *testing.T) {
	o := outcome(
		map[chaos.Key]float64{chaos.First: 21, chaos.OfPossible: 100},
		map[chaos.Key]float64{chaos.First: 1020, chaos.OfPossible: 47.5},
	)
	for _, s := range chaos.Scenarios() {
		if s.Name == "partition" {
			o.Scenario = s.With(chaos.TLSDialer)
		}
	}
	r := Report{Kinds: []client.Kind{client.Redial, client.Redigo}, Compared: []*chaos.Outcome{o}, LeftOut: []string{"Something"}}
	r.Options.Seed = 42
	var doc bytes.Buffer
	if err := r.Markdown(&doc); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| Partition | TLS | 21 ms · 100 % | 1.02 s · 47.5 % |",
		"Of 0 values", // they count where redial stands nowhere else
		"Left out, since no network namespace could be had: Something.",
		"seed 42",
	} {
		if !strings.Contains(doc.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, doc.String())
		}
	}
	var short bytes.Buffer
	if err := Short(&short, r.Compared, r.Kinds); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"partition/tls: heal -> first success  21 ms", "partition/tls: of those that could    100 %"} {
		if !strings.Contains(short.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, short.String())
		}
	}
}
