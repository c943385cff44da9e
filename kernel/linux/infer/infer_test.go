package infer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

func cut(name string) (typ, member string) {
	typ, member, _ = strings.Cut(name, ".")
	return typ, member
}

// TestRun finds all members, wherever they lie.
func TestRun(t *testing.T) {
	for seed := range uint64(40) {
		w := newWorld(seed, 4+int(seed/2%2)*4)
		if seed%8 >= 4 {
			w.bare()
		}
		r, err := Run(t.Context(), w.kernel())
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if len(r.Variables) != 0 != (w.variables != nil) {
			t.Errorf("seed %d: variables %v", seed, r.Variables)
		}
		if wrong := w.wrong(t, r); len(wrong) > 0 || len(r.Unproved) > 0 {
			t.Errorf("seed %d: wrong: %v; unproved: %v", seed, wrong, r.Unproved)
		}
		for _, name := range []string{"task_struct.exit_state", "cred.egid", "kthread.full_name", "signal_struct.thread_head", "module.refcnt"} {
			if !slices.Contains(r.Members, name) {
				t.Errorf("seed %d: no %s: %v", seed, name, r.Members)
			}
		}
		if r.OffsReal == 0 {
			t.Errorf("seed %d: no clocks", seed)
		}
	}
}

// TestUnproved takes away what proves a member, or puts something beside it that is
// like it: the member must be left out, and others must not be wrong.
func TestUnproved(t *testing.T) {
	column := func(w *world, name string, v func(i int) uint64) {
		for i, o := range w.tasks {
			w.put(w.of(o, name), v(i))
		}
	}
	copied := func(w *world, name string, size int) {
		to := mem.VA(taskSize - 64)
		for _, o := range w.tasks {
			copy(w.b[o-w.base+to:][:size], w.b[w.of(o, name)-w.base:][:size])
		}
	}
	for _, c := range []struct {
		name string
		lost string // a member; "tasks" or "modules": all of them
		do   func(w *world)
	}{
		{"no kthreadd", "tasks", func(w *world) { w.text(w.of(w.tasks[2], "comm"), "other") }},
		{"idle task without a name", "tasks", func(w *world) { w.text(w.of(w.tasks[0], "comm"), "idle") }},
		{"other pids like it", "tasks", func(w *world) { copied(w, "pid", 8) }},
		{"a pid twice", "tasks", func(w *world) { w.put32(w.of(w.tasks[5], "pid"), 4) }},
		{"list broken", "tasks", func(w *world) { w.put(w.of(w.tasks[5], "tasks")+w.size(), uint64(w.base)) }},
		{"list that loops", "tasks", func(w *world) { w.put(w.of(w.tasks[5], "tasks"), uint64(w.of(w.tasks[3], "tasks"))) }},
		{"no children", "tasks", func(w *world) { w.hang(w.of(w.tasks[2], "children")) }},
		{"two parents", "tasks", func(w *world) { w.function("__x64_sys_getppid", w.at["task_struct.parent"]) }},
		{"thread of another process", "tasks", func(w *world) { w.put32(w.of(w.tasks[19], "tgid"), 77) }},
		{"no lists of threads", "tasks", func(w *world) { column(w, "thread_node", func(int) uint64 { return 0 }) }},
		{"no flag of kernel threads", "tasks", func(w *world) { w.put32(w.of(w.tasks[4], "flags"), 0x8040) }},
		{"other address spaces like it", "tasks", func(w *world) { copied(w, "mm", 16) }},
		{"no system call", "cred.uid", func(w *world) { delete(w.names, "__x64_sys_geteuid") }},
		{"system call that reads the other", "task_struct.real_cred", func(w *world) {
			w.function("__x64_sys_getuid", w.at["task_struct.real_cred"], w.at["cred.uid"])
		}},
		{"ids apart", "cred.gid", func(w *world) { w.function("__x64_sys_getgid", w.at["task_struct.cred"], 200) }},
		{"credentials that no system call reads", "cred.uid", func(w *world) {
			copied(w, "real_cred", 16)
			for _, o := range w.tasks {
				w.put(w.of(o, "real_cred"), 0)
			}
		}},
		{"no clock", "task_struct.start_boottime", func(w *world) {
			for _, o := range w.tasks {
				w.put64(w.of(o, "start_boottime"), 0)
			}
		}},
		{"both clocks the same", "task_struct.start_boottime", func(w *world) {
			for _, o := range w.tasks {
				w.put(w.of(o, "start_boottime"), w.get(w.of(o, "start_time")))
				w.put32(w.of(o, "start_boottime")+4, uint32(w.get(w.of(o, "start_time")+4)))
			}
		}},
		{"a start out of turn", "task_struct.start_boottime", func(w *world) { w.put64(w.of(w.tasks[4], "start_time"), 3e9) }},
		{"nobody idle", "task_struct.__state", func(w *world) {
			for _, o := range w.tasks[1:20] {
				w.put32(w.of(o, "__state"), 1)
			}
		}},
		{"another state", "task_struct.__state", func(w *world) { copied(w, "__state", 4) }},
		{"nobody dead", "task_struct.exit_state", func(w *world) {
			o := w.tasks[len(w.tasks)-1]
			w.put32(w.of(o, "__state"), 1)
			w.put32(w.of(o, "exit_state"), 0)
		}},
		{"no long name", "kthread.full_name", func(w *world) { w.text(w.of(w.tasks[10], "comm"), "short\x00\x00\x00\x00\x00\x00\x00\x00\x00") }},
		{"no module", "modules", func(w *world) { w.hang(w.names["modules"]) }},
		{"module of a strange state", "modules", func(w *world) { w.put32(w.mods[3], 9) }},
		{"module of another name in sysfs", "modules", func(w *world) { w.text(w.mods[2]+3*w.size(), "other") }},
		{"module not mapped", "modules", func(w *world) { w.put(w.layout(2), uint64(w.base)+uint64(len(w.b))) }},
		{"modules in one place", "modules", func(w *world) { w.put(w.layout(2), w.get(w.layout(1))) }},
		{"module larger than it is", "modules", func(w *world) { w.put32(w.layout(0)+w.size(), 64*page) }},
		{"module without code", "modules", func(w *world) { delete(w.exec, mem.VA(w.get(w.layout(4)))) }},
		{"no use", "module.refcnt", func(w *world) {
			w.hang(w.mods[0] + mem.VA(w.at["module.source_list"]))
			w.hang(w.mods[1] + mem.VA(w.at["module.source_list"]) + 2*w.size())
		}},
		{"too few users", "module.refcnt", func(w *world) { w.put32(w.mods[0]+mem.VA(w.at["module.refcnt"]), 1) }},
	} {
		for seed := range uint64(8) {
			t.Run(fmt.Sprint(c.name, " ", seed), func(t *testing.T) {
				w := newWorld(seed, 4+int(seed/2%2)*4)
				c.do(w)
				if seed%4 == 3 {
					w.bare()
				}
				r, err := Run(t.Context(), w.kernel())
				if err != nil {
					t.Fatal(err)
				}
				if wrong := w.wrong(t, r); len(wrong) > 0 {
					t.Errorf("wrong: %v", wrong)
				}
				for _, name := range r.Members {
					if typ, _ := cut(name); name == c.lost || c.lost == "tasks" && typ == "task_struct" || c.lost == "modules" && typ == "module" {
						t.Errorf("%s was found", name)
					}
				}
				if !errors.Is(errors.Join(r.Unproved...), ErrUnproved) && c.lost != "tasks" && c.lost != "modules" {
					t.Errorf("not said: %v", r.Unproved)
				}
			})
		}
	}
}

// layout is where module i says where it lies.
func (w *world) layout(i int) mem.VA {
	return w.mods[i] + mem.VA(max(w.at["module.mem"], w.at["module.core_layout"]))
}

// TestNothing has nothing to find.
func TestNothing(t *testing.T) {
	w := newWorld(1, 8)
	w.bare()
	w.text(w.of(w.tasks[0], "comm"), "idle")
	w.hang(w.variables["modules"])
	if r, err := Run(t.Context(), w.kernel()); r != nil || err == nil {
		t.Errorf("%v, %v", r, err)
	}
}

// TestDamaged damages words of tasks and modules: what is found nevertheless is
// where it was.
func TestDamaged(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for seed := range uint64(100) {
		w := newWorld(seed, 4+int(seed/2%2)*4)
		for range 1 + r.IntN(40) {
			objects, size := w.tasks, taskSize
			if r.IntN(4) == 0 {
				objects, size = w.mods, 1024
			}
			at := objects[r.IntN(len(objects))] + mem.VA(r.IntN(size/8)*8)
			from := objects[r.IntN(len(objects))] + mem.VA(r.IntN(size/8)*8)
			w.put(at, w.get(from))
		}
		res, err := Run(t.Context(), w.kernel())
		if err != nil {
			continue
		}
		if wrong := w.wrong(t, res); len(wrong) > 0 {
			t.Errorf("seed %d: %v", seed, wrong)
		}
	}
}

// FuzzRun has the guest answer whatever it likes.
func FuzzRun(f *testing.F) {
	for seed := range uint64(2) {
		w := newWorld(seed, 8)
		tr := &transcript{PhysReader: &memtest.Bytes{Data: w.b}}
		k := w.kernel()
		k.Mem = mem.NewSpace("world", tr, w.space())
		if _, err := Run(f.Context(), k); err != nil {
			f.Fatal(err)
		}
		f.Add(tr.answers)
	}
	f.Fuzz(func(t *testing.T, answers []byte) {
		script := &memtest.Script{Answers: answers}
		at := baseOf(8)
		l := newLook(t.Context(), Kernel{
			Mem:    mem.NewSpace("hostile", script, space{8, 1 << 40, nil}),
			Symbol: func(string) (mem.VA, error) { at += 1 << 20; return at, nil },
			Arch:   "x86_64",
		})
		r, err := l.run()
		if (r == nil) != (err != nil) {
			t.Errorf("%v, %v", r, err)
		}
		if script.Reads > 4*len(answers)+1000 {
			t.Errorf("%d reads of %d bytes", script.Reads, len(answers))
		}
	})
}

// transcript writes down what a memory answers.
type transcript struct {
	mem.PhysReader
	answers []byte
}

func (tr *transcript) ReadPhys(p []byte, pa mem.PA) (int, error) {
	n, err := tr.PhysReader.ReadPhys(p, pa)
	tr.answers = append(tr.answers, p[:n]...)
	return n, err
}

// TestEndless reads a memory that goes on for ever: each node of a list leads to
// the next.
func TestEndless(t *testing.T) {
	w := newWorld(1, 8)
	k := w.kernel()
	k.Mem = mem.NewSpace("endless", endless{}, space{8, 1 << 46, nil})
	w.names["init_task"] = w.base + 1<<20
	r, err := Run(t.Context(), k)
	if err == nil {
		t.Errorf("%v", r.Members)
	}
}

// endless is memory in which each word leads 64 bytes on, and each second one
// back. The idle task's name stands in the first bytes of each MiB.
type endless struct{}

func (endless) ReadPhys(p []byte, pa mem.PA) (int, error) {
	for i := range p {
		at := uint64(pa) + uint64(i)
		v := uint64(baseOf(8)) + at&^15 + 64
		if at&8 != 0 {
			v = uint64(baseOf(8)) + at&^15 - 64
		}
		p[i] = byte(v >> (at & 7 * 8))
		if name := "swapper/0\x00"; at%(1<<20) < uint64(len(name)) {
			p[i] = name[at%(1<<20)]
		}
	}
	return len(p), nil
}

func TestLoads(t *testing.T) {
	// Of a 6.1: endbr64; call __fentry__; mov %gs:0x1fac0,%rax; mov 0xb98(%rax),%rax;
	// mov 0x8(%rax),%esi; mov 0x88(%rax),%rdi; call from_kuid_munged; mov %eax,%eax; jmp __x86_return_thunk
	x86 := []byte{
		0xf3, 0x0f, 0x1e, 0xfa, 0xe8, 0, 0, 0, 0, 0x65, 0x48, 0x8b, 0x04, 0x25, 0xc0, 0xfa, 0x01, 0x00, 0x48, 0x8b, 0x80, 0x98, 0x0b, 0, 0,
		0x8b, 0x70, 0x08, 0x48, 0x8b, 0xb8, 0x88, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0x89, 0xc0, 0xe9, 0, 0, 0, 0, 0x48, 0x8b, 0x80, 0x00, 0x01, 0, 0,
	}
	if got := fmt.Sprint(loadsX86(x86, 64)); got != "map[8:true 136:true 2968:true]" {
		t.Error(got)
	}
	// ldr x0, [x0, #1944]; ldr w1, [x0, #8]; ldp x2, x3, [x0, #16]; ldp w4, w5, [x0, #40]; ret; ldr x0, [x0, #64]
	arm := []byte{0, 0xcc, 0x43, 0xf9, 0x01, 0x08, 0x40, 0xb9, 0x02, 0x0c, 0x41, 0xa9, 0x04, 0x14, 0x45, 0x29, 0xc0, 0x03, 0x5f, 0xd6, 0, 0x20, 0x40, 0xf9}
	if got := fmt.Sprint(loadsARM64(arm)); got != "map[8:true 16:true 24:true 40:true 44:true 1944:true]" {
		t.Error(got)
	}
}

// FuzzLoads decodes any code.
func FuzzLoads(f *testing.F) {
	f.Add([]byte{0x48, 0x8b, 0x88, 1, 2, 0, 0, 0xc3})
	f.Add([]byte{0, 0xcc, 0x43, 0xf9})
	f.Fuzz(func(t *testing.T, code []byte) {
		if n := len(loadsX86(code, 64)) + len(loadsARM64(code)); n > 3*len(code) {
			t.Errorf("%d offsets in %d bytes", n, len(code))
		}
	})
}
