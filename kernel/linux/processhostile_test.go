package linux

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/kernel"
	"vmscope/mem"
)

// one returns the only process of the world.
func (w *taskWorld) one() kernel.Process {
	w.t.Helper()
	all, err := w.v.Processes()
	if err != nil || len(all) != 1 {
		w.t.Fatalf("%d processes, %v", len(all), err)
	}
	return all[0]
}

func TestProcess(t *testing.T) {
	w := newTaskWorld(t)
	a := w.task(1, 1)
	mm, stack := w.program(a)
	w.args(mm, stack, "prog\x00arg\x00", "A=1\x00B=2\x00")
	file := w.alloc(512)
	root := w.dentry(0, "/")
	w.put(file, w.l.FileMnt, uint64(w.mount(root, spot{})))
	w.put(file, w.l.FileDentry, uint64(w.dentry(root, "prog")))
	w.put(mm, w.p.s.ExeFile, uint64(file))
	kn := w.kernfs(w.kernfs(w.kernfs(0, ""), "system.slice"), "docker-"+strings.Repeat("ab", 32)+".scope")
	w.put(a, w.p.d.CGroups, uint64(w.cgroupSet(kn)))
	w.link()
	got := fmt.Sprintf("%+v", w.one())
	want := fmt.Sprintf("%+v", kernel.Process{
		PID: 1, TGID: 1, UID: 1001, GID: 2001, EUID: 3001, EGID: 4001, Comm: "task", Cmdline: []kernel.Text{"prog", "arg"}, Exe: "/prog",
		State: "S", SinceBoot: 1e9, Threads: 1, CGroup: kernel.Text("/system.slice/docker-" + strings.Repeat("ab", 32) + ".scope"),
		Container: kernel.Text(strings.Repeat("ab", 32)), TaskStruct: a, Root: mem.PA(w.get64(w.p.s.PGD.At(mm))),
	})
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	env, err := w.v.Environ(taskAt(w, a))
	if err != nil || fmt.Sprint(env) != "[A=1 B=2]" {
		t.Errorf("environment %q, %v", env, err)
	}
}

func taskAt(w *taskWorld, at mem.VA) Task {
	var task Task
	near := w.v.Mem.Near()
	if err := task.read(&near, w.p.t, at); err != nil {
		w.t.Fatal(err)
	}
	return task
}

// TestProcessMissing breaks one thing that a process points to after the
// other: the rest must be told all the same, and what is missing said.
func TestProcessMissing(t *testing.T) {
	for _, c := range []struct {
		what  string
		spoil func(w *taskWorld, task, mm mem.VA)
	}{
		{"", func(*taskWorld, mem.VA, mem.VA) {}},
		{"parent", func(w *taskWorld, task, mm mem.VA) { w.put(task, w.p.d.Parent, 1<<40) }},
		{"credentials", func(w *taskWorld, task, mm mem.VA) { w.put(task, w.p.d.Cred, 1<<40) }},
		{"number of threads", func(w *taskWorld, task, mm mem.VA) { w.put(task, w.p.t.Signal, 1<<40) }},
		{"cgroup", func(w *taskWorld, task, mm mem.VA) { w.put(task, w.p.d.CGroups, 1<<40) }},
		{"exe", func(w *taskWorld, task, mm mem.VA) { w.put(mm, w.p.s.ExeFile, 1<<40) }},
		{"exe", func(w *taskWorld, task, mm mem.VA) { w.put(task, w.p.d.MM, 1<<40) }},
		{"address space", func(w *taskWorld, task, mm mem.VA) { w.put(mm, w.p.s.PGD, 0x1008) }},
		{"cmdline", func(w *taskWorld, task, mm mem.VA) { w.put(mm, w.p.s.PGD, uint64(1<<40)) }},
		{"cmdline", func(w *taskWorld, task, mm mem.VA) {
			w.put(mm, w.p.s.ArgStart, 0x1000)
			w.put(mm, w.p.s.ArgEnd, 0x2000)
		}},
	} {
		w := newTaskWorld(t)
		task := w.task(1, 1)
		mm, stack := w.program(task)
		w.args(mm, stack, "a\x00b\x00", "")
		c.spoil(w, task, mm)
		w.link()
		p := w.one()
		switch {
		case c.what == "" && p.Missing == nil:
		case c.what == "" || len(p.Missing) == 0 || !strings.HasPrefix(p.Missing[0], c.what+": "):
			t.Errorf("%s: missing %q", c.what, p.Missing)
		}
		if p.PID != 1 || p.Comm != "task" || p.State != "S" || c.what != "credentials" && p.UID != 1001 {
			t.Errorf("%s: %+v", c.what, p)
		}
	}
}

// TestProcessChanges lets things happen to a process before each read of it in
// turn. What is told must be of one moment, or say that it is not.
func TestProcessChanges(t *testing.T) {
	unlink := func(w *taskWorld, task mem.VA) {
		node := w.p.t.Tasks.At(task)
		next, prev := mem.VA(w.get64(node)), mem.VA(w.get64(node+8))
		w.put64(next+8, uint64(prev))
		w.put64(prev, uint64(next))
		w.put64(node+8, poison2)
	}
	for _, c := range []struct {
		name   string
		change func(w *taskWorld, task mem.VA)
		right  func(p kernel.Process) bool
		goes   bool // it may be missing in the list
	}{
		{"ends", unlink, func(p kernel.Process) bool { return p.UID == 1001 }, true},
		{"ends and is reused", func(w *taskWorld, task mem.VA) {
			unlink(w, task)
			w.put(task, w.p.t.PID, 77)
			w.put(task, w.p.t.TGID, 77)
			w.put(task, w.p.d.Cred, 0)
			w.put(task, w.p.t.Signal, 0)
		}, func(p kernel.Process) bool { return p.PID == 1 && p.UID == 1001 }, true},
		{"other program", func(w *taskWorld, task mem.VA) {
			w.bytes(w.p.t.Comm.At(task), "prog\x00")
			mm, stack := w.program(task)
			w.args(mm, stack, "new\x00", "")
		}, func(p kernel.Process) bool {
			return p.Comm == "task" && p.Cmdline[0] == "old" || p.Comm == "prog" && p.Cmdline[0] == "new"
		}, false},
		{"other user", func(w *taskWorld, task mem.VA) {
			cred := w.alloc(128)
			w.put(cred, w.p.d.UID, 5)
			w.put(cred, w.p.d.GID, 6)
			w.put(task, w.p.d.Cred, uint64(cred))
		}, func(p kernel.Process) bool { return p.UID == 1001 && p.GID == 2001 || p.UID == 5 && p.GID == 6 }, false},
		{"becomes a zombie", func(w *taskWorld, task mem.VA) {
			w.put(task, w.p.d.Exit, 0x20)
			w.put(task, w.p.d.State, 0x80)
			w.put(task, w.p.d.MM, 0)
		}, func(p kernel.Process) bool {
			return p.State == "S" && p.Cmdline != nil || p.State == "Z" && p.Cmdline == nil && p.Root == 0
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for at := 1; ; at++ {
				w := newTaskWorld(t)
				task := w.task(1, 1)
				mm, stack := w.program(task)
				w.args(mm, stack, "old\x00", "")
				w.link()
				done := false
				w.stir(at, func() { c.change(w, task); done = true })
				all, err := w.v.Processes()
				if err != nil || len(all) > 1 || len(all) == 0 && !c.goes {
					t.Fatalf("change before read %d: %d processes, %v", at, len(all), err)
				}
				if len(all) == 1 && (len(all[0].Missing) > 0 || !c.right(all[0])) {
					t.Fatalf("change before read %d: %+v", at, all[0])
				}
				if !done {
					break
				}
			}
		})
	}
}

// TestProcessAlwaysChanges reads a process that never stands still.
func TestProcessAlwaysChanges(t *testing.T) {
	w := newTaskWorld(t)
	task := w.task(1, 1)
	w.link()
	n := uint64(0)
	w.v = viewOf(w.v.Kernel, &stirred{PhysReader: &memtest.Bytes{Data: w.b}, always: func() {
		n++
		w.put64(w.p.t.Comm.At(task), n%2+'a')
	}})
	p := w.one()
	if len(p.Missing) != 1 || !strings.Contains(p.Missing[0], "changed each time") {
		t.Errorf("missing %q", p.Missing)
	}
}

// TestProcessBehindCache checks that what a View keeps does not hide that a
// process changed.
func TestProcessBehindCache(t *testing.T) {
	w := newTaskWorld(t)
	w.task(1, 1)
	b := w.task(2, 2)
	w.link()
	r := &stirred{PhysReader: &memtest.Bytes{Data: w.b}}
	w.v = viewOf(w.v.Kernel, mem.NewCache(r, 1024))
	if all, err := w.v.Processes(); err != nil || len(all) != 2 {
		t.Fatalf("%d processes, %v", len(all), err)
	}
	w.bytes(w.p.t.Comm.At(b), "other\x00")
	all, err := w.v.Processes()
	if err != nil || len(all) != 2 || all[1].Comm != "other" || all[1].Missing != nil {
		t.Errorf("%+v, %v", all, err)
	}
	w.tasks = w.tasks[:1]
	w.link()
	w.put64(w.p.t.Tasks.At(b)+8, poison2)
	if all, err := w.v.Processes(); err != nil || len(all) != 1 || all[0].PID != 1 {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestSourceFails lets the source fail at each read in turn: that must be told,
// and never look like a guest without processes.
func TestSourceFails(t *testing.T) {
	w := newTaskWorld(t)
	task := w.task(1, 1)
	mm, stack := w.program(task)
	w.args(mm, stack, "a\x00", "")
	w.task(2, 2)
	w.link()
	one := taskAt(w, task)
	for n := 1; ; n++ {
		failing := func() *breaking { return &breaking{PhysReader: &memtest.Bytes{Data: w.b}, n: n} }
		r := failing()
		all, err := viewOf(w.v.Kernel, r).Processes()
		if r.n > 0 {
			if err != nil || len(all) != 2 {
				t.Fatalf("%d processes, %v", len(all), err)
			}
			break
		}
		if !errors.Is(err, mem.ErrUnreachable) {
			t.Fatalf("read %d fails: %d processes, %v", n, len(all), err)
		}
		r = failing()
		if _, err := viewOf(w.v.Kernel, r).Process(one); r.n <= 0 && !errors.Is(err, mem.ErrUnreachable) {
			t.Fatalf("read %d fails: %v", n, err)
		}
		r = failing()
		if _, err := viewOf(w.v.Kernel, r).SpaceOf(one); r.n <= 0 && !errors.Is(err, mem.ErrUnreachable) {
			t.Fatalf("read %d fails: %v", n, err)
		}
	}
}

// breaking is a memory that fails from its n-th read on.
type breaking struct {
	mem.PhysReader
	n int
}

func (b *breaking) ReadPhys(p []byte, pa mem.PA) (int, error) {
	if b.n--; b.n <= 0 {
		return 0, &mem.FaultError{Op: "read", Addr: uint64(pa), Err: mem.ErrUnreachable}
	}
	return b.PhysReader.ReadPhys(p, pa)
}

// TestThreads lists threads, and leaves out those of a process that ends
// meanwhile.
func TestThreads(t *testing.T) {
	w := newTaskWorld(t)
	lead, one, two := w.task(5, 5), w.task(6, 5), w.task(7, 5)
	last := w.task(9, 9)
	w.tasks = []mem.VA{lead, last}
	w.link()
	sig := mem.VA(w.get64(w.p.t.Signal.At(lead)))
	for _, at := range []mem.VA{one, two} {
		w.put(at, w.p.t.Signal, uint64(sig))
	}
	w.put(sig, w.p.d.NThreads, 3)
	node := w.p.t.Node
	w.list(w.p.t.Threads.At(sig), node.At(lead), node.At(one), node.At(two))
	all, err := w.v.Threads()
	var pids []int
	for _, p := range all {
		pids = append(pids, p.PID)
		if p.TGID == 5 && p.Threads != 3 || p.Missing != nil {
			t.Errorf("%+v", p)
		}
	}
	if err != nil || !slices.Equal(pids, []int{5, 6, 7, 9}) {
		t.Errorf("%v, %v", pids, err)
	}
	// A list of threads that lies is an error, beside the rest.
	w.put64(node.At(one), uint64(node.At(one)))
	if all, err := w.v.Threads(); !errors.Is(err, mem.ErrInconsistent) || len(all) < 2 || all[len(all)-1].PID != 9 {
		t.Errorf("%d threads, %v", len(all), err)
	}
}

func TestCmdline(t *testing.T) {
	page := strings.Repeat("p", mem.PageSize)
	for _, c := range []struct {
		name      string
		args, env string
		set       func(w *taskWorld, mm mem.VA, stack []byte)
		want      []kernel.Text
		missing   string
	}{
		{"plain", "a\x00b c\x00\x00", "E=1\x00", nil, []kernel.Text{"a", "b c", ""}, ""},
		{"none", "", "E=1\x00", nil, nil, ""},
		{"not far enough in execve", "a\x00", "", func(w *taskWorld, mm mem.VA, _ []byte) { w.put(mm, w.p.s.EnvEnd, 0) }, nil, ""},
		{"title within", "a\x00bcd\x00", "E=1\x00", func(w *taskWorld, mm mem.VA, s []byte) { copy(s, "new\x00\x00\x00") }, []kernel.Text{"new", "", ""}, ""},
		{"title up to the end", "a\x00bcd\x00", "E=1\x00", func(w *taskWorld, mm mem.VA, s []byte) { copy(s, "titled") }, []kernel.Text{"titledE=1"}, ""},
		{"title into the environment", "a\x00bcd\x00", "E=123\x00F=2\x00", func(w *taskWorld, mm mem.VA, s []byte) { copy(s, "a long one\x00") }, []kernel.Text{"a long one"}, ""},
		{"title, environment elsewhere", "a\x00bcd\x00", "E=123\x00", func(w *taskWorld, mm mem.VA, s []byte) {
			copy(s, "titled")
			w.put(mm, w.p.s.EnvStart, uint64(stackAt)+4096)
			w.put(mm, w.p.s.EnvEnd, uint64(stackAt)+4100)
		}, []kernel.Text{"titled"}, ""},
		{"title, environment upside down", "a\x00bcd\x00", "E=123\x00", func(w *taskWorld, mm mem.VA, s []byte) {
			copy(s, "titled")
			w.put(mm, w.p.s.EnvEnd, 1)
		}, []kernel.Text{"titled"}, ""},
		{"title of more than a page", "a\x00", page + page, func(w *taskWorld, mm mem.VA, s []byte) { copy(s, "pp") }, []kernel.Text{kernel.Text(page)}, ""},
		{"upside down", "a\x00", "", func(w *taskWorld, mm mem.VA, _ []byte) { w.put(mm, w.p.s.ArgEnd, 5) }, nil, ""},
		{"long", strings.Repeat("x", 50_000) + "\x00" + "y\x00", "", nil, []kernel.Text{kernel.Text(strings.Repeat("x", 50_000)), "y"}, ""},
		{"beyond what is mapped", "a\x00b\x00", "", func(w *taskWorld, mm mem.VA, s []byte) {
			w.put(mm, w.p.s.ArgEnd, uint64(stackAt)+stackLen+8)
			w.put(mm, w.p.s.EnvStart, 0)
			w.put(mm, w.p.s.EnvEnd, 1)
			s[4096] = 'z'
		}, nil, "cmdline: a page of it is not in memory"},
		{"the whole address space", "a\x00", "", func(w *taskWorld, mm mem.VA, s []byte) {
			w.put(mm, w.p.s.ArgStart, 0x1000)
			w.put(mm, w.p.s.ArgEnd, 1<<47)
		}, nil, "cmdline: a page of it is not in memory"},
		{"wraps", "a\x00", "", func(w *taskWorld, mm mem.VA, s []byte) {
			w.put(mm, w.p.s.ArgStart, ^uint64(4095))
			w.put(mm, w.p.s.ArgEnd, ^uint64(0))
		}, nil, "cmdline: a page of it is not in memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTaskWorld(t)
			task := w.task(1, 1)
			mm, stack := w.program(task)
			w.args(mm, stack, c.args, c.env)
			if c.set != nil {
				c.set(w, mm, stack)
			}
			w.link()
			p := w.one()
			if c.missing != "" {
				if len(p.Missing) != 1 || !strings.HasPrefix(p.Missing[0], c.missing) {
					t.Errorf("missing %q, want %q", p.Missing, c.missing)
				}
				return
			}
			if !slices.Equal(p.Cmdline, c.want) || p.Missing != nil {
				t.Errorf("got %.80q, missing %q; want %.80q", p.Cmdline, p.Missing, c.want)
			}
		})
	}
}

// TestArgsBounded reads an argument area that claims, and has, more than is
// read: one page, mapped all over.
func TestArgsBounded(t *testing.T) {
	w := newTaskWorld(t)
	task := w.task(1, 1)
	mm, stack := w.program(task)
	copy(stack, bytes.Repeat([]byte{'x'}, mem.PageSize))
	w.put(mm, w.p.s.ArgStart, uint64(stackAt))
	w.put(mm, w.p.s.ArgEnd, uint64(stackAt)+stackLen)
	w.put(mm, w.p.s.EnvStart, uint64(stackAt))
	w.put(mm, w.p.s.EnvEnd, 1<<47)
	w.link()
	// Every page of the stack's table leads to the first one.
	space, err := w.v.SpaceOf(taskAt(w, task))
	if err != nil {
		t.Fatal(err)
	}
	m, err := space.Translate(stackAt)
	if err != nil {
		t.Fatal(err)
	}
	var a area
	for i := 0; i < 512; i++ {
		w.alias(space, stackAt+mem.VA(i)*mem.PageSize, m.Entry)
	}
	b, err := a.read(space, stackAt, 1<<46, maxArgs)
	if len(b) != maxArgs || !errors.Is(err, ErrTruncated) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// alias writes the lowest page-table entry of va.
func (w *taskWorld) alias(s *mem.Space, va mem.VA, entry uint64) {
	root := s.Tr.(interface{ Root() mem.PA }).Root()
	table := uint64(root)
	for shift := 39; shift > 12; shift -= 9 {
		table = w.get64(mem.VA(table+uint64(va)>>shift&511*8)) &^ 0xfff & (1<<52 - 1)
	}
	w.put64(mem.VA(table+uint64(va)>>12&511*8), entry)
}

func TestGroupPath(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(w *taskWorld) mem.VA
		want string
		err  error
	}{
		{"root", func(w *taskWorld) mem.VA { return w.kernfs(0, "") }, "/", nil},
		{"deep", func(w *taskWorld) mem.VA { return w.kernfs(w.kernfs(w.kernfs(0, ""), "a b"), "c\n\xff") }, "/a b/c\n\xff", nil},
		{"no node", func(w *taskWorld) mem.VA { return 0 }, "", mem.ErrInconsistent},
		{"own parent", func(w *taskWorld) mem.VA {
			kn := w.kernfs(0, "x")
			w.put(kn, w.p.c.Parent, uint64(kn))
			return kn
		}, "", mem.ErrInconsistent},
		{"ring of nodes without names", func(w *taskWorld) mem.VA {
			a := w.kernfs(0, "")
			b := w.kernfs(a, "")
			w.put(a, w.p.c.Parent, uint64(b))
			return b
		}, "", mem.ErrInconsistent},
		{"name without end", func(w *taskWorld) mem.VA { return w.kernfs(w.kernfs(0, ""), strings.Repeat("x", 300)) }, "", mem.ErrInconsistent},
		{"longest name", func(w *taskWorld) mem.VA { return w.kernfs(w.kernfs(0, ""), strings.Repeat("x", 255)) }, "/" + strings.Repeat("x", 255), nil},
		{"name without memory", func(w *taskWorld) mem.VA {
			kn := w.kernfs(w.kernfs(0, ""), "x")
			w.put(kn, w.p.c.KName, 1<<40)
			return kn
		}, "", mem.ErrNoRAM},
	} {
		w := newTaskWorld(t)
		task := w.task(1, 1)
		w.put(task, w.p.d.CGroups, uint64(w.cgroupSet(c.make(w))))
		w.link()
		got, err := w.v.CGroups(taskAt(w, task))
		if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) || err == nil && string(got[0].Path) != c.want {
			t.Errorf("%s: %v, %v; want %q, %v", c.name, got, err, c.want, c.err)
		}
		if p := w.one(); (p.Missing == nil) != (c.err == nil) || string(p.CGroup) != c.want {
			t.Errorf("%s: %q, missing %q", c.name, p.CGroup, p.Missing)
		}
	}
}

func TestGroupDeleted(t *testing.T) {
	w := newTaskWorld(t)
	task := w.task(1, 1)
	set := w.cgroupSet(w.kernfs(w.kernfs(0, ""), "lxc.payload.web"))
	w.put(mem.VA(w.get64(w.p.c.Default.At(set))), w.p.c.Flags, 0)
	w.put(task, w.p.d.CGroups, uint64(set))
	w.link()
	if p := w.one(); p.CGroup != "/lxc.payload.web (deleted)" || p.Container != "web" {
		t.Errorf("%q %q", p.CGroup, p.Container)
	}
}

// TestSpaceOf asks for address spaces of tasks that have none.
func TestSpaceOf(t *testing.T) {
	w := newTaskWorld(t)
	user, kthread, zombie := w.task(1, 1), w.task(2, 2), w.task(3, 3)
	w.program(user)
	mm, _ := w.program(kthread) // borrowed
	w.put(kthread, w.p.t.Flags, pfKThread)
	w.link()
	if s, err := w.v.SpaceOf(taskAt(w, user)); err != nil || s.Name != "process 1" {
		t.Errorf("%v, %v", s, err)
	}
	for _, at := range []mem.VA{kthread, zombie} {
		if _, err := w.v.SpaceOf(taskAt(w, at)); !errors.Is(err, ErrNoSpace) {
			t.Errorf("%v", err)
		}
		if _, err := w.v.Environ(taskAt(w, at)); !errors.Is(err, ErrNoSpace) {
			t.Errorf("%v", err)
		}
	}
	if all, err := w.v.Processes(); err != nil || all[1].Root != 0 || all[1].Cmdline != nil || mm == 0 {
		t.Errorf("%+v, %v", all, err)
	}
	gone := taskAt(w, user)
	w.put(user, w.p.t.PID, 99)
	if _, err := w.v.SpaceOf(gone); !errors.Is(err, ErrNoProcess) {
		t.Errorf("%v", err)
	}
	if _, err := w.v.Process(gone); !errors.Is(err, ErrNoProcess) {
		t.Errorf("%v", err)
	}
}

// FuzzProcesses reads processes of which the guest makes up every answer.
func FuzzProcesses(f *testing.F) {
	w := newTaskWorld(f)
	task := w.task(1, 1)
	mm, stack := w.program(task)
	w.args(mm, stack, "a\x00", "b\x00")
	w.link()
	rec := &answers{PhysReader: &memtest.Bytes{Data: w.b}}
	viewOf(w.v.Kernel, rec).Threads()
	f.Add(rec.b)
	f.Add(rec.b[:len(rec.b)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &memtest.Script{Answers: b}
		v := viewOf(w.v.Kernel, s)
		all, _ := v.Threads()
		if s.Reads > len(b)+1000 {
			t.Errorf("%d reads of %d bytes", s.Reads, len(b))
		}
		n := 0
		for _, p := range all {
			n += len(p.Exe) + len(p.CGroup)
			for _, a := range p.Cmdline {
				n += len(a)
			}
			if len(p.State) != 1 {
				t.Errorf("state %q", p.State)
			}
		}
		if n > 16*len(b) {
			t.Errorf("%d bytes told out of %d", n, len(b))
		}
		s.Answers = b
		v.Environ(Task{Addr: task, PID: 1, TGID: 1})
		s.Answers = b
		v.CGroups(Task{Addr: task, PID: 1, TGID: 1})
	})
}

// answers records what a memory answers.
type answers struct {
	mem.PhysReader
	b []byte
}

func (a *answers) ReadPhys(p []byte, pa mem.PA) (int, error) {
	n, err := a.PhysReader.ReadPhys(p, pa)
	a.b = append(a.b, p[:n]...)
	return n, err
}
