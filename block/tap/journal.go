package tap

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"vmscope/block"
	"vmscope/fsinfer/ext4/jbd2"
)

// Journal tells a receiver of a journal (jbd2) on its disk, so that it captures pre-images.
type Journal struct {
	Format jbd2.Format
	// Disk is which of the legs' disks the tap's disk is.
	Disk int
	// Volume is where the file system's volume lies, as block.Map has it.
	Volume []block.Segment
	// Others say how to read the other disks, by the legs' numbers: what a transaction overwrites there is captured, too, for
	// a Joint. Without them only what lies on the tap's disk is, for its Device.
	Others map[int]Content
	// Extents are where the journal's blocks lie, in bytes of the volume. The first begins with the journal's superblock:
	// a mount may change the format by it.
	Extents []block.Range
}

// logReader reads what is written to a journal: it is what a capture knows of journals.
type logReader struct {
	format jbd2.Format
	disk   int
	volume *block.Map
	others map[int]Content
	super  int64         // where on the disk the journal's superblock is; -1: not there
	away   place         // where it is on another disk that can be read; of length 0: it is not
	areas  []block.Range // of the disk, sorted: where the journal lies
	tags   []jbd2.Tag
	blocks []uint64
}

func newLogReader(j Journal) (*logReader, error) {
	if bs := j.Format.BlockSize; bs < 1024 || bs > 64<<10 || bs&(bs-1) != 0 {
		return nil, fmt.Errorf("journal with blocks of %d bytes", bs)
	}
	m, err := block.NewMap(j.Volume)
	if err != nil {
		return nil, err
	}
	l := &logReader{format: j.Format, disk: j.Disk, volume: m, others: j.Others, super: -1}
	if len(j.Extents) > 0 {
		p := m.Locate(j.Extents[0].Off)
		_, other := j.Others[p.Disk]
		switch {
		case p.Len <= 0 || p.Zero:
		case p.Disk == j.Disk:
			l.super = p.Off
		case p.Disk >= 0 && other:
			l.away = place{block.Range{Off: p.Off, Len: min(p.Len, jbd2.SuperSize)}, uint32(p.Disk) + 1}
		}
	}
	const most = 1 << 20 // pieces: a journal dealt out over stripes of 64 KiB has 2^14 a GiB
	for _, e := range j.Extents {
		if e.Off < 0 || e.Len < 0 || e.Off > m.Size() || e.Len > m.Size()-e.Off {
			return nil, fmt.Errorf("%w: journal at %d, %d bytes, of %d", block.ErrOutOfRange, e.Off, e.Len, m.Size())
		}
		for e.Len > 0 && len(l.areas) < most {
			p := m.Locate(e.Off)
			n := min(p.Len, e.Len)
			if !p.Zero && p.Disk == j.Disk {
				l.areas = append(l.areas, block.Range{Off: p.Off, Len: n})
			}
			e.Off, e.Len = e.Off+n, e.Len-n
		}
	}
	slices.SortFunc(l.areas, func(a, b block.Range) int { return cmp.Compare(a.Off, b.Off) })
	return l, nil
}

// within gives the areas that overlap a range.
func (l *logReader) within(off, n int64) []block.Range {
	i := sort.Search(len(l.areas), func(i int) bool { return l.areas[i].End() > off })
	k := i
	for k < len(l.areas) && l.areas[k].Off < off+n {
		k++
	}
	return l.areas[i:k]
}

// read goes through what was written at off: need is called with each place on the disk that a transaction will change, and
// commit where one is complete. Blocks that make no sense are passed over: nothing is replayed from them either. more tells
// that all of it is a transaction's beginning: it starts with a descriptor or revoke block, and nothing completes it.
func (l *logReader) read(off int64, data []byte, need func(place), commit func()) (more bool) {
	first := true
	bs := int64(l.format.BlockSize)
	for _, a := range l.within(off, int64(len(data))) {
		// Blocks are aligned in their area: an extent begins with one.
		at := a.Off
		if off > at {
			at += (off - at + bs - 1) / bs * bs
		}
		for ; at+bs <= min(a.End(), off+int64(len(data))); at += bs {
			b := data[at-off : at-off+bs]
			kind, _ := jbd2.KindOf(b)
			if first {
				more, first = kind == jbd2.Descriptor || kind == jbd2.Revoke, false
			}
			switch kind {
			case jbd2.Descriptor:
				l.tags, _ = l.format.AppendTags(l.tags[:0], b)
				for _, t := range l.tags {
					l.home(t.Block, need)
				}
			case jbd2.Revoke:
				l.blocks, _ = l.format.AppendRevoked(l.blocks[:0], b)
				for _, n := range l.blocks {
					l.home(n, need)
				}
			case jbd2.Commit:
				commit()
				more = false
			case jbd2.Super1, jbd2.Super2:
				more = false
				if at == l.super {
					l.follow(b)
				}
			}
		}
	}
	return more
}

// follow takes over the format of a superblock that was written: the first mount of a journal that mke2fs made turns on
// checksums and wide block numbers.
func (l *logReader) follow(b []byte) {
	sb, err := jbd2.ParseSuper(b)
	if err != nil {
		return
	}
	if f := sb.Format(); f.BlockSize == l.format.BlockSize {
		l.format = f
	}
}

// place is a piece of a disk that a transaction will change.
type place struct {
	block.Range
	// shelf is 0 for what the tap's Device is to show; else the image is for a Joint, and of the disk with the number shelf-1
	// among those that its volume lies on.
	shelf uint32
}

// home says where a block of the file system lies. On stripes it may lie in pieces.
func (l *logReader) home(n uint64, need func(place)) {
	bs := int64(l.format.BlockSize)
	if n >= uint64(l.volume.Size()/bs) {
		return
	}
	for off, left := int64(n)*bs, bs; left > 0; {
		p := l.volume.Locate(off)
		k := min(p.Len, left)
		if k <= 0 {
			return
		}
		r := block.Range{Off: p.Off, Len: k}
		_, other := l.others[p.Disk]
		switch {
		case p.Zero:
		case p.Disk == l.disk && len(l.others) == 0:
			need(place{r, 0})
		case p.Disk == l.disk || p.Disk >= 0 && other:
			need(place{r, uint32(p.Disk) + 1})
		}
		off, left = off+k, left-k
	}
}
