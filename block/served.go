package block

import "io"

// Disk is what a back end serves: a disk that can be written. What else it can do is told by the methods that it has; *Raw
// has them all. Offsets and lengths are bytes inside of the disk. It must be safe for concurrent use.
type Disk interface {
	Device
	io.WriterAt
	// Flush makes all writes durable that ended before it was called.
	Flush() error
}

// VecReader reads into many pieces of memory at once. The guest's memory is given as it is: what faults there must be an
// error (as EFAULT of a system call is), or a fault of the Go runtime.
type VecReader interface {
	ReadVecAt(v [][]byte, off int64) (int, error)
}

// NowReader reads at once what takes no I/O, from the start on as far as it comes. Where a disk has it, reads that do
// take I/O are done beside the queue, and later requests need not wait for them.
type NowReader interface {
	ReadVecNow(v [][]byte, off int64) (int, error)
}

// VecWriter writes many pieces of memory at once.
type VecWriter interface {
	WriteVecAt(v [][]byte, off int64) (int, error)
}

// Discarder takes the hint that nobody wants n bytes at off any more. The guest is told of it only where the disk has
// this.
type Discarder interface {
	Discard(off, n int64) error
}

// Zeroer makes n bytes at off read as zeroes. unmap: their space may be freed.
type Zeroer interface {
	WriteZeroes(off, n int64, unmap bool) error
}

// Observer sees what the guest does to its disk. What it does is time that the guest waits.
//
// All calls come one after the other, each Reserve followed by its Publish or Abandon, whatever the number of
// queues: what it sees is the order in which the disk took the writes.
type Observer interface {
	// Reserve gives n bytes of memory for the content of a write at off, or nil where nobody wants it. The guest's bytes
	// are copied there once, and written to the disk from there: what the observer reads later is what the disk got.
	Reserve(off int64, n int) []byte
	// Publish tells that the disk took w, before the guest hears of it. A write's Data is what Reserve gave, or nil. A flush
	// is told before it is done: writes that were told before are those that it makes durable. A long request of the guest
	// comes in several pieces. w is valid during the call; Seq is not set.
	Publish(w *Write)
	// Abandon tells that the disk refused a write at off, which may have reached it in part, and gives back the memory
	// that Reserve gave, or nil.
	Abandon(off, n int64, data []byte)
}
