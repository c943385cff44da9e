package linux

import (
	"errors"
	"fmt"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

// pids lists the pids of tasks.
func pids(ts []Task) (out []int) {
	for _, t := range ts {
		out = append(out, t.PID)
	}
	return out
}

// TestTasksHostile walks task lists that lie.
func TestTasksHostile(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(w *taskWorld, node []mem.VA, head mem.VA)
		want []int
		err  error
	}{
		{"none", func(*taskWorld, []mem.VA, mem.VA) {}, []int{1, 2, 3, 4, 5}, nil},
		{"empty", func(w *taskWorld, n []mem.VA, h mem.VA) { w.list(h) }, nil, nil},
		{"own next", func(w *taskWorld, n []mem.VA, h mem.VA) { w.put64(n[2], uint64(n[2])) }, []int{1, 2, 3}, mem.ErrInconsistent},
		{"own neighbour", func(w *taskWorld, n []mem.VA, h mem.VA) { w.list(n[2]) }, []int{1, 2}, mem.ErrInconsistent},
		{"back to the first", func(w *taskWorld, n []mem.VA, h mem.VA) { w.put64(n[4], uint64(n[0])) }, []int{1, 2, 3, 4, 5}, mem.ErrInconsistent},
		{"a ring without the head", func(w *taskWorld, n []mem.VA, h mem.VA) {
			w.list(n[0], n[1], n[2])
			w.put64(h, uint64(n[0]))
		}, nil, mem.ErrInconsistent},
		{"back and forth", func(w *taskWorld, n []mem.VA, h mem.VA) { w.put64(n[2], uint64(n[1])) }, []int{1, 2, 3}, mem.ErrInconsistent},
		{"null next", func(w *taskWorld, n []mem.VA, h mem.VA) { w.put64(n[2], 0) }, []int{1, 2, 3}, mem.ErrInconsistent},
		{"next without memory", func(w *taskWorld, n []mem.VA, h mem.VA) { w.put64(n[2], 1<<40) }, []int{1, 2, 3}, mem.ErrNoRAM},
		{"other prev", func(w *taskWorld, n []mem.VA, h mem.VA) { w.put64(n[2]+8, uint64(n[0])) }, []int{1, 2}, mem.ErrInconsistent},
		{"poisoned prev", func(w *taskWorld, n []mem.VA, h mem.VA) { w.put64(n[2]+8, poison2) }, []int{1, 2}, mem.ErrInconsistent},
		{"hidden forwards only", func(w *taskWorld, n []mem.VA, h mem.VA) { w.put64(n[1], uint64(n[3])) }, []int{1, 2}, mem.ErrInconsistent},
		{"tail cut", func(w *taskWorld, n []mem.VA, h mem.VA) { w.put64(n[2], uint64(h)) }, []int{1, 2, 3}, mem.ErrInconsistent},
		{"no head", func(w *taskWorld, n []mem.VA, h mem.VA) { w.put64(h, 1<<40) }, nil, mem.ErrNoRAM},
		{"null head", func(w *taskWorld, n []mem.VA, h mem.VA) { w.put64(h, 0) }, nil, mem.ErrInconsistent},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTaskWorld(t)
			var nodes []mem.VA
			for pid := 1; pid <= 5; pid++ {
				nodes = append(nodes, w.p.t.Tasks.At(w.task(pid, pid)))
			}
			w.link()
			c.lie(w, nodes, w.p.t.Tasks.At(w.init))
			got, err := w.v.Tasks()
			if fmt.Sprint(pids(got)) != fmt.Sprint(c.want) || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Errorf("got %v, %v; want %v, %v", pids(got), err, c.want, c.err)
			}
			if _, err := w.v.Processes(); !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Errorf("processes: %v, want %v", err, c.err)
			}
		})
	}
}

func TestTaskName(t *testing.T) {
	w := newTaskWorld(t)
	a, b := w.task(1, 1), w.task(2, 2)
	w.bytes(w.p.t.Comm.At(a), "0123456789abcdefgh") // no NUL
	w.bytes(w.p.t.Comm.At(b), "\x00ghost")
	w.put(b, w.p.t.Flags, pfKThread)
	w.link()
	got, err := w.v.Tasks()
	if err != nil || got[0].Comm() != "0123456789abcdef" || got[1].Comm() != "" || got[0].KThread() || !got[1].KThread() {
		t.Errorf("%q %q %v", got[0].Comm(), got[1].Comm(), err)
	}
}

// TestListChanges changes the list before each read of a walk in turn: every
// node that stays must be given, once, and the walk must not fail.
func TestListChanges(t *testing.T) {
	remove := func(w *taskWorld, node mem.VA) {
		next, prev := mem.VA(w.get64(node)), mem.VA(w.get64(node+8))
		w.put64(next+8, uint64(prev))
		w.put64(prev, uint64(next))
		w.put64(node+8, poison2)
	}
	insert := func(w *taskWorld, node, next mem.VA) {
		prev := mem.VA(w.get64(next + 8))
		w.put64(node, uint64(next))
		w.put64(node+8, uint64(prev))
		w.put64(prev, uint64(node))
		w.put64(next+8, uint64(node))
	}
	for _, c := range []struct {
		name   string
		change func(w *taskWorld, n []mem.VA, h mem.VA)
		stay   []int
	}{
		{"first goes", func(w *taskWorld, n []mem.VA, h mem.VA) { remove(w, n[0]) }, []int{2, 3, 4}},
		{"middle goes", func(w *taskWorld, n []mem.VA, h mem.VA) { remove(w, n[1]) }, []int{1, 3, 4}},
		{"last goes", func(w *taskWorld, n []mem.VA, h mem.VA) { remove(w, n[3]) }, []int{1, 2, 3}},
		{"two go", func(w *taskWorld, n []mem.VA, h mem.VA) { remove(w, n[1]); remove(w, n[2]) }, []int{1, 4}},
		{"all go", func(w *taskWorld, n []mem.VA, h mem.VA) {
			for _, x := range n[:4] {
				remove(w, x)
			}
		}, nil},
		{"one comes", func(w *taskWorld, n []mem.VA, h mem.VA) { insert(w, n[4], h) }, []int{1, 2, 3, 4}},
		{"one comes between", func(w *taskWorld, n []mem.VA, h mem.VA) { insert(w, n[4], n[2]) }, []int{1, 2, 3, 4}},
		{"the last goes, one comes", func(w *taskWorld, n []mem.VA, h mem.VA) { remove(w, n[3]); insert(w, n[4], h) }, []int{1, 2, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for at := 1; ; at++ {
				w := newTaskWorld(t)
				var nodes []mem.VA
				for pid := 1; pid <= 5; pid++ {
					nodes = append(nodes, w.p.t.Tasks.At(w.task(pid, pid)))
				}
				w.tasks = w.tasks[:4]
				w.link()
				done := false
				w.stir(at, func() { c.change(w, nodes, w.p.t.Tasks.At(w.init)); done = true })
				got, err := w.v.Tasks()
				if err != nil {
					t.Fatalf("change before read %d: %v", at, err)
				}
				count := make(map[int]int)
				for _, task := range got {
					if count[task.PID]++; count[task.PID] > 1 {
						t.Fatalf("change before read %d: %v", at, pids(got))
					}
				}
				for _, pid := range c.stay {
					if count[pid] == 0 {
						t.Fatalf("change before read %d: %v lacks %d", at, pids(got), pid)
					}
				}
				if !done {
					break
				}
			}
		})
	}
}

// TestListAlwaysChanges walks a list of which a part moves before every read.
func TestListAlwaysChanges(t *testing.T) {
	w := newTaskWorld(t)
	a, b := w.task(1, 1), w.task(2, 2)
	w.link()
	head := w.p.t.Tasks.At(w.init)
	na, nb := w.p.t.Tasks.At(a), w.p.t.Tasks.At(b)
	r := &stirred{PhysReader: &memtest.Bytes{Data: w.b}}
	flip := false
	r.always = func() {
		if flip = !flip; flip {
			w.list(head, nb, na)
		} else {
			w.list(head, na, nb)
		}
	}
	w.v = viewOf(w.v.Kernel, r)
	got, err := w.v.Tasks()
	if len(got) > 2*maxRepairs || err != nil && !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("%d tasks, %v", len(got), err)
	}
	if r.n > retries*(8*maxRepairs+100) {
		t.Errorf("%d reads", r.n)
	}
}

// FuzzTasks walks lists whose every answer the guest makes up.
func FuzzTasks(f *testing.F) {
	w := newTaskWorld(f)
	f.Add([]byte{})
	f.Add(make([]byte, 512))
	head := w.p.t.Tasks.At(w.init)
	var ring []byte
	for range 64 {
		for _, x := range []uint64{uint64(head), uint64(head)} {
			ring = append(ring, byte(x), byte(x>>8), byte(x>>16), 0, 0, 0, 0, 0)
		}
	}
	f.Add(ring)
	f.Fuzz(func(t *testing.T, answers []byte) {
		s := &memtest.Script{Answers: answers}
		v := viewOf(w.v.Kernel, s)
		tasks, err := v.Tasks()
		if s.Reads > len(answers)/4+retries*3+3 {
			t.Errorf("%d reads of %d bytes", s.Reads, len(answers))
		}
		if err == nil && len(tasks) > len(answers)/8 {
			t.Errorf("%d tasks out of %d bytes", len(tasks), len(answers))
		}
		if len(tasks) > 0 {
			s.Answers = answers
			v.ThreadsOf(tasks[0])
		}
	})
}

// BenchmarkTasks walks 100 tasks in memory that is mapped.
func BenchmarkTasks(b *testing.B) {
	w := newTaskWorld(b)
	for pid := 1; pid <= 100; pid++ {
		w.task(pid, pid)
	}
	w.link()
	v := w.mapped()
	err := mem.Guard(func() (err error) {
		var to []Task
		b.ReportAllocs()
		for b.Loop() {
			if to, err = v.AppendTasks(to[:0]); err != nil {
				return err
			}
		}
		b.ReportMetric(float64(len(to)), "tasks")
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
