package watch

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"vmscope/event"
	"vmscope/fsinfer"
	"vmscope/fsinfer/ext4"
	"vmscope/mem"
)

// tree is what a reader of the events knows of a file system, as far as the watchpoints see it. It is held so that the
// difference can be told when writes were lost: the disk of before is gone by then. It is read beside the events, directory by
// directory; events of a directory that was not read yet are passed over, since reading it will find what they did.
type tree struct {
	dirs  map[uint32]*dir
	files map[uint32]file // by inode
	queue []uint32        // directories to be read
	size  int64           // bytes, roughly
	limit int64
	steps int64 // bytes of paths that were made of it, and what it takes to find them
	full  bool  // it does not fit: nothing is held
	err   error // it could not be read: what is held is not all
	scope func(path string) scope
	turn  uint64        // of the watchpoints that scope knows
	at    string        // where the file system is mounted, for scope
	ring  []event.Event // renames that are one step, up to now
	warn  func(error)
	wrong int         // warnings
	doubt func() bool // whether what was read may be of a later time, behind a loss; nil: never
}

type dir struct {
	up    uint32 // the directory that names it
	long  int    // bytes of its path when it came
	name  string
	names map[string]uint32
	scope scope
	read  bool // names are all that there are
}

// file is an inode and what it said of itself when it was told of last.
type file struct {
	generation        uint32
	uid, gid          uint32
	mode              uint16
	kind              uint8  // index of kinds
	names             uint32 // that are held
	size              int64
	modified, changed int64
	xattrs            uint64
}

var kinds = []event.Kind{event.File, event.Dir, event.Lnk, event.CharDev, event.BlockDev, event.FIFO, event.Socket}

func fileOf(f *fsinfer.File) file {
	return file{
		generation: f.Generation, uid: f.Attr.UID, gid: f.Attr.GID, mode: uint16(f.Attr.Mode), kind: uint8(max(slices.Index(kinds, f.Attr.Kind), 0)),
		size: f.Attr.Size, modified: f.Modified, changed: f.Changed, xattrs: f.Xattrs,
	}
}

func (f *file) isDir() bool { return kinds[f.kind] == event.Dir }

// same says whether two states of an inode number are of one file.
func (f *file) same(g *file) bool { return f.generation == g.generation && f.kind == g.kind }

// What things take in maps of Go, bytes, beside the letters of names.
const (
	nameCost = 64
	fileCost = 104
	dirCost  = 160
)

func newTree(limit int64, turn uint64, at string, scope func(string) scope, warn func(error)) *tree {
	t := &tree{limit: limit, turn: turn, at: at, scope: scope, warn: warn}
	t.reset()
	return t
}

// reset begins anew: the tree is read from its root on.
func (t *tree) reset() {
	t.dirs, t.files, t.queue, t.ring, t.size, t.steps = map[uint32]*dir{}, map[uint32]file{}, nil, nil, 0, 0
	if !t.full {
		t.dirs[ext4.RootInode] = &dir{names: map[string]uint32{}, scope: t.scope("/")}
		t.queue = append(t.queue, ext4.RootInode)
	}
}

// grow counts bytes. A tree that does not fit is not held at all: a part of it would tell differences that are none.
func (t *tree) grow(n int64) bool {
	if t.size += n; t.size > t.limit {
		t.full = true
		t.reset()
	}
	return !t.full
}

// whole says whether all is held.
func (t *tree) whole() bool { return t.done() && !t.full && t.err == nil }

// done says whether there is nothing more to be read.
func (t *tree) done() bool { return t.full || t.err != nil || len(t.queue) == 0 }

// other says whether the tree is of other watchpoints, or of paths that began elsewhere.
func (t *tree) other(turn uint64, at string) bool { return t.turn != turn || t.at != at }

// useful says whether differences from the tree can be told; there may be none.
func (t *tree) useful(turn uint64, at string) bool {
	return t != nil && t.whole() && !t.other(turn, at)
}

// unread says whether there is something to be read.
func (t *tree) unread(turn uint64, at string) bool {
	return t == nil || t.other(turn, at) || !t.done()
}

// read goes on reading directories, for about n names.
func (t *tree) read(look fsinfer.Look, n int) {
	for n > 0 && !t.done() {
		ino := t.queue[len(t.queue)-1]
		t.queue = t.queue[:len(t.queue)-1]
		if d := t.dirs[ino]; d != nil && !d.read {
			n -= 8 + t.readDir(look, ino, d)
		}
	}
}

// readDir reads the names of a directory and what they lead to.
func (t *tree) readDir(look fsinfer.Look, ino uint32, d *dir) int {
	d.read = true
	if ino == ext4.RootInode {
		if f, ok := t.look(look, ino); ok {
			f.names = 1
			t.files[ino] = f
		}
	}
	if d.scope == alone {
		return 0
	}
	type entry struct {
		name string
		ino  uint32
	}
	var list []entry
	prefix, size := "", int64(0)
	if d.long > maxPath { // of what is in it no event can tell
		t.complain(errLong(ino))
		return 0
	}
	if d.scope != inside {
		prefix, _ = t.path(ino)
		prefix = strings.TrimSuffix(prefix, "/") + "/"
		if t.tired() {
			t.full = true
			t.reset()
			return 0
		}
	}
	err := look.Names(uint64(ino), func(name string, child uint64) bool {
		if d.scope == inside || t.scope(prefix+name) != outside {
			list = append(list, entry{name, uint32(child)})
			size += nameCost + int64(len(name))
		}
		return t.size+size <= t.limit
	})
	t.complain(err)
	if t.size+size > t.limit {
		t.grow(size)
		return len(list)
	}
	// In the order in which inodes lie on the disk.
	slices.SortFunc(list, func(a, b entry) int { return cmp.Compare(a.ino, b.ino) })
	for _, e := range list {
		f, ok := t.look(look, e.ino)
		if !ok {
			continue
		}
		s := d.scope
		if s != inside {
			s = t.scope(prefix + e.name)
		}
		if !t.put(ino, d, e.name, e.ino, f, s, false) {
			break
		}
	}
	return len(list)
}

// complain warns of what is wrong with the disk: of the first such things, where there are many. What contradicts itself is
// that to a reader too; where the disk could not be read, nobody knows.
func (t *tree) complain(err error) {
	if err == nil {
		return
	}
	if !errors.Is(err, mem.ErrInconsistent) {
		t.err = err
	}
	if t.wrong++; t.wrong <= 16 {
		t.warn(err)
	}
}

// look reads an inode; ok is false for one that a name cannot lead to.
func (t *tree) look(look fsinfer.Look, ino uint32) (file, bool) {
	f, err := look.File(uint64(ino))
	t.complain(err)
	return fileOf(&f), f.Attr.Kind != ""
}

// put adds a name. A directory is read later, unless all its names will come as events.
func (t *tree) put(at uint32, d *dir, name string, ino uint32, f file, s scope, fresh bool) bool {
	old, held := t.files[ino]
	if _, taken := d.names[name]; taken || held && (f.isDir() || !old.same(&f)) || ino == ext4.RootInode {
		return true // a directory has one name, the root none, a number one file, a name one number: the first counts
	}
	if !t.grow(nameCost + int64(len(name))) {
		return false
	}
	if !held && !t.grow(fileCost) {
		return false
	}
	f.names = old.names + 1
	t.files[ino] = f
	d.names[name] = ino
	if f.isDir() {
		return t.putDir(at, name, ino, s, fresh)
	}
	return true
}

func (t *tree) putDir(up uint32, name string, ino uint32, s scope, fresh bool) bool {
	if !t.grow(dirCost) {
		return false
	}
	t.dirs[ino] = &dir{up: up, long: t.dirs[up].long + 1 + len(name), name: name, names: map[string]uint32{}, scope: s, read: fresh}
	if !fresh {
		t.queue = append(t.queue, ino)
	}
	return true
}

// maxPath is how long a path may be to be told, as for package ext4: a guest makes trees as deep as it likes. What was moved may
// have become deeper than it was when it came.
const maxPath = 1 << 16

func errLong(ino uint32) error {
	return fmt.Errorf("directory inode %d: its path is longer than %d bytes: %w", ino, maxPath, mem.ErrInconsistent)
}

// stepCost is what a step towards the root counts, in bytes.
const stepCost = 16

// tired says whether more paths were asked for than a tree that fits has any use for.
func (t *tree) tired() bool { return t.steps > 4*max(t.limit, 1<<24) }

// path is where a directory stands; not ok if that is longer than may be told.
func (t *tree) path(ino uint32) (path string, ok bool) {
	var parts []string
	for size := 0; ino != ext4.RootInode; {
		d := t.dirs[ino]
		parts = append(parts, d.name)
		t.steps += int64(2*len(d.name) + stepCost)
		if size += len(d.name) + 1; size > maxPath {
			return "", false
		}
		ino = d.up
	}
	slices.Reverse(parts)
	return "/" + strings.Join(parts, "/"), true
}

// join is the path of a name in a directory.
func (t *tree) join(at uint32, name string) (path string, ok bool) {
	if path, ok = t.path(at); at != ext4.RootInode {
		path += "/"
	}
	return path + name, ok
}

// find gives the directory that a path's last name is in; nil if it is not held, or was not read.
func (t *tree) find(path string) (at uint32, d *dir, name string) {
	at, d = ext4.RootInode, t.dirs[ext4.RootInode]
	rest := strings.TrimPrefix(path, "/")
	for d != nil && d.read {
		part, more, ok := strings.Cut(rest, "/")
		if !ok {
			return at, d, part
		}
		at = d.names[part]
		d, rest = t.dirs[at], more
	}
	return 0, nil, ""
}

// apply takes over what an event told. What does not fit has the tree read anew.
func (t *tree) apply(e *event.Event, look func() fsinfer.Look) {
	if t.full {
		return
	}
	ok := true
	switch e.Op {
	case event.MkDir, event.MkFile, event.Symlink, event.Mknod, event.Link:
		ok = t.arrive(e, look(), e.Op == event.MkDir)
	case event.RmDir, event.RmFile:
		ok = t.remove(e, look())
	case event.Rename:
		t.ring = append(t.ring, *e)
		if e.Detail == event.Exchange && e.Path != t.ring[0].OldPath {
			return
		}
		ok = t.rename(look())
		t.ring = t.ring[:0]
	case event.Write, event.Truncate, event.Chmod, event.Chown, event.Xattr:
		t.change(e, look())
	}
	if !ok {
		t.complain(fmt.Errorf("%s of %q does not fit what was told before: %w", e.Op, e.Path, mem.ErrInconsistent))
		t.reset()
	}
}

// state is a file behind an event: what there is of it now, or where that is another one already, what the event says. What an
// event does not say is not known then: the times and attributes are such as no file has, and a difference tells them.
func (t *tree) state(e *event.Event, look fsinfer.Look) file {
	f, _ := look.File(e.Inode)
	if late := t.doubt != nil && t.doubt(); !late && f.Attr.Kind != "" && f.Generation == e.Generation && (e.Attr == nil || f.Attr.Kind == e.Attr.Kind) {
		return fileOf(&f)
	}
	f = fsinfer.File{Generation: e.Generation, Modified: -1, Changed: -1, Xattrs: math.MaxUint64}
	if e.Attr != nil {
		f.Attr = *e.Attr
	}
	return fileOf(&f)
}

// arrive has a name come. false if there is one already, or the file is another.
func (t *tree) arrive(e *event.Event, look fsinfer.Look, fresh bool) bool {
	at, d, name := t.find(e.Path)
	if d == nil {
		return true
	}
	s := d.scope
	if s != inside {
		s = t.scope(e.Path)
	}
	if s == outside {
		return true
	}
	f := t.state(e, look)
	old, held := t.files[uint32(e.Inode)]
	if _, taken := d.names[name]; taken || held && (f.isDir() || !old.same(&f)) {
		return false
	}
	t.put(at, d, strings.Clone(name), uint32(e.Inode), f, s, fresh) // the path, which may be long, is not held
	return true
}

// detach takes a name away; what it leads to stays. ok is false if it was not held.
func (t *tree) detach(path string) (ino uint32, ok bool) {
	_, d, name := t.find(path)
	if d == nil {
		return 0, false
	}
	if ino, ok = d.names[name]; ok {
		delete(d.names, name)
		t.size -= nameCost + int64(len(name))
		f := t.files[ino]
		f.names--
		t.files[ino] = f
	}
	return ino, ok
}

// release forgets a file that has no name any more, and all below it.
func (t *tree) release(ino uint32) {
	for queue := []uint32{ino}; len(queue) > 0; {
		ino, queue = queue[len(queue)-1], queue[:len(queue)-1]
		if f, held := t.files[ino]; !held || f.names > 0 {
			continue
		}
		delete(t.files, ino)
		t.size -= fileCost
		queue = append(queue, t.empty(ino)...)
	}
}

// empty forgets a directory, but not that there is one, and gives what has no name by that.
func (t *tree) empty(ino uint32) (gone []uint32) {
	d := t.dirs[ino]
	if d == nil {
		return nil
	}
	for name, child := range d.names {
		t.size -= nameCost + int64(len(name))
		f := t.files[child]
		f.names--
		t.files[child] = f
		gone = append(gone, child)
	}
	delete(t.dirs, ino)
	t.size -= dirCost
	return gone
}

// remove has a name go.
func (t *tree) remove(e *event.Event, look fsinfer.Look) bool {
	ino, ok := t.detach(e.Path)
	if !ok {
		return true // not watched, or in a directory that was not read
	}
	if f := t.files[ino]; f.names > 0 {
		t.set(ino, t.state(e, look))
		return true
	}
	t.release(ino)
	return true
}

// set takes over a new state of a file.
func (t *tree) set(ino uint32, f file) {
	old, held := t.files[ino]
	if held && old.same(&f) {
		f.names = old.names
		t.files[ino] = f
	}
}

// change takes over what an inode says now.
func (t *tree) change(e *event.Event, look fsinfer.Look) {
	ino := uint32(ext4.RootInode)
	if e.Path != "/" {
		_, d, name := t.find(e.Path)
		if d == nil || d.names[name] == 0 {
			return
		}
		ino = d.names[name]
	}
	t.set(ino, t.state(e, look))
}

// rename does the renames of the ring as one.
func (t *tree) rename(look fsinfer.Look) bool {
	type move struct {
		ino  uint32
		held bool
	}
	moves := make([]move, len(t.ring))
	for i := range t.ring {
		moves[i].ino, moves[i].held = t.detach(t.ring[i].OldPath)
	}
	for i := range t.ring {
		e, m := &t.ring[i], moves[i]
		if !m.held {
			if !t.arrive(e, look, false) {
				return false
			}
			continue
		}
		at, d, name := t.find(e.Path)
		s := outside
		if d != nil {
			if s = d.scope; s != inside {
				s = t.scope(e.Path)
			}
		}
		if s == outside {
			t.release(m.ino)
			continue
		}
		if _, taken := d.names[name]; taken || !t.grow(nameCost+int64(len(name))) {
			return t.full
		}
		name = strings.Clone(name)
		d.names[name] = m.ino
		f := t.state(e, look)
		old := t.files[m.ino]
		if !old.same(&f) {
			return false
		}
		f.names = old.names + 1
		t.files[m.ino] = f
		moved := t.dirs[m.ino]
		switch {
		case moved == nil:
		case moved.scope == inside && s == inside:
			moved.up, moved.name, moved.long = at, name, d.long+1+len(name)
		default: // other names in it are watched now
			for _, child := range t.empty(m.ino) {
				t.release(child)
			}
			t.putDir(at, name, m.ino, s, false)
		}
	}
	return true
}
