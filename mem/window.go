package mem

import (
	"sync/atomic"
	"unsafe"
)

// Window is the largest segment of a RAM, cut to what the innermost loops need:
// its methods are small enough to be inlined and to stay in registers. A word
// of the guest is loaded in three steps, of which the second may say no:
//
//	i := w.Index(pa)
//	if w.Has(i) {
//		v = w.Load(i)
//	}
//
// No means: ask RAM.Word. The zero Window always says no. Loads must run inside
// Guard.
type Window struct {
	base  unsafe.Pointer
	start PA             // of base
	size  uint64         // bytes, a multiple of 8
	data  unsafe.Pointer // a bit a page, as in Holes: covers all of size
}

// newWindow is the window onto s, whose hole map covers it.
func newWindow(s *Segment) Window {
	w := Window{base: unsafe.Pointer(&s.Data[0]), start: s.PA, size: uint64(len(s.Data)) &^ 7}
	h := s.Holes
	if h == nil {
		// A map that knows of no holes is cheaper than asking each time whether
		// there is a map: it takes 1/32768 of the memory that it describes.
		h = NewHoles(uint64(len(s.Data)), nil)
		h.MarkData(0, uint64(len(s.Data)))
	}
	w.data = unsafe.Pointer(&h.data[0])
	return w
}

// Index is the place in the window of the word at pa, a multiple of 8.
func (w Window) Index(pa PA) uint64 { return uint64(pa - w.start) }

// Has reports whether the window has the word at i and it may be touched: it is
// not in a hole.
func (w Window) Has(i uint64) bool { return i < w.size && w.isData(i) }

func (w Window) isData(i uint64) bool {
	const page, word = 12, 12 + 6 // log2 of the bytes that a bit and a word of the map stand for
	return atomic.LoadUint64((*uint64)(unsafe.Add(w.data, i>>word<<3)))>>(i>>page&63)&1 != 0
}

// Load loads the word at i, which the window must have.
func (w Window) Load(i uint64) uint64 { return *(*uint64)(unsafe.Add(w.base, i)) }
