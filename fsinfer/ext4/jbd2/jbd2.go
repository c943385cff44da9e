// Package jbd2 decodes the journal of ext3 and ext4 (jbd2), as it lies on the disk and as it is being written: the
// transactions of the log, what mount-time recovery would make of it, and the fast-commit area. It knows journal blocks
// and nothing of the file system behind them.
//
// Sources: Documentation/filesystems/ext4/journal.rst, include/linux/jbd2.h, fs/jbd2/recovery.c, fs/jbd2/commit.c,
// fs/ext4/fast_commit.[ch]. All that is decoded here was written by the guest: checksums tell torn blocks from whole
// ones, they do not tell lies from truth.
//
// Indexes are journal blocks, counted from the journal's superblock, which is index 0 of an internal journal. Transaction
// numbers (tids) are 32 bits wide and wrap: "newer" means that the signed difference is positive.
package jbd2

import (
	"errors"
	"fmt"
	"hash/crc32"

	"vmscope/mem"
)

// What makes a transaction unbelievable. Both are of the class mem.ErrInconsistent.
var (
	// ErrChecksum says that a block is not what its checksum promises.
	ErrChecksum = fmt.Errorf("checksum: %w", mem.ErrInconsistent)
	// ErrMissing says that a block which belongs to a transaction has not been written.
	ErrMissing = fmt.Errorf("missing block: %w", mem.ErrInconsistent)
)

// ErrUnsupported says that a journal has a feature that is not known here. It is errors.ErrUnsupported, too.
var ErrUnsupported = fmt.Errorf("jbd2: %w", errors.ErrUnsupported)

// Error is a failure with its place in the journal.
type Error struct {
	TID   uint32 // transaction; 0 where none is known
	Index uint32 // journal block
	Err   error
}

func (e *Error) Error() string {
	return fmt.Sprintf("journal block %d, transaction %d: %v", e.Index, e.TID, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// bad makes an error of the class mem.ErrInconsistent.
func bad(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), mem.ErrInconsistent)
}

// newer reports whether tid a comes after b. Tids wrap.
func newer(a, b uint32) bool { return int32(a-b) > 0 }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is the kernel's crc32c(): neither the first value nor the result is inverted.
func crc32c(crc uint32, p []byte) uint32 { return ^crc32.Update(^crc, castagnoli, p) }
