package ext4

import (
	"cmp"
	"slices"

	"vmscope/block"
	"vmscope/event"
)

// dataLog remembers which blocks of data were written since the last transaction, so that the transaction that tells of a
// changed file can say where.
//
// A transaction may tell of data that reached the disk while the one before it was being written, so two times are kept.
type dataLog struct {
	spans  []span
	older  []span // of the time before the last transaction, ascending
	told   []span // that a transaction's events tell already
	kept   []span // of older, that no transaction maps as written yet
	sorted bool
	full   bool
}

// maxDataSpans bounds what is remembered: a megabyte. Beyond it, events say that a file was written, and not where.
const maxDataSpans = 1 << 16

func (d *dataLog) add(b uint64) {
	if n := len(d.spans); n > 0 {
		if last := &d.spans[n-1]; last.end() == b {
			last.count++
			return
		} else if b >= last.start && b < last.end() {
			return
		}
	}
	if len(d.spans) >= maxDataSpans {
		d.full = true
		return
	}
	d.spans = append(d.spans, span{b, 1})
	d.sorted = false
}

// reset is called behind each transaction.
func (d *dataLog) reset() {
	d.sort()
	if len(d.kept) > 0 {
		d.spans, d.kept = union(append(d.spans, d.kept...)), d.kept[:0]
	}
	d.older, d.spans = d.spans, d.older[:0]
	d.sorted, d.full = false, false
}

func (d *dataLog) sort() {
	if !d.sorted {
		d.spans, d.sorted = union(d.spans), true
	}
}

// keep has what was written of the run [start, start+count) remembered for one more transaction.
func (d *dataLog) keep(start, count uint64) {
	for _, s := range cutFirst(d.older, start, count) {
		if s.start >= start+count || len(d.kept) >= maxDataSpans {
			return
		}
		d.kept = append(d.kept, s)
	}
}

// underway says whether any of the run [start, start+count) was written lately.
func (d *dataLog) underway(start, count uint64) bool {
	d.sort()
	return len(cutFirst(d.spans, start, count)) > 0 || len(cutFirst(d.older, start, count)) > 0
}

// settle forgets what was told.
func (d *dataLog) settle() {
	if len(d.told) == 0 {
		return
	}
	d.sort()
	slices.SortFunc(d.told, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	d.spans, d.older = subtract(d.spans, d.told), subtract(d.older, d.told)
	d.told = d.told[:0]
}

// take visits the parts of the run [start, start+count) that were written, ascending. They count as told from the next call of
// settle on.
func (d *dataLog) take(start, count uint64, visit func(span)) {
	d.sort()
	a, b := cutFirst(d.spans, start, count), cutFirst(d.older, start, count)
	at, end := start, start+count
	for len(a) > 0 && a[0].start < end || len(b) > 0 && b[0].start < end {
		var s span
		if len(b) == 0 || len(a) > 0 && a[0].start <= b[0].start {
			s, a = a[0], a[1:]
		} else {
			s, b = b[0], b[1:]
		}
		if lo, hi := max(s.start, at), min(s.end(), end); lo < hi {
			d.told = append(d.told, span{lo, hi - lo})
			visit(span{lo, hi - lo})
			at = hi
		}
	}
}

// cutFirst gives ascending spans from the first on that reaches into a run, nothing if that begins behind it.
func cutFirst(spans []span, start, count uint64) []span {
	i, _ := slices.BinarySearchFunc(spans, start, func(s span, start uint64) int {
		if s.end() <= start {
			return -1
		}
		return 1
	})
	if i == len(spans) || spans[i].start >= start+count {
		return nil
	}
	return spans[i:]
}

// ranges gives the bytes of a file whose blocks were written since the last transaction, or are logged in this one, or that a
// fast commit tells as mapped.
func (t *txn) touched(c *change) []block.Range {
	if c.looked {
		return c.ranges
	}
	c.looked = true
	f, in := t.f, &c.new
	if in.Size == 0 {
		return nil
	}
	bs := int64(f.sb.BlockSize)
	out := slices.Clone(t.ranges[c.ino])
	add := func(logical, count uint64) {
		off := int64(logical) * bs
		if n := len(out); n > 0 && out[n-1].End() == off {
			out[n-1].Len += int64(count) * bs
			return
		}
		out = append(out, block.Range{Off: off, Len: int64(count) * bs})
	}
	err := f.sb.Extents(t.new, in, func(e Extent) bool {
		if len(c.spans) <= maxFileSpans {
			c.spans = append(c.spans, span{e.Physical, uint64(e.Len)})
		}
		if e.Unwritten {
			f.data.keep(e.Physical, uint64(e.Len))
			return true
		}
		f.data.take(e.Physical, uint64(e.Len), func(s span) { add(e.Logical+s.start-e.Physical, s.count) })
		within(t.logged, []span{{e.Physical, uint64(e.Len)}}, func(b uint64) { add(e.Logical+b-e.Physical, 1) })
		return len(out) < maxRanges
	}, nil)
	if t.source == event.Journal {
		t.fail(tolerate(err)) // elsewhere the map may be of another moment than the inode
	}
	slices.SortFunc(c.spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	c.ranges = mergeRanges(out, in.Size)
	return c.ranges
}

// mergeRanges sorts ranges, joins those that touch, and cuts off what is behind the end.
func mergeRanges(list []block.Range, size int64) []block.Range {
	slices.SortFunc(list, func(a, b block.Range) int { return cmp.Compare(a.Off, b.Off) })
	out := list[:0]
	for _, r := range list {
		end := min(r.End(), size)
		switch n := len(out); {
		case r.Off >= end:
		case n > 0 && r.Off <= out[n-1].End():
			out[n-1].Len = max(out[n-1].End(), end) - out[n-1].Off
		default:
			out = append(out, block.Range{Off: r.Off, Len: end - r.Off})
		}
	}
	return out
}

// maxRanges bounds the events that one file's writes make in a transaction.
const maxRanges = 64
