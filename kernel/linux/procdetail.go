package linux

import (
	"encoding/binary"
	"errors"

	"vmscope/ctype"
	"vmscope/mem"
)

// detailLayout is what a Process is read from, besides taskLayout
// (include/linux/sched.h, sched/signal.h, cred.h, mm_types.h).
type detailLayout struct {
	Parent ctype.Field `c:"task_struct.real_parent"`
	MM     ctype.Field `c:"task_struct.mm"`

	// All kernels have these; of one whose types are inferred they may not be known.
	Start    ctype.Field `c:"task_struct.start_boottime|task_struct.real_start_time,optional"` // renamed in v5.5
	State    ctype.Field `c:"task_struct.__state|task_struct.state,optional"`                  // 2f064a59a11f ("sched: Change task_struct::state") in v5.14
	Exit     ctype.Field `c:"task_struct.exit_state,optional"`
	NThreads ctype.Field `c:"signal_struct.nr_threads,optional"`
	Cred     ctype.Field `c:"task_struct.real_cred,optional"`
	UID      ctype.Field `c:"cred.uid,optional"`
	GID      ctype.Field `c:"cred.gid,optional"`
	EUID     ctype.Field `c:"cred.euid,optional"`
	EGID     ctype.Field `c:"cred.egid,optional"`

	// Kernel threads keep names that do not fit comm elsewhere since v5.17
	// (d6986ce24fc0 "kthread: dynamically allocate memory to store kthread's full name").
	KThread  ctype.Field `c:"task_struct.worker_private,optional"`
	FullName ctype.Field `c:"kthread.full_name,optional"`
	// A kernel without control groups lacks it.
	CGroups ctype.Field `c:"task_struct.cgroups,optional"`
}

// unknown names the fields of a Process that the layout does not tell.
func (d *detailLayout) unknown() (out []string) {
	for _, x := range []struct {
		f    ctype.Field
		name []string
	}{
		{d.Start, []string{"start_time", "start_ns"}}, {d.State, []string{"state"}},
		{d.UID, []string{"uid"}}, {d.GID, []string{"gid"}}, {d.EUID, []string{"euid"}}, {d.EGID, []string{"egid"}},
	} {
		if !x.f.Valid() {
			out = append(out, x.name...)
		}
	}
	return out
}

// loads reads words of one space and keeps the first error, after which it
// gives zeros.
type loads struct {
	near mem.Near
	err  error
}

func loadsOf(s *mem.Space) loads { return loads{near: s.Near()} }

func (l *loads) u64(at mem.VA) uint64 {
	if l.err != nil {
		return 0
	}
	v, err := l.near.Uint64(at)
	l.err = err
	return v
}

func (l *loads) u32(at mem.VA) uint32 {
	if l.err != nil {
		return 0
	}
	v, err := l.near.Uint32(at)
	l.err = err
	return v
}

// field is a number of 4 or 8 bytes in the object at base, 0 if the field is not
// known.
func (l *loads) field(f ctype.Field, base mem.VA) uint64 {
	switch {
	case !f.Valid():
		return 0
	case f.Size() == 8:
		return l.u64(f.At(base))
	}
	return uint64(l.u32(f.At(base)))
}

// ptr reads an address, or an unsigned long.
func (l *loads) ptr(at mem.VA) mem.VA {
	if l.err != nil {
		return 0
	}
	v, err := l.near.Pointer(at)
	l.err = err
	return v
}

// The words of a task_struct that tell whether what was read of it belongs
// together: they change when the task ends, when its memory becomes another
// task's, when it executes another program, changes its credentials or name,
// gets another parent, or moves to another cgroup.
const (
	markPID = iota
	markTGID
	markStart
	markComm
	markComm2
	markParent
	markCred
	markMM
	markSignal
	markCGroup
	numMarks
)

// marks are the values of those words, and the list node of the task.
type marks struct {
	words      [numMarks]uint64
	next, prev mem.VA
}

// of reports whether the marks are those of the task t.
func (m *marks) of(t *Task) bool {
	return int32(m.words[markPID]) == int32(t.PID) && int32(m.words[markTGID]) == int32(t.TGID)
}

func (m *marks) at(i int) mem.VA { return mem.VA(m.words[i]) }

// comm is the name within the marks.
func (m *marks) comm() [16]byte {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], m.words[markComm])
	binary.LittleEndian.PutUint64(b[8:], m.words[markComm2])
	return b
}

// word says where in a task_struct a mark lies.
type word struct {
	off  uint64
	size int
}

// places lists where the marks and the list node lie.
func (r *reader) places(node ctype.Field) (w [numMarks + 2]word) {
	at := func(i int, f ctype.Field, size int) {
		if f.Valid() {
			w[i] = word{f.Offset, size}
		}
	}
	ptr := r.v.Mem.PointerSize()
	at(markPID, r.t.PID, 4)
	at(markTGID, r.t.TGID, 4)
	at(markStart, r.d.Start, 8)
	at(markComm, r.t.Comm, 8)
	w[markComm2] = word{r.t.Comm.Offset + 8, 8}
	at(markParent, r.d.Parent, ptr)
	at(markCred, r.d.Cred, ptr)
	at(markMM, r.d.MM, ptr)
	at(markSignal, r.t.Signal, ptr)
	at(markCGroup, r.d.CGroups, ptr)
	at(numMarks, node, ptr)
	w[numMarks+1] = word{node.Offset + uint64(ptr), ptr}
	return w
}

// look reads the marks of the task at addr.
func (r *reader) look(addr mem.VA) (m marks, err error) {
	l := loadsOf(r.v.Mem)
	for i, w := range &r.words {
		var x uint64
		switch {
		case w.size == 8:
			x = l.u64(addr + mem.VA(w.off))
		case w.size == 4:
			x = uint64(l.u32(addr + mem.VA(w.off)))
		}
		m.set(i, x)
	}
	return m, l.err
}

// lookAgain is look past the cache of a View: the marks as they are now.
func (r *reader) lookAgain(addr mem.VA) (m marks, err error) {
	c, ok := r.v.Phys.(*mem.Cache)
	if !ok {
		return r.look(addr)
	}
	vec, buf := r.vec[:0], &r.vecBuf
	for i, w := range &r.words {
		if w.size == 0 {
			continue
		}
		t, err := r.v.Mem.Translate(addr + mem.VA(w.off))
		if err != nil {
			return m, err
		}
		vec = append(vec, mem.Vec{P: buf[8*i : 8*i+w.size], PA: t.PA})
	}
	r.vec = vec
	clear(buf[:])
	if _, err := mem.ReadVec(c.Source(), vec); err != nil {
		return m, err
	}
	for i := range r.words {
		m.set(i, binary.LittleEndian.Uint64(buf[8*i:]))
	}
	return m, nil
}

func (m *marks) set(i int, x uint64) {
	switch i {
	case numMarks:
		m.next = mem.VA(x)
	case numMarks + 1:
		m.prev = mem.VA(x)
	default:
		m.words[i] = x
	}
}

// What list_del_rcu and list_replace_rcu leave in the prev of a node
// (include/linux/poison.h: LIST_POISON2, with CONFIG_ILLEGAL_POINTER_VALUE of
// 64-bit kernels; those of 32 bits have none).
const (
	poison2     = 0xdead000000000122
	poison2of32 = 0x122
)

// removed reports whether the task was taken out of the list that it hung in.
func (m *marks) removed() bool { return m.prev == poison2 || m.prev == poison2of32 }

// linked reports whether the node, which has the links in m, hangs in its list:
// a neighbour points to it. Both do unless the list is being changed just then.
func (v *View) linked(node mem.VA, m *marks) (bool, error) {
	if m.removed() || m.next == 0 || m.prev == 0 {
		return false, nil
	}
	back, err := v.Mem.Pointer(m.next + mem.VA(v.Mem.PointerSize()))
	if err == nil && back == node {
		return true, nil
	}
	on, err2 := v.Mem.Pointer(m.prev)
	return err2 == nil && on == node, errors.Join(err, err2)
}

// The bits of task_struct.__state and exit_state that count
// (include/linux/sched.h).
const (
	taskUninterruptible = 0x0002
	taskReport          = 0x007f // TASK_REPORT
	taskReportIdle      = taskReport + 1
	taskIdle            = 0x0402 // TASK_UNINTERRUPTIBLE | TASK_NOLOAD
	taskRTLockWait      = 0x1000 // since v5.15; no bit of task states before
	taskFrozen          = 0x8000 // since v6.1; likewise
)

// stateLetter is the letter that /proc/PID/stat shows
// (__task_state_index and task_index_to_char in include/linux/sched.h).
//
// Frozen tasks are D as in v6.13, f718faf3940e ("freezer, sched: Report frozen
// tasks as 'D' instead of 'R'"), which stable kernels have as well.
func stateLetter(state, exit uint64) string {
	const letters = "RSDTtXZPI"
	s := (state | exit) & taskReport
	if state&taskIdle == taskIdle {
		s = taskReportIdle
	}
	if state&(taskRTLockWait|taskFrozen) != 0 {
		s = taskUninterruptible
	}
	i := 0
	for ; s != 0; s >>= 1 {
		i++
	}
	return letters[i : i+1]
}
