package ext4

// fastLook is what fast commits changed, on top of what lies in blocks.
type fastLook struct {
	inodes map[uint32][]byte // raw
	names  map[uint32]*nameEdits
	ranges map[uint32][]rangeEdit
}

// nameEdits are the names of a directory that came or went.
type nameEdits struct {
	ino   map[string]uint32 // 0: the name went
	order []string
}

// rangeEdit sets what maps a range of a file: the extent, or nothing where Physical is 0.
type rangeEdit Extent

// editedExtents walks the extents of an inode with edits made to them.
func (v *Volume) editedExtents(in *Inode, edits []rangeEdit, start uint64, data func(Extent) bool, meta func(block uint64) bool) error {
	return nil
}
