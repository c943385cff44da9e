package ext4

const directBlocks = 12

// blockMap walks the map of ext2 and ext3: 12 blocks in the inode, then one of three levels of indirect blocks each.
// Neighbours are joined to ranges, up to the length of an extent.
func (w *mapWalk) blockMap(b []byte) error {
	for i := range uint64(directBlocks) {
		if err := w.mapBlock(0, i, uint64(le.Uint32(b[4*i:]))); err != nil || w.ended {
			return err
		}
	}
	per := uint64(w.s.BlockSize / 4)
	logical, span := uint64(directBlocks), uint64(1) // blocks that one pointer of the level spans
	for level := 1; level <= 3; level++ {
		block := uint64(le.Uint32(b[4*(directBlocks-1+level):]))
		if block != 0 && logical+span*per > w.start {
			if err := w.indirect(block, level, logical, span); err != nil || w.ended {
				return err
			}
		}
		logical += span * per
		span *= per
	}
	return nil
}

// indirect walks the block of a level; its first pointer is for logical, each spans span blocks.
func (w *mapWalk) indirect(block uint64, level int, logical, span uint64) error {
	buf := w.s.buffer()
	defer buf.free()
	if err := w.node(buf.b, block); err != nil || w.ended {
		return err
	}
	before := w.mapped
	for b := buf.b; len(b) >= 4; b, logical = b[4:], logical+span {
		ptr := uint64(le.Uint32(b))
		if ptr == 0 || logical+span <= w.start {
			continue
		}
		if level == 1 {
			if err := w.mapBlock(block, logical, ptr); err != nil || w.ended {
				return err
			}
			continue
		}
		if err := w.indirect(ptr, level-1, logical, span/uint64(w.s.BlockSize/4)); err != nil || w.ended {
			return err
		}
	}
	// A block that maps nothing does not count against the volume's size, so there cannot be many.
	if w.mapped == before {
		if w.empty++; w.empty > maxEmptyLeaves {
			return w.bad(block, "maps nothing, like %d before", maxEmptyLeaves)
		}
	}
	return nil
}

// mapBlock takes one pointer to a block of the file.
func (w *mapWalk) mapBlock(at, logical, block uint64) error {
	if block == 0 {
		return nil
	}
	if !w.s.BlockValid(block) || logical >= 1<<32 {
		return w.bad(at, "block %d of the file at %d of %d", logical, block, w.s.Blocks)
	}
	if err := w.count(at, 1); err != nil {
		return err
	}
	run := &w.run
	if run.Len > 0 && run.Len < maxInitLen && run.Logical+uint64(run.Len) == logical && run.Physical+uint64(run.Len) == block {
		run.Len++
		return nil
	}
	w.flush()
	*run = Extent{Logical: logical, Physical: block, Len: 1}
	return nil
}

// flush gives the range that is being joined.
func (w *mapWalk) flush() {
	if w.run.Len > 0 {
		w.give(w.run)
		w.run.Len = 0
	}
}
