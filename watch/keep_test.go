package watch

import (
	"strings"
	"testing"
	"unsafe"

	"vmscope/event"
	"vmscope/fsinfer"
)

// TestTreeHoldsNames applies events with long paths: a name that is held must not hold the path that it was the end of, since
// only its own bytes are counted.
func TestTreeHoldsNames(t *testing.T) {
	f, err := newFilter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	tree := newTree(hold, 0, "", f.scope, func(err error) { t.Error(err) })
	for !tree.done() {
		tree.read(crowd{2}, portion)
	}
	const dir = "/directory-1/"
	look := func() fsinfer.Look { return crowd{2} }
	for _, e := range []event.Event{
		{Op: event.MkFile, Inode: 5000, Path: strings.Clone(dir + "made")},
		{Op: event.Link, Inode: 5000, Path: strings.Clone(dir + "linked")},
		{Op: event.Rename, Inode: 5000, OldPath: dir + "linked", Path: strings.Clone(dir + "moved")},
	} {
		e.Generation = uint32(e.Inode)
		tree.apply(&e, look)
		_, d, name := tree.find(e.Path)
		found := false
		for held := range d.names {
			if held == name {
				found = true
				if unsafe.StringData(held) == unsafe.StringData(name) {
					t.Errorf("%s of %s: the path is held", e.Op, e.Path)
				}
			}
		}
		if !found {
			t.Errorf("%s of %s: not held", e.Op, e.Path)
		}
	}
}
