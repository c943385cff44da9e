package ext4

import (
	"errors"
	"fmt"
	"io"

	"vmscope/mem"
)

// ErrReplaced says that another file system was made where the one that is followed lay.
var ErrReplaced = errors.New("another file system was made in its place")

// CaughtUp says that the writes that are applied from now on were made after Attach.
func (f *FS) CaughtUp() {
	f.takeFound()
	f.early, f.again = false, true
	if f.journal != nil {
		f.journal.behind = false
	}
}

// Content reads a regular file as of the last event: what is at its blocks now. torn says that some of its data is on the way:
// the size of a file may be committed before what was written to new blocks is told to be there. A file larger than limit is
// an error.
//
// Until then such blocks are mapped as unwritten, as those are that were only allocated (fallocate) and are zeros for the
// guest, too. They are told apart by writes to them: the kernel sends data off before the commit of its mapping
// (fs/ext4/inode.c, ext4_do_writepages).
func (f *FS) Content(ino uint32, limit int64) (data []byte, torn bool, err error) {
	v := f.before()
	in, err := v.inode(make([]byte, f.sb.BlockSize), ino)
	if err != nil {
		return nil, false, err
	}
	switch {
	case !live(&in) || !in.IsRegular():
		return nil, false, fmt.Errorf("inode %d is no file: %w", ino, mem.ErrInconsistent)
	case in.Size > limit:
		return nil, false, fmt.Errorf("inode %d has %d bytes, more than %d", ino, in.Size, limit)
	}
	if in.Inline() {
		b, err := f.sb.InlineData(&in)
		return b[:min(int64(len(b)), in.Size)], false, err
	}
	data = make([]byte, in.Size)
	bs := int64(f.sb.BlockSize)
	buf := make([]byte, bs)
	if f.fast.inode(ino) != nil && in.Flags&FlagExtents != 0 && le.Uint16(in.Block[6:]) > 0 {
		return nil, true, nil // its map is not on the disk before the next full commit
	}
	var rerr error
	err = tolerate(f.sb.Extents(v, &in, func(e Extent) bool {
		if e.Unwritten {
			if left := in.Size - int64(e.Logical)*bs; left > 0 {
				torn = torn || f.data.underway(e.Physical, min(uint64(e.Len), uint64((left+bs-1)/bs)))
			}
			return true
		}
		for i := range int64(e.Len) {
			off := (int64(e.Logical) + i) * bs
			if off >= in.Size {
				return false
			}
			b, err := f.current(buf, e.Physical+uint64(i))
			if err != nil && !errors.Is(err, io.EOF) {
				rerr = err
				return false
			}
			copy(data[off:], b)
		}
		return true
	}, nil))
	return data, torn, errors.Join(err, rerr)
}
