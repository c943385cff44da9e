package x86

import (
	"vmscope/arch"
	"vmscope/mem"
)

// Mode is a way in which the processor translates addresses.
type Mode uint8

// The paging modes, SDM 4.1.1. None translates nothing: paging is off.
const (
	None   Mode = iota
	Bits32      // two levels of 4-byte entries, pages of 4 KiB and 4 MiB
	PAE         // three levels, 32-bit addresses, pages of 4 KiB and 2 MiB
	Level4      // 48-bit addresses, pages of 4 KiB, 2 MiB and 1 GiB
	Level5      // LA57: 57-bit addresses, the same pages
)

// shape is what distinguishes the modes.
type shape struct {
	name   string
	levels uint8
	width  uint8  // bits of a virtual address that are translated
	root   mem.PA // bits of CR3 that hold the root's address
}

// physMask are the bits of an entry that may hold a physical address: 12 to 51,
// the most that the architecture allows. A processor with fewer address bits
// treats the rest as reserved; here an address beyond RAM says the same.
const physMask = 1<<52 - mem.PageSize

var shapes = [...]shape{
	None:   {name: "none"},
	Bits32: {"32-bit", 2, 32, 1<<32 - 1<<12},
	PAE:    {"PAE", 3, 32, 1<<32 - 1<<5},
	Level4: {"4-level", 4, 48, physMask},
	Level5: {"5-level", 5, 57, physMask},
}

// Kernel spans the address space of a kernel's root.
func (m Mode) Kernel(phys mem.PhysReader, root mem.PA) arch.Paging { return NewPaging(phys, root, m) }

// Process spans the address space of a process: the root that the kernel uses
// for it maps the kernel as well.
func (m Mode) Process(phys mem.PhysReader, user, _ mem.PA) arch.Paging {
	return NewPaging(phys, user, m)
}

// PageSize is 4 KiB on all x86.
func (m Mode) PageSize() uint64 { return mem.PageSize }

// PointerSize is 4 in the modes of 32 bits. (A processor in one of 64 may run
// processes of 32; kernels are of one size.)
func (m Mode) PointerSize() int {
	if m == Bits32 || m == PAE {
		return 4
	}
	return 8
}

// RootSize is the size of the topmost table, bytes.
func (m Mode) RootSize() uint64 {
	if m == PAE {
		return 4 * 8
	}
	return mem.PageSize
}

// String names the mode.
func (m Mode) String() string {
	if int(m) < len(shapes) {
		return shapes[m].name
	}
	return "unknown"
}

// Levels is how many tables a walk passes at most.
func (m Mode) Levels() int {
	if int(m) < len(shapes) {
		return int(shapes[m].levels)
	}
	return 0
}

// Canonical reports whether va is an address that the mode can translate: for
// the 64-bit modes the high bits repeat the highest translated bit (SDM volume
// 1, 3.3.7.1), for the 32-bit modes they are zero.
func (m Mode) Canonical(va mem.VA) bool {
	switch m {
	case Bits32, PAE:
		return va>>32 == 0
	case Level4, Level5:
		unused := 64 - shapes[m].width
		return int64(va)<<unused>>unused == int64(va)
	}
	return false
}

// Bits of the control registers that select the mode, SDM 2.5 and table 4-1.
const (
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	cr4LA57 = 1 << 12
	eferLMA = 1 << 10
)

// ModeOf tells the paging mode from the registers of one vCPU.
func ModeOf(cr0, cr4, efer uint64) Mode {
	switch {
	case cr0&cr0PG == 0:
		return None
	case efer&eferLMA != 0 && cr4&cr4LA57 != 0:
		return Level5
	case efer&eferLMA != 0:
		return Level4
	case cr4&cr4PAE != 0:
		return PAE
	}
	return Bits32
}

// ModeFromCR4 is ModeOf for a 64-bit kernel of which only CR4 is known.
func ModeFromCR4(cr4 uint64) Mode {
	return ModeOf(cr0PG, cr4, eferLMA)
}

// Page-table isolation (KPTI): a process has two roots in two adjacent pages,
// the kernel's first, and CR3 switches between them by one bit
// (PTI_USER_PGTABLE_BIT in Linux's arch/x86/include/asm/pgtable.h, since v4.15).
const ptiUser = mem.PageSize

// UserRoot is the root that a process runs on in user mode under KPTI, derived
// from the one it has in the kernel. The user root maps almost nothing of the
// kernel. Without KPTI that page is not a page table.
func UserRoot(root mem.PA) mem.PA { return root | ptiUser }

// KernelRoot is the inverse of UserRoot: it turns the CR3 of a vCPU that runs
// in user mode under KPTI into the root that maps the kernel.
func KernelRoot(root mem.PA) mem.PA { return root &^ ptiUser }
