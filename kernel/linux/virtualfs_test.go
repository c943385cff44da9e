package linux

import (
	"errors"
	"slices"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

// procTree is a /proc of 40 files, and 3 directories of 5 files each.
func procTree(t testing.TB) (w *world, root mem.VA, dirs, all []mem.VA) {
	w = newWorld(t)
	l, rb := layoutOf[procLayout](w), layoutOf[rbLayout](w)
	root = w.alloc(512)
	w.put(root, l.Parent, uint64(root))
	fill := func(dir mem.VA, files, subs int) (entries []mem.VA) {
		var nodes []mem.VA
		for i := range files + subs {
			e := w.alloc(512)
			mode := uint64(0o100444)
			if i >= files {
				mode = 0o40555
			}
			w.put(e, l.Mode, mode)
			w.put(e, l.Parent, uint64(dir))
			name := w.alloc(16)
			w.bytes(name, string(rune('a'+i%26)))
			w.put(e, l.Name, uint64(name))
			entries, nodes = append(entries, e), append(nodes, l.Node.At(e))
		}
		w.put64(l.Children.At(dir), uint64(w.rbTree(rb, 0, nodes)))
		return entries
	}
	all = fill(root, 40, 3)
	dirs = slices.Clone(all[40:])
	for _, d := range dirs {
		all = append(all, fill(d, 5, 0)...)
	}
	return w, root, dirs, all
}

func procWalk(v *View, root mem.VA) (got []mem.VA, err error) {
	err = v.ProcEntries(root, func(e mem.VA, _ bool) error {
		got = append(got, e)
		return nil
	})
	return got, err
}

func TestProcEntries(t *testing.T) {
	w, root, dirs, all := procTree(t)
	got, err := procWalk(w.v, root)
	slices.Sort(got)
	if err != nil || !slices.Equal(got, slices.Sorted(slices.Values(all))) {
		t.Errorf("%d of %d entries, %v", len(got), len(all), err)
	}
	if p, err := w.v.ProcPath(all[len(all)-1]); p != "/q/e" || err != nil {
		t.Errorf("path %q, %v", p, err)
	}
	// A directory that claims to lie in another, which would be a loop.
	l := layoutOf[procLayout](w)
	w.put(dirs[0], l.Parent, uint64(dirs[1]))
	w.put(dirs[1], l.Parent, uint64(dirs[0]))
	if _, err := procWalk(w.v, root); !errors.Is(err, mem.ErrInconsistent) {
		t.Error(err)
	}
	if _, err := w.v.ProcPath(dirs[0]); !errors.Is(err, mem.ErrInconsistent) {
		t.Error(err)
	}
}

// FuzzProcEntries walks a tree of a guest that answers each read as it likes.
func FuzzProcEntries(f *testing.F) {
	w, root, _, _ := procTree(f)
	k := w.v.Kernel
	f.Add(w.answers(func(v *View) { procWalk(v, root) }))
	f.Fuzz(func(t *testing.T, answers []byte) {
		phys := &memtest.Script{Answers: answers}
		got, _ := procWalk(viewOf(k, phys), root)
		if len(got) > len(answers)/24 {
			t.Errorf("%d entries of %d bytes", len(got), len(answers))
		}
	})
}
