package jbd2

import (
	"errors"
	"fmt"

	"vmscope/mem"
)

// ErrChanged says that the journal went on while it was being read: read its superblock anew, and begin again.
var ErrChanged = errors.New("jbd2: the journal changed while it was read")

// Recover goes through the log as recovery at mount time would, and applies each committed transaction, oldest first.
// What a transaction revokes is left out of it and of all older ones. read gives the content of a journal block; nothing
// is written. The Tx given to apply is valid until it returns; an error of apply ends the recovery and is returned.
//
// last is the tid of the newest transaction in the log; if the log is empty, that of the one before Sequence. Fast commits
// count if they follow it directly, with the tid last+1: see FCStream.Recover.
//
// The log is read twice: revokes are collected first. If it belongs to a running guest, its tail may move on meanwhile:
// Recover then gives ErrChanged, and what was applied means nothing. An error of the class mem.ErrInconsistent says that
// the log goes on behind last, with a transaction that cannot be believed: all before it was applied.
func Recover(sb *Super, read func(p []byte, index uint32) error, apply func(*Tx) error) (last uint32, err error) {
	if err := sb.validate(); err != nil {
		return 0, err
	}
	last = sb.Sequence - 1
	if sb.Start == 0 {
		return last, nil
	}
	r := &recovery{sb: sb, read: read, revoked: make(map[uint64]revocation)}
	end, scanErr := r.scan()
	if scanErr != nil && !errors.Is(scanErr, mem.ErrInconsistent) {
		return last, scanErr
	}
	err = r.replay(end, apply)
	if err == nil {
		err = r.unchanged()
	}
	if err != nil {
		return last, err
	}
	return end - 1, scanErr
}

// revocation is the newest revoke of a block that the log holds.
type revocation struct {
	tid uint32
	any bool
}

type recovery struct {
	sb      *Super
	read    func(p []byte, index uint32) error
	revoked map[uint64]revocation // by file system block; those that were logged before only
}

// scan finds the end of the log: the tid behind the last transaction.
func (r *recovery) scan() (end uint32, err error) {
	src := &scratch{f: r.sb.Format(), read: r.read, p: make([]byte, r.sb.BlockSize)}
	var w walk
	w.setUp(r.sb, src)
	tid, pos := r.sb.Sequence, r.sb.Start
	var prev int64
	for left := w.end - w.first; ; {
		w.start(tid, pos)
		err := w.run()
		if err != nil && r.committed(&w, pos, prev, err) {
			// If it was being written while it was read, it is right now.
			w.start(tid, pos)
			if err = w.run(); err != nil {
				return tid, &Error{tid, w.pos, err}
			}
		}
		if err != nil {
			return tid, r.torn(&w, err)
		}
		if w.steps >= left {
			return tid, &Error{tid, w.pos, bad("log longer than the journal")}
		}
		left -= w.steps + 1
		for _, l := range w.tx.Blocks {
			r.revoked[l.Block] = r.revoked[l.Block]
		}
		for _, b := range w.tx.Revoked {
			if _, logged := r.revoked[b]; logged {
				r.revoked[b] = revocation{tid, true}
			}
		}
		prev = w.tx.Time.Unix()
		tid, pos = tid+1, after(w.pos, w.first, w.end)
	}
}

// committed reports whether the transaction at pos, which a checksum made unbelievable, was committed nevertheless: then it
// is damaged. A commit block that is older than the one before is left from an earlier life of the journal. That an
// asynchronous commit is there says nothing.
func (r *recovery) committed(w *walk, pos uint32, prev int64, err error) bool {
	if !unbelievable(err) || w.f.Async {
		return false
	}
	w.lax = true
	defer func() { w.lax = false }()
	w.start(w.tid, pos)
	return w.run() == nil && w.tx.Time.Unix() >= prev
}

// torn says what an end of the scan means that is not damage: nil for a log that simply ends.
func (r *recovery) torn(w *walk, err error) error {
	var end errEnd
	if errors.As(err, &end) || unbelievable(err) {
		return nil
	}
	return &Error{w.tid, w.pos, err}
}

// unbelievable reports whether a walk ended at a block whose content is wrong.
func unbelievable(err error) bool {
	var end errEnd
	var read errRead
	return err != errLong && errors.Is(err, mem.ErrInconsistent) && !errors.As(err, &end) && !errors.As(err, &read)
}

// errRead is an error of read.
type errRead struct{ error }

func (e errRead) Unwrap() error { return e.error }

// replay applies the transactions before end.
func (r *recovery) replay(end uint32, apply func(*Tx) error) error {
	src := &keeper{f: r.sb.Format(), read: r.read}
	var w walk
	w.setUp(r.sb, src)
	pos := r.sb.Start
	for tid := r.sb.Sequence; tid != end; tid++ {
		src.used = 0
		w.start(tid, pos)
		if err := w.run(); err != nil {
			if read := (errRead{}); errors.As(err, &read) {
				return &Error{tid, w.pos, err}
			}
			return fmt.Errorf("%w: %v", ErrChanged, &Error{tid, w.pos, err})
		}
		pos = after(w.pos, w.first, w.end)
		tx := w.finish()
		keep := tx.Blocks[:0]
		for _, l := range tx.Blocks {
			if v := r.revoked[l.Block]; !v.any || newer(tid, v.tid) {
				keep = append(keep, l)
			}
		}
		tx.Blocks = keep
		if err := apply(tx); err != nil {
			return err
		}
	}
	return nil
}

// unchanged looks whether the tail of the log is where it was. The kernel moves it on before it uses the blocks again.
func (r *recovery) unchanged() error {
	p := make([]byte, r.sb.BlockSize)
	if err := r.read(p, 0); err != nil {
		return err
	}
	now, err := ParseSuper(p)
	if err != nil {
		return err
	}
	if now.Start != r.sb.Start || now.Sequence != r.sb.Sequence {
		return ErrChanged
	}
	return nil
}

// scratch is a source for those who need one block at a time.
type scratch struct {
	f    Format
	read func(p []byte, index uint32) error
	p    []byte
}

func (s *scratch) block(index uint32) ([]byte, uint32, error) {
	if err := s.read(s.p, index); err != nil {
		return nil, 0, errRead{err}
	}
	return s.p, s.f.sum(s.p), nil
}

// keeper is a source whose blocks stay until used is set back.
type keeper struct {
	f    Format
	read func(p []byte, index uint32) error
	bufs [][]byte
	used int
}

func (k *keeper) block(index uint32) ([]byte, uint32, error) {
	if k.used == len(k.bufs) {
		k.bufs = append(k.bufs, make([]byte, k.f.BlockSize))
	}
	p := k.bufs[k.used]
	k.used++
	if err := k.read(p, index); err != nil {
		return nil, 0, errRead{err}
	}
	return p, k.f.sum(p), nil
}
