package detect

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/ksym"
	"vmscope/mem"
)

// Processes finds tasks that run, can be named, or sleep, and that the kernel's
// list of tasks lacks: on a CPU or its run queue, in the table of process ids, in
// a process group or session, among a parent's children, or where the kernel
// keeps those who wait (waits).
type Processes struct{}

// Name implements Detector.
func (Processes) Name() string { return "processes" }

type taskLayout struct {
	PID     ctype.Field `c:"task_struct.pid"` // include/linux/sched.h
	Comm    ctype.Field `c:"task_struct.comm"`
	Exit    ctype.Field `c:"task_struct.exit_state"`
	MM      ctype.Field `c:"task_struct.mm"`
	Kids    ctype.Field `c:"task_struct.children"`
	Sibling ctype.Field `c:"task_struct.sibling"`
	Links   ctype.Field `c:"task_struct.pid_links"`
	Entity  ctype.Field `c:"task_struct.se"`
	RT      ctype.Field `c:"task_struct.rt"`
	Node    ctype.Field `c:"sched_entity.group_node"`
	RTNode  ctype.Field `c:"sched_rt_entity.run_list"`

	Curr  ctype.Field `c:"rq.curr"` // kernel/sched/sched.h
	Idle  ctype.Field `c:"rq.idle"`
	CFS   ctype.Field `c:"rq.cfs_tasks,optional"` // CONFIG_SMP
	RTRun ctype.Field `c:"rq.rt"`
	Prios ctype.Field `c:"rt_rq.active"`
	Queue ctype.Field `c:"rt_prio_array.queue"`

	IDR  ctype.Field `c:"pid_namespace.idr"` // include/linux/pid_namespace.h
	Root ctype.Field `c:"idr.idr_rt"`
	Of   ctype.Field `c:"pid.tasks"`
}

// maxTasks bounds what is walked: pids are 2^22 at most.
const maxTasks = 1 << 22

// Inspect implements Detector.
func (d Processes) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	f, err := bind[taskLayout](l)
	if err != nil {
		return err
	}
	w, err := bind[waitLayout](l)
	if err != nil {
		return err
	}
	return persists(ctx, l, report, func(report func(Finding)) error { return d.look(ctx, l, f, w, report) })
}

func (d Processes) look(ctx context.Context, l *Look, f *taskLayout, w *waitLayout, report func(Finding)) error {
	listed := make(map[mem.VA]bool)
	if init, err := l.Symbol("init_task"); err == nil {
		listed[init] = true // the idle task of the first CPU heads the list
	}
	leaders, err := l.Tasks()
	if err != nil {
		return err
	}
	tasks := make([]linux.Task, 0, len(leaders))
	for _, leader := range leaders {
		listed[leader.Addr] = true
		threads, err := l.ThreadsOf(leader)
		if err != nil {
			continue // it exits
		}
		for _, t := range threads {
			listed[t.Addr] = true
			tasks = append(tasks, t)
		}
	}
	hidden := make(map[mem.VA][]string)
	found := func(where string) func(mem.VA) error {
		return func(task mem.VA) error {
			if task == 0 || listed[task] || slices.Contains(hidden[task], where) {
				return ctx.Err()
			}
			if hidden[task] = append(hidden[task], where); len(hidden) > maxFindings {
				return fmt.Errorf("more than %d tasks are not listed: %w", maxFindings, mem.ErrInconsistent)
			}
			return ctx.Err()
		}
	}
	var errs []error // each way is gone whatever becomes of the others
	idle := make(map[mem.VA]bool)
	if err := d.running(l, f, idle, found(onQueue)); err != nil {
		errs = append(errs, fmt.Errorf("run queues: %w", err))
	}
	if err := d.numbered(l, f, found(inTable), found("a process group or session")); err != nil {
		errs = append(errs, fmt.Errorf("table of process ids: %w", err))
	}
	kids := found("its parent's children")
	for _, task := range tasks {
		err := l.List(f.Kids.At(task.Addr), func(node mem.VA) error { return kids(node - mem.VA(f.Sibling.Offset)) })
		if err != nil && !errors.Is(err, mem.ErrInconsistent) && !errors.Is(err, mem.ErrNotMapped) {
			return err // else it exits, or its child does
		}
	}
	firm := maps.Clone(hidden) // what those places name are tasks
	for _, p := range waits {
		if err := p.await(l, w, tasks, found(p.where)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.where, err))
		}
	}
	for _, task := range slices.Sorted(maps.Keys(hidden)) {
		err := d.hidden(l, f, task, idle[task], hidden[task], report)
		if _, ok := firm[task]; !ok && passing(err) {
			continue // it was on a stack that was left meanwhile
		}
		if err != nil && len(errs) < maxErrors {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Where tasks are met.
const (
	onQueue = "a CPU's run queue"
	inTable = "the table of process ids"
)

// running gives the tasks that CPUs run or want to run, and notes idle tasks.
func (Processes) running(l *Look, f *taskLayout, idles map[mem.VA]bool, each func(mem.VA) error) error {
	rqs, err := l.LookupSymbol("runqueues")
	if err != nil {
		return err
	}
	offsets, err := perCPU(l)
	if err != nil {
		return err
	}
	prios := mem.VA(f.Queue.Type.Len())
	for _, off := range offsets {
		rq := rqs.Addr + off
		curr, err := l.Mem.Pointer(f.Curr.At(rq))
		if errors.Is(err, mem.ErrNotMapped) {
			continue // a CPU that can not be
		}
		if err != nil {
			return err
		}
		idle, err := l.Mem.Pointer(f.Idle.At(rq))
		if err != nil {
			return err
		}
		idles[idle] = true
		if curr != idle {
			if err := each(curr); err != nil {
				return err
			}
		}
		on := func(head mem.VA, entity, link ctype.Field) error {
			return l.List(head, func(node mem.VA) error { return each(node - mem.VA(entity.Offset+link.Offset)) })
		}
		if f.CFS.Valid() {
			if err := on(f.CFS.At(rq), f.Entity, f.Node); err != nil {
				return err
			}
		}
		queues := f.RTRun.At(rq) + mem.VA(f.Prios.Offset+f.Queue.Offset)
		for p := range prios {
			if head, err := l.Mem.Pointer(queues + 16*p); err != nil || head == 0 {
				continue // never set up
			}
			if err := on(queues+16*p, f.RT, f.RTNode); err != nil {
				return err
			}
		}
	}
	return nil
}

// numbered gives the tasks that have an id in the initial namespace of ids, and
// those that are in a group or session that has one.
func (Processes) numbered(l *Look, f *taskLayout, each, member func(mem.VA) error) error {
	ns, err := l.Symbol("init_pid_ns")
	if errors.Is(err, ksym.ErrNoSymbol) {
		return nil
	}
	if err != nil {
		return err
	}
	heads := make([]byte, f.Of.Size())
	link := f.Links.Size() / uint64(max(1, f.Links.Type.Len()))
	var bad error // of one entry; the others are looked at all the same
	err = l.XArray(f.IDR.At(ns)+mem.VA(f.Root.Offset), func(_ uint64, pid mem.VA) error {
		if _, err := l.Mem.Read(heads, f.Of.At(pid)); err != nil {
			bad = cmp.Or(bad, err)
			return nil
		}
		// PIDTYPE_PID is the first kind of link, both of pid.tasks and
		// task_struct.pid_links; then come processes, groups and sessions.
		for kind := range uint64(len(heads) / 8) {
			node := mem.VA(binary.LittleEndian.Uint64(heads[8*kind:]))
			if node == 0 {
				continue
			}
			links := mem.VA(f.Links.Offset + kind*link)
			if kind == 0 {
				if err := each(node - links); err != nil {
					return err
				}
				continue
			}
			err := l.HList(f.Of.At(pid)+mem.VA(8*kind), func(node mem.VA) error { return member(node - links) })
			if err != nil && !passing(err) {
				return err // else one of them just leaves
			}
		}
		return nil
	})
	return errors.Join(err, bad)
}

// hidden reports a task that stands in the named places and not in the list,
// unless it exits, or is an idle task. What its fields say of that alone is not
// believed: who exits has given up its memory and its id before it leaves the
// list, and idle tasks never had any.
func (d Processes) hidden(l *Look, f *taskLayout, task mem.VA, idle bool, where []string, report func(Finding)) error {
	exit, err := l.Mem.Uint32(f.Exit.At(task))
	if err != nil {
		return err
	}
	pid, err := l.Mem.Uint32(f.PID.At(task))
	if err != nil {
		return err
	}
	mm, err := l.Mem.Pointer(f.MM.At(task))
	if err != nil {
		return err
	}
	if (exit != 0 || pid == 0 || idle) && mm == 0 && !slices.Contains(where, inTable) {
		return nil
	}
	b, err := l.Mem.CString(f.Comm.At(task), int(f.Comm.Size()))
	if err != nil {
		return err
	}
	finding := Finding{Check: d.Name(), Severity: High, Confidence: Proved,
		Summary: fmt.Sprintf("process %d (%s) is hidden: not in the list of tasks, but in %s", int32(pid), kernel.Text(b), strings.Join(where, ", ")),
		Evidence: []Evidence{
			{What: fmt.Sprintf("task_struct of pid %d (%s)", int32(pid), kernel.Text(b)), Addr: task, Expected: "in the list of tasks or of a process's threads", Found: "in " + strings.Join(where, ", ")},
		}}
	finding.identify(fmt.Sprint(pid))
	report(finding)
	return nil
}
