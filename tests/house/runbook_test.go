package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
)

// The runbook is checked against the code, so that whoever is woken finds a section for
// what has woken him. Alerts are checked in module redialprom.

// sectionsOf returns the text below each heading of the runbook.
func sectionsOf(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("docs/RUNBOOK.md")
	require.NoError(t, err)
	all := make(map[string]string)
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	at := heading.FindAllStringSubmatchIndex(string(text), -1)
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		name := string(text[m[2]:m[3]])
		assert.NotContains(t, all, name, "it is there twice")
		all[name] = string(text[m[1]:end])
	}
	return all
}

// messages returns the constants of observe.go whose names begin with log.
func messages(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "observe.go", nil, 0)
	require.NoError(t, err)
	all := make(map[string]string)
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, "log") {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		require.NoError(t, err)
		all[spec.Names[0].Name] = text
		return true
	})
	return all
}

func TestRunbook_EveryLineHasItsSection(t *testing.T) {
	sections, lines := sectionsOf(t), messages(t)
	require.Contains(t, lines, "logTransition")
	want := []string{}
	for name, line := range lines {
		if name != "logTransition" {
			want = append(want, line)
		}
	}
	for to := redial.StateConnecting + 1; to <= redial.StateClosed; to++ { // nothing becomes Connecting
		want = append(want, lines["logTransition"]+to.String())
	}
	for _, line := range want {
		assert.Contains(t, sections, line)
		for _, part := range []string{"**Means**", "**First look**", "**redial does by itself**", "**You do**", "**Wake**"} {
			assert.Contains(t, sections[line], part, line)
		}
	}
}

// There is no line of the log but those.
func TestRunbook_NoOtherLines(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	below, err := filepath.Glob("internal/*/*.go")
	require.NoError(t, err)
	found := 0
	for _, name := range append(files, below...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			on, ok := method.X.(*ast.SelectorExpr)
			if !ok || on.Sel.Name != "logger" {
				return true
			}
			found++
			i := 0
			if method.Sel.Name == "LogAttrs" {
				i = 2
			}
			id, ok := call.Args[i].(*ast.Ident)
			assert.True(t, ok && (strings.HasPrefix(id.Name, "log") || id.Name == "message"), "%s writes a line whose words are no constant of observe.go", name)
			return true
		})
	}
	assert.Equal(t, 3, found, "places that write lines of the log")
}

func TestRunbook_EveryCauseHasItsSection(t *testing.T) {
	sections := sectionsOf(t)
	causes := 0
	for c := redial.CauseNone; !strings.HasPrefix(c.String(), "Cause("); c++ {
		assert.Contains(t, sections, c.String())
		assert.Contains(t, sections[c.String()], "**Means**", c.String())
		causes++
	}
	assert.Greater(t, causes, int(redial.CauseRunsSpent), "the last of them")
}

// What it links to is there.
func TestRunbook_Links(t *testing.T) {
	text, err := os.ReadFile("docs/RUNBOOK.md")
	require.NoError(t, err)
	sections := make(map[string]bool)
	for name := range sectionsOf(t) {
		sections[regexp.MustCompile(`[^\w-]`).ReplaceAllString(strings.ReplaceAll(strings.ToLower(name), " ", "-"), "")] = true
	}
	links := regexp.MustCompile(`\]\(#([^)]+)\)`).FindAllStringSubmatch(string(text), -1)
	require.NotEmpty(t, links)
	for _, m := range links {
		assert.True(t, sections[m[1]], m[1])
	}
	for _, m := range regexp.MustCompile("`(redialprom/[\\w.]+)`").FindAllStringSubmatch(string(text), -1) {
		_, err := os.Stat(m[1])
		assert.NoError(t, err)
	}
}
