package jbd2

import (
	"encoding/binary"
	"time"
)

// Tx is a transaction that the log holds completely.
type Tx struct {
	TID  uint32
	Time time.Time // of the commit, by the guest's clock; zero if that cannot be
	// Blocks is what the transaction logs, each block of the file system once, in the order of the log. A block that the
	// same transaction revokes is left out, as recovery does.
	Blocks  []Logged
	Revoked []uint64 // file system blocks whose copies in this and older transactions count no more
}

// Logged is the content that a transaction gives to a block of the file system.
type Logged struct {
	Block uint64 // of the file system
	Index uint32 // journal block that holds the content
	Data  []byte // content as it goes home, escape undone; valid until the next call of what gave the Tx

	escaped bool
}

// A source gives the content of journal blocks to a walk. What it gives is the walk's to change, and stays until the walk
// is over, unless nobody looks at it any more; sum is its Format.sum.
type source interface {
	block(index uint32) (data []byte, sum uint32, err error)
}

// walk goes through one transaction of the log, from its first block to its commit block. It can be stopped by a block
// that is not there yet, and go on once it is.
type walk struct {
	f          Format
	first, end uint32 // of the log
	src        source

	tid   uint32
	pos   uint32 // index of the next block
	steps uint32 // blocks passed
	max   uint32 // how many there may be
	shift uint32 // from the checksum of a block to that of its tag
	crc   uint32 // of all so far (checksum version 1)
	tags  []Tag  // of the descriptor at hand
	next  int    // tag whose data is at pos
	lax   bool   // do not verify
	last  bool   // the commit block was reached: it is the one at pos

	tx    Tx
	where map[uint64]int // in tx.Blocks, by file system block
	rev   []byte         // bit-reversed copy of a block
}

// errEnd says that what lies at a walk's place is no part of its transaction.
type errEnd struct{ error }

func (e errEnd) Unwrap() error { return e.error }

// errLong says that a transaction is longer than any can be.
var errLong = bad("transaction too long for its journal")

// start makes the walk ready for the transaction tid whose first block is at pos.
func (w *walk) start(tid, pos uint32) {
	w.tid, w.pos, w.steps, w.last = tid, pos, 0, false
	w.shift, w.crc = 0, ^uint32(0)
	if w.f.Csum >= 2 {
		w.shift = w.f.dataShift(tid)
	}
	w.tags, w.next = w.tags[:0], 0
	if cap(w.tx.Revoked) > 1<<16 {
		w.tx.Revoked = nil
	}
	w.tx = Tx{TID: tid, Blocks: w.tx.Blocks[:0], Revoked: w.tx.Revoked[:0]}
	if w.where == nil || len(w.where) > 4096 { // clearing a map takes as long as it ever was
		w.where = make(map[uint64]int)
	} else {
		clear(w.where)
	}
}

// setUp tells the walk of the journal.
func (w *walk) setUp(sb *Super, src source) {
	w.f, w.first, w.end, w.src = sb.Format(), sb.First, sb.LogEnd(), src
	// The kernel's own limit is a quarter of the journal, or a third of it (jbd2_journal_get_max_txn_bufs).
	log := w.end - w.first
	w.max = min(log, max(minLog, log/2))
}

// after is the index behind i.
func after(i, first, end uint32) uint32 {
	if i++; i >= end {
		return first
	}
	return i
}

// behind gives how many blocks a lies behind b in the log.
func behind(a, b, first, end uint32) uint32 {
	if a >= b {
		return a - b
	}
	return end - first - (b - a)
}

// run goes on to the commit block. An errEnd says that the transaction is not continued at w.pos; any other error is a
// block that is not there or not right, and run can be called again when that has changed.
func (w *walk) run() error {
	for w.steps < w.max {
		block, sum, err := w.src.block(w.pos)
		if err != nil {
			return err
		}
		if w.next < len(w.tags) {
			if err := w.data(block, sum); err != nil {
				return err
			}
		} else if done, err := w.meta(block); done || err != nil {
			return err
		}
		w.pos = after(w.pos, w.first, w.end)
		w.steps++
	}
	return errLong
}

func (w *walk) data(block []byte, sum uint32) error {
	t := w.tags[w.next]
	if !w.lax && !w.f.matches(t, sum^w.shift) {
		return ErrChecksum
	}
	if w.f.Csum == 1 {
		w.crc = w.crcBE(w.crc, block)
	}
	w.next++
	l := Logged{Block: t.Block, Index: w.pos, Data: block, escaped: t.Escaped}
	if i, again := w.where[t.Block]; again {
		w.tx.Blocks[i] = l
		return nil
	}
	w.where[t.Block] = len(w.tx.Blocks)
	w.tx.Blocks = append(w.tx.Blocks, l)
	return nil
}

func (w *walk) meta(block []byte) (done bool, err error) {
	kind, tid := KindOf(block)
	if kind == Data || tid != w.tid {
		return false, errEnd{bad("no block of this transaction")}
	}
	if !w.lax && (kind == Descriptor || kind == Revoke) {
		if err := w.f.check(block); err != nil {
			return false, err
		}
	}
	switch kind {
	case Descriptor:
		w.tags, w.next = w.f.tags(w.tags[:0], block), 0
		if w.f.Csum == 1 {
			w.crc = w.crcBE(w.crc, block)
		}
	case Revoke:
		if w.lax {
			return false, nil
		}
		w.tx.Revoked, err = w.f.revoked(w.tx.Revoked, block)
		return false, err
	case Commit:
		c, err := w.f.commit(block)
		if err == nil && !w.lax && c.hasCRC && c.crc != w.crc {
			err = ErrChecksum
		}
		if w.lax {
			err = nil
		}
		w.tx.Time, w.last = c.time, true
		return true, err
	default:
		return false, errEnd{bad("superblock in the log")}
	}
	return false, nil
}

// finish undoes escapes and leaves out what the transaction itself revokes.
func (w *walk) finish() *Tx {
	blocks := w.tx.Blocks
	for _, b := range w.tx.Revoked {
		if i, ok := w.where[b]; ok {
			blocks[i].Data = nil
			delete(w.where, b)
		}
	}
	keep := blocks[:0]
	for _, l := range blocks {
		if l.Data == nil {
			continue
		}
		if l.escaped {
			binary.BigEndian.PutUint32(l.Data, magic)
		}
		keep = append(keep, l)
	}
	w.tx.Blocks = keep
	return &w.tx
}
