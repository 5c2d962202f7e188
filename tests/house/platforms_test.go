package house

import (
	"cmp"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	for system, architecture := range map[string]string{"darwin": "arm64", "plan9": "amd64"} {
		t.Run(system, func(t *testing.T) {
			t.Parallel()
			p := &platform{listed(t, system, architecture), types.SizesFor("gc", architecture), token.NewFileSet(), make(map[string]*types.Package)}
			checked := 0
			for name, is := range p.listed {
				if !is.DepOnly {
					_, err := p.Import(name)
					assert.NoError(t, err)
					checked += len(is.GoFiles)
				}
			}
			assert.Greater(t, checked, 50)
		})
	}
}

// listing is what the go command says of a package.
type listing struct {
	ImportPath, Dir string
	GoFiles         []string
	ImportMap       map[string]string
	DepOnly         bool
}

// listed returns what programs import, and all that this imports, by path.
func listed(t *testing.T, system, architecture string) map[string]listing {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,GoFiles,ImportMap,DepOnly", ".", "./internal/...", "./redialhttp/...", "./redialtest/...")
	cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH="+architecture, "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err)
	all := make(map[string]listing)
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var l listing
		err := d.Decode(&l)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		if !strings.HasPrefix(l.ImportPath, module+"/"+forTests) {
			all[l.ImportPath] = l
		}
	}
}

// platform type-checks packages for one system, from their source.
type platform struct {
	listed map[string]listing
	sizes  types.Sizes
	fset   *token.FileSet
	done   map[string]*types.Package
}

// Import implements types.Importer.
func (p *platform) Import(name string) (*types.Package, error) {
	if name == "unsafe" {
		return types.Unsafe, nil
	}
	if done := p.done[name]; done != nil {
		return done, nil
	}
	is := p.listed[name]
	var files []*ast.File
	for _, name := range is.GoFiles {
		f, err := parser.ParseFile(p.fset, filepath.Join(is.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	conf := types.Config{Importer: within{p, is.ImportMap}, Sizes: p.sizes, IgnoreFuncBodies: is.DepOnly}
	checked, err := conf.Check(name, p.fset, files, nil)
	p.done[name] = checked
	return checked, err
}

// within is how a package of the standard library may name what it has copies of.
type within struct {
	*platform
	names map[string]string
}

// Import implements types.Importer.
func (w within) Import(name string) (*types.Package, error) {
	return w.platform.Import(cmp.Or(w.names[name], name))
}
