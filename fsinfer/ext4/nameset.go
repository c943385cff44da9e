package ext4

import (
	"hash/maphash"
	"slices"
)

// nameSet gathers names of a directory, in the order in which they come. Where a name comes twice the last counts. It is what a
// map would be, at a quarter of the cost; a guest cannot make its names collide.
type nameSet struct {
	names []listed
	slots []uint32 // by hash: index in names + 1; a power of two, at most half full
}

// listed is a name and what it leads to; 0 is nothing.
type listed struct {
	name string
	ino  uint32
}

var nameSeed = maphash.MakeSeed()

// set has a name lead to an inode, or to nothing.
func (l *nameSet) set(name string, ino uint32) {
	if 2*len(l.names) >= len(l.slots) {
		l.grow()
	}
	slot := l.slot(name)
	if i := *slot; i != 0 {
		l.names[i-1].ino = ino
		return
	}
	l.names = append(l.names, listed{name, ino})
	*slot = uint32(len(l.names))
}

// get gives what a name leads to.
func (l *nameSet) get(name string) uint32 {
	if len(l.names) == 0 {
		return 0
	}
	if i := *l.slot(name); i != 0 {
		return l.names[i-1].ino
	}
	return 0
}

// slot gives the place of a name, which holds 0 where the name is not there.
func (l *nameSet) slot(name string) *uint32 {
	mask := len(l.slots) - 1
	for h := int(maphash.String(nameSeed, name)); ; h++ {
		slot := &l.slots[h&mask]
		if *slot == 0 || l.names[*slot-1].name == name {
			return slot
		}
	}
}

func (l *nameSet) grow() {
	l.slots = make([]uint32, max(4*len(l.slots), 32))
	l.names = slices.Grow(l.names, len(l.slots)/2-len(l.names))
	for i := range l.names {
		*l.slot(l.names[i].name) = uint32(i + 1)
	}
}
