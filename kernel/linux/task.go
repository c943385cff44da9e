package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// taskLayout is what is read of struct task_struct (include/linux/sched.h).
type taskLayout struct {
	Tasks   ctype.Field `c:"task_struct.tasks"`
	PID     ctype.Field `c:"task_struct.pid"`
	TGID    ctype.Field `c:"task_struct.tgid"`
	Comm    ctype.Field `c:"task_struct.comm"`
	Flags   ctype.Field `c:"task_struct.flags"`
	Signal  ctype.Field `c:"task_struct.signal"`
	Exit    ctype.Field `c:"task_struct.exit_state,optional"` // not known where types are inferred
	Node    ctype.Field `c:"task_struct.thread_node"`
	Threads ctype.Field `c:"signal_struct.thread_head"`
	Size    uint64      `c:"sizeof(task_struct)"`
}

// The flags of task_struct.flags that tell kinds of tasks
// (include/linux/sched.h).
const (
	pfKThread  = 0x00200000
	pfIOWorker = 0x00000010
	pfExiting  = 0x00000004
)

// Task is what one read of a task_struct tells: enough to know whose it is. The
// rest of a process is read by Process.
type Task struct {
	Addr      mem.VA // of the task_struct
	PID, TGID int    // of the initial PID namespace
	Flags     uint32
	comm      [16]byte
}

// Comm is the task's name, at most 15 bytes.
func (t *Task) Comm() kernel.Text { return kernel.Text(cstr(t.comm[:])) }

// KThread reports whether the task is a thread of the kernel.
func (t *Task) KThread() bool { return t.Flags&pfKThread != 0 }

// cstr cuts b at its first NUL.
func cstr(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// Tasks lists the processes (thread-group leaders) that the kernel's task list
// holds, in its order, without the idle task. A list that changed while it was
// walked is walked anew; one that never holds together is an ErrInconsistent
// beside what was read of it.
func (v *View) Tasks() ([]Task, error) { return v.AppendTasks(nil) }

// AppendTasks is Tasks into a slice that the caller keeps between calls.
func (v *View) AppendTasks(to []Task) ([]Task, error) {
	p, err := derived(v.Kernel, newTaskPlan)
	if err != nil {
		return to, err
	}
	base := len(to)
	err = v.settle(func() error {
		to = to[:base]
		near := v.Mem.Near()
		return walk(&near, p.Tasks.At(p.init), func(node mem.VA) error {
			if v.crowded(len(to)-base, p.Size) {
				return errBroken("tasks", node, fmt.Sprintf("RAM has no room for %d", len(to)-base))
			}
			to = append(to, Task{})
			return to[len(to)-1].read(&near, &p.taskLayout, node-mem.VA(p.Tasks.Offset))
		})
	})
	return to, err
}

// taskPlan is what listing tasks takes in one kernel.
type taskPlan struct {
	taskLayout
	init mem.VA // the idle task, which heads the list
}

// crowded reports whether RAM has no room for n objects of a size, which cannot
// share memory: a bound of lists of them. It is asked for long lists only.
func (v *View) crowded(n int, size uint64) bool {
	const few = 1 << 12
	r, ok := v.Phys.(mem.Ranger)
	if !ok || n < few || n%few != 0 {
		return false
	}
	ram := uint64(0)
	for _, x := range r.Ranges() {
		ram += x.Size
	}
	return ram > 0 && uint64(n) > ram/max(size, 1)
}

func newTaskPlan(k *Kernel) (*taskPlan, error) {
	l, err := known[taskLayout](k)
	if err != nil {
		return nil, err
	}
	init, err := k.variable("init_task")
	return &taskPlan{*l, init}, err
}

// ThreadsOf lists the threads of the process that t leads, t among them.
func (v *View) ThreadsOf(t Task) ([]Task, error) {
	l, err := known[taskLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	var out []Task
	err = v.settle(func() error {
		out = out[:0]
		near := v.Mem.Near()
		sig, err := near.Pointer(l.Signal.At(t.Addr))
		if err != nil {
			return err
		}
		if sig == 0 {
			return errBroken("task", t.Addr, "its signal_struct is gone")
		}
		mine := false
		err = walk(&near, l.Threads.At(sig), func(node mem.VA) error {
			if v.crowded(len(out), l.Size) {
				return errBroken("threads", node, fmt.Sprintf("RAM has no room for %d", len(out)))
			}
			out = append(out, Task{})
			th := &out[len(out)-1]
			err := th.read(&near, l, node-mem.VA(l.Node.Offset))
			mine = mine || th.Addr == t.Addr && th.PID == t.PID
			return err
		})
		if err == nil && !mine {
			// It has ended, and others have made something else of its memory.
			return errBroken("task", t.Addr, "it is not among the threads of its process")
		}
		return err
	})
	return out, err
}

// read fills t word by word: no buffer, so no allocation a task.
func (t *Task) read(near *mem.Near, l *taskLayout, addr mem.VA) error {
	t.Addr = addr
	ids, err := near.Uint64(l.PID.At(addr))
	if err != nil {
		return err
	}
	t.PID, t.TGID = int(int32(ids)), int(int32(ids>>32))
	if l.TGID.Offset != l.PID.Offset+4 {
		tgid, err := near.Uint32(l.TGID.At(addr))
		if err != nil {
			return err
		}
		t.TGID = int(int32(tgid))
	}
	if t.Flags, err = near.Uint32(l.Flags.At(addr)); err != nil {
		return err
	}
	for i := 0; i < len(t.comm); i += 8 {
		w, err := near.Uint64(l.Comm.At(addr) + mem.VA(i))
		if err != nil {
			return err
		}
		binary.LittleEndian.PutUint64(t.comm[i:], w)
	}
	return nil
}

// ErrNoProcess says that no process has the id asked for.
var ErrNoProcess = errors.New("no such process")

// TaskByPID finds the process, or thread, with the given id of the initial PID
// namespace.
func (v *View) TaskByPID(pid int) (Task, error) {
	all, err := v.Tasks()
	for _, t := range all {
		if t.PID == pid {
			return t, nil
		}
	}
	for _, t := range all {
		threads, terr := v.ThreadsOf(t)
		for _, th := range threads {
			if th.PID == pid {
				return th, nil
			}
		}
		if terr != nil && !v.gone(&t) {
			err = errors.Join(err, terr)
		}
	}
	if err != nil {
		return Task{}, fmt.Errorf("find pid %d: %w", pid, err)
	}
	return Task{}, fmt.Errorf("pid %d: %w", pid, ErrNoProcess)
}
