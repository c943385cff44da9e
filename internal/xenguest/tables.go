// Package xenguest knows what domains of Xen have of their own, alike in a running domain and in its core: the page tables of
// PV domains, which hold frames of the machine, and the form in which Xen tells a vCPU's registers.
//
// A PV domain's pages are numbered here as its kernel numbers them ("pseudo-physical"). A frame of the machine that has no
// such number has one of its own, far behind all others: so page tables lead somewhere for each entry.
package xenguest

import (
	"encoding/binary"
	"fmt"

	"vmscope/mem"
)

var le = binary.LittleEndian

// ErrForeign says that a page table leads to a frame that is not the guest's: another domain's, Xen's, or a device's.
var ErrForeign = fmt.Errorf("%w: the frame is not the guest's", mem.ErrNoRAM)

// machineBase is set in the number of a page that is a frame of the machine.
const machineBase = 1 << (51 - 12)

// MachinePage numbers a frame of the machine that is no page of the domain: its shared_info, others' grants, frames that it
// hides from its own table.
func MachinePage(frame uint64) uint64 { return frame&(machineBase-1) | machineBase }

// IsMachinePage tells whether a page has a number of MachinePage.
func IsMachinePage(page uint64) bool { return page&machineBase != 0 && page>>(52-12) == 0 }

// MachineFrame is the frame of a page that MachinePage numbered.
func MachineFrame(page uint64) uint64 { return page &^ machineBase }

// MaxMachineFrame bounds the frames that can be numbered.
const MaxMachineFrame = machineBase

// Bits of page-table entries.
const (
	Present  = 1 << 0
	Writable = 1 << 1
	User     = 1 << 2
	Large    = 1 << 7
	// GuestKernel is Xen's own (_PAGE_GUEST_KERNEL): Xen runs the kernel of a PV guest with user rights, and notes in it that
	// the guest did not mean its users.
	GuestKernel = 1 << 52
	address     = (1<<52 - 1) &^ (mem.PageSize - 1)
)

// Frame is the frame of the machine in an entry.
func Frame(entry uint64) uint64 { return entry & address / mem.PageSize }

// The slots of a top table that Xen keeps for itself (asm-x86/config.h, ROOT_PAGETABLE_FIRST_XEN_SLOT and LAST): what is
// there is Xen's, and no business of the guest's. That of SelfSlot leads to the table itself (LINEAR_PT_VIRT_START); those
// from FirstCommonSlot on are alike in all tables of a domain (init_xen_l4_slots in xen/arch/x86/mm.c).
const (
	FirstXenSlot    = 256
	SelfSlot        = 258
	FirstCommonSlot = 260
	LastXenSlot     = 271
)

// IsXenSlot tells whether an entry of a table is Xen's own. Tables of the lowest level are of level 1.
func IsXenSlot(level uint8, slot int) bool {
	return level == 4 && slot >= FirstXenSlot && slot <= LastXenSlot
}

// Turn puts a PV domain's own numbers of pages into the words of a page table that start at byte off of it, a multiple of 8.
// number tells that of a frame.
func Turn(words []byte, off int, level uint8, number func(frame uint64) (page uint64, err error)) error {
	for i := 0; i+8 <= len(words); i += 8 {
		e := le.Uint64(words[i:])
		if IsXenSlot(level, (off+i)/8) {
			e = 0
		}
		if e&Present != 0 {
			page, err := number(Frame(e))
			if err != nil {
				return err
			}
			e = e&^address | page*mem.PageSize&address
			if e&GuestKernel != 0 {
				e &^= GuestKernel | User
			}
		}
		le.PutUint64(words[i:], e)
	}
	return nil
}
