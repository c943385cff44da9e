package ext4

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"vmscope/block"
	"vmscope/event"
	"vmscope/fsinfer/ext4/jbd2"
	"vmscope/mem"
)

// FS follows an ext2, ext3 or ext4 file system by the writes to its volume. With a journal it tells what happened when the
// commit block is written, exactly; without one it gathers writes until a flush or a quiet moment.
//
// It implements fsinfer.Inferencer, Crawler and Batcher. It is not safe for concurrent use.
type FS struct {
	dev block.Device
	sb  *Super

	raw     []byte // the superblock as it was believed last
	doubted []byte // as it was written last, if that is not believed
	early   bool   // writes may be from before Attach
	again   bool   // they are no longer: doubted is to be looked at once more

	tables      []uint64 // first block of each group's inode table
	tableOrder  []uint32 // groups by that block
	tableBlocks uint64

	journal *journal // nil without one
	store   *store
	fast    fastState
	parents parents
	data    dataLog
	late    lateWrites
	home    homeBatch

	reads       map[uint64][]byte // blocks read for the transaction at hand
	work        int               // blocks of directories that were read for it
	most        int               // maxListed, but in tests
	left, right []Dirent
	scratch     []byte
}

// journal is the log inside the file system.
type journal struct {
	where          []block.Range // of the volume, in journal order
	spans          []journalSpan // by block
	stream         *jbd2.Stream
	fast           *jbd2.FCStream
	fcFirst, fcEnd uint32 // journal blocks of the fast-commit area
	last           uint32 // tid that the model holds
	behind         bool   // until a newer one than the first comes, writes may be older than the model

	found    []jbd2.FastCommit // that were there at Attach, and are to be taken over
	foundErr error             // of that, to be told
}

// journalSpan is a run of journal blocks that lie one behind another.
type journalSpan struct {
	start, count uint64
	index        uint32
}

// Attach reads a file system that may be in use: what is at home, and on top of it what the journal holds. Of writes that are
// applied later, transactions that were in the journal already are passed over: writes may be given from any moment before
// Attach was called on. Until they have come to that of Attach, which CaughtUp or a newer transaction says, the device may show
// the past, as that of a block.Tap does, and the model is not to be asked for anything.
func Attach(dev block.Device) (*FS, error) {
	for try := 1; ; try++ {
		f := &FS{dev: dev, most: maxListed}
		err := f.attach()
		if err == nil {
			return f, nil
		}
		if f.store != nil {
			f.store.close()
		}
		if !errors.Is(err, jbd2.ErrChanged) || try == recoverTries {
			return nil, err
		}
	}
}

func (f *FS) attach() error {
	raw := make([]byte, SuperSize)
	if n, err := f.dev.ReadAt(raw, SuperOffset); n < len(raw) {
		return fmt.Errorf("ext4 superblock: %w", err)
	}
	sb, err := ParseSuper(raw)
	if err != nil {
		return err
	}
	if uint64(f.dev.Size())/uint64(sb.BlockSize) < sb.Blocks {
		return fmt.Errorf("ext4: %d blocks of %d bytes on a device of %d bytes: %w", sb.Blocks, sb.BlockSize, f.dev.Size(), mem.ErrInconsistent)
	}
	if err := sb.bounded(); err != nil {
		return err
	}
	f.sb, f.raw, f.early = sb, raw, true
	f.scratch = make([]byte, sb.BlockSize)
	f.store = newStore(sb.BlockSize)
	f.fast = fastState{}
	f.parents = parents{
		perGroup: sb.InodesPerGroup, first: make([][]uint32, sb.Groups), count: make([]uint32, sb.Groups),
		far: map[uint32]uint32{}, more: map[uint32][]uint32{}, read: map[uint32]bool{},
		next: RootInode, total: sb.Inodes, names: nameCache{},
	}
	f.data, f.late, f.home, f.journal = dataLog{}, lateWrites{}, homeBatch{}, nil
	if err := f.readTables(); err != nil {
		return err
	}
	if !sb.HasJournal() {
		return f.gather()
	}
	if sb.JournalInode == 0 {
		return fmt.Errorf("the journal is on another device: %w", errors.ErrUnsupported)
	}
	if err := f.openJournal(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return f.readTables() // the journal may hold newer descriptors
}

// maxGroups bounds what is kept of groups: with blocks of 4 KiB it is 512 TiB.
const maxGroups = 1 << 22

// bounded says whether there are no more groups and inodes than what is kept of each allows.
func (s *Super) bounded() error {
	if s.Groups > maxGroups || uint64(s.Inodes) > s.Blocks*uint64(s.BlockSize/s.InodeSize) {
		return fmt.Errorf("ext4: %d inodes in %d groups: %w", s.Inodes, s.Groups, mem.ErrInconsistent)
	}
	return nil
}

// readTables finds the inode tables.
func (f *FS) readTables() error {
	f.tables = make([]uint64, f.sb.Groups)
	f.tableOrder = make([]uint32, f.sb.Groups)
	f.tableBlocks = f.sb.InodeTableBlocks()
	at, data := ^uint64(0), []byte(nil)
	for g := range f.sb.Groups {
		b, off := f.sb.GroupBlock(g)
		if b != at {
			var err error
			if data, err = f.current(f.scratch, b); err != nil {
				return fmt.Errorf("descriptor of group %d: %w", g, err)
			}
			at = b
		}
		d := f.sb.ParseGroup(data[off:])
		if _, _, err := f.sb.InodePlace(d, 0); err != nil {
			return fmt.Errorf("group %d: %w", g, err)
		}
		f.tables[g], f.tableOrder[g] = d.InodeTable, g
	}
	slices.SortFunc(f.tableOrder, func(a, b uint32) int {
		switch {
		case f.tables[a] < f.tables[b]:
			return -1
		case f.tables[a] > f.tables[b]:
			return 1
		}
		return 0
	})
	return nil
}

// openJournal finds the journal and replays it into the store, as a mount would.
func (f *FS) openJournal() error {
	v := f.before()
	in, err := v.inode(make([]byte, f.sb.BlockSize), f.sb.JournalInode)
	if err != nil {
		return err
	}
	j := &journal{behind: true}
	var next uint64
	err = tolerate(f.sb.Extents(v, &in, func(e Extent) bool {
		if e.Logical != next {
			return false
		}
		next += uint64(e.Len)
		j.spans = append(j.spans, journalSpan{e.Physical, uint64(e.Len), uint32(e.Logical)})
		bs := int64(f.sb.BlockSize)
		j.where = append(j.where, block.Range{Off: int64(e.Physical) * bs, Len: int64(e.Len) * bs})
		return next < 1<<32
	}, nil))
	if err != nil {
		return err
	}
	slices.SortFunc(j.spans, func(a, b journalSpan) int {
		if a.start < b.start {
			return -1
		}
		return 1
	})
	read := func(p []byte, index uint32) error {
		off := int64(index) * int64(f.sb.BlockSize)
		for _, r := range j.where {
			if off < r.Len {
				n, err := f.dev.ReadAt(p, r.Off+off)
				if n == len(p) {
					err = nil
				}
				return err
			}
			off -= r.Len
		}
		return fmt.Errorf("journal block %d: %w", index, mem.ErrInconsistent)
	}
	first := make([]byte, f.sb.BlockSize)
	if err := read(first, 0); err != nil {
		return err
	}
	sb, err := jbd2.ParseSuper(first)
	if err != nil {
		return err
	}
	if err := sb.Check(uint32(f.sb.BlockSize), next); err != nil {
		return err
	}
	last, err := jbd2.Recover(sb, read, func(tx *jbd2.Tx) error {
		for i := range tx.Blocks {
			if tx.Blocks[i].Block < f.sb.Blocks {
				if err := f.store.put(tx.Blocks[i].Block, tx.Blocks[i].Data); err != nil {
					return err
				}
			}
		}
		for _, b := range tx.Revoked {
			f.store.drop(b)
		}
		return nil
	})
	if err != nil && (!errors.Is(err, mem.ErrInconsistent) || errors.Is(err, jbd2.ErrChanged)) {
		return err
	}
	// A log that goes on with what cannot be believed ends there, as it does for a mount.
	if j.stream, err = jbd2.NewStream(sb, read); err != nil {
		return err
	}
	j.stream.Skip(last)
	// What is in the journal and not at home is no more than the journal holds.
	f.store.max = int32(min(2*next, maxSlots))
	j.last = last
	f.journal = j
	return f.openFast(sb, read)
}

// Journal tells where on the volume the journal lies, in its order, and how it is written, for a tap that has to keep what
// transactions overwrite. ok is false without a journal.
func (f *FS) Journal() (format jbd2.Format, where []block.Range, ok bool) {
	if f.journal == nil {
		return jbd2.Format{}, nil, false
	}
	return f.journal.stream.Super().Format(), f.journal.where, true
}

// Last is the transaction up to which the model holds all; 0 without a journal.
func (f *FS) Last() uint32 {
	if f.journal == nil {
		return 0
	}
	return f.journal.last
}

// Super is the superblock as it was at Attach. It must not be changed.
func (f *FS) Super() *Super { return f.sb }

// Close gives back what the model keeps outside of memory.
func (f *FS) Close() error { return f.store.close() }

// Apply implements fsinfer.Inferencer.
func (f *FS) Apply(w block.Write) ([]event.Event, error) {
	if !f.again {
		return f.apply(w)
	}
	first := f.superAgain(w.Time)
	events, err := f.apply(w)
	return append(first, events...), err
}

func (f *FS) apply(w block.Write) ([]event.Event, error) {
	switch w.Op {
	case block.OpFlush:
		return f.flushHome(w.Time)
	case block.OpDiscard:
		if f.journal == nil || !f.journal.behind {
			f.forget(w.Off, w.Len)
		}
		return nil, nil
	case block.OpZeroes:
		return f.zeroes(w)
	case block.OpWrite:
	default:
		return nil, fmt.Errorf("ext4: %v: %w", w.Op, errors.ErrUnsupported)
	}
	bs := int64(f.sb.BlockSize)
	if w.Off < 0 || w.Len < 0 || w.Off > f.dev.Size() || w.Len > f.dev.Size()-w.Off || w.Data != nil && int64(len(w.Data)) != w.Len {
		return nil, fmt.Errorf("write of %d bytes at %#x: %w", w.Len, w.Off, block.ErrOutOfRange)
	}
	var events []event.Event
	var errs []error
	for off, end := w.Off, w.End(); off < end; {
		b := uint64(off / bs)
		n := min(bs-off%bs, end-off)
		if b >= f.sb.Blocks {
			break
		}
		evs, err := f.applyBlock(&w, off, n, b)
		events = append(events, evs...)
		if err != nil && len(errs) < 16 {
			errs = append(errs, err)
		}
		off += n
	}
	return events, errors.Join(errs...)
}

// applyBlock takes the n bytes at off of a write, all in block b.
func (f *FS) applyBlock(w *block.Write, off, n int64, b uint64) ([]event.Event, error) {
	if index, ok := f.journal.at(b); ok {
		return f.journalWrite(w, off, n, index)
	}
	return f.homeWrite(w, off, n, b)
}

// at tells the index of a block of the journal.
func (j *journal) at(b uint64) (index uint32, ok bool) {
	if j == nil {
		return 0, false
	}
	// Journals are made in one piece, but a guest may lie about that.
	i := sort.Search(len(j.spans), func(i int) bool { return j.spans[i].start > b }) - 1
	if i < 0 || b-j.spans[i].start >= j.spans[i].count {
		return 0, false
	}
	return j.spans[i].index + uint32(b-j.spans[i].start), true
}

// journalWrite takes a block of the journal, or a part of one.
func (f *FS) journalWrite(w *block.Write, off, n int64, index uint32) ([]event.Event, error) {
	data := f.piece(w, off, n)
	if data == nil {
		b := uint64(off) / uint64(f.sb.BlockSize)
		// Neither part of a block nor a block without content comes from the guest's journal code: read what lies there.
		data = f.scratch
		if got, err := f.dev.ReadAt(data, int64(b)*int64(f.sb.BlockSize)); got < len(data) {
			return nil, fmt.Errorf("journal block %d: %w", index, err)
		}
	}
	j := f.journal
	if index >= j.fcFirst && index < j.fcEnd {
		return f.fastWrite(index, data, w.Time)
	}
	tx, err := j.stream.Write(index, data)
	if index == 0 {
		j.fastArea()
		if err != nil {
			return nil, err
		}
		var events []event.Event
		if j.recovered() {
			f.early = false
			events, err = f.forgetJournal(w.Time)
		}
		return append(events, f.superAgain(w.Time)...), err
	}
	if tx == nil {
		return nil, err
	}
	events, terr := f.commit(tx, w.Time)
	return events, errors.Join(err, terr)
}

// piece is the whole block at off, nil where the write has only part of it, or no content.
func (f *FS) piece(w *block.Write, off, n int64) []byte {
	if w.Data == nil || n != int64(f.sb.BlockSize) {
		return nil
	}
	return w.Data[off-w.Off : off-w.Off+n]
}

// commit works out a transaction and takes it into the model.
func (f *FS) commit(tx *jbd2.Tx, when time.Time) ([]event.Event, error) {
	f.early = false
	first := f.superAgain(when)
	blocks := make(map[uint64][]byte, len(tx.Blocks))
	var errs []error
	for i := range tx.Blocks {
		if b := tx.Blocks[i].Block; b < f.sb.Blocks {
			blocks[b] = tx.Blocks[i].Data
		} else if len(errs) < 16 {
			errs = append(errs, fmt.Errorf("transaction %d logs block %d of %d: %w", tx.TID, b, f.sb.Blocks, mem.ErrInconsistent))
		}
	}
	t := f.newTxn(blocks, uint64(tx.TID), when, event.Journal)
	t.errs = errs
	events, err := t.run()
	for _, b := range tx.Revoked {
		if _, logged := blocks[b]; !logged {
			f.store.drop(b)
		}
	}
	f.fast = fastState{}
	f.journal.fast.Committed(tx.TID)
	f.journal.last, f.journal.behind = tx.TID, false
	f.data.reset()
	return append(first, events...), err
}

// homeWrite takes a block that is written to its place.
func (f *FS) homeWrite(w *block.Write, off, n int64, b uint64) ([]event.Event, error) {
	if b*uint64(f.sb.BlockSize) < SuperOffset+SuperSize && (b+1)*uint64(f.sb.BlockSize) > SuperOffset {
		if evs, err := f.superWrite(w, off, n); err != nil || evs != nil {
			return evs, err
		}
	}
	if f.journal == nil {
		return nil, f.homeChange(w, off, n, b)
	}
	if !f.store.has(b) {
		f.data.add(b)
		return nil, nil
	}
	if !f.journal.behind {
		f.store.drop(b)
	} // else it may be an older copy, even one that is alike, with others behind it: to keep what is held does no harm
	return nil, nil
}

// zeroes takes a request to zero bytes: a write of zeros to what is known, nothing to the rest.
func (f *FS) zeroes(w block.Write) ([]event.Event, error) {
	bs := int64(f.sb.BlockSize)
	if w.Off < 0 || w.Len < 0 || w.Off > f.dev.Size() || w.Len > f.dev.Size()-w.Off {
		return nil, fmt.Errorf("zeroes for %d bytes at %#x: %w", w.Len, w.Off, block.ErrOutOfRange)
	}
	if w.Len == 0 {
		return nil, nil
	}
	first, end := uint64(w.Off/bs), min(uint64((w.End()+bs-1)/bs), f.sb.Blocks)
	var known []uint64
	if f.journal != nil {
		for _, s := range f.journal.spans {
			// A guest zeroes a journal when nothing in it counts: a part is enough to end what is under way.
			for b := max(s.start, first); b < min(s.start+s.count, end) && len(known) < 1<<14; b++ {
				known = append(known, b)
			}
		}
	}
	for b := range f.store.slots {
		if b >= first && b < end {
			known = append(known, b)
		}
	}
	for b := range f.home.owner {
		if b >= first && b < end {
			known = append(known, b)
		}
	}
	slices.Sort(known)
	var events []event.Event
	var errs []error
	for _, b := range slices.Compact(known) {
		lo, hi := max(w.Off, int64(b)*bs), min(w.End(), int64(b+1)*bs)
		z := block.Write{Seq: w.Seq, Time: w.Time, Op: block.OpWrite, Off: lo, Len: hi - lo, Data: zeroBlock[:hi-lo]}
		evs, err := f.applyBlock(&z, lo, hi-lo, b)
		events = append(events, evs...)
		if err != nil && len(errs) < 16 {
			errs = append(errs, err)
		}
	}
	return events, errors.Join(errs...)
}

var zeroBlock [1 << 16]byte

// forget drops blocks whose content nobody wants any more.
func (f *FS) forget(off, n int64) {
	bs := int64(f.sb.BlockSize)
	if f.store.empty() || n < bs || off < 0 {
		return
	}
	first, end := uint64((off+bs-1)/bs), uint64((off+n)/bs)
	if end-first > uint64(len(f.store.slots)) {
		for b := range f.store.slots {
			if b >= first && b < end {
				f.store.drop(b)
			}
		}
		return
	}
	for b := first; b < end; b++ {
		f.store.drop(b)
	}
}

// CrawlAll crawls to the end.
func (f *FS) CrawlAll(ctx context.Context) error {
	var errs []error
	for {
		done, total, err := f.Crawl(ctx, 1<<14)
		if err != nil {
			errs = append(errs, err)
		}
		if done >= total || ctx.Err() != nil || len(errs) > 16 {
			return errors.Join(errs...)
		}
	}
}
