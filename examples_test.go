package vmscope_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestExamplesShort holds the examples to the length they are meant to show:
// the paper's module list in 28 lines, its monitors of system calls and of a
// module's code in 40 and 50, its watch of a disk in 15 from main on, none over
// 60.
func TestExamplesShort(t *testing.T) {
	files, err := filepath.Glob("examples/*/main.go")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		most := map[string]int{"modules": 28, "syscalls": 40, "integrity": 50}[filepath.Base(filepath.Dir(f))]
		if most == 0 {
			most = 60
		}
		if f == "examples/events/main.go" {
			_, body, _ := bytes.Cut(b, []byte("func main() {"))
			if n := bytes.Count(body, []byte("\n")); n > 15 {
				t.Errorf("%s has %d lines from main on, 15 are the most", f, n)
			}
		}
		if n := bytes.Count(b, []byte("\n")); n > most {
			t.Errorf("%s has %d lines, %d are the most", f, n, most)
		}
	}
}
