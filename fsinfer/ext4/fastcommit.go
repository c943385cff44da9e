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
//   - what a name led to before is nowhere told. What was changed while a full commit was being written is told again behind it.
//   - of an inode that was freed, only the names that went are told, also those that came since the last commit.
//   - the record of an inode may come before that of its first name, or its last, and may be missing.
//   - directories are told where they are made, and never again.
//   - what is done while no fast commit is possible (EXT4_MF_FC_INELIGIBLE), until the full commit that stands for it is
//     written, is in none, though it may be part of the transaction of which a fast commit then tells the rest.
//
// So names are played as recovery would, and whatever does not fit together then is left to the next full commit.
type fastChange struct {
	t      *txn
	top    *fastState
	names  map[place]*fastTouch
	inodes map[uint32]*fastInode
	made   map[uint32]bool // directories that are made in the commit
}

// fastTouch is a name that the commit tells of.
type fastTouch struct {
	place
	base        entry
	before, now uint32 // what it leads to before the commit, and behind it; 0: nothing
}

// fastInode is an inode that the commit tells of, or that one of its names leads to.
type fastInode struct {
	ino    uint32
	old    Inode
	raw    []byte // of old
	record []byte // as the commit tells it, nil where it does not
	told   Inode  // the same, on top of raw
	held   bool   // its names are left to the next full commit

	before           int // names that led to it before the commit
	gone, come, kept int // of the names that the commit tells: went, came, led to it before and do behind

	// Of a directory: names in it that the commit tells, and that were there before and are behind; whether there are others,
	// which leaves found out; whether none can come to it.
	stay           int
	others, looked bool
	shut           bool
}

// replaced says that the record is of another file than the one that had the number before.
func (n *fastInode) replaced() bool { return n.record != nil && live(&n.old) && !same(&n.old, &n.told) }

// fresh says that the record is of a file that was not there before.
func (n *fastInode) fresh() bool { return n.record != nil && (!live(&n.old) || !same(&n.old, &n.told)) }

// strange says that the record is of another file than the one that the names lead to behind the commit.
func (n *fastInode) strange() bool { return n.held && n.fresh() }

// links is how many names lead to it behind the commit.
func (n *fastInode) links() int {
	if n.fresh() {
		return n.come + n.kept
	}
	return n.before - n.gone + n.come
}

// isDir says whether it is a directory, behind the commit.
func (n *fastInode) isDir() bool {
	if n.record == nil {
		return n.old.IsDir()
	}
	return n.told.IsDir()
}

// fits says whether what the commit tells of an inode's names can be.
func (n *fastInode) fits() bool {
	switch {
	case n.record == nil && !live(&n.old):
		return n.come == 0
	case n.replaced() && n.before > n.gone+n.kept, n.links() < 0:
		return false
	case n.isDir():
		return n.links() <= 1
	}
	return n.record == nil || !n.fresh() && n.come+n.gone == 0 || n.links() == int(n.told.Links)
}

// applyFast works out a fast commit.
func (f *FS) applyFast(fc *jbd2.FastCommit, when time.Time) (events []event.Event, err error) {
	_, err = f.playFast(fc, when, func(t *txn) {
		t.locate()
		t.names()
		t.attributes()
		t.remember()
		events = t.events
	})
	return events, err
}

// playFast finds what a fast commit changed and takes it into the model, once it was told. The change is nil if the commit is
// not taken.
func (f *FS) playFast(fc *jbd2.FastCommit, when time.Time, tell func(t *txn)) (*fastChange, error) {
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
	c.play(c.touches(fc))
	c.settle()
	c.resolve()
	c.edits()
	tell(t)
	t.release()
	top.sink()
	return c, t.err()
}

// inode gives what is known of an inode.
func (c *fastChange) inode(ino uint32) *fastInode {
	n := c.inodes[ino]
	if n == nil {
		n = &fastInode{ino: ino}
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

// fastStep is the record of a name.
type fastStep struct {
	touch *fastTouch
	ino   uint32
	comes bool
}

// touches takes the names, in the order in which they were changed.
func (c *fastChange) touches(fc *jbd2.FastCommit) []fastStep {
	sb := c.t.f.sb
	var steps []fastStep
	for i := range fc.Ops {
		o := &fc.Ops[i]
		if o.Tag != jbd2.FCCreat && o.Tag != jbd2.FCLink && o.Tag != jbd2.FCUnlink {
			continue
		}
		if o.Parent == 0 || o.Parent > sb.Inodes || o.Ino == 0 || o.Ino > sb.Inodes || len(o.Name) == 0 {
			c.t.fail(fmt.Errorf("fast commit %d: inode %d in directory %d: %w", fc.TID, o.Ino, o.Parent, mem.ErrInconsistent))
			continue
		}
		d, n := c.inode(o.Parent), c.inode(o.Ino)
		dir := &d.old
		if d.record != nil {
			dir = &d.told
		}
		if !dir.Encrypted() && !validName(o.Name) {
			c.t.fail(fmt.Errorf("fast commit %d: inode %d: name %q: %w", fc.TID, o.Ino, o.Name, mem.ErrInconsistent))
			continue
		}
		p := place{node{o.Parent, c.made[o.Parent] && d.replaced()}, nameOf(dir, Dirent{Name: o.Name})}
		touch := c.names[p]
		if touch == nil {
			touch = &fastTouch{place: p}
			c.names[p] = touch
		}
		steps = append(steps, fastStep{touch, o.Ino, o.Tag != jbd2.FCUnlink})
		if o.Tag == jbd2.FCCreat && n.fresh() && n.told.IsDir() {
			c.made[o.Ino] = true
		}
	}
	return steps
}

// play does to the names what the commit tells: one that leads elsewhere is not taken away, and one that is there is not taken.
func (c *fastChange) play(steps []fastStep) {
	c.before()
	for _, t := range c.names {
		t.now = t.before
	}
	for _, s := range steps {
		switch t := s.touch; {
		case s.comes && t.now == 0:
			t.now = s.ino
		case !s.comes && t.now == s.ino:
			t.now = 0
		}
	}
	for _, t := range c.names {
		switch {
		case t.before != t.now && t.before != 0:
			c.inode(t.before).gone++
		case t.before != 0:
			c.inode(t.before).kept++
		}
		if t.now != t.before && t.now != 0 {
			c.inode(t.now).come++
		}
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

// settle holds back the names of inodes of which what the commit tells cannot be, and what hangs on them.
func (c *fastChange) settle() {
	in, of := map[node][]*fastTouch{}, map[uint32][]*fastTouch{}
	for p, touch := range c.names {
		in[p.dir] = append(in[p.dir], touch)
		of[touch.before] = append(of[touch.before], touch)
		if touch.now != touch.before {
			of[touch.now] = append(of[touch.now], touch)
		}
		if d := c.inodes[p.dir.ino]; !p.dir.fresh && touch.before != 0 && touch.now != 0 {
			d.stay++
		}
	}
	queue := make([]*fastInode, 0, len(c.inodes))
	for _, n := range c.inodes {
		queue = append(queue, n)
	}
	drop := func(t *fastTouch) {
		n, d := c.inodes[t.now], c.inodes[t.dir.ino]
		n.come--
		if t.now = 0; t.before != 0 && !t.dir.fresh {
			d.stay--
		}
		queue = append(queue, n)
	}
	restore := func(t *fastTouch) {
		n, d := c.inodes[t.before], c.inodes[t.dir.ino]
		n.gone, n.kept = n.gone-1, n.kept+1
		if t.now = t.before; !t.dir.fresh {
			d.stay++
		}
		queue = append(queue, d)
	}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		if !n.held && (!n.fits() || c.leaves(n)) {
			n.held = true
			for _, t := range of[n.ino] {
				if t.now == n.ino && t.before != n.ino {
					drop(t)
				}
				if t.before == n.ino && t.now == 0 && (!n.replaced() || n.old.IsDir()) {
					restore(t)
				}
			}
		}
		if n.shut || n.ino == RootInode || n.isDir() && n.links() > 0 && !n.strange() {
			continue
		}
		n.shut = true
		for _, t := range in[node{n.ino, c.made[n.ino] && n.replaced()}] {
			if t.now != 0 && t.now != t.before {
				drop(t)
			}
		}
	}
}

// leaves says whether a directory that goes would leave names.
func (c *fastChange) leaves(n *fastInode) bool {
	if !live(&n.old) || !n.old.IsDir() || n.gone == 0 || !n.replaced() && n.links() > 0 {
		return false
	}
	if !n.looked {
		n.looked = true
		in := n.old
		in.InBody = slices.Clone(in.InBody)
		err := c.t.f.scan(c.t.old, &in, 0, nil, func(name string, _ Dirent) bool {
			n.others = c.names[place{node{ino: n.ino}, name}] == nil
			return !n.others
		})
		c.t.fail(wrapDir(n.ino, err))
	}
	return n.others || n.stay > 0
}

// resolve finds what became of the inodes.
func (c *fastChange) resolve() {
	for ino, n := range c.inodes {
		now, raw, links := n.told, n.record, n.links()
		if raw == nil {
			now, raw = n.old, n.raw
		} else if n.strange() {
			now, raw, links = n.old, n.raw, n.before-n.gone
		}
		if !live(&n.old) && (n.record == nil || n.held) || n.record == nil && n.gone == n.come {
			continue
		}
		links = min(max(links, 0), 1<<16-1)
		if now.IsDir() && links > 0 {
			if links = int(max(now.Links, n.old.Links, 2)); now.Links == 1 { // more than can be counted
				links = 1
			}
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
	for ino := range c.made {
		if n := c.inodes[ino]; !n.held && n.links() > 0 {
			c.top.anew[ino] = true
		}
	}
}

// edits finds the names that went and came.
func (c *fastChange) edits() {
	for p, touch := range c.names {
		d := c.inodes[p.dir.ino]
		if replaced := d.replaced() && !d.held; p.dir.fresh == replaced {
			c.top.set(p.dir.ino, p.name, fastName{is: touch.now, was: touch.base})
		}
		if touch.before == touch.now && (touch.now == 0 || !c.t.isReplaced(touch.now)) {
			continue
		}
		if touch.before != 0 {
			c.t.removed = append(c.t.removed, edit{place: p, ino: touch.before})
		}
		if touch.now != 0 {
			c.t.added = append(c.t.added, edit{place: p, ino: touch.now})
		}
	}
}
