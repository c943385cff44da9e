package xen

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"vmscope/internal/xenguest"
	"vmscope/mem"
	"vmscope/vm"
)

// paravirtual is what a PV guest has besides: two tables of frames.
type paravirtual struct {
	m   *machine
	m2p *m2p

	mu  sync.RWMutex
	p2m *p2m // nil: to be mapped
}

// openPV finds a PV guest's frames.
func (m *machine) openPV() error {
	// struct xen_domctl_address_size.
	r, err := m.host.control(domctlAddressSize, m.domain.ID, nil, nil)
	if err != nil {
		return err
	}
	if bits := le.Uint32(r.union); bits != 64 {
		return fmt.Errorf("a PV guest of %d bits: %w: only those of 64 bits are known", bits, errors.ErrUnsupported)
	}
	pv := &paravirtual{m: m}
	if pv.m2p, err = m.host.openM2P(); err != nil {
		return err
	}
	m.pv, m.space = pv, pv
	var ram runs
	_, disputed, err := pv.disputed(0, func(page, _ uint64) error {
		ram.add(page)
		return nil
	})
	if err != nil {
		return err
	}
	m.ram = ram
	m.about.Layout = "pseudo-physical frames; the guest's p2m and Xen's m2p agree on all"
	if disputed > 0 {
		m.about.Layout = fmt.Sprintf("pseudo-physical frames; the guest's p2m and Xen's m2p DISAGREE on %d", disputed)
	}
	return nil
}

// disputed lists the first pages on which the tables contradict each other, and counts all; agree is called for those on
// which they agree.
func (pv *paravirtual) disputed(most int, agree func(page, frame uint64) error) (list []vm.Disputed, all int, err error) {
	err = pv.tables(func(t *p2m) error {
		for page := range t.entries {
			frame, err := pv.frame(t, page)
			var d *FrameError
			switch {
			case err == nil:
				if err := agree(page, frame); err != nil {
					return err
				}
			case errors.As(err, &d):
				if all++; len(list) < most {
					list = append(list, vm.Disputed(*d))
				}
			case !errors.Is(err, mem.ErrNoRAM):
				return err
			}
		}
		return nil
	})
	return list, all, err
}

// Disputed lists pages of a PV guest on which its p2m and Xen's m2p contradict each other, or agree on a frame that is
// another domain's: the m2p tells each frame's number, and not whose that is. A guest of another kind has none: it knows no
// frames of the machine. The p2m is mapped anew: its pages may be others by now.
func (m *machine) Disputed(most int) ([]vm.Disputed, int, error) {
	if m.pv == nil {
		return nil, 0, nil
	}
	if err := m.pv.release(); err != nil {
		return nil, 0, err
	}
	var list []vm.Disputed
	all := 0
	var numbers, frames []uint64
	owned := func() error {
		types, err := m.host.types(m.domain.ID, frames)
		if err != nil {
			return err
		}
		for i, t := range types {
			if present(t) {
				continue
			}
			if all++; len(list) < most {
				list = append(list, vm.Disputed{Page: mem.PA(numbers[i] * mem.PageSize), Frame: frames[i]})
			}
		}
		numbers, frames = numbers[:0], frames[:0]
		return nil
	}
	more, n, err := m.pv.disputed(most, func(page, frame uint64) error {
		numbers, frames = append(numbers, page), append(frames, frame)
		if len(frames) < pageInfoMax {
			return nil
		}
		return owned()
	})
	if err == nil {
		err = owned()
	}
	list = append(list, more...)
	slices.SortFunc(list, func(a, b vm.Disputed) int { return cmp.Compare(a.Page, b.Page) })
	return list[:min(len(list), most)], all + n, err
}

// tables calls f with the guest's table mapped.
func (pv *paravirtual) tables(f func(*p2m) error) error {
	pv.mu.RLock()
	if pv.p2m == nil {
		pv.mu.RUnlock()
		t, err := pv.m.openP2M()
		if err != nil {
			return err
		}
		pv.mu.Lock()
		if pv.p2m == nil {
			pv.p2m = t
		} else {
			t.unmap()
		}
		pv.mu.Unlock()
		pv.mu.RLock()
	}
	defer pv.mu.RUnlock()
	if pv.p2m == nil {
		return fmt.Errorf("%w: the p2m was let go of meanwhile", mem.ErrUnreachable)
	}
	return mem.Guard(func() error { return f(pv.p2m) })
}

// release lets go of the guest's table.
func (pv *paravirtual) release() error {
	pv.mu.Lock()
	defer pv.mu.Unlock()
	if pv.p2m == nil {
		return nil
	}
	err := pv.p2m.unmap()
	pv.p2m = nil
	return err
}

// frame is the machine frame of a page, by both tables.
func (pv *paravirtual) frame(t *p2m, page uint64) (uint64, error) {
	e, ok := t.entry(page)
	switch {
	case !ok:
		return 0, mem.ErrNoRAM
	case e == noFrame:
		return 0, ErrBallooned
	case e&grantedFrame != 0:
		return 0, ErrGrant
	case e&identityFrame != 0:
		return 0, mem.ErrNoRAM
	}
	back, ok, err := pv.m2p.lookup(e)
	if err != nil {
		return 0, err
	}
	if !ok || back != page {
		d := &FrameError{Page: mem.PA(page * mem.PageSize), Frame: e, Owned: ok}
		if ok {
			d.Is = mem.PA(back * mem.PageSize)
		}
		return 0, d
	}
	return e, nil
}

// number is the page that a machine frame is: the guest's number where both tables agree on it, else the machine's.
func (pv *paravirtual) number(t *p2m, frame uint64) (uint64, error) {
	page, ok, err := pv.m2p.lookup(frame)
	if err != nil {
		return 0, err
	}
	if ok {
		if e, there := t.entry(page); there && e == frame {
			return page, nil
		}
	}
	return xenguest.MachinePage(frame), nil
}

func (pv *paravirtual) frameRun(first uint64, n int) ([]uint64, []error, error) {
	frames, faults := make([]uint64, n), make([]error, n)
	if xenguest.IsMachinePage(first) {
		frames[0] = xenguest.MachineFrame(first)
		return frames, faults, nil
	}
	err := pv.tables(func(t *p2m) error {
		for i := range frames {
			frames[i], faults[i] = pv.frame(t, first+uint64(i))
			if errors.Is(faults[i], mem.ErrUnreachable) {
				return faults[i]
			}
		}
		return nil
	})
	return frames, faults, err
}

// fault tells of a page that Xen does not map for this domain.
func (pv *paravirtual) fault(page uint64, err error) error {
	if err != mem.ErrNoRAM {
		return err
	}
	if xenguest.IsMachinePage(page) {
		return ErrForeign
	}
	return pv.tables(func(t *p2m) error {
		frame, err := pv.frame(t, page)
		if err != nil {
			return err
		}
		// Both tables agree on another domain's frame.
		return &FrameError{Page: mem.PA(page * mem.PageSize), Frame: frame}
	})
}

// tableRead is a piece of a page that was read, and may be one of a page table.
type tableRead struct {
	frame uint64
	off   int
	p     []byte
	words []byte // that p is of, as they were read: p itself where it is whole words
}

type tableReads []tableRead

// add notes a piece of the page in data, which the caller copies.
func (t *tableReads) add(frame uint64, off int, p []byte, page []byte) {
	words := p
	if lo, hi := off&^7, (off+len(p)+7)&^7; hi-lo != len(p) {
		words = append([]byte(nil), page[lo:hi]...)
	}
	*t = append(*t, tableRead{frame, off, p, words})
}

var errTypes = fmt.Errorf("%w: ask Xen for the types of frames", mem.ErrUnreachable)

// turnTables puts the guest's numbers into the pieces that are of page tables. Xen knows which pages are: it checks each
// entry that the guest writes there.
func (m *machine) turnTables(reads tableReads) error {
	if len(reads) == 0 {
		return nil
	}
	frames := make([]uint64, len(reads))
	for i := range reads {
		frames[i] = reads[i].frame
	}
	types, err := m.host.types(m.domain.ID, frames)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return m.Ended()
		}
		return fmt.Errorf("%w: %w", errTypes, err)
	}
	return m.pv.tables(func(t *p2m) error {
		for i := range reads {
			r := &reads[i]
			kind := types[i] & typeMask
			if kind < typeL1 || kind > typeL4 {
				continue
			}
			number := func(frame uint64) (uint64, error) { return m.pv.number(t, frame) }
			if err := xenguest.Turn(r.words, r.off&^7, uint8(kind/typeL1), number); err != nil {
				return err
			}
			copy(r.p, r.words[r.off%8:])
		}
		return nil
	})
}
