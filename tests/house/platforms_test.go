package house

import (
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestPlatforms_Compile has what is written for systems on which nobody may have run a test
// type-checked, without the compilation of a standard library for each.
func TestPlatforms_Compile(t *testing.T) {
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("too slow with the race detector, for which there is nothing to find")
	}
	for platform, architecture := range map[string]string{"darwin": "arm64", "plan9": "amd64"} {
		t.Run(platform, func(t *testing.T) {
			was := build.Default // by which the importer goes
			t.Cleanup(func() { build.Default = was })
			build.Default.GOOS, build.Default.GOARCH, build.Default.CgoEnabled = platform, architecture, false
			fset := token.NewFileSet()
			conf := types.Config{Importer: importer.ForCompiler(fset, "source", nil)}
			checked := 0
			for _, dir := range packagesOfRoot(t) {
				p, err := build.ImportDir(dir, 0)
				require.NoError(t, err)
				var files []*ast.File
				for _, name := range p.GoFiles {
					f, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
					require.NoError(t, err)
					files = append(files, f)
				}
				_, err = conf.Check(path.Join(module, filepath.ToSlash(dir)), fset, files, nil)
				assert.NoError(t, err)
				checked += len(files)
			}
			assert.Greater(t, checked, 50)
		})
	}
}

// packagesOfRoot returns the folders of what programs import.
func packagesOfRoot(t *testing.T) (dirs []string) {
	t.Helper()
	for _, root := range []string{".", "internal", "redialhttp", "redialtest"} {
		require.NoError(t, filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			name = filepath.ToSlash(name)
			switch {
			case err != nil:
				return err
			case root == "." && name != ".", d.IsDir() && (d.Name() == "testdata" || name == forTests):
				return fs.SkipDir
			case d.IsDir():
				if found, err := filepath.Glob(filepath.Join(name, "*.go")); err != nil || len(found) > 0 && !onlyTests(found) {
					dirs = append(dirs, name)
					return err
				}
			}
			return nil
		}))
	}
	return dirs
}

// onlyTests reports whether all files are those of tests.
func onlyTests(names []string) bool {
	for _, name := range names {
		if !strings.HasSuffix(name, "_test.go") {
			return false
		}
	}
	return true
}
