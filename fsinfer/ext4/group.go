package ext4

import (
	"errors"
	"fmt"

	"vmscope/mem"
)

// ErrNoInode says that the file system has no inode of this number.
var ErrNoInode = errors.New("no such inode")

// Group is a descriptor of a block group. Its block numbers are as the guest wrote them: InodePlace checks them.
type Group struct {
	BlockBitmap, InodeBitmap, InodeTable uint64
	FreeBlocks, FreeInodes, UsedDirs     uint32
	// ItableUnused counts the inodes at the end of the table that were never used; it is 0 where the file system does not
	// keep it.
	ItableUnused uint32
	Flags        uint16
}

// hasGroupFlags says that Flags and ItableUnused of the groups mean something: they are guarded by a checksum.
func (s *Super) hasGroupFlags() bool {
	return s.ROCompat&(ROCompatGdtCsum|ROCompatMetadataCsum) != 0
}

// ParseGroup reads a descriptor, DescSize bytes. Of less it gives the zero Group.
func (s *Super) ParseGroup(b []byte) Group {
	if len(b) < s.DescSize {
		return Group{}
	}
	g := Group{
		BlockBitmap: uint64(le.Uint32(b)), InodeBitmap: uint64(le.Uint32(b[4:])), InodeTable: uint64(le.Uint32(b[8:])),
		FreeBlocks: uint32(le.Uint16(b[12:])), FreeInodes: uint32(le.Uint16(b[14:])), UsedDirs: uint32(le.Uint16(b[16:])),
	}
	if s.hasGroupFlags() {
		g.Flags, g.ItableUnused = le.Uint16(b[18:]), uint32(le.Uint16(b[28:]))
	}
	if s.DescSize < 64 {
		return g
	}
	g.BlockBitmap |= uint64(le.Uint32(b[32:])) << 32
	g.InodeBitmap |= uint64(le.Uint32(b[36:])) << 32
	g.InodeTable |= uint64(le.Uint32(b[40:])) << 32
	g.FreeBlocks |= uint32(le.Uint16(b[44:])) << 16
	g.FreeInodes |= uint32(le.Uint16(b[46:])) << 16
	g.UsedDirs |= uint32(le.Uint16(b[48:])) << 16
	if s.hasGroupFlags() {
		g.ItableUnused |= uint32(le.Uint16(b[50:])) << 16
	}
	return g
}

// GroupChecksumOK says whether descriptor b of group g bears the right checksum, or none is asked for.
func (s *Super) GroupChecksumOK(g uint32, b []byte) bool {
	if len(b) < s.DescSize || !s.hasGroupFlags() {
		return true
	}
	b = b[:s.DescSize]
	want := le.Uint16(b[30:])
	if s.MetadataCsum() {
		c := crc32c4(s.ChecksumSeed, g)
		c = crc32c(c, b[:30])
		c = crc32c(c, []byte{0, 0})
		return uint16(crc32c(c, b[32:])) == want
	}
	c := crc16(0xffff, s.UUID[:])
	c = crc16(c, []byte{byte(g), byte(g >> 8), byte(g >> 16), byte(g >> 24)})
	c = crc16(c, b[:30])
	return crc16(c, b[32:]) == want
}

// GroupBlock tells where the descriptor of group g lies: its block, and the offset in it. A group that is not there is
// placed beyond the last.
func (s *Super) GroupBlock(g uint32) (block uint64, off int) {
	nr := g / s.descPerBlock
	off = int(g%s.descPerBlock) * s.DescSize
	if !s.incompat(IncompatMetaBG) || nr < s.FirstMetaBG {
		return s.superBlockBlock + 1 + uint64(nr), off
	}
	// The descriptors of a meta block group lie in its first group, behind a copy of the superblock if that has one
	// (kernel: descriptor_loc).
	first := nr * s.descPerBlock
	block = s.GroupStart(first)
	if s.HasSuper(first) {
		block++
	}
	if nr == 0 && s.superBlockBlock == 1 && s.FirstDataBlock == 0 {
		block++
	}
	return block, off
}

// GroupStart is the first block of group g.
func (s *Super) GroupStart(g uint32) uint64 {
	return uint64(s.FirstDataBlock) + uint64(g)*uint64(s.BlocksPerGroup)
}

// HasSuper says whether group g begins with the superblock or a copy of it.
func (s *Super) HasSuper(g uint32) bool {
	switch {
	case g == 0:
		return true
	case s.Compat&CompatSparseSuper2 != 0:
		return g == s.BackupGroups[0] || g == s.BackupGroups[1]
	case g == 1 || s.ROCompat&ROCompatSparseSuper == 0:
		return true
	case g%2 == 0:
		return false
	}
	for _, base := range [...]uint32{3, 5, 7} {
		n := g
		for n%base == 0 {
			n /= base
		}
		if n == 1 {
			return true
		}
	}
	return false
}

// InodeGroup tells in which group inode ino lies, and the how many-eth there it is, from 0. Inode 0 is none.
func (s *Super) InodeGroup(ino uint32) (group, index uint32) {
	return (ino - 1) / s.InodesPerGroup, (ino - 1) % s.InodesPerGroup
}

// InodePlace tells where in the inode table of its group g the index-th inode lies: block, and offset in it.
func (s *Super) InodePlace(g Group, index uint32) (block uint64, off int, err error) {
	if index >= s.InodesPerGroup || !s.rangeValid(g.InodeTable, s.inodeTableSpan) {
		return 0, 0, fmt.Errorf("ext4: inode table at block %d, inode %d of %d in it: %w", g.InodeTable, index, s.InodesPerGroup, mem.ErrInconsistent)
	}
	return g.InodeTable + uint64(index/s.inodesPerBlock), int(index%s.inodesPerBlock) * s.InodeSize, nil
}

// InodeTableBlocks is how many blocks the inode table of a group has.
func (s *Super) InodeTableBlocks() uint64 { return s.inodeTableSpan }

// BlockReader reads blocks of a volume. p is one block long.
type BlockReader interface {
	ReadBlock(p []byte, block uint64) error
}

// groupPlace is GroupBlock for a group and a block that have to be there.
func (s *Super) groupPlace(g uint32) (block uint64, off int, err error) {
	if g >= s.Groups {
		return 0, 0, fmt.Errorf("ext4: group %d of %d: %w", g, s.Groups, mem.ErrInconsistent)
	}
	block, off = s.GroupBlock(g)
	if !s.BlockValid(block) {
		return 0, 0, fmt.Errorf("ext4: descriptor of group %d in block %d of %d: %w", g, block, s.Blocks, mem.ErrInconsistent)
	}
	return block, off, nil
}

// ReadGroup reads the descriptor of group g. A wrong checksum is a *ChecksumError beside the Group.
func (s *Super) ReadGroup(r BlockReader, g uint32) (Group, error) {
	block, off, err := s.groupPlace(g)
	if err != nil {
		return Group{}, err
	}
	buf := s.buffer()
	defer buf.free()
	if err := r.ReadBlock(buf.b, block); err != nil {
		return Group{}, err
	}
	b := buf.b[off : off+s.DescSize]
	group := s.ParseGroup(b)
	if !s.GroupChecksumOK(g, b) {
		return group, &ChecksumError{What: fmt.Sprintf("descriptor of group %d", g), Block: block}
	}
	return group, nil
}

// ReadInode reads inode ino by its group's descriptor. The Inode owns its bytes. Checksums of the descriptor are not
// looked at, that of the inode is told by ChecksumOK.
func (s *Super) ReadInode(r BlockReader, ino uint32) (Inode, error) {
	if ino == 0 || ino > s.Inodes {
		return Inode{}, fmt.Errorf("ext4: inode %d of %d: %w", ino, s.Inodes, ErrNoInode)
	}
	group, index := s.InodeGroup(ino)
	g, err := s.ReadGroup(r, group)
	if bad := (*ChecksumError)(nil); err != nil && !errors.As(err, &bad) {
		return Inode{}, err
	}
	block, off, err := s.InodePlace(g, index)
	if err != nil {
		return Inode{}, err
	}
	buf := s.buffer()
	defer buf.free()
	if err := r.ReadBlock(buf.b, block); err != nil {
		return Inode{}, err
	}
	return s.ParseInode(ino, append([]byte(nil), buf.b[off:off+s.InodeSize]...))
}
