package procram

import (
	"os"
	"runtime"
	"slices"
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
				if s.Start != start+uint64(i)*8192 || s.Size != 4096 {
					t.Errorf("span %d is %#x + %#x", i, s.Start-start, s.Size)
					break
				}
			}
		})
	}
	wg.Wait()
}

// TestPagemap: both ways to ask for the touched pages agree.
func TestPagemap(t *testing.T) {
	const size = 4 << 20
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	if err := unix.Madvise(m, unix.MADV_NOHUGEPAGE); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 1, 2, 100, size/4096 - 1} {
		m[i*4096] = 1
	}
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	start := uint64(uintptr(unsafe.Pointer(&m[0])))
	want := []Span{{start, 3 * 4096}, {start + 100*4096, 4096}, {start + size - 4096, 4096}}
	for name, list := range map[string]func(f *os.File, start, end uint64) ([]Span, error){"read": readPagemap, "scan": scanPagemap} {
		got, err := list(f, start, start+size)
		if err != nil && name == "scan" {
			t.Logf("PAGEMAP_SCAN needs Linux 6.7: %v", err)
			continue
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %#x, %v; want %#x", name, got, err, want)
		}
	}
}

// BenchmarkReadPagemap is what listing touched pages costs on a kernel without
// PAGEMAP_SCAN, for 256 MiB.
func BenchmarkReadPagemap(b *testing.B) {
	const size = 256 << 20
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(m)
	m[size/2] = 1
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	start := uint64(uintptr(unsafe.Pointer(&m[0])))
	for b.Loop() {
		if _, err := readPagemap(f, start, start+size); err != nil {
			b.Fatal(err)
		}
	}
}
