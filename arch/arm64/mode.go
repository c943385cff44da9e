package arm64

import (
	"fmt"

	"vmscope/arch"
	"vmscope/mem"
)

// Granule is the size of the smallest page, which is that of a table as well, as
// the number of its address bits.
type Granule uint8

// The granules that there are.
const (
	Granule4K  Granule = 12
	Granule16K Granule = 14
	Granule64K Granule = 16
)

// String is "4K", "16K" or "64K".
func (g Granule) String() string { return fmt.Sprintf("%dK", 1<<g>>10) }

// stride is how many bits of an address a table of full size translates.
func (g Granule) stride() uint { return uint(g) - 3 }

// Half is how one of the two halves of the address space is translated: what
// TCR_EL1 says for TTBR0_EL1 or TTBR1_EL1. The zero Half translates nothing.
type Half struct {
	Granule Granule
	Bits    uint8 // of an address that are translated: 64 - TxSZ
	// Wide says that descriptors hold 52-bit addresses: FEAT_LPA with the granule
	// of 64 KiB, FEAT_LPA2 (TCR_EL1.DS) with the others.
	Wide bool
	// TopIgnored says that the top byte of an address is not looked at (TBI).
	TopIgnored bool
	// Flat says that tables take no permissions away (HPD).
	Flat bool
	// Dirty says that a page which is read-only but has DBM set can be written:
	// hardware makes it writable then (TCR_EL1.HA and HD), or the kernel.
	Dirty bool
}

// Bounds of Bits: TxSZ of 48 (FEAT_TTST) and of 12 (FEAT_LVA, FEAT_LPA2).
const minBits, maxBits = 16, 52

// valid reports whether the half translates anything.
func (h *Half) valid() bool {
	switch h.Granule {
	case Granule4K, Granule16K:
		return h.Bits >= minBits && (h.Bits <= 48 || h.Wide && h.Bits <= maxBits)
	case Granule64K:
		return h.Bits > uint8(Granule64K) && h.Bits <= maxBits
	}
	return false
}

// levels is how many tables a walk passes (D8.2.6 to D8.2.8: the initial lookup
// level): as many strides as it takes, of which the topmost may be cut short.
func (h *Half) levels() uint8 {
	s := h.Granule.stride()
	return uint8((uint(h.Bits) - uint(h.Granule) + s - 1) / s)
}

// shift is the lowest bit of an address that selects a descriptor in a table of
// the given level.
func (h *Half) shift(level uint8) uint { return uint(h.Granule) + h.Granule.stride()*uint(level-1) }

// entries is how many descriptors a table of the level has.
func (h *Half) entries(level uint8) uint64 {
	if level == h.levels() {
		return 1 << (uint(h.Bits) - h.shift(level))
	}
	return 1 << h.Granule.stride()
}

// blocks is the highest level whose descriptors may map a block (D8.3.1, table
// of block descriptors): 1 GiB, 32 MiB and 512 MiB by granule; one level more,
// 512 GiB, 64 GiB and 4 TiB, where addresses have 52 bits.
func (h *Half) blocks() uint8 {
	n := uint8(2)
	if h.Granule == Granule4K {
		n++
	}
	if h.Wide {
		n++
	}
	return n
}

// address is the physical address in a descriptor of a table or page (D8.3.1).
func (h *Half) address(d uint64) mem.PA {
	low := uint64(1)<<h.Granule - 1
	switch {
	case !h.Wide:
		return mem.PA(d & (1<<48 - 1) &^ low)
	case h.Granule == Granule64K:
		return mem.PA(d&(1<<48-1)&^low | d>>12&15<<48)
	}
	return mem.PA(d&(1<<50-1)&^low | d>>8&3<<50)
}

// Root is the address of the topmost table that TTBR0_EL1 or TTBR1_EL1 tells;
// bits that are not address (ASID, CnP) are dropped.
func (h *Half) Root(ttbr uint64) mem.PA {
	if !h.valid() {
		return 0
	}
	pa := ttbr & (1<<48 - 1)
	if h.Wide { // bits 2 to 5 are 48 to 51
		return mem.PA(pa&^max(h.rootSize()-1, 63) | ttbr>>2&15<<48)
	}
	return mem.PA(pa &^ (h.rootSize() - 1))
}

func (h *Half) rootSize() uint64 { return 8 * h.entries(h.levels()) }

// Mode is how both halves are translated: Low by TTBR0_EL1, addresses from 0 up,
// where processes live; High by TTBR1_EL1, addresses down from the top, where
// the kernel lives.
type Mode struct{ Low, High Half }

// Alike is the mode whose halves are translated alike.
func Alike(h Half) Mode { return Mode{h, h} }

// ModeOf tells the mode from TCR_EL1. FEAT_LPA needs no bit of its own: the
// output size (IPS) asks for it.
func ModeOf(tcr uint64) Mode {
	low := [4]Granule{Granule4K, Granule64K, Granule16K}
	high := [4]Granule{1: Granule16K, 2: Granule4K, 3: Granule64K}
	bit := func(n uint) bool { return tcr>>n&1 != 0 }
	half := func(g Granule, size uint64, tbi, hpd bool) Half {
		const ds, ha, hd, ips52 = 59, 39, 40, 6
		wide := bit(ds)
		if g == Granule64K {
			wide = tcr>>32&7 == ips52
		}
		return Half{g, uint8(64 - size&63), wide, tbi, hpd, bit(ha) && bit(hd)}
	}
	m := Mode{
		Low:  half(low[tcr>>14&3], tcr, bit(37), bit(41)),
		High: half(high[tcr>>30&3], tcr>>16, bit(38), bit(42)),
	}
	if bit(7) { // EPD0
		m.Low = Half{}
	}
	if bit(23) { // EPD1
		m.High = Half{}
	}
	return m
}

// String describes the kernel's half.
func (m Mode) String() string {
	h := &m.High
	if !h.valid() {
		return "none"
	}
	s := fmt.Sprintf("%d-level, %v pages, %d-bit", h.levels(), h.Granule, h.Bits)
	if h.Wide && h.Granule != Granule64K {
		s += " (LPA2)"
	}
	return s
}

// Kernel spans the kernel's half alone.
func (m Mode) Kernel(phys mem.PhysReader, root mem.PA) arch.Paging {
	return NewPaging(phys, Mode{High: m.High}, 0, root)
}

// Process spans both halves.
func (m Mode) Process(phys mem.PhysReader, user, kernel mem.PA) arch.Paging {
	return NewPaging(phys, m, user, kernel)
}

// PageSize is that of the smallest page, bytes.
func (m Mode) PageSize() uint64 { return 1 << m.High.Granule }

// PointerSize is 8: kernels of 32 bits are not AArch64's.
func (m Mode) PointerSize() int { return 8 }

// RootSize is the size of the topmost table, bytes.
func (m Mode) RootSize() uint64 {
	if !m.High.valid() {
		return mem.PageSize
	}
	return m.High.rootSize()
}
