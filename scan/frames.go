package scan

import (
	"vmscope/mem"
)

// frames remembers of each page of RAM what is known of it.
type frames struct {
	ranges []mem.Range
	base   []int    // of each range, in next
	next   []uint32 // by page: what followed it when it was searched last; see below
	hits   map[uint64][]hit
	nhits  int
}

const (
	unseen = 0 // it was not searched
	owned  = 1 // it is a process's, and was not searched
	alone  = 2 // it was searched, and no page followed it
	follow = 3 // plus the low bits of the number of the page that did
)

// hit is what was found in a page: for who meets the page again.
type hit struct {
	rule, str uint32
	offset    uint16
	len       uint16
	next      uint64 // 1 + the number of the page that the match goes on in; 0: none
}

// maxHits bounds the matches that are remembered so.
const maxHits = 1 << 20

func newFrames(phys mem.PhysReader) *frames {
	f := &frames{hits: make(map[uint64][]hit)}
	if g, ok := phys.(mem.Ranger); ok {
		f.ranges = g.Ranges()
	}
	n := 0
	for _, r := range f.ranges {
		f.base = append(f.base, n)
		n += int(r.Size/mem.PageSize) + 1
	}
	f.next = make([]uint32, n)
	return f
}

// slot is where a page is remembered; nil: it is no RAM that is known.
func (f *frames) slot(pa mem.PA) *uint32 {
	for i, r := range f.ranges {
		if off := uint64(pa - r.Start); pa >= r.Start && off < r.Size {
			return &f.next[f.base[i]+int(off/mem.PageSize)]
		}
	}
	return nil
}

func (f *frames) own(pa mem.PA) {
	if s := f.slot(pa); s != nil && *s == unseen {
		*s = owned
	}
}

// pass has the pages that lie in none of the extents, which are sorted, counted
// as searched.
func (f *frames) pass(extents []mem.Range) {
	for i, r := range f.ranges {
		for at := uint64(0); at < r.Size; at += mem.PageSize {
			pa := r.Start + mem.PA(at)
			for len(extents) > 0 && extents[0].End() <= pa {
				extents = extents[1:]
			}
			if s := &f.next[f.base[i]+int(at/mem.PageSize)]; *s == unseen && (len(extents) == 0 || extents[0].Start >= pa+mem.PageSize) {
				*s = alone
			}
		}
	}
}

// remember keeps what was found in a page.
func (f *frames) remember(frame uint64, h hit) {
	if f.nhits >= maxHits {
		return
	}
	for _, o := range f.hits[frame] {
		if o == h {
			return
		}
	}
	f.nhits++
	f.hits[frame] = append(f.hits[frame], h)
}
