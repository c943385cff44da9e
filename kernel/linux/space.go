package linux

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// ErrNoSpace says that a task has no address space of its own: it is a thread
// of the kernel, or it has exited.
var ErrNoSpace = errors.New("no address space of its own")

// spaceLayout is what is read of struct mm_struct (include/linux/mm_types.h).
type spaceLayout struct {
	MM       ctype.Field `c:"task_struct.mm"`
	PGD      ctype.Field `c:"mm_struct.pgd"`
	ExeFile  ctype.Field `c:"mm_struct.exe_file"`
	ArgStart ctype.Field `c:"mm_struct.arg_start"`
	ArgEnd   ctype.Field `c:"mm_struct.arg_end"`
	EnvStart ctype.Field `c:"mm_struct.env_start"`
	EnvEnd   ctype.Field `c:"mm_struct.env_end"`
}

// SpaceOf returns the task's own virtual address space. Its root is the one
// that the kernel runs on for the process; with page-table isolation it maps
// all that the process's user-mode root maps.
//
// A kernel thread has none (ErrNoSpace), also while it borrows one. The space
// ends with the process: on a live guest its pages then become others'.
func (v *View) SpaceOf(task Task) (*mem.Space, error) {
	var s *mem.Space
	err := v.withMM(task, func(l *spaceLayout, mm mem.VA) (err error) {
		s, err = v.spaceOf(l, mm, task.PID)
		return err
	})
	return s, err
}

// withMM calls f with the mm_struct of a task, and again if the task got
// another one meanwhile. That the task has ended is an ErrNoProcess.
func (v *View) withMM(task Task, f func(l *spaceLayout, mm mem.VA) error) error {
	l, err := layout[spaceLayout](v.Kernel)
	if err != nil {
		return err
	}
	r, err := v.newReader(task.leads())
	if err != nil {
		return err
	}
	who := func() string { return fmt.Sprintf("process %d (%s)", task.PID, task.Comm()) }
	return v.settle(func() error {
		before, err := r.lookAgain(task.Addr)
		if err != nil || !before.of(&task) || before.removed() {
			return fmt.Errorf("%s: %w", who(), gone(err))
		}
		mm := before.at(markMM)
		switch {
		case task.KThread():
			return fmt.Errorf("%s is a thread of the kernel: %w", who(), ErrNoSpace)
		case mm == 0:
			return fmt.Errorf("%s has exited: %w", who(), ErrNoSpace)
		}
		ferr := f(l, mm)
		after, err := r.lookAgain(task.Addr)
		switch {
		case err != nil || !after.of(&task) || after.words[markStart] != before.words[markStart]:
			return fmt.Errorf("%s: %w", who(), gone(err))
		case after.at(markMM) != mm:
			return errBroken("mm_struct", mm, who()+" changed its address space meanwhile")
		}
		return ferr
	})
}

// spaceOf spans the address space of an mm_struct.
func (v *View) spaceOf(l *spaceLayout, mm mem.VA, pid int) (*mem.Space, error) {
	pgd, err := v.Mem.Pointer(l.PGD.At(mm))
	if err != nil {
		return nil, fmt.Errorf("page-table root of process %d: %w", pid, err)
	}
	root, err := v.Mem.Translate(pgd)
	if err != nil {
		return nil, fmt.Errorf("page-table root of process %d: %w", pid, err)
	}
	if uint64(root.PA)%v.Mode.RootSize() != 0 {
		return nil, errBroken("mm_struct", mm, fmt.Sprintf("its page-table root %#x is no place of one", uint64(pgd)))
	}
	return mem.NewSpace(fmt.Sprintf("process %d", pid), v.Phys, v.Mode.Process(v.Phys, root.PA, v.Root)), nil
}

// maxEnv bounds what Environ reads: the most that execve(2) passes is 6 MiB,
// with the usual limit of the stack 2 MiB (bprm_stack_limits in fs/exec.c).
const maxEnv = 6 << 20

// Environ returns the process's environment as /proc/PID/environ shows it: what
// it was started with, in the memory that the process may have overwritten
// since. Entries whose page is not in memory end the list with an error.
func (v *View) Environ(task Task) ([]kernel.Text, error) {
	var out []kernel.Text
	err := v.withMM(task, func(l *spaceLayout, mm mem.VA) error {
		s, err := v.spaceOf(l, mm, task.PID)
		if err != nil {
			return err
		}
		w := loadsOf(v.Mem)
		start, end := w.ptr(l.EnvStart.At(mm)), w.ptr(l.EnvEnd.At(mm))
		if w.err != nil || end <= start {
			return w.err
		}
		var a area
		text, err := a.read(s, start, uint64(end-start), maxEnv)
		out = split(text)
		return err
	})
	return out, err
}
