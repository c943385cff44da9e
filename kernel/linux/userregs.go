package linux

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// UserRegs are a thread's registers in user mode, in the order of struct
// user_regs_struct (arch/x86/include/asm/user_64.h): the words of struct
// pt_regs, then fs_base gs_base ds es fs gs.
type UserRegs [27]uint64

// userRegsLayout is what is read for them. On entry from user mode the kernel
// saves the registers at the top of the thread's kernel stack (struct pt_regs,
// arch/x86/include/asm/ptrace.h); the segments lie in struct thread_struct.
type userRegsLayout struct {
	Stack  ctype.Field `c:"task_struct.stack"`
	FSBase ctype.Field `c:"task_struct.thread.fsbase"`
	GSBase ctype.Field `c:"task_struct.thread.gsbase"`
	DS     ctype.Field `c:"task_struct.thread.ds"`
	ES     ctype.Field `c:"task_struct.thread.es"`
	FS     ctype.Field `c:"task_struct.thread.fsindex"`
	GS     ctype.Field `c:"task_struct.thread.gsindex"`
	IP     ctype.Field `c:"pt_regs.ip"`
	Flags  ctype.Field `c:"pt_regs.flags"`
	SP     ctype.Field `c:"pt_regs.sp"`
}

const (
	ptRegs      = 21 // words of struct pt_regs
	maxStack    = 64 << 10
	regCS       = 17
	regSS       = 20
	fredPadding = 16 // TOP_OF_KERNEL_STACK_PADDING with CONFIG_X86_FRED
)

// userRegsPlan says where on a kernel stack the registers lie.
type userRegsPlan struct {
	userRegsLayout
	off uint64
}

func newUserRegsPlan(k *Kernel) (*userRegsPlan, error) {
	l, err := layout64[userRegsLayout](k)
	if err != nil {
		return nil, err
	}
	if l.IP.Offset != 16*8 || l.Flags.Offset != 18*8 || l.SP.Offset != 19*8 {
		return nil, fmt.Errorf("struct pt_regs of this kernel is not known: %w", errors.ErrUnsupported)
	}
	// No type tells THREAD_SIZE: the idle task's stack does. It got an end of its
	// own in v6.10.
	start, err := k.Symbol("init_stack")
	end, _, err2 := k.firstSymbol("__end_init_stack", "__end_init_task")
	if err = errors.Join(err, err2); err != nil {
		return nil, err
	}
	_, err = k.Symbol("asm_fred_entrypoint_user")
	off, err := ptRegsAt(uint64(end-start), err == nil)
	return &userRegsPlan{*l, off}, err
}

// ptRegsAt is where on a kernel stack of so many bytes struct pt_regs lies. A
// kernel with FRED keeps room above it: 65c9cc9e2c14 ("x86/fred: Reserve space
// for the FRED stack frame"), v6.9.
func ptRegsAt(size uint64, fred bool) (uint64, error) {
	if size < mem.PageSize || size > maxStack || size&(size-1) != 0 {
		return 0, fmt.Errorf("kernel stacks of %d bytes: %w", size, errors.ErrUnsupported)
	}
	if fred {
		size -= fredPadding
	}
	return size - 8*ptRegs, nil
}

// UserRegs reads a thread's registers as they were when it last left user mode:
// for a thread that waits in a system call that is where it goes on; one that
// runs in user mode just now has others, which only its vCPU knows. All are zero
// for a thread that never was in user mode.
func (v *View) UserRegs(t Task) (r UserRegs, err error) {
	p, err := derived(v.Kernel, newUserRegsPlan)
	if err != nil {
		return r, err
	}
	if t.KThread() {
		return r, nil
	}
	w := loadsOf(v.Mem)
	stack := w.ptr(p.Stack.At(t.Addr))
	segs := [...]uint64{w.u64(p.FSBase.At(t.Addr)), w.u64(p.GSBase.At(t.Addr)),
		uint64(uint16(w.u32(p.DS.At(t.Addr)))), uint64(uint16(w.u32(p.ES.At(t.Addr)))),
		uint64(uint16(w.u32(p.FS.At(t.Addr)))), uint64(uint16(w.u32(p.GS.At(t.Addr))))}
	if w.err != nil || stack == 0 { // it has exited
		return r, w.err
	}
	var b [8 * ptRegs]byte
	if _, err := v.Mem.Read(b[:], stack+mem.VA(p.off)); err != nil {
		return r, fmt.Errorf("registers of thread %d: %w", t.PID, err)
	}
	for i := range ptRegs {
		r[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	copy(r[ptRegs:], segs[:])
	// Above the selectors an entry by FRED leaves more.
	r[regCS], r[regSS] = uint64(uint16(r[regCS])), uint64(uint16(r[regSS]))
	if r[regCS]&3 != 3 || v.gone(&t) {
		return UserRegs{}, nil
	}
	return r, nil
}

// auxLayout is what is read of an mm_struct for AuxVector.
type auxLayout struct {
	Saved ctype.Field `c:"mm_struct.saved_auxv"`
}

const maxAux = 4 << 10 // bytes; AT_VECTOR_SIZE is about 50 words

// AuxVector returns what the kernel told a process about itself when it
// started, as /proc/PID/auxv has it: pairs of words, a zero pair at the end.
func (v *View) AuxVector(task Task) (out []byte, err error) {
	l, err := layout64[auxLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	err = v.withMM(task, func(_ *spaceLayout, mm mem.VA) error {
		out = make([]byte, min(l.Saved.Size(), maxAux)&^15)
		if _, err := v.Mem.Read(out, l.Saved.At(mm)); err != nil {
			return fmt.Errorf("auxiliary vector of process %d: %w", task.PID, err)
		}
		for i := 0; i+16 <= len(out); i += 16 {
			if binary.LittleEndian.Uint64(out[i:]) == 0 {
				out = out[:i+16]
				break
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
