// Command host starts servers for tests that run where these cannot: under wine. It
// listens on a free port of loopback, prints the value that REDIAL_SERVER is to have there,
// and serves until its standard input ends, so that it does not outlive who started it.
//
// Usage: host BINARY
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/redial-go/redial/redialtest/internal/process"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "host:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("which program?")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(process.Host + ln.Addr().String())
	served := make(chan error, 1)
	go func() { served <- process.Serve(ln, args[0]) }()
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	// Whatever still runs dies with this process.
	return ln.Close()
}
