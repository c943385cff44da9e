package ext4

import (
	"bytes"
	"errors"
	"time"

	"vmscope/block"
	"vmscope/event"
)

// superblock tells what a transaction that logs the superblock says of mounting.
func (t *txn) superblock() {
	bs := t.f.sb.BlockSize
	data, ok := t.new.new[uint64(SuperOffset/bs)]
	if !ok {
		return
	}
	for _, e := range t.f.superChange(data[SuperOffset%bs:]) {
		t.emit(e)
	}
}

// superWrite takes a write to the superblock's place.
func (f *FS) superWrite(w *block.Write, off, n int64) ([]event.Event, error) {
	lo, hi := max(off, SuperOffset), min(off+n, SuperOffset+SuperSize)
	if lo >= hi {
		return nil, nil
	}
	raw := bytes.Clone(f.raw)
	if f.doubted != nil {
		copy(raw, f.doubted)
	}
	if w.Data != nil {
		copy(raw[lo-SuperOffset:], w.Data[lo-w.Off:hi-w.Off])
	} else if got, err := f.dev.ReadAt(raw, SuperOffset); got < len(raw) {
		return nil, err
	}
	if now, err := ParseSuper(raw); errors.Is(err, ErrNoSuper) || err == nil && now.UUID != f.sb.UUID {
		return nil, ErrReplaced
	}
	f.store.drop(uint64(off) / uint64(f.sb.BlockSize))
	return f.superHome(raw, w.Time), nil
}

// superHome tells what a superblock at its place says of mounting.
func (f *FS) superHome(raw []byte, when time.Time) []event.Event {
	events := f.superChange(raw)
	for i := range events {
		events[i].Time, events[i].Source = when, event.Home
	}
	return events
}

// superAgain looks once more at a superblock that was not believed: what spoke against it may be over.
func (f *FS) superAgain(when time.Time) []event.Event {
	f.again = false
	if f.doubted == nil {
		return nil
	}
	return f.superHome(f.doubted, when)
}

// superChange compares the superblock with the one believed last. Not believed are
//
//   - until writes have come to Attach, one that says that it was written no later than the one read there: it may be older;
//   - one that is clean while the journal is in use: the guest empties that first (fs/ext4/super.c, ext4_put_super), and so
//     does e2fsck, though both may reach the disk the other way round;
//   - one that is in use, of a mount before the one that is known.
func (f *FS) superChange(raw []byte) []event.Event {
	raw = raw[:SuperSize]
	now, err := ParseSuper(raw)
	if err != nil || now.UUID != f.sb.UUID {
		return nil
	}
	doubted := f.doubted
	f.doubted = nil
	if bytes.Equal(raw, f.raw) {
		return nil
	}
	was, err := ParseSuper(f.raw)
	if err != nil {
		copy(f.raw, raw)
		return nil
	}
	e := event.Event{Path: "/", Target: now.LastMounted, Inode: RootInode}
	next := now.MountCount == was.MountCount+1
	switch before, after := was.inUse(), now.inUse(); {
	case f.early && now.WriteTime <= was.WriteTime,
		before && !after && f.journal != nil && f.journal.stream.Super().Start != 0,
		before && after && now.MountTime < was.MountTime && !next:
		f.doubted = append(doubted[:0], raw...)
		return nil
	case after && (!before || next || now.MountTime > was.MountTime):
		e.Op = event.Mount
	case before && !after:
		e.Op = event.Unmount
	}
	f.early = false
	copy(f.raw, raw)
	if e.Op == "" {
		return nil
	}
	return []event.Event{e}
}

// inUse says whether the file system is mounted to be written to, or was when the guest ended. Each such mount counts
// (ext4_setup_super).
func (s *Super) inUse() bool {
	if s.HasJournal() {
		return s.incompat(IncompatRecover)
	}
	return s.State&stateClean == 0
}

// stateClean in Super.State: the file system was unmounted in order.
const stateClean = 1
