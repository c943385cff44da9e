package arm

import (
	"fmt"

	"vmscope/arch"
	"vmscope/mem"
)

// Mode is how addresses are translated: what TTBCR and SCTLR say. The zero Mode
// is that of short descriptors with all addresses by TTBR0, as Linux has it.
type Mode struct {
	// Long says that descriptors have 8 bytes and lead to 40 bits of address
	// (TTBCR.EAE).
	Long bool
	// Low and High say what TTBR0 and TTBR1 translate. With short descriptors Low
	// is TTBCR.N: TTBR0 has the addresses whose N highest bits are zero, TTBR1 the
	// others, and High counts for nothing. With long ones they are TTBCR.T0SZ and
	// T1SZ: TTBR0 has the addresses whose T0SZ highest bits are zero, TTBR1 those
	// whose T1SZ highest bits are one; one of them being 0, it has what the other
	// leaves, and TTBR0 has all if both are. None is above 7.
	Low, High uint8
	// NoLow and NoHigh say that TTBR0, or TTBR1, is not walked (PD0 and PD1, EPD0
	// and EPD1).
	NoLow, NoHigh bool
	// Access says that AP[0] of a short descriptor is the access flag (SCTLR.AFE).
	// It is of every long one.
	Access bool
}

// LPAE is the mode of long descriptors with all addresses by TTBR0. Linux has the
// last GiB by TTBR1, to which the tables of TTBR0 lead as well.
var LPAE = Mode{Long: true}

// Bits of SCTLR and TTBCR: B4.1.130, B4.1.153.
const (
	sctlrM   = 1 << 0
	sctlrAFE = 1 << 29
	ttbcrEAE = 1 << 31
)

// ModeOf tells the mode from SCTLR and TTBCR of one vCPU. Where the MMU is off it
// translates nothing.
func ModeOf(sctlr, ttbcr uint32) Mode {
	bit := func(n uint) bool { return ttbcr>>n&1 != 0 }
	m := Mode{Low: uint8(ttbcr & 7), NoLow: bit(4), NoHigh: bit(5), Access: sctlr&sctlrAFE != 0}
	if ttbcr&ttbcrEAE != 0 {
		m = Mode{Long: true, Low: uint8(ttbcr & 7), High: uint8(ttbcr >> 16 & 7), NoLow: bit(7), NoHigh: bit(23)}
	}
	if sctlr&sctlrM == 0 {
		m.NoLow, m.NoHigh = true, true
	}
	return m
}

// String names the mode.
func (m Mode) String() string {
	switch {
	case m.NoLow && m.NoHigh:
		return "none"
	case m.Long && m.Low|m.High != 0:
		return fmt.Sprintf("LPAE, T0SZ %d, T1SZ %d", m.Low, m.High)
	case m.Long:
		return "LPAE"
	case m.Low != 0:
		return fmt.Sprintf("short descriptors, N %d", m.Low)
	}
	return "short descriptors"
}

// Kernel spans the address space of a kernel's root.
func (m Mode) Kernel(phys mem.PhysReader, root mem.PA) arch.Paging {
	return NewPaging(phys, m, root, root)
}

// Process spans the address space of a process: its own tables by TTBR0, the
// kernel's by TTBR1 if that translates anything.
func (m Mode) Process(phys mem.PhysReader, user, kernel mem.PA) arch.Paging {
	return NewPaging(phys, m, user, kernel)
}

// PageSize is 4 KiB.
func (m Mode) PageSize() uint64 { return mem.PageSize }

// PointerSize is 4.
func (m Mode) PointerSize() int { return 4 }

// RootSize is the size of the table of TTBR0, bytes.
func (m Mode) RootSize() uint64 {
	r := region{bits: 32 - uint(m.Low&7)}
	r.top = m.top(r.bits)
	return m.entries(&r, r.top) * m.entrySize()
}

// region is the addresses that one of TTBR0 and TTBR1 translates.
type region struct {
	root        mem.PA
	first, last mem.VA
	bits        uint   // of an address that its tables index; the topmost may be cut short
	base        mem.VA // which the first entry of its root translates
	top         uint8  // level of the root
}

// regions are those of the mode, lowest first (B3.5.4, B3.6.4), with roots of
// which the bits that are not address (ASID, attributes) are dropped.
func (m Mode) regions(low, high mem.PA) (out []region) {
	n, h := uint(m.Low&7), uint(m.High&7)
	if !m.Long {
		h = 0
	}
	const end = mem.VA(1) << 32
	a := region{root: low, last: end>>n - 1, bits: 32 - n}
	b := region{root: high, first: end - end>>h, last: end - 1, bits: 32 - h}
	switch {
	case h == 0: // what the other leaves
		b.first = a.last + 1
	case n == 0:
		a.last = b.first - 1
	}
	if b.bits < 32 {
		b.base = b.first
	}
	for i, r := range [...]region{a, b} {
		if r.first > r.last || i == 0 && m.NoLow || i == 1 && m.NoHigh {
			continue
		}
		r.top = m.top(r.bits)
		r.root &= mem.PA(1)<<m.width() - 1
		r.root &^= mem.PA(m.entries(&r, r.top)*m.entrySize() - 1)
		out = append(out, r)
	}
	return out
}

// top is the level of the root of tables that index so many bits.
func (m Mode) top(bits uint) uint8 {
	if m.Long && bits > 30 {
		return 3
	}
	return 2
}

// width is how many bits the address of a table has.
func (m Mode) width() uint {
	if m.Long {
		return 40
	}
	return 32
}

// entrySize is the size of a descriptor, bytes.
func (m Mode) entrySize() uint64 {
	if m.Long {
		return 8
	}
	return 4
}

// shift is the lowest bit of an address that selects a descriptor in a table of
// the level.
func (m Mode) shift(level uint8) uint {
	if m.Long {
		return 12 + 9*uint(level-1)
	}
	return 12 + 8*uint(level-1)
}

// entries is how many descriptors a table of the level has.
func (m Mode) entries(r *region, level uint8) uint64 {
	switch {
	case level == r.top:
		return 1 << (r.bits - m.shift(level))
	case m.Long:
		return 512
	}
	return 256
}
