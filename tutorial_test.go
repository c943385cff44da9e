package vmscope_test

import (
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// blocks gives the code blocks of one language in a Markdown text.
func blocks(text, language string) (out []string) {
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// flat is code without indentation.
func flat(code string) string {
	var out strings.Builder
	for line := range strings.Lines(code) {
		out.WriteString(strings.TrimSpace(line) + "\n")
	}
	return out.String()
}

func readDoc(t testing.TB, name string) string {
	t.Helper()
	b, err := fs.ReadFile(root, name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestDocCode: the Go code that the documents show is part of an example, which
// is built and run on real guests. The tutorial's test is run so too.
func TestDocCode(t *testing.T) {
	var programs []string
	files, err := fs.Glob(root, "examples/*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		programs = append(programs, flat(readDoc(t, f)))
	}
	for name, least := range map[string]int{"README.md": 1, "docs/tutorial.md": 5} {
		code := blocks(readDoc(t, name), "go")
		if len(code) < least {
			t.Errorf("%s has %d blocks of Go, want %d", name, len(code), least)
		}
		for _, b := range code {
			found := strings.Contains(b, "func Test")
			for _, p := range programs {
				// A document may leave out how an example gets its context and target.
				p = strings.NewReplacer("context.Background()", "ctx", "os.Args[1]", `"qemu:web1"`).Replace(p)
				b := strings.NewReplacer("context.Background()", "ctx", "os.Args[1]", `"qemu:web1"`).Replace(flat(b))
				found = found || strings.Contains(p, b)
			}
			if !found {
				t.Errorf("%s shows code that is in no example:\n%s", name, b)
			}
		}
	}
}

// TestDocLinks: links between documents lead somewhere.
func TestDocLinks(t *testing.T) {
	var docs []string
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		m, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, m...)
	}
	if len(docs) < 5 {
		t.Fatalf("only the documents %q", docs)
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, name := range docs {
		for _, m := range link.FindAllStringSubmatch(readDoc(t, name), -1) {
			to := path.Join(path.Dir(name), m[1])
			if _, err := fs.Stat(root, to); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
			}
		}
	}
}
