package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/testkit"
)

// What can be checked of every document: links lead somewhere, samples compile, commands
// and names exist. What documents state of the code is in readme_test.go and elsewhere.

// document returns the text of a document, by its name from the root.
func document(t *testing.T, name string) string {
	t.Helper()
	return testkit.Document(t, name)
}

// documents returns the texts of all documents, by their names from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	walk(t, func(name string) {
		if strings.HasSuffix(name, ".md") {
			all[name] = document(t, name)
		}
	})
	require.Contains(t, all, "README.md")
	return all
}

// walk calls f with the name of every file, from the root.
func walk(t *testing.T, f func(name string)) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata"):
			return fs.SkipDir
		case !d.IsDir():
			f(filepath.ToSlash(name))
		}
		return nil
	}))
}

var (
	fence  = regexp.MustCompile("(?ms)^ *```(\\w*)\n(.*?)^ *```$")
	inline = regexp.MustCompile("`([^`\n]+)`")
	link   = regexp.MustCompile(`\]\(([^)\s]+)\)`)
)

// prose is a document without its code.
func prose(text string) string {
	return inline.ReplaceAllString(fence.ReplaceAllString(text, ""), "code")
}

// blocks returns the fenced blocks of a language.
func blocks(text, language string) (all []string) {
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		if m[1] == language {
			all = append(all, m[2])
		}
	}
	return all
}

// linksOf returns where the links of a document lead, from the root: file and anchor.
func linksOf(name, text string) (all [][2]string) {
	for _, m := range link.FindAllStringSubmatch(prose(text), -1) {
		if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
			continue
		}
		to, anchor, _ := strings.Cut(m[1], "#")
		if to == "" {
			to = name
		} else {
			to = path.Join(path.Dir(name), to)
		}
		all = append(all, [2]string{to, anchor})
	}
	return all
}

// anchorsOf returns the anchors that GitHub gives to the headings of text.
func anchorsOf(text string) map[string]bool {
	anchors := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		a := strings.ReplaceAll(strings.ToLower(m[1]), " ", "-")
		a = regexp.MustCompile(`[^\p{L}\p{N}_-]`).ReplaceAllString(a, "")
		unique := a
		for n := 1; anchors[unique]; n++ {
			unique = fmt.Sprintf("%s-%d", a, n)
		}
		anchors[unique] = true
	}
	return anchors
}

func TestDocs_LinksLeadSomewhere(t *testing.T) {
	all := documents(t)
	for name, text := range all {
		for _, l := range linksOf(name, text) {
			to, anchor := l[0], l[1]
			if _, err := os.Stat(to); err != nil || strings.HasPrefix(to, "..") {
				t.Errorf("%s: there is no %s", name, to)
			} else if anchor != "" && !anchorsOf(all[to])[anchor] {
				t.Errorf("%s: no heading of %s is #%s", name, to, anchor)
			}
		}
	}
}

// Whoever begins with the README finds every document by two clicks.
func TestDocs_TwoClicksFromTheREADME(t *testing.T) {
	all := documents(t)
	near, next := []string{"README.md"}, []string(nil)
	for range 2 {
		next = slices.Clone(near)
		for _, name := range near {
			for _, l := range linksOf(name, all[name]) {
				next = append(next, l[0])
			}
		}
		near = next
	}
	for name := range all {
		assert.Contains(t, near, name)
	}
}

// What the README says of measurements is what the report of them says.
func TestREADME_FiguresAreTheReports(t *testing.T) {
	report := document(t, "RESILIENCE.md")
	ways := regexp.MustCompile(`clients, (\d+) ways to break`).FindStringSubmatch(report)
	_, outage, _ := strings.Cut(report, "\n### Refused port\n")
	gone := regexp.MustCompile(`For ([\d.]+) s every connection is cut and the port refuses`).FindStringSubmatch(outage)
	require.NotNil(t, ways)
	require.NotNil(t, gone)
	for _, name := range []string{"README.md", "README.zh-CN.md"} {
		text := document(t, name)
		for _, m := range regexp.MustCompile(`(?:the |用 )(\d+) (?:ways|种方式)`).FindAllStringSubmatch(text, -1) {
			assert.Equal(t, ways[1], m[1], name)
		}
		found := regexp.MustCompile(`(?:away for|服务器消失) ([\d.]+) (?:s|秒)`).FindAllStringSubmatch(text, -1)
		require.NotEmpty(t, found, name)
		for _, m := range found {
			assert.Equal(t, gone[1], m[1], name)
		}
	}
}

func TestREADME_IsShort(t *testing.T) {
	for _, name := range []string{"README.md", "README.zh-CN.md"} {
		assert.LessOrEqual(t, strings.Count(document(t, name), "\n"), 200, name)
	}
}

// The Chinese README has the content of the English one.
func TestREADME_Chinese_IsComplete(t *testing.T) {
	english, chinese := document(t, "README.md"), document(t, "README.zh-CN.md")
	targets := func(name, text string) (all []string) {
		for _, l := range linksOf(name, text) {
			if l[0] != "README.md" && l[0] != "README.zh-CN.md" && !slices.Contains(all, l[0]) {
				all = append(all, l[0])
			}
		}
		return all
	}
	assert.ElementsMatch(t, targets("README.md", english), targets("README.zh-CN.md", chinese), "links")
	headings := regexp.MustCompile(`(?m)^#+ `)
	assert.Equal(t, headings.FindAllString(prose(english), -1), headings.FindAllString(prose(chinese), -1), "headings")
	for _, language := range []string{"diff", "sh"} {
		assert.Equal(t, blocks(english, language), blocks(chinese, language))
	}
	assert.Len(t, blocks(chinese, "go"), len(blocks(english, "go")))
	rows := regexp.MustCompile("(?m)^\\| (`[^|]+`) \\|")
	assert.Equal(t, rows.FindAllString(english, -1), rows.FindAllString(chinese, -1), "rows of tables")
}

// Every Go sample is a part of a compiled file, line by line, and so is every line of a
// diff.
func TestDocs_GoSamples_AreCompiled(t *testing.T) {
	var compiled strings.Builder
	walk(t, func(name string) {
		if strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, ".go") && strings.HasPrefix(name, "examples/") {
			compiled.WriteString("\n" + trimLines(document(t, name)))
		}
	})
	for name, text := range documents(t) {
		samples := blocks(text, "go")
		for _, diff := range blocks(text, "diff") {
			for line := range strings.Lines(diff) {
				before, _ := strings.CutPrefix(line, "-") // the same, with go-redis's constructor
				line, _ = strings.CutPrefix(strings.Replace(before, "redis.New", "redial.New", 1), "+")
				samples = append(samples, line)
			}
		}
		for _, sample := range samples {
			if !strings.Contains(compiled.String(), "\n"+trimLines(sample)) {
				t.Errorf("%s: in no test and in no example:\n%s", name, sample)
			}
		}
	}
}

// trimLines removes indentation.
func trimLines(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		fmt.Fprintln(&b, strings.TrimSpace(line))
	}
	return b.String()
}

// What documents name in code is there: what the packages export, and files.
func TestDocs_NamesExist(t *testing.T) {
	exported := map[string]map[string]bool{"redial": exportsOf(t, "."), "redialtest": exportsOf(t, "redialtest")}
	files := make(map[string]bool)
	walk(t, func(name string) {
		files[name], files[path.Base(name)] = true, true
	})
	qualified := regexp.MustCompile(`\b(redial|redialtest)\.([A-Z]\w*)`)
	file := regexp.MustCompile(`^[\w./*-]+\.(?:go|mod|md|svg|png|ya?ml|json|html|tmpl)$|^(?:\./)?[\w-]+(?:/[\w-]+)*/$|^\.?[a-z][\w-]*(?:/[\w-]+)+$`)
	for name, text := range documents(t) {
		for _, m := range qualified.FindAllStringSubmatch(text, -1) {
			if !exported[m[1]][m[2]] {
				t.Errorf("%s: there is no %s", name, m[0])
			}
		}
		for _, m := range inline.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if !file.MatchString(m[1]) || files[strings.TrimPrefix(m[1], "./")] {
				continue
			}
			found := false
			for _, dir := range []string{".", path.Dir(name)} {
				matches, err := filepath.Glob(path.Join(dir, m[1]))
				require.NoError(t, err)
				found = found || len(matches) > 0
			}
			if !found && !inSources(".", regexp.MustCompile(`[/"]`+regexp.QuoteMeta(m[1])+`"`)) { // what is imported may be named, too
				t.Errorf("%s: there is no file %s", name, m[1])
			}
		}
	}
}

// Every name of Go that documents use is used somewhere in the code, and so is every
// variable of the environment. What was only read of a library is used nowhere.
func TestDocs_IdentifiersExist(t *testing.T) {
	used := make(map[string]bool)
	for _, of := range []string{ // others, whom documents mention
		"RedisClientOpt", "RedisConnOpt", // asynq
		"DisableIndefiniteInitialBlock", // watermill
		"NewGR", "RedisConf",            // machinery, go-zero
		"GetClientCertificate",                         // crypto/tls
		"ProducerID", "IdempotentID", "IdempotentAuto", // go-redis
		"TCP_USER_TIMEOUT", // Linux
	} {
		used[of] = true
	}
	walk(t, func(name string) {
		if !strings.HasSuffix(name, ".go") {
			return
		}
		var s scanner.Scanner
		source := []byte(document(t, name))
		fset := token.NewFileSet()
		s.Init(fset.AddFile(name, -1, len(source)), source, nil, 0)
		for {
			_, tok, text := s.Scan()
			switch tok {
			case token.EOF:
				return
			case token.IDENT:
				used[text] = true
			case token.STRING:
				used[strings.Trim(text, "`\"")] = true
			}
		}
	})
	command := regexp.MustCompile(`^[A-Z0-9]+$`) // of Redis
	for name, text := range documents(t) {
		text = regexp.MustCompile(`(?m)^\|.*\| read \|.*$`).ReplaceAllString(fence.ReplaceAllString(text, ""), "")
		for _, m := range inline.FindAllStringSubmatch(text, -1) {
			expr, err := parser.ParseExpr(m[1])
			if err != nil {
				continue
			}
			ast.Inspect(expr, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok && ast.IsExported(id.Name) && !command.MatchString(id.Name) && !used[id.Name] {
					t.Errorf("%s: nothing is called %s, see `%s`", name, id.Name, m[1])
				}
				return true
			})
		}
	}
}

// exportsOf returns the exported names of a package, without tests.
func exportsOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	sources, err := filepath.Glob(path.Join(dir, "*.go"))
	require.NoError(t, err)
	for _, name := range sources {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		for _, decl := range f.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					names[d.Name.Name] = true
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						names[s.Name.Name] = true
					case *ast.ValueSpec:
						for _, id := range s.Names {
							names[id.Name] = true
						}
					}
				}
			}
		}
	}
	require.NotEmpty(t, names)
	return names
}

// Commands that documents tell the reader to run name what exists: programs, packages,
// tests, flags, folders and variables.
func TestDocs_CommandsNameWhatExists(t *testing.T) {
	lines := 0
	for name, text := range documents(t) {
		home := path.Dir(name)
		for home != "." && !exists(path.Join(home, "go.mod")) {
			home = path.Dir(home)
		}
		commands := strings.Split(strings.Join(blocks(text, "sh"), "\n"), "\n")
		for _, m := range inline.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.HasPrefix(m[1], "go ") || strings.HasPrefix(m[1], "cd ") {
				commands = append(commands, m[1])
			}
		}
		for _, line := range commands {
			if strings.TrimSpace(line) == "" {
				continue
			}
			lines++
			if err := checkLine(home, line); err != nil {
				t.Errorf("%s: %s: %v", name, line, err)
			}
		}
	}
	assert.Greater(t, lines, 20)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// A mistake in a command is found.
func TestDocs_CommandsNameWhatExists_FindsMistakes(t *testing.T) {
	for line, want := range map[string]string{
		"go run ./examples/none":                       "there is no program",
		"go test -run TestNone .":                      "no test",
		"go test -nothing ./...":                       "no flag",
		"cd none && go test .":                         "there is no folder",
		"go test ./none":                               "there is no package",
		"NO_SUCH_VARIABLE=1 go test .":                 "no variable",
		"frobnicate":                                   "not known",
		"grep -rnE 'redis\\.NewNone\\(' .":             "nothing matches",
		"go test -fuzz '^FuzzNone$' -fuzztime 5m .":    "no test",
		"(cd bench && go run ./cmd/report -none)":      "no flag",
		"go frobnicate .":                              "not known",
		"go test -run '^$' -fuzz '^FuzzReply$' .":      "",
		"(cd bench && go run ./cmd/report -quick)":     "",
		"REDIAL_REQUIRE_REDIS=1 go test -v ./...":      "",
		".ci/run                        # everything":  "",
		"go run golang.org/x/vuln/cmd/govulncheck@v1 ": "",
	} {
		if err := checkLine(".", line); want == "" {
			assert.NoError(t, err, line)
		} else {
			assert.ErrorContains(t, err, want, line)
		}
	}
}

var (
	word       = regexp.MustCompile(`'[^']*'|"[^"]*"|[^\s'"]+`)
	assignment = regexp.MustCompile(`^([A-Z_]+)=`)
	testFlags  = []string{"run", "bench", "fuzz", "fuzztime", "count", "timeout", "list", "v", "race", "short", "benchmem", "parallel", "json"}
	valueFlags = []string{"run", "bench", "fuzz", "fuzztime", "count", "timeout", "list", "parallel"}
	programs   = []string{"grep", "git", "curl"} // of everybody; what they are told is not checked
)

// checkLine checks a line for the shell, run in the folder home.
func checkLine(home, line string) error {
	if i := strings.Index(" "+line, " #"); i >= 0 {
		line = line[:i]
	}
	line = strings.Trim(strings.TrimSpace(line), "()")
	dir := home
	for _, command := range regexp.MustCompile(`\s(?:&&|\||;)\s`).Split(line, -1) {
		words := word.FindAllString(command, -1)
		for len(words) > 0 && assignment.MatchString(words[0]) {
			variable := assignment.FindStringSubmatch(words[0])[1]
			if !inSources(".", regexp.MustCompile(`"`+variable+`"`)) {
				return fmt.Errorf("no variable %s is asked for", variable)
			}
			words = words[1:]
		}
		for i, w := range words {
			words[i] = strings.Trim(w, `'"`)
		}
		if len(words) == 0 {
			continue
		}
		switch program := words[0]; {
		case program == "cd":
			dir = path.Join(dir, words[1])
			if !exists(dir) {
				return fmt.Errorf("there is no folder %s", dir)
			}
		case program == "go":
			if err := checkGo(dir, words[1:]); err != nil {
				return err
			}
		case strings.HasPrefix(program, "."):
			if info, err := os.Stat(path.Join(dir, program)); err != nil || info.Mode()&0o111 == 0 && runtime.GOOS != "windows" {
				return fmt.Errorf("there is no program %s", program)
			}
		case !slices.Contains(programs, program):
			return fmt.Errorf("%s is not known", program)
		case program == "grep": // for what is there, or was written for go-redis
			re, err := regexp.Compile(words[len(words)-2])
			if err != nil {
				return err
			}
			if !inSources(".", re) {
				return fmt.Errorf("nothing matches %s", re)
			}
		}
	}
	return nil
}

// checkGo checks a command for go.
func checkGo(dir string, words []string) error {
	if len(words) == 0 {
		return nil
	}
	switch words[0] {
	case "get", "mod", "list", "install", "vet", "build":
		return nil
	case "doc":
		if last := words[len(words)-1]; !exists(path.Join(dir, last)) {
			return fmt.Errorf("there is no package %s", last)
		}
		return nil
	case "run":
		i := slices.IndexFunc(words[1:], func(w string) bool { return !strings.HasPrefix(w, "-") }) + 1
		program := words[i]
		if strings.Contains(program, "@") {
			return nil
		}
		if !exists(path.Join(dir, program, "main.go")) {
			return fmt.Errorf("there is no program %s", program)
		}
		return checkFlags(path.Join(dir, program), words[i+1:], nil)
	case "test":
		return checkTest(dir, words[1:])
	}
	return fmt.Errorf("go %s is not known", words[0])
}

// checkTest checks the arguments of go test.
func checkTest(dir string, words []string) error {
	patterns := make(map[string]string)
	var flags []string
	var packages []string
	for i := 0; i < len(words); i++ {
		name := strings.TrimPrefix(words[i], "-")
		switch {
		case name == words[i]:
			if i > 0 && strings.HasPrefix(words[i-1], "-") && len(packages) == 0 && !strings.HasPrefix(name, ".") {
				continue // the value of a flag of a package
			}
			packages = append(packages, name)
		case slices.Contains(valueFlags, name) && i+1 < len(words):
			i++
			patterns[name] = words[i]
		default:
			flags = append(flags, words[i])
		}
	}
	if len(packages) == 0 {
		packages = []string{"."}
	}
	for _, p := range packages {
		p, all := strings.CutSuffix(p, "...")
		at := path.Join(dir, p)
		if !exists(at) {
			return fmt.Errorf("there is no package %s", p)
		}
		for flag, kind := range map[string]string{"run": "(?:Test|Example)", "bench": "Benchmark", "fuzz": "Fuzz", "list": "(?:Test|Benchmark|Fuzz)"} {
			pattern := patterns[flag]
			if pattern == "" || pattern == "^$" {
				continue
			}
			re, err := regexp.Compile(pattern)
			if err != nil {
				return err
			}
			found := false
			for _, m := range testsIn(at, all, kind) {
				found = found || re.MatchString(m)
			}
			if !found {
				return fmt.Errorf("no test in %s matches -%s %s", p, flag, pattern)
			}
		}
		if err := checkFlags(at, flags, testFlags); err != nil {
			return err
		}
	}
	return nil
}

// testsIn returns the names of functions for package testing.
func testsIn(dir string, below bool, kind string) (names []string) {
	re := regexp.MustCompile(`(?m)^func (` + kind + `\w+)\(`)
	sources(dir, below, func(text string) {
		for _, m := range re.FindAllStringSubmatch(text, -1) {
			names = append(names, m[1])
		}
	})
	return names
}

// checkFlags checks that flags are known, or defined in the source in a folder.
func checkFlags(dir string, words, known []string) error {
	for _, w := range words {
		name, _, _ := strings.Cut(strings.TrimLeft(w, "-"), "=")
		if !strings.HasPrefix(w, "-") || slices.Contains(known, name) {
			continue
		}
		if !inSources(dir, regexp.MustCompile(`flag\.\w+\("`+name+`"`)) {
			return fmt.Errorf("no flag -%s", name)
		}
	}
	return nil
}

// inSources reports whether a file of Go in dir, or below it, matches.
func inSources(dir string, re *regexp.Regexp) (found bool) {
	sources(dir, true, func(text string) { found = found || re.MatchString(text) })
	return found
}

// sources calls f with the text of each file of Go in dir.
func sources(dir string, below bool, f func(text string)) {
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != dir && (!below || d.Name() == ".git" || exists(path.Join(name, "go.mod"))):
			return fs.SkipDir
		case strings.HasSuffix(name, ".go"):
			b, err := os.ReadFile(name)
			f(string(b))
			return err
		}
		return nil
	})
}

// The hosted workflow has no rights, and runs nothing whose content may change: actions go
// by the hash of a commit, programs by a version.
func TestWorkflow_IsPinnedAndReadOnly(t *testing.T) {
	text := document(t, ".github/workflows/ci.yml")
	for _, m := range regexp.MustCompile(`uses: (.*)`).FindAllStringSubmatch(text, -1) {
		assert.Regexp(t, `^[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`, m[1])
	}
	for _, m := range regexp.MustCompile(`go run (\S+)`).FindAllStringSubmatch(text, -1) {
		assert.Regexp(t, `@v\d`, m[1])
	}
	assert.Contains(t, text, "\npermissions:\n  contents: read\n")
	assert.NotContains(t, text, "write")
	assert.NotContains(t, text, "secrets.")
	assert.Contains(t, text, " .ci/run\n")
	for _, m := range regexp.MustCompile(`go run (\S+@\S+)`).FindAllStringSubmatch(text, -1) {
		assert.Contains(t, document(t, "RELEASING.md"), m[1], "the same as by hand")
	}
}
