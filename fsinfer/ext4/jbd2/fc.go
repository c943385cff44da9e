package jbd2

import (
	"encoding/binary"
	"fmt"
)

// FCTag says what a fast commit's record tells.
type FCTag uint16

// The tags of fs/ext4/fast_commit.h that are handed out.
const (
	FCAddRange FCTag = 1 // blocks were mapped into a file
	FCDelRange FCTag = 2 // a range of a file lost its blocks
	FCCreat    FCTag = 3 // a new inode and its name
	FCLink     FCTag = 4 // a name for an inode
	FCUnlink   FCTag = 5 // a name that is gone
	FCInode    FCTag = 6 // an inode as it is now
)

const (
	fcPad  = 7
	fcTail = 8
	fcHead = 9

	fcHeader  = 4   // u16 tag, u16 length
	fcMaxName = 255 // EXT4_NAME_LEN
	fcInode   = 128 // EXT4_GOOD_OLD_INODE_SIZE
)

// FCOp is one record of a fast commit. Which fields count depends on the Tag.
type FCOp struct {
	Tag    FCTag
	Ino    uint32
	Parent uint32 // directory: FCCreat, FCLink, FCUnlink
	Name   []byte // in that directory, 1 to 255 bytes
	Inode  []byte // FCInode: the inode as on disk, at least 128 bytes; its block count is not to be trusted

	Block     uint32 // first logical block: FCAddRange, FCDelRange
	Len       uint32 // blocks
	Start     uint64 // FCAddRange: first block of the file system
	Unwritten bool   // FCAddRange: the blocks read as zeros
}

// FastCommit is what one fast commit wrote: changes on top of the last full commit, in the order in which recovery makes
// them.
type FastCommit struct {
	TID uint32 // the transaction that was running; the full commit before has the tid before
	Ops []FCOp // Names and Inodes are valid until the next call of what gave the FastCommit
}

// fcParser decodes the blocks of a fast-commit area in their order.
type fcParser struct {
	tid  uint32 // of the round: since the last full commit
	crc  uint32 // of the records since the last tail
	head bool   // the round's head was seen
	ops  []FCOp // since the last tail
}

// errFeatures says that a fast commit needs more than is known here.
var errFeatures = fmt.Errorf("%w: fast-commit features", ErrUnsupported)

// block decodes the next block. done is called at each tail, with the operations that are then committed. Records do not
// cross blocks. Kernels before 6.2 leave the last byte of a block unused, later ones fill it: both end with fewer bytes
// than a record's header, or with a record that reaches to the end.
func (p *fcParser) block(b []byte, done func()) error {
	le := binary.LittleEndian
	for len(b) >= fcHeader {
		tag, n := le.Uint16(b), int(le.Uint16(b[2:]))
		if n > len(b)-fcHeader {
			return bad("fast-commit record %d of %d bytes, %d left", tag, n, len(b)-fcHeader)
		}
		rec, v := b[:fcHeader+n], b[fcHeader:fcHeader+n]
		b = b[fcHeader+n:]
		if !p.head && tag != fcHead {
			return bad("fast-commit record %d before a head", tag)
		}
		switch tag {
		case fcHead:
			if n < 8 {
				return bad("fast-commit head of %d bytes", n)
			}
			if features := le.Uint32(v); features != 0 {
				return fmt.Errorf("%w %#x", errFeatures, features)
			}
			if tid := le.Uint32(v[4:]); p.head && tid != p.tid {
				return bad("fast-commit head of transaction %d", tid)
			} else {
				p.tid, p.head = tid, true
			}
		case fcTail:
			if n < 8 {
				return bad("fast-commit tail of %d bytes", n)
			}
			if tid := le.Uint32(v); tid != p.tid {
				return bad("fast-commit tail of transaction %d", tid)
			}
			if got, want := crc32c(p.crc, rec[:fcHeader+4]), le.Uint32(v[4:]); got != want {
				return fmt.Errorf("fast commit: %w: %#x, not %#x", ErrChecksum, got, want)
			}
			done()
			p.crc = 0
			continue
		case fcPad:
		default:
			op, err := fcOp(FCTag(tag), v)
			if err != nil {
				return err
			}
			p.ops = append(p.ops, op)
		}
		p.crc = crc32c(p.crc, rec)
	}
	return nil
}

// fcOp decodes the value of a record that changes something.
func fcOp(tag FCTag, v []byte) (op FCOp, err error) {
	le := binary.LittleEndian
	n := len(v)
	wrong := func() (FCOp, error) { return FCOp{}, bad("fast-commit record %d of %d bytes", tag, n) }
	switch tag {
	case FCAddRange:
		if n != 16 {
			return wrong()
		}
		op.Ino, op.Block, op.Len = le.Uint32(v), le.Uint32(v[4:]), uint32(le.Uint16(v[8:]))
		op.Start = uint64(le.Uint16(v[10:]))<<32 | uint64(le.Uint32(v[12:]))
		const initMax = 1 << 15 // EXT_INIT_MAX_LEN
		if op.Len > initMax {
			op.Len, op.Unwritten = op.Len-initMax, true
		}
	case FCDelRange:
		if n != 12 {
			return wrong()
		}
		op.Ino, op.Block, op.Len = le.Uint32(v), le.Uint32(v[4:]), le.Uint32(v[8:])
	case FCCreat, FCLink, FCUnlink:
		if n <= 8 || n > 8+fcMaxName {
			return wrong()
		}
		op.Parent, op.Ino, op.Name = le.Uint32(v), le.Uint32(v[4:]), v[8:]
	case FCInode:
		if n < 4+fcInode {
			return wrong()
		}
		op.Ino, op.Inode = le.Uint32(v), v[4:]
	default:
		return FCOp{}, bad("fast-commit record of type %d", tag)
	}
	op.Tag = tag
	return op, nil
}
