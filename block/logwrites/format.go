// Package logwrites reads and writes logs of a disk's writes in the format of the Linux device-mapper target log-writes,
// which QEMU's filter blklogwrites writes as well (drivers/md/dm-log-writes.c; block/blklogwrites.c in QEMU).
//
// A log is a sequence of sectors. The first tells how many entries follow; each entry is a sector that says where the
// write went, and then the data. Numbers are little endian. A log is read as a stream, also while it grows.
package logwrites

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"vmscope/mem"
)

// Flags say what an entry is.
type Flags uint64

// The flags of an entry.
const (
	Flush    Flags = 1 << iota // all before it is durable; if it has data, too: a flush, and then the write
	FUA                        // the write itself is durable
	Discard                    // no data follows
	Mark                       // not a write: a name that somebody gave to this place
	Metadata                   // the writer called it metadata

	known = Flush | FUA | Discard | Mark | Metadata
)

const (
	magic   = 0x006a736677736872
	version = 1

	superLen = 28
	entryLen = 32

	minSector = 512
	maxSector = 1 << 23 // what QEMU takes
)

// ErrNotLog says that there is no log to be read.
var ErrNotLog = errors.New("logwrites: not a log of writes")

// super is what the first sector says.
type super struct {
	entries uint64
	sector  int64
}

// parseSuper decodes the start of a log.
func parseSuper(p *[superLen]byte) (super, error) {
	le := binary.LittleEndian
	if m := le.Uint64(p[:]); m != magic {
		return super{}, fmt.Errorf("%w: it begins with %#x", ErrNotLog, m)
	}
	if v := le.Uint64(p[8:]); v != version {
		return super{}, fmt.Errorf("%w: version %d: %w", ErrNotLog, v, errors.ErrUnsupported)
	}
	s := super{le.Uint64(p[16:]), int64(le.Uint32(p[24:]))}
	if s.sector < minSector || s.sector > maxSector || bits.OnesCount64(uint64(s.sector)) != 1 {
		return super{}, fmt.Errorf("%w: sectors of %d bytes: %w", ErrNotLog, s.sector, mem.ErrInconsistent)
	}
	return s, nil
}

func (s super) encode(p *[superLen]byte) {
	le := binary.LittleEndian
	le.PutUint64(p[:], magic)
	le.PutUint64(p[8:], version)
	le.PutUint64(p[16:], s.entries)
	le.PutUint32(p[24:], uint32(s.sector))
}

// Entry is one entry of a log.
type Entry struct {
	Index uint64 // from 0
	Flags Flags
	Off   int64  // on the disk, bytes
	Len   int64  // bytes; 0 for a mark and a mere flush
	Name  string // of a mark: whoever wrote the log chose it

	data int64 // where the data is in the log
	next int64 // where the next entry is
}

// HasData reports whether the log holds the bytes that were written.
func (e *Entry) HasData() bool { return e.Len > 0 && e.Flags&Discard == 0 }

// parseEntry decodes the sector of an entry, which lies at off in the log.
func parseEntry(p []byte, index uint64, off int64) (Entry, error) {
	le := binary.LittleEndian
	sector := int64(len(p))
	bad := func(what string, n uint64) (Entry, error) {
		return Entry{}, fmt.Errorf("logwrites: entry %d at %d: %s %#x: %w", index, off, what, n, mem.ErrInconsistent)
	}
	at, n, name := le.Uint64(p), le.Uint64(p[8:]), le.Uint64(p[24:])
	e := Entry{Index: index, Flags: Flags(le.Uint64(p[16:])), next: off + sector}
	e.data = e.next
	// All offsets stay below 2^62, so that sums of two do not run over.
	limit := uint64(1<<62) / uint64(sector)
	switch {
	case e.Flags&^known != 0:
		return bad("unknown flags", uint64(e.Flags))
	case at > limit:
		return bad("disk sector", at)
	case n > limit-at || n > limit-uint64(off/sector)-1:
		return bad("length in sectors", n)
	}
	if e.Flags&Mark != 0 {
		if name > uint64(len(p)-entryLen) {
			return bad("length of a mark", name)
		}
		e.Name = string(p[entryLen : entryLen+name])
		e.next += int64(n) * sector
		return e, nil
	}
	e.Off, e.Len = int64(at)*sector, int64(n)*sector
	if e.HasData() {
		e.next += e.Len
	}
	return e, nil
}

// encode fills p, the sector of an entry.
func (e *Entry) encode(p []byte) {
	le := binary.LittleEndian
	sector := int64(len(p))
	clear(p)
	le.PutUint64(p, uint64(e.Off/sector))
	le.PutUint64(p[8:], uint64(e.Len/sector))
	le.PutUint64(p[16:], uint64(e.Flags))
	le.PutUint64(p[24:], uint64(len(e.Name)))
	copy(p[entryLen:], e.Name)
}
