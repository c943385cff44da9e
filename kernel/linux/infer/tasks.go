package infer

import (
	"bytes"
	"fmt"
	"slices"

	"vmscope/mem"
)

// Bounds of what is read of tasks.
const (
	maxTask   = 16 << 10 // bytes of a task_struct; what is sought lies in the first 4 KiB or so
	minTask   = 1 << 10
	maxTasks  = 1 << 20 // in a list
	maxSample = 512     // of which the members are compared
	commLen   = 16      // TASK_COMM_LEN, include/linux/sched.h
)

// tasks are copies of the kernel's processes and what was found out of them.
type tasks struct {
	// all has the idle task, then leaders of thread groups in the order of the
	// kernel's list, which is that of their creation: init (pid 1), kthreadd, …
	all   []object
	at    map[mem.VA]bool // of all leaders, copied or not, and the idle task
	reach int             // bytes that are known of each

	list, comm, pid, tgid int
	parent                int // real_parent
	signal, head, node    int // head is in signal_struct
	mm                    int
	flags                 int // -1: not found
}

// taskMembers finds the members of task_struct and what hangs from it. An error
// says that processes cannot be listed.
func (l *look) taskMembers(b *book) error {
	t, err := l.tasks()
	for _, step := range []func(*tasks) error{l.threads, l.space, l.flags} {
		if err == nil {
			err = step(t)
		}
	}
	if err != nil {
		return fmt.Errorf("task_struct: %w", err)
	}
	b.add("task_struct", "tasks", t.list, b.listHead)
	b.add("task_struct", "pid", t.pid, int32Type)
	b.add("task_struct", "tgid", t.tgid, int32Type)
	b.add("task_struct", "comm", t.comm, char(commLen))
	b.add("task_struct", "flags", t.flags, uint32Type)
	b.add("task_struct", "real_parent", t.parent, pointerType)
	b.add("task_struct", "signal", t.signal, pointerType)
	b.add("task_struct", "thread_node", t.node, b.listHead)
	b.add("signal_struct", "thread_head", t.head, b.listHead)
	b.add("task_struct", "mm", t.mm, pointerType)
	l.start(t, b)
	l.state(t, b)
	l.cred(t, b)
	l.fullNames(t, b)
	return nil
}

// tasks finds the list of all processes: the ring through init_task in which all
// nodes have a name at the distance at which init_task has the idle task's, and
// numbers that can be pids, and who has started whom.
func (l *look) tasks() (*tasks, error) {
	if at, err := l.k.Symbol("init_task"); err == nil {
		return l.tasksAt(at)
	}
	var found []*tasks
	why := unproved("there is no idle task")
	for _, at := range l.image().idle {
		t, err := l.tasksAt(at)
		if err != nil {
			why = err
			continue
		}
		l.found["init_task"] = at
		found = append(found, t)
	}
	if len(found) == 0 {
		return nil, why
	}
	return only("idle task", found)
}

// tasksAt is tasks if the idle task is at an address.
func (l *look) tasksAt(at mem.VA) (*tasks, error) {
	init, err := l.object(at, maxTask, minTask)
	if err != nil {
		return nil, err
	}
	var found []*tasks
	why := unproved("init_task hangs in no list of tasks")
	for _, comm := range idleNames(init.b) {
		for off := 0; off+2*l.w <= len(init.b); off += l.w {
			next, self := init.word(off), init.at+mem.VA(off)
			if !l.pointer(next) || !l.pointer(init.word(off+l.w)) || mem.VA(next) == self {
				continue
			}
			if back, err := l.word(mem.VA(next) + mem.VA(l.w)); err != nil || mem.VA(back) != self {
				continue
			}
			t := &tasks{list: off, comm: comm, all: []object{init}}
			if err := l.sample(t); err != nil {
				continue
			}
			err := t.numbers()
			if err == nil {
				err = l.family(t)
			}
			if err != nil {
				why = err
				continue
			}
			found = append(found, t)
		}
	}
	if len(found) == 0 {
		return nil, why
	}
	return only("list of all tasks", found)
}

// idleNames lists where the idle task's name stands (INIT_TASK_COMM, and init_idle
// of kernel/sched/core.c).
func idleNames(b []byte) (at []int) {
	for _, name := range []string{"swapper/0\x00", "swapper\x00"} {
		for from := 0; ; {
			i := bytes.Index(b[from:], []byte(name))
			if i < 0 {
				break
			}
			at = append(at, from+i)
			from += i + 1
		}
	}
	return at
}

// sample copies the tasks of a list, or is an error if they are none.
func (l *look) sample(t *tasks) error {
	init := t.all[0]
	nodes, err := l.ring(init.at+mem.VA(t.list), maxTasks)
	if err != nil {
		return err
	}
	if len(nodes) < 3 {
		return unproved("%d tasks", len(nodes))
	}
	kthreadd := false
	t.at = map[mem.VA]bool{init.at: true}
	for _, n := range nodes {
		task := n - mem.VA(t.list)
		name, err := l.object(task+mem.VA(t.comm), commLen, commLen)
		if err != nil {
			return err
		}
		end := bytes.IndexByte(name.b, 0)
		if end < 0 {
			return unproved("a task without a name")
		}
		kthreadd = kthreadd || string(name.b[:end]) == "kthreadd"
		t.at[task] = true
	}
	if !kthreadd || len(t.at) != len(nodes)+1 {
		return unproved("a list without kthreadd")
	}
	// They lie side by side in slabs: behind one is another.
	t.reach = len(init.b)
	sorted := slices.Sorted(slices.Values(nodes))
	for i := range sorted[1:] {
		t.reach = int(min(mem.VA(t.reach), sorted[i+1]-sorted[i]))
	}
	if t.reach < minTask {
		return unproved("tasks of %d bytes", t.reach)
	}
	// The first ones, which are init and kthreadd, and others evenly.
	step := 1 + len(nodes)/maxSample
	for i, n := range nodes {
		if i > 2 && i%step != 0 {
			continue
		}
		o, err := l.object(n-mem.VA(t.list), t.reach, minTask)
		if err != nil {
			return err
		}
		t.reach = min(t.reach, len(o.b))
		t.all = append(t.all, o)
	}
	return nil
}

// columns lists the offsets, multiples of step, that fit, as far as width bytes are
// known there.
func (t *tasks) columns(step, width int, fits func(off int) bool) []int {
	var out []int
	for off := 0; off+width <= t.reach; off += step {
		if fits(off) {
			out = append(out, off)
		}
	}
	return out
}

// every reports whether ok holds of all tasks.
func (t *tasks) every(ok func(o *object) bool) bool {
	for i := range t.all {
		if !ok(&t.all[i]) {
			return false
		}
	}
	return true
}

// count counts the tasks of which is holds.
func (t *tasks) count(is func(o *object) bool) (n int) {
	for i := range t.all {
		if is(&t.all[i]) {
			n++
		}
	}
	return n
}

// idle reports whether o is the idle task.
func (t *tasks) idle(o *object) bool { return o.at == t.all[0].at }

// own reports whether what is at an offset leads to a fixed place in each task, as an
// empty list does, and group_leader.
func (t *tasks) own(off int) bool {
	to := func(i int) mem.VA { return t.all[i].ptr(off) - t.all[i].at }
	return to(0) == to(1) && to(0) == to(2)
}

// name is a task's comm.
func (t *tasks) name(o *object) string {
	if t.comm+commLen > len(o.b) {
		return ""
	}
	b := o.b[t.comm:][:commLen]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// pidMax is more than any pid (PID_MAX_LIMIT).
const pidMax = 4 << 20

// numbers finds pid and tgid: the only two columns side by side of small numbers
// that are unique, 0 of the idle task, 1 of the first task and 2 of kthreadd. They
// are the same of leaders; threads may tell which is which. (7.2 has another such
// column, alone.)
func (t *tasks) numbers() error {
	cols := t.columns(4, 4, func(off int) bool {
		seen := make(map[uint32]bool)
		return t.all[1].u32(off) == 1 && t.all[2].u32(off) == 2 && t.name(&t.all[2]) == "kthreadd" && t.every(func(o *object) bool {
			v := o.u32(off)
			again := seen[v]
			seen[v] = true
			return !again && v < pidMax && (v == 0) == t.idle(o)
		})
	})
	var pairs []int
	for _, off := range cols {
		if slices.Contains(cols, off+4) && t.every(func(o *object) bool { return o.u32(off) == o.u32(off+4) }) {
			pairs = append(pairs, off)
		}
	}
	var err error
	t.pid, err = only("pid and tgid", pairs)
	t.tgid = t.pid + 4
	return err
}
