package x86_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

const (
	w, u, nx = memtest.W, memtest.U, memtest.NX
	base     = 0x40000000 // of RAM in most tests
	ramSize  = 1 << 20
)

// both calls f with the memory mapped and not mapped: the fast and the slow path.
func both(t *testing.T, data []byte, f func(t *testing.T, phys mem.PhysReader)) {
	t.Helper()
	t.Run("mapped", func(t *testing.T) {
		ram, err := mem.NewRAM(mem.Segment{PA: base, Data: data})
		if err != nil {
			t.Fatal(err)
		}
		f(t, ram)
	})
	t.Run("two segments", func(t *testing.T) {
		ram, err := mem.NewRAM(mem.Segment{PA: 0, Data: make([]byte, 2*len(data))}, mem.Segment{PA: base, Data: data})
		if err != nil {
			t.Fatal(err)
		}
		f(t, ram)
	})
	t.Run("not mapped", func(t *testing.T) { f(t, &memtest.Bytes{Base: base, Data: data}) })
}

func TestTranslate(t *testing.T) {
	const kernel = 0xffffffff81000000
	for _, mode := range []x86.Mode{x86.Level4, x86.Level5} {
		data := make([]byte, ramSize)
		tb := memtest.NewTables(data, base, 0x3000, mode.Levels())
		tb.Map(kernel, 0x1000000, 4<<20, 2, 0)          // text
		tb.Map(kernel+4<<20, 0x1400000, 2<<20, 2, w|nx) // data
		tb.Map(0xffff888000000000, 0, 2<<30, 3, w|nx)   // direct map
		tb.Map(0x401000, 0xfffffffff000, 4096, 1, u)    // a process, page far out
		tb.Map(0x402000, 0x5000, 4096, 1, u|w|nx)
		upper := tb.Entry(0x600000, 2) // a table that takes write and user away
		tb.Map(0x600000, 0x6000, 4096, 1, u|w)
		upper[0] &^= w | u
		if mode == x86.Level5 {
			tb.Map(0xff12345678000000, 0x7000, 4096, 1, w)
		}
		tests := []struct {
			va    mem.VA
			pa    mem.PA
			size  uint64
			level uint8
			perm  mem.Perm
		}{
			{kernel + 0x123456, 0x1123456, 2 << 20, 2, mem.Exec},
			{kernel + 4<<20 + 7, 0x1400007, 2 << 20, 2, mem.Write},
			{0xffff888000000000, 0, 1 << 30, 3, mem.Write},
			{0xffff88807fffffff, 0x7fffffff, 1 << 30, 3, mem.Write},
			{0x401fff, 0xffffffffffff, 4096, 1, mem.User | mem.Exec},
			{0x402000, 0x5000, 4096, 1, mem.User | mem.Write},
			{0x600010, 0x6010, 4096, 1, mem.Exec},
		}
		both(t, data, func(t *testing.T, phys mem.PhysReader) {
			p := x86.NewPaging(phys, tb.Root|0xfff|1<<63, mode) // PCID and flags of CR3
			if p.Root() != tb.Root || p.Mode() != mode {
				t.Fatalf("root %#x, mode %v", uint64(p.Root()), p.Mode())
			}
			for _, c := range tests {
				m, err := p.Translate(c.va)
				if err != nil {
					t.Errorf("%v %#x: %v", mode, uint64(c.va), err)
					continue
				}
				if m.PA != c.pa || m.Size != c.size || m.Level != c.level || m.Perm != c.perm {
					t.Errorf("%v %#x: %+v, want %+v", mode, uint64(c.va), m, c)
				}
				if want := c.size - uint64(c.va)%c.size; m.Left() != want {
					t.Errorf("%v %#x: %d bytes left, want %d", mode, uint64(c.va), m.Left(), want)
				}
			}
			if mode == x86.Level5 {
				if m, err := p.Translate(0xff12345678000abc); err != nil || m.PA != 0x7abc {
					t.Errorf("57-bit address: %+v, %v", m, err)
				}
			}
		})
	}
}

// fault checks a failed translation.
func fault(t *testing.T, p *x86.Paging, va mem.VA, level int, entry uint64, class error) {
	t.Helper()
	m, err := p.Translate(va)
	var f *mem.FaultError
	if !errors.As(err, &f) || m != (mem.Mapping{}) {
		t.Fatalf("%#x: %+v, %v", uint64(va), m, err)
	}
	if f.Op != "translate" || f.Addr != uint64(va) || f.Level != level || f.Entry != entry || !errors.Is(err, class) {
		t.Errorf("%#x: %v (%+v), want level %d, entry %#x, %v", uint64(va), err, f, level, entry, class)
	}
}

func TestTranslateAbsent(t *testing.T) {
	for _, mode := range []x86.Mode{x86.Level4, x86.Level5} {
		for level := 1; level <= mode.Levels(); level++ {
			data := make([]byte, ramSize)
			tb := memtest.NewTables(data, base, 0, mode.Levels())
			tb.Map(0x7f0012345000, 0x1000, 4096, 1, w)
			const swapped = 0xabcdef00deadbe62 &^ 1 // no P bit, but everything else
			tb.Set(0x7f0012345000, level, swapped)
			both(t, data, func(t *testing.T, phys mem.PhysReader) {
				p := x86.NewPaging(phys, tb.Root, mode)
				fault(t, p, 0x7f0012345678, level, swapped, mem.ErrNotMapped)
			})
		}
	}
}

func TestTranslateTableOutsideRAM(t *testing.T) {
	for _, mode := range []x86.Mode{x86.Level4, x86.Level5} {
		for level := 2; level <= mode.Levels(); level++ {
			data := make([]byte, ramSize)
			tb := memtest.NewTables(data, base, 0, mode.Levels())
			tb.Map(0x7f0012345000, 0x1000, 4096, 1, w)
			const far = 0x000ffffffffff000 | memtest.Table
			tb.Set(0x7f0012345000, level, far)
			both(t, data, func(t *testing.T, phys mem.PhysReader) {
				fault(t, x86.NewPaging(phys, tb.Root, mode), 0x7f0012345678, level-1, far, mem.ErrNoRAM)
			})
		}
		both(t, make([]byte, 4096), func(t *testing.T, phys mem.PhysReader) {
			p := x86.NewPaging(phys, 0x12345000, mode)
			fault(t, p, 0x1000, mode.Levels(), 0x12345000, mem.ErrNoRAM)
		})
	}
}

func TestTranslateReservedPS(t *testing.T) {
	for _, mode := range []x86.Mode{x86.Level4, x86.Level5} {
		for level := 4; level <= mode.Levels(); level++ {
			data := make([]byte, ramSize)
			tb := memtest.NewTables(data, base, 0, mode.Levels())
			const e = memtest.Table | memtest.PS
			tb.Set(0x1000, level, e)
			both(t, data, func(t *testing.T, phys mem.PhysReader) {
				fault(t, x86.NewPaging(phys, tb.Root, mode), 0x1000, level, e, mem.ErrNotMapped)
			})
		}
	}
}

// Bit 7 of a lowest-level entry is PAT, of a large page's bit 12: neither moves
// the address.
func TestTranslatePAT(t *testing.T) {
	data := make([]byte, ramSize)
	tb := memtest.NewTables(data, base, 0, 4)
	tb.Map(0x1000, 0x5000, 4096, 1, memtest.PS)
	tb.Map(0x40000000, 0x200000, 2<<20, 2, 1<<12)
	both(t, data, func(t *testing.T, phys mem.PhysReader) {
		p := x86.NewPaging(phys, tb.Root, x86.Level4)
		if m, err := p.Translate(0x1abc); err != nil || m.PA != 0x5abc || m.Level != 1 {
			t.Errorf("%+v, %v", m, err)
		}
		if m, err := p.Translate(0x40012345); err != nil || m.PA != 0x212345 {
			t.Errorf("%+v, %v", m, err)
		}
	})
}

func TestTranslateSelfReference(t *testing.T) {
	data := make([]byte, ramSize)
	tb := memtest.NewTables(data, base, 0x2000, 4)
	self := uint64(tb.Root) | memtest.Table
	for i := range 512 {
		binary.LittleEndian.PutUint64(data[0x2000+i*8:], self)
	}
	both(t, data, func(t *testing.T, phys mem.PhysReader) {
		p := x86.NewPaging(phys, tb.Root, x86.Level4)
		m, err := p.Translate(0x123456789abc)
		if err != nil || m.PA != tb.Root+0xabc || m.Level != 1 {
			t.Errorf("%+v, %v", m, err)
		}
	})
}

func TestCanonical(t *testing.T) {
	data := make([]byte, ramSize)
	for _, c := range []struct {
		mode      x86.Mode
		good, bad []mem.VA
	}{
		{x86.Level4, []mem.VA{0, 0x7fffffffffff, 0xffff800000000000, ^mem.VA(0)},
			[]mem.VA{0x800000000000, 0xffff7fffffffffff, 0x1000000000000, 1 << 63}},
		{x86.Level5, []mem.VA{0, 0x00ffffffffffffff, 0xff00000000000000, ^mem.VA(0)},
			[]mem.VA{0x0100000000000000, 0xfeffffffffffffff, 1 << 63}},
		{x86.PAE, []mem.VA{0, 0xffffffff}, []mem.VA{1 << 32, ^mem.VA(0)}},
		{x86.Bits32, []mem.VA{0, 0xffffffff}, []mem.VA{1 << 32, ^mem.VA(0)}},
		{x86.None, nil, []mem.VA{0, 1}},
	} {
		both(t, data, func(t *testing.T, phys mem.PhysReader) {
			p := x86.NewPaging(phys, base, c.mode)
			for _, va := range c.good {
				fault(t, p, va, c.mode.Levels(), 0, mem.ErrNotMapped)
				if !c.mode.Canonical(va) {
					t.Errorf("%v: %#x is canonical", c.mode, uint64(va))
				}
			}
			for _, va := range c.bad {
				fault(t, p, va, 0, 0, mem.ErrNotMapped)
				if c.mode.Canonical(va) {
					t.Errorf("%v: %#x is not canonical", c.mode, uint64(va))
				}
			}
		})
	}
}

func TestPAE(t *testing.T) {
	data := make([]byte, ramSize)
	tb := memtest.NewTables(data, base, 0x1000, 3)
	tb.Map(0xc0000000, 0x200000, 4<<20, 2, w|nx)
	tb.Map(0x08048000, 0x9000, 4096, 1, u)
	both(t, data, func(t *testing.T, phys mem.PhysReader) {
		p := x86.NewPaging(phys, tb.Root|0x1f, x86.PAE)
		if m, err := p.Translate(0xc0312345); err != nil || m.PA != 0x512345 || m.Perm != mem.Write || m.Size != 2<<20 {
			t.Errorf("%+v, %v", m, err)
		}
		if m, err := p.Translate(0x08048123); err != nil || m.PA != 0x9123 || m.Perm != mem.User|mem.Exec {
			t.Errorf("%+v, %v", m, err)
		}
		fault(t, p, 0x40000000, 3, 0, mem.ErrNotMapped)
		fault(t, p, 0x08049000, 1, 0, mem.ErrNotMapped)
	})
}

func TestBits32(t *testing.T) {
	data := make([]byte, ramSize)
	put := func(off int, e uint32) { binary.LittleEndian.PutUint32(data[off:], e) }
	put(0x1000+0x300*4, 0x00c00000|0x3<<13|0x83) // 4 MiB page at 0xc0000000, physical bits 32 and 33 set
	put(0x1000+0x301*4, 0x00800000|0x83)
	put(0x1000+0x20*4, base+0x2000|7)
	put(0x2000+0x49*4, 0x7000|5)
	both(t, data, func(t *testing.T, phys mem.PhysReader) {
		p := x86.NewPaging(phys, base+0x1000, x86.Bits32)
		if m, err := p.Translate(0xc0312345); err != nil || m.PA != 0x300f12345 || m.Size != 4<<20 || m.Perm != mem.Write|mem.Exec {
			t.Errorf("%+v, %v", m, err)
		}
		if m, err := p.Translate(0xc0400001); err != nil || m.PA != 0x800001 {
			t.Errorf("%+v, %v", m, err)
		}
		if m, err := p.Translate(0x08049010); err != nil || m.PA != 0x7010 || m.Perm != mem.User|mem.Exec || m.Level != 1 {
			t.Errorf("%+v, %v", m, err)
		}
		fault(t, p, 0x0804a000, 1, 0, mem.ErrNotMapped)
		fault(t, p, 0x80000000, 2, 0, mem.ErrNotMapped)
	})
}

func TestModeOf(t *testing.T) {
	const pg, pae, la57, lma = 1 << 31, 1 << 5, 1 << 12, 1 << 10
	for _, c := range []struct {
		cr0, cr4, efer uint64
		want           x86.Mode
	}{
		{0, pae | la57, lma, x86.None},
		{pg, 0, 0, x86.Bits32},
		{pg, pae, 0, x86.PAE},
		{pg, pae, lma, x86.Level4},
		{pg, pae | la57, lma, x86.Level5},
		{pg, pae | la57, 0, x86.PAE}, // LA57 counts in 64-bit mode only
	} {
		if got := x86.ModeOf(c.cr0, c.cr4, c.efer); got != c.want {
			t.Errorf("ModeOf(%#x, %#x, %#x) = %v, want %v", c.cr0, c.cr4, c.efer, got, c.want)
		}
	}
	if x86.ModeFromCR4(pae|la57) != x86.Level5 || x86.ModeFromCR4(pae) != x86.Level4 {
		t.Error("ModeFromCR4")
	}
	if x86.UserRoot(0x2000) != 0x3000 || x86.KernelRoot(0x3000) != 0x2000 || x86.KernelRoot(0x2000) != 0x2000 {
		t.Error("KPTI roots")
	}
	if s := fmt.Sprint(x86.Level5, x86.Mode(77)); s != "5-level unknown" {
		t.Error(s)
	}
}

// A hole that holds page tables reads as absent entries and stays a hole.
func TestTranslateHole(t *testing.T) {
	data := make([]byte, ramSize)
	asked := 0
	h := mem.NewHoles(ramSize, func(p []byte, off int64) (int, error) {
		asked++
		clear(p)
		return len(p), nil
	})
	tb := memtest.NewTables(data, base, 0, 4)
	tb.Map(0x1000, 0x5000, 4096, 1, 0)
	h.MarkData(0, 0x2000)             // root and the next level
	clear(data[0x2000:0x4000])        // what the file would show
	data[0x2000], data[0x3000] = 1, 1 // touching would be seen
	ram, err := mem.NewRAM(mem.Segment{PA: base, Data: data, Holes: h})
	if err != nil {
		t.Fatal(err)
	}
	p := x86.NewPaging(ram, tb.Root, x86.Level4)
	fault(t, p, 0x1000, 2, 0, mem.ErrNotMapped)
	if asked == 0 {
		t.Error("the hole was read through the mapping")
	}
}
