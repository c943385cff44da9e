package linux

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/ksym"
	"vmscope/mem"
)

// claimOf32 is what VMCOREINFO of a 32-bit kernel claims, with _stext there.
func claimOf32(t *testing.T, text uint64, more string) (*claim, error) {
	t.Helper()
	info, err := ksym.ParseVMCoreInfo(fmt.Appendf(nil, "OSRELEASE=6.1.0-50-686-pae\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=%x\nSYMBOL(_stext)=%x\n%s\x00", text+0xb1c000, text, more))
	if err != nil {
		t.Fatal(err)
	}
	info.Places = []mem.PA{0x11a8000}
	f := &finder{ctx: t.Context(), phys: &memtest.Bytes{}}
	claims, err := f.fromCoreInfo(info)
	if err != nil {
		return nil, err
	}
	return claims[0], nil
}

// TestKernelOf32Bits takes the claim of a kernel of x86 for what it is, and
// refuses those of others by name.
func TestKernelOf32Bits(t *testing.T) {
	for more, mode := range map[string]x86.Mode{"CONFIG_X86_PAE=y\n": x86.PAE, "": x86.Bits32} {
		c, err := claimOf32(t, 0xde000000, more)
		if err != nil {
			t.Error(err)
			continue
		}
		if len(c.modes) != 1 || c.modes[0] != mode || c.phys(c.text) != 0x1e000000 || c.slide != 0x1d000000 || c.port.arch() != "i686" {
			t.Errorf("%q: %+v", more, c)
		}
	}
	// 2 GiB for processes.
	_, err := claimOf32(t, 0x81000000, "")
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), `release "6.1.0-50-686-pae": a kernel of 32 bits`) {
		t.Error(err)
	}
}

// TestList32 walks a list whose links have 4 bytes, and notices that one is
// broken.
func TestList32(t *testing.T) {
	k := stockKernel(t)
	k.Mode, k.port = x86.PAE, i386{}
	ram := make([]byte, 1<<20)
	tables := memtest.NewTables(ram, 0, 0, 3)
	const high, page = mem.VA(0xc0400000), 0x40000
	tables.Map(high, page, 3*mem.PageSize, 1, memtest.W)
	k.Root = tables.Root
	v := k.View(&memtest.Bytes{Data: ram})
	nodes := []mem.VA{high, high + mem.PageSize - 4, high + 2*mem.PageSize + 0x10, high + 2*mem.PageSize + 0xff8}
	put := func(at, to mem.VA) {
		for i := range 4 {
			ram[page+uint64(at-high)+uint64(i)] = byte(to >> (8 * i))
		}
	}
	for i, n := range nodes {
		next := nodes[(i+1)%len(nodes)]
		put(n, next)
		put(next+4, n)
	}
	var got []mem.VA
	each := func(n mem.VA) error { got = append(got, n); return nil }
	if err := v.List(nodes[0], each); err != nil || fmt.Sprint(got) != fmt.Sprint(nodes[1:]) {
		t.Errorf("%#x, %v", got, err)
	}
	put(nodes[2]+4, nodes[3])
	if err := v.List(nodes[0], each); !errors.Is(err, mem.ErrInconsistent) {
		t.Error(err)
	}
	if _, err := v.Code(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("code of a kernel of 32 bits: %v", err)
	}
}

// TestDirectEnd finds where the map of low memory ends.
func TestDirectEnd(t *testing.T) {
	for _, pages := range []mem.PA{1, 7, 100, 511} {
		ram := make([]byte, 4<<20)
		tables := memtest.NewTables(ram, 0, 0, 3)
		k := &Kernel{Mode: x86.PAE, port: i386{}, Root: tables.Root, Phys: 16 << 20, Text: linkedText386}
		tables.Map(linkedText386, k.Phys, uint64(pages)*mem.PageSize, 1, memtest.W)
		if end := k.View(&memtest.Bytes{Data: ram}).DirectEnd(); end != k.Phys+pages*mem.PageSize {
			t.Errorf("%d pages: low memory ends at %#x", pages, uint64(end))
		}
	}
}
