package procram

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmscope/internal/ramfile"
	"vmscope/mem"
)

// seg is a run of guest-physical memory in the process's address space.
type seg struct {
	pa   mem.PA
	size uint64
	hva  uint64
	file *os.File // behind pages that are not in memory; nil: none needed
	off  uint64   // in file
	// seen has a bit a page of those that were found in memory: they need not
	// be asked for again. Only with a file.
	seen []atomic.Uint64
}

func (s *seg) end() mem.PA { return s.pa + mem.PA(s.size) }

// Copier reads guest RAM out of a process's address space by process_vm_readv. It
// copies, never stops the process, and allocates nothing in it.
type Copier struct {
	pid   int
	alive *os.File // pidfd: makes sure that the PID is still ours
	pages *os.File // /proc/PID/pagemap, where segs have files
	segs  []seg    // sorted
}

// maxVec is IOV_MAX: the kernel takes no more pieces in one call.
const maxVec = 1024

// Ranges lists the RAM.
func (m *Copier) Ranges() []mem.Range {
	out := make([]mem.Range, len(m.segs))
	for i, s := range m.segs {
		out[i] = mem.Range{Start: s.pa, Size: s.size}
	}
	return out
}

// Extents lists the pages that the process has in memory or in swap now.
func (m *Copier) Extents() ([]mem.Range, error) {
	var out []mem.Range
	for i := range m.segs {
		s := &m.segs[i]
		spans, err := Touched(m.pid, s.hva, s.size)
		if err != nil {
			return nil, fmt.Errorf("%w: find the data in guest RAM: %w", mem.ErrUnreachable, err)
		}
		if s.file != nil { // pages that are only in the file count too
			data, err := ramfile.Data(s.file, s.off, s.off+s.size)
			if err != nil {
				return nil, err
			}
			for _, d := range data {
				spans = append(spans, Span{s.hva + d.Off - s.off, d.End - d.Off})
			}
			spans = joinSpans(spans)
		}
		for _, x := range spans {
			out = append(out, mem.Range{Start: s.pa + mem.PA(x.Start-s.hva), Size: x.Size})
		}
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return out, nil
}

// seg finds the run that holds pa.
func (m *Copier) seg(pa mem.PA) *seg {
	i := sort.Search(len(m.segs), func(i int) bool { return m.segs[i].end() > pa })
	if i == len(m.segs) || m.segs[i].pa > pa {
		return nil
	}
	return &m.segs[i]
}

// check fails if the process is gone: a PID that is used again reads as
// somebody else's memory.
func (m *Copier) check() error { return Ended(m.alive, m.pid) }

// iov are the vectors of one call, reused.
type iov struct {
	local  []unix.Iovec
	remote []unix.RemoteIovec
}

var iovs = sync.Pool{New: func() any { return new(iov) }}

// ReadPhys copies the bytes at pa.
func (m *Copier) ReadPhys(p []byte, pa mem.PA) (n int, err error) {
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

// ReadPhysVec copies all pieces, up to 1024 of them in a system call.
func (m *Copier) ReadPhysVec(v []mem.Vec) (n int, err error) {
	x := iovs.Get().(*iov)
	defer func() {
		clear(x.local[:cap(x.local)]) // do not keep p alive
		iovs.Put(x)
	}()
	// piece and at: what is next to be asked for.
	for piece, at := 0, 0; piece < len(v); {
		x.local, x.remote = x.local[:0], x.remote[:0]
		from, fromAt := piece, at
		var want int
		var fault error
		for piece < len(v) && len(x.local) < maxVec {
			left := v[piece].P[at:]
			if len(left) == 0 {
				piece, at = piece+1, 0
				continue
			}
			pa := v[piece].PA + mem.PA(at)
			s := m.seg(pa)
			if s == nil {
				fault = &mem.FaultError{Op: "read", Addr: uint64(pa), Err: mem.ErrNoRAM}
				break
			}
			off := uint64(pa - s.pa)
			k := int(min(uint64(len(left)), s.size-off))
			if s.file != nil {
				k = min(k, mem.PageSize-int(off%mem.PageSize))
				if !m.inMemory(s, off) {
					if want > 0 {
						break // first what is queued
					}
					got, err := s.file.ReadAt(left[:k], int64(s.off+off))
					if err != nil && !(err == io.EOF && got == k) {
						return piece, &mem.FaultError{Op: "read", Addr: uint64(pa) + uint64(got), Err: fmt.Errorf("%w: %w", mem.ErrUnreachable, err)}
					}
					at += k
					from, fromAt = piece, at
					continue
				}
			}
			l := unix.Iovec{Base: &left[0]}
			l.SetLen(k)
			x.local = append(x.local, l)
			x.remote = append(x.remote, unix.RemoteIovec{Base: uintptr(s.hva + off), Len: k})
			want, at = want+k, at+k
		}
		if want > 0 {
			got, err := unix.ProcessVMReadv(m.pid, x.local, x.remote, 0)
			if got < 0 || err != nil {
				got = 0
			}
			if got < want {
				// Go on where the call ended; if it moved nothing, the page
				// there cannot be read.
				piece, at = advance(v, from, fromAt, got)
				if got > 0 {
					continue
				}
				pa := v[piece].PA + mem.PA(at)
				k := min(len(v[piece].P)-at, mem.PageSize-int(uint64(pa)%mem.PageSize))
				if got, err = m.one(v[piece].P[at:at+k], pa); err != nil {
					return piece, &mem.FaultError{Op: "read", Addr: uint64(pa) + uint64(got), Err: err}
				}
				at += k
				continue
			}
		}
		if fault != nil {
			if err := m.check(); err != nil {
				return 0, m.gone(v, err)
			}
			return piece, fault
		}
	}
	if err := m.check(); err != nil {
		return 0, m.gone(v, err)
	}
	return len(v), nil
}

// gone says that nothing of v can be trusted.
func (m *Copier) gone(v []mem.Vec, err error) error {
	return &mem.FaultError{Op: "read", Addr: uint64(v[0].PA), Err: err}
}

// advance moves n bytes on from piece and at.
func advance(v []mem.Vec, piece, at, n int) (int, int) {
	for {
		left := len(v[piece].P) - at
		if n < left || left > 0 && n == 0 {
			return piece, at + n
		}
		n -= left
		piece, at = piece+1, 0
	}
}

// one reads a piece within a page and explains a failure.
func (m *Copier) one(p []byte, pa mem.PA) (int, error) {
	s := m.seg(pa)
	l := []unix.Iovec{{Base: &p[0]}}
	l[0].SetLen(len(p))
	n, err := unix.ProcessVMReadv(m.pid, l, []unix.RemoteIovec{{Base: uintptr(s.hva + uint64(pa-s.pa)), Len: len(p)}}, 0)
	switch {
	case err == nil && n == len(p):
		return n, nil
	case errors.Is(err, unix.ESRCH):
		return 0, fmt.Errorf("%w: process %d has ended", mem.ErrUnreachable, m.pid)
	case errors.Is(err, unix.EPERM):
		return 0, fmt.Errorf("%w: %w", mem.ErrUnreachable, Denied(m.pid, err))
	case err != nil:
		if gone := m.check(); gone != nil {
			return 0, gone
		}
		return 0, fmt.Errorf("%w: process_vm_readv: %w", mem.ErrUnreachable, err)
	}
	return max(n, 0), fmt.Errorf("%w: short read", mem.ErrUnreachable)
}

// inMemory tells whether the process has the page at off of a run in memory or swap.
// Only then a read by its address space leaves the file alone: else it would
// allocate a page of it.
func (m *Copier) inMemory(s *seg, off uint64) bool {
	if m.pages == nil {
		return true
	}
	page := off / mem.PageSize
	w, bit := &s.seen[page/64], uint64(1)<<(page%64)
	if w.Load()&bit != 0 {
		return true
	}
	var b [8]byte
	if _, err := m.pages.ReadAt(b[:], int64((s.hva+off)/mem.PageSize*8)); err == nil && b[7]>>6 == 0 {
		return false
	}
	w.Or(bit)
	return true
}

// Write copies p to pa by process_vm_writev.
func (m *Copier) Write(p []byte, pa mem.PA) (n int, err error) {
	for n < len(p) {
		at := pa + mem.PA(n)
		s := m.seg(at)
		if s == nil {
			return n, &mem.FaultError{Op: "write", Addr: uint64(at), Err: mem.ErrNoRAM}
		}
		off := uint64(at - s.pa)
		k := int(min(uint64(len(p)-n), s.size-off))
		l := []unix.Iovec{{Base: &p[n]}}
		l[0].SetLen(k)
		got, err := unix.ProcessVMWritev(m.pid, l, []unix.RemoteIovec{{Base: uintptr(s.hva + off), Len: k}}, 0)
		if err != nil || got <= 0 {
			if gone := m.check(); gone != nil {
				err = gone
			}
			return n, &mem.FaultError{Op: "write", Addr: uint64(at), Err: fmt.Errorf("%w: process_vm_writev: %w", mem.ErrUnreachable, err)}
		}
		n += got
	}
	return n, nil
}
