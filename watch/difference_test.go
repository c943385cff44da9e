package watch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope/event"
	"vmscope/fsinfer"
	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab/wire"
	"vmscope/mem"
)

// listing is a tree as a guest would tell it, and as a Look shows it.
type listing []wire.File

func (l listing) Names(dir uint64, visit func(string, uint64) bool) error {
	i := slices.IndexFunc(l, func(f wire.File) bool { return f.Inode == dir })
	for _, f := range l {
		if p := string(f.Path); p != "/" && path.Dir(p) == string(l[i].Path) && !visit(path.Base(p), f.Inode) {
			break
		}
	}
	return nil
}

func (l listing) File(inode uint64) (fsinfer.File, error) {
	i := slices.IndexFunc(l, func(f wire.File) bool { return f.Inode == inode })
	if i < 0 {
		return fsinfer.File{}, errors.New("not in use")
	}
	f := &l[i]
	return fsinfer.File{
		Generation: f.Generation, Target: string(f.Target), Device: f.Device,
		Attr: event.Attr{Kind: event.Kind(f.Kind), Mode: f.Mode, UID: f.UID, GID: f.GID, Size: f.Size, Nlink: f.Nlink},
	}, nil
}

// randomTree makes a tree of few names and numbers, so that two of them share many: what has the same number and generation
// is of the same kind.
func randomTree(rng *rand.Rand) listing {
	list := listing{{Path: []byte("/"), Inode: 2, Kind: "dir", Mode: uint32(rng.IntN(2)), Nlink: 2}}
	used := map[uint64]int{}
	for range rng.IntN(30) {
		parent := &list[rng.IntN(len(list))]
		if parent.Kind != "dir" {
			continue
		}
		p := path.Join(string(parent.Path), string(rune('a'+rng.IntN(6))))
		if slices.ContainsFunc(list, func(f wire.File) bool { return string(f.Path) == p }) {
			continue
		}
		n := uint64(11 + rng.IntN(25))
		if i, ok := used[n]; ok {
			if list[i].Kind == "dir" {
				continue
			}
			f := list[i] // one more link
			f.Path = []byte(p)
			list = append(list, f)
			continue
		}
		f := wire.File{Path: []byte(p), Inode: n, Generation: uint32(rng.IntN(5) / 4), Mode: uint32(rng.IntN(3)), UID: uint32(rng.IntN(2)), Size: int64(rng.IntN(4)), Nlink: 1}
		switch (n + uint64(f.Generation)) % 5 {
		case 0, 1:
			f.Kind, f.Nlink, f.Size = "dir", 2, 0
			parent.Nlink++
		case 2, 3:
			f.Kind = "file"
		default:
			f.Kind, f.Target, f.Size = "symlink", fmt.Appendf(nil, "to %d", n+uint64(f.Generation)), 4
		}
		used[n] = len(list)
		list = append(list, f)
	}
	for i := range list {
		if f := &list[i]; f.Kind != "dir" {
			f.Nlink = 0
			for _, g := range list {
				if g.Inode == f.Inode {
					f.Nlink++
				}
			}
		}
	}
	return list
}

// seen is the part of a tree that watchpoints see, and the directories that lead there.
func (l listing) seen(f *filter) (out listing) {
	for _, x := range l {
		if f.scope(string(x.Path)) != outside {
			out = append(out, x)
		}
	}
	return out
}

func plant(f *filter, look fsinfer.Look) *tree {
	t := newTree(1<<20, 0, "", f.scope, func(err error) { panic(err) })
	for !t.whole() {
		t.read(look, 1)
	}
	return t
}

// TestDifference has random trees become other ones, by an independent replayer.
func TestDifference(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	ops := map[event.Op]int{}
	for i := range 4000 {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		paths := [][]string{nil, {"/"}, {"/a"}, {"/a/b", "/c"}, {"/*/b"}, {"/**/d"}, {"/."}, {"/a/.", "/a/b/c"}}[rng.IntN(8)]
		f, err := newFilter(paths, nil)
		if err != nil {
			t.Fatal(err)
		}
		from, to := randomTree(rng), randomTree(rng)
		r, err := fsoracle.New(from.seen(f))
		if err != nil {
			t.Fatal(err)
		}
		links := paths == nil || paths[0] == "/" // else some of them are not seen
		var log []string
		wrong := func(what any) {
			if text := fmt.Sprint(what); links || !strings.Contains(text, "links") {
				t.Fatalf("seed %d, tree %d, %q: %s\nfrom %s\nto %s\n%s", seed, i, paths, text, from.show(), to.show(), strings.Join(log, "\n"))
			}
		}
		err = tellDifference(plant(f, from), plant(f, to), to, 7, func(e event.Event) error {
			ops[e.Op]++
			log = append(log, fmt.Sprintf("%s %q %q %d", e.Op, e.OldPath, e.Path, e.Inode))
			for _, x := range r.Apply(e) {
				wrong(x)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range r.Finish() {
			wrong(x)
		}
		for _, x := range r.Compare(to.seen(f)) {
			wrong(x)
		}
	}
	for _, op := range []event.Op{
		event.MkDir, event.MkFile, event.Symlink, event.RmDir, event.RmFile, event.Rename, event.Link, event.Chmod, event.Chown, event.Write, event.Truncate,
	} {
		if ops[op] == 0 {
			t.Errorf("no %s among %v", op, ops)
		}
	}
}

func (l listing) show() string {
	var s strings.Builder
	for _, f := range l {
		fmt.Fprintf(&s, " %s=%d.%d(%s)", f.Path, f.Inode, f.Generation, f.Kind)
	}
	return s.String()
}

// broken shows nothing of a tree.
type broken struct{ err error }

func (b broken) Names(uint64, func(string, uint64) bool) error { return b.err }
func (b broken) File(uint64) (fsinfer.File, error)             { return fsinfer.File{}, b.err }

// TestTreeThatCannotBeRead keeps a tree that was not read apart from one that contradicts itself.
func TestTreeThatCannotBeRead(t *testing.T) {
	f, err := newFilter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		err   error
		whole bool
	}{{errors.New("no such disk"), false}, {mem.ErrInconsistent, true}} {
		warnings := 0
		now := newTree(1<<20, 0, "", f.scope, func(error) { warnings++ })
		for !now.done() {
			now.read(broken{c.err}, 1)
		}
		if now.whole() != c.whole || warnings == 0 {
			t.Errorf("%v: whole %v, %d warnings", c.err, now.whole(), warnings)
		}
		if !c.whole {
			continue
		}
		list := listing{{Path: []byte("/"), Inode: 2, Kind: "dir"}, {Path: []byte("/a"), Inode: 12, Kind: "file"}}
		var told []event.Op
		err := tellDifference(plant(f, list), now, broken{c.err}, 1, func(e event.Event) error { told = append(told, e.Op); return nil })
		if err != nil || len(told) == 0 || told[0] != event.RmFile {
			t.Errorf("told %v, %v", told, err)
		}
	}
}

// TestTreeThatDoesNotFit counts what is held.
func TestTreeThatDoesNotFit(t *testing.T) {
	f, _ := newFilter(nil, nil)
	list := listing{{Path: []byte("/"), Inode: 2, Kind: "dir"}}
	for i := range 100 {
		list = append(list, wire.File{Path: fmt.Appendf(nil, "/%d", i), Inode: uint64(20 + i), Kind: "file"})
	}
	whole := plant(f, list)
	if whole.size < 100*(nameCost+fileCost) {
		t.Errorf("%d bytes are counted", whole.size)
	}
	for limit := range whole.size + 1 {
		small := newTree(limit, 0, "", f.scope, func(err error) { t.Error(err) })
		for !small.done() {
			small.read(list, 1)
		}
		if fits := limit == whole.size; small.full == fits || small.full && len(small.files) > 0 {
			t.Fatalf("%d of %d bytes: full %v, %d files", limit, whole.size, small.full, len(small.files))
		}
	}
	e := event.Event{Op: event.RmFile, Path: "/7"}
	for range 2 { // the second has nothing to remove
		whole.apply(&e, func() fsinfer.Look { return list })
	}
	if len(whole.files) != 100 || whole.size >= 101*(nameCost+fileCost) {
		t.Errorf("%d files, %d bytes", len(whole.files), whole.size)
	}
}
