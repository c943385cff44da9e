package detect

import (
	"fmt"
	"slices"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// sleepTamperings hide tasks that sleep from all but one of the places where the
// kernel names them.
var sleepTamperings = []tampering{
	{"hidden process that sleeps for a time", "processes", func(v *victim) []string {
		t := v.process("sleep")
		v.hide(t.Addr, "tasks", "sibling", "cg_list")
		v.leaveGroups(t.Addr)
		return []string{fmt.Sprintf("process %d (sleep) is hidden: not in the list of tasks, but in a timer that is to wake it", t.PID)}
	}},
	{"hidden thread of the kernel that sleeps", "processes", func(v *victim) []string {
		t := v.process("khungtaskd")
		v.hide(t.Addr, "tasks", "sibling", "cg_list")
		v.leaveGroups(t.Addr)
		return []string{fmt.Sprintf("process %d (khungtaskd) is hidden: not in the list of tasks, but in a timer that is to wake it", t.PID)}
	}},
	{"hidden process in a control group", "processes", func(v *victim) []string {
		t := v.process("sleep")
		v.hide(t.Addr, "tasks", "sibling")
		v.leaveGroups(t.Addr)
		return []string{fmt.Sprintf("process %d (sleep) is hidden: not in the list of tasks, but in the list of a control group", t.PID)}
	}},
	{"hidden process in a group", "processes", func(v *victim) []string {
		t := v.process("sleep")
		v.hide(t.Addr, "tasks", "sibling", "cg_list")
		return []string{fmt.Sprintf("process %d (sleep) is hidden: not in the list of tasks, but in a process group or session", t.PID)}
	}},
	{"hidden threads that wait for futexes", "processes", func(v *victim) []string {
		holder := v.process("holder")
		v.hideThreads(holder)
		return []string{"(holder) is hidden: not in the list of tasks, but in ", "the queue of a futex"}
	}},
	{"hidden threads that wait for children", "processes", func(v *victim) []string {
		v.hideThreads(v.parent(v.process("sleeper")))
		return []string{"is hidden: not in the list of tasks, but in ", "the queue of those who wait for children"}
	}},
	waitsForSocket("accepts"),
	waitsForSocket("polls"),
	waitsForSocket("epolls"),
	{"hidden process with a deadline", "processes", func(v *victim) []string {
		t := v.process("sleep")
		root := v.member(v.queue(), "rq", "dl.root.rb_root")
		v.hide(t.Addr, "tasks", "sibling", "cg_list")
		v.leaveGroups(t.Addr)
		node := v.member(v.member(t.Addr, "task_struct", "dl"), "sched_dl_entity", "rb_node")
		v.write(node, append([]byte{1}, make([]byte, 23)...)) // black, and alone
		v.put(root, uint64(node))
		return []string{fmt.Sprintf("process %d (sleep) is hidden: not in the list of tasks, but in ", t.PID), "the queue of a CPU's tasks with deadlines"}
	}},
}

// waitsForSocket hides the thread of a name of the process "waiter".
func waitsForSocket(comm string) tampering {
	return tampering{"hidden thread that " + comm, "processes", func(v *victim) []string {
		threads, err := v.tx.ThreadsOf(v.process("waiter"))
		if err != nil {
			v.Fatal(err)
		}
		i := slices.IndexFunc(threads, func(t linux.Task) bool { return string(t.Comm()) == comm })
		if i < 0 {
			v.Fatalf("no thread %q", comm)
		}
		v.hide(threads[i].Addr, "thread_node", "cg_list")
		return []string{fmt.Sprintf("process %d (%s) is hidden: not in the list of tasks, but in the queue of a socket", threads[i].PID, comm)}
	}}
}

// queue is the run queue of the first CPU.
func (v *victim) queue() mem.VA {
	return v.symbol("runqueues") + v.pointer(v.symbol("__per_cpu_offset"))
}

// asleep starts a process "sleep", and waits until threads of a Go program wait
// for futexes, and those of the process "waiter" for sockets.
func asleep(t *testing.T, lab *guestlab.Guest, goes, waiter int) {
	t.Helper()
	if _, err := lab.Run(t.Context(), fmt.Sprintf(`
sleep 1000000 >/dev/null 2>&1 &
until grep -qE '^(35|230|101|115) ' /proc/$!/syscall; do usleep 10000; done # (clock_)nanosleep, also of AArch64
until grep -qE '^(202|98) ' /proc/%d/task/*/syscall; do usleep 10000; done # futex
for name in accepts polls epolls; do
	until thread=$(grep -lx $name /proc/%d/task/*/comm); do usleep 10000; done
	until grep -qE '^(43|202|288|242|271|73|232|281|22) ' ${thread%%/comm}/syscall; do usleep 10000; done # accept, ppoll, epoll_wait
done
`, goes, waiter)); err != nil {
		t.Fatal(err)
	}
}

// process is the first process of a name.
func (v *victim) process(comm string) linux.Task {
	v.Helper()
	tasks, err := v.tx.Tasks()
	if err != nil {
		v.Fatal(err)
	}
	i := slices.IndexFunc(tasks, func(t linux.Task) bool { return string(t.Comm()) == comm })
	if i < 0 {
		v.Fatalf("no process %q", comm)
	}
	return tasks[i]
}

// parent is the process that has started another.
func (v *victim) parent(t linux.Task) linux.Task {
	v.Helper()
	at := v.pointer(v.member(t.Addr, "task_struct", "real_parent"))
	leader := v.pointer(v.member(at, "task_struct", "group_leader"))
	tasks, err := v.tx.Tasks()
	if err != nil {
		v.Fatal(err)
	}
	i := slices.IndexFunc(tasks, func(t linux.Task) bool { return t.Addr == leader })
	if i < 0 {
		v.Fatalf("%s has no parent", t.Comm())
	}
	return tasks[i]
}

// hide takes a task out of lists, by the members that link it, and has its id
// name nobody.
func (v *victim) hide(task mem.VA, links ...string) {
	v.Helper()
	for _, link := range links {
		v.unlink(v.member(task, "task_struct", link))
	}
	pid := v.pointer(v.member(task, "task_struct", "thread_pid"))
	v.put(v.member(pid, "pid", "tasks"), 0) // of PIDTYPE_PID
}

// leaveGroups takes a process out of its group and session.
func (v *victim) leaveGroups(task mem.VA) {
	v.Helper()
	for kind := range mem.VA(4) {
		node := v.member(task, "task_struct", "pid_links") + 16*kind
		next, pprev := v.pointer(node), v.pointer(node+8)
		if pprev == 0 {
			continue
		}
		v.put(pprev, uint64(next))
		if next != 0 {
			v.put(next+8, uint64(pprev))
		}
	}
}

// hideThreads hides all threads of a process but the first.
func (v *victim) hideThreads(t linux.Task) {
	v.Helper()
	threads, err := v.tx.ThreadsOf(t)
	if err != nil {
		v.Fatal(err)
	}
	for _, th := range threads {
		if th.Addr != t.Addr {
			v.hide(th.Addr, "thread_node", "cg_list")
		}
	}
}
