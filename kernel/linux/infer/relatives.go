package infer

import (
	"vmscope/mem"
)

// family finds real_parent, by what stands there in each task since Linux 2.6:
//
//	real_parent, parent, children, sibling, group_leader
//
// Each task's sibling hangs in the children of its real_parent, also while
// another task traces it, and its group_leader is itself.
func (l *look) family(t *tasks) error {
	parent, leader, size := l.w, 6*l.w, 7*l.w
	idle := t.all[0].at
	cols := t.columns(l.w, size, func(off int) bool {
		// The idle task has started itself, init and kthreadd.
		for i := range t.all[:3] {
			if t.all[i].ptr(off) != idle {
				return false
			}
		}
		return t.every(func(o *object) bool {
			return l.pointer(o.word(off)) && l.pointer(o.word(off+parent)) && o.ptr(off+leader) == o.at
		}) && l.children(t, off)
	})
	var err error
	if t.parent, err = only("real_parent", cols); err != nil {
		return err
	}
	if reads := l.reads("getppid"); reads[t.parent+parent] && !reads[t.parent] {
		return unproved("real_parent: getppid(2) reads what lies behind it")
	}
	return nil
}

// children reports whether all tasks hang in the lists of those that stand at off.
func (l *look) children(t *tasks, off int) bool {
	children, sibling, leader := 2*l.w, 4*l.w, 6*l.w
	of := make(map[mem.VA]map[mem.VA]bool)
	for i := range t.all[1:] {
		o := &t.all[1+i]
		p := o.ptr(off)
		if of[p] == nil {
			// A process may have been started by any thread of another.
			g, err := l.word(p + mem.VA(off+leader))
			if err != nil || !t.at[mem.VA(g)] {
				return false
			}
			nodes, err := l.ring(p+mem.VA(off+children), maxTasks)
			if err != nil {
				return false
			}
			of[p] = make(map[mem.VA]bool)
			for _, n := range nodes {
				of[p][n] = true
			}
		}
		if !of[p][o.at+mem.VA(off+sibling)] {
			return false
		}
	}
	return true
}

// maxSignal is how much of a signal_struct is looked at: what is sought is among
// its first members.
const maxSignal = 256

// threads finds where a process has its threads: signal, its thread_head, and
// the thread_node by which a thread hangs in it. The first thread is the leader.
func (l *look) threads(t *tasks) error {
	type place struct{ signal, head, node int }
	var found []place
	init := l.variable("init_signals")
	cols := t.columns(l.w, l.w, func(off int) bool {
		seen := make(map[uint64]bool)
		return init(t.all[0].ptr(off)) && !t.own(off) && t.every(func(o *object) bool {
			v := o.word(off)
			again := seen[v]
			seen[v] = true
			return !again && l.pointer(v)
		})
	})
	for _, col := range cols {
		signals, err := l.objects(t, col, maxSignal)
		if err != nil {
			continue // what it points to are no such things
		}
		for head := 0; head+2*l.w <= maxSignal; head += l.w {
			node := int(signals[0].ptr(head) - t.all[0].at)
			if node < 0 || node+2*l.w > t.reach || col >= node && col < node+2*l.w { // the last: a node leads to the head of its list
				continue
			}
			fits := true
			for i := range t.all {
				o, s := &t.all[i], &signals[i]
				fits = fits && s.ptr(head) == o.at+mem.VA(node) && o.ptr(node+l.w) == s.at+mem.VA(head)
			}
			if fits {
				found = append(found, place{col, head, node})
			}
		}
	}
	one, err := only("signal", found)
	if err != nil {
		return err
	}
	t.signal, t.head, t.node = one.signal, one.head, one.node
	return l.groups(t)
}

// objects copies n bytes of what each task points to at an offset.
func (l *look) objects(t *tasks, off, n int) ([]object, error) {
	out := make([]object, len(t.all))
	for i := range t.all {
		var err error
		if out[i], err = l.object(t.all[i].ptr(off), n, n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// groups checks by threads that are no leaders which of pid and tgid is which.
func (l *look) groups(t *tasks) error {
	for i := range t.all[1:] {
		o := &t.all[1+i]
		nodes, err := l.ring(o.ptr(t.signal)+mem.VA(t.head), maxTasks)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			at := n - mem.VA(t.node)
			if at == o.at {
				continue
			}
			th, err := l.object(at, t.reach, t.tgid+4)
			if err != nil {
				return err
			}
			if th.ptr(t.signal) != o.ptr(t.signal) || th.u32(t.tgid) != o.u32(t.pid) || th.u32(t.pid) == o.u32(t.pid) {
				return unproved("tgid: a thread of pid %d has another", o.u32(t.pid))
			}
		}
	}
	return nil
}

// ofKernel reports whether a task is a thread of the kernel for certain: the
// idle task, kthreadd, or one that kthreadd has started. A program that the kernel
// starts by itself has another parent.
func (t *tasks) ofKernel(o *object) bool {
	kthreadd := t.all[2].at
	return t.idle(o) || o.at == kthreadd || o.ptr(t.parent) == kthreadd
}

// space finds mm: with active_mm behind it, which is the same where there is one,
// it is the only pair of pointers that init has and no thread of the kernel. Those
// may have borrowed an active_mm.
func (l *look) space(t *tasks) error {
	cols := t.columns(l.w, 2*l.w, func(off int) bool {
		return t.all[1].word(off) != 0 && t.every(func(o *object) bool {
			own, active := o.word(off), o.word(off+l.w)
			if own == 0 {
				return active == 0 || l.pointer(active)
			}
			inside := mem.VA(own)-o.at < mem.VA(t.reach) // a list that begins and ends in the task
			return l.pointer(own) && own == active && !inside && !t.ofKernel(o)
		})
	})
	var err error
	if t.mm, err = only("mm", cols); err != nil {
		return err
	}
	if reads := l.readsOf("get_task_mm"); reads[t.mm+l.w] && !reads[t.mm] {
		return unproved("mm: get_task_mm reads what lies behind it")
	}
	return nil
}

// flags finds the flags: PF_KTHREAD is set of threads of the kernel and of no
// task that has an address space. Before them lie the stack, which a task that
// ended has no more, and the count of users; behind them what a tracer asked for.
func (l *look) flags(t *tasks) error {
	stack := -4 - l.w
	const usage, ptrace = -4, 4
	const kthread = 0x00200000 // PF_KTHREAD, include/linux/sched.h
	cols := t.columns(4, 8, func(off int) bool {
		return off >= -stack && (off+stack)%l.w == 0 && t.every(func(o *object) bool {
			s, v := o.word(off+stack), o.u32(off)
			ended := o.word(t.mm) == 0 && !t.ofKernel(o)
			switch {
			case !(l.pointer(s) && s%4096 == 0) && !(s == 0 && ended):
				return false
			case o.u32(off+usage)-1 >= 1<<20 || o.u32(off+ptrace) >= 1<<25:
				return false
			}
			return ended || v&kthread != 0 == t.ofKernel(o)
		})
	})
	var err error
	t.flags, err = only("flags", cols)
	return err
}
