package dump

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// splitFiles writes a dump in three pieces, beside files that are none of it.
func splitFiles(t *testing.T) (dir string, ranges []mem.Range, want map[mem.PA][]byte) {
	t.Helper()
	pages, ranges, want := kdumpGuest()
	dir = t.TempDir()
	put := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := uint64(0)
	for i, end := range []uint64{10, 1003, 1013} {
		put(fmt.Sprint("piece", i), makeKdump(t, kdumpSpec{frames: 1013, pages: pages, codecs: allCodecs, split: true, first: at, end: end}))
		at = end
	}
	put("note.txt", []byte("not a dump"))
	put("empty", nil)
	put("another", makeKdump(t, kdumpSpec{frames: 1014, pages: pages, split: true, first: 0, end: 1013}))
	put("whole", makeKdump(t, kdumpSpec{frames: 1013, pages: pages}))
	if err := os.Symlink("piece0", filepath.Join(dir, "a-link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "piece1"), filepath.Join(dir, "a-copy")); err != nil {
		t.Fatal(err)
	}
	return dir, ranges, want
}

func TestKdumpSplit(t *testing.T) {
	dir, ranges, want := splitFiles(t)
	for i := range 3 {
		path := filepath.Join(dir, fmt.Sprint("piece", i))
		t.Run(filepath.Base(path), func(t *testing.T) {
			vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{Ranges: ranges, Bytes: want})
		})
	}
	m := open(t, filepath.Join(dir, "piece1"))
	defer m.Close()
	if l := m.(vm.Describer).Info().Layout; !strings.HasSuffix(l, "; 3 pieces of a split dump") {
		t.Errorf("layout %q", l)
	}
}

func TestKdumpSplitMissing(t *testing.T) {
	dir, _, want := splitFiles(t)
	for _, name := range []string{"piece1", "a-copy"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	m := open(t, filepath.Join(dir, "piece2"))
	defer m.Close()
	if l := m.(vm.Describer).Info().Layout; !strings.HasSuffix(l, "; 2 pieces of a split dump; without the piece of 0xa000 to 0x3eb000") {
		t.Errorf("layout %q", l)
	}
	same(t, m, 0, want[0][:10<<12])
	if n, err := m.ReadPhys(make([]byte, 8), 10<<12); n != 0 || !errors.Is(err, ErrExcluded) {
		t.Errorf("%d, %v", n, err)
	}
	// One that is damaged is told rather than left out.
	b, err := os.ReadFile(filepath.Join(dir, "piece0"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "piece0"), b[:len(b)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := Open(filepath.Join(dir, "piece2")); m != nil || !errors.Is(err, ErrTruncated) || !strings.Contains(err.Error(), `"piece0", another piece`) {
		t.Errorf("%v, %v", m, err)
	}
}
