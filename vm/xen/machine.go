package xen

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"vmscope/internal/xenguest"
	"vmscope/mem"
	"vmscope/vm"
)

// frameSpace is how a guest numbers its frames.
type frameSpace interface {
	// frameRun tells the frames of n pages from the first on, and why there is none.
	frameRun(first uint64, n int) ([]uint64, []error, error)
	// fault tells more of why Xen does not map a page, where all that is known is mem.ErrNoRAM. It may map tables of the
	// guest: not to be called while a window is looked into.
	fault(page uint64, err error) error
}

// machine is a domain as a vm.Machine.
type machine struct {
	host   *host
	domain Domain
	space  frameSpace
	win    windows
	ram    []mem.Range
	pv     *paravirtual // nil: the guest has nested paging
	about  vm.Info
	pause  pauses
	owned  bool // the host is ours to close

	writable bool
	closed   sync.Once
}

// Option changes how Open works.
type Option func(*options)

type options struct{ writable bool }

// Writable makes the machine a mem.PhysWriter.
func Writable() Option { return func(o *options) { o.writable = true } }

// Open opens the domain of that number or name. The machine is a mem.Ranger, a mem.VecReader, a vm.Describer, a vm.CPUs, a
// vm.Pauser, a vm.Ender and a vm.Releaser; with Writable also a mem.PhysWriter.
//
// Frames that the guest has not are errors of their own (see ErrBallooned and the others); all are FaultErrors.
func Open(ctx context.Context, target string, opts ...Option) (vm.Machine, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	d, err := openDevice()
	if err != nil {
		return nil, err
	}
	m, err := open(ctx, d, target, o)
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("xen:%s: %w", target, err)
	}
	return m, nil
}

func open(ctx context.Context, h hypervisor, target string, o options) (vm.Machine, error) {
	x, err := openHost(h)
	if err != nil {
		return nil, err
	}
	list, err := x.domains()
	if err != nil {
		return nil, err
	}
	name(ctx, list)
	d, err := x.find(target, list)
	if err != nil {
		return nil, err
	}
	return x.attach(d, o)
}

// attach makes a machine of a domain.
func (x *host) attach(d Domain, o options) (vm.Machine, error) {
	m := &machine{host: x, domain: d, writable: o.writable}
	m.win = windows{host: x, domain: d.ID, open: map[uint64]*window{}}
	m.about = vm.Info{Name: d.Name, Domain: int(d.ID), VMM: "xen-" + string(d.Kind), RAM: d.RAM, Live: true, Route: "foreign mapping by privcmd"}
	var err error
	if d.Kind == PV {
		err = m.openPV()
	} else {
		var ram []mem.Range
		if ram, err = x.findRAM(d); err == nil {
			m.ram, m.space = ram, &nested{x, d.ID, ram}
			m.about.Layout = "guest frames, told by Xen"
		}
	}
	if err == nil && len(m.ram) == 0 {
		err = fmt.Errorf("%w: the domain has no memory (it is just being made, or ends)", mem.ErrNoRAM)
	}
	if err != nil {
		return nil, errors.Join(err, m.unmap())
	}
	if o.writable {
		return &writableMachine{m}, nil
	}
	return m, nil
}

// Info describes the domain.
func (m *machine) Info() vm.Info { return m.about }

// Ranges lists the frames that the guest had when it was opened. What it has given back since are errors of single frames.
func (m *machine) Ranges() []mem.Range { return append([]mem.Range(nil), m.ram...) }

// ReadPhys copies out of the windows.
func (m *machine) ReadPhys(p []byte, pa mem.PA) (n int, err error) {
	v := [1]mem.Vec{{P: p, PA: pa}}
	_, err = m.ReadPhysVec(v[:])
	if err == nil {
		return len(p), nil
	}
	var f *mem.FaultError
	if errors.As(err, &f) && f.Addr >= uint64(pa) {
		n = int(min(f.Addr-uint64(pa), uint64(len(p))))
	}
	return n, err
}

// ReadPhysVec copies all pieces. Pages of a PV guest that are page tables are turned into the guest's numbers; which they
// are is asked for all pages together.
func (m *machine) ReadPhysVec(v []mem.Vec) (n int, err error) {
	var tables tableReads
	for i := range v {
		if err := m.readPiece(v[i].P, v[i].PA, &tables); err != nil {
			if terr := m.turnTables(tables); terr != nil {
				return 0, &mem.FaultError{Op: "read", Addr: uint64(v[0].PA), Err: terr}
			}
			return i, err
		}
	}
	if err := m.turnTables(tables); err != nil {
		return 0, &mem.FaultError{Op: "read", Addr: uint64(v[0].PA), Err: err}
	}
	return len(v), nil
}

func (m *machine) readPiece(p []byte, pa mem.PA, tables *tableReads) error {
	for n := 0; n < len(p); {
		at := pa + mem.PA(n)
		off := int(at % mem.PageSize)
		k := min(len(p)-n, mem.PageSize-off)
		if at < pa { // around the end of all addresses
			return &mem.FaultError{Op: "read", Addr: uint64(at), Err: mem.ErrNoRAM}
		}
		if err := m.readPage(p[n:n+k], at, tables); err != nil {
			return err
		}
		n += k
	}
	return nil
}

// readPage reads a part of one page.
func (m *machine) readPage(p []byte, pa mem.PA, tables *tableReads) error {
	page, off := uint64(pa)/mem.PageSize, int(pa%mem.PageSize)
	err := m.look(page, func(w *window, i int) error {
		if err := w.faults[i]; err != nil {
			return err
		}
		return mem.Guard(func() error {
			data := w.data[i*mem.PageSize : (i+1)*mem.PageSize]
			copy(p, data[off:])
			if m.pv != nil {
				tables.add(w.frames[i], off, p, data)
			}
			return nil
		})
	})
	if err == nil {
		return nil
	}
	var f *mem.FaultError
	if errors.As(err, &f) {
		err = f.Err
	}
	return &mem.FaultError{Op: "read", Addr: uint64(pa), Err: m.space.fault(page, err)}
}

// look calls f with the window that holds a page, and the page's place in it.
func (m *machine) look(page uint64, f func(w *window, i int) error) error {
	first, n := page/windowPages*windowPages, windowPages
	if m.pv != nil && xenguest.IsMachinePage(page) {
		first, n = page, 1 // neighbours there are anybody's
	} else if page > m.lastPage() {
		return mem.ErrNoRAM
	}
	frames := func() ([]uint64, []error, error) { return m.space.frameRun(first, n) }
	return m.win.look(first, frames, func(w *window) error { return f(w, int(page-first)) })
}

func (m *machine) lastPage() uint64 {
	return uint64(m.ram[len(m.ram)-1].End()-1) / mem.PageSize
}

// Ended is an ErrUnreachable once the domain is gone, or its number is another's.
func (m *machine) Ended() error {
	d, err := m.host.info(m.domain.ID)
	switch {
	case errors.Is(err, vm.ErrNoVM):
	case err != nil:
		return fmt.Errorf("%w: %w", mem.ErrUnreachable, err)
	case d.ID == m.domain.ID && d.UUID == m.domain.UUID && !d.dying:
		return nil
	}
	return fmt.Errorf("%w: domain %d has ended", mem.ErrUnreachable, m.domain.ID)
}

// Release lets go of all frames that are mapped. The next reads map anew.
func (m *machine) Release() error {
	err := m.win.Release()
	if m.pv != nil {
		err = errors.Join(err, m.pv.release())
	}
	return err
}

// unmap lets go of Xen's table too, which Release keeps.
func (m *machine) unmap() error {
	err := m.Release()
	if m.pv != nil {
		err = errors.Join(err, m.pv.m2p.release())
	}
	return err
}

// Close lets go of the domain, and makes it run again if we paused it.
func (m *machine) Close() error {
	var err error
	m.closed.Do(func() { err = errors.Join(m.pause.end(), m.unmap(), m.host.Close()) })
	return err
}
