package arm_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"vmscope/arch"
	"vmscope/arch/arm"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// words is a memory of words of 4 or 8 bytes by their addresses, zero where
// nothing was put.
type words struct {
	size uint64
	at   map[uint64]uint64
}

func short(at map[uint64]uint64) words { return words{4, at} }
func long(at map[uint64]uint64) words  { return words{8, at} }

func (w words) ReadPhys(p []byte, pa mem.PA) (int, error) {
	for i := range p {
		at := uint64(pa) + uint64(i)
		p[i] = byte(w.at[at&^(w.size-1)] >> (at & (w.size - 1) * 8))
	}
	return len(p), nil
}

// Descriptors of Linux on a Cortex-A15.
const (
	section = 0x40e      // AP 0b001, cacheable
	domain0 = 0x01       // a table
	small   = 0x45e      // AP 0b001
	large   = 0x45d &^ 3 // without the type
)

// Each walk was worked out by hand from the figures of B3.5 and B3.6.
func TestTranslate(t *testing.T) {
	split2, third := arm.Mode{Low: 2}, arm.Mode{Long: true, High: 2}
	tests := []struct {
		name string
		mode arm.Mode
		mem  words
		va   mem.VA
		pa   mem.PA
		size uint64
		lvl  uint8
		perm mem.Perm
	}{
		{"section", arm.Mode{}, short(map[uint64]uint64{0x100000 + 0xc03*4: 0x40300000 | section}),
			0xc0345678, 0x40345678, 1 << 20, 2, mem.Write | mem.Exec},
		{"supersection above 4 GiB", arm.Mode{}, short(map[uint64]uint64{0x100000 + 0xf1f*4: 0x12a00000 | 1<<18 | 0xb<<5 | section&^(0xf<<5) | 1<<4}),
			0xf1f45678, 0xba_12f45678, 16 << 20, 2, mem.Write},
		{"small page", arm.Mode{}, short(map[uint64]uint64{0x100000 + 0xbf0*4: 0x200400 | domain0, 0x200400 + 0xa1*4: 0x5f123000 | small | 1}),
			0xbf0a1fff, 0x5f123fff, 4096, 1, mem.Write},
		{"large page, the 16th descriptor", arm.Mode{}, short(map[uint64]uint64{0x100000 + 0x010*4: 0x200400 | domain0, 0x200400 + 0x1f*4: 0x5f120000 | large | 1 | 1<<9 | 1<<5}),
			0x0101fabc, 0x5f12fabc, 64 << 10, 1, mem.User | mem.Exec},
		{"TTBR0 of a quarter", split2, short(map[uint64]uint64{0x100000 + 0x3ff*4: 0x40300000 | section}),
			0x3ff00001, 0x40300001, 1 << 20, 2, mem.Write | mem.Exec},
		{"TTBR1 of the rest", split2, short(map[uint64]uint64{0x900000 + 0x400*4: 0x40300000 | section}),
			0x40000001, 0x40300001, 1 << 20, 2, mem.Write | mem.Exec},
		{"LPAE, page", arm.LPAE, long(map[uint64]uint64{0x100000 + 2*8: 0x200003, 0x200000 + 0x1f8*8: 0x300003, 0x300000 + 0xa1*8: 0xff_5f123000 | 0x703}),
			0xbf0a1fff, 0xff_5f123fff, 4096, 1, mem.Write | mem.Exec},
		{"LPAE, 2 MiB", arm.LPAE, long(map[uint64]uint64{0x100000 + 3*8: 0x200003, 0x200000 + 1*8: 0x40200000 | 0x711 | 1<<54}),
			0xc0345678, 0x40345678, 2 << 20, 2, mem.Write},
		{"LPAE, 1 GiB", arm.LPAE, long(map[uint64]uint64{0x100000 + 3*8: 0x80_40000000 | 0x791}),
			0xc0345678, 0x80_40345678, 1 << 30, 3, mem.Exec},
		{"LPAE, TTBR1 of the last GiB: two levels", third, long(map[uint64]uint64{0x900000 + 1*8: 0x40200000 | 0x711}),
			0xc0345678, 0x40345678, 2 << 20, 2, mem.Write | mem.Exec},
		{"LPAE, a block of which TTBR0 has the first 512 MiB", arm.Mode{Long: true, High: 3}, long(map[uint64]uint64{0x100000 + 3*8: 0x80_40000000 | 0x711}),
			0xc0345678, 0x80_40345678, 512 << 20, 3, mem.Write | mem.Exec},
	}
	for _, c := range tests {
		p := arm.NewPaging(c.mem, c.mode, 0x100000, 0x900000)
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
	const R, W, X, U = mem.Perm(0), mem.Write, mem.Exec, mem.User
	const ap0, ap1, ap2, xn = 1 << 4, 1 << 5, 1 << 9, 1 << 0
	for _, c := range []struct {
		name        string
		mode        arm.Mode
		table, page uint64
		want        mem.Perm
	}{
		{"kernel data", arm.Mode{}, 0, ap0 | xn, W},
		{"kernel constants", arm.Mode{}, 0, ap0 | ap2 | xn, R},
		{"kernel text", arm.Mode{}, 0, ap0 | ap2, X},
		{"program text", arm.Mode{}, 0, ap0 | ap1 | ap2, U | X},
		{"program data", arm.Mode{}, 0, ap0 | ap1 | xn, W | U},
		{"what PL0 reads and PL1 writes", arm.Mode{}, 0, ap1 | xn, W | U},
		{"no access", arm.Mode{}, 0, 0, R},
		{"PL1 executes none of the table", arm.Mode{}, 1 << 2, ap0 | ap2, R},
		{"but PL0 does", arm.Mode{}, 1 << 2, ap0 | ap1 | ap2, U | X},
		{"old page by the access flag", arm.Mode{Access: true}, 0, xn, W},
		{"LPAE, kernel data", arm.LPAE, 0, 1 << 54, W},
		{"LPAE, program text", arm.LPAE, 0, 1<<6 | 1<<7 | 1<<53, U | X},
		{"LPAE, table takes writing", arm.LPAE, 1 << 62, 1 << 54, R},
		{"LPAE, table takes PL0", arm.LPAE, 1 << 61, 1<<6 | 1<<54, W},
		{"LPAE, table takes execution", arm.LPAE, 1 << 60, 1<<6 | 1<<7, U},
		{"LPAE, table takes PL1's execution", arm.LPAE, 1 << 59, 1 << 7, R},
	} {
		m := short(map[uint64]uint64{0x100000: 0x101001 | c.table, 0x101000: 0x7002 | c.page})
		if c.mode.Long {
			m = long(map[uint64]uint64{0x100000: 0x101003, 0x101000: 0x102003 | c.table, 0x102000: 0x7003 | c.page})
		}
		if got, err := arm.NewPaging(m, c.mode, 0x100000, 0).Translate(0x10); err != nil || got.Perm != c.want {
			t.Errorf("%s: %v, %v, want %v", c.name, got.Perm, err, c.want)
		}
	}
}

func TestAbsent(t *testing.T) {
	s := short(map[uint64]uint64{0x100000: 0x101001, 0x101004: 0xf0 << 2, 0x100004: 0x44 << 2})
	l := long(map[uint64]uint64{0x100000: 0x101003, 0x101000: 0x102003, 0x102000: 0x7001, 0x100008: 0x44 << 1})
	gap := arm.Mode{Long: true, Low: 1, High: 2}
	for _, c := range []struct {
		name  string
		m     words
		mode  arm.Mode
		va    mem.VA
		level int
		entry uint64
	}{
		{"first level", s, arm.Mode{}, 0x100000, 2, 0x110},
		{"second level", s, arm.Mode{}, 0x1000, 1, 0x3c0},
		{"33 bits", s, arm.Mode{}, 1 << 32, 0, 0},
		{"TTBR1 is not walked", s, arm.Mode{Low: 1, NoHigh: true}, 1 << 31, 0, 0},
		{"TTBR0 is not walked", s, arm.Mode{NoLow: true}, 0, 0, 0},
		{"LPAE, first level", l, arm.LPAE, 1 << 30, 3, 0x88},
		{"LPAE, reserved", l, arm.LPAE, 0, 1, 0x7001},
		{"LPAE, of neither", l, gap, 1 << 31, 0, 0},
		{"no MMU", s, arm.ModeOf(0, 0), 0, 0, 0},
	} {
		p := arm.NewPaging(c.m, c.mode, 0x100000, 0x900000)
		_, err := p.Translate(c.va)
		var f *mem.FaultError
		if !errors.Is(err, mem.ErrNotMapped) || !errors.As(err, &f) || f.Level != c.level || f.Entry != c.entry || f.Addr != uint64(c.va) {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, serr := p.Steps(c.va); serr == nil || serr.Error() != err.Error() {
			t.Errorf("%s: steps: %v", c.name, serr)
		}
	}
	ram, err := mem.NewRAM(mem.Segment{PA: 0x100000, Data: make([]byte, 4096)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := arm.NewPaging(ram, arm.Mode{}, 0x900000, 0).Translate(0); !errors.Is(err, mem.ErrNoRAM) {
		t.Errorf("root outside of RAM: %v", err)
	}
}

func TestModeOf(t *testing.T) {
	// SCTLR of Linux 6.1 on a Cortex-A15 (cr=10c5387d, cr=30c5387d).
	for _, c := range []struct {
		sctlr, ttbcr uint32
		want         arm.Mode
		name         string
		root         uint64
	}{
		{0x10c5387d, 0, arm.Mode{}, "short descriptors", 16 << 10},
		{0x10c5387d, 0x35, arm.Mode{Low: 5, NoLow: true, NoHigh: true}, "none", 512},
		{0x30c5387d, 3, arm.Mode{Low: 3, Access: true}, "short descriptors, N 3", 2 << 10},
		{0x30c5387d, 1<<31 | 0x3500_3500&^(7<<16), arm.LPAE, "LPAE", 32},
		{0x30c5387d, 1<<31 | 2<<16, arm.Mode{Long: true, High: 2}, "LPAE, T0SZ 0, T1SZ 2", 32},
		{0x30c5387d, 1<<31 | 1<<23 | 1<<7 | 3, arm.Mode{Long: true, Low: 3, NoLow: true, NoHigh: true}, "none", 256 * 8},
		{0x10c5387c, 0, arm.Mode{NoLow: true, NoHigh: true}, "none", 16 << 10},
	} {
		m := arm.ModeOf(c.sctlr, c.ttbcr)
		if m != c.want || m.String() != c.name || m.RootSize() != c.root || m.PageSize() != 4096 || m.PointerSize() != 4 {
			t.Errorf("%#x, %#x: %+v, %v, root of %d bytes", c.sctlr, c.ttbcr, m, m, m.RootSize())
		}
	}
}

func TestMappings(t *testing.T) {
	at := map[uint64]uint64{
		0x100000 + 0x000*4: 0x200001,
		0x200000 + 0x10*4:  0x7000 | 0x83e, // program, AP 0b011
		0x200000 + 0x11*4:  0x8000 | 0x83e,
		0x100000 + 0xc00*4: 0x40000000 | section | 1<<4,
		0x100000 + 0xc01*4: 0x40100000 | section | 1<<4,
		0x100000 + 0xc02*4: 0x40200000 | section | 1<<15,
	}
	for i := range uint64(16) {
		at[0x200000+(0x20+i)*4] = 0x30000 | large | 1 | 1<<15
		at[0x100000+(0xf00+i)*4] = 0x08000000 | 1<<18 | 0x412
	}
	p := arm.NewPaging(short(at), arm.Mode{}, 0x100000, 0)
	want := []arch.Region{
		{VA: 0x10000, PA: 0x7000, Size: 0x2000, Page: 4096, Perm: mem.User | mem.Write | mem.Exec},
		{VA: 0x20000, PA: 0x30000, Size: 64 << 10, Page: 64 << 10, Perm: mem.Write},
		{VA: 0xc0000000, PA: 0x40000000, Size: 2 << 20, Page: 1 << 20, Perm: mem.Write},
		{VA: 0xc0200000, PA: 0x40200000, Size: 1 << 20, Page: 1 << 20, Perm: mem.Exec},
		{VA: 0xf0000000, PA: 0x08000000, Size: 16 << 20, Page: 16 << 20, Perm: mem.Write},
	}
	for _, c := range []struct {
		first, last mem.VA
		want        []arch.Region
	}{
		{0, ^mem.VA(0), want},
		{0x11000, 0x11000, []arch.Region{{VA: 0x11000, PA: 0x8000, Size: 0x1000, Page: 4096, Perm: want[0].Perm}}},
		{0xc0234567, 0xc0234568, want[3:4]},
		{0x30000, 0xbfffffff, nil},
		{1 << 32, ^mem.VA(0), nil},
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

// Tables of the highest level but the lowest lead to their root.
func TestMappingsSelfReference(t *testing.T) {
	data := make([]byte, mem.PageSize)
	for i := 0; i < len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], 3)
	}
	phys := &memtest.Bytes{Data: data}
	var last error
	tables := 100
	for _, err := range arm.NewPaging(phys, arm.LPAE, 0, 0).MappingsWithin(&tables, 0, ^mem.VA(0)) {
		last = err
	}
	if !errors.Is(last, mem.ErrInconsistent) || phys.Reads() != 100 {
		t.Errorf("%d reads, last error %v", phys.Reads(), last)
	}
}
