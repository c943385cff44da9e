package ext4

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"vmscope/block"
)

// TestMillionInodes measures what the index of a file system with a million files takes. VMSCOPE_MILLION is the image of one,
// or "make": then one is made, which takes some minutes.
func TestMillionInodes(t *testing.T) {
	image := os.Getenv("VMSCOPE_MILLION")
	switch image {
	case "":
		t.Skip("VMSCOPE_MILLION is not set")
	case "make":
		tree := t.TempDir()
		for i := range 17_000 {
			dir := filepath.Join(tree, fmt.Sprintf("dir-%02d", i/1000), fmt.Sprintf("package-%03d", i%1000))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for k := range 60 {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%02d.txt", k)), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		image = mkfs(t, tree, "8G", "-t", "ext4", "-N", "1200000")
	}
	f, err := block.OpenFile(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := heap()
	start := time.Now()
	fs, err := Attach(f)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	attached := time.Since(start)
	if err := fs.CrawlAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	crawled := time.Since(start) - attached
	used := heap() - before
	named := 0
	for ino := uint32(1); ino <= fs.sb.Inodes; ino++ {
		if fs.parents.of(ino) != 0 {
			named++
		}
	}
	if named == 0 {
		t.Fatal("no names")
	}
	each := float64(used) / float64(named)
	t.Logf("%d inodes in use: %.1f MiB, %.2f bytes each; attached in %v, crawled in %v", named, float64(used)/(1<<20), each, attached, crawled)
	if named >= 1_000_000 && each > 10 {
		t.Errorf("%.2f bytes an inode, want at most 10", each)
	}
	runtime.KeepAlive(fs)
}

// heap is what is in use once all garbage is gone.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
