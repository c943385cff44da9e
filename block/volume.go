package block

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"
)

// Leg is where a segment's bytes lie: on one of several disks, from Off on.
type Leg struct {
	Disk int // an index into the disks at hand; negative: a disk that is not there
	Off  int64
}

// Segment is a run of a volume's bytes that lies in one piece on a disk, or is
// dealt out over several legs in turn, Stripe bytes at a time.
type Segment struct {
	Start, Len int64 // in the volume, bytes
	Stripe     int64 // bytes of a leg before the next leg's turn; of no meaning with one leg
	Legs       []Leg // none: the segment reads as zeros, and is not to be written
}

// ErrNoDisk says that a part of a volume lies on a disk that is not there.
var ErrNoDisk = errors.New("block: on a disk that is not there")

// Map tells where a volume's bytes lie on its disks, and which of its bytes a
// disk's bytes are. It does not change, and is safe for concurrent use.
type Map struct {
	segs  []Segment // in order, without gaps
	size  int64
	disks map[int][]extent // by physical offset
}

// extent is the piece of a disk that a leg is.
type extent struct {
	off, len int64 // on the disk
	start    int64 // in the volume: of its first byte
	stripe   int64
	step     int64 // in the volume: from stripe to stripe; stripe for a linear segment
}

// maxEnd keeps sums of two offsets from running over.
const maxEnd = 1 << 61

// NewMap makes a map of segments, which must follow on each other without gaps,
// have whole stripes on each leg, and not overlap on a disk.
func NewMap(segs []Segment) (*Map, error) {
	m := &Map{segs: segs, disks: map[int][]extent{}}
	for i, s := range segs {
		n := int64(len(s.Legs))
		switch {
		case s.Start != m.size || s.Len <= 0 || s.Len > maxEnd-m.size:
			return nil, fmt.Errorf("block: segment %d: %d bytes at %d do not follow on %d", i, s.Len, s.Start, m.size)
		case n > 1 && (s.Stripe <= 0 || s.Len/n%s.Stripe != 0 || s.Len%n != 0):
			return nil, fmt.Errorf("block: segment %d: %d bytes are not whole stripes of %d on %d legs", i, s.Len, s.Stripe, n)
		}
		m.size += s.Len
		for k, l := range s.Legs {
			e := extent{off: l.Off, len: s.Len / n, start: s.Start, stripe: s.Len, step: s.Len}
			if n > 1 {
				e.start, e.stripe, e.step = s.Start+int64(k)*s.Stripe, s.Stripe, n*s.Stripe
			}
			if l.Off < 0 || l.Off > maxEnd {
				return nil, fmt.Errorf("%w: segment %d: offset %d", ErrOutOfRange, i, l.Off)
			}
			if l.Disk >= 0 {
				m.disks[l.Disk] = append(m.disks[l.Disk], e)
			}
		}
	}
	for disk, list := range m.disks {
		slices.SortFunc(list, func(a, b extent) int { return cmp.Compare(a.off, b.off) })
		for i := 1; i < len(list); i++ {
			if a, b := list[i-1], list[i]; b.off < a.off+a.len {
				return nil, fmt.Errorf("block: segments overlap on disk %d at %d", disk, b.off)
			}
		}
	}
	return m, nil
}

// Size is that of the volume in bytes.
func (m *Map) Size() int64 { return m.size }

// Segments lists the segments that the map is made of. They belong to the map.
func (m *Map) Segments() []Segment { return m.segs }

// Place is where a run of a volume's bytes lies.
type Place struct {
	Leg        // Disk is negative where a disk is not there
	Len  int64 // how many bytes follow on each other
	Zero bool  // nowhere: they are zeros
}

// Locate says where the volume's bytes from off on lie, up to the end of the
// segment or stripe. Outside of the volume Len is 0.
func (m *Map) Locate(off int64) Place {
	if off < 0 || off >= m.size {
		return Place{}
	}
	i := sort.Search(len(m.segs), func(i int) bool { return m.segs[i].Start > off }) - 1
	s := &m.segs[i]
	in := off - s.Start
	switch n := int64(len(s.Legs)); n {
	case 0:
		return Place{Len: s.Len - in, Zero: true}
	case 1:
		return Place{Leg: Leg{s.Legs[0].Disk, s.Legs[0].Off + in}, Len: s.Len - in}
	default:
		row, col := in/s.Stripe, in%s.Stripe
		l := s.Legs[row%n]
		return Place{Leg: Leg{l.Disk, l.Off + row/n*s.Stripe + col}, Len: s.Stripe - col}
	}
}

// Pieces gives the parts of a disk's write that touch the volume.
type Pieces struct {
	w    Write
	list []extent // those that are still to be looked at
	off  int64    // on the disk: where to go on
}

// Pieces turns a write of a disk into writes of the volume, one after the
// other: their offsets count from the volume's start, their Data are pieces of
// w's, and they carry w's number, time and flags. A flush of a disk that has a
// part of the volume is a flush of the volume. Nothing is allocated.
func (m *Map) Pieces(disk int, w Write) Pieces {
	list := m.disks[disk]
	lo, hi := 0, len(list)
	if w.Op == OpFlush || w.Len <= 0 || w.Off < 0 {
		return Pieces{w: w, list: list}
	}
	for lo < hi { // the first extent that ends behind the write's start
		mid := int(uint(lo+hi) >> 1)
		if list[mid].off+list[mid].len > w.Off {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return Pieces{w, list[lo:], w.Off}
}

// Next gives the next write, or false when there are no more.
func (p *Pieces) Next() (Write, bool) {
	if len(p.list) == 0 {
		return Write{}, false
	}
	v := p.w
	if v.Op == OpFlush {
		p.list = nil
		return v, true
	}
	e := &p.list[0]
	p.off = max(p.off, e.off)
	end := p.w.Off + p.w.Len // of a write that cannot be, this may be negative: nothing is left
	if p.w.Len <= 0 || p.w.Off < 0 || p.off >= end {
		p.list = nil
		return Write{}, false
	}
	in := p.off - e.off
	col := in % e.stripe
	v.Off = e.start + in/e.stripe*e.step + col
	v.Len = min(end-p.off, e.stripe-col)
	if v.Data != nil {
		at := p.off - p.w.Off
		v.Data = v.Data[at : at+v.Len : at+v.Len]
	}
	if p.off += v.Len; p.off == e.off+e.len {
		p.list = p.list[1:]
	}
	return v, true
}

// Touches reports whether a disk's write reaches any of the volume's bytes. A
// flush touches every volume that has a part on the disk.
func (m *Map) Touches(disk int, w *Write) bool {
	p := m.Pieces(disk, Write{Op: w.Op, Off: w.Off, Len: w.Len})
	_, ok := p.Next()
	return ok
}

// Volume is a device that lies on others in the way that a Map tells.
type Volume struct {
	*Map
	disks []Device
}

// NewVolume reads a volume from disks, which the map's legs count.
func NewVolume(m *Map, disks []Device) *Volume { return &Volume{m, disks} }

// ReadAt reads the volume's bytes.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	want, end := clip(off, len(p), v.size)
	for n := 0; n < want; {
		at := v.Locate(off + int64(n))
		q := p[n : n+int(min(at.Len, int64(want-n)))]
		switch {
		case at.Zero:
			clear(q)
		case at.Disk < 0 || at.Disk >= len(v.disks) || v.disks[at.Disk] == nil:
			return n, fmt.Errorf("%w: offset %d of the volume", ErrNoDisk, off+int64(n))
		default:
			if err := ReadFull(v.disks[at.Disk], q, at.Off); err != nil {
				return n, fmt.Errorf("offset %d of the volume: %w", off+int64(n), err)
			}
		}
		n += len(q)
	}
	return want, end
}
