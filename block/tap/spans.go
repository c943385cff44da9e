package tap

import (
	"cmp"
	"slices"

	"vmscope/block"
)

// span is what a ring tells of a range of the volume: what it held at a time, or that it was written.
type span struct {
	block.Range
	at   int64  // nanoseconds since 1970
	pos  uint64 // in the ring
	data []byte // of an image
	on   *onDisk
	gone bool
}

// onDisk is what a write is of the volume where the range is only around it; nil where the range says it.
type onDisk struct {
	disk int
	block.Range
}

// spans finds them by their place.
type spans struct {
	chunks map[int64][]*span // in the order in which they came
	wide   []*span           // those that reach over too many chunks
}

const (
	spanChunk = 64 << 10
	spanWide  = 64 // chunks
)

// each calls f for the lists that hold the spans of a range.
func (x *spans) each(r block.Range, f func(chunk int64)) {
	for c := r.Off / spanChunk; c <= (r.End()-1)/spanChunk; c++ {
		f(c)
	}
}

func wide(r block.Range) bool { return r.Len > (spanWide-1)*spanChunk }

func (x *spans) add(m *span) {
	if wide(m.Range) {
		x.wide = append(x.wide, m)
		return
	}
	if x.chunks == nil {
		x.chunks = map[int64][]*span{}
	}
	x.each(m.Range, func(c int64) { x.chunks[c] = append(x.chunks[c], m) })
}

// drop takes one out. Mostly it is the first one of its lists.
func (x *spans) drop(m *span) {
	m.gone = true
	if wide(m.Range) {
		x.wide = passed(x.wide)
		return
	}
	x.each(m.Range, func(c int64) {
		if x.chunks[c] = passed(x.chunks[c]); len(x.chunks[c]) == 0 {
			delete(x.chunks, c)
		}
	})
}

// passed leaves out those at the beginning that are gone.
func passed(list []*span) []*span {
	for len(list) > 0 && list[0].gone {
		list[0] = nil
		list = list[1:]
	}
	return list
}

// overlapping gives those that overlap a range, each once, the oldest first.
func (x *spans) overlapping(r block.Range) (found []*span) {
	take := func(list []*span, begins func(m *span) bool) {
		for _, m := range list {
			if !m.gone && m.Off < r.End() && r.Off < m.End() && begins(m) {
				found = append(found, m)
			}
		}
	}
	take(x.wide, func(*span) bool { return true })
	if len(x.chunks) > 0 && r.Len > 0 {
		if wide(r) && r.Len/spanChunk > int64(len(x.chunks)) {
			for c, list := range x.chunks {
				take(list, func(m *span) bool { return c == max(m.Off, r.Off)/spanChunk })
			}
		} else {
			x.each(r, func(c int64) {
				take(x.chunks[c], func(m *span) bool { return c == max(m.Off, r.Off)/spanChunk })
			})
		}
	}
	slices.SortStableFunc(found, func(a, b *span) int { return cmp.Compare(a.at, b.at) })
	return found
}
