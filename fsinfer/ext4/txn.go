package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmscope/block"
	"vmscope/event"
)

// txn works out what one atomic change of metadata means: a committed transaction of the journal, a fast commit, or a
// batch of writes to home places. It lives for one call of Apply.
type txn struct {
	f      *FS
	old    *view
	new    *view
	tid    uint64
	time   time.Time
	source event.Source
	logged []uint64 // the blocks of the change, ascending

	inodes  changeSet                // inodes whose bytes changed
	changed []*change                // the same, in the order in which they were found
	reuse   bool                     // numbers of some of them went to other files
	ranges  map[uint32][]block.Range // bytes that a fast commit tells as mapped anew
	named   map[uint32]bool          // without a journal: files whose first name came
	anew    map[uint32]bool          // without a journal: numbers that went, or did not, from one file to another
	removed []edit
	added   []edit
	sum     int // of names that were listed; see maxListed

	errs    []error
	events  []event.Event
	order   *ordering
	arena   []*changeChunk // of changes
	free    []change       // of the last of them
	attrs   []event.Attr   // to use
	scratch []byte         // of states
	room    *workspace
}

// change is an inode before and after. Either may not be live.
type change struct {
	ino      uint32
	old, new Inode

	// Where the file lies, and which of its bytes were written; found when looked is set.
	looked bool
	spans  []span
	ranges []block.Range
}

// replaced says that the number went to another file within the change.
func (c *change) replaced() bool { return live(&c.old) && live(&c.new) && !same(&c.old, &c.new) }

// stays says that one file was there before and is there after.
func (c *change) stays() bool { return live(&c.old) && live(&c.new) && same(&c.old, &c.new) }

// edit is a name that went or came.
type edit struct {
	place
	ino  uint32
	sole bool // it went, and it is known that no other file got it
}

// node is a directory. fresh tells the second directory of a number that was freed and given away again within the change.
type node struct {
	ino   uint32
	fresh bool
}

// place is where a name stands.
type place struct {
	dir  node
	name string
}

// newTxn prepares a change that sets the given blocks.
func (f *FS) newTxn(blocks map[uint64][]byte, tid uint64, when time.Time, source event.Source) *txn {
	t := &txn{f: f, tid: tid, time: when, source: source, named: map[uint32]bool{}}
	t.old = f.before()
	if f.journal != nil {
		t.fail(f.journal.foundErr)
		f.journal.foundErr = nil
	}
	f.work = 0
	t.new = &view{fs: f, new: blocks}
	t.room = workspaces.Get().(*workspace)
	t.changed, t.removed, t.added = t.room.changed, t.room.removed, t.room.added
	t.logged = make([]uint64, 0, len(blocks))
	t.inodes.runs = make(map[uint32]*changeRun, min(len(blocks), 1<<12))
	for b := range blocks {
		t.logged = append(t.logged, b)
	}
	slices.Sort(t.logged)
	return t
}

// note takes up a changed inode.
func (t *txn) note(c *change) {
	t.inodes.put(c)
	t.changed = append(t.changed, c)
}

func (t *txn) fail(err error) {
	if err != nil && len(t.errs) < maxErrors {
		t.errs = append(t.errs, err)
	}
}

// maxErrors bounds what one change says of what is wrong.
const maxErrors = 16

// run works the change out. The events are in an order in which each is possible. Where a part could not be read the
// rest is told and the error says what is missing.
func (t *txn) run() ([]event.Event, error) {
	t.f.reads = map[uint64][]byte{}
	defer func() { t.f.reads = nil }()
	t.superblock()
	dirs := t.collect()
	for _, d := range dirs {
		t.fail(t.diffDir(d))
	}
	t.late()
	t.locate()
	t.names()
	t.attributes()
	t.remember()
	t.finish()
	return t.events, t.err()
}

// collect compares the inode tables and gives the directories that may have changed: those that are gone or new, and those
// whose inode lies in a logged block. (A change of a directory logs its inode, even where no byte of it differs: the clock of
// the time stamps is coarse. fs/ext4/namei.c, ext4_add_entry and ext4_delete_entry.)
func (t *txn) collect() []*change {
	f := t.f
	var dirs []*change
	size := f.sb.InodeSize
	scratch := make([]byte, f.sb.BlockSize)
	for _, b := range t.logged {
		group, first, ok := f.tableBlock(b)
		if !ok {
			continue
		}
		data := t.new.new[b]
		before, err := f.current(scratch, b)
		if err != nil {
			t.fail(fmt.Errorf("inode table: %w", err))
			continue
		}
		kept := false
		// What the kernel never wrote is garbage: it makes such a block of zeroes when it first uses it.
		unused := t.unused(group)
		for off := 0; off+size <= len(data); off += size {
			index := first + uint32(off/size)
			ino := group*f.sb.InodesPerGroup + index + 1
			if ino > f.sb.Inodes || index >= f.sb.InodesPerGroup {
				break
			}
			if ino < f.sb.FirstInode && ino != RootInode {
				continue
			}
			was, is := before[off:off+size], data[off:off+size]
			if raw := t.old.fc.inode(ino); raw != nil {
				was = raw
			} else if index >= unused {
				was = zeroInode[:size]
			}
			equal := bytes.Equal(was, is)
			if equal && binary.LittleEndian.Uint16(is)&sIFMT != sIFDIR {
				continue
			}
			kept = kept || len(before) > 0 && len(scratch) > 0 && &before[0] == &scratch[0]
			c, err := t.parse(ino, was, is)
			if err != nil {
				t.fail(err)
				continue
			}
			if !equal {
				t.note(c)
				t.reuse = t.reuse || c.replaced()
			}
			if live(&c.old) && c.old.IsDir() || live(&c.new) && c.new.IsDir() {
				dirs = append(dirs, c)
			}
		}
		if kept { // the change refers to it
			scratch = make([]byte, f.sb.BlockSize)
		}
	}
	return t.collectFast(dirs)
}

// zeroInode stands for an inode that was never written. An inode is at most a block.
var zeroInode [1 << 16]byte

func (t *txn) parse(ino uint32, was, is []byte) (*change, error) {
	c := t.newChange()
	c.ino = ino
	if err := t.f.sb.parseInode(&c.old, ino, was); err != nil {
		return nil, err
	}
	err := t.f.sb.parseInode(&c.new, ino, is)
	if bytes.Equal(c.old.InBody, c.new.InBody) {
		c.new.InBody = c.old.InBody // which to compare again takes no time
	}
	return c, err
}

// changeChunk is room for changes. A change is half a kilobyte, and a transaction may have many thousands: what one was worked
// out in serves the next.
type changeChunk [56]change

var changeChunks = sync.Pool{New: func() any { return new(changeChunk) }}

// newChange gives room for a change, until release is called.
func (t *txn) newChange() *change {
	if len(t.free) == 0 {
		chunk := changeChunks.Get().(*changeChunk)
		t.arena, t.free = append(t.arena, chunk), chunk[:]
	}
	c := &t.free[0]
	t.free = t.free[1:]
	*c = change{}
	return c
}

// unused gives the index of a group's first inode that was never written.
func (t *txn) unused(group uint32) uint32 {
	n := t.f.sb.InodesPerGroup
	if !t.f.sb.hasGroupFlags() {
		return n
	}
	b, off := t.f.sb.GroupBlock(group)
	data, err := t.f.current(make([]byte, t.f.sb.BlockSize), b)
	if err != nil {
		t.fail(err)
		return n
	}
	g := t.f.sb.ParseGroup(data[off:])
	if g.Flags&GroupInodeUninit != 0 {
		return 0
	}
	return n - min(n, g.ItableUnused)
}

// tableBlock tells whether a block is of an inode table, of which group, and the index of its first inode there.
func (f *FS) tableBlock(b uint64) (group, first uint32, ok bool) {
	i, found := slices.BinarySearchFunc(f.tableOrder, b, func(g uint32, b uint64) int {
		switch start := f.tables[g]; {
		case start < b:
			return -1
		case start > b:
			return 1
		}
		return 0
	})
	if !found {
		i--
	}
	if i < 0 {
		return 0, 0, false
	}
	group = f.tableOrder[i]
	n := b - f.tables[group]
	if n >= f.tableBlocks {
		return 0, 0, false
	}
	return group, uint32(n) * uint32(f.sb.BlockSize/f.sb.InodeSize), true
}

// finish moves the change into the model.
func (t *txn) finish() {
	for b, data := range t.new.new {
		t.fail(t.f.store.put(b, data))
	}
	t.release()
}

// release gives back what the change was worked out in, all but its events and errors.
func (t *txn) release() {
	for _, chunk := range t.arena {
		changeChunks.Put(chunk)
	}
	t.room.changed, t.room.removed, t.room.added = t.changed, t.removed, t.added
	t.room.release()
	t.arena, t.free, t.inodes, t.changed, t.removed, t.added, t.order, t.room = nil, nil, changeSet{}, nil, nil, nil, nil, nil
}

// emit appends an event, with what all events of the change share.
func (t *txn) emit(e event.Event) {
	e.Time, e.TID, e.Source = t.time, t.tid, t.source
	t.events = append(t.events, e)
}

// event makes one more event, of what happened to an inode. It may be filled in until the next comes.
func (t *txn) event(op event.Op, in *Inode) *event.Event {
	t.events = append(t.events, event.Event{Time: t.time, TID: t.tid, Source: t.source})
	e := &t.events[len(t.events)-1]
	e.Op, e.Inode, e.Generation, e.Attr = op, uint64(in.Number), in.Generation, t.attr(in)
	return e
}

// attr is what an event tells of an inode.
func (t *txn) attr(in *Inode) *event.Attr {
	if len(t.attrs) == 0 {
		t.attrs = make([]event.Attr, min(1+len(t.events), 64))
	}
	a := &t.attrs[0]
	t.attrs = t.attrs[1:]
	*a = in.Attr()
	return a
}
