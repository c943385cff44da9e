package detect

import (
	"encoding/binary"
	"errors"

	"vmscope/ctype"
	"vmscope/kernel/linux"
	"vmscope/ksym"
	"vmscope/mem"
)

// waitLayout is what names tasks that sleep. A kernel may lack some of it.
type waitLayout struct {
	Clocks  ctype.Field `c:"hrtimer_cpu_base.clock_base,optional"` // include/linux/hrtimer_defs.h
	Clock   uint64      `c:"sizeof(hrtimer_clock_base),optional"`
	Active  ctype.Field `c:"hrtimer_clock_base.active.rb_root.rb_root,optional"`
	HRNode  ctype.Field `c:"hrtimer.node.node,optional"`
	HRFunc  ctype.Field `c:"hrtimer.function,optional"`
	Sleeper ctype.Field `c:"hrtimer_sleeper.timer,optional"` // include/linux/hrtimer.h
	HRTask  ctype.Field `c:"hrtimer_sleeper.task,optional"`

	Wheel     uint64      `c:"sizeof(timer_base),optional"` // kernel/time/timer.c
	Ticks     ctype.Field `c:"timer_base.clk,optional"`
	Vectors   ctype.Field `c:"timer_base.vectors,optional"`
	Entry     ctype.Field `c:"timer_list.entry,optional"`
	Func      ctype.Field `c:"timer_list.function,optional"`
	Timer     ctype.Field `c:"process_timer.timer,optional"`
	TimerTask ctype.Field `c:"process_timer.task,optional"`

	Bucket  uint64      `c:"sizeof(futex_hash_bucket),optional"` // kernel/futex/futex.h
	Chain   ctype.Field `c:"futex_hash_bucket.chain.node_list,optional"`
	Waiter  ctype.Field `c:"futex_q.list.node_list,optional"`
	QTask   ctype.Field `c:"futex_q.task,optional"`
	Private ctype.Field `c:"mm_struct.futex.phash.hash|mm_struct.futex_phash,optional"` // since v6.16
	Mask    ctype.Field `c:"futex_private_hash.hash_mask,optional"`
	Queues  ctype.Field `c:"futex_private_hash.queues,optional"`

	Deadlines ctype.Field `c:"rq.dl.root.rb_root,optional"` // kernel/sched/sched.h
	Deadline  ctype.Field `c:"task_struct.dl,optional"`
	DLNode    ctype.Field `c:"sched_dl_entity.rb_node,optional"` // include/linux/sched.h
	Server    ctype.Field `c:"sched_dl_entity.dl_server,optional"`

	Signal    ctype.Field `c:"task_struct.signal"`
	MM        ctype.Field `c:"task_struct.mm"`
	Children  ctype.Field `c:"signal_struct.wait_chldexit.head,optional"` // include/linux/wait.h
	WaitEntry ctype.Field `c:"wait_queue_entry.entry,optional"`
	WaitFunc  ctype.Field `c:"wait_queue_entry.func,optional"`
	WaitTask  ctype.Field `c:"wait_queue_entry.private,optional"`

	SetHash ctype.Field `c:"css_set.hlist,optional"` // include/linux/cgroup-defs.h
	Members ctype.Field `c:"css_set.tasks,optional"`
	Moving  ctype.Field `c:"css_set.mg_tasks,optional"`
	Member  ctype.Field `c:"task_struct.cg_list,optional"`
}

// waiting is a place where the kernel names tasks that need not run. What it
// lacks in a kernel gives none.
type waiting struct {
	where string
	each  func(l *Look, f *waitLayout, tasks []linux.Task, each func(task mem.VA) error) error
}

// waits are those places. They change all the time, and most of what names a
// task there lies on its stack: it is gone when the task runs on.
var waits = []waiting{
	{"the list of a control group", grouped},
	{"a timer that is to wake it", timed},
	{"the queue of a futex", onFutexes},
	{"the queue of those who wait for children", onChildren},
	{"the queue of a socket", onSockets},
	{"the queue of a CPU's tasks with deadlines", onDeadlines},
}

// waitTries is how often a place is read that changes while it is read.
const waitTries = 3

// await gives the tasks of one of these places. Where it changes faster than it
// can be read, or contradicts itself, what could be read counts: that is no
// finding, as a queue that never stands still looks the same.
func (w waiting) await(l *Look, f *waitLayout, tasks []linux.Task, each func(task mem.VA) error) error {
	for range waitTries {
		err := w.each(l, f, tasks, each)
		if !passing(err) {
			return missing(err)
		}
		forget(l)
	}
	return nil
}

// steady walks one of many lists; one that changes meanwhile must not keep the
// others from being looked at.
func steady(err error, bad *error) error {
	if passing(err) {
		*bad = err
		return nil
	}
	return err
}

// grouped gives the members of control groups, which all tasks are that have an
// id: those of each css_set, which are in a table (kernel/cgroup/cgroup.c).
func grouped(l *Look, f *waitLayout, _ []linux.Task, each func(mem.VA) error) error {
	const buckets = 1 << 7 // CSS_SET_HASH_BITS
	if !f.SetHash.Valid() || !f.Member.Valid() || !f.Members.Valid() || !f.Moving.Valid() {
		return nil
	}
	table, err := l.Symbol("css_set_table")
	if err != nil {
		return err
	}
	var bad error
	for i := range mem.VA(buckets) {
		err := l.HList(table+8*i, func(node mem.VA) error {
			set := node - mem.VA(f.SetHash.Offset)
			for _, list := range []ctype.Field{f.Members, f.Moving} {
				if err := steady(l.List(list.At(set), func(node mem.VA) error { return each(node - mem.VA(f.Member.Offset)) }), &bad); err != nil {
					return err
				}
			}
			return nil
		})
		if err := steady(err, &bad); err != nil {
			return err
		}
	}
	return bad
}

// timed gives the tasks that sleep until a time at most: in nanosleep, poll,
// select, epoll_wait, futex, or anywhere in the kernel.
func timed(l *Look, f *waitLayout, _ []linux.Task, each func(mem.VA) error) error {
	offsets, err := perCPU(l)
	if err != nil {
		return err
	}
	var bad error
	for _, way := range []func(*Look, *waitLayout, mem.VA, *error, func(mem.VA) error) error{precise, wheel} {
		for _, off := range offsets {
			if err := way(l, f, off, &bad, each); err != nil {
				return err
			}
		}
	}
	return bad
}

// precise gives those of a CPU's high-resolution timers (hrtimer_wakeup in
// kernel/time/hrtimer.c).
func precise(l *Look, f *waitLayout, cpu mem.VA, bad *error, each func(mem.VA) error) error {
	if !f.Clocks.Valid() || !f.Active.Valid() || !f.HRNode.Valid() || !f.HRFunc.Valid() || !f.HRTask.Valid() {
		return nil
	}
	base, err := l.LookupSymbol("hrtimer_bases")
	if err != nil {
		return missing(err)
	}
	wakes, err := l.Symbol("hrtimer_wakeup")
	if err != nil {
		return missing(err)
	}
	for i := range mem.VA(f.Clocks.Type.Len()) {
		root := f.Clocks.At(base.Addr+cpu) + i*mem.VA(f.Clock) + mem.VA(f.Active.Offset)
		err := l.RBTree(root, func(node mem.VA) error {
			return f.woken(l, node-mem.VA(f.HRNode.Offset), f.HRFunc, wakes, f.HRTask.Offset-f.Sleeper.Offset, each)
		})
		if err := steady(err, bad); err != nil {
			return err
		}
	}
	return nil
}

// firstTick is what a timer's clock is at least; see bootTicks.
const firstTick = 1<<32 - 300*1000

// wheel gives those of a CPU's other timers (process_timeout in
// kernel/time/timer.c). How many wheels a CPU has, no type tells: one behind the
// other has a clock that shows a time since boot.
func wheel(l *Look, f *waitLayout, cpu mem.VA, bad *error, each func(mem.VA) error) error {
	const most = 3 // NR_BASES
	if f.Wheel == 0 || !f.Ticks.Valid() || !f.Vectors.Valid() || !f.Entry.Valid() || !f.Func.Valid() || !f.TimerTask.Valid() {
		return nil
	}
	bases, err := l.LookupSymbol("timer_bases")
	if err != nil {
		return missing(err)
	}
	wakes, err := l.Symbol("process_timeout")
	if err != nil {
		return missing(err)
	}
	now, err := l.Jiffies()
	if err != nil {
		return missing(err)
	}
	for base := bases.Addr + cpu; base < bases.Addr+cpu+mem.VA(most*f.Wheel); base += mem.VA(f.Wheel) {
		ticks, err := l.Mem.Uint64(f.Ticks.At(base))
		if err != nil {
			return steady(err, bad)
		}
		if ticks < firstTick || ticks > now+1 {
			return nil
		}
		slots := make([]byte, f.Vectors.Size())
		if _, err := l.Mem.Read(slots, f.Vectors.At(base)); err != nil {
			return steady(err, bad)
		}
		for i := 0; i < len(slots); i += 8 {
			if binary.LittleEndian.Uint64(slots[i:]) == 0 {
				continue
			}
			err := l.HList(f.Vectors.At(base)+mem.VA(i), func(node mem.VA) error {
				return f.woken(l, node-mem.VA(f.Entry.Offset), f.Func, wakes, f.TimerTask.Offset-f.Timer.Offset, each)
			})
			if err := steady(err, bad); err != nil {
				return err
			}
		}
	}
	return nil
}

// woken gives the task, behind bytes from a timer, that it is to wake: if that is
// what its function does.
func (*waitLayout) woken(l *Look, timer mem.VA, fn ctype.Field, wakes mem.VA, behind uint64, each func(mem.VA) error) error {
	does, err := l.Mem.Pointer(fn.At(timer))
	if err != nil || does != wakes {
		return err
	}
	task, err := l.Mem.Pointer(timer + mem.VA(behind))
	if err != nil {
		return err
	}
	return each(task)
}

// missing is err unless the kernel has just not got the symbol.
func missing(err error) error {
	if errors.Is(err, ksym.ErrNoSymbol) {
		return nil
	}
	return err
}

// onChildren gives the tasks that wait for a child, or something that they
// trace, of a process in the list: its threads (do_wait in kernel/exit.c).
func onChildren(l *Look, f *waitLayout, tasks []linux.Task, each func(mem.VA) error) error {
	if !f.Children.Valid() || !f.WaitEntry.Valid() || !f.WaitFunc.Valid() || !f.WaitTask.Valid() {
		return nil
	}
	wakes, err := l.Symbol("child_wait_callback")
	if err != nil {
		return err
	}
	var bad error
	for _, t := range tasks {
		if t.PID != t.TGID {
			continue
		}
		signal, err := l.Mem.Pointer(f.Signal.At(t.Addr))
		if err == nil && signal != 0 {
			err = l.List(f.Children.At(signal), func(node mem.VA) error {
				entry := node - mem.VA(f.WaitEntry.Offset)
				return f.woken(l, entry, f.WaitFunc, wakes, f.WaitTask.Offset, each)
			})
		}
		if err := steady(err, &bad); err != nil {
			return err
		}
	}
	return bad
}

// onDeadlines gives the tasks with a deadline that want to run, of each CPU. Since
// v6.8 some of what is there stands for the tasks of another class.
func onDeadlines(l *Look, f *waitLayout, _ []linux.Task, each func(mem.VA) error) error {
	if !f.Deadlines.Valid() || !f.Deadline.Valid() || !f.DLNode.Valid() {
		return nil
	}
	rqs, err := l.LookupSymbol("runqueues")
	if err != nil {
		return err
	}
	offsets, err := perCPU(l)
	if err != nil {
		return err
	}
	var bad error
	for _, off := range offsets {
		err := l.RBTree(f.Deadlines.At(rqs.Addr+off), func(node mem.VA) error {
			entity := node - mem.VA(f.DLNode.Offset)
			if f.Server.Valid() {
				bits, err := l.Mem.Uint(f.Server.At(entity), 1)
				if err != nil || bits>>f.Server.BitOffset&1 != 0 {
					return err
				}
			}
			return each(entity - mem.VA(f.Deadline.Offset))
		})
		if err := steady(err, &bad); err != nil {
			return err
		}
	}
	return bad
}
