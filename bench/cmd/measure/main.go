// Command measure runs the promises of redial against real redis-server
// processes, next to bare go-redis and, on request, other Go clients, and prints
// what each reached as a Markdown table.
//
// It needs redis-server in PATH and Linux. Timings depend on the machine: every
// number is a median of interleaved runs unless the table says otherwise.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9/logging"

	"github.com/redial-go/redial/bench/internal/client"
)

// experiment produces one or more lines of the table.
type experiment struct {
	lines []line
	// clients names those it makes sense for; nil: redial and bare go-redis.
	clients []string
	run     func(b *bench, kinds []client.Kind) samples
}

func (e experiment) hasLine(ids []string) bool {
	return slices.ContainsFunc(e.lines, func(l line) bool { return slices.Contains(ids, l.id) })
}

// bench is one invocation of the command.
type bench struct {
	quick bool
}

// runs picks the number of runs.
func (b *bench) runs(full, quick int) int {
	if b.quick {
		return quick
	}
	return full
}

// each makes runs runs with every client in turn, so that a change of the
// machine's mood meets all of them.
func each(kinds []client.Kind, runs int, once func(k client.Kind, s *sample) error) samples {
	got := make(samples)
	for range runs {
		for _, k := range kinds {
			s := newSample()
			err := once(k, s)
			s.expect(err == nil, "run failed: %v", err)
			got[k.Name] = append(got[k.Name], s)
		}
	}
	return got
}

func main() {
	quick := flag.Bool("quick", false, "fewer runs, shorter outages")
	verbose := flag.Bool("v", false, "print the values of every run too")
	list := flag.Bool("list", false, "list the rows and exit")
	only := flag.String("only", "", "comma-separated rows to run; empty: all")
	clients := flag.String("clients", "goredis,redial", "comma-separated clients, or all: "+client.Names(allKinds()))
	flag.Parse()

	kinds, err := pickKinds(*clients)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	experiments := slices.Concat(
		overheadRows(), outageRows(), freezeRows(), connRows(), closeRows(), extraRows())
	if *only != "" {
		ids := strings.Split(*only, ",")
		experiments = slices.DeleteFunc(experiments, func(e experiment) bool { return !e.hasLine(ids) })
	}
	if *list {
		for _, e := range experiments {
			for _, l := range e.lines {
				fmt.Printf("%-4s %s\n", l.id, l.what)
			}
		}
		return
	}
	logging.Disable() // go-redis logs every failed dial
	b := &bench{quick: *quick}
	t := table{out: os.Stdout, kinds: kinds}
	t.header()
	for _, e := range experiments {
		fits := e.clients
		if fits == nil {
			fits = []string{client.GoRedisName, client.RedialName}
		}
		var with []client.Kind
		for _, k := range kinds {
			if slices.Contains(fits, k.Name) {
				with = append(with, k)
			}
		}
		got := e.run(b, with)
		for _, l := range e.lines {
			t.print(l, got)
		}
		if *verbose {
			t.raw(e, got)
		}
	}
}
