package jbd2

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
)

// maxFC is how many bytes of a fast-commit area are held until they make a fast commit. The kernel's area has 256 blocks
// by default, for many fast commits.
const maxFC = 8 << 20

// FCStream follows the fast-commit area as it is written. Each full commit begins the area anew: call Committed then. It is
// not safe for concurrent use.
type FCStream struct {
	size, max  int    // of a block in bytes; blocks that are held
	first, end uint32 // of the area
	off        bool   // there is none at the moment
	read       func(p []byte, index uint32) error

	p    fcParser
	base uint32            // offset in the area behind the last fast commit that is complete
	next uint32            // of the next block to decode
	wait map[uint32][]byte // blocks that came before their turn
	part [][]byte          // decoded blocks from base on
	// sums tell the blocks before base. They are no CRC: that of a block which ends with its own CRC does not depend on the
	// rest.
	sums   []uint64
	seed   maphash.Seed
	broken bool // nothing can be decoded until the next full commit
	// early is set until the first full commit is seen. Blocks of the round may have been written before we watched, and
	// blocks of older rounds than that which Recover found may still come.
	early bool

	known bool
	last  uint32 // tid of the last full commit

	out   []FastCommit
	given int      // of p.ops, those that out shows
	old   [][]byte // blocks that out shows
	spare [][]byte
}

// NewFCStream makes a stream for the fast-commit area of the journal that sb describes; if that has none, nothing will
// come of it until Follow tells of one. read gives the present content of a journal block, to Recover; it may be nil.
func NewFCStream(sb *Super, read func(p []byte, index uint32) error) *FCStream {
	s := &FCStream{size: int(sb.BlockSize), max: maxFC / int(sb.BlockSize), read: read, wait: make(map[uint32][]byte), early: true,
		seed: maphash.MakeSeed()}
	s.first, s.end = sb.FastCommits()
	return s
}

// Follow takes a superblock that the journal has now: mounting turns fast commits on, unmounting turns them off.
func (s *FCStream) Follow(sb *Super) {
	first, end := sb.FastCommits()
	if s.off = first == end; !s.off && (first != s.first || end != s.end) {
		s.first, s.end = first, end
		s.restart()
	}
}

// Committed says that the transaction tid was committed in full. What the area holds for it, or for older ones, counts no
// more, and the next fast commit begins at the area's start. The first call, where Recover was not called, tells where the
// log is when the stream begins.
func (s *FCStream) Committed(tid uint32) {
	if s.known && newer(tid, s.last) {
		s.early = false
	}
	if !s.known || newer(tid, s.last) {
		s.known, s.last = true, tid
	}
	if !s.p.head || !newer(s.p.tid, s.last) {
		s.restart()
	}
}

// restart forgets the round.
func (s *FCStream) restart() {
	s.recycle()
	for k, b := range s.wait {
		s.free(b)
		delete(s.wait, k)
	}
	for _, b := range s.part {
		s.free(b)
	}
	s.part = s.part[:0]
	s.base, s.next, s.sums, s.broken = 0, 0, s.sums[:0], false
	s.p = fcParser{ops: s.p.ops[:0]}
}

// Write takes a block of the fast-commit area as it lies on the disk now; index counts from the journal's superblock, and
// indexes outside of the area are passed over. It returns the fast commits that the block completes, valid until the next
// call. Blocks may come in any order, and again. An *Error tells of an area that cannot be believed from here on; the next
// full commit holds all that it would have told.
func (s *FCStream) Write(index uint32, data []byte) ([]FastCommit, error) {
	s.recycle()
	if s.off || index < s.first || index >= s.end {
		return nil, nil
	}
	if len(data) != s.size {
		return nil, &Error{Index: index, Err: bad("write of %d bytes to a journal with blocks of %d", len(data), s.size)}
	}
	k := index - s.first
	switch anew := k < s.base && maphash.Bytes(s.seed, data) != s.sums[k]; {
	case k == 0 && s.stale(data):
		return nil, nil
	case k == 0 && (anew || s.broken):
		s.restart() // a new round, and nobody told us
	case s.broken || k < s.base && (!anew || s.early):
		return nil, nil
	case anew:
		s.broken = true
		return nil, &Error{s.p.tid, index, bad("fast-commit block written anew")}
	}
	if k < s.next {
		if bytes.Equal(s.part[k-s.base], data) {
			return nil, nil
		}
		s.rewind()
	}
	if err := s.keep(k, data); err != nil {
		return nil, err
	}
	err := s.run()
	if err != nil && s.early { // what was there before us need not fit, and may be written yet
		s.rewind()
		err = nil
	}
	s.broken = s.broken || err != nil
	return s.out, err
}

// headOf gives the transaction of a round that begins with this block.
func headOf(b []byte) (tid uint32, ok bool) {
	le := binary.LittleEndian
	if le.Uint16(b) != fcHead || le.Uint16(b[2:]) < 8 {
		return 0, false
	}
	return le.Uint32(b[8:]), true
}

// stale reports whether the block begins a round from before the last full commit.
func (s *FCStream) stale(b []byte) bool {
	tid, head := headOf(b)
	return head && s.known && !newer(tid, s.last)
}

// rewind takes back what was decoded since the last complete fast commit.
func (s *FCStream) rewind() {
	for i, b := range s.part {
		s.wait[s.base+uint32(i)] = b
	}
	s.part, s.next = s.part[:0], s.base
	s.p.ops, s.p.crc = s.p.ops[:s.given], 0
	if s.base == 0 {
		s.p.head = false
	}
}

// keep copies a block until its turn.
func (s *FCStream) keep(k uint32, data []byte) error {
	b := s.wait[k]
	if b == nil {
		if len(s.wait)+len(s.part) >= s.max {
			s.broken = true
			return &Error{s.p.tid, s.first + k, bad("more than %d blocks without a fast commit", s.max)}
		}
		b = s.buffer()
	}
	copy(b, data)
	s.wait[k] = b
	return nil
}

// run decodes the blocks whose turn it is.
func (s *FCStream) run() error {
	for {
		b := s.wait[s.next]
		if b == nil {
			return nil
		}
		delete(s.wait, s.next)
		if s.next == 0 && s.stale(b) {
			s.free(b)
			return nil
		}
		s.part = append(s.part, b)
		s.next++
		tails := len(s.out)
		if err := s.p.block(b, s.tail); err != nil {
			return &Error{s.p.tid, s.first + s.next - 1, err}
		}
		if len(s.out) > tails {
			s.complete()
		}
	}
}

// tail hands out the operations since the last tail.
func (s *FCStream) tail() {
	n := len(s.p.ops)
	s.out = append(s.out, FastCommit{TID: s.p.tid, Ops: s.p.ops[s.given:n:n]})
	s.given = n
}

// complete notes that the last decoded block ended a fast commit.
func (s *FCStream) complete() {
	for _, b := range s.part {
		s.sums = append(s.sums, maphash.Bytes(s.seed, b))
	}
	s.old = append(s.old, s.part...)
	s.part, s.base = s.part[:0], s.next
	// A tail ends its block. What a liar puts behind it is passed over.
	s.p.ops, s.p.crc = s.p.ops[:s.given], 0
}

// Recover reads the whole area and gives the fast commits in it that follow the full commit before tid: what recovery at
// mount time would apply behind the log, if tid is one more than the last that Recover found there. An area of another
// round gives none. Blocks that are written later go on from there: a fast commit may have begun before they were watched.
func (s *FCStream) Recover(tid uint32) ([]FastCommit, error) {
	s.restart()
	s.known, s.last = true, tid-1
	if s.read == nil {
		return nil, nil
	}
	whole := true // what was read so far decodes
	for k := uint32(0); k < min(s.end-s.first, uint32(s.max)); k++ {
		b := s.buffer()
		if err := s.read(b, s.first+k); err != nil {
			s.free(b)
			s.rewind()
			return s.out, &Error{tid, s.first + k, err}
		}
		if now, head := headOf(b); k == 0 && (!head || now != tid) {
			s.free(b)
			break
		}
		s.wait[k] = b
		whole = whole && s.run() == nil
	}
	// What is behind the last tail may be new, or left from another round: then it is written anew before it is of any use.
	s.rewind()
	return s.out, nil
}

// recycle takes back what the last call gave.
func (s *FCStream) recycle() {
	s.out = s.out[:0]
	left := copy(s.p.ops, s.p.ops[s.given:])
	s.p.ops, s.given = s.p.ops[:left], 0
	for _, b := range s.old {
		s.free(b)
	}
	s.old = s.old[:0]
}

func (s *FCStream) buffer() []byte {
	if n := len(s.spare); n > 0 {
		b := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return b
	}
	return make([]byte, s.size)
}

func (s *FCStream) free(b []byte) {
	if len(s.spare) < 256 {
		s.spare = append(s.spare, b)
	}
}
