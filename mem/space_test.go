package mem_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// spaces calls f with one small address space over each kind of source: mapped,
// mapped with holes that are not touched, not mapped, cached.
//
//	0x10000 page A, 0x11000 page B (elsewhere), 0x12000 nothing,
//	0x13000 a page outside of RAM, 0x200000 a page of 2 MiB of which RAM has 0x3000 bytes
func spaces(t *testing.T, f func(t *testing.T, s *mem.Space, data []byte)) {
	t.Helper()
	const base = 0x40000000
	data := fill(1<<20, 5)
	clear(data[:0x10000])
	tb := memtest.NewTables(data, base, 0, 4)
	tb.Map(0x10000, base+0x20000, 4096, 1, memtest.W)
	tb.Map(0x11000, base+0x30000, 4096, 1, memtest.W)
	tb.Map(0x13000, base+1<<40, 4096, 1, memtest.W)
	tb.Map(0x200000, base, 2<<20, 2, memtest.W)
	ram := func(h *mem.Holes) *mem.RAM {
		r, err := mem.NewRAM(mem.Segment{PA: base, Data: data, Holes: h})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	holes := mem.NewHoles(1<<20, bytes.NewReader(data).ReadAt)
	holes.MarkData(0x20000, 0x800)
	for name, phys := range map[string]mem.PhysReader{
		"mapped": ram(nil),
		"holes":  ram(holes),
		"bytes":  &memtest.Bytes{Base: base, Data: data},
		"cached": mem.NewCache(&memtest.Bytes{Base: base, Data: data}, 16),
	} {
		t.Run(name, func(t *testing.T) {
			f(t, mem.NewSpace("test", phys, x86.NewPaging(phys, tb.Root, x86.Level4)), data)
		})
	}
}

func TestSpaceRead(t *testing.T) {
	spaces(t, func(t *testing.T, s *mem.Space, data []byte) {
		two := append(bytes.Clone(data[0x20000:0x21000]), data[0x30000:0x31000]...)
		for _, c := range []struct {
			va, n uint64
			ok    uint64
			class error
			want  []byte
		}{
			{0x10000, 0, 0, nil, nil},
			{0x10000, 1, 1, nil, two[:1]},
			{0x10000, 0x1000, 0x1000, nil, two[:0x1000]},
			{0x10fff, 2, 2, nil, two[0xfff:0x1001]},
			{0x10010, 0x1ff0, 0x1ff0, nil, two[0x10:]},
			{0x11ff8, 16, 8, mem.ErrNotMapped, two[0x1ff8:]},
			{0x10000, 0x2001, 0x2000, mem.ErrNotMapped, two},
			{0x12000, 1, 0, mem.ErrNotMapped, nil},
			{0x13010, 1, 0, mem.ErrNoRAM, nil},
			{0x2ffff0, 32, 16, mem.ErrNoRAM, data[0xffff0:]},
			{0x200000, 1<<20 + 5, 1 << 20, mem.ErrNoRAM, data},
			{1 << 62, 8, 0, mem.ErrNotMapped, nil},
			{^uint64(0), 8, 0, mem.ErrNotMapped, nil},
		} {
			p := make([]byte, c.n)
			n, err := s.Read(p, mem.VA(c.va))
			if uint64(n) != c.ok || !bytes.Equal(p[:n], c.want) {
				t.Errorf("%#x+%#x: %d bytes, want %d (%v)", c.va, c.n, n, c.ok, err)
			}
			if c.class == nil {
				if err != nil {
					t.Errorf("%#x+%#x: %v", c.va, c.n, err)
				}
				continue
			}
			wantFault(t, err, c.va+c.ok, c.class)
			var f *mem.FaultError
			if errors.As(err, &f) && (f.Op != "read" || f.Space != "test") {
				t.Errorf("%#x+%#x: %+v", c.va, c.n, f)
			}
		}
		_, err := s.Translate(0x12345)
		var f *mem.FaultError
		if !errors.As(err, &f) || f.Op != "translate" || f.Space != "test" || f.Level != 1 || f.Addr != 0x12345 {
			t.Errorf("%v", err)
		}
		if m, err := s.Translate(0x11234); err != nil || m.PA != 0x40030234 {
			t.Errorf("%+v, %v", m, err)
		}
	})
}

func TestSpaceIntegers(t *testing.T) {
	spaces(t, func(t *testing.T, s *mem.Space, data []byte) {
		two := append(bytes.Clone(data[0x20000:0x21000]), data[0x30000:0x31000]...)
		for _, off := range []int{0, 8, 0x7f8, 0x800, 3, 0xff8, 0xff9, 0xffc, 0xffd, 0xfff, 0x1000, 0x1ff8} {
			va := mem.VA(0x10000 + off)
			if v, err := s.Uint64(va); v != binary.LittleEndian.Uint64(two[off:]) || err != nil {
				t.Errorf("Uint64(%#x) = %#x, %v", uint64(va), v, err)
			}
			if v, err := s.Uint32(va); v != binary.LittleEndian.Uint32(two[off:]) || err != nil {
				t.Errorf("Uint32(%#x) = %#x, %v", uint64(va), v, err)
			}
			if v, err := s.Pointer(va); uint64(v) != binary.LittleEndian.Uint64(two[off:]) || err != nil {
				t.Errorf("Pointer(%#x) = %#x, %v", uint64(va), uint64(v), err)
			}
			for size, want := range map[int]uint64{
				1: uint64(two[off]), 4: uint64(binary.LittleEndian.Uint32(two[off:])), 8: binary.LittleEndian.Uint64(two[off:]),
				2: uint64(binary.LittleEndian.Uint16(append(bytes.Clone(two[off:]), 0))),
			} {
				if v, err := s.Uint(va, size); v != want || err != nil {
					t.Errorf("Uint(%#x, %d) = %#x, %v", uint64(va), size, v, err)
				}
			}
		}
		for _, size := range []int{0, 3, 16, -1} {
			if _, err := s.Uint(0x10000, size); err == nil {
				t.Errorf("an integer of %d bytes", size)
			}
		}
		_, err := s.Uint64(0x11ffc)
		wantFault(t, err, 0x12000, mem.ErrNotMapped)
		_, err = s.Uint32(0x12000)
		wantFault(t, err, 0x12000, mem.ErrNotMapped)
		_, err = s.Uint64(0x13008)
		wantFault(t, err, 0x13008, mem.ErrNoRAM)
		_, err = s.Uint(0x11fff, 2)
		wantFault(t, err, 0x12000, mem.ErrNotMapped)
	})
}

func TestCString(t *testing.T) {
	spaces(t, func(t *testing.T, s *mem.Space, data []byte) {
		copy(data[0x30000:0x31000], bytes.Repeat([]byte{'x'}, 4096))
		copy(data[0x30100:], "hello\x00world")
		copy(data[0x30ffa:], "tail\x00")
		copy(data[0x20ffd:], "abc") // goes on in the next page
		copy(data[0x30000:], "def\x00")
		if c, ok := s.Phys.(*mem.Cache); ok {
			c.Forget()
		}
		for _, c := range []struct {
			va   mem.VA
			max  int
			want string
		}{
			{0x11100, 64, "hello"}, {0x11106, 5, "world"}, {0x11100, 3, "hel"}, {0x11100, 0, ""}, {0x11105, 10, ""},
			{0x11ffa, 100, "tail"}, {0x10ffd, 100, "abcdef"}, {0x11ffa, 4, "tail"},
		} {
			if got, err := s.CString(c.va, c.max); string(got) != c.want || err != nil {
				t.Errorf("CString(%#x, %d) = %q, %v", uint64(c.va), c.max, got, err)
			}
		}
		// Without NUL up to the end of what is mapped: what there is, and where it ended.
		got, err := s.CString(0x11fff, 10)
		if string(got) != "x" {
			t.Errorf("%q", got)
		}
		wantFault(t, err, 0x12000, mem.ErrNotMapped)
	})
}

func TestLoad64(t *testing.T) {
	spaces(t, func(t *testing.T, s *mem.Space, data []byte) {
		want := binary.LittleEndian.Uint64(data[0x20008:])
		if v, err := mem.Load64(s.Phys, 0x40020008); v != want || err != nil {
			t.Errorf("%#x, %v", v, err)
		}
		_, err := mem.Load64(s.Phys, 0x40100000)
		wantFault(t, err, 0x40100000, mem.ErrNoRAM)
	})
}

// TestPointer32 reads addresses that take 4 bytes, also the last ones before
// what is not mapped.
func TestPointer32(t *testing.T) {
	data := fill(1<<20, 7)
	clear(data[:0x10000])
	tb := memtest.NewTables(data, 0, 0, 3)
	tb.Map(0xc0010000, 0x20000, 4096, 1, memtest.W)
	ram, err := mem.NewRAM(mem.Segment{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	for _, phys := range []mem.PhysReader{ram, &memtest.Bytes{Data: data}, mem.NewCache(&memtest.Bytes{Data: data}, 16)} {
		s := mem.NewSpace("test", phys, x86.NewPaging(phys, tb.Root, x86.PAE))
		near := s.Near()
		if s.PointerSize() != 4 || near.PointerSize() != 4 {
			t.Errorf("%T: pointers of %d bytes", phys, s.PointerSize())
		}
		for _, off := range []int{0, 4, 8, 0xff4, 0xff8, 0xffc} {
			want := mem.VA(binary.LittleEndian.Uint32(data[0x20000+off:]))
			va := 0xc0010000 + mem.VA(off)
			if p, err := s.Pointer(va); p != want || err != nil {
				t.Errorf("%T: Pointer(%#x) = %#x, %v", phys, uint64(va), uint64(p), err)
			}
			if p, err := near.Pointer(va); p != want || err != nil {
				t.Errorf("%T: near Pointer(%#x) = %#x, %v", phys, uint64(va), uint64(p), err)
			}
		}
		_, err := s.Pointer(0xc0011000)
		wantFault(t, err, 0xc0011000, mem.ErrNotMapped)
		_, err = near.Pointer(0xc0010ffe)
		wantFault(t, err, 0xc0011000, mem.ErrNotMapped)
	}
}
