package xenblk

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Kinds of requests, and results.
const (
	opRead     = 0
	opWrite    = 1
	opBarrier  = 2
	opFlush    = 3
	opDiscard  = 5
	opIndirect = 6

	discardSecure = 1 // a flag

	statusOK          = 0
	statusError       = -1
	statusUnsupported = -2
)

// Sizes of what lies in shared memory.
const (
	sector          = 512
	pageSize        = 4096
	pageSectors     = pageSize / sector
	maxSegments     = 11 // in the request itself
	maxIndirect     = 256
	segmentLength   = 8
	indirectPerPage = pageSize / segmentLength
	maxSlot         = 112
)

// layout is how a guest lays out a request: with the alignment of a 64-bit or of a 32-bit processor.
type layout struct {
	name string
	slot int // bytes of an entry of the ring
	less int // by how much all behind the first four bytes lies nearer to the start
}

var (
	layout64 = layout{"x86_64-abi", 112, 0}
	layout32 = layout{"x86_32-abi", 108, 4}
)

// layoutOf finds a layout by the name that a front end gives. One that names none is as this host is.
func layoutOf(name string) (layout, error) {
	switch name {
	case "", layout64.name, "arm-abi": // the latter aligns likewise
		return layout64, nil
	case layout32.name:
		return layout32, nil
	}
	return layout{}, fmt.Errorf("%w: protocol %.40q", errors.ErrUnsupported, name)
}

// segment is a run of sectors in one page of the guest.
type segment struct {
	ref         uint32 // grant
	first, last uint8  // sectors, both inclusive
}

func (s segment) off() int { return int(s.first) * sector }
func (s segment) len() int { return (int(s.last) - int(s.first) + 1) * sector }

// request is one as it was copied out of the ring.
type request struct {
	op   uint8  // of an indirect request, what that is to do: the answer bears it, too
	id   uint64 // the guest's
	at   uint64 // sector
	n    uint64 // sectors of a discard
	segs []segment
	// pages are the grants of the pages in which count segments of an indirect request are.
	pages []uint32
	count int

	room   [maxIndirect]segment // for segs
	grants [1]uint32            // for pages: maxIndirect segments fit into one
}

var (
	errSegments = errors.New("segments that cannot be")
	errRange    = errors.New("outside of the disk")
)

// parse reads a request from its slot. Where it fails, op and id are there all the same.
func (l layout) parse(b []byte, r *request) error {
	le := binary.LittleEndian
	r.op = b[0]
	r.id = le.Uint64(b[8-l.less:])
	r.at = le.Uint64(b[16-l.less:])
	r.n, r.segs, r.pages, r.count = 0, nil, nil, 0
	switch r.op {
	case opRead, opWrite, opBarrier, opFlush:
		n := int(b[1])
		if n > maxSegments || n == 0 && r.op != opFlush {
			return errSegments
		}
		return r.take(b[24-l.less:], n)
	case opDiscard:
		if b[1]&discardSecure != 0 {
			return fmt.Errorf("secure discard: %w", errors.ErrUnsupported)
		}
		r.n = le.Uint64(b[24-l.less:])
	case opIndirect:
		r.op = b[1]
		r.count = int(le.Uint16(b[2:]))
		if r.op != opRead && r.op != opWrite || r.count == 0 || r.count > maxIndirect {
			return errSegments
		}
		r.grants[0] = le.Uint32(b[28-l.less:])
		r.pages = r.grants[:]
	}
	return nil
}

// take reads n segments.
func (r *request) take(b []byte, n int) error {
	r.segs = r.room[:0]
	for i := range n {
		s := segment{binary.LittleEndian.Uint32(b[i*segmentLength:]), b[i*segmentLength+4], b[i*segmentLength+5]}
		if s.first > s.last || s.last >= pageSectors {
			return errSegments
		}
		r.segs = append(r.segs, s)
	}
	return nil
}

// size is how many bytes the segments are.
func (r *request) size() (n int) {
	for _, s := range r.segs {
		n += s.len()
	}
	return n
}

// inside gives the place of n bytes at r.at on a disk of so many bytes.
func (r *request) inside(n uint64, disk int64) (int64, error) {
	// Written so that nothing can overflow.
	if r.at > uint64(disk)/sector || n > uint64(disk)-r.at*sector {
		return 0, errRange
	}
	return int64(r.at) * sector, nil
}

// putAnswer writes an answer into its slot: it is laid out alike for all guests.
func putAnswer(b []byte, id uint64, op uint8, status int16) {
	le := binary.LittleEndian
	le.PutUint64(b, id)
	b[8], b[9] = op, 0
	le.PutUint16(b[10:], uint16(status))
}
