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
	texts textArena
}

// listed is a name and what it leads to; 0 is nothing.
type listed struct {
	name string
	ino  uint32
	hash uint32
}

var nameSeed = maphash.MakeSeed()

// set has a name lead to an inode, or to nothing.
func (l *nameSet) set(name string, ino uint32) {
	if 2*len(l.names) >= len(l.slots) {
		l.grow()
	}
	hash := uint32(maphash.String(nameSeed, name))
	slot := l.slot(hash, name)
	if i := *slot; i != 0 {
		l.names[i-1].ino = ino
		return
	}
	l.names = append(l.names, listed{name, ino, hash})
	*slot = uint32(len(l.names))
}

// get gives what a name leads to.
func (l *nameSet) get(name string) uint32 {
	return l.same(&listed{name: name, hash: uint32(maphash.String(nameSeed, name))})
}

// same gives what the name of another set's entry leads to.
func (l *nameSet) same(e *listed) uint32 {
	if len(l.names) == 0 {
		return 0
	}
	if i := *l.slot(e.hash, e.name); i != 0 {
		return l.names[i-1].ino
	}
	return 0
}

// slot gives the place of a name, which holds 0 where the name is not there.
func (l *nameSet) slot(hash uint32, name string) *uint32 {
	mask := uint32(len(l.slots) - 1)
	for h := hash; ; h++ {
		slot := &l.slots[h&mask]
		if *slot == 0 {
			return slot
		}
		if e := &l.names[*slot-1]; e.hash == hash && e.name == name {
			return slot
		}
	}
}

// reset forgets all names, and keeps their room.
func (l *nameSet) reset() { *l = nameSet{names: emptied(l.names), slots: l.slots[:0]} }

func (l *nameSet) grow() {
	n := max(4*len(l.slots), 32)
	if n > cap(l.slots) {
		l.slots = make([]uint32, n)
	}
	l.slots = l.slots[:n]
	clear(l.slots) // of it all is room of before; what is used decides what it costs
	l.names = slices.Grow(l.names, len(l.slots)/2-len(l.names))
	for i := range l.names {
		*l.slot(l.names[i].hash, l.names[i].name) = uint32(i + 1)
	}
}
