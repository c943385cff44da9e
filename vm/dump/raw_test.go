package dump

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// memFile makes a sparse file in memory (tmpfs), or skips.
func memFile(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.CreateTemp("/dev/shm", "vmscope-test-")
	if err != nil {
		t.Skipf("no tmpfs to test with: %v", err)
	}
	t.Cleanup(func() { f.Close(); os.Remove(f.Name()) })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// blocks is how much memory a file takes, in units of 512 bytes.
func blocks(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks
}

func TestRawContract(t *testing.T) {
	data := pattern(3, 64<<10)
	disk := file(t, append(make([]byte, 1<<20), data...))
	shm := memFile(t, 6<<30)
	for _, off := range []int64{1 << 20, 3 << 30} {
		if _, err := shm.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		path string
		opts []Option
		want vmtest.Want
	}{
		{"disk", disk, nil, vmtest.Want{Bytes: map[mem.PA][]byte{1 << 20: data}, Ranges: []mem.Range{{Size: 1<<20 + 64<<10}}}},
		{"told", disk, []Option{Layout("virt")}, vmtest.Want{Bytes: map[mem.PA][]byte{1<<30 + 1<<20: data}}},
		{"tmpfs q35", shm.Name(), []Option{Layout("q35")}, vmtest.Want{
			Bytes:  map[mem.PA][]byte{1 << 20: data, 5 << 30: data, 2<<30 - 4096: make([]byte, 4096)},
			Ranges: []mem.Range{{Size: 2 << 30}, {Start: 4 << 30, Size: 4 << 30}},
		}},
		{"tmpfs pc", shm.Name(), []Option{Layout("pc")}, vmtest.Want{
			Bytes:  map[mem.PA][]byte{1 << 20: data, 4 << 30: data},
			Ranges: []mem.Range{{Size: 3 << 30}, {Start: 4 << 30, Size: 3 << 30}},
		}},
		{"tmpfs not told", shm.Name(), nil, vmtest.Want{Bytes: map[mem.PA][]byte{1 << 20: data}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, c.path, c.opts...) }, c.want)
		})
	}
	if _, err := Open(disk, Layout("nonsense")); err == nil || !strings.Contains(err.Error(), "q35") {
		t.Errorf("unknown layout: %v", err)
	}
}

// TestReadingHolesAllocatesNothing reads all of a sparse file of RAM in memory.
func TestReadingHolesAllocatesNothing(t *testing.T) {
	f := memFile(t, 256<<20)
	data := pattern(3, 64<<10)
	if _, err := f.WriteAt(data, 100<<20); err != nil {
		t.Fatal(err)
	}
	before := blocks(t, f.Name())
	m := open(t, f.Name(), Layout("flat"))
	defer m.Close()
	buf := make([]byte, 1<<20)
	for pa := mem.PA(0); pa < 256<<20; pa += mem.PA(len(buf)) {
		if n, err := m.ReadPhys(buf, pa); n != len(buf) || err != nil {
			t.Fatal(n, err)
		}
	}
	for pa := mem.PA(0); pa < 256<<20; pa += 1 << 16 {
		if _, err := mem.Load64(m, pa); err != nil {
			t.Fatal(err)
		}
	}
	if after := blocks(t, f.Name()); after != before {
		t.Errorf("reading allocated %d KiB", (after-before)/2)
	}
	// What the guest writes later is seen, through the hole and, once it is
	// known, through the mapping.
	if _, err := f.WriteAt([]byte("late data"), 7<<20); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got := make([]byte, 9)
		if _, err := m.ReadPhys(got, 7<<20); err != nil || !bytes.Equal(got, []byte("late data")) {
			t.Errorf("%q, %v", got, err)
		}
	}
	x, err := mem.Extents(m)
	if err != nil || len(x) != 2 || x[0].Start > 7<<20 || x[1].Start != 100<<20 {
		t.Errorf("extents %#x, %v", x, err)
	}
}

// TestHolesAnywhere: holes are not touched on any file system, for what lies
// under it may be memory (an overlay over tmpfs).
func TestHolesAnywhere(t *testing.T) {
	path := file(t, pattern(1, 4096))
	if err := os.Truncate(path, 16<<20); err != nil {
		t.Fatal(err)
	}
	m := open(t, path, Layout("flat"))
	defer m.Close()
	if x, err := mem.Extents(m); err != nil || x[len(x)-1].End() > 8<<20 {
		t.Skipf("the file system tells no holes: %#x, %v", x, err)
	}
	if r := mem.RAMOf(m); r.At(0, 8) == nil || r.At(8<<20, 8) != nil {
		t.Error("data must be touched, a hole must not")
	}
}

// TestVanishingFile cuts a file short under the mapping: reads beyond its end
// fail with an error, the process lives, and the rest is still read.
func TestVanishingFile(t *testing.T) {
	for _, c := range []struct {
		name string
		path func(t *testing.T) string
	}{
		{"disk", func(t *testing.T) string { return file(t, pattern(1, 1<<20)) }},
		{"tmpfs", func(t *testing.T) string {
			f := memFile(t, 1<<20)
			if _, err := f.WriteAt(pattern(1, 1<<20), 0); err != nil {
				t.Fatal(err)
			}
			return f.Name()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.path(t)
			m := open(t, path, Layout("flat"))
			defer m.Close()
			if err := os.Truncate(path, 512<<10); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 64<<10)
			n, err := m.ReadPhys(buf, 512<<10-8192)
			var fault *mem.FaultError
			if n != 8192 || !errors.As(err, &fault) || fault.Addr != 512<<10 || !errors.Is(err, mem.ErrUnreachable) {
				t.Errorf("read over the new end: %d, %v", n, err)
			}
			if !bytes.Equal(buf[:8192], pattern(1, 1<<20)[512<<10-8192:512<<10]) {
				t.Error("the bytes before the end are wrong")
			}
			if _, err := mem.Load64(m, 1<<20-8); !errors.Is(err, mem.ErrUnreachable) {
				t.Errorf("load behind the new end: %v", err)
			}
			if n, err := m.ReadPhys(buf, 0); n != len(buf) || err != nil {
				t.Errorf("read before the new end: %d, %v", n, err)
			}
		})
	}
}

func TestLayouts(t *testing.T) {
	const g, m = uint64(1 << 30), uint64(1 << 20)
	r := func(x ...uint64) []mem.Range {
		var out []mem.Range
		for i := 0; i < len(x); i += 2 {
			out = append(out, mem.Range{Start: mem.PA(x[i]), Size: x[i+1]})
		}
		return out
	}
	for _, c := range []struct {
		kind string
		ram  uint64
		want []mem.Range
	}{
		{"q35", 2815 * m, r(0, 2815*m)},
		{"q35", 2816 * m, r(0, 2*g, 4*g, 768*m)},
		{"q35", 8 * g, r(0, 2*g, 4*g, 6*g)},
		{"pc", 3583 * m, r(0, 3583*m)},
		{"pc", 3584 * m, r(0, 3*g, 4*g, 512*m)},
		{"virt", 8 * g, r(g, 8*g)},
		{"riscv-virt", g, r(2*g, g)},
		{"microvm", 4 * g, r(0, 3*g, 4*g, g)},
		{"low=1G", 2 * g, r(0, g, 4*g, g)},
		{"low=3328M", 2 * g, r(0, 2*g)},
	} {
		l, err := vm.Layouts(c.kind, c.ram)
		if err != nil || len(l) != 1 || len(l[0].Ranges) != len(c.want) {
			t.Fatalf("%s, %d MiB: %v, %v", c.kind, c.ram/m, l, err)
		}
		for i := range c.want {
			if l[0].Ranges[i] != c.want[i] {
				t.Errorf("%s, %d MiB: %#x, want %#x", c.kind, c.ram/m, l[0].Ranges, c.want)
			}
		}
	}
	for _, bad := range []string{"low=", "low=0", "low=5G", "low=1", "q36", "low=99999999999999999999G"} {
		if l, err := vm.Layouts(bad, g); err == nil {
			t.Errorf("layout %q: %v", bad, l)
		}
	}
}
