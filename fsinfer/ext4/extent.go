package ext4

import (
	"fmt"

	"vmscope/mem"
)

// Extent maps Len blocks of a file from Logical on to the volume's blocks from Physical on.
type Extent struct {
	Logical, Physical uint64 // blocks
	Len               uint32 // blocks, not 0
	Unwritten         bool   // allocated, but reads as zeros
}

const (
	extentMagic    = 0xf30a
	extentSize     = 12 // of the header and of each entry
	maxExtentDepth = 5
	maxInitLen     = 32768 // an extent is longer by this if it is unwritten
	// maxEmptyLeaves is how many leaves without an entry a tree may have. The kernel leaves none, but forgives them.
	maxEmptyLeaves = 64
)

// Extents walks the blocks of a file, a directory or a long symbolic link, be they mapped by an extent tree or by a block
// map, in the order of Logical. data gets the mapped ranges, meta the blocks of the map itself, each before it is read;
// both may be nil, and each ends the walk by giving false. r is asked only where the map does not fit the inode.
//
// Ranges lie on the volume, rise strictly, do not overlap in the file, and are in all no more than the volume has blocks.
// What breaks this ends the walk with mem.ErrInconsistent. A *ChecksumError comes after all was walked. An inode without
// blocks (a short symbolic link, a device, one with inline data) gives nothing.
func (s *Super) Extents(r BlockReader, in *Inode, data func(Extent) bool, meta func(block uint64) bool) error {
	return s.extentsFrom(r, in, 0, data, meta)
}

// extentsFrom is Extents without what ends before block start of the file, as far as the map lets it be passed over: an
// extent that spans start is given whole, a few before it may be given.
func (s *Super) extentsFrom(r BlockReader, in *Inode, start uint64, data func(Extent) bool, meta func(block uint64) bool) error {
	if !in.hasMap() {
		return nil
	}
	w := mapWalk{s: s, r: r, ino: in.Number, seed: s.seed(in), start: start, data: data, meta: meta}
	var err error
	if in.Flags&FlagExtents != 0 {
		err = w.root(in.Block[:])
	} else {
		err = w.blockMap(in.Block[:])
	}
	if err == nil && !w.ended {
		w.flush()
		err = w.badSum
	}
	return err
}

// mapWalk is one walk over the map of an inode. It does not hold the inode, so that the caller's may stay on the stack.
type mapWalk struct {
	s     *Super
	r     BlockReader
	ino   uint32
	seed  uint32 // of checksums
	start uint64 // block of the file from which on the map is wanted
	data  func(Extent) bool
	meta  func(uint64) bool
	ended bool // a callback wants no more

	mapped uint64 // blocks so far
	empty  int    // nodes without entries so far
	badSum error
	run    Extent // of a block map: what is not given yet
}

func (w *mapWalk) bad(block uint64, format string, args ...any) error {
	where := "in the inode"
	if block != 0 {
		where = fmt.Sprintf("block %d", block)
	}
	return fmt.Errorf("ext4: map of inode %d, %s: %s: %w", w.ino, where, fmt.Sprintf(format, args...), mem.ErrInconsistent)
}

// count accounts for n more mapped blocks. A walk is bounded by this: each leaf maps something.
func (w *mapWalk) count(at uint64, n uint64) error {
	w.mapped += n
	if w.mapped > w.s.Blocks {
		return w.bad(at, "more blocks than the volume has")
	}
	return nil
}

func (w *mapWalk) give(e Extent) {
	if w.data != nil && !w.data(e) {
		w.ended = true
	}
}

// node reads a block of the map into buf.
func (w *mapWalk) node(buf []byte, block uint64) error {
	if !w.s.BlockValid(block) {
		return w.bad(block, "outside of the volume's %d", w.s.Blocks)
	}
	if w.meta != nil && !w.meta(block) {
		w.ended = true
		return nil
	}
	if err := w.r.ReadBlock(buf, block); err != nil {
		return fmt.Errorf("ext4: map of inode %d: %w", w.ino, err)
	}
	return nil
}

func (w *mapWalk) root(b []byte) error {
	if le.Uint16(b) != extentMagic {
		return w.bad(0, "magic %#x", le.Uint16(b))
	}
	depth := int(le.Uint16(b[6:]))
	if depth > maxExtentDepth {
		return w.bad(0, "depth %d", depth)
	}
	if depth == 0 {
		n, err := w.header(b, 0, 0)
		if err != nil {
			return err
		}
		return w.leaf(b[extentSize:extentSize*(n+1)], 0, 0, 1<<32)
	}
	buf := w.s.buffer()
	defer buf.free()
	return w.tree(buf.b[:copy(buf.b, b)], 0, depth, 0, 1<<32)
}

// header checks the header of a node and gives the number of its entries.
func (w *mapWalk) header(b []byte, block uint64, depth int) (int, error) {
	n, most := int(le.Uint16(b[2:])), int(le.Uint16(b[4:]))
	switch {
	case le.Uint16(b) != extentMagic:
		return 0, w.bad(block, "magic %#x", le.Uint16(b))
	case int(le.Uint16(b[6:])) != depth:
		return 0, w.bad(block, "depth %d, want %d", le.Uint16(b[6:]), depth)
	case n > most || most > len(b)/extentSize-1:
		return 0, w.bad(block, "%d entries of %d", n, most)
	}
	return n, nil
}

// tree walks a node whose entries lie in [from, to) of the file. Since these ranges of siblings do not overlap and no
// node but a few leaves is empty, no block can take part twice.
func (w *mapWalk) tree(b []byte, block uint64, depth int, from, to uint64) error {
	n, err := w.header(b, block, depth)
	if err != nil {
		return err
	}
	if block != 0 {
		w.sum(b, block, int(le.Uint16(b[4:])))
	}
	if n == 0 {
		if w.empty++; depth > 0 || w.empty > maxEmptyLeaves {
			return w.bad(block, "no entries at depth %d", depth)
		}
	}
	if depth == 0 {
		return w.leaf(b[extentSize:extentSize*(n+1)], block, from, to)
	}
	buf := w.s.buffer()
	defer buf.free()
	for i := 1; i <= n; i++ {
		e := b[i*extentSize:]
		first, end := uint64(le.Uint32(e)), to
		if i < n {
			end = uint64(le.Uint32(e[extentSize:]))
		}
		if first < from || first >= end || end > to {
			return w.bad(block, "index %d from %d to %d, not in %d to %d", i-1, first, end, from, to)
		}
		from = end
		if end <= w.start {
			continue
		}
		child := uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32
		if err := w.node(buf.b, child); err != nil || w.ended {
			return err
		}
		if err := w.tree(buf.b, child, depth-1, first, end); err != nil || w.ended {
			return err
		}
	}
	return nil
}

// leaf gives the extents of one node.
func (w *mapWalk) leaf(b []byte, block uint64, from, to uint64) error {
	for ; len(b) >= extentSize; b = b[extentSize:] {
		e := Extent{Logical: uint64(le.Uint32(b)), Len: uint32(le.Uint16(b[4:]))}
		e.Physical = uint64(le.Uint32(b[8:])) | uint64(le.Uint16(b[6:]))<<32
		if e.Len > maxInitLen {
			e.Len, e.Unwritten = e.Len-maxInitLen, true
		}
		if e.Len == 0 || e.Logical < from || e.Logical+uint64(e.Len) > to || !w.s.rangeValid(e.Physical, uint64(e.Len)) {
			return w.bad(block, "%d blocks from %d at %d, not in %d to %d", e.Len, e.Logical, e.Physical, from, to)
		}
		from = e.Logical + uint64(e.Len)
		if err := w.count(block, uint64(e.Len)); err != nil {
			return err
		}
		if w.give(e); w.ended {
			return nil
		}
	}
	return nil
}

// sum checks the checksum behind the room for the entries of a node.
func (w *mapWalk) sum(b []byte, block uint64, most int) {
	end := extentSize * (most + 1)
	if w.badSum != nil || !w.s.MetadataCsum() || end+4 > len(b) {
		return
	}
	if crc32c(w.seed, b[:end]) != le.Uint32(b[end:]) {
		w.badSum = &ChecksumError{What: "extent tree", Inode: w.ino, Block: block}
	}
}
