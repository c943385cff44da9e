package ext4

import "sync"

// workspace is room for what a change is worked out in, beside what comes of it. A large transaction takes megabytes, and what one
// was worked out in serves the next: the collector took a quarter of the time of such.
type workspace struct {
	changed                      []*change
	removed, added               []edit
	removedInOrder, addedInOrder []edit
	was, is                      nameSet
	ops                          []op
	files                        []orderedFile
}

var workspaces = sync.Pool{New: func() any { return new(workspace) }}

// release gives the room back. Nothing in it is to be used any more, but for strings.
func (w *workspace) release() {
	w.changed, w.removed, w.added = emptied(w.changed), emptied(w.removed), emptied(w.added)
	w.removedInOrder, w.addedInOrder = emptied(w.removedInOrder), emptied(w.addedInOrder)
	w.ops, w.files = emptied(w.ops), emptied(w.files)
	w.was.reset()
	w.is.reset()
	workspaces.Put(w)
}

// emptied is a list's room, holding nothing.
func emptied[T any](list []T) []T {
	clear(list)
	return list[:0]
}
