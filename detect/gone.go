package detect

import (
	"context"
	"errors"
	"time"

	"vmscope/ctype"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// A kernel that boots, or is gone, is none that could have been tampered with: its
// image is writable until it is up, and what firmware and the next kernel write
// over the last one looks like anything. So nothing is looked at before the first
// process runs a program, and before findings are believed the kernel has to be
// seen running, for which there is goneWait. A guest that is idle may show
// nothing for so long.
const (
	goneWait = 1200 * time.Millisecond // linux.Beat tells a clock that stands after one second
	gonePoll = 20 * time.Millisecond
)

// GoneFor is for how long sweeps may be Gone one after the other; a machine under
// load is so long in its firmware. What is found behind that counts: a guest must
// not get rid of an alarm by making its clock stand.
const GoneFor = 15 * time.Second

// bootTicks is what jiffies are at most while a kernel boots: they begin 300 s
// before 2^32 (INITIAL_JIFFIES in include/linux/jiffies.h), and 10 minutes have at
// most so many ticks (CONFIG_HZ is 1000 at most; with 250 it is 45 minutes).
const bootTicks = 1<<32 + 600*1000

// ErrGone is why nothing is known of such a guest. It may pass.
var ErrGone = errors.New("the guest boots, or went while it was looked at: try again when it is up")

type firstLayout struct {
	Tasks ctype.Field `c:"task_struct.tasks"` // include/linux/sched.h
	PID   ctype.Field `c:"task_struct.pid"`
	MM    ctype.Field `c:"task_struct.mm"`
	By    ctype.Field `c:"task_struct.real_parent"`
}

// booting reports whether the kernel has not come to its first program yet
// (kernel_init in init/main.c, which makes the image read-only before): the first
// process of the list is that one, and has no memory of its own. A guest may put
// a task there that looks so: it is believed only while its clock is young, and
// nothing else shows that it is up.
func booting(l *Look) bool {
	if j, err := l.Jiffies(); err == nil && j > bootTicks {
		return false
	}
	f, err := bind[firstLayout](l)
	if err != nil {
		return false
	}
	idle, err := l.Symbol("init_task")
	if err != nil {
		return false
	}
	node, err := l.Mem.Pointer(f.Tasks.At(idle))
	if err != nil || node == 0 {
		return err == nil
	}
	first := node - mem.VA(f.Tasks.Offset)
	if first == idle {
		return true
	}
	pid, err := l.Mem.Uint32(f.PID.At(first))
	mm, merr := l.Mem.Pointer(f.MM.At(first))
	return err == nil && merr == nil && pid == 1 && mm == 0 && !running(l) && !peopled(l, f)
}

type stateLayout struct {
	Running uint64 `c:"enum(SYSTEM_RUNNING)"` // include/linux/kernel.h
}

// running reports whether the kernel says that it has booted: its init text is
// freed then, and its image read-only.
func running(l *Look) bool {
	f, err := bind[stateLayout](l)
	if err != nil {
		return false
	}
	at, err := l.Symbol("system_state")
	if err != nil {
		return false
	}
	state, err := l.Mem.Uint32(at)
	return err == nil && uint64(state) >= f.Running
}

// peopled reports whether there are processes that only the first one can have
// started. A kernel that boots starts helpers by itself, each for a moment: their
// parents have no memory of their own.
func peopled(l *Look, f *firstLayout) bool {
	tasks, _ := l.Tasks() // as far as they can be read
	for _, t := range tasks {
		if mm, err := l.Mem.Pointer(f.MM.At(t.Addr)); err != nil || mm == 0 {
			continue
		}
		if t.PID == 1 {
			return true
		}
		by, err := l.Mem.Pointer(f.By.At(t.Addr))
		if err != nil {
			continue
		}
		if mm, err := l.Mem.Pointer(f.MM.At(by)); err == nil && mm != 0 {
			return true
		}
	}
	return false
}

// gone reports whether the kernel of a sweep was, at the end, not the one that
// runs: began is its sign of life from the beginning.
func gone(ctx context.Context, l *Look, began linux.Beat) bool {
	still := func() (linux.Beat, bool) {
		forget(l)
		return l.StillRuns(began)
	}
	last, ok := still()
	if !ok {
		return true
	}
	for range goneWait / gonePoll {
		if pause(ctx, gonePoll) != nil {
			return false
		}
		now, ok := still()
		if !ok {
			return true
		}
		if now.Jiffies != last.Jiffies {
			return false
		}
	}
	return true
}
