package mem

import (
	"sync/atomic"
	"unsafe"
)

// Window is the greater part of a RAM, cut to what the innermost loops need:
// its methods are small enough to be inlined. It is one run of host memory that
// holds one segment, or two where the second follows the first in the host (a
// file that holds a PC's RAM below and above the hole under 4 GiB).
//
// A word of the guest is loaded in three steps, of which the second may say no:
//
//	i := w.Index(pa)
//	if w.Has(i) {
//		v = w.Load(i)
//	}
//
// No means: ask RAM.Word. Loads must run inside Guard.
type Window struct {
	base  unsafe.Pointer
	data  unsafe.Pointer // a bit a page, as in Holes, and one more that is never set
	start uint64         // PA of base
	low   uint64         // size of the first segment, bytes
	high  uint64         // PA of the second one, less low
	rest  uint64         // its size
	none  uint64         // an index whose bit in data is never set
}

// noWords is the window without words.
var noWords = Window{data: unsafe.Pointer(new(uint64))}

// newWindow opens the widest window onto segs, which are sorted, and moves
// their hole maps into one.
func newWindow(segs []Segment) *Window {
	first, n, size := 0, 0, 0
	for i := range segs {
		if len(segs[i].Data) > size {
			first, n, size = i, 1, len(segs[i].Data)
		}
		if i+1 < len(segs) && adjacent(segs[i].Data, segs[i+1].Data) {
			if both := len(segs[i].Data) + len(segs[i+1].Data); both > size {
				first, n, size = i, 2, both
			}
		}
	}
	if n == 0 {
		return &noWords
	}
	s := segs[first]
	w := &Window{base: unsafe.Pointer(&s.Data[0]), start: uint64(s.PA), low: uint64(len(s.Data)) &^ 7}
	w.none = (uint64(size) + PageSize - 1) &^ (PageSize - 1)
	bits := make([]atomic.Uint64, w.none/(64*PageSize)+1)
	w.data = unsafe.Pointer(&bits[0])
	segs[first].Holes.move(bits, uint64(len(s.Data)))
	if n == 2 {
		t := segs[first+1]
		w.high, w.rest = uint64(t.PA)-w.low, uint64(len(t.Data))&^7
		segs[first+1].Holes.move(bits[w.low/(64*PageSize):], uint64(len(t.Data)))
	}
	return w
}

// adjacent reports whether b follows a in the same allocation or mapping, which
// only the capacity of a proves, at a place where the hole map of b starts on a
// word.
func adjacent(a, b []byte) bool {
	return len(a)%(64*PageSize) == 0 && cap(a) >= len(a)+len(b) && &a[:cap(a)][len(a)] == &b[0]
}

// Index is the place in the window of the word at pa, a multiple of 8.
func (w *Window) Index(pa PA) uint64 {
	i := uint64(pa) - w.start
	if i >= w.low {
		if i = uint64(pa) - w.high; i-w.low >= w.rest {
			return w.none
		}
	}
	return i
}

// Has reports whether the window has a word at i that may be touched: it is not
// in a hole.
func (w *Window) Has(i uint64) bool {
	const page, word = 12, 12 + 6 // log2 of the bytes that a bit and a word of the map stand for
	return atomic.LoadUint64((*uint64)(unsafe.Add(w.data, i>>word<<3)))>>(i>>page&63)&1 != 0
}

// Load loads the word at i, which the window must have.
func (w *Window) Load(i uint64) uint64 { return *(*uint64)(unsafe.Add(w.base, i)) }
