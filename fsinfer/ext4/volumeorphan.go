package ext4

import (
	"errors"
	"fmt"

	"vmscope/block"
	"vmscope/mem"
)

// orphanMagic ends each block of the orphan file, with a checksum behind it (kernel: struct ext4_orphan_block_tail).
const orphanMagic = 0x0b10ca04

// maxOrphans is how many orphans are told: they are files that somebody holds open.
const maxOrphans = 1 << 20

// Orphans gives the inodes that a recovery would delete or cut: files without a name that were open, and files that were
// being truncated. A look does neither, so that they can be opened by OpenInode. Those found before an error are given
// beside it.
func (v *Volume) Orphans() ([]uint32, error) {
	seen := map[uint32]bool{}
	list, err := v.orphanList(nil, seen)
	if v.sb.Compat&CompatOrphanFile == 0 || v.sb.OrphanFile == 0 {
		return list, err
	}
	list, ferr := v.orphanFile(list, seen)
	return list, errors.Join(err, ferr)
}

// orphanList follows the list that begins in the superblock: each inode names the next where deleted ones have the time.
func (v *Volume) orphanList(list []uint32, seen map[uint32]bool) ([]uint32, error) {
	for ino := v.sb.LastOrphan; ino != 0 && len(list) < maxOrphans; {
		if seen[ino] {
			return list, fmt.Errorf("ext4: orphans: inode %d is listed twice: %w", ino, mem.ErrInconsistent)
		}
		in, err := v.Inode(ino)
		if err != nil {
			return list, fmt.Errorf("ext4: orphans: %w", err)
		}
		seen[ino] = true
		list = append(list, ino)
		ino = in.Dtime
	}
	return list, nil
}

func (v *Volume) orphanFile(list []uint32, seen map[uint32]bool) ([]uint32, error) {
	in, err := v.Inode(v.sb.OrphanFile)
	if err != nil {
		return list, fmt.Errorf("ext4: orphan file: %w", err)
	}
	var bad error
	b := make([]byte, v.sb.BlockSize)
	end := v.sb.blocksFor(in.Size)
	err = v.Extents(&in, func(e Extent) bool {
		for i := range uint64(e.Len) {
			if e.Logical+i >= end || len(list) >= maxOrphans {
				return false
			}
			if bad = block.ReadFull(v.dev, b, int64(e.Physical+i)<<v.sb.blockBits); bad != nil {
				return false
			}
			if le.Uint32(b[len(b)-8:]) != orphanMagic {
				bad = fmt.Errorf("ext4: orphan file: block %d: magic %#x: %w", e.Physical+i, le.Uint32(b[len(b)-8:]), mem.ErrInconsistent)
				return false
			}
			for p := b[:len(b)-8]; len(p) >= 4; p = p[4:] {
				if ino := le.Uint32(p); ino != 0 && ino <= v.sb.Inodes && !seen[ino] {
					seen[ino] = true
					list = append(list, ino)
				}
			}
		}
		return true
	}, nil)
	return list, errors.Join(err, bad)
}
