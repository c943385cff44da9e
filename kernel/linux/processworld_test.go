package linux

import (
	"encoding/binary"
	"testing"

	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// taskWorld is a world with tasks in it.
type taskWorld struct {
	*fsWorld
	p     *processPlan
	init  mem.VA // the idle task
	tasks []mem.VA
	set   mem.VA // the css_set of all tasks
}

func newTaskWorld(t testing.TB) *taskWorld {
	w := &taskWorld{fsWorld: newFSWorld(t)}
	w.v.Mode = x86.Level4
	plan, err := newProcessPlan(w.v.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	w.p = plan
	w.set = w.cgroupSet(w.kernfs(0, ""))
	w.init = w.task(0, 0)
	w.put(w.init, w.p.d.Parent, uint64(w.init))
	w.put(w.init, w.p.t.Flags, pfKThread)
	w.tasks = nil
	w.link()
	supply(w.v.Kernel, &taskPlan{*w.p.t, w.init})
	return w
}

// task makes a task that sleeps, with credentials and no address space. Its
// parent is the idle task.
func (w *taskWorld) task(pid, tgid int) mem.VA {
	at := w.alloc(6 << 10)
	d, t := w.p.d, w.p.t
	w.put(at, t.PID, uint64(pid))
	w.put(at, t.TGID, uint64(tgid))
	w.bytes(t.Comm.At(at), "task\x00")
	w.put(at, d.State, 1)
	w.put(at, d.Start, uint64(pid)*1e9)
	w.put(at, d.Parent, uint64(w.init))
	w.put(at, d.CGroups, uint64(w.set))
	cred := w.alloc(128)
	w.put(at, d.Cred, uint64(cred))
	w.put(cred, d.UID, uint64(1000+pid))
	w.put(cred, d.GID, uint64(2000+pid))
	w.put(cred, d.EUID, uint64(3000+pid))
	w.put(cred, d.EGID, uint64(4000+pid))
	sig := w.alloc(1 << 10)
	w.put(at, t.Signal, uint64(sig))
	w.put(sig, d.NThreads, 1)
	w.list(t.Threads.At(sig), t.Node.At(at))
	w.tasks = append(w.tasks, at)
	return at
}

// link puts the tasks made so far into the list of all.
func (w *taskWorld) link() {
	var nodes []mem.VA
	for _, at := range w.tasks {
		nodes = append(nodes, w.p.t.Tasks.At(at))
	}
	w.list(w.p.t.Tasks.At(w.init), nodes...)
}

// kernfs makes a kernfs node.
func (w *taskWorld) kernfs(parent mem.VA, name string) mem.VA {
	kn, text := w.alloc(256), w.alloc(uint64(len(name))+1)
	w.bytes(text, name)
	w.put(kn, w.p.c.Parent, uint64(parent))
	w.put(kn, w.p.c.KName, uint64(text))
	w.put(kn, w.p.c.KID, uint64(kn))
	return kn
}

// cgroupSet makes a css_set in the default hierarchy only.
func (w *taskWorld) cgroupSet(kn mem.VA) mem.VA {
	c := w.p.c
	set, cgrp, link := w.alloc(1<<10), w.alloc(4<<10), w.alloc(64)
	w.put(cgrp, c.KN, uint64(kn))
	w.put(cgrp, c.Flags, cssOnline)
	w.put(set, c.Default, uint64(cgrp))
	w.put(link, c.LinkTo, uint64(cgrp))
	w.list(c.Links.At(set), c.LinkNode.At(link))
	return set
}

// Where a program of the world has its stack; the page above it is not mapped.
const (
	stackAt  = mem.VA(0x7ffc00000000)
	stackLen = 64 << 10
)

// program gives a task an address space and returns the mm_struct and the bytes
// of its stack.
func (w *taskWorld) program(task mem.VA) (mm mem.VA, stack []byte) {
	s := w.p.s
	mm = w.alloc(2 << 10)
	w.next = (w.next + mem.PageSize - 1) &^ (mem.PageSize - 1)
	at := w.next
	w.next += stackLen
	tb := memtest.NewTables(w.b, 0, uint64(w.next), 4)
	w.next += 16 * mem.PageSize
	tb.Map(stackAt, mem.PA(at), stackLen, 1, memtest.U|memtest.W)
	w.put(mm, s.PGD, uint64(tb.Root))
	w.put(task, w.p.d.MM, uint64(mm))
	return mm, w.b[at : at+stackLen]
}

// args writes argument and environment areas one behind the other and their
// bounds.
func (w *taskWorld) args(mm mem.VA, stack []byte, args, env string) {
	copy(stack, args+env)
	s := w.p.s
	w.put(mm, s.ArgStart, uint64(stackAt))
	w.put(mm, s.ArgEnd, uint64(stackAt)+uint64(len(args)))
	w.put(mm, s.EnvStart, uint64(stackAt)+uint64(len(args)))
	w.put(mm, s.EnvEnd, uint64(stackAt)+uint64(len(args)+len(env)))
}

func (w *taskWorld) get64(at mem.VA) uint64 { return binary.LittleEndian.Uint64(w.b[at:]) }

// mapped is the world as memory that is mapped, behind page tables with large
// pages as the kernel's own memory is.
func (w *taskWorld) mapped() *View {
	w.t.Helper()
	b := make([]byte, 2<<20+64<<10)
	copy(b, w.b)
	tb := memtest.NewTables(b, 0, 2<<20, 4)
	tb.Map(0, 0, 2<<20, 2, memtest.W)
	ram, err := mem.NewRAM(mem.Segment{Data: b})
	if err != nil {
		w.t.Fatal(err)
	}
	v := viewOf(w.v.Kernel, ram)
	v.Mem = mem.NewSpace("kernel", ram, x86.NewPaging(ram, tb.Root, x86.Level4))
	return v
}

// stirred is a memory in which something happens before its n-th read.
type stirred struct {
	mem.PhysReader
	n  int
	at map[int]func()
	// always happens before each read, if set.
	always func()
}

func (r *stirred) ReadPhys(p []byte, pa mem.PA) (int, error) {
	r.n++
	if f := r.at[r.n]; f != nil {
		f()
	}
	if r.always != nil {
		r.always()
	}
	return r.PhysReader.ReadPhys(p, pa)
}

// stir makes f happen before the n-th read of the world's memory.
func (w *taskWorld) stir(n int, f func()) {
	w.v = viewOf(w.v.Kernel, &stirred{PhysReader: &memtest.Bytes{Data: w.b}, at: map[int]func(){n: f}})
}
