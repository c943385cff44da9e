package dump

import (
	"encoding/binary"
	"fmt"
	"io"
)

// A qcow2 disk image may hold snapshots of a running machine (savevm): each has a
// table of clusters of its own, and the migration stream lies in it behind the
// disk, as if the disk were larger (QEMU docs/interop/qcow2.txt; block/qcow2.c
// qcow2_vm_state_offset). Numbers are big endian.
const (
	qcowMagic  = "QFI\xfb"
	qcowHeader = 104

	qcowClusterBits = 20
	qcowCrypt       = 32
	qcowSnapshots   = 60 // their number
	qcowSnapshotsAt = 64
	qcowFeatures    = 72    // those that a reader must know
	qcowKnown       = 1 | 8 // dirty: counts of references only; another compression, of no concern here

	qcowSnapshot = 40 // bytes before what varies

	maxQcowSnapshots = 1 << 16
	maxQcowTable     = 32 << 20 / 8 // entries of a first-level table, as QEMU bounds it

	qcowOffset     = 1<<56 - 1<<9 // of an entry
	qcowCompressed = 1 << 62
	qcowZero       = 1
)

// qcowState is the saved state of a machine in a snapshot, as a file.
type qcowState struct {
	source
	name    string // of the snapshot
	others  int    // snapshots with memory that are not this
	bits    uint64 // of a cluster's size
	table   []byte // first level, of what is behind the disk
	size    uint64
	date    uint64
	tableAt uint64
	entries uint64
}

// openQcow finds the latest snapshot that has memory.
func openQcow(src source) (*qcowState, error) {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: qcow2 disk image: %s", ErrFormat, fmt.Sprintf(format, a...))
	}
	var h [qcowHeader]byte
	be := binary.BigEndian
	if err := readFull(src, h[:72], 0); err != nil {
		return nil, fmt.Errorf("%w: qcow2 disk image: its header has %d bytes, the file has %d", ErrTruncated, qcowHeader, src.Size())
	}
	version, bits, count := be.Uint32(h[4:]), uint64(be.Uint32(h[qcowClusterBits:])), be.Uint32(h[qcowSnapshots:])
	if version >= 3 {
		if err := readFull(src, h[:], 0); err != nil {
			return nil, fmt.Errorf("%w: qcow2 disk image: its header has %d bytes, the file has %d", ErrTruncated, qcowHeader, src.Size())
		}
	}
	switch features := be.Uint64(h[qcowFeatures:]); {
	case version < 2 || version > 3 || bits < 9 || bits > 21 || count > maxQcowSnapshots:
		return nil, bad("version %d, clusters of %d bits, %d snapshots", version, bits, count)
	case be.Uint32(h[qcowCrypt:]) != 0:
		return nil, bad("it is encrypted")
	case version >= 3 && features&^qcowKnown != 0:
		return nil, bad("features %#x, which are not supported", features&^qcowKnown)
	}
	var last *qcowState
	all, at := 0, be.Uint64(h[qcowSnapshotsAt:])
	for range count {
		s, next, err := qcowSnapshotAt(src, at, bits, be.Uint64(h[24:]))
		if err != nil {
			return nil, err
		}
		at = next
		if s.size == 0 {
			continue
		}
		if all++; last == nil || s.date >= last.date {
			last = s
		}
	}
	if last == nil {
		return nil, bad("no snapshot in it has memory (savevm); a disk is not memory")
	}
	last.others = all - 1
	last.table = make([]byte, 8*last.entries)
	if err := readFull(src, last.table, last.tableAt); err != nil {
		return nil, fmt.Errorf("%w: qcow2 disk image: clusters of snapshot %.64q at offset %#x: %w", ErrTruncated, last.name, last.tableAt, err)
	}
	if err := last.bounded(); err != nil {
		return nil, bad("snapshot %.64q has %v", last.name, err)
	}
	return last, nil
}

// bounded makes sure that the state takes no more clusters than the file has, up to the first that
// lies outside of it: then to read it through costs what the file's size does. QEMU gives each
// part of a state a cluster of its own.
func (s *qcowState) bounded() error {
	size := uint64(1) << s.bits
	room, be := s.source.Size()/size+1, binary.BigEndian
	tables, clusters := uint64(0), uint64(0)
	table := make([]byte, size)
	for i := range s.entries {
		at := be.Uint64(s.table[8*i:]) & qcowOffset
		if at == 0 {
			continue
		}
		if tables++; tables > room {
			return fmt.Errorf("more than %d tables of clusters, which is all that the file has room for", room)
		}
		if readFull(s.source, table, at) != nil {
			return nil
		}
		for k := 0; k < len(table); k += 8 {
			e := be.Uint64(table[k:])
			if e&(qcowCompressed|qcowZero) != 0 || e&qcowOffset == 0 {
				continue
			}
			if e&qcowOffset >= s.source.Size() {
				return nil
			}
			if clusters++; clusters > room {
				return fmt.Errorf("more than %d clusters, which is all that the file has room for", room)
			}
		}
	}
	return nil
}

// qcowSnapshotAt reads an entry of the list of snapshots, and tells where the
// next begins. disk is the size of the disk, which earlier versions do not have
// for each snapshot.
func qcowSnapshotAt(src source, at, bits, disk uint64) (*qcowState, uint64, error) {
	be := binary.BigEndian
	cut := func(err error) (*qcowState, uint64, error) {
		return nil, 0, fmt.Errorf("%w: qcow2 disk image: snapshot at offset %#x: %w", ErrTruncated, at, err)
	}
	var b [qcowSnapshot + 16]byte
	if err := readFull(src, b[:qcowSnapshot], at); err != nil {
		return cut(err)
	}
	id, name, extra := uint64(be.Uint16(b[12:])), uint64(be.Uint16(b[14:])), uint64(be.Uint32(b[36:]))
	if err := readFull(src, b[qcowSnapshot:qcowSnapshot+min(extra, 16)], at+qcowSnapshot); err != nil {
		return cut(err)
	}
	text := make([]byte, name)
	if err := readFull(src, text, at+qcowSnapshot+extra+id); err != nil {
		return cut(err)
	}
	s := &qcowState{source: src, name: string(text), bits: bits, size: uint64(be.Uint32(b[32:])), date: uint64(be.Uint32(b[16:]))<<32 | uint64(be.Uint32(b[20:]))}
	if extra >= 8 {
		if large := be.Uint64(b[40:]); large > 0 {
			s.size = large
		}
	}
	if extra >= 16 {
		disk = be.Uint64(b[48:])
	}
	// One entry of the first level is a cluster of entries of the second.
	each := uint64(1) << (2*bits - 3)
	entries, first := uint64(be.Uint32(b[8:])), (disk+each-1)/each
	if entries > maxQcowTable || disk > maxFile || s.size > maxFile || s.size > 0 && (first > entries || s.size > (entries-first)*each) {
		return nil, 0, fmt.Errorf("%w: qcow2 disk image: snapshot at offset %#x: %d bytes of memory behind a disk of %d, in %d entries", ErrFormat, at, s.size, disk, entries)
	}
	if s.size > 0 {
		s.tableAt = be.Uint64(b[:]) + 8*first
		s.entries = (s.size + each - 1) / each
	}
	return s, (at + qcowSnapshot + extra + id + name + 7) &^ 7, nil
}

// Size is that of the stream.
func (s *qcowState) Size() uint64 { return s.size }

// ReadAt reads the stream.
func (s *qcowState) ReadAt(p []byte, off int64) (n int, err error) {
	cluster := uint64(1) << s.bits
	for n < len(p) {
		at := uint64(off) + uint64(n)
		if at >= s.size {
			return n, io.EOF
		}
		in := at % cluster
		k := int(min(uint64(len(p)-n), cluster-in, s.size-at))
		where, err := s.cluster(at / cluster)
		if err != nil {
			return n, err
		}
		if where == 0 {
			clear(p[n : n+k])
		} else if err := readFull(s.source, p[n:n+k], where+in); err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

// cluster tells where the file has a cluster; 0: it is zeros.
func (s *qcowState) cluster(i uint64) (uint64, error) {
	be, bits := binary.BigEndian, s.bits-3
	second := be.Uint64(s.table[8*(i>>bits):]) & qcowOffset
	if second == 0 {
		return 0, nil
	}
	var b [8]byte
	if err := readFull(s.source, b[:], second+8*(i&(1<<bits-1))); err != nil {
		return 0, fmt.Errorf("clusters at offset %#x: %w", second, err)
	}
	switch e := be.Uint64(b[:]); {
	case e&qcowCompressed != 0:
		return 0, fmt.Errorf("cluster %d of the state is compressed", i)
	case e&qcowZero != 0:
		return 0, nil
	default:
		return e & qcowOffset, nil
	}
}
