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
	owner   map[uint64]uint32   // directory blocks, and the directories that they belong to
	spans   map[uint32][]span   // the same by directory
	files   map[uint32]identity // what the names of the tree lead to
	unclear map[uint32]bool     // directories to look at again
	held    map[place]time.Time // names that left the disk and are kept for a while
	spare   [][]byte
}

// identity tells the files apart that have a number one after another.
type identity struct {
	generation uint32
	kind       uint16 // of Inode.Mode
}

func identityOf(in *Inode) identity { return identity{in.Generation, in.Mode & sIFMT} }

// maxBatch bounds the blocks of a batch, in bytes.
const maxBatch = 64 << 20

// gather reads the whole tree.
func (f *FS) gather() error {
	h := &f.home
	v := f.before()
	buf := make([]byte, f.sb.BlockSize)
	for g := range f.sb.Groups {
		used := (uint64(f.usedInodes(v, buf, g))*uint64(f.sb.InodeSize) + uint64(f.sb.BlockSize) - 1) / uint64(f.sb.BlockSize)
		for i := range min(used, f.tableBlocks) {
			data, err := f.current(buf, f.tables[g]+i)
			if err == nil && !bytes.Equal(data, zeroBlock[:len(data)]) {
				err = f.store.put(f.tables[g]+i, data)
			}
			if err != nil {
				return fmt.Errorf("inode table of group %d: %w", g, err)
			}
		}
	}
	*h = homeBatch{
		blocks: map[uint64][]byte{}, tree: map[uint32]map[string]uint32{}, owner: map[uint64]uint32{}, spans: map[uint32][]span{},
		files: map[uint32]identity{}, unclear: map[uint32]bool{}, held: map[place]time.Time{},
	}
	// Building the tree is a change that makes all of it, of which the events are told to nobody.
	f.parents.next = f.parents.total + 1
	h.unclear[RootInode] = true
	t := f.newTxn(nil, 0, time.Time{}, event.Home)
	f.reads = map[uint64][]byte{}
	defer func() { f.reads = nil }()
	t.homeDiff(nil)
	t.names()
	return nil
}

// homeList lists a directory as far as its names lead to inodes that are there; clear is false if some do not, or if it
// could not be read to its end.
func (f *FS) homeList(v *view, in *Inode) (names map[string]uint32, clear bool) {
	clear = true
	names = map[string]uint32{}
	buf := make([]byte, f.sb.BlockSize)
	err := f.scan(v, in, 0, nil, func(name string, d Dirent) bool {
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

// own notes which blocks are a directory's: those of in, or none.
func (f *FS) own(v *view, dir uint32, in *Inode) {
	h := &f.home
	for _, s := range h.spans[dir] {
		for b := s.start; b < s.end(); b++ {
			if h.owner[b] == dir {
				delete(h.owner, b)
			}
		}
	}
	delete(h.spans, dir)
	if in == nil {
		return
	}
	var all []span
	spans, _ := f.dirSpans(v, in, func(b uint64) { all = append(all, span{b, 1}) })
	all = append(all, spans...)
	for _, s := range all {
		for b := s.start; b < s.end(); b++ {
			h.owner[b] = dir
		}
	}
	h.spans[dir] = all
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
	if f.again {
		if events := f.superAgain(now); events != nil {
			return events, nil // the rest waits for the next quiet moment
		}
	}
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
	for _, b := range t.logged {
		if _, _, table := f.tableBlock(b); !table && h.owner[b] == 0 {
			f.data.add(b) // a directory's no longer
		}
	}
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

// learnHome takes over into the tree what an operation did.
func (f *FS) learnHome(o *op) {
	h := &f.home
	if h.tree == nil {
		return
	}
	if o.kind == opRemove || o.kind == opRename {
		if names := h.tree[o.from.dir.ino]; names[o.from.name] == o.ino {
			delete(names, o.from.name)
		}
	}
	if o.kind == opRemove {
		if o.in.IsDir() && h.files[o.ino] == identityOf(o.in) { // else the next one of this number is there already
			delete(h.tree, o.ino)
		}
		if f.parents.of(o.ino) == 0 {
			delete(h.files, o.ino)
		}
		return
	}
	h.files[o.ino] = identityOf(o.in)
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
