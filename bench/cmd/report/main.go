// Command report puts Redis clients through the chaos suite and writes what came
// of it as a Markdown document with pictures.
//
// It needs redis-server in PATH and Linux. It fails if a fault did not take effect
// or if redial broke a promise that no timing can excuse: a write executed twice or
// reported wrongly, something left behind, never back.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redial-go/redial/bench/internal/chaos"
	"github.com/redial-go/redial/bench/internal/client"
	"github.com/redial-go/redial/bench/internal/overhead"
	"github.com/redial-go/redial/bench/internal/render"
	"github.com/redis/go-redis/v9/logging"
)

func main() {
	var err error
	switch {
	case slices.Equal(os.Args[1:], []string{chaos.ChildFlag}):
		err = chaos.Child(os.Stdin, os.Stdout)
	case slices.Equal(os.Args[1:], []string{chaos.StageFlag}):
		err = stage()
	default:
		err = report()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// stage plays in a network namespace of its own what the parent asks for.
func stage() error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	return chaos.Stage(ctx, os.Stdin, os.Stdout)
}

// drawn are the scenarios that get a picture, and its name.
var drawn = map[string]string{
	"refuse":    "outage.svg",
	"blackhole": "blackhole.svg",
	"idledrop":  "idledrop.svg",
}

func report() error {
	out := flag.String("o", "", "where to write the report; empty: RESILIENCE.md in the root of the repository, or with -quick or -only nowhere")
	quick := flag.Bool("quick", false, "one short run of each scenario, to see that all is well")
	runs := flag.Int("runs", 3, "runs of each scenario")
	only := flag.String("only", "", "comma-separated scenarios; empty: all of "+names())
	clients := flag.String("clients", "", "comma-separated clients; empty: all of "+client.Names(client.All())+". A report that is written needs all")
	apart := flag.Bool("apart", false, "one client at a time instead of all side by side")
	seed := flag.Uint64("seed", 0, "of what varies the lengths of faults; 0: another one each time")
	dialers := flag.String("dialers", "", "comma-separated dialers to compare (default, own, tls, sentinel) in those of the chosen scenarios that are for any; "+
		"empty: all, in "+strings.Join(compared, ", ")+", or with -quick or -only none")
	lanes := flag.Int("lanes", 1, "scenarios at a time")
	verbose := flag.Bool("v", false, "print the values of every run")
	flag.Parse()
	if *seed == 0 {
		*seed = uint64(time.Now().Unix())
	}
	opt := chaos.Options{Quick: *quick, Runs: *runs, Seed: *seed, Lanes: *lanes, Apart: *apart, Progress: os.Stderr, Verbose: *verbose}
	rounds := 60
	if *quick {
		opt.Runs, opt.Lanes, rounds = 1, 3, 3
	}
	path := *out
	if path == "" && !*quick && *only == "" {
		root, err := root()
		if err != nil {
			return err
		}
		path = filepath.Join(root, "RESILIENCE.md")
	}
	scenarios, err := pick(*only)
	if err != nil {
		return err
	}
	kinds, err := client.Pick(*clients, client.All())
	if err != nil {
		return err
	}
	if path != "" && *clients != "" {
		return errors.New("report: a report compares all clients: -clients is for runs that write nothing")
	}
	variants, err := variants(scenarios, *dialers, *only == "" && !*quick)
	if err != nil {
		return err
	}
	logging.Disable() // go-redis logs every failed dial
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()

	began := time.Now()
	r := render.Report{
		Kinds:    kinds,
		Options:  opt,
		Date:     began,
		Rounds:   rounds,
		Pictures: make(map[string]string),
	}
	if r.Facts, err = facts(); err != nil {
		return err
	}
	if err := chaos.Namespaces(ctx); err != nil {
		in := func(s *chaos.Scenario) bool { return s.Namespace }
		for _, s := range slices.Concat(scenarios, variants) {
			if in(s) && !slices.Contains(r.LeftOut, s.Title) {
				fmt.Fprintf(os.Stderr, "left out: %s: %v\n", s.Title, err)
				r.LeftOut = append(r.LeftOut, s.Title)
			}
		}
		scenarios, variants = slices.DeleteFunc(scenarios, in), slices.DeleteFunc(variants, in)
	}
	fmt.Fprintf(os.Stderr, "seed %d\n", opt.Seed)
	r.Outcomes = chaos.Suite(ctx, scenarios, r.Kinds, opt)
	crowded := opt
	crowded.Lanes = max(opt.Lanes, render.ComparedLanes)
	crowded.Apart = opt.Apart || !opt.Quick // five clients that set TLS up at once wait for each other
	r.Compared = chaos.Suite(ctx, variants, r.Kinds, crowded)
	outcomes := slices.Concat(r.Outcomes, r.Compared)
	if *only == "" {
		if r.Overhead, err = overhead.Table(rounds); err != nil {
			return err
		}
	}
	r.Problems = problems(outcomes)
	r.Took = time.Since(began)
	if err := write(&r, path); err != nil {
		return err
	}
	if err := render.Short(os.Stdout, outcomes, r.Kinds); err != nil {
		return err
	}
	fmt.Printf("%d scenarios, %d runs each, seed %d, in %v\n", len(outcomes), opt.Runs, opt.Seed, r.Took.Round(time.Second))
	if len(r.Problems) > 0 {
		return fmt.Errorf("report: wrong in this run:\n%s", strings.Join(r.Problems, "\n"))
	}
	return ctx.Err()
}

func names() string {
	var list []string
	for _, s := range chaos.Scenarios() {
		list = append(list, s.Name)
	}
	return strings.Join(list, ",")
}

func pick(only string) ([]*chaos.Scenario, error) {
	all := chaos.Scenarios()
	if only == "" {
		return all, nil
	}
	var picked []*chaos.Scenario
	for _, name := range strings.Split(only, ",") {
		i := slices.IndexFunc(all, func(s *chaos.Scenario) bool { return s.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("report: unknown scenario %q, have %s", name, names())
		}
		picked = append(picked, all[i])
	}
	return picked, nil
}

// compared are the scenarios that the report plays with all dialers.
var compared = []string{"refuse", "blackhole", "partition"}

// variants returns scenarios as they are played to compare dialers: those of list, or
// with usual the usual ones if there is none.
func variants(scenarios []*chaos.Scenario, list string, usual bool) (all []*chaos.Scenario, err error) {
	if list == "" && !usual {
		return nil, nil
	}
	dialers := chaos.Dialers()
	if list != "" {
		if dialers, err = chaos.FindDialers(list); err != nil {
			return nil, err
		}
	}
	for _, s := range scenarios {
		if !s.AnyDialer || usual && !slices.Contains(compared, s.Name) {
			continue
		}
		for _, d := range dialers {
			all = append(all, s.With(d))
		}
	}
	return all, nil
}

// problems lists what makes the results worthless and what redial has broken.
func problems(outcomes []*chaos.Outcome) (list []string) {
	for _, o := range outcomes {
		list = append(list, o.Failures...)
		for i, run := range o.Runs[client.RedialName] {
			for _, broken := range o.Scenario.Broken(run) {
				list = append(list, fmt.Sprintf("%s, redial, run %d: %s", o.Scenario.FullName(), i+1, broken))
			}
		}
		// No client can lose a write that was acknowledged, so the count is wrong.
		for name := range o.Runs {
			if lost := o.Cell(name, chaos.MetricOf(chaos.Lost)); lost.Value > 0 {
				list = append(list, fmt.Sprintf("%s, %s: %.0f acknowledged writes are not on the server", o.Scenario.FullName(), name, lost.Value))
			}
		}
		// A harness that cannot see duplicates proves nothing: go-redis repeats
		// every write whose reply is cut off.
		twice := o.Cell(client.GoRedisName, chaos.MetricOf(chaos.Twice))
		if o.Scenario.Name == "cut" && twice.Known && twice.Value == 0 {
			list = append(list, "cut: no write of go-redis was executed twice, so the count cannot be right")
		}
	}
	return list
}

// write renders everything; without a path only to see that it can be.
func write(r *render.Report, path string) error {
	pictures := make(map[string][]byte)
	for _, o := range r.Outcomes {
		name, ok := drawn[o.Scenario.Name]
		ours, bare := o.Runs[client.RedialName], o.Runs[client.GoRedisName]
		if !ok || len(ours) == 0 || len(bare) == 0 {
			continue
		}
		svg, err := render.Timeline(o.Scenario,
			render.Line{Title: client.Redial.Title, Run: ours[0]}, render.Line{Title: client.GoRedis.Title, Run: bare[0]})
		if err != nil {
			return err
		}
		pictures[name] = svg
		r.Pictures[o.Scenario.Name] = "docs/" + name
	}
	var doc bytes.Buffer
	if err := r.Markdown(&doc); err != nil || path == "" {
		return err
	}
	docs := filepath.Join(filepath.Dir(path), "docs")
	if len(pictures) > 0 {
		if err := os.MkdirAll(docs, 0o755); err != nil {
			return err
		}
	}
	for name, svg := range pictures {
		if err := os.WriteFile(filepath.Join(docs, name), svg, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(path, doc.Bytes(), 0o644)
}
