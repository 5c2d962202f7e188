package house

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The rules of the house, as far as a machine can tell whether they are kept. What is
// data comes first; to move a file is to edit it here.

// floors are the files of the root and the packages below it, the top floor first. Names
// on one line are on one floor and do not know each other. Everything may use what is on
// a lower floor, and nothing else.
var floors = []string{
	// The public face.
	"supervise.go",
	"ring.go",
	"cluster.go",
	"client.go",
	"outer.go",
	// Several nodes, many commands, one command.
	"route.go",
	"nodes.go",
	"topology.go",
	"batch.go",
	"spread.go",
	"call.go",
	"attempt.go",
	"veil.go",
	"once.go",
	"oncescript.go",
	// Links and who looks after them.
	"keeper.go",
	"reconnect.go",
	"heartbeat.go",
	"probe.go",
	"inquiry.go",
	"dial.go",
	"link.go",
	"verdict.go",
	"gate.go",
	"state.go",
	"base.go",
	"observe.go",
	// What a failure means.
	"errors.go",
	"outcome.go",
	"refusals.go",
	"host.go",
	// What all others may use.
	"retry.go",
	"options.go",
	"stats.go",
	// The packages below.
	"internal/sentinel",
	"internal/wire",
	"internal/command",
	"internal/sys",
}

// planned are names in floors that need not exist yet.
var planned = []string{}

// arrowsUp is how many pairs of files there are of which one uses the other and is not
// above it. It only ever goes down.
const arrowsUp = 0

// numberFiles are where the numbers stand: those of the root, and those of connections.
var numberFiles = []string{"options.go", "internal/wire/limits.go"}

// numbers are those outside of numberFiles that are no settings, by the function, variable
// or constant they stand in. 0, 1, 2 and -1 need no excuse.
// "*" is for all that are there.
var numbers = []struct{ where, numbers, why string }{
	{"classesByArgs", "*", "numbers of arguments"},
	{"stackRoom", "3 10", "what frames of Go need"},
	{"lasting", "3", "the number of an argument"},
	{"options", "4", "the number of an argument"},
	{"keyed", "5", "the number of an argument"},
	{"exactBits", "53", "of a double"},
	{"slots", "*", "of Redis Cluster"},
	{"crcs", "*", "of CRC16"},
	{"Slot", "8", "of CRC16"},
	{"Directory.hear", "3 4 5", "numbers of words"},
	{"connErrno", "*", "the kernel's"},
	{"tcpUserTimeout", "0x12", "the kernel's"},
	{"tcpiProbes", "*", "the kernel's"},
	{"tcpiUnacked", "*", "the kernel's"},
	{"tcpiLastAckRecv", "*", "the kernel's"},
	{"tcpiTotalRetrans", "*", "the kernel's"},
	{"tcpiSegsIn", "*", "the kernel's"},
	{"tcpiSize", "*", "the kernel's"},
	{"DeliveryOf", "time.Millisecond", "a unit"},
	{"pollIn", "*", "the kernel's"},
	{"PeerClosed", "4", "the kernel's: the size of an int"},
	{"Head", "10 16", "the base, and no name that matters is longer"},
	{"Blocks", "16", "of head"},
	{"blockWithin", "*", "it is among the first words"},
	{"maxLine", "*", "longer than any number is as text"},
	{"maxText", "*", "longer than a line of CLIENT LIST"},
	{"maxBody", "*", "longer than any text that Redis allows"},
	{"inquiry.whoIs", "time.Second", "the unit of uptime_in_seconds"},
	{"Conn.observe", "16", "of head"},
	{"shards.asks", "16", "of head"},
	{"Greeting.Said", "16", "of head"},
	{"textSize", "64", "longer than any number is as text"},
	{"Innermost", "8", "nobody wraps a connection that often"},
	{"events.log", "time.Microsecond", "a unit"},
	{"call.pause", "16", "bounds a shift, so that it does not overflow"},

	{"newPinger", "1024", moveIt},
	{"base.tick", "time.Millisecond", moveIt},
	{"keeper.keep", "16", moveIt},
	{"call.sleep", "0.5", moveIt},
	{"closedCheck", "time.Second", moveIt},
}

const moveIt = "a setting that belongs into options.go"

// goroutines are where one is started, and who waits for it, or stops what would start it.
var goroutines = map[string]string{
	"probe.go:pinger.ask":                              "pinger.ask",
	"probe.go:pinger.begin":                            "pinger.finish",
	"dial.go:link.connect":                             "link.connect",
	"internal/wire/lanes.go:Lanes.Enter":               "Lanes.Enter",
	"observe.go:events.signalLocked":                   "events.join",
	"gate.go:gate.hold":                                "gate.hold",
	"state.go:newOutage":                               "outage.end",
	"base.go:base.spawn":                               "keeper.join",
	"keeper.go:keeper.close":                           "keeper.close",
	"keeper.go:keeper.start":                           "keeper.join",
	"topology.go:topology.within":                      "topology.within",
	"internal/sentinel/ask.go:Directory.spawn":         "Directory.Close",
	"internal/sentinel/directory.go:Directory.inquire": "Directory.Close",
	"internal/sentinel/client.go:client.dial":          "client.dial",
	"internal/sentinel/client.go:client.onConnect":     "client.onConnect",
	"internal/sentinel/client.go:Directory.leave":      "Directory.leave",
	"internal/sentinel/listen.go:Directory.hear":       "Directory.hear",
	"internal/wire/cancel.go:Conn.await":               "Conn.await",
	"internal/wire/cancel.go:Conn.watch":               "Conn.watched",
	"internal/wire/proof.go:Conn.exchange":             "Conn.exchange",
}

// locks are in the order in which they may be taken: whoever holds one takes only those
// of later lines.
var locks = []string{
	"chain.mu nodes.attaching",
	"Conn.claim",
	"cell.mu",
	"nodes.mu",
	"attempt.mu base.ends budget.mu Calls.grows events.mu Fleet.mu hookList.mu inquiry.mu keeper.mu Lanes.mu observers.mu onces.mu parts.mu pinger.mu shards.mu subscriptions.mu topology.mu Directory.mu",
	"crew.mu",
}

// slowLocks are held while something may block, on purpose.
var slowLocks = map[string]string{
	"chain.mu":        "go-redis asks the hooks of the caller what they make of a function; commands do not wait for that",
	"Conn.claim":      "it keeps others off the connection while a PING of ours is answered",
	"nodes.attaching": "whoever meets a node first gives it its hook, and the others wait for that",
}

// underLock are what functions do under a lock although it looks as if it might block.
var underLock = map[string]string{
	"cell.await: calls there, which may be anything": "what is waited for is part of the state, or goes by it",
}

// What is counted of the link and of outcomes, see TestRules_Counts.
const (
	typeOfLink    = "link"
	typeOfOutcome = "outcome"
	methodOfLoop  = "admit" // what a loop that retries calls
	seamMethods   = 20      // an interface with more is one of the public face
)

const module = "github.com/redial-go/redial"

// forTests is for tests. It is no part of the house, so nothing of the house can use it.
const forTests = "internal/testkit"

// house is the source: that of the root and of the packages below, without tests.
type house struct {
	fset   *token.FileSet
	files  map[string]*ast.File // by path, from the root
	infos  []*types.Info        // one for each package and platform
	native []*types.Info        // those of the platform that the test runs on
	inside map[*types.Info][]string
	theirs types.Importer // of what is not ours
}

// platforms are those whose files are read. The first is the one that the test runs on;
// on others what their standard library has and this one has not is overlooked.
var platforms = []string{build.Default.GOOS, "linux", "darwin", "windows", "plan9"}

var readHouse = sync.OnceValues(func() (*house, error) {
	h := &house{fset: token.NewFileSet(), files: make(map[string]*ast.File), inside: make(map[*types.Info][]string)}
	dirs := map[string][]string{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		name = filepath.ToSlash(name)
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && name != "internal" && !strings.HasPrefix(name, "internal/"),
			d.IsDir() && (d.Name() == "testdata" || name == forTests):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(h.fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		h.files[name] = f
		dirs[path.Dir(name)] = append(dirs[path.Dir(name)], name)
		return err
	})
	if err != nil {
		return nil, err
	}
	if h.theirs, err = h.exports(); err != nil {
		return nil, err
	}
	for i, platform := range platforms {
		if i > 0 && platform == platforms[0] {
			continue
		}
		done := make(map[string]*types.Package)
		var check func(dir string) (*types.Package, error)
		check = func(dir string) (*types.Package, error) {
			if p := done[dir]; p != nil {
				return p, nil
			}
			ctx := build.Default
			ctx.GOOS, ctx.CgoEnabled = platform, false
			var files []*ast.File
			info := newInfo()
			for _, name := range dirs[dir] {
				if ok, err := ctx.MatchFile(dir, path.Base(name)); err != nil {
					return nil, err
				} else if ok {
					files = append(files, h.files[name])
					h.inside[info] = append(h.inside[info], name)
				}
			}
			conf := types.Config{Importer: importing(func(name string) (*types.Package, error) {
				if ours, ok := strings.CutPrefix(name, module+"/"); ok && dirs[ours] != nil {
					return check(ours)
				}
				return h.theirs.Import(name)
			})}
			if i > 0 {
				conf.Error = func(error) {} // the standard library is that of another platform
			}
			p, err := conf.Check(path.Join(module, dir), h.fset, files, info)
			if err != nil && i == 0 {
				return nil, err
			}
			done[dir] = p
			if h.infos = append(h.infos, info); i == 0 {
				h.native = append(h.native, info)
			}
			return p, nil
		}
		for dir := range dirs {
			if _, err := check(dir); err != nil {
				return nil, err
			}
		}
	}
	return h, nil
})

func newInfo() *types.Info {
	return &types.Info{
		Uses: make(map[*ast.Ident]types.Object), Defs: make(map[*ast.Ident]types.Object),
		Types: make(map[ast.Expr]types.TypeAndValue), Selections: make(map[*ast.SelectorExpr]*types.Selection),
	}
}

// importing is a types.Importer.
type importing func(path string) (*types.Package, error)

func (f importing) Import(path string) (*types.Package, error) { return f(path) }

// exports returns an importer for what is not ours. The go command knows where it has put
// what the compiler has found out, which is quicker than to read the source.
func (h *house) exports() (types.Importer, error) {
	wanted := make(map[string]bool)
	for _, f := range h.files {
		for _, spec := range f.Imports {
			if name, _ := strconv.Unquote(spec.Path.Value); name != module && !strings.HasPrefix(name, module+"/") {
				wanted[name] = true
			}
		}
	}
	args := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}"}
	if underRace() {
		args = append(args, "-race") // they are at hand
	}
	cmd := exec.Command("go", append(args, slices.Sorted(maps.Keys(wanted))...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	where := make(map[string]string)
	for line := range bytes.Lines(out) {
		name, file, _ := strings.Cut(strings.TrimSpace(string(line)), "\t")
		where[name] = file
	}
	return importer.ForCompiler(h.fset, "gc", func(name string) (io.ReadCloser, error) { return os.Open(where[name]) }), nil
}

// underRace reports whether the test was built with the race detector.
func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func aHouse(t *testing.T) *house {
	t.Helper()
	h, err := readHouse()
	require.NoError(t, err)
	return h
}

// fileOf returns the file, from the root, and the line of a position.
func (h *house) fileOf(pos token.Pos) (string, int) {
	p := h.fset.Position(pos)
	return filepath.ToSlash(p.Filename), p.Line
}

func (h *house) at(pos token.Pos) string {
	file, line := h.fileOf(pos)
	return fmt.Sprint(file, ":", line)
}

// arrow says that a file uses another.
type arrow struct {
	from, to string
	at       token.Pos // of the first use
	name     string    // what is used there
}

// arrows returns those between files, of all platforms, ordered by name.
func (h *house) arrows() []arrow {
	first := make(map[[2]string]arrow)
	for _, info := range h.infos {
		for id, obj := range info.Uses {
			if obj.Pkg() == nil || obj.Pos() == token.NoPos || obj.Pkg().Path() != module && !strings.HasPrefix(obj.Pkg().Path(), module+"/") {
				continue
			}
			if _, ok := obj.(*types.PkgName); ok {
				continue
			}
			from, _ := h.fileOf(id.Pos())
			to, _ := h.fileOf(obj.Pos())
			key := [2]string{from, to}
			if was, ok := first[key]; from != to && (!ok || id.Pos() < was.at) {
				first[key] = arrow{from, to, id.Pos(), nameOfObject(obj)}
			}
		}
	}
	all := slices.Collect(maps.Values(first))
	slices.SortFunc(all, func(a, b arrow) int { return strings.Compare(a.from+" "+a.to, b.from+" "+b.to) })
	return all
}

func nameOfObject(obj types.Object) string {
	if f, ok := obj.(*types.Func); ok && f.Signature().Recv() != nil {
		return nameOfType(f.Signature().Recv().Type()) + "." + f.Name()
	}
	if v, ok := obj.(*types.Var); ok && v.IsField() {
		return "the field " + v.Name()
	}
	return obj.Name()
}

func nameOfType(t types.Type) string {
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	if n, ok := t.(interface{ Obj() *types.TypeName }); ok {
		return n.Obj().Name()
	}
	return t.String()
}

// roomOf returns what has a floor: a file of the root, or a package below it.
func roomOf(file string) string {
	if dir := path.Dir(file); dir != "." {
		return dir
	}
	return file
}

// floorsByRoom returns the number of the floor of every room, 1 being the lowest.
func floorsByRoom() map[string]int {
	floor := make(map[string]int)
	for i, line := range floors {
		for room := range strings.FieldsSeq(line) {
			floor[room] = len(floors) - i
		}
	}
	return floor
}

// up returns the arrows, one for each pair of rooms, that do not point down, as sentences.
func (h *house) up() []string {
	floor := floorsByRoom()
	seen := make(map[[2]string]bool)
	var bad []string
	for _, a := range h.arrows() {
		from, to := roomOf(a.from), roomOf(a.to)
		if from == to || seen[[2]string{from, to}] || floor[from] > floor[to] {
			continue
		}
		seen[[2]string{from, to}] = true
		bad = append(bad, fmt.Sprintf("%s uses %s of %s, but %s is on floor %d and %s on floor %d: arrows only point down",
			h.at(a.at), a.name, a.to, from, floor[from], to, floor[to]))
	}
	return bad
}

// circles returns the strongly connected components, of two files or more, the biggest
// first. Files in them need each other in a circle.
func circles(arrows []arrow) [][]string {
	next := make(map[string][]string)
	for _, a := range arrows {
		next[a.from] = append(next[a.from], a.to)
	}
	var (
		all     [][]string
		stack   []string
		index   = make(map[string]int)
		low     = make(map[string]int)
		onStack = make(map[string]bool)
		visit   func(string)
	)
	visit = func(v string) {
		index[v] = len(index) + 1
		low[v] = index[v]
		stack, onStack[v] = append(stack, v), true
		for _, w := range next[v] {
			if index[w] == 0 {
				visit(w)
				low[v] = min(low[v], low[w])
			} else if onStack[w] {
				low[v] = min(low[v], index[w])
			}
		}
		if low[v] != index[v] {
			return
		}
		i := slices.Index(stack, v)
		if found := slices.Sorted(slices.Values(stack[i:])); len(found) > 1 {
			all = append(all, found)
		}
		for _, w := range stack[i:] {
			onStack[w] = false
		}
		stack = stack[:i]
	}
	for _, v := range slices.Sorted(maps.Keys(next)) {
		if index[v] == 0 {
			visit(v)
		}
	}
	slices.SortStableFunc(all, func(a, b []string) int { return len(b) - len(a) })
	return all
}

// Whatever a file uses is on a lower floor.
func TestRules_ArrowsPointDown(t *testing.T) {
	h := aHouse(t)
	floor := floorsByRoom()
	rooms := make(map[string]bool)
	for file := range h.files {
		rooms[roomOf(file)] = true
	}
	for _, room := range slices.Sorted(maps.Keys(rooms)) {
		if floor[room] == 0 {
			t.Errorf("%s has no floor: give it a line in floors, in rules_test.go", room)
		}
		if slices.Contains(planned, room) {
			t.Errorf("%s exists now: take it out of planned, in rules_test.go", room)
		}
	}
	for room := range floor {
		if !rooms[room] && !slices.Contains(planned, room) {
			t.Errorf("%s has a floor and does not exist: take it out of floors, in rules_test.go", room)
		}
	}
	switch bad := h.up(); {
	case len(bad) > arrowsUp:
		t.Errorf("%d arrows do not point down, %d are allowed:\n%s", len(bad), arrowsUp, strings.Join(bad, "\n"))
	case len(bad) < arrowsUp:
		t.Errorf("%d arrows do not point down, which is better than before: set arrowsUp, in rules_test.go, to %[1]d", len(bad))
	default:
		t.Log(strings.Join(bad, "\n"))
	}
}

// A file begins with a comment that says what it is for: that of its package, or one of its
// own that belongs to no declaration. Those of internal/sys are what their names say.
func TestRules_FilesSayWhatTheyAreFor(t *testing.T) {
	h := aHouse(t)
	for _, file := range slices.Sorted(maps.Keys(h.files)) {
		if path.Dir(file) != "internal/sys" && !saysWhatItIsFor(h.files[file]) {
			t.Errorf("%s does not begin with a comment that says what it is for", file)
		}
	}
}

func saysWhatItIsFor(f *ast.File) bool {
	if f.Doc != nil {
		return true
	}
	first := f.End()
	for _, decl := range f.Decls {
		doc, imports := (*ast.CommentGroup)(nil), false
		switch d := decl.(type) {
		case *ast.FuncDecl:
			doc = d.Doc
		case *ast.GenDecl:
			doc, imports = d.Doc, d.Tok == token.IMPORT
		}
		if imports {
			continue
		}
		if first = decl.Pos(); doc != nil {
			first = doc.Pos()
		}
		break
	}
	return slices.ContainsFunc(f.Comments, func(c *ast.CommentGroup) bool {
		return c.Pos() > f.Package && c.End() < first
	})
}

// Comments of declarations and of the build are none of a file.
func TestRules_FilesSayWhatTheyAreFor_IsSeen(t *testing.T) {
	for source, want := range map[string]bool{
		"package p\n\n// What is here.\n\n// x is x.\nvar x int\n":            true,
		"package p\n\nimport \"io\"\n\n// What is here.\n\nvar x io.Reader\n": true,
		"package p\n\n// What is here.\n\nimport \"io\"\n\nvar x io.Reader\n": true,
		"// Package p is here.\npackage p\n":                                  true,
		"package p\n\n// x is x.\nvar x int\n\n// It is late.\n":              false,
		"//go:build linux\n\npackage p\n\nfunc x() {\n\t// within\n}\n":       false,
		"package p\n\nimport \"io\"\n\n// x is x.\nfunc x(io.Reader) {}\n":    false,
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "", source, parser.ParseComments)
		require.NoError(t, err)
		assert.Equal(t, want, saysWhatItIsFor(f), source)
	}
}

// What the house may weigh, and -v shows what it does.
const (
	maxLinkFields, maxLinkFiles   = 20, 2
	maxDeciders, maxDecidingFiles = 7, 2
	maxLoops                      = 1
)

// The type that everything needs stays small, one place decides what a failure means, and
// there is one loop.
func TestRules_Counts(t *testing.T) {
	h := aHouse(t)
	arrows := h.arrows()
	var root, below []arrow // of each, where both ends are there
	pairs := make(map[[2]string]bool)
	for _, a := range arrows {
		from, to := roomOf(a.from), roomOf(a.to)
		switch {
		case from == a.from && to == a.to:
			root = append(root, a)
		case from == to:
			below = append(below, a)
		}
		if from != to {
			pairs[[2]string{from, to}] = true
		}
	}
	biggest := func(of []arrow) []string {
		if all := circles(of); len(all) > 0 {
			return all[0]
		}
		return nil
	}
	fields, methodFiles, methods := 0, make(map[string]bool), 0
	deciders, loops := make(map[string]bool), make(map[string]int)
	decidersIn := make(map[string]bool)
	lines, below1 := 0, 0
	for file, f := range h.files {
		n := h.fset.File(f.Pos()).LineCount()
		if lines += n; roomOf(file) != file {
			below1 += n
		}
	}
	h.declarations(func(file, where string, decl ast.Node) {
		info := h.infoOf(file)
		switch d := decl.(type) {
		case *ast.TypeSpec:
			if s, ok := d.Type.(*ast.StructType); ok && where == typeOfLink && file == path.Base(file) {
				fields = info.TypeOf(s).(*types.Struct).NumFields()
			}
		case *ast.FuncDecl:
			if typ, _, ok := strings.Cut(where, "."); ok && typ == typeOfLink {
				methods++
				methodFiles[file] = true
			}
			if decides(info, d) {
				deciders[where] = true
				decidersIn[file] = true
			}
			ast.Inspect(d, func(n ast.Node) bool {
				loop, ok := n.(*ast.ForStmt)
				if !ok {
					return true
				}
				ast.Inspect(loop, func(n ast.Node) bool {
					if call, ok := n.(*ast.CallExpr); ok {
						if f := called(info, call); f != nil && f.Name() == methodOfLoop {
							loops[where]++
						}
					}
					return true
				})
				return true
			})
		}
	})
	top, err := filepath.Glob("*.go")
	require.NoError(t, err)
	settings := 0
	for _, n := range numbers {
		if n.why == moveIt {
			settings++
		}
	}
	t.Logf("arrows between files of the root and packages: %d", len(pairs))
	t.Logf("of these not down: %d", len(h.up()))
	t.Logf("files in the biggest circle: %d %v", max(len(biggest(root)), 1), biggest(root))
	t.Logf("files in the biggest circle inside a package below: %d %v", max(len(biggest(below)), 1), biggest(below))
	t.Logf("fields of %s: %d; methods: %d, in %d files %v", typeOfLink, fields, methods, len(methodFiles), slices.Sorted(maps.Keys(methodFiles)))
	t.Logf("functions that decide an %s: %d, in %d files %v %v", typeOfOutcome, len(deciders), len(decidersIn),
		slices.Sorted(maps.Keys(decidersIn)), slices.Sorted(maps.Keys(deciders)))
	t.Logf("loops that retry: %d %v", len(loops), slices.Sorted(maps.Keys(loops)))
	t.Logf("Go files at the top, with tests: %d", len(top))
	t.Logf("lines without tests: %d, of which in packages below: %d", lines, below1)
	assert.LessOrEqual(t, fields, maxLinkFields, "fields of %s", typeOfLink)
	assert.NotZero(t, fields)
	assert.LessOrEqual(t, len(methodFiles), maxLinkFiles, "files with methods of %s: %v", typeOfLink, slices.Sorted(maps.Keys(methodFiles)))
	assert.LessOrEqual(t, len(deciders), maxDeciders, "functions that decide an %s", typeOfOutcome)
	assert.NotZero(t, len(deciders))
	assert.LessOrEqual(t, len(decidersIn), maxDecidingFiles, "files of functions that decide an %s", typeOfOutcome)
	assert.Len(t, loops, maxLoops, "loops that retry")
	t.Logf("places outside of options.go that hold settings: %d", settings)
}

// decides reports whether a function says which outcome something has. Those that compare
// with one, or ask for one, do not.
func decides(info *types.Info, d *ast.FuncDecl) bool {
	found := false
	compared := make(map[ast.Node]bool)
	ast.Inspect(d, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			if n.Op == token.EQL || n.Op == token.NEQ {
				compared[ast.Unparen(n.X)], compared[ast.Unparen(n.Y)] = true, true
			}
		case *ast.SwitchStmt:
			if n.Tag != nil {
				for _, c := range n.Body.List {
					for _, x := range c.(*ast.CaseClause).List {
						compared[x] = true
					}
				}
			}
		case *ast.SelectorExpr:
			compared[n.Sel] = compared[n] // of another package
		case *ast.Ident:
			c, ok := info.Uses[n].(*types.Const)
			if ok && strings.EqualFold(nameOfType(c.Type()), typeOfOutcome) && !compared[n] {
				found = true
			}
		}
		return true
	})
	return found
}

func TestRules_Circles(t *testing.T) {
	a := func(from, to string) arrow { return arrow{from: from, to: to} }
	assert.Empty(t, circles([]arrow{a("1", "2"), a("2", "3"), a("1", "3")}))
	assert.Equal(t, [][]string{{"2", "3", "4"}, {"5", "6"}},
		circles([]arrow{a("1", "2"), a("2", "3"), a("3", "4"), a("4", "2"), a("4", "5"), a("5", "6"), a("6", "5")}))
}

// declarations calls f for each function, and for each other declaration, of the source:
// where is its name, that of a method with the name of its type before it.
func (h *house) declarations(f func(file, where string, decl ast.Node)) {
	for _, file := range slices.Sorted(maps.Keys(h.files)) {
		for _, decl := range h.files[file].Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				f(file, nameOfFunc(d), d)
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch spec := spec.(type) {
					case *ast.ValueSpec:
						f(file, spec.Names[0].Name, spec)
					case *ast.TypeSpec:
						f(file, spec.Name.Name, spec)
					}
				}
			}
		}
	}
}

func nameOfFunc(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return d.Name.Name
	}
	t := d.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	if index, ok := t.(*ast.IndexExpr); ok {
		t = index.X
	}
	return t.(*ast.Ident).Name + "." + d.Name.Name
}

// infoOf returns what is known of the types in a file.
func (h *house) infoOf(file string) *types.Info {
	for _, info := range h.infos {
		if slices.Contains(h.inside[info], file) {
			return info
		}
	}
	return nil
}

// called returns the function or method that is called, nil when it is no declared one.
func called(info *types.Info, call *ast.CallExpr) *types.Func {
	var id *ast.Ident
	switch fun := ast.Unparen(call.Fun).(type) {
	case *ast.Ident:
		id = fun
	case *ast.SelectorExpr:
		id = fun.Sel
	case *ast.IndexExpr: // of a type argument
		id, _ = fun.X.(*ast.Ident)
	}
	if id == nil {
		return nil
	}
	f, _ := info.Uses[id].(*types.Func)
	return f
}

// isFunc reports whether f is the function, or the method of a type, of a package.
func isFunc(f *types.Func, pkg string, names ...string) bool {
	return f != nil && f.Pkg() != nil && f.Pkg().Path() == pkg && slices.Contains(names, nameOfObject(f))
}

// Numbers that are settings, or might be, stand in numberFiles.
func TestRules_NumbersAreInOptions(t *testing.T) {
	h := aHouse(t)
	used := make(map[[2]string]bool)
	for _, n := range numbers {
		for number := range strings.FieldsSeq(n.numbers) {
			used[[2]string{n.where, number}] = false
		}
	}
	h.declarations(func(file, where string, decl ast.Node) {
		if slices.Contains(numberFiles, file) {
			return
		}
		info := h.infoOf(file)
		ast.Inspect(decl, func(n ast.Node) bool {
			number := ""
			switch n := n.(type) {
			case *ast.CallExpr:
				if f := called(info, n); f != nil && f.Pkg() != nil && f.Pkg().Path() == "strconv" {
					return false // the base and the size
				}
			case *ast.BasicLit:
				if (n.Kind == token.INT || n.Kind == token.FLOAT) && n.Value != "0" && n.Value != "1" && n.Value != "2" {
					number = n.Value
				}
			case *ast.SelectorExpr:
				if c, ok := info.Uses[n.Sel].(*types.Const); ok && c.Pkg() != nil && c.Pkg().Path() == "time" && nameOfType(c.Type()) == "Duration" {
					number = "time." + c.Name()
				}
			}
			if number == "" {
				return true
			}
			key := [2]string{where, number}
			if _, ok := used[[2]string{where, "*"}]; ok {
				key[1] = "*"
			}
			if _, ok := used[key]; ok {
				used[key] = true
			} else {
				t.Errorf("%s: the number %s in %s: it belongs into options.go, or limits.go of its package, or, if it is no setting, into numbers, in rules_test.go", h.at(n.Pos()), number, where)
			}
			return true
		})
	})
	for key, used := range used {
		if !used {
			t.Errorf("%s does not hold the number %s any more: take it out of numbers, in rules_test.go", key[0], key[1])
		}
	}
}

// Every goroutine, and every function that is to run on one later, has an owner.
func TestRules_GoroutinesHaveAnOwner(t *testing.T) {
	h := aHouse(t)
	joins := make(map[string]bool) // functions that wait for something, or stop it
	found := make(map[string]bool)
	h.declarations(func(file, where string, decl ast.Node) {
		info := h.infoOf(file)
		place := file + ":" + where
		ast.Inspect(decl, func(n ast.Node) bool {
			starts := false
			switch n := n.(type) {
			case *ast.GoStmt:
				starts = true
			case *ast.UnaryExpr:
				joins[where] = joins[where] || n.Op == token.ARROW
			case *ast.DeferStmt: // of the function that stops what a call inside it has set up
				_, ok := n.Call.Fun.(*ast.CallExpr)
				joins[where] = joins[where] || ok
			case *ast.CallExpr:
				f := called(info, n)
				starts = isFunc(f, "sync", "WaitGroup.Go") || isFunc(f, "time", "AfterFunc") || isFunc(f, "context", "AfterFunc")
				joins[where] = joins[where] || isFunc(f, "sync", "WaitGroup.Wait") || isFunc(f, "time", "Timer.Stop")
			}
			if starts {
				found[place] = true
				if goroutines[place] == "" {
					t.Errorf("%s: %s starts a goroutine, or will: add who joins or stops it to goroutines, in rules_test.go", h.at(n.Pos()), place)
				}
			}
			return true
		})
	})
	for place, owner := range goroutines {
		if !found[place] {
			t.Errorf("%s starts no goroutine any more: take it out of goroutines", place)
		}
		if !joins[owner] {
			t.Errorf("%s, which is said to join or stop what %s starts, waits for nothing and stops nothing", owner, place)
		}
	}
}

// A lock is the field of a struct, or a variable, that is one.

// deed is something that a function does while it holds locks.
type deed struct {
	held  []string
	at    token.Pos
	takes string // a lock
	does  string // what may block; "" and not takes: it calls
	calls string // a function of ours
}

// body collects what a function does.
type body struct {
	h     *house
	info  *types.Info
	deeds []deed
}

// lockOf returns the lock that a call is about and the name of the method.
func (b *body) lockOf(call *ast.CallExpr) (lock, method string) {
	f := called(b.info, call)
	for _, typ := range []string{"Mutex", "RWMutex"} {
		for _, m := range []string{"Lock", "Unlock", "TryLock", "RLock", "RUnlock", "TryRLock"} {
			if !isFunc(f, "sync", typ+"."+m) {
				continue
			}
			switch x := call.Fun.(*ast.SelectorExpr).X.(type) {
			case *ast.SelectorExpr:
				if s := b.info.Selections[x]; s != nil {
					return b.ownerOf(s) + "." + x.Sel.Name, m
				}
				return x.Sel.Name, m
			case *ast.Ident:
				if t := nameOfType(b.info.TypeOf(x)); t != typ {
					return t, m // it is embedded
				}
				return x.Name, m
			}
		}
	}
	return "", ""
}

// ownerOf returns the name of the struct that has the field, which may be embedded.
func (b *body) ownerOf(s *types.Selection) string {
	t := s.Recv()
	for _, i := range s.Index()[:len(s.Index())-1] {
		if p, ok := t.Underlying().(*types.Pointer); ok {
			t = p.Elem()
		}
		t = t.Underlying().(*types.Struct).Field(i).Type()
	}
	return nameOfType(t)
}

// block follows statements with the locks that are held before them and returns those
// that may be held after, and whether the end is never reached.
func (b *body) block(list []ast.Stmt, held []string) ([]string, bool) {
	for _, s := range list {
		var over bool
		if held, over = b.stmt(s, held); over {
			return held, true
		}
	}
	return held, false
}

// either joins what may be held after one way or another.
func either(ways ...func() ([]string, bool)) ([]string, bool) {
	var held []string
	all := true
	for _, way := range ways {
		h, over := way()
		if over {
			continue
		}
		all = false
		for _, lock := range h {
			if !slices.Contains(held, lock) {
				held = append(held, lock)
			}
		}
	}
	return held, all
}

func (b *body) stmt(s ast.Stmt, held []string) ([]string, bool) {
	same := func() ([]string, bool) { return held, false }
	switch s := s.(type) {
	case nil:
		return held, false
	case *ast.BlockStmt:
		return b.block(s.List, held)
	case *ast.LabeledStmt:
		return b.stmt(s.Stmt, held)
	case *ast.ReturnStmt:
		return b.look(s, held), true
	case *ast.BranchStmt:
		return held, true
	case *ast.ExprStmt:
		held = b.look(s, held)
		if call, ok := s.X.(*ast.CallExpr); ok {
			if id, ok := call.Fun.(*ast.Ident); ok && id.Name == "panic" {
				return held, true
			}
		}
		return held, false
	case *ast.DeferStmt:
		if _, method := b.lockOf(s.Call); method != "" {
			return held, false // at the end, which is never looked at
		}
		return b.look(s.Call, held), false
	case *ast.GoStmt:
		for _, arg := range s.Call.Args {
			held = b.look(arg, held)
		}
		return held, false
	case *ast.IfStmt:
		held, _ = b.stmt(s.Init, held)
		held = b.look(s.Cond, held)
		cond, not := ast.Unparen(s.Cond), false
		if u, ok := cond.(*ast.UnaryExpr); ok && u.Op == token.NOT {
			cond, not = u.X, true
		}
		yes, no := held, held
		if call, ok := cond.(*ast.CallExpr); ok {
			if lock, method := b.lockOf(call); strings.HasPrefix(method, "Try") {
				b.take(call.Pos(), lock, held)
				if with := append(slices.Clone(held), lock); not {
					no = with
				} else {
					yes = with
				}
			}
		}
		return either(
			func() ([]string, bool) { return b.block(s.Body.List, yes) },
			func() ([]string, bool) { return b.stmt(s.Else, no) })
	case *ast.ForStmt:
		held, _ = b.stmt(s.Init, held)
		if s.Cond != nil {
			held = b.look(s.Cond, held)
		}
		after, over := b.block(s.Body.List, held)
		b.stmt(s.Post, after)
		if over {
			after = nil
		}
		return either(same, func() ([]string, bool) { return after, false })
	case *ast.RangeStmt:
		if _, ok := b.info.TypeOf(s.X).Underlying().(*types.Chan); ok {
			b.does(s.Pos(), "receives from a channel", held)
		}
		held = b.look(s.X, held)
		return either(same, func() ([]string, bool) { return b.block(s.Body.List, held) })
	case *ast.SwitchStmt:
		held, _ = b.stmt(s.Init, held)
		if s.Tag != nil {
			held = b.look(s.Tag, held)
		}
		return b.cases(s.Body, held)
	case *ast.TypeSwitchStmt:
		held, _ = b.stmt(s.Init, held)
		held, _ = b.stmt(s.Assign, held)
		return b.cases(s.Body, held)
	case *ast.SelectStmt:
		waits := true
		for _, c := range s.Body.List {
			waits = waits && c.(*ast.CommClause).Comm != nil
		}
		if waits {
			b.does(s.Pos(), "waits in a select", held)
		}
		var ways []func() ([]string, bool)
		for _, c := range s.Body.List {
			ways = append(ways, func() ([]string, bool) { return b.block(c.(*ast.CommClause).Body, held) })
		}
		return either(ways...)
	case *ast.SendStmt:
		b.does(s.Pos(), "sends on a channel", held)
		return b.look(s.Value, held), false
	}
	return b.look(s, held), false
}

func (b *body) cases(clauses *ast.BlockStmt, held []string) ([]string, bool) {
	ways := []func() ([]string, bool){func() ([]string, bool) { return held, false }}
	for _, c := range clauses.List {
		c := c.(*ast.CaseClause)
		if c.List == nil {
			ways[0] = func() ([]string, bool) { return nil, true }
		}
		for _, x := range c.List {
			held = b.look(x, held)
		}
		ways = append(ways, func() ([]string, bool) { return b.block(c.Body, held) })
	}
	return either(ways...)
}

func (b *body) take(at token.Pos, lock string, held []string) {
	b.deeds = append(b.deeds, deed{held: slices.Clone(held), at: at, takes: lock})
}

func (b *body) does(at token.Pos, what string, held []string) {
	b.deeds = append(b.deeds, deed{held: slices.Clone(held), at: at, does: what})
}

// look goes through what is evaluated in n and returns the locks that are held after it.
func (b *body) look(n ast.Node, held []string) []string {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false // it runs where it is called
		case *ast.UnaryExpr:
			if n.Op == token.ARROW {
				b.does(n.Pos(), "receives from a channel", held)
			}
		case *ast.CallExpr:
			held = b.call(n, held)
		}
		return true
	})
	return held
}

// call notes what a call does. Arguments are looked at by look.
func (b *body) call(call *ast.CallExpr, held []string) []string {
	if lock, method := b.lockOf(call); method != "" {
		switch method {
		case "Lock", "RLock":
			b.take(call.Pos(), lock, held)
			return append(slices.Clone(held), lock)
		case "Unlock", "RUnlock":
			return slices.DeleteFunc(slices.Clone(held), func(l string) bool { return l == lock })
		}
		return held
	}
	inPlace := func(args []ast.Expr) {
		for _, arg := range args {
			if lit, ok := arg.(*ast.FuncLit); ok {
				b.block(lit.Body.List, held)
			}
		}
	}
	if lit, ok := ast.Unparen(call.Fun).(*ast.FuncLit); ok {
		b.block(lit.Body.List, held)
		return held
	}
	f := called(b.info, call)
	switch tv := b.info.Types[call.Fun]; {
	case tv.IsType() || tv.IsBuiltin():
	case f == nil:
		if name := nameOfType(tv.Type); name != "CancelFunc" && name != "CancelCauseFunc" {
			b.does(call.Pos(), "calls "+types.ExprString(call.Fun)+", which may be anything", held)
		}
	case f.Pkg() == nil:
	case f.Pkg().Path() == module || strings.HasPrefix(f.Pkg().Path(), module+"/"):
		b.deeds = append(b.deeds, deed{held: slices.Clone(held), at: call.Pos(), calls: f.FullName()})
	default:
		if what := slow(f); what != "" {
			b.does(call.Pos(), what, held)
		}
		switch f.Pkg().Path() {
		case "slices", "maps", "sort", "strings", "sync":
			inPlace(call.Args)
		}
	}
	return held
}

// slow says what a function of others may wait for, "" when for nothing.
func slow(f *types.Func) string {
	name := nameOfObject(f)
	switch p := f.Pkg().Path(); {
	case isFunc(f, "time", "Sleep"):
		return "sleeps"
	case isFunc(f, "sync", "WaitGroup.Wait", "Cond.Wait"):
		return "waits in sync." + name
	case p == "net" || p == "crypto/tls" || p == "bufio" || p == "os" || p == "io":
		method := f.Signature().Recv() != nil
		if method && name != "Dialer.String" || strings.HasPrefix(name, "Dial") || strings.HasPrefix(name, "Lookup") || strings.HasPrefix(name, "Read") || strings.HasPrefix(name, "Copy") {
			return "does I/O in " + p + "." + name
		}
	case p == "log/slog" && f.Signature().Recv() != nil:
		return "calls the logger of the caller"
	case strings.HasPrefix(p, "github.com/redis/go-redis/") && f.Signature().Recv() != nil:
		args := f.Signature().Params()
		if args.Len() > 0 && nameOfType(args.At(0).Type()) == "Context" || slices.Contains([]string{"AddHook", "Close"}, f.Name()) {
			return "calls go-redis: " + name
		}
	}
	return ""
}

// bodies returns what each function does, by its full name, and adds what methods of our
// interfaces may do: what those do that implement them.
func (h *house) bodies() map[string][]deed {
	all := make(map[string][]deed)
	var named []*types.Named
	ifaces := make(map[string]*types.Interface)
	for _, info := range h.native {
		for _, obj := range info.Defs {
			if t, ok := obj.(*types.TypeName); ok && t.Parent() == t.Pkg().Scope() {
				if i, ok := t.Type().Underlying().(*types.Interface); ok && i.NumMethods() <= seamMethods {
					ifaces[t.Pkg().Path()+"."+t.Name()] = i
				} else if n, ok := t.Type().(*types.Named); ok {
					named = append(named, n)
				}
			}
		}
		for _, file := range h.inside[info] {
			for _, decl := range h.files[file].Decls {
				d, ok := decl.(*ast.FuncDecl)
				if !ok || d.Body == nil {
					continue
				}
				b := &body{h: h, info: info}
				b.block(d.Body.List, nil)
				f := info.Defs[d.Name].(*types.Func)
				all[f.FullName()] = append(all[f.FullName()], b.deeds...)
			}
		}
	}
	for name, i := range ifaces {
		for _, n := range named {
			if !types.Implements(types.NewPointer(n), i) {
				continue
			}
			for m := range i.Methods() {
				obj, _, _ := types.LookupFieldOrMethod(n, true, m.Pkg(), m.Name())
				full := "(" + name + ")." + m.Name()
				all[full] = append(all[full], deed{at: m.Pos(), calls: obj.(*types.Func).FullName()})
			}
		}
	}
	return all
}

// reach says of each function what it and those that it calls do: it returns the first
// that f has a word for, as a path.
func reach(bodies map[string][]deed, f func(deed) []string) map[string]map[string]string {
	found := make(map[string]map[string]string)
	for name, acts := range bodies {
		found[name] = make(map[string]string)
		for _, a := range acts {
			for _, word := range f(a) {
				found[name][word] = ""
			}
		}
	}
	for again := true; again; {
		again = false
		for name, acts := range bodies {
			for _, a := range acts {
				for word, way := range found[a.calls] {
					if _, ok := found[name][word]; !ok {
						found[name][word] = short(a.calls) + prefixed(" > ", way)
						again = true
					}
				}
			}
		}
	}
	return found
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// short returns the name of a function without its package.
func short(name string) string {
	return strings.NewReplacer("(", "", ")", "", "*", "", module+"/internal/", "", module+".", "").Replace(name)
}

// Nothing that may block is done while a lock is held, and locks are taken in their order.
// What a call leads to is followed through functions of ours; functions that are values
// are not, so they must not be called under a lock at all.
func TestRules_Locks(t *testing.T) {
	for _, fault := range aHouse(t).misuse(locks) {
		t.Error(fault)
	}
}

// misuse returns what is wrong with the use of locks, as sentences.
func (h *house) misuse(locks []string) []string {
	bodies := h.bodies()
	blocks := reach(bodies, func(a deed) []string {
		if a.does == "" {
			return nil
		}
		return []string{a.does}
	})
	takes := reach(bodies, func(a deed) []string {
		if a.takes == "" {
			return nil
		}
		return []string{a.takes}
	})
	var faults []string
	say := func(at token.Pos, format string, args ...any) {
		if s := h.at(at) + ": " + fmt.Sprintf(format, args...); !slices.Contains(faults, s) {
			faults = append(faults, s)
		}
	}
	order := make(map[string]int)
	for i, line := range locks {
		for lock := range strings.FieldsSeq(line) {
			order[lock] = i + 1
		}
	}
	takenEver := make(map[string]bool)
	excused := make(map[string]bool)
	for name, acts := range bodies {
		where := short(name)
		for _, a := range acts {
			if a.takes != "" {
				takenEver[a.takes] = true
				if order[a.takes] == 0 {
					say(a.at, "%s takes %s, which has no place in locks, in rules_test.go", where, a.takes)
				}
			}
			next, does := takes[a.calls], blocks[a.calls]
			switch {
			case a.takes != "":
				next = map[string]string{a.takes: ""}
			case a.does != "":
				does = map[string]string{a.does: ""}
			}
			path := func(way string) string {
				if a.calls == "" {
					return ""
				}
				return " by " + short(a.calls) + prefixed(" > ", way)
			}
			for _, held := range a.held {
				for lock, way := range next {
					if order[held] >= order[lock] {
						say(a.at, "%s takes %s%s while it holds %s: locks, in rules_test.go, has another order", where, lock, path(way), held)
					}
				}
				if slowLocks[held] != "" {
					excused[held] = excused[held] || len(does) > 0
					continue
				}
				for what, way := range does {
					if key := where + ": " + what; underLock[key] != "" {
						excused[key] = true
						continue
					}
					say(a.at, "%s %s%s while it holds %s", where, what, path(way), held)
				}
			}
		}
	}
	for lock := range order {
		if !takenEver[lock] {
			faults = append(faults, fmt.Sprintf("nobody takes %s any more: take it out of locks, in rules_test.go", lock))
		}
	}
	for _, excuses := range []map[string]string{slowLocks, underLock} {
		for what := range excuses {
			if !excused[what] {
				faults = append(faults, fmt.Sprintf("%s is no exception any more: take it out of slowLocks or underLock, in rules_test.go", what))
			}
		}
	}
	slices.Sort(faults)
	return faults
}

// The test above notices what it is for.
func TestRules_Locks_AreSeen(t *testing.T) {
	const source = `package p

import (
	"net"
	"sync"
	"time"
)

type a struct {
	mu sync.Mutex
	b
	f  func()
	ch chan int
	c  net.Conn
}

type b struct{ other sync.RWMutex }

type seam interface{ do() }

func (x *a) do() { time.Sleep(1) }

func (x *a) sleeps()   { x.mu.Lock(); defer x.mu.Unlock(); time.Sleep(1) }
func (x *a) sends()    { x.mu.Lock(); x.ch <- 1; x.mu.Unlock(); x.ch <- 2 }
func (x *a) calls()    { x.mu.Lock(); x.f(); x.mu.Unlock(); x.f() }
func (x *a) writes()   { x.mu.Lock(); x.c.Write(nil); x.mu.Unlock() }
func (x *a) tries()    { if x.mu.TryLock() { <-x.ch; x.mu.Unlock() }; <-x.ch }
func (x *a) triesNot() { if !x.mu.TryLock() { <-x.ch; return }; <-x.ch }
func (x *a) leads()    { x.mu.Lock(); x.on(); x.mu.Unlock() }
func (x *a) on()       { func() { x.do() }() }
func (x *a) seams(s seam) { x.mu.Lock(); s.do(); x.mu.Unlock() }
func (x *a) inner()    { x.mu.Lock(); x.other.RLock(); x.other.RUnlock(); x.mu.Unlock() }
func (x *a) wrong()    { x.other.Lock(); x.again(); x.other.Unlock() }
func (x *a) again()    { x.mu.Lock(); x.mu.Unlock() }
func (x *a) fine() {
	x.mu.Lock()
	if x.f == nil {
		x.mu.Unlock()
		time.Sleep(1)
		return
	}
	go time.Sleep(1)
	select {
	case x.ch <- 1:
	default:
	}
	switch {
	case x.c == nil:
		x.mu.Unlock()
	default:
		x.mu.Unlock()
	}
	time.Sleep(1)
}
`
	h := &house{fset: token.NewFileSet(), inside: make(map[*types.Info][]string)}
	f, err := parser.ParseFile(h.fset, "p.go", source, 0)
	require.NoError(t, err)
	info := newInfo()
	_, err = (&types.Config{Importer: aHouse(t).theirs}).Check(module+"/p", h.fset, []*ast.File{f}, info)
	require.NoError(t, err)
	h.files, h.native = map[string]*ast.File{"p.go": f}, []*types.Info{info}
	h.inside[info] = []string{"p.go"}
	var got []string
	for _, fault := range h.misuse([]string{"a.mu", "b.other"}) {
		if where, what, ok := strings.Cut(fault, ": "); ok && strings.HasPrefix(where, "p.go:") {
			got = append(got, strings.ReplaceAll(what, module+"/p.", ""))
		}
	}
	assert.Equal(t, []string{
		"a.sleeps sleeps while it holds a.mu",
		"a.sends sends on a channel while it holds a.mu",
		"a.calls calls x.f, which may be anything while it holds a.mu",
		"a.writes does I/O in net.Conn.Write while it holds a.mu",
		"a.tries receives from a channel while it holds a.mu",
		"a.triesNot receives from a channel while it holds a.mu",
		"a.leads sleeps by a.on > a.do while it holds a.mu",
		"a.seams sleeps by seam.do > a.do while it holds a.mu",
		"a.wrong takes a.mu by a.again while it holds b.other: locks, in rules_test.go, has another order",
	}, got)
}
