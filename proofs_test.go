package vmscope_test

import (
	"go/ast"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmscope/vm/proc"
)

// testNames lists all test functions, as the README's table names them, and those of them that call vmtest.Run.
func testNames(t *testing.T) (all map[string]bool, contracts map[string]bool) {
	t.Helper()
	all, contracts = map[string]bool{}, map[string]bool{}
	for _, f := range goFiles(t) {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !f.test || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Test") {
				continue
			}
			name := fn.Name.Name
			if pkg := path.Dir(f.name); pkg != "." {
				name = pkg + "." + name
			}
			all[name] = true
			ast.Inspect(fn, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Run" {
					if x, ok := s.X.(*ast.Ident); ok && x.Name == "vmtest" {
						contracts[name] = true
					}
				}
				return true
			})
		}
	}
	if len(all) < 100 || len(contracts) < 10 {
		t.Fatalf("only %d tests, %d of them contracts", len(all), len(contracts))
	}
	return all, contracts
}

// testName is a test as documents name it: TestX, or directory/of/package.TestX.
var testName = regexp.MustCompile("`((?:[a-z0-9_]+/)*[a-z0-9_]+\\.)?(Test[A-Z]\\w*)`")

// TestDocTests: the tests that documents name are there. One without its package may be in any.
func TestDocTests(t *testing.T) {
	all, _ := testNames(t)
	somewhere := map[string]bool{}
	for name := range all {
		somewhere[name[strings.LastIndexByte(name, '.')+1:]] = true
	}
	found := 0
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/checks/*.md"} {
		docs, err := fs.Glob(root, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range docs {
			for _, m := range testName.FindAllStringSubmatch(readDoc(t, doc), -1) {
				found++
				if m[1] == "" && !somewhere[m[2]] || m[1] != "" && !all[m[1]+m[2]] {
					t.Errorf("%s names the test %s%s, which is not there", doc, m[1], m[2])
				}
			}
		}
	}
	if found < 50 {
		t.Errorf("documents name only %d tests", found)
	}
}

// TestProofs holds the README's table of what vmscope works on to the code: its tests are there, those without a package in the
// root; and each run of the contract of machines, each driver, and each scheme of targets is in it.
func TestProofs(t *testing.T) {
	all, contracts := testNames(t)
	_, text, ok := strings.Cut(readDoc(t, "README.md"), "\n## What it works on\n")
	if !ok {
		t.Fatal("no table")
	}
	text, _, _ = strings.Cut(text, "\n## ")
	proofs := []string{"guest", "tool", "layout"}
	table, named := "", map[string]bool{}
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 6 || strings.HasPrefix(line, "|---") || strings.TrimSpace(cells[4]) == "proof" {
			continue
		}
		table += line
		tests := testName.FindAllStringSubmatch(cells[3], -1)
		if len(tests) == 0 {
			t.Errorf("no test proves: %s", line)
		}
		for _, m := range tests {
			named[m[1]+m[2]] = true
			if !all[m[1]+m[2]] {
				t.Errorf("no test %s%s, which is to prove: %s", m[1], m[2], line)
			}
		}
		for _, p := range strings.Split(cells[4], ",") {
			if !slices.Contains(proofs, strings.TrimSpace(p)) {
				t.Errorf("%q is none of %q: %s", p, proofs, line)
			}
		}
	}
	drivers, err := fs.ReadDir(root, "vm")
	if err != nil {
		t.Fatal(err)
	}
	runs := slices.Sorted(maps.Keys(contracts))
	for _, d := range drivers {
		if d.IsDir() && d.Name() != "vmtest" && !slices.ContainsFunc(runs, func(name string) bool { return strings.HasPrefix(name, "vm/"+d.Name()+".") }) {
			t.Errorf("vm/%s: no test has its machines pass vm/vmtest: see CONTRIBUTING.md", d.Name())
		}
	}
	for _, name := range runs {
		if !named[name] {
			t.Errorf("%s has a machine pass the contract, and the README's table does not name it", name)
		}
	}
	for _, scheme := range schemes(t) {
		if !strings.Contains(table, "`"+scheme+":") {
			t.Errorf("no line for targets %s:", scheme)
		}
	}
	for _, vmm := range proc.Kinds() {
		if !strings.Contains(table, vmm) {
			t.Errorf("no line for %s", vmm)
		}
	}
}

// schemes are those that open.go compares a target's with.
func schemes(t *testing.T) (out []string) {
	t.Helper()
	for _, f := range goFiles(t) {
		if f.name != "open.go" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			b, ok := n.(*ast.BinaryExpr)
			if !ok || b.Op != token.EQL {
				return true
			}
			x, ok := b.X.(*ast.Ident)
			y, literal := b.Y.(*ast.BasicLit)
			if ok && literal && x.Name == "scheme" {
				s, err := strconv.Unquote(y.Value)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, s)
			}
			return true
		})
	}
	if len(out) < 5 {
		t.Fatalf("only the schemes %q", out)
	}
	return out
}
