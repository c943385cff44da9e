package ext4

import (
	"bytes"
	"fmt"

	"vmscope/mem"
)

// inBlocks gives the inode of a directory by which its names lie in blocks: where fast commits told the inode, it may have
// been another before, or none.
func (f *FS) inBlocks(v *view, in *Inode) (*Inode, error) {
	if v.fc.inode(in.Number) == nil {
		return in, nil
	}
	blocks := view{fs: f}
	base, err := blocks.inode(make([]byte, f.sb.BlockSize), in.Number)
	if err != nil {
		return nil, err
	}
	if !live(&base) || !same(&base, in) {
		return &Inode{Number: in.Number}, nil
	}
	base.InBody = bytes.Clone(base.InBody)
	return &base, nil
}

// fewNames is up to how many names a block is searched for one by one before its entries are looked at.
const fewNames = 4

// entry is what a name leads to, 0 for nothing, and the block that it lies in, 0 for the inode itself.
type entry struct {
	ino   uint32
	block uint64
}

// lookup finds in the blocks of a directory what the given names lead to; those that it does not have stay as they are. What
// fast commits told of the names does not count.
func (f *FS) lookup(v *view, dir uint32, names map[string]entry) error {
	in, err := v.inode(make([]byte, f.sb.BlockSize), dir)
	if err != nil || !live(&in) || !in.IsDir() {
		return err
	}
	in.InBody = bytes.Clone(in.InBody)
	base, err := f.inBlocks(v, &in)
	if err != nil || !base.IsDir() {
		return err
	}
	left, at := len(names), uint64(0)
	see := func(d Dirent) bool {
		if base.Encrypted() {
			d.Name = []byte(nameOf(base, d))
		}
		if _, ok := names[string(d.Name)]; ok && !d.IsDot() {
			names[string(d.Name)] = entry{d.Ino, at}
			left--
		}
		return left > 0
	}
	if base.Inline() {
		return f.sb.InlineDirents(base, see)
	}
	var few [][]byte
	for name := range names {
		if len(names) <= fewNames && !base.Encrypted() {
			few = append(few, []byte(name))
		}
	}
	spans, err := f.dirSpans(v, base, nil)
	scratch := make([]byte, f.sb.BlockSize)
	for _, s := range spans {
		for b := s.start; b < s.end() && left > 0; b++ {
			if f.work++; f.work > maxWork {
				return fmt.Errorf("more than %d blocks of directories to read for one change: %w", maxWork, mem.ErrInconsistent)
			}
			at = b
			data, rerr := v.peek(scratch, b)
			if rerr != nil {
				return rerr
			}
			there := len(few) == 0
			for _, name := range few {
				there = there || bytes.Contains(data, name)
			}
			if !there {
				continue
			}
			if derr := f.sb.DirentsOf(base, data, see); derr != nil && err == nil {
				err = derr
			}
		}
	}
	return err
}
