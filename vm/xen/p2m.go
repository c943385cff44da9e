package xen

import (
	"fmt"

	"vmscope/arch/x86"
	"vmscope/internal/xenguest"
	"vmscope/mem"
)

// p2m is a PV guest's own table of which machine frame each of its pseudo-physical frames is, mapped as the guest keeps it
// (Linux arch/x86/xen/p2m.c). It is the guest's word, and checked against Xen's.
type p2m struct {
	*mapping
	entries uint64
}

// Entries of the table. All ones is a frame that the guest has not.
const (
	noFrame       = ^uint64(0)
	grantedFrame  = 1 << 63 // FOREIGN_FRAME_BIT: another domain's, by a grant
	identityFrame = 1 << 62 // IDENTITY_FRAME_BIT: a hole, or a device's
)

// Members of struct arch_shared_info, within struct shared_info of a 64-bit guest (arch-x86/xen.h).
const (
	sharedMaxPFN   = 3088
	sharedFrames   = 3096 // pfn_to_mfn_frame_list_list
	sharedP2MRoot  = 3112
	sharedP2MAddr  = 3120
	sharedInfoSize = 3144
)

// maxHole is how many frames more than it has a guest may number: those of a hole under 4 GiB.
const maxHole = 1 << 20

// openP2M finds the guest's table and maps it.
func (m *machine) openP2M() (*p2m, error) {
	var info [sharedInfoSize]byte
	raw := machineFrames{m}
	if _, err := raw.ReadPhys(info[:], mem.PA(m.domain.shared*mem.PageSize)); err != nil {
		return nil, fmt.Errorf("shared_info: %w", err)
	}
	entries := le.Uint64(info[sharedMaxPFN:])
	if entries == 0 {
		return nil, fmt.Errorf("the guest has not told where its frames are: it has just started: %w", mem.ErrNoRAM)
	}
	if most := m.domain.maxPages + maxHole; entries > most {
		return nil, fmt.Errorf("the guest numbers %d frames, and may have %d: %w", entries, most, mem.ErrInconsistent)
	}
	n := (entries*8 + mem.PageSize - 1) / mem.PageSize
	var frames []uint64
	var err error
	if at := le.Uint64(info[sharedP2MAddr:]); at != 0 {
		frames, err = listAt(raw, mem.PA(le.Uint64(info[sharedP2MRoot:])), mem.VA(at), n)
	} else {
		frames, err = listTree(raw, le.Uint64(info[sharedFrames:]), n)
	}
	if err != nil {
		return nil, fmt.Errorf("the guest's p2m: %w", err)
	}
	t, err := m.host.mapFrames(m.domain.ID, frames, false)
	if err != nil {
		return nil, fmt.Errorf("%w: map the guest's p2m: %w", mem.ErrUnreachable, err)
	}
	return &p2m{t, entries}, nil
}

// listAt lists the machine frames of n pages at an address, in tables that have machine frames, too.
func listAt(raw mem.PhysReader, root mem.PA, at mem.VA, n uint64) ([]uint64, error) {
	frames := make([]uint64, n)
	if at%mem.PageSize != 0 {
		return nil, fmt.Errorf("at %#x: %w", uint64(at), mem.ErrInconsistent)
	}
	last := at + mem.VA(n*mem.PageSize-1)
	if last < at {
		return nil, fmt.Errorf("%d pages at %#x: %w", n, uint64(at), mem.ErrInconsistent)
	}
	for r, err := range x86.NewPaging(raw, root, x86.Level4).Mappings(at, last) {
		if err != nil {
			return nil, err
		}
		for off := uint64(0); off < r.Size; off += mem.PageSize {
			if va := r.VA + mem.VA(off); va >= at && va <= last {
				frames[(va-at)/mem.PageSize] = uint64(r.PA)/mem.PageSize + off/mem.PageSize
			}
		}
	}
	return frames, nil
}

// listTree lists the machine frames of n pages by the table of tables that kernels before 3.19 have (xen.h,
// pfn_to_mfn_frame_list_list): a page of machine frames of pages of machine frames of the pages.
func listTree(raw mem.PhysReader, top, n uint64) ([]uint64, error) {
	const perPage = mem.PageSize / 8
	if top == 0 || top >= 1<<40 || n > perPage*perPage {
		return nil, fmt.Errorf("no table of %d pages at frame %#x: %w", n, top, mem.ErrInconsistent)
	}
	var frames []uint64
	var upper, lower [mem.PageSize]byte
	if _, err := raw.ReadPhys(upper[:], mem.PA(top*mem.PageSize)); err != nil {
		return nil, err
	}
	for i := 0; uint64(len(frames)) < n; i++ {
		at := le.Uint64(upper[i*8:])
		if at >= 1<<40 {
			return nil, fmt.Errorf("table at frame %#x: %w", at, mem.ErrInconsistent)
		}
		if _, err := raw.ReadPhys(lower[:], mem.PA(at*mem.PageSize)); err != nil {
			return nil, err
		}
		for k := 0; k < perPage && uint64(len(frames)) < n; k++ {
			frames = append(frames, le.Uint64(lower[k*8:]))
		}
	}
	return frames, nil
}

// entry is the table's for a page; ok is false where it has none. It must run inside mem.Guard.
func (t *p2m) entry(page uint64) (e uint64, ok bool) {
	if page >= t.entries || t.errs[page*8/mem.PageSize] != 0 {
		return 0, false
	}
	return le.Uint64(t.data[page*8:]), true
}

// machineFrames reads frames of a PV guest by the numbers of the machine, as they are.
type machineFrames struct{ m *machine }

func (r machineFrames) ReadPhys(p []byte, pa mem.PA) (n int, err error) {
	for n < len(p) {
		at := pa + mem.PA(n)
		off := int(at % mem.PageSize)
		k := min(len(p)-n, mem.PageSize-off)
		page := uint64(at) / mem.PageSize
		if page >= xenguest.MaxMachineFrame {
			return n, &mem.FaultError{Op: "read", Space: "machine", Addr: uint64(at), Err: mem.ErrNoRAM}
		}
		err := r.m.look(xenguest.MachinePage(page), func(w *window, i int) error {
			if w.faults[i] != nil {
				return w.faults[i]
			}
			return mem.Guard(func() error {
				copy(p[n:n+k], w.data[i*mem.PageSize+off:])
				return nil
			})
		})
		if err != nil {
			return n, &mem.FaultError{Op: "read", Space: "machine", Addr: uint64(at), Err: err}
		}
		n += k
	}
	return n, nil
}
