package qemu

import (
	"os"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestScanPagemapMoves asks for touched pages while stacks move, as they do
// when the collector runs: what the kernel writes must land where it is read.
func TestScanPagemapMoves(t *testing.T) {
	const size = 4 << 20
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	if err := unix.Madvise(m, unix.MADV_NOHUGEPAGE); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < size; i += 8192 { // every second page
		m[i] = 1
	}
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	start := uint64(uintptr(unsafe.Pointer(&m[0])))
	if _, err := scanPagemap(f, start, start+size); err != nil {
		t.Skipf("no PAGEMAP_SCAN here: %v", err)
	}
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			runtime.GC()
			spans, err := scanPagemap(f, start, start+size)
			if err != nil || len(spans) != size/8192 {
				t.Errorf("%d spans, %v; want %d", len(spans), err, size/8192)
			}
			for i, s := range spans {
				if s.start != start+uint64(i)*8192 || s.size != 4096 {
					t.Errorf("span %d is %#x + %#x", i, s.start-start, s.size)
					break
				}
			}
		})
	}
	wg.Wait()
}
