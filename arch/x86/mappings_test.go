package x86_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"vmscope/arch"
	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

func TestMappings(t *testing.T) {
	for _, mode := range []x86.Mode{x86.Level4, x86.Level5} {
		data := make([]byte, ramSize)
		tb := memtest.NewTables(data, base, 0, mode.Levels())
		tb.Map(0x400000, 0x10000, 0x3000, 1, u)
		tb.Map(0x403000, 0x13000, 0x1000, 1, u|w|nx)
		tb.Map(0x404000, 0x30000, 0x1000, 1, u|w|nx)
		tb.Map(0xffff888000000000, 0, 2<<30, 3, w|nx)
		tb.Map(0xffffffff81000000, 0x1000000, 4<<20, 2, 0)
		tb.Map(^mem.VA(0xfff), 0x8000, 4096, 1, w) // the last page
		want := []arch.Region{
			{VA: 0x400000, PA: 0x10000, Size: 0x3000, Page: 4096, Perm: mem.User | mem.Exec},
			{VA: 0x403000, PA: 0x13000, Size: 0x1000, Page: 4096, Perm: mem.User | mem.Write},
			{VA: 0x404000, PA: 0x30000, Size: 0x1000, Page: 4096, Perm: mem.User | mem.Write},
			{VA: 0xffff888000000000, PA: 0, Size: 2 << 30, Page: 1 << 30, Perm: mem.Write},
			{VA: 0xffffffff81000000, PA: 0x1000000, Size: 4 << 20, Page: 2 << 20, Perm: mem.Exec},
			{VA: ^mem.VA(0xfff), PA: 0x8000, Size: 4096, Page: 4096, Perm: mem.Write | mem.Exec},
		}
		both(t, data, func(t *testing.T, phys mem.PhysReader) {
			p := x86.NewPaging(phys, tb.Root, mode)
			list := func(first, last mem.VA) (out []arch.Region) {
				for r, err := range p.Mappings(first, last) {
					if err != nil {
						t.Errorf("%+v: %v", r, err)
					}
					out = append(out, r)
				}
				return out
			}
			if got := list(0, ^mem.VA(0)); !slices.Equal(got, want) {
				t.Errorf("%v: %+v", mode, got)
			}
			if got := list(0x403000, 0x403fff); !slices.Equal(got, want[1:2]) {
				t.Errorf("%v: %+v", mode, got)
			}
			if got := list(0x405000, 0xffff887fffffffff); got != nil {
				t.Errorf("%v: %+v", mode, got)
			}
			for range p.Mappings(0, ^mem.VA(0)) {
				break // must not go on
			}
		})
	}
}

func TestMappingsPAE(t *testing.T) {
	data := make([]byte, ramSize)
	tb := memtest.NewTables(data, base, 0, 3)
	tb.Map(0xffe00000, 0x200000, 2<<20, 2, w)
	for r, err := range x86.NewPaging(&memtest.Bytes{Base: base, Data: data}, tb.Root, x86.PAE).Mappings(0, ^mem.VA(0)) {
		if want := (arch.Region{VA: 0xffe00000, PA: 0x200000, Size: 2 << 20, Page: 2 << 20, Perm: mem.Write | mem.Exec}); r != want || err != nil {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

func TestMappingsUnreadableTable(t *testing.T) {
	data := make([]byte, ramSize)
	tb := memtest.NewTables(data, base, 0, 4)
	tb.Map(0x1000, 0x5000, 4096, 1, w)
	tb.Set(0x200000, 2, 1<<50|memtest.Table) // its table is nowhere
	tb.Map(0x400000, 0x6000, 4096, 1, w)
	var got []mem.VA
	for r, err := range x86.NewPaging(&memtest.Bytes{Base: base, Data: data}, tb.Root, x86.Level4).Mappings(0, ^mem.VA(0)) {
		got = append(got, r.VA)
		if (r.VA == 0x200000) != (err != nil) {
			t.Errorf("%+v: %v", r, err)
		}
		var f *mem.FaultError
		if err != nil && (!errors.Is(err, mem.ErrNoRAM) || !errors.As(err, &f) || f.Level != 1 || r.Size != 2<<20) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if want := []mem.VA{0x1000, 0x200000, 0x400000}; !slices.Equal(got, want) {
		t.Errorf("%#x", got)
	}
}

// Entries of the root refer to the root: if all did, 2^36 pages out of one.
func TestMappingsSelfReference(t *testing.T) {
	data := make([]byte, mem.PageSize)
	for i := 0; i < 65*8; i += 8 { // just enough to exceed the bound
		binary.LittleEndian.PutUint64(data[i:], base|memtest.Table)
	}
	phys := &memtest.Bytes{Base: base, Data: data}
	var last error
	for _, err := range x86.NewPaging(phys, base, x86.Level4).Mappings(0, ^mem.VA(0)) {
		if last = err; err != nil && !errors.Is(err, mem.ErrInconsistent) {
			t.Fatal(err)
		}
	}
	if last == nil || phys.Reads() > arch.MaxTables {
		t.Errorf("%d reads, last error %v", phys.Reads(), last)
	}
}

// Ranges that are listed together share what they may read.
func TestMappingsWithin(t *testing.T) {
	data := make([]byte, ramSize)
	tb := memtest.NewTables(data, base, 0, 4)
	tb.Map(0x1000, 0x5000, 4096, 1, w)
	p := x86.NewPaging(&memtest.Bytes{Base: base, Data: data}, tb.Root, x86.Level4)
	left := 9
	for n, want := range []int{5, 1, -1} {
		regions := 0
		var last error
		for r, err := range p.MappingsWithin(&left, 0x1000, 0x1fff) {
			if last = err; err == nil && r.Size > 0 {
				regions++
			}
		}
		if bad := want < 0; left != want || bad != errors.Is(last, mem.ErrInconsistent) || bad != (regions == 0) {
			t.Errorf("time %d: %d regions, %d tables left, %v", n, regions, left, last)
		}
	}
}
