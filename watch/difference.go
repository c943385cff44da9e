package watch

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"vmscope/event"
	"vmscope/fsinfer"
	"vmscope/fsinfer/ext4"
	"vmscope/mem"
)

// difference tells what makes one tree another, in an order in which each event is possible: files that went, renames,
// directories that went, what came from the root down, and then what changed in files that stayed. Renames stand in each
// other's way as they like: those that cannot be done at once make a stop at a name of our own in the root.
type difference struct {
	old, now *tree // old becomes now as it is told
	look     fsinfer.Look
	tid      uint64
	tell     func(event.Event) error
	err      error // of tell, or errTangled
	long     bool  // some paths were too long to be told

	gone  map[uint32][]name // names of files that stayed, which they have no longer
	come  map[uint32][]name // and such as they have got
	moves []move
	away  map[name]name // the stops of renames, by where they go
}

// name is a name in a directory.
type name struct {
	dir  uint32
	name string
}

type move struct {
	ino      uint32
	from, to name
}

// errTangled says that finding paths takes longer than trees of their size may, as where thousands of names lie thousands of
// directories deep.
var errTangled = errors.New("the directories are too deep")

// tellDifference tells by which events old becomes now; old is void then. The look is at now. It ends with the first error
// of tell, or with errTangled.
func tellDifference(old, now *tree, look fsinfer.Look, tid uint64, tell func(event.Event) error) error {
	d := &difference{old: old, now: now, look: look, tid: tid, tell: tell, gone: map[uint32][]name{}, come: map[uint32][]name{}, away: map[name]name{}}
	d.remove(d.compare())
	for range rounds {
		if some := d.move(); !d.removeDirs() && !some {
			break
		}
	}
	d.stop()
	d.removeDirs()
	d.add()
	if d.long {
		now.complain(fmt.Errorf("what changed below paths longer than %d bytes is not told: %w", maxPath, mem.ErrInconsistent))
	}
	return d.err
}

// path is where a name is to be told; "" if that cannot be.
func (d *difference) path(n name) string {
	p, ok := d.old.join(n.dir, n.name)
	if ok = ok && len(p) <= maxPath; !ok {
		d.long = true
		return ""
	}
	return p
}

// tired ends it if it takes too long.
func (d *difference) tired() bool {
	if d.err == nil && (d.old.tired() || d.now.tired()) {
		d.err = errTangled
	}
	return d.err != nil
}

// rounds bounds how often renames are tried that were in the way of each other.
const rounds = 16

// stays says whether an inode is of the same file in both trees.
func (d *difference) stays(ino uint32) bool {
	old, ok := d.old.files[ino]
	now, is := d.now.files[ino]
	return ok && is && old.same(&now) || ino == ext4.RootInode
}

// compare finds the names that went and came, and pairs them to renames. It gives those that are to be removed, but for directories.
func (d *difference) compare() (removed []name) {
	for at, x := range d.old.dirs {
		other := d.now.dirs[at]
		for s, ino := range x.names {
			switch {
			case !d.stays(ino):
				if f := d.old.files[ino]; !f.isDir() {
					removed = append(removed, name{at, s})
				}
			case !d.stays(at) || other.names[s] != ino:
				d.gone[ino] = append(d.gone[ino], name{at, s})
			}
		}
	}
	for at, x := range d.now.dirs {
		other := d.old.dirs[at]
		for s, ino := range x.names {
			if d.stays(ino) && (!d.stays(at) || other.names[s] != ino) {
				d.come[ino] = append(d.come[ino], name{at, s})
			}
		}
	}
	for ino, from := range d.gone {
		to := d.come[ino]
		slices.SortFunc(from, byName)
		slices.SortFunc(to, byName)
		n := min(len(from), len(to))
		for i := range n {
			d.moves = append(d.moves, move{ino, from[i], to[i]})
		}
		removed = append(removed, from[n:]...)
	}
	slices.SortFunc(d.moves, func(a, b move) int { return cmp.Or(cmp.Compare(a.ino, b.ino), byName(a.from, b.from)) })
	slices.SortFunc(removed, byName)
	return removed
}

func byName(a, b name) int { return cmp.Or(cmp.Compare(a.dir, b.dir), cmp.Compare(a.name, b.name)) }

// send tells an event of the file that an inode is, or was.
func (d *difference) send(op event.Op, ino uint32, e event.Event) {
	if d.tired() || e.Path == "" || op == event.Rename && e.OldPath == "" {
		return
	}
	e.Op, e.Inode, e.TID, e.Source = op, uint64(ino), d.tid, event.Resync
	if f, _ := d.look.File(uint64(ino)); f.Attr.Kind != "" && d.same(op, ino, &f) { // what cannot be read was told when the tree was read
		e.Generation, e.Attr, e.Target, e.Device = f.Generation, &f.Attr, f.Target, f.Device
		if f.Encrypted && e.Detail == "" {
			e.Detail = event.Encrypted
		}
		if op != event.Symlink {
			e.Target = ""
		}
		if op != event.Mknod {
			e.Device = 0
		}
	} else {
		f := d.old.files[ino]
		e.Generation = f.generation
		e.Attr = &event.Attr{Kind: kinds[f.kind], Mode: uint32(f.mode), UID: f.uid, GID: f.gid, Size: f.size}
	}
	d.err = d.tell(e)
}

// same says whether what a look shows is the file that an event is of: of what is removed, the number may have gone to another.
func (d *difference) same(op event.Op, ino uint32, f *fsinfer.File) bool {
	if op != event.RmFile && op != event.RmDir {
		return true
	}
	old, now := d.old.files[ino], fileOf(f)
	return old.same(&now)
}

// remove removes files that went, and names that files lost.
func (d *difference) remove(names []name) {
	for _, n := range names {
		ino := d.old.dirs[n.dir].names[n.name]
		d.send(event.RmFile, ino, event.Event{Path: d.path(n)})
		d.drop(n)
		if f := d.old.files[ino]; f.names == 0 {
			delete(d.old.files, ino)
		}
	}
}

func (d *difference) drop(n name) {
	x := d.old.dirs[n.dir]
	ino := x.names[n.name]
	delete(x.names, n.name)
	f := d.old.files[ino]
	f.names--
	d.old.files[ino] = f
}

// rename renames, and tells it.
func (d *difference) rename(m move, detail string) {
	d.send(event.Rename, m.ino, event.Event{OldPath: d.path(m.from), Path: d.path(m.to), Detail: detail})
	delete(d.old.dirs[m.from.dir].names, m.from.name)
	d.old.dirs[m.to.dir].names[m.to.name] = m.ino
	if x := d.old.dirs[m.ino]; x != nil {
		x.up, x.name = m.to.dir, m.to.name
	}
}

// move does the renames that can be done; false if there were none.
func (d *difference) move() (some bool) {
	rest := d.moves[:0]
	for _, m := range d.moves {
		if d.tired() {
			return false
		}
		if d.possible(m) {
			d.rename(m, "")
			some = true
		} else {
			rest = append(rest, m)
		}
	}
	d.moves = rest
	return some
}

// possible says whether a rename can be done now: there is the directory, the name is free, and no directory goes into itself.
func (d *difference) possible(m move) bool {
	if !d.stays(m.to.dir) {
		return false
	}
	if _, taken := d.old.dirs[m.to.dir].names[m.to.name]; taken {
		return false
	}
	if d.old.dirs[m.ino] == nil {
		return true
	}
	for at := m.to.dir; at != ext4.RootInode && !d.tired(); at = d.old.dirs[at].up {
		if at == m.ino {
			return false
		}
		d.old.steps += stepCost
	}
	return true
}

// stop has the other renames make a stop, each at a name that neither tree has.
func (d *difference) stop() {
	root := d.old.dirs[ext4.RootInode].names
	for i, m := range d.moves {
		stop := name{ext4.RootInode, fmt.Sprintf(".vmscope-%d-%d", d.tid, m.ino)}
		for taken := func() bool {
			_, a := root[stop.name]
			_, b := d.now.dirs[ext4.RootInode].names[stop.name]
			return a || b
		}; taken(); {
			stop.name += fmt.Sprintf("-%d", i)
		}
		d.rename(move{m.ino, m.from, stop}, "by way of a name that is not on the disk")
		d.away[m.to] = stop
	}
}

// removeDirs removes directories that went and are empty; false if there were none.
func (d *difference) removeDirs() (some bool) {
	var list []name
	for ino, x := range d.old.dirs {
		if !d.stays(ino) && len(x.names) == 0 {
			list = append(list, name{x.up, x.name})
		}
	}
	slices.SortFunc(list, byName)
	for len(list) > 0 {
		n := list[0]
		list = list[1:]
		ino := d.old.dirs[n.dir].names[n.name]
		d.send(event.RmDir, ino, event.Event{Path: d.path(n)})
		d.drop(n)
		delete(d.old.files, ino)
		delete(d.old.dirs, ino)
		if x := d.old.dirs[n.dir]; !d.stays(n.dir) && len(x.names) == 0 {
			list = append(list, name{x.up, x.name})
		}
		some = true
	}
	return some && d.err == nil
}

// add makes what is new, from the root down, and then tells what changed in what stayed.
func (d *difference) add() {
	type changed struct {
		ino  uint32
		in   string // the path of its directory, which many share
		name string
	}
	var changes []changed
	seen := map[uint32]bool{} // of files with several names
	visit := func(ino uint32, in, name string) {
		if d.stays(ino) && !seen[ino] && d.differs(ino) {
			changes = append(changes, changed{ino, in, name})
		}
		if d.now.files[ino].names > 1 {
			seen[ino] = true
		}
	}
	visit(ext4.RootInode, "", "")
	for queue := []uint32{ext4.RootInode}; len(queue) > 0 && !d.tired(); {
		at := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		here, old := d.now.dirs[at], d.old.dirs[at]
		in, ok := d.now.path(at)
		for _, s := range slices.Sorted(maps.Keys(here.names)) {
			n, ino := name{at, s}, here.names[s]
			if stop, ok := d.away[n]; ok {
				d.rename(move{ino, stop, n}, "")
			} else if _, there := old.names[s]; !there {
				d.create(n, ino, d.stays(ino) || seen[ino])
			}
			if ok && len(in)+1+len(s) <= maxPath {
				visit(ino, strings.TrimSuffix(in, "/"), s)
			} else {
				d.long = true
			}
			if d.now.dirs[ino] != nil {
				queue = append(queue, ino)
			}
		}
	}
	for _, c := range changes {
		if d.tired() {
			return
		}
		d.now.steps += int64(len(c.in))
		d.change(c.ino, c.in+"/"+c.name)
	}
}

// create makes a name, of a new file or of one that has others.
func (d *difference) create(n name, ino uint32, more bool) {
	op := event.Mknod
	f := d.now.files[ino]
	switch kinds[f.kind] {
	case event.Dir:
		op = event.MkDir
		d.old.dirs[ino] = &dir{up: n.dir, name: n.name, names: map[string]uint32{}}
	case event.File:
		op = event.MkFile
	case event.Lnk:
		op = event.Symlink
	}
	if more {
		op = event.Link
	}
	d.send(op, ino, event.Event{Path: d.path(n)})
	d.old.dirs[n.dir].names[n.name] = ino
}

// differs says whether anything but names is to be told of a file that stayed.
func (d *difference) differs(ino uint32) bool {
	old, now := d.old.files[ino], d.now.files[ino]
	return old.says(&now) || d.content(ino)
}

// says says whether an inode says something else of itself, beside its content.
func (f *file) says(g *file) bool {
	return f.mode != g.mode || f.uid != g.uid || f.gid != g.gid || f.xattrs != g.xattrs
}

// content says whether the content changed, or may have: times can be set back, but for that of the last change of the inode.
// Where that is the only one that moved, and something else explains it, the content is taken for the same.
func (d *difference) content(ino uint32) bool {
	old, now := d.old.files[ino], d.now.files[ino]
	if kinds[now.kind] != event.File {
		return false
	}
	explained := old.says(&now) || d.gone[ino] != nil || d.come[ino] != nil
	return old.size != now.size || now.size > 0 && (old.modified != now.modified || old.changed != now.changed && !explained)
}

// change tells what changed in a file that stayed.
func (d *difference) change(ino uint32, path string) {
	tell := func(op event.Op) { d.send(op, ino, event.Event{Path: path}) }
	old, now := d.old.files[ino], d.now.files[ino]
	if old.uid != now.uid || old.gid != now.gid {
		tell(event.Chown)
	}
	if old.mode != now.mode {
		tell(event.Chmod)
	}
	if d.content(ino) {
		if now.size < old.size {
			tell(event.Truncate)
		}
		if now.size > 0 { // which bytes, nobody knows
			tell(event.Write)
		}
	}
	if old.xattrs != now.xattrs {
		tell(event.Xattr)
	}
}
