package xen

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// domainXen is the owner of Xen's own memory (DOMID_XEN).
const domainXen = 0x7ff2

// m2p is Xen's table of which pseudo-physical frame each machine frame is, of whatever PV domain owns it: 8 bytes a frame,
// in extents of 2 MiB. It is mapped part by part, as it is asked for, and stays: it is Xen's memory, not the domain's.
type m2p struct {
	host    *host
	extents []uint64 // first machine frame of each
	frames  uint64   // of the machine
	mu      sync.RWMutex
	parts   map[uint64]*mapping
}

const (
	extentFrames = 512                             // of the table, in an extent
	extentSpan   = extentFrames * mem.PageSize / 8 // machine frames that an extent tells of
	maxExtents   = (areaSize - extentAt) / 8
	extentAt     = extraAt
)

func (x *host) openM2P() (*m2p, error) {
	last, _, err := x.memory(memoryMaximumRAMPage, nil, nil)
	if err != nil {
		return nil, err
	}
	n := min(last/extentSpan+1, maxExtents)
	// struct xen_machphys_mfn_list: max_extents, extent_start, nr_extents.
	arg := le.AppendUint64(nil, n)
	arg = le.AppendUint64(arg, x.address(extraAt))
	arg = le.AppendUint64(arg, 0)
	_, r, err := x.memory(memoryM2PList, arg, make([]byte, n*8))
	if err != nil {
		return nil, err
	}
	t := &m2p{host: x, parts: map[uint64]*mapping{}}
	for i := range min(n, uint64(le.Uint32(r.union[16:]))) {
		t.extents = append(t.extents, le.Uint64(r.extra[i*8:]))
	}
	t.frames = min(last+1, uint64(len(t.extents))*extentSpan)
	return t, nil
}

// part maps the part of the table that tells of a machine frame.
func (t *m2p) part(extent uint64) (*mapping, error) {
	t.mu.RLock()
	p := t.parts[extent]
	t.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.parts[extent]; p != nil {
		return p, nil
	}
	frames := make([]uint64, extentFrames)
	for i := range frames {
		frames[i] = t.extents[extent] + uint64(i)
	}
	p, err := t.host.mapFrames(domainXen, frames, false)
	if err != nil {
		return nil, fmt.Errorf("%w: map Xen's m2p: %w", mem.ErrUnreachable, err)
	}
	t.parts[extent] = p
	return p, nil
}

// lookup tells the pseudo-physical frame of a machine frame; ok is false where Xen has none. It must run inside mem.Guard.
func (t *m2p) lookup(frame uint64) (page uint64, ok bool, err error) {
	if frame >= t.frames {
		return 0, false, nil
	}
	p, err := t.part(frame / extentSpan)
	if err != nil {
		return 0, false, err
	}
	at := frame % extentSpan * 8
	if p.errs[at/mem.PageSize] != unix.Errno(0) {
		return 0, false, nil // no RAM of the machine there
	}
	page = le.Uint64(p.data[at:])
	return page, page < 1<<52, nil // all ones: invalid, or shared
}

func (t *m2p) release() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	for i, p := range t.parts {
		err = p.unmap()
		delete(t.parts, i)
	}
	return err
}
