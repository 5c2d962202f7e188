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
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestPlatforms_Compile has what is written for systems on which nobody may have run a test
// type-checked, without the compilation of a standard library for each.
func TestPlatforms_Compile(t *testing.T) {
	if underRace() {
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
			for _, dir := range foldersOfRoot(t) {
				p, err := build.ImportDir(dir, 0)
				if _, none := err.(*build.NoGoError); none || err == nil && len(p.GoFiles) == 0 {
					continue
				}
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

// foldersOfRoot returns those of what programs import.
func foldersOfRoot(t *testing.T) []string {
	t.Helper()
	dirs := []string{"."}
	for _, root := range []string{"internal", "redialhttp", "redialtest"} {
		require.NoError(t, filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil || !d.IsDir():
				return err
			case d.Name() == "testdata" || filepath.ToSlash(name) == forTests:
				return fs.SkipDir
			}
			dirs = append(dirs, name)
			return nil
		}))
	}
	return dirs
}
