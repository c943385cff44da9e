package ext4

import (
	"fmt"
	"time"

	"vmscope/event"
	"vmscope/mem"
)

// Inode is what an inode says of itself.
type Inode struct {
	Number     uint32
	Mode       uint16 // kind and permissions, as of stat(2)
	Links      uint32
	UID, GID   uint32
	Generation uint32
	Flags      uint32
	ExtraSize  uint16 // of the fields behind the first 128 bytes
	ChecksumOK bool   // true where there is none
	Size       int64  // bytes; never negative
	Blocks     uint64 // units of 512 bytes
	FileACL    uint64 // block of extended attributes; 0: none
	Version    uint64 // of content (for NFS); of a value of an extended attribute, its reference count
	ProjectID  uint32

	Atime, Ctime, Mtime Timestamp
	Crtime              Timestamp // zero where it is not kept
	Dtime               uint32    // seconds since 1970 of the deletion; of an orphan, the number of the next

	Block [60]byte // block map, extent tree's root, a symbolic link's target, inline data, or a device number
	// InBody are the bytes behind the fields, in which extended attributes lie. They alias what ParseInode was given.
	InBody []byte
}

// Timestamp is a moment, to be compared by ==.
type Timestamp struct {
	Sec  int64 // since 1970
	Nsec uint32
}

// Time is the moment in UTC.
func (t Timestamp) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)).UTC() }

// Kinds in Inode.Mode, as stat(2) calls them.
const (
	sIFMT   = 0xf000
	sIFIFO  = 0x1000
	sIFCHR  = 0x2000
	sIFDIR  = 0x4000
	sIFBLK  = 0x6000
	sIFREG  = 0x8000
	sIFLNK  = 0xa000
	sIFSOCK = 0xc000
)

// ParseInode reads inode ino of raw, InodeSize bytes. InBody of the Inode aliases raw. An Inode beside an error is what
// could be made of it.
func (s *Super) ParseInode(ino uint32, raw []byte) (in Inode, err error) {
	err = s.parseInode(&in, ino, raw)
	return in, err
}

// parseInode is ParseInode into a zero Inode: there are many of them, and they are not small.
func (s *Super) parseInode(in *Inode, ino uint32, raw []byte) error {
	in.Number = ino
	if len(raw) < s.InodeSize {
		return fmt.Errorf("ext4: inode %d: %d bytes of %d: %w", ino, len(raw), s.InodeSize, mem.ErrInconsistent)
	}
	raw = raw[:s.InodeSize:s.InodeSize]
	b := raw[:128]
	in.Mode = le.Uint16(b)
	in.UID = uint32(le.Uint16(b[2:])) | uint32(le.Uint16(b[120:]))<<16
	in.GID = uint32(le.Uint16(b[24:])) | uint32(le.Uint16(b[122:]))<<16
	in.Links = uint32(le.Uint16(b[26:]))
	in.Flags = le.Uint32(b[32:])
	in.Generation = le.Uint32(b[100:])
	in.Dtime = le.Uint32(b[20:])
	in.Version = uint64(le.Uint32(b[36:]))
	copy(in.Block[:], b[40:100])
	size := uint64(le.Uint32(b[4:]))
	if in.IsRegular() || s.incompat(IncompatLargeDir) {
		size |= uint64(le.Uint32(b[108:])) << 32
	}
	in.Blocks = uint64(le.Uint32(b[28:]))
	in.FileACL = uint64(le.Uint32(b[104:]))
	if s.CreatorOS != 1 { // Hurd has other things there
		if s.ROCompat&ROCompatHugeFile != 0 {
			in.Blocks |= uint64(le.Uint16(b[116:])) << 32
			if in.Flags&FlagHugeFile != 0 {
				in.Blocks <<= s.blockBits - 9
			}
		}
		if s.is64Bit() {
			in.FileACL |= uint64(le.Uint16(b[118:])) << 32
		}
	}
	in.Ctime.Sec = int64(int32(le.Uint32(b[12:])))
	in.Mtime.Sec = int64(int32(le.Uint32(b[16:])))
	in.Atime.Sec = int64(int32(le.Uint32(b[8:])))

	err := in.extra(raw)
	in.ChecksumOK = !s.MetadataCsum() || s.inodeChecksumOK(in, raw)
	if size > 1<<63-1 {
		return fmt.Errorf("ext4: inode %d: size %#x: %w", ino, size, mem.ErrInconsistent)
	}
	in.Size = int64(size)
	return err
}

// extra takes the fields that large inodes have, as far as there are.
func (in *Inode) extra(raw []byte) error {
	if len(raw) <= 128 {
		return nil
	}
	in.ExtraSize = le.Uint16(raw[128:])
	end := 128 + int(in.ExtraSize)
	switch {
	case in.ExtraSize == 0: // nothing behind the first 128 bytes means anything
		return nil
	case end > len(raw) || in.ExtraSize%4 != 0:
		return fmt.Errorf("ext4: inode %d: extra size %d of %d: %w", in.Number, in.ExtraSize, len(raw)-128, mem.ErrInconsistent)
	}
	in.InBody = raw[end:]
	if end >= 136 {
		in.Ctime.extend(le.Uint32(raw[132:]))
	}
	if end >= 140 {
		in.Mtime.extend(le.Uint32(raw[136:]))
	}
	if end >= 144 {
		in.Atime.extend(le.Uint32(raw[140:]))
	}
	if end >= 148 {
		in.Crtime.Sec = int64(int32(le.Uint32(raw[144:])))
	}
	if end >= 152 {
		in.Crtime.extend(le.Uint32(raw[148:]))
	}
	if end >= 156 {
		in.Version |= uint64(le.Uint32(raw[152:])) << 32
	}
	if end >= 160 {
		in.ProjectID = le.Uint32(raw[156:])
	}
	return nil
}

// extend adds the further two bits of the seconds, and the nanoseconds.
func (t *Timestamp) extend(extra uint32) {
	t.Sec += int64(extra&3) << 32
	t.Nsec = extra >> 2
}

// seed is what checksums of the blocks of an inode start from.
func (s *Super) seed(in *Inode) uint32 {
	return crc32c4(crc32c4(s.ChecksumSeed, in.Number), in.Generation)
}

var zero8 [8]byte

// inodeChecksum is the checksum that an inode is to bear: 16 bits of it where the inode has no room for more.
func (s *Super) inodeChecksum(in *Inode, raw []byte) (sum uint32, wide bool) {
	c := crc32c(s.seed(in), raw[:124])
	c = crc32c(c, zero8[:2])
	if len(raw) <= 128 || in.ExtraSize < 4 {
		return crc32c(c, raw[126:]) & 0xffff, false
	}
	c = crc32c(c, raw[126:130])
	c = crc32c(c, zero8[:2])
	return crc32c(c, raw[132:]), true
}

func (s *Super) inodeChecksumOK(in *Inode, raw []byte) bool {
	want, wide := s.inodeChecksum(in, raw)
	got := uint32(le.Uint16(raw[124:]))
	if wide {
		got |= uint32(le.Uint16(raw[130:])) << 16
	}
	return got == want || got == 0 && allZero(raw) // never used
}

func (s *Super) setInodeChecksum(in *Inode, raw []byte) {
	if !s.MetadataCsum() {
		return
	}
	sum, wide := s.inodeChecksum(in, raw)
	le.PutUint16(raw[124:], uint16(sum))
	if wide {
		le.PutUint16(raw[130:], uint16(sum>>16))
	}
}

func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

// Kind is what the inode is; ok is false for one that is nothing: never used, or deleted.
func (in *Inode) Kind() (kind event.Kind, ok bool) {
	switch in.Mode & sIFMT {
	case sIFREG:
		return event.File, true
	case sIFDIR:
		return event.Dir, true
	case sIFLNK:
		return event.Lnk, true
	case sIFCHR:
		return event.CharDev, true
	case sIFBLK:
		return event.BlockDev, true
	case sIFIFO:
		return event.FIFO, true
	case sIFSOCK:
		return event.Socket, true
	}
	return "", false
}

// IsDir says whether it is a directory.
func (in *Inode) IsDir() bool { return in.Mode&sIFMT == sIFDIR }

// IsRegular says whether it is a file proper.
func (in *Inode) IsRegular() bool { return in.Mode&sIFMT == sIFREG }

// IsSymlink says whether it is a symbolic link.
func (in *Inode) IsSymlink() bool { return in.Mode&sIFMT == sIFLNK }

// Inline says that content, entries or target lie in the inode itself.
func (in *Inode) Inline() bool { return in.Flags&FlagInlineData != 0 }

// Encrypted says that content, target, and names of entries are ciphertext.
func (in *Inode) Encrypted() bool { return in.Flags&FlagEncrypt != 0 }

// Perm are the permission, set-id and sticky bits.
func (in *Inode) Perm() uint32 { return uint32(in.Mode & 07777) }

// fastLink says that the target of a symbolic link lies in Block, by itself.
func (in *Inode) fastLink() bool {
	return in.IsSymlink() && in.Flags&(FlagExtents|FlagInlineData|FlagEAInode) == 0 && in.Size < int64(len(in.Block))
}

// hasMap says whether Block leads to blocks of the inode.
func (in *Inode) hasMap() bool {
	if in.Inline() {
		return false
	}
	switch in.Mode & sIFMT {
	case sIFREG, sIFDIR:
		return true
	case sIFLNK:
		return !in.fastLink()
	case 0: // one of the file system's own, such as the journal of a file system of old
		return in.Flags&FlagExtents != 0 || in.Blocks > 0
	}
	return false
}

// Rdev is the number of a device node, major<<32 | minor as in event.Event; 0 of all else.
func (in *Inode) Rdev() uint64 {
	if k := in.Mode & sIFMT; k != sIFCHR && k != sIFBLK {
		return 0
	}
	if old := uint64(le.Uint16(in.Block[:])); old != 0 {
		return old>>8<<32 | old&0xff
	}
	dev := uint64(le.Uint32(in.Block[4:]))
	return (dev>>8&0xfff)<<32 | dev&0xff | dev>>12&0xfff00
}

// Attr is the inode in the words of events; the Kind of one that is nothing is "".
func (in *Inode) Attr() event.Attr {
	kind, _ := in.Kind()
	return event.Attr{Kind: kind, Mode: in.Perm(), UID: in.UID, GID: in.GID, Size: in.Size, Nlink: in.Links}
}
