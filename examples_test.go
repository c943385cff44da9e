package vmscope_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestExamplesShort holds the examples to the length they are meant to show:
// the paper's module list in 28 lines, none over 60.
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
		most := 60
		if f == "examples/modules/main.go" {
			most = 28
		}
		if n := bytes.Count(b, []byte("\n")); n > most {
			t.Errorf("%s has %d lines, %d are the most", f, n, most)
		}
	}
}
