// Package xen reads the memory of the domains of a Xen host, from its dom0. It talks to the hypervisor by itself, through
// /dev/xen/privcmd and /dev/xen/hypercall; no library of Xen's is needed. Names come from xenstore.
//
// Physical addresses are what the guest itself takes for physical ones, whatever its kind:
//
//   - An HVM or PVH guest has nested paging; its guest frame numbers are used as they are.
//   - A PV guest knows the frames of the machine, and has them in its page tables; what its kernel calls physical is a
//     numbering of its own ("pseudo-physical"). The machine of such a guest is in that numbering: frames are found by the
//     guest's table of them (p2m), which has to agree with Xen's (m2p), and page tables are shown with the guest's
//     numbers in place of the machine's. So a walk of page tables, a kernel's phys_base, its direct map and its struct
//     pages mean the same here as everywhere.
//
// Sources: xen/include/public (xen.h, domctl.h, sysctl.h, memory.h, arch-x86/xen.h, arch-x86/hvm/save.h) of Xen 4.11 to 4.20; Linux
// include/uapi/xen/privcmd.h and drivers/xen/privcmd.c.
package xen

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vmscope/internal/xenguest"
	"vmscope/mem"
	"vmscope/vm"
)

var le = binary.LittleEndian

// Errors of Open and List, beside vm.ErrNoVM and vm.ErrManyVMs. Each message names the domain and says what to do.
var (
	// ErrNoXen says that this is no dom0 of a Xen host.
	ErrNoXen = errors.New("this is no dom0 of a Xen host")
	// ErrPermission says that the device or the hypervisor refuses us.
	ErrPermission = errors.New("not allowed to look into domains")
	// ErrPrivileged says that the domain is dom0, which is this host itself.
	ErrPrivileged = errors.New("domain 0 is this host itself: only other domains can be looked into")
)

// Errors of single frames. All but ErrPageTable are of class mem.ErrNoRAM, ErrFrames of class mem.ErrInconsistent.
var (
	// ErrBallooned says that the guest gave the frame back to Xen: a PV guest at any time, as it notes that in its p2m; of
	// one with nested paging since the machine was opened, for what was given back before looks like any hole.
	ErrBallooned = fmt.Errorf("%w: the guest gave the frame back (balloon)", mem.ErrNoRAM)
	// ErrPagedOut says that Xen has the frame on disk (xenpaging).
	ErrPagedOut = fmt.Errorf("%w: the frame is paged out", mem.ErrNoRAM)
	// ErrGrant says that the frame is another domain's, which granted it to the guest.
	ErrGrant = fmt.Errorf("%w: the frame is a grant of another domain", mem.ErrNoRAM)
	// ErrForeign says that a page table leads to a frame that is not the guest's: another domain's, Xen's, or a device's.
	ErrForeign = xenguest.ErrForeign
	// ErrFrames says that the guest's table of its frames and Xen's contradict each other.
	ErrFrames = fmt.Errorf("%w: the guest's p2m and Xen's m2p disagree on the frame", mem.ErrInconsistent)
	// ErrPageTable says that the page is a page table of a PV guest, or has its segment descriptors (GDT, LDT). Xen lets
	// nobody write them: an unchecked entry would reach any memory of the host.
	ErrPageTable = errors.New("the page is a page table of a PV guest, or has its segment descriptors, which Xen protects from writes")
)

// FrameError is the ErrFrames of one page.
type FrameError vm.Disputed

func (e *FrameError) Error() string {
	is := "none of its pages"
	if e.Owned {
		is = fmt.Sprintf("page %#x", uint64(e.Is))
	}
	return fmt.Sprintf("%v: the guest has page %#x in machine frame %#x, which by Xen is %s", ErrFrames, uint64(e.Page), e.Frame, is)
}

// Unwrap gives the class.
func (e *FrameError) Unwrap() error { return ErrFrames }
