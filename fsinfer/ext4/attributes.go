package ext4

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"vmscope/event"
	"vmscope/fsinfer"
	"vmscope/mem"
)

// locate makes sure, before names change, that the places of all inodes are known that changed by themselves: where the
// crawl has not found them yet it goes on until it does.
func (t *txn) locate() {
	f := t.f
	if f.parents.next > f.parents.total {
		return
	}
	touched := map[uint32]bool{}
	for _, e := range t.removed {
		touched[e.ino] = true
	}
	for _, e := range t.added {
		touched[e.ino] = true
	}
	find := func(ino uint32) {
		for f.parents.of(ino) == 0 && f.parents.next <= f.parents.total {
			if _, _, err := f.Crawl(context.Background(), 4096); err != nil {
				t.fail(err)
			}
		}
	}
	for _, c := range t.changed {
		if c.stays() && !touched[c.ino] && t.hasName(c) && c.ino != f.sb.ProjectQuotas {
			find(c.ino)
		}
	}
	for _, e := range t.added {
		if c := t.inodes.of(e.ino); c == nil || live(&c.old) {
			find(e.ino) // one more name, or the first?
		}
	}
	for _, e := range t.removed {
		// Where one name goes, another is to be told; which the crawl may not have come to.
		if c := t.inodes.of(e.ino); c != nil && c.stays() && t.hasName(c) && t.tells(c) {
			t.fail(f.CrawlAll(context.Background()))
		}
	}
}

// untold takes note of something that no event tells. A fast commit may tell of an inode before its name: the next full
// commit tells both.
func (t *txn) untold(err error) {
	if err != nil && t.source == event.Journal {
		err = fmt.Errorf("%w: %w", fsinfer.ErrUntold, err)
		t.errs = t.errs[:min(len(t.errs), maxErrors-1)] // it is not to be left out
	}
	t.fail(err)
}

// hasName says whether an inode is one that a directory names: some hold values of attributes, or are the file system's own.
func (t *txn) hasName(c *change) bool {
	return c.new.Flags&FlagEAInode == 0 && c.ino != t.f.sb.OrphanFile && (c.ino == RootInode || c.ino >= t.f.sb.FirstInode)
}

// attributes tells what changed in inodes that were there before and are there still.
func (t *txn) attributes() {
	var changed []*change
	for _, c := range t.changed {
		// Without a journal a file may have been there before its first name: that tells all of it.
		if c.stays() && t.hasName(c) && !t.named[c.ino] && t.tells(c) {
			changed = append(changed, c)
		}
	}
	slices.SortFunc(changed, func(a, b *change) int { return cmp.Compare(a.ino, b.ino) })
	paths := t.paths(changed)
	for _, c := range changed {
		t.attributesOf(c, func() (string, bool) { p, ok := paths[c.ino]; return p, ok })
	}
}

// paths gives a path for each of the inodes.
func (t *txn) paths(changed []*change) map[uint32]string {
	out := map[uint32]string{}
	where := func(d node) (place, error) {
		if t.order != nil {
			return t.order.locate(d)
		}
		return t.f.dirPlace(t.old, d.ino)
	}
	path := func(ino uint32, p place) {
		s, err := joinPath(p, where)
		if err != nil {
			t.untold(err)
			return
		}
		out[ino] = s
	}
	wanted := map[uint32][]uint32{} // directory -> inodes in it
	for _, c := range changed {
		if c.ino == RootInode {
			out[c.ino] = "/"
			continue
		}
		if t.order != nil {
			if p, ok := t.order.nameOf(c.ino); ok {
				path(c.ino, p)
				continue
			}
		}
		if dir, name, ok := t.f.parents.names.find(c.ino); ok {
			path(c.ino, place{node{ino: dir}, name})
			continue
		}
		dir := t.f.parents.of(c.ino)
		if dir == 0 && c.new.IsDir() {
			dir, _ = t.f.dotdot(t.old, c.ino)
		}
		if dir == 0 && (t.f.home.tree != nil || c.ino == t.f.sb.ProjectQuotas) {
			continue // no name leads to it yet, or none ever
		}
		if dir == 0 {
			t.untold(fmt.Errorf("inode %d changed, and no directory is known to name it", c.ino))
			continue
		}
		wanted[dir] = append(wanted[dir], c.ino)
	}
	for dir, inodes := range wanted {
		if t.f.home.tree != nil {
			slices.Sort(inodes)
			for name, ino := range t.f.home.tree[dir] {
				if _, ok := slices.BinarySearch(inodes, ino); ok && out[ino] == "" {
					path(ino, place{node{ino: dir}, name})
				}
			}
			continue
		}
		// A fast commit tells names that no block has yet.
		v := &view{fs: t.f, new: t.new.new, fc: t.new.fc}
		in, err := v.inode(make([]byte, t.f.sb.BlockSize), dir)
		if err != nil {
			t.untold(err)
			continue
		}
		in.InBody = bytes.Clone(in.InBody)
		left := len(inodes)
		found := map[uint32]string{}
		slices.Sort(inodes)
		want := func(ino uint32) bool {
			_, ok := slices.BinarySearch(inodes, ino)
			return ok && found[ino] == ""
		}
		one := uint32(0)
		if left == 1 {
			one = inodes[0]
		}
		err = t.f.scan(v, &in, one, want, func(name string, d Dirent) bool {
			found[d.Ino] = name
			left--
			return left > 0
		})
		for _, ino := range inodes {
			name, ok := found[ino]
			if !ok {
				t.untold(fmt.Errorf("inode %d changed, and directory inode %d does not name it: %w", ino, dir, errors.Join(err, mem.ErrInconsistent)))
				continue
			}
			t.f.parents.names.put(ino, dir, name)
			path(ino, place{node{ino: dir}, name})
		}
	}
	return out
}

// tells says whether a change is one that events tell.
func (t *txn) tells(c *change) bool {
	o, n := &c.old, &c.new
	return o.Mode != n.Mode || o.UID != n.UID || o.GID != n.GID || n.IsRegular() && o.Size != n.Size || t.xattrs(c) || t.written(c)
}

func (t *txn) attributesOf(c *change, path func() (string, bool)) {
	o, n := &c.old, &c.new
	tell := func(e event.Event) {
		p, ok := path()
		if !ok {
			return // what kept it from being known is in the error
		}
		e.Path, e.Inode, e.Generation, e.Attr = p, uint64(c.ino), n.Generation, t.attr(n)
		t.emit(e)
	}
	if o.UID != n.UID || o.GID != n.GID {
		tell(event.Event{Op: event.Chown})
	}
	if o.Mode != n.Mode {
		tell(event.Event{Op: event.Chmod})
	}
	switch {
	case !n.IsRegular(): // how long a directory is follows from its names
	case n.Size < o.Size:
		tell(event.Event{Op: event.Truncate})
		if n.Size > 0 && t.written(c) {
			t.tellWrites(c, tell)
		}
	case n.Size > o.Size && !t.written(c):
		tell(event.Event{Op: event.Truncate})
	case n.Size > o.Size || t.written(c):
		t.tellWrites(c, tell)
	}
	if t.xattrs(c) {
		tell(event.Event{Op: event.Xattr})
	}
}

// xattrs says whether extended attributes changed.
func (t *txn) xattrs(c *change) bool {
	o, n := &c.old, &c.new
	if o.FileACL == n.FileACL && bytes.Equal(o.InBody, n.InBody) {
		if _, logged := t.new.new[n.FileACL]; n.FileACL == 0 || !logged {
			return false
		}
	}
	a, aerr := t.f.sb.Xattrs(t.old, o)
	b, berr := t.f.sb.Xattrs(t.new, n)
	if aerr != nil || berr != nil {
		return o.FileACL != n.FileACL
	}
	return !slices.EqualFunc(plainXattrs(a), plainXattrs(b), func(x, y Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) })
}

// plainXattrs leaves out the attribute that holds inline content, and sorts.
func plainXattrs(list []Xattr) []Xattr {
	list = slices.DeleteFunc(list, func(x Xattr) bool { return x.Name == "system.data" })
	slices.SortFunc(list, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// written says whether the content of a regular file changed: blocks of it were written or logged, or its map is another.
// Where that is not enough to go by, the times have to do.
func (t *txn) written(c *change) bool {
	o, n := &c.old, &c.new
	if !n.IsRegular() {
		return false
	}
	if n.Inline() {
		return n.Size != 0 && (o.Block != n.Block || !bytes.Equal(o.InBody, n.InBody) && o.Mtime != n.Mtime)
	}
	late := t.f.late.files[c.ino] != nil
	if o.Mtime == n.Mtime && o.Block == n.Block && o.Size == n.Size && !late {
		return false
	}
	if len(t.touched(c)) > 0 || o.Block != n.Block && n.Size != 0 {
		return true
	}
	return (t.source == event.Home || t.f.data.full) && o.Mtime != n.Mtime && n.Size != 0
}

// tellWrites tells which bytes were written.
func (t *txn) tellWrites(c *change, tell func(event.Event)) {
	o, n := &c.old, &c.new
	if n.Inline() {
		tell(event.Event{Op: event.Write, Offset: 0, Length: n.Size})
		return
	}
	ranges := t.touched(c)
	if len(ranges) == 0 || t.f.data.full {
		e := event.Event{Op: event.Write}
		if n.Size > o.Size {
			e.Offset, e.Length = o.Size, n.Size-o.Size
		}
		tell(e)
		return
	}
	for _, r := range ranges {
		tell(event.Event{Op: event.Write, Offset: r.Off, Length: r.Len})
	}
}
