package ext4

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"vmscope/fsinfer/ext4/jbd2"
	"vmscope/mem"
)

// fastLook is what fast commits changed, on top of what lies in blocks. The kernel's replay changes the blocks themselves
// (fs/ext4/fast_commit.c, ext4_fc_replay), for which it has to allocate some; to look, names and ranges do. Names are those
// that FS would tell of, so that who looks and then watches is told all that came behind.
type fastLook struct {
	names  *FS                 // plays them
	inodes map[uint32][]byte   // raw
	edits  map[uint32][]Extent // of files, as they came; Physical 0 takes the range away
	ranges map[uint32][]Extent // the same, each block of a file in one of them, ascending
}

func (v *Volume) newFastLook() (*fastLook, error) {
	f := &FS{dev: v.dev, sb: v.sb, store: newStore(v.sb.BlockSize), scratch: make([]byte, v.sb.BlockSize), most: maxListed}
	if err := f.sb.bounded(); err != nil {
		return nil, err
	}
	return &fastLook{names: f, inodes: map[uint32][]byte{}, edits: map[uint32][]Extent{}}, f.readTables()
}

// replayFast takes the fast commits that follow the log, which ended with transaction last.
func (v *Volume) replayFast(js *jbd2.Super, read func(p []byte, index uint32) error, last uint32) error {
	if first, end := js.FastCommits(); js.Start == 0 || first == end {
		return nil
	}
	commits, err := jbd2.NewFCStream(js, read).Recover(last + 1)
	if len(commits) == 0 {
		return err
	}
	f, bad := v.newFastLook()
	if bad != nil {
		return errors.Join(err, bad)
	}
	for i := range commits {
		if bad := v.fastCommit(f, &commits[i]); bad != nil && err == nil {
			err = fmt.Errorf("ext4: fast commit of transaction %d: %w", commits[i].TID, bad)
		}
		v.rec.FastCommits++
	}
	f.ranges = make(map[uint32][]Extent, len(f.edits))
	for ino, edits := range f.edits {
		f.ranges[ino] = paint(edits)
	}
	f.edits = nil
	v.fast = f
	return err
}

// fastCommit takes a fast commit. It gives the first of what is wrong with it, and takes the rest.
func (v *Volume) fastCommit(f *fastLook, fc *jbd2.FastCommit) error {
	var first error
	note := func(err error) {
		if first == nil {
			first = err
		}
	}
	c, err := f.names.playFast(fc, time.Time{}, func(*txn) {})
	if c == nil {
		return err
	}
	note(err)
	for i := range fc.Ops {
		op := &fc.Ops[i]
		n := c.inodes[op.Ino]
		switch {
		case op.Ino == 0 || op.Ino > v.sb.Inodes:
			note(fmt.Errorf("record %d: inode %d of %d: %w", op.Tag, op.Ino, v.sb.Inodes, mem.ErrInconsistent))
		case n != nil && n.strange():
		case op.Tag == jbd2.FCInode:
			note(v.fastInode(f, op))
		case op.Tag == jbd2.FCAddRange, op.Tag == jbd2.FCDelRange:
			note(v.fastRange(f, op))
		}
	}
	note(v.fastLinks(f, c))
	return first
}

// fastRange takes a range of a file that came or went.
func (v *Volume) fastRange(f *fastLook, op *jbd2.FCOp) error {
	e := Extent{Logical: uint64(op.Block), Physical: op.Start, Len: op.Len, Unwritten: op.Unwritten}
	if op.Tag == jbd2.FCDelRange {
		e.Physical = 0
	} else if !v.sb.rangeValid(e.Physical, uint64(e.Len)) {
		return fmt.Errorf("inode %d: %d blocks at %d: %w", op.Ino, e.Len, e.Physical, mem.ErrInconsistent)
	}
	if e.Len == 0 || e.Logical+uint64(e.Len) > 1<<32 {
		return fmt.Errorf("inode %d: %d blocks of the file from %d: %w", op.Ino, e.Len, e.Logical, mem.ErrInconsistent)
	}
	f.edits[op.Ino] = append(f.edits[op.Ino], e)
	return nil
}

// fastLinks gives files as many links as they have names, and counts in directories those that came and went: no record tells
// a directory that was there before.
func (v *Volume) fastLinks(f *fastLook, c *fastChange) error {
	var errs []error
	set := func(ino uint32, links func(was int) int) {
		raw, err := v.fastRaw(f, ino)
		if err != nil {
			errs = append(errs, err)
			return
		}
		le.PutUint16(raw[26:], uint16(min(max(links(int(le.Uint16(raw[26:]))), 0), 1<<16-1)))
		v.resum(ino, raw)
		f.inodes[ino] = raw
	}
	for ino, told := range c.top.inodes {
		set(ino, func(was int) int {
			links := int(le.Uint16(told[26:]))
			if isDir(told) && links > 0 && was > 0 {
				return was
			}
			return links
		})
	}
	dirs := map[uint32]int{} // that came, by the directory that they came to
	for p, touch := range c.names {
		if c.inodes[p.dir.ino].record != nil {
			continue
		}
		if touch.before != 0 && c.inodes[touch.before].old.IsDir() {
			dirs[p.dir.ino]--
		}
		if touch.now == 0 {
			continue
		}
		if n := c.inodes[touch.now]; n.strange() && n.old.IsDir() || !n.strange() && n.isDir() {
			dirs[p.dir.ino]++
		}
	}
	for ino, n := range dirs {
		if n != 0 {
			set(ino, func(was int) int {
				if was <= 1 { // it is gone, or has too many to be counted
					return was
				}
				return was + n
			})
		}
	}
	return errors.Join(errs...)
}

// fastRaw is an inode's bytes as they stand, the caller's to change.
func (v *Volume) fastRaw(f *fastLook, ino uint32) ([]byte, error) {
	if raw, ok := f.inodes[ino]; ok {
		return raw, nil
	}
	return v.homeInode(ino)
}

// fastInode takes an inode as a record tells it. Of what a record does not hold, extended attributes and the map (which
// records of ranges complete), the inode keeps its own, if it is the same file.
func (v *Volume) fastInode(f *fastLook, op *jbd2.FCOp) error {
	old, err := v.fastRaw(f, op.Ino)
	if err != nil {
		return err
	}
	raw := slices.Clone(old)
	n := copy(raw, op.Inode)
	same := sameFile(old, raw)
	if !same {
		clear(raw[n:])
		delete(f.edits, op.Ino)
	}
	switch flags := le.Uint32(raw[32:]); {
	case flags&FlagExtents != 0:
		copy(raw[40:100], old[40:100])
		if !same || le.Uint16(old[40:]) != extentMagic {
			clear(raw[40:100])
			le.PutUint16(raw[40:], extentMagic)
			le.PutUint16(raw[44:], 4)
		}
	case flags&FlagInlineData == 0 && (le.Uint16(raw)&sIFMT == sIFREG || le.Uint16(raw)&sIFMT == sIFDIR):
		copy(raw[40:100], old[40:100])
		if !same {
			clear(raw[40:100])
		}
	}
	v.resum(op.Ino, raw)
	f.inodes[op.Ino] = raw
	return nil
}

// sameFile says whether two inodes of one number are of one file.
func sameFile(old, now []byte) bool {
	return le.Uint32(old[100:]) == le.Uint32(now[100:]) && le.Uint16(old)&sIFMT == le.Uint16(now)&sIFMT && le.Uint16(old[26:]) != 0
}

// resum gives an inode that was put together the checksum that the kernel's replay would.
func (v *Volume) resum(ino uint32, raw []byte) {
	if in, err := v.sb.ParseInode(ino, raw); err == nil {
		v.sb.setInodeChecksum(&in, raw)
	}
}

// paint gives edits to ranges a form in which no two overlap, the later one having won.
func paint(edits []Extent) []Extent {
	points := make([]uint64, 0, 2*len(edits))
	for _, e := range edits {
		points = append(points, e.Logical, e.Logical+uint64(e.Len))
	}
	slices.Sort(points)
	points = slices.Compact(points)
	// next leads from a piece between two points to the first at or behind it that has no owner yet.
	next := make([]int, len(points))
	for i := range next {
		next[i] = i
	}
	free := func(i int) int {
		for next[i] != i {
			next[i] = next[next[i]]
			i = next[i]
		}
		return i
	}
	owner := make([]int, len(points)) // 0: nobody, else one more than the edit
	for n := len(edits) - 1; n >= 0; n-- {
		e := &edits[n]
		from, _ := slices.BinarySearch(points, e.Logical)
		to, _ := slices.BinarySearch(points, e.Logical+uint64(e.Len))
		for i := free(from); i < to; i = free(i) {
			owner[i], next[i] = n+1, i+1
		}
	}
	var list []Extent
	for i := 0; i+1 < len(points); i++ {
		if owner[i] == 0 {
			continue
		}
		e := edits[owner[i]-1]
		if e.Physical != 0 {
			e.Physical += points[i] - e.Logical
		}
		e.Logical, e.Len = points[i], uint32(points[i+1]-points[i])
		list = append(list, e)
	}
	return list
}

// editedExtents walks the extents of an inode with edits, as paint gave them, made to them.
func (v *Volume) editedExtents(in *Inode, edits []Extent, start uint64, data func(Extent) bool, meta func(block uint64) bool) error {
	more := true
	give := func(e Extent) {
		if more && e.Physical != 0 && e.Len > 0 && e.Logical+uint64(e.Len) > start && data != nil {
			more = data(e)
		}
	}
	for len(edits) > 0 && edits[0].Logical+uint64(edits[0].Len) <= start {
		edits = edits[1:]
	}
	err := v.sb.extentsFrom(v, in, start, func(e Extent) bool {
		for e.Len > 0 && more {
			if len(edits) == 0 || e.Logical+uint64(e.Len) <= edits[0].Logical {
				give(e)
				return more
			}
			first := &edits[0]
			if e.Logical < first.Logical { // what is before the edit
				part := e
				part.Len = uint32(first.Logical - e.Logical)
				give(part)
				e = e.behind(first.Logical)
				continue
			}
			end := first.Logical + uint64(first.Len)
			if e.Logical+uint64(e.Len) < end {
				return true // hidden wholly; what comes next may be, too
			}
			e = e.behind(end)
			give(*first)
			edits = edits[1:]
		}
		return more
	}, meta)
	for ; len(edits) > 0 && more; edits = edits[1:] {
		give(edits[0])
	}
	return err
}

// behind is the part of an extent from block logical of the file on; logical is not before the extent.
func (e Extent) behind(logical uint64) Extent {
	skip := min(max(logical, e.Logical)-e.Logical, uint64(e.Len))
	return Extent{e.Logical + skip, e.Physical + skip, e.Len - uint32(skip), e.Unwritten}
}
