package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"vmscope/block"
	"vmscope/event"
)

// homeBatch follows a file system without a journal. What reaches the disk between two flushes has no order that means
// anything, and no moment at which it agrees with itself: a name may be there before its inode, or go after it. So the tree
// that was told is held here with its names, and what the disk says is compared with it again and again, until both agree.
type homeBatch struct {
	blocks  map[uint64][]byte // inode tables and directories, written since the last look
	tree    map[uint32]map[string]uint32
	owner   map[uint64]uint32    // directory blocks, and the directories that they belong to
	unclear map[uint32]time.Time // directories to look at again, since when they are unclear
	spare   [][]byte
}

// patience is how long a name that left is held while its inode lives on: it may turn up elsewhere.
const patience = 5 * time.Second

// maxBatch bounds the blocks of a batch, in bytes.
const maxBatch = 64 << 20

// gather reads the whole tree.
func (f *FS) gather() error {
	h := &f.home
	h.blocks, h.tree, h.owner, h.unclear = map[uint64][]byte{}, map[uint32]map[string]uint32{}, map[uint64]uint32{}, map[uint32]time.Time{}
	v := f.before()
	buf := make([]byte, f.sb.BlockSize)
	for g := range f.sb.Groups {
		used := (uint64(f.usedInodes(v, buf, g))*uint64(f.sb.InodeSize) + uint64(f.sb.BlockSize) - 1) / uint64(f.sb.BlockSize)
		for i := range min(used, f.tableBlocks) {
			data, err := f.current(buf, f.tables[g]+i)
			if err == nil {
				err = f.store.put(f.tables[g]+i, data)
			}
			if err != nil {
				return fmt.Errorf("inode table of group %d: %w", g, err)
			}
		}
	}
	for ino := uint32(RootInode); ino <= f.sb.Inodes; ino++ {
		if ino != RootInode && ino < f.sb.FirstInode {
			continue
		}
		g, index := f.sb.InodeGroup(ino)
		if index == 0 || ino == RootInode {
			if f.usedInodes(v, buf, g) == 0 {
				ino = (g + 1) * f.sb.InodesPerGroup
				continue
			}
		}
		if !f.store.has(f.tables[g] + uint64(index)*uint64(f.sb.InodeSize)/uint64(f.sb.BlockSize)) {
			ino = (g + 1) * f.sb.InodesPerGroup
			continue
		}
		in, err := v.inode(buf, ino)
		if err != nil || !live(&in) || !in.IsDir() {
			continue
		}
		in.InBody = bytes.Clone(in.InBody)
		names, clear := f.homeList(v, &in)
		h.tree[ino] = names
		for _, child := range names {
			f.parents.add(child, ino)
		}
		f.own(v, &in)
		if !clear {
			h.unclear[ino] = time.Time{}
		}
	}
	f.parents.next = f.parents.total + 1
	return nil
}

// homeList lists a directory as far as its names lead to inodes that are there; clear is false if some do not, or if it
// could not be read to its end.
func (f *FS) homeList(v *view, in *Inode) (names map[string]uint32, clear bool) {
	clear = true
	names = map[string]uint32{}
	buf := make([]byte, f.sb.BlockSize)
	err := f.scan(v, in, func(name string, d Dirent) bool {
		if d.Ino > f.sb.Inodes || d.Ino < f.sb.FirstInode {
			clear = false
			return true
		}
		child, err := v.inode(buf, d.Ino)
		kind, told := d.Kind()
		real, _ := child.Kind()
		if err != nil || !live(&child) || told && kind != real {
			clear = false
			return true
		}
		if target, err := f.sb.Target(v, &child); child.IsSymlink() && (err != nil || int64(len(target)) != child.Size && !child.Encrypted()) {
			clear = false // its target is not there yet
			return true
		}
		names[name] = d.Ino
		return true
	})
	return names, clear && err == nil
}

// own notes which blocks are a directory's.
func (f *FS) own(v *view, in *Inode) {
	spans, err := f.dirSpans(v, in, func(b uint64) { f.home.owner[b] = in.Number })
	if err != nil {
		return
	}
	for _, s := range spans {
		for b := s.start; b < s.end(); b++ {
			f.home.owner[b] = in.Number
		}
	}
}

// homeChange takes a write to a block's place.
func (f *FS) homeChange(w *block.Write, off, n int64, b uint64) error {
	h := &f.home
	_, _, table := f.tableBlock(b)
	if _, dir := h.owner[b]; !table && !dir {
		f.data.add(b)
		return nil
	}
	held := h.blocks[b]
	if held == nil {
		if len(h.blocks)*f.sb.BlockSize >= maxBatch {
			return &block.LostError{Seq: w.Seq, Reason: "too much metadata was written between two flushes"}
		}
		if k := len(h.spare); k > 0 {
			held, h.spare = h.spare[k-1], h.spare[:k-1]
		} else {
			held = make([]byte, f.sb.BlockSize)
		}
		if n < int64(len(held)) {
			data, err := f.current(f.scratch, b)
			if err != nil {
				return err
			}
			copy(held, data)
		}
		h.blocks[b] = held
	}
	if w.Data == nil {
		_, err := f.dev.ReadAt(held, int64(b)*int64(f.sb.BlockSize))
		return err
	}
	copy(held[off%int64(f.sb.BlockSize):], w.Data[off-w.Off:off-w.Off+n])
	return nil
}

// Quiet implements fsinfer.Batcher. With a journal, it tells of content that was written over in place behind the last
// transaction.
func (f *FS) Quiet(now time.Time) ([]event.Event, error) {
	if f.journal == nil {
		return f.flushHome(now)
	}
	if len(f.data.spans) == 0 || len(f.late.files) == 0 {
		return nil, nil
	}
	t := f.newTxn(nil, uint64(f.journal.last), now, event.Journal)
	t.new.fc = &f.fast
	return t.run()
}

// flushHome looks at what was written since it was called last.
func (f *FS) flushHome(now time.Time) ([]event.Event, error) {
	h := &f.home
	if f.journal != nil || len(h.blocks) == 0 && len(h.unclear) == 0 && len(f.data.spans) == 0 {
		return nil, nil
	}
	t := f.newTxn(h.blocks, 0, now, event.Home)
	f.reads = map[uint64][]byte{}
	defer func() { f.reads = nil }()
	t.homeDiff(t.collect())
	t.late()
	t.names()
	t.attributes()
	t.remember()
	t.finish()
	for b, data := range h.blocks {
		if _, _, table := f.tableBlock(b); !table {
			f.store.drop(b) // of a directory only the names are held
		}
		h.spare = append(h.spare, data)
		delete(h.blocks, b)
	}
	f.data.reset()
	return t.events, t.err()
}

// homeDiff compares what the disk says of directories with what was told.
func (t *txn) homeDiff(candidates []*change) {
	f, h := t.f, &t.f.home
	look := map[uint32]bool{}
	for _, c := range candidates {
		look[c.ino] = true
	}
	for _, b := range t.logged {
		if d, ok := h.owner[b]; ok {
			look[d] = true
		}
	}
	for d := range h.unclear {
		look[d] = true
	}
	// Names depend on what became of their inodes.
	for ino, c := range t.inodes {
		if live(&c.old) == live(&c.new) && !c.replaced() {
			continue
		}
		if p := f.parents.of(ino); p != 0 {
			look[p] = true
		}
		for _, p := range f.parents.more[ino] {
			look[p] = true
		}
	}
	now := map[uint32]map[string]uint32{}
	buf := make([]byte, f.sb.BlockSize)
	for d := range look {
		in, err := t.new.inode(buf, d)
		if err != nil || !live(&in) || !in.IsDir() {
			now[d] = nil
			delete(h.unclear, d)
			continue
		}
		in.InBody = bytes.Clone(in.InBody)
		names, clear := f.homeList(t.new, &in)
		now[d] = names
		f.own(t.new, &in)
		t.mark(d, clear)
	}
	var gone, come []edit
	for d, is := range now {
		was, known := h.tree[d]
		fresh := false
		if c := t.inodes[d]; c != nil && known && c.replaced() {
			fresh = c.new.IsDir()
		}
		for name, ino := range was {
			if other, ok := is[name]; !ok || other != ino || fresh || t.isReplaced(ino) {
				gone = append(gone, edit{place{node{ino: d}, name}, ino})
			}
		}
		for name, ino := range is {
			if other, ok := was[name]; !ok || other != ino || fresh || t.isReplaced(ino) {
				come = append(come, edit{place{node{d, fresh}, name}, ino})
			}
		}
	}
	t.reconcile(now, gone, come)
}

// mark notes whether a directory is to be looked at again.
func (t *txn) mark(d uint32, clear bool) {
	h := &t.f.home
	if clear {
		delete(h.unclear, d)
	} else if _, ok := h.unclear[d]; !ok {
		h.unclear[d] = t.time
	}
}

func (t *txn) isReplaced(ino uint32) bool {
	c := t.inodes[ino]
	return c != nil && c.replaced()
}

// reconcile drops names that cannot be right yet, and holds those back that may turn up elsewhere.
func (t *txn) reconcile(now map[uint32]map[string]uint32, gone, come []edit) {
	f, h := t.f, &t.f.home
	coming := map[uint32]bool{}
	taken := map[place]bool{}
	for _, e := range come {
		_, c, err := t.states(e.ino)
		if err != nil || !live(c) {
			continue
		}
		if c.IsDir() && !t.isReplaced(e.ino) {
			if at := f.parents.of(e.ino); at != 0 {
				// A directory has one name: the one in the directory that it calls its parent.
				leaves := false
				for _, g := range gone {
					leaves = leaves || g.ino == e.ino
				}
				if up, err := f.dotdot(t.new, e.ino); !leaves && (err != nil || up != e.dir.ino || at == e.dir.ino) {
					t.mark(e.dir.ino, false)
					continue
				}
			} else if coming[e.ino] {
				t.mark(e.dir.ino, false)
				continue
			}
		}
		if _, known := h.tree[e.dir.ino]; !known && !t.appears(e.dir.ino) && e.dir.ino != RootInode {
			t.mark(e.dir.ino, false) // in a directory that nothing names yet
			continue
		}
		coming[e.ino] = true
		taken[e.place] = true
		t.added = append(t.added, e)
	}
	for _, e := range gone {
		_, c, err := t.states(e.ino)
		since, waits := h.unclear[e.dir.ino]
		if err == nil && live(c) && !t.isReplaced(e.ino) && !coming[e.ino] && now[e.dir.ino] != nil && !taken[place{node{ino: e.dir.ino}, e.name}] &&
			(c.IsDir() || int(c.Links) > len(f.parents.more[e.ino])) && (!waits || t.time.Sub(since) < patience) {
			t.mark(e.dir.ino, false)
			continue
		}
		t.removed = append(t.removed, e)
	}
	// What comes into a directory that itself does not come has to wait.
	for again := true; again; {
		again = false
		for i := 0; i < len(t.added); i++ {
			e := t.added[i]
			if _, known := h.tree[e.dir.ino]; known && !e.dir.fresh || e.dir.ino == RootInode || t.comes(e.dir.ino) {
				continue
			}
			t.added = append(t.added[:i], t.added[i+1:]...)
			t.mark(e.dir.ino, false)
			again = true
			i--
		}
	}
}

// appears says whether a directory is new to the tree.
func (t *txn) appears(ino uint32) bool {
	_, c, err := t.states(ino)
	return err == nil && live(c) && c.IsDir()
}

// comes says whether a name is added for an inode.
func (t *txn) comes(ino uint32) bool {
	for _, e := range t.added {
		if e.ino == ino {
			return true
		}
	}
	return false
}

// learnHome takes over into the tree what an operation did.
func (h *homeBatch) learn(o *op) {
	if h.tree == nil {
		return
	}
	if o.kind == opRemove || o.kind == opRename {
		if names := h.tree[o.from.dir.ino]; names[o.from.name] == o.ino {
			delete(names, o.from.name)
		}
	}
	if o.kind == opRemove {
		if o.in.IsDir() {
			delete(h.tree, o.ino)
		}
		return
	}
	if h.tree[o.to.dir.ino] == nil {
		h.tree[o.to.dir.ino] = map[string]uint32{}
	}
	h.tree[o.to.dir.ino][o.to.name] = o.ino
	if o.kind == opCreate && o.in.IsDir() && h.tree[o.ino] == nil {
		h.tree[o.ino] = map[string]uint32{}
	}
}

// nameOf finds the name that a directory was told to have for an inode.
func (h *homeBatch) nameOf(dir, ino uint32) (string, bool) {
	for name, i := range h.tree[dir] {
		if i == ino {
			return name, true
		}
	}
	return "", false
}

// err joins what went wrong.
func (t *txn) err() error { return errors.Join(t.errs...) }
