package linux

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/kernel"
	"vmscope/mem"
)

// supply makes val what derived gives: a kernel's symbols are not needed then.
func supply[T any](k *Kernel, val *T) {
	b := &bound{val: val}
	b.once.Do(func() {})
	k.layouts.Store(reflect.TypeFor[T](), b)
}

// Where the functions and locks of fsWorld's kernel lie.
const (
	lockAt   = 0x10
	opAt     = 0x100 // dentry_operations, one for each dnamer, 256 bytes apart
	unknownF = 0xfff0
)

// fsWorld is a world with directories in it.
type fsWorld struct {
	*world
	l *pathPlan
}

func newFSWorld(t testing.TB) *fsWorld {
	w := newWorld(t)
	plan := &pathPlan{pathLayout: *layoutOf[pathLayout](w), dnames: make(map[mem.VA]dnamer), locks: []mem.VA{lockAt}}
	if err := plan.measure(); err != nil {
		t.Fatal(err)
	}
	for kind := noDname; kind <= dmaDname; kind++ {
		f := mem.VA(0xf000 + kind)
		if kind == noDname {
			f = unknownF
		} else {
			plan.dnames[f] = kind
		}
		w.put(opAt+mem.VA(kind)<<8, plan.Dname, uint64(f))
	}
	supply(w.v.Kernel, plan)
	return &fsWorld{w, plan}
}

// dentry makes a dentry; without a parent it is a root.
func (w *fsWorld) dentry(parent mem.VA, name string) mem.VA {
	at := w.alloc(256)
	if parent == 0 {
		parent = at
	}
	w.put(at, w.l.Parent, uint64(parent))
	w.put(at, w.l.Hash, 1)
	text := at + 56 // d_iname
	if len(name) > 31 {
		text = w.alloc(uint64(len(name)) + 1)
	}
	w.bytes(text, name)
	w.put(at, w.l.Name, uint64(text))
	w.put(at, w.l.Len, uint64(len(name)))
	return at
}

// mount makes a mount of root, at a place of another mount or nowhere, and gives
// its vfsmount.
func (w *fsWorld) mount(root mem.VA, at spot) mem.VA {
	m := w.alloc(512)
	up := m
	if at.vfsmount != 0 {
		up = at.vfsmount - mem.VA(w.l.VFSMount.Offset)
	}
	w.put(m, w.l.MountRoot, uint64(root))
	w.put(m, w.l.MountParent, uint64(up))
	w.put(m, w.l.MountPoint, uint64(at.dentry))
	return w.l.VFSMount.At(m)
}

// pseudo makes a dentry that its file system names.
func (w *fsWorld) pseudo(kind dnamer, name string, ino uint64) mem.VA {
	d := w.dentry(0, name)
	inode := w.alloc(1024)
	w.put(d, w.l.Op, uint64(opAt+mem.VA(kind)<<8))
	w.put(d, w.l.Inode, uint64(inode))
	w.put(inode, w.l.Ino, ino)
	return d
}

func TestPath(t *testing.T) {
	w := newFSWorld(t)
	long := strings.Repeat("x", 255)
	root := w.dentry(0, "/")
	base := w.mount(root, spot{})
	a := w.dentry(root, "a")
	b := w.dentry(a, "b")
	name := w.dentry(b, long)
	gone := w.dentry(b, "gone")
	w.put(gone, w.l.Hash, 0)
	under := w.dentry(gone, "under")
	// mount --bind /a /a/b: the dentry a is passed in both mounts.
	bind := w.mount(a, spot{base, b})
	c := w.dentry(a, "c")
	// A file system on top.
	root2 := w.dentry(0, "/")
	fs2 := w.mount(root2, spot{bind, c})
	f := w.dentry(root2, "f")
	lost := w.mount(root2, spot{})
	foreign := w.dentry(0, "")
	moved := w.dentry(foreign, "moved")
	deep := f
	for range 40 {
		deep = w.dentry(deep, strings.Repeat("d", 200))
	}
	nsfile := w.pseudo(nsDname, "", 4026531840)
	nsmount := w.mount(nsfile, spot{base, b})

	for _, c := range []struct {
		name       string
		mnt, at    mem.VA
		want, inFS kernel.Text
	}{
		{"root", base, root, "/", "/"},
		{"plain", base, b, "/a/b", "/a/b"},
		{"long name", base, name, kernel.Text("/a/b/" + long), kernel.Text("/a/b/" + long)},
		{"unlinked", base, gone, "/a/b/gone (deleted)", "/a/b/gone//deleted"},
		{"below unlinked", base, under, "/a/b/gone/under", "/a/b/gone/under"},
		{"same dentry twice", bind, c, "/a/b/c", "/a/c"},
		{"second file system", fs2, f, "/a/b/c/f", "/f"},
		{"root of it", fs2, root2, "/a/b/c", "/"},
		{"in a detached mount", lost, f, "/f", "/f"},
		{"outside its mount", base, moved, "/moved", "/moved"},
		{"deeper than PATH_MAX", fs2, deep, kernel.Text("/a/b/c/f" + strings.Repeat("/"+strings.Repeat("d", 200), 40)), kernel.Text("/f" + strings.Repeat("/"+strings.Repeat("d", 200), 40))},
		{"bound namespace", nsmount, nsfile, "/a/b", "/"},
	} {
		if got, err := w.v.pathOf(c.mnt, c.at); err != nil || got != c.want {
			t.Errorf("%s: path %q, %v; want %q", c.name, got, err, c.want)
		}
		if got, err := w.v.dentryPath(c.at); err != nil || got != c.inFS {
			t.Errorf("%s: dentry path %q, %v; want %q", c.name, got, err, c.inFS)
		}
	}

	file := w.alloc(256)
	w.put(file, w.l.FileMnt, uint64(fs2))
	w.put(file, w.l.FileDentry, uint64(f))
	if got, err := w.v.filePath(file); err != nil || got != "/a/b/c/f" {
		t.Errorf("file: %q, %v", got, err)
	}

	// From the root of a process.
	p, err := w.v.paths()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		root, of spot
		want     kernel.Text
		ok       bool
	}{
		{spot{bind, a}, spot{fs2, f}, "/c/f", true},
		{spot{bind, a}, spot{bind, a}, "/", true},
		{spot{fs2, root2}, spot{base, b}, "/a/b", false},
	} {
		if got, ok, err := p.below(c.root, c.of.vfsmount, c.of.dentry); err != nil || ok != c.ok || got != c.want {
			t.Errorf("below %v: %q %v %v, want %q %v", c.root, got, ok, err, c.want, c.ok)
		}
	}
}

func TestPathPseudo(t *testing.T) {
	w := newFSWorld(t)
	mnt := w.mount(w.dentry(0, "pipe:"), spot{})
	nsf := w.pseudo(nsDname, "", 4026531840)
	ns, ops, text := w.alloc(512), w.alloc(128), w.alloc(8)
	inode := mem.VA(uintAt(w.b, w.l.Inode.Offset+uint64(nsf), 8))
	w.put(inode, w.l.INode, uint64(ns))
	w.put(ns, w.l.NSOps, uint64(ops))
	w.put(ops, w.l.NSName, uint64(text))
	w.bytes(text, "net")
	dma := w.pseudo(dmaDname, "dmabuf", 1)
	buf, label := w.alloc(256), w.alloc(32)
	w.put(dma, w.l.Data, uint64(buf))
	w.put(buf, w.l.DMABuf, uint64(label))
	w.bytes(label, "cam0")
	for _, c := range []struct {
		at   mem.VA
		want kernel.Text
	}{
		{w.pseudo(pipeDname, "", 77), "pipe:[77]"},
		{w.pseudo(sockDname, "", 1<<40), "socket:[1099511627776]"},
		{w.pseudo(anonDname, "[eventfd]", 1), "anon_inode:[eventfd]"},
		{w.pseudo(anonDname, "inotify", 1), "anon_inode:inotify"},
		{w.pseudo(pidDname, "", 1), "anon_inode:[pidfd]"},
		{w.pseudo(simpleDname, "memfd:a/b\n", 1), "/memfd:a/b\n (deleted)"},
		{nsf, "net:[4026531840]"},
		{dma, "/dmabuf:cam0"},
	} {
		if got, err := w.v.pathOf(mnt, c.at); err != nil || got != c.want {
			t.Errorf("got %q, %v; want %q", got, err, c.want)
		}
	}
	if got, err := w.v.pathOf(mnt, w.pseudo(noDname, "x", 1)); !errors.Is(err, errors.ErrUnsupported) || got != "" {
		t.Errorf("unknown function: %q, %v", got, err)
	}
}

// TestPathHostile breaks the structures in the ways in which a path could go on
// for ever, or be none.
func TestPathHostile(t *testing.T) {
	for name, c := range map[string]struct {
		make func(w *fsWorld, root, base mem.VA) (mnt, dentry mem.VA)
		want error
	}{
		"d_parent loops": {func(w *fsWorld, root, base mem.VA) (mem.VA, mem.VA) {
			a := w.dentry(root, "a")
			b := w.dentry(w.dentry(a, "x"), "y")
			w.put(a, w.l.Parent, uint64(b))
			return base, b
		}, mem.ErrInconsistent},
		"mnt_parent loops": {func(w *fsWorld, root, base mem.VA) (mem.VA, mem.VA) {
			m1 := w.mount(root, spot{base, root})
			m2 := w.mount(root, spot{m1, root})
			w.put(m1-mem.VA(w.l.VFSMount.Offset), w.l.MountParent, uint64(m2)-w.l.VFSMount.Offset)
			return m2, root
		}, mem.ErrInconsistent},
		"name too long": {func(w *fsWorld, root, base mem.VA) (mem.VA, mem.VA) {
			d := w.dentry(root, "n")
			w.put(d, w.l.Len, 1<<32-1)
			return base, d
		}, mem.ErrInconsistent},
		"NUL in a name": {func(w *fsWorld, root, base mem.VA) (mem.VA, mem.VA) {
			return base, w.dentry(root, "a\x00b")
		}, mem.ErrInconsistent},
		"name nowhere": {func(w *fsWorld, root, base mem.VA) (mem.VA, mem.VA) {
			d := w.dentry(root, "n")
			w.put(d, w.l.Name, 1<<60)
			return base, d
		}, mem.ErrNoRAM},
		"parent nowhere": {func(w *fsWorld, root, base mem.VA) (mem.VA, mem.VA) {
			return base, w.dentry(1<<50, "n")
		}, mem.ErrNoRAM},
		"too long": {func(w *fsWorld, root, base mem.VA) (mem.VA, mem.VA) {
			d := root
			for range maxPath/1000 + 1 {
				d = w.dentry(d, strings.Repeat("d", 999))
			}
			return base, d
		}, errors.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFSWorld(t)
			root := w.dentry(0, "/")
			mnt, dentry := c.make(w, root, w.mount(root, spot{}))
			if got, err := w.v.pathOf(mnt, dentry); !errors.Is(err, c.want) {
				t.Errorf("path %.40q, %v; want %v", got, err, c.want)
			}
			if _, err := w.v.dentryPath(dentry); !errors.Is(err, c.want) && name != "mnt_parent loops" {
				t.Errorf("dentry path: %v; want %v", err, c.want)
			}
		})
	}
}

// restless changes a word at every read of it.
type restless struct {
	*memtest.Bytes
	at   mem.PA
	step byte
}

func (r *restless) ReadPhys(p []byte, pa mem.PA) (int, error) {
	if pa == r.at {
		r.Data[pa] += r.step
	}
	return r.Bytes.ReadPhys(p, pa)
}

// TestPathRename names a file while others rename.
func TestPathRename(t *testing.T) {
	w := newFSWorld(t)
	root := w.dentry(0, "/")
	base := w.mount(root, spot{})
	d := w.dentry(root, "d")
	w.b[lockAt] = 7 // a dump taken amid a rename
	if got, err := w.v.pathOf(base, d); err != nil || got != "/d" {
		t.Errorf("odd counter: %q, %v", got, err)
	}
	if got, err := w.v.dentryPath(d); err != nil || got != "/d" {
		t.Errorf("odd counter: dentry path %q, %v", got, err)
	}
	v := viewOf(w.v.Kernel, &restless{&memtest.Bytes{Data: w.b}, lockAt, 2})
	if got, err := v.dentryPath(d); !errors.Is(err, mem.ErrInconsistent) || got != "/d" {
		t.Errorf("renames without end: dentry path %q, %v", got, err)
	}
	if got, err := v.pathOf(base, d); !errors.Is(err, mem.ErrInconsistent) || got != "/d" {
		t.Errorf("renames without end: %q, %v", got, err)
	}
}

// recorder keeps what a guest answered, as the script for a fuzzer to spoil.
type recorder struct {
	mem.PhysReader
	answers []byte
}

func (r *recorder) ReadPhys(p []byte, pa mem.PA) (int, error) {
	n, err := r.PhysReader.ReadPhys(p, pa)
	r.answers = append(r.answers, p[:n]...)
	return n, err
}

// answersTo are the answers that the world gives to what f asks.
func (w *world) answersTo(f func(v *View)) []byte {
	r := &recorder{PhysReader: &memtest.Bytes{Data: w.b}}
	f(viewOf(w.v.Kernel, r))
	return r.answers
}

// FuzzPath names a file of a guest that answers each read as it likes.
func FuzzPath(f *testing.F) {
	w := newFSWorld(f)
	root := w.dentry(0, "/")
	top := w.mount(root, spot{w.mount(root, spot{}), w.dentry(w.dentry(root, "a"), strings.Repeat("b", 60))})
	file := w.alloc(256)
	w.put(file, w.l.FileMnt, uint64(top))
	for _, d := range []mem.VA{
		w.dentry(w.dentry(root, "c"), "d"), w.pseudo(pipeDname, "", 7), w.pseudo(nsDname, "", 7), w.pseudo(anonDname, "[eventfd]", 7),
		w.pseudo(dmaDname, "dmabuf", 7), w.pseudo(simpleDname, "memfd:x", 7), w.pseudo(noDname, "", 7),
	} {
		w.put(file, w.l.FileDentry, uint64(d))
		f.Add(w.answersTo(func(v *View) { v.filePath(file) }))
	}
	f.Add(make([]byte, 4096))
	loop := make([]byte, 1<<14)
	for i := range loop {
		loop[i] = byte(i / 8 * 8)
	}
	f.Add(loop)
	f.Fuzz(func(t *testing.T, answers []byte) {
		phys := &memtest.Script{Answers: answers}
		v := viewOf(w.v.Kernel, phys)
		name, err := v.filePath(0x1000)
		if len(name) > maxPath {
			t.Errorf("a path of %d bytes", len(name))
		}
		if name == "" && err == nil {
			t.Error("neither a path nor an error")
		}
		// A walk ends with the answers; then each attempt fails at its first read.
		if phys.Reads > len(answers)/4+8*retries {
			t.Errorf("%d reads for %d bytes", phys.Reads, len(answers))
		}
	})
}

func (v *View) filePath(file mem.VA) (kernel.Text, error) {
	p, err := v.paths()
	if err != nil {
		return "", err
	}
	return p.file(file)
}

func (v *View) pathOf(vfsmount, dentry mem.VA) (kernel.Text, error) {
	p, err := v.paths()
	if err != nil {
		return "", err
	}
	return p.path(vfsmount, dentry)
}

func (v *View) dentryPath(dentry mem.VA) (kernel.Text, error) {
	p, err := v.paths()
	if err != nil {
		return "", err
	}
	return p.inFS(dentry)
}
