package ext4

import (
	"fmt"
	"slices"
	"time"

	"vmscope/event"
	"vmscope/fsinfer/ext4/jbd2"
	"vmscope/mem"
)

// fastChange is a fast commit that is being worked out (fs/ext4/fast_commit.c). Unlike a full commit it tells names and inodes,
// no blocks, and it is no picture of one moment:
//
//   - names come in the order in which they were changed, so that the last record of a name holds; what the name led to before
//     is nowhere told. What was changed while a full commit was being written is told again behind it.
//   - of an inode that was freed, only the names that went are told, also those that came since the last commit.
//   - the record of an inode may come before that of its first name, or its last, and may be missing.
//   - directories are told where they are made, and never again.
type fastChange struct {
	t      *txn
	top    *fastState
	names  map[place]*fastTouch
	inodes map[uint32]*fastInode
	made   map[uint32]bool // directories that are made in the commit
}

// fastTouch is a name that the commit tells of.
type fastTouch struct {
	base, before, now uint32 // what it leads to: by the blocks, before the commit, behind it
}

// fastInode is an inode that the commit tells of, or that one of its names leads to.
type fastInode struct {
	old        Inode
	raw        []byte // of old
	record     []byte // as the commit tells it, nil where it does not
	told       Inode  // the same, on top of raw
	gone, come int    // names that led to it before the commit, and that lead to it behind
	unknown    bool   // a file of which no record came yet
}

// replaced says that the record is of another file than the one that had the number before.
func (n *fastInode) replaced() bool { return n.record != nil && live(&n.old) && !same(&n.old, &n.told) }

// fresh says that the record is of a file that was not there before.
func (n *fastInode) fresh() bool { return n.record != nil && (!live(&n.old) || !same(&n.old, &n.told)) }

// applyFast works out a fast commit.
func (f *FS) applyFast(fc *jbd2.FastCommit, when time.Time) ([]event.Event, error) {
	if f.fast.size > maxFast {
		return nil, fmt.Errorf("fast commit %d: no full one for %d names and inodes: %w", fc.TID, f.fast.size, mem.ErrInconsistent)
	}
	t := f.newTxn(nil, uint64(fc.TID), when, event.FastCommit)
	top := &fastState{under: &f.fast, anew: map[uint32]bool{}}
	t.new.fc = top
	f.reads = map[uint64][]byte{}
	defer func() { f.reads = nil }()
	c := &fastChange{t: t, top: top, names: map[place]*fastTouch{}, inodes: map[uint32]*fastInode{}, made: map[uint32]bool{}}
	c.records(fc)
	c.order(fc)
	c.before()
	c.resolve()
	c.edits()
	t.locate()
	t.names()
	t.attributes()
	t.remember()
	top.sink()
	return t.events, t.err()
}

// inode gives what is known of an inode.
func (c *fastChange) inode(ino uint32) *fastInode {
	n := c.inodes[ino]
	if n == nil {
		n = &fastInode{}
		var err error
		if n.old, n.raw, err = c.t.rawInode(c.t.f.scratch, ino); err != nil {
			c.t.fail(err)
			n.old, n.raw = Inode{Number: ino}, make([]byte, c.t.f.sb.InodeSize)
		}
		c.inodes[ino] = n
	}
	return n
}

// records takes the inodes and ranges.
func (c *fastChange) records(fc *jbd2.FastCommit) {
	sb := c.t.f.sb
	for i := range fc.Ops {
		o := &fc.Ops[i]
		switch o.Tag {
		case jbd2.FCAddRange:
			c.t.addRange(o)
		case jbd2.FCInode:
			if o.Ino > sb.Inodes || o.Ino < sb.FirstInode && o.Ino != RootInode {
				continue
			}
			n := c.inode(o.Ino)
			raw := slices.Clone(n.raw)
			end := copy(raw, o.Inode)
			in, err := sb.ParseInode(o.Ino, raw)
			if err == nil && !(live(&n.old) && same(&n.old, &in)) {
				clear(raw[end:]) // a record leaves the extended attributes out; a new file has none
				in, err = sb.ParseInode(o.Ino, raw)
			}
			if err != nil {
				c.t.fail(err)
				continue
			}
			n.record, n.told = raw, in
		}
	}
}

// order takes the names in the order in which they were changed.
func (c *fastChange) order(fc *jbd2.FastCommit) {
	sb := c.t.f.sb
	for i := range fc.Ops {
		o := &fc.Ops[i]
		now := o.Ino
		switch o.Tag {
		case jbd2.FCCreat, jbd2.FCLink:
		case jbd2.FCUnlink:
			now = 0
		default:
			continue
		}
		if o.Parent == 0 || o.Parent > sb.Inodes || o.Ino == 0 || o.Ino > sb.Inodes || len(o.Name) == 0 {
			c.t.fail(fmt.Errorf("fast commit %d: inode %d in directory %d: %w", fc.TID, o.Ino, o.Parent, mem.ErrInconsistent))
			continue
		}
		d := c.inode(o.Parent)
		dir := &d.old
		if d.record != nil {
			dir = &d.told
		}
		if !dir.Encrypted() && !validName(o.Name) {
			c.t.fail(fmt.Errorf("fast commit %d: inode %d: name %q: %w", fc.TID, o.Ino, o.Name, mem.ErrInconsistent))
			continue
		}
		p := place{node{o.Parent, c.made[o.Parent] && d.replaced()}, nameOf(dir, Dirent{Name: o.Name})}
		if c.names[p] == nil {
			c.names[p] = &fastTouch{}
		}
		c.names[p].now = now
		if n := c.inode(o.Ino); o.Tag == jbd2.FCCreat && n.fresh() && n.told.IsDir() {
			c.made[o.Ino] = true
		}
	}
	for ino := range c.made {
		c.top.anew[ino] = true
	}
}

// before finds what the names led to before the commit.
func (c *fastChange) before() {
	f := c.t.f
	wanted := map[uint32]map[string]uint32{}
	for p, touch := range c.names {
		if c.made[p.dir.ino] && (p.dir.fresh || !c.inodes[p.dir.ino].replaced()) {
			continue // a directory that was not there
		}
		if e, ok := f.fast.edits(p.dir.ino)[p.name]; ok {
			touch.before, touch.base = e.is, e.was
			continue
		}
		if wanted[p.dir.ino] == nil {
			wanted[p.dir.ino] = map[string]uint32{}
		}
		wanted[p.dir.ino][p.name] = 0
	}
	for dir, names := range wanted {
		c.t.fail(wrapDir(dir, f.lookup(c.t.old, dir, names)))
		for name, ino := range names {
			touch := c.names[place{node{ino: dir}, name}]
			touch.before, touch.base = ino, ino
		}
	}
}

// resolve finds what became of the inodes.
func (c *fastChange) resolve() {
	sb := c.t.f.sb
	for p, touch := range c.names {
		if !p.dir.fresh && c.inodes[p.dir.ino].replaced() {
			touch.now = 0 // of a directory that is no more
		}
		if touch.before > sb.Inodes {
			touch.before = 0
		}
		if touch.before != 0 {
			c.inode(touch.before).gone++
		}
		if touch.now != 0 {
			c.inode(touch.now).come++
		}
	}
	for ino, n := range c.inodes {
		before := 0
		if live(&n.old) {
			if before = int(n.old.Links); n.old.IsDir() {
				before = 1
			}
		}
		left := max(before-n.gone, 0)
		now, raw := n.told, n.record
		switch {
		case raw == nil && !live(&n.old):
			n.unknown = n.come > 0
			continue
		case raw == nil, n.replaced() && left > 0: // another file's record, and this one still has names: it came too early
			now, raw = n.old, n.raw
		case n.replaced():
			left = 0
		}
		links := uint32(min(left+n.come, 1<<16-1))
		if now.IsDir() && links > 0 {
			links = max(now.Links, n.old.Links, 2)
			if now.Links == 1 { // more than can be counted
				links = 1
			}
		}
		if n.record == nil && links == n.old.Links {
			continue
		}
		raw = slices.Clone(raw)
		le.PutUint16(raw[26:], uint16(links))
		in, err := sb.ParseInode(ino, raw)
		if err != nil {
			c.t.fail(err)
			continue
		}
		c.t.note(&change{ino: ino, old: n.old, new: in})
		c.top.setInode(ino, raw)
	}
}

// edits finds the names that went and came.
func (c *fastChange) edits() {
	for p, touch := range c.names {
		if n := c.inodes[touch.now]; n != nil && n.unknown {
			touch.now = 0 // the next full commit tells it, if no record does
		}
		if d := c.inodes[p.dir.ino]; p.dir.fresh || !d.replaced() {
			c.top.set(p.dir.ino, p.name, fastName{is: touch.now, was: touch.base})
		}
		if touch.before == touch.now && (touch.now == 0 || !c.t.isReplaced(touch.now)) {
			continue
		}
		if touch.before != 0 {
			c.t.removed = append(c.t.removed, edit{p, touch.before})
		}
		if touch.now != 0 {
			c.t.added = append(c.t.added, edit{p, touch.now})
		}
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
