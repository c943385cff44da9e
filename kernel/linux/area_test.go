package linux

import (
	"errors"
	"slices"
	"testing"

	"vmscope/ctype"
	"vmscope/internal/memtest"
	"vmscope/kernel"
	"vmscope/mem"
)

// areaWorld is a world with a process that has a memory map.
type areaWorld struct {
	*procWorld
	a     *areaPlan
	maple *mapleWorld
	mm    mem.VA
	areas []mem.VA
}

const specialF = 0x6000

// newAreaWorld makes one whose kernel keeps areas in a tree, or in a list as
// before v6.1.
func newAreaWorld(t testing.TB, list bool) (*areaWorld, Task) {
	w := &areaWorld{procWorld: newProcWorld(t)}
	w.maple = &mapleWorld{w.world, nil}
	var err error
	if w.maple.p, err = newMaplePlan(w.v.Kernel); err != nil {
		t.Fatal(err)
	}
	w.a = &areaPlan{areaLayout: *layoutOf[areaLayout](w.world), special: specialF}
	if list {
		w.a.List, w.a.Tree = w.a.Tree, ctype.Field{}
		w.a.Next, w.a.Prev = w.a.Private, w.a.Private
		w.a.Next.Offset, w.a.Prev.Offset = 200, 208
	}
	if err := w.a.measure(); err != nil {
		t.Fatal(err)
	}
	supply(w.v.Kernel, w.a)
	task := w.task(9)
	w.mm = w.alloc(2048)
	w.put(task.Addr, w.a.MM, uint64(w.mm))
	w.put(w.mm, w.a.StartBrk, 0x10000)
	w.put(w.mm, w.a.Brk, 0x14000)
	w.put(w.mm, w.a.Stack, 0x7ffff000)
	return w, task
}

// area makes a vm_area_struct.
func (w *areaWorld) area(start, end, flags uint64) mem.VA {
	at := w.alloc(256)
	w.put(at, w.a.Start, start)
	w.put(at, w.a.End, end)
	w.put(at, w.a.Own, uint64(w.mm))
	w.put(at, w.a.Flags, flags)
	w.areas = append(w.areas, at)
	return at
}

// link makes the map of the areas.
func (w *areaWorld) link() {
	w.put(w.mm, w.a.Count, uint64(len(w.areas)))
	if w.a.List.Valid() {
		w.put64(w.a.List.At(w.mm), uint64(w.areas[0]))
		for i, at := range w.areas {
			if i > 0 {
				w.put(at, w.a.Prev, uint64(w.areas[i-1]))
				w.put(w.areas[i-1], w.a.Next, uint64(at))
			}
		}
		return
	}
	var slots []mem.VA
	var pivots []uint64
	for _, at := range w.areas {
		slots = append(slots, 0, at)
		pivots = append(pivots, uintAt(w.b, uint64(w.a.Start.At(at)), 8)-1, uintAt(w.b, uint64(w.a.End.At(at)), 8)-1)
	}
	root := w.maple.node(mapleLeaf64, append(slots, 0), append(pivots, maxIndex))
	tree := w.a.Tree.At(w.mm)
	w.put64(tree+mem.VA(w.maple.p.root), uint64(root)|2)
	w.put64(root&^mapleNodeMask+mem.VA(w.maple.p.parent), uint64(tree)|mapleIsRoot)
}

func fillAreas(w *areaWorld) []kernel.Area {
	text := w.area(0x1000, 0x3000, 5)
	file := w.file(w.dentry(w.root, "prog"), 0o100755, 99)
	w.put(text, w.a.File, uint64(file))
	w.put(text, w.a.PgOff, 2)
	w.area(0xf000, 0x15000, 3)
	shm := w.area(0x20000, 0x21000, 3|vmMayShare)
	w.put(shm, w.a.File, uint64(w.file(w.pseudo(simpleDname, "memfd:x", 4), 0o100777, 4)))
	w.area(0x30000, 0x31000, 0)
	vdso := w.area(0x40000, 0x41000, 5)
	ops, special, name := w.alloc(256), w.alloc(64), w.alloc(16)
	w.put(vdso, w.a.Ops, uint64(ops))
	w.put(vdso, w.a.Private, uint64(special))
	w.put(ops, w.a.OpsName, specialF)
	w.put(special, w.a.SpecialName, uint64(name))
	w.bytes(name, "[vdso]")
	w.area(0x7fffe000, 0x80000000, 3)
	w.link()
	return []kernel.Area{
		{Start: 0x1000, End: 0x3000, Perms: "r-xp", Offset: 0x2000, Dev: "fe:03", Inode: 99, Path: "/prog"},
		{Start: 0xf000, End: 0x15000, Perms: "rw-p", Dev: "00:00", Path: "[heap]"},
		{Start: 0x20000, End: 0x21000, Perms: "rw-s", Dev: "fe:03", Inode: 4, Path: "/memfd:x (deleted)"},
		{Start: 0x30000, End: 0x31000, Perms: "---p", Dev: "00:00"},
		{Start: 0x40000, End: 0x41000, Perms: "r-xp", Dev: "00:00", Path: "[vdso]"},
		{Start: 0x7fffe000, End: 0x80000000, Perms: "rw-p", Dev: "00:00", Path: "[stack]"},
	}
}

func TestAreas(t *testing.T) {
	for _, list := range []bool{false, true} {
		w, task := newAreaWorld(t, list)
		want := fillAreas(w)
		if got, err := w.v.Areas(task); err != nil || !slices.Equal(got, want) {
			t.Errorf("list %v: %v\nhave %+v\nwant %+v", list, err, got, want)
		}
		if got, err := w.v.Areas(Task{Addr: task.Addr, PID: 9, TGID: 9, Flags: pfKThread}); err != nil || len(got) != 0 {
			t.Errorf("kernel thread: %v, %v", got, err)
		}
		// Hidden from the map, but counted; of another process; other bounds; a
		// file that is none.
		for name, c := range map[string]struct {
			spoil func(w *areaWorld)
			n     int
			want  error
		}{
			"hidden":          {func(w *areaWorld) { w.put(w.mm, w.a.Count, 7) }, 6, mem.ErrInconsistent},
			"of another":      {func(w *areaWorld) { w.put(w.areas[1], w.a.Own, 0x1234) }, 5, mem.ErrInconsistent},
			"file is nowhere": {func(w *areaWorld) { w.put(w.areas[0], w.a.File, 1<<40) }, 6, mem.ErrNoRAM},
			"map is nowhere":  {func(w *areaWorld) { w.put(task.Addr, w.a.MM, 1<<40) }, 0, mem.ErrNoRAM},
		} {
			w, task := newAreaWorld(t, list)
			fillAreas(w)
			c.spoil(w)
			if got, err := w.v.Areas(task); !errors.Is(err, c.want) || len(got) != c.n {
				t.Errorf("list %v, %s: %d areas, %v", list, name, len(got), err)
			}
		}
	}
}

func TestAreasList(t *testing.T) {
	for name, spoil := range map[string]func(w *areaWorld){
		"loops":       func(w *areaWorld) { w.put(w.areas[5], w.a.Next, uint64(w.areas[0])) },
		"wrong back":  func(w *areaWorld) { w.put(w.areas[3], w.a.Prev, uint64(w.areas[0])) },
		"falls":       func(w *areaWorld) { w.put(w.areas[3], w.a.Start, 0x1000) },
		"empty area":  func(w *areaWorld) { w.put(w.areas[3], w.a.End, 0x30000) },
		"amid a page": func(w *areaWorld) { w.put(w.areas[3], w.a.End, 0x30064) },
		"wraps":       func(w *areaWorld) { w.put(w.areas[3], w.a.Start, 0); w.put(w.areas[3], w.a.End, 0) },
	} {
		w, task := newAreaWorld(t, true)
		fillAreas(w)
		spoil(w)
		if got, err := w.v.Areas(task); !errors.Is(err, mem.ErrInconsistent) {
			t.Errorf("%s: %d areas, %v", name, len(got), err)
		}
	}
}

func TestHeap(t *testing.T) {
	w, _ := newAreaWorld(t, false)
	a := &areas{areaPlan: w.a, v: w.v, mm: object{b: make([]byte, w.a.mm)}}
	if err := a.mm.read(w.v, w.mm); err != nil {
		t.Fatal(err)
	}
	old, now := *w.a, *w.a
	now.CTime = ctype.Field{}
	for _, c := range []struct {
		start, end  uint64
		before, now bool
	}{
		{0x10000, 0x14000, true, true}, {0x11000, 0x12000, true, true}, {0xf000, 0x15000, true, true},
		{0xf000, 0x10000, true, false}, {0x14000, 0x15000, true, false}, {0xe000, 0xf000, false, false},
	} {
		a.areaPlan = &old
		if got := a.heap(c.start, c.end); got != c.before {
			t.Errorf("%#x-%#x before v6.6: %v", c.start, c.end, got)
		}
		a.areaPlan = &now
		if got := a.heap(c.start, c.end); got != c.now {
			t.Errorf("%#x-%#x: %v", c.start, c.end, got)
		}
	}
}

// FuzzAreas lists the memory map of a guest that answers each read as it likes.
func FuzzAreas(f *testing.F) {
	tree, treeTask := newAreaWorld(f, false)
	list, listTask := newAreaWorld(f, true)
	for w, task := range map[*areaWorld]Task{list: listTask, tree: treeTask} {
		fillAreas(w)
		f.Add(w.answersTo(func(v *View) { v.Areas(task) }), w == list)
	}
	f.Add([]byte{}, false)
	f.Add(make([]byte, 4096), true)
	f.Fuzz(func(t *testing.T, answers []byte, asList bool) {
		w := tree
		if asList {
			w = list
		}
		phys := &memtest.Script{Answers: answers}
		got, _ := viewOf(w.v.Kernel, phys).Areas(Task{Addr: 0x1000, PID: 1, TGID: 1})
		for i, a := range got {
			if a.End <= a.Start || len(a.Perms) != 4 || i > 0 && a.Start < got[i-1].End {
				t.Errorf("area %d: %+v", i, a)
			}
		}
		if limit := len(answers) + retries*(8*tooManyMishaps+100); phys.Reads > limit {
			t.Errorf("%d reads of %d bytes", phys.Reads, len(answers))
		}
	})
}

// TestNoTypes asks a kernel whose types are not known: it says so.
func TestNoTypes(t *testing.T) {
	k := &Kernel{TypesErr: errors.ErrUnsupported}
	v := viewOf(k, &memtest.Bytes{Data: make([]byte, mem.PageSize)})
	for name, list := range map[string]func() (int, error){
		"areas":     func() (int, error) { l, err := v.Areas(Task{}); return len(l), err },
		"files":     func() (int, error) { l, err := v.Files(Task{}); return len(l), err },
		"all files": func() (int, error) { l, err := v.AllFiles(); return len(l), err },
		"mounts":    func() (int, error) { l, err := v.Mounts(Task{}); return len(l), err },
		"path":      func() (int, error) { p, err := v.filePath(0); return len(p), err },
	} {
		if n, err := list(); n != 0 || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}
