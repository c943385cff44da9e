package ext4

import (
	"fmt"
	"slices"

	"vmscope/fsinfer/ext4/jbd2"
	"vmscope/mem"
)

// fastLook is what fast commits changed, on top of what lies in blocks. The kernel's replay changes the blocks themselves
// (fs/ext4/fast_commit.c, ext4_fc_replay), for which it has to allocate some; to look, names and ranges do.
type fastLook struct {
	inodes map[uint32][]byte // raw
	names  map[uint32]*nameEdits
	edits  map[uint32][]Extent // of files, as they came; Physical 0 takes the range away
	ranges map[uint32][]Extent // the same, each block of a file in one of them, ascending
}

// nameEdits are the names of a directory that came or went.
type nameEdits struct {
	names map[string]nameEdit
	gone  map[goneName]bool // all that went: a name may go, lead elsewhere, and go again
	order []string          // the names that came, once each
}

// goneName is a name that went, and what it led to.
type goneName struct {
	name string
	ino  uint32
}

type nameEdit struct {
	ino    uint32 // what the name leads to; 0: the name went
	listed bool   // in order
}

// hides says whether an entry that lies in a block is no more, or another's.
func (e *nameEdits) hides(d Dirent) bool {
	return e.names[string(d.Name)].ino != 0 || e.gone[goneName{string(d.Name), d.Ino}]
}

// replayFast takes the fast commits that follow the log, which ended with transaction last.
func (v *Volume) replayFast(js *jbd2.Super, read func(p []byte, index uint32) error, last uint32) error {
	if first, end := js.FastCommits(); js.Start == 0 || first == end {
		return nil
	}
	commits, err := jbd2.NewFCStream(js, read).Recover(last + 1)
	f := &fastLook{inodes: map[uint32][]byte{}, names: map[uint32]*nameEdits{}, edits: map[uint32][]Extent{}, ranges: map[uint32][]Extent{}}
	for i := range commits {
		if bad := v.fastCommit(f, commits[i].Ops); bad != nil && err == nil {
			err = fmt.Errorf("ext4: fast commit of transaction %d: %w", commits[i].TID, bad)
		}
		v.rec.FastCommits++
	}
	for ino, edits := range f.edits {
		f.ranges[ino] = paint(edits)
	}
	f.edits = nil
	if len(commits) > 0 {
		v.fast = f
	}
	return err
}

// fastCommit takes a fast commit. It gives the first of what is wrong with it, and takes the rest.
func (v *Volume) fastCommit(f *fastLook, ops []jbd2.FCOp) error {
	var first error
	note := func(err error) {
		if first == nil {
			first = err
		}
	}
	told := map[uint32]bool{} // inodes that records tell, with the links that they have in the end
	var counted []linkEdit
	held := v.fastHeld(f, ops)
	for i := range ops {
		op := &ops[i]
		if h := held[op.Ino]; h != nil && h.drops(op) {
			continue
		}
		links, err := v.fastOp(f, op)
		note(err)
		if links.delta != 0 {
			counted = append(counted, links)
		}
		if op.Tag == jbd2.FCInode {
			told[op.Ino] = true
		}
	}
	for ino, h := range held {
		note(v.fastKeep(f, ino, h))
		delete(told, ino)
	}
	for _, c := range counted {
		raw, err := v.fastRaw(f, c.ino)
		note(err)
		if err != nil {
			continue
		}
		target := c.ino
		if c.dir || !c.old && le.Uint16(raw)&sIFMT == sIFDIR {
			target = c.parent
		}
		if !told[target] {
			note(v.fastLinks(f, target, c.delta))
		}
	}
	return first
}

// linkEdit is a name of ino that came to a directory or went. What a name that came leads to is known at the end of the
// commit only, since the inode's record comes behind. One that was there before led to what the inode was then: dir says
// whether that was a directory. The number may be another file's by the end.
type linkEdit struct {
	ino, parent uint32
	delta       int
	old, dir    bool
}

// fastOp takes one record of a fast commit.
func (v *Volume) fastOp(f *fastLook, op *jbd2.FCOp) (links linkEdit, err error) {
	if op.Ino == 0 || op.Ino > v.sb.Inodes {
		return links, fmt.Errorf("record %d: inode %d of %d: %w", op.Tag, op.Ino, v.sb.Inodes, mem.ErrInconsistent)
	}
	switch op.Tag {
	case jbd2.FCCreat, jbd2.FCLink, jbd2.FCUnlink:
		if op.Parent == 0 || op.Parent > v.sb.Inodes {
			return links, fmt.Errorf("record %d: inode %d in directory %d: %w", op.Tag, op.Ino, op.Parent, mem.ErrInconsistent)
		}
		return v.fastName(f, op)
	case jbd2.FCInode:
		return links, v.fastInode(f, op)
	case jbd2.FCAddRange, jbd2.FCDelRange:
		e := Extent{Logical: uint64(op.Block), Physical: op.Start, Len: op.Len, Unwritten: op.Unwritten}
		if op.Tag == jbd2.FCDelRange {
			e.Physical = 0
		} else if !v.sb.rangeValid(e.Physical, uint64(e.Len)) {
			return links, fmt.Errorf("inode %d: %d blocks at %d: %w", op.Ino, e.Len, e.Physical, mem.ErrInconsistent)
		}
		if e.Len == 0 || e.Logical+uint64(e.Len) > 1<<32 {
			return links, fmt.Errorf("inode %d: %d blocks of the file from %d: %w", op.Ino, e.Len, e.Logical, mem.ErrInconsistent)
		}
		f.edits[op.Ino] = append(f.edits[op.Ino], e)
	}
	return links, nil
}

// fastName takes a name that came or went, and says whose links are to be counted: no record tells a directory's inode.
func (v *Volume) fastName(f *fastLook, op *jbd2.FCOp) (links linkEdit, err error) {
	e := f.names[op.Parent]
	if e == nil {
		e = &nameEdits{names: map[string]nameEdit{}, gone: map[goneName]bool{}}
		f.names[op.Parent] = e
	}
	name := string(op.Name)
	if !validName(op.Name) && !v.encryptedDir(f, op.Parent) {
		return links, fmt.Errorf("inode %d: name %q: %w", op.Ino, name, mem.ErrInconsistent)
	}
	edit, known := e.names[name]
	links = linkEdit{ino: op.Ino, parent: op.Parent, delta: 1}
	if op.Tag == jbd2.FCUnlink {
		if known && edit.ino != op.Ino {
			return linkEdit{}, nil // the name is another's by now
		}
		if !known {
			raw, err := v.fastRaw(f, op.Ino)
			if err != nil {
				return linkEdit{}, err
			}
			links.old, links.dir = true, le.Uint16(raw)&sIFMT == sIFDIR
		}
		edit.ino, links.delta = 0, -1
		e.gone[goneName{name, op.Ino}] = true
	} else {
		edit.ino = op.Ino
		if !edit.listed {
			edit.listed = true
			e.order = append(e.order, name)
		}
	}
	e.names[name] = edit
	return links, nil
}

func (v *Volume) encryptedDir(f *fastLook, ino uint32) bool {
	raw, err := v.fastRaw(f, ino)
	return err == nil && le.Uint32(raw[32:])&FlagEncrypt != 0
}

// fastLinks changes the number of an inode's links.
func (v *Volume) fastLinks(f *fastLook, ino uint32, delta int) error {
	raw, err := v.fastRaw(f, ino)
	if err != nil {
		return err
	}
	n := int(le.Uint16(raw[26:]))
	isDir := le.Uint16(raw)&sIFMT == sIFDIR
	if isDir && n == 1 { // a directory of too many to be counted
		return nil
	}
	le.PutUint16(raw[26:], uint16(min(max(n+delta, 0), 1<<16-1)))
	v.resum(ino, raw)
	f.inodes[ino] = raw
	return nil
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
		delete(f.names, op.Ino)
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
