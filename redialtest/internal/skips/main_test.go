package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const good = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: needs root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA","Elapsed":0}
{"Action":"output","Package":"p","Test":"TestB/x","Output":"    a_test.go:9: needs a: server\n"}
{"Action":"skip","Package":"p","Test":"TestB/x"}
{"Action":"output","Package":"p","Test":"TestC","Output":"    a_test.go:9: needs a: server\n"}
{"Action":"skip","Package":"p","Test":"TestC"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
{"Action":"output","Package":"q","Output":"?   \tq\t[no test files]\n"}
{"Action":"skip","Package":"q"}
`
	for _, c := range []struct {
		name, events, want string
		ok                 bool
	}{
		{"skips", good, "ok  \tp\t0.1s\n?   \tq\t[no test files]\n3 tests skipped: 2 × needs a: server; 1 × needs root\n", true},
		{"none", `{"Action":"pass","Package":"p"}`, "0 tests skipped\n", true},
		{"a failure is printed", `{"Action":"pass","Package":"p"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: wrong\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
`, "    a_test.go:7: wrong\n0 tests skipped\n", false},
		{"it does not build", `{"Action":"build-output","ImportPath":"p","Output":"undefined: x\n"}
{"Action":"build-fail","ImportPath":"p"}
{"Action":"pass","Package":"q"}
`, "undefined: x\n0 tests skipped\n", false},
		{"a process died", `{"Action":"pass","Package":"q"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic\n"}
`, "not ended: p TestA\npanic\n0 tests skipped\n", false},
		{"go's own words", "no such package\n", "no such package\n0 tests skipped\n", false},
		{"nothing", "", "0 tests skipped\n", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			ok, err := report(strings.NewReader(c.events), &out)
			if err != nil || ok != c.ok || out.String() != c.want {
				t.Errorf("%v, %v, want %v\ngot\n%s\nwant\n%s", ok, err, c.ok, out.String(), c.want)
			}
		})
	}
}
