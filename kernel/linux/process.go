package linux

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"vmscope/arch"
	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// Processes lists the processes with all that is told of them, in the order of
// the kernel's task list.
//
// Each is right as of one moment during the call: what of a process changed
// while it was read is read again, and a process that ended meanwhile is left
// out. What could not be read of one (a page that is swapped out, a process that
// changes faster than it can be read) is said in its Missing and fails nothing
// else. An error, mem.ErrInconsistent for a list that does not hold together,
// comes beside what could be read.
func (v *View) Processes() ([]kernel.Process, error) {
	return v.processes(false)
}

// Threads is Processes for all threads, each behind the leader of its process.
// PID is the thread's own id. Threads of one process share Cmdline.
func (v *View) Threads() ([]kernel.Process, error) {
	return v.processes(true)
}

// Process tells all about one task as Tasks, ThreadsOf or TaskByPID gave it. A
// task that has ended since is an ErrNoProcess.
func (v *View) Process(task Task) (kernel.Process, error) {
	r, err := v.newReader(task.leads())
	if err != nil {
		return kernel.Process{}, err
	}
	p, ok := r.process(&task)
	if !ok {
		return p, fmt.Errorf("process %d (%s): %w", task.PID, task.Comm(), gone(r.lost))
	}
	return p, nil
}

// gone is why a task cannot be read: that it has ended, unless it is the source
// that fails.
func gone(err error) error {
	if errors.Is(err, mem.ErrUnreachable) {
		return err
	}
	return ErrNoProcess
}

// leads reports whether the task is the leader of its thread group, i.e. what
// user space calls a process.
func (t *Task) leads() bool { return t.PID == t.TGID }

func (v *View) processes(threads bool) ([]kernel.Process, error) {
	leaders, err := v.newReader(true)
	if err != nil {
		return nil, err
	}
	others := leaders.with(leaders.t.Node)
	tasks, err := v.Tasks()
	out := make([]kernel.Process, 0, len(tasks))
	var gone map[int]bool
	list := func(t *Task) bool {
		p, ok := leaders.process(t)
		if !ok {
			return false
		}
		out = append(out, p)
		if threads && p.Threads != 1 {
			out, err = others.threads(*t, out, err)
		}
		return true
	}
	for i := range tasks {
		if !list(&tasks[i]) {
			if leaders.lost != nil {
				return out, leaders.lost
			}
			if gone == nil {
				gone = make(map[int]bool)
			}
			gone[tasks[i].PID] = true
		}
	}
	if gone == nil || err != nil {
		return out, err
	}
	// A process that executes a program from a thread goes on in that thread's
	// task, with its old pid (de_thread in fs/exec.c). It must not be missed.
	tasks, err = v.Tasks()
	for i := range tasks {
		if gone[tasks[i].PID] {
			list(&tasks[i])
		}
	}
	return out, err
}

// threads appends the threads that a process has besides its leader.
func (r *reader) threads(leader Task, out []kernel.Process, err error) ([]kernel.Process, error) {
	tasks, terr := r.v.ThreadsOf(leader)
	for i := range tasks {
		if tasks[i].Addr == leader.Addr {
			continue
		}
		if p, ok := r.process(&tasks[i]); ok {
			out = append(out, p)
		}
	}
	if terr == nil || err != nil {
		return out, err
	}
	// The process may just have ended.
	if m, e := r.lookAgain(leader.Addr); e != nil || !m.of(&leader) || m.removed() {
		return out, nil
	}
	return out, fmt.Errorf("threads of process %d: %w", leader.PID, terr)
}

// processPlan is what reading processes takes in one kernel.
type processPlan struct {
	t *taskLayout
	d *detailLayout
	s *spaceLayout  // nil: not known
	c *cgroupLayout // nil: a kernel without control groups, or not known
	// fullNames says that workqueue workers too show names that do not fit comm.
	fullNames bool
	// mayBeCut says that names of kernel threads may not fit comm.
	mayBeCut bool
	// unknown are the fields of a Process that this kernel's types do not tell.
	unknown []string
}

func newProcessPlan(k *Kernel) (p *processPlan, err error) {
	p = new(processPlan)
	if p.t, err = known[taskLayout](k); err != nil {
		return nil, err
	}
	if p.d, err = known[detailLayout](k); err != nil {
		return nil, err
	}
	p.unknown = p.d.unknown()
	if p.s, err = layout[spaceLayout](k); err != nil {
		if k.Inferred() == nil {
			return nil, err
		}
		p.s = nil
		p.unknown = append(p.unknown, "cmdline", "exe", "root", "cgroup", "container")
	}
	if p.d.CGroups.Valid() {
		// Without the types the paths are not told; that is no failure of the rest.
		p.c, _ = layout[cgroupLayout](k)
	}
	// The function came with the naming of workers that /proc shows since v6.9.
	_, err = k.Symbol("format_worker_id")
	p.fullNames = err == nil
	// The function came with the names that do not fit comm.
	_, err = k.Symbol("get_kthread_comm")
	p.mayBeCut = err == nil
	return p, nil
}

// reader reads processes, and keeps for the time of one list what they share.
type reader struct {
	*processPlan
	v       *View
	words   [numMarks + 2]word
	boot    time.Time         // zero: not known
	members map[mem.VA]member // by css_set
	last    image
	names   *paths // nil: files cannot be named, for the reason noNames
	noNames error
	lost    error // the source failed
	area    area
	vec     []mem.Vec
	vecBuf  [8 * (numMarks + 2)]byte
}

// newReader prepares to read leaders, which hang in the list of all processes,
// or threads, which hang in the list of their process.
func (v *View) newReader(leaders bool) (*reader, error) {
	plan, err := derived(v.Kernel, newProcessPlan)
	if err != nil {
		return nil, err
	}
	r := &reader{processPlan: plan, v: v, members: make(map[mem.VA]member)}
	r.boot, _ = v.BootTime()
	r.names, r.noNames = v.paths()
	r.words = r.places(r.t.Node)
	if leaders {
		r.words = r.places(r.t.Tasks)
	}
	return r, nil
}

// with is the reader for tasks that hang in another list.
func (r *reader) with(node ctype.Field) *reader {
	s := *r
	s.words = s.places(node)
	return &s
}

// process reads one task until it stood still from begin to end. It is false
// if the task has ended.
func (r *reader) process(t *Task) (p kernel.Process, ok bool) {
	node := t.Addr + mem.VA(r.words[numMarks].off)
	for try := range retries {
		m, err := r.look(t.Addr)
		linked := false
		if err == nil && m.of(t) {
			linked, err = r.v.linked(node, &m)
		}
		if linked {
			p = r.read(t, &m)
			now, err := r.lookAgain(t.Addr)
			if err == nil && now.words == m.words && !now.removed() {
				return p, true
			}
			if err != nil || !now.of(t) || now.words[markStart] != m.words[markStart] || now.removed() {
				return p, r.fails(err)
			}
		} else if try > 0 || !r.forget() {
			return p, r.fails(err)
		}
		r.forget()
	}
	p.Missing = append(p.Missing, "it changed each time it was read: its parts may be of different moments")
	return p, true
}

// fails keeps the error of a source that fails, and is false.
func (r *reader) fails(err error) bool {
	if errors.Is(err, mem.ErrUnreachable) {
		r.lost = err
	}
	return false
}

// forget drops what may be out of date and reports whether there was anything.
func (r *reader) forget() bool {
	r.last = image{}
	r.v.forget()
	_, cached := r.v.Phys.(*mem.Cache)
	return cached
}

// read reads the task with the marks m.
func (r *reader) read(t *Task, m *marks) kernel.Process {
	comm := m.comm()
	p := kernel.Process{
		PID: t.PID, TGID: t.TGID,
		Comm:       kernel.Text(cstr(comm[:])),
		SinceBoot:  m.words[markStart],
		TaskStruct: t.Addr,
	}
	if !r.boot.IsZero() && r.d.Start.Valid() {
		start := r.boot.Add(time.Duration(p.SinceBoot))
		p.StartTime = &start
	}
	miss := func(what string, err error) {
		if err != nil {
			p.Missing = append(p.Missing, what+": "+err.Error())
		}
	}

	p.Unknown = r.unknown
	l := loadsOf(r.v.Mem)
	flags := l.u32(r.t.Flags.At(t.Addr))
	p.KThread = flags&pfKThread != 0
	switch {
	case !r.d.State.Valid():
	case r.d.Exit.Valid() || flags&pfExiting == 0:
		p.State = stateLetter(l.field(r.d.State, t.Addr), l.field(r.d.Exit, t.Addr))
	default: // it may be a zombie
		p.Unknown = append(slices.Clip(p.Unknown), "state")
	}
	miss("state", l.err)

	l.err = nil
	if r.d.NThreads.Valid() {
		p.Threads = int(int32(l.u32(r.d.NThreads.At(m.at(markSignal)))))
		miss("number of threads", l.err)
	} else {
		all, err := r.v.ThreadsOf(*t)
		p.Threads = len(all)
		miss("number of threads", err)
	}

	l.err = nil
	p.PPID = int(int32(l.u32(r.t.TGID.At(m.at(markParent)))))
	miss("parent", l.err)

	l.err = nil
	if cred := m.at(markCred); r.d.Cred.Valid() {
		p.UID, p.GID = uint32(l.field(r.d.UID, cred)), uint32(l.field(r.d.GID, cred))
		p.EUID, p.EGID = uint32(l.field(r.d.EUID, cred)), uint32(l.field(r.d.EGID, cred))
	}
	miss("credentials", l.err)

	if r.c != nil {
		g, err := r.member(m.at(markCGroup))
		p.CGroup, p.Container = g.path, g.container
		miss("cgroup", err)
	}
	if p.KThread {
		name, err := r.fullName(t.Addr, m, flags)
		if name != "" {
			p.Comm = name
		}
		miss("full name", err)
	} else if mm := m.at(markMM); mm != 0 && r.s != nil {
		g := r.image(mm, t.TGID)
		p.Root, p.Exe, p.Cmdline = g.root, g.exe, g.cmdline
		p.Missing = append(p.Missing, g.missing...)
	}
	return p
}

// pfWQWorker is PF_WQ_WORKER (include/linux/sched.h).
const pfWQWorker = 0x00000020

// fullName is the name of a kernel thread that does not fit comm, "" if it
// does: get_kthread_comm in kernel/kthread.c. What /proc shows behind the name
// of a kworker, the work it does, is not part of its name.
func (r *reader) fullName(task mem.VA, m *marks, flags uint32) (kernel.Text, error) {
	switch {
	case flags&pfWQWorker != 0 && !r.fullNames:
		return "", nil
	case !r.d.KThread.Valid() || !r.d.FullName.Valid():
		if comm := m.comm(); r.s == nil && r.mayBeCut && comm[len(comm)-2] != 0 {
			return "", fmt.Errorf("it may be longer: %w", ErrNoTypes)
		}
		return "", nil
	}
	k, err := r.v.Mem.Pointer(r.d.KThread.At(task))
	if err != nil || k == 0 {
		return "", err
	}
	s, err := r.v.Mem.Pointer(r.d.FullName.At(k))
	if err != nil || s == 0 {
		return "", err
	}
	name, err := r.v.Mem.CString(s, 63) // of proc_task_name's 64 bytes
	return kernel.Text(name), err
}

// image is what the threads of a process share: the program that it runs.
type image struct {
	mm      mem.VA
	root    mem.PA
	exe     kernel.Text
	cmdline []kernel.Text
	missing []string
}

// image reads the program behind an mm_struct.
func (r *reader) image(mm mem.VA, pid int) *image {
	if r.last.mm == mm {
		return &r.last
	}
	g := image{mm: mm}
	miss := func(what string, err error) {
		if err != nil {
			g.missing = append(g.missing, what+": "+err.Error())
		}
	}
	file, err := r.v.Mem.Pointer(r.s.ExeFile.At(mm))
	switch {
	case err != nil || file == 0:
	case r.names == nil:
		err = r.noNames
	default:
		g.exe, err = r.names.file(file)
	}
	miss("exe", err)

	s, err := r.v.spaceOf(r.s, mm, pid)
	miss("address space", err)
	if err == nil {
		g.root = s.Tr.(arch.Paging).Root()
		g.cmdline, err = r.cmdline(s, mm)
		if errors.Is(err, mem.ErrNotMapped) {
			err = fmt.Errorf("a page of it is not in memory: %w", err)
		}
		miss("cmdline", err)
	}
	r.last = g
	return &r.last
}
