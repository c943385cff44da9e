package ext4

import (
	"bytes"
	"slices"
)

// lateWrites remembers where the files lie that changed lately. Content that is written over in place is bound to no
// transaction: it may reach the disk long after the one that logged the inode's new times, and there may be none behind it.
type lateWrites struct {
	files map[uint32]*lateFile
	order []uint32 // files as they came; some may be gone from the map, or have come anew
	spans int
	turn  uint64
}

type lateFile struct {
	generation uint32
	turn       uint64
	spans      []span // ascending
}

// What is remembered: a few hundred kilobytes.
const (
	maxLateFiles = 2048
	maxLateSpans = 8192
	maxFileSpans = 256
)

func (l *lateWrites) forget(ino uint32) {
	if f := l.files[ino]; f != nil {
		l.spans -= len(f.spans)
		delete(l.files, ino)
	}
}

// put remembers a file, the latest of all.
func (l *lateWrites) put(ino, generation uint32, spans []span) {
	l.forget(ino)
	if len(spans) == 0 || len(spans) > maxFileSpans {
		return
	}
	if l.files == nil {
		l.files = map[uint32]*lateFile{}
	}
	for len(l.files) >= maxLateFiles || l.spans+len(spans) > maxLateSpans {
		l.forget(l.order[0])
		l.order = l.order[1:]
	}
	l.turn++
	l.files[ino] = &lateFile{generation, l.turn, spans}
	l.spans += len(spans)
	if len(l.order) >= 2*maxLateFiles {
		l.compact()
	}
	l.order = append(l.order, ino)
}

// compact leaves each file once in the order in which they go.
func (l *lateWrites) compact() {
	order := make([]uint32, 0, len(l.files)+1)
	for ino := range l.files {
		order = append(order, ino)
	}
	slices.SortFunc(order, func(a, b uint32) int {
		if l.files[a].turn < l.files[b].turn {
			return -1
		}
		return 1
	})
	l.order = order
}

// hit says whether one of a file's blocks is among those written since the last transaction, or logged.
func (f *lateFile) hit(d *dataLog, logged []uint64) bool {
	for _, s := range f.spans {
		if len(cutFirst(d.spans, s.start, s.count)) > 0 {
			return true
		}
		if i, _ := slices.BinarySearch(logged, s.start); i < len(logged) && logged[i] < s.end() {
			return true
		}
	}
	return false
}

// late adds to the change the files that it does not log, and whose content changed nevertheless.
func (t *txn) late() {
	f := t.f
	if len(f.late.files) == 0 {
		return
	}
	f.data.sort()
	if len(f.data.spans) == 0 && len(t.logged) == 0 {
		return
	}
	scratch := make([]byte, f.sb.BlockSize)
	for ino, file := range f.late.files {
		if t.inodes.of(ino) != nil || !file.hit(&f.data, t.logged) {
			continue
		}
		in, err := t.new.inode(scratch, ino)
		if err != nil || !live(&in) || !in.IsRegular() || in.Generation != file.generation {
			f.late.forget(ino)
			continue
		}
		in.InBody = bytes.Clone(in.InBody)
		t.note(&change{ino: ino, old: in, new: in})
	}
}

// remember takes note of where the files of the change lie now.
func (t *txn) remember() {
	for _, c := range t.changed {
		ino := c.ino
		switch {
		case !live(&c.new) || !c.new.IsRegular():
			t.f.late.forget(ino)
		case !c.stays():
			t.written(c)
			fallthrough
		case c.looked:
			t.f.late.put(ino, c.new.Generation, c.spans)
		}
	}
	t.f.data.settle()
}
