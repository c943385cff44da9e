package mem

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
)

// Recorder passes reads on to a source and keeps every page that they touch, so
// that what was done on a real guest once can be done again without it. A page
// is read from the source once: later reads see it as it was then, as the
// replay will.
//
// It is safe for concurrent use. It is not Mapped: all reads come by.
type Recorder struct {
	src   PhysReader
	mu    sync.Mutex
	pages map[PA]*[PageSize]byte
	full  bool // there were more pages than are kept
}

// NewRecorder records what is read of src through it.
func NewRecorder(src PhysReader) *Recorder {
	return &Recorder{src: src, pages: make(map[PA]*[PageSize]byte)}
}

// Ranges are those of the source.
func (r *Recorder) Ranges() []Range {
	if g, ok := r.src.(Ranger); ok {
		return g.Ranges()
	}
	return nil
}

// Extents are those of the source.
func (r *Recorder) Extents() ([]Range, error) { return Extents(r.src) }

// ReadPhys reads whole pages of the source. What the source does not give as
// whole pages is passed on and not kept.
func (r *Recorder) ReadPhys(p []byte, pa PA) (n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n < len(p) {
		at := pa + PA(n)
		off := int(at % PageSize)
		m := min(len(p)-n, PageSize-off)
		base := at - PA(off)
		page := r.pages[base]
		if page == nil {
			page = new([PageSize]byte)
			r.full = r.full || len(r.pages) >= maxRecordPages
			if _, err := r.src.ReadPhys(page[:], base); err != nil || r.full {
				k, err := r.src.ReadPhys(p[n:n+m], at)
				n += k
				if err != nil {
					return n, err
				}
				continue
			}
			r.pages[base] = page
		}
		n += copy(p[n:n+m], page[off:])
	}
	return n, nil
}

// Refresh reads all pages that are kept anew: first all, then those that had
// changed once more, one behind the other. So those are of nearly the same
// moment, and the others are of that moment too.
func (r *Recorder) Refresh() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var now [PageSize]byte
	var changing []PA
	for pa, page := range r.pages {
		if _, err := r.src.ReadPhys(now[:], pa); err != nil {
			return err
		}
		if now != *page {
			*page = now
			changing = append(changing, pa)
		}
	}
	for _, pa := range changing {
		if _, err := r.src.ReadPhys(r.pages[pa][:], pa); err != nil {
			return err
		}
	}
	return nil
}

// Kept lists the pages that are kept, those that touch as one range. It is an
// error if more were read than are kept.
func (r *Recorder) Kept() ([]Range, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full {
		return nil, fmt.Errorf("more than %d MiB of memory were read: too much to keep", maxRecordPages*PageSize>>20)
	}
	var out []Range
	for _, pa := range slices.Sorted(maps.Keys(r.pages)) {
		if n := len(out); n > 0 && out[n-1].End() == pa {
			out[n-1].Size += PageSize
		} else {
			out = append(out, Range{Start: pa, Size: PageSize})
		}
	}
	return out, nil
}

// Pages is how many pages were touched.
func (r *Recorder) Pages() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pages)
}

// recordMagic starts a recording; the rest is compressed: the source's ranges,
// then the pages in ascending order, each after the distance to the one before.
const recordMagic = "vmscope pages 1\n"

// Bounds of a recording.
const (
	maxRecordPages  = 1 << 17 // 512 MiB
	maxRecordRanges = 1 << 12
)

// Save writes the recording.
func (r *Recorder) Save(w io.Writer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := io.WriteString(w, recordMagic); err != nil {
		return err
	}
	z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	ranges := r.Ranges()
	if len(ranges) > maxRecordRanges || r.full {
		return fmt.Errorf("save a recording of %d pages in %d ranges: too large", len(r.pages), len(ranges))
	}
	b := binary.AppendUvarint(nil, uint64(len(ranges)))
	for _, x := range ranges {
		b = binary.AppendUvarint(b, uint64(x.Start))
		b = binary.AppendUvarint(b, x.Size)
	}
	b = binary.AppendUvarint(b, uint64(len(r.pages)))
	if _, err := z.Write(b); err != nil {
		return err
	}
	last := PA(0)
	for _, pa := range slices.Sorted(maps.Keys(r.pages)) {
		if _, err := z.Write(binary.AppendUvarint(b[:0], uint64(pa-last)/PageSize)); err != nil {
			return err
		}
		if _, err := z.Write(r.pages[pa][:]); err != nil {
			return err
		}
		last = pa
	}
	return z.Close()
}

// replayRAM lets Replay embed a RAM without a field that would hide the method
// RAM.
type replayRAM = RAM

// Replay is a guest's memory of which only the recorded pages exist.
type Replay struct {
	*replayRAM
	ranges  []Range
	extents []Range
}

// Load reads a recording that Recorder.Save wrote.
func Load(r io.Reader) (*Replay, error) {
	fail := func(err error) (*Replay, error) { return nil, fmt.Errorf("load recorded pages: %w", err) }
	magic := make([]byte, len(recordMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return fail(err)
	}
	if string(magic) != recordMagic {
		return fail(fmt.Errorf("not a recording: it starts with %q", magic))
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		return fail(err)
	}
	b := bufio.NewReader(z)
	n, err := binary.ReadUvarint(b)
	if err != nil || n > maxRecordRanges {
		return fail(fmt.Errorf("%d ranges: %w", n, orBound(err)))
	}
	p := &Replay{}
	for range n {
		start, err1 := binary.ReadUvarint(b)
		size, err2 := binary.ReadUvarint(b)
		if err1 != nil || err2 != nil || start+size < start {
			return fail(fmt.Errorf("a range at %#x: %w", start, orBound(err1, err2)))
		}
		p.ranges = append(p.ranges, Range{PA(start), size})
	}
	n, err = binary.ReadUvarint(b)
	if err != nil || n > maxRecordPages {
		return fail(fmt.Errorf("%d pages: %w", n, orBound(err)))
	}
	var segs []Segment
	next := uint64(0) // the lowest page frame that may follow
	for i := range n {
		d, err := binary.ReadUvarint(b)
		frame := d
		if i > 0 {
			frame += next - 1
		}
		if err != nil || d > 1<<52 || frame < next || frame > 1<<52 {
			return fail(fmt.Errorf("page %d: %w", i, orBound(err)))
		}
		page := make([]byte, PageSize)
		if _, err := io.ReadFull(b, page); err != nil {
			return fail(fmt.Errorf("page %d: %w", i, err))
		}
		pa := PA(frame * PageSize)
		if k := len(segs); k > 0 && segs[k-1].PA+PA(len(segs[k-1].Data)) == pa {
			segs[k-1].Data = append(segs[k-1].Data, page...)
			p.extents[k-1].Size += PageSize
		} else {
			segs = append(segs, Segment{PA: pa, Data: page})
			p.extents = append(p.extents, Range{pa, PageSize})
		}
		next = frame + 1
	}
	ram, err := NewRAM(segs...)
	if err != nil {
		return fail(err)
	}
	p.replayRAM = ram
	return p, nil
}

// orBound gives the first error, or says that a number is out of bounds.
func orBound(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: out of bounds", ErrInconsistent)
}

// Ranges are those of the guest that was recorded, whether or not pages of them
// were.
func (p *Replay) Ranges() []Range { return slices.Clone(p.ranges) }

// Extents lists the recorded pages.
func (p *Replay) Extents() ([]Range, error) { return slices.Clone(p.extents), nil }
