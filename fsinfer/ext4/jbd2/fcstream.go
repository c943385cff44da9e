package jbd2

import "hash/maphash"

// maxFC is how many bytes of a fast-commit area are held until they make a fast commit. The kernel's area has 256 blocks
// by default, for many fast commits.
const maxFC = 8 << 20

// FCStream follows the fast-commit area as it is written. Each full commit begins the area anew: call Committed then. It is
// not safe for concurrent use.
type FCStream struct {
	size, max  int    // of a block in bytes; blocks that are held
	first, end uint32 // of the area
	read       func(p []byte, index uint32) error

	// seed is for sums. They are no CRC: that of a block which ends with its own CRC does not depend on the rest.
	seed   maphash.Seed
	p      fcParser
	next   uint32            // offset in the area of the next block to decode
	sums   []uint64          // of the blocks before next
	wait   map[uint32][]byte // blocks that came before their turn
	part   [][]byte          // decoded blocks without a tail yet
	broken bool              // nothing can be decoded until the next full commit
	early  bool              // blocks of this round may have been written before we watched

	known bool
	last  uint32 // tid of the last full commit

	out   []FastCommit
	given int      // of p.ops, those that out shows
	old   [][]byte // blocks that out shows
	spare [][]byte
}

// NewFCStream makes a stream for the fast-commit area of the journal that sb describes; if that has none, nothing will
// come of it. Where the area changes (Super.FastCommits), a new FCStream is needed. read gives the present content of a
// journal block, for what was written before the first Write; it may be nil.
func NewFCStream(sb *Super, read func(p []byte, index uint32) error) *FCStream {
	s := &FCStream{size: int(sb.BlockSize), max: maxFC / int(sb.BlockSize), read: read, wait: make(map[uint32][]byte), early: read != nil,
		seed: maphash.MakeSeed()}
	s.first, s.end = sb.FastCommits()
	return s
}

// Committed says that the transaction tid was committed in full. What the area holds for it, or for older ones, counts no
// more, and the next fast commit begins at the area's start.
func (s *FCStream) Committed(tid uint32) {
	if !s.known || newer(tid, s.last) {
		s.known, s.last = true, tid
	}
	if !s.p.head || !newer(s.p.tid, s.last) {
		s.restart()
		s.early = false
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
	s.next, s.sums, s.broken = 0, s.sums[:0], false
	s.p = fcParser{ops: s.p.ops[:0]}
}

// Write takes a block of the fast-commit area as it lies on the disk now; index counts from the journal's superblock, and
// indexes outside of the area are passed over. It returns the fast commits that the block completes, valid until the next
// call. Blocks may come in any order, and again. An *Error tells of an area that cannot be believed from here on; the next
// full commit holds all that it would have told.
func (s *FCStream) Write(index uint32, data []byte) ([]FastCommit, error) {
	s.recycle()
	if index < s.first || index >= s.end {
		return nil, nil
	}
	if len(data) != s.size {
		return nil, &Error{Index: index, Err: bad("write of %d bytes to a journal with blocks of %d", len(data), s.size)}
	}
	k := index - s.first
	switch anew := k < s.next && maphash.Bytes(s.seed, data) != s.sums[k]; {
	case k == 0 && (anew || s.broken):
		s.restart() // a new round, and nobody told us
	case anew && !s.broken:
		s.broken = true
		return nil, &Error{s.p.tid, index, bad("fast-commit block written anew")}
	}
	if k < s.next || s.broken {
		return nil, nil
	}
	if k > s.next && s.early {
		s.fill(k)
	}
	if err := s.keep(k, data); err != nil {
		return nil, err
	}
	err := s.run()
	if s.early && err != nil {
		err = nil // what was there before us need not fit
	}
	return s.out, err
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

// fill reads the blocks before k that were not written since we watch.
func (s *FCStream) fill(k uint32) {
	for i := s.next; i < k && len(s.wait)+len(s.part) < s.max; i++ {
		if s.wait[i] != nil {
			continue
		}
		b := s.buffer()
		if s.read(b, s.first+i) != nil {
			s.free(b)
			return
		}
		s.wait[i] = b
	}
}

// run decodes the blocks whose turn it is.
func (s *FCStream) run() error {
	for {
		b := s.wait[s.next]
		if b == nil {
			return nil
		}
		delete(s.wait, s.next)
		s.part = append(s.part, b)
		err := s.p.block(b, s.tail)
		if err == nil && s.known && s.p.head && !newer(s.p.tid, s.last) {
			// Left from before the last full commit: the round's own first block comes in its place.
			s.out = nil
			s.restart()
			return nil
		}
		if err != nil {
			at := s.next
			s.broken = true
			return &Error{s.p.tid, s.first + at, err}
		}
		s.sums = append(s.sums, maphash.Bytes(s.seed, b))
		s.next++
	}
}

// tail hands out the operations since the last tail.
func (s *FCStream) tail() {
	n := len(s.p.ops)
	s.out = append(s.out, FastCommit{TID: s.p.tid, Ops: s.p.ops[s.given:n:n]})
	s.given = n
	s.old = append(s.old, s.part...)
	s.part = s.part[:0]
}

// Recover reads the whole area and gives the fast commits in it that follow the full commit before tid: what recovery at
// mount time would apply behind the log, if tid is one more than the last that Recover found there. An area of another
// round gives none. Blocks that are written later go on from there.
func (s *FCStream) Recover(tid uint32) ([]FastCommit, error) {
	s.restart()
	s.known, s.last = true, tid-1
	if s.read == nil {
		return nil, nil
	}
	var good fcParser
	var sums int
	for k := uint32(0); k < min(s.end-s.first, uint32(s.max)); k++ {
		b := s.buffer()
		if err := s.read(b, s.first+k); err != nil {
			return s.out, &Error{tid, s.first + k, err}
		}
		s.part = append(s.part, b)
		n := len(s.out)
		if s.p.block(b, s.tail) != nil || s.p.tid != tid {
			s.out = s.out[:n]
			break
		}
		s.sums = append(s.sums, maphash.Bytes(s.seed, b))
		if len(s.out) > n {
			good, sums = s.p, len(s.sums)
		}
	}
	// What is behind the last tail may be new, or left from another round.
	s.old, s.part = append(s.old, s.part...), s.part[:0]
	good.crc, good.ops = 0, s.p.ops[:s.given]
	s.p, s.sums, s.next = good, s.sums[:sums], uint32(sums)
	return s.out, nil
}

// recycle takes back what the last call gave.
func (s *FCStream) recycle() {
	s.out = s.out[:0]
	if s.given > 0 {
		left := copy(s.p.ops, s.p.ops[s.given:])
		s.p.ops, s.given = s.p.ops[:left], 0
		if left > 0 {
			s.old = s.old[:0] // records behind a tail in its block: their bytes are still needed
		}
	}
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
