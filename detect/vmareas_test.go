package detect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"vmscope"
	"vmscope/arch"
	"vmscope/ctype"
	"vmscope/internal/memtest"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// above maps memory one to one above an address, but for a page.
type above struct{ base, hole mem.VA }

func (a above) Translate(va mem.VA) (mem.Mapping, error) {
	if va < a.base || va&^(mem.PageSize-1) == a.hole {
		return mem.Mapping{}, mem.ErrNotMapped
	}
	return mem.Mapping{PA: mem.PA(va - a.base), Size: mem.PageSize - uint64(va%mem.PageSize)}, nil
}

// TestSearch has an area of memory in which modules are, and what looks so.
func TestSearch(t *testing.T) {
	const base mem.VA = 0xffffffffc0000000
	f := &vmLayout{
		Self: ctype.Field{Offset: 0x90}, Table: ctype.Field{Offset: 0x260}, Core: ctype.Field{Offset: 0x268},
		Symtab: ctype.Field{Offset: 0}, Strtab: ctype.Field{Offset: 0x10},
	}
	ram := make([]byte, 8*mem.PageSize)
	put := func(at, to mem.VA) { binary.LittleEndian.PutUint64(ram[at-base:], uint64(to)) }
	self := func(module mem.VA) { put(module+0x90, module) }
	table := func(module, symbols, names mem.VA) {
		put(module+0x260, module+0x268)
		put(module+0x268, symbols)
		put(module+0x278, names)
	}
	self(base + 0x1100) // executable, as the page behind it
	self(base + 0x3040)
	table(base+0x3040, base+0x3800, base+0x5000)
	self(base + 0x4800)                          // not mapped
	table(base+0x5400, base+0x5800, base+0x5900) // no entry in sysfs
	table(base+0x6000, base+0x7800, base+0x5900) // its symbols lie elsewhere
	put(base+0x6408, base+0x6410)                // a list's, say
	self(base + 0x5f80)                          // in two pages
	self(base + 0x7000)                          // not of the area
	l := &Look{View: &vmscope.View{View: &linux.View{
		Kernel: new(linux.Kernel), Mem: &mem.Space{Phys: &memtest.Bytes{Data: ram}, Tr: above{base, base + 0x4000}},
	}}}
	u := &unlisted{l: l, f: f, executable: []arch.Region{{VA: base - 0x10000, Size: 0x1000}, {VA: base + 0x1000, Size: 0x2000}, {VA: base + 0x100000, Size: 0x1000}}}
	budget := maxForeign
	found, err := u.search(vmArea{start: base, size: 7 * mem.PageSize}, &budget)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range found {
		got = append(got, fmt.Sprintf("%#x %v", uint64(m.at-base), m.table))
	}
	if want := []string{"0x3040 true", "0x5400 true", "0x5f80 false"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if read := maxForeign - budget; read != 5 { // of 7 pages 2 are executable
		t.Errorf("%d pages were looked at", read)
	}
	budget = 2
	if _, err := u.search(vmArea{start: base, size: 7 * mem.PageSize}, &budget); !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("more pages than there may be: %v", err)
	}
}
