package arm64_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"vmscope/arch"
	"vmscope/arch/arm64"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// What descriptors are made of, spelt as the manual does.
const (
	table = 3
	block = 1
	page  = 3
	ap1   = 1 << 6
	ap2   = 1 << 7
	af    = 1 << 10
	ng    = 1 << 11
	cont  = 1 << 52
	dbm   = 1 << 51
	pxn   = 1 << 53
	uxn   = 1 << 54
)

// words is a memory of 8-byte words, zero where nothing was put.
type words map[uint64]uint64

func (w words) ReadPhys(p []byte, pa mem.PA) (int, error) {
	for i := range p {
		at := uint64(pa) + uint64(i)
		p[i] = byte(w[at&^7] >> (at & 7 * 8))
	}
	return len(p), nil
}

var (
	h4K48  = arm64.Half{Granule: arm64.Granule4K, Bits: 48}
	h4K39  = arm64.Half{Granule: arm64.Granule4K, Bits: 39}
	h4K52  = arm64.Half{Granule: arm64.Granule4K, Bits: 52, Wide: true}
	h16K47 = arm64.Half{Granule: arm64.Granule16K, Bits: 47}
	h16K48 = arm64.Half{Granule: arm64.Granule16K, Bits: 48}
	h16K52 = arm64.Half{Granule: arm64.Granule16K, Bits: 52, Wide: true}
	h64K42 = arm64.Half{Granule: arm64.Granule64K, Bits: 42}
	h64K52 = arm64.Half{Granule: arm64.Granule64K, Bits: 52, Wide: true}
)

// Each walk was worked out by hand from the figures of D8.2 and D8.3.
func TestTranslate(t *testing.T) {
	const kernel = uxn | af
	tests := []struct {
		name string
		half arm64.Half
		mem  words
		va   mem.VA
		pa   mem.PA
		size uint64
		lvl  uint8
		perm mem.Perm
	}{
		{"4K, 48 bits, page", h4K48, words{
			0x100000 + 256*8: 0x101000 | table, 0x101000: 0x102000 | table, 0x102000 + 64*8: 0x103000 | table,
			0x103000 + 16*8: 0x4_1234_5000 | page | kernel | ap2,
		}, 0xffff_8000_0801_0abc, 0x4_1234_5abc, 4096, 1, mem.Exec},
		{"4K, 48 bits, 2 MiB, contiguous", h4K48, words{
			0x100000 + 256*8: 0x101000 | table, 0x101000: 0x102000 | table, 0x102000 + 64*8: 0x4000_0000 | block | kernel | pxn | cont,
		}, 0xffff_8000_0812_3456, 0x4012_3456, 2 << 20, 2, mem.Write},
		{"4K, 48 bits, 1 GiB with nT", h4K48, words{
			0x100000: 0x101000 | table, 0x101000 + 8: 0x8000_0000 | 1<<16 | block | kernel | pxn,
		}, 0xffff_0000_4123_4567, 0x8123_4567, 1 << 30, 3, mem.Write},
		{"4K, 39 bits", h4K39, words{
			0x100000 + 511*8: 0x101000 | table, 0x101000 + 511*8: 0x102000 | table, 0x102000 + 511*8: 0x5000 | page | kernel | pxn,
		}, 0xffff_ffff_ffff_fff8, 0x5ff8, 4096, 1, mem.Write},
		{"4K, LPA2, page at the top of 52 bits", h4K52, words{
			0x100000 + 15*8: 0x101000 | table, 0x101000 + 511*8: 0x102000 | table, 0x102000 + 511*8: 0x103000 | table | 1<<8, // bit 50
			1<<50 | 0x103000 + 511*8: 0x104000 | table, 0x104000 + 511*8: 0x2_0000_0000_7000 | page | kernel | pxn | 3<<8,
		}, 0xffff_ffff_ffff_f010, 0xe_0000_0000_7010, 4096, 1, mem.Write},
		{"4K, LPA2, 512 GiB", h4K52, words{
			0x100000: 0x101000 | table, 0x101000 + 8: 1<<39 | block | kernel | pxn,
		}, 0xfff0_00a1_2345_6789, 0xa1_2345_6789, 512 << 30, 4, mem.Write},
		{"16K, 47 bits, page", h16K47, words{
			0x100000: 0x104000 | table, 0x104000 + 8: 0x108000 | table, 0x108000 + 2*8: 0x4_0000_c000 | page | kernel | pxn,
		}, 0xffff_8000_0200_9234, 0x4_0000_d234, 16384, 1, mem.Write},
		{"16K, 48 bits: two entries at the top", h16K48, words{
			0x100000 + 8: 0x104000 | table, 0x104000: 0x108000 | table, 0x108000 + 8: 0x4200_0000 | block | kernel | pxn,
		}, 0xffff_8000_0212_3456, 0x4212_3456, 32 << 20, 2, mem.Write},
		{"16K, LPA2, 64 GiB", h16K52, words{
			0x100000 + 31*8: 0x104000 | table, 0x104000 + 2047*8: 1<<36 | 2<<8 | block | kernel | pxn,
		}, 0xffff_fff1_2345_6789, 1<<51 | 0x11_2345_6789, 64 << 30, 3, mem.Write},
		{"64K, 42 bits, page", h64K42, words{
			0x100000 + 8191*8: 0x110000 | table, 0x110000 + 8190*8: 0x4_0003_0000 | page | kernel | pxn,
		}, 0xffff_ffff_fffe_1234, 0x4_0003_1234, 65536, 1, mem.Write},
		{"64K, LPA: 52 bits of both", h64K52, words{
			0x100000 + 1023*8: 0x110000 | 9<<12 | table, 9<<48 | 0x110000: 0x120000 | table, 0x120000 + 8: 0x30000 | 15<<12 | page | kernel | pxn,
		}, 0xffff_fc00_0001_0042, 15<<48 | 0x30042, 65536, 1, mem.Write},
		{"64K, LPA, 4 TiB", h64K52, words{0x100000: 4<<40 | 1<<12 | block | kernel | pxn},
			0xfff0_0012_3456_789a, 1<<48 | 4<<40 | 0x12_3456_789a, 4 << 40, 3, mem.Write},
	}
	for _, c := range tests {
		p := arm64.NewPaging(c.mem, arm64.Alike(c.half), 0x900000, 0x100000)
		m, err := p.Translate(c.va)
		if err != nil || m.PA != c.pa || m.Size != c.size || m.Level != c.lvl || m.Perm != c.perm {
			t.Errorf("%s: %+v, %v", c.name, m, err)
		}
		if last, err := p.Steps(c.va); err != nil || last[len(last)-1].Entry != m.Entry {
			t.Errorf("%s: %+v, %v", c.name, last, err)
		}
	}
}

func TestPermissions(t *testing.T) {
	const tableNoEL0, tableRO, tablePXN, tableUXN = 1 << 61, 1 << 62, 1 << 59, 1 << 60
	const R, W, X, U = mem.Perm(0), mem.Write, mem.Exec, mem.User
	tests := []struct {
		name        string
		half        arm64.Half
		table, page uint64
		want        mem.Perm
	}{
		{"kernel data", h4K39, 0, uxn | pxn, W},
		{"kernel constants", h4K39, 0, uxn | pxn | ap2, R},
		{"kernel text", h4K39, 0, uxn | ap2, X},
		{"kernel text that can be written", h4K39, 0, uxn, W | X},
		{"program text", h4K39, 0, pxn | ap1 | ap2 | ng, X | U},
		{"program data", h4K39, 0, pxn | uxn | ap1 | ng, W | U},
		{"executable for EL0 alone", h4K39, 0, pxn | ap2 | ng, X | U},
		{"EL1 runs nothing that EL0 writes", h4K39, 0, uxn | ap1, W | U},
		{"clean page, software", h4K39, 0, uxn | pxn | ap2 | dbm, R},
		{"clean page, hardware", arm64.Half{Granule: arm64.Granule4K, Bits: 39, Dirty: true}, 0, uxn | pxn | ap2 | dbm, W},
		{"table takes writing", h4K39, tableRO, uxn | pxn | ap1, U},
		{"table takes EL0", h4K39, tableNoEL0, uxn | pxn | ap1, W},
		{"table takes EL1's execution", h4K39, tablePXN, uxn | ap2, R},
		{"table takes EL0's execution", h4K39, tableUXN, pxn | ap1 | ap2, U},
		{"tables that count for nothing", arm64.Half{Granule: arm64.Granule4K, Bits: 39, Flat: true}, tableRO | tablePXN | tableUXN | tableNoEL0, ap1, W | U | X},
	}
	for _, c := range tests {
		m := words{0x100000: 0x101000 | table, 0x101000: 0x102000 | table | c.table, 0x102000: 0x7000 | page | c.page}
		p := arm64.NewPaging(m, arm64.Mode{Low: c.half}, 0x100000, 0)
		if got, err := p.Translate(0x10); err != nil || got.Perm != c.want {
			t.Errorf("%s: %v, %v, want %v", c.name, got.Perm, err, c.want)
		}
	}
}

func TestAbsent(t *testing.T) {
	m := words{
		0x100000:         0x101000 | table,
		0x101000:         0x102000 | table,
		0x101008:         0x55 << 1,              // absent
		0x102000:         0x7000 | block,         // no block at the lowest level
		0x100008:         0x40_0000_0000 | block, // nor one of 512 GiB
		0x100010:         1<<45 | table,
		1<<45 | 0x103000: 0,
	}
	three := arm64.NewPaging(m, arm64.Alike(h4K39), 0x100000, 0x100000)
	four := arm64.NewPaging(m, arm64.Alike(h4K48), 0x100000, 0x100000)
	half := arm64.NewPaging(m, arm64.Mode{High: h4K39}, 0, 0x100000)
	for _, c := range []struct {
		name  string
		p     arch.Paging
		va    mem.VA
		level int
		entry uint64
	}{
		{"entry", three, 0x200000, 2, 0xaa},
		{"reserved page", three, 0x1000 - 8, 1, 0x7001},
		{"reserved block", four, 1 << 39, 4, 0x40_0000_0001},
		{"beyond 39 bits", three, 1 << 39, 0, 0},
		{"below the upper half", three, 0xffff_ff7f_ffff_ffff, 0, 0},
		{"tag where none is ignored", three, 0x12 << 56, 0, 0},
		{"half without tables", half, 0x1000, 0, 0},
	} {
		_, err := c.p.Translate(c.va)
		var f *mem.FaultError
		if !errors.Is(err, mem.ErrNotMapped) || !errors.As(err, &f) || f.Level != c.level || f.Entry != c.entry || f.Addr != uint64(c.va) {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, serr := c.p.Steps(c.va); serr == nil || serr.Error() != err.Error() {
			t.Errorf("%s: steps: %v", c.name, serr)
		}
	}
	ram, err := mem.NewRAM(mem.Segment{PA: 0x100000, Data: make([]byte, 4096)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := arm64.NewPaging(ram, arm64.Alike(h4K39), 0x900000, 0).Translate(0); !errors.Is(err, mem.ErrNoRAM) {
		t.Errorf("root outside of RAM: %v", err)
	}
}

func TestTopByte(t *testing.T) {
	h := h4K39
	h.TopIgnored = true
	m := words{0x100000: 0x101000 | table, 0x101000: 0x102000 | table, 0x102000: 0x7000 | page}
	p := arm64.NewPaging(m, arm64.Mode{Low: h, High: h}, 0x100000, 0x100000)
	for _, va := range []mem.VA{0x123, 0xab00_0000_0000_0123, 0xab00_0000_0000_0123 | 0x00ff_ff80_0000_0000} {
		if got, err := p.Translate(va); err != nil || got.PA != 0x7123 {
			t.Errorf("%#x: %+v, %v", uint64(va), got, err)
		}
	}
	if _, err := p.Translate(0x0001_0000_0000_0123); err == nil {
		t.Error("bits below the tag are ignored")
	}
}

func TestModeOf(t *testing.T) {
	// TCR_EL1 of Linux 6.1 on a Cortex-A57 under QEMU: T0SZ = T1SZ = 16, 4 KiB, TBI0.
	const linux = 16 | 16<<16 | 2<<30 | 1<<36 | 1<<37 | 4<<32 | 0x3500_3500
	m := arm64.ModeOf(linux)
	low := h4K48
	low.TopIgnored = true
	if m.Low != low || m.High != h4K48 || m.String() != "4-level, 4K pages, 48-bit" {
		t.Errorf("%+v %v", m, m)
	}
	m = arm64.ModeOf(12 | 25<<16 | 1<<14 | 1<<30 | 6<<32 | 1<<59 | 1<<39 | 1<<40 | 1<<42 | 1<<38)
	if want := (arm64.Mode{
		Low:  arm64.Half{Granule: arm64.Granule64K, Bits: 52, Wide: true, Dirty: true},
		High: arm64.Half{Granule: arm64.Granule16K, Bits: 39, Wide: true, Dirty: true, Flat: true, TopIgnored: true},
	}); m != want {
		t.Errorf("%+v", m)
	}
	if m := arm64.ModeOf(linux | 1<<7 | 1<<23); m != (arm64.Mode{}) || m.String() != "none" {
		t.Errorf("walks are disabled: %+v", m)
	}
	if m := arm64.Alike(h4K52); m.String() != "5-level, 4K pages, 52-bit (LPA2)" || m.PageSize() != 4096 || m.RootSize() != 16*8 {
		t.Errorf("%v %d %d", m, m.PageSize(), m.RootSize())
	}
	if m := arm64.Alike(h16K48); m.PageSize() != 16384 || m.RootSize() != 16 {
		t.Errorf("%v %d %d", m, m.PageSize(), m.RootSize())
	}
	for _, c := range []struct {
		h    arm64.Half
		ttbr uint64
		want mem.PA
	}{
		{h4K48, 0x1234_0000_4150_d001, 0x4150_d000}, // ASID and CnP
		{h64K52, 0x0001_0000_4150_e024, 9<<48 | 0x4150_e000},
		{h4K52, 0x4150_d0fc | 1, 15<<48 | 0x4150_d080},
	} {
		if got := c.h.Root(c.ttbr); got != c.want {
			t.Errorf("root of %#x: %#x", c.ttbr, uint64(got))
		}
	}
}

func TestMappings(t *testing.T) {
	m := words{
		0x100000:        0x101000 | table,
		0x101000:        0x102000 | table,
		0x102000 + 8:    0x7000 | page | ap1 | uxn | pxn,
		0x102000 + 16:   0x8000 | page | ap1 | uxn | pxn,
		0x102000 + 24:   0x9000 | page | ap1 | ap2 | pxn,
		0x200000 + 4088: 0x201000 | table,
		0x201000 + 4080: 0x4000_0000 | block | uxn | pxn,
		0x201000 + 4088: 0x4020_0000 | block | uxn | pxn,
	}
	p := arm64.NewPaging(m, arm64.Alike(h4K39), 0x100000, 0x200000)
	want := []arch.Region{
		{VA: 0x1000, PA: 0x7000, Size: 0x2000, Page: 4096, Perm: mem.User | mem.Write},
		{VA: 0x3000, PA: 0x9000, Size: 0x1000, Page: 4096, Perm: mem.User | mem.Exec},
		{VA: 0xffff_ffff_ffc0_0000, PA: 0x4000_0000, Size: 4 << 20, Page: 2 << 20, Perm: mem.Write},
	}
	for _, c := range []struct {
		first, last mem.VA
		want        []arch.Region
	}{
		{0, ^mem.VA(0), want},
		{0x3000, 0x3000, want[1:2]},
		{0x4000, 0xffff_ffff_ff00_0000, nil},
		{0xff00_0000_0000_0000, ^mem.VA(0), want[2:]},
	} {
		var got []arch.Region
		for r, err := range p.Mappings(c.first, c.last) {
			if err != nil {
				t.Error(err)
			}
			got = append(got, r)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%#x to %#x: %+v", uint64(c.first), uint64(c.last), got)
		}
	}
	for range p.Mappings(0, ^mem.VA(0)) {
		break // must not go on
	}
}

// Entries of the root refer to the root.
func TestMappingsSelfReference(t *testing.T) {
	data := make([]byte, mem.PageSize)
	for i := 0; i < 65*8; i += 8 {
		binary.LittleEndian.PutUint64(data[i:], table)
	}
	phys := &memtest.Bytes{Data: data}
	var last error
	for _, err := range arm64.NewPaging(phys, arm64.Mode{Low: h4K48}, 0, 0).Mappings(0, ^mem.VA(0)) {
		last = err
	}
	if !errors.Is(last, mem.ErrInconsistent) || phys.Reads() > arch.MaxTables {
		t.Errorf("%d reads, last error %v", phys.Reads(), last)
	}
}
