package house

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
)

// What the documents state of the code is checked against it, so that it cannot drift. What
// can be checked of all of them is in docs_test.go.

// optionDefaults says which constants of options.go, and of connections, the row of an option in the
// README must state.
var optionDefaults = map[string][]string{
	"WithHeartbeat":       {"DefaultHeartbeatInterval", "DefaultHeartbeatTimeout"},
	"WithHeartbeatMisses": {"DefaultHeartbeatMisses"},
	"WithBackoff":         {"backoffInitial", "backoffMultiplier", "backoffCap", "backoffJitter", "EagerDelay", "EagerYoung", "EagerDivisor"},
	"WithGrace":           {"DefaultGrace"},
	"WithMaxWaiting":      {"DefaultMaxWaiting"},
	"WithRetry":           nil,
	"WithRefusals":        nil,
	"WithIdleCheck":       {"DefaultIdleCheck", "sweepAge"},
	"WithOnceTTL":         {"DefaultOnceTTL"},
	"WithLogger":          {"logBurst", "logRefill"},
	"WithOnStateChange":   {"eventQueue"},
	"WithOuterHook":       nil,
	"WithInstrument":      nil,
	"WithObserver":        nil,
}

func TestREADME_OptionTable_MatchesCode(t *testing.T) {
	for _, name := range []string{"README.md", "README.zh-CN.md"} {
		t.Run(name, func(t *testing.T) { optionTable(t, document(t, name)) })
	}
}

func optionTable(t *testing.T, readme string) {
	options, constants := parseOptions(t)
	rows := make(map[string]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `(With\\w+)\\(.*$").FindAllStringSubmatch(readme, -1) {
		if _, twice := rows[m[1]]; twice {
			t.Errorf("%s has two rows", m[1])
		}
		rows[m[1]] = m[0]
	}

	for _, name := range options {
		if _, ok := optionDefaults[name]; !ok {
			t.Errorf("%s is not in optionDefaults: which defaults must the README state?", name)
		}
		if rows[name] == "" {
			t.Errorf("%s has no row in the README", name)
		}
	}
	for name := range rows {
		if !slices.Contains(options, name) {
			t.Errorf("the README lists %s, which is no option", name)
		}
	}
	stated := make(map[string]bool)
	for name, consts := range optionDefaults {
		row := rows[name]
		for _, c := range consts {
			stated[c] = true
			value, ok := constants[c]
			if !ok {
				t.Errorf("there is no constant %s in %v", c, numberFiles)
				continue
			}
			quoted := "`" + value + "`"
			if n := strings.Count(row, quoted); n < same(consts, constants, value) {
				t.Errorf("the row of %s does not state %s = %s:\n%s", name, c, quoted, row)
			}
		}
	}
	for c := range constants {
		if strings.HasPrefix(c, "Default") && !stated[c] {
			t.Errorf("no row of the README is meant to state %s", c)
		}
	}
}

// Numbers outside the table of options are those of the code, too.
func TestDocs_OtherNumbers_MatchCode(t *testing.T) {
	_, constants := parseOptions(t)
	commands := document(t, "docs/commands.md")
	for name, phrase := range map[string]string{
		"Unwatched":  "so does a cancellation, within `%s`",
		"retryBurst": "share a budget of `%s` retries",
		"retryRate":  "refilled by `%s` a second",

		"refusalBurst": "Of these %s and then",
		"refusalRate":  "and then %s a second",
		"refusalPause": "beyond that each takes %s",
	} {
		if want := fmt.Sprintf(phrase, constants[name]); !strings.Contains(commands, want) {
			t.Errorf("docs/commands.md does not say %q", want)
		}
	}
}

// same counts the constants among names that have the value.
func same(names []string, constants map[string]string, value string) (n int) {
	for _, c := range names {
		if constants[c] == value {
			n++
		}
	}
	return n
}

// parseOptions returns the exported functions that return an Option, and the constants of numberFiles, durations as they print.
func parseOptions(t *testing.T) (options []string, constants map[string]string) {
	t.Helper()
	fset := token.NewFileSet()
	var decls []ast.Decl
	for _, name := range []string{"options.go", "observe.go"} {
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		decls = append(decls, file.Decls...)
	}
	for _, decl := range decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Recv != nil || !fn.Name.IsExported() || fn.Type.Results.NumFields() != 1 {
			continue
		}
		if id, ok := fn.Type.Results.List[0].Type.(*ast.Ident); ok && id.Name == "Option" {
			options = append(options, fn.Name.Name)
		}
	}

	// Constant expressions need the type checker, but only package time of all
	// imports. What else it complains about does not matter here.
	conf := types.Config{Importer: onlyTime{}, Error: func(error) {}}
	constants = make(map[string]string)
	for _, name := range numberFiles {
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		pkg, _ := conf.Check(name, fset, []*ast.File{file}, nil)
		for _, name := range pkg.Scope().Names() {
			c, ok := pkg.Scope().Lookup(name).(*types.Const)
			if !ok {
				continue
			}
			if constants[name] != "" {
				t.Fatalf("%s stands in two files", name)
			}
			constants[name] = c.Val().String()
			if c.Type().String() == "time.Duration" {
				d, err := time.ParseDuration(c.Val().ExactString() + "ns")
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				constants[name] = d.String()
			}
		}
	}
	if len(options) == 0 || len(constants) == 0 {
		t.Fatalf("options.go: found %d options and %d constants", len(options), len(constants))
	}
	return options, constants
}

// onlyTime imports the durations of package time and nothing else.
type onlyTime struct{}

func (onlyTime) Import(path string) (*types.Package, error) {
	if path != "time" {
		return nil, errors.New("not needed")
	}
	const src = `package time
		type Duration int64
		const (
			Nanosecond Duration = 1
			Microsecond = 1000 * Nanosecond
			Millisecond = 1000 * Microsecond
			Second = 1000 * Millisecond
			Minute = 60 * Second
			Hour = 60 * Minute
		)`
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "time.go", src, 0)
	if err != nil {
		return nil, err
	}
	return new(types.Config).Check("time", fset, []*ast.File{file}, nil)
}

// The JSON sample has exactly the fields of Stats.
func TestDocs_StatsSample_HasEveryField(t *testing.T) {
	sample := regexp.MustCompile("(?s)```json\n(.*?)```").FindStringSubmatch(document(t, "docs/observability.md"))
	if sample == nil {
		t.Fatal("no JSON sample")
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(sample[1]), &got); err != nil {
		t.Fatal(err)
	}
	for field := range reflect.TypeFor[redial.Stats]().Fields() {
		key, more, _ := strings.Cut(field.Tag.Get("json"), ",")
		if _, ok := got[key]; !ok && more != "omitempty" {
			t.Errorf("no %q in the sample", key)
		}
		delete(got, key)
	}
	for key := range got {
		t.Errorf("%q of the sample is not in Stats", key)
	}
}

// The one table of files names every file and folder that there is, and nothing else.
func TestArchitecture_FilesAreThoseOfTheTree(t *testing.T) {
	_, table, found := strings.Cut(document(t, "docs/ARCHITECTURE.md"), "\n## Files\n")
	require.True(t, found)
	named := make(map[string]bool)
	for _, row := range strings.Split(table, "\n") {
		if cells := strings.Split(row, "|"); len(cells) > 2 {
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
				assert.False(t, named[m[1]], "%s is named twice", m[1])
				named[m[1]] = true
				_, err := os.Stat(m[1])
				assert.NoError(t, err)
			}
		}
	}
	for _, pattern := range []string{"*.go", "internal/*/", "internal/command/*.go", "internal/sentinel/*.go", "internal/wire/*.go", "*/"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, f := range files {
			f = strings.TrimSuffix(f, "/")
			if info, err := os.Stat(f); err == nil && info.IsDir() {
				f += "/"
			}
			switch {
			case strings.HasSuffix(f, "_test.go"), f == "internal/", f == "testdata/":
			default:
				assert.True(t, named[f], "%s is not in the table", f)
			}
		}
	}
}
