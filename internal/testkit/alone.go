package testkit

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/redialtest"
)

// aloneVariable names the test that a process is there for.
const aloneVariable = "REDIAL_TEST_ALONE"

// Alone runs a test in a process of its own, beside all others: one that counts what there
// is in its process, so that nobody else may do anything in there.
func Alone(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if os.Getenv(aloneVariable) == t.Name() {
		test(t)
		return
	}
	t.Parallel()
	Again(t, aloneVariable+"="+t.Name())
}

var (
	ended   = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (\S+) `)
	because = regexp.MustCompile(`(?m)^redialtest: \d+ tests skipped: (?:1 × )?(.*)`) // see redialtest.Skipped
)

// Again runs the test that calls it in another process, which has env in its environment and
// is started by the words of command, if there are any. What that says of the test and of
// those within, this one does, by the same names.
func Again(t *testing.T, env string, command ...string) {
	t.Helper()
	command = append(command, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	results := make(map[string]string)
	end := func(t *testing.T) {
		switch results[t.Name()] {
		case "PASS":
		case "SKIP":
			reason := "skipped in a process of its own"
			if said := because.FindSubmatch(out); said != nil {
				reason = string(said[1])
			}
			redialtest.Skip(t, reason)
		default:
			t.Fail()
		}
	}
	for _, one := range ended.FindAllSubmatch(out, -1) {
		name := string(one[2])
		results[name] = string(one[1])
		if within, ok := strings.CutPrefix(name, t.Name()+"/"); ok {
			t.Run(within, end)
		}
	}
	require.NoError(t, err)
	end(t)
}
