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

// There is no line of the log but those, also where the words are handed on in a parameter.
func TestRunbook_NoOtherLines(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	below, err := filepath.Glob("internal/*/*.go")
	require.NoError(t, err)
	var functions []*ast.FuncDecl
	for _, name := range append(files, below...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				functions = append(functions, f)
			}
		}
	}
	words, found, faults := linesOf(functions)
	assert.Empty(t, faults)
	assert.Equal(t, 6, found, "places that write lines of the log, or have them written")
	for name := range messages(t) {
		assert.True(t, words[name], "%s is never logged", name)
	}
}

// Words of one's own are seen, wherever they hide.
func TestRunbook_NoOtherLines_IsSeen(t *testing.T) {
	for _, body := range []string{
		`l.Error("words")`, `message := "words"; l.Error(message)`, `message = "words"`, `var message = "words"; l.Error(message)`,
		`var message string`, `const message = "words"`, `message, ok := words()`, `func(message string) { l.Error(message) }("words")`,
		`for _, message := range words { l.Error(message) }`, `f("words")`,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "a.go", "package a\nfunc f(message string) { l.Info(message) }\nfunc g() {\n"+body+"\n}", 0)
		require.NoError(t, err)
		_, _, faults := linesOf([]*ast.FuncDecl{file.Decls[0].(*ast.FuncDecl), file.Decls[1].(*ast.FuncDecl)})
		assert.NotEmpty(t, faults, body)
	}
}

// linesOf returns the constants that functions have logged, the number of places that do, and
// who has other words logged.
func linesOf(functions []*ast.FuncDecl) (words map[string]bool, found int, faults []string) {
	words = make(map[string]bool)
	handed := map[string]int{ // where the words are among the arguments, by what is called
		"Debug": 0, "Info": 0, "Warn": 0, "Error": 0, "DebugContext": 1, "InfoContext": 1, "WarnContext": 1, "ErrorContext": 1,
		"Log": 2, "LogAttrs": 2,
	}
	for before := 0; before != len(handed); { // until nobody else hands words on
		before, found, faults = len(handed), 0, nil
		for _, f := range functions {
			n, more := linesIn(f, handed, words)
			found += n
			faults = append(faults, more...)
		}
	}
	return words, found, faults
}

// linesIn looks at the words that a function has logged, and notes its own parameter if they
// come by that.
func linesIn(f *ast.FuncDecl, handed map[string]int, words map[string]bool) (found int, faults []string) {
	isConst := func(e ast.Expr) bool {
		if sum, ok := e.(*ast.BinaryExpr); ok {
			e = sum.X
		}
		id, ok := e.(*ast.Ident)
		if ok = ok && strings.HasPrefix(id.Name, "log"); ok {
			words[id.Name] = true
		}
		return ok
	}
	param, i := -1, 0
	for _, field := range f.Type.Params.List {
		for _, name := range field.Names {
			if name.Name == "message" {
				param = i
			}
			i++
		}
	}
	ast.Inspect(f.Body, func(n ast.Node) bool {
		to, values := given(n)
		for i := range to {
			if isMessage(to[i]) && (len(values) != len(to) || !isConst(values[i])) {
				faults = append(faults, f.Name.Name+" makes words of its own")
			}
		}
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		at, logs := handed[calledBy(call)]
		if !logs || len(call.Args) <= at { // the Error of an error has no arguments
			return true
		}
		if id, ok := call.Args[at].(*ast.Ident); ok && id.Name == "ctx" { // the command INFO
			return true
		}
		found++
		switch {
		case isMessage(call.Args[at]):
			if param >= 0 {
				handed[f.Name.Name] = param
			}
		case !isConst(call.Args[at]):
			faults = append(faults, f.Name.Name+" writes a line whose words are no constant of observe.go")
		}
		return true
	})
	return found, faults
}

// isMessage reports whether e is what the words of a line are called.
func isMessage(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == "message"
}

// calledBy returns the name of what is called, without where it belongs.
func calledBy(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		return f.Sel.Name
	case *ast.Ident:
		return f.Name
	}
	return ""
}

// given returns what a node gives values, and those as far as they are written there.
func given(n ast.Node) (to, values []ast.Expr) {
	idents := func(names []*ast.Ident) (all []ast.Expr) {
		for _, name := range names {
			all = append(all, name)
		}
		return all
	}
	switch n := n.(type) {
	case *ast.AssignStmt:
		return n.Lhs, n.Rhs
	case *ast.ValueSpec:
		return idents(n.Names), n.Values
	case *ast.Field: // of a function inside
		return idents(n.Names), nil
	case *ast.RangeStmt:
		return []ast.Expr{n.Key, n.Value}, nil
	}
	return nil, nil
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
