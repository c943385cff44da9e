package linux

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/kernel"
	"vmscope/mem"
)

// procWorld is a world with a process in it.
type procWorld struct {
	*fsWorld
	f          *fileLayout
	t          *taskLayout
	root, base mem.VA // of the file system, and its mount
	sb         mem.VA
}

func newProcWorld(t testing.TB) *procWorld {
	w := newFSWorld(t)
	p := &procWorld{fsWorld: w, f: layoutOf[fileLayout](w.world), t: layoutOf[taskLayout](w.world)}
	p.root = w.dentry(0, "/")
	p.base = w.mount(p.root, spot{})
	p.sb = w.alloc(2048)
	w.put(p.sb, p.f.SDev, 254<<20|3)
	return p
}

// task makes a task_struct.
func (w *procWorld) task(pid int) Task {
	at := w.alloc(10 << 10)
	w.put(at, w.t.PID, uint64(pid))
	w.put(at, w.t.TGID, uint64(pid))
	w.bytes(w.t.Comm.At(at), fmt.Sprintf("task%d", pid))
	t := Task{Addr: at, PID: pid, TGID: pid}
	copy(t.comm[:], fmt.Sprintf("task%d", pid))
	return t
}

// file makes an open file in a dentry's place.
func (w *procWorld) file(dentry mem.VA, mode, ino uint64) mem.VA {
	file, inode := w.alloc(256), w.alloc(1024)
	w.put(file, w.f.FMnt, uint64(w.base))
	w.put(file, w.f.FDentry, uint64(dentry))
	w.put(file, w.f.FInode, uint64(inode))
	w.put(inode, w.f.IMode, mode)
	w.put(inode, w.f.Ino, ino)
	w.put(inode, w.f.ISB, uint64(w.sb))
	return file
}

// table gives t a descriptor table of the given size and gives the address of its
// slots and bitmaps.
func (w *procWorld) table(t Task, size int) (fds, open, onExec mem.VA) {
	own, fdt := w.alloc(1024), w.alloc(64)
	fds, open, onExec = w.alloc(uint64(8*size)), w.alloc(uint64(size/8)), w.alloc(uint64(size/8))
	w.put(t.Addr, w.f.Files, uint64(own))
	w.put(own, w.f.FDT, uint64(fdt))
	w.put(fdt, w.f.Max, uint64(size))
	w.put(fdt, w.f.FD, uint64(fds))
	w.put(fdt, w.f.Open, uint64(open))
	w.put(fdt, w.f.OnExec, uint64(onExec))
	return fds, open, onExec
}

// set puts a file into a table.
func (w *procWorld) set(fds, open mem.VA, fd int, file mem.VA) {
	w.put64(fds+mem.VA(8*fd), uint64(file))
	w.b[int(open)+fd/8] |= 1 << (fd % 8)
}

func TestFiles(t *testing.T) {
	w := newProcWorld(t)
	task := w.task(7)
	if got, err := w.v.Files(task); err != nil || len(got) != 0 {
		t.Errorf("without a table: %v, %v", got, err)
	}
	fds, open, onExec := w.table(task, 256)
	reg := w.file(w.dentry(w.root, "data"), 0o100644, 42)
	w.put(reg, w.f.FFlags, 0o102001|oCloExec)
	w.put(reg, w.f.FMode, 0x4001a|2)
	w.put(reg, w.f.FPos, 1<<40)
	anon := w.file(w.pseudo(anonDname, "[eventfd]", 9), 0o100600, 9)
	w.put(anon, w.f.FMode, 3)
	sock := w.file(w.pseudo(sockDname, "", 77), 0o140777, 77)
	w.put(sock, w.f.FMode, 3)
	w.set(fds, open, 0, reg)
	w.set(fds, open, 3, anon)
	w.set(fds, open, 64, sock)
	w.set(fds, open, 65, 0) // being opened
	w.set(fds, open, 255, reg)
	w.b[onExec+31] = 0x80
	text := []kernel.File{
		{FD: 0, Type: "REG", Path: "/data", Inode: 42, Pos: 1 << 40, Flags: 0o102001, Mode: "w", Addr: reg},
		{FD: 3, Type: "anon", Path: "anon_inode:[eventfd]", Inode: 9, Mode: "u", Addr: anon},
		{FD: 64, Type: "SOCK", Path: "socket:[77]", Inode: 77, Mode: "u", Addr: sock},
		{FD: 255, Type: "REG", Path: "/data", Inode: 42, Pos: 1 << 40, Flags: 0o102001 | oCloExec, Mode: "w", Addr: reg},
	}
	for i := range text {
		text[i].PID, text[i].Comm, text[i].Dev = 7, "task7", "254:3"
	}
	got, err := w.v.Files(task)
	if err != nil || !slices.Equal(got, text) {
		t.Errorf("%v\nhave %+v\nwant %+v", err, got, text)
	}

	// One that cannot be read is told, the others are given.
	w.set(fds, open, 4, 1<<40)
	w.set(fds, open, 5, w.file(w.pseudo(noDname, "x", 1), 0o100600, 5))
	got, err = w.v.Files(task)
	if len(got) != 5 || !errors.Is(err, mem.ErrNoRAM) || !strings.Contains(fmt.Sprint(err), "fd 4:") || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v\n%+v", err, got)
	}

	// The same of a process that is gone is nothing.
	w.put(task.Addr, w.t.PID, 8)
	if got, err := w.v.Files(task); err != nil || len(got) != 0 {
		t.Errorf("of another task: %v, %v", got, err)
	}
}

func TestFilesHostile(t *testing.T) {
	w := newProcWorld(t)
	for name, c := range map[string]struct {
		size int
		want error
		n    int
	}{
		"no descriptors":   {0, mem.ErrInconsistent, 0},
		"half a word":      {63, mem.ErrInconsistent, 0},
		"more than RAM":    {1 << 30, mem.ErrNoRAM, 0},
		"more than we ask": {1<<20 + 64, errors.ErrUnsupported, 1},
	} {
		task := w.task(1)
		fds, open, _ := w.table(task, 64)
		w.set(fds, open, 1, w.file(w.dentry(w.root, "f"), 0o100644, 1))
		fdt := mem.VA(uintAt(w.b, uint64(w.f.FDT.At(mem.VA(uintAt(w.b, uint64(w.f.Files.At(task.Addr)), 8)))), 8))
		w.put(fdt, w.f.Max, uint64(c.size))
		if name == "more than we ask" { // it has to read two bitmaps of 128 KiB
			w.put(fdt, w.f.Open, 0xc0000)
			w.put(fdt, w.f.OnExec, 0xc0000)
			w.b[0xc0000] = 2
		}
		if name == "more than RAM" {
			w.put(fdt, w.f.Open, uint64(len(w.b)-mem.PageSize))
		}
		if got, err := w.v.Files(task); !errors.Is(err, c.want) || len(got) != c.n {
			t.Errorf("%s: %d files, %v", name, len(got), err)
		}
	}

	// A table full of lies is given up.
	task := w.task(2)
	fds, open, _ := w.table(task, 1024)
	for fd := range 1024 {
		w.set(fds, open, fd, mem.VA(1<<40+8*fd))
	}
	phys := &memtest.Bytes{Data: w.b}
	v := viewOf(w.v.Kernel, phys)
	if got, err := v.Files(task); !errors.Is(err, mem.ErrNoRAM) || len(got) != 0 {
		t.Errorf("lies: %d files, %v", len(got), err)
	}
	if n := phys.Reads(); n > retries*(4*tooManyMishaps+100) {
		t.Errorf("%d reads", n)
	}
}

// TestFilesChange closes and opens descriptors while they are listed.
func TestFilesChange(t *testing.T) {
	w := newProcWorld(t)
	task := w.task(1)
	fds, open, _ := w.table(task, 64)
	old := w.file(w.dentry(w.root, "old"), 0o100644, 1)
	now := w.file(w.dentry(w.root, "new"), 0o100644, 2)
	w.set(fds, open, 0, old)
	w.set(fds, open, 1, old)
	// When the first file is read, the slots change.
	phys := &trap{Bytes: &memtest.Bytes{Data: w.b}, at: mem.PA(old), spring: func() {
		w.put64(fds, uint64(now))
		w.put64(fds+8, 0)
	}}
	got, err := viewOf(w.v.Kernel, phys).Files(task)
	if err != nil || len(got) != 1 || got[0].Path != "/new" || got[0].FD != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// trap does something once, after the address was read.
type trap struct {
	*memtest.Bytes
	at     mem.PA
	spring func()
}

func (r *trap) ReadPhys(p []byte, pa mem.PA) (int, error) {
	n, err := r.Bytes.ReadPhys(p, pa)
	if pa == r.at && r.spring != nil {
		r.spring()
		r.spring = nil
	}
	return n, err
}

func TestFileType(t *testing.T) {
	for mode, want := range map[uint64]string{
		0o600: "anon", 0o010600: "FIFO", 0o020666: "CHR", 0o040755: "DIR", 0o060660: "BLK",
		0o100644: "REG", 0o120777: "LINK", 0o140777: "SOCK", 0o150000: "0150000",
	} {
		if got := fileType(mode); got != want {
			t.Errorf("%#o is %s, want %s", mode, got, want)
		}
	}
}

// FuzzFiles lists the files of a guest that answers each read as it likes.
func FuzzFiles(f *testing.F) {
	w := newProcWorld(f)
	task := w.task(1)
	fds, open, _ := w.table(task, 128)
	w.set(fds, open, 0, w.file(w.dentry(w.root, "f"), 0o100644, 1))
	w.set(fds, open, 70, w.file(w.pseudo(anonDname, "[eventfd]", 9), 0o600, 9))
	w.set(fds, open, 71, w.file(w.pseudo(sockDname, "", 77), 0o140777, 77))
	f.Add(w.answersTo(func(v *View) { v.Files(task) }))
	w.set(fds, open, 72, 1<<40)
	f.Add(w.answersTo(func(v *View) { v.Files(task) }))
	seed := make([]byte, 4096)
	copy(seed, "\x00\x10\x00\x00\x00\x00\x00\x00"+"\x00\x20\x00\x00\x00\x00\x00\x00"+"\x40\x00\x00\x00\x00\x00\x00\x00")
	f.Add(seed)
	f.Fuzz(func(t *testing.T, answers []byte) {
		phys := &memtest.Script{Answers: answers}
		v := viewOf(w.v.Kernel, phys)
		got, err := v.Files(Task{Addr: 0x1000, PID: 1, TGID: 1})
		for i, e := range got {
			if e.FD < 0 || e.FD >= maxFDs || i > 0 && e.FD <= got[i-1].FD || e.Addr == 0 || e.Path == "" && err == nil {
				t.Errorf("entry %d: %+v", i, e)
			}
		}
		if limit := len(answers) + retries*(8*tooManyMishaps+100); phys.Reads > limit {
			t.Errorf("%d reads of %d bytes", phys.Reads, len(answers))
		}
	})
}
