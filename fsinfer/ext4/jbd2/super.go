package jbd2

import (
	"encoding/binary"
	"fmt"
)

// magic begins every block of journal metadata. Logged data that begins so is escaped.
const magic = 0xC03B3998

// SuperSize is how much of the journal's first block the superblock takes.
const SuperSize = 1024

// Features, as in Super.Compat and Super.Incompat.
const (
	CompatChecksum = 0x1 // v1 checksums: one CRC-32 of a whole transaction in its commit block

	IncompatRevoke      = 0x1
	Incompat64Bit       = 0x2
	IncompatAsyncCommit = 0x4 // a commit block may be written before the blocks that it commits
	IncompatCsumV2      = 0x8
	IncompatCsumV3      = 0x10
	IncompatFastCommit  = 0x20

	incompatKnown = IncompatRevoke | Incompat64Bit | IncompatAsyncCommit | IncompatCsumV2 | IncompatCsumV3 | IncompatFastCommit
)

const (
	checksumCRC32C  = 4
	defaultFCBlocks = 256  // JBD2_DEFAULT_FAST_COMMIT_BLOCKS
	minLog          = 1024 // JBD2_MIN_JOURNAL_BLOCKS: a fast-commit area that leaves less is not used
)

// Super is a journal's superblock.
type Super struct {
	Version   int    // 1 or 2; version 1 has neither features nor a UUID
	BlockSize uint32 // bytes
	MaxLen    uint32 // blocks of the journal, this superblock and the fast-commit area included
	First     uint32 // index of the first block of the log
	Sequence  uint32 // tid of the oldest transaction in the log; of the next one where Start is 0
	Start     uint32 // index where the oldest transaction begins; 0: the log is empty
	Errno     int32  // why the guest's kernel gave the journal up; 0: it did not

	Compat, Incompat, ROCompat uint32

	UUID         [16]byte
	Users        uint32 // file systems that share the journal
	ChecksumType uint8  // 4: CRC-32C
	FCBlocks     uint32 // blocks of the fast-commit area as written; 0 stands for 256
	Head         uint32 // where an empty log goes on, by kernels that note it; else 0
}

// ParseSuper decodes the start of a journal's first block. A superblock that the kernel would refuse is an error. That
// the journal is as long as it says is for Check.
func ParseSuper(b []byte) (*Super, error) {
	if len(b) < SuperSize {
		return nil, bad("journal superblock of %d bytes", len(b))
	}
	b = b[:SuperSize]
	be := binary.BigEndian
	if m := be.Uint32(b); m != magic {
		return nil, bad("journal superblock magic %#x", m)
	}
	s := &Super{
		BlockSize: be.Uint32(b[12:]), MaxLen: be.Uint32(b[16:]), First: be.Uint32(b[20:]),
		Sequence: be.Uint32(b[24:]), Start: be.Uint32(b[28:]), Errno: int32(be.Uint32(b[32:])),
	}
	switch kind := be.Uint32(b[4:]); kind {
	case 3:
		s.Version = 1
	case 4:
		s.Version = 2
		s.Compat, s.Incompat, s.ROCompat = be.Uint32(b[36:]), be.Uint32(b[40:]), be.Uint32(b[44:])
		copy(s.UUID[:], b[48:64])
		s.Users = be.Uint32(b[64:])
		s.ChecksumType = b[0x50]
		s.FCBlocks, s.Head = be.Uint32(b[0x54:]), be.Uint32(b[0x58:])
	default:
		return nil, bad("journal superblock of type %d", kind)
	}
	if err := s.validate(); err != nil {
		return nil, err
	}
	if s.Incompat&(IncompatCsumV2|IncompatCsumV3) != 0 {
		if got, want := crcWithout(^uint32(0), b, 0xFC), be.Uint32(b[0xFC:]); got != want {
			return nil, fmt.Errorf("journal superblock: %w: %#x, not %#x", ErrChecksum, got, want)
		}
	}
	return s, nil
}

func (s *Super) validate() error {
	switch {
	case s.BlockSize < 1024 || s.BlockSize > 65536 || s.BlockSize&(s.BlockSize-1) != 0:
		return bad("journal block size %d", s.BlockSize)
	case s.First == 0 || s.First >= s.MaxLen:
		return bad("journal log from %d of %d blocks", s.First, s.MaxLen)
	case s.Incompat&^incompatKnown != 0:
		return fmt.Errorf("%w: journal features %#x", ErrUnsupported, s.Incompat&^incompatKnown)
	case s.ROCompat != 0:
		return fmt.Errorf("%w: journal read-only features %#x", ErrUnsupported, s.ROCompat)
	}
	if v23 := s.Incompat & (IncompatCsumV2 | IncompatCsumV3); v23 != 0 {
		switch {
		case v23 == IncompatCsumV2|IncompatCsumV3 || s.Compat&CompatChecksum != 0:
			return bad("journal with checksums of several versions (features %#x, %#x)", s.Compat, s.Incompat)
		case s.ChecksumType != checksumCRC32C:
			return fmt.Errorf("%w: journal checksum type %d", ErrUnsupported, s.ChecksumType)
		}
	}
	if s.LogEnd() <= s.First {
		return bad("journal of %d blocks, log from %d, fast-commit area of %d", s.MaxLen, s.First, s.FCBlocks)
	}
	if s.Start != 0 && (s.Start < s.First || s.Start >= s.LogEnd()) {
		return bad("journal start %d outside of the log (%d to %d)", s.Start, s.First, s.LogEnd())
	}
	return nil
}

// Check compares what the superblock says with what there is: the file system's block size, and how many blocks the
// journal's inode or device has.
func (s *Super) Check(blockSize uint32, blocks uint64) error {
	if s.BlockSize != blockSize {
		return bad("journal block size %d on a file system of %d", s.BlockSize, blockSize)
	}
	if uint64(s.MaxLen) > blocks {
		return bad("journal of %d blocks in %d", s.MaxLen, blocks)
	}
	return nil
}

// LogEnd is the index where the log wraps to First.
func (s *Super) LogEnd() uint32 {
	if s.Incompat&IncompatFastCommit != 0 {
		n := s.FCBlocks
		if n == 0 {
			n = defaultFCBlocks
		}
		if n <= s.MaxLen && s.MaxLen-n >= minLog {
			return s.MaxLen - n
		}
	}
	return s.MaxLen
}

// FastCommits is the half-open range of indexes that fast commits are written to; empty where there are none. The block
// between the log and the first fast commit stays unused: jbd2 sets j_fc_first to j_last + 1.
func (s *Super) FastCommits() (first, end uint32) {
	if e := s.LogEnd(); e < s.MaxLen {
		return e + 1, s.MaxLen
	}
	return s.MaxLen, s.MaxLen
}

// Format is how the journal's blocks are written under the superblock's features.
func (s *Super) Format() Format {
	f := Format{
		BlockSize: int(s.BlockSize),
		Wide:      s.Incompat&Incompat64Bit != 0,
		Async:     s.Incompat&IncompatAsyncCommit != 0,
	}
	switch {
	case s.Incompat&IncompatCsumV3 != 0:
		f.Csum = 3
	case s.Incompat&IncompatCsumV2 != 0:
		f.Csum = 2
	case s.Compat&CompatChecksum != 0:
		f.Csum = 1
	}
	if f.Csum >= 2 {
		f.Seed = crc32c(^uint32(0), s.UUID[:])
	}
	return f
}
