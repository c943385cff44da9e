package vmscope_test

import (
	"go/ast"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

// root is the module.
var root = os.DirFS(".")

type goFile struct {
	name  string
	test  bool
	lines int
	ast   *ast.File
}

// isProgram reports whether f may talk to people by itself.
func (f goFile) isProgram() bool {
	top, _, _ := strings.Cut(f.name, "/")
	return f.ast.Name.Name == "main" || slices.Contains([]string{"cmd", "examples", "bench"}, top)
}

func TestPackageComments(t *testing.T) {
	comments := map[string][]string{}
	for _, f := range goFiles(t) {
		pkg := path.Dir(f.name)
		if f.test {
			continue
		}
		if f.ast.Doc != nil {
			comments[pkg] = append(comments[pkg], f.name)
			continue
		}
		if comments[pkg] == nil {
			comments[pkg] = []string{}
		}
	}
	for pkg, files := range comments {
		if len(files) != 1 {
			t.Errorf("%s has %d package comments %v, want one", pkg, len(files), files)
		}
	}
}

// Libraries say nothing by themselves: they return errors.
func TestLibrariesAreQuiet(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.test || f.isProgram() {
			continue
		}
		names := map[string]string{} // of imports, as the file calls them
		for _, spec := range f.ast.Imports {
			p := strings.Trim(spec.Path.Value, `"`)
			if p == "log" || p == "log/slog" {
				t.Errorf("%s imports %s", f.name, p)
			}
			name := path.Base(p)
			if spec.Name != nil {
				name = spec.Name.Name
			}
			names[name] = p
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			switch fun := call.Fun.(type) {
			case *ast.SelectorExpr:
				x, ok := fun.X.(*ast.Ident)
				if ok && names[x.Name] == "fmt" && slices.Contains([]string{"Print", "Printf", "Println"}, fun.Sel.Name) {
					t.Errorf("%s calls fmt.%s", f.name, fun.Sel.Name)
				}
			case *ast.Ident:
				if fun.Name == "print" || fun.Name == "println" {
					t.Errorf("%s calls %s", f.name, fun.Name)
				}
			}
			return true
		})
	}
}

// Nothing registers itself: lists are explicit.
func TestNoInit(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.isProgram() {
			continue
		}
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has an init function", f.name)
			}
		}
	}
}

func TestShortFiles(t *testing.T) {
	for _, f := range goFiles(t) {
		limit := 600
		switch {
		case f.test:
			limit = 800 // tables are long
		case strings.HasPrefix(f.name, "examples/"):
			limit = 60
		}
		if f.lines > limit {
			t.Errorf("%s has %d lines, want at most %d", f.name, f.lines, limit)
		}
	}
}

// A directory is named by what it knows.
func TestDirectoryNames(t *testing.T) {
	bad := []string{"pkg", "util", "utils", "common", "types", "helpers", "misc", "base", "lib"}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if slices.Contains(bad, d.Name()) {
			t.Errorf("%s: this name says nothing", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
