package watch

import (
	"fmt"
	"strings"
	"testing"

	"vmscope/event"
	"vmscope/fsinfer"
	"vmscope/fsinfer/ext4"
	"vmscope/mem"
)

// bent is a tree of few inodes in which the input says which names lead where, and of what kind each is: also to nothing, in
// rings, and from several directories to one.
type bent []byte

func (b bent) at(i uint64) uint64 {
	if len(b) == 0 {
		return 0
	}
	return uint64(b[i%uint64(len(b))])
}

func (b bent) Names(dir uint64, visit func(string, uint64) bool) error {
	for i := range b.at(dir) % 5 {
		if !visit(string(rune('a'+b.at(3*dir+i)%6)), b.at(7*dir+i)%16) {
			return nil
		}
	}
	if b.at(5*dir)%16 == 1 {
		return mem.ErrInconsistent
	}
	return nil
}

func (b bent) File(inode uint64) (fsinfer.File, error) {
	v := b.at(11 * inode)
	f := fsinfer.File{Generation: uint32(v % 2), Target: "t", Changed: int64(v % 3)}
	if v%8 != 7 && inode != 0 { // which is none
		f.Attr = event.Attr{Kind: []event.Kind{event.Dir, event.Dir, event.File, event.Lnk}[v%4], Mode: uint32(v % 3), Size: int64(v), Nlink: uint32(v % 4)}
	}
	return f, nil
}

// unsound says what of a tree does not fit together.
func unsound(t *tree) string {
	names := map[uint32]uint32{}
	for at, d := range t.dirs {
		if at != ext4.RootInode {
			if up := t.dirs[d.up]; up == nil || up.names[d.name] != at {
				return fmt.Sprintf("directory %d is not %q of %d", at, d.name, d.up)
			}
			if f, held := t.files[at]; !held || !f.isDir() {
				return fmt.Sprintf("directory %d is none", at)
			}
		}
		for name, ino := range d.names {
			names[ino]++
			if f, held := t.files[ino]; !held || f.isDir() != (t.dirs[ino] != nil) {
				return fmt.Sprintf("%q in %d leads to %d, which is held: %v", name, at, ino, held)
			}
		}
	}
	for ino, f := range t.files {
		if ino != ext4.RootInode && f.names != names[ino] {
			return fmt.Sprintf("%d has %d names, not %d", ino, f.names, names[ino])
		}
	}
	return ""
}

// FuzzTree holds trees that contradict themselves, and events that do not fit them, and tells how one becomes the other.
func FuzzTree(f *testing.F) {
	f.Add([]byte{1, 2, 3, 40, 5, 60, 7, 8, 90, 10}, []byte{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8}, []byte{0, 1, 2, 3, 1, 5, 6, 7})
	f.Add([]byte{4, 0, 9, 8, 17, 33, 2, 2}, []byte{4, 0, 9, 9, 17, 32, 2, 1}, []byte{5, 5, 5, 1, 5, 0, 3, 9, 5, 11, 12, 2})
	f.Fuzz(func(t *testing.T, before, after, script []byte) {
		if len(before) > 200 || len(after) > 200 || len(script) > 200 {
			return
		}
		old, now := bent(before), bent(after)
		var paths []string
		if len(script) > 0 {
			paths = [][]string{nil, {"/a"}, {"/a/."}, {"/*/b", "/c/."}, {"/**/d"}, {"/."}}[script[0]%6]
		}
		filter, err := newFilter(paths, nil)
		if err != nil {
			t.Fatal(err)
		}
		grown := func(look fsinfer.Look) *tree {
			tr := newTree(1<<20, 0, "", filter.scope, func(error) {})
			for n := 0; !tr.done(); n++ {
				if tr.read(look, 1); n > 1000 {
					t.Fatal("it does not end")
				}
				if why := unsound(tr); why != "" {
					t.Fatal(why)
				}
			}
			return tr
		}
		held := grown(old)
		name := func(b byte) string { return "/" + string(rune('a'+b%6)) }
		ops := []event.Op{event.MkDir, event.MkFile, event.Link, event.RmFile, event.RmDir, event.Rename, event.Rename, event.Chmod}
		for ; len(script) >= 4; script = script[4:] {
			e := event.Event{Op: ops[script[0]%8], Path: name(script[1]), Inode: 1 + uint64(script[2]%15), Generation: uint32(script[3] % 2)}
			if script[1] > 127 {
				e.Path += name(script[1] / 6)
			}
			if e.Op == event.Rename {
				if e.OldPath = name(script[2]); script[3] > 127 {
					e.Detail = event.Exchange
				}
			}
			if script[3]%4 > 0 {
				e.Attr = &event.Attr{Kind: []event.Kind{event.Dir, event.File, event.Lnk}[script[3]%3]}
			}
			held.apply(&e, func() fsinfer.Look { return now })
			if why := unsound(held); why != "" {
				t.Fatalf("behind %+v: %s", e, why)
			}
		}
		for n := 0; !held.done(); n++ {
			if held.read(now, 1); n > 1000 {
				t.Fatal("it does not end")
			}
			if why := unsound(held); why != "" {
				t.Fatal(why)
			}
		}
		if held.size < 0 || held.full {
			t.Fatalf("%d bytes, full %v", held.size, held.full)
		}
		told := 0
		_ = tellDifference(held, grown(now), now, 1, func(e event.Event) error {
			if told++; told > 10_000 || !strings.HasPrefix(e.Path, "/") || e.Op == event.Rename && !strings.HasPrefix(e.OldPath, "/") {
				t.Fatalf("event %d: %+v", told, e)
			}
			return nil
		})
	})
}
