package fslab

import (
	"path/filepath"
	"testing"

	"vmscope/internal/fsoracle"
)

// TestSets holds the sets to what QEMU and the guests can bear, and to their recordings.
func TestSets(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Sets() {
		if seen[s.Name] || len(s.Name) > 24 {
			t.Errorf("set %q: the name is there already, or too long for a disk", s.Name)
		}
		if serial := s.Name[:min(len(s.Name), 20)]; serial != s.Name && seen[serial] {
			t.Errorf("set %q: the guest would know two disks as %q", s.Name, serial)
		}
		if s.After != "" && !seen[s.After] {
			t.Errorf("set %q comes after %q, which is not before it", s.Name, s.After)
		}
		seen[s.Name] = true
		if s.About == "" {
			t.Errorf("set %q says nothing about itself", s.Name)
		}
		if found, _ := filepath.Glob(filepath.Join("../../../fsinfer/ext4/testdata/streams", s.Name+fsoracle.Extension)); len(found) == 0 {
			t.Errorf("set %q has no recording", s.Name)
		}
	}
	n := 0
	for _, g := range ByKernel(Sets()) {
		n += len(g.Sets)
	}
	if n != len(Sets()) || len(FreshSets()) != n-4 {
		t.Errorf("%d sets of %d by kernel, %d fresh", n, len(Sets()), len(FreshSets()))
	}
}
