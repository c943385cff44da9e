package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

var allCodecs = []codec{stored, byZlib, byLZO, bySnappy, byZstd}

// kdumpGuest is RAM in two places with zeros in it, and its bytes.
func kdumpGuest() (map[uint64][]byte, []mem.Range, map[mem.PA][]byte) {
	low, high := pattern(1, 24<<12), pattern(2, 9<<12)
	clear(low[3<<12 : 9<<12])
	pages := make(map[uint64][]byte)
	for i := range 24 {
		pages[uint64(i)] = low[i<<12 : (i+1)<<12]
	}
	for i := range 9 {
		pages[uint64(1000+i)] = high[i<<12 : (i+1)<<12]
	}
	return pages, []mem.Range{{Start: 0, Size: 24 << 12}, {Start: 1000 << 12, Size: 9 << 12}}, map[mem.PA][]byte{0: low, 1000 << 12: high}
}

// TestKdumpContract: dumps by the documented layout, compressed in each way and
// all at once, flattened too.
func TestKdumpContract(t *testing.T) {
	pages, ranges, want := kdumpGuest()
	regs := encodeNotes(CPUNotes([]vm.Registers{{CR3: 0x1000, Valid: true}}))
	for name, codecs := range map[string][]codec{"stored": nil, "zlib": {byZlib}, "lzo": {byLZO}, "snappy": {bySnappy}, "zstd": {byZstd}, "all": allCodecs} {
		b := makeKdump(t, kdumpSpec{frames: 1013, pages: pages, codecs: codecs, notes: regs})
		for form, b := range map[string][]byte{"": b, " flattened": flatten(b, 5000)} {
			t.Run(name+form, func(t *testing.T) {
				path := file(t, b)
				vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{Ranges: ranges, Bytes: want, CPUs: 1})
				m := open(t, path)
				defer m.Close()
				x, err := mem.Extents(m)
				if err != nil || !slices.Equal(x, []mem.Range{{Start: 0, Size: 3 << 12}, {Start: 9 << 12, Size: 15 << 12}, {Start: 1000 << 12, Size: 9 << 12}}) {
					t.Errorf("extents %#x, %v", x, err)
				}
			})
		}
	}
}

func TestKdumpLeftOut(t *testing.T) {
	pages, _, _ := kdumpGuest()
	pages[5] = nil
	for level, zero := range map[uint32]bool{1: true, 0: false, 31: false} {
		m := open(t, file(t, makeKdump(t, kdumpSpec{frames: 2000, pages: pages, codecs: allCodecs, level: level})))
		defer m.Close()
		p := bytes.Repeat([]byte{1}, 4096)
		n, err := m.ReadPhys(p, 5<<12)
		if zero && (n != 4096 || err != nil || !isZero(p)) {
			t.Errorf("level %d: %d, %v", level, n, err)
		}
		if !zero && (n != 0 || !errors.Is(err, ErrExcluded) || !errors.Is(err, mem.ErrUnreachable)) {
			t.Errorf("level %d: %d, %v", level, n, err)
		}
		if l := m.(vm.Describer).Info().Layout; !strings.Contains(l, fmt.Sprintf("1 of 33 pages left out (level %d)", level)) {
			t.Errorf("layout %q", l)
		}
	}
}

// TestKdumpBroken: what is damaged is told where it is, and only there.
func TestKdumpBroken(t *testing.T) {
	pages, _, _ := kdumpGuest()
	good := makeKdump(t, kdumpSpec{frames: 1013, pages: pages, codecs: []codec{byZlib}})
	le := binary.LittleEndian
	desc := 2*4096 + 2*4096
	damage := func(off int, b ...byte) []byte {
		x := bytes.Clone(good)
		copy(x[off:], b)
		return x
	}
	at := int(le.Uint64(good[desc:]))
	for name, c := range map[string]struct {
		file []byte
		word string
	}{
		"a page":             {damage(at+20, 0xff, 0xff, 0xff, 0xff), fmt.Sprintf("offset %#x", at)},
		"its compression":    {damage(desc+12, 3), fmt.Sprintf("descriptor at offset %#x: compression", desc)},
		"its size":           {damage(desc+8, 0xff, 0xff), fmt.Sprintf("descriptor at offset %#x: a page of", desc)},
		"its place":          {damage(desc, 0, 0, 0, 0, 0, 1), "unexpected EOF"},
		"another page there": {damage(desc+12, 0x20), "offset"},
	} {
		m := open(t, file(t, c.file))
		defer m.Close()
		var p [8]byte
		if n, err := m.ReadPhys(p[:], 0); n != 0 || !errors.Is(err, mem.ErrUnreachable) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		same(t, m, 1<<12, pages[1])
	}
	for name, c := range map[string]struct {
		file []byte
		is   error
		word string
	}{
		"headers only":      {good[:5000], ErrTruncated, "bitmaps end at byte"},
		"no descriptors":    {good[:desc+100], ErrTruncated, "33 page descriptors end at byte"},
		"no last page":      {good[:len(good)-1], ErrTruncated, "pages end at byte"},
		"big endian":        {damage(8, 0, 0, 0, 6), ErrFormat, "big-endian"},
		"32 bits":           {damage(428, 1, 0, 0, 0), ErrFormat, "32-bit"},
		"no sub-header":     {damage(432, 0), ErrFormat, "sub-header"},
		"no frames":         {damage(4096+96, 0, 0), ErrFormat, "page frames"},
		"many frames":       {damage(4096+96+7, 1), ErrFormat, "page frames"},
		"a short bitmap":    {damage(4096+96+2, 1), ErrFormat, "bitmaps of"},
		"no memory":         {damage(8192, make([]byte, 4096)...), ErrFormat, "without memory"},
		"a split reversed":  {damage(4096+12, 1, 0, 0, 0), nil, ""},
		"incomplete":        {damage(424, 8), ErrTruncated, "ran out of room"},
		"flattened, cut":    {flatten(good, 5000)[:20000], ErrTruncated, "flattened dump: the record at offset"},
		"flattened, no end": {flatten(good, 5000)[:len(flatten(good, 5000))-16], ErrTruncated, "no end mark"},
		"flattened ELF":     {flatten([]byte("\x7fELF and more"), 100), ErrFormat, "makedumpfile -R"},
		"flattened, later":  {append(append([]byte(flatMagic), make([]byte, 18)...), 2), ErrFormat, "version 2"},
	} {
		m, err := Open(file(t, c.file))
		if c.is == nil {
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			m.Close()
			continue
		}
		if m != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	m := open(t, file(t, good[:len(good)-1]), AllowTruncated())
	defer m.Close()
	same(t, m, 0, pages[0])
}

// TestFlatOrder checks which of records that overlap is read.
func TestFlatOrder(t *testing.T) {
	got := inOrder([]flatRun{{0, 10, 100}, {5, 10, 200}, {2, 4, 300}, {30, 5, 400}, {12, 1, 500}, {33, 9, 600}})
	want := []flatRun{{0, 2, 100}, {2, 4, 300}, {6, 6, 201}, {12, 1, 500}, {13, 2, 208}, {30, 3, 400}, {33, 9, 600}}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestExtentsBound(t *testing.T) {
	var l []mem.Range
	for _, r := range []mem.Range{{Start: 0, Size: 4096}, {Start: 4096, Size: 4096}, {Start: 1 << 20, Size: 4096}, {Start: 1 << 30, Size: 8192}} {
		l = addExtent(l, r, 2)
	}
	if want := []mem.Range{{Start: 0, Size: 8192}, {Start: 1 << 20, Size: 1<<30 - 1<<20 + 8192}}; !slices.Equal(l, want) {
		t.Errorf("%#x", l)
	}
}

// fuzzOpen opens a file that a fuzzer wrote and reads of it what it claims to
// have: it must not fail other than with an error.
func fuzzOpen(t *testing.T, in []byte) {
	fd, err := unix.MemfdCreate("dump", unix.MFD_CLOEXEC)
	if err != nil {
		t.Skip(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, in); err != nil {
		t.Fatal(err)
	}
	for _, o := range [][]Option{nil, {AllowTruncated()}} {
		m, err := Open(fmt.Sprintf("/proc/self/fd/%d", fd), o...)
		if (m == nil) == (err == nil) {
			t.Fatalf("%v, %v", m, err)
		}
		if m == nil {
			continue
		}
		if c, ok := m.(vm.CPUs); ok {
			if r, err := c.CPUs(t.Context()); (len(r) == 0) == (err == nil) {
				t.Fatalf("registers %v, %v", r, err)
			}
		}
		ranges := m.(mem.Ranger).Ranges()
		many := make([]byte, 5*mem.PageSize)
		if n, err := m.ReadPhys(many, ranges[0].Start); (n == len(many)) != (err == nil) {
			t.Fatalf("%d, %v", n, err)
		}
		for i, r := range ranges {
			if r.Size == 0 || i > 0 && r.Start < ranges[i-1].End() {
				t.Fatalf("ranges %#x", ranges)
			}
			var b [1]byte
			for _, pa := range []mem.PA{r.Start, r.End() - 1} {
				n, err := m.ReadPhys(b[:], pa)
				var f *mem.FaultError
				if (n == len(b)) != (err == nil) || err != nil && (!errors.As(err, &f) || f.Addr != uint64(pa)+uint64(n)) {
					t.Fatalf("%d, %v", n, err)
				}
			}
		}
		if x, err := mem.Extents(m); err == nil {
			for i, r := range x {
				if r.Size == 0 || i > 0 && r.Start < x[i-1].End() {
					t.Fatalf("extents %#x", x)
				}
			}
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzKdump(f *testing.F) {
	pages, _, _ := kdumpGuest()
	for n, p := range pages {
		if n > 6 {
			delete(pages, n)
		}
		copy(p[100:], make([]byte, 4096))
	}
	b := makeKdump(f, kdumpSpec{frames: 100, pages: pages, codecs: allCodecs[1:]})
	f.Add(b)
	f.Add(flatten(b, 5000))
	f.Fuzz(fuzzOpen)
}

// FuzzUnpack unpacks what was never packed.
func FuzzUnpack(f *testing.F) {
	for _, c := range allCodecs[1:] {
		f.Add(pack(f, pattern(1, 4096), c), uint8(c))
		f.Add(pack(f, bytes.Repeat([]byte("abc "), 1024), c), uint8(c))
	}
	x := newUnpacker()
	f.Fuzz(func(t *testing.T, in []byte, c uint8) {
		out := make([]byte, 4096)
		_ = x.unpack(out, in, byZlib+codec(c)%4)
	})
}
