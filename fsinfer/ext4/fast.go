package ext4

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"vmscope/block"
	"vmscope/event"
	"vmscope/fsinfer/ext4/jbd2"
	"vmscope/mem"
)

// fastState is what only fast commits told so far: the names that came and went, and inodes, all of which the next full commit
// will log as blocks. It lies on top of what the blocks say, and may lie on another one.
type fastState struct {
	under  *fastState
	inodes map[uint32][]byte
	names  map[uint32]map[string]uint32 // by directory; 0: the name is gone
	size   int                          // names and inodes
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

// edits gives the names that came to a directory or went.
func (s *fastState) edits(dir uint32) map[string]uint32 {
	if s == nil {
		return nil
	}
	mine, below := s.names[dir], s.under.edits(dir)
	if len(below) == 0 || len(mine) == 0 {
		if len(mine) == 0 {
			return below
		}
		return mine
	}
	all := make(map[string]uint32, len(mine)+len(below))
	for n, ino := range below {
		all[n] = ino
	}
	for n, ino := range mine {
		all[n] = ino
	}
	return all
}

func (s *fastState) set(dir uint32, name string, ino uint32) {
	if s.names[dir] == nil {
		if s.names == nil {
			s.names = map[uint32]map[string]uint32{}
		}
		s.names[dir] = map[string]uint32{}
	}
	if _, ok := s.names[dir][name]; !ok {
		s.size++
	}
	s.names[dir][name] = ino
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
	for ino, raw := range s.inodes {
		s.under.setInode(ino, raw)
	}
	for dir, names := range s.names {
		for name, ino := range names {
			s.under.set(dir, name, ino)
		}
	}
}

// applyFast works out a fast commit (fs/ext4/fast_commit.c): unlike a full one it tells names and inodes, no blocks.
func (f *FS) applyFast(fc *jbd2.FastCommit, when time.Time) ([]event.Event, error) {
	if f.fast.size > maxFast {
		return nil, fmt.Errorf("fast commit %d: no full one for %d names and inodes: %w", fc.TID, f.fast.size, mem.ErrInconsistent)
	}
	t := f.newTxn(nil, uint64(fc.TID), when, event.FastCommit)
	top := &fastState{under: &f.fast}
	t.new.fc = top
	f.reads = map[uint64][]byte{}
	defer func() { f.reads = nil }()
	first := t.fastNames(fc, top)
	t.fastInodes(fc, top)
	t.neverThere(first, top)
	for p, before := range first {
		now := top.names[p.dir.ino][p.name]
		c := t.inodes[before]
		if before == now && (c == nil || !c.replaced()) {
			continue
		}
		if before != 0 {
			t.removed = append(t.removed, edit{p, before})
		}
		if now != 0 {
			if c := t.inodes[now]; c != nil && c.new.IsDir() && !live(&c.new) {
				continue
			}
			t.added = append(t.added, edit{place{node{p.dir.ino, t.isReplaced(p.dir.ino)}, p.name}, now})
		}
	}
	t.locate()
	t.names()
	t.attributes()
	t.remember()
	top.sink()
	return t.events, t.err()
}

// fastNames notes what names lead to behind the commit, and gives what they led to before it.
func (t *txn) fastNames(fc *jbd2.FastCommit, top *fastState) map[place]uint32 {
	first := map[place]uint32{}
	scratch := make([]byte, t.f.sb.BlockSize)
	told := map[uint32][]byte{}
	for i := range fc.Ops {
		if o := &fc.Ops[i]; o.Tag == jbd2.FCInode {
			told[o.Ino] = slices.Clip(o.Inode)
		}
	}
	for i := range fc.Ops {
		o := &fc.Ops[i]
		var before, now uint32
		switch o.Tag {
		case jbd2.FCCreat, jbd2.FCLink:
			now = o.Ino
		case jbd2.FCUnlink:
			before = o.Ino
		default:
			continue
		}
		if o.Parent == 0 || o.Parent > t.f.sb.Inodes || o.Ino == 0 || o.Ino > t.f.sb.Inodes || len(o.Name) == 0 {
			t.fail(fmt.Errorf("fast commit %d: inode %d in directory %d: %w", fc.TID, o.Ino, o.Parent, mem.ErrInconsistent))
			continue
		}
		dir, err := t.old.inode(scratch, o.Parent)
		if in := told[o.Parent]; in != nil {
			dir, err = t.f.sb.ParseInode(o.Parent, append(in, zeroInode[:t.f.sb.InodeSize]...)[:t.f.sb.InodeSize])
		}
		t.fail(err)
		p := place{node{ino: o.Parent}, nameOf(&dir, Dirent{Name: o.Name})}
		if _, ok := first[p]; !ok {
			if told, ok := t.f.fast.edits(o.Parent)[p.name]; ok {
				before = told
			}
			first[p] = before
		}
		top.set(o.Parent, p.name, now)
	}
	return first
}

// neverThere finds names that a fast commit tells as gone, and that were made since the last commit: of an inode that is freed
// again, a fast commit tells that its names went and not that they came (fs/ext4/fast_commit.c, ext4_fc_commit_dentry_updates).
func (t *txn) neverThere(first map[place]uint32, top *fastState) {
	names := map[uint32]int{}
	for _, ino := range first {
		names[ino]++
	}
	scratch := make([]byte, t.f.sb.BlockSize)
	for p, ino := range first {
		if ino == 0 {
			// A name that came while the last full commit was being written may be told again.
			if now := top.names[p.dir.ino][p.name]; now != 0 && t.f.fast.edits(p.dir.ino)[p.name] == 0 && t.isNamed(p, now) {
				first[p] = now
			}
			continue
		}
		old, err := t.old.inode(scratch, ino)
		if c := t.inodes[ino]; c != nil {
			old = c.old
		}
		there := err == nil && live(&old)
		if links := int(old.Links); there && (names[ino] > links || old.IsDir() && names[ino] > 1) {
			there = t.isNamed(p, ino)
		}
		if !there {
			first[p] = 0
		}
	}
}

// isNamed says whether a name led to an inode before the change.
func (t *txn) isNamed(p place, ino uint32) bool {
	dir, err := t.old.inode(make([]byte, t.f.sb.BlockSize), p.dir.ino)
	if err != nil || !live(&dir) || !dir.IsDir() {
		return false
	}
	dir.InBody = slices.Clone(dir.InBody)
	there := false
	t.fail(t.f.scan(t.old, &dir, ino, func(i uint32) bool { return i == ino }, func(name string, _ Dirent) bool {
		there = there || name == p.name
		return !there
	}))
	return there
}

// fastInodes notes the inodes of the commit, before and behind it.
func (t *txn) fastInodes(fc *jbd2.FastCommit, top *fastState) {
	scratch := make([]byte, t.f.sb.BlockSize)
	links := map[uint32]int{}
	told := map[uint32][]byte{}
	for i := range fc.Ops {
		o := &fc.Ops[i]
		switch o.Tag {
		case jbd2.FCCreat:
			links[o.Ino] += 0
		case jbd2.FCLink:
			links[o.Ino]++
		case jbd2.FCUnlink:
			links[o.Ino]--
		case jbd2.FCInode:
			told[o.Ino] = o.Inode
			links[o.Ino] += 0
		case jbd2.FCAddRange:
			t.addRange(o)
		}
	}
	for ino, delta := range links {
		if ino == 0 || ino > t.f.sb.Inodes {
			continue
		}
		old, raw, err := t.rawInode(scratch, ino)
		if err != nil {
			t.fail(err)
			continue
		}
		now := slices.Clone(raw)
		if r, ok := told[ino]; ok {
			// A fast commit leaves the extended attributes out.
			n := copy(now, r)
			if in, err := t.f.sb.ParseInode(ino, now); err == nil && !(live(&old) && live(&in) && same(&old, &in)) {
				clear(now[n:])
			}
		} else if delta < 0 {
			left := max(int(old.Links)+delta, 0)
			if old.IsDir() {
				left = 0
			}
			le.PutUint16(now[26:], uint16(left))
		} else {
			continue
		}
		in, err := t.f.sb.ParseInode(ino, now)
		if err != nil {
			t.fail(err)
			continue
		}
		t.note(&change{ino: ino, old: old, new: in})
		top.setInode(ino, now)
	}
}

// rawInode reads an inode as it is before the change, with a copy of its bytes.
func (t *txn) rawInode(scratch []byte, ino uint32) (Inode, []byte, error) {
	raw := t.old.fc.inode(ino)
	if raw == nil {
		b, off, err := t.f.inodePlace(ino)
		if err != nil {
			return Inode{}, nil, err
		}
		data, err := t.old.peek(scratch, b)
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

// openFast takes over the fast commits that follow the last full one, and makes ready for more.
func (f *FS) openFast(sb *jbd2.Super, read func(p []byte, index uint32) error) error {
	j := f.journal
	j.fcFirst, j.fcEnd = sb.FastCommits()
	j.fast = jbd2.NewFCStream(sb, read)
	fcs, err := j.fast.Recover(j.last + 1)
	for i := range fcs {
		_, aerr := f.applyFast(&fcs[i], time.Time{})
		err = errors.Join(err, aerr)
	}
	return err
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
