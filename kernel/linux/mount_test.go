package linux

import (
	"errors"
	"slices"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/kernel"
	"vmscope/mem"
)

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		flags uint64
		want  string
	}{
		{0, "rw"}, {0x40, "ro"}, {0x27, "rw,nosuid,nodev,noexec,relatime"}, {0xff, "ro,nosuid,nodev,noexec,noatime,nodiratime,relatime,nosymfollow"},
		{mntShared | mntUnbindable, "rw"},
	} {
		if got := options(c.flags, mntReadOnly, mountOptions); got != c.want {
			t.Errorf("%#x: %s, want %s", c.flags, got, c.want)
		}
	}
	if got := options(1|1<<4|1<<6|1<<7|1<<25, sbReadOnly, superOptions); got != "ro,sync,dirsync,mand,lazytime" {
		t.Error(got)
	}
}

// mountWorld is a world with a process in a mount namespace.
type mountWorld struct {
	*procWorld
	m        *mountPlan
	ns, head mem.VA
	nodes    []mem.VA
}

// newMountWorld makes one whose kernel keeps mounts in a list or in a tree.
func newMountWorld(t testing.TB, tree bool) (*mountWorld, Task) {
	w := &mountWorld{procWorld: newProcWorld(t)}
	w.m = &mountPlan{mountLayout: *layoutOf[mountLayout](w.world), superNames: superOptions, noMap: []mem.VA{0x7000}, nsShow: 0x7100, nfsShow: 0x7200}
	if err := w.m.measure(); err != nil {
		t.Fatal(err)
	}
	if tree {
		w.m.List.Type, w.m.Link.Type = w.m.Tree.Type, w.m.Tree.Type // not valid
		rb := layoutOf[rbLayout](w.world)
		w.m.Tree, w.m.Node = rb.Left, rb.Left
		w.m.Tree.Offset, w.m.Node.Offset = 32, 64
	}
	supply(w.v.Kernel, w.m)
	task := w.task(5)
	proxy, fs := w.alloc(128), w.alloc(128)
	w.ns = w.alloc(512)
	w.put(task.Addr, w.m.NSProxy, uint64(proxy))
	w.put(proxy, w.m.MntNS, uint64(w.ns))
	w.put(task.Addr, w.m.FS, uint64(fs))
	w.put(fs, w.m.RootMnt, uint64(w.base))
	w.put(fs, w.m.RootDir, uint64(w.root))
	return w, task
}

// describe fills the mount of a vfsmount.
func (w *mountWorld) describe(vfsmount mem.VA, id, flags uint64, fs, source string) {
	at := vfsmount - mem.VA(w.m.VFS.Offset)
	sb, typ, name := w.alloc(2048), w.alloc(128), w.alloc(64)
	w.put(at, w.m.ID, id)
	w.put(at, w.m.Flags, flags)
	w.put(at, w.m.SB, uint64(sb))
	w.put(at, w.m.Map, 0x7000)
	w.put(sb, w.m.SDev, id)
	w.put(sb, w.m.SType, uint64(typ))
	w.put(typ, w.m.TypeName, uint64(name))
	w.bytes(name, fs)
	if source != "" {
		text := w.alloc(64)
		w.bytes(text, source)
		w.put(at, w.m.Dev, uint64(text))
	}
	w.nodes = append(w.nodes, at)
}

// link hangs the mounts into the namespace.
func (w *mountWorld) link() {
	if !w.m.List.Valid() {
		var nodes []mem.VA
		for _, n := range w.nodes {
			nodes = append(nodes, w.m.Node.At(n))
		}
		w.put64(w.m.Tree.At(w.ns), uint64(w.rbTree(layoutOf[rbLayout](w.world), 0, nodes)))
		return
	}
	var nodes []mem.VA
	for _, n := range w.nodes {
		nodes = append(nodes, w.m.Link.At(n))
	}
	w.list(w.m.List.At(w.ns), nodes...)
}

func TestMounts(t *testing.T) {
	for _, tree := range []bool{false, true} {
		w, task := newMountWorld(t, tree)
		w.describe(w.base, 1, 0x20, "ext4", "/dev/vda1")
		mnt := w.dentry(w.root, "mnt")
		shared := w.mount(w.dentry(0, "/"), spot{w.base, mnt})
		w.describe(shared, 22, 0x40|0x7|mntShared, "tmpfs", "")
		w.put(shared-mem.VA(w.m.VFS.Offset), w.m.Group, 3)
		slave := w.mount(w.dentry(w.dentry(0, "/"), "sub"), spot{shared, w.dentry(mem.VA(uintAt(w.b, uint64(w.l.MountRoot.At(shared-mem.VA(w.l.VFSMount.Offset))), 8)), "in")})
		w.describe(slave, 23, mntUnbindable, "fuse", "with space")
		w.put(slave-mem.VA(w.m.VFS.Offset), w.m.Master, uint64(shared)-w.m.VFS.Offset)
		w.put(slave-mem.VA(w.m.VFS.Offset), w.m.Map, 0x7008)
		cursor := w.mount(w.root, spot{w.base, mnt})
		w.describe(cursor, 0, mntCursor, "", "")
		elsewhere := w.mount(w.dentry(0, "/"), spot{})
		w.describe(elsewhere, 30, 0, "nullfs", "none")
		w.link()
		sb := mem.VA(uintAt(w.b, uint64(w.m.SB.At(slave-mem.VA(w.m.VFS.Offset))), 8))
		sub := w.alloc(16)
		w.put(sb, w.m.SubType, uint64(sub))
		w.put(sb, w.m.SFlags, 1|1<<25)
		w.bytes(sub, "sshfs")

		want := []kernel.Mount{
			{ID: 1, Parent: 1, Dev: "0:1", Root: "/", Target: "/", Options: "rw,relatime", Type: "ext4", Source: "/dev/vda1", SuperOptions: "rw"},
			{ID: 22, Parent: 1, Dev: "0:22", Root: "/", Target: "/mnt", Options: "ro,nosuid,nodev,noexec", Propagation: "shared:3", Type: "tmpfs", Source: "none", SuperOptions: "rw"},
			{ID: 23, Parent: 22, Dev: "0:23", Root: "/sub", Target: "/mnt/in", Options: "rw,idmapped", Propagation: "master:3 unbindable", Type: "fuse.sshfs", Source: "with space", SuperOptions: "ro,lazytime"},
		}
		got, err := w.v.Mounts(task)
		for i := range got {
			got[i].Addr = 0
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("tree %v: %v\nhave %+v\nwant %+v", tree, err, got, want)
		}

		// One that cannot be read is told.
		w.put(slave-mem.VA(w.m.VFS.Offset), w.m.SB, 1<<40)
		if got, err := w.v.Mounts(task); len(got) != 2 || !errors.Is(err, mem.ErrNoRAM) {
			t.Errorf("tree %v: %d mounts, %v", tree, len(got), err)
		}
	}
}

// FuzzMounts lists the mounts of a guest that answers each read as it likes.
func FuzzMounts(f *testing.F) {
	list, listTask := newMountWorld(f, false)
	tree, treeTask := newMountWorld(f, true)
	for w, task := range map[*mountWorld]Task{list: listTask, tree: treeTask} {
		w.describe(w.base, 1, 0x20, "ext4", "/dev/vda1")
		for i, name := range []string{"a", "b", "c"} {
			w.describe(w.mount(w.dentry(0, "/"), spot{w.base, w.dentry(w.root, name)}), uint64(i)+2, mntShared, "tmpfs", name)
		}
		w.link()
		f.Add(w.answersTo(func(v *View) { v.Mounts(task) }), w == tree)
	}
	f.Add([]byte{}, false)
	f.Add(make([]byte, 4096), true)
	f.Fuzz(func(t *testing.T, answers []byte, asTree bool) {
		w := list
		if asTree {
			w = tree
		}
		phys := &memtest.Script{Answers: answers}
		got, err := viewOf(w.v.Kernel, phys).Mounts(Task{Addr: 0x1000, PID: 1, TGID: 1})
		for _, m := range got {
			if err == nil && (m.Target == "" || m.Root == "" || m.Options == "") {
				t.Errorf("%+v", m)
			}
		}
		if limit := len(answers) + retries*(8*tooManyMishaps+100); phys.Reads > limit {
			t.Errorf("%d reads of %d bytes", phys.Reads, len(answers))
		}
	})
}
