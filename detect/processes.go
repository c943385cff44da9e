package detect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// Processes finds tasks that run, or can be named, and that the kernel's list
// of tasks lacks: on a CPU or its run queue, in the table of process ids, or
// among a parent's children.
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
	return persists(ctx, l, report, func(report func(Finding)) error { return d.look(ctx, l, f, report) })
}

func (d Processes) look(ctx context.Context, l *Look, f *taskLayout, report func(Finding)) error {
	listed := make(map[mem.VA]bool)
	if init, err := l.Symbol("init_task"); err == nil {
		listed[init] = true // the idle task of the first CPU heads the list
	}
	leaders, err := l.Tasks()
	if err != nil {
		return err
	}
	tasks := make([]mem.VA, 0, len(leaders))
	for _, leader := range leaders {
		listed[leader.Addr] = true
		threads, err := l.ThreadsOf(leader)
		if err != nil {
			continue // it exits
		}
		for _, t := range threads {
			listed[t.Addr] = true
			tasks = append(tasks, t.Addr)
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
	if err := d.numbered(l, f, found(inTable)); err != nil {
		errs = append(errs, fmt.Errorf("table of process ids: %w", err))
	}
	kids := found("its parent's children")
	for _, task := range tasks {
		err := l.List(f.Kids.At(task), func(node mem.VA) error { return kids(node - mem.VA(f.Sibling.Offset)) })
		if err != nil && !errors.Is(err, mem.ErrInconsistent) && !errors.Is(err, mem.ErrNotMapped) {
			return err // else it exits, or its child does
		}
	}
	for _, task := range slices.Sorted(maps.Keys(hidden)) {
		if err := d.hidden(l, f, task, idle[task], hidden[task], report); err != nil && len(errs) < maxErrors {
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

// numbered gives the tasks that have an id in the initial namespace of ids.
func (Processes) numbered(l *Look, f *taskLayout, each func(mem.VA) error) error {
	ns, err := l.Symbol("init_pid_ns")
	if errors.Is(err, ksym.ErrNoSymbol) {
		return nil
	}
	if err != nil {
		return err
	}
	var bad error // of one entry; the others are looked at all the same
	err = l.XArray(f.IDR.At(ns)+mem.VA(f.Root.Offset), func(_ uint64, pid mem.VA) error {
		// PIDTYPE_PID is the first kind of link, both of pid.tasks and
		// task_struct.pid_links.
		node, err := l.Mem.Pointer(f.Of.At(pid))
		if err != nil || node == 0 {
			bad = cmp.Or(bad, err)
			return nil
		}
		return each(node - mem.VA(f.Links.Offset))
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
