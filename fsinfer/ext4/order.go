package ext4

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"vmscope/event"
	"vmscope/mem"
)

type opKind uint8

const (
	opRemove opKind = iota
	opRename
	opCreate
	opLink
)

// op is one net change of a name.
type op struct {
	kind     opKind
	ino      uint32
	from, to place
	in       *Inode // state behind the change; of a removal, before it
	done     bool
	away     bool // stands at a name of our own, to let others pass
	lax      bool // may go though an older file of the same number is still named
}

// names pairs names that went with names that came, and tells them in an order in which each step is possible.
func (t *txn) names() {
	if len(t.removed) == 0 && len(t.added) == 0 {
		return
	}
	order := func(a, b edit) int {
		switch {
		case a.ino != b.ino:
			return cmp.Compare(a.ino, b.ino)
		case a.dir.ino != b.dir.ino:
			return cmp.Compare(a.dir.ino, b.dir.ino)
		}
		return strings.Compare(a.name, b.name)
	}
	slices.SortFunc(t.removed, order)
	slices.SortFunc(t.added, order)
	ops := make([]*op, 0, max(len(t.removed), len(t.added)))
	t.slab = make([]op, 0, len(t.removed)+len(t.added))
	for gone, come := t.removed, t.added; len(gone) > 0 || len(come) > 0; {
		var ino uint32
		switch {
		case len(gone) == 0:
			ino = come[0].ino
		case len(come) == 0:
			ino = gone[0].ino
		default:
			ino = min(gone[0].ino, come[0].ino)
		}
		i, j := leading(gone, ino), leading(come, ino)
		ops = t.pair(ops, ino, gone[:i], come[:j])
		gone, come = gone[i:], come[j:]
	}
	t.events = slices.Grow(t.events, len(ops))
	t.sim = newSim(t, ops)
	t.sim.run()
}

// leading counts the first edits of one inode.
func leading(edits []edit, ino uint32) int {
	n := 0
	for n < len(edits) && edits[n].ino == ino {
		n++
	}
	return n
}

// pair makes of one inode's edits what the guest did.
func (t *txn) pair(ops []*op, ino uint32, gone, come []edit) []*op {
	old, now, err := t.states(ino)
	if err != nil {
		t.fail(err)
	}
	one := live(old) && live(now) && same(old, now)
	if one && len(gone) == 0 && t.f.parents.of(ino) == 0 && t.source != event.Home {
		// A file without a name got one (O_TMPFILE and linkat), or one whose inode a fast commit told before its name.
		one = false
	}
	if t.source == event.Home {
		// An inode may have come before its first name, or gone before its last.
		id, named := t.f.home.files[ino]
		one = named && live(now) && id == identityOf(now)
		if named && id != identityOf(old) {
			old = &Inode{Number: ino, Generation: id.generation, Mode: id.kind}
		}
	}
	if one {
		if now.IsDir() && len(come) > len(gone) && len(gone) == 0 {
			// A directory has one name. The other is one that the disk will lose soon, or has lost unseen.
			if p, err := t.f.dirPlace(t.old, ino); err == nil {
				gone = append(gone, edit{p, ino})
			}
		}
		n := min(len(gone), len(come))
		for i := range n {
			ops = append(ops, t.op(op{kind: opRename, ino: ino, from: gone[i].place, to: come[i].place, in: now}))
		}
		gone, come = gone[n:], come[n:]
		for _, e := range gone {
			ops = append(ops, t.op(op{kind: opRemove, ino: ino, from: e.place, in: old}))
		}
		for _, e := range come {
			ops = append(ops, t.op(op{kind: opLink, ino: ino, to: e.place, in: now}))
		}
		return ops
	}
	for _, e := range gone {
		ops = append(ops, t.op(op{kind: opRemove, ino: ino, from: e.place, in: old}))
	}
	for i, e := range come {
		kind := opCreate
		if i > 0 {
			kind = opLink
		}
		ops = append(ops, t.op(op{kind: kind, ino: ino, to: e.place, in: now}))
	}
	return ops
}

// op keeps an operation.
func (t *txn) op(o op) *op {
	if len(t.slab) == cap(t.slab) { // it must not move
		return &o
	}
	t.slab = append(t.slab, o)
	return &t.slab[len(t.slab)-1]
}

// states gives an inode before and behind the change.
func (t *txn) states(ino uint32) (old, now *Inode, err error) {
	if c := t.inodes[ino]; c != nil {
		return &c.old, &c.new, nil
	}
	in, err := t.old.inode(make([]byte, t.f.sb.BlockSize), ino)
	if err != nil {
		in.Number = ino
	}
	in.InBody = nil
	return &in, &in, err
}

// sim plays the operations on the tree as it was, and finds the order as it goes: an operation that cannot be done yet waits
// for the one thing that stands in its way, and is looked at again when that is gone.
type sim struct {
	t       *txn
	ops     []*op
	queue   []*op
	waiters map[any][]*op

	holds   map[place]*op    // who will free a name
	makes   map[node]*op     // who will make a directory
	births  map[uint32]*op   // who will make a file of that number
	moves   map[uint32]*op   // who will move a directory
	leaving map[node]int     // names that still have to leave a directory
	stale   map[uint32]int   // names of an older file of that number that still have to go
	at      map[node]place   // directories that moved or came, where they are now
	last    map[uint32]place // a name of each file that was touched
	left    int
	steps   int // of looking for a way out
	bytes   int // of paths
}

// What an operation waits for; a place stands for its name being free.
type (
	waitMade  node
	waitEmpty node
	waitBorn  uint32
	waitMoved uint32
	waitStale uint32
)

func newSim(t *txn, ops []*op) *sim {
	s := &sim{
		t: t, ops: ops, queue: slices.Clone(ops), left: len(ops), waiters: map[any][]*op{},
		holds: make(map[place]*op, len(t.removed)), makes: map[node]*op{}, births: make(map[uint32]*op, len(t.added)), moves: map[uint32]*op{},
		leaving: map[node]int{}, stale: make(map[uint32]int, len(t.removed)), at: map[node]place{}, last: make(map[uint32]place, len(t.added)),
	}
	for _, o := range ops {
		switch o.kind {
		case opRemove:
			s.holds[o.from] = o
			s.leaving[o.from.dir]++
			s.stale[o.ino]++
			if o.in.IsDir() {
				s.at[node{ino: o.ino}] = o.from
			}
		case opRename:
			s.holds[o.from] = o
			s.leaving[o.from.dir]++
			if o.in.IsDir() {
				s.moves[o.ino] = o
				s.at[node{ino: o.ino}] = o.from
			}
		case opCreate:
			s.births[o.ino] = o
			if o.in.IsDir() {
				s.makes[s.made(o)] = o
			}
		}
	}
	return s
}

// made is the directory that an operation creates.
func (s *sim) made(o *op) node {
	return node{o.ino, s.t.isReplaced(o.ino)}
}

func (s *sim) run() {
	for s.left > 0 {
		for len(s.queue) > 0 {
			o := s.queue[0]
			s.queue = s.queue[1:]
			if o.done {
				continue
			}
			if key := s.blocker(o); key != nil {
				s.waiters[key] = append(s.waiters[key], o)
				continue
			}
			s.tell(o, "")
			s.settle(o)
		}
		if s.left > 0 && !s.unlock() {
			return
		}
	}
}

// blocker gives what stands in an operation's way, nil if nothing does.
func (s *sim) blocker(o *op) any {
	if o.kind == opRemove {
		if d := (node{ino: o.ino}); o.in.IsDir() && s.leaving[d] > 0 {
			return waitEmpty(d)
		}
		return nil
	}
	if s.makes[o.to.dir] != nil {
		return waitMade(o.to.dir)
	}
	if h := s.holds[o.to]; h != nil && h != o {
		return o.to
	}
	switch o.kind {
	case opCreate:
		if s.stale[o.ino] > 0 && !o.lax {
			return waitStale(o.ino)
		}
	case opLink:
		if s.births[o.ino] != nil {
			return waitBorn(o.ino)
		}
	case opRename:
		if o.in.IsDir() {
			if above, ok := s.inside(o.to.dir, o.ino); ok {
				return waitMoved(above)
			}
		}
	}
	return nil
}

// inside reports whether directory d lies in directory ino now, and which directory between them is yet to move.
func (s *sim) inside(d node, ino uint32) (mover uint32, ok bool) {
	for range maxDepth {
		if d.ino == ino {
			return mover, true
		}
		if d.ino == RootInode {
			return 0, false
		}
		if s.moves[d.ino] != nil {
			mover = d.ino
		}
		p, err := s.locate(d)
		if err != nil {
			return 0, false
		}
		d = p.dir
	}
	return 0, false
}

// maxDepth bounds the way from a directory to the root: a path of 4096 bytes has no more parts, but a tree may be deeper.
const maxDepth = 1 << 13

// locate tells where a directory stands now.
func (s *sim) locate(d node) (place, error) {
	if p, ok := s.at[d]; ok {
		return p, nil
	}
	return s.t.f.dirPlace(s.t.old, d.ino)
}

// path gives the path of a name as things stand now.
func (s *sim) path(p place) (string, error) {
	if s.bytes > maxPaths {
		return "", fmt.Errorf("transaction %d: more than %d bytes of paths: %w", s.t.tid, maxPaths, mem.ErrInconsistent)
	}
	path, err := joinPath(p, s.locate)
	s.bytes += len(path)
	return path, err
}

// joinPath walks from a name up to the root.
func joinPath(p place, locate func(node) (place, error)) (string, error) {
	var some [16]string
	parts := append(some[:0], p.name)
	size := len(p.name) + 1
	for d := p.dir; d.ino != RootInode; {
		up, err := locate(d)
		if err != nil {
			return "", err
		}
		parts = append(parts, up.name)
		if size += len(up.name) + 1; size > maxPath || len(parts) > maxDepth {
			return "", fmt.Errorf("directory inode %d: its path has no end: %w", p.dir.ino, mem.ErrInconsistent)
		}
		d = up.dir
	}
	path := make([]byte, 0, size)
	for i := len(parts) - 1; i >= 0; i-- {
		path = append(append(path, '/'), parts[i]...)
	}
	return string(path), nil
}

// maxPath bounds a path, in bytes. A tree may be deeper than the paths that a process may name.
const maxPath = 1 << 16

// maxPaths bounds the paths of one change, in bytes.
const maxPaths = 256 << 20

// settle takes note that an operation was done and wakes those that waited for it.
func (s *sim) settle(o *op) {
	o.done = true
	s.left--
	if o.kind == opRemove || o.kind == opRename {
		if s.holds[o.from] == o {
			delete(s.holds, o.from)
		}
		s.wake(o.from)
		if s.leaving[o.from.dir]--; s.leaving[o.from.dir] == 0 {
			s.wake(waitEmpty(o.from.dir))
		}
	}
	switch o.kind {
	case opRemove:
		if s.stale[o.ino]--; s.stale[o.ino] == 0 {
			s.wake(waitStale(o.ino))
		}
	case opRename:
		if o.in.IsDir() {
			s.at[node{ino: o.ino}] = o.to
			delete(s.moves, o.ino)
			s.wake(waitMoved(o.ino))
		}
	case opCreate:
		if o.in.IsDir() {
			d := s.made(o)
			s.at[d] = o.to
			delete(s.makes, d)
			s.wake(waitMade(d))
		}
		if s.t.source == event.Home {
			s.t.named[o.ino] = true
		}
		delete(s.births, o.ino)
		s.wake(waitBorn(o.ino))
	}
	if o.kind != opRemove {
		s.last[o.ino] = o.to
	}
	s.t.f.learn(s.t, o)
}

func (s *sim) wake(key any) {
	if w := s.waiters[key]; w != nil {
		s.queue = append(s.queue, w...)
		delete(s.waiters, key)
	}
}

// maxSteps bounds the search for an order, which takes time by the square of what is in the way.
const maxSteps = 1 << 26

// unlock is called when every operation that is left waits. It tells rings of names that change places, lets go of the wish
// that a number's old file goes before its new one comes, and, if the change contradicts itself, says so.
func (s *sim) unlock() bool {
	if s.steps += len(s.ops); s.steps > maxSteps {
		s.t.fail(fmt.Errorf("transaction %d: no order of its changes of names was found: %w", s.t.tid, mem.ErrInconsistent))
		for _, o := range s.ops {
			if !o.done {
				s.tell(o, "the order is not known")
				s.settle(o)
			}
		}
		return true
	}
	seen := map[*op]int{}
	for i, start := range s.ops {
		if start.done || start.kind != opRename {
			continue
		}
		var chain []*op
		for o := start; o != nil && !o.done && o.kind == opRename; {
			if _, ok := s.blocker(o).(place); !ok {
				break
			}
			if mark, ok := seen[o]; ok {
				if mark == i {
					ring := chain[slices.Index(chain, o):]
					if !s.exchange(ring) {
						s.detour(ring[0])
					}
					return true
				}
				break
			}
			seen[o] = i
			chain = append(chain, o)
			o = s.holds[o.to]
		}
	}
	for _, o := range s.ops {
		if !o.done && o.kind == opRename && !o.away && s.waiters[waitEmpty(o.from.dir)] != nil {
			s.detour(o)
			return true
		}
	}
	for _, o := range s.ops {
		if !o.done && o.kind == opCreate && !o.lax {
			if _, ok := s.blocker(o).(waitStale); ok {
				o.lax = true
				s.queue = append(s.queue, o)
				return true
			}
		}
	}
	for _, o := range s.ops {
		if !o.done && o.kind == opRename && !o.away {
			s.detour(o)
			return true
		}
	}
	for _, o := range s.ops {
		if !o.done {
			s.t.fail(fmt.Errorf("transaction %d: no order of its changes of names is possible (inode %d): %w", s.t.tid, o.ino, mem.ErrInconsistent))
			s.tell(o, "the order is not known")
			s.settle(o)
			return true
		}
	}
	return false
}

// detour moves a name out of the way, to one that the disk never held: the guest had a name in between, too, that it took
// back before the transaction ended.
func (s *sim) detour(o *op) {
	from := o.from
	o.away = true
	stop := *o
	stop.to = place{node{ino: RootInode}, fmt.Sprintf(".vmscope-%d-%d", s.t.tid, o.ino)}
	s.tell(&stop, "by way of a name that was gone before the transaction ended")
	o.from = stop.to
	delete(s.holds, from)
	if o.in.IsDir() {
		s.at[node{ino: o.ino}] = o.from
	}
	s.leaving[o.from.dir]++
	s.last[o.ino] = o.from
	s.t.f.learn(s.t, &stop)
	s.queue = append(s.queue, o)
	s.wake(from)
	if s.leaving[from.dir]--; s.leaving[from.dir] == 0 {
		s.wake(waitEmpty(from.dir))
	}
	// What waited for the directory to be elsewhere looks again.
	s.wake(waitMoved(o.ino))
}

// exchange tells a ring of names that change places: adjacent renames, all paths as they were before the first. It does
// nothing where one of the names lies below another: paths would not mean the same before and behind.
func (s *sim) exchange(ring []*op) bool {
	var paths [][2]string
	for _, o := range ring {
		from, err := s.path(o.from)
		s.t.fail(err)
		to, err := s.path(o.to)
		s.t.fail(err)
		paths = append(paths, [2]string{from, to})
	}
	for _, p := range paths {
		for _, q := range paths {
			if strings.HasPrefix(q[0], p[0]+"/") {
				return false
			}
		}
	}
	for i, o := range ring {
		s.t.emit(event.Event{Op: event.Rename, OldPath: paths[i][0], Path: paths[i][1], Inode: uint64(o.ino), Generation: o.in.Generation, Attr: attrOf(o.in), Detail: "exchange"})
	}
	for _, o := range ring {
		s.settle(o)
	}
	return true
}

// tell emits the event of an operation.
func (s *sim) tell(o *op, detail string) {
	e := event.Event{Inode: uint64(o.ino), Generation: o.in.Generation, Attr: attrOf(o.in), Detail: detail}
	var err error
	switch o.kind {
	case opRemove:
		e.Op = event.RmFile
		if o.in.IsDir() {
			e.Op = event.RmDir
		}
		if e.Path, err = s.path(o.from); err == nil {
			e.Attr.Nlink = 0
			if c := s.t.inodes[o.ino]; c != nil && c.stays() {
				e.Attr.Nlink = c.new.Links
			}
		}
	case opRename:
		e.Op = event.Rename
		if e.OldPath, err = s.path(o.from); err == nil {
			e.Path, err = s.path(o.to)
		}
	case opLink:
		e.Op = event.Link
		if e.Path, err = s.path(o.to); err == nil {
			if p, ok := s.last[o.ino]; ok {
				e.OldPath, _ = s.path(p)
			}
		}
	case opCreate:
		e.Op = creation(o.in)
		e.Path, err = s.path(o.to)
		switch e.Op {
		case event.Symlink:
			var terr error
			e.Target, terr = s.t.f.sb.Target(s.t.new, o.in)
			s.t.fail(terr)
		case event.Mknod:
			e.Device = o.in.Rdev()
		}
	}
	if err != nil {
		s.t.fail(err)
		return
	}
	if o.in.Encrypted() && e.Detail == "" {
		e.Detail = "encrypted"
	}
	s.t.emit(e)
}

// creation is the operation that makes an inode of this kind.
func creation(in *Inode) event.Op {
	switch in.Mode & sIFMT {
	case sIFDIR:
		return event.MkDir
	case sIFREG:
		return event.MkFile
	case sIFLNK:
		return event.Symlink
	}
	return event.Mknod
}
