package vmscope_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
)

// layers is the direction of imports: a package imports only packages of
// earlier lines. "x/*" stands for every package below x. ARCHITECTURE.md
// says why.
var layers = []string{
	"internal/hot", // below all: how to make a system call
	"mem block event pattern docs/*",
	"internal/* arch",
	"arch/* ksym ctype fsinfer internal/procram", // by internal/ramfile
	"vm kernel",
	"internal/xenguest", // of vm/xen and vm/dump
	"vm/* kernel/* block/* fsinfer/*",
	"block/tap", // receives by block/nbd and block/vhostuser
	"watch",     // joins taps and inferencers
	".",         // package vmscope
	"detect detect/* scan",
	"daemon daemon/*",
	"bench/sample",
	"cmd/* examples/* bench bench/*",
}

// tools are packages below internal that are programs or test gear: they may
// import what they like, and only tests and programs import them.
var tools = []string{"internal/guestlab", "internal/fsoracle"}

// layer finds the line of a package; -1 if it has none. A name counts before a pattern.
func layer(pkg string) int {
	for i, line := range layers {
		if slices.Contains(strings.Fields(line), pkg) {
			return i
		}
	}
	for i, line := range layers {
		for _, name := range strings.Fields(line) {
			parent, all := strings.CutSuffix(name, "/*")
			if pkg == name || all && strings.HasPrefix(pkg, parent+"/") {
				return i
			}
		}
	}
	return -1
}

func isTool(pkg string) bool {
	for _, t := range tools {
		if pkg == t || strings.HasPrefix(pkg, t+"/") {
			return true
		}
	}
	return false
}

func TestLayers(t *testing.T) {
	for _, f := range goFiles(t) {
		pkg := path.Dir(f.name)
		self := layer(pkg)
		if self < 0 {
			t.Errorf("%s: no layer for this package: see layers_test.go", f.name)
			continue
		}
		if f.test || isTool(pkg) {
			continue
		}
		for _, spec := range f.ast.Imports {
			imp, ours := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), "vmscope")
			if !ours || imp != "" && imp[0] != '/' {
				continue
			}
			if imp = strings.TrimPrefix(imp, "/"); imp == "" {
				imp = "."
			}
			// Packages of one tree may build on each other: cmd/vmscope and its parts.
			sameTree := layer(imp) == self && strings.HasPrefix(imp, pkg+"/")
			if layer(imp) >= self && !sameTree || isTool(imp) && !strings.HasPrefix(layers[self], "cmd/") {
				t.Errorf("%s imports %s, which is not to its left", f.name, imp)
			}
		}
	}
}

// goFiles parses all Go files of the module, with comments.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	var out []goFile
	fset := token.NewFileSet()
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go"):
			return nil
		}
		src, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, name, src, parser.ParseComments)
		if err != nil {
			return err
		}
		out = append(out, goFile{name, strings.HasSuffix(name, "_test.go"), strings.Count(string(src), "\n"), f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
