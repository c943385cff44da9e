package ext4

import (
	"fmt"

	"vmscope/mem"
)

// InlineDirents visits the entries of a directory that lies in its inode, "." and ".." first. Of errors and names it says
// what Dirents says. The names point into in.
func (s *Super) InlineDirents(in *Inode, visit func(Dirent) bool) error {
	if !in.Inline() || !in.IsDir() {
		return fmt.Errorf("ext4: inode %d: no inline directory: %w", in.Number, mem.ErrInconsistent)
	}
	more := true
	each := func(d Dirent) bool {
		more = visit(d)
		return more
	}
	if !each(Dirent{in.Number, FileTypeDir, dotDot[:1]}) || !each(Dirent{InlineParent(in), FileTypeDir, dotDot}) {
		return nil
	}
	first := s.dirents(in.Block[4:], 0, !in.Encrypted(), each)
	if !more {
		return nil
	}
	rest, err := s.inlineRest(in)
	if err == nil {
		err = s.dirents(rest, 0, !in.Encrypted(), each)
	}
	if first != nil {
		err = first
	}
	if err != nil && more {
		return fmt.Errorf("inode %d: %w", in.Number, err)
	}
	return nil
}

var dotDot = []byte("..")

// InlineParent is the parent of a directory that lies in its inode.
func InlineParent(in *Inode) uint32 { return le.Uint32(in.Block[:]) }

// InlineData is the content of a file, or the target of a symbolic link, that lies in its inode: a copy. It is at most
// as long as an inode. Size may be smaller than it, where the guest lies; the content ends at Size.
func (s *Super) InlineData(in *Inode) ([]byte, error) {
	if !in.Inline() {
		return nil, fmt.Errorf("ext4: inode %d: no inline data: %w", in.Number, mem.ErrInconsistent)
	}
	data := append([]byte(nil), in.Block[:]...)
	if in.Size > int64(len(data)) {
		rest, err := s.inlineRest(in)
		if err != nil {
			return nil, err
		}
		data = append(data, rest...)
	}
	if in.Size > int64(len(data)) {
		return data, fmt.Errorf("ext4: inode %d: %d bytes of inline data, size %d: %w", in.Number, len(data), in.Size, mem.ErrInconsistent)
	}
	return data[:in.Size], nil
}

// inlineRest is what does not fit Block: the value of the attribute system.data, which may be absent.
func (s *Super) inlineRest(in *Inode) (value []byte, err error) {
	err = bodyEntries(in, func(e xattrEntry) bool {
		if e.index != xattrSystem || string(e.name) != "data" || e.ino != 0 {
			return true
		}
		value = e.value
		return false
	})
	return value, err
}
