// Command overhead prints what redial costs beside bare go-redis while nothing breaks, as a
// Markdown table; with -watched, when it has a logger and the metrics of redialprom and of
// redialotel, and when it has traces as well. It needs redis-server in PATH, and a machine
// with nothing else to do.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/redial-go/redial/bench/internal/overhead"
)

func main() {
	if slices.Equal(os.Args[1:], []string{overhead.ChildFlag}) {
		exit(overhead.Child(os.Stdin, os.Stdout))
	}
	rounds := flag.Int("rounds", 31, "how often each pair of clients takes turns")
	watched := flag.Bool("watched", false, "measure a client that is watched in every way")
	only := flag.String("only", "", "measure only what has this text in its name; empty: all")
	flag.Parse()
	exit(run(*rounds, *watched, *only))
}

// exit ends the program, with an error or without.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(rounds int, watched bool, only string) error {
	if rounds < 1 {
		return fmt.Errorf("overhead: -rounds is %d, must be positive", rounds)
	}
	measure := overhead.Health
	if watched {
		measure = overhead.Watched
	}
	costs, err := measure(rounds, only)
	if err != nil {
		return err
	}
	fmt.Printf("Medians of %d rounds, in each of which three clients take turns, each in a new process of its own; quartiles in brackets.\n\n", rounds)
	fmt.Println("| | go-redis | time, redial / go-redis | another go-redis / go-redis | throughput | processor time | allocations beyond go-redis |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for _, c := range costs {
		fmt.Printf("| %s | %v | %v | %v | %.3f | %.3f | %+.1f |\n",
			c.Name, c.Bare.Round(10*time.Nanosecond), c.Time, c.Control, c.Throughput(), c.CPU, c.Extra)
	}
	if watched || only != "" {
		return nil
	}
	bare, ours, err := overhead.Stacks()
	if err != nil {
		return err
	}
	fmt.Printf("\nThe stack of a goroutine that has issued one GET: %d bytes with go-redis, %d with redial.\n", bare, ours)
	once, bytes, err := overhead.IDs(rounds)
	if err != nil {
		return err
	}
	fmt.Printf("\n%s: %v times the %v of INCR without, both by redial; its record takes %d bytes on the server.\n",
		once.Name, once.Time, once.Bare.Round(10*time.Nanosecond), bytes)
	return nil
}
