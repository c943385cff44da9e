package ext4

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab/wire"
)

// world is a small tree, as a transaction leaves it. It is as mixed up against the one before as few names and numbers allow:
// directories change places with each other and with what is in them, numbers go to other files, names go round in rings.
type world struct {
	dirs  map[uint32]worldDir // by inode; the root is there always
	files map[uint32]worldFile
}

type worldDir struct {
	generation, parent uint32
	name               string
}

type worldFile struct {
	generation uint32
	names      []worldName
}

type worldName struct {
	dir  uint32
	name string
}

const (
	worldDirs, worldFiles = 6, 8 // at most
	worldFirstDir         = 20   // inode
	worldFirstFile        = 40
)

// newWorld makes a tree behind another one.
func newWorld(rng *rand.Rand, before *world, generation uint32) *world {
	w := &world{dirs: map[uint32]worldDir{RootInode: {}}, files: map[uint32]worldFile{}}
	taken := map[worldName]bool{}
	pick := func(dirs []uint32) worldName {
		for tries := 0; ; tries++ { // more names where few are left
			n := worldName{dirs[rng.IntN(len(dirs))], string(rune('a' + rng.IntN(6+tries/8)))}
			if !taken[n] {
				taken[n] = true
				return n
			}
		}
	}
	// Each directory goes below one that is there already, so that there are no rings.
	there := []uint32{RootInode}
	for _, i := range rng.Perm(worldDirs) {
		ino := uint32(worldFirstDir + i)
		old, was := before.dirs[ino]
		keep := worldName{old.parent, old.name}
		switch {
		case rng.IntN(4) == 0:
			continue
		case was && rng.IntN(3) == 0 && !taken[keep] && slices.Contains(there, old.parent):
			taken[keep] = true
		default:
			keep = pick(there)
		}
		d := worldDir{old.generation, keep.dir, keep.name}
		if !was || rng.IntN(5) == 0 {
			d.generation = generation
		}
		w.dirs[ino] = d
		there = append(there, ino)
	}
	for i := range worldFiles {
		ino := uint32(worldFirstFile + i)
		old, was := before.files[ino]
		if rng.IntN(4) == 0 {
			continue
		}
		f := worldFile{generation: old.generation}
		if !was || rng.IntN(5) == 0 {
			f.generation = generation
		}
		for _, n := range old.names {
			if rng.IntN(3) == 0 && !taken[n] && slices.Contains(there, n.dir) {
				taken[n] = true
				f.names = append(f.names, n)
			}
		}
		for len(f.names) == 0 || rng.IntN(4) == 0 {
			f.names = append(f.names, pick(there))
		}
		w.files[ino] = f
	}
	return w
}

// log writes the tree down as a transaction.
func (w *world) log(l *logging, region uint64) {
	all := append([]uint32{RootInode}, slices.Collect(inodes(worldFirstDir, worldDirs))...)
	for _, ino := range all {
		d, ok := w.dirs[ino]
		if !ok {
			le.PutUint16(l.inode(ino)[26:], 0)
			continue
		}
		entries := []worldName{{ino, "."}, {max(d.parent, RootInode), ".."}}
		links := 2
		for sub, e := range w.dirs {
			if e.parent == ino {
				entries, links = append(entries, worldName{sub, e.name}), links+1
			}
		}
		for file, f := range w.files {
			for _, n := range f.names {
				if n.dir == ino {
					entries = append(entries, worldName{file, n.name})
				}
			}
		}
		b := region + uint64(ino)
		clear(l.block(b))
		putDirents(l.block(b), uint32(len(entries)), func(i uint32) (uint32, string) { return entries[i].dir, entries[i].name })
		l.put(ino, dirMode, links, Extent{0, b, 1, false})
		le.PutUint32(l.inode(ino)[100:], d.generation)
	}
	for ino := range inodes(worldFirstFile, worldFiles) {
		f := w.files[ino]
		l.put(ino, fileMode, len(f.names))
		le.PutUint32(l.inode(ino)[100:], f.generation)
	}
}

func inodes(first, n uint32) func(yield func(uint32) bool) {
	return func(yield func(uint32) bool) {
		for i := range n {
			if !yield(first + i) {
				return
			}
		}
	}
}

// tree is what a guest would say of it.
func (w *world) tree() []wire.File {
	var out []wire.File
	for ino, d := range w.dirs {
		f := wire.File{Path: []byte(w.path(worldName{d.parent, d.name})), Inode: uint64(ino), Generation: d.generation, Kind: "dir", Mode: dirMode & 0o7777, Nlink: 2}
		for _, sub := range w.dirs {
			if sub.parent == ino {
				f.Nlink++
			}
		}
		out = append(out, f)
	}
	for ino, f := range w.files {
		for _, n := range f.names {
			out = append(out, wire.File{Path: []byte(w.path(n)), Inode: uint64(ino), Generation: f.generation, Kind: "file", Mode: fileMode & 0o7777, Nlink: uint32(len(f.names))})
		}
	}
	slices.SortFunc(out, func(a, b wire.File) int { return bytes.Compare(a.Path, b.Path) })
	return out
}

func (w *world) path(n worldName) string {
	if n.dir <= RootInode {
		return "/" + n.name // the root's own is ""
	}
	d := w.dirs[n.dir]
	return w.path(worldName{d.parent, d.name}) + "/" + n.name
}

// TestOrder has small trees become others, each in one transaction, and replays the events.
func TestOrder(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	w := &world{dirs: map[uint32]worldDir{RootInode: {}}}
	fs, m := attachMade(t, nil)
	region := regionOf(fs)
	w.log(&logging{fs, m.over}, region)
	fs, err := Attach(m)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	if err := fs.CrawlAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	guest, err := fsoracle.New(w.tree())
	if err != nil {
		t.Fatal(err)
	}
	for tid := uint32(1); tid <= 1000; tid++ {
		w = newWorld(rng, w, tid)
		l := &logging{fs, map[uint64][]byte{}}
		w.log(l, region)
		events, err := fs.commit(l.tx(tid), time.Time{})
		if err != nil {
			t.Fatalf("transaction %d: %v", tid, err)
		}
		for _, e := range events {
			for _, f := range guest.Apply(e) {
				t.Errorf("transaction %d: %v", tid, f)
			}
		}
		for _, f := range guest.Finish() {
			t.Errorf("transaction %d: %v", tid, f)
		}
		for _, line := range guest.Compare(w.tree()) {
			t.Errorf("transaction %d: %s", tid, line)
		}
		if t.Failed() {
			for _, e := range events {
				t.Logf("%s %s %s inode %d/%d %s", e.Op, e.OldPath, e.Path, e.Inode, e.Generation, e.Detail)
			}
			return
		}
	}
}
