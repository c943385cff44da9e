package ext4

import (
	"cmp"
	"slices"

	"vmscope/event"
)

// ordering plays operations on the tree as it was, and finds their order as it goes: an operation that cannot be done yet waits
// for the one thing that stands in its way, and is looked at again when that is gone.
type ordering struct {
	t     *txn
	ops   []op // by inode
	left  int
	queue []*op // to look at again
	dirs  map[node]*orderedDir
	steps int // of looking for a way out

	moves  int // how often directories got other places
	prefix dirPath
	bytes  int // of paths
	texts  textArena
}

// ordered is what an ordering knows of an operation.
type ordered struct {
	done    bool
	vacated bool // what it frees is free
	away    bool // stands at a name of our own, to let others pass
	lax     bool // may go though an older file of the same number is still named
	file    *orderedFile
	holder  *op   // who is to free the name that it takes; nil if it is free
	waiting []*op // for the name that it frees
}

// orderedFile is what an ordering knows of an inode's number.
type orderedFile struct {
	birth   *op   // that will make it
	last    *op   // that gave it a name
	stale   int   // names of an older file of that number that still have to go
	detours int   // names that were moved out of the way
	waiting []*op // for the birth, or the last of those names
}

// orderedDir is what an ordering knows of a directory.
type orderedDir struct {
	maker, mover, remover *op   // to come; of several any
	leaving               int   // names that still have to go
	at                    place // where it is now, if placed
	placed                bool
	waiting               []*op // for it to be made, to be elsewhere, or to be empty
}

// obstacle is what stands in an operation's way.
type obstacle uint8

const (
	nothing  obstacle = iota
	taken             // its name
	notMade           // the directory of its name
	notEmpty          // the directory that it removes
	notBorn           // the file that it names
	notMoved          // a directory that lies in the one that it moves
	stale             // a name of another file of that number is still there
)

// newOrdering takes the operations, those of an inode one behind another.
func newOrdering(t *txn, ops []op, inodes int) *ordering {
	s := &ordering{t: t, ops: ops, left: len(ops), dirs: map[node]*orderedDir{}}
	files := slices.Grow(t.room.files, inodes)
	frees, takes := 0, 0 // of names that may go from one file to another
	var from *orderedDir // of the last name that an operation frees
	var fromNode node
	for i := range ops {
		o := &ops[i]
		if i == 0 || ops[i-1].ino != o.ino {
			files = append(files, orderedFile{})
		}
		o.file = &files[len(files)-1]
		if o.frees() {
			if from == nil || fromNode != o.from.dir {
				from, fromNode = s.dir(o.from.dir), o.from.dir
			}
			from.leaving++
			if !o.sole {
				frees++
			}
		}
		if o.takes() {
			takes++
		}
		switch o.kind {
		case opRemove:
			o.file.stale++
		case opCreate:
			o.file.birth = o
		}
		if o.in.IsDir() {
			s.addDir(o)
		}
	}
	t.room.files = files
	if frees > 0 && takes > 0 {
		s.findHolders(frees)
	}
	return s
}

// addDir takes note of an operation on a directory.
func (s *ordering) addDir(o *op) {
	switch o.kind {
	case opRemove:
		d := s.dir(node{ino: o.ino})
		d.remover, d.at, d.placed = o, o.from, true
	case opRename:
		d := s.dir(node{ino: o.ino})
		d.mover, d.at, d.placed = o, o.from, true
	case opCreate:
		s.dir(s.made(o)).maker = o
	}
}

// findHolders finds, for each name that is taken, the operation that frees it. So many of those that free a name are not known
// to be the only ones of it.
func (s *ordering) findHolders(frees int) {
	holds := make(map[place]*op, frees)
	for i := range s.ops {
		if o := &s.ops[i]; o.frees() && !o.sole {
			holds[o.from] = o
		}
	}
	for i := range s.ops {
		if o := &s.ops[i]; o.takes() {
			if h := holds[o.to]; h != o {
				o.holder = h
			}
		}
	}
}

// dir gives what is known of a directory, and begins to know it.
func (s *ordering) dir(d node) *orderedDir {
	if s.dirs[d] == nil {
		s.dirs[d] = &orderedDir{}
	}
	return s.dirs[d]
}

// made is the directory that an operation creates.
func (s *ordering) made(o *op) node {
	return node{o.ino, s.t.isReplaced(o.ino)}
}

func (s *ordering) run() {
	for i := range s.ops {
		s.try(&s.ops[i])
	}
	for s.left > 0 {
		for len(s.queue) > 0 {
			o := s.queue[0]
			s.queue = s.queue[1:]
			s.try(o)
		}
		if s.left > 0 && !s.unlock() {
			return
		}
	}
}

// try does an operation, or has it wait.
func (s *ordering) try(o *op) {
	if o.done {
		return
	}
	if _, until := s.blocker(o); until != nil {
		*until = append(*until, o)
		return
	}
	s.tell(o, "")
	s.settle(o)
}

// blocker gives what stands in an operation's way, and the list of those that wait until it is gone.
func (s *ordering) blocker(o *op) (obstacle, *[]*op) {
	if o.kind == opRemove {
		if o.in.IsDir() {
			if d := s.dirs[node{ino: o.ino}]; d.leaving > 0 {
				return notEmpty, &d.waiting
			}
		}
		return nothing, nil
	}
	if d := s.dirs[o.to.dir]; d != nil && d.maker != nil {
		return notMade, &d.waiting
	}
	if h := o.holder; h != nil && !h.vacated {
		return taken, &h.waiting
	}
	switch o.kind {
	case opCreate:
		if o.file.stale > 0 && !o.lax {
			return stale, &o.file.waiting
		}
	case opLink:
		if o.file.birth != nil {
			return notBorn, &o.file.waiting
		}
	case opRename:
		if o.in.IsDir() {
			if above, ok := s.inside(o.to.dir, o.ino); ok {
				return notMoved, &above.waiting
			}
		}
	}
	return nothing, nil
}

// inside reports whether directory d lies in directory ino now, and which directory between them is yet to move.
func (s *ordering) inside(d node, ino uint32) (mover *orderedDir, ok bool) {
	for range maxDepth {
		if d.ino == ino {
			if mover == nil {
				mover = s.dir(node{ino: ino})
			}
			return mover, true
		}
		if d.ino == RootInode {
			return nil, false
		}
		if known := s.dirs[node{ino: d.ino}]; known != nil && known.mover != nil {
			mover = known
		}
		p, err := s.locate(d)
		if err != nil {
			return nil, false
		}
		d = p.dir
	}
	return nil, false
}

// maxDepth bounds the way from a directory to the root: a path of 4096 bytes has no more parts, but a tree may be deeper.
const maxDepth = 1 << 13

// locate tells where a directory stands now.
func (s *ordering) locate(d node) (place, error) {
	if known := s.dirs[d]; known != nil && known.placed {
		return known.at, nil
	}
	return s.t.f.dirPlace(s.t.old, d.ino)
}

// nameOf gives the name that an operation gave an inode last.
func (s *ordering) nameOf(ino uint32) (p place, ok bool) {
	i, found := slices.BinarySearchFunc(s.ops, ino, func(o op, ino uint32) int { return cmp.Compare(o.ino, ino) })
	if !found {
		return place{}, false
	}
	return s.ops[i].file.name()
}

func (f *orderedFile) name() (p place, ok bool) {
	switch {
	case f.last == nil:
		return place{}, false
	case f.last.done:
		return f.last.to, true
	}
	return f.last.from, true // on its way
}

// settle takes note that an operation was done and wakes those that waited for it.
func (s *ordering) settle(o *op) {
	o.done = true
	s.left--
	if o.takes() {
		o.file.last = o
	}
	if o.frees() {
		s.vacate(o, o.from)
	}
	switch o.kind {
	case opRemove:
		if o.file.stale--; o.file.stale == 0 {
			s.wake(&o.file.waiting)
		}
	case opRename:
		if o.in.IsDir() {
			d := s.dir(node{ino: o.ino})
			d.mover = nil
			s.settleDir(d, o.to)
		}
	case opCreate:
		if o.in.IsDir() {
			d := s.dir(s.made(o))
			d.maker = nil
			s.settleDir(d, o.to)
		}
		if s.t.source == event.Home {
			s.t.named[o.ino] = true
		}
		o.file.birth = nil
		s.wake(&o.file.waiting)
	}
	s.t.f.learn(s.t, o)
}

// vacate takes note that an operation's inode left a name.
func (s *ordering) vacate(o *op, p place) {
	o.vacated = true
	s.wake(&o.waiting)
	d := s.dirs[p.dir]
	if d.leaving--; d.leaving == 0 {
		s.wake(&d.waiting)
	}
}

// settleDir takes note of where a directory is now.
func (s *ordering) settleDir(d *orderedDir, p place) {
	d.at, d.placed = p, true
	s.moves++
	s.wake(&d.waiting)
}

// wake has those that waited looked at again.
func (s *ordering) wake(waiting *[]*op) {
	if len(*waiting) > 0 {
		s.queue = append(s.queue, *waiting...)
		*waiting = nil
	}
}
