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
	d.older, d.spans = d.spans, d.older[:0]
	d.sorted, d.full = false, false
}

func (d *dataLog) sort() {
	if !d.sorted {
		slices.SortFunc(d.spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
		out := d.spans[:0]
		for _, s := range d.spans {
			if n := len(out); n > 0 && s.start <= out[n-1].end() {
				out[n-1].count = max(out[n-1].end(), s.end()) - out[n-1].start
				continue
			}
			out = append(out, s)
		}
		d.spans, d.sorted = out, true
	}
}

// in visits the parts of the run [start, start+count) that were written, ascending.
func (d *dataLog) in(start, count uint64, visit func(span)) {
	d.sort()
	var hits []span
	cut(d.spans, start, count, func(s span) { hits = append(hits, s) })
	cut(d.older, start, count, func(s span) { hits = append(hits, s) })
	slices.SortFunc(hits, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	at := start
	for _, s := range hits {
		if lo := max(s.start, at); lo < s.end() {
			visit(span{lo, s.end() - lo})
			at = s.end()
		}
	}
}

// cut visits the parts of ascending spans that lie in a run.
func cut(spans []span, start, count uint64, visit func(span)) {
	end := start + count
	i, _ := slices.BinarySearchFunc(spans, start, func(s span, start uint64) int {
		if s.end() <= start {
			return -1
		}
		return 1
	})
	for ; i < len(spans) && spans[i].start < end; i++ {
		lo, hi := max(spans[i].start, start), min(spans[i].end(), end)
		visit(span{lo, hi - lo})
	}
}

// touched gives the bytes of a file whose blocks were written since the last transaction, or are logged in this one.
func (t *txn) touched(in *Inode) []block.Range {
	f := t.f
	if t.source == event.FastCommit {
		return t.ranges[in.Number]
	}
	if f.data.full {
		return nil
	}
	bs := int64(f.sb.BlockSize)
	var out []block.Range
	add := func(logical, count uint64) {
		off := int64(logical) * bs
		end := min(off+int64(count)*bs, in.Size)
		if off >= end {
			return
		}
		if n := len(out); n > 0 && out[n-1].End() == off {
			out[n-1].Len = end - out[n-1].Off
			return
		}
		out = append(out, block.Range{Off: off, Len: end - off})
	}
	err := f.sb.Extents(t.new, in, func(e Extent) bool {
		f.data.in(e.Physical, uint64(e.Len), func(s span) { add(e.Logical+s.start-e.Physical, s.count) })
		within(t.logged, []span{{e.Physical, uint64(e.Len)}}, func(b uint64) { add(e.Logical+b-e.Physical, 1) })
		return len(out) < maxRanges
	}, nil)
	t.fail(tolerate(err))
	return out
}

// maxRanges bounds the events that one file's writes make in a transaction.
const maxRanges = 64
