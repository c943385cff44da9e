package linux

import (
	"encoding/binary"
	"errors"
	"testing"

	"vmscope/ctype"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

func TestPtRegsAt(t *testing.T) {
	for _, c := range []struct {
		size uint64
		fred bool
		want uint64
	}{
		{16 << 10, false, 16<<10 - 168}, {16 << 10, true, 16<<10 - 184}, {4 << 10, false, 4<<10 - 168},
		{0, false, 0}, {12 << 10, false, 0}, {1 << 20, false, 0}, {1<<64 - 16<<10, false, 0},
	} {
		got, err := ptRegsAt(c.size, c.fred)
		if got != c.want || (err == nil) != (c.want > 0) || err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%d, %t: %d, %v", c.size, c.fred, got, err)
		}
	}
}

// regsWorld is a world with one task in user mode.
func regsWorld(t testing.TB) (*taskWorld, Task, *userRegsPlan) {
	w := newTaskWorld(t)
	p := &userRegsPlan{userRegsLayout: *layoutOf[userRegsLayout](w.world), off: 16<<10 - 8*ptRegs}
	supply(w.v.Kernel, p)
	at := w.task(1, 1)
	stack := w.alloc(16 << 10)
	w.put(at, p.Stack, uint64(stack))
	for i := range ptRegs {
		w.put64(stack+mem.VA(16<<10+8*i-8*ptRegs), uint64(0x1111_0000_0000_0033+i<<32))
	}
	for i, f := range []ctype.Field{p.FSBase, p.GSBase, p.DS, p.ES, p.FS, p.GS} {
		w.put(at, f, uint64(100+i))
	}
	w.link()
	return w, taskAt(w, at), p
}

func TestUserRegs(t *testing.T) {
	w, task, p := regsWorld(t)
	r, err := w.v.UserRegs(task)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range r {
		want := uint64(0x1111_0000_0000_0033 + i<<32)
		switch {
		case i == regCS || i == regSS:
			want = 0x33
		case i >= ptRegs:
			want = uint64(100 + i - ptRegs)
		}
		if v != want {
			t.Errorf("word %d is %#x, want %#x", i, v, want)
		}
	}
	kthread := task
	kthread.Flags |= pfKThread
	if r, err := w.v.UserRegs(kthread); r != (UserRegs{}) || err != nil {
		t.Errorf("thread of the kernel: %#x, %v", r, err)
	}
	stack := w.get64(p.Stack.At(task.Addr))
	cs := stack + 16<<10 - 8*ptRegs + 8*regCS
	binary.LittleEndian.PutUint64(w.b[cs:], 0x10)
	if r, err := w.v.UserRegs(task); r != (UserRegs{}) || err != nil {
		t.Errorf("never in user mode: %#x, %v", r, err)
	}
	w.put(task.Addr, p.Stack, 1<<63)
	if _, err := w.v.UserRegs(task); err == nil {
		t.Error("registers outside of memory")
	}
	w.put(task.Addr, p.Stack, 0)
	if r, err := w.v.UserRegs(task); r != (UserRegs{}) || err != nil {
		t.Errorf("exited: %#x, %v", r, err)
	}
}

func TestAuxVector(t *testing.T) {
	w := newTaskWorld(t)
	at := w.task(1, 1)
	mm, _ := w.program(at)
	w.link()
	task := taskAt(w, at)
	saved := layoutOf[auxLayout](w.world).Saved
	all, err := w.v.AuxVector(task)
	if err != nil || len(all) != 16 {
		t.Errorf("empty: %d bytes, %v", len(all), err)
	}
	for i := range saved.Size() / 8 {
		w.put64(saved.At(mm)+8*mem.VA(i), i+1)
	}
	if all, err = w.v.AuxVector(task); err != nil || uint64(len(all)) != saved.Size() {
		t.Errorf("without an end: %d bytes, %v", len(all), err)
	}
	w.put64(saved.At(mm)+32, 0)
	if all, err = w.v.AuxVector(task); err != nil || len(all) != 48 || binary.LittleEndian.Uint64(all[24:]) != 4 {
		t.Errorf("with an end: % x, %v", all, err)
	}
	w.put(at, w.p.d.MM, 0)
	if _, err := w.v.AuxVector(taskAt(w, at)); !errors.Is(err, ErrNoSpace) {
		t.Errorf("exited: %v", err)
	}
}

// FuzzCoreNotes gives what a core tells of a process any memory.
func FuzzCoreNotes(f *testing.F) {
	w, task, _ := regsWorld(f)
	f.Add(w.answers(func(v *View) { v.UserRegs(task) }))
	f.Add(w.answers(func(v *View) { v.AuxVector(task) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &memtest.Script{Answers: b}
		v := viewOf(w.v.Kernel, s)
		if r, err := v.UserRegs(task); r != (UserRegs{}) && (err != nil || r[regCS]&3 != 3) {
			t.Errorf("%#x, %v", r, err)
		}
		s.Answers = b
		if a, err := v.AuxVector(task); len(a) > maxAux || len(a)%16 != 0 || a != nil && err != nil {
			t.Errorf("%d bytes, %v", len(a), err)
		}
	})
}
