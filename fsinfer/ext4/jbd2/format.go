package jbd2

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Format is how a journal's blocks are written. It is a small value, made by Super.Format; blocks that are decoded must be
// BlockSize long.
type Format struct {
	BlockSize int
	Wide      bool   // block numbers of 64 bits
	Async     bool   // commit blocks may come before what they commit
	Csum      uint8  // version of the checksums: 0 none, 1, 2 or 3
	Seed      uint32 // of the checksums of versions 2 and 3
}

// Kind is what a journal block is.
type Kind uint8

// The kinds, with the numbers of the disk. All that is not metadata is Data.
const (
	Data       Kind = 0
	Descriptor Kind = 1 // names the file system blocks whose content follows
	Commit     Kind = 2
	Super1     Kind = 3
	Super2     Kind = 4
	Revoke     Kind = 5
)

// Tag is one entry of a descriptor block. The content of its k-th tag is the k-th journal block behind the descriptor.
type Tag struct {
	Block    uint64 // of the file system
	Checksum uint32 // as stored; 16 bits of it in version 2
	Escaped  bool   // the content's first four bytes were the magic and are zero in the journal
}

const (
	flagEscape   = 1
	flagSameUUID = 2
	flagLast     = 8

	headerSize = 12
)

// KindOf says what a journal block is by its first 12 bytes, and its tid if it is metadata.
func KindOf(block []byte) (Kind, uint32) {
	if len(block) < headerSize || binary.BigEndian.Uint32(block) != magic {
		return Data, 0
	}
	k, tid := binary.BigEndian.Uint32(block[4:]), binary.BigEndian.Uint32(block[8:])
	if k < 1 || k > 5 {
		return Data, tid
	}
	return Kind(k), tid
}

// TagSize is the length of a tag in bytes, without a UUID behind it (journal_tag_bytes).
func (f Format) TagSize() int {
	if f.Csum == 3 {
		return 16
	}
	n := 8
	if f.Wide {
		n += 4
	}
	if f.Csum == 2 {
		n += 2 // the kernel counts the checksum twice; what is on disk is so
	}
	return n
}

// Descriptor decodes the tags of a descriptor block, whose checksum must be right.
func (f Format) Descriptor(block []byte) ([]Tag, error) { return f.AppendTags(nil, block) }

// AppendTags is Descriptor for those who have a slice. On an error dst is returned as it was.
func (f Format) AppendTags(dst []Tag, block []byte) ([]Tag, error) {
	if err := f.check(block); err != nil {
		return dst, err
	}
	return f.tags(dst, block), nil
}

func (f Format) tags(dst []Tag, block []byte) []Tag {
	end := f.end()
	size := f.TagSize()
	be := binary.BigEndian
	for off := headerSize; off+size <= end; {
		flags := be.Uint16(block[off+6:])
		t := Tag{Block: uint64(be.Uint32(block[off:])), Escaped: flags&flagEscape != 0}
		if f.Wide {
			t.Block |= uint64(be.Uint32(block[off+8:])) << 32
		}
		switch f.Csum {
		case 2:
			t.Checksum = uint32(be.Uint16(block[off+4:]))
		case 3:
			t.Checksum = be.Uint32(block[off+12:])
		}
		dst = append(dst, t)
		if flags&flagLast != 0 {
			break
		}
		off += size
		if flags&flagSameUUID == 0 {
			off += 16
		}
	}
	return dst
}

// Revoke decodes a revoke block, whose checksum must be right: the file system blocks whose older copies in the log must
// not be replayed.
func (f Format) Revoke(block []byte) ([]uint64, error) { return f.AppendRevoked(nil, block) }

// AppendRevoked is Revoke for those who have a slice. On an error dst is returned as it was.
func (f Format) AppendRevoked(dst []uint64, block []byte) ([]uint64, error) {
	if err := f.check(block); err != nil {
		return dst, err
	}
	return f.revoked(dst, block)
}

func (f Format) revoked(dst []uint64, block []byte) ([]uint64, error) {
	end := f.end()
	be := binary.BigEndian
	n := be.Uint32(block[headerSize:]) // bytes in use, from the start of the block
	if uint64(n) > uint64(end) {
		return dst, bad("revoke block uses %d of %d bytes", n, end)
	}
	if f.Wide {
		for off := headerSize + 4; off+8 <= int(n); off += 8 {
			dst = append(dst, be.Uint64(block[off:]))
		}
		return dst, nil
	}
	for off := headerSize + 4; off+4 <= int(n); off += 4 {
		dst = append(dst, uint64(be.Uint32(block[off:])))
	}
	return dst, nil
}

// end is the offset where the content of a descriptor or revoke block must end.
func (f Format) end() int {
	if f.Csum >= 2 {
		return f.BlockSize - 4
	}
	return f.BlockSize
}

// check verifies the length and the tail checksum of a descriptor or revoke block.
func (f Format) check(block []byte) error {
	if len(block) != f.BlockSize || len(block) < SuperSize {
		return bad("journal block of %d bytes, not %d", len(block), f.BlockSize)
	}
	if f.Csum >= 2 {
		end := f.end()
		if got, want := crcWithout(f.Seed, block, end), binary.BigEndian.Uint32(block[end:]); got != want {
			return fmt.Errorf("%w: %#x, not %#x", ErrChecksum, got, want)
		}
	}
	return nil
}

// commitInfo is what a commit block says.
type commitInfo struct {
	time   time.Time
	crc    uint32 // of the whole transaction, if hasCRC (version 1)
	hasCRC bool
}

// commit decodes a commit block, whose checksum of versions 2 and 3 must be right; err leaves the rest usable.
func (f Format) commit(block []byte) (c commitInfo, err error) {
	be := binary.BigEndian
	sec, nsec := be.Uint64(block[48:]), be.Uint32(block[56:])
	const year10000 = 253402300800 // no later time can be printed
	if sec < year10000 && nsec < 1e9 {
		c.time = time.Unix(int64(sec), int64(nsec)).UTC()
	}
	switch f.Csum {
	case 1:
		c.crc = be.Uint32(block[16:])
		switch kind, size := block[12], block[13]; {
		case kind == 1 && size == 4:
			c.hasCRC = true
		case kind != 0 || size != 0 || c.crc != 0: // all zero: the kernel that wrote it had checksums off
			return c, fmt.Errorf("%w of type %d, %d bytes", ErrChecksum, kind, size)
		}
	case 2, 3:
		if got, want := crcWithout(f.Seed, block, 16), be.Uint32(block[16:]); got != want {
			return c, fmt.Errorf("%w: %#x, not %#x", ErrChecksum, got, want)
		}
	}
	return c, nil
}

// dataShift makes the checksum of a block of the transaction tid from that of the block alone, by exclusive or. CRCs are
// linear: what comes before a block changes the sum in the same way, whatever the block holds.
func (f Format) dataShift(tid uint32) uint32 {
	seed := f.Seed
	for shift := 24; shift >= 0; shift -= 8 {
		seed = castagnoli[byte(seed)^byte(tid>>shift)] ^ seed>>8
	}
	return crc32c(seed, zeros[:f.BlockSize])
}

// matches verifies the checksum of a logged block, as it lies in the journal, against its tag.
func (f Format) matches(t Tag, sum uint32) bool {
	switch f.Csum {
	case 2:
		return uint16(sum) == uint16(t.Checksum)
	case 3:
		return sum == t.Checksum
	}
	return true
}

// sum is the checksum of a block alone, where tags have checksums.
func (f Format) sum(block []byte) uint32 {
	if f.Csum < 2 {
		return 0
	}
	return crc32c(0, block)
}

var zeros [65536]byte

// crcWithout is the CRC-32C of b with the four bytes at off taken as zero.
func crcWithout(seed uint32, b []byte, off int) uint32 {
	return crc32c(crc32c(crc32c(seed, b[:off]), zeros[:4]), b[off+4:])
}
