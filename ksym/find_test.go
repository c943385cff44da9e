package ksym

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"
	"unicode/utf16"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

// chunked hides that memory is mapped, as a source that copies does.
type chunked struct{ r mem.PhysReader }

func (c chunked) ReadPhys(p []byte, pa mem.PA) (int, error) { return c.r.ReadPhys(p, pa) }

func TestFind(t *testing.T) {
	for i, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			for k, n := range []int{2560, 2561, 2562, 3327} {
				// The digits begin at each place of a word; the table crosses
				// pages and, at 1 MiB, the pieces that sources are read in.
				e := layoutSpec(i, n, mem.VA(k*20)).encode()
				ram, delta := e.ram(1<<20 - 30<<10)
				for _, r := range []mem.PhysReader{ram, chunked{ram}} {
					found, err := Find(t.Context(), r, ram.Ranges())
					if err != nil || len(found) != 1 {
						t.Fatalf("%d tables, %v, want 1", len(found), err)
					}
					f := found[0]
					if uint64(f.TokenTable)+delta != uint64(e.p.TokenTable) {
						t.Errorf("token table at %#x, want %#x", f.TokenTable, uint64(e.p.TokenTable)-delta)
					}
					p := f.Proof()
					if p.Layout != l.layout || p.Scheme != l.scheme || p.Seqs != l.spec.seqs || p.Physical != (l.scheme == OwnPlace) {
						t.Errorf("proof %+v", p)
					}
					if f.PointerSize() != int(l.ptr) {
						t.Errorf("pointers of %d bytes, want %d", f.PointerSize(), l.ptr)
					}
					d, ok := f.Delta()
					if ok != (l.own && l.scheme != OwnPlace) || ok && d&f.word.mask != delta&f.word.mask {
						t.Errorf("delta %#x, %v, want %#x", d, ok, delta)
					}
					tab := f.Table
					if p.Physical {
						tab = tab.Rebase(delta)
					}
					check(t, tab, e.syms)
				}
			}
		})
	}
}

// A kernel of an earlier boot left its table: both are found, none is chosen.
func TestFindStale(t *testing.T) {
	a := layoutSpec(1, 2560, 0).encode()
	b := layoutSpec(8, 2600, 4).encode()
	data := make([]byte, 4<<20)
	copy(data[1<<20:], a.bytes)
	copy(data[3<<20+4:], b.bytes)
	ram, err := mem.NewRAM(mem.Segment{PA: 16 << 20, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	found, err := Find(t.Context(), ram, ram.Ranges())
	if err != nil || len(found) != 2 || found[0].Len() != 2560 || found[1].Len() != 2600 {
		t.Fatalf("found %v, %v", found, err)
	}
	// Extents restrict where tables begin.
	found, err = Find(t.Context(), ram, []mem.Range{{Start: 19 << 20, Size: 1 << 20}})
	if err != nil || len(found) != 1 || found[0].Len() != 2600 {
		t.Fatalf("restricted: found %v, %v", found, err)
	}
	if found, err = Find(t.Context(), ram, nil); err != nil || len(found) != 0 {
		t.Fatalf("nowhere: found %v, %v", found, err)
	}
}

// Things that look like a table's digits.
func TestFindFalse(t *testing.T) {
	e := layoutSpec(5, 2560, 0).encode()
	wide := func(s string) (b []byte) {
		for _, u := range utf16.Encode([]rune(s)) {
			b = append(b, byte(u), byte(u>>8))
		}
		return b
	}
	digitsAt := bytes.Index(e.bytes, digits)
	tests := []struct {
		name  string
		bytes []byte
	}{
		{"nothing", nil},
		{"UTF-16 text", wide("/0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")},
		{"digits at the end of RAM", append(make([]byte, 4<<20-len(digits)), digits...)},
		{"digits at its start", digits},
		{"only tokens and index", e.bytes[e.p.TokenTable-e.base : e.p.TokenIndex-e.base+indexSize]},
		{"only tokens", e.bytes[e.p.TokenTable-e.base : e.p.TokenIndex-e.base]},
		{"names cut off", e.bytes[digitsAt-9000:]},
		{"offsets cut off", e.bytes[:e.p.Offsets-e.base]},
		{"nothing but digits", bytes.Repeat(digits, 10000)},
	}
	for _, tt := range tests {
		data := make([]byte, 4<<20)
		copy(data, tt.bytes)
		ram, err := mem.NewRAM(mem.Segment{PA: 0, Data: data})
		if err != nil {
			t.Fatal(err)
		}
		if found, err := Find(t.Context(), ram, ram.Ranges()); err != nil || len(found) != 0 {
			t.Errorf("%s: found %v, %v", tt.name, found, err)
		}
	}
}

// A guest that fills its memory with look-alikes gets a bounded search, which
// says so.
func TestFindHostile(t *testing.T) {
	e := layoutSpec(1, 2560, 0).encode()
	tokens := e.bytes[e.p.TokenTable-e.base : e.p.TokenIndex-e.base+indexSize]
	tokens = append(tokens[:len(tokens):len(tokens)], make([]byte, 8-len(tokens)%8)...)
	whole := append(bytes.Clone(e.bytes), make([]byte, 8-len(e.bytes)%8)...)
	for name, unit := range map[string][]byte{"token tables": tokens, "tables": whole} {
		ram, err := mem.NewRAM(mem.Segment{PA: 0, Data: bytes.Repeat(unit, 4<<20/len(unit))})
		if err != nil {
			t.Fatal(err)
		}
		found, err := Find(t.Context(), ram, ram.Ranges())
		if !errors.Is(err, mem.ErrInconsistent) {
			t.Errorf("%s: %v, want ErrInconsistent", name, err)
		}
		if want := map[string]int{"tables": maxFound}[name]; len(found) != want {
			t.Errorf("%s: %d found, want %d", name, len(found), want)
		}
	}
}

// A run of digits with hundreds of token indexes behind it, all of which point
// back to a table: few are looked at.
func TestFindManyIndexes(t *testing.T) {
	const at = 4096
	b := make([]byte, at+maxTokens+indexSize)
	for i := range len(b) / 2 {
		var v uint16
		switch k := i % 66; { // at 2*'0' behind the zeros is an offset, at 2*'9' the same + 18
		case k >= 57:
			v = 400 + 18
		case k >= 48:
			v = 400
		case k >= 9:
			v = 0x0101
		}
		binary.LittleEndian.PutUint16(b[2*i:], v)
	}
	b[at-1] = 0
	copy(b[at:], digits)
	m := &memtest.Bytes{Data: b}
	if found, err := Find(t.Context(), m, []mem.Range{{Size: uint64(len(b))}}); len(found) != 0 || err != nil {
		t.Errorf("%d found, %v", len(found), err)
	}
	if n := m.Reads(); n < maxIndexes || n > 2*maxIndexes {
		t.Errorf("%d reads", n)
	}
}

// Holes of a sparse RAM file are never touched through the mapping, which would
// make the host allocate them.
func TestScanLeavesHoles(t *testing.T) {
	const size = 4 << 20
	e := layoutSpec(8, 2560, 0).encode()
	info := coreInfoText("7.2", "SYMBOL(_stext)=ffffffff9a001000\n")
	m, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(m)
	// All but the text and, behind it, the table may not be touched.
	copy(m[1<<20-mem.PageSize:], info)
	copy(m[1<<20:], e.bytes)
	data := (len(e.bytes) + mem.PageSize) &^ (mem.PageSize - 1)
	for _, hole := range [][]byte{m[:1<<20-mem.PageSize], m[1<<20+data:]} {
		if err := syscall.Mprotect(hole, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	reads := 0
	holes := mem.NewHoles(size, func(p []byte, off int64) (int, error) {
		reads++
		clear(p)
		return len(p), nil
	})
	holes.MarkData(1<<20-mem.PageSize, uint64(data)+mem.PageSize)
	ram, err := mem.NewRAM(mem.Segment{PA: ramBase, Data: m, Holes: holes})
	if err != nil {
		t.Fatal(err)
	}
	if found, err := Find(t.Context(), ram, ram.Ranges()); err != nil || len(found) != 1 {
		t.Errorf("found %v, %v", found, err)
	}
	if found, err := FindVMCoreInfo(t.Context(), ram, ram.Ranges()); err != nil || len(found) != 1 {
		t.Errorf("found %v, %v", found, err)
	}
	if reads == 0 {
		t.Error("no reads of holes")
	}
	reads = 0
	if found, err := FindVMCoreInfo(t.Context(), ram, []mem.Range{{Start: ramBase + 1<<20, Size: uint64(data)}}); err != nil || len(found) != 0 || reads != 0 {
		t.Errorf("extents of data: found %v, %v, %d reads of holes", found, err, reads)
	}
}

// gone is memory that fails from an address on.
type gone struct {
	r    mem.PhysReader
	from mem.PA
	err  error
}

func (g gone) ReadPhys(p []byte, pa mem.PA) (int, error) {
	if pa+mem.PA(len(p)) <= g.from {
		return g.r.ReadPhys(p, pa)
	}
	n := 0
	if pa < g.from {
		n, _ = g.r.ReadPhys(p[:g.from-pa], pa)
	}
	return n, &mem.FaultError{Op: "read", Addr: uint64(pa) + uint64(n), Err: g.err}
}

// badPages is memory of which size bytes cannot be reached.
type badPages struct {
	r    mem.PhysReader
	from mem.PA
	size uint64
}

func (b badPages) ReadPhys(p []byte, pa mem.PA) (int, error) {
	if pa >= b.from+mem.PA(b.size) {
		return b.r.ReadPhys(p, pa)
	}
	return gone{b.r, b.from, mem.ErrUnreachable}.ReadPhys(p, pa)
}

func TestScanFaults(t *testing.T) {
	e := layoutSpec(8, 2560, 0).encode()
	ram, _ := e.ram(1 << 20)
	// A part that cannot be read costs no result before it.
	found, err := Find(t.Context(), gone{ram, ramBase + 3<<20, mem.ErrNoRAM}, ram.Ranges())
	if err != nil || len(found) != 1 {
		t.Errorf("hole: found %v, %v", found, err)
	}
	found, err = Find(t.Context(), gone{ram, ramBase + 3<<20 + 5, mem.ErrUnreachable}, ram.Ranges())
	if !errors.Is(err, mem.ErrUnreachable) || len(found) != 1 {
		t.Errorf("gone: found %v, %v", found, err)
	}
	// A few bad pages are passed over, what comes behind is found.
	for bad, want := range map[uint64]int{8: 1, 64: 0} {
		holes := badPages{ram, ramBase, bad * mem.PageSize}
		found, err := Find(t.Context(), holes, ram.Ranges())
		if len(found) != want || (want == 0) != errors.Is(err, mem.ErrUnreachable) {
			t.Errorf("%d bad pages: found %v, %v", bad, found, err)
		}
	}
	if _, err := FindVMCoreInfo(t.Context(), gone{ram, 0, mem.ErrUnreachable}, ram.Ranges()); !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("gone at once: %v", err)
	}
}

// last is memory of which a second piece is never read: the first ends ctx.
type last struct {
	end   func()
	reads int
}

func (l *last) ReadPhys(p []byte, _ mem.PA) (int, error) {
	l.end()
	l.reads++
	return len(p), nil
}

// TestSearchEnds ends the context of a search.
func TestSearchEnds(t *testing.T) {
	ram, err := mem.NewRAM(mem.Segment{Data: make([]byte, 2*patience)})
	if err != nil {
		t.Fatal(err)
	}
	for name, search := range map[string]func(ctx context.Context, r mem.PhysReader) error{
		"kallsyms": func(ctx context.Context, r mem.PhysReader) error { _, err := Find(ctx, r, ram.Ranges()); return err },
		"VMCOREINFO": func(ctx context.Context, r mem.PhysReader) error {
			_, err := FindVMCoreInfo(ctx, r, ram.Ranges())
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		l := &last{end: cancel}
		if err := search(ctx, l); !errors.Is(err, context.Canceled) || l.reads != 1 {
			t.Errorf("%s: %v after %d reads", name, err, l.reads)
		}
		if err := search(ctx, ram); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, mapped: %v", name, err)
		}
	}
}
