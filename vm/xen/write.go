package xen

import (
	"fmt"

	"golang.org/x/sys/unix"

	"vmscope/internal/xenguest"
	"vmscope/mem"
)

// writableMachine is a machine that was opened Writable.
type writableMachine struct{ *machine }

// WritePhys changes the guest's memory, page by page: what Xen refuses has changed nothing, what lies before it has. A page
// table of a PV guest is ErrPageTable.
func (m *writableMachine) WritePhys(p []byte, pa mem.PA) (n int, err error) {
	for n < len(p) {
		at := pa + mem.PA(n)
		off := int(at % mem.PageSize)
		k := min(len(p)-n, mem.PageSize-off)
		if at < pa {
			return n, &mem.FaultError{Op: "write", Addr: uint64(at), Err: mem.ErrNoRAM}
		}
		if err := m.writePage(p[n:n+k], uint64(at)/mem.PageSize, off); err != nil {
			return n, &mem.FaultError{Op: "write", Addr: uint64(at), Err: err}
		}
		n += k
	}
	return n, nil
}

func (m *writableMachine) writePage(p []byte, page uint64, off int) error {
	if page > m.lastPage() && !(m.pv != nil && xenguest.IsMachinePage(page)) {
		return mem.ErrNoRAM
	}
	frames, faults, err := m.space.frameRun(page, 1)
	if err == nil {
		err = faults[0]
	}
	if err != nil {
		return err
	}
	w, err := m.host.mapFrames(m.domain.ID, frames, true)
	if err != nil {
		return fmt.Errorf("%w: map a frame of domain %d: %w", mem.ErrUnreachable, m.domain.ID, err)
	}
	defer w.unmap()
	if errno := w.errs[0]; errno != 0 {
		return m.refused(page, frames[0], errno)
	}
	return mem.Guard(func() error {
		copy(w.data[off:], p)
		return nil
	})
}

// refused tells why Xen does not map a frame for writing.
func (m *writableMachine) refused(page, frame uint64, errno unix.Errno) error {
	if m.pv != nil {
		if t, err := m.host.types(m.domain.ID, []uint64{frame}); err == nil && t[0]&typeMask >= typeL1 && t[0]&typeMask <= typeL4 {
			return ErrPageTable
		}
	}
	return m.space.fault(page, frameError(errno))
}
