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
	if f.journal != nil {
		f.journal.behind = false
	}
}

// Content reads a regular file as of the last event: what is at its blocks now. torn says that some of them are not
// written yet: the name and the size of a new file may be committed before its data. A file larger than limit is an error.
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
			torn = torn || int64(e.Logical)*bs < in.Size
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
