package mem

import (
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"sort"
	"sync/atomic"
	"unsafe"
)

// Segment is a run of guest RAM that is mapped into this process.
type Segment struct {
	PA   PA
	Data []byte
	// Holes tells pages that must not be touched through Data, because the
	// touch would make the host allocate them. Nil: every page may be touched.
	Holes *Holes
}

// Holes tracks the pages of a Segment that hold no data yet. Reads of such
// pages go through a file descriptor, which allocates nothing.
type Holes struct {
	data  []atomic.Uint64 // a bit a page: set once the page is known to hold data
	pages uint64
	read  func(p []byte, off int64) (int, error)
}

// NewHoles tracks size bytes of which none is known to hold data. read serves
// pages that are not known to; it must not allocate host memory for holes.
func NewHoles(size uint64, read func(p []byte, off int64) (int, error)) *Holes {
	pages := (size + PageSize - 1) / PageSize
	return &Holes{data: make([]atomic.Uint64, (pages+63)/64), pages: pages, read: read}
}

// move copies the map to bits and keeps it there from now on, for size bytes.
// Without Holes every page holds data: a map that knows of no holes takes
// 1/32768 of the memory and is cheaper than asking each time whether there is
// one.
func (h *Holes) move(bits []atomic.Uint64, size uint64) {
	to := NewHoles(size, nil)
	to.data = bits[:len(to.data)]
	if h == nil {
		to.MarkData(0, size)
		return
	}
	for i := range to.data { // what lies behind the last page of a segment is another's
		mask := ^uint64(0)
		if left := to.pages - 64*uint64(i); left < 64 {
			mask = 1<<left - 1
		}
		to.data[i].Or(h.data[i].Load() & mask)
	}
	h.data, h.pages = to.data, to.pages
}

// MarkData says that the bytes [off, off+n) hold data and may be touched.
// Partial pages at the ends count as data.
func (h *Holes) MarkData(off, n uint64) {
	if n == 0 {
		return
	}
	first, last := off/PageSize, (off+n-1)/PageSize
	if first >= h.pages {
		return
	}
	last = min(last, h.pages-1)
	for p := first; p <= last; {
		w, bit := p/64, p%64
		mask := ^uint64(0) << bit
		if w == last/64 {
			mask &= ^uint64(0) >> (63 - last%64)
		}
		h.data[w].Or(mask)
		p = (w + 1) * 64
	}
}

// MarkHole says that the bytes [off, off+n) hold no data any more (the guest
// gave them back). Only whole pages become holes.
func (h *Holes) MarkHole(off, n uint64) {
	end := min((off+n)/PageSize, uint64(len(h.data))*64)
	for p := (off + PageSize - 1) / PageSize; p < end; {
		w, bit := p/64, p%64
		mask := ^uint64(0) << bit
		if left := end - w*64; left < 64 {
			mask &= 1<<left - 1
		}
		h.data[w].And(^mask)
		p = (w + 1) * 64
	}
}

// isData reports whether the page of byte off may be touched. off lies within
// the segment (NewRAM checks that the bitmap covers it).
func (h *Holes) isData(off uint64) bool {
	p := off / PageSize
	return h.data[p/64].Load()>>(p%64)&1 != 0
}

// run tells whether the page of byte off may be touched, and for how many bytes,
// at most max, that stays so.
func (h *Holes) run(off, max uint64) (data bool, n uint64) {
	data = h.isData(off)
	n = PageSize - off%PageSize
	for n < max {
		p := (off + n) / PageSize
		w := h.data[p/64].Load()
		switch {
		case p%64 == 0 && (w == 0 && !data || w == ^uint64(0) && data):
			n += 64 * PageSize
		case (w>>(p%64)&1 != 0) == data:
			n += PageSize
		default:
			return data, n
		}
	}
	return data, min(n, max)
}

// learn marks the pages of b, read at off, that are not zeros: the guest has
// come to use them, so next time they are touched directly.
func (h *Holes) learn(off uint64, b []byte) {
	for len(b) > 0 {
		m := min(uint64(len(b)), PageSize-off%PageSize)
		if !zero(b[:m]) {
			h.MarkData(off, m)
		}
		off, b = off+m, b[m:]
	}
}

// RAM is guest memory mapped into this process: the fastest PhysReader. A read
// costs a bounds check and a load.
//
// It does not own the mappings; who made them unmaps them after the last read.
type RAM struct {
	segs []Segment // sorted by PA
	win  *Window   // onto the greater part of them
}

// NewRAM joins segments that do not overlap. A segment starts on a page. Where a
// machine's RAM is one mapping that lies in two places, the two slices of it
// should keep their capacity: they then are equally fast.
func NewRAM(segs ...Segment) (*RAM, error) {
	s := append([]Segment(nil), segs...)
	sort.Slice(s, func(i, j int) bool { return s[i].PA < s[j].PA })
	for i := range s {
		end := uint64(s[i].PA) + uint64(len(s[i].Data))
		switch {
		case len(s[i].Data) == 0 || s[i].PA%PageSize != 0 || end < uint64(s[i].PA):
			return nil, fmt.Errorf("RAM segment at %#x, %d bytes: not a run of pages", uint64(s[i].PA), len(s[i].Data))
		case s[i].Holes != nil && s[i].Holes.pages*PageSize < uint64(len(s[i].Data)):
			return nil, fmt.Errorf("RAM segment at %#x: its hole map covers less than its %d bytes", uint64(s[i].PA), len(s[i].Data))
		case i+1 < len(s) && end > uint64(s[i+1].PA):
			return nil, fmt.Errorf("RAM segments at %#x and %#x overlap", uint64(s[i].PA), uint64(s[i+1].PA))
		}
	}
	return &RAM{segs: s, win: newWindow(s)}, nil
}

// RAM returns the receiver: it is how a source that embeds a *RAM is known to
// be mapped.
func (r *RAM) RAM() *RAM { return r }

// Mapped is the optional capability of a PhysReader whose memory is mapped into
// this process.
type Mapped interface{ RAM() *RAM }

// RAMOf returns the mapped memory behind r, or nil.
func RAMOf(r PhysReader) *RAM {
	if m, ok := r.(Mapped); ok {
		return m.RAM()
	}
	return nil
}

// Ranges lists the segments.
func (r *RAM) Ranges() []Range {
	out := make([]Range, len(r.segs))
	for i := range r.segs {
		out[i] = Range{r.segs[i].PA, uint64(len(r.segs[i].Data))}
	}
	return out
}

// At returns a pointer to the n bytes at pa, or nil where they are not mapped,
// are in a hole, or cross a page. The bytes change under the reader when the
// guest runs. It is for hot loops inside Guard.
func (r *RAM) At(pa PA, n uint64) unsafe.Pointer {
	s := r.seg(pa)
	if s == nil {
		return nil
	}
	off := uint64(pa) - uint64(s.PA)
	if off%PageSize+n > PageSize || off+n > uint64(len(s.Data)) || s.Holes != nil && !s.Holes.isData(off) {
		return nil
	}
	return unsafe.Pointer(&s.Data[off])
}

// Word loads the 8 aligned bytes at pa, little endian; ok is false where they
// are not mapped, not aligned, or in a hole. The load is one machine access, so
// a running guest cannot tear it. It must run inside Guard.
func (r *RAM) Word(pa PA) (v uint64, ok bool) {
	if pa&7 != 0 {
		return 0, false
	}
	p := r.At(pa, 8)
	if p == nil {
		return 0, false
	}
	return *(*uint64)(p), true
}

// Window is the fast way to the greater part of the memory. It never changes. A
// nil RAM has a window without words.
func (r *RAM) Window() *Window {
	if r == nil || r.win == nil {
		return &noWords
	}
	return r.win
}

// Load64 loads the 8 bytes at pa, little endian, and guards itself.
func (r *RAM) Load64(pa PA) (uint64, error) {
	b := words.Get().(*[8]byte)
	defer words.Put(b)
	if _, err := r.ReadPhys(b[:], pa); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// ReadPhys copies out of the mapping. It guards itself against faults of the
// host.
func (r *RAM) ReadPhys(p []byte, pa PA) (n int, err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if x := recover(); x != nil {
			err = &FaultError{Op: "read", Addr: uint64(pa) + uint64(n), Err: faultOf(x)}
			if len(p)-n > PageSize-int(uint64(pa)+uint64(n))%PageSize {
				n, err = r.readPages(p, pa, n)
			}
		}
	}()
	for n < len(p) {
		s := r.seg(pa + PA(n))
		if s == nil {
			return n, &FaultError{Op: "read", Addr: uint64(pa) + uint64(n), Err: ErrNoRAM}
		}
		off := uint64(pa) + uint64(n) - uint64(s.PA)
		m := min(uint64(len(p)-n), uint64(len(s.Data))-off)
		if s.Holes == nil {
			n += copy(p[n:n+int(m)], s.Data[off:])
			continue
		}
		data, run := s.Holes.run(off, m)
		if data {
			n += copy(p[n:n+int(run)], s.Data[off:])
			continue
		}
		m = run
		k, rerr := s.Holes.read(p[n:n+int(m)], int64(off))
		s.Holes.learn(off, p[n:n+k])
		n += k
		if rerr != nil {
			return n, &FaultError{Op: "read", Addr: uint64(pa) + uint64(n), Err: fmt.Errorf("%w: %w", ErrUnreachable, rerr)}
		}
	}
	return n, nil
}

// zero reports whether b holds nothing but zeros.
func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// readPages goes on at p[n:] page by page, to find out which of them faults: a
// copy of many does not tell how far it came.
func (r *RAM) readPages(p []byte, pa PA, n int) (int, error) {
	for n < len(p) {
		at := uint64(pa) + uint64(n)
		m := min(len(p)-n, PageSize-int(at%PageSize))
		k, err := r.ReadPhys(p[n:n+m], PA(at))
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// seg finds the segment of pa, or nil. Machines have two or three; a dump may
// have a million.
func (r *RAM) seg(pa PA) *Segment {
	segs := r.segs
	for len(segs) > 4 {
		if half := len(segs) / 2; segs[half].PA <= pa {
			segs = segs[half:]
		} else {
			segs = segs[:half]
		}
	}
	for i := range segs {
		s := &segs[i]
		if uint64(pa)-uint64(s.PA) < uint64(len(s.Data)) {
			return s
		}
	}
	return nil
}
