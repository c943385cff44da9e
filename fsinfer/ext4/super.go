package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"vmscope/mem"
)

var le = binary.LittleEndian

// SuperOffset is where the superblock lies, bytes from the start of the volume. SuperSize is its size.
const (
	SuperOffset = 1024
	SuperSize   = 1024
)

const superMagic = 0xef53

// ErrNoSuper says that there is no superblock of this family: no ext2, ext3 or ext4.
var ErrNoSuper = errors.New("no ext2, ext3 or ext4 file system")

// ErrJournalDevice says that the volume holds the journal of a file system on another volume.
var ErrJournalDevice = errors.New("an ext4 journal device, no file system")

// Super is what the superblock says, checked so that arithmetic with it neither overflows nor divides by zero: groups,
// blocks and inodes fit each other, and all offsets in bytes fit an int64.
type Super struct {
	BlockSize       int    // bytes, 1 to 64 KiB, a power of two
	Blocks          uint64 // of the volume
	Inodes          uint32
	InodesPerGroup  uint32
	BlocksPerGroup  uint32
	FirstDataBlock  uint32 // 1 where blocks are 1 KiB (but with bigalloc), else 0
	Groups          uint32
	InodeSize       int // bytes, 128 up to a block
	DescSize        int // bytes of a group descriptor: 32, or 64 and more
	ClusterSize     int // bytes; BlockSize but with bigalloc
	FirstInode      uint32
	FirstMetaBG     uint32
	ReservedGDT     uint16
	Revision        uint32
	Compat          uint32
	Incompat        uint32
	ROCompat        uint32
	UUID            [16]byte
	Label           string // as the guest chose it, up to the first NUL
	LastMounted     string // where it was mounted last
	State           uint16 // 1 cleanly unmounted, 2 errors seen, 4 orphans being recovered
	MountCount      uint16
	MountTime       int64 // seconds since 1970
	WriteTime       int64
	MkfsTime        int64
	FreeBlocks      uint64 // as of the last unmount
	FreeInodes      uint32
	JournalInode    uint32
	JournalDevice   uint32
	JournalUUID     [16]byte // of an external journal
	LastOrphan      uint32   // head of the list of deleted but open inodes; 0: none
	OrphanFile      uint32   // inode that lists them instead
	ProjectQuotas   uint32   // inode that counts them; no directory names it
	BackupGroups    [2]uint32
	ChecksumSeed    uint32 // what all checksums of metadata start from
	HashSeed        [4]uint32
	HashVersion     uint8
	SuperFlags      uint32 // 1 signed, 2 unsigned directory hash
	WantExtraIsize  uint16
	Encoding        uint16 // of casefolded names: 1 is UTF-8 12.1
	EncodingFlags   uint16
	LogGroupsFlex   uint8
	KBytesWritten   uint64
	ErrorCount      uint32
	CreatorOS       uint32 // 0 Linux, 1 Hurd
	ChecksumOK      bool   // of the superblock itself; true where there is none
	ChecksumType    uint8
	blockBits       uint8
	inodesPerBlock  uint32
	descPerBlock    uint32
	inodeTableSpan  uint64 // blocks of a group's inode table
	superBlockBlock uint64 // block in which the superblock lies
}

func badSuper(format string, args ...any) error {
	return fmt.Errorf("ext4 superblock: %s: %w", fmt.Sprintf(format, args...), mem.ErrInconsistent)
}

// ParseSuper reads a superblock, SuperSize bytes. It keeps nothing of b. A wrong checksum is told by ChecksumOK, not by
// an error. ErrNoSuper: this is something else; errors.ErrUnsupported: it has features that are not known here.
func ParseSuper(b []byte) (*Super, error) {
	if len(b) < SuperSize || le.Uint16(b[0x38:]) != superMagic {
		return nil, ErrNoSuper
	}
	b = b[:SuperSize]
	s := &Super{Revision: le.Uint32(b[0x4c:]), CreatorOS: le.Uint32(b[0x48:])}
	s.Compat, s.Incompat, s.ROCompat = le.Uint32(b[0x5c:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	switch unknown := s.Incompat &^ incompatKnown; {
	case unknown&IncompatJournalDev != 0:
		return nil, ErrJournalDevice
	case unknown != 0:
		return nil, fmt.Errorf("ext4 superblock: incompatible features %#x: %w", unknown, errors.ErrUnsupported)
	case s.Revision > 1:
		return nil, fmt.Errorf("ext4 superblock: revision %d: %w", s.Revision, errors.ErrUnsupported)
	}
	if err := s.geometry(b); err != nil {
		return nil, err
	}
	s.words(b)
	s.checksum(b)
	return s, nil
}

// geometry takes and checks all that later arithmetic builds on (kernel: ext4_check_geometry, ext4_fill_super).
func (s *Super) geometry(b []byte) error {
	logBlock := le.Uint32(b[0x18:])
	if logBlock > 6 {
		return badSuper("block size 1024<<%d", logBlock)
	}
	s.blockBits = uint8(10 + logBlock)
	s.BlockSize = 1 << s.blockBits
	s.superBlockBlock = SuperOffset >> s.blockBits
	s.ClusterSize = s.BlockSize
	clusters := le.Uint32(b[0x20:])
	if s.ROCompat&ROCompatBigalloc != 0 {
		logCluster := le.Uint32(b[0x1c:])
		if logCluster < logBlock || logCluster > 20 { // EXT4_MAX_CLUSTER_LOG_SIZE is 30, in bytes
			return badSuper("cluster size 1024<<%d with blocks of %d", logCluster, s.BlockSize)
		}
		s.ClusterSize = 1024 << logCluster
		clusters = le.Uint32(b[0x24:])
	}
	s.BlocksPerGroup = le.Uint32(b[0x20:])
	ratio := uint64(s.ClusterSize / s.BlockSize)
	if clusters == 0 || uint64(clusters) > uint64(s.BlockSize)*8 || uint64(clusters)*ratio != uint64(s.BlocksPerGroup) {
		return badSuper("%d blocks a group, blocks of %d, clusters of %d", s.BlocksPerGroup, s.BlockSize, s.ClusterSize)
	}
	s.InodeSize, s.FirstInode = 128, 11
	if s.Revision > 0 {
		s.InodeSize, s.FirstInode = int(le.Uint16(b[0x58:])), le.Uint32(b[0x54:])
	}
	if s.InodeSize < 128 || s.InodeSize > s.BlockSize || bits.OnesCount(uint(s.InodeSize)) != 1 {
		return badSuper("inodes of %d bytes", s.InodeSize)
	}
	s.DescSize = 32
	if s.is64Bit() {
		s.DescSize = int(le.Uint16(b[0xfe:]))
	}
	if s.DescSize < 32 || s.is64Bit() && s.DescSize < 64 || s.DescSize > 1024 || bits.OnesCount(uint(s.DescSize)) != 1 {
		return badSuper("group descriptors of %d bytes", s.DescSize)
	}
	s.inodesPerBlock = uint32(s.BlockSize / s.InodeSize)
	s.descPerBlock = uint32(s.BlockSize / s.DescSize)
	s.InodesPerGroup = le.Uint32(b[0x28:])
	if s.InodesPerGroup < s.inodesPerBlock || uint64(s.InodesPerGroup) > uint64(s.BlockSize)*8 {
		return badSuper("%d inodes a group", s.InodesPerGroup)
	}
	s.inodeTableSpan = (uint64(s.InodesPerGroup) + uint64(s.inodesPerBlock) - 1) / uint64(s.inodesPerBlock)
	s.Blocks = uint64(le.Uint32(b[4:]))
	if s.is64Bit() {
		s.Blocks |= uint64(le.Uint32(b[0x150:])) << 32
	}
	s.FirstDataBlock = le.Uint32(b[0x14:])
	wantFirst := uint64(s.superBlockBlock)
	if s.ClusterSize > s.BlockSize {
		wantFirst = 0
	}
	if uint64(s.FirstDataBlock) > wantFirst || s.superBlockBlock != 0 && ratio == 1 && s.FirstDataBlock == 0 {
		return badSuper("first data block %d with blocks of %d", s.FirstDataBlock, s.BlockSize)
	}
	// One more than all block numbers, in bytes, is an offset too.
	if s.Blocks <= uint64(s.FirstDataBlock)+s.superBlockBlock || s.Blocks >= 1<<63>>s.blockBits {
		return badSuper("%d blocks of %d", s.Blocks, s.BlockSize)
	}
	groups := (s.Blocks - uint64(s.FirstDataBlock) + uint64(s.BlocksPerGroup) - 1) / uint64(s.BlocksPerGroup)
	s.Inodes = le.Uint32(b[0:])
	if groups > 1<<32-1-uint64(s.descPerBlock) || groups*uint64(s.InodesPerGroup) != uint64(s.Inodes) {
		return badSuper("%d inodes in %d groups of %d", s.Inodes, groups, s.InodesPerGroup)
	}
	s.Groups = uint32(groups)
	if s.FirstInode < 11 || s.FirstInode > s.Inodes {
		return badSuper("first inode %d of %d", s.FirstInode, s.Inodes)
	}
	s.FirstMetaBG = le.Uint32(b[0x104:])
	return nil
}

// words takes what is no geometry. Numbers of inodes among them are unchecked: ReadInode checks.
func (s *Super) words(b []byte) {
	s.FreeBlocks = uint64(le.Uint32(b[0xc:]))
	if s.is64Bit() {
		s.FreeBlocks |= uint64(le.Uint32(b[0x158:])) << 32
	}
	s.FreeInodes = le.Uint32(b[0x10:])
	s.MountTime = int64(le.Uint32(b[0x2c:])) | int64(b[0x275])<<32
	s.WriteTime = int64(le.Uint32(b[0x30:])) | int64(b[0x274])<<32
	s.MkfsTime = int64(le.Uint32(b[0x108:])) | int64(b[0x276])<<32
	s.MountCount, s.State = le.Uint16(b[0x34:]), le.Uint16(b[0x3a:])
	copy(s.UUID[:], b[0x68:])
	s.Label, s.LastMounted = cstring(b[0x78:0x88]), cstring(b[0x88:0xc8])
	s.ReservedGDT = le.Uint16(b[0xce:])
	copy(s.JournalUUID[:], b[0xd0:])
	s.JournalInode, s.JournalDevice, s.LastOrphan = le.Uint32(b[0xe0:]), le.Uint32(b[0xe4:]), le.Uint32(b[0xe8:])
	for i := range s.HashSeed {
		s.HashSeed[i] = le.Uint32(b[0xec+4*i:])
	}
	s.HashVersion, s.SuperFlags = b[0xfc], le.Uint32(b[0x160:])
	s.WantExtraIsize = le.Uint16(b[0x15e:])
	s.LogGroupsFlex, s.ChecksumType = b[0x174], b[0x175]
	s.KBytesWritten, s.ErrorCount = le.Uint64(b[0x178:]), le.Uint32(b[0x194:])
	s.BackupGroups = [2]uint32{le.Uint32(b[0x24c:]), le.Uint32(b[0x250:])}
	s.Encoding, s.EncodingFlags = le.Uint16(b[0x27c:]), le.Uint16(b[0x27e:])
	s.OrphanFile = le.Uint32(b[0x280:])
	s.ProjectQuotas = le.Uint32(b[0x26c:])
	s.ChecksumSeed = crc32c(^uint32(0), s.UUID[:])
	if s.incompat(IncompatCsumSeed) {
		s.ChecksumSeed = le.Uint32(b[0x270:])
	}
}

func (s *Super) checksum(b []byte) {
	s.ChecksumOK = !s.MetadataCsum() || s.ChecksumType == 1 && crc32c(^uint32(0), b[:0x3fc]) == le.Uint32(b[0x3fc:])
}

func cstring(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// blocksFor is how many blocks hold n bytes; n is not negative.
func (s *Super) blocksFor(n int64) uint64 {
	return (uint64(n) + uint64(s.BlockSize) - 1) >> s.blockBits
}

// BlockValid says whether block lies on the volume and can belong to a file.
func (s *Super) BlockValid(block uint64) bool {
	return block > uint64(s.superBlockBlock) && block < s.Blocks
}

// rangeValid says the same of n blocks.
func (s *Super) rangeValid(block, n uint64) bool {
	return block > s.superBlockBlock && block < s.Blocks && n <= s.Blocks-block
}
