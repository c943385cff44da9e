// Package ext4 knows the ext2, ext3 and ext4 file systems: how they lie on a disk, what a live one holds, and what a
// write to one means.
//
// The decoders take bytes that the caller read and look at nothing else: Super, Group, Inode, Dirent, Extent, Xattr.
// Volume reads a file system through them, as the guest would see it after a recovery of the journal. All bytes were
// written by the guest, which may lie: every number is checked against the structure around it before anything is
// reached, allocated or repeated by it, and contradictions are mem.ErrInconsistent. Checksums tell torn blocks from
// sound ones, not lies from truth; a wrong one is told beside what was read.
//
// Sources: fs/ext4 of the Linux kernel (ext4.h, ext4_extents.h, xattr.h, inline.c), and its documentation in
// Documentation/filesystems/ext4.
package ext4
