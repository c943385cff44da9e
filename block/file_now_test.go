package block

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// What was just written is in the page cache; what lies beyond the file is not.
func TestReadNow(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	want := bytes.Repeat([]byte("vmscope!"), 1<<10)
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 4096)
	if !f.ReadNow(got, 512) {
		t.Skip("this file system has nothing in the page cache, or knows no RWF_NOWAIT")
	}
	if !bytes.Equal(got, want[512:512+4096]) {
		t.Error("read something else")
	}
	for _, off := range []int64{-1, int64(len(want)) - 4095, int64(len(want)) + 1} {
		if f.ReadNow(got, off) {
			t.Errorf("read 4096 bytes at %d", off)
		}
	}
}
