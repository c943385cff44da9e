package infer

import (
	"slices"

	"vmscope/mem"
)

// start finds start_boottime: the second of a pair of times that grow along the
// list of tasks and are 0 of the idle task. The first is read from the monotonic
// clock, a moment before, and that clock stands still while the machine sleeps: so
// it is never the greater.
func (l *look) start(t *tasks, b *book) {
	const second, apart = 1e9, 1e6 // apart: between the first and the last; no boot is that fast
	cols := t.columns(l.w, 16, func(off int) bool {
		grows, later, prev := 0, 0, &t.all[0]
		first, last := t.all[1].u64(off), t.all[len(t.all)-1].u64(off)
		return t.all[0].u64(off) == 0 && t.all[0].u64(off+8) == 0 && last > first+apart && t.every(func(o *object) bool {
			mono, boot := o.u64(off), o.u64(off+8)
			// Tasks that several processors make at once may be off by little.
			if boot < mono || boot >= 1<<60 || mono+second < prev.u64(off) || boot+second < prev.u64(off+8) {
				return false
			}
			if mono > prev.u64(off) {
				grows++
			}
			if boot > mono {
				later++
			}
			prev = o
			return true
		}) && grows >= len(t.all)/2 && later > 2
	})
	if col, err := only("start_boottime", cols); err != nil {
		l.gaps = append(l.gaps, err)
	} else {
		b.add("task_struct", "start_boottime", col+8, uint64Type)
	}
}

// The states that tell a column of states from others (include/linux/sched.h).
const (
	taskInterruptible = 0x0001
	taskIdle          = 0x0402
	taskDead          = 0x0080
	exitZombie        = 0x0020
	sigChld           = 17
)

// state finds the state of tasks: one bit of those that ps shows at most; the
// idle task runs, other tasks sleep, and some threads of the kernel sleep in the way
// that does not count as load. Of zombies there must be one to find exit_state.
func (l *look) state(t *tasks, b *book) {
	cols := t.columns(4, 4, func(off int) bool {
		isIdle := func(o *object) bool { return o.u32(off)&taskIdle == taskIdle }
		return t.all[0].u32(off) == 0 && t.every(func(o *object) bool {
			v := o.u32(off)
			shown := v & 0x7f // TASK_REPORT
			return v < 1<<17 && shown&(shown-1) == 0 && (!isIdle(o) || o.word(t.mm) == 0)
		}) && t.count(isIdle) > 2 && t.count(func(o *object) bool { return o.u32(off)&0x7f == taskInterruptible }) > 2
	})
	state, err := only("__state", cols)
	if err != nil {
		l.gaps = append(l.gaps, err)
		return
	}
	b.add("task_struct", "__state", state, uint32Type)
	dead := func(o *object) bool { return o.u32(state)&taskDead != 0 }
	if t.count(dead) == 0 {
		l.gap("exit_state: no task has ended and waits for its parent")
		return
	}
	// exit_state, exit_code, exit_signal, pdeath_signal.
	cols = t.columns(4, 16, func(off int) bool {
		return t.every(func(o *object) bool {
			if o.u32(off+8) > 64 || o.u32(off+12) > 64 {
				return false
			}
			return dead(o) && o.u32(off) == exitZombie || !dead(o) && o.u32(off) == 0
		}) && t.count(func(o *object) bool { return o.u32(off+8) == sigChld }) >= len(t.all)*7/8
	})
	exit, err := only("exit_state", cols)
	if err != nil {
		l.gaps = append(l.gaps, err)
		return
	}
	b.add("task_struct", "exit_state", exit, uint32Type)
}

// cred finds the credentials: two pointers side by side to init_cred in the idle
// task. System calls by which a task asks for its own read the second, and the
// numbers in it.
func (l *look) cred(t *tasks, b *book) {
	init := l.variable("init_cred")
	cols := t.columns(l.w, 2*l.w, func(off int) bool {
		return init(t.all[0].ptr(off)) && t.all[0].ptr(off+l.w) == t.all[0].ptr(off) && !t.own(off) && t.every(func(o *object) bool {
			return l.pointer(o.word(off)) && l.pointer(o.word(off+l.w))
		}) && // One may act with the credentials of another for a moment.
			t.count(func(o *object) bool { return o.word(off) != o.word(off+l.w) }) <= len(t.all)/8
	})
	calls := []string{"getuid", "getgid", "geteuid", "getegid"}
	reads := make([]map[int]bool, len(calls))
	for i, name := range calls {
		reads[i] = l.reads(name)
		cols = slices.DeleteFunc(cols, func(col int) bool { return !reads[i][col+l.w] || reads[i][col] })
	}
	col, err := only("real_cred", cols)
	if err != nil {
		l.gaps = append(l.gaps, err)
		return
	}
	// What only one of them reads is what it asks for.
	const first, size = 4, 256
	ids := make([]int, len(calls))
	for i := range calls {
		var own []int
		for off := range reads[i] {
			alone := off >= first && off < size
			for j := range calls {
				alone = alone && (i == j || !reads[j][off])
			}
			if alone {
				own = append(own, off)
			}
		}
		if ids[i], err = only("what "+calls[i]+"(2) reads", own); err != nil {
			l.gaps = append(l.gaps, err)
			return
		}
	}
	// uid, gid, suid, sgid, euid, egid, fsuid, fsgid.
	uid := ids[0]
	if !slices.Equal(ids, []int{uid, uid + 4, uid + 16, uid + 20}) {
		l.gap("cred: the places of ids %v", ids)
		return
	}
	b.add("task_struct", "real_cred", col, pointerType)
	for i, name := range []string{"uid", "gid", "euid", "egid"} {
		b.add("cred", name, ids[i], uint32Type)
	}
}

// maxKThread is how much of a struct kthread is looked at.
const maxKThread = 512

// fullNames finds where threads of the kernel have names that do not fit comm
// (since v5.17): in what their worker_private points to is a pointer to a text that
// is comm, or goes on where a full comm ends; of one that fits it may be null.
func (l *look) fullNames(t *tasks, b *book) {
	type place struct{ private, name int }
	var found []place
	cols := t.columns(l.w, l.w, func(off int) bool {
		return t.every(func(o *object) bool {
			v := o.word(off)
			if t.ofKernel(o) {
				return l.pointer(v) || v == 0 && t.idle(o)
			}
			return v == 0 || o.word(t.mm) == 0
		})
	})
	for _, col := range cols {
		fits, matches := make([]bool, maxKThread/l.w), make([]int, maxKThread/l.w)
		for i := range fits {
			fits[i] = true
		}
		for i := range t.all {
			o := &t.all[i]
			if !t.ofKernel(o) || o.word(col) == 0 {
				continue
			}
			private, err := l.object(o.ptr(col), maxKThread, 64)
			if err != nil {
				clear(fits)
				break
			}
			comm := t.name(o)
			for j := range fits {
				p := private.word(l.w * j)
				switch {
				case !fits[j] || p == 0:
				case !l.inKernel(p):
					fits[j] = false
				default:
					text, err := l.object(mem.VA(p), len(comm)+1, len(comm)+1)
					fits[j] = err == nil && string(text.b[:len(comm)]) == comm && (text.b[len(comm)] == 0 || len(comm) == commLen-1)
					if fits[j] && text.b[len(comm)] != 0 {
						matches[j]++
					}
				}
			}
		}
		for j := range fits {
			if fits[j] && matches[j] > 0 {
				found = append(found, place{col, l.w * j})
			}
		}
	}
	// vfork_done points into the same object: to a completion in it. What points to
	// its beginning is the least.
	name := func(o *object, p place) mem.VA { return o.ptr(p.private) + mem.VA(p.name) }
	slices.SortFunc(found, func(a, b place) int { return b.name - a.name })
	for len(found) > 1 && t.every(func(o *object) bool {
		return !t.ofKernel(o) || t.idle(o) || name(o, found[0]) == name(o, found[len(found)-1])
	}) {
		found = found[:len(found)-1]
	}
	one, err := only("kthread.full_name", found)
	if err != nil {
		l.gaps = append(l.gaps, err)
		return
	}
	b.add("task_struct", "worker_private", one.private, pointerType)
	b.add("kthread", "full_name", one.name, pointerType)
}
