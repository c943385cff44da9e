package fsoracle

import (
	"slices"
	"strings"
	"testing"

	"vmscope/event"
	"vmscope/internal/guestlab/wire"
)

// small is /, /d, /d/sub, /d/f and /e/g (hard links), /e, /x (a symlink).
func small() []wire.File {
	return []wire.File{
		{Path: []byte("/"), Inode: 2, Kind: "dir", Mode: 0o755, Size: 4096, Nlink: 4},
		{Path: []byte("/d"), Inode: 12, Generation: 112, Kind: "dir", Mode: 0o755, Size: 4096, Nlink: 3},
		{Path: []byte("/d/f"), Inode: 14, Generation: 114, Kind: "file", Mode: 0o644, Size: 5, Nlink: 2, Sum: "aa"},
		{Path: []byte("/d/sub"), Inode: 13, Generation: 113, Kind: "dir", Mode: 0o700, Size: 4096, Nlink: 2},
		{Path: []byte("/e"), Inode: 15, Generation: 115, Kind: "dir", Mode: 0o755, Size: 4096, Nlink: 2},
		{Path: []byte("/e/g"), Inode: 14, Generation: 114, Kind: "file", Mode: 0o644, Size: 5, Nlink: 2, Sum: "aa"},
		{Path: []byte("/x"), Inode: 16, Generation: 116, Kind: "symlink", Mode: 0o777, Size: 3, Nlink: 1, Target: []byte("d/f")},
	}
}

func ev(op event.Op, path string, ino uint64, attr *event.Attr) event.Event {
	gen := uint32(ino + 100)
	if ino == 2 {
		gen = 0
	}
	return event.Event{Op: op, Path: path, Inode: ino, Generation: gen, Attr: attr, TID: 7, Source: event.Journal}
}

func mv(from, to string, ino uint64) event.Event {
	e := ev(event.Rename, to, ino, nil)
	e.OldPath = from
	return e
}

func attr(kind event.Kind, mode uint32, size int64, nlink uint32) *event.Attr {
	return &event.Attr{Kind: kind, Mode: mode, Size: size, Nlink: nlink}
}

var (
	newFile = attr(event.File, 0o644, 9, 1)
	newDir  = attr(event.Dir, 0o755, 4096, 2)
)

func TestReplay(t *testing.T) {
	tests := []struct {
		name   string
		events []event.Event
		want   string // part of the first finding; "" for none
		paths  string // of the tree at the end, if nothing was found
	}{
		{"nothing", nil, "", "/ /d /d/f /d/sub /e /e/g /x"},
		{"make", []event.Event{ev(event.MkFile, "/d/n", 20, newFile), ev(event.MkDir, "/m", 21, newDir)}, "", "/ /d /d/f /d/n /d/sub /e /e/g /m /x"},
		{"make what exists", []event.Event{ev(event.MkFile, "/d/f", 20, newFile)}, `"/d/f" exists`, ""},
		{"make below nothing", []event.Event{ev(event.MkDir, "/q/n", 20, newDir)}, `directory "/q" does not exist`, ""},
		{"make below a file", []event.Event{ev(event.MkFile, "/d/f/n", 20, newFile)}, "not a directory", ""},
		{"make the wrong kind", []event.Event{ev(event.MkFile, "/n", 20, newDir)}, "makes a dir", ""},
		{"make without attributes", []event.Event{ev(event.MkFile, "/n", 20, nil)}, "no attributes", ""},
		{"make an inode that is in use", []event.Event{ev(event.MkFile, "/n", 14, newFile)}, "inode 14 is in use", ""},
		{"make with links to come", []event.Event{ev(event.MkFile, "/n", 20, newFile)}, "", "/ /d /d/f /d/sub /e /e/g /n /x"},
		{"make with a link that does not come", []event.Event{ev(event.MkFile, "/n", 20, attr(event.File, 0o644, 9, 2))}, "2 links at the end", ""},
		{"make and link", []event.Event{ev(event.MkFile, "/n", 20, attr(event.File, 0o644, 9, 2)), ev(event.Link, "/o", 20, attr(event.File, 0o644, 9, 2))}, "",
			"/ /d /d/f /d/sub /e /e/g /n /o /x"},
		{"paths that are none", []event.Event{ev(event.MkFile, "/d//n", 20, newFile)}, "no plain path", ""},
		{"remove", []event.Event{ev(event.RmFile, "/d/f", 14, attr(event.File, 0o644, 5, 1)), ev(event.RmDir, "/d/sub", 13, nil), ev(event.RmDir, "/d", 12, nil)}, "", "/ /e /e/g /x"},
		{"remove what is not there", []event.Event{ev(event.RmFile, "/d/q", 14, nil)}, "does not exist", ""},
		{"remove a full directory", []event.Event{ev(event.RmDir, "/d", 12, nil)}, "2 names are in it", ""},
		{"remove as the wrong kind", []event.Event{ev(event.RmFile, "/d/sub", 13, nil)}, "is a dir", ""},
		{"remove another inode", []event.Event{ev(event.RmFile, "/d/f", 13, nil)}, "is inode 14", ""},
		{"remove another generation", []event.Event{{Op: event.RmFile, Path: "/x", Inode: 16, Generation: 1}}, "of generation 116", ""},
		{"remove the root", []event.Event{ev(event.RmDir, "/", 2, nil)}, "removes the root", ""},
		{"remove one link of two, saying that none is left", []event.Event{ev(event.RmFile, "/d/f", 14, attr(event.File, 0o644, 5, 0))}, "0 links at the end", ""},
		{"remove and make again", []event.Event{ev(event.RmFile, "/x", 16, nil), ev(event.MkDir, "/x", 16, newDir)}, "", "/ /d /d/f /d/sub /e /e/g /x"},
		{"link", []event.Event{ev(event.Link, "/l", 14, attr(event.File, 0o644, 5, 3))}, "", "/ /d /d/f /d/sub /e /e/g /l /x"},
		{"link nothing", []event.Event{ev(event.Link, "/l", 99, nil)}, "has no name to link", ""},
		{"link a directory", []event.Event{ev(event.Link, "/l", 12, nil)}, "links a directory", ""},
		{"link from a wrong name", []event.Event{{Op: event.Link, Path: "/l", OldPath: "/x", Inode: 14, Generation: 114}}, "no name of inode 14", ""},
		{"rename", []event.Event{mv("/d", "/e/d", 12), mv("/e/d/f", "/f", 14)}, "", "/ /e /e/d /e/d/sub /e/g /f /x"},
		{"rename nothing", []event.Event{mv("/q", "/r", 12)}, "does not exist", ""},
		{"rename another inode", []event.Event{mv("/d", "/r", 13)}, "is inode 12", ""},
		{"rename below nothing", []event.Event{mv("/d", "/q/r", 12)}, `directory "/q" does not exist`, ""},
		{"rename into itself", []event.Event{mv("/d", "/d/sub/d", 12)}, "into itself", ""},
		{"rename onto something", []event.Event{mv("/x", "/d/f", 16)}, "makes no ring", ""},
		{"rename onto something, which goes too late", []event.Event{mv("/x", "/d/f", 16), mv("/d/f", "/y", 14)}, "makes no ring", ""},
		{"exchange", []event.Event{mv("/d", "/x", 12), mv("/x", "/d", 16)}, "", "/ /d /e /e/g /x /x/f /x/sub"},
		{"ring of three", []event.Event{mv("/d", "/e/g", 12), mv("/e/g", "/x", 14), mv("/x", "/d", 16)}, "", "/ /d /e /e/g /e/g/f /e/g/sub /x"},
		{"ring told backwards", []event.Event{mv("/x", "/d", 16), mv("/e/g", "/x", 14), mv("/d", "/e/g", 12)}, "", "/ /d /e /e/g /e/g/f /e/g/sub /x"},
		{"two rings", []event.Event{mv("/d", "/e", 12), mv("/e", "/d", 15), mv("/d/g", "/e/f", 14), mv("/e/f", "/d/g", 14)}, "", "/ /d /d/g /e /e/f /e/sub /x"},
		{"ring with something between", []event.Event{mv("/d", "/x", 12), ev(event.MkFile, "/n", 20, newFile), mv("/x", "/d", 16)}, "makes no ring", ""},
		{"ring into itself", []event.Event{mv("/d", "/d/sub", 12), mv("/d/sub", "/d", 13)}, "ring moves a directory into itself", ""},
		{"write", []event.Event{ev(event.Write, "/d/f", 14, attr(event.File, 0o644, 50, 2))}, "", "/ /d /d/f /d/sub /e /e/g /x"},
		{"write to a directory", []event.Event{ev(event.Write, "/d", 12, attr(event.Dir, 0o755, 4096, 3))}, "is a dir", ""},
		{"a change that nothing tells", []event.Event{ev(event.Write, "/d/f", 14, attr(event.File, 0o600, 50, 2))}, "mode 600 at the end", ""},
		{"a size that nothing tells", []event.Event{ev(event.Chmod, "/d/f", 14, attr(event.File, 0o600, 6, 2))}, "size 6 at the end", ""},
		{"a mode before the last", []event.Event{ev(event.Chmod, "/d/f", 14, attr(event.File, 0o600, 5, 2)), ev(event.Chmod, "/e/g", 14, attr(event.File, 0o604, 5, 2))}, "",
			"/ /d /d/f /d/sub /e /e/g /x"},
		{"a mode that was so", []event.Event{ev(event.Chmod, "/d/f", 14, attr(event.File, 0o644, 5, 2))}, "the mode is 644 already", ""},
		{"an owner that was so", []event.Event{ev(event.Chown, "/d/f", 14, attr(event.File, 0o644, 5, 2))}, "the owner is 0:0 already", ""},
		{"links of a directory", []event.Event{ev(event.Chmod, "/d", 12, attr(event.Dir, 0o711, 4096, 4)), ev(event.MkDir, "/d/new", 20, newDir)}, "", "/ /d /d/f /d/new /d/sub /e /e/g /x"},
		{"links of a directory that nothing tells", []event.Event{ev(event.Chmod, "/d", 12, attr(event.Dir, 0o711, 4096, 4))}, "4 links at the end", ""},
		{"loss", []event.Event{{Op: event.Lost, Detail: "slow"}}, "events were lost: slow", ""},
		{"mount", []event.Event{{Op: event.Mount}, {Op: event.Unmount}, {Op: event.Attached}}, "", "/ /d /d/f /d/sub /e /e/g /x"},
		{"nonsense", []event.Event{{Op: "BREW"}}, "no such operation", ""},
		{"numbers", []event.Event{{Op: event.Mount, Seq: 4}, {Op: event.Mount, Seq: 5}}, "", "/ /d /d/f /d/sub /e /e/g /x"},
		{"a number left out", []event.Event{{Op: event.Mount, Seq: 4}, {Op: event.Mount, Seq: 6}}, "follows 4", ""},
		{"a number twice", []event.Event{{Op: event.Mount, Seq: 4}, {Op: event.Mount, Seq: 4}}, "follows 4", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := New(small())
			if err != nil {
				t.Fatal(err)
			}
			found := replay(r, tt.events)
			if tt.want != "" {
				if len(found) == 0 || !strings.Contains(found[0].String(), tt.want) {
					t.Errorf("found %v, want %q", found, tt.want)
				}
				return
			}
			if len(found) > 0 {
				t.Errorf("found %v", found)
			}
			var paths []string
			for _, f := range r.Tree() {
				paths = append(paths, string(f.Path))
			}
			if got := strings.Join(paths, " "); got != tt.paths {
				t.Errorf("tree %s, want %s", got, tt.paths)
			}
		})
	}
}

// replay applies all events and returns what was found.
func replay(r *Replayer, events []event.Event) []Finding {
	var found []Finding
	for _, e := range events {
		found = append(found, r.Apply(e)...)
	}
	return append(found, r.Finish()...)
}

func TestCompare(t *testing.T) {
	change := func(path string, f func(*wire.File)) []wire.File {
		tree := small()
		at := slices.IndexFunc(tree, func(f wire.File) bool { return string(f.Path) == path })
		number := tree[at].Inode
		for i := range tree {
			if tree[i].Inode == number { // all its names
				f(&tree[i])
			}
		}
		return tree
	}
	write := ev(event.Write, "/d/f", 14, attr(event.File, 0o644, 5, 2))
	tests := []struct {
		name   string
		events []event.Event
		truth  []wire.File
		want   []string
	}{
		{"the same", nil, small(), nil},
		{"missing", nil, append(small(), wire.File{Path: []byte("/n"), Inode: 20, Kind: "file"}), []string{`missing: file "/n", inode 20`}},
		{"extra", nil, small()[:6], []string{`extra: symlink "/x", inode 16`}},
		{"inode", nil, change("/x", func(f *wire.File) { f.Inode = 9 }), []string{`different: "/x": inode 16, the guest says 9`}},
		{"generation", nil, change("/x", func(f *wire.File) { f.Generation = 9 }), []string{`different: "/x": generation 116, the guest says 9`}},
		{"kind", nil, change("/x", func(f *wire.File) { f.Kind = "fifo" }), []string{`different: "/x": kind symlink, the guest says fifo`}},
		{"several", nil, change("/e", func(f *wire.File) { f.Mode, f.UID, f.Nlink, f.Size = 0o700, 1, 3, 1 }),
			[]string{`different: "/e": mode 755, the guest says 700; owner 0:0, the guest says 1:0; links 2, the guest says 3`}},
		{"size", nil, change("/x", func(f *wire.File) { f.Size = 9 }), []string{`different: "/x": size 3, the guest says 9`}},
		{"target", nil, change("/x", func(f *wire.File) { f.Target = []byte("d\n") }), []string{`different: "/x": target "d/f", the guest says "d\n"`}},
		{"device", nil, change("/x", func(f *wire.File) { f.Device = 1 << 32 }), []string{`different: "/x": device 0x0, the guest says 0x100000000`}},
		{"content, told", []event.Event{write}, change("/d/f", func(f *wire.File) { f.Sum = "bb" }), nil},
		{"content, not told", nil, change("/d/f", func(f *wire.File) { f.Sum = "bb" }), []string{`silent: "/d/f": its content changed, and there was neither WRITE nor TRUNCATE`}},
		{"attributes, told", []event.Event{ev(event.Xattr, "/d", 12, nil)}, change("/d", func(f *wire.File) { f.Xattrs = []wire.Xattr{{Name: []byte("user.a"), Len: 3, Sum: "cc"}} }), nil},
		{"attributes, not told", nil, change("/d", func(f *wire.File) { f.Xattrs = []wire.Xattr{{Name: []byte("user.a"), Len: 3, Sum: "cc"}} }),
			[]string{`silent: "/d": its attributes changed from none to "user.a" (3 bytes, cc), and there was no XATTR`}},
		{"many links", nil, change("/e", func(f *wire.File) { f.Nlink = 1 }), []string{`different: "/e": links 2, the guest says 1`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := New(small())
			if err != nil {
				t.Fatal(err)
			}
			r.Adopt(small())
			if found := replay(r, tt.events); len(found) > 0 {
				t.Errorf("found %v", found)
			}
			if got := r.Compare(tt.truth); strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			r.Adopt(tt.truth)
			for _, line := range r.Compare(tt.truth) {
				if strings.HasPrefix(line, "silent:") {
					t.Errorf("after it was adopted: %s", line)
				}
			}
		})
	}
}

func TestManySubdirectories(t *testing.T) {
	r, err := New(small())
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxDirLinks {
		e := ev(event.MkDir, "/e/"+strings.Repeat("x", i/200+1)+string(rune(0x4e00+i%200)), uint64(1000+i), newDir)
		if found := r.Apply(e); len(found) > 0 {
			t.Fatal(found)
		}
	}
	said := attr(event.Dir, 0o711, 4096, 1)
	if found := append(r.Apply(ev(event.Chmod, "/e", 15, said)), r.Finish()...); len(found) > 0 {
		t.Error(found)
	}
}

func TestTreesThatAreNone(t *testing.T) {
	for name, tree := range map[string][]wire.File{
		"empty":             nil,
		"no root":           small()[1:],
		"no parent":         {small()[0], small()[2]},
		"below a file":      append(small(), wire.File{Path: []byte("/x/y"), Inode: 30, Kind: "file"}),
		"a name twice":      append(small(), wire.File{Path: []byte("/x"), Inode: 30, Kind: "file"}),
		"a directory twice": append(small(), wire.File{Path: []byte("/dd"), Inode: 12, Kind: "dir"}),
	} {
		if _, err := New(tree); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}
