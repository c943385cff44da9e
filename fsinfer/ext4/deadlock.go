package ext4

import (
	"fmt"
	"slices"
	"strings"

	"vmscope/event"
	"vmscope/mem"
)

// maxSteps bounds the search for an order, which takes time by the square of what is in the way.
const maxSteps = 1 << 26

// unlock is called when every operation that is left waits. It tells rings of names that change places, lets go of the wish
// that a number's old file goes before its new one comes, and, if the change contradicts itself, says so.
func (s *ordering) unlock() bool {
	if s.steps += len(s.ops); s.steps > maxSteps {
		s.t.fail(fmt.Errorf("transaction %d: no order of its changes of names was found: %w", s.t.tid, mem.ErrInconsistent))
		for i := range s.ops {
			if o := &s.ops[i]; !o.done {
				s.force(o)
			}
		}
		return true
	}
	if rings := s.rings(); len(rings) > 0 {
		for _, ring := range rings {
			if !s.exchange(ring) {
				s.detour(ring[0])
			}
		}
		return true
	}
	// A directory is to go, and holds a name that cannot go to its place yet.
	for i := range s.ops {
		if o := &s.ops[i]; !o.done && o.kind == opRename && !o.away {
			if d := s.dirs[o.from.dir]; d.remover != nil && !d.remover.done {
				s.detour(o)
				return true
			}
		}
	}
	for i := range s.ops {
		if o := &s.ops[i]; !o.done && o.kind == opCreate && !o.lax {
			if why, _ := s.blocker(o); why == stale {
				o.lax = true
				s.queue = append(s.queue, o)
				return true
			}
		}
	}
	for i := range s.ops {
		if o := &s.ops[i]; !o.done && o.kind == opRename && !o.away {
			s.detour(o)
			return true
		}
	}
	for i := range s.ops {
		if o := &s.ops[i]; !o.done {
			s.t.fail(fmt.Errorf("transaction %d: no order of its changes of names is possible (inode %d): %w", s.t.tid, o.ino, mem.ErrInconsistent))
			s.force(o)
			return true
		}
	}
	return false
}

// force does an operation whatever stands in its way.
func (s *ordering) force(o *op) {
	s.tell(o, "the order is not known")
	s.settle(o)
}

// rings finds renames of which each waits for the next one's name, and the last for that of the first. No rename is in two.
func (s *ordering) rings() (all [][]*op) {
	seen := map[*op]int{}
	for i := range s.ops {
		var chain []*op
		for o := &s.ops[i]; o != nil && !o.done && o.kind == opRename; o = o.holder {
			mark, before := seen[o]
			if before && mark == i {
				all = append(all, chain[slices.Index(chain, o):])
			}
			if before {
				break
			}
			if why, _ := s.blocker(o); why != taken {
				break
			}
			seen[o] = i
			chain = append(chain, o)
		}
	}
	return all
}

// detour moves a name out of the way, to one that the disk never held: the guest had a name in between, too, that it took
// back before the transaction ended.
func (s *ordering) detour(o *op) {
	from := o.from
	o.away = true
	stop := *o
	stop.to = place{node{ino: RootInode}, fmt.Sprintf(".vmscope-%d-%d", s.t.tid, o.ino)}
	if o.file.detours++; o.file.detours > 1 { // another name of the same file
		stop.to.name += fmt.Sprintf("-%d", o.file.detours)
	}
	s.tell(&stop, "by way of a name that was gone before the transaction ended")
	o.from = stop.to
	o.file.last = o
	s.dir(o.from.dir).leaving++
	s.t.f.learn(s.t, &stop)
	s.queue = append(s.queue, o)
	s.vacate(o, from)
	if o.in.IsDir() {
		// What waited for the directory to be elsewhere looks again.
		s.settleDir(s.dir(node{ino: o.ino}), o.from)
	}
}

// exchange tells a ring of names that change places: adjacent renames, all paths as they were before the first. It does
// nothing where one of the names lies below another: paths would not mean the same before and behind.
func (s *ordering) exchange(ring []*op) bool {
	var paths [][2]string
	for _, o := range ring {
		from, err := s.path(o.from)
		s.t.untold(err)
		to, err := s.path(o.to)
		s.t.untold(err)
		paths = append(paths, [2]string{from, to})
	}
	if nested(paths) {
		return false
	}
	for i, o := range ring {
		e := s.t.event(event.Rename, o.in)
		e.OldPath, e.Path, e.Detail = paths[i][0], paths[i][1], event.Exchange
	}
	for _, o := range ring {
		s.settle(o)
	}
	return true
}

// nested says whether the first of one pair lies below that of another.
func nested(paths [][2]string) bool {
	const name, dir = true, false
	all := make(map[string]bool, len(paths)) // and the directories above that were looked at
	for _, p := range paths {
		all[p[0]] = name
	}
	for _, p := range paths {
		for i := strings.LastIndexByte(p[0], '/'); i > 0; i = strings.LastIndexByte(p[0][:i], '/') {
			what, known := all[p[0][:i]]
			if what == name && known {
				return true
			}
			if known {
				break
			}
			all[p[0][:i]] = dir
		}
	}
	return false
}
