package mem_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// fill gives every byte a value that tells its page and place.
func fill(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>12)*31 ^ seed
	}
	return b
}

// wantFault checks an error's class and first bad address.
func wantFault(t *testing.T, err error, addr uint64, class error) {
	t.Helper()
	var f *mem.FaultError
	if !errors.As(err, &f) || f.Addr != addr || !errors.Is(err, class) {
		t.Errorf("%v (%+v), want %v at %#x", err, f, class, addr)
	}
}

func TestNewRAM(t *testing.T) {
	page := make([]byte, mem.PageSize)
	for name, segs := range map[string][]mem.Segment{
		"empty":      {{PA: 0}},
		"unaligned":  {{PA: 1, Data: page}},
		"overlap":    {{PA: 0x1000, Data: page}, {PA: 0, Data: make([]byte, 0x1001)}},
		"wraps":      {{PA: ^mem.PA(0xfff), Data: make([]byte, 0x2000)}},
		"small hole": {{PA: 0, Data: make([]byte, 0x2000), Holes: mem.NewHoles(0x1000, nil)}},
	} {
		if r, err := mem.NewRAM(segs...); err == nil || r != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	r, err := mem.NewRAM()
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.ReadPhys(page, 0)
	wantFault(t, err, 0, mem.ErrNoRAM)
}

func TestRAMRead(t *testing.T) {
	lo, hi := fill(0x3000, 1), fill(0x2800, 2) // the last page is half
	next := fill(0x1000, 3)
	r, err := mem.NewRAM(mem.Segment{PA: 0x100000, Data: hi}, mem.Segment{PA: 0x1000, Data: lo}, mem.Segment{PA: 0x4000, Data: next})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pa, n uint64
		ok    uint64 // bytes that can be read
		want  []byte
	}{
		{0x1000, 8, 8, lo[:8]},
		{0x3ffc, 8, 8, append(bytes.Clone(lo[0x2ffc:]), next[:4]...)}, // neighbours
		{0x4ffc, 8, 4, next[0xffc:]},
		{0xfff, 1, 0, nil},
		{0, 0, 0, nil},
		{0x1000, 0x4000, 0x4000, append(bytes.Clone(lo), next...)},
		{0x1027f8, 8, 8, hi[0x27f8:]},
		{0x1027fc, 8, 4, hi[0x27fc:]},
		{^uint64(0), 2, 0, nil},
	} {
		p := make([]byte, c.n)
		n, err := r.ReadPhys(p, mem.PA(c.pa))
		if uint64(n) != c.ok || !bytes.Equal(p[:n], c.want) {
			t.Errorf("%#x+%#x: %d bytes, %v", c.pa, c.n, n, err)
		}
		if c.ok < c.n {
			wantFault(t, err, c.pa+c.ok, mem.ErrNoRAM)
		} else if err != nil {
			t.Errorf("%#x+%#x: %v", c.pa, c.n, err)
		}
	}
	if got := fmt.Sprintf("%x", r.Ranges()); got != "[{1000 3000} {4000 1000} {100000 2800}]" {
		t.Error(got)
	}
	if r.At(0x1ff9, 8) != nil || r.At(0x1ff8, 8) == nil || r.At(0x1027fc, 8) != nil || r.At(0x5000, 1) != nil {
		t.Error("At")
	}
}

// Word and the Window must agree with the bytes wherever they answer.
func TestWords(t *testing.T) {
	const seg = 64 * mem.PageSize
	both := fill(3*seg, 4)
	for name, segs := range map[string][]mem.Segment{
		"one":          {{PA: 0x10000, Data: both}},
		"PC":           {{PA: 0, Data: both[:seg]}, {PA: 2 << 20, Data: both[seg:]}},
		"PC, odd end":  {{PA: 0, Data: both[:seg]}, {PA: 2 << 20, Data: both[seg : seg+0x1234]}},
		"not adjacent": {{PA: 0, Data: both[:seg]}, {PA: 2 << 20, Data: both[2*seg:]}},
		"capped":       {{PA: 0, Data: both[:seg:seg]}, {PA: 2 << 20, Data: both[seg:]}},
		"split page":   {{PA: 0, Data: both[:0x3000]}, {PA: 2 << 20, Data: both[0x3000:]}},
		"three":        {{PA: 0, Data: both[:seg]}, {PA: 1 << 20, Data: both[seg : 2*seg]}, {PA: 2 << 20, Data: both[2*seg:]}},
	} {
		for _, holes := range []bool{false, true} {
			if holes {
				for i := range segs {
					s := &segs[i]
					s.Holes = mem.NewHoles(uint64(len(s.Data)), func(p []byte, off int64) (int, error) { return len(p), nil })
					s.Holes.MarkData(0x1000, 0x1000)
				}
			}
			r, err := mem.NewRAM(segs...)
			if err != nil {
				t.Fatal(name, err)
			}
			if holes {
				for i := range segs {
					segs[i].Holes.MarkData(0x5000, 1<<40) // after the maps moved, and far too long
				}
			}
			w, words, window := r.Window(), 0, 0
			var page []byte
			for pa := mem.PA(0); pa < 3<<20; pa += 8 {
				if pa%mem.PageSize == 0 {
					page = make([]byte, mem.PageSize)
					n, _ := r.ReadPhys(page, pa)
					page = page[:n]
				}
				p := page[min(int(pa%mem.PageSize), len(page)):]
				if v, ok := r.Word(pa); ok {
					words++
					if len(p) < 8 || binary.LittleEndian.Uint64(p) != v {
						t.Fatalf("%s: Word(%#x) = %#x", name, uint64(pa), v)
					}
				}
				if i := w.Index(pa); w.Has(i) {
					window++
					if v, ok := r.Word(pa); !ok || v != w.Load(i) {
						t.Fatalf("%s: window at %#x", name, uint64(pa))
					}
				}
			}
			total := 0
			for _, s := range segs {
				n := len(s.Data) / 8
				if holes {
					n -= min(n, 512) + min(max(n-2*512, 0), 3*512) // pages 0, 2, 3, 4
				}
				total += n
			}
			if words != total {
				t.Errorf("%s, holes %v: %d words, want %d", name, holes, words, total)
			}
			if strings.HasPrefix(name, "PC") && window != words {
				t.Errorf("%s, holes %v: %d words in the window, want %d", name, holes, window, words)
			}
			if window == 0 || window > words {
				t.Errorf("%s, holes %v: %d words in the window", name, holes, window)
			}
			if _, ok := r.Word(0x11004); ok {
				t.Errorf("%s: unaligned word", name)
			}
		}
	}
}

func TestMarkData(t *testing.T) {
	const pages = 200
	for _, c := range []struct{ off, n uint64 }{
		{0, 0}, {0, 1}, {4095, 1}, {4095, 2}, {4096, 4096}, {63 * 4096, 4096}, {63 * 4096, 4097}, {64 * 4096, 64 * 4096},
		{0, pages * 4096}, {62*4096 + 1, 140 * 4096}, {199*4096 + 4095, 1}, {199 * 4096, 1 << 60}, {pages * 4096, 1}, {1 << 62, 5}, {5, ^uint64(0) - 5},
	} {
		hole := map[int64]bool{}
		h := mem.NewHoles(pages*4096, func(p []byte, off int64) (int, error) {
			for i := range p {
				hole[(off+int64(i))&^4095] = true
			}
			return len(p), nil
		})
		h.MarkData(c.off, c.n)
		r, err := mem.NewRAM(mem.Segment{Data: make([]byte, pages*4096), Holes: h})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadPhys(make([]byte, pages*4096), 0); err != nil {
			t.Fatal(err)
		}
		for p := uint64(0); p < pages; p++ {
			want := c.n == 0 || (p+1)*4096 <= c.off || p*4096 >= c.off+c.n
			if hole[int64(p*4096)] != want {
				t.Errorf("MarkData(%#x, %#x): page %d is a hole: %v", c.off, c.n, p, !want)
			}
		}
	}
}

// A hole that turns out to hold something is touched directly from then on.
func TestHoleFills(t *testing.T) {
	data, asked := make([]byte, 0x2000), 0
	h := mem.NewHoles(0x2000, func(p []byte, off int64) (int, error) {
		asked++
		return copy(p, data[off:]), nil
	})
	r, err := mem.NewRAM(mem.Segment{Data: data, Holes: h})
	if err != nil {
		t.Fatal(err)
	}
	var p [16]byte
	for i, want := range []int{1, 2, 3, 3} {
		if i == 2 {
			data[0x1008] = 7
		}
		if _, err := r.ReadPhys(p[:], 0x1000); err != nil || asked != want {
			t.Fatalf("read %d: asked %d times, %v", i, asked, err)
		}
	}
}

func TestHoleReadFails(t *testing.T) {
	h := mem.NewHoles(0x2000, func(p []byte, off int64) (int, error) { return 5, io.ErrUnexpectedEOF })
	r, err := mem.NewRAM(mem.Segment{PA: 0x1000, Data: make([]byte, 0x2000), Holes: h})
	if err != nil {
		t.Fatal(err)
	}
	n, err := r.ReadPhys(make([]byte, 8), 0x1010)
	if n != 5 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d, %v", n, err)
	}
	wantFault(t, err, 0x1015, mem.ErrUnreachable)
}

// mapFile maps a new file of the given size in dir, shared.
func mapFile(t *testing.T, dir string, size int) (*os.File, []byte) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "ram"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(data) })
	return f, data
}

func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

// Reading the holes of a guest's RAM must not make the host allocate them.
func TestHolesStayHoles(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "vmscope-test-")
	if err != nil {
		t.Skip("no tmpfs at /dev/shm:", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const size = 8 << 20
	f, data := mapFile(t, dir, size)
	if _, err := f.WriteAt([]byte("data"), 0x10000); err != nil {
		t.Fatal(err)
	}
	before := blocks(t, f)
	h := mem.NewHoles(size, f.ReadAt)
	r, err := mem.NewRAM(mem.Segment{Data: data, Holes: h})
	if err != nil {
		t.Fatal(err)
	}
	s := mem.NewSpace("physical", r, mem.Identity{})
	all := make([]byte, size)
	if n, err := r.ReadPhys(all, 0); n != size || err != nil || string(all[0x10000:0x10004]) != "data" {
		t.Fatal(n, err)
	}
	for va := mem.VA(0); va < size; va += 4096 {
		if v, err := s.Uint64(va + 8); v != 0 || err != nil {
			t.Fatal(v, err)
		}
		if _, err := s.CString(va+100, 10); err != nil {
			t.Fatal(err)
		}
	}
	if after := blocks(t, f); after != before {
		t.Errorf("reading made the file grow from %d to %d blocks", before, after)
	}
}

func TestReadDoesNotAllocate(t *testing.T) {
	r, err := mem.NewRAM(mem.Segment{Data: fill(0x4000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	s := mem.NewSpace("physical", r, mem.Identity{})
	p := make([]byte, 4096)
	for name, f := range map[string]func(){
		"Uint64":     func() { s.Uint64(0x10) },
		"unaligned":  func() { s.Uint64(0x13) },
		"Uint32":     func() { s.Uint32(0x10) },
		"Read":       func() { s.Read(p, 0x1000) },
		"Read cross": func() { s.Read(p, 0x1800) },
		"ReadPhys":   func() { r.ReadPhys(p, 0x1800) },
		"Load64":     func() { r.Load64(0x10) },
	} {
		if n := testing.AllocsPerRun(100, f); n >= 1 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// Every segment of many is found, and nothing between them.
func TestManySegments(t *testing.T) {
	for n := range 40 {
		var segs []mem.Segment
		for i := range n {
			segs = append(segs, mem.Segment{PA: mem.PA(i+1) * 0x2000, Data: fill(0x1000, byte(i))})
		}
		r, err := mem.NewRAM(segs...)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n + 2 {
			var b [1]byte
			pa := mem.PA(i) * 0x2000
			_, err := r.ReadPhys(b[:], pa+0xfff)
			if in := 1 <= i && i <= n; in != (err == nil) || in && b[0] != segs[i-1].Data[0xfff] {
				t.Errorf("segment %d of %d: %#x, %v", i, n, b, err)
			}
			if _, err := r.ReadPhys(b[:], pa+0x1000); !errors.Is(err, mem.ErrNoRAM) {
				t.Errorf("behind segment %d of %d: %v", i, n, err)
			}
		}
	}
}
