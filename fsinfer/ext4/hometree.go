package ext4

import (
	"bytes"
	"cmp"
	"slices"
	"time"
)

// patience is how long a name that left is held while its inode lives on: it may turn up elsewhere.
const patience = 5 * time.Second

// homeLook is one look at the disk of a file system without a journal: what its directories say now, and the tree that is to
// be told of it.
type homeLook struct {
	t     *txn
	now   map[uint32]map[string]uint32 // the directories that were looked at; nil where there is none any more
	queue []uint32
	gone  map[place]uint32 // names that leave the tree
	come  map[place]uint32
	at    map[uint32]place // the places that directories go to
	away  map[uint32]bool  // directories that leave their place
	held  map[place]time.Time
}

// isReplaced says whether a number went from one file to another.
func (t *txn) isReplaced(ino uint32) bool {
	c := t.inodes.of(ino)
	h := &t.f.home
	if h.tree == nil {
		return c != nil && c.replaced()
	}
	if is, ok := t.anew[ino]; ok {
		return is // as it was before names were told
	}
	if t.anew == nil {
		t.anew = map[uint32]bool{}
	}
	is := false
	if id, ok := h.files[ino]; ok {
		_, now, err := t.states(ino)
		is = err == nil && live(now) && id != identityOf(now)
	}
	t.anew[ino] = is
	return is
}

// homeDiff compares what the disk says of directories with what was told, and finds the names to remove and to add so that a
// tree comes to be: each directory at one place, all of them below the root.
func (t *txn) homeDiff(candidates []*change) {
	f, h := t.f, &t.f.home
	l := &homeLook{
		t: t, now: map[uint32]map[string]uint32{}, gone: map[place]uint32{}, come: map[place]uint32{}, at: map[uint32]place{},
		away: map[uint32]bool{}, held: map[place]time.Time{},
	}
	for _, c := range candidates {
		l.queue = append(l.queue, c.ino)
	}
	for _, b := range t.logged {
		if d, ok := h.owner[b]; ok {
			l.queue = append(l.queue, d)
		}
	}
	for d := range h.unclear {
		l.queue = append(l.queue, d)
	}
	// Names depend on what became of their inodes.
	for _, c := range t.changed {
		ino := c.ino
		if live(&c.old) == live(&c.new) && !t.isReplaced(ino) {
			continue
		}
		if p := f.parents.of(ino); p != 0 {
			l.queue = append(l.queue, p)
		}
		l.queue = append(l.queue, f.parents.more[ino]...)
	}
	l.look()
	l.choose()
	l.attach()
	h.held = l.held
	for p, ino := range l.gone {
		t.removed = append(t.removed, edit{place: p, ino: ino})
	}
	for p, ino := range l.come {
		t.added = append(t.added, edit{place: p, ino: ino})
	}
}

// look lists the directories of the queue, and those that turn up new in them.
func (l *homeLook) look() {
	t, f, h := l.t, l.t.f, &l.t.f.home
	buf := make([]byte, f.sb.BlockSize)
	for len(l.queue) > 0 {
		d := l.queue[len(l.queue)-1]
		l.queue = l.queue[:len(l.queue)-1]
		if _, ok := l.now[d]; ok {
			continue
		}
		l.now[d] = nil
		delete(h.unclear, d)
		in, err := t.new.inode(buf, d)
		fresh := t.isReplaced(d)
		if err == nil && live(&in) && in.IsDir() {
			in.InBody = bytes.Clone(in.InBody)
			names, clear := f.homeList(t.new, &in)
			l.now[d] = names
			f.own(t.new, d, &in)
			if !clear {
				h.unclear[d] = true
			}
		} else {
			f.own(t.new, d, nil)
		}
		was, is := h.tree[d], l.now[d]
		for name, ino := range was {
			if other, ok := is[name]; t.isReplaced(ino) || !ok || other != ino || fresh {
				l.leave(place{node{ino: d}, name}, ino)
			}
		}
		for name, ino := range is {
			if other, ok := was[name]; t.isReplaced(ino) || !ok || other != ino || fresh {
				l.come[place{node{d, fresh}, name}] = ino
				if h.tree[ino] == nil || t.isReplaced(ino) {
					if _, now, err := t.states(ino); err == nil && now.IsDir() {
						l.queue = append(l.queue, ino)
					}
				}
			}
		}
	}
}

func (l *homeLook) leave(p place, ino uint32) {
	l.gone[p] = ino
	if h := &l.t.f.home; h.files[ino].kind == sIFDIR {
		l.away[ino] = true
	}
}

// choose gives each directory one place, and holds names back that may turn up elsewhere.
func (l *homeLook) choose() {
	t, f, h := l.t, l.t.f, &l.t.f.home
	places := map[uint32][]place{}
	names := map[uint32]int{} // of files: how many come
	for p, ino := range l.come {
		if _, now, err := t.states(ino); err == nil && now.IsDir() {
			places[ino] = append(places[ino], p)
		} else {
			names[ino]++
		}
	}
	for ino, list := range places {
		slices.SortFunc(list, func(a, b place) int { return cmp.Or(cmp.Compare(a.dir.ino, b.dir.ino), cmp.Compare(a.name, b.name)) })
		_, told := h.files[ino]
		stays := told && !l.away[ino] && !t.isReplaced(ino)
		best := -1
		if up, err := f.dotdot(t.new, ino); err == nil {
			best = slices.IndexFunc(list, func(p place) bool { return p.dir.ino == up })
			if stays && f.parents.of(ino) == up {
				best = -1
			} else if stays && best < 0 {
				best = -1
			}
		}
		if best < 0 && !stays {
			best = 0
		}
		for i, p := range list {
			if i == best {
				l.at[ino] = p
				continue
			}
			delete(l.come, p)
			h.unclear[p.dir.ino] = true
		}
		if best >= 0 && stays {
			// The name it has is one that the disk will lose.
			if old, err := f.dirPlace(t.old, ino); err == nil {
				l.leave(old, ino)
				h.unclear[old.dir.ino] = true
			}
		}
	}
	left := map[uint32]int{}
	for _, ino := range l.gone {
		left[ino]++
	}
	for p, ino := range l.gone {
		_, now, err := t.states(ino)
		if err != nil || !live(now) || t.isReplaced(ino) || l.now[p.dir.ino] == nil || t.isReplaced(p.dir.ino) {
			continue
		}
		if _, taken := l.come[p]; taken {
			continue
		}
		if now.IsDir() {
			if _, moves := l.at[ino]; moves {
				continue
			}
		} else {
			told := 1 + len(f.parents.more[ino])
			if int(now.Links) <= told-left[ino]+names[ino] {
				continue
			}
		}
		since, ok := h.held[p]
		if !ok {
			since = t.time
		}
		if t.time.Sub(since) >= patience {
			continue
		}
		l.held[p] = since
		delete(l.gone, p)
		left[ino]--
		delete(l.away, ino)
		h.unclear[p.dir.ino] = true
	}
}

// attach sees to it that what comes has a way to the root, and that what is in a directory that goes, goes too.
func (l *homeLook) attach() {
	t, h := l.t, &l.t.f.home
	for again := true; again; {
		again = false
		way := map[node]bool{}
		for p, ino := range l.come {
			if l.reaches(p.dir, way) {
				continue
			}
			delete(l.come, p)
			delete(l.at, ino)
			h.unclear[p.dir.ino] = true
			again = true
		}
		// A directory that goes, and has no place to go to, takes along what was in it.
		var queue []uint32
		for p, ino := range l.gone {
			if h.files[ino].kind == sIFDIR && (l.at[ino] == place{} || t.isReplaced(ino)) && h.tree[p.dir.ino] != nil {
				queue = append(queue, ino)
			}
		}
		for len(queue) > 0 {
			d := queue[len(queue)-1]
			queue = queue[:len(queue)-1]
			for name, ino := range h.tree[d] {
				p := place{node{ino: d}, name}
				if _, ok := l.gone[p]; ok {
					continue
				}
				l.leave(p, ino)
				delete(l.held, p)
				again = true
				if h.files[ino].kind == sIFDIR && l.at[ino] == (place{}) {
					queue = append(queue, ino)
				}
			}
		}
	}
}

// reaches says whether a directory will have a way to the root.
func (l *homeLook) reaches(d node, way map[node]bool) bool {
	t, f, h := l.t, l.t.f, &l.t.f.home
	var path []node
	ok := false
	for range maxDepth {
		if known, seen := way[d]; seen {
			ok = known
			break
		}
		if d.ino == RootInode {
			ok = true
			break
		}
		way[d] = false // a ring leads nowhere
		path = append(path, d)
		if p, comes := l.at[d.ino]; comes && (d.fresh || !t.isReplaced(d.ino)) {
			d = p.dir
			continue
		}
		if _, told := h.files[d.ino]; !told || l.away[d.ino] || d.fresh {
			break
		}
		up, err := f.dirPlace(t.old, d.ino)
		if err != nil {
			break
		}
		d = up.dir
	}
	for _, n := range path {
		way[n] = ok
	}
	return ok
}
