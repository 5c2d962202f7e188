// Command skips reads what go test -json prints, and prints what go test does, and then
// one line that says how many tests were skipped, and why. Its exit code is that of the
// tests. It is for the tests of this repository and uses the standard library alone.
//
// Usage: go test -json ./... | go run ./redialtest/internal/skips
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	ok, err := report(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "skips:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// event is a line of go test -json, see go doc test2json.
type event struct {
	Action, Package, Test, Output string
}

// test is one of a package; the package itself has no name.
type test struct{ pkg, name string }

// because is the line that tells why a test was skipped.
var because = regexp.MustCompile(`^\s+\S+\.go:\d+: (.*)`)

// report copies what matters of events to out, and counts. It is true when something
// passed and nothing failed.
func report(events io.Reader, out io.Writer) (ok bool, err error) {
	said := make(map[test][]string)
	skipped := make(map[string]int)
	passed, failed := false, false
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			break
		} else if err != nil && err != io.EOF {
			return false, err
		}
		var e event
		if json.Unmarshal(line, &e) != nil {
			_, _ = out.Write(line) // go's own words
			continue
		}
		it := test{e.Package, e.Test}
		switch e.Action {
		case "output":
			said[it] = append(said[it], e.Output)
			if e.Test == "" && (strings.HasPrefix(e.Output, "ok  \t") || strings.HasPrefix(e.Output, "?   \t")) {
				fmt.Fprint(out, e.Output)
			}
			continue // the others end something
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "build-fail":
			failed = true
		case "pass":
			passed = true
		case "fail":
			failed = true
			for _, text := range said[it] {
				fmt.Fprint(out, text)
			}
		case "skip":
			if e.Test == "" {
				break // a package without tests
			}
			reason := ""
			for _, text := range said[it] {
				if m := because.FindStringSubmatch(text); m != nil {
					reason = m[1]
				}
			}
			skipped[cmp.Or(reason, "no reason was given")]++
		default:
			continue
		}
		delete(said, it)
	}
	for it, texts := range said { // a process that died has not ended its tests
		fmt.Fprintf(out, "not ended: %s %s\n%s", it.pkg, it.name, strings.Join(texts, ""))
		failed = true
	}
	total := 0
	reasons := slices.SortedFunc(maps.Keys(skipped), func(a, b string) int {
		return cmp.Or(skipped[b]-skipped[a], strings.Compare(a, b))
	})
	for i, reason := range reasons {
		total += skipped[reason]
		reasons[i] = fmt.Sprintf("%d × %s", skipped[reason], reason)
	}
	fmt.Fprintf(out, "%d tests skipped", total)
	if total > 0 {
		fmt.Fprintf(out, ": %s", strings.Join(reasons, "; "))
	}
	fmt.Fprintln(out)
	return passed && !failed, nil
}
