package ext4

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"

	"vmscope/fsinfer"
	"vmscope/mem"
)

// span is a run of blocks.
type span struct{ start, count uint64 }

func (s span) end() uint64 { return s.start + s.count }

// maxDirBlocks bounds what is read of one directory: at 4 KiB, 4 GiB, some forty million names.
const maxDirBlocks = 1 << 20

// maxListed bounds the names that are held to find what became of directories in one change: one that came or went is listed
// as a whole, and may name what it likes. What a kernel does in one transaction is far less.
const maxListed = 1 << 22

// listed counts names that are held, and says what is wrong if they are too many.
func (t *txn) listed(n int) error {
	if t.sum += n; t.sum > t.f.most {
		return fmt.Errorf("more than %d names come or go in one change: %w: %w", t.f.most, fsinfer.ErrUntold, mem.ErrInconsistent)
	}
	return nil
}

// dirBlocks lists where a directory's blocks lie, ascending, and whether a block of its map is in the change.
func (t *txn) dirBlocks(v *view, in *Inode) (spans []span, mapLogged bool, err error) {
	spans, err = v.fs.dirSpans(v, in, func(b uint64) {
		if t.new.new != nil {
			if _, ok := t.new.new[b]; ok {
				mapLogged = true
			}
		}
	})
	return spans, mapLogged, err
}

// dirSpans lists where a directory's blocks lie, ascending. seen is told each block of the map.
func (f *FS) dirSpans(v *view, in *Inode, seen func(b uint64)) ([]span, error) {
	if in.Flags&FlagInlineData != 0 {
		return nil, nil
	}
	var spans []span
	limit := min(uint64(max(in.Size, 0))/uint64(f.sb.BlockSize), maxDirBlocks)
	total := uint64(0)
	err := f.sb.Extents(v, in, func(e Extent) bool {
		if e.Logical >= limit {
			return false
		}
		n := min(uint64(e.Len), limit-e.Logical)
		if total += n; total > limit {
			return false
		}
		spans = append(spans, span{e.Physical, n})
		return true
	}, func(b uint64) bool {
		if seen != nil {
			seen(b)
		}
		return true
	})
	return union(spans), tolerate(err)
}

// tolerate takes a wrong checksum for no error: the content was read, and recovery will complain.
func tolerate(err error) error {
	if bad := (*ChecksumError)(nil); errors.As(err, &bad) {
		return nil
	}
	return err
}

// union sorts spans and joins those that touch: a guest may have a directory name one block many times.
func union(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	out := spans[:0]
	for _, s := range spans {
		if n := len(out); n > 0 && s.start <= out[n-1].end() {
			out[n-1].count = max(out[n-1].end(), s.end()) - out[n-1].start
			continue
		}
		out = append(out, s)
	}
	return out
}

// subtract gives the parts of a that are not in b. Both are ascending.
func subtract(a, b []span) []span {
	var out []span
	for _, s := range a {
		for len(b) > 0 && b[0].end() <= s.start {
			b = b[1:]
		}
		for _, t := range b {
			if t.start >= s.end() {
				break
			}
			if t.start > s.start {
				out = append(out, span{s.start, t.start - s.start})
			}
			if t.end() >= s.end() {
				s.count = 0
				break
			}
			if t.end() > s.start {
				s = span{t.end(), s.end() - t.end()}
			}
		}
		if s.count > 0 {
			out = append(out, s)
		}
	}
	return out
}

// contains says whether a block lies in one of the ascending spans.
func contains(spans []span, b uint64) bool {
	i := sort.Search(len(spans), func(i int) bool { return spans[i].end() > b })
	return i < len(spans) && spans[i].start <= b
}

// within calls visit for each of the ascending blocks that lies in one of the ascending spans.
func within(blocks []uint64, spans []span, visit func(b uint64)) {
	for _, s := range spans {
		i, _ := slices.BinarySearch(blocks, s.start)
		for ; i < len(blocks) && blocks[i] < s.end(); i++ {
			visit(blocks[i])
		}
	}
}

// diffDir finds the names that went from and came to a directory.
func (t *txn) diffDir(c *change) error {
	wasDir, isDirNow := live(&c.old) && c.old.IsDir(), live(&c.new) && c.new.IsDir()
	if wasDir && isDirNow && same(&c.old, &c.new) {
		return t.diffSame(c)
	}
	var errs error
	if wasDir {
		names, err := t.list(t.old, &c.old)
		errs = wrapDir(c.ino, err)
		t.removed = names.edits(t.removed, node{ino: c.ino})
	}
	if isDirNow {
		names, err := t.list(t.new, &c.new)
		if errs == nil {
			errs = wrapDir(c.ino, err)
		}
		t.added = names.edits(t.added, node{c.ino, c.replaced()})
	}
	return errs
}

func wrapDir(ino uint32, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("directory inode %d: %w", ino, err)
}

// diffSame compares a directory with itself, reading only the blocks that changed: an htree that is split moves names
// between blocks that are all logged, so that they cancel out.
func (t *txn) diffSame(c *change) error {
	fast := t.old.fc.edits(c.ino)
	base := c.old
	if t.old.fc.inode(c.ino) != nil {
		// The blocks that a fast commit's inode names may not be on the disk yet: names come from where they were before it,
		// and from what it told.
		var err error
		blocks := view{fs: t.f}
		if base, err = blocks.inode(make([]byte, t.f.sb.BlockSize), c.ino); err != nil {
			return wrapDir(c.ino, err)
		}
		if !live(&base) || !same(&base, &c.new) {
			base = Inode{}
		}
	}
	was, is := &t.room.was, &t.room.is
	was.reset()
	is.reset()
	if live(&base) && base.Flags&FlagInlineData != 0 {
		if err := t.f.inlineNames(&base, was); err != nil {
			return wrapDir(c.ino, err)
		}
	}
	if c.new.Flags&FlagInlineData != 0 {
		if err := t.f.inlineNames(&c.new, is); err != nil {
			return wrapDir(c.ino, err)
		}
	}
	newSpans, mapLogged, err := t.dirBlocks(t.new, &c.new)
	if err != nil {
		return wrapDir(c.ino, err)
	}
	oldSpans := newSpans
	if mapLogged || base.Block != c.new.Block || base.Size != c.new.Size {
		oldSpans = nil
		if live(&base) {
			if oldSpans, _, err = t.dirBlocks(t.old, &base); err != nil {
				return wrapDir(c.ino, err)
			}
		}
	}
	scratch := make([]byte, t.f.sb.BlockSize)
	var first error
	keep := func(err error) {
		if first == nil {
			first = err
		}
	}
	// Blocks that were the directory's before and behind it.
	both := subtract(newSpans, subtract(newSpans, oldSpans))
	within(t.logged, both, func(b uint64) {
		old, err := t.f.current(scratch, b)
		if err != nil {
			keep(err)
			return
		}
		keep(t.diffBlock(&c.new, len(fast) > 0, old, t.new.new[b], was, is))
	})
	// Others, with all names in them.
	list := func(spans []span, v *view, dir *Inode, into *nameSet) {
		for _, s := range spans {
			for b := s.start; b < s.end(); b++ {
				before := len(into.names)
				data, err := v.peek(scratch, b)
				if err == nil {
					err = t.f.namesOf(dir, data, into)
				}
				keep(err)
				if err := t.listed(len(into.names) - before); err != nil {
					first = err
					return
				}
			}
		}
	}
	list(subtract(oldSpans, newSpans), &view{fs: t.f}, &base, was)
	list(subtract(newSpans, oldSpans), t.new, &c.new, is)
	for name, e := range fast {
		if e.is == e.was.ino {
			continue
		}
		was.set(name, e.is)
		// A fast commit may have told what was not so any more: an entry in a block that is not logged is there.
		if e.was.ino != 0 && e.was.block != 0 && is.get(name) == 0 {
			if _, logged := t.new.new[e.was.block]; !logged && contains(both, e.was.block) {
				is.set(name, e.was.ino)
			}
		}
	}
	t.compare(node{ino: c.ino}, was, is)
	return wrapDir(c.ino, first)
}

// compare turns two listings of a directory into edits.
func (t *txn) compare(d node, was, is *nameSet) {
	stays := func(e *listed, other uint32) bool {
		if e.ino != other {
			return false
		}
		c := t.inodes.of(e.ino)
		return c == nil || !c.replaced()
	}
	t.removed, t.added = slices.Grow(t.removed, len(was.names)), slices.Grow(t.added, len(is.names))
	for i := range was.names {
		e := &was.names[i]
		if e.ino == 0 {
			continue
		}
		if other := is.same(e); !stays(e, other) {
			t.removed = append(t.removed, edit{place{d, e.name}, e.ino, other == 0})
		}
	}
	for i := range is.names {
		if e := &is.names[i]; !stays(e, was.same(e)) {
			t.added = append(t.added, edit{place: place{d, e.name}, ino: e.ino})
		}
	}
}

// edits appends all names of directory d to list: it came or went as a whole, and no name in it went from one file to another.
func (l *nameSet) edits(list []edit, d node) []edit {
	list = slices.Grow(list, len(l.names))
	for _, e := range l.names {
		list = append(list, edit{place{d, e.name}, e.ino, true})
	}
	return list
}

// diffBlock adds to the listings what differs between two states of a block. Most of a block stays as it is: the entries that
// are alike at both ends are passed over without a look into a map, unless all are wanted.
func (t *txn) diffBlock(dir *Inode, all bool, old, now []byte, was, is *nameSet) error {
	if !all && !t.reuse && bytes.Equal(old, now) {
		return nil
	}
	a, err := t.f.entries(t.f.left[:0], dir, old)
	t.f.left = a
	if err != nil {
		return err
	}
	b, err := t.f.entries(t.f.right[:0], dir, now)
	t.f.right = b
	if err != nil {
		return err
	}
	// An entry whose inode went to another file must not be passed over.
	alike := func(x, y *Dirent) bool {
		if all || x.Ino != y.Ino || !bytes.Equal(x.Name, y.Name) {
			return false
		}
		c := t.inodes.of(x.Ino)
		return c == nil || !c.replaced()
	}
	for len(a) > 0 && len(b) > 0 && alike(&a[0], &b[0]) {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && alike(&a[len(a)-1], &b[len(b)-1]) {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	for i := range a {
		was.take(dir, a[i])
	}
	for i := range b {
		is.take(dir, b[i])
	}
	return nil
}

// entries appends a block's names to list, but for "." and "..".
func (f *FS) entries(list []Dirent, dir *Inode, block []byte) ([]Dirent, error) {
	err := f.sb.DirentsOf(dir, block, func(d Dirent) bool {
		if !d.IsDot() {
			list = append(list, d)
		}
		return true
	})
	return list, err
}

func (f *FS) namesOf(dir *Inode, block []byte, into *nameSet) error {
	return f.sb.DirentsOf(dir, block, into.taking(dir))
}

func (f *FS) inlineNames(dir *Inode, into *nameSet) error {
	return f.sb.InlineDirents(dir, into.taking(dir))
}

// taking takes up the names of a directory that are visited.
func (l *nameSet) taking(dir *Inode) func(Dirent) bool {
	return func(d Dirent) bool {
		if !d.IsDot() {
			l.take(dir, d)
		}
		return true
	}
}

// take takes up the name of an entry.
func (l *nameSet) take(dir *Inode, d Dirent) {
	if dir.Encrypted() {
		l.set(nameOf(dir, d), d.Ino)
		return
	}
	l.set(l.texts.keep(d.Name), d.Ino)
}

// nameOf is an entry's name as paths have it: one that is ciphertext may hold any byte, also those that divide paths.
func nameOf(dir *Inode, d Dirent) string {
	if dir.Encrypted() {
		return EncryptedName(d.Name)
	}
	return string(d.Name)
}

// list gives all names of a directory.
func (t *txn) list(v *view, in *Inode) (names nameSet, err error) {
	var many error
	err = t.f.scan(v, in, 0, nil, func(name string, d Dirent) bool {
		names.set(name, d.Ino)
		many = t.listed(1)
		return many == nil
	})
	if many != nil {
		return nameSet{}, many
	}
	return names, err
}

// maxWork bounds the blocks that are read to find names for one change.
const maxWork = 1 << 20

// scan visits the names of a directory until visit returns false. Where wanted is given, only of inodes that it asks for: a
// name is made a string, which costs more than all the rest. It is asked once for each name that there is. Where only one is
// wanted, its number is given too: few blocks hold these four bytes.
func (f *FS) scan(v *view, in *Inode, one uint32, wanted func(ino uint32) bool, visit func(name string, d Dirent) bool) error {
	fast := v.fc.edits(in.Number)
	in, err := f.inBlocks(v, in)
	if err != nil {
		return err
	}
	more := true
	see := func(d Dirent) bool {
		if d.IsDot() {
			return true
		}
		if len(fast) > 0 {
			if _, ok := fast[nameOf(in, d)]; ok {
				return true
			}
		}
		if wanted == nil || wanted(d.Ino) {
			more = visit(nameOf(in, d), d)
		}
		return more
	}
	for name, e := range fast {
		if e.is != 0 && more && (wanted == nil || wanted(e.is)) {
			more = visit(name, Dirent{Ino: e.is})
		}
	}
	if !more {
		return nil
	}
	if in.Inline() && in.IsDir() {
		return f.sb.InlineDirents(in, see)
	}
	spans, err := f.dirSpans(v, in, nil)
	scratch, number := make([]byte, f.sb.BlockSize), le.AppendUint32(nil, one)
	for _, s := range spans {
		for b := s.start; b < s.end() && more; b++ {
			if f.reads != nil {
				if f.work++; f.work > maxWork {
					return fmt.Errorf("more than %d blocks of directories to read for one change: %w", maxWork, mem.ErrInconsistent)
				}
			}
			data, rerr := v.peek(scratch, b)
			if rerr != nil {
				return rerr
			}
			if one != 0 && !bytes.Contains(data, number) {
				continue
			}
			if derr := f.sb.DirentsOf(in, data, see); derr != nil && err == nil {
				err = derr
			}
		}
	}
	return err
}
