package jbd2

import (
	"bytes"
	"errors"
	"fmt"
)

// maxSpare is how many bytes of buffers a Stream keeps for the next transaction.
const maxSpare = 8 << 20

// Stream follows the log as it is written and gives the transactions as they are committed. It holds the blocks that were
// written since the last commit, at most half of the log. It is not safe for concurrent use.
type Stream struct {
	sb     Super
	blocks uint32 // of the journal, as at the start
	read   func(p []byte, index uint32) error

	slots map[uint32]slot // what was written since the last commit, by index
	spare [][]byte
	given []uint32 // indexes of slots whose data the last Tx showed

	known bool   // last is set
	last  uint32 // newest tid that is known or was given up
	told  bool   // last is what Skip told
	// Where the log goes on: the transaction next begins at index nextAt. The superblock tells as much of its oldest one.
	hasNext      bool
	next, nextAt uint32

	// early is set until the first commit is seen: parts of its transaction may have been written before we watched, and
	// are read from the disk.
	early bool
	blank bool // and cannot be read; nothing was seen yet

	w    walk
	held bool // w waits for blocks of a commit that came before them, which is at index heldAt
	heldAt,
	heldFrom uint32 // where the held walk began
}

type slot struct {
	data []byte
	kind Kind
	tid  uint32
	sum  uint32 // Format.sum of data
}

// NewStream makes a Stream for a journal whose superblock is sb. read gives the present content of a journal block; it is
// asked for what was written before the first Write, and not after the first commit block. It may be nil.
func NewStream(sb *Super, read func(p []byte, index uint32) error) (*Stream, error) {
	if err := sb.validate(); err != nil {
		return nil, err
	}
	s := &Stream{blocks: sb.MaxLen, read: read, slots: make(map[uint32]slot), early: read != nil, blank: read == nil}
	s.use(sb)
	return s, nil
}

func (s *Stream) use(sb *Super) {
	s.sb = *sb
	s.w.setUp(sb, (*streamSource)(s))
}

// Super is the journal's superblock as it was written last. It must not be changed.
func (s *Stream) Super() *Super { return &s.sb }

// Skip says that commits with tid and older ones are known already.
func (s *Stream) Skip(tid uint32) {
	if !s.known || newer(tid, s.last) {
		s.known, s.last, s.told = true, tid, true
	}
	if s.held && !newer(s.w.tid, s.last) {
		s.held = false
		s.seen(s.heldAt, s.w.tid)
	}
}

// Write takes a journal block as it lies on the disk now: the superblock, too. It returns the transaction that the block
// completes, if it does; the Tx and all in it are valid until the next call. An *Error tells of a commit that cannot be
// believed (ErrChecksum, ErrMissing), or of a superblock that cannot; the Stream goes on behind it. Blocks of the
// fast-commit area are passed over.
func (s *Stream) Write(index uint32, data []byte) (*Tx, error) {
	s.recycle()
	if len(data) != int(s.sb.BlockSize) {
		return nil, &Error{Index: index, Err: bad("write of %d bytes to a journal with blocks of %d", len(data), s.sb.BlockSize)}
	}
	if index == 0 {
		return nil, s.super(data)
	}
	if index < s.w.first || index >= s.w.end {
		return nil, nil
	}
	kind, tid := KindOf(data)
	if s.held {
		if kind != Data && newer(tid, s.w.tid) {
			err := s.giveUp(ErrMissing) // the guest went on: what is missing does not come any more
			tx, err2 := s.put(index, data, kind, tid)
			if err2 == nil {
				err2 = err
			}
			return tx, err2
		}
		if s.rewritten(index, data) {
			return nil, s.giveUp(bad("block rewritten behind its commit"))
		}
	}
	return s.put(index, data, kind, tid)
}

// put keeps a block of the log, and looks for the transaction that it completes.
func (s *Stream) put(index uint32, data []byte, kind Kind, tid uint32) (*Tx, error) {
	sl, had := s.slots[index]
	if !had {
		if len(s.slots) >= int(s.w.max) {
			s.drop()
			return nil, &Error{tid, index, bad("more than %d journal blocks without a commit", s.w.max)}
		}
		sl.data = s.buffer()
	}
	copy(sl.data, data)
	sl.kind, sl.tid = kind, tid
	if kind == Data { // now, while it is in the processor's cache
		sl.sum = s.w.f.sum(sl.data)
	}
	s.slots[index] = sl
	if s.held {
		if index == s.w.pos {
			return s.resume()
		}
		return nil, nil
	}
	if kind == Commit {
		return s.commit(index, tid)
	}
	return nil, nil
}

// commit looks whether the transaction of the commit block at index is all there.
func (s *Stream) commit(index, tid uint32) (*Tx, error) {
	if _, err := s.w.f.commit(s.slots[index].data); err != nil {
		// Nothing in it can be trusted, its tid neither; but a commit block it is, and ends a transaction.
		return nil, &Error{tid, index, err}
	}
	if s.known && !newer(tid, s.last) {
		s.seen(index, tid)
		return nil, nil
	}
	from, ok := s.begin(index, tid)
	if !ok {
		err := &Error{tid, index, ErrMissing}
		s.seen(index, tid)
		return nil, err
	}
	s.w.start(tid, from)
	s.held, s.heldAt, s.heldFrom = true, index, from
	tx, err := s.resume()
	if s.held && !s.w.f.Async {
		err = s.giveUp(err)
	}
	return tx, err
}

// resume goes on with the walk to the commit block at heldAt. Where a block is not there, or not yet right, the commit
// stays held; the error then says what keeps it, for a journal that does not allow that.
func (s *Stream) resume() (*Tx, error) {
	err := s.w.run()
	var end errEnd
	switch {
	case err == nil && s.w.pos == s.heldAt:
		tx := s.w.finish()
		s.held = false
		s.done(tx)
		return tx, nil
	case err == nil:
		return nil, s.giveUp(bad("another commit block at %d", s.w.pos))
	case errors.As(err, &end) && !s.w.f.Async:
		return nil, s.giveUp(end.error)
	case s.w.last:
		return nil, s.giveUp(err) // the sum of the whole is wrong
	}
	if s.w.f.Async {
		return nil, nil
	}
	return nil, err
}

// giveUp ends the wait for a held commit with the reason why it is not believed.
func (s *Stream) giveUp(reason error) error {
	err := &Error{s.w.tid, s.heldAt, fmt.Errorf("block %d: %w", s.w.pos, reason)}
	s.held = false
	s.seen(s.heldAt, s.w.tid)
	return err
}

// rewritten reports whether a block that the held walk has passed is written with another content.
func (s *Stream) rewritten(index uint32, data []byte) bool {
	if behind(index, s.heldFrom, s.w.first, s.w.end) >= s.w.steps && index != s.heldAt {
		return false
	}
	sl, ok := s.slots[index]
	return !ok || !bytes.Equal(sl.data, data)
}

// begin finds the index where the transaction starts whose commit block is at index.
func (s *Stream) begin(index, tid uint32) (uint32, bool) {
	if s.sb.Start != 0 && s.sb.Sequence == tid {
		return s.sb.Start, true
	}
	if s.hasNext && s.next == tid {
		return s.nextAt, true
	}
	// Back to the commit block before it.
	first, found := index, false
	for i, n := index, s.w.end-s.w.first; n > 1; n-- {
		if i--; i < s.w.first {
			i = s.w.end - 1
		}
		b, _, err := s.w.src.block(i)
		if err != nil {
			break
		}
		switch kind, t := KindOf(b); {
		case kind == Commit && t == tid-1: // any other one may lie there since the last lap
			return after(i, s.w.first, s.w.end), true
		case kind != Data && t == tid:
			first, found = i, true
		}
	}
	return first, found && s.blank // nothing else can be known of what was before
}

// done notes that the transaction was given out.
func (s *Stream) done(tx *Tx) {
	for i := range s.slots {
		s.given = append(s.given, i)
	}
	s.advance(s.heldAt, tx.TID)
}

// seen notes that a commit block came which is not given out: it is known, or not believed.
func (s *Stream) seen(index, tid uint32) {
	if s.known && newer(s.last, tid) && !s.told {
		s.release(index) // an old one again: what is held is not of its transaction
		return
	}
	s.drop()
	s.advance(index, tid)
}

// advance notes where the log goes on.
func (s *Stream) advance(index, tid uint32) {
	s.early, s.blank = false, false
	if !s.known || newer(tid, s.last) {
		s.known, s.last, s.told = true, tid, false
	}
	s.hasNext, s.next, s.nextAt = true, tid+1, after(index, s.w.first, s.w.end)
}

// super takes a new superblock.
func (s *Stream) super(data []byte) error {
	sb, err := ParseSuper(data)
	if err == nil {
		err = sb.Check(s.sb.BlockSize, uint64(s.blocks))
	}
	if err != nil {
		return &Error{Index: 0, Err: err}
	}
	// A recovery turns fast commits off in the superblock that it leaves, and the mount that goes on turns them on before it
	// logs anything: the log wraps where it did, which the superblock says later (fs/jbd2/journal.c, jbd2_journal_load).
	if fast := *sb; sb.Start != 0 && s.sb.Incompat&IncompatFastCommit != 0 {
		if fast.Incompat |= IncompatFastCommit; fast.validate() == nil {
			sb = &fast
		}
	}
	newest, any := s.last+1, s.known
	for _, sl := range s.slots {
		if sl.kind != Data && (!any || newer(sl.tid, newest)) {
			newest, any = sl.tid, true
		}
	}
	// Moving the tail on says nothing of what is being written. But recovery passes over the tid of what was left without
	// a commit, so that those blocks belong to nothing any more.
	empty := sb.Start == 0
	another := sb.First != s.w.first || sb.LogEnd() != s.w.end || sb.Format() != s.w.f
	if empty || another || any && newer(sb.Sequence, newest) {
		if s.held {
			err = s.giveUp(ErrMissing)
		}
		s.drop()
		s.hasNext, s.blank = false, false
	}
	// A file system checker may begin with any tid. What Skip told holds until something newer is seen.
	if prev := sb.Sequence - 1; empty && (!s.known || !s.told || newer(prev, s.last)) {
		s.known, s.last, s.told = true, prev, false
	}
	s.use(sb)
	return err
}

// streamSource gives the blocks that were written; before the first commit also what lay there before.
type streamSource Stream

func (ss *streamSource) block(index uint32) ([]byte, uint32, error) {
	s := (*Stream)(ss)
	if sl, ok := s.slots[index]; ok {
		if sl.kind != Data && s.w.next < len(s.w.tags) {
			sl.sum = s.w.f.sum(sl.data) // data after all: the magic was not escaped
		}
		return sl.data, sl.sum, nil
	}
	if !s.early || len(s.slots) >= int(s.w.max) {
		return nil, 0, ErrMissing
	}
	b := s.buffer()
	if err := s.read(b, index); err != nil {
		s.spare = append(s.spare, b)
		return nil, 0, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	kind, tid := KindOf(b)
	sum := s.w.f.sum(b)
	s.slots[index] = slot{b, kind, tid, sum}
	return b, sum, nil
}

func (s *Stream) buffer() []byte {
	if n := len(s.spare); n > 0 {
		b := s.spare[n-1]
		s.spare[n-1] = nil
		s.spare = s.spare[:n-1]
		return b
	}
	return make([]byte, s.sb.BlockSize)
}

// release forgets one block.
func (s *Stream) release(index uint32) {
	if sl, ok := s.slots[index]; ok {
		delete(s.slots, index)
		if len(s.spare) < maxSpare/int(s.sb.BlockSize) {
			s.spare = append(s.spare, sl.data)
		}
	}
}

// drop forgets all blocks.
func (s *Stream) drop() {
	for i := range s.slots {
		s.release(i)
	}
}

// recycle takes back what the last Tx showed.
func (s *Stream) recycle() {
	for _, i := range s.given {
		s.release(i)
	}
	s.given = s.given[:0]
}
