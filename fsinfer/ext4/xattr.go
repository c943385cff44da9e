package ext4

import (
	"errors"
	"fmt"

	"vmscope/mem"
)

// Xattr is an extended attribute.
type Xattr struct {
	Name  string // with its prefix, such as "user."; what follows was chosen by the guest
	Value []byte // as getxattr(2) gives it
	// Inode is the one that holds the value, if it is a large one; else 0.
	Inode uint32
}

// EncryptionXattr is the name given to the attribute that holds an inode's encryption policy. Linux shows it to nobody.
const EncryptionXattr = "encryption.c"

const (
	xattrMagic       = 0xea020000
	xattrHeader      = 32 // of a block
	xattrEntrySize   = 16
	xattrSystem      = 7
	maxXattrValue    = 1 << 16 // as for Linux's system calls
	maxXattrTotal    = 4 << 20 // bytes of all large values of one inode
	xattrACLAccess   = 2
	xattrACLDefault  = 3
	xattrEncryption  = 9
	xattrSystemValue = "data" // inline data, no attribute
)

// xattrPrefixes are by name index (kernel: fs/ext4/xattr.h, ext4_xattr_handler_map).
var xattrPrefixes = [...]string{
	1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 5: "lustre.", 6: "security.",
	7: "system.", 8: "system.richacl", 9: "encryption.", 10: "gnu.",
}

// xattrEntry is an attribute as it lies on the disk.
type xattrEntry struct {
	index uint8
	name  []byte
	value []byte // nil where ino holds it
	ino   uint32
	size  uint32
}

// Xattrs gives the extended attributes of an inode, in the order of the disk. Those that could be read are given beside
// an error; a *ChecksumError comes with all of them. Together, the values are not larger than some MiB.
func (s *Super) Xattrs(r BlockReader, in *Inode) ([]Xattr, error) {
	x := xattrWalk{s: s, r: r}
	err := bodyEntries(in, x.add)
	if in.FileACL != 0 && x.err == nil {
		err = errors.Join(err, x.block(in))
	}
	return x.list, errors.Join(err, x.err)
}

type xattrWalk struct {
	s     *Super
	r     BlockReader
	list  []Xattr
	total int
	err   error
}

// add takes an entry, reading its value where that lies elsewhere.
func (x *xattrWalk) add(e xattrEntry) bool {
	if e.index == xattrSystem && string(e.name) == xattrSystemValue {
		return true
	}
	prefix := ""
	if int(e.index) < len(xattrPrefixes) {
		prefix = xattrPrefixes[e.index]
	}
	if prefix == "" {
		prefix = fmt.Sprintf("unknown-%d.", e.index)
	}
	a := Xattr{Name: prefix + string(e.name), Inode: e.ino}
	if e.ino == 0 {
		a.Value = append(make([]byte, 0, len(e.value)), e.value...)
	} else if a.Value, x.err = x.large(e); x.err != nil {
		return false
	}
	if e.index == xattrACLAccess || e.index == xattrACLDefault {
		a.Value = aclValue(a.Value)
	}
	x.list = append(x.list, a)
	return true
}

// block adds the attributes that lie in a block of their own.
func (x *xattrWalk) block(in *Inode) error {
	if !x.s.BlockValid(in.FileACL) {
		return fmt.Errorf("ext4: attributes of inode %d in block %d of %d: %w", in.Number, in.FileACL, x.s.Blocks, mem.ErrInconsistent)
	}
	buf := x.s.buffer()
	defer buf.free()
	b := buf.b
	if err := x.r.ReadBlock(b, in.FileACL); err != nil {
		return fmt.Errorf("ext4: attributes of inode %d: %w", in.Number, err)
	}
	if le.Uint32(b) != xattrMagic || le.Uint32(b[8:]) != 1 {
		return fmt.Errorf("ext4: attributes of inode %d, block %d: magic %#x, %d blocks: %w", in.Number, in.FileACL, le.Uint32(b), le.Uint32(b[8:]), mem.ErrInconsistent)
	}
	if err := xattrEntries(in, b[xattrHeader:], b, x.add); err != nil {
		return err
	}
	if !x.s.xattrBlockOK(in.FileACL, b) {
		return &ChecksumError{What: "extended attributes", Inode: in.Number, Block: in.FileACL}
	}
	return nil
}

// xattrBlockOK checks the checksum of a block of attributes (kernel: ext4_xattr_block_csum).
func (s *Super) xattrBlockOK(block uint64, b []byte) bool {
	if !s.MetadataCsum() {
		return true
	}
	c := crc32c4(crc32c4(s.ChecksumSeed, uint32(block)), uint32(block>>32))
	c = crc32c(c, b[:16])
	c = crc32c(c, zero8[:4])
	return crc32c(c, b[20:]) == le.Uint32(b[16:])
}

// bodyEntries visits the attributes that lie behind an inode's fields.
func bodyEntries(in *Inode, visit func(xattrEntry) bool) error {
	b := in.InBody
	if len(b) < 8 || le.Uint32(b) != xattrMagic {
		return nil
	}
	return xattrEntries(in, b[4:], b[4:], visit)
}

// xattrEntries visits a list of attributes, whose values lie in values.
func xattrEntries(in *Inode, list, values []byte, visit func(xattrEntry) bool) error {
	bad := func(what string, n uint32) error {
		return fmt.Errorf("ext4: attributes of inode %d: %s %d: %w", in.Number, what, n, mem.ErrInconsistent)
	}
	for len(list) >= 4 && le.Uint32(list) != 0 {
		if len(list) < xattrEntrySize {
			return bad("cut entry, bytes:", uint32(len(list)))
		}
		nameLen := int(list[0])
		n := (xattrEntrySize + nameLen + 3) &^ 3
		if n > len(list) {
			return bad("length of a name:", uint32(nameLen))
		}
		e := xattrEntry{index: list[1], name: list[xattrEntrySize : xattrEntrySize+nameLen], ino: le.Uint32(list[4:]), size: le.Uint32(list[8:])}
		if e.ino == 0 {
			off := uint64(le.Uint16(list[2:]))
			if off+uint64(e.size) > uint64(len(values)) {
				return bad("size of a value:", e.size)
			}
			e.value = values[off : off+uint64(e.size)]
		}
		if !visit(e) {
			return nil
		}
		list = list[n:]
	}
	return nil
}

// large reads a value that has an inode of its own.
func (x *xattrWalk) large(e xattrEntry) ([]byte, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("ext4: attribute value in inode %d: %s: %w", e.ino, fmt.Sprintf(format, args...), mem.ErrInconsistent)
	}
	if x.total += int(min(e.size, maxXattrTotal)); e.size > maxXattrValue || x.total > maxXattrTotal {
		return nil, bad("%d bytes, %d before", e.size, x.total)
	}
	in, err := x.s.ReadInode(x.r, e.ino)
	if err != nil {
		return nil, err
	}
	if in.Flags&FlagEAInode == 0 || in.Size != int64(e.size) || !in.IsRegular() {
		return nil, bad("flags %#x, mode %#o, %d bytes, want %d", in.Flags, in.Mode, in.Size, e.size)
	}
	value := make([]byte, e.size)
	if err := x.s.readStart(x.r, &in, value); err != nil {
		return nil, err
	}
	return value, nil
}

// readStart reads the first len(p) bytes of what an inode maps. Holes are zeros.
func (s *Super) readStart(r BlockReader, in *Inode, p []byte) error {
	clear(p)
	buf := s.buffer()
	defer buf.free()
	var failed error
	err := s.Extents(r, in, func(e Extent) bool {
		for i := range uint64(e.Len) {
			at := (e.Logical + i) << s.blockBits
			if at >= uint64(len(p)) {
				return false
			}
			if e.Unwritten {
				continue
			}
			if failed = r.ReadBlock(buf.b, e.Physical+i); failed != nil {
				return false
			}
			copy(p[at:], buf.b)
		}
		return true
	}, nil)
	if sum := (*ChecksumError)(nil); errors.As(err, &sum) {
		err = nil // a value is no worse for it, and the inode's owner is told elsewhere
	}
	return errors.Join(err, failed)
}

// aclValue turns an access control list from the form on the disk into that of getxattr(2) (kernel:
// fs/ext4/acl.c, include/uapi/linux/posix_acl_xattr.h); what is no such list stays as it is.
func aclValue(b []byte) []byte {
	if len(b) < 4 || le.Uint32(b) != 1 {
		return b
	}
	out := []byte{2, 0, 0, 0}
	for p := b[4:]; len(p) > 0; {
		if len(p) < 4 {
			return b
		}
		id, n := []byte{0xff, 0xff, 0xff, 0xff}, 4
		if tag := le.Uint16(p); tag == 2 || tag == 8 { // ACL_USER, ACL_GROUP name somebody
			if len(p) < 8 {
				return b
			}
			id, n = p[4:8], 8
		}
		out = append(append(out, p[:4]...), id...)
		p = p[n:]
	}
	return out
}
