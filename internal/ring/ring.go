// Package ring passes records from processes that must not wait to one that may: a ring in shared memory, written by a
// receiver of disk writes, read by whoever infers what they mean. When it is full, records are dropped and counted, and
// a record says so as soon as there is room again.
//
// Both sides check all that the other wrote: positions, lengths and kinds bound every access, so that a side that is
// broken spoils what it says and nothing else.
package ring

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kind says what a record is.
type Kind uint16

// The kinds. The first four are block.Op's.
const (
	Write Kind = iota + 1
	Zeroes
	Discard
	Flush
	PreImage // Data is what Off held before the transaction whose commit follows; Extra, if not 0, is 1 + the number of the disk
	Lost     // Len writes are missing here; Extra is the Reason
	Marker   // Extra says which
	kinds
)

// Flags of a record.
const (
	FUA    uint16 = 1 << 0
	NoData uint16 = 1 << 1 // of a write: nobody asked for its content
	Logged uint16 = 1 << 2 // of a write to a journal: the pre-images before it are those of what it commits
	More   uint16 = 1 << 3 // of a write to a journal: it completes nothing, and what does is to follow
)

// Record is one entry. Times are nanoseconds since 1970.
type Record struct {
	Kind  Kind
	Flags uint16
	Extra uint32
	Time  int64
	Off   int64
	Len   int64
	// Data lies in the shared memory: valid until the next record is asked for, and not proof against a writer that
	// breaks the rules.
	Data []byte
}

// A record's head. Records are multiples of headSize, so that a head never wraps; data does, and is mapped twice in a
// row so that nobody notices.
const (
	headSize = 64

	recState = 0  // uint32, atomic
	recKind  = 4  // uint16
	recFlags = 6  // uint16
	recTotal = 8  // uint64: the whole record
	recTime  = 16 // int64
	recOff   = 24 // int64
	recLen   = 32 // int64
	recData  = 40 // uint64: bytes of data behind the head
	recExtra = 48 // uint32
)

// States of a record.
const (
	busy  uint32 = 0x62757379 // reserved, its content on the way
	ready uint32 = 0x72656479
	void  uint32 = 0x766f6964 // given up
)

// The shared header. What different sides write lies in different cache lines.
const (
	hdrMagic    = 0
	hdrSize     = 8
	hdrInterest = 16  // bytes of the interest bitmap
	hdrHead     = 64  // written by the producer: all below it is reserved
	hdrLost     = 72  // writes dropped and not told yet
	hdrReason   = 80  // why
	hdrBeat     = 88  // when the producer last said that it lives
	hdrDone     = 96  // the producer's work is done
	hdrTail     = 128 // written by the consumer: all below it is free
	hdrWaiting  = 192 // the consumer sleeps, or is about to
	hdrSelect   = 256 // the bitmap counts; else all content is wanted
	hdrAbsent   = 264 // there is no consumer any more
	hdrBytes    = 4096

	magic = 0x31676e6972656d76
)

// DefaultSize is that of a ring of which nobody knows better. Only pages that were used cost memory.
const DefaultSize = 64 << 20

// Files are what a process needs to take part: they may be inherited or passed.
type Files struct {
	Memory *os.File
	// Wake is an eventfd. It is no os.File, which Go's poller would look at: each bell would wake all processes that have
	// it, and not only the one that reads.
	Wake int
}

// Close closes them; a ring that was opened with them goes on.
func (f Files) Close() error { return errors.Join(f.Memory.Close(), unix.Close(f.Wake)) }

// Create makes a ring for records of size bytes together (rounded up to a power of two, at least 64 KiB) and for a disk of
// diskSize bytes, whose interest bitmap it holds.
func Create(size int, diskSize int64) (Files, error) {
	n := uint64(64 << 10)
	for n < uint64(size) && n < 1<<32 {
		n <<= 1
	}
	bits := interestBytes(diskSize)
	fd, err := unix.MemfdCreate("vmscope-ring", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return Files{}, fmt.Errorf("shared memory: %w", err)
	}
	mem := os.NewFile(uintptr(fd), "ring")
	total := int64(hdrBytes + n + bits)
	if err := mem.Truncate(total); err != nil {
		mem.Close()
		return Files{}, fmt.Errorf("shared memory of %d bytes: %w", total, err)
	}
	// Nobody can make it smaller under the others, who would get SIGBUS.
	if _, err := unix.FcntlInt(mem.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		mem.Close()
		return Files{}, fmt.Errorf("shared memory: seal: %w", err)
	}
	head := make([]byte, 24)
	*(*uint64)(unsafe.Pointer(&head[hdrMagic])) = magic
	*(*uint64)(unsafe.Pointer(&head[hdrSize])) = n
	*(*uint64)(unsafe.Pointer(&head[hdrInterest])) = bits
	if _, err := mem.WriteAt(head, 0); err != nil {
		mem.Close()
		return Files{}, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		mem.Close()
		return Files{}, fmt.Errorf("eventfd: %w", err)
	}
	return Files{mem, wake}, nil
}

// shared is the memory as one process maps it.
type shared struct {
	hdr  []byte
	data unsafe.Pointer // size bytes, twice
	size uint64
	bits []byte
}

// open maps the memory. Its sizes are checked against the file, which is sealed.
func open(f *os.File) (*shared, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	hdr, err := unix.Mmap(int(f.Fd()), 0, hdrBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ring: %w", err)
	}
	s := &shared{hdr: hdr}
	size, bits := s.word(hdrSize).Load(), s.word(hdrInterest).Load()
	if s.word(hdrMagic).Load() != magic || size < 64<<10 || size > 1<<32 || size&(size-1) != 0 || bits > 1<<40 || hdrBytes+size+bits != uint64(st.Size) {
		s.close()
		return nil, errors.New("not a ring, or one of another version")
	}
	if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		s.close()
		return nil, errors.New("the ring's memory could shrink")
	}
	s.size = size
	// Room for both copies first, so that nothing else gets in between.
	at, err := unix.MmapPtr(-1, 0, nil, uintptr(2*size), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		s.close()
		return nil, fmt.Errorf("map the ring: %w", err)
	}
	s.data = at
	for i := range uintptr(2) {
		if _, err := unix.MmapPtr(int(f.Fd()), hdrBytes, unsafe.Add(at, i*uintptr(size)), uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
			s.close()
			return nil, fmt.Errorf("map the ring: %w", err)
		}
	}
	if bits > 0 {
		if s.bits, err = unix.Mmap(int(f.Fd()), int64(hdrBytes+size), int(bits), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			s.close()
			return nil, fmt.Errorf("map the ring: %w", err)
		}
	}
	return s, nil
}

func (s *shared) close() {
	unix.Munmap(s.hdr)
	if s.data != nil {
		unix.MunmapPtr(s.data, uintptr(2*s.size))
	}
	if s.bits != nil {
		unix.Munmap(s.bits)
	}
}

// word is a field of the header.
func (s *shared) word(off int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&s.hdr[off]))
}

// at is n bytes of the ring from a position on; n is at most the ring's size.
func (s *shared) at(pos uint64, n uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(s.data, pos&(s.size-1))), n)
}

func (s *shared) state(pos uint64) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Add(s.data, pos&(s.size-1)))
}

// ErrDamaged says that the other side broke the ring's rules.
var ErrDamaged = errors.New("the ring's content contradicts itself")

// total is the size of a record with n bytes of data.
func total(n int) uint64 { return (headSize + uint64(n) + headSize - 1) &^ (headSize - 1) }
