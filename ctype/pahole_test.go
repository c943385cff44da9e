package ctype

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// declLine is a member as pahole and Print write it: text, offset, first bit of a bit-field,
// size.
var (
	declLine = regexp.MustCompile(`(?m)^\t+(.*?);\s*/\*\s*(\d+)(:\s*\d+)?\s+(\d+) \*/`)
	attr     = regexp.MustCompile(`\s*__attribute__\(\(.*\)\)`)
	spaces   = regexp.MustCompile(`\s+`)
)

// placesOf parts printed structs into one line a member, without the layout of
// the text.
func placesOf(out []byte) []string {
	var s []string
	for _, m := range declLine.FindAllSubmatch(out, -1) {
		text := attr.ReplaceAll(m[1], nil)
		text = spaces.ReplaceAll(text, nil)
		s = append(s, string(text)+" "+string(m[2])+string(spaces.ReplaceAll(m[3], nil))+" "+string(m[4]))
	}
	return s
}

func TestPrintAsPahole(t *testing.T) {
	if _, err := exec.LookPath("pahole"); err != nil {
		t.Skip("pahole is not installed")
	}
	blob := fixture(t, "")
	path := filepath.Join(t.TempDir(), "btf")
	if err := os.WriteFile(path, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	ts, err := Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"task_struct", "mm_struct", "module", "file", "inode", "dentry", "cred", "super_block", "page", "tcp_sock",
		"sk_buff", "net_device", "bpf_insn", "rq", "kmem_cache", "maple_node", "printk_info", "vm_area_struct", "xregs_state",
	} {
		want, err := exec.Command("pahole", "-C", name, path).Output()
		if err != nil {
			t.Errorf("pahole -C %s: %v", name, err)
			continue
		}
		typ, err := ts.Lookup("struct " + name)
		if err != nil {
			t.Error(err)
			continue
		}
		var got bytes.Buffer
		if err := typ.Print(&got); err != nil {
			t.Fatal(err)
		}
		w, g := placesOf(want), placesOf(got.Bytes())
		if len(w) < 2 {
			t.Fatalf("%s: pahole's output was not understood:\n%s", name, want)
		}
		if slices.Equal(w, g) {
			continue
		}
		for i := range max(len(w), len(g)) {
			if i >= len(w) || i >= len(g) || w[i] != g[i] {
				t.Errorf("%s: %d lines, pahole has %d; first difference at %d:\n got  %q\n want %q",
					name, len(g), len(w), i, g[min(i, len(g)):min(i+1, len(g))], w[min(i, len(w)):min(i+1, len(w))])
				break
			}
		}
	}
}
