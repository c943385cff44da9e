package dump

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

const flatMagic = "makedumpfile\x00"

// The flattened form of a dump, for pipes (makedumpfile -F, and QEMU up to
// 8.0): a header, then records, each with the offset in the dump where its
// bytes belong. A later record may write anew what an earlier one wrote.
// Numbers are big endian (makedumpfile.h, struct makedumpfile_header and
// makedumpfile_data_header).
const (
	flatHeader = 4096
	flatRecord = 16
	// maxRecords bounds the index. makedumpfile and QEMU write a dump of
	// megabytes with each record but for bitmaps, of 4096 bytes: enough for
	// 16 TiB of guest.
	maxRecords = 1 << 22
)

// flat reads a flattened dump as the dump it was.
type flat struct {
	source
	runs []flatRun // sorted, disjoint
}

// flatRun is a run of bytes of the dump and where the file has it.
type flatRun struct{ off, size, at uint64 }

func (r flatRun) end() uint64 { return r.off + r.size }

// openFlat lists the records of a flattened dump. A file without the end mark
// was cut.
func openFlat(f source) (*flat, error) {
	var h [flatRecord]byte
	be := binary.BigEndian
	if err := readFull(f, h[:], 16); err != nil {
		return nil, fmt.Errorf("%w: flattened dump: its header has %d bytes, the file has %d", ErrTruncated, flatHeader, f.Size())
	}
	if typ, version := be.Uint64(h[:]), be.Uint64(h[8:]); typ != 1 || version != 1 {
		return nil, fmt.Errorf("%w: flattened dump of type %d, version %d, which is not known", ErrFormat, typ, version)
	}
	var list []flatRun
	for at := uint64(flatHeader); ; {
		if err := readFull(f, h[:], at); err != nil {
			return nil, fmt.Errorf("%w: flattened dump: no record and no end mark at offset %#x: %w", ErrTruncated, at, err)
		}
		off, size := int64(be.Uint64(h[:])), int64(be.Uint64(h[8:]))
		if off == -1 && size == -1 {
			break
		}
		at += flatRecord
		switch {
		case off < 0 || size < 0 || off > maxFile || size > maxFile:
			return nil, fmt.Errorf("%w: flattened dump: record at offset %#x of %d bytes at %d of the dump", ErrFormat, at-flatRecord, size, off)
		case uint64(size) > f.Size()-at:
			return nil, fmt.Errorf("%w: flattened dump: the record at offset %#x has %d bytes, of which the file has %d", ErrTruncated, at-flatRecord, size, f.Size()-at)
		case len(list) == maxRecords:
			return nil, fmt.Errorf("%w: flattened dump of more than %d records; put it in order first: makedumpfile -R", ErrFormat, maxRecords)
		}
		if size > 0 {
			list = append(list, flatRun{uint64(off), uint64(size), at})
		}
		at += uint64(size)
	}
	return &flat{f, inOrder(list)}, nil
}

// maxFile is more than any file has, and bounds sums.
const maxFile = 1 << 60

// Size is the dump's own.
func (f *flat) Size() uint64 {
	if len(f.runs) == 0 {
		return 0
	}
	return f.runs[len(f.runs)-1].end()
}

// ReadAt reads the dump's bytes at off. What no record wrote is zeros.
func (f *flat) ReadAt(p []byte, off int64) (n int, err error) {
	at := uint64(off)
	i, _ := slices.BinarySearchFunc(f.runs, at, func(r flatRun, at uint64) int {
		if r.end() <= at {
			return -1
		}
		return 1
	})
	for ; n < len(p) && i < len(f.runs); i++ {
		r := f.runs[i]
		if r.off > at {
			k := int(min(r.off-at, uint64(len(p)-n)))
			clear(p[n : n+k])
			n, at = n+k, at+uint64(k)
		}
		k := int(min(r.end()-at, uint64(len(p)-n)))
		if k == 0 {
			break
		}
		got, err := f.source.ReadAt(p[n:n+k], int64(r.at+at-r.off))
		n, at = n+got, at+uint64(got)
		if got < k {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// inOrder sorts records and cuts away what a later record wrote anew.
func inOrder(list []flatRun) []flatRun {
	order := make([]int, len(list))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(list[a].off, list[b].off) })
	var out []flatRun
	var open latest // records that have begun, the last written first
	at := uint64(0)
	for next := 0; next < len(order) || len(open) > 0; {
		if len(open) == 0 {
			at = max(at, list[order[next]].off)
		}
		for next < len(order) && list[order[next]].off <= at {
			heap.Push(&open, order[next])
			next++
		}
		r := list[open[0]]
		if r.end() <= at {
			heap.Pop(&open)
			continue
		}
		end := r.end()
		if next < len(order) {
			end = min(end, list[order[next]].off)
		}
		part := flatRun{at, end - at, r.at + at - r.off}
		if n := len(out); n > 0 && out[n-1].end() == part.off && out[n-1].at+out[n-1].size == part.at {
			out[n-1].size += part.size
		} else {
			out = append(out, part)
		}
		at = end
	}
	return out
}

// latest is a heap of record numbers, the highest on top.
type latest []int

func (l latest) Len() int           { return len(l) }
func (l latest) Less(i, j int) bool { return l[i] > l[j] }
func (l latest) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }
func (l *latest) Push(x any)        { *l = append(*l, x.(int)) }
func (l *latest) Pop() any {
	x := (*l)[len(*l)-1]
	*l = (*l)[:len(*l)-1]
	return x
}
