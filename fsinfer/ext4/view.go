package ext4

import (
	"fmt"

	"vmscope/mem"
)

// view reads the file system at one moment: before a transaction, or behind it.
type view struct {
	fs  *FS
	new map[uint64][]byte // what the transaction logs; nil for the moment before it
	fc  *fastState        // names and inodes that only fast commits told; nil where the blocks are all there is
}

// before is the state that the model holds.
func (f *FS) before() *view {
	f.takeFound()
	return &view{fs: f, fc: &f.fast}
}

// peek gives a block's content. It is valid until the next call of peek with the same scratch.
func (v *view) peek(scratch []byte, b uint64) ([]byte, error) {
	if data, ok := v.new[b]; ok {
		return data, nil
	}
	return v.fs.current(scratch, b)
}

// ReadBlock implements BlockReader.
func (v *view) ReadBlock(p []byte, b uint64) error {
	data, err := v.peek(p, b)
	if err == nil && &data[0] != &p[0] {
		copy(p, data)
	}
	return err
}

// current reads a block as it stands before the next transaction.
func (f *FS) current(scratch []byte, b uint64) ([]byte, error) {
	if b >= f.sb.Blocks {
		return nil, fmt.Errorf("block %d of %d: %w", b, f.sb.Blocks, mem.ErrInconsistent)
	}
	if data, ok, err := f.store.get(scratch, b); ok || err != nil {
		return data, err
	}
	if f.home.tree != nil {
		// Tables are held as they were told; on the disk they may be ahead of that.
		if _, _, table := f.tableBlock(b); table {
			return zeroBlock[:f.sb.BlockSize], nil
		}
	}
	if data, ok := f.reads[b]; ok {
		return data, nil
	}
	scratch = scratch[:f.sb.BlockSize]
	n, err := f.dev.ReadAt(scratch, int64(b)*int64(f.sb.BlockSize))
	if n < len(scratch) {
		return nil, fmt.Errorf("block %d: %w", b, err)
	}
	if f.reads != nil && len(f.reads) < maxReads {
		f.reads[b] = append([]byte(nil), scratch...)
	}
	return scratch, nil
}

// maxReads bounds the cache of blocks that were read while one transaction is worked on.
const maxReads = 256

// inode reads an inode. InBody is valid until the next read through scratch.
func (v *view) inode(scratch []byte, ino uint32) (in Inode, err error) {
	if raw := v.fc.inode(ino); raw != nil {
		return v.fs.sb.ParseInode(ino, raw)
	}
	b, off, err := v.fs.inodePlace(ino)
	if err != nil {
		return in, err
	}
	data, err := v.peek(scratch, b)
	if err != nil {
		return in, fmt.Errorf("inode %d: %w", ino, err)
	}
	return v.fs.sb.ParseInode(ino, data[off:off+v.fs.sb.InodeSize])
}

// inodePlace tells where an inode lies.
func (f *FS) inodePlace(ino uint32) (b uint64, off int, err error) {
	if ino == 0 || ino > f.sb.Inodes {
		return 0, 0, fmt.Errorf("inode %d of %d: %w", ino, f.sb.Inodes, mem.ErrInconsistent)
	}
	g, i := f.sb.InodeGroup(ino)
	at := uint64(i) * uint64(f.sb.InodeSize)
	return f.tables[g] + at/uint64(f.sb.BlockSize), int(at % uint64(f.sb.BlockSize)), nil
}

// live reports whether names may lead to an inode.
func live(in *Inode) bool { return in.Links > 0 && in.Mode != 0 }

// same reports whether two states of an inode number are of one file.
func same(a, b *Inode) bool {
	return a.Generation == b.Generation && a.Mode&sIFMT == b.Mode&sIFMT
}
