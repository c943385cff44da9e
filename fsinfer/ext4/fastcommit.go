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
	base        entry
	before, now uint32 // what it leads to before the commit, and behind it; 0: nothing
}

// fastInode is an inode that the commit tells of, or that one of its names leads to.
type fastInode struct {
	old    Inode
	raw    []byte // of old
	record []byte // as the commit tells it, nil where it does not
	told   Inode  // the same, on top of raw

	before           int // names that led to it before the commit
	gone, come, kept int // of the names that the commit tells: went, came, led to it before and do behind
}

// replaced says that the record is of another file than the one that had the number before.
func (n *fastInode) replaced() bool { return n.record != nil && live(&n.old) && !same(&n.old, &n.told) }

// fresh says that the record is of a file that was not there before.
func (n *fastInode) fresh() bool { return n.record != nil && (!live(&n.old) || !same(&n.old, &n.told)) }

// unknown says that names that came cannot be told yet: the file has no record, or the record is of another one than the file
// that still has names.
func (n *fastInode) unknown() bool {
	if n.record == nil {
		return !live(&n.old)
	}
	return n.replaced() && n.before > n.gone+n.kept
}

// links is how many names lead to it behind the commit.
func (n *fastInode) links() int {
	switch {
	case n.unknown():
		return n.before - n.gone
	case n.fresh():
		return n.come + n.kept
	}
	return n.before - n.gone + n.come
}

// isDir says whether it is a directory, behind the commit.
func (n *fastInode) isDir() bool {
	if n.record == nil || n.unknown() {
		return n.old.IsDir()
	}
	return n.told.IsDir()
}

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
	c.count()
	c.hold()
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
		if n.old, n.raw, err = c.t.rawInode(c.t.old, ino); err != nil {
			c.t.fail(err)
			n.old, n.raw = Inode{Number: ino}, make([]byte, c.t.f.sb.InodeSize)
		}
		if live(&n.old) {
			n.before = int(n.old.Links)
			if n.old.IsDir() {
				n.before = 1
			}
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
	wanted := map[uint32]map[string]entry{}
	for p, touch := range c.names {
		if c.made[p.dir.ino] && (p.dir.fresh || !c.inodes[p.dir.ino].replaced()) {
			continue // a directory that was not there
		}
		if e, ok := f.fast.edits(p.dir.ino)[p.name]; ok {
			touch.before, touch.base = e.is, e.was
			continue
		}
		if wanted[p.dir.ino] == nil {
			wanted[p.dir.ino] = map[string]entry{}
		}
		wanted[p.dir.ino][p.name] = entry{}
	}
	for dir, names := range wanted {
		c.t.fail(wrapDir(dir, f.lookup(c.t.old, dir, names)))
		for name, e := range names {
			touch := c.names[place{node{ino: dir}, name}]
			if touch.base = e; e.ino <= f.sb.Inodes {
				touch.before = e.ino
			}
		}
	}
}

// count counts the names of the inodes.
func (c *fastChange) count() {
	for p, touch := range c.names {
		if !p.dir.fresh && c.inodes[p.dir.ino].replaced() {
			touch.now = 0 // of a directory that is no more
		}
		switch {
		case touch.before == touch.now:
			if touch.now != 0 {
				c.inode(touch.now).kept++
			}
			continue
		case touch.before != 0:
			c.inode(touch.before).gone++
		}
		if touch.now != 0 {
			c.inode(touch.now).come++
		}
	}
}

// hold leaves out names that cannot come yet: of files that are not known, and in directories that are not there. What is done
// while a full commit is under way that stands for what no fast commit can tell is in none (EXT4_MF_FC_INELIGIBLE), though
// the next one tells what is done in a directory that was made so. The next full commit has it.
func (c *fastChange) hold() {
	in := map[uint32][]*fastTouch{}
	var queue []uint32 // directories that are not there
	for p, touch := range c.names {
		if touch.now == 0 {
			continue
		}
		if n := c.inodes[touch.now]; touch.now != touch.before && n.unknown() {
			touch.now = 0
			continue
		}
		if in[p.dir.ino] == nil {
			if d := c.inodes[p.dir.ino]; !d.isDir() || d.links() == 0 && p.dir.ino != RootInode {
				queue = append(queue, p.dir.ino)
			}
		}
		in[p.dir.ino] = append(in[p.dir.ino], touch)
	}
	for len(queue) > 0 {
		touches := in[queue[0]]
		delete(in, queue[0])
		queue = queue[1:]
		for _, touch := range touches {
			n := c.inodes[touch.now]
			if touch.now == touch.before {
				n.kept, n.gone = n.kept-1, n.gone+1
			} else {
				n.come--
			}
			if n.isDir() && n.links() == 0 {
				queue = append(queue, touch.now)
			}
			touch.now = 0
		}
	}
}

// resolve finds what became of the inodes.
func (c *fastChange) resolve() {
	for ino, n := range c.inodes {
		now, raw := n.told, n.record
		if raw == nil || n.unknown() {
			now, raw = n.old, n.raw
		}
		links := uint32(min(max(n.links(), 0), 1<<16-1))
		if now.IsDir() && links > 0 {
			if links = max(now.Links, n.old.Links, 2); now.Links == 1 { // more than can be counted
				links = 1
			}
		}
		if n.record == nil && links == n.old.Links || !live(&n.old) && n.record == nil {
			continue
		}
		raw = slices.Clone(raw)
		le.PutUint16(raw[26:], uint16(links))
		in, err := c.t.f.sb.ParseInode(ino, raw)
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
		if p.dir.fresh || !c.inodes[p.dir.ino].replaced() {
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
