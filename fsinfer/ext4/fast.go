package ext4

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"vmscope/block"
	"vmscope/event"
	"vmscope/fsinfer/ext4/jbd2"
)

// fastState is what only fast commits told so far: the names that came and went, and inodes, all of which the next full commit
// will log as blocks. It lies on top of what the blocks say, and may lie on another one.
//
// A fast commit tells names and inodes apart, each as it was at a moment of its own: an inode that counts a link whose name the
// next fast commit tells, or no link while its name is still to go. So here the links of a file are as many as it has names: a
// file is live if a name leads to it.
type fastState struct {
	under  *fastState
	inodes map[uint32][]byte
	names  map[uint32]map[string]fastName // by directory
	anew   map[uint32]bool                // directories of which what lies under it tells nothing: another file had the number
	size   int                            // names and inodes
}

// fastName is what a name leads to, 0 for nothing, and its entry in the blocks. Both may be the same: a fast commit may tell
// again what a full one has, and take back what it told.
type fastName struct {
	is  uint32
	was entry
}

// maxFast bounds what fast commits may tell between two full ones: their area of the journal holds less.
const maxFast = 1 << 19

// inode gives the bytes of an inode; nil where fast commits did not tell it.
func (s *fastState) inode(ino uint32) []byte {
	for ; s != nil; s = s.under {
		if raw, ok := s.inodes[ino]; ok {
			return raw
		}
	}
	return nil
}

// edits gives the names that fast commits told of a directory. It must not be changed.
func (s *fastState) edits(dir uint32) map[string]fastName {
	if s == nil {
		return nil
	}
	mine := s.names[dir]
	if s.anew[dir] {
		return mine
	}
	below := s.under.edits(dir)
	if len(below) == 0 {
		return mine
	}
	if len(mine) == 0 {
		return below
	}
	all := make(map[string]fastName, len(mine)+len(below))
	for n, e := range below {
		all[n] = e
	}
	for n, e := range mine {
		all[n] = e
	}
	return all
}

func (s *fastState) set(dir uint32, name string, e fastName) {
	if s.names[dir] == nil {
		if s.names == nil {
			s.names = map[uint32]map[string]fastName{}
		}
		s.names[dir] = map[string]fastName{}
	}
	if _, ok := s.names[dir][name]; !ok {
		s.size++
	}
	s.names[dir][name] = e
}

func (s *fastState) setInode(ino uint32, raw []byte) {
	if s.inodes == nil {
		s.inodes = map[uint32][]byte{}
	}
	if _, ok := s.inodes[ino]; !ok {
		s.size++
	}
	s.inodes[ino] = raw
}

// sink moves all into what lies under it.
func (s *fastState) sink() {
	for dir := range s.anew {
		s.under.size -= len(s.under.names[dir])
		delete(s.under.names, dir)
	}
	for ino, raw := range s.inodes {
		s.under.setInode(ino, raw)
	}
	for dir, names := range s.names {
		for name, e := range names {
			s.under.set(dir, name, e)
		}
	}
}

// collectFast adds to the change what fast commits told and a full one does not log: what they told was not so any more, and the
// blocks are right. It appends to dirs the directories of that kind.
func (t *txn) collectFast(dirs []*change) []*change {
	fast := t.old.fc
	if t.new.fc != nil { // no full commit
		return dirs
	}
	left := map[uint32]bool{}
	take := func(ino uint32) {
		if b, _, err := t.f.inodePlace(ino); err == nil {
			if _, logged := t.new.new[b]; !logged {
				left[ino] = true
			}
		}
	}
	for ino := range fast.inodes {
		take(ino)
	}
	for dir := range fast.names {
		take(dir)
	}
	blocks := view{fs: t.f}
	for ino := range left {
		_, was, err := t.rawInode(t.old, ino)
		_, is, berr := t.rawInode(&blocks, ino)
		if err = errors.Join(err, berr); err != nil {
			t.fail(err)
			continue
		}
		c, err := t.parse(ino, was, is)
		if err != nil {
			t.fail(err)
			continue
		}
		if !bytes.Equal(was, is) {
			t.note(c)
			t.reuse = t.reuse || c.replaced()
		}
		if live(&c.old) && c.old.IsDir() || live(&c.new) && c.new.IsDir() {
			dirs = append(dirs, c)
		}
	}
	return dirs
}

// rawInode reads an inode, with its bytes, which are not to be changed.
func (t *txn) rawInode(v *view, ino uint32) (Inode, []byte, error) {
	raw := v.fc.inode(ino)
	if raw == nil {
		b, off, err := t.f.inodePlace(ino)
		if err != nil {
			return Inode{}, nil, err
		}
		data, err := v.peek(t.f.scratch, b)
		if err != nil {
			return Inode{}, nil, err
		}
		raw = slices.Clone(data[off : off+t.f.sb.InodeSize])
		if g, index := t.f.sb.InodeGroup(ino); index >= t.unused(g) {
			clear(raw)
		}
	}
	in, err := t.f.sb.ParseInode(ino, raw)
	return in, raw, err
}

// openFast finds the fast commits that follow the last full one, and makes ready for more.
func (f *FS) openFast(sb *jbd2.Super, read func(p []byte, index uint32) error) error {
	j := f.journal
	j.fcFirst, j.fcEnd = sb.FastCommits()
	j.fast = jbd2.NewFCStream(sb, read)
	fcs, err := j.fast.Recover(j.last + 1)
	for _, fc := range fcs {
		fc.Ops = slices.Clone(fc.Ops)
		for i := range fc.Ops {
			o := &fc.Ops[i]
			o.Name, o.Inode = bytes.Clone(o.Name), bytes.Clone(o.Inode)
		}
		j.found = append(j.found, fc)
	}
	return err
}

// takeFound takes over the fast commits that were there at Attach, once they are needed: they are worked out by what blocks
// hold, and a device that shows the past (see block.Tap) may show that of a time before the transactions that the journal held
// at Attach, until the writes of that time have been applied.
func (f *FS) takeFound() {
	if f.journal == nil {
		return
	}
	found := f.journal.found
	f.journal.found = nil
	for i := range found {
		_, err := f.applyFast(&found[i], time.Time{})
		f.journal.foundErr = errors.Join(f.journal.foundErr, err)
	}
}

// fastWrite takes a block of the fast-commit area.
func (f *FS) fastWrite(index uint32, data []byte, when time.Time) ([]event.Event, error) {
	j := f.journal
	fcs, err := j.fast.Write(index, data)
	var events []event.Event
	for i := range fcs {
		if int32(fcs[i].TID-j.last) <= 0 {
			continue // of a transaction that the model holds
		}
		evs, aerr := f.applyFast(&fcs[i], when)
		events = append(events, evs...)
		err = errors.Join(err, aerr)
	}
	return events, err
}

// fastArea follows an area that comes and goes: the feature is turned on by a mount.
func (j *journal) fastArea() {
	sb := j.stream.Super()
	j.fcFirst, j.fcEnd = sb.FastCommits()
	j.fast.Follow(sb)
}

// addRange notes the bytes that a fast commit tells as mapped.
func (t *txn) addRange(o *jbd2.FCOp) {
	bs := int64(t.f.sb.BlockSize)
	if t.ranges == nil {
		t.ranges = map[uint32][]block.Range{}
	}
	if list := t.ranges[o.Ino]; !o.Unwritten && len(list) < maxRanges {
		t.ranges[o.Ino] = append(list, block.Range{Off: int64(o.Block) * bs, Len: int64(o.Len) * bs})
	}
}
