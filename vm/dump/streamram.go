package dump

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// What a word of a RAM section says in its lower bits (QEMU migration/ram.c): what
// follows, for which page of which block.
const (
	ramZero     = 2
	ramSizes    = 4
	ramPage     = 8
	ramEnd      = 0x10
	ramContinue = 0x20  // of the block of the page before
	ramDelta    = 0x40  // xbzrle: what has changed since the page was sent last
	ramPacked   = 0x100 // capability compress, up to QEMU 9.0: zlib
	ramFlush    = 0x200 // of multifd; nothing follows
)

// ramBlock is a block of RAM: the guest's memory, a ROM, video memory.
type ramBlock struct {
	name string
	size uint64
	// pages are where the stream has each page last, in groups. A group is there if
	// one of its pages is.
	pages map[uint64]*[pageGroup]pageAt
	room  *uint64 // groups that all blocks together may still take
}

const (
	pageGroup  = 512
	streamPage = 4096
)

// pageAt is where a stream has a page: its offset, and in what form. 0, which is no
// page's, is zeros.
type pageAt uint64

const (
	atPacked = 1 << 63 // the offset is that of its packed length
	atDelta  = 1 << 62 // it is an index of stream.deltas

	maxPacked = 2 * streamPage // bytes that a page takes that is packed
	maxDeltas = 4096           // of a page, each sent in another pass over memory
)

// delta is what changed in a page.
type delta struct {
	off    uint64
	size   uint16
	passes uint16 // deltas before this
	before pageAt
}

func (b *ramBlock) at(page uint64) pageAt {
	if g := b.pages[page/pageGroup]; g != nil {
		return g[page%pageGroup]
	}
	return 0
}

// put notes where a page is. The groups that this makes are bounded by the size of the
// file: one page in each, packed to nothing, would take hundreds of times that.
func (b *ramBlock) put(page uint64, at pageAt) error {
	g := b.pages[page/pageGroup]
	if g == nil {
		if at == 0 {
			return nil
		}
		if *b.room == 0 {
			return errors.New("pages farther apart than those of any machine")
		}
		*b.room--
		g = new([pageGroup]pageAt)
		b.pages[page/pageGroup] = g
	}
	g[page%pageGroup] = at
	return nil
}

// groupRoom is how many groups a stream of so many bytes may take: 16 for each page that it has room
// for as it is, and those of 64 GiB. QEMU sends a page of zeros too, in 9 bytes.
func groupRoom(size uint64) *uint64 {
	n := size/streamPage*16 + 1<<15
	return &n
}

// ram reads what one section of RAM has.
func (s *stream) ram(r *streamReader) error {
	for r.err == nil {
		start := r.off
		v := r.u64()
		off, flags := v&^(streamPage-1), v&(streamPage-1)
		switch {
		case r.err != nil:
			return nil
		case flags == ramEnd:
			return nil
		case flags == ramFlush:
			continue
		case flags == ramSizes:
			if err := s.sizes(r, off); err != nil {
				return err
			}
			continue
		}
		if flags&ramContinue == 0 {
			s.last = s.block(r.name())
		}
		if r.err != nil {
			return nil
		}
		b := s.last
		if b == nil || off >= b.size {
			return fmt.Errorf("page %#x at offset %#x is in no block", off, start)
		}
		n := off / streamPage
		at, err := s.page(r, flags&^ramContinue, b.at(n))
		if err != nil {
			return fmt.Errorf("page %#x at offset %#x: %w", off, start, err)
		}
		if r.err != nil { // the page is not whole
			return nil
		}
		if err := b.put(n, at); err != nil {
			return fmt.Errorf("page %#x at offset %#x: %w", off, start, err)
		}
	}
	return nil
}

func (s *stream) block(name string) *ramBlock {
	for _, b := range s.blocks {
		if b.name == name {
			return b
		}
	}
	return nil
}

// page reads over a page and tells where it is.
func (s *stream) page(r *streamReader, what uint64, before pageAt) (pageAt, error) {
	switch what {
	case ramZero:
		if c := r.u8(); c != 0 {
			return 0, fmt.Errorf("filled with bytes %#x", c)
		}
		return 0, nil
	case ramPage:
		at := pageAt(r.off)
		r.skip(streamPage)
		return at, nil
	case ramPacked:
		at := pageAt(r.off) | atPacked
		n := r.u32()
		if n == 0 && r.err == nil || n > maxPacked {
			return 0, fmt.Errorf("packed to %d bytes", n)
		}
		r.skip(uint64(n))
		return at, nil
	case ramDelta:
		how, n := r.u8(), r.u16()
		d := delta{off: r.off, size: n, before: before}
		if before&atDelta != 0 {
			d.passes = s.deltas[before&^atDelta].passes + 1
		}
		if r.err == nil && (how != 1 || n > streamPage || d.passes == maxDeltas) {
			return 0, fmt.Errorf("a difference of kind %d and %d bytes, behind %d others", how, n, d.passes)
		}
		r.skip(uint64(n))
		s.deltas = append(s.deltas, d)
		return pageAt(len(s.deltas)-1) | atDelta, nil
	}
	return 0, fmt.Errorf("of kind %#x, which is not known: this stream is of a later version", what)
}

// sizes reads the list of blocks.
func (s *stream) sizes(r *streamReader, total uint64) error {
	if len(s.blocks) > 0 || total > maxBundleRAM {
		return fmt.Errorf("a second list of blocks, or of %d bytes", total)
	}
	for sum := uint64(0); sum < total && r.err == nil; {
		b := &ramBlock{name: r.name(), size: r.u64(), pages: make(map[uint64]*[pageGroup]pageAt), room: s.room}
		if r.err != nil {
			return nil
		}
		if b.size > total-sum || b.size%streamPage != 0 || len(s.blocks) == maxBlocks {
			return fmt.Errorf("block %q of %d bytes, of %d in all", b.name, b.size, total)
		}
		sum += b.size
		s.blocks = append(s.blocks, b)
		if s.shared {
			r.skip(8) // where it is mapped
		}
		if s.mapped {
			if err := b.readMapped(r); err != nil {
				return fmt.Errorf("block %q: %w", b.name, err)
			}
		}
	}
	return nil
}

// memory is the guest's RAM: the block of QEMU's name for it, or those of NUMA nodes
// as libvirt names them, else the largest, which must be the only one that is larger
// than a video card's.
func (s *stream) memory() (*ramBlock, error) {
	const video = 64 << 20
	var best *ramBlock
	large := 0
	for _, b := range s.blocks {
		if b.name == "pc.ram" || b.name == "mach-virt.ram" {
			return b, nil
		}
		if b.size > video {
			large++
		}
		if best == nil || b.size > best.size {
			best = b
		}
	}
	nodes, err := s.nodes()
	switch {
	case err != nil || nodes != nil:
		return nodes, err
	case best == nil:
		return nil, fmt.Errorf("%w: migration stream without memory", ErrFormat)
	case large > 1:
		return nil, fmt.Errorf("%w: migration stream of RAM in several blocks: how they lie is not known", ErrFormat)
	}
	return best, nil
}

// nodes joins the RAM of NUMA nodes, which lies in their order; nil: there are none.
func (s *stream) nodes() (*ramBlock, error) {
	all := &ramBlock{name: "NUMA nodes", pages: make(map[uint64]*[pageGroup]pageAt)}
	parts := make(map[int]*ramBlock)
	for _, b := range s.blocks {
		if _, number, ok := strings.Cut(b.name, "ram-node"); ok {
			if n, err := strconv.Atoi(number); err == nil {
				parts[n] = b
			}
		}
	}
	for n := range len(parts) {
		b := parts[n]
		if b == nil || all.size%(pageGroup*streamPage) != 0 {
			return nil, fmt.Errorf("%w: migration stream of NUMA nodes: how they lie is not known", ErrFormat)
		}
		for g, pages := range b.pages {
			all.pages[all.size/(pageGroup*streamPage)+g] = pages
		}
		all.size += b.size
	}
	if len(parts) == 0 {
		return nil, nil
	}
	return all, nil
}
