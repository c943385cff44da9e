package dump

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// makeVBox writes VirtualBox's core byte by byte as its DBGFCoreWrite.cpp does:
// one PT_NOTE, a PT_LOAD for each range, names without their NUL in the length
// and all padded to 8 bytes.
func makeVBox(version uint32, regs []vm.Registers, memory map[mem.PA][]byte, order ...mem.PA) []byte {
	le := binary.LittleEndian
	words := func(v ...any) []byte {
		var b []byte
		for _, v := range v {
			b, _ = binary.Append(b, le, v)
		}
		return b
	}
	note := func(name string, typ uint32, desc []byte) []byte {
		b := words(uint32(len(name)), uint32(len(desc)), typ)
		b = append(append(b, name...), make([]byte, 8-len(name))...)
		return append(b, desc...)
	}
	notes := note("VBCORE", 0xb00, words(uint32(0xc01ac0de), version, uint32(24), uint32(0x7000e00), uint32(158379), uint32(len(regs))))
	for _, r := range regs {
		g := r.General
		seg := func(base uint64, sel uint16) []byte {
			return words(base, uint32(0xffffffff), uint32(0xa09b), sel, uint16(0), uint32(0))
		}
		d := words(g[0], g[3], g[1], g[2], g[6], g[7], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15], r.RIP, r.RSP, g[5], r.RFLAGS)
		for _, s := range [][]byte{seg(0, r.CS), seg(1, 2), seg(3, 4), seg(5, 6), seg(r.GSBase, 7), seg(0, r.SS)} { // cs ds es fs gs ss
			d = append(d, s...)
		}
		d = append(d, words(r.CR0, uint64(2), r.CR3, r.CR4, [8]uint64{})...)
		d = append(d, words(r.GDTBase, uint32(0x7f), uint32(0), r.IDTBase, uint32(0xfff), uint32(0))...)
		d = append(append(d, seg(0, 0)...), seg(0, 0x40)...)                         // ldtr tr
		d = append(d, words(uint64(1), r.SysenterEIP, uint64(3))...)                 // sysenter: cs eip esp
		d = append(d, words(r.EFER, uint64(4), uint64(5))...)                        // STAR PAT
		d = append(d, words(r.LSTAR, r.CSTAR, uint64(7), r.KernelGS)...)             // SFMASK
		d = append(d, words(uint64(8), uint64(9), [2]uint64{}, make([]byte, 16))...) // APIC base, TSC_AUX, XCR, the rest
		notes = append(notes, note("VBCPU", 0xb01, d)...)
	}
	b := append([]byte("\x7fELF\x02\x01\x00"), make([]byte, 9)...)
	b = append(b, words(uint16(4), uint16(62), uint32(1), uint64(0), uint64(64), uint64(0), uint32(0), uint16(64), uint16(56), uint16(len(order)+1), uint16(64), uint16(0), uint16(0))...)
	at := uint64(64 + 56*(len(order)+1))
	b = append(b, words(uint32(4), uint32(4), at, uint64(0), uint64(0), uint64(len(notes)), uint64(0), uint64(0))...)
	at += uint64(len(notes))
	for _, pa := range order {
		n := uint64(len(memory[pa]))
		b = append(b, words(uint32(1), uint32(7), at, uint64(0), uint64(pa), n, n, uint64(0))...)
		at += n
	}
	b = append(b, notes...)
	for _, pa := range order {
		b = append(b, memory[pa]...)
	}
	return b
}

func TestVirtualBoxContract(t *testing.T) {
	memory := map[mem.PA][]byte{0: pattern(1, 0xa0<<12), 1 << 20: pattern(2, 30<<12), 4 << 30: pattern(3, 5<<12)}
	order := []mem.PA{0, 1 << 20, 4 << 30}
	path := file(t, makeVBox(0x10006, stateCPUs(), memory, order...))
	vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
		Ranges: []mem.Range{{Start: 0, Size: 0xa0 << 12}, {Start: 1 << 20, Size: 30 << 12}, {Start: 4 << 30, Size: 5 << 12}}, Bytes: memory, CPUs: 2,
	})
	m := open(t, path)
	defer m.Close()
	if r, err := m.(vm.CPUs).CPUs(t.Context()); err != nil || !slices.Equal(r, stateCPUs()) {
		t.Errorf("%v\n got %+v\nwant %+v", err, r, stateCPUs())
	}
	// Other versions have other CPUs: none rather than wrong ones.
	for _, version := range []uint32{0x10000, 0x10007} {
		m := open(t, file(t, makeVBox(version, stateCPUs(), memory, order...)))
		defer m.Close()
		if r, err := m.(vm.CPUs).CPUs(t.Context()); err == nil {
			t.Errorf("version %#x: %+v", version, r)
		}
		if l := m.(vm.Describer).Info().Layout; !strings.Contains(l, "are not read") {
			t.Errorf("layout %q", l)
		}
	}
}
