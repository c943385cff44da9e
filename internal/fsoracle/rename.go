package fsoracle

import (
	"slices"

	"vmscope/event"
)

// rename moves a name, or waits for the other renames of its ring: those that take each other's places come one after
// the other, of one transaction, and happen at once.
func (a *applying) rename() {
	e := a.event
	if len(a.ring) == 0 && find(a.root, e.Path) == nil {
		a.move()
		return
	}
	a.ring = append(a.ring, e)
	var from, to []string
	for _, e := range a.ring {
		from, to = append(from, e.OldPath), append(to, e.Path)
	}
	slices.Sort(from)
	slices.Sort(to)
	if slices.Equal(from, to) {
		a.turn()
	}
}

func (a *applying) move() {
	n := a.existing(a.event.OldPath)
	if n == nil {
		return
	}
	parent, name := a.free(a.event.Path)
	switch {
	case parent == nil:
		return
	case n == a.root || parent.below(n):
		a.wrong("moves a directory into itself")
		return
	}
	n.detach()
	n.attach(parent, name)
	a.claim(n)
}

// turn does a ring's renames all at once.
func (a *applying) turn() {
	ring, last := a.ring, a.event
	a.ring = nil
	type step struct {
		event  event.Event
		node   *node
		parent *node
		name   string
	}
	var steps []step
	for _, e := range ring {
		a.event = e
		n := a.existing(e.OldPath)
		if n == nil {
			return
		}
		if e.OldPath == e.Path || n == a.root {
			a.wrong("a ring of one")
			return
		}
		parent, name := a.place(e.Path)
		if parent == nil {
			return
		}
		steps = append(steps, step{e, n, parent, name})
	}
	for _, s := range steps {
		s.node.detach()
	}
	for _, s := range steps {
		s.node.attach(s.parent, s.name)
	}
	for _, s := range steps {
		a.event = s.event
		for n, hops := s.parent, 0; n != a.root; n, hops = n.parent, hops+1 {
			if n == s.node || hops > 1<<16 {
				a.wrong("a ring moves a directory into itself")
				s.node.detach()
				a.root.children["(lost ring)"] = s.node
				s.node.parent = a.root
				break
			}
		}
		a.claim(s.node)
	}
	a.event = last
}

// openRing gives up on a ring that does not close.
func (a *applying) openRing() {
	ring, now := a.ring, a.event
	a.ring = nil
	for _, e := range ring {
		a.event = e
		if find(a.root, e.Path) != nil {
			a.wrong("%q exists, and what follows makes no ring of renames", e.Path)
		}
	}
	for _, e := range ring { // the nearest to what was meant: what is in the way goes
		from, to := find(a.root, e.OldPath), find(a.root, e.Path)
		if from == nil || from == to || from == a.root || to == a.root || to != nil && from.below(to) {
			continue
		}
		a.event = e
		if to != nil {
			a.drop(to)
		}
		a.move()
	}
	a.event = now
}
