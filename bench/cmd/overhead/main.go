// Command overhead prints what redial costs beside bare go-redis while nothing breaks, as a
// Markdown table. It needs redis-server in PATH, and a machine with nothing else to do.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/redial-go/redial/bench/internal/overhead"
)

func main() {
	rounds := flag.Int("rounds", 31, "how often each pair of clients takes turns")
	flag.Parse()
	if err := run(*rounds); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(rounds int) error {
	if rounds < 1 {
		return fmt.Errorf("overhead: -rounds is %d, must be positive", rounds)
	}
	costs, err := overhead.Health(rounds)
	if err != nil {
		return err
	}
	fmt.Printf("Medians of %d rounds in which the two clients take turns; quartiles in brackets.\n\n", rounds)
	fmt.Println("| | go-redis | time, redial / go-redis | throughput | allocations beyond go-redis |")
	fmt.Println("|---|---|---|---|---|")
	for _, c := range costs {
		fmt.Printf("| %s | %v | %.3f [%.3f…%.3f] | %.3f | %+.1f |\n",
			c.Name, c.Bare.Round(10*time.Nanosecond), c.Ratio, c.Low, c.High, c.Throughput(), c.Extra)
	}
	once, bytes, err := overhead.IDs(rounds)
	if err != nil {
		return err
	}
	fmt.Printf("\n%s: %.2f [%.2f…%.2f] times the %v of INCR without, both by redial; its record takes %d bytes on the server.\n",
		once.Name, once.Ratio, once.Low, once.High, once.Bare.Round(10*time.Nanosecond), bytes)
	return nil
}
