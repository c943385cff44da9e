// Package block holds what the disk half of vmscope shares: a disk that can be read, a write that a guest made, and a
// tap that gives the writes in the order in which the disk took them.
//
// How writes are caught (NBD, vhost-user, recorded logs), and how a disk is divided (partitions, LVM), are packages below
// this one. What a write means is package fsinfer's matter.
package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

// Device is a disk, or a part of one, that can be read. Offsets are bytes. It is safe for concurrent use.
type Device interface {
	io.ReaderAt
	Size() int64
}

// Op says what a guest asked of its disk.
type Op uint8

// The operations. All but reads: a tap does not see those.
const (
	OpWrite   Op = iota + 1 // Data, or just the place where Data is nil
	OpZeroes                // Len bytes from Off become zero
	OpDiscard               // Len bytes from Off hold nothing that anybody wants; they may read as anything
	OpFlush                 // all that was completed before is durable
)

func (o Op) String() string {
	switch o {
	case OpWrite:
		return "write"
	case OpZeroes:
		return "zeroes"
	case OpDiscard:
		return "discard"
	case OpFlush:
		return "flush"
	}
	return fmt.Sprintf("op %d", uint8(o))
}

// Write is one request that the disk took. Its content was written by the guest.
type Write struct {
	Seq  uint64    // rises by one from write to write of a tap
	Time time.Time // when the tap got it, by the host's clock
	Op   Op
	FUA  bool  // durable on its own when it completed
	Off  int64 // bytes from the start of the disk
	Len  int64 // bytes; 0 for a flush
	// Data is what was written: Len bytes, or nil where the tap was told that nobody wants the content there. It is valid
	// until the next Write is asked for.
	Data []byte
}

// End is the offset of the first byte behind the write.
func (w *Write) End() int64 { return w.Off + w.Len }

// Tap is a disk whose writes are seen.
type Tap interface {
	// Writes gives the writes in the order in which the disk completed them. A *LostError says that some are missing; the
	// stream goes on behind it. Any other error ends the stream. It may be ranged over once.
	Writes(ctx context.Context) iter.Seq2[Write, error]
	// Device reads the disk as it was when the write that Writes yielded last had been made. Where a live disk cannot be
	// read in the past, a tap holds to that promise for the blocks that a journal logs (which is what inference reads), and
	// gives the present content of all others.
	Device() Device
}

// LostError says that a tap had to drop writes, or could not keep what they overwrote: what a file system's model holds
// may be wrong from here on, until it is built anew.
type LostError struct {
	Seq    uint64 // of the first write that is missing
	Reason string
}

func (e *LostError) Error() string { return fmt.Sprintf("writes lost from %d on: %s", e.Seq, e.Reason) }

// ErrOutOfRange says that a read or a mapping lies outside of the device.
var ErrOutOfRange = errors.New("block: outside of the device")

// Range is a half-open range of bytes of a device.
type Range struct{ Off, Len int64 }

// End is the offset of the first byte behind the range.
func (r Range) End() int64 { return r.Off + r.Len }
