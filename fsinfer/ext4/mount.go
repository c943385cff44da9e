package ext4

import (
	"bytes"
	"errors"

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
	raw := bytes.Clone(f.raw)
	lo, hi := max(off, SuperOffset), min(off+n, SuperOffset+SuperSize)
	if lo >= hi {
		return nil, nil
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
	events := f.superChange(raw)
	for i := range events {
		events[i].Time, events[i].Source = w.Time, event.Home
	}
	return events, nil
}

// superChange compares the superblock with the one seen last.
func (f *FS) superChange(raw []byte) []event.Event {
	raw = raw[:SuperSize]
	now, err := ParseSuper(raw)
	if err != nil || now.UUID != f.sb.UUID || bytes.Equal(raw, f.raw) {
		return nil
	}
	was, err := ParseSuper(f.raw)
	copy(f.raw, raw)
	if err != nil {
		return nil
	}
	inUse := func(s *Super) bool {
		if s.HasJournal() {
			return s.incompat(IncompatRecover)
		}
		return s.State&stateClean == 0
	}
	e := event.Event{Path: "/", Target: now.LastMounted, Inode: RootInode}
	switch {
	case now.MountTime != was.MountTime || now.MountCount != was.MountCount || inUse(now) && !inUse(was):
		e.Op = event.Mount
		if inUse(was) && now.MountTime == was.MountTime && now.MountCount == was.MountCount {
			return nil
		}
	case inUse(was) && !inUse(now):
		e.Op = event.Unmount
	default:
		return nil
	}
	return []event.Event{e}
}

// stateClean in Super.State: the file system was unmounted in order.
const stateClean = 1
